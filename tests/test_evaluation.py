"""The evaluator against closed forms: the rulers, the scale rule, and numbers that do not depend on how they are computed."""

import json
import os
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import virtual_devices
from flax import nnx
from scipy import linalg, stats

from jaxgen import evaluation, sharding
from jaxgen.data import Dataset, load
from jaxgen.data import points as ring
from jaxgen.errors import ConfigError, DataError, NonFiniteError
from jaxgen.evaluation import bits_per_dim, evaluate, frechet_distance, headline, metrics_of, mode_coverage
from jaxgen.measures.scores import not_computed
from jaxgen.models.gan import GAN, GANConfig
from jaxgen.models.multivariate_gaussian import GaussianDensity
from jaxgen.models.uniform import Uniform
from jaxgen.models.vae import VAE, VAEConfig

CONFIG = VAEConfig((4, 6, 1), 3, latent=2, hidden=(8,))


def random_set(n: int = 23, shape=(4, 6, 1), levels: int = 3, seed: int = 0) -> Dataset:
    image = np.random.default_rng(seed).integers(0, levels, (n, *shape)).astype(np.uint8)
    return Dataset.from_arrays(image, np.arange(n, dtype=np.int32) % 2, levels=levels)


class Exact(nnx.Module):
    """Independent pixels with learned frequencies, class-conditional: a likelihood that can be checked by hand."""

    def __init__(self, config: VAEConfig):
        self.config = config
        self.logits = nnx.Param(jax.random.normal(jax.random.key(0), (2, *config.image_shape, config.levels)))

    def log_prob(self, image, label):
        terms = jnp.take_along_axis(jax.nn.log_softmax(self.logits[...][label]), image[..., None].astype(jnp.int32), axis=-1)
        return terms.sum((1, 2, 3, 4))


@cache
def exact() -> Exact:
    return Exact(VAEConfig((4, 6, 1), 3, num_classes=2))


# --- Bits per dimension -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels, shape", [(2, (4, 6, 1)), (17, (8, 8, 1)), (256, (5, 3, 3))])
def test_the_uniform_model_scores_exactly_log2_levels(levels, shape):
    result = evaluate(Uniform(shape, levels), random_set(23, shape, levels), batch_size=10)
    assert result["bits_per_dim"] == pytest.approx(np.log2(levels), abs=1e-12)
    assert result["standard_error"] == pytest.approx(0, abs=1e-12)
    assert result["n"] == 23
    assert result["nats"] == pytest.approx(np.prod(shape) * np.log(levels), rel=1e-12)


@pytest.mark.parametrize("c, log2_scale", [(1, 0), (256, 8), (128, 7), (1 / 3, -np.log2(3))])
def test_scale_rule(c, log2_scale):
    """A Gaussian fitted to v / c has another density, and the same bits/dim once log2 c is added."""
    rng = np.random.default_rng(0)
    v = rng.normal(size=(500, 5)) @ rng.normal(size=(5, 5)) + rng.uniform(size=(500, 5))

    def nats(y):
        return -stats.multivariate_normal(y.mean(0), np.cov(y.T)).logpdf(y).mean()

    assert bits_per_dim(nats(v / c), 5, log2_scale) == pytest.approx(bits_per_dim(nats(v), 5), abs=1e-9)


def test_published_conversions():
    """NICE (Dinh et al. 2014): 5371.78 nats on [-1, 1) CIFAR-10 are 4.48 bits/dim in the table of PixelRNN; MNIST on [0, 1)."""
    assert bits_per_dim(-5371.78, 3072, log2_scale=7) == pytest.approx(4.477, abs=1e-3)
    assert bits_per_dim(-1980.50, 784, log2_scale=8) == pytest.approx(4.356, abs=1e-3)


def test_mean_and_standard_error_are_those_of_the_images():
    dataset = random_set()
    logits = np.asarray(exact().logits[...], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p[dataset.labels], dataset.images[..., None].astype(int), -1).sum((1, 2, 3, 4))
    bits = -chosen / 24 / np.log(2)
    result = evaluate(exact(), dataset, batch_size=7)
    assert result["bits_per_dim"] == pytest.approx(bits.mean(), rel=1e-6)
    assert result["standard_error"] == pytest.approx(stats.sem(bits), rel=1e-5)
    assert result["nats"] == pytest.approx(-chosen.mean(), rel=1e-6)


# --- Independence of batch size and devices -----------------------------------------------------------------------------------------


@cache
def vae() -> VAE:
    return jax.jit(lambda: VAE(CONFIG, rngs=nnx.Rngs(0)))()


CASES = {
    "exact": (exact, {}),
    "elbo": (vae, {"samples": 3}),
    "importance": (vae, {"samples": 5, "bound": "importance"}),
    "gaussian": (lambda: GaussianDensity.of_images(random_set(50, seed=1).images, 3), {"samples": 2}),
    "samples": (lambda: jax.jit(lambda: GAN(GANConfig((4, 6, 1), 3, latent=2, hidden=8), rngs=nnx.Rngs(0)))(), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_independent_of_batch_size(name):
    make, options = CASES[name]
    model = make()
    results = [evaluate(model, random_set(), batch_size=size, key=jax.random.key(4), **options) for size in (1, 7, 64)]
    for other in results[1:]:
        assert set(other) == set(results[0])
        for field, value in other.items():
            assert value == pytest.approx(results[0][field], rel=1e-5), field


def all_cases(mesh) -> dict:
    return {name: evaluate(make(), random_set(), batch_size=7, key=jax.random.key(4), mesh=mesh, **o) for name, (make, o) in CASES.items()}


def test_independent_of_the_number_of_devices():
    """Eight virtual devices, in a process of their own, on a mesh of both axes."""
    program = """
        import json, jax
        from test_evaluation import all_cases
        from jaxgen import sharding
        assert jax.device_count() == 8
        print(json.dumps(all_cases(sharding.make_mesh(fsdp=4))))
    """
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    environment = os.environ | virtual_devices(8) | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = all_cases(None)
    for name, result in json.loads(done.stdout).items():
        for field, value in result.items():
            assert value == pytest.approx(wanted[name][field], rel=1e-5), (name, field)


def test_a_model_on_a_mesh_is_evaluated_there():
    mesh = sharding.make_mesh()
    placed = jax.device_put(exact(), sharding.state_sharding(mesh, exact()))
    assert evaluate(placed, random_set(), batch_size=7)["bits_per_dim"] == pytest.approx(
        evaluate(exact(), random_set())["bits_per_dim"], rel=1e-6
    )


def test_the_key_decides_the_noise():
    first, again, other = (evaluate(vae(), random_set(), key=jax.random.key(i))["bits_per_dim_bound"] for i in (0, 0, 1))
    assert first == again != other


# --- Dequantisation -----------------------------------------------------------------------------------------------------------------


class Spikes(nnx.Module):
    """A density concentrated on the integers: worth nothing on dequantised data, and anything without dequantisation."""

    def __init__(self, config: VAEConfig, scale: float):
        self.config, self.scale = config, nnx.Param(jnp.float32(scale))

    def log_density(self, v):
        scale = jnp.broadcast_to(self.scale[...], v.shape)
        spike = jnp.exp(-0.5 * ((v - jnp.round(v)) / scale) ** 2) / (scale * jnp.sqrt(2 * jnp.pi))
        return (jnp.log(0.5 * spike + 0.5) - jnp.log(4.0)).sum((1, 2, 3))


def test_a_density_on_the_lattice_gains_nothing():
    """The evaluator adds the noise itself: narrower spikes do not raise the score, and stay below log2(levels)."""
    scores = [evaluate(Spikes(CONFIG, s), random_set(200), samples=4)["bits_per_dim_bound"] for s in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert min(scores) > np.log2(3)
    undequantised = [-float(Spikes(CONFIG, s).log_density(jnp.zeros((1, 4, 6, 1)))[0]) / 24 / np.log(2) for s in (1e-1, 1e-4)]
    assert undequantised[1] < -5, "this is the number that the evaluator must not produce"


def test_a_density_under_the_name_log_prob_is_refused():
    class Wrong(Spikes):
        def log_prob(self, image):
            return self.log_density(image.astype(jnp.float32))

    with pytest.raises(ConfigError, match="log_density"):
        evaluate(Wrong(CONFIG, 1e-3), random_set())


def test_dequantisation_is_uniform_and_stays_below_the_next_level(monkeypatch):
    small = np.asarray(evaluation.dequantise(jnp.zeros(20_000, jnp.uint8), jax.random.key(0)))
    assert stats.kstest(small, "uniform").pvalue > 1e-3
    # In float32, 255 + u is 256 for the largest u.
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, 1 - 2**-24, jnp.float32))
    assert 255.99 < float(evaluation.dequantise(jnp.uint8(255), jax.random.key(0))) < 256


# --- Bounds -------------------------------------------------------------------------------------------------------------------------


def test_bounds_are_named_and_ordered():
    dataset = random_set(100)
    elbo = evaluate(vae(), dataset, samples=50)
    tight = evaluate(vae(), dataset, samples=50, bound="importance")
    assert "bits_per_dim" not in elbo | tight, "a lower bound is never called bits_per_dim"
    assert elbo["elbo_samples"] == tight["importance_samples"] == 50
    assert tight["bits_per_dim_bound"] < elbo["bits_per_dim_bound"]
    assert headline(elbo) == ("bits_per_dim_bound", elbo["bits_per_dim_bound"])


# --- Samples ------------------------------------------------------------------------------------------------------------------------


def test_frechet_distance_is_the_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(80, 6)) + 1
    c1, c2 = np.cov(a.T), np.cov(b.T)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(a, a + 2) == pytest.approx(24, rel=1e-8)


def test_frechet_distance_of_a_singular_covariance_is_finite():
    a = np.random.default_rng(0).normal(size=(5, 20))
    assert 0 <= frechet_distance(a, a) < 1e-6
    assert frechet_distance(a, np.zeros((4, 20))) == pytest.approx((a.mean(0) ** 2).sum() + np.trace(np.cov(a.T)))


def test_mode_coverage_counts():
    centres = ring.centres()
    points = np.concatenate([centres[:3], centres[:1] + [[0.05, 0]], centres[3:4] + [[0.07, 0]], [[0, 0]]])
    got = mode_coverage(points, centres, 0.02)
    kl = got.pop("mode_kl")
    assert got == {"modes_covered": 3, "high_quality_fraction": pytest.approx(4 / 6), "smallest_mode_share": 0.0}
    share = np.bincount(np.linalg.norm(points[:, None] - centres, axis=-1).argmin(axis=1), minlength=8) / 6
    assert kl == pytest.approx(stats.entropy(share, np.full(8, 1 / 8)))
    real = mode_coverage(ring.ring("test").images, centres, 0.02)
    assert real["modes_covered"] == 8
    # P(|noise| < 3 sigma) in the plane.
    assert real["high_quality_fraction"] == pytest.approx(1 - np.exp(-4.5), abs=0.005)
    assert real["smallest_mode_share"] == pytest.approx(1 / 8, abs=0.015)
    assert 0 <= real["mode_kl"] < 4 * 7 / (2 * len(ring.ring("test").images))
    assert mode_coverage(np.repeat(centres, 3, axis=0), centres, 0.02)["mode_kl"] == pytest.approx(0, abs=1e-12)
    assert mode_coverage(centres[[2, 2]], centres, 0.02)["mode_kl"] == pytest.approx(np.log(8))


class Copy(nnx.Module):
    """Draws images of a set, or points."""

    def __init__(self, data):
        self.data = nnx.Variable(jnp.asarray(data))

    def sample(self, key, n):
        return self.data[...][jax.random.randint(key, (n,), 0, len(self.data[...]))]


def test_samples_of_the_data_are_close_and_others_far():
    near = evaluate(Copy(load("digits", "train").images), load("digits", "test"))
    far = evaluate(Copy(load("digits", "train").images[:, ::-1]), load("digits", "test"))
    assert headline(near)[0] == "frechet_pixels"
    assert near["n_real"] == near["n_fake"] == 360
    assert 4 * near["frechet_pixels"] < far["frechet_pixels"]


def test_samples_on_the_ring():
    result = evaluate(Copy(ring.ring("train").images), ring.ring("validation"), batch_size=5000)
    assert headline(result)[0] == "frechet_points"
    assert result["frechet_points"] < 0.01
    assert result["modes_covered"] == 8
    assert result["high_quality_fraction"] > 0.98
    dropped = evaluate(Copy(ring.ring("train").images[:1]), ring.ring("validation"), batch_size=5000)
    assert dropped["modes_covered"] == 1
    assert dropped["frechet_points"] > 1


def test_one_example_has_no_frechet_distance_and_the_result_says_so():
    """Of points the modes are counted all the same; two points have a distance."""
    source = ring.ring("test").source
    points = source.columns["point"]
    for n in (1, 2):
        result = evaluate(Copy(points[:1]), Dataset(source.select(slice(n)), "few", "test"))
        assert result["modes_covered"] == 1 and result["n_real"] == n
        assert np.isnan(result["frechet_points"]) == (n == 1)
        wanted = "cannot be computed of 1 example: it needs at least 2" if n == 1 else ""
        assert not_computed("frechet_points", result) == wanted and not_computed("modes_covered", result) == ""
    with pytest.raises(DataError, match="frechet_distance: wanted at least 2 examples in each set, .*, got 1 and 5"):
        frechet_distance(points[:1], points[:5])


# --- Which metrics ---------------------------------------------------------------------------------------------------------------



class Sampled(Exact):
    """The same with a sampler of black images."""

    def sample(self, key, n, label):
        return jnp.zeros((n, *self.config.image_shape), jnp.uint8)


def test_the_headline_stands_and_the_other_metrics_are_those_that_are_named():
    model, dataset = Sampled(exact().config), random_set(9)
    whole = evaluate(model, dataset)
    assert set(whole) == {"bits_per_dim", "standard_error", "nats", "n"}
    assert metrics_of(model, dataset) == ("bits_per_dim", "nats", "frechet_pixels")
    alone = evaluate(model, dataset, metrics=("bits_per_dim",))
    assert alone == {name: whole[name] for name in ("bits_per_dim", "standard_error", "n")}
    more = evaluate(model, dataset, metrics=("frechet_pixels",))
    images = dataset.images.reshape(9, -1) / 2
    wanted = frechet_distance(np.zeros_like(images), images)
    assert more == alone | {"frechet_pixels": pytest.approx(wanted)} and headline(more) == headline(whole)
    with pytest.raises(ConfigError, match="^report.metrics: wanted some of bits_per_dim, nats, frechet_pixels, .*, got accuracy"):
        evaluate(model, dataset, metrics=("accuracy",))


def test_a_generator_may_be_told_by_one_number():
    result = evaluate(Copy(ring.ring("train").images), ring.ring("validation"), batch_size=5000, metrics=("modes_covered",))
    assert set(result) == {"frechet_points", "modes_covered", "n_real", "n_fake"}


# --- Errors -------------------------------------------------------------------------------------------------------------------------


def test_errors_say_what_and_where():
    with pytest.raises(ConfigError, match="bound"):
        evaluate(vae(), random_set(), bound="tight")
    with pytest.raises(ConfigError, match="at least 1"):
        evaluate(vae(), random_set(), samples=0)
    with pytest.raises(DataError, match="wanted 3 levels as the model, got 4"):
        evaluate(vae(), random_set(levels=4))
    with pytest.raises(DataError, match=r"wanted images of shape \[4, 6, 1\] as the model, got \[6, 4, 1\]"):
        evaluate(vae(), random_set(shape=(6, 4, 1)))
    with pytest.raises(DataError, match=r"0\.\.2"):
        GaussianDensity.of_images(random_set(9, levels=4).images, 3)
    with pytest.raises(DataError, match="at least 2"):
        GaussianDensity.of_images(random_set(1).images, 3)


def test_a_nan_is_reported_with_its_image():
    class Broken(Spikes):
        def log_prob(self, image):
            value = image.astype(jnp.float32).sum((1, 2, 3)) - 1000
            return jnp.where(jnp.arange(len(image)) == 3, jnp.nan, value)

    with pytest.raises(NonFiniteError, match="image 3:"):
        evaluate(Broken(CONFIG, 1.0), random_set(5))


def test_one_image_has_no_standard_error():
    assert np.isnan(evaluate(Uniform((4, 6, 1), 3), random_set(1))["standard_error"])
