"""A recurrent language model: gated recurrent units (GRUs) over the tokens of a string.

    p(x) = [prod_{i=1..n} p(x_i | x_<i)]  p(stop | x_1 .. x_n),      n the true length of x

    a_i = embedding(x_{i-1}),   x_0 = stop
    h_i = GRU(h_{i-1}, a_i),   h_0 = 0             layers/recurrent.py
    p(x_i | x_<i) = softmax(V h_i + d)

The input a of a second layer is the state h_i of the first. Rows of tokens, the stop token and what it counts: layers/strings.py.

Cho, van Merrienboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio 2014, "Learning Phrase Representations using RNN Encoder-Decoder for
Statistical Machine Translation", section 2.3. Departures: r multiplies U_c h instead of h, so that one matrix product serves r, u and c;
several layers are stacked; it is a language model, not an encoder and decoder.

Axes: B batch, L length, V vocabulary (the stop token included), D width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Integer

from jaxgen.distributions import Categorical
from jaxgen.layers.convolutions import add_bias, dot, normal, zeros
from jaxgen.layers.recurrent import GRU
from jaxgen.layers.strings import AutoregressiveStrings, StringsConfig


@dataclass(frozen=True)
class LanguageModelConfig(StringsConfig):
    """Sizes of a language model. Raises ConfigError for sizes out of range."""

    width: int = 64  # features of a state
    layers: int = 1  # number of GRU layers

    def __post_init__(self):
        super().__post_init__()
        self._at_least_one("width", "layers")


class Cache(NamedTuple):
    """The sampler's cache."""

    hidden: Float[Array, "layers B D"]  # h of every layer


class LanguageModel(AutoregressiveStrings):
    """p(x) of strings of up to L tokens."""

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, Categorical(config.vocabulary)
        self.embedding = normal(rngs, (config.vocabulary, config.width), 1)
        self.layers = nnx.List([GRU(config.width, rngs) for _ in range(config.layers)])
        self.out, self.out_bias = normal(rngs, (config.width, config.vocabulary), config.width), zeros((config.vocabulary,))

    def logits(self, tokens: Integer[Array, "B L"]) -> Float[Array, "B L V"]:
        """Logits of p(x_i | x_<i) at every place, float32."""
        previous = jnp.concatenate([jnp.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)
        x = self.embedding[...][previous].swapaxes(0, 1)  # [L, B, D]
        for layer in self.layers:
            step = lambda h, projected, layer=layer: (layer(h, projected),) * 2  # noqa: E731
            _, x = jax.lax.scan(step, jnp.zeros_like(x[0]), layer.project(x))
        return add_bias(dot(x, self.out[...]), self.out_bias[...]).swapaxes(0, 1)

    def init_cache(self, n: int) -> Cache:
        """The cache of n strings before the first place: zeros."""
        return Cache(jnp.zeros((self.config.layers, n, self.config.width)))

    def step(self, cache: Cache, previous: Integer[Array, " B"], i: Int[Array, ""]) -> tuple[Cache, Float[Array, "B V"]]:
        """The new cache, and the logits of place i; `previous`: the tokens of place i-1, 0 for i = 0."""
        x, hidden = self.embedding[...][previous], []
        for layer, h in zip(self.layers, cache.hidden, strict=True):
            x = layer(h, layer.project(x))
            hidden.append(x)
        return Cache(jnp.stack(hidden)), add_bias(dot(x, self.out[...]), self.out_bias[...])
