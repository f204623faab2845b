"""The models, one file each, and the closed list by which a saved configuration finds its model."""

from flax import nnx

from jaxgen.models.diagonal_bilstm import DiagonalBiLSTM, DiagonalBiLSTMConfig
from jaxgen.models.gan import GAN, GANConfig
from jaxgen.models.gated_pixelcnn import GatedPixelCNN, GatedPixelCNNConfig
from jaxgen.models.image_transformer import ImageTransformer, ImageTransformerConfig
from jaxgen.models.pixelcnn import PixelCNN, PixelCNNConfig
from jaxgen.models.pixelcnn_pp import PixelCNNPP, PixelCNNPPConfig
from jaxgen.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from jaxgen.models.row_lstm import RowLSTM, RowLSTMConfig
from jaxgen.models.vae import VAE, VAEConfig

MODELS = {
    GatedPixelCNNConfig: GatedPixelCNN,
    PixelCNNConfig: PixelCNN,
    RowLSTMConfig: RowLSTM,
    DiagonalBiLSTMConfig: DiagonalBiLSTM,
    PixelCNNPPConfig: PixelCNNPP,
    PixelSNAILConfig: PixelSNAIL,
    ImageTransformerConfig: ImageTransformer,
    VAEConfig: VAE,
    GANConfig: GAN,
}
"""Configuration class -> model class: nothing outside this list is ever built from a file."""


def build(config, seed: int = 0):
    """The model of a configuration with freshly drawn parameters."""
    return MODELS[type(config)](config, rngs=nnx.Rngs(seed))
