"""What the tests of checkpoints share: a small run, damage, and processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.runs.checkpoint import Checkpointer

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {
    "class": "Experiment",
    "model": {"class": "A", "width": 8},
    "train": {"class": "TrainConfig", "steps": 10, "batch_size": 4},
    "workdir": "w",
}
DATA = {"name": "digits", "n": 3, "sha256": "ab", "seed": 0, "batch_size": 4, "process_count": 1}


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


def two_steps(tmp_path):
    """A fixture: a run with checkpoints 1 and 2, still open."""
    with Checkpointer(tmp_path / "run", CONFIG, DATA) as saver:
        for step in (1, 2):
            saver.save(step, state(step))
        yield saver


def flip(seed: int):
    """Damage: one bit of a file, somewhere."""

    def damage(file: Path):
        data = bytearray(file.read_bytes())
        position = np.random.default_rng(seed).integers(8 * len(data))
        data[position // 8] ^= 1 << int(position % 8)
        file.write_bytes(data)

    return damage


def child(script: str, *words, **environment) -> subprocess.Popen:
    """A real process of its own that runs `script`."""
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out
