"""The places of an exact model driven from the host, one after the other, as a compressor needs it.

    p(x) = prod_i p(x_i | x_<i)            i = 0, 1, .. in the order in which `sample` draws

A place is a token of a string, a channel of a pixel, or a whole pixel where the head has one distribution for all channels of a pixel.
The parameters come from the cached form of the model, so that all places together cost about as much as one drawn batch.

Axes: n examples, N places, H W C image, L length, P parameters of a place.
"""

from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_key, check_temperature
from jaxgen.errors import ConfigError
from jaxgen.sampling import Draw, draw_place


class Places:
    """All places of n examples of a model that has the cached form of sampling.py: strings, and images of every autoregressive model.

        places = Places(model, n, label=3)
        cache, previous = places.init(), None
        for i in range(len(places)):
            cache, parameters = places.step(cache, previous, i)
            previous = places.values(x, i)                                   of given examples, or
            previous = places.draw(key, parameters, i)                       of new ones: those of `model.sample(key, n, label=3)`

    log p(x) is the sum over i of `model.head.log_prob(parameters, places.values(x, i))`; of a string up to its stop token.

    order: int [N, A], the index of every place in an example: (i,) of tokens, (r, c) of pixels, (r, c, k) of channels. given: what the
    examples are given, by name, as `model.sample` takes it. Raises ConfigError for a model without the cached form, and for arguments that
    do not fit.
    """

    def __init__(self, model: Any, n: SupportsIndex, **given):
        if not (hasattr(model, "init_cache") and hasattr(model, "step")):
            raise ConfigError("model", "an exact model with init_cache and step", type(model).__name__)
        self._model, self._n, self._given = model, check_count(n), given
        self._image = hasattr(model, "order")
        if not self._image and not hasattr(model.config, "length"):
            raise ConfigError("model", "a model that draws all examples in one order", f"{type(model).__name__}, a mixture over orders")
        if self._image:
            self._given = model.condition(self._n, **given)
            shape = model.config.image_shape[: 2 + model.head.channelwise]
            self.order = np.argwhere(np.ones(shape, bool)) if model.order is None else np.asarray(model.order)
        else:
            self.order = np.arange(model.config.length)[:, None]

    def __len__(self) -> int:
        """N, the number of places."""
        return len(self.order)

    def values(self, x: UInt[Array, "n ..."], i: int) -> Array:
        """The values of place i in examples x ([n, L] or [n, H, W, C]): [n], or [n, C] of whole pixels."""
        return x[(slice(None), *self.order[i])]

    def init(self) -> Any:
        """The cache before the first place."""
        if not self._image:
            return _init_tokens(self._model, self._n, self._given)
        cache = _init_images(self._model, self._n, self._given)
        if self._model.order is not None:
            return cache
        _, columns, channels = self._model.config.image_shape
        return Raster(cache, jnp.zeros((self._n, columns, channels), self._model.head.dtype))

    def step(self, cache: Any, previous: Any, i: int) -> tuple[Any, Float[Array, "n P"]]:
        """The cache after place i, and the parameters of p(x_i | x_<i), by one call of a compiled program.

        previous: the values of place i-1, as `values` gives them, None at place 0. cache: that after place i-1; it is not changed, so that
        a caller may go on from it again. Raises ConfigError for a place that there is not, and for values of another shape.
        """
        if not 0 <= i < len(self):
            raise ConfigError("i", f"a place in 0..{len(self) - 1}", i)
        if (previous is None) != (i == 0):
            wanted = "None at place 0, and values at every other"
            raise ConfigError("previous", wanted, f"{'None' if previous is None else 'values'} at place {i}")
        whole_pixels = self._image and not self._model.head.channelwise
        shape = (self._n, self._model.config.image_shape[2]) if whole_pixels else (self._n,)
        dtype = self._model.head.dtype
        previous = jnp.zeros(shape, dtype) if previous is None else jnp.asarray(previous, dtype)
        if previous.shape != shape:
            raise ConfigError("previous", f"shape {list(shape)}", list(previous.shape))
        if not self._image:
            return _step(self._model, cache, previous, jnp.int32(i))
        if self._model.order is not None:
            return _step(self._model, cache, previous if whole_pixels else previous[:, None], jnp.int32(i))
        place, before = self.order[i].astype(np.int32), self.order[max(i - 1, 0)].astype(np.int32)
        return _raster_step(self._model, cache, previous, before, place, kind=_kind(self.order[i]))

    def draw(self, key: PRNGKeyArray, parameters: Float[Array, "n P"], i: int, temperature: float = 1.0) -> Array:
        """A draw of place i, as `values` gives them, with the noise that `model.sample` has for this key and place.

        Raises ConfigError for a key that is none and a temperature that is not positive.
        """
        check_key(key)
        temperature = check_temperature(temperature)
        if not self._image:
            return _draw_token(self._model.head, key, parameters, jnp.int32(i), temperature)
        shape = self._n, *self._model.config.image_shape
        return _draw_pixel(self._model.head, key, parameters, self.order[i].astype(np.int32), temperature, shape=shape)


class Raster(NamedTuple):
    """The cache of a model that draws in raster order."""

    model: Any  # the cache of the model itself
    row: UInt[Array, "n W C"]  # the pixels of the row being drawn; those not drawn yet have the values of the row above


def _kind(place: np.ndarray) -> str:
    """What is computed for a place of raster order: "row" and "pixel" begin one, "channel" goes on within a pixel."""
    _, c, *k = place
    if k and k[0] > 0:
        return "channel"
    return "row" if c == 0 else "pixel"


@partial(jax.jit, static_argnames="n")
def _init_tokens(model, n, given):
    return model.init_cache(n, **given)


@partial(jax.jit, static_argnames="n")
def _init_images(model, n, condition):
    return model.init_cache(n, condition)


@jax.jit
def _step(model, cache, previous, i):
    return model.step(cache, previous, i)


@partial(jax.jit, static_argnames="kind")
def _raster_step(model, cache: Raster, previous, before: Int[Any, " A"], place: Int[Any, " A"], kind: str):
    """`step` at (r, c) or (r, c, k) after the values `previous` of the place before; what is written at the first place is not read."""
    r, c, *k = place
    row = cache.row.at[(slice(None), *before[1:])].set(previous)
    if kind == "channel":
        pixel = jnp.where(jnp.arange(row.shape[2]) < k[0], row[:, c], jnp.zeros_like(row[:, c]))
        state, parameters = model.step_channel(cache.model, pixel, k[0])
        return Raster(state, row), parameters
    state = model.begin_row(cache.model, row, r) if kind == "row" else cache.model
    left = jnp.zeros_like(row[:, 0]) if kind == "row" else row[:, c - 1]
    state, parameters = model.step(state, left, r, c)
    return Raster(state, row), parameters


@partial(jax.jit, static_argnames="head")
def _draw_token(head, key, parameters, i, temperature):
    return draw_place(head, key, parameters, i, temperature)


@partial(jax.jit, static_argnames=("head", "shape"))
def _draw_pixel(head, key, parameters, place: Int[Any, " A"], temperature, shape):
    r, c, *k = place
    draw = Draw(head, key, shape, temperature)
    noise = draw.noise(r, c)
    return draw(parameters, noise[:, k[0]] if k else noise)
