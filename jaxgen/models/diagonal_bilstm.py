"""Diagonal BiLSTM: two LSTMs that sweep the image along its diagonals, from the top left and from the top right corner.

    p(x) = prod_i p(x_i | x_<i)  in raster order, within a pixel R, then G, then B.

With h = width, x scaled to [-1, 1], row r, column c, zeros outside the image (for states and cells too), s the states of the left branch
and t those of the right branch:

    y_0            = conv7x7_A(x)                                                                 2h features
    [o,f,i,g][r,c] = K_is y_l[r,c] + K_0 s[r,c-1] + K_1 s[r-1,c] + b                              K_is: 1 x 1, mask B
    cell[r,c]      = sigmoid(f) cell[r,c-1] + sigmoid(i) tanh(g),   s[r,c] = sigmoid(o) tanh(cell[r,c])
    t              : the same with weights of its own and c+1 for c-1
    y_{l+1}[r,c]   = y_l[r,c] + conv1x1_B(s[r,c] + t[r-1,c])                                      h -> 2h
    logits         = conv1x1_B(relu(conv1x1_B(relu(y))))                                          2h -> head_width -> outputs

t[r,c] depends on the pixels from column c on in row r, so it is used one row further down, as t[r-1,c]. Together s and t reach every pixel
before (r,c) in raster order, with one exception that needs an extra term: y_0[r,c] depends on the pixels before (r,c) only (mask A), so
the last pixel of a row would be unknown to the first pixels of the next row. Therefore the gates of t in the first layer also get a linear
map of x[r,c], all channels. A label adds the embedding of its class to the gates. The biases of the forget gates are 1 at first.

The whole image: one scan over the diagonals (layers/diagonals.py) computes both branches, the right one on the image flipped left to right;
K_0 and K_1 are a 2 x 1 convolution of the diagonal before.

Sampling: `begin_row` computes, for the finished row r-1, K_1 s in all columns, and t by a scan from right to left; `step` computes s of one
pixel.

van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", sections 3.2, 3.3, 3.4 and table 1.
Departures: the term of x[r,c] in the first right branch; widths must be multiples of C (for C = 3 use 129 for the paper's 128); our
experiments use Adam and Muon, the paper, as we remember it, RMSProp.
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
from jaxgen.layers.convolutions import EXACT, add_bias, dot, normal, of_group, scale_pixels, shift, take_group
from jaxgen.layers.diagonals import at_last_column, images_in_a_sweep, to_diagonals, to_rows
from jaxgen.layers.masked import (
    Masked1x1,
    MaskedConv,
    OutputLayers,
    Window,
    check_sizes,
    forget_bias,
    get_group,
    joint_bias,
    label_biases,
    lstm_cell,
    next_channel,
    put_group,
)


@dataclass(frozen=True)
class DiagonalBiLSTMConfig(OfImages):
    """Sizes of a Diagonal BiLSTM. Raises ConfigError for sizes out of range, an even kernel, and unless width and head_width are
    multiples of the channels.
    """

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    layers: int = 12  # LSTM layers after the first convolution
    width: int = 128  # h, features of a state; there are 2h between the layers
    input_kernel: int = 7  # side of the first convolution, an odd number of pixels
    head_width: int = 32  # features between the last two 1 x 1 convolutions
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations; parameters and likelihoods are float32
    grouped = ("width", "head_width")

    def __post_init__(self):
        check_sizes(self, kernels=("input_kernel",))

    @classmethod
    def comparison(cls) -> "DiagonalBiLSTMConfig":
        """The size of speed comparisons: 28 x 28 binary images, the paper's 12 layers at width 64."""
        return cls(image_shape=(28, 28, 1), levels=2, layers=12, width=64)


class DiagonalLayer(nnx.Module):
    """y[r,c] + conv1x1(s[r,c] + t[r-1,c]), 2h features in and out."""

    def __init__(self, config: DiagonalBiLSTMConfig, rngs: nnx.Rngs):
        width, groups = config.width, config.image_shape[2]
        # Gates of the left branch | gates of the right branch.
        self.input = Masked1x1(2 * width, 8 * width, groups, rngs, parts=8)
        self.input.bias = forget_bias(width, lstms=2)
        # [K_0; K_1] of the left and of the right branch, for [state beside, state above].
        self.state = normal(rngs, (2, 2 * width, 4 * width), 2 * width)
        self.out = Masked1x1(width, 2 * width, groups, rngs)

    @jax.jit  # else its loop is compiled in every call
    def states(self, left: Float[Array, "H W B F"], right: Float[Array, "H W B F"]) -> tuple[Array, Array]:
        """States s and t, [H, W, B, D] each, from the terms of their gates without K_0 and K_1."""
        height, width, batch = left.shape[:3]
        k = images_in_a_sweep(batch)
        # Both branches run from left to right, the right one on the images flipped: [T, 2, H, A, F].
        gates = jnp.stack([to_diagonals(left, k), to_diagonals(right[:, ::-1], k)], axis=1)
        weight = self.state[...].astype(gates.dtype)

        def diagonal(carry, inputs):
            both, cell = carry  # the states left of and above (r, t-r), the cells left of it
            t, gates = inputs
            state, cell = lstm_cell(gates + jnp.einsum("zhbd,zde->zhbe", both, weight, precision=EXACT), cell)
            last = at_last_column(t, height, width)[None]
            both = jnp.concatenate([jnp.where(last, 0, state), shift(state, 1, axis=1)], axis=-1)
            return (both, jnp.where(last, 0, cell)), state

        nothing = jnp.zeros((*gates.shape[1:4], gates.shape[4] // 4), gates.dtype)
        start = jnp.concatenate([nothing, nothing], axis=-1), nothing.astype(jnp.float32)
        states = jax.lax.scan(diagonal, start, (jnp.arange(len(gates)), gates))[1]
        return to_rows(states[:, 0], k), to_rows(states[:, 1], k)[:, ::-1]

    def __call__(self, y: Float[Array, "H W B E"], label_bias, to_right=None) -> Float[Array, "H W B E"]:
        """The whole image. label_bias: [B, 8h] or [], added to the gates of both branches; to_right: [H, W, B, 4h], to those of t."""
        left, right = jnp.split(add_bias(self.input(y), label_bias), 2, axis=-1)
        left, right = self.states(left, right if to_right is None else right + to_right)
        return y + self.out(left + shift(right, 1, axis=0))

    def right_row(self, y: Float[Array, "W B E"], above: Float[Array, "W B D"], bias, to_right=None) -> Float[Array, "W B D"]:
        """t of a finished row from its y and from `above`, t of the row above; bias: [4h] or [B, 4h]; to_right: [W, B, 4h]."""
        (beside, down), four = jnp.split(self.state[...][1].astype(y.dtype), 2), self.state.shape[2]
        gates = add_bias(dot(y, self.input.masked()[:, four:]) + dot(above, down), bias)
        if to_right is not None:
            gates = gates + to_right

        def pixel(carry, gates):
            state, cell = carry
            state, cell = lstm_cell(gates + dot(state, beside), cell)
            return (state, cell), state

        start = jnp.zeros_like(above[0]), jnp.zeros(above.shape[1:], jnp.float32)
        return jax.lax.scan(pixel, start, gates, reverse=True)[1]


class Packed(NamedTuple):
    """Weights of a layer's left branch by input group (see masked.py), computed once per call of the sampler."""

    input: Float[Array, "G d F"]  # K_is
    state: Float[Array, "G d EF"]  # [K_0 | conv1x1_B]
    down: Float[Array, "D F"]  # K_1


class Sums(NamedTuple):
    """Partial sums at the pixel being drawn: biases, terms of earlier pixels and of its channel groups so far; L layers, B images."""

    trunk: Float[Array, "B E"]  # of y_0
    gates: Float[Array, "L B F"]  # of the gates of s
    out: Float[Array, "L B E"]  # of conv1x1_B(s + t)
    output: tuple  # of the output layers: [B, head_width], [B, C P]


class Cache(NamedTuple):
    """The sampler's cache while pixel (r, c) is drawn. W columns, L layers, B images, D = width, E = 2D, F = 4D."""

    packed: tuple[Packed, ...]
    output: tuple  # the two masked weights of the output layers by input group
    bias: tuple  # [2F] or [B, 2F] for each layer: b of the gates (s | t), plus the label's
    window: Window  # of the first layer
    inputs: Float[Array, "W L B E"]  # y_l, of row r in the columns before c, of row r-1 in the others
    left: Float[Array, "W L B D"]  # s, the same
    right: Float[Array, "W L B D"]  # t of row r-1
    above: Float[Array, "W L B F"]  # K_1 s[r-1] + bias
    from_right: Float[Array, "W L B E"]  # conv1x1_B(t[r-1]) with its bias
    cell: Float[Array, "L B D"]  # cell[r, c-1] of the left branch, float32
    waiting: Float[Array, "L B F"]  # K_0 s[r, c-1]
    column: Int[Array, ""]  # c
    sums: Sums | tuple  # () for C = 1


class DiagonalBiLSTM(AutoregressiveImages):
    """The model of this file; see `AutoregressiveImages` for logits, log_prob, loss and sample."""

    def __init__(self, config: DiagonalBiLSTMConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, pixel_head(config.levels)
        width, channels = config.width, config.image_shape[2]
        self.input = MaskedConv(channels, 2 * width, config.input_kernel, "A", channels, rngs)
        self.layers = nnx.List([DiagonalLayer(config, rngs) for _ in range(config.layers)])
        self.pixels = normal(rngs, (channels, 4 * width), channels)
        self.output = OutputLayers(2 * width, config.head_width, self.head.size, channels, rngs)
        # For each class the biases of the gates of all layers.
        self.embedding = normal(rngs, (config.num_classes, config.layers * 8 * width), 1.0) if config.num_classes else None

    def _label_biases(self, label) -> list:
        return label_biases(self.embedding, label, (8 * self.config.width,) * self.config.layers)

    def _to_right(self, x) -> list:
        """For each layer the term of x in the gates of t: a linear map of x in the first layer, None in the others."""
        return [dot(x, self.pixels[...])] + [None] * (self.config.layers - 1)

    def _logits(self, image: UInt[Array, "B H W C"], label, key=None) -> Float[Array, "B H W C P"]:
        del key  # no dropout
        x = scale_pixels(image, self.config.levels, self.config.dtype)
        x, y = x.transpose(1, 2, 0, 3), self.input(x).transpose(1, 2, 0, 3)
        for layer, bias, to_right in zip(self.layers, self._label_biases(label), self._to_right(x), strict=True):
            y = layer(y, bias, to_right)
        return self.output(y.transpose(2, 0, 1, 3))

    # The cached form for sampling: the same network, one row and one pixel at a time.

    def _pack(self, layer: DiagonalLayer, dtype) -> Packed:
        groups, width = self.config.image_shape[2], self.config.width
        beside, down = jnp.split(layer.state[...][0].astype(dtype), 2)
        state = jnp.concatenate([beside, layer.out.masked().astype(dtype)], axis=1)
        return Packed(layer.input.pack(dtype)[..., : 4 * width], state.reshape(groups, -1, state.shape[1]), down)

    def init_cache(self, n: int, label=None) -> Cache:
        """The cache of n images before anything is drawn."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        biases = zip(self.layers, self._label_biases(label), strict=True)
        bias = tuple(joint_bias(layer.input.bias[...], of_label, dtype) for layer, of_label in biases)
        packed = tuple(self._pack(layer, dtype) for layer in self.layers)
        columns, channels = config.image_shape[1:]

        def row(features):
            return jnp.zeros((columns, config.layers, n, features * config.width), dtype)

        one, two, four = row(1), row(2), row(4)
        window, cell = self.input.init_window(columns, n, dtype), one[0].astype(jnp.float32)
        sums = Sums(two[0, 0], four[0], two[0], self.output.begin_pixel(n, dtype)) if channels > 1 else ()
        return Cache(packed, self.output.pack(dtype), bias, window, two, one, one, four, two, cell, four[0], jnp.int32(0), sums)

    def begin_row(self, cache: Cache, finished_row: UInt[Array, "B W C"], r) -> Cache:
        """The cache for row r from the finished row r-1: computes t and K_1 s of row r-1. For r = 0 `finished_row` is ignored."""
        x = scale_pixels(finished_row.swapaxes(0, 1), self.config.levels, self.config.dtype)
        above, right, from_right = [], [], []
        for i, (layer, packed, bias, to_right) in enumerate(zip(self.layers, cache.packed, cache.bias, self._to_right(x), strict=True)):
            of_left, of_right = jnp.split(bias, 2, axis=-1)
            above.append(add_bias(dot(cache.left[:, i], packed.down), of_left))
            state = layer.right_row(cache.inputs[:, i], cache.right[:, i], of_right, to_right)
            right.append(state * (r > 0).astype(x.dtype))
            from_right.append(layer.out(right[-1]))
        window = self.input.begin_row(cache.window, x, r, self.input.bias[...])
        above, right, from_right = (jnp.stack(rows, axis=1) for rows in (above, right, from_right))
        cell, waiting = jnp.zeros_like(cache.cell), jnp.zeros_like(cache.waiting)
        return cache._replace(window=window, right=right, above=above, from_right=from_right, cell=cell, waiting=waiting)

    def step(self, cache: Cache, previous_pixel: UInt[Array, "B C"], r, c) -> tuple[Cache, Float[Array, "B P"]]:
        """Parameters of the first channel of pixel (r, c), given the pixel to its left (ignored in column 0)."""
        del r
        x = scale_pixels(previous_pixel, self.config.levels, self.config.dtype)
        window, trunk = self.input.begin_pixel(cache.window, x, c)
        above, out = (jax.lax.dynamic_index_in_dim(rows, c, keepdims=False) for rows in (cache.above, cache.from_right))
        sums = Sums(trunk, above + cache.waiting, out, self.output.begin_pixel(x.shape[0], x.dtype))
        waiting = jnp.zeros_like(cache.waiting)
        return self._group(cache._replace(window=window, waiting=waiting, column=jnp.int32(c)), sums, 0)

    step_channel = next_channel

    def _group(self, cache: Cache, sums: Sums, k) -> tuple[Cache, Float[Array, "B P"]]:
        """Compute channel group k of one pixel in all layers; add its terms to the sums of later groups and of the next pixel."""
        groups, four = self.config.image_shape[2], 4 * self.config.width
        gates, out, inputs, pushed, states, cells = list(sums.gates), list(sums.out), [], [], [], []
        y = take_group(sums.trunk, k, groups)
        left = get_group(cache.cell, k, groups)
        for i, packed in enumerate(cache.packed):
            inputs.append(y)
            gates[i] = gates[i] + dot(y, of_group(packed.input, k))
            state, cell = lstm_cell(take_group(gates[i], k, groups, halves=4), left[i])
            push = dot(state, of_group(packed.state, k))
            pushed.append(push[:, :four])
            out[i] = out[i] + push[:, four:]
            y = y + take_group(out[i], k, groups)
            states.append(state)
            cells.append(cell)
        output, parameters = self.output.group(cache.output, sums.output, y, k)
        inputs, states = (put_group(x, jnp.stack(new), k, cache.column) for x, new in ((cache.inputs, inputs), (cache.left, states)))
        cell = put_group(cache.cell, jnp.stack(cells), k)
        cache = cache._replace(inputs=inputs, left=states, cell=cell, waiting=cache.waiting + jnp.stack(pushed))
        if groups > 1:
            cache = cache._replace(sums=Sums(sums.trunk, jnp.stack(gates), jnp.stack(out), output))
        return cache, parameters
