"""Gaussians against scipy and scikit-learn, on points and on images with the variance of their noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import multivariate_normal
from sklearn.decomposition import FactorAnalysis

from jaxgen import cli, evaluation
from jaxgen.__main__ import main
from jaxgen.data import Dataset, load
from jaxgen.errors import ConfigError, DataError
from jaxgen.models import RULERS, MultivariateGaussian, MultivariateGaussianConfig, Uniform
from jaxgen.models.multivariate_gaussian import GaussianDensity, factor_analysis

KEY = jax.random.key(0)
KINDS = ("full", "diagonal", "low_rank")


def points(n=500, d=5, seed=0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((n, d)) @ generator.standard_normal((d, d)) + generator.standard_normal(d)).astype(np.float32)


def covariance_of(model: MultivariateGaussian) -> np.ndarray:
    """S in float64 from the parameters."""
    if model.config.covariance == "full":
        inverse = np.linalg.inv(np.asarray(model.whiten[...], np.float64))
        return inverse @ inverse.T
    diagonal = np.diag(np.asarray(model.scale[...], np.float64) ** 2)
    if model.config.covariance == "diagonal":
        return diagonal
    factor = np.asarray(model.factor[...], np.float64)
    return factor @ factor.T + diagonal


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_is_that_of_scipy_with_the_moments_of_the_points(kind):
    x = points()
    model = MultivariateGaussian.fit(Dataset.from_arrays(point=x), MultivariateGaussianConfig((5,), 0, kind, 2), KEY)
    sample = np.cov(x.T.astype(np.float64), ddof=0)
    np.testing.assert_allclose(model.mean[...], x.mean(0, dtype=np.float64), rtol=1e-5)
    covariance = covariance_of(model)
    np.testing.assert_allclose(np.diag(covariance), np.diag(sample), rtol=1e-3 if kind == "low_rank" else 1e-5)
    if kind == "full":
        np.testing.assert_allclose(covariance, sample, rtol=1e-4, atol=1e-5)
    wanted = multivariate_normal(np.asarray(model.mean[...]), covariance).logpdf(x)
    np.testing.assert_allclose(model.log_density(jnp.asarray(x)), wanted, rtol=1e-4, atol=1e-4)


def test_low_rank_is_the_factor_analysis_of_scikit_learn_and_em_never_decreases():
    x = points(d=6).astype(np.float64) + np.random.default_rng(2).normal(size=(500, 6))  # so that no variance of the noise ends at 0
    covariance = np.cov(x.T, ddof=0)
    for rank in (1, 2):
        factor, noise, found = factor_analysis(covariance, rank, most=20_000, gain=1e-12)
        oracle = FactorAnalysis(rank, tol=1e-6, max_iter=20_000, svd_method="lapack").fit(x)
        assert found[-1] == pytest.approx(oracle.score(x), abs=1e-5) and len(found) > 5
        assert (np.diff(found) > -1e-12).all()
        np.testing.assert_allclose(factor @ factor.T + np.diag(noise), oracle.get_covariance(), atol=1e-3 * np.diag(covariance).max())
    _, noise, found = factor_analysis(covariance, 2, floor=3.0)
    assert noise.min() == 3.0 and (np.diff(found) > -1e-12).all()
    full = -0.5 * (6 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + 6)
    assert factor_analysis(covariance, 6)[2][-1] == pytest.approx(full, abs=1e-3)  # of full rank it is the full covariance


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_mean_and_the_covariance_and_images_are_levels(kind):
    model = MultivariateGaussian.fit(Dataset.from_arrays(point=points()), MultivariateGaussianConfig((5,), 0, kind, 2), KEY)
    drawn = np.asarray(jax.jit(lambda model: model.sample(jax.random.key(1), 40_000))(model), np.float64)
    covariance = covariance_of(model)
    scale = np.diag(covariance).max()
    np.testing.assert_allclose(drawn.mean(0), model.mean[...], atol=5 * np.sqrt(scale / 40_000))
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=8 * scale / np.sqrt(40_000))
    images = MultivariateGaussian(MultivariateGaussianConfig((2, 2, 1), 3, kind), rngs=nnx.Rngs(0)).sample(KEY, 50)
    # Draws of N(0, 1), rounded down and clipped at 0; few are above 2.
    assert images.shape == (50, 2, 2, 1) and images.dtype == jnp.uint8 and {0, 1} <= set(np.unique(images).tolist()) <= {0, 1, 2}


def test_on_digits_the_full_one_is_the_ruler_and_no_direction_is_narrower_than_the_noise():
    train, test = load("digits", "train"), load("digits", "test")
    both = Dataset(train.source.joined(load("digits", "validation").source), "digits", "train")
    model = MultivariateGaussian.fit(both, MultivariateGaussianConfig(), KEY)
    bits = evaluation.evaluate(model, test, samples=16)["bits_per_dim_bound"]
    ruler = evaluation.rulers(both, test, {"gaussian": RULERS["gaussian"]})["gaussian"]["bits_per_dim_bound"]
    assert bits == pytest.approx(ruler, abs=1e-3) and bits == pytest.approx(2.957, abs=0.002)  # each with draws of u of its own
    assert np.linalg.eigvalsh(covariance_of(model)).min() == pytest.approx(1 / 12, rel=1e-5)  # of pixels that are the same in all images
    worse = {}
    for kind in KINDS:
        model = MultivariateGaussian.fit(both, MultivariateGaussianConfig(covariance=kind, rank=8), KEY)
        assert np.diag(covariance_of(model)).min() >= (1 - 1e-5) / 12
        worse[kind] = evaluation.evaluate(model, test)["bits_per_dim_bound"]
    assert worse["full"] + 0.1 < worse["low_rank"] < worse["diagonal"] - 0.1
    density = GaussianDensity.of_images(np.asarray(both.images), 17)
    v = np.asarray(test.images[:20], np.float32) + 0.5
    model = MultivariateGaussian.fit(both, MultivariateGaussianConfig(), KEY)
    np.testing.assert_allclose(model.log_density(jnp.asarray(v)), density.log_density(v), rtol=1e-5)


def test_no_variance_of_a_low_rank_covariance_of_images_is_below_that_of_the_noise():
    """The first pixel is the sum of two others: EM without a floor gives its noise less than 1/12."""
    x = np.random.default_rng(0).integers(0, 4, (300, 4))
    x[:, 0] = x[:, 1] + x[:, 2]
    dataset = Dataset.from_arrays(x.reshape(-1, 2, 2, 1).astype(np.uint8), levels=7)
    model = MultivariateGaussian.fit(dataset, MultivariateGaussianConfig((2, 2, 1), 7, "low_rank", 2), KEY)
    covariance = np.cov(x.T.astype(np.float64), ddof=0) + np.eye(4) / 12
    assert factor_analysis(covariance, 2)[1].min() < 0.96 / 12
    assert float((model.scale[...] ** 2).min()) == pytest.approx(1 / 12, rel=1e-5)


def test_equal_levels_are_exactly_eight_bits():
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
    uniform = Uniform((4, 4, 3), 256)
    assert evaluation.evaluate(uniform, Dataset.from_arrays(images))["bits_per_dim"] == pytest.approx(8, abs=1e-12)
    drawn = np.asarray(Uniform((8, 8, 1), 5).sample(KEY, 64))
    assert drawn.dtype == np.uint8 and drawn.shape == (64, 8, 8, 1)
    assert (np.abs(np.bincount(drawn.ravel(), minlength=5) / drawn.size - 0.2) < 5 * np.sqrt(0.16 / drawn.size)).all()
    with pytest.raises(ConfigError, match=r"image: wanted shape \[B, 4, 4, 3\], got \[64, 8, 8, 1\]"):
        uniform.log_prob(drawn)


def test_what_is_refused():
    for rank in (0, 6):
        with pytest.raises(ConfigError, match=f"rank: wanted 1..5, the dimensions of an example, got {rank}"):
            MultivariateGaussianConfig((5,), 0, "low_rank", rank)
    with pytest.raises(ConfigError, match="levels: wanted 2..65536 for images, 0 for points, got 4"):
        MultivariateGaussianConfig((5,), 4)
    with pytest.raises(DataError, match="dataset: wanted at least 2 examples to fit a covariance, got 1"):
        MultivariateGaussian.fit(Dataset.from_arrays(point=points(1)), MultivariateGaussianConfig((5,), 0), KEY)
    flat = points().copy()
    flat[:, 3] = 2
    for kind in KINDS:
        with pytest.raises(DataError, match="wanted points that vary in every coordinate, got no variance in coordinate 3"):
            MultivariateGaussian.fit(Dataset.from_arrays(point=flat), MultivariateGaussianConfig((5,), 0, kind), KEY)
    plane = points(d=2) @ np.random.default_rng(1).standard_normal((2, 5), np.float32)
    with pytest.raises(DataError, match="wanted points that vary in all 5 directions, got a subspace"):
        MultivariateGaussian.fit(Dataset.from_arrays(point=plane), MultivariateGaussianConfig((5,), 0), KEY)
    with pytest.raises(ConfigError, match=r"v: wanted shape \[B, 5\], got \[2, 4\]"):
        MultivariateGaussian(MultivariateGaussianConfig((5,), 0), rngs=nnx.Rngs(0)).log_density(jnp.zeros((2, 4)))


def test_a_run_is_trained_evaluated_and_sampled(tmp_path, capsys):
    words = ["train", "multivariate_gaussian", "--model.covariance=low_rank", "--model.rank=4", "--report.samples=4"]
    assert main([*words, f"--workdir={tmp_path}/run"]) == 0
    out = capsys.readouterr().out
    assert "test bits_per_dim_bound" in out and "gaussian ruler" in out and (tmp_path / "run" / "samples.png").exists()
    assert cli.command("sample", [f"{tmp_path}/run", "--n=4"]) == 0
