"""Reinforcement: a trained model of strings goes on learning from a reward for its own samples, instead of from examples.

    J           = E_p[ r(x) ] - beta KL(p, prior),               prior: the model before; KL = E_p[ log p(x) - log prior(x) ]
    gradient J  = E_p[ (R(x) - b) gradient log p(x) ],           R(x) = r(x) - beta (log p(x) - log prior(x))

    model = jaxgen.load("runs/molecules")
    reward = lambda strings: [1.0 if "N" in string else 0.0 for string in strings]
    model, rows = jaxgen.reinforcement.reinforce(model, reward, jax.random.key(0))

Every step draws n strings from p as it is then, and r is computed for exactly these, all of them: a string that stands for nothing has the
reward that r gives it, such as 0, and is not drawn again. (Drawing until a string is valid would give the gradient of another
distribution.) The baseline b of a string is the mean of R over the other n - 1. It does not depend on the string, so the mean of the n
terms has the expectation above, and a smaller variance than without b. r is any Python function of strings; it needs no gradient.

Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning"; for molecules Popova, Isayev,
Tropsha 2018, "Deep Reinforcement Learning for De Novo Drug Design", which has no baseline and weighs later tokens less. The drift from the
prior that the rows tell is KL, estimated from the same strings: what the model has forgotten of its data, in nats a string.

Axes: n strings, L length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from jaxgen.checks import check_key
from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.training import OptimizerConfig, make_optimizer

Reward = Callable[[Sequence[str]], Sequence[float]]
"""r: one number for each string."""


@dataclass(frozen=True)
class ReinforcementConfig:
    """How long, from how many strings, how fast. Raises ConfigError for a value out of range."""

    steps: int = 100  # steps in all
    strings: int = 64  # n, strings drawn in a step; 2 or more
    penalty: float = 0.0  # beta, reward taken off for each nat of drift from the prior
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4)

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError("steps", "1 or more", self.steps)
        if self.strings < 2:
            raise ConfigError("strings", "2 or more: the baseline of a string is the mean over the others", self.strings)
        if not 0 <= self.penalty < float("inf"):
            raise ConfigError("penalty", "a number that is 0 or more", self.penalty)


def without_baseline(rewards: Float[Array, " n"]) -> Float[Array, " n"]:
    """R(x) of each string minus the mean of the others."""
    n = rewards.shape[0]
    return (rewards - rewards.mean()) * (n / (n - 1))


def surrogate(model: Any, prior: Any, tokens: Integer[Array, "n L"], rewards: Float[Array, " n"], penalty=0.0):
    """(s, drift): the gradient of s estimates that of J from strings drawn from the model; drift: log p - log prior of each, [n].

    s = mean_i (R(x_i) - b_i) log p(x_i), with R and b held fixed.
    """
    log_p = model.log_prob(tokens)
    drift = jax.lax.stop_gradient(log_p - prior.log_prob(tokens))
    return (without_baseline(rewards - penalty * drift) * log_p).mean(), drift


def reinforce(
    model: Any,
    reward: Reward,
    key: PRNGKeyArray,
    options: ReinforcementConfig = ReinforcementConfig(),
    report: Callable[[int, dict[str, float]], None] = lambda step, row: None,
) -> tuple[Any, list[dict[str, float]]]:
    """The model after `options.steps` steps, and a row for each step; the model that was given stays as it is.

    A row describes the strings of the step, before its update: "reward", the mean of r, and "drift" from the prior in nats a string, both
    with "_standard_error"; "distinct", the share of the strings that are left when each counts once. report(step, row): called at
    every step. The same key gives the same result. Raises ConfigError for a model that is not of strings, and for rewards that are not one
    finite number for each string; NonFiniteError where the loss or a gradient is not finite.
    """
    check_key(key)
    if getattr(model.config, "modelled", None) != "tokens" or not hasattr(model, "log_prob"):
        raise ConfigError("model", "a model of strings with `log_prob` and `sample`", type(model).__name__)
    (graph, params, rest), prior, rows = nnx.split(model, nnx.Param, ...), model, []
    optimizer, feature = make_optimizer(options.optimizer, options.steps), model.config.features["tokens"]
    state = optimizer.init(params)
    for step in range(options.steps):
        tokens = nnx.merge(graph, params, rest).sample(jax.random.fold_in(key, step), options.strings)
        strings = [feature.text(row) for row in np.asarray(tokens)]
        rewards = _checked(reward(strings), len(strings))
        params, state, size, drift = _update(optimizer, graph, params, rest, state, prior, tokens, rewards, options.penalty)
        if not np.isfinite(size):
            raise NonFiniteError(f"reinforcement, step {step}", "a finite gradient", float(size), "try a lower optimizer.learning_rate")
        rows.append(_mean("reward", rewards) | _mean("drift", np.asarray(drift)) | {"distinct": len(set(strings)) / len(strings)})
        report(step, rows[-1])
    return nnx.merge(graph, params, rest), rows


@partial(jax.jit, static_argnames=("optimizer", "graph"))
def _update(optimizer, graph, params, rest, state, prior, tokens, rewards, penalty):
    def loss(params):
        value, drift = surrogate(nnx.merge(graph, params, rest), prior, tokens, rewards, penalty)
        return -value, drift

    gradient, drift = jax.grad(loss, has_aux=True)(params)
    with jax.numpy_dtype_promotion("standard"):  # optax computes float ** integer, which strict promotion refuses
        updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, optax.tree.norm(gradient), drift


def _checked(rewards, n: int) -> Float[np.ndarray, " n"]:
    """The rewards as float32."""
    try:
        values = np.asarray(rewards, np.float32)
    except (TypeError, ValueError):
        values = np.empty(0, np.float32)
    if values.shape != (n,) or not np.isfinite(values).all():
        got = f"shape {list(values.shape)}" if values.shape != (n,) else "nan or infinity"
        raise ConfigError("reward", f"one finite number for each of the {n} strings", got)
    return values


def _mean(name: str, values: np.ndarray) -> dict[str, float]:
    return {name: float(values.mean()), f"{name}_standard_error": float(values.std(ddof=1) / np.sqrt(len(values)))}
