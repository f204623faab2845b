"""The command line: what goes wrong is one line that a newcomer can act on, and what goes right is what the library computes."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from compiling import IN_A_PROCESS, virtual_devices
from PIL import Image

import jaxgen
from jaxgen import benchmark, cli, config, data, evaluation, experiment, run_commands, trained, training
from jaxgen.__main__ import COMMANDS, main
from jaxgen.experiment import Experiment
from jaxgen.models import MODELS, GANConfig, GatedPixelCNNConfig
from jaxgen.processes import interruption
from jaxgen.reports import drawing
from jaxgen.runs import figures

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE_MODELS = [path for path in sorted((ROOT / "jaxgen").rglob("*.py")) if path.parent.name != "models"]
GATED = ["train", "gated_pixelcnn", "--model.width=6", "--model.layers=1", "--model.head_width=8"]
SHORT = ["--train.steps=4", "--train.eval_every=2", "--train.batch_size=16"]


def run(capsys, words) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `jaxgen WORDS`, in this process."""
    capsys.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as end:  # --help
        code = end.code
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data files and three small runs: a class-conditional Gated PixelCNN, a VAE and a GAN, all by `jaxgen train`."""
    folder, random, here = tmp_path_factory.mktemp("cli"), np.random.default_rng(0), Path.cwd()
    os.chdir(folder)
    try:
        pixels = random.integers(0, 2, (80, 6, 5), np.uint8)
        np.savez("my.npz", image=pixels, label=np.arange(80) % 3)
        grey = random.integers(0, 17, (100, 8, 8), np.uint8)
        bad = {"ok": grey, "narrow": grey[:, :, :7], "flat": grey.reshape(100, 64), "colour": np.stack([grey] * 3, -1)}
        bad |= {"few": grey[:20], "empty": grey[:0]}
        bad |= {"floats": grey / 17, "high": grey.astype(int) + 300 - grey[0, 0, 0], "negative": grey.astype(int) - 1}
        bad["hole"] = np.where(np.arange(64).reshape(8, 8) == 17, np.nan, grey)
        for name, image in bad.items():
            np.savez(f"{name}.npz", image=image)
        np.savez("noimage.npz", pixels=grey)
        np.savez("objects.npz", image=np.array([{}, {}], object))
        Path("text.npz").write_text("not an archive")
        Path("file").write_text("in the way")
        short = [*SHORT, "--train.eval_every=4"]
        players = ["--optimizer.players", "generator", "1e-3", "discriminator", "2e-3"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(benchmark, "print_methods", None)  # nothing is timed unless it is asked for
            assert main([*GATED, "--data.name=my.npz", "--model.num_classes=3", *SHORT, "--workdir=gated"]) == 0
            patch.setattr(figures, "curve", lambda *_: b"")  # one is enough: each takes tenths of a second
            vae = ["--model.num_classes=0", "--model.hidden=16", "--model.latent=2", "--report.samples=0", "--report.rulers=False"]
            assert main(["train", "vae", *vae, *short, "--workdir=vae"]) == 0
            assert main(["train", "gan", "--data.name=ring", "--model.hidden=16", *players, *short, "--workdir=gan"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


# --- What goes wrong -----------------------------------------------------------------------------------------------------------------

CONFIGS = {cli.module_name(model): config_class for config_class, model in MODELS.items()}
MODEL_NAMES = ", ".join(CONFIGS)
SETS = "sunspots, ring, grid, number_words, simple_molecules, digits, photographs"
UNKNOWN = "wanted a known option, got an unknown one"
OTHER_MODEL = "checkpoint is VAEConfig, config is GatedPixelCNNConfig: choose another workdir, or start over with --restart"
PLAYERS = "wanted a learning rate for every submodule with parameters, got ['generator']; add 'discriminator'"
NUMBERS = "store whole numbers 0 .. levels-1 as uint8; nothing is rounded here"
MORE = "more levels, up to 65536, are named: levels=, on the command line --data.levels"
TRAIN_ERRORS = [
    # data
    ("--data.name=narrow.npz --model.image_shape=8,8,1", 3, "narrow.npz/train: wanted images of shape [8, 8, 1] as the model, got ..."),
    ("--data.name=flat.npz", 3, "flat.npz:image: wanted shape [N, H, W] or [N, H, W, C] with C of 1 to 4, got [100, 64]"),
    ("--data.name=floats.npz", 3, f"floats.npz:image: wanted dtype uint8, got float64; {NUMBERS}"),
    ("--data.name=hole.npz", 3, f"hole.npz:image[0, 2, 1, 0]: wanted uint8, got nan (float64); {NUMBERS}"),
    ("--data.name=high.npz", 3, f"high.npz:image[0, 0, 0, 0]: wanted a value in 0..255 (8 bits), got 300; {MORE}"),
    ("--data.name=negative.npz", 3, "negative.npz:image[0, ..., 0]: wanted a value in 0..255 (8 bits), got -1"),
    ("--data.name=ok.npz --data.levels=16", 3, "ok.npz:image[0, ..., 0]: wanted a value in 0..15 (16 levels), got 16"),
    ("--data.name=empty.npz", 3, "empty.npz:image: wanted at least one image, got 0 (the set is empty)"),
    ("--data.name=few.npz", 3, "few.npz/train: wanted at least one batch of 64 images, got 16; batch_size=16 or less"),
    ("--data.name=noimage.npz", 3, "noimage.npz: wanted an array named 'image' or 'point', got pixels; numpy.savez(...) writes it"),
    ("--data.name=text.npz", 3, "text.npz: wanted a readable file, written by numpy.savez, got one that begins with b'not an'"),
    ("--data.name=objects.npz", 3, "objects.npz: wanted a readable file, got ValueError: Object arrays cannot be loaded ..."),
    ("--data.name=absent.npz", 3, "absent.npz: wanted an existing file or folder, got nothing there"),
    ("--data.name=mnsit", 3, f"mnsit: wanted {SETS}, a TFDS set or an existing path, got ...; did you mean mnist?"),
    ("--data.name=my.npz --model.num_classes=4", 3, "my.npz/train: wanted 4 classes as the model, got 3"),
    ("--data.name=ok.npz --model.num_classes=4", 3, "ok.npz/train: wanted 4 classes as the model, got no labels"),
    ("--data.name=colour.npz --model.width=8", 2, "--model.width: wanted a positive multiple of the 3 channels, got 8; try 9"),
    ("--data.name=ring", 3, "data: wanted a set of images, for this model, got points of size 2"),
    ("--data.name=", 2, f"--data.name: wanted {SETS}, a TFDS set or a path, got nothing"),
    # fields
    ("--model.widht=8", 2, f"--model.widht: {UNKNOWN}; did you mean --model.width?"),
    ("--optimizer.lerning_rate=1", 2, f"--optimizer.lerning_rate: {UNKNOWN}; did you mean --optimizer.learning_rate?"),
    ("--optimizer.lr=1", 2, f"--optimizer.lr: {UNKNOWN}; did you mean --optimizer.learning_rate?"),
    ("--train.batch-size=0", 2, "--train.batch-size: wanted a positive integer, got 0"),
    ("--restrat", 2, f"--restrat: {UNKNOWN}; did you mean --restart?"),
    ("--model.width=wide", 2, "--model.width: wanted int, got 'wide'; see --help"),
    ("--model.width=8.5", 2, "--model.width: wanted int, got '8.5'; see --help"),
    ("--model.width=__import__('os').getcwd()", 2, "--model.width: wanted int, got \"__import__('os').getcwd()\"; see --help"),
    ("--model.width", 2, "--model.width: wanted int, got nothing; see --help"),
    ("--model.image_shape 8 8", 2, "--model.image_shape: wanted a tuple of 3: int, int, int, got '8 8'; see --help"),
    ("--optimizer.schedule=cosin", 2, "--optimizer.schedule: wanted 'constant' or 'cosine', got 'cosin'; did you mean cosine?"),
    ("--model.levels=1", 2, "--model.levels: wanted 2..65536, got 1"),
    ("--model.dropout=nan", 2, "--model.dropout: wanted a finite float, got nan"),
    ("--optimizer.learning_rate=-1", 2, "--optimizer.learning_rate: wanted a number in 0..1e+09, got -1.0"),
    ("--optimizer.learning_rate=nan", 2, "--optimizer.learning_rate: wanted a number in 0..1e+09, got nan"),
    ("--train.batch_size=0", 2, "--train.batch_size: wanted a positive integer, got 0"),
    ("--train.fsdp=3", 2, "--train.fsdp: wanted a divisor of the 1 devices, got 3; choose from [1]"),
    # where to
    ("--workdir=file", 2, "--workdir: wanted a folder that can be written, got .../file (Not a directory)"),
    ("--workdir=file/deeper", 2, "--workdir: wanted a folder that can be written, got .../file/deeper (Not a directory)"),
    ("--workdir=", 2, "--workdir: wanted a folder, got nothing"),
    ("--workdir=gs:/bucket", 2, "--workdir: wanted a folder, or one that starts with gs:// or s3:// or az://, got gs:/bucket"),
    ("--workdir=vae", 4, f"model: wanted a checkpoint of GatedPixelCNNConfig in .../vae, got VAEConfig; {OTHER_MODEL}"),
]  # fmt: skip
ERRORS = [
    ("trian", 2, f"command: wanted one of {', '.join(COMMANDS)}, got 'trian'; did you mean train?"),
    ("train", 2, f"MODEL: wanted one of {MODEL_NAMES}, got nothing"),
    ("train gated_pixelcn", 2, f"MODEL: wanted one of {MODEL_NAMES}, got gated_pixelcn; did you mean gated_pixelcnn?"),
    ("train --model.width 8", 2, f"MODEL: wanted one of {MODEL_NAMES}, got --model.width"),
    ("train gan --data.name ring --optimizer.players generator 1", 2, f"--optimizer.players: {PLAYERS}"),
    ("evaluate", 2, "RUN: wanted a run directory, got nothing"),
    ("evaluate nowhere", 4, "path: wanted a run directory with checkpoints, got nowhere; available steps: none; train first"),
    ("show file", 4, "path: wanted a run directory with checkpoints, got file; available steps: none; train first"),
    ("evaluate gated --step 3", 4, "--step: wanted one of [2, 4], got 3"),
    ("evaluate vae --stp 3", 2, f"--stp: {UNKNOWN}; did you mean --step?"),
    ("evaluate vae --step three", 2, "--step: wanted int or None, got 'three'; see --help"),
    ("evaluate vae --bound", 2, "--bound: wanted 'elbo' or 'importance', got nothing; see --help"),
    ("evaluate vae gan", 2, "jaxgen evaluate: wanted one run directory and options, got 'gan'"),
    ("evaluate vae --split tset", 2, "--split: wanted 'train' or 'validation' or 'test', got 'tset'; did you mean test?"),
    ("sample vae --n 0", 2, "--n: wanted a positive integer, got 0"),
    ("sample vae --label 3", 2, "--label: wanted none, since the model is not class-conditional, got 3"),
    ("sample gated --label 3", 2, "--label: wanted values in 0..2, got 3"),
    ("sample gated --temperature -1", 2, "--temperature: wanted a positive number, got -1.0"),
    ("sample gated --temperature 1e-46", 2, "--temperature: wanted at least 1.18e-38, since a smaller float32 counts as 0, got 1e-46"),
    ("sample vae --temperature 0.5", 2, "--temperature: wanted a model whose sampler takes it, got VAE"),
    ("sample vae --truncation 1", 2, "--truncation: wanted a model whose sampler takes it, got VAE"),
    ("sample gan --truncation 0", 2, "--truncation: wanted a positive number or None, got 0.0"),
    ("sample gan --method naive", 2, "--method: wanted a model whose sampler takes it, got GAN"),
    ("sample vae --n 2 --out file/a.png", 2, "--out: wanted a file that can be written, got file/a.png (.../file is not a folder)"),
    ("sample vae --n 2 --out vae", 2, "--out: wanted a file that ends with .png, got vae"),
    ("complete gated --n 2 --out a.jpg", 2, "--out: wanted a file that ends with .png, got a.jpg"),
    ("sample vae --seed -1", 2, "--seed: wanted an integer in 0..2**32-1, got -1"),
    ("sample vae --seed 99999999999999999999999", 2, "--seed: wanted an integer in 0..2**32-1, got 99999999999999999999999"),
    ("bench vae --out file/x.json", 2, "--out: wanted a file that can be written, got file/x.json (.../file is not a folder)"),
    ("bench vae --out vae", 2, "--out: wanted a file that can be written, got vae (it is a folder)"),
    ("bench --model gatd_pixelcnn", 2, "--model: wanted one of gated_pixelcnn, ..., got gatd_pixelcnn; did you mean gated_pixelcnn?"),
    ("evaluate vae --run gan", 2, f"--run: {UNKNOWN}; see --help"),
    ("bench --train_batch -1", 2, "--train_batch: wanted 0 or more, got -1"),
    ("complete gan", 2, "RUN: wanted a model that can complete images or strings, or continue a series, got GAN"),
]  # fmt: skip


def check_line(err: str, wanted: str) -> None:
    """One line; `...` in `wanted` stands for anything."""
    assert err.endswith("\n") and err.count("\n") == 1
    assert re.fullmatch(re.escape(f"jaxgen: {wanted}").replace(re.escape("..."), ".*"), err[:-1]), err


@pytest.mark.parametrize(("words", "code", "wanted"), TRAIN_ERRORS, ids=[words for words, *_ in TRAIN_ERRORS])
def test_a_wrong_training_is_one_line(there, capsys, monkeypatch, words, code, wanted):
    monkeypatch.setattr(training, "fit", None)  # whatever is wrong is found before the first step
    files = set(there.rglob("*"))
    got, out, err = run(capsys, [*GATED, "--workdir=never", *words.split(" ")])
    check_line(err, wanted)
    assert (got, out) == (code, "")
    assert {path.name for path in set(there.rglob("*")) - files} <= {"never", "checkpoints", "lock"}


@pytest.mark.parametrize(("words", "code", "wanted"), ERRORS, ids=[words for words, *_ in ERRORS])
def test_a_wrong_command_is_one_line(there, capsys, monkeypatch, words, code, wanted):
    for module, name in ((run_commands, "draw"), (experiment, "draw"), (benchmark, "measure")) if "--out" in words else ():
        monkeypatch.setattr(module, name, None)  # it is found before anything is drawn or measured
    monkeypatch.setattr(benchmark, "prepare_process", lambda cores: None)  # the next tests have all cores
    got, out, err = run(capsys, words.split(" "))
    check_line(err, wanted)
    assert (got, out) == (code, "")


def test_a_folder_that_is_here_goes_before_the_names_of_sets(there, capsys):
    Path("shapes").mkdir(exist_ok=True)
    code, _, err = run(capsys, [*GATED, "--data.name=shapes", "--workdir=never"])
    assert code == 3 and err.count("\n") == 1 and err.endswith("; did you mean ./shapes, which is here?\n")


def test_only_debug_shows_a_traceback(there, capsys, monkeypatch):
    code, _, err = run(capsys, ["evaluate", "nowhere", "--debug"])
    assert code == 4 and "Traceback" in err and err.splitlines()[-1].startswith("jaxgen: path: wanted")

    def bug(*_, **__):
        raise KeyError("two\nlines")

    monkeypatch.setattr(run_commands, "print_evaluation", bug)
    code, _, err = run(capsys, ["evaluate", "vae"])
    assert (code, err) == (1, "jaxgen: internal error: KeyError: 'two\\nlines'; --debug shows where\n")


INTERRUPT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "jaxgen.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from jaxgen.__main__ import main
sys.argv = ["jaxgen", "train", "vae"]
sys.exit(main())
"""


def test_ctrl_c_is_one_line_at_any_time(capsys, monkeypatch):
    """While jax is imported, and before anything is saved."""
    done = subprocess.run([sys.executable, "-c", INTERRUPT], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", interruption.LINE + "\n")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train_command", interrupted)
    code, out, err = run(capsys, ["train", "vae"])
    check_line(err, "interrupted; checkpoints that were saved before are intact")
    assert (code, out) == (130, "")


def test_another_set_in_the_same_folder_is_refused(there, capsys):
    code, _, err = run(capsys, [*GATED, "--data.name=my.npz", "--model.num_classes=0", *SHORT, "--workdir=gated"])
    assert code == 2 and err.count("\n") == 1
    assert "model.num_classes changed from 3 to 0" in err and "--restart" in err


def test_devices_and_a_missing_library_in_processes_of_their_own(tmp_path):
    """Eight virtual devices: the batch must divide; a dry run shows how parameters are split. A TFDS set without TensorFlow is one line."""
    words = [
        ["train", "vae", "--train.batch_size=12"],
        ["train", "vae", "--train.fsdp=8", "--dry-run"],
        ["train", "vae", "--data.name=mnist", f"--data.data_dir={tmp_path}"],
    ]
    program = f"from jaxgen.__main__ import main\n{IN_A_PROCESS}\nsys.exit([main(words) for words in {words}] != [2, 0, 3])"
    environment = os.environ | virtual_devices(8)
    if find_spec("tensorflow"):
        pytest.skip("TensorFlow is installed, and TFDS would start a download")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    batch, tensorflow = done.stderr.splitlines()
    assert batch == "jaxgen: --train.batch_size: wanted a multiple of the 8 devices, got 12; try 8 or 16"
    assert re.match(r"jaxgen: mnist \(not yet prepared in .*\): wanted TensorFlow, .*, got not installed; pip install", tensorflow)
    assert "{'data': 1, 'fsdp': 8} of 8 cpu device(s)" in done.stdout and "P('fsdp'" in done.stdout
    assert done.returncode == 0


# --- What goes right -----------------------------------------------------------------------------------------------------------------


def test_a_dry_run_computes_nothing_and_reads_nothing(there, capsys):
    """Parameters for 7.4 TB, and data that does not exist."""
    files = set(there.rglob("*"))
    words = ["train", "vae", "--model.hidden", "1000000", "900000", "--data.name=absent.npz", "--workdir=never", "--dry-run"]
    code, out, err = run(capsys, words)
    inner = 64 * 10**6 + 10**6 + 9 * 10**11 + 9 * 10**5 + 32 * 9 * 10**5 + 32
    outer = 16 * 9 * 10**5 + 9 * 10**5 + 9 * 10**11 + 10**6 + 10**6 * 64 * 17 + 64 * 17
    assert (code, err) == (0, "")
    assert re.search(r"parameters +([\d,]+)", out)[1] == f"{inner + outer:,}"
    assert ".features.layers[1].kernel.value" in out and "[1000000, 900000]" in out
    assert re.search(r"state per device +([\d,.]+) MiB", out)[1] == f"{((inner + outer) * 16 + 12) / 2**20:,.1f}"
    note = "the real run takes --model.image_shape and --model.levels from absent.npz; give them to see its sizes"
    assert out.startswith(f"a dry run reads no data: {note}\n")
    given = ["--model.image_shape=6,5,1", "--model.levels", "2", "--data.name=absent.npz", "--workdir=never", "--dry-run"]
    code, out, err = run(capsys, ["train", "vae", *given])
    assert (code, err) == (0, "") and "a dry run" not in out and "images [6, 5, 1] of 2 levels" in out
    assert set(there.rglob("*")) == files


def test_shape_and_levels_come_from_the_data(there):
    model = jaxgen.load("gated").config
    assert model == GatedPixelCNNConfig(image_shape=(6, 5, 1), levels=2, num_classes=3, layers=1, width=6, head_width=8)
    assert jaxgen.load("gan").config == GANConfig(image_shape=(2,), levels=0, hidden=16)


def test_evaluate_prints_what_the_evaluator_says(there, capsys, monkeypatch):
    code, out, err = run(capsys, ["evaluate", "gated", "--batch_size", "3"])
    result = evaluation.evaluate(jaxgen.load("gated"), data.load("my.npz", "test"))
    assert (code, err) == (0, "")
    first = f"test bits_per_dim {result['bits_per_dim']:.4f} +- {result['standard_error']:.4f} (8 images)"
    assert " ".join(out.splitlines()[0].split()) == first
    assert re.search(r"uniform ruler +1.0000 \+- 0.0000", out) and "gaussian ruler" in out
    code, out, _ = run(capsys, ["evaluate", "vae", "--split=validation", "--bound=importance", "--samples=3"])
    assert re.match(r"validation bits_per_dim_bound +\d\.\d{4} \+- 0.\d{4}  \(144 images\)", out)
    assert re.search("importance_samples +3", out)
    single = data.Dataset.from_arrays(np.zeros((1, 6, 5), np.uint8), np.array([2]), levels=2)
    monkeypatch.setattr(run_commands, "load_data", lambda *_: single)
    code, out, err = run(capsys, ["evaluate", "gated"])
    assert (code, err) == (0, "") and "(1 image)\n" in out and "nan" not in out and "+-" not in out
    monkeypatch.setattr(run_commands, "load_data", experiment.load_data)
    code, out, _ = run(capsys, ["evaluate", "gan"])
    assert out.startswith("test frechet_points ") and re.search("modes_covered +[0-8]\n", out) and "ruler" not in out


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_sample_draws_a_grid(there, tmp_path, capsys, monkeypatch):
    drawn = {}
    monkeypatch.setattr(run_commands, "write_grid", lambda path, images, model, mask=None: drawn.update({Path(path).stem: images}))

    def sample(name, *words):
        code, out, err = run(capsys, ["sample", "gated", "--n=6", f"--out={tmp_path / name}.png", *words])
        assert (code, err) == (0, "") and re.match(r"6 samples, [\d.]+ images/s \([\d.]+ s to compile\): ", out)
        return drawn[name]

    first = sample("first")
    model = jaxgen.load("gated")
    assert first.tobytes() == np.asarray(model.sample(jax.random.key(0), 6, label=np.arange(6, dtype=np.int32) % 3)).tobytes()
    assert first.shape == (6, 6, 5, 1) and first.dtype == np.uint8
    assert sample("again").tobytes() == sample("naive", "--method=naive").tobytes() == first.tobytes()
    assert sample("other", "--seed=1").tobytes() != first.tobytes()
    ones = np.asarray(model.sample(jax.random.key(0), 6, label=np.ones(6, np.int32)))
    assert sample("one", "--label=1").tobytes() == ones.tobytes()
    assert sample("sharp", "--temperature=0.01").tobytes() != first.tobytes()


def test_complete_keeps_what_is_given(there, capsys, monkeypatch):
    drawn, labels, draw = [], [], drawing.draw
    monkeypatch.setattr(drawing, "write_grid", lambda path, images, model, mask=None: drawn.append((images, mask)))
    monkeypatch.setattr(drawing, "draw", lambda *args, **options: labels.append(options["label"]) or draw(*args, **options))
    test = data.load("my.npz", "test")
    for keep in drawing.KEEP:
        code, out, err = run(capsys, ["complete", "gated", "--n=8", f"--keep={keep}"])
        assert (code, err) == (0, "") and f"{keep} given" in out
        images, mask = drawn[-1]
        given = np.repeat(test.images[:2], figures.COMPLETIONS_EACH, axis=0)
        np.testing.assert_array_equal(labels[-1], np.repeat(test.labels[:2], figures.COMPLETIONS_EACH))
        assert (images[:, mask] == given[:, mask]).all()
        assert (images[:, ~mask] != given[:, ~mask]).any()


def test_the_report_at_the_end_is_of_the_best_checkpoint(there, monkeypatch):
    class Loaded(Exception):
        pass

    def load(path, step=None, which="best", models=(), mesh=None):
        raise Loaded(str(path), step, which)

    monkeypatch.setattr(trained, "load", load)
    with pytest.raises(Loaded) as loaded:
        experiment.finish(Experiment(GatedPixelCNNConfig(), workdir="gated"))
    assert loaded.value.args == ("gated", None, "best")


def test_pictures_and_show(there, capsys):
    assert {f"gated/{name}.png" for name in ("samples", "completions", "curve")} <= {str(path) for path in Path("gated").glob("*.png")}
    assert pixels("gan/samples.png").ndim == 3 and not Path("gan/completions.png").exists()
    code, out, err = run(capsys, ["show", "gated"])
    shown, end = json.JSONDecoder().raw_decode(out)
    assert (code, err) == (0, "")
    assert config.from_json([Experiment, *MODELS], shown).model == jaxgen.load("gated").config
    count = sum(leaf.size for leaf in jax.tree.leaves(jaxgen.load("gated")))
    assert f"parameters  {count:,}" in out[end:]
    assert re.findall(r"step +(\d+)  bits_per_dim \d\.\d+", out[end:]) == ["2", "4"]


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 4, 3), (7, 9, 1)])
def test_known_halves(shape):
    height, width, _ = shape
    masks = {keep: drawing.known_mask(shape, keep) for keep in drawing.KEEP}
    assert masks["top"][: height // 2].all() and not masks["top"][height // 2 :].any()
    assert masks["left"][:, : width // 2].all() and not masks["left"][:, width // 2 :].any()
    assert (masks["bottom"] == ~masks["top"]).all() and (masks["right"] == ~masks["left"]).all()
    outside = masks["outside"]
    assert (outside == outside[::-1]).all() and (outside == outside[:, ::-1]).all()
    assert outside[0].all() and outside[:, 0].all() and not outside[height // 2, width // 2]


@pytest.mark.parametrize("path", OUTSIDE_MODELS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_branch_on_the_family_of_a_model(path):
    """Neither a class, nor its configuration, nor its file is named in code; what a model can do is read from its methods."""
    names = {name for one in MODELS.items() for name in (one[0].__name__, one[1].__name__, cli.module_name(one[1]))}
    named = {getattr(node, field, None) for node in ast.walk(ast.parse(path.read_text())) for field in ("id", "attr", "value", "name")}
    assert not names & {name for name in named if isinstance(name, str)}
