"""Layers that several models use; every causal layer in both forms, the whole image and one step.

Axes: `[B, H, W, D]` for whole images, `[W, B, D]` for one row in the sampler (columns first, so that one column is contiguous).
Channel groups: with G = C colour channels, D features are G contiguous groups of D/G; group g may see colour channels < g (mask A) or
<= g (mask B) of its own pixel, and everything of the pixels before it (van den Oord et al. 2016, section 3.4).

In the sampler causal sums are computed by "pushing": a finished row (pixel) is multiplied once with the taps of all later rows (pixels)
that read it, and the products are added to sums that the cache keeps for these rows (pixels). So a step is one matrix product whatever the
kernel size.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt

from jaxgen.errors import ConfigError

EXACT = jax.lax.Precision.HIGHEST
"""The precision of every matrix product: factors of float32 are multiplied as float32. By default GPUs and TPUs round them first, which
changes likelihoods; for speed choose `dtype="bfloat16"` in a config."""

FEW_IMAGES = 8
"""On a CPU a convolution of at most so many images is computed as one matrix product, see `convolution`."""


def check_kernels_and_widths(config, kernels: tuple[str, ...], smallest: int) -> None:
    """Check that these kernels are odd and no smaller, and that width and head_width are multiples of the channels, for `group_mask`."""
    channels = config.image_shape[2]
    for name in kernels:
        if getattr(config, name) < smallest or getattr(config, name) % 2 == 0:
            raise ConfigError(name, f"an odd number, {smallest} or more", getattr(config, name))
    for name in ("width", "head_width"):
        if getattr(config, name) < 1 or getattr(config, name) % channels:
            raise ConfigError(name, f"a positive multiple of the {channels} channels", getattr(config, name))


def group_mask(features_in: int, features_out: int, groups: int, kind: str) -> np.ndarray:
    """Mask [features_in, features_out] of the centre tap: group g sees groups < g (kind A) or <= g (kind B)."""
    group_in = np.arange(features_in) * groups // features_in
    group_out = np.arange(features_out) * groups // features_out
    visible = group_in[:, None] < group_out[None] if kind == "A" else group_in[:, None] <= group_out[None]
    return visible.astype(np.float32)


def halves_mask(features_in: int, features_out: int, groups: int, kind: str) -> np.ndarray:
    """`group_mask` for two outputs side by side (tanh | sigmoid, skip | residual): [features_in, 2 features_out]."""
    return np.tile(group_mask(features_in, features_out, groups, kind), (1, 2))


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: float) -> nnx.Param:
    """A weight with standard deviation 1 / sqrt(fan_in), float32."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) / np.sqrt(fan_in))


def zeros(shape: tuple[int, ...]) -> nnx.Param:
    """A bias, float32."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def embed(table: Float[Array, "K D"], label: Array) -> Float[Array, "B D"]:
    """Rows of the table for classes, int [B]; for weights of the classes, float [B, K], the weighted sums of its rows."""
    return table[label] if jnp.issubdtype(label.dtype, jnp.integer) else dot(label, table)


def scale_pixels(image: Integer[Array, "*shape"], levels: int, dtype=jnp.float32) -> Float[Array, "*shape"]:
    """{0 .. levels-1} to [-1, 1]; the zeros around an image then have the value of the middle level."""
    return (image.astype(jnp.float32) * (2.0 / (levels - 1)) - 1.0).astype(dtype)


def shift(x: Float[Array, "..."], by: int, axis: int) -> Float[Array, "..."]:
    """y[i] = x[i - by] along the axis, zeros coming in; by < 0 shifts the other way."""
    if by == 0:
        return x
    size = x.shape[axis]
    pad = [(0, 0)] * x.ndim
    pad[axis] = (max(by, 0), max(-by, 0))
    start = max(-by, 0)
    return jax.lax.slice_in_dim(jnp.pad(x, pad), start, start + size, axis=axis)


def columns(x: Float[Array, "... D"], kernel: int, axis: int) -> Float[Array, "... kD"]:
    """The `kernel` neighbours c-m .. c+m of every column side by side: [..., kernel D], zeros outside."""
    m = kernel // 2
    return jnp.concatenate([shift(x, m - j, axis) for j in range(kernel)], axis=-1)


def box_filter(image: UInt[Array, "B H W C"], shape: tuple[int, int, int]) -> UInt[Array, "B h w C"]:
    """The small image of that (h, w, C): the mean of every H/h x W/w box, rounded to the nearest level, halves up; exact integers."""
    batch, height, width, channels = image.shape
    down, across = height // shape[0], width // shape[1]
    boxes = image.astype(jnp.int32).reshape(batch, shape[0], down, shape[1], across, channels)
    total, size = boxes.sum((2, 4)), down * across
    return ((2 * total + size) // (2 * size)).astype(image.dtype)


def gate(x: Float[Array, "... E"]) -> Float[Array, "... D"]:
    """tanh(first half) * sigmoid(second half), E = 2D."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * jax.nn.sigmoid(b)


def dropout(x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray) -> Float[Array, "*shape"]:
    """Each element is zero with probability `rate`, else divided by 1 - rate."""
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), jnp.zeros_like(x))


def dot(x: Float[Array, "... D"], weight: Float[Array, "D E"], dtype=None) -> Float[Array, "... E"]:
    """x @ weight, factors in the dtype of x: float32 parameters, activations in the compute dtype. `dtype` is that of the sums: float32
    for the parameters of a distribution, since a mean near 1 that is rounded to bfloat16 is half a level of 256 off."""
    return jnp.matmul(x, weight.astype(x.dtype), precision=EXACT, preferred_element_type=dtype)


def convolution(
    x: Float[Array, "B H W D"],
    kernel: Float[Array, "h w D E"],
    padding: Sequence,
    stride: int = 1,
    spread: int = 1,
    taps: int | None = None,
) -> Float[Array, "B R C E"]:
    """y[r, c] = sum_{i, j} K[i, j] x'[s r + i, s c + j], x' = x with spread - 1 zeros between its pixels and padded; dtype of x.

    `taps`: only so many positions of the kernel, from its first row on, are not zero. On a CPU the windows of a few images are copied out
    and multiplied with the kernel in one product: that is faster than XLA's convolution, five to nine times inside a loop (gradients added
    up image by image), where XLA computes the gradient of a convolution index by index. For many images, whose windows would fill the
    memory, and on other devices it is XLA's convolution.
    """
    kernel = kernel.astype(x.dtype)
    if jax.default_backend() != "cpu" or x.shape[0] > FEW_IMAGES:
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, padding, lhs_dilation=(spread,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=EXACT
        )
    (h, w, features_in, features), taps = kernel.shape, kernel.shape[0] * kernel.shape[1] if taps is None else taps
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, spread - 1) for p in padding), (0, 0, 0)])
    rows, columns = ((n - m) // stride + 1 for n, m in zip(x.shape[1:3], (h, w), strict=True))
    ends = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    places = [divmod(t, w) for t in range(taps)]
    windows = jnp.concatenate([x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i, j in places], axis=-1)
    return dot(windows, kernel.reshape(-1, features)[: taps * features_in])


def add_bias(x: Float[Array, "... E"], bias: Float[Array, "..."]) -> Float[Array, "... E"]:
    """x + bias for every position, in the dtype of x; the bias is [E], or [B, E] where x ends in [B, E]."""
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


class VerticalConv(nnx.Module):
    """Convolution over rows r-m .. r and columns c-m .. c+m, m = kernel // 2: the vertical stack, the current row included.

    y[r, c] = sum_{i=0..m} sum_{j=0..k-1} W[i, j] x[r-m+i, c+j-m] + b.  With `factorized` the kernel is a 1 x k convolution to as many
    features as come out of the gate, followed by an m+1 x 1 convolution.
    """

    def __init__(self, features_in: int, features_out: int, kernel: int, factorized: bool, rngs: nnx.Rngs):
        self.kernel, self.rows, self.features_out = kernel, kernel // 2 + 1, features_out
        fan = kernel * features_in
        self.across = normal(rngs, (fan, features_out // 2), fan) if factorized else None
        inner = features_out // 2 if factorized else fan
        # One matrix for all rows that read this one: block i is the tap of the row i below it.
        self.down = normal(rngs, (inner, self.rows * features_out), inner * self.rows)
        self.bias = zeros((features_out,))

    def _push(self, x, axis: int):
        """Contributions of every row to itself and the m rows below it: [..., (m+1) features_out]."""
        x = columns(x, self.kernel, axis)
        return dot(dot(x, self.across[...]) if self.across is not None else x, self.down[...])

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W E"]:
        """The whole image."""
        parts = jnp.split(self._push(x, axis=2), self.rows, axis=-1)
        return add_bias(sum(shift(part, i, axis=1) for i, part in enumerate(parts)), self.bias[...])

    def init_row(self, width: int, batch: int, dtype=jnp.float32) -> Float[Array, "m W B E"]:
        """Partial sums of the next m rows before anything is drawn: zeros."""
        return jnp.zeros((self.rows - 1, width, batch, self.features_out), dtype)

    def row(self, waiting: Float[Array, "m W B E"], x: Float[Array, "W B D"]) -> tuple[Float[Array, "m W B E"], Float[Array, "W B E"]]:
        """One finished row: the partial sums of the rows below, and this row's output."""
        new = self._push(x, axis=0).reshape(*x.shape[:2], self.rows, self.features_out)
        new = new.transpose(2, 0, 1, 3)
        own = add_bias(new[0] + (waiting[0] if self.rows > 1 else 0), self.bias[...])
        below = jnp.concatenate([waiting[1:], jnp.zeros_like(new[:1])])[: self.rows - 1] + new[1:]
        return below, own


class HorizontalConv(nnx.Module):
    """Convolution over columns c-m .. c of one row, the centre tap masked by channel groups (A in the first layer, B after it), no bias.

    y[c] = sum_{j=1..m} W_j x[c-j] + (mask * W_0) x[c]; outputs are two halves (tanh | sigmoid), each in groups.
    """

    def __init__(self, features_in: int, features_out: int, kernel: int, groups: int, kind: str, rngs: nnx.Rngs):
        self.taps, self.features_in, self.features_out, self.groups, self.kind = kernel // 2, features_in, features_out, groups, kind
        fan = features_in * (self.taps + 0.5)
        self.left = normal(rngs, (features_in, self.taps * features_out), fan)
        hidden = kind == "A" and groups == 1  # the centre is masked altogether
        self.centre = None if hidden else normal(rngs, (features_in, features_out), fan)

    def masked_centre(self) -> Float[Array, "D E"]:
        """The centre tap with its mask: zero where a group may not look."""
        return self.centre[...] * halves_mask(self.features_in, self.features_out // 2, self.groups, self.kind)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W E"]:
        """The whole image."""
        pushed = dot(x, self.pack(x.dtype).reshape(self.features_in, -1))
        parts = jnp.split(pushed, self.taps + 1, axis=-1)
        return sum(shift(part, j, axis=2) for j, part in enumerate(parts))

    def pack(self, dtype=jnp.float32) -> Float[Array, "G d E"]:
        """[centre | left taps] by input group: what a pixel's group pushes to its own pixel and to the m pixels after it."""
        centre = jnp.zeros((self.features_in, self.features_out)) if self.centre is None else self.masked_centre()
        both = jnp.concatenate([centre, self.left[...]], axis=1).astype(dtype)
        return both.reshape(self.groups, self.features_in // self.groups, -1)


def take_group(x: Float[Array, "B D"], k, groups: int, halves: int = 1) -> Float[Array, "B E"]:
    """Group k of the features, of each half: [B, halves D] -> [B, halves D/G]."""
    if groups == 1:
        return x
    batch = x.shape[0]
    parts = x.reshape(batch, halves, groups, -1)
    return jax.lax.dynamic_index_in_dim(parts, k, axis=2, keepdims=False).reshape(batch, -1)


def of_group(weights: Float[Array, "G d E"], k) -> Float[Array, "d E"]:
    """The rows of the weights that channel group k is multiplied with."""
    return weights[0] if weights.shape[0] == 1 else jax.lax.dynamic_index_in_dim(weights, k, keepdims=False)


def quarters(n: int) -> tuple[int, ...]:
    """The ends of four equal parts of n places, of fewer where a part would have less than 64.

    Attention that reads in each part only the keys up to the part's end takes 1/4 (1 + 2 + 3 + 4) / 4 = 5/8 of the products that attention
    to all keys with a mask takes.
    """
    size = max(-(-n // 4), 64)
    return tuple(min(start + size, n) for start in range(0, n, size))


def resize(x: Array, size: int, axis: int) -> Array:
    """The first `size` places of an axis, zeros after the last one."""
    x = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, pad)


def scan_in_parts(body, carry, inputs, ends: Sequence[int], fit):
    """`jax.lax.scan` in parts that end at `ends`, the last one the end of all: before each part `fit(cache, end)` makes the cache larger.

    The carry is (cache, previous). Within one scan all shapes are fixed, so that a cache that grows needs several.
    """
    values = []
    for begin, end in pairwise((0, *ends)):
        cache, previous = carry
        part = jax.tree.map(lambda x: x[begin:end], inputs)  # noqa: B023 (called at once)
        carry, drawn = jax.lax.scan(body, (fit(cache, end), previous), part)
        values.append(drawn)
    return carry, jnp.concatenate(values)


def at(x: Array, i) -> Array:
    """x[i] along the leading axis, i may be traced."""
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def put(x: Array, value: Array, i) -> Array:
    """x with x[i] = value."""
    return jax.lax.dynamic_update_index_in_dim(x, value, i, 0)
