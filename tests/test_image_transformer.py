"""What is particular to the Image Transformer: two-dimensional blocks, their order, and the small image of super-resolution.

The properties of every model are in test_models.py, where this one has 1-D blocks, full attention and both heads.
"""

import dataclasses
from functools import lru_cache

import causal_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import all_images
from scipy.stats import chisquare
from step_by_step import step_by_step
from test_models import drawn, full_pass, images_of, log_prob, seen_inputs, with_noise

from jaxgen import cli, data, run_commands, sampling
from jaxgen.data.box_filter import box_filter
from jaxgen.errors import ConfigError
from jaxgen.experiment import Experiment
from jaxgen.layers.attention import attend, make_blocks
from jaxgen.models import ImageTransformerConfig
from jaxgen.reports import drawing
from jaxgen.sampling import METHODS
from jaxgen.sharding import make_mesh
from jaxgen.training import OptimizerConfig, init_state, make_optimizer, make_train_step

SMALL = {"layers": 1, "width": 24, "heads": 2, "hidden": 16, "mixtures": 2, "encoder_layers": 1, "dropout": 0.0}


def make(image_shape=(4, 5, 1), levels=4, **fields):
    return _made(ImageTransformerConfig(image_shape=image_shape, levels=levels, **{**SMALL, **fields}))


@lru_cache(maxsize=8)
def _made(config):
    return with_noise(config, noise=0.2)


TWO_DIMENSIONS = {
    "categorical": {"image_shape": (5, 4, 3), "block": (2, 3), "memory": (1, 2), "layers": 2},
    "mixture": {"image_shape": (4, 5, 3), "block": (3, 2), "memory": (2, 1), "head": "mixture"},
    "no memory": {"image_shape": (5, 5, 1), "block": (2, 2), "memory": (0, 0)},
}
two_dimensions = pytest.mark.parametrize("case", TWO_DIMENSIONS.values(), ids=TWO_DIMENSIONS.keys())


# --- Blocks -------------------------------------------------------------------------------------------------------------------------


def test_the_order_of_a_small_image_is_the_one_drawn_by_hand():
    places = make_blocks(3, 5, 1, (2, 3), (1, 1)).order
    number = np.zeros((3, 5), int)
    number[places[:, 0], places[:, 1]] = np.arange(15)
    np.testing.assert_array_equal(number, [[0, 1, 2, 6, 7], [3, 4, 5, 8, 9], [10, 11, 12, 13, 14]])
    assert [tuple(place) for place in make_blocks(1, 2, 3, (), ()).order] == [(0, c, k) for c in range(2) for k in range(3)]


@pytest.mark.parametrize(
    ("shape", "block", "memory"),
    [((5, 4, 3), (2, 3), (1, 2)), ((4, 6, 1), (7,), (5,)), ((3, 3, 3), (4,), (0,)), ((2, 3, 1), (9, 9), (9, 9)), ((3, 4, 1), (), ())],
    ids=str,
)
def test_blocks_are_the_rule_by_brute_force(shape, block, memory):
    config = ImageTransformerConfig(image_shape=shape, block=block, memory=memory)
    blocks, order = make_blocks(*shape, block, memory), causal_sets.image_transformer_order(config)
    assert [tuple(place) for place in blocks.order] == order
    allowed, read = np.asarray(blocks.allowed), np.zeros((len(order), len(order)), bool)
    for b, i, j in np.argwhere(allowed):
        if blocks.query[b, i] >= 0:
            read[blocks.query[b, i], blocks.memory[b, j]] = True
    wanted = [[j <= i and causal_sets.image_transformer_remembers(config, a, b) for j, b in enumerate(order)] for i, a in enumerate(order)]
    np.testing.assert_array_equal(read, wanted)
    for i in range(len(order)):
        assert blocks.memory[blocks.number[i], blocks.slot[i]] == i, "a place lies in the memory of its own block"


@two_dimensions
def test_every_output_sees_exactly_what_the_blocks_allow(case):
    model = make(**case)
    declared = causal_sets.image_transformer(model.config)
    seen = np.asarray(seen_inputs(model, images_of(5, 8, model.config)))
    for by_some_or_all in (seen.any(3), seen.all(3)):
        np.testing.assert_array_equal(by_some_or_all.reshape(declared.shape), declared)


@two_dimensions
def test_a_step_equals_the_full_pass(case):
    model = make(**case)
    image = images_of(6, 4, model.config)
    np.testing.assert_allclose(step_by_step(model, image), full_pass(model, image), atol=1e-5, rtol=0)


@two_dimensions
def test_all_methods_give_the_same_bits(case):
    model, n = make(**case), 3
    methods = METHODS if model.config.layers == 1 else METHODS[:2]  # the fixed point takes of a model what naive takes
    given, mask = images_of(8, n, model.config), jax.random.bernoulli(jax.random.key(9), 0.4, (n, *model.config.image_shape[:2]))
    for known, temperature in [(None, 1.0), ((given, mask), 0.7)]:
        images = {m: np.asarray(model.sample(jax.random.key(1), n, known=known, temperature=temperature, method=m)) for m in methods}
        for method in methods:
            np.testing.assert_array_equal(images[method], images["naive"])
    np.testing.assert_array_equal(images["naive"][mask], given[mask])


@pytest.mark.parametrize("blocks", [{"block": ()}, {"block": (70,), "memory": (40,)}], ids=["full attention", "long blocks"])
def test_attention_in_parts_and_a_growing_cache_are_the_same_model(blocks):
    """Enough places for several parts of the queries of a block, and of the cache."""
    model, n = make((13, 11, 1), levels=2, **{"memory": (), **blocks}), 3
    assert model.rooms == (() if blocks["block"] else (64, 128, 143)) and model.ends == ((70, 140, 143) if blocks["block"] else ())
    image = images_of(6, n, model.config)
    np.testing.assert_allclose(step_by_step(model, image), full_pass(model, image), atol=1e-5, rtol=0)
    drawn = model.sample(jax.random.key(1), n)
    np.testing.assert_array_equal(model.sample(jax.random.key(1), n, method="fixed_point"), drawn)


def test_draws_follow_the_probabilities_of_all_images():
    model = make((3, 3, 1), levels=2, block=(2, 2), memory=(1, 1))
    probability = np.exp(np.asarray(log_prob(model, jnp.asarray(all_images((3, 3, 1)))), np.float64))
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    draws = 20_000
    image = np.asarray(model.sample(jax.random.key(0), draws)).reshape(draws, 9).astype(int)
    counts = np.bincount(image @ (1 << np.arange(9)[::-1]), minlength=512)
    rare = probability * draws < 5
    expected, observed = (np.append(x[~rare], x[rare].sum()) for x in (probability * draws, counts))
    assert chisquare(observed, expected * draws / expected.sum()).pvalue > 1e-4


def test_what_comes_later_in_the_order_is_not_read_by_a_completion():
    model, n = make(**TWO_DIMENSIONS["no memory"]), 3
    before, after = (tuple(part[:, :2].T) for part in np.split(model.order, [12]))
    given, mask = images_of(8, n, model.config), np.zeros((5, 5), bool)
    mask[after] = True
    one, two = (np.asarray(model.sample(jax.random.key(1), n, known=(x, mask))) for x in (given, 3 - given))
    np.testing.assert_array_equal(one[:, *before], two[:, *before])
    assert (one[:, *after] != two[:, *after]).all()


def test_groups_of_images_are_drawn_like_one_batch(monkeypatch):
    model = make(**TWO_DIMENSIONS["no memory"])
    together = np.asarray(model.sample(jax.random.key(1), 5))
    monkeypatch.setattr(sampling, "CACHE_BYTES", 1)
    sampling._sample.clear_cache()
    assert sampling.group_size(5, model.init_cache, model.condition(5)) == 2
    np.testing.assert_array_equal(model.sample(jax.random.key(1), 5), together)


def test_in_bfloat16_the_products_of_attention_give_float32():
    """Read off the program: a CPU computes them so anyway, an accelerator rounds to what is asked for."""
    query, keys, values = (jax.random.normal(jax.random.key(i), (2, 9, 8), jnp.bfloat16) for i in range(3))
    products = [e for e in jax.make_jaxpr(attend)(query, keys, values).jaxpr.eqns if e.primitive.name == "dot_general"]
    assert [e.outvars[0].aval.dtype for e in products] == [jnp.float32] * 2
    found, exact = attend(query, keys, values), attend(*(x.astype(jnp.float32) for x in (query, keys, values)))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02)


# --- Super-resolution ---------------------------------------------------------------------------------------------------------------


def test_the_box_filter_is_the_mean_rounded_half_up():
    image = np.random.default_rng(0).integers(0, 256, (3, 6, 4, 3)).astype(np.uint8)
    image[0] = 255
    image[1, :3, :2, 0] = [[0, 1], [0, 1], [0, 1]]  # mean 1/2
    boxes = np.asarray(image, object).reshape(3, 2, 3, 2, 2, 3).sum((2, 4))
    wanted = np.array([[(2 * int(total) + 6) // 12 for total in row.ravel()] for row in boxes]).reshape(3, 2, 2, 3)
    small = np.asarray(box_filter(jnp.asarray(image), (2, 2, 3)))
    np.testing.assert_array_equal(small, wanted)
    assert small.dtype == np.uint8 and small[1, 0, 0, 0] == 1 and (small[0] == 255).all()
    np.testing.assert_array_equal(box_filter(jnp.asarray(image), (6, 4, 3)), image)


UPSCALE = {"image_shape": (4, 4, 3), "low_resolution": (2, 1, 3), "block": (2, 3), "memory": (1, 2), "num_classes": 2}


@pytest.mark.parametrize("head", ["categorical", "mixture"])
def test_the_small_image_reaches_every_output_and_leaves_the_order_alone(head):
    model = make(**UPSCALE, head=head)
    image, label = images_of(5, 4, model.config), jnp.zeros(4, jnp.int32)
    small = images_of(6, 4, dataclasses.replace(model.config, image_shape=(2, 1, 3)))
    full = jax.jit(lambda model, image, small: model.logits(image, label, low_resolution=small))
    one, two = full(model, image, small), full(model, image, 3 - small)
    assert (one != two).reshape(4, -1, one.shape[-1]).any(-1).all(), "a position that ignores the small image"
    order = model.order
    changed = np.asarray(image).copy()
    changed[:, *order[20 if head == "categorical" else 7 :].T] ^= 3
    before = order[: 21 if head == "categorical" else 8].T  # the first changed place itself sees nothing of the change
    np.testing.assert_array_equal(np.asarray(full(model, jnp.asarray(changed), small))[:, *before], np.asarray(one)[:, *before])
    np.testing.assert_array_equal(full(model, image, box_filter(image, (2, 1, 3))), full_pass(model, image, label))


def test_upscaling_draws_the_same_bits_with_the_cache_and_without():
    model, n, label = make(**UPSCALE), 3, jnp.arange(3, dtype=jnp.int32) % 2
    image = images_of(5, n, model.config)
    np.testing.assert_allclose(step_by_step(model, image, label), full_pass(model, image, label), atol=1e-5, rtol=0)
    small = box_filter(image, (2, 1, 3))
    images = {m: np.asarray(model.sample(jax.random.key(1), n, label, method=m, low_resolution=small)) for m in METHODS[:2]}
    np.testing.assert_array_equal(images["cached"], images["naive"])
    others = model.sample(jax.random.key(1), n, label, low_resolution=small.at[0].set(3 - small[0]))
    np.testing.assert_array_equal(others[1:], images["naive"][1:])
    assert (np.asarray(others)[0] != images["naive"][0]).any()


def test_the_small_image_says_something_about_the_large_one():
    """Four grey images, equally likely: 2 bits each without the small image, none with it; a wrong small image is believed."""
    config = ImageTransformerConfig((4, 4, 1), 4, low_resolution=(1, 1, 1), **SMALL)
    batch = {"image": jnp.broadcast_to(jnp.arange(4, dtype=jnp.uint8).repeat(4).reshape(16, 1, 1, 1), (16, 4, 4, 1))}
    optimizer, mesh = make_optimizer(OptimizerConfig(learning_rate=1e-2), steps=60), make_mesh()
    state, step = init_state(drawn(config), optimizer, mesh), make_train_step(optimizer, mesh)
    for _ in range(60):
        state, _ = step(state, batch, jax.random.key(0))
    image = batch["image"]
    bits = jax.jit(lambda model, small: -model.log_prob(image, low_resolution=small).mean() / jnp.log(2.0))
    true, wrong = (bits(state.model, small) for small in (image[:, :1, :1], image[::-1, :1, :1]))
    assert float(true) < 1 and float(wrong) > 2


def test_jaxgen_upscale_shows_every_small_image_and_draws_from_it(monkeypatch, tmp_path):
    """2 x 2 to 8 x 8 on digits, through the command."""
    model, dataset, written = make((8, 8, 1), levels=17, low_resolution=(2, 2, 1)), data.load("digits", "test"), []
    saved = Experiment(model.config, workdir=str(tmp_path))
    monkeypatch.setattr(run_commands, "_open", lambda options, models: (saved, model))
    monkeypatch.setattr(drawing, "write_grid", lambda *arguments: written.append(arguments))
    assert cli.command("upscale", [str(tmp_path), "--n=8"]) == 0
    ((path, images, _, mask),) = written
    assert str(path) == str(tmp_path / "upscaled.png") and images.shape == (8, 8, 8, 1)
    true = jnp.asarray(dataset.source.read(np.arange(8) // 4)["image"])
    small = np.asarray(box_filter(true, (2, 2, 1)))
    np.testing.assert_array_equal(images[::4], np.kron(small[::4, :, :, 0], np.ones((1, 4, 4), np.uint8))[..., None])
    np.testing.assert_array_equal(mask, np.broadcast_to((np.arange(8) % 4 == 0)[:, None, None], (8, 8, 8)))
    drawn = np.asarray(model.sample(jax.random.key(0), 8, low_resolution=small))
    np.testing.assert_array_equal(images[~mask[:, 0, 0]], drawn[~mask[:, 0, 0]])
    monkeypatch.setattr(run_commands, "write_grid", lambda *arguments: written.append(arguments))
    assert cli.command("sample", [str(tmp_path), "--n=8"]) == 0
    np.testing.assert_array_equal(written[-1][1], drawn)  # its samples are for the same small images


def test_jaxgen_upscale_needs_room_for_a_draw(monkeypatch, capsys):
    model = make((8, 8, 1), levels=17, low_resolution=(2, 2, 1))
    monkeypatch.setattr(run_commands, "_open", lambda options, models: (None, model))
    assert cli.command("upscale", ["run", "--n=1"]) == 2
    assert capsys.readouterr().err == "jaxgen: --n: wanted 2 or more: a small image, and then draws from it, got 1\n"


def test_jaxgen_upscale_refuses_other_models(monkeypatch, capsys):
    model = make()
    monkeypatch.setattr(run_commands, "_open", lambda options, models: (Experiment(model.config), model))
    assert cli.command("upscale", ["run"]) == 2
    assert capsys.readouterr().err.startswith("jaxgen: RUN: wanted a model that upscales images")


BAD_SMALL = {
    "none": (None, "low_resolution: wanted uint8"),
    "another shape": (np.zeros((2, 2, 2, 3), np.uint8), "low_resolution: wanted shape"),
    "another batch": (np.zeros((3, 2, 1, 3), np.uint8), "low_resolution: wanted 2 images"),
    "out of range": (np.full((2, 2, 1, 3), 9, np.uint8), "low_resolution: wanted values"),
}


@pytest.mark.parametrize(("small", "message"), BAD_SMALL.values(), ids=BAD_SMALL.keys())
def test_a_bad_small_image_is_one_line_that_names_it(small, message):
    with pytest.raises(ConfigError, match=message):
        make(**UPSCALE).sample(jax.random.key(0), 2, label=0, low_resolution=small)


def test_a_model_without_the_task_refuses_its_condition():
    model = make((4, 4, 1))
    with pytest.raises(ConfigError, match=r"^low_resolution: wanted None"):
        model.log_prob(jnp.zeros((1, 4, 4, 1), jnp.uint8), low_resolution=jnp.zeros((1, 2, 2, 1), jnp.uint8))
    with pytest.raises(ConfigError, match=r"^caption: wanted nothing"):
        model.log_prob(jnp.zeros((1, 4, 4, 1), jnp.uint8), caption="x")


BAD_FIELDS = [
    ("width", {"heads": 5}),
    ("block", {"block": (2, 2, 2), "memory": (1, 1, 1)}),
    ("block", {"block": (0,), "memory": (1,)}),
    ("memory", {"block": (2, 2), "memory": (1,)}),
    ("memory", {"block": (2,), "memory": (-1,)}),
    ("low_resolution", {"low_resolution": (3, 2, 1)}),
    ("low_resolution", {"low_resolution": (2, 2, 3)}),
]


@pytest.mark.parametrize(("name", "fields"), BAD_FIELDS, ids=str)
def test_a_bad_field_is_one_line_that_names_it(name, fields):
    with pytest.raises(ConfigError, match=f"^{name}: wanted [^\\n]+, got [^\\n]+$"):
        ImageTransformerConfig((4, 4, 1), **{**SMALL, **fields})
