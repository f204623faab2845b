"""How close samples are to a data set: Frechet distances, with their floor between real sets, and the covered modes of a mixture."""

from collections import deque
from functools import lru_cache

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Num, PRNGKeyArray

from jaxgen import sharding
from jaxgen.data.features import given_to
from jaxgen.evaluation.likelihoods import batches, modelled_column
from jaxgen.measures.frechet import frechet_distance, frechet_floor
from jaxgen.measures.metrics import FLOORS, METRICS

_KNOWN: deque = deque(maxlen=4)  # (source, other source, floor) of the pairs of splits that `with_floor` was asked for last


def sample_metrics(model, dataset, key: PRNGKeyArray, batch_size: int = 64, mesh: Mesh | None = None) -> dict[str, float | int]:
    """Compares as many samples as the set has examples with these examples.

    Images: "frechet_pixels", the Frechet distance of pixel vectors scaled to [0, 1]; it compares means and covariances only, and says
    little about sharpness. Points: "frechet_points", and `mode_coverage` if the set's facts are `centres` and `scale`. The
    distance has a positive bias of order 1/n, so n is in the result; for a single example it is nan.
    """
    name, feature = modelled_column(model, dataset)
    columns, fake = draw_like(model, dataset, key, batch_size, mesh)
    real = columns[name]
    name = "frechet_pixels" if feature.discrete else "frechet_points"
    enough = len(real) >= METRICS[name].examples
    distance = frechet_distance(_numbers(fake, feature), _numbers(real, feature)) if enough else float("nan")
    result = {name: distance, "n_real": len(real), "n_fake": len(fake)}
    return result | (mode_coverage(fake, **dataset.facts) if {"centres", "scale"} == set(dataset.facts) else {})


def draw_like(
    model, dataset, key: PRNGKeyArray, batch_size: int = 64, mesh: Mesh | None = None, n: int | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(the columns of the set's first n examples, n samples): sample i is drawn given what the model is given of example i, such as its
    label. So the samples have the labels with the frequencies of these examples. n: None for all."""
    if isinstance(model, nnx.Module) and mesh is not None:
        model = sharding.place_state(mesh, model)
    draw, n = _compiled_draw(sharding.whole(mesh)), len(dataset) if n is None else min(n, len(dataset))
    columns, fake = [], []
    for batch, rows in batches(dataset, batch_size, None):
        given = given_to(model.config, batch) if hasattr(model, "config") else {}
        fake.append(np.asarray(draw(model, batch["index"], given, key))[rows])
        columns.append({name: np.asarray(column)[rows] for name, column in batch.items()})
        if sum(map(len, fake)) >= n:
            break
    return {name: np.concatenate([part[name] for part in columns])[:n] for name in columns[0]}, np.concatenate(fake)[:n]


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
        (column, feature), n = modelled_column(model, dataset), len(dataset)
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
    point. "smallest_mode_share" is the number of high-quality points of the mode with fewest of them, divided by N. "mode_kl" is the
    Kullback-Leibler divergence in nats of the shares of all points by their nearest centre from equal shares,

        log K + sum_k p_k log p_k,

    0 for equal shares and log K for one mode; of N points drawn in equal shares it is about (K - 1) / (2 N). Points far from all centres
    count in it too, so it says nothing without the fraction of high quality: read the numbers together.
    """
    distance = np.linalg.norm(points[:, None] - centres[None], axis=-1)
    good = distance.min(axis=1) < 3 * scale
    counts = np.bincount(distance.argmin(axis=1)[good], minlength=len(centres))
    share = np.bincount(distance.argmin(axis=1), minlength=len(centres)) / len(points)
    kl = np.log(len(centres)) + (share[share > 0] * np.log(share[share > 0])).sum()
    return {
        "modes_covered": int((counts > 0).sum()),
        "high_quality_fraction": float(good.mean()),
        "smallest_mode_share": float(counts.min() / len(points)),
        "mode_kl": max(float(kl), 0.0),  # rounding can make 0 negative
    }
