"""Devices: the mesh, one short table of sharding rules, and the start-up on several hosts.

The mesh has two axes, `data` and `fsdp`. The rows of a batch are split over both. Parameters, optimizer moments and averages are split over
`fsdp` only: between two steps a device holds 1/fsdp of every array that RULES split, and the whole of the others (small ones, and those
without an axis that fsdp divides). That bounds the stored state, not the peak: a step also holds its activations, and the arrays that XLA
gathers to compute with. With fsdp = 1 every device holds all parameters: plain data parallelism. Models never name a mesh axis.
"""

import faulthandler
import math
import os
import re
import traceback
from collections.abc import Callable
from contextlib import suppress

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import ConfigError
from jaxgen.processes import printing, roll_call

SMALL = 2**10
"""Arrays of fewer elements are replicated: splitting a bias costs more than it saves."""


def replicated(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Every device holds the whole array."""
    return PartitionSpec()


def largest_divisible_axis(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Split the largest axis whose size is a multiple of `fsdp`; without one, or below SMALL elements, the array is not split."""
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
    """All devices of all hosts as a mesh with axes (data, fsdp); ConfigError unless `fsdp` divides their number."""
    count = jax.device_count()
    if fsdp < 1 or count % fsdp:
        sizes = [size for size in range(1, count + 1) if count % size == 0]
        raise ConfigError("train.fsdp", f"a divisor of the {count} devices", fsdp, f"choose from {sizes}")
    # Auto: with the default of jax.make_mesh, Explicit axes, a convolution raises.
    return jax.make_mesh((count // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def state_sharding(mesh: Mesh, tree):
    """A tree like `tree` with the sharding of every array, by RULES."""

    def rule(path, leaf):
        name = jax.tree_util.keystr(path)
        spec = next(rule for pattern, rule in RULES if re.search(pattern, name))(np.shape(leaf), mesh.shape["fsdp"])
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(rule, tree)


def placed_shapes(mesh: Mesh, shapes):
    """`shapes` (leaves with shape and dtype) as ShapeDtypeStructs with shardings by RULES: the target into which a checkpoint is read."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, state_sharding(mesh, shapes)
    )


def place_state(mesh: Mesh, tree):
    """A state or a model, loaded on one device, placed on the mesh by RULES; every process must call it with equal values."""
    if jax.process_count() > 1:  # device_put cannot send a device's array to another host: every process cuts its part out of its own copy
        tree = jax.tree.map(lambda leaf: np.asarray(leaf) if getattr(leaf, "is_fully_addressable", False) else leaf, tree)
    return jax.device_put(tree, state_sharding(mesh, tree))


def split_over(tree) -> Mesh | None:
    """The mesh over which arrays of the tree are split; None where every device that holds an array holds the whole of it."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)]
    split = [leaf.sharding for leaf in arrays if not leaf.is_fully_replicated and isinstance(leaf.sharding, NamedSharding)]
    return split[0].mesh if split else None


def on_one_device(mesh: Mesh, tree):
    """Gather a tree that is split over the mesh: whole arrays on this process's first device. Every process must call it.

    On the way each device of the mesh holds the whole tree, so a tree too large for one device cannot be gathered.
    """
    gathered = jax.jit(lambda tree: tree, out_shardings=whole(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), gathered)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole array as numpy. If its parts lie on several hosts they are gathered, and every process must call it."""
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def whole(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding that puts the whole array on every device; None (jax decides) without a mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_batch_size(batch_size: int, devices: int | None = None, parts: int = 1) -> None:
    """ConfigError unless devices times parts divides the global batch; parts: `train.accumulate`, devices: None for all of jax's."""
    devices = devices or jax.device_count()
    unit = devices * parts
    if batch_size < 1 or batch_size % unit:
        nearest = sorted({max(batch_size // unit, 1) * unit, (max(batch_size, 0) // unit + 1) * unit})
        wanted = f"a multiple of the {devices} devices" + (f" times {parts} (train.accumulate)" if parts > 1 else "")
        raise ConfigError("train.batch_size", wanted, batch_size, f"try {' or '.join(map(str, nearest))}")


def place_batch(mesh: Mesh, batch: dict) -> dict:
    """The global batch as arrays split over the mesh, from `batch`, this process's rows as numpy arrays.

    On a mesh of one device the numpy arrays are returned as they are: handing them to a compiled function takes a third of the time of
    `device_put`.
    """
    if mesh.size == 1:
        return batch
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def start_distributed() -> None:
    """Call `jax.distributed.initialize` where there are several hosts; do nothing on a single machine or if it was called before.

    A TPU pod, a job step of Slurm and Open MPI are recognised by their environment variables. On other clusters set
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; ConfigError where these do not fit together,
    and when not all processes have come after `roll_call.SECONDS`: then it names those that are missing.

    If jax ends a process later, because another one no longer answers, its Python stacks are written to stderr before.
    """
    if jax.distributed.is_initialized():
        return
    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env:
        address = env["JAX_COORDINATOR_ADDRESS"]
        count = _number(env, "JAX_NUM_PROCESSES", 1)
        number = _number(env, "JAX_PROCESS_ID", 0, count - 1)
        roll_call.gather(address, count, number, env.get("JAX_COORDINATOR_BIND_ADDRESS"))
        _show_stacks_at_abort()
        jax.distributed.initialize(address, count, number)
    elif _several_hosts(env):
        _show_stacks_at_abort()
        roll_call.in_time(jax.distributed.initialize)


def _number(env, name: str, least: int, most: int | None = None) -> int:
    """A whole number from the environment; ConfigError if it is missing, no number or out of range."""
    text = env.get(name, "")
    if not (text.isascii() and text.isdecimal()) or int(text) < least or (most is not None and int(text) > most):
        of = f"a number from {least} on" if most is None else f"a number from {least} to {most}"
        raise ConfigError(name, f"{of}, beside JAX_COORDINATOR_ADDRESS", text or "nothing")
    return int(text)


def _show_stacks_at_abort() -> None:
    """When jax aborts, because another process no longer answers, the Python stacks say where this one waited."""
    if not faulthandler.is_enabled():
        with suppress(OSError, AttributeError, RuntimeError):  # a stderr that is no file of the system, as in notebooks, or none
            faulthandler.enable()


def _several_hosts(env) -> bool:
    """Whether `jax.distributed.initialize()` without arguments will find the group; on a machine without one it would raise."""
    if env.get("JAX_PLATFORMS") == "cpu":
        return False
    # SLURM_NTASKS is set in a batch script too, which is a single process; SLURM_STEP_NODELIST only in the tasks that srun starts.
    tasks = [env.get("SLURM_NTASKS", "") if "SLURM_STEP_NODELIST" in env else "", env.get("OMPI_COMM_WORLD_SIZE", "")]
    many_tasks = any(count.isdecimal() and int(count) > 1 for count in tasks)
    pod = "," in env.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in env
    tpu_vm = os.path.exists("/dev/accel0") or (os.path.exists("/dev/vfio/0") and "TPU_NAME" in env)
    return many_tasks or pod or tpu_vm


# --- Several processes --------------------------------------------------------------------------------------------------------------


def first_process_says(answer: int) -> int:
    """Broadcast the int32 `answer` of process 0 to all; every process must call it.

    For decisions on which all must agree although their clocks differ, or for which only process 0 reads a file.
    """
    if jax.process_count() == 1:
        return int(answer)
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(answer)))


def split_mesh(fsdp: int) -> Mesh | None:
    """The mesh over which the model of a run with fsdp > 1 is split on the devices of this machine; None where it stays whole.

    A machine whose number of devices is no multiple of fsdp splits it over their greatest common divisor: over 4 where a run of fsdp = 8
    meets 4 or 12 devices.
    """
    shared = math.gcd(fsdp, jax.device_count())
    return make_mesh(shared) if shared > 1 else None


def on_first_process(work: Callable[[], None]) -> None:
    """Run `work` on process 0 while the others wait; every process must call it.

    An error of `work` is raised on process 0, and an OSError on all others, which would else wait for ever at the next barrier.
    """
    errors: list[Exception] = []
    if jax.process_index() == 0:
        try:
            work()
        except Exception as error:  # noqa: BLE001 (whatever it is, the others must hear of it before it is raised)
            errors.append(error)
    if first_process_says(len(errors)):
        raise errors[0] if errors else OSError("process 0 failed; its message says why")


def with_stack(work: Callable[[], int]) -> int:
    """`work()`. If jax fails in it, among several processes, the stack is written to stderr: it says where this one waited for another."""
    try:
        return work()
    except jax.errors.JaxRuntimeError:
        if jax.process_count() > 1:
            traceback.print_exc()
        raise


def wait_for_all(name: str) -> None:
    """Return when every process has called this. Used before a process ends: if one ends early, jax's connection fails in all others."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def announce(text: str) -> None:
    """One line on stdout, from the first process only."""
    if jax.process_index() == 0:
        printing.say(text)


def warn(text: str) -> None:
    """"warning: text" on stdout, among the numbers that it is about, from the first process only; nothing for an empty text."""
    if text:
        announce(f"warning: {text}")
