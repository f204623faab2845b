"""Devices: the mesh, one short table of sharding rules, and the start-up on several hosts.

The mesh has two axes. `data` splits the batch; `fsdp` splits the batch and the parameters (with the optimizer state and the averages), so
that a large model fits. With fsdp = 1 the parameters are replicated: plain data parallelism. Models never name a mesh axis.
"""

import os
import re
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import ConfigError

SMALL = 2**10
"""Arrays of fewer elements are replicated: splitting a bias costs more than it saves."""


def replicated(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """The whole array on every device."""
    return PartitionSpec()


def largest_divisible_axis(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """The largest axis that `fsdp` divides is split; an array without one, or a small one, is replicated."""
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not axes or np.prod(shape) < SMALL:
        return PartitionSpec()
    best = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == best else None for axis in range(len(shape))))


RULES = (
    (r"\.step$", replicated),
    (r"", largest_divisible_axis),
)
"""(pattern searched in the leaf's path, rule); the first that matches decides."""


def make_mesh(fsdp: int = 1) -> Mesh:
    """All devices of all hosts as a mesh `(data, fsdp)`."""
    count = jax.device_count()
    if fsdp < 1 or count % fsdp:
        sizes = [size for size in range(1, count + 1) if count % size == 0]
        raise ConfigError("train.fsdp", f"a divisor of the {count} devices", fsdp, f"choose from {sizes}")
    # Explicit axes, the default of jax.make_mesh, make a convolution raise.
    return jax.make_mesh((count // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def state_sharding(mesh: Mesh, tree):
    """The sharding of every array of a pytree by the table of rules."""

    def rule(path, leaf):
        name = jax.tree_util.keystr(path)
        spec = next(rule for pattern, rule in RULES if re.search(pattern, name))(np.shape(leaf), mesh.shape["fsdp"])
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(rule, tree)


def placed_shapes(mesh: Mesh, shapes):
    """A tree of shapes and dtypes with the sharding of every array by the table of rules: where a checkpoint is to be read to."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, state_sharding(mesh, shapes)
    )


def place_state(mesh: Mesh, tree):
    """A state, or a model that was loaded on one device, on the mesh by the table of rules; every process must call it."""
    if jax.process_count() > 1:  # what lives on one device cannot be sent to another host: each process has the same, and gives its part
        tree = jax.tree.map(lambda leaf: np.asarray(leaf) if getattr(leaf, "is_fully_addressable", False) else leaf, tree)
    return jax.device_put(tree, state_sharding(mesh, tree))


def on_one_device(mesh: Mesh, tree):
    """The whole of a tree that is spread over the mesh, on this process's first device; every process must call it."""
    gathered = jax.jit(lambda tree: tree, out_shardings=whole(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), gathered)


def to_host(x: jax.Array) -> np.ndarray:
    """An array as numpy, also where its parts lie on several hosts; then every process must call it."""
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def whole(mesh: Mesh | None) -> NamedSharding | None:
    """All of an array on every device; without a mesh (None) nothing is said of where it lies."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of a batch is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_batch_size(batch_size: int, devices: int | None = None, parts: int = 1) -> None:
    """The global batch must split evenly over the devices, and over the parts of a step that adds up gradients."""
    devices = devices or jax.device_count()
    unit = devices * parts
    if batch_size < 1 or batch_size % unit:
        nearest = sorted({max(batch_size // unit, 1) * unit, (max(batch_size, 0) // unit + 1) * unit})
        wanted = f"a multiple of the {devices} devices" + (f" times {parts} (train.accumulate)" if parts > 1 else "")
        raise ConfigError("train.batch_size", wanted, batch_size, f"try {' or '.join(map(str, nearest))}")


def place_batch(mesh: Mesh, batch: dict) -> dict:
    """This process's rows of the global batch, as global arrays.

    For a single device the batch stays as it is: a compiled function takes arrays of the host three times as fast as `device_put` does.
    """
    if mesh.size == 1:
        return batch
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def start_distributed() -> None:
    """Join the other hosts. Nothing to set on a TPU pod, under Slurm or Open MPI, and nothing happens on a single machine.

    Anywhere else the three variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID name the group.
    """
    if jax.distributed.is_initialized():
        return
    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env:
        missing = [name for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if not env.get(name, "").isdigit()]
        if missing:
            raise ConfigError(missing[0], "a number, beside JAX_COORDINATOR_ADDRESS", env.get(missing[0]))
        jax.distributed.initialize(env["JAX_COORDINATOR_ADDRESS"], int(env["JAX_NUM_PROCESSES"]), int(env["JAX_PROCESS_ID"]))
    elif _several_hosts(env):
        jax.distributed.initialize()


def _several_hosts(env) -> bool:
    """Whether jax will find its peers by itself; `jax.distributed.initialize()` raises on a lone machine, so we look first."""
    if env.get("JAX_PLATFORMS") == "cpu":
        return False
    # A batch script under Slurm knows the number of tasks too, but only srun starts them and sets their nodes.
    tasks = [env.get("SLURM_NTASKS", "") if "SLURM_STEP_NODELIST" in env else "", env.get("OMPI_COMM_WORLD_SIZE", "")]
    many_tasks = any(count.isdecimal() and int(count) > 1 for count in tasks)
    pod = "," in env.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in env
    tpu_vm = os.path.exists("/dev/accel0") or (os.path.exists("/dev/vfio/0") and "TPU_NAME" in env)
    return many_tasks or pod or tpu_vm


# --- Several processes --------------------------------------------------------------------------------------------------------------


def first_process_says(answer: int) -> int:
    """The answer of process 0 on every process: clocks differ, and files need not be read by each of a hundred hosts."""
    if jax.process_count() == 1:
        return int(answer)
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(answer)))


def on_first_process(work: Callable[[], None]) -> None:
    """Process 0 works while the others wait; if it fails, it fails on all of them, so that none waits at the next barrier for ever."""
    errors: list[Exception] = []
    if jax.process_index() == 0:
        try:
            work()
        except (OSError, ValueError) as error:
            errors.append(error)
    if first_process_says(len(errors)):
        raise errors[0] if errors else OSError("process 0 failed; its message says why")


def wait_for_all(name: str) -> None:
    """Returns when every process has come here. A process that ends while another works takes the group's connection with it."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
