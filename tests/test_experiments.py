"""Every experiment script: its configuration is data, its model has the size that is written here, its laptop mode runs.

The suite runs the laptop modes that compile in seconds; JAXGEN_EXPERIMENTS=all runs every one (a few minutes on one core).
"""

import importlib
import json
import os
import re
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgen import cli, config
from jaxgen.experiment import Experiment
from jaxgen.measures.metrics import METRICS
from jaxgen.models import MODELS

ROOT = Path(__file__).resolve().parent.parent
# Parameters at full size and in laptop mode. A new script gets its line here.
PARAMETERS = {
    "autoencoder_digits": (91_345, 91_345),
    "classifier_digits": (29_066, 29_066),
    "conditional_gan_digits": (80_514, 80_514),
    "diagonal_bilstm_cifar10": (7_880_634, 50_832),
    "diagonal_bilstm_mnist": (64_001, 5_233),
    "flows_digits": (247_808, 25_088),
    "flow_matching_digits": (176_849, 10_593),
    "flow_matching_ring": (182_274, 1_442),
    "diffusion_cifar10": (35_746_307, 280_755),
    "diffusion_digits": (177_476, 10_932),
    "diffusion_mnist": (688_033, 41_985),
    "gan_digits": (75_394, 75_394),
    "gan_mnist": (336_386, 71_810),
    "gan_ring": (67_203, 67_203),
    "gated_pixelcnn_cifar10": (119_412_864, 72_072),
    "gated_pixelcnn_digits": (219_425, 13_921),
    "gated_pixelcnn_mnist": (3_706_817, 19_825),
    "iaf_digits": (518_560, 85_344),
    "iaf_mnist": (777_464, 777_464),
    "image_transformer_cifar10": (38_362_880, 20_626),
    "image_transformer_mnist": (401_665, 18_753),
    "image_transformer_upscale": (63_962_368, 37_970),
    "implicit_autoencoder_digits": (86_592, 86_592),
    "language_model_smiles": (412_707, 7_571),
    "latent_diffusion_digits": (286_004, 106_484),
    "made_digits": (362_048, 74_880),
    "made_mnist": (76_560_784, 785_284),
    "nade_digits": (148_672, 37_984),
    "nice_digits": (329_920, 16_832),
    "nvae_digits": (193_057, 15_369),
    "nvae_mnist": (583_293, 12_623),
    "pix2pix_photographs": (1_611_391, 27_927),
    "pixelcnn_cifar10": (3_328_353, 43_344),
    "pixelcnn_mnist": (143_873, 3_121),
    "pixelcnn_pp_cifar10": (77_244_104, 146_244),
    "pixelcnn_pp_mnist": (8_602_694, 145_046),
    "pixelsnail_cifar10": (91_371_816, 14_624),
    "pixelsnail_mnist": (2_266_434, 4_766),
    "realnvp_cifar10": (3_074_319, 26_871),
    "realnvp_digits": (205_221, 16_797),
    "ride_digits": (13_288, 1_552),
    "row_lstm_cifar10": (7_074_126, 49_440),
    "row_lstm_mnist": (56_321, 4_625),
    "vae_digits": (100_081, 100_081),
    "vae_gan_digits": (133_714, 133_714),
    "vae_mnist": (688_464, 688_464),
    "vqvae2_digits": (359_689, 65_777),
    "vqvae2_mnist": (454_818, 64_682),
    "vqvae_digits": (169_121, 169_121),
}
NO_SINGLE_RUN = {  # scripts of another form
    "attacks_curves",
    "attacks_pictures",
    "attacks_unseen",
    "autoregression_sunspots",
    "classifier_scikit_learn",
    "code_prior_speed",
    "compare_autoregressive",
    "compare_densities",
    "compare_gans",
    "compare_inversion",
    "compare_latent",
    "compare_pairs",
    "compare_posteriors",
    "completions",
    "counting_languages",
    "deep_gmm_digits",
    "estimator_variances",
    "fit_speed",
    "flow_energies",
    "flow_matching_points",
    "flow_points",
    "gan_pictures",
    "gaussian_cifar10",
    "gmm_digits",
    "judge_samples",
    "known_samples",
    "layer_speed",
    "memory",
    "paired_bounds",
    "sampler_steps",
    "small_cifar10",
    "stack_gru_smiles",
    "step_cost",
}
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem != "__init__")
SCRIPTS = [name for name in NAMES if name not in NO_SINGLE_RUN]
# Samples of points without a likelihood; `make thorough` has all. Every family goes through its report on several devices in
# test_several_devices.py, and .ci/run ends with the laptop mode of gated_pixelcnn, images with a likelihood.
LAPTOPS = ["gan_ring"]
ALL = os.environ.get("JAXGEN_EXPERIMENTS") == "all"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def script(name: str):
    return importlib.import_module(f"experiments.{name}")


def test_every_script_is_here():
    assert sorted(PARAMETERS) == SCRIPTS
    for name in NAMES:
        assert f"python -m experiments.{name}" in script(name).__doc__


@pytest.mark.parametrize("name", SCRIPTS)
def test_configurations_are_data(name):
    full, laptop = script(name).config, script(name).laptop
    for one in (full, laptop):
        assert config.from_json([Experiment, *MODELS], json.loads(json.dumps(config.to_json(one)))) == one
    assert (full.workdir, laptop.workdir) == (f"runs/{name}", f"runs/{name}_laptop")
    if full.model.modelled == "tokens":
        assert laptop.data.name == "simple_molecules"  # strings that the library brings, with symbols of their own
    else:
        assert (full.data, full.model.image_shape, full.model.levels) == (laptop.data, laptop.model.image_shape, laptop.model.levels)
    assert laptop.train.steps < full.train.steps


@pytest.mark.parametrize("name", SCRIPTS)
def test_dry_run_builds_the_model_without_computing(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    modes = list(zip((["--dry-run"], ["--dry-run", "--laptop"]), PARAMETERS[name], strict=True))
    for words, parameters in modes if ALL or name in LAPTOPS else modes[:1]:
        with pytest.raises(SystemExit) as end:
            cli.main(script(name).config, script(name).laptop, words)
        out, err = capsys.readouterr()
        assert (end.value.code, err) == (0, "")
        assert f"parameters            {parameters:,}\n" in out
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", SCRIPTS if ALL else LAPTOPS)
def test_laptop_mode_runs(name, monkeypatch, tmp_path, capsys):
    """Two steps, the validation and the report, on digits and the ring as they are, else on noise of the right shape."""
    laptop = script(name).laptop
    words = ["--laptop", "--train.steps=2", "--train.eval_every=2", "--train.batch_size=8", f"--workdir={tmp_path / 'run'}"]
    words += [f"--stages.{stage}.train.steps=2" for stage in laptop.stages]
    if laptop.data.name not in ("digits", "ring", "simple_molecules"):
        shape, random, data = laptop.model.image_shape, np.random.default_rng(0), tmp_path / "data"
        data.mkdir()
        for split, size in (("train", 10), ("valid", 2), ("test", 2)):
            label = {"label": np.arange(size) % 10} if getattr(laptop.model, "num_classes", 0) else {}
            np.savez(data / f"{split}.npz", image=random.integers(0, laptop.model.levels, (size, *shape), np.uint8), **label)
        words.append(f"--data.name={data}")
    words += ["--report.samples=2", "--report.completions=2", "--report.time_samplers=False"]
    with pytest.raises(SystemExit) as end:
        cli.main(script(name).config, laptop, words)
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "")
    assert re.search(r"^test \w+ +\d", out, re.MULTILINE) and any((tmp_path / "run").glob("samples.*"))
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [2, 2]


@pytest.mark.skipif(os.environ.get("JAXGEN_EXPERIMENTS") != "all", reason="laptop modes: make thorough")
def test_languages_that_count_in_laptop_mode(capsys):
    counting = script("counting_languages")
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
        counting.main(counting.Options(laptop=True))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| a^n")]
    assert len(rows) == 12 and all(row.count("|") == 9 for row in rows)


def test_the_module_is_what_the_command_runs(monkeypatch, capsys):
    """`python -m experiments.vae_digits --help` names itself and shows its docstring."""
    monkeypatch.delitem(sys.modules, "experiments.vae_digits", raising=False)
    monkeypatch.setattr(sys, "argv", ["vae_digits", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("experiments.vae_digits", run_name="__main__", alter_sys=True)
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert out.startswith("usage: python -m experiments.vae_digits ") and "--laptop" in out and "auto-encoder" in out


@pytest.mark.parametrize("every", [1, 2])
def test_a_report_holds_what_its_configuration_says(every, tmp_path, capsys, no_curves):
    """How many samples, at which validations, rulers or none, which metrics; everything else of the run is the same."""
    laptop, run = script("vae_digits").laptop, tmp_path / "run"
    np.savez(tmp_path / "few.npz", image=np.random.default_rng(0).integers(0, 17, (100, 8, 8), np.uint8))
    words = ["--train.steps=3", "--train.eval_every=1", "--train.batch_size=8", f"--workdir={run}", f"--report.samples_every={every}"]
    words += [f"--data.name={tmp_path / 'few.npz'}", "--data.levels=17"]
    with pytest.raises(SystemExit) as end:
        metrics = [] if every == 1 else ["--report.metrics", "frechet_pixels"]
        cli.main(laptop, None, [*words, "--report.samples=3", f"--report.rulers={every == 1}", *metrics])
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "") and ("gaussian ruler" in out) == (every == 1)
    drawn = sorted(path.name for path in (run / "images").iterdir())
    assert len(drawn) == (3 if every == 1 else 2) and drawn[-1].endswith("3.png")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = {name.removeprefix("validation_") for row in rows for name in row if name.startswith("validation_")}
    other = "nats" if every == 1 else "frechet_pixels"
    floor = set() if every == 1 else {"frechet_pixels_floor"}
    assert measured & set(METRICS) == {"bits_per_dim_bound", other} | floor and ("nats per image" in out) == (every == 1)
    assert ("  frechet_pixels " in out) == (every == 2)
    with pytest.raises(SystemExit):
        cli.main(laptop, None, [*words, "--report.samples=0"])
    out, err = capsys.readouterr()
    assert "report.samples changed from 3 to 0" in err and "pictures  " in out and "samples.png" not in out.rpartition("pictures")[2]
