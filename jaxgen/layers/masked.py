"""Masked convolutions, the output layers and the LSTM cell that PixelCNN, Row LSTM and Diagonal BiLSTM share, in both forms.

The output of a masked convolution at a pixel depends on the rows above, on the pixels to the left and, at its own pixel, on the channel
groups before its own (mask A) or up to its own (mask B). There are no weights for later pixels. Only the centre tap W has a mask; it is
multiplied with it at every use, so that gradients of masked weights are 0. Sampler: rows are `[W, B, D]`, pixels `[B, D]`; "pushed" terms
are explained in convolutions.py. A weight "by input group" is [G, D/G, E]: entry k is multiplied with channel group k.

van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", sections 3.4 and 3.5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt

from jaxgen.checks import check_image_config
from jaxgen.layers.convolutions import (
    add_bias,
    check_kernels_and_widths,
    columns,
    convolution,
    dot,
    embed,
    group_mask,
    normal,
    of_group,
    scale_pixels,
    shift,
    take_group,
    zeros,
)


def check_sizes(config, kernels: tuple[str, ...]):
    """ConfigError unless image_shape, levels, num_classes, layers, width, head_width and the named kernels are as the three models need."""
    check_image_config(config, {"layers": 1})
    check_kernels_and_widths(config, kernels, smallest=3)


def get_group(x: Float[Array, "*shape D"], k, groups: int, column=None) -> Float[Array, "*part d"]:
    """Channel group k of the features of x, or of x[column] if a column is given."""
    if column is not None:
        x = jax.lax.dynamic_index_in_dim(x, column, keepdims=False)
    size = x.shape[-1] // groups
    return x if groups == 1 else jax.lax.dynamic_slice_in_dim(x, k * size, size, axis=-1)


def put_group(x: Float[Array, "*shape D"], value: Float[Array, "*part d"], k, column=None) -> Float[Array, "*shape D"]:
    """x with channel group k of the features, of x[column] if a column is given, replaced by `value`."""
    start = [0] * x.ndim
    start[-1] = k * value.shape[-1]
    if column is not None:
        start[0], value = column, value[None]
    return jax.lax.dynamic_update_slice(x, value, [jnp.asarray(i, jnp.int32) for i in start])


def label_biases(embedding: nnx.Param | None, label, sizes: tuple[int, ...]) -> list:
    """The label's embedding, split into one bias [B, size] for each layer; a zero of shape [] each for an unconditional model."""
    if embedding is None:
        return [jnp.zeros(()) for _ in sizes]
    return jnp.split(embed(embedding[...], label), np.cumsum(sizes)[:-1].tolist(), axis=1)


def add_label(x: Float[Array, "B H W E"], bias: Float[Array, "..."]) -> Float[Array, "B H W E"]:
    """x + bias at every position; bias [B, E] of the label, or []."""
    return x + (bias[:, None, None] if bias.ndim else bias).astype(x.dtype)


def joint_bias(bias: Float[Array, " E"], label_bias: Float[Array, "..."], dtype) -> Float[Array, "..."]:
    """The sum of a layer's bias and the label's: [B, E], or [E] where the label's is []."""
    return (bias[None] + label_bias if label_bias.ndim else bias + label_bias).astype(dtype)


class Masked1x1(nnx.Module):
    """y = (mask * W) x + b at every position, mask B. The outputs are `parts` equal parts (an LSTM's gates), each split into the groups."""

    def __init__(self, features_in: int, features_out: int, groups: int, rngs: nnx.Rngs, parts: int = 1):
        self.groups, self.parts = groups, parts
        self.weight, self.bias = normal(rngs, (features_in, features_out), features_in), zeros((features_out,))

    def masked(self) -> Float[Array, "D E"]:
        """mask * W."""
        features_in, features_out = self.weight.shape
        return self.weight[...] * np.tile(group_mask(features_in, features_out // self.parts, self.groups, "B"), (1, self.parts))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """y at positions of any shape."""
        return add_bias(dot(x, self.masked()), self.bias[...])

    def pack(self, dtype) -> Float[Array, "G d E"]:
        """mask * W by input group."""
        return self.masked().astype(dtype).reshape(self.groups, -1, self.weight.shape[1])


class Window(NamedTuple):
    """The part of a convolution's input that the sampler keeps: D input features, E output features, m = kernel // 2."""

    rows: Float[Array, "m W B D"]  # the last m finished rows, the newest last
    above: Float[Array, "W B E"]  # their terms in the outputs of the row being drawn, bias included
    left: Float[Array, "m B D"]  # the m pixels to the left, the newest last


class MaskedConv(nnx.Module):
    """A k x k convolution without the taps of later pixels, m = k // 2, zeros outside the image:

        y[r, c] = sum_{i=1..m, |j|<=m} U[m-i, m+j] x[r-i, c+j] + sum_{j=1..m} V[m-j] x[r, c-j] + (mask * W) x[r, c] + b

    square=False leaves out the first sum: 1 x k, the pixel's own row, by `along_rows`. parts: as in `Masked1x1`.
    """

    def __init__(self, features_in: int, features_out: int, kernel: int, kind: str, groups: int, rngs: nnx.Rngs, square=True, parts=1):
        self.kernel, self.taps, self.kind, self.groups, self.parts = kernel, kernel // 2, kind, groups, parts
        self.features_in, self.features_out = features_in, features_out
        both, rows = (features_in, features_out), self.taps if square else 0
        fan = features_in * (rows * kernel + self.taps + 0.5)
        self.above = normal(rngs, (rows, kernel, *both), fan) if square else None
        self.left = normal(rngs, (self.taps, *both), fan)
        hidden = kind == "A" and groups == 1  # then the mask is 0 everywhere
        self.centre = None if hidden else normal(rngs, both, fan)
        self.bias = zeros((features_out,))

    def masked_centre(self) -> Float[Array, "D E"]:
        """mask * W."""
        if self.centre is None:
            return jnp.zeros((self.features_in, self.features_out))
        mask = group_mask(self.features_in, self.features_out // self.parts, self.groups, self.kind)
        return self.centre[...] * np.tile(mask, (1, self.parts))

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W E"]:
        """The whole image; for square=False see `along_rows`."""
        m, left = self.taps, jnp.concatenate([self.left[...], self.masked_centre()[None]])
        kernel = jnp.concatenate([self.above[...], jnp.pad(left, ((0, m), (0, 0), (0, 0)))[None]])
        taps = m * self.kernel + m + (self.centre is not None)
        return add_bias(convolution(x, kernel, ((m, 0), (m, m)), taps=taps), self.bias[...])

    def along_rows(self, x: Float[Array, "H W B D"]) -> Float[Array, "H W B E"]:
        """The whole image for square=False, in the order of axes that a scan over the rows needs."""
        m, left = self.taps, jnp.concatenate([*self.left[...], self.masked_centre()])
        past = jnp.concatenate([shift(x, m - j, axis=1) for j in range(m + 1)], axis=-1)
        return add_bias(dot(past, left), self.bias[...])

    def from_above(self, rows: Float[Array, "m W B D"], bias: Float[Array, "..."]) -> Float[Array, "W B E"]:
        """The first sum of y for a whole row, from the m rows above it, plus a bias [E], or [B, E] with a label's embedding."""
        x = jnp.concatenate(list(columns(rows, self.kernel, axis=1)), axis=-1)
        return add_bias(dot(x, self.above[...].reshape(-1, self.features_out)), bias)

    def pack_rows(self, dtype) -> tuple[Float[Array, "E F"], ...]:
        """The taps for features in columns [D, Q]: of this row's m left pixels, [E, m D], then of the rows r-1, r-2, .., [E, k D] each."""
        rows = [self.left[...], *self.above[...][::-1]]
        return tuple(row.reshape(-1, self.features_out).T.astype(dtype) for row in rows)

    def pack(self, dtype) -> Float[Array, "G d E"]:
        """[mask * W | V[m-1] | .. | V[0]] by input group: from a pixel to its own output and to those of the m pixels after it."""
        both = jnp.concatenate([self.masked_centre(), *self.left[...][::-1]], axis=1).astype(dtype)
        return both.reshape(self.groups, self.features_in // self.groups, -1)

    def init_window(self, width: int, n: int, dtype) -> Window:
        """The window before anything is drawn: zeros."""
        rows, above, left = (self.taps, width, n, self.features_in), (width, n, self.features_out), (self.taps, n, self.features_in)
        return Window(jnp.zeros(rows, dtype), jnp.zeros(above, dtype), jnp.zeros(left, dtype))

    def begin_row(self, window: Window, row: Float[Array, "W B D"], r, bias: Float[Array, "..."]) -> Window:
        """The window for row r; `row` is the finished row r-1 (ignored for r = 0). bias: as in `from_above`."""
        rows = jnp.concatenate([window.rows[1:], (row * (r > 0).astype(row.dtype))[None]])
        return Window(rows, self.from_above(rows, bias), jnp.zeros_like(window.left))

    def begin_pixel(self, window: Window, pixel: Float[Array, "B D"], c) -> tuple[Window, Float[Array, "B E"]]:
        """The window, and y at column c without its centre term; `pixel` is the one at column c-1 (ignored for c = 0)."""
        left = jnp.concatenate([window.left[1:], (pixel * (c > 0).astype(pixel.dtype))[None]])
        y = dot(jnp.concatenate(list(left), axis=-1), self.left[...].reshape(-1, self.features_out))
        return window._replace(left=left), y + jax.lax.dynamic_index_in_dim(window.above, c, keepdims=False)

    def push_channel(self, pixel: Float[Array, "B C"], k) -> Float[Array, "B E"]:
        """The centre term of channel k-1 of an input pixel, for mask A: it is 0 in the channel groups before k."""
        return dot(get_group(pixel, k - 1, self.groups), of_group(self.masked_centre()[:, None], k - 1))


class OutputLayers(nnx.Module):
    """parameters = conv1x1_B(relu(conv1x1_B(relu(x)))), P for each of the C channels; the last product is summed in float32."""

    def __init__(self, features_in: int, width: int, outputs: int, groups: int, rngs: nnx.Rngs):
        self.groups = groups
        self.hidden, self.outputs = Masked1x1(features_in, width, groups, rngs), Masked1x1(width, groups * outputs, groups, rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W C P"]:
        """The whole image, float32."""
        z = jax.nn.relu(self.hidden(jax.nn.relu(x)))
        y = add_bias(dot(z, self.outputs.masked(), jnp.float32), self.outputs.bias[...])
        return y.reshape(*x.shape[:3], self.groups, -1)

    def pack(self, dtype) -> tuple:
        """The two weights by input group."""
        return self.hidden.pack(dtype), self.outputs.pack(dtype)

    def begin_pixel(self, n: int, dtype) -> tuple:
        """The partial sums of a pixel before its first channel group, which are the biases: (hidden [B, E], outputs [B, C P])."""
        hidden, outputs = self.hidden.bias[...], self.outputs.bias[...]
        return jnp.broadcast_to(hidden.astype(dtype), (n, *hidden.shape)), jnp.broadcast_to(outputs, (n, *outputs.shape))

    def group(self, packed: tuple, sums: tuple, x: Float[Array, "B d"], k) -> tuple[tuple, Float[Array, "B P"]]:
        """Add the terms of channel group k of the features, x: the new partial sums and the parameters of channel k."""
        z, y = sums
        z = z + dot(jax.nn.relu(x), of_group(packed[0], k))
        y = y + dot(jax.nn.relu(take_group(z, k, self.groups)), of_group(packed[1], k), jnp.float32)
        return (z, y), take_group(y, k, self.groups)


GATES = ("output", "forget", "input", "content")
"""Order of the four gates in every LSTM's weights and biases."""


def forget_bias(features: int, lstms: int = 1) -> nnx.Param:
    """Bias of the gates of `lstms` LSTMs side by side: 1 for the forget gates, so that untrained cells keep most of c, 0 for the others."""
    one = jnp.repeat(jnp.asarray([float(name == "forget") for name in GATES], jnp.float32), features)
    return nnx.Param(jnp.tile(one, lstms))


@jax.custom_jvp
def lstm_cell(gates: Float[Array, "*shape E"], cell: Float[Array, "*shape D"]) -> tuple[Float[Array, "*shape D"], Float[Array, "*shape D"]]:
    """[o, f, i, g] = gates, E = 4D:  c' = sigmoid(f) c + sigmoid(i) tanh(g),  h = sigmoid(o) tanh(c'); returns (h, c').

    c is float32 whatever the gates are: in bfloat16 a small update of a large c would be rounded away.
    """
    o, f, i, g = _activations(gates)
    cell = f * cell + i * g
    return (o * jnp.tanh(cell)).astype(gates.dtype), cell


def _activations(gates: Float[Array, "*shape E"]) -> tuple[Float[Array, "*shape D"], ...]:
    """sigmoid(o), sigmoid(f), sigmoid(i) and tanh(g), float32."""
    o, f, i, g = jnp.split(gates.astype(jnp.float32), 4, axis=-1)
    return jax.nn.sigmoid(o), jax.nn.sigmoid(f), jax.nn.sigmoid(i), jnp.tanh(g)


@lstm_cell.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    """The derivative with one factor for each gate, c and c'. jax's own rule keeps more numbers of every step for the backward pass."""
    (gates, cell), (dgates, dcell) = primals, tangents
    h, new = lstm_cell(gates, cell)
    (o, f, i, g), (do, df, di, dg) = _activations(gates), jnp.split(dgates.astype(jnp.float32), 4, axis=-1)
    t = jnp.tanh(new)
    dnew = cell * f * (1 - f) * df + g * i * (1 - i) * di + i * (1 - g * g) * dg + f * dcell
    return (h, new), ((t * o * (1 - o) * do + o * (1 - t * t) * dnew).astype(gates.dtype), dnew)


def add_pushed(waiting: Float[Array, "m L B E"], pushed: list) -> Float[Array, "m L B E"]:
    """Add a pixel's terms to the partial sums of the m pixels after it; `pushed`: [B, m E] for each layer, the next pixel first."""
    m, layers, batch, _ = waiting.shape
    return waiting + jnp.stack(pushed).reshape(layers, batch, m, -1).transpose(2, 0, 1, 3)


def next_pixel(waiting: Float[Array, "m L B E"]) -> tuple[Float[Array, "L B E"], Float[Array, "m L B E"]]:
    """The partial sums of the pixel that begins now, and those of the m pixels after it, the last of them zeros."""
    return waiting[0], jnp.concatenate([waiting[1:], jnp.zeros_like(waiting[:1])])


def first_channel(model, cache, previous_pixel: UInt[Array, "B C"], r, c) -> tuple:
    """Parameters of the first channel of pixel (r, c), given the pixel to its left (ignored in column 0): a model's `step`.

    The model has the layer `input`, `_begin_pixel` and `_group`; its cache has `window`, `waiting`, `above` and `column`.
    """
    del r
    x = scale_pixels(previous_pixel, model.config.levels, model.config.dtype)
    window, trunk = model.input.begin_pixel(cache.window, x, c)
    left, waiting = next_pixel(cache.waiting)
    sums = model._begin_pixel(trunk, left + jax.lax.dynamic_index_in_dim(cache.above, c, keepdims=False))
    return model._group(cache._replace(window=window, waiting=waiting, column=jnp.int32(c)), sums, 0)


def next_channel(model, cache, pixel: UInt[Array, "B C"], k) -> tuple:
    """Parameters of channel k > 0 of the pixel being drawn, given its channels before k: a model's `step_channel`."""
    x = scale_pixels(pixel, model.config.levels, model.config.dtype)
    return model._group(cache, cache.sums._replace(trunk=cache.sums.trunk + model.input.push_channel(x, k)), k)
