"""Convolutions with weight normalisation, in the three forms of a raster-order sampler: the whole image, one row, one pixel.

    y[r, c] = sum_{i, j} K[i, j] x[s r - (h-1) + i, s c - w//2 + j] + b        kernel h x w, stride s, zeros outside the image

The kernel covers the pixel's own row and the h - 1 rows above. w = 3 is centred on the pixel's column (the "down" convolutions of
PixelCNN++), w = 2 covers the column and the one to its left ("down-right"), w = 1 the column only.

K = gain V / ||V|| with one gain and one norm for each output feature, the norm over all weights of that output (Salimans & Kingma 2016,
"Weight Normalization", section 2), and with the data-dependent initialisation of section 3.

Axes: images [B, H, W, D]; one row in the sampler [W, B, D].
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxgen.layers.convolutions import add_bias, columns, convolution, dot, draw, shift, zeros

CONSTANT = 1e-6
"""Variance below which an output counts as constant over a batch."""


class Conv(NamedTuple):
    """The convolution above with stride 1. It is computed in the dtype of its kernel and bias."""

    kernel: Float[Array, "h w D E"]
    bias: Float[Array, " E"]

    stride = 1

    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*out E"]:
        """The whole image [B, H, W, D]; with stride 2, ceil(H / 2) x ceil(W / 2). A 1 x 1 kernel takes positions of any shape."""
        height, width = self.kernel.shape[:2]
        x = x.astype(self.kernel.dtype)
        if (height, width, self.stride) == (1, 1, 1):
            return add_bias(dot(x, self.kernel[0, 0]), self.bias)
        padding = ((height - 1, 0), (width // 2, (width - 1) // 2))
        return add_bias(convolution(x, self.kernel, padding, self.stride), self.bias)

    def tap(self, x: Float[Array, "W B D"], i: int) -> Float[Array, "w B E"]:
        """The terms of a row x that is multiplied with row i of the kernel, for all columns of y, without the bias."""
        return dot(columns(x, self.kernel.shape[1], axis=0)[:: self.stride], self.kernel[i].reshape(-1, self.kernel.shape[3]))

    def row(self, above: Float[Array, "W B D"], x: Float[Array, "W B D"]) -> Float[Array, "w B E"]:
        """A row of y from its row of x and the one above (h = 2)."""
        return add_bias(self.tap(above, 0) + self.tap(x, 1), self.bias)

    def base(self, above: Float[Array, "W B D"]) -> Float[Array, "w B E"]:
        """The terms of a row of y that do not depend on its row of x: the bias and the row above (h = 2)."""
        return add_bias(self.tap(above, 0), self.bias)

    def pixel(self, left: Float[Array, "B D"], x: Float[Array, "B D"]) -> Float[Array, "B E"]:
        """The other terms of one pixel of y, from x at this pixel and at the one to its left (w = 2): y = base + pixel."""
        return dot(jnp.concatenate([left, x], axis=-1), self.kernel[-1].reshape(-1, self.kernel.shape[3]))


class Down(Conv):
    """The convolution above with stride 2: y[r, c] depends on x up to row 2r and, for w = 2, up to column 2c."""

    stride = 2


class Up(Conv):
    """Transposed convolution of stride 2, h = 2: the convolution above of x with a zero after every row and every column.

    x[r, c] is added to rows 2r, 2r+1 and columns 2c, 2c+1 of y, with w = 3 to column 2c-1 too. So even rows of y use K[1], odd rows K[0];
    even columns use K[:, 1], odd ones K[:, 0] of the column to the left and, with w = 3, K[:, 2] of the one to the right.
    """

    def __call__(self, x: Float[Array, "B h w D"], size: tuple[int, int]) -> Float[Array, "B H W E"]:
        """The whole image, cropped to `size` = (H, W)."""
        kernel = self.kernel.shape[:2]
        low = (kernel[0] - 1, kernel[1] // 2)
        padding = [(p, n - (2 * m - 1) - p + k - 1) for p, n, m, k in zip(low, size, x.shape[1:3], kernel, strict=True)]
        return add_bias(convolution(x, self.kernel, padding, spread=2), self.bias)

    def row(self, x: Float[Array, "w B D"], width: int) -> Float[Array, "2 W B E"]:
        """The two rows of y that row x is added to, with bias, cropped to `width` = W columns (h = 2)."""
        h, w, _, features = self.kernel.shape
        parts = dot(x, self.kernel[::-1].transpose(2, 1, 0, 3).reshape(x.shape[-1], -1)).reshape(*x.shape[:2], w, h, features)
        even, odd = parts[:, :, 1], parts[:, :, 0]
        if w == 3:
            odd = odd + shift(parts[:, :, 2], -1, axis=0)
        y = jnp.stack([even, odd], axis=1).transpose(3, 0, 1, 2, 4).reshape(h, -1, x.shape[1], features)
        return add_bias(y[:, :width], self.bias)


class WeightNorm(nnx.Module):
    """A convolution of the class `form` (Conv, Down or Up) with kernel gain V / ||V||.

    scale: the standard deviation of its outputs after the data-dependent initialisation, and the gain before it. exact: computed in
    float32 whatever the dtype of x is, for the parameters of a distribution.
    """

    def __init__(
        self,
        form: type,
        features_in: int,
        features_out: int,
        kernel: tuple[int, int],
        rngs: nnx.Rngs,
        scale: float = 1.0,
        exact: bool = False,
    ):
        self.form, self.scale, self.exact = form, scale, exact
        shape = (*kernel, features_in, features_out)
        # Drawn with one axis and reshaped: inside of `jit` a draw with four axes takes several times as long to compile.
        direction = draw(lambda key, shape: 0.05 * jax.random.normal(key, shape, jnp.float32), rngs.params(), (math.prod(shape),))
        self.direction = nnx.Param(direction.reshape(shape))
        self.gain = nnx.Param(jnp.full((features_out,), scale, jnp.float32))
        self.bias = zeros((features_out,))

    def layer(self, dtype=jnp.float32) -> Conv:
        """The `form` with the kernel gain V / ||V|| and the bias, cast to dtype (float32 if exact)."""
        direction, dtype = self.direction[...], jnp.float32 if self.exact else dtype
        factor = self.gain[...] * jax.lax.rsqrt(jnp.square(direction).sum((0, 1, 2)) + 1e-12)
        return self.form(add_gain(direction, factor).astype(dtype), self.bias[...].astype(dtype))

    def __call__(self, x: Float[Array, "*shape D"], *size: tuple[int, int], initialise: bool = False) -> Float[Array, "*out E"]:
        """The whole image; size: (H, W) of the output, for Up only. initialise: first set gain and bias from x, see `_set_from`."""
        if initialise:
            self._set_from(x, *size)
        return self.layer(x.dtype)(x, *size)

    def _set_from(self, x, *size) -> None:
        """Set gain = scale / std(t) and bias = -mean(t) gain, t = (V / ||V||) * x, so that y has mean 0 and standard deviation `scale`.

        An output feature that is constant over the batch and all positions gets the gain `scale`, where scale / std(t) would be huge. That
        happens for a layer that reads the padding only, such as the row above in images of one row.
        """
        self.gain[...], self.bias[...] = jnp.ones_like(self.gain[...]), jnp.zeros_like(self.bias[...])
        t = self.layer(x.dtype)(x, *size).astype(jnp.float32)
        variance = t.var((0, 1, 2))
        gain = self.scale * jnp.where(variance > CONSTANT, jax.lax.rsqrt(jnp.maximum(variance, CONSTANT)), 1)
        self.gain[...], self.bias[...] = gain, -t.mean((0, 1, 2)) * gain


def add_gain(direction: Float[Array, "h w D E"], factor: Float[Array, " E"]) -> Float[Array, "h w D E"]:
    """The kernel of every output feature times that feature's factor."""
    return direction * factor.reshape(1, 1, 1, -1)


def packed(module, dtype):
    """The module with every WeightNorm replaced by its `layer(dtype)`, so that a sampler computes the kernels once per call."""

    def pack(leaf):
        return leaf.layer(dtype) if isinstance(leaf, WeightNorm) else leaf

    return jax.tree.map(pack, module, is_leaf=lambda leaf: isinstance(leaf, WeightNorm))
