"""What every attack is given and gives: checks of its arguments, and `Result`.

`logits_fn` is any function from images [B, ...] to logits [B, K] that judges every image by itself. Inside `jit` the values of arguments
are not known, so only shapes and types are checked there; what a function answers is looked at on the first images outside of it.
"""

import inspect
from collections.abc import Callable
from math import inf, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import TraceContextError
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from jaxgen.attacks.balls import BOX, NORMS
from jaxgen.errors import ConfigError, shown

LogitsFn = Callable[[Any], Any]
Box = tuple[float, float]
FEW = 8
"""Images on which the answers of a function are looked at."""


class Result(NamedTuple):
    """What an attack found for each of B images."""

    x_adv: Float[Array, "B ..."]  # the images, in the box
    success: Bool[Array, " B"]  # whether the function predicts another class than y there; targeted: the target
    norm: Float[Array, " B"]  # |x_adv - x| in the norm of the attack
    loss: Float[Array, " B"]  # what the attack made large, at x_adv
    queries: Int[Array, " B"]  # how often the function was asked about the image; a gradient counts as once


def hit(logits: Float[Array, "B K"], y: Integer[Array, " B"], targeted: bool) -> Bool[Array, " B"]:
    """Whether the attack has what it wants: another class than y, or the target y."""
    predicted = logits.argmax(axis=1)
    return predicted == y if targeted else predicted != y


def better(new: Result, old: Result) -> Result:
    """Row by row the result that succeeds, and of two equal in that the one with the larger loss; the queries are those of both."""
    take = (new.success & ~old.success) | ((new.success == old.success) & (new.loss > old.loss))
    chosen = Result(*(where(take, a, b) for a, b in zip(new, old, strict=True)))
    return chosen._replace(queries=new.queries + old.queries)


def where(rows: Bool[Array, " B"], a: Array, b: Array) -> Array:
    """Row i of a where rows[i], else of b."""
    return jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b)


def row_keys(key, n: int) -> Key[Array, " n"]:
    """A key for each of n rows, the same for a row however many there are; n keys are taken as they are."""
    _check_key(key)
    if key.shape not in ((), (n,)):
        raise ConfigError("key", f"one key, or {n}, one for each image", f"keys of shape {list(key.shape)}")
    return key if key.shape else fold(jnp.broadcast_to(key, (n,)), jnp.arange(n))


def one_key(key) -> Key[Array, ""]:
    """The key; ConfigError for many, where one search is for all images."""
    _check_key(key)
    if key.shape:
        raise ConfigError("key", "one key, since one search is for all images", f"keys of shape {list(key.shape)}")
    return key


def fold(keys: Key[Array, " B"], number) -> Key[Array, " B"]:
    """New keys from these and a number, or a number for each."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(jnp.asarray(number), keys.shape))


def random_rows(key: Key[Array, ""], n: int, batch_size: int) -> Int[Array, " b"]:
    """Numbers of a batch of n examples, drawn with replacement; of fewer than batch_size, n."""
    return jax.random.randint(key, (min(batch_size, n),), 0, n)


def descend(optimizer: optax.GradientTransformation, gradient, state, values):
    """(values, state) after a step of the optimizer down the gradient."""
    with jax.numpy_dtype_promotion("standard"):  # optax computes float ** integer, which strict promotion refuses
        update, state = optimizer.update(gradient, state, values)
    return optax.apply_updates(values, update), state


def check_inputs(logits_fn: LogitsFn, x, y, key, box: Box = BOX) -> tuple[Array, Array, Array]:
    """(x as float32 [B, ...], y as int32 [B], keys [B]); ConfigError, one line, for what no attack can work with."""
    x = check_in_box(x, box)
    return x, check_classes(y, x.shape[0], check_logits(logits_fn, x)), row_keys(key, x.shape[0])


def check_classes(y, n: int, classes: int, name: str = "y") -> Int[Array, " n"]:
    """y as int32; ConfigError unless it is one class for each of n images."""
    y = _integers(y, name)
    if y.shape != (n,):
        raise ConfigError(name, f"shape [{n}], one class for each image", list(y.shape))
    if not isinstance(y, jax.core.Tracer) and (outside := (np.asarray(y) < 0) | (np.asarray(y) >= classes)).any():
        raise ConfigError(name, f"classes in 0..{classes - 1}", int(np.asarray(y)[outside][0]))
    return y


def takes_eps(attack: Callable[..., Result]) -> bool:
    """Whether an attack has a place for eps after (logits_fn, x, y, key)."""
    try:
        inspect.signature(attack).bind(*range(5))
    except TypeError:
        return False
    return True


def check_counts(**counts) -> None:
    """ConfigError for what is not a positive integer."""
    for name, value in counts.items():
        if not is_count(value):
            raise ConfigError(name, "a positive integer", shown(value))


def check_functions(**functions) -> None:
    """ConfigError for what is not a function."""
    for name, value in functions.items():
        if not callable(value):
            raise ConfigError(name, "a function", shown(value))


def check_positive(**numbers) -> None:
    """ConfigError for what is not a positive number; what is traced is not known."""
    for name, value in numbers.items():
        if not isinstance(value, jax.core.Tracer) and not (is_number(value) and float(value) > 0):
            raise ConfigError(name, "a positive number", shown(value))


def check_not_negative(**numbers) -> None:
    """ConfigError for what is no number of 0 or more; what is traced is not known."""
    for name, value in numbers.items():
        if not isinstance(value, jax.core.Tracer) and not is_number(value, least=0):
            raise ConfigError(name, "0 or more", shown(value))


def check_cap(cap) -> None:
    """ConfigError for what is neither a number nor infinity, which caps nothing; what is traced is not known."""
    if not isinstance(cap, jax.core.Tracer) and not (is_number(cap) or cap == inf):
        raise ConfigError("cap", "a number, or infinity", shown(cap))


def is_count(value) -> bool:
    """Whether it is a positive integer."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1


def is_number(value, least: float = -inf) -> bool:
    """Whether it is one finite real number, `least` or more."""
    return np.shape(value) == () and np.asarray(value).dtype.kind in "iuf" and bool(np.isfinite(value) and value >= least)


def check_grid(x: Float[Array, "B ..."]) -> None:
    """ConfigError unless images have rows, columns and channels."""
    if x.ndim != 4:
        raise ConfigError("x", "images [B, H, W, C]", f"shape {list(x.shape)}")


def check_shape(shape) -> None:
    """ConfigError unless it is that of an image with rows, columns and channels."""
    if np.shape(shape) != (3,) or not all(map(is_count, shape)):
        raise ConfigError("shape", "rows, columns and channels of an image, such as (28, 28, 1)", shown(shape))


def check_levels(levels) -> None:
    """ConfigError unless it is an integer of 2 or more."""
    if not (is_count(levels) and levels >= 2):
        raise ConfigError("levels", "an integer, 2 or more", shown(levels))


def check_in_box(x, box: Box = BOX) -> Float[Array, "B ..."]:
    """x as float32; ConfigError unless it is a batch of real numbers in the box."""
    if np.shape(box) != (2,) or not (all(map(is_number, box)) and box[0] < box[1]):
        raise ConfigError("box", "two finite numbers, the lower one first", shown(box))
    low, high = box
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        hint = "on_unit_box(model) takes such images, x / (levels - 1)" if (low, high) == (0, 1) else ""
        raise ConfigError("x", f"real numbers in {low:g}..{high:g}", dtype or shown(x), hint)
    if x.ndim == 0 or x.shape[0] == 0 or prod(x.shape) == 0:
        raise ConfigError("x", "a batch of images [B, ...], at least one", f"shape {list(x.shape)}")
    if not isinstance(x, jax.core.Tracer):
        values = np.asarray(x)
        if not ((values >= low) & (values <= high)).all():  # also false for NaN
            raise ConfigError("x", f"images with values in {low:g}..{high:g}", f"values from {values.min():g} to {values.max():g}")
    return jnp.asarray(x, jnp.float32)


def check_logits(logits_fn: LogitsFn, x: Float[Array, "B ..."]) -> int:
    """The number of classes; ConfigError unless the function gives logits [B, K], and the same ones twice."""
    if not callable(logits_fn):
        raise ConfigError("logits_fn", "a function from images to logits", shown(logits_fn))
    first = None if isinstance(x, jax.core.Tracer) else logits_fn(x[:FEW])
    known = not isinstance(first, jax.core.Tracer | None)  # else x is traced, or weights that the function closes over
    again = logits_fn(x[:FEW]) if known else None
    if known and np.shape(first) == np.shape(again):
        _check_same(np.asarray(first), np.asarray(again))
    try:
        shape = traced_shape(logits_fn, x)
    except TraceContextError:
        hint = "model.eval() switches dropout off and takes the averages of batch normalisation; nnx.jit inside counts as a change too"
        raise ConfigError(
            "logits_fn", "a function that changes nothing", "a network that changes its state when it is asked", hint
        ) from None
    if shape is None or len(shape) != 2 or shape[0] != x.shape[0] or shape[1] < 2:
        raise ConfigError("logits_fn", f"logits [{x.shape[0]}, K] of two or more classes", f"shape {shape and list(shape)}")
    if known and (np.asarray(first) >= 0).all() and np.abs(np.asarray(first).sum(axis=1) - 1).max() < 1e-3:
        hint = "give the numbers before the softmax, since probabilities near 0 and 1 have no gradients"
        raise ConfigError("logits_fn", "logits", "probabilities: rows of positive numbers that sum to 1", hint)
    return shape[1]


def traced_shape(logits_fn: LogitsFn, x: Float[Array, "B ..."]) -> tuple[int, ...] | None:
    """The shape of the answer, without computing it; None for what is no array. ConfigError for a function of NumPy arrays."""
    try:
        return getattr(jax.eval_shape(logits_fn, x), "shape", None)
    except jax.errors.TracerArrayConversionError:
        raise ConfigError("logits_fn", "a function of jax arrays, with jax.numpy inside", "one that needs NumPy arrays") from None


def check_finite(logits: np.ndarray) -> None:
    """ConfigError for NaN or infinity."""
    if not np.isfinite(logits).all():
        raise ConfigError("logits_fn", "finite logits", "NaN or infinity")


def _check_same(logits: np.ndarray, again: np.ndarray) -> None:
    check_finite(logits)
    if (logits != again).any():
        hint = "switch dropout and noise off, or attack the mean over draws with eot"
        raise ConfigError("logits_fn", "the same logits for the same images", f"answers {np.abs(logits - again).max():.2g} apart", hint)


def check_norm(norm: float) -> None:
    """ConfigError unless it is 1, 2 or infinity."""
    if norm not in NORMS:
        raise ConfigError("norm", "1, 2 or jnp.inf", shown(norm))


def check_ball(eps, norm: float, x: Float[Array, "B ..."], box: Box) -> None:
    """ConfigError unless norm is 1, 2 or infinity, and eps at least 0 and not beyond the box, whose farthest corners are that far apart."""
    check_norm(norm)
    if isinstance(eps, jax.core.Tracer):
        return
    most = (box[1] - box[0]) * (1 if norm == inf else prod(x.shape[1:]) ** (1 / norm))
    if not (is_number(eps, least=0) and float(eps) <= most * (1 + 1e-6)):
        raise ConfigError("eps", f"a number in 0..{most:.6g}, since no two images of the box are farther apart", shown(eps))


def _check_key(key) -> None:
    if not jnp.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise ConfigError("key", "a key such as jax.random.key(0), or one for each image", shown(key))


def _integers(y, name: str):
    dtype = getattr(y, "dtype", None)
    if dtype is None:
        y = np.asarray(y)
        dtype = y.dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ConfigError(name, "classes, integers [B]", dtype)
    return jnp.asarray(y, jnp.int32)
