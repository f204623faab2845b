"""The commands on codes, neighbours and classes, from end to end: over the table of models, and by `jaxgen` on a run."""

import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from all_models import CONFIGS, ONE_EACH, data_of, model_of
from model_table import TABLE
from PIL import Image
from test_models import ALL

from jaxgen import commands, latent
from jaxgen.__main__ import main
from jaxgen.data import Dataset
from jaxgen.data.features import ClassLabel
from jaxgen.errors import ConfigError
from jaxgen.experiment import Experiment
from jaxgen.reports import latent_verbs
from jaxgen.runs import figures

CODES = ["vae", "vae of a vector", "vae of a label", "vae_gan", "autoencoder", "implicit_autoencoder"]
CODES += ["implicit_autoencoder by REINFORCE", "pca", "nvae"]
EXACT_OF_A_LABEL = [name for name in CONFIGS if name.endswith(" of a label") and name != "vae of a label"]
APPLIES = {  # command -> the models of the table that it works on
    "reconstruct": [*CODES, "vqvae", "vqvae2_codes", "vqvae2"],
    "interpolate": [*CODES, "gan", "conditional_gan"],
    "traverse": CODES,
    "codemap": [*CODES, "pca of points"],
    "neighbours": [name for name in ONE_EACH.values() if name not in ("classifier", "language_model", "stack_gru", "autoregression")],
    "classify": [*EXACT_OF_A_LABEL, "vae of a label", "vae_gan", "vqvae2", "latent_diffusion"],
}
# Nothing depends on which model draws the samples or has the likelihood, only on what they are of: `make thorough` has them all. Nor on
# which of the auto-encoders has the codes, only on whether they have a variance and what the model is given; test_latent.py has the others.
SAME_CODES = {"vae", "implicit_autoencoder"}
REPEATED = dict.fromkeys(("reconstruct", "interpolate", "traverse", "codemap"), SAME_CODES) | {
    "neighbours": {*APPLIES["neighbours"]} - {"gated_pixelcnn of a vector", "conditional_gan", "pix2pix", "nice", "gaussian of low rank"},
    "classify": {f"{entry.name} of a label" for entry in TABLE[2:]} | {"flow_matching of a label", "vae_gan"},
}
WITHOUT_PICTURE = ["pca of points", "gan of points", "flows of a vector", "gaussian of low rank"]
WITHOUT_PICTURE = dict.fromkeys(WITHOUT_PICTURE, ("neighbours",))  # by default ("classify",)
OPTIONS = {
    "reconstruct": commands.Reconstruct("run", n=3),
    "interpolate": commands.Interpolate("run", n=2, steps=3, way="spherical"),
    "traverse": commands.Traverse("run", image=1, dimensions=2, steps=3),
    "codemap": commands.CodeMap("run"),
    "neighbours": commands.Neighbours("run", n=8, rows=2, k=3),
    "classify": commands.Classify("run", batch_size=8),
}


def carry_out(command: str, name: str, folder: Path) -> list[Path]:
    """The pictures that a command writes for a model of the table."""
    config, dataset = CONFIGS[name], data_of(CONFIGS[name])
    work = getattr(latent_verbs, command)
    work(OPTIONS[command], Experiment(config), model_of(name), lambda split: dataset, lambda file: folder / file)
    return list(folder.glob("*.png"))


@pytest.mark.parametrize("command", OPTIONS)
def test_a_command_works_on_all_models_that_it_applies_to(command, tmp_path, capsys):
    names = [name for name in APPLIES[command] if ALL or name not in REPEATED.get(command, ())]
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        pictures = carry_out(command, name, folder)
        out = capsys.readouterr().out
        assert len(pictures) == (command not in WITHOUT_PICTURE.get(name, ("classify",))), name
        assert all(np.asarray(Image.open(path)).std() > 0 and str(path) in out for path in pictures), name
        assert command != "classify" or re.match(r"test accuracy +\d\.\d{4} \+- \d\.\d{4}  \(24 images\)\ntest log_loss ", out), name


@pytest.mark.parametrize("command", OPTIONS)
def test_it_refuses_all_others_in_one_line_that_says_which_have_it(command, tmp_path):
    names = CONFIGS if command != "neighbours" else ONE_EACH.values()
    for name in [name for name in names if name not in APPLIES[command]]:
        with pytest.raises(ConfigError, match="^model: wanted a ") as error:
            carry_out(command, name, tmp_path)
        assert "\n" not in str(error.value) and not list(tmp_path.iterdir()), name
    with pytest.raises(ConfigError) as error:
        latent.codes.check_codes(model_of("gan"))
    assert re.fullmatch(r"model: wanted a model whose codes are vectors \(Autoencoder, .*PCA, VAE\b.*\), got GAN", str(error.value))


# --- By the command line --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A VAE of digits given the label, after a few steps."""
    folder = tmp_path_factory.mktemp("latent") / "run"
    words = ["--model.hidden=16", "--model.latent=3", "--train.steps=30", "--train.eval_every=30"]
    words += ["--report.samples=0", "--report.rulers=False"]
    assert main(["train", "vae", *words, f"--workdir={folder}"]) == 0
    return folder


def said(capsys, *words) -> str:
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize("name", [name for name in APPLIES["reconstruct"] if name != "pca"])  # which projects any real numbers
def test_images_of_other_levels_are_not_reconstructed(name):
    """Also by a model that does it in a program of its own, in which values are not known."""
    config = CONFIGS[name]
    with pytest.raises(ConfigError, match=f"^image: wanted values in 0..{config.levels - 1}, got a maximum of {config.levels}"):
        model_of(name).reconstruct(jax.device_put(np.full((2, *config.image_shape), config.levels, np.uint8)))


def test_each_command_writes_its_picture_and_says_where(run, capsys):
    out = said(capsys, "reconstruct", run, "--n=5")
    assert re.match(r"test squared error of reconstructions, .*: 0\.\d+ \+- 0\.\d+  \(n = 360\)\n5 images", out)
    assert np.asarray(Image.open(run / "reconstructions.png")).shape[1] == 4 + 4 * (76 + 4)  # two pairs in a row, an outline of 2
    out = said(capsys, "interpolate", run, "--n=2", "--steps=4", "--split=validation", f"--out={run / 'ways.png'}")
    assert out == f"2 linear ways of 4 codes between two validation images (outlined in orange): {run / 'ways.png'}\n"
    assert np.asarray(Image.open(run / "ways.png")).shape == (4 + 2 * 80, 4 + 6 * 80, 3)
    out = said(capsys, "traverse", run, "--dimensions=2")
    assert out.startswith("KL in nats of each dimension over 360 test images, the largest first:\n  z") and "(1 more)" in out
    assert f"of the variance): {run / 'codemap.png'}" in said(capsys, "codemap", run)
    out = said(capsys, "neighbours", run, "--n=20")
    assert re.search(r"samples +0\.\d+ \+- 0\.\d+  \(n = 20\), \d+ at distance 0\n +test images +0\.\d+ .*\(n = 360\), 0 at", out)
    assert (run / "neighbours.png").exists()
    out = said(capsys, "classify", run, "--samples=2", "--bound=importance")
    assert "importance_bound, a lower bound, 2 draws for each example; log p(y): the frequencies of the training split\n" in out


def test_a_wrong_option_is_one_line(run, capsys):
    for words, wanted in [
        (["interpolate", run, "--steps=1"], "--steps: wanted 2 or more, got 1"),
        (["interpolate", run, "--way=straight"], "--way: wanted 'linear' or 'spherical', got 'straight'"),
        (["traverse", run, "--reach=0"], "--reach: wanted a positive number, got 0.0"),
        (["traverse", run, "--image=360"], "--image: wanted a number in 0..359, an image of the test split, got 360"),
        (["neighbours", run, "--k=0"], "--k: wanted a positive integer, got 0"),
        (["codemap", run, "--out=a.jpg"], "--out: wanted a file that ends with .png, got a.jpg"),
    ]:
        assert main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith(f"jaxgen: {wanted}")


def test_a_generator_that_repeats_its_training_examples_is_seen(tmp_path, capsys, monkeypatch):
    """Half of the samples are training examples, and the share of samples that are nearer than test examples says so."""
    generator = np.random.default_rng(0)
    config = CONFIGS["vae"]
    sets = [Dataset.from_columns({"image": generator.integers(0, 3, (n, 4, 4, 1), np.uint8)}, config.features) for n in (200, 100)]
    copies = np.concatenate([sets[0].images[:10], generator.integers(0, 3, (10, 4, 4, 1), np.uint8)])
    monkeypatch.setattr(latent_verbs, "draw_for", lambda *_: copies)
    read = lambda split: sets[split == "test"]  # noqa: E731
    latent_verbs.neighbours(commands.Neighbours("run", n=20), Experiment(config), model_of("vae"), read, partial(Path, tmp_path))
    out = capsys.readouterr().out
    samples = re.search(r"samples +([\d.]+) .*\(n = 20\), (\d+) at distance 0", out)
    real = re.search(r"test images +([\d.]+) .*\(n = 100\), (\d+) at distance 0", out)
    assert samples[2] == "10" and real[2] == "0" and float(samples[1]) < 0.6 * float(real[1])
    share = float(re.search(r"  ([\d.]+)% of the samples are nearer", out)[1])
    assert 50 <= share <= 65


def test_the_map_has_a_colour_and_a_name_for_each_class_that_occurs():
    points, labels = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32), np.arange(40) % 2 * 2
    named = figures.class_plot(points, labels, ("a", "b", "$x_1$"), ("one", "two"), "title")
    other = figures.class_plot(points, None, (), ("one", "two"), "title")
    assert named.shape == other.shape and (named != other).any()
    many = figures.class_plot(points, np.arange(40), tuple(map(str, range(40))), ("one", "two"), "title")
    assert len(np.unique(many.reshape(-1, 3), axis=0)) > len(np.unique(other.reshape(-1, 3), axis=0))


def test_the_map_of_a_model_without_labels_is_coloured_by_those_of_the_data(tmp_path, monkeypatch):
    config, seen = CONFIGS["vae"], []
    columns = {"image": data_of(config).images, "label": np.arange(24, dtype=np.int32) % 2}
    dataset = Dataset.from_columns(columns, config.features | {"label": ClassLabel(2, ("cat", "dog"))})
    monkeypatch.setattr(figures, "class_plot", lambda *arguments: seen.append(arguments) or np.zeros((2, 2, 3), np.uint8))
    latent_verbs.codemap(commands.CodeMap("run"), Experiment(config), model_of("vae"), lambda split: dataset, partial(Path, tmp_path))
    ((points, labels, names, axes, title),) = seen
    assert (labels == columns["label"]).all() and names == ("cat", "dog") and title == "codes of 24 test images"
