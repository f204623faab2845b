"""A mixture of Gaussians, by EM (Dempster, Laird & Rubin 1977; Bishop 2006, "Pattern Recognition and Machine Learning", section 9.2).

    p(v) = sum_k pi_k N(v; mu_k, S_k),          S_k full or diagonal

    E   q_nk = pi_k N(v_n; mu_k, S_k) / sum_j pi_j N(v_n; mu_j, S_j)
    M   N_k = sum_n q_nk,   pi_k = N_k / N,   mu_k = sum_n q_nk v_n / N_k,   S_k = sum_n q_nk (v_n - mu_k)(v_n - mu_k)^T / N_k + ridge I

On images the density is that of v = x + u with u ~ U[0, 1); the evaluator draws u. `fit` draws nothing: with q that does not depend on u,
the mean of log p(x + u) over u is at least

    log sum_k pi_k exp(log N(x + 1/2; mu_k, S_k) - tr(S_k^{-1}) / 24)         1/12 is the variance of u

and EM climbs this bound: q is taken from its terms, 1/2 is added to the means and 1/12 to the variances of the M step. For K = 1 that is
the Gaussian of multivariate_gaussian.py. Sampled images are v rounded down and clipped to 0 .. levels-1.

EM begins with means that are examples far from each other (k-means++, Arthur & Vassilvitskii 2007), S_k the covariance of all examples,
pi_k = 1/K. It runs in float64 on the host. Axes: B batch, N examples, D = H W C or the dimensions of a point, K components.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import log, pi, prod
from typing import Any, ClassVar, Literal, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, Num, PRNGKeyArray

from jaxgen.checks import check_count, check_key, check_levels
from jaxgen.config import check_types
from jaxgen.data.features import OfImagesOrPoints, modelled
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers.convolutions import dot
from jaxgen.layers.dequantised import NOISE, as_vectors, moments, rows, set_parameters, to_examples, whitening


class Mixture(NamedTuple):
    """The numbers of a mixture in float64."""

    weights: Float64[np.ndarray, " K"]  # pi
    means: Float64[np.ndarray, "K D"]  # mu
    covariances: Float64[np.ndarray, "..."]  # S, [K, D, D] or, of a diagonal one, [K, D]


@dataclass(frozen=True)
class GMMConfig(OfImagesOrPoints):
    """Sizes of a mixture of Gaussians, and its EM. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, ...] = (8, 8, 1)  # (H, W, C) of images, or (d,) of real points
    levels: int = 17  # number of values that a channel of a pixel has, 0 .. levels-1; 0 for points
    components: int = 10  # K, number of Gaussians
    covariance: Literal["full", "diagonal"] = "full"  # the form of every S_k
    iterations: int = 200  # of EM, at most
    tolerance: float = 1e-4  # EM ends where an iteration gains less than this many nats of an example
    ridge: float = 1e-6  # added to all variances, so that no component shrinks to one example
    num_classes: ClassVar[int] = 0  # no labels

    def __post_init__(self):
        check_types(self)
        check_levels(self.levels, modelled(self))
        for name in ("components", "iterations"):
            check_count(getattr(self, name), name)
        for name in ("tolerance", "ridge"):
            if getattr(self, name) < 0:
                raise ConfigError(name, "0 or more", getattr(self, name))


class GMM(nnx.Module):
    """sum_k pi_k N(mu_k, S_k); before `fit` all components are N(0, I)."""

    def __init__(self, config: GMMConfig, *, rngs: nnx.Rngs):
        self.config, k, d = config, config.components, prod(config.image_shape)
        self.log_weights = nnx.Param(jnp.full(k, -log(k), jnp.float32))
        self.means = nnx.Param(jnp.zeros((k, d)))
        if config.covariance == "full":
            self.whiten = nnx.Param(jnp.broadcast_to(jnp.eye(d), (k, d, d)).copy())  # L_k, L_k^T L_k = S_k^{-1}, lower triangular
        else:
            self.scale = nnx.Param(jnp.ones((k, d)))  # square roots of the variances

    @classmethod
    def fit(cls, dataset, config: GMMConfig, key: PRNGKeyArray) -> "GMM":
        """The mixture at the end of EM from a start that is drawn by `key`. Raises DataError for fewer examples than components or two."""
        if len(dataset) < max(2, config.components):
            raise DataError("dataset", f"at least {max(2, config.components)} examples for {config.components} components", len(dataset))
        return cls.of(config, em(dataset, config, start(dataset, config, key))[0])

    @classmethod
    def of(cls, config: GMMConfig, mixture: Mixture) -> "GMM":
        """The model with these numbers."""
        model = cls(config, rngs=nnx.Rngs(0))
        found = {"log_weights": np.log(mixture.weights), "means": mixture.means}
        if config.covariance == "full":
            found["whiten"] = np.stack([_whiten(one) for one in mixture.covariances])
        else:
            found["scale"] = np.sqrt(mixture.covariances)
        set_parameters(model, found)
        return model

    def log_joint(self, v: Float[Array, "B ..."]) -> Float[Array, "B K"]:
        """log pi_k + log N(v; mu_k, S_k) in nats; its softmax over k is p(k | v)."""
        return self._log_joint(as_vectors(v, self.config))

    @jax.jit  # else its loop is compiled in every call
    def _log_joint(self, x: Float[Array, "B D"]) -> Float[Array, "B K"]:
        def one(of_component):
            y = x - of_component["means"][None]
            if self.config.covariance == "full":
                whiten = of_component["whiten"]
                return -0.5 * (dot(y, whiten.T) ** 2).sum(-1) + jnp.log(jnp.diagonal(whiten)).sum()
            scale = of_component["scale"]
            return -0.5 * ((y / scale[None]) ** 2).sum(-1) - jnp.log(scale).sum()

        each = jax.lax.map(one, self._components())  # [K, B]
        return each.T + self.log_weights[...][None] - 0.5 * x.shape[1] * log(2 * pi)

    def log_density(self, v: Float[Array, "B ..."]) -> Float[Array, " B"]:
        """log p(v) in nats."""
        return jax.nn.logsumexp(self.log_joint(v), axis=-1)

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> Num[Array, "n ..."]:
        """n points float32 [n, d], or n images [n, H, W, C]: draws of v, for images rounded down and clipped."""
        check_key(key)
        return _sample(self, key, n=check_count(n))

    def _components(self) -> dict[str, Array]:
        name = "whiten" if self.config.covariance == "full" else "scale"
        return {"means": self.means[...], name: getattr(self, name)[...]}


def start(dataset: Any, config: GMMConfig, key: PRNGKeyArray) -> Mixture:
    """Means by k-means++: each next one is an example drawn in proportion to its squared distance from the nearest before it."""
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    half = 0.5 if modelled(config).discrete else 0.0
    x = np.concatenate(list(rows(dataset, config))) + half
    means = [x[generator.integers(len(x))]]
    nearest = np.full(len(x), np.inf)
    while len(means) < config.components:
        nearest = np.minimum(nearest, np.square(x - means[-1]).sum(axis=1))
        if not nearest.any():
            raise DataError("dataset", f"at least {config.components} different examples, for as many components", len(means))
        means.append(x[generator.choice(len(x), p=nearest / nearest.sum())])
    _, covariance = moments(dataset, config, config.covariance == "diagonal")
    spread = config.ridge * (1 if config.covariance == "diagonal" else np.eye(x.shape[1]))
    k = config.components
    return Mixture(np.full(k, 1 / k), np.stack(means), np.stack([covariance + spread] * k))


def em(dataset: Any, config: GMMConfig, mixture: Mixture) -> tuple[Mixture, Float64[np.ndarray, " iterations"]]:
    """The mixture after the last M step, and before each M step the mean over examples of log p, of images its bound.

    Raises DataError where a component loses all examples or its covariance is singular.
    """
    found: list[float] = []
    while len(found) < config.iterations:
        mixture, score = em_step(dataset, config, mixture)
        found.append(score)
        if len(found) > 1 and found[-1] - found[-2] < config.tolerance:
            break
    return mixture, np.array(found)


def em_step(dataset: Any, config: GMMConfig, mixture: Mixture) -> tuple[Mixture, float]:
    """One E step and one M step; the mixture after it, and the score of the one before it."""
    noise, half = (NOISE, 0.5) if modelled(config).discrete else (0.0, 0.0)
    diagonal, k, d = config.covariance == "diagonal", config.components, prod(config.image_shape)
    count, first, score = np.zeros(k), np.zeros((k, d)), 0.0
    centre = mixture.weights @ mixture.means  # moments are about it, or about the means of before: no digits are lost to a large mean
    offsets = np.zeros((k, d)) if diagonal else mixture.means - centre
    second = np.zeros((k, d) if diagonal else (k, d, d))
    for x, joint in _log_joint(dataset, config, mixture, centre - half, noise):
        most = joint.max(axis=1, keepdims=True)
        q = np.exp(joint - most)
        score += (most[:, 0] + np.log(q.sum(axis=1))).sum()
        q /= q.sum(axis=1, keepdims=True)
        count += q.sum(axis=0)
        if diagonal:
            first += q.T @ x
            second += q.T @ np.square(x)
            continue
        for i in range(k):
            y = x - offsets[i]
            weighted = q[:, i, None] * y
            first[i] += weighted.sum(axis=0)
            second[i] += weighted.T @ y
    if (count < 1e-9 * count.sum()).any():
        raise DataError("dataset", "examples of every component", f"none of component {int(count.argmin())}", "choose fewer components")
    shift = first / count[:, None]
    added = (noise + config.ridge) * (1 if diagonal else np.eye(d))
    if diagonal:
        covariances = second / count[:, None] - shift**2 + added
    else:
        covariances = second / count[:, None, None] - shift[:, :, None] * shift[:, None, :] + added
    return Mixture(count / count.sum(), centre + offsets + shift, covariances), score / count.sum()


def _log_joint(
    dataset: Any, config: GMMConfig, mixture: Mixture, origin: Float64[np.ndarray, " D"], noise: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(x - origin [B, D]; log pi_k + mean over u of log N [B, K]) of all examples; origin: the mixture's mean, of images less 1/2."""
    diagonal, d = config.covariance == "diagonal", prod(config.image_shape)
    factors = [np.sqrt(1 / one) if diagonal else _whiten(one) for one in mixture.covariances]
    constants = [np.log(one if diagonal else np.diag(one)).sum() - 0.5 * (d * log(2 * pi) + noise * (one**2).sum()) for one in factors]
    constants, offsets = np.log(mixture.weights) + np.array(constants), mixture.means - mixture.weights @ mixture.means
    for x in rows(dataset, config):
        y = x - origin
        if diagonal:  # (y - o)^2 / s = y^2 / s - 2 y o / s + o^2 / s, two products for all components
            squares = np.square(y) @ (1 / mixture.covariances).T - 2 * y @ (offsets / mixture.covariances).T
            squares += (offsets**2 / mixture.covariances).sum(axis=1)
        else:
            squares = np.stack([np.square((y - o) @ one.T).sum(axis=1) for o, one in zip(offsets, factors, strict=True)], axis=1)
        yield y, constants - 0.5 * squares


def _whiten(covariance: Float64[np.ndarray, "D D"]) -> Float64[np.ndarray, "D D"]:
    """`whitening`; DataError where S is singular."""
    try:
        return whitening(covariance)
    except np.linalg.LinAlgError:
        raise DataError("dataset", "components that vary in all directions", "a singular covariance", "choose a larger ridge") from None


@partial(jax.jit, static_argnames="n")
def _sample(model: GMM, key: PRNGKeyArray, *, n: int) -> Num[Array, "n ..."]:
    """A program: without `jit` its loop would be compiled anew in every call."""
    key_k, key_z = jax.random.split(key)
    chosen = jax.random.categorical(key_k, model.log_weights[...], shape=(n,))
    z = jax.random.normal(key_z, (n, prod(model.config.image_shape)))

    def add(v, inputs):
        k, of_component = inputs
        if model.config.covariance == "full":
            y = jax.scipy.linalg.solve_triangular(of_component["whiten"], z.T, lower=True).T
        else:
            y = z * of_component["scale"][None]
        return jnp.where((chosen == k)[:, None], of_component["means"][None] + y, v), None

    v, _ = jax.lax.scan(add, jnp.zeros_like(z), (jnp.arange(model.config.components), model._components()))
    return to_examples(v, model.config)
