"""Every autoregressive image model, the same properties: a new model is one line in TABLE and a function that declares what it may see.

The oracles are independent of the models: sets propagated through the equations of a model's docstring, enumeration of all images of nine
binary values, the full pass for the cached form, and the naive sampler for the fast ones.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import causal_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import chisquare

from jaxgen.errors import ConfigError
from jaxgen.models import (
    MODELS,
    DiagonalBiLSTMConfig,
    GatedPixelCNNConfig,
    ImageTransformerConfig,
    PixelCNNConfig,
    PixelCNNPPConfig,
    PixelSNAILConfig,
    RowLSTMConfig,
)
from jaxgen.sampling import METHODS
from jaxgen.sharding import make_mesh
from jaxgen.training import OptimizerConfig, init_state, make_optimizer, make_train_step


def raster_past(height: int, width: int, channels: int) -> np.ndarray:
    """What p(x_i | x_<i) may depend on: the pixels above and to the left, and the channels before; bool [H, W, C, H, W, C]."""
    order = np.arange(height * width * channels)
    return (order[:, None] > order[None]).reshape((height, width, channels) * 2)


def gated_pixelcnn_dependencies(config) -> np.ndarray:
    """Sets of inputs through the equations of gated_pixelcnn.py; bool [H, W, C, H, W, C] (output, input)."""
    height, width, channels = config.image_shape

    def at(sets, r, c):
        inside = 0 <= r < height and 0 <= c < width
        return sets[r, c] if inside else np.zeros(sets.shape[2:], bool)

    def union(parts):
        return np.logical_or.reduce(list(parts))

    pixels = [(r, c) for r in range(height) for c in range(width)]
    x = np.eye(height * width * channels, dtype=bool).reshape(height, width, channels, -1)
    v, h, logits = x.any(2), x, np.zeros_like(x)  # v [H, W, inputs] has no channel groups, h [H, W, groups, inputs] has
    for layer in range(config.layers + 1):
        m = (config.input_kernel if layer == 0 else config.kernel) // 2
        u, new = np.zeros_like(v), np.zeros_like(h)
        for r, c in pixels:
            u[r, c] = union(at(v, r - i, c + j) for i in range(m + 1) for j in range(-m, m + 1))
        for r, c in pixels:
            before = union([at(u, r - 1, c), *(at(h, r, c - j).any(0) for j in range(1, m + 1))])
            for g in range(channels):
                seen = h[r, c, : g if layer == 0 else g + 1]  # mask A, then B
                new[r, c, g] = union([before, *seen, h[r, c, g] if layer > 0 else before])
        v, h = u, new
        logits |= np.logical_or.accumulate(new, axis=2)  # skip and head, masks B
    return logits.reshape((height, width, channels) * 2)


@dataclass(frozen=True)
class Entry:
    """A model of the table: small sizes for the tests, what it may see, sizes that see the whole past, and edge cases of its own."""

    name: str
    config: type
    small: dict
    dependencies: Callable[..., np.ndarray]  # config -> bool [H, W, K, H, W, C]; K = C, or 1 where all channels share parameters
    whole_past: dict | None  # sizes at which a 5x5 image has no blind spot; None for a model that has one
    edges: tuple[dict, ...] = ()
    full_sizes: tuple[tuple[dict, int], ...] = field(default=())  # (config, number of parameters)
    learning_rate: float = 0.1  # of the one training step, and
    noise: float = 0.3  # on every weight after it: large values make a deep network of ReLUs too sharp for these tests

    def make(self, image_shape, levels=4, num_classes=0, **sizes):
        """The config."""
        return self.config(image_shape=image_shape, levels=levels, num_classes=num_classes, **{**self.small, **sizes})


def gated_pixelcnn_parameters(layers: int, width: int, input_kernel: int, head_width: int, outputs: int, factorized: bool) -> int:
    """Weights and biases of a grey Gated PixelCNN with kernel 3, counted layer by layer from its equations."""
    m, two = input_kernel // 2, 2 * width
    link, out = two * two + two, width * two + two
    first = (m + 1) * input_kernel * two + two + link + m * two + out
    vertical = (3 * width * width + 2 * width * two if factorized else 2 * 3 * width * two) + two
    other = vertical + link + 2 * width * two + out
    head = width * head_width + head_width + head_width * outputs + outputs
    return first + layers * other - (width * width + width) + head  # the last layer has no residual


def pixel_recurrent_parameters(layer: Callable[[int], int], image_shape, levels: int, layers: int, width: int, head_width: int) -> int:
    """Weights and biases of PixelCNN, Row LSTM and Diagonal BiLSTM with a 7 x 7 first layer; `layer(h)` counts one layer."""
    channels, outputs = image_shape[2], image_shape[2] * (1 if levels == 2 else levels)
    taps = 24 * channels + (channels if channels > 1 else 0)  # the centre of mask A is there only between channels
    head = 2 * width * head_width + head_width + head_width * outputs + outputs
    pixels = channels * 4 * width if layer is diagonal_bilstm_layer else 0  # x itself, to the first right branch
    return taps * 2 * width + 2 * width + layers * layer(width) + pixels + head


def pixelcnn_layer(h: int) -> int:
    return 2 * h * h + h + 5 * h * h + h + 2 * h * h + 2 * h


def row_lstm_layer(h: int) -> int:
    return 2 * 2 * h * 4 * h + 4 * h + 3 * h * 4 * h + 2 * h * h + 2 * h


def diagonal_bilstm_layer(h: int) -> int:
    return 2 * (2 * h * 4 * h + 4 * h + 2 * h * 4 * h) + 2 * h * h + 2 * h


def pixel_recurrent_sizes(layer: Callable[[int], int], *sizes: tuple[int, int]) -> tuple[tuple[dict, int], ...]:
    """CIFAR-10 and MNIST sizes, (layers, width) each, with their numbers of parameters."""
    shapes = [((32, 32, 3), 256, 1026), ((28, 28, 1), 2, 32)]
    fields = [
        {"image_shape": shape, "levels": levels, "head_width": head, "layers": layers, "width": width}
        for (shape, levels, head), (layers, width) in zip(shapes, sizes, strict=True)
    ]
    return tuple((sizes, pixel_recurrent_parameters(layer, **sizes)) for sizes in fields)


def pixelcnn_pp_parameters(image_shape, levels: int, width: int, resnets: int = 5, resolutions: int = 3, mixtures: int = 10) -> int:
    """Directions, gains and biases of an unconditional PixelCNN++."""

    def conv(rows: int, columns: int, features_in: int, features_out: int) -> int:
        return (rows * columns * features_in + 2) * features_out

    two, channels = 2 * width, image_shape[2] + 1
    ends = conv(2, 3, channels, width) + conv(1, 3, channels, width) + conv(2, 1, channels, width)
    ends += conv(1, 1, width, mixtures * {1: 3, 3: 10}[image_shape[2]])
    both = sum(conv(2, columns, two, width) + conv(2, columns, two, two) for columns in (3, 2))
    down, up = both + conv(1, 1, two, width), both + conv(1, 1, two, width) + conv(1, 1, 2 * two, width)
    between = 2 * (conv(2, 3, width, width) + conv(2, 2, width, width))
    return ends + resolutions * resnets * (down + up) + (resolutions - 1) * (up + between)


def image_transformer_parameters(image_shape, levels, head, layers, width, hidden, **_) -> int:
    """Weights and biases of an unconditional Image Transformer: four square matrices, feed-forward and two norms a layer."""
    layer = 4 * width * width + 2 * width * hidden + hidden + width + 4 * width
    height, columns, channels = image_shape
    places = height + columns + (channels if head == "categorical" else 0)
    outputs = (1 if levels == 2 else levels) if head == "categorical" else {1: 30, 3: 100}[channels]
    vectors = channels * levels if head == "categorical" else channels
    return layers * layer + (places + vectors) * width + outputs * (width + 1)


def pixelsnail_parameters(
    image_shape, levels: int, blocks: int, width: int, resnets: int, key: int, value: int, light: bool = False
) -> int:
    """Directions, gains and biases of a PixelSNAIL, counted layer by layer from its equations; 10 mixtures, or one logit for two levels."""
    channels, f = image_shape[2], 1 if light else 2
    outputs = 100 if channels == 3 else {2: 1}.get(levels, levels)

    def conv(taps, features_in, features_out):
        return taps * features_in * features_out + 2 * features_out

    def resnet(taps, features):
        return conv(taps, f * features, features) + conv(taps, f * features, 2 * features)

    content, asking = width + channels + 2, width + 2
    attention = conv(1, content, key + value) + conv(1, asking, key) + (0 if light else resnet(1, content) + resnet(1, asking))
    block = resnets * resnet(4, width) + attention + resnet(1, width) + conv(1, f * value, width)
    return conv(3, channels + 1, width) + conv(2, channels + 1, width) + blocks * block + conv(1, width, outputs)


PIXELSNAIL_SIZES = [
    {"image_shape": (32, 32, 3), "levels": 256, "blocks": 12, "width": 256, "resnets": 4, "key": 16, "value": 128},
    {"image_shape": (28, 28, 1), "levels": 2, "blocks": 8, "width": 64, "resnets": 2, "key": 4, "value": 32, "light": True},
]
IMAGE_TRANSFORMER_SIZES = [
    {
        "image_shape": (32, 32, 3),
        "levels": 256,
        "head": "categorical",
        "layers": 12,
        "width": 512,
        "heads": 4,
        "hidden": 2048,
        "block": (256,),
    },
    {"image_shape": (32, 32, 3), "levels": 256, "head": "mixture", "layers": 12, "width": 256, "heads": 8, "hidden": 512, "block": (8, 32)},
    {"image_shape": (28, 28, 1), "levels": 2, "head": "categorical", "layers": 8, "width": 64, "heads": 2, "hidden": 256, "block": ()},
]
PIXELCNN_PP_SIZES = [
    {"image_shape": (32, 32, 3), "levels": 256, "width": 192},
    {"image_shape": (28, 28, 1), "levels": 2, "width": 64},
]
COMPARISON = {"image_shape": (28, 28, 1), "levels": 2, "layers": 10, "width": 128, "input_kernel": 7, "kernel": 3, "head_width": 32}

TABLE = [
    Entry(
        "gated_pixelcnn",
        GatedPixelCNNConfig,
        {"layers": 2, "width": 12, "head_width": 24, "input_kernel": 3, "kernel": 3},
        gated_pixelcnn_dependencies,
        whole_past={"input_kernel": 7, "layers": 1},
        edges=({"input_kernel": 1, "kernel": 1}, {"input_kernel": 5, "layers": 0}, {"factorized": True, "kernel": 5, "input_kernel": 1}),
        full_sizes=tuple(({**COMPARISON, "factorized": f}, gated_pixelcnn_parameters(10, 128, 7, 32, 1, f)) for f in (True, False)),
    ),
    Entry(
        "pixelcnn",
        PixelCNNConfig,
        {"layers": 2, "width": 24, "head_width": 48, "input_kernel": 3},
        causal_sets.pixelcnn,
        whole_past=None,
        edges=({"input_kernel": 7, "layers": 1},),
        full_sizes=pixel_recurrent_sizes(pixelcnn_layer, (15, 129), (15, 16)),
        learning_rate=0.01,
        noise=0.15,
    ),
    Entry(
        "row_lstm",
        RowLSTMConfig,
        {"layers": 2, "width": 12, "head_width": 48, "input_kernel": 3, "kernel": 3},
        causal_sets.row_lstm,
        whole_past=None,
        edges=({"kernel": 5, "layers": 1},),
        full_sizes=pixel_recurrent_sizes(row_lstm_layer, (12, 129), (7, 16)),
    ),
    Entry(
        "diagonal_bilstm",
        DiagonalBiLSTMConfig,
        {"layers": 1, "width": 12, "head_width": 48, "input_kernel": 3},
        causal_sets.diagonal_bilstm,
        whole_past={},
        edges=({"layers": 2, "input_kernel": 5},),
        full_sizes=pixel_recurrent_sizes(diagonal_bilstm_layer, (12, 129), (7, 16)),
    ),
    Entry(
        "pixelcnn_pp",
        PixelCNNPPConfig,
        {"width": 6, "resnets": 1, "resolutions": 2, "mixtures": 2, "dropout": 0.0},
        causal_sets.pixelcnn_pp,
        whole_past={},
        edges=({"resolutions": 1}, {"resolutions": 3}),
        full_sizes=tuple((sizes, pixelcnn_pp_parameters(**sizes)) for sizes in PIXELCNN_PP_SIZES),
    ),
    Entry(
        "image_transformer",
        ImageTransformerConfig,
        {"layers": 1, "width": 12, "heads": 2, "hidden": 16, "block": (10,), "memory": (12,), "mixtures": 2, "dropout": 0.0},
        causal_sets.image_transformer,
        whole_past={"block": (), "memory": ()},
        edges=({"head": "mixture", "layers": 2, "block": (7,), "memory": (5,)}, {"block": (), "memory": ()}),
        full_sizes=tuple(({**sizes, "memory": sizes["block"]}, image_transformer_parameters(**sizes)) for sizes in IMAGE_TRANSFORMER_SIZES),
        learning_rate=0.03,
        noise=0.2,
    ),
    Entry(
        "pixelsnail",
        PixelSNAILConfig,
        {"blocks": 1, "width": 8, "resnets": 1, "key": 2, "value": 4, "mixtures": 2, "dropout": 0.0},
        causal_sets.pixelsnail,
        whole_past={},
        edges=({"blocks": 2, "light": True}, {"resnets": 2}),
        full_sizes=tuple((sizes, pixelsnail_parameters(**sizes)) for sizes in PIXELSNAIL_SIZES),
    ),
]

every_model = pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)


def images_of(key: int, n: int, config) -> jax.Array:
    """Uniformly random images."""
    return jax.random.randint(jax.random.key(key), (n, *config.image_shape), 0, config.levels).astype(jnp.uint8)


def labels_of(n: int, config):
    """0, 1, 2, ... for a conditional model, None for the others."""
    return jnp.arange(n, dtype=jnp.int32) % config.num_classes if config.num_classes else None


def trained(config, learning_rate: float, noise: float):
    """The model after a step of AdamW, with noise on every weight, masked ones included: nothing vanishes, nothing is special."""
    model = MODELS[type(config)](config, rngs=nnx.Rngs(0))
    optimizer, mesh = make_optimizer(OptimizerConfig(learning_rate=learning_rate, weight_decay=0.1), steps=1), make_mesh()
    batch = {"image": images_of(1, 4, config), "label": labels_of(4, config)}
    if not config.num_classes:
        del batch["label"]
    state, metrics = make_train_step(optimizer, mesh)(init_state(model, optimizer, mesh), batch, jax.random.key(2))
    assert metrics["finite"] == 1
    graph, params, rest = nnx.split(state.model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    # One draw for all: every shape of its own would be compiled.
    ends = np.cumsum([p.size for p in leaves])
    drawn = np.split(np.asarray(noise * jax.random.normal(jax.random.key(3), (ends[-1],))), ends[:-1])
    leaves = [p + more.reshape(p.shape) for p, more in zip(leaves, drawn, strict=True)]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest)


@lru_cache(maxsize=16)
def _made(config, learning_rate, noise):
    return trained(config, learning_rate, noise)


def make(entry: Entry, image_shape, **sizes):
    """A trained model; the arrays are shared between the tests, which do not change them."""
    return _made(entry.make(image_shape, **sizes), entry.learning_rate, entry.noise)


@jax.jit
def full_pass(model, image, label=None):
    """The parameters of every position in one pass."""
    return model.logits(image, label)


@jax.jit
def log_prob(model, image, label=None):
    """log p(image), compiled."""
    return model.log_prob(image, label)


@jax.jit
def seen_inputs(model, image, label=None):
    """Bool [H, W, K, inputs]: which inputs change the parameters of which output, over a batch of random images.

    Every image of the batch is changed at one input at a time, and once at none: the same program computes both sides, so that equal means
    equal bits.
    """
    config = model.config
    height, width, _ = config.image_shape

    def parameters(image):
        return model.logits(image, label).reshape(image.shape[0], height, width, config.image_shape[2] if model.head.channelwise else 1, -1)

    def changed(i):
        hot = (jnp.arange(image[0].size) == i).reshape(1, *image.shape[1:])
        other = jnp.uint8(config.levels - 1) - image
        return parameters(jnp.where(hot, other, image))

    outputs = jax.lax.map(changed, jnp.arange(image[0].size + 1))
    return jnp.moveaxis((outputs[:-1] != outputs[-1:]).any((1, -1)), 0, -1)


def check_dependencies(entry: Entry, image_shape, label=None, **sizes):
    """The inputs that change an output are the declared ones: none more (a leak), none fewer (a blind spot)."""
    model = make(entry, image_shape, **sizes)
    image = images_of(5, 8, model.config)
    label = None if label is None else jnp.full((8,), label, jnp.int32)
    declared = entry.dependencies(model.config)
    seen = np.asarray(seen_inputs(model, image, label)).reshape(declared.shape)
    future = ~raster_past(*image_shape)[:, :, : declared.shape[2]]
    assert not (seen & future).any(), f"leak (r, c, k, r', c', k'): {np.argwhere(seen & future)[:5].tolist()}"
    missing, extra = np.argwhere(declared & ~seen), np.argwhere(seen & ~declared)
    assert not len(missing), f"declared but not seen (r, c, k, r', c', k'): {missing[:5].tolist()}"
    assert not len(extra), f"seen but not declared (r, c, k, r', c', k'): {extra[:5].tolist()}"
    return declared


@every_model
@pytest.mark.parametrize("image_shape", [(5, 5, 3), (3, 6, 1), (6, 3, 3), (1, 4, 1), (4, 1, 3)], ids=str)
def test_every_output_sees_exactly_the_declared_inputs(entry, image_shape):
    check_dependencies(entry, image_shape)


@every_model
def test_edge_configurations_see_exactly_the_declared_inputs(entry):
    for i, sizes in enumerate(entry.edges):
        check_dependencies(entry, [(4, 5, 3), (5, 5, 1)][i % 2], **sizes)


@every_model
def test_enough_depth_leaves_no_blind_spot(entry):
    if entry.whole_past is None:
        pytest.skip(f"{entry.name} has a blind spot; its declared set says which")
    for image_shape in [(5, 5, 3), (5, 4, 1)]:
        declared = check_dependencies(entry, image_shape, **entry.whole_past)
        np.testing.assert_array_equal(declared, raster_past(*image_shape)[:, :, : declared.shape[2]])


@every_model
def test_the_label_reaches_every_output_and_leaves_the_order_alone(entry):
    check_dependencies(entry, (3, 4, 3), label=1, num_classes=3)
    model = make(entry, (3, 4, 3), num_classes=3)
    image = images_of(5, 8, model.config)
    one, two = (full_pass(model, image, jnp.full((8,), label, jnp.int32)) for label in (0, 2))
    assert (one != two).reshape(8, -1, one.shape[-1]).any(-1).all(), "a position that ignores the label"


def all_images(image_shape) -> np.ndarray:
    """The 512 images of nine binary values."""
    bits = np.arange(512)[:, None] >> np.arange(9)[::-1] & 1
    return bits.reshape(512, *image_shape).astype(np.uint8)


@every_model
@pytest.mark.parametrize("image_shape", [(3, 3, 1), (1, 3, 3)], ids=str)
def test_probabilities_sum_to_one_and_draws_follow_them(entry, image_shape):
    model = make(entry, image_shape, levels=2, num_classes=2)
    probability = np.exp(np.asarray(log_prob(model, jnp.asarray(all_images(image_shape)), jnp.ones(512, jnp.int32)), np.float64))
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    assert np.ptp(np.log(probability)) > 1, "the table is too flat to tell samplers apart"
    draws = 20_000
    image = np.asarray(model.sample(jax.random.key(0), draws, label=1)).reshape(draws, 9).astype(int)
    counts = np.bincount(image @ (1 << np.arange(9)[::-1]), minlength=512)
    rare = probability * draws < 5  # chi-square needs five expected draws in a cell: the rare ones share one
    expected = np.append(probability[~rare], probability[rare].sum() + 1e-9) * draws
    observed = np.append(counts[~rare], counts[rare].sum())
    keep = expected > 1
    assert chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue > 1e-4


def place_by_place(model, image, condition):
    """The same for a model with an order of its own."""
    order, channels = model.order, image.shape[3]
    values = jnp.stack([image[:, *place[:2]] if len(place) == 2 else image[:, *place][:, None] for place in order])  # [N, B, C or 1]

    def step(carry, inputs):
        cache, previous = carry
        cache, parameters = model.step(cache, previous, inputs[0])
        return (cache, inputs[1]), parameters

    start = model.init_cache(image.shape[0], condition), jnp.full_like(values[0], channels)
    _, parameters = jax.lax.scan(step, start, (jnp.arange(len(order)), values))
    raster = np.lexsort(order.T[::-1])
    return parameters.swapaxes(0, 1)[:, raster].reshape(*image.shape[: 1 + order.shape[1]], -1)


@jax.jit
def step_by_step(model, image, label=None):
    """The parameters of every position from the cached form, given the true pixels: [B, H, W, C, P], or [B, H, W, P]."""
    batch, height, width, channels = image.shape
    if model.order is not None:
        return place_by_place(model, image, model.condition(batch, label, image))
    rows = image.transpose(1, 2, 0, 3)  # [H, W, B, C]

    def pixel(carry, inputs):
        cache, previous, r = carry
        c, value = inputs
        cache, parameters = model.step(cache, previous, r, c)
        if model.head.channelwise:
            parameters = [parameters]
            for k in range(1, channels):
                hidden = jnp.where(jnp.arange(channels) < k, value, jnp.uint8(0))
                cache, more = model.step_channel(cache, hidden, k)
                parameters.append(more)
            parameters = jnp.stack(parameters, axis=1)
        return (cache, value, r), parameters

    def row(carry, inputs):
        cache, above = carry
        r, values = inputs
        cache = model.begin_row(cache, above, r)
        start = (cache, jnp.zeros((batch, channels), jnp.uint8), r)
        (cache, _, _), parameters = jax.lax.scan(pixel, start, (jnp.arange(width), values))
        return (cache, values.swapaxes(0, 1)), parameters

    start = (model.init_cache(batch, label), jnp.zeros((batch, width, channels), jnp.uint8))
    _, parameters = jax.lax.scan(row, start, (jnp.arange(height), rows))
    return jnp.moveaxis(parameters, 2, 0)


CASES = {
    "grey": {"image_shape": (4, 6, 1), "levels": 2},
    "colour, labels": {"image_shape": (5, 4, 3), "levels": 4, "num_classes": 3},
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_model
@pytest.mark.parametrize("edge", [False, True], ids=["", "edge sizes"])
@every_case
def test_the_cached_form_equals_the_full_pass_at_every_position(entry, case, edge):
    sizes_of_case = entry.edges[list(CASES.values()).index(case) :: len(CASES)]
    for sizes in sizes_of_case if edge else ({},):
        model = make(entry, **case, **sizes)
        image, label = images_of(6, 4, model.config), labels_of(4, model.config)
        full = full_pass(model, image, label)
        np.testing.assert_allclose(step_by_step(model, image, label), full, atol=1e-5 * max(1.0, float(jnp.abs(full).max())), rtol=0)


@every_model
@every_case
def test_naive_cached_and_fixed_point_give_the_same_bits(entry, case):
    model = make(entry, **case)
    n, config = 4, model.config
    label, given = labels_of(n, config), images_of(8, n, config)
    mask = jax.random.bernoulli(jax.random.key(9), 0.4, (n, *config.image_shape[:2]))
    top = jnp.broadcast_to(jnp.arange(config.image_shape[0])[:, None] < 2, mask.shape[1:])
    key = jax.random.key(10)
    for known, temperature in [(None, 1.0), ((given, mask), 1.0), ((given[0], top), 0.5), ((given, ~mask), 2.0)]:
        images = {m: np.asarray(model.sample(key, n, label, known, temperature=temperature, method=m)) for m in METHODS}
        np.testing.assert_array_equal(images["cached"], images["naive"])
        np.testing.assert_array_equal(images["fixed_point"], images["naive"])
        assert images["naive"].shape == given.shape and images["naive"].dtype == np.uint8 and images["naive"].max() < config.levels
        if known is not None:
            kept = np.broadcast_to(known[1], mask.shape)
            np.testing.assert_array_equal(images["naive"][kept], np.broadcast_to(known[0], given.shape)[kept])
    other = model.sample(jax.random.key(11), n, label)
    image = model.sample(key, n, label)
    assert all((other[i] != image[i]).any() for i in range(n)), "the key changes every image"
    assert all((image[i] != image[j]).any() for i in range(n) for j in range(i)), "the images of a batch differ"
    # What the cache computed is the likelihood of what it drew.
    cached = model.head.log_prob(step_by_step(model, image, label), image).reshape(n, -1).sum(-1)
    np.testing.assert_allclose(cached, log_prob(model, image, label), rtol=1e-5)


@every_model
@every_case
def test_an_image_depends_on_its_own_row_of_the_batch_only(entry, case):
    model = make(entry, **case)
    config = model.config
    label, image, key = labels_of(4, config), images_of(12, 4, config), jax.random.key(13)
    others = image.at[jnp.array([0, 3])].set(0)
    np.testing.assert_array_equal(log_prob(model, image, label)[1:3], log_prob(model, others, label)[1:3])
    alone = log_prob(model, image[:1], None if label is None else label[:1])
    np.testing.assert_allclose(alone, log_prob(model, image, label)[:1], rtol=1e-5)
    np.testing.assert_array_equal(model.sample(key, 4, label)[:3], model.sample(key, 3, None if label is None else label[:3]))


@every_model
@every_case
def test_completion_depends_on_given_and_generated_predecessors_only(entry, case):
    model = make(entry, **case)
    n, config, key = 4, model.config, jax.random.key(14)
    height, width, channels = config.image_shape
    label, given = labels_of(n, config), images_of(15, n, config)
    mask = jax.random.bernoulli(jax.random.key(16), 0.5, (n, height, width))

    def complete(image, mask):
        return np.asarray(model.sample(key, n, label, (image, mask))).reshape(n, height * width, channels)

    image = complete(given, mask)
    changed = jnp.uint8(config.levels - 1) - given
    hole = jnp.where(mask[..., None], given, changed)
    np.testing.assert_array_equal(complete(hole, mask), image, "pixels that are not given were read")
    middle = height * width // 2
    after = (jnp.arange(height * width) >= middle).reshape(1, height, width)
    np.testing.assert_array_equal(complete(jnp.where(after[..., None], changed, given), mask)[:, :middle], image[:, :middle])
    np.testing.assert_array_equal(complete(given, mask & ~after)[:, :middle], image[:, :middle])
    before = np.asarray(mask).reshape(n, -1) & (np.arange(height * width) < middle)
    early = complete(jnp.where(after[..., None], given, changed), mask)
    assert before.any() and (early[:, middle:] != image[:, middle:]).any(), "given pixels change those that are drawn after them"


@every_model
def test_low_temperature_is_greedy(entry):
    model = make(entry, **CASES["grey"])
    one, two = (np.asarray(model.sample(jax.random.key(key), 4, temperature=1e-5)) for key in (0, 1))
    np.testing.assert_array_equal(one, two)
    parameters, no_noise = full_pass(model, jnp.asarray(one)), 0 * model.head.noise(jax.random.key(0), one.shape)
    np.testing.assert_array_equal(one, model.head.sample(parameters, no_noise))


@every_model
def test_the_same_seed_gives_the_same_bits_with_and_without_jit(entry):
    config = entry.make((3, 4, 1), num_classes=3)
    build = MODELS[entry.config]
    one, two, three = (jax.tree.leaves(nnx.state(build(config, rngs=nnx.Rngs(seed)))) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, three, strict=True))
    model = make(entry, (3, 4, 1), num_classes=3)
    image, label = images_of(17, 4, config), labels_of(4, config)
    np.testing.assert_allclose(model.logits(image, label), full_pass(model, image, label), atol=1e-5)
    batch = {"image": image, "label": label}
    compiled = jax.jit(lambda model, batch, key: model.loss(batch, key))(model, batch, jax.random.key(0))
    plain = model.loss(batch, jax.random.key(0))
    np.testing.assert_allclose(plain[0], compiled[0], rtol=1e-5)
    np.testing.assert_allclose(plain[0] * np.log(2) * 12, -model.log_prob(image, label).mean(), rtol=1e-5)
    inside = jax.jit(lambda model, key: model.sample(key, 4, label))(model, jax.random.key(1))
    np.testing.assert_array_equal(inside, model.sample(jax.random.key(1), 4, label))


@every_model
def test_dropout_is_for_training_only(entry):
    if "dropout" not in {f.name for f in dataclasses.fields(entry.config)}:
        pytest.skip(f"{entry.name} has no dropout")
    plain, dropped = make(entry, (3, 4, 1)), make(entry, (3, 4, 1), dropout=0.5)
    dropped = nnx.merge(nnx.split(dropped)[0], nnx.state(plain))
    batch = {"image": images_of(18, 4, plain.config)}
    np.testing.assert_array_equal(log_prob(dropped, batch["image"]), log_prob(plain, batch["image"]))
    loss = jax.jit(lambda model, key: model.loss(batch, key)[0])
    first, again, other = (float(loss(dropped, jax.random.key(key))) for key in (0, 0, 1))
    assert first == again != other and first != float(loss(plain, jax.random.key(0)))


@every_model
def test_bfloat16_keeps_float32_parameters_and_likelihoods(entry):
    exact, model = (make(entry, (4, 4, 3), dtype=dtype) for dtype in ("float32", "bfloat16"))
    model = nnx.merge(nnx.split(model)[0], nnx.state(exact))
    image = images_of(19, 4, model.config)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {np.dtype("float32")}
    full, rough = full_pass(exact, image), full_pass(model, image)
    assert rough.dtype == jnp.float32 and log_prob(model, image).dtype == jnp.float32
    assert (full != rough).any(), "the compute dtype is not used"
    spread = float(full.std())
    np.testing.assert_allclose(rough, full, atol=0.25 * spread, rtol=0)
    assert float(jnp.abs(rough - full).mean()) < 0.02 * spread
    assert float(jnp.abs(step_by_step(model, image) - full).mean()) < 0.02 * spread


@every_model
def test_full_sizes_cost_nothing_to_check(entry):
    for fields, count in entry.full_sizes:
        config = entry.config(**fields)
        model = nnx.eval_shape(lambda config=config: MODELS[type(config)](config, rngs=nnx.Rngs(0)))
        assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count
        image = jax.ShapeDtypeStruct((16, *config.image_shape), np.uint8)
        key = jax.eval_shape(lambda: jax.random.key(0))
        assert jax.eval_shape(lambda m, x: m.log_prob(x), model, image).shape == (16,)
        assert jax.eval_shape(lambda m, k: m.sample(k, 16), model, key) == image


@every_model
@pytest.mark.parametrize("field", ["image_shape", "levels", "num_classes", *TABLE[0].small])
def test_a_bad_config_is_one_line_that_names_the_field(entry, field):
    if field not in {f.name for f in dataclasses.fields(entry.config)}:
        pytest.skip(f"{entry.name} has no {field}")
    with pytest.raises(ConfigError, match=f"^{field}: wanted [^\\n]+, got [^\\n]+$"):
        entry.make(**{"image_shape": (3, 4, 1), field: (0, 4, 1) if field == "image_shape" else -1})
