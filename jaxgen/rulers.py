"""Rulers: two baseline models in closed form; reports show their scores beside that of a trained model. Float64 on the host."""

import numpy as np
from jaxtyping import Float, UInt

from jaxgen.errors import DataError

RULERS = {"uniform": 0, "gaussian": 2}
"""Name of each ruler, and the least number of images that it is fitted on."""


class UniformModel:
    """p(x) = levels^-D for every image: exactly log2(levels) bits/dim."""

    def __init__(self, levels: int):
        self.levels = levels

    def log_prob(self, image: UInt[np.ndarray, "B ..."]) -> Float[np.ndarray, " B"]:
        """-D log(levels) for each image, in nats."""
        return np.full(len(image), -np.prod(image.shape[1:]) * np.log(self.levels))


class GaussianModel:
    """Full-covariance Gaussian on v = x + u, u ~ U[0, 1), by maximum likelihood: mu = mean(x) + 1/2, S = Cov(x) + I/12. Float64 throughout.

    1/2 and 1/12 are the mean and the variance of u; so no eigenvalue of S is below 1/12, even with two images.
    """

    def __init__(self, mean: Float[np.ndarray, " D"], covariance: Float[np.ndarray, "D D"]):
        from scipy.linalg import solve_triangular

        self.mean, self.covariance = mean, covariance
        factor = np.linalg.cholesky(covariance)
        self.whiten = solve_triangular(factor, np.eye(len(mean)), lower=True)
        self.constant = -0.5 * len(mean) * np.log(2 * np.pi) - np.log(np.diag(factor)).sum()

    @classmethod
    def fit(cls, images: UInt[np.ndarray, "N ..."], levels: int) -> "GaussianModel":
        """The maximum-likelihood Gaussian of images in {0 .. levels-1}. DataError for fewer than two images and for larger values."""
        x = images.reshape(len(images), -1).astype(np.float64)
        if len(x) < 2:
            raise DataError("images", "at least 2 to fit a covariance", len(x))
        if x.max() >= levels:
            raise DataError("images", f"values in 0..{levels - 1}", int(x.max()))
        centred = x - x.mean(axis=0)
        covariance = centred.T @ centred / len(x) + np.eye(x.shape[1]) / 12
        return cls(x.mean(axis=0) + 0.5, covariance)

    def log_density(self, v: Float[np.ndarray, "B ..."]) -> Float[np.ndarray, " B"]:
        """log N(v; mu, S) in nats."""
        z = (v.reshape(len(v), -1) - self.mean) @ self.whiten.T
        return self.constant - 0.5 * (z**2).sum(axis=1)
