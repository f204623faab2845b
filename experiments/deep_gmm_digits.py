"""Deep mixtures of Gaussians of scikit-learn's digits, by the maps of their layers, with full and hard E-steps, beside one layer.

    python -m experiments.deep_gmm_digits              about ten minutes on one CPU core
    python -m experiments.deep_gmm_digits --laptop     one of them, a few iterations

Prints the table of experiments/results/likelihoods.md. One of them as a run: jaxgen train deep_gmm --model.maps 2 5
"""

import jax
import tyro

from jaxgen import evaluation
from jaxgen.data import load
from jaxgen.models import DeepGMM, DeepGMMConfig, count_parameters

SIZES = ((1,), (2,), (5,), (10,), (2, 2), (2, 5), (5, 2), (5, 4, 3))


def main(laptop: bool = False, seeds: int = 3) -> None:
    """The table; of each seed another start of EM, the one with the best score in validation is told."""
    splits = {split: load("digits", split) for split in ("train", "validation", "test")}
    print("| maps of the layers | E-step | parameters | train | validation | test |\n|---|---|---|---|---|---|", flush=True)
    for maps in SIZES[-4:-3] if laptop else SIZES:
        for step in ("full", "hard") if len(maps) > 1 else ("full",):
            config, found = DeepGMMConfig(maps=maps, e_step=step, iterations=3 if laptop else 200), []
            for seed in range(1 if laptop or maps == (1,) else seeds):
                model = DeepGMM.fit(splits["train"], config, jax.random.key(seed))
                found.append({split: evaluation.evaluate(model, dataset, samples=4) for split, dataset in splits.items()})
            best = min(found, key=lambda result: result["validation"]["bits_per_dim_bound"])
            cells = [f"{one['bits_per_dim_bound']:.3f} +- {one['standard_error']:.3f}" for one in best.values()]
            name = " x ".join(map(str, maps))
            print(f"| {name} | {step} | {count_parameters(model):,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
