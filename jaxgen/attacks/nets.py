"""A network that makes adversarial images in one pass, trained against a fixed classifier on images of its own.

    x_adv = clip(x + eps tanh(g(x))),        g trained by Adam to make the mean of min(m(x_adv, y), cap) large,

where m is the log-ratio of the attacked function and g is convolutional, three layers of 3 x 3 with relus. Later nothing is asked of the
attacked function: an image costs a pass of g. Baluja & Fischer (2018, "Learning to Attack: Adversarial Transformation Networks") have a
distance in the loss, and Xiao et al. (2018, "Generating Adversarial Examples with Adversarial Networks") a discriminator; here the bound
eps of the norm infinity holds by construction. Report its success on images that it was not trained on, beside that of pgd.
"""

from collections.abc import Callable
from itertools import pairwise
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from jaxgen.attacks.balls import norms
from jaxgen.attacks.inputs import (
    BOX,
    LogitsFn,
    Result,
    check_ball,
    check_cap,
    check_counts,
    check_grid,
    check_inputs,
    check_norm,
    check_positive,
    descend,
    hit,
    one_key,
    random_rows,
)
from jaxgen.attacks.loops import in_loops
from jaxgen.attacks.losses import log_ratio
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import Conv


class AttackNet(nnx.Module):
    """x -> x_adv for one eps."""

    def __init__(self, channels: int, width: int, eps: float, *, rngs: nnx.Rngs):
        self.eps = eps
        self.layers = nnx.List([Conv(a, b, 3, rngs) for a, b in pairwise((channels, width, width, channels))])

    def __call__(self, x: Float[Any, "B H W C"]) -> Float[Array, "B H W C"]:
        """Images within eps of x, in [0, 1]."""
        h = 2 * x - 1
        for layer in self.layers[:-1]:
            h = nnx.relu(layer(h))
        return jnp.clip(x + self.eps * jnp.tanh(self.layers[-1](h)), 0, 1)


def train_net(
    logits_fn: LogitsFn,
    x: Float[Any, "N H W C"],
    y: Any,
    key: Any,
    eps: float,
    *,
    width: int = 32,
    steps: int = 500,
    batch_size: int = 64,
    rate: float = 0.01,
    cap: float = 2.0,
) -> AttackNet:
    """The trained network for images x with classes y. ConfigError for an argument out of range."""
    x, y, _ = check_inputs(logits_fn, x, y, key)
    check_ball(eps, inf, x, BOX)
    check_grid(x)
    check_counts(width=width, steps=steps, batch_size=batch_size)
    check_positive(rate=rate)
    check_cap(cap)
    logits_fn = in_loops(logits_fn)
    key = one_key(key)
    graph, params = nnx.split(AttackNet(x.shape[3], width, eps, rngs=nnx.Rngs(jax.random.fold_in(key, 0))))
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, number):
        params, state = carry
        rows = random_rows(jax.random.fold_in(key, number + 1), len(x), batch_size)

        def loss(params):
            x_adv = nnx.merge(graph, params)(x[rows])
            return -jnp.minimum(log_ratio(logits_fn(x_adv), y[rows]), cap).mean()

        return descend(adam, jax.grad(loss)(params), state, params), None

    (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), jnp.arange(steps))
    return nnx.merge(graph, params)


def by_net(net: Callable, logits_fn: LogitsFn, x, y, key, norm: float = inf) -> Result:
    """What the network makes of x, judged by logits_fn: one query each.

    net: any function of images to images, whose values are cut to [0, 1]; that of a universal perturbation v is `lambda x: x + v`. norm: of
    Result.norm.
    """
    x, y, _ = check_inputs(logits_fn, x, y, key)
    check_norm(norm)
    x_adv = jnp.clip(net(x), *BOX)
    if x_adv.shape != x.shape:
        raise ConfigError("net", f"images of shape {list(x.shape)} for such images", f"shape {list(x_adv.shape)}")
    if not isinstance(x_adv, jax.core.Tracer) and not np.isfinite(x_adv).all():
        raise ConfigError("net", "images of finite values", "NaN")
    logits = logits_fn(x_adv)
    size = norms(x_adv - x, norm)
    return Result(x_adv, hit(logits, y, False), size, log_ratio(logits, y), jnp.ones(len(x), jnp.int32))
