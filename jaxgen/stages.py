"""Stages of a run: parts of a model that are trained before the whole.

A model may be made of others: its configuration has a field that holds the configuration of a *part*, and the model has a submodule of the
same name, `CodePriorConfig(codes=VAEConfig(...))` and `model.codes`. A part is trained first, in a run of its own in the folder
WORKDIR/codes, or takes the weights of a run that was trained before. Then the whole model is trained, starting from the parts' weights.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxgen import config, trained
from jaxgen.errors import CheckpointError, ConfigError, did_you_mean
from jaxgen.models import MODELS
from jaxgen.runs import checkpoint
from jaxgen.training import OptimizerConfig, TrainConfig

TAKEN = ("checkpoints", "images", "lock", "tensorboard")
"""Files and folders of every run; no stage may have such a name, since its folder stands beside them."""


@dataclass(frozen=True)
class Stage:
    """How one part of a model gets its first weights: from a training of its own before the whole, or from another run.

    start_from: a run directory whose averaged weights with the best validation score the part takes; "" trains the part in this run, in
    the folder WORKDIR/NAME, with `train` and `optimizer`; train.max_minutes ends the stage, not the run. stages: of the part's own
    parts, if it has any.
    """

    start_from: str = ""
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    stages: dict[str, "Stage"] = field(default_factory=dict)


def parts(model: Any) -> dict[str, Any]:
    """{name: configuration} of the parts of a model's configuration: its fields that hold the configuration of a model."""
    values = {one.name: getattr(model, one.name) for one in dataclasses.fields(model)} if dataclasses.is_dataclass(model) else {}
    return {name: value for name, value in values.items() if type(value) in MODELS or hasattr(value, "build")}


def classes(model: Any) -> list[type]:
    """The configuration classes of a model, of its parts, of their parts, and so on."""
    return [type(model), *(found for part in parts(model).values() for found in classes(part))]


def declared(model: Any) -> dict[str, Stage]:
    """The stages that a configuration class says it needs, in its class attribute `stages`, a tuple of names of its parts."""
    return {name: Stage(stages=declared(getattr(model, name))) for name in getattr(model, "stages", ())}


def check_stages(model: Any, stages: Mapping[str, Stage]) -> None:
    """Raise ConfigError for a stage that is no part of the model or whose name is in `TAKEN`."""
    for name in stages:
        if name not in (known := parts(model)):
            wanted = f"parts of {type(model).__name__}: {', '.join(known)}" if known else f"none: {type(model).__name__} has no parts"
            raise ConfigError("stages", wanted, name, did_you_mean(name, known))
        if name in TAKEN:
            raise ConfigError("stages", f"a part whose folder in the run is free, not {', '.join(TAKEN)}", name)


def check_parts(model: Any, stages: Mapping[str, Stage], within: str = "") -> None:
    """Check every `start_from` before anything is trained: CheckpointError where there is no such run, ConfigError where its model differs
    from the part in class or in a field."""
    for name, stage in stages.items():
        part = getattr(model, name)
        if not stage.start_from:
            check_parts(part, stage.stages, f"{within}{name}.stages.")
            continue
        ours, theirs = (config.to_json(one) for one in (part, saved_model(stage.start_from, part, f"stages.{within}{name}.start_from")))
        for wrong in sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key)):
            wanted = f"{theirs.get(wrong)}, as in {stage.start_from}"
            raise ConfigError(f"{name}.{wrong}", wanted, ours.get(wrong), "leave it out: that run's value is taken")


def saved_model(run: str, part: Any, argument: str) -> Any:
    """The configuration of the model of a run, which must be of the class of `part`; errors name `argument`.

    Raises CheckpointError where there is no such run, ConfigError where its model is of another class.
    """
    try:
        saved = checkpoint.read_config(run).get("model", {})
    except CheckpointError as error:
        raise CheckpointError(argument, error.wanted, error.got, error.hint) from None
    if saved.get("class") != type(part).__name__:
        raise ConfigError(argument, f"a run of {type(part).__name__}", f"{run}, a run of {saved.get('class')}")
    return trained.from_saved(trained.classes(saved, classes(part)), saved, f"checkpoints of {run}", "config.model")
