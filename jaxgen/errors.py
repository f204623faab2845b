"""Errors that a user can act on: one line that names the argument, what was wanted and what came.

Each class carries the exit code of the command line (the list is in README.md, "Interruption and exit codes").
"""


import difflib
from collections.abc import Iterable


class JaxgenError(ValueError):
    """`argument: wanted X, got Y` with an optional hint on what to do."""

    exit_code = 1

    def __init__(self, argument: str, wanted: str, got: object, hint: str = ""):
        self.argument, self.wanted, self.got, self.hint = argument, wanted, got, hint
        super().__init__(one_line(f"{argument}: wanted {wanted}, got {got}" + (f"; {hint}" if hint else "")))


class ConfigError(JaxgenError):
    """A field, an argument or a command line that cannot be used."""

    exit_code = 2


class DataError(JaxgenError):
    """A data set that is missing, empty, malformed or out of range."""

    exit_code = 3


class CheckpointError(JaxgenError):
    """A checkpoint that is missing, damaged or of another model."""

    exit_code = 4


class NonFiniteError(JaxgenError):
    """A loss or gradient in training (the update is then not applied) or a log-probability in evaluation is NaN or infinite."""

    exit_code = 5


def one_line(text: str) -> str:
    """The text with line breaks and other control characters, which the name of a file may have, written as in Python: `\\n`."""
    return "".join(letter if letter not in "\x85\u2028\u2029" and letter >= " " else repr(letter)[1:-1] for letter in text)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The hint `did you mean X?` with the name most similar to `name`; "" if none is similar."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {close[0]}?" if close else ""


def shown(value: object) -> str:
    """The repr of a value on one line of at most 80 characters; "nothing" for ""."""
    text = "nothing" if isinstance(value, str) and not value else " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
