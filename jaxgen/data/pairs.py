"""Pairs of images: a model learns the output, the column "image", given the input, the column "input".

    --data.pairs        where the pairs come from
    folders             a folder with the sub-folders input and output (or A and B), whose pictures have equal names but for the ending
    left_to_right       a folder of pictures of which the left half is the input and the right half the output
    right_to_left       the same, the right half is the input
    grey                the input is made of colour images of any data set: (299 R + 587 G + 114 B) / 1000, rounded
    outline             the same for grey and colour images: 1 where the grey value differs from that of the pixel to the right or below by
                        more than an eighth of the range, else 0
    smaller             the same: every 4 x 4 pixels have their mean value, rounded

Input and output have the same height and width; channels and levels are each their own. Augmentation changes both alike. Splits are made as
for the outputs alone (images.py): a folder may have train, validation and test parts, each with pairs; else the names of the output files
decide. --data.size and --data.mode convert both; of two halves, each.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt

from jaxgen.data.archives import Raw, listed
from jaxgen.data.box_filter import box_filter
from jaxgen.data.decoding import Reading
from jaxgen.data.features import Image
from jaxgen.data.pictures import read_pictures
from jaxgen.errors import DataError

COLUMN = "input"
FOLDERS = (("input", "output"), ("A", "B"))
HALVES = {"left_to_right": ("left", "right"), "right_to_left": ("right", "left")}
OF_PICTURES = ("folders", *HALVES)
"""The values of data.pairs for which a folder of pictures holds both."""
BOX = 4  # side of the boxes of `smaller`
AT_ONCE = 1024  # images of which the inputs are made at once


def read_pairs(path: Path, how: Reading) -> Raw:
    """All pairs of a folder, in the order of the output files: the `Raw` of the outputs, and in its `inputs` that of the inputs.

    Raises DataError, one line with the file, for a picture without a partner, two of a name, and different heights or widths.
    """
    if how.pairs in HALVES:
        inputs, outputs = (read_pictures(path, replace(how, half=half)) for half in HALVES[how.pairs])
        return replace(outputs, inputs=replace(inputs, origin=f"{path}:{COLUMN}"))
    folders = [path / name for name in _folders(path)]
    inputs, outputs = (read_pictures(folder, how) for folder in folders)
    here, there = (_by_name(folder, raw) for folder, raw in zip(folders, (inputs, outputs), strict=True))
    for one, other, folder, partner in ((here, there, *folders), (there, here, *folders[::-1])):
        if alone := [name for name in one if name not in other]:
            file = folder / one[alone[0]][1]
            raise DataError(str(file), f"a picture of the same name in {partner.name}/", "none", f"{len(alone)} have no partner")
    first = [folder / raw.files[0] for folder, raw in zip(folders, (inputs, outputs), strict=True)]
    if inputs.values.shape[1:3] != outputs.values.shape[1:3]:
        sizes = [" x ".join(map(str, raw.values.shape[1:3])) for raw in (inputs, outputs)]
        hint = f"--data.size {min(*inputs.values.shape[1:3], *outputs.values.shape[1:3])} makes them alike"
        raise DataError(str(first[0]), f"{sizes[1]} pixels as {first[1]}", sizes[0], hint)
    rows = [here[name][0] for name in there]
    return replace(outputs, origin=f"{path}:image", inputs=replace(inputs, values=inputs.values[rows], origin=f"{path}:{COLUMN}"))


def _folders(path: Path) -> tuple[str, str]:
    """The names of the two sub-folders; DataError unless both of one row of FOLDERS are there."""
    have = sorted(item.name for item in path.iterdir() if item.is_dir())
    for names in FOLDERS:
        if set(names) <= set(have):
            return names
    wanted = "the sub-folders " + ", or ".join(" and ".join(names) for names in FOLDERS)
    raise DataError(str(path), wanted, listed(have) or "no sub-folders", "--data.pairs says what a folder of pairs looks like")


def _by_name(folder: Path, raw: Raw) -> dict[str, tuple[int, str]]:
    """{name without its ending: (row, name of the file)}; DataError where two files differ in the ending only."""
    found: dict[str, tuple[int, str]] = {}
    for row, file in enumerate(raw.files):
        name = Path(file).with_suffix("").as_posix()
        if name in found:
            raise DataError(str(folder / file), "names that differ in more than their ending", f"{found[name][1]} too")
        found[name] = row, file
    return found


def grey(images: UInt[np.ndarray, "B H W 3"], levels: int) -> UInt[np.ndarray, "B H W 1"]:
    """The weighted mean of the three channels, rounded to the nearest level."""
    total = (images.astype(np.uint32) * np.array([299, 587, 114], np.uint32)).sum(-1, keepdims=True)
    return ((total + 500) // 1000).astype(images.dtype)


def outline(images: UInt[np.ndarray, "B H W C"], levels: int) -> UInt[np.ndarray, "B H W 1"]:
    """1 at the edges, else 0."""
    values = (grey(images, levels) if images.shape[3] == 3 else images).astype(np.int32)
    right, below = (np.abs(np.diff(values, axis=axis, append=np.take(values, [-1], axis))) for axis in (2, 1))
    return (8 * np.maximum(right, below) > levels - 1).astype(np.uint8)


def smaller(images: UInt[np.ndarray, "B H W C"], levels: int) -> UInt[np.ndarray, "B H W C"]:
    """The mean of every box of 4 x 4 pixels, at each of them."""
    height, width, channels = images.shape[1:]
    return box_filter(images, (height // BOX, width // BOX, channels)).repeat(BOX, axis=1).repeat(BOX, axis=2)


FUNCTIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"grey": grey, "outline": outline, "smaller": smaller}
"""The values of data.pairs for which the input is computed of the image: (images, levels) -> inputs."""
PAIRS = (*OF_PICTURES, *FUNCTIONS)


def with_input(source: Any, name: str, origin: str) -> Any:
    """The source with the column "input", computed of its images by FUNCTIONS[name]; of a set on disk when they are read.

    Raises DataError for a set without images, and for images that the function does not take. origin: named in errors.
    """
    image, argument = source.features.get("image"), f"{origin}:image"
    if image is None:
        raise DataError(origin, f"images, of which data.pairs {name} makes inputs", ", ".join(one.said for one in source.features.values()))
    (height, width, channels), function = image.shape, FUNCTIONS[name]
    if name == "grey" and channels != 3 or name == "outline" and channels not in (1, 3):
        wanted = "colour images, C = 3" if name == "grey" else "grey or colour images, C = 1 or 3"
        raise DataError(argument, f"{wanted}, for data.pairs {name}", f"C = {channels}")
    if name == "smaller" and (height % BOX or width % BOX):
        raise DataError(argument, f"sides that are multiples of {BOX}, for data.pairs {name}", f"{height} x {width}")
    shape = (height, width, channels if name == "smaller" else 1)
    feature = Image(shape, 2 if name == "outline" else image.levels)
    if source.on_disk:
        return replace(source, inputs=(feature, function))
    images = source.columns["image"]
    column = np.concatenate([function(images[i : i + AT_ONCE], image.levels) for i in range(0, max(len(images), 1), AT_ONCE)])
    return source.with_column(COLUMN, column, feature)
