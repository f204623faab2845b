"""Series: real numbers in the order of time, as windows. A column of a CSV file, an array, or the yearly numbers of sunspots 1700 to 2008.

    row of x_t = (x_{t-m}, .., x_{t-1}, x_t)          m = `context`: an example is the value x_t, with the m values before it

A model that looks p values back reads windows of context p: a run loads its data so (`coded` of loading.py). Splits are by time: of T
values the last k = T / 10 (rounded down, at least one) are the test split, the k before them the validation split, the rest train. The
windows of validation and test reach back into the values before the split, so each of their values is an example; of train the first m
are not.

A CSV file is UTF-8 with commas between its cells, and one line for every point of time. Its first line may hold the names of the columns,
which are no numbers; without names the columns are 1, 2, and so on. `data.column` says which column is meant; a file of one column needs
none. An .npy file has one axis; in an .npz file the array is named `series`.

The sunspots are the yearly means of the international sunspot number in its first version, of the U.S. National Geophysical Data Center
(public domain).
"""

import csv
import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from jaxgen.data.archives import damaged, listed
from jaxgen.data.arrays import ArraySource
from jaxgen.data.features import ClassLabel
from jaxgen.data.kind import Kind
from jaxgen.errors import ConfigError, DataError, did_you_mean, shown

SUNSPOTS = Path(__file__).with_name("sunspots.csv")


@dataclass(frozen=True)
class Series:
    """Real numbers [N, context + 1], finite: each row a value of a series, its last one, with the `context` values before it.

    float32 stays float32, all other numbers are float64: a fit in float64 reads them as they are.
    """

    context: int = 0
    unit, noun, ending = "nats", "value", ".png"
    discrete = False
    counts = ClassLabel.counts

    def __post_init__(self) -> None:
        if self.context < 0:
            raise ConfigError("context", "0 or more values before each", self.context)

    @property
    def dimensions(self) -> int:
        """The numbers in a row."""
        return self.context + 1

    @property
    def said(self) -> str:
        """In words, for errors and reports."""
        return f"values of a series with the {self.context} before each"

    def expect(self, have: "Series", origin: str) -> None:
        """Raises DataError unless the windows of a set are those that a model reads."""
        if have.context != self.context:
            hint = f"in Python, Dataset.from_arrays(series=values, context={self.context})"
            raise DataError(origin, f"{self.said}, as the model", f"the {have.context} before each", hint)

    def check(self, array: np.ndarray, origin: str) -> np.ndarray:
        """The windows of a batch or a set."""
        if array.ndim != 2 or array.shape[1] != self.dimensions:
            raise DataError(origin, f"shape [N, {self.dimensions}]", list(array.shape))
        return _finite(array, origin)

    def show(self, samples: np.ndarray) -> bytes:
        """The series [n, T], each as a line in a panel of its own, all on the same axes; a PNG file."""
        from jaxgen.runs import figures

        return figures.png(figures.series_grid(np.asarray(samples, float)))

    def random(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """Draws of N(0, 1)."""
        return generator.standard_normal((n, self.dimensions))


def windows(values: Float[np.ndarray, " T"], context: int) -> Float[np.ndarray, "N m"]:
    """Row t of the windows, for t = context .. T-1."""
    return np.lib.stride_tricks.sliding_window_view(values, context + 1)


def series_source(values: Float[np.ndarray, " T"], context: int, origin: str, split: str = "") -> ArraySource:
    """The windows of a split, or of all values for ""; `facts` has the whole "series" and "start", the place of the first example.

    Raises DataError for too few values.
    """
    n = len(values)
    last = max(1, n // 10)
    begin, end = {"": (0, n), "train": (0, n - 2 * last), "validation": (n - 2 * last, n - last), "test": (n - last, n)}[split]
    first = context + (2 * last if split else 0)
    if n <= first:
        why = "to split them into train, validation and test" if split else ""
        why = ", ".join(filter(None, [f"for the {context} before each" if context else "", why])) or "of a series"
        raise DataError(origin, f"at least {first + 1} values, {why}", n)
    start = max(begin, context)
    rows = windows(values, context)[start - context : end - context]
    return ArraySource({"series": rows}, {"series": Series(context)}, version="1", facts={"series": values, "start": start})


def before_and_after(dataset: Any) -> tuple[Float64[np.ndarray, " P"], Float64[np.ndarray, " N"]]:
    """(all values that are known before the first example of a set, the values of its examples)."""
    rows, facts = np.asarray(dataset.columns["series"], np.float64), dataset.facts
    if {"series", "start"} <= set(facts):
        start = facts["start"]
        if np.array_equal(facts["series"][start : start + len(rows)], rows[:, -1]):  # not of a part of the rows
            return np.asarray(facts["series"][:start], np.float64), rows[:, -1]
    return rows[0, :-1], rows[:, -1]


def check_values(values: np.ndarray, origin: str) -> Float[np.ndarray, " T"]:
    """An array [T] of finite numbers as floats."""
    if values.ndim != 1:
        raise DataError(origin, "shape [T], the values of one series in the order of time", list(values.shape))
    return _finite(values, origin)


def _finite(array: np.ndarray, origin: str) -> Float[np.ndarray, "..."]:
    if array.dtype.kind not in "fiu":
        raise DataError(origin, "real numbers", f"dtype {array.dtype}")
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    if not np.isfinite(array).all():
        place = tuple(np.argwhere(~np.isfinite(array))[0])
        raise DataError(f"{origin}[{', '.join(map(str, place))}]", "a finite number", array[place])
    return array


def read_csv(path: Path, column: str | None = None) -> Float64[np.ndarray, " T"]:
    """The values of one column of a CSV file, named or numbered as `column` says; None for the only one.

    Raises DataError (file, line, column) for what is no finite number, an empty cell, a blank line, a line with more or fewer cells than
    the first, and a file without values; ConfigError for a column that is not there.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}", "UTF-8", f"byte {error.object[error.start]:#04x}", "save the file as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend((reader.line_num, [cell.strip() for cell in row]) for row in reader)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}", "cells between commas", str(error)) from error
    if not rows:
        raise DataError(str(path), "numbers, one line for each point of time", "an empty file")
    width = len(rows[0][1])
    for line, row in rows:
        if not any(row):
            raise DataError(f"{path}:{line}", f"{width} cell{'s' * (width != 1)}", "a blank line", "remove it")
        if len(row) != width:
            raise DataError(f"{path}:{line}", f"{width} cells, as line 1 has", len(row))
    names, rows = _names(rows, path)
    place = _place(names, column, path)
    if not rows:
        raise DataError(str(path), "numbers below the names of the columns", "the names alone")
    return np.array([_number(row[place], f"{path}:{line}, column {names[place]}") for line, row in rows])


def _names(rows: list[tuple[int, list[str]]], path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the rows with values."""
    line, first = rows[0]
    numbers = [_is_number(cell) for cell in first]
    if not any(numbers):
        return first, rows[1:]
    if not all(numbers):
        wanted = "the names of the columns, none of them a number, or numbers alone"
        raise DataError(f"{path}:{line}", wanted, shown(",".join(first)), "put a line with names above it")
    return [str(number) for number in range(1, len(first) + 1)], rows


def _place(names: Sequence[str], column: str | None, path: Path) -> int:
    if column is None and len(names) == 1:
        return 0
    if names.count(column) != 1:
        got = f"{column}, the name of {names.count(column)} columns" if column in names else column or "nothing"
        raise ConfigError("data.column", f"one of the columns of {path}: {listed(list(names))}", got, did_you_mean(column or "", names))
    return names.index(column)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python reads 1_000 as a thousand


def _number(cell: str, place: str) -> float:
    if not cell:
        raise DataError(place, "a number", "an empty cell", "a series has a value at every point of time")
    if not _is_number(cell):
        hint = "cells are separated by commas" if ";" in cell or "\t" in cell else ""
        raise DataError(place, "a number", shown(cell), hint)
    if not isfinite(value := float(cell)):
        raise DataError(place, "a finite number", cell)
    return value


def _reads(path: Path) -> bool:
    """Whether this is a CSV file, or a file of arrays that holds a series."""
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False).ndim == 1
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return "series.npy" in archive.namelist()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False  # images.py says what is wrong with it
    return path.suffix.lower() == ".csv"


def _read(path: Path, column: str | None) -> Float[np.ndarray, " T"]:
    if path.suffix.lower() == ".csv":
        return read_csv(path, column)
    try:
        loaded = np.load(path, allow_pickle=False)
        values = loaded["series"] if path.suffix.lower() == ".npz" else loaded
    except (OSError, EOFError, ValueError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(path, error) from error
    return check_values(values, f"{path}:series")


def _load(place: str | Path, split: str, config: Any) -> ArraySource:
    coded = getattr(config, "coded", None)
    values = read_csv(SUNSPOTS, "sunspots") if place == "sunspots" else _read(Path(place), config.column)
    return series_source(values, coded.context if isinstance(coded, Series) else 0, str(place), split)


KIND = Kind(
    _load,
    names=("sunspots",),
    files="a .csv file with a column of numbers (or an .npy file with one axis, or an .npz file with an array `series`)",
    endings=(".csv",),
    reads=_reads,
)
