"""Attacks without gradients: estimates of linear functions are unbiased, budgets hold, rows do not depend on each other."""

from functools import partial
from math import inf

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_softmax import linear, logits, perceptron

from jaxgen import attacks
from jaxgen.attacks import black_box
from jaxgen.errors import ConfigError

KEY = jax.random.key(0)
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0][:5].astype(np.float32)


@pytest.fixture(scope="module")
def net():
    logits_fn, numbers = perceptron()
    x = np.random.default_rng(2).uniform(0, 1, (64, 4, 4, 1)).astype(np.float32)
    return logits_fn, numbers, x, numbers(x).argmax(1).astype(np.int32)


@pytest.fixture(scope="module")
def fooled_by_gradients(net):
    """The share of the images that PGD changes the class of."""
    logits_fn, _, x, y = net
    return float(jax.jit(lambda x, y: attacks.pgd(logits_fn, x, y, KEY, 0.15).success.mean())(x, y))


@pytest.mark.parametrize("directions", [attacks.nes, attacks.spsa, partial(attacks.random_groups, groups=4)])
def test_estimates_are_unbiased_on_a_linear_function(directions):
    """The mean of many estimates over the true slope is 1; of groups it is on what the mean of the groups' projections keeps."""
    w = jnp.asarray(np.random.default_rng(1).normal(size=16), jnp.float32)
    n = 4000
    x = jnp.full((n, 4, 4, 1), 0.5)
    estimate = jax.jit(lambda x, keys: attacks.estimate(lambda x: jnp.matmul(x.reshape(-1, 16), w), x, keys, directions, 0.1))
    found = np.asarray(estimate(x, jax.random.split(KEY, n))).reshape(n, 16)
    exact = np.asarray(w)
    if directions not in (attacks.nes, attacks.spsa):  # the share of a value in its group of 4, and of the others in the same group
        exact = exact / 4 + (exact.sum() - exact) / 4 * (3 / 15)
    mean, error = np.asarray(found.mean(0)), np.asarray(found.std(0)) / np.sqrt(n)
    assert (np.abs(mean - exact) < 4.5 * error).all()
    assert mean @ exact / (exact @ exact) == pytest.approx(1, abs=0.02)


def test_finite_differences_are_the_gradient_and_principal_directions_its_projection(net):
    logits_fn, _, x, y = net

    def value(x):
        return jnp.square(logits_fn(x)[:, 0])

    keys = jax.random.split(KEY, len(x))

    @jax.jit
    def numbers(x):
        directions = attacks.finite_differences, partial(attacks.principal_directions, directions=jnp.asarray(BASIS))
        estimates = [attacks.estimate(value, x, keys, each, 1e-3) for each in directions]
        return [part.reshape(64, 16) for part in (jax.grad(lambda x: value(x).sum())(x), *estimates)]

    g, exact, some = jax.device_get(numbers(x))
    smooth = np.abs(exact - g).max(1) < 0.02 * np.abs(g).max()  # a step over the kink of a relu changes the slope
    assert smooth.mean() > 0.9
    np.testing.assert_allclose(some[smooth], (exact @ BASIS.T @ BASIS)[smooth], atol=0.03 * np.abs(g).max())


@pytest.mark.parametrize("directions", [attacks.nes, attacks.finite_differences])
def test_a_batch_of_64_gives_what_64_single_images_give_and_budgets_hold(net, fooled_by_gradients, directions):
    logits_fn, numbers, x, y = net
    keys = jax.random.split(KEY, len(x))

    @jax.jit
    def run(x, y, keys):
        def attack(x, y, key):
            return black_box.estimated(logits_fn, x, y, key, 0.15, directions=directions, budget=1000)

        return attack(x, y, keys), jax.vmap(lambda x, y, key: attack(x[None], y[None], key[None]))(x, y, keys)

    found, alone = run(x, y, keys)
    same = np.abs(np.asarray(alone.x_adv)[:, 0] - np.asarray(found.x_adv)).max((1, 2, 3)) < 1e-4
    assert same.mean() >= 0.95  # a sign of a slope that is 0 but for rounding may differ
    np.testing.assert_array_equal(np.asarray(alone.queries)[same, 0], np.asarray(found.queries)[same])
    success = np.asarray(found.success)
    assert success.mean() > 0.5 and (np.asarray(found.norm) <= 0.15001).all()
    assert (np.asarray(found.queries) <= 1000).all() and (np.asarray(found.queries)[~success] > 800).all()
    assert (np.asarray(found.queries)[success] < 1000).any()
    assert success.mean() <= fooled_by_gradients + 0.026


def test_the_boundary_attack_sees_decisions_only_and_comes_near(net):
    logits_fn, numbers, x, y = net

    def decides(x):
        return 10 * jax.nn.one_hot(logits_fn(x).argmax(1), 5)

    long, short = (jax.jit(lambda x, y, n=n: attacks.boundary(decides, x, y, KEY, steps=n)) for n in (1000, 1))
    found, start = long(x, y), short(x, y)
    best = jax.jit(lambda x, y: attacks.deepfool(logits_fn, x, y, KEY))(x, y)
    x_adv, success = np.asarray(found.x_adv), np.asarray(found.success)
    assert success.all() and (x_adv >= 0).all() and (x_adv <= 1).all()
    z, rows = numbers(x_adv), np.arange(64)
    others = np.where(np.arange(5) == y[:, None], -np.inf, z).max(1)
    assert (z[rows, y] - others < 1e-5).all()  # misclassified, but for rounding: the images are at the very boundary
    np.testing.assert_allclose(found.norm, np.linalg.norm((x_adv - x).reshape(64, -1), axis=1), rtol=1e-4)
    begun, ended = (np.median(np.asarray(result.norm) / np.asarray(best.norm)) for result in (start, found))
    assert 0.95 < ended < 1.6 and ended < 0.5 * begun
    assert set(np.asarray(found.queries).tolist()) == {50 + 13 + 2 * 1000}
    wrong = short(x, (y + 1) % 5)
    np.testing.assert_array_equal(wrong.x_adv, x)
    assert wrong.success.all() and (np.asarray(wrong.queries) == 1).all()


def test_the_boundary_attack_ends_at_the_nearest_point_of_a_linear_boundary():
    """Of two linear classes the boundary is a plane, whose distance is known."""
    logits_fn, weights, bias, x, _ = linear(n=40)
    z = logits(weights[:2], bias[:2], x)
    y, w = z.argmax(1).astype(np.int32), weights[1] - weights[0]
    exact = np.abs(z[:, 0] - z[:, 1]) / np.linalg.norm(w)
    nearest = x - ((z[:, 1] - z[:, 0]) / (w @ w))[:, None, None, None] * w.reshape(1, 4, 4, 1)
    inside = ((nearest >= 0) & (nearest <= 1)).all((1, 2, 3))
    found = jax.jit(lambda x, y: attacks.boundary(lambda x: logits_fn(x)[:, :2], x, y, KEY))(x, y)
    ratio = np.asarray(found.norm)[inside] / exact[inside]
    assert inside.sum() > 20 and (ratio >= 1 - 1e-4).all() and np.median(ratio) < 1.05, np.quantile(ratio, [0.5, 0.9, 1])


def test_transfer_is_judged_by_the_other_function(net):
    logits_fn, numbers, x, y = net
    other = perceptron(5)[0]
    both = jax.jit(lambda x, y: (attacks.transfer(other, attacks.fgsm, logits_fn, x, y, KEY, 0.3), attacks.fgsm(other, x, y, KEY, 0.3)))
    found, own = both(x, y)
    np.testing.assert_array_equal(found.success, logits_fn(found.x_adv).argmax(1) != y)
    np.testing.assert_array_equal(found.x_adv, own.x_adv)
    assert (np.asarray(found.queries) == 1).all()


def test_bad_options_are_one_line(net):
    logits_fn, _, x, y = net
    with pytest.raises(ConfigError, match="budget: wanted 102 or more queries, for one step, got 90"):
        attacks.estimated(logits_fn, x, y, KEY, 0.1, inf, budget=90)
    with pytest.raises(ConfigError, match=r"groups: wanted 1\.\.16"):
        attacks.estimated(logits_fn, x, y, KEY, 0.1, directions=partial(attacks.random_groups, groups=17))
    with pytest.raises(ConfigError, match=r"step: wanted a positive number, got 0\.0"):  # it would divide by it
        attacks.estimated(logits_fn, x, y, KEY, 0.1, step=0.0)
    with pytest.raises(ConfigError, match="samples: wanted a positive integer, got 0"):
        attacks.estimated(logits_fn, x, y, KEY, 0.1, directions=partial(attacks.nes, samples=0))
    for attack in (attacks.deepfool, attacks.cw_l2):
        with pytest.raises(ConfigError, match=r"^attack: wanted a function \(logits_fn, x, y, key, eps\) -> Result, got one without eps"):
            attacks.transfer(logits_fn, attack, logits_fn, x, y, KEY, 0.1)
    with pytest.raises(ConfigError, match="^substitute: wanted a function with the 5 classes of logits_fn, got 2 classes$"):
        attacks.transfer(lambda x: logits_fn(x)[:, :2], attacks.fgsm, logits_fn, x, y, KEY, 0.1)
    for options in ({"steps": -1}, {"tries": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}: wanted a positive integer"):
            attacks.boundary(logits_fn, x, y, KEY, **options)
    narrow = partial(attacks.principal_directions, directions=jnp.asarray(BASIS[:, :15]))
    with pytest.raises(ConfigError, match=r"directions: wanted shape \[k, 16\], got \[5, 15\]"):
        attacks.estimated(logits_fn, x, y, KEY, 0.1, directions=narrow)
