"""Are samples nearer to the training examples, or to the held-out ones, than other real examples are?

    d(x) = min over training examples t of |x - t|
    ratio = median of d over samples / median of d over held-out real examples

and the same with training and held-out examples exchanged, which a model that was trained on the held-out ones cannot pass.

About 1: samples are as far from the training examples as real ones that were never trained on. Near 0: they are copies, exact or nearly so.
Above 1 says nothing about memorising: blurred or wrong samples are far from everything. The median does not show copies that are less than
half of the samples, so the share of exact copies stands beside it.
"""

import numpy as np
from jaxtyping import Float, Num

from jaxgen.errors import DataError
from jaxgen.measures.neighbours import nearest_distance


def memorisation(
    samples: Num[np.ndarray, "N ..."], held_out: Num[np.ndarray, "M ..."], training: Num[np.ndarray, "T ..."]
) -> dict[str, float]:
    """{"memorisation_ratio", "held_out_ratio", both with "_floor", "copies", "copies_real"}.

    held_out: real examples that the model was not trained on. "memorisation_ratio_floor" is the ratio of one half of them against the other
    half, "held_out_ratio_floor" that of as many training examples. "copies" is the share of the samples that equal a training example,
    "copies_real" that of the held-out examples, which is not 0 where the data have an example twice. A ratio is nan where half of the
    real examples or more, of which it has the median, equal one of the other set.

    Raises DataError for empty sets and for fewer than 2 held-out examples.
    """
    if not len(samples) or not len(training) or len(held_out) < 2:
        got = f"{len(samples)}, {len(held_out)} and {len(training)}"
        raise DataError("memorisation", "samples, at least 2 held-out examples, and training examples", got)
    generator = np.random.default_rng(0)
    of_samples, of_real = nearest_distance(samples, training), nearest_distance(held_out, training)
    order = generator.permutation(len(of_real))
    one, other = of_real[order[: len(order) // 2]], of_real[order[len(order) // 2 :]]
    few = training[generator.permutation(len(training))[: len(held_out)]]
    to_held_out = nearest_distance(few, held_out)
    half = len(few) // 2
    return {
        "memorisation_ratio": _ratio(of_samples, of_real),
        "memorisation_ratio_floor": _ratio(one, other),
        "held_out_ratio": _ratio(nearest_distance(samples, held_out), to_held_out),
        "held_out_ratio_floor": _ratio(to_held_out[:half], to_held_out[half:]) if half else float("nan"),
        "copies": float((of_samples == 0).mean()),
        "copies_real": float((of_real == 0).mean()),
    }


def _ratio(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " M"]) -> float:
    median = float(np.median(b))
    return float(np.median(a)) / median if median > 0 else float("nan")
