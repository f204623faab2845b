"""All density models on scikit-learn's digits with one budget: equal training steps, three seeds.

    python -m experiments.compare_densities                 1000 steps a model and seed, about an hour on one CPU core
    python -m experiments.compare_densities --steps 500     a shorter budget (the table says which)
    python -m experiments.compare_densities --laptop        one seed and three steps each, to see that it runs; writes nothing

Writes experiments/results/densities.json after each model and seed, goes on from it, and prints the table of
experiments/results/likelihoods.md. Batch size, rate and average are the same for all; the step is chosen on the validation split. Gaussians
and mixtures are fitted to the training split by closed form or EM. Models with codes are those of compare_latent with the same budget:
their rows are taken from its latent.json. What a model reaches in these steps ranks neither architectures nor their papers.
"""

import json
import time
from dataclasses import dataclass, replace

import jax
import numpy as np
import tyro

import jaxgen
from experiments import (
    diffusion_digits,
    flow_matching_digits,
    flows_digits,
    iaf_digits,
    made_digits,
    nade_digits,
    nice_digits,
    realnvp_digits,
    ride_digits,
)
from experiments.compare_autoregressive import CONFIGS as AUTOREGRESSIVE
from experiments.compare_autoregressive import over_seeds
from experiments.compare_latent import RESULTS, SEEDS, facts
from jaxgen import evaluation, models
from jaxgen.data import load
from jaxgen.experiment import closed_form

MADE, FLOW = made_digits.config.model, flows_digits.config.model
CONFIGS = {
    "Gaussian, diagonal": models.MultivariateGaussianConfig(covariance="diagonal"),
    "Gaussian, full": models.MultivariateGaussianConfig(),
    "Gaussian, rank 16": models.MultivariateGaussianConfig(covariance="low_rank", rank=16),
    "PCA, 16 components": models.PCAConfig(),
    "mixture of 40 diagonal Gaussians": models.GMMConfig(components=40, covariance="diagonal"),
    "deep mixture of 2 x 5 full Gaussians": models.DeepGMMConfig(),
    "MADE, one order": replace(MADE, masks=1, shuffled=False),
    "MADE, 8 orders": MADE,
    "NADE": nade_digits.config.model,
    "MAF": FLOW,
    "autoregressive spline flow": replace(FLOW, transform="spline"),
    "NICE": nice_digits.config.model,
    "RealNVP": realnvp_digits.config.model,
    "VAE, inverse autoregressive flow": iaf_digits.config.model,
    "VAE, planar flow of 8": replace(iaf_digits.config.model, flow="planar", steps=8),
    "RIDE": ride_digits.config.model,
    "diffusion": diffusion_digits.config.model,
    "flow matching": flow_matching_digits.config.model,
    **{name: config for name, config in AUTOREGRESSIVE.items() if name != "Gated PixelCNN"},
}
MEASURED = ("VAE", "NVAE", "VQ-VAE, uniform prior", "VQ-VAE-2, given the class", "Gated PixelCNN")
"""Rows of latent.json."""


def run(config, seed: int, steps: int) -> dict:
    """Train or fit one model with one seed; its row of the table."""
    start, train, validation = time.process_time(), load("digits", "train"), load("digits", "validation")
    kind = models.MODELS[type(config)]
    fitted = closed_form(kind)
    if fitted:
        model = kind.fit(train, config, jax.random.key(seed))
    else:
        model = jaxgen.train(config, train, steps, validation=validation, seed=seed, eval_every=max(1, steps // 10))
    minutes = (time.process_time() - start) / 60
    result = evaluation.evaluate(model, load("digits", "test"))
    name, value = evaluation.headline(result)
    row = {"headline": name, "value": value, "standard_error": result["standard_error"], "minutes": minutes}
    return row | {"parameters": models.count_parameters(model), "fitted": fitted}


def table(rows: dict[str, list[dict]]) -> list[str]:
    """The lines of the table."""
    lines = ["| model | test bits/dim | kind | seeds | parameters | CPU minutes a seed |", "|---|---|---|---|---|---|"]
    for name, runs in sorted(rows.items(), key=lambda item: np.mean([run["value"] for run in item[1]])):
        values = [run["value"] for run in runs]
        bits = over_seeds(values, [run["standard_error"] for run in runs], 3)
        kind = "exact" if runs[0]["headline"] == "bits_per_dim" else "bound"
        minutes = np.mean([run["minutes"] for run in runs])
        lines.append(f"| {name} | {bits} | {kind} | {len(runs)} | {runs[0]['parameters']:,} | {minutes:.1f} |")
    sets = [load("digits", split) for split in ("train", "validation")]
    for name, result in evaluation.rulers(sets, load("digits", "test"), models.RULERS).items():
        lines.append(f"| {name} ruler | {evaluation.headline(result)[1]:.3f} +- {result['standard_error']:.3f} | | | | |")
    return lines


@dataclass(frozen=True)
class Options:
    """The command line."""

    steps: int = 1000  # of each model and seed
    only: tuple[str, ...] = ()  # names of the table to train; all where there are none
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # one seed and three steps each; writes nothing


def main() -> None:
    """Every model with the first seed, then with the next, as far as densities.json has not got it."""
    options, path = tyro.cli(Options, description=__doc__), RESULTS / "densities.json"
    steps, seeds = (3, SEEDS[:1]) if options.laptop else (options.steps, SEEDS)
    about = facts(f"python -m experiments.compare_densities --steps {steps}")
    known = json.loads(path.read_text()) if path.exists() and not options.laptop else {"steps": steps, "rows": {}} | about
    if known["steps"] != steps:
        raise SystemExit(f"{path.name} is of {known['steps']} steps, wanted {steps}: remove it to begin again")
    for seed in seeds:
        for name, config in CONFIGS.items():
            runs = known["rows"].setdefault(name, [])
            if len(runs) > seed or options.only and name not in options.only:
                continue
            runs.append(run(config, seed, steps))
            print(f"=== {name}, seed {seed}: {runs[-1]}", flush=True)
            if not options.laptop:
                path.write_text(json.dumps(known, indent=1) + "\n")
    latent = json.loads((RESULTS / "latent.json").read_text())["rows"]
    rows = {name: runs for name, runs in known["rows"].items() if runs} | {name: latent[name] for name in MEASURED}
    print("\n".join([*(f"- {name}: {value}" for name, value in known.items() if name != "rows"), "", *table(rows)]))


if __name__ == "__main__":
    main()
