"""A recurrent language model: gated recurrent units (GRUs) over the tokens of a string.

    p(x) = [prod_{i=1..n} p(x_i | x_<i)]  p(stop | x_1 .. x_n),      n the true length of x

    a_i = embedding(x_{i-1}),   x_0 = stop
    h_i = GRU(h_{i-1}, a_i),   h_0 = 0             layers/recurrent.py
    p(x_i | x_<i) = softmax(V h_i + d)

The input a of a second layer
is the state h_i of the first. A string is a row of L tokens: its n tokens, then the stop token 0 and zeros, which do not count, so a string
has the same probability in a longer row. For n = L the factor of the stop token is left out, as if it were 1: the probabilities of all
strings of at most L tokens sum to one.

Cho, van Merrienboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio 2014, "Learning Phrase Representations using RNN Encoder-Decoder for
Statistical Machine Translation", section 2.3. Departures: r multiplies U_c h instead of h, so that one matrix product serves r, u and c;
several layers are stacked; it is a language model, not an encoder and decoder.

Axes: B batch, L length, V vocabulary (the stop token included), D width.
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, UInt

from jaxgen.checks import image_of
from jaxgen.config import check_types
from jaxgen.data.features import Feature, Tokens
from jaxgen.distributions import Categorical
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers.convolutions import add_bias, dot, normal, zeros
from jaxgen.layers.recurrent import GRU
from jaxgen.sampling import sample_sequence


@dataclass(frozen=True)
class LanguageModelConfig:
    """Sizes of a language model. Raises ConfigError for sizes out of range."""

    length: int = 28  # L, most tokens of a string
    vocabulary: int = 27  # V, number of tokens, the stop token 0 included
    symbols: tuple[str, ...] = ()  # texts of the tokens 1 .. V-1, for writing samples as text; (): numbers
    width: int = 64  # features of a state
    layers: int = 1  # number of GRU layers
    modelled: ClassVar[str] = "tokens"
    num_classes: ClassVar[int] = 0  # no labels

    def __post_init__(self):
        check_types(self)
        if not 2 <= self.vocabulary <= 65536:
            raise ConfigError("vocabulary", "2..65536, the stop token included", self.vocabulary)
        if min(self.length, self.width, self.layers) < 1:
            raise ConfigError("length, width, layers", "positive sizes", (self.length, self.width, self.layers))
        Tokens(self.length, self.vocabulary, self.symbols)

    @property
    def features(self) -> dict[str, Feature]:
        """The columns that the model needs: tokens."""
        return {"tokens": Tokens(self.length, self.vocabulary, self.symbols)}

    @staticmethod
    def sizes_from(features: dict[str, Feature]) -> dict[str, object]:
        """{field: value} of the fields that a data set with these features decides; DataError without tokens."""
        if "tokens" not in features:
            raise DataError("data", "strings of tokens, for a language model", ", ".join(features) or "none")
        tokens = features["tokens"]
        return {"length": tokens.length, "vocabulary": tokens.vocabulary, "symbols": tokens.symbols}


class Cache(NamedTuple):
    """The sampler's cache."""

    hidden: Float[Array, "layers B D"]  # h of every layer


class LanguageModel(nnx.Module):
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

    def log_prob(self, tokens: UInt[Array, "B L"]) -> Float[Array, " B"]:
        """log p(x) in nats of each string. Raises ConfigError unless tokens are integers [B, L]."""
        return self._terms(self._check(tokens)).sum(-1)

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-log2 p of the batch's strings, divided by their number of tokens, stop tokens included: bits per character.

        That number is `metrics["weight"]`, since the loss is a mean over tokens, not rows.
        """
        tokens = self._check(image_of(batch, "tokens"))
        weight = predicted(tokens).sum().astype(jnp.float32)
        bits = -self._terms(tokens).sum() / (weight * log(2))
        return bits, {"bits_per_character": bits, "weight": weight}

    def sample(
        self,
        key: PRNGKeyArray,
        n: SupportsIndex,
        known=None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> UInt[Array, "n L"]:
        """n strings [n, L], zeros after each. known, temperature and top_k: see `sampling.sample_sequence`, which raises the errors."""
        return sample_sequence(self, key, n, self.config.length, temperature=temperature, top_k=top_k, known=known, stop=0)

    def _terms(self, tokens: UInt[Array, "B L"]) -> Float[Array, "B L"]:
        """log p(x_i | x_<i) in nats where `predicted` is true, 0 at all other places."""
        terms = self.head.log_prob(self.logits(tokens), tokens)
        return jnp.where(predicted(tokens), terms, 0)

    def _check(self, tokens) -> UInt[Array, "B L"]:
        length = self.config.length
        if getattr(tokens, "ndim", None) != 2 or tokens.shape[1] != length or not jnp.issubdtype(tokens.dtype, jnp.integer):
            got = f"{getattr(tokens, 'dtype', type(tokens).__name__)} {list(getattr(tokens, 'shape', ()))}"
            raise ConfigError("tokens", f"integers [B, {length}] in 0..{self.config.vocabulary - 1}", got)
        if not isinstance(tokens, jax.core.Tracer) and tokens.size:
            for extreme in (int(np.asarray(tokens).min()), int(np.asarray(tokens).max())):
                if not 0 <= extreme < self.config.vocabulary:
                    raise ConfigError("tokens", f"integers [B, {length}] in 0..{self.config.vocabulary - 1}", extreme)
        return jnp.asarray(tokens, self.head.dtype)


def predicted(tokens: UInt[Array, "B L"]):
    """Bool [B, L]: true at the n tokens of each string and at its stop token, which a string of L tokens does not have."""
    return jnp.arange(tokens.shape[1])[None] <= Tokens.lengths(tokens)[:, None]
