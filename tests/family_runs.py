"""Runs of one model of each family that is no image model of pixels one after another, in processes of their own, to be killed.

Every process is forked from a server that has imported the package once and computed nothing: it begins within half a second.
"""

import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from all_models import CONFIGS, data_of, model_of
from compiling import in_a_process
from forked_runs import SERVER, slow_steps

from jaxgen import experiment, models
from jaxgen.data import DataConfig
from jaxgen.experiment import Experiment
from jaxgen.runs import figures, manifest
from jaxgen.runs.report import ReportConfig
from jaxgen.stages import Stage
from jaxgen.training import OptimizerConfig, TrainConfig

STEPS, EVERY = 24, 8
KILLS = int(os.environ.get("JAXGEN_KILLS", "3"))
STAGED = {"vqvae2": "codes"}
"""Models that are trained in two stages, and the part that is trained first."""
STEPPED = ["vae of a label", "gan of points", "classifier", "language_model", "flows, planar", "diffusion"]
if KILLS >= 5:  # `make kill-test`
    STEPPED += ["made", "flow_matching of points", "latent_diffusion", "nvae", "pix2pix"]
    STEPPED += ["stack_gru", *STAGED]
CLOSED_FORM = "pca of points"


def train_all(folder: Path, names: list[str], killed_in_its_save: bool = False) -> None:
    """Trains these models, or goes on, with steps of 20 ms, so that a kill falls between them; that in closed form has a single save."""
    in_a_process()
    slow_steps(0.02)
    figures.curve = lambda *_: b""  # half of the time of such a run
    options = TrainConfig(steps=STEPS, batch_size=8, eval_every=EVERY, log_every=1)
    for name in names:
        if name == CLOSED_FORM and killed_in_its_save:
            manifest.write = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        data = data_of(CONFIGS[name])
        experiment.build = models.build
        if name not in STAGED:
            weights = jax.tree.map(np.array, model_of(name))
            experiment.build = lambda config, seed, weights=weights: weights  # to draw them is most of what is compiled
        optimizer = OptimizerConfig() if name == CLOSED_FORM else OptimizerConfig(learning_rate=1e-2)  # it has none
        parts = {"optimizer": optimizer, "train": options, "report": ReportConfig(samples=0)}
        if name in STAGED:
            parts |= {"stages": {STAGED[name]: Stage(optimizer=optimizer, train=options)}}
            parts["optimizer"] = replace(optimizer, frozen=(STAGED[name],))
        run = Experiment(CONFIGS[name], DataConfig("arrays"), workdir=str(folder / name), **parts)
        assert experiment.train(run, sets=(data, data)) == 0


def folders(name: str) -> list[str]:
    """The run directories of a model, in the order of training."""
    return [f"{name}/{STAGED[name]}", name] if name in STAGED else [name]


def start(folder: Path, names: list[str], killed_in_its_save: bool = False):
    """A process that does `train_all`."""
    process = SERVER.Process(target=train_all, args=(folder, names, killed_in_its_save))
    process.start()
    return process


def kill_after(process, log: Path, step: int, seconds: float) -> None:
    """SIGKILL so many seconds after this step stands in the log."""
    while process.is_alive() and not (log.exists() and re.search(rf'"step": {step}\b', log.read_text())):
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    process.join()
