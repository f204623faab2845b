"""The base class of flows of images: density and draws from an invertible map of dequantised images.

    v = x + u, u ~ U[0, 1),      z = f(v),      log p(v) = log p(z) + log |det df/dv|

Axes: B or n batch, H W C image, D = H W C.
"""

from math import log, pi, prod

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.layers.dequantised import DequantisedImages, check_shape


class ImageFlow(DequantisedImages):
    """What a model defines: `config` with `image_shape` and `levels`, and the methods

    - `transform(v) -> (z, log_det)`: z [B, D] of v in [0, levels], float [B, H, W, C], and log |det dz/dv| [B];
    - `inverse(z) -> v`;
    - `prior` and `draw_prior`, where p(z) is not N(0, I).
    """

    def log_density(self, v: Float[Array, "B H W C"]) -> Float[Array, " B"]:
        """log p(v) in nats; v: levels plus noise. Raises ConfigError for another shape."""
        check_shape(v, self.config)
        z, log_det = self.transform(v)
        return self.prior(z) + log_det

    def draw_v(self, key: PRNGKeyArray, n: int) -> Float[Array, "n H W C"]:
        """Draws of v."""
        return self.inverse(self.draw_prior(key, n))

    def prior(self, z: Float[Array, "B D"]) -> Float[Array, " B"]:
        """log N(z; 0, I)."""
        return -0.5 * (z**2 + log(2 * pi)).sum(-1)

    def draw_prior(self, key: PRNGKeyArray, n: int) -> Float[Array, "n D"]:
        """Draws of z."""
        return jax.random.normal(key, (n, prod(self.config.image_shape)))
