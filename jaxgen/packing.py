"""Many small arrays side by side in a few: for a compiled step that is given thousands of them.

Every array that a program is given and gives costs a CPU some microseconds, whatever its size. A model of 900 small arrays, with two
moments and an average of each, has 3600 of them: some 15 ms a step, against 0.5 ms in arrays of
32 (experiments/results/step_cost.md).
"""

from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgen import sharding

GROUP = 32
"""Arrays that lie side by side. 8 take more time in each step; 100 take twice the time to compile, and no less in a step."""
MANY = 512
"""Small arrays from which on packing saves more, a few milliseconds a step, than the longer compiling costs."""


@dataclass(frozen=True)
class Packing:
    """How a list of arrays becomes a shorter list and back; both functions may be compiled, and change no bit."""

    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]  # places of those that lie side by side
    mesh: Mesh

    @classmethod
    def of(cls, leaves: list, mesh: Mesh) -> "Packing":
        """Groups of the float32 arrays of fewer than `sharding.SMALL` elements, which no mesh splits; none if they are few.

        On an accelerator there are none: it has not been measured there.
        """
        small = [i for i, leaf in enumerate(leaves) if leaf.dtype == jnp.float32 and leaf.size < sharding.SMALL]
        if jax.default_backend() != "cpu" or len(small) < MANY:
            small = []
        groups = tuple(tuple(small[start : start + GROUP]) for start in range(0, len(small), GROUP))
        return cls(tuple(leaf.shape for leaf in leaves), groups, mesh)

    def pack(self, leaves: list) -> list:
        """An array for each group, then the others as they are."""
        packed = {i for group in self.groups for i in group}
        together = [jnp.concatenate([leaves[i].reshape(-1) for i in group]) for group in self.groups]
        together = jax.lax.with_sharding_constraint(together, sharding.whole(self.mesh))
        return together + [leaf for i, leaf in enumerate(leaves) if i not in packed]

    def unpack(self, arrays: list) -> list:
        """The list from which `pack` made the arrays."""
        leaves, others = {}, iter(arrays[len(self.groups) :])
        for array, group in zip(arrays, self.groups, strict=False):
            ends = np.cumsum([prod(self.shapes[i]) for i in group])[:-1]
            leaves |= {i: part.reshape(self.shapes[i]) for i, part in zip(group, jnp.split(array, ends), strict=True)}
        return [leaves[i] if i in leaves else next(others) for i in range(len(self.shapes))]
