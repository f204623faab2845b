"""Gaussians of CIFAR-10: full, diagonal and low-rank covariances, fitted on 50,000 images; the ruler of the tables of bits per dimension.

    python -m experiments.gaussian_cifar10                  a TFDS name, or --data FOLDER with train.npz and test.npz; minutes on a CPU core
    python -m experiments.gaussian_cifar10 --laptop         scikit-learn's digits: seconds

Prints the table of experiments/results/likelihoods.md. One of them as a run:
jaxgen train multivariate_gaussian --data.name cifar10 --data.validation 0
"""

import time
from dataclasses import replace

import jax
import tyro

from jaxgen import evaluation
from jaxgen.data import Dataset, load
from jaxgen.models import MultivariateGaussian, MultivariateGaussianConfig

FIRST = 1000


def first(dataset: Dataset, n: int) -> Dataset:
    """The first n images."""
    return Dataset(dataset.source.select(slice(n)), dataset.name, dataset.split)


def row(config: MultivariateGaussianConfig, train: Dataset, test: Dataset) -> str:
    """Bits/dim, one draw of the noise for each image: of the first training images, the first test images, all test images."""
    start = time.perf_counter()
    model = MultivariateGaussian.fit(train, config, jax.random.key(0))
    seconds, cells = time.perf_counter() - start, []
    for dataset in (first(train, FIRST), first(test, FIRST), test):
        result = evaluation.evaluate(model, dataset, batch_size=250)
        cells.append(f"{result['bits_per_dim_bound']:.3f} +- {result['standard_error']:.3f}")
    name = f"low rank, K = {config.rank}" if config.covariance == "low_rank" else config.covariance
    return f"| {name} | {' | '.join(cells)} | {seconds:.0f} |"


def main(data: str = "cifar10", laptop: bool = False, ranks: tuple[int, ...] = (30, 100)) -> None:
    """The table. data: the name of the set; ranks: those of the low-rank covariances; laptop: on digits, with ranks of 5."""
    name, ranks = ("digits", (5,)) if laptop else (data, ranks)
    splits = ("train",) if laptop else ("train", "validation")
    parts = [load(name, split) for split in splits]
    train = parts[0] if laptop else Dataset(parts[0].source.joined(parts[1].source), name, "train")
    test = load(name, "test")
    config = MultivariateGaussianConfig(train.image_shape, train.levels)
    print(f"{len(train)} training images, {len(test)} test images, {train.image_shape}, {train.levels} levels\n")
    print(f"| covariance | train, first {FIRST} | test, first {FIRST} | test, all {len(test)} | seconds to fit |\n|---|---|---|---|---|")
    for kind in (config, *(replace(config, covariance="low_rank", rank=rank) for rank in ranks), replace(config, covariance="diagonal")):
        print(row(kind, train, test), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
