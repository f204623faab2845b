"""The uniform distribution over images: every value of every channel is equally likely, whatever the data are.

    P(x) = V^-D,      -log2 P(x) / D = log2 V bits/dim: exactly 8 for 256 levels

It has no parameters and nothing to fit, so no run trains it: it is one of the rulers that stand beside the score of a trained model
(rulers.py). Probabilities are float64 on the host.

Axes: B batch, D = H W C, V levels.
"""

from math import log, prod
from typing import SupportsIndex

import jax
import numpy as np
from jaxtyping import Array, Float64, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_images, check_key
from jaxgen.data.features import smallest_unsigned


class Uniform:
    """All images of a shape with values 0 .. levels-1, with equal probabilities."""

    def __init__(self, image_shape: tuple[int, int, int], levels: int):
        self.image_shape, self.levels = image_shape, check_count(levels, "levels")

    def log_prob(self, image: UInt[np.ndarray, "B H W C"]) -> Float64[np.ndarray, " B"]:
        """-D log V for each image, in nats. Raises ConfigError for images of another shape or type, or with values that are no levels."""
        check_images(image, self.image_shape, self.levels)
        return np.full(len(image), -prod(self.image_shape) * log(self.levels))

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> UInt[Array, "n H W C"]:
        """n images."""
        check_key(key)
        drawn = jax.random.randint(key, (check_count(n), *self.image_shape), 0, self.levels)
        return drawn.astype(smallest_unsigned(self.levels))
