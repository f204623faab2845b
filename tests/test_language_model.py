"""The language model: enumeration of a tiny language, padding, sampling through the core, and a character n-gram as ruler."""

from functools import cache
from itertools import product
from math import log

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx
from scipy.special import expit
from scipy.stats import chisquare

from jaxgen.data.features import Tokens
from jaxgen.data.text import decode, encode, number_words
from jaxgen.errors import ConfigError
from jaxgen.models import LanguageModel, LanguageModelConfig
from jaxgen.sampling import SequenceSteps, sample_sequence

NETWORKS = ("gru", "lstm", "transformer")
SYMBOLS = tuple(sorted(set("".join(number_words()))))
LENGTH = max(map(len, number_words())) + 1


def config_of(network: str, length: int = 4) -> LanguageModelConfig:
    """Two layers, strings of at most four tokens out of {1, 2}."""
    return LanguageModelConfig(length, 3, width=6, layers=2, network=network, heads=2 if network == "transformer" else None)


def tiny(network: str = "gru", length: int = 4) -> LanguageModel:
    """Random weights, biases included, that make a language far from uniform; those of a longer row begin with those of a shorter one."""
    graph, params = nnx.split(jax.eval_shape(lambda: LanguageModel(config_of(network, length), rngs=nnx.Rngs(0))))
    paths = [path for path, _ in nnx.to_flat_state(params)]

    def noise(path, shape):
        return np.random.default_rng(paths.index(path)).standard_normal(shape, np.float32)

    noisy = {path: leaf.replace(jnp.asarray(noise(path, leaf.shape))) for path, leaf in nnx.to_flat_state(params)}
    return nnx.merge(graph, nnx.from_flat_state(noisy))


def all_strings():
    """All strings of at most four tokens out of {1, 2}."""
    strings = [word for n in range(5) for word in product((1, 2), repeat=n)]
    return jnp.asarray([word + (0,) * (4 - len(word)) for word in strings], jnp.uint8)


STRINGS = all_strings()


@cache
def numbers(network: str) -> dict:
    """What one compiled program finds for a tiny model of each network."""

    def found(model, longer):
        def place(carry, inputs):
            cache, previous = carry
            i, tokens = inputs
            cache, logits = model.step(cache, previous, i)
            return (cache, tokens), logits

        def steps(strings):
            start = model.init_cache(len(strings)), jnp.zeros(len(strings), jnp.uint8)
            return jax.lax.scan(place, start, (jnp.arange(4), strings.T))[1].swapaxes(0, 1)

        short, long = STRINGS[:15], jnp.pad(STRINGS[:15], ((0, 0), (0, 5)))  # those that do not fill their row
        key = jax.random.key(2)
        return {
            "log_prob": model.log_prob(STRINGS),
            "logits": model.logits(STRINGS),
            "stepped": steps(STRINGS),
            "alone": steps(STRINGS[-1:]),
            "short": model.loss({"tokens": short}, key),
            "long": (longer.log_prob(long), *longer.loss({"tokens": long}, key)),
            "many": model.sample(jax.random.key(1), 20_000),
            "cached": model.sample(key, 50),
            "naive": sample_sequence(model, key, 50, 4, stop=0, method="naive"),
        }

    return jax.device_get(jax.jit(found)(tiny(network), tiny(network, length=9)))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_probabilities_of_all_strings_sum_to_one(network):
    assert len(STRINGS) == 31
    np.testing.assert_allclose(np.exp(numbers(network)["log_prob"].astype(np.float64)).sum(), 1, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_steps_through_the_cache_are_the_full_pass_and_the_probability_is_their_product(network):
    found, strings = numbers(network), np.asarray(STRINGS)
    np.testing.assert_allclose(found["stepped"], found["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["alone"], found["logits"][-1:], rtol=1e-4, atol=1e-5)
    terms = np.take_along_axis(scipy.special.log_softmax(found["stepped"], -1), strings[..., None].astype(int), -1)[..., 0]
    counted = np.arange(4) <= (strings != 0).sum(1)[:, None]
    np.testing.assert_allclose(found["log_prob"], np.where(counted, terms, 0).sum(1), rtol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_longer_rows_change_neither_probability_nor_loss(network):
    (loss, metrics), (long, long_loss, long_metrics) = (numbers(network)[name] for name in ("short", "long"))
    log_p = numbers(network)["log_prob"][:15]
    np.testing.assert_allclose(long, log_p, rtol=1e-5)
    np.testing.assert_allclose(long_loss, loss, rtol=1e-5)
    assert metrics["weight"] == long_metrics["weight"] == int((STRINGS[:15] != 0).sum()) + 15
    np.testing.assert_allclose(loss, -log_p.sum() / metrics["weight"] / log(2), rtol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_samples_have_the_probabilities_of_the_model(network):
    drawn, n = numbers(network)["many"], 20_000
    Tokens(4, 3).check(drawn, "drawn")
    code = np.array([27, 9, 3, 1])
    counts = np.bincount(drawn @ code, minlength=81)[np.asarray(STRINGS) @ code]
    assert counts.sum() == n
    p = np.exp(numbers(network)["log_prob"].astype(np.float64))
    common = p * n > 5
    rest = [counts[~common].sum()], [p[~common].sum()]
    observed, wanted = np.append(counts[common], rest[0]), np.append(p[common], rest[1])
    keep = wanted * n > 1
    assert chisquare(observed[keep], wanted[keep] / wanted[keep].sum() * observed[keep].sum()).pvalue > 1e-3


@pytest.mark.parametrize("network", NETWORKS)
def test_cached_and_naive_draws_are_the_same(network):
    np.testing.assert_array_equal(numbers(network)["cached"], numbers(network)["naive"])


def test_stepwise_draws_are_those_of_the_loop_and_known_tokens_stay():
    model, key = tiny(), jax.random.key(2)
    steps, values = SequenceSteps(model, key, 50), None
    ended = np.zeros(50, bool)
    for i in range(4):
        _, values = steps.step(*(() if values is None else (values,)))
        np.testing.assert_array_equal(np.where(ended, 0, values), numbers("gru")["cached"][:, i])
        ended |= np.asarray(values) == 0
    mask = np.array([True, False, True, False])
    known = jnp.full((50, 4), 2, jnp.uint8), jnp.asarray(mask)
    completed = np.asarray(model.sample(key, 50, known=known))
    assert (completed[:, 0] == 2).all() and ((completed[:, 2] == 2) | (completed[:, 1] == 0)).all()


# --- The layers against NumPy, from their equations ---------------------------------------------------------------------------------


def logits_in_numpy(model: LanguageModel, tokens) -> np.ndarray:
    """The logits of strings [B, L], place by place in float64; every place of a transformer is computed from all before it."""
    config, get = model.config, lambda param: np.asarray(param[...], np.float64)
    x = get(model.embedding)[np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]]
    x = x if model.positions is None else x + get(model.positions)
    for layer in model.layers:
        x = lstm_in_numpy(layer, x, get) if config.network == "lstm" else block_in_numpy(layer, x, get, config.heads)
    x = x if model.norm is None else normalised(model.norm, x, get)
    return x @ get(model.out) + get(model.out_bias)


def lstm_in_numpy(layer, x, get):
    h = c = np.zeros_like(x[:, 0])
    outputs = []
    for i in range(x.shape[1]):
        o, f, inner, g = np.split(x[:, i] @ get(layer.inputs) + h @ get(layer.state) + get(layer.bias), 4, axis=-1)
        c = expit(f) * c + expit(inner) * np.tanh(g)
        h = expit(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, axis=1)


def normalised(norm, x, get):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * get(norm.scale) + get(norm.bias)


def block_in_numpy(layer, x, get, heads):
    y, attention = normalised(layer.norms[0], x, get), layer.attention
    attended = np.zeros_like(x)
    for head in np.split(np.arange(x.shape[-1]), heads):
        q, k, v = (y @ get(part)[:, head] for part in (attention.query, attention.keys, attention.values))
        for i in range(x.shape[1]):
            scores = np.einsum("bd,bjd->bj", q[:, i], k[:, : i + 1]) / np.sqrt(len(head))
            attended[:, i, head] = np.einsum("bj,bjd->bd", scipy.special.softmax(scores, -1), v[:, : i + 1])
    x = x + attended @ get(attention.out)
    inner = normalised(layer.norms[1], x, get) @ get(layer.inner) + get(layer.inner_bias)
    gelu = inner / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))  # Hendrycks, Gimpel 2016, the second form
    return x + gelu @ get(layer.outer) + get(layer.outer_bias)


@pytest.mark.parametrize("network", ["lstm", "transformer"])
def test_the_networks_are_their_equations(network):
    np.testing.assert_allclose(numbers(network)["logits"], logits_in_numpy(tiny(network), np.asarray(STRINGS)), rtol=2e-4, atol=2e-4)


# --- Trained ------------------------------------------------------------------------------------------------------------------------


def trained(tokens, config, steps, size):
    """A language model after `steps` of Adam on random rows, in one compiled loop."""
    graph, params = nnx.split(LanguageModel(config, rngs=nnx.Rngs(0)))
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    rows = np.random.default_rng(0).integers(0, len(tokens), (steps, size))

    def step(carry, rows):
        params, state = carry
        gradient = jax.grad(lambda p: nnx.merge(graph, p).loss({"tokens": jnp.asarray(tokens)[rows]}, jax.random.key(0))[0])(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
        (params, _), _ = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), rows))(params)
    return nnx.merge(graph, params)


@pytest.mark.parametrize("network", NETWORKS)
def test_samples_of_a_language_of_three_words_are_its_words(network):
    words, symbols = ["abcabca", "bcabc", "cacb"], ("a", "b", "c")
    model = trained(encode(words, symbols, 8), LanguageModelConfig(8, 4, symbols, 32, network=network), steps=400, size=32)
    drawn = decode(model.sample(jax.random.key(0), 300), symbols)
    counts = np.array([drawn.count(word) for word in words])
    assert counts.sum() >= 294 and counts.min() > 60, dict.fromkeys(drawn)


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
    model = trained(encode(train, SYMBOLS, LENGTH), LanguageModelConfig(LENGTH, len(SYMBOLS) + 1, SYMBOLS, 48), steps=200, size=32)
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
    for wrong, message in (
        ({"heads": 2}, "heads: wanted nothing: the network gru has no attention, got 2"),
        ({"network": "transformer", "width": 6}, "heads: wanted a divisor of the width 6, got 4"),
        ({"network": "transformer", "heads": 0}, "heads: wanted a divisor of the width 64, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            LanguageModelConfig(5, 3, **wrong)
    for token in (-1, 300):  # a cast to uint8 would make other tokens of these
        with pytest.raises(ConfigError, match=rf"tokens: wanted integers \[B, 4\] in 0\.\..*, got {token}"):
            tiny().loss({"tokens": np.full((2, 4), token)}, jax.random.key(0))
    with pytest.raises(ConfigError, match=r"tokens: wanted integers \[B, 4\]"):
        tiny().log_prob(jnp.zeros((2, 5), jnp.uint8))
