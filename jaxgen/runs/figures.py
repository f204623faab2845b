"""Pictures: grids of images and curves of metrics, as PNG files.

Images are unsigned integers [n, H, W, C] in {0 .. levels-1}. Small images are enlarged without smoothing, so that every pixel shows.
"""

import functools
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt, UInt8

from jaxgen.errors import ConfigError
from jaxgen.measures.metrics import METRICS, OF_SAMPLES

GIVEN_COLOR = (255, 140, 0)  # orange, drawn around the pixels that a completion was given
GAP_COLOR = 128
GAP = 4  # pixels between images
CAPTION = 16  # height of a line of text, in pixels
COMPLETIONS_EACH = 4  # completions of an image, side by side in a grid
TILE = 72  # target for the longer side of an enlarged image, in pixels


def image_grid(
    images: UInt[Any, "n H W C"],
    levels: int,
    mask: Bool[Any, "*shape"] | None = None,
    columns: int | None = None,
    names: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """The images in rows, as one RGB picture; 0 is black and levels - 1 is white or full color.

    mask [H, W] or [n, H, W]: True where pixels were given to a completion; an orange line runs around these, which keep their colors. It is
    drawn outside of the given pixels: over the edge of the pixels beside them (each is enlarged to 2 x 2 or more) and over the gap.
    columns: images in a row, by default about as many as there are rows, with a mask rounded up to a multiple of COMPLETIONS_EACH unless
    there are fewer images. names: n captions, each written under its image as far as the width goes, or once above the grid if all are the
    same.
    """
    images = np.asarray(images)
    if len(images) == 0 or levels < 2 or images.max() >= levels:
        got = f"{len(images)} images up to {images.max(initial=0)}, levels {levels}"
        raise ConfigError("images", "at least one image, with values in 0..levels-1 and levels of 2 or more", got)
    scale = max(1 if mask is None else 2, round(TILE / max(images.shape[1:3])))
    tiles = _enlarged(np.rint(_rgb(images).astype(np.float32) * (255 / (levels - 1))).astype(np.uint8), scale)
    if mask is not None:
        tiles = _outlined(tiles, _enlarged(np.broadcast_to(mask, images.shape[:3]), scale), 1 if scale < 6 else 2)
    columns = columns or columns_of(len(tiles), 1 if mask is None else COMPLETIONS_EACH)
    if names is None or not any(names):
        return _arrange(tiles, columns)
    if len(set(names)) == 1:
        picture = _arrange(tiles, columns)
        return np.concatenate([_caption(names[0], picture.shape[1]), picture])
    return _arrange(np.concatenate([tiles, np.stack([_caption(name, tiles.shape[2]) for name in names])], axis=1), columns)


def can_write(text: str) -> bool:
    """Whether a font of this machine has all letters of the text."""
    return _font(text) is not None


def _caption(text: str, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The text in one line on the color of the gaps, cut to the width; letters that no font has are boxes."""
    from PIL import Image, ImageDraw, ImageFont

    text = " ".join(text.split())
    line = Image.new("RGB", (width, CAPTION), (GAP_COLOR,) * 3)
    font = ImageFont.truetype(_font(text) or _font(""), CAPTION - 4)
    cut = text
    while cut and font.getlength(cut) > width:
        text = text[:-1]
        cut = f"{text.rstrip()}..." if text else ""
    ImageDraw.Draw(line).text((width / 2, CAPTION - 5), cut, fill=(0, 0, 0), font=font, anchor="ms")
    return np.asarray(line)


@functools.cache
def _font(text: str) -> str | None:
    """The file of the first font that has all letters of the text, DejaVu Sans before all others; None if there is none."""
    from matplotlib import font_manager

    letters = {ord(letter) for letter in text if not letter.isspace()}
    others = (entry.fname for entry in font_manager.fontManager.ttflist if "lastresort" not in entry.fname.lower())  # boxes only
    return next((path for path in (font_manager.findfont("DejaVu Sans"), *sorted(others)) if letters <= _letters(path)), None)


@functools.cache
def _letters(path: str) -> frozenset[int]:
    """The letters that a font has, as numbers of Unicode; none if the file cannot be read."""
    from matplotlib import ft2font

    try:
        return frozenset(ft2font.FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _enlarged(images: np.ndarray, scale: int) -> np.ndarray:
    return images.repeat(scale, axis=1).repeat(scale, axis=2)


def _outlined(tiles: np.ndarray, given: np.ndarray, width: int) -> np.ndarray:
    """[n, h, w, 3] -> [n, h + 2 width, w + 2 width, 3]: the tiles with a line around the given pixels [n, h, w], outside of them."""
    sides = ((0, 0), (width, width), (width, width))
    tiles, given = np.pad(tiles, (*sides, (0, 0)), constant_values=GAP_COLOR), np.pad(given, sides)
    near = given.copy()  # given, or at most `width` away from a given pixel in each direction
    for axis in (1, 2):
        reached = near.copy()
        for shift in range(1, width + 1):
            reached |= np.roll(near, shift, axis) | np.roll(near, -shift, axis)  # nothing wraps: the border is `width` wide and not given
        near = reached
    tiles[near & ~given] = GIVEN_COLOR
    return tiles


def columns_of(n: int, multiple: int = 1) -> int:
    """Images in a row of a grid of n: about as many as there are rows, rounded up to a multiple of `multiple` unless n is smaller."""
    return min(n, math.ceil(math.sqrt(n) / multiple) * multiple)


def point_plot(points: Float[np.ndarray, "n 2"]) -> UInt8[np.ndarray, "height width 3"]:
    """Points of the plane, as one RGB picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    axes.scatter(points[:, 0], points[:, 1], s=6, alpha=0.6, linewidths=0)
    axes.grid(alpha=0.3)
    return _drawn(figure)


def series_grid(series: Float[np.ndarray, "n T"]) -> UInt8[np.ndarray, "height width 3"]:
    """Series as lines, each in a panel of its own and all on the same axes, as one RGB picture; its title says the range of the panels."""
    from matplotlib.figure import Figure

    n, length = series.shape
    columns, low, high = columns_of(n), series.min(), series.max()
    rows, spread = math.ceil(n / columns), (high - low) or 1.0
    figure = Figure(figsize=(min(3.0 * columns, 12), min(1.2 * rows + 0.6, 9)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    time = np.linspace(0, 0.9, length)
    for i, values in enumerate(series):
        across, down = i % columns, -(i // columns)
        axes.axhline(down, color="0.85", linewidth=0.5, zorder=0)
        axes.plot(across + time, down + 0.9 * (values - low) / spread, linewidth=0.8, marker="." if length < 3 else None)
    axes.set(xticks=[], yticks=[], title=f"{n} series of {length} values, each panel from {low:.4g} to {high:.4g}")
    axes.spines[:].set_visible(False)
    return _drawn(figure)


def forecast_plot(
    before: Float[np.ndarray, " P"], forecast: Any, after: Float[np.ndarray, " N"] | None = None, draws: Float[Any, "n N"] | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """A series, its forecast with the band of the interval and, if given, the true values and draws of them, as one RGB picture.

    forecast: has mean, low and high [N], and level, the probability of the interval. Of a long past the last values are shown.
    """
    from matplotlib.figure import Figure

    n = len(forecast.mean)
    shown = before[-max(4 * n, 40) :]
    figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    future = np.arange(n) + len(before)
    for i, draw in enumerate([] if draws is None else draws):
        axes.plot(future, draw, color="tab:blue", alpha=0.15, linewidth=0.7, label=None if i else "draws")
    axes.fill_between(future, forecast.low, forecast.high, color="tab:blue", alpha=0.2, linewidth=0, label=f"{forecast.level:.0%} interval")
    axes.plot(future, forecast.mean, color="tab:blue", linewidth=2, label="forecast")
    axes.plot(np.arange(len(before) - len(shown), len(before)), shown, color="black", linewidth=1, label="given")
    if after is not None:
        axes.plot(future, after, color="tab:orange", linewidth=1.2, marker=".", label="true")
    axes.set(xlabel="place in the series", ylabel="value")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return _drawn(figure)


def class_plot(
    points: Float[np.ndarray, "n 2"], labels: Integer[np.ndarray, " n"] | None, names: Sequence[str], axes: tuple[str, str], title: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Points of the plane coloured by class, as one RGB picture, with a legend of the classes that occur.

    labels: None for one colour and no legend. names: of all classes; one with letters that no font here has is its number in the legend.
    axes: what stands at the horizontal and the vertical axis.
    """
    from matplotlib import colormaps, font_manager
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), dpi=110, layout="constrained")
    plot = figure.add_subplot()
    style = {"s": 9, "alpha": 0.7, "linewidths": 0}
    if labels is None:
        plot.scatter(points[:, 0], points[:, 1], **style)
    else:
        colours = colormaps["tab10"].colors if len(names) <= 10 else colormaps["hsv"](np.arange(len(names)) / len(names))
        found = [int(label) for label in np.unique(labels)]
        for label in found:
            plot.scatter(*points[labels == label].T, color=colours[label], label=str(label), **style)
        legend = figure.legend(loc="outside right upper", ncols=math.ceil(len(found) / 24), markerscale=2, frameon=False)
        for label, text in zip(found, legend.get_texts(), strict=True):
            font = _font(names[label])
            text.set_parse_math(False)
            text.set_text(names[label] if font else str(label))
            text.set_fontproperties(font_manager.FontProperties(fname=font or _font(""), size=9))
    plot.set(xlabel=axes[0], ylabel=axes[1], title=title)
    plot.grid(alpha=0.3)
    return _drawn(figure)


def _drawn(figure: Any) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a figure of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _rgb(images: np.ndarray) -> np.ndarray:
    """[n, H, W, C] -> [n, H, W, 3]: one or two channels are grey (the first), of four the first three."""
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].repeat(3, axis=-1)


def _arrange(tiles: np.ndarray, columns: int) -> np.ndarray:
    """[n, h, w, 3] -> one picture with a gap around every tile."""
    n, height, width, _ = tiles.shape
    rows = math.ceil(n / columns)
    picture = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), GAP_COLOR, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        picture[top : top + height, left : left + width] = tile
    return picture


def png(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """The RGB picture as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def gif(pictures: UInt8[np.ndarray, "n height width 3"], milliseconds: int = 120, colors: int = 64) -> bytes:
    """The RGB pictures one after the other, again and again, as the bytes of a GIF file. milliseconds: how long each is shown.

    colors: of each picture, 2 to 256; the format has no more, and fewer make smaller files.
    """
    from PIL import Image

    frames = [Image.fromarray(picture).quantize(colors, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return buffer.getvalue()


def pixels(content: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """The RGB picture of a PNG file's bytes."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)))


def curve(rows: Sequence[Mapping[str, Any]], title: str = "") -> bytes:
    """The PNG of the headline of training and validation (else of every loss) against the step; linear axes.

    title: what stands above, before the label of the vertical axis. A line of fifty points or more, as of single batches, is pale, with its
    running mean over it. The vertical axis shows the whole range of what is not pale except the first tenth of the steps, where an
    untrained model would flatten the rest.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    label, series = _series(rows)
    lines = []
    for i, (name, (steps, values)) in enumerate(series.items()):
        if len(steps) < 50:
            axes.plot(steps, values, f"C{i}o-", linewidth=2, markersize=4, zorder=3, label=name)
        else:
            axes.plot(steps, values, f"C{i}", linewidth=1, alpha=0.25)
            values = running_mean(values, len(steps) // 40)
            axes.plot(steps, values, f"C{i}", linewidth=2, label=f"{name}, running mean")
        lines.append((steps, values))
    _limit(axes, lines)
    axes.set(xlabel="step", ylabel=label)
    axes.set_title(": ".join(filter(None, [title, label])), wrap=True, parse_math=False)
    axes.grid(alpha=0.3)
    if series:
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _series(rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """What the vertical axis says, and name -> (steps, finite values) of all that the curve shows.

    That is the first metric of the table that is there, of training and of validation, and others on the same axis. Where there are
    only losses and metrics of samples, as of a GAN, it is the losses.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    axes = {name: METRICS[name.removeprefix("validation_")].axis for name in names if name.removeprefix("validation_") in METRICS}
    label = next((metric.axis for name, metric in METRICS.items() if name not in OF_SAMPLES and metric.axis in axes.values()), "loss")
    shown = [name for name in names if axes.get(name) == label] or [name for name in names if "loss" in name]
    series = {}
    for name in shown:
        points = [(row["step"], float(row[name])) for row in rows if name in row]
        points = np.array([point for point in points if math.isfinite(point[1])], np.float64).reshape(-1, 2)
        if len(points):
            series[name] = (points[:, 0], points[:, 1])
    return label, series


def running_mean(values: Float[np.ndarray, " n"], reach: int) -> Float[np.ndarray, " n"]:
    """y_i, the mean of x_j over the places j with |i - j| <= reach; near the ends there are fewer."""
    # Not as differences of sums from the start: after one loss of 1e20 these would keep nothing of the others.
    near = lambda x: np.convolve(x, np.ones(2 * reach + 1))[reach : reach + len(x)]  # noqa: E731
    return near(values) / near(np.ones(len(values)))


def _limit(axes: Any, series: list[tuple[np.ndarray, np.ndarray]]) -> None:
    if not series:
        return
    last = max(steps[-1] for steps, _ in series)
    shown = np.concatenate([values[steps >= last / 10] for steps, values in series])
    margin = 0.05 * (shown.max() - shown.min()) or 0.1
    axes.set_ylim(shown.min() - margin, shown.max() + margin)
    axes.set_xlim(0, max(last, 1))
