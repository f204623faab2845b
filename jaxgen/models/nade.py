"""NADE: the neural autoregressive distribution estimator, one hidden layer that grows value by value.

    p(x) = prod_d p(x_d | x_<d),    d = 1 .. D in raster order, within a pixel R, then G, then B

    a_1 = c + E y,    h_d = sigmoid(a_d),    parameters of x_d = V_d h_d + b_d,    a_{d+1} = a_d + W_d x_d

W_d is column d of the weights that all places share, so each place costs one addition and one product: O(D H) for the image, where a
network for every place would cost O(D^2 H). y is the class, one-hot, if there is one; x_d is the value divided by its largest one.

Larochelle & Murray 2011, "The Neural Autoregressive Distribution Estimator", section 3 (there for binary values). Departures: values of
more than two levels have a softmax; the class.

Axes: B batch, D = H W C dimensions, H units of the hidden layer (`hidden`), P parameters of a dimension.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt

from jaxgen.checks import check_image_config
from jaxgen.data.features import OfImages
from jaxgen.distributions import pixel_head
from jaxgen.layers.autoregressive import AutoregressiveImages
from jaxgen.layers.convolutions import EXACT, add_bias, dot, embed, normal, zeros


@dataclass(frozen=True)
class NADEConfig(OfImages):
    """Sizes of a NADE. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    hidden: int = 256  # H, units of the hidden layer
    dtype: Literal["float32", "bfloat16"] = "float32"  # of h; the sums a, parameters and likelihoods are float32

    def __post_init__(self):
        check_image_config(self, {"hidden": 1})


class Cache(NamedTuple):
    """The sampler's cache."""

    sums: Float[Array, "B H"]  # a_d


class NADE(AutoregressiveImages):
    """The model of this file; see `AutoregressiveImages` for its methods."""

    def __init__(self, config: NADEConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, pixel_head(config.levels)
        d, h = prod(config.image_shape), config.hidden
        self.inputs, self.input_bias = normal(rngs, (d, h), d), zeros((h,))  # W, c
        self.outputs, self.output_bias = normal(rngs, (d, h, self.head.size), h), zeros((d, self.head.size))  # V, b
        self.embedding = normal(rngs, (config.num_classes, h), 1) if config.num_classes else None  # E

    @property
    def order(self) -> Int[np.ndarray, "D 3"]:
        """(r, c, k) of every place: raster order, a place being one channel."""
        return np.argwhere(np.ones(self.config.image_shape, bool))

    @jax.jit  # else its loop is compiled in every call
    def _logits(self, image: UInt[Array, "B H W C"], condition, key=None) -> Float[Array, "B H W C P"]:
        """The recursion over all places; there is no dropout, so `key` is not used."""
        x = self._scaled(image.reshape(image.shape[0], -1))

        def place(sums, inputs):
            return self._push(sums, *inputs), self._hidden(sums)

        _, h = jax.lax.scan(place, self.init_cache(len(image), condition).sums, (x.T, self.inputs[...]))  # [D, B, H]
        outputs = self.outputs[...].astype(h.dtype)
        parameters = jnp.einsum("dbh,dhp->bdp", h, outputs, precision=EXACT, preferred_element_type=jnp.float32)
        return (parameters + self.output_bias[...][None]).reshape(*image.shape, -1)

    def init_cache(self, n: int, condition=None) -> Cache:
        """a_1."""
        sums = jnp.broadcast_to(self.input_bias[...], (n, self.config.hidden))
        return Cache(sums if condition is None else sums + embed(self.embedding[...], condition))

    def step(self, cache: Cache, previous: UInt[Array, "B 1"], i: Int[Array, ""]) -> tuple[Cache, Float[Array, "B P"]]:
        """a_{i+1} from a_i and the value of place i-1, which counts as 0 for i = 0; and the parameters of place i, places from 0."""
        x = jnp.where(i > 0, self._scaled(previous[:, 0]), 0)
        sums = self._push(cache.sums, x, self.inputs[...][jnp.maximum(i - 1, 0)])
        return Cache(sums), add_bias(dot(self._hidden(sums), self.outputs[...][i], jnp.float32), self.output_bias[...][i])

    def _scaled(self, values: UInt[Array, "*shape"]) -> Float[Array, "*shape"]:
        return values.astype(jnp.float32) / (self.config.levels - 1)

    def _push(self, sums: Float[Array, "B H"], x: Float[Array, " B"], weights: Float[Array, " H"]) -> Float[Array, "B H"]:
        return sums + x[:, None] * weights[None]

    def _hidden(self, sums: Float[Array, "B H"]) -> Float[Array, "B H"]:
        return jax.nn.sigmoid(sums).astype(self.config.dtype)
