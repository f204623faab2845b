"""The output distribution of PixelCNN++: a mixture of K discretized logistics for a pixel; means of G and B are linear in R and G.

x_c are the V levels scaled to [-1, 1], 2d apart, d = 1 / (V - 1); for component k and channels R, G, B (k left out on the right):

    m_R = mu_R,  m_G = mu_G + a x_R,  m_B = mu_B + b x_R + c x_G            a, b, c in (-1, 1): tanh of the outputs
    P_k(x_c) = sigma((x_c + d - m_c) / s_c) - sigma((x_c - d - m_c) / s_c)  lowest level: first term only; highest: 1 - second
    log p(x) = logsumexp_k [log pi_k + sum_c log P_k(x_c)]                   one component for all channels

Since sigma(u) - sigma(v) = (1 - exp(v - u)) sigma(u) sigma(-v), the logarithm is computed without cancellation for every scale:

    log P = log(1 - exp(-2d / s)) - softplus(-(x + d - m) / s) - softplus((x - d - m) / s)

Salimans, Karpathy, Chen, Kingma 2017, "PixelCNN++", section 2. Departure from the authors' code: in a draw, the means of G and B are
computed from the R and G that were drawn rounded to levels, as they are in log_prob; so draws are from the distribution of log_prob.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from jaxgen.distributions import along_one_axis
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import scale_pixels

LOWEST_LOG_SCALE = -7.0
"""Smaller log-scales are raised to this one, as in the authors' code; exp(-7) is about an eighth of a bin 2d of 256 levels."""


@jax.custom_jvp
def log1mexp_exp(t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 - exp(-exp(t))), accurate to float32 rounding for every t. With w = exp(t) it is about t for small w, -exp(-w) for large w."""
    w = jnp.exp(jnp.minimum(t, 80.0))
    small, middle = w < 1e-3, w < 0.7
    series = t - w / 2
    one = jnp.log(-jnp.expm1(-jnp.where(middle & ~small, w, 0.5)))
    two = jnp.log1p(-jnp.exp(-jnp.where(middle, 1.0, w)))
    return jnp.where(small, series, jnp.where(middle, one, two))


@log1mexp_exp.defjvp
def _log1mexp_exp_jvp(primals, tangents):
    # d/dt = w / (exp(w) - 1), between 1 (w -> 0) and 0 (w -> infinity).
    w = jnp.exp(jnp.minimum(primals[0], 80.0))
    slope = jnp.where(w < 1e-6, 1.0, w / jnp.expm1(jnp.maximum(w, 1e-6)))
    return log1mexp_exp(primals[0]), slope * tangents[0]


def discretized_logistic_log_prob(
    x: Num[Array, "*shape"], mean: Float[Array, "*shape"], log_scale: Float[Array, "*shape"], levels: int
) -> Float[Array, "*shape"]:
    """log P(x) in nats of one discretized logistic, x in {0 .. levels-1}; mean and scale are in units of [-1, 1]."""
    half = 1.0 / (levels - 1)
    centred, inverse = scale_pixels(x, levels) - mean, jnp.exp(-log_scale)
    below = jax.nn.softplus(-(centred + half) * inverse)  # -log sigma of the upper edge
    above = jax.nn.softplus((centred - half) * inverse)  # -log (1 - sigma) of the lower edge
    inside = log1mexp_exp(jnp.log(2 * half) - log_scale) - below - above
    return jnp.where(x == 0, -below, jnp.where(x == levels - 1, -above, inside))


@dataclass(frozen=True)
class DiscretizedLogistic:
    """One discretized logistic for every channel, which depends on no other channel: parameters [..., 2], mean and log-scale.

    A draw is m + s * logistic noise, clipped to [-1, 1] and rounded to the nearest level.
    """

    levels: int
    size = 2
    channelwise = True

    @property
    def dtype(self) -> np.dtype:
        """The type in which draws are returned: the smallest unsigned one that holds 0 .. levels-1."""
        return np.min_scalar_type(self.levels - 1)

    def log_prob(self, parameters: Float[Array, "*shape 2"], x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        """log P(x) in nats for each element."""
        mean, log_scale = parameters[..., 0], jnp.maximum(parameters[..., 1], LOWEST_LOG_SCALE)
        return discretized_logistic_log_prob(x, mean, log_scale, self.levels)

    def noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Standard logistic noise of this shape."""
        return along_one_axis(jax.random.logistic, key, shape)

    def sample(self, parameters: Float[Array, "*shape 2"], noise: Float[Array, "*shape"], temperature=1.0) -> Int[Array, "*shape"]:
        """A level for each element; the temperature multiplies the scales."""
        scale = jnp.exp(jnp.maximum(parameters[..., 1], LOWEST_LOG_SCALE)) * temperature
        return to_level(parameters[..., 0] + scale * noise, self.levels)

    def best(self, parameters: Float[Array, "*shape 2"]) -> Int[Array, "*shape"]:
        """The level nearest to the mean, which is the most probable one unless the mean is near an end of the range."""
        return to_level(parameters[..., 0], self.levels)


def to_level(value: Float[Array, "*shape"], levels: int) -> Int[Array, "*shape"]:
    """The level nearest to a value on [-1, 1]; values outside go to the lowest or the highest."""
    return jnp.round((jnp.clip(value, -1, 1) + 1) * ((levels - 1) / 2)).astype(jnp.int32)


@dataclass(frozen=True)
class DiscretizedLogisticMixture:
    """The distribution above, of pixels [..., C] given parameters [..., P], P = K (1 + 2C + C(C-1)/2): 10 K for C = 3, 3 K for C = 1.

    The parameters are K mixture logits, C K means, C K log-scales and, for C = 3, 3 K coefficients (a, b, c before tanh).
    """

    levels: int
    channels: int
    components: int = 10

    channelwise = False  # one set of parameters for all channels of a pixel, which depends on none of them

    def __post_init__(self):
        if self.levels < 2:
            raise ConfigError("levels", "2 or more", self.levels)
        if self.components < 1:
            raise ConfigError("components", "a positive number of logistics", self.components)

    @property
    def size(self) -> int:
        """Parameters per pixel."""
        return self.components * (1 + 2 * self.channels + self.channels * (self.channels - 1) // 2)

    @property
    def dtype(self) -> np.dtype:
        """The type in which samplers return draws: the smallest unsigned one that holds 0 .. levels-1."""
        return np.min_scalar_type(self.levels - 1)

    def split(self, parameters: Float[Array, "*shape P"]) -> tuple[Array, Array, Array, Array]:
        """Mixture logits [..., K], means [..., C, K], log-scales [..., C, K] and coefficients [..., C(C-1)/2, K]."""
        parts = parameters.astype(jnp.float32).reshape(*parameters.shape[:-1], -1, self.components)
        logits, means, log_scales, coefficients = jnp.split(parts, [1, 1 + self.channels, 1 + 2 * self.channels], axis=-2)
        return logits[..., 0, :], means, jnp.maximum(log_scales, LOWEST_LOG_SCALE), jnp.tanh(coefficients)

    def _mean(self, means, coefficients, before, c: int):
        """m_c [..., K] from mu_c and `before`, the values on [-1, 1] of the channels (those from c on are ignored)."""
        first = c * (c - 1) // 2
        return means[..., c, :] + sum(coefficients[..., first + j, :] * value[..., None] for j, value in enumerate(before[:c]))

    def log_prob(self, parameters: Float[Array, "*shape P"], x: Num[Array, "*shape C"]) -> Float[Array, "*shape"]:
        """log p(x) in nats of each pixel, the joint probability of its channels."""
        logits, means, log_scales, coefficients = self.split(parameters)
        values = [scale_pixels(x[..., c], self.levels) for c in range(self.channels)]
        terms = jax.nn.log_softmax(logits)
        for c in range(self.channels):
            level, mean = jnp.broadcast_to(x[..., c, None], terms.shape), self._mean(means, coefficients, values, c)
            terms = terms + discretized_logistic_log_prob(level, mean, log_scales[..., c, :], self.levels)
        return jax.nn.logsumexp(terms, axis=-1)

    def noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Noise for pixels of this shape, [..., C]: K Gumbel variables, which choose the component, then C logistic ones: [..., K + C]."""
        choose, draw = jax.random.split(key)
        gumbel = along_one_axis(jax.random.gumbel, choose, (*shape[:-1], self.components))
        return jnp.concatenate([gumbel, along_one_axis(jax.random.logistic, draw, shape)], axis=-1)

    def sample(self, parameters: Float[Array, "*shape P"], noise: Float[Array, "*shape N"], temperature=1.0) -> Int[Array, "*shape C"]:
        """A draw of all channels: component k = argmax(logits + Gumbel noise), then x_c = m_c + s_c * logistic noise, rounded to a level.

        The temperature divides the mixture logits and multiplies the scales; towards 0 the draw becomes the mean of the likeliest
        component.
        """
        logits, *rest = self.split(parameters)
        gumbel, logistic = noise[..., : self.components], noise[..., self.components :]
        chosen = jnp.argmax(logits / temperature + gumbel, axis=-1)[..., None, None]
        means, log_scales, coefficients = (jnp.take_along_axis(part, chosen, axis=-1) for part in rest)
        drawn = []
        for c in range(self.channels):
            mean = self._mean(means, coefficients, [scale_pixels(level, self.levels) for level in drawn], c)[..., 0]
            value = mean + jnp.exp(log_scales[..., c, 0]) * temperature * logistic[..., c]
            drawn.append(to_level(value, self.levels))
        return jnp.stack(drawn, axis=-1)
