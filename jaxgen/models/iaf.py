"""VAE whose posterior is a chain of maps: an inverse autoregressive flow, or a planar flow.

    z ~ N(0, I),   x | z ~ a distribution for every pixel and channel
    z_0 = mean(x) + sigma(x) noise,   z_t = f_t(z_{t-1}; x) for t = 1 .. T,   z = z_T
    log q(z | x) = log N(z_0; mean, sigma^2) - sum_t log |det df_t|
    L = log p(x | z) + log N(z; 0, I) - log q(z | x),        L_k = log (1/k) sum_i exp L(z_i),        E L <= E L_k <= log p(x)

    iaf      m_t, s_t = masked network of z_{t-1} and h(x);  g_t = sigmoid(s_t);  z_t = g_t z_{t-1} + (1 - g_t) m_t;
             log |det df_t| = sum_d log g_t
    planar   z_t = z_{t-1} + u' tanh(w.z_{t-1} + b), w, u and b linear in the features of the encoder (layers/bijections.py)
    none     z = z_0, the plain VAE

m_t and s_t of dimension d depend on the dimensions before d and on h(x), those of the first are constants; every second step takes the
dimensions in reverse order. All of a step are computed at once, since z_{t-1} is known: sampling q needs no inverse, and the bound needs
only samples of q.

Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling 2016, "Improved Variational Inference with Inverse Autoregressive Flow", section 4
and algorithm 1; Rezende & Mohamed 2015, "Variational Inference with Normalizing Flows", section 4. Departures: one layer of latents and
fully connected networks; no free bits.

Axes: B batch, H W C image, Z latent, D features of the encoder, K importance samples.
"""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import ClassVar, Literal, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_image_config, check_images, check_key, image_of
from jaxgen.data.features import OfImages
from jaxgen.distributions import bits_per_dim, gaussian_log_prob, gaussian_sample, importance_bound, pixel_head, row_sums
from jaxgen.errors import ConfigError
from jaxgen.layers.bijections import planar
from jaxgen.layers.convolutions import Linear, dot, normal, scale_pixels
from jaxgen.layers.image_networks import MLP, check_hidden
from jaxgen.layers.masked_dense import MaskedDense, unit_numbers

OPEN = 1.5
"""Added to s: at first a gate is sigmoid(1.5) = 0.82, so that z_t is near z_{t-1} (section 4: between 1 and 2)."""


@dataclass(frozen=True)
class IAFConfig(OfImages):
    """Sizes of a VAE with a flow as its posterior. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    latent: int = 16  # Z, size of the latent vector
    hidden: tuple[int, ...] = (256, 256)  # units of each hidden layer of the encoder; the decoder's reversed
    flow: Literal["iaf", "planar", "none"] = "iaf"  # the maps of the posterior
    steps: int = 2  # T, number of maps
    flow_hidden: int = 128  # units of the hidden layer of the network of each iaf step
    num_classes: ClassVar[int] = 0  # no labels

    def __post_init__(self):
        check_image_config(self, {"latent": 1, "steps": 1, "flow_hidden": 1})
        check_hidden(self.image_shape, self.hidden, "mlp")
        if not self.hidden:
            raise ConfigError("hidden", "at least one hidden layer", self.hidden)


class IAFStep(nnx.Module):
    """z_t and log |det df_t| from z_{t-1} and the features of the encoder; in reverse order if `index` is odd."""

    def __init__(self, config: IAFConfig, index: int, rngs: nnx.Rngs):
        z, width = config.latent, config.flow_hidden
        self.step, self.latent, self.width = -1 if index % 2 else 1, z, width
        self.first, self.out = MaskedDense(z, width, rngs), MaskedDense(width, 2 * z, rngs, strict=True)
        self.context = normal(rngs, (config.hidden[-1], width), config.hidden[-1])  # h(x) is linear in the features

    def parameters(self, z: Float[Array, "B Z"], features: Float[Array, "B D"]) -> tuple[Float[Array, "B Z"], Float[Array, "B Z"]]:
        """m and s, dimensions in the order of this step."""
        places = np.arange(self.latent) + 1
        (units,) = unit_numbers(self.latent, (self.width,), np.random.default_rng(0))
        hidden = jax.nn.silu(self.first(z, places, units) + dot(features, self.context[...]))
        m, s = jnp.split(self.out(hidden, units, np.tile(places, 2)), 2, axis=-1)
        return m, s + OPEN

    def __call__(self, z: Float[Array, "B Z"], features: Float[Array, "B D"]) -> tuple[Float[Array, "B Z"], Float[Array, " B"]]:
        z = z[:, :: self.step]
        m, s = self.parameters(z, features)
        gate = jax.nn.sigmoid(s)
        return (gate * z + (1 - gate) * m)[:, :: self.step], jax.nn.log_sigmoid(s).sum(-1)


class PlanarStep(nnx.Module):
    """The same with a planar map."""

    def __init__(self, config: IAFConfig, index: int, rngs: nnx.Rngs):
        del index
        self.layer = Linear(config.hidden[-1], 2 * config.latent + 1, rngs)

    def __call__(self, z: Float[Array, "B Z"], features: Float[Array, "B D"]) -> tuple[Float[Array, "B Z"], Float[Array, " B"]]:
        w, u, b = jnp.split(self.layer(features), [z.shape[1], 2 * z.shape[1]], axis=-1)
        return planar(z, w, u, b[:, 0])


STEPS = {"iaf": IAFStep, "planar": PlanarStep}


class IAF(nnx.Module):
    """Encoder, flow and decoder. Methods raise ConfigError for what does not fit the config."""

    def __init__(self, config: IAFConfig, *, rngs: nnx.Rngs):
        self.config, self.head, size = config, pixel_head(config.levels), prod(config.image_shape)
        self.features = MLP((size, *config.hidden), rngs)
        self.posterior = Linear(config.hidden[-1], 2 * config.latent, rngs)
        self.decoder = MLP((config.latent, *reversed(config.hidden), size * self.head.size), rngs)
        maps = [STEPS[config.flow](config, t, rngs) for t in range(config.steps)] if config.flow != "none" else []
        self.flow = nnx.List(maps)

    def draw_posterior(
        self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, draws: int = 1
    ) -> tuple[Float[Array, "K B Z"], Float[Array, "K B"]]:
        """z and log q(z | x), `draws` of them for each image."""
        image = check_images(image, self.config.image_shape, self.config.levels)
        return self._draw_posterior(image, key, draws)

    @partial(jax.jit, static_argnames="draws")  # else its loop is compiled in every call
    def _draw_posterior(
        self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, draws: int
    ) -> tuple[Float[Array, "K B Z"], Float[Array, "K B"]]:
        x = scale_pixels(image, self.config.levels).reshape(image.shape[0], -1)
        features = nnx.silu(self.features(x))
        mean, log_variance = jnp.split(self.posterior(features), 2, axis=-1)

        def one(key):
            z = gaussian_sample(mean, log_variance, key)
            log_q = gaussian_log_prob(mean, log_variance, z).sum(-1)
            for step in self.flow:
                z, log_det = step(z, features)
                log_q = log_q - log_det
            return z, log_q

        return jax.lax.map(one, jax.random.split(key, draws))

    def elbo(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray) -> Float[Array, " B"]:
        """L in nats of one z for each image."""
        return self._log_weights(image, key, 1)[0]

    def importance_bound(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, k: int) -> Float[Array, " B"]:
        """L_k in nats; its expectation does not fall with k, and tends to log p(x)."""
        return importance_bound(self._log_weights(image, key, check_count(k, "k")))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-mean L in bits/dim; metrics: it as bits_per_dim_bound, and nats_bound, nats per image."""
        nats = -self.elbo(image_of(batch), key).mean()
        bits = bits_per_dim(nats, prod(self.config.image_shape))
        return bits, {"bits_per_dim_bound": bits, "nats_bound": nats}

    def decode(self, z: Float[Array, "B Z"]) -> Float[Array, "B H W C P"]:
        """Parameters of p(x | z)."""
        return self.decoder(z).reshape(-1, *self.config.image_shape, self.head.size)

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> UInt[Array, "n H W C"]:
        """n images, in the smallest unsigned type for their levels: z from the prior, then every pixel from p(x | z)."""
        check_key(key)
        n, (key_z, key_x) = check_count(n), jax.random.split(key)
        parameters = self.decode(jax.random.normal(key_z, (n, self.config.latent)))
        return self.head.sample(parameters, self.head.noise(key_x, (n, *self.config.image_shape))).astype(self.head.dtype)

    def _log_weights(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, draws: int) -> Float[Array, "K B"]:
        """L of each draw."""
        return self._weighed(image, *self.draw_posterior(image, key, draws))

    @jax.jit  # else its loop is compiled in every call
    def _weighed(self, image: UInt[Array, "B H W C"], z: Float[Array, "K B Z"], log_q: Float[Array, "K B"]) -> Float[Array, "K B"]:
        """log p(image, z) - log q(z | image), one draw after the other."""

        def log_weight(drawn):
            z, log_q = drawn
            prior = gaussian_log_prob(jnp.zeros_like(z), jnp.zeros_like(z), z).sum(-1)
            return row_sums(self.head.log_prob(self.decode(z), image)) + prior - log_q

        return jax.lax.map(log_weight, (z, log_q))
