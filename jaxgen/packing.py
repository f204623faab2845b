"""Many small arrays side by side in a few: for a compiled step that is given thousands of them.

Every array that a program is given and gives costs a CPU some microseconds, whatever its size. A model of 900 small arrays, with two
moments and an average of each, has 3600 of them: 15 ms a step and more (experiments/results/step_cost.md).
"""

from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgen import sharding

SMALL = 128
"""Elements of an array that is not small: to compile how larger ones are cut out takes more than is saved. Biases and gains are small."""
GROUP = 32
"""Arrays that lie side by side. With 8 a step takes more time; 100 take twice the time to compile, and no less in a step."""
MANY = 512
"""Small arrays from which on it is done: a few milliseconds a step are then saved."""


@dataclass(frozen=True)
class Packing:
    """How a list of arrays becomes a shorter list and back, without a change of a bit.

    `pack` and `unpack` are for traced arrays (xp = jax.numpy) and for those of NumPy (xp = numpy).
    """

    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]  # places of those that lie side by side

    @classmethod
    def of(cls, leaves: list, mesh: Mesh) -> "Packing":
        """Groups of the small float32 arrays, in a state that is on one CPU; none if they are few.

        Accelerators have not been measured, and several devices split some arrays.
        """
        small = [i for i, leaf in enumerate(leaves) if leaf.dtype == jnp.float32 and leaf.size < SMALL]
        if jax.default_backend() != "cpu" or mesh.size > 1 or len(small) < MANY:
            small = []
        groups = tuple(tuple(small[start : start + GROUP]) for start in range(0, len(small), GROUP))
        return cls(tuple(leaf.shape for leaf in leaves), groups)

    def pack(self, leaves: list, xp=jnp) -> list:
        """An array for each group, then the others as they are."""
        packed = {i for group in self.groups for i in group}
        together = [xp.concatenate([xp.ravel(leaves[i]) for i in group]) for group in self.groups]
        return together + [leaf for i, leaf in enumerate(leaves) if i not in packed]

    def unpack(self, arrays: list, xp=jnp) -> list:
        """The list from which `pack` made the arrays."""
        leaves, others = {}, iter(arrays[len(self.groups) :])
        for array, group in zip(arrays, self.groups, strict=False):
            ends = np.cumsum([prod(self.shapes[i]) for i in group])[:-1]
            leaves |= {i: part.reshape(self.shapes[i]) for i, part in zip(group, xp.split(array, ends), strict=True)}
        return [leaves[i] if i in leaves else next(others) for i in range(len(self.shapes))]

    def packed(self, leaves: list, mesh: Mesh) -> list:
        """`pack` outside of a program: by NumPy, since to compile it for a call or two would take seconds."""
        return self._placed(self.pack(leaves, np), range(len(self.groups)), mesh)

    def unpacked(self, arrays: list, mesh: Mesh) -> list:
        """`unpack` likewise."""
        copies = [np.array(array) for array in arrays[: len(self.groups)]]  # the next step may write where these arrays are
        return self._placed(self.unpack(copies + arrays[len(self.groups) :], np), [i for group in self.groups for i in group], mesh)

    @staticmethod
    def _placed(arrays: list, places, mesh: Mesh) -> list:
        placed = jax.device_put([arrays[i] for i in places], sharding.whole(mesh))
        for i, array in zip(places, placed, strict=True):
            arrays[i] = array
        return arrays
