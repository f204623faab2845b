"""Arrays from files: `.npz` with `image`, or else `point` [N, d], and if there are any `label` [N] and `vector` [N, D]; or `.npy` with the
images or, if it is [N, d], the points alone.

Nothing is unpickled.
"""

import functools
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.errors import ConfigError, DataError, did_you_mean, one_line
from jaxgen.processes.printing import say

MAGIC = (b"PK", b"\x93NUMPY")  # an archive, one array
FIRST = ("image", "point")
"""What a file may be about; images where it has both."""
PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
UNPACK = {".zip": "unzip", ".7z": "7z x", ".rar": "unrar x"}


@dataclass(frozen=True)
class Raw:
    """What a file holds before any check.

    values: the first column, images or points. origin: FILE:COLUMN, for errors. classes, files: the names of class folders, and of pictures
    in order. levels: V where the files say it, as grey of 4 bits says 16. column: the name of the first column. inputs: those of pairs.
    """

    values: np.ndarray
    labels: np.ndarray | None
    origin: str
    classes: tuple[str, ...] = ()
    vectors: np.ndarray | None = None
    files: tuple[str, ...] = ()
    levels: int | None = None
    column: str = "image"
    inputs: "Raw | None" = None


def read_arrays(path: Path, converts: bool = False) -> Raw:
    """The arrays of an `.npz` or `.npy` file; converts: whether a conversion of pictures was asked for, which arrays do not have."""
    suffix = path.suffix.lower()
    if suffix in PACKED:
        hint = f"unpack it into a folder and give --data.name its path: {UNPACK.get(suffix, 'tar xf')} {path.name}"
        raise DataError(str(path), "an .npz file, an .npy file or a folder of pictures", f"a packed folder ({suffix})", hint)
    if suffix not in (".npz", ".npy"):
        raise DataError(str(path), "an .npz file or a folder", f"a file that ends with {path.suffix or 'nothing'}")
    if converts:
        raise ConfigError("data.size, data.mode", "a folder of pictures, which they convert", f"arrays, {path}", "leave them out")
    try:
        with path.open("rb") as file:
            if not (start := file.read(6)).startswith(MAGIC):  # numpy would take it for a pickle, and recommend to load it unsafely
                raise DataError(str(path), wanted="a readable file, written by numpy.savez", got=f"one that begins with {start}")
        with path.open("rb") as file:
            arrays = _named(np.load(file, allow_pickle=False), path, suffix)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(path, error) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a member that is not an .npy file comes back as its bytes
            raise DataError(f"{path}:{name}", wanted="a numpy array", got=f"{len(array)} bytes of something else")
    first = next(iter(arrays))
    return Raw(arrays[first], arrays.get("label"), f"{path}:{first}", vectors=arrays.get("vector"), column=first)


def _named(loaded: Any, path: Path, suffix: str) -> dict[str, Any]:
    """The arrays that are used, by name, the images or points first; those that are not are named on stderr.

    Arrays of Python objects are refused: see `np.load`.
    """
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        if suffix == ".npy":
            return {"point" if loaded.ndim == 2 else "image": loaded}
        raise DataError(str(path), wanted="an .npz archive (numpy.savez)", got=f"one array of shape {list(loaded.shape)}")
    with loaded as archive:
        first = next((name for name in FIRST if name in archive), "")
        if not first:
            near = [(name, column) for name in archive.files for column in FIRST if did_you_mean(name.lower(), [column])]
            hint = "rename {} to {}".format(*near[0]) if near else "numpy.savez(file, image=images, label=labels) writes it"
            wanted = "an array named 'image' or 'point'"
            raise DataError(str(path), wanted, listed(archive.files) or "an empty archive", hint)
        columns = (first, "label", "vector")
        used = [name for name in columns if name in archive]
        if unused := [name for name in archive.files if name not in used]:
            missing = [name for name in columns if name not in archive]
            hints = {name: did_you_mean(name.lower(), missing) for name in unused}
            said = [name + (f" ({hints[name]})" if hints[name] else "") for name in unused]
            say_once(f"{path}: used: {', '.join(used)}; not used: {listed(said)}")
        return {name: archive[name] for name in used}


@functools.cache
def say_once(text: str) -> None:
    """One line on stderr, once for each text: a set is read again for every split."""
    say(f"jaxgen: {one_line(text)}", sys.stderr)


def damaged(path: Path, error: BaseException) -> DataError:
    """The error for a file that cannot be read."""
    return DataError(str(path), wanted="a readable file", got=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")


def listed(names: tuple[str, ...] | list[str]) -> str:
    """The names in one line, the first eight of them and their number where there are more."""
    return ", ".join(map(str, names)) if len(names) <= 8 else f"{', '.join(map(str, names[:8]))} ... ({len(names)})"
