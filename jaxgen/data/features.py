"""Features: what a named column of a data set holds, in the terms of tensorflow-datasets.

    {"image": Image((28, 28, 1), levels=2), "label": ClassLabel(10)}

A feature checks arrays, says in which unit the negative log-probability of an example is told and how many dimensions that unit counts,
how an example is called (`noun`), and shows examples in one way: the bytes of a file with its `ending`.
A model's configuration names the features that it needs (`config.features`) and the one that it models (`config.modelled`); all others are
what it is given. Every check raises one DataError with the place, what was wanted and what came, and returns the array in its one form.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt

from jaxgen.errors import ConfigError, DataError


def smallest_unsigned(levels: int) -> np.dtype:
    """The smallest unsigned integer type that holds 0 .. levels-1."""
    return np.min_scalar_type(levels - 1)


@runtime_checkable
class Feature(Protocol):
    """What a kind of data offers; a kind of your own is a frozen dataclass with these, and nothing in the package names it.

    unit: of the negative log-probability of an example, "nats" or "bits/x". noun: how an example is called. ending: of a file that shows
    examples. discrete: whether its values are integers. said: the feature in words.
    """

    unit: str
    noun: str
    ending: str
    discrete: bool
    dimensions: int
    said: str

    def check(self, array: np.ndarray, origin: str) -> np.ndarray:
        """The column in its one form, or a DataError with the place."""

    def expect(self, have: Any, origin: str) -> None:
        """Raises DataError unless the feature of a set, `have`, fits this one of a model."""

    def counts(self, array: np.ndarray) -> np.ndarray:
        """How many of its unit's dimensions each example counts."""

    def show(self, samples: np.ndarray) -> bytes:
        """A file that shows examples."""

    def random(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """n examples of the right shape, type and range, for timings."""


@dataclass(frozen=True)
class Image:
    """Integers [N, H, W, C] in {0 .. levels-1}, of the smallest unsigned type that holds them.

    of: the column of larger images that these are made from (`box_filter`) where a set does not hold them itself; "" for none.
    """

    shape: tuple[int, int, int]
    levels: int = 256
    of: str = ""
    unit, noun, ending = "bits/dim", "image", ".png"
    discrete = True

    def counts(self, array: np.ndarray) -> np.ndarray:
        """Dimensions of every example."""
        return np.full(len(array), self.dimensions)

    def show(self, samples: np.ndarray, mask: np.ndarray | None = None) -> bytes:
        """A grid of the images as a PNG file; the pixels of the mask, [H, W] or [n, H, W], are outlined as given."""
        from jaxgen.runs import figures

        return figures.png(figures.image_grid(samples, self.levels, mask))

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
        """Raises DataError unless the images of a set, `have`, are such as these, those of a model."""
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
    """Integers [N] in {0 .. classes-1}, int32."""

    classes: int
    unit, noun, ending = "nats", "example", ".txt"
    dimensions = 1
    discrete = True

    def counts(self, array: np.ndarray) -> np.ndarray:
        """One for every example: the unit is nats of a whole example."""
        return np.ones(len(array), int)

    def show(self, samples: np.ndarray) -> bytes:
        """One class a line."""
        return "".join(f"{label}\n" for label in samples).encode()

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
    """Real numbers [N, D], float32, finite: something a model is given."""

    size: int
    unit, noun, ending = "nats", "vector", ".png"
    discrete = False
    counts = ClassLabel.counts

    def show(self, samples: np.ndarray) -> bytes:
        """A scatter of the first two coordinates as a PNG file; of a single one, against its place in the sample."""
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
            raise DataError(origin, f"vectors of size {self.size}", list(array.shape[1:]))
        if array.dtype.kind != "f":
            raise DataError(origin, "a floating-point dtype", str(array.dtype))
        if not np.isfinite(array).all():
            row, column = np.argwhere(~np.isfinite(array))[0]
            raise DataError(f"{origin}[{row}, {column}]", "a finite number", array[row, column])
        return array.astype(np.float32)


@dataclass(frozen=True)
class Points(Vector):
    """Real numbers [N, d], float32, finite: points of R^d that a model has a density of."""

    noun = "point"


@dataclass(frozen=True)
class Tokens:
    """Strings as integers [N, length] in {0 .. vocabulary-1}. 0 is the stop token: it ends a string, and fills what is left of its row.

    symbols: what the tokens 1 .. vocabulary-1 stand for, where they are text. The true length of a string is the number of its tokens
    before the first stop token; a model that gives the stop token a probability too has a distribution over strings of every length.
    """

    length: int
    vocabulary: int
    symbols: tuple[str, ...] = ()
    unit, noun, ending = "bits/character", "string", ".txt"
    discrete = True

    def counts(self, array: np.ndarray) -> np.ndarray:
        """Characters of every string, its stop token counted, which a string that fills its row does not have."""
        return np.minimum(self.lengths(array) + 1, self.length)

    def text(self, row: np.ndarray) -> str:
        """One string: its symbols, or where the tokens stand for none, their numbers with spaces between them."""
        tokens = [int(token) for token in row[: self.lengths(row)]]
        return "".join(self.symbols[token - 1] for token in tokens) if self.symbols else " ".join(map(str, tokens))

    def show(self, samples: np.ndarray) -> bytes:
        """One string a line, UTF-8."""
        return "".join(f"{self.text(row)}\n" for row in samples).encode()

    def random(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """Strings that fill their rows."""
        return generator.integers(1, self.vocabulary, (n, self.length), smallest_unsigned(self.vocabulary))

    def __post_init__(self) -> None:
        if self.symbols and len(self.symbols) != self.vocabulary - 1:
            raise ConfigError("symbols", f"{self.vocabulary - 1}, one for every token but the stop token", len(self.symbols))

    @property
    def dimensions(self) -> int:
        """Of a string as long as can be."""
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
        """True lengths [N]: how many tokens stand before the first stop token."""
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


def integers(array: np.ndarray, levels: int, origin: str, why: str) -> np.ndarray:
    """Integers in {0 .. levels-1}, in the smallest unsigned type; the first value outside is named."""
    if array.dtype.kind not in "bui":
        raise DataError(origin, "an integer dtype", str(array.dtype))
    if ((outside := (array < 0) | (array >= levels)) if array.size else np.zeros(0, bool)).any():
        place = tuple(np.argwhere(outside)[0])
        raise DataError(f"{origin}[{', '.join(map(str, place))}]", f"a value in 0..{levels - 1} ({why})", int(array[place]))
    return np.ascontiguousarray(array, smallest_unsigned(levels))


class OfImages:
    """What configurations of image models have in common: features from image_shape, levels and what they are given."""

    modelled = "image"
    grouped = ()  # fields that are multiples of the channels

    @property
    def features(self) -> dict[str, Feature]:
        """The columns that the model needs: the image, and what it is given."""
        features: dict[str, Feature] = {"image": Image(self.image_shape, self.levels)}
        if getattr(self, "num_classes", 0):
            features["label"] = ClassLabel(self.num_classes)
        if getattr(self, "vector_size", 0):
            features["vector"] = Vector(self.vector_size)
        if getattr(self, "low_resolution", None):
            features["low_resolution"] = Image(self.low_resolution, self.levels, of="image")
        return features

    @staticmethod
    def sizes_from(features: dict[str, Feature]) -> dict[str, object]:
        """The fields that a data set decides."""
        if "image" not in features:
            raise DataError("data", "a set of images, for this model", ", ".join(feature.said for feature in features.values()))
        return {"image_shape": tuple(features["image"].shape), "levels": features["image"].levels}

    @classmethod
    def defaults_for(cls, features: dict[str, Feature]) -> dict[str, object]:
        """Other values of fields whose default does not fit a data set: the next multiple of the channels for those of `grouped`."""
        channels = features["image"].shape[2] if "image" in features else 1
        sizes = {name: getattr(cls, name) for name in cls.grouped}
        return {name: -(-size // channels) * channels for name, size in sizes.items() if size % channels}


class OfImagesOrPoints(OfImages):
    """The same for models of images or of real points: `image_shape` is (H, W, C), or (d,) for points, which have no levels (0)."""

    @property
    def modelled(self) -> str:
        """The column that the model is of."""
        return "point" if len(self.image_shape) == 1 else "image"

    @property
    def features(self) -> dict[str, Feature]:
        """The column that the model needs. Raises ConfigError for sizes that are those of neither kind."""
        if len(self.image_shape) not in (1, 3) or min(self.image_shape) < 1:
            raise ConfigError("image_shape", "(H, W, C), or (d,) for points", self.image_shape)
        return {"point": Points(*self.image_shape)} if self.modelled == "point" else super().features

    @staticmethod
    def sizes_from(features: dict[str, Feature]) -> dict[str, object]:
        """The fields that a data set decides."""
        if "point" in features:
            return {"image_shape": (features["point"].size,), "levels": 0}
        if "image" in features:
            return OfImages.sizes_from(features)
        raise DataError("data", "images or points", ", ".join(feature.said for feature in features.values()))


def modelled(config) -> Feature:
    """The feature that a model of this configuration models."""
    return config.features[config.modelled]


def given_to(config, batch: dict) -> dict:
    """What a model of this configuration is given from a batch: all that it needs beside what it models.

    Small images are made from the large ones where the batch does not hold them. A column that is missing is left out: the model, which is
    then called without it, says what it wants.
    """
    given = {}
    for name, feature in config.features.items():
        if name != config.modelled and name in batch:
            given[name] = batch[name]
        elif name != config.modelled and getattr(feature, "of", ""):
            given[name] = box_filter(batch[feature.of], feature.shape)
    return given


def random_batch(config, n: int) -> dict:
    """A batch of all that a model of this configuration needs, for timings: the columns are drawn at random, always the same."""
    generator = np.random.default_rng(0)
    return {name: feature.random(n, generator) for name, feature in config.features.items()}


def box_filter(image: UInt[Any, "B H W C"], shape: tuple[int, int, int]) -> UInt[Any, "B h w C"]:
    """The image at size `shape` = (h, w, C): the mean of every H/h x W/w box, rounded to the nearest level, halves up.

    Computed in integers, so exact; h and w must divide H and W, which the caller checks.
    """
    batch, height, width, channels = image.shape
    down, across = height // shape[0], width // shape[1]
    boxes = image.astype("int32").reshape(batch, shape[0], down, shape[1], across, channels)
    total, size = boxes.sum((2, 4)), down * across
    return ((2 * total + size) // (2 * size)).astype(image.dtype)
