"""Optimizers by name: the steps of optax's own, what weight decay spares, players that move at every n-th step, parts that are frozen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from all_models import CONFIGS, fresh, with_a
from flax import nnx

from jaxgen import optimizers, sharding, training
from jaxgen.config import parse
from jaxgen.errors import ConfigError
from jaxgen.experiment import Experiment
from jaxgen.models import GANConfig, GatedPixelCNNConfig, ImageTransformerConfig, PixelSNAILConfig, VAEConfig, build
from jaxgen.optimizers import OPTIMIZERS, OptimizerConfig, learning_rates, make_optimizer
from jaxgen.stages import Stage

PARAMS = {"kernel": jnp.arange(6.0).reshape(2, 3) + 1, "row": jnp.ones((1, 3)), "column": jnp.ones((3, 1))}
PARAMS |= {"bias": jnp.ones(3), "embedding": jnp.ones((2, 3))}
WithCodes = dataclasses.make_dataclass("WithCodes", [("codes", VAEConfig, VAEConfig())], frozen=True)
GAN = GANConfig(image_shape=(2,), levels=0, latent=2, hidden=4, depth=1)


def history(optimizer, params, gradients) -> list:
    """The parameters before the first and after each step; gradients: for each step a function of the parameters."""
    found, state = [params], optimizer.init(params)
    for gradient in gradients:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient(found[-1]), state, found[-1])
        found.append(optax.apply_updates(found[-1], updates))
    return found


def steps_of(optimizer, params, gradient, n: int):
    """The parameters after n steps with the gradient of a fixed function."""
    return history(optimizer, params, [gradient] * n)[-1]


def gradient(params):
    return jax.grad(lambda params: sum((x**3).sum() for x in jax.tree.leaves(params)))(params)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "muon"])
def test_the_steps_are_those_of_optax(name):
    options = {"b1": 0.8, "b2": 0.9} if "b1" in OPTIMIZERS[name].fields else {}
    options |= {"momentum": 0.5} if "momentum" in OPTIMIZERS[name].fields else {}
    ours = make_optimizer(OptimizerConfig(name=name, learning_rate=0.01, clip_norm=None, **options), steps=10)
    zero_decay = {"weight_decay": 0.0} if "weight_decay" in OPTIMIZERS[name].fields else {}
    theirs = getattr(optax, name)(0.01, **options, **zero_decay)
    found, wanted = (steps_of(optimizer, PARAMS, gradient, 5) for optimizer in (ours, theirs))
    assert all((found[key] != PARAMS[key]).any() for key in PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted)


KERNELS = {
    "kernel": (2, 3, 4, 5),  # a matrix [24, 5]
    "wide": (3, 8),
    "row": (1, 6),  # from here on not matrices for muon
    "column": (6, 1),
    "nothing": (0, 4),
    "bias": (5,),
    "embedding": (4, 4),
}


def nearly_orthogonal(x: np.ndarray) -> np.ndarray:
    """U V^T of x = U S V^T, by five Newton-Schulz steps with Muon's numbers."""
    if x.shape[0] > x.shape[1]:
        return nearly_orthogonal(x.T).T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
    return x


def test_muon_moves_matrices_by_its_equation_and_the_rest_as_nadam_does():
    rng = np.random.default_rng(0)
    params, *gradients = ({name: jnp.asarray(rng.normal(size=size), jnp.float32) for name, size in KERNELS.items()} for _ in range(4))
    config = OptimizerConfig(name="muon", learning_rate=0.01, clip_norm=None, b1=0.8, b2=0.9)
    moved, wanted = (
        history(optimizer, params, [lambda _, g=g: g for g in gradients])
        for optimizer in (make_optimizer(config, steps=1), optax.nadam(0.01, b1=0.8, b2=0.9))
    )
    for name in ("kernel", "wide"):
        average = 0
        for t, gradient in enumerate(gradients):
            before, after, g = (np.reshape(x[name], (-1, KERNELS[name][-1])).astype(float) for x in (moved[t], moved[t + 1], gradient))
            average = 0.95 * average + 0.05 * g
            orthogonal = nearly_orthogonal(0.95 * average / (1 - 0.95 ** (t + 2)) + 0.05 * g / (1 - 0.95 ** (t + 1)))
            assert (abs(np.linalg.svd(orthogonal)[1] - 0.95) < 0.3).all()
            np.testing.assert_allclose(before - after, 0.01 * 0.2 * np.sqrt(max(g.shape)) * orthogonal, atol=1e-5)
    for found, nadam in zip(moved, wanted, strict=True):
        for name in ("row", "column", "nothing", "bias", "embedding"):
            np.testing.assert_allclose(found[name], nadam[name], rtol=1e-5)


def test_muon_solves_least_squares():
    """With a rate that falls to zero it ends at the closed form."""
    rng = np.random.default_rng(1)
    x, y = (jnp.asarray(rng.normal(size=(50, n)), jnp.float32) for n in (4, 3))
    optimizer = make_optimizer(OptimizerConfig(name="muon", learning_rate=0.05, schedule="cosine"), steps=300)
    gradient, start = jax.grad(lambda params: ((x @ params["kernel"] - y) ** 2).mean()), {"kernel": jnp.zeros((4, 3))}

    def step(carry, _):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient(carry[0]), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    (found, _), _ = jax.jit(lambda start: jax.lax.scan(step, (start, optimizer.init(start)), length=300))(start)
    np.testing.assert_allclose(found["kernel"], np.linalg.lstsq(x, y)[0], atol=2e-3)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_weight_decay_spares_biases_gains_and_embeddings(name):
    optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5), steps=1)
    params = steps_of(optimizer, PARAMS, lambda params: jax.tree.map(jnp.zeros_like, params), 1)
    for weight in ("kernel", "row", "column"):
        np.testing.assert_allclose(params[weight], PARAMS[weight] * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(params["bias"], PARAMS["bias"])
    np.testing.assert_array_equal(params["embedding"], PARAMS["embedding"])


def test_what_a_model_decays():
    model = nnx.eval_shape(lambda: build(ImageTransformerConfig(num_classes=3)))
    marks = jax.tree_util.tree_leaves_with_path(optimizers.decayed(nnx.state(model, nnx.Param)))
    spared = {jax.tree_util.keystr(path) for path, mark in marks if not mark}
    assert any("embedding" in name for name in spared) and any("'label'" in name for name in spared)
    assert 0 < len(spared) < len(marks)
    assert not [name for name in spared if "weight" in name or "kernel" in name]
    for config in (GatedPixelCNNConfig((3, 4, 1), 50, width=6, unordered=True), PixelSNAILConfig((3, 4, 1), 50, width=8, unordered=True)):
        params = nnx.state(nnx.eval_shape(lambda: build(config)), nnx.Param)  # noqa: B023 (called at once)
        assert params["values"].shape[0] == 50 and not jax.tree.leaves(optimizers.decayed(params)["values"])[0], "vectors of codes"


SPARED = {  # tables of labels and codes, and a first grid that no image is multiplied with
    "diffusion of a label": "['network']['table']",
    "flow_matching of a label": "['network']['table']",
    "vqvae2": "['tables'][0]",
    "nvae": "['decoder']['start']",
}


@pytest.mark.parametrize("name", SPARED)
def test_embeddings_under_other_names_are_not_decayed(name):
    params = nnx.state(jax.eval_shape(lambda: fresh(CONFIGS[name])), nnx.Param)
    marks = {jax.tree_util.keystr(path): mark for path, mark in jax.tree_util.tree_leaves_with_path(optimizers.decayed(params))}
    (mark,) = (mark for path, mark in marks.items() if path.startswith(SPARED[name]))
    assert not mark and any(marks.values())


def test_no_parameter_of_the_models_is_decayed_otherwise_than_by_the_words_that_were_looked_for_first():
    """Weights go on as they began: the rule of whole names spares what the rule of words anywhere in the path did, and what was added."""
    for name, config in CONFIGS.items():
        params = nnx.state(jax.eval_shape(lambda: fresh(config)), nnx.Param)  # noqa: B023 (called at once)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        words = ("bias", "gain", "scale", "embedding", "label", "positions", "'values'", "'table'", "'tables'", "'start'")
        wanted = [leaf.ndim >= 2 and not any(word in jax.tree_util.keystr(path) for word in words) for path, leaf in leaves]
        assert jax.tree.leaves(optimizers.decayed(params)) == wanted, name
        assert any(wanted) or name not in with_a("loss"), name  # a fit in closed form has no optimizer


def test_names_are_matched_as_a_whole_or_by_their_last_word():
    decayed = {"upscale": {"kernel": 1}, "labeller": [{"kernel": 1}], "biased": 1, "scale_net": {"kernel": 1}}
    spared = {"codebook": 1, "positions": 1, "hidden_bias": 1, "token_embeddings": 1, "embedding": {"rows": 1}, "label": [1]}
    for tree, wanted in ((decayed, True), (spared, False)):
        marks = optimizers.decayed(jax.tree.map(lambda _: jnp.ones((2, 2)), tree))
        assert jax.tree.leaves(marks) == [wanted] * len(jax.tree.leaves(tree))
    assert not any(jax.tree.leaves(optimizers.decayed({"kernel": jnp.ones(2)})))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sgd", "b1": 0.5}, r"^optimizer.b1: wanted an optimizer that has it \(adamw, adam, adamax, lion, muon\), got sgd$"),
        (
            {"name": "adam", "weight_decay": 0.1},
            r"^optimizer.weight_decay: wanted .*\(adamw, lion, muon\), got adam; set weight_decay to 0$",
        ),
        ({"momentum": 0.9}, r"^optimizer.momentum: wanted an optimizer that has it \(sgd, rmsprop\), got adamw; set momentum to 0$"),
        ({"name": "sgd", "betas": (("generator", 0.5, 0.9),)}, "^optimizer.betas: wanted an optimizer that has b1 and b2, got sgd$"),
        ({"every": (("generator", 0),)}, "^optimizer.every: wanted a player's name and a number of steps, 1 or more"),
    ],
)
def test_a_field_without_effect_is_an_error(fields, message):
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**fields)


@pytest.mark.parametrize("path", ["optimizer", "stages.codes.optimizer"])
def test_a_field_without_effect_is_an_error_on_a_command_line_at_its_default_too(path):
    run = Experiment(WithCodes(), stages={"codes": Stage()})
    with pytest.raises(ConfigError, match=rf"^--{path}.b1: wanted an optimizer that has it \(adamw, .*\), got sgd$"):
        parse(run, [f"--{path}.name", "sgd", f"--{path}.b1=0.9"])
    assert parse(run, [f"--{path}.name", "adam", f"--{path}.b1=0.9"]) != run


def test_a_script_with_weight_decay_takes_an_optimizer_without_it_and_a_weight_decay_of_zero():
    run = Experiment(GAN, optimizer=OptimizerConfig(weight_decay=0.1))
    changed = parse(run, ["--optimizer.name", "sgd", "--optimizer.weight_decay", "0"]).optimizer
    assert (changed.name, changed.weight_decay) == ("sgd", 0)
    with pytest.raises(ConfigError, match="weight_decay: wanted an optimizer that has it .* got sgd; set .* to 0$"):
        parse(run, ["--optimizer.name", "sgd"])


def trained(config: OptimizerConfig, steps: int) -> list[dict[str, np.ndarray]]:
    """Parameters of the players of a GAN before the first step and after each."""
    optimizer, mesh = make_optimizer(config, steps, GAN.players), sharding.make_mesh()
    state, step = training.init_state(build(GAN), optimizer, mesh), training.make_train_step(optimizer, mesh)
    batch, history = {"point": np.ones((4, 2), np.float32)}, []
    for i in range(steps + 1):
        arrays = nnx.state(state.model, nnx.Param)
        history.append({name: np.concatenate([np.ravel(x) for x in jax.tree.leaves(arrays[name])]) for name in GAN.players})
        if i < steps:
            state, metrics = step(state, batch, jax.random.key(0))
            assert metrics["finite"] == 1
    return history


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_player_moves_at_every_nth_step(name):
    config = OptimizerConfig(name=name, learning_rate=0.1, every=(("generator", 3),), betas=(("generator", 0.0, 0.9),))
    moved = {name: [] for name in GAN.players}
    history = trained(config, 7)
    for before, after in zip(history, history[1:], strict=False):
        for name in GAN.players:
            moved[name].append(bool((before[name] != after[name]).any()))
    assert moved["generator"] == [True, False, False, True, False, False, True]
    assert all(moved["discriminator"])


def test_frozen_parts_stay_and_have_no_moments():
    config = OptimizerConfig(learning_rate=0.1, frozen=("discriminator",))
    history = trained(config, 2)
    np.testing.assert_array_equal(history[0]["discriminator"], history[-1]["discriminator"])
    assert (history[0]["generator"] != history[-1]["generator"]).any()
    params = nnx.state(build(GAN), nnx.Param)
    moments = {name: make_optimizer(dataclasses.replace(config, frozen=name), 2, GAN.players).init(params) for name in ((), config.frozen)}
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) for state in moments.values()]
    assert sizes == [2 * sum(x.size for x in history[0].values()), 2 * history[0]["generator"].size]


def test_a_part_inside_of_a_part_can_be_frozen():
    """Its arrays stay, those beside it move, and a mistyped name is answered with the nearest."""
    params = {"decoder": {"layers": {0: {"kernel": jnp.ones(2)}, 1: {"kernel": jnp.ones(2)}}}, "encoder": {"kernel": jnp.ones(2)}}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, frozen=("decoder.layers.1",)), 2)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    moved = {jax.tree_util.keystr(path): bool((leaf != 0).all()) for path, leaf in jax.tree_util.tree_flatten_with_path(updates)[0]}
    assert moved == {"['decoder']['layers'][0]['kernel']": True, "['decoder']['layers'][1]['kernel']": False, "['encoder']['kernel']": True}
    wanted = r"^optimizer.frozen: wanted submodules of the model, \['decoder', 'encoder'\], got \['decoder.layer'\].*decoder.layers"
    with pytest.raises(ConfigError, match=wanted):
        make_optimizer(OptimizerConfig(frozen=("decoder.layer",)), 2).init(params)


def test_unknown_names_are_one_line():
    for field, value in (("frozen", ("critic",)), ("every", (("critic", 2),)), ("betas", (("critic", 0.5, 0.9),))):
        with pytest.raises(ConfigError, match=rf"^optimizer.{field}: wanted .*discriminator.*, got \['critic'\]$"):
            make_optimizer(OptimizerConfig(**{field: value}), 2, GAN.players).init(nnx.state(build(GAN), nnx.Param))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rates_of_the_metric_rows_are_those_of_the_updates(schedule):
    """Of plain gradient descent on a gradient of 1 the update is -rate(t); a player that moves at every second step has its own t."""
    common = {"name": "sgd", "b1": 0.9, "clip_norm": None, "warmup_steps": 2, "decay_rate": 0.9, "schedule": schedule}
    one = OptimizerConfig(learning_rate=0.5, **common)
    two = OptimizerConfig(players=(("generator", 0.5), ("discriminator", 0.25)), every=(("generator", 2),), **common)
    params = {"generator": jnp.zeros(()), "discriminator": jnp.zeros(())}
    for config, names in ((one, ["learning_rate"] * 2), (two, ["learning_rate_generator", "learning_rate_discriminator"])):
        optimizer = make_optimizer(config, 7)
        state = optimizer.init(params)
        for step in range(1, 8):
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
            rates = learning_rates(config, 7, step)
            assert set(rates) == set(names)
            for player, name in zip(params, names, strict=True):
                if player == "discriminator" or config is one or step % 2:
                    np.testing.assert_allclose(-updates[player], rates[name], rtol=1e-6)
    frozen = OptimizerConfig(frozen=("generator",))
    assert learning_rates(frozen, 7, 3, ("generator", "discriminator")) == {"learning_rate_discriminator": 0.001}


def test_the_same_numbers_give_the_same_step_and_others_another():
    """So that a run like one before it in the same process compiles nothing."""
    mesh = sharding.make_mesh()
    config = OptimizerConfig(learning_rate=0.01)
    one, same, other = (training.make_train_step(make_optimizer(dataclasses.replace(config, b1=b1), 5), mesh) for b1 in (0.9, 0.9, 0.5))
    assert one is same and one is not other and one is not training.make_train_step(make_optimizer(config, 5), mesh, accumulate=2)
    tree = jax.tree.structure(jax.eval_shape(lambda: training.new_state(build(GAN), make_optimizer(config, 5))))
    assert one.on_leaves(tree) is same.on_leaves(tree)
