"""Text is coded by the symbols and the length of the run that reads it, not by its own."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import data, evaluation
from jaxgen.__main__ import main
from jaxgen.data.features import Tokens
from jaxgen.data.text import encode, number_words, tokenised
from jaxgen.errors import DataError

LINES = [f"{'ab' * (i % 4)}{'cde'[i % 3]}" for i in range(60)]  # at most 7 characters
OTHERS = ["ba", "c", "abc", "bb", "a", "cab", "acb", "b", "ccc", "aa"] * 2  # without d and e, at most 3 characters
RUN = Tokens(8, 6, tuple("abcde"))
TRAIN = ["train", "language_model", "--model.width=4", "--train.batch_size=8", "--train.eval_every=2", "--workdir=run"]
TRAIN += ["--report.samples=0", "--report.rulers=False"]
pytestmark = pytest.mark.usefixtures("no_curves")  # but for the run that all share, which is made before it


def write(name: str, lines: list[str]) -> None:
    Path(name).write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model that was trained on a.txt."""
    folder = tmp_path_factory.mktemp("vocabulary")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write("a.txt", LINES)
        write("b.txt", OTHERS)
        write("outside.txt", [*OTHERS, "abz", "ab"])
        write("long.txt", [*OTHERS[:4], "abababab", "ab"])
        assert main([*TRAIN, "--data.name=a.txt", "--train.steps=2"]) == 0
    return folder


@pytest.fixture
def there(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    capsys.readouterr()
    return folder


def test_text_is_coded_by_the_symbols_and_the_length_of_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("b.txt", OTHERS)
    alone, coded = data.load("b.txt", "train"), data.load("b.txt", "train", coded=RUN)
    assert alone.features["tokens"] == Tokens(4, 4, tuple("abc")) and coded.features["tokens"] == RUN
    assert [RUN.text(row) for row in coded.images] == [alone.features["tokens"].text(row) for row in alone.images]
    np.testing.assert_array_equal(data.load("b.txt", "train", coded=Tokens(8, 6)).images, alone.images)
    symbols = tuple(sorted({*"".join(number_words()), "!"}))
    words, own = (data.load("number_words", "test", coded=coded) for coded in (Tokens(40, len(symbols) + 1, symbols), None))
    np.testing.assert_array_equal(words.images[:, own.image_shape[0] :], 0)
    moved = np.where(own.images > symbols.index("!"), own.images + 1, own.images)
    np.testing.assert_array_equal(words.images[:, : own.image_shape[0]], moved)


def test_a_run_evaluates_text_with_fewer_symbols_and_shorter_lines(there, capsys):
    assert main(["evaluate", "run", "--data=b.txt"]) == 3
    assert capsys.readouterr().err.startswith("jaxgen: test split: wanted the 6 examples that this split had when run was trained, got 2 ")
    assert main(["evaluate", "run", "--data=b.txt", "--allow-data-change"]) == 0
    model, test = jaxgen.load("run"), data.load("b.txt", "test")
    strings = [test.features["tokens"].text(row) for row in test.images]
    tokens = jnp.asarray(encode(strings, "abcde", 8))
    bits = -np.asarray(model.log_prob(tokens)).sum() / np.log(2) / sum(len(string) + 1 for string in strings)
    assert model.config.features["tokens"] == RUN
    assert f"bits_per_character {bits:.4f}" in " ".join(capsys.readouterr().out.split())
    assert evaluation.evaluate(model, data.load("a.txt", "test"))["n"] == 6  # its own text is the same in both ways


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outside.txt", "outside.txt:21: wanted only the model's 5 symbols, 'abcde', got 'z' as character 3; a model keeps its symbols"),
        (
            "long.txt",
            "long.txt:5: wanted at most 7 characters, as the model has, got 8; "
            "a model keeps the length of the strings that it was begun with",
        ),
    ],
)
def test_what_a_run_cannot_code_is_one_line_with_its_number(there, capsys, name, message):
    assert main(["evaluate", "run", f"--data={name}", "--allow-data-change"]) == 3
    assert capsys.readouterr().err == f"jaxgen: {message}\n"
    with pytest.raises(DataError) as error:
        data.load(name, "test", coded=RUN)
    assert str(error.value) == message
    assert main([*TRAIN, f"--data.name={name}", "--train.steps=4", "--allow-data-change"]) == 3
    assert capsys.readouterr().err == f"jaxgen: {message}\n"


def completed(run: str, *words: str) -> list[str]:
    assert main(["complete", run, *words]) == 0
    return Path(run, "completions.txt").read_text().splitlines()


def test_a_run_goes_on_from_a_given_beginning(there, capsys):
    strings = completed("run", "--start=abc", "--n=20")
    assert capsys.readouterr().out == f"20 strings that begin with abc: {Path('run', 'completions.txt')}\n"
    assert len(strings) == 20 and all(string.startswith("abc") for string in strings) and len(set(strings)) > 5
    assert completed("run", "--start=abc", "--n=20") == strings != completed("run", "--start=abc", "--n=20", "--seed=1")
    assert len(set(completed("run", "--start=abc", "--n=20", "--top_k=1"))) == 1
    assert len(set(completed("run", "--start=abc", "--n=20", "--top_p=0.01"))) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--start=abz"], 3, "--start: wanted only the model's 5 symbols, 'abcde', got 'z' as character 3; a model keeps its symbols"),
        (["--start=abababab"], 3, "--start: wanted at most 7 characters, as the model has, got 8; "),
        ([], 2, '--start: wanted the beginning of the strings, got nothing; as in --start "c1ccc"'),
        (["--start=a", "--keep=left"], 2, "--keep: wanted nothing for a model of strings: --start is what is given, got left"),
        (["--start=a", "--top_p=2"], 2, "--top_p: wanted a number above 0, at most 1, got 2"),
        (["--start=a", "--steps=3"], 2, "--steps: wanted a model whose sampler takes it, got LanguageModel"),
    ],
)
def test_a_beginning_that_cannot_be_one_is_one_line(there, capsys, words, code, message):
    assert main(["complete", "run", *words]) == code
    error = capsys.readouterr().err
    assert error.startswith(f"jaxgen: {message}") and error.count("\n") == 1


def test_a_run_of_smiles_codes_and_decodes_by_its_symbols(there, capsys):
    molecules = [f"{'C' * (1 + i % 4)}(Cl){'[nH]' * (i % 3)}Br" for i in range(40)]
    write("m.smi", molecules)
    write("n.smi", [molecule.replace("Br", "[Br]") for molecule in molecules])
    train = ["train", "language_model", "--data.name=m.smi", "--data.tokenizer=smiles", "--model.network=transformer", "--model.width=8"]
    assert main([*train, "--report.samples=0", "--train.batch_size=8", "--train.steps=2", "--train.eval_every=2", "--workdir=smiles"]) == 0
    model = jaxgen.load("smiles")
    assert model.config.symbols == ("(", ")", "Br", "C", "Cl", "[nH]") and model.config.length == 11
    assert main(["sample", "smiles", "--n=6", "--top_p=0.9"]) == 0
    tokenised(Path("smiles", "samples.txt").read_text().splitlines() + ["C"], "samples", "smiles")
    assert all(string.startswith("CC(Cl") for string in completed("smiles", "--start=CC(Cl", "--n=6"))
    capsys.readouterr()
    assert main(["complete", "smiles", "--start=CC(Cl)Zn"]) == 3
    assert capsys.readouterr().err == "jaxgen: --start: wanted a SMILES string, got 'Zn' from character 7 on; a model keeps its tokenizer\n"
    assert main(["evaluate", "smiles"]) == 0
    test = data.load("m.smi", "test", tokenizer="smiles")
    characters = sum(len(test.features["tokens"].text(row)) + 1 for row in test.images)
    bits = -np.asarray(model.log_prob(jnp.asarray(test.images))).sum() / np.log(2) / characters
    out = " ".join(capsys.readouterr().out.split())
    assert f"bits_per_character {bits:.4f}" in out and "6-gram ruler" in out
    assert main(["evaluate", "smiles", "--data=n.smi", "--allow-data-change"]) == 3
    got = "n.smi:1: wanted only the model's 6 symbols, '( ) Br C Cl [nH]', got '[Br]' as symbol 5; a model keeps its symbols"
    assert capsys.readouterr().err == f"jaxgen: {got}\n"


def test_a_run_goes_on_with_its_symbols_on_other_text(there, capsys):
    write("a.txt", OTHERS)
    assert main([*TRAIN, "--data.name=a.txt", "--train.steps=4"]) == 2
    assert "model." not in capsys.readouterr().err
    assert main([*TRAIN, "--data.name=a.txt", "--train.steps=4", "--allow-data-change"]) == 0
    saved = json.loads((Path("run") / "config.json").read_text())["model"]
    assert (saved["length"], saved["vocabulary"], saved["symbols"]) == (8, 6, list("abcde"))
    assert main([*TRAIN, "--data.name=a.txt", "--train.steps=2", "--restart"]) == 0
    assert jaxgen.load("run").config.symbols == tuple("abc")
