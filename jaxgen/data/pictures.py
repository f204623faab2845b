"""A folder of pictures: which of its files are read and of which class, and the arrays that were made of them before.

Read are the files of `SUFFIXES` in the folder itself, or those in its sub-folders, which are the classes. Files and folders whose names
begin with a dot and __MACOSX are left out; whatever else is not read is counted in one line on stderr. What one file holds: decoding.py.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxgen.data.archives import Raw, listed, say_once
from jaxgen.data.class_names import composed
from jaxgen.data.decoding import AS_IT_IS, BROKEN, SUFFIXES, Picture, Reading, read_picture, size_and_mode
from jaxgen.errors import DataError

NOT_DATA = ("thumbs.db", "desktop.ini", "__macosx")
AT_ONCE = 256  # pictures
CACHED = 2
"""Part of what a cached array is recognised by: a new number where decoding.py gives other values."""


@dataclass(frozen=True)
class _Found:
    """The pictures of a folder in order, their classes (None without class folders), and which other files were seen."""

    paths: list[Path]
    labels: list[int] | None
    classes: tuple[str, ...]
    skipped: str


def read_pictures(path: Path, how: Reading = AS_IT_IS) -> Raw:
    """All pictures of a folder in the order of their names; pictures in sub-folders get the sub-folder's place in their order as label.

    Sub-folders whose names differ only in their Unicode form (`composed`) are one class.
    """
    try:
        found = _find(path, how.order)
        names = tuple(item.relative_to(path).as_posix() for item in found.paths)
        kept = _Cache(path, found.paths, how) if how.cache and how.converts else None
    except OSError as error:
        raise DataError(str(error.filename or path), "a file or folder that can be read", error.strerror or error) from error
    if found.skipped:
        say_once(f"{path}: {found.skipped}")
    images, top = (kept and kept.read()) or (None, 0)
    if images is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about metadata that nobody reads
            images, top = _stack(path, found.paths, how)
        if kept:
            kept.write(images, top)
    labels = None if found.labels is None else np.array(found.labels, np.int32)
    own_levels = top + 1 if top != 255 or how.mode else None
    return Raw(images, labels, f"{path}:image", found.classes, files=names, levels=own_levels)


def say_beside(path: Path, parts: Mapping[str, Path], strict: bool) -> None:
    """Counts in one line on stderr what a folder holds beside its parts train, validation and test, none of which is read.

    strict: DataError for folders of pictures beside a part without both train and test: those may be classes, one of them called `train`.
    """
    beside = [item for item in sorted(path.iterdir()) if item not in parts.values() and not _hidden(item.name)]
    folders = {f"{item.name}/": n for item in beside if item.is_dir() and (n := len(_pictures(item)))}
    names = ", ".join(part.name + "/" * part.is_dir() for part in parts.values())
    alike = all(part.is_dir() and _pictures(part) for part in parts.values())
    if strict and folders and alike and not {"train", "test"} <= parts.keys():
        got = f"{listed(list(folders))} with pictures beside {names}"
        hint = f"if all are classes, rename {names}; if not, move the others out of this folder"
        raise DataError(str(path), "either class folders or parts (train, validation, test)", got, hint)
    deep = sum(len(_others(item, set())) for item in beside if item.is_dir()) - sum(folders.values())
    files = [item for item in beside if not item.is_dir()]
    loose = sum(item.suffix.lower() in SUFFIXES for item in files)
    said = [f"{sum(folders.values())} pictures in {listed(list(folders))}"] * bool(folders)
    said += [f"{loose} pictures"] * bool(loose) + [f"{deep} other files in folders"] * bool(deep)
    said += [item.name for item in files if item.suffix.lower() not in SUFFIXES]
    if said:
        say_once(f"{path}: skipped beside {names}: {listed(said)}")


def _find(path: Path, order: str) -> _Found:
    """The pictures of a folder; DataError where there are none or where it is not clear which are meant."""
    folders = _class_folders(path, order)
    files = [(name, None) for name in _pictures(path)]
    classed = [(name, place) for place, parts in enumerate(folders.values()) for folder in parts for name in _pictures(folder)]
    if files and classed:
        got = f"{len(files)} beside and {len(classed)} inside"
        raise DataError(str(path), wanted="pictures either all beside or all inside class folders", got=got)
    others = _others(path, {name for name, _ in files or classed})
    if not files and not classed:
        deep = [name for name in others if name.suffix.lower() in SUFFIXES]
        if deep:
            got = f"{len(deep)} in deeper folders, such as {deep[0].relative_to(path)}"
            raise DataError(str(path), "pictures in the folder or in class folders", got, hint="move them up")
        wanted = f"train.npz or pictures ({' '.join(SUFFIXES)})"
        raise DataError(str(path), wanted, "none (the set is empty)", hint=_counted(path, others, 0))
    for place, (folder, *_) in enumerate(folders.values()):
        deep = sum(name.is_relative_to(folder) and name.suffix.lower() in SUFFIXES for name in others)
        if deep and classed and not any(label == place for _, label in classed):
            raise DataError(str(folder), "pictures of this class", f"none but {deep} in folders inside it", hint="move them up")
    classes = tuple(folders) if classed else ()
    labels = [label for _, label in classed] if classed else None
    return _Found([name for name, _ in files or classed], labels, classes, _counted(path, others, len(files or classed)))


def _class_folders(path: Path, order: str) -> dict[str, list[Path]]:
    """{name of a class: its folders} in the order of the labels. order: see `Reading`."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(item for item in path.iterdir() if item.is_dir() and not _hidden(item.name)):
        found.setdefault(folder.name if order == "alphabet" else composed(folder.name), []).append(folder)
    numbers = all(name.isascii() and name.isdecimal() for name in found)
    by_numbers = order == "natural" or order == "numbers" and numbers
    return {name: found[name] for name in sorted(found, key=_natural if by_numbers else None)}


def _natural(name: str) -> tuple[list[str | int], str]:
    """A key to sort by in which the digits within a name count as numbers: "class 2" goes before "class 10", and "10" before "a"."""
    parts = re.split("([0-9]+)", name)  # text and digits in turn, text first
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _pictures(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if item.suffix.lower() in SUFFIXES and not _hidden(item.name))


def _hidden(name: str) -> bool:
    """Whether a file or folder is one that systems leave behind."""
    return name.startswith(".") or name.lower() in NOT_DATA


def _others(path: Path, read: set[Path]) -> list[Path]:
    """The files below a folder that are not read, however deep, without hidden ones."""
    known = {str(name) for name in read}
    found: list[Path] = []
    for where, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        left = (name for name in names if os.path.join(where, name) not in known)
        found += [Path(where, name) for name in sorted(left) if not _hidden(name)]
    return found


def _refuse(error: OSError) -> None:
    raise error


def _counted(path: Path, others: list[Path], read: int) -> str:
    """`24 files, 12 skipped: 12 x .txt`, with the folders of those that are pictures; "" for none."""
    deep = Counter(name.parent for name in others if name.suffix.lower() in SUFFIXES)
    kinds = Counter(name.suffix.lower() or "without a suffix" for name in others if name.suffix.lower() not in SUFFIXES)
    parts = [f"{n} x {kind}" for kind, n in kinds.most_common()]
    if deep:
        parts.insert(0, f"{sum(deep.values())} x pictures in deeper folders ({listed([str(where.relative_to(path)) for where in deep])})")
    return f"{read + len(others)} files, {len(others)} skipped: {listed(parts)}" if others else ""


def _stack(path: Path, paths: list[Path], how: Reading) -> tuple[np.ndarray, int]:
    """[N, H, W, C] of picture files that all have the shape and the number of levels of the first, and their largest possible value."""
    enlarged = 0
    try:
        first = read_picture(paths[0], how)
        images = np.empty((len(paths), *first.pixels.shape), first.pixels.dtype)
        for index, picture in enumerate(_read_all(paths, how)):
            _like(picture, first, f"{paths[index]} (picture {index})", paths[0].name, how.levels)
            images[index] = picture.pixels
            enlarged += picture.enlarged
    except DataError as error:
        if not how.converts and "--data." in error.hint and (hint := _both_options(paths)):
            raise DataError(error.argument, error.wanted, error.got, hint) from error
        raise
    if enlarged:
        say_once(f"{path}: {enlarged} of {len(paths)} pictures are smaller than --data.size and were enlarged")
    return images, first.top


def _both_options(paths: list[Path]) -> str:
    """The hint for pictures of several sizes and several modes; "" where either is the same in the headers of the first thousand."""
    kinds = [kind for path in paths[:1000] if (kind := size_and_mode(path))]
    if len({size for size, _ in kinds}) < 2 or len({mode for _, mode in kinds}) < 2:
        return ""
    side = min(kinds[0][0])
    return f"--data.mode RGB or L and --data.size {side}, both, make pictures of several modes and sizes alike"


def _like(picture: Picture, first: Picture, origin: str, name: str, levels: int | None) -> None:
    """Raises DataError unless two pictures can stand in one array."""
    shape, wanted = list(picture.pixels.shape), list(first.pixels.shape)
    if shape != wanted or picture.pixels.dtype != first.pixels.dtype:
        options = ["--data.mode RGB or L"] if shape[2] != wanted[2] or picture.pixels.dtype != first.pixels.dtype else []
        options += [f"--data.size {min(wanted[:2])}"] if shape[:2] != wanted[:2] else []
        got = f"{shape} {picture.pixels.dtype}"
        raise DataError(origin, f"shape {wanted} {first.pixels.dtype} as {name}", got, f"{' and '.join(options)} makes them alike")
    if picture.top != first.top and levels is None:
        hint = "--data.mode L or RGB scales all to 0..255"
        raise DataError(origin, f"{first.top + 1} levels as {name}", f"{picture.top + 1} levels", hint)


def _read_all(paths: list[Path], how: Reading) -> Iterator[Picture]:
    """The pictures in order; large ones, which are converted, by several threads, a few at a time."""
    if not how.converts:
        yield from (read_picture(path, how) for path in paths)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), AT_ONCE):
            yield from pool.map(lambda path: read_picture(path, how), paths[start : start + AT_ONCE])


class _Cache:
    """The converted pictures of a folder in a file, as long as the names, sizes and times of the files and the conversion are the same."""

    def __init__(self, path: Path, paths: list[Path], how: Reading):
        import PIL

        stats = [(str(item.relative_to(path)), (stat := item.stat()).st_size, stat.st_mtime_ns) for item in paths]
        about = json.dumps([CACHED, PIL.__version__, how.levels, how.size, how.mode, how.background, stats, *filter(None, [how.half])])
        self._key = hashlib.sha256(about.encode("utf-8", "surrogateescape")).hexdigest()
        self._file = how.cache / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}{how.half}.npz"

    def read(self) -> tuple[np.ndarray, int] | None:
        """The images and their largest possible value, None where they are not there, of other files or damaged."""
        try:
            with self._file.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return (archive["image"], int(archive["top"])) if str(archive["key"]) == self._key else None
        except (*BROKEN, zipfile.BadZipFile, zlib.error):  # it is made again
            return None

    def write(self, images: np.ndarray, top: int) -> None:
        """In one step, so that a killed run leaves nothing half written; a folder that cannot be written keeps nothing."""
        part = self._file.with_suffix(f".{secrets.token_hex(4)}")  # every process writes its own
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:
                np.savez(file, image=images, top=np.array(top), key=np.array(self._key))
            part.replace(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            say_once(f"{self._file}: the converted pictures are not kept ({error.strerror})")
