"""VAE with a flow as its posterior: dependencies, determinants, densities that integrate to one, and a bound that ends at log p(x)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import with_weights
from scipy.stats import norm

from jaxgen.errors import ConfigError
from jaxgen.layers.bijections import planar_inverse
from jaxgen.models import IAFConfig

KEY = jax.random.key(0)
TINY = IAFConfig((1, 3, 1), 2, latent=2, hidden=(5,), steps=3, flow_hidden=6)


def features_of(model, n: int, seed: int = 0):
    """Features like those of an encoder."""
    width = model.config.hidden[-1]
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, width)), jnp.float32)


@pytest.mark.parametrize("flow", ["iaf", "planar"])
def test_the_log_determinant_of_every_step_is_that_of_its_jacobian(flow):
    model = with_weights(replace(TINY, latent=6, flow=flow))
    z, features = jnp.asarray(np.random.default_rng(1).standard_normal((32, 6)), jnp.float32), features_of(model, 32)

    def both(step):
        """The log-determinant and the Jacobian of every row."""
        jacobian = jax.vmap(jax.jacfwd(lambda z, h: step(z[None], h[None])[0][0]))
        return step(z, features)[1], jacobian(z, features)

    for index, (log_det, jacobian) in enumerate(jax.jit(lambda model: [both(step) for step in model.flow])(model)):
        jacobian = np.asarray(jacobian, np.float64)
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-4)
        if flow == "iaf":
            seen = (jacobian != 0).any(0)
            np.testing.assert_array_equal(seen, np.tri(6, dtype=bool) if index % 2 == 0 else np.tri(6, dtype=bool).T)


def test_m_and_s_of_a_dimension_see_the_dimensions_before_it_only_and_the_features():
    model = with_weights(replace(TINY, latent=6))
    step, features = model.flow[0], jnp.ones((5,))
    z = jnp.asarray(np.random.default_rng(0).standard_normal((20, 6)), jnp.float32)
    parameters = jax.jit(step.parameters)
    for one, other in zip(*(parameters(z, features_of(model, 20, seed)) for seed in (0, 1)), strict=True):
        np.testing.assert_array_equal((np.asarray(one) != other).any(0), np.arange(6) > 0)  # the first one's are constants
    for i in range(2):
        jacobian = jax.jit(jax.jacfwd(lambda z, i=i: step.parameters(z[None], features[None])[i][0]))(jnp.linspace(-1, 1, 6))
        np.testing.assert_array_equal(np.asarray(jacobian) != 0, np.tri(6, k=-1, dtype=bool))


def inverse(step, z, features):
    """z_{t-1}, one dimension after the other (iaf), or by the inverse of the planar map."""
    if not hasattr(step, "parameters"):
        w, u, b = jnp.split(step.layer(features), [2, 4], axis=-1)
        return planar_inverse(z, w, u, b[:, 0])
    z, before = z[:, :: step.step], jnp.zeros_like(z)
    for _ in range(2):
        m, s = step.parameters(before, features)
        before = (z - (1 - jax.nn.sigmoid(s)) * m) / jax.nn.sigmoid(s)
    return before[:, :: step.step]


@pytest.mark.parametrize("flow", ["iaf", "planar", "none"])
def test_the_posterior_integrates_to_one_and_its_draws_have_the_density_that_is_said(flow):
    model, side, reach = with_weights(replace(TINY, flow=flow)), 400, 9
    model = jax.tree.map(lambda leaf: leaf / 2, model)  # so that no gate is nearly closed, and every map can be inverted in float32
    axis = (np.arange(side) + 0.5) * 2 * reach / side - reach
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), jnp.float32)
    image = jnp.asarray([[[[0], [1], [1]]]], jnp.uint8)

    @jax.jit
    def by_inverse(model, z):
        """The first draw of the posterior that ends at z, its mean and logarithm of the variance, and the log-determinant to z."""
        x = 2 * image.astype(jnp.float32).reshape(1, -1) - 1
        features = jnp.broadcast_to(jax.nn.silu(model.features(x)), (len(z), 5))
        log_det = jnp.zeros(len(z))
        for step in reversed(model.flow):
            z = inverse(step, z, features)
            log_det += step(z, features)[1]
        return z, *jnp.split(model.posterior(features), 2, axis=1), log_det

    z, log_q = jax.jit(lambda model: model.draw_posterior(image, KEY, 200))(model)
    first, mean, log_variance, log_det = map(np.asarray, by_inverse(model, jnp.concatenate([grid, z[:, 0]])))
    density = norm.logpdf(first, mean, np.exp(log_variance / 2)).sum(1) - log_det
    assert np.exp(density[: len(grid)]).sum() * (2 * reach / side) ** 2 == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(log_q[:, 0], density[len(grid) :], atol=1e-3)


@pytest.mark.parametrize("flow", ["iaf", "planar", "none"])
def test_the_importance_weighted_bounds_of_all_images_tend_to_probabilities(flow):
    model = with_weights(replace(TINY, flow=flow))
    rows = jnp.asarray((np.arange(8)[:, None] >> np.arange(3) & 1).reshape(8, 1, 3, 1), jnp.uint8)

    @jax.jit
    def numbers(model):
        bounds = [model.importance_bound(rows, KEY, k) for k in (1, 20_000)]
        others = model._log_weights(rows, jax.random.key(1), 2000), model.elbo(rows, KEY), model.loss({"image": rows}, KEY)[1]["nats_bound"]
        return *bounds, *others

    one, many, each, elbo, loss = (np.asarray(part, np.float64) for part in numbers(model))
    assert np.exp(many).sum() == pytest.approx(1, abs=0.02)
    assert (each.mean(0) < many).all() and np.isfinite(one).all(), "the bound of one draw is lower"
    np.testing.assert_allclose(elbo, one, rtol=1e-6)
    assert float(loss) == pytest.approx(-one.mean(), rel=1e-5)


def test_errors_of_the_configuration():
    for fields, message in [({"steps": 0}, "steps: wanted 1 or more, got 0"), ({"hidden": ()}, "hidden: wanted at least one hidden layer")]:
        with pytest.raises(ConfigError, match=message):
            IAFConfig(**fields)
