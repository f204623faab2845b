"""Evaluation: bits/dim on a test set with its standard error, lower bounds, sample metrics, and the rulers to compare with.

    bits/dim = -log p(x) / (D ln 2),  mean over all images of the set, standard error = sd / sqrt(N)

The first of these methods that a model has decides what is reported (`bound_terms` adds to an elbo):

    predict(x)                   a classifier   "accuracy" and "log_loss"
    log_prob(image)              exact          "bits_per_dim"
    log_density(v)               a density      "bits_per_dim_bound": E_u[-log p(x + u)] >= -log P(x) (Theis et al. 2016, section 3.1)
    log_density(v), real data    a density      "nats", of points and vectors, which need no noise
    elbo, importance_bound       lower bounds   "bits_per_dim_bound"
    bound_terms                  an elbo        also each of its terms, in nats: "nats_prior", ... (`term_names` of the model)
    squared_error(x)             none, an error "squared_error", of auto-encoders: |x - x'|^2 / D of pixels scaled to [0, 1]
    translate(input, key)        pairs          "absolute_error" of the output drawn for each input, "psnr", "ssim" (measures/pairs.py)
    none of them                 samples        "frechet_pixels", on point sets also the modes covered

The unit is that of the modelled feature. For strings it is "bits_per_character": the sum of -log2 p over all strings, divided by the number
of all characters and stop tokens. Conditional models get the columns that their configuration names (`given_to`): labels, vectors, others.

On integers a density is evaluated at v = x + u, with u ~ U[0, 1) drawn here for every image and draw: at x itself, a density that is
concentrated on the integers can be arbitrarily large. The randomness of image i comes from `fold_in(key, i)`, the last batch is padded and
masked, and the sums are float64 on the host, so the result depends neither on the batch size nor on the number of devices.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PRNGKeyArray

from jaxgen import sharding
from jaxgen.distributions import bits_per_dim
from jaxgen.errors import ConfigError, DataError, did_you_mean
from jaxgen.evaluation.features import classifier_features, compare_samples, logits_of, share_recognised, weights_hash
from jaxgen.evaluation.likelihoods import batches, compiled, dequantise, kind_of, modelled_column, numbers
from jaxgen.evaluation.sample_quality import draw_like, mode_coverage, sample_metrics, with_floor
from jaxgen.measures.classifier_score import classifier_score
from jaxgen.measures.frechet import frechet_distance
from jaxgen.measures.kernel_distance import kernel_distance
from jaxgen.measures.memorisation import memorisation
from jaxgen.measures.metrics import METRICS, OF_MODES, OF_PAIRS, OF_SAMPLES, headline
from jaxgen.measures.molecules import molecule_metrics
from jaxgen.measures.n_gram import NGram, most
from jaxgen.measures.n_gram_samples import n_gram_samples
from jaxgen.measures.neighbours import density_coverage, precision_recall
from jaxgen.measures.pairs import all_of_pairs
from jaxgen.measures.train_on_samples import accuracy_trained_on

__all__ = [
    "accuracy_trained_on", "bits_per_dim", "classifier_features", "classifier_metrics", "classifier_score", "compare_samples",
    "density_coverage", "density_errors", "dequantise", "draw_like", "evaluate", "frechet_distance", "headline", "kernel_distance",
    "logits_of", "memorisation", "mode_coverage", "molecule_metrics", "n_gram_samples", "pair_metrics", "precision_recall", "rulers",
    "share_recognised", "weights_hash", "with_floor",
]  # fmt: skip

HELD_OUT = 10  # one example in so many is held out, where there is no validation split
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
    kind, mesh = kind_of(model, bound), mesh or _mesh_of(model)
    if kind == "samples":
        return _chosen(sample_metrics(model, dataset, key, batch_size, mesh), metrics)
    result = _scores(model, dataset, kind, batch_size, key, samples, mesh)
    if of_samples := set(metrics) & set(OF_SAMPLES):
        more = sample_metrics(model, dataset, key, batch_size, mesh)
        result |= {name: value for name, value in more.items() if name in of_samples}
    return _chosen(result, metrics)


def density_errors(model, dataset, batch_size: int = 64, key: PRNGKeyArray | None = None, mesh: Mesh | None = None) -> dict[str, float]:
    """Numerical errors of a log-density by an ODE, in nats of an example, from the first batch of a set; {} for other models.

    "ode_step_error": the mean of |change| from twice the steps, which no standard error shows. "ode_trace_error": the root mean square of
    the standard error of an estimated trace in one draw, which is in the standard error of an evaluation already; 0 for an exact trace.
    """
    if not hasattr(model, "density_errors"):
        return {}
    mesh = mesh or _mesh_of(model)
    model = model if mesh is None else sharding.place_state(mesh, model)
    batch, rows = next(batches(dataset, batch_size, mesh))
    key = jax.random.key(0) if key is None else key
    solver, trace = np.asarray(compiled("density errors", 1, sharding.whole(mesh))(model, batch, key), np.float64)[rows].T
    return {"ode_step_error": float(solver.mean()), "ode_trace_error": float(np.sqrt((trace**2).mean()))}


def metrics_of(model, dataset, bound: str = "elbo") -> tuple[str, ...]:
    """The names in `METRICS` of what `evaluate` can measure of a model on a set; nothing is computed."""
    kind, (_, feature) = kind_of(model, bound), modelled_column(model, dataset)
    if kind == "predictions":
        return "accuracy", "log_loss"
    if kind in ("error", "pairs"):
        likelihood = ("squared_error",) if kind == "error" else OF_PAIRS
    else:
        likelihood = () if kind == "samples" else tuple(dict.fromkeys((_unit_name(feature, kind), "nats")))
    pixels = feature.discrete and hasattr(feature, "levels")
    if not hasattr(model, "sample") or feature.discrete and not pixels:
        return likelihood
    modes = OF_MODES if {"centres", "scale"} == set(dataset.facts) else ()
    return *likelihood, "frechet_pixels" if pixels else "frechet_points", *modes


def check_metrics(model, dataset, metrics: tuple[str, ...], bound: str = "elbo") -> None:
    """Raises ConfigError if `evaluate` can measure nothing of this model on this set, or not one of `metrics`."""
    known = metrics_of(model, dataset, bound)
    if not known:
        wanted = f"log_prob or elbo, since samples of {modelled_column(model, dataset)[1].said} are not compared with a set"
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
        return classifier_metrics(-numbers(model, dataset, kind, batch_size, key, mesh=mesh))
    if kind == "pairs":
        return _of_pairs(numbers(model, dataset, kind, batch_size, key, mesh=mesh))
    if kind == "error":
        errors = numbers(model, dataset, kind, batch_size, key, mesh=mesh)
        return {"squared_error": float(errors.mean()), "standard_error": _standard_error(errors), "n": len(errors)}
    name, feature = modelled_column(model, dataset)
    if kind == "density" and not feature.discrete:
        kind = "real density"
    terms = {}
    if kind == "elbo" and hasattr(model, "bound_terms"):
        each = -numbers(model, dataset, "terms", batch_size, key, samples, mesh)
        nats = each.sum(1)
        for term, values in zip(model.term_names, each.T, strict=True):
            terms |= {f"nats_{term}": float(values.mean()), f"nats_{term}_standard_error": _standard_error(values)}
    else:
        nats = -numbers(model, dataset, kind, batch_size, key, samples, mesh)
    result = _in_unit(nats, feature, dataset.columns[name], kind) | {"nats": float(nats.mean()), "n": len(nats)} | terms
    return {**result, DRAWS[kind]: samples} if kind in DRAWS else result


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


def classifier_metrics(scores: np.ndarray) -> dict[str, float | int]:
    """Accuracy and log-loss in nats from [N, 2]: -log p(label), and 1 where the prediction is wrong, else 0."""
    loss, wrong = scores.T
    errors = {"standard_error": _standard_error(wrong), "log_loss_standard_error": _standard_error(loss)}
    return {"accuracy": float(1 - wrong.mean()), "log_loss": float(loss.mean()), "n": len(loss)} | errors


def pair_metrics(images, wanted, levels: int) -> dict[str, float | int]:
    """Absolute error, PSNR and SSIM of images [N, H, W, C] beside those that they should be, with standard errors; values 0 .. levels-1.

    `evaluate` gives the same of the outputs of a model; this is for those of any other method. It takes real values too.
    """
    scaled = [np.asarray(values, np.float32) / np.float32(levels - 1) for values in (images, wanted)]
    parts = [np.asarray(all_of_pairs(*(values[start : start + 256] for values in scaled))) for start in range(0, len(scaled[0]), 256)]
    return _of_pairs(np.concatenate(parts).astype(np.float64))


def _of_pairs(each: np.ndarray) -> dict[str, float | int]:
    """The result from [N, 3], the values of OF_PAIRS of each image."""
    result: dict[str, float | int] = {}
    for name, values in zip(OF_PAIRS, each.T, strict=True):
        error = "standard_error" if name == OF_PAIRS[0] else f"{name}_standard_error"
        result |= {name: float(values.mean()), error: _standard_error(values)}
    return result | {"n": len(each)}


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


def _standard_error(values: np.ndarray) -> float:
    """Standard error of the mean, sd / sqrt(N); nan for a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def rulers(
    fit, test, makers: Mapping[str, Any], *, batch_size: int = 64, key: PRNGKeyArray | None = None, samples: int | None = None
) -> dict[str, dict]:
    """The results of the rulers on a test set by name: of images those of `makers`; of strings uniform and the n-grams up to 6 (n_gram.py).

    fit: the data sets to fit them on, of which the last is the validation split, or one set. makers: `jaxgen.models.RULERS`; each says how
    many images it needs (`least`) and fits a model. What it chose on validation, such as "smoothing" or "ridge", stands in its result, too.
    A ruler for which `fit` has too few images has the result {}.
    samples: draws of u for each image; by default 16, or 1 for images of more than 1024 values, where one draw can take a minute.
    """
    training, validation = split([np.asarray(dataset.images) for dataset in (fit if isinstance(fit, tuple | list) else [fit])])
    if "tokens" in test.features:
        vocabulary = test.features["tokens"].vocabulary
        uniform, *grams = NGram.fit(training, validation, vocabulary, range(most(vocabulary) + 1))
        results = {f"{gram.n}-gram": evaluate(gram, test, batch_size=batch_size) | {"strength": gram.strength} for gram in grams}
        return {"uniform": evaluate(uniform, test, batch_size=batch_size)} | results
    samples = samples or (16 if np.prod(test.image_shape) <= 1024 else 1)

    def result(maker):
        if len(training) + len(validation) < maker.least:
            return {}
        model, chosen = maker.fit(training, validation, test.levels)
        return evaluate(model, test, batch_size=batch_size, key=key, samples=samples) | chosen

    return {name: result(maker) for name, maker in makers.items()}


def split(sets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation) examples: the last set and those before it, or every tenth example of one set, or of sets of fewer than 2."""
    examples = np.concatenate(sets)
    if len(examples) - len(sets[-1]) >= 2:
        return examples[: -len(sets[-1])], sets[-1]
    held_out = np.arange(len(examples)) % HELD_OUT == 0
    return examples[~held_out], examples[held_out]
