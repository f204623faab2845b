"""Caches of the sampler that grow: several scans one after the other, each with the cache up to its own end."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array


def quarters(n: int) -> tuple[int, ...]:
    """The ends of four about equal parts of 0 .. n-1, or of fewer parts so that each but the last has 64 places or more.

    For causal attention: if the queries of a part are multiplied with the keys up to the part's end only, four parts take
    1/4 (1 + 2 + 3 + 4) / 4 = 5/8 of the products of all queries with all keys.
    """
    size = max(-(-n // 4), 64)
    return tuple(min(start + size, n) for start in range(0, n, size))


def resize(x: Array, size: int, axis: int) -> Array:
    """The axis cut or filled up with zeros to length `size`."""
    x = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, pad)


def scan_in_parts(body, carry, inputs, ends: Sequence[int], fit):
    """`jax.lax.scan` as several scans one after the other, which end at `ends` (ascending; the last is the length of the inputs).

    The carry is (cache, previous). Before each scan the cache becomes `fit(cache, end)`: shapes are fixed within a scan, so a cache that
    grows needs several.
    """
    values = []
    for begin, end in pairwise((0, *ends)):
        cache, previous = carry
        part = jax.tree.map(lambda x: x[begin:end], inputs)  # noqa: B023 (the lambda is called before the loop goes on)
        carry, drawn = jax.lax.scan(body, (fit(cache, end), previous), part)
        values.append(drawn)
    return carry, jnp.concatenate(values)
