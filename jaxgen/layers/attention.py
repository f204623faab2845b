"""Causal attention within blocks of a generation order: for whole sequences, and one position at a time through a cache.

The positions of an image (pixels, or single channels) are generated block by block. All queries of a block read from one memory block:

    full        one block, its memory is itself
    1-D local   blocks of l_q positions in raster order; memory = the block and the l_m positions before it
    2-D local   blocks of h_q x w_q pixels, the blocks in raster order, raster order inside each; memory = the block, and of the positions
                generated before it those at most h_m rows above, w_m columns left or w_m columns right of it

    y_i = W_o [sum_j softmax_j (W_q x_i . W_k x_j / sqrt d) W_v x_j]        over the places j <= i of the memory block; heads concatenated

Parmar et al. 2018, "Image Transformer", sections 3.2 and 3.3.

Axes: B batch, N places of the generation order, b blocks of Q places, M places of a memory block, h heads of d features. Caches are
[B, h, places, d]; a step first writes its own key and value, then reads.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxgen.layers.convolutions import EXACT, at, dot, normal, put
from jaxgen.layers.growing_caches import quarters, resize

NEVER = -1e30
"""Score of a key that a query must not read: its weight is exactly 0. It is finite, so that padding without any key gives no NaN."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The generation order and its blocks as index arrays. A place is an index 0 .. N-1 into the generation order; -1 is padding."""

    order: np.ndarray  # [N, 3]: (r, c, k) of every place
    query: np.ndarray  # [b, Q]: places of each block, ascending
    memory: np.ndarray  # [b, M]: places of each memory block, ascending: earlier ones, then the block's own, then padding

    @property
    def number(self) -> np.ndarray:
        """[N]: the block of every place."""
        return np.repeat(np.arange(len(self.query)), (self.query >= 0).sum(1))

    @property
    def slot(self) -> np.ndarray:
        """[N]: the index of every place within the memory block of its block."""
        places = np.arange(len(self.order))
        return (self.memory[self.number] == places[:, None]).argmax(1)

    @property
    def ends(self) -> np.ndarray:
        """[b]: the first place after every block."""
        return self.query.max(1) + 1

    def keys_read(self, queries: int) -> int:
        """The smallest m such that the first `queries` queries of every block read only the first m places of its memory block."""
        read = (self.memory >= 0) & (self.memory <= self.query[:, :queries].max(1)[:, None])
        return int(np.flatnonzero(read.any(0))[-1]) + 1

    @property
    def allowed(self) -> Bool[Array, "b Q M"]:
        """True where query q of a block reads place m of its memory block: not padding, and not after the query."""
        query, memory = jnp.asarray(self.query)[:, :, None], jnp.asarray(self.memory)[:, None]
        return (memory >= 0) & (memory <= query)


@lru_cache(maxsize=64)
def make_blocks(height: int, width: int, depth: int, block: tuple[int, ...], memory: tuple[int, ...]) -> Blocks:
    """The blocks of an image of height x width pixels with `depth` positions each.

    `block` and `memory` are () and () for full attention, (l_q,) and (l_m,) in positions, or (h_q, w_q) and (h_m, w_m) in pixels. The same
    arguments give the same object.
    """
    r, c, k = np.indices((height, width, depth)).reshape(3, -1)
    raster = np.arange(r.size)
    if len(block) == 2:
        number = r // block[0] * -(-width // block[1]) + c // block[1]
    else:
        number = raster // (block[0] if block else r.size)
    order = np.lexsort((raster, number))
    r, c, k, number = r[order], c[order], k[order], number[order]
    queries, memories = [], []
    for b in range(number[-1] + 1):
        query = np.flatnonzero(number == b)
        places = np.arange(query[-1] + 1)
        if len(block) == 2:
            top, left = r[query[0]], c[query[0]]
            near = (r[places] >= top - memory[0]) & (c[places] >= left - memory[1]) & (c[places] < left + block[1] + memory[1])
        else:
            near = places >= query[0] - (memory[0] if memory else 0)
        queries.append(query)
        memories.append(places[near])
    return Blocks(np.stack([r, c, k], axis=1), _padded(queries), _padded(memories))


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows))), -1)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _take(x: Float[Array, "B N h d"], places: np.ndarray) -> Float[Array, "B b L h d"]:
    """x at the places of every block; for padding the first place, which no query reads and whose output is dropped."""
    if len(places) == 1 and (places[0] == np.arange(x.shape[1])).all():
        return x[:, None]
    return jnp.take(x, np.maximum(places, 0), axis=1)


def attend(query: Float[Array, "*b q d"], keys: Float[Array, "*b m d"], values: Float[Array, "*b m d"], allowed=None) -> Array:
    """softmax(q k^T / sqrt d) v over the allowed keys, [..., q, d].

    Scores, softmax and sums are float32; weights and result have the dtype of v. A query without allowed keys gets the mean of all v.
    """
    exact = {"preferred_element_type": jnp.float32, "precision": EXACT}
    scores = jnp.einsum("...qd,...md->...qm", query, keys, **exact) / np.sqrt(query.shape[-1])
    scores = scores if allowed is None else jnp.where(allowed, scores, NEVER)
    return jnp.einsum("...qm,...md->...qd", jax.nn.softmax(scores).astype(values.dtype), values, **exact).astype(values.dtype)


def attend_in_parts(query: Float[Array, "B b h Q d"], keys: Float[Array, "B b h M d"], values: Float[Array, "B b h M d"], blocks: Blocks):
    """`attend` with `blocks.allowed`, for a quarter of the queries at a time, without the keys that no query of that quarter reads."""
    outputs, allowed = [], blocks.allowed[None, :, None]
    for start, stop in pairwise((0, *quarters(query.shape[3]))):
        m = blocks.keys_read(stop)
        outputs.append(attend(query[..., start:stop, :], keys[..., :m, :], values[..., :m, :], allowed[..., start:stop, :m]))
    return jnp.concatenate(outputs, axis=3)


def attend_to_visible(
    query: Float[Array, "B M d"], key: Float[Array, "B d N"], value: Float[Array, "B N E"], visible: Bool[Array, "M N"]
) -> Float[Array, "B M E"]:
    """sum_n softmax_n(Q_m . K_n / sqrt d) V_n over the visible n; 0, with gradient 0, for a query without visible keys.

    Unlike in `attend`, keys are columns, and the softmax's denominator divides the finished sum instead of every weight.
    """
    scores = jnp.einsum("bmd,bdn->bmn", query, key, preferred_element_type=jnp.float32, precision=EXACT) * query.shape[-1] ** -0.5
    scores = jnp.where(visible[None], scores, NEVER)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(visible[None], jnp.exp(scores - top), 0.0)
    total = weights.sum(-1, keepdims=True)
    mixed = jnp.einsum("bmn,bne->bme", weights.astype(value.dtype), value, preferred_element_type=jnp.float32, precision=EXACT)
    return (mixed / jnp.where(total > 0, total, 1.0)).astype(value.dtype)


def causal_attention(query: Float[Array, "B N d"], key: Float[Array, "B N d"], value: Float[Array, "B N E"]) -> Float[Array, "B N E"]:
    """`attend_to_visible` for every position over those strictly before it, a quarter of the queries at a time."""
    outputs, key = [], key.swapaxes(1, 2)
    for start, stop in pairwise((0, *quarters(query.shape[1]))):
        visible = jnp.arange(stop)[None] < jnp.arange(start, stop)[:, None]
        outputs.append(attend_to_visible(query[:, start:stop], key[:, :, :stop], value[:, :stop], visible))
    return jnp.concatenate(outputs, axis=1)


def attend_before(p, query: Float[Array, "B d"], key: Float[Array, "B d N"], value: Float[Array, "B N E"]) -> Float[Array, "B E"]:
    """`attend_to_visible` for one query, at position p, over the positions strictly before it."""
    return attend_to_visible(query[:, None], key, value, jnp.arange(key.shape[2])[None] < p)[:, 0]


def scan_in_blocks(body, carry, inputs, ends: tuple[int, ...], begin_block):
    """`jax.lax.scan(body, carry, inputs)` over places, with `cache = begin_block(cache, b)` before the first place of every block b.

    The carry is (cache, previous); block b ends before place ends[b]. It is a loop over blocks around a loop over places: in a single
    loop with a `cond`, XLA copies the caches at every step.
    """
    starts, previous = jnp.asarray((0, *ends)), carry[1]

    def one(i, state):
        carry, values = state
        carry, value = body(carry, jax.tree.map(lambda x: at(x, i), inputs))
        return carry, put(values, value, i)

    def block(b, state):
        (cache, previous), values = state
        return jax.lax.fori_loop(starts[b], starts[b + 1], one, ((begin_block(cache, b), previous), values))

    return jax.lax.fori_loop(0, len(ends), block, (carry, jnp.zeros((ends[-1], *previous.shape), previous.dtype)))


class Memory(NamedTuple):
    """The sampler's cache of one layer: keys and values of the memory block; if there are several blocks also those of all places."""

    keys: Float[Array, "B h M d"]
    values: Float[Array, "B h M d"]
    all_keys: Float[Array, "B h N d"] | None
    all_values: Float[Array, "B h N d"] | None

    def fit(self, places: int) -> "Memory":
        """The memory block cut or filled up with zeros to `places` places."""
        return self._replace(keys=resize(self.keys, places, axis=2), values=resize(self.values, places, axis=2))

    def gather(self, places: Int[Array, " M"]) -> "Memory":
        """Fill the memory block with the keys and values of `places`. Entries of places not yet drawn and of padding mean nothing: a step
        writes its own entry before it reads, and reads only up to that."""
        keys, values = (jnp.take(x, places, axis=2, mode="clip") for x in (self.all_keys, self.all_values))
        return self._replace(keys=keys, values=values)

    def write(self, key: Float[Array, "B h d"], value: Float[Array, "B h d"], slot, place) -> "Memory":
        """Write the key and value of a place: at index `slot` of the memory block and `place` of all places."""

        def put(x, new, i):
            return None if x is None else jax.lax.dynamic_update_slice_in_dim(x, new[:, :, None], i, axis=2)

        keys, values = put(self.keys, key, slot), put(self.values, value, slot)
        return Memory(keys, values, put(self.all_keys, key, place), put(self.all_values, value, place))


def read_place(
    query: Float[Array, "B h d"], key: Float[Array, "B h d"], value: Float[Array, "B h d"], memory: Memory, slot, place
) -> tuple[Memory, Float[Array, "B h d"]]:
    """Write the key and value of one place, then `attend` to the memory block up to and including `slot`."""
    memory = memory.write(key, value, slot, place)
    allowed = jnp.arange(memory.keys.shape[2]) <= slot
    return memory, attend(query[:, :, None], memory.keys, memory.values, allowed.reshape(1, 1, 1, -1))[:, :, 0]


class Attention(nnx.Module):
    """Multi-head attention with weights W_q, W_k, W_v and W_o [D, D], no biases; D is a multiple of `heads`."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.query, self.keys, self.values, self.out = (normal(rngs, (width, width), width) for _ in range(4))
        self.heads = heads

    def _project(self, x: Float[Array, "*shape D"], *weights) -> list[Array]:
        """x times each weight, in one product, split into heads: [..., heads, d] each."""
        together = dot(x, jnp.concatenate([weight[...] for weight in weights], axis=1))
        return [part.reshape(*x.shape[:-1], self.heads, -1) for part in jnp.split(together, len(weights), axis=-1)]

    def __call__(self, x: Float[Array, "B N D"], blocks: Blocks) -> Float[Array, "B N D"]:
        """Causal attention of a whole sequence in generation order."""
        query, keys, values = self._project(x, self.query, self.keys, self.values)
        query = _take(query, blocks.query).swapaxes(2, 3)
        keys, values = (_take(part, blocks.memory).swapaxes(2, 3) for part in (keys, values))
        y = attend_in_parts(query, keys, values, blocks)  # [B, b, h, Q, d]
        y = y.swapaxes(2, 3).reshape(x.shape[0], -1, x.shape[2])
        return dot(y if y.shape == x.shape else y[:, np.flatnonzero(blocks.query.ravel() >= 0)], self.out[...])

    def init_memory(self, n: int, blocks: Blocks, dtype) -> Memory:
        """The cache of n images before anything is drawn: zeros."""
        width = self.query.shape[0] // self.heads
        block = jnp.zeros((n, self.heads, blocks.memory.shape[1], width), dtype)
        every = jnp.zeros((n, self.heads, len(blocks.order), width), dtype) if len(blocks.query) > 1 else None
        return Memory(block, block, every, every)

    def step(self, x: Float[Array, "B D"], memory: Memory, slot, place) -> tuple[Memory, Float[Array, "B D"]]:
        """y of one place from its x: write its key and value, then attend to the memory block up to and including `slot`."""
        memory, y = read_place(*self._project(x, self.query, self.keys, self.values), memory, slot, place)
        return memory, dot(y.reshape(x.shape), self.out[...])

    # Attention without a mask, such as to another sequence.

    def encode(self, source: Float[Array, "B S D"]) -> tuple[Float[Array, "B h S d"], Float[Array, "B h S d"]]:
        """Keys and values of a sequence, for `read`."""
        keys, values = self._project(source, self.keys, self.values)
        return keys.swapaxes(1, 2), values.swapaxes(1, 2)

    def read(self, x: Float[Array, "B Q D"], encoded) -> Float[Array, "B Q D"]:
        """y of queries x over all keys and values that `encode` gave."""
        (query,) = self._project(x, self.query)
        return dot(attend(query.swapaxes(1, 2), *encoded).swapaxes(1, 2).reshape(x.shape), self.out[...])
