"""The learned schedule of a diffusion model in continuous time (Kingma et al. 2021, "Variational Diffusion Models", section 3.2).

The bound depends on the ends g_0 and g_1 of g(t) = -log SNR and not on the way between them, m. So m is free to be learned for another end:
a small variance of the estimate of the bound from one time (appendix I of the paper), which is that of its terms' squares. Departure: the
paper's m is a network of 1024 monotone units, here it is a sum of sigmoids.
"""

from math import log

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

FIRST_ENDS = (-13.3, 5.0)  # g_0 and g_1 before the first step, as in the paper for 256 levels
SIGMOIDS = 16


class RisingLogRatio(nnx.Module):
    """g(t) = g_0 + (g_1 - g_0) m(t) = -log SNR, with m(t) = (u(t) - u(0)) / (u(1) - u(0)) and

        u(t) = e^a t + sum_j e^{c_j} sigmoid(e^{b_j} (t - d_j))

    which rises with t whatever the parameters are. Before the first step m is close to a straight line, and g_1 = FIRST_ENDS[1].

    spacing: the distance between the levels of x_0; g_0 is such that the noise at t = 0 has a sixth of it as deviation, which for 256
    levels is FIRST_ENDS[0]. None: real numbers, which have no levels; g_0 = FIRST_ENDS[0].
    """

    def __init__(self, spacing: float | None = None):
        low, high = FIRST_ENDS
        low = low if spacing is None else low + 2 * log(spacing * 255 / 2)
        self.low, self.log_span = nnx.Param(jnp.float32(low)), nnx.Param(jnp.float32(log(high - low)))
        self.slope = nnx.Param(jnp.zeros(()))
        self.heights, self.rates = (nnx.Param(jnp.full(SIGMOIDS, first, jnp.float32)) for first in (-5, 3))
        self.places = nnx.Param(jnp.linspace(0, 1, SIGMOIDS))

    def inside(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """m(t)."""
        heights, rates, places = (jnp.exp(self.heights[...]), jnp.exp(self.rates[...]), self.places[...])

        def u(t):
            waves = heights * jax.nn.sigmoid(rates * (t - places))
            return jnp.exp(self.slope[...]) * t + waves.sum()

        low, high = u(jnp.float32(0)), u(jnp.float32(1))
        return (jax.vmap(u)(t.reshape(-1)).reshape(t.shape) - low) / (high - low)

    def __call__(self, t: Float[Array, "*n"], fixed: bool = False) -> Float[Array, "*n"]:
        """g(t). fixed: without a gradient in the parameters of m."""
        inside = jax.lax.stop_gradient(self).inside if fixed else self.inside
        return self.low[...] + jnp.exp(self.log_span[...]) * inside(t)

    def evenness(self, t: Float[Array, " B"], terms: Float[Array, " B"]) -> Float[Array, ""]:
        """A number whose gradient in the parameters of m is proportional to that of E[terms^2], terms = g'(t) h(g(t)) for fixed h.

        With g in the place of t, the density of g is 1 / g'(t(g)), so E[terms^2] = int h(g)^2 g'(t(g)) dg; its gradient is the mean over
        t of terms^2 times that of log g'(t(g)). The time t(g) of the same g moves with the parameters by -dm / m'.
        """

        def slope(t):
            return jax.jvp(self.inside, (t,), (jnp.ones_like(t),))[1]

        inside = self.inside(t)
        moved = t - (inside - jax.lax.stop_gradient(inside)) / jax.lax.stop_gradient(slope(t))
        squares = jax.lax.stop_gradient(terms) ** 2
        return ((squares / squares.mean() - 1) * jnp.log(slope(moved))).mean()
