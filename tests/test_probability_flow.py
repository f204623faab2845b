"""The log-density of the probability-flow ODE: closed forms, the integral over a grid, the order of the solver, Hutchinson's error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.denoising import exact, ode, schedules
from jaxgen.errors import ConfigError

PATH, FIRST = schedules.trigonometric_path(), 0.01  # the first time: where sigma is 0 the velocity of a denoiser is 0 / 0
WEIGHTS, MEANS = [0.3, 0.7], [[-1.5, 0.0], [1.0, 0.5]]
MATRICES = [[[0.5, 0.3], [0.3, 0.4]], [[0.3, -0.2], [-0.2, 0.6]]]
MIXTURE = (PATH, WEIGHTS, MEANS, MATRICES)
VELOCITY = ode.velocity_of(exact.mixture_denoiser(*MIXTURE), PATH)


def times(steps: int) -> jax.Array:
    return jnp.linspace(FIRST, 1.0, steps + 1)


def test_log_density_of_a_mixture_integrates_to_one_and_is_the_closed_form():
    """On a grid of 64 x 64 cells over [-6, 6]^2, 40 steps."""
    axis = (np.arange(64) + 0.5) * 12 / 64 - 6
    x = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), jnp.float32)
    result = ode.log_density(VELOCITY, x, times(40))
    np.testing.assert_allclose(np.exp(np.asarray(result.log_density, np.float64)).sum() * (12 / 64) ** 2, 1, atol=5e-6)
    expected = np.asarray(exact.mixture_log_density(*MIXTURE)(x, FIRST))
    near = expected > -15
    np.testing.assert_allclose(np.asarray(result.log_density)[near], expected[near], atol=1e-3)
    assert not result.standard_error.any()


def test_log_density_of_images_and_the_order_of_the_solver():
    """A Gaussian on examples of shape [2, 1, 1], deviations 1 and 2: the error falls by about 16 with twice the steps."""
    mean, variances = np.asarray([0.5, -1.0]).reshape(2, 1, 1), np.asarray([1.0, 4.0]).reshape(2, 1, 1)
    velocity = ode.velocity_of(exact.gaussian_denoiser(PATH, mean, variances), PATH)
    x = jax.random.normal(jax.random.key(0), (20, 2, 1, 1)) * 2
    expected = exact.gaussian_log_density(PATH, mean, variances)(x, FIRST)
    errors = [float(jnp.abs(ode.log_density(velocity, x, times(steps)).log_density - expected).max()) for steps in (4, 8)]
    assert errors[1] < 2e-3 and 3 < np.log2(errors[0] / errors[1]) < 6, errors


def test_hutchinsons_estimate_has_the_standard_error_that_it_says():
    """400 points, 16 probes: deviations from the exact trace, over their standard errors, have mean 0 and a variance of about 1."""
    x = jax.random.normal(jax.random.key(1), (400, 2))
    exactly = ode.log_density(VELOCITY, x, times(12))
    estimate = ode.log_density(VELOCITY, x, times(12), key=jax.random.key(2), probes=16)
    np.testing.assert_array_equal(estimate.end, exactly.end)
    scores = np.asarray((estimate.log_density - exactly.log_density) / estimate.standard_error)
    assert np.median(np.asarray(estimate.standard_error)) > 0.01  # there is an error to measure
    assert abs(scores.mean()) < 3.3 / np.sqrt(400) and 0.7 < scores.var() < 1.8
    single = ode.log_density(VELOCITY, x[:2], times(2), key=jax.random.key(2), probes=1)
    assert np.isnan(single.standard_error).all() and np.isfinite(single.log_density).all()


def test_solving_there_and_back():
    """The ODE takes x to noise and the noise to x again, also through the end of `log_density`."""
    x = jax.random.normal(jax.random.key(3), (50, 2))
    noise = ode.solve(VELOCITY, x, times(20))
    assert np.abs(noise - x).max() > 0.3
    np.testing.assert_allclose(ode.solve(VELOCITY, noise, times(20)[::-1]), x, atol=5e-4)
    np.testing.assert_allclose(ode.log_density(VELOCITY, x, times(20)).end, noise, atol=1e-5)


def test_errors():
    for arguments, got in (({"probes": 2}, "2 probes"), ({"key": jax.random.key(0)}, "a key")):
        with pytest.raises(ConfigError, match=f"key and probes: wanted both, or neither for the exact trace, got {got}"):
            ode.log_density(VELOCITY, jnp.zeros((1, 2)), times(2), **arguments)
