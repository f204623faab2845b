"""Which data set a name means: the table `KINDS`, `DataConfig` and `load(name, split)`.

A new kind of data needs one module with its `KIND` (kind.py) and one line of the table.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxgen.data import images, photographs, points, series, text, tfds
from jaxgen.data.augment import AUGMENTATIONS
from jaxgen.data.class_names import named
from jaxgen.data.dataset import Dataset
from jaxgen.data.decoding import Reading
from jaxgen.data.features import Feature
from jaxgen.data.images import RULE, check_split
from jaxgen.data.kind import Kind, UnknownName
from jaxgen.data.pairs import FUNCTIONS, OF_PICTURES, PAIRS, with_input
from jaxgen.errors import ConfigError, DataError, did_you_mean

ARRAYS = "arrays"
"""The name of a data set made from arrays in memory; `load` refuses it, since there is no file to read."""
KINDS: tuple[Kind, ...] = (
    series.KIND,
    points.KIND,
    text.KIND,
    images.KIND,  # after text: it reads every folder
    photographs.KIND,
    tfds.KIND,
)
"""Every kind of data. The first that lists a name in `names`, or whose `reads` accepts a path, loads it."""
NAMES = [name for kind in KINDS for name in kind.names]
CHOICES = ", ".join([*NAMES, *(kind.elsewhere for kind in KINDS if kind.elsewhere)])
FILES = ", or ".join(kind.files for kind in KINDS if kind.files)
ENDINGS = tuple(ending for kind in KINDS for ending in kind.endings)


class NotThere(DataError):
    """A path at which there is nothing."""


@dataclass(frozen=True)
class DataConfig:
    name: str = "digits"  # which data, see above
    levels: int | None = None  # number of grey levels, values are 0 .. levels-1; None: as the data say, see above
    data_dir: str | None = None  # TFDS's folder of prepared sets; None: its own default
    manual_dir: str | None = None  # TFDS's folder of files fetched by hand
    augment: tuple[str, ...] = ()  # random changes of the training images, out of flip, shift and crop
    # crop every picture of a folder in the middle to this side, or this height and width, and scale it down (mean over areas)
    size: tuple[int, ...] = ()
    mode: Literal["L", "RGB"] | None = None  # make every picture grey (L) or colour (RGB) of 8 bits
    background: str = "white"  # the colour behind what is transparent, with mode: a name or #rrggbb
    class_names: tuple[str, ...] = ()  # names of the classes in the order of their labels; (): those of the data, which a run then keeps
    # what a token of text is: a "character", or in molecules' SMILES an atom, a bond, a ring; None: a character
    tokenizer: Literal["character", "smiles"] | None = None
    splits: int = RULE  # the rule by which splits are made and classes are ordered; 1 to 3 are those of runs made by earlier versions
    validation: int | None = None  # 0 trains on the validation split too: nothing is validated, the newest step counts as the best
    # pairs of images: of a folder of pictures "folders" (input and output), "left_to_right" or "right_to_left" (halves of each); or what
    # the input is that is made of the images of any set: "grey", "outline" or "smaller"; None: no pairs
    pairs: Literal["folders", "left_to_right", "right_to_left", "grey", "outline", "smaller"] | None = None
    column: str | None = None  # of a .csv file, by its name, or its number where columns have no names; None: the only one
    EARLIER = {"splits": 1}  # not a field: what a saved configuration without the field meant

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("data.name", wanted=f"{CHOICES} or a path", got="nothing")
        if self.levels is not None and not 2 <= self.levels <= 2**16:
            raise ConfigError("data.levels", wanted="2 to 65536", got=self.levels)
        if unknown := set(self.augment) - set(AUGMENTATIONS):
            raise ConfigError("data.augment", wanted=f"some of {', '.join(AUGMENTATIONS)}", got=min(unknown))
        if not 1 <= self.splits <= RULE:
            raise ConfigError("data.splits", wanted=f"1 to {RULE}", got=self.splits)
        if self.validation not in (None, 0):
            raise ConfigError("data.validation", "0, to train on all examples, or None, a split as the rule says", self.validation)
        if self.validation == 0 and type(self).load is not DataConfig.load:
            raise ConfigError("data.validation", "nothing, for a class with its own load", f"{self.validation} for {type(self).__name__}")
        if self.pairs not in (None, *PAIRS):
            raise ConfigError("data.pairs", f"one of {', '.join(PAIRS)}", self.pairs or "nothing", did_you_mean(self.pairs, PAIRS))
        if len(set(self.class_names)) < len(self.class_names):
            raise ConfigError("data.class_names", "a different name for every class", ", ".join(self.class_names))
        Reading(self.levels, self.size, self.mode, self.background).check()

    def load(self, split: str) -> Dataset:
        """The `split` ("train", "validation" or "test") of this set, checked."""
        return load(**self._arguments, split=split)

    def load_keeping(self, split: str, folder: Path | None, coded: Feature | None = None) -> Dataset:
        """As `load`, for a run. Pictures converted by size or mode are cached in `folder`, and read from it until a picture file changes.

        coded: what the run's model models. Text is coded by its symbols and length, by those of the text where it has no symbols; a series
        is cut into windows of its context.
        """
        own = type(self).load is not DataConfig.load  # a subclass with its own `load`, which knows neither
        return self.load(split) if own else load(**self._arguments, split=split, cache=folder, coded=coded)

    def as_begun(self, saved: Mapping[str, Any]) -> "DataConfig":
        """This configuration with the rule of splits of a run that has begun, from its saved configuration (JSON) of the data.

        The names of its classes are taken too, unless this configuration has others. Raises ConfigError where `splits` is another rule,
        unless it is the newest, which is the default.
        """
        begun = saved.get("splits", self.EARLIER["splits"])
        if self.splits not in (begun, RULE):
            hint = "a run keeps its rule; --restart or another workdir begins one by another rule"
            raise ConfigError("data.splits", f"{begun}, the rule by which this run began", self.splits, hint)
        return replace(self, splits=begun, class_names=self.class_names or tuple(saved.get("class_names", ())))

    def absolute(self) -> "DataConfig":
        """This configuration with absolute paths of the files and of data_dir: a run keeps it and works from any working directory."""
        try:
            path = None if self.name in (*NAMES, ARRAYS) else _path(self.name)
        except DataError:  # a name that only a class with its own `load` understands
            path = None
        name = self.name if path is None else os.path.abspath(path)
        local = self.data_dir and "://" not in self.data_dir
        return replace(self, name=name, data_dir=os.path.abspath(os.path.expanduser(self.data_dir)) if local else self.data_dir)

    def moved_to(self, place: str) -> "DataConfig":
        """This configuration for the same data at another place: a path, or for TFDS sets with a data_dir that folder."""
        return replace(self, **{"data_dir" if self.data_dir else "name": place})

    @property
    def follows_rule(self) -> bool:
        """Whether `splits` decides how the set is split: it does not for sets that the library brings and for arrays in memory."""
        return self.name not in (*NAMES, ARRAYS)

    @property
    def _arguments(self) -> dict[str, Any]:
        """The arguments of `load`: all fields that say how data are read."""
        names = ("name", "levels", "data_dir", "manual_dir", "size", "mode", "background", "class_names", "splits", "validation", "pairs")
        names += ("column", "tokenizer")
        return {name: getattr(self, name) for name in names}


# Set here and not in the class, since it is made from the table; --help shows it.
DataConfig.__doc__ = f"""Which data: {CHOICES}, or a path.

    A path is that of {FILES}.
    It begins with `/`, `.` or `~`, ends with {", ".join(f"`{ending}`" for ending in ENDINGS)}, or has a `/` and exists; a folder beside
    you is `./name`. A class of your own that inherits from this one, with a method `load(split)`, is a kind of data of your own.
    levels None: 17 for digits, what the files of pictures say where they have fewer than 8 bits (16 for 4 bits), else 2 if no
    value is above 1, else 256.
    """


@dataclass(frozen=True)
class _Asked(DataConfig):
    """The arguments of `load`, as `Kind.load` gets them."""

    cache: Path | None = None
    coded: Feature | None = None


def load(
    name: str,
    split: str,
    *,
    levels: int | None = None,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    size: tuple[int, ...] = (),
    mode: Literal["L", "RGB"] | None = None,
    background: str = "white",
    class_names: tuple[str, ...] = (),
    splits: int = RULE,
    validation: int | None = None,
    pairs: str | None = None,
    column: str | None = None,
    tokenizer: Literal["character", "smiles"] | None = None,
    cache: Path | None = None,
    coded: Feature | None = None,
) -> Dataset:
    """One split of a data set; the arguments are the fields of `DataConfig`, and two of a run.

    cache: folder for converted pictures, or None. coded: what a model models, `model.config.features[model.config.modelled]`: text is coded
    by its symbols and length, not by its own; a series is cut into windows of its context, not into single values.

    Raises DataError for a name that is unknown and for faulty data (file, index, wanted, got), ConfigError for a faulty argument.
    """
    check_split(split)
    how = {"size": size, "mode": mode, "background": background, "splits": splits, "validation": validation, "pairs": pairs}
    how |= {"column": column, "tokenizer": tokenizer}
    config = _Asked(name, levels, data_dir, manual_dir, **how, cache=cache, coded=coded)
    if validation == 0 and split == "validation":
        raise ConfigError("split", "train or test", split, "the data have no validation split: with --data.validation 0 all is trained on")
    if name == ARRAYS:
        hint = "in Python, jaxgen.evaluation.evaluate(model, dataset) scores a model on arrays"
        raise DataError(name, wanted="a data set that has a name", got="arrays in memory, which are not kept on disk", hint=hint)
    kind, place = _kind(name)
    folder = isinstance(place, Path) and place.is_dir()
    if (size or mode) and not folder:
        raise ConfigError("data.size, data.mode", "a folder of pictures, which they convert", name, "leave them out")
    if column is not None and not (isinstance(place, Path) and place.suffix.lower() == ".csv"):
        raise ConfigError("data.column", "a .csv file, whose column it names", name, "leave it out")
    if tokenizer and kind is not text.KIND:
        raise ConfigError("data.tokenizer", "text, which it splits into tokens", name, "leave it out")
    if pairs in OF_PICTURES and not folder:
        raise ConfigError("data.pairs", f"a folder of pictures, for {pairs}", name, f"of the images of any set: {', '.join(FUNCTIONS)}")
    try:
        source = kind.load(place, split, config)
        if validation == 0 and split == "train":
            source = source.joined(kind.load(place, "validation", config))
        if pairs in FUNCTIONS:
            source = with_input(source, pairs, f"{name}/{split}")
        return Dataset(named(source, class_names, f"{name}/{split}"), name, split)
    except UnknownName as error:
        hint = did_you_mean(name, [*NAMES, *error.known]) or f"a folder of your own is written with its path, ./{name}"
        hint = f"did you mean ./{name}, which is here?" if Path(name).exists() else hint
        raise DataError(name, f"{CHOICES} or an existing path", "a name that none of them has", hint) from error
    except OSError as error:
        raise DataError(str(error.filename or name), "a file or folder that can be read", error.strerror or error) from error


def _kind(name: str) -> tuple[Kind, str | Path]:
    """The kind that loads `name`, and what its `load` gets: the name, or an existing path. DataError for a file that no kind reads."""
    for kind in KINDS:
        if name in kind.names:
            return kind, name
    if (path := _path(name)) is None:
        return next(kind for kind in KINDS if kind.elsewhere), name
    for kind in KINDS:
        if kind.reads(path):
            return kind, path
    raise DataError(str(path), wanted=FILES, got=f"a file that ends with {path.suffix or 'nothing'}")


def _path(name: str) -> Path | None:
    """The path that `name` means, or None for the name of a set; DataError if it can only be a path and is not there."""
    try:
        path = Path(name).expanduser()
        there = path.exists()
        file = path.is_file() and any(kind.reads(path) for kind in KINDS)
    except (OSError, RuntimeError) as error:  # the name is too long for a path, or ~user has no home folder
        raise DataError(name[:80], wanted="an existing file or folder", got=str(error)[:160]) from error
    if not (name.startswith(("/", ".", "~")) or name.lower().endswith(ENDINGS) or ("/" in name and there) or file):
        return None
    if not there:
        raise NotThere(name, wanted="an existing file or folder", got="nothing there")
    return path
