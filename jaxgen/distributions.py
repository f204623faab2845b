"""Output distributions ("heads"): log-probabilities and reproducible draws; and functions of Gaussians, and bits per dimension.

A head maps network outputs `parameters` [..., P] to a distribution over the integers 0 .. levels-1, or over real numbers (`Normal`).
`log_prob(parameters, x)` is in nats. A draw is a function `sample(parameters, noise, temperature)` without randomness of its own;
`noise(key, shape)` gives the noise. The samplers draw the noise of a place from the key and the place alone, so that all exact sampling
methods use the same noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray


def along_one_axis(numbers: Callable[[PRNGKeyArray, tuple[int, ...]], Array], key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """numbers(key, shape) of a function such as `jax.random.normal`, bit for bit: the number at a place follows from the key and the place.

    For a CPU, XLA compiles a draw with four axes in about a second, and one along a single axis in a quarter of that.
    """
    return numbers(key, (math.prod(shape),)).reshape(shape)


def standard_normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype=jnp.float32) -> Float[Array, "..."]:
    """`jax.random.normal`, see `along_one_axis`."""
    return along_one_axis(partial(jax.random.normal, dtype=dtype), key, shape)


def row_sums(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """The sum over all axes but the first."""
    return x.reshape(x.shape[0], -1).sum(-1)


@dataclass(frozen=True)
class Bernoulli:
    """x in {0, 1} with one logit: log p(x) = -softplus(-(2x - 1) logit), parameters [..., 1]."""

    channelwise = True  # each channel has parameters of its own, which may depend on the channels before it
    levels = 2
    size = 1
    dtype = np.dtype("uint8")

    def log_prob(self, parameters: Float[Array, "*shape 1"], x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        """log p(x) in nats for each element."""
        sign = 2.0 * x.astype(jnp.float32) - 1.0
        return -jax.nn.softplus(-sign * parameters[..., 0])

    def noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Standard logistic noise of this shape, so that P(logit + noise > 0) = sigmoid(logit)."""
        return along_one_axis(jax.random.logistic, key, shape)

    def sample(self, parameters: Float[Array, "*shape 1"], noise: Float[Array, "*shape"], temperature=1.0) -> Int[Array, "*shape"]:
        """x = 1 where logit / temperature + noise > 0, else 0."""
        return (parameters[..., 0] / temperature + noise > 0).astype(jnp.int32)

    def best(self, parameters: Float[Array, "*shape 1"]) -> Int[Array, "*shape"]:
        """The most probable value."""
        return (parameters[..., 0] > 0).astype(jnp.int32)


@dataclass(frozen=True)
class Categorical:
    """x in {0 .. levels-1} with a softmax over logits [..., levels]."""

    levels: int
    channelwise = True

    @property
    def size(self) -> int:
        """P, the number of parameters of an element."""
        return self.levels

    @property
    def dtype(self) -> np.dtype:
        """The type in which samplers return draws: the smallest unsigned one that holds 0 .. levels-1."""
        return np.min_scalar_type(self.levels - 1)

    def log_prob(self, parameters: Float[Array, "*shape V"], x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        """log p(x) = logits[x] - logsumexp(logits), in nats for each element."""
        logits = jax.nn.log_softmax(parameters)
        return jnp.take_along_axis(logits, x.astype(jnp.int32)[..., None], axis=-1)[..., 0]

    def noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Standard Gumbel noise [*shape, levels], so that argmax(logits + noise) is a draw from softmax(logits)."""
        return along_one_axis(jax.random.gumbel, key, (*shape, self.levels))

    def sample(self, parameters: Float[Array, "*shape V"], noise: Float[Array, "*shape V"], temperature=1.0) -> Int[Array, "*shape"]:
        """argmax(logits / temperature + noise), a draw from softmax(logits / temperature)."""
        return jnp.argmax(parameters / temperature + noise, axis=-1).astype(jnp.int32)

    def best(self, parameters: Float[Array, "*shape V"]) -> Int[Array, "*shape"]:
        """The most probable value."""
        return jnp.argmax(parameters, axis=-1).astype(jnp.int32)


@dataclass(frozen=True)
class Normal:
    """A real number x ~ N(mean, exp(log_variance)), parameters [..., 2] = (mean, log_variance)."""

    channelwise = True
    size = 2
    dtype = np.dtype("float32")

    def log_prob(self, parameters: Float[Array, "*shape 2"], x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        """log N(x; mean, exp(log_variance)) in nats for each element, a density."""
        return gaussian_log_prob(parameters[..., 0], parameters[..., 1], x)

    def noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Standard normal noise of this shape."""
        return standard_normal(key, shape)

    def sample(self, parameters: Float[Array, "*shape 2"], noise: Float[Array, "*shape"], temperature=1.0) -> Float[Array, "*shape"]:
        """A draw from p(x)^(1 / temperature), normalised: the temperature multiplies the variance."""
        return parameters[..., 0] + jnp.sqrt(temperature * jnp.exp(parameters[..., 1])) * noise


def keep_likeliest(logits: Float[Array, "*shape V"], k: int | None) -> Float[Array, "*shape V"]:
    """The logits with all but the k largest set to -inf, so that these are never drawn. Of equal ones the first is kept. None keeps all."""
    if k is None or k >= logits.shape[-1]:
        return logits
    best = jax.lax.top_k(logits, k)[1]
    kept = jnp.put_along_axis(jnp.zeros(logits.shape, bool), best, jnp.ones((), bool), axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


def keep_nucleus(logits: Float[Array, "*shape V"], p, temperature=1.0) -> Float[Array, "*shape V"]:
    """The logits with all set to -inf but the nucleus: the fewest likeliest values whose probabilities sum to p or more. Of equal ones the
    first counts as the likelier. The probabilities are softmax(logits / temperature). None and 1 keep all.

    Holtzman, Buys, Du, Forbes, Choi 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    if p is None:
        return logits
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    chance = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1) / temperature)
    likelier = jnp.cumsum(chance, axis=-1) - chance  # the sum over those before
    inside = (likelier < p) | (jnp.asarray(p) >= 1)
    kept = jnp.put_along_axis(jnp.zeros(logits.shape, bool), order, inside, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


def pixel_head(levels: int) -> Bernoulli | Categorical:
    """Bernoulli for two levels, else Categorical."""
    return Bernoulli() if levels == 2 else Categorical(levels)


def gaussian_log_prob(
    mean: Float[Array, "*shape"], log_variance: Float[Array, "*shape"], x: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """log N(x; mean, exp(log_variance)) in nats for each element: a density, so it may be positive."""
    return -0.5 * (jnp.log(2 * jnp.pi) + log_variance + (x - mean) ** 2 * jnp.exp(-log_variance))


def gaussian_sample(mean: Float[Array, "*shape"], log_variance: Float[Array, "*shape"], key: PRNGKeyArray) -> Float[Array, "*shape"]:
    """mean + exp(log_variance / 2) noise, noise ~ N(0, I): differentiable in both parameters (Kingma & Welling 2013, section 2.4)."""
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)


def gaussian_kl(mean: Float[Array, "*shape"], log_variance: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats for each element (Kingma & Welling 2013, appendix B)."""
    return 0.5 * (mean**2 + jnp.exp(log_variance) - log_variance - 1)


def importance_bound(log_weights: Float[Array, "K B"]) -> Float[Array, " B"]:
    """L_k = log (1/k) sum_i w_i in nats, k = K, from log w_i = log p(x, z_i) - log q(z_i | x), z_i ~ q(z | x)."""
    return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(log_weights.shape[0])


def bits_per_dim(nats, dims: int, log2_scale: float = 0.0):
    """Bits per dimension of one example of `dims` dimensions, from nats = -log p.

        bits/dim = nats / (dims ln 2) + log2_scale

    log2_scale is 0 where p is a probability of discrete levels, or a density of x + u on [0, levels), u ~ U[0, 1). For a density of the
    rescaled values y = (x + u) / c + constant it is log2 c: with 256 levels 8 for y in [0, 1) and 7 for y in [-1, 1).
    """
    return nats / (dims * math.log(2)) + log2_scale
