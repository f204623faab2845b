"""Mixtures of Gaussians: EM against scikit-learn from the same start, on images its bound, densities against scipy."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from jaxgen import evaluation
from jaxgen.__main__ import main
from jaxgen.data import Dataset, load
from jaxgen.errors import ConfigError, DataError
from jaxgen.models import GMM, GMMConfig, MultivariateGaussian, MultivariateGaussianConfig
from jaxgen.models.gmm import Mixture, em, em_step, start

KEY = jax.random.key(0)
KINDS = {"full": "full", "diagonal": "diag"}


def clusters(n=600, d=3, seed=0) -> np.ndarray:
    """Three clusters of different widths that overlap."""
    generator = np.random.default_rng(seed)
    centre, width = generator.normal(0, 2, (3, d)), np.array([0.5, 1.0, 1.5])
    k = generator.integers(0, 3, n)
    return (centre[k] + width[k, None] * generator.normal(size=(n, d)) @ np.triu(np.ones((d, d)))).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_em_has_the_numbers_of_scikit_learn_from_the_same_start(kind):
    x = clusters()
    dataset, config = Dataset.from_arrays(point=x), GMMConfig((3,), 0, 3, kind, iterations=12, tolerance=0.0)
    begin = start(dataset, config, KEY)
    precisions = np.linalg.inv(begin.covariances) if kind == "full" else 1 / begin.covariances
    for iterations in (1, 12):
        oracle = GaussianMixture(
            3, covariance_type=KINDS[kind], max_iter=iterations, tol=0, reg_covar=config.ridge,
            weights_init=begin.weights, means_init=begin.means, precisions_init=precisions,
        )  # fmt: skip
        with warnings.catch_warnings(action="ignore"):  # that it has not converged
            oracle.fit(x.astype(np.float64))
        mixture, found = em(dataset, GMMConfig((3,), 0, 3, kind, iterations=iterations, tolerance=0.0), begin)
        np.testing.assert_allclose(mixture.weights, oracle.weights_, rtol=1e-6)
        np.testing.assert_allclose(mixture.means, oracle.means_, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mixture.covariances, oracle.covariances_, rtol=1e-4, atol=1e-6)
        assert found[-1] == pytest.approx(oracle.lower_bound_, abs=1e-5) and len(found) == iterations
        model = GMM.of(config, mixture)
        assert float(model.log_density(jnp.asarray(x)).mean()) == pytest.approx(oracle.score(x), abs=1e-5)
        np.testing.assert_allclose(jax.nn.softmax(model.log_joint(jnp.asarray(x))), oracle.predict_proba(x), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_em_never_decreases(kind):
    dataset = Dataset.from_arrays(point=clusters())
    config = GMMConfig((3,), 0, 4, kind, iterations=60, tolerance=0.0, ridge=0.0)
    _, found = em(dataset, config, start(dataset, config, KEY))
    assert (np.diff(found) > -1e-12).all() and found[-1] > found[0] + 0.05
    _, found = em(dataset, GMMConfig((3,), 0, 4, kind), start(dataset, config, KEY))
    assert 2 < len(found) < 200 and 0 <= found[-1] - found[-2] < 1e-4


def test_the_density_and_samples_are_those_of_the_components():
    covariances = np.array([[[1.0, 0.5], [0.5, 2.0]], [[0.3, 0.0], [0.0, 0.2]]])
    mixture = Mixture(np.array([0.3, 0.7]), np.array([[0.0, 1.0], [3.0, -1.0]]), covariances)
    model = GMM.of(GMMConfig((2,), 0, 2), mixture)
    v = np.random.default_rng(0).normal(1, 2, (7, 2))
    joint = np.stack([np.log(w) + multivariate_normal(m, s).logpdf(v) for w, m, s in zip(*mixture, strict=True)], axis=1)
    np.testing.assert_allclose(model.log_density(jnp.float32(v)), logsumexp(joint, axis=1), rtol=1e-5)
    drawn = np.asarray(model.sample(jax.random.key(1), 40_000), np.float64)
    mean = mixture.weights @ mixture.means
    outer = np.einsum("k,kd,ke->de", mixture.weights, mixture.means - mean, mixture.means - mean)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.04)
    np.testing.assert_allclose(np.cov(drawn.T), outer + np.einsum("k,kde->de", mixture.weights, mixture.covariances), atol=0.06)
    variances = np.array([[1.0, 2.0], [0.3, 0.2]])
    diagonal = GMM.of(GMMConfig((2,), 0, 2, "diagonal"), mixture._replace(covariances=variances))
    full = GMM.of(GMMConfig((2,), 0, 2), mixture._replace(covariances=np.stack([np.diag(one) for one in variances])))
    np.testing.assert_allclose(diagonal.log_density(jnp.float32(v)), full.log_density(jnp.float32(v)), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_on_images_em_climbs_a_bound_on_the_mean_over_the_noise(kind):
    """One component is the Gaussian; of several the bound is below the mean over u, and close to it."""
    images = np.random.default_rng(1).integers(0, 4, (80, 2, 2, 1)).astype(np.uint8)
    images[:40] //= 2
    dataset = Dataset.from_arrays(images, levels=4)
    one = GMM.fit(dataset, GMMConfig((2, 2, 1), 4, 1, kind, ridge=0.0), KEY)
    gaussian = MultivariateGaussian.fit(dataset, MultivariateGaussianConfig((2, 2, 1), 4, kind), KEY)
    v = jnp.float32(images) + 0.25
    np.testing.assert_allclose(one.log_density(v), gaussian.log_density(v), rtol=1e-5)
    config = GMMConfig((2, 2, 1), 4, 3, kind, iterations=50, tolerance=0.0, ridge=0.0)
    mixture, found = em(dataset, config, start(dataset, config, KEY))
    assert (np.diff(found) > -1e-12).all() and found[-1] > found[0] + 0.05
    bound = em_step(dataset, config, mixture)[1]
    mean = -evaluation.evaluate(GMM.of(config, mixture), dataset, samples=200)["nats"]
    assert mean - 0.3 < bound < mean + 0.01


def test_on_digits_a_mixture_is_better_than_one_gaussian():
    train, test = load("digits", "train"), load("digits", "test")
    bits = {}
    for k in (1, 6):
        model = GMM.fit(train, GMMConfig(components=k, covariance="diagonal"), KEY)
        bits[k] = evaluation.evaluate(model, test)["bits_per_dim_bound"]
    assert bits[6] < bits[1] - 0.2


def test_what_is_refused():
    for wrong in ({"components": 0}, {"iterations": 0}, {"tolerance": -1.0}, {"ridge": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            GMMConfig(**wrong)
    x = clusters(8)
    with pytest.raises(DataError, match="dataset: wanted at least 9 examples for 9 components, got 8"):
        GMM.fit(Dataset.from_arrays(point=x), GMMConfig((3,), 0, 9), KEY)
    same = np.repeat(x[:2], 4, axis=0)
    with pytest.raises(DataError, match="wanted at least 3 different examples, for as many components, got 2"):
        GMM.fit(Dataset.from_arrays(point=same), GMMConfig((3,), 0, 3), KEY)
    with pytest.raises(DataError, match="wanted components that vary in all directions, got a singular covariance; choose a larger ridge"):
        GMM.fit(Dataset.from_arrays(point=same), GMMConfig((3,), 0, 2, ridge=0.0), KEY)


def test_a_run_is_trained_evaluated_and_sampled(tmp_path, capsys):
    words = ["train", "gmm", "--model.components=3", "--model.covariance=diagonal", "--report.samples=4", f"--workdir={tmp_path}/run"]
    assert main(words) == 0
    assert "test bits_per_dim_bound" in capsys.readouterr().out and (tmp_path / "run" / "samples.png").exists()
