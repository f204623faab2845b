"""Strings as tokens: text files with one string a line, the English names of the numbers from 1 to 999, and simple molecules in SMILES.

A file ends with .txt or .smi, in small letters or capitals, is UTF-8 and has one string a line; of a line of an .smi file only the first
word is read (the rest is the molecule's name). White space at the end of a line is dropped. The symbols are the distinct ones that a
tokenizer (tokenizers.py) finds, its characters if no other is named, sorted by code point; token i + 1 is symbol i. Token 0 ends a string,
and the places after it are 0. Rows are one longer than the longest string, so every string has a stop token.

A model of strings keeps its symbols and its row length: for a run that has them, every text is coded by these (`Tokens` of the run), not by
its own, and a line with another symbol, or too long for its stop token, is an error.

Splits of a file: a fixed permutation of the lines, the last 10 % test, the 10 % before them validation, the rest train. A folder with
train.txt, valid.txt and test.txt (or .smi) has its own. Symbols and row length are those of all the data in every split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from jaxgen.data.arrays import ArraySource, NoSplit
from jaxgen.data.features import Tokens, smallest_unsigned
from jaxgen.data.images import PART_NAMES, RULE, fraction, parts_of, without_held_out
from jaxgen.data.kind import Kind
from jaxgen.data.simple_molecules import simple_molecules
from jaxgen.data.tokenizers import symbols
from jaxgen.errors import ConfigError, DataError, shown

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


def encode(strings: Sequence[Sequence[str]], symbols: Sequence[str], length: int, origin: str = "strings") -> Integer[np.ndarray, "N L"]:
    """Tokens [N, length] of strings, each a sequence of symbols: token i + 1 for symbols[i], then zeros. DataError for a symbol that is
    none of `symbols` and for a string of more than `length` of them."""
    token = {symbol: i + 1 for i, symbol in enumerate(symbols)}
    tokens = np.zeros((len(strings), length), smallest_unsigned(len(symbols) + 1))
    for row, string in enumerate(strings):
        if len(string) > length:
            raise DataError(f"{origin}[{row}]", f"at most {length} characters", len(string))
        if unknown := [symbol for symbol in string if symbol not in token]:
            raise DataError(f"{origin}[{row}]", f"characters of {''.join(symbols)!r}", repr(unknown[0]))
        tokens[row, : len(string)] = [token[symbol] for symbol in string]
    return tokens


def decode(tokens, symbols: Sequence[str]) -> list[str]:
    """The strings of tokens [N, length], each up to its stop token."""
    rows = np.asarray(tokens)
    return ["".join(symbols[token - 1] for token in row[:n]) for row, n in zip(rows, Tokens.lengths(rows), strict=True)]


def tokenised(strings: Sequence[str], origin: str, tokenizer: str = "character") -> Strings:
    """The strings as tokens: `symbols` are those that occur, `length` is that of the longest string plus 1."""
    rows = _split(strings, tokenizer, origin)
    feature = _feature(rows)
    return Strings(encode(rows, feature.symbols, feature.length, origin), feature)


def coded_by(strings: Sequence[str], feature: Tokens, origin: str) -> Strings:
    """The strings as tokens by the symbols and the length of a model, each with its stop token.

    Raises DataError with the number of the line for a symbol that is none of them, and for a string of `feature.length` tokens or more.
    """
    rows = [_symbols_of(string, feature, f"{origin}:{number}") for number, string in enumerate(strings, 1)]
    return Strings(encode(rows, feature.symbols, feature.length, origin), feature)


def beginning(string: str, feature: Tokens, argument: str) -> Integer[np.ndarray, " M"]:
    """The tokens of the beginning of a string, which leaves room for one more token; DataError, as in `coded_by`, or for a model that does
    not have symbols."""
    if not feature.symbols:
        raise DataError(argument, "a model of text", "one whose tokens are numbers")
    if not string:
        raise DataError(argument, "at least one character", "none", "jaxgen sample draws strings without a given beginning")
    row = _symbols_of(string, feature, argument)
    return encode([row], feature.symbols, len(row))[0]


def _symbols_of(string: str, feature: Tokens, place: str) -> Sequence[str]:
    """The symbols of one string, checked as `coded_by` says."""
    row = symbols(string, feature.tokenizer, place, "a model keeps its tokenizer")
    unit, known = "character" if feature.tokenizer == "character" else "symbol", set(feature.symbols)
    if len(row) >= feature.length:
        hint = "a model keeps the length of the strings that it was begun with"
        raise DataError(place, f"at most {feature.length - 1} {unit}s, as the model has", len(row), hint)
    if unknown := [(number, symbol) for number, symbol in enumerate(row, 1) if symbol not in known]:
        number, symbol = unknown[0]
        wanted = f"only the model's {len(known)} symbols, {shown(('' if unit == 'character' else ' ').join(feature.symbols))}"
        raise DataError(place, wanted, f"{symbol!r} as {unit} {number}", "a model keeps its symbols")
    return row


def _split(strings: Sequence[str], tokenizer: str, origin: str) -> list[Sequence[str]]:
    """The symbols of every string; DataError with the number of the line for a string that the tokenizer cannot read."""
    hint = "--data.tokenizer character takes any text"
    return [symbols(string, tokenizer, f"{origin}:{number}", hint) for number, string in enumerate(strings, 1)]


def _feature(rows: Sequence[Sequence[str]]) -> Tokens:
    """The feature of strings given as sequences of symbols: all that occur, and room for the stop token of the longest."""
    known = tuple(sorted(set().union(*rows)))
    return Tokens(max(map(len, rows)) + 1, len(known) + 1, known)


def text_source(strings: Sequence[str], origin: str, split: str, coded: Tokens | None = None, tokenizer: str = "character") -> ArraySource:
    """One split of the strings, with the column "tokens"; symbols and length are those of `coded`, or if it is None of all splits."""
    return _source(strings, origin, coded, tokenizer).select(fraction(len(strings), split, Path(origin), "string"))


def parts_source(parts: dict[str, Path], split: str, coded: Tokens | None = None, tokenizer: str = "character") -> ArraySource:
    """One split of strings that come in files {split: path}; symbols and length as in `text_source`. Without a validation file a tenth of
    the training strings is held out. Raises NoSplit for a test split without a file."""
    if split == "test" and split not in parts:
        raise NoSplit(str(parts["train"].parent), "a test part (test.txt or test.smi)", ", ".join(path.name for path in parts.values()))
    strings = {part: read_lines(path) for part, path in parts.items()}
    if coded is None:
        coded = _feature([row for part, path in parts.items() for row in _split(strings[part], tokenizer, str(path))])
    part = split if split in parts else "train"
    source = _source(strings[part], str(parts[part]), coded, tokenizer)
    if split == "test" or "validation" in parts:
        return source
    kept, held = without_held_out(len(source), (), RULE)
    return source.select(kept if split == "train" else held)


def _source(strings: Sequence[str], origin: str, coded: Tokens | None, tokenizer: str) -> ArraySource:
    whole = tokenised(strings, origin, tokenizer) if coded is None else coded_by(strings, coded, origin)
    return ArraySource({"tokens": whole.tokens}, {"tokens": whole.feature}, version="1")


def _reads(path: Path) -> bool:
    """Whether it is a text file, or a folder whose only train part is one: train.txt beside train/ may be a list of pictures."""
    if not path.is_dir():
        return path.suffix.lower() in ENDINGS
    try:
        parts = [item for item in path.iterdir() if item.stem.lower() in PART_NAMES["train"]]
    except OSError:  # told by the kind that reads all other folders
        return False
    return bool(parts) and all(part.suffix.lower() in ENDINGS for part in parts)


BUNDLED = {"number_words": number_words, "simple_molecules": simple_molecules}
"""Name -> strings of the sets that need no file."""


def _load(place: str | Path, split: str, config: Any) -> ArraySource:
    coded, tokenizer = getattr(config, "coded", None), config.tokenizer or "character"
    coded = coded if isinstance(coded, Tokens) and coded.symbols else None
    if coded and coded.tokenizer == "smiles" and config.tokenizer == "character":
        raise ConfigError("data.tokenizer", "smiles, as the model has symbols of several characters", tokenizer)
    if isinstance(place, Path) and place.is_dir():
        return parts_source(parts_of(place, RULE, tuple(sorted(ENDINGS))), split, coded, tokenizer)
    strings = BUNDLED[place]() if place in BUNDLED else read_lines(place)
    return text_source(strings, config.name, split, coded, tokenizer)


KIND = Kind(
    _load,
    names=tuple(BUNDLED),
    files=f"a text file ({', '.join(ENDINGS)}) with one string a line, or a folder with train.txt and test.txt (or .smi)",
    endings=ENDINGS,
    reads=_reads,
)
