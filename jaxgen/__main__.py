"""The `jaxgen` command: parses the words and only then imports jax, so that `--help` and mistakes answer at once."""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

MODELS = sorted(path.stem for path in (Path(__file__).parent / "models").glob("*.py") if path.stem != "__init__")
METHODS = ("cached", "naive", "fixed_point")
KEEP = ("top", "bottom", "left", "right")
EXIT_CODES = """\
Exit codes: 0 done, 1 bug, 2 wrong argument, 3 data, 4 checkpoint, 5 loss not finite, 75 stopped and saved (run again), 130 Ctrl-C.
Errors are one line; --debug adds the traceback."""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line and the nearest known word."""

    def error(self, message: str) -> NoReturn:
        words = [word for action in self._actions for word in (*action.option_strings, *(action.choices or ()))]
        wrong = re.search(r"(?:invalid choice: '|unknown option: )([^' ]+)", message)
        close = difflib.get_close_matches(wrong[1], words, 1) if wrong else []
        hint = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
        print(f"jaxgen: {' '.join(message.split())}; {hint}", file=sys.stderr)
        raise SystemExit(2)


def make_parser() -> argparse.ArgumentParser:
    """All commands with their options; the namespace has `command`, `parser` and the fields named here."""
    parser = Parser(prog="jaxgen", description="Train, evaluate and use generative models in JAX.", epilog=EXIT_CODES, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    train = commands.add_parser("train", add_help=False, help="train a model, or resume: jaxgen train MODEL [--field value]")
    train.add_argument("model", metavar="MODEL", help="one of " + ", ".join(MODELS))
    train.add_argument("overrides", nargs=argparse.REMAINDER, metavar="--field value", help="jaxgen train MODEL --help lists all fields")

    evaluate = _on_run(commands, "evaluate", "bits/dim of the test set, with its standard error")
    evaluate.add_argument("--split", choices=("train", "validation", "test"), default="test")
    evaluate.add_argument("--batch_size", type=_positive, default=None, help="default: as in training")

    sample = _on_run(commands, "sample", "draw new images into a PNG grid")
    _sampling_options(sample, 64)
    sample.add_argument("--method", choices=METHODS, default=None, help="autoregressive models: all methods give the same images")

    complete = _on_run(commands, "complete", "complete images of the test set")
    complete.add_argument("--keep", choices=KEEP, default="top", help="the half that is given (default: top)")
    _sampling_options(complete, 16)

    bench = _on_run(commands, "bench", "sampling throughput: naive, cached, fixed-point; a table and JSON")
    bench.add_argument("--batch", type=_positive, nargs="+", default=[1, 16, 64], metavar="B", help="batch sizes (default: 1 16 64)")
    bench.add_argument("--out", type=Path, default=None, help="the JSON file (default: RUN/bench.json)")

    _on_run(commands, "show", "configuration, parameters, checkpoints and results of a run")
    return parser


def _on_run(commands: argparse._SubParsersAction, name: str, summary: str) -> argparse.ArgumentParser:
    """A command on a run directory."""
    parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="run directory, local or gs://")
    parser.set_defaults(parser=parser)
    parser.add_argument("--step", type=_positive, default=None, help="checkpoint (default: the best in validation, else the newest)")
    parser.add_argument("--debug", action="store_true", help="a traceback with every error")
    return parser


def _sampling_options(parser: argparse.ArgumentParser, n: int) -> None:
    parser.add_argument("--n", type=_positive, default=n, help=f"images (default: {n})")
    parser.add_argument("--label", type=int, default=None, help="class, for conditional models")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1 sharpens (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same images (default: 0)")
    parser.add_argument("--out", type=Path, default=None, help="the PNG file (default: in RUN)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"wanted a positive integer, got {text}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments, unknown = make_parser().parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unknown option: {unknown[0]}")
    from jaxgen import cli

    return cli.command(arguments)


if __name__ == "__main__":
    sys.exit(main())
