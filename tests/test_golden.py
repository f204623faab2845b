"""Two finished runs of version 0.1.0 in tests/golden: whatever changes, they load, give the numbers that they gave, and go on.

numbers.json holds what the version that wrote them gave: log-probabilities of the first four test images, samples, and the losses of five
more steps.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import cli, config, data, experiment
from jaxgen.experiment import Experiment
from jaxgen.models import MODELS

GOLDEN = Path(__file__).resolve().parent / "golden"
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
