"""Auto-encoders with an encoder and a decoder, and with a search in the place of one of them: error and cost on scikit-learn's digits.

    python -m experiments.compare_inversion               1000 steps of 64 images, three seeds: about 20 minutes on 2 CPU cores
    python -m experiments.compare_inversion --times       milliseconds of a training step, the models in turns on one core; writes nothing
    python -m experiments.compare_inversion --laptop      one seed and 10 steps each, to see that it runs

Writes experiments/results/inversion.md. All networks are fully connected with two hidden layers of 256 units and codes of 16 numbers; the
decoders of the first three rows are the same network. Evaluations of a network count a pass and its gradient as two. Times are those of the
training steps, without compilation; with --times they are CPU times of turns of ten steps. Of each run the step with the least error in
validation is evaluated.
"""

import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import flax
import jax
import numpy as np
import tyro
from flax import nnx
from jax.sharding import AxisType

from jaxgen import benchmark, evaluation, training
from jaxgen.data import load
from jaxgen.models import AutoencoderConfig, ImplicitAutoencoderConfig, build

RESULTS = Path(__file__).parent / "results"
IMPLICIT = ImplicitAutoencoderConfig(latent=16, hidden=(256, 256))
CONFIGS = {
    "encoder and decoder": AutoencoderConfig(latent=16, hidden=(256, 256)),
    "decoder, codes by gradient descent": replace(IMPLICIT, temperature=0.0, rate=0.001),
    "decoder, codes by Langevin steps": IMPLICIT,
    "encoder by REINFORCE, images by a search": replace(IMPLICIT, implicit="decoder", steps=8, rate=0.004, temperature=0.2),
}
SPREAD_AT = 100
"""The step after which the gradient's spread is measured: later the mean of REINFORCE's gradient is lost in its noise."""

NOTES = """The error is |x - x'|^2 / D of pixels scaled to [0, 1] over the 360 test images, with the standard error over seeds; over the
images of one seed it is {within}. Lower is better. Evaluations are those of one network; a pass and its
gradient are two. The spread is sqrt(trace of the covariance of the gradient) / |its mean| over the noise of the loss, after 100
steps, for one batch of 64."""


def passes(config) -> tuple[int, int]:
    """Evaluations of networks for an image: in a training step, and in a reconstruction."""
    if isinstance(config, AutoencoderConfig):
        return 4, 2  # both networks, forwards and backwards
    search = 2 * config.steps
    if config.implicit == "encoder":
        return search + 2, search + 1
    # For each draw the search, then its steps again for the gradient of log p, which is differentiated: four times a pass.
    return config.draws * (1 + search + 4 * config.steps + 2), 1 + search


def begin(config, seed: int, steps: int) -> tuple:
    """State and training step of one model."""
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    optimizer = training.make_optimizer(training.OptimizerConfig(schedule="cosine", warmup_steps=50), steps)
    state = training.init_state(jax.jit(lambda: build(config, seed))(), optimizer, mesh)
    return state, training.make_train_step(optimizer, mesh, 0.99)


def times(turns: int, steps: int = 10) -> str:
    """A table: CPU milliseconds of a step of every model, and their ratio to the first model's of the same turn, medians over the turns.

    One turn is `steps` steps of each model, one after the other, so what else the machine does falls on all of them."""
    batch, key = next(load("digits", "train").batches(0, 64, 0)), jax.random.key(0)
    models = {name: begin(config, 0, 1000) for name, config in CONFIGS.items()}
    found = {name: [] for name in CONFIGS}
    for turn in range(turns + 1):
        for name, (state, step) in models.items():
            start = time.process_time()
            for _ in range(steps):
                state, metrics = step(state, batch, key)
            jax.block_until_ready(metrics)
            models[name] = state, step
            if turn:  # the first one compiles
                found[name].append(1e3 * (time.process_time() - start) / steps)
    lines, first = ["| model | ms a step | ratio | quartiles of the ratio |", "|---|---|---|---|"], np.array(next(iter(found.values())))
    for name, ms in found.items():
        low, ratio, high = np.percentile(np.array(ms) / first, (25, 50, 75))
        lines.append(f"| {name} | {np.median(ms):.2f} | {ratio:.2f} | {low:.2f}, {high:.2f} |")
    return "\n".join(lines)


def run(config, seed: int, steps: int) -> dict[str, float]:
    """Trains one model; its error with the standard error over images, milliseconds of a step, and the spread of its gradient."""
    splits = {name: load("digits", name) for name in ("train", "validation", "test")}
    (state, step), key = begin(config, seed, steps), jax.random.key(seed)
    best, seconds, every = (np.inf, None), [], max(1, steps // 10)
    for i, batch in zip(range(steps), splits["train"].batches(0, 64, seed), strict=False):
        start = time.perf_counter()
        state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
        if i + 1 == min(SPREAD_AT, steps):
            spread = gradient_spread(state.model, batch)
        if (i + 1) % every == 0:
            model = training.ema_model(state)
            error = evaluation.evaluate(model, splits["validation"])["squared_error"]
            print(f"{type(config).__name__} seed {seed} step {i + 1}: validation {error:.4f}, {np.sum(seconds[2:]):.1f} s", flush=True)
            if error < best[0]:
                best = error, jax.tree.map(np.asarray, nnx.state(model))
    model = nnx.merge(nnx.split(model)[0], jax.tree.map(jax.numpy.asarray, best[1]))
    result = evaluation.evaluate(model, splits["test"])
    return {
        "error": result["squared_error"],
        "standard_error": result["standard_error"],
        "ms": 1e3 * float(np.median(seconds[2:])),
        "spread": spread,
    }


def gradient_spread(model, batch, draws: int = 256) -> float:
    """sqrt(trace of the covariance of the gradient) / |its mean|, over the noise of the loss with the batch fixed; 0 without noise."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def moments(params, keys):
        return training.gradient_moments(lambda params, key: nnx.merge(graph, params, rest).loss(batch, key)[0], params, keys)

    mean, variance = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)], dtype=np.float64) for tree in
                      moments(params, jax.random.split(jax.random.key(1), draws)))  # fmt: skip
    return float(np.sqrt(variance.sum() / max((mean**2).sum() - variance.sum() / draws, 1e-30)))


def table(rows: dict[str, list[dict]], steps: int) -> str:
    """The page of results."""
    lines = [
        "# A search in the place of a network",
        "",
        f"- date: {time.strftime('%Y-%m-%d')}; device: {jax.devices()[0].device_kind} {platform.machine()}; versions: Python "
        f"{platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}",
        f"- command: `python -m experiments.compare_inversion`; {steps} steps of 64 images of digits 8x8, codes of 16 numbers, seeds "
        f"{', '.join(map(str, range(len(next(iter(rows.values()))))))}",
        "",
        "| model | test error | ms a training step | evaluations for an image: a step; a reconstruction | spread of the gradient |",
        "|---|---|---|---|---|",
    ]
    for name, runs in rows.items():
        errors, (step, image) = [one["error"] for one in runs], passes(CONFIGS[name])
        spread = np.std(errors, ddof=1) / len(errors) ** 0.5 if len(errors) > 1 else float("nan")
        ms, gradient = (np.median([one[what] for one in runs]) for what in ("ms", "spread"))
        lines.append(f"| {name} | {np.mean(errors):.4f} +- {spread:.4f} | {ms:.1f} | {step}; {image} | {gradient:.2f} |")
    within = ", ".join(f"{np.mean([one['standard_error'] for one in runs]):.4f}" for runs in rows.values())
    return "\n".join([*lines, "", NOTES.format(within=within), ""])


@dataclass(frozen=True)
class Options:
    """The command line."""

    times: tyro.conf.FlagCreatePairsOff[bool] = False  # times of training steps instead, in turns on one pinned core
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # one seed and 10 steps each, or one turn; writes nothing


def main() -> None:
    """Every model with every seed, in turn."""
    options = tyro.cli(Options, description=__doc__)
    laptop = options.laptop
    if options.times:
        benchmark.pin(1)
        print(times(1 if laptop else 31))
        return
    steps, seeds = (10, 1) if laptop else (1000, 3)
    rows = {name: [run(config, seed, steps) for seed in range(seeds)] for name, config in CONFIGS.items()}
    page = table(rows, steps)
    print(page)
    if not laptop:
        (RESULTS / "inversion.md").write_text(page)


if __name__ == "__main__":
    main()
