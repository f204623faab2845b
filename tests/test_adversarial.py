"""Objectives, penalties, spectral normalisation and the game on finite sets, against numbers known without them; and conditional GANs."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import model_of
from flax import nnx

from jaxgen import sharding, training
from jaxgen.data.features import ClassLabel, Image, Points
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers import adversarial
from jaxgen.layers.adversarial import OBJECTIVES
from jaxgen.layers.convolutions import EXACT, Conv
from jaxgen.layers.spectral import Spectral, spectral_layers
from jaxgen.models import GAN, MODELS, ConditionalGANConfig, GANConfig

LOGITS = np.float32([-1e4, -10, 0, 10, 1e4])
KEY = jax.random.key(0)


@cache
def slopes() -> dict:
    """{objective: the values of its three terms at LOGITS and their slopes}."""
    both = jax.jit(lambda x: {name: [jax.vmap(jax.value_and_grad(term))(x) for term in terms] for name, terms in OBJECTIVES.items()})
    return jax.tree.map(np.asarray, both(LOGITS))


def test_objectives_are_finite_at_extreme_logits_and_have_the_values_of_the_papers():
    assert all(np.isfinite(numbers).all() for numbers in jax.tree.leaves(slopes()))
    values = {name: [value[2] for value, _ in terms] for name, terms in slopes().items()}  # at the logit 0
    log_2 = np.log(2)
    wanted = {
        "minimax": (log_2, log_2, -log_2),
        "nonsaturating": (log_2, log_2, log_2),
        "least_squares": (0.5, 0, 0.5),
        "hinge": (1, 1, 0),
        "wasserstein": (0, 0, 0),
    }
    for name, numbers in wanted.items():
        np.testing.assert_allclose(values[name], numbers, atol=1e-6, err_msg=name)


def test_where_the_discriminator_is_sure_only_the_saturating_generator_has_no_slope():
    generator = {name: terms[2][1][1] for name, terms in slopes().items()}  # at the logit -10
    assert generator["minimax"] == pytest.approx(-4.54e-5, rel=1e-3)
    assert generator["nonsaturating"] == pytest.approx(-1, abs=1e-4)
    assert generator["hinge"] == generator["wasserstein"] == -1


def test_the_discriminator_wants_data_up_and_samples_down():
    for name, (real, fake, generator) in slopes().items():
        assert real[1][2] < 0 or name == "wasserstein" and real[1][2] == -1, name
        assert fake[1][3] > 0 and generator[1][1] < 0, name
        if name in ("minimax", "nonsaturating", "hinge"):  # nothing is left to win where the data are separated
            assert real[0][4] == fake[0][0] == 0, name


def test_penalties_of_a_linear_discriminator_are_known():
    generator = np.random.default_rng(0)
    weight, real, fake = (jnp.float32(generator.normal(size=shape)) for shape in ((2, 3, 1), (5, 2, 3, 1), (5, 2, 3, 1)))

    @jax.jit
    def penalties(weight):
        linear = lambda x, w: (x * w[None]).sum((1, 2, 3))  # noqa: E731
        one = lambda w, kind: adversarial.penalty(kind, lambda x: linear(x, w), real, fake, KEY)  # noqa: E731
        return {kind: jax.value_and_grad(one)(weight, kind) for kind in ("none", "gradient", "r1", "dragan")}

    norm, found = np.linalg.norm(weight), penalties(weight)
    wanted = {"none": 0, "gradient": (norm - 1) ** 2, "r1": norm**2 / 2, "dragan": (norm - 1) ** 2}
    slope = {"none": 0, "gradient": 2 * (norm - 1) / norm, "r1": 1, "dragan": 2 * (norm - 1) / norm}
    for kind, (value, gradient) in found.items():
        np.testing.assert_allclose(value, wanted[kind], rtol=1e-5, err_msg=kind)
        np.testing.assert_allclose(gradient, slope[kind] * weight, rtol=1e-4, atol=1e-6, err_msg=kind)
    for kind, (value, gradient) in penalties(0 * weight).items():
        assert float(value) == (1 if kind in ("gradient", "dragan") else 0) and not gradient.any(), kind


def test_where_each_penalty_measures_the_slope():
    """D(x) = |x|^2 / 2 has the slope x: between data and samples, on the data, and near the data."""
    real, fake = jnp.full((500, 1), 2.0), jnp.full((500, 1), 6.0)
    measured = jax.jit(lambda real, kind: adversarial.penalty(kind, lambda x: (x**2).sum(-1) / 2, real, fake, KEY), static_argnums=1)
    assert measured(real, "r1") == 2
    assert measured(real, "gradient") == pytest.approx(((6 - 1) ** 3 - (2 - 1) ** 3) / 3 / 4, rel=0.1)  # E (x - 1)^2, x uniform on [2, 6]
    assert measured(real, "dragan") == 1  # equal data have no spread
    assert 0 < measured(jnp.float32([[-2], [2]] * 250), "dragan") != 1


def test_the_penalty_of_convolutions_has_the_gradient_of_its_differences():
    """A gradient of a gradient, through the library's own convolutions, which have derivatives of their own."""
    config = GANConfig((4, 4, 1), 5, hidden=4, architecture="conv")
    generator, shapes = np.random.default_rng(0), jax.eval_shape(lambda: GAN(config, rngs=nnx.Rngs(0)).discriminator)
    network, along = (jax.tree.map(lambda x: jnp.float32(generator.normal(size=x.shape)), shapes) for _ in range(2))
    real, fake = (jnp.float32(generator.normal(size=(10, 4, 4, 1))) for _ in range(2))

    def of(network):
        return adversarial.penalty("gradient", lambda x: network(x)[:, 0], real, fake, KEY)

    @jax.jit
    def both(network):
        steps = jax.lax.map(lambda t: of(jax.tree.map(lambda p, d: p + t * d, network, along)), jnp.float32([-1e-3, 1e-3]))
        products = jax.tree.map(lambda g, d: (g * d).sum(), jax.grad(of)(network), along)
        return sum(jax.tree.leaves(products)), (steps[1] - steps[0]) / 2e-3

    by_gradient, by_difference = both(network)
    assert abs(float(by_gradient)) > 0.1
    assert float(by_gradient) == pytest.approx(float(by_difference), rel=1e-3)


# --- Spectral normalisation ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: nnx.Linear(6, 4, precision=EXACT, rngs=nnx.Rngs(0)), lambda: Conv(3, 4, 3, nnx.Rngs(0))])
def test_the_largest_singular_value_becomes_1_and_calls_change_nothing(make):
    layer, plain = Spectral(make()), make()
    kernel = np.float32(np.random.default_rng(0).normal(size=layer.layer.kernel.shape))
    layer.layer.kernel[...] = kernel
    x = np.float32(np.random.default_rng(1).normal(size=(2, 5, 5, 3) if kernel.ndim == 4 else (2, 6)))

    @jax.jit
    def converged(layer, x):
        graph, state = nnx.split(layer)

        def with_vector(vector):
            return nnx.merge(graph, state | {"vector": state["vector"].replace(vector)})

        vector = jax.lax.fori_loop(0, 100, lambda _, vector: with_vector(vector).advanced(), layer.vector[...])
        layer = with_vector(vector)
        return vector, layer.kernel(), layer(x), layer(x), layer.vector[...]

    vector, normalised, once, twice, after = converged(layer, x)
    singular = np.linalg.svd(np.asarray(normalised, np.float64).reshape(-1, 4), compute_uv=False)
    assert singular[0] == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(normalised, kernel / np.linalg.svd(kernel.reshape(-1, 4), compute_uv=False)[0], rtol=1e-3)
    np.testing.assert_array_equal(once, twice)
    np.testing.assert_array_equal(vector, after)
    plain.kernel[...] = normalised
    np.testing.assert_allclose(once, plain(jnp.asarray(x)), rtol=1e-4, atol=1e-5)


def test_a_step_advances_the_vectors_once_and_only_with_spectral_normalisation():
    model, mesh = model_of("gan of points"), sharding.make_mesh()
    wanted = jax.jit(lambda model: [layer.advanced() for layer in spectral_layers(model.discriminator)])(model)
    before = [layer.vector[...] for layer in spectral_layers(model.discriminator)]
    optimizer = training.make_optimizer(training.OptimizerConfig(players=(("generator", 0.0), ("discriminator", 0.1))), 10)
    state = training.init_state(jax.tree.map(jnp.array, model), optimizer, mesh)
    batch = {"point": jnp.float32(np.random.default_rng(0).normal(size=(8, 2)))}
    state, metrics = training.make_train_step(optimizer, mesh)(state, batch, KEY)
    for new, old, vector in zip(spectral_layers(state.model.discriminator), before, wanted, strict=True):
        np.testing.assert_allclose(new.vector[...], vector, rtol=1e-5, atol=1e-6)
        assert not np.allclose(new.vector[...], old, atol=1e-3) or old.size == 1
    assert len(before) == 3 and metrics["penalty"] > 0
    for old, new in zip(jax.tree.leaves(model.generator), jax.tree.leaves(state.model.generator), strict=True):
        np.testing.assert_array_equal(old, new)
    assert hasattr(model, "after_update") and not hasattr(model_of("gan"), "after_update")


# --- The game on finite sets --------------------------------------------------------------------------------------------------------------


def test_the_largest_value_of_the_game_is_minus_log_4_plus_2_jsd():
    generator = np.random.default_rng(0)
    p, q = generator.dirichlet(np.ones(7)), generator.dirichlet(np.ones(7))
    p[2] = 0
    p /= p.sum()
    best, divergence = adversarial.optimal_discriminator(p, q), adversarial.js_divergence(p, q)
    largest = adversarial.value(p, q, best)
    assert float(largest) == pytest.approx(-np.log(4) + 2 * float(divergence), abs=1e-6)
    grid = np.linspace(0, 1, 200_001)[1:-1, None]  # V is a sum over x, so its largest value is found for each x by itself
    assert float(largest) == pytest.approx((p * np.log(grid) + q * np.log(1 - grid)).max(0).sum(), abs=1e-5)
    for other in np.clip(np.asarray(best)[None] + generator.normal(size=(20, 7), scale=0.05), 1e-3, 1 - 1e-3):
        assert adversarial.value(p, q, other) < largest


def test_the_divergence_is_0_of_equals_and_log_2_of_strangers():
    half = np.float32([0.5, 0.5, 0, 0])
    assert adversarial.js_divergence(half, half) == 0
    assert float(adversarial.js_divergence(half, half[::-1])) == pytest.approx(np.log(2), abs=1e-6)
    np.testing.assert_array_equal(adversarial.optimal_discriminator(half, np.float32([0, 1, 0, 0]))[jnp.array([0, 3])], [1, 0.5])
    assert float(adversarial.value(half, half, [0.5, 0.5, 0, 1])) == pytest.approx(-np.log(4), abs=1e-6)
    for bad, said in (([0.5, 0.6], "sum 1.1"), ([1.5, -0.5], "least -0.5"), ([[1.0]], r"shape \[N\]")):
        with pytest.raises(ConfigError, match=f"^p: .*{said}"):
            adversarial.js_divergence(bad, bad)
    with pytest.raises(ConfigError, match="the same shape"):
        adversarial.value(half, half, [0.5])


# --- Conditional GANs ---------------------------------------------------------------------------------------------------------------------

SMALL = {
    conditioning: ConditionalGANConfig((4, 4, 1), 5, 2, 4, 1, architecture, 1, num_classes=3, conditioning=conditioning)
    for conditioning, architecture in (("concatenation", "conv"), ("projection", "mlp"), ("auxiliary", "mlp"))
}


@cache
def conditional() -> dict:
    """{conditioning: the losses of a batch, of one with shuffled labels, judgements, samples of two classes}, one program."""
    generator = np.random.default_rng(0)
    image, label = jnp.asarray(generator.integers(0, 5, (6, 4, 4, 1)), jnp.uint8), np.arange(6, dtype=np.int32) % 3

    def of_numpy(config):
        shapes = jax.eval_shape(lambda: MODELS[type(config)](config, rngs=nnx.Rngs(0)))
        return jax.tree.map(lambda leaf: np.float32(0.5) * generator.standard_normal(leaf.shape, np.float32), shapes)

    def numbers(model):
        batches = [{"image": image, "label": labels} for labels in (label, np.roll(label, 1))]
        real = image.astype(jnp.float32) / 2 - 1
        judged = [model.discriminate(real, labels) for labels in (label, np.eye(3, dtype=np.float32)[label], np.roll(label, 1))]
        z = jnp.asarray(np.random.default_rng(1).standard_normal((6, 2), np.float32))
        judged.append(model.discriminator_loss(real, z, label) - GAN.discriminator_loss(model, real, z, label=label))
        if model.config.conditioning == "auxiliary":
            judged += [model.discriminator.classes(model.discriminator.network.features(x)) for x in (real, model.generate(z, label))]
        drawn = [model.sample(KEY, 4, label=one) for one in (0, 1)]
        return [model.loss(batch, KEY)[1] for batch in batches], judged, drawn

    return jax.jit(lambda models: jax.tree.map(numbers, models, is_leaf=lambda x: isinstance(x, nnx.Module)))(
        {name: of_numpy(config) for name, config in SMALL.items()}
    )


@pytest.mark.parametrize("conditioning", SMALL)
def test_both_players_are_given_the_label(conditioning):
    losses, (judged, weighed, rolled, entropy, *logits), drawn = conditional()[conditioning]
    for name in ("generator_loss", "discriminator_loss"):
        assert abs(losses[0][name] - losses[1][name]) > 1e-4
    np.testing.assert_allclose(judged, weighed, rtol=1e-5, atol=1e-6)  # a class, and all the weight on it
    if conditioning == "auxiliary":  # the label is in the cross entropy of real and of generated images, and nowhere else
        np.testing.assert_array_equal(judged, rolled)
        exact = -sum((one - np.log(np.exp(one).sum(-1, keepdims=True)))[np.arange(6), np.arange(6) % 3].mean() for one in logits)
        np.testing.assert_allclose(entropy, exact, rtol=1e-4)
    else:
        assert (np.abs(judged - rolled) > 1e-4).all() and entropy == 0
    assert (drawn[0] != drawn[1]).any() and drawn[0].dtype == jnp.uint8 and drawn[0].max() < 5


def test_the_players_of_a_conditional_gan_have_all_parameters_and_need_labels():
    model = model_of("conditional_gan")
    assert set(nnx.state(model, nnx.Param)) == set(model.config.players)
    features = {"image": Image((4, 4, 1), 5), "label": ClassLabel(3)}
    assert ConditionalGANConfig.sizes_from(features) == {"image_shape": (4, 4, 1), "levels": 5, "num_classes": 3}
    points = ConditionalGANConfig((2,), 0, num_classes=3)
    assert points.features == {"point": Points(2), "label": ClassLabel(3)}
    assert ConditionalGANConfig.sizes_from(points.features) == {"image_shape": (2,), "levels": 0, "num_classes": 3}
    with pytest.raises(DataError, match="a set with labels, for a conditional GAN"):
        ConditionalGANConfig.sizes_from({"image": Image((4, 4, 1), 5)})
    with pytest.raises(ConfigError, match="num_classes: wanted 2 or more"):
        ConditionalGANConfig(num_classes=1)
    for missing in (lambda: model.sample(KEY, 2), lambda: model.loss({"image": jnp.zeros((2, 4, 4, 1), jnp.uint8)}, KEY)):
        with pytest.raises(ConfigError, match="^label: .*class-conditional"):
            missing()
