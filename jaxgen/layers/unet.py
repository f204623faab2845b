"""The U-Net of denoising diffusion (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B), with attention.

    c        the time, and what is given, as in denoiser_parts.py
    block    s(x) + conv_3(drop(silu(N(conv_3(silu(N(x))) + W silu(c)))))      s: the identity, or a 1 x 1 convolution to other channels
    attend   x + W_o attention(N(x))                                           between all places; after a block, where chosen

From the full resolution down: `blocks` blocks at each, with a 3 x 3 convolution of stride 2 between two resolutions. Two blocks, the first
with attention, at the last one. Then up again: blocks + 1 blocks at each resolution, whose input has a result of the way down beside it as
further channels, the last one first; between two resolutions every pixel is repeated 2 x 2 times and a 3 x 3 convolution follows.

Sides n become ceil(n / 2) on the way down; on the way up a row or column too much is cut off after the convolution. So images of any size
fit.

N is group normalisation, in float32. The last convolution of every block, W_o and the last of the network are 0 at first. Departures
from the paper: groups of 8 channels, where it has 32 groups of any size; normal first weights.

Axes: B batch, H W image, h w image at a lower resolution, C channels, D and E features, F features of c.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.config import check_types
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import Conv, add_bias, convolution, dropout
from jaxgen.layers.denoiser_parts import Linear, TimeEmbedding, self_attention
from jaxgen.layers.residual_cells import GroupNorm, drawn


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net. Raises ConfigError for sizes out of range."""

    width: int = 32  # features at the full resolution, an even number; c has four times as many
    multiples: tuple[int, ...] = (1, 2)  # features at each resolution as multiples of width, the full resolution first
    blocks: int = 1  # residual blocks at each resolution on the way down; one more on the way up
    attention: tuple[int, ...] = (1,)  # resolutions with attention: r for sides halved r times
    heads: int = 1  # attention heads
    dropout: float = 0.0  # probability with which a feature is set to 0 in training, inside the blocks
    # Compute the blocks once more in the backward pass instead of keeping their activations; XLA's compiler for a CPU keeps them anyway.
    remat: bool = False

    def __post_init__(self):
        check_types(self)
        if self.width < 2 or self.width % 2:
            raise ConfigError("width", "an even number, 2 or more", self.width)
        if not self.multiples or min(self.multiples) < 1:
            raise ConfigError("multiples", "positive numbers, one for every resolution", self.multiples)
        if self.blocks < 1:
            raise ConfigError("blocks", "1 or more", self.blocks)
        if any(not 0 <= r < len(self.multiples) for r in self.attention):
            raise ConfigError("attention", f"numbers in 0..{len(self.multiples) - 1}, one resolution for each of multiples", self.attention)
        wrong = [size for size in self._attended if size % self.heads] if self.heads > 0 else self._attended
        if wrong:
            raise ConfigError("heads", f"a divisor of the features with attention, {', '.join(map(str, wrong))}", self.heads)
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout", "a number in 0..1, 1 excluded", self.dropout)

    @property
    def widths(self) -> list[int]:
        """Features at each resolution."""
        return [self.width * multiple for multiple in self.multiples]

    @property
    def _attended(self) -> list[int]:
        return sorted({self.widths[r] for r in (*self.attention, len(self.multiples) - 1)})

    @classmethod
    def cifar10(cls) -> "UNetConfig":
        """The paper's size for images of 32 x 32 x 3: 35.7 million parameters."""
        return cls(width=128, multiples=(1, 2, 2, 2), blocks=2, attention=(1,), dropout=0.1)


class Norm(GroupNorm):
    """`GroupNorm` as a x + b, with a and b for every image and channel, from sums over places: its gradient is 3 times as fast on a CPU."""

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        (batch, height, width, features), groups = x.shape, self.groups
        values, size = x.astype(jnp.float32), height * width * features // groups
        moments = [part.sum((1, 2)).reshape(batch, groups, -1).sum(-1) / size for part in (values, values**2)]
        mean, square = (jnp.repeat(part, features // groups, axis=1) for part in moments)
        a = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + 1e-5) * self.gain[...][None]
        b = self.bias[...][None] - mean * a
        return (values * a[:, None, None] + b[:, None, None]).astype(x.dtype)


@jax.checkpoint
def silu_of(norm: Norm, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
    """silu(N(x)). The backward pass computes it again from x: as fast as keeping what is between."""
    return nnx.silu(norm(x))


class SpatialAttention(nnx.Module):
    """x + W_o attention(N(x)), see above."""

    def __init__(self, features: int, heads: int, rngs: nnx.Rngs):
        self.heads, self.norm = heads, Norm(features)
        self.project, self.head = Linear(features, 3 * features, rngs), Linear(features, features, rngs)

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        batch, height, width, features = x.shape
        y = self_attention(self.project(self.norm(x).reshape(batch, height * width, features)), self.heads)
        return x + self.head(y).reshape(x.shape)


class Block(nnx.Module):
    """The block above, and attention after it where `heads` > 0."""

    def __init__(self, features_in: int, features_out: int, features_of_c: int, heads: int, rngs: nnx.Rngs):
        self.norm1, self.conv = Norm(features_in), Conv(features_in, features_out, 3, rngs)
        self.shift = Linear(features_of_c, features_out, rngs)
        self.norm2, self.head = Norm(features_out), Conv(features_out, features_out, 3, rngs)
        self.skip = Linear(features_in, features_out, rngs) if features_in != features_out else None
        self.attention = SpatialAttention(features_out, heads, rngs) if heads else None

    def __call__(
        self, x: Float[Array, "B h w D"], c: Float[Array, "B F"], rate: float, key: PRNGKeyArray | None
    ) -> Float[Array, "B h w E"]:
        """c: after silu. Dropout with probability `rate` where there is a key."""
        y = self.conv(silu_of(self.norm1, x))
        y = silu_of(self.norm2, y + self.shift(c)[:, None, None].astype(x.dtype))
        y = self.head(y if key is None or rate == 0 else dropout(y, rate, key))
        y = y + (x if self.skip is None else self.skip(x))
        return y if self.attention is None else self.attention(y)


class Grow(Conv):
    """Every pixel repeated 2 x 2 times, then a 3 x 3 convolution: h x w to 2h x 2w.

    On a CPU without the repetition. Row 2a of y sees row a - 1 through K_0 and row a, twice, through K_1 and K_2; row 2a + 1 sees row a
    through K_0 and K_1, and row a + 1 through K_2. So the rows of one remainder are a convolution of x with two rows, columns likewise:
    4/9 of the products.
    """

    def __init__(self, features: int, rngs: nnx.Rngs):
        super().__init__(features, features, 3, rngs)

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B H W D"]:
        if jax.default_backend() != "cpu":
            return super().__call__(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))

        def part(p: int, q: int) -> Array:
            kernel = self.kernel[...]
            for axis, remainder in enumerate((p, q)):
                first, middle, last = jnp.split(kernel, 3, axis)
                kernel = jnp.concatenate([first + middle, last] if remainder else [first, middle + last], axis)
            return convolution(x, kernel, ((1 - p, p), (1 - q, q)))

        y = jnp.stack([jnp.stack([part(p, q) for q in range(2)], axis=3) for p in range(2)], axis=2)  # [B, h, p, w, q, D]
        batch, height, width, features = x.shape
        return add_bias(y.reshape(batch, 2 * height, 2 * width, features), self.bias[...])


class Last(nnx.Module):
    """conv_3(silu(N(x))), in float32."""

    def __init__(self, features: int, outputs: int, rngs: nnx.Rngs):
        self.norm, self.head = Norm(features), Conv(features, outputs, 3, rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W O"]:
        return self.head(silu_of(self.norm, x.astype(jnp.float32)))


class UNet(nnx.Module):
    """The network above, for images [B, H, W, inputs] of any sides.

    embedding: E, the size of the embedding of what is given; 0 for nothing. dtype: of the activations, float32 or bfloat16; parameters,
    normalisation, c and the result are float32.
    """

    def __init__(self, config: UNetConfig, inputs: int, outputs: int, *, embedding: int = 0, dtype: str = "float32", rngs: nnx.Rngs):
        self.config, self.dtype = config, jnp.dtype(dtype)
        parts = drawn(lambda rngs: _parts(config, inputs, outputs, embedding, rngs), rngs.params())
        self.time, self.first, self.down, self.shrink, self.middle, self.up, self.grow, self.last = parts

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, " B"],
        embedding: Float[Array, "B E"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B H W O"]:
        """The result, float32. key: for dropout, None for none. ConfigError for an embedding that does not fit."""
        c, number, rate = nnx.silu(self.time(time, embedding)), 0, self.config.dropout

        def run(block: Block, h: Array) -> Array:
            nonlocal number
            number += 1
            one = None if key is None or rate == 0 else jax.random.fold_in(key, number)
            call = jax.checkpoint(_call, static_argnums=3) if self.config.remat else _call
            return call(block, h, c, rate, one)

        h = self.first(x.astype(self.dtype))
        before = [h]
        for r, blocks in enumerate(self.down):
            if r:
                h = self.shrink[r - 1](h)
                before.append(h)
            for block in blocks:
                h = run(block, h)
                before.append(h)
        for block in self.middle:
            h = run(block, h)
        for r, blocks in reversed(list(enumerate(self.up))):
            for block in blocks:
                h = run(block, jnp.concatenate([h, before.pop()], axis=-1))
            if r:
                height, width = before[-1].shape[1:3]
                h = self.grow[r - 1](h)[:, :height, :width]
        return self.last(h)


def _call(block: Block, h: Array, c: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    return block(h, c, rate, key)


def _parts(config: UNetConfig, inputs: int, outputs: int, embedding: int, rngs: nnx.Rngs) -> tuple:
    """The modules of a U-Net in the order of `UNet.__init__`."""
    widths, features_of_c = config.widths, 4 * config.width
    lowest = len(widths) - 1

    def block(features_in: int, features_out: int, attended: bool) -> Block:
        return Block(features_in, features_out, features_of_c, config.heads if attended else 0, rngs)

    down, up = [], []
    for r, width in enumerate(widths):
        above, below, attended = widths[max(r - 1, 0)], widths[min(r + 1, lowest)], r in config.attention
        ins = [above] + [width] * (config.blocks - 1)
        down.append(nnx.List([block(size, width, attended) for size in ins]))
        # The results of the way down that are put beside, the last one first: those of the blocks, then what came into this resolution.
        sides = [width] * config.blocks + [above]
        ins = [below] + [width] * config.blocks
        up.append(nnx.List([block(size + side, width, attended) for size, side in zip(ins, sides, strict=True)]))
    last = widths[-1]
    return (
        TimeEmbedding(config.width, features_of_c, embedding, rngs),
        Conv(inputs, widths[0], 3, rngs),
        nnx.List(down),
        nnx.List([Conv(width, width, 3, rngs, stride=2) for width in widths[:-1]]),
        nnx.List([block(last, last, True), block(last, last, False)]),
        nnx.List(up),
        nnx.List([Grow(width, rngs) for width in widths[1:]]),
        Last(widths[0], outputs, rngs),
    )
