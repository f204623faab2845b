"""A block of a decoder-only transformer, normalised before each of its two parts, for whole sequences and one place at a time.

    x' = x + attention(N(x)),   y = x' + W_2 gelu(W_1 N(x') + b_1) + b_2         attention to the places j <= i, see attention.py
    N(x) = g (x - mean) / sqrt(variance + 1e-6) + b                              over the features

Radford, Wu, Child, Luan, Amodei, Sutskever 2019, "Language Models are Unsupervised Multitask Learners", section 2.3 (GPT-2): what a block
adds is drawn smaller, by 1 / sqrt(2 blocks), and W_1 has four times as many outputs as inputs. Departure: no biases in the attention.

Axes: B batch, L length, D width, h heads of d features.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxgen.layers.attention import Attention, Blocks, Memory, make_blocks
from jaxgen.layers.convolutions import add_bias, dot, normal, zeros


class LayerNorm(nnx.Module):
    """Layer normalisation: scale (x - mean) / sqrt(variance + 1e-6) + bias over the features, computed in float32."""

    def __init__(self, width: int):
        self.scale, self.bias = nnx.Param(jnp.ones((width,), jnp.float32)), zeros((width,))

    def __call__(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        """The result in the dtype of x."""
        centred = x.astype(jnp.float32)
        centred = centred - centred.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        one = (1,) * (x.ndim - 1)
        return (y * self.scale[...].reshape(*one, -1) + self.bias[...].reshape(*one, -1)).astype(x.dtype)


class Block(nnx.Module):
    """One block of the equations. blocks: how many the network has."""

    def __init__(self, width: int, heads: int, blocks: int, rngs: nnx.Rngs):
        self.norms = nnx.List([LayerNorm(width) for _ in range(2)])
        self.attention = Attention(width, heads, rngs)
        self.attention.out = normal(rngs, (width, width), width * 2 * blocks)
        self.inner, self.inner_bias = normal(rngs, (width, 4 * width), width), zeros((4 * width,))
        self.outer, self.outer_bias = normal(rngs, (4 * width, width), 4 * width * 2 * blocks), zeros((width,))

    def over(self, x: Float[Array, "L B D"]) -> Float[Array, "L B D"]:
        """y at every place of whole sequences."""
        attended = self.attention(self.norms[0](x).swapaxes(0, 1), _causal(x.shape[0]))
        return self._feed(x + attended.swapaxes(0, 1))

    def init_cache(self, n: int, length: int) -> Memory:
        """The keys and values of n sequences of so many places, before the first one: zeros."""
        return self.attention.init_memory(n, _causal(length), jnp.float32)

    def step(self, memory: Memory, x: Float[Array, "B D"], i: Int[Array, ""]) -> tuple[Memory, Float[Array, "B D"]]:
        """The cache with the keys and values of place i, and y there."""
        memory, attended = self.attention.step(self.norms[0](x), memory, i, i)
        return memory, self._feed(x + attended)

    def _feed(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        inner = jax.nn.gelu(add_bias(dot(self.norms[1](x), self.inner[...]), self.inner_bias[...]))
        return x + add_bias(dot(inner, self.outer[...]), self.outer_bias[...])


def _causal(length: int) -> Blocks:
    """One block in which a place attends to itself and to all places before it."""
    return make_blocks(1, length, 1, (), ())
