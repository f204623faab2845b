"""The arrays of a checkpoint on disk, written and read by orbax; the only file that imports it, inside its functions, since it is slow."""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from jaxgen.processes.printing import quiet


def save(folder: epath.Path, arrays: dict[str, Any]) -> None:
    """Every process writes its shards; returns on all of them when the folder is complete."""
    import orbax.checkpoint as ocp

    _drop_left_errors()
    with quiet("absl", "asyncio"):
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(folder, args=ocp.args.PyTreeSave(arrays))


def prove(folder: epath.Path, arrays: Mapping[str, Any]) -> None:
    """OSError unless all arrays of a checkpoint that was just written are found in it. They are listed, not read: some milliseconds."""
    import orbax.checkpoint as ocp

    with quiet("absl"):
        found = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).metadata(folder).item_metadata
    missing = {name for name, array in arrays.items() if array.size} - set(getattr(found, "tree", found) or {})
    if missing:
        raise OSError(f"what was written cannot be read: {len(missing)} arrays are missing, the first is {min(missing)}")


def restore(folder: epath.Path, targets: dict[str, Any]) -> dict[str, Any]:
    """The arrays named in targets, each with its target's sharding; the others are not read."""
    import orbax.checkpoint as ocp

    def how(leaf):
        if isinstance(leaf, np.ndarray):
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    args = ocp.args.PyTreeRestore(targets, restore_args={name: how(leaf) for name, leaf in targets.items()}, partial_restore=True)
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder, args=args)


def cause(error: Exception) -> str:
    """The operating system's message in an error of orbax, which has some thousand characters; else its first line."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _drop_left_errors() -> None:
    """From now on the errors that orbax leaves behind when a write fails are not printed; a second call does nothing.

    On a full disk orbax raises the first error, which we report. Its threads go on, and log a traceback when they fail too; asyncio logs
    one for each task that nobody waits for any more, when the garbage collector finds it; Python warns of coroutines that never began;
    and each write that ends later fails to call orbax's event loop, which is closed.
    """
    if any(isinstance(one, _LeftErrors) for one in logging.getLogger("absl").filters):
        return
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_LeftErrors())
    warnings.filterwarnings("ignore", r"coroutine 'async_serialize.*' was never awaited", RuntimeWarning)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        thread = unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed"
        coroutine = getattr(unraisable.object, "cr_code", None)
        if not thread and not (coroutine and "orbax" in coroutine.co_filename):
            before(unraisable)

    sys.unraisablehook = hook


class _LeftErrors(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "absl":
            return not (record.exc_info and "orbax" in record.pathname)
        message = record.getMessage()
        told = message + "".join(traceback.format_exception(*record.exc_info) if record.exc_info else ())
        return "exception was never retrieved" not in message or not any(word in told for word in ("orbax", "OCDBT"))
