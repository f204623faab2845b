"""Names of classes: read from folders, kept in the run's configuration, shown in lists and grids, and taken by --label."""

import dataclasses
import json
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import jaxgen
from jaxgen import cli, config, data, experiment, run_commands
from jaxgen.__main__ import main
from jaxgen.data import DataConfig, Dataset, class_names, tfds
from jaxgen.data.features import ClassLabel, Points
from jaxgen.data.features import Image as Images
from jaxgen.data.images import SPLITS
from jaxgen.errors import ConfigError, DataError
from jaxgen.experiment import Experiment
from jaxgen.models import MODELS, ClassifierConfig, GANConfig, PCAConfig, VAEConfig
from jaxgen.reports import drawing, first_line
from jaxgen.runs import checkpoint, directory, figures

NAMES = ("big square", "circle", "круг")
WORDS = ["train", "gated_pixelcnn", "--model.width=6", "--model.layers=1", "--model.head_width=8", "--data.name=./shapes"]
SHORT = ["--train.steps=2", "--train.eval_every=2", "--train.batch_size=16", "--report.completions=8", "--report.rulers=False"]


def save(folder: Path, values: range, shape: tuple[int, int] = (2, 2)) -> None:
    """Pictures that are filled with their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        Image.fromarray(np.full(shape, value, np.uint8)).save(folder / f"{value}.png")


def labels_by_name(path: Path, **how) -> tuple[tuple[str, ...], dict[int, int]]:
    """(names, {value of a picture: its label}) of a folder, all splits together."""
    parts = [data.load(str(path), split, **how) for split in SPLITS]
    found = {int(image[0, 0, 0]): label for part in parts for image, label in zip(part.images, part.labels.tolist(), strict=True)}
    assert len({part.features["label"] for part in parts}) == 1
    return parts[0].features["label"].names, found


# --- From the data -------------------------------------------------------------------------------------------------------------------


def test_the_folders_are_the_names_in_the_order_of_the_labels(tmp_path: Path) -> None:
    for place, name in enumerate(("круг", "circle", "big square")):
        save(tmp_path / name, range(10 * place, 10 * place + 10))
    names, labels = labels_by_name(tmp_path)
    assert names == NAMES
    assert labels == {value: 2 - value // 10 for value in range(30)}


def test_two_unicode_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    save(tmp_path / "bar", range(10))
    save(tmp_path / one, range(10, 20))
    save(tmp_path / two, range(20, 30))
    names, labels = labels_by_name(tmp_path)
    assert names == ("bar", one) and labels == {value: int(value >= 10) for value in range(30)}
    names, labels = labels_by_name(tmp_path, splits=1)  # a run that was begun with three classes keeps them
    assert names == ("bar", two, one) and labels == {value: (0, 2, 1)[value // 10] for value in range(30)}


def test_a_part_with_the_other_form_of_a_name_has_the_same_classes(tmp_path: Path) -> None:
    for part, form, start in (("train", "NFD", 0), ("test", "NFC", 100)):
        for place, name in enumerate(("bar", "café", "zoo")):
            save(tmp_path / part / unicodedata.normalize(form, name), range(start + 10 * place, start + 10 * place + 10))
    names, labels = labels_by_name(tmp_path)
    assert names == ("bar", unicodedata.normalize("NFC", "café"), "zoo")
    assert all(label == value % 100 // 10 for value, label in labels.items()) and len(labels) == 60


def test_tfds_gives_names_if_the_set_has_any() -> None:
    def features(label):
        return SimpleNamespace(info=SimpleNamespace(features={"image": image, "label": label}))

    image = SimpleNamespace(shape=(4, 4, 1), np_dtype=np.uint8)
    assert tfds._features(features(SimpleNamespace(num_classes=3, names=list(NAMES))), "x") == ((4, 4, 1), 3, NAMES)
    assert tfds._features(features(SimpleNamespace(num_classes=3, names=["0", "1", "2"])), "x") == ((4, 4, 1), 3, ())


def test_a_feature_has_as_many_names_as_classes_all_different() -> None:
    assert ClassLabel(3).names == () and ClassLabel(3, NAMES).show(np.array([2, 0])) == "круг\nbig square\n".encode()
    assert ClassLabel(3).show(np.array([2, 0])) == b"2\n0\n"
    with pytest.raises(ConfigError, match="names: wanted 4, one for every class, got 3"):
        ClassLabel(4, NAMES)
    with pytest.raises(ConfigError, match="names: wanted a different name for every class, got 'a' twice"):
        ClassLabel(3, ("a", "b", "a"))


def test_names_that_are_given_are_those_of_the_data_or_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.arange(30, dtype=np.uint8).reshape(30, 1, 1), label=np.arange(30) % 3)
    name = str(tmp_path / "a.npz")
    assert data.load(name, "test", class_names=NAMES).features["label"] == ClassLabel(3, NAMES)
    assert data.load(name, "train", class_names=(*NAMES, "none")).features["label"] == ClassLabel(4, (*NAMES, "none"))
    with pytest.raises(DataError, match="a.npz/train: wanted 2 classes, as data.class_names has, got 3"):
        data.load(name, "train", class_names=NAMES[:2])
    with pytest.raises(ConfigError, match="data.class_names: wanted a different name for every class"):
        DataConfig(name, class_names=("a", "b", "a"))
    for place, folder in enumerate(NAMES):
        save(tmp_path / "own" / folder, range(10 * place, 10 * place + 10))
    own = str(tmp_path / "own")
    assert data.load(own, "train", class_names=NAMES).features == data.load(own, "train").features
    with pytest.raises(DataError, match="own/train: wanted class 1 to be 'ring', as data.class_names has, got 'circle'; a run keeps"):
        data.load(own, "train", class_names=("big square", "ring", "круг"))
    with pytest.raises(DataError, match="wanted 4 classes, as data.class_names has, got 3"):
        data.load(own, "train", class_names=(*NAMES, "none"))
    with pytest.raises(DataError, match="wanted labels of 3 classes, as data.class_names has, got no labels"):
        class_names.named(Dataset.from_arrays(np.zeros((3, 2, 2), np.uint8)).source, NAMES, "x")


def test_a_configuration_without_names_loads_and_a_run_keeps_its_names() -> None:
    saved = json.loads(json.dumps(config.to_json(DataConfig("x", class_names=NAMES))))
    assert config.from_json(DataConfig, saved) == DataConfig("x", class_names=NAMES)
    old = {name: value for name, value in saved.items() if name != "class_names"}
    assert config.from_json(DataConfig, old).class_names == () == DataConfig("x").as_begun(old).class_names
    assert DataConfig("y").as_begun(saved).class_names == NAMES
    assert DataConfig("y", class_names=("a", "b", "c")).as_begun(saved).class_names == ("a", "b", "c")


# --- What a word means ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "names", "label"),
    [
        ("circle", NAMES, 1), ("big square", NAMES, 0), ("круг", NAMES, 2), ("2", NAMES, 2), (2, NAMES, 2),
        ("caf\u00e9", ("a", "cafe\u0301"), 1), ("cafe\u0301", ("a", "caf\u00e9"), 1),
        ("10", tuple(map(str, range(12))), 10), ("10", ("5", "10", "20"), 1), ("1", ("5", "10", "20"), 1), (1, ("1", "2", "3"), 1),
        ("1", ("1", "2", "3"), 0), ("01", ("1", "01"), 1), ("-1", ("0", "-1"), 1), ("7", (), 7), (-1, (), -1),
    ],
)  # fmt: skip
def test_a_word_is_a_name_and_else_a_number(word, names, label) -> None:
    assert class_names.find(word, names, len(names) or 10, "--label") == label


@pytest.mark.parametrize(
    ("word", "names", "said"),
    [
        ("cirlce", NAMES, "--label: wanted a class: big square, circle, круг, or 0..2, got 'cirlce'; did you mean circle?"),
        ("3", NAMES, "--label: wanted a class: big square, circle, круг, or 0..2, got '3'"),
        ("-1", NAMES, "--label: wanted a class: big square, circle, круг, or 0..2, got '-1'"),
        ("1.0", NAMES, "--label: wanted a class: big square, circle, круг, or 0..2, got '1.0'"),
        ("٢", NAMES, "--label: wanted a class: big square, circle, круг, or 0..2, got '٢'"),
        ("circle", (), "--label: wanted a class in 0..2 (the run has no names of classes), got 'circle'"),
    ],
)
def test_an_unknown_word_is_one_line(word, names, said) -> None:
    with pytest.raises(ConfigError) as error:
        class_names.find(word, names, 3, "--label")
    assert str(error.value) == said


# --- Classes without examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "feature", "said"),
    [
        ([0, 1, 2, 2], ClassLabel(3), ""),
        ([1, 2, 3, 1], ClassLabel(4), "class 0 of 4 has no example: labels go from 1 to 3; they are numbered from 0 here, so subtract 1"),
        ([0, 3, 3, 0], ClassLabel(4), "classes 1, 2 of 4 have no example"),
        ([1, 2, 2, 1], ClassLabel(3, NAMES), "class big square of 3 has no example"),
        ([0, 1, 1, 0], ClassLabel(3, NAMES), "class круг of 3 has no example"),
    ],
)
def test_classes_without_examples_are_named(labels, feature, said) -> None:
    columns = {"image": np.zeros((4, 1, 1, 1), np.uint8), "label": np.array(labels)}
    dataset = Dataset.from_columns(columns, {"image": Images((1, 1, 1), 2), "label": feature}, "mine")
    assert class_names.without_examples(dataset) == (f"mine/train: {said}" if said else "")


# --- num_classes comes from the data -------------------------------------------------------------------------------------------------


def test_the_number_of_classes_is_a_size_of_models_that_can_be_given_a_label() -> None:
    features = {"image": Images((4, 4, 1), 2), "label": ClassLabel(3, NAMES)}
    assert VAEConfig.sizes_from(features) == {"image_shape": (4, 4, 1), "levels": 2, "num_classes": 3}
    assert VAEConfig.sizes_from({"image": features["image"]}) == {"image_shape": (4, 4, 1), "levels": 2}
    assert ClassifierConfig.sizes_from(features)["num_classes"] == 3
    for without in (GANConfig, PCAConfig):
        assert without.sizes_from(features) == {"image_shape": (4, 4, 1), "levels": 2}
        assert without.sizes_from({"point": Points(2)}) == {"image_shape": (2,), "levels": 0}


def trained_as(words: list[str], monkeypatch) -> Experiment:
    """The experiment that `jaxgen train WORDS` would train."""
    seen = []
    monkeypatch.setattr(cli, "train", lambda experiment, *more, **options: seen.append(experiment) or 1)
    assert cli.command("train", words) == 1
    return seen[0]


# --- A run ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of a model of three classes, and its data."""
    folder = tmp_path_factory.mktemp("classes")
    for place, name in enumerate(NAMES):
        (folder / "shapes" / name).mkdir(parents=True)
        for index in range(30):
            pixels = np.random.default_rng([place, index]).integers(0, 2, (6, 5), np.uint8)
            Image.fromarray(pixels).save(folder / "shapes" / name / f"{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*WORDS, *SHORT, "--workdir=run", "--data.levels=2"]) == 0
    return folder


@pytest.fixture
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def run(capsys, *words) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    capsys.readouterr()
    return main(list(words)), *capsys.readouterr()


def test_the_run_has_the_names_and_shows_them(there, capsys) -> None:
    assert checkpoint.read_config("run")["data"]["class_names"] == list(NAMES)
    assert jaxgen.load("run").config.num_classes == 3
    code, out, err = run(capsys, "show", "run")
    assert (code, err) == (0, "") and "\nclasses     0 big square, 1 circle, 2 круг\n" in out and '"круг"' in out


def test_samples_of_a_class_by_its_name_without_the_data(there, tmp_path, capsys, monkeypatch) -> None:
    shutil.copytree("run", tmp_path / "alone")
    monkeypatch.chdir(tmp_path)
    drawn = {}
    monkeypatch.setattr(run_commands, "write_grid", lambda path, images, model, **more: drawn.update({Path(path).stem: (images, more)}))
    for out, word, label in (("a", "big square", 0), ("b", "круг", 2), ("c", "1", 1)):
        code, said, err = run(capsys, "sample", "alone", "--n=6", f"--label={word}", f"--out={out}.png")
        assert (code, err) == (0, "") and said.startswith(f"6 samples of the class {NAMES[label]} (label {label}), ")
        wanted = jaxgen.load("alone").sample(jax.random.key(0), 6, label=np.full(6, label, np.int32))
        assert drawn[out][0].tobytes() == np.asarray(wanted).tobytes() and drawn[out][1] == {"names": [NAMES[label]] * 6}
    assert run(capsys, "sample", "alone", "--n=5", "--out=each.png")[0] == 0
    assert drawn["each"][1] == {"names": [*NAMES, *NAMES[:2]]}
    code, said, err = run(capsys, "sample", "alone", "--n=9", "--label=circle", "--to=круг", "--out=to.png")
    assert code == 0 and said.startswith("9 samples from the class circle (label 1) to круг (label 2), ")
    assert drawn["to"][1] == {"names": ["circle", "", "круг"] * 3}
    code, _, err = run(capsys, "sample", "alone", "--label=cirlce")
    assert code == 2
    assert err == "jaxgen: --label: wanted a class: big square, circle, круг, or 0..2, got 'cirlce'; did you mean circle?\n"
    code, _, err = run(capsys, "sample", "alone", "--label=circle", "--to=squre")
    assert code == 2 and err.startswith("jaxgen: --to: wanted a class: big square, circle, круг, or 0..2, got 'squre'")


def test_completions_of_a_class_by_its_name_and_of_the_classes_of_the_images(there, capsys, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(drawing, "write_grid", lambda path, images, model, mask, **more: drawn.append(more))
    code, out, err = run(capsys, "complete", "run", "--n=8", "--label=circle")
    assert (code, err) == (0, "") and out.startswith("8 completions of the class circle (label 1), top given")
    assert run(capsys, "complete", "run", "--n=8")[0] == 0
    test = data.load("./shapes", "test", levels=2)
    own = [NAMES[label] for label in np.repeat(test.labels[:2], figures.COMPLETIONS_EACH)]
    assert drawn == [{"names": ["circle"] * 8}, {"names": own}]


def test_the_pictures_of_a_run_have_the_names(there) -> None:
    plain, line = figures.image_grid(np.zeros((64, 6, 5, 1), np.uint8), 2), figures.CAPTION
    for path in ("run/samples.png", "run/images/samples_00000002.png"):
        assert np.asarray(Image.open(path)).shape == (plain.shape[0] + 8 * line, *plain.shape[1:])
    assert np.asarray(Image.open("run/completions.png")).shape[0] > line


def test_a_run_goes_on_with_its_names(there, tmp_path, capsys) -> None:
    shutil.copytree("run", tmp_path / "run")
    shutil.copytree("shapes", tmp_path / "shapes")
    words = [*WORDS[:-1], f"--data.name={tmp_path / 'shapes'}", *SHORT, f"--workdir={tmp_path / 'run'}", "--data.levels=2"]
    (tmp_path / "shapes" / "circle").rename(tmp_path / "shapes" / "disc")
    code, _, err = run(capsys, *words)
    assert code == 3 and err.count("\n") == 1 and "wanted class 1 to be 'circle', as data.class_names has, got 'disc'" in err
    (tmp_path / "shapes" / "disc").rename(tmp_path / "shapes" / "circle")
    code, out, err = run(capsys, *words)
    assert code == 0 and "is finished at step 2" in out and "class_names" not in err


def test_a_run_without_names_goes_on_with_names(capsys) -> None:
    """As an earlier version began it, from a folder: neither its configuration nor its fingerprint has names."""
    old, new = (config.to_json(Experiment(VAEConfig(), DataConfig("x", class_names=names))) for names in ((), NAMES))
    before, now = ({"features": {"label": {"classes": 3} | more}, "sha256": "1"} for more in ({}, {"names": list(NAMES)}))
    directory.check_same_run(epath.Path("run"), {"config": old, "fingerprint": before}, new, now)
    assert capsys.readouterr().err == "jaxgen: data.class_names changed from [] to ['big square', 'circle', 'круг']\n"
    directory.check_same_run(epath.Path("run"), {"config": new, "fingerprint": now}, new, now)
    assert capsys.readouterr().err == ""


def test_num_classes_is_that_of_the_data_unless_it_is_0_and_a_run_keeps_its_own(there, tmp_path, monkeypatch) -> None:
    words = ["vae", "--data.name=./shapes", "--data.levels=2", f"--workdir={tmp_path / 'none'}"]
    assert trained_as(words, monkeypatch).model.num_classes == 3
    assert trained_as([*words, "--model.num_classes=0"], monkeypatch).model.num_classes == 0
    begun = config.to_json(Experiment(VAEConfig((6, 5, 1), 2), workdir=str(tmp_path / "none")))
    monkeypatch.setattr(checkpoint, "begun_config", lambda workdir: begun if workdir == str(tmp_path / "none") else {})
    assert trained_as(words, monkeypatch).model.num_classes == 0  # a run of before goes on as it was begun
    assert trained_as([*words, "--restart"], monkeypatch).model.num_classes == 3
    assert trained_as([words[0], *words[1:3], f"--workdir={tmp_path / 'new'}"], monkeypatch).model.num_classes == 3


def test_a_training_names_its_classes_and_warns_once_of_those_without_examples(capsys) -> None:
    image, label = np.random.default_rng(0).integers(0, 2, (40, 6, 5, 1)).astype(np.uint8), np.arange(40) % 2
    feature = ClassLabel(3, NAMES)
    dataset = Dataset.from_columns({"image": image, "label": label}, {"image": Images((6, 5, 1), 2), "label": feature}, "mine")
    given = Experiment(VAEConfig((6, 5, 1), 2, num_classes=3), DataConfig("arrays"))
    found = [experiment._with_class_names(given, dataset) for _ in range(2)]
    assert found == [dataclasses.replace(given, data=DataConfig("arrays", class_names=NAMES))] * 2
    assert capsys.readouterr().out == "warning: mine/train: class круг of 3 has no example\n"
    assert first_line.beginning(found[0], 0).endswith(", given the label (3 classes: big square, circle, круг)")
    without = Experiment(VAEConfig((6, 5, 1), 2), DataConfig("arrays"))
    assert experiment._with_class_names(without, dataset) == without and capsys.readouterr().out == ""
    assert first_line.beginning(without, 0).endswith("in runs/experiment")


# --- Pictures ------------------------------------------------------------------------------------------------------------------------


def test_names_stand_under_the_images_and_one_name_above_all() -> None:
    images, line, gap = np.full((4, 72, 72, 1), 1, np.uint8), figures.CAPTION, figures.GAP
    grid = figures.image_grid(images, 2, names=["circle", "big square", "", "круг"])
    assert grid.shape == (2 * (72 + line + gap) + gap, 2 * (72 + gap) + gap, 3)
    for index in range(4):
        top, left = gap + index // 2 * (72 + line + gap), gap + index % 2 * (72 + gap)
        assert (grid[top : top + 72, left : left + 72] == 255).all()
        ink = (grid[top + 72 : top + 72 + line, left : left + 72] < 64).any()
        assert ink == (index != 2)
    one = figures.image_grid(images, 2, names=["circle"] * 4)
    np.testing.assert_array_equal(one[line:], figures.image_grid(images, 2))
    assert (one[:line] < 64).any()
    np.testing.assert_array_equal(figures.image_grid(images, 2, names=[""] * 4), figures.image_grid(images, 2))


def test_a_long_name_is_cut_to_the_width_and_a_narrow_picture_has_none() -> None:
    for width in (72, 200):
        line = figures._caption("a very long name of a class with many words", width)
        assert line.shape == (figures.CAPTION, width, 3) and (line < 64).any() and (line[:, :1] > 64).all()
    assert (figures._caption("circle", 6) == figures.GAP_COLOR).all()
    np.testing.assert_array_equal(figures._caption("a\nb", 72), figures._caption("a b", 72))


def test_a_name_that_no_font_can_write_is_the_number_of_its_label(monkeypatch) -> None:
    assert figures.can_write("circle") and figures.can_write("круг") and not figures.can_write("\ue123\U000e0fff")
    model = SimpleNamespace(config=SimpleNamespace(modelled="image", features={"image": Images((2, 2, 1), 2), "label": ClassLabel(2)}))
    assert drawing.captions(model, ("a", "\udcff"), 3) == {"names": ["a", "1", "a"]}
    assert drawing.captions(model, (), 3) == {}


def test_small_images_are_enlarged_with_the_name_of_the_class_that_is_asked_for(tmp_path, monkeypatch) -> None:
    features = {"image": Images((4, 4, 1), 2), "label": ClassLabel(3), "low_resolution": Images((2, 2, 1), 2, of="image")}
    model = SimpleNamespace(config=SimpleNamespace(modelled="image", features=features))
    model.sample = lambda key, n, label, low_resolution: np.full((n, 4, 4, 1), np.max(label) // 2, np.uint8)
    named = features | {"label": ClassLabel(3, NAMES)}
    columns = {"image": np.zeros((5, 4, 4, 1), np.uint8), "label": np.arange(5) % 3, "low_resolution": np.zeros((5, 2, 2, 1), np.uint8)}
    drawn = []
    monkeypatch.setattr(drawing, "write_grid", lambda path, images, model, mask, **more: drawn.append((int(images[1, 0, 0, 0]), more)))
    for label in (2, None):
        drawing.upscale_images(model, Dataset.from_columns(columns, named), 8, tmp_path / "x.png", jax.random.key(0), label)
    assert drawn == [(1, {"names": ["круг"] * 8}), (0, {"names": ["big square"] * 4 + ["circle"] * 4})]


def test_every_command_that_takes_a_label_takes_a_name() -> None:
    for command in ("sample", "complete", "upscale"):
        assert cli.commands.parse(command, ["runs/x", "--label", "big cat"]).label == "big cat"
        assert cli.commands.parse(command, ["runs/x", "--label=007"]).label == "007"
        assert cli.commands.parse(command, ["runs/x"]).label is None
    assert cli.commands.parse("sample", ["runs/x", "--label=a", "--to=круг"]).to == "круг"


def test_old_configurations_of_the_table_name_no_classes() -> None:
    golden = json.loads((Path(__file__).parent / "golden" / "gated_pixelcnn" / "config.json").read_text("utf-8"))
    assert "class_names" not in golden["data"] and config.from_json([Experiment, *MODELS], golden).data.class_names == ()
