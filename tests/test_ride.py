"""RIDE: the scan over diagonals is the double loop, what each pixel depends on, densities that integrate to one, draws that follow them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import with_weights
from scipy.special import expit, logsumexp
from scipy.stats import norm

from jaxgen.errors import ConfigError
from jaxgen.models import RIDEConfig
from jaxgen.models.ride import NEIGHBOURS

SMALL = RIDEConfig((4, 5, 1), 3, hidden=3, components=2, scales=2, filters=2)


def arrays_of(model) -> dict:
    """Float64 arrays of the model, by name."""
    own = {name: getattr(model, name) for name in ("pixels", "left", "above", "bias")}
    own |= {name: getattr(model.mixture, name) for name in ("means", "mean_bias", "precisions", "weights", "filters", "loadings")}
    return {name: np.asarray(array[...], np.float64) for name, array in own.items()}


def double_loop(model, x: np.ndarray) -> np.ndarray:
    """log p(x) of one image [H, W] by the equations, pixel by pixel."""
    p, (height, width) = arrays_of(model), x.shape
    h, c, total = np.zeros((height + 1, width + 1, 3)), np.zeros((height + 1, width + 1, 3)), 0.0
    for i in range(height):
        for j in range(width):
            places = [(i + r, j + k) for r, k in NEIGHBOURS]
            n = np.array([x[place] if place[0] >= 0 and 0 <= place[1] < width else 0.0 for place in places])
            gates = n @ p["pixels"] + h[i + 1, j] @ p["left"] + h[i, j + 1] @ p["above"] + p["bias"]
            g, o, k, f_r, f_c = np.split(gates, 5)
            c[i + 1, j + 1] = np.tanh(g) * expit(k) + c[i + 1, j] * expit(f_c) + c[i, j + 1] * expit(f_r)
            state = h[i + 1, j + 1] = np.tanh(c[i + 1, j + 1]) * expit(o)
            energy = sum(p["loadings"][f] ** 2 * (p["filters"][:, f] @ state) ** 2 for f in range(2))
            logits = p["weights"] + p["precisions"] / 2 - 0.5 * np.exp(p["precisions"]) * energy[:, None]
            means = (p["means"].T @ state + p["mean_bias"])[:, None]
            total += logsumexp(logits - logsumexp(logits) + norm.logpdf(x[i, j], means, np.exp(-p["precisions"] / 2)))
    return total


def test_the_scan_over_diagonals_is_the_double_loop_over_pixels():
    model = with_weights(SMALL)
    v = np.random.default_rng(0).random((8, 4, 5, 1)).astype(np.float32) * 3
    found = jax.jit(lambda model, v: model.log_density(v))(model, v)
    expected = [double_loop(model, np.asarray(x, np.float64)) + 20 * np.log(2 / 3) for x in v[..., 0] * (2 / 3) - 1]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_each_pixel_depends_on_the_columns_up_to_two_more_above_it_and_on_those_to_its_left():
    model = with_weights(SMALL)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4, 5)), jnp.float32)
    jacobian = jax.jit(lambda model, x: jax.vmap(jax.jacfwd(lambda x: model.states(x[None])[0].sum(-1)))(x))(model, x)
    seen = (np.asarray(jacobian) != 0).any(0)
    i, j, r, c = np.indices((4, 5, 4, 5))
    np.testing.assert_array_equal(seen, ((r < i) & (c <= j + 2)) | ((r == i) & (c < j)))


def test_the_mixture_integrates_to_one_and_one_gaussian_is_a_regression():
    mixture, h = with_weights(SMALL).mixture, jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
    x = jnp.linspace(-12, 12, 4001)
    density = np.exp(mixture.log_density(jnp.broadcast_to(h[:, None], (5, 4001, 3)), jnp.broadcast_to(x, (5, 4001))))
    np.testing.assert_allclose(density.sum(1) * 24 / 4000, 1, atol=1e-3)
    one = with_weights(replace(SMALL, components=1, scales=1)).mixture
    mean = np.asarray(h) @ np.asarray(one.means[...])[:, 0] + float(one.mean_bias[0])
    expected = norm.logpdf(np.ones(5), mean, np.exp(-float(one.precisions[0, 0]) / 2))
    np.testing.assert_allclose(one.log_density(h, jnp.ones(5)), expected, rtol=1e-5)


def test_the_density_of_two_pixels_integrates_to_one():
    model = with_weights(replace(SMALL, image_shape=(1, 2, 1)))
    axis = (np.arange(500) + 0.5) * 0.06 - 13.5
    v = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 1, 2, 1), jnp.float32)
    density = np.exp(np.asarray(jax.jit(lambda model, v: model.log_density(v))(model, v), np.float64))
    assert density.sum() * 0.06**2 == pytest.approx(1, abs=2e-3)


def test_the_sampler_computes_the_states_of_what_it_draws():
    """Draws of the last pixel given the others: the same key gives the mean and the noise of the mixture at the state of the full pass."""
    model, key = with_weights(SMALL), jax.random.key(1)
    x = jax.jit(lambda model, key: model.draw(key, 16))(model, key)
    states = model.states(x)
    for i in range(20):
        again = model.mixture.draw(states[:, i // 5, i % 5], jax.random.fold_in(key, i))
        np.testing.assert_allclose(again, x[:, i // 5, i % 5], atol=1e-4)
    assert model.sample(key, 3).dtype == jnp.uint8 and model.sample(key, 3).shape == (3, 4, 5, 1)


def test_errors():
    with pytest.raises(ConfigError, match=r"image_shape: wanted images of one channel, got \(4, 4, 3\)"):
        RIDEConfig((4, 4, 3))
    with pytest.raises(ConfigError, match="hidden: wanted 1 or more, got 0"):
        RIDEConfig(hidden=0)
    with pytest.raises(ConfigError, match=r"v: wanted shape \[B, 4, 5, 1\], got \[2, 4, 4, 1\]"):
        with_weights(SMALL).log_density(jnp.zeros((2, 4, 4, 1)))
