"""The Gaussian N(mu, S) by maximum likelihood, with a full covariance, a diagonal one, or low rank and a diagonal.

    log N(v; mu, S) = -1/2 (D log 2 pi + log |S| + |L (v - mu)|^2),        L^T L = S^{-1}

    full       S = Cov,                     L the inverse of its lower triangular factor (Cholesky)
    diagonal   S = diag(Var),               L = S^{-1/2}
    low_rank   S = W W^T + Psi, W [D, K], Psi diagonal: factor analysis, by EM (Rubin & Thayer 1982, "EM Algorithms for ML Factor Analysis")
               M = I + W^T Psi^{-1} W,   B = M^{-1} W^T Psi^{-1},   E = M^{-1} + B Cov B^T,
               W' = Cov B^T E^{-1},      Psi' = diag(Cov - W' B Cov)
               |L y|^2 = y^T Psi^{-1} y - |C^{-1} W^T Psi^{-1} y|^2,   log |S| = log |Psi| + log |M|,   C C^T = M

On images the density is that of v = x + u with u ~ U[0, 1); the evaluator draws u. `fit` draws nothing: it adds the mean of u, 1/2, to the
mean of every pixel and its variance, 1/12, to every variance, so that no eigenvalue of S is below 1/12. Psi, too, is at least 1/12 there.
Sampled images are v rounded down and clipped to 0 .. levels-1. Moments, factors and determinants are computed in float64 on the host, and
kept in float32; `GaussianDensity` is the full one in float64 throughout, the ruler that stands beside the score of a trained model.

Axes: B batch, D = H W C or the dimensions of a point, K rank. The covariance is divided by N.
"""

from dataclasses import dataclass
from math import log, pi, prod
from typing import ClassVar, Literal, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, Num, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_key, check_levels
from jaxgen.config import check_types
from jaxgen.data.features import OfImagesOrPoints, modelled
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers.convolutions import dot
from jaxgen.layers.dequantised import (
    NOISE,
    as_vectors,
    flat_images,
    moments,
    moments_of,
    set_parameters,
    to_examples,
    whitening,
)

MOST, LEAST_GAIN = 1000, 1e-9
"""EM ends after so many iterations, or where one gains less than this many nats of an example."""


@dataclass(frozen=True)
class MultivariateGaussianConfig(OfImagesOrPoints):
    """Sizes of a MultivariateGaussian. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, ...] = (8, 8, 1)  # (H, W, C) of images, or (d,) of real points
    levels: int = 17  # number of values that a channel of a pixel has, 0 .. levels-1; 0 for points
    covariance: Literal["full", "diagonal", "low_rank"] = "full"  # the form of S
    rank: int = 1  # K of a covariance of low rank
    num_classes: ClassVar[int] = 0  # a Gaussian has no classes

    def __post_init__(self):
        check_types(self)
        check_levels(self.levels, modelled(self))
        if not 1 <= self.rank <= prod(self.image_shape):
            raise ConfigError("rank", f"1..{prod(self.image_shape)}, the dimensions of an example", self.rank)


class GaussianDensity:
    """The Gaussian with a full covariance, float64 on the host."""

    def __init__(self, mean: Float64[np.ndarray, " D"], covariance: Float64[np.ndarray, "D D"]):
        self.mean, self.covariance, self.whiten = mean, covariance, whitening(covariance)

    @classmethod
    def of_images(cls, images: UInt[np.ndarray, "N ..."], levels: int, ridge: float = 0.0) -> "GaussianDensity":
        """That of x + u for images x in {0 .. levels-1}, with S + ridge I: by maximum likelihood where the ridge is 0.

        No eigenvalue of its covariance is below 1/12 + ridge, however few the images. Raises DataError for fewer than two of them.
        """
        mean, covariance = moments_of(flat_images(images, levels, least=2))
        return cls(mean + 0.5, covariance + (NOISE + ridge) * np.eye(len(mean)))

    def log_density(self, v: Float[np.ndarray, "B ..."]) -> Float64[np.ndarray, " B"]:
        """log N(v; mu, S) in nats."""
        z = (v.reshape(len(v), -1) - self.mean) @ self.whiten.T
        return -0.5 * (len(self.mean) * log(2 * pi) + (z**2).sum(axis=1)) + np.log(np.diag(self.whiten)).sum()


class MultivariateGaussian(nnx.Module):
    """N(mu, S); before `fit` it is N(0, I), of low rank N(0, I + W W^T) with W = 0."""

    def __init__(self, config: MultivariateGaussianConfig, *, rngs: nnx.Rngs):
        self.config, d = config, prod(config.image_shape)
        self.mean = nnx.Param(jnp.zeros(d))
        if config.covariance == "full":
            self.whiten = nnx.Param(jnp.eye(d))  # L, lower triangular
        else:
            self.scale = nnx.Param(jnp.ones(d))  # square roots of the diagonal, S or Psi
        if config.covariance == "low_rank":
            self.factor = nnx.Param(jnp.zeros((d, config.rank)))  # W

    @classmethod
    def fit(cls, dataset, config: MultivariateGaussianConfig, key: PRNGKeyArray) -> "MultivariateGaussian":
        """The maximum-likelihood model of a data set, computed in float64 on the host and kept in float32; `key` is not used.

        Raises DataError for fewer than two examples, and for points that do not vary in all directions: they have no density.
        """
        if len(dataset) < 2:
            raise DataError("dataset", "at least 2 examples to fit a covariance", len(dataset))
        floor = NOISE if modelled(config).discrete else 0.0
        mean, covariance = moments(dataset, config, config.covariance == "diagonal")
        variance = np.diag(covariance) if config.covariance != "diagonal" else covariance
        if not (variance > 1e-12 * np.square(mean)).all() or variance.min() <= 0:
            raise DataError("dataset", "points that vary in every coordinate", f"no variance in coordinate {int(variance.argmin())}")
        found = {"mean": mean}
        if config.covariance == "full":
            values = np.linalg.eigvalsh(covariance)
            if values[0] <= 1e-12 * values[-1]:
                raise DataError("dataset", f"points that vary in all {len(mean)} directions", "a subspace, where there is no density")
            found["whiten"] = whitening(covariance)
        elif config.covariance == "diagonal":
            found["scale"] = np.sqrt(variance)
        else:
            factor, noise, _ = factor_analysis(covariance, config.rank, floor)
            found |= {"factor": factor, "scale": np.sqrt(noise)}
        model = cls(config, rngs=nnx.Rngs(0))
        set_parameters(model, found)
        return model

    def log_density(self, v: Float[Array, "B ..."]) -> Float[Array, " B"]:
        """log N(v; mu, S) in nats."""
        y = as_vectors(v, self.config) - self.mean[...][None]
        if self.config.covariance == "full":
            squares = (dot(y, self.whiten[...].T) ** 2).sum(-1)
            log_det = -2 * jnp.log(jnp.diagonal(self.whiten[...])).sum()
        else:
            y = y / self.scale[...][None]
            squares, log_det = (y**2).sum(-1), 2 * jnp.log(self.scale[...]).sum()
        if self.config.covariance == "low_rank":
            loading = self.factor[...] / self.scale[...][:, None]  # Psi^{-1/2} W
            root = jnp.linalg.cholesky(jnp.eye(self.config.rank) + dot(loading.T, loading))  # C
            inner = jax.scipy.linalg.solve_triangular(root, dot(y, loading).T, lower=True)
            squares, log_det = squares - (inner**2).sum(0), log_det + 2 * jnp.log(jnp.diagonal(root)).sum()
        return -0.5 * (y.shape[1] * log(2 * pi) + log_det + squares)

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> Num[Array, "n ..."]:
        """n points float32 [n, d], or n images [n, H, W, C]: draws of v, for images rounded down and clipped."""
        check_key(key)
        n, (key_z, key_noise) = check_count(n), jax.random.split(key)
        z = jax.random.normal(key_z, (n, prod(self.config.image_shape)))
        if self.config.covariance == "full":
            y = jax.scipy.linalg.solve_triangular(self.whiten[...], z.T, lower=True).T
        else:
            y = z * self.scale[...][None]
        if self.config.covariance == "low_rank":
            y += dot(jax.random.normal(key_noise, (n, self.config.rank)), self.factor[...].T)
        return to_examples(self.mean[...][None] + y, self.config)


def factor_analysis(covariance: Float64[np.ndarray, "D D"], rank: int, floor: float = 0.0, most: int = MOST, gain: float = LEAST_GAIN):
    """(W, diagonal of Psi, mean log-likelihoods of the iterations) by EM from the first principal components; Psi is at least `floor`.

    The log-likelihood is that of an example, with the mean at its maximum. EM ends after `most` iterations, or
    one that gains less than `gain`.
    """
    d = len(covariance)
    values, vectors = np.linalg.eigh(covariance)
    rest = values[: d - rank].mean() if rank < d else 0.5 * values[0]
    factor = vectors[:, d - rank :] * np.sqrt(np.maximum(values[d - rank :] - rest, 0))
    least = np.maximum(floor, 1e-6 * np.diag(covariance))  # a variance of 0 would make the density infinite
    noise = np.maximum(np.diag(covariance) - (factor**2).sum(axis=1), least)
    found: list[float] = []
    while len(found) < most:
        scaled = factor / noise[:, None]  # Psi^{-1} W
        inner = np.eye(rank) + factor.T @ scaled  # M
        inverse = np.linalg.inv(inner)
        explained = covariance @ scaled @ inverse  # Cov B^T
        trace = (np.diag(covariance) / noise).sum() - (scaled * explained).sum()
        found.append(-0.5 * (d * log(2 * pi) + np.log(noise).sum() + np.linalg.slogdet(inner)[1] + trace))
        if len(found) > 1 and found[-1] - found[-2] < gain:
            break
        second = inverse + inverse @ scaled.T @ explained  # E
        factor = np.linalg.solve(second, explained.T).T
        noise = np.maximum(np.diag(covariance) - (factor * explained).sum(axis=1), least)
    return factor, noise, np.array(found)
