"""One change for many images or for many views: universal perturbations, expectation over transformations, patches.

    universal      v = argmax_{|v|_p <= eps} mean over x of min(m(x + v), cap), by steepest steps on batches, projected. Many images decide
                   on one v, so that it also fools images that it has not seen              Moosavi-Dezfooli et al. 2017; this form:
                                                                                            Shafahi et al. 2020
    eot            pgd on the mean over draws t of J(t(x + d)): images that fool after any transformation, as a camera sees them
                                                                                            Athalye et al. 2018
    patch          a square of free values, pasted at random places of many images, for which many are taken for a target
                                                                                            Brown et al. 2017, "Adversarial Patch"

m is the log-ratio (losses.py). The cap keeps images that are fooled from drawing v further. A transformation is a function
(image [H, W, C], key) -> image of the same shape, differentiable in the image; those here are drawn anew for every image and step, and what
comes out of [0, 1] is clipped. Report results on images and on draws that the attack has not seen.
"""

from collections.abc import Callable
from functools import reduce
from math import inf, pi
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from jaxgen.attacks import balls
from jaxgen.attacks.gradient import Loss, climb
from jaxgen.attacks.inputs import (
    BOX,
    Box,
    LogitsFn,
    Result,
    check_ball,
    check_cap,
    check_classes,
    check_counts,
    check_functions,
    check_grid,
    check_in_box,
    check_inputs,
    check_logits,
    check_positive,
    fold,
    hit,
    one_key,
    random_rows,
)
from jaxgen.attacks.loops import in_loops
from jaxgen.attacks.losses import cross_entropy, log_ratio
from jaxgen.errors import ConfigError

Transformation = Callable[[Any, Any], Any]


# --- Transformations ---------------------------------------------------------------------------------------------------------------------


def rotated(degrees: float = 20.0, scales: tuple[float, float] = (0.9, 1.1)) -> Transformation:
    """Turned around the middle by up to so many degrees to each side and scaled by a factor in `scales`, uniform draws; zeros outside."""
    check_positive(scales=min(scales))

    def transform(image, key):
        of_angle, of_scale = jax.random.split(key)
        angle = jax.random.uniform(of_angle, minval=-degrees, maxval=degrees) * (pi / 180)
        scale = jax.random.uniform(of_scale, minval=scales[0], maxval=scales[1])
        rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
        rows, columns = rows - np.float32(image.shape[0] - 1) / 2, columns - np.float32(image.shape[1] - 1) / 2
        cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
        place = [cos * rows + sin * columns + (image.shape[0] - 1) / 2, cos * columns - sin * rows + (image.shape[1] - 1) / 2]
        return jnp.stack([map_coordinates(image[..., c], place, order=1) for c in range(image.shape[2])], axis=-1)

    return transform


def brightened(most: float = 0.1) -> Transformation:
    """The same number, uniform in -most .. most, added to all values."""
    return lambda image, key: jnp.clip(image + jax.random.uniform(key, minval=-most, maxval=most), 0, 1)


def noised(scale: float = 0.05) -> Transformation:
    """Gaussian noise of this standard deviation."""
    return lambda image, key: jnp.clip(image + scale * jax.random.normal(key, image.shape), 0, 1)


def photographed(gamma: float = 0.3, levels: int = 32) -> Transformation:
    """As printed and photographed: x^g with log g uniform in -gamma .. gamma, a 3 x 3 binomial blur, and rounding to so many levels.

    The gradient passes the rounding as if it were not there.
    """
    if levels < 2:
        raise ConfigError("levels", "2 or more", levels)

    def transform(image, key):
        power = jnp.exp(jax.random.uniform(key, minval=-gamma, maxval=gamma))
        image = jnp.maximum(image, 1e-3) ** power
        for axis in (0, 1):
            padded = jnp.pad(image, [(1, 1) if i == axis else (0, 0) for i in range(3)], mode="edge")
            size = image.shape[axis]
            parts = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)]
            image = 0.25 * parts[0] + 0.5 * parts[1] + 0.25 * parts[2]
        return image + jax.lax.stop_gradient(jnp.round(image * (levels - 1)) / (levels - 1) - image)

    return transform


def chain(*transformations: Transformation) -> Transformation:
    """One after the other, each with a key of its own."""
    for transformation in transformations:
        check_functions(transformations=transformation)

    def transform(image, key):
        keys = jax.random.split(key, len(transformations))
        return reduce(lambda image, each: each[0](image, each[1]), zip(transformations, keys, strict=True), image)

    return transform


# --- Attacks -----------------------------------------------------------------------------------------------------------------------------


def eot(
    logits_fn: LogitsFn,
    x: Float[Any, "B H W C"],
    y: Any,
    key: Any,
    eps: Any,
    transformation: Transformation,
    norm: float = inf,
    *,
    samples: int = 30,
    steps: int = 40,
    step_size: Any = None,
    loss: Loss = log_ratio,
    targeted: bool = False,
    box: Box = BOX,
) -> Result:
    """pgd from x on the mean loss over `samples` draws of the transformation at each step; the gradient passes the transformation.

    success: at x_adv more than half of new draws succeed. queries: samples (steps + 1). Of a network that itself draws at random, give
    the draw to a transformation.
    """
    x, y, keys = check_inputs(logits_fn, x, y, key, box)
    check_ball(eps, norm, x, box)
    check_counts(samples=samples)
    check_functions(transformation=transformation, loss=loss)
    logits_fn = in_loops(logits_fn)
    sign = -1.0 if targeted else 1.0

    def evaluate(point, keys):
        def total(point):
            def draw(number):
                logits = logits_fn(jax.vmap(transformation)(point, fold(keys, number)))
                return sign * loss(logits, y), hit(logits, y, targeted)

            values, hits = jax.lax.map(draw, jnp.arange(samples))
            return values.mean(axis=0).sum(), (values.mean(axis=0), hits.mean(axis=0) > 0.5)

        g, (value, success) = jax.grad(total, has_aux=True)(point)
        return value, success, g

    return climb(evaluate, x, keys, eps, norm, steps, step_size, keep="last", box=box, cost=samples)


def universal(
    logits_fn: LogitsFn,
    x: Float[Any, "N ..."],
    y: Any,
    key: Any,
    eps: Any,
    norm: float = inf,
    *,
    steps: int = 200,
    batch_size: int = 64,
    step_size: Any = None,
    cap: float = 2.0,
    loss: Loss = log_ratio,
    box: Box = BOX,
) -> Float[Array, "1 ..."]:
    """The perturbation v [1, ...], for all images: they become clip(x + v) to the box. step_size: None for eps / 10, falling to 0.

    Its rate on images that it has not seen: (logits_fn(jnp.clip(x + v, 0, 1)).argmax(1) != y).mean().
    """
    x, y, _ = check_inputs(logits_fn, x, y, key, box)
    check_ball(eps, norm, x, box)
    if step_size is not None:
        check_positive(step_size=step_size)
    check_cap(cap)
    check_functions(loss=loss)
    logits_fn = in_loops(logits_fn)
    step_size, key = eps / 10 if step_size is None else step_size, one_key(key)
    check_counts(steps=steps, batch_size=batch_size)
    middle = jnp.zeros_like(x[:1])
    wide = (-(box[1] - box[0]), box[1] - box[0])

    def step(v, number):
        rows = random_rows(jax.random.fold_in(key, number), len(x), batch_size)

        def mean(v):
            return jnp.minimum(loss(logits_fn(jnp.clip(x[rows] + v, *box)), y[rows]), cap).mean()

        size = step_size * (1 - number / steps)
        return balls.project(v + size * balls.steepest(jax.grad(mean)(v), norm, v, wide), middle, eps, norm, wide), None

    return jax.lax.scan(step, middle, jnp.arange(steps))[0]


def patch(
    logits_fn: LogitsFn,
    x: Float[Any, "N H W C"],
    target: int,
    key: Any,
    size: int,
    *,
    steps: int = 300,
    batch_size: int = 64,
    rate: float = 0.05,
    transformation: Transformation | None = None,
) -> Float[Array, "size size C"]:
    """A square of size x size values in [0, 1] for which images are taken for the class `target` wherever it is pasted (`pasted`).

    By sign steps that fall from `rate` to 0 on the logarithm of the batch's mean probability of the target, which does not underflow. The
    mean of log p, as of Brown et al., is decided by images that no patch at that place turns. transformation: of the patch before it is
    pasted.
    """
    x, key = check_in_box(x), one_key(key)
    check_grid(x)
    check_counts(size=size, steps=steps, batch_size=batch_size)
    check_positive(rate=rate)
    if transformation is not None:
        check_functions(transformation=transformation)
    check_classes(np.full(1, target), 1, check_logits(logits_fn, x), "target")
    if size > min(x.shape[1:3]):
        raise ConfigError("size", f"1..{min(x.shape[1:3])}, inside of the image", size)
    logits_fn = in_loops(logits_fn)

    def step(square, number):
        of_rows, of_places, of_views = jax.random.split(jax.random.fold_in(key, number), 3)
        rows = random_rows(of_rows, len(x), batch_size)

        def mean(square):
            seen = square if transformation is None else transformation(square, of_views)
            logits = logits_fn(pasted(x[rows], seen, jax.random.split(of_places, len(rows))))
            return -jax.nn.logsumexp(-cross_entropy(logits, jnp.full(rows.shape, target)))

        return jnp.clip(square - rate * (1 - number / steps) * jnp.sign(jax.grad(mean)(square)), 0, 1), None

    return jax.lax.scan(step, jnp.full((size, size, x.shape[3]), 0.5, x.dtype), jnp.arange(steps))[0]


def pasted(x: Float[Array, "B H W C"], square: Float[Array, "s t C"], keys) -> Float[Array, "B H W C"]:
    """The images with the square at a place drawn for each, one with each key."""
    check_grid(x)
    (rows, columns, channels), size = x.shape[1:], np.shape(square)
    if len(size) != 3 or size[0] > rows or size[1] > columns or size[2] != channels:
        raise ConfigError("square", f"[s, t, {channels}] with at most {rows} rows and {columns} columns", f"shape {list(size)}")

    def one(image, key):
        free = jnp.array([image.shape[0] - square.shape[0] + 1, image.shape[1] - square.shape[1] + 1])
        row, column = jax.random.randint(key, (2,), 0, free)
        return jax.lax.dynamic_update_slice(image, square.astype(image.dtype), (row, column, 0))

    return jax.vmap(one)(x, keys)
