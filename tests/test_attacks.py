"""Attacks that follow gradients: closed forms of linear functions, projections by scipy, signs in float64, foolbox if it is there."""

from functools import partial
from math import inf, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial
from linear_softmax import distances, linear, logits, perceptron
from scipy.optimize import minimize
from scipy.special import softmax
from scipy.stats import kstest
from test_models import ALL as THOROUGH

from jaxgen import attacks
from jaxgen.attacks import balls, losses
from jaxgen.errors import ConfigError

KEY = jax.random.key(0)
EXACT = [(inf, 0.02), (2, 0.07), (1, 0.15)]
BALLS = [(inf, 0.1), (2, 0.3), (1, 0.8)]


@pytest.fixture(scope="module")
def net():
    """A perceptron, 40 images, and the classes that it predicts but for some."""
    logits_fn, numbers = perceptron()
    x = np.random.default_rng(2).uniform(0, 1, (40, 4, 4, 1)).astype(np.float32)
    x[:, 0] = np.round(x[:, 0])  # values at both ends of the box
    y = numbers(x).argmax(1).astype(np.int32)
    y[::8] = (y[::8] + 1) % 5
    return logits_fn, numbers, x, y


# --- Losses ------------------------------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_numpy_and_finite_for_any_logits():
    z = np.random.default_rng(0).normal(size=(50, 7)) * 5
    z[0, 3], y = 1e4, np.arange(50, dtype=np.int32) % 7
    z[1, :] = 0
    y[0] = 3
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    labels = jnp.asarray(y)
    own, other = p[np.arange(50), y], np.where(np.arange(7)[None] == y[:, None], -np.inf, z)
    z32 = jnp.asarray(z, jnp.float32)

    @jax.jit
    def found(z):
        values = [loss(z, labels) for loss in (losses.cross_entropy, losses.log_ratio, losses.margin)]
        return *values, jax.grad(lambda z: losses.log_ratio(z, labels).sum())(z)

    cross_entropy, log_ratio, margin, gradient = found(z32)
    np.testing.assert_allclose(cross_entropy, -np.log(own), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_ratio, ratios(z, y), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(margin, other.max(1) - z[np.arange(50), y], rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_gradients_have_the_signs_of_float64_where_the_usual_cross_entropy_has_not(scale):
    logits_fn, numbers = perceptron(scale=20 * scale)
    x = np.random.default_rng(3).uniform(0, 1, (60, 4, 4, 1)).astype(np.float32)
    y = numbers(x).argmax(1).astype(np.int32)

    def gradient(loss):
        return np.asarray(jax.jit(jax.grad(lambda x: loss(logits_fn(x), jnp.asarray(y)).sum()))(jnp.asarray(x)))

    step, exact = 1e-7, np.zeros((60, 16))
    for i in range(16):
        up, down = (ratios(numbers(x.astype(np.float64) + sign * step * np.eye(16)[i].reshape(4, 4, 1)), y) for sign in (1, -1))
        exact[:, i] = (up - down) / (2 * step)
    clear = np.abs(exact) > 1e-3 * np.abs(exact).max(1, keepdims=True)
    wrong = {loss: (np.sign(gradient(loss).reshape(60, 16)) != np.sign(exact)) & clear for loss in (losses.log_ratio, usual)}
    assert wrong[losses.log_ratio].mean() < 1e-3
    assert wrong[usual].any(axis=1).mean() > 0.1


def ratios(z, y):
    """log((1 - p_y) / p_y) in float64."""
    rest = np.where(np.arange(z.shape[1])[None] == y[:, None], -np.inf, z)
    top = rest.max(1)
    return top + np.log(np.exp(rest - top[:, None]).sum(1)) - z[np.arange(len(y)), y]


def usual(z, y):
    return optax.softmax_cross_entropy_with_integer_labels(z, y)


# --- Balls -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_projections_are_the_nearest_points_of_ball_and_box(norm, eps):
    """Beside scipy's minimum of the distance: constraints are smooth in d = a - b with a, b >= 0."""
    generator = np.random.default_rng(4)
    x = generator.uniform(0, 1, (6, 5)).astype(np.float32)
    far = (x + generator.normal(size=x.shape) * np.array([0.01, 0.1, 0.3, 0.5, 1, 3])[:, None]).astype(np.float32)
    found = np.asarray(balls.project(jnp.asarray(far), jnp.asarray(x), eps, norm))
    assert (found >= 0).all() and (found <= 1).all()
    assert (np.linalg.norm(found - x, norm, axis=1) <= eps * (1 + 1e-5)).all()
    for row in range(len(x)):
        low, high = -x[row].astype(float), 1 - x[row].astype(float)
        limit = {1: lambda v: eps - v.sum(), 2: lambda v: eps**2 - ((v[:5] - v[5:]) ** 2).sum(), inf: lambda v: 1.0}[norm]
        most = np.concatenate([high, -low]) if norm != inf else np.minimum(np.concatenate([high, -low]), eps)
        d = far[row].astype(float) - x[row]
        best = minimize(
            lambda v, d=d: ((v[:5] - v[5:] - d) ** 2).sum(), np.zeros(10), bounds=list(zip(np.zeros(10), most, strict=True)),
            constraints=[{"type": "ineq", "fun": limit}], method="SLSQP", options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
        np.testing.assert_allclose(found[row] - x[row], best.x[:5] - best.x[5:], atol=2e-4)


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_steps_have_norm_1_whatever_the_size_of_the_gradient_and_draws_are_uniform(norm, eps):
    x = jnp.full((3, 4, 4, 1), 0.5).at[:, 0].set(0.0)
    g = jax.random.normal(KEY, x.shape).at[2].set(0)
    steepest = jax.jit(lambda g: (step := balls.steepest(g, norm, x), balls.norms(step, norm)))
    unscaled = steepest(g)[0]
    for scale in (1.0, 1e-25, 1e25):
        step, size = steepest(g * scale)
        np.testing.assert_allclose(step, unscaled, rtol=1e-5)
        np.testing.assert_allclose(size, [1, 1, 0], rtol=1e-6)
    assert float((step * g).sum()) > 0
    sizes = jax.jit(lambda keys: balls.norms(balls.uniform(keys, jnp.zeros((2000, 2, 3)), eps, norm), norm))(jax.random.split(KEY, 2000))
    assert kstest((np.asarray(sizes) / eps) ** 6, "uniform").pvalue > 0.01
    assert norm != 1 or not (unscaled[:, 0] < 0).any()  # half of the values of the gradient at 0 would leave the box


# --- Closed form of linear functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), EXACT)
def test_the_multi_targeted_attack_meets_the_exact_robust_accuracy_of_a_linear_function(norm, eps):
    logits_fn, weights, bias, x, y = linear()
    exact = (distances(weights, bias, x, y, norm) > eps).mean()
    right = logits(weights, bias, x).argmax(1) == y
    attack = partial(attacks.multi_targeted, norm=norm, steps=1, box=(-100.0, 100.0))
    strong = attacks.robust_accuracy(logits_fn, x, y, KEY, [eps], attack, box=(-100.0, 100.0))[1]
    weak = attacks.robust_accuracy(logits_fn, x, y, KEY, [eps], partial(attacks.pgd, norm=norm), levels=256)[1]
    assert 0.1 < exact < 0.85 and right.mean() == 0.9
    assert strong.accuracy == exact
    assert exact <= weak.accuracy <= exact + 0.05
    assert strong.standard_error == pytest.approx(sqrt(strong.accuracy * (1 - strong.accuracy) / 200))
    assert abs(weak.rounded - weak.accuracy) < 0.05 and strong.norm <= eps * 1.00001


def test_steps_have_the_sizes_that_are_said():
    """Of two linear classes every step is along the signs of the weights, so a row stays after ceil(distance / size) steps."""
    logits_fn, weights, bias, x, _ = linear(n=30)
    z = logits(weights[:2], bias[:2], x)
    y, exact = z.argmax(1).astype(np.int32), np.abs(z[:, 0] - z[:, 1]) / np.abs(weights[1] - weights[0]).sum()
    eps, wide = 0.2, {"box": (-9.0, 9.0)}

    @jax.jit
    def both(x, y):
        two = lambda x: logits_fn(x)[:, :2]  # noqa: E731
        still = attacks.pgd(two, x, y, KEY, eps, steps=16, random_start=False, keep="first", **wide)
        return attacks.iterative_sign(two, x, y, KEY, eps, steps=10, **wide), still

    for found, size in zip(both(x, y), (1.25 * eps / 10, 2.5 * eps / 16), strict=True):
        clear = (exact < 0.95 * eps) & (np.abs(exact / size - np.round(exact / size)) > 1e-3)
        assert clear.sum() > 10
        np.testing.assert_allclose(found.norm[clear], np.minimum(np.ceil(exact[clear] / size) * size, eps), rtol=1e-4)


@pytest.mark.parametrize("attack", [attacks.iterative_sign, attacks.pgd, partial(attacks.pgd, norm=2)])
def test_logits_times_4_or_16_change_robust_accuracy_by_at_most_2_points(net, attack):
    """Three copies of the images, with the same draws and with other factors, are rows of one compiled program."""
    logits_fn, _, x, y = net
    eps = [0.05, 0.3][getattr(attack, "keywords", {}).get("norm") == 2]
    factors = np.repeat(np.float32([20, 80, 320]), len(x))[:, None]
    x, y, keys = np.tile(x, (3, 1, 1, 1)), np.tile(y, 3), jax.random.split(KEY, len(x))[np.tile(np.arange(len(x)), 3)]
    right = attacks.robust_accuracy(lambda x: factors[: len(x)] * logits_fn(x), x, y, keys, [eps], attack)[1].right
    found = right.reshape(3, -1).mean(1)
    assert 0.05 < found[0] < 0.85 and max(found) - min(found) <= 0.026  # one image of 40


# --- What every attack holds -------------------------------------------------------------------------------------------------------------

ALL = {
    "fgsm": (attacks.fgsm, inf),
    "fast_gradient": (attacks.fast_gradient, 2),
    "iterative_sign": (attacks.iterative_sign, inf),
    "least_likely": (attacks.least_likely, inf),
    "pgd": (partial(attacks.pgd, steps=10, restarts=2), inf),
    "pgd 2": (partial(attacks.pgd, steps=10, norm=2), 2),
    "pgd 1": (partial(attacks.pgd, steps=10, norm=1), 1),
    "pgd adam": (partial(attacks.pgd, steps=10, norm=2, optimizer=optax.adam(0.05)), 2),
    "pgd last": (partial(attacks.pgd, steps=10, keep="last"), inf),  # what least_likely keeps
    "pgd first": (partial(attacks.pgd, steps=10, keep="first"), inf),  # what iterative_sign keeps
    "multi_targeted": (partial(attacks.multi_targeted, steps=5), inf),
}
EPS = {inf: 0.1, 2: 0.4, 1: 1.0}


@pytest.mark.parametrize("name", [name for name in ALL if THOROUGH or name not in ("pgd last", "pgd first")])
def test_images_are_in_ball_and_box_judged_by_numpy_and_the_same_alone_and_in_a_batch(net, name):
    logits_fn, numbers, x, y = net
    attack, norm = ALL[name]
    eps = EPS[norm]
    keys = jax.random.split(KEY, len(x))

    @jax.jit
    def run(x, y, keys):
        """All rows together for eps and 0, in a scan, and each alone, under vmap."""
        together = jax.lax.map(lambda eps: attack(logits_fn, x, y, keys, eps), jnp.float32([eps, 0.0]))
        return together, jax.vmap(lambda x, y, key: attack(logits_fn, x[None], y[None], key[None], eps))(x, y, keys)

    together, alone = jax.device_get(run(x, y, keys))
    found, none = (jax.tree.map(lambda leaf, i=i: leaf[i], together) for i in (0, 1))
    x_adv = np.asarray(found.x_adv, np.float64)
    assert (x_adv >= 0).all() and (x_adv <= 1).all()
    sizes = np.linalg.norm((x_adv - x).reshape(len(x), -1), norm, axis=1)
    assert (sizes <= eps * (1 + 1e-5)).all()
    np.testing.assert_allclose(found.norm, sizes, rtol=1e-4, atol=1e-6)
    z = numbers(x_adv)
    clear = np.abs(z - z[np.arange(len(y)), y][:, None])[np.arange(5)[None] != y[:, None]].reshape(len(y), -1).min(1) > 1e-4
    assert ((z.argmax(1) != y) == np.asarray(found.success))[clear].all()
    assert np.asarray(found.success).mean() > (numbers(x).argmax(1) != y).mean() + 0.1
    np.testing.assert_allclose(alone.x_adv[:, 0], found.x_adv, atol=2e-5)
    np.testing.assert_array_equal(alone.queries[:, 0], found.queries)
    np.testing.assert_array_equal(none.x_adv, x)


def test_the_fast_gradient_has_norm_eps_inside_of_the_box_and_fgsm_is_its_definition(net):
    logits_fn, _, x, y = net
    x = 0.4 + 0.2 * x

    @jax.jit
    def found(x, y):
        norms = jax.lax.map(lambda eps: attacks.fast_gradient(logits_fn, x, y, KEY, eps).norm, jnp.float32([0.05, 0.2]))
        g = jax.grad(lambda x: losses.log_ratio(logits_fn(x), y).sum())(x)
        return norms, g, [attacks.fgsm(logits_fn, x, y, KEY, 0.1, targeted=targeted) for targeted in (False, True)]

    norms, g, (away, towards) = found(x, y)
    np.testing.assert_allclose(norms, np.broadcast_to([[0.05], [0.2]], norms.shape), rtol=1e-5)
    np.testing.assert_allclose(away.x_adv, x + 0.1 * np.sign(g), atol=1e-6)
    np.testing.assert_allclose(towards.x_adv, x - 0.1 * np.sign(g), atol=1e-6)
    np.testing.assert_array_equal(towards.success, logits_fn(towards.x_adv).argmax(1) == y)


def test_more_restarts_never_do_worse_and_queries_are_counted(net):
    logits_fn, _, x, y = net
    runs = jax.device_get(jax.jit(lambda x, y: [attacks.pgd(logits_fn, x, y, KEY, 0.05, steps=4, restarts=n) for n in (1, 2, 4)])(x, y))
    for fewer, more in zip(runs, runs[1:], strict=False):
        assert not (fewer.success & ~more.success).any()
        assert (np.asarray(more.loss) >= np.asarray(fewer.loss))[np.asarray(fewer.success)].all()
    assert (runs[2].loss > runs[0].loss + 1e-3).any()  # they start at other images
    assert [set(np.asarray(run.queries).tolist()) for run in runs] == [{5}, {10}, {20}]


def test_a_row_that_succeeds_stays_and_is_not_asked_again(net):
    logits_fn, numbers, x, y = net
    found, on = jax.jit(lambda x, y: [attacks.iterative_sign(logits_fn, x, y, KEY, 0.1, stop=stop) for stop in (True, False)])(x, y)
    wrong = numbers(x).argmax(1) != y
    np.testing.assert_array_equal(found.x_adv[wrong], x[wrong])
    assert set(np.asarray(found.queries)[wrong].tolist()) == {1} and (np.asarray(on.queries) == 21).all()
    np.testing.assert_array_equal(found.queries[~found.success], 21)
    assert (found.norm <= on.norm + 1e-6).all() and float(found.norm.mean()) < float(on.norm.mean())


def test_least_likely_takes_the_class_of_x_and_counts_any_other_class(net):
    logits_fn, _, x, y = net
    found = jax.jit(lambda x, y: attacks.least_likely(logits_fn, x, y, KEY, 0.4))(x, y)
    target = logits_fn(x).argmin(1).astype(jnp.int32)
    at = logits_fn(found.x_adv).argmax(1)
    assert float((at == target).mean()) > 0.4
    np.testing.assert_array_equal(found.success, at != y)


def test_an_ensemble_has_the_mean_probabilities_and_fools_each_of_its_functions(net):
    logits_fn, _, x, y = net
    other = perceptron(7)[0]
    both = attacks.ensemble([logits_fn, other], [3, 1])
    mean = 0.75 * softmax(logits_fn(x), 1) + 0.25 * softmax(other(x), 1)
    np.testing.assert_allclose(softmax(jax.jit(both)(x), 1), mean, rtol=1e-5)
    x_adv = jax.jit(lambda x, y: attacks.pgd(attacks.ensemble([logits_fn, other]), x, y, KEY, 0.3))(x, y).x_adv
    assert min(float((f(x_adv).argmax(1) != y).mean()) for f in (logits_fn, other)) > 0.8
    for wrong in ([], None):
        with pytest.raises(ConfigError, match="logits_fns: wanted at least one" if wrong == [] else "weights: wanted 2 positive"):
            attacks.ensemble([logits_fn, other] if wrong is None else [], [1, 0])


# --- Bad input ---------------------------------------------------------------------------------------------------------------------------


def in_training(layer):
    """A network in training mode."""
    net = nnx.Sequential(nnx.Linear(16, 16, rngs=nnx.Rngs(1)), layer)
    return lambda x: net(x.reshape(x.shape[0], -1))


def noisy(logits_fn):
    draws = np.random.default_rng(0)
    return lambda x: logits_fn(x) + jnp.float32(draws.normal())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eps": -0.1}, r"eps: wanted a number in 0\.\.1, since no two images of the box are farther apart, got -0\.1"),
        ({"eps": 1.5}, r"eps: wanted a number in 0\.\.1, .* got 1\.5"),
        ({"eps": float("nan")}, "eps: wanted"),
        ({"eps": "0.1"}, r"eps: wanted a number in 0\.\.1, .* got '0\.1'"),
        ({"eps": None}, r"eps: wanted a number in 0\.\.1, .* got None"),
        ({"norm": 2, "eps": 4.5}, r"eps: wanted a number in 0\.\.4, "),
        ({"norm": 3}, r"norm: wanted 1, 2 or jnp\.inf, got 3"),
        ({"x": np.full((2, 4, 4, 1), 255.0, np.float32)}, r"x: wanted images with values in 0\.\.1, got values from 255 to 255"),
        ({"x": np.full((2, 4, 4, 1), np.nan, np.float32)}, r"x: wanted images with values in 0\.\.1"),
        ({"x": np.zeros((2, 4, 4, 1), np.uint8)}, r"x: wanted real numbers in 0\.\.1, got uint8; on_unit_box"),
        ({"x": np.zeros((0, 4, 4, 1), np.float32)}, "x: wanted a batch of images"),
        ({"y": np.array([0, 5])}, r"y: wanted classes in 0\.\.4, got 5"),
        ({"y": np.array([0, -1])}, r"y: wanted classes in 0\.\.4, got -1"),
        ({"y": np.array([0.0, 1.0])}, r"y: wanted classes, integers \[B\], got float64"),
        ({"y": np.array([0])}, r"y: wanted shape \[2\], one class for each image, got \[1\]"),
        ({"logits_fn": lambda x: jax.nn.softmax(perceptron()[0](x))}, "logits_fn: wanted logits, got probabilities"),
        ({"logits_fn": noisy(perceptron()[0])}, "logits_fn: wanted the same logits for the same images, got answers .* apart"),
        ({"logits_fn": lambda x: perceptron()[0](x) * np.nan}, "logits_fn: wanted finite logits"),
        ({"logits_fn": lambda x: x}, r"logits_fn: wanted logits \[2, K\]"),
        ({"key": 0}, r"key: wanted a key such as jax\.random\.key\(0\)"),
        ({"key": jax.random.split(KEY, 3)}, "key: wanted one key, or 2"),
        ({"step_size": 0.001}, r"step_size: wanted 2 eps / steps = 0\.005 or more"),
        ({"logits_fn": None}, "logits_fn: wanted a function from images to logits, got None"),
        (
            {"logits_fn": lambda x: np.asarray(x).reshape(2, -1)},
            r"logits_fn: wanted a function of jax arrays, with jax\.numpy inside, got one",
        ),
        ({"logits_fn": in_training(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))}, "logits_fn: wanted the same logits for the same images"),
        (
            {"logits_fn": in_training(nnx.BatchNorm(16, rngs=nnx.Rngs(0)))},
            r"logits_fn: wanted a function that changes nothing, .* model\.eval",
        ),
        ({"keep": "firts"}, "keep: wanted best, last, first, got 'firts'"),
        ({"steps": 2.5}, r"steps, restarts: wanted integers, 1 or more, got 2\.5, 1"),
        ({"steps": 0}, "steps, restarts: wanted integers, 1 or more"),
        ({"box": (1.0, 0.0)}, "box: wanted two finite numbers"),
        ({"box": (0.0, 0.5, 1.0)}, "box: wanted two finite numbers"),
        ({"box": ("a", "b")}, "box: wanted two finite numbers"),
        ({"steps": None}, "steps, restarts: wanted integers, 1 or more, got None, 1"),
        ({"restarts": True}, "steps, restarts: wanted integers, 1 or more, got 40, True"),
        ({"box": None}, "box: wanted two finite numbers, the lower one first, got None"),
    ],
)
def test_bad_input_is_one_clear_line(unchecked, change, said):
    given = {"logits_fn": perceptron()[0], "x": np.full((2, 4, 4, 1), 0.5, np.float32), "y": np.array([0, 1]), "key": KEY, "eps": 0.1}
    with pytest.raises(ConfigError, match=said) as error:
        attacks.pgd(**given | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("attack", [attacks.iterative_sign, attacks.least_likely])
def test_an_eps_that_is_divided_is_looked_at_first(attack):
    logits_fn, x, y = perceptron()[0], np.full((2, 4, 4, 1), 0.5, np.float32), np.array([0, 1])
    for eps in (None, "0.1", -0.1):
        with pytest.raises(ConfigError, match=r"^eps: wanted a number in 0\.\.1, "):
            attack(logits_fn, x, y, KEY, eps)


def test_an_ensemble_is_of_functions_with_the_same_classes():
    logits_fn, x, y = perceptron()[0], np.full((2, 4, 4, 1), 0.5, np.float32), np.array([0, 1])
    both = attacks.ensemble([logits_fn, lambda x: logits_fn(x)[:, :3]])
    with pytest.raises(ConfigError, match=r"^logits_fns: wanted functions with the same classes, got logits of shapes \[2, 5\], \[2, 3\]$"):
        attacks.fgsm(both, x, y, KEY, 0.1)


# --- Foolbox -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fgsm", "iterative", "iterative 2"])
def test_steps_are_those_of_foolbox(name):
    fb = pytest.importorskip("foolbox")
    logits_fn, _ = perceptron(scale=5)
    x = np.random.default_rng(2).uniform(0, 1, (40, 4, 4, 1)).astype(np.float32)
    y = logits_fn(jnp.asarray(x)).argmax(1).astype(jnp.int32)
    theirs, norm, steps, size, box = {
        "fgsm": (fb.attacks.LinfFastGradientAttack(), inf, 1, 0.1, (0, 1)),
        "iterative": (fb.attacks.LinfBasicIterativeAttack(rel_stepsize=0.1, steps=20), inf, 20, 0.01, (0, 1)),
        "iterative 2": (fb.attacks.L2BasicIterativeAttack(rel_stepsize=0.2, steps=10), 2, 10, 0.02, (-9, 9)),
    }[name]
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        _, clipped, _ = theirs(fb.JAXModel(logits_fn, bounds=box), jnp.asarray(x), y, epsilons=[0.1])
    options = {"steps": steps, "step_size": size, "random_start": False, "keep": "last", "box": (float(box[0]), float(box[1]))}
    ours = attacks.pgd(logits_fn, x, y, KEY, 0.1, norm, **options)
    np.testing.assert_allclose(ours.x_adv, clipped[0], atol=1e-5)


def test_a_function_with_weights_is_an_argument_of_jit(net):
    """Another model of the same kind uses the same compiled program."""
    _, _, x, y = net
    first, second = (Partial(lambda w, x: jnp.matmul(x.reshape(x.shape[0], -1), w), jnp.eye(16)[:, :5] * s) for s in (1.0, -1.0))
    second = Partial(first.func, second.args[0])
    run = jax.jit(attacks.fgsm)
    results = [run(each, x, y, KEY, 0.1).x_adv for each in (first, second)]
    assert run._cache_size() == 1 and (results[0] != results[1]).any()
