"""Bayes' rule with a model of p(x | y): equal to the posterior of an enumerated joint distribution, and what is said of bounds."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import CONFIGS, data_of, model_of
from flax import nnx
from scipy import special, stats

from jaxgen import latent
from jaxgen.data import Dataset
from jaxgen.data.features import ClassLabel, Image, Points
from jaxgen.errors import ConfigError
from jaxgen.latent.generative_classifier import log_posterior
from jaxgen.models import VAE, GatedPixelCNN, GatedPixelCNNConfig, VAEConfig

PRIOR = np.log([0.5, 0.2, 0.3])


def all_images(shape: tuple[int, int, int], levels: int = 2) -> np.ndarray:
    size = int(np.prod(shape))
    return np.array(list(itertools.product(range(levels), repeat=size)), np.uint8).reshape(-1, *shape)


def labelled(image: np.ndarray, label: np.ndarray, levels: int = 2) -> Dataset:
    return Dataset.from_columns({"image": image, "label": label}, {"image": Image(image.shape[1:], levels), "label": ClassLabel(3)})


def sharp(model):
    """The model with weights large enough that its classes differ."""
    generator = np.random.default_rng(5)
    state = jax.tree.map(lambda leaf: leaf + jnp.asarray(generator.normal(0, 0.6, leaf.shape), leaf.dtype), nnx.state(model, nnx.Param))
    nnx.update(model, state)
    return model


def test_it_is_the_posterior_of_the_enumerated_joint_distribution():
    """All 16 images of 2 x 2 bits: p(x, y) is a table that sums to one, and p(y | x) its columns divided by their sums."""
    model = sharp(GatedPixelCNN(GatedPixelCNNConfig((2, 2, 1), 2, 3, layers=1, width=6, head_width=8), rngs=nnx.Rngs(0)))
    image = all_images((2, 2, 1))
    log_prob = jax.jit(lambda model, image, label: model.log_prob(image, label))
    each = [np.asarray(log_prob(model, image, jnp.full(16, y, jnp.int32)), np.float64) for y in range(3)]
    joint = np.exp(np.stack(each)) * np.exp(PRIOR)[:, None]
    assert joint.sum() == pytest.approx(1, abs=1e-5)
    posterior = (joint / joint.sum(0)).T
    assert len(set(posterior.argmax(1))) > 1
    label = np.arange(16, dtype=np.int32) % 3
    dataset = labelled(image, label)
    np.testing.assert_allclose(np.exp(log_posterior(latent.log_likelihoods(model, dataset, batch_size=6), PRIOR)), posterior, atol=1e-5)
    result = latent.classify(model, dataset, PRIOR, batch_size=6)
    losses = -np.log(posterior[np.arange(16), label])
    right = posterior.argmax(1) == label
    assert result["accuracy"] == right.mean() and result["log_loss"] == pytest.approx(losses.mean(), abs=1e-4)
    assert result["standard_error"] == pytest.approx(right.std(ddof=1) / 4)
    assert result["log_loss_standard_error"] == pytest.approx(losses.std(ddof=1) / 4, abs=1e-4)
    assert result["most_frequent"] == 6 / 16 and result["n"] == 16 and result["likelihood"] == "log_prob, exact"
    certain = latent.classify(model, dataset, np.log([1e-12, 1, 1e-12]), batch_size=6)  # p(y) decides alone
    assert certain["accuracy"] == certain["most_frequent"] == 5 / 16


def test_an_importance_bound_tends_to_the_exact_posterior_and_is_named():
    """One latent: p(x | y) = int p(x | z, y) N(z) dz on a fine grid."""
    model = sharp(VAE(VAEConfig((1, 2, 1), 2, 3, latent=1, hidden=(8,)), rngs=nnx.Rngs(3)))
    model.posterior.kernel, model.posterior.bias = nnx.Param(0.1 * model.posterior.kernel[...]), nnx.Param(jnp.array([0.0, 0.5]))
    image, grid = all_images((1, 2, 1)), np.linspace(-8, 8, 1001)
    weights = stats.norm.pdf(grid) / stats.norm.pdf(grid).sum()
    joint = np.zeros((4, 3))
    for y in range(3):
        parameters = model.decode(jnp.asarray(grid[:, None], jnp.float32), y)
        for row, x in enumerate(image):
            terms = model.head.log_prob(parameters, jnp.repeat(jnp.asarray(x)[None], len(grid), 0)).sum((1, 2, 3))
            joint[row, y] = weights @ np.exp(np.asarray(terms, np.float64)) * np.exp(PRIOR[y])
    assert joint.sum() == pytest.approx(1, abs=1e-4)
    exact = joint / joint.sum(1, keepdims=True)
    dataset = labelled(image, np.arange(4, dtype=np.int32) % 3)
    found = np.exp(log_posterior(latent.log_likelihoods(model, dataset, samples=2000, bound="importance"), PRIOR))
    np.testing.assert_allclose(found, exact, atol=0.02)
    assert np.abs(exact - np.exp(PRIOR)).max() > 0.1
    result = latent.classify(model, dataset, PRIOR, samples=2000, bound="importance")
    assert result["likelihood"] == "importance_bound, a lower bound, 2000 draws for each example"
    assert latent.classify(model, dataset, PRIOR)["likelihood"] == "elbo, a lower bound, 1 draw for each example"


@dataclass(frozen=True)
class RoundConfig:
    features = {"point": Points(2), "label": ClassLabel(3)}
    modelled = "point"


class Round(nnx.Module):
    """p(v | y) = N(v; (2 y, 0), I)."""

    def __init__(self):
        self.config = RoundConfig()

    def log_density(self, v, label):
        mean = jnp.stack([2.0 * label.astype(jnp.float32), jnp.zeros(label.shape)], axis=-1)
        return -0.5 * ((v - mean) ** 2).sum(-1) - jnp.log(2 * jnp.pi)


def test_a_density_of_points_is_exact():
    """For three round Gaussians log p(y | v) is linear in v: y (2 v_0 - 2 y) + log p(y), less its log-sum-exp."""
    v, label = np.random.default_rng(0).standard_normal((10, 2)).astype(np.float32) * 3, np.arange(10, dtype=np.int32) % 3
    dataset = Dataset.from_columns({"point": v, "label": label}, RoundConfig.features)
    y = np.arange(3)[None]
    expected = special.log_softmax(2 * y * v[:, :1] - 2 * y**2 + PRIOR[None], axis=1)
    np.testing.assert_allclose(log_posterior(latent.log_likelihoods(Round(), dataset), PRIOR), expected, atol=1e-4)
    result = latent.classify(Round(), dataset, PRIOR)
    assert result["likelihood"] == "log_density, exact" and result["accuracy"] == (expected.argmax(1) == label).mean()


def test_the_prior_is_the_share_of_each_class():
    label = np.array([0, 0, 2, 0], np.int32)
    prior = latent.log_prior(labelled(np.zeros((4, 1, 1, 1), np.uint8), label))
    np.testing.assert_allclose(np.exp(prior), [0.75, 0, 0.25])
    assert prior[1] == -np.inf


def test_a_class_without_training_examples_is_never_predicted_and_costs_an_infinite_loss():
    name = "vae of a label"
    dataset, model = data_of(CONFIGS[name]), model_of(name)
    with np.errstate(divide="ignore"):
        prior = np.log([0.0, 0.5, 0.5])
    posterior = log_posterior(latent.log_likelihoods(model, dataset, batch_size=8), prior)
    assert (posterior[:, 0] == -np.inf).all() and (posterior.argmax(1) != 0).all()
    np.testing.assert_allclose(np.exp(posterior).sum(1), 1)
    result = latent.classify(model, dataset, prior, batch_size=8)
    assert result["log_loss"] == np.inf and np.isnan(result["log_loss_standard_error"]) and 0 <= result["accuracy"] <= 1


def test_other_models_are_refused_in_one_line():
    names = "FlowMatching, GatedPixelCNN, ImageTransformer, "
    for name, got in (("gated_pixelcnn", "GatedPixelCNN without a given label"), ("classifier", "Classifier"), ("pca", "PCA without a")):
        with pytest.raises(ConfigError) as error:
            latent.log_likelihoods(model_of(name), data_of(CONFIGS[name]))
        text = str(error.value)
        assert text.startswith("model: wanted a class-conditional model with a likelihood or a bound (") and names in text
        assert f"got {got}" in text and "(DiagonalBiLSTM, " in text and ", VAE" in text and " GAN," not in text and "VQVAE," not in text
