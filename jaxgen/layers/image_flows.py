"""The base class of flows of images: loss and samples from an invertible map of dequantised images.

    v = x + u, u ~ U[0, 1),      z = f(v),      log p(v) = log p(z) + log |det df/dv|,      E_u[-log p(x + u)] >= -log P(x)

so the bits/dim of v are an upper bound on those of the levels (Theis, van den Oord, Bethge 2016, "A note on the evaluation of generative
models", section 3.1). Axes: B or n batch, H W C image, D = H W C.
"""

from functools import partial
from math import prod
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_images, check_key, image_of
from jaxgen.distributions import bits_per_dim
from jaxgen.errors import ConfigError


class ImageFlow(nnx.Module):
    """What a model defines: `config` with `image_shape` and `levels`, and the methods

    - `transform(v) -> (z, log_det)`: z [B, D] of v in [0, levels], float [B, H, W, C], and log |det dz/dv| [B];
    - `inverse(z) -> v`;
    - `prior(z) -> log p(z)` [B] and `draw_prior(key, n) -> z` [n, D].
    """

    def log_density(self, v: Float[Array, "B H W C"]) -> Float[Array, " B"]:
        """log p(v) in nats; v: levels plus noise. Raises ConfigError for another shape."""
        if tuple(v.shape[1:]) != tuple(self.config.image_shape):
            raise ConfigError("v", f"shape [B, {', '.join(map(str, self.config.image_shape))}]", list(v.shape))
        z, log_det = self.transform(v)
        return self.prior(z) + log_det

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-mean log2 p(x + u) / D, u drawn from `key`; metrics: it as bits_per_dim_bound, and nats per image."""
        config = self.config
        image = check_images(image_of(batch), config.image_shape, config.levels)
        nats = -self.log_density(image.astype(jnp.float32) + jax.random.uniform(key, image.shape)).mean()
        bits = bits_per_dim(nats, prod(config.image_shape))
        return bits, {"bits_per_dim_bound": bits, "nats_bound": nats}

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> UInt[Array, "n H W C"]:
        """n images: draws of v, rounded down to a level and clipped."""
        check_key(key)
        return _sample(self, key, n=check_count(n))


@partial(jax.jit, static_argnames="n")
def _sample(model: ImageFlow, key: PRNGKeyArray, *, n: int) -> UInt[Array, "n H W C"]:
    levels, v = model.config.levels, model.inverse(model.draw_prior(key, n))
    return jnp.clip(jnp.floor(v), 0, levels - 1).astype(np.min_scalar_type(levels - 1))
