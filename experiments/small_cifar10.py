"""NICE and RealNVP beside the Gaussian ruler on CIFAR-10 of 16x16 pixels, the means of squares of 2 x 2; bits/dim here are upper bounds.

    python -m experiments.small_cifar10                     TFDS's own cifar10 (extra: tfds); ten minutes on one CPU core
    python -m experiments.small_cifar10 --data FOLDER       train.npz and test.npz of your own
    python -m experiments.small_cifar10 --only NICE         one of them
    python -m experiments.small_cifar10 --laptop --data FOLDER     three steps each, 50 test images; keeps nothing

Means are rounded to the nearest of 256 levels, so the values compare among themselves only, not with those of 32x32 pixels. Keeps the runs
in --folder, goes on from them, and prints the table of experiments/results/likelihoods.md.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

import jaxgen
from jaxgen import evaluation, experiment
from jaxgen.data import DataConfig, Dataset, load
from jaxgen.data.box_filter import box_filter
from jaxgen.experiment import Experiment, ReportConfig
from jaxgen.models import RULERS, NICEConfig, RealNVPConfig, count_parameters
from jaxgen.training import OptimizerConfig, TrainConfig

SHAPE = (16, 16, 3)


@dataclass(frozen=True)
class Training:
    """A model and its budget: steps of 64 images, how often it is validated, and how the rate of 0.002 goes on."""

    model: NICEConfig | RealNVPConfig
    steps: int
    every: int
    schedule: Literal["constant", "cosine"] = "constant"


CONFIGS = {
    "NICE": Training(NICEConfig(SHAPE, 256, layers=6, hidden=(512,)), 10_000, 2500, "cosine"),
    "RealNVP": Training(RealNVPConfig(SHAPE, 256, scales=3, width=16, blocks=1), 750, 250),
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    data: str = "cifar10"  # the data set of 32x32 pixels
    only: tuple[str, ...] = ()  # names of the table; all where there are none
    seed: int = 0
    folder: Path = Path("runs/small_cifar10")  # of the runs
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # three steps each; keeps nothing


def small(dataset: Dataset) -> Dataset:
    """The images of half the size."""
    return Dataset.from_arrays(box_filter(np.asarray(dataset.images), SHAPE), levels=256)


def row(name: str, training: Training, options: Options, sets: list[Dataset]) -> str:
    """Train one model, or go on: its line of the table."""
    start, (train, validation, test) = time.process_time(), sets
    workdir = str(options.folder / f"{name}_{options.seed}")
    run = Experiment(
        training.model,
        DataConfig("arrays"),
        OptimizerConfig(learning_rate=2e-3, schedule=training.schedule),
        TrainConfig(training.steps, 64, options.seed, eval_every=training.every),
        workdir=workdir,
        report=ReportConfig(samples=0, completions=0),
    )
    if code := experiment.train(run, sets=(train, validation)):
        raise SystemExit(code)
    model = jaxgen.load(workdir)
    minutes, result = (time.process_time() - start) / 60, evaluation.evaluate(model, test)
    value = f"{evaluation.headline(result)[1]:.3f} +- {result['standard_error']:.3f}"
    return f"| {name} | {value} | {training.steps} | {count_parameters(model):,} | {minutes:.1f} |"


def main() -> None:
    """The table, first the rulers."""
    options = tyro.cli(Options, description=__doc__)
    sets = [small(load(options.data, split)) for split in ("train", "validation", "test")]
    if options.laptop:
        sets[2] = Dataset(sets[2].source.select(slice(50)), sets[2].name, "test")
    lines = ["| model | test bits/dim, bound | steps | parameters | CPU minutes of this call |", "|---|---|---|---|---|"]
    for name, result in evaluation.rulers(sets[:2], sets[2], RULERS).items():
        lines.append(f"| {name} ruler | {evaluation.headline(result)[1]:.3f} +- {result['standard_error']:.3f} | | | |")
    with tempfile.TemporaryDirectory() as folder:
        options = replace(options, folder=Path(folder)) if options.laptop else options
        for name, training in CONFIGS.items():
            if not options.only or name in options.only:
                lines.append(row(name, replace(training, steps=3, every=3) if options.laptop else training, options, sets))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
