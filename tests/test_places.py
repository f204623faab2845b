"""Every exact model driven from the host, place by place: the terms add up to log p(x), and the draws are those of `sample`."""

from functools import partial

import jax
import numpy as np
import pytest
from all_models import CONFIGS, batch_of, given_of, model_of
from model_table import TABLE
from test_models import with_noise

from jaxgen.errors import ConfigError
from jaxgen.layers.strings import predicted
from jaxgen.places import Places

N, KEY = 3, jax.random.key(4)
BY_NAME = {entry.name: entry for entry in TABLE}
COLOUR = {"image_shape": (2, 3, 3), "levels": 3, "num_classes": 2}
UPSCALES = {**COLOUR, "head": "mixture", "low_resolution": (1, 1, 3), "encoder_layers": 1}


def image_model(name: str, **sizes):
    """A model of the table of colour images given a label, with noise on every weight."""
    return with_noise(BY_NAME[name].make(**(COLOUR | sizes)), BY_NAME[name].noise)


@partial(jax.jit, static_argnames="head")
def log_prob(head, parameters, values):
    return head.log_prob(parameters, values)


CASES = {name: lambda name=name: image_model(name, **BY_NAME[name].smaller) for name in BY_NAME}
CASES |= {name: lambda name=name: model_of(name) for name in CONFIGS if name in ("gated_pixelcnn of a vector", "language_model")}
CASES |= {"image_transformer that upscales whole pixels": lambda: image_model("image_transformer", **UPSCALES)}


@pytest.mark.parametrize("name", CASES)
def test_the_terms_of_all_places_add_up_to_log_prob(name):
    model = CASES[name]()
    batch = batch_of(model.config, N)
    x, given = batch[model.config.modelled], given_of(model.config, batch)
    counts = predicted(x) if model.config.modelled == "tokens" else np.ones((N, 1), bool)
    places, total = Places(model, N, **given), np.zeros(N)
    assert sorted(map(tuple, places.order)) == list(np.ndindex(*np.max(places.order, axis=0) + 1)), "every place once"
    cache, previous = places.init(), None
    for i in range(len(places)):
        cache, parameters = places.step(cache, previous, i)
        previous = places.values(x, i)
        total += np.where(counts[:, i % counts.shape[1]], log_prob(model.head, parameters, previous), 0)
    np.testing.assert_allclose(total, jax.jit(lambda model: model.log_prob(x, **given))(model), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["gated_pixelcnn", "image_transformer", "language_model"])
def test_draws_from_the_host_are_those_of_sample(name):
    model = CASES[name]()
    given = given_of(model.config, batch_of(model.config, N))
    places, previous = Places(model, N, **given), None
    x = model.sample(KEY, N, temperature=0.8, **given)
    ended = np.zeros(N, bool)
    cache = places.init()
    for i in range(len(places)):
        cache, parameters = places.step(cache, previous, i)
        previous = places.draw(KEY, parameters, i, temperature=0.8)
        wanted = places.values(x, i)
        np.testing.assert_array_equal(np.where(ended, wanted, previous) if name == "language_model" else previous, wanted)
        ended |= np.asarray(wanted == 0) if name == "language_model" else False
    assert previous.dtype == x.dtype


def test_a_cache_can_be_gone_on_from_twice():
    model = CASES["gated_pixelcnn of a vector"]()
    places = Places(model, N, vector=np.ones(2, np.float32))
    first, _ = places.step(places.init(), None, 0)
    zeros, ones, again = (places.step(first, np.full(N, value), 1)[1] for value in (0, 1, 0))
    np.testing.assert_array_equal(zeros, again)
    assert not np.allclose(zeros, ones)


def test_bad_arguments_are_one_line_that_names_them():
    places = Places(CASES["language_model"](), N)
    cache = places.init()
    for previous, i, name in [(None, 1, "previous"), (np.zeros(N), 0, "previous"), (np.zeros(5), 1, "previous"), (None, len(places), "i")]:
        with pytest.raises(ConfigError, match=f"^{name}: wanted "):
            places.step(cache, previous, i)
    with pytest.raises(ConfigError, match="^model: wanted an exact model"):
        Places(model_of("vae"), N)
    with pytest.raises(ConfigError, match="^label: wanted int"):
        Places(CASES["pixelcnn"](), N)
