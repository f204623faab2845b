"""Looking into a classifier: images made from nothing, images from representations, gradients as pictures, the plane around an image.

    activation_maximisation   argmax_x z_c(x) - weight |x - middle|^2 / D              Simonyan et al. 2014, "Deep Inside ...", section 2
    fooling_images            ascent on log(p_c / (1 - p_c)) from noise until p_c is `confidence`            Nguyen et al. 2015
    invert                    argmin_x |F(x) - F_0|^2 / |F_0|^2 + smooth TV(x) + bounded |2 x - 1|_6^6 / D   Mahendran & Vedaldi 2015
    saliency                  max over channels of |d z_y / d x|                       Simonyan et al. 2014, section 3
    plane                     the class predicted at x + a u + b v: u towards an adversarial image, v random and orthogonal to u

TV(x) = sum over neighbours below and to the right ((x_down - x)^2 + (x_right - x)^2 + 1e-8)^(beta / 2) / D, whose small constant keeps the
gradient of equal neighbours finite. D is the number of values of an image. All images are in [0, 1], and of shape [H, W, C] each.
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxgen.attacks.balls import each, norms
from jaxgen.attacks.inputs import (
    LogitsFn,
    check_classes,
    check_counts,
    check_grid,
    check_in_box,
    check_logits,
    check_not_negative,
    check_positive,
    check_shape,
    descend,
    is_number,
    row_keys,
    traced_shape,
    where,
)
from jaxgen.attacks.loops import in_loops
from jaxgen.attacks.losses import log_ratio, of_class
from jaxgen.errors import ConfigError


class Inverted(NamedTuple):
    """Images made from representations."""

    image: Float[Array, "B H W C"]
    error: Float[Array, " B"]  # |F(x) - F_0|^2 / |F_0|^2: 0 where the representation is met


def activation_maximisation(
    logits_fn: LogitsFn, target, shape: tuple[int, int, int], key, *, weight: float = 1.0, steps: int = 200, rate: float = 0.02
) -> Float[Array, "B H W C"]:
    """An image for each class in `target` [B], by Adam from small noise around grey; weight: of the distance from grey."""
    start, target = _start(logits_fn, target, shape, key, 0.05)
    check_counts(steps=steps)
    check_positive(rate=rate)
    check_not_negative(weight=weight)
    logits_fn = in_loops(logits_fn)

    def energy(x):
        return weight * jnp.square(x - 0.5).reshape(len(target), -1).mean(axis=1) - of_class(logits_fn(x), target)

    return _adam(energy, start, steps, rate)


def fooling_images(
    logits_fn: LogitsFn, target, shape: tuple[int, int, int], key, *, confidence: float = 0.99, steps: int = 500, rate: float = 0.01
) -> tuple[Float[Array, "B H W C"], Float[Array, " B"]]:
    """(images, p_c of each): from uniform noise, normalised gradient steps until the network is so sure of the class; then a row stays."""
    if not 0 < confidence < 1:
        raise ConfigError("confidence", "a number between 0 and 1", confidence)
    start, target = _start(logits_fn, target, shape, key, 0.5)
    check_counts(steps=steps)
    check_positive(rate=rate)
    logits_fn = in_loops(logits_fn)
    wanted = jnp.log((1 - confidence) / confidence)

    def step(x, _):
        value, back = jax.vjp(lambda x: log_ratio(logits_fn(x), target), x)
        g = back(jnp.ones_like(value))[0]
        length = jnp.maximum(norms(g, 2), jnp.finfo(x.dtype).tiny)
        moved = jnp.clip(x - rate * prod(shape) ** 0.5 * g / each(length, g), 0, 1)
        return where(value <= wanted, x, moved), None

    x, _ = jax.lax.scan(step, start, None, length=steps)
    return x, jax.nn.sigmoid(-log_ratio(logits_fn(x), target))


def invert(
    features_fn: Callable[[Any], Any],
    wanted: Float[Any, "B ..."],
    shape: tuple[int, int, int],
    key: Any,
    *,
    smooth: float = 0.1,
    bounded: float = 0.01,
    beta: float = 2.0,
    steps: int = 300,
    rate: float = 0.02,
) -> Inverted:
    """Images whose features_fn(x) [B, ...] are near to `wanted`, by Adam from noise. The smaller the error beside that of other layers with
    the same options, the more of the image the layer keeps."""
    if not (is_number(smooth, least=0) and is_number(bounded, least=0) and is_number(beta) and beta > 0):
        raise ConfigError("smooth, bounded, beta", "0 or more, and a positive beta", f"{smooth}, {bounded}, {beta}")
    wanted, start = jnp.asarray(wanted, jnp.float32), _noise(key, len(wanted), shape, 0.1)
    check_counts(steps=steps)
    check_positive(rate=rate)
    if (given := traced_shape(features_fn, start)) != wanted.shape:
        raise ConfigError("wanted", f"what features_fn gives, shape {given and list(given)}", f"shape {list(wanted.shape)}")
    features_fn = in_loops(features_fn)
    scale = jnp.maximum(jnp.square(wanted).reshape(len(wanted), -1).sum(axis=1), jnp.finfo(jnp.float32).tiny)

    def error(x):
        return jnp.square(features_fn(x) - wanted).reshape(len(x), -1).sum(axis=1) / scale

    def energy(x):
        large = ((2 * x - 1) ** 6).reshape(len(x), -1).mean(axis=1)
        return error(x) + smooth * total_variation(x, beta) + bounded * large

    x = _adam(energy, start, steps, rate)
    return Inverted(x, error(x))


def total_variation(x: Float[Array, "B H W C"], beta: float = 2.0) -> Float[Array, " B"]:
    """TV of each image."""
    down, right = jnp.diff(x, axis=1)[:, :, :-1], jnp.diff(x, axis=2)[:, :-1]
    slopes = (jnp.square(down) + jnp.square(right) + 1e-8) ** (beta / 2)
    return slopes.reshape(len(x), -1).sum(axis=1) / prod(x.shape[1:])


def saliency(logits_fn: LogitsFn, x: Float[Any, "B H W C"], y: Any) -> Float[Array, "B H W"]:
    """How fast z_y changes with each pixel."""
    x = check_in_box(x)
    check_grid(x)
    y = check_classes(y, len(x), check_logits(logits_fn, x))
    return jnp.abs(jax.grad(lambda x: of_class(logits_fn(x), y).sum())(x)).max(axis=-1)


def plane(
    logits_fn: LogitsFn, x: Float[Any, "H W C"], x_adv: Float[Any, "H W C"], key: Any, *, reach: float = 2.0, side: int = 41
) -> Int[Array, "side side"]:
    """The class predicted at x + a (x_adv - x) + b v, |v|_2 = |x_adv - x|_2: a from -reach to reach along the columns, b along the rows.

    So x is in the middle and x_adv right of it. Images outside of [0, 1] are asked too. ConfigError where x_adv is x.
    """
    check_counts(side=side)
    check_positive(reach=reach)
    if np.ndim(x) != 3 or np.shape(x) != np.shape(x_adv):
        raise ConfigError("x, x_adv", "one image [H, W, C] each", f"shapes {list(np.shape(x))}, {list(np.shape(x_adv))}")
    u = jnp.asarray(x_adv, jnp.float32) - jnp.asarray(x, jnp.float32)
    length = jnp.sqrt(jnp.square(u).sum())
    if not isinstance(length, jax.core.Tracer) and not float(length) > 0:
        raise ConfigError("x_adv", "another image than x", "x itself")
    v = jax.random.normal(key, u.shape)
    v = v - u * ((u * v).sum() / jnp.square(length))
    v = v * (length / jnp.sqrt(jnp.square(v).sum()))
    logits_fn = in_loops(logits_fn)
    places = jnp.linspace(-reach, reach, side)

    def row(b):
        return logits_fn(x[None] + places[:, None, None, None] * u[None] + (b * v)[None]).argmax(axis=1).astype(jnp.int32)

    return jax.lax.map(row, places)


def _start(logits_fn: LogitsFn, target, shape: tuple[int, int, int], key, most: float):
    """(noise around grey, classes) for each class in target; ConfigError for classes out of range, or probabilities given for logits."""
    target = np.asarray(target) if not isinstance(target, jax.Array) else target
    if target.ndim != 1:
        raise ConfigError("target", "classes [B]", f"shape {list(target.shape)}")
    start = _noise(key, len(target), shape, most)
    return start, check_classes(target, len(target), check_logits(logits_fn, start), "target")


def _noise(key, n: int, shape: tuple[int, int, int], most: float) -> Float[Array, "B H W C"]:
    """Images around grey, uniform in 0.5 - most .. 0.5 + most."""
    check_shape(shape)
    return jax.vmap(lambda key: jax.random.uniform(key, shape, minval=0.5 - most, maxval=0.5 + most))(row_keys(key, n))


def _adam(energy: Callable[[Any], Any], x, steps: int, rate: float):
    """x after so many steps of Adam on energy(x) [B], each back into the box."""
    adam = optax.adam(rate)

    def step(carry, _):
        x, state = carry
        g = jax.grad(lambda x: energy(x).sum())(x)
        x, state = descend(adam, g, state, x)
        return (jnp.clip(x, 0, 1), state), None

    return jax.lax.scan(step, (x, adam.init(x)), None, length=steps)[0][0]
