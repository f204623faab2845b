"""jaxgen: generative models in JAX, one readable file each. `jaxgen.load("runs/x")` gives a trained model,
`jaxgen.train(model_config, dataset)` trains one on arrays of your own.

Importing this package imports nothing else: every name below is loaded at its first use (PEP 562), so that `jaxgen --help` answers at once
and a notebook that only samples never pays for orbax, TFDS or matplotlib. Editors and type checkers read the imports under TYPE_CHECKING.
"""

from importlib import import_module

TYPE_CHECKING = False  # true for editors and type checkers; a name that they know, so that typing need not be imported
if TYPE_CHECKING:
    from jaxgen import (
        attacks,
        benchmark,
        checks,
        cli,
        commands,
        config,
        data,
        denoising,
        distributions,
        errors,
        evaluation,
        experiment,
        latent,
        layers,
        measures,
        models,
        notebook,
        optimizers,
        packing,
        places,
        processes,
        reinforcement,
        reports,
        run_commands,
        runs,
        sampling,
        sharding,
        stages,
        statistics,
        synonyms,
        trained,
        training,
    )
    from jaxgen.notebook import train
    from jaxgen.trained import load

__version__ = "0.1.0"

__all__ = [
    "__version__", "load", "train",
    "attacks", "benchmark", "checks", "cli", "commands", "config", "data", "denoising", "distributions", "errors", "evaluation",
    "experiment", "latent", "layers", "measures", "models", "notebook", "optimizers", "packing", "places", "processes", "reinforcement",
    "reports", "run_commands", "runs", "sampling", "sharding", "stages", "statistics", "synonyms", "trained", "training",
]  # fmt: skip

_FUNCTIONS = {"load": "jaxgen.trained", "train": "jaxgen.notebook"}


def __getattr__(name: str):
    """`jaxgen.load`, `jaxgen.train` and the submodules, on demand."""
    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    if name in __all__:
        return import_module(f"jaxgen.{name}")
    raise AttributeError(f"module 'jaxgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
