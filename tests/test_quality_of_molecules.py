"""`jaxgen quality` and `jaxgen sample --molecules` of models of strings, and what the page docs/molecules.md shows."""

import dataclasses
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import commands, data, run_commands
from jaxgen.__main__ import main
from jaxgen.data.features import Points, Tokens
from jaxgen.data.simple_molecules import simple_molecules
from jaxgen.data.text import encode
from jaxgen.errors import ConfigError
from jaxgen.evaluation import molecule_metrics, n_gram_samples
from jaxgen.experiment import Experiment
from jaxgen.measures.metrics import OF_MOLECULES
from jaxgen.models import LanguageModelConfig
from jaxgen.reports import molecules
from jaxgen.runs import figures

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "molecules.md").read_text("utf-8")
FEATURE = data.load("simple_molecules", "test").features["tokens"]
EXPERIMENT = Experiment(LanguageModelConfig(FEATURE.length, FEATURE.vocabulary, FEATURE.symbols), data.DataConfig("simple_molecules"))
DRAWN = ["CCO", "OCC", "c1ccccc1", "C(", "", "c1ccc2ccccc2c1", "CC(C)C(=O)Nc1ccccc1", "N)c1("]


@jax.tree_util.register_static
class Eight:
    """A model that draws eight strings; sample 0 of a key is the one of a number drawn with it."""

    config = SimpleNamespace(features={"tokens": FEATURE}, modelled="tokens")

    def sample(self, key, n):
        rows = jnp.asarray(encode(DRAWN, FEATURE.symbols, FEATURE.length))
        return rows[jnp.arange(n)] if n > 1 else rows[jax.random.randint(key, (1,), 0, 8)]


def few(split: str) -> data.Dataset:
    """The first 200 strings of a split."""
    dataset = data.load("simple_molecules", split)
    return dataclasses.replace(dataset, source=dataset.source.select(np.arange(200)))


def opened(monkeypatch, model, read=few):
    monkeypatch.setattr(run_commands, "_open", lambda options, models: (EXPERIMENT, model))
    monkeypatch.setattr(run_commands, "_reader", lambda options, experiment: read)


def test_the_numbers_are_those_of_the_strings(monkeypatch, capsys):
    opened(monkeypatch, Eight())
    assert run_commands.quality(commands.Quality("run", n=40, seed=3)) == 0
    lines = capsys.readouterr().out.splitlines()
    test, train = (few(split).images for split in ("test", "train"))
    real, known = ([FEATURE.text(row) for row in rows] for rows in (test[:40], train))
    assert [" ".join(line.split()) for line in lines[:3]] == [
        "compared 40 strings each with 40 valid test strings: samples, a 6-gram of the training strings, training strings",
        "splits 0 of the 40 valid test strings are molecules of the 200 training strings",
        "samples 6-gram training",
    ]
    sets = [Eight().sample(jax.random.fold_in(jax.random.key(3), i), 1)[0] for i in range(40)]
    sets = sets, n_gram_samples(train, 40, 6, np.random.default_rng(3)), train[np.random.default_rng(3).permutation(200)[:40]]
    wanted = [molecule_metrics([FEATURE.text(np.asarray(row)) for row in rows], real, known) for rows in sets]
    found = {line.split()[0]: line for line in lines[3:]}
    assert list(found) == [name for name in OF_MOLECULES if "@" not in name]
    for name, line in found.items():
        printed, columns = OF_MOLECULES[name].printed, []
        for column in wanted:
            error = column.get(f"{name}_standard_error")
            columns += [f"{column[name]:{printed}}"] + ([] if error is None else ["+-", f"{error:{printed}}"])
        assert line.split() == [name, *columns, f"({OF_MOLECULES[name].better}", "is", "better)"]
    assert wanted[2]["validity"] == 1 and wanted[2]["novelty"] == 0 and 0 < wanted[0]["validity"] < 1


def test_what_is_not_compared_as_molecules_is_one_line(monkeypatch):
    words = data.load("number_words", "test")
    of_words = SimpleNamespace(config=SimpleNamespace(features=words.features, modelled="tokens"), sample=lambda key, n: None)
    opened(monkeypatch, of_words, lambda split: data.load("number_words", split))
    message = "^RUN: wanted a model of molecules, got strings of which 0 of 99 in the test split are valid SMILES$"
    with pytest.raises(ConfigError, match=message):
        run_commands.quality(commands.Quality("run"))
    for option in ("features", "layer"):
        with pytest.raises(ConfigError, match=f"^--{option}: wanted none for a model of strings, which are compared as molecules, got x$"):
            run_commands.quality(commands.Quality("run", **{option: "x"}))
    for feature in (Tokens(5, 4), Points(2)):
        other = SimpleNamespace(config=SimpleNamespace(features={"x": feature}, modelled="x"), sample=lambda key, n: None)
        opened(monkeypatch, other)
        with pytest.raises(ConfigError, match="^RUN: wanted a model that draws strings of characters, which are molecules in SMILES, got "):
            run_commands.sample(commands.Sample("run", molecules=True, out="x" + feature.ending))


def test_the_picture_beside_the_text(monkeypatch, tmp_path, capfd):
    opened(monkeypatch, Eight())
    out = tmp_path / "drawn.txt"
    assert run_commands.sample(commands.Sample("run", n=8, molecules=True, out=str(out))) == 0
    assert out.read_text() == "".join(f"{string}\n" for string in DRAWN)
    picture = figures.pixels((tmp_path / "drawn.png").read_bytes())
    width, height = molecules.CELL
    assert picture.shape == (3 * (height + figures.GAP) + figures.GAP, 3 * (width + figures.GAP) + figures.GAP, 3)
    said, err = capfd.readouterr()
    assert said.splitlines()[-1] == f"5 of them are molecules, the others are crossed out: {tmp_path / 'drawn.png'}" and err == ""
    run_commands.sample(commands.Sample("run", n=8, out=str(tmp_path / "text.txt")))
    assert not Path(tmp_path / "text.png").exists()


def test_molecules_are_drawn_and_other_strings_are_crossed_out():
    width, height = molecules.CELL
    grid = molecules.molecule_grid(["c1ccccc1", "C(" * 200, "", "C", "Nß\n"], columns=5)
    assert grid.shape == (height + 2 * figures.GAP, 5 * (width + figures.GAP) + figures.GAP, 3)
    cells = [grid[figures.GAP : -figures.GAP, figures.GAP + i * (width + figures.GAP) :][:, :width] for i in range(5)]
    crossed = [bool((cell[2, 2:5] != 255).any() and (cell[-3, 2:5] != 255).any()) for cell in cells]
    assert crossed == [False, True, True, False, True]
    assert all((cell < 200).any() for cell in cells)
    twice = molecules.molecule_grid(["CCO", "OCC"], columns=2)
    assert (twice[:, : width // 2] != 255).any()
    with pytest.raises(ConfigError, match="images: wanted at least one image"):
        molecules.molecule_grid([])


def test_the_page_on_molecules(monkeypatch, tmp_path, capfd):
    """Its commands and its Python, as they stand there, on a small file and few steps."""
    monkeypatch.chdir(tmp_path)
    Path("my_molecules.smi").write_text("".join(f"{string} name\n" for string in simple_molecules()[::20]))
    commands_shown = re.search(r"```\n(jaxgen train .*?)```", PAGE, re.DOTALL)[1].splitlines()
    assert [line.split()[1] for line in commands_shown] == ["train", "evaluate", "sample", "complete", "quality"]
    tiny = ["--train.steps=20", "--train.eval_every=20", "--train.batch_size=16", "--model.width=16", "--optimizer.learning_rate=0.01"]
    tiny += ["--optimizer.warmup_steps=0"]
    for line in commands_shown:
        words = line.split()[1:]
        assert main(words + (tiny if words[0] == "train" else [])) == 0, line
        out, err = capfd.readouterr()
        assert err == "", line
    assert Path("runs/molecules/samples.png").exists() and len(Path("runs/molecules/samples.txt").read_text().splitlines()) == 64
    names = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)).replace("`_2`", "`internal_diversity_2`"))
    assert names == [name for name in OF_MOLECULES if "@" not in name]
    assert [line.split()[0] for line in out.splitlines() if line.startswith(tuple(names))] == names
    code, reinforced = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    Path("page.py").write_text(code + reinforced.replace("steps=150, strings=128", "steps=2, strings=8"))
    found = runpy.run_path("page.py")
    assert found["result"]["n"] == 100 and len(capfd.readouterr().out.split()) == 6  # three numbers of each part
    assert all(string.startswith("CCOC(=O)") for string in found["completed"]) and Path("completed.png").exists()
