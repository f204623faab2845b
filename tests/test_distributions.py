"""The exact discrete heads against scipy and against counted draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_expit, log_softmax, softmax
from scipy.stats import chisquare

from jaxgen.distributions import Bernoulli, Categorical, along_one_axis, pixel_head, row_sums, standard_normal


def parameters_of(head, seed: int, *shape: int) -> np.ndarray:
    """Random parameters [..., P] of a wide range."""
    return (3 * np.random.default_rng(seed).standard_normal((*shape, head.size))).astype(np.float32)


def table(head, parameters) -> np.ndarray:
    """log p of every level, float64 [..., levels], by scipy."""
    if head.levels == 2:
        logit = parameters[..., 0].astype(np.float64)
        return np.stack([log_expit(-logit), log_expit(logit)], axis=-1)
    return log_softmax(parameters.astype(np.float64), axis=-1)


def test_two_levels_are_bernoulli_and_more_are_categorical():
    assert pixel_head(2) == Bernoulli() and pixel_head(3) == Categorical(3) and pixel_head(256).size == 256


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_log_prob_equals_scipy_and_sums_to_one(levels):
    head = pixel_head(levels)
    parameters = parameters_of(head, 0, 4, 5)
    levels_of = [np.full((4, 5), x, np.uint8) for x in range(levels)]
    log_prob = np.stack([head.log_prob(jnp.asarray(parameters), jnp.asarray(x)) for x in levels_of], axis=-1)
    np.testing.assert_allclose(log_prob, table(head, parameters), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(log_prob.astype(np.float64)).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("levels", [2, 5])
def test_extreme_parameters_have_finite_probabilities_and_gradients(levels):
    head = pixel_head(levels)
    parameters = jnp.asarray([[1e4] + [0.0] * (head.size - 1), [-1e4] + [0.0] * (head.size - 1), [0.0] * head.size])
    for x in range(levels):
        value, gradient = jax.value_and_grad(lambda p, x=x: head.log_prob(p, jnp.full(3, x, jnp.int32)).sum())(parameters)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        np.testing.assert_allclose(value, table(head, np.asarray(parameters))[:, x].sum(), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("levels", [2, 5])
def test_draws_follow_the_probabilities_at_every_temperature(levels, temperature):
    head, draws = pixel_head(levels), 200_000
    parameters = parameters_of(head, 1, 1) / (levels - 1)
    noise = head.noise(jax.random.key(0), (draws,))
    expected = draws * softmax(table(head, parameters / temperature)[0])
    assert expected.min() > 5

    def p_value(temperature):
        x = head.sample(jnp.broadcast_to(parameters, (draws, head.size)), noise, temperature)
        assert x.dtype == jnp.int32
        return chisquare(np.bincount(x, minlength=levels), expected).pvalue

    assert p_value(temperature) > 1e-4 > p_value(1.08 * temperature), "8 % are seen"


@pytest.mark.parametrize("levels", [2, 5])
def test_a_draw_is_a_function_of_parameters_and_noise(levels):
    head = pixel_head(levels)
    parameters = jnp.asarray(parameters_of(head, 2, 100))
    noise, other = (head.noise(jax.random.key(key), (100,)) for key in (0, 1))
    x = head.sample(parameters, noise)
    np.testing.assert_array_equal(x, jax.jit(head.sample)(parameters, noise))
    assert (head.sample(parameters, other) != x).any()
    assert (noise[:50] == head.noise(jax.random.key(0), (50,))).all(), "the noise of the first images depends on how many there are"
    greedy = head.sample(parameters, noise, 1e-6)
    np.testing.assert_array_equal(greedy, table(head, np.asarray(parameters)).argmax(-1))


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 5, 1)], ids=str)
def test_draws_along_one_axis_are_bit_for_bit_those_of_jax(shape):
    def both(key):
        uniform = partial(jax.random.uniform, minval=-1.0)
        found = along_one_axis(uniform, key, shape), standard_normal(key, shape), standard_normal(key, shape, jnp.bfloat16)
        return found, (uniform(key, shape), jax.random.normal(key, shape), jax.random.normal(key, shape, jnp.bfloat16))

    for found, expected in zip(*jax.device_get(jax.jit(both)(jax.random.key(3))), strict=True):
        assert found.dtype == expected.dtype and found.shape == shape
        np.testing.assert_array_equal(found, expected)


def test_row_sums_are_over_all_axes_but_the_first():
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 1)).astype(np.float32)
    np.testing.assert_allclose(row_sums(jax.device_put(x)), [row.sum() for row in x], rtol=1e-5)
    np.testing.assert_array_equal(row_sums(jax.device_put(x[:, 0, 0, 0])), x[:, 0, 0, 0])
