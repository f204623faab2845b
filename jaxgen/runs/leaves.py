"""A state (a tree of arrays) as a flat dict {path in the tree: array}, the form in which a checkpoint holds it."""

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
    """The named leaves as arrays. Scalars of numpy and Python become numpy arrays of shape (), which orbax restores."""
    return {name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for name, leaf in named(tree).items()}


def check(saved: Mapping[str, Any], wanted: Mapping[str, Any], complete: bool) -> None:
    """Compare the leaves of a checkpoint with those of the state that is to be restored, before orbax reads them.

    saved: {name: {"dtype", "shape"}}; wanted: {name: leaf}. Raises CheckpointError with up to 8 names where dtype or shape differ, a
    wanted leaf is missing, or, if `complete`, a saved one is not wanted. (orbax would cast another dtype without an error.)
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
    """The target that orbax restores a leaf into: shape, dtype and sharding for a jax array or ShapeDtypeStruct, else a numpy array."""
    if not _on_device(leaf):
        return np.asarray(leaf)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def like(leaf: Any, array: Any) -> Any:
    """The restored `array` as the type of `leaf`: jax array, numpy array or scalar. None: an array of size 0, which orbax cannot save."""
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
