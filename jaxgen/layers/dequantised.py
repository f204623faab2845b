"""What densities of images and points share: real vectors, moments, the loss and the samples of images.

Images are integers x; a density on them is that of v = x + u with u ~ U[0, 1), whose mean is 1/2 and whose variance is 1/12. Points are v
as they are. Moments are sums over the data in float64, on the host.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, Num, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_images, check_key, image_of
from jaxgen.data.features import modelled, smallest_unsigned
from jaxgen.distributions import bits_per_dim
from jaxgen.errors import ConfigError, DataError

ROWS = 1024
"""Examples that are read at a time."""
NOISE = 1 / 12
"""The variance of u ~ U[0, 1)."""


def rows(dataset: Any, config: Any) -> Iterator[Float64[np.ndarray, "B D"]]:
    """All examples once, ROWS at a time, as vectors, without u."""
    for batch, real in dataset.epoch(ROWS, process=(0, 1)):
        x = np.asarray(batch[config.modelled])[: int((real > 0).sum())].astype(np.float64)
        yield x.reshape(len(x), -1)


def scatter(dataset: Any, config: Any, mean: Float64[np.ndarray, " D"]) -> Float64[np.ndarray, "D D"]:
    """sum_n (x_n - mean)(x_n - mean)^T; a product of a matrix with itself takes half the time of one with another."""
    total = np.zeros((len(mean), len(mean)))
    for x in rows(dataset, config):
        x -= mean
        total += x.T @ x
    return total


def moments(dataset: Any, config: Any, diagonal: bool = False) -> tuple[Float64[np.ndarray, " D"], Float64[np.ndarray, "..."]]:
    """Mean [D] and covariance [D, D], divided by N, or the variances [D] alone; of images those of x + u."""
    n = len(dataset)
    mean = sum(x.sum(axis=0) for x in rows(dataset, config)) / n
    if diagonal:
        covariance = sum(np.square(x - mean).sum(axis=0) for x in rows(dataset, config)) / n
    else:
        covariance = scatter(dataset, config, mean) / n
    if modelled(config).discrete:
        mean, covariance = mean + 0.5, covariance + NOISE * (1 if diagonal else np.eye(len(mean)))
    return mean, covariance


def flat_images(images: UInt[np.ndarray, "N ..."], levels: int, least: int) -> UInt[np.ndarray, "N D"]:
    """[N, D]; DataError for fewer images than `least` and for values that are no levels."""
    if len(images) < least:
        raise DataError("images", f"at least {least} to fit a {'covariance' if least > 1 else 'histogram'}", len(images))
    if images.max() >= levels:
        raise DataError("images", f"values in 0..{levels - 1}", int(images.max()))
    return images.reshape(len(images), -1)


def moments_of(x: UInt[np.ndarray, "N D"]) -> tuple[Float64[np.ndarray, " D"], Float64[np.ndarray, "D D"]]:
    """Mean and covariance of integers, without u, divided by N."""
    x = x.astype(np.float64)
    centred = x - x.mean(axis=0)
    return x.mean(axis=0), centred.T @ centred / len(x)


def whitening(covariance: Float64[np.ndarray, "D D"]) -> Float64[np.ndarray, "D D"]:
    """L, lower triangular with L^T L = S^{-1}. numpy.linalg.LinAlgError where S is singular."""
    from scipy.linalg import solve_triangular

    return solve_triangular(np.linalg.cholesky(covariance), np.eye(len(covariance)), lower=True)


def set_parameters(model: Any, arrays: Mapping[str, Any]) -> None:
    """Gives a model the parameters of these names, in float32."""
    for name, array in arrays.items():
        setattr(model, name, nnx.Param(jnp.asarray(np.asarray(array), jnp.float32)))


def check_shape(v: Float[Array, "B ..."], config: Any) -> None:
    """ConfigError where the examples have not the shape of the model's."""
    if tuple(v.shape[1:]) != tuple(config.image_shape):
        raise ConfigError("v", f"shape [B, {', '.join(map(str, config.image_shape))}]", list(v.shape))


def as_vectors(v: Float[Array, "B ..."], config: Any) -> Float[Array, "B D"]:
    """v as vectors; ConfigError as in `check_shape`."""
    check_shape(v, config)
    return v.reshape(v.shape[0], -1)


def to_examples(v: Float[Array, "B ..."], config: Any) -> Num[Array, "B ..."]:
    """Points as they are; images rounded down to a level and clipped to 0 .. levels-1; in the shape of an example."""
    v = v.reshape(-1, *config.image_shape)
    if not modelled(config).discrete:
        return v
    return jnp.clip(jnp.floor(v), 0, config.levels - 1).astype(smallest_unsigned(config.levels))


class DequantisedImages(nnx.Module):
    """Loss and samples of a density of images, whose bits/dim are an upper bound on those of the levels:

    E_u[-log p(x + u)] >= -log P(x)       Theis, van den Oord, Bethge 2016, "A note on the evaluation of generative models", section 3.1

    What a model defines: `config` with `image_shape` and `levels`, `log_density(v)`, log p(v) [B], and `draw_v(key, n)`: draws of v.
    """

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-mean log2 p(x + u) / D, u drawn from `key`; metrics: it as bits_per_dim_bound, and nats per image."""
        config = self.config
        image = check_images(image_of(batch), config.image_shape, config.levels)
        nats = -self.log_density(image.astype(jnp.float32) + jax.random.uniform(key, image.shape)).mean()
        bits = bits_per_dim(nats, prod(config.image_shape))
        return bits, {"bits_per_dim_bound": bits, "nats_bound": nats}

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> UInt[Array, "n H W C"]:
        """n images: draws of v, rounded down to a level and clipped."""
        check_key(key)
        return _sample(self, key, n=check_count(n))


@partial(jax.jit, static_argnames="n")
def _sample(model: DequantisedImages, key: PRNGKeyArray, *, n: int) -> UInt[Array, "n H W C"]:
    return to_examples(model.draw_v(key, n), model.config)
