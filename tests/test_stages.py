"""Stages of a run: parts trained before the whole, or taken from other runs. The model of two parts is that of docs/stages.md."""

import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import in_a_process, virtual_devices
from flax import nnx

import jaxgen
from jaxgen import cli, config, experiment, stages
from jaxgen.data import DataConfig, Dataset
from jaxgen.data.features import OfImages
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.experiment import Experiment
from jaxgen.models import VAE, VAEConfig
from jaxgen.processes import interruption
from jaxgen.runs import checkpoint
from jaxgen.runs.report import ReportConfig
from jaxgen.stages import Stage
from jaxgen.training import OptimizerConfig, TrainConfig

CODES = VAEConfig(hidden=(6,), latent=3)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "stages.md"
pytestmark = pytest.mark.usefixtures("no_curves")  # but for the run that all share, which is made before it


FOLDER = tempfile.TemporaryDirectory()  # removed at exit
Path(FOLDER.name, "my_prior.py").write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])
sys.path.insert(0, FOLDER.name)
np.savez(f"{FOLDER.name}/few.npz", image=np.random.default_rng(0).integers(0, 17, (100, 8, 8)).astype(np.uint8))
DATA = DataConfig(f"{FOLDER.name}/few.npz", levels=17)
my_prior = importlib.import_module("my_prior")
PriorConfig = my_prior.PriorConfig


@dataclasses.dataclass(frozen=True)
class WiderConfig(OfImages):
    """A model whose part has a part: the distance of the prior's mean to a number."""

    image_shape: tuple[int, int, int] = (8, 8, 1)
    levels: int = 17
    prior: PriorConfig = PriorConfig(codes=CODES)
    stages: ClassVar[tuple[str, ...]] = ("prior",)

    def build(self, rngs):
        return Wider(self, rngs=rngs)


class Wider(nnx.Module):
    """The model of WiderConfig."""

    def __init__(self, config, *, rngs):
        self.config, self.prior, self.offset = config, config.prior.build(rngs), nnx.Param(jnp.ones((1, 3)))

    def loss(self, batch, key):
        """The squared distance."""
        distance = jnp.square(self.offset[...] - self.prior.mean[...]).sum()
        return distance, {"distance": distance}

    def sample(self, key, n):
        """As the prior."""
        return self.prior.sample(key, n)


QUIET = ReportConfig(samples=0, completions=0, rulers=False, time_samplers=False)
FIRST = Stage(train=TrainConfig(steps=6, batch_size=16, eval_every=6, log_every=1), optimizer=OptimizerConfig(learning_rate=1e-2))

OFTEN = dataclasses.replace(FIRST, train=dataclasses.replace(FIRST.train, eval_every=3))


def prior(workdir, steps=6, first=FIRST, codes=CODES, every=6) -> Experiment:
    """The experiment of a prior with its codes as a stage."""
    options = {"train": TrainConfig(steps, 16, eval_every=every, log_every=1), "report": QUIET, "stages": {"codes": first}}
    frozen = OptimizerConfig(1e-2, frozen=("codes",))
    return Experiment(PriorConfig(codes=codes), DATA, optimizer=frozen, workdir=str(workdir), **options)


@cache
def drawn() -> dict:
    """The weights of the codes before any training, in one program."""
    return jax.device_get(jax.jit(lambda: nnx.state(VAE(CODES, rngs=nnx.Rngs(0))))())


def arrays(run, models, step=None, which="latest") -> dict:
    """Every array of a run's model by its path."""
    state = nnx.state(jaxgen.load(run, step, which, models=models))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def same(one: dict, other: dict) -> bool:
    """Whether all arrays have the same bits."""
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two stages, each with two checkpoints; the runs that are compared with it validate at their end only."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    assert experiment.train(prior(folder, first=OFTEN, every=3)) == 0
    return folder


def test_the_parts_are_trained_in_order_and_the_whole_holds_their_weights(run):
    codes = jaxgen.load(run / "codes")
    assert isinstance(codes, VAE) and codes.config == CODES and (run / "codes" / "curve.png").read_bytes()
    before, trained = jax.tree_util.tree_leaves_with_path(drawn()), arrays(run / "codes", [VAEConfig], which="best")
    assert any((np.asarray(leaf) != trained[jax.tree_util.keystr(path)]).any() for path, leaf in before)
    for step in checkpoint.list_metrics(run):  # frozen: the averaged weights of the stage, bit for bit, whatever the step
        whole = arrays(run, [PriorConfig], step)
        part = {name.removeprefix("['codes']"): array for name, array in whole.items() if name.startswith("['codes']")}
        assert same(part, trained)
        assert (whole["['mean'].value"] != 0).any()


def test_a_run_stopped_in_any_stage_goes_on_with_the_same_numbers(run, tmp_path, monkeypatch):
    stops = iter([2, 5])  # after step 2 of the stage, then after step 5 of the whole (4 more of the stage come before)

    class Stop(interruption.Interruption):
        """A signal at the wanted step, once for each run that is asked."""

        def __call__(self, step):
            if step == self.at:
                self.signal = 15
            return super().__call__(step)

        def __enter__(self):
            self.at = next(stops, None)
            return super().__enter__()

    monkeypatch.setattr(interruption, "Interruption", Stop)
    assert experiment.train(prior(tmp_path / "run")) == experiment.PREEMPTED
    assert checkpoint.newest(tmp_path / "run") is None and checkpoint.newest(tmp_path / "run" / "codes") == 2
    stops = iter([None, 5])
    assert experiment.train(prior(tmp_path / "run")) == experiment.PREEMPTED
    assert checkpoint.newest(tmp_path / "run") == 5 and checkpoint.newest(tmp_path / "run" / "codes") == 6
    shutil.rmtree(tmp_path / "run" / "codes")  # the whole has a checkpoint: its stages are not read again
    stops = iter([])
    assert experiment.train(prior(tmp_path / "run")) == 0
    assert not (tmp_path / "run" / "codes").exists()
    assert same(arrays(run, [PriorConfig]), arrays(tmp_path / "run", [PriorConfig]))


def test_a_finished_stage_is_not_trained_again_unless_all_starts_over(run, tmp_path, capsys, monkeypatch):
    shutil.copytree(run / "codes", tmp_path / "run" / "codes")
    before = (tmp_path / "run" / "codes" / "metrics.jsonl").read_text()
    assert experiment.train(prior(tmp_path / "run")) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'run' / 'codes'} is finished at step 6" in out and "report of" not in out
    assert (tmp_path / "run" / "codes" / "metrics.jsonl").read_text() == before
    monkeypatch.setattr(experiment, "_train_stages", lambda *_: experiment.PREEMPTED)
    assert experiment.train(prior(tmp_path / "run"), restart=True) == experiment.PREEMPTED
    monkeypatch.undo()  # a restart that is stopped at once has no old stage to go on with
    assert experiment.train(prior(tmp_path / "run")) == 0
    assert f"training to step 6 in {tmp_path / 'run' / 'codes'}" in capsys.readouterr().out
    assert same(arrays(run, [PriorConfig]), arrays(tmp_path / "run", [PriorConfig]))


def test_a_part_starts_from_another_run(run, tmp_path):
    first = Stage(start_from=str(run / "codes"))
    assert experiment.train(prior(tmp_path / "run", first=first)) == 0
    assert not (tmp_path / "run" / "codes").exists()
    assert same(arrays(run, [PriorConfig]), arrays(tmp_path / "run", [PriorConfig]))
    # A part that is not frozen is trained on.
    free = dataclasses.replace(prior(tmp_path / "free", first=first), optimizer=OptimizerConfig())
    assert experiment.train(free) == 0
    assert not same(arrays(run, [PriorConfig]), arrays(tmp_path / "free", [PriorConfig]))


def test_the_whole_may_not_change_what_its_finished_stages_were(run):
    changed = dataclasses.replace(OFTEN, train=dataclasses.replace(OFTEN.train, steps=7))
    with pytest.raises(ConfigError, match=r"stages\.codes\.train\.steps changed from 6 to 7"):
        experiment.train(prior(run, first=changed, every=3))
    moved = dataclasses.replace(OFTEN, start_from="elsewhere", train=dataclasses.replace(OFTEN.train, log_every=5))
    assert experiment.train(prior(run, first=moved, every=3)) == 0  # where it came from is information, and is not looked for


@pytest.mark.parametrize(
    "start_from, changes, error, message",
    [
        ("nothing", {}, CheckpointError, "stages.codes.start_from: wanted a run directory with checkpoints, got nothing"),
        ("run", {}, ConfigError, "stages.codes.start_from: wanted a run of VAEConfig, got .*, a run of PriorConfig"),
        ("run/codes", {"codes": dataclasses.replace(CODES, latent=4)}, ConfigError, "codes.latent: wanted 3, as in .*, got 4; leave it"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_before_anything_is_trained(run, tmp_path, start_from, changes, error, message):
    first = Stage(start_from=start_from.replace("run", str(run)))
    with pytest.raises(error, match=message):
        experiment.train(prior(tmp_path / "run", first=first, **changes))
    assert not (tmp_path / "run").exists()
    before = checkpoint.list_metrics(run)
    with pytest.raises(error, match=message):  # and before anything is deleted
        experiment.train(prior(run, first=first, **changes), restart=True)
    assert checkpoint.list_metrics(run) == before


def test_stages_are_parts_of_the_model():
    with pytest.raises(ConfigError, match="stages: wanted parts of PriorConfig: codes, got code; did you mean codes"):
        Experiment(PriorConfig(), stages={"code": Stage()})
    with pytest.raises(ConfigError, match="stages: wanted none: VAEConfig has no parts, got codes"):
        Experiment(VAEConfig(), stages={"codes": Stage()})
    made = dataclasses.make_dataclass("Made", [("lock", VAEConfig, VAEConfig())], frozen=True)
    with pytest.raises(ConfigError, match="stages: wanted a part whose folder in the run is free, not .*, got lock"):
        Experiment(made(), stages={"lock": Stage()})


def test_a_part_of_a_part_is_trained_first(tmp_path):
    quick = TrainConfig(2, 16, eval_every=2)
    first = Stage(train=quick, optimizer=OptimizerConfig(frozen=("codes",)), stages={"codes": Stage(train=quick)})
    whole = Experiment(WiderConfig(), DATA, optimizer=OptimizerConfig(frozen=("prior",)), train=quick, workdir=str(tmp_path), report=QUIET)
    assert experiment.train(dataclasses.replace(whole, stages={"prior": first})) == 0
    codes, inner, outer = (arrays(tmp_path / folder, [WiderConfig, PriorConfig], which="best") for folder in ("prior/codes", "prior", "."))
    assert same({f"['codes']{name}": array for name, array in codes.items()}, {n: a for n, a in inner.items() if n.startswith("['codes']")})
    assert same({f"['prior']{name}": array for name, array in inner.items()}, {n: a for n, a in outer.items() if n.startswith("['prior']")})


def test_configurations_with_stages_survive_json_and_the_command_line():
    one = Experiment(WiderConfig(), stages=stages.declared(WiderConfig()))
    assert list(one.stages) == ["prior"] and list(one.stages["prior"].stages) == ["codes"]
    words = ["--stages.prior.train.steps", "7", "--stages.prior.stages.codes.start_from=runs/x", "--model.prior.codes.latent", "5"]
    changed = config.parse(one, words)
    assert changed.stages["prior"].train.steps == 7 and changed.stages["prior"].stages["codes"].start_from == "runs/x"
    assert changed.model.prior.codes.latent == 5
    assert config.from_json([Experiment, WiderConfig], config.to_json(changed)) == changed
    for words, message in {
        ("--stages.priro.train.steps", "7"): r"did you mean --stages.prior.train.steps",
        ("--stages.prior.train.steps", "x"): "--stages.prior.train.steps: wanted int, got 'x'",
        ("--stages.prior.train.steps", "0"): "stages.prior.train.steps: wanted a positive integer, got 0",
    }.items():
        with pytest.raises(ConfigError, match=message):
            config.parse(one, words)
    broken = config.to_json(one)
    broken["stages"]["prior"]["trian"] = 1
    with pytest.raises(ConfigError, match=r"stages\.prior\.trian: wanted a field of Stage, got an unknown one; did you mean train"):
        config.from_json([Experiment, WiderConfig], broken)


def test_a_configuration_class_that_names_its_stages_has_them_on_the_command_line(tmp_path, capsys, monkeypatch):
    """`jaxgen train my_prior`, were it a model of the library: frozen stages, sizes of the whole and of the part from the data."""

    @dataclasses.dataclass(frozen=True)
    class Sized(PriorConfig):
        @staticmethod
        def sizes_from(features):
            own = {name: OfImages.sizes_from(features)[name] for name in ("image_shape", "levels")}
            return own | {f"codes.{name}": value for name, value in own.items()}

    monkeypatch.setattr(cli, "MODELS", {Sized: my_prior.Prior})
    np.savez(tmp_path / "x.npz", image=np.random.default_rng(0).integers(0, 2, (60, 4, 4)).astype(np.uint8))
    words = [f"--data.name={tmp_path / 'x.npz'}", f"--workdir={tmp_path / 'run'}", "--train.steps=2", "--train.batch_size=16"]
    words += ["--report.samples=0", "--report.rulers=False"]
    code = cli.command("train", ["my_prior", *words, "--stages.codes.train.steps=2", "--stages.codes.train.batch_size=16"])
    assert (code, capsys.readouterr().err) == (0, "")
    saved = checkpoint.read_config(tmp_path / "run")
    assert saved["optimizer"]["frozen"] == ["codes"] and saved["stages"]["codes"]["train"]["steps"] == 2
    assert saved["model"]["codes"]["image_shape"] == saved["model"]["image_shape"] == [4, 4, 1] and saved["model"]["codes"]["levels"] == 2


@pytest.mark.parametrize("validates", [True, False])
def test_stages_on_arrays_in_memory_report_on_the_validation_split_and_the_whole_goes_on(validates, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 17, (60, 8, 8)).astype(np.uint8)
    sets = Dataset.from_arrays(images[:40], levels=17), Dataset.from_arrays(images[40:], levels=17) if validates else None
    data = DataConfig("arrays", validation=None if validates else 0)
    assert experiment.train(dataclasses.replace(prior(tmp_path / "run", steps=3), data=data), sets=sets) == 0
    out, err = capsys.readouterr()
    assert err == "" and (checkpoint.newest(tmp_path / "run" / "codes"), checkpoint.newest(tmp_path / "run")) == (6, 3)
    said = out.split(f"report of {tmp_path / 'run' / 'codes'}")[1].split("training to step 3")[0]
    evaluated = "the validation split is evaluated" if validates else "nothing is evaluated"
    assert f"test      none, {evaluated} (arrays: arrays in memory, which are not kept on disk)" in said
    assert ("validation bits_per_dim_bound" in said) == validates and not re.findall("(?m)^(test|train) bits_per_dim", said)
    with pytest.raises(DataError, match="^arrays: wanted a data set that has a name"):  # without the arrays there is nothing to report on
        experiment.finish(dataclasses.replace(prior(tmp_path / "run", steps=3), data=data))


@pytest.mark.parametrize("workdir", [None, "run"])
def test_a_notebook_trains_the_stages_that_a_class_names(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dataset = Dataset.from_arrays(np.random.default_rng(0).integers(0, 17, (60, 8, 8)).astype(np.uint8), levels=17)
    config, seen = WiderConfig(), {}

    def parts(run, load=experiment._trained_parts):
        found = load(run)
        seen.update({name: jax.tree.map(np.array, nnx.state(part)) for name, part in found.items()})
        return found

    monkeypatch.setattr(experiment, "_trained_parts", parts)
    model = jaxgen.train(config, dataset, steps=2, workdir=workdir and tmp_path / workdir, eval_every=2, learning_rate=1e-2)
    out, err = capsys.readouterr()
    assert err == "" and re.findall("(?m)^stage (.*) of", out) == ["prior", "codes"]
    for name, whole in {"prior": model.prior, "codes": model.prior.codes}.items():  # trained, and frozen afterwards
        chex.assert_trees_all_equal(nnx.state(whole), seen[name])
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(seen["codes"]), jax.tree.leaves(drawn()), strict=True))
    assert (np.asarray(model.offset[...]) != 1).any() and [path.name for path in tmp_path.iterdir()] == ([workdir] if workdir else [])


def test_a_command_line_takes_the_part_of_another_run_as_it_is(run, tmp_path, capsys, monkeypatch):
    """Its sizes are not typed again; later the run holds the part, and the other run may be gone."""
    other = tmp_path / "codes"
    shutil.copytree(run / "codes", other)
    default = dataclasses.replace(prior(tmp_path / "run", codes=VAEConfig(hidden=(9,), latent=2)), stages={"codes": Stage()})
    words = [f"--stages.codes.start_from={other}", "--train.steps", "3"]

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main(default, argv=words)
        return ended.value.code, *capsys.readouterr()

    code, out, err = call(*words)
    assert (code, err) == (0, "") and "test" in out
    assert jaxgen.load(tmp_path / "run", models=[PriorConfig]).config.codes == CODES
    shutil.rmtree(other)
    code, out, err = call(*words[:-1], "6")
    assert (code, err) == (0, "jaxgen: train.steps changed from 3 to 6\n") and "resumed from step 3 of 6" in out
    for words, found in {("evaluate",): "test", ("sample", "--n", "4"): "4 samples", ("show",): "parameters"}.items():
        code, out, err = call(words[0], str(tmp_path / "run"), *words[1:])
        assert (code, err) == (0, "") and found in out
    code, out, err = call("evaluate", str(run / "codes"))
    assert code == 0 and "bits_per_dim_bound" in out
    code, out, err = call("--dry-run", "--workdir", str(tmp_path / "new"))
    assert code == 0 and "stage codes " in out and "trained first, 1000 steps" in out
    code, out, err = call(f"--stages.codes.start_from={other}", "--workdir", str(tmp_path / "new"))
    assert code == 4 and err.startswith("jaxgen: start_from: wanted a run directory with checkpoints")


def test_a_part_is_laid_over_the_devices_that_split_the_whole(run, tmp_path):
    """With fsdp the part's weights go from its checkpoint to the devices that keep them."""
    environment = os.environ | virtual_devices(2) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, __file__, str(run / "codes"), str(tmp_path / "run")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    whole = arrays(tmp_path / "run", [PriorConfig])
    part = {name.removeprefix("['codes']"): array for name, array in whole.items() if name.startswith("['codes']")}
    assert same(part, arrays(run / "codes", [VAEConfig], which="best"))


if __name__ == "__main__":  # the training of the last test, on two devices
    in_a_process()
    codes, workdir = sys.argv[1:]
    options = TrainConfig(3, 16, eval_every=3, fsdp=2)
    sys.exit(experiment.train(dataclasses.replace(prior(workdir, first=Stage(start_from=codes)), train=options)))
