"""Several processes find each other, or say which of them is missing; here each is a thread."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import jax
import pytest
from conftest import ROOT

from jaxgen import sharding
from jaxgen.errors import ConfigError
from jaxgen.processes import roll_call

HINT = "start all of them at about the same time"


@pytest.fixture
def address():
    """A free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def end_of(address: str, count: int, number: int, seconds: float) -> str:
    """How the roll call ends for a process: "" if all were there, else the error."""
    try:
        roll_call.gather(address, count, number, seconds=seconds)
    except ConfigError as error:
        return str(error)
    return ""


def connected(address: str) -> socket.socket:
    """A connection to process 0, as soon as it listens."""
    while True:
        with suppress(ConnectionRefusedError):
            return socket.create_connection(roll_call.place("", address), timeout=5)
        time.sleep(0.01)


def ends_of(address: str, count: int, numbers: list[int], seconds: float) -> list[str]:
    """How it ends for each of these processes, which begin one after the other; process 0 last listens for jax."""
    with ThreadPoolExecutor(len(numbers)) as pool:
        running = []
        for number in numbers:
            running.append(pool.submit(end_of, address, count, number, seconds))
            time.sleep(0.1)
        return [process.result() for process in running]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]], ids=str)
def test_all_go_on_when_all_are_there(address, order, capsys, monkeypatch):
    call, listening = roll_call._call, []

    def then_listen(*args):
        """What jax does next: to listen at the same port."""
        call(*args)
        listening.append(socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))))

    monkeypatch.setattr(roll_call, "_call", then_listen)
    start = time.monotonic()
    assert ends_of(address, 3, order, 30) == ["", "", ""]
    assert time.monotonic() - start < 10
    listening.pop().close()
    captured = capsys.readouterr()
    assert captured.err == f"waiting for 3 processes at {address}\n" * 3 and captured.out == ""


def test_who_is_missing_is_said_to_all_who_came(address):
    error = f"JAX_NUM_PROCESSES: wanted 5 processes at {address}, got 3, without JAX_PROCESS_ID 1, 3; {HINT}"
    assert ends_of(address, 5, [0, 2, 4], 1) == [error] * 3


def test_without_process_0_the_others_say_so(address):
    got = "got no process 0 (Connection refused); start it too, with JAX_PROCESS_ID=0"
    assert ends_of(address, 2, [1], 0.3) == [f"JAX_COORDINATOR_ADDRESS: wanted 2 processes at {address}, {got}"]


def test_who_leaves_is_missing_again_and_strangers_do_not_count(address):
    """One process reports and is killed, a browser comes by, and one sends half a line."""
    calls = []
    thread = threading.Thread(target=lambda: calls.append(end_of(address, 3, 0, 1)))
    thread.start()
    for line in (b"jaxgen 1 3\n", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"jaxgen one 3\n", b"jaxgen"):
        with connected(address) as peer:
            peer.sendall(line)
    thread.join()
    assert calls == [f"JAX_NUM_PROCESSES: wanted 3 processes at {address}, got 1, without JAX_PROCESS_ID 1, 2; {HINT}"]


def test_two_with_one_number_or_another_count_are_refused_at_once(address):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(end_of, address, 3, 0, 1)
        with connected(address) as peer:
            peer.sendall(b"jaxgen 1 3\n")
            time.sleep(0.1)
            assert end_of(address, 3, 1, 30) == "JAX_PROCESS_ID: wanted a number for each process, got a second process 1"
            assert end_of(address, 4, 2, 30) == "JAX_NUM_PROCESSES: wanted 3 as in process 0, got 4"
        assert "without JAX_PROCESS_ID 1, 2;" in first.result()  # it waited for them until its time was over


def test_a_port_in_use_is_an_error_at_once(address):
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port))):
        wanted = "wanted a port of this machine that is free, since this is process 0"
        assert end_of(address, 2, 0, 30).startswith(f"JAX_COORDINATOR_ADDRESS: {wanted}, got {address} (")


@pytest.mark.parametrize("number", [0, 1])
def test_ctrl_c_ends_the_wait(number, address):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            roll_call.gather(address, 2, number, seconds=20)
        assert time.monotonic() - start < 2
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("wrong", ["host", "host:", "host:abc", "host:65536", "host:-1", "host:0", ":80", "", "host:²"])
def test_an_address_without_a_port_is_an_error_at_once(wrong, monkeypatch):
    group(monkeypatch, wrong, "2", "0")
    with pytest.raises(ConfigError) as error:
        sharding.start_distributed()
    assert str(error.value) == f"JAX_COORDINATOR_ADDRESS: wanted host:port with a port in 1..65535, got {wrong or 'nothing'}"


@pytest.mark.parametrize("number", [0, 1])
def test_a_host_that_nobody_knows_is_an_error_at_once(number):
    start = time.monotonic()
    said = r"^JAX_COORDINATOR_ADDRESS: wanted host:port with a host whose name is known, got no.such.host.invalid:80 \(.*\)$"
    with pytest.raises(ConfigError, match=said):
        roll_call.gather("no.such.host.invalid:80", 2, number, seconds=60)
    assert time.monotonic() - start < 30  # a name server may be slow


@pytest.mark.parametrize(("address", "host"), [("10.0.0.1:80", "10.0.0.1"), ("node7:80", "node7"), ("[::1]:80", "::1")])
def test_an_address_has_a_host_and_a_port(address, host):
    assert roll_call.place("", address) == (host, 80)


def group(monkeypatch, *values: str) -> None:
    """The environment of one process of a group."""
    for name, value in zip(("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"), values, strict=True):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("count", "number", "error"),
    [
        ("2", "2", "JAX_PROCESS_ID: wanted a number from 0 to 1, beside JAX_COORDINATOR_ADDRESS, got 2"),
        ("2", "-1", "JAX_PROCESS_ID: wanted a number from 0 to 1, beside JAX_COORDINATOR_ADDRESS, got -1"),
        ("2", "²", "JAX_PROCESS_ID: wanted a number from 0 to 1, beside JAX_COORDINATOR_ADDRESS, got ²"),
        ("2", "", "JAX_PROCESS_ID: wanted a number from 0 to 1, beside JAX_COORDINATOR_ADDRESS, got nothing"),
        ("0", "0", "JAX_NUM_PROCESSES: wanted a number from 1 on, beside JAX_COORDINATOR_ADDRESS, got 0"),
        ("two", "0", "JAX_NUM_PROCESSES: wanted a number from 1 on, beside JAX_COORDINATOR_ADDRESS, got two"),
    ],
)  # fmt: skip
def test_a_process_that_its_group_cannot_have_is_an_error_at_once(count, number, error, monkeypatch):
    group(monkeypatch, "127.0.0.1:1234", count, number)
    with pytest.raises(ConfigError) as raised:
        sharding.start_distributed()
    assert str(raised.value) == error


def test_where_a_scheduler_started_them_the_wait_ends_with_a_line(monkeypatch, capfd):
    left = threading.Event()
    monkeypatch.setattr(roll_call, "SECONDS", 0.05)
    monkeypatch.setattr(os, "_exit", lambda code: left.set() if code == 2 else None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda initialization_timeout: left.wait(20))
    monkeypatch.setattr(sharding, "_several_hosts", lambda env: True)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    sharding.start_distributed()
    assert left.is_set()
    line = "jaxgen: processes: wanted all of this job within 0 s, got not all; see which of them did not start"
    assert capfd.readouterr().err.splitlines() == ["waiting for the other processes of this job", line]


def test_an_abort_shows_where_a_process_of_a_group_was(address):
    """jax aborts when another process no longer answers."""
    group = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    program = "import os\nfrom jaxgen import sharding\nsharding.start_distributed()\ndef waits():\n    os.abort()\nwaits()"
    child = subprocess.run([sys.executable, "-c", program], env=os.environ | group, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGABRT and "line 5 in waits" in child.stderr
