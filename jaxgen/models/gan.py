"""Generative adversarial network (Goodfellow et al. 2014), on images or on points of R^d.

    discriminator:  L_D = E softplus(-D(x)) + E softplus(D(G(z)))     = -E log sigma(D(x)) - E log(1 - sigma(D(G(z))))
    generator:      L_G = E softplus(-D(G(z)))                        = -E log sigma(D(G(z))), the paper's non-saturating form (section 3)

D returns logits, z ~ N(0, I). `objective` chooses these two, the paper's saturating form (minimax), or those of later papers, and `penalty`
what is added to L_D: layers/adversarial.py has the equations. The networks are in layers/gan_networks.py; with `spectral` every layer of D
is divided by its largest singular value (layers/spectral.py), and a step advances the vectors of its power iteration.

One step updates both networks from ONE loss, L_G + L_D. L_G holds the parameters of D constant (`stop_gradient`) and L_D holds G(z)
constant, so the gradient of the sum is the gradient of L_G for the parameters of G and that of L_D for those of D. `optax.partition` gives
`generator` and `discriminator` an optimizer each. Both terms use the same z. The paper's k steps of D for one of G are
`--optimizer.every generator k`; WGAN-GP is `--model.objective wasserstein --model.penalty gradient --optimizer.every generator 5`. Samples
are those of the average of the parameters (`train.ema_decay`).

Axes: B batch, H W C image, Z latent. Departures from the paper: simultaneous instead of alternating updates, leaky ReLU instead of maxout,
no dropout; the "conv" networks follow Radford et al. 2016 without batch normalisation (no state, and images of a batch stay independent).
All is computed in float32: there is no `dtype`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num, PRNGKeyArray

from jaxgen.checks import check_count, check_images, check_key, check_label, check_levels, image_of
from jaxgen.config import check_types
from jaxgen.data.features import OfImagesOrPoints, given_to, modelled, smallest_unsigned
from jaxgen.errors import ConfigError
from jaxgen.layers import gan_networks
from jaxgen.layers.adversarial import OBJECTIVES, ObjectiveName, PenaltyName, penalty
from jaxgen.layers.convolutions import scale_pixels
from jaxgen.layers.logistic_mixture import to_level
from jaxgen.layers.spectral import spectral_layers
from jaxgen.statistics import Statistic


@dataclass(frozen=True)
class GANConfig(OfImagesOrPoints):
    """Sizes of a GAN. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, ...] = (8, 8, 1)  # (H, W, C) of images, or (d,) of real points
    levels: int = 17  # number of values that a channel of a pixel has, 0 .. levels-1; 0 for points
    latent: int = 32  # Z, dimension of the noise z
    hidden: int = 128  # mlp: units of each hidden layer; conv: channels at the smallest size, half as many at each larger; resnet: channels
    depth: int = 2  # mlp: hidden layers; resnet: blocks of the discriminator at the smallest size
    architecture: Literal["mlp", "conv", "resnet"] = "mlp"  # fully connected layers, convolutions, or a residual network
    halvings: int = 2  # conv, resnet: how often the sides of an image are halved
    objective: ObjectiveName = "nonsaturating"  # what the players minimise; minimax is the saturating form
    penalty: PenaltyName = "none"  # on the slope of the discriminator
    penalty_weight: float = 10.0  # of the penalty in the loss of the discriminator
    spectral: bool = False  # whether every layer of the discriminator has spectral normalisation
    num_classes: ClassVar[int] = 0  # a GAN here has no classes
    players: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    def __post_init__(self):
        check_types(self)
        check_levels(self.levels, modelled(self))
        if min(self.latent, self.hidden, self.depth, self.halvings) < 1:
            sizes = (self.latent, self.hidden, self.depth, self.halvings)
            raise ConfigError("latent, hidden, depth, halvings", "positive sizes", sizes)
        unit, images = 2**self.halvings, modelled(self).discrete
        if self.architecture != "mlp" and not (images and self.image_shape[0] % unit == self.image_shape[1] % unit == 0):
            wanted = f"(H, W, C) with H and W multiples of {unit} ({self.architecture}, halvings={self.halvings})"
            raise ConfigError("image_shape", wanted, self.image_shape)
        if not self.penalty_weight >= 0:
            raise ConfigError("penalty_weight", "0 or more", self.penalty_weight)


class GAN(nnx.Module):
    """The networks `generator` and `discriminator`; each has its own optimizer, chosen by these names (`GANConfig.players`)."""

    def __init__(self, config: GANConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.generator = gan_networks.generator(config, config.latent, rngs)
        self.discriminator = gan_networks.discriminator(config, 0, rngs)

    def generate(self, z: Float[Array, "B Z"]) -> Float[Array, "B ..."]:
        """G(z): images after tanh, in [-1, 1]; points without it."""
        return self._bounded(self.generator(z))

    def discriminate(self, x: Float[Array, "B ..."]) -> Float[Array, " B"]:
        """D(x), the logit of "x is real"."""
        return self.discriminator(x)[:, 0]

    def generator_loss(self, z: Float[Array, "B Z"], **given) -> Float[Array, ""]:
        """L_G; its gradient reaches the generator only."""
        frozen = jax.lax.stop_gradient(self)
        return OBJECTIVES[self.config.objective].generator(frozen.discriminate(self.generate(z, **given), **given)).mean()

    def discriminator_loss(self, real: Float[Array, "B ..."], z: Float[Array, "B Z"], **given) -> Float[Array, ""]:
        """L_D without the penalty; its gradient reaches the discriminator only. At D = 0 that of logits is log 4."""
        fake, objective = jax.lax.stop_gradient(self.generate(z, **given)), OBJECTIVES[self.config.objective]
        return objective.real(self.discriminate(real, **given)).mean() + objective.fake(self.discriminate(fake, **given)).mean()

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple:
        """L_G + L_D of a batch {"image": integers [B, H, W, C]}, or {"point": float32 [B, d]}, and its metrics.

        Metrics: generator_loss, discriminator_loss (L_D without the penalty) and, where there is one, penalty, without its weight. With
        spectral normalisation a third result are the statistics for `after_update`.
        """
        config, real, given = self.config, self._scale(image_of(batch, self.config.modelled)), given_to(self.config, batch)
        z = jax.random.normal(key, (real.shape[0], config.latent))
        metrics = {"generator_loss": self.generator_loss(z, **given), "discriminator_loss": self.discriminator_loss(real, z, **given)}
        loss = metrics["generator_loss"] + metrics["discriminator_loss"]
        if config.penalty != "none":
            fake = jax.lax.stop_gradient(self.generate(z, **given))
            judged = lambda x: self.discriminate(x, **given)  # noqa: E731
            metrics["penalty"] = penalty(config.penalty, judged, real, fake, jax.random.fold_in(key, 1))
            loss = loss + config.penalty_weight * metrics["penalty"]
        if not config.spectral:
            return loss, metrics
        return loss, metrics, [Statistic(layer.advanced(), "first") for layer in spectral_layers(self.discriminator)]

    @property
    def after_update(self) -> Callable:
        """`(statistics, key) -> model` with the vectors of the power iteration of this step; only with spectral normalisation.

        Without it there is nothing to advance and the model has no `after_update`: AttributeError, which `hasattr` reads.
        """
        if not self.config.spectral:
            raise AttributeError("after_update")

        def advance(statistics: list, key: PRNGKeyArray) -> "GAN":
            for layer, vector in zip(spectral_layers(self.discriminator), statistics, strict=True):
                layer.vector[...] = vector
            return self

        return advance

    def noise(self, key: PRNGKeyArray, n: SupportsIndex, truncation: float | None = None) -> Float[Array, "n Z"]:
        """n draws of z. truncation: numbers are drawn between -truncation and truncation only. ConfigError unless it is positive."""
        shape = check_count(n), self.config.latent
        if truncation is None:
            return jax.random.normal(key, shape)
        if truncation > 0:
            return jax.random.truncated_normal(key, -truncation, truncation, shape)
        raise ConfigError("truncation", "a positive number or None", truncation)

    def picture(self, z: Float[Array, "B Z"], label=None) -> Num[Array, "B ..."]:
        """G(z) as `sample` gives it: images of levels, or points. label: as in `sample`."""
        label = check_label(label, self.config.num_classes, z.shape[0])
        x = self.generate(z, **({} if label is None else {"label": label}))
        if not self._discrete:
            return x
        return to_level(x, self.config.levels).astype(smallest_unsigned(self.config.levels))

    def sample(self, key: PRNGKeyArray, n: SupportsIndex, label=None, truncation: float | None = None) -> Num[Array, "n ..."]:
        """n images [n, H, W, C] of the smallest unsigned type for their levels, or n points float32 [n, d].

        label: must be None for a model without classes; ConfigError otherwise. truncation: the numbers of z are drawn from the normal
        distribution between -truncation and truncation only (Brock et al. 2019): the smaller, the more typical and alike the samples are.
        """
        check_key(key)
        return self.picture(self.noise(key, n, truncation), label)

    @property
    def _discrete(self) -> bool:
        return modelled(self.config).discrete

    def _bounded(self, x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        x = x.reshape(-1, *self.config.image_shape)
        return jnp.tanh(x) if self._discrete else x

    def _scale(self, x: Num[Array, "B ..."]) -> Float[Array, "B ..."]:
        """Images: levels 0 .. levels-1 mapped linearly to [-1, 1], the range of tanh. Points: unchanged."""
        if not self._discrete:
            return x
        return scale_pixels(check_images(x, self.config.image_shape, self.config.levels), self.config.levels)
