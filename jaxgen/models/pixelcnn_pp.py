"""PixelCNN++: whole pixels in raster order, two streams at several resolutions, a mixture of discretized logistics as output.

    p(x) = prod_i p(x_i | x_<i),  x_i a pixel with all its channels; its parameters depend on no channel of x_i

Two streams of features: u depends on the rows above (2 x 3 convolutions), ul on the rows above and the pixels to the left (2 x 2). x has a
constant channel of ones:

    u_0  = down_shift(conv_2x3 x)                        ul_0 = down_shift(conv_1x3 x) + right_shift(conv_2x1 x)
    resnet(x, a):  c = conv(cat_elu x) + nin(cat_elu a);  (c1, c2) = conv(dropout(cat_elu c)) + V y;  x + c1 sigmoid(c2)
    block:  u' = resnet_u(u, skip_u),  ul' = resnet_ul(ul, [u', skip_ul]);  skips on the way up only;  cat_elu x = elu([x, -x])

A level is one resolution with all coarser ones (`Level.walk`): n blocks down, whose inputs and last output are kept as skips; the next
level, between a convolution of stride 2 and a transposed one; then up, one block for every skip, the last skip first. In the coarsest
level the last output down is not a skip but the first input up. Parameters = nin(elu ul). V y is the label's embedding. All convolutions
are weight-normalised; `initialise` sets their gains and biases from a batch. The next level has ceil(H / 2) x ceil(W / 2) pixels, and
the output of the transposed convolution is cropped to H x W.

Sampling: `begin_row` computes u of a whole row, and the terms of ul that do not depend on that row; `step` the rest of ul for one pixel.
Level k, the finest being 0, is computed at every 2^k-th row and column only (Ramachandran et al. 2017, "Fast Generation for Convolutional
Autoregressive Models").

Salimans, Karpathy, Chen, Kingma 2017, "PixelCNN++", section 2, and the authors' code (which has width 160 where the paper says 192).
"""

from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt

from jaxgen.checks import check_image_config
from jaxgen.data.features import OfImages
from jaxgen.layers.convolutions import add_bias, at, dot, put, shift
from jaxgen.layers.gated_resnet import Pass, Resnet, WeightNormImages
from jaxgen.layers.logistic_mixture import DiscretizedLogisticMixture
from jaxgen.layers.weight_norm import Conv, Down, Up, WeightNorm, packed


@dataclass(frozen=True)
class PixelCNNPPConfig(OfImages):
    """Sizes of a PixelCNN++. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    width: int = 192  # features of each of the two streams
    resnets: int = 5  # blocks of a resolution on the way down
    resolutions: int = 3  # number of resolutions, each half as large as the one before
    mixtures: int = 10  # number of logistics of the output's mixture
    dropout: float = 0.5  # probability with which a feature is set to 0 in training
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations; parameters and likelihoods are float32

    def __post_init__(self):
        check_image_config(self, {"width": 1, "resnets": 1, "resolutions": 1, "mixtures": 1})

    @classmethod
    def comparison(cls) -> "PixelCNNPPConfig":
        """The size of speed comparisons: 28 x 28 binary images, the paper's blocks and resolutions at width 64."""
        return cls(image_shape=(28, 28, 1), levels=2, width=64, dropout=0.0)


class Block(nnx.Module):
    """A resnet of each stream; skip: with a shortcut from the way down, for both."""

    def __init__(self, config: PixelCNNPPConfig, skip: bool, index: int, rngs: nnx.Rngs):
        def resnet(kernel, shortcuts, index):
            width = config.width
            more = {"classes": config.num_classes, "dropout": config.dropout}
            return Resnet(width, kernel, rngs, auxiliary=shortcuts * width, index=index, **more)

        self.u = resnet((2, 3), int(skip), 2 * index)
        self.ul = resnet((2, 2), 1 + int(skip), 2 * index + 1)


class Level(nnx.Module):
    """One resolution and all coarser ones; see the module's docstring."""

    def __init__(self, config: PixelCNNPPConfig, resolution: int, counter: count, rngs: nnx.Rngs):
        self.coarsest, width = resolution == config.resolutions - 1, config.width
        self.down_blocks = nnx.List([Block(config, False, next(counter), rngs) for _ in range(config.resnets)])
        if not self.coarsest:
            self.down_u, self.down_ul = (WeightNorm(Down, width, width, (2, w), rngs) for w in (3, 2))
            self.below = Level(config, resolution + 1, counter, rngs)
            self.up_u, self.up_ul = (WeightNorm(Up, width, width, (2, w), rngs) for w in (3, 2))
        skips = config.resnets + (0 if self.coarsest else 1)
        self.up_blocks = nnx.List([Block(config, True, next(counter), rngs) for _ in range(skips)])
        self.blocks = len(self.down_blocks) + len(self.up_blocks)

    def walk(self, x, block, below):
        """Apply all blocks in order: y = block(i, layer, x, skip), skip None on the way down; y = below(x) for the coarser levels."""
        skips = [x]
        for i, layer in enumerate(self.down_blocks):
            skips.append(block(i, layer, skips[-1], None))
        y = skips.pop() if self.coarsest else below(skips[-1])
        for i, layer in enumerate(self.up_blocks, len(self.down_blocks)):
            y = block(i, layer, y, skips.pop())
        return y

    def __call__(self, x: tuple, run: Pass) -> tuple:
        """Whole images: x = (u, ul), [B, H, W, D] each."""

        def block(i, layer, x, skip):
            u = layer.u(x[0], [] if skip is None else [skip[0]], run)
            return u, layer.ul(x[1], [u] if skip is None else [u, skip[1]], run)

        def below(x):
            size = x[0].shape[1:3]
            u, ul = self.below((run.conv(self.down_u, x[0]), run.conv(self.down_ul, x[1])), run)
            return run.conv(self.up_u, u, size), run.conv(self.up_ul, ul, size)

        return self.walk(x, block, below)


class LevelCache(NamedTuple):
    """The sampler's cache of one level while pixel (r, c) is drawn: N blocks, W columns, w = ceil(W / 2), B images, D = width.

    It keeps the inputs of S convolutions: of both in each block, in the order of the walk, then of the strided one where there is one.
    """

    u: Float[Array, "S W B D"]  # inputs in stream u, of row r
    ul: Float[Array, "W S B D"]  # inputs in stream ul, of row r in the columns before c, of row r-1 in the others
    base: Float[Array, "W N B 3D"]  # `Resnet.base` of ul's resnets, for row r
    next: Any = None  # NextCache, None at the coarsest level


class NextCache(NamedTuple):
    """The sampler's cache of all levels below one."""

    down_base: Float[Array, "w B D"]  # `Conv.base` of the strided convolution of ul
    up_u: Float[Array, "2 W B D"]  # the two rows of u that the transposed convolution made of the next level's last row
    up_ul: Float[Array, "w 2 2 B D"]  # the 2 x 2 pixels (row, column) of ul that it made of each of the next level's last pixels
    level: LevelCache


class Column(NamedTuple):
    """What a pixel writes into the cache of a level and of the levels below: one column of the arrays of stream ul."""

    ul: Float[Array, "S B D"]
    up: Any = None  # [2, 2, B, D], None at the coarsest level
    next: Any = None  # Column


class Cache(NamedTuple):
    """The sampler's cache while pixel (r, c) is drawn."""

    network: Any  # the model's modules, packed (see `weight_norm.packed`)
    label: Any  # int32 [B] or None
    pixels: Float[Array, "W B C"]  # row r-1 and its channel of ones; zeros for r = 0
    base: Float[Array, "W B D"]  # terms of row r-1 in ul_0
    level: LevelCache


def init_level(config: PixelCNNPPConfig, level: Level, columns: int, n: int, dtype) -> LevelCache:
    """The cache of a level and of all levels below before anything is drawn: zeros, as outside the image."""
    width, inputs = config.width, 2 * level.blocks + (0 if level.coarsest else 1)

    def empty(*shape):
        return jnp.zeros((*shape, n, width), dtype)

    following = None
    if not level.coarsest:
        half = (columns + 1) // 2
        following = NextCache(empty(half), empty(2, columns), empty(half, 2, 2), init_level(config, level.below, half, n, dtype))
    return LevelCache(empty(inputs, columns), empty(columns, inputs), jnp.zeros((columns, level.blocks, n, 3 * width), dtype), following)


def row_of_level(level: Level, cache: LevelCache, u: Float[Array, "W B D"], r, label) -> tuple[Array, LevelCache]:
    """Row r of u at this level, and the level's cache with all fields but ul and up_ul set for row r."""
    inputs, bases, following = [None] * cache.u.shape[0], [], cache.next

    def block(i, layer, u, skip):
        y, inputs[2 * i : 2 * i + 2] = layer.u.row(cache.u[2 * i : 2 * i + 2], u, skip, label)
        bases.append(layer.ul.base((cache.ul[:, 2 * i], cache.ul[:, 2 * i + 1]), y, label))
        return y

    def below(u):
        nonlocal following
        inputs[-1] = u
        following = jax.lax.cond(r % 2 == 0, lambda: row_below(level, cache, u, r // 2, label), lambda: cache.next)
        return at(following.up_u, r % 2)

    u = level.walk(u, block, below)
    return u, cache._replace(u=jnp.stack(inputs), base=jnp.stack(bases, axis=1), next=following)


def row_below(level: Level, cache: LevelCache, u: Float[Array, "W B D"], r, label) -> NextCache:
    """The cache of the next level for its row r, from row 2r of u at this level."""
    lower, following = row_of_level(level.below, cache.next.level, level.down_u.row(cache.u[-1], u), r, label)
    return NextCache(level.down_ul.base(cache.ul[:, -1]), level.up_u.row(lower, u.shape[0]), cache.next.up_ul, following)


def pixel_of_level(level: Level, cache: LevelCache, here: Column, x: Float[Array, "B D"], r, c) -> tuple[Array, Column]:
    """Pixel (r, c) of ul at this level, and the column to write into the cache; `here` is the old one, from `read_column`.

    The cache is an argument of the `cond` inside but not one of its results: returned from a branch it would be copied.
    """
    inputs, up, following = [None] * here.ul.shape[0], here.up, here.next
    base, left = at(cache.base, c), at(cache.ul, jnp.maximum(c - 1, 0)) * (c > 0).astype(x.dtype)

    def block(i, layer, x, skip):
        y, inputs[2 * i : 2 * i + 2] = layer.ul.pixel(base[i], left[2 * i : 2 * i + 2], x, skip)
        return y

    def pixel_below(x):
        y = at(cache.next.down_base, c // 2) + level.down_ul.pixel(left[-1], x)
        y, column = pixel_of_level(level.below, cache.next.level, here.next, y, r // 2, c // 2)
        return level.up_ul.row(y[None], 2), column

    def below(x):
        nonlocal up, following
        inputs[-1] = x
        up, following = jax.lax.cond((r % 2 == 0) & (c % 2 == 0), pixel_below, lambda x: (here.up, here.next), x)
        return at(at(up, r % 2), c % 2)

    y = level.walk(x, block, below)
    return y, Column(jnp.stack(inputs), up, following)


def read_column(cache: LevelCache, c) -> Column:
    """What the caches of a level and of the levels below it hold for column c of the level's images.

    Each level below has half the width, so its part is column c // 2 of its own cache, the next one's column c // 4, and so on.
    """
    if cache.next is None:
        return Column(at(cache.ul, c))
    return Column(at(cache.ul, c), at(cache.next.up_ul, c // 2), read_column(cache.next.level, c // 2))


def write_column(cache: LevelCache, column: Column, c) -> LevelCache:
    """The cache with this column written at c (c // 2 in the next level, ...); levels that were not computed get their old column."""
    cache = cache._replace(ul=put(cache.ul, column.ul, c))
    if cache.next is None:
        return cache
    up_ul, level = put(cache.next.up_ul, column.up, c // 2), write_column(cache.next.level, column.next, c // 2)
    return cache._replace(next=cache.next._replace(up_ul=up_ul, level=level))


class PixelCNNPP(WeightNormImages):
    """The model of this file; see `AutoregressiveImages` and `WeightNormImages` for its methods.

    `logits` gives the mixture's parameters [B, H, W, P], see `DiscretizedLogisticMixture`.
    """

    def __init__(self, config: PixelCNNPPConfig, *, rngs: nnx.Rngs):
        width, channels = config.width, config.image_shape[2]
        self.config, self.head = config, DiscretizedLogisticMixture(config.levels, channels, config.mixtures)
        self.above_u, self.above_ul, self.left_ul = (WeightNorm(Conv, channels + 1, width, size, rngs) for size in ((2, 3), (1, 3), (2, 1)))
        self.level = Level(config, 0, count(), rngs)
        self.outputs = WeightNorm(Conv, width, self.head.size, (1, 1), rngs, exact=True)

    def _network(self, x: Float[Array, "B H W D"], run: Pass) -> Float[Array, "B H W P"]:
        u, above, left = (run.conv(layer, x) for layer in (self.above_u, self.above_ul, self.left_ul))
        _, ul = self.level((shift(u, 1, axis=1), shift(above, 1, axis=1) + shift(left, 1, axis=2)), run)
        return run.conv(self.outputs, jax.nn.elu(ul))

    def flops_per_image(self) -> int:
        """Two for every weight of a convolution at every pixel of its resolution, the coarser one for strided and transposed ones."""

        def of_level(level, height, width):
            here = _weights((level.down_blocks, level.up_blocks)) * height * width
            if level.coarsest:
                return here
            height, width = -(-height // 2), -(-width // 2)
            between = _weights((level.down_u, level.down_ul, level.up_u, level.up_ul)) * height * width
            return here + between + of_level(level.below, height, width)

        height, width, _ = self.config.image_shape
        ends = _weights((self.above_u, self.above_ul, self.left_ul, self.outputs)) * height * width
        return 2 * (ends + of_level(self.level, height, width))

    # The cached form for sampling: the same network, one row and one pixel at a time.

    def init_cache(self, n: int, label=None) -> Cache:
        """The cache of n images before anything is drawn."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        _, columns, channels = config.image_shape
        pixels, base = jnp.zeros((columns, n, channels + 1), dtype), jnp.zeros((columns, n, config.width), dtype)
        return Cache(packed(self, dtype), label, pixels, base, init_level(config, self.level, columns, n, dtype))

    def begin_row(self, cache: Cache, finished_row: UInt[Array, "B W C"], r) -> Cache:
        """The cache for row r from the finished row r-1: row r of u, and the terms of earlier rows in ul. For r = 0 the row is ignored."""
        network, not_first = cache.network, (r > 0).astype(cache.base.dtype)
        x = self._pixels(finished_row.swapaxes(0, 1), cache.base.dtype) * not_first
        u = network.above_u.row(cache.pixels, x) * not_first
        above = add_bias(network.above_ul.tap(x, 0), network.above_ul.bias) * not_first
        base = above + shift(network.left_ul.base(x), 1, axis=0)
        _, level = row_of_level(network.level, cache.level, u, r, cache.label)
        return cache._replace(pixels=x, base=base, level=level)

    def step(self, cache: Cache, previous_pixel: UInt[Array, "B C"], r, c) -> tuple[Cache, Float[Array, "B P"]]:
        """Parameters of pixel (r, c), given the pixel to its left (ignored in column 0)."""
        network = cache.network
        left = self._pixels(previous_pixel, cache.base.dtype) * (c > 0).astype(cache.base.dtype)
        x = at(cache.base, c) + dot(left, network.left_ul.kernel[1, 0])
        ul, column = pixel_of_level(network.level, cache.level, read_column(cache.level, c), x, r, c)
        parameters = network.outputs(jax.nn.elu(ul))
        return cache._replace(level=write_column(cache.level, column, c)), parameters


def _weights(modules) -> int:
    """The number of weights of all convolutions."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(modules, nnx.Param)) if leaf.ndim == 4)
