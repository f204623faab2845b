"""The jaxgen command, and the entry point of every experiment script.

python -m experiments.gated_pixelcnn_digits [--laptop] [--dry-run] [--restart | --from-step N] [--debug] [--model.width 64 ...]
jaxgen train gated_pixelcnn --data.name my_images.npz
jaxgen evaluate | sample | complete | upscale | bench | show  RUN
jaxgen reconstruct | interpolate | traverse | codemap | neighbours | classify  RUN

A script takes these commands too, for runs of its own model: python my_model.py sample RUN
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jaxgen import commands, config, run_commands, sharding, trained
from jaxgen import stages as staging
from jaxgen.commands import guarded
from jaxgen.errors import ConfigError, did_you_mean
from jaxgen.experiment import Experiment, dry_run, train
from jaxgen.models import MODELS
from jaxgen.processes import interruption, memory
from jaxgen.reports.final_report import finish, read_data
from jaxgen.runs import checkpoint
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
        memory.keep_freed()
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
    return run_commands.COMMANDS[type(options)](options, models)


def train_command(words: list[str]) -> int:
    """Train a model of the list on any data set; the sizes that the data decides (`Config.sizes_from`) come from it unless given."""
    names = {module_name(model): config_class for config_class, model in MODELS.items()}
    name, words = (words[0], words[1:]) if words else ("nothing", [])
    if name in ("-h", "--help"):
        print("usage: jaxgen train MODEL [--field value ...]\n")
        print(f"MODEL is one of {', '.join(names)}; jaxgen train MODEL --help lists its fields.")
        return 0
    if name not in names:
        raise ConfigError("MODEL", "one of " + ", ".join(names), name, did_you_mean(name, names) if name != "nothing" else "")
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
