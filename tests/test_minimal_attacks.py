"""Attacks that look for the smallest change, beside the exact distance of a linear function."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_softmax import distances, linear, logits, nearest, perceptron

from jaxgen import attacks
from jaxgen.errors import ConfigError

KEY = jax.random.key(0)
ALL = {
    "deepfool": (attacks.deepfool, 1.002, 1, 0.7),
    "lbfgs": (partial(attacks.lbfgs, steps=8, searches=7), 1.01, 50, 0.9),
    "cw_l2": (attacks.cw_l2, 1.01, 1, 0.9),
}  # attack, norm over the exact one, scale of the logits, share that is fooled where the box is in the way


@pytest.fixture(scope="module", params=ALL)
def found(request):
    """(name, result, the same of a perceptron, their arguments) of an attack. One program for both, which is told whose logits count."""
    attack, _, scale, _ = ALL[request.param]
    logits_fn, weights, bias, x, y = linear(n=60, scale=scale)
    y = logits(weights, bias, x).argmax(1).astype(np.int32)
    y[::10] = (y[::10] + 1) % 5
    inside = ((points := nearest(weights, bias, x, y)) >= 0).all((1, 2, 3)) & (points <= 1).all((1, 2, 3))
    assert inside.mean() > 0.9  # where the nearest boundary is behind a side of the box, it is farther than the closed form says
    x, y = x[inside], y[inside]
    net, numbers = perceptron()
    z = np.random.default_rng(0).choice([0.0, 0.3, 1.0], x.shape).astype(np.float32)  # most boundaries are behind a side of the box
    labels = numbers(z).argmax(1).astype(np.int32)
    run = jax.jit(lambda first, x, y: attack(lambda x: jnp.where(first, logits_fn(x), net(x)), x, y, KEY))
    return request.param, run(True, x, y), run(False, z, labels), (weights, bias, x, y), (numbers, z, labels)


def test_norms_are_at_least_exact_and_nearly_so_on_a_linear_function(found):
    name, result, _, (weights, bias, x, y), _ = found
    exact = distances(weights, bias, x, y, 2)
    assert (np.asarray(result.success)).all() and (exact == 0).sum() >= 5
    wanted = {"deepfool": 5 + 5 + 14, "lbfgs": 4 * 7 * 9 + 13, "cw_l2": 4 * 6 * 151 + 13}[name]  # DeepFool: one step and a look at its end
    assert (np.asarray(result.queries)[exact > 0.01] == wanted).all()
    np.testing.assert_array_equal(result.x_adv[exact == 0], x[exact == 0])
    size = np.linalg.norm((np.asarray(result.x_adv, np.float64) - x).reshape(len(x), -1), axis=1)
    np.testing.assert_allclose(result.norm, size, atol=1e-6)
    assert (size >= exact - 1e-6).all()
    assert (size <= exact * ALL[name][1] + 1e-6).all(), np.quantile(size[exact > 0] / exact[exact > 0], [0.5, 0.9, 1])


def test_the_box_is_respected_and_success_is_that_of_numpy(found):
    name, _, result, _, (numbers, z, labels) = found
    x_adv = np.asarray(result.x_adv)
    assert (x_adv >= 0).all() and (x_adv <= 1).all() and np.isfinite(x_adv).all()
    gaps = np.sort(numbers(x_adv), axis=1)
    clear = gaps[:, -1] - gaps[:, -2] > 1e-4
    assert ((numbers(x_adv).argmax(1) != labels) == np.asarray(result.success))[clear].all()
    assert np.asarray(result.success).mean() > ALL[name][3]
    np.testing.assert_array_equal(x_adv[~np.asarray(result.success)], z[~np.asarray(result.success)])


def test_the_penalised_form_ends_where_more_loss_costs_as_much_change():
    """2 weight d = grad m, with the gradient of the log-ratio of a linear function by hand, and the success that numpy sees."""
    logits_fn, weights, bias, x, y = linear(n=40)
    found = jax.jit(lambda x, y: attacks.penalised(logits_fn, x, y, KEY, weight=8.0, steps=300, rate=0.02))(x, y)
    x_adv = np.asarray(found.x_adv, np.float64)
    z = logits(weights, bias, x_adv)
    p = np.exp(z - z.max(1, keepdims=True))
    p[np.arange(40), y] = 0
    slope = (p / p.sum(1, keepdims=True)) @ weights - weights[y]
    free = ((x_adv > 0) & (x_adv < 1)).reshape(40, 16)
    np.testing.assert_allclose((16 * (x_adv - x)).reshape(40, 16)[free], slope[free], atol=0.05)
    assert free.mean() > 0.8 and (x_adv >= 0).all() and (x_adv <= 1).all()
    np.testing.assert_array_equal(found.success, z.argmax(1) != y)
    np.testing.assert_allclose(found.loss, np.log(p.sum(1)) - (z - z.max(1, keepdims=True))[np.arange(40), y], rtol=1e-3, atol=1e-3)
    dearer = jax.jit(lambda x, y: attacks.penalised(logits_fn, x, y, KEY, weight=80.0, steps=300))(x, y)
    assert (np.asarray(dearer.norm) < np.asarray(found.norm)).all() and not dearer.success.all()


def test_targets_are_reached_and_cost_more():
    logits_fn, weights, bias, x, y = linear(n=20)
    target = (y + 2) % 5
    options = {"steps": 100, "searches": 4}
    towards = jax.jit(lambda x, target: attacks.cw_l2(logits_fn, x, target, KEY, targeted=True, **options))(x, target)
    away = jax.jit(lambda x, y: attacks.deepfool(logits_fn, x, y, KEY))(x, y)
    reached = logits(weights, bias, towards.x_adv).argmax(1) == target
    assert np.asarray(towards.success).mean() > 0.9 and (reached == np.asarray(towards.success)).mean() > 0.9
    assert float(towards.norm[towards.success].mean()) > float(away.norm.mean())


def test_a_confidence_is_kept():
    logits_fn, weights, bias, x, y = linear(n=10)
    run = partial(attacks.cw_l2, logits_fn, steps=100, searches=4, constant=10.0)
    found, plain = jax.jit(lambda x, y: [run(x, y, KEY, confidence=c) for c in (3.0, 0.0)])(x, y)
    z = logits(weights, bias, found.x_adv)
    gap = np.where(np.arange(5) == y[:, None], -np.inf, z).max(1) - z[np.arange(10), y]
    far = np.asarray(plain.norm) > 0
    assert (gap[far] >= 3 - 1e-4).all() and far.sum() > 5 and found.success.all() and (found.norm[far] > plain.norm[far]).all()


def test_where_a_confidence_is_not_reached_there_is_no_change():
    logits_fn, _, _, x, _ = linear(n=3)
    y = logits_fn(x).argmax(axis=1)
    found = jax.jit(lambda x, y: attacks.cw_l2(logits_fn, x, y, KEY, confidence=1e4, steps=2, searches=2))(x, y)
    assert not found.success.any() and not found.norm.any()
    np.testing.assert_array_equal(found.x_adv, x)


@pytest.mark.parametrize(
    ("attack", "options", "wanted"),
    [
        (attacks.lbfgs, {"steps": 0}, "a positive integer, got 0"),
        (attacks.lbfgs, {"searches": 0}, "a positive integer, got 0"),
        (attacks.deepfool, {"steps": -1}, "a positive integer, got -1"),
        (attacks.deepfool, {"overshoot": -1.0}, "0 or more, got -1"),
        (attacks.deepfool, {"overshoot": float("inf")}, "0 or more, got inf"),
        (attacks.penalised, {"rate": None}, "a positive number, got None"),
        (attacks.cw_l2, {"constant": -1.0}, "a positive number, got -1"),
        (attacks.cw_l2, {"steps": 2.5}, r"a positive integer, got 2\.5"),
        (attacks.penalised, {"weight": 0.0}, "a positive number, got 0"),
    ],
)
def test_options_out_of_range_are_one_line(unchecked, attack, options, wanted):
    logits_fn, _, _, x, y = linear(n=3)
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: wanted {wanted}"):
        attack(logits_fn, x, y, KEY, **options)
