"""Normalising flows: densities of points, or of images, by a chain of invertible maps from the data to N(0, I).

    z = f_L( .. f_1((v - m) / s)),      log p(v) = log N(z; 0, I) + sum_l log |det df_l| - sum_d log s_d

m and s begin as the mean and the deviation of the first batch. The maps f_l are pairs of functions of layers/bijections.py:

    planar, radial    all dimensions together (Rezende & Mohamed 2015, "Variational Inference with Normalizing Flows")
    coupling          the first half is kept; each number of the second is mapped by `transform`, whose parameters a network computes
                      from the first (Dinh, Sohl-Dickstein, Bengio 2016, "Density estimation using Real NVP")
    autoregressive    every number is mapped by `transform` with parameters that a masked network computes from the numbers before it
                      (Papamakarios, Pavlakou, Murray 2017, "Masked Autoregressive Flow for Density Estimation"); D passes invert it
    transform         affine, or a rational-quadratic spline (Durkan et al. 2019, "Neural Spline Flows")

Every second coupling or autoregressive map takes the dimensions in reverse order. Given a vector y, the parameters of all maps depend on
it. At first every f_l is the identity. On images the density is that of v = x + u, u ~ U[0, 1), drawn anew in every step of training.

Axes: B batch, D = H W C or the dimensions of a point, G size of the vector, P parameters of a number. Departures from the papers: no batch
normalisation; the log-scale of `affine` is limited (bijections.py); the identity at first.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import log, pi, prod
from typing import Any, Literal, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num, PRNGKeyArray

from jaxgen.checks import check_count, check_images, check_key, check_levels, check_vector, image_of
from jaxgen.config import check_types
from jaxgen.data.features import Feature, OfImagesOrPoints, Vector, given_to, modelled
from jaxgen.distributions import bits_per_dim
from jaxgen.errors import ConfigError
from jaxgen.layers.bijections import affine, affine_inverse, planar, planar_inverse, radial, radial_inverse, spline, spline_inverse
from jaxgen.layers.convolutions import dot, normal, zeros
from jaxgen.layers.dequantised import NOISE, as_vectors, to_examples
from jaxgen.layers.image_networks import check_hidden
from jaxgen.layers.masked_dense import MaskedDense, unit_numbers

MOST_BINS = 500
"""Each piece of a spline has at least a thousandth of the whole (bijections.LEAST)."""


@dataclass(frozen=True)
class FlowConfig(OfImagesOrPoints):
    """Sizes of a flow. Raises ConfigError for sizes out of range and fields that do not go together."""

    image_shape: tuple[int, ...] = (2,)  # (H, W, C) of images, or (d,) of real points
    levels: int = 0  # number of values that a channel of a pixel has, 0 .. levels-1; 0 for points
    vector_size: int = 0  # G, size of the vector that an example is drawn given; 0: no vector
    maps: Literal["autoregressive", "coupling", "planar", "radial"] = "autoregressive"  # the kind of the maps f_l
    transform: Literal["spline", "affine"] = "spline"  # of each number, in autoregressive and coupling maps
    layers: int = 5  # L, number of maps
    hidden: tuple[int, ...] = (64, 64)  # units of the hidden layers of the network of each map
    bins: int = 8  # K, pieces of a spline
    reach: float = 4.0  # a spline is the identity beyond this distance from 0

    def __post_init__(self):
        check_types(self)
        check_levels(self.levels, modelled(self))
        check_hidden(self.image_shape, self.hidden, "mlp")
        for name, low in {"vector_size": 0, "layers": 1, "bins": 2}.items():
            if getattr(self, name) < low:
                raise ConfigError(name, f"{low} or more", getattr(self, name))
        if self.bins > MOST_BINS:
            raise ConfigError("bins", f"at most {MOST_BINS}", self.bins)
        if not 0 < self.reach < float("inf"):
            raise ConfigError("reach", "a positive number", self.reach)
        if self.maps == "coupling" and prod(self.image_shape) == 1:
            raise ConfigError("maps", "autoregressive, planar or radial for a single number", self.maps, "it has no second half")

    @property
    def features(self) -> dict[str, Feature]:
        """The columns that the model needs: images or points, and the vector."""
        return super().features | ({"vector": Vector(self.vector_size)} if self.vector_size else {})

    @classmethod
    def sizes_from(cls, features: dict[str, Feature]) -> dict[str, object]:
        """The fields that a data set decides."""
        sizes = super().sizes_from(features)
        return sizes | ({"vector_size": features["vector"].size} if "vector" in features else {})


def transform_of(config: FlowConfig) -> tuple[Any, Any, int]:
    """(function, its inverse, parameters of a number)."""
    if config.transform == "affine":
        return affine, affine_inverse, 2
    return partial(spline, reach=config.reach), partial(spline_inverse, reach=config.reach), 3 * config.bins - 1


def _of_vector(config: FlowConfig, sizes: tuple[int, ...], rngs: nnx.Rngs) -> list[nnx.Param]:
    """Weights from the vector to the units of each layer; 0 to the last."""
    hidden = [normal(rngs, (config.vector_size, size), config.vector_size) for size in sizes[1:-1]]
    return [*hidden, zeros((config.vector_size, sizes[-1]))]


class Network(nnx.Module):
    """Parameters [B, O, P] of O numbers from the numbers x [B, I] and the vector; 0 at first. masked: output d sees the inputs before d."""

    def __init__(self, config: FlowConfig, inputs: int, outputs: int, rngs: nnx.Rngs, masked: bool):
        self.config, self.inputs, self.masked, last = config, inputs, masked, len(config.hidden)
        sizes = inputs, *config.hidden, outputs * transform_of(config)[2]
        self.layers = nnx.List([MaskedDense(a, b, rngs, strict=i == last) for i, (a, b) in enumerate(pairwise(sizes))])
        self.layers[last].kernel = zeros(self.layers[last].kernel.shape)
        self.given = nnx.List(_of_vector(config, sizes, rngs)) if config.vector_size else None

    def __call__(self, x: Float[Array, "B I"], vector: Float[Array, "B G"] | None) -> Float[Array, "B O P"]:
        size, numbers = transform_of(self.config)[2], [None] * (len(self.layers) + 1)
        if self.masked:
            places = np.arange(self.inputs) + 1
            units = unit_numbers(self.inputs, self.config.hidden, np.random.default_rng(0))
            numbers = [places, *units, np.repeat(places, size)]
        for i, layer in enumerate(self.layers):
            x = layer(jax.nn.silu(x) if i else x, numbers[i], numbers[i + 1])
            x = x if vector is None else x + dot(vector, self.given[i][...])
        return x.reshape(len(x), -1, size)


class Autoregressive(nnx.Module):
    """y_d = transform(x_d; parameters from x_<d), in reverse order if `index` is odd."""

    def __init__(self, config: FlowConfig, index: int, rngs: nnx.Rngs):
        d = prod(config.image_shape)
        self.config, self.step = config, -1 if index % 2 else 1
        self.network = Network(config, d, d, rngs, masked=True)

    def __call__(self, x: Float[Array, "B D"], vector=None) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
        """y and the log-determinant."""
        x = x[:, :: self.step]
        y, log_slope = transform_of(self.config)[0](x, self.network(x, vector))
        return y[:, :: self.step], log_slope.sum(-1)

    def inverse(self, y: Float[Array, "B D"], vector=None) -> Float[Array, "B D"]:
        """x, one number after the other."""
        y, inverse = y[:, :: self.step], transform_of(self.config)[1]

        def place(i, x):
            return jnp.where((jnp.arange(x.shape[1]) == i)[None], inverse(y, self.network(x, vector)), x)

        return jax.lax.fori_loop(0, y.shape[1], place, jnp.zeros_like(y))[:, :: self.step]


class Coupling(nnx.Module):
    """y = (x_kept, transform(x_rest; parameters from x_kept)), in reverse order if `index` is odd. Half is kept, rounded down."""

    def __init__(self, config: FlowConfig, index: int, rngs: nnx.Rngs):
        d = prod(config.image_shape)
        self.config, self.step, self.kept = config, -1 if index % 2 else 1, d // 2
        self.network = Network(config, self.kept, d - self.kept, rngs, masked=False)

    def _map(self, x, vector, function):
        kept, rest = jnp.split(x[:, :: self.step], [self.kept], axis=1)
        return kept, function(rest, self.network(kept, vector))

    def __call__(self, x: Float[Array, "B D"], vector=None) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
        """y and the log-determinant."""
        kept, (rest, log_slope) = self._map(x, vector, transform_of(self.config)[0])
        return jnp.concatenate([kept, rest], axis=1)[:, :: self.step], log_slope.sum(-1)

    def inverse(self, y: Float[Array, "B D"], vector=None) -> Float[Array, "B D"]:
        """x."""
        return jnp.concatenate(self._map(y, vector, transform_of(self.config)[1]), axis=1)[:, :: self.step]


class Rows(nnx.Module):
    """A parameter of a map for each row, [B, size]: the same for all, plus a linear function of the vector if there is one."""

    def __init__(self, first: nnx.Param, vector_size: int):
        self.own, self.given = first, zeros((vector_size, first.shape[0])) if vector_size else None

    def __call__(self, n: int, vector) -> Float[Array, "B I"]:
        own = jnp.broadcast_to(self.own[...], (n, self.own.shape[0]))
        return own if vector is None else own + dot(vector, self.given[...])


class Planar(nnx.Module):
    """y = x + u' tanh(w.x + b)."""

    def __init__(self, config: FlowConfig, index: int, rngs: nnx.Rngs):
        d, size = prod(config.image_shape), config.vector_size
        self.w, self.u, self.b = Rows(normal(rngs, (d,), d), size), Rows(zeros((d,)), size), Rows(zeros((1,)), size)

    def _parameters(self, n: int, vector):
        return self.w(n, vector), self.u(n, vector), self.b(n, vector)[:, 0]

    def __call__(self, x: Float[Array, "B D"], vector=None) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
        """y and the log-determinant."""
        return planar(x, *self._parameters(len(x), vector))

    def inverse(self, y: Float[Array, "B D"], vector=None) -> Float[Array, "B D"]:
        """x."""
        return planar_inverse(y, *self._parameters(len(y), vector))


class Radial(nnx.Module):
    """y = x + beta (x - c) / (alpha + |x - c|)."""

    def __init__(self, config: FlowConfig, index: int, rngs: nnx.Rngs):
        d, size = prod(config.image_shape), config.vector_size
        self.centre, self.a, self.b = Rows(normal(rngs, (d,), 1), size), Rows(zeros((1,)), size), Rows(zeros((1,)), size)

    def _parameters(self, n: int, vector):
        return self.centre(n, vector), self.a(n, vector)[:, 0], self.b(n, vector)[:, 0]

    def __call__(self, x: Float[Array, "B D"], vector=None) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
        """y and the log-determinant."""
        return radial(x, *self._parameters(len(x), vector))

    def inverse(self, y: Float[Array, "B D"], vector=None) -> Float[Array, "B D"]:
        """x."""
        return radial_inverse(y, *self._parameters(len(y), vector))


MAPS = {"autoregressive": Autoregressive, "coupling": Coupling, "planar": Planar, "radial": Radial}


class Flow(nnx.Module):
    """The density p(v). Methods raise ConfigError for what does not fit the config.

    vector: float [B, vector_size] or [vector_size]; None for a model without.
    """

    def __init__(self, config: FlowConfig, *, rngs: nnx.Rngs):
        d = prod(config.image_shape)
        self.config, self.mean, self.log_scale = config, zeros((d,)), zeros((d,))  # m and log s
        self.maps = nnx.List([MAPS[config.maps](config, index, rngs) for index in range(config.layers)])

    def initialise(self, batch: dict) -> "Flow":
        """A copy whose m and s are the mean and the deviation of a batch, for images with the noise; s = 1 where all are equal."""
        model, x = nnx.clone(self), self._checked(image_of(batch, self.config.modelled))
        mean, variance = x.mean(axis=0), x.var(axis=0)
        if self._discrete:
            mean, variance = mean + 0.5, variance + NOISE
        model.mean, model.log_scale = nnx.Param(mean), nnx.Param(0.5 * jnp.log(jnp.where(variance > 0, variance, 1)))
        return model

    def transform(self, v: Float[Array, "B ..."], vector=None) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
        """z and log |det dz/dv|."""
        y, vector = as_vectors(v, self.config), check_vector(vector, self.config.vector_size, v.shape[0])
        x = (y - self.mean[...][None]) * jnp.exp(-self.log_scale[...])[None]
        log_det = -self.log_scale[...].sum()
        for each in self.maps:
            x, more = each(x, vector)
            log_det += more
        return x, log_det

    def inverse(self, z: Float[Array, "B D"], vector=None) -> Float[Array, "B ..."]:
        """v, in the shape of an example."""
        vector = check_vector(vector, self.config.vector_size, z.shape[0])
        for each in reversed(self.maps):
            z = each.inverse(z, vector)
        v = z * jnp.exp(self.log_scale[...])[None] + self.mean[...][None]
        return v.reshape(-1, *self.config.image_shape)

    def log_density(self, v: Float[Array, "B ..."], vector=None) -> Float[Array, " B"]:
        """log p(v) in nats; v: points, or levels plus noise."""
        z, log_det = self.transform(v, vector)
        return log_det - 0.5 * ((z**2).sum(-1) + z.shape[1] * log(2 * pi))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """-mean log p: in nats of points, in bits/dim of images, which `key` draws the noise for."""
        config = self.config
        v, d = self._checked(image_of(batch, config.modelled)), prod(config.image_shape)
        v = v + jax.random.uniform(key, v.shape) if self._discrete else v
        nats = -self.log_density(v.reshape(-1, *config.image_shape), **given_to(config, batch)).mean()
        if not self._discrete:
            return nats, {"nats": nats}
        bits = bits_per_dim(nats, d)
        return bits, {"bits_per_dim_bound": bits, "nats_bound": nats}

    def sample(self, key: PRNGKeyArray, n: SupportsIndex, vector=None) -> Num[Array, "n ..."]:
        """n points float32 [n, d], or n images [n, H, W, C]: draws of v, rounded down and clipped."""
        check_key(key)
        return _sample(self, key, check_vector(vector, self.config.vector_size, check_count(n)), n=check_count(n))

    @property
    def _discrete(self) -> bool:
        return modelled(self.config).discrete

    def _checked(self, x) -> Float[Array, "B D"]:
        x = check_images(x, self.config.image_shape, self.config.levels) if self._discrete else jnp.asarray(x)
        return x.reshape(x.shape[0], -1).astype(jnp.float32)


@partial(jax.jit, static_argnames="n")
def _sample(model: Flow, key: PRNGKeyArray, vector, *, n: int) -> Array:
    config = model.config
    return to_examples(model.inverse(jax.random.normal(key, (n, prod(config.image_shape))), vector), config)
