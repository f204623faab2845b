"""The number of every example of a data set under a model: log p, a bound on it, a classifier's scores, or an error. See evaluation.py.

`numbers` goes over the set in batches on all devices; `kind_of` says which method of the model is asked.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen import sharding
from jaxgen.data.features import given_to
from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.measures.pairs import all_of_pairs


def modelled_column(model, dataset) -> tuple[str, Any]:
    """Name and feature of the modelled column; for rulers, which have no configuration, the first column of the set."""
    name = getattr(getattr(model, "config", None), "modelled", None) or next(iter(dataset.features))
    return name, dataset.features[name]


def numbers(model, dataset, kind: str, batch_size: int, key: PRNGKeyArray, samples: int = 1, mesh: Mesh | None = None) -> np.ndarray:
    """log p of every example of the set, or its bound, in nats: float64 [N]; of a classifier [N, 2], of pairs [N, 3], as `_score` gives it.

    kind: of `kind_of`, or "terms" for minus the terms of a bound, float64 [N, terms].
    """
    if isinstance(model, nnx.Module):
        model = model if mesh is None else sharding.place_state(mesh, model)
        score = compiled(kind, samples, sharding.whole(mesh))
    else:  # a closed-form model computes in float64 on the host
        score, mesh = _score_on_host(kind, samples), None
    parts = []
    for batch, rows in batches(dataset, batch_size, mesh):
        value = np.asarray(score(model, batch, key), np.float64)[rows]
        _check(value, sum(map(len, parts)), kind, modelled_column(model, dataset)[1].noun)
        parts.append(value)
    return np.concatenate(parts)


def kind_of(model, bound: str) -> str:
    """Which row of the module's table applies: "predictions", "exact", "density", the bound, "error", "pairs", or "samples"."""
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
    if hasattr(model, "squared_error"):
        return "error"
    return "pairs" if hasattr(model, "translate") else "samples"


def batches(dataset, batch_size: int, mesh: Mesh | None) -> Iterator[tuple[dict, np.ndarray]]:
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
def compiled(kind: str, samples: int, out: NamedSharding | None):
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
    if kind == "real density" and not getattr(model, "draws_trace", False):
        return model.log_density(x, **given)

    def one(x, index, given):
        given = {name: value[None] for name, value in given.items()}
        if kind == "pairs":  # with the keys of `draw_like`
            drawn, top = model.sample(jax.random.fold_in(key, index), 1, **given), config.features[name].levels - 1
            return all_of_pairs(*(images.astype(jnp.float32) / top for images in (drawn, x[None])))[0]
        keys = jax.random.split(jax.random.fold_in(key, index), samples)
        if kind == "importance":
            return model.importance_bound(x[None], keys[0], samples, **given)[0]
        if kind in ("density", "real density"):
            return jax.vmap(lambda key: _log_density(model, x[None], key, given)[0])(keys).mean()
        if kind == "density errors":
            v = dequantise(x[None], keys[0]) if jnp.issubdtype(x.dtype, jnp.integer) else x[None]
            errors = model.density_errors(v, jax.random.fold_in(keys[0], 1), **given)
            return jnp.concatenate([errors["solver_error"], errors["trace_error"]])
        if kind == "terms":
            return jax.vmap(lambda key: -jnp.concatenate(model.bound_terms(x[None], key, **given)))(keys).mean(0)
        return jax.vmap(lambda key: model.elbo(x[None], key, **given)[0])(keys).mean()

    return jax.vmap(one)(x, batch["index"], given)


def _log_density(model, x: Array, key: PRNGKeyArray, given: dict) -> Float[Array, " B"]:
    """log p(x + u) of integers, log p(x) of real numbers. A density with an estimated trace (denoising/ode.py) has a key for it."""
    v = dequantise(x, key) if jnp.issubdtype(x.dtype, jnp.integer) else x
    more = {"key": jax.random.fold_in(key, 1)} if getattr(model, "draws_trace", False) else {}
    return model.log_density(v, **more, **given)


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


def _check(value: np.ndarray, start: int, kind: str, noun: str) -> None:
    """NonFiniteError for a log p that is not finite; ConfigError for an exact log p above 1e-3, since probabilities are at most 1."""
    if not np.isfinite(value).all():
        index = int(np.argwhere(~np.isfinite(value))[0, 0])
        raise NonFiniteError(f"{noun} {start + index}", "a finite log-probability", value[index])
    if kind == "exact" and value.max() > 1e-3:
        index = int(value.argmax())
        hint = "a density is not a probability of levels; give the model log_density(v) instead, and the evaluator dequantises"
        raise ConfigError("log_prob", f"at most 0 nats for a discrete {noun}", f"{value[index]:.6g} for {noun} {start + index}", hint)
