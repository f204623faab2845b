"""Evaluation: bits/dim on a test set with its standard error, lower bounds, sample metrics, and the rulers to compare with.

    bits/dim = -log p(x) / (D ln 2),  mean over all images of the set, standard error = sd / sqrt(N)

The first of these methods that a model has decides what is reported:

    predict(x)                   a classifier   "accuracy" and "log_loss"
    log_prob(image)              exact          "bits_per_dim"
    log_density(v)               a density      "bits_per_dim_bound": E_u[-log p(x + u)] >= -log P(x) (Theis et al. 2016, section 3.1)
    log_density(v), real data    a density      "nats", of points and vectors, which need no noise
    elbo, importance_bound       lower bounds   "bits_per_dim_bound"
    squared_error(x)             none, an error "squared_error", of auto-encoders: |x - x'|^2 / D of pixels scaled to [0, 1]
    none of them                 samples        "frechet_pixels", on point sets also the modes covered

The unit is that of the modelled feature. For strings it is "bits_per_character": the sum of -log2 p over all strings, divided by the number
of all characters and stop tokens. Conditional models get the columns that their configuration names (`given_to`): labels, vectors, others.

On integers a density is evaluated at v = x + u, with u ~ U[0, 1) drawn here for every image and draw: at x itself, a density that is
concentrated on the integers can be arbitrarily large. The randomness of image i comes from `fold_in(key, i)`, the last batch is padded and
masked, and the sums are float64 on the host, so the result depends neither on the batch size nor on the number of devices.
"""

from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Num, PRNGKeyArray, UInt

from jaxgen import sharding
from jaxgen.data.features import given_to
from jaxgen.distributions import bits_per_dim
from jaxgen.errors import ConfigError, DataError, NonFiniteError, did_you_mean
from jaxgen.measures.frechet import frechet_distance, frechet_floor
from jaxgen.measures.metrics import FLOORS, METRICS, OF_SAMPLES, headline
from jaxgen.measures.rulers import RULERS, GaussianModel, HistogramModel, UniformModel, best_ridge, split

__all__ = ["GaussianModel", "UniformModel", "bits_per_dim", "evaluate", "frechet_distance", "headline", "mode_coverage", "rulers"]

_KNOWN: deque = deque(maxlen=4)  # (source, other source, floor) of the pairs of splits that `with_floor` was asked for last
DRAWS = {"elbo": "elbo_samples", "importance": "importance_samples", "density": "dequantisation_samples"}


def evaluate(
    model,
    dataset,
    *,
    batch_size: int = 64,
    key: PRNGKeyArray | None = None,
    samples: int = 1,
    bound: str = "elbo",
    mesh: Mesh | None = None,
    metrics: tuple[str, ...] = (),
) -> dict[str, float | int]:
    """Score a model on every example of a data set.

    samples: draws averaged for each example (elbo, density of integers), or k of the importance-weighted bound; else unused.
    bound: "elbo" or "importance", for models that have both. mesh: the devices to spread the batches over (default: those of the model).
    metrics: names out of `metrics_of` to return with the headline. (): all that the model's method gives; for a model
    with none of the methods, the metrics of samples.

    Returns plain numbers: the headline (see the module's table), its "standard_error" (nan for a single example), "nats" (mean -log p
    of an example), "n", and for a bound the number of draws under a name that says which bound ("elbo_samples", "importance_samples",
    "dequantisation_samples"). Raises ConfigError for an argument, DataError for an empty set or one that does not fit the model,
    NonFiniteError with the index of the first example whose log p is not finite.
    """
    key = jax.random.key(0) if key is None else key
    if samples < 1 or batch_size < 1:
        raise ConfigError("samples, batch_size", "at least 1", (samples, batch_size))
    if len(dataset) == 0:
        raise DataError("dataset", "at least one image", "an empty set")
    _check_fit(model, dataset)
    check_metrics(model, dataset, metrics, bound)
    kind, mesh = _kind(model, bound), mesh or _mesh_of(model)
    if kind == "samples":
        return _chosen(sample_metrics(model, dataset, key, batch_size, mesh), metrics)
    result = _scores(model, dataset, kind, batch_size, key, samples, mesh)
    if of_samples := set(metrics) & set(OF_SAMPLES):
        more = sample_metrics(model, dataset, key, batch_size, mesh)
        result |= {name: value for name, value in more.items() if name in of_samples}
    return _chosen(result, metrics)


def metrics_of(model, dataset, bound: str = "elbo") -> tuple[str, ...]:
    """The names in `METRICS` of what `evaluate` can measure of a model on a set; nothing is computed."""
    kind, (_, feature) = _kind(model, bound), _modelled(model, dataset)
    if kind == "predictions":
        return "accuracy", "log_loss"
    if kind == "error":
        likelihood = ("squared_error",)
    else:
        likelihood = () if kind == "samples" else tuple(dict.fromkeys((_unit_name(feature, kind), "nats")))
    pixels = feature.discrete and hasattr(feature, "levels")
    if not hasattr(model, "sample") or feature.discrete and not pixels:
        return likelihood
    modes = OF_SAMPLES[2:5] if {"centres", "scale"} == set(dataset.facts) else ()
    return *likelihood, "frechet_pixels" if pixels else "frechet_points", *modes


def check_metrics(model, dataset, metrics: tuple[str, ...], bound: str = "elbo") -> None:
    """Raises ConfigError if `evaluate` can measure nothing of this model on this set, or not one of `metrics`."""
    known = metrics_of(model, dataset, bound)
    if not known:
        wanted = f"log_prob or elbo, since samples of {_modelled(model, dataset)[1].said} are not compared with a set"
        raise ConfigError("model", wanted, f"{type(model).__name__} with neither")
    for name in metrics:
        if name not in known:
            raise ConfigError("report.metrics", f"some of {', '.join(known)}, which this model has", name, did_you_mean(name, known))


def _chosen(result: dict, metrics: tuple[str, ...]) -> dict:
    """The headline, `metrics`, their standard errors, and the counts; everything for ()."""
    left_out = set(METRICS) - {headline(result)[0], *metrics} if metrics else set()
    return {name: value for name, value in result.items() if not {name, name.removesuffix("_standard_error")} & left_out}


def _scores(model, dataset, kind: str, batch_size: int, key: PRNGKeyArray, samples: int, mesh: Mesh | None) -> dict[str, float | int]:
    """The result of a model that has a likelihood, a bound or predictions."""
    if kind == "predictions":
        return _classifier_metrics(-log_probs(model, dataset, kind, batch_size, key, mesh=mesh))
    if kind == "error":
        errors = log_probs(model, dataset, kind, batch_size, key, mesh=mesh)
        return {"squared_error": float(errors.mean()), "standard_error": _standard_error(errors), "n": len(errors)}
    name, feature = _modelled(model, dataset)
    if kind == "density" and not feature.discrete:
        kind = "real density"
    nats = -log_probs(model, dataset, kind, batch_size, key, samples, mesh)
    result = _in_unit(nats, feature, dataset.columns[name], kind) | {"nats": float(nats.mean()), "n": len(nats)}
    return {**result, DRAWS[kind]: samples} if kind in DRAWS else result


def _modelled(model, dataset) -> tuple[str, Any]:
    """Name and feature of the modelled column; for rulers, which have no configuration, the first column of the set."""
    name = getattr(getattr(model, "config", None), "modelled", None) or next(iter(dataset.features))
    return name, dataset.features[name]


def _in_unit(nats: np.ndarray, feature, column, kind: str) -> dict[str, float]:
    """The headline from nats [N], -log p of every example, in the unit of the feature, with its standard error."""
    if feature.unit == "nats":
        return {"nats": float(nats.mean()), "standard_error": _standard_error(nats)}
    name = _unit_name(feature, kind)
    if feature.unit == "bits/dim":
        bits = bits_per_dim(nats, feature.dimensions)
        return {name: float(bits.mean()), "standard_error": _standard_error(bits)}
    # A ratio of two sums. Delta method: its standard error is that of the mean of nats - ratio * counts, over the mean count.
    counts = np.asarray(feature.counts(np.asarray(column)), np.float64)
    ratio = nats.sum() / counts.sum()
    return {name: float(ratio / np.log(2)), "standard_error": _standard_error(nats - ratio * counts) / float(counts.mean() * np.log(2))}


def _unit_name(feature, kind: str) -> str:
    """The name of the headline in the unit of a feature: "bits_per_dim", or "bits_per_dim_bound" of a lower bound."""
    return "nats" if feature.unit == "nats" else feature.unit.replace("/", "_per_") + ("" if kind == "exact" else "_bound")


def _classifier_metrics(scores: np.ndarray) -> dict[str, float | int]:
    """Accuracy and log-loss in nats from [N, 2]: -log p(label), and 1 where the prediction is wrong, else 0."""
    loss, wrong = scores.T
    errors = {"standard_error": _standard_error(wrong), "log_loss_standard_error": _standard_error(loss)}
    return {"accuracy": float(1 - wrong.mean()), "log_loss": float(loss.mean()), "n": len(loss)} | errors


def _check_fit(model, dataset) -> None:
    """Raises DataError unless the set has the features of the model's configuration; rulers have none."""
    features = getattr(getattr(model, "config", None), "features", None)
    if features:
        dataset.expect(features)


def _mesh_of(model) -> Mesh | None:
    """The mesh over which the model's arrays are placed; None for arrays on one device or on the host."""
    leaves = jax.tree.leaves(model) if isinstance(model, nnx.Module) else []
    named = [leaf.sharding for leaf in leaves if isinstance(getattr(leaf, "sharding", None), NamedSharding)]
    return named[0].mesh if named else None


def log_probs(model, dataset, kind: str, batch_size: int, key: PRNGKeyArray, samples: int = 1, mesh: Mesh | None = None) -> np.ndarray:
    """log p of every example of the set, or its bound, in nats: float64 [N]; of a classifier float64 [N, 2], as `_score` gives it."""
    if isinstance(model, nnx.Module):
        model = model if mesh is None else sharding.place_state(mesh, model)
        score = _compiled(kind, samples, sharding.whole(mesh))
    else:  # a closed-form model computes in float64 on the host
        score, mesh = _score_on_host(kind, samples), None
    parts = []
    for batch, rows in _batches(dataset, batch_size, mesh):
        value = np.asarray(score(model, batch, key), np.float64)[rows]
        _check(value, sum(map(len, parts)), kind)
        parts.append(value)
    return np.concatenate(parts)


def _kind(model, bound: str) -> str:
    """Which row of the module's table applies: "predictions", "exact", "density", the bound, "error", or "samples"."""
    if bound not in ("elbo", "importance"):
        raise ConfigError("bound", "elbo or importance", bound)
    if hasattr(model, "predict"):
        return "predictions"
    if hasattr(model, "log_prob"):
        return "exact"
    if hasattr(model, "log_density"):
        return "density"
    if hasattr(model, "elbo"):
        if bound == "importance" and not hasattr(model, "importance_bound"):
            raise ConfigError("bound", "elbo (the model has no importance_bound)", bound)
        return bound
    return "error" if hasattr(model, "squared_error") else "samples"


def _batches(dataset, batch_size: int, mesh: Mesh | None) -> Iterator[tuple[dict, np.ndarray]]:
    """(batch, bool [B]: False for rows of padding); batch["index"] is each example's place in the set.

    On a mesh each process reads its own rows of the batch, whose size is rounded up to a multiple of the number of devices.
    """
    devices, process = (1, (0, 1)) if mesh is None else (mesh.size, (jax.process_index(), jax.process_count()))
    size = -(-batch_size // devices) * devices
    local = np.arange(size, dtype=np.uint32).reshape(process[1], -1)[process[0]]
    for number, (batch, _) in enumerate(dataset.epoch(size, process)):
        start = number * size
        batch = {**batch, "index": local + np.uint32(start)}
        yield (batch if mesh is None else sharding.place_batch(mesh, batch)), np.arange(start, start + size) < len(dataset)


@lru_cache(maxsize=16)
def _compiled(kind: str, samples: int, out: NamedSharding | None):
    """The compiled `(model, batch, key) -> log p [B]`, cached, so that the validations of a run compile once. With a mesh every process
    gets all B values."""
    return jax.jit(lambda model, batch, key: _score(model, batch, key, kind, samples), out_shardings=out)


def _score(model, batch: dict[str, Array], key: PRNGKeyArray, kind: str, samples: int) -> Float[Array, "B ..."]:
    config, name = model.config, model.config.modelled
    x, given = batch[name], given_to(config, batch)
    if kind == "predictions":
        logits = model.predict(**given) if len(given) > 1 else model.predict(*given.values())  # of one column any parameter name will do
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        right = jnp.take_along_axis(log_p, x[:, None], axis=-1)[:, 0]
        return jnp.stack([right, -(log_p.argmax(-1) != x).astype(jnp.float32)], axis=-1)
    if kind == "exact":
        return model.log_prob(x, **given)
    if kind == "error":
        return model.squared_error(x, **given)
    if kind == "real density":
        return model.log_density(x, **given)

    def one(x, index, given):
        given = {name: value[None] for name, value in given.items()}
        keys = jax.random.split(jax.random.fold_in(key, index), samples)
        if kind == "importance":
            return model.importance_bound(x[None], keys[0], samples, **given)[0]
        if kind == "density":
            return jax.vmap(lambda key: model.log_density(dequantise(x[None], key), **given)[0])(keys).mean()
        return jax.vmap(lambda key: model.elbo(x[None], key, **given)[0])(keys).mean()

    return jax.vmap(one)(x, batch["index"], given)


def _score_on_host(kind: str, samples: int):
    """As `_compiled` for a ruler, a model of NumPy arrays: `(model, batch, key) -> log p [B]`."""
    noise = jax.jit(jax.vmap(lambda image, index, key: dequantise(image, jax.random.fold_in(key, index)), (0, 0, None)))

    def score(model, batch, key):
        if kind == "exact":
            return model.log_prob(next(iter(batch.values())))
        draws = (noise(next(iter(batch.values())), batch["index"], k) for k in jax.random.split(key, samples))
        return np.mean([model.log_density(np.asarray(v, np.float64)) for v in draws], axis=0)

    return score


def dequantise(image: UInt[Array, "*shape"], key: PRNGKeyArray) -> Float[Array, "*shape"]:
    """v = x + u, u ~ U[0, 1): float32, strictly below x + 1 even where the sum would round up to it."""
    x = image.astype(jnp.float32)
    return jnp.minimum(x + jax.random.uniform(key, x.shape), jnp.nextafter(x + 1, x))


def _check(value: np.ndarray, start: int, kind: str) -> None:
    """NonFiniteError for a log p that is not finite; ConfigError for an exact log p above 1e-3, since probabilities are at most 1."""
    if not np.isfinite(value).all():
        index = int(np.flatnonzero(~np.isfinite(value))[0])
        raise NonFiniteError(f"image {start + index}", "a finite log-probability", value[index])
    if kind == "exact" and value.max() > 1e-3:
        index = int(value.argmax())
        hint = "a density is not a probability of levels; give the model log_density(v) instead, and the evaluator dequantises"
        raise ConfigError("log_prob", "at most 0 nats for a discrete image", f"{value[index]:.6g} for image {start + index}", hint)


def _standard_error(values: np.ndarray) -> float:
    """Standard error of the mean, sd / sqrt(N); nan for a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def rulers(fit, test, *, batch_size: int = 64, key: PRNGKeyArray | None = None, samples: int | None = None) -> dict[str, dict]:
    """The results of the rulers on a test set by name: uniform, histogram, gaussian, ridge_gaussian (see rulers.py).

    fit: the data sets to fit them on, of which the last is the validation split, or one set. The results of the histogram and the ridge say
    what was chosen on validation, as "smoothing" and "ridge". A ruler for which `fit` has too few images (`RULERS`) has the result {}.
    samples: draws of u for each image; by default 16, or 1 for images of more than 1024 values, where one draw can take a minute.
    """
    samples = samples or (16 if np.prod(test.image_shape) <= 1024 else 1)
    sets = fit if isinstance(fit, tuple | list) else [fit]
    training, validation = split([np.asarray(dataset.images) for dataset in sets])
    images, levels = np.concatenate([training, validation]), test.levels

    def ridge_gaussian():
        ridge = best_ridge(training, validation, levels)
        return GaussianModel.fit(images, levels, ridge), {"ridge": ridge}

    def histogram():
        model = HistogramModel.fit(training, validation, levels)
        return model, {"smoothing": model.smoothing}

    def gaussian():
        return GaussianModel.fit(images, levels), {}

    def uniform():
        return UniformModel(levels), {}

    def result(make):
        if len(images) < RULERS[make.__name__]:
            return {}
        model, chosen = make()
        return evaluate(model, test, batch_size=batch_size, key=key, samples=samples) | chosen

    return {make.__name__: result(make) for make in (uniform, histogram, gaussian, ridge_gaussian)}


def sample_metrics(model, dataset, key: PRNGKeyArray, batch_size: int = 64, mesh: Mesh | None = None) -> dict[str, float | int]:
    """Compares as many samples as the set has examples with these examples.

    Images: "frechet_pixels", the Frechet distance of pixel vectors scaled to [0, 1]; it compares means and covariances only, and says
    little about sharpness. Points: "frechet_points", and `mode_coverage` if the set's facts are `centres` and `scale`. The
    distance has a positive bias of order 1/n, so n is in the result; for a single example it is nan.
    """
    if isinstance(model, nnx.Module) and mesh is not None:
        model = sharding.place_state(mesh, model)
    (name, feature), draw = _modelled(model, dataset), _compiled_draw(sharding.whole(mesh))
    real, fake = [], []
    for batch, rows in _batches(dataset, batch_size, None):
        given = given_to(model.config, batch) if hasattr(model, "config") else {}
        fake.append(np.asarray(draw(model, batch["index"], given, key))[rows])
        real.append(batch[name][rows])
    real, fake = np.concatenate(real), np.concatenate(fake)
    name = "frechet_pixels" if feature.discrete else "frechet_points"
    enough = len(real) >= METRICS[name].examples
    distance = frechet_distance(_numbers(fake, feature), _numbers(real, feature)) if enough else float("nan")
    result = {name: distance, "n_real": len(real), "n_fake": len(fake)}
    return result | (mode_coverage(fake, **dataset.facts) if {"centres", "scale"} == set(dataset.facts) else {})


def with_floor(result: dict[str, float | int], model, dataset, more) -> dict[str, float | int]:
    """The result, and beside a Frechet distance its floor: that of two sets of real examples, each as large as the set (`frechet_floor`).

    dataset: the set that was evaluated; more: another split, which gives as many examples again. If it is smaller, the halves are smaller
    too, and "n_floor" is less than "n_real". The floor does not depend on the model and is computed once for a pair of splits.
    """
    name = next((name for name in FLOORS if np.isfinite(result.get(name, np.nan))), None)
    if name is None:
        return result
    floor = next((floor for one, other, floor in _KNOWN if one is dataset.source and other is more.source), None)
    if floor is None:
        (column, feature), n = _modelled(model, dataset), len(dataset)
        rows = np.random.default_rng(0).permutation(len(more))[:n]
        real = np.concatenate([dataset.source.read(np.arange(n))[column], more.source.read(rows)[column]])
        half = min(n, len(real) // 2)
        floor = {FLOORS[name]: frechet_floor(_numbers(real, feature), half), "n_floor": half} if half > 1 else {}
        _KNOWN.append((dataset.source, more.source, floor))
    return result | floor


def _numbers(x: np.ndarray, feature) -> np.ndarray:
    """Pixels scaled to [0, 1], or points as they are: float64 [B, D]."""
    return x.reshape(len(x), -1).astype(np.float64) / (feature.levels - 1 if feature.discrete else 1)


@lru_cache(maxsize=4)
def _compiled_draw(out: NamedSharding | None):
    """The compiled `(model, index, given, key) -> samples [B, ...]`; sample i depends on `fold_in(key, index[i])` and given[i] only."""

    def draw(model, index, given, key):
        def one(i, given):
            return model.sample(jax.random.fold_in(key, i), 1, **{name: value[None] for name, value in given.items()})[0]

        return jax.vmap(one)(index, given)

    return jax.jit(draw, out_shardings=out)


def mode_coverage(points: Num[np.ndarray, "N d"], centres: Num[np.ndarray, "K d"], scale: float) -> dict[str, float | int]:
    """How well points cover a mixture of round Gaussians (Srivastava et al. 2017, section 4.1).

    A point within 3 sigma of its nearest centre (sigma = `scale`) is of high quality; a mode is covered if it has at least one such
    point. "smallest_mode_share" is the number of high-quality points of the mode with fewest of them, divided by N.
    """
    distance = np.linalg.norm(points[:, None] - centres[None], axis=-1)
    good = distance.min(axis=1) < 3 * scale
    counts = np.bincount(distance.argmin(axis=1)[good], minlength=len(centres))
    return {
        "modes_covered": int((counts > 0).sum()),
        "high_quality_fraction": float(good.mean()),
        "smallest_mode_share": float(counts.min() / len(points)),
    }
