"""All models on eight devices: a step, its checkpoint, and the step after it, once straight and once resumed. test_all_models.py starts it.

`python on_eight_devices.py FOLDER NAME ...` leaves a run directory for every model in FOLDER and prints the numbers of the first step.
"""

import json
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import optax
from all_models import CONFIGS, batch_of, data_of, model_of, players, with_a
from compiling import in_a_process
from flax import nnx

from jaxgen import config, evaluation, sharding, training
from jaxgen.data import DataConfig
from jaxgen.experiment import Experiment
from jaxgen.runs.checkpoint import Checkpointer

KEY = jax.random.key(7)


def checkpoints(name: str, folder: Path) -> Checkpointer:
    """Those of a run of this model."""
    return Checkpointer(folder / name, config.to_json(Experiment(CONFIGS[name], DataConfig("arrays"))))


def first_state(name: str, optimizer, mesh) -> training.TrainState:
    """`training.init_state` without a program: all numbers of the optimizer are 0, and the average is that of the weights."""
    model = jax.tree.map(np.array, model_of(name))
    shapes = jax.eval_shape(lambda: training.new_state(model, optimizer))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.opt_state)
    return sharding.place_state(mesh, training.TrainState(np.int32(0), model, zeros, jax.tree.map(np.copy, nnx.state(model, nnx.Param))))


def two_steps(name: str, folder: Path) -> dict[str, float]:
    """The metrics of the first step. The second has the same bits from the state and from its checkpoint.

    The step is the one of `training.fit`, on the arrays of a state, and the function that it compiles is traced once for all three.

    Strings, whose loss is a mean over tokens, come twice and in two parts, the even rows and the odd ones, which have other numbers of
    tokens: together they must give the mean over all tokens, as one device does in one pass over the strings.
    """
    optimizer, mesh, parts = players(CONFIGS[name]), sharding.make_mesh(), 2 if CONFIGS[name].modelled == "tokens" else 1
    train_step = training.make_train_step(optimizer, mesh, accumulate=parts)
    chex.clear_trace_counter()
    counted = training.TrainStep(chex.assert_max_traces(train_step._step, n=1), mesh)
    leaves, tree = jax.tree.flatten(first_state(name, optimizer, mesh))
    compiled = counted.on_leaves(tree)

    def step(state, batch):
        leaves, metrics = compiled(jax.tree.leaves(state), batch, KEY)
        return jax.tree.unflatten(tree, leaves), metrics.read()

    batches = (jax.tree.map(lambda x: np.concatenate([x] * parts), batch_of(CONFIGS[name], 8, seed)) for seed in (0, 1))
    one, two = (sharding.place_batch(mesh, batch) for batch in batches)
    state, metrics = step(jax.tree.unflatten(tree, leaves), one)
    with checkpoints(name, folder) as saving:  # from one device: to cut each array into eight parts takes the checkpoint's library seconds
        saving.save(1, jax.device_put(state, jax.devices()[0]))
    with checkpoints(name, folder) as reading:
        number, resumed = reading.restore(sharding.placed_shapes(mesh, jax.eval_shape(lambda: state)))
    chex.assert_trees_all_equal(resumed, state)
    (straight, last), (again, _) = step(state, two), step(resumed, two)  # their arrays are donated
    chex.assert_tree_all_finite((straight, last))
    chex.assert_trees_all_equal(straight, again)
    assert number == 1 and last["finite"] == 1 and int(again.step) == 2
    return {key: value / (parts if key == "weight" else 1) for key, value in metrics.items()}


def one_evaluation(name: str, folder: Path) -> dict[str, float]:
    """What a model without a step has: a checkpoint, and the numbers of an evaluation over all devices."""
    with checkpoints(name, folder) as saving:
        saving.save(1, training.new_state(model_of(name), optax.identity()))
    return evaluation.evaluate(model_of(name), data_of(CONFIGS[name]), batch_size=8, mesh=sharding.make_mesh())


if __name__ == "__main__":
    assert jax.device_count() == 8
    in_a_process()
    found = {name: (two_steps if name in with_a("loss") else one_evaluation)(name, Path(sys.argv[1])) for name in sys.argv[2:]}
    print(json.dumps(found, default=np.ndarray.tolist))
