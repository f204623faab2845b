"""Training: the state, the one sharded train-step factory, and `fit`, the loop. No model is named here.

A step is a pure function `(state, batch, key) -> (state, metrics)`, compiled once; the buffers of the old state are donated. Its random key
is `fold_in(key, step)`: no key is stored, and a resumed run draws the same numbers. A model with several players (a GAN) has one loss, with
`stop_gradient` such that each player's parameters get the gradient of that player's term only; `OptimizerConfig.players` gives each player
an optimizer of its own. The step is the same for all models.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from jaxgen import sharding
from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.optimizers import OptimizerConfig, learning_rates, make_optimizer
from jaxgen.packing import Packing
from jaxgen.statistics import each, values

__all__ = ["OptimizerConfig", "TrainConfig", "TrainState", "fit", "init_state", "learning_rates", "make_optimizer", "make_train_step"]


@dataclass(frozen=True)
class TrainConfig:
    """How long a run is, its batches, and what happens how often. Raises ConfigError for a value out of range.

    accumulate above 1 takes less memory, and on a CPU less time where the activations of a whole batch do not fit the processor's caches
    (28 x 28 images: as many parts as images). With convolutions parts of more than 8 images are slow on a CPU.
    """

    steps: int = 1000  # steps in all
    batch_size: int = 64  # rows of a step's batch, over all devices
    seed: int = 0  # of the first parameters, the order of the data and the noise
    ema_decay: float = 0.999  # of the average of the parameters, which is evaluated and sampled
    accumulate: int = 1  # parts of a batch whose gradients are computed one after the other and averaged
    fsdp: int = 1  # devices over which parameters, moments and averages are split; a divisor of the number of all
    log_every: int = 10  # steps between two rows of metrics
    eval_every: int = 250  # steps between two rounds of validation, samples and checkpoint
    max_minutes: float | None = None  # stop after so many minutes of steps of this call, validation and saving not counted; None: no limit

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "fsdp", "log_every", "eval_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}", "a positive integer", getattr(self, name))
        if not 0 <= self.ema_decay < 1:
            raise ConfigError("train.ema_decay", "a number in 0..1, 1 excluded", self.ema_decay)
        if not 0 <= self.seed < 2**32:
            raise ConfigError("train.seed", "an integer in 0..2**32-1", self.seed)
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ConfigError("train.max_minutes", "a positive number or None", self.max_minutes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. A checkpoint holds all of it."""

    step: Any  # int32 [], number of finished steps; annotated Any, since trees of shardings or shapes are TrainStates too
    model: Any
    opt_state: Any
    ema: Any  # exponential moving average of the model's parameters, used by evaluation and sampling


def new_state(model, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    params = nnx.state(model, nnx.Param)
    # The average starts at the parameters, in buffers of its own: the step donates them separately.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), model, optimizer.init(params), ema)


def init_state(model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step, placed on the mesh. It may share arrays with `model`, and the step donates them: do not use `model`
    afterwards."""
    return sharding.place_state(mesh, new_state(model, optimizer))


def born(mesh: Mesh, make: Callable[..., TrainState], *args) -> TrainState:
    """The state that `make(*args)` builds, computed in one compiled program whose outputs are split by the rules of sharding.py.

    Each device ends with its own part, and the whole state is never placed on one device first. Weights drawn inside one program may
    differ in the last bit from those drawn one after the other.
    """
    return jax.jit(make, out_shardings=sharding.state_sharding(mesh, jax.eval_shape(make, *args)))(*args)


def ema_model(state: TrainState):
    """The model with the averaged parameters in the place of the trained ones."""
    graph, _, rest = nnx.split(state.model, nnx.Param, ...)
    return nnx.merge(graph, state.ema, rest)


def gradient_moments(function: Callable, params: Any, keys: Array) -> tuple[Any, Any]:
    """Mean and variance over `keys` [N] of the gradient of `function(params, key) -> scalar`, number by number: two trees like `params`.

    They are those of an estimate from one key: the variance has N - 1 in its denominator. One gradient is computed after the other, and the
    sums are updated by Welford's rule, which subtracts no large numbers from each other. Raises ConfigError for fewer than two keys.
    """
    if keys.shape[0] < 2:
        raise ConfigError("keys", "two or more", keys.shape[0])

    def add(carry, inputs):
        (mean, squares), (count, key) = carry, inputs
        gradient = jax.grad(function)(params, key)
        new = jax.tree.map(lambda m, g: m + (g - m) / count, mean, gradient)
        squares = jax.tree.map(lambda s, g, m, n: s + (g - m) * (g - n), squares, gradient, mean, new)
        return (new, squares), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    counts = jnp.arange(1, keys.shape[0] + 1, dtype=jnp.float32)
    (mean, squares), _ = jax.lax.scan(add, (zeros, zeros), (counts, keys))
    return mean, jax.tree.map(lambda s: s / (keys.shape[0] - 1), squares)


def accumulated(gradients_of: Callable, parts: int, mesh: Mesh) -> Callable:
    """`gradients_of`, (params, batch, key) -> ((loss, (metrics, statistics)), gradients), one part of the batch after the other.

    Loss, metrics and gradients x are averaged: sum_i x_i / parts, or, where the metrics have a "weight" w, sum_i w_i x_i / sum_i w_i, and
    the metric "weight" is sum_i w_i. For a loss without noise that is the result for the whole batch up to float32 rounding, provided the
    loss is a mean over rows (or over what `weight` counts). Noise (dropout, latent samples) is drawn from fold_in(key, i) in part i, so
    the draws, and with them the numbers, differ from those of the whole batch; their expectations are equal.
    """

    def of_whole(params, batch: dict, key: PRNGKeyArray):
        (value, (metrics, statistics)), gradients = gradients_of(params, batch, key)
        return (value, (metrics, values(statistics))), gradients

    if parts == 1:
        return of_whole

    def weighted(part):
        """The part's numbers times its weight, and its statistics. A part of weight 0 adds 0, even where its loss is NaN."""
        (value, (metrics, statistics)), gradients = part
        weight = metrics.get("weight")

        def times(x):
            return x if weight is None else jnp.where(weight > 0, x * weight.astype(x.dtype), 0)

        numbers = {name: number if name == "weight" else times(number) for name, number in metrics.items()}
        statistics = each(lambda s: times(s.value) if s.join == "mean" else s.value, statistics)
        return (times(value), numbers, jax.tree.map(times, gradients)), statistics

    def of_batch(params, batch: dict, key: PRNGKeyArray):
        # Every device splits its own rows: part i has rows i, i + parts, ... and no row moves between devices.
        stacked = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total, inputs):
            i, part = inputs
            part = jax.lax.with_sharding_constraint(part, sharding.batch_sharding(mesh))
            numbers, found = weighted(gradients_of(params, part, jax.random.fold_in(key, i)))

            def join(rule, old, new):
                return jnp.where(i == 0, new, old) if rule == "first" else old + new

            return (jax.tree.map(jnp.add, total[0], numbers), jax.tree.map(join, rules, total[1], found)), None

        shapes = jax.eval_shape(gradients_of, params, jax.tree.map(lambda x: x[0], stacked), key)
        rules = each(lambda s: s.join, shapes[0][1][1])
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(weighted, shapes))
        ((value, metrics, gradients), found), _ = jax.lax.scan(add, zeros, (jnp.arange(parts), stacked))
        weight = metrics.get("weight")

        def mean(x):
            return x / parts if weight is None else x / weight.astype(x.dtype)

        metrics = {name: number if name == "weight" else mean(number) for name, number in metrics.items()}
        found = jax.tree.map(lambda rule, x: mean(x) if rule == "mean" else x, rules, found)
        return (mean(value), (metrics, found)), jax.tree.map(mean, gradients)

    return of_batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Numbers:
    """All metrics of a step in one array, so that the host needs one transfer to read them."""

    names: tuple[str, ...] = field(metadata={"static": True})
    values: Any  # float32 [number of metrics]

    def read(self) -> dict[str, float]:
        """{name: Python float}; waits until the device has computed them."""
        return dict(zip(self.names, np.asarray(self.values).tolist(), strict=True))


class TrainStep:
    """A compiled step in two forms: `step(state, batch, key) -> (state, metrics)`, and `on_leaves` for loops.

    Each call of the first form flattens the state into its arrays and builds it again, 8 ms of Python for a model of 900 arrays. A loop
    avoids that by flattening once and passing the list of arrays from step to step:

        leaves, tree = jax.tree.flatten(state)
        advance = step.on_leaves(tree)
        leaves, numbers = advance(leaves, batch, key)      # as often as wanted; numbers.read() gives the metrics

    Both donate the buffers of the old state.
    """

    def __init__(self, step: Callable, mesh: Mesh):
        self._step, self.mesh, self._of_tree = step, mesh, {}
        self._compiled = jax.jit(step, donate_argnums=0)

    def __call__(self, state: TrainState, batch: dict, key: PRNGKeyArray) -> tuple[TrainState, dict]:
        return self._compiled(state, batch, key)

    def lower(self, state: TrainState, batch: dict, key: PRNGKeyArray):
        """`jax.jit(...).lower` of the first form."""
        return self._compiled.lower(state, batch, key)

    def on_leaves(self, tree) -> Callable[[list, dict, PRNGKeyArray], tuple[list, Numbers]]:
        """The compiled (leaves, batch, key) -> (leaves, Numbers) for states whose tree structure is `tree`."""
        return self._of_tree.setdefault(tree, jax.jit(self._on_leaves(tree), donate_argnums=0))

    def on_packed(self, tree, packing: Packing) -> Callable[[list, dict, PRNGKeyArray], tuple[list, Numbers]]:
        """`on_leaves` for the shorter lists of a `Packing`."""
        advance = self._on_leaves(tree)

        def step(arrays, batch, key):
            leaves, numbers = advance(packing.unpack(arrays), batch, key)
            return packing.pack(leaves), numbers

        return self._of_tree.setdefault((tree, packing), jax.jit(step, donate_argnums=0))

    def _on_leaves(self, tree):
        def step(leaves, batch, key):
            state, metrics = self._step(jax.tree.unflatten(tree, leaves), batch, key)
            names = tuple(metrics)
            stacked = jnp.stack([jnp.asarray(metrics[name]).reshape(()).astype(jnp.float32) for name in names])
            whole = jax.lax.with_sharding_constraint(stacked, sharding.whole(self.mesh))
            return jax.tree.leaves(state), Numbers(names, whole)

        return step


def of_loss(found: Any) -> tuple[Array, dict[str, Array], Any]:
    """Loss, metrics and statistics, as arrays, of what a model's `loss` returned; ConfigError unless it is what `make_train_step` says."""
    wanted = "(loss, metrics) or (loss, metrics, statistics), with a dict of metrics"
    if not isinstance(found, tuple) or len(found) not in (2, 3) or not isinstance(found[1], dict):
        raise ConfigError("what the model's loss returns", wanted, type(found).__name__)
    value, metrics, statistics = *jax.tree.map(jnp.asarray, found[:2]), found[2] if len(found) > 2 else {}
    for name, number in {"the loss": value, **metrics}.items():
        if jnp.shape(number) != ():
            raise ConfigError(f"{name}, which the model's loss returns", "a single number", f"shape {list(jnp.shape(number))}")
    return value, metrics, statistics


@lru_cache(maxsize=4)  # a run with the numbers of one before it in the same process compiles nothing
def make_train_step(optimizer: optax.GradientTransformation, mesh: Mesh, ema_decay: float = 0.999, accumulate: int = 1) -> TrainStep:
    """The compiled step of any model with `loss(batch, key) -> (scalar, metrics)` or `(scalar, metrics, statistics)`.

        theta <- theta + update(gradient of the loss),    average <- average + (1 - d_t) (theta - average),
        d_t = min(ema_decay, (1 + t) / (10 + t)),         t = state.step

    theta are the model's `nnx.Param` leaves. A model with other variables advances them in `after_update(statistics, key) -> model`, which
    is called after the update of theta (see statistics.py) and may change theta too, as clipping weights does; the average is taken last.
    `metrics["weight"]`: the count over which the loss is a mean, where that is not rows (tokens that are not padding). accumulate: see
    `TrainConfig`. The step adds the metrics loss, gradient_norm (before clipping) and finite. If the loss or the gradient norm is not
    finite, finite is 0, and everything but the step number stays as it was.
    """

    def step(state: TrainState, batch: dict, key: PRNGKeyArray):
        key = jax.random.fold_in(key, state.step)
        advances = hasattr(state.model, "after_update")
        key, update_key = jax.random.split(key) if advances else (key, None)
        graph, params, rest = nnx.split(state.model, nnx.Param, ...)

        def loss(params, batch, key):
            value, metrics, statistics = of_loss(nnx.merge(graph, params, rest).loss(batch, key))
            return value.astype(jnp.float32), (metrics, statistics)

        gradients_of = accumulated(jax.value_and_grad(loss, has_aux=True), accumulate, mesh)
        (value, (metrics, statistics)), gradients = gradients_of(params, batch, key)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)

        def advanced():
            with jax.numpy_dtype_promotion("standard"):  # optax computes float ** integer, which strict promotion refuses
                updates, opt_state = optimizer.update(gradients, state.opt_state, params)
            t = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + t) / (10 + t))
            updated = optax.apply_updates(params, updates)
            model = nnx.merge(graph, updated, rest, copy=True)  # variables of this branch, which `after_update` may set
            if advances:
                model = model.after_update(statistics, update_key)
                updated = nnx.state(model, nnx.Param)
            ema = jax.tree.map(lambda average, new: average + (1 - decay) * (new - average), state.ema, updated)
            return model, opt_state, ema

        # A branch, not `where` for each array: that would have XLA copy parameters and moments before it writes their successors.
        kept = jax.lax.cond(finite, advanced, lambda: (state.model, state.opt_state, state.ema))
        new = TrainState(state.step + 1, *kept)
        new = jax.lax.with_sharding_constraint(new, sharding.state_sharding(mesh, new))
        return new, {**metrics, "loss": value, "gradient_norm": norm, "finite": finite.astype(jnp.float32)}

    return TrainStep(step, mesh)


def _loop(train_step: Callable, state: TrainState) -> tuple[Callable, Any, Callable[[Any], TrainState]]:
    """(advance, carried, whole) with carried, metrics = advance(carried, batch, key) and state = whole(carried).

    `carried` is the list of the state's arrays for a `TrainStep`, those of many small ones side by side, and the state itself for any other
    function.
    """
    if not isinstance(train_step, TrainStep):
        return train_step, state, lambda state: state
    leaves, tree = jax.tree.flatten(state)
    packing = Packing.of(leaves, mesh := train_step.mesh)
    if not packing.groups:
        return train_step.on_leaves(tree), leaves, lambda leaves: jax.tree.unflatten(tree, leaves)
    carried = packing.packed(leaves, mesh)
    return train_step.on_packed(tree, packing), carried, lambda arrays: jax.tree.unflatten(tree, packing.unpacked(arrays, mesh))


def fit(
    state: TrainState,
    train_step: Callable,
    batches: Iterator[dict],
    key: PRNGKeyArray,
    steps: int,
    *,
    on_metrics: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    events: tuple[tuple[int, Callable[[int, TrainState], None]], ...] = (),
    stop: Callable[[int], bool] = lambda step: False,
    max_seconds: float | None = None,
) -> TrainState:
    """Train until `state.step` is `steps`, `stop(step)` is true or the steps of this call took `max_seconds`; return the state.

    `on_metrics(step, metrics)` is called for every step with floats. Step t is read after step t+1 has been sent to the device, so that
    the device never waits for the host. events: pairs (n, run); `run(step, state)` is called after every n-th step and after the last
    one. `state` is donated: do not use it afterwards. Raises NonFiniteError at the first step whose loss or gradient is not finite; that
    step has not changed the parameters.
    """
    step, spent, pending = int(state.step), 0.0, None
    advance, carried, whole = _loop(train_step, state)
    del state  # the first step donates its arrays

    def report(pending):
        if pending is not None:
            numbers = pending[1]
            metrics = numbers.read() if isinstance(numbers, Numbers) else {name: float(value) for name, value in numbers.items()}
            metrics.pop("weight", None)
            if not metrics.pop("finite"):
                got = f"loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}"
                rates = "a lower --optimizer.learning_rate, or lower rates in --optimizer.players"
                hint = f"checkpoints that were saved before are intact; run again with {rates}"
                raise NonFiniteError(f"step {pending[0]}", "a finite loss and gradient", got, hint)
            on_metrics(pending[0], metrics)

    out_of_time = False
    while step < steps and not out_of_time and not stop(step):
        start = time.monotonic()
        carried, metrics = advance(carried, next(batches), key)
        report(pending)
        step, pending = step + 1, (step + 1, metrics)
        spent += time.monotonic() - start
        out_of_time = max_seconds is not None and bool(sharding.first_process_says(spent >= max_seconds))
        due = [run for every, run in events if step % every == 0 or step == steps or out_of_time]
        if due:
            report(pending)
            pending = None
            for run in due:
                run(step, whole(carried))
    report(pending)
    return whole(carried)
