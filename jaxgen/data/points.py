"""The ring: points of the plane from eight narrow Gaussians on a circle, a test of whether a generator
misses modes.

    x = centre_k + 0.02 e,  e ~ N(0, I),  k uniform in 0..7,  centre_k = 2 (cos(2 pi k / 8), sin(2 pi k / 8))

The set of Metz et al. 2016 ("Unrolled GANs"), radius and width as in Srivastava et al. 2017 ("VEEGAN"). Batches are
{"point": float32 [B, 2]}.
"""

import numpy as np
from jaxtyping import Float32

from jaxgen.data.arrays import checked
from jaxgen.data.dataset import Dataset
from jaxgen.data.features import Points
from jaxgen.data.kind import Kind

MODES, RADIUS, SCALE = 8, 2.0, 0.02
SIZES = {"train": 50_000, "validation": 10_000, "test": 10_000}


def centres() -> Float32[np.ndarray, "K 2"]:
    """The eight centres, [8, 2]."""
    angle = 2 * np.pi * np.arange(MODES) / MODES
    return (RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)


def ring(split: str) -> Dataset:
    """The points of a split, equal in every run (fixed seed); `facts` holds the modes' centres and their standard deviation `scale`."""
    generator = np.random.Generator(np.random.PCG64([list(SIZES).index(split), MODES]))
    mode, noise = generator.integers(0, MODES, SIZES[split]), generator.standard_normal((SIZES[split], 2))
    points = (centres()[mode] + SCALE * noise).astype(np.float32)
    facts = {"centres": centres(), "scale": SCALE}
    return Dataset(checked({"point": points}, {"point": Points(2)}, "ring", version="1", facts=facts), "ring", split)


KIND = Kind(lambda name, split, config: ring(split).source, names=("ring",))
