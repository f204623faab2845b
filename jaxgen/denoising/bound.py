"""The variational bound of a diffusion model, of T steps or in continuous time, as functions of an estimate of x_0.

    x_t = alpha_t x_0 + sigma_t noise,    noise ~ N(0, I);    p(x_1) = N(0, I) at t = 1
    -log p(x_0) <= prior + diffusion + reconstruction                                          `Terms`, in nats
    prior           KL(q(x_1 | x_0) || N(0, I))
    diffusion       what the steps between t = 1 and the data cost
    reconstruction  E[-log p(x_0 | x_t)] of the last step to the data

In T steps (Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 5 to 7), at the times t_i = i/T, with s = t_{i-1}, t = t_i, i = 1 .. T:

    a = alpha_t / alpha_s,   beta = sigma_t^2 - a^2 sigma_s^2                                   q(x_t | x_s) = N(a x_s, beta I)
    q(x_s | x_t, x_0) = N(c_0 x_0 + c_1 x_t, b I),   c_0 = alpha_s beta / sigma_t^2,   c_1 = a sigma_s^2 / sigma_t^2,   b = beta c_1 / a
    p(x_s | x_t)      = N(c_0 x0_hat(x_t) + c_1 x_t, V I)
    diffusion = sum_{i=2}^T E KL_i,    KL_i = 1/2 sum_d [b / V - 1 - log(b / V) + c_0^2 (x_0 - x0_hat)^2 / V]
    reconstruction = E[-log p(x_0 | x_{t_1})]: at i = 1, c_0 = 1, c_1 = b = 0, so the mean is x0_hat

V is b ("small") or beta ("large") or learned. At i = 1, where b = 0, both have the b of step 2 (as in the paper's program).

In continuous time (Kingma et al. 2021), with g(t) = -log(alpha_t^2 / sigma_t^2), which rises with t, and alpha_t^2 + sigma_t^2 = 1:

    diffusion = 1/2 E_t[g'(t) |noise - noise_hat(x_t)|^2],   t ~ U[0, 1]: it depends on g(0) and g(1) only, not on the way between them
    p(x_0 | x_t) at t = 0 is proportional to q(x_t | x_0): for levels a softmax over them, for real numbers N(x_t / alpha_t, e^g(0))

Level 0 .. n-1 of a pixel lies at x_0 = 2 level / (n - 1) - 1 in [-1, 1]. In T steps p(x_0 | x_{t_1}) of a level is the mass that the
Gaussian has within half the distance between levels, its tails included in the first and the last, so that it sums to 1.

Axes: B batch, T steps, K diffusion terms that are computed for a row; x [B, ...].
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from jaxgen.denoising.schedules import alpha_bars
from jaxgen.distributions import gaussian_kl, gaussian_log_prob, row_sums, standard_normal
from jaxgen.errors import ConfigError

Estimate = Callable[[Float[Array, "B ..."], Int[Array, " B"]], tuple[Float[Array, "B ..."], Float[Array, "..."]]]
"""(x_t, step i of every row) -> (x0_hat, log V): log V in the shape of x, or [B, 1, ...] with as many axes."""
LogProb = Callable[[Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]]
"""(mean, log variance) -> log p(x_0) in nats of every number of x_0."""
Draw = Callable[[PRNGKeyArray], Float[Array, "B ..."]]
FAR = 1000.0  # so many standard deviations from the mean the Gaussian ends


class Steps(NamedTuple):
    """The kernels above, float64 [T+1]: entry i is the step from t_i to t_{i-1}; entry 0 of all but alpha and sigma is not used."""

    alpha: np.ndarray
    sigma: np.ndarray
    beta: np.ndarray
    to_x0: np.ndarray  # c_0
    to_x: np.ndarray  # c_1
    posterior: np.ndarray  # b, 0 at i = 1

    @property
    def count(self) -> int:
        """T."""
        return len(self.alpha) - 1


class Terms(NamedTuple):
    """The terms of the bound in nats [B]; minus their sum is a lower bound of log p(x_0)."""

    prior: Array
    denoising: Array  # the diffusion term
    reconstruction: Array


def steps_of(betas: Float[np.ndarray, " T"]) -> Steps:
    """The kernels of a table of betas, T >= 2, by alpha_t^2 = (1 - beta_1) .. (1 - beta_i), sigma_t^2 = 1 - alpha_t^2."""
    squares, betas = alpha_bars(betas), np.asarray(betas, np.float64)
    if len(betas) < 2:
        raise ConfigError("betas", "2 or more", len(betas))
    variances = -np.expm1(np.concatenate([[0.0], np.cumsum(np.log1p(-betas))]))
    before, after = variances[:-1], variances[1:]
    parts = betas, np.sqrt(squares[:-1]) * betas / after, np.sqrt(1 - betas) * before / after, betas * before / after
    return Steps(np.sqrt(squares), np.sqrt(variances), *(np.concatenate([[np.nan], part]) for part in parts))


def log_variances(steps: Steps, kind: Literal["small", "large"]) -> Float[np.ndarray, " N"]:
    """log V of every step, float64: of b for "small", of beta for "large"; at i = 1 both have the b of step 2. Entry 0 is not used."""
    table = (steps.posterior if kind == "small" else steps.beta).copy()
    table[:2] = steps.posterior[2]
    return np.log(table)


def at(table: Float[np.ndarray, " N"], i: Int[Array, " B"], x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Entry i of a table for every row, with as many axes as x and in its dtype."""
    return jnp.asarray(table, x.dtype)[i].reshape(i.shape + (1,) * (x.ndim - 1))


def corrupt(steps: Steps, x0: Float[Array, "B ..."], noise: Float[Array, "B ..."], i: Int[Array, " B"]) -> Float[Array, "B ..."]:
    """x_t = alpha x_0 + sigma noise at t_i, i of every row."""
    return at(steps.alpha, i, x0) * x0 + at(steps.sigma, i, x0) * noise


def step_term(
    steps: Steps, i: Int[Array, " B"], x0: Float[Array, "B ..."], x0_hat: Float[Array, "B ..."], log_variance: Float[Array, "B ..."],
    log_prob: LogProb,
) -> Float[Array, " B"]:  # fmt: skip
    """KL_i in nats for i >= 2, -log p(x_0 | x_{t_1}) for i = 1, where only x0_hat is an estimate and log V the model's."""
    posterior = np.concatenate([[np.nan, steps.posterior[2]], steps.posterior[2:]])  # any positive number at i = 1, where it is not used
    log_ratio = at(np.log(posterior), i, x0) - log_variance
    square = (at(steps.to_x0, i, x0) * (x0 - x0_hat)) ** 2 * jnp.exp(-log_variance)
    kl = 0.5 * row_sums(jnp.broadcast_to(jnp.expm1(log_ratio) - log_ratio, x0.shape) + square)
    return jnp.where(i == 1, -row_sums(log_prob(x0_hat, jnp.broadcast_to(log_variance, x0.shape))), kl)


def bound_of_steps(
    estimate: Estimate, steps: Steps, drawn: Int[Array, "K B"], x0: Float[Array, "B ..."], key: PRNGKeyArray, log_prob: LogProb,
    noise: Draw | None = None,
) -> Terms:  # fmt: skip
    """The bound of T steps, from one draw of x_t for every term that is computed, one term after the other.

    drawn: the steps of the diffusion terms, `all_steps`, or `drawn_steps`, of which the mean is the same. noise(key): the noise of a
    term; None: N(0, I).
    """
    draw = noise or (lambda key: standard_normal(key, x0.shape, x0.dtype))

    def value(number, i):
        x = corrupt(steps, x0, draw(jax.random.fold_in(key, number)), i)
        return step_term(steps, i, x0, *estimate(x, i), log_prob)

    values = _each(value, jnp.concatenate([drawn, jnp.ones_like(drawn[:1])]))
    denoising = values[:-1].sum(0) * ((steps.count - 1) / len(drawn))
    return Terms(prior_kl(x0, steps.alpha[-1], steps.sigma[-1]), denoising, values[-1])


def all_steps(count: int, rows: int) -> Int[Array, "K B"]:
    """2 .. T for every row: K = T - 1."""
    return jnp.broadcast_to(jnp.arange(2, count + 1)[:, None], (count - 1, rows))


def drawn_steps(key: PRNGKeyArray, count: int, draws: int, rows: int) -> Int[Array, "K B"]:
    """Steps in 2 .. T for every row, one from each of K = `draws` equal parts of them, at the same place of all parts, which is uniform.

    Every step is drawn K / (T - 1) times in the mean.
    """
    return 2 + jnp.minimum((drawn_times(key, draws, rows) * (count - 1)).astype(jnp.int32), count - 2)


def drawn_times(key: PRNGKeyArray, draws: int, rows: int) -> Float[Array, "K B"]:
    """t = (k + u) / K for k = 0 .. K-1 and a u ~ U[0, 1) of every row; K = `draws`."""
    return (jnp.arange(draws, dtype=jnp.float32)[:, None] + jax.random.uniform(key, (1, rows))) / draws


def antithetic_times(key: PRNGKeyArray, rows: int) -> Float[Array, " B"]:
    """t = (u + b / B) mod 1 for row b: one time for every row, spread evenly over the batch (Kingma et al. 2021, appendix I)."""
    return (jax.random.uniform(key) + jnp.arange(rows, dtype=jnp.float32) / rows) % 1


def prior_kl(x0: Float[Array, "B ..."], alpha, sigma) -> Float[Array, " B"]:
    """KL(N(alpha x_0, sigma^2 I) || N(0, I)) in nats."""
    alpha, sigma = jnp.asarray(alpha, x0.dtype), jnp.asarray(sigma, x0.dtype)
    return row_sums(gaussian_kl(alpha * x0, jnp.broadcast_to(2 * jnp.log(sigma), x0.shape)))


def bound_in_time(
    noise_hat: Callable[[Float[Array, "B ..."], Float[Array, " B"]], Float[Array, "B ..."]],
    g: Callable[[Float[Array, "..."]], Float[Array, "..."]],
    times: Float[Array, "K B"],
    x0: Float[Array, "B ..."],
    key: PRNGKeyArray,
    log_prob: LogProb,
    noise: Draw | None = None,
) -> Terms:
    """The bound in continuous time, from one draw of x_t at every time. Its mean is the same for all `times` whose mean covers [0, 1].

    noise_hat(x_t, g_t): the estimate of the noise, g_t = g(t) of every row. g: -log SNR, rising with t.
    """
    draw = noise or (lambda key: standard_normal(key, x0.shape, x0.dtype))

    def value(number, t):
        g_t, slope = jax.jvp(g, (t,), (jnp.ones_like(t),))
        one = draw(jax.random.fold_in(key, number))
        return 0.5 * slope * row_sums((one - noise_hat(mixed(x0, one, g_t), g_t)) ** 2)

    ends = g(jnp.asarray([0.0, 1.0], x0.dtype))
    first = jnp.broadcast_to(ends[:1], x0.shape[:1])
    ratio = jnp.exp(0.5 * ends[0])  # sigma / alpha at t = 0
    mean = x0 + ratio * draw(jax.random.fold_in(key, len(times)))
    reconstruction = -row_sums(log_prob(mean, jnp.broadcast_to(rows_of(first, x0), x0.shape)))
    prior = prior_kl(x0, jnp.sqrt(jax.nn.sigmoid(-ends[1])), jnp.sqrt(jax.nn.sigmoid(ends[1])))
    return Terms(prior, _each(value, times).mean(0), reconstruction)


def mixed(x0: Float[Array, "B ..."], noise: Float[Array, "B ..."], g: Float[Array, " B"]) -> Float[Array, "B ..."]:
    """alpha x_0 + sigma noise with alpha^2 = sigmoid(-g), sigma^2 = sigmoid(g), g of every row."""
    return jnp.sqrt(jax.nn.sigmoid(rows_of(-g, x0))) * x0 + jnp.sqrt(jax.nn.sigmoid(rows_of(g, x0))) * noise


def rows_of(value: Float[Array, " B"], x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """A number for every row with as many axes as x: [B, 1, ...]."""
    return value.reshape(value.shape + (1,) * (x.ndim - 1))


def discretised_log_prob(
    x0: Float[Array, "*n"], levels: int, mean: Float[Array, "*n"], log_variance: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """log of the mass of N(mean, V) within half a distance between levels of x_0, which is a level; the tails belong to the end levels."""
    half, scale = 1 / (levels - 1), jnp.exp(-0.5 * log_variance)
    low, high = (x0 - half - mean) * scale, (x0 + half - mean) * scale
    lowest, highest = x0 < half - 1, x0 > 1 - half
    low, high = jnp.where(lowest, jnp.minimum(high, 0) - FAR, low), jnp.where(highest, jnp.maximum(low, 0) + FAR, high)
    # Mirrored where both are above the mean: there log_ndtr would be the logarithm of a number next to 1.
    low, high = jnp.where(low > 0, -high, low), jnp.where(low > 0, -low, high)
    top = log_ndtr(high)
    return top + jnp.log(-jnp.expm1(jnp.minimum(log_ndtr(low) - top, -jnp.finfo(x0.dtype).tiny)))


def density(x0: Float[Array, "*n"], mean: Float[Array, "*n"], log_variance: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log N(x_0; mean, V), for real numbers."""
    return gaussian_log_prob(mean, log_variance, x0)


def levels_log_prob(x0: Float[Array, "*n"], levels: int, mean: Float[Array, "*n"], log_variance: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log softmax over the levels v of -(mean - x_v)^2 / (2 V), at the level x_0: p(x_0 | x_t) in continuous time."""
    half = (levels - 1) / 2
    values = jnp.arange(levels, dtype=x0.dtype).reshape((1,) * x0.ndim + (levels,)) / half - 1
    nearest = jnp.clip(jnp.round((jax.lax.stop_gradient(mean) + 1) * half), 0, levels - 1)[..., None] / half - 1
    # (mean - x_v)^2 less that of the nearest level: the numbers that matter stay small, and precise.
    logits = -0.5 * (nearest - values) * (2 * mean[..., None] - nearest - values) * jnp.exp(-log_variance)[..., None]
    level = jnp.round((x0 + 1) * half).astype(jnp.int32)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), level[..., None], axis=-1)[..., 0]


def _each(value: Callable, inputs: Shaped[Array, "K B"]) -> Float[Array, "K B"]:
    """value(k, inputs[k]) for every k, one after the other."""
    return jax.lax.scan(lambda _, k: (None, value(*k)), None, (jnp.arange(len(inputs)), inputs))[1]
