"""The rulers against their equations, and reports on fewer examples than a number needs."""

import math

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import stats
from test_evaluation import random_set

from jaxgen import experiment, scores
from jaxgen.data import DataConfig, Dataset, load
from jaxgen.data.features import ClassLabel, Image, Points, Tokens
from jaxgen.evaluation import GaussianModel, evaluate, rulers
from jaxgen.models.gan import GAN, GANConfig


def test_digits_rulers():
    """Full covariance, fitted on the 1,437 images outside the test split: 2.957 bits/dim on the 360 test images; uniform log2 17."""
    fit, test = [load("digits", "train"), load("digits", "validation")], load("digits", "test")
    assert (sum(map(len, fit)), len(test)) == (1437, 360)
    results = rulers(fit, test)
    assert results["gaussian"]["bits_per_dim_bound"] == pytest.approx(2.957, abs=0.01)
    assert results["gaussian"]["dequantisation_samples"] == 16
    assert results["uniform"]["bits_per_dim"] == pytest.approx(np.log2(17), abs=1e-12)
    one = evaluate(GaussianModel.fit(np.concatenate([d.images for d in fit]), 17), test, key=jax.random.key(1))
    assert one["bits_per_dim_bound"] == pytest.approx(results["gaussian"]["bits_per_dim_bound"], abs=0.002)
    assert one["standard_error"] < 0.1


def test_gaussian_is_the_maximum_likelihood_fit_of_dequantised_images():
    images = random_set(40).images
    model = GaussianModel.fit(images, 3)
    flat = images.reshape(40, -1).astype(float)
    np.testing.assert_allclose(model.mean, flat.mean(0) + 0.5)
    np.testing.assert_allclose(model.covariance, np.cov(flat.T, ddof=0) + np.eye(24) / 12)
    v = flat + np.random.default_rng(1).uniform(size=flat.shape)
    wanted = stats.multivariate_normal(model.mean, model.covariance).logpdf(v)
    np.testing.assert_allclose(model.log_density(v.reshape(images.shape)), wanted, rtol=1e-10)


def test_no_direction_is_narrower_than_the_noise():
    """Fewer images than dimensions and constant pixels: the smallest eigenvalue is 1/12, the variance of u."""
    images = random_set(5).images.copy()
    images[:, 0] = 1
    assert np.linalg.eigvalsh(GaussianModel.fit(images, 3).covariance).min() == pytest.approx(1 / 12, rel=1e-9)


def test_a_gaussian_of_gaussian_data_scores_its_entropy():
    """Rounded N(m, S0), S0 much wider than a level: bits/dim is the differential entropy of S0 + I/6 (rounding, then u)."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4)) * 8
    x = np.round(rng.normal(size=(30_000, 4)) @ root.T + 128).clip(0, 255).astype(np.uint8).reshape(-1, 2, 2, 1)
    result = evaluate(GaussianModel.fit(x[:20_000], 256), Dataset.from_arrays(x[20_000:], levels=256), batch_size=5000)
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * (root @ root.T + np.eye(4) / 6))[1]
    assert result["bits_per_dim_bound"] == pytest.approx(entropy / 4 / np.log(2), abs=4 * result["standard_error"])
    assert result["standard_error"] < 0.01


def test_rulers_of_one_image_are_those_that_can_be_fitted():
    results = rulers(random_set(1), random_set(1))
    assert results["uniform"]["bits_per_dim"] == pytest.approx(np.log2(3)) and results["gaussian"] == {}


def test_a_report_on_one_example_says_what_cannot_be_computed(capsys):
    run = experiment.Experiment(GANConfig((2,), 0, latent=2, hidden=8), DataConfig("ring"))
    model = jax.jit(lambda: GAN(run.model, rngs=nnx.Rngs(0)))()
    experiment.print_evaluation(run, model, Dataset(load("ring", "test").source.select(slice(1)), "ring", "test"), 64)
    out, err = capsys.readouterr()
    assert out.startswith("test frechet_points         cannot be computed of 1 example: it needs at least 2\n")
    assert err == "" and "nan" not in out and "modes_covered " in out


# --- Ruined models ------------------------------------------------------------------------------------------------------------------

IMAGE, STRING = Image((2, 2, 1), 16), Tokens(5, 8)


@pytest.mark.parametrize(
    ("result", "feature", "earlier", "wanted"),
    [
        ({"bits_per_dim": 1e6}, IMAGE, {}, "bits_per_dim is 1e+06: worse than 4.0000, where all 16 values are equally likely"),
        ({"bits_per_dim_bound": 4.1}, IMAGE, {}, "bits_per_dim_bound is 4.1: worse than 4.0000"),
        ({"bits_per_dim": 4.0000001}, IMAGE, {}, ""),  # rounding of the uniform model itself
        ({"bits_per_character": 3.1}, STRING, {}, "bits_per_character is 3.1: worse than 3.0000, where all 8 values"),
        ({"bits_per_dim": 3.1}, IMAGE, {10: {"bits_per_dim": 1.5}, 20: {"bits_per_dim": 1.6}, 30: {}}, "1.5 at step 10; --from-step 10"),
        ({"loss": 3.0, "bits_per_dim": None}, IMAGE, {}, ""),
        ({"bits_per_dim": 2.9}, IMAGE, {10: {"bits_per_dim": 1.5}}, ""),
        ({"accuracy": 0.4}, ClassLabel(10), {10: {"accuracy": 0.9}}, "accuracy is 0.4: far from the best so far, 0.9 at step 10"),
        ({"accuracy": 0.5}, ClassLabel(10), {10: {"accuracy": 0.9}}, ""),
        ({"nats": 4.0}, Points(2), {10: {"nats": 0.1}}, "nats is 4: far from the best so far, 0.1"),
        ({"nats": -1.5}, Points(2), {10: {"nats": -3.0}}, ""),
        ({"frechet_pixels": 30.0}, IMAGE, {10: {"frechet_pixels": 2.0}}, "far from the best so far, 2 at step 10"),
        ({"frechet_pixels": math.nan}, IMAGE, {10: {"frechet_pixels": None}}, ""),
    ],
)
def test_a_ruined_model_is_named(result, feature, earlier, wanted):
    got = scores.ruined(result, feature, earlier)
    assert wanted in got and bool(wanted) == bool(got)
