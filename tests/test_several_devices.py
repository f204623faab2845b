"""A run of each family, from its first step to the end of its report: on one device, on four; some on two processes of two devices each.

The numbers must be the same but for the order in which floats are added up. With JAXGEN_THOROUGH=1 every model is run on all.
"""

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from compiling import virtual_devices
from test_two_processes import PROGRAM, ROOT, end, numbers, start

from jaxgen import cli, data
from jaxgen.cli import module_name
from jaxgen.models import MODELS

THOROUGH = os.environ.get("JAXGEN_THOROUGH") is not None
DIGITS = ["--data.name={folder}/digits.npz", "--data.levels=17"]
RUNS = {  # model -> the words after its name; the autoregressive model has two processes in test_two_processes.py
    "gated_pixelcnn": [*DIGITS, "--model.num_classes=10", "--model.layers=1", "--model.width=6", "--model.head_width=8"],
    "vae": [*DIGITS, "--model.hidden", "64"],
    "classifier": [*DIGITS, "--model.hidden", "6", "5"],
    "language_model": ["--data.name={folder}/words.txt", "--model.width=6", "--model.layers=1"],
    "gan": ["--data.name=ring", "--model.hidden=8", "--model.depth=1", "--optimizer.players", "generator", "1e-3", "discriminator", "1e-3"],
    "pca": [*DIGITS, "--model.components=3"],
}
MORE = {
    "pixelcnn": [*DIGITS, "--model.layers=1", "--model.width=6", "--model.head_width=8"],
    "row_lstm": [*DIGITS, "--model.layers=1", "--model.width=4"],
    "diagonal_bilstm": [*DIGITS, "--model.layers=1", "--model.width=4"],
    "pixelcnn_pp": [*DIGITS, "--model.resnets=1", "--model.resolutions=1", "--model.width=6"],
    "pixelsnail": [*DIGITS, "--model.blocks=1", "--model.resnets=1", "--model.width=8"],
    "nade": [*DIGITS, "--model.hidden=8"],
    "image_transformer": [*DIGITS, "--model.layers=1", "--model.width=8", "--model.heads=2"],
}
SPLIT = "vae"  # the model that is split over the devices
STEPS = ["--train.steps=2", "--train.batch_size=16", "--train.log_every=1", "--train.eval_every=2"]
STRINGS = ["language_model", "stack_gru"]
DRAWN = {name: ["samples.txt" if name in STRINGS else "samples.png"] for name in RUNS | MORE if name != "classifier"}
DRAWN |= {name: ["completions.png", "samples.png"] for name in ["gated_pixelcnn", *MORE, "diffusion", "flow_matching", "autoregression"]}
MORE |= {
    "made": [*DIGITS, "--model.hidden", "16", "--model.masks=2", "--model.shuffled=True"],
    "conditional_gan": [*DIGITS, "--model.hidden=8", "--model.latent=4"],
    "pix2pix": [*DIGITS, "--data.pairs=outline", "--model.width=4", "--model.halvings=2", "--model.noise=dropout"],
    "vae_gan": [*DIGITS, "--model.hidden", "16", "--model.latent=4"],
    "autoencoder": [*DIGITS, "--model.hidden", "16", "--model.latent=4"],
    "implicit_autoencoder": [*DIGITS, "--model.hidden", "16", "--model.latent=4", "--model.implicit=decoder", "--model.steps=3"],
    "vqvae": [*DIGITS, "--model.codes=8", "--model.code_width=4", "--model.width=8", "--model.blocks=1"],
    "nvae": [*DIGITS, "--model.widths", "8", "8", "--model.groups", "1", "1", "--model.latent=2", "--model.expansion=1"],
    "flows": ["--data.name=ring", "--model.layers=2", "--model.hidden", "8", "--model.bins=4"],
    "iaf": [*DIGITS, "--model.hidden", "16", "--model.latent=4", "--model.flow_hidden=8"],
    "ride": [*DIGITS, "--model.hidden=8", "--model.components=2"],
    "nice": [*DIGITS, "--model.hidden", "16"],
    "realnvp": [*DIGITS, "--model.width=4", "--model.blocks=1"],
    "flow_matching": [*DIGITS, "--model.num_classes=10", "--model.network=mlp", "--model.mlp.width=8", "--model.mlp.depth=1"]
    + ["--model.density_steps=2", "--model.sample_steps=2"],
    "diffusion": [*DIGITS, "--model.num_classes=10", "--model.unet.width=4", "--model.schedule=cosine", "--model.predicts=v"]
    + ["--model.steps=8", "--model.terms=2", "--model.sample_steps=2"],
    "latent_diffusion": [*DIGITS, "--model.codes.hidden", "16", "--model.codes.latent=4", "--model.mlp.width=8", "--model.mlp.depth=1"]
    + ["--model.terms=2", "--model.sample_steps=2", "--stages.codes.train.steps=2", "--stages.codes.train.batch_size=16"],
    "vqvae2_codes": [*DIGITS, "--model.codes=8", "--model.code_width=4", "--model.width=8", "--model.blocks=1"],
    "stack_gru": ["--data.name={folder}/words.txt", "--model.width=6", "--model.stack_width=2", "--model.stack_depth=3"],
    "multivariate_gaussian": [*DIGITS, "--model.covariance=low_rank", "--model.rank=3"],
    "gmm": [*DIGITS, "--model.covariance=diagonal", "--model.components=3"],
    "deep_gmm": [*DIGITS, "--model.maps", "2", "2", "--model.iterations=3"],
    "autoregression": ["--data.name=sunspots", "--model.length=12"],
    "vqvae2": [*DIGITS, "--model.codes.codes=8", "--model.codes.width=8", "--model.top.width=8", "--model.lower.width=8"]
    + ["--model.top.blocks=1", "--model.lower.layers=1", "--stages.codes.train.steps=2", "--stages.codes.train.batch_size=16"],
}
IMAGES = ["latent_diffusion", "vae_gan", "autoencoder", "implicit_autoencoder", "nvae", "vqvae", "vqvae2_codes", "vqvae2"]
DRAWN |= dict.fromkeys([*IMAGES, "conditional_gan", "pix2pix"], ["samples.png"]) | dict.fromkeys(STRINGS, ["samples.txt"])
DRAWN |= dict.fromkeys(["flows", "nice", "realnvp", "iaf", "ride", "multivariate_gaussian", "gmm", "deep_gmm"], ["samples.png"])
DRAWN |= {"made": ["completions.png", "samples.png"]}
# test_two_processes.py has the autoregressive model on two processes of two devices each; the classifier is trained as the VAE is.
FOUR = [*RUNS, *MORE] if THOROUGH else [name for name in RUNS if name not in ("gated_pixelcnn", "classifier")]
# One that is split and one without steps; test_sharding.py has a loss that is a mean over counts, of two processes in make thorough.
TWO_OF_TWO = FOUR if THOROUGH else ["vae", "pca"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The data."""
    folder, digits = tmp_path_factory.mktemp("runs"), data.load("digits", "train")
    np.savez(folder / "digits.npz", image=np.asarray(digits.images)[:150], label=np.asarray(digits.labels)[:150])
    words = [one + other for one in "abcdefghij" for other in ("", "x", "yy", "zzz", "abca")]
    (folder / "words.txt").write_text("\n".join(words))
    return folder


def command(name: str, folder: Path, where: str, fsdp: int, pictures: int = 4) -> list[str]:
    """The command line of a run in FOLDER/WHERE/NAME."""
    report = [f"--report.samples={pictures}", f"--report.completions={pictures // 2}", "--report.rulers=False"]
    split = [f"--train.fsdp={fsdp}"] if name == SPLIT else []
    words = [word.format(folder=folder) for word in (RUNS | MORE)[name]]
    return ["train", name, *words, *STEPS, *report, *split, f"--workdir={folder / where / name}"]


def reports(out: str) -> dict[str, list[tuple[str, float]]]:
    """Model -> every number that is printed of its test set, with its name; a model has one report."""
    found = re.findall(r"^report of \S+/(\w+)\n(.*?)^pictures  ", out, re.MULTILINE | re.DOTALL)
    found = [(name, text) for name, text in found if name in RUNS | MORE]  # not those of stages, which are in the folder of their run
    assert len(dict(found)) == len(found)
    lines = {name: re.findall(r"^(?:test|  )\s*(\S.*?)  +(-?[\d.]+)\b", text, re.MULTILINE) for name, text in found}
    return {name: [(what, float(value)) for what, value in pairs] for name, pairs in lines.items()}


@pytest.fixture(scope="module")
def one_device(folder) -> dict:
    """The reports of the same runs in this process, which has one device; without pictures, whose programs would be compiled for them."""
    with redirect_stdout(io.StringIO()) as out:
        assert [cli.command("train", command(name, folder, "one", 1, pictures=0)[1:]) for name in FOUR] == [0] * len(FOUR)
    assert list(reports(out.getvalue())) == FOUR and all(reports(out.getvalue()).values())
    return reports(out.getvalue())


def check_same(names: list[str], out: str, folder: Path, where: str, one_device: dict) -> None:
    """The rows of metrics and the report of these runs are those of one device, and the pictures are drawn."""
    found = reports(out)
    assert list(found) == names
    for name in names:
        one, other = numbers(folder / "one" / name), numbers(folder / where / name)
        assert other.keys() == one.keys()
        np.testing.assert_allclose([other[key] for key in one], list(one.values()), rtol=1e-4, atol=1e-5, err_msg=name)
        assert [what for what, _ in found[name]] == [what for what, _ in one_device[name]]
        values = [[value for _, value in pairs] for pairs in (found[name], one_device[name])]
        np.testing.assert_allclose(*values, rtol=1e-4, atol=2e-4, err_msg=name)
        drawn = {path.name for path in (folder / where / name).glob("*.*") if path.suffix in (".png", ".txt")}
        assert drawn == {"curve.png", *DRAWN.get(name, [])}


def test_every_model_is_run():
    assert sorted([*RUNS, *MORE]) == sorted(map(module_name, MODELS.values()))


def test_four_devices_give_the_report_of_one(folder, one_device):
    words = ["|".join(command(name, folder, "four", 4)) for name in FOUR]
    environment = os.environ | virtual_devices(4)
    child = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    check_same(FOUR, child.stdout, folder, "four", one_device)


def test_two_processes_of_two_devices_give_the_report_of_one(folder, one_device):
    processes = start(folder, *(command(name, folder, "two", 4) for name in TWO_OF_TWO), devices=2)
    assert end(folder, processes, 100 * len(TWO_OF_TWO)) == [0, 0]
    check_same(TWO_OF_TWO, (folder / "out0").read_text(), folder, "two", one_device)
    second = (folder / "out1").read_text()
    assert not reports(second) and "report of" not in second and "test " not in second
