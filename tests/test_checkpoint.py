"""What a checkpoint promises: bit-exact, complete or absent, checked before use, never lost to a full disk."""

import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_runs import CONFIG, DATA, flip, same_bits, state, two_steps

from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.runs import checkpoint, directory, lock, manifest, storage
from jaxgen.runs.checkpoint import Checkpointer, FolderGone

run = pytest.fixture(two_steps)


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
    again = state(5) | {"step": jnp.int32(2)}
    run.save(2, again)
    step, restored = run.restore(state(1))
    assert (step, same_bits(restored, again)) == (2, True)


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


@pytest.mark.parametrize("when", ["before", "while", "taken"])
def test_a_removed_folder_ends_the_run_and_stays_away(run, monkeypatch, when):
    """Removed before a save, or by somebody while the arrays are written; or another run has the folder, and its files stay."""
    folder = Path(run.workdir)
    if when == "while":
        save = storage.save
        monkeypatch.setattr(storage, "save", lambda path, arrays: save(path, arrays) or shutil.rmtree(folder) or path.mkdir(parents=True))
    else:
        shutil.rmtree(folder)
    if when == "taken":
        folder.mkdir()
        (folder / "lock").write_text('{"host": "another", "pid": 1, "start": "now"}')
    with pytest.raises(FolderGone, match="^workdir: wanted the folder of this run, got .*/run, deleted, moved or taken by another run"):
        run.save(3, state(3))
    run.close()
    assert [path.name for path in folder.parent.rglob("*")] == (["run", "lock"] if when == "taken" else [])


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


# --- object stores: a local folder under the rules for gs:// ------------------------------------------------------------------------------


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(directory, "is_local", lambda path: False)


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
        assert lock._holder(directory.folder(tmp_path) / "lock") == {}
