"""Implicit auto-encoders: the search against closed forms of a linear network, and REINFORCE against exact gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_models import drawn

from jaxgen import sharding, training
from jaxgen.data import load
from jaxgen.errors import ConfigError
from jaxgen.models import ImplicitAutoencoder, ImplicitAutoencoderConfig
from jaxgen.models.implicit_autoencoder import reinforce

SHAPE = (2, 2, 1)


def make(**fields) -> ImplicitAutoencoder:
    config = ImplicitAutoencoderConfig(**{"image_shape": SHAPE, "levels": 5, "latent": 2, "hidden": (), **fields})
    return drawn(config)


def images(n: int, levels: int = 5):
    return jnp.asarray(np.random.default_rng(1).integers(0, levels, (n, *SHAPE), np.uint8))


def posterior(model: ImplicitAutoencoder, v, start) -> tuple[np.ndarray, np.ndarray]:
    """Mean [B, U] and precision [U, U] of p(u | v) for v = u W + b + sigma noise and u ~ N(start, I), in float64."""
    layer, sigma = model.network.layers[0], model.config.sigma
    weight, bias = (np.asarray(x[...], np.float64) for x in (layer.kernel, layer.bias))
    precision = weight @ weight.T / sigma**2 + np.eye(len(weight))
    return start + (v - start @ weight - bias) @ weight.T / sigma**2 @ np.linalg.inv(precision), precision


# --- The search -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit", ["encoder", "decoder"])
def test_gradient_descent_ends_at_the_mode_of_the_posterior(implicit):
    model = make(implicit=implicit, steps=2000, rate=0.02, sigma=0.5)
    x, z = images(6), np.random.default_rng(0).normal(size=(6, 2))
    model.image_mean[...] = jnp.asarray(np.random.default_rng(2).uniform(0, 1, SHAPE), jnp.float32)
    numbers = jax.jit(lambda m: (m.encode(x), m.decode(jnp.float32(z)), m.squared_error(x), m.decode(m.encode(x)), m.reconstruct(x)))
    codes, decoded, error, rebuilt, levels = jax.device_get(numbers(model))
    if implicit == "encoder":
        found, wanted = codes, posterior(model, np.asarray(x).reshape(6, 4) / 4, np.zeros(2))[0]
    else:
        found, wanted = decoded.reshape(6, 4), posterior(model, z, np.asarray(model.image_mean[...], np.float64).reshape(4))[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(error, ((np.asarray(x) / 4 - rebuilt) ** 2).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(levels, np.clip(np.round(rebuilt * 4), 0, 4))


def test_langevin_draws_have_the_mean_and_the_covariance_of_their_stationary_distribution():
    """For precision P the steps have mean that of p(u | v), and covariance temperature (P - rate P P / 2)^-1: exact for any rate."""
    temperature, n = 0.5, 20_000
    model = make(steps=200, rate=0.05, sigma=0.5, temperature=temperature)
    x = jnp.repeat(images(1), n, axis=0)
    codes = np.asarray(jax.jit(lambda m: m.encode(x, jax.random.key(3)))(model), np.float64)
    mean, precision = posterior(model, np.asarray(x[:1]).reshape(1, 4) / 4, np.zeros(2))
    covariance = temperature * np.linalg.inv(precision - 0.025 * precision @ precision)
    np.testing.assert_allclose(codes.mean(0), mean[0], atol=4 * np.sqrt(covariance.max() / n))
    np.testing.assert_allclose(np.cov(codes.T), covariance, atol=6 * covariance.max() / np.sqrt(n))


def test_a_key_makes_noise_and_without_one_there_is_none():
    for implicit in ("encoder", "decoder"):
        model, x = make(implicit=implicit, steps=3), images(4)
        with_key = jax.jit(lambda m, key, x=x: (m.encode(x, key), m.decode(m.encode(x), key), m.squared_error(x, key)))
        one, again, other = (with_key(model, jax.random.key(i)) for i in (0, 0, 1))
        plain = jax.jit(lambda m, x=x: (m.encode(x), m.decode(m.encode(x)), m.squared_error(x)))(model)
        for a, b, c, d in zip(one, again, other, plain, strict=True):
            np.testing.assert_array_equal(a, b)
            assert (implicit == "encoder" and a.ndim == 4) or (np.any(a != c) and np.any(a != d))


# --- REINFORCE ------------------------------------------------------------------------------------------------------------------------


def test_reinforce_is_the_exact_gradient_where_all_draws_are_enumerated():
    """Three bits, two draws: the mean over all 64 pairs, each with its probability, is the gradient of sum_z p(z) c(z). The other draw's
    cost lowers the variance."""
    codes = np.asarray(list(itertools.product((0, 1), repeat=3)), np.float32)
    costs, logits = jnp.asarray(5 + np.random.default_rng(0).normal(size=8), jnp.float32), jnp.array([0.3, -1.0, 0.7])

    def log_p(logits):
        return -jax.nn.softplus((1 - 2 * codes) * logits[None]).sum(-1)

    pairs = np.asarray(list(itertools.product(range(8), repeat=2)))
    chance = np.exp(np.asarray(log_p(logits), np.float64))[pairs].prod(1)

    def estimates(baseline: bool):
        def one(pair):
            if baseline:
                return jax.value_and_grad(lambda logits: reinforce(costs[pair][:, None], log_p(logits)[pair][:, None]))(logits)
            each = jax.grad(lambda logits: reinforce(costs[pair][None], log_p(logits)[pair][None]))
            return costs[pair].mean(), each(logits)

        values, gradients = (np.asarray(leaf, np.float64) for leaf in jax.vmap(one)(jnp.asarray(pairs)))
        mean = chance @ gradients
        return chance @ values, mean, chance @ (gradients - mean) ** 2

    value, exact = jax.value_and_grad(lambda logits: (jnp.exp(log_p(logits)) * costs).sum())(logits)
    (mean_cost, gradient, variance), (_, plain, plain_variance) = estimates(True), estimates(False)
    assert chance.sum() == pytest.approx(1, abs=1e-6) and mean_cost == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(gradient, exact, atol=1e-5)
    np.testing.assert_allclose(plain, exact, atol=1e-5)
    assert (variance < 0.2 * plain_variance).all()


def test_the_models_gradient_is_that_of_its_expected_cost():
    """One pixel, one code, two steps: E c by a 3-dimensional Gauss-Hermite rule, differentiated through the whole search, against the mean
    of many gradients of the loss. With the weights of the search held constant the gradient is another one."""
    model = make(image_shape=(1, 1, 1), latent=1, hidden=(3,), implicit="decoder", steps=2, rate=0.2, temperature=0.3, sigma=0.6, draws=3)
    x, config = jnp.full((1, 1, 1, 1), 1, jnp.uint8), model.config
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    noise = jnp.asarray(np.stack(np.meshgrid(nodes, nodes, nodes), -1).reshape(-1, 3), jnp.float32)
    chance = np.prod(np.stack(np.meshgrid(weights, weights, weights), -1), -1).reshape(-1) / np.sqrt(2 * np.pi) ** 3

    def code(params, pixel):
        one, two = (layer for layer in nnx.merge(graph, params, rest).network.layers)
        hidden = pixel[:, None] * one.kernel[...] + one.bias[...][None]
        return (hidden * jax.nn.sigmoid(hidden)) @ two.kernel[...][:, 0] + two.bias[...]

    def expected_cost(params, searched):
        z = code(params, jnp.full(len(noise), 0.25)) + config.sigma * noise[:, 0]
        u = jnp.full(len(noise), 0.5)
        for t in range(2):
            energy = lambda u: (((z - code(searched, u)) / config.sigma) ** 2 + (u - 0.5) ** 2).sum() / 2  # noqa: E731
            u = u - config.rate * jax.grad(energy)(u) + (2 * config.rate * config.temperature) ** 0.5 * noise[:, t + 1]
        return jnp.float32(chance) @ (u - 0.25) ** 2

    def gradient_of(key):
        return jax.value_and_grad(lambda params: nnx.merge(graph, params, rest).loss({"image": x}, key)[0])(params)

    n = 40_000
    values, found = jax.jit(lambda keys: jax.lax.map(gradient_of, keys, batch_size=4000))(jax.random.split(jax.random.key(0), n))
    value, exact = jax.jit(jax.value_and_grad(lambda params: expected_cost(params, params)))(params)
    held = jax.jit(jax.grad(lambda params: expected_cost(params, jax.lax.stop_gradient(params))))(params)
    assert abs(values.mean() - value) < 4 * values.std() / np.sqrt(n)
    far = 0
    for draws, wanted, other in zip(*map(jax.tree.leaves, (found, exact, held)), strict=True):
        draws = np.asarray(draws, np.float64)
        error = draws.std(0) / np.sqrt(n)
        assert (abs(draws.mean(0) - wanted) < 4.5 * error + 1e-6).all()
        far = max(far, (abs(draws.mean(0) - other) / error).max())
    assert far > 20


# --- Training -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit", ["encoder", "decoder"])
def test_it_learns_to_reconstruct_digits(implicit):
    """Well below the error of the mean image, 0.073; the averages of codes and images follow those of the batches."""
    config = ImplicitAutoencoderConfig(hidden=(32,), implicit=implicit, steps=5, rate=0.004, temperature=0.5)
    digits, mesh, optimizer = load("digits", "train"), sharding.make_mesh(1), optax.adam(5e-3)
    state = training.init_state(drawn(config), optimizer, mesh)
    step = training.make_train_step(optimizer, mesh, 0.9)
    for batch, _ in zip(digits.batches(0, 32, 0), range(150), strict=False):
        state, _ = step(state, sharding.place_batch(mesh, batch), jax.random.key(0))
    model, x = training.ema_model(state), jnp.asarray(digits.images[:256])
    assert float(jax.jit(lambda m: m.squared_error(x).mean())(model)) < 0.045
    np.testing.assert_allclose(model.image_mean[...], digits.images.mean(0) / 16, atol=0.15)
    assert float(abs(model.code_square[...] - 1).max()) > 0.1
    levels = np.asarray(jax.jit(lambda m: m.sample(jax.random.key(0), 3))(model))
    assert levels.shape == (3, 8, 8, 1) and levels.dtype == np.uint8 and levels.max() <= 16


def test_samples_are_decoded_codes_of_the_averages():
    model = make()
    model.code_mean[...], model.code_square[...] = jnp.array([0.3, -0.2]), jnp.array([0.09, 0.04])  # the variance is 0
    x = np.asarray(model.decode(model.code_mean[...][None]))
    np.testing.assert_array_equal(model.sample(jax.random.key(0), 3), np.repeat(np.clip(np.round(4 * x), 0, 4), 3, axis=0))


@pytest.mark.parametrize(
    "fields",
    [{"latent": 0}, {"steps": 0}, {"draws": 0}, {"rate": 0.0}, {"sigma": -1.0}, {"temperature": -1.0}, {"hidden": (0,)}],
    ids=lambda fields: next(iter(fields)),
)
def test_bad_sizes_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        ImplicitAutoencoderConfig(**fields)


def test_reinforce_needs_random_steps():
    with pytest.raises(ConfigError, match=r"^temperature: wanted above 0 for an implicit decoder: .*, got 0.0$"):
        ImplicitAutoencoderConfig(implicit="decoder", temperature=0.0)
