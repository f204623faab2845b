"""A data set as batches: `Dataset`, one split, whose order is a function of the seed.

    train = load("digits", "train")
    batch = train.batch(step, 64, seed)      # {"image": uint8 [B, H, W, C], "label": int32 [B]}: a function of (seed, step, process)

Images of more than 256 levels are uint16.

With n examples and a global batch of B rows, step s takes the places s B .. (s + 1) B - 1 of the endless sequence

    pi_0(0) .. pi_0(n-1), pi_1(0) .. pi_1(n-1), ...        pi_e a permutation of 0 .. n-1 drawn from (seed, epoch e)

Every epoch has every example exactly once, a batch may contain examples of two epochs, nothing is dropped, and a run that resumes at step
s needs no saved iterator. With P processes, process p gets rows p B / P .. (p + 1) B / P - 1 of the same global batch.

The permutations are made with numpy (`images.permutation`). grain's index shuffle takes 18 ms for a batch of 64 of 100 images and 2.0 ms
for the digits, against 0.02 ms here (one CPU core, grain 0.2.18), since it shuffles a domain of at least 2^16 indices. Sets on disk are
read ahead by grain, in `Dataset.batches`.

How sets are split, read and checked: images.py (digits, files of your own) and tfds.py; which name means which set: loading.py.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import ArrayLike

from jaxgen.data.arrays import ArraySource, checked
from jaxgen.data.features import Feature, Tokens
from jaxgen.data.images import array_source, given_columns, permutation
from jaxgen.data.series import check_values, series_source
from jaxgen.data.tfds import DiskSource
from jaxgen.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]
READ_AHEAD = 4  # batches


@dataclass(frozen=True)
class Dataset:
    """One split of a data set: named columns with features, in memory (`ArraySource`) or read from disk (`DiskSource`)."""

    source: ArraySource | DiskSource
    name: str
    split: str

    @staticmethod
    def from_arrays(
        image: ArrayLike | None = None,
        label: ArrayLike | None = None,
        *,
        vector: ArrayLike | None = None,
        point: ArrayLike | None = None,
        tokens: ArrayLike | None = None,
        series: ArrayLike | None = None,
        context: int = 0,
        levels: int | None = None,
        name: str = "arrays",
    ) -> "Dataset":
        """A data set of arrays, or of lists of numbers: exactly one of image, point, tokens and series.

        image: integers [N, H, W] or [N, H, W, C] in {0 .. levels-1}; levels None: 2 if no value is above 1, else 256. point: floats [N, d].
        tokens: integers [N, L], each row a string, the stop token 0 and zeros after it. label: integers [N], vector: floats [N, D]; either
        may stand beside any of the three. series: numbers [T] in the order of time; each is an example with the `context` values before it.

        Raises ConfigError for none or two of the four, DataError for wrong shapes, types and values.
        """
        given = {"image": image, "point": point, "tokens": tokens, "series": series}
        about = [column for column, array in given.items() if array is not None]
        if len(about) != 1:
            raise ConfigError("image, point, tokens, series", "one of them", " and ".join(about) or "none")
        column, array = about[0], _array(given[about[0]], name, about[0])
        label, vector = _array(label, name, "label"), _array(vector, name, "vector")
        if column == "series":
            if label is not None or vector is not None:
                raise ConfigError("label, vector", "neither beside a series", "label" if vector is None else "vector")
            return Dataset(series_source(check_values(array, f"{name}:series"), context, name), name, "train")
        if column != "tokens":
            return Dataset(array_source(array, label, f"{name}:{column}", levels, vector, column=column), name, "train")
        if array.ndim != 2:
            raise DataError(f"{name}:tokens", "shape [N, L]", list(array.shape))
        columns, features = given_columns(label, vector, len(array), name)
        feature = Tokens(array.shape[1], int(array.max(initial=0)) + 1)
        return Dataset.from_columns({"tokens": array} | columns, {"tokens": feature} | features, name)

    @staticmethod
    def from_columns(columns: dict[str, np.ndarray], features: dict[str, Feature], name: str = "arrays", split: str = "train") -> "Dataset":
        """A data set of columns [N, ...], each checked by the feature of its name; the first one holds the data proper.

        Raises DataError where names or lengths differ or a column fails its feature's check.
        """
        return Dataset(checked(columns, features, name), name, split)

    @property
    def features(self) -> dict[str, Feature]:
        """What the columns hold, by name."""
        return self.source.features

    @property
    def columns(self) -> dict[str, Any]:
        """{name: column [N, ...]}; for sets on disk a column is an array-like that reads the rows that it is indexed with."""
        return self.source.columns

    @property
    def images(self) -> Any:
        """The first column: images [N, H, W, C], points [N, d] or tokens [N, L]."""
        return next(iter(self.columns.values()))

    @property
    def labels(self) -> Any:
        """int32 [N], or None."""
        return self.columns.get("label")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one example of the first column: (H, W, C), (d,) or (L,)."""
        return tuple(self.images.shape[1:])

    @property
    def levels(self) -> int:
        """V of an image column, whose values are in {0 .. V-1}; 0 where the first column has no levels (points, tokens)."""
        return getattr(next(iter(self.features.values())), "levels", 0)

    @property
    def num_classes(self) -> int:
        """Labels are in {0 .. num_classes-1}; 0: no labels."""
        return self.features["label"].classes if "label" in self.features else 0

    @property
    def vector_size(self) -> int:
        """D of the vectors [N, D] that come with the images; 0: none."""
        return self.features["vector"].size if "vector" in self.features else 0

    @property
    def facts(self) -> Mapping[str, object]:
        """Numbers about the whole set that evaluation and pictures use, such as the centres of a mixture."""
        return self.source.facts

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, step: int, batch_size: int, seed: int, process: tuple[int, int] | None = None) -> Batch:
        """This process's rows of the global batch of `step`: {name: array [B / P, ...]}, the columns of the set.

        batch_size: B. process: (index, P), by default jax's own. Raises DataError if the set has fewer than B rows, ConfigError for a
        negative step or seed, and if P does not divide B.
        """
        if step < 0:
            raise ConfigError("step", wanted="0 or more", got=step)
        rows = self._local(batch_size, process)
        self.check_batch(batch_size, seed)
        return self.source.read(self._order(np.arange(step * batch_size, (step + 1) * batch_size)[rows], seed))

    def batches(self, start_step: int, batch_size: int, seed: int, process: tuple[int, int] | None = None) -> Iterator[Batch]:
        """batch(start_step), batch(start_step + 1), ... without end. Sets on disk are read ahead in threads, in the same order.

        Wrong arguments are reported at the call, an error of the reader when the batch of its step is taken.
        """
        self.batch(start_step, batch_size, seed, process)  # a wrong argument or file is reported before any thread starts
        read = functools.partial(self.batch, batch_size=batch_size, seed=seed, process=process or _this_process())
        if not self.source.on_disk:
            return map(read, itertools.count(start_step))
        return _read_ahead(read, start_step)

    def epoch(self, batch_size: int, process: tuple[int, int] | None = None) -> Iterator[tuple[Batch, Float32[np.ndarray, " B"]]]:
        """All rows once, in order, for evaluation: (batch, mask float32 [B / P]). The last batch is filled up with row 0, at mask 0."""
        local, n = self._local(batch_size, process), len(self)
        for start in range(0, n, batch_size):
            places = np.arange(start, start + batch_size)[local]
            yield self.source.read(np.where(places < n, places, 0)), (places < n).astype(np.float32)

    def check_batch(self, batch_size: int, seed: int = 0) -> None:
        """Raise ConfigError for a wrong batch size or seed, DataError for a set with fewer rows than a batch."""
        _positive(batch_size)
        if not 0 <= seed < 2**63:
            raise ConfigError("seed", wanted="0..2**63 - 1", got=seed)
        if batch_size > len(self):
            wanted = f"at least one batch of {batch_size} {next(iter(self.features.values())).noun}s"
            raise DataError(f"{self.name}/{self.split}", wanted=wanted, got=len(self), hint=f"batch_size={len(self)} or less")

    def expect(self, features: dict[str, Feature]) -> None:
        """Raise DataError unless the set has every one of these features (a model's `config.features`); it may have others too."""
        origin = f"{self.name}/{self.split}"
        for name, wanted in features.items():
            have = self.features.get(name)
            if have is None and getattr(wanted, "of", "") in self.features:
                continue  # it is made from that column
            if have is None or type(have) is not type(wanted):
                raise DataError(origin, f"{wanted.said} as the model", f"no {name}s" if have is None else have.said)
            wanted.expect(have, origin)

    def unused_by(self, features: dict[str, Feature]) -> list[str]:
        """The names of the columns that a model with these features does not use."""
        used = {*features, *(getattr(feature, "of", "") for feature in features.values())}
        return [name for name in self.features if name not in used]

    def content(self) -> dict[str, Any]:
        """What tells this split from another one: {"n": number of examples, "sha256": ...}.

        The sha256 is over all values of a set in memory, and over version, length and 16 examples of a set on disk.
        """
        return {"n": len(self), "sha256": self.source.sha256()}

    def fingerprint(self, batch_size: int, seed: int, process_count: int | None = None) -> dict[str, Any]:
        """What must be equal when a run that trains on this split resumes, as JSON data; see `runs.directory.check_same_run`."""
        self.check_batch(batch_size, seed)
        return {
            "name": self.name,
            "split": self.split,
            "version": self.source.version,
            "image_shape": list(self.image_shape),
            "levels": self.levels,
            "num_classes": self.num_classes,
            "features": {name: _fields(feature) for name, feature in self.features.items()},
            **self.content(),
            "batch_size": batch_size,
            "seed": seed,
            "process_count": _this_process()[1] if process_count is None else process_count,
        }

    def _order(self, places: np.ndarray, seed: int) -> np.ndarray:
        """The rows at these places (ascending, without gaps) of the endless sequence."""
        epochs, within = np.divmod(places, len(self))
        rows = [_permutation(len(self), seed, epoch)[within[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
        return np.concatenate(rows)

    @staticmethod
    def _local(batch_size: int, process: tuple[int, int] | None) -> slice:
        """The rows of a global batch that belong to this process."""
        _positive(batch_size)
        index, count = process or _this_process()
        if batch_size % count:
            lower, upper = batch_size // count * count, (batch_size // count + 1) * count
            near = f"try {lower} or {upper}" if lower else f"try {upper}"
            raise ConfigError("batch_size", wanted=f"a multiple of {count} (processes)", got=batch_size, hint=near)
        rows = batch_size // count
        return slice(index * rows, (index + 1) * rows)


def _array(values: ArrayLike | None, name: str, column: str) -> np.ndarray | None:
    """The array of lists; None stays None."""
    try:
        return None if values is None else np.asarray(values)
    except ValueError as error:
        raise DataError(f"{name}:{column}", "an array, or lists of equal lengths", "lists of different lengths") from error


def _fields(feature: Feature) -> dict[str, Any]:
    """The class and the sizes of a feature as JSON data."""
    sizes = dataclasses.asdict(feature) if dataclasses.is_dataclass(feature) else {"said": feature.said}
    return {"class": type(feature).__name__} | json.loads(json.dumps(sizes, default=str))


def _positive(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError("batch_size", wanted="1 or more", got=batch_size)


def _this_process() -> tuple[int, int]:
    import jax

    return jax.process_index(), jax.process_count()


@functools.lru_cache(maxsize=4)  # a batch may need two epochs of the training set, and batches of another set may be drawn in between
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(n, seed, epoch)


def _read_ahead(read: Any, start_step: int) -> Iterator[Batch]:
    import grain

    steps = grain.MapDataset.range(start_step, 2**62).map(read)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=READ_AHEAD)))
