"""The rulers against their equations, and reports on fewer examples than a number needs."""

import itertools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import stats
from test_evaluation import random_set

from jaxgen import evaluation, experiment
from jaxgen.data import DataConfig, Dataset, load
from jaxgen.data.features import ClassLabel, Image, Points, Tokens
from jaxgen.evaluation import evaluate, headline, split
from jaxgen.measures import scores
from jaxgen.models import RULERS
from jaxgen.models.gan import GAN, GANConfig
from jaxgen.models.multivariate_gaussian import GaussianDensity
from jaxgen.models.rulers import RIDGES, SMOOTHINGS, HistogramModel, best_ridge, ridges
from jaxgen.reports import final_report


def test_digits_rulers():
    """Full covariance, fitted on the 1,437 images outside the test split: 2.957 bits/dim on the 360 test images; uniform log2 17."""
    fit, test = [load("digits", "train"), load("digits", "validation")], load("digits", "test")
    assert (sum(map(len, fit)), len(test)) == (1437, 360)
    results = evaluation.rulers(fit, test, RULERS)
    assert results["gaussian"]["bits_per_dim_bound"] == pytest.approx(2.957, abs=0.01)
    assert results["gaussian"]["dequantisation_samples"] == 16
    assert results["uniform"]["bits_per_dim"] == pytest.approx(np.log2(17), abs=1e-12)
    one = evaluate(GaussianDensity.of_images(np.concatenate([d.images for d in fit]), 17), test, key=jax.random.key(1))
    assert one["bits_per_dim_bound"] == pytest.approx(results["gaussian"]["bits_per_dim_bound"], abs=0.002)
    assert one["standard_error"] < 0.1


def test_gaussian_is_the_maximum_likelihood_fit_of_dequantised_images():
    images = random_set(40).images
    model = GaussianDensity.of_images(images, 3)
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
    assert np.linalg.eigvalsh(GaussianDensity.of_images(images, 3).covariance).min() == pytest.approx(1 / 12, rel=1e-9)


def test_a_gaussian_of_gaussian_data_scores_its_entropy():
    """Rounded N(m, S0), S0 much wider than a level: bits/dim is the differential entropy of S0 + I/6 (rounding, then u)."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4)) * 8
    x = np.round(rng.normal(size=(30_000, 4)) @ root.T + 128).clip(0, 255).astype(np.uint8).reshape(-1, 2, 2, 1)
    result = evaluate(GaussianDensity.of_images(x[:20_000], 256), Dataset.from_arrays(x[20_000:], levels=256), batch_size=5000)
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * (root @ root.T + np.eye(4) / 6))[1]
    assert result["bits_per_dim_bound"] == pytest.approx(entropy / 4 / np.log(2), abs=4 * result["standard_error"])
    assert result["standard_error"] < 0.01


@pytest.mark.parametrize("smoothing", [2.0**-10, 0.5, 4.0])
def test_a_histogram_sums_to_one_over_all_images_and_counts(smoothing):
    """All 3^4 images of 2 x 2 pixels by brute force; the probability of one by counting in Python."""
    images = np.random.default_rng(0).integers(0, 2, (7, 2, 2, 1)).astype(np.uint8)  # the level 2 is in none of them
    model = HistogramModel(images, 3, smoothing)
    every = np.array(list(itertools.product(range(3), repeat=4)), np.uint8).reshape(-1, 2, 2, 1)
    log_p = model.log_prob(every)
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
    one = every[47].reshape(4)
    counts = [sum(int(image.reshape(4)[d] == one[d]) for image in images) for d in range(4)]
    assert log_p[47] == pytest.approx(sum(math.log((n + smoothing) / (7 + 3 * smoothing)) for n in counts), rel=1e-12)


def test_smoothing_and_ridge_are_those_that_are_best_on_validation():
    """Against a search by brute force: the probabilities of scipy's Gaussian, and the mean over the noise in closed form."""
    training, validation = random_set(20, levels=9).images, random_set(15, levels=9, seed=1).images
    scores = {a: HistogramModel(training, 9, a).log_prob(validation).sum() for a in SMOOTHINGS}
    model = HistogramModel.fit(training, validation, 9)
    assert model.smoothing == max(scores, key=scores.get) and len(set(scores.values())) == len(SMOOTHINGS)
    both = HistogramModel(np.concatenate([training, validation]), 9, model.smoothing)
    np.testing.assert_array_equal(model.log_prob(validation), both.log_prob(validation))
    x = training.reshape(20, -1).astype(float)
    variance, v = x.var(axis=0).mean(), validation.reshape(15, -1) + 0.5

    def score(ridge):  # E_u log N(x + u) = log N(x + 1/2) - tr(S^-1) / 24
        covariance = np.cov(x.T, ddof=0) + (1 / 12 + ridge) * np.eye(24)
        return stats.multivariate_normal(x.mean(0) + 0.5, covariance).logpdf(v).mean() - np.trace(np.linalg.inv(covariance)) / 24

    widths = [ridge * variance for ridge in RIDGES] + [2.0**k / 12 for k in range(7)] + [80 / 12]  # 80 / 12: variance of 9 equal levels
    scores = {ridge: score(ridge) for ridge in widths}
    got = best_ridge(training, validation, 9)
    assert got == pytest.approx(max(scores, key=scores.get), rel=1e-9) and 0 < got < max(scores)


def test_fewer_images_than_dimensions_have_a_ruler_that_does_not_mislead():
    """40 of the digits, 64 places: the ridge is more than half a bit below maximum likelihood."""
    few = [Dataset(load("digits", split).source.select(slice(n)), "few", split) for split, n in (("train", 40), ("validation", 20))]
    results = evaluation.rulers(few, load("digits", "test"), RULERS)
    bits = {name: headline(result)[1] for name, result in results.items()}
    assert bits["ridge_gaussian"] < bits["gaussian"] - 0.5 and bits["histogram"] < bits["uniform"] - 1
    assert all(result["standard_error"] > 0 for name, result in results.items() if name != "uniform")
    assert results["ridge_gaussian"]["ridge"] > 0 and results["histogram"]["smoothing"] in SMOOTHINGS


def bits_of_ridge(training, validation, test):
    """Bits/dim of the Gaussian with the ridge that is chosen, on images of 17 levels; the mean over u by draws."""
    model = GaussianDensity.of_images(np.concatenate([training, validation]), 17, best_ridge(training, validation, 17))
    v = test + np.random.default_rng(0).random(test.shape)
    return -model.log_density(v).mean() / np.log(2) / 64


def test_a_ridge_is_wide_enough_where_training_images_are_copies():
    """All the same: 194 bits/dim with a ridge of 0. Copies of them in validation: 10 bits/dim. Uniform: 4.09."""
    few, test = (np.asarray(load("digits", split).images) for split in ("train", "test"))
    uniform = np.log2(17)
    same, other = few[:1].repeat(2, axis=0), few[1:2]
    assert bits_of_ridge(same, other, test) < uniform + 0.5  # of two images: 4.52
    twice = np.concatenate([few[:40], few[:40]])
    copied, without = bits_of_ridge(twice[:70], twice[70:], test), bits_of_ridge(few[:36], few[36:40], test)
    assert copied < uniform and abs(copied - without) < 0.1
    assert best_ridge(few[:40], np.concatenate([few[:20], few[50:60]]), 17) == best_ridge(few[:40], few[50:60], 17)
    assert best_ridge(same, same, 17) == (17**2 - 1) / 12 == np.arange(17).var()  # nothing to choose on: that of a uniform level
    assert ridges(0.0, 65536)[-1] == pytest.approx(np.arange(65536).var()) and max(ridges(0.0, 2)) == 0.25


def test_a_ruler_that_is_worse_than_uniform_says_so():
    ruled = {"uniform": {"bits_per_dim": 4.0}, "gaussian": {"bits_per_dim_bound": 4.1}, "ridge_gaussian": {"bits_per_dim_bound": 3.9}}
    said = list(scores.lines("test", {"bits_per_dim": 1.0}, "image", None, ruled, {}))
    assert [line.partition(", ")[2] for line in said[-3:]] == ["", "worse than uniform: no measure of a model", ""]


def test_one_set_holds_every_tenth_image_out():
    images = np.arange(25)[:, None].astype(np.uint8)
    for sets, held_out in ([images], [0, 10, 20]), ([images[:20], images[20:]], [20, 21, 22, 23, 24]), ([images[:1], images[1:3]], [0]):
        training, validation = split(sets)
        assert validation[:, 0].tolist() == held_out and len(training) + len(validation) == sum(map(len, sets))


def test_rulers_of_one_image_are_those_that_can_be_fitted():
    results = evaluation.rulers(random_set(1), random_set(1), RULERS)
    assert results["uniform"]["bits_per_dim"] == pytest.approx(np.log2(3))
    assert {name for name, result in results.items() if not result} == {"histogram", "gaussian", "ridge_gaussian"}


def test_a_report_on_one_example_says_what_cannot_be_computed(capsys):
    run = experiment.Experiment(GANConfig((2,), 0, latent=2, hidden=8), DataConfig("ring"))
    model = jax.jit(lambda: GAN(run.model, rngs=nnx.Rngs(0)))()
    final_report.print_evaluation(run, model, Dataset(load("ring", "test").source.select(slice(1)), "ring", "test"), 64)
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
