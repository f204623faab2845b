"""NICE: non-linear independent components estimation, a flow of additive couplings.

    h^0 = 2 v / levels - 1,     h^l = (h^{l-1}_1, h^{l-1}_2 + m_l(h^{l-1}_1)),     z_d = exp(s_d) h^L_d
    log p(v) = sum_d [log p(z_d) + s_d + log(2 / levels)],     p the standard logistic or normal density

h_1 and h_2 are the even and the odd dimensions, which change places from layer to layer; m_l is a fully connected network. A coupling
does not change volumes: its Jacobian is triangular with ones on the diagonal. Its inverse is the same with a minus. s, and the last biases
of m_1 and m_2, begin such that every z_d of the first batch has the mean 0 and the deviation of p (with one layer m_2 is missing, and the
half that no layer changes keeps its mean): from s = 0 Adam would take thousands of steps to the scale of pixels that vary little, e^s = 50
and more.

Dinh, Krueger, Bengio 2014, "NICE: Non-linear Independent Components Estimation", sections 3 and 5. Departures: the last kernel of m_l is 0
at first, so that a layer adds the same to every image, and m_l has silu where the paper has ReLU; the first biases and s, above, where the
paper whitens some of its data; noise is drawn anew in every step.

Axes: B batch, D = H W C dimensions.
"""

from dataclasses import dataclass
from math import log, pi, prod
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.checks import check_image_config, check_images, image_of
from jaxgen.data.features import OfImages
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import zeros
from jaxgen.layers.dequantised import NOISE
from jaxgen.layers.image_flows import ImageFlow
from jaxgen.layers.image_networks import MLP, check_hidden

DEVIATION = {"logistic": pi / 3**0.5, "normal": 1.0}
"""The standard deviation of one number under the prior p."""


@dataclass(frozen=True)
class NICEConfig(OfImages):
    """Sizes of a NICE. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    layers: int = 4  # L, number of couplings
    hidden: tuple[int, ...] = (256, 256)  # units of the hidden layers of each network m
    prior: Literal["logistic", "normal"] = "logistic"  # density of the numbers z
    num_classes: ClassVar[int] = 0  # no labels

    def __post_init__(self):
        check_image_config(self, {"layers": 1})
        check_hidden(self.image_shape, self.hidden, "mlp")
        if prod(self.image_shape) < 2:
            raise ConfigError("image_shape", "at least two dimensions, for two parts", self.image_shape)


class NICE(ImageFlow):
    """The density p(v); see `ImageFlow` for its other methods."""

    def __init__(self, config: NICEConfig, *, rngs: nnx.Rngs):
        self.config, d = config, prod(config.image_shape)
        self.log_scale = zeros((d,))  # s
        even, odd = -(-d // 2), d // 2
        sides = [(even, odd), (odd, even)]
        self.networks = nnx.List([MLP((a, *config.hidden, b), rngs) for a, b in (sides[i % 2] for i in range(config.layers))])
        for network in self.networks:
            network.layers[-1].kernel = zeros(network.layers[-1].kernel.shape)

    def initialise(self, batch: dict) -> "NICE":
        """A copy whose first biases and s are those of a batch of images, with the noise."""
        model, image = nnx.clone(self), check_images(image_of(batch), self.config.image_shape, self.config.levels)
        x, scale = image.reshape(len(image), -1).astype(jnp.float32), 2 / self.config.levels
        log_deviation = 0.5 * jnp.log(x.var(axis=0) + NOISE) + log(scale)
        mean = (x.mean(axis=0) + 0.5) * scale - 1
        for network, part in zip(model.networks, (mean[1::2], mean[::2]), strict=False):
            network.layers[-1].bias[...] = -part
        model.log_scale = nnx.Param(log(DEVIATION[self.config.prior]) - log_deviation)
        return model

    def transform(self, v: Float[Array, "B H W C"]) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
        """z and log |det dz/dv|, which does not depend on v."""
        x = v.reshape(v.shape[0], -1) * (2 / self.config.levels) - 1
        parts = [x[:, ::2], x[:, 1::2]]
        for i, network in enumerate(self.networks):
            parts[1 - i % 2] = parts[1 - i % 2] + network(parts[i % 2])
        log_det = self.log_scale[...].sum() + x.shape[1] * log(2 / self.config.levels)
        return _joined(parts) * jnp.exp(self.log_scale[...])[None], jnp.broadcast_to(log_det, (x.shape[0],))

    def inverse(self, z: Float[Array, "B D"]) -> Float[Array, "B H W C"]:
        """v."""
        x = z * jnp.exp(-self.log_scale[...])[None]
        parts = [x[:, ::2], x[:, 1::2]]
        for i, network in reversed(list(enumerate(self.networks))):
            parts[1 - i % 2] = parts[1 - i % 2] - network(parts[i % 2])
        return ((_joined(parts) + 1) * (self.config.levels / 2)).reshape(-1, *self.config.image_shape)

    def prior(self, z: Float[Array, "B D"]) -> Float[Array, " B"]:
        """sum_d log p(z_d)."""
        if self.config.prior == "normal":
            return super().prior(z)
        return -(jax.nn.softplus(z) + jax.nn.softplus(-z)).sum(-1)

    def draw_prior(self, key: PRNGKeyArray, n: int) -> Float[Array, "n D"]:
        """Draws of z."""
        if self.config.prior == "normal":
            return super().draw_prior(key, n)
        return jax.random.logistic(key, (n, prod(self.config.image_shape)))


def _joined(parts: list[Float[Array, "B ..."]]) -> Float[Array, "B D"]:
    """Even and odd dimensions in turn."""
    even, odd = parts
    out = jnp.zeros((even.shape[0], even.shape[1] + odd.shape[1]))
    return out.at[:, ::2].set(even).at[:, 1::2].set(odd)
