"""The variational bound of diffusion as functions of an estimate: exact on Gaussian data, and the figures of the fixed variances."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.denoising import bound
from jaxgen.denoising.bound import Steps, Terms, bound_in_time, bound_of_steps, log_variances, steps_of
from jaxgen.denoising.exact import gaussian_denoiser
from jaxgen.denoising.schedules import cosine_betas, linear_betas, of_betas, sohl_dickstein_betas, variance_preserving
from jaxgen.errors import ConfigError

BETAS = {"linear": linear_betas, "cosine": cosine_betas, "sohl_dickstein": sohl_dickstein_betas}
KEY = jax.random.key(0)


def nodes(mean: float, variance: float) -> tuple[np.ndarray, np.ndarray]:
    """x_0 and noise [4, 1], all pairs of the two places mean +- deviation of each: their mean of a polynomial of degree 3 in x_0 and in the
    noise is the expectation, and every term of the bound is such a polynomial where the estimate is linear in x_t."""
    places = np.array(list(product((-1.0, 1.0), repeat=2)))
    return mean + np.sqrt(variance) * places[:, :1], places[:, 1:]


def total(terms: Terms) -> float:
    return float(sum(np.mean(term) for term in terms))


def computed(function, *inputs) -> Terms:
    """The terms of a compiled call as numpy arrays."""
    return Terms(*map(np.asarray, jax.jit(function)(*map(jnp.asarray, inputs))))


def exact(steps: Steps, mean: float, variance: float) -> float:
    """Exact -log p(x_0) and KL(q(x_1) || N(0, 1)) of the marginal q(x_1), in the mean over x_0 ~ N(mean, variance)."""
    end, centre = steps.alpha[-1] ** 2 * variance + steps.sigma[-1] ** 2, steps.alpha[-1] * mean
    return 0.5 * np.log(2 * np.pi * np.e * variance) + 0.5 * (end + centre**2 - 1 - np.log(end))


def bound_with(betas: np.ndarray, mean: float, variance: float, log_variance) -> float:
    """The mean bound of N(mean, variance) with the exact estimate of x_0 and log V [T+1] = log_variance(steps, Var(x_0 | x_t))."""
    steps, denoise = steps_of(betas), gaussian_denoiser(of_betas(betas), mean, variance)
    spread = variance * steps.sigma**2 / (steps.alpha**2 * variance + steps.sigma**2)
    table = log_variance(steps, spread)
    x0, noise = nodes(mean, variance)

    def estimate(x, i):
        x0_hat = jax.vmap(lambda x, t: denoise(x[None], t)[0])(x, i.astype(x.dtype) / steps.count)
        return x0_hat, bound.at(table, i, x)

    def compute(x0, noise):
        drawn = bound.all_steps(steps.count, len(x0))
        return bound_of_steps(estimate, steps, drawn, x0, KEY, partial(bound.density, x0), noise=lambda key: noise)

    return total(computed(compute, x0, noise))


def exact_log_variances(steps: Steps, spread: np.ndarray) -> np.ndarray:
    """log V of the true p(x_s | x_t): b + c_0^2 Var(x_0 | x_t)."""
    return np.log(steps.posterior + steps.to_x0**2 * spread)


@pytest.mark.parametrize("count", [5, 50, 1000])
@pytest.mark.parametrize("name", BETAS)
def test_with_the_exact_estimate_and_variance_the_bound_is_the_exact_nll_and_the_kl_of_the_prior(name, count):
    """Sohl-Dickstein, DDPM and every other choice of T steps: nothing is lost but the mismatch of x_1 and N(0, I)."""
    betas = BETAS[name](count)
    with jax.enable_x64(True):
        found = bound_with(betas, 0.3, 0.37, exact_log_variances)
    assert found == pytest.approx(exact(steps_of(betas), 0.3, 0.37), abs=1e-6)


def test_the_fixed_variances_cost_what_is_known_of_them():
    """Variance 0.37, T = 1000, linear: 0.921812 nats with the best variance, 1.381107 with the small and 0.922351 with the large ones where
    step 1 has V = beta; the b of step 2, which is half as large, costs 0.113632 nats there, for real numbers without levels."""

    def of_kind(steps, kind, first):
        table = log_variances(steps, kind)
        table[1] = table[1] if first == "b of step 2" else np.log(steps.beta[1])
        return table

    with jax.enable_x64(True):
        found = {
            (kind, first): bound_with(linear_betas(1000), 0.0, 0.37, lambda steps, _, k=kind, f=first: of_kind(steps, k, f))
            for kind, first in product(("small", "large"), ("beta", "b of step 2"))
        }
        best = bound_with(linear_betas(1000), 0.0, 0.37, exact_log_variances)
    assert best == pytest.approx(0.921812, abs=1e-6)
    assert found["small", "beta"] == pytest.approx(1.381107, abs=1e-6)
    assert found["large", "beta"] == pytest.approx(0.922351, abs=1e-6)
    for kind in ("small", "large"):
        assert found[kind, "b of step 2"] - found[kind, "beta"] == pytest.approx(0.113632, abs=1e-6)


@pytest.mark.parametrize("name", BETAS)
def test_the_one_step_kernels_give_the_marginals_and_the_posteriors_of_the_closed_form(name):
    steps, (gain, variance) = steps_of(BETAS[name](20)), (1.0, 0.0)
    for i in range(1, 21):
        a, earlier = steps.alpha[i] / steps.alpha[i - 1], (gain, variance)
        gain, variance = gain * a, a**2 * variance + steps.beta[i]
        np.testing.assert_allclose((gain, variance), (steps.alpha[i], steps.sigma[i] ** 2), rtol=1e-12)
        # Given x_0, x_s and x_t are jointly Gaussian with covariance a Var(x_s): the conditional mean and variance of x_s.
        weight = a * earlier[1] / variance
        kernel = weight, earlier[0] - weight * gain, earlier[1] - weight * a * earlier[1]
        np.testing.assert_allclose((steps.to_x[i], steps.to_x0[i], steps.posterior[i]), kernel, rtol=1e-9, atol=1e-15)
    with pytest.raises(ConfigError, match="betas: wanted 2 or more"):
        steps_of(np.array([0.1]))


def test_drawn_steps_give_the_bound_in_the_mean_and_come_from_all_parts():
    """Every step of T = 9 is drawn equally often, K in every part: so the mean over draws of the terms is that over all."""
    drawn = np.asarray(bound.drawn_steps(KEY, 9, 4, 20_000))
    counts = np.bincount(drawn.reshape(-1), minlength=10)
    assert counts[:2].sum() == 0 and abs(counts[2:] / 10_000 - 1).max() < 0.05
    assert (np.diff(drawn, axis=0) == 2).all()  # four parts of two steps each
    times = np.asarray(bound.drawn_times(KEY, 4, 1000))
    assert ((times * 4).astype(int) == np.arange(4)[:, None]).all()
    spread = np.sort(np.asarray(bound.antithetic_times(KEY, 50)))
    np.testing.assert_allclose(np.diff(spread), 0.02, rtol=1e-4)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_last_step_sums_to_one_over_the_levels_and_is_the_mass_of_the_gaussian(levels):
    from scipy.stats import norm

    places, half = np.linspace(-1, 1, levels), 1 / (levels - 1)
    edges = np.concatenate([[-np.inf], places[1:] - half, [np.inf]])
    values = jnp.asarray(places, jnp.float32)

    @jax.jit
    def compute(mean, log_variance):
        inputs = jnp.full_like(values, mean), jnp.full_like(values, log_variance)
        logs = [function(values, levels, *inputs) for function in (bound.discretised_log_prob, bound.levels_log_prob)]
        return *logs, jax.grad(lambda *inputs: bound.discretised_log_prob(values, levels, *inputs).sum(), (0, 1))(*inputs)

    for mean, deviation in product((-1.4, -0.9, 0.01, 0.63, 1.0), (0.003, 0.2, 3.0)):
        of_mass, of_softmax, gradient = compute(np.float32(mean), np.float32(2 * np.log(deviation)))
        found = np.asarray(of_mass, np.float64)
        assert np.exp(found).sum() == pytest.approx(1, abs=2e-6)
        np.testing.assert_allclose(np.exp(found), np.diff(norm.cdf(edges, mean, deviation)), atol=1e-5)
        assert np.isfinite(found).all() and np.isfinite(np.asarray(gradient)).all()
        assert np.exp(np.asarray(of_softmax, np.float64)).sum() == pytest.approx(1, abs=1e-5)


def test_two_schedules_with_the_same_ends_have_the_same_continuous_bound_which_is_the_exact_one():
    """To 6 digits. 10,000 times instead of the integral over t; the exact estimate of the noise, on Gaussian data.

    p(x_0 | x_t) at t = 0 knows nothing of the data's variance c, which costs 1/2 log(1 + e^g(0) / c) = 2.3e-6 nats.
    """
    mean, variance, low, high = 0.3, 0.37, -13.3, 5.0
    x0, noise = nodes(mean, variance)
    curves = {"straight": lambda t: t, "bent": lambda t: 0.4 * t + 0.6 * t**3, "s": lambda t: t * t * (3 - 2 * t)}

    def noise_hat(x, g):
        schedule = variance_preserving(lambda t: -t)  # its time is g
        x0_hat = jax.vmap(lambda x, g: gaussian_denoiser(schedule, mean, variance)(x[None], g)[0])(x, g)
        return jax.vmap(lambda x, x0, g: schedule.noise(x[None], x0[None], g)[0])(x, x0_hat, g)

    def compute(curve, x0, noise):
        times = jnp.broadcast_to(((jnp.arange(10_000, dtype=x0.dtype) + 0.5) / 10_000)[:, None], (10_000, len(x0)))
        g = lambda t: low + (high - low) * curve(t)  # noqa: E731
        return bound_in_time(noise_hat, g, times, x0, KEY, partial(bound.density, x0), noise=lambda key: noise)

    with jax.enable_x64(True):
        found = {name: computed(partial(compute, curve), x0, noise) for name, curve in curves.items()}
        end = np.sqrt(1 / (1 + np.exp(high))), np.sqrt(1 / (1 + np.exp(-high)))
        wanted = 0.5 * np.log1p(np.exp(low) / variance)
        wanted += exact(Steps(np.array([end[0]]), np.array([end[1]]), *[np.zeros(1)] * 4), mean, variance)
    for terms in found.values():
        assert total(terms) == pytest.approx(total(found["straight"]), abs=2e-7)
        assert total(terms) == pytest.approx(wanted, abs=2e-7)
    assert float(found["straight"].prior.mean()) == pytest.approx(float(found["s"].prior.mean()), abs=1e-12)
