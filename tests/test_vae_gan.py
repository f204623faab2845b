"""The VAE with an adversarial term: whom each term trains, the mean image, and bounds that are those of the VAE."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import with_weights
from flax import nnx
from test_models import ALL

from jaxgen.errors import ConfigError
from jaxgen.models import VAE, VAEGAN, VAEConfig, VAEGANConfig

SMALL = {
    "mlp": VAEGANConfig((4, 4, 1), 3, latent=2, hidden=(6,), adversarial=0.5, num_classes=2),
    "conv": VAEGANConfig((4, 4, 3), 5, latent=2, hidden=(4, 3), architecture="conv", adversarial=0.5, estimator="A"),
}
OF_THE_VAE = ("features", "posterior", "decoder")
KEY = jax.random.key(5)


def make(config: VAEGANConfig) -> VAEGAN:
    """A new model, always with the same weights."""
    return with_weights(config)


def batch_of(config, n: int = 9) -> dict:
    """Of more than 8 images, since convolutions of fewer are many operations, dear to compile (layers/convolutions.py)."""
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.integers(0, config.levels, (n, *config.image_shape)), jnp.uint8)}
    return batch | ({"label": jnp.arange(n, dtype=jnp.int32) % config.num_classes} if config.num_classes else {})


def plain(model: VAEGAN) -> VAE:
    """A VAE of vae.py with the same weights, those of the discriminator left out."""
    config = VAEConfig(**{field.name: getattr(model.config, field.name) for field in fields(VAEConfig)})
    graph, state = nnx.split(jax.eval_shape(lambda: VAE(config, rngs=nnx.Rngs(1))))
    own = nnx.state(model)
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves({name: own[name] for name in OF_THE_VAE})))


@pytest.mark.parametrize("name", SMALL)
def test_bounds_samples_and_reconstructions_are_those_of_the_vae(name):
    model = make(SMALL[name])
    batch, given = batch_of(SMALL[name]), {k: v for k, v in batch_of(SMALL[name]).items() if k != "image"}

    @jax.jit
    def numbers(one):
        bounds = one.elbo(batch["image"], KEY, **given), one.importance_bound(batch["image"], KEY, 3, **given)
        return *bounds, one.encode(batch["image"], **given), one.reconstruct(batch["image"], **given), one.sample(KEY, 9, **given)

    jax.tree.map(np.testing.assert_array_equal, numbers(model), numbers(plain(model)))


# That of the convolutions is thorough: whom a gradient reaches does not depend on the layers, and theirs are dear to compile.
@pytest.mark.parametrize("name", SMALL if ALL else ["mlp"])
def test_each_term_trains_its_own_networks(name):
    """Encoder: the VAE's gradient. Decoder: the VAE's and `adversarial` times that of L_G. Discriminator: that of L_D."""
    config, batch = SMALL[name], batch_of(SMALL[name])
    given, (key_bound, key_z) = {k: v for k, v in batch.items() if k != "image"}, jax.random.split(KEY)
    model = make(config)

    @jax.jit
    def gradients(model):
        bound = jax.grad(lambda m: m.loss(batch, key_bound)[0])(plain(model))
        _, of_losses = jax.vjp(lambda m: m.adversarial_losses(batch["image"], key_z, **given)[:2], model)
        terms = [of_losses(weights)[0] for weights in ((jnp.float32(1), jnp.float32(0)), (jnp.float32(0), jnp.float32(1)))]
        return jax.grad(lambda m: m.loss(batch, KEY)[0])(model), bound, *terms

    whole, bound, of_generator, of_discriminator = (nnx.to_pure_dict(nnx.state(tree)) for tree in jax.device_get(gradients(model)))
    for part in ("features", "posterior", "discriminator", "realness"):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_generator[part]))
    for part in OF_THE_VAE:
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_discriminator[part]))
        wanted = bound[part] if part != "decoder" else jax.tree.map(lambda a, b: a + 0.5 * b, bound[part], of_generator[part])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole[part], wanted)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of_generator["decoder"]))
    for part in ("discriminator", "realness"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole[part], of_discriminator[part])
        assert all(np.any(leaf) for leaf in jax.tree.leaves(whole[part]))


def test_the_adversarial_losses_are_those_of_the_formula():
    """A discriminator that says 0 of every image: L_G = log 2, L_D = log 4; one that says 3: softplus(-3), softplus(-3) + softplus(3)."""
    config = SMALL["conv"]
    model, batch = make(config), batch_of(config)
    model.realness.kernel[...] = jnp.zeros_like(model.realness.kernel[...])
    for logit in (0.0, 3.0):
        model.realness.bias[...] = jnp.array([logit])
        value, metrics = jax.jit(lambda m: m.loss(batch, KEY))(model)
        small, large = np.log1p(np.exp(-logit)), np.log1p(np.exp(logit))
        np.testing.assert_allclose([metrics["generator_loss"], metrics["discriminator_loss"]], [small, small + large], rtol=1e-5)
        np.testing.assert_allclose(value, metrics["bits_per_dim_bound"] + 0.5 * small + small + large, rtol=1e-5)


@pytest.mark.parametrize("levels, likelihood", [(2, "categorical"), (5, "categorical"), (5, "logistic")])
def test_the_mean_image_is_the_mean_of_many_draws(levels, likelihood):
    config = VAEGANConfig((2, 2, 1), levels, latent=2, hidden=(6,), likelihood=likelihood)
    model, n = make(config), 20_000
    if likelihood == "logistic":  # the location is the mean of the unclipped, unrounded distribution only: a narrow one shows it
        model.decoder.layers[-1].bias[...] = jnp.tile(jnp.array([0.0, -3.0]), 4)
    z = jnp.array([[0.4, -1.0]])
    mean, parameters = jax.jit(lambda m: (m.mean_image(z), m.decode(z)))(model)
    drawn = model.head.sample(jnp.repeat(parameters, n, axis=0), model.head.noise(KEY, (n, 2, 2, 1)))
    found = np.asarray(drawn).mean(0) * 2 / (levels - 1) - 1
    np.testing.assert_allclose(mean[0], found, atol=0.03 if likelihood == "categorical" else 0.2)


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match="^adversarial: wanted 0 or more, got -1.0"):
        replace(SMALL["mlp"], adversarial=-1.0)
