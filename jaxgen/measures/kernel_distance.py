"""The kernel distance of two sets of feature vectors: the squared maximum mean discrepancy, estimated without bias.

    MMD^2(P, Q) = E k(x, x') + E k(y, y') - 2 E k(x, y),     x, x' ~ P and y, y' ~ Q independent
    k(x, y) = (x . y / D + 1)^3,  which compares all moments up to the third
    estimate = mean of k(x_i, x_j) over i != j  +  mean of k(y_i, y_j) over i != j  -  2 mean of k(x_i, y_j) over all i, j

The estimate has the mean MMD^2 at any numbers of examples, equal or not (Gretton et al. 2012, lemma 6), so for equal distributions it is 0
in the mean and often negative: it is not cut at 0. Of Inception features it is the kernel inception distance (Binkowski et al. 2018).
"""

import numpy as np
from jaxtyping import Float, Num

from jaxgen.errors import DataError
from jaxgen.measures.jackknife import GROUPS, groups_of, jackknife_error

BLOCK = 2**22
"""Values of k that are computed at once, 32 MB."""


def kernel_distance(a: Num[np.ndarray, "N D"], b: Num[np.ndarray, "M D"]) -> tuple[float, float]:
    """(the unbiased estimate of MMD^2 from N and M vectors, its standard error), in float64.

    The error is that of leaving out one of up to 20 groups of both sets at a time, those of the same rows where N = M, so that pairs stay
    together; it is nan for a set of 2 vectors. Raises DataError for a set of one vector, which has no pairs.
    """
    fewest = min(len(a), len(b))
    if fewest < 2:
        raise DataError("kernel_distance", "at least 2 examples in each set, for its pairs", f"{len(a)} and {len(b)}")
    count = min(GROUPS, fewest)
    xs, ys = ([x[rows].astype(np.float64) for rows in groups_of(len(x), count)] for x in (a, b))
    n, m = (np.array([len(part) for part in parts]) for parts in (xs, ys))
    xx, yy, xy = _sums(xs, xs), _sums(ys, ys), _sums(xs, ys)
    estimate = _estimate(xx.sum(), yy.sum(), xy.sum(), n.sum(), m.sum())
    if fewest < 3:
        return float(estimate), float("nan")
    without = [_without_group(sums) for sums in (xx, yy, xy)]
    return float(estimate), jackknife_error(_estimate(*without, n.sum() - n, m.sum() - m))


def _without_group(sums: Float[np.ndarray, "G G"]) -> Float[np.ndarray, " G"]:
    """The sum over all pairs of groups but those with group g, for each g."""
    return sums.sum() - sums.sum(axis=0) - sums.sum(axis=1) + np.diagonal(sums)


def _estimate(xx, yy, xy, n, m):
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def _sums(xs: list[Float[np.ndarray, "_ D"]], ys: list[Float[np.ndarray, "_ D"]]) -> Float[np.ndarray, "G G"]:
    """The sum of k over the pairs of every two groups; of a set with itself without the pairs of a vector with itself."""
    y, starts = np.concatenate(ys), np.cumsum([0, *map(len, ys[:-1])])
    size = max(1, BLOCK // len(y))
    sums = np.zeros((len(xs), len(ys)))
    for g, x in enumerate(xs):
        for start in range(0, len(x), size):
            base = x[start : start + size] @ y.T / x.shape[1] + 1
            sums[g] += np.add.reduceat((base * base * base).sum(axis=0), starts)
    if xs is ys:
        sums -= np.diag([(((x**2).sum(axis=1) / x.shape[1] + 1) ** 3).sum() for x in xs])
    return sums
