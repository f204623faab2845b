"""Strings as tokens: text files with one string a line, the English names of the numbers from 1 to 999, and simple molecules in SMILES.

A file ends with .txt or .smi, in small letters or capitals, is UTF-8 and has one string a line; of a line of an .smi file only the first
word is read (the rest is the molecule's name). White space at the end of a line is dropped. The symbols are the distinct characters of
the file, sorted by code point; token i + 1 is symbol i. Token 0 ends a string, and the places after it are 0. Rows are one longer than the
longest string, so every string has a stop token.

A model of strings keeps its symbols and its row length: for a run that has them, every text is coded by these (`Tokens` of the run), not by
its own, and a line with another character, or too long for its stop token, is an error.

Splits: a fixed permutation of the lines, the last 10 % test, the 10 % before them validation, the rest train. Symbols and row length
are those of the whole file in every split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from jaxgen.data.arrays import ArraySource
from jaxgen.data.features import Feature, Tokens, smallest_unsigned
from jaxgen.data.images import fraction
from jaxgen.data.kind import Kind
from jaxgen.data.simple_molecules import simple_molecules
from jaxgen.errors import DataError, shown

LONGEST = 1000
"""Most characters in a line; a longer line suggests a file without line breaks, and is refused."""
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
    """The strings of a file. DataError (file and line) for an unreadable or empty file, and for a line that is blank, not UTF-8, too
    long or has a zero byte."""
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
        if path.suffix.lower() == ".smi" and string.split():
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
    """Tokens [N, length] of strings: token i + 1 for symbols[i], then zeros. DataError for a
    character that is no symbol and for a string of more than `length` characters."""
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
    """The strings as tokens: `symbols` are the characters that occur, `length` is that of the longest string plus 1."""
    symbols = tuple(sorted(set("".join(strings))))
    length = max(map(len, strings)) + 1
    return Strings(encode(strings, symbols, length, origin), Tokens(length, len(symbols) + 1, symbols))


def coded_by(strings: Sequence[str], feature: Tokens, origin: str) -> Strings:
    """The strings as tokens by the symbols and the length of a model, each with its stop token.

    Raises DataError with the number of the line for a character that is no symbol, and for a string of `feature.length` characters or more.
    """
    known = set(feature.symbols)
    for number, string in enumerate(strings, 1):
        if len(string) >= feature.length:
            hint = "a model keeps the length of the strings that it was begun with"
            raise DataError(f"{origin}:{number}", f"at most {feature.length - 1} characters, as the model has", len(string), hint)
        if unknown := [(place, symbol) for place, symbol in enumerate(string, 1) if symbol not in known]:
            place, symbol = unknown[0]
            wanted = f"only the model's {len(known)} symbols, {shown(''.join(feature.symbols))}"
            raise DataError(f"{origin}:{number}", wanted, f"{symbol!r} as character {place}", "a model keeps its symbols")
    return Strings(encode(strings, feature.symbols, feature.length, origin), feature)


def text_source(strings: Sequence[str], origin: str, split: str, coded: Feature | None = None) -> ArraySource:
    """One split of the strings, with the column "tokens"; symbols and length are those of `coded`, or if it has none of all splits."""
    whole = coded_by(strings, coded, origin) if isinstance(coded, Tokens) and coded.symbols else tokenised(strings, origin)
    source = ArraySource({"tokens": whole.tokens}, {"tokens": whole.feature}, version="1")
    return source.select(fraction(len(source), split, Path(origin), "string"))


BUNDLED = {"number_words": number_words, "simple_molecules": simple_molecules}
"""Name -> strings of the sets that need no file."""


def _load(place: str | Path, split: str, config: Any) -> ArraySource:
    strings = BUNDLED[place]() if place in BUNDLED else read_lines(place)
    return text_source(strings, config.name, split, getattr(config, "coded", None))


KIND = Kind(
    _load,
    names=tuple(BUNDLED),
    files=f"a text file ({', '.join(ENDINGS)}) with one string a line",
    endings=ENDINGS,
    reads=lambda path: path.suffix.lower() in ENDINGS,
)
