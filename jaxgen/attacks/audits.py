"""`audit`: signs that an attack with gradients says little about a function, before its robust accuracy is believed.

    zero_gradients     share of images at which the gradient of the log-ratio is 0: masked gradients, nothing to follow
    lost_gradients     share of images at which the usual cross entropy has a gradient of 0 in float32 though the log-ratio has one:
                       saturated rows, which other attacks take for robust
    random             largest difference of two answers for the same images
    batch_dependence   largest difference of the answers for an image alone and in the batch, over the spread of the logits
    one_step_better    robust accuracy by pgd minus that by one step; positive: the gradient misleads
    noise_better       robust accuracy by pgd minus that by as many random images of the ball; positive: masked gradients
    unbounded          accuracy under pgd with the largest eps, where every image can become any other; above 0: masked gradients

All but `random` and `batch_dependence` are NaN where answers are random or the function changes a state of its own. The last three are
tests of Athalye et al. (2018, "Obfuscated Gradients Give a False Sense of Security", section 3.1) and Carlini et al. (2019, "On Evaluating
Adversarial Robustness"). None of them proves robustness.
"""

from math import inf
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import TraceContextError

from jaxgen.attacks import balls
from jaxgen.attacks.gradient import fgsm, pgd
from jaxgen.attacks.inputs import (
    BOX,
    LogitsFn,
    check_ball,
    check_classes,
    check_finite,
    check_in_box,
    check_logits,
    fold,
    hit,
    row_keys,
    traced_shape,
)
from jaxgen.attacks.losses import log_ratio
from jaxgen.errors import ConfigError, shown


class Audit(NamedTuple):
    """Numbers of the table above, and in `warnings` one sentence for each that is conspicuous."""

    zero_gradients: float
    lost_gradients: float
    random: float
    batch_dependence: float
    one_step_better: float
    noise_better: float
    unbounded: float
    warnings: tuple[str, ...]


def audit(logits_fn: LogitsFn, x, y, key=None, eps: float = 0.1, *, steps: int = 20, tolerance: float = 0.01) -> Audit:
    """Looks at the function on images [B, ...] in [0, 1] with classes y; eps of the norm infinity. tolerance: of differences of shares.

    ConfigError as of any attack, except that a function that answers at random is a finding here.
    """
    x = check_in_box(x)
    if not callable(logits_fn):
        raise ConfigError("logits_fn", "a function from images to logits", shown(logits_fn))
    keys = row_keys(jax.random.key(0) if key is None else key, len(x))
    first, second = np.asarray(logits_fn(x)), np.asarray(logits_fn(x))
    if first.ndim != 2 or len(first) != len(x):
        raise ConfigError("logits_fn", f"logits [{len(x)}, K]", f"shape {list(first.shape)}")
    check_finite(first)
    y = check_classes(y, len(x), first.shape[1])
    spread = max(float(first.std()), 1e-12)
    alone = np.concatenate([np.asarray(logits_fn(x[i : i + 1])) for i in range(min(8, len(x)))])
    random, batch = float(np.abs(first - second).max()), float(np.abs(alone - first[: len(alone)]).max()) / spread

    def is_zero(loss, x, y):
        g = jax.grad(lambda x: loss(logits_fn(x), y).sum())(x)
        return (balls.norms(g, inf) == 0) | ~jnp.isfinite(balls.norms(g, inf))

    @jax.jit
    def gradients(x, y):
        return is_zero(log_ratio, x, y), is_zero(optax.softmax_cross_entropy_with_integer_labels, x, y)

    @jax.jit
    def many_steps(x, y, keys, eps):
        return pgd(logits_fn, x, y, keys, eps, steps=steps).success

    @jax.jit
    def others(x, y, keys, eps):
        return fgsm(logits_fn, x, y, keys, eps).success, _noise(logits_fn, x, y, keys, eps, steps)

    nan = float("nan")
    numbers = {"random": random, "batch_dependence": batch} | dict.fromkeys(FOLLOWED, nan)
    if random == 0 and not _changes(logits_fn, x):
        check_logits(logits_fn, x)
        check_ball(eps, inf, x, BOX)
        zero, usual = (np.asarray(each) for each in gradients(x, y))
        right = first.argmax(axis=1) == np.asarray(y)

        def accuracy(success) -> float:
            return float((right & ~np.asarray(success)).mean())

        by_pgd, (one_step, noise) = accuracy(many_steps(x, y, keys, jnp.float32(eps))), others(x, y, keys, jnp.float32(eps))
        numbers |= {
            "zero_gradients": float(zero.mean()),
            "lost_gradients": float((usual & ~zero).mean()),
            "one_step_better": by_pgd - accuracy(one_step),
            "noise_better": by_pgd - accuracy(noise),
            "unbounded": accuracy(many_steps(x, y, keys, jnp.float32(1))),
        }
    limits = dict.fromkeys(numbers, tolerance) | {"random": 0.0, "batch_dependence": 1e-3, "zero_gradients": 0.0, "lost_gradients": 0.0}
    said = tuple(f"{name} {value:.3g}: {SENTENCES[name]}" for name, value in numbers.items() if value > limits[name])
    return Audit(**numbers, warnings=said)


FOLLOWED = ("zero_gradients", "lost_gradients", "one_step_better", "noise_better", "unbounded")
"""What needs gradients, or attacks."""
SENTENCES = {
    "zero_gradients": "no gradient at this share of images, so attacks that follow it stand still; ask a black-box attack",
    "lost_gradients": "the usual cross entropy has no gradient at this share of images, which saturate; attacks here follow the log-ratio",
    "random": "the answer is drawn at random; attack its mean over draws (eot)",
    "batch_dependence": "the answer for an image depends on the others of its batch; is the network in training mode?",
    "one_step_better": "one step fools more images than many do, so the gradient misleads",
    "noise_better": "random images of the ball fool more than the gradient does, so gradients are masked",
    "unbounded": "images that may become any other still count as robust, so gradients are masked",
}


def _changes(logits_fn, x) -> bool:
    """Whether the function changes a state of its own, as a Flax network in training mode does; then it has no gradients either."""
    try:
        traced_shape(logits_fn, x)
    except TraceContextError:
        return True
    return False


def _noise(logits_fn, x, y, keys, eps, tries: int):
    """Whether one of so many random images of the ball succeeds."""

    def draw(found, number):
        drawn = balls.project(x + balls.uniform(fold(keys, number), x, eps, inf), x, eps, inf)
        return found | hit(logits_fn(drawn), y, False), None

    return jax.lax.scan(draw, jnp.zeros(x.shape[:1], bool), jnp.arange(tries))[0]
