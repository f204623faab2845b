"""Can samples take the place of real examples in the training of a classifier? Train on samples, test on real examples.

A small network is fitted, always the same one, so that nothing is chosen by its result:

    x in R^D scaled to mean 0 and variance 1 of the fitted examples together,   h = [1, x, relu(V x)],   V [512, D] drawn once, N(0, 1 / D)
    W = argmin sum_i |h_i W - onehot(y_i)|^2 + |W|^2,     predicted class = argmax of h W

Its accuracy on real examples stands beside that of the same network fitted on as many real examples (Ravuri and Vinyals 2019 call the first
the classification accuracy score, others TSTR). A generator that misses kinds of a class, or draws the wrong class, has the lower one.
"""

import numpy as np
from jaxtyping import Float, Int, Num

from jaxgen.errors import DataError

UNITS = 512
"""Random units of the network."""


def accuracy_trained_on(
    x: Num[np.ndarray, "N ..."], label: Int[np.ndarray, " N"], test: Num[np.ndarray, "M ..."], test_label: Int[np.ndarray, " M"]
) -> float:
    """The share of the M test examples whose class the network finds after it was fitted on N examples x with labels 0, 1, ....

    Raises DataError for empty sets, and for examples or labels that do not go together.
    """
    if len(x) != len(label) or len(test) != len(test_label) or not len(x) or not len(test) or x.shape[1:] != test.shape[1:]:
        got = f"{list(x.shape)} with {len(label)}, {list(test.shape)} with {len(test_label)}"
        raise DataError("accuracy_trained_on", "examples of one shape, each with a label, at least 1 to fit and 1 to test", got)
    x, test = (part.reshape(len(part), -1).astype(np.float64) for part in (x, test))
    mean, scale = x.mean(axis=0), x.std()  # one scale for all dimensions: a pixel that is almost always 0 is not blown up
    h, h_test = (_hidden((part - mean) / (scale if scale > 0 else 1.0)) for part in (x, test))
    target = np.eye(int(label.max()) + 1)[label]
    weights = np.linalg.solve(h.T @ h + np.eye(h.shape[1]), h.T @ target)
    return float(((h_test @ weights).argmax(axis=1) == test_label).mean())


def _hidden(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N H"]:
    units = np.random.default_rng(0).normal(size=(x.shape[1], UNITS)) / np.sqrt(x.shape[1])
    return np.concatenate([np.ones((len(x), 1)), x, np.maximum(x @ units, 0)], axis=1)
