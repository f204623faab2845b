"""Output distributions ("heads"): log-probabilities and reproducible draws.

Every head maps network outputs `parameters` [..., P] to a distribution over integers {0 .. levels-1}. Draws are deterministic functions of
`(parameters, noise)`: the noise of a pixel is drawn once from the key and the pixel's position, so every exact sampling method (naive,
cached, fixed-point) turns the same noise into the same image.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray


@dataclass(frozen=True)
class Bernoulli:
    """x in {0, 1} with one logit: log p(x) = -softplus(-(2x - 1) logit), parameters [..., 1]."""

    channelwise = True  # one set of parameters for every channel, conditioned on the channels before it
    levels = 2
    size = 1

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
