"""The sampler on a model that is small enough to enumerate by hand, and the checks of what callers pass in."""

import os
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import virtual_devices
from saved_runs import child, finish
from scipy.special import expit
from scipy.stats import chisquare
from test_models import drawn, log_prob

from jaxgen import sampling
from jaxgen.data.features import OfImages
from jaxgen.distributions import Categorical, pixel_head
from jaxgen.errors import ConfigError
from jaxgen.layers.autoregressive import AutoregressiveImages
from jaxgen.models import (
    GANConfig,
    GatedPixelCNNConfig,
    ImageTransformerConfig,
    PixelCNNPPConfig,
    PixelSNAILConfig,
    VAEConfig,
)
from jaxgen.sampling import METHODS, _sample


@dataclass(frozen=True)
class Config(OfImages):
    """What the sampler asks of a configuration."""

    image_shape: tuple[int, int, int] = (2, 3, 1)
    levels: int = 2
    num_classes: int = 0


class Neighbours(AutoregressiveImages):
    """logit of a grey binary pixel = bias + across * left + down * above: the smallest model with the sampler's interface."""

    def __init__(self, bias=-0.4, across=1.7, down=-1.1, **fields):
        self.config = Config(**fields)
        self.head = pixel_head(self.config.levels)
        self.bias, self.across, self.down = bias, across, down

    def _parameters(self, left, above):
        logit = self.bias + self.across * left.astype(jnp.float32) + self.down * above.astype(jnp.float32)
        return logit[..., None] * jnp.arange(1, self.head.size + 1).astype(jnp.float32).reshape((1,) * logit.ndim + (-1,))

    def _logits(self, image, label, key=None):
        left = jnp.pad(image, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
        above = jnp.pad(image, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
        return self._parameters(left, above)

    def init_cache(self, n, label=None):
        return jnp.zeros((n, *self.config.image_shape[1:]), self.head.dtype)

    def begin_row(self, cache, finished_row, r):
        return finished_row

    def step(self, cache, previous_pixel, r, c):
        return cache, self._parameters(previous_pixel, cache[:, c])[:, 0]


def chances(model, known=None, temperature=1.0) -> np.ndarray:
    """P(image) of all 2^(H W) images in float64 by the chain rule; known=(image, mask) replaces given pixels."""
    height, width, _ = model.config.image_shape
    images = (np.arange(2 ** (height * width))[:, None] >> np.arange(height * width)[::-1] & 1).reshape(-1, height, width)
    chance = np.ones(len(images))
    for r in range(height):
        for c in range(width):
            x = images[:, r, c]
            left = images[:, r, c - 1] if c else 0
            above = images[:, r - 1, c] if r else 0
            one = expit((model.bias + model.across * left + model.down * above) / temperature)
            if known is not None and known[1][r, c]:
                one = float(known[0][r, c, 0])
            chance *= np.where(x == 1, one, 1 - one)
    return chance


GIVEN = (np.array([[[1], [0], [1]], [[0], [1], [0]]], np.uint8), np.array([[False, True, False], [True, False, False]]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("known", "temperature"), [(None, 1.0), (None, 0.4), (GIVEN, 1.0)], ids=["", "cold", "known pixels"])
def test_draws_have_the_frequencies_of_the_chain_rule(method, known, temperature):
    model, draws = Neighbours(), 20_000
    image = np.asarray(model.sample(jax.random.key(0), draws, known=known, temperature=temperature, method=method))
    counts = np.bincount(image.reshape(draws, -1) @ (1 << np.arange(6)[::-1]), minlength=64)
    chance = chances(model, known, temperature)
    assert chance.sum() == pytest.approx(1)
    assert not counts[chance == 0].any(), "a given pixel was changed"
    rare = chance * draws < 5
    expected, observed = chance[~rare] * draws, counts[~rare]
    if rare.any() and chance[rare].sum() * draws > 1:
        expected, observed = np.append(expected, chance[rare].sum() * draws), np.append(observed, counts[rare].sum())
    assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_fixed_point_needs_one_pass_for_independent_pixels_and_at_most_one_for_each_pixel():
    def passes(model, n=64):
        none = jnp.zeros((n, *model.config.image_shape), jnp.uint8), jnp.zeros((n, *model.config.image_shape[:2]), bool)
        return int(_sample(model, jax.random.key(0), n, None, none, jnp.float32(1), "fixed_point")[1])

    independent = Neighbours(across=0.0, down=0.0)
    assert passes(independent) == 2, "one pass draws, one finds that nothing changes"
    assert 2 < passes(Neighbours()) <= 6 + 1
    chain = Neighbours(bias=-30.0, across=60.0, down=60.0)  # every pixel repeats a neighbour: zeros everywhere
    assert passes(chain) == 1, "the start was the sample already"


def test_every_position_has_noise_of_its_own():
    flat = Neighbours(bias=0.0, across=0.0, down=0.0, image_shape=(4, 4, 1))
    image = np.asarray(flat.sample(jax.random.key(3), 2000)).reshape(2000, 16).astype(float)
    correlation = np.corrcoef(image.T) - np.eye(16)
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)
    assert np.abs(np.corrcoef(image[:1000].ravel(), image[1000:].ravel())[0, 1]) < 5 / np.sqrt(16_000)


def test_categorical_pixels_take_all_levels():
    model = Neighbours(levels=5)
    assert model.head == Categorical(5)
    images = [np.asarray(model.sample(jax.random.key(0), 200, method=method)) for method in METHODS]
    assert set(np.unique(images[0])) == set(range(5))
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])


WIDE = {"image_shape": (2, 3, 1), "levels": 300}
WIDE_MODELS = [
    Config(**WIDE),
    GatedPixelCNNConfig(**WIDE, layers=1, width=8, head_width=4),
    ImageTransformerConfig(**WIDE, layers=1, width=8, heads=1, hidden=8, block=(2,), memory=(2,)),
    PixelSNAILConfig(**WIDE, blocks=1, width=8, resnets=1, key=2, value=2, mixtures=2, light=True),
]


@pytest.mark.parametrize("config", WIDE_MODELS, ids=lambda config: type(config).__name__)
def test_more_than_256_levels_are_16_bits_in_every_method(config):
    """The draws, given pixels and the likelihood."""
    model = Neighbours(bias=0.01, across=0.0, down=0.0, **WIDE) if isinstance(config, Config) else drawn(config)
    known = np.full((2, 3, 1), 299, np.uint16), np.array([[True, False, False], [False, False, True]])
    methods = METHODS if isinstance(config, Config) else ("cached", "naive")  # the third takes of a model what naive takes
    images = [np.asarray(model.sample(jax.random.key(0), 30, known=known, method=method)) for method in methods]
    assert images[0].dtype == np.uint16 and (images[0][:, known[1]] == 299).all() and (images[0][:, ~known[1]] > 255).any()
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])
    assert np.isfinite(log_prob(model, jnp.asarray(images[0]))).all()
    with pytest.raises(ConfigError, match="^image: wanted dtype uint16, got uint8; integers in 0..299$"):
        model.log_prob(jnp.asarray(images[0].astype(np.uint8)))
    with pytest.raises(ConfigError, match="^image: wanted values in 0..299, got a maximum of 300$"):
        model.log_prob(jnp.asarray(images[0] + np.uint16(1)))


def test_groups_of_images_are_drawn_like_one_batch(monkeypatch):
    n, config = 5, GatedPixelCNNConfig(image_shape=(3, 4, 1), levels=3, num_classes=2, layers=1, width=8, head_width=4)
    model, label, mask = drawn(config), np.arange(n) % 2, np.random.default_rng(0).random((n, 3, 4)) < 0.3
    known = (np.random.default_rng(1).integers(0, 3, (n, 3, 4, 1)).astype(np.uint8), mask)
    together = np.asarray(model.sample(jax.random.key(1), n, label, known))
    monkeypatch.setattr(sampling, "CACHE_BYTES", 1)
    sampling._sample.clear_cache()
    sizes = [sampling.group_size(m, model.init_cache, model.condition(m, label[:m])) for m in (1, 2, n)]
    assert sizes == [1, 2, 2]  # up to two images are one group, and drawn by the same program
    np.testing.assert_array_equal(model.sample(jax.random.key(1), n, label, known), together)
    sampling._sample.clear_cache()


def test_the_weights_in_a_cache_do_not_make_the_groups_smaller(monkeypatch):
    """A group is as many images as fit: the packed weights of a PixelCNN++ are larger than the caches of many images."""
    model, sizes = drawn(PixelCNNPPConfig(image_shape=(4, 4, 1), levels=2, width=24, resnets=1, resolutions=1)), {}
    for n in (1, 2):
        cache = jax.eval_shape(lambda n=n: model.init_cache(n, model.condition(n)))
        sizes[n] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    one = sizes[2] - sizes[1]
    assert sizes[1] > 10 * one
    monkeypatch.setattr(sampling, "CACHE_BYTES", 6 * one)
    assert [sampling.group_size(n, model.init_cache, model.condition(n)) for n in (1, 5, 6, 12, 13, 16)] == [1, 5, 6, 6, 5, 4]


TWO_DEVICES = """
import jax, numpy as np
from jaxgen import sharding
from jaxgen.models import GatedPixelCNNConfig, ImageTransformerConfig, build
size = {"image_shape": (4, 6, 1), "levels": 3, "num_classes": 2, "layers": 1, "width": 8}
configs = GatedPixelCNNConfig(**size), ImageTransformerConfig(**size, heads=2, hidden=8)  # row by row, and in an order of its own
label, mask = np.arange(5) % 2, np.random.default_rng(0).random((4, 6)) < 0.3
for config in configs:
    model, key, known = build(config), jax.random.key(1), (np.ones((5, 4, 6, 1), np.uint8), mask)
    one = model.sample(key, 5, label, known)
    two = model.sample(key, 5, label, known, mesh=sharding.make_mesh())
    assert len(two.sharding.device_set) == 2 == jax.device_count()
    np.testing.assert_array_equal(one, two)
print("same")
"""


@pytest.mark.skipif("JAXGEN_THOROUGH" not in os.environ, reason="make thorough has it; reports of several devices have the samples of one")
def test_two_devices_draw_the_images_of_one():
    result = child(TWO_DEVICES, **virtual_devices(2))
    assert finish(result).strip() == "same"


BAD_SAMPLES = {
    "no images": ({"n": 0}, "n"),
    "n a bool": ({"n": True}, "n"),
    "n a float": ({"n": 2.0}, "n"),
    "n an array": ({"n": np.ones((9, 9))}, "n"),
    "no key": ({"key": None}, "key"),
    "a seed for a key": ({"key": 0}, "key"),
    "two keys": ({"key": jax.random.split(jax.random.key(0))}, "key"),
    "method": ({"method": "fast"}, "method"),
    "cold": ({"temperature": 0.0}, "temperature"),
    "not a temperature": ({"temperature": float("nan")}, "temperature"),
    "temperature a text": ({"temperature": "1"}, "temperature"),
    "temperatures": ({"temperature": np.ones(2)}, "temperature"),
    "label a text": ({"label": "a"}, "label"),
    "label of 41 bits": ({"label": 2**40}, "label"),
    "label of 71 bits": ({"label": 2**70}, "label"),
    "ragged labels": ({"label": [[1], [1, 2]]}, "label"),
    "no label": ({"label": None}, "label"),
    "label too large": ({"label": jnp.array([0, 3])}, "label"),
    "negative label": ({"label": -1}, "label"),
    "label not an integer": ({"label": jnp.array([0.0, 1.0])}, "label"),
    "labels of another batch": ({"label": jnp.array([0, 1, 2])}, "label"),
    "known without mask": ({"known": np.zeros((2, 3, 4, 1), np.uint8)}, "known"),
    "known of another shape": ({"known": (np.zeros((2, 4, 3, 1), np.uint8), np.ones((2, 3, 4), bool))}, "known image"),
    "known of another batch": ({"known": (np.zeros((3, 3, 4, 1), np.uint8), np.ones((3, 4), bool))}, "known image"),
    "known out of range": ({"known": (np.full((3, 4, 1), 4, np.uint8), np.ones((3, 4), bool))}, "known image"),
    "no mask": ({"known": (np.zeros((3, 4, 1), np.uint8), None)}, "known mask"),
    "a mask and no image": ({"known": (None, np.ones((3, 4), bool))}, "known image"),
    "ragged image": ({"known": ([[1], [1, 2]], np.ones((3, 4), bool))}, "known image"),
    "mask not boolean": ({"known": (np.zeros((3, 4, 1), np.uint8), np.ones((3, 4), np.uint8))}, "known mask"),
    "mask of another shape": ({"known": (np.zeros((3, 4, 1), np.uint8), np.ones((4, 3), bool))}, "known mask"),
}


@pytest.mark.parametrize(("arguments", "name"), BAD_SAMPLES.values(), ids=BAD_SAMPLES.keys())
def test_a_bad_argument_of_sample_is_one_line_that_names_it(arguments, name, unchecked):
    model = Neighbours(image_shape=(3, 4, 1), levels=4, num_classes=3)
    with pytest.raises(ConfigError) as error:
        model.sample(**{"key": jax.random.key(0), "n": 2, "label": 1, **arguments})
    assert str(error.value).startswith(f"{name}: wanted ") and "\n" not in str(error.value)


OTHERS = {
    "autoregressive": Config(),
    "VAE": VAEConfig(image_shape=(4, 4, 1), levels=2, latent=2, hidden=(4,)),
    "GAN": GANConfig(image_shape=(2,), levels=0, latent=2, hidden=4),
}


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS.keys())
def test_every_sampler_takes_any_positive_integer_and_refuses_the_rest(config, unchecked):
    model, key = Neighbours() if isinstance(config, Config) else drawn(config), jax.random.key(0)
    for n in (np.int64(2), np.uint8(2), np.array(2), jnp.int32(2)):
        np.testing.assert_array_equal(model.sample(key, n), model.sample(key, 2))
    for n in (0, -1, True, 1.5, "2", None):
        with pytest.raises(ConfigError, match="^n: wanted a positive integer, got "):
            model.sample(key, n)
    with pytest.raises(ConfigError, match="^key: wanted one key"):
        model.sample(0, 2)
    np.testing.assert_array_equal(model.sample(jax.random.PRNGKey(0), 2), model.sample(key, 2))
    with pytest.raises(ConfigError, match="^batch: wanted an entry '(image|point)', got an empty one$"):
        model.loss({}, key)


def test_a_bad_batch_is_one_line_that_names_it():
    model, plain = (Neighbours(image_shape=(3, 4, 1), levels=4, num_classes=classes) for classes in (3, 0))
    good, label = np.zeros((2, 3, 4, 1), np.uint8), np.zeros(2, np.int32)
    with pytest.raises(ConfigError, match="^image: wanted at least one image, got an empty batch$"):
        plain.log_prob(jnp.asarray(good[:0]))
    for image in (good[:, :, :3], good[0], good[:0], good.astype(np.float32), good.astype(np.int64), good + np.uint8(4), [[0]]):
        with pytest.raises(ConfigError, match=r"^image: wanted [^\n]+, got [^\n]+$"):
            model.loss({"image": image, "label": label}, jax.random.key(0))
    with pytest.raises(ConfigError, match="^label: wanted"):
        model.loss({"image": good}, jax.random.key(0))
    with pytest.raises(ConfigError, match="unconditional"):
        plain.sample(jax.random.key(0), 2, label=1)
