"""The VAE's estimators against exact answers: a linear-Gaussian model where log p(x) is known, and an enumeration of all images."""

import dataclasses
import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from all_models import with_weights
from flax import nnx
from scipy import stats

from jaxgen.checks import interpolate
from jaxgen.distributions import gaussian_kl, gaussian_log_prob, gaussian_sample, importance_bound
from jaxgen.errors import ConfigError
from jaxgen.models.vae import VAE, VAEConfig, estimator_a, estimator_b

SMALL = {
    "mlp": VAEConfig((4, 6, 1), 3, latent=3, hidden=(16,)),
    "conv": VAEConfig((4, 8, 3), 2, latent=3, hidden=(4, 6), architecture="conv"),
    "labels": VAEConfig((4, 4, 1), 5, num_classes=3, latent=2, hidden=(8, 8)),
}


elbo = jax.jit(VAE.elbo, static_argnames="estimator")
decode = jax.jit(VAE.decode)
bound_of, log_density, divergence = jax.jit(importance_bound), jax.jit(gaussian_log_prob), jax.jit(gaussian_kl)
sample = jax.jit(VAE.sample, static_argnames="n")
encode, reconstruct, loss = jax.jit(VAE.encode), jax.jit(VAE.reconstruct), jax.jit(VAE.loss)


@cache
def make(name: str) -> VAE:
    """One for all tests, which leave it alone."""
    return with_weights(SMALL[name])


def images(config: VAEConfig, n: int, seed: int = 0):
    """n of more than 8 is quick to compile: convolutions of fewer images are many operations (layers/convolutions.py)."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.levels, (n, *config.image_shape)), jnp.uint8)


def labels(config: VAEConfig, n: int):
    return jnp.arange(n, dtype=jnp.int32) % config.num_classes if config.num_classes else None


# --- The linear-Gaussian VAE: x = W z + b + noise, so that x ~ N(b, W W' + s^2 I) and p(z | x) is Gaussian ---------------------------


class LinearGaussian:
    """log p(x) in closed form (float64), and the terms of the bounds for a diagonal q(z | x)."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        # Orthogonal columns make the exact posterior diagonal, as q is.
        self.weight = np.linalg.qr(rng.normal(size=(5, 2)))[0] * [1.5, 0.7]
        self.bias, self.noise, self.x = rng.normal(size=5), 0.6, rng.normal(size=5) * 1.5
        self.log_p = stats.multivariate_normal(self.bias, self.weight @ self.weight.T + self.noise**2 * np.eye(5)).logpdf(self.x)
        precision = 1 + (self.weight**2).sum(0) / self.noise**2
        self.mean = self.weight.T @ (self.x - self.bias) / self.noise**2 / precision
        self.log_variance = -np.log(precision)

    def log_likelihood(self, z):
        mean = z @ jnp.float32(self.weight.T) + jnp.float32(self.bias)[None]
        x = jnp.broadcast_to(jnp.float32(self.x), mean.shape)
        return gaussian_log_prob(mean, jnp.full(mean.shape, 2 * np.log(self.noise), jnp.float32), x).sum(-1)

    def draws(self, n: int, shift: float, seed: int = 0):
        """L_A, L_B [n] of z ~ q for q at `shift` from the exact posterior (in its mean, and in log variance)."""

        @jax.jit
        def numbers(mean, log_variance):
            z = gaussian_sample(mean, log_variance, jax.random.key(seed))
            a = estimator_a(
                z,
                self.log_likelihood,
                lambda z: gaussian_log_prob(jnp.zeros_like(z), jnp.zeros_like(z), z).sum(-1),
                lambda z: gaussian_log_prob(mean, log_variance, z).sum(-1),
            )
            return a, estimator_b(z, self.log_likelihood, gaussian_kl(mean, log_variance).sum(-1))

        a, b = numbers(*(np.tile(np.float32(part + shift), (n, 1)) for part in (self.mean, self.log_variance)))
        return np.asarray(a, np.float64), np.asarray(b, np.float64)

    def gap(self, shift: float) -> float:
        """KL(q || p(z | x)) between two diagonal Gaussians: log p(x) minus the bound."""
        ratio = np.exp(shift)
        return 0.5 * np.sum(ratio + shift**2 / np.exp(self.log_variance) - shift - 1)


def test_estimator_a_is_log_p_for_every_z_at_the_exact_posterior():
    exact = LinearGaussian()
    a, b = exact.draws(1000, shift=0.0)
    np.testing.assert_allclose(a, exact.log_p, atol=2e-5)
    assert b.std() > 0.3, "estimator B is random where A is not"
    assert abs(b.mean() - exact.log_p) < 3 * b.std() / np.sqrt(len(b))


@pytest.mark.parametrize("shift", [0.3, -0.5])
def test_both_estimators_average_to_log_p_minus_the_gap(shift):
    exact = LinearGaussian()
    for values in exact.draws(100_000, shift):
        assert abs(values.mean() - (exact.log_p - exact.gap(shift))) < 3 * values.std() / np.sqrt(len(values))
    assert exact.gap(shift) > 0.3, "the wrong posterior must cost something"


def test_importance_bound_rises_to_log_p():
    exact = LinearGaussian()
    log_weights = exact.draws(200_000, shift=0.4)[0]
    bounds, errors = [], []
    for k in (1, 4, 16, 64, 1000):
        values = np.asarray(bound_of(np.float32(log_weights.reshape(k, -1))), np.float64)
        bounds.append(values.mean())
        errors.append(values.std() / np.sqrt(len(values)))
    steps = np.diff(bounds)
    assert (steps > 0).all()
    assert steps[0] > 10 * errors[0], "k = 4 is much better than k = 1"
    assert abs(bounds[-1] - exact.log_p) < 0.01
    assert bounds[-2] < exact.log_p + 3 * errors[-2]


# --- The pieces ---------------------------------------------------------------------------------------------------------------------


def test_gaussian_log_prob_is_scipys():
    mean, log_variance, x = np.float32(np.random.default_rng(0).normal(size=(3, 4, 5)))
    wanted = stats.norm(mean, np.exp(np.asarray(log_variance) / 2)).logpdf(x)
    np.testing.assert_allclose(log_density(mean, log_variance, x), wanted, rtol=1e-5, atol=1e-5)


def test_gaussian_sample_has_the_mean_and_variance():
    n = 100_000
    x = np.asarray(jax.jit(gaussian_sample)(np.full(n, 1.5, np.float32), np.full(n, np.log(0.25), np.float32), jax.random.key(0)))
    assert stats.kstest(x, stats.norm(1.5, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("mean, log_variance", [(0.0, 0.0), (1.5, 0.0), (-0.5, 1.0), (0.2, -3.0)])
def test_kl_is_the_integral(mean, log_variance):
    q, p = stats.norm(mean, np.exp(log_variance / 2)), stats.norm()
    wanted = q.expect(lambda z: q.logpdf(z) - p.logpdf(z))
    got = float(divergence(np.float32(mean), np.float32(log_variance)))
    assert got == pytest.approx(wanted, abs=1e-5)
    assert got >= 0


# --- The model ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_estimators_agree(name):
    model, n = make(name), 2000
    config = model.config
    image, label = jnp.repeat(images(config, 1), n, axis=0), None if config.num_classes == 0 else jnp.ones(n, jnp.int32)
    a, b = (np.asarray(elbo(model, image, jax.random.key(i), label, estimator=e), np.float64) for i, e in enumerate("AB"))
    assert abs(a.mean() - b.mean()) < 3 * np.sqrt((a.var() + b.var()) / n)
    assert a.std() > 0
    assert b.std() > 0


@pytest.mark.parametrize("levels", [2, 3])
def test_bounds_are_below_an_enumerated_likelihood_that_sums_to_one(levels):
    """1 x 2 x 1 images and one latent: p(x) = int p(x | z) N(z) dz on a fine grid."""
    image = np.asarray(list(itertools.product(range(levels), repeat=2)), np.uint8).reshape(-1, 1, 2, 1)
    grid = np.linspace(-8, 8, 2001, dtype=np.float32)

    model = with_weights(VAEConfig((1, 2, 1), levels, latent=1, hidden=(8,)))
    # A wide posterior, so that the weights are bounded and k = 100 is enough.
    model.posterior.kernel, model.posterior.bias = nnx.Param(0.1 * model.posterior.kernel[...]), nnx.Param(jnp.array([0.0, 0.5]))

    @jax.jit
    def numbers(model, image, grid):
        parameters, keys = model.decode(grid[:, None]), jax.random.split(jax.random.key(1), 500)
        terms = [model.head.log_prob(parameters, jnp.repeat(x[None], len(grid), 0)).sum((1, 2, 3)) for x in image]
        one = jax.vmap(lambda key: model.elbo(image, key))(keys)
        many = jax.vmap(lambda key: model.importance_bound(image, key, 100))(keys)
        return jnp.stack(terms), one, many

    log_likelihood, one, k100 = (np.asarray(part, np.float64) for part in numbers(model, image, grid))
    prior = stats.norm.pdf(np.asarray(grid, np.float64))
    p = np.exp(log_likelihood) @ (prior / prior.sum())
    assert p.sum() == pytest.approx(1, abs=1e-5)
    error = one.std(0) / np.sqrt(len(one))
    assert (one.mean(0) < np.log(p) + 4 * error).all()
    assert (k100.mean(0) > one.mean(0) - 4 * error).all()
    np.testing.assert_allclose(k100.mean(0), np.log(p), atol=0.02)
    # The sampler draws from the same distribution.
    drawn = np.asarray(sample(model, jax.random.key(2), n=20_000)).reshape(-1, 2) @ [levels, 1]
    assert stats.chisquare(np.bincount(drawn, minlength=levels**2), 20_000 * p / p.sum()).pvalue > 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_images_of_a_batch_are_independent(name):
    model = make(name)
    image, label = images(model.config, 9), labels(model.config, 9)
    mean, _ = encode(model, image, label)
    changed, _ = encode(model, image.at[0].set(0), label)
    np.testing.assert_array_equal(mean[1:], changed[1:])
    assert not np.array_equal(mean[0], changed[0])


@pytest.mark.parametrize("name", SMALL)
def test_shapes_dtypes_and_keys(name):
    model = make(name)
    config, label = model.config, labels(model.config, 9)
    image = images(config, 9)
    first, again, other = (sample(model, jax.random.key(i), n=9, label=label) for i in (0, 0, 1))
    assert first.shape == image.shape
    assert first.dtype == reconstruct(model, image, label).dtype == jnp.uint8
    assert int(first.max()) < config.levels
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    value, metrics = loss(model, {"image": image, "label": label}, jax.random.key(0))
    wanted = -elbo(model, image, jax.random.key(0), label).mean() / (np.prod(config.image_shape) * np.log(2))
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)
    assert set(metrics) == {"bits_per_dim_bound", "nats_bound"}, "a bound is never called bits_per_dim"


def test_every_parameter_gets_a_gradient():
    for name in SMALL:
        model = make(name)
        batch = {"image": images(model.config, 9), "label": labels(model.config, 9)}
        gradient = jax.jit(jax.grad(lambda model, batch: model.loss(batch, jax.random.key(0))[0]))(model, batch)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            assert np.abs(leaf).max() > 0, (name, jax.tree_util.keystr(path))


def test_the_label_matters():
    model = make("labels")
    image = images(model.config, 2)
    one, two = (elbo(model, image, jax.random.key(0), jnp.full(2, y, jnp.int32)) for y in (0, 1))
    assert not np.allclose(one, two)
    with pytest.raises(ConfigError, match="label"):
        model.elbo(image, jax.random.key(0))


def test_it_uses_its_latent_code():
    """300 steps on digits: below the entropy of independent pixels, which a model that ignores z cannot beat on its training set."""
    from sklearn.datasets import load_digits

    x = load_digits().images.astype(np.uint8)[..., None] // 8  # 3 levels
    frequency = np.stack([(x == v).mean(0) for v in range(3)])
    independent = -np.sum(np.where(frequency > 0, frequency * np.log2(np.maximum(frequency, 1e-9)), 0)) / 64
    config, optimizer = VAEConfig((8, 8, 1), 3, latent=8, hidden=(64,)), optax.adam(3e-3)

    def step(x, carry, key):
        model, state = carry
        index = jax.random.randint(key, (64,), 0, len(x))
        gradient = jax.grad(lambda model: model.loss({"image": x[index]}, key)[0])(model)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
            updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(model, updates), state), None

    @jax.jit
    def trained(x):
        model = VAE(config, rngs=nnx.Rngs(0))
        keys = jax.random.split(jax.random.key(0), 300)
        (model, _), _ = jax.lax.scan(partial(step, x), (model, optimizer.init(model)), keys)
        return model.loss({"image": x}, jax.random.key(0))[0]

    bound = float(trained(x))
    assert bound < 0.85 * independent, (bound, independent)


@pytest.mark.parametrize(
    "bad, name",
    [
        ({"image_shape": (8, 0, 1)}, "image_shape"),
        ({"levels": 1}, "levels"),
        ({"num_classes": -1}, "num_classes"),
        ({"latent": 0}, "latent"),
        ({"hidden": ()}, "hidden"),
        ({"architecture": "conv", "image_shape": (6, 8, 1), "hidden": (4, 4)}, "image_shape"),
        ({"architecture": "conv", "hidden": (4, 4, 4)}, "hidden"),
    ],
)
def test_a_bad_field_is_named(bad, name):
    with pytest.raises(ConfigError, match=name):
        VAEConfig(**bad)


def test_weights_of_classes_stand_for_the_classes_and_what_lies_between():
    model, label = make("labels"), np.array([2, 0, 1], np.int32)
    z = np.random.default_rng(1).standard_normal((3, 2), np.float32)
    np.testing.assert_array_equal(decode(model, z, np.eye(3, dtype=np.float32)[label]), decode(model, z, label))
    image = images(model.config, 3)
    np.testing.assert_array_equal(encode(model, image, np.eye(3, dtype=np.float32)[label])[0], encode(model, image, label)[0])
    line = np.asarray(decode(model, np.zeros((5, 2), np.float32), interpolate(0, 2, 5, num_classes=3)))
    ends = np.asarray(decode(model, np.zeros((2, 2), np.float32), np.array([0, 2], np.int32)))
    np.testing.assert_allclose(line[[0, 4]], ends, rtol=1e-5, atol=1e-6)
    assert (line[2] != ends[0]).any() and (line[2] != ends[1]).any()


def test_bad_images_are_refused():
    model = make("mlp")
    with pytest.raises(ConfigError, match=r"shape \[B, 4, 6, 1\]"):
        model.elbo(jnp.zeros((2, 6, 4, 1), jnp.uint8), jax.random.key(0))
    with pytest.raises(ConfigError, match=r"0\.\.2"):
        model.elbo(jnp.full((2, 4, 6, 1), 3, jnp.uint8), jax.random.key(0))
    with pytest.raises(ConfigError, match="A or B"):
        model.elbo(images(model.config, 2), jax.random.key(0), estimator="C")
    with pytest.raises(ConfigError, match="^k: wanted a positive integer, got 0$"):
        model.importance_bound(images(model.config, 2), jax.random.key(0), 0)


# --- What only the training does ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_the_loss_weighs_the_divergence_and_the_reported_bound_does_not(estimator):
    """beta and free bits by their formula, from the bound and the closed-form KL; the metric is the bound whatever they are."""
    base = VAEConfig((4, 4, 1), 3, latent=2, hidden=(5,), estimator=estimator, samples=400)
    batch, key, size = {"image": images(base, 3)}, jax.random.key(1), 16 * np.log(2)
    model = with_weights(base)

    def numbers(**fields):
        one = jax.eval_shape(lambda: VAE(dataclasses.replace(base, **fields), rngs=nnx.Rngs(0)))
        other = nnx.merge(nnx.split(one)[0], nnx.split(model)[1])
        value, metrics = loss(other, batch, key)
        return float(value) * size, float(metrics["nats_bound"])

    kl = np.asarray(gaussian_kl(*encode(model, batch["image"]))).mean(0)
    plain, bound = numbers()
    assert plain == pytest.approx(bound, rel=1e-5)
    assert numbers(beta=3.0)[0] - plain == pytest.approx(2 * kl.sum(), abs=1e-4 if estimator == "B" else 0.2)  # A draws the KL
    freed, reported = numbers(free_bits=0.5)
    assert reported == pytest.approx(bound, rel=1e-5) and kl.max() < 0.2
    assert freed - plain == pytest.approx(2 * 0.5 - kl.sum(), abs=1e-4 if estimator == "B" else 0.1)


def test_many_samples_average_the_estimates_of_one():
    base = VAEConfig((4, 4, 1), 3, latent=2, hidden=(5,), estimator="A")
    model = with_weights(base)
    many = jax.eval_shape(lambda: VAE(dataclasses.replace(base, samples=3), rngs=nnx.Rngs(0)))
    many = nnx.merge(nnx.split(many)[0], nnx.split(model)[1])
    batch, key = {"image": images(base, 2)}, jax.random.key(1)
    each = [float(elbo(model, batch["image"], one).mean()) for one in jax.random.split(key, 3)]
    assert float(loss(many, batch, key)[1]["nats_bound"]) == pytest.approx(-np.mean(each), rel=1e-5)


def test_the_logistic_likelihood_sums_to_one_over_all_images():
    model = with_weights(VAEConfig((1, 2, 1), 4, latent=1, hidden=(3,), likelihood="logistic"))
    every = jnp.asarray(list(itertools.product(range(4), repeat=2)), jnp.uint8).reshape(16, 1, 2, 1)
    total = jax.jit(lambda m: jnp.exp(m._log_likelihood(every, jnp.full((16, 1), 0.7))).sum())(model)
    assert float(total) == pytest.approx(1, abs=1e-5)
    drawn = np.asarray(sample(model, jax.random.key(0), 50))
    assert drawn.dtype == np.uint8 and drawn.max() <= 3
