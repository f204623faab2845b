"""Autoregression of order p, AR(p): a value of a series is a linear function of the p values before it, and Gaussian noise.

    x_t = c + sum_{i=1..p} phi_i x_{t-i} + e_t,          e_t ~ N(0, sigma^2) independent

    conditional   log p(x_{p+1} .. x_T | x_1 .. x_p) = sum_{t>p} log N(x_t; c + sum_i phi_i x_{t-i}, sigma^2)
    stationary    the same + log p(x_1 .. x_p), x_1 .. x_p drawn from the stationary distribution, which there is where all roots of
                  1 - sum_i phi_i z^i lie outside the unit circle. Its factors are those of AR(k), k = 0 .. p-1, by the recursion of
                  Levinson and Durbin, backwards:
                      phi^{k-1}_i = (phi^k_i + phi^k_k phi^k_{k-i}) / (1 - (phi^k_k)^2),    sigma_{k-1}^2 = sigma_k^2 / (1 - (phi^k_k)^2)
                      p(x_{k+1} | x_1 .. x_k) = N(mu + sum_i phi^k_i (x_{k+1-i} - mu), sigma_k^2),    mu = c / (1 - sum_i phi_i)

    least squares   c, phi minimise sum_{t>p} e_t^2, and sigma^2 is its mean over T - p: the maximum of the conditional likelihood
    Yule-Walker     r_k = 1/T sum_t (x_t - m)(x_{t-k} - m), m the mean;  sum_j r_{|i-j|} phi_j = r_i,  sigma^2 = r_0 - sum_j phi_j r_j,
                    c = m (1 - sum_j phi_j): always stationary

    forecast        mean: the equation without noise, its own values in place of unknown ones;
                    error of step h: sigma (psi_0^2 + .. + psi_{h-1}^2)^{1/2},   psi_0 = 1,  psi_j = sum_{i=1..min(j,p)} phi_i psi_{j-i}

    AIC = -2 log L + 2 k,    BIC = -2 log L + k log n,    k = p + 2 parameters, L the conditional likelihood of n values

Yule 1927, "On a Method of Investigating Periodicities in Disturbed Series, with Special Reference to Wolfer's Sunspot Numbers"; Hamilton
1994, "Time Series Analysis", chapters 3 to 5; Brockwell & Davis 1991, "Time Series: Theory and Methods", chapters 3, 5, 8.
The estimates are computed in float64 on the host. The error of a forecast takes c, phi and sigma as known.

Axes: B batch or number of series, T time, p order.
"""

from dataclasses import dataclass
from math import log, pi
from statistics import NormalDist
from typing import ClassVar, Literal, NamedTuple, SupportsIndex

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, Int, PRNGKeyArray

from jaxgen.checks import check_count
from jaxgen.config import check_types
from jaxgen.data.features import Feature
from jaxgen.data.series import Series, check_values, windows
from jaxgen.distributions import Normal
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers.dequantised import set_parameters
from jaxgen.sampling import sample_sequence


class Estimate(NamedTuple):
    """The numbers of an AR(p) in float64."""

    intercept: float  # c
    coefficients: Float64[np.ndarray, " p"]  # phi_1 .. phi_p
    noise_variance: float  # sigma^2


class Forecast(NamedTuple):
    """The next N values, float64."""

    mean: Float64[np.ndarray, " N"]
    standard_error: Float64[np.ndarray, " N"]
    low: Float64[np.ndarray, " N"]  # the ends of the interval that has the value with probability `level`
    high: Float64[np.ndarray, " N"]
    level: float


class Criteria(NamedTuple):
    """AIC and BIC of the orders 0 .. P, all on the same n values; lower is better."""

    aic: Float64[np.ndarray, " P1"]
    bic: Float64[np.ndarray, " P1"]
    log_likelihood: Float64[np.ndarray, " P1"]
    n: int


@dataclass(frozen=True)
class AutoregressionConfig:
    """An autoregression. Raises ConfigError for sizes out of range."""

    order: int = 2  # p, how many values back it looks
    method: Literal["least_squares", "yule_walker"] = "least_squares"  # least squares, or the equations of the autocovariances
    length: int = 100  # T, the values of a sample
    modelled: ClassVar[str] = "series"
    num_classes: ClassVar[int] = 0  # no labels

    def __post_init__(self):
        check_types(self)
        for name in ("order", "length"):
            check_count(getattr(self, name), name)

    @property
    def features(self) -> dict[str, Feature]:
        """The columns that the model needs: a series, each value with the p before it."""
        return {"series": Series(self.order)}

    @classmethod
    def sizes_from(cls, features: dict[str, Feature]) -> dict[str, object]:
        """{"order": the context of the windows, if they have any}; DataError without a series."""
        if "series" not in features:
            said = ", ".join(feature.said for feature in features.values())
            raise DataError("data", "a series of numbers", said, "--data.name sunspots, or a .csv file and --data.column")
        return {"order": features["series"].context or cls.order}


class Cache(NamedTuple):
    """The sampler's cache."""

    recent: Float[Array, "B p"]  # the last p values, the newest first
    offsets: Float[Array, " p1"]  # of `Autoregression._factors`, computed once
    weights: Float[Array, "p1 p"]
    log_variances: Float[Array, " p1"]


class Autoregression(nnx.Module):
    """AR(p); before `fit` it is white noise of variance 1."""

    def __init__(self, config: AutoregressionConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, Normal()
        self.intercept = nnx.Param(jnp.zeros(()))  # c
        self.coefficients = nnx.Param(jnp.zeros(config.order))  # phi_1 .. phi_p
        self.noise_variance = nnx.Param(jnp.ones(()))  # sigma^2
        self.last = nnx.Variable(jnp.zeros(config.order))  # the last p values of the training series, the newest first

    @classmethod
    def fit(cls, dataset, config: AutoregressionConfig, key: PRNGKeyArray) -> "Autoregression":
        """The estimate from a data set by `config.method`, in float64 on the host and kept in float32; `key` is not used.

        The rows may be windows of any length in the order of time; where one does not continue the row before, another series begins.
        Raises DataError for too few values, and for a series that is predicted without error.
        """
        series = joined(np.asarray(dataset.columns["series"], np.float64))
        if config.method == "yule_walker" and len(series) > 1:
            raise DataError("dataset", "one series without gaps, for yule_walker", f"{len(series)} series", "use least_squares")
        estimate = least_squares(series, config.order) if config.method == "least_squares" else yule_walker(series[0], config.order)
        return cls.of(config, estimate, series[-1][-config.order :])

    @classmethod
    def of(cls, config: AutoregressionConfig, estimate: Estimate, last: Float[np.ndarray, " p"] | None = None) -> "Autoregression":
        """The model with these numbers. last: the values x_{T-p+1} .. x_T that it continues where none are given; None: zeros."""
        model = cls(config, rngs=nnx.Rngs(0))
        set_parameters(model, estimate._asdict())
        if last is not None:
            model.last = nnx.Variable(jnp.asarray(np.asarray(last)[::-1].copy(), jnp.float32))
        return model

    @property
    def estimate(self) -> Estimate:
        """The parameters as float64 of NumPy."""
        c, phi, variance = (np.asarray(one[...], np.float64) for one in (self.intercept, self.coefficients, self.noise_variance))
        return Estimate(float(c), phi, float(variance))

    def log_density(self, x: Float[Array, "B p1"]) -> Float[Array, " B"]:
        """log p(x_t | x_{t-p} .. x_{t-1}) in nats of windows (x_{t-p}, .., x_t): rows of the values of a data set.

        Of whole series see `conditional_log_density` and `stationary_log_density`.
        """
        if x.ndim != 2 or x.shape[1] != self.config.order + 1:
            raise ConfigError("x", f"windows [B, {self.config.order + 1}]", list(x.shape), "of series see conditional_log_density")
        return self.conditional_log_density(x)

    def conditional_log_density(self, x: Float[Array, "B T"]) -> Float[Array, " B"]:
        """log p(x_{p+1} .. x_T | x_1 .. x_p) in nats: the first p values are given, and their density is not counted."""
        return self._terms(x)[:, self.config.order :].sum(-1)

    def stationary_log_density(self, x: Float[Array, "B T"]) -> Float[Array, " B"]:
        """log p(x_1 .. x_T) in nats of all T values, the first p from the stationary distribution; nan where there is none."""
        return jnp.where(self.stationary, self._terms(x).sum(-1), jnp.nan)

    def logits(self, x: Float[Array, "B T"]) -> Float[Array, "B T 2"]:
        """(mean, log variance) of p(x_t | x_<t) at every place, as samples are drawn."""
        order = self.config.order
        offsets, weights, log_variances = self._factors()
        start = jnp.broadcast_to(self.last[...][::-1][None], (x.shape[0], order))
        padded = jnp.concatenate([start, jnp.asarray(x, jnp.float32)], axis=1)
        recent = jnp.stack([padded[:, order - i : -i] for i in range(1, order + 1)], axis=-1)  # [B, T, p], the newest first
        place = jnp.minimum(jnp.arange(x.shape[1]), order)
        mean = offsets[place][None] + (recent * weights[place][None]).sum(-1)
        return jnp.stack([mean, jnp.broadcast_to(log_variances[place][None], mean.shape)], axis=-1)

    @property
    def stationary(self) -> Array:
        """Whether there is a stationary distribution."""
        return self._durbin_levinson()[2]

    def forecast(self, steps: SupportsIndex, known: Float[np.ndarray, " T"] | None = None, level: float = 0.95) -> Forecast:
        """The next `steps` values after those known, by default after the training series; see the function `forecast`."""
        known = np.asarray(self.last[...], np.float64)[::-1] if known is None else known
        return forecast(self.estimate, known, steps, level)

    def sample(
        self, key: PRNGKeyArray, n: SupportsIndex, length: SupportsIndex | None = None, known=None, temperature: float = 1.0
    ) -> Float[Array, "n T"]:
        """n series [n, T] from the stationary distribution; a model without one continues the training series, as `continuations` does.

        length: T, by default that of the configuration. known, temperature: see `sampling.sample_sequence`, which raises the errors.
        """
        return sample_sequence(self, key, n, self.config.length if length is None else length, known=known, temperature=temperature)

    def continuations(
        self, key: PRNGKeyArray, n: SupportsIndex, steps: SupportsIndex, known: Float[np.ndarray, " T"] | None = None, **options
    ) -> Float[Array, "n N"]:
        """n draws of the next `steps` values after those known, by default after the training series. options: those of `sample`."""
        order, steps = self.config.order, check_count(steps, "steps")
        values = np.asarray(self.last[...])[::-1] if known is None else _known(known, order)[-order:]
        padded, mask = np.concatenate([values, np.zeros(steps)]), np.arange(order + steps) < order
        return self.sample(key, n, order + steps, known=(padded, mask), **options)[:, order:]

    def init_cache(self, n: int) -> Cache:
        """The cache before the first value: the last ones of the training series, which a stationary model does not read."""
        return Cache(jnp.broadcast_to(self.last[...][None], (n, self.config.order)), *self._factors())

    def step(self, cache: Cache, previous: Float[Array, " B"], i: Int[Array, ""]) -> tuple[Cache, Float[Array, "B 2"]]:
        """The new cache, and (mean, log variance) of p(x_i | x_<i); previous: x_{i-1}."""
        recent = jnp.where(i > 0, jnp.concatenate([previous[:, None], cache.recent[:, :-1]], axis=1), cache.recent)
        k = jnp.minimum(i, self.config.order)
        mean = cache.offsets[k][None] + (recent * cache.weights[k][None]).sum(-1)
        return cache._replace(recent=recent), jnp.stack([mean, jnp.broadcast_to(cache.log_variances[k][None], mean.shape)], axis=-1)

    def _terms(self, x: Float[Array, "B T"]) -> Float[Array, "B T"]:
        if x.ndim != 2 or x.shape[1] <= self.config.order:
            raise ConfigError("x", f"series [B, T] of more than p = {self.config.order} values", list(x.shape))
        return self.head.log_prob(self.logits(x), jnp.asarray(x, jnp.float32))

    def _factors(self) -> tuple[Float[Array, " p1"], Float[Array, "p1 p"], Float[Array, " p1"]]:
        """Offset, weights of the values before (the newest first) and log variance of the place k = 0 .. p; row p is of all later ones.

        Without a stationary distribution every row is that of the place p, and the values before x_1 are those of `last`.
        """
        weights, variances, stationary = self._durbin_levinson()
        weights = jnp.where(stationary, weights, self.coefficients[...][None])
        variances = jnp.where(stationary, variances, self.noise_variance[...])
        mean = self.intercept[...] / jnp.where(stationary, 1 - self.coefficients[...].sum(), 1)
        return jnp.where(stationary, mean * (1 - weights.sum(-1)), self.intercept[...]), weights, jnp.log(variances)

    def _durbin_levinson(self) -> tuple[Float[Array, "p1 p"], Float[Array, " p1"], Array]:
        """phi^k and sigma_k^2 of k = 0 .. p, and whether every |phi^k_k| is below 1, as of a stationary series and of no other."""
        order, phi, variance = self.config.order, self.coefficients[...], self.noise_variance[...]
        weights, variances, stationary = [phi], [variance], jnp.ones((), bool)
        for k in range(order, 0, -1):
            last = phi[k - 1]
            stationary &= jnp.abs(last) < 1
            rest = jnp.where(stationary, 1 - last**2, 1)
            phi, variance = (phi[: k - 1] + last * phi[: k - 1][::-1]) / rest, variance / rest
            weights.append(jnp.pad(phi, (0, order - k + 1)))
            variances.append(variance)
        return jnp.stack(weights[::-1]), jnp.stack(variances[::-1]), stationary


def joined(rows: Float64[np.ndarray, "N m"]) -> list[Float64[np.ndarray, " T"]]:
    """The series of windows: one that is the row before, moved on by one place, continues that row's series."""
    begins = np.concatenate([[True], (rows[1:, :-1] != rows[:-1, 1:]).any(axis=1)])
    return [np.concatenate([part[0], part[1:, -1]]) for part in np.split(rows, np.flatnonzero(begins)[1:])]


def least_squares(series, order: int, skip: int | None = None) -> Estimate:
    """c, phi and sigma^2 of AR(order) by least squares, from an array [T] or a list of such series.

    skip: the sum of squares begins at the value x_{skip+1}, by default at x_{order+1}. Raises DataError for fewer equations than order + 2,
    and where the series is predicted without error.
    """
    targets, lags = _regression(series, order, order if skip is None else skip)
    if len(targets) < order + 2:
        raise DataError("series", f"at least {2 * order + 2} values, for order {order}", len(targets) + order)
    centre = targets.mean()  # the same fit, with smaller numbers
    design = np.column_stack([np.ones(len(targets)), lags - centre])
    solution, *_ = np.linalg.lstsq(design, targets - centre, rcond=None)
    variance = float(((targets - centre - design @ solution) ** 2).mean())
    _check_noise(variance, targets)
    return Estimate(float(solution[0] + centre * (1 - solution[1:].sum())), solution[1:], variance)


def yule_walker(series: Float[np.ndarray, " T"], order: int) -> Estimate:
    """c, phi and sigma^2 of AR(order) from the autocovariances, each divided by T. Raises DataError as `least_squares` does."""
    x = check_values(np.asarray(series), "series").astype(np.float64)
    if len(x) < order + 2:
        raise DataError("series", f"at least {order + 2} values, for order {order}", len(x))
    centred = x - x.mean()
    r = np.array([centred[: len(x) - k] @ centred[k:] for k in range(order + 1)]) / len(x)
    _check_noise(r[0], x)
    phi = np.linalg.solve(r[np.abs(np.subtract.outer(np.arange(order), np.arange(order)))], r[1:])
    variance = float(r[0] - phi @ r[1:])
    _check_noise(variance, x)
    return Estimate(float(x.mean() * (1 - phi.sum())), phi, variance)


def conditional_log_likelihood(series, estimate: Estimate, skip: int | None = None) -> float:
    """log p(x_{skip+1} .. x_T | x_1 .. x_skip) in nats, float64; skip is by default p."""
    targets, lags = _regression(series, len(estimate.coefficients), len(estimate.coefficients) if skip is None else skip)
    errors = targets - estimate.intercept - lags @ estimate.coefficients
    return float(-0.5 * (len(errors) * log(2 * pi * estimate.noise_variance) + errors @ errors / estimate.noise_variance))


def order_criteria(series, most: int) -> Criteria:
    """AIC and BIC of the orders 0 .. most by least squares, all given the first `most` values: `criteria.aic.argmin()` is a choice."""
    fitted = [least_squares(series, order, skip=most) for order in range(most + 1)]
    likelihoods = np.array([conditional_log_likelihood(series, estimate, skip=most) for estimate in fitted])
    n, parameters = len(_regression(series, 0, most)[0]), np.arange(most + 1) + 2
    return Criteria(2 * parameters - 2 * likelihoods, parameters * np.log(n) - 2 * likelihoods, likelihoods, n)


def forecast(estimate: Estimate, known: Float[np.ndarray, " T"], steps: SupportsIndex, level: float = 0.95) -> Forecast:
    """The next `steps` values after those known, at least p: mean, standard error, and the interval of probability `level`, float64."""
    c, phi, variance = estimate
    order, steps = len(phi), check_count(steps, "steps")
    if not 0 < level < 1:
        raise ConfigError("level", "a probability between 0 and 1", level)
    values, psi = list(_known(known, order)[len(known) - order :]), [1.0]
    for h in range(steps):
        values.append(c + sum(phi[i] * values[-1 - i] for i in range(order)))
        psi.append(sum(phi[i] * psi[-1 - i] for i in range(min(h + 1, order))))
    mean, error = np.array(values[order:]), np.sqrt(variance * np.cumsum(np.square(psi[:steps])))
    width = NormalDist().inv_cdf((1 + level) / 2) * error
    return Forecast(mean, error, mean - width, mean + width, level)


def _regression(series, order: int, skip: int) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n p"]]:
    """The values x_{skip+1} .. x_T, and the p before each, the newest first."""
    parts = [check_values(np.asarray(one), "series").astype(np.float64) for one in (series if isinstance(series, list) else [series])]
    rows = np.concatenate([windows(part, skip) for part in parts if len(part) > skip] or [np.zeros((0, skip + 1))])
    return rows[:, -1], rows[:, -2 : -2 - order : -1]


def _known(known, order: int) -> Float64[np.ndarray, " T"]:
    known = check_values(np.asarray(known), "known").astype(np.float64)
    if len(known) < order:
        raise DataError("known", f"at least {order} values, for order {order}", len(known))
    return known


def _check_noise(variance: float, values: np.ndarray) -> None:
    if variance <= 1e-12 * max(float(np.square(values).mean()), 1e-300):
        got = f"noise of variance {variance:.3g}, so there is no density"
        raise DataError("series", "values that are not predicted without error", got)
