"""MADE: an auto-encoder with masked weights, whose outputs are the conditionals of p(x) in any order.

    p(x) = 1/M sum_m p_m(x),      p_m(x) = prod_i p_m(x_d | x_e, e before d in the order of m),   d = o_m(i)

    h_0 = x scaled to [-1, 1],   h_l = relu((W_l * M_l) h_{l-1} + b_l),   parameters of x_d = [(V * M_V) h_L + (A * M_A) h_0 + c]_d

The masks are those of layers/masked_dense.py: an input has the number of its place in the order, a hidden unit a number in 1 .. D-1. One
set of weights serves M = `masks` sets of masks, which differ in the numbers of the hidden units and, with `shuffled`, in the order
("order- and connectivity-agnostic training"); every training step takes one of them at random. Probabilities, not logits, are averaged over
the sets (`log_prob`, by logsumexp), so p(x) is a mixture; a sample draws its set first. A, with `direct`, connects the inputs with the
outputs of later places; without A every allowed dependency is there if each hidden layer has at least D-1 units.

Sampling: the units of number i can be computed as soon as the values of the first i places are known, and no unit is computed twice: all
places of an image cost one full pass, plus D short outputs. `sample_sequence` goes through the places in each image's own order.

Germain, Gregor, Murray, Larochelle 2015, "MADE: Masked Autoencoder for Distribution Estimation", sections 3 and 4. Departures: numbers of
units are spread evenly (masked_dense.py); sets are taken at random, not in turn; the masks are not an input of the hidden units; values of
more than two levels have a softmax.

Axes: B batch, D = H W C dimensions, P parameters of a dimension, M sets of masks, K most units of one number in a layer.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import log, prod
from typing import ClassVar, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_image_config, check_images, check_key, image_of
from jaxgen.data.features import OfImages
from jaxgen.distributions import bits_per_dim, pixel_head
from jaxgen.layers.autoregressive import sample_in_order
from jaxgen.layers.convolutions import EXACT, scale_pixels
from jaxgen.layers.image_networks import check_hidden
from jaxgen.layers.masked_dense import MaskedDense, unit_numbers


@dataclass(frozen=True)
class MADEConfig(OfImages):
    """Sizes of a MADE. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    hidden: tuple[int, ...] = (256, 256)  # units of the hidden layers
    masks: int = 1  # M, sets of masks that share the weights and over which probabilities are averaged
    shuffled: bool = False  # each set of masks has a random order of its own; else all have the raster order
    direct: bool = False  # weights from the inputs to the outputs
    mask_seed: int = 0  # of the random numbers of units and of the orders
    num_classes: ClassVar[int] = 0  # no labels

    def __post_init__(self):
        check_image_config(self, {"masks": 1, "mask_seed": 0})
        check_hidden(self.image_shape, self.hidden, "mlp")


class Masks(NamedTuple):
    """What the masks of a configuration are made of. Hidden layers l = 1 .. L in tuples."""

    order: Int[np.ndarray, "M D"]  # o_m(i), the dimension at place i
    number: Int[np.ndarray, "M D"]  # the place of each dimension, from 1
    units: tuple[Int[np.ndarray, "M H"], ...]  # numbers of the units
    of_number: tuple[Int[np.ndarray, "M D K"], ...]  # the units of number i, filled up with H; i = 0 .. D-1, none for 0


@lru_cache(maxsize=16)
def masks_of(config: MADEConfig) -> Masks:
    """A function of `mask_seed`, the sizes, and nothing else."""
    generator, d = np.random.default_rng(config.mask_seed), prod(config.image_shape)
    order = np.stack([generator.permutation(d) if config.shuffled else np.arange(d) for _ in range(config.masks)])
    units = zip(*(unit_numbers(d, config.hidden, generator) for _ in range(config.masks)), strict=True)
    units = tuple(np.stack(layer) for layer in units)
    return Masks(order, order.argsort(axis=1) + 1, units, tuple(_units_of_number(layer, d) for layer in units))


def _units_of_number(units: Int[np.ndarray, "M H"], d: int) -> Int[np.ndarray, "M D K"]:
    most = max(np.bincount(row).max() for row in units)
    table = np.full((len(units), d, most), units.shape[1])
    for row, numbers in zip(table, units, strict=True):
        for i in range(1, d):
            found = np.flatnonzero(numbers == i)
            row[i, : len(found)] = found
    return table


class Cache(NamedTuple):
    """The sampler's cache."""

    component: Int[Array, " B"]  # m of every image
    values: tuple[Float[Array, "B H"], ...]  # h_0 .. h_L, 0 where not known yet


class MADE(nnx.Module):
    """The density p(x) of images. Methods raise ConfigError for what does not fit the config."""

    def __init__(self, config: MADEConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, pixel_head(config.levels)
        d = prod(config.image_shape)
        sizes = d, *config.hidden
        self.layers = nnx.List([MaskedDense(a, b, rngs) for a, b in zip(sizes, config.hidden, strict=False)])
        self.out = MaskedDense(sizes[-1], d * self.head.size, rngs, strict=True)
        self.direct = MaskedDense(d, d * self.head.size, rngs, strict=True) if config.direct else None

    def log_prob(self, image: UInt[Array, "B H W C"]) -> Float[Array, " B"]:
        """log p(image) in nats, of the average of the probabilities over the M sets of masks."""
        return self._log_prob(self._flat(image))

    @jax.jit  # else its loop is compiled in every call
    def _log_prob(self, x: UInt[Array, "B D"]) -> Float[Array, " B"]:
        count = self.config.masks
        each = jax.lax.map(lambda component: self._terms(x, component).sum(-1), jnp.arange(count))
        return jax.nn.logsumexp(each, axis=0) - log(count)

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-mean log2 p_m(image) / D for one set of masks m, drawn from `key`; metrics: it as bits_per_dim, and nats per image."""
        x, component = self._flat(image_of(batch)), jax.random.randint(key, (), 0, self.config.masks)
        nats = -self._terms(x, component).sum(-1).mean()
        bits = bits_per_dim(nats, x.shape[1])
        return bits, {"bits_per_dim": bits, "nats": nats}

    def sample(
        self, key: PRNGKeyArray, n: SupportsIndex, known=None, temperature: float = 1.0, method: str = "cached"
    ) -> UInt[Array, "n H W C"]:
        """n images [n, H, W, C]; each draws its set of masks first.

        known=(image, mask): pixels where the boolean mask [n, H, W] (or [H, W]) is True are taken from the image, the others drawn given
        all before them in the image's own order. temperature, method ("cached" or "naive"): see `sampling.sample_sequence`.
        """
        check_key(key)
        n, (key_mask, key_values) = check_count(n), jax.random.split(key)
        component = jax.random.randint(key_mask, (n,), 0, self.config.masks)
        order = jnp.asarray(masks_of(self.config).order)[component]
        return sample_in_order(self, key_values, n, order, {"component": component}, known, temperature, method)

    # One set of masks for all rows, dimensions in raster order.

    def _flat(self, image) -> UInt[Array, "B D"]:
        return check_images(image, self.config.image_shape, self.config.levels).reshape(image.shape[0], -1)

    def parameters(self, x: UInt[Array, "B D"], component: Int[Array, ""]) -> Float[Array, "B D P"]:
        """Parameters of p_m(x_d | ..) for all dimensions d, m = `component`; x: images as vectors."""
        masks = jax.tree.map(lambda array: jnp.asarray(array)[component], masks_of(self.config))
        h = inputs = scale_pixels(x, self.config.levels)
        numbers = masks.number
        for layer, units in zip(self.layers, masks.units, strict=True):
            h, numbers = jax.nn.relu(layer(h, numbers, units)), units
        outputs = jnp.repeat(masks.number, self.head.size)
        y = self.out(h, numbers, outputs)
        y = y if self.direct is None else y + self.direct(inputs, masks.number, outputs)
        return y.reshape(*x.shape, -1)

    def _terms(self, x: UInt[Array, "B D"], component) -> Float[Array, "B D"]:
        return self.head.log_prob(self.parameters(x, component), x)

    # The sequence core of sampling.py: place i of row b is dimension o_m(i), m = component[b].

    def logits(self, x: UInt[Array, "B D"], component: Int[Array, " B"]) -> Float[Array, "B D P"]:
        """Parameters of all places, values and parameters in each row's own order; the full pass, once for each row."""
        order = jnp.asarray(masks_of(self.config).order)[component]
        raster = jnp.put_along_axis(jnp.zeros_like(x), order, x, axis=1, inplace=False)
        rows = jax.lax.map(lambda row: self.parameters(row[0][None], row[1])[0], (raster, component))
        return jnp.take_along_axis(rows, order[..., None], axis=1)

    def init_cache(self, n: int, component: Int[Array, " B"]) -> Cache:
        """The cache before anything is drawn."""
        return Cache(component, tuple(jnp.zeros((n, size)) for size in (prod(self.config.image_shape), *self.config.hidden)))

    def step(self, cache: Cache, previous: UInt[Array, " B"], i: Int[Array, ""]) -> tuple[Cache, Float[Array, "B P"]]:
        """The units of number i, which the value `previous` of place i-1 completes, and the parameters of place i."""
        masks, component, size = masks_of(self.config), cache.component, self.head.size
        rows = jnp.arange(len(component))
        order = jnp.asarray(masks.order)[component]
        before = jnp.where(i > 0, scale_pixels(previous, self.config.levels), 0)
        h = inputs = cache.values[0].at[rows, jnp.take(order, i - 1, axis=1, mode="wrap")].set(before)
        values = [h]
        for layer, table, known in zip(self.layers, masks.of_number, cache.values[1:], strict=True):
            units = jnp.asarray(table)[component, i]  # [B, K]
            new = jnp.einsum("bh,hbk->bk", h, jnp.take(layer.kernel[...], units, axis=1, mode="clip"), precision=EXACT)
            new = jax.nn.relu(new + jnp.take(layer.bias[...], units, mode="clip"))
            h = known.at[rows[:, None], units].set(new, mode="drop")
            values.append(h)
        place = jnp.take(order, i, axis=1)[:, None] * size + jnp.arange(size)[None]  # [B, P]
        y = _outputs(self.out, h, place)
        y = y if self.direct is None else y + _outputs(self.direct, inputs, place)
        return Cache(component, tuple(values)), y


def _outputs(layer: MaskedDense, x: Float[Array, "B H"], place: Int[Array, "B P"]) -> Float[Array, "B P"]:
    """These outputs of a layer; what their masks hide is 0 in x."""
    kernel = jnp.take(layer.kernel[...], place, axis=1)
    return jnp.einsum("bh,hbp->bp", x, kernel, precision=EXACT) + jnp.take(layer.bias[...], place)
