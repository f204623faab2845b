"""What two players of an adversarial game minimise, penalties on the discriminator, and the game on finite sets.

a = D(x) and b = D(G(z)) are logits; E is the mean over the rows of a batch.

    objective       L_D                                             L_G
    minimax         E softplus(-a) + E softplus(b)                  -E softplus(b)         Goodfellow et al. 2014, equation 1
    nonsaturating   the same                                        E softplus(-b)         the same, section 3
    least_squares   E (a - 1)^2 / 2 + E b^2 / 2                     E (b - 1)^2 / 2        Mao et al. 2017
    hinge           E max(0, 1 - a) + E max(0, 1 + b)               -E b                   Lim & Ye 2017, Miyato et al. 2018
    wasserstein     -E a + E b                                      -E b                   Arjovsky et al. 2017

softplus(-a) = -log sigma(a) and softplus(b) = -log(1 - sigma(b)). Where D is sure that G(z) is not real, b << 0, the slope of minimax in b
is sigma(b), almost 0, and that of nonsaturating is almost -1. Wasserstein needs a D of bounded slope: a penalty, or spectral normalisation.

    penalty     added to L_D, times a weight
    gradient    E (|grad D(x~)| - 1)^2,  x~ = e x + (1 - e) G(z), e uniform on [0, 1]          Gulrajani et al. 2017 (WGAN-GP)
    r1          E |grad D(x)|^2 / 2                                                            Mescheder et al. 2018
    dragan      E (|grad D(x~)| - 1)^2,  x~ = x + e s u / 2, e and all numbers of u uniform    Kodali et al. 2017
                on [0, 1], s the standard deviation of all numbers of the batch

The gradient is by x, of each row alone, so D must judge every row by itself: no normalisation over a batch.

On a finite set, for probabilities p and q of data and generator, V(D) = sum_x p log D + q log(1 - D) is largest at D* = p / (p + q), with
V(D*) = -log 4 + 2 JSD(p, q).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import softplus
from jax.scipy.special import xlogy
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.distributions import row_sums
from jaxgen.errors import ConfigError

ObjectiveName = Literal["minimax", "nonsaturating", "least_squares", "hinge", "wasserstein"]
PenaltyName = Literal["none", "gradient", "r1", "dragan"]


class Objective(NamedTuple):
    """Functions of logits [B], number by number: the two terms of L_D, for a and for b, and that of L_G, for b."""

    real: Callable[[Array], Array]
    fake: Callable[[Array], Array]
    generator: Callable[[Array], Array]


OBJECTIVES: dict[str, Objective] = {
    "minimax": Objective(lambda a: softplus(-a), softplus, lambda b: -softplus(b)),
    "nonsaturating": Objective(lambda a: softplus(-a), softplus, lambda b: softplus(-b)),
    "least_squares": Objective(lambda a: (a - 1) ** 2 / 2, lambda b: b**2 / 2, lambda b: (b - 1) ** 2 / 2),
    "hinge": Objective(lambda a: jax.nn.relu(1 - a), lambda b: jax.nn.relu(1 + b), lambda b: -b),
    "wasserstein": Objective(lambda a: -a, lambda b: b, lambda b: -b),
}
"""The table above, by name."""


def penalty(
    kind: PenaltyName, discriminate: Callable[[Array], Array], real: Float[Array, "B ..."], fake: Float[Array, "B ..."], key: PRNGKeyArray
) -> Float[Array, ""]:
    """The penalty of this kind, without its weight; 0 for "none". discriminate: x [B, ...] -> logits [B]."""
    if kind == "none":
        return jnp.zeros(())
    if kind == "r1":
        return _squared_norms(discriminate, real).mean() / 2
    key_share, key_noise = jax.random.split(key)
    share = jax.random.uniform(key_share, (real.shape[0],) + (1,) * (real.ndim - 1))
    if kind == "gradient":
        x = share * real + (1 - share) * fake
    else:
        x = real + share * (real.std() / 2) * jax.random.uniform(key_noise, real.shape)
    squared = _squared_norms(discriminate, x)
    norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)  # a finite gradient at 0
    return ((norm - 1) ** 2).mean()


def _squared_norms(discriminate: Callable, x: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """|grad D|^2 at every row of x."""
    slope = jax.grad(lambda x: discriminate(x).sum())(x)
    return row_sums(slope**2)


# --- The game on finite sets --------------------------------------------------------------------------------------------------------------


def value(p, q, discriminator) -> Float[Array, ""]:
    """V(D) = sum_x p(x) log D(x) + q(x) log(1 - D(x)) in nats. p, q: probabilities [N]; discriminator: D, in [0, 1], [N].

    0 log 0 counts as 0. ConfigError for shapes that differ, and for p and q that are no probabilities.
    """
    p, q = _probabilities(p, "p"), _probabilities(q, "q")
    discriminator = jnp.asarray(discriminator, jnp.float32)
    _check_same(p, q, discriminator)
    return (xlogy(p, discriminator) + xlogy(q, 1 - discriminator)).sum()


def optimal_discriminator(p, q) -> Float[Array, " N"]:
    """D* = p / (p + q), which makes `value` largest; 1/2 where both are 0."""
    p, q = _probabilities(p, "p"), _probabilities(q, "q")
    _check_same(p, q)
    return jnp.where(p + q > 0, p / jnp.where(p + q > 0, p + q, 1), 0.5)


def js_divergence(p, q) -> Float[Array, ""]:
    """Jensen-Shannon divergence in nats: (KL(p | m) + KL(q | m)) / 2, m = (p + q) / 2; from 0 (p = q) to log 2 (nowhere both above 0)."""
    p, q = _probabilities(p, "p"), _probabilities(q, "q")
    _check_same(p, q)
    middle = jnp.where(p + q > 0, (p + q) / 2, 1)
    return (xlogy(p, p / middle) + xlogy(q, q / middle)).sum() / 2


def _probabilities(values, argument: str) -> Float[Array, " N"]:
    """`values` as float32 [N]; ConfigError unless they are not negative and their sum is 1. Inside `jit` only the shape is checked."""
    array = jnp.asarray(values, jnp.float32)
    if array.ndim != 1:
        raise ConfigError(argument, "shape [N]", list(array.shape))
    if not isinstance(array, jax.core.Tracer):
        on_host = np.asarray(array, np.float64)
        if not (on_host >= 0).all() or not abs(on_host.sum() - 1) < 1e-4:
            got = f"the sum {on_host.sum():.6g}, least {on_host.min():.6g}"
            raise ConfigError(argument, "probabilities, 0 or more, with the sum 1", got)
    return array


def _check_same(*arrays: Array) -> None:
    if len({array.shape for array in arrays}) > 1:
        raise ConfigError("p, q and D", "the same shape", [array.shape for array in arrays])
