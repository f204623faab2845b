"""Residual cells of deep hierarchical VAEs (Vahdat and Kautz 2020, "NVAE", section 3.1 and figure 3), and the spectral regulariser of their
convolutions (section 3.2).

    encoder cell       x + 0.1 SE(conv_3(swish(N(conv_3(swish(N(x)))))))
    generative cell    x + 0.1 SE(N(conv_1(swish(N(depthwise_5(swish(N(conv_1(N(x)))))))))       conv_1 to E times the channels and back
    SE(y)              y sigmoid(W_2 relu(W_1 mean of y over places))                              squeeze and excitation

N is group normalisation, of each image alone: mean 0 and variance 1 over the places and the channels of a group, then a gain and a bias
for every channel. The paper has batch normalisation there. Its statistics join the rows of a batch, so that the bound of an image would
depend on its batch, and on running averages that do not belong to averaged parameters.

Axes: B batch, H W image, C channels, k side of a kernel, D inputs, E outputs of a layer.
"""

import re
from math import gcd, prod

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.layers.convolutions import EXACT, Conv, Linear, add_bias, dot, normal, shift, zeros

RESIDUAL = 0.1
"""Factor of the branch of a cell, which keeps the sum of many of them near the size of its first term."""


SMALL_GRID = 64
"""On a CPU a depthwise convolution of images of at most so many places is one matrix product a channel, see `depthwise`."""


class Pointwise(Conv):
    """A 1 x 1 convolution as one matrix product."""

    def __init__(self, features_in: int, features_out: int, rngs: nnx.Rngs):
        super().__init__(features_in, features_out, 1, rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W E"]:
        return add_bias(dot(x, self.kernel[...][0, 0]), self.bias[...])


class Down(Pointwise):
    """A 2 x 2 convolution of stride 2, H x W -> H/2 x W/2, as one matrix product."""

    def __init__(self, features_in: int, features_out: int, rngs: nnx.Rngs):
        super().__init__(4 * features_in, features_out, rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
        batch, height, width, features = x.shape
        parts = x.reshape(batch, height // 2, 2, width // 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
        return super().__call__(parts.reshape(batch, height // 2, width // 2, 4 * features))


class Up(Pointwise):
    """A 2 x 2 transposed convolution of stride 2, H x W -> 2H x 2W, as one matrix product."""

    def __init__(self, features_in: int, features_out: int, rngs: nnx.Rngs):
        super().__init__(features_in, 4 * features_out, rngs)

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
        batch, height, width, _ = x.shape
        parts = super().__call__(x).reshape(batch, height, width, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
        return parts.reshape(batch, 2 * height, 2 * width, -1)


class GroupNorm(nnx.Module):
    """gain (x - mean) / sqrt(variance + 1e-5) + bias, computed in float32; groups of at least 8 channels where C is a multiple of 8."""

    def __init__(self, channels: int):
        self.groups = gcd(channels, max(1, channels // 8))
        self.gain, self.bias = nnx.Param(jnp.ones(channels)), zeros((channels,))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        parts = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, x.shape[3] // self.groups)
        mean = parts.mean((1, 3), keepdims=True)
        variance = jnp.maximum((parts**2).mean((1, 3), keepdims=True) - mean**2, 0)
        y = ((parts - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)
        return add_bias(y * self.gain[...].reshape(1, 1, 1, -1), self.bias[...]).astype(x.dtype)


class Depthwise(nnx.Module):
    """y[r, c] = sum_{i, j} K[i, j] x[r + i - m, c + j - m] + b for every channel by itself, m = k // 2, zeros outside."""

    def __init__(self, channels: int, kernel: int, rngs: nnx.Rngs):
        self.kernel, self.bias = normal(rngs, (kernel, kernel, 1, channels), kernel**2), zeros((channels,))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return add_bias(depthwise(x, self.kernel[...][:, :, 0].astype(x.dtype)), self.bias[...])


def depthwise(x: Float[Array, "B H W C"], kernel: Float[Array, "k k C"]) -> Float[Array, "B H W C"]:
    """`Depthwise` without the bias.

    On a CPU, where XLA's convolution of groups of one channel is slow, it is one matrix product a channel: the rows that an output row
    sees, side by side, times a matrix that holds the kernel; on small grids the whole image times a matrix.
    """
    (batch, height, width, channels), k = x.shape, kernel.shape[0]
    m = k // 2
    if jax.default_backend() != "cpu":
        around, axes = ((m, m),) * 2, ("NHWC", "HWIO", "NHWC")
        kernel = kernel[:, :, None]
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), around, dimension_numbers=axes, feature_group_count=channels, precision=EXACT
        )
    across = jnp.einsum("ijc,jpq->ipqc", kernel, _taps(width, k, x.dtype), precision=EXACT)  # from column p to column q
    if height * width <= SMALL_GRID:
        matrix = jnp.einsum("ipqc,irs->crpsq", across, _taps(height, k, x.dtype), precision=EXACT)
        rows = x.reshape(batch, 1, height * width, channels)
    else:
        matrix = across.transpose(3, 0, 1, 2)
        rows = jnp.concatenate([shift(x, m - i, axis=1) for i in range(k)], axis=2)
    y = jnp.einsum("brpc,cpq->brqc", rows, matrix.reshape(channels, rows.shape[2], -1), precision=EXACT)
    return y.reshape(x.shape)


def _taps(size: int, k: int, dtype) -> Float[Array, "k n n"]:
    """1 at [j, p, q] where output q of n sees input p through tap j, p = q + j - k // 2."""
    p, q = np.arange(size)[:, None], np.arange(size)
    return jnp.asarray(p - q + k // 2 == np.arange(k)[:, None, None], dtype)


class SqueezeExcite(nnx.Module):
    """y times a factor in (0, 1) for every image and channel, from the means of y over its places."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        hidden = max(channels // 16, 4)
        self.squeeze = Linear(channels, hidden, rngs)
        self.excite = Linear(hidden, channels, rngs)

    def __call__(self, y: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        factor = jax.nn.sigmoid(self.excite(nnx.relu(self.squeeze(y.astype(jnp.float32).mean((1, 2))))))
        return y * factor[:, None, None].astype(y.dtype)


class EncoderCell(nnx.Module):
    """The encoder's cell, see above."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = GroupNorm(channels), GroupNorm(channels)
        self.conv1, self.conv2 = Conv(channels, channels, 3, rngs), Conv(channels, channels, 3, rngs)
        self.excitation = SqueezeExcite(channels, rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = self.conv1(nnx.silu(self.norm1(x)))
        return x + RESIDUAL * self.excitation(self.conv2(nnx.silu(self.norm2(y))))


class GenerativeCell(nnx.Module):
    """The decoder's cell, see above; `expansion` is E."""

    def __init__(self, channels: int, expansion: int, rngs: nnx.Rngs):
        wide = expansion * channels
        self.norm1, self.norm2, self.norm3, self.norm4 = GroupNorm(channels), GroupNorm(wide), GroupNorm(wide), GroupNorm(channels)
        self.widen, self.narrow = Pointwise(channels, wide, rngs), Pointwise(wide, channels, rngs)
        self.depthwise, self.excitation = Depthwise(wide, 5, rngs), SqueezeExcite(channels, rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = nnx.silu(self.norm2(self.widen(self.norm1(x))))
        y = nnx.silu(self.norm3(self.depthwise(y)))
        return x + RESIDUAL * self.excitation(self.norm4(self.narrow(y)))


# --- The spectral regulariser -------------------------------------------------------------------------------------------------------


def matrices(model: nnx.Module) -> list[Float[Array, "_ _ _"]]:
    """The kernel [k, k, D, E] of every convolution as a matrix with R = k k D rows; n kernels where several are stacked in one array."""
    kernels = [leaf for leaf in _named(model, "kernel") if leaf.ndim >= 4]
    return [kernel.reshape(-1, kernel.shape[-4] * kernel.shape[-3] * kernel.shape[-2], kernel.shape[-1]) for kernel in kernels]


def gains(model: nnx.Module) -> list[Array]:
    """The gains of every normalisation."""
    return _named(model, "gain")


def _named(model: nnx.Module, name: str) -> list[Array]:
    """The parameters whose path has this word."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))
    return [leaf for path, leaf in leaves if name in words(path)]


def words(path) -> list[str]:
    """Of ['encoder']['stem']['kernel'] or .encoder.stem.kernel the names of its attributes."""
    return re.findall(r"\w+", jax.tree_util.keystr(path))


def norms(matrix: Float[Array, "n R E"], vector: Float[Array, "n E"]) -> Float[Array, " n"]:
    """|W v| for unit vectors v, the largest singular value of W if v belongs to it. Its gradient is u v', u = W v / |W v|."""
    image = jnp.einsum("nre,ne->nr", matrix, vector, precision=EXACT)
    return jnp.sqrt((image**2).sum(-1) + 1e-12)


def power_iteration(matrices: list[Float[Array, "_ _ _"]], vectors: list[Float[Array, "_ _"]], steps: int) -> list[Float[Array, "_ _"]]:
    """v <- W' W v / |W' W v| for each matrix W, `steps` times; v stays where W v is 0."""

    def advanced(matrix, vector):
        image = jnp.einsum("nre,ne->nr", matrix, vector, precision=EXACT)
        back = jnp.einsum("nre,nr->ne", matrix, image, precision=EXACT)
        length = jnp.linalg.norm(back, axis=-1, keepdims=True)
        return jnp.where(length > 0, back / jnp.where(length > 0, length, 1), vector)

    return jax.lax.fori_loop(0, steps, lambda i, vectors: list(map(advanced, matrices, vectors)), vectors)


def drawn(make, key: PRNGKeyArray, zero: tuple[str, ...] = ("head",)):
    """The modules of `make(rngs)` with first weights cut out of one normal draw: XLA compiles every draw by itself, which takes long.

    Kernels are normal with variance 1 / inputs, gains 1 and biases 0. The kernels of the layers named in `zero` are 0.
    """
    shapes = jax.eval_shape(lambda: make(nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten_with_path(shapes)
    ends = np.cumsum([leaf.size for _, leaf in leaves])

    def weight(names, leaf, part):
        if "gain" in names:
            return jnp.ones(leaf.shape)
        if "bias" in names or not set(zero).isdisjoint(names):
            return jnp.zeros(leaf.shape)
        inputs = prod(leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2:-1]) if "kernel" in names else 1
        return part.reshape(leaf.shape) / np.float32(np.sqrt(inputs))

    @jax.jit
    def all_weights(key):
        parts = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
        return jax.tree.unflatten(tree, [weight(words(path), leaf, part) for (path, leaf), part in zip(leaves, parts, strict=True)])

    return all_weights(key)
