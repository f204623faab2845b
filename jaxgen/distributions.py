"""Output distributions ("heads"): log-probabilities and reproducible draws.

Every head maps network outputs `parameters` [..., P] to a distribution over integers {0 .. levels-1}. Draws are deterministic functions of
`(parameters, noise)`: the noise of a pixel is drawn once from the key and the pixel's position, so every exact sampling method (naive,
cached, fixed-point) turns the same noise into the same image.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray


@dataclass(frozen=True)
class Bernoulli:
    """x in {0, 1} with one logit: log p(x) = -softplus(-(2x - 1) logit), parameters [..., 1]."""

    channelwise = True  # one set of parameters for every channel, conditioned on the channels before it
    levels = 2
    size = 1
    dtype = np.dtype("uint8")

    def log_prob(self, parameters: Float[Array, "*shape 1"], x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        """log p(x) in nats for each element."""
        sign = 2.0 * x.astype(jnp.float32) - 1.0
        return -jax.nn.softplus(-sign * parameters[..., 0])

    def noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Logistic noise: x = 1[logit + noise > 0] has P(x = 1) = sigmoid(logit)."""
        return jax.random.logistic(key, shape)

    def sample(self, parameters: Float[Array, "*shape 1"], noise: Float[Array, "*shape"], temperature=1.0) -> Int[Array, "*shape"]:
        """A draw; the temperature divides the logit."""
        return (parameters[..., 0] / temperature + noise > 0).astype(jnp.int32)


@dataclass(frozen=True)
class Categorical:
    """x in {0 .. levels-1} with a softmax over logits [..., levels]."""

    levels: int
    channelwise = True

    @property
    def size(self) -> int:
        """Parameters per element."""
        return self.levels

    @property
    def dtype(self) -> np.dtype:
        """Of draws: the smallest unsigned type that holds 0 .. levels-1."""
        return np.min_scalar_type(self.levels - 1)

    def log_prob(self, parameters: Float[Array, "*shape V"], x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        """log p(x) = logits[x] - logsumexp(logits), in nats for each element."""
        logits = jax.nn.log_softmax(parameters)
        return jnp.take_along_axis(logits, x.astype(jnp.int32)[..., None], axis=-1)[..., 0]

    def noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Gumbel noise: argmax(logits + noise) is a draw from the softmax."""
        return jax.random.gumbel(key, (*shape, self.levels))

    def sample(self, parameters: Float[Array, "*shape V"], noise: Float[Array, "*shape V"], temperature=1.0) -> Int[Array, "*shape"]:
        """A draw by the Gumbel-max trick; the temperature divides the logits."""
        return jnp.argmax(parameters / temperature + noise, axis=-1).astype(jnp.int32)


def pixel_head(levels: int) -> Bernoulli | Categorical:
    """The exact discrete head for pixels of that many levels."""
    return Bernoulli() if levels == 2 else Categorical(levels)


def gaussian_log_prob(
    mean: Float[Array, "*shape"], log_variance: Float[Array, "*shape"], x: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """log N(x; mean, exp(log_variance)) in nats for each element: a density, so it may be positive."""
    return -0.5 * (jnp.log(2 * jnp.pi) + log_variance + (x - mean) ** 2 * jnp.exp(-log_variance))


def gaussian_sample(mean: Float[Array, "*shape"], log_variance: Float[Array, "*shape"], key: PRNGKeyArray) -> Float[Array, "*shape"]:
    """mean + sigma noise: a draw that is differentiable in both parameters (Kingma & Welling 2013, section 2.4)."""
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)


def gaussian_kl(mean: Float[Array, "*shape"], log_variance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats for each element (Kingma & Welling 2013, appendix B)."""
    return 0.5 * (mean**2 + jnp.exp(log_variance) - log_variance - 1)


def bits_per_dim(nats, dims: int, log2_scale: float = 0.0):
    """The one conversion: nats = -log p of one data point of `dims` dimensions, into bits per dimension.

        bits/dim = nats / (dims ln 2) + log2_scale

    log2_scale is 0 for a probability of discrete levels and for a density of x + u on [0, levels). A density of the rescaled value
    y = (x + u) / c needs log2_scale = log2 c: 8 for [0, 1) from 256 levels, 7 for [-1, 1).
    """
    return nats / (dims * math.log(2)) + log2_scale
