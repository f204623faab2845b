"""How close an image is to the one that it should be: values for each image, of pixels scaled to [0, 1].

    absolute error   mean |x - y| over pixels and channels
    PSNR             -10 log10(mean (x - y)^2) in decibels; a mean square below 1e-10, as of equal images, counts as 1e-10 (100 dB)
    SSIM             Wang, Bovik, Sheikh, Simoncelli 2004: the mean over channels and over all places of the window of
                     (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2)),  c1 = 0.01^2, c2 = 0.03^2

m, s^2 and s_xy are means, variances and covariance under a window of 11 x 11 Gaussian weights of standard deviation 1.5 pixels, all of it
inside of the image. In images with a side below 11 the window has the largest odd side that fits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

WINDOW, SIGMA = 11, 1.5


def absolute_error(x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]) -> Float[Array, " B"]:
    """The mean of |x - y| of each image."""
    return jnp.abs(x - y).mean((1, 2, 3))


def psnr(x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]) -> Float[Array, " B"]:
    """The peak signal-to-noise ratio of each image."""
    return -10 * jnp.log10(jnp.maximum(((x - y) ** 2).mean((1, 2, 3)), 1e-10))


def ssim(x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]) -> Float[Array, " B"]:
    """The structural similarity of each image: 1 for equal images."""
    side = min(WINDOW, *(size - 1 + size % 2 for size in x.shape[1:3]))
    weights = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * SIGMA**2))
    weights = weights / weights.sum()

    def windows(size: int) -> np.ndarray:
        """[size, places]: the weights of every window along an axis."""
        return np.stack([np.pad(weights, (start, size - side - start)) for start in range(size - side + 1)], axis=1).astype(np.float32)

    down, across = (jnp.asarray(windows(size)) for size in x.shape[1:3])

    def smoothed(values: Array) -> Array:
        return jnp.einsum("bhwc,hr,wk->brkc", values, down, across, precision=jax.lax.Precision.HIGHEST)

    mean_x, mean_y = smoothed(x), smoothed(y)
    variances = smoothed(x**2) - mean_x**2 + smoothed(y**2) - mean_y**2
    covariance = smoothed(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return similar.mean((1, 2, 3))


@jax.jit
def all_of_pairs(x: Float[Array, "B H W C"], y: Float[Array, "B H W C"]) -> Float[Array, "B 3"]:
    """Absolute error, PSNR and SSIM of each image."""
    return jnp.stack([absolute_error(x, y), psnr(x, y), ssim(x, y)], axis=-1)
