"""Generators and discriminators of images and points, by `config.architecture` of a GAN: "mlp", "conv" or "resnet".

A generator maps noise [B, I] to [B, d] or [B, H, W, C], without a bound on the values. A discriminator maps images or points to one logit,
[B, 1], as `last(features(x))` with `features(x)` [B, width] and a linear layer `last`. With config.spectral all layers of the discriminator
are normalised (spectral.py). No layer mixes the rows of a batch.

    mlp      config.depth hidden layers of config.hidden units, leaky ReLU
    conv     Radford et al. 2016 (DCGAN) without batch normalisation: 4 x 4 (transposed) convolutions of stride 2, config.halvings of them;
             config.hidden channels at the smallest size, half as many at each larger one
    resnet   the residual networks of Gulrajani et al. 2017 and Miyato et al. 2018: config.hidden channels everywhere, blocks of two 3 x 3
             convolutions, config.halvings of which change the size, and config.depth more at the smallest size of the discriminator, whose
             features are sums over all places. Departures: shortcuts without weights; in the generator every pixel is divided by the root
             mean square of its channels (Karras et al. 2018) in the place of batch normalisation; an average over 2 x 2 pixels
             follows a block that halves the size

Axes: B batch, I inputs, H W C image, D channels, L classes of a label.
"""

from itertools import pairwise
from math import prod

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxgen.layers.convolutions import Conv, ConvTranspose, Linear
from jaxgen.layers.spectral import Spectral

SLOPE = 0.2  # of the leaky ReLU (Radford et al. 2016)


def generator(config, inputs: int, rngs: nnx.Rngs) -> nnx.Module:
    """The generator of a GAN's configuration, of so many inputs."""
    if config.architecture == "mlp":
        return MLP(inputs, config, prod(config.image_shape), rngs)
    return (ConvGenerator if config.architecture == "conv" else ResidualGenerator)(inputs, config, rngs)


def discriminator(config, given: int, rngs: nnx.Rngs) -> nnx.Module:
    """The discriminator, for x with `given` more numbers, or channels of every pixel (see `beside`)."""
    if config.architecture == "mlp":
        return MLP(prod(config.image_shape) + given, config, 1, rngs, config.spectral)
    kind = ConvDiscriminator if config.architecture == "conv" else ResidualDiscriminator
    return kind(config.image_shape[2] + given, config, rngs)


def beside(x: Float[Array, "B ..."], given: Float[Array, "B L"], architecture: str) -> Float[Array, "B ..."]:
    """x with what is given: more numbers of the flattened x (mlp), or more channels that are the same at all pixels."""
    if architecture == "mlp":
        return jnp.concatenate([x.reshape(x.shape[0], -1), given], axis=-1)
    return jnp.concatenate([x, jnp.broadcast_to(given[:, None, None], (*x.shape[:3], given.shape[-1]))], axis=-1)


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, spectral: bool, use_bias: bool = True) -> nnx.Module:
    """Flax's linear layer, normalised if `spectral`."""
    return normalised(Linear(inputs, outputs, rngs, use_bias), spectral)


def normalised(layer: nnx.Module, spectral: bool) -> nnx.Module:
    """The layer, with spectral normalisation if `spectral`."""
    return Spectral(layer) if spectral else layer


class MLP(nnx.Module):
    """`depth` hidden layers of leaky ReLU, then a linear layer; the input is flattened."""

    def __init__(self, inputs: int, config, outputs: int, rngs: nnx.Rngs, spectral: bool = False):
        sizes = [inputs] + [config.hidden] * config.depth + [outputs]
        self.width = config.hidden
        self.layers = nnx.List([linear(a, b, rngs, spectral) for a, b in pairwise(sizes)])

    def features(self, x: Float[Array, "B ..."]) -> Float[Array, "B D"]:
        """The last hidden layer."""
        x = x.reshape(x.shape[0], -1)
        for layer in list(self.layers)[:-1]:
            x = nnx.leaky_relu(layer(x), SLOPE)
        return x

    def last(self, features: Float[Array, "B D"]) -> Float[Array, "B O"]:
        """The last layer."""
        return self.layers[-1](features)

    def __call__(self, x: Float[Array, "B ..."]) -> Float[Array, "B O"]:
        return self.last(self.features(x))


def smallest(config) -> tuple[int, int, int]:
    """Height, width and channels at the smallest size."""
    height, width, _ = config.image_shape
    return height >> config.halvings, width >> config.halvings, config.hidden


def conv_channels(config) -> list[int]:
    """Channels of "conv" at each size, the smallest size first; not of the image itself."""
    return [max(1, config.hidden >> i) for i in range(config.halvings)]


class ConvGenerator(nnx.Module):
    """A linear layer, then transposed convolutions up1, up2, .., each of which doubles the sides; ReLU between them."""

    def __init__(self, inputs: int, config, rngs: nnx.Rngs):
        self.start, self.halvings = smallest(config), config.halvings
        self.project = Linear(inputs, prod(self.start), rngs)
        for i, (a, b) in enumerate(pairwise([*conv_channels(config), config.image_shape[2]])):
            setattr(self, f"up{i + 1}", ConvTranspose(a, b, 4, 2, rngs))

    def __call__(self, z: Float[Array, "B I"]) -> Float[Array, "B H W C"]:
        x = self.project(z).reshape(-1, *self.start)
        for i in range(self.halvings):
            x = getattr(self, f"up{i + 1}")(nnx.relu(x))
        return x


class ConvDiscriminator(nnx.Module):
    """Convolutions down1, down2, .., each of which halves the sides, with leaky ReLU, then a linear layer."""

    def __init__(self, channels: int, config, rngs: nnx.Rngs):
        self.halvings, self.width = config.halvings, prod(smallest(config))
        for i, (a, b) in enumerate(pairwise([channels, *conv_channels(config)[::-1]])):
            setattr(self, f"down{i + 1}", normalised(Conv(a, b, 4, rngs, stride=2), config.spectral))
        self.logit = linear(self.width, 1, rngs, config.spectral)

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """All pixels at the smallest size."""
        for i in range(self.halvings):
            x = nnx.leaky_relu(getattr(self, f"down{i + 1}")(x), SLOPE)
        return x.reshape(x.shape[0], -1)

    def last(self, features: Float[Array, "B D"]) -> Float[Array, "B 1"]:
        """The last layer."""
        return self.logit(features)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 1"]:
        return self.last(self.features(x))


def doubled(x: Float[Array, "B H W D"]) -> Float[Array, "B _ _ D"]:
    """Every pixel four times: sides 2 H and 2 W."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def halved(x: Float[Array, "B H W D"]) -> Float[Array, "B _ _ D"]:
    """The mean of every 2 x 2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def pixel_norm(x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
    """Every pixel divided by the root mean square of its channels."""
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-8)


class ResidualBlock(nnx.Module):
    """x + conv(relu(conv(relu(x)))), 3 x 3 convolutions of D channels."""

    def __init__(self, channels: int, rngs: nnx.Rngs, spectral: bool = False):
        self.first, self.second = (normalised(Conv(channels, channels, 3, rngs), spectral) for _ in range(2))

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        return x + self.second(nnx.relu(self.first(nnx.relu(x))))

    def doubling(self, x: Float[Array, "B H W D"]) -> Float[Array, "B _ _ D"]:
        """The block of a generator: both terms have twice the sides, and each convolution gets normalised pixels."""
        h = self.first(doubled(nnx.relu(pixel_norm(x))))
        return doubled(x) + self.second(nnx.relu(pixel_norm(h)))


class ResidualGenerator(nnx.Module):
    """A linear layer, blocks that double the sides, ReLU and a 3 x 3 convolution."""

    def __init__(self, inputs: int, config, rngs: nnx.Rngs):
        self.start = smallest(config)
        self.project = Linear(inputs, prod(self.start), rngs)
        self.blocks = nnx.List([ResidualBlock(config.hidden, rngs) for _ in range(config.halvings)])
        self.out = Conv(config.hidden, config.image_shape[2], 3, rngs)

    def __call__(self, z: Float[Array, "B I"]) -> Float[Array, "B H W C"]:
        x = self.project(z).reshape(-1, *self.start)
        for block in self.blocks:
            x = block.doubling(x)
        return self.out(nnx.relu(pixel_norm(x)))


class ResidualDiscriminator(nnx.Module):
    """A 3 x 3 convolution, blocks of which the first ones are followed by an average, ReLU, a sum over all places, a linear layer."""

    def __init__(self, channels: int, config, rngs: nnx.Rngs):
        self.halvings, self.width = config.halvings, config.hidden
        self.stem = normalised(Conv(channels, config.hidden, 3, rngs), config.spectral)
        count = config.halvings + config.depth
        self.blocks = nnx.List([ResidualBlock(config.hidden, rngs, config.spectral) for _ in range(count)])
        self.logit = linear(config.hidden, 1, rngs, config.spectral)

    def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """Sums over all places."""
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = halved(block(x)) if i < self.halvings else block(x)
        return nnx.relu(x).sum((1, 2))

    def last(self, features: Float[Array, "B D"]) -> Float[Array, "B 1"]:
        """The last layer."""
        return self.logit(features)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 1"]:
        return self.last(self.features(x))
