"""The manifest of one checkpoint: facts about it, and the sha256 and size in bytes of every file.

orbax restores a checkpoint in which a bit has flipped without an error. So each step folder has a `manifest.json`, written last and
compared with the files before anything is restored. Its first line is the sha256 of the bytes after it, so that damage to the manifest
itself is found too. Names in the manifest are only compared with the names of the files found in the folder, never opened as paths: a
manifest from a stranger cannot make jaxgen read other files. The hashes find accidental damage; whoever changes files on purpose can write
a new manifest.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from jaxgen.errors import shown
from jaxgen.processes.printing import say
from jaxgen.runs import directory
from jaxgen.runs.directory import flush, is_step

NAME = "manifest.json"
FORMAT = 1
FIELDS = {
    "step": int, "config": dict, "fingerprint": dict, "metrics": dict, "score": int | float, "versions": dict,
    "arrays": dict, "files": dict,
}  # fmt: skip
SECTIONS = {"model", "data", "optimizer", "train", "report", "stages"}
"""Parts of a configuration, each an object."""
LARGEST = 64 * 2**20  # bytes; a manifest of ten thousand arrays has about 2 MB


class Damaged(Exception):
    """One file of a checkpoint that is not what was written."""

    def __init__(self, file: str, reason: str):
        self.file, self.reason = file, reason
        super().__init__(f"{file}: {reason}")


def write(folder: epath.Path, facts: dict[str, Any], durable: bool) -> None:
    """Write `folder/manifest.json` with `facts` and size and sha256 of every file in the folder; `durable`: fsync all files and folders."""
    body = json.dumps({"format": FORMAT, **facts, "files": _digests(folder)}, indent=1)[2:]
    (folder / NAME).write_text(f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}",\n{body}')
    if durable:
        _flush(folder)


def read(folder: epath.Path) -> dict[str, Any]:
    """The manifest of a step folder; raises `Damaged` where it is missing, too large, of another format or not as it was written."""
    try:
        if (folder / NAME).stat().length > LARGEST:
            raise Damaged(NAME, f"larger than {LARGEST} bytes")
        head, _, body = (folder / NAME).read_bytes().partition(b"\n")
    except OSError as error:
        raise Damaged(NAME, f"cannot be read ({error.strerror or error})") from None
    if head != b'{"sha256": "%s",' % hashlib.sha256(body).hexdigest().encode():
        raise Damaged(NAME, "its own sha256 does not match")
    try:
        manifest = json.loads(b"{" + body)
    except ValueError:
        raise Damaged(NAME, "not JSON") from None
    if manifest.get("format") != FORMAT:
        raise Damaged(NAME, f"format {manifest.get('format')}, this version of jaxgen reads format {FORMAT}")
    _check_fields(manifest)
    if is_step(folder.name) and manifest["step"] != int(folder.name):
        raise Damaged(NAME, f"it is of step {manifest['step']}: the folder was copied or renamed; delete it, or give it its old name")
    return manifest


def _check_fields(manifest: dict[str, Any]) -> None:
    """`Damaged` where a field is missing or of another kind than `Checkpointer` writes, at any depth that this library reads."""
    for name, kinds in FIELDS.items():
        if not isinstance(manifest.get(name), kinds) and not (name == "score" and manifest.get(name, 0) is None):
            raise Damaged(NAME, f"its field {name!r} is {manifest.get(name, 'missing')!r:.80}")
    _expect("step", manifest["step"], "a number from 0 on", _is_count)
    _expect("score", manifest["score"], "a finite number or null", _is_number)
    for name in SECTIONS & manifest["config"].keys():
        _expect(f"config.{name}", manifest["config"][name], "an object", _is_object)
    data = manifest["config"].get("data", {})
    _expect("config.data.splits", data.get("splits", 0), "a number from 0 on", _is_count)
    _expect("config.data.class_names", data.get("class_names", []), "a list of texts", _is_texts)
    for name, value in manifest["metrics"].items():
        _expect(f"metrics.{name}", value, "a finite number or null", _is_number)
    for name, value in manifest["versions"].items():
        _expect(f"versions.{name}", value, "a text", _is_text)
    _check_splits(manifest["fingerprint"])
    for name, entry in manifest["files"].items():
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise Damaged(NAME, f"its entry of the file {name} is {entry!r:.80}")
        _expect(f"files.{name}.bytes", entry["bytes"], "a number from 0 on", _is_count)
        _expect(f"files.{name}.sha256", entry["sha256"], "a text", _is_text)
    _expect("files", manifest["files"], "one file or more", bool)
    for name, entry in manifest["arrays"].items():
        if not isinstance(entry, dict) or not {"dtype", "shape"} <= entry.keys():
            raise Damaged(NAME, f"its entry of the array {name} is {entry!r:.80}")
        if not (isinstance(entry["dtype"], str) and _is_shape(entry["shape"])):  # of hundreds of arrays none is wrong: asked together
            _expect(f"arrays.{name}.dtype", entry["dtype"], "a text", _is_text)
            _expect(f"arrays.{name}.shape", entry["shape"], "a list of numbers from 0 on", _is_shape)


def _check_splits(fingerprint: dict[str, Any]) -> None:
    """`Damaged` unless every split in a data fingerprint has a number of examples and their sha256, or neither."""
    for place in ("", "validation", "test"):
        split = fingerprint.get(place, {}) if place else fingerprint
        field = f"fingerprint.{place}".rstrip(".")
        _expect(field, split, "an object", _is_object)
        if split.keys() & {"n", "sha256"}:
            _expect(f"{field}.n", split.get("n", "nothing"), "a number from 0 on", _is_count)
            _expect(f"{field}.sha256", split.get("sha256"), "a text", _is_text)


def _expect(field: str, value: Any, wanted: str, holds: Callable[[Any], bool]) -> None:
    """`Damaged`, which says what the field should be and what it is, unless `holds(value)`."""
    if not holds(value):
        raise Damaged(NAME, f"{field}: wanted {wanted}, got {shown(value)}")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def verify(folder: epath.Path) -> dict[str, Any]:
    """Compare every file that the manifest lists with its size and sha256, and return the manifest.

    Raises `Damaged` for the first file that is missing, unreadable or different. Files that the manifest does not list are ignored.
    """
    manifest = read(folder)
    found = _files(folder)
    for name, expected in manifest["files"].items():
        if name not in found:
            raise Damaged(name, "missing")
        try:
            actual = _digest(found[name])
        except OSError as error:
            raise Damaged(name, f"cannot be read ({error.strerror or error})") from None
        if actual["bytes"] != expected["bytes"]:
            raise Damaged(name, f"{actual['bytes']} bytes, {expected['bytes']} were written")
        if actual["sha256"] != expected["sha256"]:
            raise Damaged(name, "sha256 does not match")
    return manifest


def readable(folder: epath.Path, steps: Sequence[int]) -> dict[int, dict[str, Any]]:
    """{step: manifest} of the steps whose manifest can be read. Nothing is printed of the others; `first_intact` names them."""
    found = {}
    for step in steps:
        try:
            found[step] = read(folder / str(step))
        except Damaged:
            continue
    return found


def newest(folder: epath.Path) -> dict[str, Any]:
    """The manifest of the newest step of a folder whose manifest can be read, {} where there is none."""
    found = readable(folder, directory.steps(folder))
    return found[max(found)] if found else {}


def ranked(manifests: Mapping[int, dict[str, Any]]) -> list[int]:
    """All steps: those with a score by rising score, then those without; newest first among equals."""
    scores = {step: manifest["score"] for step, manifest in manifests.items()}
    return sorted(scores, key=lambda step: (scores[step] is None, scores[step] or 0.0, -step))


def first_intact(folder: epath.Path, steps: Sequence[int]) -> int | None:
    """The first of `steps`, in the given order, that `verify` finds undamaged, or None; damaged ones before it are named on stderr.

    A step whose folder is gone was deleted by the run that trains, after the list was made, and is not damaged.
    """
    for step in steps:
        try:
            verify(folder / str(step))
            return step
        except (Damaged, OSError) as damage:
            if not (folder / str(step)).exists():
                continue
            if not isinstance(damage, Damaged):
                raise
            file = folder / str(step) / damage.file
            say(f"jaxgen: WARNING: checkpoint {step} is damaged and not used: {file}: {damage.reason}", sys.stderr)
    return None


def _files(folder: epath.Path) -> dict[str, epath.Path]:
    """{path relative to the folder: file}, without the manifest."""
    paths = (root / name for root, _, names in folder.walk() for name in names)
    files = {str(path.relative_to(folder)): path for path in paths}
    return {name: files[name] for name in sorted(files) if name != NAME}


def _digests(folder: epath.Path) -> dict[str, dict[str, Any]]:
    return {name: _digest(path) for name, path in _files(folder).items()}


def _digest(path: epath.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().length, "sha256": sha256}


def _flush(folder: epath.Path) -> None:
    """fsync of every file and folder. It comes before the rename to the final name, so a step with that name survives a power cut whole."""
    for root, _, names in folder.walk():
        for path in (*(root / name for name in names), root):
            flush(path)
