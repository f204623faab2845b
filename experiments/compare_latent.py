"""Models of latent codes on scikit-learn's digits with one budget: equal training steps, three seeds.

    python -m experiments.compare_latent                 1000 steps a model and seed, half an hour on one CPU core
    python -m experiments.compare_latent --steps 500     a shorter budget (the table says which)
    python -m experiments.compare_latent --only VAE-GAN  one model; the other rows are those of latent.json, and no picture is drawn
    python -m experiments.compare_latent --laptop        one seed and three steps each, to see that it runs

Writes experiments/results/latent.json and the pictures latent_samples.png and latent_reconstructions.png, and prints the table of
experiments/results/latent.md. The step is chosen on the validation split. A model of several stages trains each of them for as many steps.
The time is the user and system time of training, validation and compilation, on whatever computer it was. What a model reaches in these
steps ranks neither architectures nor their papers.
"""

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import flax
import jax
import numpy as np
import tyro

import jaxgen
from experiments import (
    autoencoder_digits,
    compare_autoregressive,
    implicit_autoencoder_digits,
    nvae_digits,
    vae_digits,
    vae_gan_digits,
    vqvae2_digits,
    vqvae_digits,
)
from jaxgen import evaluation, models
from jaxgen.data import load

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
IMPORTANCE, SHOWN = 100, 10
"""Draws of the importance-weighted bound, and columns of the pictures."""
CONFIGS = {
    "auto-encoder": autoencoder_digits.config.model,
    "codes by Langevin steps": implicit_autoencoder_digits.config.model,
    "VAE": vae_digits.config.model,
    "VAE-GAN": vae_gan_digits.config.model,
    "NVAE": nvae_digits.config.model,
    "VQ-VAE, uniform prior": vqvae_digits.config.model,
    "VQ-VAE-2, given the class": vqvae2_digits.config.model,
    "Gated PixelCNN": compare_autoregressive.CONFIGS["Gated PixelCNN"],
}


def run(config, seed: int, steps: int) -> tuple[dict, dict]:
    """Train one model with one seed; its row of the table, and its images: samples, and reconstructions of the first test images."""
    start = time.process_time()
    validation, test = load("digits", "validation"), load("digits", "test")
    model = jaxgen.train(config, load("digits", "train"), steps, validation=validation, seed=seed, eval_every=max(1, steps // 15))
    row = {"parameters": models.count_parameters(model), "minutes": (time.process_time() - start) / 60}
    result = evaluation.evaluate(model, test)
    row["headline"], value = evaluation.headline(result)
    row |= {"value": value, "standard_error": result["standard_error"]}
    if hasattr(model, "importance_bound"):
        tighter = evaluation.evaluate(model, test, bound="importance", samples=IMPORTANCE)
        row |= {"importance": tighter["bits_per_dim_bound"], "importance_standard_error": tighter["standard_error"]}
    given = {"label": np.arange(SHOWN, dtype=np.int32) % 10} if getattr(config, "num_classes", 0) else {}
    images = {"samples": np.asarray(model.sample(jax.random.key(seed), SHOWN, **given))}
    if hasattr(model, "reconstruct"):
        again = np.asarray(model.reconstruct(test.images))
        errors = ((again.astype(float) - test.images) ** 2).mean((1, 2, 3)) / (test.levels - 1) ** 2
        row |= {"error": float(errors.mean()), "error_standard_error": float(errors.std(ddof=1) / len(errors) ** 0.5)}
        images["reconstructions"] = again[:SHOWN]
    return row, images


def table(rows: dict[str, list[dict]]) -> list[str]:
    """The lines of the table."""

    def cell(runs: list[dict], name: str, error: str, digits: int) -> str:
        values = [run[name] for run in runs if name in run]
        return compare_autoregressive.over_seeds(values, [run[error] for run in runs], digits) if values else ""

    lines = [
        f"| model | test bits/dim | importance-weighted, K = {IMPORTANCE} | error of reconstruction | parameters | CPU minutes a seed |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in rows.items():
        kind = {"bits_per_dim": "exact", "bits_per_dim_bound": "bound"}.get(runs[0]["headline"])
        bits = f"{cell(runs, 'value', 'standard_error', 3)}, {kind}" if kind else "none: no likelihood"
        tighter, error = cell(runs, "importance", "importance_standard_error", 3), cell(runs, "error", "error_standard_error", 4)
        minutes = np.mean([run["minutes"] for run in runs])
        lines.append(f"| {name} | {bits} | {tighter} | {error} | {runs[0]['parameters']:,} | {minutes:.1f} |")
    sets = [load("digits", split) for split in ("train", "validation")]
    for name, result in evaluation.rulers(sets, load("digits", "test"), models.RULERS).items():
        value = evaluation.headline(result)[1]
        lines.append(f"| {name} ruler | {value:.3f} +- {result['standard_error']:.3f} | | | | |")
    return lines


def facts(command: str) -> dict[str, str]:
    """Where, when and by which command, as the run begins: others may commit while it goes on."""
    describe = ["git", "describe", "--always", "--dirty"]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": subprocess.run(describe, capture_output=True, text=True, check=False, cwd=RESULTS).stdout.strip(),
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}, load {os.getloadavg()[0]:.1f} at the start",
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}",
        "command": command,
    }


def plot(images: dict[str, dict[str, np.ndarray]]) -> None:
    """latent_samples.png and latent_reconstructions.png: a row for each model, above the second the test images."""
    from matplotlib.figure import Figure

    test = load("digits", "test")
    for what in ("samples", "reconstructions"):
        shown = {name: parts[what] for name, parts in images.items() if what in parts}
        if what == "reconstructions":
            shown = {"test images": test.images[:SHOWN]} | shown
        figure = Figure(figsize=(SHOWN * 0.7 + 2.2, len(shown) * 0.75), layout="constrained")
        for row, (name, pictures) in enumerate(shown.items()):
            for column, picture in enumerate(pictures):
                axes = figure.add_subplot(len(shown), SHOWN, row * SHOWN + column + 1)
                axes.imshow(picture[..., 0], cmap="gray", vmin=0, vmax=test.levels - 1)
                axes.set(xticks=[], yticks=[])
                if column == 0:
                    axes.set_ylabel(name, rotation=0, ha="right", va="center")
        figure.savefig(RESULTS / f"latent_{what}.png", dpi=90)


@dataclass(frozen=True)
class Options:
    """The command line."""

    steps: int = 1000  # of each model and seed
    only: tuple[Literal[*CONFIGS], ...] = ()  # the models that are trained, by their names in the table; all of them by default
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # one seed and three steps each; writes nothing


def main() -> None:
    """Every model with every seed, in turn."""
    options = tyro.cli(Options, description=__doc__)
    steps, seeds = (3, SEEDS[:1]) if options.laptop else (options.steps, SEEDS)
    path, chosen = RESULTS / "latent.json", options.only or tuple(CONFIGS)
    saved = json.loads(path.read_text()) if options.only else {}
    only = f" --only {' '.join(options.only)}" if options.only else ""
    about = facts(f"python -m experiments.compare_latent --steps {steps}{only}")
    rows, images = {name: saved.get("rows", {}).get(name, []) for name in CONFIGS}, {}
    for name in chosen:
        rows[name] = []
        for seed in seeds:
            print(f"=== {name}, seed {seed}", flush=True)
            row, pictures = run(CONFIGS[name], seed, steps)
            rows[name].append(row)
            images.setdefault(name, pictures)
            print(f"=== {name}, seed {seed}: {row}", flush=True)
    rows = {name: runs for name, runs in rows.items() if runs}
    if not options.laptop:
        added = {"added": saved.get("added", {}) | dict.fromkeys(options.only, about)} if saved else {}
        path.write_text(json.dumps({**(saved or about), **added, "rows": rows}, indent=1) + "\n")
    if not options.laptop and not options.only:
        plot(images)
    print("\n".join([*(f"- {name}: {value}" for name, value in about.items()), "", *table(rows)]))


if __name__ == "__main__":
    main()
