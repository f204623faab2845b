"""Functions of images in [0, 1] to logits, which attacks work on, made of models.

A model of the library sees integers k in 0 .. L-1. An attack needs a function of real numbers u in [0, 1] with

    f(k / (L - 1)) = predict(k) for all levels k, bit for bit,        and a gradient

A model has it where it has `relaxed`, the same network on real values in 0 .. L-1: f(u) = relaxed((L - 1) u). The product (L - 1) u can
miss an integer by a rounding error, since k / (L - 1) is rounded; so a value that is nearer to an integer than rounding can bring it is set
to that integer, with the gradient left as it is.
"""

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer

from jaxgen.attacks.inputs import LogitsFn, check_levels
from jaxgen.errors import ConfigError, shown


def to_unit(image: Integer[Any, "*shape"], levels: int) -> Float[Array, "*shape"]:
    """k / (L - 1), in [0, 1]."""
    check_levels(levels)
    return jnp.asarray(image).astype(jnp.float32) / np.float32(levels - 1)


def from_unit(x: Float[Any, "*shape"], levels: int) -> Float[Array, "*shape"]:
    """(L - 1) u in 0 .. L-1, exactly an integer where u is a level."""
    check_levels(levels)
    scaled = x * np.float32(levels - 1)
    nearest = jnp.round(scaled)
    close = jnp.abs(scaled - nearest) <= 2.0**-22 * jnp.maximum(nearest, 1)
    return scaled + jax.lax.stop_gradient(jnp.where(close, nearest - scaled, 0))


def to_level(x: Float[Any, "*shape"], levels: int) -> Float[Array, "*shape"]:
    """The nearest level k / (L - 1) to every value: what is left of an image that is saved as integers."""
    check_levels(levels)
    return jnp.round(x * np.float32(levels - 1)) / np.float32(levels - 1)


def on_unit_box(model, name: str = "logits") -> LogitsFn:
    """The function of images in [0, 1] to the model's logits, or to the outputs of another of its layers by name.

    It is a pytree that holds the weights: `jax.jit` takes it as an argument like any other. ConfigError for a model without `relaxed`.
    """
    image = getattr(getattr(model, "config", None), "features", {}).get("image")
    if image is None or not hasattr(model, "relaxed"):
        raise ConfigError("model", "a classifier of images with a method `relaxed` of real pixel values", type(model).__name__)
    return Partial(partial(_relaxed, levels=image.levels, name=name), model)


def _relaxed(model, x, levels: int, name: str):
    return model.relaxed(from_unit(x, levels), name)


def ensemble(logits_fns: Sequence[LogitsFn], weights: Sequence[float] | None = None) -> LogitsFn:
    """The logarithm of a mean of the functions' probabilities, log sum_i w_i softmax(f_i(x)), as logits: what fools many models at once is
    more likely to fool another one (Liu et al. 2017, "Delving into Transferable Adversarial Examples and Black-box Attacks", equation 5).

    weights: one for each function, positive; None: equal ones.
    """
    if callable(logits_fns) or not logits_fns or not all(map(callable, logits_fns)):
        raise ConfigError("logits_fns", "at least one function, in a list", shown(logits_fns))
    weights = [1.0] * len(logits_fns) if weights is None else list(weights)
    if len(weights) != len(logits_fns) or not all(0 < weight < inf for weight in weights):
        raise ConfigError("weights", f"{len(logits_fns)} positive numbers, one for each function", weights)
    shares = np.log(np.asarray(weights) / np.sum(weights)).astype(np.float32)

    def mean(x):
        answers = [logits_fn(x) for logits_fn in logits_fns]
        if len({answer.shape for answer in answers}) > 1:
            shapes = ", ".join(str(list(answer.shape)) for answer in answers)
            raise ConfigError("logits_fns", "functions with the same classes", f"logits of shapes {shapes}")
        each = jnp.stack([jax.nn.log_softmax(answer) for answer in answers])
        return jax.nn.logsumexp(each + shares[:, None, None], axis=0)

    return mean
