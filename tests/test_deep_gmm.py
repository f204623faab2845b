"""Deep mixtures of Gaussians: one layer against scikit-learn's EM, two against the mixture over all paths, and steps of EM that climb."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture
from test_gmm import clusters

from jaxgen import evaluation
from jaxgen.data import Dataset
from jaxgen.errors import ConfigError, DataError
from jaxgen.models import DeepGMM, DeepGMMConfig, MultivariateGaussian, MultivariateGaussianConfig
from jaxgen.models.deep_gmm import e_step, em, m_step, start

KEY = jax.random.key(0)


def config_of(*maps: int, **more) -> DeepGMMConfig:
    return DeepGMMConfig((3,), 0, maps, **{"iterations": 12, "tolerance": 0.0, "ridge": 0.0} | more)


def explicit(layers) -> tuple[list[float], list[np.ndarray], list[np.ndarray]]:
    """Weights, means and covariances of all paths, one after the other: v = f_1(f_2(z)), f(y) = V^{-1} (y - c)."""
    weights, means, covariances = [1.0], [np.zeros(3)], [np.eye(3)]
    for layer in reversed(layers):
        found = ([], [], [])
        for weight, one in zip(layer.weights, layer.maps, strict=True):
            inverse = np.linalg.inv(one[:3, :3])
            for w, m, s in zip(weights, means, covariances, strict=True):
                for part, value in zip(found, (weight * w, inverse @ (m - one[:3, 3]), inverse @ s @ inverse.T), strict=True):
                    part.append(value)
        weights, means, covariances = found
    return weights, means, covariances


def log_density(layers, v: np.ndarray) -> np.ndarray:
    joint = [np.log(w) + multivariate_normal(m, s).logpdf(v) for w, m, s in zip(*explicit(layers), strict=True)]
    return logsumexp(joint, axis=0)


def test_one_layer_has_the_likelihood_of_scikit_learn_from_the_same_start():
    x = clusters()
    dataset, config = Dataset.from_arrays(point=x), config_of(3)
    begin = start(dataset, config, KEY)
    weights, means, covariances = explicit(begin)
    for iterations in (1, 12):
        oracle = GaussianMixture(
            3, max_iter=iterations, tol=0, reg_covar=0, weights_init=weights, means_init=means, precisions_init=np.linalg.inv(covariances)
        )
        with warnings.catch_warnings(action="ignore"):  # that it has not converged
            oracle.fit(x.astype(np.float64))
        layers, found = em(dataset, config_of(3, iterations=iterations), begin)
        assert found[-1] == pytest.approx(oracle.lower_bound_, abs=1e-6)  # which adds a little to the weights
        assert log_density(layers, x.astype(np.float64)).mean() == pytest.approx(oracle.score(x), abs=1e-6)
        assert float(DeepGMM.of(config, layers).log_density(jnp.asarray(x)).mean()) == pytest.approx(oracle.score(x), abs=1e-5)


def test_two_layers_are_the_mixture_over_all_paths_and_samples_are_its_draws():
    x = clusters()
    config = config_of(2, 3)
    layers, _ = em(Dataset.from_arrays(point=x), config, start(Dataset.from_arrays(point=x), config, KEY))
    model = DeepGMM.of(config, layers)
    np.testing.assert_allclose(model.log_density(jnp.asarray(x)), log_density(layers, x), atol=2e-5)
    weights, means, covariances = map(np.array, explicit(layers))
    assert len(weights) == 6 and weights.sum() == pytest.approx(1)
    mean = weights @ means
    wanted = np.einsum("k,kde->de", weights, covariances) + np.einsum("k,kd,ke->de", weights, means - mean, means - mean)
    drawn = np.asarray(model.sample(jax.random.key(1), 40_000), np.float64)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * np.sqrt(wanted.max() / 40_000))
    np.testing.assert_allclose(np.cov(drawn.T), wanted, atol=8 * wanted.max() / np.sqrt(40_000))
    assert -log_density(layers, drawn).mean() == pytest.approx(-log_density(layers, x).mean(), abs=0.2)  # their means alone say less


@pytest.mark.parametrize(("maps", "step"), [((2, 3), "full"), ((2, 2, 2), "full"), ((2, 3), "hard")])
def test_em_never_decreases_and_no_layer_does(maps, step):
    dataset, config = Dataset.from_arrays(point=clusters()), config_of(*maps, e_step=step, iterations=40, ridge=0.01)
    layers, found = em(dataset, config, start(dataset, config, KEY))
    assert (np.diff(found) > -1e-12).all() and found[-1] > found[0] + 0.05 and len(found) == 40
    if step == "hard":  # below what the mixture itself has
        points = clusters() + np.random.default_rng(0).normal(0, 0.1, (600, 3))
        assert e_step(dataset, config, layers)[1] < log_density(layers, points).mean()
        moments, _ = e_step(dataset, config, layers)
        assert moments[:, -1, -1].sum() == 600 and (moments[:, -1, -1] % 1 == 0).all()  # every point has one path


def test_every_layer_is_at_its_maximum():
    """After many M steps with the same paths, no small change of the maps of one layer is better."""
    dataset, config = Dataset.from_arrays(point=clusters()), config_of(2, 3)
    layers = start(dataset, config, KEY)
    moments, _ = e_step(dataset, config, layers)
    for _ in range(100):
        layers = m_step(layers, moments)

    def climbed(first, last):
        value = 0.0
        for (i, j), moment in zip(np.ndindex(2, 3), moments, strict=True):
            whole = (last[j] @ first[i])[:-1]
            value += moment[-1, -1] * np.linalg.slogdet(whole[:, :-1])[1] - 0.5 * np.trace(whole @ moment @ whole.T)
        return value / 600

    first, last = (layer.maps for layer in layers)
    best, generator = climbed(first, last), np.random.default_rng(0)
    for _ in range(20):
        change = np.zeros((2, 4, 4)), np.zeros((3, 4, 4))
        for one in change:
            one[:, :-1] = generator.normal(0, 1e-3, (len(one), 3, 4))
        assert max(climbed(first + change[0], last), climbed(first, last + change[1])) < best + 1e-9


def test_on_images_one_map_is_the_gaussian_and_em_climbs_a_bound_on_the_mean_over_the_noise():
    images = np.random.default_rng(1).integers(0, 4, (80, 2, 2, 1)).astype(np.uint8)
    images[:40] //= 2
    dataset = Dataset.from_arrays(images, levels=4)
    config = DeepGMMConfig((2, 2, 1), 4, (1,), ridge=0.0)
    gaussian = MultivariateGaussian.fit(dataset, MultivariateGaussianConfig((2, 2, 1), 4), KEY)
    v = jnp.float32(images) + 0.25
    np.testing.assert_allclose(DeepGMM.fit(dataset, config, KEY).log_density(v), gaussian.log_density(v), rtol=1e-5)
    config = DeepGMMConfig((2, 2, 1), 4, (2, 2), iterations=30, tolerance=0.0, ridge=0.0)
    layers, found = em(dataset, config, start(dataset, config, KEY))
    assert (np.diff(found) > -1e-12).all()
    bound = e_step(dataset, config, layers)[1]
    mean = -evaluation.evaluate(DeepGMM.of(config, layers), dataset, samples=200)["nats"]
    assert mean - 0.3 < bound < mean + 0.01


def test_the_ridge_is_a_variance_of_every_dimension():
    x = clusters().astype(np.float64)
    dataset, config = Dataset.from_arrays(point=clusters()), config_of(1, ridge=0.5)
    layers, _ = em(dataset, config, start(dataset, config, KEY))
    np.testing.assert_allclose(explicit(layers)[2][0], np.cov(x.T, ddof=0) + 0.5 * np.eye(3), rtol=1e-4, atol=1e-5)


def test_what_is_refused():
    for wrong in ({"maps": ()}, {"maps": (2, 0)}, {"iterations": 0}, {"tolerance": -1.0}, {"ridge": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            DeepGMMConfig(**wrong)
    x = clusters(8)
    with pytest.raises(DataError, match="dataset: wanted at least 9 examples, got 8"):
        DeepGMM.fit(Dataset.from_arrays(point=x), config_of(9), KEY)
    same = np.repeat(x[:2], 4, axis=0)
    with pytest.raises(DataError, match="a singular covariance; choose a larger ridge or fewer maps"):
        DeepGMM.fit(Dataset.from_arrays(point=same), config_of(2), KEY)
