"""How often a function is right under attack: clean and robust accuracy, with what the attack needed.

An image counts as robust where the function is right on x itself and the attack did not succeed. An attack that looks for the smallest
perturbation (minimal.py) takes no eps and is run once: there an image is robust against eps where none of norm at most eps was found.
`rounded`: images are saved as integers, so x_adv is also judged after every value went to the nearest of the levels; the norm may then be
larger by half a level.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Bool, Float

from jaxgen.attacks.functions import to_level
from jaxgen.attacks.inputs import BOX, Box, LogitsFn, Result, check_ball, check_counts, check_inputs, check_levels, takes_eps
from jaxgen.errors import ConfigError, shown


class Robustness(NamedTuple):
    """Accuracy under attack with perturbations of at most eps; eps 0 is the clean accuracy."""

    eps: float
    accuracy: float  # share of images in 0..1
    standard_error: float  # sqrt(p (1 - p) / n)
    rounded: float  # the same after every value went to the nearest level; NaN without levels
    norm: float  # mean norm of the perturbations that succeed on images that are right; NaN for none
    queries: float  # mean queries an image
    right: Bool[np.ndarray, " N"]  # of each image, whether it counts


def robust_accuracy(
    logits_fn: LogitsFn,
    x: Float[Any, "N ..."],
    y: Any,
    key: Any,
    eps: Sequence[float],
    attack: Callable[..., Result],
    *,
    levels: int | None = None,
    batch_size: int = 256,
    box: Box = BOX,
) -> list[Robustness]:
    """The clean accuracy, then that for each eps, in this order.

    attack: (logits_fn, x, y, key, eps) -> Result, for example functools.partial(pgd, steps=100), or without eps, for example deepfool.
    levels: L of the images, for `rounded`.
    """
    x, y, keys = check_inputs(logits_fn, x, y, key, box)
    if np.ndim(eps) != 1:
        raise ConfigError("eps", "a sequence of numbers", shown(eps), "such as eps=[0.1, 0.2]")
    for one in eps:
        check_ball(one, 1, x, box)  # the attack knows its norm; this refuses what is beyond the box in any
    check_counts(batch_size=batch_size)
    if not callable(attack):
        raise ConfigError("attack", "a function (logits_fn, x, y, key, eps) -> Result, or without eps", shown(attack))
    if levels is not None:
        check_levels(levels)
    function = logits_fn if isinstance(logits_fn, Partial) else Partial(logits_fn)
    for one in eps:
        if one > box[1] - box[0] and takes_eps(attack):  # too much in the norm infinity: the attack, which knows its norm, says so
            jax.eval_shape(lambda x, y, keys, one=one: attack(function, x, y, keys, one).norm, x, y, keys)

    @jax.jit
    def judge(function, x, y):
        return function(x).argmax(axis=1) == y

    @jax.jit
    def run(function, x, y, keys, *eps):
        found = attack(function, x, y, keys, *eps)
        if not isinstance(found, Result):
            raise ConfigError("attack", "a function that gives a Result", type(found).__name__)
        rounded = found.x_adv if levels is None else to_level(found.x_adv, levels)
        return found, function(rounded).argmax(axis=1) == y

    clean = _in_batches(lambda rows: judge(function, x[rows], y[rows]), len(x), batch_size)
    result = [_summary(0.0, clean, None if levels is None else clean, np.zeros(0), np.ones(len(x)))]
    largest = [(jnp.float32(one),) for one in eps] if takes_eps(attack) else [()] * len(eps)
    for i, one in enumerate(eps):
        if i == 0 or largest[i]:
            found, holds = _in_batches(lambda rows, i=i: run(function, x[rows], y[rows], keys[rows], *largest[i]), len(x), batch_size)
        within = found.norm <= one * (1 + 1e-5) + 1e-7
        fooled = found.success & within
        rounded = None if levels is None else clean & (holds | ~within)
        result.append(_summary(one, clean & ~fooled, rounded, found.norm[clean & fooled], found.queries))
    return result


def _in_batches(work: Callable[[Any], Any], n: int, size: int) -> Any:
    """The parts of a tree of arrays, joined; the last batch is filled up with the first rows, so that one program serves all."""
    parts = []
    for start in range(0, n, size):
        rows, stop = np.arange(start, start + min(size, n)) % n, min(size, n - start)
        parts.append(jax.tree.map(lambda leaf, stop=stop: np.asarray(leaf)[:stop], work(rows)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _summary(eps: float, right, rounded, norms, queries) -> Robustness:
    p = float(np.mean(right))
    mean = float(np.mean(norms)) if len(norms) else float("nan")
    rounded = float("nan") if rounded is None else float(np.mean(rounded))
    return Robustness(float(eps), p, sqrt(p * (1 - p) / len(right)), rounded, mean, float(np.mean(queries)), np.asarray(right))
