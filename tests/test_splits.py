"""How files of one's own become train, validation and test, by the newest rule, and that runs made before keep theirs."""

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxgen import cli, config, data
from jaxgen.__main__ import main
from jaxgen.data import DataConfig
from jaxgen.data.images import SPLITS
from jaxgen.errors import ConfigError, DataError


def save(folder: Path, names: range) -> None:
    """Pictures of 2x2 whose value is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.full((2, 2), name, np.uint8)).save(folder / f"{name}.png")


def loaded(folder: Path, **how) -> dict[str, set[int]]:
    """The numbers of the pictures of every split."""
    return {split: {int(image[0, 0, 0]) for image in data.load(str(folder), split, **how).images} for split in SPLITS}


def place(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def test_pictures_are_split_by_their_names(tmp_path: Path) -> None:
    save(tmp_path, range(100))
    before = loaded(tmp_path)
    want = {split: {n for n in range(100) if low <= place(f"{n}.png") < high} for split, low, high in
            (("train", 0.2, 1.0), ("validation", 0.1, 0.2), ("test", 0.0, 0.1))}  # fmt: skip
    assert before == want and min(map(len, want.values())) > 5
    save(tmp_path, range(100, 120))
    after = loaded(tmp_path)
    assert all(before[split] == {n for n in after[split] if n < 100} for split in SPLITS)


@pytest.mark.parametrize("n", [3, 4, 7, 12])
def test_a_small_folder_has_an_example_in_every_split(tmp_path: Path, n: int) -> None:
    save(tmp_path, range(n))
    parts = loaded(tmp_path)
    assert min(map(len, parts.values())) >= 1 and sum(map(len, parts.values())) == n == len(set.union(*parts.values()))


def test_two_pictures_are_too_few(tmp_path: Path) -> None:
    save(tmp_path, range(2))
    with pytest.raises(DataError, match="at least 3 images"):
        data.load(str(tmp_path), "train")


def test_every_class_is_trained_where_a_tenth_of_train_is_held_out(tmp_path: Path) -> None:
    for place_, name in enumerate("abc"):
        save(tmp_path / "train" / name, range(20 * place_, 20 * place_ + 20))
        save(tmp_path / "test" / name, range(200 + place_, 201 + place_))
    train, validation = (data.load(str(tmp_path), split) for split in ("train", "validation"))
    assert set(train.labels.tolist()) == {0, 1, 2} and len(validation) + len(train) == 60
    parts = loaded(tmp_path)
    assert not parts["train"] & parts["validation"] and parts["test"] == {200, 201, 202}
    held = {20 * place_ + i for place_, name in enumerate("abc") for i in range(20) if place(f"{name}/{20 * place_ + i}.png") < 0.1}
    assert parts["validation"] == held
    assert loaded(tmp_path, splits=1)["validation"] == {54, 55, 56, 57, 58, 59}  # nothing but the last class


def test_a_class_sorted_archive_holds_out_every_class(tmp_path: Path) -> None:
    image = np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1)
    np.savez(tmp_path / "train.npz", image=image, label=np.arange(200) // 50)
    np.savez(tmp_path / "test.npz", image=image[:5], label=np.zeros(5, int))
    train, validation = (data.load(str(tmp_path), split) for split in ("train", "validation"))
    assert len(validation) == 20 and set(validation.labels.tolist()) == set(train.labels.tolist()) == {0, 1, 2, 3}
    assert sorted([*train.images.ravel(), *validation.images.ravel()]) == list(range(200))


@pytest.mark.parametrize("names", [("Train", "Test", "VAL"), ("training", "testing", "Valid"), ("TRAINING", "Testing", "Validation")])
def test_parts_are_found_in_any_case_of_letters(tmp_path: Path, names: tuple[str, ...]) -> None:
    for start, name in enumerate(names):
        save(tmp_path / name, range(10 * start, 10 * start + 4))
    assert loaded(tmp_path) == {"train": {0, 1, 2, 3}, "test": {10, 11, 12, 13}, "validation": {20, 21, 22, 23}}
    assert data.load(str(tmp_path), "train", splits=1).num_classes == 3  # as it was


def test_the_rule_is_kept_in_the_configuration(tmp_path: Path) -> None:
    new = config.to_json(DataConfig("x"))
    assert new["splits"] == 4 and config.from_json(DataConfig, new) == DataConfig("x")
    old = json.loads(json.dumps({name: value for name, value in new.items() if name != "splits"}))
    assert config.from_json(DataConfig, old).splits == 1
    assert [DataConfig("x").as_begun({**new, "splits": rule}).splits for rule in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert DataConfig("x").as_begun(old).splits == 1 == DataConfig("x", splits=1).as_begun(old).splits
    for begun, asked in ((old, 2), (new, 1), (new, 2), (new, 3)):  # a rule that was asked for is not passed over
        with pytest.raises(ConfigError, match=f"data.splits: wanted {begun.get('splits', 1)}, the rule by .* began, got {asked}"):
            DataConfig("x", splits=asked).as_begun(begun)
    for rule in (0, 5):
        with pytest.raises(ConfigError, match="data.splits"):
            DataConfig("x", splits=rule)


def test_class_folders_with_numbers_are_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    for number in range(12):
        save(tmp_path / "train" / str(number), range(10 * number, 10 * number + 10))
    for splits, names in ((4, range(12)), (3, range(12)), (2, range(12)), (1, sorted(range(12), key=str))):
        train = data.load(str(tmp_path), "train", splits=splits)
        assert [list(names)[label] for label in train.labels] == [int(image[0, 0, 0]) // 10 for image in train.images]


@pytest.mark.parametrize(
    "names",
    [
        ("class 1", "class 2", "class 10"), ("1", "2", "10", "background"), ("a2b9", "a2b10", "a10b1"), ("01", "1", "2"), ("a", "a1", "b"),
        ("9.5", "10.5"),
    ],
)  # fmt: skip
def test_numbers_within_the_names_of_class_folders_count_as_numbers(tmp_path: Path, names: tuple[str, ...]) -> None:
    """In runs that begin; a run of rule 3 keeps the order of the alphabet, and its labels."""
    for number, name in enumerate(names):
        save(tmp_path / name, range(20 * number, 20 * number + 20))
    for splits, wanted in ((4, names), (3, tuple(sorted(names)))):
        train = data.load(str(tmp_path), "train", splits=splits)
        assert train.features["label"].names == wanted
        assert [wanted[label] for label in train.labels] == [names[int(image[0, 0, 0]) // 20] for image in train.images]


def test_a_run_of_an_old_rule_goes_on_by_it_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training/ and Testing/ are two classes by rule 1, and parts since then."""
    save(tmp_path / "set" / "Training", range(40))
    save(tmp_path / "set" / "Testing", range(40, 60))
    data_and_run = [f"--data.name={tmp_path}/set", "--train.batch_size=8", f"--workdir={tmp_path}/run"]
    words = ["train", "pca", "--model.components=2", "--report.samples=0", *data_and_run]
    assert main([*words, "--data.splits=1"]) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert f"{tmp_path}/run keeps the rule of splits by which it began: 1, not 4\n" in capsys.readouterr().out
    assert main([*words, "--data.splits=2"]) == 2
    assert "--data.splits: wanted 1, the rule by which this run began, got 2" in capsys.readouterr().err
    assert main(["evaluate", f"{tmp_path}/run"]) == 0
    assert "(6 images)" in capsys.readouterr().out  # a tenth of 60
    seen: list = []
    monkeypatch.setattr(cli, "train", lambda experiment, *_, **__: seen.append(experiment.model.num_classes) or 130)
    assert main(["train", "classifier", *data_and_run]) == 130 and seen == [2]  # sizes come from the data as the run splits them


@pytest.mark.parametrize("closed", [".", "train", "train/b", "train/b/deeper"])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch, capsys, closed: str) -> None:
    """As for a user without the right to read it; those who run the tests may read everything."""
    for part in ("train/a", "train/b", "test/a", "test/b"):
        save(tmp_path / part, range(5))
    save(tmp_path / "train/b/deeper", range(1))
    folder = tmp_path / closed

    def denied(real):
        def read(path=".", *args):
            if Path(path) == folder:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *args)

        return read

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, denied(getattr(os, name)))
    assert main(["train", "vae", f"--data.name={tmp_path}", f"--workdir={tmp_path / 'run'}"]) == 3
    assert capsys.readouterr().err == f"jaxgen: {folder}: wanted a file or folder that can be read, got Permission denied\n"
