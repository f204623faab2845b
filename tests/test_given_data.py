"""Data as people have them: what is not read is named, what cannot be read right is refused, and errors say what to do."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data import one_line, pixels
from test_pictures import png, write

from jaxgen import data, experiment
from jaxgen.__main__ import main
from jaxgen.data import DataConfig, Dataset
from jaxgen.data.decoding import Reading, read_picture
from jaxgen.data.pictures import read_pictures
from jaxgen.errors import DataError
from jaxgen.models import VAEConfig
from jaxgen.runs.report import ReportConfig
from jaxgen.training import TrainConfig


def save(folder: Path, n: int, shape: tuple[int, ...] = (4, 4)) -> np.ndarray:
    """n pictures in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    images = pixels(n, shape, seed=len(str(folder)))
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")
    return images


def tiff(values: np.ndarray, photometric: int, sample_format: int = 1) -> bytes:
    """An uncompressed grey TIFF file of 8 or 16 bits."""
    (height, width), bits = values.shape, 8 * values.dtype.itemsize
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, height)]
    tags += [(279, values.nbytes), (339, sample_format)]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, 10) + entries + struct.pack("<I", 0) + values.tobytes()


# ------------------------------------------------------------------------------------------------------------------------ beside the parts


def test_what_stands_beside_the_parts_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, n in (("train", 12), ("test", 3), ("car", 8), ("plane", 9)):
        save(tmp_path / folder, n)
    save(tmp_path / "plane" / "deep", 2)
    save(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".hidden").write_text("")
    assert len(data.load(str(tmp_path), "test")) == 3
    said = "skipped beside train/, test/: 17 pictures in car/, plane/, 1 pictures, 2 other files in folders, notes.txt"
    assert capsys.readouterr().err == f"jaxgen: {tmp_path}: {said}\n"


def test_arrays_beside_the_parts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "test", "extra"):
        np.savez(tmp_path / f"{name}.npz", image=pixels(12))
    np.save(tmp_path / "val.npy", pixels(3))
    assert len(data.load(str(tmp_path), "validation")) == 1
    assert capsys.readouterr().err == f"jaxgen: {tmp_path}: skipped beside train.npz, test.npz: extra.npz, val.npy\n"


def test_a_class_that_is_called_train_is_refused(tmp_path: Path) -> None:
    for folder in ("car", "plane", "train"):
        save(tmp_path / folder, 8)
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path), "train")
    one_line(caught.value, str(tmp_path), "got car/, plane/ with pictures beside train/", "rename train/", "move the others out")
    assert data.load(str(tmp_path), "train", splits=2).image_shape == (4, 4, 1)  # a run that has begun goes on


def test_one_array_for_each_part(tmp_path: Path) -> None:
    parts = {name: pixels(20, seed=seed) for seed, name in enumerate(("train", "val", "test"))}
    for name, images in parts.items():
        np.save(tmp_path / f"{name}.npy", images)
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        np.testing.assert_array_equal(data.load(str(tmp_path), split).images.squeeze(-1), parts[name].reshape(20, *parts[name].shape[1:3]))


def test_the_test_part_may_lack_a_class(tmp_path: Path) -> None:
    for folder in ("train/a", "train/b", "train/c", "test/a", "test/c"):
        save(tmp_path / folder, 4)
    test = data.load(str(tmp_path), "test")
    assert test.labels.tolist() == [0] * 4 + [2] * 4 and test.num_classes == 3
    save(tmp_path / "test" / "d", 4)
    with pytest.raises(DataError, match="the class folders of .*: a, b, c, got a, c, d"):
        data.load(str(tmp_path), "test")


def test_one_picture_is_enough_to_train_on_all(tmp_path: Path) -> None:
    image = save(tmp_path / "train", 1)
    save(tmp_path / "test", 1)
    np.testing.assert_array_equal(data.load(str(tmp_path), "train", validation=0).images[..., 0], image)
    with pytest.raises(DataError, match="wanted enough images for a train split"):
        data.load(str(tmp_path), "train")


# ------------------------------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_value_of_grey_pictures_shows_the_background(tmp_path: Path, bits: int) -> None:
    values, top = pixels(1, (5, 7), top=2**bits - 1)[0].reshape(5, 7), 2**bits - 1
    body = struct.pack(">H", 1)
    chunk = struct.pack(">I", 2) + b"tRNS" + body + struct.pack(">I", zlib.crc32(b"tRNS" + body))
    path = write(tmp_path / "a.png", png(values, bits, chunk))
    want = np.where((values == 1)[..., None], np.array([255, 0, 0]), (values * (255 // top))[..., None])
    np.testing.assert_array_equal(read_picture(path, Reading(mode="RGB", background="red")).pixels, want)


def test_grey_of_16_bits_where_0_is_white_is_turned(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7)).astype("<u2")
    for photometric, want in ((0, 65535 - values), (1, values)):
        path = write(tmp_path / f"{photometric}.tif", tiff(values, photometric))
        np.testing.assert_array_equal(read_picture(path, Reading(levels=65536)).pixels[..., 0], want)


def test_signed_pictures_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", tiff(np.arange(35, dtype=np.uint8).reshape(5, 7), 1, 2))
    with pytest.raises(DataError) as caught:
        read_picture(path)
    one_line(caught.value, "a.tif", "got one of signed numbers")


def test_bitmaps_with_a_second_picture_are_refused(tmp_path: Path) -> None:
    for name, one in (("plain", b"P1\n# P4\n9 2\n1 0 1 0 1 0 1 0 1\n000000001\n"), ("binary", b"P4\n9 2\n" + b"PPP\0")):
        single = write(tmp_path / f"{name}.pbm", one)
        assert read_picture(single).pixels.shape == (2, 9, 1)
        with pytest.raises(DataError, match="several pictures in one file"):
            read_picture(write(tmp_path / f"{name}2.pbm", 2 * one))


@pytest.mark.parametrize("channels, kind", [(4, 6), (2, 4)])
def test_16_bits_with_alpha_are_rounded(tmp_path: Path, channels: int, kind: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (6, 5, channels)).astype(np.uint16)
    values[0, 0], values[..., -1] = 511, 65535
    content = bytearray(png(values, 16))
    content[25] = kind
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    got = read_picture(write(tmp_path / "a.png", bytes(content)), Reading(mode="RGB")).pixels
    np.testing.assert_array_equal(got, np.rint(values[..., :-1] * (255 / 65535)) * np.ones(3))
    assert got[0, 0].tolist() == [2, 2, 2]


# ------------------------------------------------------------------------------------------------------------------------ what errors say


def test_both_options_are_named_at_once(tmp_path: Path) -> None:
    for index, shape in enumerate([(8, 9, 3), (10, 7), (8, 9, 4)]):
        Image.fromarray(pixels(1, shape)[0].squeeze()).save(tmp_path / f"{index}.png")
    with pytest.raises(DataError) as caught:
        read_pictures(tmp_path)
    one_line(caught.value, "1.png", "--data.mode RGB or L and --data.size 8")
    with pytest.raises(DataError, match="--data.size 8"):
        read_pictures(tmp_path, Reading(mode="RGB"))
    assert read_pictures(tmp_path, Reading(mode="RGB", size=(8,))).values.shape == (3, 8, 8, 3)


def test_a_line_break_in_a_name_stays_in_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_picture(write(tmp_path / "a\nb\u2028.png", b"nothing"))
    one_line(caught.value, r"a\nb\u2028.png", "wanted a readable file")


@pytest.mark.parametrize(
    "labels, hint",
    [
        (np.arange(12)[:, None], "label[:, 0]"),
        (np.eye(12, dtype=int), "label.argmax(1)"),
        (np.array(list("abcabcabcabc")), "numpy.unique(label, return_inverse=True)"),
        (np.arange(12.0), "label.astype(int)"),
    ],
)
def test_labels_of_other_forms_are_refused_with_what_to_do(labels: np.ndarray, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        Dataset.from_arrays(pixels(12), labels)
    one_line(caught.value, hint)


# ---------------------------------------------------------------------------------------------------------------- without a test part

VAE = ["train", "vae", "--model.hidden=16", "--model.latent=2", "--train.steps=4", "--train.eval_every=2", "--train.batch_size=4"]
VAE += ["--report.rulers=False"]


@pytest.mark.parametrize("validation", [None, 0])
def test_without_a_test_part_the_run_says_so_and_reports_on_the_validation_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_curves: None, validation: int | None
) -> None:
    save(tmp_path / "data" / "train", 12)
    words = [*VAE, f"--data.name={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}", *["--data.validation=0"] * (validation == 0)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    evaluated, wanted = "nothing" if validation == 0 else "the validation split", "wanted a test part (test.npz or test/), got train"
    said = f"warning: no test split, so the report at the end evaluates {evaluated} ({tmp_path / 'data'}: {wanted})"
    assert err == "" and 0 <= out.index(said) < out.index("training to step 4") and out.count(said) == 1
    report = out.split("\nreport of")[1]
    verb = "nothing is" if validation == 0 else "the validation split is"
    assert f"test      none, {verb} evaluated ({tmp_path / 'data'}: {wanted})" in report
    assert ("validation bits_per_dim" in report) == (validation is None) and "samples.png" in report and "test bits" not in report
    assert main(["evaluate", str(tmp_path / "run")]) == 3
    assert f"{wanted}; --split validation takes the validation split" in capsys.readouterr().err
    assert main([*words, "--train.steps=5"]) == 0  # goes on


def test_a_test_part_that_cannot_be_used_is_an_error_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "data" / "train", 12)
    save(tmp_path / "data" / "test", 3, (5, 4))
    assert main([*VAE, f"--data.name={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}"]) == 3
    out, err = capsys.readouterr()
    assert "step" not in out and "images of shape [4, 4, 1]" in err and err.count("\n") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


@dataclass(frozen=True)
class TwoSplits(DataConfig):
    """A class of one's own with two splits in a dictionary."""

    def load(self, split: str) -> Dataset:
        return {"train": Dataset.from_arrays(pixels(12)), "validation": Dataset.from_arrays(pixels(4))}[split]


def test_a_class_of_ones_own_may_lack_a_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = pixels(1)[0].shape
    model = VAEConfig((*shape, 1)[:3], hidden=(16,), latent=2, levels=256)
    train = TrainConfig(steps=2, batch_size=4, eval_every=2)
    run = experiment.Experiment(model, TwoSplits("mine"), train=train, workdir=str(tmp_path), report=ReportConfig(samples=0))
    assert experiment.train(run) == 0
    experiment.finish(run)
    out = capsys.readouterr().out
    assert "no test split, so the report at the end evaluates the validation split (KeyError: 'test')" in out
    assert "test      none, the validation split is evaluated (KeyError: 'test')" in out
