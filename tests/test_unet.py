"""The U-Net: parameters counted by hand, what depends on what, and what its options must not change."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from denoising_networks import FROM_PYTORCH, count, inputs, weights
from flax import nnx
from programs import equations

from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import Conv
from jaxgen.layers.denoiser_parts import TimeEmbedding, sinusoids
from jaxgen.layers.residual_cells import GroupNorm
from jaxgen.layers.unet import Grow, Norm, UNet, UNetConfig, silu_of
from jaxgen.optimizers import decayed
from jaxgen.sharding import largest_divisible_axis

SMALL = UNetConfig(width=8, heads=2, dropout=0.5)
KEY = jax.random.key(0)


def make(**changes) -> UNet:
    """A new network of 2 channels to 3 with an embedding of 4 numbers; changes: of SMALL's fields, or dtype."""
    dtype = changes.pop("dtype", "float32")
    return UNet(replace(SMALL, **changes), 2, 3, embedding=4, dtype=dtype, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def new():
    return make()


@pytest.fixture(scope="module")
def net(new):
    return weights(new)


ONE_SIZE = {"multiples": (1,), "attention": ()}  # images are not halved, and have attention in the middle alone


@pytest.fixture(scope="module")
def small():
    return weights(jax.eval_shape(lambda: make(**ONE_SIZE)))


def like(net: UNet, **changes) -> UNet:
    """The network with the weights of another."""
    return nnx.merge(nnx.split(jax.eval_shape(partial(make, **changes)))[0], nnx.state(net))


@pytest.fixture(scope="module")
def call():
    """One compiled program for most tests: images of 5 x 7, sides that cannot be halved.

    Nine of them, since convolutions of at most eight images are many operations, dear to compile (layers/convolutions.py).
    """
    return jax.jit(lambda net, x, time, embedding: net(x, time, embedding))


def test_the_parameters_of_the_paper_s_network_by_hand():
    def conv(features_in, features_out, kernel=3):
        return kernel**2 * features_in * features_out + features_out

    def block(features_in, features_out, attention):
        """Two normalisations, two convolutions, the product with silu(c), the 1 x 1 convolution around; attention has four products."""
        own = 2 * features_in + conv(features_in, features_out) + conv(512, features_out, 1) + 2 * features_out
        own += conv(features_out, features_out) + (conv(features_in, features_out, 1) if features_in != features_out else 0)
        return own + attention * (2 * features_out + 4 * conv(features_out, features_out, 1))

    total = conv(128, 512, 1) + conv(512, 512, 1) + conv(3, 128)  # the time, the first convolution
    total += block(128, 128, 0) * 2 + conv(128, 128)  # 32 x 32
    total += block(128, 256, 1) + block(256, 256, 1) + conv(256, 256)  # 16 x 16
    total += block(256, 256, 0) * 2 + conv(256, 256) + block(256, 256, 0) * 2  # 8 x 8 and 4 x 4
    total += block(256, 256, 1) + block(256, 256, 0)  # the middle
    total += 3 * block(512, 256, 0) + conv(256, 256) + 3 * block(512, 256, 0) + conv(256, 256)  # 4 x 4 and 8 x 8
    total += 2 * block(512, 256, 1) + block(384, 256, 1) + conv(256, 256)  # 16 x 16
    total += block(384, 128, 0) + 2 * block(256, 128, 0) + 2 * 128 + conv(128, 3)  # 32 x 32, the last convolution
    assert total == 35_746_307
    assert count(lambda: UNet(UNetConfig.cifar10(), 3, 3, rngs=nnx.Rngs(0))) == total


@pytest.mark.parametrize(
    ("name", "config", "sides"),
    [
        ("unet", UNetConfig(width=16, heads=2), (6, 8)),
        ("unet, odd sides", UNetConfig(width=16, multiples=(1, 2, 1), attention=(0,)), (5, 7)),
    ],
)
def test_it_is_the_same_function_as_in_pytorch(name, config, sides):
    """See denoising_networks.py. The largest difference was 5e-6."""
    net = weights(jax.eval_shape(lambda: UNet(config, 2, 1, embedding=3, rngs=nnx.Rngs(0))))
    y = jax.jit(lambda net: net(*inputs((2, *sides, 2), 3)))(net)
    np.testing.assert_allclose(np.ravel(y), FROM_PYTORCH[name], atol=3e-5)


def test_a_new_network_gives_zero(new, call):
    y = call(new, *inputs((9, 5, 7, 2), 4))
    assert y.shape == (9, 5, 7, 3) and y.dtype == jnp.float32 and not y.any()


def test_rows_are_independent_and_everything_given_counts(net, call):
    x, time, embedding = inputs((9, 5, 7, 2), 4)
    y = call(net, x, time, embedding)
    assert y.shape == (9, 5, 7, 3)
    pixel = x.at[0, 4, 6, 1].add(1.0)
    for changed in ((pixel, time, embedding), (x, time.at[0].add(0.1), embedding), (x, time, embedding.at[0, 3].add(1.0))):
        other = call(net, *changed)
        np.testing.assert_allclose(other[1:], y[1:], atol=1e-5)
        assert (jnp.abs(other[0] - y[0]).max(-1) > 1e-5).all(), "a pixel does not see it"


@pytest.mark.parametrize("shape", [(1, 8, 8, 2), (1, 1, 6, 2), (2, 3, 3, 2)])
def test_images_of_any_size_fit(net, shape):
    assert jax.eval_shape(net, *inputs(shape, 4)).shape == (*shape[:3], 3)


def recomputed(program) -> int:
    """How many parts of a program the backward pass computes again, those inside of others too."""
    return sum("remat" in equation.primitive.name or "checkpoint" in equation.primitive.name for equation in equations(program))


def test_a_remat_network_has_the_same_values_and_gradients(small):
    def loss(net, key):
        return (net(*inputs((9, 2, 3, 2), 4), key) ** 2).mean()

    gradient, again = jax.jit(jax.value_and_grad(loss)), like(small, **ONE_SIZE, remat=True)
    (value, one), (repeated, other) = gradient(small, KEY), gradient(again, KEY)
    np.testing.assert_allclose(repeated, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    kept, marked = (recomputed(jax.make_jaxpr(loss)(one, KEY)) for one in (small, again))
    assert marked - kept == 5, "a block is not computed again"


def test_dropout_needs_a_key_and_a_rate(small):
    x = inputs((1, 2, 3, 2), 4)
    drawn = jax.jit(lambda keys: jax.vmap(lambda key: small(*x, key))(keys))(jax.random.split(KEY, 2)[jnp.array([0, 0, 1])])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (jnp.abs(drawn[0] - drawn[2]) > 1e-3).any()
    nets = small, like(small, **ONE_SIZE, dropout=0.0)
    masks = [str(jax.make_jaxpr(lambda key: one(*x, key))(KEY)).count("random_bits") for one in nets]  # noqa: B023
    assert masks[0] > 0 and masks[1] == 0
    assert "random_bits" not in str(jax.make_jaxpr(small)(*x))


def test_bfloat16_is_that_of_the_activations_only(net, call):
    rough = like(net, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rough))} == {np.dtype("float32")}
    x = inputs((9, 5, 7, 2), 4)
    exact, y = call(net, *x), call(rough, *x)
    assert y.dtype == jnp.float32 and (y != exact).any()
    np.testing.assert_allclose(y, exact, atol=0.1 * float(exact.std()))


def test_kernels_are_split_over_devices_and_decayed_and_nothing_else_is():
    state = nnx.state(jax.eval_shape(lambda: UNet(UNetConfig.cifar10(), 3, 3, embedding=8, rngs=nnx.Rngs(0))), nnx.Param)
    for path, is_decayed in jax.tree_util.tree_leaves_with_path(decayed(state)):
        assert is_decayed == ("kernel" in jax.tree_util.keystr(path)), path
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.size >= 2**12:
            assert "fsdp" in largest_divisible_axis(leaf.shape, 8), path


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 7), ("multiples", ()), ("multiples", (1, 0)), ("blocks", 0), ("attention", (2,)), ("heads", 3), ("heads", 0)]
    + [("dropout", 1.0), ("remat", 1)],
)
def test_sizes_out_of_range_are_refused(field, value, unchecked):
    with pytest.raises(ConfigError, match=rf"{field}: wanted .*, got "):
        UNetConfig(**{field: value})


def test_an_embedding_must_fit(net):
    x, time, embedding = inputs((2, 5, 7, 2), 4)
    with pytest.raises(ConfigError, match=r"^embedding: wanted \[B, 4\], got None$"):
        net(x, time)
    with pytest.raises(ConfigError, match=r"^embedding: wanted \[B, 4\], got \[2, 3\]$"):
        net(x, time, embedding[:, :3])
    with pytest.raises(ConfigError, match=r"^embedding: wanted None, the network is given nothing, got \[2, 4\]$"):
        TimeEmbedding(4, 8, 0, nnx.Rngs(0))(time, embedding)


def test_sinusoids_are_those_of_the_equation():
    found = np.asarray(sinusoids(jnp.asarray([0.0, 3.0]), 6))
    rates = [1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]
    expected = [[*(np.cos(p * w) for w in rates), *(np.sin(p * w) for w in rates)] for p in (0.0, 3.0)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("batch", [2, 9])  # few images are computed by products, more by XLA's convolution
def test_the_way_up_is_a_repetition_and_a_convolution(batch):
    grow, x = weights(Grow(4, nnx.Rngs(0))), inputs((batch, 3, 5, 4), 1)[0]
    repeated = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)
    found, wanted = jax.jit(lambda grow: (grow(x), Conv.__call__(grow, repeated)))(grow)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_normalisation_is_the_library_s():
    norm, x = weights(Norm(24)), 3 + 2 * inputs((2, 3, 5, 24), 1)[0]
    found, after, wanted = jax.jit(lambda norm: (norm(x), silu_of(norm, x), GroupNorm.__call__(norm, x)))(norm)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(after, nnx.silu(wanted), atol=1e-5)
