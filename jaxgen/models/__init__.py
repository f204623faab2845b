"""The models, one file each, and the closed list MODELS of the classes that may be built from a configuration read from a file."""

import jax
from flax import nnx

from jaxgen.errors import ConfigError
from jaxgen.models.autoencoder import Autoencoder, AutoencoderConfig
from jaxgen.models.autoregression import Autoregression, AutoregressionConfig
from jaxgen.models.classifier import Classifier, ClassifierConfig
from jaxgen.models.conditional_gan import ConditionalGAN, ConditionalGANConfig
from jaxgen.models.deep_gmm import DeepGMM, DeepGMMConfig
from jaxgen.models.diagonal_bilstm import DiagonalBiLSTM, DiagonalBiLSTMConfig
from jaxgen.models.diffusion import Diffusion, DiffusionConfig
from jaxgen.models.flow_matching import FlowMatching, FlowMatchingConfig
from jaxgen.models.flows import Flow, FlowConfig
from jaxgen.models.gan import GAN, GANConfig
from jaxgen.models.gated_pixelcnn import GatedPixelCNN, GatedPixelCNNConfig
from jaxgen.models.gmm import GMM, GMMConfig
from jaxgen.models.iaf import IAF, IAFConfig
from jaxgen.models.image_transformer import ImageTransformer, ImageTransformerConfig
from jaxgen.models.implicit_autoencoder import ImplicitAutoencoder, ImplicitAutoencoderConfig
from jaxgen.models.language_model import LanguageModel, LanguageModelConfig
from jaxgen.models.latent_diffusion import LatentDiffusion, LatentDiffusionConfig
from jaxgen.models.made import MADE, MADEConfig
from jaxgen.models.multivariate_gaussian import MultivariateGaussian, MultivariateGaussianConfig
from jaxgen.models.nade import NADE, NADEConfig
from jaxgen.models.nice import NICE, NICEConfig
from jaxgen.models.nvae import NVAE, NVAEConfig
from jaxgen.models.pca import PCA, PCAConfig
from jaxgen.models.pix2pix import Pix2Pix, Pix2PixConfig
from jaxgen.models.pixelcnn import PixelCNN, PixelCNNConfig
from jaxgen.models.pixelcnn_pp import PixelCNNPP, PixelCNNPPConfig
from jaxgen.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from jaxgen.models.realnvp import RealNVP, RealNVPConfig
from jaxgen.models.ride import RIDE, RIDEConfig
from jaxgen.models.row_lstm import RowLSTM, RowLSTMConfig
from jaxgen.models.rulers import RULERS as RULERS
from jaxgen.models.stack_gru import StackGRU, StackGRUConfig
from jaxgen.models.uniform import Uniform as Uniform
from jaxgen.models.vae import VAE, VAEConfig
from jaxgen.models.vae_gan import VAEGAN, VAEGANConfig
from jaxgen.models.vqvae import VQVAE, VQVAEConfig
from jaxgen.models.vqvae2 import VQVAE2, VQVAE2Config
from jaxgen.models.vqvae2_codes import VQVAE2Codes, VQVAE2CodesConfig

MODELS = {
    GatedPixelCNNConfig: GatedPixelCNN,
    PixelCNNConfig: PixelCNN,
    RowLSTMConfig: RowLSTM,
    DiagonalBiLSTMConfig: DiagonalBiLSTM,
    PixelCNNPPConfig: PixelCNNPP,
    PixelSNAILConfig: PixelSNAIL,
    ImageTransformerConfig: ImageTransformer,
    MADEConfig: MADE,
    NADEConfig: NADE,
    VAEConfig: VAE,
    VAEGANConfig: VAEGAN,
    AutoencoderConfig: Autoencoder,
    ImplicitAutoencoderConfig: ImplicitAutoencoder,
    VQVAEConfig: VQVAE,
    VQVAE2CodesConfig: VQVAE2Codes,
    VQVAE2Config: VQVAE2,
    NVAEConfig: NVAE,
    DiffusionConfig: Diffusion,
    LatentDiffusionConfig: LatentDiffusion,
    FlowMatchingConfig: FlowMatching,
    FlowConfig: Flow,
    NICEConfig: NICE,
    RealNVPConfig: RealNVP,
    IAFConfig: IAF,
    RIDEConfig: RIDE,
    GANConfig: GAN,
    ConditionalGANConfig: ConditionalGAN,
    Pix2PixConfig: Pix2Pix,
    ClassifierConfig: Classifier,
    PCAConfig: PCA,
    MultivariateGaussianConfig: MultivariateGaussian,
    GMMConfig: GMM,
    DeepGMMConfig: DeepGMM,
    LanguageModelConfig: LanguageModel,
    StackGRUConfig: StackGRU,
    AutoregressionConfig: Autoregression,
}
"""Configuration class -> model class. From a file's configuration only these are built, unless the caller of `load` names others."""


def build(config, seed: int = 0):
    """The model of a configuration, with parameters drawn from `seed`: by MODELS, else by the configuration's method `build(rngs)`.

    Raises ConfigError for a configuration that is not in MODELS and has no `build`, `features` or `modelled`, a class in its place, and a
    class of one's own with the name of one in MODELS: a checkpoint names the class, so it could not be read again.
    """
    rngs = nnx.Rngs(seed)
    if isinstance(config, type):
        raise ConfigError("model", "a configuration", f"the class {config.__name__}", f"{config.__name__}() makes one")
    if type(config) in MODELS:
        return MODELS[type(config)](config, rngs=rngs)
    if not hasattr(config, "build"):
        raise ConfigError("model", "a configuration of jaxgen.models, or one with a method build(rngs)", type(config).__name__)
    if type(config).__name__ in [cls.__name__ for cls in MODELS]:
        raise ConfigError("model", "a class with another name than those of jaxgen.models", type(config).__name__)
    for name, what in (("features", '{"image": Image(...)}, what it needs'), ("modelled", "the name of the column that it models")):
        if not hasattr(config, name):
            raise ConfigError(f"{type(config).__name__}.{name}", what, "nothing: the class has no such attribute")
    return config.build(rngs)


def count_parameters(model: nnx.Module) -> int:
    """How many numbers the parameters of a model are; its shapes, from `jax.eval_shape`, are enough."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
