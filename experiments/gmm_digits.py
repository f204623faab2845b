"""Mixtures of Gaussians of scikit-learn's digits, by number of components and form of the covariance, beside one MultivariateGaussian.

    python -m experiments.gmm_digits              minutes on one CPU core
    python -m experiments.gmm_digits --laptop     two of them

Prints the table of experiments/results/likelihoods.md. One of them as a run: jaxgen train gmm --model.components 20
"""

import jax
import tyro

from jaxgen import evaluation
from jaxgen.data import load
from jaxgen.models import GMM, GMMConfig

SIZES = {"full": (1, 2, 5), "diagonal": (1, 10, 20, 40)}


def main(laptop: bool = False, seeds: int = 3) -> None:
    """The table; of each seed another start of EM, the one with the best score in validation is told."""
    splits = {split: load("digits", split) for split in ("train", "validation", "test")}
    print("| covariance | K | train | validation | test |\n|---|---|---|---|---|")
    for covariance, sizes in SIZES.items():
        for k in sizes[-1:] if laptop else sizes:
            config, found = GMMConfig(components=k, covariance=covariance), []
            for seed in range(1 if laptop or k == 1 else seeds):
                model = GMM.fit(splits["train"], config, jax.random.key(seed))
                found.append({split: evaluation.evaluate(model, dataset, samples=4) for split, dataset in splits.items()})
            best = min(found, key=lambda result: result["validation"]["bits_per_dim_bound"])
            cells = [f"{one['bits_per_dim_bound']:.3f} +- {one['standard_error']:.3f}" for one in best.values()]
            print(f"| {covariance} | {k} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
