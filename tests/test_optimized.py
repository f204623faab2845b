"""With XLA's optimizer, which users have and the rest of the suite does without: cached and naive samples have the same bits.

One case for each model, with one layer where it can have one; `make thorough` repeats all cases of all models and all three samplers so.
"""

import os

import jax
import numpy as np
import pytest
from compiling import AS_USERS_COMPILE
from flax import nnx
from model_table import TABLE
from test_models import ALL, labels_of, make

from jaxgen.models import LanguageModel, LanguageModelConfig
from jaxgen.sampling import sample_sequence

SHAPE = (3, 5, 1)  # no other test has it, so that no program compiled without the optimizer is used here


def drawn(sample, model) -> np.ndarray:
    """What a program that draws from a model gives with XLA as users have it; the setting is read when a program is compiled."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        return np.asarray(jax.jit(sample, compiler_options=AS_USERS_COMPILE)(model))
    finally:
        jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_cached_and_naive_give_the_same_bits_with_the_optimizer(entry):
    small = entry.smaller | ({"layers": 1} if hasattr(entry.config, "layers") and not ALL else {})
    model, n = make(entry, SHAPE, levels=2, num_classes=2, **small), 3
    label, key = labels_of(n, model.config), jax.random.key(0)
    cached = drawn(lambda model: model.sample(key, n, label), model)
    naive = drawn(lambda model: model.sample(key, n, label, method="naive"), model)
    np.testing.assert_array_equal(cached, naive)
    assert 0 < naive.mean() < 1


def test_strings_have_the_same_bits_with_the_optimizer():
    model, key = LanguageModel(LanguageModelConfig(6, 7, width=5), rngs=nnx.Rngs(0)), jax.random.key(0)
    cached = drawn(lambda model: model.sample(key, 9), model)
    naive = drawn(lambda model: sample_sequence(model, key, 9, 6, stop=0, method="naive"), model)
    np.testing.assert_array_equal(cached, naive)
    assert len(np.unique(cached)) > 3
