"""Exact sampling of autoregressive image models: cached, naive and fixed-point, with known pixels and temperature.

Raster order: pixel (r, c) is drawn after all pixels above it and to its left; a model that conditions channel by channel also draws G after
R and B after G. A model with another order gives it as an index array `order`, [N, 2] or, channel by channel, [N, 3]: (r, c[, k]) of every
place. The noise of a pixel comes from `fold_in(key, r W + c)`, never from the method, so in float32 the three methods give the same image
bit for bit (up to a tie within rounding). In bfloat16 the cache rounds at other places than the full pass, and single pixels may differ:

  naive        one full pass for every pixel (and channel): the oracle
  cached       `lax.scan` over rows of `lax.scan` over columns through the model's `init_cache / begin_row / step`; over the places of the
               model's own order through `init_cache / step`, its blocks one after the other; over its fronts, pixels that do not depend on
               each other, through `init_fronts / step_front` where that is faster; in a few scans where the cache grows on the way
  fixed_point  x := F(x) with F one full pass and the draw, until nothing changes: at most N + 1 passes (Song et al. 2021, Jacobi iteration)
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from jaxgen.checks import (  # noqa: F401  (some are here for those who import them from this file)
    check_count,
    check_images,
    check_key,
    check_known,
    check_label,
    check_temperature,
    check_vector,
    image_of,
    interpolate,
)
from jaxgen.distributions import bits_per_dim
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import at, put
from jaxgen.layers.fronts import Fronts

METHODS = ("cached", "naive", "fixed_point")
CACHE_BYTES = 2**24
"""On a CPU groups of images whose caches have this size are faster than many at once: attention, which reads all of its cache at every
step, twice; the Gated PixelCNN at batch 64, 1.05 times."""


class AutoregressiveImages(nnx.Module):
    """What all autoregressive image models share: the likelihood, the loss and the sampler, from the model's own `logits` and `step`.

    A model gives `config` (with `image_shape`, `levels`, `num_classes`), `head` (a distribution), `_logits(image, condition, key=None)` (a
    key: dropout) and the cached form `init_cache(n, condition) / begin_row(cache, finished_row, r) / step(cache, previous_pixel, r, c)`;
    with C > 1 and a head that works channel by channel also `step_channel(cache, pixel, k)`. A model with its own `order` has only
    `init_cache(n, condition) / step(cache, previous, i)`: i counts places, `previous` holds what was drawn at the place before, [B, C] or,
    channel by channel, [B, 1]. A model with `fronts` has, beside the form by rows, `init_fronts(n, condition) / step_front(cache, previous,
    t)` for all Q pixels of front t at once, `previous` [Q, C] holds those of the front before, and `step_front_channel(cache, pixel, k)`:
    the sampler takes this form where `draws_in_fronts`. Images are uint8 [B, H, W, C] in {0 .. levels-1}.
    """

    order = None
    fronts: Fronts | None = None
    """Pixels that do not depend on each other, for a model that can draw them at once; None where it cannot."""
    draws_in_fronts: bool = False
    """Whether this is its faster form, by its sizes and on this device."""
    rooms: tuple[int, ...] = ()
    """Rows, or places of a model's own order, at which its cache grows, by `fit(cache, rows)`; the last one is the end. () for never."""
    ends: tuple[int, ...] = ()
    """Ends of the blocks of a model's own order that are begun by `begin_block(cache, b)` where `step_in_block` is used for `step`."""
    conditions: tuple[str, ...] = ()
    """Names of what the network is given beside the image and the label: arguments of the methods below and fields of a batch."""

    def condition(self, batch: int, label=None, image=None, **given):
        """All that the network is given, checked, as one pytree with the batch in front: here the label, int32 [B] or None.

        A model with more overrides this; `image` is there where the true image is known, for what is computed from it.
        """
        for name, value in given.items():
            raise ConfigError(name, f"nothing, since {type(self).__name__} has no such condition here", type(value).__name__)
        return check_label(label, self.config.num_classes, batch)

    def logits(self, image: UInt8[Array, "B H W C"], label=None, **given) -> Float[Array, "B H W ..."]:
        """Parameters of p(x_i | x_<i) for every position in one parallel pass: [B, H, W, C, P] (channel by channel), float32."""
        config = self.config
        image = check_images(image, config.image_shape, config.levels)
        return self._logits(image, self.condition(image.shape[0], label, image, **given))

    def log_prob(self, image: UInt8[Array, "B H W C"], label=None, **given) -> Float[Array, " B"]:
        """Exact log p(image) in nats: the sum of the log-probabilities of all pixels and channels."""
        return self._sum(self.logits(image, label, **given), image)

    def _sum(self, parameters, image) -> Float[Array, " B"]:
        terms = self.head.log_prob(parameters, jnp.asarray(image))
        return terms.reshape(terms.shape[0], -1).sum(-1)

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-mean log2 p(image) per dimension, with dropout where the model has it; the metrics carry `bits_per_dim` and nats per image."""
        config = self.config
        image = check_images(image_of(batch), config.image_shape, config.levels)
        given = {name: batch[name] for name in self.conditions if name in batch}
        condition = self.condition(image.shape[0], batch.get("label") if config.num_classes else None, image, **given)
        nats = -self._sum(self._logits(image, condition, key), image).mean()
        bits = bits_per_dim(nats, prod(config.image_shape))
        return bits, {"bits_per_dim": bits, "nats": nats}

    def sample(
        self,
        key: PRNGKeyArray,
        n: SupportsIndex,
        label=None,
        known=None,
        temperature: float = 1.0,
        method: str = "cached",
        mesh: Mesh | None = None,
        **given,
    ):
        """n images, uint8 [n, H, W, C], drawn exactly from the model (at temperature 1).

        known=(image, mask): pixels where the boolean mask [n, H, W] is True are taken from the image; the others are drawn given those
        before them. A lower temperature sharpens every conditional. method: cached, naive or fixed_point give the same image. mesh: the
        cached sampler spreads the n images over these devices of this process.
        """
        config = self.config
        check_key(key)
        n, temperature = check_count(n), check_temperature(temperature)
        if method not in METHODS:
            raise ConfigError("method", "one of " + ", ".join(METHODS), method)
        known = check_known(known, n, config.image_shape, config.levels)
        condition = self.condition(n, label, **given)
        model = self if mesh is None else jax.device_put(self, NamedSharding(mesh, PartitionSpec()))
        return _sample(model, key, n, condition, known, temperature, method, mesh)[0]

    def sample_and_passes(self, key: PRNGKeyArray, n: SupportsIndex, label=None, **given) -> tuple[UInt8[Array, "n H W C"], Int[Array, ""]]:
        """The images of `method="fixed_point"`, and the number of full passes that they took."""
        config = self.config
        check_key(key)
        n = check_count(n)
        known = check_known(None, n, config.image_shape, config.levels)
        return _sample(self, key, n, self.condition(n, label, **given), known, jnp.float32(1), "fixed_point")


@dataclass(frozen=True)
class _Draw:
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
        return self.head.sample(parameters, noise, self.temperature).astype(jnp.uint8)


@partial(jax.jit, static_argnames=("n", "method", "mesh"))
def _sample(model, key, n, condition, known, temperature, method, mesh=None) -> tuple[UInt8[Array, "n H W C"], Int[Array, ""]]:
    """The image and the number of full passes that fixed-point iteration took (0 for the others)."""
    draw = _Draw(model.head, key, (n, *model.config.image_shape), temperature)
    if method == "fixed_point":
        return fixed_point(model, draw, condition, *known)
    if method == "naive":
        return naive(model, draw, condition, *known), jnp.int32(0)
    fast = in_fronts if model.draws_in_fronts else cached if model.order is None else in_order
    if mesh is None:
        return fast(model, draw, condition, *known, jnp.arange(n)), jnp.int32(0)

    def one_device(model, key, condition, known, temperature, rows):
        return fast(model, replace(draw, key=key, temperature=temperature), condition, *known, rows)

    whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    spread = jax.shard_map(one_device, mesh=mesh, in_specs=(whole,) * 5 + (split,), out_specs=split, check_vma=False)
    rows = jnp.minimum(jnp.arange(-(-n // mesh.size) * mesh.size), n - 1)
    return spread(model, key, condition, known, temperature, rows)[:n], jnp.int32(0)


def cached(model, draw: _Draw, condition, image: UInt8[Array, "n H W C"], mask: Bool[Array, "n H W"], rows) -> UInt8[Array, "m H W C"]:
    """Row by row, pixel by pixel through the model's cache, the images `rows` of n: every activation is computed once."""
    return _in_groups(partial(_cached_group, model, draw, condition, image, mask), model.init_cache, draw, condition, rows)


def _cached_group(model, draw, condition, image, mask, rows):
    """The images `rows` of the batch: [g, H, W, C]."""
    _, height, width, channels = draw.shape
    image, mask, condition = image[rows], mask[rows], jax.tree.map(lambda x: x[rows], condition)
    n, step_channel = len(rows), getattr(model, "step_channel", None)  # models of one channel or of whole pixels have none

    def pixel(carry, inputs):
        cache, previous, r = carry
        c, noise, given, keep = inputs
        cache, parameters = model.step(cache, previous, r, c)
        cache, value = _finish_pixel(model, step_channel, draw, cache, parameters, noise, given, keep)
        return (cache, value, r), value

    def row(carry, inputs):
        cache, above = carry
        r, given, keep = inputs
        cache = model.begin_row(cache, above, r)
        columns = (jnp.arange(width), draw.row(r)[:, rows], given, keep)
        (cache, _, _), values = jax.lax.scan(pixel, (cache, jnp.zeros((n, channels), jnp.uint8), r), columns)
        return (cache, values.swapaxes(0, 1)), values

    inputs = (jnp.arange(height), image.transpose(1, 2, 0, 3), mask.transpose(1, 2, 0))
    start = (model.init_cache(n, condition), jnp.zeros((n, width, channels), jnp.uint8))
    values = _with_room(model, row, start, inputs)  # [H, W, n, C]
    return values.transpose(2, 0, 1, 3)


def in_fronts(model, draw: _Draw, condition, image: UInt8[Array, "n H W C"], mask: Bool[Array, "n H W"], rows) -> UInt8[Array, "m H W C"]:
    """Front by front through the model's cache: the pixels of a front are one batch, lane after lane."""
    places, inside = model.fronts.places, model.fronts.inside
    r, c = np.where(inside[..., None], places, 0).transpose(2, 0, 1)  # [T, K]; the pixels outside the image are drawn in vain

    def group(rows):
        """The images `rows` of the batch: [g, H, W, C]."""
        given, keep = image[rows][:, r, c], mask[rows][:, r, c]  # [g, T, K, C], [g, T, K]
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731  (lanes and images to one axis)

        def front(carry, inputs):
            cache, previous = carry
            t, r, c, given, keep = inputs
            cache, parameters = model.step_front(cache, previous, t)
            noise = jax.vmap(draw.noise)(r, c)[:, rows]
            cache, value = _finish_pixel(model, model.step_front_channel, draw, cache, parameters, flat(noise), flat(given), flat(keep))
            return (cache, value), value

        inputs = jnp.arange(len(r)), jnp.asarray(r), jnp.asarray(c), given.transpose(1, 2, 0, 3), keep.transpose(1, 2, 0)
        start = model.init_fronts(len(rows), jax.tree.map(lambda x: x[rows], condition)), jnp.zeros_like(flat(inputs[3][0]))
        _, values = jax.lax.scan(front, start, inputs)
        values = values.reshape(*r.shape, len(rows), -1)[inside]
        return jnp.zeros_like(image[rows]).at[:, r[inside], c[inside]].set(values.swapaxes(0, 1))

    return _in_groups(group, model.init_fronts, draw, condition, rows)


def _with_room(model, step, carry, inputs):
    """The scan over all rows or places, in parts where the model's cache grows: a shape is fixed within one scan."""
    if not model.rooms:
        return jax.lax.scan(step, carry, inputs)[1]
    values = []
    for begin, end in pairwise((0, *model.rooms)):
        cache, previous = carry
        part = jax.tree.map(lambda x: x[begin:end], inputs)  # noqa: B023 (called at once)
        carry, drawn = jax.lax.scan(step, (model.fit(cache, end), previous), part)
        values.append(drawn)
    return jnp.concatenate(values)


def _in_blocks(model, place, carry, inputs, values):
    """The same for a model that begins blocks: a loop for each of them, for a `cond` in a single one copies the caches at every step."""
    ends = jnp.asarray((0, *model.ends))

    def one(i, state):
        carry, values = state
        carry, value = place(carry, jax.tree.map(lambda x: at(x, i), inputs))
        return carry, put(values, value, i)

    def block(b, state):
        (cache, previous), values = state
        return jax.lax.fori_loop(ends[b], ends[b + 1], one, ((model.begin_block(cache, b), previous), values))

    return jax.lax.fori_loop(0, len(model.ends), block, (carry, values))[1]


def _finish_pixel(model, step_channel, draw, cache, parameters, noise, given, keep):
    """Draw one pixel [n, C] from its first parameters, channel after channel where the model conditions that way."""
    channels = draw.shape[3]
    if not model.head.channelwise:
        return cache, jnp.where(keep[:, None], given, draw(parameters, noise))
    first = jnp.where(keep, given[:, 0], draw(parameters, noise[:, 0]))
    value = jnp.zeros_like(given).at[:, 0].set(first)
    if channels == 1:
        return cache, value

    def channel(carry, k):
        cache, value = carry
        cache, parameters = step_channel(cache, value, k)
        drawn = jnp.where(keep, given[:, k], draw(parameters, noise[:, k]))
        return (cache, value.at[:, k].set(drawn)), None

    (cache, value), _ = jax.lax.scan(channel, (cache, value), jnp.arange(1, channels))
    return cache, value


def in_order(model, draw: _Draw, condition, image: UInt8[Array, "n H W C"], mask: Bool[Array, "n H W"], rows) -> UInt8[Array, "m H W C"]:
    """Place by place in the model's own order, through its cache."""
    order = jnp.asarray(model.order)
    r, c, *k = order.T
    step = model.step_in_block if model.ends else model.step

    def group(rows):
        """The images `rows` of the batch: [g, H, W, C]."""
        given, keep = image[rows][:, r, c], mask[rows][:, r, c]  # [g, N, C] or, of one channel, [g, N, 1]
        given = jnp.take_along_axis(given, k[0].reshape(1, -1, 1), axis=2) if k else given

        def place(carry, inputs):
            cache, previous = carry
            i, (r, c, *k), given, keep = inputs
            cache, parameters = step(cache, previous, i)
            noise = draw.noise(r, c)[rows]
            drawn = draw(parameters, noise[:, k[0]])[:, None] if k else draw(parameters, noise)
            value = jnp.where(keep[:, None], given, drawn)
            return (cache, value), value

        inputs = jnp.arange(len(order)), order, given.swapaxes(0, 1), keep.T
        start = model.init_cache(len(rows), jax.tree.map(lambda x: x[rows], condition)), jnp.zeros_like(inputs[2][0])
        if model.ends:
            values = _in_blocks(model, place, start, inputs, jnp.zeros_like(inputs[2]))
        else:
            values = _with_room(model, place, start, inputs)
        places = (slice(None), r, c, k[0]) if k else (slice(None), r, c)
        return jnp.zeros_like(image[rows]).at[places].set(values[:, :, 0].T if k else values.swapaxes(0, 1))

    return _in_groups(group, model.init_cache, draw, condition, rows, least=2)


def _in_groups(group, init_cache, draw: _Draw, condition, rows, least: int = 1) -> UInt8[Array, "m H W C"]:
    """`group(rows)` for groups of the images `rows` one after the other where the caches are large, else once for all.

    least: on a CPU attention to the cache of one image alone takes four times as long as that of two.
    """
    size = max(_group_size(len(rows), init_cache, condition), least if jax.default_backend() == "cpu" else 1)
    if size == len(rows):
        return group(rows)
    filled = rows[jnp.minimum(jnp.arange(-(-len(rows) // size) * size), len(rows) - 1)]  # the last row fills up
    return jax.lax.map(group, filled.reshape(-1, size)).reshape(-1, *draw.shape[1:])[: len(rows)]


def _group_size(images: int, init_cache, condition) -> int:
    """Of so many images, those whose caches a CPU keeps near its cores, two at the least; on accelerators all."""
    if jax.default_backend() != "cpu":
        return images

    def cache_bytes(rows):
        cache = jax.eval_shape(lambda: init_cache(rows.size, jax.tree.map(lambda x: x[rows], condition)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))

    # What another image adds: the weights that a cache holds in their packed form are those of all images.
    size = cache_bytes(np.zeros(2, int)) - cache_bytes(np.zeros(1, int))
    groups = -(-images // max(2, CACHE_BYTES // size))
    # Groups of equal size, up to twice as many, so that the fewest images are computed twice.
    groups = min(range(groups, min(2 * groups, -(-images // 2) + 1)), key=lambda g: -(-images // g) * g)
    return -(-images // groups)


def naive(model, draw: _Draw, condition, image: UInt8[Array, "n H W C"], mask: Bool[Array, "n H W"]) -> UInt8[Array, "n H W C"]:
    """One full pass for every pixel and channel: slow, obviously right."""
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


def fixed_point(model, draw: _Draw, condition, image, mask) -> tuple[UInt8[Array, "n H W C"], Int[Array, ""]]:
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
