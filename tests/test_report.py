"""Reports: no row missing or twice, whatever stops the run or the disk; pictures that show what they should."""

import builtins
import contextlib
import csv
import errno
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen.data import features
from jaxgen.runs import figures, report


@pytest.fixture(name="start")
def start_reporter():
    """`start(...)` is a Reporter that the end of the test closes."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(report.Reporter(*args, **options))


def record(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def table(folder):
    """The CSV's rows without empty cells, as numbers."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def as_numbers(rows):
    return [{name: float(value) for name, value in row.items()} for row in rows]


# --- metrics ------------------------------------------------------------------------------------------------------------------------


def test_rows_are_exact_in_both_files(start, tmp_path):
    values = np.random.default_rng(0).normal(size=20).astype(np.float32) * 1e-7
    reporter = start(tmp_path)
    for step, value in enumerate(values, 1):
        reporter.scalars(step, {"loss": jnp.float32(value), "count": np.int64(2**40), "flag": True, "rate": 0.1})
    rows = record(tmp_path)
    assert [np.float32(row["loss"]).tobytes() for row in rows] == [value.tobytes() for value in values]
    assert rows[0]["count"] == 2**40 and rows[0]["flag"] == 1 and rows[0]["rate"] == 0.1
    np.testing.assert_equal(table(tmp_path), as_numbers(rows))


def test_rows_are_there_without_close_or_flush(start, tmp_path):
    reporter = start(tmp_path)
    reporter.scalars(1, {"loss": 2.0})
    assert record(tmp_path) == [{"step": 1, "loss": 2.0}] and table(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_new_columns_join_the_header_and_old_rows_stay(start, tmp_path):
    reporter = start(tmp_path)
    reporter.scalars(1, {"a": 1.0})
    reporter.scalars(2, {"b": 2.0, "with,comma\n": 3.0})
    reporter.scalars(3, {"a": 4.0})
    assert table(tmp_path) == [{"step": 1, "a": 1}, {"step": 2, "b": 2, "with,comma\n": 3}, {"step": 3, "a": 4}]


def test_infinities_are_valid_json_and_read_back(start, tmp_path):
    reporter = start(tmp_path)
    reporter.scalars(1, {"a": float("inf"), "b": jnp.float32("nan"), "c": -np.inf})
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert float(row["a"]) == np.inf and np.isnan(float(row["b"])) and float(row["c"]) == -np.inf
    np.testing.assert_equal(table(tmp_path), as_numbers([row]))


def test_resume_cuts_later_rows_and_a_torn_one(start, tmp_path):
    reporter = start(tmp_path)
    for step in range(1, 10):
        reporter.scalars(step, {"loss": step / 3} | ({"extra": 1.0} if step == 8 else {}))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    resumed = start(tmp_path, resume_step=6)
    resumed.scalars(7, {"loss": 7 / 3})
    assert record(tmp_path) == [{"step": step, "loss": step / 3} for step in range(1, 8)]
    assert table(tmp_path) == as_numbers(record(tmp_path))


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00\n", b"[1]\n", b"null\n", b'{"loss": 1}\n', b'{"step": "x"}\n', b"\n\n"])
def test_resume_drops_lines_that_are_no_rows(start, tmp_path, damage):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n' + damage + b'{"step": 2, "loss": 1.0}\n')
    start(tmp_path, resume_step=5)
    assert record(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_a_new_run_starts_new_files(start, tmp_path):
    start(tmp_path).scalars(0, {"old": 1.0})
    start(tmp_path).scalars(1, {"new": 1.0})
    assert record(tmp_path) == [{"step": 1, "new": 1.0}] and table(tmp_path) == [{"step": 1, "new": 1}]


def test_resume_step_none_keeps_every_row(start, tmp_path):
    start(tmp_path).scalars(3, {"loss": 1.0})
    start(tmp_path, None).curve()
    assert record(tmp_path) == [{"step": 3, "loss": 1.0}] and (tmp_path / "curve.png").exists()


def test_only_the_writer_writes(start, tmp_path, capsys):
    reporter = start(tmp_path / "run", writer=False)
    reporter.scalars(1, {"loss": 1.0})
    reporter.samples(1, "samples", np.zeros((1, 2, 2, 1), np.uint8), features.Image((2, 2, 1), 2))
    reporter.progress(1, 2, 1, {"loss": 1.0})
    reporter.curve()
    reporter.close()
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


WRITER = """
import sys
from jaxgen.runs.report import Reporter
start = int(sys.argv[2])
reporter = Reporter(sys.argv[1], resume_step=start)
for step in range(start + 1, 10**9):
    reporter.scalars(step, {"loss": step / 7})
    if step % 5 == 0:
        reporter.flush()
        print(step, flush=True)
"""


def test_kill_at_random_moments_loses_and_repeats_nothing(start, tmp_path):
    """Steps printed by the writer are its checkpoints: every row up to them must be there once after each kill and resume."""
    rng, saved = random.Random(0), 0
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(saved)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            saved = int(process.stdout.readline())
            time.sleep(rng.uniform(0, 0.1))
            os.kill(process.pid, signal.SIGKILL)
            saved = max([saved, *(int(line) for line in process.stdout.read().split("\n")[:-1])])
        start(tmp_path, resume_step=saved)
        assert record(tmp_path) == [{"step": step, "loss": step / 7} for step in range(1, saved + 1)]
        assert table(tmp_path) == as_numbers(record(tmp_path))
    assert saved >= 4 * 5


# --- failures never stop a run ------------------------------------------------------------------------------------------------------


class FullDisk(io.FileIO):
    """A file on a full disk: a little of what is written arrives."""

    full = True

    def write(self, data):
        if not FullDisk.full:
            return super().write(data)
        super().write(data[:9])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_warns_once_and_rows_appear_when_there_is_space_again(start, tmp_path, monkeypatch, caplog):
    reporter = start(tmp_path)
    reporter.scalars(1, {"loss": 1.0})
    reporter.scalars(2, {"loss": 2.0})
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", lambda path, mode: FullDisk(path, mode))
        for step in range(3, 9):
            reporter.scalars(step, {"loss": float(step)})
        reporter.flush()
        messages = [entry.message for entry in caplog.records if "metrics" in entry.message]
        assert len(messages) == 1 and str(tmp_path) in messages[0] and "No space left" in messages[0]
        assert not (tmp_path / "metrics.jsonl").read_text().endswith("\n")
        monkeypatch.setattr(FullDisk, "full", False)
        reporter.scalars(9, {"loss": 9.0})
    assert record(tmp_path) == [{"step": step, "loss": float(step)} for step in range(1, 10)]
    assert table(tmp_path) == as_numbers(record(tmp_path))


@pytest.mark.parametrize("make", ["file", "file_above", "removed"])
def test_a_run_directory_that_fails_does_not_stop_the_run(start, tmp_path, make, caplog, capsys):
    folder = tmp_path / "run" / "a"
    if make != "removed":
        (tmp_path / "run").mkdir()
        (folder if make == "file" else tmp_path / "run" / "b").touch()
        folder = folder if make == "file" else tmp_path / "run" / "b" / "c"
    reporter = start(folder)
    if make == "removed":
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    for step in (1, 2):
        reporter.scalars(step, {"loss": 1.0})
        reporter.samples(step, "samples", np.zeros((1, 2, 2, 1), np.uint8), features.Image((2, 2, 1), 2))
        reporter.curve()
        reporter.progress(step, 2, 1, {"loss": 1.0})
        reporter.flush()
    reporter.close()
    assert capsys.readouterr().out.count("\n") == 2
    assert len(caplog.records) == len({entry.args[0] for entry in caplog.records})
    if make == "removed":
        assert [row["step"] for row in record(folder)] == [1, 2]
    else:
        assert any("cannot write metrics" in entry.message for entry in caplog.records)


def test_failing_tensorboard_is_given_up_after_one_warning(start, tmp_path, monkeypatch, caplog):
    writer = pytest.importorskip("tensorboardX.event_file_writer")

    def fail(*args):
        raise RuntimeError("no TensorBoard today")

    reporter = start(tmp_path)
    reporter.scalars(0, {"loss": 1.0})
    monkeypatch.setattr(writer.EventsWriter, "write_event", fail)
    for step in (1, 2):
        reporter.scalars(step, {"loss": 1.0})
        reporter.samples(step, "samples", np.zeros((1, 2, 2, 1), np.uint8), features.Image((2, 2, 1), 2))
    reporter.close()
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING] and "no TensorBoard today" in caplog.text
    assert len(record(tmp_path)) == 3 and (tmp_path / "images" / "samples_00000002.png").exists()


def test_without_tensorboardx_nothing_is_missing(start, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    reporter = start(tmp_path)
    reporter.scalars(1, {"loss": 1.0})
    reporter.close()
    assert not caplog.records and not (tmp_path / "tensorboard").exists() and len(record(tmp_path)) == 1


def test_tensorboard_gets_every_value_and_the_restart(start, tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    reporter = start(tmp_path, resume_step=4)
    reporter.scalars(5, {"bits_per_dim": 1.5, "images_per_second": 8.0})
    reporter.samples(5, "samples", np.zeros((1, 2, 2, 1), np.uint8), features.Image((2, 2, 1), 2))
    reporter.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:  # TFRecord framing: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert [event.step for event in events] == [0, 5, 5, 5] and events[1].session_log.status == 1
    values = {value.tag: value.simple_value for value in events[2].summary.value}
    assert values == {"train/bits_per_dim": 1.5, "speed/images_per_second": 8.0}
    assert events[3].summary.value[0].image.encoded_image_string.startswith(b"\x89PNG")


def test_an_object_store_gets_whole_files_at_flush(start, tmp_path, monkeypatch):
    """epath on a local folder stands for gs://: nothing is appended there."""
    from etils import epath

    monkeypatch.setattr(report, "_path", epath.Path)
    reporter = start(tmp_path)
    reporter.scalars(1, {"a": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()
    reporter.flush()
    reporter.scalars(2, {"b": 2.0})
    reporter.curve()
    reporter.flush()
    assert record(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "b": 2.0}] and table(tmp_path) == as_numbers(record(tmp_path))
    resumed = start(tmp_path, resume_step=1)
    resumed.scalars(2, {"a": 3.0})
    resumed.flush()
    assert record(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 3.0}] and table(tmp_path) == as_numbers(record(tmp_path))


# --- pictures ---------------------------------------------------------------------------------------------------------------------


def pixels(path):
    return np.asarray(Image.open(path))


def test_samples_are_written_as_their_kind_is_shown(start, tmp_path):
    images = jnp.ones((4, 72, 72, 1), jnp.uint8)
    start(tmp_path).samples(250, "samples", images, features.Image((72, 72, 1), 2))
    picture = pixels(tmp_path / "images" / "samples_00000250.png")
    assert picture.shape == (156, 156, 3) and picture[40, 40, 0] == 255
    start(tmp_path).samples(1, "strings", np.array([[1, 2, 0]]), features.Tokens(3, 3, ("a", "b")))
    assert (tmp_path / "images" / "strings_00000001.txt").read_text() == "ab\n"


def test_curve_shows_train_and_validation_bits(start, tmp_path):
    rows = [{"step": i, "bits_per_dim": 4 / i, "loss": 1e6} for i in range(1, 101)]
    rows += [{"step": i, "validation_bits_per_dim": 4.1 / i, "validation_standard_error": 1.0} for i in (50, 100)]
    label, series = figures._series(rows)
    assert label == "bits per dimension" and list(series) == ["bits_per_dim", "validation_bits_per_dim"]
    np.testing.assert_allclose(series["validation_bits_per_dim"], [[50, 100], [0.082, 0.041]])
    reporter = start(tmp_path)
    for row in rows:
        reporter.scalars(row["step"], row)
    reporter.curve()
    assert (pixels(tmp_path / "curve.png").std(axis=(0, 1)) > 0).any()
