"""A block of a decoder-only transformer, normalised before each of its two parts, for whole sequences and one place at a time.

    x' = x + attention(N(x)),   y = x' + W_2 gelu(W_1 N(x') + b_1) + b_2         attention to the places j <= i, see attention.py
    N(x) = g (x - mean) / sqrt(variance + 1e-6) + b                              over the features

Radford, Wu, Child, Luan, Amodei, Sutskever 2019, "Language Models are Unsupervised Multitask Learners", section 2.3 (GPT-2): what a block
adds is drawn smaller, by 1 / sqrt(2 blocks), and W_1 has four times as many outputs as inputs. Departure: no biases in the attention.

Axes: B batch, L length, D width, h heads of d features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxgen.layers.attention import Attention, Blocks, Memory, make_blocks, read_place
from jaxgen.layers.convolutions import add_bias, dot, normal, zeros


class LayerNorm(nnx.Module):
    """Layer normalisation: scale (x - mean) / sqrt(variance + 1e-6) + bias over the features, computed in float32."""

    def __init__(self, width: int):
        self.scale, self.bias = nnx.Param(jnp.ones((width,), jnp.float32)), zeros((width,))

    def __call__(self, x: Float[Array, "*shape"], axis: int = -1) -> Float[Array, "*shape"]:
        """The result in the dtype of x, whose features are on this axis."""
        centred = x.astype(jnp.float32)
        centred = centred - centred.mean(axis, keepdims=True)
        y = centred * jax.lax.rsqrt((centred**2).mean(axis, keepdims=True) + 1e-6)
        shape = [1] * x.ndim
        shape[axis] = -1
        return (y * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)).astype(x.dtype)


class Cache(NamedTuple):
    """The sampler's cache of one block.

    A step of several sequences multiplies W^T [out, in], transposed once before the first step, with columns x^T [D, B]: XLA's products of
    few rows are slower on a CPU.
    """

    weights: tuple[Array, ...]  # of W_q, W_k and W_v side by side, W_o, W_1 and W_2, each transposed; () for one sequence
    memory: Memory  # keys and values


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

    def init_cache(self, n: int, length: int) -> Cache:
        """The cache of n sequences of so many places, before the first one: keys and values are zeros."""
        weights, attention = (), self.attention
        if n > 1:  # for one sequence transposing costs more than the steps gain
            together = jnp.concatenate([weight[...] for weight in (attention.query, attention.keys, attention.values)], axis=1)
            weights = tuple(weight.T for weight in (together, attention.out[...], self.inner[...], self.outer[...]))
        return Cache(weights, attention.init_memory(n, _causal(length), jnp.float32))

    def step(self, cache: Cache, x: Float[Array, "B D"], i: Int[Array, ""]) -> tuple[Cache, Float[Array, "B D"]]:
        """The cache with the keys and values of place i, and y there."""
        if not cache.weights:
            memory, attended = self.attention.step(self.norms[0](x), cache.memory, i, i)
            return Cache((), memory), self._feed(x + attended)
        project, out, inner, outer = cache.weights
        x = x.T  # [D, B]
        heads = dot(project, self.norms[0](x, 0)).reshape(3, self.attention.heads, -1, x.shape[1])
        memory, attended = read_place(*jnp.moveaxis(heads, 3, 1), cache.memory, i, i)
        x = x + dot(out, attended.reshape(x.shape[::-1]).T)
        hidden = jax.nn.gelu(dot(inner, self.norms[1](x, 0)) + self.inner_bias[...][:, None])
        x = x + dot(outer, hidden) + self.outer_bias[...][:, None]
        return Cache(cache.weights, memory), x.T

    def _feed(self, x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
        inner = jax.nn.gelu(add_bias(dot(self.norms[1](x), self.inner[...]), self.inner_bias[...]))
        return x + add_bias(dot(inner, self.outer[...]), self.outer_bias[...])


def _causal(length: int) -> Blocks:
    """One block in which a place attends to itself and to all places before it."""
    return make_blocks(1, length, 1, (), ())
