"""A data set in memory: named columns, each checked by its feature."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Int

from jaxgen.data.features import ClassLabel, Feature
from jaxgen.errors import DataError


class NoSplit(DataError):
    """A split that the data do not have, as a folder with train/ alone has no test split."""


NO_SPLIT = (NoSplit, LookupError, FileNotFoundError)
"""What `load(split)` raises for a split that is not there: the last two are those of a class of one's own."""


@dataclass(frozen=True)
class ArraySource:
    """Checked columns [N, ...] in memory. The first one holds the data proper, such as the images; labels and others come after it.

    version: part of the fingerprint ("" for none). on_disk: False, unlike `DiskSource`. facts: numbers about the whole set that evaluation
    and pictures use, such as the centres of a mixture.
    """

    columns: dict[str, np.ndarray]
    features: dict[str, Feature]
    version: str = ""
    on_disk: bool = False
    facts: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def read(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The rows `indices` of every column."""
        return {name: column[indices] for name, column in self.columns.items()}

    def sha256(self) -> str:
        """sha256 over the shape and the little-endian values of every column in order; of labels [N] the values only."""
        digest = hashlib.sha256()
        for name, column in self.columns.items():
            digest.update(b"" if name == "label" else repr(column.shape).encode())
            digest.update(np.ascontiguousarray(column, column.dtype.newbyteorder("<")).data)
        return digest.hexdigest()

    def select(self, rows: Int[np.ndarray, " M"] | slice) -> "ArraySource":
        """A source with the rows `rows` only, otherwise the same."""
        return ArraySource({name: column[rows] for name, column in self.columns.items()}, self.features, self.version, facts=self.facts)

    def joined(self, other: "ArraySource") -> "ArraySource":
        """The examples of this split and then those of another split of the same set."""
        columns = {name: np.concatenate([column, other.columns[name]]) for name, column in self.columns.items()}
        return ArraySource(columns, self.features, self.version, facts=self.facts)

    def with_column(self, name: str, column: np.ndarray, feature: Feature) -> "ArraySource":
        """The same source with one column more, checked already."""
        return replace(self, columns=self.columns | {name: column}, features=self.features | {name: feature})

    def named(self, names: tuple[str, ...]) -> "ArraySource":
        """The same source, its classes named so; more names than labels are classes without examples."""
        return replace(self, features=self.features | {"label": ClassLabel(len(names), names)})


def checked(columns: Mapping[str, np.ndarray], features: Mapping[str, Feature], origin: str, **more) -> ArraySource:
    """An `ArraySource` of these columns, each checked and converted by the feature of its name.

    origin: named in errors. Raises DataError where columns and features have different names, a column fails its feature's check, has no
    rows, or has another number of rows than the first.
    """
    if set(columns) != set(features) or not columns:
        raise DataError(origin, "the columns " + ", ".join(features), ", ".join(columns) or "none")
    arrays = {name: features[name].check(np.asarray(columns[name]), f"{origin}:{name}") for name in features}
    first, n = next((name, len(array)) for name, array in arrays.items())
    if not n:
        raise DataError(f"{origin}:{first}", "at least one example", "0 (the set is empty)")
    for name, array in arrays.items():
        if len(array) != n:
            raise DataError(f"{origin}:{name}", f"{n} rows, as {first} has", len(array))
    return ArraySource(arrays, dict(features), **more)
