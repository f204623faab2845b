"""Optimizers: those of optax in OPTIMIZERS, with a schedule of the learning rate; one for a model, or one for each of its players.

A player is a submodule of a model that is trained with an optimizer of its own, such as a GAN's generator and discriminator.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from jaxgen.errors import ConfigError, did_you_mean

NOT_DECAYED = ("bias", "gain", "scale", "embedding", "embeddings", "label", "codebook", "positions", "values", "table", "tables", "start")
"""Weight decay is not applied to the parameters in a submodule or attribute with one of these names, or a name that ends in one of them
after an underscore (`hidden_bias`, `label_embedding`), nor to those of fewer than two axes. `labeller` and `upscale` are other names."""


def decayed(params: Any) -> Any:
    """A tree of bools: True for the parameters that weight decay is applied to, by NOT_DECAYED and the number of axes."""

    def one(path, leaf) -> bool:
        names = [str(getattr(part, "key", getattr(part, "name", ""))) for part in path]
        return leaf.ndim >= 2 and not any(name == word or name.endswith(f"_{word}") for name in names for word in NOT_DECAYED)

    return jax.tree_util.tree_map_with_path(one, params)


class Kind(NamedTuple):
    """A function of optax that makes an optimizer, and the fields of `OptimizerConfig` that it takes besides the learning rate."""

    make: Callable[..., optax.GradientTransformation]
    fields: tuple[str, ...]


def muon(learning_rate: optax.Schedule, b1: float, b2: float, weight_decay: float, mask=None) -> optax.GradientTransformation:
    """Muon: W <- W - rate(t) (0.2 sqrt(max(m, n)) U V^T + weight_decay W) for W [m, n], with U S V^T = M_t of the gradients g_0, g_1, ..

        m_t = 0.95 m_{t-1} + 0.05 g_t,   M_t = 0.95 m_t / (1 - 0.95^(t+2)) + 0.05 g_t / (1 - 0.95^(t+1))

    Five Newton-Schulz steps give about U V^T, with singular values of 0.65 to 1.25. With the factor the entries of an update have a root
    mean square of 0.2, about that of Adam's after its first steps, so that rates suited to Adam suit Muon. But an update never gets smaller
    by itself: in many steps at a high rate weights grow, unless there is weight decay.

    Every parameter that weight decay reaches is one matrix, [its other axes, last axis]; also those of input and output layers, which the
    authors leave to Adam, and arrays that hold several matrices (the states of the two branches of the Diagonal BiLSTM, NADE's outputs,
    NVAE's groups). The other parameters and matrices of one row or column are updated by NAdam (Adam with Nesterov's momentum) with b1, b2.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the factor: Liu et al. 2025, "Muon is scalable for LLM
    training".
    """

    def matrices(params):
        def one(leaf, is_weight: bool):
            inputs = np.prod(leaf.shape[:-1])
            axes = tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,)
            return optax.contrib.MuonDimensionNumbers(*axes) if is_weight and min(inputs, leaf.shape[-1]) > 1 else None

        return jax.tree.map(one, params, decayed(params))

    directions = optax.contrib.muon(-1.0, adam_b1=b1, adam_b2=b2, muon_weight_dimension_numbers=matrices, consistent_rms=0.2)
    return optax.chain(directions, optax.add_decayed_weights(weight_decay, mask), optax.scale_by_learning_rate(learning_rate))


OPTIMIZERS = {
    "adamw": Kind(optax.adamw, ("b1", "b2", "weight_decay")),
    "adam": Kind(optax.adam, ("b1", "b2")),
    "adamax": Kind(optax.adamax, ("b1", "b2")),
    "lion": Kind(optax.lion, ("b1", "b2", "weight_decay")),
    "sgd": Kind(optax.sgd, ("momentum",)),
    "rmsprop": Kind(optax.rmsprop, ("momentum",)),
    "adagrad": Kind(optax.adagrad, ()),
    "muon": Kind(muon, ("b1", "b2", "weight_decay")),
}


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer by its name in optax, with a learning rate that depends on the step t = 0, 1, ..

        rate(t) = learning_rate * s(t) * decay_rate ** t,   s(t) = t / warmup_steps for t < warmup_steps, then 1 (constant),
        or (1 + cos(pi (t - warmup_steps) / (steps - warmup_steps))) / 2 (cosine)

    A player is a submodule with a rate and moments of its own: --optimizer.players generator 1e-3 discriminator 2e-3. A model names its own
    players, if any. With --optimizer.every generator 5 the gradients of the other steps are dropped, and t counts a player's own updates.
    Raises ConfigError for a value out of range, and for a field that was set although the optimizer does not take it.
    """

    learning_rate: float = 1e-3  # the factor of rate(t)
    schedule: Literal["constant", "cosine"] = "constant"  # of rate(t) after the warm-up
    warmup_steps: int = 0  # steps over which the rate rises from 0
    decay_rate: float = 1.0  # factor of the rate from one step to the next
    weight_decay: float = 0.0  # for adamw, lion and muon; biases, gains and embeddings have none
    b1: float = 0.9  # for adamw, adam, adamax, lion and muon: decay of the first moment; for matrices muon has 0.95 instead
    b2: float = 0.999  # for adamw, adam, adamax, lion and muon: decay of the second moment, which muon does not keep for matrices
    clip_norm: float | None = 1.0  # gradients with a larger L2 norm (of all of a player's parameters) are scaled down to it; None: no limit
    # (submodule, learning rate) of each player, as in generator 1e-3 discriminator 2e-3; (): learning_rate for all
    players: tuple[tuple[str, float], ...] = ()
    name: Literal["adamw", "adam", "adamax", "lion", "sgd", "rmsprop", "adagrad", "muon"] = "adamw"  # an optimizer of optax
    momentum: float = 0.0  # for sgd and rmsprop
    betas: tuple[tuple[str, float, float], ...] = ()  # (player, b1, b2) of players with others than b1 and b2, as in generator 0.5 0.9
    every: tuple[tuple[str, int], ...] = ()  # (player, n) of a player that is updated at every n-th step only, as in generator 5
    # Submodules that are not trained, and have no moments: encoder, or decoder.layers.0 of those inside.
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        bounds = {"learning_rate": 1e9, "decay_rate": 1, "weight_decay": 1e9, "b1": 1, "b2": 1, "momentum": 1}
        for name, high in bounds.items():
            if not 0 <= getattr(self, name) <= high:
                raise ConfigError(f"optimizer.{name}", f"a number in 0..{high:g}", getattr(self, name))
        if self.warmup_steps < 0:
            raise ConfigError("optimizer.warmup_steps", "0 or more", self.warmup_steps)
        names = [name for name, _ in self.players]
        if len(set(names)) < len(names) or not all(0 <= rate <= 1e9 for _, rate in self.players):
            raise ConfigError("optimizer.players", "pairs of a name, once each, and a learning rate in 0..1e+09", self.players)
        if not all(0 <= b <= 1 for _, *pair in self.betas for b in pair):
            raise ConfigError("optimizer.betas", "a player's name, b1 and b2 in 0..1", self.betas)
        if not all(n >= 1 for _, n in self.every):
            raise ConfigError("optimizer.every", "a player's name and a number of steps, 1 or more", self.every)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError("optimizer.clip_norm", "a positive number or None", self.clip_norm)
        self._check_fields_of_the_optimizer()

    def _check_fields_of_the_optimizer(self) -> None:
        """ConfigError for a field that differs from its default although the optimizer does not take it."""
        if self.name not in OPTIMIZERS:  # the check of types reports it
            return
        defaults = {field.name: field.default for field in fields(self)}
        self.check_given([name for name, default in defaults.items() if getattr(self, name) != default])
        if self.betas and "b1" not in OPTIMIZERS[self.name].fields:
            raise ConfigError("optimizer.betas", "an optimizer that has b1 and b2", self.name)

    def check_given(self, names: Collection[str]) -> None:
        """ConfigError for a field among `names` that the optimizer does not take, also where its value is the default.

        Not for a momentum or weight decay of 0, which every optimizer has: with it the optimizer of a script that has some is changed.
        """
        for name in ("b1", "b2", "momentum", "weight_decay"):
            may_be_none = name in ("momentum", "weight_decay")
            if name in names and not (may_be_none and getattr(self, name) == 0) and name not in OPTIMIZERS[self.name].fields:
                having = ", ".join(other for other, kind in OPTIMIZERS.items() if name in kind.fields)
                hint = f"set {name} to 0" if may_be_none else ""
                raise ConfigError(f"optimizer.{name}", f"an optimizer that has it ({having})", self.name, hint)


def every_nth(inner: optax.GradientTransformation, n: int) -> optax.GradientTransformation:
    """`inner` at steps 0, n, 2n, ..; at the other steps updates are zero, the gradients are dropped and inner's state stays as it is."""
    if n == 1:
        return inner

    def init(params):
        return jnp.int32(0), inner.init(params)

    def update(gradients, state, params=None):
        count, before = state

        def moved():
            return inner.update(gradients, before, params)

        def unmoved():
            return jax.tree.map(jnp.zeros_like, gradients), before

        updates, after = jax.lax.cond(count % n == 0, moved, unmoved)
        return updates, (count + 1, after)

    return optax.GradientTransformation(init, update)


def _one(config: OptimizerConfig, learning_rate: float, steps: int, player: str = "") -> optax.GradientTransformation:
    """The optimizer of a model, or of one of its players. For a player updated at every n-th step the schedule has steps / n steps."""
    n = dict(config.every).get(player, 1)
    schedule = _schedule(config, learning_rate, -(-steps // n))
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm is not None else optax.identity()
    kind = OPTIMIZERS[config.name]
    options = {field: getattr(config, field) for field in kind.fields}
    options |= next(({"b1": b1, "b2": b2} for name, b1, b2 in config.betas if name == player), {})
    options |= {"mask": decayed} if options.get("weight_decay") else {}
    options |= {"momentum": config.momentum or None} if "momentum" in options else {}  # None: optax keeps no trace of gradients
    return every_nth(optax.chain(clip, kind.make(schedule, **options)), n)


def _schedule(config: OptimizerConfig, learning_rate: float, steps: int) -> optax.Schedule:
    """rate(t) of a run of `steps` steps."""
    warmup = config.warmup_steps
    rest = optax.cosine_decay_schedule(learning_rate, max(steps - warmup, 1)) if config.schedule == "cosine" else (lambda t: learning_rate)
    base = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), rest], [warmup]) if warmup else rest

    def schedule(t):
        return base(t) * jnp.float32(config.decay_rate) ** t.astype(jnp.float32)

    return schedule


def learning_rates(config: OptimizerConfig, steps: int, step: int, players: Sequence[str] = ()) -> dict[str, float]:
    """The rate of the update that ends `step` (1, 2, ..): {"learning_rate": 1e-3}, or {"learning_rate_generator": ...} for each player."""
    with jax.numpy_dtype_promotion("standard"):
        rates = jax.device_get(_compiled_rates(config, _counted(config, steps), tuple(players))(np.int32(step)))
    # 0.001, not 0.0010000000474974513: the digits that a float32 has
    return {f"learning_rate_{name}" if name else "learning_rate": float(f"{rate:.7g}") for name, rate in rates.items()}


@cache
def _compiled_rates(config: OptimizerConfig, steps: int, players: tuple[str, ...]) -> Callable:
    """step -> {player: rate}, or {"": rate}, compiled: it is called for every row of metrics, and operation by operation takes 1 ms."""
    rates = dict(config.players) or dict.fromkeys(players, config.learning_rate)
    moving = {name: rate for name, rate in rates.items() if name not in config.frozen} if rates else {"": config.learning_rate}

    def at(step):
        every = dict(config.every)
        return {
            name: _schedule(config, rate, -(-steps // every.get(name, 1)))((step - 1) // every.get(name, 1))
            for name, rate in moving.items()
        }

    return jax.jit(at)


def make_optimizer(config: OptimizerConfig, steps: int, players: tuple[str, ...] = ()) -> optax.GradientTransformation:
    """The optimizer of a configuration for a run of `steps` steps; with players or frozen parts `optax.partition` by submodule.

    players: names of the model's own players, used with `learning_rate` where config.players is empty. Raises ConfigError, when called or
    at `init(params)`, for names that are not submodules and for a submodule with parameters that is neither a player nor frozen.

    For the same numbers it is the same object, for which `training.make_train_step` gives the same compiled step.
    """
    return _made(config, _counted(config, steps), players)


def _counted(config: OptimizerConfig, steps: int) -> int:
    """The number of steps as far as the rates depend on it: with the constant schedule runs of all lengths share one optimizer."""
    return steps if config.schedule == "cosine" else 0


@lru_cache(maxsize=16)
def _made(config: OptimizerConfig, steps: int, players: tuple[str, ...]) -> optax.GradientTransformation:
    rates = dict(config.players) or dict.fromkeys(players, config.learning_rate)
    for field in ("betas", "every"):
        if unknown := sorted({name for name, *_ in getattr(config, field)} - set(rates)):
            raise ConfigError(f"optimizer.{field}", f"players, {sorted(rates)}", unknown)
    if not rates and not config.frozen:
        return _one(config, config.learning_rate, steps)

    def labels(params):
        found = set()

        def label(path, _):
            words = [str(getattr(part, "key", getattr(part, "name", part))) for part in path]
            name, inside = words[0], [".".join(words[:n]) for n in range(1, len(words) + 1)]
            found.update(inside)
            if still := [part for part in inside if part in config.frozen]:
                return "frozen: " + still[0]
            if rates and name not in rates:
                wanted = "a learning rate for every submodule with parameters"
                raise ConfigError("optimizer.players", wanted, sorted(rates), f"add {name!r}")
            return name if rates else "the rest"

        names = jax.tree_util.tree_map_with_path(label, params)
        for field, given in (("players", rates), ("frozen", config.frozen)):
            if unknown := sorted(set(given) - found):
                outer = sorted(name for name in found if "." not in name)
                raise ConfigError(f"optimizer.{field}", f"submodules of the model, {outer}", unknown, did_you_mean(unknown[0], found))
        return names

    each = {name: _one(config, rate, steps, name) for name, rate in rates.items() if name not in config.frozen}
    if not rates:
        each = {"the rest": _one(config, config.learning_rate, steps)}
    return optax.partition(each | {"frozen: " + name: optax.set_to_zero() for name in config.frozen}, labels)
