"""One run per directory: an exclusive lock on the file `lock`, whose text says which process holds it.

On a file system the lock is `flock`, not the existence of the file. The kernel releases it when its process ends, killed by SIGKILL too,
so no lock is left behind by a dead run, and no pid has to be examined (a dead run's pid may belong to another program by now; in a
container every run is pid 1). The text (host, pid, start time) is used in messages only. Releasing the lock empties the file and leaves it
in place: if it were deleted, one process could lock the deleted file and another a new one of the same name. A file system without flock
gets a warning on stderr and no lock.

Object stores have no locks. There the text alone decides, when a run starts: if it names a live process of this host the run is refused;
anything else is taken over with a warning, since a preempted machine does not come back to clean up and its successor has another name.
Two runs on different hosts, or two that start at the same moment, are not kept apart.
"""

import errno
import json
import os
import socket
import sys
import time
from typing import Any

from etils import epath

from jaxgen.errors import ConfigError
from jaxgen.processes import interruption
from jaxgen.processes.printing import say

NAME = "lock"


class RunLock:
    """Holds `workdir/lock` from construction until `release()` or the end of the process.

    local: the workdir is on a file system (flock), not in an object store. Raises ConfigError where another run holds the lock.
    """

    def __init__(self, workdir: epath.Path, local: bool):
        self._path = workdir / NAME
        self._descriptor = _lock(self._path) if local else None
        previous = _holder(self._path)
        if previous and not local and _alive_here(previous):
            raise _refusal(self._path, previous)
        if previous:
            say(f"jaxgen: taking over {self._path} from a run that is gone: {_describe(previous)}", sys.stderr)
        try:
            self._text = {"host": socket.gethostname(), "pid": os.getpid(), "start": time.strftime("%Y-%m-%d %H:%M:%S")}
            self._write(json.dumps(self._text))
        except OSError:  # a full disk
            if self._descriptor is not None:
                os.close(self._descriptor)  # which releases the lock: a notebook may try again
            raise
        if self._descriptor is not None:
            interruption.last_acts.append(self._empty)

    def lost(self) -> bool:
        """Whether the file is gone, or is another run's: somebody has deleted or moved the folder. False in an object store."""
        if self._descriptor is None:
            return False
        try:
            os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # a file system that does not answer now
            return False
        holder = _holder(self._path)
        return bool(holder) and holder != self._text

    def _empty(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        """Replace the text. A reader may find the file empty between the two calls, which `_holder` reads as no holder."""
        if self._descriptor is None:
            self._path.write_text(text)
        else:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        """Empty the file and release the lock; a second call does nothing."""
        if self._path is None:
            return
        self._empty()
        if self._descriptor is not None:
            interruption.last_acts.remove(self._empty)
            os.close(self._descriptor)
        self._path = self._descriptor = None


def _lock(path: epath.Path) -> int:
    """Open the file and lock it: the descriptor. ConfigError where another process has the lock.

    Python's descriptors are not inherited, so a program that the run starts does not keep the lock after the run's end.
    """
    import fcntl  # inside the function: Windows has no fcntl, and `jaxgen.load`, which takes no lock, works there

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise _refusal(path, _holder(path)) from None
        say(f"jaxgen: {path}: this file system has no locks ({error.strerror}); never start two runs in this folder", sys.stderr)
    return descriptor


def _holder(path: epath.Path) -> dict[str, Any]:
    """The holder {host, pid, start} by the file's text; {} where the file is missing, empty or not JSON."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _alive_here(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    if holder["pid"] == os.getpid():
        return False  # this process has just started, so the text is of a dead run; in a restarted container runs have equal pids
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # the process exists and belongs to another user
    return True


def _describe(holder: dict[str, Any]) -> str:
    return f"pid {holder.get('pid', '?')} on host {holder.get('host', '?')}, started {holder.get('start', '?')}"


def _refusal(path: epath.Path, holder: dict[str, Any]) -> ConfigError:
    return ConfigError(
        "workdir", wanted="a folder that no other run is using", got=f"{path.parent}, in use by {_describe(holder)}",
        hint="wait for that run, stop it, or choose another workdir",
    )  # fmt: skip
