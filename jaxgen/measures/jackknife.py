"""Standard errors of numbers that are no means, by leaving out a group of the examples at a time (the jackknife).

    error^2 = (G - 1) / G  sum_g (t_g - mean of t)^2,     t_g = the number computed without group g of G groups

For a mean of N values in groups of one it is the usual sd / sqrt(N). In the mean it is too large rather than too small (Efron and Stein
1981).
"""

import numpy as np
from jaxtyping import Float, Int

GROUPS = 20
"""Groups of examples; the error itself has a relative standard error of about 1 / sqrt(2 (GROUPS - 1)), a sixth."""


def groups_of(n: int, count: int) -> list[Int[np.ndarray, " _"]]:
    """The rows 0 .. n - 1 in `count` groups of equal sizes, or sizes that differ by 1, drawn once and for all for each n."""
    return np.array_split(np.random.default_rng(0).permutation(n), count)


def jackknife_error(left_out: Float[np.ndarray, " G"]) -> float:
    """The standard error from the G values without each of the groups; nan for fewer than 2."""
    count = len(left_out)
    return float(np.sqrt((count - 1) * left_out.var())) if count > 1 else float("nan")
