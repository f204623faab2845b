"""The gated residual block ("resnet") of PixelCNN++ and PixelSNAIL, and the methods that both models share.

    c = conv(f(x)) + nin(f(a));  (c1, c2) = conv(dropout(f(c))) + V y;  resnet(x, a) = x + c1 sigmoid(c2)

f(x) = cat_elu x = elu([x, -x]); a: features of shortcuts, concatenated; nin: a 1 x 1 convolution; y: the label, one-hot. All convolutions
have weight normalisation. The two conv have the same kernel; see weight_norm.py for what each kernel reads.

Forms: whole images; for the sampler `row`, a row of the stream u of PixelCNN++, which reads all columns of the rows above; `base` and
`pixel`, a pixel of a stream that reads the row above and the pixels to the left (ul in PixelCNN++).

Salimans, Karpathy, Chen, Kingma 2017, "PixelCNN++", section 2, and the authors' code.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import check_images, check_label, image_of
from jaxgen.layers.autoregressive import AutoregressiveImages
from jaxgen.layers.convolutions import add_bias, dot, dropout, embed, normal, scale_pixels
from jaxgen.layers.weight_norm import Conv, WeightNorm


class Pass(NamedTuple):
    """Arguments of a forward pass over whole images, besides the images."""

    label: Any = None  # int32 [B] or None
    key: Any = None  # of dropout; None for no dropout
    initialise: bool = False  # every WeightNorm first sets its gain and bias from its input

    def conv(self, layer, x, *size):
        """layer(x), a convolution, which first sets its gain and bias if `initialise`; size: of the output of `Up`."""
        return layer(x, *size, initialise=True) if self.initialise else layer(x, *size)


def cat_elu(x: Float[Array, "... D"]) -> Float[Array, "... E"]:
    """elu([x, -x]): concatenated exponential linear units, E = 2D."""
    return jax.nn.elu(jnp.concatenate([x, -x], axis=-1))


def gated(x: Float[Array, "... D"], c: Float[Array, "... E"]) -> Float[Array, "... D"]:
    """x + c1 sigmoid(c2), c = [c1, c2]; unlike the gate of the Gated PixelCNN there is no tanh."""
    a, b = jnp.split(c, 2, axis=-1)
    return x + a * jax.nn.sigmoid(b)


class Resnet(nnx.Module):
    """resnet(x, a). auxiliary: features of all shortcuts a together, 0 for none. plain: f = elu instead of cat_elu, half the products.
    classes: of the label, 0 for none. index: the resnets of a model have different ones, so that their dropout differs."""

    def __init__(self, width: int, kernel: tuple[int, int], rngs: nnx.Rngs, *, auxiliary=0, classes=0, dropout=0.0, index=0, plain=False):
        factor = 1 if plain else 2
        self.first = WeightNorm(Conv, factor * width, width, kernel, rngs)
        self.nin = WeightNorm(Conv, factor * auxiliary, width, (1, 1), rngs) if auxiliary else None
        self.second = WeightNorm(Conv, factor * width, 2 * width, kernel, rngs, scale=0.1)
        self.embedding = normal(rngs, (classes, 2 * width), 400.0) if classes else None
        self.index, self.dropout, self.plain = index, dropout, plain

    def f(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """elu if plain, else cat_elu."""
        return jax.nn.elu(x) if self.plain else cat_elu(x)

    def __call__(self, x: Float[Array, "*shape D"], auxiliary: list, run: Pass) -> Float[Array, "*shape D"]:
        """resnet(x, a) of images [B, H, W, D], a = `auxiliary`, a list of arrays; with 1 x 1 kernels and no label any shape."""
        c = run.conv(self.first, self.f(x))
        if auxiliary:
            c = c + run.conv(self.nin, jnp.concatenate([self.f(a) for a in auxiliary], axis=-1))
        c = self.f(c)
        if run.key is not None and self.dropout > 0:
            c = dropout(c, self.dropout, jax.random.fold_in(run.key, self.index))
        c = run.conv(self.second, c)
        return gated(x, c + self.condition(run.label, c.dtype)[:, None, None] if self.embedding is not None else c)

    def condition(self, label, dtype) -> Float[Array, "B E"]:
        """V y."""
        return embed(self.embedding[...], label).astype(dtype)

    # For the sampler; the convolutions are packed (see `weight_norm.packed`). `row` and `pixel` also return [x, c], from which the two
    # convolutions of the next row, or of the pixel to the right, are computed.

    def row(self, above, x: Float[Array, "W B D"], skip, label) -> tuple[Array, list]:
        """A row of u: resnet(x, skip) and [x, c]; `above` is [x, c] of the row above."""
        c = self.first.row(self.f(above[0]), self.f(x))
        if skip is not None:
            c = add_bias(c + dot(self.f(skip), self.nin.kernel[0, 0]), self.nin.bias)
        gates = self.second.row(self.f(above[1]), self.f(c))
        gates = gates if self.embedding is None else add_bias(gates, self.condition(label, x.dtype))
        return gated(x, gates), [x, c]

    def base(self, above, u: Float[Array, "W B D"], label) -> Float[Array, "W B E"]:
        """The terms of c and of (c1, c2) for a row of ul that do not depend on that row of ul, [W, B, 3D]: biases, label, row above, u."""
        u = self.f(u)
        c = self.first.base(self.f(above[0])) + dot(u, self.nin.kernel[0, 0, : u.shape[-1]])
        gates = self.second.base(self.f(above[1]))
        gates = gates if self.embedding is None else add_bias(gates, self.condition(label, gates.dtype))
        return jnp.concatenate([add_bias(c, self.nin.bias), gates], axis=-1)

    def pixel(self, base, left, x: Float[Array, "B D"], skip) -> tuple[Array, list]:
        """A pixel of ul: its output and [x, c], from its `base` [B, 3D] and `left`, the [x, c] of the pixel to its left.

        skip: the pixel's features of the second shortcut, or None. With one, a = [u, skip] (see the module): the first rows of nin's kernel
        are multiplied with u, in `base`, and its last rows with skip, here.
        """
        width = x.shape[-1]
        c = base[:, :width] + self.first.pixel(self.f(left[0]), self.f(x))
        if skip is not None:
            skip = self.f(skip)
            c = c + dot(skip, self.nin.kernel[0, 0, -skip.shape[-1] :])
        return gated(x, base[:, width:] + self.second.pixel(self.f(left[1]), self.f(c))), [x, c]


class PushingResnet(NamedTuple):
    """A packed resnet with 2 x 2 kernels and without shortcuts, for the sampler.

    One product gives the term of a pixel in its own convolution and its term in that of the pixel to its right. The cache has two arrays of
    terms of c and (c1, c2), [B, 3D] each: `base`, biases and the row above, and `waiting`, the pixel to the left.
    """

    first: Float[Array, "F E"]  # weights to this pixel | to the next one, E = 2D
    second: Float[Array, "F G"]  # the same, G = 4D
    resnet: Any

    @classmethod
    def of(cls, resnet: Resnet) -> "PushingResnet":
        """From a packed resnet."""
        pairs = [jnp.concatenate([conv.kernel[-1, 1], conv.kernel[-1, 0]], axis=-1) for conv in (resnet.first, resnet.second)]
        return cls(*pairs, resnet)

    def base(self, above: Float[Array, "W B I"], label) -> Float[Array, "W B E"]:
        """For a row of pixels the terms of c and of (c1, c2) that do not depend on that row, [W, B, 3D]: biases, label, row above.

        above: [f(x), f(c)] of the row above, concatenated along the last axis; I = 4D with f = cat_elu.
        """
        first, second = jnp.split(above, 2, axis=-1)
        gates = self.resnet.second.base(second)
        gates = gates if self.resnet.embedding is None else add_bias(gates, self.resnet.condition(label, gates.dtype))
        return jnp.concatenate([self.resnet.first.base(first), gates], axis=-1)

    def pixel(self, known: Float[Array, "B E"], x: Float[Array, "B D"]) -> tuple[Array, Array, Array]:
        """A pixel from its x and known = base + waiting: its output, `waiting` of the next pixel, and [f(x), f(c)] for the row below."""
        width = x.shape[-1]
        first = self.resnet.f(x)
        c = dot(first, self.first)
        second = self.resnet.f(known[:, :width] + c[:, :width])
        gates = dot(second, self.second)
        y = gated(x, known[:, width:] + gates[:, : 2 * width])
        return y, jnp.concatenate([c[:, width:], gates[:, 2 * width :]], axis=-1), jnp.concatenate([first, second], axis=-1)


class WeightNormImages(AutoregressiveImages):
    """An image model of weight-normalised layers. `_network(x, run)` gives the parameters of p(x) from `_pixels(image)`."""

    def initialise(self, batch: dict):
        """A copy of the model with data-dependent initialisation: layer by layer, gains and biases are set so that every convolution's
        outputs have mean 0 and standard deviation 1 on the batch (0.1 for the second conv of a resnet). Without dropout. Call it once,
        before the first step of a new run. Raises ConfigError for a batch that does not fit the config."""
        config = self.config
        image = check_images(image_of(batch), config.image_shape, config.levels)
        label = check_label(batch.get("label") if config.num_classes else None, config.num_classes, image.shape[0])
        return _initialised(self, image, label)

    def _logits(self, image: UInt[Array, "B H W C"], label, key: PRNGKeyArray | None = None) -> Float[Array, "B H W ..."]:
        return self._network(self._pixels(image, self.config.dtype), Pass(label, key))

    def _pixels(self, image: UInt[Array, "*shape C"], dtype) -> Float[Array, "*shape D"]:
        """x on [-1, 1] and a channel of ones, D = C + 1; the padding has 0 there, so the network can tell it from the image."""
        x = scale_pixels(image, self.config.levels, dtype)
        return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


@jax.jit
def _initialised(model: WeightNormImages, image, label) -> WeightNormImages:
    model = nnx.clone(model)
    model._network(model._pixels(image, jnp.float32), Pass(label, initialise=True))
    return model
