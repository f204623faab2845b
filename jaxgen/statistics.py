"""Statistics: arrays that a loss computes for `after_update`, each with the rule that joins its values from several parts of a batch.

A model with variables that gradients do not train (codebook averages, power-iteration vectors) returns `(scalar, metrics, statistics)` from
its loss, `statistics` being any tree of `Statistic`s:

    return loss, metrics, {"counts": Statistic(counts, "sum"), "vectors": Statistic(v, "first")}

`after_update(statistics, key)` gets the same tree of plain arrays. The rules are used where gradients are accumulated over
parts of the batch (`train.accumulate`). Several devices need no rule: the loss is one program over the whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from jaxgen.errors import ConfigError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Statistic:
    """One array that a loss computed, and how the arrays x_i of n parts of a batch become one (`train.accumulate` = n).

    join: "sum", sum_i x_i; "mean", sum_i x_i / n, or sum_i w_i x_i / sum_i w_i where the loss gives `metrics["weight"]`; "first", x_0, the
    array of the part with rows 0, n, 2 n, ...
    """

    value: Any
    join: Literal["sum", "mean", "first"] = field(default="sum", metadata={"static": True})


def values(statistics: Any) -> Any:
    """The tree with every `Statistic` replaced by its array."""
    return each(lambda statistic: statistic.value, statistics)


def each(function: Callable[[Statistic], Any], statistics: Any) -> Any:
    """The tree with every `Statistic` replaced by `function(statistic)`; ConfigError where a leaf is not a `Statistic`."""

    def of(leaf):
        if not isinstance(leaf, Statistic):
            raise ConfigError("statistics of the loss", "a tree of Statistic(value, join)", "an array without a rule")
        return function(leaf)

    return jax.tree.map(of, statistics, is_leaf=lambda leaf: isinstance(leaf, Statistic))
