"""Pairs of images: two folders, halves of pictures, functions of the image; what is wrong is one line with the file; augmentation."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from jaxgen import data
from jaxgen.data import DataConfig, images, pairs, photographs, tfds
from jaxgen.data.augment import augment, augmented
from jaxgen.data.features import Image
from jaxgen.errors import ConfigError, DataError

RANDOM = np.random.default_rng(0)


def picture(path: Path, shape=(4, 6), channels: int = 3) -> np.ndarray:
    """A random picture, written."""
    pixels = RANDOM.integers(0, 256, (*shape, 3) if channels == 3 else shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(pixels).save(path)
    return pixels.reshape(*shape, channels)


def folders(where: Path, names, endings=(".png", ".png"), sub=("input", "output"), shape=(4, 6)) -> dict:
    """{name: (input, output)} of written pairs, grey inputs and colour outputs."""
    return {
        name: tuple(
            picture(where / folder / f"{name}{ending}", shape, channels)
            for folder, ending, channels in zip(sub, endings, (1, 3), strict=True)
        )
        for name in names
    }


def of_split(where: Path, split: str, how: str = "folders", **more):
    return data.load(str(where), split, pairs=how, **more)


@pytest.mark.parametrize("sub, endings", [(("input", "output"), (".png", ".png")), (("A", "B"), (".bmp", ".png"))])
def test_two_folders_are_pairs_by_name_and_are_split_by_the_outputs_names(tmp_path, sub, endings):
    written = folders(tmp_path, [f"p{i}" for i in range(30)], endings, sub)
    picture(tmp_path / sub[1] / "q.png"), picture(tmp_path / sub[0] / f"q{endings[0]}", channels=1)  # sorted apart where endings differ
    seen = {}
    for split in ("train", "validation", "test"):
        dataset = of_split(tmp_path, split)
        assert dataset.features == {"image": Image((4, 6, 3), 256), "input": Image((4, 6, 1), 256)}
        for given, image in zip(dataset.columns["input"], dataset.images, strict=True):
            name = next((name for name, (_, output) in written.items() if np.array_equal(output, image)), "q")
            assert name == "q" or np.array_equal(written[name][0], given)
            seen[name] = split
    places = images.by_name([f"{name}.png" for name in sorted([*written, "q"])], tmp_path)
    assert seen == {name: split for split, rows in places.items() for name in np.array(sorted([*written, "q"]))[rows]}


def test_parts_have_pairs_of_their_own_and_levels_of_their_own(tmp_path):
    """Inputs of one bit and outputs of eight; train decides the levels of both."""
    for split, n in (("train", 5), ("test", 2)):
        for i in range(n):
            picture(tmp_path / split / "output" / f"{i}.png")
            (tmp_path / split / "input").mkdir(exist_ok=True)
            Picture.fromarray(RANDOM.integers(0, 2, (4, 6)).astype(bool)).save(tmp_path / split / "input" / f"{i}.png")
    sets = {split: of_split(tmp_path, split) for split in ("train", "validation", "test")}
    assert {split: len(one) for split, one in sets.items()} == {"train": 4, "validation": 1, "test": 2}
    for one in sets.values():
        assert one.features["input"] == Image((4, 6, 1), 2) and one.features["image"] == Image((4, 6, 3), 256)
    with pytest.raises(DataError, match=r"test:input\[0, 0, 0, 0\]: wanted a value in 0..1 \(2 levels\), got 9"):
        for name in "01":
            Picture.fromarray(np.full((4, 6), 9, np.uint8)).save(tmp_path / "test" / "input" / f"{name}.png")
        of_split(tmp_path, "test")
    for name in "01":
        Picture.fromarray(np.ones((4, 6, 3), np.uint8)).save(tmp_path / "test" / "input" / f"{name}.png")
    with pytest.raises(DataError, match=r"test:input\[0\]: wanted images of shape \[4, 6, 1\] as in .*train:input, got \[4, 6, 3\]"):
        of_split(tmp_path, "test")


def test_what_is_wrong_with_folders_is_one_line_with_the_file(tmp_path):
    folders(tmp_path / "one", "abc")
    (tmp_path / "one" / "input" / "b.png").unlink()
    with pytest.raises(DataError, match=r"one/output/b\.png: wanted a picture of the same name in input/, got none; 1 have no partner"):
        of_split(tmp_path / "one", "train")
    folders(tmp_path / "two", "abc")
    picture(tmp_path / "two" / "input" / "a.bmp", channels=1)
    with pytest.raises(DataError, match=r"two/input/a\.png: wanted names that differ in more than their ending, got a\.bmp too"):
        of_split(tmp_path / "two", "train")
    folders(tmp_path / "three", "abc")
    for name in "abc":
        picture(tmp_path / "three" / "input" / f"{name}.png", (8, 6), 1)
    line = r"three/input/a\.png: wanted 4 x 6 pixels as .*three/output/a\.png, got 8 x 6; --data\.size 4 makes them alike"
    with pytest.raises(DataError, match=line):
        of_split(tmp_path / "three", "train")
    assert of_split(tmp_path / "three", "train", size=(4,)).features["input"].shape == (4, 4, 1)
    picture(tmp_path / "three" / "input" / "b.png", (8, 6), 3)
    with pytest.raises(DataError, match=r"input/b\.png \(picture 1\): wanted shape \[8, 6, 1\] uint8 as a\.png, got \[8, 6, 3\]"):
        of_split(tmp_path / "three", "train")
    with pytest.raises(DataError, match="wanted the sub-folders input and output, or A and B, got no sub-folders"):
        of_split(tmp_path / "one" / "output", "train")


@pytest.mark.parametrize("how", pairs.HALVES)
def test_side_by_side_pictures_are_cut_in_the_middle(tmp_path, how):
    written = [picture(tmp_path / "whole" / f"{i}.png", (4, 12)) for i in range(3)]
    train = of_split(tmp_path / "whole", "train", how)
    left, right = (next(one for one in written if np.array_equal(one[:, :6], half[0]) or np.array_equal(one[:, 6:], half[0]))
                   for half in (train.columns["input"], train.images))  # fmt: skip
    assert left is right
    halves = left[:, :6], left[:, 6:]
    given, output = halves if how == "left_to_right" else halves[::-1]
    np.testing.assert_array_equal(train.columns["input"][0], given)
    np.testing.assert_array_equal(train.images[0], output)
    cache = tmp_path / "cache"
    for _ in range(2):  # made, and read from the cache: each half is scaled by itself
        both = of_split(tmp_path / "whole", "train", how, size=(2, 3), cache=cache)
        for column, half in (("input", given), ("image", output)):
            np.testing.assert_allclose(both.columns[column][0], half.reshape(2, 2, 3, 2, 3).mean((1, 3)), atol=0.51)
    assert len(list(cache.iterdir())) == 2
    picture(tmp_path / "odd" / "0.png", (4, 5))
    with pytest.raises(DataError, match=r"odd/0\.png: wanted an even width, of two pictures side by side, got 5 pixels"):
        of_split(tmp_path / "odd", "train", how)


def test_functions_of_the_image():
    colour = RANDOM.integers(0, 256, (3, 8, 8, 3), np.uint8)
    grey = pairs.grey(colour, 256)
    np.testing.assert_array_equal(grey[..., 0], np.floor(colour @ np.array([0.299, 0.587, 0.114]) + 0.5 + 1e-9))
    assert grey.dtype == np.uint8 and pairs.grey(np.full((1, 1, 1, 3), 255, np.uint8), 256).item() == 255
    square = np.full((1, 8, 8, 1), 3, np.uint8)
    square[0, 2:5, 3:6] = 16
    wanted = np.zeros((8, 8), int)
    wanted[2:5, [2, 5]] = 1  # left of the first column, and the last column itself
    wanted[[1, 4], 3:6] = 1
    np.testing.assert_array_equal(pairs.outline(square, 17)[0, ..., 0], wanted)
    np.testing.assert_array_equal(pairs.outline(np.repeat(square, 3, -1), 17), pairs.outline(square, 17))
    assert not pairs.outline(np.array([[[[5]], [[7]]]], np.uint8), 17).any()  # 2 of 16 is no more than an eighth
    small = pairs.smaller(colour, 256)
    for rows, columns in ((slice(0, 4), slice(0, 4)), (slice(4, 8), slice(0, 4))):
        box = colour[1, rows, columns].astype(float).mean((0, 1))
        np.testing.assert_array_equal(small[1, rows, columns].reshape(16, 3), np.broadcast_to(np.floor(box + 0.5), (16, 3)))


@pytest.mark.parametrize("how", pairs.FUNCTIONS)
def test_inputs_made_of_the_images_of_any_set(how, monkeypatch):
    monkeypatch.setattr(pairs, "AT_ONCE", 100)
    name = "photographs" if how == "grey" else "digits"
    plain, dataset = data.load(name, "test"), DataConfig(name, pairs=how).load("test")
    np.testing.assert_array_equal(dataset.images, plain.images)
    np.testing.assert_array_equal(dataset.columns["input"], pairs.FUNCTIONS[how](np.asarray(plain.images), plain.levels))
    dataset.features["input"].check(dataset.columns["input"], "input")
    assert list(dataset.features)[-1] == "input" and dataset.content() != plain.content()
    whole = data.load(name, "train", pairs=how, validation=0)
    assert len(whole) == len(data.load(name, "train")) + len(data.load(name, "validation")) == len(whole.columns["input"])


def test_the_inputs_of_a_set_on_disk_are_made_when_it_is_read():
    images, labels = RANDOM.integers(0, 256, (9, 4, 4, 3), np.uint8), np.arange(9) % 2

    class Examples(list):
        def __getitems__(self, rows):
            return [self[row] for row in rows]

    examples = Examples({"image": image, "label": label} for image, label in zip(images, labels, strict=True))
    source = tfds.DiskSource(examples, examples, "set/train", "1", (4, 4, 3), 256, 2)
    paired = pairs.with_input(source, "grey", "set/train")
    assert list(paired.features) == ["image", "label", "input"] and paired.features["input"] == Image((4, 4, 1), 256)
    rows = np.array([7, 2])
    np.testing.assert_array_equal(paired.read(rows)["input"], pairs.grey(images[rows], 256))
    np.testing.assert_array_equal(paired.columns["input"][3:5], pairs.grey(images[3:5], 256))
    np.testing.assert_array_equal(paired.joined(paired).read(np.array([12]))["input"], pairs.grey(images[3:4], 256))
    assert "input" not in source.read(rows) and source.sha256() != paired.sha256()


def test_what_cannot_become_pairs_is_one_line(tmp_path, unchecked):
    for name, how, line in (
        ("ring", "grey", "ring/train: wanted images, of which data.pairs grey makes inputs, got points of size 2"),
        ("digits", "grey", "digits/train:image: wanted colour images, C = 3, for data.pairs grey, got C = 1"),
    ):
        with pytest.raises(DataError) as error:
            data.load(name, "train", pairs=how)
        assert str(error.value) == line
    np.savez(tmp_path / "odd.npz", image=np.zeros((9, 6, 8, 2), np.uint8))
    for how, wanted in (("smaller", "sides that are multiples of 4, .* got 6 x 8"), ("outline", "grey or colour images, .* got C = 2")):
        with pytest.raises(DataError, match=wanted):
            data.load(str(tmp_path / "odd.npz"), "train", pairs=how)
    with pytest.raises(ConfigError, match="pairs: wanted a folder of pictures, for folders, got digits; of the images of any set: grey"):
        data.load("digits", "train", pairs="folders")
    with pytest.raises(ConfigError, match="^data.pairs: wanted one of folders, .*, got gray; did you mean grey"):
        DataConfig(pairs="gray")


def test_augmentation_changes_both_alike():
    """Every value of a pair is its place, in input and output; so each pair must stay equal to itself."""
    output = np.arange(8 * 8 * 6, dtype=np.uint16).reshape(6, 8, 8, 1)
    names = ("flip", "shift", "crop")
    batches = iter([{"image": output.repeat(2, axis=3), "input": output, "label": np.arange(6)}])
    (batch,) = augmented(batches, names, 3, 5, (1, 2))
    np.testing.assert_array_equal(batch["image"][..., :1], batch["input"])
    np.testing.assert_array_equal(batch["input"], augment(output, names, 3, 5, 6))
    assert (batch["input"] != output).any() and np.array_equal(batch["label"], np.arange(6))


def test_the_photographs_are_split_by_photograph_with_a_gap():
    sets = {split: data.load("photographs", split) for split in photographs.SPLITS}
    assert {split: len(one) for split, one in sets.items()} == {"train": 2850, "validation": 175, "test": 260}
    from sklearn.datasets import load_sample_image

    china, flower = (load_sample_image(name) for name in ("china.jpg", "flower.jpg"))
    np.testing.assert_array_equal(sets["train"].images[57 + 2], china[8:40, 16:48])
    np.testing.assert_array_equal(sets["train"].images[56], china[:32, 448:480])
    np.testing.assert_array_equal(sets["validation"].images[0], china[:32, 512:544])
    np.testing.assert_array_equal(sets["test"].images[20 + 3], flower[32:64, 96:128])
