"""A recurrent language model: gated recurrent units (Cho et al. 2014) over the tokens of a string.

    p(x) = prod_{i=1..n} p(x_i | x_<i)  p(stop | x_1 .. x_n),      n the true length of x

    a_i = embedding(x_{i-1}),   x_0 = stop
    r, u = sigmoid(W_ru a + U_ru h),   c = tanh(W_c a + r * (U_c h)),   h' = u h + (1 - u) c             each with biases
    p(x_i | x_<i) = softmax(V h_i + d)

Token 0 is the stop token; nothing after it counts, so a string has the same probability in a longer row. A string that fills its row
stops there with probability one: the probabilities of all strings that fit a row sum to one.

Axes: B batch, L length, V vocabulary (the stop token included), D width. Departure from the paper: r is applied to U_c h instead of h, so
that one product serves the three gates; several layers are stacked.
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, UInt

from jaxgen.checks import image_of
from jaxgen.config import check_types
from jaxgen.data.features import Feature, Tokens
from jaxgen.distributions import Categorical
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers.convolutions import add_bias, dot, normal, zeros
from jaxgen.sampling import sample_sequence


@dataclass(frozen=True)
class LanguageModelConfig:
    """Sizes of a language model. `symbols`: what the tokens 1 .. vocabulary-1 stand for, so that samples can be written as text."""

    length: int = 28
    vocabulary: int = 27
    symbols: tuple[str, ...] = ()
    width: int = 64
    layers: int = 1
    modelled: ClassVar[str] = "tokens"
    num_classes: ClassVar[int] = 0  # unconditional

    def __post_init__(self):
        check_types(self)
        if not 2 <= self.vocabulary <= 65536:
            raise ConfigError("vocabulary", "2..65536, the stop token included", self.vocabulary)
        if min(self.length, self.width, self.layers) < 1:
            raise ConfigError("length, width, layers", "positive sizes", (self.length, self.width, self.layers))
        Tokens(self.length, self.vocabulary, self.symbols)

    @property
    def features(self) -> dict[str, Feature]:
        """The columns that the model needs."""
        return {"tokens": Tokens(self.length, self.vocabulary, self.symbols)}

    @staticmethod
    def sizes_from(features: dict[str, Feature]) -> dict[str, object]:
        """The fields that a data set decides."""
        if "tokens" not in features:
            raise DataError("data", "strings of tokens, for a language model", ", ".join(features) or "none")
        tokens = features["tokens"]
        return {"length": tokens.length, "vocabulary": tokens.vocabulary, "symbols": tokens.symbols}


class GRU(nnx.Module):
    """One layer of gated recurrent units."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.inputs, self.input_bias = normal(rngs, (width, 3 * width), width), zeros((3 * width,))
        self.state, self.state_bias = normal(rngs, (width, 3 * width), width), zeros((3 * width,))

    def project(self, a: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """W a + b for the three gates side by side, of one place or of all."""
        return add_bias(dot(a, self.inputs[...]), self.input_bias[...])

    def __call__(self, h: Float[Array, "B D"], projected: Float[Array, "B E"]) -> Float[Array, "B D"]:
        """The next state h' from the state h and the projected input."""
        reset, update, candidate = jnp.split(projected, 3, axis=-1)
        of_state = jnp.split(add_bias(dot(h, self.state[...]), self.state_bias[...]), 3, axis=-1)
        reset, update = jax.nn.sigmoid(reset + of_state[0]), jax.nn.sigmoid(update + of_state[1])
        return update * h + (1 - update) * jnp.tanh(candidate + reset * of_state[2])


class Cache(NamedTuple):
    """What the sampler carries from place to place."""

    hidden: Float[Array, "layers B D"]  # the state of every layer


class LanguageModel(nnx.Module):
    """p(x) of strings of true lengths."""

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, Categorical(config.vocabulary)
        self.embedding = normal(rngs, (config.vocabulary, config.width), 1)
        self.layers = nnx.List([GRU(config.width, rngs) for _ in range(config.layers)])
        self.out, self.out_bias = normal(rngs, (config.width, config.vocabulary), config.width), zeros((config.vocabulary,))

    def logits(self, tokens: Integer[Array, "B L"]) -> Float[Array, "B L V"]:
        """Of every place given the tokens before it."""
        previous = jnp.concatenate([jnp.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)
        x = self.embedding[...][previous].swapaxes(0, 1)  # [L, B, D]
        for layer in self.layers:
            step = lambda h, projected, layer=layer: (layer(h, projected),) * 2  # noqa: E731
            _, x = jax.lax.scan(step, jnp.zeros_like(x[0]), layer.project(x))
        return add_bias(dot(x, self.out[...]), self.out_bias[...]).swapaxes(0, 1)

    def init_cache(self, n: int) -> Cache:
        """The state before the first token."""
        return Cache(jnp.zeros((self.config.layers, n, self.config.width)))

    def step(self, cache: Cache, previous: Integer[Array, " B"], i: Int[Array, ""]) -> tuple[Cache, Float[Array, "B V"]]:
        """The state after the token of the place before (0 before the first), and the logits of place i."""
        x, hidden = self.embedding[...][previous], []
        for layer, h in zip(self.layers, cache.hidden, strict=True):
            x = layer(h, layer.project(x))
            hidden.append(x)
        return Cache(jnp.stack(hidden)), add_bias(dot(x, self.out[...]), self.out_bias[...])

    def log_prob(self, tokens: UInt[Array, "B L"]) -> Float[Array, " B"]:
        """log p(x) in nats of each string, its stop token included and nothing after it."""
        return self._terms(self._check(tokens)).sum(-1)

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-mean log2 p of a predicted token, the stop tokens included; `weight` is how many there are."""
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
        """n strings [n, L], each ended by its stop token. `known`, `temperature` and `top_k` are those of `sampling.sample_sequence`."""
        return sample_sequence(self, key, n, self.config.length, temperature=temperature, top_k=top_k, known=known, stop=0)

    def _terms(self, tokens: UInt[Array, "B L"]) -> Float[Array, "B L"]:
        """log p(x_i | x_<i) in nats of the predicted tokens, 0 at all other places."""
        terms = self.head.log_prob(self.logits(tokens), tokens)
        return jnp.where(predicted(tokens), terms, 0)

    def _check(self, tokens) -> UInt[Array, "B L"]:
        length = self.config.length
        if getattr(tokens, "ndim", None) != 2 or tokens.shape[1] != length or not jnp.issubdtype(tokens.dtype, jnp.integer):
            got = f"{getattr(tokens, 'dtype', type(tokens).__name__)} {list(getattr(tokens, 'shape', ()))}"
            raise ConfigError("tokens", f"integers [B, {length}] in 0..{self.config.vocabulary - 1}", got)
        return jnp.asarray(tokens, self.head.dtype)


def predicted(tokens: UInt[Array, "B L"]):
    """Bool [B, L]: the tokens of each string, and its stop token where it has one."""
    return jnp.arange(tokens.shape[1])[None] <= Tokens.lengths(tokens)[:, None]
