"""Arrays from `.npz` archives: `image`, and if there are any `label` [N] and `vector` [N, D]. Nothing is unpickled."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.errors import DataError

MAGIC = (b"PK", b"\x93NUMPY")  # an archive, one array


@dataclass(frozen=True)
class Raw:
    """What a file holds before any check; `classes` are the names of class folders, `files` those of pictures, in order."""

    images: np.ndarray
    labels: np.ndarray | None
    origin: str
    classes: tuple[str, ...] = ()
    vectors: np.ndarray | None = None
    files: tuple[str, ...] = ()


def read_npz(path: Path) -> Raw:
    """The arrays of an archive. Arrays of Python objects are refused: reading them would run code from the file."""
    try:
        with path.open("rb") as file:
            if not (start := file.read(6)).startswith(MAGIC):  # numpy would take it for a pickle, and recommend to load it unsafely
                raise DataError(str(path), wanted="a readable file, written by numpy.savez", got=f"one that begins with {start}")
        with path.open("rb") as file, _archive(np.load(file, allow_pickle=False), path) as archive:
            if "image" not in archive:
                raise DataError(str(path), wanted="an array named 'image'", got=listed(archive.files) or "an empty archive")
            arrays = {name: archive[name] for name in ("image", "label", "vector") if name in archive}
    except DataError:
        raise
    except (OSError, EOFError, ValueError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(path, error) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a member that is not an .npy file comes back as its bytes
            raise DataError(f"{path}:{name}", wanted="a numpy array", got=f"{len(array)} bytes of something else")
    return Raw(arrays["image"], arrays.get("label"), f"{path}:image", vectors=arrays.get("vector"))


def _archive(loaded: Any, path: Path) -> np.lib.npyio.NpzFile:
    if isinstance(loaded, np.lib.npyio.NpzFile):
        return loaded
    raise DataError(str(path), wanted="an .npz archive (numpy.savez)", got=f"one array of shape {list(loaded.shape)}")


def damaged(path: Path, error: BaseException) -> DataError:
    """The error for a file that cannot be read."""
    return DataError(str(path), wanted="a readable file", got=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")


def listed(names: tuple[str, ...] | list[str]) -> str:
    """The names in one line, the first eight of them and their number where there are more."""
    return ", ".join(map(str, names)) if len(names) <= 8 else f"{', '.join(map(str, names[:8]))} ... ({len(names)})"
