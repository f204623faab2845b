"""The table of ALL models: one small configuration for each model and each thing it may be given, and a batch that fits it.

test_all_models.py and test_precision.py run over it. A new model is one line here; an autoregressive image model has one in model_table.py,
too, with what it may see.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from model_table import TABLE

from jaxgen.data.features import ClassLabel, Image, Points, Vector
from jaxgen.models import MODELS, GANConfig, VAEConfig

SHAPE, LEVELS = (4, 4, 1), 3
CONFIGS = {entry.name: entry.make(SHAPE, LEVELS) for entry in TABLE}
CONFIGS |= {f"{entry.name} of a label": entry.make(SHAPE, LEVELS, num_classes=3) for entry in TABLE}
CONFIGS |= {
    "gated_pixelcnn of a vector": TABLE[0].make(SHAPE, LEVELS, vector_size=2),
    "vae": VAEConfig(SHAPE, LEVELS, latent=3, hidden=(6, 5)),
    "vae of a label": VAEConfig(SHAPE, LEVELS, 3, latent=3, hidden=(6, 5), architecture="conv", estimator="A"),
    "gan": GANConfig(SHAPE, LEVELS, latent=3, hidden=6, architecture="conv"),
    "gan of points": GANConfig((2,), 0, latent=3, hidden=6),
}


def features_of(config) -> dict:
    """The columns that a model needs, with their features."""
    if len(config.image_shape) == 1:
        return {"point": Points(*config.image_shape)}
    features = {"image": Image(config.image_shape, config.levels)}
    features |= {"label": ClassLabel(config.num_classes)} if config.num_classes else {}
    return features | ({"vector": Vector(config.vector_size)} if getattr(config, "vector_size", 0) else {})


def batch_of(config, n: int, seed: int = 0) -> dict:
    """n random rows of every column that a model needs."""
    generator, columns = np.random.default_rng(seed), {}
    for name, feature in features_of(config).items():
        columns[name] = {
            Image: lambda f: generator.integers(0, f.levels, (n, *f.shape), np.uint8),
            ClassLabel: lambda f: generator.integers(0, f.classes, n, np.int32),
            Vector: lambda f: generator.standard_normal((n, f.size), np.float32),
            Points: lambda f: generator.standard_normal((n, f.size), np.float32),
        }[type(feature)](feature)
        feature.check(columns[name], name)
    return jax.tree.map(jnp.asarray, columns)


def given_of(config, batch: dict) -> dict:
    """The columns of a batch that a model is given."""
    return {name: column for name, column in batch.items() if name not in ("image", "point")}


def fresh(config, key=None):
    """A new model; inside `jax.jit` or `jax.eval_shape` one program or no computation at all."""
    return MODELS[type(config)](config, rngs=nnx.Rngs(jax.random.key(0) if key is None else key))


@cache
def model_of(name: str):
    """The model of the table with noise on every weight, so that none is zero; one compiled program."""
    config = CONFIGS[name]
    model = jax.jit(lambda key: fresh(config, key))(jax.random.key(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    generator = np.random.default_rng(3)
    noisy = jax.tree.map(lambda x: jnp.asarray(x + np.float32(0.1) * generator.standard_normal(x.shape, np.float32)), params)
    return nnx.merge(graph, noisy, rest)
