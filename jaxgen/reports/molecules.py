"""Drawn molecules: the lines of `jaxgen quality` for a model of strings in SMILES, and the picture of `jaxgen sample --molecules`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from jaxgen import evaluation, sharding
from jaxgen.data import Dataset
from jaxgen.data.features import Tokens
from jaxgen.errors import ConfigError
from jaxgen.measures import molecules
from jaxgen.measures.metrics import OF_MOLECULES
from jaxgen.measures.molecules import MoleculeSet
from jaxgen.measures.n_gram_samples import n_gram_samples
from jaxgen.reports.drawing import all_rows, modelled
from jaxgen.runs import figures
from jaxgen.sharding import announce

ORDER = 6
"""Of the n-gram beside the samples."""
CELL = (220, 160)
"""Width and height of a drawing, in pixels."""
CROSS = (214, 69, 65)


def print_molecules(experiment: Any, model, options: Any, read: Callable[[str], Dataset]) -> None:
    """Draws as many strings as are compared, and prints the numbers of `OF_MOLECULES` beside those of as many strings from an n-gram of the
    training strings, and of as many training strings, drawn at random.

    options: a `commands.Quality`. read(split): the data of the run. Raises ConfigError for a model that does not draw strings with
    characters, for strings of which most are no molecules, and without rdkit.
    """
    check(model)
    test, training = read(options.split), read("train")
    batch_size = options.batch_size or experiment.train.batch_size
    n = min(options.n or len(test), len(test))
    column = model.config.modelled
    real, train = all_rows(test, column)[:n], all_rows(training, column)
    reference = MoleculeSet(_text(real, model))
    if 2 * len(reference.molecules) < n:
        got = f"strings of which {len(reference.molecules)} of {n} in the {options.split} split are valid SMILES"
        raise ConfigError("RUN", "a model of molecules", got)
    mesh = sharding.split_mesh(experiment.train.fsdp) or sharding.make_mesh()
    _, samples = evaluation.draw_like(model, test, jax.random.key(options.seed), batch_size, mesh, n)
    some = np.random.default_rng(options.seed).permutation(len(train))[:n]
    sets = {
        "samples": samples,
        f"{ORDER}-gram": n_gram_samples(train, n, ORDER, np.random.default_rng(options.seed)),
        "training": train[some],
    }
    known = set(map(molecules.canonical, _text(train, model))) - {None}
    columns = {name: molecules.compare(MoleculeSet(_text(rows, model)), reference, known) for name, rows in sets.items()}
    held_out = f"{len(reference.molecules)} valid {options.split} strings"
    announce(f"compared    {n} strings each with {held_out}: samples, a {ORDER}-gram of the training strings, training strings")
    announce(f"splits      {len(set(reference.canonical) & known)} of the {held_out} are molecules of the {len(train)} training strings")
    announce(" " * 22 + "".join(f"{name:>20}" for name in columns))
    for name, metric in OF_MOLECULES.items():
        if any(name in column for column in columns.values()):
            numbers = "".join(f"{_number(name, column):>20}" for column in columns.values())
            announce(f"{name:<22}{numbers}  ({metric.better} is better)")


def _number(name: str, column: dict) -> str:
    """One number with its standard error; "-" where there is none."""
    value, error = column.get(name, math.nan), column.get(f"{name}_standard_error", math.nan)
    if math.isnan(value):
        return "-"
    printed = OF_MOLECULES[name].printed
    return f"{value:{printed}}" + (f" +- {error:{printed}}" if math.isfinite(error) else "")


def check(model) -> None:
    """ConfigError unless a model draws strings of known characters, and rdkit is there."""
    if not hasattr(model, "sample") or not isinstance(modelled(model), Tokens) or not modelled(model).symbols:
        raise ConfigError("RUN", "a model that draws strings of characters, which are molecules in SMILES", type(model).__name__)
    molecules.rdkit()


def molecule_grid(strings: Sequence[str], columns: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Drawings of molecules in rows, as one RGB picture; a string that is no molecule is crossed out and written as it is.

    columns: in a row, by default about as many as there are rows. Raises ConfigError for no strings, or without rdkit.
    """
    cells = [_crossed(string) if molecules.parse(string) is None else _drawn(string) for string in strings]
    return figures.image_grid(np.array(cells, np.uint8).reshape(-1, CELL[1], CELL[0], 3), 256, columns=columns)


def picture_of(samples: np.ndarray, model) -> tuple[bytes, int]:
    """(the PNG of the drawings of drawn strings, how many of the strings are molecules)."""
    strings = _text(samples, model)
    return figures.png(molecule_grid(strings)), sum(molecules.parse(string) is not None for string in strings)


def _drawn(string: str) -> UInt8[np.ndarray, "height width 3"]:
    drawing = molecules.rdkit().drawing
    canvas = drawing.MolDraw2DCairo(*CELL)
    with molecules.rdkit().quiet():
        drawing.PrepareAndDrawMolecule(canvas, molecules.parse(string))
    canvas.FinishDrawing()
    return figures.pixels(canvas.GetDrawingText())[..., :3]


def _crossed(string: str) -> UInt8[np.ndarray, "height width 3"]:
    """The text of a string on a cross."""
    from PIL import Image, ImageDraw, ImageFont

    cell, (width, height) = Image.new("RGB", CELL, "white"), CELL
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(11)
    for line in ((0, 0, width, height), (0, height, width, 0)):
        pen.line(line, fill=CROSS, width=2)
    letters = "".join(letter if letter.isprintable() else "?" for letter in string) or "(empty)"
    lines = [letters[start : start + 24] for start in range(0, len(letters), 24)]
    text = "\n".join(lines[:8] + ["..."] * (len(lines) > 8))
    place = {"xy": (width / 2, height / 2), "text": text, "font": font, "anchor": "mm", "align": "center"}
    pen.rectangle(pen.multiline_textbbox(**place), fill="white")
    pen.multiline_text(**place, fill="black")
    return np.asarray(cell)


def _text(tokens: np.ndarray, model) -> list[str]:
    return [modelled(model).text(row) for row in tokens]
