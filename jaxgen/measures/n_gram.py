"""The n-gram, the ruler of strings: a token given the n - 1 tokens before it, from counts. Integers and float64 on the host.

    p_k(x | c) = (count(c x) + a p_{k-1}(x | c')) / (count(c) + a),      p_0(x) = 1 / V

Here c is the k - 1 tokens before x, c' the same without the first of them, and count how often they follow each other in the training
strings. Tokens before the first are the stop token 0. What is counted and predicted are the tokens of a string and its stop token, which a
string that fills its row does not have; so the probabilities of all strings of at most L tokens sum to one. n = 0 is the uniform
distribution. The strength a is the one of STRENGTHS with the best score on validation strings; the counts are those of the training strings
alone, the ones that a language model has.

MacKay, Peto 1995, "A hierarchical Dirichlet language model", with one a for all k.

Axes: B or N strings, L length, M counted tokens of all strings, V vocabulary, k order.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt

MOST = 6
"""The largest n."""
STRENGTHS = tuple(2.0**k for k in range(-6, 8))


class NGram:
    """The n-gram of strings of so many different tokens."""

    def __init__(self, tokens: UInt[np.ndarray, "N L"], vocabulary: int, n: int, strength: float = 1.0):
        self.vocabulary, self.n, self.strength = vocabulary, n, strength
        codes, _ = _codes(tokens, vocabulary, n)
        self.pairs, self.contexts = [], []  # of each order k: the codes that occur, ascending, and how often
        for code in codes:
            pairs, count = np.unique(code, return_counts=True)
            contexts, first = np.unique(pairs // vocabulary, return_index=True)
            self.pairs.append((pairs, count))
            self.contexts.append((contexts, np.add.reduceat(count, first)))

    @classmethod
    def fit(
        cls, training: UInt[np.ndarray, "N L"], validation: UInt[np.ndarray, "M L"], vocabulary: int, orders: Sequence[int]
    ) -> list["NGram"]:
        """For every n of `orders` the n-gram of the training strings, with the strength that is best on the validation strings."""
        model = cls(training, vocabulary, max(orders))
        counts, _ = model._counts(validation)
        fitted = []
        for n in orders:
            gram = cls.__new__(cls)
            gram.vocabulary, gram.n, gram.pairs, gram.contexts = vocabulary, n, model.pairs[:n], model.contexts[:n]
            gram.strength = max(STRENGTHS, key=lambda a, n=n: model._log_p(counts[:, :n], a).sum()) if n else STRENGTHS[0]
            fitted.append(gram)
        return fitted

    def log_prob(self, tokens: UInt[np.ndarray, "B L"]) -> Float[np.ndarray, " B"]:
        """log p of each string in nats."""
        counts, rows = self._counts(tokens)
        return np.bincount(rows, self._log_p(counts, self.strength), len(tokens))

    def _counts(self, tokens: UInt[np.ndarray, "B L"]) -> tuple[Int[np.ndarray, "2 n M"], Int[np.ndarray, " M"]]:
        """count(c x) and count(c) of every order at every counted token, and the string of each."""
        codes, rows = _codes(tokens, self.vocabulary, self.n)
        counts = np.zeros((2, self.n, len(rows)), np.int64)
        for k, code in enumerate(codes):
            for table, found, wanted in ((self.pairs, 0, code), (self.contexts, 1, code // self.vocabulary)):
                known, count = table[k]
                if not len(known):  # without training strings
                    continue
                place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
                counts[found, k] = np.where(known[place] == wanted, count[place], 0)
        return counts, rows

    def _log_p(self, counts: Int[np.ndarray, "2 n M"], strength: float) -> Float[np.ndarray, " M"]:
        p = np.full(counts.shape[2], 1 / self.vocabulary)
        for pair, context in zip(*counts, strict=True):
            p = (pair + strength * p) / (context + strength)
        return np.log(p)


def most(vocabulary: int) -> int:
    """The largest n up to MOST whose codes, V^n of them, are 64-bit integers."""
    return max(n for n in range(MOST + 1) if vocabulary**n < 2**63)


def _codes(tokens: UInt[np.ndarray, "N L"], vocabulary: int, n: int) -> tuple[list[Int[np.ndarray, " M"]], Int[np.ndarray, " M"]]:
    """The number of c x, its tokens as digits of base V, of the orders 1 .. n at every counted token; and the string of each."""
    lengths = (tokens != 0).sum(1)
    rows, places = np.nonzero(np.arange(tokens.shape[1]) <= lengths[:, None])
    padded = np.pad(tokens, ((0, 0), (n, 0)))
    codes, code = [], np.zeros(len(rows), np.int64)
    for k in range(n):
        code = code + padded[rows, places + n - k].astype(np.int64) * vocabulary**k
        codes.append(code)
    return codes, rows
