"""Which data set a name means: `DataConfig` and `load(name, split)`."""

from dataclasses import dataclass
from pathlib import Path

from jaxgen.data.augment import AUGMENTATIONS
from jaxgen.data.dataset import Dataset
from jaxgen.data.images import check_split, digits, read_path
from jaxgen.data.points import ring
from jaxgen.data.text import ENDINGS, number_words, read_lines, text_source
from jaxgen.data.tfds import open_split
from jaxgen.errors import ConfigError, DataError

ARRAYS = "arrays"
"""The name of a data set that was given as arrays: no command can read it again."""


@dataclass(frozen=True)
class DataConfig:
    """Which data: `digits`, `ring` (points), `number_words` (strings), a TFDS name, or a path.

    A path is that of an .npz file, of a text file (.txt, .smi) with one string a line, of a folder with train.npz and test.npz, or of a
    folder of pictures. It begins with `/`, `.` or `~`, ends with `.npz`, `.txt` or `.smi`, or has a `/` and exists; a folder beside you is
    `./name`.
    levels: number of grey levels V, values are 0..V-1; None: 17 for digits, else 2 if no value is above 1, else 256.
    data_dir, manual_dir: TFDS's folder of prepared sets (None: its own default) and the folder of files fetched by hand.
    augment: random changes of the training images, out of flip, shift and crop.
    """

    name: str = "digits"
    levels: int | None = None
    data_dir: str | None = None
    manual_dir: str | None = None
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("data.name", wanted="digits, a TFDS name or a path", got="nothing")
        if self.levels is not None and not 2 <= self.levels <= 2**16:
            raise ConfigError("data.levels", wanted="2 to 65536", got=self.levels)
        if unknown := set(self.augment) - set(AUGMENTATIONS):
            raise ConfigError("data.augment", wanted=f"some of {', '.join(AUGMENTATIONS)}", got=min(unknown))

    def load(self, split: str) -> Dataset:
        """The `split` ("train", "validation" or "test") of this set, checked."""
        return load(self.name, split, levels=self.levels, data_dir=self.data_dir, manual_dir=self.manual_dir)


def load(name: str, split: str, *, levels: int | None = None, data_dir: str | None = None, manual_dir: str | None = None) -> Dataset:
    """One split of a data set; the arguments are the fields of `DataConfig`.

    Raises DataError for what is wrong with the data (file, index, wanted, got), ConfigError for what is wrong with the arguments.
    """
    check_split(split)
    DataConfig(name, levels, data_dir, manual_dir)
    if name == ARRAYS:
        hint = "in Python, jaxgen.evaluation.evaluate(model, dataset) scores a model on arrays"
        raise DataError(name, wanted="a data set that has a name", got="arrays in memory, which are not kept on disk", hint=hint)
    if name == "ring":
        return ring(split)
    if name == "digits":
        source = digits(split, levels)
    elif name == "number_words":
        source = text_source(number_words(), name, split)
    elif (path := _path(name)) is not None:
        source = text_source(read_lines(path), name, split) if path.suffix in ENDINGS else read_path(path, split, levels)
    else:
        source = open_split(name, split, data_dir, manual_dir, levels)
    return Dataset(source, name, split)


def _path(name: str) -> Path | None:
    """The path that `name` means, or None for the name of a set; DataError if it can only be a path and is not there."""
    try:
        path = Path(name).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home that is unknown
        raise DataError(name[:80], wanted="an existing file or folder", got=str(error)[:160]) from error
    if not (name.startswith(("/", ".", "~")) or name.endswith((".npz", *ENDINGS)) or ("/" in name and there)):
        return None
    if not there:
        raise DataError(name, wanted="an existing file or folder", got="nothing there")
    return path
