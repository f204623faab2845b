"""The classifier score: does a classifier find samples clear, and all classes among them?

    score = exp( 1/N sum_i KL(p(y | x_i) || p(y)) ),     p(y) = 1/N sum_i p(y | x_i)

It is 1 where all samples get the same probabilities, and K, the number of classes, where every sample is certain and all classes are
equally frequent. It does not look at real examples, and one sample of each class, repeated, gets the highest score: read it beside recall.
Of the Inception network it is the Inception score (Salimans et al. 2016), which is a mean over splits of the samples. This one is of all
samples at once, since few samples have a lower score; the splits serve for its standard error.
"""

import numpy as np
from jaxtyping import Float, Num

from jaxgen.errors import ConfigError, DataError
from jaxgen.measures.jackknife import GROUPS, groups_of, jackknife_error


def classifier_score(logits: Num[np.ndarray, "N K"], splits: int = GROUPS) -> tuple[float, float]:
    """(score in 1..K of all N samples, its standard error from as many splits, each left out in turn; nan for fewer than 2 samples).

    logits: log p(y | x) of N samples up to a constant of each, as a classifier's `predict` gives them. Raises ConfigError for fewer than 2
    splits, DataError for no samples or logits that are not finite.
    """
    if splits < 2:
        raise ConfigError("splits", "2 or more", splits)
    if not len(logits) or not np.isfinite(logits).all():
        raise DataError("classifier_score", "finite logits of at least 1 sample", f"{len(logits)} samples")
    logits = logits.astype(np.float64)
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    groups = groups_of(len(logits), min(splits, len(logits)))
    without = [_score(np.delete(log_p, rows, axis=0)) for rows in groups] if len(groups) > 1 else []
    return _score(log_p), jackknife_error(np.array(without))


def _score(log_p: Float[np.ndarray, "N K"]) -> float:
    p = np.exp(log_p)
    mean = p.mean(axis=0)
    log_mean = np.log(np.where(mean > 0, mean, 1))  # a class of probability 0 in every sample adds 0
    return float(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))
