"""PixelCNN: masked convolutions in residual blocks.

    p(x) = prod_i p(x_i | x_<i)  in raster order, within a pixel R, then G, then B.

With h = width, x scaled to [-1, 1], zeros outside the image, and every convolution masked (A in the first layer, B after it):

    y_0     = conv7x7_A(x)                                                                2h features
    y_{l+1} = y_l + conv1x1_B(relu(conv3x3_B(relu(conv1x1_B(relu(y_l))))))                2h -> h -> h -> 2h
    logits  = conv1x1_B(relu(conv1x1_B(relu(y))))                                         2h -> head_width -> outputs

Blind spot: a 3 x 3 kernel without its later taps reaches one column to the right for each row upwards. However many blocks there are,
pixel (i, j) depends on columns <= j + n + 2 of row i - n only (with a 7 x 7 first layer), though p(x_i | x_<i) may depend on all of them. A
label adds the embedding of its class to the biases of the first layer and of every 3 x 3 convolution.

Sampling by rows: `begin_row` computes the terms of the row above in all 3 x 3 convolutions, for all columns at once. `step` takes three
matrix products a block: the two 1 x 1, and one that gives the centre tap's term of this pixel and the left tap's term of the next pixel.
Sampling in fronts: because of the blind spot several rows can be drawn at once, each m + 1 columns behind the one above it (m = 3 for a
7 x 7 first layer). `sample` does so where it is faster, see layers/pixelcnn_fronts.py.

van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", sections 3.3, 3.4, 3.5 and table 1.
Departures: widths must be multiples of C (for C = 3 use 129 for the paper's 128); our experiments use Adam, the paper, as we remember it,
RMSProp.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt

from jaxgen.data.features import OfImages
from jaxgen.distributions import pixel_head
from jaxgen.layers.autoregressive import AutoregressiveImages
from jaxgen.layers.convolutions import dot, normal, of_group, scale_pixels, take_group
from jaxgen.layers.fronts import Fronts, in_fronts
from jaxgen.layers.masked import (
    Masked1x1,
    MaskedConv,
    OutputLayers,
    Window,
    add_label,
    add_pushed,
    check_sizes,
    first_channel,
    joint_bias,
    label_biases,
    next_channel,
    put_group,
)
from jaxgen.layers.pixelcnn_fronts import FrontCache, PixelCNNFronts


@dataclass(frozen=True)
class PixelCNNConfig(OfImages):
    """Sizes of a PixelCNN. Raises ConfigError for sizes out of range, an even kernel, and unless width and head_width are multiples of the
    channels.
    """

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    layers: int = 15  # residual blocks
    width: int = 128  # h, features inside a block; there are 2h between the blocks
    input_kernel: int = 7  # side of the first convolution, an odd number of pixels
    head_width: int = 32  # features between the last two 1 x 1 convolutions
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations; parameters and likelihoods are float32
    grouped = ("width", "head_width")

    def __post_init__(self):
        check_sizes(self, kernels=("input_kernel",))

    @classmethod
    def comparison(cls) -> "PixelCNNConfig":
        """The size of speed comparisons: 28 x 28 binary images, 15 blocks of 2 x 16 features."""
        return cls(image_shape=(28, 28, 1), levels=2, layers=15, width=16, head_width=32)


class Block(nnx.Module):
    """y + conv1x1(relu(conv3x3(relu(conv1x1(relu(y)))))), 2h features in and out, all masks B."""

    def __init__(self, config: PixelCNNConfig, rngs: nnx.Rngs):
        width, groups = config.width, config.image_shape[2]
        self.squeeze = Masked1x1(2 * width, width, groups, rngs)
        self.conv = MaskedConv(width, width, 3, "B", groups, rngs)
        self.expand = Masked1x1(width, 2 * width, groups, rngs)

    def __call__(self, y: Float[Array, "B H W E"], label_bias) -> Float[Array, "B H W E"]:
        """The whole image; `label_bias` [B, h] or [] is added to the 3 x 3 convolution."""
        u = self.conv(jax.nn.relu(self.squeeze(jax.nn.relu(y))))
        return y + self.expand(jax.nn.relu(add_label(u, label_bias)))


class Packed(NamedTuple):
    """A block's masked weights by input group (see masked.py), computed once per call of the sampler."""

    squeeze: Float[Array, "G d D"]
    push: Float[Array, "G d F"]  # centre | left tap of the 3 x 3 convolution, F = 2h
    expand: Float[Array, "G d E"]  # E = 2h


class Sums(NamedTuple):
    """Partial sums at the pixel being drawn: biases, terms of earlier pixels and of its channel groups so far; L blocks, B images."""

    trunk: Float[Array, "B E"]  # of y_0
    squeeze: Float[Array, "L B D"]
    conv: Float[Array, "L B D"]
    expand: Float[Array, "L B E"]
    output: tuple  # of the output layers: [B, head_width], [B, C P]


class Cache(NamedTuple):
    """The sampler's cache while pixel (r, c) is drawn. W columns, L blocks, B images, D = width, E = 2 width."""

    packed: tuple[Packed, ...]
    output: tuple  # the two masked weights of the output layers by input group
    bias: tuple  # of the first layer, [E] or [B, E], and of every 3 x 3 convolution, [D] or [B, D]; the label's included
    window: Window  # of the first layer
    inputs: Float[Array, "W L B D"]  # inputs of the 3 x 3 convolutions, of row r in the columns before c, of row r-1 in the others
    above: Float[Array, "W L B D"]  # terms of row r-1 in the 3 x 3 convolutions of row r, bias included
    waiting: Float[Array, "1 L B D"]  # terms of the pixel to the left in them
    column: Int[Array, ""]  # c
    sums: Sums | tuple  # () for C = 1


class PixelCNN(AutoregressiveImages):
    """The model of this file; see `AutoregressiveImages` for logits, log_prob, loss and sample."""

    def __init__(self, config: PixelCNNConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, pixel_head(config.levels)
        width, channels = config.width, config.image_shape[2]
        self.input = MaskedConv(channels, 2 * width, config.input_kernel, "A", channels, rngs)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        self.output = OutputLayers(2 * width, config.head_width, self.head.size, channels, rngs)
        # For each class the biases of the first layer and of all 3 x 3 convolutions.
        self.embedding = normal(rngs, (config.num_classes, (2 + config.layers) * width), 1.0) if config.num_classes else None

    def _label_biases(self, label) -> list:
        return label_biases(self.embedding, label, (2 * self.config.width, *(self.config.width,) * self.config.layers))

    def _logits(self, image: UInt[Array, "B H W C"], label, key=None) -> Float[Array, "B H W C P"]:
        del key  # no dropout
        x = scale_pixels(image, self.config.levels, self.config.dtype)
        first, *biases = self._label_biases(label)
        y = add_label(self.input(x), first)
        for block, bias in zip(self.blocks, biases, strict=True):
            y = block(y, bias)
        return self.output(y)

    def flops_per_image(self) -> int:
        """Two for every weight at every pixel of one image. Sampling in fronts takes more: it computes pixels outside the image too."""
        weights = nnx.state((self.input, self.blocks, self.output), nnx.Param)
        height, width, _ = self.config.image_shape
        return 2 * height * width * sum(leaf.size for leaf in jax.tree.leaves(weights) if leaf.ndim > 1)

    # The cached form for sampling: the same network, one row and one pixel at a time.

    def init_cache(self, n: int, label=None) -> Cache:
        """The cache of n images before anything is drawn."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        convolutions = [self.input, *(block.conv for block in self.blocks)]
        biases = zip(convolutions, self._label_biases(label), strict=True)
        bias = tuple(joint_bias(conv.bias[...], of_label, dtype) for conv, of_label in biases)
        packed = tuple(Packed(b.squeeze.pack(dtype), b.conv.pack(dtype), b.expand.pack(dtype)) for b in self.blocks)
        columns, channels = config.image_shape[1:]
        row = jnp.zeros((columns, config.layers, n, config.width), dtype)
        window = self.input.init_window(columns, n, dtype)
        trunk = jnp.zeros((n, 2 * config.width), dtype)
        sums = self._begin_pixel(trunk, row[0]) if channels > 1 else ()
        return Cache(packed, self.output.pack(dtype), bias, window, row, row, row[:1], jnp.int32(0), sums)

    def begin_row(self, cache: Cache, finished_row: UInt[Array, "B W C"], r) -> Cache:
        """The cache for row r from the finished row r-1: its terms in all convolutions. For r = 0 `finished_row` is ignored."""
        x = scale_pixels(finished_row.swapaxes(0, 1), self.config.levels, self.config.dtype)
        first, *biases = cache.bias
        above = [b.conv.from_above(cache.inputs[None, :, i], bias) for i, (b, bias) in enumerate(zip(self.blocks, biases, strict=True))]
        window = self.input.begin_row(cache.window, x, r, first)
        return cache._replace(window=window, above=jnp.stack(above, axis=1), waiting=jnp.zeros_like(cache.waiting))

    step, step_channel = first_channel, next_channel

    def _begin_pixel(self, trunk, conv) -> Sums:
        """The partial sums of a pixel before its first channel group, from those of y_0 and of the 3 x 3 convolutions."""
        n, dtype = trunk.shape[0], trunk.dtype

        def biases(layers):
            return jnp.stack([jnp.broadcast_to(layer.bias[...].astype(dtype), (n, *layer.bias.shape)) for layer in layers])

        squeeze, expand = biases([b.squeeze for b in self.blocks]), biases([b.expand for b in self.blocks])
        return Sums(trunk, squeeze, conv, expand, self.output.begin_pixel(n, dtype))

    def _group(self, cache: Cache, sums: Sums, k) -> tuple[Cache, Float[Array, "B P"]]:
        """Compute channel group k of one pixel in all blocks; add its terms to the sums of later groups and of the next pixel."""
        groups, width = self.config.image_shape[2], self.config.width
        squeeze, conv, expand, inputs, pushed = list(sums.squeeze), list(sums.conv), list(sums.expand), [], []
        y = take_group(sums.trunk, k, groups)
        for i, packed in enumerate(cache.packed):
            squeeze[i] = squeeze[i] + dot(jax.nn.relu(y), of_group(packed.squeeze, k))
            inputs.append(jax.nn.relu(take_group(squeeze[i], k, groups)))
            push = dot(inputs[i], of_group(packed.push, k))
            conv[i] = conv[i] + push[:, :width]
            pushed.append(push[:, width:])
            expand[i] = expand[i] + dot(jax.nn.relu(take_group(conv[i], k, groups)), of_group(packed.expand, k))
            y = y + take_group(expand[i], k, groups)
        output, parameters = self.output.group(cache.output, sums.output, y, k)
        inputs = put_group(cache.inputs, jnp.stack(inputs), k, cache.column)
        cache = cache._replace(inputs=inputs, waiting=add_pushed(cache.waiting, pushed))
        if groups > 1:
            cache = cache._replace(sums=Sums(sums.trunk, jnp.stack(squeeze), jnp.stack(conv), jnp.stack(expand), output))
        return cache, parameters

    # The second cached form: the same network, one front of pixels at a time (see layers/fronts.py).

    @property
    def fronts(self) -> Fronts:
        """The fronts with skew m + 1, m = input_kernel // 2: pixel (r, c) depends on columns up to c + m i of row r - i at most."""
        return Fronts(*self.config.image_shape[:2], self.input.taps + 1)

    @property
    def draws_in_fronts(self) -> bool:
        """Whether `sample` draws in fronts: on a CPU if width <= 24 and at most a third of the fronts' pixels are outside the image.

        Measured on a CPU: 1.2 to 1.8 times as many images a second (28 x 28, width 16), but 0.7 times at width 64, and 0.5 times for 8 x 8
        images at width 128. On other devices always, since there are (m + 1) (H - 1) + W steps instead of H W; not measured.
        """
        return jax.default_backend() != "cpu" or bool(self.config.width <= 24 and self.fronts.inside.mean() >= 2 / 3)

    def _draw_cached(self, draw, condition, image, mask, rows):
        if self.draws_in_fronts:
            return in_fronts(self, draw, condition, image, mask, rows)
        return super()._draw_cached(draw, condition, image, mask, rows)

    def init_fronts(self, n: int, label=None) -> FrontCache:
        """The cache of n images before anything is drawn, for `step_front`."""
        return PixelCNNFronts(self).init(n, self._label_biases(label))

    def step_front(self, cache: FrontCache, previous: UInt[Array, "Q C"], t) -> tuple[FrontCache, Float[Array, "Q P"]]:
        """Parameters of the first channel of the pixels of front t, given those of the front before (ignored at t = 0)."""
        return PixelCNNFronts(self).step(cache, previous, t)

    def step_front_channel(self, cache: FrontCache, pixel: UInt[Array, "Q C"], k) -> tuple[FrontCache, Float[Array, "Q P"]]:
        """Parameters of channel k > 0 of the pixels being drawn, given their channels before k."""
        return PixelCNNFronts(self).step_channel(cache, pixel, k)
