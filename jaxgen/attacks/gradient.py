"""Attacks that follow the gradient of the network (white box): images x_adv within eps of x and in the box that are misclassified.

With loss J (losses.py; the log-ratio), its gradient g at the present image, and u(g) the direction of norm 1 in which a linear function
with gradient g grows most (balls.py: sign(g) for the norm infinity, g / |g|_2 for 2),

    fgsm            x + eps sign(g)                                              Goodfellow et al. 2015
    fast_gradient   x + eps u(g)                                                 for the norms 1, 2, infinity
    iterative_sign  x_{t+1} = P(x_t + a sign(g_t)), each row until it succeeds   Kurakin et al. 2017, "the basic iterative method"
    pgd             x_{t+1} = P(x_t + a u(g_t)), from a random x_0               Madry et al. 2018
    least_likely    iterative_sign towards the class that was least likely at x  Kurakin et al. 2017
    multi_targeted  pgd on z_t - z_y for every other class t                     Gowal et al. 2019

P is the projection onto the ball and the box. `targeted=True`: y is the class that is wanted, and J falls. For a network that is linear,
`multi_targeted` without random start is exact: it fools an image exactly where some image of the ball is misclassified, if the ball is in
the box.

Every function is `attack(logits_fn, x, y, key, eps, ...) -> Result`, pure: `jax.jit`, `jax.vmap` and `jax.lax.scan` take it, and the last
two also over eps. Rows do not depend on each other. key: one, or one for each row; what draws nothing does not use it.
"""

from collections.abc import Callable
from math import inf
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from jaxgen.attacks import balls
from jaxgen.attacks.inputs import (
    BOX,
    Box,
    LogitsFn,
    Result,
    better,
    check_ball,
    check_counts,
    check_functions,
    check_in_box,
    check_inputs,
    descend,
    fold,
    hit,
    is_count,
    where,
)
from jaxgen.attacks.loops import in_loops
from jaxgen.attacks.losses import log_ratio, of_class
from jaxgen.errors import ConfigError, shown

Loss = Callable[[Any, Any], Any]
Keep = Literal["best", "last", "first"]
Evaluate = Callable[[Any, Any], tuple[Any, Any, Any]]


def fgsm(logits_fn: LogitsFn, x, y, key, eps, *, loss: Loss = log_ratio, targeted: bool = False, box: Box = BOX) -> Result:
    """The fast gradient sign method: one step of size eps in the norm infinity."""
    return fast_gradient(logits_fn, x, y, key, eps, inf, loss=loss, targeted=targeted, box=box)


def fast_gradient(
    logits_fn: LogitsFn, x, y, key, eps, norm: float = 2, *, loss: Loss = log_ratio, targeted: bool = False, box: Box = BOX
) -> Result:
    """One step of size eps in the steepest direction of a norm."""
    options = {"steps": 1, "step_size": eps, "random_start": False, "keep": "last"}
    return pgd(logits_fn, x, y, key, eps, norm, **options, loss=loss, targeted=targeted, box=box)


def iterative_sign(
    logits_fn: LogitsFn,
    x,
    y,
    key,
    eps,
    *,
    steps: int = 20,
    stop: bool = True,
    loss: Loss = log_ratio,
    targeted: bool = False,
    box: Box = BOX,
) -> Result:
    """Steps of 1.25 eps / steps from x itself, as Kurakin et al. take 1.25 eps / a steps of a. stop: a row that succeeds stays."""
    check_counts(steps=steps)
    check_ball(eps, inf, check_in_box(x, box), box)  # before eps is divided
    keep = "first" if stop else "last"
    options = {"steps": steps, "step_size": 1.25 * eps / steps, "random_start": False, "keep": keep}
    return pgd(logits_fn, x, y, key, eps, inf, **options, loss=loss, targeted=targeted, box=box)


def least_likely(logits_fn: LogitsFn, x, y, key, eps, *, steps: int = 20, loss: Loss = log_ratio, box: Box = BOX) -> Result:
    """`iterative_sign` towards argmin_j z_j(x), chosen once; success is that y is not predicted, whatever else is.

    loss: that of the target, which the attack made small, with a minus.
    """
    x, y, keys = check_inputs(logits_fn, x, y, key, box)
    target = logits_fn(x).argmin(axis=1).astype(y.dtype)
    found = iterative_sign(logits_fn, x, target, keys, eps, steps=steps, stop=False, loss=loss, targeted=True, box=box)
    success = hit(logits_fn(found.x_adv), y, False)
    return found._replace(success=success, queries=found.queries + 1)


def pgd(
    logits_fn: LogitsFn,
    x: Float[Any, "B ..."],
    y: Any,
    key: Key[Array, "..."],
    eps: Any,
    norm: float = inf,
    *,
    steps: int = 40,
    step_size: Any = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: Loss = log_ratio,
    targeted: bool = False,
    optimizer: optax.GradientTransformation | None = None,
    keep: Keep = "best",
    box: Box = BOX,
) -> Result:
    """Projected gradient ascent, `restarts` times, each from another point of the ball; row by row the best result counts.

    step_size: None for 2.5 eps / steps. A random start needs 2 eps / steps or more, else the other side of the ball is out of reach.
    optimizer: of optax, whose updates are taken instead of the steps, for example optax.adam(0.01).
    keep: of the images on the way the "best" one (success first, then the loss), the "last", or the "first" success, where the row stays.
    queries: restarts (steps + 1), fewer for rows that stay. ConfigError for an argument out of range.
    """
    x, y, keys = check_inputs(logits_fn, x, y, key, box)
    check_ball(eps, norm, x, box)
    evaluate = white_box(logits_fn, y, loss, targeted)
    return climb(evaluate, x, keys, eps, norm, steps, step_size, restarts, random_start, optimizer, keep, box)


def multi_targeted(
    logits_fn: LogitsFn, x, y, key, eps, norm: float = inf, *, steps: int = 20, random_start: bool = False, box: Box = BOX
) -> Result:
    """`pgd` on z_t - z_y for each other class t in turn; row by row the best result counts. queries: (K - 1)(steps + 1)."""
    x, y, keys = check_inputs(logits_fn, x, y, key, box)
    check_ball(eps, norm, x, box)
    classes = jax.eval_shape(logits_fn, x).shape[1]

    def towards(offset):
        def difference(logits, y):
            return of_class(logits, (y + offset) % classes) - of_class(logits, y)

        evaluate = white_box(logits_fn, y, difference, False)
        return climb(evaluate, x, fold(keys, offset), eps, norm, steps, random_start=random_start, box=box)

    best, _ = jax.lax.scan(lambda best, offset: (better(towards(offset), best), None), towards(1), jnp.arange(2, classes))
    return best


# --- The common loop --------------------------------------------------------------------------------------------------------------------


def white_box(logits_fn: LogitsFn, y, loss: Loss, targeted: bool) -> Evaluate:
    """The function (x, keys) -> (J, success, gradient) of each row; J is what is to be made large, so -loss of a target."""
    check_functions(loss=loss)
    sign, logits_fn = -1.0 if targeted else 1.0, in_loops(logits_fn)

    def evaluate(x, keys):
        def total(x):
            logits = logits_fn(x)
            each = sign * loss(logits, y)
            return each.sum(), (each, logits)

        g, (each, logits) = jax.grad(total, has_aux=True)(x)
        return each, hit(logits, y, targeted), g

    return evaluate


def climb(
    evaluate: Evaluate,
    x: Float[Array, "B ..."],
    keys: Key[Array, " B"],
    eps: Any,
    norm: float,
    steps: int,
    step_size: Any = None,
    restarts: int = 1,
    random_start: bool = False,
    optimizer: optax.GradientTransformation | None = None,
    keep: Keep = "best",
    box: Box = BOX,
    cost: int = 1,
) -> Result:
    """`pgd` for any function `evaluate` of an image that gives J, success and a gradient, exact or estimated, for `cost` queries."""
    if not (is_count(steps) and is_count(restarts)):
        raise ConfigError("steps, restarts", "integers, 1 or more", f"{steps}, {restarts}")
    if not isinstance(optimizer, optax.GradientTransformation | None):
        raise ConfigError("optimizer", "one of optax, such as optax.adam(0.01), or None", shown(optimizer))
    if keep not in get_args(Keep):
        raise ConfigError("keep", ", ".join(get_args(Keep)), shown(keep))
    eps = jnp.asarray(eps, x.dtype)
    step_size = _step_size(step_size, eps, steps, random_start and optimizer is None)

    def once(number):
        draws = fold(keys, number)
        start = balls.project(x + balls.uniform(draws, x, eps, norm), x, eps, norm, box) if random_start else x
        return _path(evaluate, x, start, draws, eps, norm, steps, step_size, optimizer, keep, box, cost)

    best = once(0)
    if restarts > 1:
        best, _ = jax.lax.scan(lambda best, number: (better(once(number), best), None), best, jnp.arange(1, restarts))
    return best


def _step_size(step_size, eps, steps: int, random_start: bool):
    if step_size is None:
        return 2.5 * eps / steps
    known = not any(isinstance(value, jax.core.Tracer) for value in (step_size, eps))
    if known and not float(step_size) >= 0:
        raise ConfigError("step_size", "0 or more", step_size)
    if known and random_start and float(step_size) * steps < 2 * float(eps) * (1 - 1e-6):
        least = 2 * float(eps) / steps
        raise ConfigError("step_size", f"2 eps / steps = {least:.3g} or more, to reach the other side of the ball", step_size)
    return step_size


def _path(evaluate, x, start, keys, eps, norm, steps, step_size, optimizer, keep, box, cost) -> Result:
    """One way from `start`, in a loop of one compiled step."""

    def seen(point, number):
        """The result at this image, its norm left for the end, with the gradient there."""
        loss, success, g = evaluate(point, fold(keys, number))
        return Result(point, success, jnp.zeros_like(loss), loss, jnp.full(loss.shape, cost, jnp.int32)), g

    def step(carry, number):
        point, state, best = carry
        now, g = seen(point, number)
        stays = best.success & (keep == "first")
        now = now._replace(queries=jnp.where(stays, 0, now.queries))
        best = _kept(now, best, keep, stays)
        if optimizer is None:
            moved = point + step_size * balls.steepest(g, norm, point, box)
        else:
            moved, state = descend(optimizer, -g, state, point)
        moved = balls.project(moved, x, eps, norm, box)
        return (where(best.success & (keep == "first"), point, moved), state, best), None

    def nothing(value, dtype):
        return jnp.full(x.shape[:1], value, dtype)

    none = Result(start, nothing(False, bool), nothing(0, x.dtype), nothing(-jnp.inf, x.dtype), nothing(0, jnp.int32))
    state = () if optimizer is None else optimizer.init(start)
    (point, _, best), _ = jax.lax.scan(step, (start, state, none), jnp.arange(steps))
    last, _ = seen(point, steps)  # its gradient is not used, so that compiling leaves it out
    stays = best.success & (keep == "first")
    found = _kept(last._replace(queries=jnp.where(stays, 0, last.queries)), best, keep, stays)
    return found._replace(norm=balls.norms(found.x_adv - x, norm))


def _kept(now: Result, best: Result, keep: Keep, stays: Bool[Array, " B"]) -> Result:
    """What is kept of this image and of those before it."""
    if keep == "best":
        return better(now, best)
    chosen = Result(*(where(stays, a, b) for a, b in zip(best, now, strict=True)))
    return chosen._replace(queries=now.queries + best.queries)
