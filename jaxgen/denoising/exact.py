"""Exact denoisers E[x_0 | x_t] and log-densities of x_t: of a Gaussian, of a mixture of Gaussians, and of a set of examples.

    x_0 ~ sum_k w_k N(m_k, C_k),   x_t = alpha x_0 + sigma noise   so   x_t ~ sum_k w_k N(alpha m_k, S_k),   S_k = alpha^2 C_k + sigma^2 I
    E[x_0 | x_t] = sum_k r_k (m_k + alpha C_k S_k^{-1} (x_t - alpha m_k)),      r_k proportional to w_k N(x_t; alpha m_k, S_k)

A denoiser is a function `denoise(x [B, ...], t) -> [B, ...]` with one time t for all rows. A network that is trained without error gives
these numbers, so they are what samplers and likelihoods are tested with. For a set of N examples, w = 1/N and C = 0: a network without
error on its training set gives only examples of that set again.

The score is grad log p(x_t) = (alpha E[x_0 | x_t] - x_t) / sigma^2 (Tweedie's formula).
"""

from collections.abc import Callable
from math import log, pi

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.denoising.schedules import Schedule, Time
from jaxgen.errors import ConfigError

Denoiser = Callable[[Float[Array, "B ..."], Time], Float[Array, "B ..."]]
LogDensity = Callable[[Float[Array, "B ..."], Time], Float[Array, " B"]]
EXACT = jax.lax.Precision.HIGHEST


def gaussian_denoiser(schedule: Schedule, mean, covariance) -> Denoiser:
    """E[x_0 | x_t] for x_0 ~ N(mean, covariance).

    mean: one number, or the shape of an example. covariance: a variance for all dimensions, variances in the shape of an example, or a
    matrix [D, D] over the D dimensions of an example that is no matrix itself. Raises ConfigError for another shape or a negative variance.
    """
    return mixture_denoiser(schedule, [1.0], *_one_component(mean, covariance))


def gaussian_log_density(schedule: Schedule, mean, covariance) -> LogDensity:
    """log p(x_t) in nats for x_0 ~ N(mean, covariance), arguments as of `gaussian_denoiser`; at t = 0 the density of the data."""
    return mixture_log_density(schedule, [1.0], *_one_component(mean, covariance))


def mixture_denoiser(schedule: Schedule, weights, means, covariances) -> Denoiser:
    """E[x_0 | x_t] for x_0 ~ sum_k w_k N(m_k, C_k).

    weights [K], positive with sum 1. means [K, ...]. covariances: one variance for all, [K] variances, variances in the shape of `means`,
    or matrices [K, D, D] over the D dimensions of an example. Raises ConfigError for other shapes, negative variances or other weights.
    """
    components = _components(weights, means, covariances)

    def denoise(x, t):
        logs, posterior_means = _posterior(schedule, components, x, t)
        shares = jax.nn.softmax(logs, axis=1)
        return jnp.einsum("bk,bkd->bd", shares, posterior_means, precision=EXACT).reshape(x.shape)

    return denoise


def mixture_log_density(schedule: Schedule, weights, means, covariances) -> LogDensity:
    """log p(x_t) in nats for x_0 ~ sum_k w_k N(m_k, C_k), arguments as of `mixture_denoiser`; at t = 0 the density of the data."""
    components = _components(weights, means, covariances)
    return lambda x, t: jax.nn.logsumexp(_posterior(schedule, components, x, t)[0], axis=1)


def empirical_denoiser(schedule: Schedule, examples: Float[np.ndarray | Array, "N ..."]) -> Denoiser:
    """E[x_0 | x_t] where x_0 is one of N examples, each with probability 1/N; where sigma is 0, the nearest example.

    It holds one row against all examples at a time, so it needs memory for the examples and N numbers.
    """
    examples = jnp.asarray(examples)

    def denoise(x, t):
        flat = examples.reshape(len(examples), -1).astype(x.dtype)

        def one(row):
            logs, _ = _empirical_logs(schedule, flat, row, t)
            return jnp.matmul(jax.nn.softmax(logs), flat, precision=EXACT)

        return jax.lax.map(one, x.reshape(len(x), -1)).reshape(x.shape)

    return denoise


def empirical_log_density(schedule: Schedule, examples: Float[np.ndarray | Array, "N ..."]) -> LogDensity:
    """log p(x_t) in nats where x_0 is one of N examples, each with probability 1/N. Where sigma is 0 there is no density."""
    examples = jnp.asarray(examples)

    def log_density(x, t):
        flat = examples.reshape(len(examples), -1).astype(x.dtype)
        volume = 0.5 * flat.shape[1] * jnp.log(2 * pi * schedule.sigma(t) ** 2) + log(len(flat))

        def one(row):
            logs, nearest = _empirical_logs(schedule, flat, row, t)
            return jax.nn.logsumexp(logs) + nearest - volume

        return jax.lax.map(one, x.reshape(len(x), -1))

    return log_density


def _empirical_logs(schedule: Schedule, examples: Float[Array, "N D"], row: Float[Array, " D"], t: Time):
    """-|x_t - alpha x_i|^2 / (2 sigma^2) as two terms: [N] relative to the nearest example, and that of the nearest.

    The smallest normal number stands for a sigma^2 of 0, where the nearest example then has the whole weight.
    """
    squares = ((row[None] - schedule.alpha(t) * examples) ** 2).sum(-1)
    twice = 2 * jnp.maximum(schedule.sigma(t) ** 2, jnp.finfo(row.dtype).tiny)
    return -(squares - squares.min()) / twice, -squares.min() / twice


def _one_component(mean, covariance) -> tuple[np.ndarray, np.ndarray]:
    """Mean [1, ...] and covariance [], [1, ...] or [1, D, D] of a mixture with one component."""
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.shape == ():  # the same number for every dimension that the covariance has
        shape = covariance.shape[:1] if covariance.shape == covariance.shape[:1] * 2 else covariance.shape  # of a matrix, its side
        mean = np.broadcast_to(mean, shape)
    return mean[None], covariance if covariance.shape == () else covariance[None]


def _components(weights, means, covariances) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """log w [K], means [K, D or 1], eigenvalues [K, D or 1] and eigenvectors [K, D, D] of the covariances, None for diagonal ones; float64.

    A last axis of 1 stands for any number of dimensions that share mean and variance.
    """
    weights, means, covariances = (np.asarray(value, np.float64) for value in (weights, means, covariances))
    k = len(weights) if weights.shape == (weights.size,) else 0
    if not k or not (weights > 0).all() or abs(weights.sum() - 1) > 1e-5:
        raise ConfigError("weights", "[K] positive numbers with sum 1", weights.tolist())
    if means.ndim < 1 or len(means) != k:
        raise ConfigError("means", f"shape [{k}, ...]", list(means.shape))
    flat = means.reshape(k, -1)
    d = flat.shape[1]
    vectors = None
    if covariances.shape in ((), (k,)):
        values = np.broadcast_to(covariances.reshape(-1, 1), (k, 1))
    elif covariances.shape == means.shape:
        values = covariances.reshape(k, d)
    elif covariances.shape == (k, d, d):
        if not np.allclose(covariances, covariances.transpose(0, 2, 1)):
            raise ConfigError("covariances", "symmetric matrices", "others")
        values, vectors = np.linalg.eigh(covariances)
        values = np.where(np.abs(values) < 1e-12 * np.abs(values).max(), 0, values)  # rounding of a singular matrix
    else:
        wanted = f"one variance, or shape [{k}], {list(means.shape)} or [{k}, {d}, {d}]"
        raise ConfigError("covariances", wanted, list(covariances.shape))
    if (values < 0).any():
        raise ConfigError("covariances", "no negative variance", float(values.min()))
    return np.log(weights), flat, values, vectors


def _posterior(schedule: Schedule, components, x: Float[Array, "B ..."], t: Time) -> tuple[Float[Array, "B K"], Float[Array, "B K D"]]:
    """log w_k N(x_t; alpha m_k, S_k) and E[x_0 | x_t, k], in the eigenvectors' coordinates and back."""
    rows = x.reshape(len(x), -1)
    logs, means, values = (jnp.asarray(value, x.dtype) for value in components[:3])
    vectors = None if components[3] is None else jnp.asarray(components[3], x.dtype)
    alpha, sigma = jnp.asarray(schedule.alpha(t), x.dtype), jnp.asarray(schedule.sigma(t), x.dtype)
    if means.shape[1] not in (1, rows.shape[1]) or values.shape[1] not in (1, rows.shape[1]):
        raise ConfigError("x", f"{max(means.shape[1], values.shape[1])} dimensions", list(x.shape))
    centred = rows[:, None] - alpha * means[None]
    if vectors is not None:
        centred = jnp.einsum("bkd,kde->bke", centred, vectors, precision=EXACT)
    variances = jnp.broadcast_to(alpha**2 * values + sigma**2, (len(values), rows.shape[1]))[None]
    density = -0.5 * (centred**2 / variances + jnp.log(2 * pi * variances)).sum(-1)
    gained = alpha * values[None] / variances * centred
    if vectors is not None:
        gained = jnp.einsum("bke,kde->bkd", gained, vectors, precision=EXACT)
    return logs[None] + density, means[None] + gained
