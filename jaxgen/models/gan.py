"""Generative adversarial network (Goodfellow et al. 2014), on images or on points of R^d.

    discriminator:  L_D = E softplus(-D(x)) + E softplus(D(G(z)))     = -E log sigma(D(x)) - E log(1 - sigma(D(G(z))))
    generator:      L_G = E softplus(-D(G(z)))                        = -E log sigma(D(G(z))), the paper's non-saturating form (section 3)

D returns logits, z ~ N(0, I). One step updates both networks from ONE loss, L_G + L_D. L_G holds the parameters of D constant
(`stop_gradient`) and L_D holds G(z) constant, so the gradient of the sum is the gradient of L_G for the parameters of G and that of L_D for
those of D. `optax.partition` gives `generator` and `discriminator` an optimizer each. Both terms use the same z.

Axes: B batch, H W C image, Z latent. Departures from the paper: simultaneous instead of alternating updates, leaky ReLU instead of maxout,
no dropout; the "conv" networks follow Radford et al. 2016 without batch normalisation (no state, and images of a batch stay independent).
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import ClassVar, Literal, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num, PRNGKeyArray

from jaxgen.checks import check_count, check_images, check_key, check_label, check_levels, image_of
from jaxgen.config import check_types
from jaxgen.data.features import OfImagesOrPoints, modelled, smallest_unsigned
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import EXACT, Conv, ConvTranspose, scale_pixels

SLOPE = 0.2  # of the leaky ReLU (Radford et al. 2016)


@dataclass(frozen=True)
class GANConfig(OfImagesOrPoints):
    """Sizes of a GAN. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, ...] = (8, 8, 1)  # (H, W, C) of images, or (d,) of real points
    levels: int = 17  # number of values that a channel of a pixel has, 0 .. levels-1; 0 for points
    latent: int = 32  # Z, dimension of the noise z
    hidden: int = 128  # mlp: units of each hidden layer; conv: channels at H/4 x W/4, and half as many at H/2 x W/2
    depth: int = 2  # hidden layers (mlp)
    architecture: Literal["mlp", "conv"] = "mlp"  # fully connected layers, or convolutions
    num_classes: ClassVar[int] = 0  # a GAN here has no classes
    players: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    def __post_init__(self):
        check_types(self)
        check_levels(self.levels, modelled(self))
        if min(self.latent, self.hidden, self.depth) < 1:
            raise ConfigError("latent, hidden, depth", "positive sizes", (self.latent, self.hidden, self.depth))
        images = modelled(self).discrete
        if self.architecture == "conv" and not (images and self.image_shape[0] % 4 == self.image_shape[1] % 4 == 0):
            raise ConfigError("image_shape", "(H, W, C) with H and W multiples of 4 (conv)", self.image_shape)


class MLP(nnx.Module):
    """`depth` hidden layers of leaky ReLU, then a linear layer; the input is flattened."""

    def __init__(self, inputs: int, config: GANConfig, outputs: int, rngs: nnx.Rngs):
        sizes = [inputs] + [config.hidden] * config.depth + [outputs]
        self.layers = nnx.List([nnx.Linear(a, b, precision=EXACT, rngs=rngs) for a, b in pairwise(sizes)])

    def __call__(self, x: Float[Array, "B ..."]) -> Float[Array, "B O"]:
        x = x.reshape(x.shape[0], -1)
        for layer in list(self.layers)[:-1]:
            x = nnx.leaky_relu(layer(x), SLOPE)
        return self.layers[-1](x)


class ConvGenerator(nnx.Module):
    """z -> H/4 x W/4 x hidden -> H/2 x W/2 x hidden/2 -> H x W x C by transposed convolutions of stride 2."""

    def __init__(self, config: GANConfig, rngs: nnx.Rngs):
        height, width, channels = config.image_shape
        self.start = (height // 4, width // 4, config.hidden)
        half = max(1, config.hidden // 2)
        self.project = nnx.Linear(config.latent, self.start[0] * self.start[1] * config.hidden, precision=EXACT, rngs=rngs)
        self.up1 = ConvTranspose(config.hidden, half, 4, 2, rngs)
        self.up2 = ConvTranspose(half, channels, 4, 2, rngs)

    def __call__(self, z: Float[Array, "B Z"]) -> Float[Array, "B H W C"]:
        x = nnx.relu(self.project(z)).reshape(-1, *self.start)
        return self.up2(nnx.relu(self.up1(x)))


class ConvDiscriminator(nnx.Module):
    """H x W x C -> H/2 x W/2 x hidden/2 -> H/4 x W/4 x hidden -> one logit."""

    def __init__(self, config: GANConfig, rngs: nnx.Rngs):
        height, width, channels = config.image_shape
        half = max(1, config.hidden // 2)
        self.down1, self.down2 = Conv(channels, half, 4, rngs, stride=2), Conv(half, config.hidden, 4, rngs, stride=2)
        self.logit = nnx.Linear(height // 4 * (width // 4) * config.hidden, 1, precision=EXACT, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 1"]:
        x = nnx.leaky_relu(self.down2(nnx.leaky_relu(self.down1(x), SLOPE)), SLOPE)
        return self.logit(x.reshape(x.shape[0], -1))


class GAN(nnx.Module):
    """The networks `generator` and `discriminator`; each has its own optimizer, chosen by these names (`GANConfig.players`)."""

    def __init__(self, config: GANConfig, *, rngs: nnx.Rngs):
        self.config = config
        size = prod(config.image_shape)
        if config.architecture == "mlp":
            self.generator = MLP(config.latent, config, size, rngs)
            self.discriminator = MLP(size, config, 1, rngs)
        else:
            self.generator = ConvGenerator(config, rngs)
            self.discriminator = ConvDiscriminator(config, rngs)

    def generate(self, z: Float[Array, "B Z"]) -> Float[Array, "B ..."]:
        """G(z): images after tanh, in [-1, 1]; points without it."""
        x = self.generator(z).reshape(-1, *self.config.image_shape)
        return jnp.tanh(x) if self._discrete else x

    def discriminate(self, x: Float[Array, "B ..."]) -> Float[Array, " B"]:
        """D(x), the logit of "x is real"."""
        return self.discriminator(x)[:, 0]

    def generator_loss(self, z: Float[Array, "B Z"]) -> Float[Array, ""]:
        """L_G; its gradient reaches the generator only."""
        frozen = jax.lax.stop_gradient(self)
        return jax.nn.softplus(-frozen.discriminate(self.generate(z))).mean()

    def discriminator_loss(self, real: Float[Array, "B ..."], z: Float[Array, "B Z"]) -> Float[Array, ""]:
        """L_D; its gradient reaches the discriminator only. At D = 0 (probability 1/2 for both) it is log 4."""
        fake = jax.lax.stop_gradient(self.generate(z))
        return jax.nn.softplus(-self.discriminate(real)).mean() + jax.nn.softplus(self.discriminate(fake)).mean()

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """L_G + L_D of a batch {"image": integers [B, H, W, C]}, or {"point": float32 [B, d]}."""
        real = self._scale(image_of(batch, self.config.modelled))
        z = jax.random.normal(key, (real.shape[0], self.config.latent))
        generator_loss, discriminator_loss = self.generator_loss(z), self.discriminator_loss(real, z)
        return generator_loss + discriminator_loss, {"generator_loss": generator_loss, "discriminator_loss": discriminator_loss}

    def sample(self, key: PRNGKeyArray, n: SupportsIndex, label=None) -> Num[Array, "n ..."]:
        """n images [n, H, W, C] of the smallest unsigned type for their levels, or n points float32 [n, d].

        label: must be None, since the model has no classes; ConfigError otherwise.
        """
        check_key(key)
        n = check_count(n)
        check_label(label, self.config.num_classes, n)
        x = self.generate(jax.random.normal(key, (n, self.config.latent)))
        if not self._discrete:
            return x
        return jnp.round((x + 1) * ((self.config.levels - 1) / 2)).astype(smallest_unsigned(self.config.levels))

    @property
    def _discrete(self) -> bool:
        return modelled(self.config).discrete

    def _scale(self, x: Num[Array, "B ..."]) -> Float[Array, "B ..."]:
        """Images: levels 0 .. levels-1 mapped linearly to [-1, 1], the range of tanh. Points: unchanged."""
        if not self._discrete:
            return x
        return scale_pixels(check_images(x, self.config.image_shape, self.config.levels), self.config.levels)
