"""The gradients of estimators A and B: their means and variances in the linear-Gaussian VAE, where both are known, and of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_vae import LinearGaussian

from jaxgen.distributions import gaussian_kl, gaussian_log_prob, gaussian_sample
from jaxgen.errors import ConfigError
from jaxgen.models.vae import VAE, VAEConfig, estimator_a, estimator_b
from jaxgen.training import gradient_moments

N = 40_000


def bound(exact: LinearGaussian, estimator: str):
    """One draw of L_A or L_B as a function of (mean, log variance) of q(z | x), each [2], and a key."""

    def value(q, key):
        mean, log_variance = (x[None] for x in q)
        z = gaussian_sample(mean, log_variance, key)
        if estimator == "B":
            return estimator_b(z, exact.log_likelihood, gaussian_kl(mean, log_variance).sum(-1))[0]
        prior = lambda z: gaussian_log_prob(jnp.zeros_like(z), jnp.zeros_like(z), z).sum(-1)  # noqa: E731
        return estimator_a(z, exact.log_likelihood, prior, lambda z: gaussian_log_prob(mean, log_variance, z).sum(-1))[0]

    return value


def closed_form(exact: LinearGaussian, mean, log_variance, estimator: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one draw, for every dimension of z: the exact gradient for (mean, log variance), and the variances of its two estimates, [2] each.

    log p(x, z) has the slope -P (z - m) with P the precision of p(z | x) and m its mean; log p(x | z) has -(P - 1) z + P m.
    """
    precision, variance = np.exp(-exact.log_variance), np.exp(log_variance)
    slope = precision if estimator == "A" else precision - 1
    at_mean = slope * mean - precision * exact.mean  # minus the slope's value at the mean of q
    gradient = np.stack([-precision * (mean - exact.mean), (1 - precision * variance) / 2])
    return gradient, slope**2 * variance, variance * (2 * slope**2 * variance + at_mean**2) / 4


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_both_gradients_have_the_exact_mean_and_the_variances_of_the_closed_form(shift):
    exact = LinearGaussian()
    mean, log_variance = exact.mean + shift, exact.log_variance - shift
    variances = {}
    for estimator in "AB":
        q, keys = (jnp.float32(mean), jnp.float32(log_variance)), jax.random.split(jax.random.key(0), N)
        found, variances[estimator] = jax.jit(lambda q, keys, e=estimator: gradient_moments(bound(exact, e), q, keys))(q, keys)
        gradient, *wanted = closed_form(exact, mean, log_variance, estimator)
        for got, exactly, spread, of_draws in zip(found, gradient, wanted, variances[estimator], strict=True):
            assert (abs(np.asarray(got) - exactly) < 4 * np.sqrt(spread / N) + 1e-5).all()
            np.testing.assert_allclose(of_draws, spread, rtol=0.06)
    # A draws the divergence too. For the mean that always costs variance in this model, s^2 (2 P - 1) with q's variance s^2.
    ratio = np.asarray(variances["A"][0]) / np.asarray(variances["B"][0])
    precision = np.exp(-exact.log_variance)
    np.testing.assert_allclose(ratio, (precision / (precision - 1)) ** 2, rtol=0.02)


def test_the_log_variances_gradient_of_b_is_the_noisier_one_for_codes_far_from_the_prior():
    """At the exact posterior A is better where mean^2 > 4 - 2 / P, which is twice the prior's standard deviation or less."""
    exact = LinearGaussian()
    precision = np.exp(-exact.log_variance)
    limit = np.sqrt(4 - 2 / precision)
    for factor in (0.9, 1.1):
        exact.mean = factor * limit
        a, b = (closed_form(exact, exact.mean, exact.log_variance, estimator)[2] for estimator in "AB")
        assert ((a < b) == (factor > 1)).all()


def test_moments_are_those_of_numpy():
    def function(params, key):
        a, b = jax.random.normal(key, (2,))
        return 1000 * params["x"] + a * params["x"] + (b * params["y"] ** 2).sum()

    params, keys = {"x": jnp.float32(2.0), "y": jnp.array([1.0, -3.0])}, jax.random.split(jax.random.key(0), 50)
    mean, variance = jax.jit(lambda p, k: gradient_moments(function, p, k))(params, keys)
    every = jax.vmap(jax.grad(function), (None, 0))(params, keys)
    for name in params:
        each = np.asarray(every[name], np.float64)
        np.testing.assert_allclose(mean[name], each.mean(0), rtol=1e-5)
        np.testing.assert_allclose(variance[name], each.var(0, ddof=1), rtol=2e-3)
    with pytest.raises(ConfigError, match="^keys: wanted two or more, got 1"):
        gradient_moments(function, params, keys[:1])


def test_in_the_model_only_the_encoder_s_gradient_depends_on_the_estimator():
    """log p(x | z) is the same number in both, so the decoder's gradients of the same draws are equal; the encoder's means agree."""
    model = jax.jit(lambda: VAE(VAEConfig((4, 4, 1), 3, latent=2, hidden=(5,)), rngs=nnx.Rngs(0)))()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 3, (6, 4, 4, 1)), jnp.uint8)

    def moments(estimator):
        bound = lambda params, key: nnx.merge(graph, params, rest).elbo(image, key, estimator=estimator).mean()  # noqa: E731
        return jax.jit(lambda keys: gradient_moments(bound, params, keys))(jax.random.split(jax.random.key(1), 2000))

    (mean_a, variance_a), (mean_b, variance_b) = a_and_b = moments("A"), moments("B")
    of_decoder = (jax.tree.leaves((mean["decoder"], variance["decoder"])) for mean, variance in a_and_b)
    for a, b in zip(*of_decoder, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    for name in ("features", "posterior"):
        for a, b, s, t in zip(*(jax.tree.leaves(tree[name]) for tree in (mean_a, mean_b, variance_a, variance_b)), strict=True):
            assert (abs(a - b) < 5 * np.sqrt((s + t) / 2000) + 1e-6).all()
            assert (s != t).any()
