"""A state as a flat dict {path in the tree: array}, which is what a checkpoint holds, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxgen.errors import CheckpointError

SHOWN = 8


def named(tree: Any) -> dict[str, Any]:
    """{path in the tree, joined by "/": leaf}, in the order of the leaves."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def arrays(tree: Any) -> dict[str, Any]:
    """The named leaves as arrays; numpy and Python scalars, which orbax would save and then not restore, as numpy arrays without axes."""
    return {name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for name, leaf in named(tree).items()}


def check(saved: Mapping[str, Any], wanted: Mapping[str, Any], complete: bool) -> None:
    """CheckpointError with the names where dtype or shape differ, or a leaf is missing or (complete) too many.

    orbax casts another dtype without a word, and describes another tree in some thousand characters.
    """
    problems = [f"{name} is not wanted" for name in saved if complete and name not in wanted]
    for name, leaf in wanted.items():
        expected = f"{_dtype(leaf)}{list(np.shape(leaf))}"
        got = f"{saved[name]['dtype']}{saved[name]['shape']}" if name in saved else "nothing"
        if got != expected:
            problems.append(f"{name} is {got}, wanted {expected}")
    if problems:
        more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError("arrays", "those of the model and its optimizer", ", ".join(problems[:SHOWN]) + more, "was the code changed?")


def placed(leaf: Any) -> Any:
    """What is to be restored for a leaf: shape, dtype and sharding of a jax array, or else a numpy array."""
    if not _on_device(leaf):
        return np.asarray(leaf)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def like(leaf: Any, array: Any) -> Any:
    """The restored array in the type of the target's leaf; None stands for an array without elements, which orbax cannot save."""
    if array is None:
        array = np.zeros(leaf.shape, leaf.dtype)
    if _on_device(leaf):
        return array if isinstance(array, jax.Array) else jax.device_put(array, placed(leaf).sharding)
    if isinstance(leaf, np.ndarray):
        return array
    return array[()] if isinstance(leaf, np.generic) else type(leaf)(array.item())


def _on_device(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def _dtype(leaf: Any) -> str:
    return np.dtype(leaf.dtype).name if hasattr(leaf, "dtype") else np.asarray(leaf).dtype.name
