"""The manifest of one checkpoint: what is in it, and the sha256 and size of every file.

orbax restores a checkpoint with a flipped bit without a word, so each step folder carries `manifest.json`, written last and checked before
anything is read. Its first line is the sha256 of the rest of its bytes: damage to the manifest itself is found too. It is JSON data and is
never joined to a path: the files on disk are listed and compared with it, not the other way round. It detects damage, not a forger.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jaxgen.runs.directory import flush

NAME = "manifest.json"
FORMAT = 1
LARGEST = 64 * 2**20  # bytes; a manifest of ten thousand arrays has two million


class Damaged(Exception):
    """One file of a checkpoint that is not what was written."""

    def __init__(self, file: str, reason: str):
        self.file, self.reason = file, reason
        super().__init__(f"{file}: {reason}")


def write(folder: epath.Path, facts: dict[str, Any], durable: bool) -> None:
    """Writes `folder/manifest.json`: `facts` and the digest of every file that is there; `durable` flushes all of them to the disk."""
    body = json.dumps({"format": FORMAT, **facts, "files": _digests(folder)}, indent=1)[2:]
    (folder / NAME).write_text(f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}",\n{body}')
    if durable:
        _flush(folder)


def read(folder: epath.Path) -> dict[str, Any]:
    """The manifest of a step folder; raises `Damaged` where it is missing or not as it was written."""
    try:
        if (folder / NAME).stat().length > LARGEST:
            raise Damaged(NAME, f"larger than {LARGEST} bytes")
        head, _, body = (folder / NAME).read_bytes().partition(b"\n")
    except OSError as error:
        raise Damaged(NAME, f"cannot be read ({error.strerror or error})") from None
    if head != b'{"sha256": "%s",' % hashlib.sha256(body).hexdigest().encode():
        raise Damaged(NAME, "its own sha256 does not match")
    manifest = json.loads(b"{" + body)
    if manifest["format"] != FORMAT:
        raise Damaged(NAME, f"format {manifest['format']}, this version of jaxgen reads format {FORMAT}")
    return manifest


def verify(folder: epath.Path) -> dict[str, Any]:
    """The manifest, after every file that it lists was found as it was written; raises `Damaged` for the first that was not."""
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
    """{step: manifest} without the steps whose manifest is damaged (whoever restores them is told which)."""
    found = {}
    for step in steps:
        try:
            found[step] = read(folder / str(step))
        except Damaged:
            continue
    return found


def ranked(manifests: Mapping[int, dict[str, Any]]) -> list[int]:
    """Scored steps, the lowest score first, then the others, newest first."""
    scores = {step: manifest["score"] for step, manifest in manifests.items()}
    return sorted(scores, key=lambda step: (scores[step] is None, scores[step] or 0.0, -step))


def first_intact(folder: epath.Path, steps: Sequence[int]) -> int | None:
    """The first of the steps whose every file is as it was written; the damaged ones before it are named on stderr."""
    for step in steps:
        try:
            verify(folder / str(step))
            return step
        except Damaged as damage:
            file = folder / str(step) / damage.file
            print(f"jaxgen: WARNING: checkpoint {step} is damaged and not used: {file}: {damage.reason}", file=sys.stderr)
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
    """fsync of every file and folder: after a power cut, a step that has its final name has its bytes too."""
    for root, _, names in folder.walk():
        for path in (*(root / name for name in names), root):
            flush(path)
