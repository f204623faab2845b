"""Pictures: every pixel in its place, what was given outlined, curves of the headline."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxgen.errors import ConfigError
from jaxgen.runs import figures


@pytest.mark.parametrize(("levels", "channels"), [(2, 1), (17, 1), (256, 3), (17, 3), (256, 4), (256, 2)])
def test_grid_shows_every_pixel_of_every_image_in_its_place(levels, channels):
    images = np.random.default_rng(0).integers(0, levels, (5, 24, 36, channels)).astype(np.uint8)
    grid = figures.image_grid(images, levels)
    rgb = images[..., :3] if channels >= 3 else images[..., :1].repeat(3, -1)
    height, width, gap = 2 * 24, 2 * 36, figures.GAP
    assert grid.shape == (2 * (height + gap) + gap, 3 * (width + gap) + gap, 3)
    for i in range(5):
        top, left = gap + i // 3 * (height + gap), gap + i % 3 * (width + gap)
        np.testing.assert_array_equal(grid[top : top + height : 2, left : left + width : 2], np.rint(rgb[i] * (255 / (levels - 1))))


def test_the_darkest_and_the_lightest_level_are_black_and_white():
    images = np.zeros((2, 80, 80, 1), np.uint8)
    images[1] = 16
    grid = figures.image_grid(images, 17, columns=2)
    assert (grid[10:70, 10:70] == 0).all() and (grid[10:70, 100:150] == 255).all()


@pytest.mark.parametrize("size", [8, 28, 72, 200])
@pytest.mark.parametrize("each", [False, True])
def test_given_pixels_keep_their_color_and_an_orange_line_runs_around_them(size, each):
    """Given: the upper half but one pixel inside. The line is outside of it, between images and on the edge of the pixels below."""
    images = np.random.default_rng(0).integers(0, 5, (2, size, size, 1)).astype(np.uint8)
    mask = np.zeros((size, size), bool)
    mask[: size // 2] = True
    mask[size // 4, size // 4] = False
    grid = figures.image_grid(images, 5, np.stack([mask, mask]) if each else mask, columns=1)
    scale = max(2, round(72 / size))
    width = 2 if scale >= 6 else 1
    pitch, orange = size * scale + 2 * width + figures.GAP, (grid == figures.GIVEN_COLOR).all(-1)
    for i in range(2):
        top, left = figures.GAP + pitch * i + width, figures.GAP + width
        inside = np.s_[top : top + size * scale, left : left + size * scale]
        tile, line = grid[inside], orange[inside]
        shown = np.rint(images[i] * (255 / 4)).astype(np.uint8).repeat(scale, 0).repeat(scale, 1).repeat(3, -1)
        given = mask.repeat(scale, 0).repeat(scale, 1)
        np.testing.assert_array_equal(tile[~line], shown[~line])
        assert not line[given].any() and line[size // 2 * scale : size // 2 * scale + width].all()
        assert not line[size // 2 * scale + width :].any()
        hole = line[size // 4 * scale :][:scale, size // 4 * scale :][:, :scale]
        assert hole[0].all() and hole[:, -1].all()
        around = orange[top - width : top + size // 2 * scale + width, left - width : left + size * scale + width]
        assert around[:width].all() and around[-width:].all() and around[:, :width].all() and around[:, -width:].all()


@pytest.mark.parametrize(("n", "across"), [(2, 2), (8, 4), (16, 4), (20, 8), (32, 8), (36, 8)])
def test_the_completions_of_an_image_stand_side_by_side(n, across):
    images = np.zeros((n, 72, 72, 1), np.uint8)
    assert figures.image_grid(images, 2, np.ones((72, 72), bool)).shape[1] == across * (2 * 72 + 2 + figures.GAP) + figures.GAP
    assert figures.image_grid(images, 2).shape[1] == int(np.ceil(np.sqrt(n))) * (72 + figures.GAP) + figures.GAP


def test_an_image_that_is_given_as_a_whole_has_its_line_in_the_gap():
    images, mask = np.zeros((2, 72, 72, 1), np.uint8), np.zeros((2, 72, 72), bool)
    mask[0] = True
    grid = figures.image_grid(images, 2, mask, columns=2)
    orange = (grid == figures.GIVEN_COLOR).all(-1)
    assert orange.sum() == 4 * 144 + 4 and (grid[5:149, 5:149] == 0).all() and not orange[:, 150:].any()


@pytest.mark.parametrize(("images", "levels"), [(np.zeros((0, 2, 2, 1), np.uint8), 2), (np.full((1, 2, 2, 1), 2, np.uint8), 2)])
def test_grid_refuses_nothing_and_values_out_of_range(images, levels):
    with pytest.raises(ConfigError, match="images: wanted"):
        figures.image_grid(images, levels)


CURVES = {
    "bound": (["bits_per_dim_bound", "nats_bound", "validation_bits_per_dim_bound", "validation_nats"], "bits per dimension", [0, 2]),
    "strings": (["loss", "bits_per_character", "validation_bits_per_character", "validation_nats"], "bits per character", [1, 2]),
    "classes": (["loss", "accuracy", "validation_accuracy", "validation_log_loss"], "accuracy", [1, 2]),
    "points": (["validation_nats", "validation_standard_error"], "nats", [0]),
    "players": (["loss", "generator_loss", "discriminator_loss", "validation_frechet_points"], "loss", [0, 1, 2]),
}


@pytest.mark.parametrize("kind", CURVES)
def test_the_curve_is_of_the_headline_of_the_table(kind):
    names, label, shown = CURVES[kind]
    rows = [{"step": step} | dict.fromkeys(names, 1.0) for step in (1, 2)]
    assert figures._series(rows)[0] == label and list(figures._series(rows)[1]) == [names[i] for i in shown]


@pytest.mark.parametrize("losses", [[], ["nan"], [1.0], [1.0, "inf"]])
def test_curve_of_little_is_still_a_picture(losses):
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
    assert figures.curve(rows).startswith(b"\x89PNG")
    assert all(np.isfinite(values).all() for _, values in figures._series(rows)[1].values())


def test_a_curve_has_its_title():
    rows = [{"step": step, "loss": 1.0} for step in (1, 2)]
    assert len({figures.curve(rows, title) for title in ("", "one", "another $with_ math")}) == 3


@pytest.mark.parametrize("reach", [0, 1, 4, 20])
def test_the_running_mean_is_of_the_places_near(reach):
    values = np.random.default_rng(3).normal(size=12)
    wanted = [values[max(i - reach, 0) : i + reach + 1].mean() for i in range(12)]
    np.testing.assert_allclose(figures.running_mean(values, reach), wanted, rtol=0, atol=1e-12)


def test_one_huge_loss_leaves_the_running_mean_of_the_others_as_it_is():
    values = np.random.default_rng(3).normal(size=12)
    after_a_huge_one = figures.running_mean(np.append(1e20, values), 2)[3:]
    np.testing.assert_allclose(after_a_huge_one, figures.running_mean(values, 2)[2:], rtol=0, atol=1e-12)


def test_a_batch_far_from_the_others_does_not_set_the_axis_of_a_long_curve(monkeypatch):
    """Validation falls to 1, batches have 1.2, one of 400 has 3 (1.29 in the mean of 21): the axis is that of validation and the means."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0].get_ylim()))
    rows = [{"step": step, "bits_per_dim": 3.0 if step == 300 else 1.2} for step in range(1, 401)]
    rows += [{"step": step, "validation_bits_per_dim": 1.1 - step / 4000} for step in (40, 220, 400)]
    figures.curve(rows)
    low, high = drawn[0]
    assert 0.95 < low < 1.0 and 1.28 < high < 1.35
