"""Pictures of a GAN's game on points: every point and every value of the field in its place, and animations."""

import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import model_of
from PIL import Image

from jaxgen.data.features import Points
from jaxgen.errors import ConfigError
from jaxgen.reports import game
from jaxgen.runs import figures

SHAPE = game.SIDE + 2 * figures.GAP


@jax.tree_util.register_static
class Sloped:
    """Samples at (1, 2), and a discriminator that grows to the right and, faster, upwards."""

    def __init__(self, objective: str):
        self.config = SimpleNamespace(features={"point": Points(2)}, modelled="point", objective=objective)

    def sample(self, key, n):
        return jnp.broadcast_to(jnp.array([1.0, 2.0]), (n, 2))

    def discriminate(self, x):
        return 0.5 * x[:, 0] + 2 * x[:, 1]


def frame_of(objective: str = "nonsaturating", step: int = 7) -> game.Frame:
    return game.frame(Sloped(objective), step, jax.random.key(0), n=3, reach=4.0, places=5)


def test_the_field_is_the_probability_of_real_with_the_largest_coordinate_on_top():
    found = frame_of("minimax")
    side = np.array([-4.0, -2, 0, 2, 4])
    np.testing.assert_allclose(found.field, 1 / (1 + np.exp(-(0.5 * side[None] + 2 * side[::-1, None]))), rtol=1e-5)
    np.testing.assert_array_equal(found.samples, [[1, 2]] * 3)
    np.testing.assert_allclose(frame_of("hinge").field, (0.5 * side[None] + 2 * side[::-1, None] + 10) / 20, atol=1e-6)


def test_points_are_drawn_in_their_places_over_the_field():
    real = np.array([[-1.0, -3.0], [9.0, 0.0]])  # the second is outside of the square
    picture = game.pictures([frame_of()], real)[0, -SHAPE:][figures.GAP : -figures.GAP, figures.GAP : -figures.GAP]
    assert picture.shape == (game.SIDE, game.SIDE, 3)
    for colour, (x, y) in ((game.SAMPLE, (1, 2)), (game.REAL, (-1, -3))):
        down, right = np.nonzero((picture == colour).all(-1))
        assert len(down) == 4
        assert (right.mean() / game.SIDE, down.mean() / game.SIDE) == pytest.approx(((x + 4) / 8, (4 - y) / 8), abs=0.02)
    light = picture.astype(int).sum(-1)
    assert light[3, -3] > light[-3, -3] and light[3, 3] > light[-3, 3]


def test_a_strip_has_the_frames_beside_each_other_and_an_animation_one_after_the_other():
    frames = [frame_of(step=step) for step in (1, 20, 300)]
    assert game.strip(frames).shape[1] == 3 * (game.SIDE + figures.GAP) + figures.GAP
    pictures = game.pictures(frames)
    assert not np.array_equal(pictures[0], pictures[1])  # the step that is written
    content = figures.gif(pictures, milliseconds=250)
    with Image.open(io.BytesIO(content)) as animation:
        assert (animation.format, animation.n_frames, animation.info["duration"], animation.info["loop"]) == ("GIF", 3, 250, 0)
        for number, picture in enumerate(pictures):
            animation.seek(number)
            shown = np.asarray(animation.convert("RGB"))
            assert shown.shape == picture.shape and np.abs(shown.astype(int) - picture).max() < 24


@pytest.mark.parametrize("name", ["gan", "conditional_gan", "flow_matching of points"])
def test_other_models_have_no_game_in_the_plane(name):
    with pytest.raises(ConfigError, match="^model: wanted a GAN of points of the plane, without a label, got "):
        game.frame(model_of(name), 0, jax.random.key(0))


def test_a_gan_of_points_is_drawn():
    found = game.frame(model_of("gan of points"), 0, jax.random.key(0), n=6, places=4)
    assert found.samples.shape == (6, 2) and found.field.shape == (4, 4) and 0 < found.field.min() < found.field.max() < 1
