"""The mixture of discretized logistics against scipy in float64, enumeration and chi-square tests of its draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import chisquare, logistic

from jaxgen.errors import ConfigError
from jaxgen.layers.logistic_mixture import DiscretizedLogisticMixture, discretized_logistic_log_prob, log1mexp_exp

MEANS = (-30.0, -1.5, -1.0, -0.003, 0.2, 1.0, 4.0)
LOG_SCALES = (-7.0, -5.5, -3.0, 0.0, 3.0)


def exact(x, mean, log_scale, levels: int) -> np.ndarray:
    """P(x) in float64 as a difference of cumulative probabilities, on the side where they are small."""
    x, half, scale = np.asarray(x, np.float64), 1 / (levels - 1), np.exp(np.float64(log_scale))
    centred = 2 * x / (levels - 1) - 1 - np.float64(mean)
    low = np.where(x == 0, -np.inf, (centred - half) / scale)
    high = np.where(x == levels - 1, np.inf, (centred + half) / scale)
    return np.where(low > 0, logistic.sf(low) - logistic.sf(high), logistic.cdf(high) - logistic.cdf(low))


def grid(levels: int):
    """Every level, mean and log-scale: [N] each; means and scales are exact in float32."""
    x, mean, log_scale = (a.ravel() for a in np.meshgrid(np.arange(levels), np.float32(MEANS), np.float32(LOG_SCALES), indexing="ij"))
    return x, mean, log_scale


log_prob = jax.jit(DiscretizedLogisticMixture.log_prob, static_argnums=0)
draw = jax.jit(DiscretizedLogisticMixture.sample, static_argnums=0)
one_logistic = jax.jit(discretized_logistic_log_prob, static_argnums=3)


every_level = pytest.mark.parametrize("levels", [2, 3, 17, 32, 256])


@every_level
def test_probabilities_of_all_levels_sum_to_one(levels):
    nats = np.asarray(one_logistic(*map(jnp.asarray, grid(levels)), levels), np.float64)
    np.testing.assert_allclose(np.exp(nats).reshape(levels, -1).sum(0), 1, atol=2e-5)


@every_level
def test_log_probability_equals_scipy_in_float64(levels):
    x, mean, log_scale = grid(levels)
    nats = np.asarray(one_logistic(*map(jnp.asarray, (x, mean, log_scale)), levels), np.float64)
    probability = exact(x, mean, log_scale, levels)
    assert np.isfinite(nats).all() and (nats <= 0).all()
    kept = probability > 1e-290  # float64 has no smaller ones; float32 logarithms do
    # An error of one unit in the last place of x - mean counts 1 / scale times.
    tolerance = 1e-6 + 1e-6 * np.abs(np.log(probability[kept])) + 1.5e-7 * np.maximum(1, np.abs(mean[kept])) * np.exp(-log_scale[kept])
    assert (np.abs(nats[kept] - np.log(probability[kept])) < tolerance).all()
    assert (nats[~kept] < np.log(1e-289)).all() and kept.sum() > 20


@every_level
def test_gradients_equal_finite_differences_of_scipy(levels):
    x, mean, log_scale = grid(levels)
    probability = exact(x, mean, log_scale, levels)
    gradient = jax.jit(jax.vmap(jax.grad(lambda m, s, x: discretized_logistic_log_prob(x, m, s, levels), argnums=(0, 1))))
    gradients = gradient(jnp.asarray(mean), jnp.asarray(log_scale), jnp.asarray(x))
    kept = probability > 1e-30
    for i, gradient in enumerate(gradients):
        step = 1e-6 * (np.exp(log_scale.astype(np.float64)) if i == 0 else 1)
        moved = [exact(x, np.float64(mean) + (1 - i) * s * step, np.float64(log_scale) + i * s * step, levels) for s in (-1, 1)]
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = (np.log(moved[1]) - np.log(moved[0])) / (2 * step)
        # In units of 1 / scale for the mean.
        unit = np.exp(-log_scale) if i == 0 else np.ones_like(log_scale)
        np.testing.assert_allclose((np.asarray(gradient) / unit)[kept], (expected / unit)[kept], atol=2e-3, rtol=2e-3)


def test_values_and_gradients_are_finite_for_extreme_parameters():
    log_scale = jnp.asarray([-60.0, -20.0, -7.0, 0.0, 20.0, 60.0, 100.0])
    sharp = jax.jit(jax.vmap(jax.value_and_grad(lambda s, x: discretized_logistic_log_prob(x, 0.1 + 0 * s, s, 4)), (0, None)))
    for x in range(4):
        assert all(np.isfinite(value).all() for value in sharp(log_scale, jnp.int32(x)))
    head = DiscretizedLogisticMixture(256, 3, 2)
    rng = np.random.default_rng(0)
    parameters = jnp.asarray(rng.normal(size=(200, head.size)) * 10 ** np.linspace(-3, 4, 200)[:, None], jnp.float32)
    image = jnp.asarray(rng.integers(256, size=(200, 3)))
    value, gradient = jax.jit(jax.value_and_grad(lambda p: head.log_prob(p, image).sum()))(parameters)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all() and (gradient != 0).any(-1).all()


def test_log_of_one_minus_exp_to_rounding():
    t = np.concatenate([np.linspace(-150, 150, 601), np.log([1e-3, 0.7, 1e-6]) + 1e-7]).astype(np.float32)
    w = np.exp(np.minimum(t.astype(np.float64), 6.5))  # exp(-exp(6.5)) is already zero in float32
    expected = np.where(w < 1, np.log(-np.expm1(-w)), np.log1p(-np.exp(-np.maximum(w, 0.1))))
    np.testing.assert_allclose(log1mexp_exp(jnp.asarray(t)), expected, rtol=3e-6, atol=1e-37)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(log1mexp_exp)))(jnp.asarray(t)), w / np.expm1(w), rtol=3e-5, atol=1e-30)


def parameters_of(head: DiscretizedLogisticMixture, key: int, n: int = 1, log_scale: float = -1.0) -> jax.Array:
    """n random sets of parameters with the given typical log-scale."""
    parameters = 0.7 * np.random.default_rng(key).normal(size=(n, head.size // head.components, head.components))
    parameters[:, 1 + head.channels : 1 + 2 * head.channels] += log_scale
    return jnp.asarray(parameters.reshape(n, head.size), jnp.float32)


def by_hand(parameters, x, levels: int, channels: int, components: int) -> float:
    """The docstring's equations, term by term in float64."""
    p = np.asarray(parameters, np.float64).reshape(-1, components)
    value = 2 * np.asarray(x, np.float64) / (levels - 1) - 1
    terms = []
    for k in range(components):
        means = p[1 : 1 + channels, k].copy()
        if channels == 3:
            a, b, c = np.tanh(p[7:10, k])
            means += [0, a * value[0], b * value[0] + c * value[1]]
        each = [exact(x[i], means[i], max(p[1 + channels + i, k], -7), levels) for i in range(channels)]
        terms.append(p[0, k] - logsumexp(p[0]) + np.log(each).sum())
    return logsumexp(terms)


@pytest.mark.parametrize(("levels", "channels", "components"), [(2, 3, 2), (4, 3, 1), (4, 3, 3), (5, 1, 3), (256, 1, 2), (2, 1, 1)])
def test_mixtures_equal_the_equations_and_sum_to_one(levels, channels, components):
    head = DiscretizedLogisticMixture(levels, channels, components)
    assert head.size == {1: 3, 3: 10}[channels] * components
    x = np.array(list(itertools.product(range(levels), repeat=channels)), np.uint8)
    for key in range(3):
        parameters = parameters_of(head, key)
        nats = np.asarray(log_prob(head, jnp.broadcast_to(parameters, (len(x), head.size)), jnp.asarray(x)), np.float64)
        np.testing.assert_allclose(nats, [by_hand(parameters, v, levels, channels, components) for v in x], rtol=1e-5, atol=1e-5)
        assert np.exp(nats).sum() == pytest.approx(1, abs=1e-5)


def test_one_component_for_all_channels():
    head = DiscretizedLogisticMixture(256, 3, 2)
    parts = jnp.zeros((10, 2)).at[1:4].set(jnp.array([[-0.5, 0.5]])).at[4:7].set(-5.0)
    near = [np.asarray([a, b, c], np.uint8) for a, b, c in [(64, 64, 64), (191, 191, 191), (64, 191, 64)]]
    one, two, mixed = (float(log_prob(head, parts.reshape(-1), jnp.asarray(x))) for x in near)
    assert abs(one - two) < 0.01 and mixed < one - 50, "the channels chose different components"


@pytest.mark.parametrize(("levels", "channels"), [(3, 3), (2, 3), (6, 1)])
def test_draws_follow_the_probabilities(levels, channels):
    head, n = DiscretizedLogisticMixture(levels, channels, 3), 200_000
    x = np.array(list(itertools.product(range(levels), repeat=channels)), np.uint8)
    parameters = parameters_of(head, 5, log_scale=-1.5)
    probability = np.exp(np.asarray(log_prob(head, jnp.broadcast_to(parameters, (len(x), head.size)), jnp.asarray(x)), np.float64))
    noise = head.noise(jax.random.key(7), (n, channels))
    drawn = np.asarray(draw(head, jnp.broadcast_to(parameters, (n, head.size)), noise))
    assert drawn.shape == (n, channels) and drawn.min() >= 0 and drawn.max() < levels
    counts = np.bincount(drawn @ levels ** np.arange(channels)[::-1], minlength=len(x))
    rare = probability * n < 5
    observed, expected = np.append(counts[~rare], counts[rare].sum()), np.append(probability[~rare], probability[rare].sum() + 1e-9) * n
    keep = expected > 1
    assert chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue > 1e-4
    assert counts[rare].sum() <= 10 + 3 * probability[rare].sum() * n


def test_green_and_blue_follow_the_quantised_channels_before_them():
    """Two levels, sharp green = red / 2 - 0.3: raw red (about 0.1) would give -0.25, level 0; quantised red (1) gives 0.2, level 1."""
    head, n = DiscretizedLogisticMixture(2, 3, 1), 1000
    half = np.arctanh(0.5)
    parameters = jnp.asarray([0, 0.1, -0.3, -0.3, -7, -7, -7, half, 0, half], jnp.float32)
    drawn = draw(head, jnp.broadcast_to(parameters, (n, 10)), head.noise(jax.random.key(0), (n, 3)))
    np.testing.assert_array_equal(drawn, np.ones((n, 3)))
    assert float(log_prob(head, parameters, jnp.ones(3, jnp.uint8))) == pytest.approx(0, abs=1e-6)


def test_temperature_divides_the_logits_and_multiplies_the_scales():
    head, n, temperature = DiscretizedLogisticMixture(256, 3, 4), 500, 0.6
    parameters, noise = parameters_of(head, 3, n), head.noise(jax.random.key(4), (n, 3))
    parts = parameters.reshape(n, 10, 4)
    other = parts.at[:, 0].divide(temperature).at[:, 4:7].add(np.log(temperature)).reshape(n, 40)
    cooled = np.asarray(draw(head, parameters, noise, temperature))
    assert (cooled == np.asarray(draw(head, other, noise))).mean() > 0.999  # a tie within rounding moves a pixel by one level
    assert (cooled != np.asarray(draw(head, parameters, noise))).mean() > 0.5
    cold = np.asarray(draw(head, parameters, noise, 1e-6))
    red = np.take_along_axis(np.asarray(parts[:, 1]), np.asarray(parts[:, 0]).argmax(-1)[:, None], 1)[:, 0]
    np.testing.assert_array_equal(cold[:, 0], np.rint((np.clip(red, -1, 1) + 1) * 127.5))


def test_sizes_that_make_no_sense_are_refused():
    for sizes in [(1, 3, 2), (256, 3, 0)]:
        with pytest.raises(ConfigError):
            DiscretizedLogisticMixture(*sizes)
