"""What all models of strings share: the sizes of their configurations, exact log-likelihood, loss and samples.

    p(x) = [prod_{i=1..n} p(x_i | x_<i)]  p(stop | x_1 .. x_n),      n the true length of x

A string is a row of L tokens: its n tokens, then the stop token 0 and zeros, which do not count, so a string has the same probability in a
longer row. For n = L the factor of the stop token is left out, as if it were 1: the probabilities of all strings of at most L tokens sum to
one.

Axes: B or n batch, L length, V vocabulary (the stop token included).
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import image_of
from jaxgen.config import check_types
from jaxgen.data.features import Feature, Tokens
from jaxgen.errors import ConfigError, DataError
from jaxgen.sampling import sample_sequence


@dataclass(frozen=True)
class StringsConfig:
    """The sizes of strings. Raises ConfigError for a field of another type and for sizes out of range."""

    length: int = 28  # L, most tokens of a string
    vocabulary: int = 27  # V, number of tokens, the stop token 0 included
    symbols: tuple[str, ...] = ()  # texts of the tokens 1 .. V-1, for writing samples as text; (): numbers
    modelled: ClassVar[str] = "tokens"
    num_classes: ClassVar[int] = 0  # no labels

    def __post_init__(self):
        check_types(self)
        if not 2 <= self.vocabulary <= 65536:
            raise ConfigError("vocabulary", "2..65536, the stop token included", self.vocabulary)
        self._at_least_one("length")
        Tokens(self.length, self.vocabulary, self.symbols)

    def _at_least_one(self, *names: str) -> None:
        """ConfigError unless these fields are positive."""
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigError(name, "1 or more", getattr(self, name))

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


class AutoregressiveStrings(nnx.Module):
    """Exact log-likelihood, loss and samples, from what a model defines:

    - `config`, a `StringsConfig`; `head`, `Categorical(config.vocabulary)`;
    - `logits(tokens)` [B, L, V]: the logits of p(x_i | x_<i) at every place in one pass, float32;
    - the cached form of `sampling.SequenceModel`: `init_cache(n)` and `step(cache, previous, i) -> (cache, logits)`.
    """

    def log_prob(self, tokens: UInt[Array, "B L"]) -> Float[Array, " B"]:
        """log p(x) in nats of each string. Raises ConfigError unless tokens are integers [B, L]."""
        return self._terms(self._check(tokens)).sum(-1)

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-log2 p of the batch's strings, divided by their number of characters, stop tokens included: bits per character.

        That number is `metrics["weight"]`, since the loss is a mean over characters, not rows.
        """
        tokens = self._check(image_of(batch, "tokens"))
        characters = jnp.asarray(self.config.features["tokens"].characters)[tokens]
        weight = jnp.where(predicted(tokens), characters, 0).sum().astype(jnp.float32)
        bits = -self._terms(tokens).sum() / (weight * log(2))
        return bits, {"bits_per_character": bits, "weight": weight}

    def sample(
        self,
        key: PRNGKeyArray,
        n: SupportsIndex,
        known=None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> UInt[Array, "n L"]:
        """n strings [n, L], zeros after each. known and the other options: see `sampling.sample_sequence`, which raises the errors."""
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "known": known}
        return sample_sequence(self, key, n, self.config.length, stop=0, **options)

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
