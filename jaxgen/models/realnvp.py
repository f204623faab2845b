"""RealNVP: a multi-scale flow of affine couplings with convolutions.

    x = logit(a + (1 - 2a) v / levels),     log |det dx/dv| = sum_d [log((1 - 2a) / levels) - log w_d - log(1 - w_d)],  w = sigmoid(x)
    coupling with mask b:  y = b x + (1 - b) (x exp(s) + t),   (s, t) = network(b x),   log |det| = sum (1 - b) s
    scale 1 .. S:  three couplings with checkerboard masks, squeeze (2 x 2 pixels become channels), three with channel masks,
                   half of the channels are done and go to z as they are; the last scale: four checkerboard couplings, all are done
    p(z) = N(z; 0, I)

Masks and their complements alternate. s = g tanh(.) with a learned g for each channel. The network is residual: a 3 x 3 convolution, blocks
of two 3 x 3 convolutions after ReLUs, and a last one that is 0 at first, so that every coupling is the identity at first.

Dinh, Sohl-Dickstein, Bengio 2016, "Density estimation using Real NVP", sections 3 and 4.1. Departures: no batch normalisation, whose
statistics would make log p of an image depend on its neighbours in the batch, and no weight normalisation; a = 0.05 as there.

Axes: B batch, H W C image, D = H W C, S `scales`.
"""

from dataclasses import dataclass
from math import log, prod
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxgen.checks import check_image_config
from jaxgen.data.features import OfImages
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import Conv, zeros
from jaxgen.layers.image_flows import ImageFlow

INSIDE = 0.05
"""a: how far the ends of the levels are from 0 and 1, where the logit is infinite."""


@dataclass(frozen=True)
class RealNVPConfig(OfImages):
    """Sizes of a RealNVP. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    scales: int = 2  # S; H and W are multiples of 2^(S-1)
    width: int = 32  # features of the networks
    blocks: int = 2  # residual blocks of each network
    num_classes: ClassVar[int] = 0  # no labels

    def __post_init__(self):
        check_image_config(self, {"scales": 1, "width": 1, "blocks": 0})
        side = 2 ** (self.scales - 1)
        if self.image_shape[0] % side or self.image_shape[1] % side:
            raise ConfigError("scales", f"sides {self.image_shape[:2]} that {side} divides", self.scales, "choose fewer --model.scales")
        if prod(self.image_shape) < 2:
            raise ConfigError("image_shape", "at least two dimensions, for two parts", self.image_shape)


def checkerboard(shape: tuple[int, int, int], odd: bool) -> np.ndarray:
    """b: true where row + column (+ the channel, of a single pixel) is even, or odd; bool [H, W, C]."""
    height, width, channels = shape
    r, c, k = np.indices(shape)
    return (r + c + (k if height * width == 1 else 0)) % 2 == odd


def by_channel(shape: tuple[int, int, int], odd: bool) -> np.ndarray:
    """b: true in the first, or the second, half of the channels; bool [H, W, C]."""
    return np.broadcast_to((np.arange(shape[2]) < shape[2] // 2) != odd, shape)


def squeeze(x: Float[Array, "B H W C"]) -> Float[Array, "B h w E"]:
    """h = H / 2, w = W / 2, E = 4C: the four pixels of a square, one after the other, as channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)


def unsqueeze(x: Float[Array, "B h w E"]) -> Float[Array, "B H W C"]:
    """The inverse of `squeeze`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)


class Coupling(nnx.Module):
    """y = b x + (1 - b) (x exp(s) + t). kind: `checkerboard` or `by_channel`; odd: the complement of its mask."""

    def __init__(self, config: RealNVPConfig, shape: tuple[int, int, int], kind, odd: bool, rngs: nnx.Rngs):
        self.shape, self.kind, self.odd = shape, kind, odd
        self.first = Conv(shape[2], config.width, 3, rngs)
        self.blocks = nnx.List([nnx.List([Conv(config.width, config.width, 3, rngs) for _ in range(2)]) for _ in range(config.blocks)])
        self.last = Conv(config.width, 2 * shape[2], 3, rngs)
        self.last.kernel = zeros(self.last.kernel.shape)
        self.scale = nnx.Param(jnp.ones((shape[2],)))  # g

    def _parameters(self, kept: Float[Array, "B H W C"], mask) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W C"]]:
        """s and t, 0 where the mask is true."""
        x = self.first(kept)
        for one, two in self.blocks:
            x = x + two(jax.nn.relu(one(jax.nn.relu(x))))
        s, t = jnp.split(self.last(jax.nn.relu(x)), 2, axis=-1)
        return jnp.where(mask, 0, self.scale[...][None, None, None] * jnp.tanh(s)), jnp.where(mask, 0, t)

    def __call__(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B H W C"], Float[Array, " B"]]:
        """y and the log-determinant."""
        mask = self.kind(self.shape, self.odd)[None]
        s, t = self._parameters(jnp.where(mask, x, 0), mask)
        return x * jnp.exp(s) + t, s.sum((1, 2, 3))

    def inverse(self, y: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """x."""
        mask = self.kind(self.shape, self.odd)[None]
        s, t = self._parameters(jnp.where(mask, y, 0), mask)
        return (y - t) * jnp.exp(-s)


class Scale(nnx.Module):
    """The couplings of one scale; `before` the squeeze and `after` it, or in the last scale all of them before."""

    def __init__(self, config: RealNVPConfig, shape: tuple[int, int, int], last: bool, rngs: nnx.Rngs):
        height, width, channels = shape
        self.before = nnx.List([Coupling(config, shape, checkerboard, i % 2 == 1, rngs) for i in range(4 if last else 3)])
        squeezed = height // 2, width // 2, 4 * channels
        self.after = nnx.List([Coupling(config, squeezed, by_channel, i % 2 == 1, rngs) for i in range(0 if last else 3)])


class RealNVP(ImageFlow):
    """The density p(v); see `ImageFlow` for its other methods."""

    def __init__(self, config: RealNVPConfig, *, rngs: nnx.Rngs):
        self.config, scales, (height, width, channels) = config, [], config.image_shape
        for i in range(config.scales):
            shape = height >> i, width >> i, channels << i  # squeezed to 4 C channels, of which half are left
            scales.append(Scale(config, shape, i == config.scales - 1, rngs))
        self.parts = nnx.List(scales)

    def transform(self, v: Float[Array, "B H W C"]) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
        """z, the parts done first in front, and log |det dz/dv|."""
        levels, done = self.config.levels, []
        w = INSIDE + (1 - 2 * INSIDE) * v / levels
        x = jnp.log(w) - jnp.log1p(-w)
        log_det = (log((1 - 2 * INSIDE) / levels) - jnp.log(w) - jnp.log1p(-w)).sum((1, 2, 3))
        for scale in self.parts:
            for coupling in scale.before:
                x, more = coupling(x)
                log_det += more
            x = squeeze(x) if len(scale.after) else x
            for coupling in scale.after:
                x, more = coupling(x)
                log_det += more
            if len(scale.after):
                x, out = jnp.split(x, 2, axis=-1)
                done.append(out)
        return jnp.concatenate([part.reshape(len(v), -1) for part in (*done, x)], axis=1), log_det

    def inverse(self, z: Float[Array, "B D"]) -> Float[Array, "B H W C"]:
        """v."""
        height, width, channels = self.config.image_shape
        shapes = [(height >> i, width >> i, channels << i) for i in range(1, self.config.scales)]  # of the part done in each scale
        last = self.config.scales - 1
        shapes.append((height >> last, width >> last, channels << last))
        ends = np.cumsum([prod(shape) for shape in shapes])[:-1]
        *done, x = (part.reshape(-1, *shape) for part, shape in zip(jnp.split(z, ends, axis=1), shapes, strict=True))
        for scale in reversed(self.parts):
            x = jnp.concatenate([x, done.pop()], axis=-1) if len(scale.after) else x
            for coupling in reversed(scale.after):
                x = coupling.inverse(x)
            x = unsqueeze(x) if len(scale.after) else x
            for coupling in reversed(scale.before):
                x = coupling.inverse(x)
        return (jax.nn.sigmoid(x) - INSIDE) * (self.config.levels / (1 - 2 * INSIDE))
