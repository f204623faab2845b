"""The Frechet distance of two sets of feature vectors, and what it is between two sets of real examples."""

import numpy as np
from jaxtyping import Float, Num

from jaxgen.errors import DataError

SPLITS = 3
"""Ways to divide the real examples, over which the floor is averaged."""


def frechet_distance(a: Num[np.ndarray, "N D"], b: Num[np.ndarray, "M D"]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2) between the Gaussians of two sets of feature vectors, in float64.

    Raises DataError for a set of one vector, which has no covariance.
    """
    if min(len(a), len(b)) < 2:
        raise DataError("frechet_distance", "at least 2 examples in each set, for its covariance", f"{len(a)} and {len(b)}")
    (m1, c1), (m2, c2) = ((x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))) for x in (a.astype(np.float64), b.astype(np.float64)))
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # C1^1/2 C2 C1^1/2 is symmetric, so `eigvalsh` gives real eigenvalues; a root of C1 C2 could be complex by rounding.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ c2 @ root), 0)).sum()
    return max(float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * cross), 0.0)  # rounding can make 0 negative


def frechet_floor(real: Float[np.ndarray, "M D"], n: int) -> float:
    """The distance between two disjoint sets of n real examples, averaged over SPLITS fixed ways to draw them; M >= 2 n.

    It is what a perfect generator gets at this n: above 0, since means and covariances of n examples are not exact. For N(0, I) it is
    about (2 D + D (D + 1) / 2) / n. Raises DataError for fewer than 2 n examples.
    """
    if len(real) < 2 * n:
        raise DataError("frechet_floor", f"at least {2 * n} examples", len(real))
    orders = (np.random.default_rng(split).permutation(len(real)) for split in range(SPLITS))
    return float(np.mean([frechet_distance(real[order[:n]], real[order[n : 2 * n]]) for order in orders]))
