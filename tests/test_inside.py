"""Looking into a classifier: on linear functions every picture has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_softmax import linear, logits, perceptron

from jaxgen import attacks
from jaxgen.attacks import inside
from jaxgen.errors import ConfigError

KEY, SHAPE = jax.random.key(0), (4, 4, 1)


def test_the_most_active_image_of_a_linear_function_is_its_weights_around_grey():
    logits_fn, weights, _, _, _ = linear()
    run = jax.jit(lambda target: attacks.activation_maximisation(logits_fn, target, SHAPE, KEY, weight=30.0, steps=400))
    wanted = np.clip(0.5 + 16 * weights[[0, 3]] / 60, 0, 1)
    np.testing.assert_allclose(run(np.array([0, 3])).reshape(2, 16), wanted, atol=0.01)


def test_noise_becomes_an_image_that_the_network_is_sure_of():
    logits_fn, numbers = perceptron(scale=5)
    run = jax.jit(lambda target: [attacks.fooling_images(logits_fn, target, SHAPE, KEY, steps=n) for n in (500, 600)])
    (images, sure), (later, _) = run(np.arange(5))
    np.testing.assert_array_equal(images, later)  # at 99 % they stay
    z = numbers(images)
    p = np.exp(z - z.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True))[np.arange(5), np.arange(5)]
    np.testing.assert_allclose(sure, p, atol=1e-4)
    assert (p > 0.989).all() and (np.asarray(images) >= 0).all() and (np.asarray(images) <= 1).all()
    for make in (attacks.fooling_images, attacks.activation_maximisation):
        with pytest.raises(ConfigError, match=r"target: wanted classes in 0\.\.4, got 5"):
            make(logits_fn, [0, 5], SHAPE, KEY)
        with pytest.raises(ConfigError, match="logits_fn: wanted logits, got probabilities"):
            make(lambda x: jax.nn.softmax(logits_fn(x)), [0], SHAPE, KEY)
        with pytest.raises(ConfigError, match=r"target: wanted classes \[B\], got shape \[\]"):
            make(logits_fn, 1, SHAPE, KEY)
    with pytest.raises(ConfigError, match="confidence: wanted a number between 0 and 1, got 1"):
        attacks.fooling_images(logits_fn, np.arange(5), SHAPE, KEY, confidence=1.0)


def test_a_representation_that_keeps_all_gives_the_image_and_one_that_keeps_less_leaves_an_error():
    x = jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, (3, *SHAPE)), jnp.float32)
    basis = jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0], jnp.float32)

    def features(x):
        return jnp.matmul(x.reshape(x.shape[0], 16), basis)

    whole = jax.jit(lambda wanted: attacks.invert(features, wanted, SHAPE, KEY, smooth=0.0, bounded=0.0))(features(x))
    np.testing.assert_allclose(whole.image, x, atol=0.01)
    assert (np.asarray(whole.error) < 1e-4).all()
    half = jax.jit(lambda w: attacks.invert(lambda x: features(x)[:, :8], w, SHAPE, KEY, smooth=0.0, bounded=0.0))(features(x)[:, :8])
    assert (np.asarray(half.error) < 1e-3).all() and float(jnp.abs(half.image - x).max()) > 0.1  # met, by another image
    flat = jax.jit(lambda wanted: attacks.invert(features, wanted, SHAPE, KEY, smooth=10.0, bounded=0.0))(features(x))
    with pytest.raises(ConfigError, match=r"wanted: wanted what features_fn gives, shape \[3, 16\], got shape \[3, 8\]"):
        attacks.invert(features, features(x)[:, :8], SHAPE, KEY)
    assert (inside.total_variation(flat.image) < 0.2 * inside.total_variation(x)).all() and (flat.error > whole.error).all()


def test_total_variation_is_its_definition_and_has_a_gradient_where_all_is_equal():
    x = np.random.default_rng(0).uniform(size=(2, 3, 4, 2)).astype(np.float32)
    for beta in (1.0, 2.0):
        wanted = [sum(((x[i, r + 1, c, k] - x[i, r, c, k]) ** 2 + (x[i, r, c + 1, k] - x[i, r, c, k]) ** 2) ** (beta / 2)
                      for r in range(2) for c in range(3) for k in range(2)) / 24 for i in range(2)]  # fmt: skip
        np.testing.assert_allclose(inside.total_variation(jnp.asarray(x), beta), wanted, rtol=1e-4)
    assert np.isfinite(jax.grad(lambda x: inside.total_variation(x, 1.0).sum())(jnp.ones((1, 3, 3, 1)))).all()


def test_saliency_and_the_plane_of_a_linear_function(unchecked):
    logits_fn, weights, bias, x, y = linear(n=4)
    np.testing.assert_allclose(attacks.saliency(logits_fn, x, y).reshape(4, 16), np.abs(weights[y]), rtol=1e-5)
    x_adv = attacks.deepfool(logits_fn, x, y, KEY).x_adv[1]
    found = np.asarray(attacks.plane(logits_fn, x[1], x_adv, KEY, reach=2.0, side=5))
    u = np.asarray(x_adv) - x[1]
    v = np.asarray(jax.random.normal(KEY, SHAPE), np.float64)
    v -= u * (u * v).sum() / (u**2).sum()
    v *= np.linalg.norm(u) / np.linalg.norm(v)
    steps = np.linspace(-2, 2, 5)
    points = np.stack([x[1] + a * u + b * v for b in steps for a in steps])
    z = logits(weights, bias, points)
    clear = np.sort(z, axis=1)[:, -1] - np.sort(z, axis=1)[:, -2] > 1e-3  # x_adv is at the boundary
    assert (found.ravel() == z.argmax(1))[clear].all() and clear.mean() > 0.7
    assert found[2, 2] == y[1] and found[2, 4] != y[1]
    with pytest.raises(ConfigError, match=r"y: wanted classes in 0\.\.4, got 5"):
        attacks.saliency(logits_fn, x, y * 0 + 5)
    with pytest.raises(ConfigError, match=r"x, x_adv: wanted one image \[H, W, C\] each, got shapes \[1, 4, 4, 1\], \[4, 4, 1\]"):
        attacks.plane(logits_fn, x[:1], x_adv, KEY)
    with pytest.raises(ConfigError, match="x_adv: wanted another image than x"):
        attacks.plane(logits_fn, x[1], x[1], KEY)
