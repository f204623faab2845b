"""Flows: determinants of Jacobians, inverses, densities that integrate to one, dependencies, change of scale, a fit in three lines."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import with_weights
from flax import nnx
from scipy.stats import multivariate_normal, norm
from test_models import ALL

import jaxgen
from jaxgen.data import Dataset
from jaxgen.errors import ConfigError
from jaxgen.layers import bijections
from jaxgen.models import Flow, FlowConfig

KEY = jax.random.key(0)
KINDS = {
    "autoregressive spline": {},
    "autoregressive affine": {"transform": "affine"},
    "coupling spline": {"maps": "coupling"},
    "coupling affine": {"maps": "coupling", "transform": "affine"},
    "planar": {"maps": "planar"},
    "radial": {"maps": "radial"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def gentle(config):
    """Random weights, half as large as those of the table: Jacobians that float32 can still tell from singular ones."""
    return jax.tree.map(lambda leaf: leaf / 2, with_weights(config))


@jax.jit
def log_density(model, v):
    return model.log_density(v)


@jax.jit
def both_ways(model, v, vector):
    """z, log-determinant, Jacobian of every row [B, D, D], and the inverse of z."""
    (z, log_det), moved = jax.linearize(lambda v: model.transform(v, vector), v)
    columns = jax.vmap(lambda number: moved(jnp.broadcast_to(number, v.shape))[0])(jnp.eye(z.shape[1])[:, None])  # all rows at once
    return z, log_det, columns.transpose(1, 2, 0), model.inverse(z, vector)


@every_kind
@pytest.mark.parametrize("d", [3, 6] if ALL else [3])  # an odd number: the halves of a coupling differ
def test_the_log_determinant_is_that_of_the_jacobian_and_the_inverse_gives_the_data_back(kind, d):
    """Two maps of which the second is reversed and random weights."""
    config = FlowConfig((d,), vector_size=2, layers=2, **KINDS[kind])
    model, generator = gentle(config), np.random.default_rng(d)
    v, vector = (
        jnp.asarray(2 * generator.standard_normal((64, d)), jnp.float32),
        jnp.asarray(generator.standard_normal((64, 2)), jnp.float32),
    )
    z, log_det, jacobian, back = (np.asarray(array, np.float64) for array in both_ways(model, v, vector))
    sign, expected = np.linalg.slogdet(jacobian)
    assert (sign == 1).all() and np.abs(z - v).max() > 0.5 and np.abs(expected).max() > 0.3
    assert (np.abs(log_det - expected) < 5e-5 + 2e-6 * np.linalg.cond(jacobian)).all()
    slack = np.linalg.norm(np.linalg.inv(jacobian), 2, axis=(1, 2))[:, None]  # what a rounding error of z becomes in v
    assert (np.abs(back - v) < 1e-5 * np.maximum(slack, 1)).all()
    other = both_ways(model, v, vector[::-1])[0]
    assert (np.abs(other - z) > 1e-4).any(0).sum() >= d - 1, "the vector reaches the maps"


@every_kind
def test_the_density_integrates_to_one_on_a_grid(kind):
    model = gentle(FlowConfig((2,), layers=2, hidden=(5,), bins=4, **KINDS[kind]))
    reach, side = 16, 450
    axis = (np.arange(side) + 0.5) * 2 * reach / side - reach
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), jnp.float32)
    density = np.exp(np.asarray(log_density(model, grid), np.float64))
    assert density.sum() * (2 * reach / side) ** 2 == pytest.approx(1, abs=2e-3)


@every_kind
def test_a_new_flow_is_the_gaussian_of_its_first_batch(kind):
    config = FlowConfig((3,), layers=2, hidden=(6,), **KINDS[kind])
    x = np.asarray(np.random.default_rng(0).standard_normal((64, 3)) * [1, 20, 0] + [0, 5, 2], np.float32)
    model = Flow(config, rngs=nnx.Rngs(0)).initialise({"point": x})
    deviation = np.where(x.std(0) > 0, x.std(0), 1)
    expected = norm.logpdf(x, x.mean(0), deviation).sum(1)
    np.testing.assert_allclose(log_density(model, jnp.asarray(x)), expected, rtol=1e-5)


def test_images_get_the_variance_of_their_noise_and_bits():
    config = FlowConfig((2, 2, 1), 17, transform="affine", hidden=(4,))
    x = np.random.default_rng(0).integers(0, 17, (64, 2, 2, 1), np.uint8)
    x[:, 0, 0] = 3
    model = Flow(config, rngs=nnx.Rngs(0)).initialise({"image": jnp.asarray(x)})
    flat = x.reshape(64, 4)
    gaussian = multivariate_normal(flat.mean(0) + 0.5, np.diag(flat.var(0) + 1 / 12))
    v = np.asarray(x + np.random.default_rng(1).random(x.shape), np.float32)
    np.testing.assert_allclose(log_density(model, jnp.asarray(v)), gaussian.logpdf(v.reshape(64, 4)), rtol=1e-5)
    loss, metrics = model.loss({"image": jnp.asarray(x)}, KEY)
    assert loss == metrics["bits_per_dim_bound"] and float(metrics["nats_bound"] / (4 * np.log(2))) == pytest.approx(float(loss), rel=1e-5)
    drawn = model.sample(KEY, 2000)
    assert drawn.dtype == jnp.uint8 and drawn.shape == (2000, 2, 2, 1) and int(drawn.max()) <= 16
    np.testing.assert_allclose(np.asarray(drawn, np.float64).mean(0)[:, :, 0], x.mean(0)[:, :, 0], atol=0.6)


@pytest.mark.parametrize("index", [0, 1])
def test_each_number_of_an_autoregressive_map_depends_on_itself_and_all_before_it(index):
    model = with_weights(FlowConfig((6,), layers=2, hidden=(9, 7)))
    one = model.maps[index]
    v = jnp.asarray(np.random.default_rng(0).standard_normal((32, 6)), jnp.float32)
    seen = (np.asarray(jax.jit(jax.vmap(jax.jacfwd(lambda v: one(v[None])[0][0])))(v)) != 0).any(0)
    np.testing.assert_array_equal(seen, np.tri(6, dtype=bool) if index == 0 else np.tri(6, dtype=bool).T)


SPLINE = jax.jit(partial(bijections.spline, reach=4.0))
SPLINE_INVERSE = jax.jit(partial(bijections.spline_inverse, reach=4.0))


def test_the_slope_of_a_spline_is_its_derivative_and_it_ends_in_the_identity():
    parameters = jnp.asarray(3 * np.random.default_rng(0).standard_normal((11,)), jnp.float32)  # 4 bins
    x = jnp.linspace(-5, 5, 2001)
    spread = jnp.broadcast_to(parameters, (2001, 11))
    y, log_slope = SPLINE(x, spread)
    slope = jax.jit(jax.vmap(jax.grad(lambda x: bijections.spline(x, parameters, 4.0)[0])))(x)
    np.testing.assert_allclose(np.exp(log_slope), slope, rtol=2e-4)
    assert (np.diff(y) > 0).all() and np.ptp(log_slope) > 1
    np.testing.assert_array_equal(y[np.abs(x) > 4], x[np.abs(x) > 4])
    assert (np.abs(SPLINE_INVERSE(y, spread) - x) < 1e-5 + 2e-6 / slope).all()  # rounding of y, where it is flat
    edges = np.asarray([-4.0, 4.0], np.float32).repeat([1, 2000])
    np.testing.assert_allclose(SPLINE(edges, spread)[0], edges, atol=1e-6)


def test_a_spline_of_any_parameters_has_bins_and_slopes_that_float32_can_invert():
    """Logits so far apart that the shares of most bins, and most slopes, would be zero: each is at least a thousandth."""
    parameters = jnp.asarray(100 * np.random.default_rng(0).standard_normal((2001, 11)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).uniform(-4, 4, 2001), jnp.float32)
    y, log_slope = SPLINE(x, parameters)
    again = SPLINE(SPLINE_INVERSE(y, parameters), parameters)[0]
    assert np.isfinite(log_slope).all() and np.abs(y - x).max() > 1
    np.testing.assert_allclose(again, y, atol=1e-3)  # compared in y, as below


def test_planar_and_radial_maps_can_be_inverted_with_any_parameters():
    """Also those that the condition on u and on beta has to correct: 10,000 draws of which about half would not be monotone without."""
    keys = jax.random.split(KEY, 8)
    w, u, c, x = (3 * jax.random.normal(key, (10_000, 4)) for key in keys[:4])
    a, b = (5 * jax.random.normal(key, (10_000,)) for key in keys[4:6])
    steepest = 1 + (bijections._planar(w, u)[0] * w).sum(-1)
    assert (np.asarray((w * u).sum(-1)) < -1).mean() > 0.4 and float(steepest.min()) > -1e-4
    for f, inverse, parameters in [
        (bijections.planar, bijections.planar_inverse, (w, u, b)),
        (bijections.radial, bijections.radial_inverse, (c, a, b)),
    ]:
        y, log_det = f(x, *parameters)
        assert np.isfinite(log_det).all() and np.abs(y - x).max() > 1
        again = f(inverse(y, *parameters), *parameters)[0]  # compared in y: where the slope is nearly 0, x is not known from y
        np.testing.assert_allclose(again, y, atol=5e-4)


def test_a_change_of_scale_changes_the_density_by_the_logarithm_of_the_scale():
    config = FlowConfig((3,), layers=2, hidden=(6,))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 3)), jnp.float32)
    one, other = (log_density(with_weights(config).initialise({"point": c * x}), c * x) for c in (1, 50))
    np.testing.assert_allclose(one - other, np.full(64, 3 * np.log(50)), rtol=1e-4)


def test_draws_are_the_inverse_of_gaussian_noise():
    model = gentle(FlowConfig((3,), layers=2, hidden=(6,), vector_size=2))
    vector = jnp.asarray([0.3, -1.0])
    drawn = model.sample(KEY, 50, vector)
    back = jax.jit(lambda model, v: model.transform(v, vector)[0])(model, drawn)
    np.testing.assert_allclose(back, jax.random.normal(KEY, (50, 3)), atol=1e-4)
    assert (np.asarray(model.sample(KEY, 50, -vector)) != np.asarray(drawn)).any()


def test_a_flow_is_fitted_to_an_array_in_three_lines():
    """A parabola with noise, y = x^2 + 0.1 e, whose entropy is known."""
    e = np.random.default_rng(0).standard_normal((2, 2000))
    x = np.stack([e[0], e[0] ** 2 + 0.1 * e[1]], axis=1).astype(np.float32)

    dataset = Dataset.from_arrays(point=x)
    model = jaxgen.train(FlowConfig((2,), maps="coupling", layers=2, hidden=(32,)), dataset, steps=400, learning_rate=1e-2)
    nats = -np.asarray(model.log_density(jnp.asarray(x))).mean()

    entropy = 2 * norm.entropy() + np.log(0.1)
    gaussian = multivariate_normal(x.mean(0), np.cov(x.T)).entropy()
    assert entropy - 0.05 < nats < entropy + 0.25 < gaussian


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"image_shape": (1,), "maps": "coupling"}, "maps: wanted autoregressive, planar or radial for a single number, got coupling"),
        ({"layers": 0}, "layers: wanted 1 or more, got 0"),
        ({"bins": 1}, "bins: wanted 2 or more, got 1"),
        ({"reach": 0.0}, "reach: wanted a positive number, got 0.0"),
        ({"levels": 3}, "levels: wanted 2..65536 for images, 0 for points, got 3"),
        ({"hidden": (0,)}, "hidden: wanted positive sizes"),
    ],
)
def test_errors_of_the_configuration(fields, message):
    with pytest.raises(ConfigError, match=message):
        FlowConfig(**fields)


def test_errors_of_methods():
    model = with_weights(FlowConfig((2,), vector_size=3, layers=1, hidden=(4,), bins=2))
    with pytest.raises(ConfigError, match=r"v: wanted shape \[B, 2\], got \[4, 3\]"):
        model.log_density(jnp.zeros((4, 3)), jnp.zeros((4, 3)))
    with pytest.raises(ConfigError, match=r"vector: wanted float \[4, 3\], got None"):
        model.log_density(jnp.zeros((4, 2)))
    assert FlowConfig.sizes_from(model.config.features) == {"image_shape": (2,), "levels": 0, "vector_size": 3}
    assert replace(model.config, vector_size=0).features.keys() == {"point"} and partial(model.sample, KEY, 2, jnp.zeros(3))().shape == (
        2,
        2,
    )
