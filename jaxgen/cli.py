"""The jaxgen command, and the entry point of every experiment script.

python -m experiments.gated_pixelcnn_digits [--laptop] [--dry-run] [--restart | --from-step N] [--debug] [--model.width 64 ...]
jaxgen train gated_pixelcnn --data.name my_images.npz
jaxgen evaluate | sample | complete | upscale | bench | show  RUN

A script takes these commands too, for runs of its own model: python my_model.py sample RUN
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from etils import epath

from jaxgen import benchmark, commands, config, sharding, trained
from jaxgen import stages as staging
from jaxgen.checks import interpolate
from jaxgen.commands import Bench, Complete, Evaluate, Sample, Show, Upscale, guarded
from jaxgen.data import DataConfig, Dataset, class_names
from jaxgen.data.loading import NotThere
from jaxgen.errors import ConfigError, DataError, did_you_mean
from jaxgen.experiment import Experiment, dry_run, train
from jaxgen.models import MODELS, count_parameters
from jaxgen.processes import interruption
from jaxgen.processes.printing import printable, say
from jaxgen.reports.drawing import (
    captions,
    captions_for,
    complete_images,
    completes,
    draw,
    draw_for,
    given,
    has,
    modelled,
    small_shape,
    upscale_images,
    write_grid,
)
from jaxgen.reports.final_report import Seen, finish, load_data, print_evaluation, read_data
from jaxgen.runs import checkpoint, figures, report
from jaxgen.training import OptimizerConfig

__all__ = ["Experiment", "command", "main"]

FLAGS = {
    "--laptop": "the small configuration of the script, for a CPU",
    "--dry-run": "print parameters, shapes, memory and sharding; compute nothing, read no data",
    "--restart": "delete the checkpoints of an earlier run in workdir",
    "--from-step": "N: go back to checkpoint N, once; the later checkpoints and rows of metrics are deleted after it was read",
    "--allow-data-change": "go on, with a warning, where the data have other examples than when the run began",
    "--debug": "a traceback with every error",
}


# --- Entry points -------------------------------------------------------------------------------------------------------------------


def main(experiment: Experiment, laptop: Experiment | None = None, argv: Sequence[str] | None = None) -> None:
    """The body of an experiment script: train (or resume), evaluate, sample, plot; then exit with the documented code.

    `experiment.model` is a configuration of `jaxgen.models`, or any frozen dataclass with a method `build(rngs)` that makes a model;
    `experiment.data` a DataConfig, or a frozen dataclass that inherits from it and has its own `load(split)`. If the first word is a
    command, it works on a run of this script: `python my_model.py evaluate RUN`.
    """
    if argv is None:
        interruption.begin()
    argv = list(sys.argv[1:] if argv is None else argv)
    script = sys.modules["__main__"]
    prog = f"python -m {script.__spec__.name}" if script.__spec__ else f"python {os.path.basename(sys.argv[0])}"
    if argv and argv[0] in commands.COMMANDS:
        sys.exit(command(argv[0], argv[1:], prog, [*staging.classes(experiment.model), type(experiment.data)]))
    if "--laptop" in argv and laptop is not None:
        experiment = laptop
    flags = [flag for flag in FLAGS if laptop is not None or flag != "--laptop"]
    about = f"{script.__doc__ or ''}\n\nCommands for a run of this script: {prog} {' | '.join(commands.COMMANDS)} RUN"
    sys.exit(guarded(lambda rest: parse_train(experiment, _no_command(rest), prog, about, flags)(), argv))


def _no_command(words: list[str]) -> list[str]:
    """The words unchanged; ConfigError if the first is not an option, since it is then a mistyped command."""
    if words and not words[0].startswith("-"):
        wanted = f"one of {', '.join(commands.COMMANDS)}, or --field value to train"
        raise ConfigError("command", wanted, repr(words[0]), did_you_mean(words[0], commands.COMMANDS))
    return words


@dataclass(frozen=True)
class Train:
    """Training of an experiment to its end, with the report; dry_run only looks at shapes, restart deletes what an earlier run saved,
    from_step goes back to that checkpoint, allow_data_change goes on with other examples."""

    experiment: Experiment
    dry_run: bool = False
    restart: bool = False
    from_step: int | None = None
    allow_data_change: bool = False

    def __call__(self) -> int:
        """Train and write the report, or do the dry run; returns the exit code."""
        options = self.experiment.train
        sharding.start_distributed()
        sharding.check_batch_size(options.batch_size, parts=options.accumulate)
        if self.dry_run:
            return dry_run(self.experiment)
        return sharding.with_stack(self._to_the_end)

    def _to_the_end(self) -> int:
        code = train(self.experiment, self.restart, from_step=self.from_step, allow_data_change=self.allow_data_change)
        if code == 0:
            finish(self.experiment)
        return code


def parse_train(
    experiment: Experiment, argv: Sequence[str], prog: str, about: str, flags: Sequence[str], found: dict | None = None
) -> Train:
    """The `Train` of a command line: overrides of the experiment's fields, and the flags; `found` as in `config.parse`."""
    about = "\n".join([about, "", "Flags:", *(f"  {flag:<11} {FLAGS[flag]}" for flag in flags)])
    argv, from_step = _from_step(argv)
    words = [word for word in argv if word not in flags]
    found = (found or {}) | ({} if {"-h", "--help"} & set(words) else _of_other_runs(experiment, words))
    elsewhere = {flag: "" if flag in flags else ", which only scripts with a small configuration have (experiments/)" for flag in FLAGS}
    experiment = config.parse(experiment, words, about, prog, found, elsewhere)
    return Train(experiment, "--dry-run" in argv, "--restart" in argv, from_step, "--allow-data-change" in argv)


def _from_step(words: Sequence[str]) -> tuple[list[str], int | None]:
    """The words without `--from-step N`, and N; None without that flag."""
    options = _options(list(words))
    asked = [option for option in options if option[0].partition("=")[0].replace("_", "-") == "--from-step"]
    values = [value for option in asked for value in [*option[0].split("=", 1)[1:], *option[1:]]]
    if asked and not (len(values) == 1 and values[0].isascii() and values[0].isdecimal()):
        raise ConfigError("--from-step", "the step of a checkpoint of the run", " ".join(values) or "nothing")
    return [word for option in options if option not in asked for word in option], int(values[0]) if asked else None


def _of_other_runs(experiment: Experiment, words: list[str]) -> dict[str, object]:
    """{"model.codes.width": 64, ...}: the fields of the parts that start from other runs, as these runs saved them.

    Once this run has checkpoints, they hold these parts: then the fields come from its own config, and the other runs may be deleted.
    """
    experiment = config.parse(experiment, _only("--stages.", words) + _only("--workdir", words))
    own = {}
    if experiment.stages and "--restart" not in words and checkpoint.newest(experiment.workdir) is not None:
        own = checkpoint.read_config(experiment.workdir).get("model", {})
    found: dict[str, object] = {}

    def add(model, stages: dict, own: dict, place: str) -> None:
        for name, stage in stages.items():
            part, saved = getattr(model, name), own.get(name) or {}
            if not stage.start_from:
                add(part, stage.stages, saved, f"{place}.{name}")
                continue
            if saved:
                known = trained.classes(saved, staging.classes(part))
                begun = trained.from_saved(known, saved, f"checkpoints of {experiment.workdir}", f"config.{place}.{name}")
            else:
                begun = staging.saved_model(stage.start_from, part, "start_from")
            found.update({f"{place}.{name}.{path}": value for path, value in config.field_values(begun).items()})

    add(experiment.model, experiment.stages, own, "model")
    return found


# --- Commands -----------------------------------------------------------------------------------------------------------------------


def command(name: str, words: Sequence[str], prog: str = "jaxgen", models: Sequence[type] = ()) -> int:
    """`jaxgen NAME ...`: the exit code. `models` are classes of models and data that a run may name beside those of the library."""
    if name == "train":
        return guarded(train_command, words)
    return guarded(lambda rest: execute(commands.parse(name, rest, prog), models), words)


def execute(options, models: Sequence[type] = ()) -> int:
    """Carry out a command, a dataclass of commands.py; returns the exit code."""
    return COMMANDS[type(options)](options, models)


def train_command(words: list[str]) -> int:
    """Train a model of the list on any data set; the sizes that the data decides (`Config.sizes_from`) come from it unless given."""
    names = {module_name(model): config_class for config_class, model in MODELS.items()}
    name, words = (words[0], words[1:]) if words else ("nothing", [])
    if name in ("-h", "--help"):
        print("usage: jaxgen train MODEL [--field value ...]\n")
        print(f"MODEL is one of {', '.join(names)}; jaxgen train MODEL --help lists its fields.")
        return 0
    if name not in names:
        raise ConfigError("MODEL", "one of " + ", ".join(names), name, did_you_mean(name, names))
    model = names[name]()
    stages = staging.declared(model)
    experiment = Experiment(model, optimizer=OptimizerConfig(frozen=tuple(stages)), workdir=f"runs/{name}", stages=stages)
    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words}
    missing = {f"model.{size}" for size in names[name].sizes_from(experiment.model.features)} - given
    found: dict[str, object] = {}
    if not {"-h", "--help", "--dry-run"} & set(words):
        asked = _with_data(experiment, words)
        begun = {} if "--restart" in words else checkpoint.begun_config(asked.workdir)
        data = asked.data.as_begun(begun.get("data") or {}) if begun else asked.data  # classes are numbered by the rule of the run
        features = read_data(dataclasses.replace(asked, data=data), "train").features
        fitting = getattr(names[name], "defaults_for", lambda features: {})
        sizes = fitting(features) | names[name].sizes_from(features) | trained.kept_sizes(begun.get("model", {}))
        found = {f"model.{size}": value for size, value in sizes.items()}
    elif "--dry-run" in words and missing and (other := _with_data(experiment, words).data) != experiment.data:
        options = " and ".join(f"--{size}" for size in sorted(missing))
        print(f"a dry run reads no data: the real run takes {options} from {other.name}; give them to see its sizes")
    about = f"Train {name}; sizes that the data decides, such as the image shape and the levels, come from the data unless given."
    flags = [flag for flag in FLAGS if flag != "--laptop"]
    return parse_train(experiment, words, f"jaxgen train {name}", about, flags, found)()


def module_name(model: type) -> str:
    """The name of a model on the command line: the name of its file."""
    return model.__module__.rpartition(".")[2]


def _with_data(experiment: Experiment, words: list[str]) -> Experiment:
    """The experiment with the data set and the folder that the command line names."""
    return config.parse(experiment, _only(("--data.", "--workdir"), words))


def _only(prefixes: str | tuple[str, ...], words: list[str]) -> list[str]:
    """The words of the options whose names begin with the prefix, or with one of them."""
    return [word for option in _options(words) if option[0].startswith(prefixes) for word in option]


def _options(words: list[str]) -> list[list[str]]:
    """The words of each option together: ["--a", "1", "--b=2"] -> [["--a", "1"], ["--b=2"]]."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    return [group for group in groups if group]


def _open(options, models: Sequence[type]):
    """The experiment and the model of a run."""
    saved = checkpoint.read_config(options.run)
    known = [Experiment, DataConfig, *trained.classes(saved.get("model", {}), models)]
    if isinstance(name := saved.get("data", {}).get("class"), str) and name not in [cls.__name__ for cls in known]:
        raise ConfigError("data", "the class of the library", name, "the script that trained it: python my_model.py COMMAND RUN")
    experiment = trained.from_saved(known, saved, f"checkpoint {checkpoint.newest(options.run)}")
    return experiment, trained.load(options.run, step=options.step, models=models, mesh=sharding.split_mesh(experiment.train.fsdp))


def _reader(options, experiment: Experiment) -> Callable[[str], Dataset]:
    """The function that reads a split of the run's data, from --data if that is given, and compares it with the run's fingerprint."""
    data = experiment.data if options.data is None else experiment.data.moved_to(options.data)
    here = dataclasses.replace(experiment, data=data, workdir=options.run)
    seen = Seen(checkpoint.read_fingerprint(options.run), options.allow_data_change)

    def read(split: str) -> Dataset:
        try:
            return load_data(here, split, None, seen)
        except NotThere as error:
            raise DataError(error.argument, error.wanted, error.got, "--data PATH says where the data of this run are now") from error

    return read


def evaluate(options: Evaluate, models: Sequence[type] = ()) -> int:
    """The metric of a split with its standard error, beside the rulers."""
    experiment, model = _open(options, models)
    batch_size = options.batch_size or experiment.train.batch_size
    read = _reader(options, experiment)
    print_evaluation(experiment, model, read(options.split), batch_size, options.samples, options.bound, read)
    return 0


def sample(options: Sample, models: Sequence[type] = ()) -> int:
    """A PNG grid of samples, and images per second; a model that is given vectors draws for those of the test images."""
    experiment, model = _open(options, models)
    if not hasattr(model, "sample"):
        raise ConfigError("RUN", "a model that draws samples", type(model).__name__)
    extra = _sampler_options(model, options, temperature=1.0, method=None)
    if has(model, "mesh") and extra.get("method") is None and jax.local_device_count() == jax.device_count() > 1:
        extra["mesh"] = sharding.make_mesh()
    feature = modelled(model)
    out = _out(options, f"samples{feature.ending}", feature.ending)
    label, of = _class(experiment, model, options)
    if options.to is not None:
        label, of = _between(experiment, model, options, label)
    by_examples = given(model) - {"label"}
    if not by_examples and (options.data or options.allow_data_change):
        name = "--data" if options.data else "--allow-data-change"
        raise ConfigError(name, "a model that draws for examples of its data", f"{type(model).__name__}, which reads none")
    drawn, names = partial(draw, model), partial(captions, model, experiment.data.class_names)
    if by_examples:
        test = _reader(options, experiment)("test")
        drawn, names = partial(draw_for, model, test), partial(captions_for, model, test)
    seconds = []
    for _ in range(2):  # the first call compiles
        start = time.perf_counter()
        samples = drawn(jax.random.key(options.seed), options.n, label, **extra)
        seconds.append(time.perf_counter() - start)
    write_grid(out, samples, model, **names(options.n, label))
    rate, compiling = f"{options.n / seconds[1]:.1f} {feature.noun}s/s", max(seconds[0] - seconds[1], 0)
    say(f"{options.n} samples{of}, {rate} ({compiling:.1f} s to compile): {out}")
    return 0


def _class(experiment: Experiment, model, options, argument: str = "label") -> tuple[int | None, str]:
    """(label, " of the class NAME (label 3)") that --label means, (None, "") without it; ConfigError for a model without classes."""
    word, names = getattr(options, argument), experiment.data.class_names
    if word is None:
        return None, ""
    if "label" not in given(model):
        raise ConfigError(f"--{argument}", "none, since the model is not class-conditional", word)
    label = class_names.find(word, names, model.config.features["label"].classes, f"--{argument}")
    return label, f" of the class {names[label]} (label {label})" if names else ""


def _between(experiment: Experiment, model, options, label: int | None) -> tuple[np.ndarray, str]:
    """(class weights [n, num_classes], their classes in words); in every row of the grid they go from class --label to class --to."""
    classes, columns = getattr(model.config, "num_classes", 0), figures.columns_of(options.n)
    if not classes or label is None:
        raise ConfigError("--to", "--label, and a class-conditional model", "no label" if classes else type(model).__name__)
    last, names = _class(experiment, model, options, "to")[0], experiment.data.class_names
    weights = np.asarray(interpolate(label, last, max(columns, 2), classes))[np.arange(options.n) % columns]
    return weights, f" from the class {names[label]} (label {label}) to {names[last]} (label {last})" if names else ""


def complete(options: Complete, models: Sequence[type] = ()) -> int:
    """Images of a split completed from a given part, the given pixels outlined."""
    experiment, model = _open(options, models)
    if not completes(model):
        raise ConfigError("RUN", "a model that can complete images", type(model).__name__)
    extra = _sampler_options(model, options, temperature=1.0)
    label, of = _class(experiment, model, options)
    out = _out(options, "completions.png")
    dataset = _reader(options, experiment)(options.split)
    complete_images(model, dataset, options.keep, options.n, out, jax.random.key(options.seed), label, **extra)
    say(f"{options.n} completions{of}, {options.keep} given (outlined in orange): {out}")
    return 0


def upscale(options: Upscale, models: Sequence[type] = ()) -> int:
    """Images of a split drawn from their small ones, which are shown enlarged and outlined."""
    experiment, model = _open(options, models)
    if small_shape(model) is None:
        raise ConfigError("RUN", "a model that upscales images (low_resolution is set)", type(model).__name__)
    extra = _sampler_options(model, options, temperature=1.0)
    label, of = _class(experiment, model, options)
    out = _out(options, "upscaled.png")
    upscale_images(model, _reader(options, experiment)(options.split), options.n, out, jax.random.key(options.seed), label, **extra)
    say(f"{options.n} pictures{of}, every fourth a small image (outlined in orange) and then draws from it: {out}")
    return 0


def _out(options, name: str, ending: str = ".png"):
    """The path of the file to write; ConfigError, before anything is drawn, if it cannot be written."""
    return report.check_out(options.out or epath.Path(options.run) / name, ending)


def _sampler_options(model, options, **defaults) -> dict:
    """The options of the sampler that differ from their defaults; ConfigError where the model's sampler has no such option."""
    given = {name: getattr(options, name) for name, default in defaults.items() if getattr(options, name) != default}
    for name in given:
        if not has(model, name):
            raise ConfigError(f"--{name}", "a model whose sampler takes it", type(model).__name__)
    return given


def bench(options: Bench, models: Sequence[type] = ()) -> int:
    """Sampling and training speed in images per CPU second (accelerator: second), beside the peak of this machine's matrix products."""
    cores = benchmark.pin(options.cores)  # jax has started no thread yet
    return benchmark.run(options, _open(options, models)[1] if options.run else None, cores)


def show(options: Show, models: Sequence[type] = ()) -> int:
    """Configuration, parameters, checkpoints and their validation metrics."""
    experiment, model = _open(options, models)
    print(printable(json.dumps(config.to_json(experiment), indent=2, ensure_ascii=False), sys.stdout))
    if names := experiment.data.class_names:
        print(printable("classes     " + ", ".join(f"{index} {name}" for index, name in enumerate(names)), sys.stdout))
    print(f"parameters  {count_parameters(model):,}")
    for step, metrics in checkpoint.list_metrics(options.run).items():
        said = "  ".join(f"{name} {value:.6g}" for name, value in metrics.items() if value is not None)
        print(f"step {step:>8}  {said or 'not validated'}")
    return 0


COMMANDS = {Evaluate: evaluate, Sample: sample, Complete: complete, Upscale: upscale, Bench: bench, Show: show}
"""The dataclass of a command -> the function that carries it out."""
