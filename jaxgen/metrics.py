"""The table of metrics: what each is called, in which unit it is told and whether less or more of it is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation. `axis` is what a plot says; `chooses`: whether the best checkpoint of a run is the one with the best.

    examples: how many it needs; of fewer it is nan.
    far: a value is far from the best of a run where it is worse by more than so many times the size of the best (in nats: that or 1, the
    larger one); None: never.
    """

    unit: str
    better: Literal["lower", "higher"]
    axis: str
    chooses: bool = True
    examples: int = 1
    far: float | None = None


METRICS = {
    "bits_per_dim": Metric("bits/dim", "lower", "bits per dimension", far=1),
    "bits_per_dim_bound": Metric("bits/dim (bound)", "lower", "bits per dimension", far=1),
    "bits_per_character": Metric("bits/character", "lower", "bits per character", far=1),
    "accuracy": Metric("accuracy", "higher", "accuracy", far=0.5),
    "log_loss": Metric("log-loss (nats)", "lower", "log-loss in nats", chooses=False),
    "nats": Metric("nats", "lower", "nats", far=1),
    "frechet_pixels": Metric("Frechet distance of pixels", "lower", "Frechet distance of pixels", examples=2, far=9),
    # The distance of points says nothing of the modes that are missed: the newest step of such a run is the one to take.
    "frechet_points": Metric("Frechet distance of points", "lower", "Frechet distance of points", chooses=False, examples=2),
    "modes_covered": Metric("modes", "higher", "modes covered", chooses=False),
    "high_quality_fraction": Metric("fraction of points", "higher", "points close to a mode", chooses=False),
    "smallest_mode_share": Metric("fraction of points", "higher", "share of the smallest mode", chooses=False),
}
"""In the order in which they are the headline of an evaluation: the first that a result has."""
OF_SAMPLES = ("frechet_pixels", "frechet_points", "modes_covered", "high_quality_fraction", "smallest_mode_share")
"""Those that are measured on samples, one for each example of a set."""


def headline(result: Mapping[str, object]) -> tuple[str, float]:
    """The name and value of the number to compare runs by: that in the unit of a kind of one's own, else the first of the table."""
    own = [name for name in result if name.startswith("bits_per_") and name not in METRICS]
    name = own[0] if own else next(name for name in METRICS if name in result)
    return name, result[name]


def score(metrics: Mapping[str, float | None], names: tuple[str, ...] | None = None) -> float | None:
    """What the best checkpoint has least of: the first number of `names` (None: of those that choose) that is there; its negative where
    more is better."""
    names = tuple(name for name, metric in METRICS.items() if metric.chooses) if names is None else names
    name = next((name for name in names if metrics.get(name) is not None), None)
    if name is None:
        return None
    return -metrics[name] if name in METRICS and METRICS[name].better == "higher" else metrics[name]
