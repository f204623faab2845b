"""`jaxgen.load`: the trained model of a run directory. It stands here because it needs both the models and the checkpoints."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxgen import config, sharding
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models import MODELS, build
from jaxgen.runs import checkpoint

if TYPE_CHECKING:
    from jax import Array

    class TrainedModel(nnx.Module):
        """What an editor knows of a model that was loaded: the methods that models of several families have. When it runs, it is the
        model's own class, such as GatedPixelCNN, whose methods these are; a GAN has no `log_prob`, a classifier no `sample`.

        x: a batch of what the model is of, images [B, H, W, C] or tokens [B, L]. given: what it is given for each, such as label=[B].
        """

        config: Any

        def sample(self, key: Array, n: int, **given: Any) -> Array:
            """n examples drawn with a key of `jax.random`: images [n, H, W, C], points [n, d], tokens [n, L]."""

        def log_prob(self, x: Array, **given: Any) -> Array:
            """log p(x) of each example, in nats [B]."""

        def log_density(self, v: Array, **given: Any) -> Array:
            """log p(v) of each real example, or of images plus noise in [0, 1), in nats [B]."""

        def elbo(self, x: Array, key: Array, **given: Any) -> Array:
            """A lower bound of log p(x) for each example, from one draw of the latents, in nats [B]."""

        def predict(self, x: Array) -> Array:
            """The logits of the classes for each example [B, K]."""

        def __getattr__(self, name: str) -> Any: ...  # methods of a single family, such as `encode`

else:
    TrainedModel = nnx.Module


def load(
    path: str | os.PathLike,
    step: int | None = None,
    which: Literal["best", "latest"] = "best",
    models: Sequence[type] = (),
    mesh: Mesh | None = None,
) -> TrainedModel:
    """The trained model of a run directory: built from its saved config, with the averaged (EMA) weights, on this process's first device.

    step picks a checkpoint; otherwise which="best" takes the one with the best validation score (the newest where none has a score). Only
    the model's own arrays are read, and only after their hashes, dtypes and shapes were checked. Takes no lock: a run may be going on.
    models: configuration classes of your own, each with a method `build(rngs)`. A file can name these and those of `jaxgen.models`, and
    nothing else.
    mesh: the devices that hold the model, each the part that the rules of sharding.py give it, instead of the first one.
    Raises CheckpointError (nothing there, no such step, damaged, a config that cannot be built), ConfigError (`which`, or a config of a
    class that is not listed).
    """

    def shapes_of(saved, step):
        model_config = from_saved(classes(saved, models), saved, f"checkpoint {step}", "config.model")
        try:
            shapes = jax.eval_shape(lambda: build(model_config))
        except ConfigError as error:
            raise CheckpointError(f"checkpoint {step}, {error.argument}", error.wanted, error.got, error.hint) from None
        return shapes if mesh is None else sharding.placed_shapes(mesh, shapes)

    return checkpoint.read_model(path, shapes_of, step, which)


def classes(saved: Any, models: Sequence[type] = ()) -> list[type]:
    """The configuration classes that a saved model may name: those of `jaxgen.models` and `models`.

    Raises ConfigError where it names a class that is in neither.
    """
    known, name = [*MODELS, *models], saved.get("class") if isinstance(saved, Mapping) else None
    if isinstance(name, str) and name not in [cls.__name__ for cls in known]:
        hint = f"jaxgen.load(path, models=[{name}]) in Python, or the script that trained it: python my_model.py COMMAND RUN"
        raise ConfigError("models", "the class of the run's model, which is not one of jaxgen.models", name, hint)
    return known


def from_saved(known: Sequence[type], saved: Any, where: str, place: str = "config") -> Any:
    """The configuration that a checkpoint holds, one of the classes `known`. Errors name the checkpoint, `where`, and the field: `place`
    is the name of `saved` in the manifest.

    Raises CheckpointError for an unknown field, a missing one and a wrong type, since no command line is to blame.
    """
    try:
        return config.from_json(known, saved)
    except ConfigError as error:
        field = place + error.argument.removeprefix("config")
        raise CheckpointError(f"{where}, {field}", error.wanted, error.got, error.hint) from None


def kept_sizes(saved: dict[str, Any]) -> dict[str, Any]:
    """The sizes that a run keeps whatever its data are now, from its model's saved configuration (JSON).

    So a run that was begun without the label or the vector of its data goes on without, and text is coded as it was.
    """
    names = ("num_classes", "vector_size", "length", "vocabulary", "symbols")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items() if name in names}
