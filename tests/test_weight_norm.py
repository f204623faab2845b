"""Weight-normalised convolutions against loops over taps, and the data-dependent initialisation of a PixelCNN++."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_models import drawn

from jaxgen.layers.weight_norm import Conv, Down, Up, WeightNorm
from jaxgen.models import PixelCNNPP, PixelCNNPPConfig


def made(form: type, kernel: tuple[int, int], features=(3, 4)):
    """A convolution with random kernel and bias, and the same as float64 arrays."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(*kernel, *features)), rng.normal(size=features[1])
    return form(jnp.asarray(weight, jnp.float32), jnp.asarray(bias, jnp.float32)), weight, bias


def images(height: int, width: int, features: int = 3) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, height, width, features))


def inside(x, r: int, c: int):
    return 0 <= r < x.shape[1] and 0 <= c < x.shape[2]


def convolution(x, weight, bias, stride: int) -> np.ndarray:
    """The equation of weight_norm.py, tap by tap."""
    rows, columns = weight.shape[:2]
    height, width = (-(-n // stride) for n in x.shape[1:3])
    y = np.tile(bias, (len(x), height, width, 1))
    for r, c, i, j in np.ndindex(height, width, rows, columns):
        row, column = stride * r - (rows - 1) + i, stride * c - columns // 2 + j
        if inside(x, row, column):
            y[:, r, c] += x[:, row, column] @ weight[i, j]
    return y


def transposed(x, weight, bias, size) -> np.ndarray:
    """Every low pixel spreads to the pixels that the docstring of Up names."""
    y = np.tile(bias, (len(x), *size, 1))
    for r, c, i in np.ndindex(*x.shape[1:3], 2):
        for j, column in [(1, 2 * c), (0, 2 * c + 1)] + ([(2, 2 * c - 1)] if weight.shape[1] == 3 else []):
            if 2 * r + i < size[0] and 0 <= column < size[1]:
                y[:, 2 * r + i, column] += x[:, r, c] @ weight[1 - i, j]
    return y


@pytest.mark.parametrize("form", [Conv, Down])
@pytest.mark.parametrize("kernel", [(2, 3), (2, 2), (1, 3), (2, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)], ids=str)
def test_whole_images_rows_and_pixels_equal_the_equation(form, kernel, size):
    layer, weight, bias = made(form, kernel)
    x = images(*size)
    expected = convolution(x, weight, bias, form.stride)
    steps = range(expected.shape[1]) if kernel[0] > 1 else ()
    columns = range(expected.shape[2]) if kernel[1] == 2 else ()

    @jax.jit
    def numbers(layer, given):
        """Whole images, their rows, and the pixels [r, c] where a layer has them."""
        above = jnp.concatenate([jnp.zeros_like(given[:, :1]), given], axis=1).transpose(1, 2, 0, 3)  # [1 + H, W, B, D], zeros above
        pairs = [(above[form.stride * r], above[form.stride * r + 1]) for r in steps]
        left = [[this[form.stride * c - 1] if c else jnp.zeros_like(this[0]) for c in columns] for _, this in pairs]
        pixels = [
            [layer.base(row)[c] + layer.pixel(beside[c], this[form.stride * c]) for c in columns]
            for (row, this), beside in zip(pairs, left, strict=True)
        ]
        return layer(given), [layer.row(*pair) for pair in pairs], pixels

    whole, rows, pixels = numbers(layer, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(whole, expected, atol=2e-5)
    for r in steps:
        np.testing.assert_allclose(rows[r], expected[:, r].swapaxes(0, 1), atol=2e-5)
        for c in columns:
            np.testing.assert_allclose(pixels[r][c], expected[:, r, c], atol=2e-5)


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 2)], ids=str)
def test_transposed_convolutions_equal_the_loops_and_are_cropped(columns, size):
    layer, weight, bias = made(Up, (2, columns))
    x = images(*(-(-n // 2) for n in size))
    expected = transposed(x, weight, bias, size)

    @jax.jit
    def numbers(layer, given):
        rows = [layer.row(given[:, r].swapaxes(0, 1), size[1]) for r in range(x.shape[1])]
        return layer(given, size), rows, layer.row(given[:, 0, 0][None], 2) if columns == 2 else None

    whole, rows, first = numbers(layer, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(whole, expected, atol=2e-5)
    for r, row in enumerate(rows):
        kept = expected[:, 2 * r : 2 * r + 2]
        np.testing.assert_allclose(row[: kept.shape[1]], kept.transpose(1, 2, 0, 3), atol=2e-5)
    if columns == 2:
        np.testing.assert_allclose(first[0, 1], expected[:, 0, 1], atol=2e-5)


def test_the_norm_of_a_kernel_is_its_gain():
    layer = WeightNorm(Conv, 5, 4, (2, 3), nnx.Rngs(0), scale=0.1)
    np.testing.assert_allclose(jnp.sqrt(jnp.square(layer.layer().kernel).sum((0, 1, 2))), 0.1, rtol=1e-5)
    scaled = nnx.clone(layer)
    scaled.direction[...] = 7 * layer.direction[...]
    np.testing.assert_allclose(scaled.layer().kernel, layer.layer().kernel, rtol=1e-5)


def recorded(models, batch, monkeypatch) -> list:
    """For each model (scale, outputs before the label) of every weight-normalised layer in a pass over the batch, by one program."""
    scales, call = [], WeightNorm.__call__

    def outputs_of(model):
        outputs = []

        def record(layer, x, *size, initialise=False):
            y = call(layer, x, *size, initialise=initialise)
            scales.append(layer.scale)
            outputs.append(y)
            return y

        with monkeypatch.context() as patch:
            patch.setattr(WeightNorm, "__call__", record)
            model.logits(batch["image"], batch["label"])
        return outputs

    compiled = jax.jit(outputs_of)
    outputs = [compiled(model) for model in models]
    return [[(scale, np.asarray(y)) for scale, y in zip(scales, one, strict=True)] for one in outputs]


def test_initialised_layers_have_mean_0_and_deviation_1_on_the_batch(monkeypatch):
    config = PixelCNNPPConfig((7, 5, 3), levels=8, num_classes=3, width=6, resnets=1, resolutions=2, mixtures=2, dropout=0.5)
    model, initialise = drawn(config), jax.jit(PixelCNNPP.initialise)
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.integers(8, size=(16, 7, 5, 3)), jnp.uint8), "label": jnp.arange(16, dtype=jnp.int32) % 3}
    started = initialise(model, batch)
    before, after = recorded((model, started), batch, monkeypatch)
    layers = sum(isinstance(node, WeightNorm) for _, node in nnx.iter_graph(model))
    assert len(after) == layers > 30 and sorted({scale for scale, _ in after}) == [0.1, 1.0]
    for scale, y in after:
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-3 * scale)
        np.testing.assert_allclose(y.std((0, 1, 2)), scale, rtol=1e-3)
    assert max(abs(y.mean((0, 1, 2))).max() for _, y in before) > 0.3, "there is something to do"
    # Pure, deterministic, and directions and embeddings are as they were.
    again = initialise(model, batch)
    names = [name for (name, one), (_, two) in zip(leaves(started), leaves(again), strict=True) if not np.array_equal(one, two)]
    changed = {name[-1] for (name, one), (_, two) in zip(leaves(model), leaves(started), strict=True) if not np.array_equal(one, two)}
    assert names == [] and changed == {"gain", "bias"}
    # A model that has been initialised stays as it is, up to rounding.
    for (_, one), (_, two) in zip(leaves(started), leaves(initialise(started, batch)), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-4)


def leaves(model) -> list:
    """(path, array) of all parameters."""
    return [(path, leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))]


@pytest.mark.parametrize("image_shape, resolutions", [((1, 9, 1), 1)], ids=str)
def test_outputs_that_the_batch_does_not_move_keep_their_scale(image_shape, resolutions):
    """A single row, like a last resolution of 1 x 1, has maps of zeros: gains of 1 / sqrt(0) would explode."""
    config = PixelCNNPPConfig(image_shape=image_shape, levels=4, width=4, resnets=1, resolutions=resolutions, mixtures=2, dropout=0.0)
    batch = {"image": jnp.asarray(np.random.default_rng(5).integers(0, 4, (16, *image_shape)), jnp.uint8)}
    model = jax.jit(PixelCNNPP.initialise)(drawn(config), batch)
    gains = [np.abs(np.asarray(leaf)).max() for path, leaf in jax.tree_util.tree_leaves_with_path(model) if "gain" in str(path)]
    assert len(gains) > 10 and max(gains) < 100
    gradients = jax.jit(jax.grad(lambda model: model.loss(batch, jax.random.key(0))[0], allow_int=True))(model)
    norms = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients)]
    assert np.isfinite(norms).all() and max(norms) > 0
