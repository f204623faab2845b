"""A class-conditional model as a classifier, by Bayes' rule.

    p(y | x) = p(x | y) p(y) / sum_y' p(x | y') p(y'),      prediction = argmax_y log p(x | y) + log p(y)

p(y) is the frequency of the class in the training set. log p(x | y) is exact where the model has `log_prob`. A model with a lower bound
(`elbo`, `importance_bound`, or a density of images, see evaluation) has it in the place of log p(x | y): the prediction is then that of the
bounds, whose gaps may differ between the classes. The draws of a bound are the same for all classes of an example.

Axes: N examples, K classes.
"""

from dataclasses import fields
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PRNGKeyArray

from jaxgen import evaluation
from jaxgen.data.features import modelled
from jaxgen.errors import ConfigError
from jaxgen.evaluation.likelihoods import kind_of, numbers
from jaxgen.models import MODELS

LIKELIHOODS = {
    "exact": "log_prob, exact",
    "real density": "log_density, exact",
    "density": "log_density, a lower bound for integers",
    "elbo": "elbo, a lower bound",
    "importance": "importance_bound, a lower bound",
}
"""The kind of a model's likelihood, and how a report calls it."""
METHODS = ("log_prob", "log_density", "elbo")


class _OfClass:
    """A data set whose labels are all y."""

    def __init__(self, dataset: Any, y: int):
        self.dataset, self.features, self.y = dataset, dataset.features, y

    def __len__(self) -> int:
        return len(self.dataset)

    def epoch(self, batch_size: int, process: tuple[int, int] | None = None):
        for batch, real in self.dataset.epoch(batch_size, process):
            yield {**batch, "label": np.full_like(batch["label"], self.y)}, real


def check_model(model: Any) -> None:
    """ConfigError unless the model has a likelihood or a bound of it given a label."""
    conditional = "label" in set(model.config.features) - {model.config.modelled}
    if not conditional or not any(hasattr(model, method) for method in METHODS):
        known = [kind for kind in MODELS if "num_classes" in [field.name for field in fields(kind)]]
        names = [MODELS[kind].__name__ for kind in known if any(hasattr(MODELS[kind], method) for method in METHODS)]
        got = f"{type(model).__name__}" + ("" if conditional else " without a given label")
        raise ConfigError("model", f"a class-conditional model with a likelihood or a bound ({', '.join(sorted(names))})", got)


def log_prior(dataset: Any) -> Float[np.ndarray, " K"]:
    """log p(y), the logarithm of the share of each class among the labels of a data set; -inf for a class without examples."""
    label, n = dataset.features["label"], len(dataset)
    counts = np.bincount(np.asarray(dataset.labels), minlength=label.classes)
    with np.errstate(divide="ignore"):
        return np.log(counts / n)


def log_likelihoods(
    model: Any,
    dataset: Any,
    *,
    batch_size: int = 64,
    key: PRNGKeyArray | None = None,
    samples: int = 1,
    bound: str = "elbo",
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "N K"]:
    """log p(x | y) in nats, or the bound of it, of every example for every class y. The options are those of `evaluation.evaluate`."""
    check_model(model)
    kind, key = _kind(model, bound), jax.random.key(0) if key is None else key
    classes = range(model.config.features["label"].classes)
    return np.stack([numbers(model, _OfClass(dataset, y), kind, batch_size, key, samples, mesh) for y in classes], axis=1)


def classify(model: Any, dataset: Any, prior: Float[np.ndarray, " K"], **options: Any) -> dict[str, Any]:
    """{"accuracy", "log_loss"} of the predictions for the labelled examples of a data set, with their standard errors.

    prior: log p(y), see `log_prior`. options: those of `log_likelihoods`. log_loss: the mean of -log p(y | x) in nats for the label y,
    infinite where p(y) is 0. Also "most_frequent", the accuracy of always predicting the class with the largest p(y), "n", and
    "likelihood", which says by name whether log p(x | y) is exact or which bound stands in its place. ConfigError for a model without
    classes or likelihood.
    """
    likelihoods = log_likelihoods(model, dataset, **options)
    labels = np.asarray(dataset.labels)
    posterior = log_posterior(likelihoods, prior)
    loss, wrong = -posterior[np.arange(len(labels)), labels], posterior.argmax(1) != labels
    with np.errstate(invalid="ignore"):  # an infinite loss has no standard error: nan
        result = evaluation.classifier_metrics(np.stack([loss, wrong.astype(np.float64)], axis=1))
    kind, samples = _kind(model, options.get("bound", "elbo")), options.get("samples", 1)
    draws = "" if LIKELIHOODS[kind].endswith("exact") else f", {samples} draw{'s' * (samples > 1)} for each example"
    return result | {"most_frequent": float((labels == prior.argmax()).mean()), "likelihood": LIKELIHOODS[kind] + draws}


def log_posterior(likelihoods: Float[np.ndarray, "N K"], prior: Float[np.ndarray, " K"]) -> Float[np.ndarray, "N K"]:
    """log p(y | x) from log p(x | y) and log p(y), in float64."""
    joint = likelihoods + prior[None]
    top = joint.max(1, keepdims=True)
    return joint - top - np.log(np.exp(joint - top).sum(1, keepdims=True))


def _kind(model: Any, bound: str) -> str:
    """Which of LIKELIHOODS the model has."""
    kind = kind_of(model, bound)
    return "real density" if kind == "density" and not modelled(model.config).discrete else kind
