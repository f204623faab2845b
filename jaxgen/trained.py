"""`jaxgen.load`: the trained model of a run directory. It stands here because it needs both the models and the checkpoints."""

import os
from typing import Any, Literal

import jax

from jaxgen import config
from jaxgen.models import MODELS, build
from jaxgen.runs import checkpoint


def load(path: str | os.PathLike, step: int | None = None, which: Literal["best", "latest"] = "best") -> Any:
    """The trained model of a run directory: built from its saved config, with the averaged (EMA) weights, on this process's first device.

    step picks a checkpoint; otherwise which="best" takes the one with the best validation score (the newest where none has a score). Only
    the model's own arrays are read, and only after their hashes, dtypes and shapes were checked. Takes no lock: a run may be going on.
    Raises CheckpointError (nothing there, no such step, damaged), ConfigError (`which`, or a config that this version does not know).
    """

    def shapes_of(saved):
        model_config = config.from_json(tuple(MODELS), saved)
        return jax.eval_shape(lambda: build(model_config))

    return checkpoint.read_model(path, shapes_of, step, which)
