"""Convolutions and small functions that several models use. Causal layers have two forms: for whole images and for the sampler.

Axes: `[B, H, W, D]` for whole images, `[W, B, D]` for one row in the sampler (columns first, so that one column is contiguous).
Channel groups: with G = C colour channels, D features are G contiguous groups of D/G. Features of group g depend on colour channels < g
(mask A) or <= g (mask B) of their own pixel, and on all channels of the pixels before it (van den Oord et al. 2016, "Pixel Recurrent
Neural Networks", section 3.4).

The sampler computes causal sums y[c] = sum_j W_j x[c - j] in scatter form, here called pushing: as soon as x[c] is known, one matrix
product gives W_j x[c] for all taps j, and these terms are added to partial sums of y[c + j] in the cache. A place is finished when
its sum is needed: the number of products per step does not depend on the kernel size. The same is done for rows and for channel groups.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PRNGKeyArray, Real

from jaxgen.errors import ConfigError

EXACT = jax.lax.Precision.HIGHEST
"""The precision asked of every product of float32 factors in the models; tests/test_precision.py finds it in their traced programs. By
default GPUs and TPUs may round factors to TF32 or bfloat16 first, which changes likelihoods. For speed there is `dtype="bfloat16"`."""

FEW_IMAGES = 8
"""On a CPU a convolution of at most this many images is computed as one matrix product, see `convolution`; and the gradient of a kernel is
computed for so many images at a time, see `_reordered`."""
MOST_TAPS = 25
"""Of a kernel for `_one_feature`, whose time grows with every tap: between 5 x 5 and 7 x 7 it falls behind a matrix product."""
IMAGES, KERNEL = "NHWC", "HWIO"
"""The order of axes for which XLA has fast convolutions on every kind of device: batch, row, column, feature; row, column, in, out."""


def check_kernels_and_widths(config, kernels: tuple[str, ...], smallest: int) -> None:
    """ConfigError unless the named kernels are odd and at least `smallest`, and width and head_width multiples of C (for `group_mask`)."""
    channels = config.image_shape[2]
    for name in kernels:
        if getattr(config, name) < smallest or getattr(config, name) % 2 == 0:
            raise ConfigError(name, f"an odd number, {smallest} or more", getattr(config, name))
    for name in ("width", "head_width"):
        if getattr(config, name) < 1 or getattr(config, name) % channels:
            size = getattr(config, name)
            near = max(1, round(size / channels)) * channels
            raise ConfigError(name, f"a positive multiple of the {channels} channels", size, f"try {near}")


def group_mask(features_in: int, features_out: int, groups: int, kind: str) -> np.ndarray:
    """Float mask [features_in, features_out]: 1 where the input's group is < (kind "A") or <= (kind "B") the output's group, else 0."""
    group_in = np.arange(features_in) * groups // features_in
    group_out = np.arange(features_out) * groups // features_out
    visible = group_in[:, None] < group_out[None] if kind == "A" else group_in[:, None] <= group_out[None]
    return visible.astype(np.float32)


def halves_mask(features_in: int, features_out: int, groups: int, kind: str) -> np.ndarray:
    """`group_mask` for two outputs side by side (tanh | sigmoid, skip | residual): [features_in, 2 features_out]."""
    return np.tile(group_mask(features_in, features_out, groups, kind), (1, 2))


def draw(numbers: Callable[[PRNGKeyArray, tuple[int, ...]], Array], key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """numbers(key, shape) of a function such as `jax.random.normal`, bit for bit.

    Outside of `jit` XLA compiles such a draw for every shape anew, and one with several axes takes it up to a second and more. By default
    (`jax_threefry_partitionable`) the number at a place follows from the key and the place alone. So one program for each power of two is
    enough: the first of its numbers are those of a shorter draw.
    """
    if isinstance(key, jax.core.Tracer) or not jax.config.jax_threefry_partitionable:
        return numbers(key, shape)
    size = math.prod(shape)
    longer = numbers(key, (1 << max(size - 1, 0).bit_length(),))
    if isinstance(longer, jax.core.Tracer):  # a key from outside of the function that is traced
        return numbers(key, shape)
    return jax.device_put(np.asarray(longer)[:size].reshape(shape))


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: float) -> nnx.Param:
    """A float32 parameter, drawn from a normal distribution with standard deviation 1 / sqrt(fan_in)."""
    return nnx.Param(draw(lambda key, shape: jax.random.normal(key, shape, jnp.float32) / np.sqrt(fan_in), rngs.params(), shape))


def lecun_normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype=jnp.float32) -> Float[Array, "... E"]:
    """Flax's first kernel, bit for bit: normal numbers cut at two deviations, then scaled to variance 1 / inputs. E outputs."""
    deviation = jnp.sqrt(jnp.array(1.0 / math.prod(shape[:-1]), dtype)) / jnp.array(0.87962566103423978, dtype)
    return draw(lambda key, shape: jax.random.truncated_normal(key, -2, 2, shape, dtype) * deviation, key, shape)


def zeros(shape: tuple[int, ...]) -> nnx.Param:
    """A float32 parameter of zeros, such as a bias."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def embed(table: Float[Array, "K D"], label: Array) -> Float[Array, "B D"]:
    """Embeddings of labels: table[label] for classes, int [B]; label @ table for weights of the classes, float [B, K]."""
    return table[label] if jnp.issubdtype(label.dtype, jnp.integer) else dot(label, table)


def scale_pixels(image: Real[Array, "*shape"], levels: int, dtype=jnp.float32) -> Float[Array, "*shape"]:
    """2 x / (levels - 1) - 1, from {0 .. levels-1} to [-1, 1]. The padding around an image, 0, is the middle of that range."""
    return (image.astype(jnp.float32) * (2.0 / (levels - 1)) - 1.0).astype(dtype)


def shift(x: Float[Array, "..."], by: int, axis: int) -> Float[Array, "..."]:
    """y[i] = x[i - by] along the axis, 0 where i - by is outside; `by` may be negative."""
    if by == 0:
        return x
    size = x.shape[axis]
    pad = [(0, 0)] * x.ndim
    pad[axis] = (max(by, 0), max(-by, 0))
    start = max(-by, 0)
    return jax.lax.slice_in_dim(jnp.pad(x, pad), start, start + size, axis=axis)


def columns(x: Float[Array, "... D"], kernel: int, axis: int) -> Float[Array, "... kD"]:
    """x[c-m], .., x[c+m] of every index c of the axis, concatenated as features: [..., kernel D], m = kernel // 2, zeros outside."""
    m = kernel // 2
    return jnp.concatenate([shift(x, m - j, axis) for j in range(kernel)], axis=-1)


def gate(x: Float[Array, "... E"]) -> Float[Array, "... D"]:
    """tanh(first half) * sigmoid(second half), E = 2D."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * jax.nn.sigmoid(b)


def dropout(x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray) -> Float[Array, "*shape"]:
    """Each element is zero with probability `rate`, else divided by 1 - rate."""
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), jnp.zeros_like(x))


def dot(x: Float[Array, "... D"], weight: Float[Array, "D E"], dtype=None) -> Float[Array, "... E"]:
    """x @ weight with the weight cast to the dtype of x, at precision EXACT. dtype: of the result, None for that of x.

    Parameters of a distribution are asked for in float32 although x may be bfloat16: bfloat16 numbers just below 1 are 2^-8 apart, half
    the distance of two of 256 levels on [-1, 1].
    """
    return jnp.matmul(x, weight.astype(x.dtype), precision=EXACT, preferred_element_type=dtype)


def convolution(
    x: Float[Array, "B H W D"],
    kernel: Float[Array, "h w D E"],
    padding: Sequence,
    stride: int = 1,
    spread: int = 1,
    taps: int | None = None,
) -> Float[Array, "B R C E"]:
    """y[r, c] = sum_{i, j} K[i, j] x'[s r + i, s c + j], in the dtype of x; s = stride.

    x' is x with spread - 1 zeros between its pixels, then padded by `padding` = ((top, bottom), (left, right)). taps: only the first
    `taps` positions of the kernel in raster order are not zero; None for all.

    On a CPU, for at most FEW_IMAGES images, the windows are copied out and multiplied with the kernel in one product. That is faster than
    XLA's convolution there, five to nine times in a loop that adds up gradients image by image. Otherwise it is XLA's convolution: the
    windows of many images would take too much memory. Its gradients are those of `_reordered`. With spread > 1 see `_between_zeros`: XLA
    computes the kernel's gradient of that convolution by a loop over indices there, about 20 times slower than products. For few features,
    such as the last layer of a decoder, see `_few_features`, and for images of one channel `_one_feature`.
    """
    kernel = kernel.astype(x.dtype)
    if spread > 1 and stride == 1 and taps is None and jax.default_backend() == "cpu":
        return _between_zeros(x, kernel, padding, spread)
    (h, w, features_in, features), taps = kernel.shape, kernel.shape[0] * kernel.shape[1] if taps is None else taps
    if jax.default_backend() == "cpu" and (stride, spread) == (1, 1) and _are_few(kernel):
        return _few_features(x, kernel, padding)
    if jax.default_backend() == "cpu" and x.shape[0] > FEW_IMAGES and spread == 1:
        unread = [(n + sum(pad) - k) % stride for n, pad, k in zip(x.shape[1:3], padding, (h, w), strict=True)]
        # The last pixels of a row that is no multiple of the stride are in no window: a negative padding of the kernel's gradient.
        x, padding = _cut(x, [(before, after - rest) for (before, after), rest in zip(padding, unread, strict=True)])
        return _reordered(x, kernel, padding, stride)
    if jax.default_backend() != "cpu" or x.shape[0] > FEW_IMAGES:
        return _xla(x, kernel, padding, stride, spread)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, spread - 1) for p in padding), (0, 0, 0)])
    rows, columns = ((n - m) // stride + 1 for n, m in zip(x.shape[1:3], (h, w), strict=True))
    ends = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    places = [divmod(t, w) for t in range(taps)]
    windows = jnp.concatenate([x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i, j in places], axis=-1)
    return dot(windows, kernel.reshape(-1, features)[: taps * features_in])


def add_bias(x: Float[Array, "... E"], bias: Float[Array, "..."]) -> Float[Array, "... E"]:
    """x + bias at every position, in the dtype of x; the bias is [E], or [B, E] for x [..., B, E]."""
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def _xla(x: Array, kernel: Array, padding: Sequence, stride: int, spread: int = 1, axes=(IMAGES, KERNEL, IMAGES)) -> Array:
    """XLA's convolution. axes: the order of the axes of x, of the kernel and of the result."""
    if spread == 1:
        x, padding = _cut(x, padding)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, padding, lhs_dilation=(spread,) * 2, dimension_numbers=axes, precision=EXACT
    )


def _cut(x: Float[Array, "B H W D"], padding: Sequence) -> tuple[Array, tuple]:
    """x without the pixels that a negative padding cuts off, and the padding without them.

    Of a negative padding XLA's CPU backend may make a convolution that reads beyond x (jaxlib 0.10.2).
    """
    if min(zeros for pair in padding for zeros in pair) < 0:
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((min(a, 0), min(b, 0), 0) for a, b in padding), (0, 0, 0)])
    return x, tuple((max(a, 0), max(b, 0)) for a, b in padding)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _reordered(x: Float[Array, "B H W D"], kernel: Float[Array, "h w D E"], padding: tuple, stride: int) -> Float[Array, "B R C E"]:
    """XLA's convolution, or `_one_feature`, with derivatives that are fast on a CPU, in loops too.

    A gradient of a convolution is a convolution again, by jax's own rule one with another order of the axes. XLA's CPU backend brings
    them into that of IMAGES and KERNEL, but not inside of a loop (gradients added up over parts of a batch): there it computes number by
    number, 20 to 90 times slower. So the derivative is written in an order of axes for which the gradient has the usual one.

    The gradient of the kernel is a convolution that takes the images for features: 8 at a time are 1.4 times as fast as 64.
    """
    few = kernel.shape[2] == 1 and kernel.shape[0] * kernel.shape[1] <= MOST_TAPS
    return (_one_feature if few else _xla)(x, kernel, padding, stride)


def _one_feature(x: Float[Array, "B H W 1"], kernel: Float[Array, "h w 1 E"], padding: Sequence, stride: int) -> Float[Array, "B R C E"]:
    """The sum over the taps, in one loop: for a product with a matrix of so few rows XLA's convolution takes 1.3 to 16 times as long."""
    kernel, wide = kernel.astype(jnp.float32), jnp.pad(x.astype(jnp.float32), [(0, 0), *padding, (0, 0)])
    h, w = kernel.shape[:2]
    rows, columns = (n - k + 1 for n, k in zip(wide.shape[1:3], (h, w), strict=True))
    taps = [wide[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j][None, None] for i, j in np.ndindex(h, w)]
    return sum(taps).astype(x.dtype)


def _derivative(padding: tuple, stride: int, primals: tuple, tangents: tuple) -> tuple:
    """y and dy = dx * K + x * dK."""
    (x, kernel), (dx, dkernel) = primals, tangents
    y, terms = _reordered(x, kernel, padding, stride), []
    if not isinstance(dx, SymbolicZero):
        terms.append(_linear(dx, y, kernel, padding, stride))
    if not isinstance(dkernel, SymbolicZero):
        batch, swapped = x.shape[0], dkernel.transpose(2, 0, 1, 3)
        few = next((n for n in range(FEW_IMAGES, FEW_IMAGES // 2 - 1, -1) if batch % n == 0), batch)
        # [parts, D, H, W, few]. Every part has images of all devices over which a batch is split.
        parts = x.reshape(few, batch // few, *x.shape[1:]).transpose(1, 4, 2, 3, 0)
        each = jax.lax.map(lambda part: _xla(part, swapped, padding, stride, axes=("CHWN", "IHWO", "HWNC")), parts)
        terms.append(each.transpose(3, 0, 1, 2, 4).reshape(y.shape))  # from [parts, R, C, few, E]
    return y, sum(terms) if terms else jnp.zeros_like(y)


_reordered.defjvp(_derivative, symbolic_zeros=True)


def _linear(dx: Array, y: Array, kernel: Array, padding: tuple, stride: int) -> Array:
    """dx * K, written such that its transpose, the gradient of x, has a fast form.

    That is the convolution with the turned kernel of dy with stride - 1 zeros between its pixels, of operations that have a transpose.
    """
    turned, around = kernel[::-1, ::-1].swapaxes(2, 3), []
    for n, m, k, (before, _) in zip(dx.shape[1:3], y.shape[1:3], kernel.shape, padding, strict=False):
        around.append((k - 1 - before, n + before - 1 - stride * (m - 1)))
    if stride == 1 and not _are_few(turned):
        return _xla(dx, kernel.swapaxes(2, 3), padding, stride, axes=(IMAGES, "HWOI", IMAGES))

    def part(x: Array, kernel: Array, padding: Sequence) -> Array:
        return _few_features(x, kernel, padding) if _are_few(kernel) else _xla(x, kernel, padding, 1)

    return jax.linear_transpose(lambda dy: _between_zeros(dy, turned, around, stride, part), y)(dx)[0]


def _are_few(kernel: Array) -> bool:
    """Whether the products of all taps together have fewer features than x."""
    height, width, features_in, features = kernel.shape
    return height * width * features < features_in


def _few_features(x: Float[Array, "B H W D"], kernel: Float[Array, "h w D E"], padding: Sequence) -> Float[Array, "B R C E"]:
    """`convolution` where h w E < D: x is multiplied once with all taps; the products, which have fewer features, are shifted and added.

    XLA's CPU backend reads x once for every tap instead, and copies x into another order for the kernel's gradient.
    """
    h, w, features_in, features = kernel.shape
    # As matrices: for more axes XLA copies them into another order for the kernel's gradient.
    products = dot(x.reshape(-1, features_in), kernel.transpose(2, 0, 1, 3).reshape(features_in, -1), jnp.float32)
    products = jax.lax.optimization_barrier(products)  # else XLA computes them again for every tap
    products = products.reshape(*x.shape[:3], -1)
    y = jnp.zeros(())
    for tap, part in enumerate(jnp.split(products, h * w, axis=-1)):
        around = [(low - at, high + at - (n - 1), 0) for at, (low, high), n in zip(divmod(tap, w), padding, (h, w), strict=True)]
        y = y + jax.lax.pad(part, jnp.float32(0), [(0, 0, 0), *around, (0, 0, 0)])
    return y.astype(x.dtype)


def _between_zeros(x: Float[Array, "B H W D"], kernel: Float[Array, "h w D E"], padding: Sequence, spread: int, convolve=None) -> Array:
    """`convolution` with spread s > 1 without the products with the zeros between the pixels.

    Output row s a + p reads x[a - before + i] through tap first + s i of the kernel, for i = 0, 1, ... So the rows of one remainder p
    are a convolution of x with every s-th row of the kernel; columns likewise. convolve(x, kernel, padding): by `convolution` where None.
    """
    size = [spread * (n - 1) + 2 + sum(pad) - k for n, pad, k in zip(x.shape[1:3], padding, kernel.shape[:2], strict=True)]
    kernel = jnp.pad(kernel, [(0, max(0, spread - k)) for k in kernel.shape[:2]] + [(0, 0), (0, 0)])  # at least one tap a remainder

    def part(*remainders: int) -> Array:
        taps, around = kernel, []
        for axis, p in enumerate(remainders):
            before, first = divmod(padding[axis][0] - p, spread)
            taps = jax.lax.slice_in_dim(taps, first, None, spread, axis)
            after = -(-size[axis] // spread) - x.shape[1 + axis] - before + taps.shape[axis] - 1
            around.append((before, after))
        return (convolve or convolution)(x, taps, around)

    parts = jnp.stack([jnp.stack([part(p, q) for q in range(spread)], axis=3) for p in range(spread)], axis=2)
    batch, rows, _, columns, _, features = parts.shape  # [B, rows, p, columns, q, E]
    return parts.reshape(batch, rows * spread, columns * spread, features)[:, : size[0], : size[1]]


class Linear(nnx.Linear):
    """Flax's linear layer with exact products."""

    def __init__(self, features_in: int, features_out: int, rngs: nnx.Rngs, use_bias: bool = True):
        super().__init__(features_in, features_out, use_bias=use_bias, precision=EXACT, kernel_init=lecun_normal, rngs=rngs)


class Conv(nnx.Conv):
    """Flax's convolution of images, H x W to ceil(H / stride) x ceil(W / stride): the same parameters and first values, by `convolution`.

    The zeros around the image are those of "SAME": of the Z = max((ceil(n / stride) - 1) stride + kernel - n, 0) along an axis of n
    pixels, floor(Z / 2) are before the first pixel.
    """

    def __init__(self, features_in: int, features_out: int, kernel: int, rngs: nnx.Rngs, stride: int = 1):
        super().__init__(features_in, features_out, (kernel, kernel), strides=(stride, stride), kernel_init=lecun_normal, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B R C E"]:
        """y, in the dtype of x."""
        (kernel, _), (stride, _) = self.kernel_size, self.strides
        zeros = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[1:3]]
        around = tuple((z // 2, z - z // 2) for z in zeros)
        return add_bias(convolution(x, self.kernel[...], around, stride), self.bias[...])


class ConvTranspose(nnx.ConvTranspose):
    """Flax's transposed convolution of images, H x W to stride H x stride W: the same parameters and first values, by `convolution`."""

    def __init__(self, features_in: int, features_out: int, kernel: int, stride: int, rngs: nnx.Rngs):
        super().__init__(features_in, features_out, (kernel, kernel), strides=(stride, stride), kernel_init=lecun_normal, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B R C E"]:
        """y, in the dtype of x."""
        (kernel, _), (stride, _) = self.kernel_size, self.strides
        before = kernel - 1 if stride >= kernel else -(-(kernel + stride - 2) // 2)  # the rest of k + s - 2 zeros is after the last pixel
        return add_bias(convolution(x, self.kernel[...], ((before, kernel + stride - 2 - before),) * 2, spread=stride), self.bias[...])


def take_group(x: Float[Array, "B D"], k, groups: int, halves: int = 1) -> Float[Array, "B E"]:
    """Channel group k of each of the `halves` equal parts of the features: [B, halves D] -> [B, halves D/G]."""
    if groups == 1:
        return x
    batch = x.shape[0]
    parts = x.reshape(batch, halves, groups, -1)
    return jax.lax.dynamic_index_in_dim(parts, k, axis=2, keepdims=False).reshape(batch, -1)


def of_group(weights: Float[Array, "G d E"], k) -> Float[Array, "d E"]:
    """weights[k], the matrix that channel group k is multiplied with."""
    return weights[0] if weights.shape[0] == 1 else jax.lax.dynamic_index_in_dim(weights, k, keepdims=False)


def at(x: Array, i) -> Array:
    """x[i] along the leading axis; i may be traced."""
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def put(x: Array, value: Array, i) -> Array:
    """x with x[i] replaced by `value`; i may be traced."""
    return jax.lax.dynamic_update_index_in_dim(x, value, i, 0)
