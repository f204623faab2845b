"""pix2pix: an image made of another one, by a network that is trained against a discriminator of pairs (Isola, Zhu, Zhou, Efros 2017,
"Image-to-Image Translation with Conditional Adversarial Networks").

    y' = G(x, z)                         the output for the input x; z is the dropout in G (noise="dropout"), or there is none ("none")
    generator:      adversarial L_G + l1_weight E |y - y'|         of pixels scaled to [-1, 1]
    discriminator:  L_D                                            of pairs (x, y) against (x, y')

L_G and L_D are those of `objective` (layers/adversarial.py), meant over the squares of pixels that D judges. The non-saturating form is
-E log sigma(D(x, y')) and -E log sigma(D(x, y)) - E log(1 - sigma(D(x, y'))), the paper's equation 1. G is a U-Net, D judges squares of
`patch` x `patch` pixels (layers/image_to_image.py).

One step updates both networks from ONE loss, as in gan.py: L_G holds the parameters of D constant and L_D holds y' constant, and each of
`generator` and `discriminator` has its own optimizer. With adversarial=0 the generator is trained by E |y - y'| alone.

The network has no mode for training and another for use: dropout is there whenever it is given a key, and `sample` and `translate` draw it
from theirs, as the paper does. With noise="none" the output is a function of the input.

Axes: B batch, H W image, h w squares of the discriminator, C channels of the output, I of the input. Departures from the paper: those of
layers/image_to_image.py; both networks are updated at once; L_D is not halved. All is computed in float32: there is no `dtype`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import MOST_LEVELS, check_count, check_image_config, check_images, check_key, image_of
from jaxgen.data.features import Feature, Image, OfImages, smallest_unsigned
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers.adversarial import OBJECTIVES, ObjectiveName
from jaxgen.layers.convolutions import scale_pixels
from jaxgen.layers.image_to_image import PatchDiscriminator, UNetGenerator, patch_side
from jaxgen.layers.logistic_mixture import to_level


@dataclass(frozen=True)
class Pix2PixConfig(OfImages):
    """Sizes of pix2pix. Raises ConfigError for sizes out of range or that do not fit each other."""

    image_shape: tuple[int, int, int] = (32, 32, 3)  # height, width and channels of the output
    levels: int = 256  # number of values that a channel of a pixel of the output has: 0 .. levels-1
    input_channels: int = 1  # channels of the input, which has the height and the width of the output
    input_levels: int = 256  # number of values that a channel of a pixel of the input has
    width: int = 32  # channels after the first convolution of both networks
    halvings: int = 4  # generator: how often the sides are halved
    patch_halvings: int = 1  # discriminator: how often the sides are halved; 1, 2, 3 judge squares of 16, 34, 70 pixels
    noise: Literal["none", "dropout"] = "none"  # what the output depends on beside the input
    objective: ObjectiveName = "nonsaturating"  # what the players minimise
    adversarial: float = 1.0  # weight of L_G in the loss of the generator; 0: E |y - y'| alone
    l1_weight: float = 100.0  # weight of E |y - y'|
    num_classes: ClassVar[int] = 0
    players: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    def __post_init__(self):
        check_image_config(self, dict.fromkeys(("input_channels", "width", "halvings", "patch_halvings"), 1), channels=None)
        if not 2 <= self.input_levels <= MOST_LEVELS:
            raise ConfigError("input_levels", f"2..{MOST_LEVELS}", self.input_levels)
        unit = 2 ** max(self.halvings, self.patch_halvings)
        if self.image_shape[0] % unit or self.image_shape[1] % unit:
            wanted = f"(H, W, C) with H and W multiples of {unit} (halvings={self.halvings}, patch_halvings={self.patch_halvings})"
            raise ConfigError("image_shape", wanted, self.image_shape)
        if self.noise == "dropout" and self.halvings == 1:
            raise ConfigError("halvings", "2 or more for noise=dropout, since the last step up has none", self.halvings)
        for name in ("adversarial", "l1_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(name, "0 or more", getattr(self, name))

    @property
    def patch(self) -> int:
        """The side of the squares of pixels that the discriminator judges."""
        return patch_side(self.patch_halvings)

    @property
    def features(self) -> dict[str, Feature]:
        """The columns that the model needs: the output "image" and the "input"."""
        return super().features | {"input": Image((*self.image_shape[:2], self.input_channels), self.input_levels)}

    @classmethod
    def sizes_from(cls, features: dict[str, Feature]) -> dict[str, object]:
        """The fields that a data set decides; DataError without pairs."""
        sizes, given = super().sizes_from(features), features.get("input")
        if given is None:
            hint = "--data.pairs says how images become pairs: grey, outline, smaller, folders, ..."
            raise DataError("data", "pairs of images, for this model", ", ".join(one.said for one in features.values()), hint)
        return sizes | {"input_channels": given.shape[2], "input_levels": given.levels}

    @classmethod
    def defaults_for(cls, features: dict[str, Feature]) -> dict[str, object]:
        """{"halvings": as many as the sides allow} where these are fewer than the default."""
        if "image" not in features:
            return {}
        (height, width, _), most = features["image"].shape, cls.halvings
        fitting = [n for n in range(1, most) if height % 2**n == width % 2**n == 0 and (height % 2**most or width % 2**most)]
        return {"halvings": max(fitting)} if fitting else {}


class Pix2Pix(nnx.Module):
    """The networks `generator` and `discriminator`. Methods raise ConfigError for images that do not fit the config.

    input: integers [B, H, W, I], or one image [H, W, I] for all.
    """

    def __init__(self, config: Pix2PixConfig, *, rngs: nnx.Rngs):
        channels, given = config.image_shape[2], config.input_channels
        self.config = config
        self.generator = UNetGenerator(given, channels, config.width, config.halvings, rngs)
        self.discriminator = PatchDiscriminator(given + channels, config.width, config.patch_halvings, rngs)

    def generate(self, input: UInt[Array, "B H W I"], key: PRNGKeyArray) -> Float[Array, "B H W C"]:
        """y' = G(x, z) in [-1, 1], with the z of the key; with noise="none" the key changes nothing."""
        x = scale_pixels(input, self.config.input_levels)
        return jnp.tanh(self.generator(x, key if self.config.noise == "dropout" else None))

    def patches(self, y: Float[Array, "B H W C"], input: UInt[Array, "B H W I"]) -> Float[Array, "B h w"]:
        """D(x, y), the logit of "the pair is real" of every square. y: on the scale [-1, 1]."""
        return self.discriminator(jnp.concatenate([scale_pixels(input, self.config.input_levels), y], axis=-1))

    def discriminate(self, y: Float[Array, "B H W C"], input: UInt[Array, "B H W I"]) -> Float[Array, " B"]:
        """The mean of `patches` over the squares."""
        return self.patches(y, input).mean((1, 2))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """The loss of both players of a batch {"image": integers [B, H, W, C], "input": integers [B, H, W, I]}, and its metrics.

        Metrics: generator_loss and discriminator_loss, L_G and L_D; l1, E |y - y'|. The weights of the loss are in none of them.
        """
        config, objective = self.config, OBJECTIVES[self.config.objective]
        image = check_images(image_of(batch), config.image_shape, config.levels)
        given = self._input(image_of(batch, "input"), image.shape[0])
        real, fake = scale_pixels(image, config.levels), self.generate(given, key)
        frozen, held = jax.lax.stop_gradient((self, fake))
        metrics = {
            "generator_loss": objective.generator(frozen.patches(fake, given)).mean(),
            "l1": jnp.abs(real - fake).mean(),
            "discriminator_loss": objective.real(self.patches(real, given)).mean() + objective.fake(self.patches(held, given)).mean(),
        }
        of_generator = config.adversarial * metrics["generator_loss"] + config.l1_weight * metrics["l1"]
        return of_generator + metrics["discriminator_loss"], metrics

    def translate(self, input: UInt[Array, "B H W I"], key: PRNGKeyArray) -> UInt[Array, "B H W C"]:
        """An output for each input, drawn with the z of the key: integers of the smallest unsigned type for their levels."""
        return to_level(self.generate(input, key), self.config.levels).astype(smallest_unsigned(self.config.levels))

    def sample(self, key: PRNGKeyArray, n: SupportsIndex, input=None) -> UInt[Array, "n H W C"]:
        """n outputs, one for each of n inputs, or all for one input."""
        check_key(key)
        return self.translate(self._input(input, check_count(n)), key)

    def _input(self, given, n: int) -> UInt[Array, "B H W I"]:
        """The inputs of n outputs, checked."""
        config = self.config
        shape = *config.image_shape[:2], config.input_channels
        if given is None:
            raise ConfigError("input", f"integers [{n}, {', '.join(map(str, shape))}], of which outputs are made", "None")
        single = getattr(given, "ndim", None) == 3
        given = check_images(given[None] if single else given, shape, config.input_levels, "input")
        if not single and given.shape[0] != n:
            raise ConfigError("input", f"{n} images, one for each output", given.shape[0])
        return jnp.broadcast_to(given, (n, *shape))
