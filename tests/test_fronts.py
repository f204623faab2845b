"""Fronts: the geometry, and a model's form in fronts held against its full pass and against its form by rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_table import TABLE
from test_models import CASES, full_pass, images_of, labels_of, make, skip_unless_thorough

from jaxgen import benchmark, checks, sampling
from jaxgen.layers import autoregressive
from jaxgen.layers.fronts import Fronts, in_fronts
from jaxgen.models import PixelCNNConfig, build, pixelcnn

IN_FRONTS = [entry for entry in TABLE if entry.config is PixelCNNConfig]
every_model = pytest.mark.parametrize("entry", IN_FRONTS, ids=lambda entry: entry.name)
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_all_models_in_fronts_are_here():
    assert [entry for entry in TABLE if hasattr(nnx.eval_shape(partial(build, entry.make((3, 4, 1)))), "fronts")] == IN_FRONTS


@pytest.mark.parametrize(("height", "width", "skew"), [(4, 6, 2), (1, 5, 4), (6, 1, 2), (9, 3, 4), (28, 28, 4), (5, 8, 3)])
def test_a_front_comes_after_all_that_its_pixels_depend_on(height, width, skew):
    fronts = Fronts(height, width, skew)
    places, inside = fronts.places, fronts.inside
    assert len(places) == skew * (height - 1) + width
    drawn = places[inside]
    assert sorted(map(tuple, drawn)) == list(np.ndindex(height, width)), "every pixel once"
    when = np.zeros((height, width), int)
    when[tuple(drawn.T)] = np.nonzero(inside)[0]
    for r, c in np.ndindex(height, width):
        for i in range(r + 1):
            past = when[r - i, : c + (skew - 1) * i + (i > 0)]
            assert (past < when[r, c]).all(), (r, c, i)
    for lane in inside.T:  # a kernel that reaches beyond the end of a row finds padding, not the lane's next row
        (times,) = np.nonzero(lane)
        gaps = np.diff(times) - 1
        assert (gaps[gaps > 0] >= skew - 1).all() and (gaps > 0).sum() == max(len(times) // width - 1, 0)


@jax.jit
def front_by_front(model, image, label=None):
    """The parameters of every position from the form in fronts, given the true pixels: [B, H, W, C, P].

    A pixel outside the image is given a value; the channels that a pixel must not see yet are zero.
    """
    channels, places, inside = image.shape[3], model.fronts.places, model.fronts.inside
    r, c = np.where(inside[..., None], places, 0).transpose(2, 0, 1)
    values = image[:, r, c].transpose(1, 2, 0, 3).reshape(len(r), -1, channels)  # [T, K B, C]

    def front(carry, inputs):
        cache, previous = carry
        t, value = inputs
        cache, first = model.step_front(cache, previous, t)
        parameters = [first]
        for k in range(1, channels):
            hidden = jnp.where(jnp.arange(channels) < k, value, jnp.uint8(0))
            cache, more = model.step_front_channel(cache, hidden, k)
            parameters.append(more)
        return (cache, value), jnp.stack(parameters, axis=1)

    start = model.init_fronts(image.shape[0], model.condition(image.shape[0], label, image)), jnp.full_like(values[0], channels)
    _, parameters = jax.lax.scan(front, start, (jnp.arange(len(r)), values))
    parameters = parameters.reshape(*r.shape, image.shape[0], channels, -1)[inside].swapaxes(0, 1)
    return jnp.zeros((*image.shape, parameters.shape[-1])).at[:, r[inside], c[inside]].set(parameters)


@every_model
@pytest.mark.parametrize("case", [*CASES.values(), {"image_shape": (9, 3, 1)}], ids=[*CASES, "more rows than lanes"])
def test_the_form_in_fronts_equals_the_full_pass_at_every_position(entry, case):
    skip_unless_thorough(entry, dear=case is CASES["grey"])
    for sizes in ({}, *entry.edges):
        model = make(entry, **case, **sizes)
        image, label = images_of(6, 4, model.config), labels_of(4, model.config)
        full = full_pass(model, image, label)
        np.testing.assert_allclose(front_by_front(model, image, label), full, atol=1e-5, rtol=0)


@every_model
def test_bfloat16_in_fronts(entry):
    exact, model = (make(entry, **CASES["colour, labels"], dtype=dtype) for dtype in ("float32", "bfloat16"))
    model = nnx.merge(nnx.split(model)[0], nnx.state(exact))
    image, label = images_of(19, 4, model.config), labels_of(4, model.config)
    full, rough = full_pass(exact, image, label), front_by_front(model, image, label)
    assert rough.dtype == jnp.float32 and (rough != full).any(), "the compute dtype is not used"
    assert float(jnp.abs(rough - full).mean()) < 0.02 * float(full.std())


@partial(jax.jit, static_argnames="form")
def drawn_by(form, model, key, label, known, temperature):
    """Images by `sampling.by_rows` or `in_fronts`: `sample` takes the one that is faster at the model's sizes."""
    n = known[0].shape[0]
    draw = sampling.Draw(model.head, key, known[0].shape, temperature)
    return form(model, draw, model.condition(n, label), *known, jnp.arange(n))


@every_model
@every_case
def test_rows_and_fronts_draw_the_same_bits(entry, case):
    skip_unless_thorough(entry, dear="num_classes" not in case)
    model, n, key = make(entry, **case), 5, jax.random.key(10)
    label, given = labels_of(n, model.config), np.asarray(images_of(8, n, model.config))
    mask = np.random.default_rng(9).random(given.shape[:3]) < 0.4
    for keep, temperature in [(np.zeros_like(mask), 1.0), (mask, 1.0), (~mask, 2.0)]:
        arguments = model, key, label, (given, keep), jnp.float32(temperature)
        images = [np.asarray(drawn_by(form, *arguments)) for form in (sampling.by_rows, in_fronts)]
        np.testing.assert_array_equal(images[1], images[0])
        np.testing.assert_array_equal(images[1][keep], given[keep])
        np.testing.assert_array_equal(images[1], model.sample(key, n, label, (given, keep), temperature=temperature))
        assert keep.any() or (images[1] != images[1][:1]).any()


@every_model
def test_groups_of_images_are_drawn_like_one_batch(monkeypatch, entry):
    model, n = make(entry, (3, 4, 1), num_classes=2), 5
    label, known = labels_of(n, model.config), checks.check_known(None, n, (3, 4, 1), 4)
    together = drawn_by(in_fronts, model, jax.random.key(1), label, known, jnp.float32(1))
    monkeypatch.setattr(sampling, "CACHE_BYTES", 1)
    drawn_by.clear_cache()
    sizes = [sampling.group_size(m, model.init_fronts, labels_of(m, model.config)) for m in (1, 2, n)]
    assert sizes == [1, 2, 2]  # up to two images are one group, and drawn by the same program
    np.testing.assert_array_equal(drawn_by(in_fronts, model, jax.random.key(1), label, known, jnp.float32(1)), together)
    drawn_by.clear_cache()


def test_the_number_of_flops_is_that_of_the_form_by_rows():
    """In fronts some pixels outside the image are computed too, which do not count."""
    model = nnx.eval_shape(lambda: build(PixelCNNConfig(image_shape=(5, 4, 1), levels=2, layers=2, width=16, head_width=8)))
    known = checks.check_known(None, 1, (5, 4, 1), 2)
    rows = benchmark.product_flops(lambda model: drawn_by(sampling.by_rows, model, jax.random.key(0), None, known, jnp.float32(1)), model)
    assert benchmark.flops_per_image(model) == rows


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere fronts are always taken")
@pytest.mark.parametrize("faster", [True, False])
def test_sample_takes_the_form_that_is_faster(monkeypatch, faster):
    config = PixelCNNConfig(image_shape=(16, 16, 1), levels=2, layers=1, width=16 if faster else 64, head_width=4)
    model, called = nnx.eval_shape(lambda: build(config)), []
    for module, name in ((autoregressive, "by_rows"), (pixelcnn, "in_fronts")):
        form = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, form=form: called.append(name) or form(*args))
    sampling._sample.clear_cache()
    jax.eval_shape(lambda model: model.sample(jax.random.key(0), 2), model)
    assert called == ["in_fronts" if faster else "by_rows"] and model.draws_in_fronts == faster
    small = nnx.eval_shape(lambda: build(PixelCNNConfig(image_shape=(8, 8, 1), width=16)))
    assert not small.draws_in_fronts, "too many pixels outside so small an image"
    sampling._sample.clear_cache()
