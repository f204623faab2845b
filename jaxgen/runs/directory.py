"""The directory of a run: its path, its steps, atomic writes of files, and the check that a run that resumes is the same run."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from typing import Any

from etils import epath

import jaxgen
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.processes.printing import say

STORES = {"gs://": "gcsfs", "s3://": "s3fs", "az://": "adlfs"}
"""Object stores, and the package that each needs."""
# Fields that may change when a run resumes; a change of any other field is an error. Learning rates are among them, because a run that has
# diverged can go on with lower ones. The data's name and folder may change, because its fingerprint tells whether the data is the same.
HARMLESS = (
    "workdir", "data.name", "data.data_dir", "data.class_names",
    "train.steps", "train.log_every", "train.eval_every", "train.max_minutes", "train.fsdp",
    "optimizer.learning_rate", "optimizer.players",
    "report.samples", "report.samples_every", "report.completions", "report.rulers", "report.time_samplers",
    "report.metrics",
)  # fmt: skip
# Fields of a stage that may change when the whole resumes: where its weights came from, and what changes no number.
HARMLESS_OF_STAGES = (".start_from", ".train.log_every", ".train.max_minutes", ".train.fsdp")

# Parts of a data fingerprint. At its top level stands the training split, beside facts about the whole.
OTHER_SPLITS = ("validation.", "test.")
EXAMPLES = ("n", "sha256", "version", *(f"{split}{name}" for split in OTHER_SPLITS for name in ("n", "sha256")))
MIXED = "examples that are tested now may have been trained on"


def folder(path: str | os.PathLike) -> epath.Path:
    """The path as an absolute local folder, `~` being the home, or as a folder of an object store ("gs://...").

    Raises ConfigError for a mistyped store ("gs:/bucket"), and where the Python package that reaches the store is not installed.
    """
    text = os.fspath(path)
    for store, package in STORES.items():
        if text.startswith(store) and importlib.util.find_spec(package) is None:
            hint = f"pip install {package}" + (", or jaxgen with its extra tpu" if package == "gcsfs" else "")
            raise ConfigError("workdir", f"the package {package}, to reach {text}", "none installed", hint)
    if not is_local(text):
        return epath.Path(text)
    if text.partition("/")[0].endswith(":"):
        raise ConfigError("workdir", f"a folder, or one that starts with {' or '.join(STORES)}", text)
    return epath.Path(os.path.abspath(os.path.expanduser(text)))


def for_writing(workdir: str | os.PathLike) -> epath.Path:
    """`folder` of a workdir in which a run is going to save.

    Raises ConfigError for names in which saving cannot work: `[...]` and backslash, which the library of the checkpoints takes for
    patterns; bytes that are not UTF-8; the home of an unknown user; a folder in the place of config.json or of the metrics.
    """
    text, path = os.fspath(workdir), folder(workdir)
    if not is_local(text):
        return path
    if re.search(r"\\|\[.*\]", os.fspath(path)):
        raise ConfigError("workdir", "a path without [...] and without backslash", ascii(os.fspath(path)), "choose another name")
    if re.search("[\ud800-\udfff]", os.fspath(path)):
        raise ConfigError("workdir", "a path in UTF-8", ascii(text))
    if text.startswith("~") and os.path.expanduser(text) == text:
        raise ConfigError("workdir", "a home folder that exists", text, f"./{text} is a folder of this name")
    for name in ("config.json", "metrics.jsonl", "metrics.csv"):
        if (path / name).is_dir():
            raise ConfigError("workdir", f"a folder in which {name} is a file", f"the folder {path / name}")
    return path


def named(error: OSError, path: epath.Path) -> str:
    """The file or folder that an error is about, and the reason: `path`, or an entry of it where `path` is a folder."""
    inside = error.filename if path.is_dir() else None
    return f"{inside or path} ({error.strerror or error})"


def is_local(path: str | os.PathLike) -> bool:
    """Whether the path is on a file system, which has locks and atomic renames, not in an object store."""
    return not os.fspath(path).startswith(tuple(STORES))


def is_step(name: str) -> bool:
    """Whether a name is that of a finished checkpoint: a decimal number without leading zeros. An unfinished one has another name."""
    return name.isascii() and name.isdecimal() and name == str(int(name))


def steps(path: epath.Path) -> list[int]:
    """The steps of the finished checkpoints in a folder, ascending, damaged ones too; [] without the folder."""
    return sorted(int(entry.name) for entry in path.iterdir() if is_step(entry.name)) if path.is_dir() else []


def write_json(path: epath.Path, data: Mapping[str, Any]) -> None:
    """`write_bytes` of JSON, durable."""
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode(), durable=True)


def write_bytes(path: Any, data: bytes, durable: bool = False) -> None:
    """Replace a file as a whole: write `NAME.tmp`, then rename it, so that a reader finds the old bytes or all new ones.

    durable: fsync the new bytes before the rename. Missing parent folders are made. In an object store a write replaces the object.
    """
    if not is_local(path):
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.tmp")
    new.write_bytes(data)
    if durable:
        flush(new)
    new.replace(path)


def flush(path: epath.Path) -> None:
    """fsync of one local file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def versions() -> dict[str, str]:
    """{package: version} of jaxgen, Python and the libraries that compute or save; saved with every checkpoint."""
    names = ("jax", "flax", "numpy", "optax", "orbax-checkpoint")
    return {"jaxgen": jaxgen.__version__, "python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def report_versions(saved: Mapping[str, Any]) -> None:
    """One line on stderr if the saved versions are not those of today, since a new version may change a run's numbers."""
    if changes := differences(saved, versions()):
        say(f"jaxgen: versions changed: {', '.join(f'{name} from {change}' for name, change in changes.items())}", sys.stderr)


def check_same_run(
    where: epath.Path,
    old: Mapping[str, Any],
    config: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    allow_data_change: bool = False,
) -> None:
    """Compare config and data fingerprint of a run that resumes with those in the manifest `old` of its checkpoint in `where`.

    Changes of HARMLESS fields, of the data's folder and of the number of processes are printed on stderr. Raises CheckpointError for a
    model of another class, and ConfigError, which lists the fields, for any other change. With allow_data_change, other examples in a
    split are a warning.
    """
    check_model(where, old, config)
    changes = differences(old["config"], config)
    of_stages = [name for name in changes if name.startswith("stages.") and name.endswith(HARMLESS_OF_STAGES)]
    allowed = {name: changes.pop(name) for name in (*HARMLESS, *of_stages) if name in changes}
    # Earlier versions wrote no sizes of features, or fewer, and only the training split; some data have no test split.
    both = _dotted(old["fingerprint"]).keys() & _dotted(fingerprint).keys()
    data = differences(old["fingerprint"], fingerprint)
    data = {name: change for name, change in data.items() if name in both or not name.startswith(("features.", *OTHER_SPLITS))}
    if "sha256" not in data:
        data.pop("name", None)  # the same data in another folder
    data.pop("features.label.names", None)  # data.class_names says it
    if hosts := data.pop("process_count", None):  # the global batches do not depend on it
        allowed["the number of processes"] = hosts
    examples = {name: data.pop(name) for name in EXAMPLES if name in data} if allow_data_change else {}
    changes |= {f"data fingerprint {name}": change for name, change in data.items()}
    if changes:
        got = ", ".join(f"{name} changed from {change}" for name, change in sorted(changes.items()))
        hint = "undo it, choose another workdir, or start over with --restart"
        if changes.keys() <= {f"data fingerprint {name}" for name in EXAMPLES}:
            hint += "; --allow-data-change goes on with the data as they are now"
        raise ConfigError("config", f"as in {where}", got, hint)
    for split in ("train", "validation", "test"):
        names = [name for name in examples if name.startswith(f"{split}.") or (split == "train" and "." not in name)]
        if names:
            said = ", ".join(f"{name} from {examples[name]}" for name in names)
            say(f"jaxgen: WARNING: the {split} split of the data is not the one that {where} began with ({said}); {MIXED}", sys.stderr)
    for name, change in allowed.items():
        say(f"jaxgen: {name} changed from {change}", sys.stderr)


def check_same_split(
    where: str | os.PathLike, fingerprint: Mapping[str, Any], split: str, found: Mapping[str, Any], allow: bool = False
) -> None:
    """Compare a split as it is now, `found` = {"n", "sha256"}, with the data fingerprint of a finished run.

    Nothing is compared where the fingerprint lacks this split. Raises DataError for other examples; with `allow` a line on stderr says so.
    """
    saved = fingerprint if split == "train" else fingerprint.get(split, {})
    if not saved or saved["sha256"] == found["sha256"]:
        return
    n, now = saved["n"], found["n"]
    got = f"{now} examples" if now != n else f"{n} examples that are not the same"
    wanted = f"the {n} examples that this split had when {os.fspath(where)} was trained"
    if allow:
        say(f"jaxgen: WARNING: {split} split: {got}, not {wanted}; {MIXED}", sys.stderr)
        return
    hint = f"{MIXED}; --data PATH names other data, --allow-data-change goes on with these"
    raise DataError(f"{split} split", wanted, got, hint)


def check_model(where: epath.Path, old: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """CheckpointError where the class of the model's configuration changed."""
    was, now = ((tree.get("model") or {}).get("class") for tree in (old["config"], config))
    if was != now:
        hint = f"checkpoint is {was}, config is {now}: choose another workdir, or start over with --restart"
        raise CheckpointError("model", f"a checkpoint of {now} in {where}", was, hint)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """{dotted field: "old to new"} for every field that differs."""
    old, new = _dotted(old), _dotted(new)
    names = (name for name in old | new if old.get(name) != new.get(name))
    return {name: f"{old.get(name, 'nothing')!r} to {new.get(name, 'nothing')!r}" for name in names}


def _dotted(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in data.items():
        fields |= _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return fields
