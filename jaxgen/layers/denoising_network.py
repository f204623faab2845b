"""A denoising network with the embedding of the label that it is given: U-Net, diffusion transformer or MLP, as a configuration says.

The configuration of a model has the fields `network` ("unet", "dit" or "mlp"), the sizes of each in `unet`, `dit` and `mlp`, and
image_shape, num_classes and dtype. The MLP takes images as vectors.

    given    e_y, a learned vector for each label y, and one more, e_none, that stands for "no label"
    guided   (1 + w) f(x, t, e_y) - w f(x, t, e_none)                 w = 0: f(x, t, e_y). Ho and Salimans 2022, "Classifier-free
                                                                      diffusion guidance", eq. 6

In training the label is hidden with some probability, so that one network learns both. x_0, noise and v are affine functions of each other
for given x_t, and 1 + w - w = 1: so it is the same which of them is guided.

Axes: B batch, K classes, E embedding, [B, ..., C] images [B, H, W, C] or points [B, C].
"""

from math import pi, prod

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import embed, normal
from jaxgen.layers.denoising_mlp import DenoisingMLP, MLPDenoiserConfig
from jaxgen.layers.dit import DiT, DiTConfig
from jaxgen.layers.unet import UNet, UNetConfig

SIZES = {"unet": UNetConfig, "dit": DiTConfig, "mlp": MLPDenoiserConfig}


def check_network(config) -> None:
    """ConfigError for sizes of a network that is not the chosen one, and for a network that does not fit what is modelled."""
    for name, sizes in SIZES.items():
        if name != config.network and getattr(config, name) != sizes():
            raise ConfigError(name, f"its default: the network is {config.network}", getattr(config, name))
    if len(config.image_shape) != 3 and config.network != "mlp":
        raise ConfigError("network", "mlp for points", config.network)
    if len(config.image_shape) != 3 and config.num_classes:
        raise ConfigError("num_classes", "0 for points: this model takes no label with them", config.num_classes)
    if config.network == "dit" and any(side % config.dit.patch for side in config.image_shape[:2]):
        raise ConfigError("dit.patch", f"a divisor of the sides {config.image_shape[:2]}", config.dit.patch)


class DenoisingNetwork(nnx.Module):
    """The network above. outputs: how many numbers it gives for each number of x; the result is [B, ..., outputs C].

    waves: whether the network sees sin and cos of pi u and 2 pi u beside x, u = (x + 1) (levels - 1) / 2, which have periods of two levels
    and of one: so it can tell apart values of x that are nearer to each other than levels (Kingma et al. 2021, appendix C).
    """

    def __init__(self, config, outputs: int, rngs: nnx.Rngs, waves: bool = False):
        self.waves, self.levels = waves, config.levels
        inputs = 5 if waves else 1
        self.image_shape, self.network, width = config.image_shape, config.network, getattr(config, config.network).width
        more = {"embedding": width if config.num_classes else 0, "dtype": config.dtype, "rngs": rngs}
        channels, size = config.image_shape[-1], prod(config.image_shape)
        if config.network == "unet":
            self.body = UNet(config.unet, inputs * channels, outputs * channels, **more)
        elif config.network == "dit":
            self.body = DiT(config.dit, inputs * channels, outputs * channels, config.image_shape, **more)
        else:
            self.body = DenoisingMLP(config.mlp, inputs * size, outputs * size, **more)
        self.table = normal(rngs, (config.num_classes + 1, width), 1) if config.num_classes else None

    def __call__(
        self, x: Float[Array, "B *n C"], time: Float[Array, " B"], label=None, hidden: Bool[Array, " B"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B *n O"]:  # fmt: skip
        """f(x, t, e), float32 [B, ..., outputs C].

        label: int [B], or weights of the classes, float [B, K]; None: no label for any row. hidden: rows whose label is not shown. key:
        for dropout; None for none.
        """
        e = None if self.table is None else self._embedding(x.shape[0], label, hidden)
        shape = (*x.shape[:-1], -1)
        if self.waves:
            u = (x + 1) * ((self.levels - 1) / 2 * pi)
            x = jnp.concatenate([x, jnp.sin(u), jnp.cos(u), jnp.sin(2 * u), jnp.cos(2 * u)], axis=-1)
        if self.network != "mlp":
            return self.body(x, time, e, key)
        return self.body(x.reshape(x.shape[0], -1), time, e, key).reshape(shape)

    def guided(self, x: Float[Array, "B ..."], time: Float[Array, " B"], label, w: float) -> Float[Array, "B ..."]:
        """The guided result, from one pass of twice as many rows; for w = 0, or without labels, that of `__call__`."""
        if self.table is None or w == 0:
            return self(x, time, label)
        rows = jnp.arange(2 * x.shape[0]) >= x.shape[0]
        both = self(*(jnp.concatenate([one, one]) for one in (x, time, label)), hidden=rows)
        return (1 + w) * both[: x.shape[0]] - w * both[x.shape[0] :]

    def _embedding(self, batch: int, label, hidden: Bool[Array, " B"] | None) -> Float[Array, "B E"]:
        table = self.table[...]
        none = jnp.broadcast_to(table[-1:], (batch, table.shape[1]))
        if label is None:
            return none
        e = embed(table[:-1], label)
        return e if hidden is None else jnp.where(hidden[:, None], none, e)
