"""Every autoregressive image model, the same properties: a new model is one line in model_table.py.

The oracles are independent of the models: sets propagated through the equations of a model's docstring, enumeration of all images of nine
binary values, the full pass for the cached form, and the naive sampler for the fast ones.
"""

import dataclasses
import os
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import all_images
from causal_sets import raster_past
from flax import nnx
from model_table import TABLE, Entry
from scipy.stats import chisquare
from step_by_step import step_by_step

from jaxgen.errors import ConfigError
from jaxgen.layers import convolutions, weight_norm
from jaxgen.layers.convolutions import FEW_IMAGES
from jaxgen.models import MODELS, count_parameters, vqvae
from jaxgen.sampling import METHODS
from jaxgen.sharding import make_mesh
from jaxgen.training import OptimizerConfig, init_state, make_optimizer, make_train_step

every_model = pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
# Compiling is dear: the first model goes through everything, with JAXGEN_THOROUGH=1 (make thorough) all do; the others are in colour below.
SHAPES = [(5, 5, 3), (3, 6, 1), (6, 3, 3), (1, 4, 1), (4, 1, 3)]
ALL = os.environ.get("JAXGEN_THOROUGH") is not None
EVERY_SHAPE = [(entry, shape) for entry in TABLE for shape in (SHAPES if ALL or entry is TABLE[0] else SHAPES[1:2])]
THOROUGH = TABLE if ALL else TABLE[:1]
every_shape = pytest.mark.parametrize("entry, image_shape", EVERY_SHAPE, ids=lambda value: getattr(value, "name", str(value)))


def skip_unless_thorough(entry: Entry, dear: bool) -> None:
    if dear and entry not in THOROUGH:
        pytest.skip("make thorough has it")


def images_of(key: int, n: int, config) -> jax.Array:
    """Uniformly random images."""
    return jax.device_put(np.random.default_rng(key).integers(0, config.levels, (n, *config.image_shape), np.uint8))


def labels_of(n: int, config):  # 0, 1, 2, ... for a conditional model, None for the others
    return jax.device_put(np.arange(n, dtype=np.int32) % config.num_classes) if config.num_classes else None


def drawn(config, seed: int | None = None):
    """A fresh model, its normal numbers and constants by numpy: XLA compiles those of jax for every weight, a third of all time.

    seed: of the model's keys, by which its numbers are then drawn; without one they come from one row of numbers.
    """
    generator = np.random.default_rng(0)

    def normal(key, shape, dtype=np.float32):
        numbers = generator if seed is None else np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return numbers.standard_normal(shape, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", normal)
        for module in (convolutions, vqvae, weight_norm):  # not cut out of longer draws
            patch.setattr(module, "draw", lambda numbers, key, shape: numbers(key, shape))
        for name in ("zeros", "ones", "full"):
            patch.setattr(jnp, name, getattr(np, name))
        model = MODELS[type(config)](config, rngs=nnx.Rngs(seed or 0))
    return jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32 if leaf.dtype == np.float64 else leaf.dtype), model))


def trained(config, learning_rate: float):
    """The model after a step of AdamW."""
    model = drawn(config)
    optimizer, mesh = make_optimizer(OptimizerConfig(learning_rate=learning_rate, weight_decay=0.1), steps=1), make_mesh()
    batch = {"image": images_of(1, 4, config), "label": labels_of(4, config)}
    if not config.num_classes:
        del batch["label"]
    state, metrics = make_train_step(optimizer, mesh)(init_state(model, optimizer, mesh), batch, jax.random.key(2))
    assert metrics["finite"] == 1
    return state.model


@lru_cache(maxsize=16)
def with_noise(config, noise: float, learning_rate: float | None = None):
    """A model with noise on every weight, masked ones included: nothing vanishes, nothing is special."""
    model = drawn(config) if learning_rate is None else trained(config, learning_rate)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    generator = np.random.default_rng(3)
    leaves = jax.device_put([np.asarray(p) + noise * generator.standard_normal(p.shape, np.float32) for p in leaves])
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest)


def make(entry: Entry, image_shape, train: bool = False, **sizes):
    """A model of the table, after a training step if that is asked for; the arrays are shared between the tests, which leave them alone."""
    return with_noise(entry.make(image_shape, **sizes), entry.noise, entry.learning_rate if train else None)


@jax.jit
def full_pass(model, image, label=None):
    return model.logits(image, label)


@jax.jit
def log_prob(model, image, label=None):
    """log p(image), compiled."""
    return model.log_prob(image, label)


@jax.jit
def loss(model, batch, key):
    return model.loss(batch, key)[0]


@partial(jax.jit, static_argnames="head")
def nats(head, parameters, image):
    """log p of every image by the parameters of its positions: so that a test which has them needs no second program of the model."""
    return head.log_prob(parameters, image).reshape(len(image), -1).sum(-1)


@partial(jax.jit, static_argnames="head")
def without_noise(head, parameters, image):
    """The values that are drawn where all noise is zero; `image` says only of what shape."""
    noise = jax.eval_shape(lambda key: head.noise(key, image.shape), jax.random.key(0))
    return head.sample(parameters, jnp.zeros(noise.shape, noise.dtype))


@jax.jit
def seen_inputs(model, image, label=None):
    """Bool [H, W, K, P, inputs]: which inputs change which parameter of which output, over a batch of random images.

    Every image of the batch is changed at one input at a time, and once at none: the same program computes both sides, so that equal means
    equal bits.
    """
    config = model.config
    height, width, _ = config.image_shape

    def parameters(image):
        return model.logits(image, label).reshape(image.shape[0], height, width, config.image_shape[2] if model.head.channelwise else 1, -1)

    def changed(i):
        hot = (jnp.arange(image[0].size) == i).reshape(1, *image.shape[1:])
        other = jnp.uint8(config.levels - 1) - image
        return parameters(jnp.where(hot, other, image))

    outputs = jax.lax.map(changed, jnp.arange(image[0].size + 1))
    return jnp.moveaxis((outputs[:-1] != outputs[-1:]).any(1), 0, -1)


def check_dependencies(entry: Entry, image_shape, label=None, train: bool = False, n: int = 8, **sizes):
    """The inputs that change an output are the declared ones: none more (a leak), for no parameter one fewer (a blind spot)."""
    model = make(entry, image_shape, train, **sizes)
    image = images_of(5, n, model.config)
    label = None if label is None else jax.device_put(np.full((n,), label, np.int32))
    declared = entry.dependencies(model.config)
    seen = np.asarray(seen_inputs(model, image, label))
    by_all, seen = (some.reshape(declared.shape) for some in (seen.all(3), seen.any(3)))
    future = ~raster_past(*image_shape)[:, :, : declared.shape[2]]
    assert not (seen & future).any(), f"leak (r, c, k, r', c', k'): {np.argwhere(seen & future)[:5].tolist()}"
    missing, extra = np.argwhere(declared & ~by_all), np.argwhere(seen & ~declared)
    assert not len(missing), f"declared but not seen (r, c, k, r', c', k'): {missing[:5].tolist()}"
    assert not len(extra), f"seen but not declared (r, c, k, r', c', k'): {extra[:5].tolist()}"
    return declared


@every_shape
def test_every_output_sees_exactly_the_declared_inputs(entry, image_shape):
    n = FEW_IMAGES + (image_shape == (3, 6, 1))  # one more image takes another form of every convolution
    check_dependencies(entry, image_shape, train=entry in THOROUGH and image_shape == (5, 5, 3), n=n)


@every_model
def test_edge_configurations_see_exactly_the_declared_inputs(entry):
    for i, sizes in enumerate(entry.edges):
        check_dependencies(entry, [(4, 5, 3), (5, 5, 1)][i % 2], **sizes)


@every_model
def test_enough_depth_leaves_no_blind_spot(entry):
    if entry.whole_past is None:
        pytest.skip(f"{entry.name} has a blind spot; its declared set says which")
    cases = [CASES["colour, labels"] | {"label": 1}]  # for many models a program that another test has, too
    if entry in THOROUGH:
        cases = [{"image_shape": (5, 5, 3), "train": True}, {"image_shape": (5, 4, 1)}]
    for case in cases:
        declared = check_dependencies(entry, **case, **entry.whole_past)
        np.testing.assert_array_equal(declared, raster_past(*case["image_shape"])[:, :, : declared.shape[2]])


@every_model
def test_the_label_reaches_every_output_and_leaves_the_order_alone(entry):
    check_dependencies(entry, label=1, **CASES["colour, labels"])
    model, image = make(entry, **CASES["colour, labels"]), images_of(5, 4, entry.make(**CASES["colour, labels"]))
    one, two = (np.asarray(full_pass(model, image, np.full((4,), label, np.int32))) for label in (0, 2))
    assert (one != two).reshape(4, -1, one.shape[-1]).any(-1).all(), "a position that ignores the label"


@every_model
@pytest.mark.parametrize("image_shape", [(3, 3, 1), (1, 3, 3)], ids=str)
def test_probabilities_sum_to_one_and_draws_follow_them(entry, image_shape):
    skip_unless_thorough(entry, dear=image_shape == (1, 3, 3))
    model = make(entry, image_shape, levels=2, num_classes=2, **({} if ALL else entry.smaller))
    probability = np.exp(np.asarray(log_prob(model, jax.device_put(all_images(image_shape)), np.ones(512, np.int32)), np.float64))
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    assert np.ptp(np.log(probability)) > 1, "the table is too flat to tell samplers apart"
    draws = 20_000
    image = np.asarray(model.sample(jax.random.key(0), draws, label=1)).reshape(draws, 9).astype(int)
    counts = np.bincount(image @ (1 << np.arange(9)[::-1]), minlength=512)
    rare = probability * draws < 5  # chi-square needs five expected draws in a cell: the rare ones share one
    expected = np.append(probability[~rare], probability[rare].sum() + 1e-9) * draws
    observed = np.append(counts[~rare], counts[rare].sum())
    keep = expected > 1
    assert chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue > 1e-4


CASES = {
    "grey": {"image_shape": (4, 6, 1), "levels": 2},
    "colour, labels": {"image_shape": (5, 4, 3), "levels": 4, "num_classes": 3},
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_model
@pytest.mark.parametrize("edge", [False, True], ids=["", "edge sizes"])
@every_case
def test_the_cached_form_equals_the_full_pass_at_every_position(entry, case, edge):
    sizes_of_case = entry.edges[list(CASES.values()).index(case) :: len(CASES)] if edge else ({},)
    skip_unless_thorough(entry, dear="num_classes" not in case)
    if not sizes_of_case:
        pytest.skip("its edge sizes are in the other case")
    for sizes in sizes_of_case:
        model = make(entry, **case, **sizes)
        image, label = images_of(6, 4, model.config), labels_of(4, model.config)
        full = full_pass(model, image, label)
        np.testing.assert_allclose(step_by_step(model, image, label), full, atol=1e-5, rtol=0)


# The fixed point is one function for all models; of a model it takes the full pass, as naive does, and it compiles that twice. One model
# that draws channel by channel and one that draws whole pixels have it here, one with an order of its own in test_image_transformer.py.
FIXED_POINT = ("gated_pixelcnn", "pixelsnail")


@every_model
@every_case
def test_naive_cached_and_fixed_point_give_the_same_bits(entry, case):
    skip_unless_thorough(entry, dear="num_classes" not in case)
    model, n, config = make(entry, **case), 4, entry.make(**case)
    methods = METHODS if ALL or entry.name in FIXED_POINT else METHODS[:2]
    label, given = labels_of(n, config), images_of(8, n, config)
    mask = np.random.default_rng(9).random((n, *config.image_shape[:2])) < 0.4
    top = np.broadcast_to(np.arange(config.image_shape[0])[:, None] < 2, mask.shape[1:])
    key, given = jax.random.key(10), np.asarray(given)
    for known, temperature in [(None, 1.0), ((given, mask), 1.0), ((given[0], top), 0.5), ((given, ~mask), 2.0)]:
        images = {m: np.asarray(model.sample(key, n, label, known, temperature=temperature, method=m)) for m in methods}
        for method in methods:
            np.testing.assert_array_equal(images[method], images["naive"])
        assert images["naive"].shape == given.shape and images["naive"].dtype == np.uint8 and images["naive"].max() < config.levels
        if known is not None:
            kept = np.broadcast_to(known[1], mask.shape)
            np.testing.assert_array_equal(images["naive"][kept], np.broadcast_to(known[0], given.shape)[kept])
    # A high temperature: few binary pixels of a sharp model may be the same twice.
    image, other = (np.asarray(model.sample(k, n, label, temperature=4.0)) for k in (key, jax.random.key(11)))
    assert all((other[i] != image[i]).any() for i in range(n)), "the key changes every image"
    assert all((image[i] != image[j]).any() for i in range(n) for j in range(i)), "the images of a batch differ"
    # What the cache computed is the likelihood of what it drew.
    cached, full = (nats(model.head, form(model, image, label), image) for form in (step_by_step, full_pass))
    np.testing.assert_allclose(cached, full, rtol=1e-5)


@every_model
@every_case
def test_an_image_depends_on_its_own_row_of_the_batch_only(entry, case):
    skip_unless_thorough(entry, dear="num_classes" not in case)
    model = make(entry, **case)
    config = model.config
    label, image, key = labels_of(4, config), images_of(12, 4, config), jax.random.key(13)
    outer = np.isin(np.arange(4), [0, 3])
    others = np.where(outer[:, None, None, None], np.uint8(0), image)
    one, two = (np.asarray(full_pass(model, some, label)) for some in (image, others))
    np.testing.assert_array_equal(one[1:3], two[1:3])
    assert (one[outer] != two[outer]).any()
    known = np.broadcast_to(outer[:, None, None], (4, *config.image_shape[:2]))
    sample = np.asarray(model.sample(key, 4, label))
    np.testing.assert_array_equal(np.asarray(model.sample(key, 4, label, (image, known)))[1:3], sample[1:3])
    if entry in THOROUGH:  # a batch of another size is another program
        alone = log_prob(model, image[:1], None if label is None else label[:1])
        np.testing.assert_allclose(alone, log_prob(model, image, label)[:1], rtol=1e-5)
        np.testing.assert_array_equal(model.sample(key, 3, None if label is None else label[:3]), sample[:3])


@every_model
@every_case
def test_completion_depends_on_given_and_generated_predecessors_only(entry, case):
    skip_unless_thorough(entry, dear="num_classes" not in case)
    model, n, config = make(entry, **case), 4, entry.make(**case)
    height, width, channels = config.image_shape
    label, given = labels_of(n, config), np.asarray(images_of(15, n, config))
    mask = np.random.default_rng(16).random((n, height, width)) < 0.5

    def complete(image, mask, seed=14):
        return np.asarray(model.sample(jax.random.key(seed), n, label, (image, mask))).reshape(n, height * width, channels)

    image = complete(given, mask)
    changed = np.uint8(config.levels - 1) - given
    hole = np.where(mask[..., None], given, changed)
    np.testing.assert_array_equal(complete(hole, mask), image, "pixels that are not given were read")
    middle = height * width // 2
    after = (np.arange(height * width) >= middle).reshape(1, height, width)
    np.testing.assert_array_equal(complete(np.where(after[..., None], changed, given), mask)[:, :middle], image[:, :middle])
    np.testing.assert_array_equal(complete(given, mask & ~after)[:, :middle], image[:, :middle])
    before = mask.reshape(n, -1) & (np.arange(height * width) < middle)
    early = (complete(np.where(after[..., None], given, changed), mask, seed) != complete(given, mask, seed) for seed in range(14, 30))
    assert before.any() and any(changes[:, middle:].any() for changes in early), "given pixels change those that are drawn after them"


@every_model
@every_case
def test_low_temperature_is_greedy(entry, case):
    skip_unless_thorough(entry, dear="num_classes" not in case)
    model, label = make(entry, **case), labels_of(4, entry.make(**case))
    one, two = (np.asarray(model.sample(jax.random.key(key), 4, label, temperature=1e-5)) for key in (0, 1))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, without_noise(model.head, full_pass(model, one, label), one))


@every_model
def test_the_same_seed_gives_the_same_bits_with_and_without_jit(entry):
    config = entry.make(**CASES["colour, labels"])
    fresh = partial(drawn, config)  # by numpy, as a cheaper function of the keys
    if entry in THOROUGH:
        fresh = jax.jit(lambda seed: MODELS[type(config)](config, rngs=nnx.Rngs(jax.random.key(seed))))
    one, two, three = (jax.tree.leaves(nnx.state(fresh(seed))) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, three, strict=True))
    model, image, label = make(entry, **CASES["colour, labels"]), images_of(17, 4, config), labels_of(4, config)
    batch = {"image": image, "label": label}
    compiled = loss(model, batch, jax.random.key(0))
    likelihood = np.asarray(nats(model.head, full_pass(model, image, label), image))
    np.testing.assert_allclose(float(compiled) * np.log(2) * image[0].size, -likelihood.mean(), rtol=1e-5)
    if entry in THOROUGH:
        np.testing.assert_allclose(log_prob(model, image, label), likelihood, rtol=1e-5)
        if ALL:  # test_all_models.py has this for every model, at one size
            np.testing.assert_allclose(model.logits(image, label), full_pass(model, image, label), atol=1e-5)
            np.testing.assert_allclose(model.loss(batch, jax.random.key(0))[0], compiled, rtol=1e-5)
        inside = jax.jit(lambda model, key: model.sample(key, 4, label))(model, jax.random.key(1))
        np.testing.assert_array_equal(inside, model.sample(jax.random.key(1), 4, label))


@every_model
def test_dropout_is_for_training_only(entry):
    if "dropout" not in {f.name for f in dataclasses.fields(entry.config)}:
        pytest.skip(f"{entry.name} has no dropout")
    plain, config = make(entry, **CASES["colour, labels"]), entry.make(**CASES["colour, labels"], dropout=0.5)
    dropped = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: MODELS[type(config)](config, rngs=nnx.Rngs(0)))), nnx.state(plain))
    batch = {"image": images_of(18, 4, config), "label": labels_of(4, config)}
    np.testing.assert_array_equal(*(full_pass(model, *batch.values()) for model in (dropped, plain)))
    first, again, other = (float(loss(dropped, batch, jax.random.key(key))) for key in (0, 0, 1))
    assert first == again != other and first != float(loss(plain, batch, jax.random.key(0)))


@every_model
def test_full_sizes_cost_nothing_to_check(entry):
    """Parameters as counted by hand from the equations: no source that we could verify publishes a number. CIFAR-10 in bfloat16."""
    for fields, count in entry.full_sizes:
        config = entry.config(**fields, dtype="bfloat16" if fields["levels"] == 256 else "float32")
        model = nnx.eval_shape(lambda config=config: MODELS[type(config)](config, rngs=nnx.Rngs(0)))
        assert count_parameters(model) == count
        if entry in THOROUGH and (ALL or fields is entry.full_sizes[-1][0]):  # to trace these programs takes seconds
            image, key = jax.ShapeDtypeStruct((16, *config.image_shape), np.uint8), jax.eval_shape(lambda: jax.random.key(0))
            assert jax.eval_shape(lambda m, x: m.log_prob(x), model, image).shape == (16,)
            assert jax.eval_shape(lambda m, k: m.sample(k, 16), model, key) == image


@every_model
@pytest.mark.parametrize("field", ["image_shape", "levels", "num_classes", *TABLE[0].small])
def test_a_bad_config_is_one_line_that_names_the_field(entry, field, unchecked):
    if field not in {f.name for f in dataclasses.fields(entry.config)}:
        pytest.skip(f"{entry.name} has no {field}")
    with pytest.raises(ConfigError, match=f"^{field}: wanted [^\\n]+, got [^\\n]+$"):
        entry.make(**{"image_shape": (3, 4, 1), field: (0, 4, 1) if field == "image_shape" else -1})
    wrong = {"image_shape": [(4, 4), (4, 4, 1.0), [4, 4, 1], None]}.get(field, ["a", 2.5, None, True, (1,)])
    for value in wrong if field != "dropout" else ["a", None, True, float("nan")]:
        with pytest.raises(ConfigError, match=f"^{entry.config.__name__}.{field}: wanted [^\\n]+, got [^\\n]+$"):
            entry.make(**{"image_shape": (3, 4, 1), field: value})
    with pytest.raises(ConfigError, match="dtype: wanted 'float32' or 'bfloat16', got 'float16'"):
        entry.make((3, 4, 1), dtype="float16")
