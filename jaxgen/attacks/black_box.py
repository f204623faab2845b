"""Attacks that only ask the network: its logits (estimated gradients) or its decisions (the boundary attack), or another network first.

The slope of a function L of one image along a direction u is (L(x + h u) - L(x - h u)) / 2h, for two queries. Estimates of its gradient are
sums of slopes times directions, g = a sum_i slope_i u_i:

    finite_differences    u_i = the D unit vectors, a = 1: the gradient but for O(h^2), 2 D queries              Bhagoji et al. 2018
    random_groups         u_i = indicators of k random groups of values, over the root of the group's size, a = 1: the gradient's projection
                          on what is constant in each group, 2 k queries                                         Bhagoji et al. 2018
    principal_directions  u_i = the first k principal components of images, a = 1: its projection on them        Bhagoji et al. 2018
    nes                   u_i Gaussian, k of them, a = 1 / k: unbiased for a linear L                            Ilyas et al. 2018
    spsa                  u_i of random signs, a = 1 / k: unbiased for a linear L                                Spall 1992

Every row has its own draws, and its estimate is that of its own loss alone, so a batch gives what single images give.

`estimated` is pgd with such a gradient and a budget of queries. `boundary` (Brendel et al. 2018) sees no more than which class is
predicted: from an image that is misclassified it walks along the boundary towards x. `transfer` asks once, for what fools a substitute.
"""

from collections.abc import Callable
from functools import partial
from math import inf, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxgen.attacks import balls
from jaxgen.attacks.gradient import Loss, climb
from jaxgen.attacks.inputs import (
    BOX,
    Box,
    LogitsFn,
    Result,
    check_ball,
    check_counts,
    check_functions,
    check_inputs,
    check_logits,
    check_positive,
    fold,
    hit,
    takes_eps,
    where,
)
from jaxgen.attacks.loops import in_loops
from jaxgen.attacks.losses import log_ratio
from jaxgen.errors import ConfigError

AT_ONCE = 64
"""Directions whose slopes are computed in one call of the network."""

Directions = Callable[[Any, Any], tuple[Any, float]]


def finite_differences(key, shape: tuple[int, ...]) -> tuple[Float[Array, "k D"], float]:
    """The unit vectors, and a = 1; key is not used."""
    return jnp.eye(prod(shape), dtype=jnp.float32), 1.0


def random_groups(key, shape: tuple[int, ...], groups: int) -> tuple[Float[Array, "k D"], float]:
    """k = `groups` groups of equal size but for one, each value in one of them."""
    size = prod(shape)
    if not 1 <= groups <= size:
        raise ConfigError("groups", f"1..{size}, at most one for each value", groups)
    group = jax.random.permutation(key, jnp.arange(size) % groups)
    member = (group[None] == jnp.arange(groups)[:, None]).astype(jnp.float32)
    return member / jnp.sqrt(member.sum(axis=1, keepdims=True)), 1.0


def principal_directions(key, shape: tuple[int, ...], directions: Float[Array, "k D"]) -> tuple[Float[Array, "k D"], float]:
    """Orthonormal rows, such as `components_` of scikit-learn's PCA; key is not used."""
    if np.ndim(directions) != 2 or np.shape(directions)[1] != prod(shape):
        raise ConfigError("directions", f"shape [k, {prod(shape)}]", list(np.shape(directions)))
    return jnp.asarray(directions, jnp.float32), 1.0


def nes(key, shape: tuple[int, ...], samples: int = 50) -> tuple[Float[Array, "k D"], float]:
    """k = `samples` Gaussian directions, each used in both senses."""
    check_counts(samples=samples)
    return jax.random.normal(key, (samples, prod(shape))), 1.0 / samples


def spsa(key, shape: tuple[int, ...], samples: int = 50) -> tuple[Float[Array, "k D"], float]:
    """k = `samples` directions of random signs."""
    check_counts(samples=samples)
    return jax.random.rademacher(key, (samples, prod(shape)), jnp.float32), 1.0 / samples


def estimate(
    value: Callable[[Any], Any], x: Float[Array, "B ..."], keys: Key[Array, " B"], directions: Directions = nes, step: float = 0.01
) -> Float[Array, "B ..."]:
    """The estimated gradient of each row of value: [n, ...] -> [n], row by row; 2 k queries a row.

    value must judge every row by itself and takes any number of rows. directions: (key, shape of an image) -> (u [k, D], a); step: h.
    """
    check_positive(step=step)
    check_functions(value=value, directions=directions)

    def of_row(image, key):
        u, a = directions(key, image.shape)

        def slope(u):
            move = step * u.reshape(image.shape)
            return value(jnp.stack([image + move, image - move]))

        ends = jax.lax.map(slope, u, batch_size=min(AT_ONCE, len(u)))
        return jnp.matmul(a * (ends[:, 0] - ends[:, 1]) / (2 * step), u, precision="highest").reshape(image.shape)

    return jax.vmap(of_row)(x, keys)


def estimated(
    logits_fn: LogitsFn,
    x,
    y,
    key,
    eps,
    norm: float = inf,
    *,
    directions: Directions = nes,
    step: float = 0.01,
    budget: int = 2000,
    step_size: Any = None,
    loss: Loss = log_ratio,
    targeted: bool = False,
    box: Box = BOX,
) -> Result:
    """pgd from x with estimated gradients, as many steps as the budget of queries for one image allows; a row stays at its first success.

    The network is asked at images up to `step` |u| outside of the box. directions: as in `estimate`. ConfigError for a budget that does not
    reach for one step.
    """
    x, y, keys = check_inputs(logits_fn, x, y, key, box)
    check_ball(eps, norm, x, box)
    check_counts(budget=budget)
    check_functions(directions=directions, loss=loss)
    sign = -1.0 if targeted else 1.0
    cost = 2 * jax.eval_shape(lambda key: directions(key, x.shape[1:])[0], keys[0]).shape[0] + 1
    steps = (budget - 1) // cost
    if steps < 1:
        raise ConfigError("budget", f"{cost + 1} or more queries, for one step", budget)
    logits_fn = in_loops(logits_fn)

    def evaluate(point, keys):
        logits = logits_fn(point)

        def of_one(image, label, key):
            def value(images):
                return sign * loss(logits_fn(images), jnp.broadcast_to(label, images.shape[:1]))

            return estimate(value, image[None], key[None], directions, step)[0]

        return sign * loss(logits, y), hit(logits, y, targeted), jax.vmap(of_one)(point, y, keys)

    found = climb(evaluate, x, keys, eps, norm, steps, step_size, keep="first", box=box, cost=cost)
    return found._replace(queries=found.queries - (cost - 1))  # at its last image a row needs no gradient


def transfer(substitute: LogitsFn, attack: Callable[..., Result], logits_fn: LogitsFn, x, y, key, eps) -> Result:
    """What the attack finds for the substitute, judged by logits_fn: one query. attack: (logits_fn, x, y, key, eps) -> Result."""
    x, y, keys = check_inputs(logits_fn, x, y, key)
    if not takes_eps(attack):
        raise ConfigError("attack", "a function (logits_fn, x, y, key, eps) -> Result", "one without eps")
    classes, others = jax.eval_shape(logits_fn, x).shape[1], check_logits(substitute, x)
    if others != classes:
        raise ConfigError("substitute", f"a function with the {classes} classes of logits_fn", f"{others} classes")
    found = attack(substitute, x, y, keys, eps)
    logits = logits_fn(found.x_adv)
    return found._replace(success=hit(logits, y, False), loss=log_ratio(logits, y), queries=jnp.ones_like(found.queries))


def boundary(logits_fn: LogitsFn, x, y, key, *, steps: int = 1000, tries: int = 50, box: Box = BOX) -> Result:
    """The boundary attack for the norm 2. It begins at the nearest of `tries` images of uniform noise that are misclassified.

    Each step draws a direction orthogonal to x - point and goes along it by a share `side` of the distance, and then towards x by a share
    `near`; it stays where the image is then rightly classified. `side` grows after a success along the boundary and shrinks after a
    failure, `near` likewise for the step towards x. queries: tries + 13 + 2 steps. A row without a start has no success and is x.
    """
    x, y, keys = check_inputs(logits_fn, x, y, key, box)
    check_counts(steps=steps, tries=tries)
    logits_fn = in_loops(logits_fn)
    low, high = box
    none = Result(x, hit(logits_fn(x), y, False), jnp.zeros(len(x)), jnp.zeros(len(x)), jnp.ones(len(x), jnp.int32))

    def noise(number):
        draw = partial(jax.random.uniform, shape=x.shape[1:], minval=low, maxval=high)
        return jax.vmap(lambda key: draw(key))(fold(keys, number))

    def begin(carry, number):
        point, least = carry
        drawn = noise(number)
        size = jnp.where(hit(logits_fn(drawn), y, False), balls.norms(drawn - x, 2), inf)
        return (where(size < least, drawn, point), jnp.minimum(size, least)), None

    (point, least), _ = jax.lax.scan(begin, (x, jnp.where(none.success, 0, inf)), jnp.arange(tries))
    there = jnp.isfinite(least)

    def nearer(_, ends):
        point, inner = ends  # point is misclassified, inner is not
        middle = (point + inner) / 2
        wrong = hit(logits_fn(middle), y, False)
        return where(wrong, middle, point), where(wrong, inner, middle)

    point = where(there & ~none.success, jax.lax.fori_loop(0, 12, nearer, (point, x))[0], x)

    def step(carry, number):
        point, side, near = carry
        away = x - point
        distance = jnp.maximum(balls.norms(away, 2), 1e-9)
        unit = away / balls.each(distance, away)
        drawn = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(fold(keys, tries + number))
        drawn = drawn - balls.each((drawn * unit).reshape(len(x), -1).sum(axis=1), x) * unit
        drawn = drawn * balls.each(side * distance / jnp.maximum(balls.norms(drawn, 2), 1e-9), x)
        around = x - (away - drawn) / balls.each(jnp.sqrt(1 + jnp.square(side)), x)  # on the sphere around x
        around = jnp.clip(around, low, high)
        along = hit(logits_fn(around), y, False)
        closer = jnp.clip(around + balls.each(near, x) * (x - around), low, high)
        both = hit(logits_fn(closer), y, False) & along & (balls.norms(closer - x, 2) < distance)
        side = jnp.clip(jnp.where(along, side * 1.1, side / 1.04), 1e-4, 1.0)  # steady where 3 of 10 succeed
        near = jnp.clip(jnp.where(both, near * 1.1, jnp.where(along, near / 1.03, near)), 1e-6, 0.5)  # 1 of 4 of these
        return (where(both, closer, point), side, near), None

    ones = jnp.ones(len(x))
    (point, _, _), _ = jax.lax.scan(step, (point, 0.1 * ones, 0.05 * ones), jnp.arange(steps))
    x_adv = where(there & ~none.success, point, x)
    size = balls.norms(x_adv - x, 2)
    queries = jnp.where(none.success, 1, tries + 12 + 2 * steps + 1).astype(jnp.int32)
    return Result(x_adv, there, size, -size, queries)
