"""Gated PixelCNN: a vertical and a horizontal stack of gated convolutions without a blind spot.

    p(x) = prod_i p(x_i | x_<i)  in raster order, within a pixel R, then G, then B.

Layer l with kernel k, m = k // 2, v_0 = h_0 = x scaled to [-1, 1], zeros outside the image:

    U_l[r, c]  = sum_{i=0..m, |j|<=m} Wv[i, j] v_l[r-m+i, c+j] + b + Vv y          vertical, this row and m above
    v_{l+1}    = tanh(U_l first half) * sigmoid(U_l second half)
    a_l[r, c]  = sum_{j=0..m} Wh[j] h_l[r, c-j] + N U_l[r-1, c] + b + Vh y          horizontal; row -1 of U is zero
    g_l        = tanh(a_l first half) * sigmoid(a_l second half)
    skip      += Ws g_l + b;    h_{l+1} = Wr g_l + b (+ h_l for l > 0)
    logits     = W1 relu(W0 relu(skip) + b) + b

Masks are by channel groups: the centre tap Wh[0] has mask A in layer 0 and B after it; Ws, Wr, W0 and W1 have mask B; N has none, since
U_l[r-1] depends on rows above r only. y is what the image is drawn given: the class, one-hot, a vector (an embedding, a caption's code) or
both concatenated; Vv y and Vh y may have terms of the pixel's own place, Vv m[r, c] and Vh m[r, c] of a feature map m (section 2.3 of the
paper). With `unordered` x is a learned vector for each value instead.

Sampling: `begin_row` computes U of row r-1 for all columns at once; `step` the horizontal stack of one pixel, two matrix products a layer.
As soon as a row (pixel) is known, one product gives its terms in the sums of the rows below (pixels to the right), and the cache keeps
these partial sums.

van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu 2016, "Conditional Image Generation with PixelCNN Decoders", section 2.
Departures: skip connections into the head, as in later implementations; dropout, if asked for; `factorized=True` replaces the vertical
(m+1) x k kernel of all layers but the first by 1 x k and (m+1) x 1 (fewer products; the speed comparison uses it).
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt

from jaxgen.checks import check_image_config, check_vector
from jaxgen.data.features import OfImages
from jaxgen.distributions import pixel_head
from jaxgen.errors import ConfigError
from jaxgen.layers.autoregressive import AutoregressiveImages, check_unordered, value_vectors
from jaxgen.layers.causal_convolutions import HorizontalConv, VerticalConv
from jaxgen.layers.convolutions import (
    add_bias,
    at,
    check_kernels_and_widths,
    dot,
    dropout,
    embed,
    gate,
    group_mask,
    halves_mask,
    normal,
    of_group,
    scale_pixels,
    shift,
    take_group,
    zeros,
)


@dataclass(frozen=True)
class GatedPixelCNNConfig(OfImages):
    """Sizes of a Gated PixelCNN. Raises ConfigError for sizes out of range, even kernels, and unless width and head_width are
    multiples of the channels.
    """

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    vector_size: int = 0  # size of the vector that an image is drawn given; 0: no vector
    layers: int = 10  # gated layers after the input layer
    width: int = 128  # features of each of the two stacks
    input_kernel: int = 7  # side of the first convolution, an odd number of pixels
    kernel: int = 3  # side of the convolutions of the gated layers, an odd number of pixels
    head_width: int = 32  # features between the last two 1 x 1 convolutions
    factorized: bool = False  # cheaper vertical convolutions, see the module's docstring
    unordered: bool = False  # the values of a pixel are names, such as codes: each is read as a learned vector; one channel only
    dropout: float = 0.0  # probability with which a feature is set to 0 in training
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations; parameters and likelihoods are float32
    grouped = ("width", "head_width")

    def __post_init__(self):
        check_image_config(self, {"vector_size": 0, "layers": 0})
        check_kernels_and_widths(self, ("input_kernel", "kernel"), smallest=1)
        check_unordered(self)

    @classmethod
    def comparison(cls) -> "GatedPixelCNNConfig":
        """The size of speed comparisons: 28 x 28 binary images, one input layer and ten gated layers of width 128."""
        return cls(image_shape=(28, 28, 1), levels=2, layers=10, width=128, head_width=32, factorized=True)


class Condition(NamedTuple):
    """The y of the equations."""

    label: Any  # int32 [B], or float32 [B, num_classes]; None if num_classes = 0
    vector: Any  # float32 [B, vector_size]; None if vector_size = 0
    feature_map: Any = None  # m, float32 [B, H, W, map_size]; None if map_size = 0


UNCONDITIONAL = Condition(None, None)


class GatedLayer(nnx.Module):
    """Layer l of both stacks: (v_l, h_l) -> (v_{l+1}, h_{l+1}, the term of skip)."""

    def __init__(self, config: GatedPixelCNNConfig, index: int, rngs: nnx.Rngs, inputs: int, map_size: int):
        first, width, groups = index == 0, config.width, config.image_shape[2]
        self.last, self.residual = index == config.layers, not first
        features_in, kernel = (inputs, config.input_kernel) if first else (width, config.kernel)
        # Not factorized for the image's few channels: it would not save products.
        self.vertical = VerticalConv(features_in, 2 * width, kernel, config.factorized and not first, rngs)
        self.link = normal(rngs, (2 * width, 2 * width), 2 * width)
        self.link_bias = zeros((2 * width,))
        self.horizontal = HorizontalConv(features_in, 2 * width, kernel, groups, "A" if first else "B", rngs)
        self.out = normal(rngs, (width, width if self.last else 2 * width), width)
        self.out_bias = zeros((self.out.shape[1],))
        # [Vv | Vh], which give one bias for every gate of both stacks.
        self.embedding = normal(rngs, (config.num_classes, 4 * width), 1.0) if config.num_classes else None
        self.vector = normal(rngs, (config.vector_size, 4 * width), config.vector_size) if config.vector_size else None
        self.map = normal(rngs, (map_size, 4 * width), map_size) if map_size else None
        self.groups, self.width, self.dropout = groups, width, config.dropout

    def masked_out(self) -> Float[Array, "D E"]:
        """[Ws | Wr] with mask B; in the last layer, which has no h', Ws only."""
        mask = group_mask if self.last else halves_mask
        return self.out[...] * mask(self.width, self.width, self.groups, "B")

    def condition(self, given: Condition) -> tuple:
        """(Vv y, Vh y), [B, 2D] each, without the terms of the map; zeros of shape [] for a model without label and vector."""
        parts = [] if self.embedding is None else [embed(self.embedding[...], given.label)]
        parts += [] if self.vector is None else [dot(given.vector, self.vector[...])]
        return tuple(jnp.split(sum(parts), 2, axis=-1)) if parts else (jnp.zeros(()), jnp.zeros(()))

    def of_map(self, x: Float[Array, "... E"]) -> tuple:
        """(Vv m, Vh m) of places x of the map, [..., 2D] each."""
        return tuple(jnp.split(dot(x, self.map[...]), 2, axis=-1))

    def __call__(self, v, h, given: Condition, key=None):
        """The whole image: (v', h', skip), [B, H, W, D] each; h' is None in the last layer. key: dropout of v' and g; None for none."""
        vertical, horizontal = (y.astype(v.dtype)[:, None, None] if y.ndim else y.astype(v.dtype) for y in self.condition(given))
        if self.map is not None:
            of_places = self.of_map(given.feature_map.astype(v.dtype))
            vertical, horizontal = vertical + of_places[0], horizontal + of_places[1]
        u = self.vertical(v) + vertical
        link = add_bias(dot(shift(u, 1, axis=1), self.link[...]), self.link_bias[...])
        v, g = gate(u), gate(self.horizontal(h) + link + horizontal)
        if key is not None and self.dropout > 0:
            v, g = (dropout(x, self.dropout, k) for x, k in zip((v, g), jax.random.split(key), strict=True))
        out = add_bias(dot(g, self.masked_out()), self.out_bias[...])
        skip = out[..., : self.width]
        if self.last:
            return v, None, skip
        return v, out[..., self.width :] + (h if self.residual else 0), skip


class Packed(NamedTuple):
    """A layer's masked weights by input group (see masked.py), and its vertical bias; computed once per call of the sampler."""

    push: Float[Array, "G d E"]  # [Wh[0] | Wh[1] | .. | Wh[m]], E = (1 + m) 2D
    out: Float[Array, "G d F"]  # [Ws | Wr]
    condition: Float[Array, "..."]  # Vv y, [B, 2D] or []


class Cache(NamedTuple):
    """The sampler's cache; tuples have one entry for each layer. W columns, B images, D = width, m = kernel // 2 of the layer."""

    packed: tuple[Packed, ...]
    head: tuple  # W0 and W1 by input group
    waiting: tuple  # [m, W, B, 2D]: partial sums of U, for the next m rows
    bias: tuple  # b + Vh y, [B, 2D] or [2D]
    link: tuple  # [W, B, 2D]: N U[r-1] + b + Vh y, r the row being drawn
    pixels: tuple  # [max(m, 1), B, 2D]: partial sums of a, for the next m pixels; they begin with `link`
    feature_map: Any  # m, rows first, [H, W, B, E]; None without a map
    sums: tuple  # partial sums within a pixel: a and Wr g of every layer, skip, W0 relu(skip), logits; () for C = 1


class GatedPixelCNN(AutoregressiveImages):
    """The model of this file; see `AutoregressiveImages` for its methods.

    Each takes `vector=`, float [B, vector_size] or [vector_size], if and only if the config has vector_size > 0. map_size: features of the
    map m in a model that is made of this one and computes m; each method then takes `feature_map=`, float [B, H, W, map_size].
    """

    def __init__(self, config: GatedPixelCNNConfig, *, rngs: nnx.Rngs, map_size: int = 0):
        self.config, self.head, self.map_size = config, pixel_head(config.levels), map_size
        channels = config.image_shape[2]
        self.values = value_vectors(config, rngs)
        inputs = channels if self.values is None else self.values.shape[1]
        self.layers = nnx.List([GatedLayer(config, i, rngs, inputs, map_size) for i in range(config.layers + 1)])
        self.hidden = normal(rngs, (config.width, config.head_width), config.width)
        self.hidden_bias = zeros((config.head_width,))
        self.outputs = normal(rngs, (config.head_width, channels * self.head.size), config.head_width)
        self.outputs_bias = zeros((channels * self.head.size,))

    def _masked_head(self):
        groups = self.config.image_shape[2]
        hidden = self.hidden[...] * group_mask(*self.hidden.shape, groups, "B")
        return hidden, self.outputs[...] * group_mask(*self.outputs.shape, groups, "B")

    def condition(self, batch: int, label=None, image=None, vector=None, feature_map=None, **given) -> Condition:
        """The label, the vector and the map, checked; a single vector is repeated for the batch. ConfigError where they do not fit."""
        shape = (batch, *self.config.image_shape[:2], self.map_size) if self.map_size else None
        if (None if feature_map is None else feature_map.shape) != shape:
            raise ConfigError("feature_map", f"shape {shape}" if shape else "None (map_size=0)", getattr(feature_map, "shape", None))
        label = super().condition(batch, label, image, **given)
        return Condition(label, check_vector(vector, self.config.vector_size, batch), feature_map)

    def _pixels(self, image: UInt[Array, "*shape C"]) -> Float[Array, "*shape E"]:
        """x of the equations: the values on [-1, 1], E = C, or the vectors of unordered values."""
        if self.values is None:
            return scale_pixels(image, self.config.levels, self.config.dtype)
        return self.values[...][image[..., 0].astype(jnp.int32)].astype(self.config.dtype)

    def _logits(self, image: UInt[Array, "B H W C"], condition: Condition, key=None) -> Float[Array, "B H W C P"]:
        v = h = self._pixels(image)
        skips = []
        for i, layer in enumerate(self.layers):
            v, h, skip = layer(v, h, condition, None if key is None else jax.random.fold_in(key, i))
            skips.append(skip)
        hidden, outputs = self._masked_head()
        z = add_bias(dot(jax.nn.relu(sum(skips)), hidden), self.hidden_bias[...])
        logits = add_bias(dot(jax.nn.relu(z), outputs, jnp.float32), self.outputs_bias[...])
        return logits.reshape(*image.shape, self.head.size)

    # The cached form for sampling: the same network, one row and one pixel at a time.

    def init_cache(self, n: int, condition: Condition = UNCONDITIONAL) -> Cache:
        """The cache of n images before anything is drawn."""
        height, width, channels = self.config.image_shape
        dtype, two = jnp.dtype(self.config.dtype), 2 * self.config.width
        packed, bias, waiting, pixels = [], [], [], []
        for layer in self.layers:
            vertical, horizontal = layer.condition(condition)
            out = layer.masked_out().astype(dtype)
            packed.append(Packed(layer.horizontal.pack(dtype), out.reshape(channels, -1, out.shape[1]), vertical.astype(dtype)))
            bias.append((add_bias(horizontal, layer.link_bias[...]) if horizontal.ndim else layer.link_bias[...]).astype(dtype))
            waiting.append(layer.vertical.init_row(width, n, dtype))
            pixels.append(jnp.zeros((max(layer.horizontal.taps, 1), n, two), dtype))
        hidden, outputs = (weight.astype(dtype) for weight in self._masked_head())
        head = hidden.reshape(channels, -1, hidden.shape[1]), outputs.reshape(channels, -1, outputs.shape[1])
        link = tuple(jnp.broadcast_to(b, (width, n, two)) for b in bias)
        feature_map = condition.feature_map
        if feature_map is not None:
            feature_map = feature_map.transpose(1, 2, 0, 3).astype(dtype)
            link = tuple(one + layer.of_map(feature_map[0])[1] for one, layer in zip(link, self.layers, strict=True))
        sums = self._start_pixel(n, dtype) if channels > 1 else ()
        return Cache(tuple(packed), head, tuple(waiting), tuple(bias), link, tuple(pixels), feature_map, sums)

    def begin_row(self, cache: Cache, finished_row: UInt[Array, "B W C"], r) -> Cache:
        """The cache for row r from the finished row r-1: computes U and `link` in all columns. For r = 0 `finished_row` is ignored."""
        v = self._pixels(finished_row.swapaxes(0, 1))

        def vertical_stack(waiting, link):
            x, below, links = v, [], []
            for layer, packed, wait, bias in zip(self.layers, cache.packed, waiting, cache.bias, strict=True):
                wait, u = layer.vertical.row(wait, x)
                u = add_bias(u, packed.condition)
                u = u if cache.feature_map is None else u + layer.of_map(at(cache.feature_map, r - 1))[0]
                x = gate(u)
                below.append(wait)
                link = add_bias(dot(u, layer.link[...]), bias)
                links.append(link if cache.feature_map is None else link + layer.of_map(at(cache.feature_map, r))[1])
            return tuple(below), tuple(links)

        waiting, link = jax.lax.cond(r > 0, vertical_stack, lambda waiting, link: (waiting, link), cache.waiting, cache.link)
        pixels = tuple(_first(link, len(wait)) for link, wait in zip(link, cache.pixels, strict=True))
        return cache._replace(waiting=waiting, link=link, pixels=pixels)

    def step(self, cache: Cache, previous_pixel: UInt[Array, "B C"], r, c) -> tuple[Cache, Float[Array, "B P"]]:
        """Parameters of the first channel of pixel (r, c), given the pixel to its left (ignored in column 0)."""
        del r
        x = self._pixels(previous_pixel) * (c > 0).astype(self.config.dtype)
        left = dot(x, self.layers[0].horizontal.left[...])
        pixels = list(cache.pixels)
        pixels[0] = _add_pushed(pixels[0], left)
        a = [wait[0] for wait in pixels]
        pixels = [_slide(wait, link, c) for wait, link in zip(pixels, cache.link, strict=True)]
        _, residual, skip, z, y = self._start_pixel(x.shape[0], x.dtype)
        return self._group(cache._replace(pixels=tuple(pixels)), (tuple(a), residual, skip, z, y), 0)

    def step_channel(self, cache: Cache, pixel: UInt[Array, "B C"], k) -> tuple[Cache, Float[Array, "B P"]]:
        """Parameters of channel k > 0 of the pixel being drawn, given its channels before k."""
        x = self._pixels(pixel)
        a, *rest = cache.sums
        push = jax.lax.dynamic_index_in_dim(cache.packed[0].push, k - 1, keepdims=False)[:, : a[0].shape[1]]
        first = a[0] + dot(take_group(x, k - 1, x.shape[1]), push)
        return self._group(cache, ((first, *a[1:]), *rest), k)

    def _start_pixel(self, n: int, dtype):
        """The field `sums` before the first channel group: biases, and zeros for a."""
        config, two = self.config, 2 * self.config.width

        def rows(bias):
            return jnp.broadcast_to(bias.astype(dtype), (n, bias.shape[0]))

        biases = [layer.out_bias[...] for layer in self.layers]
        skip = rows(sum(bias[: config.width] for bias in biases))
        residual = tuple(rows(bias[config.width :]) for bias in biases)
        a = tuple(jnp.zeros((n, two), dtype) for _ in self.layers)
        return a, residual, skip, rows(self.hidden_bias[...]), jnp.broadcast_to(self.outputs_bias[...], (n, self.outputs_bias.shape[0]))

    def _group(self, cache: Cache, sums, k):
        """Compute channel group k of one pixel in all layers; add its terms to the sums of later groups and of the next pixels."""
        a, residual, skip, z, y = list(sums[0]), list(sums[1]), *sums[2:]
        pixels, groups, width = list(cache.pixels), self.config.image_shape[2], self.config.width
        h = None
        for i, packed in enumerate(cache.packed):
            if i > 0:
                pushed = dot(h, of_group(packed.push, k))
                a[i] = a[i] + pushed[:, : 2 * width]
                pixels[i] = _add_pushed(pixels[i], pushed[:, 2 * width :])
            g = gate(take_group(a[i], k, groups, halves=2))
            out = dot(g, of_group(packed.out, k))
            skip = skip + out[:, :width]
            residual[i] = residual[i] + out[:, width:]
            if i < len(a) - 1:
                h = take_group(residual[i], k, groups) + (h if i > 0 else 0)
        z = z + dot(jax.nn.relu(take_group(skip, k, groups)), of_group(cache.head[0], k))
        y = y + dot(jax.nn.relu(take_group(z, k, groups)), of_group(cache.head[1], k), jnp.float32)
        cache = cache._replace(pixels=tuple(pixels))
        if groups > 1:
            cache = cache._replace(sums=(tuple(a), tuple(residual), skip, z, y))
        return cache, take_group(y, k, groups)


def _first(link: Float[Array, "W B E"], m: int) -> Float[Array, "m B E"]:
    """The partial sums of a for the first m pixels of a row: their links. Entries for columns past the end are never read."""
    return jnp.take(link, jnp.arange(m), axis=0, mode="clip") if m > len(link) else link[:m]


def _slide(waiting: Float[Array, "m B E"], link: Float[Array, "W B E"], c) -> Float[Array, "m B E"]:
    """The partial sums of pixels c+1 .. c+m from those of c .. c+m-1: the new last one is its link (past the end of the row: unused)."""
    return jnp.concatenate([waiting[1:], jax.lax.dynamic_slice_in_dim(link, c + len(waiting), 1)])


def _add_pushed(waiting: Float[Array, "m B E"], pushed: Float[Array, "B mE"]) -> Float[Array, "m B E"]:
    """Add a pixel's terms, the next pixel's first, to the partial sums of the m pixels after it."""
    m, batch, features = waiting.shape
    return waiting + pushed.reshape(batch, m, features).swapaxes(0, 1) if pushed.shape[1] else waiting
