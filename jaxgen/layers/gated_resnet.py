"""The gated resnets of PixelCNN++ and PixelSNAIL, and what models made of weight-normalised layers share.

    c = conv(f(x)) + nin(f(a));  (c1, c2) = conv(dropout(f(c))) + V y;  resnet(x, a) = x + c1 sigmoid(c2)

f(x) = cat_elu x = elu([x, -x]), a auxiliary shortcuts, nin a 1 x 1 convolution, y the label's embedding; every convolution has weight
normalisation. Forms: whole images (with 1 x 1 kernels: any positions); one row of a stream that reads rows above and all columns; a row
and a pixel of a stream that reads rows above and the pixels to the left.

Salimans, Karpathy, Chen, Kingma 2017, "PixelCNN++", section 2, and the authors' code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.autoregressive import AutoregressiveImages
from jaxgen.checks import check_images, check_label, image_of
from jaxgen.layers.convolutions import add_bias, dot, dropout, embed, normal, scale_pixels
from jaxgen.layers.weight_norm import Conv, WeightNorm


class Pass(NamedTuple):
    """What a pass over whole images carries besides the images."""

    label: Any = None  # int32 [B] or None
    key: Any = None  # dropout, or None
    initialise: bool = False  # set gains and biases from the data on the way

    def conv(self, layer, x, *size):
        """A convolution of x; a packed one, which the sampler carries, has nothing to initialise."""
        return layer(x, *size, initialise=True) if self.initialise else layer(x, *size)


def cat_elu(x: Float[Array, "... D"]) -> Float[Array, "... E"]:
    """elu([x, -x]): concatenated exponential linear units, E = 2D."""
    return jax.nn.elu(jnp.concatenate([x, -x], axis=-1))


def gated(x: Float[Array, "... D"], c: Float[Array, "... E"]) -> Float[Array, "... D"]:
    """x + first half of c * sigmoid(second half): no tanh, unlike the Gated PixelCNN."""
    a, b = jnp.split(c, 2, axis=-1)
    return x + a * jax.nn.sigmoid(b)


class Resnet(nnx.Module):
    """A gated resnet with `auxiliary` features of shortcuts in all; `plain`: f = elu, half the products; `index` is for its dropout."""

    def __init__(self, width: int, kernel: tuple[int, int], rngs: nnx.Rngs, *, auxiliary=0, classes=0, dropout=0.0, index=0, plain=False):
        factor = 1 if plain else 2
        self.first = WeightNorm(Conv, factor * width, width, kernel, rngs)
        self.nin = WeightNorm(Conv, factor * auxiliary, width, (1, 1), rngs) if auxiliary else None
        self.second = WeightNorm(Conv, factor * width, 2 * width, kernel, rngs, scale=0.1)
        self.embedding = normal(rngs, (classes, 2 * width), 400.0) if classes else None
        self.index, self.dropout, self.plain = index, dropout, plain

    def f(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """The activation before every convolution."""
        return jax.nn.elu(x) if self.plain else cat_elu(x)

    def __call__(self, x: Float[Array, "*shape D"], auxiliary: list, run: Pass) -> Float[Array, "*shape D"]:
        """Whole images [B, H, W, D]; with 1 x 1 kernels and no label any shape."""
        c = run.conv(self.first, self.f(x))
        if auxiliary:
            c = c + run.conv(self.nin, jnp.concatenate([self.f(a) for a in auxiliary], axis=-1))
        c = self.f(c)
        if run.key is not None and self.dropout > 0:
            c = dropout(c, self.dropout, jax.random.fold_in(run.key, self.index))
        c = run.conv(self.second, c)
        return gated(x, c + self.condition(run.label, c.dtype)[:, None, None] if self.embedding is not None else c)

    def condition(self, label, dtype) -> Float[Array, "B E"]:
        """The label's bias of the gates."""
        return embed(self.embedding[...], label).astype(dtype)

    # In the sampler the convolutions are packed. Both forms give the inputs of the two convolutions, which the next row will read.

    def row(self, above, x: Float[Array, "W B D"], skip, label) -> tuple[Array, list]:
        """A row of u, from the inputs of the row above."""
        c = self.first.row(self.f(above[0]), self.f(x))
        if skip is not None:
            c = add_bias(c + dot(self.f(skip), self.nin.kernel[0, 0]), self.nin.bias)
        gates = self.second.row(self.f(above[1]), self.f(c))
        gates = gates if self.embedding is None else add_bias(gates, self.condition(label, x.dtype))
        return gated(x, gates), [x, c]

    def base(self, above, u: Float[Array, "W B D"], label) -> Float[Array, "W B E"]:
        """The sums of both convolutions of a row of ul without its own pixels: biases, row above and u, side by side, E = 3D."""
        u = self.f(u)
        c = self.first.base(self.f(above[0])) + dot(u, self.nin.kernel[0, 0, : u.shape[-1]])
        gates = self.second.base(self.f(above[1]))
        gates = gates if self.embedding is None else add_bias(gates, self.condition(label, gates.dtype))
        return jnp.concatenate([add_bias(c, self.nin.bias), gates], axis=-1)

    def pixel(self, base, left, x: Float[Array, "B D"], skip) -> tuple[Array, list]:
        """A pixel of ul, from `base` and the inputs of its left neighbour; the skip's features come after those of u in `nin`."""
        width = x.shape[-1]
        c = base[:, :width] + self.first.pixel(self.f(left[0]), self.f(x))
        if skip is not None:
            skip = self.f(skip)
            c = c + dot(skip, self.nin.kernel[0, 0, -skip.shape[-1] :])
        return gated(x, base[:, width:] + self.second.pixel(self.f(left[1]), self.f(c))), [x, c]


class PushingResnet(NamedTuple):
    """A packed resnet with 2 x 2 kernels and without shortcuts, for the sampler.

    A pixel is multiplied with the tap of its own column and with the tap by which its right neighbour will read it in one product. The
    state is two sums of terms of both convolutions, [B, 3D] each: `base`, of the row above, and `waiting`, of the left neighbour.
    """

    first: Float[Array, "F E"]  # this pixel | the next one, E = 2D
    second: Float[Array, "F G"]  # G = 4D
    resnet: Any

    @classmethod
    def of(cls, resnet: Resnet) -> "PushingResnet":
        """The resnet with the two taps of its own row side by side."""
        pairs = [jnp.concatenate([conv.kernel[-1, 1], conv.kernel[-1, 0]], axis=-1) for conv in (resnet.first, resnet.second)]
        return cls(*pairs, resnet)

    def base(self, above: Float[Array, "W B I"], label) -> Float[Array, "W B E"]:
        """The terms of the row above in both convolutions of a row, biases included, E = 3D; `above` are their activated inputs there."""
        first, second = jnp.split(above, 2, axis=-1)
        gates = self.resnet.second.base(second)
        gates = gates if self.resnet.embedding is None else add_bias(gates, self.resnet.condition(label, gates.dtype))
        return jnp.concatenate([self.resnet.first.base(first), gates], axis=-1)

    def pixel(self, known: Float[Array, "B E"], x: Float[Array, "B D"]) -> tuple[Array, Array, Array]:
        """A pixel from base + waiting: the output, what waits for the next pixel, and the activated inputs for the row below."""
        width = x.shape[-1]
        first = self.resnet.f(x)
        c = dot(first, self.first)
        second = self.resnet.f(known[:, :width] + c[:, :width])
        gates = dot(second, self.second)
        y = gated(x, known[:, width:] + gates[:, : 2 * width])
        return y, jnp.concatenate([c[:, width:], gates[:, 2 * width :]], axis=-1), jnp.concatenate([first, second], axis=-1)


class WeightNormImages(AutoregressiveImages):
    """A model whose layers are weight-normalised: `_network(x, run)` gives its parameters from pixels with a channel of ones."""

    def initialise(self, batch: dict):
        """The model with gains and biases set layer by layer, so that the outputs of every convolution have mean 0 and deviation 1 on the
        batch (0.1 for the last of a resnet); dropout off. To be called once, before the first step of a new run, never on resume."""
        config = self.config
        image = check_images(image_of(batch), config.image_shape, config.levels)
        label = check_label(batch.get("label") if config.num_classes else None, config.num_classes, image.shape[0])
        return _initialised(self, image, label)

    def _logits(self, image: UInt[Array, "B H W C"], label, key: PRNGKeyArray | None = None) -> Float[Array, "B H W ..."]:
        return self._network(self._pixels(image, self.config.dtype), Pass(label, key))

    def _pixels(self, image: UInt[Array, "*shape C"], dtype) -> Float[Array, "*shape D"]:
        """x on [-1, 1] with a channel of ones, D = C + 1, which tells the image from the padding."""
        x = scale_pixels(image, self.config.levels, dtype)
        return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


@jax.jit
def _initialised(model: WeightNormImages, image, label) -> WeightNormImages:
    model = nnx.clone(model)
    model._network(model._pixels(image, jnp.float32), Pass(label, initialise=True))
    return model
