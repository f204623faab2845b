"""Precision: float32 products of every model ask for the highest one; in mixed precision parameters, sums and likelihoods stay float32."""

from dataclasses import replace
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import CONFIGS, batch_of, fresh, given_of, score, with_a, with_weights
from flax import nnx
from model_table import TABLE
from programs import equations
from step_by_step import step_by_step
from test_models import ALL, CASES, THOROUGH, every_model, full_pass, images_of, labels_of, log_prob, make

from jaxgen.layers.convolutions import EXACT

PRODUCTS = ("dot_general", "conv_general_dilated")
AXES = ("NHWC", "HWIO", "NHWC")


@every_model
def test_bfloat16_keeps_float32_parameters_and_likelihoods(entry):
    small = {} if ALL else entry.smaller
    exact, model = (make(entry, **CASES["colour, labels"], **small, dtype=dtype) for dtype in ("float32", "bfloat16"))
    model = nnx.merge(nnx.split(model)[0], nnx.state(exact))
    image, label = images_of(19, 4, model.config), labels_of(4, model.config)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {np.dtype("float32")}
    full, rough = full_pass(exact, image, label), full_pass(model, image, label)
    spread = float(full.std())
    assert rough.dtype == jnp.float32 and jax.eval_shape(log_prob, model, image, label).dtype == jnp.float32
    assert (full != rough).any(), "the compute dtype is not used"
    np.testing.assert_allclose(rough, full, atol=0.25 * spread, rtol=0)
    assert float(jnp.abs(rough - full).mean()) < 0.02 * spread
    if entry in THOROUGH:
        assert float(jnp.abs(step_by_step(model, image, label) - full).mean()) < 0.02 * spread
    (*_, last) = (e for e in equations(jax.make_jaxpr(model.logits)(image, label).jaxpr) if e.primitive.name == "dot_general")
    assert last.outvars[0].aval.dtype == jnp.float32, "a parameter of p(x) is rounded to bfloat16"


LATENT = {name: CONFIGS[name] for name in ("vae", "vae of a label", "vae of a vector", "vae_gan", "autoencoder", "implicit_autoencoder")}
if not ALL:  # one layer less of the same kind, where they are not convolutions
    LATENT |= {name: replace(config, hidden=(6,)) for name, config in LATENT.items() if config.architecture != "conv"}
LATENT["autoencoder, tied"] = replace(LATENT["autoencoder"], tied=True)
LATENT["autoencoder, conv"] = replace(CONFIGS["autoencoder"], architecture="conv")


def distance(one, two) -> float:
    """The Euclidean norm of the difference of two trees of arrays."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return np.sqrt(sum(np.square(np.asarray(a, np.float64) - b).sum() for a, b in pairs))


REPEATED = ["vae", "autoencoder", "autoencoder, conv"]  # the same models as others, with less


@pytest.mark.parametrize("name", LATENT)
def test_bfloat16_of_an_auto_encoder_rounds_activations_and_nothing_else(name):
    """Scores and gradients are those of float32 within the rounding of 8 bits; what an image or a code is drawn from is float32."""
    if name in REPEATED and not ALL:
        pytest.skip("make thorough has it")
    batch, key = batch_of(LATENT[name], 16), jax.random.key(0)
    exact, model = (jax.eval_shape(lambda dtype=dtype: fresh(replace(LATENT[name], dtype=dtype))) for dtype in ("float32", "bfloat16"))
    weights = nnx.state(with_weights(LATENT[name]))

    def numbers(one):
        one = nnx.merge(nnx.split(one)[0], weights)
        given = given_of(one.config, batch)
        codes = jax.tree.leaves(one.encode(batch["image"], **given))
        return score(one, batch, key), codes, one.decode(codes[0], **given), gradient(one, batch, key)

    (wanted, *_, slope), (found, codes, decoded, rough_slope) = jax.device_get(jax.jit(lambda: (numbers(exact), numbers(model)))())
    assert {leaf.dtype for leaf in [*codes, decoded, found, *jax.tree.leaves(rough_slope)]} == {np.dtype("float32")}
    for leaf in [*codes, decoded]:
        assert (leaf != leaf.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.5, "rounded to bfloat16"
    assert (found != wanted).any(), "the compute dtype is not used"
    np.testing.assert_allclose(found, wanted, rtol=0.02)
    assert distance(rough_slope, slope) < 0.05 * distance(slope, jax.tree.map(np.zeros_like, slope))


FEWER = {"vqvae": {"blocks": 0}, "vqvae2_codes": {"blocks": 0}, "nvae": {"groups": (1,)}}  # layers of the same kinds
OTHERS = [name for name in with_a("dtype") if name not in LATENT and name.split(" of ")[0] not in [entry.name for entry in TABLE]]


@pytest.mark.parametrize("name", OTHERS)
def test_bfloat16_of_other_models_rounds_activations_only(name):
    """The loss and its gradient are float32, and those of float32 within the rounding of 8 bits."""
    config = replace(CONFIGS[name], **FEWER.get(name, {}))
    batch, key = batch_of(config, 4), jax.random.key(0)
    exact, model = (jax.eval_shape(lambda dtype=dtype: fresh(replace(config, dtype=dtype))) for dtype in ("float32", "bfloat16"))
    weights = nnx.state(with_weights(config))

    def numbers(one):
        graph, params, rest = nnx.split(nnx.merge(nnx.split(one)[0], weights), nnx.Param, ...)
        return jax.value_and_grad(lambda params: nnx.merge(graph, params, rest).loss(batch, key)[0])(params)

    (wanted, slope), (found, rough_slope) = jax.device_get(jax.jit(lambda: (numbers(exact), numbers(model)))())
    assert {leaf.dtype for leaf in [found, *jax.tree.leaves(rough_slope)]} == {np.dtype("float32")}
    assert found != wanted, "the compute dtype is not used"
    np.testing.assert_allclose(found, wanted, rtol=0.02)
    assert distance(rough_slope, slope) < 0.05 * distance(slope, jax.tree.map(np.zeros_like, slope))


def traced(function, *arguments) -> list:
    """Every matrix product and convolution of a function with float32 factors."""
    found = [equation for equation in equations(jax.make_jaxpr(function)(*arguments)) if equation.primitive.name in PRODUCTS]
    return [equation for equation in found if any(factor.aval.dtype == jnp.float32 for factor in equation.invars)]


def reordered(found: list) -> list[str]:
    """The convolutions among products whose axes have another order than AXES, which XLA computes number by number in a loop on a CPU."""
    usual = jax.lax.conv_dimension_numbers((1,) * 4, (1,) * 4, AXES)
    return [str(one) for one in found if one.primitive.name == "conv_general_dilated" and one.params["dimension_numbers"] != usual]


def rough(found: list) -> list[str]:
    """The products that do not ask for the highest precision."""
    exact = (EXACT, EXACT)
    return [str(equation) for equation in found if equation.params["precision"] not in (EXACT, exact)] if found else ["no product at all"]


def gradient(model, batch, key):
    """The gradient of the loss with respect to the parameters."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return jax.grad(lambda params: nnx.merge(graph, params, rest).loss(batch, key)[0])(params)


# Few images are convolved as one product, more than `FEW_IMAGES` by XLA's convolution. Without a label an autoregressive model has the same
# convolutions as with one: there the loss has few images, and the score and the samples, which have few always, are those of a label. The
# one of two resolutions has many, since with a label it has one resolution.
FEW = {entry.name for entry in TABLE} - {"pixelcnn_pp"}
METHODS = {"encode": (), "reconstruct": (), "importance_bound": (jax.random.key(0), 2)}
"""Methods of images besides the score, and their arguments after the images."""
WITHOUT = {"gaussian", "gmm", "autoregression"}
"""Models with a program that has no product: they solve triangular systems, or add up products of few numbers, in float32."""


@pytest.mark.parametrize("name", CONFIGS)
def test_every_float32_product_asks_for_the_highest_precision_and_convolutions_of_a_gradient_have_the_usual_axes(name):
    config, key = CONFIGS[name], jax.random.key(0)
    model, batch = jax.eval_shape(lambda: fresh(config)), batch_of(config, 2)
    for rows in ((2, 16) if ALL else (2,) if name in FEW else (16,)) if name in with_a("loss") else ():
        found = traced(gradient, model, batch_of(config, rows), key)
        assert not rough(found) and not reordered(found)
    if name in FEW and not ALL:
        return
    programs = [traced(score, model, batch, key)]
    if name in with_a("sample"):
        programs.append(traced(lambda model, given: model.sample(key, 2, **given), model, given_of(config, batch)))
    for method in METHODS.keys() & set(dir(model)):

        def of_images(model, image, given, method=method):
            call = getattr(model, method)
            return call(image, *METHODS[method], **{name: given[name] for name in given if name in signature(call).parameters})

        programs.append(traced(of_images, model, batch[config.modelled], given_of(config, batch)))
    assert not [line for found in programs for line in (rough(found) if found or name not in WITHOUT else [])]
    assert all(programs) == (name not in WITHOUT)


def test_the_search_for_other_axes_finds_them():
    x, kernel = jnp.ones((16, 4, 4, 3)), jnp.ones((3, 3, 3, 3))

    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=AXES).sum()

    assert not reordered(traced(convolved, x, kernel))
    assert [len(reordered(traced(jax.grad(convolved, argnums=i), x, kernel))) for i in (0, 1)] == [1, 1]


def test_the_search_for_rough_products_finds_them():
    x, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 3))

    def convolved(precision):
        return lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", precision=precision, dimension_numbers=AXES)

    def looped(x):
        return jax.lax.scan(lambda carry, _: (jax.jit(lambda y: jnp.dot(y, kernel[0, 0]))(carry), None), x, length=2)[0]

    for function, argument in ((convolved(None), x), (convolved("default"), x), (looped, x[0, 0]), (jnp.sin, x)):
        assert rough(traced(function, argument))
    for function in (convolved(EXACT), lambda x: jnp.dot(x, kernel[0, 0], precision="highest")):
        assert not rough(traced(function, x))
    assert rough(traced(jnp.dot, x.astype(jnp.bfloat16), kernel[0, 0].astype(jnp.bfloat16))) == ["no product at all"]
