"""Layers against loops over taps; both forms of the causal ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from programs import convolutions

from jaxgen.layers import convolutions as layers
from jaxgen.layers.causal_convolutions import HorizontalConv, VerticalConv


def random(seed: int, *shape: int) -> np.ndarray:
    """Standard normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def at(x, r, c):
    """x[:, r, c], zeros outside the image."""
    inside = 0 <= r < x.shape[1] and 0 <= c < x.shape[2]
    return x[:, r, c] if inside else np.zeros_like(x[:, 0, 0])


@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_mask_compares_groups(groups, kind):
    mask = layers.group_mask(6, 9, groups, kind)
    for i in range(6):
        for o in range(9):
            group_in, group_out = (0, 0) if groups == 1 else (i // 2, o // 3)
            assert mask[i, o] == (group_in < group_out if kind == "A" else group_in <= group_out)
    np.testing.assert_array_equal(layers.halves_mask(6, 9, groups, kind), np.concatenate([mask, mask], axis=1))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("by", [-7, -2, 0, 1, 5])
def test_shift_moves_and_fills_with_zeros(by, axis):
    x = random(0, 4, 5)
    moved = np.zeros_like(x)
    for i in range(x.shape[axis]):
        if 0 <= i - by < x.shape[axis]:
            moved[(i, slice(None)) if axis == 0 else (slice(None), i)] = x[(i - by, slice(None)) if axis == 0 else (slice(None), i - by)]
    np.testing.assert_array_equal(layers.shift(jnp.asarray(x), by, axis), moved)


@jax.jit
def rows_of(conv, x) -> list:
    """The rows of a vertical convolution, one after the other."""
    waiting, rows = conv.init_row(x.shape[2], x.shape[0]), []
    for r in range(x.shape[1]):
        waiting, row = conv.row(waiting, x[:, r].swapaxes(0, 1))
        rows.append(row.swapaxes(0, 1))
    return rows


whole = jax.jit(lambda layer, x: layer(x))


@pytest.mark.parametrize("factorized", [False, True])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_the_vertical_convolution_is_its_sum_over_taps_in_both_forms(kernel, factorized):
    conv = VerticalConv(4, 6, kernel, factorized, nnx.Rngs(0))
    conv.bias[...] = jnp.asarray(random(1, 6))
    x, m = random(2, 2, 5, 4, 4), kernel // 2
    down = np.asarray(conv.down[...]).reshape(-1, m + 1, 6)
    expected = np.zeros((2, 5, 4, 6), np.float32) + np.asarray(conv.bias[...])
    for r in range(5):
        for c in range(4):
            for i in range(m + 1):  # the row i above reaches this one through tap i
                row = np.concatenate([at(x, r - i, c + j) for j in range(-m, m + 1)], axis=-1)
                row = row if conv.across is None else row @ np.asarray(conv.across[...])
                expected[:, r, c] += row @ down[:, i]
    np.testing.assert_allclose(whole(conv, x), expected, atol=1e-4)
    for r, row in enumerate(rows_of(conv, x)):
        np.testing.assert_allclose(row, expected[:, r], atol=1e-4)


@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (1, 3), (3, 1), (7, 3)])
def test_the_horizontal_convolution_is_its_sum_over_taps(kernel, groups, kind):
    conv = HorizontalConv(6, 12, kernel, groups, kind, nnx.Rngs(0))
    x, m = random(3, 2, 2, 5, 6), kernel // 2
    left = np.asarray(conv.left[...]).reshape(6, m, 12)
    centre = np.zeros((6, 12), np.float32) if conv.centre is None else np.asarray(conv.masked_centre())
    expected = np.zeros((2, 2, 5, 12), np.float32)
    for r in range(2):
        for c in range(5):
            expected[:, r, c] = at(x, r, c) @ centre + sum(at(x, r, c - j) @ left[:, j - 1] for j in range(1, m + 1))
    np.testing.assert_allclose(whole(conv, x), expected, atol=1e-4)
    assert (conv.centre is None) == (kind == "A" and groups == 1)
    packed = np.asarray(jax.jit(lambda conv: conv.pack())(conv)).reshape(6, m + 1, 12)
    np.testing.assert_array_equal(packed[:, 0], centre)
    np.testing.assert_array_equal(packed[:, 1:], left)


def test_masked_taps_have_no_gradient_and_no_effect():
    conv = HorizontalConv(6, 12, 3, 3, "A", nnx.Rngs(0))
    x = jnp.asarray(random(4, 2, 3, 4, 6))
    mask = layers.halves_mask(6, 6, 3, "A")
    graph, params = nnx.split(conv)
    gradient = jax.jit(jax.grad(lambda params: (nnx.merge(graph, params)(x) ** 2).sum()))(params)["centre"][...]
    np.testing.assert_array_equal(np.asarray(gradient) != 0, mask == 1)
    before = whole(conv, x)
    conv.centre[...] = jnp.asarray(np.asarray(conv.centre[...]) + 100 * np.float32(1 - mask))
    np.testing.assert_array_equal(whole(conv, x), before)


def test_the_gate_is_tanh_times_sigmoid():
    x = random(5, 3, 8)
    a, b = x[:, :4].astype(np.float64), x[:, 4:].astype(np.float64)
    np.testing.assert_allclose(layers.gate(jnp.asarray(x)), np.tanh(a) / (1 + np.exp(-b)), rtol=1e-5)


def test_a_group_is_taken_from_every_half():
    x = jnp.asarray(random(6, 2, 12))
    for k in range(3):
        np.testing.assert_array_equal(layers.take_group(x, k, 3), np.asarray(x)[:, 4 * k : 4 * k + 4])
        both = np.concatenate([np.asarray(x)[:, 2 * k : 2 * k + 2], np.asarray(x)[:, 6 + 2 * k : 8 + 2 * k]], axis=1)
        np.testing.assert_array_equal(layers.take_group(x, k, 3, halves=2), both)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_pixels_are_scaled_to_minus_one_and_one(levels):
    scaled = np.asarray(layers.scale_pixels(jnp.arange(levels).astype(jnp.uint8), levels))
    np.testing.assert_allclose(scaled, np.linspace(-1, 1, levels), atol=1e-6)


def test_biases_are_added_to_every_position():
    x, bias, rows = random(7, 3, 2, 4), random(8, 4), random(9, 2, 4)
    np.testing.assert_array_equal(layers.add_bias(jnp.asarray(x), jnp.asarray(bias)), x + bias)
    np.testing.assert_array_equal(layers.add_bias(jnp.asarray(x), jnp.asarray(rows)), x + rows)
    assert layers.add_bias(jnp.asarray(x, jnp.bfloat16), jnp.asarray(bias)).dtype == jnp.bfloat16


def test_dropout_keeps_the_mean():
    x = jnp.ones((200, 100))
    y = np.asarray(layers.dropout(x, 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert (y == 0).mean() == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / x.size))


CONVOLUTIONS = {
    "3 x 3 down to the pixel": {"kernel": (2, 3), "padding": ((1, 0), (1, 1)), "taps": 4},
    "one row": {"kernel": (1, 4), "padding": ((0, 0), (3, 0))},
    "stride 2": {"kernel": (2, 3), "padding": ((1, 0), (1, 1)), "stride": 2},
    "fewer products than features": {"kernel": (2, 3), "padding": ((1, 0), (1, 2)), "features": (20, 3)},
    "fewer products than features, back": {"kernel": (3, 2), "padding": ((1, 2), (1, 0)), "features": (1, 9)},
    "fewer products than features, back, stride 2": {"kernel": (3, 2), "padding": ((0, 1), (1, 0)), "features": (1, 5), "stride": 2},
    "transposed, cropped": {"kernel": (2, 3), "padding": ((1, 0), (1, 0)), "spread": 2},
}


@pytest.mark.parametrize("images", [layers.FEW_IMAGES, layers.FEW_IMAGES + 1], ids=["a product", "a convolution"])
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_a_convolution_is_the_sum_over_windows(case, images):
    """Both forms and their gradients."""
    stride, spread, (h, w) = case.get("stride", 1), case.get("spread", 1), case["kernel"]
    (inputs, outputs), taps = case.get("features", (2, 3)), case.get("taps", h * w)
    x, kernel = random(0, images, 5, 4, inputs), random(1, h, w, inputs, outputs)
    kernel.reshape(h * w, inputs, outputs)[taps:] = 0
    (top, bottom), (left, right) = case["padding"]
    wide = np.zeros((images, 4 * spread + 1 + top + bottom, 3 * spread + 1 + left + right, inputs), np.float32)
    wide[:, top : top + 4 * spread + 1 : spread, left : left + 3 * spread + 1 : spread] = x
    rows, columns = ((n - k) // stride + 1 for n, k in zip(wide.shape[1:3], (h, w), strict=True))
    y = np.zeros((images, rows, columns, outputs), np.float32)
    to_x, to_kernel, ones = np.zeros_like(wide), np.zeros_like(kernel), random(2, *y.shape)
    for r, c, i, j in np.ndindex(rows, columns, h, w):
        seen = wide[:, stride * r + i, stride * c + j]
        y[:, r, c] += seen @ kernel[i, j]
        to_x[:, stride * r + i, stride * c + j] += ones[:, r, c] @ kernel[i, j].T
        to_kernel[i, j] += seen.T @ ones[:, r, c]
    arguments = {name: value for name, value in case.items() if name not in ("kernel", "features")}

    @jax.jit
    def value_and_gradients(x, kernel, direction):
        found, back = jax.vjp(lambda x, kernel: layers.convolution(x, kernel, **arguments), x, kernel)
        return found, *back(direction)

    found, x_found, kernel_found = value_and_gradients(x, kernel, ones)
    np.testing.assert_allclose(found, y, atol=1e-5)
    x_wanted = to_x[:, top : top + 4 * spread + 1 : spread, left : left + 3 * spread + 1 : spread]
    np.testing.assert_allclose(x_found, x_wanted, atol=1e-4)
    np.testing.assert_allclose(*(k.reshape(h * w, inputs, outputs)[:taps] for k in (kernel_found, to_kernel)), atol=1e-4)


@pytest.mark.parametrize("kernel, stride", [(4, 2), (3, 2), (5, 3), (2, 2), (1, 2), (3, 1)])
def test_a_transposed_convolution_and_its_gradients_are_those_of_flax(kernel, stride):
    options = {"strides": (stride, stride), "precision": layers.EXACT}

    @jax.jit
    def made():
        one = nnx.ConvTranspose(3, 5, (kernel, kernel), **options, rngs=nnx.Rngs(0))
        return one, layers.ConvTranspose(3, 5, kernel, stride, nnx.Rngs(0))

    flax, own = made()
    own.bias[...] = flax.bias[...] = jnp.asarray(random(3, 5))
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(own, nnx.Param), nnx.state(flax, nnx.Param)))
    x = jnp.asarray(random(1, 9, 4, 3, 3))
    direction = jnp.asarray(random(2, 9, 4 * stride, 3 * stride, 5))

    @jax.jit
    def value_and_gradients(layer, x):
        y, back = jax.vjp(lambda layer, x: layer(x), layer, x)
        layer, x = back(direction)
        return y, layer.kernel[...], layer.bias[...], x

    (y, *wanted), (own_y, *got) = value_and_gradients(flax, x), value_and_gradients(own, x)
    assert y.shape == own_y.shape == direction.shape
    for a, b in zip([y, *wanted], [own_y, *got], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6 * np.abs(a).max())
    rough = whole(own, np.asarray(x).astype(jnp.bfloat16))
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(rough).astype(np.float32), y, atol=0.02 * np.abs(y).max())


@pytest.mark.parametrize("kernel, stride, images, height", [(3, 1, 16, 5), (4, 2, 9, 8), (3, 2, 12, 7), (5, 3, 11, 8), (1, 1, 10, 3)])
def test_a_convolution_and_its_derivatives_are_those_of_flax(kernel, stride, images, height):
    """Values, gradients, a forward derivative and a derivative of a gradient; of all images, in blocks, and inside of a loop."""
    options = {"strides": (stride, stride), "precision": layers.EXACT}

    @jax.jit
    def made():
        return nnx.Conv(2, 5, (kernel, kernel), **options, rngs=nnx.Rngs(0)), layers.Conv(2, 5, kernel, nnx.Rngs(0), stride)

    flax, own = made()
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(own, nnx.Param), nnx.state(flax, nnx.Param)))
    x, step = jnp.asarray(random(1, images, height, 6, 2)), jnp.asarray(random(2, images, height, 6, 2))

    @jax.jit
    def numbers(layer, x):
        graph, params = nnx.split(layer)

        def loss(params, x):
            y = nnx.merge(graph, params)(x)
            return (y**3).sum(), y

        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        (found, y), (second, _) = jax.jvp(lambda x: gradient(params, x), (x,), (step,))
        both = jnp.stack([x, step])
        looped = jax.lax.scan(lambda total, x: (jax.tree.map(jnp.add, total, gradient(params, x)[0][0]), None), found[0], both)[0]
        several = jax.vmap(lambda x: gradient(params, x)[0][0])(both)
        return y, jax.jvp(lambda x: loss(params, x)[1], (x,), (step,))[1], found, second, looped, several

    for a, b in zip(*(jax.tree.leaves(numbers(layer, x)) for layer in (flax, own)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=2e-6 * np.abs(a).max())
    assert jax.eval_shape(own, jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel, stride", [(1, 2), (1, 3), (2, 3), (5, 4), (3, 2)])
def test_no_convolution_has_a_negative_padding(kernel, stride, transposed):
    """XLA's CPU backend may read beyond the image there; images with rows that no window reads, or windows that read no pixel."""
    form = layers.ConvTranspose if transposed else layers.Conv
    graph, params = nnx.split(nnx.eval_shape(lambda: form(2, 3, kernel, stride=stride, rngs=nnx.Rngs(0))))
    for height, width in ((1, 2), (3, 4), (5, 6)):
        x = jax.ShapeDtypeStruct((16, height, width, 2), jnp.float32)
        slope = jax.grad(lambda params, x: jnp.square(nnx.merge(graph, params)(x)).sum(), argnums=(0, 1))
        assert min(zeros for found in convolutions(slope, params, x) for pair in found["padding"] for zeros in pair) >= 0


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (2, 2, 8), (3, 3, 4, 7)])
def test_first_weights_are_those_of_jax_and_flax_bit_for_bit(shape):
    """Drawn outside of `jit` they are cut out of a longer draw; inside they are drawn as they are."""
    key, rngs = jax.random.key(5), nnx.Rngs(2)
    flax, tenth = nnx.initializers.lecun_normal(), lambda key, shape: 0.1 * jax.random.normal(key, shape)
    for own, oracle in (
        (lambda key: layers.draw(tenth, key, shape), lambda key: tenth(key, shape)),
        (lambda key: layers.lecun_normal(key, shape), lambda key: flax(key, shape)),
    ):
        assert type(own(key)) is type(oracle(key)) and own(key).dtype == jnp.float32
        np.testing.assert_array_equal(own(key), oracle(key))
        np.testing.assert_array_equal(jax.jit(own)(key), jax.jit(oracle)(key))
    of_rngs = jax.random.normal(nnx.Rngs(2).params(), shape) / np.sqrt(7)
    np.testing.assert_array_equal(layers.normal(rngs, shape, 7)[...], of_rngs)


@pytest.mark.parametrize(
    "own, flax",
    [
        (lambda rngs: layers.Linear(3, 5, rngs), lambda rngs: nnx.Linear(3, 5, rngs=rngs)),
        (lambda rngs: layers.Conv(3, 5, 3, rngs), lambda rngs: nnx.Conv(3, 5, (3, 3), rngs=rngs)),
        (lambda rngs: layers.ConvTranspose(3, 5, 3, 2, rngs), lambda rngs: nnx.ConvTranspose(3, 5, (3, 3), (2, 2), rngs=rngs)),
    ],
    ids=["linear", "convolution", "transposed"],
)
def test_a_layer_of_flax_begins_with_the_weights_of_flax(own, flax):
    for a, b in zip(*(jax.tree.leaves(nnx.state(make(nnx.Rngs(1)), nnx.Param)) for make in (own, flax)), strict=True):
        np.testing.assert_array_equal(a, b)
