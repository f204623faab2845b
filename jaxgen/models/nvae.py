"""NVAE: a deep hierarchical VAE (Vahdat and Kautz 2020, "NVAE: A Deep Hierarchical Variational Autoencoder").

The latents are groups z_1, ..., z_L, drawn one after the other from the coarsest resolution to the finest. All are diagonal Gaussians:

    p(z_l | z_<l) = N(m, s^2),   q(z_l | z_<l, x) = N(m + dm, (s ds)^2)                       residual posterior, section 3.3

    m, log s = head(h_l),   dm, log ds = head(features_l(x) + conv(h_l)),   h_{l+1} = cells(h_l + conv(z_l))

with every head squashed to (-5, 5) by 5 tanh(a / 5). h_1 is a learned constant. features_l come from an encoder that goes from the finest
resolution to the coarsest. The divergence of a group depends on the prior only through s:

    KL_l = 1/2 sum_i [dm_i^2 / s_i^2 + ds_i^2 - 2 log ds_i - 1]

    L = log p(x | z) - sum_l KL_l <= log p(x),         L_k = log (1/k) sum_i p(x, z_i) / q(z_i | x)        z ~ q(z | x)

Only the training differs from -L. With t the number of steps taken, in the first `warm_up` of them the KL is weighed, and balanced between
the groups; and there is a regulariser of the largest singular values of the convolutions' kernels W, and of the normalisations' gains g:

    loss = -log p(x | z) + b sum_l c_l KL_l + spectral (sum_W |W|_2 + sum_g max_j |g_j|),    b = min(1, (t + 1) / warm_up)
    c_l = n_l K_l / mean over groups of n_l K_l in the warm-up, then 1       n_l latents in the group; K_l its mean KL in the step before

all divided by H W C ln 2. |W|_2 is |W v| with v from power iteration, four iterations after each step.

Axes: B batch, H W C image, R resolutions, G groups of a resolution, Z channels of a group, P parameters of p(x | z), K importance samples.
Departures from the paper: group for batch normalisation (residual_cells.py says why); a learned constant prior for the first group, where
the paper has N(0, I); K_l of the step before, where the paper has that of the batch, so that a batch may be computed in parts; no
normalising flows in q; halvings are 2 x 2 convolutions of stride 2 and doublings the transposed ones, and z is added to h; sides that are
no multiple of the coarsest pixel are padded with level 0 for the encoder, and cropped after the decoder.
"""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import ClassVar, Literal, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_image_config, check_images, check_key, check_temperature, image_of
from jaxgen.data.features import OfImages
from jaxgen.distributions import bits_per_dim, importance_bound, row_sums
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import Conv, normal, scale_pixels
from jaxgen.layers.image_networks import likelihood_head, pad_below, whole_blocks
from jaxgen.layers.logistic_mixture import DiscretizedLogisticMixture
from jaxgen.layers.residual_cells import (
    Down,
    EncoderCell,
    GenerativeCell,
    Pointwise,
    Up,
    drawn,
    gains,
    matrices,
    norms,
    power_iteration,
)
from jaxgen.statistics import Statistic

POWER_ITERATIONS = 4


@dataclass(frozen=True)
class NVAEConfig(OfImages):
    """Sizes of an NVAE. Raises ConfigError for sizes out of range.

    The first entry of `widths` is the channels of the full resolution, every further one those of half the resolution before. The last
    len(groups) resolutions have latents.
    """

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    widths: tuple[int, ...] = (16, 32, 32)  # channels at each resolution, the finest first
    groups: tuple[int, ...] = (2, 2, 2)  # groups of latents at each of the last resolutions, the finest first
    latent: int = 4  # Z, channels of a group
    cells: int = 1  # residual cells between two groups
    expansion: int = 6  # the generative cell's inner channels as a multiple of its outer ones
    warm_up: int = 1000  # steps in which the KL is weighed and balanced in training; 0: none
    spectral: float = 0.01  # weight of the spectral regulariser in training
    likelihood: Literal["categorical", "logistic", "mixture"] = "categorical"  # of a pixel; categorical of 2 levels is Bernoulli
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; the distributions' parameters and the KL are float32
    num_classes: ClassVar[int] = 0  # an NVAE has no classes

    def __post_init__(self):
        check_image_config(self, {"latent": 1, "cells": 1, "expansion": 1, "warm_up": 0, "spectral": 0}, channels=None)
        if not self.widths or min(self.widths) < 1:
            raise ConfigError("widths", "positive sizes, one for every resolution", self.widths)
        if not self.groups or min(self.groups) < 1 or len(self.groups) > len(self.widths):
            raise ConfigError("groups", f"1 to {len(self.widths)} positive numbers, no more than widths", self.groups)
        if self.likelihood == "mixture" and self.image_shape[2] not in (1, 3):
            raise ConfigError("likelihood", "categorical or logistic, unless there are 1 or 3 channels", self.likelihood)

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(h, w) of every resolution, the finest first: the padded image's sides, then halves of them."""
        height, width = whole_blocks(self.image_shape, 2 ** (len(self.widths) - 1))
        return [(height >> r, width >> r) for r in range(len(self.widths))]

    @property
    def halvings(self) -> int:
        """Resolutions without latents, above those with latents."""
        return len(self.widths) - len(self.groups)


def residual_kl(shift: Float[Array, "*n"], log_ratio: Float[Array, "*n"], log_scale: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """KL(N(m + dm, (s ds)^2) || N(m, s^2)) in nats, from dm, log ds and log s."""
    return 0.5 * (shift**2 * jnp.exp(-2 * log_scale) + jnp.exp(2 * log_ratio) - 2 * log_ratio - 1)


def squashed_halves(x: Float[Array, "B h w E"]) -> list[Float[Array, "B h w Z"]]:
    """5 tanh(x / 5), slope 1 at 0, split into two: E = 2 Z."""
    return jnp.split(5 * jnp.tanh(x.astype(jnp.float32) / 5), 2, axis=-1)


def stacked(n: int, make, rngs: nnx.Rngs):
    """n modules `make(rngs)` as one whose arrays have a leading axis n, for `jax.lax.scan`."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), n))


class Features(nnx.Module):
    """The encoder's cells of a group."""

    def __init__(self, width: int, cells: int, rngs: nnx.Rngs):
        self.cells = nnx.List([EncoderCell(width, rngs) for _ in range(cells)])

    def __call__(self, x: Float[Array, "B h w E"]) -> Float[Array, "B h w E"]:
        for cell in self.cells:
            x = cell(x)
        return x


class Posterior(nnx.Module):
    """dm and log ds of a group, from its features and h. The head's zeros make q = p at first."""

    def __init__(self, width: int, latent: int, rngs: nnx.Rngs):
        self.mix, self.head = Pointwise(width, width, rngs), Conv(width, 2 * latent, 3, rngs)

    def __call__(self, features: Float[Array, "B h w E"], h: Float[Array, "B h w E"]) -> list[Float[Array, "B h w Z"]]:
        return squashed_halves(self.head(nnx.silu(features + self.mix(h)).astype(jnp.float32)))


class Group(nnx.Module):
    """The decoder's part of a group: its cells, the head of p(z | h), zero at first, and the way of z into h."""

    def __init__(self, width: int, config: NVAEConfig, rngs: nnx.Rngs):
        self.cells = nnx.List([GenerativeCell(width, config.expansion, rngs) for _ in range(config.cells)])
        self.head, self.merge = Pointwise(width, 2 * config.latent, rngs), Pointwise(config.latent, width, rngs)

    def prior(self, h: Float[Array, "B h w E"]) -> tuple[Array, Float[Array, "B h w Z"], Float[Array, "B h w Z"]]:
        """h after the cells, m and log s."""
        for cell in self.cells:
            h = cell(h)
        return h, *squashed_halves(self.head(nnx.silu(h).astype(jnp.float32)))

    def add(self, h: Float[Array, "B h w E"], z: Float[Array, "B h w Z"]) -> Float[Array, "B h w E"]:
        """h + conv(z)."""
        return h + self.merge(z.astype(h.dtype))


class Encoder(nnx.Module):
    """All that only q(z | x) uses: features of x, the finest resolution first, and the posteriors' heads."""

    def __init__(self, config: NVAEConfig, rngs: nnx.Rngs):
        widths, first = config.widths, config.halvings
        self.stem = Conv(config.image_shape[2], widths[0], 3, rngs)
        self.cells = nnx.List([EncoderCell(width, rngs) for width in widths[:first]])
        self.down = nnx.List([Down(a, b, rngs) for a, b in zip(widths, widths[1:], strict=False)])
        pairs = list(zip(config.groups, widths[first:], strict=True))
        self.features = nnx.List([stacked(n, lambda rngs, w=w: Features(w, config.cells, rngs), rngs) for n, w in pairs])
        self.posteriors = nnx.List([stacked(n, lambda rngs, w=w: Posterior(w, config.latent, rngs), rngs) for n, w in pairs])

    @jax.jit  # else its loop is compiled in every call
    def __call__(self, x: Float[Array, "B H W C"]) -> list[Float[Array, "_ B _ _ _"]]:
        """For each resolution with latents, the finest first, the features of its groups; within it the last computed come first."""
        x, found = self.stem(x), []
        for r in range(len(self.down) + 1):
            x = self.down[r - 1](x) if r else x
            if r < len(self.cells):
                x = self.cells[r](x)
            else:
                x, features = jax.lax.scan(lambda x, group: (group(x),) * 2, x, self.features[r - len(self.cells)])
                found.append(jnp.flip(features, 0))
        return found


class Decoder(nnx.Module):
    """All that p(x, z) uses."""

    def __init__(self, config: NVAEConfig, parameters: int, rngs: nnx.Rngs):
        widths, first = config.widths, config.halvings
        self.start = normal(rngs, (*config.grids[-1], widths[-1]), 1)
        pairs = list(zip(config.groups, widths[first:], strict=True))
        self.groups = nnx.List([stacked(n, lambda rngs, w=w: Group(w, config, rngs), rngs) for n, w in pairs])
        self.up = nnx.List([Up(b, a, rngs) for a, b in zip(widths, widths[1:], strict=False)])
        self.cells = nnx.List([GenerativeCell(width, config.expansion, rngs) for width in widths[:first]])
        self.out = Conv(widths[0], parameters, 3, rngs)


class Drawn(NamedTuple):
    """What a pass from the coarsest group to the finest gives; the groups in that order in kl and log_weight."""

    parameters: Array  # of p(x | z), [B, H, W, C, P]; for the mixture [B, H, W, P]
    z: list[Array]  # for each resolution, the coarsest first, [G, B, h, w, Z]
    kl: Array | None  # nats [L, B], in closed form given the z before; None where z is not from q
    log_weight: Array | None  # log p(z_l) - log q(z_l), nats [L, B]; None where z is not from q


class NVAE(nnx.Module):
    """Encoder and decoder. Methods raise ConfigError for images or latents that do not fit the config."""

    def __init__(self, config: NVAEConfig, *, rngs: nnx.Rngs):
        self.config, channels = config, config.image_shape[2]
        if config.likelihood == "mixture":
            self.head = DiscretizedLogisticMixture(config.levels, channels)
        else:
            self.head = likelihood_head(config.likelihood, config.levels)
        parameters = self.head.size * (channels if self.head.channelwise else 1)
        self.encoder, self.decoder = drawn(lambda rngs: (Encoder(config, rngs), Decoder(config, parameters, rngs)), rngs.params())
        shapes = [(n, size) for n, _, size in (w.shape for w in matrices(self))]
        self.vectors = nnx.List([nnx.Variable(jnp.full(shape, shape[1] ** -0.5, jnp.float32)) for shape in shapes])
        self.steps = nnx.Variable(jnp.zeros(()))
        self.kl = nnx.Variable(jnp.zeros(sum(config.groups)))

    def encode(self, image: UInt[Array, "B H W C"]) -> Float[Array, "B Z"]:
        """z as one vector, the coarsest group first: every group the mean of its posterior, given the means of the groups before."""
        z = self._top_down(image.shape[0], features=self._features(image)).z
        return jnp.concatenate([jnp.moveaxis(one, 1, 0).reshape(image.shape[0], -1) for one in z], axis=1)

    def groups(self, z: Float[Array, "B Z"]) -> list[Float[Array, "_ B _ _ _"]]:
        """A vector of `encode` as its groups: for each resolution, the coarsest first, [G, B, h, w, latent]."""
        config = self.config
        shapes = [(n, *grid, config.latent) for n, grid in zip(config.groups, config.grids[config.halvings :], strict=True)][::-1]
        ends = np.cumsum([prod(shape) for shape in shapes])
        if z.shape[1] != ends[-1]:
            raise ConfigError("z", f"[B, {ends[-1]}]", list(z.shape))
        parts = jnp.split(z, ends[:-1], axis=1)
        return [jnp.moveaxis(part.reshape(-1, *shape), 0, 1) for part, shape in zip(parts, shapes, strict=True)]

    def decode(self, z: Float[Array, "B Z"]) -> Float[Array, "B H W ..."]:
        """Parameters of p(x | z), float32."""
        return self._top_down(z.shape[0], z=self.groups(z)).parameters

    def elbo(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray) -> Float[Array, " B"]:
        """L in nats of one z for each image."""
        drawn = self._top_down(image.shape[0], key, self._features(image))
        return self._log_likelihood(image, drawn.parameters) - drawn.kl.sum(0)

    def importance_bound(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, k: int) -> Float[Array, " B"]:
        """L_k in nats. Its expectation does not fall with k, and tends to log p(x). The k samples are computed one after the other."""
        return self._importance_bound(image, self._features(image), jax.random.split(key, check_count(k, "k")))

    @jax.jit  # else its loop is compiled in every call
    def _importance_bound(self, image, features, keys) -> Float[Array, " B"]:
        def log_weight(key):
            drawn = self._top_down(image.shape[0], key, features)
            return self._log_likelihood(image, drawn.parameters) + drawn.log_weight.sum(0)

        return importance_bound(jax.lax.map(log_weight, keys))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict, dict]:
        """The loss above in bits/dim. Metrics: the bound L as bits_per_dim_bound and nats_bound; the mean KL of every group as nats_kl_1,
        ..., the coarsest first; and spectral, the sums that the regulariser weighs."""
        image, config, size = image_of(batch), self.config, prod(self.config.image_shape)
        drawn = self._top_down(image.shape[0], key, self._features(image))
        kl, likelihood = drawn.kl.mean(1), self._log_likelihood(image, drawn.parameters).mean()
        spectral = sum(norms(w, v[...]).sum() for w, v in zip(matrices(self), self.vectors, strict=True))
        spectral = spectral + sum(jnp.abs(gain).max(-1).sum() for gain in gains(self))
        loss = (self._kl_weights() * kl).sum() - likelihood + config.spectral * spectral
        nats = kl.sum() - likelihood
        metrics = {"bits_per_dim_bound": bits_per_dim(nats, size), "nats_bound": nats, "spectral": spectral}
        metrics |= {f"nats_kl_{i + 1}": kl[i] for i in range(len(kl))}
        return bits_per_dim(loss, size), metrics, {"kl": Statistic(kl, "mean")}

    def after_update(self, statistics: dict, key: PRNGKeyArray) -> "NVAE":
        """The model with the power iteration, the count of steps and the KL of the groups advanced."""
        vectors = power_iteration(matrices(self), [v[...] for v in self.vectors], POWER_ITERATIONS)
        for old, new in zip(self.vectors, vectors, strict=True):
            old[...] = new
        self.steps[...], self.kl[...] = self.steps[...] + 1, statistics["kl"]
        return self

    def sample(self, key: PRNGKeyArray, n: SupportsIndex, temperature=1.0) -> UInt[Array, "n H W C"]:
        """n images: z from the prior, whose scales are multiplied by the temperature, then every pixel from p(x | z)."""
        check_key(key)
        n, (key_z, key_x) = check_count(n), jax.random.split(key)
        parameters = self._top_down(n, key_z, temperature=check_temperature(temperature)).parameters
        return self.head.sample(parameters, self.head.noise(key_x, (n, *self.config.image_shape))).astype(self.head.dtype)

    def reconstruct(self, image: UInt[Array, "B H W C"]) -> UInt[Array, "B H W C"]:
        """`picture` of the z of `encode`."""
        return self._best(self._top_down(image.shape[0], features=self._features(image)).parameters)

    def picture(self, z: Float[Array, "B Z"]) -> UInt[Array, "B H W C"]:
        """For every pixel the most probable level under p(x | z); for the mixture the mean of its likeliest component."""
        return self._best(self.decode(z))

    def _best(self, parameters: Float[Array, "B H W ..."]) -> UInt[Array, "B H W C"]:
        if self.config.likelihood != "mixture":
            return self.head.best(parameters).astype(self.head.dtype)
        nothing = jnp.zeros((*parameters.shape[:-1], self.head.components + self.config.image_shape[2]))
        return self.head.sample(parameters, nothing).astype(self.head.dtype)

    def _kl_weights(self) -> Float[Array, " L"]:
        """b c_l of each group, the coarsest first."""
        config, step = self.config, self.steps[...] + 1
        if not config.warm_up:
            return jnp.ones(sum(config.groups))
        grids = list(zip(config.groups, config.grids[config.halvings :], strict=True))[::-1]
        balance = self.kl[...] * jnp.array([prod(grid) for n, grid in grids for _ in range(n)], jnp.float32)
        mean = balance.mean()
        balance = jnp.where((step < config.warm_up) & (mean > 0), balance / jnp.where(mean > 0, mean, 1), 1)
        return jnp.minimum(step / config.warm_up, 1) * balance

    def _features(self, image: UInt[Array, "B H W C"]) -> list[Float[Array, "_ B _ _ _"]]:
        config = self.config
        image = check_images(image, config.image_shape, config.levels)
        return self.encoder(scale_pixels(pad_below(image, config.grids[0]), config.levels, config.dtype))

    @partial(jax.jit, static_argnames="n")  # else its loop is compiled in every call
    def _top_down(self, n: int, key=None, features=None, z=None, temperature=1.0) -> Drawn:
        """The groups from the coarsest to the finest, with z as given, or from q where there are features of x, else from p.

        The normal draws are multiplied by the temperature; without a key they are 0.
        """
        config, decoder, found = self.config, self.decoder, []
        shapes = [(count, n, *grid, config.latent) for count, grid in zip(config.groups, config.grids[config.halvings :], strict=True)]
        noises = None if key is None else self._noise(key, shapes, temperature)
        h = jnp.broadcast_to(decoder.start[...].astype(config.dtype), (n, *decoder.start.shape))

        def group(h, inputs):
            module, posterior, feature, e, z = inputs
            h, mean, log_scale = module.prior(h)
            if z is not None:
                return module.add(h, z), (z, None, None)
            shift, log_ratio = (0.0, 0.0) if posterior is None else posterior(feature, h)
            e = jnp.zeros_like(mean) if e is None else e
            z = mean + shift + jnp.exp(log_scale + log_ratio) * e
            if posterior is None:
                return module.add(h, z), (z, None, None)
            weight = log_ratio + 0.5 * (e**2 - ((z - mean) * jnp.exp(-log_scale)) ** 2)
            sums = (term.sum((1, 2, 3)) for term in (residual_kl(shift, log_ratio, log_scale), weight))
            return module.add(h, z), (z, *sums)

        for r in reversed(range(len(config.widths))):
            at = r - config.halvings
            if at >= 0:
                source = (None, None) if features is None else (self.encoder.posteriors[at], features[at])
                noise = None if noises is None else noises[at]
                given = None if z is None else z[len(config.groups) - 1 - at]
                h, out = jax.lax.scan(group, h, (decoder.groups[at], *source, noise, given))
                found.append(out)
            else:
                h = decoder.cells[r](h)
            h = decoder.up[r - 1](h) if r else h
        parameters = self._parameters(h)
        drawn, *nats = zip(*found, strict=True)
        return Drawn(parameters, list(drawn), *(None if part[0] is None else jnp.concatenate(part) for part in nats))

    @staticmethod
    def _noise(key: PRNGKeyArray, shapes: list[tuple[int, ...]], temperature) -> list[Float[Array, "_ B _ _ Z"]]:
        """Normal draws of these shapes, times the temperature; one draw cut into parts, since XLA compiles every draw by itself."""
        sizes = np.cumsum([prod(shape) for shape in shapes])
        parts = jnp.split(temperature * jax.random.normal(key, (int(sizes[-1]),)), sizes[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _parameters(self, h: Float[Array, "B h w E"]) -> Float[Array, "B H W ..."]:
        height, width, channels = self.config.image_shape
        out = self.decoder.out(nnx.silu(h).astype(jnp.float32))[:, :height, :width]
        return out.reshape(-1, height, width, channels, self.head.size) if self.head.channelwise else out

    def _log_likelihood(self, image: UInt[Array, "B H W C"], parameters: Float[Array, "B H W ..."]) -> Float[Array, " B"]:
        return row_sums(self.head.log_prob(parameters, check_images(image, self.config.image_shape, self.config.levels)))
