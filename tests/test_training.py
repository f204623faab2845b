"""The train step and the loop, against Adam and moving averages written out in numpy."""

import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.processes.interruption import Interruption
from jaxgen.sharding import make_mesh
from jaxgen.training import (
    OptimizerConfig,
    TrainConfig,
    TrainState,
    ema_model,
    fit,
    init_state,
    make_optimizer,
    make_train_step,
)

KEY = jax.random.key(0)


class Line(nnx.Module):
    """y = x weight + bias; the loss is the mean squared error, its gradient easy to write down."""

    def __init__(self):
        self.weight = nnx.Param(jnp.array([[0.5], [-1.0], [2.0]]))  # a matrix: weight decay leaves vectors alone
        self.bias = nnx.Param(jnp.zeros(()))

    def loss(self, batch, key):
        error = batch["x"] @ self.weight[..., 0] + self.bias[...] - batch["y"]
        return (error**2).mean(), {"largest": jnp.abs(error).max()}


def batches(n: int, seed: int = 0) -> list[dict]:
    """Regression problems of eight rows."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((8, 3)).astype(np.float32), "y": rng.standard_normal(8).astype(np.float32)} for _ in range(n)]


def start(model=None, config: OptimizerConfig | None = None, steps: int = 10, ema_decay: float = 0.999, accumulate: int = 1):
    """(state, step) of a model on one device."""
    optimizer, mesh = make_optimizer(config or OptimizerConfig(), steps), make_mesh()
    return init_state(model or Line(), optimizer, mesh), make_train_step(optimizer, mesh, ema_decay, accumulate)


def bits(tree) -> list[np.ndarray]:
    """A copy of every array; the step donates the originals."""
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def same(one, two) -> bool:
    """Whether two trees of arrays are equal bit for bit."""
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def learning_rate(config: OptimizerConfig, t: int, steps: int) -> float:
    """The schedule in words: linear from 0, then constant or half a cosine to 0, times decay_rate ** t."""
    warmup, rate = config.warmup_steps, config.learning_rate
    if t < warmup:
        rate *= t / warmup
    elif config.schedule == "cosine":
        rate *= 0.5 * (1 + np.cos(np.pi * min((t - warmup) / (steps - warmup), 1)))
    return rate * config.decay_rate**t


def numpy_adam(config: OptimizerConfig, data: list[dict], steps: int):
    """Parameters (weight, bias) after every step: AdamW of the clipped gradient, in float64."""
    p, m, v = np.array([0.5, -1.0, 2.0, 0.0]), np.zeros(4), np.zeros(4)
    for t, batch in enumerate(data):
        x = np.concatenate([batch["x"], np.ones((8, 1))], axis=1).astype(np.float64)
        g = 2 * x.T @ (x @ p - batch["y"]) / 8
        norm = np.sqrt((g**2).sum())
        g = g * min(1, config.clip_norm / norm) if config.clip_norm else g
        m, v = config.b1 * m + (1 - config.b1) * g, config.b2 * v + (1 - config.b2) * g**2
        direction = (m / (1 - config.b1 ** (t + 1))) / (np.sqrt(v / (1 - config.b2 ** (t + 1))) + 1e-8)
        p = p - learning_rate(config, t, steps) * (direction + config.weight_decay * p * [1, 1, 1, 0])  # the bias is not decayed
        yield p, norm


CONFIGS = {
    "default": OptimizerConfig(learning_rate=0.1),
    "no clipping, weight decay": OptimizerConfig(learning_rate=0.1, clip_norm=None, weight_decay=0.3, b1=0.5, b2=0.9),
    "warm-up, constant": OptimizerConfig(learning_rate=0.1, warmup_steps=3, decay_rate=0.8),
    "warm-up, cosine": OptimizerConfig(learning_rate=0.1, warmup_steps=2, schedule="cosine", clip_norm=0.5),
    "cosine": OptimizerConfig(learning_rate=0.1, schedule="cosine"),
}


@pytest.mark.parametrize("accumulate", [1, 2, 8])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_step_is_adam_of_the_clipped_gradient_and_the_average_warms_up(config, accumulate):
    steps, ema_decay = 7, 0.3
    state, step = start(config=config, steps=steps, ema_decay=ema_decay, accumulate=accumulate)
    average = np.array([0.5, -1.0, 2.0, 0.0])
    for t, (batch, (expected, norm)) in enumerate(zip(batches(steps), numpy_adam(config, batches(steps), steps), strict=True)):
        state, metrics = step(state, batch, KEY)
        np.testing.assert_allclose([*state.model.weight[..., 0], state.model.bias[...]], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
        decay = min(ema_decay, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * expected
        model = ema_model(state)
        np.testing.assert_allclose([*model.weight[..., 0], model.bias[...]], average, rtol=0, atol=1e-5)
        assert metrics["finite"] == 1 and metrics["largest"] > 0 and state.step == t + 1
    moving = not np.allclose(average, expected, atol=1e-4)
    assert moving, "the average lags behind the parameters"


class Noisy(nnx.Module):
    """A loss that is its noise: shows which key the step used."""

    def __init__(self):
        self.weight = nnx.Param(jnp.ones(()))

    def loss(self, batch, key):
        return self.weight[...] * jax.random.normal(key), {}


def test_the_key_of_a_step_is_folded_in_and_a_resumed_run_draws_the_same():
    state, step = start(Noisy(), OptimizerConfig(learning_rate=0.0))
    losses = []
    for t in range(4):
        state, metrics = step(state, {}, KEY)
        losses.append(float(metrics["loss"]))
        assert losses[-1] == float(jax.random.normal(jax.random.fold_in(KEY, t)))
    assert len(set(losses)) == 4


class Root(nnx.Module):
    """loss = sqrt(|x| weight): at x = 0 the loss is finite and the gradient is not."""

    def __init__(self):
        self.weight = nnx.Param(jnp.ones(3))

    def loss(self, batch, key):
        return jnp.sqrt(batch["x"] * self.weight[...]).sum(), {}


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -1.0], ids=["gradient only", "nan", "inf", "sqrt of -1"])
def test_a_step_that_is_not_finite_is_not_applied(bad):
    state, step = start(Root(), OptimizerConfig(learning_rate=0.1, weight_decay=0.1))
    good = {"x": np.ones(3, np.float32)}
    state, metrics = step(state, good, KEY)
    before = bits((state.model, state.opt_state, state.ema))
    state, metrics = step(state, {"x": np.float32([1, bad, 1])}, KEY)
    assert metrics["finite"] == 0 and state.step == 2
    assert same(before, bits((state.model, state.opt_state, state.ema)))
    state, metrics = step(state, good, KEY)
    assert metrics["finite"] == 1 and not same(before, bits((state.model, state.opt_state, state.ema)))


def test_fit_names_the_first_step_that_is_not_finite_and_no_event_sees_it():
    state, step = start(Root())
    data = [{"x": np.ones(3, np.float32)} for _ in range(8)]
    data[4] = {"x": np.float32([1, np.nan, 1])}
    seen, reported = [], []
    with pytest.raises(NonFiniteError, match="^step 5: wanted a finite loss and gradient, got loss nan") as error:
        fit(state, step, iter(data), KEY, 8, on_metrics=lambda t, _: reported.append(t), events=((5, lambda t, _: seen.append(t)),))
    assert error.value.exit_code == 5 and reported == [1, 2, 3, 4] and seen == []


class Players(nnx.Module):
    """Two players with parameters of their own in one loss whose gradients do not mix."""

    def __init__(self):
        self.generator, self.discriminator = Line(), Line()

    def loss(self, batch, key):
        one, two = self.generator.loss(batch, key)[0], self.discriminator.loss(batch, key)[0]
        return one + 3 * two, {}


def test_every_player_has_an_optimizer_of_its_own():
    rates = {"generator": 0.1, "discriminator": 0.02}
    state, step = start(Players(), OptimizerConfig(clip_norm=None, players=tuple(rates.items())))
    alone = {name: start(config=OptimizerConfig(learning_rate=rate, clip_norm=None)) for name, rate in rates.items()}
    for batch in batches(4):
        state, _ = step(state, batch, KEY)
        for name, (other, other_step) in alone.items():
            alone[name] = other_step(other, batch, KEY)[0], other_step
    # Adam does not see the factor 3 of the second loss, up to its epsilon.
    np.testing.assert_array_equal(state.model.generator.weight[...], alone["generator"][0].model.weight[...])
    np.testing.assert_allclose(state.model.discriminator.weight[...], alone["discriminator"][0].model.weight[...], rtol=1e-5)


def test_a_player_that_rests_keeps_every_bit():
    state, step = start(Players(), OptimizerConfig(players=(("generator", 0.1), ("discriminator", 0.0))))
    before = bits((state.model.discriminator, state.model.generator))
    for batch in batches(3):
        state, _ = step(state, batch, KEY)
    after = bits((state.model.discriminator, state.model.generator))
    assert same(before[:2], after[:2]) and not same(before[2:], after[2:])


def test_a_player_without_learning_rate_is_an_error():
    with pytest.raises(ConfigError, match="^optimizer.players: .*add 'discriminator'$"):
        start(Players(), OptimizerConfig(players=(("generator", 0.1),)))
    three = (("generator", 0.1), ("discriminator", 0.1), ("critic", 0.1))
    with pytest.raises(ConfigError, match=r"^optimizer.players: wanted submodules of the model, \[.*\], got \['critic'\]$"):
        start(Players(), OptimizerConfig(players=three))


@pytest.mark.parametrize("players", [(("a", 0.1), ("a", 0.2)), (("a", -0.1),), (("a", float("nan")),)], ids=["twice", "negative", "nan"])
def test_bad_rates_of_players_are_one_line(players):
    with pytest.raises(ConfigError, match=r"^optimizer.players: wanted pairs of a name, once each, and a learning rate in [^\n]+$"):
        OptimizerConfig(players=players)


def test_the_step_moves_nothing_between_host_and_device():
    state, step = start()
    batch = jax.device_put(batches(1)[0])
    state, _ = step(state, batch, KEY)
    with jax.transfer_guard("disallow"):
        state, _ = step(state, batch, KEY)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"), jax.transfer_guard("disallow"):
        step(state, batches(1)[0], KEY)


class Clock:
    """A stand-in for the train step of `fit`: what ran, in which order."""

    def __init__(self, step: int = 0):
        self.state, self.log = TrainState(step, None, None, None), []

    def train(self, state, batch, key):
        self.log.append(f"train {batch}")
        return state, {"finite": 1.0, "loss": float(batch)}

    def run(self, steps, **arguments):
        def on_metrics(t, metrics):
            self.log.append(f"metrics {t} {metrics['loss']:g}")

        fit(self.state, self.train, iter(range(1, 100)), KEY, steps, on_metrics=on_metrics, **arguments)
        return self.log


def test_metrics_come_one_step_late_and_before_the_events_of_their_step():
    clock = Clock()
    log = clock.run(5, events=((2, lambda t, _: clock.log.append(f"event {t}")),))
    assert log == [
        *("train 1", "train 2", "metrics 1 1", "metrics 2 2", "event 2", "train 3", "train 4", "metrics 3 3", "metrics 4 4", "event 4"),
        *("train 5", "metrics 5 5", "event 5"),
    ]


def test_fit_starts_at_the_step_of_the_state():
    clock = Clock(step=3)
    assert clock.run(5) == ["train 1", "train 2", "metrics 4 1", "metrics 5 2"]
    assert clock.run(3)[4:] == []


def test_fit_stops_when_asked_and_reports_every_finished_step():
    clock = Clock()
    assert clock.run(9, stop=lambda step: step == 2) == ["train 1", "train 2", "metrics 1 1", "metrics 2 2"]


def test_fit_stops_after_max_seconds_with_the_events_of_the_last_step():
    clock = Clock()
    log = clock.run(9, max_seconds=1e-9, events=((5, lambda t, _: clock.log.append(f"event {t}")),))
    assert log == ["train 1", "metrics 1 1", "event 1"]


SIGNALS = """
import time
from jaxgen.processes.interruption import Interruption
for phase in ("SIGTERM", "SIGINT", "twice"):
    with Interruption() as interrupted:
        print(phase, "ready", flush=True)
        while not interrupted(0):
            time.sleep(0.01)
        print(phase, "stops with", interrupted.signal, flush=True)
        if phase == "twice":
            time.sleep(60)
"""


def test_signals_ask_the_loop_to_stop_and_a_second_ctrl_c_stops_at_once():
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", SIGNALS], stdout=pipe, stderr=pipe, text=True)
    for phase, number in [("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT), ("twice", signal.SIGINT)]:
        assert process.stdout.readline() == f"{phase} ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"{phase} stops with {int(number)}\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (1, -signal.SIGINT) and errors.rstrip().endswith("KeyboardInterrupt")


def test_the_handlers_that_were_there_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interruption() as interrupted:
        assert signal.getsignal(signal.SIGTERM) == interrupted._handle
        assert not interrupted(1)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


BAD = [
    (OptimizerConfig, "optimizer.learning_rate", {"learning_rate": -1.0}),
    (OptimizerConfig, "optimizer.learning_rate", {"learning_rate": float("nan")}),
    (OptimizerConfig, "optimizer.decay_rate", {"decay_rate": 1.5}),
    (OptimizerConfig, "optimizer.b1", {"b1": 1.5}),
    (OptimizerConfig, "optimizer.warmup_steps", {"warmup_steps": -1}),
    (OptimizerConfig, "optimizer.clip_norm", {"clip_norm": 0.0}),
    (TrainConfig, "train.steps", {"steps": 0}),
    (TrainConfig, "train.batch_size", {"batch_size": -4}),
    (TrainConfig, "train.ema_decay", {"ema_decay": 1.0}),
    (TrainConfig, "train.seed", {"seed": -1}),
    (TrainConfig, "train.max_minutes", {"max_minutes": 0.0}),
]


@pytest.mark.parametrize(("config", "name", "fields"), BAD, ids=[name for _, name, _ in BAD])
def test_a_bad_field_is_one_line_that_names_it(config, name, fields):
    with pytest.raises(ConfigError, match=rf"^{name}: wanted [^\n]+, got [^\n]+$"):
        config(**fields)
