"""Samplers with exact denoisers: the distribution of the draws, the order of convergence, the discrete chain, and known values.

In one dimension the ODE of the probability flow moves every quantile of x_t to the same quantile of x_s, since its paths cannot cross: with
the distribution functions F of a mixture the exact end of a path is F_s^{-1}(F_t(x)), for any schedule.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import chisquare, kstest, norm

from jaxgen.denoising import exact, schedules
from jaxgen.denoising.samplers import EVALUATIONS, METHODS, denoiser_given
from jaxgen.denoising.samplers import sample as sample_by_parts
from jaxgen.errors import ConfigError

PATH = schedules.trigonometric_path()
DETERMINISTIC = {"ddim": 1, "euler": 1, "heun": 2, "midpoint": 2, "multistep": 2}  # the order of each
WEIGHTS, MEANS, VARIANCES = [0.3, 0.7], [[0.5, -1.0, -2.0], [0.5, -1.0, 1.0]], [[1.0, 4.0, 0.09], [1.0, 4.0, 0.25]]


def sample(denoise, schedule, noise, times, key=None, **options):
    """The sampler in one program."""
    return jax.jit(lambda key: sample_by_parts(denoise, schedule, noise, times, key, **options))(key)


def distribution(x, t=0.0):
    """F_t(x) of the third coordinate of the mixture."""
    alpha, sigma = float(PATH.alpha(t)), float(PATH.sigma(t))
    pairs = zip(WEIGHTS, MEANS, VARIANCES, strict=True)
    return sum(weight * norm.cdf(x, alpha * mean[2], np.sqrt(alpha**2 * variance[2] + sigma**2)) for weight, mean, variance in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_draws_have_the_distribution_of_the_data(method):
    """Two Gaussian coordinates of deviations 1 and 2 and one of two modes, all independent, from 3000 draws and 150 steps.

    A test at level 1e-3 for each coordinate (Kolmogorov-Smirnov), for the two modes (chi-square) and for the correlations. The draws of
    ancestral and Euler-Maruyama are those of 150 steps, not of infinitely many: their deviations may be 2 % off besides.
    """
    n, first = 3000, 0.99 if method == "euler_maruyama" else 1.0  # its g is infinite at t = 1
    denoise = exact.mixture_denoiser(PATH, WEIGHTS, MEANS, VARIANCES)
    noise = jax.random.normal(jax.random.key(1), (n, 3))
    x = sample(denoise, PATH, noise, schedules.uniform_times(150, first), jax.random.key(2), method=method)
    x = np.asarray(x, np.float64)
    for i, (mean, deviation) in enumerate([(0.5, 1), (-1, 2)]):
        assert abs(x[:, i].mean() - mean) < 3.3 * deviation / np.sqrt(n) + 0.01
        assert abs(x[:, i].std() / deviation - 1) < 3.3 / np.sqrt(2 * n) + (0.02 if method not in DETERMINISTIC else 0.015)
        assert kstest(x[:, i], norm(mean, deviation).cdf).pvalue > 1e-3
    assert kstest(x[:, 2], distribution).pvalue > 1e-3
    first_mode = (x[:, 2] < -0.7).sum()  # between the modes, where the density is 1e-4
    share = distribution(-0.7)
    assert chisquare([first_mode, n - first_mode], [share * n, (1 - share) * n]).pvalue > 1e-3
    np.testing.assert_allclose(np.corrcoef(x.T)[np.triu_indices(3, 1)], 0, atol=3.3 / np.sqrt(n))


def test_few_steps_are_seen_by_these_tests():
    """With 4 steps of DDIM the deviation of 2 is 9 % too small and the test of Kolmogorov and Smirnov says so."""
    noise = jax.random.normal(jax.random.key(1), (3000, 1))
    x = sample(exact.gaussian_denoiser(PATH, [0.0], [4.0]), PATH, noise, schedules.uniform_times(4))
    assert kstest(np.asarray(x[:, 0]), norm(0, 2).cdf).pvalue < 1e-3


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_order_of_convergence(method):
    """The slope of log2 of the error against the exact quantile of a mixture of two modes, from 20 to 40 steps in log SNR."""
    first, last = 0.98, 0.02
    starts = np.linspace(-2, 2, 21)
    levels = distribution(starts, first)
    ends = np.asarray([brentq(lambda x, level=level: distribution(x, last) - level, -20, 20, xtol=1e-10) for level in levels])
    means, variances = ([row[2:] for row in rows] for rows in (MEANS, VARIANCES))
    denoise = exact.mixture_denoiser(PATH, WEIGHTS, means, variances)
    noise, errors = jnp.asarray(starts[:, None], jnp.float32), []
    for steps in (20, 40):
        x = sample(denoise, PATH, noise, schedules.log_snr_times(PATH, steps, first, last), method=method)
        errors.append(np.abs(np.asarray(x)[:, 0] - ends).mean())
    order = np.log2(errors[0] / errors[1])
    assert abs(order - DETERMINISTIC[method]) < 0.35, (order, errors)


def test_the_ddim_step_is_eulers_on_the_linear_path_and_evaluations_are_counted():
    calls, path = [], schedules.linear_path()
    exactly = exact.gaussian_denoiser(path, [1.0], [0.5])
    noise, times = jax.random.normal(jax.random.key(0), (4, 1)), schedules.uniform_times(5)

    def denoise(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return exactly(x, t)

    results = {}
    for method in METHODS:
        calls.clear()
        grid = schedules.uniform_times(5, 0.9) if method == "euler_maruyama" else times
        results[method] = sample(denoise, path, noise, grid, jax.random.key(1), method=method)
        jax.effects_barrier()
        assert len(calls) == 5 * EVALUATIONS[method] - (method == "heun")  # its last step, to sigma = 0, is of first order
    np.testing.assert_allclose(results["ddim"], results["euler"], rtol=1e-5, atol=1e-6)


BETAS = schedules.linear_betas(8, 0.05, 0.4)
DISCRETE = schedules.of_betas(BETAS)


def chain(denoise, x, key, log_variance):
    """x_{t-1} = c1 x0 + c2 x_t + sqrt(v) z (Ho et al. 2020, eq. 7), in float64, with the draws of `sample`; nothing is added at t = 1."""
    bars, x, estimate = schedules.alpha_bars(BETAS), np.asarray(x, np.float64), jax.jit(denoise)
    noise = jax.jit(jax.vmap(lambda i: jax.random.normal(jax.random.split(jax.random.fold_in(key, i), 3)[1], x.shape)))
    noise = np.asarray(noise(np.arange(len(BETAS))))
    for i, t in enumerate(range(len(BETAS), 0, -1)):
        beta, bar, before = BETAS[t - 1], bars[t], bars[t - 1]
        x0 = np.asarray(estimate(x.astype(np.float32), np.float32(t / len(BETAS))), np.float64)
        mean = np.sqrt(before) * beta / (1 - bar) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - bar) * x
        x = mean + (np.exp(0.5 * log_variance(beta, beta * (1 - before) / (1 - bar))) * noise[i] if t > 1 else 0)
    return x


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ancestral_is_the_discrete_chain(variance):
    """T steps from t = 1 to 0 in steps of 1/T, with each of the three variances; learned is at a quarter from small to large."""
    denoise, key = exact.gaussian_denoiser(DISCRETE, [0.3, 0.1], [0.5, 2.0]), jax.random.key(3)
    x = jax.random.normal(jax.random.key(4), (6, 2))
    share = {"small": 0.0, "large": 1.0, "learned": 0.25}[variance]
    with_share = (lambda x, t: (denoise(x, t), jnp.full_like(x, 0.25))) if variance == "learned" else denoise
    result = sample(with_share, DISCRETE, x, schedules.uniform_times(8), key, method="ancestral", variance=variance)
    expected = chain(denoise, x, key, lambda large, small: share * np.log(large) + (1 - share) * np.log(max(small, 1e-300)))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=5e-6)
    if variance == "small":  # which is DDIM with eta = 1
        ddim = sample(denoise, DISCRETE, x, schedules.uniform_times(8), key, eta=1.0)
        np.testing.assert_allclose(ddim, expected, rtol=1e-5, atol=5e-6)


def test_ancestral_with_the_exact_variances_needs_few_steps():
    """On a Gaussian of variance c, Var[x_s | x_t] makes 3 steps exact: S_s - (alpha_t / alpha_s S_s)^2 / S_t, S = alpha^2 c + sigma^2."""
    n, c, times = 20000, 4.0, schedules.uniform_times(3, 0.9, 0.05)
    alpha, sigma = np.asarray(PATH.alpha(times), np.float64), np.asarray(PATH.sigma(times), np.float64)
    total = alpha**2 * c + sigma**2
    variances = total[1:] - (alpha[:-1] / alpha[1:] * total[1:]) ** 2 / total[:-1]
    noise = alpha[0] * 1.5 + np.sqrt(total[0]) * np.random.default_rng(0).standard_normal((n, 1))
    denoise = exact.gaussian_denoiser(PATH, [1.5], c)
    x = sample(denoise, PATH, jnp.asarray(noise, jnp.float32), times, jax.random.key(0), method="ancestral", variance=variances)
    assert abs(np.mean(x) - alpha[-1] * 1.5) < 3.3 * np.sqrt(total[-1] / n)
    assert abs(np.var(x) / total[-1] - 1) < 3.3 * np.sqrt(2 / n)


def test_keys_paths_and_clipping():
    """The same key gives the same draw and another key another; the path ends in the draw; only `clip` clips."""
    denoise, times = exact.gaussian_denoiser(PATH, [0.0, 0.0], 4.0), schedules.uniform_times(6)
    noise = jax.random.normal(jax.random.key(0), (32, 2))

    @jax.jit
    def draw(key):
        return sample(denoise, PATH, noise, times, key, method="ancestral", path=True)

    path = draw(jax.random.key(1))
    assert path.shape == (7, 32, 2)
    np.testing.assert_array_equal(path[0], noise)
    np.testing.assert_array_equal(path, draw(jax.random.key(1)))
    assert not np.isclose(path[1:], draw(jax.random.key(2))[1:]).any()
    assert np.abs(path[-1]).max() > 2
    clipped = sample(denoise, PATH, noise, times, jax.random.key(1), method="ancestral", clip=0.5)
    assert np.abs(clipped).max() == 0.5


CORRELATION, KNOWN = 0.8, 1.2
MATRIX = [[1.0, CORRELATION, 0.0], [CORRELATION, 1.0, 0.3], [0.0, 0.3, 1.0]]
MASK = np.asarray([True, False, False])


def conditional():
    """Mean [2] and covariance [2, 2] of the unknown coordinates given the first."""
    matrix = np.asarray(MATRIX)
    return matrix[1:, 0] * KNOWN, matrix[1:, 1:] - np.outer(matrix[1:, 0], matrix[0, 1:])


def unknown_of(x):
    """The unknown coordinates, once the known one is exactly as given."""
    np.testing.assert_array_equal(x[:, 0], np.float32(KNOWN))
    return np.asarray(x[:, 1:], np.float64)


@pytest.mark.parametrize("method", ["ancestral", "heun", "multistep"])
def test_a_denoiser_given_known_values_draws_from_the_conditional(method):
    """Exact for a Gaussian: mean and covariance of 4000 draws within 3.3 standard errors of the closed form, and 2 % for the steps."""
    n, known = 4000, jnp.asarray([KNOWN, 9.0, 9.0])  # values outside of the mask are not read
    denoise = denoiser_given(exact.gaussian_denoiser(PATH, np.zeros(3), MATRIX), PATH, known, MASK, iterations=3)
    noise = jax.random.normal(jax.random.key(5), (n, 3))
    times = schedules.uniform_times(100 if method == "ancestral" else 30)
    unknown = unknown_of(sample(denoise, PATH, noise, times, jax.random.key(6), method=method))
    mean, covariance = conditional()
    np.testing.assert_allclose(unknown.mean(0), mean, atol=3.3 / np.sqrt(n))
    np.testing.assert_allclose(np.cov(unknown.T), covariance, atol=3.3 * np.sqrt(2 / n) + 0.02)


def test_replacing_known_values_is_an_approximation_that_repeats_improve():
    """Coordinate 2 given coordinate 1 has mean 0.96 and variance 0.36; measured 0.60 and 0.49 (1 repeat), 0.92 and 0.36 (10 repeats)."""
    noise, times = jax.random.normal(jax.random.key(7), (4000, 3)), schedules.uniform_times(40)
    denoise = exact.gaussian_denoiser(PATH, np.zeros(3), MATRIX)
    mean, covariance = conditional()
    errors = []
    for repeats in (1, 10):
        given = {"known": jnp.asarray([KNOWN, 0.0, 0.0]), "mask": MASK, "repeats": repeats}
        unknown = unknown_of(sample(denoise, PATH, noise, times, jax.random.key(8), method="ancestral", variance="large", **given))
        errors.append([unknown[:, 0].mean() - mean[0], unknown[:, 0].var() - covariance[0, 0]])
    assert np.abs(errors[0]).min() > 0.1  # not the conditional: this rule is no exact one
    assert np.abs(errors[1]).max() < 0.05


ERRORS = [
    ({"method": "heum"}, "method: wanted one of ancestral, .*, got heum; did you mean heun?"),
    ({"eta": 0.5, "method": "heun"}, "eta: wanted 0..1 with method ddim, 0 with the others, got 0.5"),
    ({"method": "ancestral"}, "key: wanted a key, since ancestral draws noise, got None"),
    ({"variance": "huge"}, "variance: wanted small, large, learned or a number for each step, got huge"),
    ({"method": "ancestral", "variance": np.ones(3)}, r"variance: wanted shape \[2\], one number for each step, got \[3\]"),
    ({"variance": "large"}, "variance: wanted small, with another method than ancestral, got large"),
    ({"clip": 0.0}, "clip: wanted a positive number or None, got 0.0"),
    ({"known": np.zeros((4, 2), np.float32)}, "known and mask: wanted both or neither, got known only"),
    ({"known": np.zeros(2, np.float32), "mask": np.zeros(3, bool)}, r"mask: wanted shape \[4, 2\] or \[2\], got \[3\]"),
    ({"repeats": 2}, "repeats: wanted 1 without known values and with method multistep, got 2"),
    ({"times": [0.5, 0.5]}, "times: wanted at least two times that fall"),
]


@pytest.mark.parametrize("arguments, message", ERRORS)
def test_errors(unchecked, arguments, message):
    times = jnp.asarray(arguments.pop("times", [1.0, 0.5, 0.0]))
    with pytest.raises(ConfigError, match=message):
        sample_by_parts(lambda x, t: x, PATH, jnp.zeros((4, 2)), times, **arguments)
