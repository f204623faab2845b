"""What each autoregressive model may see: sets of inputs carried through the equations of its docstring, pixel by pixel.

`sets` is bool [H, W, G, inputs]: which inputs (H W C of them, in raster order) feature group g of pixel (r, c) depends on. The function of
a model takes its config and returns bool [H, W, C, H, W, C] (output, input). Nothing here uses the package.
"""

import numpy as np


def raster_past(height: int, width: int, channels: int) -> np.ndarray:
    """What p(x_i | x_<i) may depend on: the pixels above and to the left, and the channels before."""
    order = np.arange(height * width * channels)
    return (order[:, None] > order[None]).reshape((height, width, channels) * 2)


def inputs_of(config) -> np.ndarray:
    """Every input sees itself."""
    height, width, channels = config.image_shape
    return np.eye(height * width * channels, dtype=bool).reshape(height, width, channels, -1)


def pixels_of(sets) -> list:
    """All (r, c) in raster order."""
    return [(r, c) for r in range(sets.shape[0]) for c in range(sets.shape[1])]


def at(sets, r: int, c: int) -> np.ndarray:
    """All groups of a pixel together, bool [inputs]; nothing outside the image."""
    inside = 0 <= r < sets.shape[0] and 0 <= c < sets.shape[1]
    return sets[r, c].any(0) if inside else np.zeros(sets.shape[3], bool)


def convolution(sets, kernel: int, kind: str, rows: int) -> np.ndarray:
    """A masked convolution over `rows` rows above and this row."""
    m, out = kernel // 2, np.zeros_like(sets)
    before = [(-i, j) for i in range(1, rows + 1) for j in range(-m, m + 1)] + [(0, -j) for j in range(1, m + 1)]
    for r, c in pixels_of(sets):
        for g in range(sets.shape[2]):
            out[r, c, g] = sets[r, c, : g if kind == "A" else g + 1].any(0)
            for i, j in before:
                out[r, c, g] |= at(sets, r + i, c + j)
    return out


def first_layer(config) -> np.ndarray:
    """The mask A convolution that every model begins with."""
    return convolution(inputs_of(config), config.input_kernel, "A", config.input_kernel // 2)


def as_outputs(config, sets) -> np.ndarray:
    """The 1 x 1 layers at the end, mask B."""
    return convolution(sets, 1, "B", 0).reshape(config.image_shape * 2)


def pixelcnn(config) -> np.ndarray:
    """pixelcnn.py"""
    y = first_layer(config)
    for _ in range(config.layers):
        y |= convolution(convolution(convolution(y, 1, "B", 0), 3, "B", 1), 1, "B", 0)
    return as_outputs(config, y)


def row_lstm_states(gates, kernel: int) -> np.ndarray:
    """States from the sets of the gates: those of the row above, `kernel` columns of it, no mask."""
    state, m = gates.copy(), kernel // 2
    for r, c in pixels_of(gates):
        for j in range(-m, m + 1):
            state[r, c] |= at(state, r - 1, c + j)
    return state


def row_lstm(config) -> np.ndarray:
    """row_lstm.py"""
    y = first_layer(config)
    for _ in range(config.layers):
        y |= convolution(row_lstm_states(convolution(y, config.kernel, "B", 0), config.kernel), 1, "B", 0)
    return as_outputs(config, y)


def diagonal_states(gates, before: int) -> np.ndarray:
    """States that read the one above and the one `before` columns to the right (-1: to the left)."""
    state = gates.copy()
    for r, c in sorted(pixels_of(gates), key=lambda pixel: (pixel[0], -before * pixel[1])):
        state[r, c] |= at(state, r, c + before) | at(state, r - 1, c)
    return state


def diagonal_bilstm(config) -> np.ndarray:
    """diagonal_bilstm.py"""
    y = first_layer(config)
    for layer in range(config.layers):
        gates = convolution(y, 1, "B", 0)
        pixel = inputs_of(config).any(2, keepdims=True) if layer == 0 else np.zeros_like(gates)
        left, right = diagonal_states(gates, -1), diagonal_states(gates | pixel, 1)
        left[1:] |= right[:-1]  # the right-hand branch, one row down
        y |= convolution(left, 1, "B", 0)
    return as_outputs(config, y)


def taps(sets, rows: int, left: int, right: int, stride: int = 1) -> np.ndarray:
    """An unmasked convolution: this row and the `rows` - 1 above it, columns c - left .. c + right."""
    height, width = (-(-n // stride) for n in sets.shape[:2])
    out = np.zeros((height, width, *sets.shape[2:]), bool)
    for r, c in pixels_of(out):
        for i in range(rows):
            for j in range(-left, right + 1):
                out[r, c, 0] |= at(sets, stride * r - i, stride * c + j)
    return out


def pixelcnn_pp(config) -> np.ndarray:
    """pixelcnn_pp.py: whole pixels; bool [H, W, 1, H, W, C]."""
    down, down_right = (2, 1, 1), (2, 1, 0)

    def resnet(x, auxiliary, window):
        return x | taps(taps(x, *window) | auxiliary, *window)

    def up(sets, like, right: int):
        out = np.zeros_like(like)
        for r, c in pixels_of(out):
            out[r, c, 0] = at(sets, r // 2, c // 2) | (at(sets, r // 2, c // 2 + 1) if right and c % 2 else False)
        return out

    def level(u, ul, resolution):
        skips = [(u, ul)]
        for _ in range(config.resnets):
            u = resnet(u, np.zeros_like(u), down)
            ul = resnet(ul, u, down_right)
            skips.append((u, ul))
        if resolution + 1 < config.resolutions:
            low = level(taps(u, *down, stride=2), taps(ul, *down_right, stride=2), resolution + 1)
            u, ul = up(low[0], u, 1), up(low[1], ul, 0)
        else:
            u, ul = skips.pop()
        while skips:
            skip = skips.pop()
            u = resnet(u, skip[0], down)
            ul = resnet(ul, u | skip[1], down_right)
        return u, ul

    x = inputs_of(config).any(2, keepdims=True)
    u, ul = np.zeros_like(x), np.zeros_like(x)
    u[1:], ul[1:] = taps(x, *down)[:-1], taps(x, 1, 1, 1)[:-1]
    ul[:, 1:] |= taps(x, 2, 0, 0)[:, :-1]
    height, width, channels = config.image_shape
    return level(u, ul, 0)[1].reshape(height, width, 1, height, width, channels)


def pixelsnail(config) -> np.ndarray:
    """pixelsnail.py: whole pixels; bool [H, W, 1, H, W, C]."""
    height, width, channels = config.image_shape
    x = inputs_of(config).any(2, keepdims=True)
    h = np.zeros_like(x)
    h[1:] = taps(x, 1, 1, 1)[:-1]
    h[:, 1:] |= taps(x, 2, 0, 0)[:, :-1]
    for _ in range(config.blocks):
        for _ in range(config.resnets):
            h = h | taps(taps(h, 2, 1, 0), 2, 1, 0)
        seen = np.logical_or.accumulate((h | x).reshape(height * width, -1))  # by the keys up to a position, its own included
        h = h | np.concatenate([np.zeros_like(seen[:1]), seen[:-1]]).reshape(h.shape)
    return h.reshape(height, width, 1, height, width, channels)


def image_transformer_order(config) -> list:
    """The places (r, c, k) of image_transformer.py in generation order; k = 0 where a place is a pixel."""
    height, width, channels = config.image_shape
    depth = channels if config.head == "categorical" else 1
    places = [(r, c, k) for r in range(height) for c in range(width) for k in range(depth)]
    return sorted(places, key=lambda place: (image_transformer_block(config, place), place))


def image_transformer_block(config, place) -> tuple:
    """Block row and block column of a place; for 1-D blocks the index along the raster order."""
    r, c, k = place
    depth = config.image_shape[2] if config.head == "categorical" else 1
    if len(config.block) == 2:
        return r // config.block[0], c // config.block[1]
    return (((r * config.image_shape[1] + c) * depth + k) // config.block[0],) if config.block else ()


def image_transformer_remembers(config, query, key) -> bool:
    """Whether the memory block of the query's block holds the key."""
    block = image_transformer_block(config, query)
    if len(config.block) == 2:
        (h, w), (above, beside) = config.block, config.memory
        (r, c, _), top, left = key, block[0] * h, block[1] * w
        return top - above <= r < top + h and left - beside <= c < left + w + beside
    if not config.block:
        return True
    order = image_transformer_order(config)
    return order.index(key) >= block[0] * config.block[0] - config.memory[0]


def image_transformer(config) -> np.ndarray:
    """image_transformer.py; bool [H, W, C or 1, H, W, C]."""
    order, (height, width, channels) = image_transformer_order(config), config.image_shape
    inputs = np.eye(height * width * channels, dtype=bool).reshape(height, width, channels, -1)
    read = np.array([[j <= i and image_transformer_remembers(config, a, b) for j, b in enumerate(order)] for i, a in enumerate(order)])
    x = np.zeros((len(order), inputs.shape[-1]), bool)
    for i, (r, c, k) in enumerate(order[:-1]):  # shifted right by one
        x[i + 1] = inputs[r, c, k] if config.head == "categorical" else inputs[r, c].any(0)
    for _ in range(config.layers):
        x = (read.astype(int) @ x) > 0
    out = np.zeros((height, width, max(place[2] for place in order) + 1, x.shape[1]), bool)
    for place, seen in zip(order, x, strict=True):
        out[place] = seen
    return out.reshape(*out.shape[:3], height, width, channels)
