"""What `experiment.train` costs a step beside the arithmetic: its own loop against a plain loop of the same model.

    python -m experiments.step_cost            four models of 19 to about 900 leaves, a few minutes
    python -m experiments.step_cost --laptop   the two smallest, two pairs each, to see that it runs

The plain loop calls one compiled function, loss, gradient and optax update on flat leaves, with one batch that is in memory. The other
loop is that of `experiment.train` with its log, batches and placing. Both run in this process in turns. The time is that of the processor
(user and system) for one step; the number is the median of the differences of the pairs. Widths are tiny and XLA's optimizer is off, which
compiles in seconds and changes nothing of the Python. Writes experiments/results/step_cost.md.
"""

import argparse
import dataclasses
import datetime
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import flax
import jax
import numpy as np
import optax
from flax import nnx

from jaxgen import experiment, models, training
from jaxgen.data import DataConfig, Dataset
from jaxgen.experiment import Experiment, ReportConfig
from jaxgen.training import OptimizerConfig, TrainConfig

RESULTS = Path(__file__).parent / "results" / "step_cost.md"
SHAPE, LEVELS, BATCH = (2, 2, 1), 3, 2
TINY = {"image_shape": SHAPE, "levels": LEVELS}
CONFIGS = {
    "Gated PixelCNN, 1 layer": models.GatedPixelCNNConfig(**TINY, layers=1, width=2, head_width=2, input_kernel=3),
    "Gated PixelCNN, 3 layers": models.GatedPixelCNNConfig(**TINY, layers=3, width=2, head_width=2, input_kernel=3),
    "PixelCNN++, 7 resnets": models.PixelCNNPPConfig(**TINY, width=2, resnets=7, resolutions=2, mixtures=1, dropout=0.0),
    "PixelSNAIL, 12 blocks": models.PixelSNAILConfig(**TINY, blocks=12, width=2, resnets=8, key=1, value=1, mixtures=1, dropout=0.0),
}


class Clock:
    """A data set's columns that note the processor's time when the batch of a step is read."""

    def __init__(self, source):
        self._source, self.times = source, []

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def read(self, rows):
        """The rows, as the source has them."""
        self.times.append(time.process_time())
        return self._source.read(rows)


def of_train(config, data: Dataset, steps: int) -> list[float]:
    """Seconds of every step of `experiment.train`, from the reading of one batch to the reading of the next."""
    clock = Clock(data.source)
    timed = dataclasses.replace(data, source=clock)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainConfig(steps=steps, batch_size=BATCH, eval_every=10**6, log_every=10)
        run = Experiment(config, DataConfig("arrays"), train=options, workdir=folder, report=ReportConfig(samples=0))
        experiment.train(run, sets=(timed, data))
    return np.diff(clock.times[1 : steps + 1]).tolist()


def plain_loop(config, data: Dataset):
    """A function of a number of steps that gives the seconds of each: compiled loss, gradient and update on flat leaves."""
    optimizer = training.make_optimizer(OptimizerConfig(), 1)
    model = models.build(config, 0)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten((params, optimizer.init(params)))

    def step(leaves, batch, key):
        params, state = jax.tree.unflatten(tree, leaves)
        value, gradients = jax.value_and_grad(lambda params: nnx.merge(graph, params, rest).loss(batch, key)[0])(params)
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.leaves((optax.apply_updates(params, updates), state)), value

    compiled, batch, key = jax.jit(step, donate_argnums=0), data.batch(0, BATCH, 0), jax.random.key(0)
    held = compiled(leaves, batch, key)[0]

    def run(steps: int) -> list[float]:
        nonlocal held
        times = [time.process_time()]
        for _ in range(steps):
            held, value = compiled(held, batch, key)
            value.block_until_ready()
            times.append(time.process_time())
        return np.diff(times).tolist()

    return run, len(jax.tree.leaves(params))


def measure(config, steps: int, pairs: int) -> dict[str, float]:
    """Milliseconds a step: the medians of both loops and of the differences of the pairs, and their range."""
    data = Dataset.from_columns(random_columns(config), config.features)
    plain, leaves = plain_loop(config, data)
    of_train(config, data, 20)  # compiles
    plain(20)
    pair_of = [(1e3 * np.median(of_train(config, data, steps)), 1e3 * np.median(plain(steps))) for _ in range(pairs)]
    train, bare = np.array(pair_of).T
    above = train - bare
    return {
        "leaves": leaves,
        "train": np.median(train),
        "plain": np.median(bare),
        "above": np.median(above),
        "least": above.min(),
        "most": above.max(),
    }


def random_columns(config) -> dict[str, np.ndarray]:
    """64 random images."""
    return {"image": np.random.default_rng(0).integers(0, LEVELS, (64, *config.image_shape), np.uint8)}


def write(rows: dict[str, dict], options, load: tuple[float, ...]) -> None:
    """The page."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        "# What a step of training costs beside the arithmetic",
        "",
        f"- date: {datetime.date.today()}; commit: {git.stdout.strip()}; device: {platform.machine()}, {cores} core(s) for this process;"
        f" load average {load[0]:.1f} before and {os.getloadavg()[0]:.1f} after (1.0 or less: a quiet machine)",
        f"- versions: Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}, optax {optax.__version__}",
        f"- command: `python -m experiments.step_cost`; {options.steps} steps a run, {options.pairs} pairs of runs in turns",
        "- milliseconds of processor time a step: medians over the steps of a run, then over the runs; in brackets the range of the pairs",
        "- target: at most 0.3 ms above the plain loop for 35 leaves, 1 ms for 900",
        "",
        "| model | arrays of parameters | `experiment.train` | plain loop | above it |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        above = f"{row['above']:.2f} [{row['least']:.2f}, {row['most']:.2f}]"
        lines.append(f"| {name} | {row['leaves']} | {row['train']:.2f} | {row['plain']:.2f} | {above} |")
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    """Every model in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="steps of a run (default: 300)")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of runs (default: 7)")
    parser.add_argument("--laptop", action="store_true", help="the two smallest models, two short pairs each; writes nothing")
    options = parser.parse_args()
    load, configs = os.getloadavg(), list(CONFIGS.items())
    if options.laptop:
        options.steps, options.pairs, configs = 30, 2, configs[:2]
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)  # every run compiles the same program anew
        for name, config in configs:
            rows[name] = measure(config, options.steps, options.pairs)
            print(name, rows[name], flush=True)
    if not options.laptop:
        write(rows, options, load)


if __name__ == "__main__":
    main()
