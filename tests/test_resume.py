"""A run that is started again: after damage, with other settings, finished, on a full disk. All in this process."""

import gc
import json
import os
import re
import resource
import shutil
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from etils import epath
from flax import nnx
from tiny_runs import SMALLER, complete, rows, same_headline, same_model, saved, train, write_images

from jaxgen import cli, data, evaluation, experiment, sharding, training
from jaxgen.data import DataConfig, tfds
from jaxgen.errors import ConfigError
from jaxgen.experiment import Experiment
from jaxgen.models import Flow, FlowConfig, GatedPixelCNNConfig, build
from jaxgen.runs import checkpoint, manifest, storage
from jaxgen.runs.report import ReportConfig
from jaxgen.training import TrainConfig

QUIET = ReportConfig(samples=0, completions=0, rulers=False, time_samplers=False)
pytestmark = pytest.mark.usefixtures("no_curves")  # but for the run that all share, which is made before it


@pytest.fixture(scope="module")
def thirty(tmp_path_factory):
    """A run of 30 steps with checkpoints 20 and 30."""
    folder = tmp_path_factory.mktemp("thirty")
    write_images(tmp_path_factory.mktemp("data"))
    assert train(folder) == 0
    assert saved(folder) == [20, 30] and (folder / "curve.png").read_bytes()
    assert complete(rows(folder), 30)
    return folder


def test_the_logged_validation_is_the_number_of_a_later_evaluation(thirty):
    assert same_headline(thirty, DataConfig(**tiny_runs.DATA).load("validation"), tiny_runs.TRAIN["batch_size"])


@pytest.fixture
def copy(thirty, tmp_path):
    return Path(shutil.copytree(thirty, tmp_path / "copy"))


def array_files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)


def damage(path: Path, how: str) -> None:
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 16
        path.write_bytes(raw)


@pytest.mark.parametrize("how", ["one bit flipped", "truncated", "deleted"])
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(copy, thirty, how, capsys):
    victim = array_files(copy / "checkpoints" / "30" / "arrays")[0]
    damage(victim, how)
    assert train(copy) == 0
    out, err = capsys.readouterr()
    assert str(victim.relative_to(copy / "checkpoints" / "30")) in err and "checkpoints/30" in err
    assert "resumed from step 20 of 30" in out
    assert rows(copy) == rows(thirty)
    assert same_model(copy, thirty)


def test_where_every_checkpoint_is_damaged_only_restart_starts_over(copy, thirty, capsys):
    for step in (20, 30):
        damage(array_files(copy / "checkpoints" / str(step))[0], "truncated")
    before = (copy / "metrics.jsonl").read_text()
    assert train(copy) == 4
    assert "--restart" in capsys.readouterr().err.splitlines()[-1]
    assert (copy / "metrics.jsonl").read_text() == before
    for step in (20, 30):
        (copy / "checkpoints" / str(step) / "manifest.json").write_text("")
    for command in ("show", "sample"):
        assert cli.command(command, [str(copy)]) == 4
        *named, last = capsys.readouterr().err.splitlines()
        assert [f"/{step}/manifest.json" in line for step, line in zip((20, 30), named, strict=True)] == [True, True]
        assert "the files are named above" in last and "train anew with --restart" in last
    assert train(copy, restart=True) == 0
    assert rows(copy) == rows(thirty)
    assert same_model(copy, thirty)


def test_a_run_of_a_version_with_fewer_fields_goes_on(copy, thirty, capsys):
    """As if `accumulate` and `vector_size` were newer than the run: the defaults are what it was trained with."""
    for step in saved(copy):
        folder = epath.Path(copy) / "checkpoints" / str(step)
        facts = manifest.read(folder)
        del facts["config"]["train"]["accumulate"], facts["config"]["model"]["vector_size"], facts["files"], facts["format"]
        (folder / manifest.NAME).unlink()
        manifest.write(folder, facts, durable=False)
    assert train(copy, steps=40) == 0
    changes = capsys.readouterr().err.splitlines()
    assert len(changes) == 2 and "workdir changed" in changes[0] and changes[1] == "jaxgen: train.steps changed from 30 to 40"
    assert train(copy, steps=40, accumulate=2) == 2
    assert "train.accumulate changed from 1 to 2" in capsys.readouterr().err


def test_data_dependent_initialisation_happens_once(thirty, tmp_path, monkeypatch):
    """On the first batch of a run, not when it goes on: 2 + 2 steps are 4 steps bit for bit."""
    calls, initialise = [], Flow.initialise
    monkeypatch.setattr(Flow, "initialise", lambda model, batch: calls.append(len(batch["image"])) or initialise(model, batch))
    monkeypatch.setattr(experiment, "draw_for", lambda *_, **__: np.zeros((1, 8, 8, 1), np.uint8))  # a sampler takes long to compile
    model = FlowConfig((8, 8, 1), 17, maps="coupling", transform="affine", layers=2, hidden=(6,))
    for name, parts in (("whole", (4,)), ("parts", (2, 4))):
        for steps in parts:
            options = TrainConfig(steps=steps, batch_size=32, eval_every=2)
            assert experiment.train(Experiment(model, DataConfig(**tiny_runs.DATA), train=options, workdir=str(tmp_path / name))) == 0
    assert calls == [32, 32]
    assert same_model(tmp_path / "whole", tmp_path / "parts")


def test_data_may_move_but_not_change(copy, tmp_path, monkeypatch, capsys):
    moved = tmp_path / "elsewhere.npz"
    shutil.copy(tiny_runs.DATA["name"], moved)
    monkeypatch.setitem(tiny_runs.DATA, "name", str(moved))
    assert train(copy, steps=40) == 0
    assert "data.name changed" in capsys.readouterr().err
    image = np.load(moved, allow_pickle=False)["image"]
    image[0, 0, 0] ^= 1
    np.savez(moved, image=image)
    assert train(copy, steps=40) == 2
    assert "data fingerprint sha256 changed" in capsys.readouterr().err


def test_more_steps_go_on(thirty, tmp_path, capsys):
    assert train(tmp_path, steps=20) == 0
    assert train(tmp_path, steps=30) == 0
    out, err = capsys.readouterr()
    assert "resumed from step 20 of 30" in out
    assert err == "jaxgen: train.steps changed from 20 to 30\n"
    assert rows(tmp_path) == rows(thirty)
    assert same_model(tmp_path, thirty)


def test_from_a_step_the_run_goes_back_and_gives_the_same_curve(copy, thirty, capsys, monkeypatch):
    """The later step goes only after the state of the earlier one was read; rows are cut there; nothing of the flag is stored."""
    read = checkpoint._read
    monkeypatch.setattr(checkpoint, "_read", lambda *_: (_ for _ in ()).throw(OSError("the state cannot be read")))
    assert train(copy, from_step=20) == 1
    assert saved(copy) == [20, 30] and rows(copy) == rows(thirty)
    there = []
    monkeypatch.setattr(checkpoint, "_read", lambda *arguments: there.append(saved(copy)) or read(*arguments))
    capsys.readouterr()
    assert train(copy, from_step=20) == 0
    assert "resumed from step 20 of 30" in capsys.readouterr().out and there == [[20, 30]]
    assert saved(copy) == [20, 30] and rows(copy) == rows(thirty) and same_model(copy, thirty)
    assert "from_step" not in (copy / "config.json").read_text()
    assert train(copy, from_step=20, learning_rate=1e-4) == 0
    assert rows(copy)[:22] == rows(thirty)[:22] and complete(rows(copy), 30) and not same_model(copy, thirty)


def test_a_step_to_go_back_to_must_be_there_and_intact(copy, thirty, tmp_path, capsys):
    before = contents(copy)
    assert train(copy, from_step=10) == 4
    assert capsys.readouterr().err == "jaxgen: --from-step: wanted one of [20, 30], got 10\n"
    assert train(copy, from_step=20, restart=True) == 2
    assert capsys.readouterr().err == "jaxgen: --from-step: wanted either --from-step or --restart, got both\n"
    assert contents(copy) == before
    assert train(tmp_path / "nothing", from_step=10) == 4 and not (tmp_path / "nothing").exists()
    damage(array_files(copy / "checkpoints" / "20" / "arrays")[0], "truncated")
    assert train(copy, from_step=20) == 4
    assert saved(copy) == [20, 30] and rows(copy) == rows(thirty)


def test_the_command_line_takes_the_step_to_go_back_to():
    run = Experiment(GatedPixelCNNConfig(**SMALLER))
    for words in (["--from-step", "20"], ["--from-step=20"], ["--from_step", "20"]):
        asked = cli.parse_train(run, ["--train.steps", "50", *words, "--train.seed=3"], "", "", tuple(cli.FLAGS))
        assert (asked.from_step, asked.experiment.train.steps, asked.experiment.train.seed) == (20, 50, 3)
    assert cli.parse_train(run, [], "", "", tuple(cli.FLAGS)).from_step is None
    for words, got in (["--from-step"], "nothing"), (["--from-step", "-3"], "-3"), (["--from-step", "2", "3"], "2 3"):
        with pytest.raises(ConfigError, match=f"^--from-step: wanted the step of a checkpoint of the run, got {got}$"):
            cli.parse_train(run, words, "", "", tuple(cli.FLAGS))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_says_so_and_changes_nothing(copy, monkeypatch, capsys):
    def never(*_):
        raise AssertionError("a step")

    monkeypatch.setattr(training, "make_train_step", lambda *_: never)
    train(copy)  # the copy has another workdir in its config.json
    before = contents(copy)
    assert train(copy) == 0
    assert "is finished at step 30" in capsys.readouterr().out
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("change", "name"), [({"seed": 1}, "train.seed"), ({"batch_size": 16}, "train.batch_size"), ({"ema_decay": 0.5}, "train.ema_decay")]
)
def test_another_run_is_refused_with_what_changed(copy, change, name, capsys):
    before = contents(copy)
    assert train(copy, steps=40, **change) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"{name} changed from" in line
    assert contents(copy) == before


def test_a_loss_that_is_not_finite_stops_the_run_and_a_lower_rate_goes_on(copy, thirty, tmp_path, capsys):
    """The exit code is 5, the last good checkpoint stays, and no row is written of a step that failed."""
    assert train(copy, steps=60, learning_rate=1e9) == 5
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"step 3\d: wanted a finite loss and gradient, got loss .*(nan|inf)", line)
    assert "a lower --optimizer.learning_rate" in line
    assert saved(copy) == [20, 30]
    assert same_model(copy, thirty)
    assert all(row["step"] < 40 for row in rows(copy))
    assert train(copy, steps=40) == 0
    straight = Path(shutil.copytree(thirty, tmp_path / "straight"))
    assert train(straight, steps=40) == 0
    assert rows(copy) == rows(straight)


def test_a_loss_that_stays_finite_and_is_ruined_is_warned_of(copy, capsys):
    """At validation and in the report, on one line each; the model that the report is about is the best one, which is not ruined."""
    assert train(copy, steps=40, learning_rate=30.0) == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    worse = r"warning: bits_per_dim is \d+\.\d+: worse than 4.0875, where all 17 values are equally likely"
    assert re.fullmatch(worse, warning)
    experiment.finish(Experiment(GatedPixelCNNConfig(**SMALLER), DataConfig(**tiny_runs.DATA), workdir=str(copy), report=QUIET))
    out = capsys.readouterr().out
    best = min(metrics["bits_per_dim"] for metrics in checkpoint.list_metrics(copy).values())
    far = rf"warning: bits_per_dim is \d+\.\d+: far from the best so far, {best:.6g} at step \d+; --from-step \d+ goes back to it"
    assert re.search("^test bits_per_dim ", out, re.M)
    assert f"\nspeed     not measured; jaxgen bench {copy}\n" in out
    assert [bool(re.fullmatch(far, line)) for line in out.splitlines() if "warning" in line] == [True]


def test_rows_of_metrics_carry_the_rate_the_speed_and_the_seconds(thirty):
    found = [json.loads(line) for line in (thirty / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in found if "loss" in row]
    assert len(found) == 30 and {row["learning_rate"] for row in found} == {0.001}
    assert [row["seconds"] for row in found] == sorted({row["seconds"] for row in found})
    assert all(row["images_per_second"] > 0 for row in found[1:])


def test_validation_is_of_the_averaged_model_and_draws_from_fixed_noise(monkeypatch, unchecked):
    """And a number that is not finite, such as the standard error of a single image, is in no row and in no checkpoint."""
    model, seen = build(GatedPixelCNNConfig(**SMALLER)), defaultdict(list)
    average = jax.tree.map(lambda leaf: leaf + 1, nnx.state(model, nnx.Param))
    state = training.TrainState(jnp.int32(10), model, (), average)

    class Recorder:
        def __getattr__(self, name):
            return lambda *args, **_: seen[name].append(args)

    def record(name, result):
        return lambda *args, **_: seen[name].append(args) or result

    metrics = {"bits_per_dim": 2.0, "standard_error": float("nan"), "nats": 3.0, "n": 1}
    monkeypatch.setattr(evaluation, "evaluate", record("evaluate", metrics))
    monkeypatch.setattr(experiment, "draw_for", record("draw", None))
    run = experiment._Run(experiment.Experiment(model.config), Recorder(), Recorder(), [], sharding.make_mesh())
    for step in (10, 20):
        run.validate_and_save(step, state)
    for judged, drawn in zip(seen["evaluate"], seen["draw"], strict=True):
        for used in (judged[0], drawn[0]):
            assert all((a == b).all() for a, b in zip(jax.tree.leaves(used), jax.tree.leaves(average), strict=True))
    first, second = (jax.random.key_data(args[2]).tolist() for args in seen["draw"])
    assert first == second
    rows = [values for _, values in seen["scalars"]]
    assert rows == 2 * [{"validation_bits_per_dim": 2.0, "validation_nats": 3.0, "validation_n": 1}]
    assert [args[2] for args in seen["save"]] == 2 * [{"bits_per_dim": 2.0, "nats": 3.0, "n": 1}]


def test_a_full_disk_does_not_stop_the_training(thirty, tmp_path, monkeypatch, capsys, caplog):
    """No file may grow beyond 500 bytes while step 10 or the last one is saved; the last one has to be there, so it fails the run.

    A line each is all that is said, though the writes of all arrays fail, some of them after the line.
    """
    save, full = storage.save, ["10", "30"]

    def limited(folder, arrays):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            if folder.parent.name.partition(".")[0] in full:
                resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
            save(folder, arrays)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(storage, "save", limited)
    assert train(tmp_path) == 4
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("jaxgen: warning: step 10:") and warning.endswith("training goes on")
    assert error.startswith("jaxgen: step 30:")
    assert checkpoint.list_metrics(tmp_path).keys() == {20}  # beside it may lie what those writes have made
    gc.collect()
    assert not caplog.records and not capsys.readouterr().err
    full.clear()
    assert train(tmp_path) == 0
    assert rows(tmp_path) == rows(thirty)
    assert checkpoint.list_metrics(tmp_path).keys() == {20, 30}


def test_a_run_whose_folder_is_deleted_ends_with_one_line_and_leaves_nothing_behind(thirty, tmp_path, monkeypatch, capsys):
    log, workdir = experiment._Run.log, tmp_path / "deleted"

    def deleting(self, step, metrics):
        if step == 12:
            shutil.rmtree(workdir)
        assert step <= 12, "the run went on"
        log(self, step, metrics)

    monkeypatch.setattr(experiment._Run, "log", deleting)
    assert train(workdir) == 4
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"got {workdir}, deleted, moved or taken by another run since the start; the run ends" in line
    assert list(tmp_path.iterdir()) == []


class Torn:
    """A data source of TFDS: digits, of which one cannot be read."""

    def __init__(self, images, row: int):
        self.images, self.row = images, row

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> list[dict]:
        if self.row in rows:
            raise RuntimeError("chunk data\nhash mismatch")
        return [{"image": self.images[row]} for row in rows]


def test_a_damaged_record_met_while_training_ends_with_3_its_set_and_its_row(thirty, tmp_path, capsys):
    part = data.load(tiny_runs.DATA["name"], "train", levels=17)
    row = int(part._order(np.arange(32 * 4, 32 * 5), 0)[3])  # of the fifth batch
    source = tfds.DiskSource(Torn(np.asarray(part.images), row), None, "digits/train", "1.0.0", (8, 8, 1), 17, 0)
    options = TrainConfig(**tiny_runs.TRAIN, steps=30)
    run = Experiment(GatedPixelCNNConfig(**SMALLER), DataConfig("digits"), train=options, workdir=str(tmp_path))
    assert cli.guarded(lambda _: experiment.train(run, sets=(data.Dataset(source, "digits", "train"), part)), []) == 3
    line = capsys.readouterr().err
    assert line.startswith(f"jaxgen: digits/train rows {row}: wanted readable examples, got RuntimeError: chunk data hash mismatch; ")
    assert line.count("\n") == 1 and [found["step"] for found in rows(tmp_path)][-1] in (3, 4)
