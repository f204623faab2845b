"""The base class of all autoregressive image models: exact log-likelihood, loss and samplers.

    p(x) = prod_i p(x_i | x_<i),      loss = -mean log2 p(x) / dims

Axes: B or n batch, H W C image, P parameters of a pixel or channel.
"""

from math import prod
from typing import SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt

from jaxgen import sharding
from jaxgen.checks import check_count, check_images, check_key, check_known, check_label, check_temperature, image_of
from jaxgen.data.features import given_to
from jaxgen.distributions import bits_per_dim, row_sums
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import normal
from jaxgen.sampling import METHODS, _sample, by_rows, in_order, sample_sequence


def check_unordered(config) -> None:
    """ConfigError where `unordered` is asked for images of several channels."""
    if config.unordered and config.image_shape[2] != 1:
        raise ConfigError("unordered", "False, or images of one channel", f"True for {config.image_shape[2]} channels")


def value_vectors(config, rngs: nnx.Rngs) -> nnx.Param | None:
    """The learned vectors of the values of a pixel, [levels, E] with E = min(levels, width); None unless the config is `unordered`."""
    return normal(rngs, (config.levels, min(config.levels, config.width)), 1) if config.unordered else None


def sample_in_order(
    model, key: PRNGKeyArray, n: int, order: Int[Array, "n D"], given: dict, known, temperature: float, method: str
) -> UInt[Array, "n H W C"]:
    """n images by `sample_sequence`, each in an order of its own: place i of image b is dimension order[b, i] of its D = H W C.

    model: as `sample_sequence` takes it, with `config`. known: as `AutoregressiveImages.sample` takes it.
    """
    config = model.config
    image, mask = check_known(known, n, config.image_shape, config.levels)
    mask = jnp.broadcast_to(mask[..., None], image.shape)
    known = tuple(jnp.take_along_axis(values.reshape(n, -1), order, axis=1) for values in (image, mask))
    x = sample_sequence(model, key, n, order.shape[1], given, temperature, known=known, method=method)
    return jnp.put_along_axis(jnp.zeros_like(x), order, x, axis=1, inplace=False).reshape(image.shape)


class AutoregressiveImages(nnx.Module):
    """Exact log-likelihood, loss and samplers, from what a model defines:

    - `config` with `image_shape`, `levels` and `num_classes`; `head`, a distribution of distributions.py or layers/logistic_mixture.py;
    - `_logits(image, condition, key=None)`: the parameters of p(x_i | x_<i) of all pixels in one pass, with dropout if there is a key;
    - the cached form. Raster order: `init_cache(n, condition)`, `begin_row(cache, finished_row, r) -> cache`, `step(cache, previous_pixel,
      r, c) -> (cache, parameters)`; with C > 1 and a head that draws channel by channel also `step_channel(cache, pixel, k)`. An order of
      its own: `order`, `init_cache(n, condition)` and `step(cache, previous, i)` for place i, `previous` being the values of place i-1,
      [B, C], or [B, 1] channel by channel. A model with a faster loop overrides `_draw_cached`.

    Images are [B, H, W, C] with values 0 .. levels-1, of the smallest unsigned type for the levels. All methods take what the image is
    given by name: `label`, int [B] or one int (or weights of the classes, float [B, num_classes]), and the other names in
    `config.features`. They raise ConfigError for arguments that do not fit the config.
    """

    order = None
    """(r, c) or (r, c, k) of every place in the order of drawing; None for raster order."""

    def condition(self, batch: int, label=None, image=None, **given):
        """What the image is given, checked, as one pytree of arrays [B, ...]; here the label, int32 [B] or float [B, num_classes], or None.

        A model with other conditions overrides this. `image` is the true image where it is known, for conditions computed from it.
        """
        for name, value in given.items():
            raise ConfigError(name, f"nothing, since {type(self).__name__} has no such condition here", type(value).__name__)
        return check_label(label, self.config.num_classes, batch)

    def logits(self, image: UInt[Array, "B H W C"], label=None, **given) -> Float[Array, "B H W ..."]:
        """Parameters of p(x_i | x_<i) in one pass, float32: [B, H, W, C, P], or [B, H, W, P] with a head for whole pixels."""
        config = self.config
        image = check_images(image, config.image_shape, config.levels)
        return self._logits(image, self.condition(image.shape[0], label, image, **given))

    def log_prob(self, image: UInt[Array, "B H W C"], label=None, **given) -> Float[Array, " B"]:
        """Exact log p(image) in nats, sum_i log p(x_i | x_<i) over all pixels and channels."""
        return self._sum(self.logits(image, label, **given), image)

    def _sum(self, parameters, image) -> Float[Array, " B"]:
        return row_sums(self.head.log_prob(parameters, jnp.asarray(image)))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-mean log2 p(image) / (H W C), with dropout where the model has it; metrics: it as bits_per_dim, and nats per image."""
        config = self.config
        image = check_images(image_of(batch), config.image_shape, config.levels)
        condition = self.condition(image.shape[0], image=image, **given_to(config, batch))
        nats = -self._sum(self._logits(image, condition, key), image).mean()
        bits = bits_per_dim(nats, prod(config.image_shape))
        return bits, {"bits_per_dim": bits, "nats": nats}

    def _draw_cached(self, draw, condition, image, mask, rows):
        """Draw the images with indices `rows` [m] of the batch of n by the cached form: [m, H, W, C].

        Pixels are taken from `image` [n, H, W, C] where `mask` [n, H, W] is True.
        """
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
        """n images [n, H, W, C] drawn from p(x) at temperature 1, in the smallest unsigned type for the levels.

        known=(image, mask): pixels where the boolean mask [n, H, W] (or [H, W]) is True are taken from the image, the others drawn given
        all pixels before them, not those after. temperature: below 1 every p(x_i | x_<i) becomes sharper, see the head's `sample`.
        method: "cached", "naive" or "fixed_point", see sampling.py; they draw the same images. mesh: for "cached", the devices of this
        process among which the n images are divided; each gets the whole model. It changes nothing for a model that is split over devices
        (`load(mesh=)` with fsdp > 1): that stays as it is, and all devices draw every image together.
        """
        config = self.config
        check_key(key)
        n, temperature = check_count(n), check_temperature(temperature)
        if method not in METHODS:
            raise ConfigError("method", "one of " + ", ".join(METHODS), method)
        known = check_known(known, n, config.image_shape, config.levels)
        condition = self.condition(n, label, **given)
        mesh = None if sharding.split_over(self) else mesh
        model = self if mesh is None else jax.device_put(self, sharding.whole(mesh))
        return _sample(model, key, n, condition, known, temperature, method, mesh)[0]

    def sample_and_passes(self, key: PRNGKeyArray, n: SupportsIndex, label=None, **given) -> tuple[UInt[Array, "n H W C"], Int[Array, ""]]:
        """`sample` with method="fixed_point", and the number of full passes: until a pass changed none of the n images."""
        config = self.config
        check_key(key)
        n = check_count(n)
        known = check_known(None, n, config.image_shape, config.levels)
        return _sample(self, key, n, self.condition(n, label, **given), known, jnp.float32(1), "fixed_point")
