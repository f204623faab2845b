"""Checkpoints that survive kill -9, a full disk and a flipped bit.

    workdir/config.json                     the configuration, for people (directory.py)
    workdir/lock                            one run per directory (lock.py)
    workdir/checkpoints/200/arrays/         the state as a flat dict {path in the tree: array}, written by orbax (storage.py)
    workdir/checkpoints/200/manifest.json   config, data fingerprint, metrics, versions, dtypes, shapes, sha256 of every file (manifest.py)

A save writes everything into `200.1.tmp`, the manifest last, flushes it and renames the folder. That one rename is the commit: a step that
is listed has its manifest, and what ends in `.tmp` is unfinished and is removed at the next save or start. Deleting renames to `.tmp` and
then removes. Object stores (gs://) have no rename: there a step is written in place, writing the manifest, last, is the
commit, and deleting removes the manifest first.

orbax writes and reads the arrays; its CheckpointManager is not used. The last hook before the manager's own rename is deprecated and the
manager writes two more files after it, so that no manifest of every file fits inside its commit; it refuses to save over the damaged step
that a run fell back from; its retention counts damaged steps. Its save takes as long as this one.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import jax
import numpy as np
from etils import epath

from jaxgen import sharding
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.measures import metrics as metrics_table
from jaxgen.processes.printing import say
from jaxgen.runs import directory, leaves, storage
from jaxgen.runs import manifest as manifests
from jaxgen.runs.lock import NAME as LOCK
from jaxgen.runs.lock import RunLock

CONFIG, STEPS, ARRAYS = "config.json", "checkpoints", "arrays"
NEWEST = 2
NONE_SAVED, ALL_DAMAGED = -1, -2


class FolderGone(CheckpointError):
    """The folder of a run was deleted or moved while it trained."""


class Checkpointer:
    """Saves and restores the state of the one run of a directory. Every process of a run makes one; process 0 writes and holds the lock.

    config is the run's configuration as JSON (`jaxgen.load` builds `config["model"]`), fingerprint says what its data is. A run that has
    checkpoints goes on only with the same config, directory.HARMLESS excepted, and the same fingerprint; restart=True deletes them instead.
    best_metric names the metric whose best step is kept beside the newest two; default: the first
    metric of metrics.METRICS with `chooses` that was measured.
    allow_data_change lets a run go on where the examples of its data have changed, with a warning.
    complete(config) adds to a configuration saved by an older version the fields that it lacks, with their defaults.
    Raises ConfigError (a folder that cannot be written, another live run, changed config or data), CheckpointError (another model).
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: Mapping[str, Any],
        fingerprint: Mapping[str, Any] | None = None,
        best_metric: str | None = None,
        restart: bool = False,
        complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
        allow_data_change: bool = False,
    ):
        self.workdir = directory.for_writing(workdir)
        self._steps, self._local = self.workdir / STEPS, directory.is_local(self.workdir)
        # As they will be read back: tuples become lists.
        self._config, self._fingerprint = (json.loads(json.dumps(dict(facts))) for facts in (config, fingerprint or {}))
        self._best_metrics = (best_metric,) if best_metric else None
        self._ours: set[int] = set()  # steps that this object saved or restored: known to be good
        self._damaged: set[int] = set()  # steps that restore() passed over
        self._complete, self._allow = complete, allow_data_change
        self._attempts = 0
        self._lock: RunLock | None = None
        sharding.on_first_process(lambda: self._start(restart))

    def _start(self, restart: bool) -> None:
        """Takes the lock, compares the old run with this one, clears what it left unfinished."""
        try:
            self._steps.mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(self.workdir, self._local)
        except OSError as error:
            raise ConfigError("workdir", "a folder that can be written", directory.named(error, self.workdir)) from None
        try:
            old = manifests.readable(self._steps, self.steps())
            if old and not restart:  # where no manifest can be read, restore() will refuse
                last = old[max(old)]
                directory.check_model(self.workdir, last, self._config)
                completed = last | {"config": json.loads(json.dumps(self._complete(last["config"])))}
                directory.check_same_run(self.workdir, completed, self._config, self._fingerprint, self._allow)
            self._clear(restart)
            rows = self.workdir / "metrics.jsonl"
            if not self.steps() and not restart and rows.exists() and rows.stat().length:
                say(f"jaxgen: WARNING: {self.workdir} has metrics and no checkpoint; training begins at step 0", sys.stderr)
            directory.write_json(self.workdir / CONFIG, self._config)
        except OSError as error:
            self.close()
            raise ConfigError("workdir", "a folder that can be written", directory.named(error, self.workdir)) from None
        except BaseException:
            self.close()
            raise

    def _clear(self, restart: bool) -> None:
        for path in self._steps.iterdir():
            unfinished = path.name.endswith(".tmp") or (not self._local and not (path / manifests.NAME).exists())
            if unfinished or (restart and directory.is_step(path.name)):
                self._delete(path)

    def steps(self) -> list[int]:
        """The steps on disk, oldest first, damaged ones too."""
        return directory.steps(self._steps)

    def save(self, step: int, state: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Writes `state` as checkpoint `step`; complete when it returns. A step that this run has saved or restored already stays as it is.

        Raises CheckpointError where it cannot be written (disk full): the older steps are untouched and training may go on; FolderGone, see
        `check_folder`.
        """
        self.check_folder()
        if step in self._ours:
            return
        self._attempts += 1
        # A folder of its own for every attempt: after an error, orbax's other threads go on writing into the old one for a while.
        folder = self._steps / (f"{step}.{self._attempts}.tmp" if self._local else str(step))
        try:
            self._write(folder, step, leaves.arrays(state), metrics or {})
        except (OSError, ValueError, RuntimeError) as error:  # orbax reports a full disk as ValueError
            self.check_folder(folder)
            self._discard(folder)
            cause = storage.cause(error)
            raise CheckpointError(f"step {step}", f"a checkpoint in {self._steps}", cause, "the older ones are kept") from error
        self._ours.add(step)
        self._damaged.discard(step)
        self._retain()

    def gone(self) -> bool:
        """Whether this process holds the lock and the run's folder was deleted or moved since the start, or is another run's now."""
        return self._lock is not None and self._lock.lost()

    def check_folder(self, unfinished: epath.Path | None = None) -> None:
        """Raise FolderGone if the run's folder is `gone`; every process must call it.

        unfinished: the folder of a save that has failed. Where nobody has made the run's folder anew, it and its empty parents are deleted.
        """
        if not sharding.first_process_says(self.gone()):
            return
        if unfinished is not None and not (self.workdir / LOCK).exists():
            self._discard(unfinished)
            for path in (self._steps, self.workdir) if _primary() else ():
                with suppress(OSError):  # it holds something, or is not there
                    os.rmdir(path)
        got = f"{self.workdir}, deleted, moved or taken by another run since the start"
        raise FolderGone("workdir", "the folder of this run", got, "the run ends, and nothing more is saved")

    def restore(self, target: Any, from_step: int | None = None) -> tuple[int, Any] | None:
        """(step, state) of the newest intact checkpoint, or None where there is none at all. Writes nothing unless from_step is given.

        from_step: the step to restore, none other; once its state was read, the later steps are deleted, the newest first.

        `target` is a state, or one of `jax.ShapeDtypeStruct`s with shardings: its tree, dtypes and shapes must be the checkpoint's, its
        shardings decide the placement, on any number of devices. Damaged steps are named on stderr and passed over.
        Raises CheckpointError: every step is damaged; another model; the arrays are not those of the target.
        """
        steps = left = self.steps()[::-1] if from_step is None else [from_step]
        state = None
        while state is None:
            step = sharding.first_process_says(_choose(self._steps, left) if _primary() else 0)
            if step == NONE_SAVED and left is steps:
                return None
            if step in (NONE_SAVED, ALL_DAMAGED):
                raise _all_damaged(self._steps, steps)
            manifest = manifests.read(self._steps / str(step))
            directory.check_model(self.workdir, manifest, self._config)
            directory.report_versions(manifest["versions"])
            try:
                state = _read(self._steps / str(step), manifest, target)
            except manifests.Damaged as damage:
                say(f"jaxgen: WARNING: checkpoint {step} is damaged and not used: {damage}", sys.stderr)
                left = [other for other in left if other < step]
        if from_step is not None:
            sharding.on_first_process(lambda: self._forget_after(from_step))
        self._ours, self._damaged = {step}, {other for other in steps if other > step}
        return step, state

    def _forget_after(self, step: int) -> None:
        """Deletes the later steps, the newest first: whatever stops this, the newest that is left is a step of the same run."""
        for later in (other for other in self.steps()[::-1] if other > step):
            try:
                self._delete(self._steps / str(later))
            except OSError as error:
                raise CheckpointError(f"step {later}", "a folder that can be deleted", error.strerror or error) from None

    def close(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _write(self, folder: epath.Path, step: int, arrays: dict[str, Any], metrics: Mapping[str, Any]) -> None:
        sharding.on_first_process(lambda: self._prepare(folder, arrays))
        storage.save(folder / ARRAYS, {name: array for name, array in arrays.items() if array.size})
        sharding.on_first_process(lambda: storage.prove(folder / ARRAYS, arrays))
        sharding.on_first_process(lambda: self._commit(folder, self._facts(step, arrays, metrics)))

    def _prepare(self, folder: epath.Path, arrays: dict[str, Any]) -> None:
        for path in (folder, *(self._steps.glob("*.tmp") if self._local else ())):  # what earlier attempts left
            self._discard(path)
        folder.mkdir(parents=True)
        size = sum(array.nbytes for array in arrays.values())
        # One clear error now instead of one for every array that does not fit.
        if self._local and shutil.disk_usage(folder).free < size:
            raise OSError(f"no space left on the device for {size / 1e6:.1f} MB")

    def _commit(self, folder: epath.Path, facts: dict[str, Any]) -> None:
        manifests.write(folder, facts, durable=self._local)
        if self._local:
            if self.gone():
                raise OSError("the folder of the run is gone")
            final = self._steps / str(facts["step"])
            self._delete(final)  # a damaged step that this run fell back from and has now reached again
            folder.rename(final)
            directory.flush(self._steps)

    def _facts(self, step: int, arrays: dict[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
        numbers = {name: float(value) for name, value in metrics.items()}
        numbers = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        return {
            "step": step,
            "config": self._config,
            "fingerprint": self._fingerprint,
            "metrics": numbers,
            "score": metrics_table.score(numbers, self._best_metrics),
            "versions": directory.versions(),
            "arrays": {name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in arrays.items()},
        }

    def _retain(self) -> None:
        """Keeps the newest two intact steps and the best one."""
        steps = self.steps() if _primary() else []
        intact = manifests.readable(self._steps, [step for step in steps if step not in self._damaged])
        keep = {*sorted(intact)[-NEWEST:], *manifests.ranked(intact)[:1]}
        for step in steps:
            if step not in keep:
                self._discard(self._steps / str(step))

    def _discard(self, path: epath.Path) -> None:
        """Deletes a folder, in three tries. A failure is only printed, and that not for an unfinished step, in which orbax's threads may
        write for a while; the next save or start tries again."""
        for wait in (0.1, 0.5, None) if _primary() else ():
            try:
                return self._delete(path)
            except OSError as error:
                if wait is not None:
                    time.sleep(wait)
                elif not path.name.endswith(".tmp"):
                    say(f"jaxgen: {path} cannot be deleted: {error}", sys.stderr)
        return None

    def _delete(self, path: epath.Path) -> None:
        """Takes a folder out of the list by one rename, then removes it: a listed step is never half deleted."""
        if not path.exists():
            return
        if not self._local:
            (path / manifests.NAME).unlink(missing_ok=True)
        elif directory.is_step(path.name):
            path = path.rename(path.with_name(f"{path.name}.deleted{os.urandom(4).hex()}.tmp"))
        path.unlink() if os.path.islink(path) else path.rmtree()  # of a link only the link goes


def read_model(
    path: str | os.PathLike,
    shapes_of: Callable[[Mapping[str, Any], int], Any],
    step: int | None = None,
    which: Literal["best", "latest"] = "best",
) -> Any:
    """The averaged (EMA) model of one checkpoint of a run; `shapes_of(saved configuration, step)` is the model as shapes and dtypes.

    Only the model's own arrays are read, and only after their hashes, dtypes and shapes were checked. Takes no lock: a run may be going on.
    Raises CheckpointError (nothing there, no such step, damaged), ConfigError (`which`, or what `shapes_of` refuses).
    """
    if which not in ("best", "latest"):
        raise ConfigError("which", "best or latest", repr(which))
    while True:
        folder, steps = _existing(path) if step is None else check_step(path, step)
        candidates = [step] if step is not None else steps[::-1] if which == "latest" else _best_first(folder, steps)
        found = manifests.first_intact(folder, candidates)
        try:
            if found is None:
                raise _all_damaged(folder, candidates)
            manifest = manifests.read(folder / str(found))
            # Shapes only: nothing is allocated before they were compared with the file.
            return _read(folder / str(found), manifest, shapes_of(manifest["config"].get("model", {}), found), ("ema/", "model/"))
        except Exception:
            # A run that trains meanwhile may have deleted a step of the list: then choose among those that are there now.
            if set(candidates) <= set(directory.steps(folder)):
                raise


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The configuration of a run as JSON, from its newest checkpoint; raises CheckpointError where there is none."""
    folder, steps = _existing(path)
    if found := begun_config(path):
        return found
    manifests.first_intact(folder, steps)  # names the damaged files
    raise _all_damaged(folder, steps)


def begun_config(path: str | os.PathLike) -> dict[str, Any]:
    """`read_config` of a run that has checkpoints, {} where none can be read."""
    return manifests.newest(directory.folder(path) / STEPS).get("config", {})


def read_fingerprint(path: str | os.PathLike) -> dict[str, Any]:
    """The data fingerprint in the newest checkpoint of a run, {} where none can be read or it has none."""
    return manifests.newest(directory.folder(path) / STEPS).get("fingerprint", {})


def newest(path: str | os.PathLike) -> int | None:
    """The newest step of a run's checkpoints, damaged ones too; None where there is none."""
    return max(directory.steps(directory.folder(path) / STEPS), default=None)


def list_metrics(path: str | os.PathLike) -> dict[int, dict[str, float | None]]:
    """{step: the metrics it was saved with} of a run's checkpoints; raises CheckpointError where there is none."""
    folder, steps = _existing(path)
    return {step: manifest["metrics"] for step, manifest in manifests.readable(folder, steps).items()}


def _existing(path: str | os.PathLike) -> tuple[epath.Path, list[int]]:
    """The folder of checkpoints of a run and its steps, of which there is at least one."""
    folder = directory.folder(path) / STEPS
    steps = directory.steps(folder)
    if not steps:
        raise CheckpointError("path", "a run directory with checkpoints", os.fspath(path), "available steps: none; train first")
    return folder, steps


def check_step(path: str | os.PathLike, step: int, argument: str = "step") -> tuple[epath.Path, list[int]]:
    """The folder of checkpoints of a run and its steps; CheckpointError unless `step` is one of them."""
    folder, steps = _existing(path)
    if step not in steps:
        raise CheckpointError(argument, f"one of {steps}", step)
    return folder, steps


def _choose(folder: epath.Path, steps: Sequence[int]) -> int:
    """The first intact step, or NONE_SAVED or ALL_DAMAGED: one integer, which process 0 can send to the others."""
    found = manifests.first_intact(folder, steps)
    if found is not None:
        return found
    return ALL_DAMAGED if steps else NONE_SAVED


def _best_first(folder: epath.Path, steps: Sequence[int]) -> list[int]:
    """The steps by score, best first. Steps whose manifest cannot be read come last, so that the error names them if no other is intact."""
    ranked = manifests.ranked(manifests.readable(folder, steps))
    return ranked + [step for step in steps if step not in ranked]


def _all_damaged(folder: epath.Path, steps: Sequence[int]) -> CheckpointError:
    return CheckpointError(
        "checkpoint", "an intact step", f"only damaged ones in {folder}: {', '.join(map(str, steps))}",
        f"the files are named above; available steps: {directory.steps(folder)}; bring them back from a copy, or train anew with --restart",
    )  # fmt: skip


def _read(folder: epath.Path, manifest: dict[str, Any], target: Any, prefixes: tuple[str, ...] = ("",)) -> Any:
    """The target's tree with the saved arrays; each leaf is looked up under the first of the prefixes that has it.

    Raises `Damaged` where the state's own step, if it is read, is not the manifest's.
    """
    saved, wanted = manifest["arrays"], {}
    for name, leaf in leaves.named(target).items():
        wanted[next((prefix + name for prefix in prefixes if prefix + name in saved), prefixes[0] + name)] = leaf
    leaves.check(saved, wanted, complete=prefixes == ("",))
    arrays = storage.restore(folder / ARRAYS, {name: leaves.placed(leaf) for name, leaf in wanted.items() if np.size(leaf)})
    if "step" in arrays and int(arrays["step"]) != manifest["step"]:
        raise manifests.Damaged(ARRAYS, f"the state is of step {int(arrays['step'])}, the manifest says {manifest['step']}")
    return jax.tree.unflatten(jax.tree.structure(target), [leaves.like(leaf, arrays.get(name)) for name, leaf in wanted.items()])


def _primary() -> bool:
    return jax.process_index() == 0
