"""Photographs of several sizes and modes: converted as `--data.size` and `--data.mode` say, and only once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data import one_line, pixels

from jaxgen import data
from jaxgen.__main__ import main
from jaxgen.data import pictures as folders
from jaxgen.data.decoding import Reading, read_picture
from jaxgen.data.pictures import read_pictures
from jaxgen.errors import ConfigError


def photographs(folder: Path) -> None:
    """Thirty pictures as people have them: several sizes, grey, colour and with alpha."""
    folder.mkdir()
    for index in range(30):
        picture = pixels(1, (12 + index, 40 - index, (1, 3, 4)[index % 3]), seed=index)[0]
        Image.fromarray(picture.squeeze()).save(folder / f"{index:02d}.png")


def test_size_is_a_crop_in_the_middle_and_the_mean_over_areas(tmp_path: Path) -> None:
    picture = pixels(1, (24, 36, 3))[0]
    Image.fromarray(picture).save(tmp_path / "a.png")
    square = read_picture(tmp_path / "a.png", Reading(size=(8,)))
    np.testing.assert_array_equal(square.pixels, np.rint(picture[:, 6:30].reshape(8, 3, 8, 3, 3).mean((1, 3))))
    whole = read_picture(tmp_path / "a.png", Reading(size=(8, 12)))
    np.testing.assert_array_equal(whole.pixels, np.rint(picture.reshape(8, 3, 12, 3, 3).mean((1, 3))))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", Reading(size=(24, 36))).pixels, picture)
    larger = read_picture(tmp_path / "a.png", Reading(size=(48, 72)))
    np.testing.assert_array_equal(larger.pixels, picture.repeat(2, 0).repeat(2, 1))
    assert [square.enlarged, whole.enlarged, larger.enlarged] == [False, False, True]


def test_converted_pictures_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs(tmp_path / "photos")
    config = data.DataConfig(f"{tmp_path}/photos", size=(6, 4), mode="L")
    want = {split: config.load(split).images for split in ("train", "test")}
    read: list[Path] = []
    monkeypatch.setattr(folders, "read_picture", lambda path, how: read.append(path) or read_picture(path, how))
    for _ in range(2):
        for split, images in want.items():
            np.testing.assert_array_equal(config.load_keeping(split, tmp_path / "kept").images, images)
    assert images.shape[1:] == (6, 4, 1)
    assert len(read) == 31  # the first one twice, for its shape
    other = data.DataConfig(config.name, size=(6, 4), mode="RGB")
    assert other.load_keeping("test", tmp_path / "kept").images.shape[1:] == (6, 4, 3)
    Image.fromarray(pixels(1, (20, 20), seed=99)[0]).save(tmp_path / "photos" / "00.png")
    whole = [config.load_keeping(split, tmp_path / "kept").images for split in ("train", "validation", "test")]
    changed = read_picture(tmp_path / "photos" / "00.png", Reading(size=(6, 4), mode="L")).pixels
    assert changed.tobytes() in {x.tobytes() for x in np.concatenate(whole)}
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])  # a damaged one is made again
    np.testing.assert_array_equal(config.load_keeping("test", tmp_path / "kept").images, whole[2])
    (tmp_path / "file").write_text("")
    np.testing.assert_array_equal(config.load_keeping("test", tmp_path / "file").images, whole[2])  # nowhere to keep them


def test_a_run_decodes_its_photographs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    photographs(tmp_path / "photos")
    read: list[Path] = []
    monkeypatch.setattr(folders, "read_picture", lambda path, how: read.append(path) or read_picture(path, how))
    run = ["--workdir", str(tmp_path / "run"), "--data.name", f"{tmp_path}/photos", "--data.size", "5", "--data.mode", "RGB"]
    words = ["train", "pca", *run, "--train.batch_size", "8", "--model.components", "2", "--report.samples", "2"]
    assert main(words) == main(["evaluate", str(tmp_path / "run")]) == main(words) == 0
    assert len(read) == 31
    assert list((tmp_path / "run" / "data-cache").iterdir())
    Image.fromarray(pixels(1, (20, 20), seed=99)[0].squeeze()).save(tmp_path / "photos" / "0a.png")  # a name whose hash puts it into train
    capsys.readouterr()
    assert main(words) == 2
    assert "data fingerprint sha256 changed" in capsys.readouterr().err


def test_enlarged_pictures_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photographs(tmp_path / "photos")
    read_pictures(tmp_path / "photos", Reading(size=(13,), mode="L"))
    few = "3 of 30 pictures are smaller than --data.size and were enlarged"  # 12 x 40, 40 x 12 and 41 x 11
    assert capsys.readouterr().err == f"jaxgen: {tmp_path / 'photos'}: {few}\n"


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"size": (0,)}, ["data.size: wanted one side, or height and width, of 1 to 4096, got 0"]),
        ({"size": (8, 8, 3)}, ["data.size", "got 8 8 3"]),
        ({"mode": "L", "levels": 16}, ["data.levels: wanted 256 beside data.mode L", "got 16"]),
        ({"background": "red"}, ["data.background: wanted data.mode L or RGB beside it, got red"]),
        ({"mode": "L", "background": "rde"}, ["data.background: wanted the name of a colour, or #rrggbb, got rde"]),
        ({"mode": "L", "background": "#ff000080"}, ["got #ff000080"]),
    ],
)
def test_wrong_conversions_are_named(fields: dict, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        data.DataConfig("./x", **fields)
    one_line(caught.value, *parts)


def test_only_pictures_are_converted(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", image=pixels())
    for name in ("digits", "ring", str(tmp_path / "train.npz"), str(tmp_path)):
        with pytest.raises(ConfigError) as caught:
            data.load(name, "train", size=(8,))
        one_line(caught.value, "data.size, data.mode: wanted a folder of pictures", name, "leave them out")
