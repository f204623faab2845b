"""Auto-encoders of images: plain, deep and convolutional (Hinton & Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural
Networks").

    z = f(x),   x' = g(z),   loss = |x - x'|^2 / D          x scaled to [0, 1], D = H W C

f and g are fully connected (mlp) or convolutional (conv). With hidden = () both are linear, and the smallest loss is that of PCA with as
many components (Baldi & Hornik 1989). With `tied` every layer of g has the transposed matrix of its layer of f,

    f_l(h) = W_l h + b_l,     g_l(h) = W_l^T h + c_l,

and biases of its own. An auto-encoder has no distribution of images: `sample` decodes random codes, z ~ N(mean, diag variance) of the codes
that the training has seen, and nothing trains the decoder to make images of those.

Axes: B batch, H W C image, Z code. Departures from the paper: silu for the logistic function, and all layers are trained at once, without
the training of one layer after the other before it.
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_image_config, check_images, check_key, image_of
from jaxgen.data.features import OfImages, smallest_unsigned
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import Linear, add_bias, dot, zeros
from jaxgen.layers.image_networks import MLP, ConvDecoder, ConvEncoder, check_hidden
from jaxgen.statistics import Statistic

DECAY = 0.99
"""Of the averages of the codes' mean and square, per step."""


@dataclass(frozen=True)
class AutoencoderConfig(OfImages):
    """Sizes of an auto-encoder. Raises ConfigError for sizes out of range, for conv also unless H and W are multiples of 4."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    latent: int = 16  # Z, size of the code
    # units of each hidden layer (mlp; none: a linear auto-encoder), or channels at 1/2 and 1/4 of the size (conv); the decoder's reversed
    hidden: tuple[int, ...] = (256, 256)
    architecture: Literal["mlp", "conv"] = "mlp"  # fully connected layers, or convolutions
    tied: bool = False  # whether the decoder's matrices are the encoder's, transposed (mlp)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; codes, images and errors are float32
    num_classes: ClassVar[int] = 0  # an auto-encoder has no classes

    def __post_init__(self):
        check_image_config(self, {}, channels=None)
        if self.latent < 1:
            raise ConfigError("latent", "1 or more", self.latent)
        check_hidden(self.image_shape, self.hidden, self.architecture)
        if self.tied and self.architecture != "mlp":
            raise ConfigError("tied", "False for conv: only matrices are tied", self.tied)


class TiedDecoder(nnx.Module):
    """The transposed layers of an encoder, the last one first, with silu between them; the last gives float32. It holds only biases."""

    def __init__(self, sizes: tuple[int, ...]):
        self.biases = nnx.List([zeros((size,)) for size in sizes])

    def __call__(self, z: Float[Array, "B Z"], encoder: MLP) -> Float[Array, "B D"]:
        x, layers = z, reversed(list(encoder.layers))
        for i, (layer, bias) in enumerate(zip(layers, self.biases, strict=True)):
            dtype = jnp.float32 if i + 1 == len(self.biases) else None
            x = add_bias(dot(nnx.silu(x) if i else x, layer.kernel[...].T, dtype), bias[...])
        return x


class Autoencoder(nnx.Module):
    """Encoder f, decoder g, and the error of their composition. Methods raise ConfigError for images that do not fit the config."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        size = prod(config.image_shape)
        sizes = (size, *config.hidden, config.latent)
        if config.architecture == "mlp":
            self.encoder = MLP(sizes, rngs)
            self.decoder = TiedDecoder(tuple(reversed(sizes[:-1]))) if config.tied else MLP(tuple(reversed(sizes)), rngs)
        else:
            height, width, channels = config.image_shape
            self.encoder = ConvEncoder(config.image_shape, config.hidden, rngs, config.dtype)
            self.code = Linear(height // 4 * (width // 4) * config.hidden[1], config.latent, rngs)
            self.decoder = ConvDecoder(config.latent, channels, config.image_shape, config.hidden, rngs)
        self.code_mean = nnx.BatchStat(jnp.zeros(config.latent))
        self.code_square = nnx.BatchStat(jnp.ones(config.latent))

    def encode(self, image: UInt[Array, "B H W C"]) -> Float[Array, "B Z"]:
        """The codes z = f(x)."""
        return self._encode(self._scale(image))

    def decode(self, z: Float[Array, "B Z"]) -> Float[Array, "B H W C"]:
        """g(z), real numbers; images are near [0, 1]."""
        z = z.astype(self.config.dtype)
        x = self.decoder(z, self.encoder) if self.config.tied else self.decoder(z)
        return x.reshape(-1, *self.config.image_shape)

    def squared_error(self, image: UInt[Array, "B H W C"]) -> Float[Array, " B"]:
        """|x - g(f(x))|^2 / D of every image, x scaled to [0, 1]."""
        x = self._scale(image)
        return self._error(x, self._encode(x))

    def reconstruct(self, image: UInt[Array, "B H W C"]) -> UInt[Array, "B H W C"]:
        """g(f(x)), rounded to the nearest level."""
        return self.picture(self.encode(image))

    def picture(self, z: Float[Array, "B Z"]) -> UInt[Array, "B H W C"]:
        """g(z), rounded to the nearest level."""
        return self._levels(self.decode(z))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict, dict]:
        """The mean squared error of a batch {"image"}; the statistics are the mean of the codes and of their squares."""
        x = self._scale(image_of(batch))
        z = self._encode(x)
        error = self._error(x, z).mean()
        codes = jax.lax.stop_gradient(z)
        statistics = {"mean": Statistic(codes.mean(0), "mean"), "square": Statistic((codes**2).mean(0), "mean")}
        return error, {"squared_error": error}, statistics

    def after_update(self, statistics: dict, key: PRNGKeyArray) -> "Autoencoder":
        """The model with its averages of the codes moved by 1 - DECAY towards those of the batch."""
        for name in ("mean", "square"):
            average = getattr(self, f"code_{name}")
            average[...] = DECAY * average[...] + (1 - DECAY) * statistics[name]
        return self

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> UInt[Array, "n H W C"]:
        """n decoded random codes, z ~ N(mean, diag variance) of the training's codes, rounded to levels."""
        check_key(key)
        variance = jnp.maximum(self.code_square[...] - self.code_mean[...] ** 2, 0)
        noise = jax.random.normal(key, (check_count(n), self.config.latent))
        return self._levels(self.decode(self.code_mean[...][None] + jnp.sqrt(variance)[None] * noise))

    def _encode(self, x: Float[Array, "B H W C"]) -> Float[Array, "B Z"]:
        x = x.astype(self.config.dtype)
        if self.config.architecture == "mlp":
            return self.encoder(x.reshape(x.shape[0], -1))
        return self.code(self.encoder(x).astype(jnp.float32))

    def _error(self, x: Float[Array, "B H W C"], z: Float[Array, "B Z"]) -> Float[Array, " B"]:
        return ((x - self.decode(z)) ** 2).reshape(x.shape[0], -1).mean(-1)

    def _scale(self, image: UInt[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return check_images(image, self.config.image_shape, self.config.levels).astype(jnp.float32) / (self.config.levels - 1)

    def _levels(self, x: Float[Array, "B H W C"]) -> UInt[Array, "B H W C"]:
        top = self.config.levels - 1
        return jnp.clip(jnp.round(x * top), 0, top).astype(smallest_unsigned(self.config.levels))
