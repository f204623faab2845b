"""A recurrent language model with a stack: gated recurrent units (GRUs) that push onto a stack of vectors, pop from it, or leave it.

    p(x) = [prod_{i=1..n} p(x_i | x_<i)]  p(stop | x_1 .. x_n),      see layers/strings.py; x_0 = stop

    push, pop, keep = softmax(A h + b)                           three numbers that sum to one, from the state h before place i
    s'_0 = push tanh(D h + c) + pop s_1 + keep s_0               the top row of the stack
    s'_j = push s_{j-1}       + pop s_{j+1} + keep s_j           1 <= j < N, with s_N = 0
    h'   = GRU(h, [embedding(x_{i-1}), s'_0, .., s'_{k-1}])
    p(x_i | x_<i) = softmax(V h' + d)

Each row s_j has W numbers, all moved by the same three. S stacks have A, b, D, c each, and the GRU reads the top rows of all; one stack and
a state that cannot count itself recognise a^n b^n, a^n b^n c^n takes two (the second is not context-free). h and all rows are zero before
the first place. A push onto a full stack drops the lowest row, and an empty stack is popped to zeros. Where one of push, pop and keep is 1
this is the stack of a program; between these cases the next stack is a mean of three, so that it has gradients. The GRU multiplies its
input by a matrix: that of [embedding, s'] is a sum of two products.

Joulin, Mikolov 2015, "Inferring Algorithmic Patterns with Stack-Augmented Recurrent Nets", section 3.2; for molecules Popova, Isayev,
Tropsha 2018, "Deep Reinforcement Learning for De Novo Drug Design", whose order and GRU are those here, with one stack. In the first there
are several, the sigmoid stands in the place of tanh (`push`), rows have one number, empty ones hold -1, and the cell is a plain one. Its h'
is computed first, from the stack as it is, and then moves it: the same recurrence but for the first place, where here the zero state has
moved the empty stack already.

Axes: B batch, L length, V vocabulary (the stop token included), D width, S stacks, N depth, W width of a stack, k rows read.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Integer

from jaxgen.distributions import Categorical
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import add_bias, dot, normal, zeros
from jaxgen.layers.recurrent import GRU
from jaxgen.layers.strings import AutoregressiveStrings, StringsConfig

PUSHED = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}


@dataclass(frozen=True)
class StackGRUConfig(StringsConfig):
    """Sizes of a language model with a stack. Raises ConfigError for sizes out of range."""

    width: int = 64  # D, features of a state
    stack_width: int = 16  # W, numbers in a row of the stack
    stack_depth: int = 20  # N, rows of the stack
    top_k: int = 1  # k, rows that the GRU reads
    push: Literal["tanh", "sigmoid"] = "tanh"  # the function of the value that is pushed
    stacks: int = 1  # S, stacks side by side, each with its own push, pop and keep

    def __post_init__(self):
        super().__post_init__()
        self._at_least_one("width", "stack_width", "stack_depth", "stacks")
        if not 1 <= self.top_k <= self.stack_depth:
            raise ConfigError("top_k", f"1..{self.stack_depth}, rows of the stack", self.top_k)


class Cache(NamedTuple):
    """The sampler's cache."""

    hidden: Float[Array, "B D"]  # h
    stack: Float[Array, "N B S W"]  # s, the top row first


def move(stack: Float[Array, "N *B W"], controls: Float[Array, "*B 3"], value: Float[Array, "*B W"]) -> Float[Array, "N *B W"]:
    """The next stack: push * (value on top) + pop * (without the top row) + keep * stack, controls = (push, pop, keep)."""
    push, pop, keep = (controls[None, ..., i, None] for i in range(3))
    pushed = jnp.concatenate([value[None], stack[:-1]])
    popped = jnp.concatenate([stack[1:], jnp.zeros_like(stack[:1])])
    return push * pushed + pop * popped + keep * stack


class StackGRU(AutoregressiveStrings):
    """p(x) of strings of up to L tokens."""

    def __init__(self, config: StackGRUConfig, *, rngs: nnx.Rngs):
        width, stacks, values = config.width, config.stacks, config.stacks * config.stack_width
        self.config, self.head = config, Categorical(config.vocabulary)
        self.embedding = normal(rngs, (config.vocabulary, width), 1)
        self.gru = GRU(width, rngs)
        self.controls, self.controls_bias = normal(rngs, (width, 3 * stacks), width), zeros((3 * stacks,))
        self.value, self.value_bias = normal(rngs, (width, values), width), zeros((values,))
        self.read = normal(rngs, (config.top_k * values, 3 * width), width + config.top_k * values)
        self.out, self.out_bias = normal(rngs, (width, config.vocabulary), width), zeros((config.vocabulary,))

    def logits(self, tokens: Integer[Array, "B L"]) -> Float[Array, "B L V"]:
        """Logits of p(x_i | x_<i) at every place, float32."""
        previous = jnp.concatenate([jnp.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)
        return self._out(self._states(self._projected(previous.T))).swapaxes(0, 1)

    @jax.jit  # else its loop is compiled in every call
    def _states(self, projected: Float[Array, "L B E"]) -> Float[Array, "L B D"]:
        """h at every place."""

        def place(cache: Cache, projected):
            cache = self._next(cache, projected)
            return cache, cache.hidden

        return jax.lax.scan(place, self.init_cache(projected.shape[1]), projected)[1]

    def init_cache(self, n: int) -> Cache:
        """The cache of n strings before the first place: zeros."""
        config = self.config
        return Cache(jnp.zeros((n, config.width)), jnp.zeros((config.stack_depth, n, config.stacks, config.stack_width)))

    def step(self, cache: Cache, previous: Integer[Array, " B"], i: Int[Array, ""]) -> tuple[Cache, Float[Array, "B V"]]:
        """The new cache, and the logits of place i; `previous`: the tokens of place i-1, 0 for i = 0."""
        cache = self._next(cache, self._projected(previous))
        return cache, self._out(cache.hidden)

    def stack_moves(self, hidden: Float[Array, "B D"]) -> tuple[Float[Array, "B S 3"], Float[Array, "B S W"]]:
        """(push, pop, keep), and the value to be pushed, of every stack from the state h before a place."""
        shape = hidden.shape[0], self.config.stacks
        controls = add_bias(dot(hidden, self.controls[...]), self.controls_bias[...]).reshape(*shape, 3)
        value = add_bias(dot(hidden, self.value[...]), self.value_bias[...]).reshape(*shape, -1)
        return jax.nn.softmax(controls), PUSHED[self.config.push](value)

    def _projected(self, previous: Integer[Array, "..."]) -> Float[Array, "... E"]:
        """What the GRU makes of embedding(x_{i-1}), E = 3D; computed once for each of the V tokens, then looked up."""
        return self.gru.project(self.embedding[...])[previous]

    def _next(self, cache: Cache, projected: Float[Array, "B E"]) -> Cache:
        """The state and the stack after one more place."""
        hidden, stack = cache.hidden, move(cache.stack, *self.stack_moves(cache.hidden))
        top = jnp.concatenate(list(stack[: self.config.top_k]), axis=-1).reshape(hidden.shape[0], -1)  # [B, SkW]
        return Cache(self.gru(hidden, projected + dot(top, self.read[...])), stack)

    def _out(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        return add_bias(dot(hidden, self.out[...]), self.out_bias[...])
