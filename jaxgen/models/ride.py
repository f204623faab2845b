"""RIDE: a recurrent image density estimator, a spatial LSTM over the image and a mixture of Gaussian scale mixtures for each pixel.

    p(x) = prod_ij p(x_ij | h_ij),     pixels in raster order, grey images, x = 2 v / levels - 1 of v = x + u, u ~ U[0, 1)

    (g, o, i, f_r, f_c) = (tanh, 4 sigmoid)(A [n_ij; h_{i,j-1}; h_{i-1,j}] + a)
    c_ij = g i + c_{i,j-1} f_c + c_{i-1,j} f_r,      h_ij = tanh(c_ij) o

n_ij are the 12 pixels above and to the left of pixel (i, j) within two rows and columns; outside the image pixels, h and c are 0. Then,
with components k of several scales s each (MCGSM),

    p(x | h) = sum_{k,s} p(k, s | h) N(x; w_k . h + m_k, exp(-r_ks)),     p(k, s | h) ~ exp(e_ks - 1/2 exp(r_ks) sum_n (b_kn)^2 (f_n . h)^2)

Pixel (i, j) depends on the columns up to j + 2 of the rows above and on the pixels to the left in its own row: not on all pixels before it.
All pixels of a diagonal i + j = t are computed at once, see layers/diagonals.py.

Theis & Bethge 2015, "Generative Image Modeling Using Spatial LSTMs", sections 2 and 3. Departures: borders (the paper trains on patches and
ignores them); a mean m_k of each component; e_ks is kept as its difference from r_ks / 2; pixels are not preconditioned.

Axes: B batch, H W image, D units (`hidden`), K components, S scales, N features f_n.
"""

from dataclasses import dataclass
from math import log, pi, prod
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.checks import check_image_config
from jaxgen.data.features import OfImages
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import add_bias, dot, normal, shift, zeros
from jaxgen.layers.dequantised import DequantisedImages, check_shape
from jaxgen.layers.diagonals import at_last_column, images_in_a_sweep, to_diagonals, to_rows

NEIGHBOURS = [(-r, c) for r in (2, 1) for c in range(-2, 3)] + [(0, -2), (0, -1)]
"""(rows down, columns right) of the 12 pixels of n_ij."""


@dataclass(frozen=True)
class RIDEConfig(OfImages):
    """Sizes of a RIDE. Raises ConfigError for sizes out of range and for colour images."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image; one channel
    levels: int = 17  # number of values that a pixel has: 0 .. levels-1
    hidden: int = 32  # D, units of the spatial LSTM
    components: int = 8  # K, of the mixture of each pixel
    scales: int = 4  # S, variances of each component
    filters: int = 16  # N, features that the weights of the mixture are computed from
    num_classes: ClassVar[int] = 0  # no labels

    def __post_init__(self):
        check_image_config(self, {"hidden": 1, "components": 1, "scales": 1, "filters": 1})
        if self.image_shape[2] != 1:
            raise ConfigError("image_shape", "images of one channel", self.image_shape)


class Mixture(nnx.Module):
    """p(x | h), a mixture of K conditional Gaussian scale mixtures."""

    def __init__(self, config: RIDEConfig, rngs: nnx.Rngs):
        k, s, n, d = config.components, config.scales, config.filters, config.hidden
        self.means, self.mean_bias = normal(rngs, (d, k), d), nnx.Param(jnp.linspace(-0.8, 0.8, k))  # w and m
        spread = jnp.linspace(0, 6, s) if s > 1 else jnp.full((1,), 2.0, jnp.float32)
        self.precisions = nnx.Param(jnp.broadcast_to(spread, (k, s)))  # r: deviations from 1 to e^-3
        self.weights = zeros((k, s))  # e - r / 2
        self.filters, self.loadings = normal(rngs, (d, n), d), nnx.Param(jnp.full((n, k), 0.1, jnp.float32))  # f and b

    def parts(self, h: Float[Array, "... D"]) -> tuple[Float[Array, "... K S"], Float[Array, "... K"], Float[Array, "... K S"]]:
        """log p(k, s | h), the means, and the log-precisions r."""
        energy = dot(dot(h, self.filters[...]) ** 2, self.loadings[...] ** 2)[..., None]  # h' K_k h
        r, weights = (jnp.broadcast_to(own[...], (*energy.shape[:-1], own.shape[1])) for own in (self.precisions, self.weights))
        logits = weights + r / 2 - 0.5 * jnp.exp(r) * energy
        log_weights = jax.nn.log_softmax(logits.reshape(*logits.shape[:-2], -1)).reshape(logits.shape)
        return log_weights, add_bias(dot(h, self.means[...]), self.mean_bias[...]), r

    def log_density(self, h: Float[Array, "*shape D"], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """log p(x | h) in nats."""
        log_weights, means, r = self.parts(h)
        squares = (x[..., None] - means)[..., None] ** 2
        return jax.nn.logsumexp(log_weights + 0.5 * (r - log(2 * pi) - jnp.exp(r) * squares), axis=(-2, -1))

    def draw(self, h: Float[Array, "B D"], key: PRNGKeyArray) -> Float[Array, " B"]:
        """x for each h."""
        (log_weights, means, r), (key_part, key_noise) = self.parts(h), jax.random.split(key)
        part = jax.random.categorical(key_part, log_weights.reshape(len(h), -1))
        mean = jnp.take_along_axis(means, (part // r.shape[2])[:, None], axis=1)[:, 0]
        r = jnp.take_along_axis(r.reshape(len(h), -1), part[:, None], axis=1)[:, 0]
        return mean + jnp.exp(-0.5 * r) * jax.random.normal(key_noise, (len(h),))


class RIDE(DequantisedImages):
    """The density p(v); see `DequantisedImages` for its other methods. Methods raise ConfigError for what does not fit the config."""

    def __init__(self, config: RIDEConfig, *, rngs: nnx.Rngs):
        d, inputs = config.hidden, len(NEIGHBOURS)
        self.config, self.mixture = config, Mixture(config, rngs)
        self.pixels, self.left, self.above = (normal(rngs, (size, 5 * d), inputs + 2 * d) for size in (inputs, d, d))  # A
        self.bias = zeros((5 * d,))  # a

    def cell(self, gates: Float[Array, "... E"], left: tuple, above: tuple) -> tuple:
        """(h, c) of a pixel from A n + a, E = 5D, and the (h, c) to the left and above."""
        gates = gates + dot(left[0], self.left[...]) + dot(above[0], self.above[...])
        g, o, i, f_r, f_c = jnp.split(gates, 5, axis=-1)
        o, i, f_r, f_c = map(jax.nn.sigmoid, (o, i, f_r, f_c))
        c = jnp.tanh(g) * i + left[1] * f_c + above[1] * f_r
        return jnp.tanh(c) * o, c

    @jax.jit  # else its loop is compiled in every call
    def states(self, x: Float[Array, "B H W"]) -> Float[Array, "B H W D"]:
        """h of all pixels, one diagonal after the other."""
        batch, height, width = x.shape
        k = images_in_a_sweep(batch)
        padded = jnp.pad(x, ((0, 0), (2, 0), (2, 2)))
        neighbours = [padded[:, 2 + r : 2 + r + height, 2 + c : 2 + c + width] for r, c in NEIGHBOURS]
        gates = add_bias(dot(jnp.stack(neighbours, axis=-1), self.pixels[...]), self.bias[...])

        def diagonal(carry, inputs):
            (left, above), (t, gates) = carry, inputs
            new, last = self.cell(gates, left, above), at_last_column(t, height, width)
            left = jax.tree.map(lambda state: jnp.where(last, 0, state), new)
            return (left, jax.tree.map(lambda state: shift(state, 1, axis=0), new)), new[0]

        gates = to_diagonals(gates.transpose(1, 2, 0, 3), k)  # [T, H, A, 5D]
        nothing = (jnp.zeros((*gates.shape[1:3], self.config.hidden)),) * 2
        _, h = jax.lax.scan(diagonal, (nothing, nothing), (jnp.arange(len(gates)), gates))
        return to_rows(h, k).transpose(2, 0, 1, 3)

    def log_density(self, v: Float[Array, "B H W 1"]) -> Float[Array, " B"]:
        """log p(v) in nats; v: levels plus noise. Raises ConfigError for another shape."""
        check_shape(v, self.config)
        x = v[..., 0] * (2 / self.config.levels) - 1
        terms = self.mixture.log_density(self.states(x), x)
        return terms.sum((1, 2)) + prod(self.config.image_shape) * log(2 / self.config.levels)

    def draw_v(self, key: PRNGKeyArray, n: int) -> Float[Array, "n H W 1"]:
        """Draws of v."""
        return ((self.draw(key, n) + 1) * (self.config.levels / 2))[..., None]

    def draw(self, key: PRNGKeyArray, n: int) -> Float[Array, "n H W"]:
        """Draws of x, pixel after pixel."""
        (height, width, _), d = self.config.image_shape, self.config.hidden
        rows, columns = np.divmod(np.arange(height * width), width)

        def pixel(carry, place):
            padded, (row_h, row_c), left = carry  # the row holds the states above, from column c on those of the row before
            i, r, c = place
            left = jax.tree.map(lambda state: jnp.where(c > 0, state, 0), left)
            window = jax.lax.dynamic_slice(padded, (0, r, c), (n, 3, 5))
            neighbours = jnp.stack([window[:, 2 + down, 2 + right] for down, right in NEIGHBOURS], axis=-1)
            gates = add_bias(dot(neighbours, self.pixels[...]), self.bias[...])
            above = row_h[c], row_c[c]
            state = self.cell(gates, left, above)
            x = self.mixture.draw(state[0], jax.random.fold_in(key, i))
            row = row_h.at[c].set(state[0]), row_c.at[c].set(state[1])
            return (padded.at[:, r + 2, c + 2].set(x), row, state), None

        zero = (jnp.zeros((n, d)),) * 2
        start = jnp.zeros((n, height + 2, width + 4)), (jnp.zeros((width, n, d)),) * 2, zero
        (padded, _, _), _ = jax.lax.scan(pixel, start, (jnp.arange(height * width), jnp.asarray(rows), jnp.asarray(columns)))
        return padded[:, 2:, 2:-2]
