"""The stack-augmented GRU: its stack is a Python list; enumeration of a tiny language, padding, sampling; the plain GRU within it."""

import dataclasses
import importlib
from math import log
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import with_weights
from flax import nnx
from test_language_model import all_strings

from jaxgen.data.text import decode, encode
from jaxgen.errors import ConfigError
from jaxgen.models import LanguageModel, LanguageModelConfig, StackGRUConfig
from jaxgen.models.stack_gru import move
from jaxgen.sampling import sample_sequence

TINY = StackGRUConfig(length=4, vocabulary=3, width=5, stack_width=2, stack_depth=3, top_k=2)
PUSH, POP, KEEP = range(3)


def moved(controls, values, depth: int):
    """All stacks [T, N, B, W] that controls [T, B, 3] and values [T, B, W] make of an empty one."""
    empty = jnp.zeros((depth, *values.shape[1:]))

    def step(stack, inputs):
        stack = move(stack, *inputs)
        return stack, stack

    return np.asarray(jax.jit(lambda c, v: jax.lax.scan(step, empty, (c, v))[1])(jnp.asarray(controls), jnp.asarray(values)))


def test_hard_controls_are_a_list():
    """1000 random programs, each with its own share of pushes, so that some overflow the stack and some pop what is empty."""
    generator, depth, steps, programs = np.random.default_rng(0), 4, 24, 1000
    shares = generator.dirichlet((1, 1, 0.5), programs)
    actions = np.stack([generator.choice(3, steps, p=share) for share in shares], 1)  # [T, B]
    values = generator.standard_normal((steps, programs, 2), np.float32)
    stacks = moved(np.eye(3, dtype=np.float32)[actions], values, depth)
    overflows = underflows = 0
    for program in range(programs):
        rows = []
        for t in range(steps):
            if actions[t, program] == PUSH:
                overflows += len(rows) == depth
                rows = [values[t, program], *rows][:depth]
            elif actions[t, program] == POP:
                underflows += not rows
                rows = rows[1:]
            wanted = np.zeros((depth, 2), np.float32)
            wanted[: len(rows)] = np.reshape(rows, (-1, 2))
            np.testing.assert_array_equal(stacks[t, :, program], wanted)
    assert overflows > 1000 and underflows > 1000


def test_soft_controls_stay_between_the_pushed_values_and_zero():
    generator = np.random.default_rng(1)
    controls = generator.dirichlet((0.4, 0.3, 0.3), (40, 200)).astype(np.float32)
    values = generator.uniform(1, 2, (40, 200, 1)).astype(np.float32)  # far from the fill: a weight that is lost is seen
    signs = np.sign(generator.standard_normal((1, 200, 1))).astype(np.float32)
    stacks = moved(controls, values * signs, 5) * signs[None]
    highest = np.maximum.accumulate(values, axis=0)[:, None]
    assert (stacks >= 0).all() and (stacks <= highest * (1 + 1e-6)).all() and stacks.max() > 1
    full = moved(np.broadcast_to(np.float32([0.4, 0.0, 0.6]), (60, 1, 3)), np.ones((60, 1, 1), np.float32), 5)
    np.testing.assert_allclose(full[-1], 1, atol=1e-5)  # weights that sum to one: a stack of ones stays one


def tiny(**sizes):
    """Random weights, biases included, that make a language far from uniform."""
    return with_weights(dataclasses.replace(TINY, **sizes))


log_prob = jax.jit(lambda model, tokens: model.log_prob(tokens))


@pytest.mark.parametrize(("push", "stacks"), [("tanh", 1), ("sigmoid", 2)])
def test_the_probabilities_sum_to_one_and_are_those_of_a_loop_over_the_steps(push, stacks):
    model, strings = tiny(push=push, stacks=stacks), all_strings()
    found = log_prob(model, strings)
    np.testing.assert_allclose(np.exp(np.asarray(found, np.float64)).sum(), 1, atol=1e-6)
    weights = {name: np.asarray(leaf[...], np.float64) for name, leaf in nnx.to_flat_state(nnx.state(model)) for name in [".".join(name)]}
    np.testing.assert_allclose(found, by_hand(weights, np.asarray(strings), push, stacks), rtol=1e-5)


def by_hand(w: dict, strings: np.ndarray, push: str, stacks: int) -> list[float]:
    """log p of each string by the equations of the module, one string, one place, one stack and one row at a time, in float64."""
    sigmoid, totals = lambda z: 1 / (1 + np.exp(-z)), []
    for string in strings:
        h, rows, total, previous = np.zeros(5), [[np.zeros(2)] * 3 for _ in range(stacks)], 0.0, 0
        for x in string:
            moves, values = h @ w["controls"] + w["controls_bias"], h @ w["value"] + w["value_bias"]
            for s, stack in enumerate(rows):
                push_, pop, keep = np.exp(z := moves[3 * s : 3 * s + 3]) / np.exp(z).sum()
                value = (np.tanh if push == "tanh" else sigmoid)(values[2 * s : 2 * s + 2])
                above, below = [value, *stack[:-1]], [*stack[1:], np.zeros(2)]
                rows[s] = [push_ * a + pop * b + keep * row for a, b, row in zip(above, below, stack, strict=True)]
            read = [row for stack in rows for row in stack[:2]]
            a = np.concatenate([w["embedding"][previous], *read]) @ np.concatenate([w["gru.inputs"], w["read"]]) + w["gru.input_bias"]
            u = h @ w["gru.state"] + w["gru.state_bias"]
            reset, update = sigmoid(a[:5] + u[:5]), sigmoid(a[5:10] + u[5:10])
            h = update * h + (1 - update) * np.tanh(a[10:] + reset * u[10:])
            logits = h @ w["out"] + w["out_bias"]
            total += logits[x] - log(np.exp(logits).sum())
            if x == 0:
                break
            previous = x
        totals.append(total)
    return totals


def test_longer_rows_change_neither_probability_nor_loss():
    model, longer, strings = tiny(), tiny(length=9), all_strings()[:15]  # those that do not fill their row
    padded = jnp.pad(strings, ((0, 0), (0, 5)))
    np.testing.assert_allclose(log_prob(longer, padded), log_prob(model, strings), rtol=1e-6)
    loss = jax.jit(lambda model, tokens: model.loss({"tokens": tokens}, jax.random.key(0)))
    (short, metrics), (long, padded_metrics) = loss(model, strings), loss(longer, padded)
    np.testing.assert_allclose(long, short, rtol=1e-6)
    assert metrics["weight"] == padded_metrics["weight"] == int((strings != 0).sum()) + 15


def test_without_its_stack_it_is_the_plain_gru():
    model, strings = tiny(), all_strings()
    model.read[...] = jnp.zeros_like(model.read[...])
    plain = with_weights(LanguageModelConfig(length=4, vocabulary=3, width=5))
    for name in ("embedding", "out", "out_bias"):
        getattr(plain, name)[...] = getattr(model, name)[...]
    for name in ("inputs", "input_bias", "state", "state_bias"):
        getattr(plain.layers[0], name)[...] = getattr(model.gru, name)[...]
    np.testing.assert_allclose(log_prob(model, strings), jax.jit(LanguageModel.log_prob)(plain, strings), rtol=1e-6)


def test_cached_and_naive_draws_are_the_same_bits():
    model, key = tiny(), jax.random.key(2)
    drawn = model.sample(key, 50)
    np.testing.assert_array_equal(drawn, sample_sequence(model, key, 50, 4, stop=0, method="naive"))
    assert len(set(map(bytes, np.asarray(drawn)))) > 5


def test_errors(unchecked):
    for wrong in ({"width": 0}, {"stack_width": 0}, {"stack_depth": 0}, {"stacks": 0}, {"top_k": 0}, {"top_k": 21}, {"push": "relu"}):
        with pytest.raises(ConfigError, match=list(wrong)[-1]):
            StackGRUConfig(**wrong)


# --- experiments/counting_languages.py ----------------------------------------------------------------------------------------------


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent))
    return importlib.import_module("experiments.counting_languages")


def test_a_counting_language_is_learnt_and_goes_on_beyond_its_lengths(counting):
    """a^n b^n, learnt from n = 1 .. 6: for n = 7 .. 12 the stack counts, and a plain GRU of as many parameters does not."""
    lines = ["a" * n + "b" * n for n in range(1, 13)]
    tokens = encode(lines, ("a", "b"), 25)
    given = np.arange(25)[None] <= np.arange(1, 13)[:, None]  # a^n b: the rest is determined
    stack = StackGRUConfig(25, 3, ("a", "b"), width=10, stack_width=1, stack_depth=14)
    for config in (stack, counting.plain_of_as_many(stack)):
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
            (model,), _ = counting.trained(config, jnp.asarray(tokens[:6, :13]), 0.3, seeds=(0,), steps=1000)
        found = counting.right(model, tokens)
        likeliest = model.sample(jax.random.key(0), 12, known=(tokens, given), top_k=1)
        if config is stack:
            assert found.all() and counting.right(counting.hardened(model), tokens).all()
            assert decode(likeliest, ("a", "b")) == lines
        else:
            assert found[:6].sum() >= 3 and not found[6:].any()


@pytest.mark.parametrize("stacks", [1, 2])
def test_hard_controls_are_the_largest_of_the_soft_ones(counting, stacks):
    model, hidden = tiny(stacks=stacks), jnp.asarray(np.random.default_rng(0).standard_normal((50, 5), np.float32))
    (soft, value), (hard, same) = (one.stack_moves(hidden) for one in (model, counting.hardened(model)))
    clear = np.diff(np.sort(soft, axis=-1))[..., -1] > 0.01
    np.testing.assert_allclose(hard[clear], np.eye(3)[np.argmax(soft, axis=-1)][clear], atol=1e-3)
    np.testing.assert_array_equal(value, same)
    assert clear.mean() > 0.9


class Told(nnx.Module):
    """A model whose likeliest tokens are told."""

    def __init__(self, tokens):
        self.table = nnx.Param(jax.nn.one_hot(tokens, 3))

    def logits(self, tokens):
        return self.table[...]


def test_a_string_is_right_if_all_after_its_first_b_is(counting):
    tokens = np.array([[1, 2, 0, 0, 0], [1, 1, 2, 2, 0]])
    determined = np.array([[0, 0, 1, 0, 0], [0, 0, 0, 1, 1]], bool)  # neither the first b nor what stands after the stop token
    assert counting.right(Told(tokens), tokens).all()
    for place in range(5):
        wrong = tokens.copy()
        wrong[:, place] = (wrong[:, place] + 1) % 3
        np.testing.assert_array_equal(counting.right(Told(wrong), tokens), ~determined[:, place])


def test_noise_on_the_state_is_none_on_the_stack(counting):
    """Without noise the loss is the model's; with it the state alone is disturbed, h by h."""
    model, strings, key = tiny(stacks=2), all_strings()[:15], jax.random.key(4)
    losses = [float(jax.jit(counting.noisy_loss)(model, strings, key, noise)) for noise in (0.0, 0.5)]
    np.testing.assert_allclose(losses[0], jax.jit(lambda model: model.loss({"tokens": strings}, key)[0])(model), rtol=1e-5)
    assert abs(losses[1] - losses[0]) > 1e-3
    disturbances = 0.5 * jax.random.normal(key, (4, len(strings), 5))
    cache, previous, total = model.init_cache(len(strings)), jnp.zeros(len(strings), jnp.uint8), 0.0
    step = jax.jit(model.step)
    for i in range(4):
        cache, logits = step(cache, previous, jnp.int32(i))
        cache, previous = cache._replace(hidden=cache.hidden + disturbances[i]), strings[:, i]
        counted = i <= (strings != 0).sum(1)
        total -= jnp.where(counted, jax.nn.log_softmax(logits)[jnp.arange(len(strings)), previous], 0).sum() / log(2)
    np.testing.assert_allclose(losses[1], float(total) / (int((strings != 0).sum()) + len(strings)), rtol=1e-5)
