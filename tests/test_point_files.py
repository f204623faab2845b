"""Points from files, with labels and vectors beside them, and columns beside points and strings of one's own."""

from pathlib import Path

import numpy as np
import pytest

import jaxgen
from jaxgen import data
from jaxgen.__main__ import main
from jaxgen.data import Dataset
from jaxgen.data.features import ClassLabel, Points, Tokens, Vector
from jaxgen.data.images import fraction, held_out, permutation
from jaxgen.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")
POINTS = np.random.default_rng(0).normal(size=(40, 3)) * [1, 2, 5]
LABELS = np.arange(40) % 3
SHORT = ["--train.steps=2", "--train.eval_every=2", "--train.batch_size=8", "--report.samples=4", "--report.rulers=False"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ">f4"])
def test_points_of_an_archive_are_float32_and_split_like_images(dtype):
    points = POINTS.astype(dtype)
    np.savez("pts.npz", point=points, label=LABELS)
    for split in SPLITS:
        dataset, rows = data.load("pts.npz", split), fraction(40, split, Path("pts.npz"))
        assert dataset.features == {"point": Points(3), "label": ClassLabel(3)}
        assert dataset.images.dtype == np.float32
        np.testing.assert_array_equal(dataset.images, points[rows].astype(np.float32))
        np.testing.assert_array_equal(dataset.labels, LABELS[rows])
    assert [len(data.load("pts.npz", split)) for split in SPLITS] == [32, 4, 4]


def test_points_alone_and_in_parts():
    np.save("pts.npy", POINTS)
    np.testing.assert_array_equal(data.load("pts.npy", "test").images, np.float32(POINTS[fraction(40, "test", Path("pts.npy"))]))
    assert data.load("pts.npy", "test").features == {"point": Points(3)}
    np.savez("train.npz", point=POINTS, vector=POINTS[:, :2])
    np.savez("test.npz", point=POINTS[:5] + 1, vector=POINTS[:5, 1:])
    sets = {split: data.load("./", split) for split in SPLITS}
    assert sets["test"].features == {"point": Points(3), "vector": Vector(2)}
    np.testing.assert_array_equal(sets["test"].images, np.float32(POINTS[:5] + 1))
    np.testing.assert_array_equal(sets["test"].columns["vector"], np.float32(POINTS[:5, 1:]))
    held = np.sort(permutation(40, 1, 0)[: held_out(40)])
    np.testing.assert_array_equal(sets["validation"].images, np.float32(POINTS[held]))
    np.testing.assert_array_equal(sets["train"].images, np.float32(np.delete(POINTS, held, axis=0)))


def test_images_come_before_points(capsys):
    np.savez("both.npz", image=np.zeros((5, 2, 2), np.uint8), point=POINTS[:5])
    assert list(data.load("both.npz", "train").features) == ["image"]
    assert capsys.readouterr().err == "jaxgen: both.npz: used: image; not used: point\n"


CONVERT = "real numbers are converted by .astype(numpy.float32); images have shape [N, H, W] or [N, H, W, C]"
HOLE = np.where(np.arange(120).reshape(40, 3) == 7, np.nan, POINTS)
WRONG = {
    "a whole number is no real number": ({"point": LABELS[:, None]}, f"a.npz:point: wanted a floating-point dtype, got int64; {CONVERT}"),
    "one axis": ({"point": POINTS[:, 0]}, "a.npz:point: wanted points of shape [N, d], got [40]"),
    "three axes": ({"point": POINTS[None]}, "a.npz:point: wanted points of shape [N, d], got [1, 40, 3]"),
    "no coordinate": ({"point": POINTS[:, :0]}, "a.npz:point: wanted points of shape [N, d], got [40, 0]"),
    "no point": ({"point": POINTS[:0]}, "a.npz:point: wanted at least one point, got 0 (the set is empty)"),
    "two points": ({"point": POINTS[:2]}, "a.npz: wanted at least 3 points, to split them into train, validation and test, got 2"),
    "NaN": ({"point": HOLE}, "a.npz:point[2, 1]: wanted a finite number, got nan"),
    "too large": (
        {"point": np.where(np.isnan(HOLE), 1e300, HOLE)},
        "a.npz:point[2, 1]: wanted a finite number, got 1e+300; larger numbers than 3.4e38 are infinite as float32",
    ),
    "labels": ({"point": POINTS, "label": LABELS[:9]}, "a.npz:label: wanted shape [40], one label for each example, got [9]"),
    "a name": ({"points": POINTS}, "a.npz: wanted an array named 'image' or 'point', got points; rename points to point"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_points_is_one_line(name):
    arrays, message = WRONG[name]
    np.savez("a.npz", **arrays)
    with pytest.raises(DataError) as error:
        data.load("a.npz", "train")
    assert str(error.value) == message


def test_whole_numbers_alone_and_levels_of_points_are_errors():
    np.save("a.npy", LABELS.reshape(20, 2))
    with pytest.raises(DataError) as error:
        data.load("a.npy", "train")
    assert str(error.value) == f"a.npy:point: wanted a floating-point dtype, got int64; {CONVERT}"
    np.savez("pts.npz", point=POINTS)
    with pytest.raises(ConfigError, match="^data.levels: wanted nothing, since points have no levels, got 17$"):
        data.load("pts.npz", "train", levels=17)


def test_a_part_must_agree_with_train():
    np.savez("train.npz", point=POINTS, label=LABELS)
    for arrays, message in (
        ({"point": POINTS[:, :2], "label": LABELS}, r"test.npz:point: wanted points of shape \[N, 3\], got \[40, 2\]"),
        ({"point": POINTS}, r"test.npz:label: wanted labels, as in train.npz:point, got none"),
        ({"point": POINTS, "label": LABELS + 1}, r"test.npz:label\[2\]: wanted a class in 0..2, got 3"),
        ({"image": np.zeros((4, 2, 2), np.uint8)}, "test.npz:image: wanted points, as in train.npz:point, got images"),
    ):
        np.savez("test.npz", **arrays)
        with pytest.raises(DataError, match=f"^{message}$"):
            data.load("./", "test")


def test_columns_beside_points_and_strings_stay():
    vector = POINTS[:, 1:]
    of_points = Dataset.from_arrays(point=POINTS, label=LABELS, vector=vector.tolist())
    assert of_points.features == {"point": Points(3), "label": ClassLabel(3), "vector": Vector(2)}
    tokens = np.where(np.arange(4) < LABELS[:, None], 5, 0)
    of_strings = Dataset.from_arrays(tokens=tokens, label=LABELS, vector=vector)
    assert of_strings.features == {"tokens": Tokens(4, 6), "label": ClassLabel(3), "vector": Vector(2)}
    np.testing.assert_array_equal(of_points.images, np.float32(POINTS))
    np.testing.assert_array_equal(of_strings.images, tokens)
    for dataset in (of_points, of_strings):
        np.testing.assert_array_equal(dataset.labels, LABELS)
        np.testing.assert_array_equal(dataset.columns["vector"], np.float32(vector))
        assert set(dataset.batch(0, 4, 0)) == set(dataset.features)
    with pytest.raises(DataError, match=r"^arrays:label: wanted shape \[40\], one label for each example, got \[39\]$"):
        Dataset.from_arrays(tokens=tokens, label=LABELS[:39])


def test_floats_are_no_images_of_16_bits():
    with pytest.raises(DataError, match="^arrays:image: wanted dtype uint16, got float64; store whole numbers 0 .. levels-1 as uint16; "):
        Dataset.from_arrays(np.zeros((2, 1, 1)), levels=257)


def test_a_gan_and_a_pca_are_trained_on_a_file_of_points(capsys, no_curves):
    np.savez("pts.npz", point=POINTS)
    assert main(["train", "gan", "--data.name=pts.npz", "--model.hidden=8", "--workdir=gan", *SHORT]) == 0
    words = ["--model.components=3", "--workdir=pca", "--train.batch_size=8", "--report.samples=0"]
    assert main(["train", "pca", "--data.name=pts.npz", *words]) == 0
    assert jaxgen.load("gan").config.image_shape == (3,)
    train = POINTS[fraction(40, "train", Path("pts.npz"))]
    fitted = np.linalg.eigvalsh(np.cov(train.T))[::-1]
    np.testing.assert_allclose(jaxgen.load("pca").explained_variance[...], fitted, rtol=1e-4)
    capsys.readouterr()
    assert main(["evaluate", "pca"]) == 0 and "nats" in capsys.readouterr().out
