"""What a loss hands to `after_update`, and means over something else than rows: one part, many parts and the loop give the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_training import KEY, Line, batches, bits, same, start

from jaxgen.errors import ConfigError
from jaxgen.statistics import Statistic
from jaxgen.training import OptimizerConfig, ema_model, fit


class Average(nnx.Variable):
    """Not trained by gradients."""


class Codebook(Line):
    """A model with variables that `after_update` advances from what the loss computed."""

    def __init__(self):
        super().__init__()
        self.mean = Average(jnp.zeros(3))
        self.seen = Average(jnp.int32(0))
        self.first = Average(jnp.zeros(3))

    def loss(self, batch, key):
        statistics = {
            "mean": Statistic(batch["x"].mean(0), "mean"),
            "count": Statistic(jnp.int32(len(batch["x"])), "sum"),
            "first": Statistic(batch["x"][0], "first"),
        }
        return *super().loss(batch, key), statistics

    def after_update(self, statistics, key):
        graph, rest = nnx.split(self)
        rest["mean"] = rest["mean"].replace(0.5 * self.mean[...] + 0.5 * statistics["mean"])
        rest["seen"] = rest["seen"].replace(self.seen[...] + statistics["count"])
        rest["first"] = rest["first"].replace(statistics["first"])
        return nnx.merge(graph, rest)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_after_update_advances_the_other_variables_unless_the_step_was_refused(accumulate):
    state, step = start(Codebook(), OptimizerConfig(learning_rate=0.1), accumulate=accumulate)
    plain, plain_step = start(Line(), OptimizerConfig(learning_rate=0.1), accumulate=accumulate)
    mean = np.zeros(3, np.float32)
    for batch in batches(3):
        state, _ = step(state, batch, KEY)
        plain, _ = plain_step(plain, batch, KEY)
        mean = 0.5 * mean + 0.5 * batch["x"].mean(0)
        np.testing.assert_array_equal(state.model.first[...], batch["x"][0])
    np.testing.assert_allclose(state.model.mean[...], mean, rtol=1e-6)
    np.testing.assert_array_equal(state.model.weight[...], plain.model.weight[...])
    np.testing.assert_allclose(ema_model(state).mean[...], mean, rtol=1e-6)
    assert state.model.seen[...] == 24
    state, metrics = step(state, {**batches(1)[0], "y": np.full(8, np.nan, np.float32)}, KEY)
    assert metrics["finite"] == 0 and state.model.seen[...] == 24


class Clipped(Line):
    """Clips its weights after every update, as the critic of a Wasserstein GAN does."""

    def after_update(self, statistics, key):
        graph, rest = nnx.split(self)
        return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.clip(leaf, -0.125, 0.125), rest))


def test_the_average_is_of_the_parameters_after_the_update_of_the_model():
    state, step = start(Clipped(), OptimizerConfig(learning_rate=0.1), ema_decay=0.0)
    for batch in batches(2):
        state, _ = step(state, batch, KEY)
        for average, weight in zip(bits(ema_model(state)), bits(state.model), strict=True):
            np.testing.assert_allclose(average, weight, atol=1e-6)
    assert float(jnp.abs(state.model.weight[...]).max()) == 0.125


class Draws(nnx.Module):
    """Its loss and its update both draw."""

    def __init__(self):
        self.weight, self.noise = nnx.Param(jnp.ones(())), Average(jnp.zeros(()))

    def loss(self, batch, key):
        return self.weight[...] * jax.random.normal(key), {}, {}

    def after_update(self, statistics, key):
        graph, rest = nnx.split(self)
        rest["noise"] = rest["noise"].replace(jax.random.normal(key))
        return nnx.merge(graph, rest)


def test_the_loss_and_the_update_draw_from_keys_of_their_own():
    state, step = start(Draws(), OptimizerConfig(learning_rate=0.0))
    state, metrics = step(state, {}, KEY)
    ours, theirs = jax.random.split(jax.random.fold_in(KEY, 0))
    assert metrics["loss"] == jax.random.normal(ours) and state.model.noise[...] == jax.random.normal(theirs)


class Masked(Line):
    """The mean squared error over the tokens of rows of different lengths: x is [B, T, 3], y [B, T], mask [B, T]."""

    def __init__(self):
        super().__init__()
        self.mean = Average(jnp.zeros(()))

    def loss(self, batch, key):
        error = jnp.where(batch["mask"], batch["x"] @ self.weight[..., 0] + self.bias[...] - batch["y"], 0)
        count = batch["mask"].sum()
        per_token = lambda x: x.sum() / count.astype(jnp.float32)  # noqa: E731
        metrics = {"absolute": per_token(jnp.abs(error)), "weight": count}
        return per_token(error**2), metrics, {"absolute": Statistic(metrics["absolute"], "mean")}

    def after_update(self, statistics, key):
        graph, rest = nnx.split(self)
        rest["mean"] = rest["mean"].replace(statistics["absolute"])
        return nnx.merge(graph, rest)


def masked(lengths: list[int]) -> dict:
    """Rows of up to 5 tokens; what the mask leaves out would change every number."""
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((8, 5, 3)).astype(np.float32), rng.standard_normal((8, 5)).astype(np.float32)
    mask = np.arange(5) < np.array(lengths)[:, None]
    return {"x": x, "y": np.where(mask, y, 1e6).astype(np.float32), "mask": mask}


@pytest.mark.parametrize("lengths", [[1, 5, 2, 4, 3, 1, 1, 5], [0, 5, 0, 1, 0, 2, 0, 1]], ids=["uneven", "parts without a token"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_mean_over_tokens_is_the_same_in_one_part_and_in_many(lengths, accumulate):
    config, batch = OptimizerConfig(learning_rate=0.1, clip_norm=None), masked(lengths)
    one, many = start(Masked(), config), start(Masked(), config, accumulate=accumulate)
    for _ in range(3):
        (state, whole), (other, parts) = one[1](one[0], batch, KEY), many[1](many[0], batch, KEY)
        one, many = (state, one[1]), (other, many[1])
        assert parts["weight"] == whole["weight"] == sum(lengths)
        for name in ("loss", "absolute", "gradient_norm"):
            np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5)
        np.testing.assert_allclose(other.model.weight[...], state.model.weight[...], rtol=1e-5)
        np.testing.assert_allclose(other.model.mean[...], state.model.mean[...], rtol=1e-5)


def test_fit_reports_no_weight_and_goes_the_way_of_the_plain_step():
    """The loop works on flat arrays: same bits as calling the step."""
    seen = []
    state, step = start(Masked())
    state = fit(state, step, iter([masked([3] * 8)] * 4), KEY, 4, on_metrics=lambda t, metrics: seen.append(metrics))
    plain, _ = start(Masked())
    for numbers in seen:
        plain, metrics = step(plain, masked([3] * 8), KEY)
        assert numbers == {name: float(metrics[name]) for name in ("absolute", "loss", "gradient_norm")}
    assert len(seen) == 4 and jax.tree.structure(state) == jax.tree.structure(plain) and same(bits(state), bits(plain))


class Plain(Codebook):
    """Its statistics do not say how they are joined."""

    def loss(self, batch, key):
        return *Line.loss(self, batch, key), {"mean": batch["x"].mean(0)}


class Counted(Line):
    """The weight and a metric are numbers of Python."""

    def loss(self, batch, key):
        value, metrics = super().loss(batch, key)
        return value, {**metrics, "weight": len(batch["x"]), "third": 1 / 3}


def test_metrics_may_be_numbers_of_python():
    (one, step), (many, in_parts) = (start(Counted(), accumulate=accumulate) for accumulate in (1, 4))
    (_, whole), (_, parts) = step(one, batches(1)[0], KEY), in_parts(many, batches(1)[0], KEY)
    assert whole["weight"] == parts["weight"] == 8
    np.testing.assert_allclose([parts[name] for name in ("loss", "third")], [whole["loss"], 1 / 3], rtol=1e-6)


WRONG = {
    "a loss alone": (lambda loss, x: loss, r"^what the model's loss returns: wanted \(loss, metrics\) or .*, got "),
    "no metrics": (lambda loss, x: (loss, loss), r"^what the model's loss returns: wanted .* with a dict of metrics, got tuple"),
    "a loss for every row": (
        lambda loss, x: (loss + x[:, 0], {}),
        r"^the loss, which the model's loss returns: wanted a single number, got shape \[8\]",
    ),
    "a metric for every row": (
        lambda loss, x: (loss, {"each": x[:, 0]}),
        r"^each, which the model's loss returns: wanted a single number, got shape \[8\]",
    ),
}


@pytest.mark.parametrize("returned, message", WRONG.values(), ids=WRONG)
def test_a_loss_that_returns_something_else_is_one_line(returned, message):
    class Wrong(Line):
        def loss(self, batch, key):
            return returned(super().loss(batch, key)[0], batch["x"])

    state, step = start(Wrong())
    with pytest.raises(ConfigError, match=message):
        step(state, batches(1)[0], KEY)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_statistic_without_a_rule_is_one_line(accumulate):
    state, step = start(Plain(), accumulate=accumulate)
    with pytest.raises(
        ConfigError, match=r"^statistics of the loss: wanted a tree of Statistic\(value, join\), got an array without a rule"
    ):
        step(state, batches(1)[0], KEY)
