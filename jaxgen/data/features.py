"""Features: what a named column of a data set holds, in the terms of tensorflow-datasets.

    {"image": Image((28, 28, 1), levels=2), "label": ClassLabel(10)}

A feature validates arrays, names the unit in which -log p of an example is reported (bits/dim, nats, bits/character), and writes examples
into a file (a PNG picture or text).
A model's configuration has the features that the model needs (`config.features`) and the name of the one that it models
(`config.modelled`); on all others it is conditioned: they are *given*. `check` returns a column in its standard dtype and shape, or raises
a DataError with the place of the first bad value, what was wanted and what came.
"""

from dataclasses import dataclass, fields, is_dataclass
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from jaxgen.data.box_filter import box_filter
from jaxgen.errors import ConfigError, DataError


def smallest_unsigned(levels: int) -> np.dtype:
    """The smallest unsigned integer type that holds 0 .. levels-1."""
    return np.min_scalar_type(levels - 1)


@runtime_checkable
class Feature(Protocol):
    """The attributes and methods of a feature; one of your own is a frozen dataclass with these (docs/your_own_data.md).

    unit: of -log p in reports, "nats" (per example) or "bits/x" (per x; `counts` says how many x an example has). noun: the word for one
    example, such as "image". ending: of the files that `show` makes. discrete: whether values are integers. dimensions: values per example.
    said: the feature in words, for messages.
    """

    unit: str
    noun: str
    ending: str
    discrete: bool
    dimensions: int
    said: str

    def check(self, array: np.ndarray, origin: str) -> np.ndarray:
        """The column in its standard dtype; DataError for a wrong shape, dtype or value. origin: the place named in the error."""

    def expect(self, have: Any, origin: str) -> None:
        """Raises DataError unless the feature of a set, `have`, fits this one of a model."""

    def counts(self, array: np.ndarray) -> np.ndarray:
        """[N], by how many x the -log p of each example is divided in the unit "bits/x"; ones for "nats"."""

    def show(self, samples: np.ndarray) -> bytes:
        """The bytes of a file, with the name's `ending`, that shows these examples."""

    def random(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """n examples of the right shape, type and range, for timings."""


@dataclass(frozen=True)
class Image:
    """Integers [N, H, W, C] in {0 .. levels-1}, of the smallest unsigned type that holds them.

    of: the column of larger images from which these are computed (`box_filter`) if the data set lacks this column; "" for none.
    """

    shape: tuple[int, int, int]
    levels: int = 256
    of: str = ""
    unit, noun, ending = "bits/dim", "image", ".png"
    discrete = True

    def counts(self, array: np.ndarray) -> np.ndarray:
        """D for every image: the unit is bits per dimension."""
        return np.full(len(array), self.dimensions)

    def show(self, samples: np.ndarray, mask: np.ndarray | None = None, names: list[str] | None = None) -> bytes:
        """A grid of the images as a PNG file; the pixels of the mask, [H, W] or [n, H, W], are outlined as given. names: n captions."""
        from jaxgen.runs import figures

        return figures.png(figures.image_grid(samples, self.levels, mask, names=names))

    def random(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """Images whose values are drawn uniformly."""
        return generator.integers(0, self.levels, (n, *self.shape), smallest_unsigned(self.levels))

    @property
    def dimensions(self) -> int:
        """D = H W C."""
        return prod(self.shape)

    @property
    def said(self) -> str:
        """In words, for errors and reports."""
        return f"images {list(self.shape)} of {self.levels} levels" + (f" (or made from the column {self.of})" if self.of else "")

    def expect(self, have: "Image", origin: str) -> None:
        """Raises DataError unless the images of a set, `have`, have the shape and the levels of these images of a model."""
        if tuple(have.shape) != tuple(self.shape):
            raise DataError(origin, f"images of shape {list(self.shape)} as the model", list(have.shape))
        if have.levels != self.levels:
            raise DataError(origin, f"{self.levels} levels as the model", have.levels, f"data.levels={self.levels} if the values fit")

    def check(self, array: np.ndarray, origin: str) -> np.ndarray:
        """The images of a batch or a set."""
        if array.shape[1:] != tuple(self.shape) or array.ndim != 4:
            raise DataError(origin, f"images of shape {list(self.shape)}", list(array.shape[1:]))
        return integers(array, self.levels, origin, f"{self.levels} levels")


@dataclass(frozen=True)
class ClassLabel:
    """Integers [N] in {0 .. classes-1}, int32. names: of the classes, in the order of their labels; () where they have none.

    ConfigError unless there are as many names as classes, all different.
    """

    classes: int
    names: tuple[str, ...] = ()
    unit, noun, ending = "nats", "example", ".txt"
    dimensions = 1
    discrete = True

    def __post_init__(self) -> None:
        if self.names and len(self.names) != self.classes:
            raise ConfigError("names", f"{self.classes}, one for every class", len(self.names))
        if len(set(self.names)) < len(self.names):
            raise ConfigError("names", "a different name for every class", f"{max(self.names, key=self.names.count)!r} twice")

    def counts(self, array: np.ndarray) -> np.ndarray:
        """One for every example: the unit is nats of a whole example."""
        return np.ones(len(array), int)

    def show(self, samples: np.ndarray) -> bytes:
        """One class a line: its name, or its number where classes have no names."""
        return "".join(f"{self.names[label] if self.names else label}\n" for label in samples).encode(errors="backslashreplace")

    def random(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """Labels that are drawn uniformly."""
        return generator.integers(0, self.classes, n, np.int32)

    @property
    def said(self) -> str:
        """In words, for errors and reports."""
        return f"{self.classes} classes"

    def expect(self, have: "ClassLabel", origin: str) -> None:
        """Raises DataError unless a set has as many classes as a model."""
        if have.classes != self.classes:
            raise DataError(origin, f"{self.classes} classes as the model", have.classes)

    def check(self, array: np.ndarray, origin: str) -> np.ndarray:
        """The labels of a batch or a set."""
        if array.ndim != 1:
            raise DataError(origin, "shape [N], one label for each example", list(array.shape))
        return integers(array, self.classes, origin, f"{self.classes} classes").astype(np.int32)


@dataclass(frozen=True)
class Vector:
    """Real numbers [N, D], float32, finite, on which a model is conditioned."""

    size: int
    unit, noun, ending = "nats", "vector", ".png"
    discrete = False
    counts = ClassLabel.counts

    def show(self, samples: np.ndarray) -> bytes:
        """A scatter of the first two coordinates as a PNG file; for D = 1, the coordinate against its row number."""
        from jaxgen.runs import figures

        pairs = samples[:, :2] if samples.shape[1] > 1 else np.column_stack([np.arange(len(samples)), samples])
        return figures.png(figures.point_plot(np.asarray(pairs, float)))

    def random(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """Draws of N(0, I)."""
        return generator.standard_normal((n, self.size), np.float32)

    @property
    def dimensions(self) -> int:
        """D."""
        return self.size

    @property
    def said(self) -> str:
        """In words, for errors and reports."""
        return f"{self.noun}s of size {self.size}"

    def expect(self, have: "Vector", origin: str) -> None:
        """Raises DataError unless those of a set have the size of a model's."""
        if have.size != self.size:
            raise DataError(origin, f"{self.said} as the model", have.size)

    def check(self, array: np.ndarray, origin: str) -> np.ndarray:
        """The vectors of a batch or a set."""
        if array.shape[1:] != (self.size,):
            raise DataError(origin, self.said, list(array.shape[1:]))
        return real(array, origin)


@dataclass(frozen=True)
class Points(Vector):
    """Real numbers [N, d], float32, finite: points of R^d whose density a model estimates."""

    noun = "point"


@dataclass(frozen=True)
class Tokens:
    """Strings as integers [N, length] in {0 .. vocabulary-1}. 0 is the stop token: it ends a string, and the places after it are 0 too. A
    string of `length` tokens has no stop token.

    symbols: the texts of the tokens 1 .. vocabulary-1, if they are text. The true length of a string is the number of tokens before the
    first 0.
    """

    length: int
    vocabulary: int
    symbols: tuple[str, ...] = ()
    unit, noun, ending = "bits/character", "string", ".txt"
    discrete = True

    @property
    def tokenizer(self) -> str:
        """The tokenizer that codes text by these symbols. Where none has several characters, both of tokenizers.py give the same tokens."""
        return "smiles" if any(len(symbol) > 1 for symbol in self.symbols) else "character"

    @property
    def characters(self) -> Int[np.ndarray, " V"]:
        """How many characters each token counts: those of its symbol, 1 without symbols, and 1 for the stop token."""
        return np.array([1, *map(len, self.symbols)] if self.symbols else [1] * self.vocabulary)

    def counts(self, array: np.ndarray) -> np.ndarray:
        """Characters of every string, plus 1 for the stop token if it has one."""
        return np.where(array != 0, self.characters[array], 0).sum(-1) + (self.lengths(array) < self.length)

    def text(self, row: np.ndarray) -> str:
        """One string: its characters; without `symbols`, the token numbers with spaces between them."""
        tokens = [int(token) for token in row[: self.lengths(row)]]
        return "".join(self.symbols[token - 1] for token in tokens) if self.symbols else " ".join(map(str, tokens))

    def show(self, samples: np.ndarray) -> bytes:
        """One string a line, UTF-8."""
        return "".join(f"{self.text(row)}\n" for row in samples).encode()

    def random(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """Strings of the full length: uniform tokens, none of them the stop token."""
        return generator.integers(1, self.vocabulary, (n, self.length), smallest_unsigned(self.vocabulary))

    def __post_init__(self) -> None:
        if self.symbols and len(self.symbols) != self.vocabulary - 1:
            raise ConfigError("symbols", f"{self.vocabulary - 1}, one for every token but the stop token", len(self.symbols))

    @property
    def dimensions(self) -> int:
        """`length`, the places in a row."""
        return self.length

    @property
    def said(self) -> str:
        """In words, for errors and reports."""
        return f"strings of at most {self.length} tokens out of {self.vocabulary}"

    def expect(self, have: "Tokens", origin: str) -> None:
        """Raises DataError unless the strings of a set have the length and the vocabulary of a model's."""
        if (have.length, have.vocabulary) != (self.length, self.vocabulary):
            raise DataError(origin, f"{self.said} as the model", have.said)
        if self.symbols and have.symbols != self.symbols:
            raise DataError(origin, f"the symbols {''.join(self.symbols)!r} as the model", repr("".join(have.symbols)))

    @staticmethod
    def lengths(array):
        """True lengths [N]: the tokens that are not 0. All must be 0 after the first 0, as `check` requires."""
        return (array != 0).sum(-1)

    def check(self, array: np.ndarray, origin: str) -> np.ndarray:
        """The strings of a batch or a set."""
        if array.shape[1:] != (self.length,):
            raise DataError(origin, f"shape [N, {self.length}]", list(array.shape))
        array = integers(array, self.vocabulary, origin, f"{self.vocabulary} tokens, the stop token included")
        stopped = np.maximum.accumulate(array == 0, axis=1)
        if (wrong := stopped & (array != 0)).any():
            row, place = np.argwhere(wrong)[0]
            raise DataError(f"{origin}[{row}, {place}]", "0 after the first 0, which ends the string", int(array[row, place]))
        return array


def real(array: np.ndarray, origin: str, hint: str = "") -> np.ndarray:
    """Rows [N, d] of real numbers as float32; DataError for another dtype (with the hint), NaN, and what is infinite as float32."""
    if array.dtype.kind != "f":
        raise DataError(origin, "a floating-point dtype", str(array.dtype), hint)
    with np.errstate(over="ignore"):  # told below
        converted = array.astype(np.float32)
    if not np.isfinite(converted).all():
        row, column = np.argwhere(~np.isfinite(converted))[0]
        hint = "larger numbers than 3.4e38 are infinite as float32" if np.isfinite(array[row, column]) else ""
        raise DataError(f"{origin}[{row}, {column}]", "a finite number", array[row, column], hint)
    return converted


def integers(array: np.ndarray, levels: int, origin: str, why: str) -> np.ndarray:
    """Integers in {0 .. levels-1}, in the smallest unsigned type; DataError for another dtype and for a value outside."""
    if array.dtype.kind not in "bui":
        raise DataError(origin, "an integer dtype", str(array.dtype))
    if ((outside := (array < 0) | (array >= levels)) if array.size else np.zeros(0, bool)).any():
        place = tuple(np.argwhere(outside)[0])
        raise DataError(f"{origin}[{', '.join(map(str, place))}]", f"a value in 0..{levels - 1} ({why})", int(array[place]))
    return np.ascontiguousarray(array, smallest_unsigned(levels))


class OfImages:
    """Base of the configurations of image models: `features` from the fields image_shape, levels and, where present, num_classes,
    vector_size and low_resolution."""

    modelled = "image"
    grouped = ()  # names of fields that must be multiples of the number of channels

    @property
    def features(self) -> dict[str, Feature]:
        """The columns that the model needs: the image, and those on which it is conditioned."""
        features: dict[str, Feature] = {"image": Image(self.image_shape, self.levels)}
        if getattr(self, "num_classes", 0):
            features["label"] = ClassLabel(self.num_classes)
        if getattr(self, "vector_size", 0):
            features["vector"] = Vector(self.vector_size)
        if getattr(self, "low_resolution", None):
            features["low_resolution"] = Image(self.low_resolution, self.levels, of="image")
        return features

    @classmethod
    def sizes_from(cls, features: dict[str, Feature]) -> dict[str, object]:
        """The fields that a data set decides; num_classes and vector_size if it has labels, vectors, and the model has these fields."""
        if "image" not in features:
            raise DataError("data", "a set of images, for this model", ", ".join(feature.said for feature in features.values()))
        sizes = {"image_shape": tuple(features["image"].shape), "levels": features["image"].levels}
        given = {"num_classes": getattr(features.get("label"), "classes", 0), "vector_size": getattr(features.get("vector"), "size", 0)}
        have = [field.name for field in fields(cls)] if is_dataclass(cls) else []
        return sizes | {name: size for name, size in given.items() if size and name in have}

    @classmethod
    def defaults_for(cls, features: dict[str, Feature]) -> dict[str, object]:
        """{field: value} for fields of `grouped` whose default is no multiple of the set's channels: the next multiple."""
        channels = features["image"].shape[2] if "image" in features else 1
        sizes = {name: getattr(cls, name) for name in cls.grouped}
        return {name: -(-size // channels) * channels for name, size in sizes.items() if size % channels}


class OfImagesOrPoints(OfImages):
    """The same for models of images or of real points: `image_shape` is (H, W, C), or (d,) for points, which have no levels (0)."""

    @property
    def modelled(self) -> str:
        """"point" or "image"."""
        return "point" if len(self.image_shape) == 1 else "image"

    @property
    def features(self) -> dict[str, Feature]:
        """The columns that the model needs. ConfigError where image_shape has neither 1 nor 3 sizes, or one below 1."""
        if len(self.image_shape) not in (1, 3) or min(self.image_shape) < 1:
            raise ConfigError("image_shape", "(H, W, C), or (d,) for points", self.image_shape)
        return {"point": Points(*self.image_shape)} if self.modelled == "point" else super().features

    @classmethod
    def sizes_from(cls, features: dict[str, Feature]) -> dict[str, object]:
        """The fields that a data set decides."""
        if "point" in features:
            return {"image_shape": (features["point"].size,), "levels": 0}
        if "image" in features:
            return super().sizes_from(features)
        raise DataError("data", "images or points", ", ".join(feature.said for feature in features.values()))


def modelled(config) -> Feature:
    """The feature that a model of this configuration models."""
    return config.features[config.modelled]


def given_to(config, batch: dict) -> dict:
    """{name: column} of the batch for all features of this configuration except the modelled one.

    A missing column of small images is computed from the large ones (`Image.of`); DataError where these are missing too. Any other missing
    column is left out; the model's method then raises the error.
    """
    given = {}
    for name, feature in config.features.items():
        if name != config.modelled and name in batch:
            given[name] = batch[name]
        elif name != config.modelled and getattr(feature, "of", ""):
            if feature.of not in batch:
                raise DataError("batch", f"a column {name}, or {feature.of} to compute it from", ", ".join(batch) or "no column")
            given[name] = box_filter(batch[feature.of], feature.shape)
    return given


def random_batch(config, n: int) -> dict:
    """A batch of n random examples with every column that the model needs, for timings; equal in every call (seed 0)."""
    generator = np.random.default_rng(0)
    return {name: feature.random(n, generator) for name, feature in config.features.items()}
