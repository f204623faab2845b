"""Precision and recall of samples (Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models").

    B(a, A) = ball around a whose radius is the distance from a to its k-th nearest other vector of A
    precision = share of the samples that lie in a ball B(r, R) of some real r        are samples like real examples?
    recall    = share of the real examples that lie in a ball B(s, S) of some sample s     do samples cover them?

R and S are the feature vectors [N, D] of real examples and of samples. Every distance is computed, in float64, a block of rows at a time.
"""

import numpy as np
from jaxtyping import Bool, Float, Num

from jaxgen.errors import ConfigError, DataError

BLOCK = 2**23
"""Distances that are computed at once, 64 MB: matrix products of small blocks take several times as long."""


def precision_recall(samples: Num[np.ndarray, "N D"], real: Num[np.ndarray, "M D"], k: int = 3) -> tuple[float, float]:
    """(precision, recall), shares in 0..1. The paper takes k = 3 and as many samples as real examples: both numbers depend on N and M.

    Raises ConfigError for k below 1, DataError for a set of k vectors or fewer, in which no vector has k others.
    """
    if k < 1:
        raise ConfigError("k", "1 or more", k)
    if min(len(samples), len(real)) <= k:
        raise DataError("precision_recall", f"more than k = {k} vectors in each set", f"{len(samples)} and {len(real)}")
    samples, real = samples.astype(np.float64), real.astype(np.float64)
    return float(in_balls(samples, real, k).mean()), float(in_balls(real, samples, k).mean())


def in_balls(points: Float[np.ndarray, "N D"], centres: Float[np.ndarray, "M D"], k: int) -> Bool[np.ndarray, " N"]:
    """Whether each point lies in the ball of at least one centre, on its surface included; k < M."""
    squared_radius = np.empty(len(centres))
    for rows in _blocks(len(centres), len(centres)):
        squared = _squared_distances(centres[rows], centres)
        squared[np.arange(len(squared)), np.arange(len(centres))[rows]] = np.inf  # a vector is no neighbour of itself
        squared_radius[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    blocks = _blocks(len(points), len(centres))
    return np.concatenate([(_squared_distances(points[rows], centres) <= squared_radius).any(axis=1) for rows in blocks])


def _blocks(n: int, m: int) -> list[slice]:
    size = max(1, BLOCK // m)
    return [slice(start, start + size) for start in range(0, n, size)]


def _squared_distances(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "N M"]:
    """|a_i|^2 + |b_j|^2 - 2 a_i b_j; where the terms cancel to less than a millionth, |a_i - b_j|^2, which is 0 for equal vectors."""
    sums = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)
    squared = a @ b.T
    squared *= -2
    squared += sums
    sums *= 1e-6
    rows, columns = np.nonzero(squared < sums)
    size = max(1, BLOCK // a.shape[1])
    for start in range(0, len(rows), size):
        i, j = rows[start : start + size], columns[start : start + size]
        squared[i, j] = ((a[i] - b[j]) ** 2).sum(axis=1)
    return squared
