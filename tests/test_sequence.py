"""The sequence core: drawn, known, stopped and driven from the host, on models small enough to enumerate or to write down."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import chisquare

from jaxgen.distributions import Categorical, keep_likeliest, keep_nucleus
from jaxgen.errors import ConfigError
from jaxgen.sampling import SequenceSteps, draw_place, sample_sequence

KEY = jax.random.key(0)


class Chain(nnx.Module):
    """logits_i = table[sum of all values before i, the start included]: depends on the whole past, through one number in its cache."""

    def __init__(self, vocabulary=3, seed=0, places=8):
        self.head = Categorical(vocabulary)
        self.table = nnx.Param(jax.random.normal(jax.random.key(seed), (vocabulary * places, vocabulary)))

    def init_cache(self, n, start=None):
        return jnp.zeros((n,), jnp.int32) if start is None else start

    def step(self, cache, previous, i):
        cache = cache + previous.astype(jnp.int32)
        return cache, self.table[...][cache]

    def logits(self, x, start=None):
        before = jnp.cumsum(x.astype(jnp.int32), axis=1) - x.astype(jnp.int32)
        return self.table[...][before + (jnp.zeros_like(before) if start is None else start[:, None])]


class Walk(nnx.Module):
    """x_i = 0.9 x_{i-1} + noise: AR(1), real numbers."""

    class head:
        """Parameters [B] are means, the deviation is the temperature."""

        dtype = jnp.float32

        @staticmethod
        def noise(key, shape):
            return jax.random.normal(key, shape)

        @staticmethod
        def sample(parameters, noise, temperature=1.0):
            return parameters + temperature * noise

    def init_cache(self, n):
        return ()

    def step(self, cache, previous, i):
        return cache, 0.9 * previous


def draws(model, n=4, length=6, key=KEY, **more):
    return np.asarray(sample_sequence(model, key, n, length, **more))


OPTIONS = [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.6, "temperature": 0.8}, {"stop": 0}, {"given": {"start": jnp.arange(4)}}]


@pytest.mark.parametrize("more", OPTIONS, ids=str)
def test_naive_and_cached_draw_the_same(more):
    known = jnp.array([2, 0, 0, 1, 0, 0]), jnp.array([True, False, False, True, False, False])
    for kept in (None, known):
        cached = draws(Chain(), known=kept, **more)
        np.testing.assert_array_equal(cached, draws(Chain(), known=kept, method="naive", **more))
        assert cached.dtype == np.uint8 and cached.shape == (4, 6)


def test_draws_have_the_frequencies_of_the_chain_rule_with_a_stop_token():
    model, table, n = Chain(), np.asarray(Chain().table[...], np.float64), 20_000
    conditional = np.exp(table) / np.exp(table).sum(-1, keepdims=True)
    chance = np.zeros((3, 3, 3))
    for x in product(range(3), repeat=3):
        p = 1.0
        for i in range(3):
            stopped = 0 in x[:i]
            p *= float(x[i] == 0) if stopped else conditional[sum(x[:i]), x[i]]
        chance[x] = p
    assert chance.sum() == pytest.approx(1)
    x = draws(model, n, 3, stop=0)
    counts = np.zeros((3, 3, 3))
    np.add.at(counts, tuple(x.T), 1)
    assert not counts[chance == 0].any(), "a value after the stop token"
    assert chisquare(counts[chance > 0], chance[chance > 0] * n).pvalue > 1e-4


@pytest.mark.parametrize("stop", [0, 2])
def test_after_the_stop_token_there_is_only_0_known_or_not(stop):
    known = jnp.full((64, 8), 1), jnp.zeros((64, 8), bool).at[:, 5:].set(True)
    free, x = draws(Chain(), 64, 8, known=known), draws(Chain(), 64, 8, known=known, stop=stop)
    ended = np.cumsum(free == stop, axis=1) - (free == stop) > 0
    assert ended[:, :5].any() and not ended.all()
    np.testing.assert_array_equal(x, np.where(ended, 0, free))


def test_drawing_ends_when_every_sequence_has_ended():
    class Counting(Chain):
        def step(self, cache, previous, i):
            jax.debug.callback(lambda i: places.append(int(i)), i)
            return super().step(cache, previous, i)

    places = []
    known = jnp.array([1, 1, 0, 0, 0, 0]), jnp.array([True] * 3 + [False] * 3)
    assert draws(Counting(), known=known, stop=0).tolist() == [[1, 1, 0, 0, 0, 0]] * 4
    jax.effects_barrier()
    assert sorted(places) == [0, 1, 2]


def test_known_places_stay_and_those_before_them_are_not_changed():
    free, values = draws(Chain()), np.random.default_rng(0).integers(0, 3, (4, 6))
    mask = np.random.default_rng(1).random((4, 6)) < 0.4
    x = draws(Chain(), known=(values, mask))
    np.testing.assert_array_equal(x[mask], values[mask])
    first = mask.argmax(1)
    for row in range(4):
        np.testing.assert_array_equal(x[row, : first[row]], free[row, : first[row]])
    np.testing.assert_array_equal(draws(Chain(), known=(x, np.ones((4, 6), bool)), key=jax.random.key(5)), x)
    np.testing.assert_array_equal(draws(Chain(), known=(values[0], mask[0])), draws(Chain(), known=(values[:1].repeat(4, 0), mask[0])))


def test_top_k_leaves_the_likeliest_and_their_proportions():
    logits = jnp.array([[0.5, 2.0, 2.0, -1.0, 2.0], [3.0, 1.0, 4.0, 1.0, 5.0]])
    assert np.isfinite(keep_likeliest(logits, 2)).tolist() == [[False, True, True, False, False], [False, False, True, False, True]]
    for k in (5, 9, None):
        np.testing.assert_array_equal(keep_likeliest(logits, k), logits)
    model = Chain(vocabulary=4)
    x, table = draws(model, 4000, 1, top_k=2)[:, 0], np.asarray(model.table[...], np.float64)[0]
    best = np.sort(np.argsort(table)[-2:])
    assert sorted(set(x)) == best.tolist()
    ratio = np.exp(table[best]) / np.exp(table[best]).sum()
    assert chisquare(np.bincount(x, minlength=4)[best], ratio * 4000).pvalue > 1e-4
    np.testing.assert_array_equal(draws(model, top_k=1)[:, 0], table.argmax())


def nucleus(logits, p: float, temperature: float) -> list[bool]:
    """Which values of one place are in the nucleus, value by value in float64."""
    chance = np.exp(np.asarray(logits, np.float64) / temperature)
    chance, inside, total = chance / chance.sum(), [False] * len(chance), 0.0
    for value in sorted(range(len(chance)), key=lambda value: (-chance[value], value)):
        if total >= p:
            break
        inside[value], total = True, total + chance[value]
    return inside


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("p", [1e-6, 0.3, 0.77, 0.95])
def test_the_nucleus_is_the_fewest_likeliest_values_that_sum_to_p(p, temperature):
    logits = np.random.default_rng(0).standard_normal((40, 9)).astype(np.float32)
    logits[:5, 3] = logits[:5].max(1)  # equal ones: the first counts as the likelier
    kept = keep_nucleus(jnp.asarray(logits), jnp.float32(p), temperature)
    np.testing.assert_array_equal(np.isfinite(kept), [nucleus(row, p, temperature) for row in logits])
    np.testing.assert_array_equal(np.asarray(kept)[np.isfinite(kept)], logits[np.isfinite(kept)])


def test_top_p_draws_from_the_nucleus_in_its_proportions_after_top_k():
    logits = jnp.array([[-40.0, 3.0, 0.0]])
    for p in (1, 1.0, None):
        np.testing.assert_array_equal(keep_nucleus(logits, p), logits)
    model = Chain(vocabulary=5)
    table = np.asarray(model.table[...], np.float64)[0]
    for more in ({}, {"top_k": 3}):
        of_k = np.where(np.arange(5)[table.argsort()[::-1].argsort()] < more.get("top_k", 5), table, -np.inf)
        inside = np.array(nucleus(of_k, 0.8, 1.0))
        chance = np.where(inside, np.exp(of_k), 0) / np.exp(of_k[inside]).sum()
        counts = np.bincount(draws(model, 4000, 1, top_p=0.8, **more)[:, 0], minlength=5)
        assert 1 < inside.sum() < 5 and not counts[~inside].any()
        assert chisquare(counts[inside], chance[inside] * 4000).pvalue > 1e-4
    steps = SequenceSteps(model, KEY, 4, top_p=0.5)
    np.testing.assert_array_equal(steps.step()[1], draws(model, top_p=0.5)[:, 0])


def test_steps_from_the_host_draw_what_the_loop_draws_and_take_forced_values():
    model, start = Chain(), jnp.arange(4)
    x = draws(model, given={"start": start}, temperature=0.7)
    steps, value = SequenceSteps(model, KEY, 4, temperature=0.7, start=start), None
    for i in range(6):
        assert steps.place == i
        parameters, value = steps.step(value)
        np.testing.assert_array_equal(value, x[:, i])
    forced = jnp.array([[2, 1, 0], [0, 0, 1], [1, 1, 1], [2, 2, 2]])
    steps, full = SequenceSteps(model, KEY, 4), model.logits(forced)
    for i in range(3):
        parameters, _ = steps.step(forced[:, i - 1] if i else None)
        np.testing.assert_allclose(parameters, full[:, i], rtol=1e-6)


def test_more_than_256_values_and_real_numbers_are_drawn():
    wide = Chain(vocabulary=300, places=4)
    x = draws(wide, 50, 4)
    assert x.dtype == np.uint16 and x.max() > 255
    np.testing.assert_array_equal(x, draws(wide, 50, 4, method="naive"))
    x = draws(Walk(), 20_000, 3)
    assert x.dtype == np.float32
    variance = [1, 1 + 0.81, 1 + 0.81 + 0.81**2]
    np.testing.assert_allclose(x.var(0), variance, rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(x.T)[0, 1], 0.9 / np.sqrt(1.81), atol=0.02)
    kept = draws(Walk(), 2, 3, known=(np.array([0.5, 0.0, 0.0]), np.array([True, False, False])))
    np.testing.assert_array_equal(kept[:, 0], np.float32(0.5))


def test_every_place_has_noise_of_its_own():
    flat = jnp.zeros((2000, 4))
    x = np.stack([draw_place(Categorical(4), KEY, flat, i) for i in range(4)]).astype(float)
    assert np.abs(np.corrcoef(x) - np.eye(4)).max() < 5 / np.sqrt(2000)


BAD = {
    "no sequences": ({"n": 0}, "n"),
    "no places": ({"length": 0}, "length"),
    "a seed for a key": ({"key": 0}, "key"),
    "cold": ({"temperature": 0.0}, "temperature"),
    "nothing to choose from": ({"top_k": 0}, "top_k"),
    "logits of real numbers": ({"model": Walk(), "top_k": 2}, "top_k"),
    "no probability": ({"top_p": 0.0}, "top_p"),
    "more than all": ({"top_p": 1.5}, "top_p"),
    "a nucleus of real numbers": ({"model": Walk(), "top_p": 0.5}, "top_p"),
    "a stop token that is none": ({"stop": 3}, "stop"),
    "method": ({"method": "fixed_point"}, "method"),
    "no mask": ({"known": np.zeros(6, int)}, "known"),
    "a mask of numbers": ({"known": (np.zeros(6, int), np.ones(6))}, "known mask"),
    "another length": ({"known": (np.zeros(5, int), np.ones(6, bool))}, "known values"),
    "another number": ({"known": (np.zeros(6, int), np.ones((3, 6), bool))}, "known mask"),
    "no token": ({"known": (np.full(6, 3), np.ones(6, bool))}, "known values"),
    "real tokens": ({"known": (np.zeros(6), np.ones(6, bool))}, "known values"),
}


@pytest.mark.parametrize(("arguments", "name"), BAD.values(), ids=BAD.keys())
def test_a_bad_argument_is_one_line_that_names_it(arguments, name, unchecked):
    with pytest.raises(ConfigError) as error:
        sample_sequence(**{"model": Chain(), "key": KEY, "n": 4, "length": 6, **arguments})
    assert str(error.value).startswith(f"{name}: wanted ") and "\n" not in str(error.value)


def test_a_step_without_the_value_before_it_is_refused():
    steps = SequenceSteps(Chain(), KEY, 2)
    with pytest.raises(ConfigError, match="^previous: wanted None at place 0"):
        steps.step(jnp.zeros(2, jnp.uint8))
    steps.step()
    with pytest.raises(ConfigError, match="^previous: wanted None at place 0"):
        steps.step()
    with pytest.raises(ConfigError, match=r"^previous: wanted shape \[2\]"):
        steps.step(jnp.zeros(3, jnp.uint8))
