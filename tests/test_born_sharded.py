"""With fsdp = 8 no device ever keeps more than an eighth of a run's state: from the first step to the report, on eight virtual devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import json, sys
import jax, numpy as np
from jaxgen import cli, experiment, sharding, trained, training
from jaxgen.data import DataConfig
from jaxgen.experiment import Experiment
from jaxgen.models import GatedPixelCNNConfig
from jaxgen.runs.report import ReportConfig
from jaxgen.training import TrainConfig

def largest():
    '''Bytes on the device that holds most. A part of an array may be seen as an array of its own too: a buffer counts once.'''
    held = {device: {} for device in jax.devices()}
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            if shard.data.size:
                held[shard.device][shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return max(sum(buffers.values()) for buffers in held.values())

seen = {}
def watch(owner, name):
    function = getattr(owner, name)
    def watched(*args, **options):
        seen[f"before {name}"] = largest()
        result = function(*args, **options)
        seen[f"after {name}"] = largest()
        return result
    setattr(owner, name, watched)

watch(training, "born"); watch(experiment, "draw_for"); watch(experiment.evaluation, "evaluate"); watch(experiment.trained, "load")
watch(experiment._Run, "validate_and_save")
run = Experiment(
    GatedPixelCNNConfig(layers=2, width=64, head_width=256, num_classes=10), DataConfig("digits"),
    train=TrainConfig(steps=2, batch_size=16, eval_every=1, fsdp=8), workdir=sys.argv[1],
    report=ReportConfig(samples=4, completions=4, rulers=False, time_samplers=False))
assert experiment.train(run) == 0
experiment.finish(run)
optimizer, mesh = experiment.make_optimizer(run), sharding.make_mesh(8)
shapes = experiment._shapes(run, optimizer)
parts = [int(np.prod(where.shard_shape(leaf.shape))) * leaf.dtype.itemsize
         for leaf, where in zip(jax.tree.leaves(shapes), jax.tree.leaves(sharding.state_sharding(mesh, shapes)))]
whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
gathered = jax.jit(lambda model, key: model.sample(key, 4, label=0)).lower(
    trained.load(sys.argv[1], mesh=mesh), jax.random.key(0)).compile().memory_analysis()
print(json.dumps({"part": sum(parts), "whole": whole, "seen": seen, "sampler": gathered.temp_size_in_bytes if gathered else None}))
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> dict:
    """What a run of two steps and its report held."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("run"))]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_device_holds_an_eighth_of_the_state(facts):
    """Beside its part: batches, keys, metrics, samples."""
    assert facts["part"] < 0.2 * facts["whole"], "the rules split most of this model"
    others = 60_000
    assert set(facts["seen"]) >= {"after born", "before evaluate", "after draw_for", "after load", "after validate_and_save"}
    too_much = {place: held for place, held in facts["seen"].items() if held > facts["part"] + others}
    assert not too_much and facts["part"] + others < 0.3 * facts["whole"]
    assert facts["seen"]["after born"] > 0.9 * facts["part"], "the state is there"
    assert np.isfinite(facts["sampler"] or 0)
