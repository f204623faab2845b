"""All autoregressive image models on scikit-learn's digits with one budget: equal training time, three seeds.

    python -m experiments.compare_autoregressive               3 minutes a model and seed, about 80 minutes on 2 CPU cores
    python -m experiments.compare_autoregressive --minutes 1   a shorter budget (the table says which)
    python -m experiments.compare_autoregressive --laptop      one seed and three seconds each, to see that it runs

Writes experiments/results/digits.md, digits.json and digits.png. The time is that of the training steps alone; validation, checkpoints and
evaluation are not in it, nor is compilation but for the loading of programs that a short run of each model has compiled before. The
constant learning rate, its warm-up and the average are the same for all. The step is chosen on the validation split. What a model reaches
in this time on a CPU ranks neither architectures nor their papers.
"""

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import flax
import jax
import numpy as np
import tyro

import jaxgen
from jaxgen import evaluation, models
from jaxgen.data import load
from jaxgen.experiment import Experiment, draw, train
from jaxgen.training import OptimizerConfig, TrainConfig

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
CONFIGS = {
    "PixelCNN": models.PixelCNNConfig(layers=4, width=24),
    "Row LSTM": models.RowLSTMConfig(layers=3, width=32),
    "Diagonal BiLSTM": models.DiagonalBiLSTMConfig(layers=2, width=24),
    "Gated PixelCNN": models.GatedPixelCNNConfig(layers=4, width=48, input_kernel=5, dropout=0.15),
    "PixelCNN++": models.PixelCNNPPConfig(width=24, resnets=1, resolutions=2, mixtures=5, dropout=0.1),
    "PixelSNAIL": models.PixelSNAILConfig(blocks=2, width=24, resnets=2, key=16, value=24, dropout=0.1),
    "Image Transformer": models.ImageTransformerConfig(layers=4, width=64, heads=4, hidden=256, dropout=0.1),
}


def run(config, seed: int, minutes: float, folder: Path) -> dict:
    """Train one model with one seed; its row of the table."""
    workdir = folder / f"run_{seed}"
    experiment = Experiment(
        model=config,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50),
        train=TrainConfig(steps=10**6, batch_size=64, seed=seed, ema_decay=0.995, eval_every=100, max_minutes=minutes),
        workdir=str(workdir),
    )
    if code := train(experiment):  # a run that was stopped has not had its time
        raise SystemExit(code)
    model, test = jaxgen.load(workdir), load("digits", "test")
    result = evaluation.evaluate(model, test)
    steps = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    draw(model, jax.random.key(0), 64)  # compiles
    seconds = []
    for i in range(5):
        start = time.perf_counter()
        draw(model, jax.random.key(i), 64)
        seconds.append(time.perf_counter() - start)
    return {
        "test_bits_per_dim": result["bits_per_dim"],
        "standard_error": result["standard_error"],
        "parameters": models.count_parameters(model),
        "steps": steps,
        "training_images_per_second": steps * 64 / (60 * minutes),
        "sampling_images_per_second": 64 / float(np.median(seconds)),
    }


def environment(minutes: float) -> dict[str, str]:
    """Where and when, as the run begins: others may commit while it goes on."""
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False, cwd=RESULTS).stdout.strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}, {cores} core(s), load {os.getloadavg()[0]:.1f} at the start",
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}",
        "command": f"python -m experiments.compare_autoregressive --minutes {minutes:g}",
    }


def write(rows: dict[str, list[dict]], minutes: float, facts: dict[str, str]) -> None:
    """The table, the plot and the numbers."""
    fit = [load("digits", split) for split in ("train", "validation")]
    rulers = evaluation.rulers(fit, load("digits", "test"), models.RULERS)
    lines = [
        "# Autoregressive image models on 8x8 digits, equal training time",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        f"- {minutes:g} minutes of training steps for each model and seed, {len(next(iter(rows.values())))} seed(s), batch 64,"
        " 1,293 training images, 17 levels; tested on 360 images",
        "- test bits/dim: mean over the seeds +- standard error over the test images (mean of the seeds' errors); in brackets the spread"
        " (largest minus smallest seed)",
        "",
        "| model | test bits/dim | parameters | steps | training images/s | cached sampling images/s (64 at a time) |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in sorted(rows.items(), key=lambda item: _mean(item[1], "test_bits_per_dim")):
        bits = [run["test_bits_per_dim"] for run in runs]
        score = over_seeds(bits, [run["standard_error"] for run in runs], 3)
        rates = [_mean(runs, column) for column in ("steps", "training_images_per_second", "sampling_images_per_second")]
        lines.append(f"| {name} | {score} | {runs[0]['parameters']:,} | " + " | ".join(f"{rate:.0f}" for rate in rates) + " |")
    for name, result in rulers.items():
        value = evaluation.headline(result)[1]
        lines.append(f"| {name} ruler | {value:.3f} +- {result['standard_error']:.3f} | | | | |")
    lines += ["", "![Test bits/dim of each seed](digits.png)", ""]
    (RESULTS / "digits.md").write_text("\n".join(lines))
    (RESULTS / "digits.json").write_text(json.dumps({**facts, "minutes": minutes, "rows": rows, "rulers": rulers}, indent=1) + "\n")
    plot(rows)


def over_seeds(values: list[float], errors: list[float], digits: int) -> str:
    """A cell of a table: the mean over the seeds +- the mean of the seeds' standard errors, in brackets largest minus smallest seed."""
    return f"{np.mean(values):.{digits}f} +- {np.mean(errors):.{digits}f} [{max(values) - min(values):.{digits}f}]"


def _mean(runs: list[dict], name: str) -> float:
    return float(np.mean([run[name] for run in runs]))


def plot(rows: dict[str, list[dict]]) -> None:
    """Test bits/dim of each seed against the sampling speed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, runs in rows.items():
        x = [run["sampling_images_per_second"] for run in runs]
        y = [run["test_bits_per_dim"] for run in runs]
        axes.errorbar(x, y, yerr=[run["standard_error"] for run in runs], fmt="o", capsize=3, label=name)
    axes.set(xscale="log", xlabel="cached sampling, images per second", ylabel="test bits per dimension")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(RESULTS / "digits.png", dpi=110)


@dataclass(frozen=True)
class Options:
    """The command line."""

    minutes: float = 3.0  # training time of each model and seed
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # one seed and three seconds each; writes nothing


def main() -> None:
    """Every model with every seed, in turn."""
    options = tyro.cli(Options, description=__doc__)
    minutes, seeds = (0.05, SEEDS[:1]) if options.laptop else (options.minutes, SEEDS)
    facts, rows, folder = environment(minutes), {}, Path(tempfile.mkdtemp())
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        for config in CONFIGS.values():
            run(config, 0, 0.02, folder)
            shutil.rmtree(folder / "run_0")
        for seed in seeds:
            for name, config in CONFIGS.items():
                print(f"=== {name}, seed {seed}", flush=True)
                rows.setdefault(name, []).append(run(replace(config), seed, minutes, folder))
                print(f"=== {name}, seed {seed}: {rows[name][-1]}", flush=True)
                shutil.rmtree(folder / f"run_{seed}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not options.laptop:
        write(rows, minutes, facts)


if __name__ == "__main__":
    main()
