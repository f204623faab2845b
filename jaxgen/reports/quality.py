"""The lines of `jaxgen quality`: samples of a model beside real images in the features of a classifier, or beside real points by their
coordinates, and what needs no features."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxgen import evaluation, sharding
from jaxgen.data import Dataset
from jaxgen.data.arrays import NO_SPLIT
from jaxgen.errors import ConfigError, JaxgenError
from jaxgen.measures.metrics import METRICS, OF_FEATURES, OF_MODES
from jaxgen.measures.scores import too_few
from jaxgen.reports.drawing import all_rows, given, modelled
from jaxgen.sharding import announce

OF_POINTS = {name: replace(METRICS[name], printed=".4g") for name in OF_MODES}
PRINTED = OF_FEATURES | OF_POINTS
REAL = {"trained_on_samples": "  trained on real {}s", "copies": "  of the real {}s"}
"""How the line under a number is called, where it is neither that of two real sets nor the same number of the real examples."""


def print_quality(
    experiment: Any, model, network, options: Any, read: Callable[[str], Dataset], learned: Callable[[], Dataset] | None = None
) -> None:
    """Draws as many samples as are compared, given the labels (vectors, ...) of the real examples, and prints the numbers of `OF_FEATURES`
    with what real examples get; for points beside a mixture with known centres also those of `mode_coverage`.

    network: the classifier; None for a model of points, whose coordinates are compared. options: a `commands.Quality`. read(split): the
    data of the run. learned(): the training split of the classifier, to look whether the three sets of images are disjoint; None: that is
    not looked at. Raises ConfigError where the network is no classifier of such images.
    """
    if network is not None:
        _check(model, network)
    dataset = read(options.split)
    features = _coordinates if network is None else evaluation.classifier_features(network, options.layer)
    batch_size = options.batch_size or experiment.train.batch_size
    mesh = sharding.split_mesh(experiment.train.fsdp) or sharding.make_mesh()
    name, noun = model.config.modelled, modelled(model).noun
    columns, samples = evaluation.draw_like(model, dataset, jax.random.key(options.seed), batch_size, mesh, options.n)
    real, more, training = columns[name], _more(dataset, read, len(samples)), all_rows(read("train"), name)
    result = evaluation.compare_samples(samples, real, features, more[name], options.k)
    if network is not None:
        result |= _of_classifier(network, samples, real, columns["label"] if "label" in given(model) else None)
    if "label" in given(model):
        result |= _of_training(samples, columns["label"], more[name], more["label"], real, columns["label"])
    if options.split != "train":
        result |= evaluation.memorisation(samples, real, training)
    if {"centres", "scale"} == set(dataset.facts):
        for end, points in ("", samples), ("_real", real):
            result |= {f"{one}{end}": value for one, value in evaluation.mode_coverage(points, **dataset.facts).items()}
    announce("features    " + (f"the coordinates of the {noun}s" if network is None else _said(network, options)))
    announce(f"compared    {result['n']} samples with {result['n']} {options.split} {noun}s; real against real {result['n_floor']} of each")
    for line in _overlaps(real, f"{options.split} {noun}s", training, learned):
        announce(line)
    for one, metric in PRINTED.items():
        if one in result:
            announce(_line(one, one, result) + f"  ({metric.better} is better)")
            other = f"{one}_floor" if f"{one}_floor" in result else f"{one}_real"
            said = REAL.get(one, "  real against real" if other.endswith("floor") else "  of the real {}s").format(noun)
            announce(_line(said, other, result))


def _coordinates(points: np.ndarray) -> np.ndarray:
    return points.reshape(len(points), -1)


def _said(network, options: Any) -> str:
    layer = options.layer or network.layers[-2]
    return f"{type(network).__name__} {options.features}, layer {layer}, weights {evaluation.weights_hash(network)}"


def _of_classifier(network, samples: np.ndarray, real: np.ndarray, label: np.ndarray | None) -> dict[str, float]:
    """The classifier's score of samples and of real images, and the shares of them that it recognises, if they have labels."""
    result = {}
    for end, images in ("", samples), ("_real", real):
        score, error = evaluation.classifier_score(evaluation.logits_of(network, images))
        result |= {f"classifier_score{end}": score, f"classifier_score{end}_standard_error": error}
        if label is not None:
            share, error = evaluation.share_recognised(network, images, label)
            result |= {f"recognised{end}": share, f"recognised{end}_standard_error": error}
    return result


def _of_training(samples, label, more, more_label, real, real_label) -> dict[str, float]:
    """The accuracy on real examples after training on samples, and after training on as many real ones of another split."""
    result, n = {}, min(len(samples), len(more))
    for end, x, y in ("", samples, label), ("_real", more, more_label):
        share = evaluation.accuracy_trained_on(x[:n], np.asarray(y[:n]), real, np.asarray(real_label))
        error = math.sqrt(share * (1 - share) / len(real))
        result |= {f"trained_on_samples{end}": share, f"trained_on_samples{end}_standard_error": error}
    return result


def _line(said: str, name: str, result: dict) -> str:
    """One number with its standard error, or why there is none."""
    metric = PRINTED[name.removesuffix("_floor").removesuffix("_real")]
    n = result["n_floor" if name.endswith("_floor") else "n"]
    if math.isnan(result[name]):
        why = too_few(n, metric.examples) if n < metric.examples else "cannot be computed: half of the real examples are training examples"
        return f"{said:<27} {why}"
    error = result.get(f"{name}_standard_error", math.nan)
    return f"{said:<27} {result[name]:{metric.printed}}" + (f" +- {error:{metric.printed}}" if math.isfinite(error) else "")


def _overlaps(real: np.ndarray, said: str, training: np.ndarray, learned: Callable[[], Dataset] | None) -> list[str]:
    """The lines that say how many examples those that are compared, the model's training set and the classifier's have in common."""
    ours = _prints(training)
    here = f"splits      {_count(real, ours)} of the {len(real)} {said} are among the {len(training)} that the model was trained on"
    if learned is None:
        return [here]
    try:
        theirs = all_rows(learned(), "image")
    except (JaxgenError, *NO_SPLIT) as error:
        return [f"{here}; those of the classifier cannot be read: {error}"]
    here += f", {_count(real, _prints(theirs))} among the {len(theirs)} of the classifier"
    common = _count(theirs, ours)
    return [here, f"            {common} of the classifier are among those of the model" + (", none would be better" if common else "")]


def _prints(images: np.ndarray) -> set[bytes]:
    """A short hash of every example."""
    return {hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest() for image in images}


def _count(images: np.ndarray, among: set[bytes]) -> int:
    return sum(bool(_prints(image[None]) & among) for image in images)


def _check(model, network) -> None:
    have, wanted = modelled(model), getattr(network, "config", None) and network.config.features.get("image")
    if not hasattr(network, "predict") or wanted is None:
        raise ConfigError("--features", "the run of a classifier of images", type(network).__name__)
    if (tuple(have.shape), have.levels) != (tuple(wanted.shape), wanted.levels):
        raise ConfigError("--features", f"a classifier of {have.said}, as the model draws", wanted.said)
    if "label" in given(model) and model.config.features["label"].classes != network.config.features["label"].classes:
        classes = model.config.features["label"].said
        raise ConfigError("--features", f"a classifier of the model's {classes}", network.config.features["label"].said)


def _more(dataset: Dataset, read: Callable[[str], Dataset], n: int) -> dict[str, np.ndarray]:
    """n real examples of another split, for the floor."""
    other = read("test" if dataset.split == "train" else "train")
    rows = np.random.default_rng(0).permutation(len(other))[:n]
    return other.source.read(rows)
