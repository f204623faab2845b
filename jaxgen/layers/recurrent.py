"""Recurrent cells: the next state h' of a sequence from its state h and the input a of a place.

    GRU     r, u = sigmoid(W_ru a + U_ru h),   c = tanh(W_c a + r * (U_c h)),   h' = u h + (1 - u) c            each with biases

* is elementwise. A cell first computes `project(a)`, which needs no state, at all places at once; then the steps, one after the other.

Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", section 2.3. Departure: r
multiplies U_c h instead of h, so that one matrix product serves r, u and c.

Axes: B batch, D width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxgen.layers.convolutions import add_bias, dot, normal, zeros


class GRU(nnx.Module):
    """One layer of gated recurrent units: h' from h and a."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.inputs, self.input_bias = normal(rngs, (width, 3 * width), width), zeros((3 * width,))
        self.state, self.state_bias = normal(rngs, (width, 3 * width), width), zeros((3 * width,))

    def project(self, a: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """[W_r a + b, W_u a + b, W_c a + b] at places of any shape, E = 3D."""
        return add_bias(dot(a, self.inputs[...]), self.input_bias[...])

    def __call__(self, h: Float[Array, "B D"], projected: Float[Array, "B E"]) -> Float[Array, "B D"]:
        """The next state h' from the state h and `project(a)`."""
        reset, update, candidate = jnp.split(projected, 3, axis=-1)
        of_state = jnp.split(add_bias(dot(h, self.state[...]), self.state_bias[...]), 3, axis=-1)
        reset, update = jax.nn.sigmoid(reset + of_state[0]), jax.nn.sigmoid(update + of_state[1])
        return update * h + (1 - update) * jnp.tanh(candidate + reset * of_state[2])
