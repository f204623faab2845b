"""`jaxgen.load`: the trained model of a run, with its averages, from nothing but the folder."""

import ast
import dataclasses
import inspect
import shutil
import subprocess
import sys
import tomllib
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from saved_runs import DATA, ROOT, flip, same_bits

import jaxgen
from jaxgen import config, models, sharding, training
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models.gated_pixelcnn import GatedPixelCNN, GatedPixelCNNConfig
from jaxgen.runs import checkpoint, manifest
from jaxgen.runs.checkpoint import Checkpointer

TINY = GatedPixelCNNConfig(image_shape=(4, 4, 1), levels=3, layers=1, width=4, head_width=4, input_kernel=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a tiny model with checkpoints 1 (best), 2 and 3, whose averages are `step` everywhere."""
    folder = tmp_path_factory.mktemp("trained")
    mesh = sharding.make_mesh()
    optimizer = training.make_optimizer(training.OptimizerConfig(), 10)
    start = training.init_state(models.build(TINY), optimizer, mesh)
    with Checkpointer(folder, {"model": config.to_json(TINY)}, DATA) as saver:
        for step, score in ((1, 1.0), (2, 3.0), (3, 2.0)):
            ema = jax.tree.map(lambda leaf, step=step: jnp.full_like(leaf, step), start.ema)
            saver.save(step, dataclasses.replace(start, step=jnp.int32(step), ema=ema), {"bits_per_dim": score})
        assert saver.steps() == [1, 2, 3]
        assert same_bits(saver.restore(start)[1].opt_state, start.opt_state)
    return folder


@pytest.mark.parametrize(("choice", "step"), [({}, 1), ({"which": "latest"}, 3), ({"which": "best"}, 1), ({"step": 2}, 2)])
def test_load_gives_the_model_with_its_averages(trained, choice, step):
    model = jaxgen.load(str(trained), **choice)
    assert isinstance(model, GatedPixelCNN)
    assert model.config == TINY
    assert all(bool((leaf == step).all()) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    image = jnp.zeros((2, 4, 4, 1), jnp.uint8)
    assert np.isfinite(model.log_prob(image)).all()


def test_load_passes_over_a_damaged_best_step(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    flip(0)(next((tmp_path / "run/checkpoints/1/arrays/d").iterdir()))
    model = jaxgen.load(tmp_path / "run")
    assert float(jax.tree.leaves(nnx.state(model, nnx.Param))[0].ravel()[0]) == 3
    assert "checkpoint 1 is damaged" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="only damaged ones"):
        jaxgen.load(tmp_path / "run", step=1)


@pytest.mark.parametrize("when", ["verify", "read", "_read"])
def test_load_takes_the_next_step_where_the_run_deletes_one_meanwhile(trained, tmp_path, monkeypatch, capsys, when):
    """The best step goes before its files are compared, before its manifest is read again, or before its arrays are read."""
    run = shutil.copytree(trained, tmp_path / "run")
    place = checkpoint if when == "_read" else manifest
    before, calls = getattr(place, when), []

    def late(folder, *rest):
        if folder.name == "1" and len(calls) == (4 if when == "read" else 0):  # the list of the best and `verify` read it first
            shutil.rmtree(run / "checkpoints/1")
        calls.append(folder)
        return before(folder, *rest)

    monkeypatch.setattr(place, when, late)
    assert float(jax.tree.leaves(nnx.state(jaxgen.load(run), nnx.Param))[0].ravel()[0]) == 3
    assert "damaged" not in capsys.readouterr().err and not (run / "checkpoints/1").exists()
    with pytest.raises(CheckpointError, match=r"step: wanted one of \[2, 3\], got 1"):
        jaxgen.load(run, step=1)


def test_load_names_what_is_there(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"step: wanted one of \[1, 2, 3\], got 7"):
        jaxgen.load(trained, step=7)
    with pytest.raises(CheckpointError, match="available steps: none"):
        jaxgen.load(tmp_path / "nowhere")


@dataclasses.dataclass(frozen=True)
class CounterConfig:
    width: int = 3


class Counter(nnx.Module):
    """A trained weight and a variable that is not trained by gradients (a codebook average, say)."""

    def __init__(self, config: CounterConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.weight = nnx.Param(jnp.zeros(config.width))
        self.count = nnx.BatchStat(jnp.zeros(config.width))


def test_load_takes_variables_without_an_average_from_the_model(tmp_path, monkeypatch, unchecked):
    monkeypatch.setitem(models.MODELS, CounterConfig, Counter)
    model = jax.tree.map(lambda leaf: leaf + 1, Counter(CounterConfig(), rngs=nnx.Rngs(0)))
    ema = jax.tree.map(lambda leaf: leaf + 1, nnx.state(model, nnx.Param))
    with Checkpointer(tmp_path, {"model": config.to_json(CounterConfig())}) as saver:
        saver.save(1, training.TrainState(jnp.int32(1), model, (), ema))
    loaded = jaxgen.load(tmp_path)
    assert loaded.weight[...].tolist() == [2, 2, 2]
    assert loaded.count[...].tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="^which: wanted best or latest, got 'worst'$"):
        jaxgen.load(tmp_path, which="worst")


def test_the_version_is_that_of_the_package():
    assert jaxgen.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_importing_checkpoint_does_not_import_orbax():
    script = "import sys, jaxgen; jaxgen.load; print('jaxgen.runs.checkpoint' in sys.modules, 'orbax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True", "False"]
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = jaxgen.nothing_like_that


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": "x"}, "width: wanted int, got 'x'"),
        ({"image_shape": None}, "image_shape: wanted a tuple of 3: int, int, int, got None"),
        ({"depth": 3}, "depth: wanted a field of GatedPixelCNNConfig, got an unknown one"),
        (None, "class: wanted one of .*, got "),
    ],
)
def test_a_saved_configuration_that_cannot_be_built_is_an_error_of_the_checkpoint(trained, tmp_path, change, said):
    """None: the manifest has no configuration of a model."""
    shutil.copytree(trained, tmp_path / "run")
    folder = epath.Path(tmp_path / "run/checkpoints/1")
    facts = manifest.read(folder)
    del facts["files"], facts["format"]
    facts["config"] = {} if change is None else {"model": facts["config"]["model"] | change}
    manifest.write(folder, facts, durable=False)
    with pytest.raises(CheckpointError, match=rf"^checkpoint 1, config\.model\.{said}"):
        jaxgen.load(tmp_path / "run")


def test_editors_know_the_methods_of_a_loaded_model():
    """The class that they see is compared with the models: each of its methods is one of a model, with the same first arguments."""
    for function in jaxgen.load, jaxgen.train:
        assert typing.get_type_hints(function)["return"] is nnx.Module
    tree = ast.parse((ROOT / "jaxgen/trained.py").read_text("utf-8"))
    (shown,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "TrainedModel")
    methods = {node.name: [argument.arg for argument in node.args.args] for node in shown.body if isinstance(node, ast.FunctionDef)}
    assert methods.pop("__getattr__") == ["self", "name"] and {"sample", "log_prob"} < set(methods)
    for name, arguments in methods.items():
        own = [inspect.signature(getattr(model, name)) for model in models.MODELS.values() if hasattr(model, name)]
        assert own and all(len(list(one.parameters)) >= len(arguments) for one in own), name
        assert {"key", "n"} & set(arguments) <= set.intersection(*(set(one.parameters) for one in own)), name
