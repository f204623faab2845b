"""Changes for many images and many views hold on images and draws that they have not seen; `audit` names what hides gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from linear_softmax import linear, perceptron
from scipy.ndimage import affine_transform, correlate1d

from jaxgen import attacks
from jaxgen.errors import ConfigError

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def net():
    logits_fn, numbers = perceptron()
    x = np.random.default_rng(2).uniform(0, 1, (120, 4, 4, 1)).astype(np.float32)
    return logits_fn, numbers, x, numbers(x).argmax(1).astype(np.int32)


# --- Transformations ---------------------------------------------------------------------------------------------------------------------


def test_an_image_is_turned_and_scaled_as_scipy_does():
    image = np.random.default_rng(0).uniform(size=(7, 6, 2)).astype(np.float32)
    turn = attacks.rotated(30, (0.8, 1.3))
    found, key = np.asarray(turn(image, KEY)), jax.random.split(KEY)
    angle = float(jax.random.uniform(key[0], minval=-30, maxval=30)) * np.pi / 180
    scale = float(jax.random.uniform(key[1], minval=0.8, maxval=1.3))
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    middle = np.array([3.0, 2.5])
    wanted = [affine_transform(image[..., c], matrix, middle - matrix @ middle, order=1, mode="grid-constant") for c in (0, 1)]
    np.testing.assert_allclose(found, np.stack(wanted, -1), atol=1e-5)
    np.testing.assert_allclose(attacks.rotated(0, (1.0, 1.0))(image, KEY), image, atol=1e-6)


def test_gradients_pass_transformations():
    """Beside finite differences; rounding passes the gradient of what is rounded."""
    image = np.random.default_rng(0).uniform(0.3, 0.7, (5, 5, 1)).astype(np.float32)
    smooth = attacks.chain(attacks.rotated(20), attacks.brightened(0.1), attacks.noised(0.02))
    w = jnp.asarray(np.random.default_rng(1).normal(size=(5, 5, 1)), jnp.float32)
    for transformation, finite in ((smooth, smooth), (attacks.photographed(levels=32), attacks.photographed(levels=10**6))):
        g = jax.jit(jax.grad(lambda x, t=transformation: (w * t(x, KEY)).sum()))(image)
        ends = jax.jit(jax.vmap(lambda e, t=finite: (w * (t(image + e, KEY) - t(image - e, KEY))).sum() / 0.04))
        slopes = ends(0.02 * np.eye(25, dtype=np.float32).reshape(25, 5, 5, 1))
        np.testing.assert_allclose(g.reshape(25), slopes, atol=0.02)
    levels = np.asarray(attacks.photographed(levels=32)(image, KEY)) * 31
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)


def test_brightness_and_photographs_are_their_definitions():
    image = np.random.default_rng(0).uniform(0.3, 0.7, (6, 5, 2)).astype(np.float32)
    keys = jax.random.split(KEY, 20)
    added = np.stack([attacks.brightened(0.2)(image, key) - image for key in keys])
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1, :1], added.shape), atol=1e-6)
    assert np.abs(added).max() <= 0.2 and added.min() < -0.1 and added.max() > 0.1
    power = np.exp(float(jax.random.uniform(KEY, minval=-0.4, maxval=0.4)))
    wanted = image.astype(float) ** power
    for axis in (0, 1):
        wanted = correlate1d(wanted, [0.25, 0.5, 0.25], axis, mode="nearest")
    np.testing.assert_allclose(attacks.photographed(0.4, levels=10**6)(image, KEY), wanted, atol=1e-5)
    for make, said in (
        (lambda: attacks.photographed(levels=1), "levels: wanted 2 or more, got 1"),
        (lambda: attacks.rotated(10, (0.0, 1.0)), r"scales: wanted a positive number, got 0\.0"),
    ):
        with pytest.raises(ConfigError, match=said):
            make()


# --- Attacks -----------------------------------------------------------------------------------------------------------------------------


def test_eot_fools_new_views_more_often_than_pgd(net):
    logits_fn, _, x, y = net
    x, y = x[:40], y[:40]
    view = attacks.chain(attacks.rotated(25), attacks.noised(0.1))

    @jax.jit
    def shares(x, y):
        found = attacks.eot(logits_fn, x, y, KEY, 0.15, view, samples=10, steps=15)
        plain = attacks.pgd(logits_fn, x, y, KEY, 0.15, steps=15)

        def fooled(x):
            keys = jax.random.split(jax.random.key(9), (50, len(x)))
            return jax.lax.map(lambda keys: logits_fn(jax.vmap(view)(x, keys)).argmax(1) != y, keys).mean()

        return found, jax.lax.map(fooled, jnp.stack([found.x_adv, plain.x_adv, x]))

    found, (ours, plain, clean) = shares(x, y)
    assert ours > plain + 0.02 and ours > clean + 0.1
    assert (np.asarray(found.queries) == 160).all() and float(found.norm.max()) <= 0.15001
    assert (np.asarray(found.x_adv) >= 0).all() and (np.asarray(found.x_adv) <= 1).all()


def test_success_under_transformations_is_that_of_more_than_half_of_the_draws():
    def two(x):
        return jnp.stack([x.mean((1, 2, 3)), jnp.full(len(x), 0.5)], axis=1)

    def lit(share):
        return lambda image, key: jnp.where(jax.random.uniform(key) < share, 1.0, image)

    x, y = np.full((3, 4, 4, 1), 0.3, np.float32), np.ones(3, np.int32)
    run = jax.jit(lambda share: attacks.eot(two, x, y, KEY, 0.0, lit(share), samples=200, steps=1))
    for share in (0.3, 0.7):
        found = run(share)
        assert found.success.tolist() == [share > 0.5] * 3


@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 0.2), (2, 0.6)])
def test_one_perturbation_fools_images_that_it_has_not_seen(net, norm, eps):
    logits_fn, _, x, y = net
    v = np.asarray(jax.jit(lambda x, y: attacks.universal(logits_fn, x, y, KEY, eps, norm))(x[:80], y[:80]))
    assert v.shape == (1, 4, 4, 1) and np.linalg.norm(v.ravel(), norm) <= eps * 1.00001
    noise = eps * np.sign(v.ravel()) if norm == np.inf else eps * np.random.default_rng(0).normal(size=16) / 4
    others = np.float32(noise[::-1]).reshape(v.shape)
    rates = [float((logits_fn(jnp.clip(x[80:] + d, 0, 1)).argmax(1) != y[80:]).mean()) for d in (v, others)]
    assert rates[0] > 0.4 and rates[0] > rates[1] + 0.1
    if norm == 2:  # images beyond the cap do not draw it; wrong arguments
        assert not attacks.universal(logits_fn, x, y, KEY, eps, norm, steps=3, cap=-1e3).any()
        many = jax.random.split(KEY, len(x))
        wrong = {"key: wanted one key, since": {"key": many}, "step_size: wanted a positive number": {"step_size": -1.0}}
        for said, options in (wrong | {"batch_size: wanted a positive integer": {"batch_size": 0}}).items():
            with pytest.raises(ConfigError, match=said):
                attacks.universal(logits_fn, x, y, **{"key": KEY, "eps": eps, "norm": norm} | options)


def test_a_patch_is_pasted_whole_and_draws_images_to_its_target(unchecked, net):
    logits_fn, numbers, x, _ = net
    square = np.asarray(jax.jit(lambda x: attacks.patch(logits_fn, x, 1, KEY, 3, steps=100))(x[:80]))
    assert square.shape == (3, 3, 1) and (square >= 0).all() and (square <= 1).all()
    shown = np.asarray(attacks.pasted(jnp.asarray(x[80:]), jnp.asarray(square), jax.random.split(KEY, 40)))
    places = [[(shown[i, r : r + 3, c : c + 3] == square).all() for r in (0, 1) for c in (0, 1)] for i in range(40)]
    assert np.any(places, axis=1).all() and np.any(places, axis=0).all()
    assert (numbers(shown).argmax(1) == 1).mean() > (numbers(x[80:]).argmax(1) == 1).mean() + 0.3
    with pytest.raises(ConfigError, match=r"size: wanted 1\.\.4, inside of the image, got 5"):
        attacks.patch(logits_fn, x, 1, KEY, 5)
    with pytest.raises(ConfigError, match=r"target: wanted classes in 0\.\.4, got 5"):
        attacks.patch(logits_fn, x, 5, KEY, 2)
    with pytest.raises(ConfigError, match=r"x: wanted images \[B, H, W, C\], got shape \[120, 4, 4\]"):
        attacks.patch(logits_fn, x[..., 0], 1, KEY, 2)


# --- Audit -------------------------------------------------------------------------------------------------------------------------------


def drawn(logits_fn):
    draws = np.random.default_rng(0)
    return lambda x: logits_fn(x + jnp.float32(draws.normal()) * 0.1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f, set()),
        (lambda f: lambda x: f(jnp.round(x * 4) / 4), {"zero_gradients", "noise_better", "unbounded"}),
        (lambda f: lambda x: 100 * f(x), {"lost_gradients"}),
        (drawn, {"random"}),
        (lambda f: lambda x: f(x) - f(x).mean(axis=0, keepdims=True), {"batch_dependence"}),
    ],
    ids=["honest", "rounded", "saturated", "random", "batch"],
)
def test_audit_names_what_hides_gradients_and_nothing_else(net, change, named):
    logits_fn, numbers, x, y = net
    found = attacks.audit(change(logits_fn), x[:60], y[:60], eps=0.15)
    assert {warning.split()[0] for warning in found.warnings} >= named
    if named != {"batch_dependence"}:
        assert {warning.split()[0] for warning in found.warnings} <= named | ({"batch_dependence"} if named == {"random"} else set())
    assert all(len(warning) < 140 for warning in found.warnings)


def test_audit_names_a_network_in_training_mode_and_numbers_that_are_none(net):
    """Flax's layers change their state when they are asked, so nothing has gradients there."""
    _, _, x, _ = net
    y = np.zeros(60, np.int32)
    for layer, named in ((nnx.Dropout(0.5, rngs=nnx.Rngs(0)), "random"), (nnx.BatchNorm(16, rngs=nnx.Rngs(0)), "batch_dependence")):
        body = nnx.Sequential(nnx.Linear(16, 16, rngs=nnx.Rngs(1)), layer)
        found = attacks.audit(lambda x, body=body: body(x.reshape(x.shape[0], -1)), x[:60], y)
        assert named in {warning.split()[0] for warning in found.warnings} and np.isnan(found.zero_gradients)
    with pytest.raises(ConfigError, match="logits_fn: wanted finite logits"):
        attacks.audit(lambda x: x.reshape(x.shape[0], -1) * np.nan, x[:60], y)
    with pytest.raises(ConfigError, match=r"y: wanted classes in 0\.\.15, got 16"):
        attacks.audit(lambda x: x.reshape(x.shape[0], -1), x[:60], y + 16)


def test_audit_names_a_gradient_that_misleads_many_steps():
    """m has a local maximum near x, and is positive only at the end of the ball, where one step comes."""

    def trap(x):
        u = x[:, 0, 0, 0] - 0.5
        m = jnp.where(u > 0.0995, 1.0, -jnp.square(u - 0.03) - 0.01)
        return jnp.stack([0 * m, m], axis=1)

    found = attacks.audit(trap, np.full((10, 2, 2, 1), 0.5, np.float32), np.zeros(10, np.int32), eps=0.1)
    assert found.one_step_better > 0.8 and "one_step_better" in {warning.split()[0] for warning in found.warnings}


def test_audit_refuses_what_is_no_function_of_jax_arrays(unchecked, net):
    _, _, x, y = net
    for f, said in ((None, "a function from images to logits, got None"), (lambda x: np.asarray(x).reshape(len(x), -1), "of jax arrays")):
        with pytest.raises(ConfigError, match=f"logits_fn: wanted .*{said}"):
            attacks.audit(f, x, y)


def test_the_linear_function_has_no_finding():
    logits_fn, _, _, x, y = linear(n=60)
    assert attacks.audit(logits_fn, x, y, eps=0.03).warnings == ()


# --- Networks that attack ----------------------------------------------------------------------------------------------------------------


def test_a_trained_network_fools_on_images_that_it_has_not_seen_but_no_more_than_pgd(net):
    (logits_fn, numbers, _, _), eps, held = net, 0.2, slice(400, None)
    x = np.random.default_rng(2).uniform(0, 1, (520, 4, 4, 1)).astype(np.float32)
    y = numbers(x).argmax(1).astype(np.int32)
    trained = jax.jit(lambda x, y: attacks.train_net(logits_fn, x, y, KEY, eps, width=16, steps=400))(x[:400], y[:400])
    found = jax.jit(lambda x, y: attacks.by_net(trained, logits_fn, x, y, KEY))(x[held], y[held])
    x_adv = np.asarray(found.x_adv)
    assert np.abs(x_adv - x[held]).max() <= eps * 1.00001 and (x_adv >= 0).all() and (x_adv <= 1).all()
    assert (numbers(x_adv).argmax(1) != y[held]).mean() == pytest.approx(float(found.success.mean()), abs=0.03)
    strong = float(jax.jit(lambda x, y: attacks.pgd(logits_fn, x, y, KEY, eps).success.mean())(x[held], y[held]))
    noisy = jnp.clip(x[held] + eps * jax.random.rademacher(KEY, x[held].shape, jnp.float32), 0, 1)
    random = float((logits_fn(noisy).argmax(1) != y[held]).mean())
    assert random + 0.1 < float(found.success.mean()) <= strong
    assert (np.asarray(found.queries) == 1).all()


def test_one_perturbation_for_all_images_is_judged_as_a_network_is(net):
    logits_fn, numbers, x, y = net
    v = np.where(np.random.default_rng(5).uniform(size=(1, 4, 4, 1)) < 0.5, -0.3, 0.3).astype(np.float32)
    found = attacks.by_net(lambda x: x + v, logits_fn, x, y, KEY, norm=2)
    x_adv = np.clip(np.asarray(x) + v, 0, 1)
    np.testing.assert_allclose(found.x_adv, x_adv, atol=1e-6)
    np.testing.assert_allclose(found.norm, np.sqrt(np.square(x_adv - np.asarray(x)).sum((1, 2, 3))), rtol=1e-5)
    np.testing.assert_array_equal(found.success, numbers(x_adv).argmax(1) != np.asarray(y))
    assert float(found.success.mean()) > 0.05
    for change, said in (
        ({"net": lambda x: x[:2]}, r"net: wanted images of shape \[\d+, 4, 4, 1\] for such images, got shape \[2, 4, 4, 1\]"),
        ({"norm": 3}, r"norm: wanted 1, 2 or jnp\.inf, got 3"),
    ):
        with pytest.raises(ConfigError, match=said):
            attacks.by_net(**{"net": lambda x: x, "logits_fn": logits_fn, "x": x, "y": y, "key": KEY} | change)
