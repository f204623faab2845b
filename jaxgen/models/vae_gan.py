"""VAE whose decoder is also trained against a discriminator (Larsen, Sonderby, Larochelle, Winther 2016, "Autoencoding beyond pixels
using a learned similarity metric").

    loss          = loss of the VAE + adversarial L_G + L_D
    decoder:        L_G = E softplus(-D(G(z)))                               non-saturating, as in gan.py
    discriminator:  L_D = E softplus(-D(x)) + E softplus(D(G(z)))

G(z) is the mean of p(x | z) on the scale [-1, 1], which has a gradient where a draw has none. z is drawn from the prior for one half of the
expectations, and from q(z | x) for the other. L_G reaches the decoder only and L_D the discriminator only; the encoder learns from the loss
of the VAE alone, as in the paper. The discriminator is a network like the encoder, of the image and of what is given.

The model is a VAE in everything else: `elbo` and `importance_bound` are the bounds of vae.py on the same p and q, and the discriminator is
in none of them. The adversarial term moves the decoder away from the largest bound, towards pictures that the discriminator takes for real.

Axes: B batch, H W C image, Z latent. Departures from the paper: the pixels keep their likelihood, where the paper has squared distances of
the discriminator's features instead; all networks are updated at once, by one loss.
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import image_of
from jaxgen.data.features import given_to
from jaxgen.distributions import gaussian_sample
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import Linear, scale_pixels
from jaxgen.layers.image_networks import MLP, ConvEncoder
from jaxgen.models.vae import VAE, VAEConfig


@dataclass(frozen=True)
class VAEGANConfig(VAEConfig):
    """Sizes of a VAE with an adversarial term. Raises ConfigError as a VAEConfig does, and for a negative weight."""

    adversarial: float = 0.01  # weight of L_G in the loss, beside bits/dim
    players: ClassVar[tuple[str, ...]] = ("features", "posterior", "decoder", "discriminator", "realness")

    def __post_init__(self):
        super().__post_init__()
        if not self.adversarial >= 0:
            raise ConfigError("adversarial", "0 or more", self.adversarial)


class VAEGAN(VAE):
    """The VAE, and a discriminator: `discriminator` gives features of an image, `realness` the logit from them and what is given."""

    def __init__(self, config: VAEGANConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        height, width, _ = config.image_shape
        if config.architecture == "mlp":
            self.discriminator, features = MLP((prod(config.image_shape), *config.hidden), rngs), config.hidden[-1]
        else:
            self.discriminator = ConvEncoder(config.image_shape, config.hidden, rngs, config.dtype)
            features = height // 4 * (width // 4) * config.hidden[1]
        self.realness = Linear(features + config.num_classes + config.vector_size, 1, rngs)

    def discriminate(self, x: Float[Array, "B H W C"], label=None, vector=None) -> Float[Array, " B"]:
        """D(x), the logit of "x is an image of the data"; x on the scale [-1, 1]."""
        x = x.astype(self.config.dtype)
        x = x.reshape(x.shape[0], -1) if self.config.architecture == "mlp" else x
        x = nnx.silu(self.discriminator(x)).astype(jnp.float32)
        return self.realness(self._with_given(x, label, vector))[:, 0]

    def mean_image(self, z: Float[Array, "B Z"], label=None, vector=None) -> Float[Array, "B H W C"]:
        """G(z): the mean of p(x | z), levels mapped to [-1, 1]; of the discretized logistic its location, clipped to [-1, 1]."""
        parameters = self.decode(z, label, vector)
        if self.config.likelihood == "logistic":
            return jnp.clip(parameters[..., 0], -1, 1)
        if self.config.levels == 2:
            return jnp.tanh(parameters[..., 0] / 2)  # 2 sigmoid(logit) - 1
        levels = scale_pixels(jnp.arange(self.config.levels), self.config.levels)
        return (jax.nn.softmax(parameters) * jnp.broadcast_to(levels, parameters.shape)).sum(-1)

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """The loss above; metrics: those of the VAE for its half of the key, and generator_loss and discriminator_loss, L_G and L_D."""
        key_bound, key_z = jax.random.split(key)
        loss, metrics = super().loss(batch, key_bound)
        generator_loss, discriminator_loss = self.adversarial_losses(image_of(batch), key_z, **given_to(self.config, batch))
        metrics |= {"generator_loss": generator_loss, "discriminator_loss": discriminator_loss}
        return loss + self.config.adversarial * generator_loss + discriminator_loss, metrics

    def adversarial_losses(
        self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, label=None, vector=None
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """L_G and L_D of a batch. The gradient of L_G reaches the decoder only, that of L_D the discriminator only."""
        frozen, (key_prior, key_posterior) = jax.lax.stop_gradient(self), jax.random.split(key)
        posterior = gaussian_sample(*frozen.encode(image, label, vector), key_posterior)
        drawn = [self.mean_image(z, label, vector) for z in (jax.random.normal(key_prior, posterior.shape), posterior)]
        for_generator = [jax.nn.softplus(-frozen.discriminate(x, label, vector)).mean() for x in drawn]
        for_discriminator = [jax.nn.softplus(self.discriminate(jax.lax.stop_gradient(x), label, vector)).mean() for x in drawn]
        real = self.discriminate(scale_pixels(image, self.config.levels), label, vector)
        return sum(for_generator) / 2, jax.nn.softplus(-real).mean() + sum(for_discriminator) / 2
