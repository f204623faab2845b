"""Files of images: every reader against arrays that the test wrote, every damage and misfit against its one-line error."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_data import one_line, pixels

from jaxgen import data
from jaxgen.data import images
from jaxgen.data.class_names import without_examples
from jaxgen.errors import DataError

# ------------------------------------------------------------------------------------------------------------------------------------- .npz


def test_one_file_is_split_into_three_without_loss(tmp_path: Path) -> None:
    image, label = pixels(57), np.repeat(np.arange(3), 19)
    np.savez(tmp_path / "mine.npz", image=image, label=label, caption=np.array(["x"] * 57))
    parts = {split: data.load(str(tmp_path / "mine.npz"), split) for split in images.SPLITS}
    assert [len(part) for part in parts.values()] == [47, 5, 5]
    found = sorted((x.tobytes(), y) for part in parts.values() for x, y in zip(part.images, part.labels.tolist(), strict=True))
    assert found == sorted((x.tobytes(), y) for x, y in zip(image, label.tolist(), strict=True))
    assert {part.num_classes for part in parts.values()} == {3}
    assert set(parts["train"].labels.tolist()) == {0, 1, 2}  # sorted by class in the file, but split after a shuffle


def test_train_and_test_files_of_earlier_runs_hold_out_the_end_of_train(tmp_path: Path) -> None:
    train, test = pixels(57, seed=1), pixels(8, seed=2)
    np.savez_compressed(tmp_path / "train.npz", image=train, label=np.arange(57) % 4)
    np.savez(tmp_path / "test.npz", image=test, label=np.zeros(8, np.uint8))
    loaded = {split: data.load(f"{tmp_path}/", split, splits=1) for split in images.SPLITS}
    np.testing.assert_array_equal(loaded["train"].images, train[:52])
    np.testing.assert_array_equal(loaded["validation"].images, train[52:])
    np.testing.assert_array_equal(loaded["validation"].labels, np.arange(52, 57) % 4)
    np.testing.assert_array_equal(loaded["test"].images, test)
    assert loaded["test"].num_classes == 4  # of train, though test has one class only


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_a_validation_file_is_used(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "train.npz", image=pixels(10))
    np.savez(tmp_path / f"{name}.npz", image=pixels(4, seed=5))
    assert len(data.load(str(tmp_path), "train")) == 10
    np.testing.assert_array_equal(data.load(str(tmp_path), "validation").images, pixels(4, seed=5))


def test_held_out_is_a_tenth_of_at_most_ten_thousand() -> None:
    assert [images.held_out(n) for n in (2, 19, 60_000, 100_000, 1_281_167)] == [1, 1, 6_000, 10_000, 10_000]


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.int64, np.uint16, ">i4"])
def test_other_integers_are_accepted_if_in_range(tmp_path: Path, dtype) -> None:
    image = pixels(10, shape=(3, 4), top=1 if dtype is np.bool_ else 100)
    np.savez(tmp_path / "a.npz", image=image.astype(dtype))
    dataset = data.load(str(tmp_path / "a.npz"), "train")
    assert dataset.image_shape == (3, 4, 1)  # [N, H, W] gets its channel
    assert dataset.images.dtype == np.uint8
    assert {x.tobytes() for x in dataset.images} <= {x.tobytes() for x in image}


@pytest.mark.parametrize(
    ("top", "levels", "want"), [(1, None, 2), (2, None, 256), (16, None, 256), (16, 17, 17), (1, 256, 256), (0, None, 2)]
)
def test_levels_are_inferred_or_checked(top: int, levels: int | None, want: int) -> None:
    image = pixels(10, top=top)
    image[-1, 0, 0, 0] = top
    assert data.Dataset.from_arrays(image, levels=levels).levels == want


def test_train_decides_the_levels_of_every_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", image=pixels(10))
    np.savez(tmp_path / "test.npz", image=pixels(10, top=1))
    assert data.load(str(tmp_path), "test").levels == 256


def changed(index: tuple, value: float, dtype: type) -> np.ndarray:
    image = pixels(12, top=15).astype(dtype)
    image[index] = value
    return image


@pytest.mark.parametrize(
    ("arrays", "levels", "parts"),
    [
        ({"image": changed((7, 1, 2, 0), 300, np.int32)}, None, ["a.npz:image[7, 1, 2, 0]", "0..255 (8 bits)", "got 300"]),
        ({"image": changed((7, 1, 2, 0), -1, np.int8)}, None, ["a.npz:image[7, 1, 2, 0]", "got -1"]),
        ({"image": changed((3, 0, 0, 0), 16, np.uint8)}, 16, ["a.npz:image[3, 0, 0, 0]", "0..15 (16 levels)", "got 16"]),
        ({"image": changed((5, 2, 3, 0), np.nan, np.float32)}, None, ["a.npz:image[5, 2, 3, 0]", "uint8", "got nan (float32)"]),
        ({"image": changed((5, 2, 3, 0), np.inf, np.float64)}, None, ["a.npz:image[5, 2, 3, 0]", "got inf"]),
        ({"image": pixels().astype(np.float32) / 255}, None, ["a.npz:image", "dtype uint8", "got float32", "nothing is rounded"]),
        ({"image": np.array(["a", "b"] * 10).reshape(5, 2, 2)}, None, ["a.npz:image", "dtype uint8", "got <U1"]),
        ({"image": pixels(0)}, None, ["a.npz:image", "at least one image", "got 0 (the set is empty)"]),
        ({"image": pixels(9, (0, 4, 1))}, None, ["a.npz:image", "at least one pixel", "[9, 0, 4, 1]"]),
        ({"image": pixels(20)[0, :, :, 0]}, None, ["a.npz:image", "[N, H, W, C]", "got [3, 4]"]),
        ({"image": pixels(5, (3, 16, 16))}, None, ["a.npz:image", "got [5, 3, 16, 16]", "transpose(0, 2, 3, 1)"]),
        ({"image": pixels(2)}, None, ["a.npz", "at least 3 images", "got 2"]),
        ({"images": pixels(), "label": np.zeros(20, int)}, None, ["a.npz", "an array named 'image'", "got images, label"]),
        ({}, None, ["a.npz", "an array named 'image'", "an empty archive"]),
        ({"image": pixels(), "label": np.zeros(19, int)}, None, ["a.npz:label", "shape [20]", "got [19]"]),
        ({"image": pixels(), "label": np.zeros((20, 1), int)}, None, ["a.npz:label", "got [20, 1]"]),
        ({"image": pixels(), "label": np.zeros(20)}, None, ["a.npz:label", "an integer dtype", "got float64"]),
        ({"image": pixels(), "label": np.arange(20) - 1}, None, ["a.npz:label[0]", "got -1"]),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, arrays: dict, levels: int | None, parts: list[str]) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path / "a.npz"), "train", levels=levels)
    one_line(caught.value, *parts)


@pytest.mark.parametrize(
    ("test", "parts"),
    [
        (
            {"image": pixels(5, (3, 5, 1)), "label": np.zeros(5, int)},
            ["test.npz:image[0]", "[3, 4, 1] as in", "train.npz", "got [3, 5, 1]"],
        ),
        ({"image": pixels(5)}, ["test.npz:label", "labels, as in", "got none"]),
        ({"image": pixels(5), "label": np.array([0, 1, 4, 0, 0])}, ["test.npz:label[2]", "0..3", "got 4"]),
        ({"image": np.full((5, 3, 4, 1), 2, np.uint8), "label": np.zeros(5, int)}, ["test.npz:image[0, 0, 0, 0]", "(2 levels)", "got 2"]),
    ],
)
def test_a_test_file_must_agree_with_train(tmp_path: Path, test: dict, parts: list[str]) -> None:
    np.savez(tmp_path / "train.npz", image=pixels(20, top=1 if "(2 levels)" in parts else 255), label=np.arange(20) % 4)
    np.savez(tmp_path / "test.npz", **test)
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path), "test")
    one_line(caught.value, *parts)


def test_missing_and_ambiguous_parts(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", image=pixels())
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path), "train")
    one_line(caught.value, str(tmp_path), "a train part", "got test.npz")
    (tmp_path / "test.npz").rename(tmp_path / "train.npz")
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path), "test")
    one_line(caught.value, "a test part", "got train.npz")
    for name in ("val.npz", "valid.npz"):
        np.savez(tmp_path / name, image=pixels())
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path), "train")
    one_line(caught.value, "one validation part", "valid.npz and val.npz")


def damage(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "truncated":
        del raw[len(raw) // 2 :]
    elif how == "one bit":
        raw[len(raw) // 2] ^= 4
    elif how == "empty":
        raw.clear()
    else:
        raw[:] = b"not an archive at all"
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["truncated", "one bit", "empty", "text"])
def test_damaged_archives(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, image=pixels(200))
    damage(path, how)
    with pytest.raises(DataError) as caught:
        data.load(str(path), "train")
    one_line(caught.value, str(path), "a readable file", "got ")


def test_one_array_that_is_called_an_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels())
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path / "a.npz"), "train")
    one_line(caught.value, "an .npz archive", "one array of shape [20, 3, 4, 1]")


def test_a_member_that_is_no_array(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("image", b"hello")
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path / "a.npz"), "train")
    one_line(caught.value, "a.npz:image", "a numpy array", "5 bytes")


class Gadget:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("key", ["image", "label"])
def test_no_code_from_a_file_is_run(tmp_path: Path, key: str) -> None:
    gadget = np.empty(20, object)
    gadget[:] = [Gadget(tmp_path / "was_here")] * 20
    np.savez(tmp_path / "a.npz", **({"image": pixels()} | {key: gadget}))
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path / "a.npz"), "train")
    one_line(caught.value, "a.npz", "allow_pickle=False")
    assert not (tmp_path / "was_here").exists()


# --------------------------------------------------------------------------------------------------------------------------------- pictures


def save_pictures(folder: Path, arrays: np.ndarray, suffix: str = ".png") -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index, array in enumerate(arrays):
        Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(folder / f"{index:03d}{suffix}")


@pytest.mark.parametrize(("shape", "suffix"), [((5, 4, 3), ".png"), ((5, 4, 1), ".png"), ((5, 4, 3), ".bmp"), ((4, 4, 1), ".pgm")])
def test_pictures_come_back_exactly(tmp_path: Path, shape: tuple, suffix: str) -> None:
    image = pixels(30, shape)
    save_pictures(tmp_path, image, suffix)
    (tmp_path / "README.txt").write_text("not a picture")
    (tmp_path / "._000.png").write_text("not a picture either")
    loaded = [data.load(str(tmp_path), split, splits=1) for split in images.SPLITS]
    assert [len(part) for part in loaded] == [24, 3, 3]
    assert sorted(x.tobytes() for part in loaded for x in part.images) == sorted(x.tobytes() for x in image)
    assert loaded[0].labels is None


def test_class_folders_give_labels(tmp_path: Path) -> None:
    image = pixels(30, (4, 4, 1))
    for place, name in enumerate(("ant", "bee", "cat")):
        save_pictures(tmp_path / name, image[place * 10 : place * 10 + 10])
    want = {(x.tobytes(), place // 10) for place, x in enumerate(image)}
    loaded = [data.load(str(tmp_path), split) for split in images.SPLITS]
    assert {(x.tobytes(), y) for part in loaded for x, y in zip(part.images, part.labels.tolist(), strict=True)} == want
    assert loaded[2].num_classes == 3


def test_train_and_test_folders_are_splits_not_classes(tmp_path: Path) -> None:
    image = pixels(30, (4, 4, 1))
    for split, rows in (("train", slice(20)), ("test", slice(20, 30))):
        save_pictures(tmp_path / split / "ant", image[rows][::2])
        save_pictures(tmp_path / split / "bee", image[rows][1::2])
    test = data.load(str(tmp_path), "test")
    np.testing.assert_array_equal(test.images, np.concatenate([image[20:30:2], image[21:30:2]]))
    assert test.labels.tolist() == [0] * 5 + [1] * 5
    (tmp_path / "test" / "bee").rename(tmp_path / "test" / "cow")
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path), "test")
    one_line(caught.value, "ant, bee", "got ant, cow")


def test_bits_palettes_and_jpeg(tmp_path: Path) -> None:
    from PIL import Image

    bits = pixels(5, (6, 6), top=1).astype(bool)
    for index, picture in enumerate(bits):
        (tmp_path / "bits").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "bits" / f"{index}.png")
    dataset = data.load(str(tmp_path / "bits"), "train")
    assert dataset.levels == 2
    assert {x.tobytes() for x in dataset.images} <= {x.astype(np.uint8).tobytes() for x in bits}
    colour = np.full((6, 6, 3), (255, 0, 40), np.uint8)
    for suffix in (".gif", ".jpg"):
        (tmp_path / suffix[1:]).mkdir()
        for index in range(4):
            Image.fromarray(colour).save(tmp_path / suffix[1:] / f"{index}{suffix}")
    assert (data.load(str(tmp_path / "gif"), "train").images == colour).all()
    assert data.load(str(tmp_path / "jpg"), "train").image_shape == (6, 6, 3)


def wrong_folder(folder: Path, what: str) -> None:
    from PIL import Image

    save_pictures(folder, pixels(5, (4, 4, 3)))
    if what == "shape":
        Image.fromarray(pixels(1, (4, 5, 3))[0]).save(folder / "003.png")
    elif what == "grey":
        Image.fromarray(pixels(1, (4, 4))[0]).save(folder / "003.png")
    elif what == "alpha":
        Image.fromarray(pixels(1, (4, 4, 4))[0]).save(folder / "000.png")
    elif what == "16 bits":
        Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(folder / "000.png")
    elif what == "torn":
        (folder / "002.png").write_bytes((folder / "002.png").read_bytes()[:45])
    elif what == "text":
        (folder / "002.png").write_text("no picture")
    elif what == "mixed":
        save_pictures(folder / "ant", pixels(2, (4, 4, 3)))
    elif what == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        for place in ("ant", "bee/deep"):
            save_pictures(folder / "classes" / place, pixels(2, (4, 4, 3)))


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("shape", ["003.png (picture 3)", "[4, 4, 3] uint8 as 000.png", "got [4, 5, 3]"]),
        ("grey", ["003.png (picture 3)", "got [4, 4, 1]"]),
        ("alpha", ["000.png", "grey or RGB", "got mode RGBA"]),
        ("16 bits", ["000.png", "8 bits", "got mode I;16"]),
        ("torn", ["002.png", "a readable file"]),
        ("text", ["002.png", "a readable file", "cannot identify"]),
        ("mixed", ["pictures", "all beside or all inside", "5 beside and 2 inside"]),
        ("empty", ["pictures", "train.npz or pictures (.png", "the set is empty"]),
        ("deep class", ["bee", "pictures of this class", "got none but 2 in folders inside it", "move them up"]),
    ],
)
def test_wrong_pictures_are_named(tmp_path: Path, what: str, parts: list[str]) -> None:
    folder = tmp_path / "pictures"
    wrong_folder(folder, what)
    with pytest.raises(DataError) as caught:
        data.load(str(folder / "classes" if what == "deep class" else folder), "train")
    one_line(caught.value, *parts)


def test_an_empty_folder_beside_the_classes_is_a_class_without_examples(tmp_path: Path) -> None:
    for name in ("ant", "cow"):
        save_pictures(tmp_path / name, pixels(20, (4, 4, 3)))
    (tmp_path / "bee").mkdir()
    train = data.load(str(tmp_path), "train")
    assert train.features["label"].names == ("ant", "bee", "cow") and set(train.labels) == {0, 2}
    assert without_examples(train) == f"{tmp_path}/train: class bee of 3 has no example"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere_at_all", "nowhere.npz", "~no_such_user/x", "/" + "x" * 5000])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(DataError) as caught:
        data.load(name, "train")
    one_line(caught.value, name[:80], "an existing file or folder")


def test_spaces_umlauts_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "meine Bilder ä"
    folder.mkdir()
    np.savez(folder / "train.npz", image=pixels())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("./meine Bilder ä", "meine Bilder ä/", "~/meine Bilder ä", "meine Bilder ä/train.npz"):
        assert len(data.load(name, "train")) in (16, 18)
    (folder / "a.doc").write_text("x")
    with pytest.raises(DataError) as caught:
        data.load("meine Bilder ä/a.doc", "train")
    one_line(caught.value, "an .npz file or a folder", "ends with .doc")


# ---------------------------------------------------------------------------------------------------------------------- real data, if there


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "levels", "num_classes"),
    [
        ("mnist", (54_000, 6_000, 10_000), (28, 28, 1), 256, 10),
        ("binarized_mnist", (50_000, 10_000, 10_000), (28, 28, 1), 2, 0),
        ("cifar10", (45_000, 5_000, 9_977), (32, 32, 3), 256, 10),
    ],
)
def test_real_archives(real_data, name: str, sizes: tuple, shape: tuple, levels: int, num_classes: int) -> None:
    parts = [data.load(str(real_data(name)), split) for split in images.SPLITS]
    assert tuple(len(part) for part in parts) == sizes
    assert {(part.image_shape, part.levels, part.num_classes) for part in parts} == {(shape, levels, num_classes)}
