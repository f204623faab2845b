"""What a run leaves for people: metric files, pictures, TensorBoard and a progress line. None of it can stop a run.

workdir/metrics.jsonl   one JSON object a row, {"step": 10, "bits_per_dim": 2.5, "learning_rate": 0.001, "seconds": 7.5, ...}: the record
workdir/metrics.csv     the same as a table; rewritten from the record when a new column appears
workdir/images/         grids of images, NAME_STEP.png
workdir/curve.png       bits/dim against the step
workdir/tensorboard/    the same in groups (train/, validation/, speed/, images/), if tensorboardX is installed

A failure to write (a full disk) is reported once; the rows are kept in memory and written as soon as writing works again. A resumed run
cuts the rows after its checkpoint, so that no step is missing or twice. Rates use a monotonic clock.
"""

import contextlib
import csv
import io
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from jaxgen.errors import ConfigError, did_you_mean
from jaxgen.measures.metrics import METRICS
from jaxgen.runs import directory, figures
from jaxgen.runs.progress import Clock, Progress

LOG = logging.getLogger("jaxgen")


@dataclass(frozen=True)
class ReportConfig:
    """What is drawn and measured besides training; a resumed run may change every field.

    A metric of samples (frechet_pixels) that is named in `metrics` is measured for a model with a likelihood too: as many samples as the
    split has examples. Samplers can be timed later, too: `jaxgen bench RUN`.
    """

    samples: int = 64  # samples in a grid; 0: no grid
    samples_every: int = 1  # a grid at every so many validations, and at the last
    completions: int = 64  # images in the grid of completions at the end; 0: none
    rulers: bool = True  # whether the test score stands beside those of the uniform and Gaussian models
    time_samplers: bool = False  # whether the cached and the naive sampler are timed at the end, which can take minutes
    metrics: tuple[str, ...] = ()  # metrics to report with the headline; (): all that the model's method gives

    def __post_init__(self):
        for name, least in (("samples", 0), ("samples_every", 1), ("completions", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"report.{name}", f"{least} or more", getattr(self, name))
        for name in self.metrics:
            if name not in METRICS:
                raise ConfigError("report.metrics", f"some of {', '.join(METRICS)}", name, did_you_mean(name, METRICS))


class Reporter:
    """Writes the reports of one run, in a `with` block; one process of a run is its `writer`. Call `flush` before saving a checkpoint.

    resume_step: rows of later steps are cut; 0 starts anew, None keeps every row (to draw the curve of a finished run). gone: whether the
    folder was deleted meanwhile; then nothing is written, and the folder does not come back.
    """

    def __init__(
        self, workdir: str | os.PathLike, resume_step: int | None = 0, writer: bool = True, gone: Callable[[], bool] = lambda: False
    ):
        self.workdir = _path(workdir)
        self._warned: set[str] = set()
        self._clock, self._progress = Clock(), Progress()
        self._writer, self._gone = writer, gone
        self._resume_step = resume_step
        self._tensorboard: Any = None  # opened by the first event; False once given up
        if writer:
            self._guarded("write metrics", self._open)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One row: the step and the numbers (Python, numpy or jax scalars)."""
        row = {"step": int(step)} | {name: _number(value) for name, value in values.items() if name != "step"}
        if self._writer:
            self._guarded("write metrics", self._write_row, row)
            self._guarded("write for TensorBoard", self._tensorboard_scalars, row)

    def times(self, step: int, batch_size: int, noun: str = "image") -> dict[str, float]:
        """What a row of metrics says of time: seconds since its start, and images (or what `noun` says) per second."""
        return self._clock.row(step, batch_size, noun)

    def restart_clock(self, step: int) -> None:
        """Leave the time since the last row, which validation took, out of the rate of the next one."""
        self._clock.restart(step)

    def samples(self, step: int, name: str, samples: Shaped[Any, "n ..."], feature: Any, **more: Any) -> None:
        """Samples as their kind is shown (`feature.show(samples, **more)`), as workdir/images/NAME_STEP.png, or .txt."""
        if self._writer:
            self._guarded("write images", self._write_samples, step, name, np.asarray(samples), feature, more)

    def _write_samples(self, step: int, name: str, samples: Shaped[np.ndarray, "n ..."], feature: Any, more: dict[str, Any]) -> None:
        content = feature.show(samples, **more)
        if feature.ending == ".png":
            self._guarded("write for TensorBoard", self._tensorboard_image, step, name, figures.pixels(content))
        directory.write_bytes(self.workdir / "images" / f"{name}_{step:08d}{feature.ending}", content)

    def progress(self, step: int, steps: int, batch_size: int, metrics: Mapping[str, Any], noun: str = "image") -> None:
        """A line with step, bits/dim, images (or what `noun` says) per second since the last line and the time left, or a bar."""
        if self._writer:
            self._progress.show(step, steps, batch_size, metrics, noun)

    def curve(self) -> None:
        """Draw workdir/curve.png from all rows so far."""
        if self._writer:
            self._guarded("draw the curve", self._draw_curve)

    def _draw_curve(self) -> None:
        directory.write_bytes(self.workdir / "curve.png", figures.curve(_rows(self._record.text()), self.workdir.name))

    def flush(self) -> None:
        """Everything reported so far is on the disk when this returns (fsync)."""
        if self._writer:
            self._guarded("write metrics", self._sync)
            if self._tensorboard:
                self._guarded("write for TensorBoard", self._tensorboard.flush)

    def close(self) -> None:
        """`flush`, and close the files."""
        self._progress.close()
        self.flush()
        if self._tensorboard:
            self._guarded("write for TensorBoard", self._tensorboard.close, anyway=True)
        self._tensorboard = False

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _guarded(self, what: str, action: Any, *args: Any, anyway: bool = False) -> None:
        """Reports must not stop a run: the first failure of a kind is logged, later ones are silent. TensorBoard is given up.

        anyway: in a run whose folder is gone too."""
        if not anyway and self._gone():
            return
        try:
            action(*args)
        except Exception as error:  # noqa: BLE001  (a third-party writer may raise anything)
            if what not in self._warned:
                LOG.warning("cannot %s in %s (%s: %s); the run goes on", what, self.workdir, type(error).__name__, error)
            self._warned.add(what)
            if "TensorBoard" in what:
                failed, self._tensorboard = self._tensorboard, False
                with contextlib.suppress(Exception):  # its failure is reported above
                    failed.close()

    # --- metrics.jsonl and metrics.csv ----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._record, self._table, self._columns = _Log(self.workdir / "metrics.jsonl"), _Log(self.workdir / "metrics.csv"), []
        last = math.inf if self._resume_step is None else self._resume_step or -1
        rows = [row for row in _rows(self._record.text()) if row["step"] <= last]
        self._record.replace("".join(json.dumps(row) + "\n" for row in rows))
        self._clock = Clock(max((row["seconds"] for row in rows if isinstance(row.get("seconds"), int | float)), default=0.0))
        self._rewrite_table(rows)

    def _write_row(self, row: dict[str, Any]) -> None:
        try:
            self._record.append(json.dumps(row) + "\n")
        finally:  # both files queue the row even if the first cannot be written now
            if set(row) <= set(self._columns):
                self._table.append(_csv_line([row.get(name, "") for name in self._columns]))
            else:
                self._rewrite_table(_rows(self._record.text()))

    def _rewrite_table(self, rows: list[dict[str, Any]]) -> None:
        self._columns = list(dict.fromkeys(name for row in [{"step": 0}, *rows] for name in row))
        lines = [_csv_line(self._columns), *(_csv_line([row.get(name, "") for name in self._columns]) for row in rows)]
        self._table.replace("".join(lines))

    def _sync(self) -> None:
        try:
            self._record.sync()
        finally:
            self._table.sync()

    # --- TensorBoard ----------------------------------------------------------------------------------------------------------------

    def _open_tensorboard(self) -> None:
        """tensorboardX's synchronous writer: its usual one hands events to a thread, and blocks for ever once that thread has failed."""
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
        except ImportError:
            self._tensorboard = False
            return
        folder = self.workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._tensorboard = EventsWriter(str(folder / "events"))
        restart = SessionLog(status=SessionLog.START)  # tells TensorBoard to forget the steps after the checkpoint
        self._tensorboard.write_event(Event(wall_time=time.time(), step=(self._resume_step or 0) + 1, session_log=restart))

    def _tensorboard_event(self, step: int, content: Callable[[], Any]) -> None:
        """One event with the summary that `content` makes, the writer being opened before the first."""
        if self._tensorboard is None:
            self._open_tensorboard()
        if self._tensorboard:
            from tensorboardX.proto.event_pb2 import Event

            self._tensorboard.write_event(Event(wall_time=time.time(), step=step, summary=content()))

    def _tensorboard_scalars(self, row: dict[str, Any]) -> None:
        def summary():
            from tensorboardX.proto.summary_pb2 import Summary

            values = [(_tag(name), float(value)) for name, value in row.items() if name != "step"]
            return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values])

        self._tensorboard_event(row["step"], summary)

    def _tensorboard_image(self, step: int, name: str, picture: np.ndarray) -> None:
        def summary():
            from tensorboardX.summary import image

            return image(f"images/{name}", picture, dataformats="HWC")

        self._tensorboard_event(step, summary)


def _tag(name: str) -> str:
    """The name of a metric in TensorBoard, which groups by what stands before the slash: validation/nats, speed/seconds, train/loss."""
    if name.startswith("validation_"):
        return name.replace("_", "/", 1)
    return f"speed/{name}" if name == "seconds" or name.endswith("_per_second") else f"train/{name}"


def check_out(path: str | os.PathLike, ending: str = "") -> Any:
    """The path; ConfigError for an --out that cannot be written, before time is spent on what goes into it. Missing folders can be made.

    Of an object store only the ending is checked.
    """
    path = _path(path)
    if not path.name.lower().endswith(ending):
        raise ConfigError("--out", f"a file that ends with {ending}", path)
    if not isinstance(path, Path):
        return path
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    reasons = {
        "it is a folder": path.is_dir(),
        f"{folder} is not a folder": not folder.is_dir(),
        f"no permission to write in {folder}": not os.access(folder, os.W_OK),
    }
    if wrong := [reason for reason, holds in reasons.items() if holds]:
        raise ConfigError("--out", "a file that can be written", f"{path} ({wrong[0]})")
    return path


class _Log:
    """A text file that only grows, or is replaced as a whole. What could not be written waits in memory for the next try.

    On an object store (`gs://`), where nothing can be appended, the whole text waits for `sync`.
    """

    def __init__(self, path: Any):
        self.path, self._remote = path, not isinstance(path, Path)
        self._pending = ""
        self._good = len(path.read_bytes()) if path.exists() else 0

    def text(self) -> str:
        """The contents, with what still waits; damaged bytes show as such."""
        stored = self.path.read_bytes()[: self._good].decode("utf-8", "replace") if self._good and self.path.exists() else ""
        return stored + self._pending

    def append(self, text: str) -> None:
        self._pending += text
        if not self._remote:
            self._drain()

    def replace(self, text: str) -> None:
        """Replace the file at once: readers see the old text or the new one."""
        self._pending, self._good = text, 0
        if not self._remote:
            self._drain_whole()

    def sync(self) -> None:
        if self._remote:
            if self._pending:
                whole = self.text().encode()
                self.path.write_bytes(whole)
                self._pending, self._good = "", len(whole)
            return
        self._drain()
        if self.path.exists():
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())

    def _drain(self) -> None:
        """Append what waits, after the last byte known to be good: a row torn by a full disk is overwritten."""
        if not self._pending:
            return
        if self._good == 0 or not self.path.exists():
            self._drain_whole()
            return
        data = self._pending.encode()
        with open(self.path, "rb+") as file:
            file.truncate(self._good)
            file.seek(self._good)
            file.write(data)
        self._pending, self._good = "", self._good + len(data)

    def _drain_whole(self) -> None:
        data = self._pending.encode()
        directory.write_bytes(self.path, data)
        self._pending, self._good = "", len(data)


def _path(workdir: str | os.PathLike) -> Any:
    if "://" not in str(workdir):
        return Path(workdir).expanduser()
    from etils import epath

    return epath.Path(workdir)


def _rows(text: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a line that is torn or damaged is not a row."""
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _number(value: Any) -> int | float | str:
    """A JSON number without loss; JSON has no infinity and no NaN, so these become the strings that `float` reads."""
    if isinstance(value, (bool, int, np.integer)):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _csv_line(cells: list[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
