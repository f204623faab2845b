"""A small denoising network for points: residual layers that see the time, and what is given, at every depth.

    h_0 = W x + b
    h_l = h_{l-1} + W_l silu(U_l h_{l-1} + V_l silu(c) + b_l) + b'_l     l = 1 .. depth;  c as in denoiser_parts.py
    y = W h_depth + b                                                    0 at first

Axes: B batch, d coordinates, O outputs, D width.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.config import check_types
from jaxgen.errors import ConfigError
from jaxgen.layers.denoiser_parts import Linear, TimeEmbedding
from jaxgen.layers.residual_cells import drawn


@dataclass(frozen=True)
class MLPDenoiserConfig:
    """Sizes of a denoising network for points. Raises ConfigError for sizes out of range."""

    width: int = 128  # D, features of every layer, an even number
    depth: int = 3  # residual layers

    def __post_init__(self):
        check_types(self)
        if self.width < 2 or self.width % 2:
            raise ConfigError("width", "an even number, 2 or more", self.width)
        if self.depth < 1:
            raise ConfigError("depth", "1 or more", self.depth)


class Layer(nnx.Module):
    """A residual layer of the equations."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.inner, self.shift, self.outer = (Linear(width, width, rngs) for _ in range(3))

    def __call__(self, h: Float[Array, "B D"], c: Float[Array, "B D"]) -> Float[Array, "B D"]:
        return h + self.outer(nnx.silu(self.inner(h) + self.shift(c).astype(h.dtype)))


class DenoisingMLP(nnx.Module):
    """The network above, for points [B, inputs].

    embedding: E, the size of the embedding of what is given; 0 for nothing. dtype: of the activations, float32 or bfloat16; parameters,
    c and the result are float32.
    """

    def __init__(self, config: MLPDenoiserConfig, inputs: int, outputs: int, *, embedding: int = 0, dtype: str = "float32", rngs: nnx.Rngs):
        self.config, self.dtype, width = config, jnp.dtype(dtype), config.width

        def make(rngs):
            layers = nnx.List([Layer(width, rngs) for _ in range(config.depth)])
            return TimeEmbedding(width, width, embedding, rngs), Linear(inputs, width, rngs), layers, {"head": Linear(width, outputs, rngs)}

        self.time, self.first, self.layers, last = drawn(make, rngs.params())
        self.head = last["head"]

    def __call__(
        self,
        x: Float[Array, "B d"],
        time: Float[Array, " B"],
        embedding: Float[Array, "B E"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B O"]:
        """The result, float32. key: not used, this network has no dropout. ConfigError for an embedding that does not fit."""
        c, h = nnx.silu(self.time(time, embedding)), self.first(x.astype(self.dtype))
        for layer in self.layers:
            h = layer(h, c)
        return self.head(h.astype(jnp.float32))
