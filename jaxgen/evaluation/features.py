"""How close samples are to real examples in the features of a network, with the same numbers of real examples against real ones.

    frechet_features   the Frechet distance of the Gaussians with the means and covariances of the features (frechet.py)
    kernel_features    the kernel distance of the features, without bias at small n (kernel_distance.py)
    precision, recall  the shares of samples near real examples, and of real examples near samples (neighbours.py)
    density, coverage  for the same two questions, and less sensitive to single outliers (neighbours.py)

`compare_samples` takes any function from examples to vectors. With the last pooling layer of the Inception network that Heusel et al. 2017
trained on ImageNet the first number is the FID; with other features it is not, and numbers of different features cannot be compared.
`classifier_features` makes such a function of a classifier of this library, `weights_hash` tells one classifier from another.
"""

import hashlib
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, Num

from jaxgen.errors import ConfigError, DataError
from jaxgen.measures.frechet import SPLITS, frechet_distance
from jaxgen.measures.kernel_distance import kernel_distance
from jaxgen.measures.neighbours import density_coverage, precision_recall

OF_DENSITY = 5
"""Neighbours of density and coverage, as in the paper."""

Features = Callable[[np.ndarray], Num[Array, "B D"] | Num[np.ndarray, "B D"]]


def compare_samples(
    samples: Num[np.ndarray, "N ..."],
    real: Num[np.ndarray, "M ..."],
    features: Features,
    more: Num[np.ndarray, "L ..."] | None = None,
    k: int = 3,
    batch_size: int = 256,
) -> dict[str, float | int]:
    """Compares samples with real examples, n of each: {"frechet_features", "kernel_features", "precision", "recall", "density", "coverage",
    the same with "_floor", "n", "n_floor"}.

    features: a function that takes examples [batch_size, ...] as they are and returns vectors [batch_size, D].
    more: more real examples, for the floor: the same numbers of two disjoint sets of real examples, the mean over 3 fixed ways to draw the
    two sets. None: the sets are halves of `real`, and n is at most the size of a half, so that the floor has the same n.
    n is the size of the smaller set; of the larger one the first n examples are taken. n_floor is n, or less where real and `more` together
    have fewer than 2 n examples. k: neighbours of precision and recall; density and coverage have 5, and are nan for sets of 5 or fewer.

    All but the Frechet distance have a "_standard_error": of the kernel distance by leaving out groups of examples, of the others that of n
    independent examples whose neighbours in the other set stay what they are.

    Raises DataError for sets that are too small (n or n_floor not above k), ConfigError where `features` returns anything else.
    """
    n = min(len(samples), len(real) if more is not None else len(real) // 2)
    if n <= k:
        wanted = f"more than k = {k} samples, and {'as many' if more is not None else 'twice as many'} real examples"
        raise DataError("samples, real", wanted, f"{len(samples)} and {len(real)}")
    others = real[n:] if more is None else more[:n]
    half = min(n, (n + len(others)) // 2)
    if half <= k:
        raise DataError("more", f"real examples that make two sets of more than k = {k} together with the {n} of real", len(others))
    fake, everything = (_features_of(x, features, batch_size) for x in (samples[:n], np.concatenate([real[:n], others])))
    true = everything[:n]
    orders = [np.random.default_rng(split).permutation(len(everything)) for split in range(SPLITS)]
    result = _numbers(fake, true, k)
    floors = [_numbers(everything[order[:half]], everything[order[half : 2 * half]], k) for order in orders]
    names = [name for name in result if not name.endswith("_standard_error")]
    floor = {f"{name}_floor": float(np.mean([one[name] for one in floors])) for name in names}
    return result | floor | {"n": n, "n_floor": half}


def _numbers(a: Num[np.ndarray, "N D"], b: Num[np.ndarray, "N D"], k: int) -> dict[str, float]:
    precision, recall = precision_recall(a, b, k)
    kernel, kernel_error = kernel_distance(a, b)
    density, density_error, coverage = density_coverage(a, b, OF_DENSITY) if len(a) > OF_DENSITY else (float("nan"),) * 3
    values = {"frechet_features": frechet_distance(a, b), "kernel_features": kernel}
    values |= {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    errors = {name: _error_of_share(values[name], len(a)) for name in ("precision", "recall", "coverage")}
    errors |= {"kernel_features": kernel_error, "density": density_error}
    return values | {f"{name}_standard_error": error for name, error in errors.items()}


def _features_of(examples: Num[np.ndarray, "N ..."], features: Features, batch_size: int) -> Float[np.ndarray, "N D"]:
    """The features in float64. Every batch has batch_size rows, so that a compiled function is compiled once: the last is filled up."""
    parts = []
    for start in range(0, len(examples), batch_size):
        rows = np.arange(start, start + batch_size)
        found = np.asarray(features(np.asarray(examples[np.where(rows < len(examples), rows, 0)])))
        if found.shape != (batch_size, found.size // batch_size):
            raise ConfigError("features", f"a function that returns vectors [{batch_size}, D]", list(found.shape))
        parts.append(found[rows < len(examples)].astype(np.float64))
    found = np.concatenate(parts)
    if not np.isfinite(found).all():
        row, column = np.argwhere(~np.isfinite(found))[0]
        raise ConfigError("features", "finite numbers", f"{found[row, column]} for example {row}")
    return found


def classifier_features(model, layer: str | None = None) -> Features:
    """The outputs of a classifier's layer as features of images; an output with places, [B, h, w, D], is averaged over them.

    model: with `activations(image, layer)` and the names `layers`, as jaxgen.models.Classifier. layer: one of these names; None: the last
    hidden one, before the logits. Raises ConfigError for a model without layers and for another name.
    """
    names = getattr(model, "layers", ())
    if not hasattr(model, "activations") or len(names) < 2:
        raise ConfigError("features", "a classifier with named layers", type(model).__name__)
    layer = names[-2] if layer is None else layer
    if layer not in names:
        raise ConfigError("layer", "one of " + ", ".join(names), layer)

    @jax.jit
    def pooled(model, image):
        x = model.activations(image, layer)
        return x.mean(axis=tuple(range(1, x.ndim - 1)))  # of [B, D] over no axes

    return lambda image: pooled(model, image)


def logits_of(model, images: Integer[np.ndarray, "N ..."], batch_size: int = 256) -> Float[np.ndarray, "N K"]:
    """The logits of a classifier, its `predict`, for any number of images, in float64."""
    predict = jax.jit(lambda model, image: model.predict(image))
    return _features_of(images, lambda image: predict(model, image), batch_size)


def share_recognised(
    model, samples: Integer[np.ndarray, "N ..."], label: Integer[np.ndarray, " N"], batch_size: int = 256
) -> tuple[float, float]:
    """(share of class-conditional samples that a classifier takes for the class they were drawn of, its standard error)."""
    share = float((logits_of(model, samples, batch_size).argmax(axis=1) == label).mean())
    return share, _error_of_share(share, len(label))


def _error_of_share(share: float, n: int) -> float:
    """The standard error of a share of n independent examples."""
    return float(np.sqrt(share * (1 - share) / n))


def weights_hash(model) -> str:
    """The first 16 hexadecimal digits of the sha256 of all arrays of a model: name, dtype, shape and values of each, in order of names."""
    digest = hashlib.sha256()
    for name, leaf in sorted((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(model)):
        digest.update(f"{name} {leaf.dtype.name} {list(leaf.shape)}".encode())
        digest.update(leaf.astype(leaf.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]
