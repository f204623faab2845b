"""PixelSNAIL: blocks of gated residual convolutions followed by causal attention over all earlier pixels, at full resolution.

    p(x) = prod_i p(x_i | x_<i),  x_i a pixel with all its channels; its parameters depend on no channel of x_i

x is scaled to [-1, 1], in the first line with a channel of ones; pos = ((r - H/2) / H, (c - W/2) / W); p, q: pixels in raster order:

    h       = down_shift(conv_1x3 x) + right_shift(conv_2x1 x)                      as in PixelCNN++
    block:  r = resnets(h)                                                          2 x 2 kernels: rows above and the pixels to the left
            K, V = nin(resnet([x, r, pos])),  Q = nin(resnet([r, pos]))             1 x 1
            o_p  = sum_{q<p} softmax_q(Q_p . K_q / sqrt d) V_q,  o_0 = 0            q < p, not q <= p: K_p, V_p depend on x_p
            h    = resnet(r, o)                                                     1 x 1, o its shortcut
    parameters = nin(elu h)

resnet(x, a) is that of gated_resnet.py, weight-normalised; the 2 x 2 ones have the label's embedding. The distribution of a pixel is a
mixture of discretized logistics; for one channel of at most 32 levels it is a Bernoulli variable or a softmax. With `unordered` x is a
learned vector for each value instead, and the distribution a softmax for any number of levels.

Sampling: `begin_row` computes the terms of the row above in the 2 x 2 convolutions, for all columns at once; `step` the rest of one pixel.
K and V of pixel p - 1 need its value, so the step of pixel p computes them first, then attends to the pixels before p.

Chen, Mishra, Rohaninejad, Abbeel 2017, "PixelSNAIL: An Improved Autoregressive Generative Model", and the authors' code. Departure: with
`light=True` f is elu instead of cat_elu, and K, V = nin([x, r, pos]), Q = nin([r, pos]) without resnets: about half the products, for the
speed comparison.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt

from jaxgen.checks import check_image_config
from jaxgen.data.features import OfImages
from jaxgen.distributions import pixel_head
from jaxgen.layers.attention import attend_before, causal_attention
from jaxgen.layers.autoregressive import check_unordered, value_vectors
from jaxgen.layers.convolutions import add_bias, at, dot, put, shift
from jaxgen.layers.gated_resnet import Pass, PushingResnet, Resnet, WeightNormImages
from jaxgen.layers.growing_caches import quarters, resize, scan_in_parts
from jaxgen.layers.logistic_mixture import DiscretizedLogisticMixture
from jaxgen.layers.weight_norm import Conv, WeightNorm, packed
from jaxgen.sampling import by_rows

SOFTMAX_LEVELS = 32
"""Images of one channel with at most this many levels have a Bernoulli or Categorical head, as unordered ones of any number; all others
the mixture."""


@dataclass(frozen=True)
class PixelSNAILConfig(OfImages):
    """Sizes of a PixelSNAIL. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    blocks: int = 12  # blocks of resnets with attention
    width: int = 256  # features of a pixel
    resnets: int = 4  # 2 x 2 resnets of a block
    key: int = 16  # size of a key of the single attention head
    value: int = 128  # size of a value of the single attention head
    mixtures: int = 10  # number of logistics of the output (three channels, or more than 32 levels)
    light: bool = False  # half the products: elu for cat_elu; keys, values and queries without residual blocks
    unordered: bool = False  # the values of a pixel are names, such as codes: each is read as a learned vector; one channel only
    dropout: float = 0.5  # probability with which a feature is set to 0 in training
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations; parameters and likelihoods are float32

    def __post_init__(self):
        check_image_config(self, dict.fromkeys(("blocks", "width", "resnets", "key", "value", "mixtures"), 1))
        check_unordered(self)

    @property
    def inputs(self) -> int:
        """C: the numbers by which a pixel is read."""
        return min(self.levels, self.width) if self.unordered else self.image_shape[2]

    @classmethod
    def comparison(cls) -> "PixelSNAILConfig":
        """The size of speed comparisons: 28 x 28 binary images, 8 light blocks of width 64, 2 residual blocks each."""
        sizes = {"blocks": 8, "width": 64, "resnets": 2, "key": 4, "value": 32}
        return cls(image_shape=(28, 28, 1), levels=2, light=True, dropout=0.0, **sizes)


class Block(nnx.Module):
    """One block of the equations: h' from x, h and pos."""

    def __init__(self, config: PixelSNAILConfig, index: int, rngs: nnx.Rngs):
        width, first = config.width, index * (config.resnets + 3)
        content, asking = width + config.inputs + 2, width + 2
        common = {"dropout": config.dropout, "plain": config.light}
        self.resnets = nnx.List(
            [Resnet(width, (2, 2), rngs, classes=config.num_classes, index=first + i, **common) for i in range(config.resnets)]
        )
        indices = [first + config.resnets + i for i in range(3)]
        self.content = None if config.light else Resnet(content, (1, 1), rngs, index=indices[0], **common)
        self.asking = None if config.light else Resnet(asking, (1, 1), rngs, index=indices[1], **common)
        self.key_value = WeightNorm(Conv, content, config.key + config.value, (1, 1), rngs)
        self.query = WeightNorm(Conv, asking, config.key, (1, 1), rngs)
        self.join = Resnet(width, (1, 1), rngs, auxiliary=config.value, index=indices[2], **common)
        self.key = config.key

    def keys_values(self, x: Float[Array, "*shape C"], r: Float[Array, "*shape D"], pos: Float[Array, "*shape 2"], run: Pass) -> tuple:
        """K and V at positions of any shape."""
        y = jnp.concatenate([x, r, pos], axis=-1)
        y = run.conv(self.key_value, y if self.content is None else self.content(y, [], run))
        return y[..., : self.key], y[..., self.key :]

    def queries(self, r: Float[Array, "*shape D"], pos: Float[Array, "*shape 2"], run: Pass) -> Float[Array, "*shape d"]:
        """Q at positions of any shape."""
        y = jnp.concatenate([r, pos], axis=-1)
        return run.conv(self.query, y if self.asking is None else self.asking(y, [], run))

    def __call__(self, x: Float[Array, "B H W C"], h: Float[Array, "B H W D"], pos: Float[Array, "B H W 2"], run: Pass):
        """h' of whole images, [B, H, W, D]."""
        for resnet in self.resnets:
            h = resnet(h, [], run)
        attended = [*self.keys_values(x, h, pos, run), self.queries(h, pos, run)]
        key, value, query = (y.reshape(y.shape[0], -1, y.shape[-1]) for y in attended)
        return self.join(h, [causal_attention(query, key, value).reshape(*h.shape[:3], -1)], run)


class BlockCache(NamedTuple):
    """The sampler's cache of a block while pixel (r, c) is drawn: R resnets, W columns, B images, D = width, F = 2D (light: D).

    N = H W, or while only some rows are drawn the places of those, see `PixelSNAIL.rooms`.
    """

    inputs: Float[Array, "W R B 2F"]  # [f(x), f(c)] of each resnet, of row r in the columns before c, of row r-1 in the others
    base: Float[Array, "W R B 3D"]  # `base` of each `PushingResnet`, for row r
    waiting: Float[Array, "R B 3D"]  # `waiting` of each `PushingResnet`
    features: Float[Array, "B D"]  # r of the equations, of the pixel before
    key: Float[Array, "B d N"]
    value: Float[Array, "B N E"]


class Cache(NamedTuple):
    """The sampler's cache while pixel (r, c) is drawn."""

    network: Any  # the model's modules, packed (see `weight_norm.packed`)
    resnets: tuple  # for each block a tuple of PushingResnets
    label: Any  # int32 [B] or None
    last: UInt[Array, "B C"]  # the last pixel of row r-1
    base: Float[Array, "W B D"]  # terms of row r-1 in the first h
    blocks: tuple[BlockCache, ...]


class PixelSNAIL(WeightNormImages):
    """The model of this file; see `AutoregressiveImages` and `WeightNormImages` for its methods.

    `logits` gives [B, H, W, P] with the mixture, one set of parameters for a pixel, and [B, H, W, 1, P] with a discrete head.
    """

    def __init__(self, config: PixelSNAILConfig, *, rngs: nnx.Rngs):
        width, channels = config.width, config.image_shape[2]
        few = channels == 1 and (config.unordered or config.levels <= SOFTMAX_LEVELS)
        head = pixel_head(config.levels) if few else DiscretizedLogisticMixture(config.levels, channels, config.mixtures)
        self.config, self.head = config, head
        self.values = value_vectors(config, rngs)
        self.above, self.left = (WeightNorm(Conv, config.inputs + 1, width, size, rngs) for size in ((1, 3), (2, 1)))
        self.blocks = nnx.List([Block(config, i, rngs) for i in range(config.blocks)])
        self.outputs = WeightNorm(Conv, width, head.size, (1, 1), rngs, exact=True)

    def flops_per_image(self) -> int:
        """Two for every weight of a convolution at every pixel, and for every number of K_q and V_q, q < p, at every pixel p."""
        (height, width, _), config = self.config.image_shape, self.config
        places = height * width
        weights = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self, nnx.Param)) if leaf.ndim == 4)
        return 2 * (weights * places + config.blocks * (config.key + config.value) * places * (places - 1) // 2)

    def _position(self, r, c, dtype) -> Float[Array, "... 2"]:
        """pos of row r and column c, each in [-1/2, 1/2)."""
        height, width, _ = self.config.image_shape
        scaled = [(i.astype(jnp.float32) - n / 2) / n for i, n in ((r, height), (c, width))]
        return jnp.stack(scaled, axis=-1).astype(dtype)

    def _pixels(self, image: UInt[Array, "*shape C"], dtype) -> Float[Array, "*shape D"]:
        """x, and a channel of ones."""
        if self.values is None:
            return super()._pixels(image, dtype)
        x = self.values[...][image[..., 0].astype(jnp.int32)].astype(dtype)
        return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)

    def _network(self, x: Float[Array, "B H W D"], run: Pass) -> Float[Array, "B H W ..."]:
        batch, height, width, _ = x.shape
        pos = self._position(*jnp.mgrid[:height, :width], x.dtype)
        pos = jnp.broadcast_to(pos[None], (batch, *pos.shape))
        h = shift(run.conv(self.above, x), 1, axis=1) + shift(run.conv(self.left, x), 1, axis=2)
        for block in self.blocks:
            h = block(x[..., :-1], h, pos, run)
        parameters = run.conv(self.outputs, jax.nn.elu(h))
        return parameters[..., None, :] if self.head.channelwise else parameters

    # The cached form for sampling: the same network, one row and one pixel at a time.

    def init_cache(self, n: int, label=None) -> Cache:
        """The cache of n images before anything is drawn: zeros, as outside the image."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        height, columns, channels = config.image_shape

        def block():
            resnets, factor = (columns, config.resnets, n), 2 if config.light else 4
            shapes = (*resnets, factor * config.width), (*resnets, 3 * config.width), (*resnets[1:], 3 * config.width), (n, config.width)
            pasts = (n, config.key, height * columns), (n, height * columns, config.value)
            return BlockCache(*(jnp.zeros(shape, dtype) for shape in (*shapes, *pasts)))

        network = packed(self, dtype)
        resnets = tuple(tuple(PushingResnet.of(resnet) for resnet in block.resnets) for block in network.blocks)
        base, last = jnp.zeros((columns, n, config.width), dtype), jnp.zeros((n, channels), self.head.dtype)
        return Cache(network, resnets, label, last, base, tuple(block() for _ in range(config.blocks)))

    @property
    def rooms(self) -> tuple[int, ...]:
        """The rows at which parts of the sampler's loop over rows end, for `scan_in_parts`; see `fit`.

        A step multiplies with all keys in the cache, also those of pixels not yet drawn. So in each part the arrays of keys and values
        have room only for the rows up to its end; a part has about a quarter of all pixels.
        """
        height, width, _ = self.config.image_shape
        return tuple(sorted({-(-places // width) for places in quarters(height * width)}))

    def fit(self, cache: Cache, rows: int) -> Cache:
        """The cache with keys and values cut or filled up with zeros to the pixels of the first `rows` rows."""
        places = rows * self.config.image_shape[1]
        blocks = (b._replace(key=resize(b.key, places, axis=2), value=resize(b.value, places, axis=1)) for b in cache.blocks)
        return cache._replace(blocks=tuple(blocks))

    def _draw_cached(self, draw, condition, image, mask, rows):
        return by_rows(self, draw, condition, image, mask, rows, loop=partial(scan_in_parts, ends=self.rooms, fit=self.fit))

    def begin_row(self, cache: Cache, finished_row: UInt[Array, "B W C"], r) -> Cache:
        """The cache for row r from the finished row r-1: its terms in all 2 x 2 convolutions. For r = 0 `finished_row` is ignored."""
        network, not_first = cache.network, (r > 0).astype(cache.base.dtype)
        x = self._pixels(finished_row.swapaxes(0, 1), cache.base.dtype) * not_first
        above = add_bias(network.above.tap(x, 0), network.above.bias) * not_first
        base = above + shift(network.left.base(x), 1, axis=0)
        blocks = []
        for resnets, state in zip(cache.resnets, cache.blocks, strict=True):
            base_of = [resnet.base(state.inputs[:, i], cache.label) for i, resnet in enumerate(resnets)]
            blocks.append(state._replace(base=jnp.stack(base_of, axis=1), waiting=jnp.zeros_like(state.waiting)))
        return cache._replace(last=finished_row[:, -1], base=base, blocks=tuple(blocks))

    def step(self, cache: Cache, previous_pixel: UInt[Array, "B C"], r, c) -> tuple[Cache, Float[Array, "B P"]]:
        """Parameters of pixel (r, c), given the pixel to its left (ignored in column 0, where the pixel before is `cache.last`)."""
        network, dtype, width = cache.network, cache.base.dtype, self.config.image_shape[1]
        left = self._pixels(previous_pixel, dtype) * (c > 0).astype(dtype)
        x = self._pixels(jnp.where(c > 0, previous_pixel, cache.last), dtype)[:, :-1]
        p = r * width + c
        before = jnp.maximum(p - 1, 0)
        positions = [jnp.broadcast_to(self._position(i // width, i % width, dtype)[None], (x.shape[0], 2)) for i in (before, p)]
        h, blocks = at(cache.base, c) + dot(left, network.left.kernel[1, 0]), []
        for block, resnets, state in zip(network.blocks, cache.resnets, cache.blocks, strict=True):
            state, h = step_of_block(block, resnets, state, x, h, positions, p, c)
            blocks.append(state)
        parameters = network.outputs(jax.nn.elu(h))
        return cache._replace(blocks=tuple(blocks)), parameters


def step_of_block(block: Block, resnets, state: BlockCache, x, h: Float[Array, "B D"], positions, p, c) -> tuple[BlockCache, Array]:
    """h' of pixel p, in column c, and the block's new cache; x: the pixel p-1; positions: pos of p-1 and of p."""
    run, before, waiting, inputs = Pass(), jnp.maximum(p - 1, 0), [], []
    known = at(state.base, c) + state.waiting
    for i, resnet in enumerate(resnets):
        h, pushed, activated = resnet.pixel(known[i], h)
        waiting.append(pushed)
        inputs.append(activated)
    # At p = 0 there is no pixel before. What is written at index 0 then is not read, and is overwritten at p = 1.
    key, value = block.keys_values(x, state.features, positions[0], run)
    key = jax.lax.dynamic_update_index_in_dim(state.key, key, before, 2)
    value = jax.lax.dynamic_update_index_in_dim(state.value, value, before, 1)
    attended = attend_before(p, block.queries(h, positions[1], run), key, value)
    state = BlockCache(put(state.inputs, jnp.stack(inputs), c), state.base, jnp.stack(waiting), h, key, value)
    return state, block.join(h, [attended], run)
