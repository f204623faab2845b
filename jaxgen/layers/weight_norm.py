"""Convolutions with weight normalisation, in the three forms of a raster-order sampler: the whole image, one row, one pixel.

    y[r, c] = sum_{i, j} K[i, j] x[s r - (h-1) + i, s c - w//2 + j] + b        kernel h x w, stride s, zeros outside the image

reads rows above and its own; w = 3 is centred on its column (the "down" convolutions of PixelCNN++), w = 2 reads the column and its left
neighbour ("down-right"), w = 1 the column only. K = gain V / ||V||, the norm over everything that enters one output
(Salimans & Kingma 2016, "Weight Normalization", section 2), with the data-dependent initialisation of its section 3.

Axes: images [B, H, W, D]; one row in the sampler [W, B, D].
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxgen.layers.convolutions import add_bias, columns, convolution, dot, shift, zeros

CONSTANT = 1e-6
"""Variance below which an output counts as constant over a batch."""


class Conv(NamedTuple):
    """The convolution above, kernel and bias in the dtype in which it is computed: that of the activations, or float32."""

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
        """What row x adds to all columns through row i of the kernel, without the bias."""
        return dot(columns(x, self.kernel.shape[1], axis=0)[:: self.stride], self.kernel[i].reshape(-1, self.kernel.shape[3]))

    def row(self, above: Float[Array, "W B D"], x: Float[Array, "W B D"]) -> Float[Array, "w B E"]:
        """One row from its input and the one above (h = 2)."""
        return add_bias(self.tap(above, 0) + self.tap(x, 1), self.bias)

    def base(self, above: Float[Array, "W B D"]) -> Float[Array, "w B E"]:
        """What is known of a row before its first pixel: the bias and the row above (h = 2)."""
        return add_bias(self.tap(above, 0), self.bias)

    def pixel(self, left: Float[Array, "B D"], x: Float[Array, "B D"]) -> Float[Array, "B E"]:
        """What a pixel and its left neighbour add to `base` (w = 2)."""
        return dot(jnp.concatenate([left, x], axis=-1), self.kernel[-1].reshape(-1, self.kernel.shape[3]))


class Down(Conv):
    """Stride 2: output (r, c) is computed when input (2r, 2c) is there."""

    stride = 2


class Up(Conv):
    """Transposed convolution of stride 2, h = 2: input (r, c) spreads to rows 2r, 2r + 1 and columns 2c, 2c + 1; w = 3 reaches 2c - 1 too.

    Even rows take K[1], odd rows K[0]; even columns K[:, 1], odd ones K[:, 0] of c and, with w = 3, K[:, 2] of c + 1.
    """

    def __call__(self, x: Float[Array, "B h w D"], size: tuple[int, int]) -> Float[Array, "B H W E"]:
        """The whole image, cropped to `size` = (H, W)."""
        kernel = self.kernel.shape[:2]
        low = (kernel[0] - 1, kernel[1] // 2)
        padding = [(p, n - (2 * m - 1) - p + k - 1) for p, n, m, k in zip(low, size, x.shape[1:3], kernel, strict=True)]
        return add_bias(convolution(x, self.kernel, padding, spread=2), self.bias)

    def row(self, x: Float[Array, "w B D"], width: int) -> Float[Array, "2 W B E"]:
        """The two rows that row x spreads to, cropped to W columns."""
        h, w, _, features = self.kernel.shape
        parts = dot(x, self.kernel[::-1].transpose(2, 1, 0, 3).reshape(x.shape[-1], -1)).reshape(*x.shape[:2], w, h, features)
        even, odd = parts[:, :, 1], parts[:, :, 0]
        if w == 3:
            odd = odd + shift(parts[:, :, 2], -1, axis=0)
        y = jnp.stack([even, odd], axis=1).transpose(3, 0, 1, 2, 4).reshape(h, -1, x.shape[1], features)
        return add_bias(y[:, :width], self.bias)


class WeightNorm(nnx.Module):
    """A convolution of the given form with kernel = gain V / ||V||; `scale` is the standard deviation of its outputs at initialisation.

    `exact`: in float32 whatever the activations are, for the parameters of a distribution.
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
        # Drawn flat: a draw with four axes takes five times as long to compile.
        direction = jax.random.normal(rngs.params(), (math.prod(shape),), jnp.float32)
        self.direction = nnx.Param(0.05 * direction.reshape(shape))
        self.gain = nnx.Param(jnp.full((features_out,), scale, jnp.float32))
        self.bias = zeros((features_out,))

    def layer(self, dtype=jnp.float32) -> Conv:
        """The convolution with its kernel computed and cast."""
        direction, dtype = self.direction[...], jnp.float32 if self.exact else dtype
        factor = self.gain[...] * jax.lax.rsqrt(jnp.square(direction).sum((0, 1, 2)) + 1e-12)
        return self.form(add_gain(direction, factor).astype(dtype), self.bias[...].astype(dtype))

    def __call__(self, x: Float[Array, "*shape D"], *size: tuple[int, int], initialise: bool = False) -> Float[Array, "*out E"]:
        """The whole image. With `initialise`, on a copy that is under construction, gain and bias are set from x first."""
        if initialise:
            self._set_from(x, *size)
        return self.layer(x.dtype)(x, *size)

    def _set_from(self, x, *size) -> None:
        """gain := scale / std, bias := -mean scale / std of the outputs t = V / ||V|| * x, so that y has mean 0 and std `scale`.

        An output that is the same everywhere in the batch (the row above a single row, an image smaller than its last resolution) has the
        gain `scale`: divided by a deviation near 0 the gain would be huge.
        """
        self.gain[...], self.bias[...] = jnp.ones_like(self.gain[...]), jnp.zeros_like(self.bias[...])
        t = self.layer(x.dtype)(x, *size).astype(jnp.float32)
        variance = t.var((0, 1, 2))
        gain = self.scale * jnp.where(variance > CONSTANT, jax.lax.rsqrt(jnp.maximum(variance, CONSTANT)), 1)
        self.gain[...], self.bias[...] = gain, -t.mean((0, 1, 2)) * gain


def add_gain(direction: Float[Array, "h w D E"], factor: Float[Array, " E"]) -> Float[Array, "h w D E"]:
    """Every output's kernel times its factor."""
    return direction * factor.reshape(1, 1, 1, -1)


def packed(module, dtype):
    """The module with every WeightNorm replaced by its convolution, computed once: what a sampler carries."""

    def pack(leaf):
        return leaf.layer(dtype) if isinstance(leaf, WeightNorm) else leaf

    return jax.tree.map(pack, module, is_leaf=lambda leaf: isinstance(leaf, WeightNorm))
