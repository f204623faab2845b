"""The hint beside an unknown option: what was meant, by its meaning or its spelling."""

import dataclasses

import pytest

from jaxgen import cli, commands, config
from jaxgen.errors import ConfigError
from jaxgen.experiment import Experiment
from jaxgen.models import MODELS, GatedPixelCNNConfig
from jaxgen.synonyms import SYNONYMS

MEANT = {
    "optimizer.lr": "optimizer.learning_rate", "lr": "optimizer.learning_rate", "model.lr": "optimizer.learning_rate",
    "epochs": "train.steps", "train.bs": "train.batch_size", "steps": "train.steps", "dataset": "data.name",
    "optimizer.beta1": "optimizer.b1", "model.channels": "model.width", "logdir": "workdir", "data.nmae": "data.name",
    "optimizer.nmae": "optimizer.name",
    "laptp": "laptop", "restrat": "restart", "dry_run": "dry-run", "debg": "debug", "train_steps": "train.steps", "optimizer.zz": None,
    "optimiser.name": "optimizer.name", "dat.name": "data.name",
}  # fmt: skip
"""An option that is not there, and the one that is meant."""


@pytest.mark.parametrize("typed", MEANT)
def test_an_unknown_option_is_answered_by_its_meaning_then_by_its_spelling(typed):
    with pytest.raises(ConfigError) as error:
        cli.parse_train(Experiment(GatedPixelCNNConfig()), [f"--{typed}=1"], "x", "", list(cli.FLAGS))
    assert error.value.hint == (f"did you mean --{MEANT[typed]}?" if MEANT[typed] else "see --help")


@pytest.mark.parametrize(("typed", "meant"), [("num_samples", "n"), ("temp", "temperature"), ("debg", "debug"), ("ckpt", "step")])
def test_the_options_of_a_command_too(typed, meant):
    with pytest.raises(ConfigError) as error:
        commands.parse("sample", ["runs/x", f"--{typed}=1"])
    assert error.value.hint == f"did you mean --{meant}?"


def test_every_synonym_is_of_a_field_that_there_is():
    fields = {name for name, _ in config._leaves(Experiment(GatedPixelCNNConfig()), "")}
    fields |= {field.name for one in [*MODELS, *commands.COMMANDS.values()] for field in dataclasses.fields(one)}
    assert set(SYNONYMS) <= fields | {name.rpartition(".")[2] for name in fields}
