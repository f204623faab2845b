"""The table of metrics: name, unit, and whether a lower or a higher value is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation. axis: the label of a plot's axis. chooses: whether the best checkpoint of a run can be chosen by it.

    examples: how many examples it needs; with fewer it is nan.
    far: a warning is given where a value is worse than the best of the run by more than far * |best| (for nats: far * max(|best|, 1));
    None: no warning. printed: the format of its value in a report on samples.
    """

    unit: str
    better: Literal["lower", "higher"]
    axis: str
    chooses: bool = True
    examples: int = 1
    far: float | None = None
    printed: str = ".4f"


METRICS = {
    "bits_per_dim": Metric("bits/dim", "lower", "bits per dimension", far=1),
    "bits_per_dim_bound": Metric("bits/dim (bound)", "lower", "bits per dimension", far=1),
    "bits_per_character": Metric("bits/character", "lower", "bits per character", far=1),
    "accuracy": Metric("accuracy", "higher", "accuracy", far=0.5),
    "log_loss": Metric("log-loss (nats)", "lower", "log-loss in nats", chooses=False),
    "nats": Metric("nats", "lower", "nats", far=1),
    "squared_error": Metric("squared error per dimension", "lower", "mean squared error of pixels in [0, 1]", far=9),
    "absolute_error": Metric("absolute error", "lower", "mean absolute error of pixels in [0, 1]", far=3),
    "psnr": Metric("PSNR (dB)", "higher", "peak signal-to-noise ratio in decibels", chooses=False),
    "ssim": Metric("SSIM", "higher", "structural similarity", chooses=False),
    "frechet_pixels": Metric("Frechet distance of pixels", "lower", "Frechet distance of pixels", examples=2, far=9),
    # This distance does not show missed modes, so it chooses no checkpoint: `load` then takes the newest.
    "frechet_points": Metric("Frechet distance of points", "lower", "Frechet distance of points", chooses=False, examples=2),
    "modes_covered": Metric("modes", "higher", "modes covered", chooses=False),
    "high_quality_fraction": Metric("fraction of points", "higher", "points close to a mode", chooses=False),
    "smallest_mode_share": Metric("fraction of points", "higher", "share of the smallest mode", chooses=False),
    "mode_kl": Metric("KL of the modes (nats)", "lower", "KL of the histogram of modes in nats", chooses=False),
    "frechet_pixels_floor": Metric("Frechet distance of pixels, real against real", "lower", "Frechet distance of pixels", chooses=False),
    "frechet_points_floor": Metric("Frechet distance of points, real against real", "lower", "Frechet distance of points", chooses=False),
}
"""Ordered: the headline of an evaluation is the first of these that its result has."""
OF_PAIRS = ("absolute_error", "psnr", "ssim")
"""Metrics of outputs beside the true ones of their inputs (pairs.py)."""
OF_MODES = ("modes_covered", "high_quality_fraction", "smallest_mode_share", "mode_kl")
"""Metrics of points beside the modes of a mixture."""
OF_SAMPLES = ("frechet_pixels", "frechet_points", *OF_MODES, "frechet_pixels_floor", "frechet_points_floor")
"""Metrics that compare samples with a data set; as many samples are drawn as the set has examples."""
FLOORS = {name: f"{name}_floor" for name in ("frechet_pixels", "frechet_points")}
"""What stands beside a distance of samples: the same distance of real examples."""

OF_FEATURES = {
    "frechet_features": Metric("Frechet distance of features", "lower", "Frechet distance of features", chooses=False, examples=2),
    "kernel_features": Metric("kernel distance", "lower", "kernel distance of features", chooses=False, examples=2, printed=".3g"),
    "precision": Metric("share of the samples", "higher", "precision", chooses=False),
    "recall": Metric("share of the real examples", "higher", "recall", chooses=False),
    "density": Metric("balls over k", "higher", "density", chooses=False, examples=6),
    "coverage": Metric("share of the real examples", "higher", "coverage", chooses=False, examples=6),
    "classifier_score": Metric("classes", "higher", "classifier score", chooses=False),
    "recognised": Metric("share of the samples", "higher", "samples of the class asked for", chooses=False),
    "trained_on_samples": Metric("accuracy", "higher", "accuracy on real examples after training on samples", chooses=False),
    "memorisation_ratio": Metric("ratio of distances", "higher", "distance from training examples, over held-out ones", chooses=False),
    "held_out_ratio": Metric("ratio of distances", "higher", "distance from held-out examples, over training ones", chooses=False),
    "copies": Metric("share of the samples", "lower", "samples that equal a training example", chooses=False),
}
"""Metrics that compare samples with real examples in the features of a network, and others of `jaxgen quality`, in the order printed."""

OF_MOLECULES = {
    "validity": Metric("share of the samples", "higher", "valid molecules", chooses=False),
    "uniqueness": Metric("share of the valid samples", "higher", "different molecules", chooses=False),
    "uniqueness@1000": Metric("share of the first 1000 valid samples", "higher", "different molecules of 1000", chooses=False),
    "uniqueness@10000": Metric("share of the first 10,000 valid samples", "higher", "different molecules of 10,000", chooses=False),
    "novelty": Metric("share of the different molecules", "higher", "molecules that are not in the training set", chooses=False),
    "internal_diversity_1": Metric("1 - similarity", "higher", "internal diversity, p = 1", chooses=False),
    "internal_diversity_2": Metric("1 - similarity", "higher", "internal diversity, p = 2", chooses=False),
    "snn": Metric("similarity", "higher", "similarity to the nearest real molecule", chooses=False),
    "fragment_similarity": Metric("cosine", "higher", "similarity of BRICS fragments", chooses=False),
    "scaffold_similarity": Metric("cosine", "higher", "similarity of scaffolds", chooses=False),
    "filters": Metric("share of the valid samples", "higher", "molecules that pass the filters", chooses=False),
    "logp_distance": Metric("logP", "lower", "Wasserstein distance of logP", chooses=False),
    "sa_distance": Metric("SA score", "lower", "Wasserstein distance of the SA score", chooses=False),
    "qed_distance": Metric("QED", "lower", "Wasserstein distance of QED", chooses=False),
    "weight_distance": Metric("g/mol", "lower", "Wasserstein distance of molecular weight", chooses=False, printed=".2f"),
}
"""Numbers of drawn molecules beside real ones (molecules.py), in the order printed."""


def headline(result: Mapping[str, object]) -> tuple[str, float]:
    """Name and value of the main number of a result: "bits_per_x" if it is not in the table (the unit of a user's own feature, "bits/x"),
    else the first metric of the table that the result has."""
    own = [name for name in result if name.startswith("bits_per_") and name not in METRICS]
    name = own[0] if own else next(name for name in METRICS if name in result)
    return name, result[name]


def score(metrics: Mapping[str, float | None], names: tuple[str, ...] | None = None) -> float | None:
    """The number by which checkpoints are compared, lowest is best: the first metric of `names` (None: of those with `chooses`) that
    `metrics` has, negated where higher is better. None if it has none of them."""
    names = tuple(name for name, metric in METRICS.items() if metric.chooses) if names is None else names
    name = next((name for name in names if metrics.get(name) is not None), None)
    if name is None:
        return None
    return -metrics[name] if name in METRICS and METRICS[name].better == "higher" else metrics[name]
