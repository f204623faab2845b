"""Checks of arguments: images, labels, vectors, known pixels, counts, keys, temperatures; and `interpolate` between two conditions.

Every function returns the argument in one form, or raises a ConfigError that names it. Inside `jit` values are not known, so only shapes
and dtypes are checked there.
"""

import operator
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.config import check_types
from jaxgen.errors import ConfigError, shown

MOST_LEVELS = 2**16
"""The most levels of an image, whose values are unsigned integers of 8 or 16 bits."""
LEAST_TEMPERATURE = 2.0**-126
"""The smallest normal float32: compiled programs take smaller numbers for 0, and logits divided by 0 are no logits."""


def check_image_config(config, least: dict[str, int], channels: tuple[int, ...] | None = (1, 3)) -> None:
    """ConfigError unless the types of all fields, image_shape, levels, num_classes and, if there is one, dropout are valid.

    least: {field: smallest value} of further fields. channels: the allowed numbers of channels C, None for any.
    """
    check_types(config)
    wanted = "(H, W, C), all positive" if channels is None else "(H, W, C) with C = " + " or ".join(map(str, channels))
    if min(config.image_shape) < 1 or channels is not None and config.image_shape[2] not in channels:
        raise ConfigError("image_shape", wanted, config.image_shape)
    if not 2 <= config.levels <= MOST_LEVELS:
        raise ConfigError("levels", f"2..{MOST_LEVELS}", config.levels)
    if config.num_classes < 0:
        raise ConfigError("num_classes", "0 (unconditional) or more", config.num_classes)
    for name, low in least.items():
        if getattr(config, name) < low:
            raise ConfigError(name, f"{low} or more", getattr(config, name))
    if not 0 <= getattr(config, "dropout", 0) < 1:
        raise ConfigError("dropout", "a number in 0..1, 1 excluded", config.dropout)


def check_levels(levels: int, feature) -> None:
    """The levels in the configuration of a model of images or points: images have at least 2, real points have none (0)."""
    least, most = (2, MOST_LEVELS) if feature.discrete else (0, 0)
    if not least <= levels <= most:
        raise ConfigError("levels", f"2..{MOST_LEVELS} for images, 0 for points", levels)


def image_of(batch: dict, name: str = "image"):
    """batch[name]; ConfigError where the batch has no such column."""
    if name not in batch:
        raise ConfigError("batch", f"an entry {name!r}", ", ".join(map(repr, batch)) or "an empty one")
    return batch[name]


def check_images(image, image_shape: tuple[int, int, int], levels: int, argument: str = "image") -> Array:
    """`image` as a jax array [B, H, W, C], B > 0, with values 0 .. levels-1.

    It must have the smallest unsigned type that holds these levels, uint8 up to 256; no other is converted. argument: named in errors.
    """
    dtype, wanted = getattr(image, "dtype", type(image).__name__), np.min_scalar_type(levels - 1)
    if dtype != wanted:
        raise ConfigError(argument, f"dtype {wanted}", dtype, f"integers in 0..{levels - 1}")
    if image.ndim != 4 or image.shape[1:] != tuple(image_shape):
        raise ConfigError(argument, f"shape [B, {', '.join(map(str, image_shape))}]", list(image.shape))
    if image.shape[0] == 0:
        raise ConfigError(argument, "at least one image", "an empty batch")
    if levels - 1 < np.iinfo(wanted).max and not isinstance(image, jax.core.Tracer) and (top := int(np.asarray(image).max())) >= levels:
        raise ConfigError(argument, f"values in 0..{levels - 1}", f"a maximum of {top}")
    return jnp.asarray(image)


def check_label(label, num_classes: int, batch: int) -> Array | None:
    """`label` as int32 [B] for a class-conditional model, None for num_classes = 0. A single integer is repeated for the batch.

    Weights of the classes, float [B, num_classes], are returned as float32: models then mix the embeddings, see `interpolate`.
    """
    if num_classes == 0:
        if label is not None:
            raise ConfigError("label", "None (the model is unconditional, num_classes=0)", "a label")
        return None
    if label is None:
        raise ConfigError("label", f"int [B] in 0..{num_classes - 1} (the model is class-conditional)", "None")
    wanted = f"integers, or weights of the classes, float [{batch}, {num_classes}]"
    label = _numbers(label, "label", wanted)
    if jnp.issubdtype(label.dtype, jnp.floating) and label.ndim == 2:
        return _check_rows(label, "label", num_classes, batch)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ConfigError("label", wanted, label.dtype)
    if label.shape not in ((), (batch,)):
        raise ConfigError("label", f"shape [{batch}]", list(label.shape))
    if not isinstance(label, jax.core.Tracer):
        values = np.atleast_1d(np.asarray(label))
        outside = values[(values < 0) | (values >= num_classes)]
        if outside.size:
            raise ConfigError("label", f"values in 0..{num_classes - 1}", int(outside[0]))
    return jnp.broadcast_to(jnp.asarray(label, jnp.int32), (batch,))


def check_vector(vector, size: int, batch: int) -> Array | None:
    """`vector` as float32 [B, size], finite; None for size = 0. A single vector [size] is repeated for the batch."""
    if size == 0 and vector is not None:
        raise ConfigError("vector", "None (vector_size=0)", "a vector")
    if size == 0:
        return None
    if vector is None:
        raise ConfigError("vector", f"float [{batch}, {size}]", "None")
    vector = _numbers(vector, "vector", "floating-point numbers")
    if not jnp.issubdtype(vector.dtype, jnp.floating):
        raise ConfigError("vector", "floating-point numbers", vector.dtype)
    if vector.shape == (size,):
        vector = jnp.broadcast_to(jnp.asarray(vector), (batch, size))
    return _check_rows(vector, "vector", size, batch)


def check_known(known, n: int, image_shape: tuple[int, int, int], levels: int):
    """(image, mask) as integers [n, H, W, C] and bool [n, H, W]; one image or mask is repeated for all n. None: all False, zeros."""
    height, width, channels = image_shape
    if known is None:
        return jnp.zeros((n, *image_shape), np.min_scalar_type(levels - 1)), jnp.zeros((n, height, width), bool)
    if not (isinstance(known, tuple | list) and len(known) == 2):
        raise ConfigError("known", "a pair (image, mask)", type(known).__name__)
    image, mask = known
    single = getattr(image, "ndim", None) == 3
    image = check_images(image[None] if single else image, image_shape, levels, "known image")
    mask = _numbers(mask, "known mask", "dtype bool")
    if mask.dtype != bool:
        raise ConfigError("known mask", "dtype bool", mask.dtype)
    if mask.shape not in ((height, width), (n, height, width)):
        raise ConfigError("known mask", f"shape [{n}, {height}, {width}] or [{height}, {width}]", list(mask.shape))
    if not single and image.shape[0] != n:
        raise ConfigError("known image", f"{n} images", image.shape[0])
    return jnp.broadcast_to(image, (n, *image_shape)), jnp.broadcast_to(jnp.asarray(mask), (n, height, width))


def check_known_places(known, n: int, length: int, head) -> tuple[Array, Array]:
    """(values, mask) as [n, length] in head.dtype and bool; one row [length] is repeated for all n. None: all False, zeros."""
    if known is None:
        return jnp.zeros((n, length), head.dtype), jnp.zeros((n, length), bool)
    if not (isinstance(known, tuple | list) and len(known) == 2):
        raise ConfigError("known", "a pair (values, mask)", type(known).__name__)
    values, mask = _numbers(known[0], "known values", "numbers"), _numbers(known[1], "known mask", "dtype bool")
    if mask.dtype != bool:
        raise ConfigError("known mask", "dtype bool", mask.dtype)
    for argument, array in (("known values", values), ("known mask", mask)):
        if array.shape not in ((length,), (n, length)):
            raise ConfigError(argument, f"shape [{n}, {length}] or [{length}]", list(array.shape))
    whole, levels = jnp.issubdtype(head.dtype, jnp.integer), getattr(head, "levels", None)
    if whole and not jnp.issubdtype(values.dtype, jnp.integer):
        raise ConfigError("known values", "integers", values.dtype)
    if whole and not isinstance(values, jax.core.Tracer):
        outside = np.asarray(values)[(np.asarray(values) < 0) | (np.asarray(values) >= levels)]
        if outside.size:
            raise ConfigError("known values", f"values in 0..{levels - 1}", int(outside[0]))
    return jnp.broadcast_to(jnp.asarray(values).astype(head.dtype), (n, length)), jnp.broadcast_to(jnp.asarray(mask), (n, length))


def check_count(n, argument: str = "n") -> int:
    """`n` as a positive int, from anything that Python takes as an index, such as numpy's integers, but not from a bool."""
    try:
        count = operator.index(n)
    except TypeError:
        count = 0
    if count < 1 or isinstance(n, bool):
        raise ConfigError(argument, "a positive integer", shown(n))
    return count


def check_key(key) -> None:
    """ConfigError unless `key` is one random key: `jax.random.key(seed)`, or a uint32 vector as of `jax.random.PRNGKey(seed)`."""
    dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
    new = ndim == 0 and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (new or ndim == 1 and dtype == jnp.uint32):
        raise ConfigError("key", "one key, such as jax.random.key(0)", shown(key))


def check_temperature(temperature) -> Float[Array, ""]:
    """`temperature` as one float32 of at least LEAST_TEMPERATURE."""
    value = _numbers(temperature, "temperature", "a positive number")
    if value.ndim or not (isinstance(value, jax.core.Tracer) or value > 0):
        raise ConfigError("temperature", "a positive number", shown(temperature))
    if not isinstance(value, jax.core.Tracer) and value < LEAST_TEMPERATURE:
        raise ConfigError("temperature", f"at least {LEAST_TEMPERATURE:.3g}, since a smaller float32 counts as 0", shown(temperature))
    return jnp.asarray(value, jnp.float32)


def interpolate(first, last, n: SupportsIndex, num_classes: int = 0) -> Float[Array, "n D"]:
    """n conditions from `first` to `last`, float32: y_i = (1 - t_i) first + t_i last, t_i = i / (n - 1), i = 0 .. n-1; n >= 2.

    Two vectors [D] give vectors for `vector=`. With num_classes > 0, two classes, or two rows of weights of the classes, give weights of
    the classes for `label=`; models mix embeddings by them, so this interpolates between embeddings (van den Oord et al. 2016,
    "Conditional Image Generation with PixelCNN Decoders", section 3.3, where the embeddings are of portraits).
    """
    if (n := check_count(n)) < 2:
        raise ConfigError("n", "an integer above 1", n)
    if num_classes:
        ends = check_label([first, last], num_classes, 2)
        first, last = jax.nn.one_hot(ends, num_classes) if jnp.issubdtype(ends.dtype, jnp.integer) else ends
    first, last = jnp.asarray(first, jnp.float32), jnp.asarray(last, jnp.float32)
    if first.ndim != 1 or first.shape != last.shape:
        raise ConfigError("first and last", "two vectors [D], or two classes and num_classes", f"shapes {first.shape} and {last.shape}")
    t = jnp.linspace(0, 1, n)[:, None]
    return (1 - t) * first[None] + t * last[None]


def _check_rows(values, argument: str, size: int, batch: int) -> Float[Array, "B D"]:
    """`values` as float32 [B, D]; ConfigError for another shape, NaN or infinity."""
    if np.shape(values) != (batch, size):
        raise ConfigError(argument, f"shape [{batch}, {size}]", list(np.shape(values)))
    if not isinstance(values, jax.core.Tracer) and not np.isfinite(np.asarray(values)).all():
        raise ConfigError(argument, "finite numbers", "NaN or infinity")
    return jnp.asarray(values, jnp.float32)


def _numbers(value, argument: str, wanted: str):
    """`value` as an array of numbers or bools, arrays unchanged; ConfigError for text, None, objects and ragged lists."""
    try:
        array = value if hasattr(value, "dtype") else np.asarray(value)
    except (TypeError, ValueError):  # a ragged list
        raise ConfigError(argument, wanted, shown(value)) from None
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ConfigError(argument, wanted, shown(value))
    return array
