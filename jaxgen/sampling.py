"""Exact sampling: sequences place by place, and images on top of it; cached, naive and fixed-point, with known values and temperature.

Sequences: `sample_sequence` with a model's `init_cache / step`, a stop token and top-k; `SequenceSteps` gives the same place by place to a
caller outside `jit`. Images:

Raster order: pixel (r, c) is drawn after all pixels above it and to its left; a model that conditions channel by channel also draws G after
R and B after G. A model with another order gives it as an index array `order`, [N, 2] or, channel by channel, [N, 3]: (r, c[, k]) of every
place. The noise of a pixel comes from `fold_in(key, r W + c)`, never from the method, so in float32 the three methods give the same image
bit for bit (up to a tie within rounding). In bfloat16 the cache rounds at other places than the full pass, and single pixels may differ:

  naive        one full pass for every pixel (and channel): the oracle
  cached       `lax.scan` over rows of `lax.scan` over columns through the model's `init_cache / begin_row / step`, or over the places of
               its own order through `init_cache / step`; a model with a faster loop has it in its method `_draw_cached`
  fixed_point  x := F(x) with F one full pass and the draw, until nothing changes: at most N + 1 passes (Song et al. 2021, Jacobi iteration)
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt

from jaxgen.checks import (  # noqa: F401  (some are here for those who import them from this file)
    check_count,
    check_images,
    check_key,
    check_known,
    check_known_places,
    check_label,
    check_temperature,
    check_vector,
    image_of,
    interpolate,
)
from jaxgen.distributions import Categorical
from jaxgen.errors import ConfigError

METHODS = ("cached", "naive", "fixed_point")
CACHE_BYTES = 2**24
"""On a CPU the images are drawn in groups whose caches take this many bytes at most, so that they stay in the processor's own memory.
Models with attention, which read the whole cache at every step, are twice as fast so; the Gated PixelCNN at batch 64 is 1.05 times."""


# --- The core: one place after the other --------------------------------------------------------------------------------------------


@runtime_checkable
class SequenceModel(Protocol):
    """What the core asks of a model: p(x) = prod_i p(x_i | x_<i), its places i counted in the order in which they are drawn.

    `head` says how a value is drawn from its parameters: `noise(key, shape)`, `sample(parameters, noise, temperature)` and the `dtype` of
    values, such as `Categorical(vocabulary)`. `step` gets the values of the place before, [B] in that dtype, zeros at place 0. Only for
    `method="naive"`: `logits(x, **given)`, the parameters of all places [B, L, ...] of whole sequences [B, L].
    """

    head: Any

    def init_cache(self, n: int, **given) -> Any:
        """The cache of n sequences before anything is drawn; `given` are arrays with n rows."""

    def step(self, cache: Any, previous: Array, i: Int[Array, ""]) -> tuple[Any, Float[Array, "B ..."]]:
        """The new cache and the parameters of place i, given all values before it."""


def place_by_place(step, finish):
    """The body of a loop over places, with the carry (cache, values of the place before); it returns the values of its own place too.

    step(cache, previous, place) -> (cache, parameters);  finish(cache, parameters, *inputs of the place) -> (cache, values).
    """

    def body(carry, inputs):
        cache, previous = carry
        place, *more = inputs
        cache, parameters = step(cache, previous, place)
        cache, value = finish(cache, parameters, *more)
        return (cache, value), value

    return body


def keep_likeliest(logits: Float[Array, "*shape V"], k: int | None) -> Float[Array, "*shape V"]:
    """The k largest logits, -inf for the others, which are then never drawn; of equal ones those of smaller index. None keeps all."""
    if k is None or k >= logits.shape[-1]:
        return logits
    best = jax.lax.top_k(logits, k)[1]
    kept = jnp.put_along_axis(jnp.zeros(logits.shape, bool), best, jnp.ones((), bool), axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


def draw_place(head, key: PRNGKeyArray, parameters: Array, i, temperature=1.0, top_k: int | None = None) -> Array:
    """Values [B] of place i. The noise comes from `fold_in(key, i)`, so that every way of drawing gives the same values."""
    noise = head.noise(jax.random.fold_in(key, i), (parameters.shape[0],))
    return head.sample(keep_likeliest(parameters, top_k), noise, temperature).astype(head.dtype)


def sample_sequence(
    model: SequenceModel,
    key: PRNGKeyArray,
    n: SupportsIndex,
    length: SupportsIndex,
    given: dict[str, Any] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    known: tuple[Any, Any] | None = None,
    stop: int | None = None,
    method: str = "cached",
) -> Array:
    """n sequences [n, length] in the dtype of `model.head`, drawn exactly from the model (at temperature 1, without top_k).

    given: arrays with n rows that go to `model.init_cache` by name. A lower temperature sharpens every conditional; top_k leaves the k
    likeliest values of each. known=(values, mask): where the boolean mask is True ([n, length] or [length]) the value is taken from
    `values`, the others are drawn given those before them. stop: the token that ends a sequence; all places after it are 0, known or
    not, and drawing ends when every sequence has ended. method: "naive" computes the whole sequences for every place, "cached" a step.
    """
    check_key(key)
    n, length, temperature = check_count(n), check_count(length, "length"), check_temperature(temperature)
    top_k = _check_top_k(top_k, model.head)
    if method not in ("cached", "naive"):
        raise ConfigError("method", "cached or naive", method)
    if stop is not None and not 0 <= stop < getattr(model.head, "levels", 0):
        raise ConfigError("stop", "None, or a value that the model can draw", stop)
    known = check_known_places(known, n, length, model.head)
    return _sample_sequence(model, key, n, length, given or {}, temperature, top_k, known, stop, method)


@partial(jax.jit, static_argnames=("n", "length", "top_k", "stop", "method"))
def _sample_sequence(model, key, n, length, given, temperature, top_k, known, stop, method) -> Array:
    values, mask = known

    def finish(state, parameters, i, value, keep):
        cache, ended = state
        value = jnp.where(keep, value, draw_place(model.head, key, parameters, i, temperature, top_k))
        value = jnp.where(ended, jnp.zeros_like(value), value)
        return (cache, ended if stop is None else ended | (value == stop)), value

    def cached_step(state, previous, i):
        cache, parameters = model.step(state[0], previous, i)
        return (cache, state[1]), parameters

    def naive_step(state, previous, i):
        x = state[0].at[:, jnp.maximum(i - 1, 0)].set(previous)
        return (x, state[1]), model.logits(x, **given)[:, i]

    def place(state):
        i, carry, x = state
        carry, value = one(carry, (i, i, values[:, i], mask[:, i]))
        return i + 1, carry, x.at[:, i].set(value)

    one = place_by_place(cached_step if method == "cached" else naive_step, finish)
    cache = model.init_cache(n, **given) if method == "cached" else jnp.zeros_like(values)
    start = jnp.int32(0), ((cache, jnp.zeros((n,), bool)), jnp.zeros_like(values[:, 0])), jnp.zeros_like(values)
    return jax.lax.while_loop(lambda state: (state[0] < length) & ~state[1][0][1].all(), place, start)[2]


class SequenceSteps:
    """The core driven from the host, one place at a time; what a compressor needs.

        steps = SequenceSteps(model, key, n, **given)
        parameters, drawn = steps.step()         place 0
        parameters, drawn = steps.step(values)   the next one, given values [n] of the place before: what was drawn, or any other

    `drawn` is what `sample_sequence` draws there for this key. Every step is the same compiled program.
    """

    def __init__(
        self, model: SequenceModel, key: PRNGKeyArray, n: SupportsIndex, temperature: float = 1.0, top_k: int | None = None, **given
    ):
        check_key(key)
        self._model, self._key, self._n, self.place = model, key, check_count(n), 0
        self._temperature, self._top_k = check_temperature(temperature), _check_top_k(top_k, model.head)
        self._cache = _init_cache(model, self._n, given)

    def step(self, previous=None) -> tuple[Array, Array]:
        """Parameters [n, ...] and a draw [n] of the next place; `previous` are the values [n] of the place before, None at place 0 only."""
        if (previous is None) != (self.place == 0):
            raise ConfigError("previous", "None at place 0, and values at every other", f"{_kind(previous)} at place {self.place}")
        previous = jnp.zeros((self._n,), self._model.head.dtype) if previous is None else jnp.asarray(previous, self._model.head.dtype)
        if previous.shape != (self._n,):
            raise ConfigError("previous", f"shape [{self._n}]", list(previous.shape))
        arguments = self._key, self._cache, previous, jnp.int32(self.place), self._temperature
        self._cache, parameters, drawn = _host_step(self._model, *arguments, top_k=self._top_k)
        self.place += 1
        return parameters, drawn


def _check_top_k(top_k, head) -> int | None:
    if top_k is not None and not isinstance(head, Categorical):
        raise ConfigError("top_k", f"None (values of a {type(head).__name__} have no logits to choose from)", top_k)
    return None if top_k is None else check_count(top_k, "top_k")


def _kind(values) -> str:
    return "None" if values is None else "values"


@partial(jax.jit, static_argnames="n")
def _init_cache(model, n, given):
    return model.init_cache(n, **given)


@partial(jax.jit, static_argnames="top_k")
def _host_step(model, key, cache, previous, i, temperature, top_k):
    cache, parameters = model.step(cache, previous, i)
    return cache, parameters, draw_place(model.head, key, parameters, i, temperature, top_k)


# --- Images -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """Noise and draw of pixels, the same for every method."""

    head: object
    key: PRNGKeyArray
    shape: tuple[int, int, int, int]  # n, H, W, C
    temperature: Float[Array, ""]

    def noise(self, r: Int[Array, ""] | int, c: Int[Array, ""] | int):
        """Noise of pixel (r, c) for all n images: [n, C, ...]; it depends on the key and the position only."""
        n, _, width, channels = self.shape
        return self.head.noise(jax.random.fold_in(self.key, r * width + c), (n, channels))

    def row(self, r):
        """Noise of row r: [W, n, C, ...]."""
        return jax.vmap(lambda c: self.noise(r, c))(jnp.arange(self.shape[2]))

    def __call__(self, parameters, noise):
        return self.head.sample(parameters, noise, self.temperature).astype(self.head.dtype)

    def pixel(self, step_channel, cache, parameters, noise, given, keep):
        """The cache and the pixels [B, C] by their first parameters: all channels at once, or channel after channel by `step_channel`.

        Where `keep` [B] is True they are those of `given` [B, C].
        """
        if not self.head.channelwise:
            return cache, jnp.where(keep[:, None], given, self(parameters, noise))
        first = jnp.where(keep, given[:, 0], self(parameters, noise[:, 0]))
        value = jnp.zeros_like(given).at[:, 0].set(first)
        if self.shape[3] == 1:
            return cache, value

        def channel(carry, k):
            cache, value = carry
            cache, parameters = step_channel(cache, value, k)
            drawn = jnp.where(keep, given[:, k], self(parameters, noise[:, k]))
            return (cache, value.at[:, k].set(drawn)), None

        (cache, value), _ = jax.lax.scan(channel, (cache, value), jnp.arange(1, self.shape[3]))
        return cache, value


@partial(jax.jit, static_argnames=("n", "method", "mesh"))
def _sample(model, key, n, condition, known, temperature, method, mesh=None) -> tuple[UInt[Array, "n H W C"], Int[Array, ""]]:
    """The image and the number of full passes that fixed-point iteration took (0 for the others)."""
    draw = Draw(model.head, key, (n, *model.config.image_shape), temperature)
    if method == "fixed_point":
        return fixed_point(model, draw, condition, *known)
    if method == "naive":
        return naive(model, draw, condition, *known), jnp.int32(0)
    if mesh is None:
        return model._draw_cached(draw, condition, *known, jnp.arange(n)), jnp.int32(0)

    def one_device(model, key, condition, known, temperature, rows):
        return model._draw_cached(replace(draw, key=key, temperature=temperature), condition, *known, rows)

    whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    spread = jax.shard_map(one_device, mesh=mesh, in_specs=(whole,) * 5 + (split,), out_specs=split, check_vma=False)
    rows = jnp.minimum(jnp.arange(-(-n // mesh.size) * mesh.size), n - 1)
    return spread(model, key, condition, known, temperature, rows)[:n], jnp.int32(0)


def by_rows(
    model, draw: Draw, condition, image: UInt[Array, "n H W C"], mask: Bool[Array, "n H W"], rows, loop=jax.lax.scan
) -> UInt[Array, "m H W C"]:
    """The images `rows` of the n, [m, H, W, C]: row by row, pixel by pixel through `init_cache / begin_row / step`.

    loop: goes through the rows, called like `jax.lax.scan` with the carry ((cache, row above), row, rows).
    """
    group = partial(_group_by_rows, model, draw, condition, image, mask, loop=loop)
    return in_groups(group, model.init_cache, draw, condition, rows)


def _group_by_rows(model, draw, condition, image, mask, rows, loop):
    _, height, width, channels = draw.shape
    image, mask, condition = image[rows], mask[rows], jax.tree.map(lambda x: x[rows], condition)
    n, step_channel = len(rows), getattr(model, "step_channel", None)  # models of one channel or of whole pixels have none

    def row(carry, inputs):
        cache, above = carry
        r, given, keep = inputs
        cache = model.begin_row(cache, above, r)
        columns = (jnp.arange(width), draw.row(r)[:, rows], given, keep)
        pixel = place_by_place(lambda cache, left, c: model.step(cache, left, r, c), partial(draw.pixel, step_channel))
        (cache, _), values = jax.lax.scan(pixel, (cache, jnp.zeros((n, channels), image.dtype)), columns)
        return (cache, values.swapaxes(0, 1)), values

    inputs = (jnp.arange(height), image.transpose(1, 2, 0, 3), mask.transpose(1, 2, 0))
    start = (model.init_cache(n, condition), jnp.zeros((n, width, channels), image.dtype))
    _, values = loop(row, start, inputs)  # [H, W, n, C]
    return values.transpose(2, 0, 1, 3)


def in_order(
    model, draw: Draw, condition, image: UInt[Array, "n H W C"], mask: Bool[Array, "n H W"], rows, loop=jax.lax.scan, step=None
) -> UInt[Array, "m H W C"]:
    """The images `rows` of the n, [m, H, W, C]: place by place in the model's own order, through `init_cache / step`.

    loop: goes through the places, called like `jax.lax.scan` with the carry (cache, previous). step: for `model.step`, if given.
    """
    order = jnp.asarray(model.order)
    r, c, *k = order.T

    def group(rows):
        """The images `rows` of the batch: [g, H, W, C]."""
        given, keep = image[rows][:, r, c], mask[rows][:, r, c]  # [g, N, C] or, of one channel, [g, N, 1]
        given = jnp.take_along_axis(given, k[0].reshape(1, -1, 1), axis=2) if k else given

        def finish(cache, parameters, place, given, keep):
            r, c, *k = place
            noise = draw.noise(r, c)[rows]
            drawn = draw(parameters, noise[:, k[0]])[:, None] if k else draw(parameters, noise)
            return cache, jnp.where(keep[:, None], given, drawn)

        inputs = jnp.arange(len(order)), order, given.swapaxes(0, 1), keep.T
        start = model.init_cache(len(rows), jax.tree.map(lambda x: x[rows], condition)), jnp.zeros_like(inputs[2][0])
        _, values = loop(place_by_place(step or model.step, finish), start, inputs)
        places = (slice(None), r, c, k[0]) if k else (slice(None), r, c)
        return jnp.zeros_like(image[rows]).at[places].set(values[:, :, 0].T if k else values.swapaxes(0, 1))

    return in_groups(group, model.init_cache, draw, condition, rows, least=2)


def in_groups(group, init_cache, draw: Draw, condition, rows, least: int = 1) -> UInt[Array, "m H W C"]:
    """`group(rows)` for groups of the images `rows` one after the other where the caches are large, else once for all.

    least: images in a group on a CPU, at least; attention to the cache of a single image takes four times as long there as to that of two.
    """
    size = max(group_size(len(rows), init_cache, condition), least if jax.default_backend() == "cpu" else 1)
    if size == len(rows):
        return group(rows)
    filled = rows[jnp.minimum(jnp.arange(-(-len(rows) // size) * size), len(rows) - 1)]  # filled up with the last row
    return jax.lax.map(group, filled.reshape(-1, size)).reshape(-1, *draw.shape[1:])[: len(rows)]


def group_size(images: int, init_cache, condition) -> int:
    """How many of the images are drawn at once: on a CPU as many as have caches of CACHE_BYTES together, at least two; elsewhere all."""
    if jax.default_backend() != "cpu":
        return images

    def cache_bytes(rows):
        cache = jax.eval_shape(lambda: init_cache(rows.size, jax.tree.map(lambda x: x[rows], condition)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))

    # The bytes of one more image: the packed weights in a cache are there once for all images.
    size = cache_bytes(np.zeros(2, int)) - cache_bytes(np.zeros(1, int))
    groups = -(-images // max(2, CACHE_BYTES // size))
    # The last group is filled up with images drawn before: of up to twice as many groups the number that needs the fewest of these.
    groups = min(range(groups, min(2 * groups, -(-images // 2) + 1)), key=lambda g: -(-images // g) * g)
    return -(-images // groups)


def naive(model, draw: Draw, condition, image: UInt[Array, "n H W C"], mask: Bool[Array, "n H W"]) -> UInt[Array, "n H W C"]:
    """One full pass for every pixel and channel: slow, and what the other methods are tested against."""
    n, height, width, channels = draw.shape
    order = model.order
    if order is None:
        order = np.argwhere(np.ones((height, width, channels) if model.head.channelwise else (height, width)))

    def step(x, place):
        r, c, *k = place
        drawn = draw(model._logits(x, condition)[:, r, c], draw.noise(r, c))  # [n, C]
        drawn = jnp.where(jnp.arange(channels) == k[0], drawn, x[:, r, c]) if k else drawn
        return x.at[:, r, c].set(jnp.where(mask[:, r, c, None], image[:, r, c], drawn)), None

    x, _ = jax.lax.scan(step, jnp.zeros_like(image), jnp.asarray(order))
    return x


def fixed_point(model, draw: Draw, condition, image, mask) -> tuple[UInt[Array, "n H W C"], Int[Array, ""]]:
    """Jacobi iteration of all positions at once; after t passes at least the first t positions are final, so it ends with the sample."""
    height = draw.shape[1]
    noise = jax.vmap(draw.row)(jnp.arange(height))  # [H, W, n, C, ...]
    noise = jnp.moveaxis(noise, 2, 0)

    def once(x):
        return jnp.where(mask[..., None], image, draw(model._logits(x, condition), noise))

    def body(carry):
        x, _, passes = carry
        return once(x), x, passes + 1

    start = jnp.where(mask[..., None], image, jnp.zeros_like(image))
    x, _, passes = jax.lax.while_loop(lambda carry: (carry[0] != carry[1]).any(), body, (once(start), start, jnp.int32(1)))
    return x, passes
