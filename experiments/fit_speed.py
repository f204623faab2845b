"""Time of PCA and of EM for mixtures of Gaussians on 50,000 vectors of 3072 values, beside scikit-learn's, in turns in one process.

    taskset -c 0 python -m experiments.fit_speed              half an hour on one CPU core, 8 GB
    python -m experiments.fit_speed --laptop                  2000 vectors of 192 values: seconds

The vectors are noise with a few common directions: no time here depends on their values. PCA with 16 components: the exact form of
scikit-learn, svd_solver="covariance_eigh"; its default here is a randomized method, which is approximate and another amount of work. EM:
three iterations from a start that both are given. Measured: experiments/results/likelihoods.md.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import tyro
from sklearn.decomposition import PCA as TheirPCA
from sklearn.mixture import GaussianMixture

from jaxgen.data import Dataset
from jaxgen.models import PCA, GMMConfig, PCAConfig
from jaxgen.models.gmm import Mixture, em

KEY = jax.random.key(0)


def images(n: int, side: int) -> np.ndarray:
    """n images [side, side, 3] with values 0 .. 255."""
    generator = np.random.default_rng(0)
    common = generator.standard_normal((n, 8), np.float32) @ generator.standard_normal((8, side * side * 3), np.float32)
    noise = generator.standard_normal((n, side * side * 3), np.float32)
    return np.clip(128 + 20 * common + 20 * noise, 0, 255).astype(np.uint8).reshape(n, side, side, 3)


def seconds(call: Callable) -> float:
    """CPU time of one call: on a pinned core what it takes there, whatever else runs on it."""
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(name: str, ours: Callable, theirs: Callable, repetitions: int) -> None:
    """One row: the medians of calls in turns, and the median of their ratios."""
    pairs = np.array([(seconds(ours), seconds(theirs)) for _ in range(repetitions)])
    mine, other = np.median(pairs, axis=0)
    ratios = pairs[:, 0] / pairs[:, 1]
    print(f"| {name} | {mine:.2f} | {other:.2f} | {np.median(ratios):.2f} [{ratios.min():.2f} .. {ratios.max():.2f}] |", flush=True)


def main(laptop: bool = False, repetitions: int = 3, components: int = 10, full: int = 1) -> None:
    """The table. components: of the mixture with diagonal covariances; full: of the one with full covariances, 0 to leave it out."""
    x = images(*((2000, 8) if laptop else (50_000, 32)))
    dataset, flat = Dataset.from_arrays(x), x.reshape(len(x), -1).astype(np.float64)
    d = flat.shape[1]
    print("| on one core | CPU seconds | scikit-learn | ratio, median [range] |\n|---|---|---|---|", flush=True)
    config = PCAConfig(x.shape[1:], 256, 16)
    theirs = TheirPCA(16, svd_solver="covariance_eigh")
    compare(f"PCA of {len(x)} x {d}, 16 components", lambda: PCA.fit(dataset, config, KEY), lambda: theirs.fit(flat), repetitions)
    for kind, word, k in (("diagonal", "diag", components), ("full", "full", full)):
        if not k:
            continue
        mixture = GMMConfig(x.shape[1:], 256, k, kind, iterations=1, tolerance=0.0, ridge=1.0)
        means = flat[:k] + 0.5
        variance = np.full((k, d), 2500.0) if kind == "diagonal" else np.stack([2500 * np.eye(d)] * k)
        begin, precision = Mixture(np.full(k, 1 / k), means, variance), 1 / variance if kind == "diagonal" else variance / 2500**2

        def ours(config=mixture, begin=begin):
            em(dataset, replace(config, iterations=3), begin)

        def sklearn(word=word, k=k, means=means, precision=precision):
            start = {"weights_init": np.full(k, 1 / k), "means_init": means, "precisions_init": precision}
            with warnings.catch_warnings(action="ignore"):  # that it has not converged
                GaussianMixture(k, covariance_type=word, max_iter=3, tol=0, reg_covar=1.0, init_params="random", **start).fit(flat)

        compare(f"EM, 3 iterations, K = {k}, {kind}", ours, sklearn, repetitions)


if __name__ == "__main__":
    tyro.cli(main)
