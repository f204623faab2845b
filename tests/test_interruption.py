"""Interrupt a training in every way there is: what comes out is, bit for bit, the run that nobody touched.

Processes that die are real ones that run the `jaxgen` command (forked_runs.py); JAXGEN_KILLS says how many times the kill test
kills (default 3).
The oracle is metrics.jsonl of an undisturbed run: one row a step, the loss with all its bits, the validation of the averaged model.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import family_runs
import forked_runs
import numpy as np
import pytest
from all_models import CONFIGS, data_of
from tiny_runs import EVERY, complete, rows, same_headline, same_model, saved, table, words, write_images

from jaxgen import cli

ROOT = Path(__file__).resolve().parent.parent
KILLS = family_runs.KILLS
STEPS = 10 * (KILLS + 2)
START = re.compile(r"(training to step|resumed from step (\d+) of|is finished at step) (\d+)?")


class Child:
    """A training in a process of its own; its output is read as it comes."""

    def __init__(self, workdir: Path, steps: int, patch: Callable[[], None] | None = None):
        folder = Path(tempfile.mkdtemp(dir=workdir.parent))
        self._out, self._err = folder / "out", folder / "err"
        self.process = forked_runs.SERVER.Process(target=forked_runs.train, args=(words(workdir, steps), self._out, self._err, patch))
        self.process.start()

    def wait_for(self, text: str) -> str:
        """The first line with this text, or "" where the process ends without it."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            ended = not self.process.is_alive()
            for line in self.lines:
                if re.search(text, line):
                    return line
            if ended:
                return ""
            time.sleep(0.005)
        raise TimeoutError(text)

    def send(self, number: int) -> "Child":
        os.kill(self.process.pid, number)
        return self

    def end(self, timeout: float = 300) -> int:
        """The exit code, as of a shell but negative for a signal."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutError
        return self.process.exitcode

    @property
    def lines(self) -> list[str]:
        return self._out.read_text().splitlines(keepends=True) if self._out.exists() else []

    @property
    def errors(self) -> str:
        return self._err.read_text() if self._err.exists() else ""


@pytest.fixture
def start(tmp_path):
    """Starts children, and leaves none behind."""
    children = []

    def start(steps: int, patch: Callable[[], None] | None = None) -> Child:
        children.append(Child(tmp_path / "run", steps, patch))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.end()


def evaluation(workdir: Path, capsys) -> str:
    """What `jaxgen evaluate` prints."""
    capsys.readouterr()
    assert cli.command("evaluate", [str(workdir)]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"test bits_per_dim +\d\.\d{4} \+- 0\.\d{4}  \(60 images\)", out) and not err
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nobody touches."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_images(tmp_path_factory.mktemp("data"))
    child = Child(folder, STEPS)
    assert child.end() == 0, child.errors
    assert complete(rows(folder), STEPS)
    assert child.errors == ""
    return folder


def test_kill_at_random_moments(undisturbed, start, tmp_path, capsys):
    """The last kills fall inside a save: half of the files are written, the manifest not yet, or the manifest and not the rename."""
    folder, random, killed = tmp_path / "run", np.random.default_rng(7), 0
    log = folder / "metrics.jsonl"
    inside_a_save = {KILLS - 2: forked_runs.killed_before_the_manifest, KILLS - 1: forked_runs.killed_after_the_manifest}
    for number in range(KILLS):
        inside = inside_a_save.get(number)
        child = start(STEPS, inside)
        begin = START.search(child.wait_for(START.pattern))
        if killed:
            assert "from a run that is gone" in child.errors
            assert f"pid {killed} on host {socket.gethostname()}" in child.errors
        if not inside:
            last = int(begin[2] or 0) + int(random.integers(0, 12))
            while child.process.is_alive() and last and not re.search(rf'"step": {last}\b', log.read_text() if log.exists() else ""):
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
    assert table(folder) == table(undisturbed)
    assert same_model(folder, undisturbed)
    assert evaluation(folder, capsys) == evaluation(undisturbed, capsys)
    assert saved(folder) == saved(undisturbed)  # and no unfinished one


def test_sigterm_and_ctrl_c_save_and_the_run_goes_on(undisturbed, start, tmp_path, capsys):
    folder = tmp_path / "run"
    child = start(STEPS, forked_runs.steady)
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

    child = start(STEPS, forked_runs.steady)
    assert f"resumed from step {stopped} of {STEPS}, data position {stopped * 32} images" in child.wait_for("resumed")
    child.wait_for(rf"step +\d+/{STEPS}")  # before its first step it has nothing to save
    assert child.send(signal.SIGINT).end() == 130, child.errors
    assert re.search(r"stopped by SIGINT after step \d+; saved", child.lines[-1])

    child = start(STEPS, forked_runs.slow_save)
    child.wait_for(rf"step +\d+/{STEPS}")
    child.send(signal.SIGINT).wait_for("saving")
    before = time.monotonic()
    assert child.send(signal.SIGINT).end() == 130, child.errors
    assert time.monotonic() - before < 20
    assert child.errors.strip().splitlines()[-1] == "jaxgen: interrupted; checkpoints that were saved before are intact"

    child = start(STEPS, forked_runs.slow_validation)
    child.wait_for("validating")
    before = time.monotonic()
    assert child.send(signal.SIGINT).end() == 130, child.errors
    assert time.monotonic() - before < 20
    assert child.errors.strip().splitlines()[-1] == "jaxgen: interrupted between two steps; saved; the same command goes on from there"
    assert saved(folder)[-1] % EVERY == 0  # without its validation, which the next process makes

    child = start(STEPS)
    assert child.end() == 0, child.errors
    assert rows(folder) == rows(undisturbed)
    assert same_model(folder, undisturbed)
    assert saved(folder) == saved(undisturbed)


@pytest.mark.parametrize("when", ["import", "compile"])
def test_sigterm_during_start_up_leaves_at_once(undisturbed, start, tmp_path, when):
    """Before the first step is done there is nothing to save: the signal ends the process, in the first compilation too."""
    if when == "import":
        command = [sys.executable, "-m", "jaxgen", *words(tmp_path / "run", 10**6)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        send, end = child.send_signal, child.wait
    else:
        child = start(10**6)
        child.wait_for("training to step")
        send, end = child.send, child.end
    before = time.monotonic()
    send(signal.SIGTERM)
    code = end()
    assert time.monotonic() - before < 10
    assert code == (-signal.SIGTERM if when == "import" else 75)
    assert not (tmp_path / "run" / "checkpoints").exists() or saved(tmp_path / "run") in ([], [0], [1])


@pytest.mark.parametrize("repeat", range(max(1, KILLS // 5)))
def test_kill_in_every_family(repeat, tmp_path):
    """One of each, killed at a random moment between its first and its last checkpoint; that in closed form inside its only save.

    `make kill-test` takes seven models more, one of them trained in two stages.
    """
    calm, killed, random, before = tmp_path / "calm", tmp_path / "killed", np.random.default_rng(repeat), []
    undisturbed = family_runs.start(calm, [*family_runs.STEPPED, family_runs.CLOSED_FORM])
    undisturbed.join()  # with its programs compiled, those that follow begin at once
    assert undisturbed.exitcode == 0
    for name in family_runs.STEPPED:
        for folder in family_runs.folders(name):  # of a model in stages each stage is killed once
            process, step = family_runs.start(killed, [*before, name]), int(random.integers(family_runs.EVERY + 2, family_runs.STEPS - 1))
            family_runs.kill_after(process, killed / folder / "metrics.jsonl", step, random.uniform(0, 0.02))
            assert process.exitcode == -signal.SIGKILL, folder
            before = []
        before = [name]  # the next process goes on with it first
    for in_its_save, code in ((True, -signal.SIGKILL), (False, 0)):
        process = family_runs.start(killed, [*before, family_runs.CLOSED_FORM], in_its_save)
        process.join()
        assert process.exitcode == code
        left = [path.name for path in (killed / family_runs.CLOSED_FORM / "checkpoints").iterdir()]
        assert all(name.endswith(".tmp") == in_its_save for name in left) and len(left) == 1
        before = []
    for name in [*family_runs.STEPPED, family_runs.CLOSED_FORM]:
        assert same_headline(calm / name, data_of(CONFIGS[name]), batch_size=8), name
        for one in family_runs.folders(name):
            assert rows(killed / one) == rows(calm / one), one
            assert same_model(killed / one, calm / one) and saved(killed / one) == saved(calm / one), one
            losses = [row["step"] for row in rows(calm / one) if "loss" in row]
            assert losses == (list(range(1, family_runs.STEPS + 1)) if name in family_runs.STEPPED else [])
