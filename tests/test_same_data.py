"""Data of a run that are not what they were: every command that reads them says so, and so does a run that goes on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from jaxgen import data, run_commands
from jaxgen.__main__ import main
from jaxgen.runs import checkpoint, manifest

PCA = ["train", "pca", "--train.batch_size=8", "--model.components=2", "--report.samples=0", "--report.rulers=False"]
MAY_BE_KNOWN = "examples that are tested now may have been trained on"
pytestmark = pytest.mark.usefixtures("no_curves")


def save(folder: Path, names) -> None:
    """Pictures of 4x4, of bytes that their number decides."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.random.default_rng(name).integers(0, 256, (4, 4), np.uint8)).save(folder / f"{name}.png")


def images(split: str) -> set[bytes]:
    return {image.tobytes() for image in data.load("./pictures", split, splits=1).images}


def without_other_prints(run: Path) -> None:
    """The checkpoint as a version wrote it that kept the print of the training split only."""
    (step,) = (epath.Path(run) / "checkpoints").iterdir()
    facts = manifest.read(step)
    del facts["fingerprint"]["validation"], facts["fingerprint"]["test"], facts["files"], facts["format"]
    (step / manifest.NAME).unlink()
    manifest.write(step, facts, durable=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with 60 pictures, and a run in it that was trained on them."""
    folder = tmp_path_factory.mktemp("same")
    save(folder / "pictures", range(100, 160))
    assert main([*PCA, f"--data.name={folder}/pictures", f"--workdir={folder}/run"]) == 0
    return folder


@pytest.fixture
def there(trained, tmp_path, monkeypatch):
    """A copy of the run and of its pictures that may be changed; the run reads them as ./pictures."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (step,) = (epath.Path(tmp_path) / "run" / "checkpoints").iterdir()
    facts = manifest.read(step)
    facts["config"]["data"]["name"] = "./pictures"
    del facts["files"], facts["format"]
    (step / manifest.NAME).unlink()
    manifest.write(step, facts, durable=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(capsys, *words) -> tuple[int, str]:
    """(exit code, stderr)."""
    capsys.readouterr()
    return main(list(words)), capsys.readouterr().err


def add(split: str, n: int = 1) -> None:
    """Adds n pictures whose names put them into this split."""
    names = [name for name in range(1000) if not Path(f"pictures/{name}.png").exists()]
    u = data.images._places([f"{name}.png" for name in names])
    low, high = {"test": (0.0, 0.1), "validation": (0.1, 0.2), "train": (0.2, 1.0)}[split]
    save(Path("pictures"), [name for name, place in zip(names, u, strict=True) if low <= place < high][:n])


@pytest.mark.parametrize("prints", ["of every split", "of training"])
def test_test_pictures_that_were_trained_on_are_not_tested_in_silence(tmp_path, monkeypatch, capsys, prints):
    """By rule 1, 20 pictures in front of 180 move all others to other places, and many from train into test."""
    monkeypatch.chdir(tmp_path)
    save(Path("pictures"), range(500, 680))
    trained_on = images("train")
    assert main([*PCA, "--data.name=./pictures", "--data.splits=1", "--workdir=run"]) == 0
    if prints == "of training":
        without_other_prints(Path("run"))
    assert command(capsys, "evaluate", "run") == (0, "")
    save(Path("pictures"), range(100, 120))
    test = images("test")
    assert (len(test), len(test & trained_on)) == (20, 15)
    code, err = command(capsys, "evaluate", "run")
    assert code == 3 and err.count("\n") == 1 and MAY_BE_KNOWN in err and "--allow-data-change" in err
    assert ("train split: wanted the 144 examples" if prints == "of training" else "test split: wanted the 18 examples") in err
    code, err = command(capsys, "evaluate", "run", "--allow-data-change")
    assert code == 0 and err.startswith("jaxgen: WARNING: ") and MAY_BE_KNOWN in err


def test_another_set_under_the_same_name_is_refused(there, capsys):
    assert command(capsys, "evaluate", "run") == (0, "")
    shutil.rmtree("pictures")
    save(Path("pictures"), range(300, 360))
    shown = [f"{name}.png" for name in range(100, 160)]
    for old, new in zip(sorted(shown), sorted(Path("pictures").iterdir()), strict=True):
        new.rename(Path("pictures") / old)
    code, err = command(capsys, "evaluate", "run")
    n = len(data.load("./pictures", "test"))
    assert code == 3 and f"got {n} examples that are not the same" in err


@pytest.mark.parametrize("name", ["evaluate", "complete", "upscale"])
def test_every_command_that_reads_data_compares_them(there, monkeypatch, capsys, name):
    drawn = []
    monkeypatch.setattr(run_commands, "completes", lambda model: True)
    monkeypatch.setattr(run_commands, "small_shape", lambda model: (2, 2, 1))
    monkeypatch.setattr(run_commands, "print_evaluation", lambda _, model, dataset, *more: drawn.append(dataset))
    for function in ("complete_examples", "upscale_images"):
        monkeypatch.setattr(run_commands, function, lambda model, dataset, *more: drawn.append(dataset))
    for split in ("train", "validation", "test"):
        before = len(data.load("./pictures", split))
        assert command(capsys, name, "run", f"--split={split}") == (0, "")
        assert len(drawn.pop()) == before
        add(split)
        code, err = command(capsys, name, "run", f"--split={split}")
        assert code == 3 and err.startswith(f"jaxgen: {split} split: wanted the {before} examples") and not drawn
        code, err = command(capsys, name, "run", f"--split={split}", "--allow-data-change")
        assert code == 0 and err.startswith(f"jaxgen: WARNING: {split} split: {before + 1} examples, not the {before}")
        assert len(drawn.pop()) == before + 1


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_picture_that_falls_into_another_split_is_noticed_on_resume(there, capsys, split):
    words = [*PCA, "--data.name=./pictures", "--workdir=run"]
    assert command(capsys, *words)[0] == 0
    add(split)
    code, err = command(capsys, *words)
    assert code == 2 and f"data fingerprint {split}.n changed from" in err and "--allow-data-change" in err
    code, err = command(capsys, *words, "--allow-data-change")
    assert code == 0 and f"WARNING: the {split} split of the data is not the one" in err
    assert command(capsys, *words, "--allow-data-change", "--train.batch_size=4")[0] == 2  # it allows nothing else


def test_a_run_of_a_version_with_fewer_prints_goes_on(there, capsys):
    without_other_prints(Path("run"))
    add("test")
    assert command(capsys, *PCA, "--data.name=./pictures", "--workdir=run")[0] == 0


def test_data_that_moved_are_named_by_data(there, capsys):
    Path("pictures").rename("elsewhere")
    code, err = command(capsys, "evaluate", "run")
    assert (code, err.count("\n")) == (3, 1) and "got nothing there; --data PATH says where the data of this run are now" in err
    assert command(capsys, "evaluate", "run", "--data=./elsewhere") == (0, "")
    save(Path("others"), range(60))
    assert command(capsys, "evaluate", "run", "--data=./others")[0] == 3
    code, err = command(capsys, "sample", "run", "--data=./elsewhere")
    assert code == 2 and "--data: wanted a model that draws for examples of its data, got PCA, which reads none" in err


def test_a_run_knows_its_data_from_every_working_directory(there, monkeypatch, capsys):
    words = ["--data.name=pictures/", "--data.size=3", "--data.mode=L", "--workdir=converted", "--data.data_dir=prepared"]
    assert command(capsys, *PCA, *words)[0] == 0
    saved = checkpoint.read_config("converted")["data"]
    assert (saved["name"], saved["data_dir"]) == (f"{there}/pictures", f"{there}/prepared")
    assert command(capsys, *PCA, *words) == (0, "")
    (there / "elsewhere").mkdir()
    monkeypatch.chdir(there / "elsewhere")
    shutil.rmtree(there / "converted" / "data-cache")
    assert command(capsys, "evaluate", f"{there}/converted") == (0, "")
    assert not list(Path.cwd().iterdir()) and (there / "converted" / "data-cache").exists()
    assert data.DataConfig("digits", data_dir="gs://b/x").absolute() == data.DataConfig("digits", data_dir="gs://b/x")
    Path("digits").mkdir()
    assert data.DataConfig("digits").absolute().name == "digits" and data.DataConfig("./digits").absolute().name == f"{Path.cwd()}/digits"


def test_a_run_that_goes_on_says_how_to_name_data_that_moved(there, capsys):
    Path("pictures").rename("elsewhere")
    code, err = command(capsys, *PCA, "--data.name=./pictures", "--workdir=run")
    assert code == 3 and err.endswith("got nothing there; --data.name PATH says where the data of this run are now\n")
    assert command(capsys, *PCA, "--data.name=./elsewhere", "--workdir=run")[0] == 0
    code, err = command(capsys, *PCA, "--data.name=./pictures", "--workdir=other")
    assert code == 3 and err.endswith("got nothing there\n")


def test_the_fingerprint_has_every_split(there):
    saved = checkpoint.read_fingerprint("run")
    for split in ("validation", "test"):
        assert saved[split] == json.loads(json.dumps(data.load("./pictures", split).content()))
    assert {name: saved[name] for name in ("n", "sha256")} == data.load("./pictures", "train").content()
