"""One device, eight virtual devices and two real processes train the same model.

Run as a script this file is the other side: `python tests/test_sharding.py OUT CASE ...` trains every case on the devices that it finds,
in the group that the JAX_ variables name, and process 0 writes the parameters.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import in_a_process, virtual_devices
from flax import nnx

from jaxgen import sharding
from jaxgen.errors import ConfigError
from jaxgen.models import GatedPixelCNN, GatedPixelCNNConfig
from jaxgen.statistics import Statistic
from jaxgen.training import OptimizerConfig, fit, init_state, make_optimizer, make_train_step

STEPS, BATCH = 5, 16
CONFIG = GatedPixelCNNConfig(image_shape=(5, 4, 3), levels=4, num_classes=3, layers=1, width=12, head_width=12, input_kernel=3)
# Adam's first step is rate x g / |g|: where g is near zero, rounding moves a parameter by a good part of the rate. So that step has a rate
# of zero; the later ones divide by a mean over several gradients, and no parameter has all of them near zero.
OPTIMIZER = OptimizerConfig(learning_rate=2e-4, weight_decay=0.01, warmup_steps=1)


def batches(rows: slice):
    """These rows of the global batches."""
    for step in range(STEPS):
        rng = np.random.default_rng(step)
        image = rng.integers(0, CONFIG.levels, (BATCH, *CONFIG.image_shape), dtype=np.uint8)
        yield {"image": image[rows], "label": rng.integers(0, CONFIG.num_classes, BATCH, dtype=np.int32)[rows]}


class Seen(nnx.Variable):
    """Not trained by gradients."""


class Watches(nnx.Module):
    """A line through the first three values of an image, whose loss is a mean over counts that differ from row to row.

    What it hands to `after_update` is joined by each of the rules.
    """

    def __init__(self):
        self.weight = nnx.Param(jnp.zeros(3))
        self.mean, self.count, self.first = Seen(jnp.zeros(3)), Seen(jnp.int32(0)), Seen(jnp.zeros(3))

    def loss(self, batch, key):
        """The squared error, with the label as the count of a row."""
        x = batch["image"].reshape(len(batch["image"]), -1)[:, :3].astype(jnp.float32)
        count, counts = batch["label"].sum(), batch["label"].astype(jnp.float32)
        mean = lambda values: values @ counts / counts.sum()  # noqa: E731
        statistics = {"mean": Statistic(mean(x.T), "mean"), "count": Statistic(count, "sum"), "first": Statistic(x[0], "first")}
        return mean((x @ self.weight[...] - 1) ** 2), {"weight": count}, statistics

    def after_update(self, statistics, key):
        """Half of the old mean and half of the new one, all counts, and the last first row."""
        graph, rest = nnx.split(self)
        rest["mean"] = rest["mean"].replace(0.5 * self.mean[...] + 0.5 * statistics["mean"])
        rest["count"] = rest["count"].replace(self.count[...] + statistics["count"])
        rest["first"] = rest["first"].replace(statistics["first"])
        return nnx.merge(graph, rest)


def watched(mesh, parts: int, rows: slice) -> dict[str, np.ndarray]:
    """The variables of `Watches` after a few steps whose batches are taken in so many parts."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01, name="sgd", momentum=0.0, clip_norm=None), STEPS)
    state, step = init_state(Watches(), optimizer, mesh), make_train_step(optimizer, mesh, accumulate=parts)
    for batch in batches(rows):
        state, _ = step(state, sharding.place_batch(mesh, batch), jax.random.key(0))
    model = sharding.on_one_device(mesh, state.model)
    return {f"watched {name}": np.asarray(getattr(model, name)[...]) for name in ("weight", "mean", "count", "first")}


@jax.jit
def first_model() -> GatedPixelCNN:
    """The model before the first step, drawn by one program."""
    return GatedPixelCNN(CONFIG, rngs=nnx.Rngs(0))


def train(fsdp: int) -> dict[str, np.ndarray]:
    """Parameters, averages and (loss, gradient norm) of a few steps on all devices of all processes, and how many arrays were split.

    With arrays that are split the gradients are added up over two parts of the batch, which changes no number.
    """
    mesh = sharding.make_mesh(fsdp)
    optimizer = make_optimizer(OPTIMIZER, STEPS)
    state = init_state(first_model(), optimizer, mesh)
    step, share = make_train_step(optimizer, mesh, accumulate=2 if fsdp > 1 else 1), BATCH // jax.process_count()
    rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    placed = (sharding.place_batch(mesh, batch) for batch in batches(rows))
    losses = []
    # Processes whose clocks differ must still run the same number of steps: here all but the first think that they are late at once.
    limit = 1e9 if jax.process_index() == 0 else 1e-9
    state = fit(
        state,
        step,
        placed,
        jax.random.key(0),
        STEPS,
        on_metrics=lambda _, m: losses.append((m["loss"], m["gradient_norm"])),
        max_seconds=limit,
    )
    split = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    whole = sharding.on_one_device(mesh, (nnx.state(state.model, nnx.Param), state.ema))
    leaves = jax.tree_util.tree_flatten_with_path(whole)[0]
    result = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    result |= watched(mesh, 2 if fsdp > 1 else 1, rows)
    return {**result, "losses": np.float64(losses), "split": np.int64(split)}


@pytest.fixture(scope="module")
def one_device():
    """The reference: this process's one device."""
    assert jax.device_count() == 1
    return train(fsdp=1)


def start(out: Path, devices: int, sizes: list[int], **group: str) -> subprocess.Popen:
    """This file as a script on so many virtual devices."""
    root = Path(__file__).resolve().parent.parent
    env = {**os.environ, **group, **virtual_devices(devices), "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, __file__, str(out), *map(str, sizes)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(processes: list[subprocess.Popen]) -> None:
    """Wait for all of them; their output is the error message."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in processes:
            process.kill()


def check_same(out: Path, fsdp: int, one_device: dict) -> None:
    """The other side's parameters are ours to 3e-7, and it did split what it should."""
    with np.load(out / f"{fsdp}.npz", allow_pickle=False) as other:
        assert set(other) == set(one_device)
        assert (other["split"] > 0) == (fsdp > 1), "arrays are split exactly with fsdp > 1"
        np.testing.assert_allclose(other["losses"], one_device["losses"], rtol=1e-5)
        for name in set(other) - {"split", "losses"}:
            np.testing.assert_allclose(other[name], one_device[name], atol=3e-7, rtol=0, err_msg=name)


def test_the_statistics_of_a_loss_are_those_of_the_whole_batches(one_device):
    """The oracle of the tests below, in numpy: two processes or eight devices, in one part or two, must give these."""
    found, (mean, count) = {name: one_device[f"watched {name}"] for name in ("mean", "count", "first")}, (0, 0)
    for batch in batches(slice(None)):
        x, label = batch["image"].reshape(BATCH, -1)[:, :3], batch["label"].astype(np.int64)
        mean, count = 0.5 * mean + 0.5 * np.average(x, 0, label), count + label.sum()
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-6)
    assert found["count"] == count and found["first"].tolist() == x[0].tolist()


def test_eight_devices_give_the_parameters_of_one(tmp_path, one_device):
    moved = np.abs(one_device["[0]['hidden'].value"] - np.asarray(first_model().hidden[...])).max()
    assert moved > 5e-4, "training must move the parameters for this test to say anything"
    finish([start(tmp_path, 8, [1, 4])])
    for fsdp in (1, 4):
        check_same(tmp_path, fsdp, one_device)


@pytest.mark.skipif("JAXGEN_THOROUGH" not in os.environ, reason="make thorough has it; test_two_processes.py has a run of two")
def test_two_processes_over_one_mesh_give_the_parameters_of_one(tmp_path, one_device):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    group = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    finish([start(tmp_path, 2, [1, 4], **group, JAX_PROCESS_ID=str(i)) for i in range(2)])
    for fsdp in (1, 4):
        check_same(tmp_path, fsdp, one_device)


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((64, 32), 4, ("fsdp", None)),
        ((32, 64), 4, (None, "fsdp")),
        ((67, 64), 4, (None, "fsdp")),  # the largest axis that can be split
        ((67, 65), 4, ()),
        ((64, 32), 1, ()),
        ((64,), 4, ()),  # too small
        ((), 4, ()),
    ],
)
def test_the_largest_divisible_axis_is_split(shape, fsdp, spec):
    assert tuple(sharding.largest_divisible_axis(shape, fsdp)) == spec


def test_a_batch_must_be_a_multiple_of_the_devices():
    sharding.check_batch_size(16, 8)
    for size, hint in [(10, "try 8 or 16"), (3, "try 8"), (0, "try 8"), (-5, "try 8")]:
        with pytest.raises(ConfigError, match=f"^train.batch_size: wanted a multiple of the 8 devices, got {size}; {hint}$"):
            sharding.check_batch_size(size, 8)
    wanted = r"^train.batch_size: wanted a multiple of the 8 devices times 2 \(train.accumulate\), got 24; try 16 or 32$"
    with pytest.raises(ConfigError, match=wanted):
        sharding.check_batch_size(24, 8, parts=2)


def test_fsdp_must_divide_the_devices():
    for fsdp in (0, 2, -1):
        with pytest.raises(ConfigError, match="^train.fsdp: wanted a divisor of the 1 devices, got"):
            sharding.make_mesh(fsdp)


def test_nothing_is_started_on_a_single_machine(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    sharding.start_distributed()
    assert not jax.distributed.is_initialized()


def test_an_incomplete_group_is_an_error(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(ConfigError, match="^JAX_PROCESS_ID: wanted a number from 0 to 1, beside JAX_COORDINATOR_ADDRESS, got nothing$"):
        sharding.start_distributed()


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, True),
        ({"SLURM_NTASKS": "4"}, False),  # a batch script that has not called srun
        ({"SLURM_NTASKS": "", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "host-0"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]", "JAX_PLATFORMS": "cpu"}, False),
    ],
    ids=str,
)
def test_peers_are_looked_for_where_a_scheduler_names_them(variables, several, monkeypatch):
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert sharding._several_hosts(variables) == several


if __name__ == "__main__":
    in_a_process()
    sharding.start_distributed()
    for size in map(int, sys.argv[2:]):
        arrays = train(size)
        if jax.process_index() == 0:
            np.savez(Path(sys.argv[1]) / f"{size}.npz", **arrays)


@pytest.mark.parametrize("error", [OSError, ValueError, KeyError])
def test_the_other_processes_hear_of_every_error_before_it_is_raised(error, monkeypatch):
    told = []
    monkeypatch.setattr(sharding, "first_process_says", lambda count: told.append(count) or count)

    def work():
        raise error("broken")

    with pytest.raises(error):
        sharding.on_first_process(work)
    assert told == [1]
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(sharding, "first_process_says", lambda count: 1)
    with pytest.raises(OSError, match="process 0 failed"):
        sharding.on_first_process(work)


@pytest.mark.parametrize("count", [1, 2])
def test_where_a_process_failed_among_several_is_shown(count, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: count)

    def waits():
        raise jax.errors.JaxRuntimeError("another process does not answer")

    with pytest.raises(jax.errors.JaxRuntimeError):
        sharding.with_stack(waits)
    assert ("in waits\n" in capsys.readouterr().err) == (count > 1)
    assert sharding.with_stack(lambda: 75) == 75
