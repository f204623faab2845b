"""What a loss hands to `after_update`: numbers of its own pass, each with the rule by which the parts of a batch are joined.

A model with variables that gradients do not train (codebook averages, power-iteration vectors) returns `(scalar, metrics, statistics)` from
its loss, `statistics` being any tree of `Statistic`s:

    return loss, metrics, {"counts": Statistic(counts, "sum"), "vectors": Statistic(v, "first")}

`after_update(statistics, key)` gets the same tree of plain arrays. On a mesh a loss sees the whole batch and needs no joining; the rules
are for gradients that are accumulated over parts of the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from jaxgen.errors import ConfigError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Statistic:
    """An array of a loss's pass. join: "sum" adds the parts of a batch, "mean" averages them as the loss, "first" takes the first part's.

    A mean is weighted by `metrics["weight"]` where the loss gives it; the first part holds the rows 0, n, 2 n, ... of n parts.
    """

    value: Any
    join: Literal["sum", "mean", "first"] = field(default="sum", metadata={"static": True})


def values(statistics: Any) -> Any:
    """The same tree with plain arrays in the place of the statistics."""
    return each(lambda statistic: statistic.value, statistics)


def each(function: Callable[[Statistic], Any], statistics: Any) -> Any:
    """`function` of every `Statistic` of the tree. Raises ConfigError where a leaf is something else: its parts could not be joined."""

    def of(leaf):
        if not isinstance(leaf, Statistic):
            raise ConfigError("statistics of the loss", "a tree of Statistic(value, join)", "an array without a rule")
        return function(leaf)

    return jax.tree.map(of, statistics, is_leaf=lambda leaf: isinstance(leaf, Statistic))
