"""Classifiers of images: multilayer perceptron and convolutional network.

    h_0 = x scaled to [-1, 1],   h_l = relu(layer_l(h_{l-1})),   logits = W h_L + b,   p(y | x) = softmax(logits)_y

Layers are linear, on the flattened image (mlp), or 3 x 3 convolutions with zero padding, stride 1 in the first and 2 in the others (conv);
then h_L is flattened for the logits. The loss is the mean cross entropy -log p(y | x) in nats. The outputs of single layers are had by
name: "hidden1" .. "hiddenL" after the relu, and "logits".

Axes: B batch, H W C image, K classes. These are textbook networks, not those of a paper.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import check_images, check_label, image_of
from jaxgen.config import check_types
from jaxgen.data.features import ClassLabel, Feature, Image
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers.convolutions import Conv, Linear, dropout, scale_pixels


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of a classifier. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    num_classes: int = 10  # number of classes
    hidden: tuple[int, ...] = (64, 64)  # units (mlp) or channels (conv) of each hidden layer
    architecture: Literal["mlp", "conv"] = "conv"  # fully connected layers, or convolutions
    dropout: float = 0.0  # probability with which an output of a hidden layer is set to 0 in training
    modelled: ClassVar[str] = "label"

    def __post_init__(self):
        check_types(self)
        if min(self.image_shape) < 1:
            raise ConfigError("image_shape", "(H, W, C), all positive", self.image_shape)
        if not 2 <= self.levels <= 65536:
            raise ConfigError("levels", "2..65536", self.levels)
        if self.num_classes < 2:
            raise ConfigError("num_classes", "2 or more", self.num_classes)
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError("hidden", "positive sizes, at least one", self.hidden)
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout", "0 or more and less than 1", self.dropout)

    @property
    def features(self) -> dict[str, Feature]:
        """The columns that the model needs: the label, which it models, and the image, which it is given."""
        return {"image": Image(self.image_shape, self.levels), "label": ClassLabel(self.num_classes)}

    @staticmethod
    def sizes_from(features: dict[str, Feature]) -> dict[str, object]:
        """{field: value} of the fields that a data set with these features decides; DataError without images or labels."""
        if not {"image", "label"} <= set(features):
            raise DataError("data", "images with labels, for a classifier", ", ".join(features) or "none")
        image = features["image"]
        return {"image_shape": tuple(image.shape), "levels": image.levels, "num_classes": features["label"].classes}


class Classifier(nnx.Module):
    """p(y | x) = softmax(predict(x))_y."""

    def __init__(self, config: ClassifierConfig, *, rngs: nnx.Rngs):
        self.config = config
        height, width, channels = config.image_shape
        if config.architecture == "mlp":
            sizes = pairwise((prod(config.image_shape), *config.hidden))
            layers = [Linear(a, b, rngs) for a, b in sizes]
            size = config.hidden[-1]
        else:
            strides = [1] + [2] * (len(config.hidden) - 1)
            sizes = zip(pairwise((channels, *config.hidden)), strides, strict=True)
            layers = [Conv(a, b, 3, rngs, stride) for (a, b), stride in sizes]
            halvings = 2 ** (len(config.hidden) - 1)
            size = -(-height // halvings) * -(-width // halvings) * config.hidden[-1]
        self.hidden = nnx.List(layers)
        self.logits = Linear(size, config.num_classes, rngs)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names for `activations`, first layer to last."""
        return (*(f"hidden{i + 1}" for i in range(len(self.config.hidden))), "logits")

    def predict(self, image: UInt[Array, "B H W C"]) -> Float[Array, "B K"]:
        """Logits of the classes, without dropout. Raises ConfigError for images that do not fit the config."""
        return self.activations(image, "logits")

    def activations(self, image: UInt[Array, "B H W C"], name: str) -> Float[Array, "B ..."]:
        """The output of the layer with that name: [B, units], [B, h, w, channels], or [B, K] for "logits"; ConfigError for another name."""
        return self._activations(image, name)

    def relaxed(self, pixels: Float[Array, "B H W C"], name: str = "logits") -> Float[Array, "B ..."]:
        """`activations` of real pixel values in 0 .. levels-1, which have gradients; at integers bit for bit the same."""
        if pixels.shape[1:] != tuple(self.config.image_shape):
            raise ConfigError("pixels", f"shape [B, {', '.join(map(str, self.config.image_shape))}]", list(pixels.shape))
        return self._outputs(scale_pixels(pixels, self.config.levels), name)

    def _activations(self, image: UInt[Array, "B H W C"], name: str, key: PRNGKeyArray | None = None) -> Float[Array, "B ..."]:
        """`activations`, with dropout if there is a key."""
        config = self.config
        return self._outputs(scale_pixels(check_images(image, config.image_shape, config.levels), config.levels), name, key)

    def _outputs(self, x: Float[Array, "B H W C"], name: str, key: PRNGKeyArray | None = None) -> Float[Array, "B ..."]:
        """The outputs of a layer for images on [-1, 1]."""
        if name not in self.layers:
            raise ConfigError("name", "one of " + ", ".join(self.layers), name)
        config = self.config
        x = x.reshape(x.shape[0], -1) if config.architecture == "mlp" else x
        for i, (layer, each) in enumerate(zip(self.hidden, self.layers, strict=False)):
            x = nnx.relu(layer(x))
            if key is not None and config.dropout:
                x = dropout(x, config.dropout, jax.random.fold_in(key, i))
            if each == name:
                return x
        return self.logits(x.reshape(x.shape[0], -1))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """The mean cross entropy in nats of a batch {"image", "label"}; metrics: it as log_loss, and accuracy, a share in 0..1.

        Raises ConfigError where a column is missing or does not fit the config.
        """
        logits = self._activations(image_of(batch), "logits", key)
        label = check_label(image_of(batch, "label"), self.config.num_classes, logits.shape[0])
        log_loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=-1).mean()
        accuracy = (logits.argmax(-1) == label).astype(jnp.float32).mean()
        return log_loss, {"log_loss": log_loss, "accuracy": accuracy}
