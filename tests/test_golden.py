"""Finished runs of version 0.1.0 in tests/golden: whatever changes, they load, give the numbers that they gave, and go on.

numbers.json holds what the version that wrote them gave: log-probabilities (or bounds, or logits) of the first four test images, samples,
and the losses of more steps. The newer ones, of the forms that came later: a model in closed form, a classifier with names of its classes,
and a model of one's own (`PairConfig`) whose part was trained in a stage; the stage's own folder is gone.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxgen
from jaxgen import cli, config, data, evaluation, experiment
from jaxgen.data.features import OfImages
from jaxgen.experiment import Experiment
from jaxgen.models import MODELS, VAE, VAEConfig

GOLDEN = Path(__file__).resolve().parent / "golden"
EXPERIMENTS = GOLDEN.parents[1] / "experiments"
NUMBERS = json.loads((GOLDEN / "numbers.json").read_text("utf-8"))


@pytest.fixture(params=["gated_pixelcnn", "gan"])
def run(request, tmp_path):
    """A copy that may be written into."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / request.param))


def test_an_old_run_gives_the_numbers_that_it_gave(run):
    numbers, model = NUMBERS[run.name], jaxgen.load(run)
    if "log_prob" in numbers:
        test = data.load("digits", "test")
        given = np.asarray(model.log_prob(jnp.asarray(test.images[:4]), jnp.asarray(test.labels[:4])))
        np.testing.assert_allclose(given, numbers["log_prob"], rtol=1e-6)
        drawn = model.sample(jax.random.key(0), 2, label=np.array([3, 7], np.int32))
        np.testing.assert_array_equal(np.asarray(drawn).reshape(2, -1), numbers["samples"])
    else:
        np.testing.assert_allclose(np.asarray(model.sample(jax.random.key(0), 3)), numbers["samples"], rtol=1e-5, atol=1e-6)


def test_the_commands_take_an_old_run(run, capsys):
    for command in ("show", "evaluate", "sample"):
        assert cli.command(command, [str(run)] + ["--n=4"] * (command == "sample")) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "step       20" in out and ("test bits_per_dim" in out or "test frechet_points" in out)
    assert (run / "samples.png").exists()


def test_an_old_run_goes_on_with_the_same_losses(run, monkeypatch, capsys):
    monkeypatch.setattr(experiment._Run, "validate_and_save", lambda self, step, state: None)  # its numbers are tested above
    old = config.from_json([Experiment, *MODELS], json.loads((run / "config.json").read_text("utf-8")))
    more = dataclasses.replace(old, workdir=str(run), train=dataclasses.replace(old.train, steps=25))
    assert experiment.train(more) == 0
    assert "resumed from step 20 of 25" in capsys.readouterr().out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row and row["step"] > 20]
    np.testing.assert_allclose(losses, NUMBERS[run.name]["losses"], rtol=1e-5)


def test_the_classifier_of_the_pages_on_sample_quality_has_the_weights_and_the_accuracy_that_they_name():
    classifier, test = jaxgen.load(EXPERIMENTS / "classifiers" / "digits"), data.load("digits", "test")
    page = (EXPERIMENTS / "results" / "sample_quality.md").read_text("utf-8")
    assert f"weights {evaluation.weights_hash(classifier)}" in page
    right = np.asarray(classifier.predict(jnp.asarray(test.images))).argmax(1) == test.labels
    assert f"right for {right.mean():.4f} of the {len(right)} test images" in page.replace("\n", " ").replace("  ", " ")


# --- Later forms of a run -----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PairConfig(OfImages):
    """A model with a part that a stage trains."""

    image_shape: tuple[int, int, int] = (8, 8, 1)
    levels: int = 17
    codes: VAEConfig = VAEConfig(hidden=(2,), latent=1)
    stages: ClassVar[tuple[str, ...]] = ("codes",)

    def build(self, rngs):
        return Pair(self, rngs=rngs)


class Pair(nnx.Module):
    """The part, and a number that is trained towards 1."""

    def __init__(self, config, *, rngs):
        self.config, self.codes, self.offset = config, VAE(config.codes, rngs=rngs), nnx.Param(jnp.zeros((1,)))

    def loss(self, batch, key):
        """The squared distance."""
        distance = jnp.square(self.offset[...] - 1).sum()
        return distance, {"distance": distance}

    def elbo(self, x, key):
        """That of the part."""
        return self.codes.elbo(x, key) + self.offset[...]


ANSWERS = {
    "pca": lambda model, x: model.log_density(x.astype(jnp.float32)),
    "classifier": lambda model, x: model.predict(x),
    "pair": lambda model, x: model.elbo(x, jax.random.key(0)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_later_form_of_run_gives_its_numbers_and_goes_on(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment._Run, "validate_and_save", lambda self, step, state: None)
    folder, numbers = Path(shutil.copytree(GOLDEN / name, tmp_path / name)), NUMBERS[name]
    test = data.load("digits", "test")
    model = jaxgen.load(folder, models=[PairConfig])
    np.testing.assert_allclose(ANSWERS[name](model, jnp.asarray(test.images[:4])), numbers["answers"], rtol=1e-5, atol=1e-5)
    assert cli.command("show", [str(folder)], models=[PairConfig]) == 0
    shown = capsys.readouterr().out
    assert f"step {numbers['step']:>8}" in shown and ("0 zero, 1 one, 2 two" in shown or name != "classifier")
    old = config.from_json([Experiment, *MODELS, PairConfig], json.loads((folder / "config.json").read_text("utf-8")))
    assert experiment.train(dataclasses.replace(old, workdir=str(folder), train=dataclasses.replace(old.train, steps=7))) == 0
    out = capsys.readouterr().out
    assert ("is finished: its model has a closed form" if name == "pca" else "resumed from step 4 of 7") in out
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row and row["step"] > 4]
    np.testing.assert_allclose(losses, numbers["losses"], rtol=1e-5)
