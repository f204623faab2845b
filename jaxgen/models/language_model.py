"""A language model: a network over the tokens of a string that reads, at every place, only those before it.

    p(x) = [prod_{i=1..n} p(x_i | x_<i)]  p(stop | x_1 .. x_n),      n the true length of x

    a_i = embedding(x_{i-1}),   x_0 = stop
    gru, lstm       y_i = h_i,  h_i = cell(h_{i-1}, a_i),  h_0 = 0                        layers/recurrent.py
    transformer     y_i = N(blocks(a_1 + position_1, .., a_i + position_i))               layers/transformer.py
    p(x_i | x_<i) = softmax(V y_i + d)

The input of a second layer is the output of the first. Rows of tokens, the stop token and what it counts: layers/strings.py.

gru: Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", as a language model
of several layers. lstm: Graves 2013, "Generating Sequences With Recurrent Neural Networks", without connections that skip layers.
transformer: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2); here V is not the embedding.

Axes: B batch, L length, V vocabulary (the stop token included), D width.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Integer

from jaxgen.distributions import Categorical
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import add_bias, dot, normal, zeros
from jaxgen.layers.recurrent import GRU, LSTM
from jaxgen.layers.strings import AutoregressiveStrings, StringsConfig
from jaxgen.layers.transformer import Block, LayerNorm


@dataclass(frozen=True)
class LanguageModelConfig(StringsConfig):
    """Sizes of a language model. Raises ConfigError for sizes out of range and for heads of a network without attention."""

    width: int = 64  # features of a place
    layers: int = 1  # number of layers of the network
    network: Literal["gru", "lstm", "transformer"] = "gru"  # recurrent cells, or a decoder with attention
    heads: int | None = None  # attention heads of the transformer, a divisor of width; None: 4

    def __post_init__(self):
        super().__post_init__()
        self._at_least_one("width", "layers")
        if self.network != "transformer" and self.heads is not None:
            raise ConfigError("heads", f"nothing: the network {self.network} has no attention", self.heads)
        if self.network == "transformer" and (self.attention_heads < 1 or self.width % self.attention_heads):
            raise ConfigError("heads", f"a divisor of the width {self.width}", self.attention_heads)

    @property
    def attention_heads(self) -> int:
        """How many heads the transformer has."""
        return 4 if self.heads is None else self.heads


class Cache(NamedTuple):
    """The sampler's cache."""

    layers: tuple  # of each layer: h of a GRU, (h, c) of an LSTM, [B, D] each; `Cache` of a transformer's block


class LanguageModel(AutoregressiveStrings):
    """p(x) of strings of up to L tokens."""

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        width, attends = config.width, config.network == "transformer"
        layer = {
            "gru": lambda: GRU(width, rngs),
            "lstm": lambda: LSTM(width, rngs),
            "transformer": lambda: Block(width, config.attention_heads, config.layers, rngs),
        }[config.network]
        self.config, self.head = config, Categorical(config.vocabulary)
        self.embedding = normal(rngs, (config.vocabulary, width), 1)
        self.layers = nnx.List([layer() for _ in range(config.layers)])
        self.out, self.out_bias = normal(rngs, (width, config.vocabulary), width), zeros((config.vocabulary,))
        self.positions = normal(rngs, (config.length, width), 4) if attends else None
        self.norm = LayerNorm(width) if attends else None

    def logits(self, tokens: Integer[Array, "B L"]) -> Float[Array, "B L V"]:
        """Logits of p(x_i | x_<i) at every place, float32."""
        previous = jnp.concatenate([jnp.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)
        x = self.embedding[...][previous].swapaxes(0, 1)  # [L, B, D]
        x = x if self.positions is None else x + self.positions[...][: len(x), None]
        for layer in self.layers:
            x = layer.over(x)
        return self._out(x).swapaxes(0, 1)

    def init_cache(self, n: int) -> Cache:
        """The cache of n strings before the first place: zeros."""
        return Cache(tuple(layer.init_cache(n, self.config.length) for layer in self.layers))

    def step(self, cache: Cache, previous: Integer[Array, " B"], i: Int[Array, ""]) -> tuple[Cache, Float[Array, "B V"]]:
        """The new cache, and the logits of place i; `previous`: the tokens of place i-1, 0 for i = 0."""
        x, layers = self.embedding[...][previous], []
        x = x if self.positions is None else x + self.positions[...][i][None]
        for layer, of_layer in zip(self.layers, cache.layers, strict=True):
            of_layer, x = layer.step(of_layer, x, i)
            layers.append(of_layer)
        return Cache(tuple(layers)), self._out(x)

    def _out(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
        return add_bias(dot(x if self.norm is None else self.norm(x), self.out[...]), self.out_bias[...])
