"""Images of tensorflow-datasets, read from disk as they are needed: `tfds.data_source` over array_record files.

A set that is prepared is read without TensorFlow. Preparing one of the sets that TFDS brings needs it (extra `[tfds]`); a builder
of your own that yields PNG bytes or uint8 tensors does not. A set needs an `image` feature of fixed shape and 8 bits; `label` is optional.

What can be known without reading everything is checked when the set is opened: features, shape, dtype, length, and whether the
first 1000 training images are binary (then levels is 2, else 256). The range is checked again in every batch that is read.

Splits: as TFDS has them; without a validation split, 10 % of train (at most 10,000) are held out for it by a fixed permutation. Runs with
rule 1 or 2 of `DataConfig.splits` hold out the last ones.
"""

import functools
import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxgen.data.arrays import NoSplit
from jaxgen.data.features import ClassLabel, Feature, Image, smallest_unsigned
from jaxgen.data.images import RULE, check_labels, check_range, infer_levels, without_held_out
from jaxgen.data.kind import Kind, UnknownName
from jaxgen.errors import DataError
from jaxgen.processes.printing import quiet

EXTRA = 'pip install ".[tfds]" in a clone of jaxgen'
LEVELS_FROM = 1000  # training images that decide between 2 and 256 levels
HASHED = 16  # examples that are hashed for the fingerprint


@dataclass(frozen=True)
class DiskSource:
    """One split of a prepared set, with random access; `examples` and `undecoded` are TFDS data sources; `undecoded` leaves PNGs
    undecoded, for fast reading of labels."""

    examples: Any
    undecoded: Any
    origin: str
    version: str
    image_shape: tuple[int, int, int]
    levels: int
    num_classes: int
    class_names: tuple[str, ...] = ()
    rows: Int[np.ndarray, " N"] | None = None  # which of the examples this split has; None: all
    on_disk: bool = True
    facts: Mapping[str, object] = field(default_factory=dict)  # of the whole set, such as centres of modes; none here
    inputs: tuple[Image, Callable[[np.ndarray, int], np.ndarray]] | None = None  # of pairs: the feature, and (images, levels) -> inputs

    def __len__(self) -> int:
        return len(self.examples if self.rows is None else self.rows)

    @property
    def features(self) -> dict[str, Feature]:
        """{column: feature}."""
        label = {"label": ClassLabel(self.num_classes, self.class_names)} if self.num_classes else {}
        return {"image": Image(self.image_shape, self.levels)} | label | ({"input": self.inputs[0]} if self.inputs else {})

    @property
    def columns(self) -> dict[str, "Column"]:
        """The columns as array-likes; indexing reads those rows from disk."""
        columns = {"image": self.images, "label": self.labels}
        if self.inputs:
            feature = self.inputs[0]
            dtype = smallest_unsigned(feature.levels)
            columns["input"] = Column(lambda rows: self.read(rows)["input"], (len(self), *feature.shape), dtype)
        return {name: column for name, column in columns.items() if column is not None}

    @property
    def images(self) -> "Column":
        """uint8 [N, H, W, C], decoded when indexed."""
        return Column(lambda rows: self.read(rows)["image"], (len(self), *self.image_shape), np.dtype(np.uint8))

    @property
    def labels(self) -> "Column | None":
        """int32 [N], read when indexed, or None."""
        if not self.num_classes:
            return None
        return Column(self._read_labels, (len(self),), np.dtype(np.int32))

    def read(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The rows `indices`: {"image": uint8 [B, H, W, C]} and, with labels, {"label": int32 [B]}; their range is checked."""
        examples = self._fetch(self.examples, indices)
        images = np.stack([self._shaped(example["image"], int(row)) for example, row in zip(examples, indices, strict=True)])
        check_range(images, f"{self.origin}:image", self.levels, indices)
        batch = {"image": images} | ({"input": self.inputs[1](images, self.levels)} if self.inputs else {})
        return batch | {"label": self._labels(examples)} if self.num_classes else batch

    def _shaped(self, image: Any, row: int) -> np.ndarray:
        """An image of the set's shape; DataError for another number of values."""
        image = np.asarray(image)
        if image.size != np.prod(self.image_shape):
            raise DataError(f"{self.origin}:image[{row}]", f"shape {list(self.image_shape)}", list(image.shape))
        return image.reshape(self.image_shape)

    def joined(self, other: "DiskSource") -> "DiskSource":
        """The examples of this split and then those of another split of the same set."""
        if self.rows is not None and other.rows is not None:
            return replace(self, rows=np.concatenate([self.rows, other.rows]))
        examples, undecoded = (_Both(getattr(self, name), getattr(other, name)) for name in ("examples", "undecoded"))
        return replace(self, examples=examples, undecoded=undecoded)

    def named(self, names: tuple[str, ...]) -> "DiskSource":
        """The same source, its classes named so."""
        return replace(self, num_classes=len(names), class_names=names)

    def sha256(self) -> str:
        """A hash of name, version, length and `HASHED` evenly spaced examples; not of all, which would read the whole set."""
        digest = hashlib.sha256(f"{self.origin} {self.version} {len(self)}".encode())
        rows = np.linspace(0, len(self) - 1, HASHED).astype(np.int64)
        for _, column in sorted(self.read(rows).items()):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()

    def _read_labels(self, rows: np.ndarray) -> np.ndarray:
        return self._labels(self._fetch(self.undecoded, rows))

    def _labels(self, examples: list[dict]) -> np.ndarray:
        labels = np.array([example["label"] for example in examples])
        return check_labels(labels, len(examples), f"{self.origin}:label", self.num_classes)

    def _fetch(self, source: Any, rows: np.ndarray) -> list[dict]:
        """Read rows. Any error of array_record or the decoder (a damaged, truncated or deleted file) becomes a DataError, which names the
        rows that cannot be read; rows count within the split."""
        places = [int(row) for row in (rows if self.rows is None else self.rows[rows])]
        try:
            return source.__getitems__(places)
        except Exception as error:
            bad = [str(row) for row, place in zip(rows, places, strict=True) if not _readable(source, place)] or [f"{rows[0]}.."]
            shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
            hint = "delete the set's folder, and it is prepared again"
            raise DataError(f"{self.origin} rows {shown}", "readable examples", _one_line(error), hint) from error


def _readable(source: Any, place: int) -> bool:
    try:
        source.__getitems__([place])
    except Exception:  # noqa: BLE001 (as in `_fetch`)
        return False
    return True


class _Both:
    """Two data sources of TFDS, one after the other."""

    def __init__(self, first: Any, second: Any):
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitems__(self, rows: list[int]) -> list[dict]:
        n = len(self._first)
        parts = [row for row in rows if row < n], [row - n for row in rows if row >= n]
        found = [iter(source.__getitems__(part) if part else ()) for source, part in zip((self._first, self._second), parts, strict=True)]
        return [next(found[row >= n]) for row in rows]


class Column:
    """One feature of a set on disk as an array-like: `column[3]`, `column[2:5]`, `column[[0, 7]]`, `len`, `np.asarray(column)`."""

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], dtype: np.dtype):
        self._read, self.shape, self.dtype, self.ndim = read, shape, dtype, len(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return self._read(rows[None])[0]
        return self._read(rows) if len(rows) else np.empty((0, *self.shape[1:]), self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        blocks = [self[start : start + 1024] for start in range(0, len(self), 1024)]
        return np.concatenate(blocks).astype(dtype or self.dtype, copy=False)


def open_split(
    name: str, split: str, data_dir: str | None, manual_dir: str | None, levels: int | None, rule: int = RULE
) -> DiskSource:
    """`split` of the TFDS set `name`, prepared first where it is not yet; DataError if that cannot be done, UnknownName if there is none.

    `data_dir` is TFDS's own folder (None: ~/tensorflow_datasets), `manual_dir` holds files fetched by hand; rule: of splits.
    """
    with quiet("absl"):  # TFDS warns there of a folder that it is about to make
        builder = _builder(name, data_dir)
        if not builder.is_prepared():
            _prepare(builder, name, manual_dir)
    make = functools.partial(_open, builder, name, rule, *_features(builder, name))
    train = make("train", levels or 256)
    if levels is None:
        rows = np.arange(min(LEVELS_FROM, len(train)))
        levels = infer_levels(train.read(rows)["image"])
    return make(split, levels)


def _open(
    builder: Any,
    name: str,
    rule: int,
    shape: tuple[int, int, int],
    num_classes: int,
    class_names: tuple[str, ...],
    split: str,
    levels: int,
) -> DiskSource:
    import tensorflow_datasets as tfds

    origin, (wanted, rows) = f"{name}/{split}", _part(builder, name, split, rule)
    try:
        examples = builder.as_data_source(split=wanted)
        undecoded = builder.as_data_source(split=wanted, decoders={"image": tfds.decode.SkipDecoding()})
    except Exception as error:
        raise DataError(origin, wanted="a set prepared as array_record", got=_one_line(error)) from error
    source = DiskSource(examples, undecoded, origin, str(builder.version), shape, levels, num_classes, class_names, rows)
    if not len(source):
        raise DataError(origin, wanted="at least one image", got="0 (the set is empty)")
    return source


def _part(builder: Any, name: str, split: str, rule: int) -> tuple[str, Int[np.ndarray, " N"] | None]:
    """(TFDS's name, rows) of `split`: the split of this name, or some of the rows of train where the set has no validation split."""
    sizes = {key: info.num_examples for key, info in builder.info.splits.items()}
    if "train" not in sizes:
        raise DataError(name, wanted="a train split", got=", ".join(sizes) or "none")
    if split == "test" and "test" not in sizes:
        raise NoSplit(name, wanted="a test split", got=", ".join(sizes))
    if "validation" in sizes or split == "test":
        return split, None
    kept, held = without_held_out(sizes["train"], (), rule if rule > 2 else 1)
    return "train", kept if split == "train" else held


def _builder(name: str, data_dir: str | None) -> Any:
    if re.match(r"\w+:[A-Za-z]", name):  # for NAMESPACE:NAME, TFDS would download that set's code and run it
        raise DataError(name, wanted="a set that TFDS brings itself", got=f"one of the community {name.partition(':')[0]!r}")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(name, wanted="tensorflow-datasets, to read a set by its name", got=_one_line(error), hint=EXTRA) from error
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise UnknownName(tfds.list_builders(with_community_datasets=False)) from error
    except Exception as error:
        hint = "prepare it in another data_dir" if "File format" in str(error) else ""
        raise DataError(name, wanted="a TFDS set as array_record", got=_one_line(error), hint=hint) from error


def _prepare(builder: Any, name: str, manual_dir: str | None) -> None:
    """Writes the set into data_dir. Sets that TFDS brings need TensorFlow after their download, so without it the error comes before."""
    import tensorflow_datasets as tfds

    where = f"{name} (not yet prepared in {builder.data_dir})"
    without = importlib.util.find_spec("tensorflow") is None
    needs = DataError(where, wanted="TensorFlow, to prepare a set that TFDS brings", got="not installed", hint=EXTRA)
    if without and type(builder).__module__.startswith("tensorflow_datasets."):
        raise needs
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except Exception as error:
        if without and "tensorflow" in str(error).lower():
            raise needs from error
        raise DataError(where, wanted="a set that can be prepared", got=_one_line(error)) from error


def _features(builder: Any, name: str) -> tuple[tuple[int, int, int], int, tuple[str, ...]]:
    """((H, W, C), number of classes or 0, their names or ()) from the declared features."""
    features = builder.info.features
    if features is None or "image" not in features:
        raise DataError(name, wanted="a feature named 'image'", got=", ".join(features or {}) or "none")
    image = features["image"]
    shape = tuple(image.shape) + (1,) * (len(image.shape) == 2)
    if len(shape) != 3 or None in shape or np.dtype(image.np_dtype) != np.uint8:
        got = f"{np.dtype(image.np_dtype)} {list(image.shape)}"
        raise DataError(f"{name}:image", wanted="uint8 images of one fixed shape [H, W, C]", got=got)
    num_classes = getattr(features["label"], "num_classes", None) if "label" in features else 0
    if num_classes is None:
        raise DataError(f"{name}:label", wanted="a ClassLabel feature with its number of classes", got=type(features["label"]).__name__)
    names = tuple(features["label"].names) if num_classes else ()
    return shape, num_classes, names if names != tuple(map(str, range(num_classes))) else ()  # without names, TFDS gives numbers


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rpartition('}": ')[2]  # drops the builder's arguments, which TFDS puts in front as a dictionary
    return f"{type(error).__name__}: {text[:200]}"


KIND = Kind(
    lambda name, split, config: open_split(name, split, config.data_dir, config.manual_dir, config.levels, config.splits),
    elsewhere="a TFDS set",
)
