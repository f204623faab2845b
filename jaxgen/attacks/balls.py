"""Balls of perturbations {d: |d|_p <= eps}, p = 1, 2 or infinity: norms, projections, steepest directions and uniform draws, row by row.

An image x + d must also stay in the box [low, high]. The nearest point of both sets to a perturbation d has one form for each norm, with a
number s or t that is found by bisection and is the same for all values of a row (clip: to low - x .. high - x):

    infinity    clip(clip(d, -eps, eps))
    2           clip(s d),                              the largest s <= 1 with norm at most eps
    1           clip(sign(d) max(|d| - t, 0)),          the smallest t >= 0 with norm at most eps

To project onto the ball and then onto the box stays in both too, but for p = 1 it loses most of the allowed perturbation (Croce & Hein
2021, "Mind the box"). The direction of norm 1 in which a linear function with gradient g grows most is sign(g) for infinity
and g / |g|_2 for 2. For 1 it is one single value; as there, several are changed at once: those where |g| is largest among the values that
the box lets move.

Axes: B rows, each an image of any shape.
"""

from math import ceil, inf, prod

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

NORMS = (1, 2, inf)
BOX = (0.0, 1.0)
"""The usual (low, high) of images."""
HALVINGS = 30
SHARE = 0.05
"""Of the values of an image, how many a step of norm 1 changes."""

Images = Float[Array, "B ..."]


def each(rows: Float[Array, " B"], like: Images) -> Images:
    """One number a row, with axes of size 1 for all others, so that it multiplies whole images."""
    return rows.reshape(-1, *(1,) * (like.ndim - 1))


def norms(d: Images, norm: float) -> Float[Array, " B"]:
    """|d|_p of each row."""
    rows = jnp.abs(d.reshape(d.shape[0], -1))
    if norm == 1:
        return rows.sum(axis=1)
    if norm == 2:
        return jnp.sqrt(jnp.square(rows).sum(axis=1))
    return rows.max(axis=1)


def project(x_adv: Images, x: Images, eps: float | Float[Array, ""], norm: float, box: tuple[float, float] = BOX) -> Images:
    """The image nearest to x_adv, in the Euclidean distance, among those within eps of x and in the box. x itself must be in the box."""
    low, high = box
    d, size = x_adv - x, jnp.asarray(eps, x.dtype)

    def cut(d):
        return jnp.clip(d, low - x, high - x)

    if norm == inf:
        return jnp.clip(x + jnp.clip(d, -size, size), low, high)
    largest = norms(d, inf)
    if norm == 2:

        def near(s):
            return cut(each(s, d) * d)

        inside, outside = jnp.minimum(1, size / jnp.maximum(norms(d, 2), jnp.finfo(d.dtype).tiny)), jnp.ones_like(largest)
    else:

        def near(t):
            return cut(jnp.sign(d) * jnp.maximum(jnp.abs(d) - each(t, d), 0))

        inside, outside = largest, jnp.zeros_like(largest)
    whole = norms(near(outside), norm) <= size

    def halve(_, ends):
        inside, outside = ends
        middle = (inside + outside) / 2
        fits = norms(near(middle), norm) <= size
        return jnp.where(fits, middle, inside), jnp.where(fits, outside, middle)

    inside, _ = jax.lax.fori_loop(0, HALVINGS, halve, (inside, outside))
    return jnp.clip(x + near(jnp.where(whole, outside, inside)), low, high)


def steepest(g: Images, norm: float, x: Images, box: tuple[float, float] = BOX) -> Images:
    """The direction of norm 1 for the gradient g at the image x; 0 where g is. Any positive multiple of g gives the same."""
    if norm == inf:
        return jnp.sign(g)
    g = g / each(jnp.maximum(norms(g, inf), jnp.finfo(g.dtype).tiny), g)  # squares of tiny gradients would be 0
    if norm == 2:
        return g / each(jnp.maximum(norms(g, 2), 1), g)  # at least 1, unless g is 0
    free = jnp.where((x <= box[0]) & (g < 0) | (x >= box[1]) & (g > 0), 0, g).reshape(g.shape[0], -1)
    few = ceil(SHARE * free.shape[1])
    least = jax.lax.top_k(jnp.abs(free), few)[0][:, -1:]
    chosen = jnp.where(jnp.abs(free) >= least, jnp.sign(free), 0)
    return (chosen / jnp.maximum(jnp.abs(chosen).sum(axis=1, keepdims=True), 1)).reshape(g.shape)


def uniform(keys: Key[Array, " B"], like: Images, eps: float | Float[Array, ""], norm: float) -> Images:
    """Perturbations drawn uniformly from the ball, one with each key."""
    shape = like.shape[1:]

    def draw(key):
        if norm == inf:
            return jax.random.uniform(key, shape, like.dtype, -1, 1)
        of_direction, of_radius = jax.random.split(key)
        direction = (jax.random.laplace if norm == 1 else jax.random.normal)(of_direction, shape, like.dtype)
        radius = jax.random.uniform(of_radius, dtype=like.dtype) ** (1 / prod(shape))
        return direction * (radius / norms(direction[None], norm)[0])

    return jax.vmap(draw)(keys) * jnp.asarray(eps, like.dtype)
