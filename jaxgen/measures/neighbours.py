"""Precision, recall, density and coverage of samples, and the distance of the nearest neighbour.

    B(a, A) = ball around a whose radius is the distance from a to its k-th nearest other vector of A
    precision = share of the samples that lie in a ball B(r, R) of some real r        are samples like real examples?
    recall    = share of the real examples that lie in a ball B(s, S) of some sample s     do samples cover them?
    density   = 1/k times the number of balls B(r, R) that a sample lies in, in the mean over samples
    coverage  = share of the real examples r whose ball B(r, R) holds at least one sample

(Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models"; Naeem et al. 2020, "Reliable Fidelity and
Diversity Metrics for Generative Models".) A single real outlier has a large ball: every sample in it is precise, but dense only where many
balls overlap. A sample that is an outlier has a large ball too, which counts for recall; coverage has no balls of samples. For N real
examples and M samples of one distribution the means of density and coverage are known: 1, and `expected_coverage(N, M, k)`. Density can be
above 1.

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


def density_coverage(samples: Num[np.ndarray, "M D"], real: Num[np.ndarray, "N D"], k: int = 5) -> tuple[float, float, float]:
    """(density, its standard error over the samples with the real examples held fixed, coverage). The paper takes k = 5.

    Raises ConfigError for k below 1, DataError for k real examples or fewer, or no samples. The error of one sample is nan.
    """
    if k < 1:
        raise ConfigError("k", "1 or more", k)
    if len(real) <= k or not len(samples):
        raise DataError("density_coverage", f"samples, and more than k = {k} real vectors", f"{len(samples)} and {len(real)}")
    samples, real = samples.astype(np.float64), real.astype(np.float64)
    squared_radius = _squared_radii(real, k)
    inside, held = np.empty(len(samples)), np.zeros(len(real), bool)
    for rows in _blocks(len(samples), len(real)):
        within = _squared_distances(samples[rows], real) <= squared_radius
        inside[rows] = within.sum(axis=1) / k
        held |= within.any(axis=0)
    error = inside.std(ddof=1) / np.sqrt(len(inside)) if len(inside) > 1 else float("nan")
    return float(inside.mean()), float(error), float(held.mean())


def expected_coverage(n: int, m: int, k: int) -> float:
    """The mean coverage of n real examples by m samples of the same distribution: 1 - prod_{i=1..k} (n - i) / (n + m - i), k < n.

    The ball of a real example holds no sample if the k nearest of the n + m - 1 others are all real ones.
    """
    i = np.arange(1, k + 1)
    return float(1 - np.prod((n - i) / (n + m - i)))


def nearest_distance(points: Num[np.ndarray, "N ..."], others: Num[np.ndarray, "M ..."]) -> Float[np.ndarray, " N"]:
    """The distance of each of N points from the nearest of M others, in float64; exactly 0 for a point that is among them."""
    points, others = points.reshape(len(points), -1).astype(np.float64), others.reshape(len(others), -1)
    nearest = np.full(len(points), np.inf)
    for some in _blocks(len(others), max(len(points), others.shape[1])):
        nearest = np.minimum(nearest, _squared_distances(points, others[some].astype(np.float64)).min(axis=1))
    return np.sqrt(nearest)


def in_balls(points: Float[np.ndarray, "N D"], centres: Float[np.ndarray, "M D"], k: int) -> Bool[np.ndarray, " N"]:
    """Whether each point lies in the ball of at least one centre, on its surface included; k < M."""
    squared_radius = _squared_radii(centres, k)
    blocks = _blocks(len(points), len(centres))
    return np.concatenate([(_squared_distances(points[rows], centres) <= squared_radius).any(axis=1) for rows in blocks])


def _squared_radii(centres: Float[np.ndarray, "M D"], k: int) -> Float[np.ndarray, " M"]:
    """The squared distance of each centre from its k-th nearest other one."""
    squared_radius = np.empty(len(centres))
    for rows in _blocks(len(centres), len(centres)):
        squared = _squared_distances(centres[rows], centres)
        squared[np.arange(len(squared)), np.arange(len(centres))[rows]] = np.inf  # a vector is no neighbour of itself
        squared_radius[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return squared_radius


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
