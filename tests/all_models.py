"""The table of ALL models: one small configuration for each model and each thing it may be given, and a batch that fits it.

test_all_models.py and test_precision.py run over it. A new model is one line here; an autoregressive image model has one in model_table.py,
too, with what it may see. What is dear goes over ONE_EACH: one configuration of each model, not every thing it may be given.

A model has about 12 s of one core for all its tests, with nothing compiled before; most of it is compiling and tracing. To stay there:
one line in the table; weights from numpy (`model_of`, `test_models.drawn`), since XLA compiles random numbers once for every weight; one
compiled program that gives many numbers, and the shapes and batch sizes that other tests have, so that their programs are used again.
Every operation outside of `jax.jit` is a program too, 10 ms for each shape: fetch results by `jax.device_get` and go on in numpy, and send
arrays by `jax.device_put` (`jnp.asarray` compiles a program). The arrays of a loaded model are tied to a device, and for them everything
is compiled again: `jax.device_put(jax.device_get(model))` unties them. A program that a test starts begins with compiling.IN_A_PROCESS.
The same property at further shapes and sizes goes to `make thorough` (`skip_unless_thorough` and THOROUGH in test_models.py).
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from model_table import TABLE

from jaxgen.data import Dataset
from jaxgen.data.features import ClassLabel, Image, Points, Tokens, Vector
from jaxgen.data.series import Series
from jaxgen.layers.denoising_mlp import MLPDenoiserConfig
from jaxgen.layers.dit import DiTConfig
from jaxgen.models import (
    MODELS,
    AutoencoderConfig,
    AutoregressionConfig,
    ClassifierConfig,
    ConditionalGANConfig,
    DeepGMMConfig,
    DiffusionConfig,
    FlowConfig,
    FlowMatchingConfig,
    GANConfig,
    GMMConfig,
    IAFConfig,
    ImplicitAutoencoderConfig,
    LanguageModelConfig,
    LatentDiffusionConfig,
    MADEConfig,
    MultivariateGaussianConfig,
    NICEConfig,
    NVAEConfig,
    PCAConfig,
    Pix2PixConfig,
    RealNVPConfig,
    RIDEConfig,
    StackGRUConfig,
    VAEConfig,
    VAEGANConfig,
    VQVAE2CodesConfig,
    VQVAE2Config,
    VQVAEConfig,
)
from jaxgen.models.vqvae2 import LowerPrior, TopPrior
from jaxgen.training import OptimizerConfig, make_optimizer

SHAPE, LEVELS = (4, 4, 1), 3
CODES = VQVAE2CodesConfig((8, 8, 1), LEVELS, codes=5, code_width=3, width=4, blocks=0)  # its blocks are those of vqvae
FLOW = {"density_steps": 2, "sample_steps": 2}
BRIEF = {"steps": 4, "terms": 2, "sample_steps": 2}
LATENT = {"terms": 2, "sample_steps": 2}
COSINE = {"schedule": "cosine", "predicts": "v", "variances": "learned"}
CONTINUOUS = {"schedule": "learned", "weights": "bound", "guidance": 1.0, "drop_label": 0.5}
PRIORS = TopPrior(1, 6, 1, 2, 3), LowerPrior(1, 6, 3, 6, 5)
SAME_WIDTHS = {  # so that what is computed without jit has the shapes of gated_pixelcnn, and of pixelsnail; all of its layers are alike
    "pixelcnn": {"width": 12, "head_width": 24, "layers": 1},
    "row_lstm": {"head_width": 24, "layers": 1},
    "diagonal_bilstm": {"head_width": 24, "layers": 1},
    "pixelcnn_pp": {"width": 8},
}
SMALL = [(entry, SAME_WIDTHS.get(entry.name, {})) for entry in TABLE]
CONFIGS = {entry.name: entry.make(SHAPE, LEVELS, **sizes) for entry, sizes in SMALL}
CONFIGS |= {f"{entry.name} of a label": entry.make(SHAPE, LEVELS, num_classes=3, **sizes) for entry, sizes in SMALL}
CONFIGS |= {
    "gated_pixelcnn of a vector": TABLE[0].make(SHAPE, LEVELS, vector_size=2),
    "made": MADEConfig(SHAPE, LEVELS, hidden=(20, 17)),
    "made over orders": MADEConfig(SHAPE, LEVELS, hidden=(20,), masks=2, shuffled=True, direct=True),
    "vae": VAEConfig(SHAPE, LEVELS, latent=3, hidden=(6, 5)),
    "vae of a vector": VAEConfig(SHAPE, LEVELS, latent=3, hidden=(6, 5), vector_size=2, likelihood="logistic", samples=2, free_bits=0.1),
    "vae of a label": VAEConfig(SHAPE, LEVELS, 3, latent=3, hidden=(6, 5), architecture="conv", estimator="A"),
    "vae_gan": VAEGANConfig(SHAPE, LEVELS, 3, latent=3, hidden=(6, 5), adversarial=0.5),
    "autoencoder": AutoencoderConfig(SHAPE, LEVELS, latent=3, hidden=(6, 5)),
    "implicit_autoencoder": ImplicitAutoencoderConfig(SHAPE, LEVELS, latent=3, hidden=(6, 5), steps=2),
    "implicit_autoencoder by REINFORCE": ImplicitAutoencoderConfig(SHAPE, LEVELS, 3, (6, 5), implicit="decoder", steps=2, draws=2),
    "vqvae": VQVAEConfig(SHAPE, LEVELS, codes=5, code_width=3, halvings=1, width=4, blocks=1),
    "vqvae2_codes": CODES,
    "vqvae2": VQVAE2Config(CODES, 3, *PRIORS),
    "nvae": NVAEConfig(SHAPE, LEVELS, widths=(4,), groups=(2,), latent=2, expansion=1),
    "latent_diffusion": LatentDiffusionConfig(VAEConfig(SHAPE, LEVELS, 3, latent=3, hidden=(6, 5)), MLPDenoiserConfig(4, 1), **LATENT),
    "flow_matching of points": FlowMatchingConfig((2,), 0, network="mlp", mlp=MLPDenoiserConfig(4, 1), coupling="transport", **FLOW),
    "flow_matching of a label": FlowMatchingConfig(SHAPE, LEVELS, 3, "mlp", mlp=MLPDenoiserConfig(4, 1), guidance=0.5, **FLOW),
    "diffusion": DiffusionConfig(SHAPE, LEVELS, network="mlp", mlp=MLPDenoiserConfig(4, 1), **COSINE, **BRIEF),
    "diffusion of points": DiffusionConfig((2,), 0, network="mlp", mlp=MLPDenoiserConfig(4, 1), schedule="sohl_dickstein", **BRIEF),
    "diffusion of a label": DiffusionConfig(SHAPE, LEVELS, 3, "dit", dit=DiTConfig(width=8, depth=1, heads=2), **CONTINUOUS, **BRIEF),
    "flows, planar": FlowConfig((3,), vector_size=2, maps="planar", layers=2),
    "flows of images": FlowConfig(SHAPE, LEVELS, maps="coupling", transform="affine", layers=2, hidden=(6,)),
    "flows of a vector": FlowConfig((3,), vector_size=2, layers=2, hidden=(6,), bins=3),
    "nice": NICEConfig(SHAPE, LEVELS, layers=2, hidden=(6,)),
    "iaf": IAFConfig(SHAPE, LEVELS, latent=3, hidden=(6, 5), flow_hidden=4),
    "ride": RIDEConfig(SHAPE, LEVELS, hidden=4, components=2, scales=2, filters=3),
    "realnvp": RealNVPConfig(SHAPE, LEVELS, width=4, blocks=0),
    "gan": GANConfig(SHAPE, LEVELS, 3, 6, 1, "resnet", halvings=1),
    "gan of points": GANConfig((2,), 0, latent=3, hidden=6, penalty="gradient", spectral=True),
    "conditional_gan": ConditionalGANConfig(SHAPE, LEVELS, latent=3, hidden=6, num_classes=3),
    "pix2pix": Pix2PixConfig(SHAPE, LEVELS, 2, 5, width=4, halvings=2, noise="dropout"),
    "classifier": ClassifierConfig(SHAPE, LEVELS, 3, (6, 5)),
    "pca": PCAConfig(SHAPE, LEVELS, 3),
    "pca of points": PCAConfig((4,), 0, 2),
    "gaussian": MultivariateGaussianConfig(SHAPE, LEVELS),
    "gmm": GMMConfig(SHAPE, LEVELS, 2),
    "deep_gmm": DeepGMMConfig(SHAPE, LEVELS, (2, 3)),
    "gaussian of low rank": MultivariateGaussianConfig((4,), 0, "low_rank", 2),
    "language_model, transformer": LanguageModelConfig(5, 4, ("a", "b", "c"), width=6, network="transformer", heads=2),
    "language_model": LanguageModelConfig(5, 4, ("a", "b", "c"), width=6, layers=2),
    "stack_gru": StackGRUConfig(5, 4, ("a", "b", "c"), width=6, stack_width=2, stack_depth=3),
    "autoregression": AutoregressionConfig(order=2, length=3),
}
CONFIGS["pixelcnn_pp of a label"] = replace(CONFIGS["pixelcnn_pp of a label"], resolutions=1)  # the other one has two
CONFIGS["gated_pixelcnn of a label"] = replace(CONFIGS["gated_pixelcnn of a label"], layers=1)  # the others have two
ONE_EACH = {type(config): name for name, config in CONFIGS.items()}  # of each model the last configuration, which is given most

FLOAT32 = ["made", "made over orders", "flows, planar", "flows of images", "flows of a vector", "nice", "iaf", "ride", "realnvp"]
FLOAT32 += ["gan", "gan of points", "conditional_gan", "pix2pix", "classifier", "pca", "pca of points"]
FLOAT32 += ["gaussian", "gmm", "deep_gmm", "gaussian of low rank"]
FLOAT32 += ["language_model, transformer", "language_model", "stack_gru", "autoregression"]
CLOSED_FORM = ["pca", "pca of points", "gaussian", "gmm", "deep_gmm", "gaussian of low rank", "autoregression"]
NOT_FOR = {  # what a model does not have, why, and which models; a test finds that these are all
    "loss": ("fitted in closed form, so it has no gradient and no step to resume from", CLOSED_FORM),
    "sample": ("gives the label of an image", ["classifier"]),
    "dtype": ("a small model that computes in float32 only", FLOAT32),
}


def with_a(method: str) -> list[str]:
    """The names of the models that have it."""
    return [name for name in CONFIGS if name not in NOT_FOR[method][1]]


def batch_of(config, n: int, seed: int = 0) -> dict:
    """n random rows of every column that a model needs."""
    generator, columns = np.random.default_rng(seed), {}

    def strings(feature):
        tokens = generator.integers(0, feature.vocabulary, (n, feature.length), np.uint8)
        return np.where(np.cumsum(tokens == 0, axis=1) > 0, np.uint8(0), tokens)

    for name, feature in config.features.items():
        columns[name] = {
            Image: lambda f: generator.integers(0, f.levels, (n, *f.shape), np.uint8),
            ClassLabel: lambda f: generator.integers(0, f.classes, n, np.int32),
            Vector: lambda f: generator.standard_normal((n, f.size), np.float32),
            Points: lambda f: generator.standard_normal((n, f.size), np.float32),
            Tokens: strings,
            Series: lambda f: generator.standard_normal((n, f.dimensions), np.float32),
        }[type(feature)](feature)
        feature.check(columns[name], name)
    return jax.device_put(columns)


def data_of(config, n: int = 24) -> Dataset:
    """A data set of n random rows."""
    columns = {name: np.asarray(column) for name, column in batch_of(config, n).items()}
    return Dataset.from_columns(columns, config.features)


def given_of(config, batch: dict) -> dict:
    """The columns of a batch that a model is given."""
    return {name: column for name, column in batch.items() if name != config.modelled}


def score(model, batch: dict, key) -> jax.Array:
    """A number for every row: log p or its bound, or a classifier's first logit, an auto-encoder's error, a GAN's logit."""
    x, given = batch[model.config.modelled], given_of(model.config, batch)
    if hasattr(model, "predict"):
        return model.predict(**given)[:, 0]
    if hasattr(model, "log_prob"):
        return model.log_prob(x, **given)
    if hasattr(model, "elbo"):
        return model.elbo(x, key, **given)
    if hasattr(model, "squared_error"):
        return model.squared_error(x)
    if hasattr(model, "log_density"):
        return model.log_density(x.astype(jnp.float32), **given)
    return model.discriminate(x.astype(jnp.float32), **given)


RATE = 0.125
ONES = (".gain", ".scale", ".whiten", "explained")  # parameters that a model multiplies by, near 1


def players(config):
    """An optimizer for each player of a model: the first step is minus RATE times the gradient."""
    options = OptimizerConfig(learning_rate=RATE, name="sgd", momentum=0.5, clip_norm=None)
    return make_optimizer(options, 10, getattr(config, "players", ()))


def fresh(config, key=None):
    """A new model; inside `jax.jit` or `jax.eval_shape` one program or no computation at all."""
    return MODELS[type(config)](config, rngs=nnx.Rngs(jax.random.key(0) if key is None else key))


@cache
def model_of(name: str):
    """The model of the table with random weights from numpy, none of them zero: nothing is compiled, and every process has the same."""
    return with_weights(CONFIGS[name])


@cache
def shapes_of(config):
    """Shapes and types of a new model."""
    return jax.eval_shape(lambda: fresh(config))


def with_weights(config, seed: int = 3):
    """The same for any configuration."""
    shapes, generator = shapes_of(config), np.random.default_rng(seed)

    def weight(path, leaf):
        noise, one = generator.standard_normal(leaf.shape, np.float32), any(word in jax.tree_util.keystr(path) for word in ONES)
        if leaf.ndim > 1 and not one:
            return noise / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
        return np.float32(0.1) * np.abs(noise) + np.float32(one)

    return jax.device_put(jax.tree_util.tree_map_with_path(weight, shapes))


def all_images(image_shape) -> np.ndarray:
    """The 512 images of nine binary values."""
    bits = np.arange(512)[:, None] >> np.arange(9)[::-1] & 1
    return bits.reshape(512, *image_shape).astype(np.uint8)
