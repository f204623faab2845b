"""The convolutions of the Gated PixelCNN's two stacks, for whole images and for the sampler (van den Oord et al. 2016, "Conditional Image
Generation with PixelCNN Decoders", section 2.2). Axes, channel groups and pushing: convolutions.py.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxgen.layers.convolutions import add_bias, columns, dot, halves_mask, normal, shift, zeros


class VerticalConv(nnx.Module):
    """The vertical stack's convolution: m rows above and the row itself, m columns to each side, m = k // 2, zeros outside.

        y[r, c] = sum_{i=0..m} sum_{j=0..k-1} W[i, j] x[r-m+i, c+j-m] + b

    With `factorized` it is a 1 x k convolution to features_out / 2 features, then an (m+1) x 1 convolution. The caller shifts y down by a
    row where row r must not be seen.
    """

    def __init__(self, features_in: int, features_out: int, kernel: int, factorized: bool, rngs: nnx.Rngs):
        self.kernel, self.rows, self.features_out = kernel, kernel // 2 + 1, features_out
        fan = kernel * features_in
        self.across = normal(rngs, (fan, features_out // 2), fan) if factorized else None
        inner = features_out // 2 if factorized else fan
        # The taps of this row and of the m rows below it that read it, side by side: block i is for the row i below.
        self.down = normal(rngs, (inner, self.rows * features_out), inner * self.rows)
        self.bias = zeros((features_out,))

    def _push(self, x, axis: int):
        """The terms that every row adds to its own sum and to those of the m rows below it: [..., (m+1) features_out]."""
        x = columns(x, self.kernel, axis)
        return dot(dot(x, self.across[...]) if self.across is not None else x, self.down[...])

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W E"]:
        """The whole image."""
        parts = jnp.split(self._push(x, axis=2), self.rows, axis=-1)
        return add_bias(sum(shift(part, i, axis=1) for i, part in enumerate(parts)), self.bias[...])

    def init_row(self, width: int, batch: int, dtype=jnp.float32) -> Float[Array, "m W B E"]:
        """The partial sums of the next m rows before anything is drawn: zeros."""
        return jnp.zeros((self.rows - 1, width, batch, self.features_out), dtype)

    def row(self, waiting: Float[Array, "m W B E"], x: Float[Array, "W B D"]) -> tuple[Float[Array, "m W B E"], Float[Array, "W B E"]]:
        """Add the terms of a finished row x: the partial sums of the m rows below it, and the row's own output y."""
        new = self._push(x, axis=0).reshape(*x.shape[:2], self.rows, self.features_out)
        new = new.transpose(2, 0, 1, 3)
        own = add_bias(new[0] + (waiting[0] if self.rows > 1 else 0), self.bias[...])
        below = jnp.concatenate([waiting[1:], jnp.zeros_like(new[:1])])[: self.rows - 1] + new[1:]
        return below, own


class HorizontalConv(nnx.Module):
    """The horizontal stack's convolution over columns c-m .. c of one row, m = kernel // 2, no bias, zeros outside.

        y[c] = sum_{j=1..m} W_j x[c-j] + (mask * W_0) x[c]

    The mask is by channel groups, of kind "A" or "B". The outputs are two halves (for tanh | for sigmoid), each split into the groups.
    """

    def __init__(self, features_in: int, features_out: int, kernel: int, groups: int, kind: str, rngs: nnx.Rngs):
        self.taps, self.features_in, self.features_out, self.groups, self.kind = kernel // 2, features_in, features_out, groups, kind
        fan = features_in * (self.taps + 0.5)
        self.left = normal(rngs, (features_in, self.taps * features_out), fan)
        hidden = kind == "A" and groups == 1  # then the mask is 0 everywhere
        self.centre = None if hidden else normal(rngs, (features_in, features_out), fan)

    def masked_centre(self) -> Float[Array, "D E"]:
        """W_0 with its mask: 0 from input groups that the output's group must not depend on."""
        return self.centre[...] * halves_mask(self.features_in, self.features_out // 2, self.groups, self.kind)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W E"]:
        """The whole image."""
        pushed = dot(x, self.pack(x.dtype).reshape(self.features_in, -1))
        parts = jnp.split(pushed, self.taps + 1, axis=-1)
        return sum(shift(part, j, axis=2) for j, part in enumerate(parts))

    def pack(self, dtype=jnp.float32) -> Float[Array, "G d E"]:
        """[W_0 | W_1 | .. | W_m] split by input group: the weights from a group of x[c] to y[c] and to the m pixels after it."""
        centre = jnp.zeros((self.features_in, self.features_out)) if self.centre is None else self.masked_centre()
        both = jnp.concatenate([centre, self.left[...]], axis=1).astype(dtype)
        return both.reshape(self.groups, self.features_in // self.groups, -1)
