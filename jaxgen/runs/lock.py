"""One run per directory: an exclusive lock file that says who holds it.

The lock is `flock`, not the existence of the file: the kernel drops it at the very moment its process dies, by kill -9 too. So there is no
stale lock to guess about, no window between "is that pid dead?" and "then it is mine", and no trap when a dead run's pid now belongs to
another program (in a container every run is pid 1). The text in the file (host, pid, start time) only names the holder in the message.
The file stays when the lock is released, empty: unlinking it would let two processes lock two different files of the same name.

Object stores have no locks. There the file is only a note: a live pid on this host is refused, anything else is taken over with a warning,
since a preempted machine never comes back to clean up and its successor has another name.
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

NAME = "lock"


class RunLock:
    """Holds `workdir/lock` until `release()` or the death of the process; raises ConfigError where another run holds it."""

    def __init__(self, workdir: epath.Path, local: bool):
        self._path = workdir / NAME
        self._descriptor = _lock(self._path) if local else None
        previous = _holder(self._path)
        if previous and not local and _alive_here(previous):
            raise _refusal(self._path, previous)
        if previous:
            print(f"jaxgen: taking over {self._path} from a run that is gone: {_describe(previous)}", file=sys.stderr)
        self._write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "start": time.strftime("%Y-%m-%d %H:%M:%S")}))

    def _write(self, text: str) -> None:
        """The whole text in one write, so that a reader never sees half of it."""
        if self._descriptor is None:
            self._path.write_text(text)
        else:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        """Empties the file and drops the lock; a second call does nothing."""
        if self._path is None:
            return
        self._write("")
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._path = self._descriptor = None


def _lock(path: epath.Path) -> int:
    """The locked descriptor; Python opens it non-inheritable, so a program that the run starts does not keep the lock alive."""
    import fcntl  # here, because Windows has none and `jaxgen.load` takes no lock

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise _refusal(path, _holder(path)) from None
        print(f"jaxgen: {path}: this file system has no locks ({error.strerror}); never start two runs in this folder", file=sys.stderr)
    return descriptor


def _holder(path: epath.Path) -> dict[str, Any]:
    """What the file says about its holder; empty where it says nothing that can be read."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _alive_here(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    if holder["pid"] == os.getpid():
        return False  # a dead run in an earlier life of this container, where every run has the same pid
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it runs, and belongs to another user
    return True


def _describe(holder: dict[str, Any]) -> str:
    return f"pid {holder.get('pid', '?')} on host {holder.get('host', '?')}, started {holder.get('start', '?')}"


def _refusal(path: epath.Path, holder: dict[str, Any]) -> ConfigError:
    return ConfigError(
        "workdir", wanted="a folder that no other run is using", got=f"{path.parent}, in use by {_describe(holder)}",
        hint="wait for that run, stop it, or choose another workdir",
    )  # fmt: skip
