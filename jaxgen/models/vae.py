"""Variational auto-encoder (Kingma & Welling 2013, "Auto-Encoding Variational Bayes"), on images of discrete levels.

    z ~ N(0, I),   x | z ~ a distribution for every pixel and channel,   q(z | x) = N(mean(x), diag sigma^2(x))

    L_A = log p(x, z) - log q(z | x)                    estimator A, eq. 6
    L_B = log p(x | z) - KL(q(z | x) || p(z))           estimator B, eq. 7 with the KL of appendix B
    L_k = log (1/k) sum_i p(x, z_i) / q(z_i | x)        importance-weighted bound (Burda et al. 2015)

with z = mean + sigma noise, noise ~ N(0, I). E L_A = E L_B = E L_1 <= E L_k <= log p(x). p(x | z) is a probability of discrete levels, so
these are bounds on log p(x) of discrete images, comparable with the log p(x) of exact models. p(x | z) of a pixel is Bernoulli (2 levels)
or categorical, or a discretized logistic (logistic_mixture.py). With `num_classes` > 0 the label, one-hot, is an input of both networks,
with `vector_size` > 0 a vector is, and every distribution is conditional on them: p(z) p(x | z, y) and q(z | x, y).

Only the training may differ from the mean of one estimate of L: it may average `samples` draws of z, weigh the KL by `beta` (Higgins et al.
2017), and leave a mean KL of `free_bits` nats in each latent dimension without cost (Kingma et al. 2016, appendix C.8),

    loss = -mean of log p(x | z) + beta sum_j max(free_bits, mean of KL_j)          mean over the batch and the draws of z

KL_j is in closed form for estimator B, and log q(z_j | x) - log p(z_j) for estimator A. The bounds that are reported stay as above.

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

from jaxgen.checks import check_count, check_image_config, check_images, check_key, check_label, check_vector, image_of
from jaxgen.data.features import OfImages, given_to
from jaxgen.distributions import bits_per_dim, gaussian_kl, gaussian_log_prob, gaussian_sample, importance_bound, row_sums
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import Linear, embed, scale_pixels
from jaxgen.layers.image_networks import MLP, ConvDecoder, ConvEncoder, check_hidden, likelihood_head

LogDensity = Callable[[Float[Array, "B Z"]], Float[Array, " B"]]


def estimator_a(z: Float[Array, "B Z"], log_likelihood: LogDensity, log_prior: LogDensity, log_posterior: LogDensity) -> Float[Array, " B"]:
    """L_A = log p(x | z) + log p(z) - log q(z | x) in nats, for z drawn from q(z | x). It is also the log importance weight of z.

    The arguments are functions of z that return nats [B].
    """
    return log_likelihood(z) + log_prior(z) - log_posterior(z)


def estimator_b(z: Float[Array, "B Z"], log_likelihood: LogDensity, kl: Float[Array, " B"]) -> Float[Array, " B"]:
    """L_B = log p(x | z) - KL(q(z | x) || p(z)) in nats, for z drawn from q(z | x); `kl` is computed in closed form."""
    return log_likelihood(z) - kl


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
    vector_size: int = 0  # size of the vector that an image is drawn given; 0: no vector
    likelihood: Literal["categorical", "logistic"] = "categorical"  # of a pixel; categorical of 2 levels is Bernoulli
    samples: int = 1  # draws of z for each image in training
    beta: float = 1.0  # weight of the KL in training
    free_bits: float = 0.0  # nats of the KL of each latent dimension that cost nothing in training
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; distributions and their parameters are float32

    def __post_init__(self):
        check_image_config(self, {"vector_size": 0, "samples": 1, "beta": 0, "free_bits": 0}, channels=None)
        if self.latent < 1 or not self.hidden or min(self.hidden) < 1:
            raise ConfigError("latent, hidden", "positive sizes", (self.latent, self.hidden))
        check_hidden(self.image_shape, self.hidden, self.architecture)


class VAE(nnx.Module):
    """Encoder q(z | x), decoder p(x | z) and the three bounds. Methods raise ConfigError for images or labels that do not fit the config.

    label: int [B] or one int, or weights of the classes, float [B, num_classes]; None for a model without labels. vector: float
    [B, vector_size], or one [vector_size]; None for a model without vectors.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, likelihood_head(config.likelihood, config.levels)
        height, width, channels = config.image_shape
        size, given, parameters = prod(config.image_shape), config.num_classes + config.vector_size, self.head.size
        if config.architecture == "mlp":
            self.features = MLP((size, *config.hidden), rngs)
            features = config.hidden[-1]
            self.decoder = MLP((config.latent + given, *reversed(config.hidden), size * parameters), rngs)
        else:
            self.features = ConvEncoder(config.image_shape, config.hidden, rngs, config.dtype)
            features = height // 4 * (width // 4) * config.hidden[1]
            self.decoder = ConvDecoder(config.latent + given, channels * parameters, config.image_shape, config.hidden, rngs)
        self.posterior = Linear(features + given, 2 * config.latent, rngs)

    def encode(self, image: UInt[Array, "B H W C"], label=None, vector=None) -> tuple[Float[Array, "B Z"], Float[Array, "B Z"]]:
        """Mean and log variance of q(z | x), [B, Z] each."""
        image = check_images(image, self.config.image_shape, self.config.levels)
        x = scale_pixels(image, self.config.levels, self.config.dtype)
        x = x.reshape(x.shape[0], -1) if self.config.architecture == "mlp" else x
        x = nnx.silu(self.features(x)).astype(jnp.float32)
        mean, log_variance = jnp.split(self.posterior(self._with_given(x, label, vector)), 2, axis=-1)
        return mean, log_variance

    def decode(self, z: Float[Array, "B Z"], label=None, vector=None) -> Float[Array, "B H W C P"]:
        """Parameters of p(x | z): for each pixel and channel P = 1 logit (2 levels), V logits, or mean and log-scale (logistic)."""
        inputs = self._with_given(z, label, vector).astype(self.config.dtype)
        return self.decoder(inputs).reshape(-1, *self.config.image_shape, self.head.size)

    def elbo(
        self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, label=None, vector=None, estimator: str | None = None
    ) -> Float[Array, " B"]:
        """L_A or L_B in nats of one z for each image, `estimator` "A" or "B"; None: the config's. ConfigError for another."""
        estimator = self.config.estimator if estimator is None else estimator
        if estimator not in ("A", "B"):
            raise ConfigError("estimator", "A or B", estimator)
        mean, log_variance = self.encode(image, label, vector)
        z = gaussian_sample(mean, log_variance, key)
        if estimator == "A":
            return self._log_weight(image, z, mean, log_variance, label, vector)
        return estimator_b(z, lambda z: self._log_likelihood(image, z, label, vector), gaussian_kl(mean, log_variance).sum(-1))

    def importance_bound(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, k: int, label=None, vector=None) -> Float[Array, " B"]:
        """L_k in nats. Its expectation does not fall with k, and tends to log p(x). The k samples are computed one after the other."""
        keys = jax.random.split(key, check_count(k, "k"))
        return self._importance_bound(image, *self.encode(image, label, vector), keys, label, vector)

    @jax.jit  # else its loop is compiled in every call
    def _importance_bound(self, image, mean, log_variance, keys, label, vector) -> Float[Array, " B"]:
        def log_weight(key):
            return self._log_weight(image, gaussian_sample(mean, log_variance, key), mean, log_variance, label, vector)

        return importance_bound(jax.lax.map(log_weight, keys))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """The loss above in bits/dim; metrics: the bound L as bits_per_dim_bound, and nats_bound, nats per image, of the same draws."""
        config, image, given, size = self.config, image_of(batch), given_to(self.config, batch), prod(self.config.image_shape)
        if (config.samples, config.beta, config.free_bits) == (1, 1, 0):
            nats = -self.elbo(image, key, **given).mean()
            bound = bits_per_dim(nats, size)
            return bound, {"bits_per_dim_bound": bound, "nats_bound": nats}
        mean, log_variance = self.encode(image, **given)

        def terms(key):
            z = gaussian_sample(mean, log_variance, key)
            drawn = gaussian_log_prob(mean, log_variance, z) - gaussian_log_prob(jnp.zeros_like(z), jnp.zeros_like(z), z)
            return self._log_likelihood(image, z, **given).mean(), drawn.mean(0) if config.estimator == "A" else closed

        closed = gaussian_kl(mean, log_variance).mean(0)
        likelihood, kl = (term.mean(0) for term in jax.vmap(terms)(jax.random.split(key, config.samples)))
        nats = kl.sum() - likelihood
        loss = config.beta * jnp.maximum(kl, config.free_bits).sum() - likelihood
        return bits_per_dim(loss, size), {"bits_per_dim_bound": bits_per_dim(nats, size), "nats_bound": nats}

    def sample(self, key: PRNGKeyArray, n: SupportsIndex, label=None, vector=None) -> UInt[Array, "n H W C"]:
        """n images, in the smallest unsigned type for their levels: z from the prior, then every pixel from p(x | z)."""
        check_key(key)
        n = check_count(n)
        key_z, key_x = jax.random.split(key)
        parameters = self.decode(jax.random.normal(key_z, (n, self.config.latent)), label, vector)
        noise = self.head.noise(key_x, (n, *self.config.image_shape))
        return self.head.sample(parameters, noise).astype(self.head.dtype)

    def reconstruct(self, image: UInt[Array, "B H W C"], label=None, vector=None) -> UInt[Array, "B H W C"]:
        """For every pixel the most probable level under p(x | z), z the mean of q(z | x)."""
        return self.picture(self.encode(image, label, vector)[0], label, vector)

    def picture(self, z: Float[Array, "B Z"], label=None, vector=None) -> UInt[Array, "B H W C"]:
        """For every pixel the most probable level under p(x | z)."""
        return self.head.best(self.decode(z, label, vector)).astype(self.head.dtype)

    def _with_given(self, x: Float[Array, "B D"], label, vector) -> Float[Array, "B E"]:
        """x beside the label, one-hot, and the vector, where the model has them."""
        label = check_label(label, self.config.num_classes, x.shape[0])
        vector = check_vector(vector, self.config.vector_size, x.shape[0])
        parts = [] if label is None else [embed(jnp.eye(self.config.num_classes), label)]
        parts += [] if vector is None else [vector]
        return jnp.concatenate([x, *parts], axis=-1) if parts else x

    def _log_likelihood(self, image: UInt[Array, "B H W C"], z: Float[Array, "B Z"], label=None, vector=None) -> Float[Array, " B"]:
        return row_sums(self.head.log_prob(self.decode(z, label, vector), image))

    def _log_weight(self, image, z, mean, log_variance, label, vector) -> Float[Array, " B"]:
        return estimator_a(
            z,
            lambda z: self._log_likelihood(image, z, label, vector),
            lambda z: gaussian_log_prob(jnp.zeros_like(z), jnp.zeros_like(z), z).sum(-1),
            lambda z: gaussian_log_prob(mean, log_variance, z).sum(-1),
        )
