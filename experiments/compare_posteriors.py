"""VAEs whose posteriors are Gaussian, planar flows and inverse autoregressive flows, on the fixed binarization of MNIST: nats per image.

    python -m experiments.compare_posteriors                            TFDS's own binarized_mnist (extra: tfds); half an hour
    python -m experiments.compare_posteriors --data FOLDER              train.npz, valid.npz, test.npz of your own
    python -m experiments.compare_posteriors --laptop --data FOLDER     one seed and three steps each, 20 test images; keeps nothing

Encoder and decoder (784-300-40-300-784) are the same for all, so the posteriors have more parameters the more maps they have; the widths of
the inverse autoregressive flows are such that they have as many as the 8, and as the 32, planar maps. Three seeds. Reported: the
importance-weighted bound L_k on all test images, and what a posterior gains on the plain one of the same seed, paired by image. Keeps each
model's bounds as --folder/NAME_SEED.npz, goes on from them, and prints the table of experiments/results/likelihoods.md.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import tyro

import jaxgen
from experiments.compare_autoregressive import over_seeds
from jaxgen.data import Dataset, load
from jaxgen.evaluation.likelihoods import numbers
from jaxgen.models import IAFConfig, count_parameters

VAE = IAFConfig(image_shape=(28, 28, 1), levels=2, latent=40, hidden=(300,))
PLAIN = "plain"
CONFIGS = {
    PLAIN: replace(VAE, flow="none"),
    "planar, 2 maps": replace(VAE, flow="planar", steps=2),
    "planar, 8 maps": replace(VAE, flow="planar", steps=8),
    "inverse autoregressive, 2 maps of 232 units": replace(VAE, flow_hidden=232),
    "planar, 32 maps": replace(VAE, flow="planar", steps=32),
    "inverse autoregressive, 2 maps of 926 units": replace(VAE, flow_hidden=926),
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    data: str = "binarized_mnist"  # the data set
    steps: int = 6000  # of each model and seed, of 100 images
    seeds: int = 3
    k: int = 100  # draws of the importance-weighted bound
    folder: Path = Path("runs/compare_posteriors")  # of the bounds; those of other steps or another k must not be in it
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # one seed and three steps each; keeps nothing


def run(config: IAFConfig, seed: int, options: Options, sets: list[Dataset]) -> dict[str, np.ndarray]:
    """Train one model: its bounds L and L_k of every test image in nats, its parameters and the CPU minutes of training."""
    start, (train, validation, test) = time.process_time(), sets
    every = max(1, options.steps // 6)
    model = jaxgen.train(config, train, options.steps, validation=validation, batch_size=100, seed=seed, eval_every=every)
    minutes, key = (time.process_time() - start) / 60, jax.random.key(seed)
    elbo, tighter = numbers(model, test, "elbo", 100, key), numbers(model, test, "importance", 100, key, options.k)
    return {"elbo": elbo, "importance": tighter, "parameters": count_parameters(model), "minutes": minutes}


def cell(values: list[np.ndarray]) -> str:
    """From [N] of each seed: its mean and standard error over the images, over the seeds."""
    return over_seeds([value.mean() for value in values], [value.std(ddof=1) / len(value) ** 0.5 for value in values], 2)


def table(rows: dict[str, list[dict[str, np.ndarray]]], k: int) -> list[str]:
    """The lines of the table; a seed counts for the gain where the plain posterior has it too."""
    lines = [f"| posterior | -L_{k}, test nats | -L, test nats | gain on plain, paired | seeds | parameters | CPU minutes a seed |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, runs in rows.items():
        gains = [run["importance"] - plain["importance"] for run, plain in zip(runs, rows[PLAIN], strict=False)]
        cells = [cell([-run[bound] for run in runs]) for bound in ("importance", "elbo")]
        cells += ["" if name == PLAIN else cell(gains), str(len(runs)), f"{int(runs[0]['parameters']):,}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {np.mean([run['minutes'] for run in runs]):.1f} |")
    return lines


def main() -> None:
    """Every model with the first seed, then with the next, as far as the folder has not got it."""
    options = tyro.cli(Options, description=__doc__)
    sets = [load(options.data, split) for split in ("train", "validation", "test")]
    if options.laptop:
        test = Dataset(sets[2].source.select(slice(20)), sets[2].name, "test")
        options, sets = replace(options, steps=3, seeds=1, k=5), [*sets[:2], test]
    rows = {name: [] for name in CONFIGS}
    for seed in range(options.seeds):
        for name, config in CONFIGS.items():
            path = options.folder / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}.npz"
            if options.laptop or not path.exists():
                done = run(config, seed, options, sets)
                if not options.laptop:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.savez(path, **done)
            else:
                done = dict(np.load(path, allow_pickle=False))
            rows[name].append(done)
            print(f"=== {name}, seed {seed}: -L_{options.k} {-done['importance'].mean():.2f} nats", flush=True)
    print("\n".join(["", *table(rows, options.k)]))


if __name__ == "__main__":
    main()
