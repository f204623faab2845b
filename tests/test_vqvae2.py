"""VQ-VAE-2: priors of codes that sum to one, their samplers, the bound, what a prior is given, and codes as names."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import chisquare
from test_models import ALL, drawn

from jaxgen.errors import ConfigError
from jaxgen.models import (
    GatedPixelCNN,
    GatedPixelCNNConfig,
    PixelSNAIL,
    PixelSNAILConfig,
    VQVAE2CodesConfig,
    VQVAE2Config,
)
from jaxgen.models.vqvae2 import LowerPrior, TopPrior

PRIORS = TopPrior(1, 6, 1, 2, 3), LowerPrior(1, 6, 3, 6, 4)
NAMES = {"image_shape": (3, 4, 1), "levels": 50, "width": 6, "unordered": True}
TOY = VQVAE2Config(VQVAE2CodesConfig((4, 4, 1), 2, codes=3, code_width=2, width=4, blocks=0), 2, *PRIORS)  # 1 x 1 and 2 x 2 codes
KEY = jax.random.key(0)


def noisy(config):
    """A model with noise on every parameter, so that all conditions matter."""
    graph, params, rest = nnx.split(drawn(config), nnx.Param, ...)
    generator = np.random.default_rng(0)
    noise = jax.tree.map(lambda p: np.asarray(p) + np.float32(0.3) * generator.standard_normal(p.shape, np.float32), params)
    return nnx.merge(graph, jax.device_put(noise), rest)


def images_of(config, n: int):
    return jnp.asarray(np.random.default_rng(0).integers(0, config.levels, (n, *config.image_shape), np.uint8))


@pytest.fixture(scope="module")
def toy():
    return noisy(TOY)


@pytest.fixture(scope="module")
def every():
    """All 3^5 codes of the toy model."""
    rows = np.array(list(product(range(3), repeat=5)), np.uint8)
    return jnp.asarray(rows[:, :1].reshape(-1, 1, 1)), jnp.asarray(rows[:, 1:].reshape(-1, 2, 2))


@pytest.fixture(scope="module")
def priors(toy, every):
    """log p(k | y) of all codes for both classes, [2, 243, 2]: of the top, and of the level below given the top."""
    return np.asarray(jax.jit(lambda model: jnp.stack([model.log_prob_codes(every, label) for label in (0, 1)]))(toy), np.float64)


def test_the_priors_sum_to_one_and_depend_on_what_they_are_given(priors):
    np.testing.assert_allclose(np.exp(priors.sum(-1)).sum(1), 1, atol=1e-5)
    top, below = np.exp(priors[..., 0]).reshape(2, 3, 81), np.exp(priors[..., 1]).reshape(2, 3, 81)
    np.testing.assert_allclose(top[..., 0].sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(below.sum(-1), 1, atol=1e-5)  # given each code of the top
    for one in (top, below):
        assert np.abs(one[0] - one[1]).max() > 1e-2  # the class matters
    assert np.abs(below[:, 0] - below[:, 1]).max() > 1e-2  # and the top


def test_codes_are_drawn_with_their_probabilities(toy, priors):
    n = 20_000
    top, below = jax.jit(lambda model, key: model.sample_codes(key, n, 1))(toy, KEY)
    digits = np.concatenate([np.reshape(top, (n, 1)), np.reshape(below, (n, 4))], axis=1).astype(int)
    counts = np.bincount(digits @ 3 ** np.arange(5)[::-1], minlength=243)
    expected = n * np.exp(priors[1].sum(-1))
    few = expected < 5
    pooled = [np.append(part[~few], part[few].sum()) for part in (counts, expected * n / expected.sum())]
    assert (~few).sum() > 50 and chisquare(*pooled).pvalue > 1e-4


def test_the_bound_is_one_term_of_the_likelihood(toy, every, priors):
    """log p(x | y) = log sum_k p(k | y) p(x | k), over all codes."""
    images = images_of(TOY, 6)

    @jax.jit
    def numbers(model):
        parameters = model.decode(every)
        given = jax.vmap(lambda image: model.codes._log_prob(jnp.broadcast_to(image, (243, *image.shape)), parameters))(images)
        return given, model.elbo(images, KEY, label=1), model.encode(images)

    given, bound, (top, below) = numbers(toy)
    terms = np.asarray(given, np.float64) + priors[1].sum(-1)
    exact = np.log(np.exp(terms).sum(1))
    chosen = np.concatenate([np.reshape(top, (6, 1)), np.reshape(below, (6, 4))], axis=1).astype(int) @ 3 ** np.arange(5)[::-1]
    np.testing.assert_allclose(bound, terms[np.arange(6), chosen], rtol=1e-5)
    assert (bound < exact).all()


@pytest.mark.parametrize("halvings", [(1, 1), (1,), (1, 1, 1)] if ALL else [(1, 1)], ids=len)
def test_cached_and_naive_sampling_draw_the_same_codes(halvings):
    config = VQVAE2Config(VQVAE2CodesConfig((8, 8, 1), 3, halvings, codes=40, code_width=3, width=4, blocks=1), 3, *PRIORS)
    model, labels = noisy(config), jnp.arange(4, dtype=jnp.int32) % 3
    draw = jax.jit(lambda model, method: model.sample_codes(KEY, 4, labels, method=method), static_argnums=1)
    cached, naive = draw(model, "cached"), draw(model, "naive")
    assert [code.shape[1:] for code in cached] == list(config.codes.grids) and {code.dtype for code in cached} == {np.dtype("uint8")}
    for one, other in zip(cached, naive, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(np.unique(cached[-1])) > 8


def test_a_code_sees_all_codes_above_and_the_earlier_ones_of_its_level(toy):
    """Places of the 4 x 4 level in raster order; a change at one place of either level changes the parameters of which others."""
    config = VQVAE2Config(VQVAE2CodesConfig((8, 8, 1), 3, codes=40, code_width=3, width=4, blocks=1), 0, *PRIORS)
    model, generator = noisy(config), np.random.default_rng(1)
    top, below = (generator.integers(0, 40, (8, *grid), np.uint8) for grid in config.codes.grids)

    @jax.jit
    def parameters(model, top, below):
        return model.lower[0].logits(below[..., None], feature_map=model._map(0, top, None)).reshape(8, 16, -1)

    base = np.asarray(parameters(model, top, below))
    for place in range(16):
        other = below.copy()
        other[:, place // 4, place % 4] = (other[:, place // 4, place % 4] + 7) % 40
        changed = (np.asarray(parameters(model, top, other)) != base).any((0, 2))
        assert not changed[: place + 1].any() and (place == 15 or changed[place + 1 :].any())
    others = [top + (np.arange(4) == place).reshape(2, 2).astype(np.uint8) for place in range(4)]
    seen = [(np.asarray(parameters(model, other, below)) != base).any((0, 2)) for other in others]
    assert np.any(seen, axis=0).all() and all(changed.any() for changed in seen)


def test_of_three_levels_every_prior_is_given_all_codes_above():
    """A code of the top or of the middle changes log p of every level below it and of none above."""
    config = VQVAE2Config(VQVAE2CodesConfig((8, 8, 1), 3, (1, 1, 1), codes=6, code_width=3, width=4, blocks=0), 0, *PRIORS)
    model, generator = noisy(config), np.random.default_rng(1)
    base = [generator.integers(0, 6, (1, *grid), np.uint8) for grid in config.codes.grids]
    assert [code.shape for code in base] == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    changed = [[(code + (level == place)) % 6 for level, code in enumerate(base)] for place in range(3)]
    rows = [jnp.asarray(np.concatenate(codes)) for codes in zip(base, *changed, strict=True)]
    found = np.asarray(jax.jit(lambda model: model.log_prob_codes(tuple(rows)))(model))
    assert found.shape == (4, 3)
    np.testing.assert_array_equal(found[1:] != found[0], np.triu(np.ones((3, 3), bool)))


OUTPUTS = {  # the parameters whose last axis is that of the values
    GatedPixelCNN: lambda model: (model.outputs, model.outputs_bias),
    PixelSNAIL: lambda model: (model.outputs.direction, model.outputs.gain, model.outputs.bias),
}


@pytest.mark.parametrize("config", [GatedPixelCNNConfig(layers=1, **NAMES), PixelSNAILConfig(blocks=1, resnets=1, **NAMES)])
def test_values_without_order_are_names(config):
    """With other names for the values, and the vectors and logits of each moved to its new name, every image has its probability."""
    one = drawn(config)
    name = jnp.asarray(np.random.default_rng(0).permutation(50))
    other = nnx.clone(one)
    other.values[...] = one.values[...].at[name].set(one.values[...])
    for ours, theirs in zip(*map(OUTPUTS[type(one)], (other, one)), strict=True):
        ours[...] = theirs[...].at[..., name].set(theirs[...])
    images = images_of(config, 5)
    log_prob = jax.jit(lambda model, image: model.log_prob(image))
    np.testing.assert_allclose(log_prob(other, name[images].astype(jnp.uint8)), log_prob(one, images), rtol=1e-5)
    assert np.abs(log_prob(other, images) - log_prob(one, images)).max() > 0.1


def test_the_first_batch_sets_the_top_prior_and_nothing_else(toy):
    batch = {"image": images_of(TOY, 8), "label": jnp.arange(8, dtype=jnp.int32) % 2}
    after, before = jax.device_get((jax.jit(lambda model: nnx.state(model.initialise(batch)))(toy), nnx.state(toy)))
    leaves = jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(before)
    assert {path[0].key for (path, a), b in zip(*leaves, strict=True) if (a != b).any()} == {"top"}


def test_codes_of_the_wrong_grids_and_missing_labels_are_refused(toy):
    with pytest.raises(ConfigError, match=r"codes: wanted grids \(1, 1\), \(2, 2\), the top first"):
        toy.decode((jnp.zeros((1, 2, 2), jnp.uint8), jnp.zeros((1, 1, 1), jnp.uint8)))
    with pytest.raises(ConfigError, match="label: wanted int"):
        toy.sample(KEY, 2)
    with pytest.raises(ConfigError, match=r"feature_map: wanted shape \(2, 2, 2, 4\), got None"):
        toy.lower[0].log_prob(jnp.zeros((2, 2, 2, 1), jnp.uint8), label=0)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"top": TopPrior(width=0)}, "top.width"),
        ({"lower": LowerPrior(input_kernel=4)}, "lower.input_kernel"),
        ({"lower": LowerPrior(map_size=1)}, "lower.map_size"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_sizes_are_refused(fields, message):
    with pytest.raises(ConfigError, match=f"^{message}: wanted"):
        VQVAE2Config(**fields)


@pytest.mark.parametrize("fields", [{"halvings": ()}, {"halvings": (1, 0)}, {"codes": 1}, {"decay": 1.0}])
def test_bad_sizes_of_the_code_model_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        VQVAE2CodesConfig(**fields)


def test_unordered_values_need_one_channel():
    with pytest.raises(ConfigError, match="unordered: wanted False, or images of one channel, got True for 3 channels"):
        GatedPixelCNNConfig((4, 4, 3), 8, width=6, head_width=6, unordered=True)
