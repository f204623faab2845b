"""The jaxgen command, and the entry point of every experiment script.

python -m experiments.gated_pixelcnn_digits [--laptop] [--dry-run] [--restart] [--debug] [--model.width 64 ...]
jaxgen train gated_pixelcnn --data.name my_images.npz
jaxgen evaluate | sample | complete | upscale | bench | show  RUN

A script takes these commands too, for runs of its own model: python my_model.py sample RUN
"""

import argparse
import difflib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import numpy as np
from etils import epath
from flax import nnx

from jaxgen import benchmark, config, sharding, trained
from jaxgen.checks import interpolate
from jaxgen.data import DataConfig
from jaxgen.data.images import SPLITS
from jaxgen.errors import ConfigError, JaxgenError
from jaxgen.experiment import (
    GRID,
    INTERRUPTED,
    KEEP,
    Experiment,
    complete_images,
    draw,
    draw_for,
    dry_run,
    finish,
    has,
    load_data,
    print_evaluation,
    small_shape,
    train,
    upscale_images,
    vector_size,
    write_grid,
)
from jaxgen.models import MODELS
from jaxgen.runs import checkpoint, figures, report
from jaxgen.sampling import METHODS

__all__ = ["Experiment", "command", "main"]

PICTURES = {"sample": "samples.png", "complete": "completions.png", "upscale": "upscaled.png"}
"""The commands that draw images, and the file in RUN that they write."""
SIZES = {"--model.image_shape", "--model.levels"}
"""What `jaxgen train MODEL` takes from the data unless it is given."""
FLAGS = {
    "--laptop": "the small configuration of the script, for a CPU",
    "--dry-run": "print parameters, shapes, memory and sharding; compute nothing, read no data",
    "--restart": "delete the checkpoints of an earlier run in workdir",
    "--debug": "a traceback with every error",
}


# --- Entry points -------------------------------------------------------------------------------------------------------------------


def main(experiment: Experiment, laptop: Experiment | None = None, argv: Sequence[str] | None = None) -> None:
    """The body of an experiment script: train (or resume), evaluate, sample, plot; then exit with the documented code.

    `experiment.model` is a configuration of `jaxgen.models`, or any frozen dataclass with a method `build(rngs)` that makes a model. If the
    first word is a command, it works on a run of this script: `python my_model.py evaluate RUN`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    script = sys.modules["__main__"]
    prog = f"python -m {script.__spec__.name}" if script.__spec__ else f"python {os.path.basename(sys.argv[0])}"
    if argv and argv[0] in COMMANDS:
        sys.exit(command(argv[0], argv[1:], prog, [type(experiment.model)]))
    if "--laptop" in argv and laptop is not None:
        experiment = laptop
    flags = [flag for flag in FLAGS if laptop is not None or flag != "--laptop"]
    sys.exit(guarded(lambda rest: run(experiment, rest, prog, script.__doc__, flags, COMMANDS), argv))


def guarded(command: Callable[[list[str]], int], argv: Sequence[str]) -> int:
    """Run a command; an error is one line on stderr and its exit code, with a traceback only under --debug."""
    debug = "--debug" in argv
    try:
        return command([word for word in argv if word != "--debug"])
    except KeyboardInterrupt:
        print("jaxgen: interrupted; checkpoints that were saved before are intact", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `jaxgen show RUN | head` has seen enough; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  (the last resort: one line, and the traceback under --debug)
        if debug:
            traceback.print_exc()
        known = isinstance(error, JaxgenError)
        text = str(error) if known else f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:500]}; --debug shows where"
        print(f"jaxgen: {text}", file=sys.stderr)
        return error.exit_code if known else 1


def run(
    experiment: Experiment,
    argv: Sequence[str],
    prog: str,
    description: str | None,
    flags: Sequence[str],
    commands: Iterable[str] = (),
) -> int:
    """Parse the overrides, train to the end and write the final report; returns the exit code. `commands` are those of the script."""
    if commands and argv and not argv[0].startswith("-"):
        close = difflib.get_close_matches(argv[0], commands, n=1)
        hint = f"did you mean {close[0]}?" if close else ""
        raise ConfigError("command", f"one of {', '.join(commands)}, or --field value to train", repr(argv[0]), hint)
    about = [description or "", "", f"Commands for a run of this script: {prog} {' | '.join(commands)} RUN", ""][: 4 if commands else 2]
    about += ["Flags:", *(f"  {flag:<10} {FLAGS[flag]}" for flag in flags)]
    experiment = config.parse(experiment, [word for word in argv if word not in flags], "\n".join(about), prog)
    sharding.start_distributed()
    sharding.check_batch_size(experiment.train.batch_size, parts=experiment.train.accumulate)
    if "--dry-run" in argv:
        return dry_run(experiment)
    code = train(experiment, restart="--restart" in argv)
    if code == 0:
        finish(experiment)
    return code


# --- Commands -----------------------------------------------------------------------------------------------------------------------


def command(name: str, words: Sequence[str], prog: str = "jaxgen", models: Sequence[type] = ()) -> int:
    """`jaxgen NAME ...`: the exit code. `models` are configuration classes that a run may name beside those of `jaxgen.models`."""
    if name == "train":
        return guarded(train_command, words)
    return guarded(lambda rest: COMMANDS[name](_parse(name, rest, prog), models), words)


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, exit code 2, the nearest option."""

    def error(self, message: str):
        message = re.sub(r"(?<=choose from ).*", lambda choices: choices[0].replace("'", ""), message)  # Python 3.14 has no quotes
        kinds = (
            (r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", lambda name, got, all: (name, f"one of {all}", got)),
            (r"argument (\S+): invalid (.*) value: (.*)", lambda name, kind, got: (name, f"one {kind}", got)),
            (r"argument (\S+): expected one argument", lambda name: (name, "a value", "nothing")),
            (r"the following arguments are required: (\S+)", lambda name: (name, "a run directory", "nothing")),
            (r"unrecognized arguments: (--[^\s=]+).*", self._unknown),
            (r"unrecognized arguments: (.*)", lambda words: (self.prog, "one run directory and options", repr(words))),
        )
        for pattern, facts in kinds:
            if found := re.fullmatch(pattern, message):
                raise ConfigError(*facts(*found.groups()))
        raise ConfigError(self.prog, "the options that --help lists", message)

    def _unknown(self, name: str) -> tuple[str, str, str, str]:
        names = [option for action in self._actions for option in action.option_strings]
        close = difflib.get_close_matches(name, names, n=1)
        return name, "a known option", "an unknown one", f"did you mean {close[0]}?" if close else "see --help"


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _seed(text: str) -> int:
    if not 0 <= (value := int(text)) < 2**32:
        raise ValueError
    return value


_seed.__name__ = "integer in 0..2**32-1"
_positive.__name__ = "positive integer"  # argparse says "invalid positive integer value: '0'"


def _parse(name: str, words: Sequence[str], prog: str) -> argparse.Namespace:
    """The options of a command that works on a run."""
    parser = _Parser(prog=f"{prog} {name}", description=COMMANDS[name].__doc__, allow_abbrev=False)
    if name == "bench":
        return benchmark.parse(parser, words)
    parser.add_argument("run", metavar="RUN", help="run directory, local or gs://")
    parser.add_argument("--step", type=_positive, help="checkpoint (default: the best in validation, else the newest)")
    parser.add_argument("--debug", action="store_true", help="a traceback with every error")
    if name in ("evaluate", "complete", "upscale"):
        parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    if name == "evaluate":
        parser.add_argument("--batch_size", type=_positive, help="default: as in training; the result does not depend on it")
        parser.add_argument("--samples", type=_positive, default=1, help="draws per image of a bound; k of the importance-weighted bound")
        parser.add_argument("--bound", choices=("elbo", "importance"), default="elbo", help="which lower bound (default: elbo)")
    if name in PICTURES:
        parser.add_argument("--n", type=_positive, default=GRID, help=f"images (default: {GRID})")
        parser.add_argument("--label", type=int, help="class, for class-conditional models (default: each in turn, or the image's own)")
        parser.add_argument("--temperature", type=float, default=1.0, help="below 1 sharpens (default: 1)")
        parser.add_argument("--seed", type=_seed, default=0, help="the same seed draws the same images (default: 0)")
        parser.add_argument("--out", help=f"the PNG file (default: {PICTURES[name]} in RUN)")
    if name == "sample":
        parser.add_argument("--to", type=int, help="with --label: every row of the grid goes from that class to this one, mixing the two")
        parser.add_argument("--method", choices=METHODS, help="autoregressive models: in float32 all give the same images (cached)")
    if name == "complete":
        parser.add_argument("--keep", choices=KEEP, default="top", help="the pixels that are given (default: top)")
    return parser.parse_args(words)


def train_command(words: list[str]) -> int:
    """Train a model of the list on any data set; image shape and levels come from the data unless given."""
    names = {module_name(model): config_class for config_class, model in MODELS.items()}
    name, words = (words[0], words[1:]) if words else ("nothing", [])
    if name in ("-h", "--help"):
        print("usage: jaxgen train MODEL [--field value ...]\n")
        print(f"MODEL is one of {', '.join(names)}; jaxgen train MODEL --help lists its fields.")
        return 0
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise ConfigError("MODEL", "one of " + ", ".join(names), name, f"did you mean {close[0]}?" if close else "")
    experiment = Experiment(names[name](), workdir=f"runs/{name}")
    missing = SIZES - {word.partition("=")[0] for word in words}
    if not {"-h", "--help", "--dry-run"} & set(words):
        words = _sizes_of_data(experiment, words, missing) + words
    elif "--dry-run" in words and missing and (other := _data(experiment, words)) != experiment.data:
        print(f"a dry run reads no data: the real run takes {' and '.join(sorted(missing))} from {other.name}; give them to see its sizes")
    about = f"Train {name}; the image shape and the levels come from the data unless given."
    return run(experiment, words, f"jaxgen train {name}", about, ("--dry-run", "--restart", "--debug"))


def module_name(model: type) -> str:
    """The name of a model on the command line: the name of its file."""
    return model.__module__.rpartition(".")[2]


def _data(experiment: Experiment, words: list[str]) -> DataConfig:
    """The data set that the command line names."""
    return config.parse(experiment, [word for option in _options(words) if option[0].startswith("--data.") for word in option]).data


def _sizes_of_data(experiment: Experiment, words: list[str], missing: set[str]) -> list[str]:
    """--model.image_shape and --model.levels of the data set, those that are missing on the command line."""
    dataset = _data(experiment, words).load("train")
    sizes = {"--model.image_shape": ",".join(map(str, dataset.image_shape)), "--model.levels": dataset.levels}
    return [f"{name}={value}" for name, value in sizes.items() if name in missing]


def _options(words: list[str]) -> list[list[str]]:
    """The words of each option together: ["--a", "1", "--b=2"] -> [["--a", "1"], ["--b=2"]]."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    return [group for group in groups if group]


def _open(options: argparse.Namespace, models: Sequence[type]):
    """The experiment and the model of a run."""
    saved = checkpoint.read_config(options.run)
    experiment = config.from_json([Experiment, *trained.classes(saved.get("model", {}), models)], saved)
    return experiment, trained.load(options.run, step=options.step, models=models)


def evaluate(options: argparse.Namespace, models: Sequence[type] = ()) -> int:
    """The metric of a split with its standard error, beside the rulers."""
    experiment, model = _open(options, models)
    batch_size = options.batch_size or experiment.train.batch_size
    print_evaluation(experiment, model, load_data(experiment, options.split), batch_size, options.samples, options.bound)
    return 0


def sample(options: argparse.Namespace, models: Sequence[type] = ()) -> int:
    """A PNG grid of samples, and images per second; a model that is given vectors draws for those of the test images."""
    experiment, model = _open(options, models)
    extra = _sampler_options(model, options, temperature=1.0, method=None)
    if has(model, "mesh") and extra.get("method") is None and jax.local_device_count() == jax.device_count() > 1:
        extra["mesh"] = sharding.make_mesh()
    out = _out(options, PICTURES["sample"])
    label = options.label if options.to is None else _between(model, options)
    drawn = partial(draw_for, model, load_data(experiment, "test")) if vector_size(model) else partial(draw, model)
    seconds = []
    for _ in range(2):  # the first call compiles
        start = time.perf_counter()
        samples = drawn(jax.random.key(options.seed), options.n, label, **extra)
        seconds.append(time.perf_counter() - start)
    write_grid(out, samples, model)
    print(f"{options.n} samples, {options.n / seconds[1]:.1f} images/s ({max(seconds[0] - seconds[1], 0):.1f} s to compile): {out}")
    return 0


def _between(model, options: argparse.Namespace):
    """Weights of the classes [n, num_classes] from --label to --to, once for each row of the grid."""
    classes, columns = getattr(model.config, "num_classes", 0), figures.columns_of(options.n)
    if not classes or options.label is None:
        raise ConfigError("--to", "--label, and a class-conditional model", "no label" if classes else type(model).__name__)
    return np.asarray(interpolate(options.label, options.to, max(columns, 2), classes))[np.arange(options.n) % columns]


def complete(options: argparse.Namespace, models: Sequence[type] = ()) -> int:
    """Images of a split completed from a given part, the given pixels marked."""
    experiment, model = _open(options, models)
    if not has(model, "known"):
        raise ConfigError("RUN", "a model that can complete images", type(model).__name__)
    extra = _sampler_options(model, options, temperature=1.0)
    out = _out(options, PICTURES["complete"])
    dataset = load_data(experiment, options.split)
    complete_images(model, dataset, options.keep, options.n, out, jax.random.key(options.seed), options.label, **extra)
    print(f"{options.n} completions, {options.keep} given (marked orange): {out}")
    return 0


def upscale(options: argparse.Namespace, models: Sequence[type] = ()) -> int:
    """Images of a split drawn from their small ones, which are shown enlarged and marked."""
    experiment, model = _open(options, models)
    if small_shape(model) is None:
        raise ConfigError("RUN", "a model that upscales images (low_resolution is set)", type(model).__name__)
    if options.n < 2:
        raise ConfigError("--n", "2 or more: a small image, and then draws from it", options.n)
    extra = _sampler_options(model, options, temperature=1.0)
    out = _out(options, PICTURES["upscale"])
    dataset = load_data(experiment, options.split)
    upscale_images(model, dataset, options.n, out, jax.random.key(options.seed), options.label, **extra)
    print(f"{options.n} pictures, every fourth a small image (marked orange) and then draws from it: {out}")
    return 0


def _out(options: argparse.Namespace, name: str):
    """Where the picture goes, checked before anything is drawn."""
    return report.check_out(options.out or epath.Path(options.run) / name, ".png")


def _sampler_options(model, options: argparse.Namespace, **defaults) -> dict:
    """The options of the sampler that differ from their defaults; an error where the model's sampler has no such option."""
    given = {name: getattr(options, name) for name, default in defaults.items() if getattr(options, name) != default}
    for name in given:
        if not has(model, name):
            raise ConfigError(f"--{name}", "a model whose sampler takes it", type(model).__name__)
    return given


def bench(options: argparse.Namespace, models: Sequence[type] = ()) -> int:
    """Sampling and training speed in images per CPU second, beside the peak of this machine's matrix products."""
    return benchmark.run(options, _open(options, models)[1] if options.run else None)


def show(options: argparse.Namespace, models: Sequence[type] = ()) -> int:
    """Configuration, parameters, checkpoints and their validation metrics."""
    experiment, model = _open(options, models)
    print(json.dumps(config.to_json(experiment), indent=2))
    print(f"parameters  {sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))):,}")
    for step, metrics in checkpoint.list_metrics(options.run).items():
        print(f"step {step:>8}  " + "  ".join(f"{name} {value:.6g}" for name, value in metrics.items() if value is not None))
    return 0


COMMANDS = {"evaluate": evaluate, "sample": sample, "complete": complete, "upscale": upscale, "bench": bench, "show": show}
