"""Rulers: models in closed form, whose scores reports show beside that of a trained model. The evaluator is handed the table RULERS.

    uniform          P(x) = levels^-D                                        uniform.py
    histogram        P(x) = prod_d (n_d(x_d) + a) / (n + a levels)           n_d(v): of n images, how many have the value v at place d
    gaussian         N(x + u; mu, Cov + I/12), u ~ U[0, 1)                   by maximum likelihood, multivariate_gaussian.py
    ridge_gaussian   N(x + u; mu, Cov + (1/12 + r) I)                        r > 0 where there are few images for their dimensions

The smoothing a and the ridge r are those with the best score on a validation split, of the model that is fitted on the training split; the
ruler is then fitted on both. Where there is no second split, every tenth image is held out for that choice. The ridge is chosen on images
that are not copies of training images: on copies the narrowest density is the best, and on any other image it is the worst.

All are float64 on the host. The rulers of strings are n-grams (measures/n_gram.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt

from jaxgen.layers.dequantised import NOISE, flat_images, moments_of
from jaxgen.models.multivariate_gaussian import GaussianDensity
from jaxgen.models.uniform import Uniform

SMOOTHINGS = tuple(2.0**k for k in range(-10, 3))
RIDGES = (0.0, *(2.0 ** (k / 2) for k in range(-28, 9)))
"""Ridges to choose from, in units of the mean variance of a place; `ridges` has more, which do not depend on the images."""
HELD_OUT = 10  # one different image in so many, where validation has no new ones
Images = UInt[np.ndarray, "_ H W C"]


class HistogramModel:
    """Every place of an image on its own: P(x) = prod_d (n_d(x_d) + a) / (n + a levels)."""

    def __init__(self, images: UInt[np.ndarray, "N ..."], levels: int, smoothing: float):
        self.columns = np.sort(flat_images(images, levels, least=1), axis=0).T.copy()  # [D, N]: n_d(v) is a run in a sorted row
        self.levels, self.smoothing = levels, smoothing

    @classmethod
    def fit(cls, training: UInt[np.ndarray, "N ..."], validation: UInt[np.ndarray, "M ..."], levels: int) -> "HistogramModel":
        """Fitted on both, with the smoothing of SMOOTHINGS that is best on `validation` when fitted on `training`."""
        model = cls(training, levels, 1.0)
        counts = model._counts(flat_images(validation, levels, least=1))
        best = max(SMOOTHINGS, key=lambda a: model._log_p(counts, a).sum())
        return cls(np.concatenate([training, validation]), levels, best)

    def log_prob(self, image: UInt[np.ndarray, "B ..."]) -> Float[np.ndarray, " B"]:
        """log P of each image in nats."""
        return self._log_p(self._counts(image.reshape(len(image), -1)), self.smoothing)

    def _counts(self, x: UInt[np.ndarray, "B D"]) -> Int[np.ndarray, "B D"]:
        """n_d(x_d), how many of the images have the value of x at each place."""
        rows = zip(self.columns, x.T, strict=True)
        return np.stack([np.searchsorted(row, v, "right") - np.searchsorted(row, v, "left") for row, v in rows], axis=1)

    def _log_p(self, counts: Int[np.ndarray, "B D"], smoothing: float) -> Float[np.ndarray, " B"]:
        return np.log((counts + smoothing) / (self.columns.shape[1] + smoothing * self.levels)).sum(axis=1)


def ridges(mean_variance: float, levels: int) -> list[float]:
    """The ridges to choose from, in squares of a level, where a place of the training images has this variance in the mean.

    They are RIDGES times the mean variance, and 1/12, 2/12, 4/12, .. up to (levels^2 - 1) / 12, the variance of a uniform level, so that
    there is a wide one even where the training images are all the same.
    """
    widest = (levels**2 - 1) / 12
    doubled = [2.0**k / 12 for k in range(2 * levels.bit_length()) if 2.0**k / 12 < widest]
    return [*(ridge * mean_variance for ridge in RIDGES), *doubled, widest]


def best_ridge(training: UInt[np.ndarray, "N ..."], validation: UInt[np.ndarray, "M ..."], levels: int) -> float:
    """The one of `ridges` with the best score on validation images that are not in `training`, for the Gaussian fitted on `training`.

    With Cov = Q diag(e) Q^T and z = Q^T (x - mean(x)), the mean of log N over the noise u and over the validation images x is

        -1/2 sum_i [log(2 pi s_i) + (mean(z_i^2) + 1/12) / s_i],    s_i = e_i + 1/12 + r

    If all validation images are in `training`, every tenth of the different images is held out; of a single one, r is the widest ridge.
    """
    training, validation = flat_images(training, levels, least=2), flat_images(validation, levels, least=1)
    new = {row.tobytes() for row in validation}
    new.difference_update(row.tobytes() for row in training)
    validation = validation[[row.tobytes() in new for row in validation]]
    if not len(validation):
        different = np.unique(training, axis=0)
        held_out = np.arange(len(different)) % HELD_OUT == 0
        training, validation = different[~held_out], different[held_out]
        if not len(training):
            return ridges(0.0, levels)[-1]
    mean, covariance = moments_of(training)
    values, vectors = np.linalg.eigh(covariance)
    squares = (((validation - mean) @ vectors) ** 2).mean(axis=0) + NOISE
    variances = np.maximum(values, 0) + NOISE

    def score(ridge):
        return -0.5 * (np.log(2 * np.pi * (variances + ridge)) + squares / (variances + ridge)).sum()

    return float(max(ridges(values.mean(), levels), key=score))


class Ruler(NamedTuple):
    """One row of RULERS."""

    least: int  # how many images it is fitted on at least
    fit: Callable[[Images, Images, int], tuple[Any, dict[str, float]]]  # (training, validation, levels) -> (model, what was chosen)


def _uniform(training: Images, validation: Images, levels: int) -> tuple[Uniform, dict[str, float]]:
    return Uniform(validation.shape[1:], levels), {}


def _histogram(training: Images, validation: Images, levels: int) -> tuple[HistogramModel, dict[str, float]]:
    model = HistogramModel.fit(training, validation, levels)
    return model, {"smoothing": model.smoothing}


def _gaussian(training: Images, validation: Images, levels: int) -> tuple[GaussianDensity, dict[str, float]]:
    return GaussianDensity.of_images(np.concatenate([training, validation]), levels), {}


def _ridge_gaussian(training: Images, validation: Images, levels: int) -> tuple[GaussianDensity, dict[str, float]]:
    ridge = best_ridge(training, validation, levels)
    return GaussianDensity.of_images(np.concatenate([training, validation]), levels, ridge), {"ridge": ridge}


RULERS = {
    "uniform": Ruler(0, _uniform),
    "histogram": Ruler(2, _histogram),
    "gaussian": Ruler(2, _gaussian),
    "ridge_gaussian": Ruler(3, _ridge_gaussian),
}
"""The rulers of images by name, in the order in which they are printed."""
