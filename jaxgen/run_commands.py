"""What the commands on a run do: one function for each dataclass of commands.py, which takes it and returns the exit code.

`models` are the classes of models and data that a run may name beside those of the library.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from etils import epath

from jaxgen import benchmark, config, sharding, trained
from jaxgen.checks import interpolate
from jaxgen.commands import OF_CODES, Attack, Bench, Complete, Evaluate, Quality, Sample, Show, Upscale
from jaxgen.data import DataConfig, Dataset, class_names
from jaxgen.data.arrays import NoSplit
from jaxgen.data.features import Image, Points, Tokens
from jaxgen.data.loading import NotThere
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.experiment import Experiment
from jaxgen.models import count_parameters
from jaxgen.processes.printing import printable, say
from jaxgen.reports import latent_verbs, molecules
from jaxgen.reports.attacked import print_attack
from jaxgen.reports.drawing import (
    captions,
    captions_for,
    complete_examples,
    complete_strings,
    completes,
    draw,
    draw_for,
    given,
    has,
    modelled,
    small_shape,
    upscale_images,
    with_inputs,
    write_file,
    write_grid,
)
from jaxgen.reports.final_report import Seen, load_data, print_evaluation
from jaxgen.reports.quality import print_quality
from jaxgen.runs import checkpoint, figures, report


def _open(options, models: Sequence[type]):
    """The experiment and the model of a run."""
    experiment = _experiment(options.run, models)
    return experiment, trained.load(options.run, step=options.step, models=models, mesh=sharding.split_mesh(experiment.train.fsdp))


def _experiment(run: str, models: Sequence[type]) -> Experiment:
    """What a run was told to do."""
    saved = checkpoint.read_config(run)
    known = [Experiment, DataConfig, *trained.classes(saved.get("model", {}), models)]
    if isinstance(name := saved.get("data", {}).get("class"), str) and name not in [cls.__name__ for cls in known]:
        raise ConfigError("data", "the class of the library", name, "the script that trained it: python my_model.py COMMAND RUN")
    return trained.from_saved(known, saved, f"checkpoint {checkpoint.newest(run)}")


def _reader(options, experiment: Experiment) -> Callable[[str], Dataset]:
    """The function that reads a split of the run's data, from --data if that is given, and compares it with the run's fingerprint."""
    data = experiment.data if options.data is None else experiment.data.moved_to(options.data)
    here = dataclasses.replace(experiment, data=data, workdir=options.run)
    seen = Seen(checkpoint.read_fingerprint(options.run), options.allow_data_change)

    def read(split: str) -> Dataset:
        try:
            return load_data(here, split, None, seen)
        except NoSplit as error:
            asked = split == getattr(options, "split", None) != "validation"
            hint = "--split validation takes the validation split" if asked else ""
            raise DataError(error.argument, error.wanted, error.got, hint) from error
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


def quality(options: Quality, models: Sequence[type] = ()) -> int:
    """Samples beside real images in the features of a classifier, beside real points, or beside real molecules."""
    experiment, model = _open(options, models)
    network = learned = None
    feature = modelled(model) if hasattr(model, "sample") else None
    said = {Points: "points, whose coordinates are compared", Tokens: "strings, which are compared as molecules"}
    own = next((words for kind, words in said.items() if isinstance(feature, kind)), "")
    for name in ("features", "layer"):
        if own and getattr(options, name):
            raise ConfigError(f"--{name}", f"none for a model of {own}", getattr(options, name))
    if isinstance(feature, Tokens):
        molecules.print_molecules(experiment, model, options, _reader(options, experiment))
        return 0
    if not own:
        if not isinstance(feature, Image):
            raise ConfigError("RUN", "a model that draws images, points or strings", type(model).__name__)
        if not options.features:
            raise ConfigError("--features", "the run of a classifier of such images", "nothing", "jaxgen train classifier makes one")
        try:
            network, learned = trained.load(options.features, models=models), partial(_learned, options.features, models)
        except CheckpointError as error:
            raise CheckpointError("--features", error.wanted, error.got, error.hint) from None
    print_quality(experiment, model, network, options, _reader(options, experiment), learned)
    return 0


def _learned(run: str, models: Sequence[type]) -> Dataset:
    """The training split of a run; DataError where it cannot be read or has changed since."""
    return load_data(dataclasses.replace(_experiment(run, models), workdir=run), "train", None, Seen(checkpoint.read_fingerprint(run)))


def sample(options: Sample, models: Sequence[type] = ()) -> int:
    """A PNG grid of samples, and images per second; a model that is given vectors draws for those of the test images."""
    experiment, model = _open(options, models)
    if not hasattr(model, "sample"):
        raise ConfigError("RUN", "a model that draws samples", type(model).__name__)
    extra = _sampler_options(model, options, method=None, truncation=None)
    if has(model, "mesh") and extra.get("method") is None and jax.local_device_count() == jax.device_count() > 1:
        extra["mesh"] = sharding.make_mesh()
    feature = modelled(model)
    out = _out(options, f"samples{feature.ending}", feature.ending)
    if options.molecules:
        molecules.check(model)
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
    shown = with_inputs(model, test, samples) if by_examples else samples
    write_grid(out, shown, model, **names(options.n, label))
    rate, compiling = f"{options.n / seconds[1]:.1f} {feature.noun}s/s", max(seconds[0] - seconds[1], 0)
    beside = ", each between its input and the true output" if shown is not samples else ""
    say(f"{options.n} samples{of}{beside}, {rate} ({compiling:.1f} s to compile): {out}")
    if options.molecules:
        picture, valid = molecules.picture_of(samples, model)
        drawn = epath.Path(out).with_suffix(".png")
        write_file(drawn, picture)
        say(f"{valid} of them are molecules, the others are crossed out: {drawn}")
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
    """Images of a split completed from a given part, the given pixels outlined; a series continued; strings that go on from a beginning."""
    experiment, model = _open(options, models)
    if not completes(model):
        raise ConfigError("RUN", "a model that can complete images or strings, or continue a series", type(model).__name__)
    extra = _sampler_options(model, options)
    if isinstance(modelled(model), Tokens):
        return _complete_strings(options, model, extra)
    if options.start is not None:
        raise ConfigError("--start", "a model of strings", type(model).__name__, "--keep says which pixels are given")
    label, of = _class(experiment, model, options)
    out = _out(options, "completions.png")
    dataset = _reader(options, experiment)(options.split)
    given_part = complete_examples(model, dataset, options.keep, options.n, out, jax.random.key(options.seed), label, **extra)
    say(f"{options.n} completions{of}, {given_part}: {out}")
    return 0


def _complete_strings(options: Complete, model, extra: dict) -> int:
    for name in ("keep", "split", "data", "label", "allow_data_change"):
        if getattr(options, name) != getattr(Complete, name):
            raise ConfigError(f"--{name}", "nothing for a model of strings: --start is what is given", getattr(options, name))
    if options.start is None:
        raise ConfigError("--start", "the beginning of the strings", "nothing", 'as in --start "c1ccc"')
    out = _out(options, "completions.txt", modelled(model).ending)
    complete_strings(model, options.start, options.n, out, jax.random.key(options.seed), **extra)
    say(f"{options.n} strings that begin with {options.start}: {out}")
    return 0


def upscale(options: Upscale, models: Sequence[type] = ()) -> int:
    """Images of a split drawn from their small ones, which are shown enlarged and outlined."""
    experiment, model = _open(options, models)
    if small_shape(model) is None:
        raise ConfigError("RUN", "a model that upscales images (low_resolution is set)", type(model).__name__)
    extra = _sampler_options(model, options)
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
    defaults |= {"temperature": 1.0} | dict.fromkeys(("sampler", "steps", "guidance", "top_k", "top_p"))
    given = {name: getattr(options, name) for name, default in defaults.items() if getattr(options, name) != default}
    for name in given:
        if not has(model, name):
            raise ConfigError(f"--{name}", "a model whose sampler takes it", type(model).__name__)
    return given


def attack(options: Attack, models: Sequence[type] = ()) -> int:
    """The accuracy of a classifier under attack, and a picture of the images."""
    experiment, model = _open(options, models)
    out = _out(options, "attack.png")
    print_attack(model, options, _reader(options, experiment), out)
    return 0


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


def of_codes(options, models: Sequence[type] = ()) -> int:
    """The commands of reports/latent_verbs.py."""
    experiment, model = _open(options, models)
    work = getattr(latent_verbs, type(options).__name__.lower())
    work(options, experiment, model, _reader(options, experiment), partial(_out, options))
    return 0


COMMANDS = {Evaluate: evaluate, Quality: quality, Sample: sample, Complete: complete, Upscale: upscale, Bench: bench, Show: show}
COMMANDS |= {Attack: attack} | dict.fromkeys(OF_CODES, of_codes)
"""The dataclass of a command -> the function that carries it out."""
