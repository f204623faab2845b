"""Strings drawn from an n-gram, a ruler for samples of a language model:

    p(x_i | x_1 .. x_{i-1}) = count(x_{i-n+1} .. x_i) / count(x_{i-n+1} .. x_{i-1})

with the counts of training strings that have n - 1 begin marks before them and the stop token at their end. It is the estimate of maximum
likelihood, without smoothing: any n tokens in a row of a drawn string occur in a training string, so there are always counts to go on with.

A token is drawn without a table: the places of all training strings are sorted by the n - 1 tokens before them, and the next token is the
one at a uniform draw among the places with the same tokens before.
"""

import numpy as np
from jaxtyping import Integer, UInt

from jaxgen.errors import ConfigError


def n_gram_samples(
    tokens: Integer[np.ndarray, "N L"], n: int, order: int = 6, generator: np.random.Generator | None = None
) -> UInt[np.ndarray, "n L"]:
    """n strings of at most L tokens; 0 is the stop token and what stands after it. order: the n of the n-gram. generator: None for seed 0.

    Raises ConfigError for no strings, and for an order below 1 or one whose contexts do not fit into 63 bits.
    """
    generator = np.random.default_rng(0) if generator is None else generator
    rows, length = tokens.shape
    begin = int(tokens.max(initial=0)) + 1
    if not rows or order < 1 or (begin + 1.0) ** order >= 2**63:
        raise ConfigError("tokens, order", "some strings, and an order of 1 or more, not too many tokens", f"{rows} strings, order {order}")
    base, contexts_of = begin + 1, (begin + 1) ** (order - 1)
    padded = np.concatenate([np.full((rows, order - 1), begin), tokens], axis=1)
    before = np.zeros((rows, length), np.int64)
    for i in range(order - 1):  # a context as one number: its tokens are the digits
        before = before * base + padded[:, i : i + length]
    counted = np.arange(length) <= (tokens != 0).sum(axis=1)[:, None]  # all tokens, and the stop token
    before, after = before[counted], tokens[counted]
    sorting = np.argsort(before, kind="stable")
    before, after = before[sorting], after[sorting]

    drawn, context = np.zeros((n, length), tokens.dtype), np.full(n, sum(begin * base**i for i in range(order - 1)))
    going = np.arange(n)
    for place in range(length):
        first, last = (np.searchsorted(before, context[going], side=side) for side in ("left", "right"))
        drawn[going, place] = after[first + (generator.random(len(going)) * (last - first)).astype(np.int64)]
        context[going] = (context[going] * base + drawn[going, place]) % contexts_of
        going = going[drawn[going, place] != 0]
    return drawn
