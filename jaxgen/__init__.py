"""jaxgen: generative models in JAX, one readable file each. `jaxgen.load("runs/x")` gives a trained model,
`jaxgen.train(model_config, dataset)` trains one on arrays of your own.

Importing this package imports nothing else: every name below is loaded at its first use (PEP 562), so that `jaxgen --help` answers at once
and a notebook that only samples never pays for orbax, TFDS or matplotlib.
"""

from importlib import import_module

__version__ = "0.1.0"

_SUBMODULES = (
    "checks", "cli", "config", "data", "distributions", "errors", "evaluation", "experiment",
    "layers", "models", "notebook", "runs", "sampling", "sharding", "trained", "training",
)  # fmt: skip

_FUNCTIONS = {"load": "jaxgen.trained", "train": "jaxgen.notebook"}

__all__ = ["__version__", *_FUNCTIONS, *_SUBMODULES]


def __getattr__(name: str):
    """`jaxgen.load`, `jaxgen.train` and the submodules, on demand."""
    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    if name in _SUBMODULES:
        return import_module(f"jaxgen.{name}")
    raise AttributeError(f"module 'jaxgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
