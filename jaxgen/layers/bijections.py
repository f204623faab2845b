"""Invertible maps of vectors, with the logarithm of the determinant of their Jacobian: the pieces of flows.

A map is a pair of functions, `f(x, *parameters) -> (y, log |det dy/dx|)` and `f_inverse(y, *parameters) -> x`. `planar` and `radial` take
all dimensions together, their log-determinant is [B]; `affine` and `spline` take every number alone, theirs has the shape of x. With
parameters that are all zero each is the identity (`planar`: with u = 0).

    planar    y = x + u' tanh(w.x + b),     u' = u + (s - 1 - w.u) w / |w|^2,   s = softplus(w.u + log(e - 1)) > 0
    radial    y = x + beta (x - c) / (alpha + r),   r = |x - c|,   alpha = softplus(a) > 0,   beta = alpha (softplus(b + log(e - 1)) - 1)
    affine    y = x exp(l) + t,     l = limit tanh(log_scale / limit)
    spline    the monotone rational-quadratic spline through K + 1 points in [-reach, reach]^2, the identity outside

u' is u with w.u' = s - 1 > -1, and beta > -alpha: then, and only then, the first two are invertible (Rezende & Mohamed 2015, "Variational
Inference with Normalizing Flows", appendix A; their softplus has no offset, so that u = 0 is not the identity there).

Axes: B batch, D dimensions, K bins.
"""

from math import e, log

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

OFFSET = log(e - 1)
"""softplus(OFFSET) = 1."""
LIMIT = 5.0
"""Of the logarithm of a scale: e^5 = 148 times."""
LEAST = 1e-3
"""The smallest width and height of a bin as a share of the whole, and the smallest slope at a point of a spline."""
HALVINGS = 50
"""Halvings of an interval in the inverse of `planar`; float32 has 24 bits."""


def _planar(w: Float[Array, "B D"], u: Float[Array, "B D"]) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
    """u' and s."""
    product = (w * u).sum(-1)
    s = jax.nn.softplus(product + OFFSET)
    return u + ((s - 1 - product) / jnp.maximum((w**2).sum(-1), 1e-12))[:, None] * w, s


def planar(
    x: Float[Array, "B D"], w: Float[Array, "B D"], u: Float[Array, "B D"], b: Float[Array, " B"]
) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
    """y and log(tanh^2 + (1 - tanh^2) s), which is log |1 + (1 - tanh^2) w.u'| without the difference of two numbers near 1."""
    u, s = _planar(w, u)
    t = jnp.tanh((w * x).sum(-1) + b)
    return x + u * t[:, None], jnp.log(t**2 + (1 - t**2) * s)


def planar_inverse(y: Float[Array, "B D"], w: Float[Array, "B D"], u: Float[Array, "B D"], b: Float[Array, " B"]) -> Float[Array, "B D"]:
    """x = y - u' tanh(a) with a = w.x + b, the root of a + (s - 1) tanh(a) = w.y + b, by halving an interval."""
    u, s = _planar(w, u)
    target = (w * y).sum(-1) + b

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        above = middle + (s - 1) * jnp.tanh(middle) > target
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    reach = jnp.abs(s - 1) + 1e-6
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (target - reach, target + reach))
    return y - u * jnp.tanh((low + high) / 2)[:, None]


def _radial(a: Float[Array, " B"], b: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """alpha and beta."""
    alpha = jax.nn.softplus(a)
    return alpha, alpha * (jax.nn.softplus(b + OFFSET) - 1)


def _distance(x: Float[Array, "B D"]) -> Float[Array, " B"]:
    return jnp.sqrt((x**2).sum(-1) + 1e-12)  # the root of 0 has no gradient


def radial(
    x: Float[Array, "B D"], c: Float[Array, "B D"], a: Float[Array, " B"], b: Float[Array, " B"]
) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
    """y and (D - 1) log(1 + beta h) + log(1 + beta alpha h^2), h = 1 / (alpha + r)."""
    (alpha, beta), from_centre = _radial(a, b), x - c
    h = 1 / (alpha + _distance(from_centre))
    log_det = (x.shape[1] - 1) * jnp.log1p(beta * h) + jnp.log1p(beta * alpha * h**2)
    return x + (beta * h)[:, None] * from_centre, log_det


def radial_inverse(y: Float[Array, "B D"], c: Float[Array, "B D"], a: Float[Array, " B"], b: Float[Array, " B"]) -> Float[Array, "B D"]:
    """x = c + (y - c) / (1 + beta / (alpha + r)), r the positive root of r^2 + (alpha + beta - r') r - alpha r' = 0, r' = |y - c|."""
    (alpha, beta), from_centre = _radial(a, b), y - c
    far = _distance(from_centre)
    p = far - alpha - beta
    root = jnp.sqrt(p**2 + 4 * alpha * far)
    r = jnp.where(p > 0, (p + root) / 2, 2 * alpha * far / (root - jnp.minimum(p, 0)))  # neither is a difference of equal numbers
    return c + from_centre / (1 + beta / (alpha + r))[:, None]


def limited(log_scale: Float[Array, "*shape"], limit: float = LIMIT) -> Float[Array, "*shape"]:
    """l: the same near 0, and never beyond +- limit, so that no scale overflows."""
    return limit * jnp.tanh(log_scale / limit)


def affine(x: Float[Array, "*shape"], parameters: Float[Array, "*shape 2"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """x exp(l) + t and l; parameters: (t, log_scale)."""
    log_scale = limited(parameters[..., 1])
    return x * jnp.exp(log_scale) + parameters[..., 0], log_scale


def affine_inverse(y: Float[Array, "*shape"], parameters: Float[Array, "*shape 2"]) -> Float[Array, "*shape"]:
    """(y - t) exp(-l)."""
    return (y - parameters[..., 0]) * jnp.exp(-limited(parameters[..., 1]))


def _points(parameters: Float[Array, "*shape P"], reach: float) -> tuple[Float[Array, "*shape E"], ...]:
    """The K + 1 points (x, y) of a spline and, before `_slope`, its slopes there, which are 1 at both ends; P = 3K - 1."""
    bins = (parameters.shape[-1] + 1) // 3

    def places(logits):
        shares = LEAST + (1 - LEAST * bins) * jax.nn.softmax(logits)
        inner = reach * (2 * jnp.cumsum(shares[..., :-1], axis=-1) - 1)
        end = jnp.full_like(inner[..., :1], reach)
        return jnp.concatenate([-end, inner, end], axis=-1)

    end = jnp.zeros_like(parameters[..., :1])
    slopes = jnp.concatenate([end, parameters[..., 2 * bins :], end], axis=-1)
    return places(parameters[..., :bins]), places(parameters[..., bins : 2 * bins]), slopes


def _slope(raw: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Above LEAST; 1 for 0. Of the two ends of a bin alone, not of all points."""
    return LEAST + jax.nn.softplus(raw + log(e ** (1 - LEAST) - 1))


def _bin(x: Float[Array, "*shape"], ends: Float[Array, "*shape E"], *of_points: Float[Array, "*shape E"]) -> list:
    """(left, right) values of each array in the bin that holds x: sums with one term, since the gradient of an index is slow on a CPU."""
    above = x[..., None] >= ends[..., 1:-1]
    true = jnp.ones_like(above[..., :1])
    here = jnp.concatenate([true, above], axis=-1) & jnp.concatenate([~above, true], axis=-1)
    take = lambda array: jnp.where(here, array, 0).sum(-1)  # noqa: E731
    return [(take(array[..., :-1]), take(array[..., 1:])) for array in of_points]


def spline(
    x: Float[Array, "*shape"], parameters: Float[Array, "*shape P"], reach: float
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """y and log dy/dx. parameters: logits of K widths and K heights, and K - 1 slopes before softplus; P = 3K - 1.

    Durkan, Bekasov, Murray, Papamakarios 2019, "Neural Spline Flows", equations 4 and 5.
    """
    xs, ys, slopes = _points(parameters, reach)
    inside = jnp.abs(x) < reach
    (x0, x1), (y0, y1), (d0, d1) = _bin(x, xs, xs, ys, slopes)
    d0, d1, s = _slope(d0), _slope(d1), (y1 - y0) / (x1 - x0)
    t = jnp.where(inside, (x - x0) / (x1 - x0), 0.5)  # outside nothing below may overflow, not even for a gradient that is not used
    middle = t * (1 - t)
    below = s + (d1 + d0 - 2 * s) * middle
    y = y0 + (y1 - y0) * (s * t**2 + d0 * middle) / below
    slope = s**2 * (d1 * t**2 + 2 * s * middle + d0 * (1 - t) ** 2) / below**2
    return jnp.where(inside, y, x), jnp.where(inside, jnp.log(slope), 0)


def spline_inverse(y: Float[Array, "*shape"], parameters: Float[Array, "*shape P"], reach: float) -> Float[Array, "*shape"]:
    """x from the quadratic equation of its bin (section 3.1 there), in the form of the root that is no difference of equal numbers."""
    xs, ys, slopes = _points(parameters, reach)
    (x0, x1), (y0, y1), (d0, d1) = _bin(y, ys, xs, ys, slopes)
    d0, d1, s = _slope(d0), _slope(d1), (y1 - y0) / (x1 - x0)
    rise, bend = jnp.clip(y, y0, y1) - y0, d1 + d0 - 2 * s
    a, b, c = (y1 - y0) * (s - d0) + rise * bend, (y1 - y0) * d0 - rise * bend, -s * rise
    t = 2 * c / (-b - jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0)))
    return jnp.where(jnp.abs(y) < reach, x0 + jnp.clip(t, 0, 1) * (x1 - x0), y)
