"""How much of an example and how much noise is in x_t, and grids of times from noise to data.

    x_t = alpha(t) x_0 + sigma(t) noise,     noise ~ N(0, I),     t in [0, 1],     t = 0 is data, t = 1 is noise
    SNR(t) = alpha(t)^2 / sigma(t)^2, the signal-to-noise ratio, which falls with t

From x_t and one of the three predictions x_0, noise and v follow the others:

    noise = (x_t - alpha x_0) / sigma          v = alpha noise - sigma x_0             (Salimans & Ho 2022; alpha^2 + sigma^2 = 1 for v)
    dx_t/dt = alpha' x_0 + sigma' noise, the velocity, with the derivatives of alpha and sigma in t

In discrete time (Sohl-Dickstein et al. 2015, Ho et al. 2020) step i = 1 .. T is x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) noise. Then
alpha(i/T)^2 = (1 - beta_1) ... (1 - beta_i) = 1 - sigma(i/T)^2, alpha(0) = 1 and sigma(0) = 0. These products are taken in float64.
"""

from collections.abc import Callable
from math import pi
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.checks import check_count
from jaxgen.errors import ConfigError

Time = Float[Array, "..."] | float
MOST_BETA = 0.999  # the largest beta of a table that is clipped, as in Nichol & Dhariwal 2021, section 3.2


class Schedule(NamedTuple):
    """x_t = alpha(t) x_0 + sigma(t) noise. Both are differentiable functions of float arrays t of any shape."""

    alpha: Callable[[Time], Float[Array, "..."]]
    sigma: Callable[[Time], Float[Array, "..."]]

    def log_snr(self, t: Time) -> Float[Array, "..."]:
        """log SNR(t) = 2 log alpha(t) - 2 log sigma(t): infinite where sigma is 0, minus infinity where alpha is 0."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def rates(self, t: Time) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """alpha'(t) and sigma'(t), the derivatives in t."""
        t = _array(t)
        return tuple(jax.jvp(f, (t,), (jnp.ones_like(t),))[1] for f in self)

    def corrupt(self, x0: Float[Array, "..."], noise: Float[Array, "..."], t: Time) -> Float[Array, "..."]:
        """x_t = alpha x_0 + sigma noise. t is one time for all rows, or one for each row, [B]."""
        return _rows(self.alpha(t), x0) * x0 + _rows(self.sigma(t), x0) * noise

    def noise(self, x: Float[Array, "..."], x0: Float[Array, "..."], t: Time) -> Float[Array, "..."]:
        """(x_t - alpha x_0) / sigma, not finite where sigma is 0."""
        return (x - _rows(self.alpha(t), x) * x0) / _rows(self.sigma(t), x)

    def x0_of_noise(self, x: Float[Array, "..."], noise: Float[Array, "..."], t: Time) -> Float[Array, "..."]:
        """(x_t - sigma noise) / alpha, not finite where alpha is 0."""
        return (x - _rows(self.sigma(t), x) * noise) / _rows(self.alpha(t), x)

    def x0_of_v(self, x: Float[Array, "..."], v: Float[Array, "..."], t: Time) -> Float[Array, "..."]:
        """(alpha x_t - sigma v) / (alpha^2 + sigma^2)."""
        alpha, sigma = _rows(self.alpha(t), x), _rows(self.sigma(t), x)
        return (alpha * x - sigma * v) / (alpha**2 + sigma**2)

    def x0_of_velocity(self, x: Float[Array, "..."], velocity: Float[Array, "..."], t: Time) -> Float[Array, "..."]:
        """(sigma' x_t - sigma dx/dt) / (sigma' alpha - sigma alpha'), which for the linear path is x_t - t dx/dt."""
        alpha_rate, sigma_rate = (_rows(rate, x) for rate in self.rates(t))
        alpha, sigma = _rows(self.alpha(t), x), _rows(self.sigma(t), x)
        return (sigma_rate * x - sigma * velocity) / (sigma_rate * alpha - sigma * alpha_rate)

    def velocity(self, x: Float[Array, "..."], x0: Float[Array, "..."], t: Time) -> Float[Array, "..."]:
        """dx/dt = alpha' x_0 + sigma' (x_t - alpha x_0) / sigma, not finite where sigma is 0."""
        alpha_rate, sigma_rate = (_rows(rate, x) for rate in self.rates(t))
        return alpha_rate * x0 + sigma_rate * self.noise(x, x0, t)


def linear_path() -> Schedule:
    """alpha = 1 - t, sigma = t: straight lines from data to noise (Liu et al. 2022, "rectified flow"; Lipman et al. 2022)."""
    return Schedule(lambda t: 1 - _array(t), _array)


def trigonometric_path() -> Schedule:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): keeps the variance of data of variance 1, and is smooth at both ends."""
    return Schedule(lambda t: jnp.sin((1 - _array(t)) * (pi / 2)), lambda t: jnp.sin(_array(t) * (pi / 2)))


def variance_preserving(log_snr: Callable[[Float[Array, "..."]], Float[Array, "..."]]) -> Schedule:
    """alpha^2 = sigmoid(log_snr(t)), sigma^2 = sigmoid(-log_snr(t)) = 1 - alpha^2, each precise where it is small (Kingma et al. 2021)."""

    def root(sign: int):
        return lambda t: jnp.exp(jax.nn.log_sigmoid(sign * log_snr(_array(t))) / 2)

    return Schedule(root(1), root(-1))


def of_betas(betas: Float[np.ndarray, " T"]) -> Schedule:
    """The discrete steps on the grid t = i/T; between two of its times log alpha is linear in t. alpha(0) = 1, sigma(0) = 0.

    So alpha' / alpha is T log(1 - beta_i) / 2 on the whole of step i, and sigma = sqrt(-expm1(2 log alpha)) is precise near t = 0.
    Raises ConfigError for betas outside of (0, 1).
    """
    logs, steps = 0.5 * np.log(alpha_bars(betas)), len(betas)

    def log_alpha(t):
        place = _array(t) * steps
        nearest = jnp.round(place)
        on_grid = jnp.abs(place - nearest) < 3e-7 * steps  # so close to i/T, t is i/T rounded to float32
        place = jnp.where(on_grid, nearest + (place - jax.lax.stop_gradient(place)), place)
        i = jnp.clip(jnp.floor(place), 0, steps - 1).astype(jnp.int32)
        table, after = jnp.asarray(logs, place.dtype), place - i.astype(place.dtype)
        return (1 - after) * table[i] + after * table[i + 1]

    return Schedule(lambda t: jnp.exp(log_alpha(t)), lambda t: jnp.sqrt(-jnp.expm1(2 * log_alpha(t))))


def alpha_bars(betas: Float[np.ndarray, " T"]) -> Float[np.ndarray, " N"]:
    """alpha(i/T)^2 = (1 - beta_1) ... (1 - beta_i) for i = 0 .. T in float64; the first is 1. ConfigError for betas outside of (0, 1)."""
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
        raise ConfigError("betas", "a vector of numbers in 0..1, both excluded", f"shape {list(betas.shape)}, extremes {_extremes(betas)}")
    return np.exp(np.concatenate([[0.0], np.cumsum(np.log1p(-betas))]))


def linear_betas(steps: int, first: float | None = None, last: float | None = None) -> Float[np.ndarray, " T"]:
    """beta_1 .. beta_T from `first` to `last` in equal steps (Ho et al. 2020: T = 1000 from 1e-4 to 0.02), at most MOST_BETA.

    None: 0.1 / T and 20 / T, which are these numbers for T = 1000, and give about the same noise at t = 1 for another T.
    """
    first, last = 0.1 / check_count(steps, "steps") if first is None else first, 20 / steps if last is None else last
    return np.minimum(np.linspace(first, last, steps), MOST_BETA)


def cosine_betas(steps: int, offset: float = 0.008) -> Float[np.ndarray, " T"]:
    """alpha(t)^2 = f(t) / f(0), f(t) = cos^2((t + s) / (1 + s) pi / 2), s = offset (Nichol & Dhariwal 2021, eq. 17); at most MOST_BETA."""
    t = np.arange(check_count(steps, "steps") + 1) / steps
    squares = np.cos((t + offset) / (1 + offset) * pi / 2) ** 2
    return np.clip(1 - squares[1:] / squares[:-1], 1e-12, MOST_BETA)


def sohl_dickstein_betas(steps: int) -> Float[np.ndarray, " T"]:
    """beta_i = 1 / (T - i + 2), so alpha(i/T)^2 = 1 - i / (T + 1): every step takes 1 / (T + 1) of the signal's variance at the start away.

    Sohl-Dickstein et al. 2015 start from about this table and then train the betas; here they stay.
    """
    return 1 / (check_count(steps, "steps") + 1.0 - np.arange(steps))


def uniform_times(steps: int, first: float = 1.0, last: float = 0.0) -> Float[Array, " N"]:
    """`steps` equal steps from `first` down to `last`: steps + 1 times."""
    return _times(first, last, steps, lambda u: u, lambda u: u)


def quadratic_times(steps: int, first: float = 1.0, last: float = 0.0) -> Float[Array, " N"]:
    """Equal steps of sqrt(t), which become small near the data (Song et al. 2020, "DDIM", appendix D.2)."""
    return _times(first, last, steps, np.sqrt, np.square)


def log_snr_times(schedule: Schedule, steps: int, first: float = 1.0, last: float = 1e-3) -> Float[Array, " N"]:
    """Equal steps of log SNR (Lu et al. 2022, "DPM-Solver"). Raises ConfigError where it is infinite at an end, as at t = 0."""
    start, stop = (_log_snr(schedule, t) for t in (first, last))
    values = np.linspace(start, stop, check_count(steps, "steps") + 1)
    return _with_ends(times_at(schedule, jnp.asarray(values, jnp.float32)), first, last)


def karras_times(schedule: Schedule, steps: int, first: float = 1.0, last: float = 1e-3, rho: float = 7.0) -> Float[Array, " N"]:
    """Equal steps of (sigma / alpha)^(1/rho) (Karras et al. 2022, eq. 5). ConfigError where sigma / alpha is 0 or infinite at an end.

    The last time is `last`; `jnp.append(times, 0.0)` adds the step to t = 0.
    """
    ends = [np.exp(-0.5 * _log_snr(schedule, t)) ** (1 / rho) for t in (first, last)]
    ratios = np.linspace(*ends, check_count(steps, "steps") + 1) ** rho
    return _with_ends(times_at(schedule, jnp.asarray(-2 * np.log(ratios), jnp.float32)), first, last)


def times_at(schedule: Schedule, log_snr: Float[Array, "..."]) -> Float[Array, "..."]:
    """The times t in [0, 1] with these values of log SNR, by bisection; 0 or 1 for values that the schedule does not reach."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        early = schedule.log_snr(middle) > log_snr  # log SNR falls with t
        return jnp.where(early, middle, low), jnp.where(early, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (jnp.zeros_like(log_snr), jnp.ones_like(log_snr)))
    return (low + high) / 2


def _times(first: float, last: float, steps: int, forward: Callable, back: Callable) -> Float[Array, " N"]:
    times = back(np.linspace(forward(first), forward(last), check_count(steps, "steps") + 1))
    return _with_ends(jnp.asarray(times, jnp.float32), first, last)


def _with_ends(times: Float[Array, " N"], first: float, last: float) -> Float[Array, " N"]:
    """`times` from exactly `first` to exactly `last`. ConfigError unless 1 >= first > last >= 0."""
    if not 1 >= first > last >= 0:
        raise ConfigError("first and last", "times with 1 >= first > last >= 0", (first, last))
    with jax.ensure_compile_time_eval():
        return times.at[0].set(first).at[-1].set(last)


def _log_snr(schedule: Schedule, t: float) -> float:
    """log SNR(t) as a number, also while a function that calls this is compiled."""
    with jax.ensure_compile_time_eval():
        log_snr = float(schedule.log_snr(t))
    if not np.isfinite(log_snr):
        raise ConfigError("first and last", "times at which log SNR is finite", f"{log_snr} at t = {t}", "choose a time inside of (0, 1)")
    return log_snr


def _extremes(values: np.ndarray) -> tuple[float, float] | None:
    return (float(values.min()), float(values.max())) if values.size else None


def _array(t: Time) -> Float[Array, "..."]:
    return t if isinstance(t, jax.Array) else jnp.asarray(t, jnp.float32)


def _rows(value: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A value for each row [B], or one for all of them, with as many axes as x and its dtype."""
    value = jnp.asarray(value, x.dtype)
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))
