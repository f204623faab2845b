"""GAN that is given the class of an image or a point (Mirza & Osindero 2014), in both players.

    generator:      G([z, y]), z ~ N(0, I), y the class as a vector with a single 1
    discriminator:  conditioning
        concatenation   D([x, y]): more numbers of x, or channels that are the same at all pixels     Mirza & Osindero 2014
        projection      D(x, y) = psi(phi(x)) + y' E phi(x)                                           Miyato & Koyama 2018
        auxiliary       D(x), and a classifier softmax(C phi(x)) beside it (AC-GAN)                   Odena et al. 2017

phi are the features before the last layer psi of the discriminator; E and C are matrices of its parameters. Objectives, penalties and
spectral normalisation are those of gan.py. With `auxiliary` the cross entropy -log softmax(C phi)_y of the images of a player is added to
its loss: of data and generated images for the discriminator, of generated images for the generator.

Axes: B batch, H W C image, Z latent, K classes. Departures from the papers: those of gan.py, so no `dtype` either; the generator of all
three is given the class beside z, where Miyato & Koyama have batch normalisation for each class.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxgen.checks import check_label
from jaxgen.data.features import ClassLabel, Feature
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers import gan_networks
from jaxgen.models.gan import GAN, GANConfig


@dataclass(frozen=True)
class ConditionalGANConfig(GANConfig):
    """Sizes of a conditional GAN. Raises ConfigError as a GANConfig does, and for fewer than two classes."""

    num_classes: int = 10  # number of classes
    conditioning: Literal["concatenation", "projection", "auxiliary"] = "projection"  # how the discriminator is given the class
    RENAMED = {"condition": "conditioning"}  # not a field: see config.py

    def __post_init__(self):
        super().__post_init__()
        if self.num_classes < 2:
            raise ConfigError("num_classes", "2 or more", self.num_classes)

    @property
    def features(self) -> dict[str, Feature]:
        """The columns that the model needs: the image or point, and the label."""
        return super().features | {"label": ClassLabel(self.num_classes)}

    @classmethod
    def sizes_from(cls, features: dict[str, Feature]) -> dict[str, object]:
        """The fields that a data set decides; DataError without labels."""
        sizes = super().sizes_from(features)
        if "label" not in features:
            raise DataError("data", "a set with labels, for a conditional GAN", ", ".join(features))
        return sizes | {"num_classes": features["label"].classes}


class LabelledDiscriminator(nnx.Module):
    """The discriminator of gan.py, and what its conditioning adds: `label`, the matrix E, or `classes`, the matrix C with a bias."""

    def __init__(self, config: ConditionalGANConfig, rngs: nnx.Rngs):
        self.conditioning, self.architecture, classes = config.conditioning, config.architecture, config.num_classes
        self.network = gan_networks.discriminator(config, classes if self.conditioning == "concatenation" else 0, rngs)
        if self.conditioning == "projection":
            self.label = gan_networks.linear(classes, self.network.width, rngs, config.spectral, use_bias=False)
        if self.conditioning == "auxiliary":
            self.classes = gan_networks.linear(self.network.width, classes, rngs, config.spectral)

    def __call__(self, x: Float[Array, "B ..."], label: Float[Array, "B K"]) -> Float[Array, " B"]:
        """The logit of "x is real"."""
        if self.conditioning == "concatenation":
            x = gan_networks.beside(x, label, self.architecture)
        features = self.network.features(x)
        logit = self.network.last(features)[:, 0]
        return logit + (self.label(label) * features).sum(-1) if self.conditioning == "projection" else logit

    def cross_entropy(self, x: Float[Array, "B ..."], label: Float[Array, "B K"]) -> Float[Array, ""]:
        """The mean of -log softmax(C phi(x))_y; 0 without the classifier."""
        if self.conditioning != "auxiliary":
            return jnp.zeros(())
        return -(jax.nn.log_softmax(self.classes(self.network.features(x))) * label).sum(-1).mean()


class ConditionalGAN(GAN):
    """The two networks. Methods raise ConfigError for a label that does not fit the config.

    label: int [B] or one int, or weights of the classes, float [B, num_classes].
    """

    def __init__(self, config: ConditionalGANConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.generator = gan_networks.generator(config, config.latent + config.num_classes, rngs)
        self.discriminator = LabelledDiscriminator(config, rngs)

    def generate(self, z: Float[Array, "B Z"], label=None) -> Float[Array, "B ..."]:
        """G(z, y): images after tanh, in [-1, 1]; points without it."""
        return self._bounded(self.generator(jnp.concatenate([z, self._classes(label, z.shape[0])], axis=-1)))

    def discriminate(self, x: Float[Array, "B ..."], label=None) -> Float[Array, " B"]:
        """D(x, y), the logit of "x is real"; with conditioning="auxiliary" it does not depend on the label."""
        return self.discriminator(x, self._classes(label, x.shape[0]))

    def generator_loss(self, z: Float[Array, "B Z"], label=None) -> Float[Array, ""]:
        """L_G; its gradient reaches the generator only."""
        frozen = jax.lax.stop_gradient(self.discriminator)
        entropy = frozen.cross_entropy(self.generate(z, label), self._classes(label, z.shape[0]))
        return super().generator_loss(z, label=label) + entropy

    def discriminator_loss(self, real: Float[Array, "B ..."], z: Float[Array, "B Z"], label=None) -> Float[Array, ""]:
        """L_D without the penalty; its gradient reaches the discriminator only."""
        fake, classes = jax.lax.stop_gradient(self.generate(z, label)), self._classes(label, z.shape[0])
        entropy = self.discriminator.cross_entropy(real, classes) + self.discriminator.cross_entropy(fake, classes)
        return super().discriminator_loss(real, z, label=label) + entropy

    def _classes(self, label, batch: int) -> Float[Array, "B K"]:
        """The label as weights of the classes."""
        label = check_label(label, self.config.num_classes, batch)
        return label if jnp.issubdtype(label.dtype, jnp.floating) else jax.nn.one_hot(label, self.config.num_classes)
