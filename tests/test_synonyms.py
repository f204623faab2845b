"""The hint beside an unknown option: what was meant, by its meaning or its spelling."""

import dataclasses

import pytest

from jaxgen import cli, commands, config
from jaxgen.__main__ import main
from jaxgen.errors import ConfigError
from jaxgen.experiment import Experiment
from jaxgen.models import (
    MODELS,
    GANConfig,
    GatedPixelCNNConfig,
    ImageTransformerConfig,
    PixelCNNPPConfig,
    PixelSNAILConfig,
    VAEConfig,
)
from jaxgen.synonyms import SYNONYMS

MEANT = {
    "optimizer.lr": "optimizer.learning_rate", "lr": "optimizer.learning_rate", "model.lr": "optimizer.learning_rate",
    "epochs": "train.steps", "train.bs": "train.batch_size", "steps": "train.steps", "dataset": "data.name",
    "optimizer.beta1": "optimizer.b1", "model.channels": "model.width", "logdir": "workdir", "data.nmae": "data.name",
    "optimizer.nmae": "optimizer.name",
    "laptp": "laptop", "restrat": "restart", "dry_run": "dry-run", "debg": "debug", "train_steps": "train.steps", "optimizer.zz": None,
    "optimiser.name": "optimizer.name", "dat.name": "data.name", "optimizer.adam": "optimizer.name adam", "adam": "optimizer.name adam",
    "optimizer.adagard": "optimizer.name adagrad", "train.cosine": "optimizer.schedule cosine", "model.depth": "model.layers",
}  # fmt: skip
"""An option that is not there, and the one that is meant."""


@pytest.mark.parametrize("typed", MEANT)
def test_an_unknown_option_is_answered_by_its_meaning_then_by_its_spelling(typed):
    with pytest.raises(ConfigError) as error:
        cli.parse_train(Experiment(GatedPixelCNNConfig()), [f"--{typed}=1"], "x", "", list(cli.FLAGS))
    assert error.value.hint == (f"did you mean --{MEANT[typed]}?" if MEANT[typed] else "see --help")


@pytest.mark.parametrize(
    ("model", "typed", "meant"),
    [
        (VAEConfig(), "depth", "hidden"), (VAEConfig(), "layers", "hidden"), (VAEConfig(), "width", "hidden"),
        (VAEConfig(), "conv", "architecture conv"), (GANConfig(), "layers", "depth"), (PixelSNAILConfig(), "depth", "blocks"),
        (PixelCNNPPConfig(), "depth", "resnets"), (ImageTransformerConfig(), "depth", "layers"),
        (ImageTransformerConfig(), "hidden_dim", "width"),
    ],
)  # fmt: skip
def test_what_is_meant_depends_on_the_fields_that_the_model_has(model, typed, meant):
    with pytest.raises(ConfigError) as error:
        cli.parse_train(Experiment(model), [f"--model.{typed}=1"], "x", "", list(cli.FLAGS))
    assert error.value.hint == f"did you mean --model.{meant}?"


def test_a_mistyped_value_and_a_flag_that_only_scripts_have():
    with pytest.raises(ConfigError, match=r"did you mean adam\?") as error:
        cli.parse_train(Experiment(VAEConfig()), ["--optimizer.name", "adm"], "x", "", [])
    assert error.value.argument == "--optimizer.name"
    for typed in "--laptp", "--laptop":
        with pytest.raises(ConfigError) as error:
            cli.train_command(["vae", typed])
        assert error.value.hint == "did you mean --laptop, which only scripts with a small configuration have (experiments/)?"


def test_help_of_a_mistyped_command(capsys):
    assert main(["help", "trian"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("jaxgen: command: wanted one of train, ") and "did you mean train?" in err
    assert main(["help", "help"]) == 0 == main(["help", "--version"])


@pytest.mark.parametrize(("typed", "meant"), [("num_samples", "n"), ("temp", "temperature"), ("debg", "debug"), ("ckpt", "step")])
def test_the_options_of_a_command_too(typed, meant):
    with pytest.raises(ConfigError) as error:
        commands.parse("sample", ["runs/x", f"--{typed}=1"])
    assert error.value.hint == f"did you mean --{meant}?"


def test_every_synonym_is_of_a_field_that_there_is():
    fields = {name for name, _ in config._leaves(Experiment(GatedPixelCNNConfig()), "")}
    fields |= {field.name for one in [*MODELS, *commands.COMMANDS.values()] for field in dataclasses.fields(one)}
    assert set(SYNONYMS) <= fields | {name.rpartition(".")[2] for name in fields}
