"""What an attack makes large: functions (logits [B, K], y [B]) -> [B] of which each row is large where class y is not what is predicted.

    log_ratio      m = log sum_{j != y} exp z_j - z_y              = log((1 - p_y) / p_y)
    cross_entropy  log(1 + exp m)                                  = -log p_y
    margin         max_{j != y} z_j - z_y                          > 0 exactly where y is not predicted

A targeted attack makes the same function small, with the target for y. The cross entropy grows with m, so that the gradients of both have
one direction; but where p_y is almost 1 the gradient of the cross entropy, (1 - p_y) grad m, is lost in float32: the usual
-log_softmax(z)_y subtracts numbers that are equal but for rounding, and many of its gradients have a wrong sign. The gradient of m is a
mean of the differences grad z_j - grad z_y with positive weights that sum to 1, which neither cancels nor underflows, however sure the
network is. So attacks follow m. Carlini & Wagner (2017, "Towards Evaluating the Robustness of Neural Networks", section V.A) follow the
margin.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


def of_class(logits: Float[Array, "B K"], y: Integer[Array, " B"]) -> Float[Array, " B"]:
    """z_y of each row."""
    return jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]


def others(logits: Float[Array, "B K"], y: Integer[Array, " B"]) -> Float[Array, "B K"]:
    """The logits with -inf in the place of z_y."""
    return jnp.where(jnp.arange(logits.shape[1])[None] == y[:, None], -jnp.inf, logits)


def log_ratio(logits: Float[Array, "B K"], y: Integer[Array, " B"]) -> Float[Array, " B"]:
    """log((1 - p_y) / p_y), in nats."""
    return jax.nn.logsumexp(others(logits, y), axis=1) - of_class(logits, y)


def cross_entropy(logits: Float[Array, "B K"], y: Integer[Array, " B"]) -> Float[Array, " B"]:
    """-log p_y, in nats; exact also for tiny values, but its gradient is then tiny too, so that attacks follow `log_ratio`."""
    return jax.nn.softplus(log_ratio(logits, y))


def margin(logits: Float[Array, "B K"], y: Integer[Array, " B"]) -> Float[Array, " B"]:
    """The largest other logit minus z_y."""
    return others(logits, y).max(axis=1) - of_class(logits, y)
