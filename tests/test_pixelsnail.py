"""PixelSNAIL beyond the table of models: its attention against the definition, the first pixel, the parts of a longer past, the heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_models import drawn as drawn_model
from test_models import with_noise

from jaxgen.distributions import Bernoulli, Categorical
from jaxgen.errors import ConfigError
from jaxgen.layers.growing_caches import quarters
from jaxgen.layers.logistic_mixture import DiscretizedLogisticMixture
from jaxgen.models.pixelsnail import PixelSNAIL, PixelSNAILConfig, attend_before, causal_attention

SMALL = {"blocks": 1, "width": 6, "resnets": 1, "key": 2, "value": 3, "mixtures": 2, "dropout": 0.0}
N = 299  # positions: several parts, the last one shorter


def drawn(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def attention_by_definition(query, key, value) -> np.ndarray:
    """Position by position in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros((*query.shape[:2], value.shape[2]))
    for b, p in np.ndindex(*query.shape[:2]):
        scores = key[b, :p] @ query[b, p] / np.sqrt(query.shape[2])
        out[b, p] = np.exp(scores) @ value[b, :p] / np.exp(scores).sum() if p else 0
    return out


def test_attention_is_the_softmax_over_earlier_positions_whole_and_one_by_one():
    assert quarters(N) == (75, 150, 225, 299)
    for n in (N, N + 1, 1):
        query, key, value = drawn(2, n, 3), 3 * drawn(2, n, 3, seed=1), drawn(2, n, 4, seed=2)
        expected = attention_by_definition(query, key, value)
        np.testing.assert_allclose(jax.jit(causal_attention)(query, key, value), expected, atol=1e-5)
        one = jax.jit(jax.vmap(attend_before, in_axes=(0, 1, None, None), out_axes=1))
        for images in (2, 1):
            found = one(jnp.arange(n), query[:images], key[:images].swapaxes(1, 2), value[:images])
            np.testing.assert_allclose(found, expected[:images], atol=1e-5)


def test_position_zero_attends_to_nothing_and_has_no_undefined_gradient():
    query, key, value = drawn(2, 5, 3), drawn(2, 5, 3, seed=1), drawn(2, 5, 4, seed=2)
    np.testing.assert_array_equal(causal_attention(query, key, value)[:, 0], 0)
    gradient = jax.jit(jax.grad(lambda *x: jnp.square(causal_attention(*x)).sum(), argnums=(0, 1, 2)))(query, key, value)
    assert all(np.isfinite(g).all() for g in gradient)
    np.testing.assert_array_equal(gradient[0][:, 0], 0)
    for g in gradient[1:]:  # nobody comes after the last position
        np.testing.assert_array_equal(g[:, -1], 0)
        assert (g[:, :-1] != 0).any(-1).all()
    of_first = jax.jit(jax.grad(lambda *x: causal_attention(*x)[:, 0].sum(), argnums=(0, 1, 2)))(query, key, value)
    assert all((g == 0).all() for g in of_first)


def test_attention_stands_huge_scores():
    query, key, value = 1e3 * drawn(1, 70, 3), 1e3 * drawn(1, 70, 3, seed=1), drawn(1, 70, 4, seed=2)
    scores = np.asarray(query[0]) @ np.asarray(key[0]).T
    top = [np.argmax(scores[p, :p]) for p in range(1, 70)]
    np.testing.assert_allclose(jax.jit(causal_attention)(query, key, value)[0, 1:], np.asarray(value[0])[top], atol=1e-5)


def test_the_cached_form_agrees_over_several_parts_of_the_past():
    model = with_noise(PixelSNAILConfig(image_shape=(13, 11, 1), levels=2, **SMALL, light=True), noise=0.2)
    assert model.rooms == (6, 12, 13)
    for n in (1, 3):
        image = model.sample(jax.random.key(1), n)
        # The image that the cache drew is a fixed point of the full pass with the same noise, hence the only one.
        np.testing.assert_array_equal(model.sample(jax.random.key(1), n, method="fixed_point"), image)
    parameters = jax.jit(lambda m, x: m.logits(x))(model, image)
    assert len(np.unique(np.asarray(parameters))) > 100, "the model says the same everywhere"


def test_one_channel_of_few_levels_has_a_discrete_head_and_the_others_the_mixture():
    for image_shape, levels, head in [
        ((4, 4, 1), 2, Bernoulli()),
        ((4, 4, 1), 17, Categorical(17)),
        ((4, 4, 1), 256, DiscretizedLogisticMixture(256, 1, 2)),
        ((4, 4, 3), 2, DiscretizedLogisticMixture(2, 3, 2)),
    ]:
        config = PixelSNAILConfig(image_shape=image_shape, levels=levels, **SMALL)
        model = nnx.eval_shape(lambda config=config: PixelSNAIL(config, rngs=nnx.Rngs(0)))
        assert model.head == head
        logits = jax.eval_shape(lambda m, x: m.logits(x), model, jax.ShapeDtypeStruct((2, *image_shape), np.uint8))
        assert logits.shape == ((2, 4, 4, 1, head.size) if head.channelwise else (2, 4, 4, head.size))


def test_initialise_makes_the_outputs_of_a_batch_unit_normal():
    config = PixelSNAILConfig(image_shape=(8, 8, 1), levels=17, **SMALL)
    batch = {"image": jax.random.randint(jax.random.key(0), (32, 8, 8, 1), 0, 17).astype(jnp.uint8)}
    model = jax.jit(PixelSNAIL.initialise)(drawn_model(config), batch)
    outputs = np.asarray(jax.jit(lambda m, x: m.logits(x))(model, batch["image"])).reshape(-1, 17)
    np.testing.assert_allclose(outputs.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(outputs.std(0), 1, atol=1e-3)


@pytest.mark.parametrize("field", ["blocks", "width", "resnets", "key", "value", "mixtures"])
def test_every_size_is_positive(field):
    with pytest.raises(ConfigError, match=f"^{field}: wanted 1 or more, got 0$"):
        PixelSNAILConfig(**{**SMALL, field: 0})


def test_the_comparison_size_has_the_products_that_it_is_said_to_have():
    """Weights of the published comparison: 12 n^2 for a residual block, three n^2 to join, (N / 2)(4 + 32) for attention."""
    config = PixelSNAILConfig.comparison()
    model = nnx.eval_shape(lambda: PixelSNAIL(config, rngs=nnx.Rngs(0)))
    directions = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)) if len(leaf.shape) == 4)
    n = 64
    block = 2 * 12 * n * n + (n + 2) * 4 + (n + 3) * 36 + 3 * n * n + 32 * n
    assert directions == 2 * 3 * n + 2 * 2 * n + 8 * block + n
