"""With fsdp = 8 no device ever keeps more than an eighth of a run's state: from the first step to the report, on eight virtual devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiling import IN_A_PROCESS, virtual_devices

ROOT = Path(__file__).resolve().parent.parent
LARGEST = """
import gc, json, sys
from dataclasses import replace
from functools import partial
import jax, numpy as np
from jaxgen import benchmark, cli, config, experiment, sharding, trained, training
from jaxgen.data import DataConfig
from jaxgen.experiment import Experiment
from jaxgen.layers import autoregressive
from jaxgen.models import GatedPixelCNNConfig, ImageTransformerConfig, VQVAE2CodesConfig, VQVAE2Config, build
from jaxgen.models.vqvae2 import LowerPrior, TopPrior
from jaxgen.optimizers import OptimizerConfig
from jaxgen.runs.checkpoint import Checkpointer
from jaxgen.runs.report import ReportConfig
from jaxgen.stages import Stage
from jaxgen.training import TrainConfig

gc.collect()
gc.freeze()  # what was imported stays; `largest` looks through the rest fifty times

def largest():
    '''Bytes on the device that holds most. A part of an array may be seen as an array of its own too: a buffer counts once.'''
    gc.collect()
    held = {device: {} for device in jax.devices()}
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            if shard.data.size:
                held[shard.device][shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return max(sum(buffers.values()) for buffers in held.values())

def sizes(tree):
    '''Bytes of the arrays that the rules split and of those that they leave whole, and the shapes of these.'''
    places = jax.tree.leaves(sharding.state_sharding(mesh, tree))
    leaves = [(leaf, place.is_fully_replicated) for leaf, place in zip(jax.tree.leaves(tree), places)]
    split, whole = (sum(leaf.size * leaf.dtype.itemsize for leaf, left in leaves if left == wanted) for wanted in (False, True))
    return {"split": split, "whole": whole, "shapes": sorted({leaf.shape for leaf, left in leaves if left})}

def save_zeros(run, shapes):
    '''A checkpoint of zeros: to draw its weights would be a program of three seconds.'''
    with Checkpointer(run.workdir, config.to_json(run)) as saving:
        saving.save(1, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))

mesh = sharding.make_mesh(8)
"""
SCRIPT = """
seen = {}
def watch(owner, name):
    function = getattr(owner, name)
    def watched(*args, **options):
        seen[f"before {name}"] = largest()
        result = function(*args, **options)
        seen[f"after {name}"] = largest()
        return result
    setattr(owner, name, watched)

def compiled_once(step, tree, on_leaves=training.TrainStep.on_leaves):
    '''The train step of `training.fit`, compiled before its first call, so that the bytes it needs are known.'''
    made = []
    def advance(*args):
        if not made:
            made.append(on_leaves(step, tree).lower(*args).compile())
            programs.setdefault("train step", made[0])
        return made[0](*args)
    return advance

programs = {}
training.TrainStep.on_leaves = compiled_once
watch(training, "born"); watch(experiment, "draw_for"); watch(experiment.evaluation, "evaluate"); watch(experiment.trained, "load")
watch(experiment._Run, "validate_and_save")
run = Experiment(
    GatedPixelCNNConfig(layers=2, width=64, head_width=256, num_classes=10), DataConfig("digits"),
    train=TrainConfig(steps=2, batch_size=16, eval_every=1, fsdp=8), workdir=sys.argv[1],
    report=ReportConfig(samples=4, completions=4, rulers=False, time_samplers=False))
assert experiment.train(run) == 0
experiment.finish(run)
shapes = experiment._shapes(run, experiment.make_optimizer(run))

small = Experiment(
    ImageTransformerConfig((8, 8, 1), 17, layers=1, width=64, heads=2, hidden=256, encoder_layers=1, low_resolution=(2, 2, 1)),
    DataConfig("digits"), train=TrainConfig(fsdp=8), workdir=sys.argv[1] + "/small")
small_shapes = jax.eval_shape(lambda: training.new_state(build(small.model), experiment.make_optimizer(small)))
save_zeros(small, small_shapes)
report, commands = seen, {}
watch(autoregressive, "_sample"); watch(benchmark, "timed")
for command, folder in (("sample", run.workdir), ("complete", run.workdir), ("upscale", small.workdir)):
    seen = {}
    assert cli.command(command, [folder, "--n", "4"]) == 0
    commands[command] = seen
seen = {}
model = trained.load(run.workdir, mesh=sharding.make_mesh(8))
for measure in (partial(benchmark.sampling, model, "cached", 4), partial(benchmark.train, model, 16, 1)):
    measure(lambda: 1.0, 1, 1)
    commands[measure.func.__name__], seen = seen, {}
drawn = model.sample(jax.random.key(0), 4, label=0, mesh=sharding.make_mesh())
del model
same = bool((np.asarray(drawn) == np.asarray(trained.load(run.workdir).sample(jax.random.key(0), 4, label=0))).all())
programs["sampler"] = jax.jit(lambda model, key: model.sample(key, 4, label=0)).lower(
    trained.load(sys.argv[1], mesh=mesh), jax.random.key(0)).compile()
held = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
print(json.dumps({"state": sizes(shapes), "model": sizes(training.ema_model(shapes)), "seen": report, "commands": commands, "same": same,
       "small": sizes(small_shapes.model), "held": held,
       "split over": [mesh and mesh.shape["fsdp"] for mesh in map(sharding.split_mesh, (1, 3, 8, 12))]}))
"""
STAGED = """
codes = Experiment(VQVAE2CodesConfig((8, 8, 1), 17, codes=64, code_width=64, width=64, blocks=0), DataConfig("digits"),
    train=TrainConfig(fsdp=8), workdir=sys.argv[1] + "/codes")
save_zeros(codes, jax.eval_shape(lambda: training.new_state(build(codes.model), experiment.make_optimizer(codes))))
run = replace(codes, model=VQVAE2Config(codes.model, 0, TopPrior(1, 64, 1, 2, 3), LowerPrior(1, 64, 3, 6, 64)), workdir=sys.argv[1],
    optimizer=OptimizerConfig(frozen=("codes",)), stages={"codes": Stage(start_from=codes.workdir)})
batch, parts = {"image": np.zeros((8, 8, 8, 1), np.uint8)}, experiment._trained_parts(run)
state = experiment._first_state(run, experiment.make_optimizer(run), mesh, batch, parts)
del parts
print(json.dumps({"state": sizes(state), "held": largest()}))
"""


def printed(script: str, folder) -> dict:
    """The JSON in the last line that a script on eight devices prints."""
    command = [sys.executable, "-c", IN_A_PROCESS + LARGEST + script, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | virtual_devices(8), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> dict:
    """What a run of two steps and its report held."""
    return printed(SCRIPT, tmp_path_factory.mktemp("run"))


KEY, METRICS = 2 * 4, 5 * 4
"""Bytes of a key, and of the numbers of the last step: loss, bits per dimension, nats, gradient norm, whether all are finite."""
INPUTS = 2**10
"""Bytes, at most, of four images with their labels and masks: as they go in, and as they come out."""


def test_a_device_holds_an_eighth_of_what_is_split_the_small_arrays_and_nothing_else(facts):
    """To the byte: batches, samples and what a program gathers are gone when it has ended."""
    state, model = (facts[name]["split"] // 8 + facts[name]["whole"] for name in ("state", "model"))
    assert facts["state"]["shapes"] == [[], [1, 384], [17], [64], [128], [256]], "counters of steps, biases, the smallest kernel"
    assert facts["state"]["whole"] < 0.01 * facts["state"]["split"]
    assert facts["seen"] == {
        "before born": 0,
        "after born": state,
        "before validate_and_save": state + METRICS + KEY,
        "before draw_for": state + METRICS + 2 * KEY,
        "after draw_for": state + METRICS + 2 * KEY,
        "after validate_and_save": state + METRICS + KEY,
        "before load": 0,
        "after load": model,
        "before evaluate": model,
        "after evaluate": model,
    }


def test_the_commands_keep_a_model_split(facts):
    """From load to the picture: beside the model only the images, labels and masks that go in and come out."""
    state, model, small = (facts[name]["split"] // 8 + facts[name]["whole"] for name in ("state", "model", "small"))
    held = {"sample": model, "complete": model, "upscale": small, "sampling": model, "train": state + model}
    assert facts["commands"].keys() == held.keys()
    for name, least in held.items():
        seen = facts["commands"][name]
        assert seen.pop("before load", 0) == 0 and {"before _sample", "before timed"} & seen.keys()
        assert all(least <= bytes_held < least + INPUTS for bytes_held in seen.values()), name


def test_a_split_model_draws_what_the_whole_one_does(facts):
    """Also with `mesh=`, which changes nothing for it."""
    assert facts["same"]


def test_what_a_program_gathers_on_a_device_is_bounded(facts):
    """Bytes that a program holds beside its arguments and results: what it gathers, gradients and activations. The whole model has 938 kB.

    The sampler gathers what a layer needs and gives it back: 155 kB, and never half of the model. The train step has the whole of the
    parameters and of their gradients, and activations: 2631 kB, less than three models. With the moments or the average gathered too it
    would have more than three.
    """
    model, held = facts["model"]["split"] + facts["model"]["whole"], facts["held"]
    assert 0 < held["sampler"] < model / 2
    assert 0 < held["train step"] < 3 * model


def test_a_run_of_another_machine_is_split_as_far_as_these_devices_allow(facts):
    """Eight devices: a run of fsdp = 12 is split over 4, one of 3 is left whole."""
    assert facts["split over"] == [None, None, 8, 4]


@pytest.mark.skipif("JAXGEN_THOROUGH" not in os.environ, reason="make thorough has it")
def test_a_model_with_a_trained_part_that_is_initialised_on_a_batch_is_born_split_too(tmp_path):
    """Half a minute of compiling; by the function that makes the state of the run above."""
    facts = printed(STAGED, tmp_path)
    assert facts["held"] == facts["state"]["split"] // 8 + facts["state"]["whole"]
    assert facts["state"]["split"] > 3 * facts["state"]["whole"]
