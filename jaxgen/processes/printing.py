"""How a run prints: whatever happens to the output, the run goes on."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

OUTPUT_FAILED = 74
"""Exit code of a command whose output cannot be written."""


def say(text: str, file: Any = None) -> None:
    """Print a line on the text file `file` (None: stdout) and flush it; raises nothing.

    Letters that the file's encoding does not have are written as escapes (\\u017e). A file that cannot be written (its reader has left, its
    disk is full) is replaced by the null device; stderr says so once.
    """
    file = sys.stdout if file is None else file
    if file is None:  # a program without a console
        return
    try:
        print(printable(text, file), file=file, flush=True)
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        _drop(file)
        if file is not sys.stderr and sys.stderr is not None:
            cause = getattr(error, "strerror", None) or error
            say(f"jaxgen: the output cannot be written ({cause}); nothing more is printed there, and the run goes on", sys.stderr)


def output_code(after_error: bool = False) -> int | None:
    """The exit code of a command whose stdout cannot be written, None where all that it printed has been written.

    after_error: a write may have failed; then a stdout without a buffer, which keeps nothing to try again, is tried with an empty line.
    0: the reader has left, as in `jaxgen show RUN | head`. OUTPUT_FAILED, with a line on stderr: any other reason, such as a full disk.
    """
    try:
        if after_error and getattr(sys.stdout, "write_through", False):
            print()
        print(end="", flush=True)
    except OSError as error:
        _drop(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return 0
        say(f"jaxgen: the output cannot be written ({error.strerror or error})", sys.stderr)
        return OUTPUT_FAILED
    return None


def printable(text: str, file: Any) -> str:
    """The text with escapes (\\u017e) for letters that the file's encoding does not have."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _drop(file: Any) -> None:
    """All later writes to the file, and what its buffer still holds, go to the null device."""
    with suppress(OSError, ValueError):  # a file that is not the system's has no number
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, file.fileno())
        finally:
            os.close(null)


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Silences these loggers, for what also raises an error that we report: on a full disk orbax logs a traceback for every array, and
    TFDS warns of a folder that it is about to make."""
    import logging

    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    try:
        for logger in levels:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
