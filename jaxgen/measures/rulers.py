"""Rulers: baseline models in closed form; reports show their scores beside that of a trained model. Float64 on the host.

    uniform          P(x) = levels^-D
    histogram        P(x) = prod_d (n_d(x_d) + a) / (n + a levels)           n_d(v): of n images, how many have the value v at place d
    gaussian         N(x + u; mu, Cov + I/12), u ~ U[0, 1)                   by maximum likelihood
    ridge_gaussian   N(x + u; mu, Cov + (1/12 + r) I)                        r > 0 where there are few images for their dimensions

The smoothing a and the ridge r are those with the best score on a validation split, of the model that is fitted on the training split; the
ruler is then fitted on both. Where there is no second split, every tenth image is held out for that choice. The ridge is chosen on images
that are not copies of training images: on copies the narrowest density is the best, and on any other image it is the worst.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt

from jaxgen.errors import DataError

RULERS = {"uniform": 0, "histogram": 2, "gaussian": 2, "ridge_gaussian": 3}
"""Name of each ruler, and the least number of images that it is fitted on."""
SMOOTHINGS = tuple(2.0**k for k in range(-10, 3))
RIDGES = (0.0, *(2.0 ** (k / 2) for k in range(-28, 9)))
"""Ridges to choose from, in units of the mean variance of a place; `ridges` has more, which do not depend on the images."""
HELD_OUT = 10  # one image in so many, where there is no validation split


class UniformModel:
    """Every image is equally likely: exactly log2(levels) bits/dim."""

    def __init__(self, levels: int):
        self.levels = levels

    def log_prob(self, image: UInt[np.ndarray, "B ..."]) -> Float[np.ndarray, " B"]:
        """-D log(levels) for each image, in nats."""
        return np.full(len(image), -np.prod(image.shape[1:]) * np.log(self.levels))


class HistogramModel:
    """Every place of an image on its own: P(x) = prod_d (n_d(x_d) + a) / (n + a levels)."""

    def __init__(self, images: UInt[np.ndarray, "N ..."], levels: int, smoothing: float):
        self.columns = np.sort(_flat(images, levels, least=1), axis=0).T.copy()  # [D, N]: n_d(v) is the length of a run in a sorted row
        self.levels, self.smoothing = levels, smoothing

    @classmethod
    def fit(cls, training: UInt[np.ndarray, "N ..."], validation: UInt[np.ndarray, "M ..."], levels: int) -> "HistogramModel":
        """Fitted on both, with the smoothing of SMOOTHINGS that is best on `validation` when fitted on `training`."""
        model = cls(training, levels, 1.0)
        counts = model._counts(_flat(validation, levels, least=1))
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


class GaussianModel:
    """Full-covariance Gaussian on v = x + u, u ~ U[0, 1): mu = mean(x) + 1/2, S = Cov(x) + (1/12 + r) I. Float64 throughout.

    1/2 and 1/12 are the mean and the variance of u; no eigenvalue of S is below 1/12, however few the images. r = 0: maximum likelihood.
    """

    def __init__(self, mean: Float[np.ndarray, " D"], covariance: Float[np.ndarray, "D D"]):
        from scipy.linalg import solve_triangular

        self.mean, self.covariance = mean, covariance
        factor = np.linalg.cholesky(covariance)
        self.whiten = solve_triangular(factor, np.eye(len(mean)), lower=True)
        self.constant = -0.5 * len(mean) * np.log(2 * np.pi) - np.log(np.diag(factor)).sum()

    @classmethod
    def fit(cls, images: UInt[np.ndarray, "N ..."], levels: int, ridge: float = 0.0) -> "GaussianModel":
        """The Gaussian of images in {0 .. levels-1}, by maximum likelihood where the ridge r is 0."""
        mean, covariance = _moments(_flat(images, levels, least=2))
        return cls(mean + 0.5, covariance + (1 / 12 + ridge) * np.eye(len(mean)))

    def log_density(self, v: Float[np.ndarray, "B ..."]) -> Float[np.ndarray, " B"]:
        """log N(v; mu, S) in nats."""
        z = (v.reshape(len(v), -1) - self.mean) @ self.whiten.T
        return self.constant - 0.5 * (z**2).sum(axis=1)


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
    training, validation = _flat(training, levels, least=2), _flat(validation, levels, least=1)
    new = {row.tobytes() for row in validation}
    new.difference_update(row.tobytes() for row in training)
    validation = validation[[row.tobytes() in new for row in validation]]
    if not len(validation):
        training, validation = split([np.unique(training, axis=0)])
        if not len(training):
            return ridges(0.0, levels)[-1]
    mean, covariance = _moments(training)
    values, vectors = np.linalg.eigh(covariance)
    squares = (((validation - mean) @ vectors) ** 2).mean(axis=0) + 1 / 12
    variances = np.maximum(values, 0) + 1 / 12

    def score(ridge):
        return -0.5 * (np.log(2 * np.pi * (variances + ridge)) + squares / (variances + ridge)).sum()

    return float(max(ridges(values.mean(), levels), key=score))


def split(sets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation) images: the last set and those before it, or every tenth image of one set, or of sets of fewer than 2."""
    images = np.concatenate(sets)
    if len(images) - len(sets[-1]) >= 2:
        return images[: -len(sets[-1])], sets[-1]
    held_out = np.arange(len(images)) % HELD_OUT == 0
    return images[~held_out], images[held_out]


def _flat(images: UInt[np.ndarray, "N ..."], levels: int, least: int) -> UInt[np.ndarray, "N D"]:
    """[N, D]; DataError for fewer images than `least` and for values that are no levels."""
    if len(images) < least:
        raise DataError("images", f"at least {least} to fit a {'covariance' if least > 1 else 'histogram'}", len(images))
    if images.max() >= levels:
        raise DataError("images", f"values in 0..{levels - 1}", int(images.max()))
    return images.reshape(len(images), -1)


def _moments(x: UInt[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D D"]]:
    """Mean and covariance, divided by N."""
    x = x.astype(np.float64)
    centred = x - x.mean(axis=0)
    return x.mean(axis=0), centred.T @ centred / len(x)
