"""Runs that take a second: what they are, how they are started, and what must be the same of two of them."""

import csv
import json
from pathlib import Path

import jax
import numpy as np

import jaxgen
from jaxgen import cli, data, evaluation, experiment, sharding
from jaxgen.data import DataConfig
from jaxgen.experiment import Experiment
from jaxgen.models import GatedPixelCNNConfig
from jaxgen.runs.report import ReportConfig
from jaxgen.training import OptimizerConfig, TrainConfig

EVERY = 10
MODEL = {"width": 6, "layers": 1, "head_width": 8}
SMALLER = MODEL | {"layers": 0}
"""The first layer and the head: a checkpoint has half as many arrays, and arrays are what a save takes its time for."""
DATA = {"name": "set by write_images", "levels": 17}
TRAIN = {"batch_size": 32, "log_every": 1, "eval_every": EVERY}


def write_images(folder: Path) -> None:
    """600 digits in a file: a process that trains on them need not import scikit-learn."""
    DATA["name"] = str(folder / "digits.npz")
    np.savez(DATA["name"], image=np.asarray(data.load("digits", "train").images)[:600])


def words(workdir: Path, steps: int) -> list[str]:
    """A run as a command line. It draws no samples: their program would be made anew in every process."""
    parts = {"model": MODEL, "data": DATA, "train": TRAIN | {"steps": steps}}
    fields = [f"--{part}.{name}={value}" for part, values in parts.items() for name, value in values.items()]
    return ["train", "gated_pixelcnn", *fields, "--report.samples=0", f"--workdir={workdir}"]


def train(workdir: Path, restart: bool = False, learning_rate: float = 1e-3, from_step: int | None = None, **options) -> int:
    """The exit code of a run of 30 steps without samples, or as the options say; errors as the command line reports them."""
    run = Experiment(
        model=GatedPixelCNNConfig(**SMALLER),
        data=DataConfig(**DATA),
        optimizer=OptimizerConfig(learning_rate=learning_rate),
        train=TrainConfig(**({"steps": 30} | TRAIN | options)),
        workdir=str(workdir),
        report=ReportConfig(samples=0),
    )
    return cli.guarded(lambda _: experiment.train(run, restart, from_step=from_step), [])


def same_headline(workdir: Path, validation: data.Dataset, batch_size: int) -> bool:
    """Whether the last validation that was logged has the number that `evaluate` now gives of the last checkpoint."""
    model, mesh = jaxgen.load(workdir, which="latest"), sharding.make_mesh()  # with this mesh it is the compiled program of the run
    name, value = evaluation.headline(evaluation.evaluate(model, validation, batch_size=batch_size, mesh=mesh))
    return [row[f"validation_{name}"] for row in rows(workdir) if f"validation_{name}" in row][-1] == value


def of_the_clock(name: str) -> bool:
    """Whether a column of metrics is measured in seconds, and so another one in every run."""
    return name == "seconds" or name.endswith("_per_second")


def rows(workdir: Path) -> list[dict]:
    """metrics.jsonl, each row checked to stand in metrics.csv too, with the loss as the hexadecimal digits of its float32.

    Without what a clock has measured: all else is the same in a run that was stopped and in one that was not.
    """
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    table = (workdir / "metrics.csv").read_text().splitlines()[1:]
    assert [row["step"] for row in found] == [int(line.partition(",")[0]) for line in table]
    found = [{name: value for name, value in row.items() if not of_the_clock(name)} for row in found]
    return [row | {"loss": np.float32(row["loss"]).tobytes().hex()} if "loss" in row else row for row in found]


def table(workdir: Path) -> list[dict[str, str]]:
    """metrics.csv, without what a clock has measured."""
    with open(workdir / "metrics.csv", newline="") as file:
        return [{name: cell for name, cell in row.items() if not of_the_clock(name)} for row in csv.DictReader(file)]


def complete(found: list[dict], steps: int) -> bool:
    """One row of the loss for every step, and one of the validation for every tenth, in their order."""
    wanted = [(step, kind) for step in range(1, steps + 1) for kind in ("loss", "validation_nats") if kind == "loss" or step % EVERY == 0]
    return [(row["step"], "loss" if "loss" in row else "validation_nats") for row in found] == wanted


def saved(workdir: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def same_model(one: Path, other: Path) -> bool:
    """The averaged parameters of the newest checkpoints, bit for bit."""
    leaves = (jax.tree.leaves(jaxgen.load(path, which="latest")) for path in (one, other))
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*leaves, strict=True))
