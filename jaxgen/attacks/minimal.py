"""Attacks that look for a small Euclidean change |d|_2 with which an image is misclassified, mostly the smallest; x + d stays in the box.

    penalised   maximise m(x + d) - weight |d|^2 by Adam: how much change a weight buys, not the smallest one that succeeds
    lbfgs       minimise c |d|^2 + log(1 + exp m_t(x + d)) by L-BFGS for a target t, with the largest c that still succeeds (bisection in
                log c); untargeted: over all t, row by row the smallest                                       Szegedy et al. 2014
    deepfool    steps to the nearest decision boundary of the function made linear at the present image,
                d += |f_j| / |w_j|^2 w_j,  f_j = z_j - z_y,  w_j = grad f_j,  j = argmin |f_j| / |w_j|         Moosavi-Dezfooli et al. 2016
    cw_l2       minimise |d|^2 + c max(max_{j != t} z_j - z_t + kappa, 0) by Adam in w, x + d = (tanh w + 1) / 2 on the box, for several c:
                less after a success, more after a failure; t is the target; untargeted: over all t, row by row the smallest, their
                "best case"                                                                                   Carlini & Wagner 2017

What the last three found is moved back towards x as far as it stays misclassified, by bisection on the segment. For a linear function the
distance is known, min_j (z_y - z_j) / |w_y - w_j|_2, and they come within 1 % of it; lbfgs does so where the softmax is steep.

m is the log-ratio, m_t that of the target (losses.py). Each is `attack(logits_fn, x, y, key, ...) -> Result`, in which the loss of
the last three is -|d|_2: there a row that is misclassified from the start has d = 0, and so has one that is not fooled.
"""

from collections.abc import Callable
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxgen.attacks.balls import each, norms
from jaxgen.attacks.inputs import (
    BOX,
    Box,
    LogitsFn,
    Result,
    check_counts,
    check_inputs,
    check_not_negative,
    check_positive,
    descend,
    hit,
    where,
)
from jaxgen.attacks.loops import in_loops
from jaxgen.attacks.losses import log_ratio, margin, of_class

SEGMENT = 12
"""Halvings of the segment from x to x_adv at the end."""


def penalised(
    logits_fn: LogitsFn, x, y, key, *, weight: Any = 1.0, steps: int = 200, rate: float = 0.01, targeted: bool = False, box: Box = BOX
) -> Result:
    """Adam with this rate, falling to 0, on the log-ratio minus weight |d|^2, each step clipped to the box. queries: steps + 1.

    x_adv is where it ends, loss the log-ratio there, of a target its negative. At an end inside of the box 2 weight d = grad m(x + d).
    """
    x, y, _ = check_inputs(logits_fn, x, y, key, box)
    check_counts(steps=steps)
    check_positive(weight=weight, rate=rate)
    logits_fn = in_loops(logits_fn)
    sign = 1.0 if targeted else -1.0

    def energy(point):
        logits = logits_fn(point)
        return weight * _squares(point - x) + sign * log_ratio(logits, y), logits

    point, _ = _descend(energy, x, None, lambda best, point, logits: best, steps, rate, box)
    logits = logits_fn(point)
    return _at(point, logits, x, y, targeted, steps + 1)._replace(loss=-sign * log_ratio(logits, y))


def cw_l2(
    logits_fn: LogitsFn,
    x,
    y,
    key,
    *,
    steps: int = 150,
    searches: int = 6,
    constant: float = 1.0,
    confidence: float = 0.0,
    rate: float = 0.03,
    targeted: bool = False,
    box: Box = BOX,
) -> Result:
    """Carlini & Wagner's attack. searches: values of c, the first `constant`; confidence: kappa, in logits, 0 or more.

    queries: searches (steps + 1) for each target, and 13 for the start and the segment (1 with a confidence).
    """
    x, y, _ = check_inputs(logits_fn, x, y, key, box)
    check_counts(steps=steps, searches=searches)
    check_positive(constant=constant, rate=rate)
    check_not_negative(confidence=confidence)
    logits_fn = in_loops(logits_fn)
    low, high = box
    classes = jax.eval_shape(logits_fn, x).shape[1]
    w0 = jnp.arctanh(jnp.clip(2 * (x - low) / (high - low) - 1, -0.98, 0.98))  # at -1 and 1 there is no slope in w to start with

    def image(w):
        return low + (high - low) * (jnp.tanh(w) + 1) / 2

    def towards(best, offset):
        target = y if targeted else (y + offset) % classes

        def search(carry, _):
            best, c, least, most = carry

            def energy(w):
                logits = logits_fn(image(w))
                return _squares(image(w) - x) + c * jax.nn.relu(margin(logits, target) + confidence), logits

            def see(carry, w, logits):
                best, reached = carry
                now = _at(image(w), logits, x, y, targeted, 1)
                sure = margin(logits, target) < -confidence
                return _smaller(now._replace(success=now.success & sure), best), reached | sure

            _, (best, reached) = _descend(energy, w0, (best, jnp.zeros_like(best.success)), see, steps, rate, (-inf, inf))
            most = jnp.where(reached, jnp.minimum(most, c), most)
            least = jnp.where(reached, least, jnp.maximum(least, c))
            c = jnp.where(jnp.isinf(most), 10 * c, jnp.where(least == 0, c / 10, jnp.sqrt(least * most)))
            return (best, c, least, most), None

        c = jnp.full(x.shape[:1], constant, x.dtype)
        start = (best, c, jnp.zeros_like(c), jnp.full_like(c, inf))
        return jax.lax.scan(search, start, None, length=searches)[0][0], None

    best, _ = jax.lax.scan(towards, _start(logits_fn, x, y, targeted), jnp.arange(1, 2 if targeted else classes))
    if confidence:  # nearer to the boundary it would be less sure; a row without success has d = 0
        return best._replace(norm=jnp.where(best.success, best.norm, 0))
    return _closer(logits_fn, x, y, best, targeted)


def deepfool(logits_fn: LogitsFn, x, y, key, *, steps: int = 50, overshoot: float = 0.02, box: Box = BOX) -> Result:
    """DeepFool; overshoot: by which share d goes beyond the boundary, so that it is crossed. queries: one for each class in
    each step, and 14."""
    x, y, _ = check_inputs(logits_fn, x, y, key, box)
    check_counts(steps=steps)
    check_not_negative(overshoot=overshoot)
    logits_fn = in_loops(logits_fn)
    classes, tiny = jax.eval_shape(logits_fn, x).shape[1], jnp.finfo(x.dtype).tiny

    def step(carry, _):
        d, best = carry
        point = jnp.clip(x + (1 + overshoot) * d, *box)
        logits, back = jax.vjp(logits_fn, point)
        rows = [back(jnp.zeros_like(logits).at[:, j].set(1))[0] for j in range(classes)]
        of_own = sum(where(y == j, rows[j], jnp.zeros_like(x)) for j in range(classes))
        w = jnp.stack(rows) - of_own[None]
        f = (logits - of_class(logits, y)[:, None]).T
        w = jnp.where(((point <= box[0])[None] & (w < 0)) | ((point >= box[1])[None] & (w > 0)), 0, w)  # not out of the box
        length = jnp.sqrt(jnp.square(w.reshape(classes, x.shape[0], -1)).sum(axis=2))
        ratio = jnp.where(jnp.arange(classes)[:, None] == y[None], inf, jnp.abs(f) / jnp.maximum(length, tiny))
        nearest = ratio.argmin(axis=0)
        own = (nearest, jnp.arange(x.shape[0]))
        move = each(jnp.abs(f[own]) / jnp.maximum(jnp.square(length[own]), tiny), x) * w[own]
        now = _at(point, logits, x, y, False, classes)
        now = now._replace(queries=jnp.where(best.success, 0, now.queries))
        return (where(hit(logits, y, False), d, d + move), _smaller(now, best)), None

    (d, best), _ = jax.lax.scan(step, (jnp.zeros_like(x), _start(logits_fn, x, y, False)), None, length=steps)
    point = jnp.clip(x + (1 + overshoot) * d, *box)
    return _closer(logits_fn, x, y, _smaller(_at(point, logits_fn(point), x, y, False, 1), best), False)


def lbfgs(logits_fn: LogitsFn, x, y, key, *, steps: int = 40, searches: int = 10, targeted: bool = False, box: Box = BOX) -> Result:
    """L-BFGS in w with x + d = low + (high - low) sin^2 w, which is in the box; searches: bisections of log c in 1e-3 .. 1e3.

    Untargeted, every other class is a target in turn. queries: searches (steps + 1) for each target, and 13; those of line
    searches are not counted.
    """
    x, y, _ = check_inputs(logits_fn, x, y, key, box)
    check_counts(steps=steps, searches=searches)
    logits_fn = in_loops(logits_fn)
    low, high = box
    classes = jax.eval_shape(logits_fn, x).shape[1]
    best = _start(logits_fn, x, y, targeted)

    def image(w):
        return low + (high - low) * jnp.square(jnp.sin(w))

    w0 = jnp.arcsin(jnp.sqrt(jnp.clip((x - low) / (high - low), 0.01, 0.99)))  # at 0 and 1 there is no slope in w to start with
    method = optax.lbfgs()

    def minimum(x, w, target, c):
        """The w of the smallest energy of one image."""

        def energy(w):
            point = image(w)[None]
            return c * jnp.square(point - x[None]).sum() + jax.nn.softplus(log_ratio(logits_fn(point), target[None]))[0]

        def step(carry, _):
            w, state = carry
            value, g = optax.value_and_grad_from_state(energy)(w, state=state)
            update, state = method.update(g, state, w, value=value, grad=g, value_fn=energy)
            return (optax.apply_updates(w, update), state), None

        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            (w, _), _ = jax.lax.scan(step, (w, method.init(w)), None, length=steps)
        return w

    def towards(best, offset):
        target = y if targeted else (y + offset) % classes

        def search(carry, _):
            best, least, most = carry
            middle = (least + most) / 2
            point = image(jax.vmap(minimum)(x, w0, target, 10.0**middle))
            logits = logits_fn(point)
            now = _at(point, logits, x, y, targeted, steps + 1)
            reached = hit(logits, target, True)
            return (_smaller(now, best), jnp.where(reached, middle, least), jnp.where(reached, most, middle)), None

        ends = (best, jnp.full(x.shape[:1], -3.0, x.dtype), jnp.full(x.shape[:1], 3.0, x.dtype))
        return jax.lax.scan(search, ends, None, length=searches)[0][0], None

    best, _ = jax.lax.scan(towards, best, jnp.arange(1, 2 if targeted else classes))
    return _closer(logits_fn, x, y, best, targeted)


# --- What they share ---------------------------------------------------------------------------------------------------------------------


def _squares(d) -> Float[Array, " B"]:
    """|d|^2 of each row; the square of `norms` has no gradient at d = 0."""
    return jnp.square(d.reshape(d.shape[0], -1)).sum(axis=1)


def _descend(energy: Callable, w, seen, see: Callable, steps: int, rate: float, bounds: tuple[float, float]):
    """(w, seen) after Adam, with a rate that falls to 0, on energy(w) = (values [B], logits), w kept in the bounds.

    see: (seen, w, logits) -> seen, called at every w that is computed, the last one too.
    """
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def slope(w):
        def total(w):
            values, logits = energy(w)
            return values.sum(), logits

        return jax.grad(total, has_aux=True)(w)

    def step(carry, _):
        w, state, seen = carry
        g, logits = slope(w)
        seen = see(seen, w, logits)
        w, state = descend(adam, g, state, w)
        return (jnp.clip(w, *bounds), state, seen), None

    (w, _, seen), _ = jax.lax.scan(step, (w, adam.init(w), seen), None, length=steps)
    return w, see(seen, w, energy(w)[1])


def _at(point, logits, x, y, targeted: bool, queries: int) -> Result:
    size = norms(point - x, 2)
    return Result(point, hit(logits, y, targeted), size, -size, jnp.full(size.shape, queries, jnp.int32))


def _start(logits_fn: LogitsFn, x, y, targeted: bool) -> Result:
    """x itself: a success of norm 0, or the failure that every success beats."""
    start = _at(x, logits_fn(x), x, y, targeted, 1)
    return start._replace(norm=jnp.where(start.success, 0, inf), loss=jnp.zeros_like(start.loss))


def _smaller(new: Result, old: Result) -> Result:
    """Row by row the success of the smaller norm."""
    take = new.success & (~old.success | (new.norm < old.norm))
    chosen = Result(*(where(take, a, b) for a, b in zip(new, old, strict=True)))
    return chosen._replace(queries=new.queries + old.queries)


def _closer(logits_fn: LogitsFn, x: Float[Array, "B ..."], y, found: Result, targeted: bool) -> Result:
    """The success nearest to x on the segment from x to x_adv, as far as halving finds it; a row without success is x."""

    def halve(_, ends):
        inside, outside = ends
        middle = (inside + outside) / 2
        wanted = hit(logits_fn(x + each(middle, x) * (found.x_adv - x)), y, targeted)
        return jnp.where(wanted, middle, inside), jnp.where(wanted, outside, middle)

    one = jnp.ones_like(found.norm)
    share, _ = jax.lax.fori_loop(0, SEGMENT, halve, (one, jnp.zeros_like(one)))
    x_adv = where(found.success, where(share < 1, x + each(share, x) * (found.x_adv - x), found.x_adv), x)
    size = norms(x_adv - x, 2)
    return found._replace(x_adv=x_adv, norm=size, loss=-size, queries=found.queries + SEGMENT)
