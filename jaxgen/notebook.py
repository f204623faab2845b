"""`jaxgen.train`: from arrays of one's own to a trained model in one call, for notebooks.

    dataset = jaxgen.data.Dataset.from_arrays(images)
    model = jaxgen.train(VAEConfig((28, 28, 1), levels=256), dataset, steps=5000)
    model.sample(jax.random.key(0), 16)

where `images` are integers [N, H, W] or [N, H, W, C].
"""

import dataclasses
import os
import tempfile
from typing import Any

import jax

from jaxgen import experiment, trained
from jaxgen.data import DataConfig, Dataset
from jaxgen.data.images import held_out, permutation
from jaxgen.data.loading import ARRAYS
from jaxgen.errors import ConfigError, DataError
from jaxgen.models import build
from jaxgen.runs.report import ReportConfig
from jaxgen.stages import Stage, classes
from jaxgen.training import OptimizerConfig, TrainConfig

SPLIT_SEED = 1
"""Seed of the permutation that picks the examples for validation."""


def train(
    model_config: Any,
    dataset: Dataset,
    steps: int = 1000,
    *,
    validation: Dataset | None = None,
    workdir: str | os.PathLike | None = None,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    eval_every: int = 250,
    seed: int = 0,
) -> trained.TrainedModel:
    """The trained model of a configuration, on a data set in memory: the averaged weights with the best validation score.

    validation: the set for validation; None holds out a tenth of `dataset`, always the same examples (at least one, at most 10,000).
    workdir: the run directory, from which the same call goes on; None keeps nothing on disk. batch_size: None is 64, or all examples of a
    smaller set. eval_every: steps between two validations. seed: of the first parameters, the order of the data and the noise.

    The parts that the configuration's class names in `stages` are trained first, each as long as the whole and with the same arguments, and
    are frozen afterwards (see stages.py).

    Raises ConfigError (an argument), DataError (a set that does not fit the model), NonFiniteError (the loss). Ctrl-C saves a checkpoint
    and then raises KeyboardInterrupt; SIGTERM saves one and ends the process with code 75.
    """
    for name, one in (("dataset", dataset), ("validation", validation)):
        if not isinstance(one, Dataset) and (one is not None or name == "dataset"):
            raise ConfigError(name, "a jaxgen.data.Dataset", type(one).__name__, "Dataset.from_arrays(array) makes one")
    sets = split_off(dataset) if validation is None else (dataset, validation)
    options = TrainConfig(steps, min(64, len(sets[0])) if batch_size is None else batch_size, seed, eval_every=eval_every)
    stages = _stages(model_config, options, learning_rate)
    optimizer = OptimizerConfig(learning_rate=learning_rate, frozen=tuple(stages))
    with tempfile.TemporaryDirectory(prefix="jaxgen") as folder:
        workdir = folder if workdir is None else os.fspath(workdir)
        # nobody sees the pictures of a temporary folder
        pictures = ReportConfig(samples=0, completions=0) if workdir == folder else ReportConfig()
        run = experiment.Experiment(model_config, DataConfig(ARRAYS), optimizer, options, workdir, pictures, stages)
        code = experiment.train(run, sets=sets)
        if code == experiment.INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise SystemExit(code)
        return trained.load(workdir, models=classes(model_config))


def _stages(model_config: Any, options: TrainConfig, learning_rate: float) -> dict[str, Stage]:
    """The stages that a configuration's class names, each trained with these options, and their own."""
    stages = {}
    for name in getattr(model_config, "stages", ()):
        part = getattr(model_config, name)
        own = _stages(part, options, learning_rate)
        fitted = experiment.closed_form(jax.eval_shape(lambda: build(part)))  # noqa: B023 (called at once)
        optimizer = OptimizerConfig() if fitted else OptimizerConfig(learning_rate=learning_rate, frozen=tuple(own))
        stages[name] = Stage(train=options, optimizer=optimizer, stages=own)
    return stages


def split_off(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """(train, validation): a tenth of the examples, by a fixed permutation, and the others."""
    n = len(dataset)
    if n < 2 or not hasattr(dataset.source, "select"):
        raise DataError("dataset", "at least 2 examples in memory, to hold one out", n, "or validation=, a second data set")
    order, count = permutation(n, SPLIT_SEED, 0), held_out(n)
    parts = ("train", order[:-count]), ("validation", order[-count:])
    return tuple(dataclasses.replace(dataset, source=dataset.source.select(rows), split=split) for split, rows in parts)
