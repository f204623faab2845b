"""Latent diffusion: with the exact denoiser of N(0, I) in its prior its bound is that of the VAE; the label, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_diffusion import ExactNetwork

from jaxgen.errors import ConfigError
from jaxgen.layers.denoising_mlp import MLPDenoiserConfig
from jaxgen.models import LatentDiffusion, LatentDiffusionConfig, VAEConfig

CONFIG = LatentDiffusionConfig(VAEConfig((2, 2, 1), 3, 2, latent=2, hidden=(4,)), MLPDenoiserConfig(4, 1), terms=32, sample_steps=3)


def random(config: LatentDiffusionConfig) -> LatentDiffusion:
    shapes, generator = jax.eval_shape(lambda: LatentDiffusion(config, rngs=nnx.Rngs(0))), np.random.default_rng(0)
    return jax.device_put(jax.tree.map(lambda leaf: np.float32(0.5 * generator.standard_normal(leaf.shape)), shapes))


def test_with_an_exact_standard_normal_prior_the_bound_is_that_of_the_vae_and_codes_are_standard_normal():
    """The mean over 4000 draws of z for one image, within four standard errors."""
    model = random(CONFIG)
    model.prior = LatentDiffusion(CONFIG, rngs=nnx.Rngs(0)).prior
    model.prior.network = ExactNetwork(CONFIG.prior, 0.0, 1.0)
    image, label = jnp.broadcast_to(jnp.asarray([[0, 1], [2, 1]], jnp.uint8)[None, ..., None], (4000, 2, 2, 1)), jnp.ones(4000, jnp.int32)

    @jax.jit
    def numbers(model):
        terms = model.bound_terms(image, jax.random.key(0), label)
        return terms, model.elbo(image, jax.random.key(0), label), model.codes.elbo(image, jax.random.key(1), label, estimator="A")

    terms, bound, of_vae = jax.tree.map(lambda x: np.asarray(x, np.float64), numbers(model))
    assert model.term_names == terms._fields and len(terms) == 5
    np.testing.assert_allclose(bound, -sum(terms), rtol=1e-5, atol=1e-5)
    error = np.hypot(bound.std(), of_vae.std()) / np.sqrt(4000)
    assert error < 0.05 and abs(bound.mean() - of_vae.mean()) < 4 * error
    z = np.asarray(model.prior.sample(jax.random.key(2), 4000, sampler="multistep", steps=50))
    assert abs(z.mean()) < 0.06 and z.std() == pytest.approx(1, rel=0.04)


def test_the_label_is_given_to_the_vae_and_other_samplers_can_be_chosen():
    model = random(CONFIG)
    draw = {label: np.asarray(model.sample(jax.random.key(0), 32, label)) for label in (0, 1)}
    assert draw[0].shape == (32, 2, 2, 1) and draw[0].dtype == np.uint8 and (draw[0] != draw[1]).any()
    other = model.sample(jax.random.key(0), 32, 0, sampler="ddim", steps=2)
    assert (np.asarray(other) != draw[0]).any()
    with pytest.raises(ConfigError, match="sampler: wanted one of"):
        model.sample(jax.random.key(0), 2, 0, sampler="eular")
    with pytest.raises(ConfigError, match="label: wanted"):
        model.sample(jax.random.key(0), 2)


def test_fields_of_the_prior_are_checked_by_their_names():
    with pytest.raises(ConfigError, match="weights: wanted bound, for the learned schedule"):
        replace(CONFIG, weights="simple")
    with pytest.raises(ConfigError, match="steps: wanted 2 or more"):
        replace(CONFIG, steps=1)
    assert CONFIG.prior.image_shape == (2,) and LatentDiffusionConfig.sizes_from(CONFIG.features)["codes.num_classes"] == 2
