"""The report at the end of a run, and the data and the evaluation that it shares with the commands on a finished run.

`experiment` is everywhere a `jaxgen.experiment.Experiment`; experiment.py imports this file, which therefore cannot import its class.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxgen import benchmark, evaluation, sharding, trained
from jaxgen import stages as staging
from jaxgen.data import Dataset, features
from jaxgen.data.arrays import NO_SPLIT
from jaxgen.data.loading import NotThere
from jaxgen.errors import DataError
from jaxgen.measures import scores
from jaxgen.measures.metrics import FLOORS
from jaxgen.models import RULERS
from jaxgen.reports.drawing import (
    KEEP,
    captions_for,
    complete_examples,
    completes,
    draw_for,
    has,
    modelled,
    noun,
    small_shape,
    with_inputs,
    write_grid,
)
from jaxgen.runs import checkpoint, directory
from jaxgen.sharding import announce, warn

RULER_DIMENSIONS = 4096
"""Largest H W C for which the Gaussian ruler's covariance is fitted."""


def read_data(experiment: Any, split: str) -> Dataset:
    """One split by name; converted pictures are cached in WORKDIR/data-cache, unless workdir is an object store.

    Text is coded by the symbols and the length of the experiment's model, if it has symbols; a series has the windows that the model reads.
    """
    folder = Path(experiment.workdir) / "data-cache" if directory.is_local(experiment.workdir) else None
    try:
        return experiment.data.load_keeping(split, folder, features.modelled(experiment.model))
    except NotThere as error:
        if checkpoint.newest(experiment.workdir) is None:
            raise
        raise NotThere(error.argument, error.wanted, error.got, "--data.name PATH says where the data of this run are now") from error


def validates(experiment: Any) -> bool:
    """Whether a run has a validation split; with data.validation 0 it trains on all examples."""
    return experiment.data.validation != 0


class Seen(NamedTuple):
    """With what data are compared: the data fingerprint of a run, {} for none. allow: other examples are a warning, not an error."""

    fingerprint: Mapping[str, Any]
    allow: bool = False


def load_data(experiment: Any, split: str, sets: tuple[Dataset, Dataset | None] | None = None, seen: Seen | None = None) -> Dataset:
    """One split, from `sets` (train, validation) or by name. DataError unless it has the features that the model's configuration needs.

    seen: of a run that has trained; DataError where the split has other examples than then. A run of a version that kept no print of this
    split is compared by its training split.
    """
    dataset = sets[split == "validation"] if sets else read_data(experiment, split)
    dataset.expect(experiment.model.features)
    if seen and seen.fingerprint and jax.process_index() == 0:
        compared = split if split in seen.fingerprint else "train"
        now = dataset if compared == split else read_data(experiment, "train")
        directory.check_same_split(experiment.workdir, seen.fingerprint, compared, now.content(), seen.allow)
    return dataset


def finish(experiment: Any, sets: tuple[Dataset, Dataset | None] | None = None) -> None:
    """The report at the end of a run: test metrics beside the rulers, samples, completions, and sampling speed if
    report.time_samplers is set.

    sets: the training and the validation split, if they are in memory already. Where there is no test split, as of arrays in memory and of
    a folder with train/ alone, the validation split is evaluated, and without one nothing; the report says so. Every process loads and
    evaluates; only process 0 draws, or with fsdp > 1 all together.
    """
    folder = epath.Path(experiment.workdir)
    seen = Seen(checkpoint.read_fingerprint(folder), allow=True)  # data that changed during the run get a warning
    read = partial(load_data, experiment, seen=seen) if sets is None else partial(load_data, experiment, sets=sets)
    test, missing = _test_split(experiment, sets, seen)
    split = experiment.train.fsdp > 1  # then the model stays split over the devices
    model = trained.load(experiment.workdir, models=staging.classes(experiment.model), mesh=sharding.split_mesh(experiment.train.fsdp))
    announce(f"\nreport of {experiment.workdir}")
    if not validates(experiment):
        announce("validation  none, trained on all examples: this is the newest step")
    if missing:
        announce(missing)
    if not missing or test.split == "validation":
        print_evaluation(experiment, model, test, experiment.train.batch_size, read=read)
    saved = checkpoint.list_metrics(experiment.workdir)
    warn(scores.ruined(saved.pop(max(saved)), None, saved))
    if jax.process_index() > 0 and not split:
        return sharding.wait_for_all("report")
    wanted, key, pictures = experiment.report, jax.random.key(experiment.train.seed), []
    if wanted.samples and hasattr(model, "sample"):
        pictures.append(folder / f"samples{modelled(model).ending}")
        drawn = with_inputs(model, test, draw_for(model, test, key, wanted.samples))
        write_grid(pictures[-1], drawn, model, **captions_for(model, test, wanted.samples))
    if wanted.completions and completes(model) and not isinstance(modelled(model), features.Tokens):
        pictures.append(folder / "completions.png")
        complete_examples(model, test, KEEP[0], wanted.completions, pictures[-1], key)
    if wanted.time_samplers and has(model, "method") and jax.process_count() == 1:
        benchmark.print_methods(model)
    elif has(model, "method"):
        announce(f"speed     not measured; jaxgen bench {experiment.workdir}")
    announce("pictures  " + "  ".join(map(str, [*pictures, folder / "curve.png"])))
    return sharding.wait_for_all("report")


def _test_split(experiment: Any, sets: tuple[Dataset, Dataset | None] | None, seen: Seen) -> tuple[Dataset, str]:
    """(test split, ""); where there is none, or it cannot be read and there are `sets`, (the validation split or else the training
    split, and a line that says so). Raises DataError where it cannot be read and there are no `sets`."""
    try:
        return load_data(experiment, "test", seen=seen), ""
    except (DataError, *NO_SPLIT) as error:
        if sets is None and not isinstance(error, NO_SPLIT):
            raise
        why = f"{error.argument}: {error.got}" if sets and isinstance(error, DataError) else without_test(error)
        split = "validation" if validates(experiment) else "train"
        chosen = load_data(experiment, split, sets, seen)
        evaluated = "the validation split is" if split == "validation" else "nothing is"
        return replace(chosen, split=split), f"test      none, {evaluated} evaluated ({why})"


def without_test(error: Exception) -> str:
    """Why there is no test split, in words."""
    return str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"


def print_evaluation(
    experiment: Any,
    model,
    dataset: Dataset,
    batch_size: int,
    samples: int = 1,
    bound: str = "elbo",
    read: Callable[[str], Dataset] | None = None,
) -> None:
    """Prints the headline with its standard error, computed on all devices. For bits/dim of images up to RULER_DIMENSIONS values and for
    bits/character of strings also those of the rulers, by the same evaluator, unless report.rulers is off.

    read(split): the other splits, on which the rulers are fitted; None loads them as the experiment names them.
    """
    read = read or partial(load_data, experiment)
    mesh = sharding.split_mesh(experiment.train.fsdp) or sharding.make_mesh()
    wanted = experiment.report.metrics
    result = evaluation.evaluate(model, dataset, batch_size=batch_size, samples=samples, bound=bound, mesh=mesh, metrics=wanted)
    result |= evaluation.density_errors(model, dataset, batch_size, mesh=mesh)
    if set(FLOORS) & set(result):
        result = evaluation.with_floor(result, model, dataset, read("test" if dataset.split == "train" else "train"))
    ruled, few = {}, {}
    small, number = np.prod(dataset.image_shape) <= RULER_DIMENSIONS, evaluation.headline(result)[0]
    units = {"image": "bits_per_dim", "tokens": "bits_per_character"}
    has_rulers = any(column in dataset.features and number.startswith(unit) for column, unit in units.items())
    if experiment.report.rulers and small and has_rulers:
        fit = [read(split) for split in ("train", "validation") if split != dataset.split and (split == "train" or validates(experiment))]
        if fit:
            ruled = evaluation.rulers(fit, dataset, RULERS)
            few = {name: scores.too_few(sum(map(len, fit)), RULERS[name].least) for name, found in ruled.items() if not found}
    for line in scores.lines(dataset.split, result, noun(model.config), small_shape(model), ruled, few):
        announce(line)
    warn(scores.ruined(result, modelled(model)))
