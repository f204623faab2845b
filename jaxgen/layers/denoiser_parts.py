"""What the denoising networks share: a linear layer, the embedding of the time, attention between all places.

A denoising network is called as `network(x, time, embedding, key)`: x noisy images [B, H, W, C] or points [B, d], time float32 [B], the
embedding of what is given (a label), float32 [B, E], or None, and a key for dropout, None for none. It gives float32 [B, H, W, O] or
[B, O], and 0 for every x before the first step of training. Times are numbers from 0 to 1, or others of about that size.

Axes: B batch, N places, D and E features of a layer's input and output, C and O channels of the network's input and output.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxgen.errors import ConfigError
from jaxgen.layers.attention import attend
from jaxgen.layers.convolutions import EXACT, add_bias, dot

TIME_SCALE = 1000.0
"""What a time in 0..1 is multiplied with: the sinusoids are those of 1000 steps (Ho et al. 2020)."""

SCORES = 2**19
"""On a CPU attention computes about so many scores at a time, see `self_attention`."""


class Linear(nnx.Linear):
    """Flax's linear layer, x @ kernel + bias: the same parameters, by `dot`, in the dtype of x."""

    def __init__(self, features_in: int, features_out: int, rngs: nnx.Rngs):
        super().__init__(features_in, features_out, precision=EXACT, rngs=rngs)

    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape E"]:
        # As a matrix: for more axes XLA's CPU backend copies x into another order for the kernel's gradient.
        y = add_bias(dot(x.reshape(-1, x.shape[-1]), self.kernel[...]), self.bias[...])
        return y.reshape(*x.shape[:-1], y.shape[-1])


def sinusoids(position: Float[Array, " n"], size: int) -> Float[Array, "n size"]:
    """[cos(w_0 p), cos(w_1 p), ..., sin(w_0 p), sin(w_1 p), ...] with w_i = 10000^(-i / h), h = size / 2; an even size."""
    half = size // 2
    frequencies = np.float32(10000.0 ** (-np.arange(half) / half))
    angles = position[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nnx.Module):
    """c = W_2 silu(W_1 sinusoids(1000 t) + b_1) + b_2 + (W_3 e + b_3), float32; the last term only where something is given (E > 0)."""

    def __init__(self, sinusoids: int, features: int, embedding: int, rngs: nnx.Rngs):
        self.sizes = (sinusoids, embedding)
        self.inner, self.outer = Linear(sinusoids, features, rngs), Linear(features, features, rngs)
        self.given = Linear(embedding, features, rngs) if embedding else None

    def __call__(self, time: Float[Array, " B"], embedding: Float[Array, "B E"] | None) -> Float[Array, "B F"]:
        """c. ConfigError for an embedding of another size, for a missing one and for one too many."""
        waves, size = self.sizes
        got = None if embedding is None else embedding.shape[-1]
        if got != (size or None):
            raise ConfigError("embedding", f"[B, {size}]" if size else "None, the network is given nothing", got and list(embedding.shape))
        c = self.outer(nnx.silu(self.inner(sinusoids(TIME_SCALE * time.astype(jnp.float32), waves))))
        return c if embedding is None else c + self.given(embedding.astype(jnp.float32))


def self_attention(projected: Float[Array, "B N F"], heads: int) -> Float[Array, "B N D"]:
    """softmax(q k^T / sqrt d) v between all places for each head, from q, k and v side by side: F = 3 D, d = D / heads.

    On a CPU it is computed for so many images at a time that their scores, heads N^2 numbers each, stay in a core's cache, and the
    backward pass computes the scores again: 2.6 times as fast for 64 images of 196 places.
    """
    batch, places, _ = projected.shape

    def attention(projected):
        parts = projected.reshape(*projected.shape[:2], 3, heads, -1).transpose(2, 0, 3, 1, 4)  # [3, B, heads, N, d]
        return attend(parts[0], parts[1], parts[2]).swapaxes(1, 2).reshape(*projected.shape[:2], -1)

    few = max(SCORES // (heads * places**2), 1)
    if jax.default_backend() != "cpu" or batch <= few:
        return attention(projected)
    few = next(n for n in range(few, 0, -1) if batch % n == 0)
    # Every part has images of all devices over which a batch is split.
    parts = projected.reshape(few, batch // few, *projected.shape[1:]).swapaxes(0, 1)
    return jax.lax.map(jax.checkpoint(attention, prevent_cse=False), parts).swapaxes(0, 1).reshape(batch, places, -1)
