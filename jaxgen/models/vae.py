"""Variational auto-encoder (Kingma & Welling 2013, "Auto-Encoding Variational Bayes"), on images of discrete levels.

    z ~ N(0, I),   x | z ~ Bernoulli (2 levels) or Categorical for every pixel and channel,   q(z | x) = N(mean(x), diag sigma^2(x))

    L_A = log p(x, z) - log q(z | x)                    estimator A, eq. 6
    L_B = log p(x | z) - KL(q(z | x) || p(z))           estimator B, eq. 7 with the KL of appendix B
    L_k = log (1/k) sum_i p(x, z_i) / q(z_i | x)        importance-weighted bound (Burda et al. 2015)

with z = mean + sigma noise, noise ~ N(0, I). E L_A = E L_B = E L_1 <= E L_k <= log p(x). p(x | z) is a probability of discrete levels, so
these are bounds on log p(x) of discrete images, comparable with the log p(x) of exact models. With `num_classes` > 0 the label, one-hot, is
an input of both networks and every distribution is conditional on it: p(z) p(x | z, y) and q(z | x, y).

Axes: B batch, H W C image, V levels, P parameters of p(x | z) for each pixel and channel, Z latent, K importance samples. Departures from
the paper: silu for tanh, any number of hidden layers, the "conv" networks, and a categorical likelihood where the paper has a Gaussian
density for its Frey faces. L_k is from Burda, Grosse, Salakhutdinov 2015, "Importance Weighted Autoencoders".
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_image_config, check_images, check_key, check_label, image_of
from jaxgen.data.features import OfImages, given_to
from jaxgen.distributions import bits_per_dim, gaussian_kl, gaussian_log_prob, gaussian_sample, pixel_head
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import EXACT, embed, scale_pixels
from jaxgen.layers.image_networks import MLP, ConvDecoder, ConvEncoder, check_hidden

LogDensity = Callable[[Float[Array, "B Z"]], Float[Array, " B"]]


def estimator_a(z: Float[Array, "B Z"], log_likelihood: LogDensity, log_prior: LogDensity, log_posterior: LogDensity) -> Float[Array, " B"]:
    """L_A = log p(x | z) + log p(z) - log q(z | x) in nats, for z drawn from q(z | x). It is also the log importance weight of z.

    The arguments are functions of z that return nats [B].
    """
    return log_likelihood(z) + log_prior(z) - log_posterior(z)


def estimator_b(z: Float[Array, "B Z"], log_likelihood: LogDensity, kl: Float[Array, " B"]) -> Float[Array, " B"]:
    """L_B = log p(x | z) - KL(q(z | x) || p(z)) in nats, for z drawn from q(z | x); `kl` is computed in closed form."""
    return log_likelihood(z) - kl


def importance_bound(log_weights: Float[Array, "K B"]) -> Float[Array, " B"]:
    """L_k = log (1/k) sum_i w_i in nats, k = K, from log w_i = log p(x, z_i) - log q(z_i | x), z_i ~ q(z | x)."""
    return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(log_weights.shape[0])


@dataclass(frozen=True)
class VAEConfig(OfImages):
    """Sizes of a VAE. Raises ConfigError for sizes out of range, for conv also unless H and W are multiples of 4."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    latent: int = 16  # Z, size of the latent vector
    # units of each hidden layer (mlp), or channels at 1/2 and 1/4 of the size (conv); the decoder's reversed
    hidden: tuple[int, ...] = (256, 256)
    architecture: Literal["mlp", "conv"] = "mlp"  # fully connected layers, or convolutions
    estimator: Literal["A", "B"] = "B"  # of the bound: A draws the divergence too, B has it in closed form

    def __post_init__(self):
        check_image_config(self, {}, channels=None)
        if self.latent < 1 or not self.hidden or min(self.hidden) < 1:
            raise ConfigError("latent, hidden", "positive sizes", (self.latent, self.hidden))
        check_hidden(self.image_shape, self.hidden, self.architecture)


class VAE(nnx.Module):
    """Encoder q(z | x), decoder p(x | z) and the three bounds. Methods raise ConfigError for images or labels that do not fit the config.

    label: int [B] or one int, or weights of the classes, float [B, num_classes]; None for a model without labels.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, pixel_head(config.levels)
        height, width, channels = config.image_shape
        size, classes, parameters = prod(config.image_shape), config.num_classes, self.head.size
        if config.architecture == "mlp":
            self.features = MLP((size, *config.hidden), rngs)
            features = config.hidden[-1]
            self.decoder = MLP((config.latent + classes, *reversed(config.hidden), size * parameters), rngs)
        else:
            self.features = ConvEncoder(config.image_shape, config.hidden, rngs)
            features = height // 4 * (width // 4) * config.hidden[1]
            self.decoder = ConvDecoder(config.latent + classes, channels * parameters, config.image_shape, config.hidden, rngs)
        self.posterior = nnx.Linear(features + classes, 2 * config.latent, precision=EXACT, rngs=rngs)

    def encode(self, image: UInt[Array, "B H W C"], label=None) -> tuple[Float[Array, "B Z"], Float[Array, "B Z"]]:
        """Mean and log variance of q(z | x), [B, Z] each."""
        image = check_images(image, self.config.image_shape, self.config.levels)
        x = scale_pixels(image, self.config.levels)
        x = x.reshape(x.shape[0], -1) if self.config.architecture == "mlp" else x
        mean, log_variance = jnp.split(self.posterior(self._with_label(nnx.silu(self.features(x)), label)), 2, axis=-1)
        return mean, log_variance

    def decode(self, z: Float[Array, "B Z"], label=None) -> Float[Array, "B H W C P"]:
        """Parameters of p(x | z): for each pixel and channel one logit (2 levels, P = 1) or V logits (P = V)."""
        return self.decoder(self._with_label(z, label)).reshape(-1, *self.config.image_shape, self.head.size)

    def elbo(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, label=None, estimator: str | None = None) -> Float[Array, " B"]:
        """L_A or L_B in nats of one z for each image, `estimator` "A" or "B"; None: the config's. ConfigError for another."""
        estimator = self.config.estimator if estimator is None else estimator
        if estimator not in ("A", "B"):
            raise ConfigError("estimator", "A or B", estimator)
        mean, log_variance = self.encode(image, label)
        z = gaussian_sample(mean, log_variance, key)
        if estimator == "A":
            return self._log_weight(image, z, mean, log_variance, label)
        return estimator_b(z, lambda z: self._log_likelihood(image, z, label), gaussian_kl(mean, log_variance).sum(-1))

    def importance_bound(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, k: int, label=None) -> Float[Array, " B"]:
        """L_k in nats. Its expectation does not fall with k, and tends to log p(x). The k samples are computed one after the other."""
        k = check_count(k, "k")
        mean, log_variance = self.encode(image, label)

        def log_weight(key):
            return self._log_weight(image, gaussian_sample(mean, log_variance, key), mean, log_variance, label)

        return importance_bound(jax.lax.map(log_weight, jax.random.split(key, k)))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-mean of L_A or L_B in bits/dim; metrics: it as bits_per_dim_bound, and nats_bound, nats per image."""
        nats = -self.elbo(image_of(batch), key, **given_to(self.config, batch)).mean()
        bound = bits_per_dim(nats, prod(self.config.image_shape))
        return bound, {"bits_per_dim_bound": bound, "nats_bound": nats}

    def sample(self, key: PRNGKeyArray, n: SupportsIndex, label=None) -> UInt[Array, "n H W C"]:
        """n images, in the smallest unsigned type for their levels: z from the prior, then every pixel from p(x | z)."""
        check_key(key)
        n = check_count(n)
        key_z, key_x = jax.random.split(key)
        parameters = self.decode(jax.random.normal(key_z, (n, self.config.latent)), label)
        noise = self.head.noise(key_x, (n, *self.config.image_shape))
        return self.head.sample(parameters, noise).astype(self.head.dtype)

    def reconstruct(self, image: UInt[Array, "B H W C"], label=None) -> UInt[Array, "B H W C"]:
        """For every pixel the most probable level under p(x | z), z the mean of q(z | x)."""
        parameters = self.decode(self.encode(image, label)[0], label)
        best = parameters[..., 0] > 0 if self.config.levels == 2 else jnp.argmax(parameters, axis=-1)
        return best.astype(self.head.dtype)

    def _with_label(self, x: Float[Array, "B D"], label) -> Float[Array, "B E"]:
        label = check_label(label, self.config.num_classes, x.shape[0])
        return x if label is None else jnp.concatenate([x, embed(jnp.eye(self.config.num_classes), label)], axis=-1)

    def _log_likelihood(self, image: UInt[Array, "B H W C"], z: Float[Array, "B Z"], label) -> Float[Array, " B"]:
        terms = self.head.log_prob(self.decode(z, label), image)
        return terms.reshape(terms.shape[0], -1).sum(-1)

    def _log_weight(self, image, z, mean, log_variance, label) -> Float[Array, " B"]:
        return estimator_a(
            z,
            lambda z: self._log_likelihood(image, z, label),
            lambda z: gaussian_log_prob(jnp.zeros_like(z), jnp.zeros_like(z), z).sum(-1),
            lambda z: gaussian_log_prob(mean, log_variance, z).sum(-1),
        )
