"""The lines of `jaxgen quality`: samples of a model beside real images in the features of a classifier."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxgen import evaluation, sharding
from jaxgen.data import Dataset
from jaxgen.data.features import Image
from jaxgen.errors import ConfigError
from jaxgen.measures.metrics import OF_FEATURES
from jaxgen.reports.drawing import given, modelled
from jaxgen.sharding import announce


def print_quality(experiment: Any, model, network, options: Any, read: Callable[[str], Dataset]) -> None:
    """Draws as many samples as are compared, given the labels (vectors, ...) of the real images, and prints the numbers of
    `evaluation.compare_samples`; for a model that is given labels also what share of them the classifier recognises.

    network: the classifier. options: a `commands.Quality`. read(split): the data of the run. Raises ConfigError where the model draws no
    images or the network is no classifier of such images.
    """
    _check(model, network)
    dataset = read(options.split)
    features = evaluation.classifier_features(network, options.layer)
    batch_size = options.batch_size or experiment.train.batch_size
    mesh = sharding.split_mesh(experiment.train.fsdp) or sharding.make_mesh()
    name = model.config.modelled
    columns, samples = evaluation.draw_like(model, dataset, jax.random.key(options.seed), batch_size, mesh, options.n)
    result = evaluation.compare_samples(samples, columns[name], features, _more(dataset, read, len(samples))[name], options.k)
    if "label" in given(model):
        for one, images in ("recognised", samples), ("recognised_real", columns[name]):
            share, error = evaluation.share_recognised(network, images, columns["label"])
            result |= {one: share, f"{one}_standard_error": error}
    layer = options.layer or network.layers[-2]
    announce(f"features    {type(network).__name__} {options.features}, layer {layer}, weights {evaluation.weights_hash(network)}")
    announce(f"compared    {result['n']} samples with {result['n']} {options.split} images; real against real {result['n_floor']} of each")
    for name, metric in OF_FEATURES.items():
        if name in result:
            announce(_line(name, name, result) + f"  ({metric.better} is better)")
            real = f"{name}_floor" if f"{name}_floor" in result else f"{name}_real"
            announce(_line("  real against real" if real.endswith("floor") else "  of the real images", real, result))


def _line(said: str, name: str, result: dict) -> str:
    error = f" +- {result[f'{name}_standard_error']:.4f}" if f"{name}_standard_error" in result else ""
    return f"{said:<27} {result[name]:.4f}{error}"


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
