"""Row LSTM: a convolutional LSTM that runs from the top row to the bottom, all columns of a row at once.

    p(x) = prod_i p(x_i | x_<i)  in raster order, within a pixel R, then G, then B.

With h = width, k = kernel, x scaled to [-1, 1], zeros outside the image, and * a convolution along the row:

    y_0         = conv7x7_A(x)                                                     2h features
    [o,f,i,g]_r = K_is * y_l[r] + K_ss * h_{r-1} + b                               K_is: 1 x k, mask B; K_ss: 1 x k, centred, no mask
    c_r         = sigmoid(f) c_{r-1} + sigmoid(i) tanh(g),  h_r = sigmoid(o) tanh(c_r);  h_{-1} = c_{-1} = 0
    y_{l+1}     = y_l + conv1x1_B(h)                                               h -> 2h
    logits      = conv1x1_B(relu(conv1x1_B(relu(y))))                              2h -> head_width -> outputs

h_{r-1} depends on rows above r only, so K_ss needs no mask. For k = 3 a state in row r and column j depends on the states of row r - n in
columns j-n .. j+n, and on y_l of that row in columns j-n-1 .. j+n: a triangle of pixels above it, not all of them. A label adds the
embedding of its class to the gates of every layer. The biases of the forget gates are 1 at first.

Sampling: `begin_row` computes K_ss * h_{r-1} for all columns; `step` adds K_is, left and centre taps, and runs the cell.

van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", sections 3.1, 3.3, 3.4 and table 1.
Departures: widths must be multiples of C (for C = 3 use 129 for the paper's 128); our experiments use Adam and Muon, the paper, as we
remember it, RMSProp.
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
from jaxgen.layers.convolutions import add_bias, columns, dot, normal, of_group, scale_pixels, take_group
from jaxgen.layers.masked import (
    Masked1x1,
    MaskedConv,
    OutputLayers,
    Window,
    add_pushed,
    check_sizes,
    first_channel,
    forget_bias,
    get_group,
    joint_bias,
    label_biases,
    lstm_cell,
    next_channel,
    put_group,
)


@dataclass(frozen=True)
class RowLSTMConfig(OfImages):
    """Sizes of a Row LSTM. Raises ConfigError for sizes out of range, even kernels, and unless width and head_width are multiples of the
    channels.
    """

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    layers: int = 12  # LSTM layers after the first convolution
    width: int = 128  # h, features of a state; there are 2h between the layers
    input_kernel: int = 7  # side of the first convolution, an odd number of pixels
    kernel: int = 3  # width of the two convolutions of an LSTM, an odd number of pixels
    head_width: int = 32  # features between the last two 1 x 1 convolutions
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the activations; parameters and likelihoods are float32
    grouped = ("width", "head_width")

    def __post_init__(self):
        check_sizes(self, kernels=("input_kernel", "kernel"))

    @classmethod
    def comparison(cls) -> "RowLSTMConfig":
        """The size of speed comparisons: 28 x 28 binary images, the paper's 12 layers at width 64."""
        return cls(image_shape=(28, 28, 1), levels=2, layers=12, width=64)


class RowLSTMLayer(nnx.Module):
    """y + conv1x1_B(h), h the states of a convolutional LSTM over the rows of y; 2h features in and out."""

    def __init__(self, config: RowLSTMConfig, rngs: nnx.Rngs):
        width, groups = config.width, config.image_shape[2]
        self.kernel = config.kernel
        self.input = MaskedConv(2 * width, 4 * width, config.kernel, "B", groups, rngs, square=False, parts=4)
        self.input.bias = forget_bias(width)
        fan = config.kernel * width
        self.state = normal(rngs, (fan, 4 * width), fan)
        self.out = Masked1x1(width, 2 * width, groups, rngs)

    def from_above(self, state: Float[Array, "... W B D"]) -> Float[Array, "... W B F"]:
        """K_ss * h_{r-1}, from h_{r-1}."""
        return dot(columns(state, self.kernel, axis=-3), self.state[...])

    @jax.jit  # else its loop is compiled in every call
    def states(self, gates: Float[Array, "H W B F"]) -> Float[Array, "H W B D"]:
        """h of all rows, from K_is * y + b."""

        def row(carry, gates):
            state, cell = carry
            state, cell = lstm_cell(gates + self.from_above(state), cell)
            return (state, cell), state

        nothing = jnp.zeros((*gates.shape[1:3], gates.shape[3] // 4), gates.dtype)
        return jax.lax.scan(row, (nothing, nothing.astype(jnp.float32)), gates)[1]

    def __call__(self, y: Float[Array, "H W B E"], label_bias) -> Float[Array, "H W B E"]:
        """The whole image; `label_bias` [B, 4h] or [] is added to the gates."""
        return y + self.out(self.states(add_bias(self.input.along_rows(y), label_bias)))


class Packed(NamedTuple):
    """A layer's masked weights by input group (see masked.py), computed once per call of the sampler."""

    push: Float[Array, "G d F"]  # K_is, centre | left taps, the nearest first: F = (1 + k // 2) 4h
    out: Float[Array, "G d E"]  # conv1x1_B, E = 2h


class Sums(NamedTuple):
    """Partial sums at the pixel being drawn: biases, terms of earlier pixels and of its channel groups so far; L layers, B images."""

    trunk: Float[Array, "B E"]  # of y_0
    gates: Float[Array, "L B F"]
    out: Float[Array, "L B E"]  # of conv1x1_B(h)
    output: tuple  # of the output layers: [B, head_width], [B, C P]


class Cache(NamedTuple):
    """The sampler's cache while pixel (r, c) is drawn. W columns, L layers, B images, D = width, E = 2D, F = 4D, m = kernel // 2."""

    packed: tuple[Packed, ...]
    output: tuple  # the two masked weights of the output layers by input group
    bias: tuple  # [F] or [B, F] for each layer: b of the gates, plus the label's
    window: Window  # of the first layer
    state: Float[Array, "W L B D"]  # h, of row r in the columns before c, of row r-1 in the others
    cell: Float[Array, "W L B D"]  # c of the equations, the same, float32
    above: Float[Array, "W L B F"]  # K_ss * h_{r-1} + bias
    waiting: Float[Array, "m L B F"]  # terms of the finished pixels of row r in the gates of the next m pixels
    column: Int[Array, ""]  # c
    sums: Sums | tuple  # () for C = 1


class RowLSTM(AutoregressiveImages):
    """The model of this file; see `AutoregressiveImages` for logits, log_prob, loss and sample."""

    def __init__(self, config: RowLSTMConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, pixel_head(config.levels)
        width, channels = config.width, config.image_shape[2]
        self.input = MaskedConv(channels, 2 * width, config.input_kernel, "A", channels, rngs)
        self.layers = nnx.List([RowLSTMLayer(config, rngs) for _ in range(config.layers)])
        self.output = OutputLayers(2 * width, config.head_width, self.head.size, channels, rngs)
        # For each class the biases of the gates of all layers.
        self.embedding = normal(rngs, (config.num_classes, config.layers * 4 * width), 1.0) if config.num_classes else None

    def _label_biases(self, label) -> list:
        return label_biases(self.embedding, label, (4 * self.config.width,) * self.config.layers)

    def _logits(self, image: UInt[Array, "B H W C"], label, key=None) -> Float[Array, "B H W C P"]:
        del key  # no dropout
        y = self.input(scale_pixels(image, self.config.levels, self.config.dtype)).transpose(1, 2, 0, 3)
        for layer, bias in zip(self.layers, self._label_biases(label), strict=True):
            y = layer(y, bias)
        return self.output(y.transpose(2, 0, 1, 3))

    # The cached form for sampling: the same network, one row and one pixel at a time.

    def init_cache(self, n: int, label=None) -> Cache:
        """The cache of n images before anything is drawn."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        biases = zip(self.layers, self._label_biases(label), strict=True)
        bias = tuple(joint_bias(layer.input.bias[...], of_label, dtype) for layer, of_label in biases)
        packed = tuple(Packed(layer.input.pack(dtype), layer.out.pack(dtype)) for layer in self.layers)
        columns, channels = config.image_shape[1:]
        state = jnp.zeros((columns, config.layers, n, config.width), dtype)
        above = jnp.zeros((columns, config.layers, n, 4 * config.width), dtype)
        waiting = jnp.zeros((config.kernel // 2, *above.shape[1:]), dtype)
        sums = self._begin_pixel(jnp.zeros((n, 2 * config.width), dtype), above[0]) if channels > 1 else ()
        window, cell = self.input.init_window(columns, n, dtype), state.astype(jnp.float32)
        return Cache(packed, self.output.pack(dtype), bias, window, state, cell, above, waiting, jnp.int32(0), sums)

    def begin_row(self, cache: Cache, finished_row: UInt[Array, "B W C"], r) -> Cache:
        """The cache for row r from the finished row r-1: K_ss * h_{r-1} in all columns. For r = 0 `finished_row` is ignored."""
        x = scale_pixels(finished_row.swapaxes(0, 1), self.config.levels, self.config.dtype)
        window = self.input.begin_row(cache.window, x, r, self.input.bias[...])
        states = (cache.state[:, i] for i in range(len(self.layers)))
        above = [add_bias(layer.from_above(h), b) for layer, h, b in zip(self.layers, states, cache.bias, strict=True)]
        return cache._replace(window=window, above=jnp.stack(above, axis=1), waiting=jnp.zeros_like(cache.waiting))

    step, step_channel = first_channel, next_channel

    def _begin_pixel(self, trunk, gates) -> Sums:
        """The partial sums of a pixel before its first channel group, from those of y_0 and of the gates."""
        n, dtype = trunk.shape[0], trunk.dtype
        out = jnp.stack([jnp.broadcast_to(layer.out.bias[...].astype(dtype), (n, *layer.out.bias.shape)) for layer in self.layers])
        return Sums(trunk, gates, out, self.output.begin_pixel(n, dtype))

    def _group(self, cache: Cache, sums: Sums, k) -> tuple[Cache, Float[Array, "B P"]]:
        """Compute channel group k of one pixel in all layers; add its terms to the sums of later groups and of the next pixels."""
        groups, four = self.config.image_shape[2], 4 * self.config.width
        gates, out, pushed, states, cells = list(sums.gates), list(sums.out), [], [], []
        y = take_group(sums.trunk, k, groups)
        above = get_group(cache.cell, k, groups, cache.column)
        for i, packed in enumerate(cache.packed):
            push = dot(y, of_group(packed.push, k))
            gates[i] = gates[i] + push[:, :four]
            pushed.append(push[:, four:])
            state, cell = lstm_cell(take_group(gates[i], k, groups, halves=4), above[i])
            out[i] = out[i] + dot(state, of_group(packed.out, k))
            y = y + take_group(out[i], k, groups)
            states.append(state)
            cells.append(cell)
        output, parameters = self.output.group(cache.output, sums.output, y, k)
        state, cell = (put_group(x, jnp.stack(new), k, cache.column) for x, new in ((cache.state, states), (cache.cell, cells)))
        cache = cache._replace(state=state, cell=cell, waiting=add_pushed(cache.waiting, pushed))
        if groups > 1:
            cache = cache._replace(sums=Sums(sums.trunk, jnp.stack(gates), jnp.stack(out), output))
        return cache, parameters
