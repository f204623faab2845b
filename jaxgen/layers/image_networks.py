"""Encoders and decoders of images that several models share: fully connected, or convolutions that halve the sides twice.

`hidden` are the units of the hidden layers (MLP), or the channels at 1/2 and at 1/4 of the size (convolutions). The layers compute in the
dtype of their input, float32 or bfloat16; an MLP and a decoder give float32. Axes: B batch, H W C image, I inputs, O outputs, D features.
"""

from itertools import pairwise
from math import prod

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxgen.distributions import Bernoulli, Categorical, pixel_head
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import Conv, ConvTranspose, Linear, add_bias, dot
from jaxgen.layers.logistic_mixture import DiscretizedLogistic


def likelihood_head(name: str, levels: int) -> Bernoulli | Categorical | DiscretizedLogistic:
    """The distribution of a pixel's channel, by its name in a configuration: "categorical" (Bernoulli for 2 levels) or "logistic"."""
    return DiscretizedLogistic(levels) if name == "logistic" else pixel_head(levels)


def check_hidden(image_shape: tuple[int, ...], hidden: tuple[int, ...], architecture: str) -> None:
    """ConfigError for sizes that are not positive; for "conv" also unless H and W are multiples of 4 and there are two sizes."""
    if hidden and min(hidden) < 1:
        raise ConfigError("hidden", "positive sizes", hidden)
    if architecture == "conv" and (image_shape[0] % 4 or image_shape[1] % 4 or len(hidden) != 2):
        raise ConfigError("image_shape", "H and W multiples of 4 and two hidden sizes (conv)", (image_shape, hidden))


def whole_blocks(image_shape: tuple[int, int, int], side: int) -> tuple[int, int]:
    """(H, W) rounded up to multiples of `side`."""
    return -(-image_shape[0] // side) * side, -(-image_shape[1] // side) * side


def pad_below(image: Array, sides: tuple[int, int]) -> Array:
    """[B, H, W, C] with zeros, level 0, below and on the right, up to these sides."""
    return jnp.pad(image, [(0, 0), (0, sides[0] - image.shape[1]), (0, sides[1] - image.shape[2]), (0, 0)])


class MLP(nnx.Module):
    """Linear layers with silu between them; the last one gives float32."""

    def __init__(self, sizes: tuple[int, ...], rngs: nnx.Rngs):
        self.layers = nnx.List([Linear(a, b, rngs) for a, b in pairwise(sizes)])

    def __call__(self, x: Float[Array, "B I"]) -> Float[Array, "B O"]:
        for layer in list(self.layers)[:-1]:
            x = nnx.silu(add_bias(dot(x, layer.kernel[...]), layer.bias[...]))
        return add_bias(dot(x, self.layers[-1].kernel[...], jnp.float32), self.layers[-1].bias[...])


class ConvEncoder(nnx.Module):
    """Two 4 x 4 convolutions of stride 2 with silu: H x W -> H/2 x W/2 -> H/4 x W/4, flattened to [B, D]. dtype: of both."""

    def __init__(self, image_shape: tuple[int, int, int], hidden: tuple[int, int], rngs: nnx.Rngs, dtype: str = "float32"):
        half, quarter = hidden
        self.dtype = jnp.dtype(dtype)
        self.down1, self.down2 = Conv(image_shape[2], half, 4, rngs, stride=2), Conv(half, quarter, 4, rngs, stride=2)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        return nnx.silu(self.down2(nnx.silu(self.down1(x.astype(self.dtype))))).reshape(x.shape[0], -1)


class ConvDecoder(nnx.Module):
    """Linear, two transposed 4 x 4 convolutions of stride 2, a 3 x 3 convolution: [B, I] -> H/4 x W/4 -> H/2 x W/2 -> [B, H, W, C P]."""

    def __init__(self, inputs: int, outputs: int, image_shape: tuple[int, int, int], hidden: tuple[int, int], rngs: nnx.Rngs):
        half, quarter = hidden
        self.start = (image_shape[0] // 4, image_shape[1] // 4, quarter)
        self.project = Linear(inputs, prod(self.start), rngs)
        self.up1 = ConvTranspose(quarter, half, 4, 2, rngs)
        self.up2 = ConvTranspose(half, half, 4, 2, rngs)
        self.out = Conv(half, outputs, 3, rngs)

    def __call__(self, z: Float[Array, "B I"]) -> Float[Array, "B H W D"]:
        x = nnx.silu(add_bias(dot(z, self.project.kernel[...]), self.project.bias[...])).reshape(-1, *self.start)
        return self.out(nnx.silu(self.up2(nnx.silu(self.up1(x)))).astype(jnp.float32))
