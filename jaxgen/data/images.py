"""Images in memory, checked and split: `.npz` archives (archives.py), folders of pictures (pictures.py), scikit-learn's digits.

Images that leave this file are integers [N, H, W, C] in {0 .. levels-1}, uint8 up to 256 levels and uint16 above. An archive may hold
points instead: they are float32 [N, d] and are split like images. What is wrong is one line with the file, the index, what was wanted and
what came. Nothing is rounded or clipped.

Splits
  digits                a fixed permutation of the 1797 images: 1293 train, 144 validation, 360 test.
  one file              a fixed permutation: the last 10 % test, the 10 % before them validation, the rest train.
  a folder of pictures  by a hash of each file's name: about 10 % test, 10 % validation, the rest train; one more picture moves no other,
                        except in a folder so small that a split would be empty.
  train / test parts    as given, named train or training, test or testing, validation, valid or val in any case of letters; without a
                        validation part, 10 % of train (at most 10,000) are held out for it, by the same hash or by a fixed permutation.

Class folders are in natural order: "class 2" goes before "class 10".

This is rule 4 of `DataConfig.splits`, that of new runs; a run keeps the rule by which it began. By rules 3 and 2 class folders are in the
order of the alphabet unless all their names are numbers; rule 2 has other splits of sets of tensorflow-datasets (tfds.py). By rule 1, the
oldest, folders of pictures are split as one file is, names of parts are written as train, test, validation, valid or val, class folders
0 .. 10 are in the order of the alphabet, two Unicode forms of a name are two classes, and the last 10 % of train are held out.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, UInt

from jaxgen.data.archives import PACKED, Raw, listed, read_arrays
from jaxgen.data.arrays import ArraySource, NoSplit
from jaxgen.data.decoding import Reading
from jaxgen.data.features import ClassLabel, Feature, Image, Points, Vector, real, smallest_unsigned
from jaxgen.data.kind import Kind
from jaxgen.data.pairs import COLUMN, OF_PICTURES, read_pairs
from jaxgen.data.pictures import read_pictures, say_beside
from jaxgen.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")
PART_NAMES = {"train": ("train", "training"), "validation": ("validation", "valid", "val"), "test": ("test", "testing")}
MAX_CHANNELS = 4  # more is a channel-first array, [N, C, H, W], far more often than a picture
SPLIT_SEED = 1
RULE = 4
"""The rule of splits for new runs; see above."""


def permutation(n: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """A permutation of {0 .. n-1}, a function of (n, seed, epoch).

    The order of n random 64-bit words of PCG64: numpy promises the stream of a bit generator for ever, that of
    `Generator.permutation` not, and an order that changes with a numpy release would break a resumed run.
    """
    words = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(words, kind="stable")


def held_out(n: int) -> int:
    """How many of `n` training images become the validation split where a set has none: 10 %, at least 1, at most 10,000."""
    return min(max(1, n // 10), 10_000)


def check_split(split: str) -> None:
    """Raises ConfigError unless `split` is train, validation or test."""
    if split not in SPLITS:
        raise ConfigError("split", wanted=f"one of {', '.join(SPLITS)}", got=repr(split))


def check_pixels(images: np.ndarray, origin: str, levels: int | None = None) -> UInt[np.ndarray, "N H W C"]:
    """Images in the smallest unsigned type for `levels`, from integers [N, H, W] or [N, H, W, C] in {0 .. levels-1}, else DataError.

    levels: None stands for 256.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not 1 <= images.shape[-1] <= MAX_CHANNELS:
        channel_first = images.ndim == 4 and images.shape[1] <= MAX_CHANNELS
        hint = "move the channels last: image.transpose(0, 2, 3, 1)" if channel_first else ""
        raise DataError(origin, wanted=f"shape [N, H, W] or [N, H, W, C] with C of 1 to {MAX_CHANNELS}", got=list(images.shape), hint=hint)
    if not len(images):
        raise DataError(origin, wanted="at least one image", got="0 (the set is empty)")
    if not images.size:
        raise DataError(origin, wanted="images of at least one pixel", got=f"shape {list(images.shape)}")
    _check_dtype(images, origin, smallest_unsigned(levels or 256))
    check_range(images, origin, levels)
    return np.ascontiguousarray(images, smallest_unsigned(levels or 256))


def _check_dtype(images: np.ndarray, origin: str, dtype: np.dtype) -> None:
    """Integers pass; a float array is refused even if its values are whole, with the index of the first NaN or infinity.

    dtype: the one that errors ask for.
    """
    if images.dtype.kind in "bui":
        return
    hint = f"store whole numbers 0 .. levels-1 as {dtype}; nothing is rounded here"
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        index = _first(~np.isfinite(images))
        raise DataError(f"{origin}[{_text(index)}]", wanted=str(dtype), got=f"{images[index]} ({images.dtype})", hint=hint)
    raise DataError(origin, wanted=f"dtype {dtype}", got=str(images.dtype), hint=hint)


def check_range(images: np.ndarray, origin: str, levels: int | None, rows: Int[np.ndarray, " N"] | None = None) -> None:
    """Raises DataError at the first value outside {0 .. levels-1} (256 where None); `rows` are the places of `images` in the set."""
    top = (levels or 256) - 1
    if images.min() < 0 or images.max() > top:
        index = _first((images < 0) | (images > top))
        place = index if rows is None else (int(rows[index[0]]), *index[1:])
        why = f"{levels} levels" if levels else "8 bits"
        hint = "" if levels or int(images[index]) < 0 else "more levels, up to 65536, are named: levels=, on the command line --data.levels"
        raise DataError(f"{origin}[{_text(place)}]", wanted=f"a value in 0..{top} ({why})", got=int(images[index]), hint=hint)


def check_labels(labels: np.ndarray, n: int, origin: str, num_classes: int | None = None) -> Int32[np.ndarray, " n"]:
    """int32 [n] in {0 .. num_classes-1} (any non-negative where None), else DataError."""
    if labels.shape != (n,):
        one_hot = labels.ndim == 2 and len(labels) == n
        hint = ("label[:, 0] has it" if labels.shape[1] == 1 else "of one-hot rows, label.argmax(1) has it") if one_hot else ""
        raise DataError(origin, wanted=f"shape [{n}], one label for each example", got=list(labels.shape), hint=hint)
    if labels.dtype.kind not in "ui":
        names = labels.dtype.kind in "USO"
        hint = "names, label = numpy.unique(label, return_inverse=True)" if names else "label.astype(int), if these are whole numbers"
        raise DataError(origin, wanted="an integer dtype", got=str(labels.dtype), hint=hint)
    top = 2**31 - 1 if num_classes is None else num_classes
    bad = (labels < 0) | (labels >= top)
    if bad.any():
        index = _first(bad)
        raise DataError(f"{origin}[{_text(index)}]", wanted=f"a class in 0..{top - 1}", got=int(labels[index]))
    return labels.astype(np.int32)


def check_vectors(vectors: np.ndarray, n: int, origin: str, size: int | None = None) -> Float32[np.ndarray, "n D"]:
    """float32 [n, D] of finite floating-point numbers, of that size where it is given, else DataError."""
    if vectors.ndim != 2 or len(vectors) != n or vectors.shape[1] != (size or vectors.shape[1]) or not vectors.size:
        raise DataError(origin, wanted=f"shape [{n}, {size or 'D'}], one vector for each example", got=list(vectors.shape))
    return real(vectors, origin)


def check_points(points: np.ndarray, origin: str, size: int | None = None) -> Float32[np.ndarray, "N d"]:
    """float32 [N, d] of finite floating-point numbers, N and d at least 1, d of that size where it is given, else DataError."""
    if points.ndim != 2 or points.shape[1] != (size or points.shape[1]) or points.shape[1] == 0:
        raise DataError(origin, f"points of shape [N, {size or 'd'}]", list(points.shape))
    if not len(points):
        raise DataError(origin, "at least one point", "0 (the set is empty)")
    return real(points, origin, "real numbers are converted by .astype(numpy.float32); images have shape [N, H, W] or [N, H, W, C]")


def infer_levels(images: UInt[np.ndarray, "N H W C"]) -> int:
    """2 if no value is above 1, else 256. Any other number of levels has to be named."""
    return 2 if images.max() <= 1 else 256


def array_source(
    values: np.ndarray,
    labels: np.ndarray | None,
    origin: str,
    levels: int | None,
    vectors: np.ndarray | None = None,
    names: tuple[str, ...] = (),
    column: str = "image",
) -> ArraySource:
    """The checked set of images or points with what is given beside them; levels and the number of classes are inferred if not given.

    column: "image" or "point", with which `origin` ends; points have no levels. names: of the classes.
    """
    if column == "point":
        checked = check_points(values, origin)
        feature = Points(checked.shape[1])
    else:
        checked = check_pixels(values, origin, levels)
        feature = Image(checked.shape[1:], levels or infer_levels(checked))
    given, features = given_columns(labels, vectors, len(checked), origin.removesuffix(f":{column}"), names)
    return ArraySource({column: checked} | given, {column: feature} | features)


def given_columns(
    labels: np.ndarray | None, vectors: np.ndarray | None, n: int, origin: str, names: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], dict[str, Feature]]:
    """The columns "label" and "vector" of n examples, those that are not None, checked, and their features. names: of the classes."""
    columns, features = {}, {}
    if labels is not None:
        columns["label"] = check_labels(labels, n, f"{origin}:label")
        features["label"] = ClassLabel(len(names) or int(columns["label"].max()) + 1, names)
    if vectors is not None:
        columns["vector"] = check_vectors(vectors, n, f"{origin}:vector")
        features["vector"] = Vector(columns["vector"].shape[1])
    return columns, features


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels as scikit-learn reads them, once in a process: to read its file takes most of the time to load a split."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target


def digits(split: str, levels: int | None) -> ArraySource:
    """scikit-learn's 1797 digits, 8x8x1, 17 levels, 10 classes.

    p = np.random.default_rng(1).permutation(1797); test = p[1437:] (360), validation = p[1293:1437] (144), train = p[:1293].
    """
    images, labels = _digits()
    source = array_source(images.astype(np.uint8), labels, "digits:image", levels or 17)
    order = np.random.default_rng(1).permutation(1797)
    rows = {"train": order[:1293], "validation": order[1293:1437], "test": order[1437:]}
    return source.select(rows[split])


def read_path(path: Path, split: str, levels: int | None, rule: int = RULE, whole: bool = False, **conversion: Any) -> ArraySource:
    """One split of an `.npz` file, of a folder with train/validation/test parts, or of a folder of pictures.

    rule: of splits. whole: train may be empty, as the caller adds validation to it. conversion: the other fields of `Reading`.
    """
    how = Reading(levels, **conversion, order={1: "alphabet", 2: "numbers", 3: "numbers"}.get(rule, "natural"))
    parts = _parts(path, rule) if path.is_dir() else {}
    if not parts:
        raw = _read(path, how)
        source = _source(raw, how)
        hashed = rule > 1 and raw.files
        return source.select(by_name(raw.files, path)[split] if hashed else fraction(len(source), split, path, raw.column))
    if "train" not in parts:
        raise DataError(str(path), wanted="a train part (train.npz or train/)", got=", ".join(part.name for part in parts.values()))
    say_beside(path, parts, rule >= 4)
    return _part(parts, split, how, path, rule, whole)


def _parts(path: Path, rule: int) -> dict[str, Path]:
    """The files or folders train, validation and test in `path`, those that exist, by any name of PART_NAMES.

    From rule 4 on, files that end with .npy are parts where there are no others.
    """
    return parts_of(path, rule, (".npz", "")) or (parts_of(path, rule, (".npy",)) if rule >= 4 else {})


def parts_of(path: Path, rule: int, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """{split: file or folder} of the parts in `path` with one of these endings ("" for a folder); DataError for two of one split."""
    found, entries = {}, sorted(path.iterdir())
    for split, names in PART_NAMES.items():
        if rule == 1:
            known = [name + suffix for name in names if not name.endswith("ing") for suffix in suffixes]
            candidates = [item for item in entries if item.name in known]
        else:
            known = [name + suffix for name in names for suffix in suffixes]
            candidates = [item for item in entries if item.name.lower() in known and (item.is_dir() or item.suffix)]
        candidates.sort(key=lambda item: known.index(item.name.lower()))
        if len(candidates) > 1:
            raise DataError(str(path), wanted=f"one {split} part", got=" and ".join(part.name for part in candidates))
        if candidates:
            found[split] = candidates[0]
    return found


def _part(parts: dict[str, Path], split: str, how: Reading, path: Path, rule: int, whole: bool) -> ArraySource:
    """`split` of a set given in parts; train decides levels, classes and the shape for the others."""
    raw = _read(parts["train"], how)
    train = _source(raw, how)
    if "validation" not in parts and split != "test":
        kept, held = without_held_out(len(train), raw.files, rule)
        chosen = train.select(kept if split == "train" else held)
        return chosen if whole else _not_empty(chosen, split, path, raw.column)
    if split == "train":
        return train
    if split not in parts:
        raise NoSplit(str(path), f"a {split} part ({split}.npz or {split}/)", ", ".join(part.name for part in parts.values()))
    levels = how.levels if how.pairs else getattr(train.features[raw.column], "levels", None)  # inputs have levels of their own
    return _like_train(_read(parts[split], replace(how, levels=levels)), train, raw)


def _like_train(raw: Raw, train: ArraySource, train_raw: Raw) -> ArraySource:
    """The checked set of another part, which must agree with train in columns, shape, levels and classes."""
    column, origin, n = raw.column, raw.origin.removesuffix(f":{raw.column}"), len(raw.values)
    if column != train_raw.column:
        raise DataError(raw.origin, f"{train_raw.column}s, as in {train_raw.origin}", f"{column}s")
    first, label, vector = (train.features.get(name) for name in (column, "label", "vector"))
    if column == "point":
        columns = {column: check_points(raw.values, raw.origin, first.size)}
    else:
        columns = {column: _images_like(raw, first, train_raw)}
    if raw.inputs:
        columns[COLUMN] = _images_like(raw.inputs, train.features[COLUMN], train_raw.inputs)
    for what, here, there in (("label", raw.labels, label), ("vector", raw.vectors, vector)):
        if (here is None) != (there is None):
            wanted, got = (f"no {what}s", f"{what}s") if there is None else (f"{what}s", "none")
            raise DataError(f"{origin}:{what}", wanted=f"{wanted}, as in {train_raw.origin}", got=got)
    if train_raw.classes and raw.classes and set(raw.classes) < set(train_raw.classes):  # no examples of some of the classes
        places = np.array([train_raw.classes.index(name) for name in raw.classes], np.int32)
        raw = replace(raw, classes=train_raw.classes, labels=places[raw.labels])
    if raw.classes != train_raw.classes:
        wanted = f"the class folders of {train_raw.origin}: {listed(train_raw.classes)}"
        raise DataError(f"{origin}:label", wanted=wanted, got=listed(raw.classes))
    if label is not None:
        columns["label"] = check_labels(raw.labels, n, f"{origin}:label", label.classes)
    if vector is not None:
        columns["vector"] = check_vectors(raw.vectors, n, f"{origin}:vector", vector.size)
    return ArraySource(columns, train.features)


def _images_like(raw: Raw, feature: Image, train_raw: Raw) -> np.ndarray:
    """The checked images of another part, of the shape and the levels of train's."""
    images = check_pixels(raw.values, raw.origin, feature.levels)
    if images.shape[1:] != feature.shape:
        wanted = f"images of shape {list(feature.shape)} as in {train_raw.origin}"
        raise DataError(f"{raw.origin}[0]", wanted=wanted, got=list(images.shape[1:]))
    return images


def fraction(n: int, split: str, path: Path, noun: str = "image") -> Int[np.ndarray, " M"]:
    """The rows of `split` of a set that comes in one piece; shuffled first, because such sets are often sorted by class.

    Raises DataError for fewer than 3. noun: for one example.
    """
    order, tenth = permutation(n, SPLIT_SEED, 0), max(1, n // 10)
    rows = {"train": order[: -2 * tenth], "validation": order[-2 * tenth : -tenth], "test": order[-tenth:]}
    if n < 3:
        raise DataError(str(path), wanted=f"at least 3 {noun}s, to split them into train, validation and test", got=n)
    return rows[split]


def by_name(files: Sequence[str], path: Path) -> dict[str, Int[np.ndarray, " M"]]:
    """{split: rows, ascending} of pictures with these names: u < 0.1 is test, u < 0.2 validation, the rest train (`_places`).

    Where no picture has such a u, the one with the smallest u that is left is taken. Raises DataError for fewer than 3 pictures.
    """
    if len(files) < 3:
        raise DataError(str(path), "at least 3 images, to split them into train, validation and test", len(files))
    u = _places(files)
    order, first = np.argsort(u, kind="stable"), min(max(1, int((u < 0.1).sum())), len(files) - 2)
    second = min(max(first + 1, int((u < 0.2).sum())), len(files) - 1)
    return {"test": np.sort(order[:first]), "validation": np.sort(order[first:second]), "train": np.sort(order[second:])}


def without_held_out(n: int, files: Sequence[str], rule: int) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " M"]]:
    """The rows of a train part that are trained on, and those held out for validation, both ascending. files: their names, or ()."""
    if rule == 1:
        order, count = np.arange(n)[::-1], held_out(n)
    elif files:
        u = _places(files)
        order, count = np.argsort(u, kind="stable"), min(max(1, int((u < 0.1).sum())), 10_000)
    else:
        order, count = permutation(n, SPLIT_SEED, 0), held_out(n)
    return np.sort(order[count:]), np.sort(order[:count])


def _places(files: Sequence[str]) -> Float64[np.ndarray, " N"]:
    """For each name a number u in [0, 1) that depends on this name alone: the first 8 bytes of its sha256, over 2**64."""
    digests = (hashlib.sha256(unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")).digest() for name in files)
    return np.array([int.from_bytes(digest[:8]) / 2**64 for digest in digests])


def _source(raw: Raw, how: Reading) -> ArraySource:
    """The checked set of what a file holds. ConfigError where points are to have levels."""
    if raw.column == "point" and how.levels:
        raise ConfigError("data.levels", "nothing, since points have no levels", how.levels)
    source = array_source(raw.values, raw.labels, raw.origin, how.levels or raw.levels, raw.vectors, raw.classes, raw.column)
    if not raw.inputs:
        return source
    given = array_source(raw.inputs.values, None, raw.inputs.origin, how.levels or raw.inputs.levels)
    return source.with_column(COLUMN, given.columns["image"], given.features["image"])


def _not_empty(source: ArraySource, split: str, path: Path, noun: str) -> ArraySource:
    if not len(source):
        raise DataError(str(path), wanted=f"enough {noun}s for a {split} split", got="1 in all", hint="one is held out for validation")
    return source


def _read(path: Path, how: Reading) -> Raw:
    if how.pairs:
        return read_pairs(path, how)
    return read_pictures(path, how) if path.is_dir() else read_arrays(path, how.converts)


def _first(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.unravel_index(int(np.argmax(bad)), bad.shape))


def _text(index: tuple[int, ...]) -> str:
    return ", ".join(map(str, index))


def _load(place: str | Path, split: str, config: Any) -> ArraySource:
    if place == "digits":
        return digits(split, config.levels)
    conversion = {name: getattr(config, name) for name in ("size", "mode", "background", "cache")}
    conversion["pairs"] = config.pairs if config.pairs in OF_PICTURES else None
    return read_path(place, split, config.levels, config.splits, config.validation == 0, **conversion)


KIND = Kind(
    _load,
    names=("digits",),
    files="an .npz file or a folder (one with train.npz and test.npz, or one of pictures), or an .npy file of images or points",
    endings=(".npz", ".npy"),
    reads=lambda path: path.is_dir() or path.suffix.lower() in (".npz", ".npy", *PACKED),  # PACKED: the error says to unpack it
)
