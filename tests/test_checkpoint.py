"""What a checkpoint promises: bit-exact, complete or absent, checked before use, one run per directory."""

import dataclasses
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxgen
from jaxgen import checkpoint, config, lock, manifest, models, rundir, sharding, training
from jaxgen.checkpoint import Checkpointer
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models.gated_pixelcnn import GatedPixelCNN, GatedPixelCNNConfig

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {
    "class": "Experiment",
    "model": {"class": "A", "width": 8},
    "train": {"class": "TrainConfig", "steps": 10, "batch_size": 4},
    "workdir": "w",
}
DATA = {"name": "digits", "sha256": "ab", "seed": 0, "batch_size": 4, "process_count": 1}


def state(value: float, size: int = 1000) -> dict:
    return {"step": jnp.int32(value), "model": {"w": jax.random.normal(jax.random.key(int(value)), (size,))}}


def same_bits(one, other) -> bool:
    """Same tree, types, dtypes, shapes and bytes."""
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    return all(
        isinstance(a, jax.Array) == isinstance(b, jax.Array)
        and (isinstance(a, jax.Array) or type(a) is type(b))
        and np.asarray(a).dtype == np.asarray(b).dtype
        and np.shape(a) == np.shape(b)
        and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in pairs
    )


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints 1 and 2."""
    with Checkpointer(tmp_path / "run", CONFIG, DATA) as saver:
        for step in (1, 2):
            saver.save(step, state(step))
        yield saver


def child(script: str, *words, **environment) -> subprocess.Popen:
    """A real process of its own that runs `script`."""
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


# --- bits ---------------------------------------------------------------------------------------------------------------------------------


def test_every_leaf_type_comes_back_bit_for_bit(tmp_path):
    """All bit patterns: NaN payloads, denormals, negative zero. numpy and Python scalars keep their type, empty arrays their shape."""
    noise = np.random.default_rng(0)
    bits = noise.integers(0, 2**32, 257, dtype=np.uint32)
    saved = {
        "float32": jnp.asarray(bits.view(np.float32)),
        "bfloat16": jax.lax.bitcast_convert_type(jnp.asarray(bits.astype(np.uint16)), jnp.bfloat16),
        "integers": [jnp.asarray(bits.view(np.int32)), jnp.asarray(bits), jnp.uint8(200), jnp.int8(-5)],
        "bool": (jnp.asarray([True, False]), jnp.bool_(True)),
        "scalars": [jnp.float32(-0.0), np.int32(7), np.int64(2**40), np.float64(0.1), np.bool_(True), np.float32(np.nan)],
        "numpy": np.arange(6.0).reshape(2, 3),
        "python": [3, 0.25, True],
        "empty": jnp.zeros((0, 3)),
        "a/b.c d": jnp.ones(()),
    }
    with Checkpointer(tmp_path, CONFIG) as saver:
        saver.save(0, saved)
        step, restored = saver.restore(saved)
    assert step == 0
    assert same_bits(saved, restored)


def test_restore_into_shapes_only(run):
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state(1))
    step, restored = run.restore(target)
    assert step == 2
    assert same_bits(restored, state(2))


def test_nothing_saved_is_none(tmp_path):
    with Checkpointer(tmp_path / "a folder with spaces, ü" / "deep", CONFIG) as saver:
        assert saver.restore(state(1)) is None


def test_a_step_is_saved_once(run):
    run.save(2, state(7))
    assert same_bits(run.restore(state(1))[1], state(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["model"].update(w=jnp.zeros(1000, jnp.bfloat16)), r"model/w is float32\[1000\], wanted bfloat16\[1000\]"),
        (lambda tree: tree["model"].update(w=jnp.zeros(999)), r"model/w is float32\[1000\], wanted float32\[999\]"),
        (lambda tree: tree["model"].update(v=jnp.zeros(3)), r"model/v is nothing, wanted float32\[3\]"),
        (lambda tree: tree.pop("step"), "step is not wanted"),
    ],
)
def test_other_arrays_are_refused_by_name(run, change, message):
    target = state(1)
    change(target)
    with pytest.raises(CheckpointError, match=message):
        run.restore(target)


# --- damage -------------------------------------------------------------------------------------------------------------------------------


def flip(seed):
    def damage(file: Path):
        data = bytearray(file.read_bytes())
        position = np.random.default_rng(seed).integers(8 * len(data))
        data[position // 8] ^= 1 << int(position % 8)
        file.write_bytes(data)

    return damage


DAMAGES = {
    **{f"flip{seed}": flip(seed) for seed in range(6)},
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "deleted": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_named_and_the_step_before_is_used(run, damage, capsys):
    files = [file for file in (Path(run.workdir) / "checkpoints" / "2").rglob("*") if file.is_file()]
    assert {"manifest.json", "_METADATA", "manifest.ocdbt"} <= {file.name for file in files}
    assert sum(file.stat().st_size for file in files) > state(1)["model"]["w"].nbytes
    for file in files:
        intact = file.read_bytes()
        DAMAGES[damage](file)
        capsys.readouterr()
        step, restored = run.restore(state(1))
        assert (step, same_bits(restored, state(1))) == (1, True), file
        assert f"checkpoint 2 is damaged and not used: {file}: " in capsys.readouterr().err
        file.write_bytes(intact)
    assert run.restore(state(1))[0] == 2
    assert capsys.readouterr().err == ""


def test_empty_steps_and_strangers_do_not_disturb(run, capsys):
    steps = Path(run.workdir) / "checkpoints"
    for name in ("9.tmp", "3.orbax-checkpoint-tmp", "trash", "-4", "007"):
        (steps / name).mkdir()
    assert run.restore(state(1))[0] == 2
    assert capsys.readouterr().err == ""
    (steps / "9").mkdir()
    assert run.restore(state(1))[0] == 2
    assert "9/manifest.json" in capsys.readouterr().err


def test_all_damaged_never_starts_over(run, capsys):
    for step in (1, 2):
        flip(step)(next((Path(run.workdir) / "checkpoints" / str(step) / "arrays" / "d").iterdir()))
    with pytest.raises(CheckpointError, match="only damaged ones .*2, 1.*--restart"):
        run.restore(state(1))
    assert capsys.readouterr().err.count("is damaged and not used") == 2
    run.close()
    with Checkpointer(run.workdir, CONFIG, DATA, restart=True) as saver:
        assert saver.restore(state(1)) is None


def test_a_damaged_step_is_replaced_when_the_run_reaches_it_again(run):
    os.truncate(Path(run.workdir) / "checkpoints/2/arrays/_METADATA", 3)
    assert run.restore(state(1))[0] == 1
    run.save(2, state(5))
    step, restored = run.restore(state(1))
    assert (step, same_bits(restored, state(5))) == (2, True)


def test_a_damaged_step_does_not_count_as_one_of_the_newest_two(run):
    os.truncate(Path(run.workdir) / "checkpoints/2/arrays/_METADATA", 3)
    run.restore(state(1))
    run.save(3, state(3))
    assert run.steps() == [1, 3]


# --- retention ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bits_per_dim", "bits_per_dim_bound"])
def test_the_newest_two_and_the_best_are_kept(tmp_path, name):
    kept = []
    with Checkpointer(tmp_path, CONFIG) as saver:
        for step, score in enumerate([3.0, float("nan"), 1.0, 2.0, 5.0, 0.5, 0.7, 0.6], 1):
            saver.save(step, state(step, 3), {name: np.float32(score), "other": -step})
            kept.append(saver.steps())
    assert kept == [[1], [1, 2], [2, 3], [3, 4], [3, 4, 5], [5, 6], [6, 7], [6, 7, 8]]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["6", "7", "8"]
    metrics = checkpoint.list_metrics(tmp_path)
    assert metrics[8] == {name: pytest.approx(0.6), "other": -8}


def test_any_metric_can_decide(tmp_path):
    with Checkpointer(tmp_path, CONFIG, best_metric="distance") as saver:
        for step in (1, 2, 3, 4):
            saver.save(step, state(step, 3), {"distance": step, "bits_per_dim": -step})
        assert saver.steps() == [1, 3, 4]


# --- full disks and lost folders ----------------------------------------------------------------------------------------------------------


# orbax gives up at the first array that does not fit; writes that are still under way then report to its closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_keeps_the_older_steps_and_the_run_may_go_on(run, monkeypatch):
    large = state(3, 100_000)  # before the limit, which would also tear an entry of the compilation cache
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match="^step 3: .*, got File too large; the older ones are kept$"):
            run.save(3, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(CheckpointError, match="no space left on the device for 0.0 MB"):
            run.save(3, state(3))
    assert run.steps() == [1, 2]
    assert run.restore(state(1))[0] == 2
    run.save(3, state(3))
    assert run.restore(state(1))[0] == 3
    run.close()
    with Checkpointer(run.workdir, CONFIG, DATA) as saver:
        assert sorted(path.name for path in (saver.workdir / "checkpoints").iterdir()) == ["2", "3"]


def test_a_removed_folder_is_made_again(run):
    shutil.rmtree(run.workdir)
    run.save(3, state(3))
    assert run.restore(state(1))[0] == 3
    assert (run.workdir / "config.json").exists()


@pytest.mark.parametrize("inside", ["file", "file/deeper"])
def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path, inside):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="^workdir: wanted a folder that can be written, got .*file.*$") as error:
        Checkpointer(tmp_path / inside, CONFIG)
    assert "\n" not in str(error.value)


def test_a_mistyped_store_is_not_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="gs://"):
        Checkpointer("gs:/bucket/run", CONFIG)
    assert list(tmp_path.iterdir()) == []


# --- is it the same run? ------------------------------------------------------------------------------------------------------------------


def changed(path: str, value) -> dict:
    """CONFIG with one field changed."""
    tree = dict(CONFIG)
    *groups, name = path.split(".")
    branch = tree
    for group in groups:
        branch[group] = dict(branch[group])
        branch = branch[group]
    branch[name] = value
    return tree


@pytest.mark.parametrize(("field", "value"), [("model.width", 16), ("model.depth", 2), ("train.batch_size", 8), ("model.steps", 3)])
def test_another_config_is_refused_with_its_fields(run, field, value):
    run.close()
    with pytest.raises(ConfigError, match=rf"{field} changed from .* to {value};.*--restart"):
        Checkpointer(run.workdir, changed(field, value), DATA)
    with Checkpointer(run.workdir, CONFIG, DATA) as saver:  # the refused one left no lock and no config
        assert saver.restore(state(1))[0] == 2
    with Checkpointer(run.workdir, changed(field, value), DATA, restart=True) as saver:
        assert saver.steps() == []


@pytest.mark.parametrize("field", ["train.steps", "train.log_every", "train.max_minutes", "workdir"])
def test_harmless_changes_are_reported_and_kept(run, field, capsys):
    run.close()
    with Checkpointer(run.workdir, changed(field, 77), DATA) as saver:
        assert f"{field} changed from" in capsys.readouterr().err
        saver.save(3, state(3))
    assert checkpoint.read_config(run.workdir) == changed(field, 77)
    assert '"class": "Experiment"' in (run.workdir / "config.json").read_text()


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("sha256", "cd"), ("batch_size", 8), ("process_count", 2), ("name", "mnist")])
def test_other_data_is_refused(run, name, value):
    run.close()
    with pytest.raises(ConfigError, match=f"data fingerprint {name} changed from .* to {value!r}"):
        Checkpointer(run.workdir, CONFIG, DATA | {name: value})


def test_another_model_is_refused(run):
    run.close()
    with pytest.raises(CheckpointError, match="checkpoint is A, config is B"):
        Checkpointer(run.workdir, changed("model.class", "B"), DATA)


def test_a_run_without_checkpoints_may_change(tmp_path):
    Checkpointer(tmp_path, CONFIG, DATA).close()
    Checkpointer(tmp_path, changed("model.width", 3), DATA).close()


def test_an_upgrade_is_reported(run, monkeypatch, capsys):
    monkeypatch.setattr(jaxgen, "__version__", "9.9")
    run.restore(state(1))
    assert "versions changed: jaxgen from '0.1.0' to '9.9'" in capsys.readouterr().err


# --- one run per directory ----------------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from jaxgen.checkpoint import Checkpointer
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
from jaxgen import checkpoint

workdir, moment = sys.argv[1:]
saver = checkpoint.Checkpointer(workdir, {"model": {"class": "A"}})
state = lambda step: {"w": np.arange(1000, dtype=np.float32) * np.float32(step)}
for step in (1, 2, 3):
    saver.save(step, state(step))
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
rename = os.rename

def patched_rename(old, new, *args, **kwargs):
    name = os.path.basename(os.fspath(new))
    if moment == "inside orbax" and name == "arrays" or moment == "before the rename" and name == "4":
        die()
    rename(old, new, *args, **kwargs)
    if moment == "after the rename" and name == "4" or moment == "inside a deletion" and name.startswith("2."):
        die()

os.rename = patched_rename
saver.save(4, state(4))
print("not killed")
"""
MOMENTS = {
    "inside orbax": [2, 3],
    "before the rename": [2, 3],
    "after the rename": [2, 3, 4],
    "inside a deletion": [3, 4],
}


def test_kill_inside_a_save_leaves_whole_steps_only(tmp_path):
    for moments in (list(MOMENTS)[:2], list(MOMENTS)[2:]):
        for moment, process in [(moment, child(KILL, tmp_path / moment, moment)) for moment in moments]:
            out, err = process.communicate(timeout=120)
            assert (process.returncode, out) == (-signal.SIGKILL, ""), (moment, err)
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
from jaxgen.checkpoint import Checkpointer

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
    finish(child(EIGHT, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=8"))
    with Checkpointer(tmp_path, {"model": {"class": "A"}}) as saver:
        step, restored = saver.restore(tree)
    assert step == 2
    assert same_bits(restored, jax.tree.map(lambda leaf: leaf + 1, tree))


PAIR = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxgen import manifest, sharding
from jaxgen.checkpoint import Checkpointer
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


# --- object stores: a local folder under the rules for gs:// ------------------------------------------------------------------------------


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(rundir, "is_local", lambda path: False)


def test_a_store_commits_by_the_manifest(store, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("quota")

    with Checkpointer(tmp_path, CONFIG, DATA) as saver:
        for step in (1, 2, 3):
            saver.save(step, state(step), {"bits_per_dim": 4 - step})
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "write", full)
            with pytest.raises(CheckpointError, match="quota"):
                saver.save(4, state(4))
        assert saver.steps() == [2, 3]
        assert saver.restore(state(1))[0] == 3
    (tmp_path / "checkpoints/3/manifest.json").unlink()  # as if the run had died before it was written
    with Checkpointer(tmp_path, CONFIG, DATA) as saver:
        assert saver.steps() == [2]
        step, restored = saver.restore(state(1))
    assert (step, same_bits(restored, state(2))) == (2, True)


def test_a_store_refuses_a_live_pid_of_this_host_only(store, tmp_path, capsys):
    note = '{"host": "%s", "pid": %d, "start": "then"}'
    (tmp_path / "lock").write_text(note % (socket.gethostname(), os.getppid()))
    with pytest.raises(ConfigError, match=f"pid {os.getppid()} "):
        Checkpointer(tmp_path, CONFIG)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True).stdout
    for host, pid in [(socket.gethostname(), int(gone)), (socket.gethostname(), os.getpid()), ("another", os.getppid())]:
        (tmp_path / "lock").write_text(note % (host, pid))
        Checkpointer(tmp_path, CONFIG).close()
        assert f"gone: pid {pid} on host {host}" in capsys.readouterr().err
        assert lock._holder(rundir.folder(tmp_path) / "lock") == {}


# --- load ---------------------------------------------------------------------------------------------------------------------------------

TINY = GatedPixelCNNConfig(image_shape=(4, 4, 1), levels=3, layers=1, width=4, head_width=4, input_kernel=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a tiny model with checkpoints 1 (best), 2 and 3, whose averages are `step` everywhere."""
    folder = tmp_path_factory.mktemp("trained")
    mesh = sharding.make_mesh()
    optimizer = training.make_optimizer(training.OptimizerConfig(), 10)
    start = training.init_state(models.build(TINY), optimizer, mesh)
    with Checkpointer(folder, {"model": config.to_json(TINY)}, DATA) as saver:
        for step, score in ((1, 1.0), (2, 3.0), (3, 2.0)):
            ema = jax.tree.map(lambda leaf, step=step: jnp.full_like(leaf, step), start.ema)
            saver.save(step, dataclasses.replace(start, step=jnp.int32(step), ema=ema), {"bits_per_dim": score})
        assert saver.steps() == [1, 2, 3]
        assert same_bits(saver.restore(start)[1].opt_state, start.opt_state)
    return folder


@pytest.mark.parametrize(("choice", "step"), [({}, 1), ({"which": "latest"}, 3), ({"which": "best"}, 1), ({"step": 2}, 2)])
def test_load_gives_the_model_with_its_averages(trained, choice, step):
    model = jaxgen.load(str(trained), **choice)
    assert isinstance(model, GatedPixelCNN)
    assert model.config == TINY
    assert all(bool((leaf == step).all()) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    image = jnp.zeros((2, 4, 4, 1), jnp.uint8)
    assert np.isfinite(model.log_prob(image)).all()


def test_load_passes_over_a_damaged_best_step(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    flip(0)(next((tmp_path / "run/checkpoints/1/arrays/d").iterdir()))
    model = jaxgen.load(tmp_path / "run")
    assert float(jax.tree.leaves(nnx.state(model, nnx.Param))[0].ravel()[0]) == 3
    assert "checkpoint 1 is damaged" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="only damaged ones"):
        jaxgen.load(tmp_path / "run", step=1)


def test_load_names_what_is_there(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"step: wanted one of \[1, 2, 3\], got 7"):
        jaxgen.load(trained, step=7)
    with pytest.raises(CheckpointError, match="available steps: none"):
        jaxgen.load(tmp_path / "nowhere")


@dataclasses.dataclass(frozen=True)
class CounterConfig:
    width: int = 3


class Counter(nnx.Module):
    """A trained weight and a variable that is not trained by gradients (a codebook average, say)."""

    def __init__(self, config: CounterConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.weight = nnx.Param(jnp.zeros(config.width))
        self.count = nnx.BatchStat(jnp.zeros(config.width))


def test_load_takes_variables_without_an_average_from_the_model(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, CounterConfig, Counter)
    model = jax.tree.map(lambda leaf: leaf + 1, Counter(CounterConfig(), rngs=nnx.Rngs(0)))
    ema = jax.tree.map(lambda leaf: leaf + 1, nnx.state(model, nnx.Param))
    with Checkpointer(tmp_path, {"model": config.to_json(CounterConfig())}) as saver:
        saver.save(1, training.TrainState(jnp.int32(1), model, (), ema))
    loaded = jaxgen.load(tmp_path)
    assert loaded.weight[...].tolist() == [2, 2, 2]
    assert loaded.count[...].tolist() == [1, 1, 1]


# --- the package --------------------------------------------------------------------------------------------------------------------------


def test_importing_jaxgen_imports_nothing_heavy():
    script = "import sys; before = set(sys.modules); import jaxgen; print(*(set(sys.modules) - before), jaxgen.__version__)"
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {name for name in out if name.split(".")[0] not in sys.stdlib_module_names} == {"jaxgen", version}


def test_importing_checkpoint_does_not_import_orbax():
    script = "import sys, jaxgen; jaxgen.load; print('jaxgen.checkpoint' in sys.modules, 'orbax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True", "False"]
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = jaxgen.nothing_like_that
