"""Pictures from files: which files of a folder are pictures and of which class, and what one of them holds."""

from pathlib import Path

import numpy as np

from jaxgen.data.archives import Raw, damaged
from jaxgen.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def read_pictures(path: Path) -> Raw:
    """All pictures of a folder in the order of their names; pictures in sub-folders get the sub-folder's place in the alphabet as label."""
    folders = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    files = [(name, None) for name in _pictures(path)]
    classed = [(name, place) for place, folder in enumerate(folders) for name in _pictures(folder)]
    if files and classed:
        got = f"{len(files)} beside and {len(classed)} inside"
        raise DataError(str(path), wanted="pictures either all beside or all inside class folders", got=got)
    if not files and not classed:
        raise DataError(str(path), wanted=f"train.npz or pictures ({' '.join(PICTURES)})", got="none (the set is empty)")
    for place, folder in enumerate(folders):
        if classed and not any(label == place for _, label in classed):
            raise DataError(str(folder), wanted="at least one picture of this class", got="none")
    names = [name for name, _ in files or classed]
    labels = np.array([label for _, label in classed], np.int32) if classed else None
    classes = tuple(folder.name for folder in folders) if classed else ()
    return Raw(_stack(names), labels, f"{path}:image", classes, files=tuple(name.relative_to(path).as_posix() for name in names))


def _pictures(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if item.suffix.lower() in PICTURES and not item.name.startswith("."))


def _stack(paths: list[Path]) -> np.ndarray:
    """[N, H, W, C] of picture files that all have the shape of the first."""
    first = _read_picture(paths[0])
    images = np.empty((len(paths), *first.shape), first.dtype)
    for index, path in enumerate(paths):
        picture = _read_picture(path)
        if picture.shape != first.shape or picture.dtype != first.dtype:
            wanted = f"shape {list(first.shape)} {first.dtype} as {paths[0].name}"
            raise DataError(f"{path} (picture {index})", wanted=wanted, got=f"{list(picture.shape)} {picture.dtype}")
        images[index] = picture
    return images


def _read_picture(path: Path) -> np.ndarray:
    """One picture as it is stored: bits 0/1, grey or RGB (a palette is looked up); never scaled, and no alpha dropped."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode == "P" and "transparency" not in picture.info:
                picture = picture.convert("RGB")
            mode, pixels = picture.mode, np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise damaged(path, error) from error
    if mode not in ("1", "L", "RGB"):
        raise DataError(str(path), wanted="a grey or RGB picture of 8 bits", got=f"mode {mode}", hint="convert it first")
    return pixels[..., None] if pixels.ndim == 2 else pixels
