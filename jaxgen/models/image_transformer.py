"""Image Transformer: self-attention over the positions generated before, within local blocks or over all of them.

    p(x) = prod_i p(x_i | x_<i)  in the generation order of layers/attention.py

Categorical head: a place of the order is one channel of a pixel, the channels of a pixel one after the other; vector(x) is row x of a table
with V rows, one table for each channel. Mixture head (discretized logistics): a place is a pixel; vector(x) is a linear map of its C
channels on [-1, 1]. For every place i, with row r_i, column c_i and channel k_i (categorical head only):

    q_i  = vector(x_{i-1}) + row(r_i) + column(c_i) + channel(k_i) + label(y)        the value is that of the place before, 0 for i = 0
    a    = LN(q + drop(attention(q, memory block)))                                  place i attends to places up to i
    a    = LN(a + drop(attention(a, encoded small image)))                           super-resolution only
    q'   = LN(a + drop(W1 relu(W2 a + b2) + b1))                                     the q of the next layer
    parameters = W q' + b after the last layer

LN is layer normalisation, drop is dropout. Super-resolution: an encoder of the same layers, with attention from every place to every place
and without the second attention, is applied to the small image, and its last layer is what every layer of the decoder attends to. In
`log_prob` and `loss` the small image is by default the `box_filter` of the true image, so that they are of p(image | small image).

Parmar, Vaswani, Uszkoreit, Kaiser, Shazeer, Ku, Tran 2018, "Image Transformer". Departures: learned vectors for row, column and channel,
added, where the paper concatenates sines and cosines; attention has an output matrix W_o, as in the authors' code.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Integer, UInt

from jaxgen.checks import check_image_config, check_images
from jaxgen.data.features import OfImages, box_filter
from jaxgen.distributions import pixel_head
from jaxgen.errors import ConfigError
from jaxgen.layers.attention import Attention, Blocks, Memory, make_blocks, scan_in_blocks
from jaxgen.layers.autoregressive import AutoregressiveImages
from jaxgen.layers.convolutions import (
    add_bias,
    dot,
    dropout,
    embed,
    normal,
    scale_pixels,
    shift,
    zeros,
)
from jaxgen.layers.growing_caches import quarters, scan_in_parts
from jaxgen.layers.logistic_mixture import DiscretizedLogisticMixture
from jaxgen.layers.transformer import LayerNorm
from jaxgen.sampling import in_order


@dataclass(frozen=True)
class ImageTransformerConfig(OfImages):
    """Sizes of an Image Transformer. Raises ConfigError for sizes out of range or that do not fit each other.

    Local attention: block and memory are (l_q,) and (l_m,) for 1-D, in places; (h_q, w_q) and (h_m, w_m) for 2-D, in pixels.
    """

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    # what a channel is drawn from: a categorical distribution, or a mixture of logistics
    head: Literal["categorical", "mixture"] = "categorical"
    block: tuple[int, ...] = ()  # size of a query block of local attention; (): full causal attention
    memory: tuple[int, ...] = ()  # size of what a query block attends to beside itself; (): full causal attention
    layers: int = 12  # decoder layers
    width: int = 512  # features of a place
    heads: int = 4  # attention heads, a divisor of width
    hidden: int = 2048  # inner width of the feed-forward layers
    mixtures: int = 10  # number of logistics, for the mixture head only
    # (h, w, C) of the small image for super-resolution, h and w divisors of H and W; None: no small image
    low_resolution: tuple[int, int, int] | None = None
    encoder_layers: int = 4  # layers of the small image's encoder
    dropout: float = 0.3  # probability with which a feature is set to 0 in training
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations; parameters and likelihoods are float32

    def __post_init__(self):
        check_image_config(self, dict.fromkeys(("layers", "width", "heads", "hidden", "mixtures", "encoder_layers"), 1))
        height, width, channels = self.image_shape
        if self.width % self.heads:
            raise ConfigError("width", f"a multiple of the {self.heads} heads", self.width)
        if len(self.block) > 2 or any(size < 1 for size in self.block):
            raise ConfigError("block", "(), (l_q,) or (h_q, w_q), all positive", self.block)
        if len(self.memory) != len(self.block) or any(size < 0 for size in self.memory):
            raise ConfigError("memory", f"{len(self.block)} numbers of 0 or more, one for each of block", self.memory)
        small = self.low_resolution
        if small is not None and (min(small) < 1 or height % small[0] or width % small[1] or small[2] != channels):
            raise ConfigError("low_resolution", f"(h, w, {channels}) with h and w divisors of {height} and {width}", small)

    @classmethod
    def comparison(cls) -> "ImageTransformerConfig":
        """The size of speed comparisons: 28 x 28 binary images, 8 layers of width 64, two heads, full causal attention."""
        return cls(image_shape=(28, 28, 1), levels=2, layers=8, width=64, heads=2, hidden=256, dropout=0.0)

    @classmethod
    def comparison_local(cls) -> "ImageTransformerConfig":
        """The same images, the paper's 12 layers, 4 heads and 1-D blocks at width 64."""
        sizes = {"layers": 12, "width": 64, "heads": 4, "hidden": 256, "block": (256,), "memory": (256,)}
        return cls(image_shape=(28, 28, 1), levels=2, dropout=0.0, **sizes)


class Layer(nnx.Module):
    """One layer of the equations; source: with the second attention."""

    def __init__(self, config: ImageTransformerConfig, source: bool, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden
        self.attention = Attention(width, config.heads, rngs)
        self.source = Attention(width, config.heads, rngs) if source else None
        self.inner, self.inner_bias = normal(rngs, (width, hidden), width / 2), zeros((hidden,))
        self.outer, self.outer_bias = normal(rngs, (hidden, width), hidden), zeros((width,))
        self.norms = nnx.List([LayerNorm(width) for _ in range(3 if source else 2)])
        self.dropout = config.dropout

    def after(self, x: Float[Array, "B L D"], attended: Float[Array, "B L D"], encoded=None, key=None) -> Float[Array, "B L D"]:
        """q' from x = q, `attended` = attention(q), and for the second attention `encoded` = `Attention.encode` of the small image."""

        def add(i, x, y):
            y = dropout(y, self.dropout, jax.random.fold_in(key, i)) if key is not None and self.dropout > 0 else y
            return self.norms[i](x + y)

        a = add(0, x, attended)
        a = add(2, a, self.source.read(a, encoded)) if self.source is not None else a
        inner = jax.nn.relu(add_bias(dot(a, self.inner[...]), self.inner_bias[...]))
        return add(1, a, add_bias(dot(inner, self.outer[...]), self.outer_bias[...]))


class Embedding(nnx.Module):
    """vector, row, column and channel of the equations; drawn with variance 1 (the first) and 1/4 (the others)."""

    def __init__(self, config: ImageTransformerConfig, image_shape: tuple[int, int, int], channelwise: bool, rngs: nnx.Rngs):
        height, width, channels = image_shape
        self.levels, self.channelwise = config.levels, channelwise
        rows, fan_in = (channels * config.levels, 1) if channelwise else (channels, channels)
        self.values = normal(rngs, (rows, config.width), fan_in)
        self.rows, self.columns = (normal(rngs, (size, config.width), 4) for size in (height, width))
        self.channels = normal(rngs, (channels, config.width), 4) if channelwise else None

    def of_values(self, x: UInt[Array, "B L C"], k: Int[Any, " L"], dtype) -> Float[Array, "B L D"]:
        """vector(x): of channel k of a pixel, x [B, L, 1], or of whole pixels, x [B, L, C]."""
        if self.channelwise:
            return self.values[...][x[..., 0].astype(jnp.int32) + self.levels * jnp.asarray(k)[None]].astype(dtype)
        return dot(scale_pixels(x, self.levels, dtype), self.values[...])

    def of_places(self, order: Integer[Any, "L 3"], dtype) -> Float[Array, "L D"]:
        """row(r) + column(c) + channel(k) of places (r, c, k)."""
        y = self.rows[...][order[:, 0]] + self.columns[...][order[:, 1]]
        return (y + self.channels[...][order[:, 2]] if self.channelwise else y).astype(dtype)


class Condition(NamedTuple):
    """What the image is drawn given."""

    label: Any  # int32 [B], or float32 [B, num_classes]; None for an unconditional model
    low_resolution: Any  # integers [B, h, w, C], None without super-resolution


class Cache(NamedTuple):
    """The sampler's cache; `memories` and `encoded` have one entry for each layer."""

    memories: tuple[Memory, ...]
    encoded: tuple  # (keys, values) of the small image, [B, heads, S, d] each; None without super-resolution
    label: Any  # label(y), [B, 1, D], or None


def in_sequence(image: UInt[Array, "B H W C"], order: np.ndarray, channelwise: bool) -> UInt[Array, "B N c"]:
    """The values of an image in generation order: one channel for each place, c = 1, or whole pixels, c = C."""
    r, c, k = order.T
    return image[:, r, c, k][..., None] if channelwise else image[:, r, c]


class ImageTransformer(AutoregressiveImages):
    """The model of this file; see `AutoregressiveImages` for its methods.

    For super-resolution each takes `low_resolution=`, the small images [B, h, w, C], or one [h, w, C] for all; `sample` needs it.
    """

    def __init__(self, config: ImageTransformerConfig, *, rngs: nnx.Rngs):
        self.config, channels = config, config.image_shape[2]
        mixture = DiscretizedLogisticMixture(config.levels, channels, config.mixtures)
        self.head = pixel_head(config.levels) if config.head == "categorical" else mixture
        self.embedding = Embedding(config, config.image_shape, self.head.channelwise, rngs)
        self.label = normal(rngs, (config.num_classes, config.width), 4) if config.num_classes else None
        small = config.low_resolution
        self.layers = nnx.List([Layer(config, small is not None, rngs) for _ in range(config.layers)])
        self.small = Embedding(config, small, self.head.channelwise, rngs) if small else None
        self.encoder = nnx.List([Layer(config, False, rngs) for _ in range(config.encoder_layers if small else 0)])
        self.outputs = normal(rngs, (config.width, self.head.size), config.width)
        self.outputs_bias = zeros((self.head.size,))

    @property
    def blocks(self) -> Blocks:
        """The generation order and its blocks."""
        height, width, channels = self.config.image_shape
        return make_blocks(height, width, channels if self.head.channelwise else 1, self.config.block, self.config.memory)

    @property
    def order(self) -> Int[np.ndarray, "N A"]:
        """(r, c, k) of every place, or (r, c) for the mixture head."""
        return self.blocks.order[:, : 2 + self.head.channelwise]

    def condition(self, batch: int, label=None, image=None, low_resolution=None, **given) -> Condition:
        """The label and the small image, checked; without a small image it is the box filter of `image`.

        Raises ConfigError where they do not fit the config, and where there is neither a small nor a true image.
        """
        label, shape = super().condition(batch, label, image, **given), self.config.low_resolution
        if shape is None:
            if low_resolution is not None:
                raise ConfigError("low_resolution", "None (the config has low_resolution=None)", list(np.shape(low_resolution)))
            return Condition(label, None)
        if low_resolution is None and image is None:
            wanted = f"{self.head.dtype} [{batch}, {', '.join(map(str, shape))}]"
            raise ConfigError("low_resolution", wanted, "None", "jaxgen upscale has it")
        small = box_filter(image, shape) if low_resolution is None else low_resolution
        small = jnp.broadcast_to(jnp.asarray(small), (batch, *shape)) if np.shape(small) == shape else small
        small = check_images(small, shape, self.config.levels, "low_resolution")
        if small.shape[0] != batch:
            raise ConfigError("low_resolution", f"{batch} images", small.shape[0])
        return Condition(label, small)

    def _logits(self, image: UInt[Array, "B H W C"], condition: Condition, key=None) -> Float[Array, "B H W ..."]:
        blocks, dtype = self.blocks, self.config.dtype
        keys = [None if key is None else jax.random.fold_in(key, i) for i in range(len(self.layers) + 1)]
        sequence = in_sequence(image, blocks.order, self.head.channelwise)
        x = shift(self.embedding.of_values(sequence, blocks.order[:, 2], dtype), 1, axis=1)
        x = x + self.embedding.of_places(blocks.order, dtype)[None]
        x = x if self.label is None else x + self._label_vector(condition)
        encoded = self._encode(condition, keys[-1])
        for layer, source, layer_key in zip(self.layers, encoded, keys[:-1], strict=True):
            x = layer.after(x, layer.attention(x, blocks), source, layer_key)
        in_raster_order = np.lexsort(blocks.order.T[::-1])
        parameters = self._parameters(x)[:, in_raster_order]
        return parameters.reshape(*image.shape[: 3 + self.head.channelwise], -1)

    def flops_per_image(self) -> int:
        """Two for every weight of a matrix at every place, and for every feature of every key and value that a place attends to.

        The encoder counts once an image. Looking up vectors counts nothing.
        """
        config, blocks = self.config, self.blocks
        places, width = len(blocks.order), config.width
        small = np.prod(config.low_resolution[: 2 + self.head.channelwise], dtype=int) if self.small is not None else 0

        def weights(modules):
            return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(modules, nnx.Param)) if leaf.ndim == 2)

        sources = sum(weights(layer.source) for layer in self.layers if layer.source is not None)
        decoder = (weights((self.layers, self.outputs)) - sources // 2) * places + sources // 2 * small
        attended = 2 * width * (len(self.layers) * (int(blocks.allowed.sum()) + places * small) + len(self.encoder) * small * small)
        return 2 * (decoder + weights(self.encoder) * small + attended)

    def _label_vector(self, condition: Condition) -> Float[Array, "B 1 D"]:
        return embed(self.label[...], condition.label)[:, None].astype(self.config.dtype)

    def _parameters(self, x: Float[Array, "B L D"]) -> Float[Array, "B L P"]:
        return add_bias(dot(x, self.outputs[...], jnp.float32), self.outputs_bias[...])

    def _encode(self, condition: Condition, key=None) -> tuple:
        """For every layer the keys and values of the encoded small image; None for each without super-resolution."""
        if self.small is None:
            return (None,) * len(self.layers)
        depth = self.config.image_shape[2] if self.head.channelwise else 1
        order = make_blocks(*self.config.low_resolution[:2], depth, (), ()).order
        sequence, dtype = in_sequence(condition.low_resolution, order, self.head.channelwise), self.config.dtype
        x = self.small.of_values(sequence, order[:, 2], dtype) + self.small.of_places(order, dtype)[None]
        for i, layer in enumerate(self.encoder):
            x = layer.after(x, layer.attention.read(x, layer.attention.encode(x)), key=None if key is None else jax.random.fold_in(key, i))
        return tuple(layer.source.encode(x) for layer in self.layers)

    # The cached form for sampling: the same network, one place of the generation order at a time.

    def init_cache(self, n: int, condition: Condition) -> Cache:
        """The cache of n images before anything is drawn."""
        memories = tuple(layer.attention.init_memory(n, self.blocks, self.config.dtype) for layer in self.layers)
        return Cache(memories, self._encode(condition), None if self.label is None else self._label_vector(condition))

    @property
    def rooms(self) -> tuple[int, ...]:
        """For one block: the ends of the parts of the sampler's loop over places, for `scan_in_parts`; () for several blocks.

        A step multiplies with all keys in its memory block, so in each part that has room only for the places up to the part's end.
        """
        return quarters(len(self.blocks.order)) if len(self.blocks.query) == 1 else ()

    @property
    def ends(self) -> tuple[int, ...]:
        """For several blocks: the place after the last of each block, for `scan_in_blocks`; () for one block."""
        return tuple(self.blocks.ends.tolist()) if len(self.blocks.query) > 1 else ()

    def _draw_cached(self, draw, condition, image, mask, rows):
        if self.ends:
            loop, step = partial(scan_in_blocks, ends=self.ends, begin_block=self.begin_block), self.step_in_block
        else:
            loop, step = partial(scan_in_parts, ends=self.rooms, fit=self.fit), self.step
        # On a CPU a step with attention for one image takes four times as long as for two.
        return in_order(self, draw, condition, image, mask, rows, loop, step, least=2)

    def fit(self, cache: Cache, places: int) -> Cache:
        """The cache with memory blocks cut or filled up with zeros to `places` places."""
        return cache._replace(memories=tuple(memory.fit(places) for memory in cache.memories))

    def step(self, cache: Cache, previous: UInt[Array, "B c"], i) -> tuple[Cache, Float[Array, "B P"]]:
        """Parameters of place i, given what was drawn at place i-1 (ignored at place 0): one channel, or a whole pixel."""
        if not self.ends:
            return self.step_in_block(cache, previous, i)
        b = jnp.asarray(self.blocks.number)[i]
        begins = i == jnp.asarray(self.blocks.query)[b, 0]
        return self.step_in_block(jax.lax.cond(begins, self.begin_block, lambda cache, b: cache, cache, b), previous, i)

    def begin_block(self, cache: Cache, b) -> Cache:
        """The cache for block b when all blocks before it are finished: its memory block filled from the keys and values of all places."""
        places = jnp.asarray(self.blocks.memory)[b]
        return cache._replace(memories=tuple(memory.gather(places) for memory in cache.memories))

    def step_in_block(self, cache: Cache, previous: UInt[Array, "B c"], i) -> tuple[Cache, Float[Array, "B P"]]:
        """`step` for the places of a block that `begin_block` has begun."""
        blocks, dtype = self.blocks, self.config.dtype
        order, slot = jnp.asarray(blocks.order), jnp.asarray(blocks.slot)[i]
        x = self.embedding.of_values(previous[:, None], order[i - 1, 2][None], dtype) * (i > 0).astype(dtype)
        x = x + self.embedding.of_places(order[i][None], dtype)[None]
        x = x if cache.label is None else x + cache.label
        memories = []
        for layer, memory, source in zip(self.layers, cache.memories, cache.encoded, strict=True):
            memory, attended = layer.attention.step(x[:, 0], memory, slot, i)
            x = layer.after(x, attended[:, None], source)
            memories.append(memory)
        return cache._replace(memories=tuple(memories)), self._parameters(x)[:, 0]
