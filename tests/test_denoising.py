"""Schedules and exact denoisers: the equations of denoising/schedules.py, Tweedie's formula, Monte Carlo, and iterated discrete steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from jaxgen.denoising import exact, schedules
from jaxgen.errors import ConfigError

SCHEDULES = {
    "linear path": schedules.linear_path(),
    "trigonometric path": schedules.trigonometric_path(),
    "log-SNR": schedules.variance_preserving(lambda t: 5 - 15 * t),
    "linear betas": schedules.of_betas(schedules.linear_betas(50)),
    "cosine betas": schedules.of_betas(schedules.cosine_betas(50)),
    "betas of 2015": schedules.of_betas(schedules.sohl_dickstein_betas(50)),
}
VARIANCE_PRESERVING = [name for name in SCHEDULES if name != "linear path"]
T = np.linspace(0.05, 0.95, 7)
TIMES = jnp.asarray(T, jnp.float32)


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_falls_and_noise_grows(name):
    """log SNR falls with t, variance-preserving schedules have alpha^2 + sigma^2 = 1, and the rates are the derivatives."""
    schedule, step = SCHEDULES[name], 2e-3

    @jax.jit
    def numbers(t):
        between = t + 0.003  # not on a grid time i/50, where a table has a kink
        ends = [(f(between + step), f(between - step)) for f in schedule]
        return schedule.log_snr(t), [f(t) for f in schedule], schedule.rates(between), ends

    log_snr, (alpha, sigma), rates, ends = numbers(TIMES)
    assert (np.diff(log_snr) < 0).all()
    if name in VARIANCE_PRESERVING:
        np.testing.assert_allclose(np.square(alpha) + np.square(sigma), 1, rtol=1e-6)
    for rate, (after, before) in zip(rates, ends, strict=True):
        difference = (np.asarray(after, np.float64) - np.asarray(before, np.float64)) / (2 * step)
        np.testing.assert_allclose(rate, difference, rtol=4e-3, atol=1e-4)


@pytest.mark.parametrize("make", [schedules.linear_betas, schedules.cosine_betas, schedules.sohl_dickstein_betas])
@pytest.mark.parametrize("steps", [5, 1000])
def test_a_table_of_betas_is_its_product(make, steps):
    """alpha and sigma at t = i/T from iterating mean and variance of x_i = sqrt(1 - beta) x_{i-1} + sqrt(beta) noise in float64."""
    betas, mean, variance = make(steps), 1.0, 0.0
    schedule, bars = schedules.of_betas(betas), schedules.alpha_bars(betas)
    for i, beta in enumerate(betas, start=1):
        mean, variance = mean * np.sqrt(1 - beta), (1 - beta) * variance + beta
        np.testing.assert_allclose([bars[i], 1 - bars[i]], [mean**2, variance], rtol=1e-9)
    t = np.arange(steps + 1, dtype=np.float32) / np.float32(steps)
    alpha, sigma = jax.jit(lambda t: [f(t) for f in schedule])(t)
    np.testing.assert_allclose(alpha, np.sqrt(bars), rtol=3e-6)
    np.testing.assert_allclose(sigma[1:], np.sqrt(1 - bars[1:]), rtol=3e-6)
    assert (float(alpha[0]), float(sigma[0])) == (1, 0)


def test_the_tables_are_those_of_the_papers():
    betas = schedules.linear_betas(1000)
    np.testing.assert_allclose(betas[[0, -1]], [1e-4, 0.02], rtol=1e-12)  # Ho et al. 2020, section 4
    np.testing.assert_allclose(schedules.alpha_bars(betas)[-1], 4.0358e-5, rtol=1e-4)
    np.testing.assert_allclose(schedules.alpha_bars(schedules.sohl_dickstein_betas(40)), 1 - np.arange(41) / 41, rtol=1e-12)
    bars = schedules.alpha_bars(schedules.cosine_betas(100))
    np.testing.assert_allclose(bars[50], np.cos(0.508 / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2, rtol=1e-9)


def test_predictions_give_each_other():
    """x_0 from the noise, from v and from the velocity; the velocity is the derivative of x_t with x_0 and noise fixed."""
    schedule, (x0, noise) = schedules.trigonometric_path(), np.random.default_rng(0).standard_normal((2, 7, 3, 2), np.float32)

    @jax.jit
    def pairs(x0, noise):
        """What is found and what is wanted."""
        x, (alpha, sigma) = schedule.corrupt(x0, noise, TIMES), (f(TIMES)[:, None, None] for f in schedule)
        velocity = jax.jvp(lambda t: schedule.corrupt(x0, noise, t), (TIMES,), (jnp.ones(7),))[1]
        return {
            "noise": (schedule.noise(x, x0, TIMES), noise),
            "x0 of noise": (schedule.x0_of_noise(x, noise, TIMES), x0),
            "x0 of v": (schedule.x0_of_v(x, alpha * noise - sigma * x0, TIMES), x0),
            "velocity": (schedule.velocity(x, x0, TIMES), velocity),
            "x0 of velocity": (schedule.x0_of_velocity(x, velocity, TIMES), x0),
        }

    for name, (found, wanted) in pairs(x0, noise).items():
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=5e-6, err_msg=name)


def test_grids_of_times():
    schedule = schedules.of_betas(schedules.linear_betas(1000))
    grids = {
        "uniform": schedules.uniform_times(8),
        "quadratic": schedules.quadratic_times(8),
        "log-SNR": schedules.log_snr_times(schedule, 8),
        "Karras": schedules.karras_times(schedule, 8),
    }
    for name, times in grids.items():
        assert times.shape == (9,) and float(times[0]) == 1 and (np.diff(np.asarray(times)) < 0).all(), name
        assert float(times[-1]) == (0 if name in ("uniform", "quadratic") else np.float32(1e-3))

    def equal_steps(values):
        np.testing.assert_allclose(np.diff(np.asarray(values)), np.mean(np.diff(np.asarray(values))), rtol=1e-5)

    equal_steps(grids["uniform"])
    log_snr = jax.jit(schedule.log_snr)
    equal_steps(np.sqrt(grids["quadratic"]))
    equal_steps(log_snr(grids["log-SNR"]))
    equal_steps(np.exp(-np.asarray(log_snr(grids["Karras"])) / 14))  # (sigma / alpha)^(1/7)


def test_errors_of_schedules(unchecked):
    with pytest.raises(ConfigError, match="betas: wanted a vector of numbers in 0..1"):
        schedules.of_betas(np.asarray([0.1, 1.0]))
    with pytest.raises(ConfigError, match="first and last: wanted times with 1 >= first > last >= 0, got"):
        schedules.uniform_times(4, 0.5, 0.5)
    with pytest.raises(ConfigError, match="times at which log SNR is finite, got -inf at t = 1.0"):
        schedules.log_snr_times(schedules.trigonometric_path(), 4, last=0.0)
    with pytest.raises(ConfigError, match="steps: wanted a positive integer, got 0"):
        schedules.cosine_betas(0)


MEANS = np.asarray([[1.0, -1.0, 0.5], [-2.0, 0.0, 1.0]])
FACTORS = np.random.default_rng(0).standard_normal((2, 3, 3))
MATRICES = FACTORS @ FACTORS.transpose(0, 2, 1)
COVARIANCES = {
    "one": (0.5, [0.5 * np.eye(3)] * 2),
    "of each component": ([0.5, 2.0], [0.5 * np.eye(3), 2 * np.eye(3)]),
    "diagonal": ([[1.0, 2.0, 3.0], [0.1, 0.2, 0.3]], [np.diag([1.0, 2.0, 3.0]), np.diag([0.1, 0.2, 0.3])]),
    "full": (MATRICES, MATRICES),
    "singular": ([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]] * 2, [[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]] * 2),
}


@pytest.mark.parametrize("name", COVARIANCES)
def test_mixture_against_scipy_and_bayes(name):
    """log p(x_t) against scipy; E[x_0 | x_t] from the joint Gaussian of x_0 and x_t by solving in float64."""
    weights, (given, matrices), schedule = np.asarray([0.3, 0.7]), COVARIANCES[name], schedules.linear_path()
    x, t = np.random.default_rng(1).standard_normal((5, 3)) * 2, 0.4
    parts = []
    for mean, matrix in zip(MEANS, np.asarray(matrices), strict=True):
        noisy = 0.36 * matrix + 0.16 * np.eye(3)
        posterior = mean + 0.6 * np.linalg.solve(noisy, (x - 0.6 * mean).T).T @ matrix
        parts.append((multivariate_normal(0.6 * mean, noisy).logpdf(x), posterior))
    logs = np.stack([log for log, _ in parts], 1) + np.log(weights)
    shares = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    expected = sum(share[:, None] * posterior for share, (_, posterior) in zip(shares.T, parts, strict=True))
    functions = [part(schedule, weights, MEANS, given) for part in (exact.mixture_log_density, exact.mixture_denoiser)]
    log_density, estimate = jax.jit(lambda v, t: [function(v, t) for function in functions])(jnp.asarray(x, jnp.float32), np.float32(t))
    np.testing.assert_allclose(log_density, logsumexp(logs, axis=1), rtol=2e-5)
    np.testing.assert_allclose(estimate, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("covariance", [2.0, [[1.0, 4.0], [0.5, 2.0]]])
def test_gaussian_is_a_mixture_of_one_and_keeps_the_shape(covariance):
    """Examples of shape [2, 2], mean 0.5: E[x_0 | x_t] = m + alpha C / (alpha^2 C + sigma^2) (x_t - alpha m)."""
    schedule, x = schedules.trigonometric_path(), np.random.default_rng(1).standard_normal((4, 2, 2), np.float32)
    alpha, sigma, variance = float(schedule.alpha(0.3)), float(schedule.sigma(0.3)), np.asarray(covariance)
    mean = np.full((2, 2), 0.5)
    means = [mean, 0.5] if np.ndim(covariance) == 0 else [mean]  # one number stands for the mean of every dimension
    denoisers, log_density = [exact.gaussian_denoiser(schedule, one, covariance) for one in means], exact.gaussian_log_density
    expected = 0.5 + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * 0.5)
    estimates, at_data = jax.jit(
        lambda x: ([one(x, jnp.float32(0.3)) for one in denoisers], log_density(schedule, mean, covariance)(x, jnp.float32(0)))
    )(x)
    for found in estimates:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    deviations = (np.asarray(x) - 0.5) ** 2 / variance + np.log(2 * np.pi * variance)
    np.testing.assert_allclose(at_data, -0.5 * deviations.sum((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("t", [0.2, 0.8])
def test_tweedie(t):
    """The score of x_t, the gradient of its log-density, is (alpha E[x_0 | x_t] - x_t) / sigma^2: mixture and set of examples."""
    schedule, x = schedules.variance_preserving(lambda t: 4 - 8 * t), np.random.default_rng(1).standard_normal((6, 3), np.float32)
    examples = np.random.default_rng(2).standard_normal((9, 3), np.float32)
    pairs = [
        (exact.mixture_denoiser(schedule, [0.3, 0.7], MEANS, MATRICES), exact.mixture_log_density(schedule, [0.3, 0.7], MEANS, MATRICES)),
        (exact.empirical_denoiser(schedule, examples), exact.empirical_log_density(schedule, examples)),
    ]

    @jax.jit
    def scores(x, t):
        by_gradient = [jax.grad(lambda x, density=density: density(x, t).sum())(x) for _, density in pairs]
        return by_gradient, [(schedule.alpha(t) * denoise(x, t) - x) / schedule.sigma(t) ** 2 for denoise, _ in pairs]

    for score, by_denoiser in zip(*scores(x, np.float32(t)), strict=True):
        np.testing.assert_allclose(score, by_denoiser, rtol=1e-5, atol=1e-5)


def test_a_set_of_examples_is_a_mixture_without_variance_and_is_memorised():
    schedule, examples = schedules.linear_path(), np.random.default_rng(3).standard_normal((7, 2, 2)).astype(np.float32)
    x, weights = np.random.default_rng(4).standard_normal((5, 2, 2), np.float32), np.full(7, 1 / 7)
    of_mixture = [part(schedule, weights, examples, 0.0) for part in (exact.mixture_denoiser, exact.mixture_log_density)]
    of_examples = [part(schedule, examples) for part in (exact.empirical_denoiser, exact.empirical_log_density)]
    half = jnp.float32(0.5)
    (mixture, density), (estimate, log_density), nearest = jax.jit(
        lambda x: ([f(x, half) for f in of_mixture], [f(x, half) for f in of_examples], of_examples[0](x, jnp.float32(0)))
    )(x)
    np.testing.assert_allclose(estimate, mixture, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_density, density, rtol=1e-5)
    distances = ((x[:, None] - examples[None]) ** 2).sum((2, 3))
    np.testing.assert_array_equal(nearest, examples[distances.argmin(1)])  # at t = 0 nothing but examples


def test_errors_of_exact_denoisers():
    schedule = schedules.linear_path()
    with pytest.raises(ConfigError, match=r"weights: wanted \[K\] positive numbers with sum 1"):
        exact.mixture_denoiser(schedule, [0.5, 0.6], MEANS, 1.0)
    with pytest.raises(ConfigError, match=r"means: wanted shape \[1, ...\], got \[2, 3\]"):
        exact.mixture_denoiser(schedule, [1.0], MEANS, 1.0)
    with pytest.raises(ConfigError, match="covariances: wanted one variance, or shape"):
        exact.mixture_denoiser(schedule, [0.5, 0.5], MEANS, np.ones((2, 4)))
    with pytest.raises(ConfigError, match="covariances: wanted no negative variance, got -1.0"):
        exact.gaussian_denoiser(schedule, 0.0, -1.0)
    with pytest.raises(ConfigError, match=r"x: wanted 3 dimensions, got \[4, 2\]"):
        exact.mixture_denoiser(schedule, [0.5, 0.5], MEANS, 1.0)(jnp.zeros((4, 2)), 0.5)
