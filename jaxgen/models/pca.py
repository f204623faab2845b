"""Principal component analysis in closed form (Tipping & Bishop 1999, "Probabilistic Principal Component Analysis").

    z ~ N(0, I_K),   v | z ~ N(mu + W z, sigma^2 I_D)        so   v ~ N(mu, W W^T + sigma^2 I)                      eq. 2, 4

    mu = mean of the data,   U, lambda_1 >= ... >= lambda_D = eigenvectors and eigenvalues of their covariance S
    sigma^2 = (lambda_{K+1} + ... + lambda_D) / (D - K),      W = U_K (Lambda_K - sigma^2 I)^{1/2}                  eq. 7, 8

`transform` and `inverse_transform` are those of plain PCA: z = U_K^T (v - mu) and mu + U_K z. With K = D there is no noise,
sigma^2 = 0, and the model is the Gaussian with the full covariance.

On images the density is that of v = x + u with u ~ U[0, 1); the evaluator draws u. `fit` draws nothing: it adds the mean of u, 1/2, to the
mean of every pixel and the variance of u, 1/12, to every eigenvalue. Sampled images are v rounded down and clipped to 0 .. levels-1.

Axes: B batch, D = H W C or the dimensions of a point, K components. Departure from the paper: S is divided by N - 1 instead of N, as in
scikit-learn, so that both give the same numbers.
"""

from dataclasses import dataclass
from math import log, pi, prod
from typing import ClassVar, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num, PRNGKeyArray

from jaxgen.checks import check_count, check_key, check_levels
from jaxgen.config import check_types
from jaxgen.data.features import Feature, OfImagesOrPoints, modelled
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers.convolutions import dot
from jaxgen.layers.dequantised import NOISE, as_vectors, rows, scatter, set_parameters, to_examples


@dataclass(frozen=True)
class PCAConfig(OfImagesOrPoints):
    """Sizes of a PCA. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, ...] = (8, 8, 1)  # (H, W, C) of images, or (d,) of real points
    levels: int = 17  # number of values that a channel of a pixel has, 0 .. levels-1; 0 for points
    components: int = 16  # K, number of principal components
    num_classes: ClassVar[int] = 0  # a PCA has no classes

    def __post_init__(self):
        check_types(self)
        check_levels(self.levels, modelled(self))
        if not 1 <= self.components <= prod(self.image_shape):
            wanted = f"1..{prod(self.image_shape)}, the dimensions of an example"
            raise ConfigError("components", wanted, self.components, "choose with --model.components")

    @classmethod
    def defaults_for(cls, features: dict[str, Feature]) -> dict[str, object]:
        """{"components": D} for a data set whose D is below the default of `components`; {} otherwise."""
        dimensions = prod(cls.sizes_from(features)["image_shape"])
        return {"components": dimensions} if dimensions < cls.components else {}


class PCA(nnx.Module):
    """The density N(mu, W W^T + sigma^2 I); before `fit` it is N(0, I)."""

    def __init__(self, config: PCAConfig, *, rngs: nnx.Rngs):
        self.config = config
        k, d = config.components, prod(config.image_shape)
        self.mean = nnx.Param(jnp.zeros(d))
        self.components = nnx.Param(jnp.eye(k, d))  # U_K^T, one component in each row
        self.explained_variance = nnx.Param(jnp.ones(k))  # lambda_1 .. lambda_K
        self.noise_variance = nnx.Param(jnp.ones(()) if k < d else jnp.zeros(()))  # sigma^2

    @classmethod
    def fit(cls, dataset, config: PCAConfig, key: PRNGKeyArray) -> "PCA":
        """The maximum-likelihood model of a data set (with S divided by N - 1), computed in float64 on the host and kept in float32.

        `key` is not used. Raises DataError for fewer than two examples, and where sigma^2 (for K = D: lambda_D) is below 1e-12 lambda_1:
        the points then lie in a subspace and have no density.
        """
        n, k, d = len(dataset), config.components, prod(config.image_shape)
        if n < 2:
            raise DataError("dataset", "at least 2 examples to fit a covariance", n)
        mean = sum(x.sum(axis=0) for x in rows(dataset, config)) / n
        covariance = scatter(dataset, config, mean) / (n - 1)
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = np.maximum(values[::-1], 0), vectors.T[::-1]
        if modelled(config).discrete:  # of u ~ U[0, 1)
            mean, values = mean + 0.5, values + NOISE
        noise = values[k:].mean() if k < d else 0.0
        if (values[k - 1] if k == d else noise) < 1e-12 * values[0] or values[0] == 0:
            wanted = f"points that vary in more than {k} directions" if k < d else f"points that vary in all {d} directions"
            raise DataError("dataset", wanted, "no variance left over, so there is no density", "choose fewer --model.components")
        signs = np.sign(vectors[np.arange(d), np.abs(vectors).argmax(axis=1)])  # the entry of largest magnitude is positive
        model = cls(config, rngs=nnx.Rngs(0))
        arrays = {"mean": mean, "components": (signs[:, None] * vectors)[:k], "explained_variance": values[:k], "noise_variance": noise}
        set_parameters(model, arrays)
        return model

    def transform(self, v: Float[Array, "B ..."]) -> Float[Array, "B K"]:
        """z = U_K^T (v - mu), the coordinates of plain PCA."""
        return dot(self._centred(v), self.components[...].T)

    def inverse_transform(self, z: Float[Array, "B K"]) -> Float[Array, "B ..."]:
        """mu + U_K z, in the shape of an example."""
        return (self.mean[...][None] + dot(z, self.components[...])).reshape(-1, *self.config.image_shape)

    def encode(self, x: Num[Array, "B ..."]) -> Float[Array, "B K"]:
        """The codes z = U_K^T (v - mu): points are v as they are, images v = x + 1/2, the mean of x + u."""
        x = jnp.asarray(x).astype(jnp.float32)
        return self.transform(x + 0.5 if modelled(self.config).discrete else x)

    def picture(self, z: Float[Array, "B K"]) -> Num[Array, "B ..."]:
        """mu + U_K z: points as they are, images rounded down to a level and clipped."""
        return to_examples(self.inverse_transform(z), self.config)

    def reconstruct(self, x: Num[Array, "B ..."]) -> Num[Array, "B ..."]:
        """What the codes of x decode to."""
        return self.picture(self.encode(x))

    def log_density(self, v: Float[Array, "B ..."]) -> Float[Array, " B"]:
        """log N(v; mu, W W^T + sigma^2 I) in nats. The variance is lambda_k along component k, sigma^2 orthogonal to all."""
        centred, z = self._centred(v), self.transform(v)
        k, d = self.config.components, prod(self.config.image_shape)
        variance, noise = self.explained_variance[...], self.noise_variance[...]
        squares, volume = (z**2 / variance[None]).sum(-1), jnp.log(variance).sum()
        if k < d:
            squares += ((centred - dot(z, self.components[...])) ** 2).sum(-1) / noise
            volume += (d - k) * jnp.log(noise)
        return -0.5 * (d * log(2 * pi) + volume + squares)

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> Num[Array, "n ..."]:
        """n points float32 [n, d], or n images [n, H, W, C]: draws of v, for images rounded down and clipped."""
        check_key(key)
        n, (key_z, key_noise) = check_count(n), jax.random.split(key)
        scale = jnp.sqrt(jnp.maximum(self.explained_variance[...] - self.noise_variance[...], 0))
        v = self.inverse_transform(scale[None] * jax.random.normal(key_z, (n, self.config.components)))
        v += jnp.sqrt(self.noise_variance[...]) * jax.random.normal(key_noise, v.shape)
        return to_examples(v, self.config)

    def _centred(self, v: Float[Array, "B ..."]) -> Float[Array, "B D"]:
        return as_vectors(v, self.config) - self.mean[...][None]
