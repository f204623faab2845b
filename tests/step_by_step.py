"""The cached form of an autoregressive image model, driven with a given image, as the oracle of the full pass and the other way round."""

import jax
import jax.numpy as jnp
import numpy as np


def place_by_place(model, image, condition):
    """`step_by_step` for a model with an order of its own."""
    order, channels = model.order, image.shape[3]
    values = jnp.stack([image[:, *place[:2]] if len(place) == 2 else image[:, *place][:, None] for place in order])  # [N, B, C or 1]

    def step(carry, inputs):
        cache, previous = carry
        cache, parameters = model.step(cache, previous, inputs[0])
        return (cache, inputs[1]), parameters

    start = model.init_cache(image.shape[0], condition), jnp.full_like(values[0], channels)
    _, parameters = jax.lax.scan(step, start, (jnp.arange(len(order)), values))
    raster = np.lexsort(order.T[::-1])
    return parameters.swapaxes(0, 1)[:, raster].reshape(*image.shape[: 1 + order.shape[1]], -1)


@jax.jit
def step_by_step(model, image, label=None):
    """The parameters of every position from the cached form, given the true pixels: [B, H, W, C, P], or [B, H, W, P]."""
    batch, height, width, channels = image.shape
    if model.order is not None:
        return place_by_place(model, image, model.condition(batch, label, image))
    rows = image.transpose(1, 2, 0, 3)  # [H, W, B, C]

    def pixel(carry, inputs):
        cache, previous, r = carry
        c, value = inputs
        cache, parameters = model.step(cache, previous, r, c)
        if model.head.channelwise:
            parameters = [parameters]
            for k in range(1, channels):
                hidden = jnp.where(jnp.arange(channels) < k, value, jnp.uint8(0))
                cache, more = model.step_channel(cache, hidden, k)
                parameters.append(more)
            parameters = jnp.stack(parameters, axis=1)
        return (cache, value, r), parameters

    def row(carry, inputs):
        cache, above = carry
        r, values = inputs
        cache = model.begin_row(cache, above, r)
        start = (cache, jnp.zeros((batch, channels), jnp.uint8), r)
        (cache, _, _), parameters = jax.lax.scan(pixel, start, (jnp.arange(width), values))
        return (cache, values.swapaxes(0, 1)), parameters

    start = (model.init_cache(batch, model.condition(batch, label, image)), jnp.zeros((batch, width, channels), jnp.uint8))
    _, parameters = jax.lax.scan(row, start, (jnp.arange(height), rows))
    return jnp.moveaxis(parameters, 2, 0)
