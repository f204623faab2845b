"""The game of a GAN on points of the plane in pictures: samples over the values of the discriminator, at several steps of a training.

    frames = []
    look = lambda step, state: frames.append(game.frame(training.ema_model(state), step, jax.random.key(0)))
    training.fit(state, train_step, batches, key, steps, events=((500, look),))
    figures.png(game.strip(frames, real)), figures.gif(game.pictures(frames, real))

The field is D(x) on a square [-reach, reach]^2: sigma(D(x)), the probability of "x is real", for the objectives of logits (minimax,
nonsaturating); for the others D(x) from its smallest value in the square (0) to its largest (1). Dark is low and light is high. Where the
generator's distribution is that of the data, the best discriminator of logits is 1/2 everywhere.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray, UInt8

from jaxgen import sharding
from jaxgen.data.features import Points
from jaxgen.errors import ConfigError
from jaxgen.reports.drawing import given, modelled
from jaxgen.runs import figures

SIDE = 144
"""Sides of a picture in pixels."""
SHADES = 12
"""Colours of the field."""
REAL, SAMPLE = (255, 255, 255), (230, 60, 40)
"""Colours of the real points and of the samples."""


class Frame(NamedTuple):
    """What a picture shows: the step, samples, and the field on a grid of S x S places, row 0 at the top (largest second coordinate)."""

    step: int
    samples: Float[np.ndarray, "n 2"]
    field: Float[np.ndarray, "S S"]
    reach: float


def frame(model: Any, step: int, key: PRNGKeyArray, n: int = 500, reach: float = 3.0, places: int = 72) -> Frame:
    """The samples and the field of a GAN of points of the plane. The same key draws the same noise at every step.

    n: samples. reach: half of the side of the square. places: S. ConfigError for another model.
    """
    feature = modelled(model)
    if not hasattr(model, "discriminate") or not isinstance(feature, Points) or feature.size != 2 or given(model):
        raise ConfigError("model", "a GAN of points of the plane, without a label", f"{type(model).__name__} of {feature.said}")
    side = np.linspace(-reach, reach, places, dtype=np.float32)
    square = np.stack(np.meshgrid(side, side[::-1]), axis=-1).reshape(-1, 2)
    samples, logits = _look(n)(model, key, jnp.asarray(square))
    logits = sharding.to_host(logits).reshape(places, places)
    if model.config.objective in ("minimax", "nonsaturating"):
        field = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    else:
        field = (logits - logits.min()) / max(float(np.ptp(logits)), 1e-12)
    return Frame(step, sharding.to_host(samples), field, reach)


@lru_cache(maxsize=4)
def _look(n: int) -> Callable:
    """The compiled (model, key, square) -> (n samples, the logits of the square)."""
    return jax.jit(lambda model, key, square: (model.sample(key, n), model.discriminate(square)))


def pictures(frames: Sequence[Frame], real: Float[Any, "N 2"] | None = None) -> UInt8[np.ndarray, "k height width 3"]:
    """A picture of every frame with its step, for `figures.gif`. real: points of the data, drawn below the samples."""
    return np.stack([_captioned([frame], real, 1) for frame in frames])


def strip(frames: Sequence[Frame], real: Float[Any, "N 2"] | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """The frames beside each other as one picture, each with its step."""
    return _captioned(frames, real, len(frames))


def _captioned(frames: Sequence[Frame], real: Any, columns: int) -> np.ndarray:
    drawn = np.stack([_drawn(frame, real) for frame in frames])
    return figures.image_grid(drawn, 256, columns=columns, names=[f"step {frame.step}" for frame in frames])


def _drawn(frame: Frame, real: Any) -> UInt8[np.ndarray, "side side 3"]:
    from matplotlib import colormaps

    shades = np.minimum((frame.field * SHADES).astype(int), SHADES - 1)
    rows = np.arange(SIDE) * len(shades) // SIDE
    colours = np.rint(255 * colormaps["viridis"](np.linspace(0.1, 0.85, SHADES))[:, :3]).astype(np.uint8)
    picture = colours[shades[rows][:, rows]]
    for points, colour in ((real, REAL), (frame.samples, SAMPLE)):
        if points is not None:
            _mark(picture, np.asarray(points), frame.reach, colour)
    return picture


def _mark(picture: np.ndarray, points: np.ndarray, reach: float, colour: tuple[int, int, int]) -> None:
    """Two by two pixels for every point inside of the square, drawn into the picture."""
    places = np.floor((points * [1, -1] / reach + 1) / 2 * SIDE).astype(int)
    places = places[((places >= 0) & (places < SIDE - 1)).all(axis=1)]
    for right, down in ((0, 0), (0, 1), (1, 0), (1, 1)):
        picture[places[:, 1] + down, places[:, 0] + right] = colour
