"""What defines PixelCNN, Row LSTM and Diagonal BiLSTM: their contexts in closed form, masks that hold, and states that start from nothing.

test_models.py has what they share with all autoregressive models.
"""

from functools import partial

import causal_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_models import drawn

from jaxgen.errors import ConfigError
from jaxgen.layers import diagonals
from jaxgen.layers.diagonals import skew, unskew
from jaxgen.layers.masked import GATES, Masked1x1, MaskedConv, forget_bias, lstm_cell
from jaxgen.models import DiagonalBiLSTMConfig, PixelCNNConfig, RowLSTMConfig
from jaxgen.models.diagonal_bilstm import DiagonalLayer
from jaxgen.models.row_lstm import RowLSTMLayer

CONFIGS = [PixelCNNConfig, RowLSTMConfig, DiagonalBiLSTMConfig]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)


def normal(*shape: int):
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def jacobian_set(function, x) -> np.ndarray:
    """Which elements of x (not the batch, B = 1) change which position of function(x), bool [H, W, inputs]."""
    jacobian = np.asarray(jax.jit(jax.jacobian(function))(x))
    height, width = jacobian.shape[1:3]
    return np.asarray((jacobian != 0).reshape(height, width, jacobian.shape[3], *x.shape).any(2).reshape(height, width, -1))


def positions(height: int, width: int):
    """Row and column of every (output, input), [H W, H W] each; dr = output's row - input's row, dc = input's column - output's column."""
    r, c = (np.arange(height * width) // width), (np.arange(height * width) % width)
    return r[:, None] - r[None], c[None] - c[:, None]


def rows_first(x):
    """[B, H, W, D] as [H, W, B, D], the order inside of the two LSTMs."""
    return x.transpose(1, 2, 0, 3)


def images_first(x):
    """The inverse of `rows_first`."""
    return x.transpose(2, 0, 1, 3)


def test_the_context_of_a_deep_pixelcnn_is_the_papers_with_its_blind_spot():
    height, width = 7, 9
    dr, dc = positions(height, width)
    seen = ((dr == 0) & (dc < 0)) | ((dr > 0) & (dc <= dr + 2))
    declared = causal_sets.pixelcnn(PixelCNNConfig(image_shape=(height, width, 1), layers=15, width=2, head_width=2))
    np.testing.assert_array_equal(declared.reshape(seen.shape), seen)
    assert (np.tril(np.ones_like(seen), -1) & ~seen).any(), "the blind spot"


def test_the_context_of_a_row_lstm_layer_is_a_triangle():
    height, width, features = 4, 9, 2
    layer = RowLSTMLayer(RowLSTMConfig(image_shape=(height, width, 1), width=features), nnx.Rngs(0))
    dr, dc = positions(height, width)

    def states(gates):
        return images_first(layer.states(rows_first(gates)))

    def of_pixels(seen, depth):  # any feature of a pixel
        return seen.reshape(height * width, height * width, depth).any(-1)

    seen = of_pixels(jacobian_set(states, normal(1, height, width, 4 * features)), 4 * features)
    np.testing.assert_array_equal(seen, (dr >= 0) & (abs(dc) <= dr))  # gates of the state, columns j-n .. j+n n rows above
    y = normal(1, height, width, 2 * features)
    seen = of_pixels(jacobian_set(lambda y: images_first(layer.states(layer.input.along_rows(rows_first(y)))), y), 2 * features)
    np.testing.assert_array_equal(seen, (dr >= 0) & (-dr - 1 <= dc) & (dc <= dr))  # inputs, one column further to the left


def test_the_context_of_a_whole_row_lstm_ends_where_that_of_pixelcnn_does():
    height, width = 7, 9
    dr, dc = positions(height, width)
    seen = ((dr == 0) & (dc < 0)) | ((dr > 0) & (dc <= dr + 2))
    declared = causal_sets.row_lstm(RowLSTMConfig(image_shape=(height, width, 1), layers=12, width=2, head_width=2))
    np.testing.assert_array_equal(declared.reshape(seen.shape), seen)


@pytest.mark.parametrize(("height", "width"), [(3, 5), (4, 1), (1, 4)])
def test_a_diagonal_layer_sees_the_whole_past_from_both_sides_and_nothing_else(height, width):
    layer = DiagonalLayer(DiagonalBiLSTMConfig(image_shape=(height, width, 1), width=2), nnx.Rngs(0))
    dr, dc = positions(height, width)
    gates = normal(1, height, width, 8)
    for branch, rectangle in enumerate([(dr >= 0) & (dc <= 0), (dr >= 0) & (dc >= 0)]):  # above and to the left, above and to the right
        seen = jacobian_set(lambda gates, branch=branch: images_first(layer.states(*[rows_first(gates)] * 2)[branch]), gates)
        np.testing.assert_array_equal(seen.reshape(height * width, height * width, 8).any(-1), rectangle)
    y = normal(1, height, width, 4)
    seen = jacobian_set(lambda y: images_first(layer(rows_first(y), jnp.zeros(()))), y).reshape(height * width, height * width, 4).any(-1)
    np.testing.assert_array_equal(seen, np.tril(np.ones_like(seen)))  # raster order, this pixel included: mask B


@pytest.mark.parametrize(("height", "width"), [(3, 5), (5, 3), (4, 4), (1, 4), (4, 1), (1, 1)])
def test_skew_puts_diagonals_into_columns_and_back(height, width):
    x = np.arange(1, height * width * 2 + 1).reshape(height, width, 2).astype(np.float32)
    expected = np.full((height, width + height - 1, 2), -7.0)
    for i in range(height):
        for j in range(width):
            expected[i, i + j] = x[i, j]
    skewed = skew(jnp.asarray(x), fill=-7.0)
    np.testing.assert_array_equal(skewed, expected)
    np.testing.assert_array_equal(unskew(skewed), x)


@pytest.mark.parametrize(("device", "batch", "together"), [("cpu", 8, 4), ("cpu", 6, 2), ("cpu", 3, 1), ("gpu", 8, 1)])
def test_images_that_are_swept_side_by_side_have_the_states_that_each_has_alone(monkeypatch, device, batch, together):
    layer, calls = DiagonalLayer(DiagonalBiLSTMConfig(image_shape=(3, 5, 1), width=2), nnx.Rngs(0)), []
    gates = normal(2, 3, 5, batch, 8)
    alone = [layer.states(*gates[:, :, :, i : i + 1]) for i in range(batch)]
    monkeypatch.setattr(diagonals, "skew", lambda x: calls.append(x.shape) or skew(x))
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    monkeypatch.setattr(DiagonalLayer, "states", DiagonalLayer.states.__wrapped__)  # else a trace of another case may be used again
    for found, *each in zip(layer.states(*gates), *alone, strict=True):
        np.testing.assert_allclose(found, jnp.concatenate(each, axis=2), rtol=1e-6, atol=1e-7)
    expected = [(3, 5 * together, batch // together, 8)] * 2
    assert calls == expected, "a CPU has four images in a sweep, or as many of these as divide the batch"
    np.testing.assert_array_equal(diagonals.to_rows(diagonals.to_diagonals(gates[0], together), together), gates[0])


@pytest.mark.parametrize(("image_shape", "fill"), [((3, 5, 3), 100.0), ((5, 2, 1), float("nan"))], ids=str)
def test_padding_of_the_skewed_map_never_reaches_a_pixel(monkeypatch, image_shape, fill):
    model = drawn(DiagonalBiLSTMConfig(image_shape=image_shape, levels=4, layers=2, width=3, head_width=6))
    image = jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, *image_shape), np.uint8))
    expected = jax.jit(model.logits)(image)
    calls = []
    monkeypatch.setattr(DiagonalLayer, "states", DiagonalLayer.states.__wrapped__)  # else the trace from above is used again
    monkeypatch.setattr(diagonals, "skew", lambda x: calls.append(1) or partial(skew, fill=fill)(x))
    np.testing.assert_array_equal(jax.jit(lambda image: model.logits(image))(image), expected)
    assert len(calls) == 4, "one skew a branch and layer"


def test_a_diagonal_layer_equals_its_equations_pixel_by_pixel():
    height, width, d = 3, 4, 2
    layer = DiagonalLayer(DiagonalBiLSTMConfig(image_shape=(height, width, 1), width=d), nnx.Rngs(0))
    y = np.asarray(normal(height, width, 2 * d), np.float64)
    weight, bias, state, out = (
        np.asarray(p[...], np.float64) for p in (layer.input.weight, layer.input.bias, layer.state, layer.out.weight)
    )

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def branch(z, columns, beside):
        h, cell = np.zeros((2, height + 1, width + 2, d))  # row 0 and both outer columns are outside the image
        for i in range(height):
            for j in columns:
                gates = (y[i, j] @ weight + bias)[z * 4 * d :][: 4 * d]
                gates = gates + h[i + 1, j + 1 + beside] @ state[z, :d] + h[i, j + 1] @ state[z, d:]
                o, f, a, g = np.split(gates, 4)
                cell[i + 1, j + 1] = sigmoid(f) * cell[i + 1, j + 1 + beside] + sigmoid(a) * np.tanh(g)
                h[i + 1, j + 1] = sigmoid(o) * np.tanh(cell[i + 1, j + 1])
        return h[:, 1:-1]

    left, right = branch(0, range(width), -1), branch(1, range(width)[::-1], 1)
    expected = y + (left[1:] + right[:-1]) @ out
    found = jax.jit(lambda layer, y: layer(y, jnp.zeros(())))(layer, jnp.asarray(y[:, :, None], jnp.float32))
    np.testing.assert_allclose(found[:, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "groups", "parts", "square"), [("A", 3, 1, True), ("B", 3, 4, False), ("A", 1, 1, True), ("B", 1, 1, True)]
)
def test_a_masked_convolution_equals_a_loop_over_taps_and_masked_taps_get_no_gradient(kind, groups, parts, square):
    height, width, kernel, d, e = 4, 5, 5, 3, 12
    conv = MaskedConv(d, e, kernel, kind, groups, nnx.Rngs(0), square=square, parts=parts)
    x = normal(1, height, width, d)
    m, expected = kernel // 2, np.zeros((height, width, e))
    centre, left, above = (None if p is None else np.asarray(p[...], np.float64) for p in (conv.centre, conv.left, conv.above))
    pixels = np.asarray(x[0], np.float64)
    group_in, group_out = np.arange(d) // (d // groups), np.arange(e) % (e // parts) // (e // parts // groups)
    mask = group_in[:, None] < group_out[None] if kind == "A" else group_in[:, None] <= group_out[None]
    for r in range(height):
        for c in range(width):
            for i in range(r - m if square else r, r + 1):
                for j in range(c - m, c + m + 1):
                    if i < 0 or not 0 <= j < width or (i == r and j > c):
                        continue
                    if (i, j) == (r, c):
                        weight = np.zeros((d, e)) if centre is None else np.where(mask, centre, 0)
                    else:
                        weight = left[j - c + m] if i == r else above[i - r + m, j - c + m]
                    expected[r, c] += pixels[i, j] @ weight
    whole = (lambda conv: conv(x)) if square else (lambda conv: images_first(conv.along_rows(rows_first(x))))
    np.testing.assert_allclose(jax.jit(whole)(conv)[0], expected, atol=1e-5)
    if conv.centre is not None:
        gradient = jax.jit(jax.grad(lambda conv: (whole(conv) ** 2).sum()))(conv).centre[...]
        np.testing.assert_array_equal(np.asarray(gradient) != 0, mask)


def test_masked_weights_of_the_1x1_layers_get_no_gradient():
    layer = Masked1x1(6, 24, 3, nnx.Rngs(0), parts=4)
    x = normal(5, 6)
    gradient = np.asarray(jax.jit(jax.grad(lambda layer: (layer(x) ** 2).sum()))(layer).weight[...])
    for i in range(6):
        for j in range(24):
            assert (gradient[i, j] != 0) == (i // 2 <= j % 6 // 2)


def test_the_derivatives_of_the_lstm_cell_are_those_of_its_equations():
    def written_out(gates, cell):
        o, f, i, g = jnp.split(gates, 4, axis=-1)
        cell = cell / (1 + jnp.exp(-f)) + jnp.tanh(g) / (1 + jnp.exp(-i))
        return jnp.tanh(cell) / (1 + jnp.exp(-o)), cell

    def both_ways(function, *x):
        gates, cell, *along = x
        values, forward = jax.jvp(function, (gates, cell), tuple(along[:2]))
        return values, forward, jax.vjp(function, gates, cell)[1](tuple(along[2:]))

    x = [2 * normal(3, size) for size in (20, 5, 20, 5, 5, 5)]
    for found, expected in zip(*(jax.tree.leaves(jax.jit(partial(both_ways, f))(*x)) for f in (lstm_cell, written_out)), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_states_last_at_first_and_the_gates_are_in_their_documented_order():
    assert GATES == ("output", "forget", "input", "content")
    np.testing.assert_array_equal(forget_bias(2, lstms=2)[...], [0, 0, 1, 1, 0, 0, 0, 0] * 2)
    high, low = 50.0, -50.0
    o, f, i = jnp.asarray([high, low, high]), jnp.asarray([high, high, low]), jnp.asarray([low, low, high])
    gates = jnp.concatenate([o, f, i, jnp.full((3,), 0.5)])
    state, cell = lstm_cell(gates, jnp.asarray([0.7, 0.7, 0.7]))
    np.testing.assert_allclose(cell, [0.7, 0.7, np.tanh(0.5)], atol=1e-6)  # forget open, forget open, input open
    np.testing.assert_allclose(state, [np.tanh(0.7), 0, np.tanh(np.tanh(0.5))], atol=1e-6)
    for input_to_state, gates in [
        (RowLSTMLayer(RowLSTMConfig(width=16), nnx.Rngs(0)).input.along_rows, 4),
        (DiagonalLayer(DiagonalBiLSTMConfig(width=16), nnx.Rngs(0)).input, 8),
    ]:
        y = jax.random.normal(jax.random.key(0), (8, 8, 8, 32)) * 0.1
        forget = jax.nn.sigmoid(input_to_state(y).reshape(-1, gates, 16)[:, 1::4])
        np.testing.assert_allclose(forget.mean(), jax.nn.sigmoid(1.0), atol=0.01)


def test_the_cell_stays_in_float32_when_the_gates_are_bfloat16():
    state, cell = lstm_cell(jnp.zeros((4,), jnp.bfloat16), jnp.ones((1,), jnp.float32))
    assert (state.dtype, cell.dtype) == (jnp.bfloat16, jnp.float32)


@every_config
@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({"image_shape": (8, 8, 2)}, "image_shape"),
        ({"image_shape": (0, 8, 1)}, "image_shape"),
        ({"levels": 1}, "levels"),
        ({"num_classes": -1}, "num_classes"),
        ({"layers": 0}, "layers"),
        ({"input_kernel": 4}, "input_kernel"),
        ({"input_kernel": 1}, "input_kernel"),
        ({"width": 0}, "width"),
        ({"image_shape": (8, 8, 3), "width": 128, "head_width": 33}, "width"),
        ({"image_shape": (8, 8, 3), "width": 129, "head_width": 32}, "head_width"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(config, fields, argument):
    with pytest.raises(ConfigError) as error:
        config(**fields)
    assert error.value.argument == argument
