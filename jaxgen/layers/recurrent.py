"""Recurrent cells: the next state of a sequence from its state h and the input a of a place; zero before the first place.

    GRU     r, u = sigmoid(W_ru a + U_ru h),   c = tanh(W_c a + r * (U_c h)),   h' = u h + (1 - u) c            each with biases
    LSTM    o, f, i, g = W a + U h + b,   c' = sigmoid(f) c + sigmoid(i) tanh(g),   h' = sigmoid(o) tanh(c')

* is elementwise. A cell first computes `project(a)`, which needs no state, at all places at once; then the states, one after the other.

Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", section 2.3. Departure: r
multiplies U_c h instead of h, so that one matrix product serves r, u and c. Hochreiter, Schmidhuber 1997, "Long Short-Term Memory", with
the forget gate f of Gers, Schmidhuber, Cummins 2000, whose bias begins at 1.

Axes: B batch, L length, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxgen.layers.convolutions import add_bias, dot, normal, zeros
from jaxgen.layers.masked import forget_bias, lstm_cell


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

    @jax.jit  # else its loop is compiled in every call
    def over(self, a: Float[Array, "L B D"]) -> Float[Array, "L B D"]:
        """h' at every place of whole sequences."""
        return jax.lax.scan(lambda h, projected: (self(h, projected),) * 2, jnp.zeros_like(a[0]), self.project(a))[1]

    def init_cache(self, n: int, length: int) -> Float[Array, "B D"]:
        """h of n sequences before the first place; the length does not matter."""
        return jnp.zeros((n, self.state.shape[0]))

    def step(self, h: Float[Array, "B D"], a: Float[Array, "B D"], i: Int[Array, ""]) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        """The new cache and the output of a place, both h'."""
        h = self(h, self.project(a))
        return h, h


class State(NamedTuple):
    """The state of an LSTM."""

    h: Float[Array, "B D"]
    c: Float[Array, "B D"]


class LSTM(nnx.Module):
    """One layer of long short-term memory: (h', c') from (h, c) and a."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.inputs, self.state = (normal(rngs, (width, 4 * width), width) for _ in range(2))
        self.bias = forget_bias(width)

    def project(self, a: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """W a + b at places of any shape, E = 4D."""
        return add_bias(dot(a, self.inputs[...]), self.bias[...])

    def __call__(self, state: State, projected: Float[Array, "B E"]) -> State:
        """The next state from the state and `project(a)`."""
        return State(*lstm_cell(projected + dot(state.h, self.state[...]), state.c))

    @jax.jit  # else its loop is compiled in every call
    def over(self, a: Float[Array, "L B D"]) -> Float[Array, "L B D"]:
        """h' at every place of whole sequences."""

        def place(state, projected):
            state = self(state, projected)
            return state, state.h

        return jax.lax.scan(place, self.init_cache(a.shape[1], a.shape[0]), self.project(a))[1]

    def init_cache(self, n: int, length: int) -> State:
        """The state of n sequences before the first place; the length does not matter."""
        return State(*jnp.zeros((2, n, self.state.shape[0])))

    def step(self, state: State, a: Float[Array, "B D"], i: Int[Array, ""]) -> tuple[State, Float[Array, "B D"]]:
        """The new cache, and the output h' of a place."""
        state = self(state, self.project(a))
        return state, state.h
