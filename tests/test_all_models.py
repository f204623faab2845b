"""All models, the same properties; what does not apply to a model is listed by name in all_models.NOT_FOR."""

import json
import os
import subprocess
import sys
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import CONFIGS, NOT_FOR, batch_of, given_of, model_of, players, score, with_a
from conftest import ROOT
from flax import nnx

import jaxgen
from jaxgen import evaluation, experiment, sharding, training
from jaxgen.data import DataConfig, Dataset
from jaxgen.experiment import Experiment
from jaxgen.models import MODELS
from jaxgen.training import TrainConfig

KEY = jax.random.key(7)
FAMILIES = ["gated_pixelcnn", "vae", "gan", "classifier", "language_model"]


def test_the_table_has_every_model_and_says_what_does_not_apply():
    assert {type(config) for config in CONFIGS.values()} == set(MODELS)
    lacks = {
        "loss": [name for name, config in CONFIGS.items() if not hasattr(MODELS[type(config)], "loss")],
        "sample": [name for name, config in CONFIGS.items() if not hasattr(MODELS[type(config)], "sample")],
        "dtype": [name for name, config in CONFIGS.items() if not hasattr(config, "dtype")],
    }
    assert lacks == NOT_FOR and len(CONFIGS) == 23 and sum(map(len, NOT_FOR.values())) == 11


def test_every_configuration_is_what_its_features_decide():
    for name, config in CONFIGS.items():
        assert config.modelled in config.features, name
        sizes = type(config).sizes_from(config.features)
        assert sizes and {field: getattr(config, field) for field in sizes} == sizes, name


def once(function):
    """The function, which fails when it is traced again; chex counts by where a function is written, so it counts anew."""
    chex.clear_trace_counter()
    return chex.assert_max_traces(function, n=1)


@cache
def numbers(name: str) -> dict:
    """Of one compiled program: the loss, its gradients, a score for each row, the scores after row 1 has changed, samples."""
    config, batch, other = CONFIGS[name], batch_of(CONFIGS[name], 4), batch_of(CONFIGS[name], 4, seed=1)
    changed = jax.tree.map(lambda one, two: one.at[1].set(two[1]), batch, other)
    graph, params, rest = nnx.split(model_of(name), nnx.Param, ...)

    def program(params, batch, changed):
        model, found = nnx.merge(graph, params, rest), {}
        if name in with_a("loss"):
            loss = lambda params: nnx.merge(graph, params, rest).loss(batch, KEY)[:2]  # noqa: E731
            (found["loss"], found["metrics"]), found["gradient"] = jax.value_and_grad(loss, has_aux=True)(params)
        found["score"], found["changed"] = score(model, batch, KEY), score(model, changed, KEY)
        if name in with_a("sample"):
            found["sample"] = model.sample(KEY, 4, **given_of(config, batch))
        return found

    program = jax.jit(once(program))
    program(params, batch, changed)
    return program(params, batch, changed)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_every_parameter_rows_are_independent_and_samples_are_of_their_kind(name):
    found, config = numbers(name), CONFIGS[name]
    chex.assert_tree_all_finite({key: value for key, value in found.items() if key != "sample"})
    if name in with_a("loss"):
        dead = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(found["gradient"]) if not np.any(leaf)]
        assert not dead
    chex.assert_shape(found["score"], (4,))
    rows = np.array([0, 2, 3])
    np.testing.assert_allclose(found["score"][rows], found["changed"][rows], rtol=1e-6)
    assert abs(found["score"][1] - found["changed"][1]) > 1e-4
    if name in with_a("sample"):
        drawn = np.asarray(found["sample"])
        assert len(drawn) == 4 and config.features[config.modelled].check(drawn, name).dtype == drawn.dtype
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model_of(name), nnx.Param)))


@pytest.mark.parametrize("name", [*FAMILIES, "pca"])
def test_with_and_without_jit_the_numbers_agree(name):
    found, batch = numbers(name), batch_of(CONFIGS[name], 4)
    model = model_of(name)
    chex.assert_trees_all_close(score(model, batch, KEY), found["score"], rtol=1e-5, atol=1e-5)
    if name in with_a("loss"):
        chex.assert_trees_all_close(model.loss(batch, KEY)[0], found["loss"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_train_step_and_a_sampler_are_traced_once_for_a_shape(name):
    config, model, optimizer, mesh = CONFIGS[name], model_of(name), players(CONFIGS[name]), sharding.make_mesh()
    traced = type(model).loss
    counted = once(lambda model, batch, key: traced(model, batch, key))
    step, state = training.make_train_step(optimizer, mesh), training.init_state(jax.tree.map(jnp.copy, model), optimizer, mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "loss", lambda self, batch, key: counted(self, batch, key))
        for i in range(3):
            state, metrics = step(state, sharding.place_batch(mesh, batch_of(config, 8, seed=i)), jax.random.fold_in(KEY, i))
            assert metrics["finite"] == 1
    chex.assert_tree_all_finite(nnx.state(state.model))
    if name in with_a("sample"):
        draw = jax.jit(once(lambda model, key: model.sample(key, 2)))
        one, two, again = (draw(model, jax.random.key(i)) for i in (0, 1, 0))
        chex.assert_trees_all_equal(one, again)
        chex.assert_trees_all_equal_shapes_and_dtypes(one, two)


def data_of(config, n: int = 24):
    """A data set of random rows."""
    columns = {name: np.asarray(column) for name, column in batch_of(config, n).items()}
    return Dataset.from_columns(columns, config.features)


@pytest.mark.parametrize("name", [*FAMILIES, "pca"])
def test_a_run_is_trained_saved_resumed_loaded_and_evaluated(name, tmp_path):
    config, data = CONFIGS[name], data_of(CONFIGS[name])

    def run(steps: int, folder: str):
        options = TrainConfig(steps=steps, batch_size=8, eval_every=1, log_every=1)
        whole = Experiment(config, DataConfig("arrays"), train=options, workdir=str(tmp_path / folder))
        assert experiment.train(whole, sets=(data, data)) == 0
        return jaxgen.load(tmp_path / folder, which="latest")

    run(1, "a")
    resumed, straight = run(2, "a"), run(2, "b")
    chex.assert_trees_all_equal(nnx.state(resumed), nnx.state(straight))
    first, second = (evaluation.evaluate(model, data, batch_size=8) for model in (resumed, straight))
    assert first == second and evaluation.headline(first)
    saved = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    headline, value = evaluation.headline(first)
    np.testing.assert_allclose(saved[-1][f"validation_{headline}"], value, rtol=1e-5)


EIGHT = """
import json, sys
sys.path.insert(0, "tests")
import conftest
import jax, numpy as np
from all_models import CONFIGS, batch_of, model_of, players
from jaxgen import sharding, training
assert jax.device_count() == 8
found = {}
for name in sys.argv[1:]:
    config, optimizer, mesh = CONFIGS[name], players(CONFIGS[name]), sharding.make_mesh()
    step, state = training.make_train_step(optimizer, mesh), training.init_state(model_of(name), optimizer, mesh)
    for i in range(2):
        state, metrics = step(state, sharding.place_batch(mesh, batch_of(config, 8, seed=i)), jax.random.key(i))
    found[name] = {key: float(value) for key, value in metrics.items()}
print(json.dumps(found))
"""


def test_one_device_and_eight_give_the_same_training():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", EIGHT, *FAMILIES], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    eight = json.loads(child.stdout.splitlines()[-1])
    for name in FAMILIES:
        optimizer, mesh = players(CONFIGS[name]), sharding.make_mesh()
        step = training.make_train_step(optimizer, mesh)
        state = training.init_state(jax.tree.map(jnp.copy, model_of(name)), optimizer, mesh)
        for i in range(2):
            state, metrics = step(state, sharding.place_batch(mesh, batch_of(CONFIGS[name], 8, seed=i)), jax.random.key(i))
        one = {key: float(value) for key, value in metrics.items()}
        chex.assert_trees_all_close(one, eight[name], rtol=2e-4, atol=1e-5)
