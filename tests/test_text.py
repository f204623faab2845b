"""Strings from files and from the numbers, as tokens."""

import numpy as np
import pytest

from jaxgen import data
from jaxgen.data.text import LONGEST, decode, encode, number_words, read_lines, tokenised
from jaxgen.errors import DataError


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
