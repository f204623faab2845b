"""The lines of `jaxgen quality`: samples of a model beside real images in the features of a classifier, and what needs no features."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxgen import evaluation, sharding
from jaxgen.data import Dataset
from jaxgen.data.arrays import NO_SPLIT
from jaxgen.data.features import Image
from jaxgen.errors import ConfigError, JaxgenError
from jaxgen.measures.metrics import OF_FEATURES
from jaxgen.measures.scores import too_few
from jaxgen.reports.drawing import given, modelled
from jaxgen.sharding import announce

REAL = {"trained_on_samples": "  trained on real images", "copies": "  of the real images"}
"""How the line under a number is called, where it is neither that of two real sets nor the same number of the real images."""


def print_quality(
    experiment: Any, model, network, options: Any, read: Callable[[str], Dataset], learned: Callable[[], Dataset] | None = None
) -> None:
    """Draws as many samples as are compared, given the labels (vectors, ...) of the real images, and prints the numbers of `OF_FEATURES`
    with what real images get.

    network: the classifier. options: a `commands.Quality`. read(split): the data of the run. learned(): the training split of the
    classifier, to look whether the three sets of images are disjoint; None: that is not looked at. Raises ConfigError where the model draws
    no images or the network is no classifier of such images.
    """
    _check(model, network)
    dataset = read(options.split)
    features = evaluation.classifier_features(network, options.layer)
    batch_size = options.batch_size or experiment.train.batch_size
    mesh = sharding.split_mesh(experiment.train.fsdp) or sharding.make_mesh()
    name = model.config.modelled
    columns, samples = evaluation.draw_like(model, dataset, jax.random.key(options.seed), batch_size, mesh, options.n)
    real, more = columns[name], _more(dataset, read, len(samples))
    result = evaluation.compare_samples(samples, real, features, more[name], options.k)
    for end, images in ("", samples), ("_real", real):
        score, error = evaluation.classifier_score(evaluation.logits_of(network, images))
        result |= {f"classifier_score{end}": score, f"classifier_score{end}_standard_error": error}
        if "label" in given(model):
            share, error = evaluation.share_recognised(network, images, columns["label"])
            result |= {f"recognised{end}": share, f"recognised{end}_standard_error": error}
    if "label" in given(model):
        n = min(len(samples), len(more[name]))
        sets = ("", samples, columns["label"]), ("_real", more[name], more["label"])
        for end, images, label in sets:
            share = evaluation.accuracy_trained_on(images[:n], np.asarray(label[:n]), real, np.asarray(columns["label"]))
            error = math.sqrt(share * (1 - share) / len(real))
            result |= {f"trained_on_samples{end}": share, f"trained_on_samples{end}_standard_error": error}
    training = _all(read("train"), name)
    if options.split != "train":
        result |= evaluation.memorisation(samples, real, training)
    layer = options.layer or network.layers[-2]
    announce(f"features    {type(network).__name__} {options.features}, layer {layer}, weights {evaluation.weights_hash(network)}")
    announce(f"compared    {result['n']} samples with {result['n']} {options.split} images; real against real {result['n_floor']} of each")
    if learned is not None:
        for line in _overlaps(real, options.split, training, learned):
            announce(line)
    for name, metric in OF_FEATURES.items():
        if name in result:
            announce(_line(name, name, result) + f"  ({metric.better} is better)")
            other = f"{name}_floor" if f"{name}_floor" in result else f"{name}_real"
            said = REAL.get(name, "  real against real" if other.endswith("floor") else "  of the real images")
            announce(_line(said, other, result))


def _line(said: str, name: str, result: dict) -> str:
    """One number with its standard error, or why there is none."""
    metric = OF_FEATURES[name.removesuffix("_floor").removesuffix("_real")]
    n = result["n_floor" if name.endswith("_floor") else "n"]
    if math.isnan(result[name]):
        why = too_few(n, metric.examples) if n < metric.examples else "cannot be computed: half of the real images are training images"
        return f"{said:<27} {why}"
    error = result.get(f"{name}_standard_error", math.nan)
    return f"{said:<27} {result[name]:{metric.printed}}" + (f" +- {error:{metric.printed}}" if math.isfinite(error) else "")


def _overlaps(real: np.ndarray, split: str, training: np.ndarray, learned: Callable[[], Dataset]) -> list[str]:
    """The lines that say how many images the real ones that are compared, the model's training set and the classifier's have in common."""
    ours = _prints(training)
    n, ours = len(real), _prints(training)
    here = f"splits      {_count(real, ours)} of the {n} {split} images are among the {len(training)} training images of the model"
    try:
        theirs = _all(learned(), "image")
    except (JaxgenError, *NO_SPLIT) as error:
        return [f"{here}; those of the classifier cannot be read: {error}"]
    here += f", {_count(real, _prints(theirs))} among the {len(theirs)} of the classifier"
    common = _count(theirs, ours)
    return [here, f"            {common} of the classifier are among those of the model" + (", none would be better" if common else "")]


def _prints(images: np.ndarray) -> set[bytes]:
    """A short hash of every image."""
    return {hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest() for image in images}


def _count(images: np.ndarray, among: set[bytes]) -> int:
    return sum(bool(_prints(image[None]) & among) for image in images)


def _all(dataset: Dataset, column: str) -> np.ndarray:
    return np.asarray(dataset.source.read(np.arange(len(dataset)))[column])


def _check(model, network) -> None:
    if not hasattr(model, "sample") or not isinstance(modelled(model), Image):
        raise ConfigError("RUN", "a model that draws images", type(model).__name__)
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
