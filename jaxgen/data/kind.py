"""`Kind`: the entry of one kind of data in the table of loading.py: its names and files, and the function that loads a split."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """One kind of data. Each module of a kind has one as `KIND`; `loading.KINDS` lists them.

    load: (name or existing path, split, DataConfig) -> the source of that split. names: of the data sets that the library brings.
    files: in words, for messages: which files and folders it reads. endings: a name that ends so is a path, even if nothing is there.
    reads: whether it can read this existing path. elsewhere: in words, where names that no kind lists are looked up ("" for a kind
    without such a collection); its `load` raises `UnknownName` for a name that the collection lacks.
    """

    load: Callable[[Any, str, Any], Any]
    names: tuple[str, ...] = ()
    files: str = ""
    endings: tuple[str, ...] = ()
    reads: Callable[[Path], bool] = lambda path: False
    elsewhere: str = ""


class UnknownName(LookupError):
    """No data set has this name; `known` are the names that exist, for a hint."""

    def __init__(self, known: Iterable[str]):
        super().__init__()
        self.known = list(known)
