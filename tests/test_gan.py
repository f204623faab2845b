"""The GAN's two players: one loss with exactly the two gradients, the non-saturating form, and the ring."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from all_models import with_weights
from flax import nnx

from jaxgen import sharding, training
from jaxgen.data import DataConfig, load
from jaxgen.data import points as ring
from jaxgen.errors import ConfigError
from jaxgen.experiment import Experiment, train
from jaxgen.models.gan import GAN, GANConfig
from jaxgen.runs import directory, report

SMALL = {
    "points": GANConfig((2,), 0, latent=2, hidden=16),
    "mlp": GANConfig((3, 5, 1), 4, latent=3, hidden=8),
    "conv": GANConfig((4, 8, 3), 17, latent=3, hidden=6, architecture="conv"),
}
PLAYERS = (("generator", 1e-2), ("discriminator", 2e-2))

loss = jax.jit(GAN.loss)
sample = jax.jit(GAN.sample, static_argnames="n")


@cache
def weights(name: str) -> GAN:
    return jax.tree.map(np.asarray, with_weights(SMALL[name]))


def make(name: str) -> GAN:
    """A new model, always with the same random weights."""
    return jax.device_put(jax.tree.map(np.array, weights(name)))


def batch(config: GANConfig, n: int = 9) -> dict:
    """Of more than 8 images, since convolutions of fewer are many operations, dear to compile (layers/convolutions.py)."""
    rng = np.random.default_rng(0)
    if config.levels == 0:
        return {"point": jnp.float32(rng.normal(size=(n, *config.image_shape)))}
    return {"image": jnp.asarray(rng.integers(0, config.levels, (n, *config.image_shape)), jnp.uint8)}


def scaled(model: GAN, data: dict):
    return data["point"] if "point" in data else data["image"].astype(jnp.float32) * (2 / (model.config.levels - 1)) - 1


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_of_the_one_loss_is_bitwise_the_two_separate_gradients(name):
    model, key = make(name), jax.random.key(1)
    data = batch(model.config)
    real, z = scaled(model, data), jax.random.normal(key, (9, model.config.latent))

    def generator_loss(generator, discriminator):
        x = generator(z).reshape(-1, *model.config.image_shape)
        return jnp.log1p(jnp.exp(-discriminator(x if model.config.levels == 0 else jnp.tanh(x)))).mean()

    def discriminator_loss(discriminator, fake):
        return -jnp.log(jax.nn.sigmoid(discriminator(real))).mean() - jnp.log(1 - jax.nn.sigmoid(discriminator(fake))).mean()

    @jax.jit
    def gradients(model):
        one = jax.grad(lambda model: model.loss(data, key)[0])(model)
        two = jax.grad(lambda model: model.generator_loss(z))(model), jax.grad(lambda model: model.discriminator_loss(real, z))(model)
        # The same from the paper's formulas, in which no gradient is stopped.
        players = (
            jax.grad(generator_loss)(model.generator, model.discriminator),
            jax.grad(discriminator_loss)(model.discriminator, model.generate(z)),
        )
        return one, *two, players

    gradient, only_generator, only_discriminator, wanted = jax.device_get(gradients(model))
    assert equal(gradient.generator, only_generator.generator)
    assert equal(gradient.discriminator, only_discriminator.discriminator)
    for other in (only_generator.discriminator, only_discriminator.generator):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(other))
    for got, want in zip((gradient.generator, gradient.discriminator), wanted, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)
        assert all(np.any(leaf) for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize("player, other", [("generator", "discriminator"), ("discriminator", "generator")])
def test_a_step_of_one_player_leaves_the_other_bit_equal(player, other):
    """Through the train step of every model, with the other player's learning rate at zero."""
    rates = tuple((name, 1e-2 if name == player else 0.0) for name in ("generator", "discriminator"))
    before, model = make("mlp"), make("mlp")
    optimizer, mesh = training.make_optimizer(training.OptimizerConfig(players=rates), 10), sharding.make_mesh()
    state = training.init_state(model, optimizer, mesh)
    step = training.make_train_step(optimizer, mesh)
    for _ in range(2):
        state, metrics = step(state, batch(before.config), jax.random.key(0))
    assert equal(getattr(state.model, other), getattr(before, other))
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), getattr(state.model, player), getattr(before, player))
    assert all(jax.tree.leaves(moved))
    assert {"generator_loss", "discriminator_loss", "loss"} <= set(metrics)


def test_without_pairs_every_player_has_an_optimizer_with_the_learning_rate():
    data, states = batch(SMALL["points"]), []
    named = training.OptimizerConfig(players=tuple((name, 3e-3) for name in SMALL["points"].players))
    for optimizer in (
        training.make_optimizer(training.OptimizerConfig(learning_rate=3e-3), 10, SMALL["points"].players),
        training.make_optimizer(named, 10),
    ):
        state, _ = training.make_train_step(optimizer, sharding.make_mesh())(
            training.init_state(make("points"), optimizer, sharding.make_mesh()), data, jax.random.key(3)
        )
        states.append(state.model)
    assert equal(*states) and not equal(states[0], make("points"))


def test_each_player_is_trained_as_if_by_its_own_optimizer():
    """`players` in the train step against two optax optimizers applied by hand."""
    config = training.OptimizerConfig(players=PLAYERS, clip_norm=None, b1=0.5)
    optimizer, mesh, key = training.make_optimizer(config, 10), sharding.make_mesh(), jax.random.key(3)
    data = batch(SMALL["points"])
    state = training.init_state(make("points"), optimizer, mesh)
    step = training.make_train_step(optimizer, mesh)
    model = make("points")
    by_hand = {name: optax.adam(rate, b1=0.5) for name, rate in PLAYERS}
    states = {name: optimizer.init(getattr(model, name)) for name, optimizer in by_hand.items()}

    @jax.jit
    def both(model, states, key):
        gradient = jax.grad(lambda model: model.loss(data, key)[0])(model)
        for name, player in by_hand.items():
            with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
                updates, states[name] = player.update(getattr(gradient, name), states[name])
            setattr(model, name, optax.apply_updates(getattr(model, name), updates))
        return model, states

    for i in range(3):
        state, _ = step(state, data, key)
        model, states = both(model, states, jax.random.fold_in(key, i))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.model, model)


def test_the_generator_learns_where_the_discriminator_is_sure():
    """At D(G(z)) ~ 0 the non-saturating loss has slope -1 in the logit; log(1 - D) would have slope ~0."""
    model, z = make("points"), jnp.ones((4, 2))
    model.discriminator.layers[-1].bias = nnx.Param(jnp.full(1, -20.0))

    def of_logit(model):
        return -jax.lax.stop_gradient(model).discriminate(model.generate(z)).mean()

    both = jax.jit(lambda model: (jax.grad(GAN.generator_loss)(model, z), jax.value_and_grad(of_logit)(model)))
    of_loss, (logit, full) = both(model)
    assert logit > 15
    of_loss, full = of_loss.generator, full.generator
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), of_loss, full)
    assert float(optax.tree.norm(full)) > 0.01


def test_losses_are_finite_at_extreme_logits_and_log_4_at_indifference():
    model = make("mlp")
    head = model.discriminator.layers[-1]
    head.kernel = nnx.Param(jnp.zeros_like(head.kernel[...]))
    real, z = jnp.zeros((2, 3, 5, 1)), jnp.zeros((2, 3))
    losses = jax.jit(lambda model: (model.generator_loss(z), model.discriminator_loss(real, z)))
    for bias in (-1e4, 0.0, 1e4):
        head.bias = nnx.Param(jnp.full(1, bias))
        values = tuple(map(float, losses(model)))
        assert np.isfinite(values).all()
        if bias == 0:
            assert values == pytest.approx((np.log(2), np.log(4)), abs=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_samples(name):
    config = SMALL[name]
    first, again, other = (sample(make(name), jax.random.key(i), n=40) for i in (0, 0, 1))
    assert first.shape == (40, *config.image_shape)
    assert first.dtype == (jnp.float32 if config.levels == 0 else jnp.uint8)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    if config.levels:
        assert int(first.max()) < config.levels


def test_truncated_noise():
    model, draws = make("points"), {}
    model.generate = lambda z: z
    for limit in (None, 0.5, 100.0):
        draws[limit] = np.asarray(model.sample(jax.random.key(0), 300, truncation=limit))
    np.testing.assert_array_equal(draws[None], jax.random.normal(jax.random.key(0), (300, 2)))
    assert 0.49 < np.abs(draws[0.5]).max() <= 0.5 and draws[0.5].std() == pytest.approx(0.28, abs=0.02)
    assert draws[100.0].std() == pytest.approx(1, abs=0.1)
    with pytest.raises(ConfigError, match="^truncation: wanted a positive number or None, got 0"):
        model.sample(jax.random.key(0), 2, truncation=0)


def test_the_loss_of_the_discriminator_goes_to_0_on_data_that_it_can_separate():
    model, z = make("points"), jax.random.normal(jax.random.key(0), (32, 2))
    real = 2 + model.generate(z)

    @jax.jit
    def trained(model):
        def step(model, _):
            loss, gradient = jax.value_and_grad(GAN.discriminator_loss)(model, real, z)
            return jax.tree.map(lambda p, g: p - 0.3 * g, model, gradient), loss

        return jax.lax.scan(step, model, length=300)[1]

    losses = np.asarray(trained(model))
    assert losses[0] > 0.5 and losses[-1] < 0.005


@pytest.mark.parametrize(("levels", "dtype"), [(17, jnp.uint8), (256, jnp.uint8), (2**16, jnp.uint16)])
def test_every_level_can_be_drawn_and_scaling_is_its_inverse(levels, dtype):
    model = with_weights(GANConfig((1, 1, 1), levels, latent=1, hidden=1, depth=1))
    image = jnp.arange(levels, dtype=dtype).reshape(levels, 1, 1, 1)
    model.generate = lambda z: model._scale(image)
    drawn = model.sample(jax.random.key(0), levels)
    np.testing.assert_array_equal(drawn, image)
    assert drawn.dtype == dtype
    assert float(model._scale(image).min()) == -1
    assert float(model._scale(image).max()) == 1


def test_real_images_of_a_batch_are_judged_independently():
    model = make("conv")
    x = scaled(model, batch(model.config))
    before, after = map(jax.jit(model.discriminate), (x, x.at[0].set(0)))
    np.testing.assert_array_equal(before[1:], after[1:])
    assert before[0] != after[0]


@pytest.mark.parametrize(
    "bad, name",
    [
        ({"image_shape": (8, 8)}, "image_shape"),
        ({"image_shape": (2,)}, "levels"),
        ({"levels": 0}, "levels"),
        ({"levels": 2**16 + 1}, "levels: wanted 2..65536 for images, 0 for points"),
        ({"latent": 0}, "latent"),
        ({"halvings": 0}, "halvings"),
        ({"architecture": "resnet", "image_shape": (12, 8, 1), "halvings": 3}, "multiples of 8 .resnet, halvings=3."),
        ({"penalty_weight": -1.0}, "penalty_weight"),
        ({"architecture": "conv", "image_shape": (6, 8, 1)}, "image_shape"),
        ({"architecture": "conv", "image_shape": (2,), "levels": 0}, "image_shape"),
    ],
)
def test_a_bad_field_is_named(bad, name):
    with pytest.raises(ConfigError, match=name):
        GANConfig(**bad)


def test_a_label_is_refused():
    with pytest.raises(ConfigError, match="label"):
        make("mlp").sample(jax.random.key(0), 2, label=jnp.zeros(2, jnp.int32))


def test_a_restart_that_cannot_begin_deletes_nothing(tmp_path, no_curves):
    options = training.TrainConfig(steps=2, eval_every=2, batch_size=8)
    parts = {"train": options, "report": report.ReportConfig(samples=0, rulers=False)}
    run = Experiment(SMALL["points"], DataConfig("ring"), workdir=str(tmp_path), **parts)
    assert train(run) == 0
    bad = dataclasses.replace(run, optimizer=training.OptimizerConfig(players=(("generator", 1e-3),)))
    with pytest.raises(ConfigError, match="^optimizer.players: .*add 'discriminator'"):
        train(bad, restart=True)
    assert directory.steps(directory.folder(tmp_path) / "checkpoints") == [2]
    assert train(run, restart=True) == 0


# --- The ring and the grid ------------------------------------------------------------------------------------------------------------


def test_the_ring_is_a_data_set():
    train, test = ring.ring("train"), ring.ring("test")
    assert (train.image_shape, train.levels, train.num_classes) == ((2,), 0, 0)
    assert train.batch(3, 5, seed=1)["point"].shape == (5, 2)
    np.testing.assert_array_equal(train.batch(3, 5, seed=1)["point"], ring.ring("train").batch(3, 5, seed=1)["point"])
    assert train.fingerprint(5, 1)["sha256"] != test.fingerprint(5, 1)["sha256"]
    assert sum(int(mask.sum()) for _, mask in test.epoch(4096)) == len(test)


@pytest.mark.parametrize(("name", "count", "scale"), [("ring", 8, 0.02), ("grid", 25, 0.05)])
def test_points_are_those_of_the_gaussians(name, count, scale):
    test = load(name, "test")
    points, centres = test.images, test.facts["centres"]
    offset = points[:, None] - centres[None]
    mode = np.linalg.norm(offset, axis=-1).argmin(1)
    assert len(centres) == count and np.abs(np.bincount(mode, minlength=count) / len(points) - 1 / count).max() < 0.015
    within = offset[np.arange(len(points)), mode]
    np.testing.assert_allclose(within.std(0), scale, rtol=0.03)
    assert test.facts["scale"] == scale


def test_the_centres_are_on_a_circle_and_on_a_square():
    np.testing.assert_allclose(np.linalg.norm(ring.centres(), axis=1), 2, rtol=1e-6)
    assert {tuple(centre) for centre in ring.grid_centres().tolist()} == {(x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)}


def test_a_short_training_spreads_over_the_ring():
    """150 steps: points near the circle in every direction, by the train step and data path of every model."""
    train = ring.ring("train")
    config = training.OptimizerConfig(players=(("generator", 1e-3), ("discriminator", 2e-3)), b1=0.5, clip_norm=None)
    optimizer, mesh = training.make_optimizer(config, 150), sharding.make_mesh()
    state = training.init_state(GAN(GANConfig((2,), 0, latent=2, hidden=64), rngs=nnx.Rngs(0)), optimizer, mesh)
    step, before = training.make_train_step(optimizer, mesh), np.asarray(state.model.sample(jax.random.key(9), 500))
    for i in range(150):
        state, _ = step(state, train.batch(i, 128, seed=0), jax.random.key(0))
    points = np.asarray(state.model.sample(jax.random.key(9), 500))
    radius, sector = np.linalg.norm(points, axis=1), np.floor(np.arctan2(points[:, 1], points[:, 0]) / (np.pi / 4)).astype(int)
    assert abs(np.median(radius) - 2) < 0.7
    assert abs(np.median(np.linalg.norm(before, axis=1)) - 2) > 1
    assert len(set(sector)) == 8
