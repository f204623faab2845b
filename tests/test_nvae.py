"""NVAE: the residual KL, the bounds against an enumeration, what a sample depends on, the regulariser, the balance, the published sizes."""

from dataclasses import replace
from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_models import drawn

from jaxgen import statistics
from jaxgen.errors import ConfigError
from jaxgen.layers import residual_cells
from jaxgen.models import NVAE, NVAEConfig, count_parameters
from jaxgen.models.nvae import residual_kl, squashed_halves

TINY = NVAEConfig((1, 2, 1), 2, widths=(2, 2), groups=(1, 1), latent=1, expansion=1)
TWO = NVAEConfig((4, 4, 1), 3, widths=(4, 4), groups=(1, 1), latent=2, expansion=1)
EVERY = jnp.asarray(list(product((0, 1), repeat=2)), jnp.uint8).reshape(4, 1, 2, 1)


def random(config: NVAEConfig) -> NVAE:
    """A model whose weights are all random, also those that are zero at first."""
    shapes, generator = jax.eval_shape(lambda: NVAE(config, rngs=nnx.Rngs(0))), np.random.default_rng(0)
    return jax.device_put(jax.tree.map(lambda leaf: np.asarray(0.5 * generator.standard_normal(leaf.shape, np.float32)), shapes))


@pytest.fixture(scope="module")
def tiny():
    model = random(TINY)
    for posterior in model.encoder.posteriors:  # q and p are near enough for importance weights of a finite variance
        posterior.head.kernel[...] *= 0.3
        posterior.head.bias[...] = jnp.asarray([[0.4, 0.2]], jnp.float32)
    return model


def test_the_residual_kl_is_the_kl_of_the_two_gaussians():
    generator = np.random.default_rng(0)
    mean, log_scale, shift, log_ratio = generator.uniform(-2, 2, (4, 200))
    one, other = (mean + shift, np.exp(log_scale + log_ratio)), (mean, np.exp(log_scale))
    general = np.log(other[1] / one[1]) + (one[1] ** 2 + (one[0] - other[0]) ** 2) / (2 * other[1] ** 2) - 0.5
    found = residual_kl(*(jnp.float32(x) for x in (shift, log_ratio, log_scale)))
    np.testing.assert_allclose(found, general, rtol=1e-4, atol=1e-5)
    assert (np.asarray(found) > 0).all()
    np.testing.assert_array_equal(residual_kl(jnp.zeros(3), jnp.zeros(3), jnp.arange(3.0)), 0)


def test_heads_are_squashed_with_slope_one_at_zero():
    both = lambda x: jnp.stack(squashed_halves(jnp.full((1, 1, 1, 2), x)))  # noqa: E731
    np.testing.assert_allclose(jax.jacfwd(both)(0.0), 1, rtol=1e-6)
    assert float(jnp.abs(both(1e4)).max()) <= 5


def test_the_bounds_are_below_a_likelihood_that_sums_to_one(tiny):
    """All 4 images of two pixels. The importance-weighted bound tends to log p only if p and q of every group are those of the draws: its
    mean weight is the mean of p(x | z) over z from the prior, which knows no q. The bound with the KL in closed form has the mean of the
    one with drawn log p - log q."""

    def given(parameters):  # p(x | z) of all images, for each z
        return jax.vmap(lambda x: jnp.exp(tiny._log_likelihood(jnp.broadcast_to(x, (len(parameters), 1, 2, 1)), parameters)))(EVERY)

    @jax.jit
    def numbers(model):
        keys = jax.random.split(jax.random.key(1), 40_000)
        closed = jax.lax.map(lambda key: model.elbo(EVERY, key), keys[:4000], batch_size=2000)
        drawn = jax.lax.map(lambda key: model.importance_bound(EVERY, key, 1), keys, batch_size=2000)
        return closed, drawn, given(model._top_down(100_000, jax.random.key(2)).parameters)

    closed, drawn, of_prior = (np.asarray(x, np.float64) for x in numbers(tiny))
    weights, error = np.exp(drawn), lambda x: x.std(axis=0) / np.sqrt(len(x))
    exact = np.log(of_prior.mean(axis=1))
    assert np.exp(exact).sum() == pytest.approx(1, abs=1e-5)
    assert (np.abs(weights.mean(axis=0) - np.exp(exact)) < 4 * np.hypot(error(weights), error(of_prior.T))).all()
    assert error(weights).max() < 0.01
    gap = closed - drawn[:4000]
    assert (np.abs(gap.mean(axis=0)) < 4 * error(gap)).all() and gap.std() > 0.1
    assert (exact - closed.mean(axis=0) > 0.02).all()


def test_a_sample_uses_the_decoder_and_nothing_of_the_encoder(tiny):
    draw = jax.jit(lambda model, temperature: model.sample(jax.random.key(0), 64, temperature))
    before = draw(tiny, 1.0)
    changed = lambda part: jax.tree.map(lambda x: x + 1, part)  # noqa: E731
    graph, state = nnx.split(tiny)
    other, third = (nnx.merge(graph, {**state, part: changed(state[part])}) for part in ("encoder", "decoder"))
    np.testing.assert_array_equal(draw(other, 1.0), before)
    assert (draw(third, 1.0) != before).any() and (draw(tiny, 0.1) != before).any()
    assert before.shape == (64, 1, 2, 1) and before.dtype == jnp.uint8


def test_decoded_latents_give_the_parameters_of_the_pass_that_drew_them(tiny):
    @jax.jit
    def numbers(model):
        drawn = model._top_down(4, features=model._features(EVERY))
        z = model.encode(EVERY)
        return drawn.parameters, model.decode(z), model.reconstruct(EVERY), drawn.z, model.groups(z), model.picture(z)

    passed, decoded, rebuilt, drawn, groups, picture = numbers(tiny)
    chex.assert_trees_all_equal(groups, drawn)
    np.testing.assert_array_equal(picture, rebuilt)
    np.testing.assert_allclose(decoded, passed, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(rebuilt, np.asarray(passed)[..., 0] > 0)
    with pytest.raises(ConfigError, match=r"z: wanted \[B, 5\], got \[4, 4\]"):
        tiny.decode(jnp.zeros((4, 4)))


@pytest.mark.parametrize("likelihood", ["categorical", "logistic", "mixture"])
def test_the_probabilities_of_the_256_levels_sum_to_one(likelihood):
    """Also for means at the upper end, where a bin left open too early makes the sum 1.3."""
    config = NVAEConfig((2, 2, 1), 256, widths=(2,), groups=(1,), likelihood=likelihood)
    head = jax.eval_shape(lambda: NVAE(config, rngs=nnx.Rngs(0))).head
    generator, size = np.random.default_rng(0), head.size
    parameters = generator.uniform(-6, 6, (6, size)).astype(np.float32)
    if likelihood != "categorical":
        parameters[:, size // 3 :] = generator.uniform(-5, -1, (6, size - size // 3))
        parameters[:, size // 3 if likelihood == "mixture" else 0] = [0.95, 0.99, 1.0, -0.99, 0.0, 0.992]
    x = jnp.arange(256).reshape((256, 1) if likelihood == "mixture" else (256,))
    sums = jax.jit(jax.vmap(lambda row: jnp.exp(head.log_prob(jnp.broadcast_to(row, (256, size)), x)).sum()))(parameters)
    np.testing.assert_allclose(sums, 1, atol=1e-4)


# --- Training -----------------------------------------------------------------------------------------------------------------------


def test_two_resolutions_are_trained_and_the_loss_is_its_formula():
    """From the first weights, whose posteriors are the priors, a few steps change all weights and give every group a KL."""
    config = replace(TWO, warm_up=10, spectral=0.1)
    batch = {"image": jnp.asarray(np.random.default_rng(0).integers(0, 3, (16, 4, 4, 1), np.uint8))}

    @jax.jit
    def step(model, t):
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params):
            value, metrics, found = nnx.merge(graph, params, rest).loss(batch, jax.random.fold_in(jax.random.key(0), t))
            return value, (metrics, statistics.values(found))

        (value, (metrics, found)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
        return nnx.merge(graph, params, rest).after_update(found, jax.random.key(0)), metrics | {"loss": value}

    model, kls = drawn(config), [np.zeros(2)]
    before, vectors = nnx.state(model, nnx.Param), [v[...] for v in model.vectors]
    for t in range(14):
        previous, (model, metrics) = model, step(model, t)
        kl = np.array([metrics[f"nats_kl_{i}"] for i in (1, 2)])
        sizes = kls[-1] * [4, 16]
        weights = min((t + 1) / 10, 1) * (sizes / sizes.mean() if 0 < t < 9 and sizes.any() else np.ones(2))
        nats = metrics["nats_bound"] - kl.sum() + (weights * kl).sum() + 0.1 * metrics["spectral"]
        assert float(metrics["loss"]) * 16 * np.log(2) == pytest.approx(float(nats), rel=1e-4), t
        kls.append(kl)
    assert (kls[1] == 0).all() and (kls[-1] > 1e-4).all(), kls
    assert int(model.steps[...]) == 14
    np.testing.assert_array_equal(model.kl[...], kls[-1])
    pairs = zip(*map(jax.tree.leaves, jax.device_get((before, nnx.state(model, nnx.Param)))), strict=True)
    assert all((one != two).any() for one, two in pairs)
    regulariser = sum(np.abs(gain).max(-1).sum() for gain in jax.device_get(residual_cells.gains(previous)))
    for first, w, v in zip(vectors, residual_cells.matrices(previous), previous.vectors, strict=True):
        w, v = np.asarray(w, np.float64), np.asarray(v[...])
        exact, found = np.linalg.norm(w, 2, axis=(1, 2)), np.linalg.norm(np.einsum("nre,ne->nr", w, v), axis=-1)
        assert (first != v).any() and (found <= exact * (1 + 1e-5)).all()
        assert (found >= 0.9 * exact).all()  # after a few steps of the power iteration
        regulariser += found.sum()
    np.testing.assert_allclose(metrics["spectral"], regulariser, rtol=1e-4)


def test_power_iteration_finds_the_largest_singular_values_and_their_gradient():
    w = jax.random.normal(jax.random.key(0), (3, 18, 5)).at[2].set(0)
    v = residual_cells.power_iteration([w], [jnp.full((3, 5), 5**-0.5)], 100)[0]
    np.testing.assert_allclose(residual_cells.norms(w, v), np.linalg.norm(np.asarray(w), 2, axis=(1, 2)), rtol=1e-2, atol=1e-5)
    u, _, vt = np.linalg.svd(np.asarray(w[0]))
    gradient = jax.grad(lambda w: residual_cells.norms(w, v).sum())(w)
    np.testing.assert_allclose(gradient[0], np.outer(u[:, 0], vt[0]), atol=0.02)
    np.testing.assert_array_equal(gradient[2], 0)


# --- The layers ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(3, 5), (9, 10)], ids=["one product", "rows"])
def test_a_depthwise_convolution_by_products_is_one(size):
    x, kernel = (jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32)) for shape in ((2, *size, 4), (5, 5, 4)))
    axes = ("NHWC", "HWIO", "NHWC")
    plain = jax.lax.conv_general_dilated(x, kernel[:, :, None], (1, 1), "SAME", dimension_numbers=axes, feature_group_count=4)
    np.testing.assert_allclose(residual_cells.depthwise(x, kernel), plain, rtol=1e-4, atol=1e-4)


def test_a_group_norm_sees_one_image():
    x = jnp.asarray(3 + 2 * np.random.default_rng(0).standard_normal((2, 4, 4, 16), np.float32))
    y = np.asarray(residual_cells.GroupNorm(16)(x)).reshape(2, 16, 2, 8)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((1, 3)), 1, rtol=1e-4)


# --- Sizes --------------------------------------------------------------------------------------------------------------------------


def by_hand(config: NVAEConfig, outputs: int) -> int:
    """The count of parameters from the architecture in words, layer by layer."""
    conv = lambda k, a, b: k * k * a * b + b  # noqa: E731
    excite = lambda c: 2 * c * max(c // 16, 4) + max(c // 16, 4) + c  # noqa: E731
    encoder = lambda c: 2 * 2 * c + 2 * conv(3, c, c) + excite(c)  # noqa: E731

    def decoder(c):
        wide = config.expansion * c
        return 2 * (2 * c + 2 * wide) + conv(1, c, wide) + conv(1, wide, c) + conv(5, 1, wide) + excite(c)

    widths, z = config.widths, config.latent
    total = conv(3, config.image_shape[2], widths[0]) + conv(3, widths[0], outputs) + np.prod(config.grids[-1]) * widths[-1]
    total += sum(conv(2, a, b) + 4 * (b * a + a) for a, b in zip(widths, widths[1:], strict=False))
    total += sum(encoder(c) + decoder(c) for c in widths[: config.halvings])
    for n, c in zip(config.groups, widths[config.halvings :], strict=True):
        posterior, prior = conv(1, c, c) + conv(3, c, 2 * z), conv(1, c, 2 * z) + conv(1, z, c)
        total += n * (config.cells * (encoder(c) + decoder(c)) + posterior + prior)
    return int(total)


@pytest.mark.parametrize(
    ("config", "outputs", "count"),
    [
        (NVAEConfig((28, 28, 1), 2, widths=(32, 64, 128, 256), groups=(10, 5), latent=20), 1, 17_475_649),
        (NVAEConfig((32, 32, 3), 256, widths=(128, 256), groups=(30,), latent=20, cells=2, likelihood="mixture"), 100, 128_184_276),
    ],
    ids=["MNIST", "CIFAR-10"],
)
def test_published_sizes_have_the_counts_of_the_architecture(config, outputs, count):
    """Groups, channels, latents and cells of the paper's table of hyper-parameters."""
    model = jax.eval_shape(lambda: NVAE(config, rngs=nnx.Rngs(0)))
    assert count_parameters(model) == by_hand(config, outputs) == count


def test_bfloat16_is_of_activations_only():
    model = jax.eval_shape(lambda: NVAE(replace(TINY, dtype="bfloat16"), rngs=nnx.Rngs(0)))
    program = jax.make_jaxpr(lambda model: (model.elbo(EVERY, jax.random.key(0)), model.decode(model.encode(EVERY))))(model)
    assert [aval.dtype for aval in program.out_avals] == [jnp.float32, jnp.float32]
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {np.dtype("float32")}
    assert str(program).count("bf16") > 100


@pytest.mark.parametrize(
    "fields",
    [{"widths": ()}, {"groups": (1, 1, 1, 1)}, {"groups": (0,)}, {"latent": 0}, {"spectral": -1.0}],
    ids=lambda fields: next(iter(fields)),
)
def test_bad_sizes_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        NVAEConfig(**fields)


def test_sides_are_padded_to_a_multiple_of_the_coarsest_pixel():
    assert NVAEConfig((28, 28, 1), 2, widths=(8, 8, 8, 8), groups=(1, 1)).grids == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert TINY.grids == [(2, 2), (1, 1)]
