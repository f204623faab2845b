"""Checkpoints and real processes: two runs in one folder, kill -9 inside a save, eight devices, two hosts."""

import os
import re
import signal
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import virtual_devices
from saved_runs import CONFIG, child, finish, same_bits

from jaxgen.errors import ConfigError
from jaxgen.runs import manifest
from jaxgen.runs.checkpoint import Checkpointer

HOLD = """
import sys, time
from jaxgen.runs.checkpoint import Checkpointer
saver = Checkpointer(sys.argv[1], {"model": {"class": "A"}})
print("holding", flush=True)
time.sleep(100)
"""


def test_a_live_run_keeps_others_out_and_a_dead_one_does_not(tmp_path, capsys):
    other = child(HOLD, tmp_path)
    try:
        assert other.stdout.readline() == "holding\n"
        with pytest.raises(ConfigError, match=f"in use by pid {other.pid} on host {re.escape(socket.gethostname())}, started 2"):
            Checkpointer(tmp_path, {"model": {"class": "A"}})
    finally:
        other.kill()
        other.communicate()
    with Checkpointer(tmp_path, {"model": {"class": "A"}}):
        assert f"taking over {tmp_path}/lock from a run that is gone: pid {other.pid}" in capsys.readouterr().err
        with pytest.raises(ConfigError, match=f"pid {os.getpid()} "):
            Checkpointer(tmp_path, {"model": {"class": "A"}})
    Checkpointer(tmp_path, {"model": {"class": "A"}}).close()
    assert capsys.readouterr().err == ""


def test_a_torn_lock_file_is_taken_over(tmp_path):
    (tmp_path / "lock").write_text('{"host": "x", "pi')
    Checkpointer(tmp_path, CONFIG).close()


# --- kill -9 inside a save ----------------------------------------------------------------------------------------------------------------

KILL = """
import os, signal, sys
import numpy as np
from jaxgen.runs import checkpoint

die, rename = lambda: os.kill(os.getpid(), signal.SIGKILL), os.rename

def save(workdir, moment):
    def patched_rename(old, new, *args, **kwargs):
        name = os.path.basename(os.fspath(new))
        if moment == "inside orbax" and name == "arrays" or moment == "before the rename" and name == "4":
            die()
        rename(old, new, *args, **kwargs)
        if moment == "after the rename" and name == "4" or moment == "inside a deletion" and name.startswith("2."):
            die()

    saver = checkpoint.Checkpointer(workdir, {"model": {"class": "A"}})
    state = lambda step: {"w": np.arange(1000, dtype=np.float32) * np.float32(step)}
    for step in (1, 2, 3):
        saver.save(step, state(step))
    os.rename = patched_rename
    saver.save(4, state(4))
    print("not killed", flush=True)

for moment in sys.argv[2:]:  # each in a process forked from this one, which has imported everything and saved nothing
    child = os.fork()
    if not child:
        save(f"{sys.argv[1]}/{moment}", moment)
        os._exit(0)
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
MOMENTS = {
    "inside orbax": [2, 3],
    "before the rename": [2, 3],
    "after the rename": [2, 3, 4],
    "inside a deletion": [3, 4],
}


def test_kill_inside_a_save_leaves_whole_steps_only(tmp_path):
    said = finish(child(KILL, tmp_path, *MOMENTS)).splitlines()
    assert said == [f"{moment} {-signal.SIGKILL}" for moment in MOMENTS]
    for moment, steps in MOMENTS.items():
        folder = tmp_path / moment / "checkpoints"
        assert len(list(folder.iterdir())) == len(steps) + (moment != "after the rename"), moment  # something was left behind
        with Checkpointer(tmp_path / moment, {"model": {"class": "A"}}) as saver:
            assert sorted(path.name for path in folder.iterdir()) == [str(step) for step in steps], moment
            for step in steps:
                manifest.verify(saver.workdir / "checkpoints" / str(step))
            step, restored = saver.restore({"w": np.zeros(1000, np.float32)})
            assert step == steps[-1]
            assert same_bits(restored, {"w": np.arange(1000, dtype=np.float32) * np.float32(step)})
            saver.save(5, restored)


# --- devices and processes ----------------------------------------------------------------------------------------------------------------

EIGHT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jaxgen import sharding
from jaxgen.runs.checkpoint import Checkpointer

assert jax.device_count() == 8
tree = {"w": jnp.zeros((64, 64)), "b": jnp.zeros(5)}
tree = jax.device_put(tree, sharding.state_sharding(sharding.make_mesh(fsdp=4), tree))
with Checkpointer(sys.argv[1], {"model": {"class": "A"}}) as saver:
    step, tree = saver.restore(tree)
    assert step == 1 and len({shard.data.tobytes() for shard in map(lambda s: np.asarray(s.data), tree["w"].addressable_shards)}) == 4
    saver.save(2, jax.tree.map(lambda leaf: leaf + 1, tree))
"""


def test_eight_devices_and_one(tmp_path):
    tree = {"w": jax.random.normal(jax.random.key(0), (64, 64)), "b": jnp.arange(5.0)}
    with Checkpointer(tmp_path, {"model": {"class": "A"}}) as saver:
        saver.save(1, tree)
    finish(child(EIGHT, tmp_path, **virtual_devices(8)))
    with Checkpointer(tmp_path, {"model": {"class": "A"}}) as saver:
        step, restored = saver.restore(tree)
    assert step == 2
    assert same_bits(restored, jax.tree.map(lambda leaf: leaf + 1, tree))


PAIR = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxgen import sharding
from jaxgen.runs import manifest
from jaxgen.runs.checkpoint import Checkpointer
from jaxgen.errors import CheckpointError

workdir, port, index = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
split = NamedSharding(sharding.make_mesh(), PartitionSpec("data"))
tree = {"w": jax.make_array_from_callback((4, 3), split, lambda at: np.arange(12, dtype=np.float32).reshape(4, 3)[at])}
with Checkpointer(workdir, {"model": {"class": "A"}}) as saver:
    assert saver.restore(tree) is None
    saver.save(1, tree)
    write = manifest.write
    def fail(*args, **kwargs):
        raise OSError("the disk is full")
    manifest.write = fail
    try:
        saver.save(2, tree)
        raise AssertionError("a failed save must fail on both processes")
    except CheckpointError as error:
        print(error)
    manifest.write = write
    saver.save(2, tree)
    step, restored = saver.restore(tree)
    assert step == 2
    for one, other in zip(tree["w"].addressable_shards, restored["w"].addressable_shards, strict=True):
        assert np.array_equal(one.data, other.data) and one.index == other.index
"""


def test_two_processes_save_one_checkpoint(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [child(PAIR, tmp_path, port, index) for index in (0, 1)]
    said = [finish(process) for process in pair]
    assert "the disk is full" in said[0]
    assert "process 0 failed" in said[1]
    with Checkpointer(tmp_path, {"model": {"class": "A"}}) as saver:
        step, restored = saver.restore({"w": jnp.zeros((4, 3))})
    assert step == 2
    assert np.array_equal(restored["w"], np.arange(12).reshape(4, 3))
