"""All models, the same properties; what does not apply to a model is listed by name and with its reason in all_models.NOT_FOR.

One compiled program on one device, with plain gradients, and one on eight devices, the train step, are the oracles of each other.
"""

import json
import os
import subprocess
import sys
from functools import cache, reduce

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import CONFIGS, NOT_FOR, ONE_EACH, RATE, batch_of, data_of, given_of, model_of, score, shapes_of, with_a
from compiling import virtual_devices
from conftest import ROOT
from flax import nnx
from model_table import TABLE

import jaxgen
from jaxgen import evaluation, sampling
from jaxgen.evaluation import likelihoods
from jaxgen.layers import autoregressive
from jaxgen.models import MODELS

KEY = jax.random.key(7)
N = 8
THOROUGH = os.environ.get("JAXGEN_THOROUGH") is not None
# Without a label these autoregressive models do the same with one array less: JAXGEN_THOROUGH=1 has them, too. Two resolutions stay.
AGAIN = {entry.name for entry in TABLE} - {"pixelcnn_pp"}
GIVEN = [name for name in CONFIGS if THOROUGH or name not in AGAIN]
# What a PixelCNN++ of two resolutions draws is in test_models.py, and that of a label, of one resolution, draws here.
DRAWN = [name for name in with_a("sample") if THOROUGH or name != "pixelcnn_pp"]
# These have the loss, the state and the step of models that stay: the autoregressive ones those of gated_pixelcnn and pixelsnail, vqvae2
# those of its parts, with a frozen stage as latent_diffusion has one, and realnvp those of nice. On eight devices their step is compared,
# and their checkpoint read, with JAXGEN_THOROUGH=1.
LIKE_OTHERS = {f"{entry.name} of a label" for entry in TABLE} - {"gated_pixelcnn of a label", "pixelsnail of a label"}
LIKE_OTHERS |= {"vqvae2", "realnvp"}
ON_EIGHT = [name for name in ONE_EACH.values() if THOROUGH or name not in LIKE_OTHERS]


RECORDED = json.loads((ROOT / "tests" / "golden" / "all_models.json").read_text("utf-8"))
"""What `recorded` gave on 2026-11-30: {name: recorded(name)} for every name in GIVEN. A new model is a new line."""


def test_the_table_has_every_model_and_says_what_does_not_apply():
    assert {type(config) for config in CONFIGS.values()} == set(MODELS) == set(ONE_EACH)
    lacks = {
        "loss": [name for name, config in CONFIGS.items() if not hasattr(MODELS[type(config)], "loss")],
        "sample": [name for name, config in CONFIGS.items() if not hasattr(MODELS[type(config)], "sample")],
        "dtype": [name for name, config in CONFIGS.items() if not hasattr(config, "dtype")],
    }
    assert lacks == {what: names for what, (_, names) in NOT_FOR.items()}
    assert len(CONFIGS) == 58 and sum(map(len, lacks.values())) == 32


def test_the_numbers_of_every_model_are_recorded():
    assert list(RECORDED) == [name for name in CONFIGS if name not in AGAIN]
    assert [name for name, one in RECORDED.items() if "sample" not in one] == ["pixelcnn_pp", "classifier"]


def test_every_configuration_is_what_its_features_decide():
    for name, config in CONFIGS.items():
        assert config.modelled in config.features, name
        sizes = type(config).sizes_from(config.features)
        assert sizes and {field: reduce(getattr, field.split("."), config) for field in sizes} == sizes, name


def loss_key(model):
    """The key that the train step gives to the loss of its first step: a model with `after_update` has half of it."""
    key = jax.random.fold_in(KEY, 0)
    return jax.random.split(key)[0] if hasattr(model, "after_update") else key


@cache
def program_of(name: str):
    """Compiled `(params, batch) -> numbers`: the loss of the train step's key, its gradient, a score for each row, samples.

    The score log_prob is not in it: `evaluated` has it, and that program is needed for the evaluation of a checkpoint, too.

    A second trace of it is an error. chex counts by where a function is written, so it begins to count anew.
    """
    config, (graph, _, rest) = CONFIGS[name], nnx.split(model_of(name), nnx.Param, ...)

    def program(params, batch):
        model, found = nnx.merge(graph, params, rest), {}
        if name in with_a("loss"):
            loss = lambda params: nnx.merge(graph, params, rest).loss(batch, loss_key(model))[:2]  # noqa: E731
            (found["loss"], found["metrics"]), found["gradient"] = jax.value_and_grad(loss, has_aux=True)(params)
        if not hasattr(model, "log_prob"):
            found["score"] = score(model, batch, KEY)
        if name in DRAWN:
            found["sample"] = model.sample(KEY, N, **given_of(config, batch))
        return found

    chex.clear_trace_counter()
    return jax.jit(chex.assert_max_traces(program, n=1))


def evaluated(model, batch: dict) -> dict:
    """{"score": log_prob of every row}, by the compiled program of `evaluation.evaluate`, of a model that has it."""
    if not hasattr(model, "log_prob"):
        return {}
    return {"score": likelihoods.compiled("exact", 1, None)(model, {**batch, "index": np.arange(N, dtype=np.uint32)}, KEY)}


@cache
def numbers(name: str) -> list[dict]:
    """The numbers of a batch, and of the same batch with another row 1."""
    batch, other = batch_of(CONFIGS[name], N), batch_of(CONFIGS[name], N, seed=1)
    changed = jax.tree.map(lambda one, two: np.where(np.arange(N).reshape(-1, *[1] * (one.ndim - 1)) == 1, two, one), batch, other)
    program, params = program_of(name), nnx.state(model_of(name), nnx.Param)
    found = [program(params, rows) | evaluated(model_of(name), rows) for rows in (batch, changed)]
    return jax.device_get(found)  # what is computed with them below is not compiled


@pytest.mark.parametrize("name", GIVEN)
def test_gradients_reach_every_parameter_rows_are_independent_and_samples_are_of_their_kind(name):
    (found, changed), config = numbers(name), CONFIGS[name]
    chex.assert_tree_all_finite({key: value for key, value in found.items() if key != "sample"})
    if name in with_a("loss"):
        gradients = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found["gradient"])}
        kept = tuple(f"['{part}']" for part in getattr(config, "stages", ()))  # parts that were trained before
        assert [path for path, leaf in gradients.items() if not np.any(leaf)] == [path for path in gradients if path.startswith(kept)]
    chex.assert_shape(found["score"], (N,))
    rows = np.arange(N) != 1
    np.testing.assert_allclose(found["score"][rows], changed["score"][rows], rtol=1e-6)
    assert abs(found["score"][1] - changed["score"][1]) > 1e-4
    if name in DRAWN:
        drawn = np.asarray(found["sample"])
        assert len(drawn) == N and config.features[config.modelled].check(drawn, name).dtype == drawn.dtype
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model_of(name), nnx.Param)))
    weak = [leaf for leaf in jax.tree.leaves(shapes_of(config)) if leaf.weak_type]
    assert not weak, "an array whose type is that of a Python number: the second step would be compiled anew, for one of float32"


def recorded(name: str) -> dict[str, list]:
    """The scores and samples of a model as lists, those of real numbers rounded."""
    found = {what: np.asarray(numbers(name)[0][what]) for what in ("score", "sample") if what in numbers(name)[0]}
    return {what: [float(f"{x:.7g}") if found[what].dtype.kind == "f" else int(x) for x in found[what].ravel()] for what in found}


@pytest.mark.parametrize("name", RECORDED)
def test_the_same_weights_and_key_give_the_scores_and_samples_that_they_gave(name):
    """On processors of another make the last bits differ, and a value that is drawn may be another one: in one of the samples, at most."""
    found, before = recorded(name), RECORDED[name]
    np.testing.assert_allclose(found["score"], before["score"], rtol=1e-4, atol=1e-4)
    if "sample" in before:
        drawn, before = (np.reshape(one["sample"], (N, -1)) for one in (found, before))
        assert np.isclose(drawn, before, rtol=1e-3, atol=1e-4).all(axis=1).sum() >= N - 1


PROGRAMS = []
"""An entry for every program that has been compiled or looked for in the compilation cache."""
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: PROGRAMS.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
)


def count_traces(monkeypatch, times: int) -> None:
    """From now on the functions that the samplers compile may be traced so many times each, and are compiled anew."""
    chex.clear_trace_counter()
    of_images, of_strings = ["n", "method", "mesh"], ["n", "length", "top_k", "stop", "method"]
    for module, name, static in (autoregressive, "_sample", of_images), (sampling, "_sample_sequence", of_strings):
        counted = chex.assert_max_traces(getattr(module, name).__wrapped__, n=times)
        monkeypatch.setattr(module, name, jax.jit(counted, static_argnames=static))


@pytest.mark.parametrize("name", ONE_EACH.values())
def test_with_and_without_jit_the_numbers_agree_and_nothing_is_traced_or_compiled_twice(name, monkeypatch):
    found, batch, model = numbers(name)[0], batch_of(CONFIGS[name], N), model_of(name)
    without = {"score": lambda: score(model, batch, KEY)}
    if name in with_a("loss"):
        without["loss"] = lambda: model.loss(batch, loss_key(model))[0]
    if hasattr(model, "importance_bound"):
        without["importance_bound"] = lambda: model.importance_bound(batch["image"], KEY, 2, **given_of(CONFIGS[name], batch))
    for number, compute in without.items():
        value = compute()
        chex.assert_trees_all_close(value, found.get(number, value), rtol=1e-5, atol=1e-5)
        made = len(PROGRAMS)
        jax.block_until_ready(compute())
        assert len(PROGRAMS) == made, f"computing the {number} again compiles a program"
    if name in with_a("sample"):
        priors = getattr(CONFIGS[name], "priors", ())  # each draws by the same function
        count_traces(monkeypatch, max(len(priors), 1))
        drawn, other = (model.sample(key, N, **given_of(CONFIGS[name], batch)) for key in (KEY, jax.random.key(8)))
        made = len(PROGRAMS)
        jax.block_until_ready((model.sample(jax.random.key(9), N, **given_of(CONFIGS[name], batch)), other))
        assert len(PROGRAMS) == made, "a further draw compiles a program"
        if isinstance(model, sampling.SequenceModel | autoregressive.AutoregressiveImages):
            with pytest.raises(AssertionError, match="_sample.* is traced > 1 times"):  # of another shape it must be traced again
                model.sample(KEY, N + 1, **given_of(CONFIGS[name], batch_of(CONFIGS[name], N + 1)))
        chex.assert_trees_all_close(drawn.astype(jnp.float32), found["sample"].astype(jnp.float32), rtol=1e-5, atol=1e-5)


WITHOUT_JIT = ["gated_pixelcnn", "vae of a label", "gan of points", "flows, planar", "diffusion", "language_model", "pca"]


@pytest.mark.parametrize("name", WITHOUT_JIT)
def test_without_jit_the_samples_are_those_with_it(name):
    """One model of each family; the loops of the samplers run in Python."""
    compiled = np.asarray(numbers(name)[0]["sample"])
    with jax.disable_jit():
        drawn = np.asarray(model_of(name).sample(KEY, N, **given_of(CONFIGS[name], batch_of(CONFIGS[name], N))))
    assert drawn.dtype == compiled.dtype
    np.testing.assert_allclose(drawn.astype(float), compiled.astype(float), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory):
    """The folder with a run of each of these models on eight virtual devices, and the numbers of its first step."""
    folder = tmp_path_factory.mktemp("eight")
    environment = os.environ | virtual_devices(8) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "on_eight_devices.py"), str(folder), *ON_EIGHT]
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-4000:]
    return folder, json.loads(child.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ON_EIGHT)
def test_a_step_on_eight_devices_is_that_of_one_and_its_checkpoint_is_read_and_evaluated(name, eight_devices):
    """The average after the first step is p - 0.9 RATE g with the gradient g of one device; steps of eight devices are resumed there."""
    folder, eight = eight_devices[0] / name, eight_devices[1][name]
    # With arrays of a device of their own, as they are loaded, the programs below would be compiled once more.
    loaded = jax.device_put(jax.device_get(jaxgen.load(folder, which="latest")))
    params, found = nnx.state(model_of(name), nnx.Param), numbers(name)[0]
    result = evaluation.evaluate(loaded, data_of(CONFIGS[name]), batch_size=N)
    assert np.isfinite(evaluation.headline(result)[1])
    if name not in with_a("loss"):
        chex.assert_trees_all_equal(nnx.state(loaded), nnx.state(model_of(name)))
        chex.assert_trees_all_close(eight, result, rtol=1e-5)
        return
    metrics = {key: np.float32(eight[key]) for key in found["metrics"]} | {"loss": np.float32(eight["loss"])}
    chex.assert_trees_all_close(metrics, {**found["metrics"], "loss": found["loss"]}, rtol=1e-5, atol=1e-6)
    leaves = (map(np.asarray, jax.tree.leaves(tree)) for tree in (params, nnx.state(loaded, nnx.Param), found["gradient"]))
    for before, after, gradient in zip(*leaves, strict=True):
        largest = np.abs(gradient).max()
        np.testing.assert_allclose((before - after) / (0.9 * RATE), gradient, rtol=1e-4, atol=2e-6 + 1e-4 * largest)
    if hasattr(loaded, "log_prob"):
        columns = data_of(CONFIGS[name]).columns
        rows = [{column: np.asarray(values[i : i + N]) for column, values in columns.items()} for i in (0, N, 2 * N)]
        scores = [evaluated(loaded, part)["score"] for part in rows]
        np.testing.assert_allclose(result["nats"], -np.mean(scores), rtol=1e-5)
