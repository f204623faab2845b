"""The `jaxgen` command: looks at the first word and only then imports jax, so that `--help` and a mistyped command answer at once."""

import sys
from collections.abc import Sequence

import jaxgen
from jaxgen.processes import interruption, memory  # what takes longer is imported after `begin`

COMMANDS = {
    "train": "train a model, or resume: jaxgen train MODEL [--field value ...]",
    "evaluate": "bits/dim of the test set with its standard error: jaxgen evaluate RUN",
    "quality": "samples beside real images, in a classifier's features: jaxgen quality RUN --features CLASSIFIER_RUN",
    "sample": "draw new images into a PNG grid: jaxgen sample RUN --n 64",
    "complete": "complete images of the test set: jaxgen complete RUN --keep top",
    "upscale": "large images for the small ones of the test set: jaxgen upscale RUN",
    "reconstruct": "images of the test set beside what their codes decode to: jaxgen reconstruct RUN",
    "interpolate": "what decodes from codes between two images: jaxgen interpolate RUN --way spherical",
    "traverse": "what decodes where one number of a code is changed: jaxgen traverse RUN",
    "codemap": "the codes of the test set in two dimensions, coloured by class: jaxgen codemap RUN",
    "neighbours": "samples beside their nearest training examples, a check on memorising: jaxgen neighbours RUN",
    "classify": "accuracy of a class-conditional model as a classifier: jaxgen classify RUN",
    "attack": "accuracy of a classifier on images made to fool it, and a picture: jaxgen attack RUN --attack pgd --eps 0.1 0.2",
    "bench": "sampling throughput, naive, cached and fixed-point: jaxgen bench RUN",
    "show": "configuration, parameters and checkpoints: jaxgen show RUN",
}
EPILOG = """jaxgen COMMAND --help, or jaxgen help COMMAND, lists the options of a command; jaxgen --version prints the version.
Errors are one line; --debug adds the traceback.
exit codes: 0 done, 1 bug, 2 wrong argument, 3 data, 4 checkpoint, 5 loss not finite,
            74 output cannot be written, 75 training stopped by SIGTERM and saved (run it again), 130 Ctrl-C; a training is saved"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `jaxgen COMMAND ...` and return its exit code. argv: the words after `jaxgen`; None: those that this process was started with."""
    if argv is None:
        interruption.begin()
        memory.keep_freed()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"] and words[1:]:  # jaxgen help train: as jaxgen train --help; jaxgen help trian: as jaxgen trian
        words = [words[1], "--help"] if words[1] in COMMANDS else words[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        return _printed(_help())
    if words[0] == "--version":
        return _printed(f"jaxgen {jaxgen.__version__}")
    if words[0] not in COMMANDS:
        from jaxgen.errors import ConfigError, did_you_mean
        from jaxgen.processes.printing import say

        hint = did_you_mean(words[0], [*COMMANDS, "help", "--help", "--version"])
        error = ConfigError("command", "one of " + ", ".join(COMMANDS), repr(words[0]), hint)
        say(f"jaxgen: {error}", sys.stderr)
        return error.exit_code
    from jaxgen import commands

    return commands.guarded(lambda rest: _run(words[0], rest), words[1:])


def _run(name: str, words: list[str]) -> int:
    """The exit code of a command, whose options are read before jax is imported."""
    from jaxgen import commands

    options = None if name == "train" else commands.parse(name, words)
    from jaxgen import cli

    return cli.train_command(words) if options is None else cli.execute(options)


def _help() -> str:
    commands = "\n".join(f"  {name:<11} {summary}" for name, summary in COMMANDS.items())
    return f"usage: jaxgen COMMAND ...\n\nTrain, evaluate and use generative models in JAX.\n\n{commands}\n\n{EPILOG}"


def _printed(text: str) -> int:
    """Print a text; the exit code."""
    from jaxgen.processes.printing import output_code

    try:
        print(text)
    except OSError:
        return output_code(after_error=True) or 0
    return output_code() or 0


if __name__ == "__main__":
    sys.exit(main())
