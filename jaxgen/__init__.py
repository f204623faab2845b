"""jaxgen: generative models in JAX, one readable file each. `jaxgen.load("runs/x")` gives a trained model.

Importing this package imports nothing else: every name below is loaded at its first use (PEP 562), so that `jaxgen --help` answers at once
and a notebook that only samples never pays for orbax, TFDS or matplotlib.
"""

from importlib import import_module

__version__ = "0.1.0"

_SUBMODULES = (
    "checks", "cli", "config", "data", "distributions", "errors", "evaluation", "experiment",
    "layers", "models", "runs", "sampling", "sharding", "trained", "training",
)  # fmt: skip

__all__ = ["__version__", "load", *_SUBMODULES]


def __getattr__(name: str):
    """`jaxgen.load` and the submodules, on demand."""
    if name == "load":
        return import_module("jaxgen.trained").load
    if name in _SUBMODULES:
        return import_module(f"jaxgen.{name}")
    raise AttributeError(f"module 'jaxgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
