"""What the models fitted in closed form or by EM share: real vectors for images and points.

Images are integers x; a density on them is that of v = x + u with u ~ U[0, 1), whose mean is 1/2 and whose variance is 1/12. Points are v
as they are. Moments are sums over the data in float64, on the host.
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Num

from jaxgen.data.features import modelled, smallest_unsigned
from jaxgen.errors import ConfigError

ROWS = 1024
"""Examples that are read at a time."""
NOISE = 1 / 12
"""The variance of u ~ U[0, 1)."""


def rows(dataset: Any, config: Any) -> Iterator[Float64[np.ndarray, "B D"]]:
    """All examples once, ROWS at a time, as vectors, without u."""
    for batch, real in dataset.epoch(ROWS, process=(0, 1)):
        x = np.asarray(batch[config.modelled], np.float64)[real > 0]
        yield x.reshape(len(x), -1)


def moments(dataset: Any, config: Any, diagonal: bool = False) -> tuple[Float64[np.ndarray, " D"], Float64[np.ndarray, "..."]]:
    """Mean [D] and covariance [D, D], divided by N, or the variances [D] alone; of images those of x + u."""
    n = len(dataset)
    mean = sum(x.sum(axis=0) for x in rows(dataset, config)) / n
    covariance = sum(np.square(x - mean).sum(axis=0) if diagonal else (x - mean).T @ (x - mean) for x in rows(dataset, config)) / n
    if modelled(config).discrete:
        mean, covariance = mean + 0.5, covariance + NOISE * (1 if diagonal else np.eye(len(mean)))
    return mean, covariance


def as_vectors(v: Float[Array, "B ..."], config: Any) -> Float[Array, "B D"]:
    """v as vectors; ConfigError where its examples have not the shape of the model's."""
    if tuple(v.shape[1:]) != tuple(config.image_shape):
        raise ConfigError("v", f"shape [B, {', '.join(map(str, config.image_shape))}]", list(v.shape))
    return v.reshape(v.shape[0], -1)


def to_examples(v: Float[Array, "B ..."], config: Any) -> Num[Array, "B ..."]:
    """Points as they are; images rounded down to a level and clipped to 0 .. levels-1; in the shape of an example."""
    v = v.reshape(-1, *config.image_shape)
    if not modelled(config).discrete:
        return v
    return jnp.clip(jnp.floor(v), 0, config.levels - 1).astype(smallest_unsigned(config.levels))
