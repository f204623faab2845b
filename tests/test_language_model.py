"""The language model: enumeration of a tiny language, padding, sampling through the core, and a character n-gram as ruler."""

import dataclasses
from itertools import product
from math import log

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.stats import chisquare

from jaxgen.data.features import Tokens
from jaxgen.data.text import decode, encode, number_words
from jaxgen.errors import ConfigError
from jaxgen.models import LanguageModel, LanguageModelConfig
from jaxgen.sampling import SequenceSteps, sample_sequence

TINY = LanguageModelConfig(length=4, vocabulary=3, width=5, layers=2)
SYMBOLS = tuple(sorted(set("".join(number_words()))))
LENGTH = max(map(len, number_words())) + 1


def tiny(config=TINY):
    """Random weights, biases included, that make a language far from uniform."""
    graph, params = nnx.split(LanguageModel(config, rngs=nnx.Rngs(0)))
    generator = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: x + jnp.asarray(generator.standard_normal(x.shape, np.float32)), params)
    return nnx.merge(graph, noisy)


def all_strings():
    """All strings of at most four tokens out of {1, 2}."""
    strings = [word for n in range(5) for word in product((1, 2), repeat=n)]
    return jnp.asarray([word + (0,) * (4 - len(word)) for word in strings], jnp.uint8)


log_prob = jax.jit(LanguageModel.log_prob)


def test_the_probabilities_of_all_strings_sum_to_one():
    strings = all_strings()
    assert len(strings) == 31
    np.testing.assert_allclose(np.exp(np.asarray(log_prob(tiny(), strings), np.float64)).sum(), 1, atol=1e-6)


def test_the_probability_is_the_product_of_the_steps():
    model, strings = tiny(), all_strings()
    cache, previous, total = model.init_cache(31), jnp.zeros(31, jnp.uint8), np.zeros(31)
    for i in range(4):
        cache, logits = model.step(cache, previous, jnp.int32(i))
        previous = strings[:, i]
        terms = np.asarray(jax.nn.log_softmax(logits))[np.arange(31), np.asarray(previous)]
        total += np.where(i <= np.asarray(strings != 0).sum(1), terms, 0)
    np.testing.assert_allclose(log_prob(model, strings), total, rtol=1e-5)


def test_longer_rows_change_neither_probability_nor_loss():
    model, strings = tiny(), all_strings()[:15]  # those that do not fill their row
    longer = nnx.merge(nnx.graphdef(LanguageModel(dataclasses.replace(TINY, length=9), rngs=nnx.Rngs(0))), nnx.state(model))
    padded = jnp.pad(strings, ((0, 0), (0, 5)))
    np.testing.assert_allclose(log_prob(longer, padded), log_prob(model, strings), rtol=1e-6)
    (short, metrics), (long, padded_metrics) = (m.loss({"tokens": x}, jax.random.key(0)) for m, x in ((model, strings), (longer, padded)))
    np.testing.assert_allclose(long, short, rtol=1e-6)
    assert metrics["weight"] == padded_metrics["weight"] == int((strings != 0).sum()) + 15
    np.testing.assert_allclose(short, -log_prob(model, strings).sum() / metrics["weight"] / log(2), rtol=1e-6)


def test_samples_have_the_probabilities_of_the_model():
    model, strings, n = tiny(), all_strings(), 20_000
    drawn = model.sample(jax.random.key(1), n)
    Tokens(4, 3).check(np.asarray(drawn), "drawn")
    code = np.array([27, 9, 3, 1])
    counts = np.bincount(np.asarray(drawn) @ code, minlength=81)[np.asarray(strings) @ code]
    assert counts.sum() == n
    p = np.exp(np.asarray(log_prob(model, strings), np.float64))
    common = p * n > 5
    rest = [counts[~common].sum()], [p[~common].sum()]
    observed, wanted = np.append(counts[common], rest[0]), np.append(p[common], rest[1])
    keep = wanted * n > 1
    assert chisquare(observed[keep], wanted[keep] / wanted[keep].sum() * observed[keep].sum()).pvalue > 1e-3


def test_cached_naive_and_stepwise_draws_agree_and_known_tokens_stay():
    model, key = tiny(), jax.random.key(2)
    drawn = model.sample(key, 50)
    np.testing.assert_array_equal(drawn, sample_sequence(model, key, 50, 4, stop=0, method="naive"))
    steps, values = SequenceSteps(model, key, 50), None
    ended = np.zeros(50, bool)
    for i in range(4):
        _, values = steps.step(*(() if values is None else (values,)))
        np.testing.assert_array_equal(np.where(ended, 0, values), drawn[:, i])
        ended |= np.asarray(values) == 0
    mask = np.array([True, False, True, False])
    known = jnp.full((50, 4), 2, jnp.uint8), jnp.asarray(mask)
    completed = np.asarray(model.sample(key, 50, known=known))
    assert (completed[:, 0] == 2).all() and ((completed[:, 2] == 2) | (completed[:, 1] == 0)).all()


def trained(tokens, width=48, steps=250, size=64):
    """A language model of the number words after `steps` of Adam, in one compiled loop."""
    graph, params = nnx.split(LanguageModel(LanguageModelConfig(LENGTH, len(SYMBOLS) + 1, SYMBOLS, width), rngs=nnx.Rngs(0)))
    optimizer = optax.adam(1e-2)
    rows = np.random.default_rng(0).integers(0, len(tokens), (steps, size))

    def step(carry, rows):
        params, state = carry
        gradient = jax.grad(lambda p: nnx.merge(graph, p).loss({"tokens": jnp.asarray(tokens)[rows]}, jax.random.key(0))[0])(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
        (params, _), _ = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), rows))(params)
    return nnx.merge(graph, params)


def n_gram_bits(strings, test, order, k=0.1):
    """Bits per predicted token of a character n-gram with add-k smoothing: p(c | context) = (count + k) / (total + k V)."""
    counts, size = {}, len(SYMBOLS) + 1
    for string in strings:
        padded = "\2" * (order - 1) + string + "\0"
        for i in range(order - 1, len(padded)):
            table = counts.setdefault(padded[i - order + 1 : i], {})
            table[padded[i]] = table.get(padded[i], 0) + 1
    bits, places = 0.0, 0
    for string in test:
        padded = "\2" * (order - 1) + string + "\0"
        for i in range(order - 1, len(padded)):
            table = counts.get(padded[i - order + 1 : i], {})
            bits -= np.log2((table.get(padded[i], 0) + k) / (sum(table.values()) + k * size))
            places += 1
    return bits / places


def test_it_is_better_than_an_n_gram_on_the_same_strings():
    order = np.random.default_rng(0).permutation(999)
    strings = np.array(number_words())
    train, test = list(strings[order[100:]]), list(strings[order[:100]])
    model = trained(encode(train, SYMBOLS, LENGTH))
    bits = float(model.loss({"tokens": jnp.asarray(encode(test, SYMBOLS, LENGTH))}, jax.random.key(0))[0])
    assert bits < 0.97 * min(n_gram_bits(train, test, n) for n in (2, 3, 4, 5))
    drawn = decode(model.sample(jax.random.key(0), 64), SYMBOLS)
    assert np.mean([word in set(number_words()) for word in drawn]) > 0.5


def test_features_and_errors():
    config = LanguageModelConfig(5, 3, ("a", "b"), width=4)
    assert config.features == {"tokens": Tokens(5, 3, ("a", "b"))}
    assert LanguageModelConfig(**LanguageModelConfig.sizes_from(config.features), width=4) == config
    for wrong in ({"vocabulary": 1}, {"length": 0}, {"width": 0}, {"vocabulary": 3, "symbols": ("a",)}):
        with pytest.raises(ConfigError, match=list(wrong)[-1]):
            LanguageModelConfig(**wrong)
    for token in (-1, 300):  # a cast to uint8 would make other tokens of these
        with pytest.raises(ConfigError, match=rf"tokens: wanted integers \[B, 4\] in 0\.\..*, got {token}"):
            tiny().loss({"tokens": np.full((2, 4), token)}, jax.random.key(0))
    with pytest.raises(ConfigError, match=r"tokens: wanted integers \[B, 4\]"):
        tiny().log_prob(jnp.zeros((2, 5), jnp.uint8))
