"""Masked dense layers: a network whose outputs each see only the inputs that come before them in an order.

Every input has a number, its place 1 .. D in the order; every hidden unit has a number in 1 .. D-1: it may see the inputs whose numbers are
at most its own (Germain, Gregor, Murray, Larochelle 2015, "MADE: Masked Autoencoder for Distribution Estimation", section 3).

    M[j, k] = 1{m(j) <= m(k)}  between inputs and hidden units and from layer to layer,      1{m(j) < m(d)}  to the output of place d

Every number of 1 .. D-1 occurs equally often in a layer, or one time more, in a random arrangement, where the paper draws each at random.
So with at least D-1 units in every layer each output sees all inputs before it; with numbers drawn at random some would be lost.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxgen.layers.convolutions import add_bias, dot, normal, zeros


def unit_numbers(places: int, hidden: tuple[int, ...], generator: np.random.Generator) -> tuple[Int[np.ndarray, " H"], ...]:
    """The numbers m of the units of each hidden layer, for D = `places` inputs."""
    most = max(places - 1, 1)
    return tuple(generator.permutation(np.resize(generator.permutation(most) + 1, size)) for size in hidden)


class MaskedDense(nnx.Module):
    """y = (W * M) x + b. strict: whether M is that of outputs."""

    def __init__(self, features_in: int, features_out: int, rngs: nnx.Rngs, strict: bool = False):
        self.kernel, self.bias = normal(rngs, (features_in, features_out), features_in), zeros((features_out,))
        self.strict = strict

    def __call__(self, x: Float[Array, "... D"], before=None, after=None) -> Float[Array, "... E"]:
        """before, after: the numbers of inputs [D] and outputs [E], arrays that may be traced; None for no mask."""
        kernel = self.kernel[...]
        if before is not None:
            mask = before[:, None] < after[None] if self.strict else before[:, None] <= after[None]
            kernel = jnp.where(mask, kernel, 0)
        return add_bias(dot(x, kernel), self.bias[...])
