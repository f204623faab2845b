"""The roll call of several processes, before jax connects them.

Process 0 listens at the group's address until all others have reported there, or until the time is over. Then it tells every one of them
whether the group is complete. jax alone would wait in silence, could not say who is missing, and would end by an abort.

A report is one line, "jaxgen NUMBER COUNT". The answer is one line of JSON: [] when all are there, else the arguments of a ConfigError.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from jaxgen.errors import ConfigError
from jaxgen.processes import printing

SECONDS = 300.0
"""How long the processes wait for each other, as in jax."""
RESOLVES = 1.0
PAUSE = 0.05


def place(name: str, address: str) -> tuple[str, int]:
    """("host", port) of "host:port"; ConfigError, with `name` as its argument, for any other text."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 2**16:
        raise ConfigError(name, "host:port with a port in 1..65535", address or "nothing")
    return host.removeprefix("[").removesuffix("]"), int(port)


def gather(address: str, count: int, number: int, bind: str | None = None, seconds: float | None = None) -> None:
    """Return when all `count` processes have called this; process `number` = 0 listens at `bind`, by default at the port of `address`.

    Raises ConfigError when not all have come after `seconds` (by default SECONDS), if the port is in use, if two processes have the same
    number, or if their counts differ.
    """
    where, until = place("JAX_COORDINATOR_ADDRESS", address), time.monotonic() + (SECONDS if seconds is None else seconds)
    if count == 1:
        return
    _check_host(where, address)
    printing.say(f"waiting for {count} processes at {address}", sys.stderr)
    if number:
        _report(where, address, count, number, until)
    else:
        _call(place("JAX_COORDINATOR_BIND_ADDRESS", bind) if bind else ("", where[1]), address, count, until)


def _check_host(where: tuple[str, int], address: str) -> None:
    """ConfigError for a host whose name is unknown. A name server that does not answer is asked again for RESOLVES seconds."""
    until = time.monotonic() + RESOLVES
    while True:
        try:
            socket.getaddrinfo(*where)
            return
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) != socket.EAI_AGAIN or time.monotonic() > until:
                got = f"{address} ({getattr(error, 'strerror', None) or error})"
                raise ConfigError("JAX_COORDINATOR_ADDRESS", "host:port with a host whose name is known", got) from None
        time.sleep(PAUSE)


def in_time(connect: Callable[..., None]) -> None:
    """`connect()`, which is jax.distributed.initialize, where a scheduler has started the processes. If it takes longer than SECONDS the
    process ends with exit code 2 and a line on stderr."""
    printing.say("waiting for the other processes of this job", sys.stderr)
    timer = threading.Timer(SECONDS, _give_up)
    timer.daemon = True
    timer.start()
    try:
        connect(initialization_timeout=round(SECONDS) + 60)  # past it jax aborts
    finally:
        timer.cancel()


def _give_up() -> None:
    """Ends the process: the main thread waits inside jax and hears no exception."""
    error = ConfigError("processes", f"all of this job within {SECONDS:.0f} s", "not all", "see which of them did not start")
    printing.say(f"jaxgen: {error}", sys.stderr)
    os._exit(error.exit_code)


# --- Process 0 ----------------------------------------------------------------------------------------------------------------------


def _call(where: tuple[str, int], address: str, count: int, until: float) -> None:
    """What process 0 does."""
    here: dict[int, socket.socket] = {}
    with ExitStack() as opened:
        listener = opened.enter_context(_listener(where, address))
        while len(here) < count - 1 and time.monotonic() < until:
            with suppress(OSError, ValueError):  # within this second nobody came, or who came has left, or was a stranger
                listener.settimeout(min(max(until - time.monotonic(), PAUSE), 1.0))
                peer = opened.enter_context(listener.accept()[0])
                number, error = _heard(peer, count, here)
                if error:
                    _tell(peer, error)
                elif number is not None:
                    here[number] = peer
            here = {number: peer for number, peer in here.items() if not _has_left(peer)}
        listener.close()  # jax listens at this port next
        missing = [number for number in range(1, count) if number not in here]
        error = _missing(address, count, missing) if missing else []
        for peer in here.values():
            _tell(peer, error)
        for peer in here.values():  # the other side closes first: else the system would hold the port
            with suppress(OSError):
                peer.recv(1)
    if error:
        raise ConfigError(*error)


def _listener(where: tuple[str, int], address: str) -> socket.socket:
    """A listening socket, of all interfaces where no host is named."""
    host, port = where
    try:
        if host in ("", "::") and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        wanted = "a port of this machine that is free, since this is process 0"
        raise ConfigError("JAX_COORDINATOR_ADDRESS", wanted, f"{address} ({error.strerror or error})") from None


def _heard(peer: socket.socket, count: int, here: dict) -> tuple[int | None, list[str]]:
    """(the number that reports, []), (None, []) for a stranger, or (None, what is wrong)."""
    peer.settimeout(5)
    with peer.makefile() as lines:
        words = lines.readline(100).split()
    if len(words) != 3 or words[0] != "jaxgen":
        return None, []
    number, total = map(int, words[1:])
    if total != count:
        return None, ["JAX_NUM_PROCESSES", f"{count} as in process 0", str(total)]
    if number in here:
        return None, ["JAX_PROCESS_ID", "a number for each process", f"a second process {number}"]
    return number, []


def _missing(address: str, count: int, missing: list[int]) -> list[str]:
    """The arguments of the ConfigError that names the processes which did not come."""
    got = f"{count - len(missing)}, without JAX_PROCESS_ID {', '.join(map(str, missing))}"
    return ["JAX_NUM_PROCESSES", f"{count} processes at {address}", got, "start all of them at about the same time"]


def _tell(peer: socket.socket, error: list[str]) -> None:
    with suppress(OSError):
        peer.sendall((json.dumps(error) + "\n").encode())


def _has_left(peer: socket.socket) -> bool:
    """Whether the other side has closed the connection, as a process that was killed does."""
    peer.setblocking(False)
    try:
        return not peer.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        peer.settimeout(5)


# --- The others ---------------------------------------------------------------------------------------------------------------------


def _report(where: tuple[str, int], address: str, count: int, number: int, until: float) -> None:
    """What every other process does."""
    error, reason = None, "no answer"
    while error is None and time.monotonic() < until:
        try:
            with socket.create_connection(where, timeout=5) as peer, peer.makefile() as lines:
                peer.sendall(f"jaxgen {number} {count}\n".encode())
                peer.settimeout(SECONDS + 60)  # process 0 ends the wait, and it may have begun later
                answer = lines.readline()
                error = json.loads(answer) if answer else None
        except OSError as failed:
            reason = failed.strerror or str(failed)
        except ValueError:
            reason = "another program answers there"
        time.sleep(0 if error is not None else PAUSE)
    if error is None:
        got, hint = f"no process 0 ({reason})", "start it too, with JAX_PROCESS_ID=0"
        error = ["JAX_COORDINATOR_ADDRESS", f"{count} processes at {address}", got, hint]
    if error:
        raise ConfigError(*error)
    while time.monotonic() < until:  # until jax listens: its own second try comes a second after the first
        with suppress(OSError), socket.create_connection(where, timeout=5):
            return
        time.sleep(PAUSE)
