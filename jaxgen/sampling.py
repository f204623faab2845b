"""Exact samplers for p(x) = prod_i p(x_i | x_<i): sequences, and images on top; with known values and temperature.

Sequences: `sample_sequence` with a model's `init_cache / step`, a stop token, top-k and top-p; `SequenceSteps`: the same with one call for
each place. Images are drawn in raster order, channel by channel (R, G, B) or as whole pixels, or in the model's own `order`, an index array
[N, 3] of (r, c, k) or [N, 2] of (r, c). Methods, for N places:

  naive        one full pass for every place; slow, what the others are tested against
  cached       one step for every place: `lax.scan` over rows of `lax.scan` over columns by the model's `init_cache / begin_row / step`,
               or over places of its own order by `init_cache / step`; a model with a faster loop overrides `_draw_cached`
  fixed_point  x := F(x), F one full pass and a draw at all places, until x stays the same: at most N + 1 passes (Song et al. 2021)

A pixel's noise is drawn from `fold_in(key, r W + c)` by all methods. Their parameters differ by rounding, and a draw only where that
crosses a boundary between two values: tests in float32 on a CPU find the same bits. In bfloat16 single pixels may differ.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_key, check_known_places, check_temperature
from jaxgen.checks import interpolate as interpolate  # for notebooks, which import it from this file
from jaxgen.distributions import Categorical, keep_likeliest, keep_nucleus
from jaxgen.errors import ConfigError

METHODS = ("cached", "naive", "fixed_point")
CACHE_BYTES = 2**24
"""On a CPU images are drawn in groups whose caches together take at most this many bytes, to fit the processor's own caches. It makes
models with attention, which read all of their cache at every step, twice as fast, the Gated PixelCNN at batch 64 1.05 times as fast."""


# --- The core: one place after the other --------------------------------------------------------------------------------------------


@runtime_checkable
class SequenceModel(Protocol):
    """What a model must have for `sample_sequence`: p(x) = prod_i p(x_i | x_<i), the places i = 0, 1, .. in the order of drawing.

    head: the distribution of a value, such as `Categorical(vocabulary)`, with `noise(key, shape)`, `sample(parameters, noise, temperature)`
    and the `dtype` of values. `step` gets the values [B] of place i-1 in that dtype, zeros for i = 0. For method="naive" only:
    `logits(x, **given)`, the parameters [B, L, ...] of all places of sequences x [B, L].
    """

    head: Any

    def init_cache(self, n: int, **given) -> Any:
        """The cache of n sequences before anything is drawn; given: arrays [n, ...]."""

    def step(self, cache: Any, previous: Array, i: Int[Array, ""]) -> tuple[Any, Float[Array, "B ..."]]:
        """The new cache, and the parameters of p(x_i | x_<i)."""


def place_by_place(step, finish):
    """body((cache, previous), (place, *more)) -> ((cache, values), values) for `lax.scan`; previous: the values of the place before.

    step(cache, previous, place) -> (cache, parameters);  finish(cache, parameters, *more) -> (cache, values).
    """

    def body(carry, inputs):
        cache, previous = carry
        place, *more = inputs
        cache, parameters = step(cache, previous, place)
        cache, value = finish(cache, parameters, *more)
        return (cache, value), value

    return body


def draw_place(head, key: PRNGKeyArray, parameters: Array, i, temperature=1.0, top_k: int | None = None, top_p=None) -> Array:
    """Draw the values [B] of place i, with noise from `fold_in(key, i)`."""
    noise = head.noise(jax.random.fold_in(key, i), (parameters.shape[0],))
    kept = keep_nucleus(keep_likeliest(parameters, top_k), top_p, temperature)
    return head.sample(kept, noise, temperature).astype(head.dtype)


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
    top_p: float | None = None,
) -> Array:
    """n sequences [n, length] in the dtype of `model.head`, drawn from p(x) if temperature is 1, top_k None and top_p None.

    given: {name: array [n, ...]} for `model.init_cache`. temperature: below 1 every p(x_i | x_<i) is sharper. top_k: only the k likeliest
    values of each are drawn. top_p: only the fewest likeliest values whose probabilities, at this temperature, sum to top_p or more.
    known=(values, mask): values are taken where the boolean mask ([n, length] or [length]) is True, the others drawn given all before them.
    stop: the token that ends a sequence; all later places are 0, known or not, and the loop ends when all sequences have ended. method:
    "cached" or "naive". Raises ConfigError for a wrong argument.
    """
    check_key(key)
    n, length, temperature = check_count(n), check_count(length, "length"), check_temperature(temperature)
    top_k, top_p = _check_top_k(top_k, model.head), _check_top_p(top_p, model.head)
    if method not in ("cached", "naive"):
        raise ConfigError("method", "cached or naive", method)
    if stop is not None and not 0 <= stop < getattr(model.head, "levels", 0):
        raise ConfigError("stop", "None, or a value that the model can draw", stop)
    known = check_known_places(known, n, length, model.head)
    return _sample_sequence(model, key, n, length, given or {}, temperature, top_k, known, stop, method, top_p)


@partial(jax.jit, static_argnames=("n", "length", "top_k", "stop", "method"))
def _sample_sequence(model, key, n, length, given, temperature, top_k, known, stop, method, top_p) -> Array:
    values, mask = known

    def finish(state, parameters, i, value, keep):
        cache, ended = state
        value = jnp.where(keep, value, draw_place(model.head, key, parameters, i, temperature, top_k, top_p))
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
    """`sample_sequence` one place at a time, for callers that use or choose the values in between, such as a compressor.

        steps = SequenceSteps(model, key, n, **given)
        parameters, drawn = steps.step()         place 0
        parameters, drawn = steps.step(values)   the next place, given the values [n] of the one before: `drawn`, or any others

    With `drawn` passed on each time, the draws are those of `sample_sequence` for this key. All steps run the same compiled program.
    """

    def __init__(
        self, model: SequenceModel, key: PRNGKeyArray, n: SupportsIndex, temperature: float = 1.0, top_k: int | None = None,
        top_p: float | None = None, **given,
    ):  # fmt: skip
        check_key(key)
        self._model, self._key, self._n, self.place = model, key, check_count(n), 0
        self._temperature, self._top_k = check_temperature(temperature), _check_top_k(top_k, model.head)
        self._top_p = _check_top_p(top_p, model.head)
        self._cache = _init_cache(model, self._n, given)

    def step(self, previous=None) -> tuple[Array, Array]:
        """Parameters [n, ...] and a draw [n] of the next place; previous: values [n] of the one before, None at place 0, or ConfigError."""
        if (previous is None) != (self.place == 0):
            raise ConfigError("previous", "None at place 0, and values at every other", f"{_kind(previous)} at place {self.place}")
        previous = jnp.zeros((self._n,), self._model.head.dtype) if previous is None else jnp.asarray(previous, self._model.head.dtype)
        if previous.shape != (self._n,):
            raise ConfigError("previous", f"shape [{self._n}]", list(previous.shape))
        arguments = self._key, self._cache, previous, jnp.int32(self.place), self._temperature, self._top_p
        self._cache, parameters, drawn = _host_step(self._model, *arguments, top_k=self._top_k)
        self.place += 1
        return parameters, drawn


def _check_top_k(top_k, head) -> int | None:
    if top_k is not None and not isinstance(head, Categorical):
        raise ConfigError("top_k", f"None (values of a {type(head).__name__} have no logits to choose from)", top_k)
    return None if top_k is None else check_count(top_k, "top_k")


def _check_top_p(top_p, head) -> Float[Array, ""] | None:
    if top_p is not None and not isinstance(head, Categorical):
        raise ConfigError("top_p", f"None (values of a {type(head).__name__} have no logits to choose from)", top_p)
    if top_p is not None and not (isinstance(top_p, int | float) and 0 < top_p <= 1):
        raise ConfigError("top_p", "a number above 0, at most 1", top_p)
    return None if top_p is None else jnp.float32(top_p)


def _kind(values) -> str:
    return "None" if values is None else "values"


@partial(jax.jit, static_argnames="n")
def _init_cache(model, n, given):
    return model.init_cache(n, **given)


@partial(jax.jit, static_argnames="top_k")
def _host_step(model, key, cache, previous, i, temperature, top_p, top_k):
    cache, parameters = model.step(cache, previous, i)
    return cache, parameters, draw_place(model.head, key, parameters, i, temperature, top_k, top_p)


# --- Images -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """The noise of every pixel, and draws from parameters and noise; used by all methods."""

    head: object
    key: PRNGKeyArray
    shape: tuple[int, int, int, int]  # n, H, W, C
    temperature: Float[Array, ""]

    def noise(self, r: Int[Array, ""] | int, c: Int[Array, ""] | int):
        """Noise of pixel (r, c) of all n images, by the key, r and c: `head.noise` for shape [n, C], such as [n, C] or [n, C, levels]."""
        n, _, width, channels = self.shape
        return self.head.noise(jax.random.fold_in(self.key, r * width + c), (n, channels))

    def row(self, r):
        """`noise` of all pixels of row r, [W, n, ...]."""
        return jax.vmap(lambda c: self.noise(r, c))(jnp.arange(self.shape[2]))

    def __call__(self, parameters, noise):
        return self.head.sample(parameters, noise, self.temperature).astype(self.head.dtype)

    def pixel(self, step_channel, cache, parameters, noise, given, keep):
        """The cache and the values [B, C] of one pixel; parameters: of the whole pixel, or of channel 0, others come from `step_channel`.

        Where keep [B] is True the values are those of `given` [B, C].
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
    """The images and, for fixed_point, the number of full passes, else 0."""
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
    """Draw the images with indices `rows` [m] of the batch of n by `init_cache / begin_row / step`; known pixels: where mask is True.

    loop: `jax.lax.scan`, or a function with its arguments that goes through the rows of an image; the carry is (cache, row above).
    """
    group = partial(_group_by_rows, model, draw, condition, image, mask, loop=loop)
    return in_groups(group, model.init_cache, draw, condition, rows)


def _group_by_rows(model, draw, condition, image, mask, rows, loop):
    _, height, width, channels = draw.shape
    image, mask, condition = image[rows], mask[rows], jax.tree.map(lambda x: x[rows], condition)
    n, step_channel = len(rows), getattr(model, "step_channel", None)  # None: one channel, or a head for whole pixels

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
    model, draw: Draw, condition, image: UInt[Array, "n H W C"], mask: Bool[Array, "n H W"], rows, loop=jax.lax.scan, step=None, least=1
) -> UInt[Array, "m H W C"]:
    """As `by_rows`, place by place in the model's own order, through `init_cache / step`.

    loop: as in `by_rows`, through the places; the carry is (cache, previous). step: in the place of `model.step`. least: see `in_groups`.
    """
    order = jnp.asarray(model.order)
    r, c, *k = order.T

    def group(rows):
        """Draw the images with these indices: [g, H, W, C]."""
        given, keep = image[rows][:, r, c], mask[rows][:, r, c]  # [g, N, C]; [g, N, 1] channel by channel
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

    return in_groups(group, model.init_cache, draw, condition, rows, least)


def in_groups(group, init_cache, draw: Draw, condition, rows, least: int = 1) -> UInt[Array, "m H W C"]:
    """`group(rows)` [m, H, W, C], on a CPU for groups of `group_size` images, one group after the other.

    least: smallest group on a CPU.
    """
    size = max(group_size(len(rows), init_cache, condition), least if jax.default_backend() == "cpu" else 1)
    if size == len(rows):
        return group(rows)
    filled = rows[jnp.minimum(jnp.arange(-(-len(rows) // size) * size), len(rows) - 1)]  # the last index is repeated
    return jax.lax.map(group, filled.reshape(-1, size)).reshape(-1, *draw.shape[1:])[: len(rows)]


def group_size(images: int, init_cache, condition) -> int:
    """How many images are drawn at once: on a CPU as many as have caches of CACHE_BYTES together, at least two; else all."""
    if jax.default_backend() != "cpu":
        return images

    def cache_bytes(rows):
        cache = jax.eval_shape(lambda: init_cache(rows.size, jax.tree.map(lambda x: x[rows], condition)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))

    # The bytes of one more image, not of one: a cache also has packed weights, once for all images.
    size = cache_bytes(np.zeros(2, int)) - cache_bytes(np.zeros(1, int))
    groups = -(-images // max(2, CACHE_BYTES // size))
    # The last group is filled up with repeated images. Of up to twice as many groups take the number with the fewest repeated ones.
    groups = min(range(groups, min(2 * groups, -(-images // 2) + 1)), key=lambda g: -(-images // g) * g)
    return -(-images // groups)


def naive(model, draw: Draw, condition, image: UInt[Array, "n H W C"], mask: Bool[Array, "n H W"]) -> UInt[Array, "n H W C"]:
    """One full pass for every place; see the module's docstring."""
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
    """Jacobi iteration, and its number of passes: after t passes at least the first t places are final, so it ends at the naive sample
    (Song, Meng, Liao, Ermon 2021, "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving")."""
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
