"""Nearest training examples of samples, by squared distance: a check on memorising.

    d(x, x') = |x - x'|^2 / D of pixels scaled to [0, 1],  D = H W C;      |x - x'|^2 of points

A model that repeats its training examples makes samples that are nearer to them than other examples of the same kind, those of the test
set, are. The opposite says little: a blurred sample is near to many examples, and one that is shifted by a pixel is far from the example
that it repeats.

All distances to all training examples are computed, in blocks. Those of images are exact: sums of squares of integers in float64.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from jaxgen.data.features import Image, Points, Vector
from jaxgen.errors import ConfigError

BLOCK = 1024
"""Training examples that are compared at a time."""


class Nearest(NamedTuple):
    """For each of N examples its K nearest, the nearest first, of equally near ones the first in the set: distances, and places in it."""

    distance: Float[np.ndarray, "N K"]
    index: Int[np.ndarray, "N K"]


def check_distances(feature: Any) -> None:
    """ConfigError for features that have no squared distance here."""
    if not isinstance(feature, Image | Vector | Points):
        raise ConfigError("model", "a model of images or of points, which have squared distances", f"a model of {feature.said}")


def nearest(x: Num[np.ndarray, "N ..."], dataset: Any, column: str, k: int = 1) -> Nearest:
    """The k nearest examples of a data set, by its column, of each of x [N, ...], which are of the same feature.

    If the set has fewer than k examples, all of them. ConfigError for a feature without distances and for k below 1.
    """
    feature = dataset.features[column]
    check_distances(feature)
    if k < 1:
        raise ConfigError("k", "1 or more", k)
    x = np.asarray(x).reshape(len(x), -1).astype(np.float64)
    best = Nearest(np.zeros((len(x), 0)), np.zeros((len(x), 0), np.int64))
    for start, (batch, real) in zip(range(0, len(dataset), BLOCK), dataset.epoch(BLOCK, (0, 1)), strict=True):
        rows = np.asarray(batch[column])[real > 0]
        distance = _squares(x, rows.reshape(len(rows), -1).astype(np.float64), feature.discrete)
        index = np.broadcast_to(np.arange(start, start + len(rows)), distance.shape)
        best = Nearest(np.concatenate([best.distance, distance], axis=1), np.concatenate([best.index, index], axis=1))
        order = np.argsort(best.distance, axis=1, kind="stable")[:, :k]
        best = Nearest(*(np.take_along_axis(array, order, axis=1) for array in best))
    scale = feature.dimensions * (feature.levels - 1) ** 2 if feature.discrete else 1
    return best._replace(distance=best.distance / scale)


def _squares(x: Float[np.ndarray, "N D"], other: Float[np.ndarray, "M D"], whole: bool) -> Float[np.ndarray, "N M"]:
    """|x - x'|^2 of every pair. whole: of integers; their sums are exact, so that the three products may be computed apart."""
    if whole:
        return (x**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * (x @ other.T)
    return np.stack([((row[None] - other) ** 2).sum(1) for row in x])
