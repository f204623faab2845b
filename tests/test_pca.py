"""PCA against scikit-learn and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA as Oracle

from jaxgen import cli
from jaxgen.data import Dataset, load
from jaxgen.errors import ConfigError, DataError
from jaxgen.models import PCA, PCAConfig

KEY = jax.random.key(0)


class Points:
    """A data set of points in memory, with what `fit` reads of one."""

    def __init__(self, points):
        self.points = points.astype(np.float32)

    def __len__(self):
        return len(self.points)

    def epoch(self, size, process):
        for start in range(0, len(self), size):
            rows = np.arange(start, start + size)
            yield {"point": self.points[np.where(rows < len(self), rows, 0)]}, (rows < len(self)).astype(np.float32)


def points(n=3000, d=5, seed=0):
    generator = np.random.default_rng(seed)
    return Points(generator.standard_normal((n, d)) @ generator.standard_normal((d, d)) + generator.standard_normal(d))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_points_have_the_numbers_of_scikit_learn(k):
    data = points()
    x = data.points.astype(np.float64)
    oracle = Oracle(k, svd_solver="full").fit(x)
    model = PCA.fit(data, PCAConfig((5,), 0, k), KEY)
    signs = np.sign((np.asarray(model.components[...]) * oracle.components_).sum(1))
    same = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())  # noqa: E731
    same(model.mean[...], oracle.mean_)
    same(model.components[...], signs[:, None] * oracle.components_)
    same(model.explained_variance[...], oracle.explained_variance_)
    same(model.noise_variance[...], oracle.noise_variance_) if k < 5 else same(model.noise_variance[...] + 1, np.ones(()))
    v = jnp.asarray(data.points)
    z = model.transform(v)
    same(z, signs * oracle.transform(x))
    same(model.inverse_transform(z), oracle.inverse_transform(oracle.transform(x)))
    same(model.log_density(v), oracle.score_samples(x))


def test_images_have_the_numbers_of_scikit_learn_and_the_variance_of_their_noise():
    data = load("digits", "train")
    x = np.asarray(data.images).reshape(len(data), -1).astype(np.float64)
    oracle, model = Oracle(10, svd_solver="full").fit(x), PCA.fit(data, PCAConfig(components=10), KEY)
    np.testing.assert_allclose(model.mean[...], oracle.mean_ + 0.5, rtol=1e-6)
    np.testing.assert_allclose(model.explained_variance[...], oracle.explained_variance_ + 1 / 12, rtol=1e-6)
    np.testing.assert_allclose(model.noise_variance[...], oracle.noise_variance_ + 1 / 12, rtol=1e-6)
    v = jnp.asarray(data.images[:50], jnp.float32) + 0.5
    rebuilt = model.inverse_transform(model.transform(v))
    wanted = oracle.inverse_transform(oracle.transform(x[:50])).reshape(v.shape) + 0.5
    np.testing.assert_allclose(rebuilt, wanted, atol=1e-6 * wanted.max())
    w = np.asarray(model.components[...], np.float64).T * np.sqrt(np.asarray(model.explained_variance[...] - model.noise_variance[...]))
    gaussian = multivariate_normal(oracle.mean_ + 0.5, w @ w.T + float(model.noise_variance[...]) * np.eye(64))
    np.testing.assert_allclose(model.log_density(v), gaussian.logpdf(v.reshape(50, -1)), rtol=2e-6)


def test_samples_have_the_mean_and_the_covariance_of_the_model():
    data = points()
    model = PCA.fit(data, PCAConfig((5,), 0, 2), KEY)
    drawn = np.asarray(jax.jit(lambda model: model.sample(jax.random.key(1), 40_000))(model))
    oracle = Oracle(2).fit(data.points)
    scale = oracle.explained_variance_[0]
    np.testing.assert_allclose(drawn.mean(0), oracle.mean_, atol=4 * np.sqrt(scale / 40_000))
    np.testing.assert_allclose(np.cov(drawn.T), oracle.get_covariance(), atol=6 * scale / np.sqrt(40_000))


def test_samples_of_images_are_levels():
    model = PCA.fit(load("digits", "train"), PCAConfig(), KEY)
    drawn = model.sample(jax.random.key(1), 64)
    assert drawn.dtype == jnp.uint8 and drawn.shape == (64, 8, 8, 1) and int(drawn.max()) <= 16
    assert abs(float(drawn.astype(jnp.float32).mean()) - float(np.asarray(load("digits", "train").images).mean())) < 1
    wide = PCA(PCAConfig(levels=1000), rngs=nnx.Rngs(0))
    assert wide.sample(KEY, 2).dtype == jnp.uint16


def test_what_has_no_density_is_one_line():
    line = Points(np.outer(np.arange(10), [1, 2, 0]))
    with pytest.raises(DataError, match="vary in more than 1 directions"):
        PCA.fit(line, PCAConfig((3,), 0, 1), KEY)
    with pytest.raises(DataError, match="vary in all 3 directions"):
        PCA.fit(line, PCAConfig((3,), 0, 3), KEY)
    with pytest.raises(DataError, match="at least 2 examples"):
        PCA.fit(Dataset.from_arrays(np.zeros((1, 8, 8), np.uint8), levels=17), PCAConfig(), KEY)
    with pytest.raises(ConfigError, match=r"components: wanted 1..2"):
        PCAConfig((2,), 0, 16)
    with pytest.raises(ConfigError, match="levels"):
        PCAConfig((2,), 17, 1)
    with pytest.raises(ConfigError, match="v: wanted shape"):
        PCA(PCAConfig(), rngs=nnx.Rngs(0)).log_density(jnp.zeros((2, 8, 8)))


def test_a_set_of_few_dimensions_has_as_many_components():
    assert PCAConfig.defaults_for(load("ring", "test").features) == {"components": 2}
    assert PCAConfig.defaults_for(load("digits", "test").features) == {}


@pytest.mark.parametrize("option", ["--data.augment=flip", "--optimizer.learning_rate=9", "--optimizer.name=sgd"])
def test_a_setting_without_effect_is_an_error(option, tmp_path, capsys):
    assert cli.command("train", ["pca", "--data.name=digits", option, f"--workdir={tmp_path / 'run'}"]) == 2
    name = option.partition("=")[0]
    err = capsys.readouterr().err
    assert err.startswith(f"jaxgen: {name}: wanted its default: the model is fitted in closed form, without steps, got ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
