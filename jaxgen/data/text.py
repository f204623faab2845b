"""Strings: text files with one string a line, and the English names of the numbers from 1 to 999, as tokens.

A file ends with .txt or .smi, is UTF-8 and has one string a line; of a line of an .smi file only the first word counts, the rest is the
molecule's name. Spaces at the end of a line are left out. The symbols are all characters of the file, sorted, so token 1 is the first of
them; token 0 stops a string and fills its row up. A row has one place more than the longest string, so that every string has its stop.

Splits: a fixed permutation of the lines, the last 10 % test, the 10 % before them validation, the rest train. All splits have the symbols
and the length of the whole file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from jaxgen.data.arrays import ArraySource
from jaxgen.data.features import Tokens, smallest_unsigned
from jaxgen.data.images import fraction
from jaxgen.data.kind import Kind
from jaxgen.errors import DataError

LONGEST = 1000
"""Characters in a line: more are a file that does not have one string a line."""
ENDINGS = (".txt", ".smi")

UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
UNITS += tuple(f"{stem}teen" for stem in ("thir", "four", "fif", "six", "seven", "eigh", "nine"))
TENS = tuple(f"{stem}ty" for stem in ("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine"))


@dataclass(frozen=True)
class Strings:
    """Strings as tokens [N, length] with their feature."""

    tokens: Integer[np.ndarray, "N L"]
    feature: Tokens


def number_words() -> list[str]:
    """The names of 1 to 999: "one", "twenty-one", "one hundred and twenty-three"."""

    def below_hundred(n: int) -> str:
        if n < 20:
            return UNITS[n - 1]
        ten, unit = TENS[n // 10 - 2], n % 10
        return f"{ten}-{UNITS[unit - 1]}" if unit else ten

    def name(n: int) -> str:
        hundreds, rest = divmod(n, 100)
        words = [f"{UNITS[hundreds - 1]} hundred"] if hundreds else []
        return " and ".join(words + ([below_hundred(rest)] if rest else []))

    return [name(n) for n in range(1, 1000)]


def read_lines(path: Path) -> list[str]:
    """The strings of a file. Raises DataError (file and line) for a blank line, bytes that are not UTF-8 and a line that is too long."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(str(path), "a text file that can be read", error.strerror or str(error)) from error
    if not lines:
        raise DataError(str(path), "one string a line", "an empty file")
    strings = []
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        try:
            string = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
        except UnicodeDecodeError as error:
            got = f"byte {line[error.start]:#04x} at column {error.start + 1}"
            raise DataError(place, "UTF-8", got, "save the file as UTF-8") from error
        if path.suffix == ".smi" and string.split():
            string = string.split()[0]
        if not string.strip():
            raise DataError(place, "a string", "a blank line", "remove it")
        if len(string) > LONGEST:
            raise DataError(place, f"at most {LONGEST} characters", len(string), "one string a line")
        if "\0" in string:
            raise DataError(place, "text", "a zero byte")
        strings.append(string)
    return strings


def encode(strings: Sequence[str], symbols: Sequence[str], length: int, origin: str = "strings") -> Integer[np.ndarray, "N L"]:
    """Tokens [N, length] of strings: token i + 1 for symbols[i], then zeros. DataError for another character and for a longer string."""
    token = {symbol: i + 1 for i, symbol in enumerate(symbols)}
    tokens = np.zeros((len(strings), length), smallest_unsigned(len(symbols) + 1))
    for row, string in enumerate(strings):
        if len(string) > length:
            raise DataError(f"{origin}[{row}]", f"at most {length} characters", len(string))
        for place, character in enumerate(string):
            if character not in token:
                raise DataError(f"{origin}[{row}]", f"characters of {''.join(symbols)!r}", repr(character))
            tokens[row, place] = token[character]
    return tokens


def decode(tokens, symbols: Sequence[str]) -> list[str]:
    """The strings of tokens [N, length], each up to its stop token."""
    rows = np.asarray(tokens)
    return ["".join(symbols[token - 1] for token in row[:n]) for row, n in zip(rows, Tokens.lengths(rows), strict=True)]


def tokenised(strings: Sequence[str], origin: str) -> Strings:
    """The strings with the symbols that occur in them, and one place more than the longest has characters."""
    symbols = tuple(sorted(set("".join(strings))))
    length = max(map(len, strings)) + 1
    return Strings(encode(strings, symbols, length, origin), Tokens(length, len(symbols) + 1, symbols))


def text_source(strings: Sequence[str], origin: str, split: str) -> ArraySource:
    """One split of strings as a data set with the one column "tokens"; symbols and length are those of all the strings."""
    whole = tokenised(strings, origin)
    source = ArraySource({"tokens": whole.tokens}, {"tokens": whole.feature}, version="1")
    return source.select(fraction(len(source), split, Path(origin)))


def _load(place: str | Path, split: str, config: Any) -> ArraySource:
    return text_source(number_words() if place == "number_words" else read_lines(place), config.name, split)


KIND = Kind(
    _load,
    names=("number_words",),
    files=f"a text file ({', '.join(ENDINGS)}) with one string a line",
    endings=ENDINGS,
    reads=lambda path: path.suffix in ENDINGS,
)
