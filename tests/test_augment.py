"""Augmentation is a function of (seed, step, place), changes images only, and keeps their shape, type and values."""

import itertools

import numpy as np
import pytest

from jaxgen.data import DataConfig
from jaxgen.data.augment import AUGMENTATIONS, augment, augmented
from jaxgen.errors import ConfigError

IMAGE = np.arange(1, 6 * 8 * 16 + 1, dtype=np.uint16).reshape(6, 8, 16, 1)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_changes_images_and_keeps_their_form(name):
    out = augment(IMAGE, (name,), 3, 5)
    assert out.shape == IMAGE.shape and out.dtype == IMAGE.dtype and (out != IMAGE).any()
    for before, after in zip(IMAGE, out, strict=True):
        assert set(after.ravel()) <= set(before.ravel()) | ({0} if name == "shift" else set())
    assert (augment(IMAGE, (name,), 3, 6) != out).any() and (augment(IMAGE, (name,), 4, 5) != out).any()


def test_flip_gives_each_image_or_its_mirror_image():
    out = augment(np.tile(IMAGE[:1], (200, 1, 1, 1)), ("flip",), 0, 0)
    flipped = (out == IMAGE[:1, :, ::-1]).all((1, 2, 3))
    assert ((out == IMAGE[:1]).all((1, 2, 3)) != flipped).all() and 70 < flipped.sum() < 130


def test_shift_reaches_every_place_and_fills_up_with_zeros():
    dot = np.zeros((2000, 8, 16, 1), np.uint8)
    dot[:, 4, 8] = 1
    places = {tuple(place) for place in np.argwhere(augment(dot, ("shift",), 0, 0))[:, 1:3]}
    assert places == set(itertools.product(range(3, 6), range(6, 11)))


def test_no_augmentation_gives_the_same_images():
    assert augment(IMAGE, (), 0, 0) is IMAGE


def test_a_resumed_run_and_two_processes_see_the_same_images():
    data = DataConfig().load("train")

    def images(start, process):
        batches = data.batches(start, 8, 1, process)
        return [batch["image"] for batch in itertools.islice(augmented(batches, AUGMENTATIONS, 1, start, process), 4)]

    whole = images(0, (0, 1))
    np.testing.assert_array_equal(images(2, (0, 1))[:2], whole[2:])
    np.testing.assert_array_equal(np.concatenate([images(0, (0, 2)), images(0, (1, 2))], axis=1), whole)


def test_an_unknown_augmentation_is_an_error():
    with pytest.raises(ConfigError, match=r"data\.augment"):
        DataConfig(augment=("turn",))
