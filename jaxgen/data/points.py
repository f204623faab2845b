"""Points of the plane from narrow Gaussians, tests of whether a generator misses modes.

    x = centre_k + scale e,  e ~ N(0, I),  k uniform in 0..K-1

    ring    K = 8,   centre_k = 2 (cos(2 pi k / 8), sin(2 pi k / 8)),   scale 0.02
    grid    K = 25,  both coordinates of a centre in {-4, -2, 0, 2, 4}, scale 0.05

The ring is that of Metz et al. 2016 ("Unrolled GANs"); radius and scale of it, and the grid, are as in Srivastava et al. 2017 ("VEEGAN").
Batches are {"point": float32 [B, 2]}.
"""

import numpy as np
from jaxtyping import Float32

from jaxgen.data.arrays import checked
from jaxgen.data.dataset import Dataset
from jaxgen.data.features import Points
from jaxgen.data.kind import Kind

MODES, RADIUS, SCALE = 8, 2.0, 0.02
GRID_SIDE, GRID_STEP, GRID_SCALE = 5, 2.0, 0.05
SIZES = {"train": 50_000, "validation": 10_000, "test": 10_000}


def centres() -> Float32[np.ndarray, "K 2"]:
    """The eight centres of the ring, [8, 2]."""
    angle = 2 * np.pi * np.arange(MODES) / MODES
    return (RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)


def grid_centres() -> Float32[np.ndarray, "K 2"]:
    """The 25 centres of the grid, [25, 2]."""
    side = GRID_STEP * (np.arange(GRID_SIDE) - (GRID_SIDE - 1) / 2)
    return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)


def ring(split: str) -> Dataset:
    """The points of a split, equal in every run (fixed seed); `facts` holds the modes' centres and their standard deviation `scale`."""
    return _mixture("ring", centres(), SCALE, split)


def grid(split: str) -> Dataset:
    """The same for the grid."""
    return _mixture("grid", grid_centres(), GRID_SCALE, split)


def _mixture(name: str, middles: Float32[np.ndarray, "K 2"], scale: float, split: str) -> Dataset:
    generator = np.random.Generator(np.random.PCG64([list(SIZES).index(split), len(middles)]))
    mode, noise = generator.integers(0, len(middles), SIZES[split]), generator.standard_normal((SIZES[split], 2))
    points = (middles[mode] + scale * noise).astype(np.float32)
    facts = {"centres": middles, "scale": scale}
    return Dataset(checked({"point": points}, {"point": Points(2)}, name, version="1", facts=facts), name, split)


SETS = {"ring": ring, "grid": grid}

KIND = Kind(lambda name, split, config: SETS[name](split).source, names=tuple(SETS))
