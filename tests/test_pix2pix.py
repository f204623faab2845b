"""pix2pix: two players in one loss, the condition in both, instance norm, the square of a logit, noise, measures of pairs, commands."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import batch_of, data_of, with_weights
from flax import nnx
from test_models import ALL

import jaxgen
from jaxgen import cli, evaluation, sharding, training
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers.image_to_image import InstanceNorm, PatchDiscriminator, patch_side
from jaxgen.measures import pairs as measures
from jaxgen.models import Pix2PixConfig, count_parameters
from jaxgen.models.pix2pix import Pix2Pix
from jaxgen.reports import drawing

CONFIG = Pix2PixConfig((8, 8, 3), 17, 2, 5, width=4, halvings=2, noise="dropout", adversarial=0.5, l1_weight=2.0)
KEY = jax.random.key(4)


@cache
def model() -> Pix2Pix:
    return with_weights(CONFIG)


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def softplus(x):
    return np.logaddexp(0, np.asarray(x, np.float64))


@cache
def gradients():
    """The gradient of the loss, of the generator's terms with D held, of the discriminator's with the outputs held; and the numbers."""
    batch = batch_of(CONFIG, 9)  # convolutions of at most 8 images are many operations, dear to compile (layers/convolutions.py)
    real, given = batch["image"].astype(jnp.float32) / 8 - 1, batch["input"]

    def of_generator(one, other):
        y = one.generate(given, KEY)
        return 0.5 * jax.nn.softplus(-other.patches(y, given)).mean() + 2 * jnp.abs(real - y).mean()

    def of_discriminator(one, y):
        return jax.nn.softplus(-one.patches(real, given)).mean() + jax.nn.softplus(one.patches(y, given)).mean()

    @jax.jit
    def program(one):
        y, shuffled = one.generate(given, KEY), jnp.roll(given, 1, axis=0)
        numbers = {
            "real": one.patches(real, given),
            "fake": one.patches(y, given),
            "real shuffled": one.patches(real, shuffled),
            "y": y,
            "rows": one.discriminate(real, given),
        }
        whole = jax.grad(lambda m: m.loss(batch, KEY)[0])(one)
        return whole, jax.grad(of_generator)(one, one), jax.grad(of_discriminator)(one, y), one.loss(batch, KEY), numbers

    return real, jax.device_get(program(model()))


def test_the_gradient_of_the_one_loss_is_that_of_each_player():
    _, (whole, generator, discriminator, _, _) = gradients()
    for got, wanted in ((whole.generator, generator.generator), (whole.discriminator, discriminator.discriminator)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, wanted)
        assert all(np.any(leaf) for leaf in jax.tree.leaves(got))


def test_the_loss_is_the_formula_and_a_shuffled_condition_changes_that_of_d():
    real, (_, _, _, (value, metrics), found) = gradients()
    of_d = softplus(-found["real"]).mean() + softplus(found["fake"]).mean()
    of_g, l1 = softplus(-found["fake"]).mean(), np.abs(np.asarray(real) - found["y"]).mean()
    np.testing.assert_allclose([metrics[name] for name in ("discriminator_loss", "generator_loss", "l1")], [of_d, of_g, l1], rtol=1e-5)
    np.testing.assert_allclose(value, 0.5 * of_g + 2 * l1 + of_d, rtol=1e-5)
    np.testing.assert_allclose(found["rows"], found["real"].mean((1, 2)), rtol=1e-5)
    assert abs(softplus(-found["real shuffled"]).mean() - softplus(-found["real"]).mean()) > 1e-3


# The other way round is thorough: which gradient is whose is tested above, and one step shows whose rate is used for whom.
@pytest.mark.parametrize("player, other", [("generator", "discriminator"), ("discriminator", "generator")][: 2 if ALL else 1])
def test_a_step_of_one_player_leaves_the_other_bit_equal(player, other):
    """Through the train step of every model, with the other player's learning rate at zero."""
    rates = tuple((name, 1e-2 if name == player else 0.0) for name in CONFIG.players)
    optimizer, mesh = training.make_optimizer(training.OptimizerConfig(players=rates), 10), sharding.make_mesh()
    state = training.init_state(jax.tree.map(jnp.array, model()), optimizer, mesh)
    state, metrics = training.make_train_step(optimizer, mesh)(state, batch_of(CONFIG, 9), jax.random.key(0))
    assert metrics["finite"] and equal(getattr(state.model, other), getattr(model(), other))
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), getattr(state.model, player), getattr(model(), player))
    assert all(jax.tree.leaves(moved))


def test_noise_is_the_key_and_without_noise_the_output_is_a_function_of_the_input():
    given = batch_of(CONFIG, 3)["input"]
    plain = nnx.merge(nnx.graphdef(with_weights(replace(CONFIG, noise="none"))), nnx.state(model()))

    @jax.jit
    def draw(one, other, given):
        return [[m.sample(jax.random.key(seed), 3, given) for seed in (0, 0, 1)] for m in (one, other)]

    (a, again, b), (c, _, d) = draw(model(), plain, given)
    assert np.array_equal(a, again) and np.array_equal(c, d)
    assert (np.asarray(a) != np.asarray(b)).any() and (np.asarray(a) != np.asarray(c)).any()
    one = jax.jit(lambda m, given: m.sample(KEY, 3, given))(plain, given[0])
    np.testing.assert_array_equal(one, np.broadcast_to(np.asarray(c)[:1], one.shape))
    for wrong, line in (
        (None, r"input: wanted integers \[3, 8, 8, 2\], of which outputs are made, got None"),
        (given[:2], "input: wanted 3 images, one for each output, got 2"),
        (given[..., :1], r"input: wanted shape \[B, 8, 8, 2\], got \[3, 8, 8, 1\]"),
        (given.astype(jnp.int32), "input: wanted dtype uint8, got int32"),
    ):
        with pytest.raises(ConfigError, match=line):
            model().sample(KEY, 3, wrong)
    with pytest.raises(ConfigError, match="batch: wanted an entry 'input'"):
        model().loss({"image": batch_of(CONFIG, 3)["image"]}, KEY)


def test_instance_norm_is_the_naive_formula():
    norm, x = InstanceNorm(3), np.random.default_rng(0).standard_normal((2, 4, 5, 3)).astype(np.float32) * 3 + 7
    norm.gain[...], norm.bias[...] = jnp.array([1.0, 2.0, -1.0]), jnp.array([0.0, 0.5, 4.0])
    wanted = np.empty_like(x)
    for image in range(2):
        for channel, (gain, bias) in enumerate(((1, 0), (2, 0.5), (-1, 4))):
            values = x[image, :, :, channel].astype(np.float64)
            wanted[image, :, :, channel] = gain * (values - values.mean()) / np.sqrt(values.var() + 1e-5) + bias
    np.testing.assert_allclose(jax.jit(norm)(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("halvings, side", [(1, 16), (2, 34)])
def test_a_logit_depends_on_a_square_of_pixels_and_on_no_other(halvings, side):
    """The Jacobian of one logit in the middle is not 0 on a square of exactly this side; the paper's sizes are 16, 34, 70."""
    assert patch_side(halvings) == side and patch_side(3) == 70 and Pix2PixConfig(patch_halvings=halvings).patch == side
    size = 48
    network = nnx.eval_shape(lambda: PatchDiscriminator(2, 3, halvings, nnx.Rngs(0)))
    random = np.random.default_rng(1)
    network = jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape, np.float32)), network)
    middle = size // 2 ** (halvings + 1)
    slope = jax.jit(jax.grad(lambda x: network(x)[0, middle, middle]))(jnp.asarray(random.standard_normal((1, size, size, 2), np.float32)))
    rows, columns = (np.flatnonzero(np.any(np.asarray(slope)[0] != 0, axis=axes)) for axes in ((1, 2), (0, 2)))
    assert len(rows) == len(columns) == side and rows[-1] - rows[0] == columns[-1] - columns[0] == side - 1


def test_parameters_by_hand():
    """Outputs of 3 channels, inputs of 1: the two networks of width w = 32, four halvings, one of the discriminator."""
    down = 16 * (1 * 32 + 32 * 64 + 64 * 128 + 128 * 256) + 32 + 2 * (64 + 128) + 256  # bias, norms, bias
    up = 16 * (256 * 128 + 256 * 64 + 128 * 32 + 64 * 32) + 2 * (128 + 64 + 32 + 32)
    generator = down + up + 9 * (32 + 1) * 3 + 3
    discriminator = 16 * (4 * 32 + 32 * 64 + 64 * 1) + 32 + 64 + 1
    shapes = jax.eval_shape(lambda: Pix2Pix(Pix2PixConfig(), rngs=nnx.Rngs(0)))
    assert (count_parameters(shapes.generator), count_parameters(shapes.discriminator)) == (generator, discriminator)


def test_configurations_that_do_not_fit_are_one_line():
    for field, value, line in (
        ("image_shape", (36, 32, 3), r"image_shape: wanted \(H, W, C\) with H and W multiples of 16 \(halvings=4, patch_halvings=1\)"),
        ("input_levels", 1, "input_levels: wanted 2..65536, got 1"),
        ("l1_weight", -1.0, "l1_weight: wanted 0 or more, got -1.0"),
        ("width", 0, "width: wanted 1 or more, got 0"),
    ):
        with pytest.raises(ConfigError, match=line):
            replace(Pix2PixConfig(), **{field: value})
    with pytest.raises(ConfigError, match="halvings: wanted 2 or more for noise=dropout"):
        Pix2PixConfig(halvings=1, noise="dropout")
    with pytest.raises(DataError, match="data: wanted pairs of images, for this model, got images .*; --data.pairs says"):
        Pix2PixConfig.sizes_from({"image": CONFIG.features["image"]})
    shape = CONFIG.features["image"]
    wanted = {(8, 8): 3, (28, 28): 2, (32, 48): None, (24, 16): 3}
    found = {size: Pix2PixConfig.defaults_for({"image": replace(shape, shape=(*size, 3))}).get("halvings") for size in wanted}
    assert found == wanted


def naive_ssim(x, y):
    """Of images [H, W] in [0, 1], window by window."""
    at = np.arange(11) - 5
    weights = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for r in range(x.shape[0] - 10):
        for c in range(x.shape[1] - 10):
            a, b = x[r : r + 11, c : c + 11], y[r : r + 11, c : c + 11]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            of_a, of_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            both = (weights * (a - mean_a) * (b - mean_b)).sum()
            top = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
            values.append(top / ((mean_a**2 + mean_b**2 + 1e-4) * (of_a + of_b + 9e-4)))
    return np.mean(values)


def test_measures_of_pairs():
    random = np.random.default_rng(0)
    x = random.random((2, 13, 12, 2), np.float32)
    y = np.clip(x + 0.2 * random.standard_normal(x.shape, np.float32), 0, 1)
    error, psnr, ssim = np.asarray(measures.all_of_pairs(x, y)).T
    np.testing.assert_allclose(error, np.abs(x - y).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(psnr, -10 * np.log10(((x - y).astype(np.float64) ** 2).mean((1, 2, 3))), rtol=1e-5)
    wanted = [np.mean([naive_ssim(x[i, ..., c], y[i, ..., c]) for c in (0, 1)]) for i in (0, 1)]
    np.testing.assert_allclose(ssim, wanted, rtol=1e-4)
    np.testing.assert_allclose(measures.all_of_pairs(x, x), [[0, 100, 1]] * 2, atol=1e-4)
    small = np.asarray(measures.all_of_pairs(x[:, :4, :5], y[:, :4, :5]))  # the window has 3 pixels
    assert np.isfinite(small).all() and (small[:, 2] < 1).all()
    whole = evaluation.pair_metrics(np.rint(x * 255), np.rint(y * 255), 256)
    np.testing.assert_allclose([whole["absolute_error"], whole["n"]], [error.mean(), 2], atol=2e-3)
    np.testing.assert_allclose(whole["ssim_standard_error"], ssim.std(ddof=1) / np.sqrt(2), atol=2e-3)


def test_an_evaluation_scores_the_outputs_that_are_drawn():
    """Those of `draw_like`, of the same key; the batch size changes nothing."""
    dataset, key = data_of(CONFIG, 10), jax.random.key(3)
    results = [evaluation.evaluate(model(), dataset, batch_size=size, key=key) for size in (4, 10)]
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    columns, drawn = evaluation.draw_like(model(), dataset, key, batch_size=4)
    wanted = evaluation.pair_metrics(drawn, columns["image"], CONFIG.levels)
    assert evaluation.headline(results[0]) == ("absolute_error", pytest.approx(wanted["absolute_error"], rel=1e-5))
    assert results[0] == pytest.approx(wanted, rel=1e-4) and set(results[0]) == set(wanted)
    assert evaluation.metrics_of(model(), dataset) == ("absolute_error", "psnr", "ssim", "frechet_pixels")


def test_a_picture_shows_input_output_and_truth():
    dataset = data_of(CONFIG, 3)
    one = replace(CONFIG, input_channels=1)
    grey = data_of(one, 3)
    for config, data in ((one, grey), (replace(one, image_shape=(8, 8, 1), input_channels=3), None)):
        data = data or data_of(config, 3)
        drawn = np.full((5, *config.image_shape), 2, np.uint8)
        picture = drawing.with_inputs(with_weights(config), data, drawn)
        assert picture.shape == (5, 8, 26, 3) and (picture[:, :, [8, 17]] == 16).all() and (picture[:, :, 9:17] == 2).all()
        rows = np.arange(5) % 3
        np.testing.assert_array_equal(picture[:, :, :8], np.broadcast_to(data.columns["input"][rows] * 4, (5, 8, 8, 3)))  # 5 levels to 17
        np.testing.assert_array_equal(picture[:, :, 18:], np.broadcast_to(data.images[rows], (5, 8, 8, 3)))
    plain = np.zeros((2, 4), np.float32)
    assert drawing.with_inputs(object(), dataset, plain) is plain


def test_commands(tmp_path, capsys, monkeypatch):
    """Train with its report, sample, load; what does not apply is one line. The data decide the sizes, also how often they are halved."""
    monkeypatch.chdir(tmp_path)
    words = ["pix2pix", "--data.name=digits", "--data.pairs=outline", "--data.augment", "flip", "shift", "--model.width=4"]
    words += ["--train.steps=2", "--train.eval_every=2", "--train.batch_size=16", "--report.samples=3", "--workdir=runs/x"]
    with monkeypatch.context() as patch:  # the model that would be trained; the one below is smaller
        found = []
        patch.setattr(cli.Train, "__call__", lambda self: found.append(self.experiment.model) or 0)
        assert cli.command("train", words) == 0 and found == [Pix2PixConfig((8, 8, 1), 17, 1, 2, width=4, halvings=3)]
    assert cli.command("train", [*words, "--model.halvings=1"]) == 0
    out = capsys.readouterr().out
    assert "validation absolute_error 0." in out and "test absolute_error" in out and "  psnr " in out and "  ssim " in out
    assert cli.command("sample", ["runs/x", "--n", "4"]) == 0
    out = capsys.readouterr().out
    assert "4 samples, each between its input and the true output" in out and (tmp_path / "runs/x/samples.png").exists()
    loaded = jaxgen.load("runs/x")
    assert loaded.config == Pix2PixConfig((8, 8, 1), 17, 1, 2, width=4, halvings=1)
    for command, line in (
        (["complete", "runs/x"], "RUN: wanted a model that can complete images or strings, or continue a series, got Pix2Pix"),
        (["upscale", "runs/x"], "RUN: wanted a model that upscales images (low_resolution is set), got Pix2Pix"),
        (["sample", "runs/x", "--label", "3"], "--label: wanted none, since the model is not class-conditional, got 3"),
        (["sample", "runs/x", "--truncation", "1"], "--truncation: wanted a model whose sampler takes it, got Pix2Pix"),
        (["reconstruct", "runs/x"], "Pix2Pix"),
        (["interpolate", "runs/x"], "Pix2Pix"),
        (["classify", "runs/x"], "Pix2Pix"),
    ):
        assert cli.command(command[0], command[1:]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and line in err
    assert cli.command("train", ["pix2pix", "--data.name=digits"]) == 3
    assert "data: wanted pairs of images, for this model" in capsys.readouterr().err
