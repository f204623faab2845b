"""The log-density of a model that is a differential equation from data to noise (Chen et al. 2018; Song et al. 2021, section 4.3).

    dx/dt = v(x, t),      log p_0(x_0) = log p_1(x_1) + integral_0^1 div v(x_t, t) dt,      div v = trace of the Jacobian dv/dx

x_1 and the integral come from one run of the Runge-Kutta method of fourth order over a fixed grid of times, in one scan. The grid is the
only source of a solver's error: compare two grids to see its size, which falls by 16 where the number of steps is doubled.

The trace is exact, by one product with the Jacobian for each of the D dimensions, or an estimate by products with P random vectors of signs
(Hutchinson 1990): z' (dv/dx) z has this trace as its mean. A vector stays the same along a path, so every vector gives an unbiased
estimate of log p_0(x_0) up to the solver's error; from P of them follows a standard error. The log-density is unbiased, not the density.

Axes: B batch, D dimensions of an example, P probes.
"""

from collections.abc import Callable
from math import log, pi, prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.checks import check_count, check_key
from jaxgen.denoising.exact import Denoiser, LogDensity
from jaxgen.denoising.schedules import Schedule, Time
from jaxgen.distributions import row_sums
from jaxgen.errors import ConfigError

Velocity = Callable[[Float[Array, "B ..."], Time], Float[Array, "B ..."]]
PUSHED = 64
"""Products with the Jacobian that an exact trace takes at a time: memory for so many copies of the batch."""


class Density(NamedTuple):
    """What `log_density` gives; nats."""

    log_density: Float[Array, " B"]
    standard_error: Float[Array, " B"]  # of the trace's estimate; 0 for the exact trace, nan for a single probe
    end: Float[Array, "B ..."]  # x at the last time


def velocity_of(denoise: Denoiser, schedule: Schedule) -> Velocity:
    """dx/dt = alpha' x_0 + sigma' (x_t - alpha x_0) / sigma with x_0 = denoise(x_t, t); not finite where sigma is 0, as at t = 0."""
    return lambda x, t: schedule.velocity(x, denoise(x, t), t)


def standard_normal(x: Float[Array, "B ..."], t: Time = 1.0) -> Float[Array, " B"]:
    """log N(x; 0, I) in nats, the density at t = 1 of a model that starts its samples from noise."""
    return -0.5 * row_sums(x**2 + log(2 * pi))


def solve(rates: Callable, state, times: Float[Array, " N"]):
    """The state at the last of `times` [steps + 1], from that at the first, by the Runge-Kutta method of fourth order.

    state: an array or a tuple of arrays, of which rates(state, t) gives the derivatives, such as `velocity`. Times may rise or fall.
    """
    return jax.lax.scan(lambda state, ends: (_runge_kutta(rates, state, *ends), None), state, (times[:-1], times[1:]))[0]


def log_density(
    velocity: Velocity,
    x: Float[Array, "B ..."],
    times: Float[Array, " N"],
    *,
    key: PRNGKeyArray | None = None,
    probes: int = 0,
    at_end: LogDensity = standard_normal,
) -> Density:
    """log p(x) at the first of `times` [steps + 1], which rise to the time whose log-density is `at_end(x, t)`.

    probes: P, with a key; 0 for the exact trace, which costs D products with the Jacobian for each of the four evaluations of a step.
    Raises ConfigError for probes without a key, and a key without probes.
    """
    if probes and key is None or not probes and key is not None:
        raise ConfigError("key and probes", "both, or neither for the exact trace", "a key" if probes == 0 else f"{probes} probes")
    signs = None
    if probes:
        check_key(key)
        signs = jax.random.rademacher(key, (check_count(probes, "probes"), *x.shape), x.dtype)

    def rates(state, t):
        x, _ = state
        value, push = jax.linearize(lambda x: velocity(x, t), x)
        return value, _exact_trace(push, x) if signs is None else jax.vmap(lambda z: row_sums(z * push(z)))(signs)

    start = (x, jnp.zeros((max(probes, 1), len(x)), x.dtype))
    end, integrals = solve(rates, start, times)
    values = at_end(end, times[-1])[None] + integrals
    error = jnp.zeros(len(x), x.dtype) if signs is None else integrals.std(0, ddof=1) / jnp.sqrt(jnp.asarray(probes, x.dtype))
    return Density(values.mean(0), error if probes != 1 else jnp.full(len(x), jnp.nan, x.dtype), end)


def _runge_kutta(rates, state, t, s):
    """One step of the classical method of fourth order from t to s."""

    def moved(by, slope):
        return jax.tree.map(lambda x, k: x + by * k, state, slope)

    h = s - t
    first = rates(state, t)
    second = rates(moved(h / 2, first), t + h / 2)
    third = rates(moved(h / 2, second), t + h / 2)
    fourth = rates(moved(h, third), s)
    mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, first, second, third, fourth)
    return moved(h, mean)


def _exact_trace(push, x: Float[Array, "B ..."]) -> Float[Array, "1 B"]:
    """The sum over i of component i of (dv/dx) e_i, for every row."""
    dimensions = prod(x.shape[1:])

    def component(i):
        unit = jax.nn.one_hot(i, dimensions, dtype=x.dtype).reshape(1, *x.shape[1:])
        return row_sums(unit * push(jnp.broadcast_to(unit, x.shape)))

    parts = jax.lax.map(component, jnp.arange(dimensions), batch_size=min(PUSHED, dimensions))
    return parts.sum(0, keepdims=True)
