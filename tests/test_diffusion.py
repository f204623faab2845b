"""Diffusion models with exact estimates in the place of the network: bounds and samples; losses and their weights; the learned schedule."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgen import evaluation, sharding, training
from jaxgen.data import Dataset
from jaxgen.data.features import Points
from jaxgen.denoising import bound
from jaxgen.denoising.exact import gaussian_denoiser
from jaxgen.denoising.schedules import variance_preserving
from jaxgen.errors import ConfigError
from jaxgen.layers.denoising_mlp import MLPDenoiserConfig
from jaxgen.layers.dit import DiTConfig
from jaxgen.layers.learned_schedule import FIRST_ENDS, RisingLogRatio
from jaxgen.measures import scores
from jaxgen.measures.metrics import METRICS
from jaxgen.models import Diffusion, DiffusionConfig
from jaxgen.models.diffusion import MIN_SNR, tables

KEY = jax.random.key(0)
TINY = {"network": "mlp", "mlp": MLPDenoiserConfig(4, 1)}
POINTS = DiffusionConfig((1,), 0, **TINY, steps=20, schedule="sohl_dickstein", terms=0)
LEARNED = {"schedule": "learned", "weights": "bound", "terms": 4}
IMAGES = DiffusionConfig((2, 2, 1), 3, 2, **TINY, steps=5, schedule="cosine", terms=0, sample_steps=3, drop_label=0.5)
MEAN, VARIANCE = 0.3, 0.37


def fresh(config: DiffusionConfig) -> Diffusion:
    return Diffusion(config, rngs=nnx.Rngs(0))


@cache
def shapes(config: DiffusionConfig) -> Diffusion:
    """A model without numbers, for what only its configuration decides."""
    return jax.eval_shape(lambda: fresh(config))


class ExactNetwork(nnx.Module):
    """What the network of a model of points would give without error for x_0 ~ N(mean, variance I); learned variances too."""

    def __init__(self, config: DiffusionConfig, mean: float, variance: float):
        self.config, self.mean, self.variance = config, mean, variance

    def __call__(self, x, time, label=None, hidden=None, key=None):
        config, learned = self.config, self.config.schedule == "learned"
        # The network's time of the learned schedule is (g + 13.3) / 18.3.
        schedule = variance_preserving(lambda t: 13.3 - 18.3 * t) if learned else shapes(config).schedule
        x0 = jax.vmap(lambda x, t: gaussian_denoiser(schedule, self.mean, self.variance)(x[None], t)[0])(x, time)
        alpha, sigma = (bound.rows_of(part(time), x) for part in schedule)
        noise = (x - alpha * x0) / sigma
        output = {"noise": noise, "x0": x0, "v": alpha * noise - sigma * x0}[config.predicts]
        if learned or config.variances != "learned":
            return output
        steps, small, large, _ = tables(config)
        i = jnp.round(time * config.steps).astype(jnp.int32)
        spread = self.variance * steps.sigma**2 / (steps.alpha**2 * self.variance + steps.sigma**2)
        wanted = np.log(steps.posterior + steps.to_x0**2 * spread)  # log V of the true p(x_s | x_t)
        low, high, wanted = (bound.at(table, i, x) for table in (small, large, wanted))
        share = (wanted - low) / (high - low)
        return jnp.concatenate([output, jnp.broadcast_to(2 * share - 1, x.shape)], axis=-1)

    def guided(self, x, time, label, w):
        return self(x, time)


def with_exact_outputs(config: DiffusionConfig, mean: float = MEAN, variance: float = VARIANCE) -> Diffusion:
    model = fresh(config)
    model.network = ExactNetwork(config, mean, variance)
    return model


@pytest.mark.parametrize("predicts", ["noise", "x0", "v"])
@pytest.mark.parametrize("more", [{"variances": "learned"}, {**LEARNED, "terms": 64}], ids=["steps", "time"])
def test_with_exact_outputs_the_bound_is_the_exact_nll_and_the_kl_of_the_prior(predicts, more):
    """Of 20 steps, and of continuous time: the mean over points and noise, within four of its standard errors."""
    config = replace(POINTS, predicts=predicts, **more)
    model = with_exact_outputs(config)
    x = MEAN + np.float32(np.sqrt(VARIANCE)) * jax.random.normal(KEY, (4000, 1))
    terms = jax.jit(lambda x: model.bound_terms(x, jax.random.key(1)))(x)
    nats = np.asarray(sum(terms), np.float64)
    alpha, sigma = (float(part(jnp.float32(1))) for part in model.schedule)
    end = alpha**2 * VARIANCE + sigma**2
    exact = 0.5 * np.log(2 * np.pi * np.e * VARIANCE) + 0.5 * (end + (alpha * MEAN) ** 2 - 1 - np.log(end))
    error = nats.std() / np.sqrt(len(nats))
    assert error < 0.03 and abs(nats.mean() - exact) < 4 * error


@pytest.mark.parametrize(("sampler", "more"), [("ancestral", {"variances": "learned"}), ("multistep", LEARNED), ("ancestral", LEARNED)])
def test_with_exact_outputs_samples_have_the_moments_of_the_data_and_nothing_is_clipped(sampler, more):
    """Deviation 2, from 200 steps. The mean is 0, since at t = 1 the learned schedule has a share of x_0 that p(x_1) has not."""
    model = with_exact_outputs(replace(POINTS, steps=200, **more), 0.0, 4.0)
    drawn = np.asarray(model.sample(KEY, 8000, sampler=sampler, steps=200))
    assert drawn.mean() == pytest.approx(0, abs=0.1) and drawn.std() == pytest.approx(2, rel=0.04)


def test_the_weights_are_those_of_the_table_whatever_is_predicted():
    """The weight of |target - output|^2 is that of |x_0 - x0_hat|^2: SNR, min(SNR, 5), max(SNR, 1)."""
    generator = np.random.default_rng(0)
    x0, noise, output = (jnp.asarray(generator.standard_normal((5, 1)), jnp.float32) for _ in range(3))
    i = jnp.asarray([1, 3, 9, 15, 20])
    of_snr = {"simple": lambda snr: snr, "min_snr": lambda snr: np.minimum(snr, MIN_SNR), "truncated": lambda snr: np.maximum(snr, 1)}
    for predicts in ("noise", "x0", "v"):
        for weights, of in of_snr.items():
            model = shapes(replace(POINTS, predicts=predicts, weights=weights))
            steps, *_, table = tables(model.config)
            alpha, sigma = (bound.at(part, i, x0) for part in (steps.alpha, steps.sigma))
            x0_hat = model._x0_hat(alpha * x0 + sigma * noise, output, alpha, sigma)
            target = {"noise": noise, "x0": x0, "v": alpha * noise - sigma * x0}[predicts]
            wanted = of(np.asarray(alpha / sigma, np.float64) ** 2) * np.asarray(x0 - x0_hat) ** 2
            np.testing.assert_allclose(bound.at(table, i, x0) * (target - output) ** 2, wanted, rtol=1e-4, err_msg=f"{predicts} {weights}")


def test_the_simple_loss_is_no_likelihood_and_the_bound_loss_is_the_bound():
    """denoising_error has no place in the table of metrics, whose units reports print; the bound of the same draws has its own name."""
    batch = {"image": jax.random.randint(KEY, (6, 2, 2, 1), 0, 3).astype(jnp.uint8), "label": jnp.arange(6) % 2}
    for more in ({}, {"variances": "learned"}, {"weights": "bound"}, LEARNED):
        loss, metrics = jax.jit(fresh(replace(IMAGES, **more)).loss)(batch, KEY)
        assert METRICS.keys() & metrics.keys() == {"bits_per_dim_bound"} and "denoising_error" not in METRICS
        assert metrics["bits_per_dim_bound"] == pytest.approx(float(metrics["nats_bound"]) / (4 * np.log(2)), rel=1e-5)
        if "weights" in more:
            assert loss == pytest.approx(float(metrics["bits_per_dim_bound"]), rel=1e-6) and "denoising_error" not in metrics
        else:
            extra = 0.001 * float(metrics["bits_per_dim_bound"]) if more else 0.0
            assert loss == pytest.approx(float(metrics["denoising_error"]) + extra, rel=1e-5)


def test_drawn_terms_have_the_mean_of_all_terms():
    points = jnp.full((4000, 1), 0.4)
    compute = {terms: jax.jit(with_exact_outputs(replace(POINTS, terms=terms)).elbo)(points, KEY) for terms in (0, 3)}
    means, errors = ([function(np.asarray(one, np.float64)) for one in compute.values()] for function in (np.mean, np.std))
    assert abs(means[0] - means[1]) < 4 * np.hypot(*errors) / np.sqrt(4000) and errors[1] > errors[0]


def test_training_reduces_the_bound_and_moves_the_ends_and_the_middle_of_the_learned_schedule():
    """Two points of the plane, at (1, -1) and (-1, 1), with noise of deviation 0.1: entropy 0.69 - 2 (2.30 - 1.42) nats."""
    generator = np.random.default_rng(0)
    ends = np.where(generator.random((2000, 1)) < 0.5, 1, -1) * [[1, -1]]
    points = np.float32(ends + 0.1 * generator.standard_normal((2000, 2)))
    dataset = Dataset.from_columns({"point": points}, {"point": Points(2)})
    config = DiffusionConfig((2,), 0, 0, "mlp", mlp=MLPDenoiserConfig(32, 1), predicts="v", **LEARNED)
    optimizer, mesh = training.make_optimizer(training.OptimizerConfig(learning_rate=5e-3), 300), sharding.make_mesh()
    state = training.init_state(fresh(config), optimizer, mesh)
    before = evaluation.evaluate(fresh(config), dataset, batch_size=500, mesh=mesh)
    batches = (sharding.place_batch(mesh, batch) for batch in dataset.batches(0, 200, 0))
    step = training.make_train_step(optimizer, mesh, 0.98)
    state = training.fit(state, step, batches, KEY, 300)
    model = training.ema_model(state)
    after = evaluation.evaluate(model, dataset, batch_size=500, mesh=mesh)
    entropy = np.log(2) + np.log(2 * np.pi * np.e * 0.01)
    assert entropy - 4 * after["standard_error"] < after["nats"] < entropy + 0.5 < before["nats"] - 3.2
    terms = [after[f"nats_{name}"] for name in ("prior", "diffusion", "reconstruction")]
    assert sum(terms) == pytest.approx(after["nats"], rel=1e-5) and after["nats_diffusion_standard_error"] > 0
    inside, first = model.log_ratio.inside(jnp.linspace(0, 1, 11)), RisingLogRatio().inside(jnp.linspace(0, 1, 11))
    moved = jnp.abs(model.log_ratio(jnp.asarray([0.0, 1.0])) - jnp.asarray(FIRST_ENDS))
    assert float(jnp.abs(inside - first).max()) > 0.02 and float(moved.max()) > 0.05


def test_the_learned_schedule_rises_between_its_ends_and_evenness_has_the_gradient_of_the_squares():
    """E[terms^2] with terms = g'(t) h(g(t)) for a known h, by many times; its gradient in m is E[terms^2] times that of `evenness`."""
    graph, shapes = nnx.split(RisingLogRatio())
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.5 * generator.standard_normal(leaf.shape), jnp.float32), shapes)
    times = (jnp.arange(2000, dtype=jnp.float32) + 0.5) / 2000

    def terms(model):
        g, slope = jax.jvp(model, (times,), (jnp.ones_like(times),))
        return slope * jax.nn.sigmoid(-0.5 * g - 2)

    @jax.jit
    def program(params):
        model = nnx.merge(graph, params)
        squares = lambda params: (terms(nnx.merge(graph, params)) ** 2).mean()  # noqa: E731
        even = lambda params: nnx.merge(graph, params).evenness(times, terms(model))  # noqa: E731
        direct, value = jax.grad(squares)(params), squares(params)
        return model(jnp.linspace(0, 1, 50)), direct, jax.tree.map(lambda leaf: value * leaf, jax.grad(even)(params))

    g, direct, found = program(params)
    assert (np.diff(g) > 0).all()
    low, span = params["low"][...], jnp.exp(params["log_span"][...])
    np.testing.assert_allclose(g[jnp.asarray([0, -1])], [low, low + span], rtol=1e-5)
    for name in ("slope", "heights", "rates", "places"):
        largest = float(jnp.abs(direct[name][...]).max())
        np.testing.assert_allclose(found[name][...], direct[name][...], rtol=1e-3, atol=5e-4 * largest, err_msg=name)
    assert not np.any(found["low"][...])


def test_guidance_of_zero_is_the_conditional_model_and_known_pixels_are_kept():
    shapes, generator = jax.eval_shape(lambda: fresh(IMAGES)), np.random.default_rng(0)
    model = jax.device_put(jax.tree.map(lambda leaf: np.asarray(generator.standard_normal(leaf.shape, np.float32)), shapes))
    x, label = jax.random.normal(KEY, (4, 2, 2, 1)), jnp.asarray([0, 1, 1, 0])
    plain = model.network(x, jnp.full(4, 0.6), label)
    alpha, sigma = (part(jnp.float32(0.6)) for part in model.schedule)
    np.testing.assert_allclose(model.denoise(x, jnp.float32(0.6), label), (x - sigma * plain) / alpha, rtol=1e-5, atol=1e-5)
    samples = {w: np.asarray(model.sample(KEY, 64, jnp.arange(64) % 2, guidance=w)) for w in (None, 0.0, 3.0)}
    np.testing.assert_array_equal(samples[None], samples[0.0])
    assert (samples[3.0] != samples[0.0]).any()
    image, mask = np.asarray([[0, 1], [2, 1]], np.uint8)[None, ..., None], np.asarray([[True, False], [True, True]])
    known = np.asarray(model.sample(KEY, 16, 1, known=(np.repeat(image, 16, 0), mask)))
    assert (known[:, mask] == image[:, mask]).all() and len(np.unique(known[:, ~mask])) > 1


class TwoPixels(nnx.Module):
    """E[x_0 | x_t] of two pixels of mean 0, deviation 0.2 and correlation 0.8."""

    def __init__(self, config: DiffusionConfig):
        self.config = config

    def guided(self, x, time, label, w):
        covariance = 0.04 * np.asarray([[1, 0.8], [0.8, 1]])
        return gaussian_denoiser(shapes(self.config).schedule, np.zeros(2), covariance)(x.reshape(-1, 2), time[0]).reshape(x.shape)


def test_pixels_are_drawn_given_the_known_ones_and_not_beside_them():
    """A pixel at 1.2 deviations: the other has mean 0.96 and deviation 0.6, in deviations. Measured: 0.77 and 0.54; with each step taken
    once 0.49 and 0.59, 10 times 0.84 and 0.46; 40 steps. The config's sampler, DDIM, would draw no noise."""
    config = DiffusionConfig((1, 2, 1), 256, **TINY, steps=50, predicts="x0", variances="small", sampler="ddim", sample_steps=160)
    model, n = fresh(config), 4000
    model.network = TwoPixels(config)
    image, mask = np.full((n, 1, 2, 1), 158, np.uint8), np.asarray([[True, False]])  # 158 is 0.239 in [-1, 1]
    drawn = np.asarray(model.sample(KEY, n, known=(image, mask)))
    assert (drawn[:, 0, 0] == 158).all()
    other = (drawn[:, 0, 1, 0] / 127.5 - 1) / 0.2
    assert 0.7 < other.mean() < 0.96 and other.std() == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "learned"}, "weights: wanted bound, for the learned schedule"),
        ({**LEARNED, "terms": 0}, "terms: wanted 1 or more, got 0"),
        ({"terms": 5}, "terms: wanted 0..4, got 5"),
        ({"steps": 1}, "steps: wanted 2 or more"),
        ({"drop_label": 1.0}, "drop_label: wanted a number in 0..1"),
        ({"dit": DiTConfig(width=8)}, "dit: wanted its default: the network is mlp"),
        ({"image_shape": (2,), "levels": 0, "num_classes": 0, "clip": True}, "clip: wanted False for points"),
        ({"levels": 0}, "levels: wanted"),
    ],
)
def test_fields_that_do_not_go_together_are_errors(fields, message):
    with pytest.raises(ConfigError, match=message):
        replace(IMAGES, **fields)


def test_arguments_of_a_sampler_that_cannot_be_used_are_errors(unchecked):
    points = fresh(replace(POINTS, terms=1))
    for options, message in (
        ({"sampler": "eular"}, "sampler: wanted one of ancestral.* got eular; did you mean euler"),
        ({"guidance": 1.0}, "guidance: wanted 0 for a model without classes"),
        ({"steps": 0}, "steps: wanted a positive integer"),
        ({"known": (np.zeros((2, 1)), np.zeros(1, bool))}, "known: wanted None, since points have no pixels"),
        ({"label": 1}, "label: wanted None"),
    ):
        with pytest.raises(ConfigError, match=message):
            points.sample(KEY, 2, **options)


def test_a_report_has_the_terms_of_the_bound_in_their_order_with_their_errors():
    result = {"bits_per_dim_bound": 2.0, "standard_error": 0.1, "nats": 9.0, "n": 3, "elbo_samples": 2}
    for number, term in enumerate(Diffusion.term_names):
        result |= {f"nats_{term}": float(number), f"nats_{term}_standard_error": 0.25 if number else float("nan")}
    lines = list(scores.lines("test", result, "image", None, {}, {}))
    wanted = ["nats_prior 0.000", "nats_diffusion 1.000 +- 0.250", "nats_reconstruction 2.000 +- 0.250", "elbo_samples 2"]
    assert [" ".join(line.split()) for line in lines[2:]] == wanted
