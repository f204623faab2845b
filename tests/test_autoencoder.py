"""Auto-encoders: the linear one against PCA, tied weights, the codes' averages, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxgen import evaluation, sharding, training
from jaxgen.data import load
from jaxgen.errors import ConfigError
from jaxgen.models import PCA, Autoencoder, AutoencoderConfig, PCAConfig

COMPONENTS = 5


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train")


def pca_error(images) -> float:
    """|x - x'|^2 / D of the best projection on COMPONENTS directions, by numpy's singular values."""
    x = np.asarray(images, np.float64).reshape(len(images), -1) / 16
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    return float((values[COMPONENTS:] ** 2).sum() / x.size)


@pytest.mark.parametrize("tied", [False, True])
def test_a_linear_one_reaches_the_error_of_pca(digits, tied):
    config = AutoencoderConfig(latent=COMPONENTS, hidden=(), tied=tied)
    optimizer, mesh, images = optax.adam(optax.cosine_decay_schedule(0.03, 1000)), sharding.make_mesh(1), digits.images
    state = training.init_state(Autoencoder(config, rngs=nnx.Rngs(0)), optimizer, mesh)
    step = training.make_train_step(optimizer, mesh, 0.9)
    batch = sharding.place_batch(mesh, {"image": images})
    for _ in range(1000):
        state, metrics = step(state, batch, jax.random.key(0))
    best = pca_error(images)
    result = evaluation.evaluate(training.ema_model(state), digits, batch_size=512)
    assert best * (1 - 1e-5) <= result["squared_error"] <= best * 1.01 and result["n"] == len(images)
    # The averages of the codes are those of the data: the weights hardly move at the end, and 0.99^1000 is below 0.0001.
    codes = np.asarray(jax.jit(lambda model, x: model.encode(x))(state.model, images))
    np.testing.assert_allclose(state.model.code_mean[...], codes.mean(0), atol=0.02)
    np.testing.assert_allclose(state.model.code_square[...], (codes**2).mean(0), rtol=0.05)


def test_pca_has_that_error(digits):
    """The oracle of the test above is the library's own PCA too."""
    model = PCA.fit(digits, PCAConfig(components=COMPONENTS), jax.random.key(0))
    x = jnp.asarray(digits.images, jnp.float32)
    projected = model.inverse_transform(model.transform(x + 0.5)) - 0.5
    assert float(((x - projected) ** 2).mean()) / 256 == pytest.approx(pca_error(digits.images), rel=1e-4)


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_a_reconstruction_is_the_decoded_code_and_its_error_is_reported(digits, architecture):
    config = AutoencoderConfig(latent=4, hidden=(7, 5), architecture=architecture)
    model, images = jax.jit(lambda: Autoencoder(config, rngs=nnx.Rngs(1)))(), digits.images[:6]
    means, rounded, errors = jax.jit(lambda m, x: (m.decode(m.encode(x)), m.reconstruct(x), m.squared_error(x)))(model, images)
    np.testing.assert_array_equal(rounded, np.clip(np.round(np.asarray(means) * 16), 0, 16))
    np.testing.assert_allclose(errors, ((images / 16 - np.asarray(means)) ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_a_tied_decoder_holds_only_biases_and_uses_the_transposed_matrices():
    config = AutoencoderConfig((2, 2, 1), 5, latent=2, hidden=(3,), tied=True)
    model = Autoencoder(config, rngs=nnx.Rngs(0))
    assert [leaf.shape for leaf in jax.tree.leaves(nnx.state(model.decoder, nnx.Param))] == [(3,), (4,)]
    first, second = (np.asarray(layer.kernel[...]) for layer in model.encoder.layers)
    z = np.array([[0.5, -1.0]], np.float32)
    hidden = z @ second.T
    np.testing.assert_allclose(model.decode(jnp.asarray(z)).reshape(1, 4), (hidden / (1 + np.exp(-hidden))) @ first.T, rtol=1e-5)


def test_samples_are_decoded_codes_of_the_averages():
    model = Autoencoder(AutoencoderConfig((2, 2, 1), 5, latent=2, hidden=()), rngs=nnx.Rngs(0))
    model.code_mean[...], model.code_square[...] = jnp.array([0.3, -0.2]), jnp.array([0.09, 0.04])  # the variance is 0
    x = np.asarray(model.decode(model.code_mean[...][None]))
    np.testing.assert_array_equal(model.sample(jax.random.key(0), 3), np.repeat(np.clip(np.round(4 * x), 0, 4), 3, axis=0))


@pytest.mark.parametrize(
    ("field", "value"), [("latent", 0), ("hidden", (0,)), ("architecture", "conv"), ("tied", True)], ids=lambda value: str(value)
)
def test_bad_sizes_are_refused(field, value):
    base = AutoencoderConfig((8, 8, 1), hidden=(4, 4), architecture="conv" if field == "tied" else "mlp")
    other = {"image_shape": (6, 8, 1)} if field == "architecture" else {}
    with pytest.raises(ConfigError):
        dataclasses.replace(base, **{field: value}, **other)
