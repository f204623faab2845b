"""Accuracy under attack: attacks without eps, rounding, batches, and what cannot be used."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from linear_softmax import linear, perceptron

from jaxgen import attacks
from jaxgen.errors import ConfigError

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def net():
    """A perceptron, 40 images, and the classes that it predicts but for some."""
    logits_fn, numbers = perceptron()
    x = np.random.default_rng(2).uniform(0, 1, (40, 4, 4, 1)).astype(np.float32)
    y = numbers(x).argmax(1).astype(np.int32)
    y[::8] = (y[::8] + 1) % 5
    return logits_fn, numbers, x, y


def test_an_attack_without_eps_is_run_once_and_counts_up_to_each_eps(net):
    logits_fn, _, x, y = net
    runs = []

    def counted(logits_fn, x, y, key):
        runs.append(1)
        return attacks.deepfool(logits_fn, x, y, key)

    found = attacks.deepfool(logits_fn, x, y, KEY)
    clean, *table = attacks.robust_accuracy(logits_fn, x, y, KEY, [0.1, 0.2, 0.4], counted, levels=9)
    assert len(runs) == 1
    holds = np.asarray(logits_fn(attacks.to_level(found.x_adv, 9)).argmax(1) == y)
    for row in table:
        fooled = np.asarray(found.success & (found.norm <= row.eps))
        assert row.rounded == pytest.approx((clean.right & (holds | np.asarray(found.norm > row.eps))).mean())
        np.testing.assert_array_equal(row.right, clean.right & ~fooled)
        assert row.norm == pytest.approx(np.asarray(found.norm)[clean.right & fooled].mean()) or np.isnan(row.norm)
    assert table[0].accuracy > table[2].accuracy


def test_the_last_batch_may_be_smaller():
    logits_fn, _, _, x, y = linear(n=40)
    whole, parts = (attacks.robust_accuracy(logits_fn, x, y, KEY, [0.02], attacks.fgsm, batch_size=n) for n in (40, 16))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.right, other.right)
        np.testing.assert_allclose(one[:6], other[:6], rtol=1e-6)


def test_an_eps_beyond_the_box_is_one_line_in_the_norm_of_the_attack(net):
    logits_fn, x, y = net[0], net[2][:2], net[3][:2]
    with pytest.raises(ConfigError, match=r"^eps: wanted a number in 0\.\.1, since no two images of the box are farther apart, got 2\.0"):
        attacks.robust_accuracy(logits_fn, x, y, KEY, [0.1, 2.0], attacks.fgsm)
    assert len(attacks.robust_accuracy(logits_fn, x, y, KEY, [2.0], partial(attacks.fast_gradient, norm=2))) == 2


def test_one_eps_where_many_are_wanted_is_one_line(unchecked, net):
    logits_fn, _, x, y = net
    with pytest.raises(ConfigError, match=r"eps: wanted a sequence of numbers, got 0\.1; such as eps="):
        attacks.robust_accuracy(logits_fn, x, y, KEY, 0.1, attacks.fgsm)
    for options, said in (
        ({"attack": None}, r"attack: wanted a function \(logits_fn, x, y, key, eps\) -> Result, or without eps, got None"),
        ({"attack": lambda f, x, y, key, eps: x}, "attack: wanted a function that gives a Result, got .*Tracer"),
        ({"attack": attacks.fgsm, "batch_size": 0}, "batch_size: wanted a positive integer, got 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            attacks.robust_accuracy(logits_fn, x, y, KEY, [0.1], **options)
    for attack in (attacks.iterative_sign, attacks.least_likely):
        with pytest.raises(ConfigError, match="steps: wanted a positive integer, got 0"):
            attack(logits_fn, x, y, KEY, 0.1, steps=0)
    with pytest.raises(ConfigError, match=r"weights: wanted 2 positive numbers, one for each function, got \[1, nan\]"):
        attacks.ensemble([logits_fn, logits_fn], [1, np.nan])


@pytest.mark.parametrize("kind", ["nnx", "linen", "equinox"])
def test_models_of_flax_and_equinox_are_attacked_as_the_plain_function_is(kind):
    plain, weights, bias, x, y = linear(n=20)
    w, b = jnp.asarray(weights.T, jnp.float32), jnp.asarray(bias, jnp.float32)
    if kind == "nnx":
        layer = nnx.Linear(16, 5, precision="highest", rngs=nnx.Rngs(0))
        layer.kernel[...], layer.bias[...] = w, b
        model = nnx.Sequential(lambda x: x.reshape(x.shape[0], -1), layer)
    elif kind == "linen":
        flat = linen.Sequential([lambda x: x.reshape(x.shape[0], -1), linen.Dense(5, precision="highest")])
        model = partial(flat.apply, {"params": {"layers_1": {"kernel": w, "bias": b}}})
    else:
        eqx = pytest.importorskip("equinox")
        layer = eqx.nn.Linear(16, 5, key=KEY)
        layer = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (w.T, b))
        model = jax.vmap(eqx.nn.inference_mode(eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), layer])))
    wanted, found = (jax.jit(lambda x, y, f=f: attacks.pgd(f, x, y, KEY, 0.02, steps=5))(x, y) for f in (plain, model))
    np.testing.assert_allclose(found.x_adv, wanted.x_adv, atol=1e-5)
    np.testing.assert_array_equal(found.success, wanted.success)
    accuracies = [attacks.robust_accuracy(f, x, y, KEY, [0.02], attacks.fgsm)[1].accuracy for f in (plain, model)]
    assert accuracies[0] == accuracies[1] < 0.9


PLAIN, SQUARE = perceptron()[0], jnp.ones((3, 3, 1))
IMAGES = (np.full((2, 4, 4, 1), 0.5, np.float32), np.array([0, 1]), KEY)
WRONG = {
    "loss": lambda: attacks.pgd(PLAIN, *IMAGES, 0.1, loss="margin"),
    "loss ": lambda: attacks.universal(PLAIN, *IMAGES, 0.1, loss=None),
    "optimizer": lambda: attacks.pgd(PLAIN, *IMAGES, 0.1, optimizer="adam"),
    "transformation": lambda: attacks.eot(PLAIN, *IMAGES, 0.1, None),
    "transformation ": lambda: attacks.patch(PLAIN, IMAGES[0], 1, KEY, 2, transformation="rotated"),
    "transformations": lambda: attacks.chain(attacks.noised(), 3),
    "directions": lambda: attacks.estimated(PLAIN, *IMAGES, 0.1, directions="nes"),
    "directions ": lambda: attacks.principal_directions(KEY, (4, 4, 1), np.ones(16)),
    "value": lambda: attacks.estimate("loss", jnp.asarray(IMAGES[0]), jax.random.split(KEY, 2)),
    "levels": lambda: attacks.to_unit(np.zeros((1, 4, 4, 1), np.uint8), 1),
    "levels ": lambda: attacks.to_level(IMAGES[0], 2.5),
    "levels  ": lambda: attacks.robust_accuracy(PLAIN, *IMAGES, [0.1], attacks.fgsm, levels=np.nan),
    "net": lambda: attacks.by_net(lambda x: x * np.nan, PLAIN, *IMAGES),
    "logits_fn": lambda: attacks.audit(lambda x: PLAIN(x)[:1], *IMAGES[:2]),
    "square": lambda: attacks.pasted(jnp.asarray(IMAGES[0]), SQUARE[..., 0], jax.random.split(KEY, 2)),
    "square ": lambda: attacks.pasted(jnp.asarray(IMAGES[0]), jnp.ones((5, 3, 1)), jax.random.split(KEY, 2)),
    "shape": lambda: attacks.invert(PLAIN, np.ones((2, 5), np.float32), (4, 4), KEY),
    "reach": lambda: attacks.plane(PLAIN, IMAGES[0][0], IMAGES[0][0] + 0.1, KEY, reach=0),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_function_no_level_or_of_another_shape_is_one_line(unchecked, name):
    with pytest.raises(ConfigError, match=f"^{name.strip()}: wanted ") as error:
        WRONG[name]()
    assert "\n" not in str(error.value)
