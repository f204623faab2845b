"""The table of autoregressive image models: small sizes, what each may see, and how many parameters its full sizes have.

A new model is one Entry in TABLE; causal_sets.py declares what it may see, from the equations of its docstring and not from its code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import causal_sets
import numpy as np

from jaxgen.models import (
    DiagonalBiLSTMConfig,
    GatedPixelCNNConfig,
    ImageTransformerConfig,
    NADEConfig,
    PixelCNNConfig,
    PixelCNNPPConfig,
    PixelSNAILConfig,
    RowLSTMConfig,
)


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
    learning_rate: float = 0.1  # of the training step where there is one, and
    noise: float = 0.3  # on every weight: large values make a deep network of ReLUs too sharp for these tests
    smaller: dict = field(default_factory=dict)  # sizes a third as dear to compile, where other tests have the small ones

    def make(self, image_shape, levels=4, num_classes=0, **sizes):
        """The config."""
        return self.config(image_shape=image_shape, levels=levels, num_classes=num_classes, **{**self.small, **sizes})


def gated_pixelcnn_parameters(image_shape, levels: int, layers: int, width: int, kernel: int, head_width: int, factorized: bool) -> int:
    """Weights and biases of a Gated PixelCNN with a 7 x 7 first layer, counted layer by layer from its equations."""
    channels, outputs = image_shape[2], image_shape[2] * (1 if levels == 2 else levels)
    m, two = kernel // 2, 2 * width
    link, out = two * two + two, width * two + two
    taps = 3 * channels + (channels if channels > 1 else 0)  # the centre of mask A is there only between channels
    first = 4 * 7 * channels * two + two + link + taps * two + out
    vertical = (kernel * width * width + (m + 1) * width * two if factorized else (m + 1) * kernel * width * two) + two
    other = vertical + link + (m + 1) * width * two + out
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


def pixel_recurrent(name: str, config: type, sizes: dict, dependencies: Callable, **fields) -> Entry:
    """An entry of the models of "Pixel Recurrent Neural Networks": their small sizes have the first and the last layers in common."""
    return Entry(name, config, {**sizes, "head_width": 48, "input_kernel": 3}, dependencies, learning_rate=0.01, **fields)


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
GATED_PIXELCNN_SIZES = [
    {"image_shape": (28, 28, 1), "levels": 2, "layers": 10, "width": 128, "kernel": 3, "head_width": 32, "factorized": factorized}
    for factorized in (True, False)
] + [{"image_shape": (32, 32, 3), "levels": 256, "layers": 19, "width": 384, "kernel": 5, "head_width": 768, "factorized": False}]

NADE_SIZES = [{"image_shape": (32, 32, 3), "levels": 256, "hidden": 500}, {"image_shape": (28, 28, 1), "levels": 2, "hidden": 500}]


def nade_parameters(image_shape, levels: int, hidden: int) -> int:
    """W, c, V and b of an unconditional NADE."""
    d, outputs = int(np.prod(image_shape)), 1 if levels == 2 else levels
    return d * hidden + hidden + d * hidden * outputs + d * outputs


TABLE = [
    Entry(
        "gated_pixelcnn",
        GatedPixelCNNConfig,
        {"layers": 2, "width": 12, "head_width": 24, "input_kernel": 3, "kernel": 3},
        gated_pixelcnn_dependencies,
        whole_past={"input_kernel": 7, "layers": 1},
        edges=({"input_kernel": 1, "kernel": 1}, {"input_kernel": 5, "layers": 0}, {"factorized": True, "kernel": 5, "input_kernel": 1}),
        full_sizes=tuple((sizes, gated_pixelcnn_parameters(**sizes)) for sizes in GATED_PIXELCNN_SIZES),
    ),
    pixel_recurrent(
        "pixelcnn",
        PixelCNNConfig,
        {"layers": 2, "width": 24},
        causal_sets.pixelcnn,
        whole_past=None,
        edges=({"input_kernel": 7, "layers": 1},),
        full_sizes=pixel_recurrent_sizes(pixelcnn_layer, (15, 129), (15, 16)),
        noise=0.15,
    ),
    pixel_recurrent(
        "row_lstm",
        RowLSTMConfig,
        {"layers": 2, "width": 12, "kernel": 3},
        causal_sets.row_lstm,
        whole_past=None,
        edges=({"kernel": 5, "layers": 1},),
        full_sizes=pixel_recurrent_sizes(row_lstm_layer, (12, 129), (7, 16)),
        noise=0.1,
    ),
    pixel_recurrent(
        "diagonal_bilstm",
        DiagonalBiLSTMConfig,
        {"layers": 2, "width": 12},
        causal_sets.diagonal_bilstm,
        whole_past={"layers": 1},
        edges=({"layers": 1, "input_kernel": 5},),
        full_sizes=pixel_recurrent_sizes(diagonal_bilstm_layer, (12, 129), (7, 16)),
        noise=0.2,
    ),
    Entry(
        "pixelcnn_pp",
        PixelCNNPPConfig,
        {"width": 6, "resnets": 1, "resolutions": 2, "mixtures": 2, "dropout": 0.0},
        causal_sets.pixelcnn_pp,
        whole_past={},
        edges=({"resolutions": 1}, {"resolutions": 3}),
        full_sizes=tuple((sizes, pixelcnn_pp_parameters(**sizes)) for sizes in PIXELCNN_PP_SIZES),
        smaller={"resolutions": 1},
    ),
    Entry(
        "image_transformer",
        ImageTransformerConfig,
        {"layers": 1, "width": 32, "heads": 4, "hidden": 16, "block": (10,), "memory": (12,), "mixtures": 2, "dropout": 0.0},
        causal_sets.image_transformer,
        whole_past={"block": (), "memory": ()},
        edges=({"head": "mixture", "layers": 2, "block": (7,), "memory": (5,)}, {"block": (), "memory": ()}),
        full_sizes=tuple(({**sizes, "memory": sizes["block"]}, image_transformer_parameters(**sizes)) for sizes in IMAGE_TRANSFORMER_SIZES),
        learning_rate=0.01,
        noise=0.1,
    ),
    Entry(
        "pixelsnail",
        PixelSNAILConfig,
        {"blocks": 1, "width": 8, "resnets": 1, "key": 2, "value": 4, "mixtures": 2, "light": True, "dropout": 0.0},
        causal_sets.pixelsnail,
        whole_past={},
        edges=({"resnets": 2}, {"blocks": 2, "light": False}),
        full_sizes=tuple((sizes, pixelsnail_parameters(**sizes)) for sizes in PIXELSNAIL_SIZES),
    ),
    Entry(
        "nade",
        NADEConfig,
        {"hidden": 12},
        lambda config: causal_sets.raster_past(*config.image_shape),
        whole_past={},
        edges=({"hidden": 1}, {"hidden": 40}),
        full_sizes=tuple((sizes, nade_parameters(**sizes)) for sizes in NADE_SIZES),
    ),
]
