"""The diffusion transformer (Peebles and Xie 2023, "Scalable Diffusion Models with Transformers"), with the blocks called adaLN-Zero.

An image is cut into N patches of p x p pixels, each a place of D features: W x + b + position. The position of a patch is fixed: half of
the features are sinusoids of its row, half of its column. Then `depth` blocks, and a linear layer back to the pixels of each patch:

    a1, b1, g1, a2, b2, g2 = W silu(c) + b                             c: the time, and what is given, as in denoiser_parts.py
    x <- x + g1 (W_o attention((1 + a1) n(x) + b1) + b_o)              between all places
    x <- x + g2 MLP((1 + a2) n(x) + b2)                                one hidden layer of `ratio` D features, gelu (in its tanh form)
    y = W ((1 + a) n(x) + b) + b                                       a, b = W silu(c) + b

n is layer normalisation without parameters: mean 0 and variance 1 over the features of a place, in float32. The layers that give a, b, g
and the last layer are 0 at first, so a block changes nothing at first. Departures from the paper: what is given comes as an embedding that
is multiplied with a matrix, instead of a table of D features for every class; normal first weights.

Axes: B batch, H W image, C channels, p patch, N = H W / p^2 places, D width, L depth.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.config import check_types
from jaxgen.errors import ConfigError
from jaxgen.layers.denoiser_parts import Linear, TimeEmbedding, self_attention, sinusoids
from jaxgen.layers.residual_cells import drawn

SINUSOIDS = 256
"""The number of sinusoids of the time."""


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a diffusion transformer. Raises ConfigError for sizes out of range."""

    patch: int = 2  # p, the sides of a patch in pixels, a divisor of the image's sides
    width: int = 64  # D, features of a place, a multiple of 4 and of heads
    depth: int = 4  # L, number of blocks
    heads: int = 4  # attention heads
    ratio: int = 4  # hidden features of a block's MLP as a multiple of width
    # Compute the blocks once more in the backward pass instead of keeping their activations; XLA's compiler for a CPU keeps them anyway.
    remat: bool = False

    def __post_init__(self):
        check_types(self)
        for name in ("patch", "depth", "heads", "ratio"):
            if getattr(self, name) < 1:
                raise ConfigError(name, "1 or more", getattr(self, name))
        if self.width < 1 or self.width % 4 or self.width % self.heads:
            raise ConfigError("width", f"a positive multiple of 4 and of the {self.heads} heads", self.width)

    @classmethod
    def small(cls, patch: int = 2) -> "DiTConfig":
        """The paper's DiT-S."""
        return cls(patch, width=384, depth=12, heads=6)

    @classmethod
    def base(cls, patch: int = 2) -> "DiTConfig":
        """The paper's DiT-B."""
        return cls(patch, width=768, depth=12, heads=12)

    @classmethod
    def large(cls, patch: int = 2) -> "DiTConfig":
        """The paper's DiT-L."""
        return cls(patch, width=1024, depth=24, heads=16)

    @classmethod
    def extra_large(cls, patch: int = 2) -> "DiTConfig":
        """The paper's DiT-XL."""
        return cls(patch, width=1152, depth=28, heads=16)


def positions(rows: int, columns: int, width: int) -> Float[Array, "N D"]:
    """Of every place, in raster order: the sinusoids of its row, then those of its column, width / 2 each."""
    down, across = (sinusoids(jnp.arange(size, dtype=jnp.float32), width // 2) for size in (rows, columns))
    return jnp.concatenate([jnp.repeat(down, columns, axis=0), jnp.tile(across, (rows, 1))], axis=-1)


def modulated(x: Float[Array, "B N D"], scale: Float[Array, "B 1 D"], shift: Float[Array, "B 1 D"]) -> Float[Array, "B N D"]:
    """(1 + scale) n(x) + shift, in the dtype of x."""
    centred = x.astype(jnp.float32)
    centred = centred - centred.mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return ((1 + scale) * y + shift).astype(x.dtype)


class Modulation(Linear):
    """`parts` times D numbers for each image, from silu(c)."""

    def __init__(self, width: int, parts: int, rngs: nnx.Rngs):
        super().__init__(width, parts * width, rngs)
        self.parts = parts

    def split(self, c: Float[Array, "B D"]) -> list[Float[Array, "B 1 D"]]:
        """The parts, for all places."""
        return jnp.split(self(c)[:, None], self.parts, axis=-1)


class Block(nnx.Module):
    """The block above."""

    def __init__(self, config: DiTConfig, rngs: nnx.Rngs):
        width, self.heads = config.width, config.heads
        self.modulation = Modulation(width, 6, rngs)
        self.project, self.out = Linear(width, 3 * width, rngs), Linear(width, width, rngs)
        self.inner, self.outer = Linear(width, config.ratio * width, rngs), Linear(config.ratio * width, width, rngs)

    def __call__(self, x: Float[Array, "B N D"], c: Float[Array, "B D"]) -> Float[Array, "B N D"]:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation.split(c)
        y = self.out(self_attention(self.project(modulated(x, scale1, shift1)), self.heads))
        x = x + gate1.astype(x.dtype) * y
        y = self.outer(nnx.gelu(self.inner(modulated(x, scale2, shift2))))
        return x + gate2.astype(x.dtype) * y


class Last(nnx.Module):
    """The last layer above, in float32."""

    def __init__(self, width: int, outputs: int, rngs: nnx.Rngs):
        self.modulation, self.head = Modulation(width, 2, rngs), Linear(width, outputs, rngs)

    def __call__(self, x: Float[Array, "B N D"], c: Float[Array, "B D"]) -> Float[Array, "B N O"]:
        return self.head(modulated(x.astype(jnp.float32), *self.modulation.split(c)))


class DiT(nnx.Module):
    """The network above, for images [B, H, W, inputs] with the sides of image_shape, (H, W, ...). ConfigError unless p divides both.

    embedding: E, the size of the embedding of what is given; 0 for nothing. dtype: of the activations, float32 or bfloat16; parameters,
    normalisation, c and the result are float32.
    """

    def __init__(
        self,
        config: DiTConfig,
        inputs: int,
        outputs: int,
        image_shape: tuple[int, ...],
        *,
        embedding: int = 0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        (height, width), patch = image_shape[:2], config.patch
        if height % patch or width % patch:
            sizes = [size for size in range(1, min(height, width) + 1) if height % size == width % size == 0]
            raise ConfigError("patch", f"a divisor of the sides of {height} x {width} pixels", patch, f"choose from {sizes}")
        self.config, self.dtype, self.grid = config, jnp.dtype(dtype), (height // patch, width // patch)

        def make(rngs):
            blocks = nnx.List([Block(config, rngs) for _ in range(config.depth)])
            first, last = Linear(patch**2 * inputs, config.width, rngs), Last(config.width, patch**2 * outputs, rngs)
            return TimeEmbedding(SINUSOIDS, config.width, embedding, rngs), first, blocks, last

        self.time, self.first, self.blocks, self.last = drawn(make, rngs.params(), zero=("modulation", "head"))

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, " B"],
        embedding: Float[Array, "B E"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B H W O"]:
        """The result, float32. key: not used, this network has no dropout. ConfigError for images or an embedding that do not fit."""
        (batch, *sides, channels), (rows, columns), p = x.shape, self.grid, self.config.patch
        if sides != [rows * p, columns * p]:
            raise ConfigError("x", f"[B, {rows * p}, {columns * p}, C]", list(x.shape))
        c = nnx.silu(self.time(time, embedding))
        patches = x.astype(self.dtype).reshape(batch, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
        h = self.first(patches.reshape(batch, rows * columns, -1))
        h = h + positions(rows, columns, self.config.width).astype(h.dtype)[None]
        for block in self.blocks:
            h = jax.checkpoint(Block.__call__)(block, h, c) if self.config.remat else block(h, c)
        y = self.last(h, c).reshape(batch, rows, columns, p, p, -1).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(batch, *sides, -1)
