"""Interrupt a training in every way there is: what comes out is, bit for bit, the run that nobody touched.

Processes that die are real ones, started by the `jaxgen` command; JAXGEN_KILLS says how many times the kill test kills (default 5).
The oracle is metrics.jsonl of an undisturbed run: one row a step, the loss with all its bits, the validation of the averaged model.
"""

import gc
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen import checkpoint, cli, data, experiment, training
from jaxgen.checkpoint import Checkpointer
from jaxgen.data import DataConfig
from jaxgen.experiment import Experiment
from jaxgen.models import GatedPixelCNNConfig
from jaxgen.training import OptimizerConfig, TrainConfig

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("JAXGEN_KILLS", "5"))
STEPS, EVERY = 10 * (KILLS + 2), 10
MODEL = {"width": 6, "layers": 1, "head_width": 8}
DATA = {"name": "", "levels": 17}
TRAIN = {"batch_size": 32, "log_every": 1, "eval_every": EVERY}
START = re.compile(r"(training to step|resumed from step (\d+) of|is finished at step) (\d+)?")

# The command without the report at its end, which measures speeds for seconds.
TRAIN_ONLY = """
import os, signal, sys, time
from jaxgen import __main__, checkpoint, cli, manifest
cli.finish = lambda experiment: None
{}
sys.exit(__main__.main())
"""
# Kills itself inside its second save: after the arrays, before or after the manifest that makes them a checkpoint.
KILLED_INSIDE_A_SAVE = """
write, saves = manifest.write, []
def killer(*args, **options):
    saves.append(1)
    if len(saves) == 2 and not {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*args, **options)
    if len(saves) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
manifest.write = killer
"""
# Saves so slowly, with half of the files written, that a second Ctrl-C comes in time.
SLOW_SAVE = """
save = checkpoint._orbax_save
def slow(*args):
    save(*args)
    print("saving", flush=True)
    time.sleep(100)
checkpoint._orbax_save = slow
"""


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory):
    """600 digits in a file: no child has to import scikit-learn."""
    digits = data.load("digits", "train")
    DATA["name"] = str(tmp_path_factory.mktemp("data") / "digits.npz")
    np.savez(DATA["name"], image=np.asarray(digits.images)[:600])


def words(workdir: Path, steps: int) -> list[str]:
    parts = {"model": MODEL, "data": DATA, "train": TRAIN | {"steps": steps}}
    fields = [f"--{part}.{name}={value}" for part, values in parts.items() for name, value in values.items()]
    return ["train", "gated_pixelcnn", *fields, f"--workdir={workdir}"]


class Child:
    """A training in a process of its own; its output is read as it comes."""

    def __init__(self, workdir: Path, steps: int, patch: str = ""):
        command = [sys.executable, "-c", TRAIN_ONLY.format(patch), *words(workdir, steps)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=target.extend, args=(stream,))
            for target, stream in ((self.lines, self.process.stdout), (self._errors, self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def wait_for(self, text: str) -> str:
        """The first line with this text, or "" where the process ends without it."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            if ended:
                self.end()
            for line in self.lines:
                if re.search(text, line):
                    return line
            if ended:
                return ""
            time.sleep(0.005)
        raise TimeoutError(text)

    def send(self, number: int) -> "Child":
        self.process.send_signal(number)
        return self

    def end(self, timeout: float = 300) -> int:
        """The exit code, as of a shell but negative for a signal."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    @property
    def errors(self) -> str:
        return "".join(self._errors)


@pytest.fixture
def start(tmp_path):
    """Starts children, and leaves none behind."""
    children = []

    def start(steps: int, patch: str = "") -> Child:
        children.append(Child(tmp_path / "run", steps, patch))
        return children[-1]

    yield start
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
        child.end()


def rows(workdir: Path) -> list[dict]:
    """metrics.jsonl, each row checked to stand in metrics.csv too, with the loss as the hexadecimal digits of its float32."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    table = (workdir / "metrics.csv").read_text().splitlines()[1:]
    assert [row["step"] for row in found] == [int(line.partition(",")[0]) for line in table]
    return [row | {"loss": np.float32(row["loss"]).tobytes().hex()} if "loss" in row else row for row in found]


def complete(found: list[dict], steps: int) -> bool:
    """One row of the loss for every step, and one of the validation for every tenth, in their order."""
    wanted = [(step, kind) for step in range(1, steps + 1) for kind in ("loss", "validation_nats") if kind == "loss" or step % EVERY == 0]
    return [(row["step"], "loss" if "loss" in row else "validation_nats") for row in found] == wanted


def saved(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def same_model(one: Path, other: Path) -> bool:
    leaves = (jax.tree.leaves(jaxgen.load(path, which="latest")) for path in (one, other))
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*leaves, strict=True))


def evaluation(workdir: Path, capsys) -> str:
    """What `jaxgen evaluate` prints."""
    capsys.readouterr()
    assert cli.command("evaluate", [str(workdir)]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"test bits_per_dim +\d\.\d{4} \+- 0\.\d{4}  \(60 images\)", out) and not err
    return out


# --- Kills and signals, in processes of their own -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nobody touches."""
    folder = tmp_path_factory.mktemp("undisturbed")
    child = Child(folder, STEPS)
    assert child.end() == 0, child.errors
    assert complete(rows(folder), STEPS)
    assert child.errors == ""
    return folder


def test_kill_at_random_moments(undisturbed, start, tmp_path, capsys):
    """The last kills fall inside a save: half of the files are written, the manifest not yet, or the manifest and not the rename."""
    folder, random, killed = tmp_path / "run", np.random.default_rng(7), 0
    log = folder / "metrics.jsonl"
    for number in range(KILLS):
        inside = number >= KILLS - 2
        child = start(STEPS, KILLED_INSIDE_A_SAVE.format(after=number == KILLS - 1) if inside else "")
        begin = START.search(child.wait_for(START.pattern))
        if killed:
            assert "from a run that is gone" in child.errors
            assert f"pid {killed} on host {socket.gethostname()}" in child.errors
        if not inside:
            last = int(begin[2] or 0) + int(random.integers(0, 12))
            while child.process.poll() is None and last and not re.search(rf'"step": {last}\b', log.read_text() if log.exists() else ""):
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.1))
            child.send(signal.SIGKILL)
        assert child.end() == -signal.SIGKILL, child.errors
        unfinished = [path.name for path in (folder / "checkpoints").iterdir() if path.name.endswith(".tmp")]
        assert unfinished or not inside
        killed = child.process.pid
    child = start(STEPS)
    assert child.end() == 0, child.errors
    assert "resumed from step" in "".join(child.lines)
    assert rows(folder) == rows(undisturbed)
    assert (folder / "metrics.csv").read_text() == (undisturbed / "metrics.csv").read_text()
    assert same_model(folder, undisturbed)
    assert evaluation(folder, capsys) == evaluation(undisturbed, capsys)
    assert saved(folder) == saved(undisturbed)  # and no unfinished one


def test_sigterm_and_ctrl_c_save_and_the_run_goes_on(undisturbed, start, tmp_path, capsys):
    folder = tmp_path / "run"
    child = start(STEPS)
    child.wait_for(f"step {EVERY} ")
    second = cli.command("train", words(folder, STEPS)[1:])
    assert second == 2
    refusal = capsys.readouterr().err
    assert f"in use by pid {child.process.pid} on host {socket.gethostname()}" in refusal
    assert refusal.count("\n") == 1
    assert child.send(signal.SIGTERM).end() == 75, child.errors
    assert re.search(r"stopped by SIGTERM after step \d+; saved", child.lines[-1])
    stopped = saved(folder)[-1]
    assert stopped == rows(folder)[-1]["step"]

    child = start(STEPS)
    assert f"resumed from step {stopped} of {STEPS}, data position {stopped * 32} images" in child.wait_for("resumed")
    assert child.send(signal.SIGINT).end() == 130, child.errors
    assert re.search(r"stopped by SIGINT after step \d+; saved", child.lines[-1])

    child = start(STEPS, SLOW_SAVE)
    child.wait_for("resumed")
    child.send(signal.SIGINT).wait_for("saving")
    before = time.monotonic()
    assert child.send(signal.SIGINT).end() == 130, child.errors
    assert time.monotonic() - before < 20
    assert child.errors.strip().splitlines()[-1] == "jaxgen: interrupted; the last checkpoint is intact"

    child = start(STEPS)
    assert child.end() == 0, child.errors
    assert rows(folder) == rows(undisturbed)
    assert same_model(folder, undisturbed)
    assert saved(folder) == saved(undisturbed)


@pytest.mark.parametrize("when", ["import", "compile"])
def test_sigterm_during_start_up_leaves_at_once(start, tmp_path, when):
    """Before the run has begun nothing can be saved: the signal ends the process. In the first compilation: after the first step."""
    child = start(10**6)
    if when == "import":
        time.sleep(0.5)
    else:
        child.wait_for("training to step")
    before = time.monotonic()
    code = child.send(signal.SIGTERM).end()
    assert time.monotonic() - before < 60
    assert code in ((-signal.SIGTERM,) if when == "import" else (-signal.SIGTERM, 75))
    assert not (tmp_path / "run" / "checkpoints").exists() or saved(tmp_path / "run") in ([], [0], [1])


# --- Damage, other settings, a full disk: in this process --------------------------------------------------------------------------------


def train(workdir: Path, restart: bool = False, learning_rate: float = 1e-3, **options) -> int:
    """The exit code of a run of 30 steps, or as the options say; errors as the command line reports them."""
    run = Experiment(
        model=GatedPixelCNNConfig(**MODEL),
        data=DataConfig(**DATA),
        optimizer=OptimizerConfig(learning_rate=learning_rate),
        train=TrainConfig(**({"steps": 30} | TRAIN | options)),
        workdir=str(workdir),
    )
    return cli.guarded(lambda _: experiment.train(run, restart), [])


@pytest.fixture(scope="module")
def thirty(tmp_path_factory):
    """A run of 30 steps with checkpoints 20 and 30."""
    folder = tmp_path_factory.mktemp("thirty")
    assert train(folder) == 0
    assert saved(folder) == [20, 30]
    assert complete(rows(folder), 30)
    return folder


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
    assert train(copy, restart=True) == 0
    assert rows(copy) == rows(thirty)
    assert same_model(copy, thirty)


def test_more_steps_go_on(thirty, tmp_path, capsys):
    assert train(tmp_path, steps=20) == 0
    assert train(tmp_path, steps=30) == 0
    out, err = capsys.readouterr()
    assert "resumed from step 20 of 30" in out
    assert err == "jaxgen: train.steps changed from 20 to 30\n"
    assert rows(tmp_path) == rows(thirty)
    assert same_model(tmp_path, thirty)


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
def test_another_run_is_refused_with_what_train(copy, change, name, capsys):
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore's futures of the files that did not fit
def test_a_full_disk_does_not_stop_the_training(thirty, tmp_path, monkeypatch, capsys):
    """No file may grow beyond 500 bytes while step 10 or the last one is saved; the last one has to be there, so it fails the run."""
    save, full = Checkpointer.save, [10, 30]

    def limited(self, step, state, metrics=None):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            if step in full:
                resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
            save(self, step, state, metrics)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(Checkpointer, "save", limited)
    assert train(tmp_path) == 4
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("jaxgen: warning: step 10:") and warning.endswith("training goes on")
    assert error.startswith("jaxgen: step 30:")
    assert saved(tmp_path) == [20]
    full.clear()
    assert train(tmp_path) == 0
    assert rows(tmp_path) == rows(thirty)
    assert checkpoint.list_metrics(tmp_path).keys() == {20, 30}
    gc.collect()
