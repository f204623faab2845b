"""Flow matching: the analytic flow between Gaussians, the loss's closed form, densities that integrate to one, labels and guidance."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import model_of
from flax import nnx
from scipy.stats import norm

from jaxgen import evaluation
from jaxgen.data import Dataset
from jaxgen.errors import ConfigError
from jaxgen.layers.denoising_mlp import MLPDenoiserConfig
from jaxgen.models import FlowMatching, FlowMatchingConfig

TINY = MLPDenoiserConfig(4, 1)
POINTS = FlowMatchingConfig((2,), 0, network="mlp", mlp=TINY, density_steps=20)
MEAN, VARIANCES = np.asarray([0.5, -1.0]), np.asarray([1.0, 4.0])


class Analytic(FlowMatching):
    """The velocity E[alpha' x_0 + sigma' noise | x_t] for x_0 ~ N(MEAN, diag VARIANCES), in a form that divides by no sigma."""

    def velocity(self, x, t, label=None, guidance=0.0):
        (alpha, sigma), (alpha_rate, sigma_rate) = (f(t) for f in self.schedule), self.schedule.rates(t)
        mean, variances = (jnp.asarray(value, jnp.float32)[None] for value in (MEAN, VARIANCES))
        gain = (alpha_rate * alpha * variances + sigma_rate * sigma) / (alpha**2 * variances + sigma**2)
        return alpha_rate * mean + gain * (x - alpha * mean)


@pytest.mark.parametrize("path", ["linear", "trigonometric"])
def test_the_analytic_flow_between_gaussians_gives_their_density_and_samples(path):
    model = Analytic(replace(POINTS, path=path), rngs=nnx.Rngs(0))
    v = jax.random.normal(jax.random.key(0), (50, 2)) * 2
    expected = norm.logpdf(np.asarray(v), MEAN, np.sqrt(VARIANCES)).sum(1)
    numbers = jax.jit(lambda model, v: (model.log_density(v), model.density_errors(v, jax.random.key(1)), model.density(v).end))
    log_density, errors, noise = numbers(model, v)
    np.testing.assert_allclose(log_density, expected, atol=5e-4)
    assert 0 < errors["solver_error"].max() < 5e-4 and not errors["trace_error"].any()
    # The flow takes x_0 to the noise that is as many deviations from its mean.
    np.testing.assert_allclose(noise, (np.asarray(v) - MEAN) / np.sqrt(VARIANCES), atol=2e-4)
    if path == "linear":
        x = np.asarray(model.sample(jax.random.key(2), 4000))
        np.testing.assert_allclose(x.mean(0), MEAN, atol=3.3 * 2 / np.sqrt(4000))
        np.testing.assert_allclose(x.std(0) / np.sqrt(VARIANCES), 1, atol=3.3 / np.sqrt(8000) + 0.005)


def test_the_loss_is_that_of_the_conditional_expectation():
    """The least loss is the mean over t of Var[noise - x_0 | x_t] = 1 + c - (t - (1 - t) c)^2 / S_t, S_t = (1 - t)^2 c + t^2."""

    class Given(nnx.Module):
        """In the place of the network: the analytic velocity at a time for each row, and a constant besides."""

        def __init__(self, more: float):
            self.more = more

        def __call__(self, x, time, *given):
            rows = jax.vmap(lambda x, t: Analytic.velocity(model, x[None], t)[0])(x, time)
            return rows + self.more

    model = Analytic(POINTS, rngs=nnx.Rngs(0))
    x0 = jnp.asarray(MEAN + np.sqrt(VARIANCES) * np.random.default_rng(0).standard_normal((20000, 2)), jnp.float32)
    t = (np.arange(1000) + 0.5)[:, None] / 1000
    least = (1 + VARIANCES - (t - (1 - t) * VARIANCES) ** 2 / ((1 - t) ** 2 * VARIANCES + t**2)).mean()
    for more in (0.0, 0.5):
        model.network = Given(more)
        loss, metrics = jax.jit(lambda x0: model.loss({"point": x0}, jax.random.key(1)))(x0)
        assert abs(float(loss) - least - more**2) < 0.033 and metrics["velocity_error"] == loss  # standard error about 0.01


log_density = jax.jit(lambda model, v: model.log_density(v))


def test_densities_integrate_to_one_on_a_grid():
    """Random weights: points of the plane, and images of one pixel with 3 levels, of which v is a real number."""
    points = model_of("flow_matching of points")
    axis = (np.arange(60) + 0.5) / 5 - 6
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), jnp.float32)
    np.testing.assert_allclose(np.exp(np.asarray(log_density(points, grid), np.float64)).sum() / 25, 1, atol=5e-4)
    config = FlowMatchingConfig((1, 1, 1), 3, network="mlp", mlp=TINY, density_steps=10)
    pixel = FlowMatching(config, rngs=nnx.Rngs(0))
    pixel.network.body.head.kernel = nnx.Param(jnp.full((4, 1), 0.3))
    v = jnp.linspace(-8, 11, 400).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(np.exp(np.asarray(log_density(pixel, v), np.float64)).sum() * 19 / 399, 1, atol=2e-4)


def large() -> FlowMatching:
    """A model of 5 x 4 pixels, whose trace is estimated by two random vectors."""
    model = FlowMatching(FlowMatchingConfig((5, 4, 1), 3, network="mlp", mlp=TINY, density_steps=3, probes=2), rngs=nnx.Rngs(0))
    model.network.body.head.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (4, 20)))
    return model


def test_the_trace_of_large_examples_is_estimated():
    """5 x 4 pixels: Hutchinson's estimate is unbiased, needs a key, and has an error that 200 draws show."""
    model, keys = large(), jax.random.split(jax.random.key(1), 200)
    v = jax.random.uniform(jax.random.key(2), (1, 5, 4, 1)) * 3
    both = jax.jit(lambda keys: (model.density(v, probes=0), jax.vmap(lambda key: model.density(v, key))(keys)))
    exactly, draws = both(keys)
    values, claimed = np.asarray(draws.log_density[:, 0]), np.asarray(draws.standard_error[:, 0])
    assert model.draws_trace and not exactly.standard_error.any()
    assert abs(values.mean() - exactly.log_density[0]) < 3.3 * values.std() / np.sqrt(200)
    np.testing.assert_allclose(np.sqrt((claimed**2).mean()), values.std(), rtol=0.17)  # 3.3 of its errors
    with pytest.raises(ConfigError, match="key: wanted a key for the trace, estimated by 2 random vectors, got None; probes=0"):
        model.log_density(v)


def test_evaluation_gives_every_example_vectors_of_its_own_and_says_the_errors():
    """Two draws of each of 5 images: the bound, and its numerical errors, from the keys that evaluation.py says."""
    model, key = large(), jax.random.key(5)
    images = np.random.default_rng(0).integers(0, 3, (5, 5, 4, 1), np.uint8)
    dataset = Dataset.from_columns({"image": images}, model.config.features)
    result = evaluation.evaluate(model, dataset, batch_size=4, key=key, samples=2)
    density, expected = jax.jit(model.log_density), []
    for i, image in enumerate(images):
        for one in jax.random.split(jax.random.fold_in(key, i), 2):
            v = evaluation.dequantise(jnp.asarray(image[None]), one)
            expected.append(float(density(v, jax.random.fold_in(one, 1))[0]))
    np.testing.assert_allclose(result["nats"], -np.mean(expected), rtol=1e-5)
    assert result["dequantisation_samples"] == 2 and "bits_per_dim_bound" in result
    errors = evaluation.density_errors(model, dataset, 4, key)
    assert 0 < errors["ode_step_error"] < 2 and 0.5 < errors["ode_trace_error"] < 50
    assert evaluation.density_errors(model_of("pca"), dataset, 4, key) == {}


def test_transport_makes_the_paths_shorter_and_less_ambiguous():
    """With the same weights the loss of paired noise is lower, for a network of 0: its target is the displacement noise - x_0."""
    losses = []
    for coupling in ("independent", "transport"):
        model = FlowMatching(replace(POINTS, coupling=coupling), rngs=nnx.Rngs(0))  # its output is 0 at first
        points = jax.random.normal(jax.random.key(0), (64, 2))
        losses.append(float(jax.jit(lambda model, x: model.loss({"point": x}, jax.random.key(1))[0])(model, points)))
    assert losses[1] < 0.3 * losses[0]


def test_guidance_and_known_pixels():
    model = FlowMatching(FlowMatchingConfig((4, 4, 1), 3, 3, "mlp", mlp=TINY), rngs=nnx.Rngs(0))
    model.network.body.head.kernel = nnx.Param(jax.random.normal(jax.random.key(3), (4, 16)))
    label, key = jnp.asarray([0, 1, 2, 0]), jax.random.key(0)
    x, t = jax.random.normal(key, (4, 4, 4, 1)), 0.4

    @jax.jit
    def velocities(model):
        return model.velocity(x, t, label), model.network(x, jnp.full(4, 0.4)), model.velocity(x, t, label, guidance=1.5)

    given, without, guided = velocities(model)
    np.testing.assert_allclose(guided, 2.5 * given - 1.5 * without, rtol=1e-5, atol=1e-5)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 3, (4, 4, 4, 1), np.uint8))
    mask = np.random.default_rng(1).random((4, 4)) < 0.4
    drawn = model.sample(key, 4, label, known=(image, mask), steps=3)
    np.testing.assert_array_equal(np.asarray(drawn)[:, mask], np.asarray(image)[:, mask])
    assert drawn.dtype == jnp.uint8 and (np.asarray(drawn) != np.asarray(image)).any()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"image_shape": (2,), "levels": 0}, "network: wanted mlp for points, got unet"),
        ({"coupling": "transport", "num_classes": 3}, "coupling: wanted independent, for a model of labels, got transport; given a label"),
        ({"probes": -1}, "probes: wanted 0 or more, got -1"),
        ({"drop_label": 1.0}, "drop_label: wanted a number in 0..1, 1 excluded, got 1.0"),
        ({"mlp": TINY}, "mlp: wanted its default: the network is unet"),
    ],
)
def test_errors_of_the_configuration(fields, message):
    with pytest.raises(ConfigError, match=message):
        FlowMatchingConfig(**fields)


def test_errors_of_methods():
    model = model_of("flow_matching of points")
    with pytest.raises(ConfigError, match="sampler: wanted one of ancestral, .*, got huen; did you mean heun?"):
        model.sample(jax.random.key(0), 2, sampler="huen")
    with pytest.raises(ConfigError, match="guidance: wanted 0 for a model without classes, got 1.0"):
        model.sample(jax.random.key(0), 2, guidance=1.0)
    with pytest.raises(ConfigError, match="known: wanted None, since points have no pixels"):
        model.sample(jax.random.key(0), 2, known=(jnp.zeros((2, 2)), np.ones(2, bool)))
    with pytest.raises(ConfigError, match=r"v: wanted shape \[B, 2\], got \[4, 3\]"):
        model.log_density(jnp.zeros((4, 3)))
