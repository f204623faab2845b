"""VQ-VAE: nearest codes, the straight-through gradient, the codebook's averages and restarts, the bound, the use of codes on digits."""

from itertools import product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from test_models import drawn

from jaxgen import sharding, statistics, training
from jaxgen.data import load
from jaxgen.errors import ConfigError
from jaxgen.models import VQVAE, VQVAEConfig
from jaxgen.models.vqvae import Codebook

TINY = VQVAEConfig((4, 4, 1), 3, codes=5, code_width=3, halvings=1, width=4, blocks=1)


@pytest.fixture(scope="module")
def model():
    return drawn(TINY)


@pytest.fixture(scope="module")
def images():
    """More than 8, since convolutions of fewer are many operations, dear to compile (layers/convolutions.py)."""
    return jnp.asarray(np.random.default_rng(0).integers(0, 3, (9, 4, 4, 1), np.uint8))


@pytest.mark.parametrize(("codes", "dtype"), [(2, jnp.float32), (50, jnp.float32), (50, jnp.bfloat16), (8192, jnp.bfloat16)])
def test_the_code_of_an_encoding_is_the_nearest_one(codes, dtype):
    book = Codebook(codes, 7, nnx.Rngs(0))
    book.count[...] = jnp.linspace(0.5, 2.0, codes)
    z = (3 * jax.random.normal(jax.random.key(1), (400, 7))).astype(dtype)
    distances = cdist(np.asarray(z, np.float64), np.asarray(book.codes(), np.float64))
    nearest = jax.jit(lambda book, z: book.nearest(z))
    k = np.asarray(nearest(book, z))
    np.testing.assert_allclose(distances[np.arange(400), k], distances.min(1), rtol=1e-5)
    assert len(set(k)) > min(codes / 5, 300 / 5) and k.max() < codes
    some = jnp.arange(0, codes, max(1, codes // 100))
    np.testing.assert_array_equal(nearest(book, book.codes()[some]), some)  # a code is its own nearest one
    np.testing.assert_array_equal(book.at(some), book.codes()[some])


def test_the_gradient_of_an_encoding_is_that_of_its_code_and_of_the_commitment(model, images):
    """The bias of the encoder's last layer is added to every encoding, so its gradient is the sum of theirs."""
    config = TINY

    @jax.jit
    def both(model):
        z = model._encodings(images)
        codes = model.codebook.at(model.codebook.nearest(z))
        reconstruction = lambda z: -model._log_likelihood(images, model._decode(z)).mean() / (16 * np.log(2))  # noqa: E731
        expected = jax.grad(reconstruction)(codes) + 2 * config.commitment * (z - codes) / z.size
        return jax.grad(lambda m: m.loss({"image": images}, jax.random.key(0))[0], allow_int=True)(model), expected

    gradient, expected = both(model)
    got = gradient.encoder.out.bias[...]
    assert np.abs(got).min() > 1e-6
    np.testing.assert_allclose(got, expected.sum((0, 1, 2)), rtol=1e-4, atol=1e-6)
    for leaf in jax.tree.leaves(nnx.state(gradient.codebook)):
        np.testing.assert_array_equal(leaf, 0)
    assert not jax.tree.leaves(nnx.state(model.codebook, nnx.Param))


def test_the_codebook_ends_at_the_centres_of_clusters():
    generator = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    z = jnp.asarray(centres.repeat(25, axis=0) + generator.standard_normal((100, 2), np.float32))
    book = Codebook(4, 2, nnx.Rngs(0))
    book.total[...] = jnp.asarray(centres + 2)

    @jax.jit
    def step(book):
        book.advance(statistics.values(book.statistics(z, book.nearest(z), jax.random.key(0))), 0.9, 0.1)
        return book

    for _ in range(200):
        book = step(book)
    expected = KMeans(4, n_init=10, random_state=0).fit(np.asarray(z)).cluster_centers_
    np.testing.assert_allclose(sorted(map(tuple, np.asarray(book.codes()))), sorted(map(tuple, expected)), atol=1e-3)
    np.testing.assert_allclose(book.count[...], 25, atol=1e-3)


@pytest.mark.parametrize(("restart", "revived"), [(0.1, True), (0.0, False)])
def test_a_dead_code_restarts_at_an_encoding(restart, revived):
    z = jax.random.normal(jax.random.key(0), (64, 2))
    book = Codebook(8, 2, nnx.Rngs(0))
    book.total[...] = book.total[...].at[3].set(1e4)  # far from all encodings

    @jax.jit
    def step(book, i):
        book.advance(statistics.values(book.statistics(z, book.nearest(z), jax.random.key(i))), 0.5, restart)
        return book

    for i in range(8 if revived else 200):  # 0.5^200 is no float32
        book = step(book, i)
    norm = float(jnp.linalg.norm(book.codes()[3]))
    assert (norm < 5) == revived and (bool((book.nearest(z) == 3).any()) == revived)
    assert np.isfinite(book.codes()).all()


@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 3, 1)])
def test_the_bound_is_below_the_likelihood_that_sums_to_one(shape):
    """Codes of 4 for pixels of 2 levels: log p(x) = log (mean over all grids k of p(x | k)), over all images; sides may be odd."""
    config = VQVAEConfig(shape, 2, codes=4, code_width=2, halvings=1, width=4, blocks=0)
    model, places = drawn(config), prod(config.grid)
    every = jnp.asarray(list(product((0, 1), repeat=prod(shape))), jnp.uint8).reshape(-1, *shape)
    grids = jnp.asarray(list(product(range(4), repeat=places)), jnp.uint8).reshape(-1, 1, *config.grid)
    assert config.grid == (1, shape[1] // 2 + shape[1] % 2)

    @jax.jit
    def numbers(model):
        of_grid = lambda grid: model._log_likelihood(every, model.decode(jnp.repeat(grid, len(every), axis=0)))  # noqa: E731
        given = jax.lax.map(of_grid, grids)
        exact = jax.nn.logsumexp(given, axis=0) - places * jnp.log(4)
        return exact, model.elbo(every, jax.random.key(0)), model.reconstruct(every)

    exact, bound, rebuilt = numbers(model)
    assert rebuilt.shape == every.shape
    assert float(jnp.exp(exact).sum()) == pytest.approx(1, abs=1e-5)
    assert (np.asarray(bound) <= np.asarray(exact) + 1e-5).all() and np.ptp(exact - bound) > 1e-3


def test_images_of_codes_are_those_of_the_encoded_images(model, images):
    codes, rebuilt, parameters, of_loss = jax.jit(
        lambda m, x: (m.encode(x), m.reconstruct(x), m.decode(m.encode(x)), m._decode(m.codebook.at(m.codebook.nearest(m._encodings(x)))))
    )(model, images)
    assert codes.dtype == jnp.uint8 and codes.shape == (9, 2, 2) and rebuilt.dtype == jnp.uint8
    np.testing.assert_array_equal(parameters, of_loss)
    np.testing.assert_array_equal(rebuilt, np.argmax(parameters, -1))
    with pytest.raises(ConfigError, match=r"codes: wanted shape \[B, 2, 2\]"):
        model.decode(jnp.zeros((1, 2, 3), jnp.uint8))


def test_nearly_all_codes_are_used_on_digits():
    config = VQVAEConfig((8, 8, 1), 17, codes=32, code_width=8, halvings=1, width=16, blocks=1)
    digits, mesh, optimizer = load("digits", "train"), sharding.make_mesh(1), optax.adam(3e-3)
    first = {"image": jnp.asarray(digits.images[:256])}
    state = training.init_state(jax.jit(lambda: VQVAE(config, rngs=nnx.Rngs(0)).initialise(first))(), optimizer, mesh)
    step = training.make_train_step(optimizer, mesh, 0.9)
    for batch, _ in zip(digits.batches(0, 64, 0), range(80), strict=False):
        state, metrics = step(state, sharding.place_batch(mesh, batch), jax.random.key(0))
    codes = np.asarray(jax.jit(lambda m, x: m.encode(x))(state.model, digits.images))
    assert len(np.unique(codes)) > 0.9 * 32
    assert 16 < metrics["perplexity"] <= 32 and metrics["bits_per_dim_bound"] < 3.5


@pytest.mark.parametrize(
    "fields", [{"codes": 1}, {"decay": 1.0}, {"halvings": 0}, {"restart": -1.0}], ids=lambda f: next(iter(f))
)
def test_bad_sizes_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        VQVAEConfig(**fields)
