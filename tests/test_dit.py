"""The diffusion transformer and the network for points: published sizes by hand, what depends on what, and what options must not change."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoising_networks import FROM_PYTORCH, count, inputs, weights
from flax import nnx

from jaxgen.errors import ConfigError
from jaxgen.layers import denoiser_parts
from jaxgen.layers.denoiser_parts import self_attention
from jaxgen.layers.denoising_mlp import DenoisingMLP, MLPDenoiserConfig
from jaxgen.layers.dit import DiT, DiTConfig, positions
from jaxgen.optimizers import decayed
from jaxgen.sharding import largest_divisible_axis

SMALL = DiTConfig(width=16, depth=2, heads=2)
SHAPE = (2, 6, 8, 2)


def make(**changes) -> DiT:
    """A new network of 2 channels to 1 with an embedding of 3 numbers; changes: of SMALL's fields, or dtype."""
    dtype = changes.pop("dtype", "float32")
    return DiT(replace(SMALL, **changes), 2, 1, SHAPE[1:], embedding=3, dtype=dtype, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def new():
    return make()


@pytest.fixture(scope="module")
def net(new):
    return weights(new)


def like(net: DiT, **changes) -> DiT:
    """The network with the weights of another."""
    return nnx.merge(nnx.split(jax.eval_shape(partial(make, **changes)))[0], nnx.state(net))


@pytest.fixture(scope="module")
def call():
    """One compiled program for most tests."""
    return jax.jit(lambda net, x, time, embedding: net(x, time, embedding))


@pytest.mark.parametrize(
    ("config", "published"),
    [(DiTConfig.small(), 33), (DiTConfig.base(), 130), (DiTConfig.large(), 458), (DiTConfig.extra_large(), 675)],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_the_published_sizes_by_hand(config, published):
    """Latents of 32 x 32 x 4, 8 outputs. The published numbers count a table of 1001 labels and the 256 fixed positions too.

    The parameters of one block are those that a second one adds; the smallest network is made as a whole.
    """
    width, depth, pixels = config.width, config.depth, 4
    time = 256 * width + width + width**2 + width
    block = 4 * width**2 + 4 * width + 2 * 4 * width**2 + 5 * width + 6 * width**2 + 6 * width  # attention, MLP, modulation
    last = 2 * width**2 + 2 * width + 8 * pixels * (width + 1)
    total = time + (4 * pixels + 1) * width + depth * block + last
    of = lambda depth: count(lambda: DiT(replace(config, depth=depth), 4, 8, (32, 32, 4), rngs=nnx.Rngs(0)))  # noqa: E731
    assert of(1) + (depth - 1) * (of(2) - of(1)) == total and (depth > 12 or width > 400 or of(depth) == total)
    assert abs((total + (1001 + 256) * width) / 1e6 - published) < 0.52  # 32.96, 130.51, 458.10, 675.13


def test_it_is_the_same_function_as_in_pytorch(net, call):
    """See denoising_networks.py. The largest difference was 9e-6."""
    np.testing.assert_allclose(np.ravel(call(net, *inputs(SHAPE, 3))), FROM_PYTORCH["dit"], atol=5e-5)


def test_a_new_network_gives_zero_and_its_blocks_change_nothing(new, call):
    x, time, embedding = inputs(SHAPE, 3)
    y = call(new, x, time, embedding)
    assert y.shape == (2, 6, 8, 1) and y.dtype == jnp.float32 and not y.any()
    h, c = jnp.ones((2, 12, 16)), jnp.ones((2, 16))
    np.testing.assert_array_equal(jax.jit(lambda new: new.blocks[0](h, c))(new), h)


def test_rows_are_independent_and_everything_given_counts(net, call):
    x, time, embedding = inputs(SHAPE, 3)
    y, pixel = call(net, x, time, embedding), x.at[0, 5, 7, 1].add(1.0)
    for changed in ((pixel, time, embedding), (x, time.at[0].add(0.1), embedding), (x, time, embedding.at[0, 2].add(1.0))):
        other = call(net, *changed)
        np.testing.assert_allclose(other[1:], y[1:], atol=1e-5)
        assert (jnp.abs(other[0] - y[0]).max(-1) > 1e-5).all(), "a pixel does not see it"


def test_two_patches_that_change_places_are_told_apart_by_their_positions_only(net, call):
    x, *given = inputs(SHAPE, 3)
    swapped = x.at[:, 0:2, 0:2].set(x[:, 4:6, 6:8]).at[:, 4:6, 6:8].set(x[:, 0:2, 0:2])
    y, z = call(net, x, *given), call(net, swapped, *given)
    assert jnp.abs(z[:, 2:4, 2:4] - y[:, 2:4, 2:4]).max() > 1e-3
    everywhere = jnp.tile(x[:, :2, :2], (1, 3, 4, 1))
    parts = call(net, everywhere, *given).reshape(2, 3, 2, 4, 2)
    flat = np.asarray(parts.transpose(0, 1, 3, 2, 4)).reshape(2, 12, 4)
    assert min(np.abs(flat[:, i] - flat[:, j]).max() for i in range(12) for j in range(i)) > 1e-3, "two places are the same"


def test_positions_are_sinusoids_of_row_and_column():
    table = np.asarray(positions(3, 4, 8)).reshape(3, 4, 8)
    for row in range(3):
        for column in range(4):
            waves = [np.array([np.cos(p), np.cos(p / 100), np.sin(p), np.sin(p / 100)]) for p in (row, column)]
            np.testing.assert_allclose(table[row, column], np.concatenate(waves), atol=1e-6)


def test_a_remat_network_has_the_same_values_and_gradients(net):
    def loss(net):
        return (net(*inputs(SHAPE, 3)) ** 2).mean()

    gradient, again = jax.jit(jax.value_and_grad(loss)), like(net, remat=True)
    (value, one), (repeated, other) = gradient(net), gradient(again)
    np.testing.assert_allclose(repeated, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    assert ["remat" in str(jax.make_jaxpr(loss)(each)) for each in (net, again)] == [False, True]


def test_bfloat16_is_that_of_the_activations_only(net, call):
    rough = like(net, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rough))} == {np.dtype("float32")}
    x = inputs(SHAPE, 3)
    exact, y = call(net, *x), call(rough, *x)
    assert y.dtype == jnp.float32 and (y != exact).any()
    np.testing.assert_allclose(y, exact, atol=0.1 * float(exact.std()))


@pytest.mark.parametrize(
    "network",
    [
        lambda: DiT(DiTConfig.small(), 4, 8, (32, 32, 4), embedding=8, rngs=nnx.Rngs(0)),
        lambda: DenoisingMLP(MLPDenoiserConfig(), 2, 2, embedding=8, rngs=nnx.Rngs(0)),
    ],
    ids=["dit", "mlp"],
)
def test_kernels_are_split_over_devices_and_decayed_and_nothing_else_is(network):
    state = nnx.state(jax.eval_shape(network), nnx.Param)
    for path, is_decayed in jax.tree_util.tree_leaves_with_path(decayed(state)):
        assert is_decayed == ("kernel" in jax.tree_util.keystr(path)), path
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.size >= 2**12:
            assert "fsdp" in largest_divisible_axis(leaf.shape, 8), path


def test_the_network_for_points(call):
    new = DenoisingMLP(MLPDenoiserConfig(width=8, depth=2), 2, 3, embedding=4, rngs=nnx.Rngs(0))
    net, (x, time, embedding) = weights(new), inputs((3, 2), 4)
    assert not call(new, x, time, embedding).any()
    kernels, biases = ({name: np.asarray(part[...]) for name, part in find(net, word).items()} for word in ("kernel", "bias"))

    def linear(name, x):
        return x @ kernels[name] + biases[name][None]

    def silu(x):
        return x / (1 + np.exp(-x))

    angles = 1000 * np.asarray(time)[:, None] * np.array([[1, 0.1, 0.01, 0.001]], np.float32)
    c = linear("time.outer", silu(linear("time.inner", np.concatenate([np.cos(angles), np.sin(angles)], 1))))
    c = silu(c + linear("time.given", np.asarray(embedding)))
    h = linear("first", np.asarray(x))
    for i in range(2):
        h = h + linear(f"layers.{i}.outer", silu(linear(f"layers.{i}.inner", h) + linear(f"layers.{i}.shift", c)))
    y = call(net, x, time, embedding)
    np.testing.assert_allclose(y, linear("head", h), atol=1e-5)
    rough = DenoisingMLP(MLPDenoiserConfig(width=8, depth=2), 2, 3, embedding=4, dtype="bfloat16", rngs=nnx.Rngs(0))
    rough = call(nnx.merge(nnx.split(rough)[0], nnx.state(net)), x, time, embedding)
    assert rough.dtype == jnp.float32 and (rough != y).any()
    np.testing.assert_allclose(rough, y, atol=0.1 * float(y.std()))


def find(net: nnx.Module, word: str) -> dict[str, nnx.Param]:
    """{"layers.0.inner": parameter} of the parameters with this name."""
    flat = nnx.to_flat_state(nnx.state(net, nnx.Param))
    return {".".join(map(str, path[:-1])): leaf for path, leaf in flat if path[-1] == word}


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [(DiTConfig, "patch", 0), (DiTConfig, "depth", 0), (DiTConfig, "heads", 0), (DiTConfig, "ratio", 0), (DiTConfig, "width", 6)]
    + [(DiTConfig, "heads", 3), (DiTConfig, "width", 0), (MLPDenoiserConfig, "width", 3), (MLPDenoiserConfig, "depth", 0)],
)
def test_sizes_out_of_range_are_refused(config, field, value):
    named = "width" if (field, value) == ("heads", 3) else field
    with pytest.raises(ConfigError, match=rf"^{named}: wanted .*, got "):
        config(**{field: value})


def test_images_and_embeddings_must_fit(net):
    with pytest.raises(ConfigError, match=r"^patch: wanted a divisor of the sides of 6 x 9 pixels, got 2; choose from \[1, 3\]$"):
        DiT(SMALL, 1, 1, (6, 9, 1), rngs=nnx.Rngs(0))
    x, time, embedding = inputs(SHAPE, 3)
    with pytest.raises(ConfigError, match=r"^x: wanted \[B, 6, 8, C\], got \[2, 4, 8, 2\]$"):
        net(x[:, :4], time, embedding)
    with pytest.raises(ConfigError, match=r"^embedding: wanted \[B, 3\], got None$"):
        net(x, time)


def test_attention_in_parts_is_attention(monkeypatch):
    projected = jnp.asarray(np.random.default_rng(0).standard_normal((6, 5, 12)), jnp.float32)

    def gradient(scores):
        monkeypatch.setattr(denoiser_parts, "SCORES", scores)
        program = jax.make_jaxpr(partial(self_attention, heads=2))(projected)

        @jax.jit
        def both(projected):
            y, back = jax.vjp(partial(self_attention, heads=2), projected)
            return y, back(jnp.cos(y))[0]

        return "scan" in str(program), *both(projected)

    whole, *expected = gradient(6 * 50)
    assert not whole
    for few in (1, 3, 4):  # 4: in parts of 3
        parts, *found = gradient(few * 50)
        assert parts
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    query, key, value = np.split(np.asarray(projected, np.float64).reshape(6, 5, 6, 2), 3, axis=2)
    scores = np.einsum("bqhd,bmhd->bhqm", query, key) / np.sqrt(2)
    mixed = np.einsum("bhqm,bmhd->bqhd", np.exp(scores) / np.exp(scores).sum(-1, keepdims=True), value)
    np.testing.assert_allclose(expected[0], mixed.reshape(6, 5, 4), atol=1e-5)
