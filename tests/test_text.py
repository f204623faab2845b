"""Strings from files and from the numbers, as tokens."""

import numpy as np
import pytest

from jaxgen import data
from jaxgen.data import tokenizers
from jaxgen.data.features import Tokens
from jaxgen.data.text import LONGEST, beginning, coded_by, decode, encode, number_words, read_lines, tokenised
from jaxgen.errors import ConfigError, DataError


def test_the_number_words():
    words = number_words()
    assert len(words) == len(set(words)) == 999
    assert [words[n - 1] for n in (1, 10, 13, 20, 21, 99, 100, 101, 110, 123, 999)] == [
        "one",
        "ten",
        "thirteen",
        "twenty",
        "twenty-one",
        "ninety-nine",
        "one hundred",
        "one hundred and one",
        "one hundred and ten",
        "one hundred and twenty-three",
        "nine hundred and ninety-nine",
    ]


def test_tokens_and_back():
    made = tokenised(["ba", "c", "abc"], "here")
    assert made.feature.symbols == ("a", "b", "c") and made.feature.vocabulary == 4 and made.feature.length == 4
    np.testing.assert_array_equal(made.tokens, [[2, 1, 0, 0], [3, 0, 0, 0], [1, 2, 3, 0]])
    assert made.tokens.dtype == np.uint8 and made.feature.check(made.tokens, "x") is not None
    assert decode(made.tokens, made.feature.symbols) == ["ba", "c", "abc"]
    with pytest.raises(DataError, match=r"here\[1\]: wanted characters of 'ab', got 'z'"):
        encode(["a", "z"], "ab", 3, "here")
    with pytest.raises(DataError, match=r"here\[0\]: wanted at most 2 characters, got 3"):
        encode(["aaa"], "ab", 2, "here")


def test_files(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffzwölf\r\neins  \n".encode())
    assert read_lines(tmp_path / "a.txt") == ["zwölf", "eins"]
    (tmp_path / "b.smi").write_text("CCO ethanol\nC\tmethane\n")
    assert read_lines(tmp_path / "b.smi") == ["CCO", "C"]
    (tmp_path / "B.SMI").write_text("CCO ethanol\nC\tmethane\n" * 5)
    assert data.load(str(tmp_path / "B.SMI"), "train").features["tokens"].symbols == ("C", "O")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "x.txt: wanted one string a line, got an empty file"),
        (b"a\n\nb\n", "x.txt:2: wanted a string, got a blank line; remove it"),
        (b"a\nb\xff\n", "x.txt:2: wanted UTF-8, got byte 0xff at column 2; save the file as UTF-8"),
        (b"a\n" + b"b" * (LONGEST + 1), f"x.txt:2: wanted at most {LONGEST} characters, got {LONGEST + 1}; one string a line"),
        (b"a\0b\n", "x.txt:1: wanted text, got a zero byte"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, content, message):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DataError) as error:
        read_lines(tmp_path / "x.txt")
    assert str(error.value).removeprefix(f"{tmp_path}/") == message


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="wanted a text file that can be read, got Is a directory"):
        read_lines(tmp_path)


# --- SMILES -------------------------------------------------------------------------------------------------------------------------

MOLECULES = ["C[C@@H](N)C(=O)[O-]", "Clc1ccc(Br)cc1", "[nH]1cccc1", "C%12CC%12", "F/C=C\\I", "[Na+].[Cl-]", "CO>>C%(100)C%(100)"]
MOLECULES += ["Sc1cnoc1"]
SPLIT = [
    ["C", "[C@@H]", "(", "N", ")", "C", "(", "=", "O", ")", "[O-]"],
    ["Cl", "c", "1", "c", "c", "c", "(", "Br", ")", "c", "c", "1"],
    ["[nH]", "1", "c", "c", "c", "c", "1"],
    ["C", "%12", "C", "C", "%12"],
    ["F", "/", "C", "=", "C", "\\", "I"],
    ["[Na+]", ".", "[Cl-]"],
    ["C", "O", ">>", "C", "%(100)", "C", "%(100)"],
    ["S", "c", "1", "c", "n", "o", "c", "1"],
]


def test_smiles_are_split_into_atoms_bonds_branches_and_rings():
    assert [tokenizers.symbols(molecule, "smiles", "here") for molecule in MOLECULES] == SPLIT
    assert tokenizers.symbols("@@", "smiles", "here") == ["@@"] and list(tokenizers.symbols("Cl", "character", "here")) == ["C", "l"]
    made = tokenised(MOLECULES, "here", "smiles")
    assert made.feature.tokenizer == "smiles" and {"Cl", "Br", "[nH]", "[C@@H]", "%12"} < set(made.feature.symbols)
    assert decode(made.tokens, made.feature.symbols) == [made.feature.text(row) for row in made.tokens] == MOLECULES
    np.testing.assert_array_equal(made.feature.counts(made.tokens), [len(molecule) + 1 for molecule in MOLECULES])
    np.testing.assert_array_equal(coded_by(MOLECULES, made.feature, "here").tokens, made.tokens)
    single = tokenised(["CCO", "c1ccoc1"], "here", "smiles")
    np.testing.assert_array_equal(coded_by(["CCO", "c1ccoc1"], single.feature, "here").tokens, single.tokens)


def test_bits_per_character_do_not_depend_on_the_tokenizer():
    """The characters of a string are counted, not its tokens; a string that fills its row has no stop token."""
    feature = Tokens(3, 4, ("C", "Cl", "[nH]"))
    np.testing.assert_array_equal(feature.counts(np.array([[1, 2, 0], [3, 0, 0], [2, 3, 1], [0, 0, 0]])), [4, 5, 7, 1])


def test_the_beginning_of_a_string_is_coded_by_a_model():
    feature = Tokens(4, 4, ("C", "Cl", "[nH]"))
    np.testing.assert_array_equal(beginning("CCl", feature, "--start"), [1, 2])
    np.testing.assert_array_equal(beginning("CCC", feature, "--start"), [1, 1, 1])
    kept = "a model keeps the length of the strings that it was begun with"
    for start, message in (
        ("CCCC", f"--start: wanted at most 3 symbols, as the model has, got 4; {kept}"),
        ("CN", "--start: wanted only the model's 3 symbols, 'C Cl [nH]', got 'N' as symbol 2; a model keeps its symbols"),
        ("C[n", "--start: wanted a SMILES string, got '[n' from character 2 on; a model keeps its tokenizer"),
        ("", "--start: wanted at least one character, got none; jaxgen sample draws strings without a given beginning"),
    ):
        with pytest.raises(DataError) as error:
            beginning(start, feature, "--start")
        assert str(error.value) == message
    with pytest.raises(DataError, match="--start: wanted a model of text, got one whose tokens are numbers"):
        beginning("C", Tokens(4, 4), "--start")


def test_what_is_wrong_with_smiles_names_file_and_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.smi").write_text("CCO\nC1CC1\nCXO\n")
    with pytest.raises(DataError) as error:
        data.load("a.smi", "train", tokenizer="smiles")
    hint = "--data.tokenizer character takes any text"
    assert str(error.value) == f"a.smi:3: wanted a SMILES string, got 'XO' from character 2 on; {hint}"
    assert len(data.load("a.smi", "train")) == 1
    (tmp_path / "one.smi").write_text("CCO\n")
    with pytest.raises(DataError, match="one.smi: wanted at least 3 strings, to split them into train, validation and test, got 1"):
        data.load("one.smi", "train")
    with pytest.raises(ConfigError, match="data.tokenizer: wanted text, which it splits into tokens, got digits; leave it out"):
        data.load("digits", "train", tokenizer="smiles")
    with pytest.raises(ConfigError, match="data.tokenizer: wanted smiles, as the model has symbols of several characters, got character"):
        data.load("a.smi", "train", tokenizer="character", coded=Tokens(9, 3, ("C", "Cl")))


# --- A folder with its own splits ---------------------------------------------------------------------------------------------------


def test_a_folder_of_text_files_has_its_own_splits(tmp_path):
    parts = {"train": [f"a{'b' * (i % 7)}" for i in range(40)], "valid": ["cab", "b"], "test": ["abbbbbbbbd"]}
    for name, lines in parts.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    loaded = {split: data.load(str(tmp_path), split) for split in ("train", "validation", "test")}
    feature = Tokens(11, 5, tuple("abcd"))  # symbols and length are those of all files
    assert {source.features["tokens"] for source in loaded.values()} == {feature}
    assert [[feature.text(row) for row in loaded[split].images] for split in loaded] == list(parts.values())
    with pytest.raises(DataError, match=r"test.txt:1: wanted at most 6 characters, as the model has, got 10"):
        data.load(str(tmp_path), "test", coded=Tokens(7, 5, tuple("abcd")))
    (tmp_path / "valid.txt").unlink()
    held = {split: [feature.text(row) for row in data.load(str(tmp_path), split).images] for split in ("train", "validation")}
    assert sorted(held["train"] + held["validation"]) == sorted(parts["train"]) and len(held["validation"]) == 4
    (tmp_path / "test.txt").unlink()
    with pytest.raises(DataError, match=r"wanted a test part \(test.txt or test.smi\), got train.txt"):
        data.load(str(tmp_path), "test")
    (tmp_path / "train.smi").write_text("a\n")
    with pytest.raises(DataError, match="wanted one train part, got train.smi and train.txt"):
        data.load(str(tmp_path), "train")


def test_a_list_of_files_beside_a_folder_of_pictures_is_no_text(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train.txt").write_text("a.png\n")
    with pytest.raises(DataError, match="picture"):
        data.load(str(tmp_path), "train")
