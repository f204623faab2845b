"""What all autoregressive image models share: the likelihood, the loss and the sampler, from the model's own `logits` and `step`."""

from math import prod
from typing import SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_images, check_key, check_known, check_label, check_temperature, image_of
from jaxgen.distributions import bits_per_dim
from jaxgen.errors import ConfigError
from jaxgen.sampling import METHODS, _sample, by_rows, in_order


class AutoregressiveImages(nnx.Module):
    """What all autoregressive image models share: the likelihood, the loss and the sampler, from the model's own `logits` and `step`.

    A model gives `config` (with `image_shape`, `levels`, `num_classes`), `head` (a distribution), `_logits(image, condition, key=None)` (a
    key: dropout) and the cached form `init_cache(n, condition) / begin_row(cache, finished_row, r) / step(cache, previous_pixel, r, c)`;
    with C > 1 and a head that works channel by channel also `step_channel(cache, pixel, k)`. A model with its own `order` has only
    `init_cache(n, condition) / step(cache, previous, i)`: i counts places, `previous` holds what was drawn at the place before, [B, C] or,
    channel by channel, [B, 1]. A model with a faster loop overrides `_draw_cached`. Images are [B, H, W, C] in {0 .. levels-1}, of the
    smallest unsigned type.
    """

    order = None
    """(r, c) or (r, c, k) of every place in the order of drawing; None for raster order."""
    conditions: tuple[str, ...] = ()
    """Names of what the network is given beside the image and the label: arguments of the methods below and fields of a batch."""

    def condition(self, batch: int, label=None, image=None, **given):
        """All that the network is given, checked, as one pytree with the batch in front: here the label, int32 [B] or None.

        A model with more overrides this; `image` is there where the true image is known, for what is computed from it.
        """
        for name, value in given.items():
            raise ConfigError(name, f"nothing, since {type(self).__name__} has no such condition here", type(value).__name__)
        return check_label(label, self.config.num_classes, batch)

    def logits(self, image: UInt[Array, "B H W C"], label=None, **given) -> Float[Array, "B H W ..."]:
        """Parameters of p(x_i | x_<i) for every position in one parallel pass: [B, H, W, C, P] (channel by channel), float32."""
        config = self.config
        image = check_images(image, config.image_shape, config.levels)
        return self._logits(image, self.condition(image.shape[0], label, image, **given))

    def log_prob(self, image: UInt[Array, "B H W C"], label=None, **given) -> Float[Array, " B"]:
        """Exact log p(image) in nats: the sum of the log-probabilities of all pixels and channels."""
        return self._sum(self.logits(image, label, **given), image)

    def _sum(self, parameters, image) -> Float[Array, " B"]:
        terms = self.head.log_prob(parameters, jnp.asarray(image))
        return terms.reshape(terms.shape[0], -1).sum(-1)

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-mean log2 p(image) per dimension, with dropout where the model has it; the metrics carry `bits_per_dim` and nats per image."""
        config = self.config
        image = check_images(image_of(batch), config.image_shape, config.levels)
        given = {name: batch[name] for name in self.conditions if name in batch}
        condition = self.condition(image.shape[0], batch.get("label") if config.num_classes else None, image, **given)
        nats = -self._sum(self._logits(image, condition, key), image).mean()
        bits = bits_per_dim(nats, prod(config.image_shape))
        return bits, {"bits_per_dim": bits, "nats": nats}

    def _draw_cached(self, draw, condition, image, mask, rows):
        """The images `rows` of the n by the cached form, [m, H, W, C]; where `mask` [n, H, W] is True the pixels of `image`."""
        form = by_rows if self.order is None else in_order
        return form(self, draw, condition, image, mask, rows)

    def sample(
        self,
        key: PRNGKeyArray,
        n: SupportsIndex,
        label=None,
        known=None,
        temperature: float = 1.0,
        method: str = "cached",
        mesh: Mesh | None = None,
        **given,
    ):
        """n images [n, H, W, C] of the smallest unsigned type for their levels, drawn exactly from the model (at temperature 1).

        known=(image, mask): pixels where the boolean mask [n, H, W] is True are taken from the image; the others are drawn given those
        before them. A lower temperature sharpens every conditional. method: cached, naive or fixed_point give the same image. mesh: the
        cached sampler spreads the n images over these devices of this process.
        """
        config = self.config
        check_key(key)
        n, temperature = check_count(n), check_temperature(temperature)
        if method not in METHODS:
            raise ConfigError("method", "one of " + ", ".join(METHODS), method)
        known = check_known(known, n, config.image_shape, config.levels)
        condition = self.condition(n, label, **given)
        model = self if mesh is None else jax.device_put(self, NamedSharding(mesh, PartitionSpec()))
        return _sample(model, key, n, condition, known, temperature, method, mesh)[0]

    def sample_and_passes(self, key: PRNGKeyArray, n: SupportsIndex, label=None, **given) -> tuple[UInt[Array, "n H W C"], Int[Array, ""]]:
        """The images of `method="fixed_point"`, and the number of full passes that they took."""
        config = self.config
        check_key(key)
        n = check_count(n)
        known = check_known(None, n, config.image_shape, config.levels)
        return _sample(self, key, n, self.condition(n, label, **given), known, jnp.float32(1), "fixed_point")
