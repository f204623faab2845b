"""PixelCNN's second cached form: a front of pixels at a time, one in each of several rows (see fronts.py).

`step` first computes the terms of earlier fronts in the 3 x 3 convolutions of all blocks. Then every block takes three matrix products, as
in the form by rows, for all Q = K n pixels of the front together. Features are columns, [D, Q]: on a CPU XLA multiplies them up to 1.6
times as fast as rows. At the comparison size a CPU draws 1.2, 1.8 and 1.5 times as many images a second as by rows, at batch 1, 16 and
64. The model and its equations are in pixelcnn.py.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from jaxgen.layers.convolutions import EXACT, of_group, put, scale_pixels
from jaxgen.layers.fronts import Fronts
from jaxgen.layers.masked import joint_bias


class Packed(NamedTuple):
    """Masked weights of all L blocks for features in columns, [outputs, d] for each of G input groups; computed once per sampler call."""

    squeeze: Float[Array, "L G D d"]
    centre: Float[Array, "L G D d"]  # of the 3 x 3 convolutions
    expand: Float[Array, "L G E d"]


class Sums(NamedTuple):
    """Partial sums of every block's convolutions at the pixels being drawn: biases and the terms of what is drawn so far.

    Biases alone have Q = 1 if they are the same for all pixels.
    """

    squeeze: Float[Array, "L D Q"]
    conv: Float[Array, "L D Q"]
    expand: Float[Array, "L E Q"]


class FrontCache(NamedTuple):
    """The sampler's cache. L blocks, Q pixels of a front, D = width, E = 2 width; histories as in `Fronts.init_history`."""

    packed: Packed
    rows: tuple  # `MaskedConv.pack_rows` of the first layer, [E, F] each, and of the 3 x 3 convolutions, [L, D, F] each
    output: tuple  # the two weights of the output layers by input group
    bias: tuple  # of the first layer, [E, Q or 1], and of the blocks, Sums; the label's included
    pixels: Float[Array, "R C Q"]  # history of the image
    inputs: Float[Array, "S L D Q"]  # history of the inputs of the 3 x 3 convolutions
    time: Int[Array, ""]  # of the front being drawn
    sums: tuple  # trunk [E, Q], Sums, those of the output layers; () for C = 1


@dataclass(frozen=True)
class PixelCNNFronts:
    """The layers of a PixelCNN (`input`, `blocks`, `output`), computed front by front."""

    model: Any

    @property
    def fronts(self) -> Fronts:
        """The fronts of the model's images."""
        return self.model.fronts

    def init(self, n: int, label_biases: list) -> FrontCache:
        """The cache of n images before anything is drawn; label_biases: [B, size] or [] for the first layer and each 3 x 3 convolution."""
        config, dtype, output = self.model.config, jnp.dtype(self.model.config.dtype), self.model.output
        pixels, channels = n * self.fronts.lanes, config.image_shape[2]
        history = self.fronts.init_history(self.model.input.taps, (channels,), n, dtype)
        inputs = self.fronts.init_history(1, (config.layers, config.width), n, dtype)
        packed, rows = self._pack(dtype)
        bias = self._biases(label_biases, dtype)
        full = jax.tree.map(lambda x: jnp.broadcast_to(x, (*x.shape[:-1], pixels)), bias)
        sums = (*full, output.begin_pixel(pixels, dtype)) if channels > 1 else ()
        return FrontCache(packed, rows, output.pack(dtype), bias, history, inputs, jnp.int32(0), sums)

    def _pack(self, dtype) -> tuple[Packed, tuple]:
        """The fields `packed` and `rows` of the cache."""
        groups, blocks = self.model.config.image_shape[2], self.model.blocks

        def stacked(weights):
            weights = jnp.stack(weights).astype(dtype)
            return weights.reshape(len(weights), groups, -1, weights.shape[2]).swapaxes(2, 3)

        squeeze, expand = stacked([b.squeeze.masked() for b in blocks]), stacked([b.expand.masked() for b in blocks])
        packed = Packed(squeeze, stacked([b.conv.masked_centre() for b in blocks]), expand)
        rows = jax.tree.map(lambda *x: jnp.stack(x), *(b.conv.pack_rows(dtype) for b in blocks))
        return packed, (self.model.input.pack_rows(dtype), rows)

    def _biases(self, label_biases: list, dtype) -> tuple[Float[Array, "E Q"], Sums]:
        """The field `bias` of the cache: one column, or with labels one for every pixel of a front."""
        (first, *of_label), blocks = label_biases, self.model.blocks

        def in_columns(layer, of_label):
            bias = joint_bias(layer.bias[...], of_label, dtype)
            return jnp.tile(bias.T, (1, self.fronts.lanes)) if bias.ndim == 2 else bias[:, None]

        squeeze, expand = (jnp.stack([in_columns(getattr(b, name), jnp.zeros(())) for b in blocks]) for name in ("squeeze", "expand"))
        conv = jnp.stack([in_columns(b.conv, bias) for b, bias in zip(blocks, of_label, strict=True)])
        return in_columns(self.model.input, first), Sums(squeeze, conv, expand)

    def step(self, cache: FrontCache, previous: UInt[Array, "Q C"], t) -> tuple[FrontCache, Float[Array, "Q P"]]:
        """Parameters of the first channel of the pixels of front t, given those of the front before (ignored at t = 0)."""
        (first, blocks), (trunk, bias), config = cache.rows, cache.bias, self.model.config
        x = self.fronts.keep_inside(scale_pixels(previous.T, config.levels, config.dtype), t - 1)
        pixels = put(cache.pixels, x, (t - 1) % len(cache.pixels))
        trunk = trunk + self._seen(first, pixels, t)
        conv = bias.conv + self._seen(blocks, cache.inputs, t)
        output = self.model.output.begin_pixel(x.shape[1], x.dtype)
        return self._group(cache._replace(pixels=pixels, time=jnp.int32(t)), (trunk, bias._replace(conv=conv), output), 0)

    def _seen(self, rows: tuple, history: Float[Array, "R ... D Q"], t) -> Float[Array, "... E Q"]:
        """The convolution's terms from earlier fronts, for the pixels of front t: all taps but the centre; `rows` as in FrontCache."""
        m = len(rows) - 1
        taps = [range(-m, 0)] + [range(-m, m + 1)] * m
        return sum(self.fronts.weigh(row, history, t, up, right) for up, (row, right) in enumerate(zip(rows, taps, strict=True)))

    def step_channel(self, cache: FrontCache, pixel: UInt[Array, "Q C"], k) -> tuple[FrontCache, Float[Array, "Q P"]]:
        """Parameters of channel k > 0 of the pixels being drawn, given their channels before k."""
        x = scale_pixels(pixel, self.model.config.levels, self.model.config.dtype)
        trunk, *rest = cache.sums
        return self._group(cache, (trunk + self.model.input.push_channel(x, k).T, *rest), k)

    def _group(self, cache: FrontCache, sums: tuple, k) -> tuple[FrontCache, Float[Array, "Q P"]]:
        """Compute channel group k of a front in all blocks and the output layers, and add its terms to the partial sums."""
        groups = self.model.config.image_shape[2]

        def block(y, inputs):
            packed, (squeeze, conv, expand) = inputs
            squeeze = squeeze + _product(of_group(packed.squeeze, k), jax.nn.relu(y))
            u = self.fronts.keep_inside(jax.nn.relu(_rows(squeeze, k, groups)), cache.time)
            conv = conv + _product(of_group(packed.centre, k), u)
            expand = expand + _product(of_group(packed.expand, k), jax.nn.relu(_rows(conv, k, groups)))
            return y + _rows(expand, k, groups), (u, Sums(squeeze, conv, expand) if groups > 1 else ())

        trunk, blocks, output = sums
        y, (u, blocks) = jax.lax.scan(block, _rows(trunk, k, groups), (cache.packed, blocks))
        output, parameters = self.model.output.group(cache.output, output, y.T, k)
        place = cache.time % len(cache.inputs), 0, k * u.shape[1], 0
        cache = cache._replace(inputs=jax.lax.dynamic_update_slice(cache.inputs, u[None], [jnp.int32(i) for i in place]))
        return (cache._replace(sums=(trunk, blocks, output)) if groups > 1 else cache), parameters


def _rows(x: Float[Array, "D Q"], k, groups: int) -> Float[Array, "d Q"]:
    """Channel group k of features in columns."""
    size = x.shape[0] // groups
    return x if groups == 1 else jax.lax.dynamic_slice_in_dim(x, k * size, size)


def _product(weight: Float[Array, "E D"], x: Float[Array, "D Q"]) -> Float[Array, "E Q"]:
    """W x. A small one is written as a sum of D outer products, which XLA fuses with the operations around it: 1.5 times as fast for one
    image."""
    if x.shape[1] > 8 or x.shape[0] > 32:
        return jnp.matmul(weight, x, precision=EXACT)
    return sum(weight[:, i, None] * x[None, i] for i in range(x.shape[0]))
