"""The ring: points of the plane from eight narrow Gaussians on a circle, on which it shows at once whether a generator drops modes.

    x = centre_k + 0.02 noise,  k uniform in 0..7,  centre_k = 2 (cos(2 pi k / 8), sin(2 pi k / 8))

The set of Metz et al. 2016 ("Unrolled GANs"), radius and width as in Srivastava et al. 2017 ("VEEGAN"). A data set like any other, with
points float32 [N, 2] in the place of images: batches are {"point": float32 [B, 2]}, `levels` is 0.
"""

import hashlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from jaxgen.data.dataset import Dataset

MODES, RADIUS, SCALE = 8, 2.0, 0.02
SIZES = {"train": 50_000, "validation": 10_000, "test": 10_000}


def centres() -> Float32[np.ndarray, "K 2"]:
    """The eight centres."""
    angle = 2 * np.pi * np.arange(MODES) / MODES
    return (RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)


def ring_batch(key: PRNGKeyArray, n: int) -> Float[Array, "n 2"]:
    """n fresh points."""
    key_mode, key_noise = jax.random.split(key)
    mode = jax.random.randint(key_mode, (n,), 0, MODES)
    return jnp.asarray(centres())[mode] + SCALE * jax.random.normal(key_noise, (n, 2))


@dataclass(frozen=True)
class PointSource:
    """Points in memory, with the attributes of an `images.ArraySource`."""

    images: Float32[np.ndarray, "N d"]
    labels: None = None
    levels: int = 0
    num_classes: int = 0
    version: str = "1"
    on_disk: bool = False
    vectors: None = None

    def read(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The rows `indices`: {"point": float32 [B, d]}."""
        return {"point": self.images[indices]}

    def sha256(self) -> str:
        """A hash of all points with their shape."""
        return hashlib.sha256(repr(self.images.shape).encode() + self.images.tobytes()).hexdigest()


@dataclass(frozen=True)
class Ring(Dataset):
    """One split of the ring; `centres` and `scale` let the evaluation count modes."""

    source: PointSource

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(2,)."""
        return tuple(self.source.images.shape[1:])

    @property
    def centres(self) -> Float32[np.ndarray, "K 2"]:
        """The centres of the modes."""
        return centres()

    @property
    def scale(self) -> float:
        """Standard deviation of a mode along each axis."""
        return SCALE


def ring(split: str) -> Ring:
    """The points of a split, the same in every run."""
    generator = np.random.Generator(np.random.PCG64([list(SIZES).index(split), MODES]))
    mode, noise = generator.integers(0, MODES, SIZES[split]), generator.standard_normal((SIZES[split], 2))
    return Ring(PointSource((centres()[mode] + SCALE * noise).astype(np.float32)), "ring", split)
