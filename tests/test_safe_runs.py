"""Runs that go on, or are refused at once, whatever is wrong around them: outputs, names of folders, copied steps, threads."""

import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from saved_runs import CONFIG, DATA, state, two_steps

from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.processes import interruption, printing
from jaxgen.runs import manifest, storage
from jaxgen.runs.checkpoint import Checkpointer

ROOT = Path(__file__).resolve().parent.parent
run = pytest.fixture(two_steps, name="run")


# --- What is printed ------------------------------------------------------------------------------------------------------------------


def test_letters_that_the_output_does_not_have_are_escaped(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    printing.say("runs/\u017elu\u0165")
    assert out.buffer.getvalue() == b"runs/\\u017elu\\u0165\n"


@pytest.mark.parametrize("output", ["closed pipe", "full disk", "closed file"])
def test_an_output_that_cannot_be_written_is_said_once_and_the_program_ends_well(output):
    """A process of its own: at its end Python flushes stdout once more."""
    close = "import sys; sys.stdout.close()" if output == "closed file" else ""
    program = f"from jaxgen.processes.printing import say\n{close}\nfor step in range(3): say('step')"
    if output == "full disk":
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True)
    os.close(out)
    assert done.returncode == 0
    assert done.stderr.count("the run goes on") == (3 if output == "closed file" else 1) and "Traceback" not in done.stderr


RUNS = """
import sys
from jaxgen import commands
def command(words):
    if sys.argv[1] == "within":
        raise BrokenPipeError("a connection of the training")
    if sys.argv[1] == "argument":
        raise ConfigError("x", "y", "z")
    if sys.argv[1] == "help":
        commands.parse("show", ["--help"])
    for line in range(3000):
        print("a line", line)
    return 0
from jaxgen.errors import ConfigError
sys.exit(commands.guarded(command, []))
"""


@pytest.mark.parametrize("unbuffered", [[], ["-u"]], ids=["", "unbuffered"])
def test_a_command_whose_output_cannot_be_written_has_its_own_code(unbuffered):
    """A full disk: 74, or the error's own code; a reader that has left: 0. An error of a connection is an error."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def ends(way: str, out=subprocess.PIPE, err=subprocess.PIPE) -> tuple[int, str]:
        program = [sys.executable, *unbuffered, "-c", RUNS, way]
        done = subprocess.run(program, cwd=ROOT, stdout=out, stderr=err, text=True, check=False)
        return done.returncode, done.stderr

    with open("/dev/full", "w") as full:
        said = "jaxgen: the output cannot be written (No space left on device)\n"
        assert ends("show", full) == ends("help", full) == (74, said)
        assert ends("argument", err=full) == (2, None)
    reader, out = os.pipe()
    os.close(reader)
    assert ends("show", out) == (0, "")
    os.close(out)
    code, error = ends("within")
    assert code == 1 and error.startswith("jaxgen: internal error: BrokenPipeError: a connection of the training")


def test_help_on_a_full_disk():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        for word in ("--help", "--version"):
            words = [sys.executable, "-m", "jaxgen", word]
            done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert (done.returncode, done.stderr.count("\n")) == (74, 1)


# --- The folder of a run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a[1]", "a\\b", os.fsdecode(b"a\xff")])
def test_a_name_in_which_no_checkpoint_could_be_read_is_refused_before_training(name, tmp_path):
    with pytest.raises(ConfigError, match="^workdir: wanted a path"):
        Checkpointer(tmp_path / name, CONFIG, DATA)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a[", "b]", "c*", "d ?", "\u017elu\u0165"])
def test_other_names_work(name, tmp_path):
    with Checkpointer(tmp_path / name, CONFIG, DATA) as saver:
        saver.save(1, state(1))
        assert saver.restore(state(0))[0] == 1


def test_the_home_of_nobody_and_a_folder_for_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="a home folder that exists, got ~nosuchuser/run"):
        Checkpointer("~nosuchuser/run", CONFIG, DATA)
    for name in ("config.json", "metrics.csv", "metrics.jsonl"):
        (tmp_path / name / name).mkdir(parents=True)
        with pytest.raises(ConfigError, match=f"{name} is a file"):
            Checkpointer(name, CONFIG, DATA)


def test_an_entry_of_the_folder_that_is_in_the_way_is_named(tmp_path):
    (tmp_path / "one" / "lock").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "checkpoints").touch()
    for name, entry in (("one", "lock"), ("two", "checkpoints")):
        with pytest.raises(ConfigError, match=rf"^workdir: wanted a folder that can be written, got .*/{name}/{entry} \("):
            Checkpointer(tmp_path / name, CONFIG, DATA)


def test_a_step_that_is_a_link_can_be_deleted_and_what_it_names_stays(run, tmp_path):
    shutil.copytree(run.workdir / "checkpoints" / "2", tmp_path / "elsewhere")
    shutil.rmtree(run.workdir / "checkpoints" / "2")
    os.symlink(tmp_path / "elsewhere", run.workdir / "checkpoints" / "2")
    run.close()
    with Checkpointer(run.workdir, CONFIG, DATA, restart=True) as saver:
        assert saver.steps() == [] and (tmp_path / "elsewhere" / "manifest.json").exists()


def test_a_save_that_cannot_be_read_does_not_count(run, monkeypatch):
    save = storage.save
    monkeypatch.setattr(storage, "save", lambda folder, arrays: save(folder, {"step": arrays["step"]}))
    with pytest.raises(CheckpointError, match="cannot be read: 1 arrays are missing, the first is model/w"):
        run.save(3, state(3))
    assert run.steps() == [1, 2]


def test_a_copied_step_is_not_restored(run, capsys):
    steps = run.workdir / "checkpoints"
    shutil.copytree(steps / "1", steps / "9")
    (steps / "2").rename(steps / "8")
    assert run.restore(state(0))[0] == 1
    err = capsys.readouterr().err
    assert "it is of step 1: the folder was copied or renamed" in err and "it is of step 2" in err


def test_a_state_of_another_step_than_its_manifest_says_is_not_restored(run, capsys):
    run.save(9, state(5))
    assert run.restore(state(0))[0] == 2
    assert "checkpoint 9 is damaged and not used: arrays: the state is of step 5, the manifest says 9" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="wanted an intact step, got only damaged ones in .*: 9;"):
        run.restore(state(0), from_step=9)


@pytest.mark.parametrize("field", [*manifest.FIELDS, "format"])
@pytest.mark.parametrize("value", [None, "x"])
def test_a_manifest_whose_hash_is_right_and_whose_fields_are_not_is_damaged(run, field, value):
    if (field, value) == ("score", None):
        return  # a checkpoint without metrics has no score
    folder = run.workdir / "checkpoints" / "2"
    facts = manifest.read(folder) | {field: value}
    rewrite(folder, facts)
    with pytest.raises(manifest.Damaged, match=field):
        manifest.verify(folder)
    assert run.restore(state(0))[0] == 1


@pytest.mark.parametrize("field", ["files", "arrays"])
def test_a_manifest_with_a_wrong_entry_is_damaged(run, field):
    folder = run.workdir / "checkpoints" / "2"
    rewrite(folder, manifest.read(folder) | {field: {"step": 3}})
    with pytest.raises(manifest.Damaged, match="its entry of the"):
        manifest.verify(folder)


WRONG = {
    "step": -1, "score": True, "config.model": None, "config.data": [1], "config.data.splits": "x", "config.data.class_names": 3,
    "metrics.bits_per_dim": [1], "versions.jax": 3, "fingerprint.n": "x", "fingerprint.sha256": None, "fingerprint.test": 3,
    "fingerprint.validation": {"n": 1}, "files": {}, "arrays.step.dtype": 3, "arrays.step.shape": [-1],
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG)
def test_a_manifest_with_a_wrong_value_inside_a_field_is_damaged(run, field, capsys):
    """The checkpoint before it is taken; the line names step, field, what was wanted and what came."""
    folder, (*parents, last) = run.workdir / "checkpoints" / "2", field.split(".")
    facts = manifest.read(folder)
    inner = facts
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[last] = WRONG[field]
    rewrite(folder, facts)
    assert run.restore(state(0))[0] == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"checkpoint 2 is damaged and not used: .*/2/manifest.json: {field}[.\w]*: wanted .*, got .", line)


def rewrite(folder: Path, facts: dict) -> None:
    """The manifest with these facts and its right hash."""
    body = json.dumps(facts)[1:]
    digest = manifest.hashlib.sha256(body.encode()).hexdigest()
    (folder / manifest.NAME).write_text(f'{{"sha256": "{digest}",\n{body}')


def test_metrics_without_checkpoints_are_said(run, capsys):
    run.close()
    (run.workdir / "metrics.jsonl").write_text('{"step": 1}\n')
    shutil.rmtree(run.workdir / "checkpoints")
    Checkpointer(run.workdir, CONFIG, DATA).close()
    assert "has metrics and no checkpoint; training begins at step 0" in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_start_is_one_line_and_holds_no_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("pwrite", "fsync"):
        with monkeypatch.context() as patch, pytest.raises(ConfigError, match="No space left on device"):
            patch.setattr(os, name, full)
            Checkpointer(tmp_path, CONFIG, DATA)
    Checkpointer(tmp_path, CONFIG, DATA).close()


def raised_in(file) -> OSError:
    """An error with a traceback, from the file where it is the name of one."""

    def fail():
        raise OSError("full")

    try:
        types.FunctionType(fail.__code__.replace(co_filename=str(file)), {})()
    except OSError as error:
        return error


def test_what_orbax_logs_of_a_failed_save_is_dropped_and_nothing_else(run, caplog):
    """Records as its threads and asyncio make them, at moments that a test cannot choose."""
    folder = "/site-packages/orbax/checkpoint/futures/future.py"
    left = "Task exception was never retrieved"
    errors = [
        ("absl", folder, "a thread failed", True), ("asyncio", "base_events.py", f"{left} ... {folder}", True),
        ("asyncio", "base_events.py", left, folder),
        ("absl", "other.py", "kept 1", True), ("absl", folder, "kept 2", False), ("asyncio", "base_events.py", f"{left}: kept 3", True),
    ]  # fmt: skip
    for name, path, message, failed in errors:
        info = (OSError, error := raised_in(failed), error.__traceback__) if failed else None
        logging.getLogger(name).handle(logging.LogRecord(name, logging.ERROR, path, 1, message, (), info))
    assert [record.getMessage()[-6:] for record in caplog.records] == ["kept 1", "kept 2", "kept 3"]


def test_coroutines_of_orbax_that_end_after_a_failed_save_print_nothing(monkeypatch):
    """What Python hands to sys.unraisablehook; others of the same kind are printed as before."""
    shown, closed = [], RuntimeError("Event loop is closed")
    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])
    monkeypatch.setattr(logging.getLogger("asyncio"), "filters", [])
    monkeypatch.setattr(sys, "unraisablehook", lambda one: shown.append(one.object))
    storage._drop_left_errors()
    orbax, other = (types.SimpleNamespace(cr_code=types.SimpleNamespace(co_filename=name)) for name in ("/orbax/a.py", "/other.py"))
    for source, error in ((None, closed), (orbax, closed), (other, closed), (None, RuntimeError("another"))):
        sys.unraisablehook(types.SimpleNamespace(object=source, exc_value=error))
    assert shown == [other, None]


# --- Threads --------------------------------------------------------------------------------------------------------------------------


def test_in_a_thread_no_signal_is_handled_and_a_line_says_so(capsys):
    before, stopped = signal.getsignal(signal.SIGINT), []

    def work():
        with interruption.Interruption() as stop:
            stopped.append(stop(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stopped == [False] and signal.getsignal(signal.SIGINT) is before
    assert "training in a thread" in capsys.readouterr().err
