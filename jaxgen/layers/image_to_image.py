"""The two networks of pix2pix (Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", appendix 6.1).

Generator, from an input [B, H, W, I] to images [B, H, W, C]:

    down    x -> leaky(N(conv(x))), 4 x 4 convolutions of stride 2, halvings of them
    up      x -> relu(drop(N(conv'(x)))), 4 x 4 transposed convolutions of stride 2, as many; every one but the first gets the result of
            the way down of its size as further channels
    out     3 x 3 convolution of the last result and the input

The sizes have min(8, 2^i) width channels, i = 0 .. halvings - 1 from the first convolution on; the last step up has width. N is instance
normalisation, with a gain and a bias for each channel,

    y = gain (x - mean) / sqrt(variance + 1e-5) + bias      mean and variance of each image and channel over all places

It is left out after the first convolution, as in the paper, and after the last one of the way down, whose places may be a single one: there
x - mean is 0. drop sets a feature to 0 with probability 1/2, in the first three steps up but never in the last one; without a key nowhere.

Discriminator, of [B, H, W, I + C]: 4 x 4 convolutions, patch_halvings of stride 2, then two of stride 1, the last to one channel, with
leaky ReLU between them. Every number of the result is the logit of a square of `patch_side` x `patch_side` pixels, and depends on no other
pixel.

Departures from the paper: `out`, which adds the input at full resolution; no normalisation in the discriminator, so that a logit is of its
square alone; instance normalisation where the paper normalises over its batches of one image.

Axes: B batch, H W image, h w smaller image, D and E channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.layers.convolutions import Conv, add_bias, convolution, dropout, normal, zeros

SLOPE = 0.2  # of the leaky ReLU
DROPPED = 0.5  # probability that a feature of the first steps up is set to 0
STEPS_WITH_DROPOUT = 3


def widths(width: int, count: int) -> list[int]:
    """Channels after each halving."""
    return [width * min(8, 2**i) for i in range(count)]


def patch_side(halvings: int) -> int:
    """The side of the square of pixels on which a logit depends: 16, 34, 70, 142 for 1, 2, 3, 4 halvings."""
    side = 7  # of the two convolutions of stride 1
    for _ in range(halvings):
        side = 2 * side + 2
    return side


class InstanceNorm(nnx.Module):
    """N, see above."""

    def __init__(self, channels: int):
        self.gain, self.bias = nnx.Param(jnp.ones(channels, jnp.float32)), zeros((channels,))

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        centred = x - x.mean((1, 2), keepdims=True)
        scale = jax.lax.rsqrt((centred**2).mean((1, 2), keepdims=True) + 1e-5) * self.gain[...].reshape(1, 1, 1, -1)
        return add_bias(centred * scale, self.bias[...])


class Step(nnx.Module):
    """A step down, or up, without the ReLU: a convolution that halves or doubles the sides, and N or else a bias."""

    def __init__(self, channels_in: int, channels_out: int, up: bool, norm: bool, rngs: nnx.Rngs):
        self.up, self.norm = up, InstanceNorm(channels_out) if norm else None
        fan = 16 * channels_in / (4 if up else 1)  # a step up reads 4 of the 16 taps at a place
        self.kernel = normal(rngs, (4, 4, channels_in, channels_out), fan)
        self.bias = None if norm else zeros((channels_out,))

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B _ _ E"]:
        if self.up:
            y = convolution(x, self.kernel[...], ((2, 2), (2, 2)), spread=2)
        else:
            y = convolution(x, self.kernel[...], ((1, 1), (1, 1)), stride=2)
        return add_bias(y, self.bias[...]) if self.norm is None else self.norm(y)


class UNetGenerator(nnx.Module):
    """The generator above, without a bound on the values."""

    def __init__(self, inputs: int, outputs: int, width: int, halvings: int, rngs: nnx.Rngs):
        sizes = widths(width, halvings)
        normed = [0 < i < halvings - 1 for i in range(halvings)]
        below = [inputs, *sizes]
        self.downs = nnx.List([Step(below[i], sizes[i], False, normed[i], rngs) for i in range(halvings)])
        above, last = [width, *sizes], halvings - 1
        ups = [Step(sizes[i] * (1 if i == last else 2), above[i], True, True, rngs) for i in range(halvings)]
        self.ups = nnx.List(ups[::-1])
        self.out = Conv(width + inputs, outputs, 3, rngs)

    def __call__(self, x: Float[Array, "B H W I"], key: PRNGKeyArray | None = None) -> Float[Array, "B H W C"]:
        """key: of the dropout; None for none."""
        results, y = [], x
        for step in self.downs:
            y = nnx.leaky_relu(step(y), SLOPE)
            results.append(y)
        results.pop()
        for i, step in enumerate(self.ups):
            y = step(y)
            if key is not None and i < min(STEPS_WITH_DROPOUT, len(self.ups) - 1):
                y = dropout(y, DROPPED, jax.random.fold_in(key, i))
            y = nnx.relu(y)
            if results:
                y = jnp.concatenate([y, results.pop()], axis=-1)
        return self.out(jnp.concatenate([y, x], axis=-1))


class PatchDiscriminator(nnx.Module):
    """The discriminator above."""

    def __init__(self, channels: int, width: int, halvings: int, rngs: nnx.Rngs):
        sizes = [channels, *widths(width, halvings + 1)]
        strides = [2] * halvings + [1]
        self.layers = nnx.List([Conv(sizes[i], sizes[i + 1], 4, rngs, stride=stride) for i, stride in enumerate(strides)])
        self.logit = Conv(sizes[-1], 1, 4, rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w"]:
        """The logit of every square."""
        for layer in self.layers:
            x = nnx.leaky_relu(layer(x), SLOPE)
        return self.logit(x)[..., 0]
