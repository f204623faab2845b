"""MADE and NADE: enumeration, the exact dependencies of twenty random orders, the table of XOR, and the recursion as a plain loop."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from all_models import model_of, with_weights
from flax import nnx
from scipy.special import expit, logsumexp
from scipy.stats import chisquare

from jaxgen.errors import ConfigError
from jaxgen.models import MADE, MADEConfig, NADEConfig
from jaxgen.models.made import masks_of
from jaxgen.places import Places

KEY = jax.random.key(0)
MIXTURE = MADEConfig((2, 5, 1), 2, hidden=(12, 10), masks=3, shuffled=True, direct=True)


def every_image(shape, levels: int) -> np.ndarray:
    """All images of this shape."""
    d = int(np.prod(shape))
    return (np.arange(levels**d)[:, None] // levels ** np.arange(d) % levels).reshape(-1, *shape).astype(np.uint8)


@jax.jit
def log_prob(model, image):
    """log p, compiled."""
    return model.log_prob(image)


@pytest.mark.parametrize(
    "config",
    [MIXTURE, MADEConfig((2, 5, 1), 2, hidden=(3,)), MADEConfig((1, 2, 3), 3, hidden=(7,), masks=2), NADEConfig((2, 5, 1), 2, hidden=7)],
    ids=["MADE, orders", "MADE, few units", "MADE, colour", "NADE"],
)
def test_the_probabilities_of_all_images_sum_to_one(config):
    logs = np.asarray(log_prob(with_weights(config), every_image(config.image_shape, config.levels)), np.float64)
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-5) and np.ptp(logs) > 1


def test_the_smallest_image_is_a_probability_too():
    logs = log_prob(with_weights(MADEConfig((1, 1, 1), 5, hidden=(2,))), every_image((1, 1, 1), 5))
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("fields", [{"hidden": (5, 9)}, {"hidden": (2,), "direct": True}, {"hidden": (), "direct": True}], ids=str)
def test_of_twenty_random_orders_each_output_sees_all_dimensions_before_it_and_no_others(fields):
    config = MADEConfig((2, 3, 1), 2, masks=20, shuffled=True, **fields)
    model, x = with_weights(config), every_image((6,), 2)
    model = jax.tree.map(lambda leaf: leaf + 5 if leaf.ndim == 1 else abs(leaf), model)  # so that no unit is 0 for all inputs
    flipped = np.where(np.eye(6, dtype=bool)[:, None], 1 - x[None], x[None]).reshape(-1, 6)  # dimension e of row block e
    outputs = jax.jit(lambda model, x: jax.lax.map(partial(model.parameters, x), jnp.arange(20)))(model, np.concatenate([x, flipped]))
    outputs = np.asarray(outputs).reshape(20, 7, 64, 6)
    sees = (outputs[:, 1:] != outputs[:, :1]).any(2).swapaxes(1, 2)  # [m, output d, input e]
    orders = masks_of(config).order
    place = orders.argsort(axis=1)
    np.testing.assert_array_equal(sees, place[:, :, None] > place[:, None])
    assert len({tuple(order) for order in orders}) == 20


def test_numbers_of_units_are_spread_evenly_in_an_arrangement_of_each_mask():
    config = MADEConfig((2, 3, 1), 2, hidden=(7, 4), masks=2)
    first, second = masks_of(config).units
    np.testing.assert_array_equal(np.sort([np.bincount(row, minlength=6)[1:] for row in first]), [[1, 1, 1, 2, 2]] * 2)
    assert all(len(set(row)) == 4 for row in second) and (first[0] != first[1]).any()
    np.testing.assert_array_equal(masks_of(config).order, [np.arange(6)] * 2)


@pytest.mark.parametrize("d", [2, 3])
def test_it_learns_the_table_of_xor(d):
    """The last of d values is the XOR of those before: of two values that are each other's opposite, and of three."""
    rows = every_image((1, d, 1), 2)
    wanted = rows.reshape(-1, d).sum(1) % 2 == d % 2 if d == 3 else rows.sum((1, 2, 3)) == 1
    image, optimizer = jnp.asarray(rows[wanted]), optax.adam(0.05)
    graph, params, rest = nnx.split(MADE(MADEConfig((1, d, 1), 2, hidden=(16,)), rngs=nnx.Rngs(0)), nnx.Param, ...)

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda params: nnx.merge(graph, params, rest).loss({"image": image}, KEY)[0])(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):  # which optax asks for
        (params, _), _ = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=300))(params)
    table = np.exp(log_prob(nnx.merge(graph, params, rest), rows))
    np.testing.assert_allclose(table, wanted / wanted.sum(), atol=0.01)


def test_the_ensemble_averages_probabilities():
    model, image = with_weights(MIXTURE), jnp.asarray(every_image((2, 5, 1), 2)[:64])
    masks, x = masks_of(MIXTURE), image.reshape(64, -1)
    each = []
    for m in range(3):  # the chain over the order of one set of masks
        parameters = np.asarray(model.parameters(x, jnp.int32(m)), np.float64)[..., 0]
        log_p = np.where(x == 1, np.log(expit(parameters)), np.log(expit(-parameters)))
        each.append(sum(log_p[:, d] for d in masks.order[m]))
    np.testing.assert_allclose(log_prob(model, image), logsumexp(each, axis=0) - np.log(3), rtol=1e-5)
    assert np.ptp(each, axis=0).min() > 0.01, "the masks differ"


@pytest.mark.parametrize("config", [MIXTURE, replace(MIXTURE, levels=4, shuffled=False, hidden=(4, 30))], ids=["binary", "four levels"])
def test_the_cached_sampler_draws_what_full_passes_draw(config):
    model, n = with_weights(config), 12
    generator = np.random.default_rng(0)
    image, mask = generator.integers(0, config.levels, (n, 2, 5, 1), np.uint8), generator.random((n, 2, 5)) < 0.3
    for known, temperature in [(None, 1.0), ((image, mask), 2.0)]:
        cached, naive = (np.asarray(model.sample(KEY, n, known, temperature, method)) for method in ("cached", "naive"))
        np.testing.assert_array_equal(cached, naive)
        assert cached.shape == (n, 2, 5, 1) and cached.dtype == np.uint8
        assert known is None or (cached[mask] == image[mask]).all()
    with pytest.raises(ConfigError, match="method: wanted cached or naive, got fixed_point"):
        model.sample(KEY, 2, method="fixed_point")
    with pytest.raises(ConfigError, match="model: wanted a model that draws all examples in one order, got MADE"):
        Places(model, 2)


def test_draws_follow_the_probabilities():
    model, draws = with_weights(replace(MIXTURE, image_shape=(1, 5, 1), hidden=(6,))), 20_000
    probability = np.exp(np.asarray(log_prob(model, every_image((1, 5, 1), 2)), np.float64))
    drawn = np.asarray(model.sample(jax.random.key(1), draws)).reshape(draws, 5) @ 2 ** np.arange(5)
    assert np.ptp(np.log(probability)) > 1
    assert chisquare(np.bincount(drawn, minlength=32), draws * probability / probability.sum()).pvalue > 1e-4


def test_a_training_step_takes_one_of_the_masks():
    model, image = with_weights(MIXTURE), jnp.asarray(every_image((2, 5, 1), 2)[:16])
    found = {float(model.loss({"image": image}, jax.random.key(seed))[1]["nats"]) for seed in range(12)}
    each = [-np.asarray(model._terms(image.reshape(16, -1), jnp.int32(m))).sum(-1).mean() for m in range(3)]
    np.testing.assert_allclose(sorted(found), sorted(each), rtol=1e-5)


def test_the_recursion_of_nade_is_the_plain_loop_over_dimensions():
    model = model_of("nade of a label")
    config = model.config
    image = jax.device_put(np.random.default_rng(0).integers(0, config.levels, (6, *config.image_shape), np.uint8))
    label = np.arange(6) % 3
    w, c, v, b, e = (
        np.asarray(array[...], np.float64) for array in (model.inputs, model.input_bias, model.outputs, model.output_bias, model.embedding)
    )
    x, expected = np.asarray(image).reshape(6, -1), np.zeros(6)
    for row in range(6):
        for d in range(x.shape[1]):
            a = c + e[label[row]] + sum(w[j] * x[row, j] / (config.levels - 1) for j in range(d))
            logits = expit(a) @ v[d] + b[d]
            expected[row] += logits[x[row, d]] - logsumexp(logits)
    np.testing.assert_allclose(jax.jit(lambda model: model.log_prob(image, label))(model), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"masks": 0}, "masks: wanted 1 or more, got 0"),
        ({"hidden": (4, 0)}, r"hidden: wanted positive sizes, got \(4, 0\)"),
        ({"levels": 1}, "levels: wanted 2..65536, got 1"),
        ({"mask_seed": -1}, "mask_seed: wanted 0 or more, got -1"),
    ],
)
def test_errors_of_the_configuration(fields, message):
    with pytest.raises(ConfigError, match=message):
        MADEConfig(**fields)
    with pytest.raises(ConfigError, match="hidden: wanted 1 or more, got 0"):
        NADEConfig(hidden=0)
