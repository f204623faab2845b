"""What a kind of data says of itself to loading.py: which names and paths are its own, and how it loads a split."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of data, as its file describes it in `KIND`; the table of all is `loading.KINDS`.

    load: (name or existing path, split, DataConfig) -> the columns of that split. names: sets of the library.
    files: what it reads, in words. endings: of names that are always paths. reads: whether it reads what is at a path.
    elsewhere: where it looks up a name that is none of these, in words; `load` raises `UnknownName` for one that is not there.
    """

    load: Callable[[Any, str, Any], Any]
    names: tuple[str, ...] = ()
    files: str = ""
    endings: tuple[str, ...] = ()
    reads: Callable[[Path], bool] = lambda path: False
    elsewhere: str = ""


class UnknownName(LookupError):
    """No set has this name; `known` are the names that were looked through."""

    def __init__(self, known: Iterable[str]):
        super().__init__()
        self.known = list(known)
