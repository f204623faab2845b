"""What `experiment.train` costs a step beside the arithmetic: its own loop against a plain loop of the same model.

    python -m experiments.step_cost            three models of 19 to 900 arrays, five minutes
    python -m experiments.step_cost --laptop   the two smallest, four turns each, to see that it runs

Four loops run in this process in turns, on one device of the CPU, and the time is that of the processor (user and system) for one step:

- the plain loop: one compiled function of loss, gradient and optax update on flat leaves, with one batch that is in memory;
- the same with an exponential average of the parameters, an array more for each: whoever evaluates and samples from the average has it in
  any loop;
- the library's step alone: its compiled step in such a loop. Beside the above it computes the average of the parameters, the norm of the
  gradient and the metrics, and keeps the old values where a number is not finite: arithmetic that the plain loop does not have;
- `experiment.train`: the same step in its own loop, with its log, batches and placing.

So the last without the second is what the loop itself costs, all of it Python; the second without the first is the extra arithmetic. The
numbers are medians of the differences of the turns. Widths are tiny. The third model has nothing but many arrays: in a deep network the
arithmetic of a step takes 20 ms even at these widths, and varies by more than what is measured here.

Writes experiments/results/step_cost.md.
"""

import dataclasses
import datetime
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # before jax starts: the plain loop has one device, and so must the other one
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1"

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax.sharding import AxisType

from jaxgen import experiment, models, training
from jaxgen.data import DataConfig, Dataset
from jaxgen.data.features import OfImages
from jaxgen.experiment import Experiment, ReportConfig
from jaxgen.training import OptimizerConfig, TrainConfig

RESULTS = Path(__file__).parent / "results" / "step_cost.md"
SHAPE, LEVELS, BATCH = (2, 2, 1), 3, 2
WINDOW, PAUSE = 10, 0.1
"""Steps of a turn, and seconds between turns."""
TINY = {"image_shape": SHAPE, "levels": LEVELS}


@dataclasses.dataclass(frozen=True)
class ManyArraysConfig(OfImages):
    """A model of 900 small arrays and next to no arithmetic, so that the cost of handling them is not lost in the noise of products."""

    image_shape: tuple[int, int, int] = SHAPE
    levels: int = LEVELS
    arrays: int = 900

    def build(self, rngs: nnx.Rngs):
        """The model; nothing is random."""
        return ManyArrays(self)


class ManyArrays(nnx.Module):
    """All pixels are independent, with the logits sum_i a_i of the arrays a_i [levels]."""

    def __init__(self, config: ManyArraysConfig):
        self.config = config
        self.arrays = nnx.List([nnx.Param(jnp.zeros(config.levels)) for _ in range(config.arrays)])

    def log_prob(self, image):
        """Integers [B, H, W, C] -> log p in nats [B]."""
        logits = jnp.stack([array[...] for array in self.arrays]).sum(0)
        return jax.nn.log_softmax(logits)[image].sum((1, 2, 3))

    def loss(self, batch, key):
        """Bits/dim, and the same as a metric."""
        bits = -self.log_prob(batch["image"]).mean() / (np.prod(self.config.image_shape) * np.log(2))
        return bits, {"bits_per_dim": bits}


CONFIGS = {
    "Gated PixelCNN, 1 layer": models.GatedPixelCNNConfig(**TINY, layers=1, width=2, head_width=2, input_kernel=3),
    "Gated PixelCNN, 3 layers": models.GatedPixelCNNConfig(**TINY, layers=3, width=2, head_width=2, input_kernel=3),
    "900 small arrays": ManyArraysConfig(),
}


class Turns:
    """A data set's columns that, after every WINDOW batches of a training, let other loops take as many steps, and note all times.

    The times are those of the processor. A compiled step may still run when the next batch is asked for; PAUSE, which costs no processor
    time, lets it end before the clock is read.
    """

    def __init__(self, source, others):
        self._source, self._others, self._reads, self._begin, self.turns = source, others, 0, 0.0, []

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def read(self, rows):
        """The rows, as the source has them."""
        if self._reads % WINDOW == 0:
            time.sleep(PAUSE)
            clock = [self._begin, time.process_time()]
            for run in self._others:
                run(WINDOW)
                clock.append(time.process_time())
            if self._reads > WINDOW:  # the first window compiles
                self.turns.append(np.diff(clock))
            self._begin = time.process_time()
        self._reads += 1
        return self._source.read(rows)


def plain_loop(config, data: Dataset, average: bool = False):
    """A function that takes n steps: compiled loss, gradient and update on flat leaves. And the number of arrays of parameters.

    average: with 0.999 times an average of the parameters and 0.001 times the new ones.
    """
    optimizer = training.make_optimizer(OptimizerConfig(), 1)
    model = models.build(config, 0)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten((params, optimizer.init(params), jax.tree.map(jnp.copy, params) if average else None))

    def step(leaves, batch, key):
        params, state, mean = jax.tree.unflatten(tree, leaves)
        value, gradients = jax.value_and_grad(lambda params: nnx.merge(graph, params, rest).loss(batch, key)[0])(params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        mean = jax.tree.map(lambda old, new: 0.999 * old + 0.001 * new, mean, params) if average else None
        return jax.tree.leaves((params, state, mean)), value

    return repeated(jax.jit(step, donate_argnums=0), leaves, data), len(jax.tree.leaves(params))


def step_alone(config, data: Dataset):
    """A function that takes n of the library's steps on flat leaves."""
    optimizer = training.make_optimizer(OptimizerConfig(), 1)
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    state = training.init_state(models.build(config, 0), optimizer, mesh)
    leaves, tree = jax.tree.flatten(state)
    compiled = training.make_train_step(optimizer, mesh).on_leaves(tree)
    return repeated(compiled, leaves, data)


def repeated(step, leaves: list, data: Dataset):
    """A function that calls `step(leaves, batch, key) -> leaves, value` n times, always with the same batch."""
    batch, key = jax.device_put(data.batch(0, BATCH, 0)), jax.random.key(0)
    held = step(leaves, batch, key)[0]

    def run(steps: int) -> None:
        nonlocal held
        for _ in range(steps):
            held, value = step(held, batch, key)
            jax.block_until_ready(value)

    return run


def measure(config, windows: int) -> dict:
    """Milliseconds a step: the median of each loop, and of each difference the quartiles."""
    data = Dataset.from_columns(random_columns(config), config.features)
    plain, leaves = plain_loop(config, data)
    turns = Turns(data.source, (plain, plain_loop(config, data, average=True)[0], step_alone(config, data)))
    with tempfile.TemporaryDirectory() as folder:
        options = TrainConfig(steps=WINDOW * (windows + 2) + 1, batch_size=BATCH, eval_every=10**6, log_every=10)
        run = Experiment(config, DataConfig("arrays"), train=options, workdir=folder, report=ReportConfig(samples=0))
        experiment.train(run, sets=(dataclasses.replace(data, source=turns), data))
    train, bare, averaging, alone = 1e3 / WINDOW * np.array(turns.turns[:windows]).T
    numbers = {"leaves": leaves, "train": np.median(train), "plain": np.median(bare), "alone": np.median(alone)}
    numbers = {name: float(value) for name, value in numbers.items()} | {"averaging": float(np.median(averaging))}
    differences = {"above": train - bare, "beside": train - averaging, "arithmetic": alone - bare, "loop": train - alone}
    for name, difference in differences.items():
        numbers[name] = np.round(np.quantile(difference, [0.25, 0.5, 0.75]), 3).tolist()
    return numbers


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
        f"- command: `python -m experiments.step_cost`; {options.turns} turns of {WINDOW} steps of each loop",
        "- milliseconds of processor time a step: medians over the turns; of the differences also the quartiles, in brackets",
        "- target: `experiment.train` at most 0.3 ms a step above the plain loop for 35 arrays, 1 ms for 900",
        "",
        "| model | arrays | plain loop | with an average | step alone | `experiment.train` | above the plain loop"
        " | above that with an average | extra arithmetic | the loop itself |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        spreads = [f"{row[what][1]:.2f} [{row[what][0]:.2f}, {row[what][2]:.2f}]" for what in ("above", "beside", "arithmetic", "loop")]
        medians = [f"{row[what]:.2f}" for what in ("plain", "averaging", "alone", "train")]
        lines.append("| " + " | ".join([name, f"{row['leaves']:.0f}", *medians, *spreads]) + " |")
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    turns: int = 100  # of each loop
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # the two smallest models, four turns each; writes nothing


def main() -> None:
    """Every model in turn."""
    options = tyro.cli(Options, description=__doc__)
    load, configs = os.getloadavg(), list(CONFIGS.items())
    if options.laptop:
        options, configs = Options(turns=4, laptop=True), configs[:2]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)  # every run compiles the same program anew
        for name, config in configs:
            rows[name] = measure(config, options.turns)
            print(name, rows[name], flush=True)
    if not options.laptop:
        write(rows, options, load)


if __name__ == "__main__":
    main()
