"""Auto-encoders with one network: the other half is a search for what the network would map to the given.

    v | u ~ N(n(u), sigma^2 I),   u ~ N(u_0, I),        U(u) = |v - n(u)|^2 / (2 sigma^2) + |u - u_0|^2 / 2
    u_{t+1} = u_t - rate grad U(u_t) + sqrt(2 rate temperature) noise,   noise ~ N(0, I),   t = 0 .. steps-1

U is -log p(u | v) up to a constant. With temperature 0 the search is gradient descent to a mode of p(u | v), with temperature 1 it is
Langevin dynamics, whose draws follow p(u | v) for small rates and many steps. x is the image scaled to [0, 1], z the code:

    implicit = "encoder":   the network is the decoder, x = n(z); an image is encoded by a search for u = z from u_0 = 0
    implicit = "decoder":   the network is the encoder, z = n(x); a code is decoded by a search for u = x from u_0, the mean of the images

Implicit encoder: every step searches codes z with the decoder held, then lowers |x - n(z)|^2 / D with the codes held ("alternating
back-propagation", Han, Lu, Zhu, Wu 2017). Implicit decoder: every step draws a code z ~ N(n(x), sigma^2 I) and the path x_1 .. x_T of its
search. The cost c = |x - x_T|^2 / D is a number that the search returns, and nothing is differentiated through the search. What the
parameters change is how probable a code and a path are, so the gradient is that of REINFORCE (Williams 1992),

    grad E c = E (c - b) grad [log N(z; n(x), sigma^2 I) + sum_t log N(x_{t+1}; x_t - rate grad U(x_t), 2 rate temperature I)]

where b is the mean cost of the other draws for the same image, which changes the variance and not the mean. Without a key, as in
evaluation, the search has no noise and a code is n(x).

Axes: B batch, H W C image, Z code, D = H W C, T steps of the search, K draws. Departures from Han et al.: the search begins anew at u_0 for
every batch, where theirs goes on from the codes of the last epoch; silu for ReLU.
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_image_config, check_images, check_key, image_of
from jaxgen.data.features import OfImages, smallest_unsigned
from jaxgen.distributions import gaussian_log_prob
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import Linear
from jaxgen.layers.image_networks import MLP, ConvDecoder, ConvEncoder, check_hidden
from jaxgen.statistics import Statistic

DECAY = 0.99
"""Of the averages of codes and images, per step."""


def reinforce(cost: Float[Array, "K B"], log_prob: Float[Array, "K B"]) -> Float[Array, ""]:
    """The mean cost, whose gradient is the mean of (c - b) grad log p, b the mean cost of the other draws for the same image (K = 1: 0).

    cost: of each of K draws; log_prob: log p of each draw, a function of the parameters. No gradient passes through `cost`.
    """
    cost, draws = jax.lax.stop_gradient(cost), cost.shape[0]
    baseline = (cost.sum(0, keepdims=True) - cost) / max(draws - 1, 1)
    surrogate = ((cost - baseline) * log_prob).mean()
    return cost.mean() + surrogate - jax.lax.stop_gradient(surrogate)


@dataclass(frozen=True)
class ImplicitAutoencoderConfig(OfImages):
    """Sizes and search of an implicit auto-encoder. Raises ConfigError for values out of range."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    latent: int = 16  # Z, size of the code
    # units of each hidden layer (mlp; none: a linear network), or channels at 1/2 and 1/4 of the size (conv); a decoder's reversed
    hidden: tuple[int, ...] = (256, 256)
    architecture: Literal["mlp", "conv"] = "mlp"  # fully connected layers, or convolutions
    implicit: Literal["encoder", "decoder"] = "encoder"  # the half that is a search and has no network
    steps: int = 20  # T, of a search
    rate: float = 0.002  # factor of the gradient of U in a step of the search
    temperature: float = 1.0  # of the search in training: 0 gradient descent, 1 Langevin; above 0 for an implicit decoder
    sigma: float = 0.1  # standard deviation of the network's output
    draws: int = 4  # K, of a code and a path for each image in training (implicit decoder)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; codes, images and errors are float32
    num_classes: ClassVar[int] = 0  # it has no classes

    def __post_init__(self):
        check_image_config(self, {"latent": 1, "steps": 1, "temperature": 0, "draws": 1}, channels=None)
        check_hidden(self.image_shape, self.hidden, self.architecture)
        if not (self.rate > 0 and self.sigma > 0):
            raise ConfigError("rate, sigma", "positive numbers", (self.rate, self.sigma))
        if self.implicit == "decoder" and self.temperature == 0:
            raise ConfigError("temperature", "above 0 for an implicit decoder: REINFORCE needs random steps", self.temperature)


class ImplicitAutoencoder(nnx.Module):
    """One network, n of the module's text, and the search. Methods raise ConfigError for images that do not fit the config."""

    def __init__(self, config: ImplicitAutoencoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        height, width, channels = config.image_shape
        sizes = (prod(config.image_shape), *config.hidden, config.latent)
        if config.architecture == "mlp":
            self.network = MLP(sizes if config.implicit == "decoder" else tuple(reversed(sizes)), rngs)
        elif config.implicit == "encoder":
            self.network = ConvDecoder(config.latent, channels, config.image_shape, config.hidden, rngs)
        else:
            self.network = ConvEncoder(config.image_shape, config.hidden, rngs, config.dtype)
            self.code = Linear(height // 4 * (width // 4) * config.hidden[1], config.latent, rngs)
        self.code_mean = nnx.BatchStat(jnp.zeros(config.latent))
        self.code_square = nnx.BatchStat(jnp.ones(config.latent))
        self.image_mean = nnx.BatchStat(jnp.full(config.image_shape, 0.5, jnp.float32))

    def encode(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray | None = None) -> Float[Array, "B Z"]:
        """The codes: n(x), or the end of a search. key: of the noise of the search or of the code; None: without noise."""
        return self._encode(self._scale(image), key)

    def decode(self, z: Float[Array, "B Z"], key: PRNGKeyArray | None = None) -> Float[Array, "B H W C"]:
        """n(z), or the end of a search; real numbers, those of images near [0, 1]. key: of the noise of the search; None: without."""
        return self._network(z) if self.config.implicit == "encoder" else self._search(z, key)[-1]

    def squared_error(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray | None = None) -> Float[Array, " B"]:
        """|x - x'|^2 / D of every image, x scaled to [0, 1], x' its decoded code. key: as in `encode` and `decode`."""
        x, keys = self._scale(image), (None, None) if key is None else jax.random.split(key)
        return _mean_square(x - self.decode(self._encode(x, keys[0]), keys[1]))

    def reconstruct(self, image: UInt[Array, "B H W C"]) -> UInt[Array, "B H W C"]:
        """The decoded code of every image, rounded to the nearest level."""
        return self.picture(self.encode(image))

    def picture(self, z: Float[Array, "B Z"]) -> UInt[Array, "B H W C"]:
        """The decoded codes, without noise, rounded to the nearest level."""
        return self._levels(self.decode(z))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict, dict]:
        """The mean squared error of a batch {"image"}, of images of drawn codes; the statistics are means of codes and images."""
        x, frozen = self._scale(image_of(batch)), jax.lax.stop_gradient(self)
        if self.config.implicit == "encoder":
            z = frozen._encode(x, key)
            error = _mean_square(x - self._network(z)).mean()
        else:
            z, costs, log_probs = jax.vmap(lambda key: self._draw(frozen, x, key))(jax.random.split(key, self.config.draws))
            z, error = z.reshape(-1, self.config.latent), reinforce(costs, log_probs)
        means = {"code_mean": z.mean(0), "code_square": (z**2).mean(0), "image_mean": x.mean(0)}
        return error, {"squared_error": error}, {name: Statistic(value, "mean") for name, value in means.items()}

    def after_update(self, statistics: dict, key: PRNGKeyArray) -> "ImplicitAutoencoder":
        """The model with its averages moved by 1 - DECAY towards those of the batch."""
        for name, value in statistics.items():
            average = getattr(self, name)
            average[...] = DECAY * average[...] + (1 - DECAY) * value
        return self

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> UInt[Array, "n H W C"]:
        """n decoded random codes, z ~ N(mean, diag variance) of the training's codes, rounded to levels."""
        check_key(key)
        variance = jnp.maximum(self.code_square[...] - self.code_mean[...] ** 2, 0)
        noise = jax.random.normal(key, (check_count(n), self.config.latent))
        return self.picture(self.code_mean[...][None] + jnp.sqrt(variance)[None] * noise)

    def _network(self, u: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """n(u): images of codes, or codes of images."""
        u = u.astype(self.config.dtype)
        if self.config.implicit == "encoder":
            return self.network(u).reshape(-1, *self.config.image_shape)
        if self.config.architecture == "mlp":
            return self.network(u.reshape(u.shape[0], -1))
        return self.code(self.network(u).astype(jnp.float32))

    def _encode(self, x: Float[Array, "B H W C"], key: PRNGKeyArray | None) -> Float[Array, "B Z"]:
        if self.config.implicit == "encoder":
            return self._search(x, key)[-1]
        z = self._network(x)
        return z if key is None else z + self.config.sigma * jax.random.normal(key, z.shape)

    def _move(self, u: Float[Array, "B ..."], v: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """u - rate grad U(u)."""

        def energy(u):
            return ((v - self._network(u)) ** 2).sum() / (2 * self.config.sigma**2) + ((u - self._start()) ** 2).sum() / 2

        return u - self.config.rate * jax.grad(energy)(u)

    @jax.jit  # else its loop is compiled in every call
    def _search(self, v: Float[Array, "B ..."], key: PRNGKeyArray | None) -> Float[Array, "T B ..."]:
        """The path u_1 .. u_T of the search for u given v. key: of its noise; None: without."""
        start, spread = self._start(), (2 * self.config.rate * self.config.temperature) ** 0.5
        start = jnp.broadcast_to(start, (v.shape[0], *start.shape[1:]))

        def step(u, key):
            u = self._move(u, v)
            u = u if key is None or spread == 0 else u + spread * jax.random.normal(key, u.shape)
            return u, u

        keys = None if key is None else jax.random.split(key, self.config.steps)
        return jax.lax.scan(step, start, keys, length=self.config.steps)[1]

    def _draw(self, frozen, x: Float[Array, "B H W C"], key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        """A code [B, Z] and its image by the frozen weights: code, cost [B], and log p [B] of code and path by the model's weights."""
        key_z, key_x = jax.random.split(key)
        z = frozen._encode(x, key_z)
        path = frozen._search(z, key_x)
        before = jnp.concatenate([jnp.broadcast_to(frozen._start(), x.shape)[None], path[:-1]])
        moved = jax.vmap(lambda u: self._move(u, z))(before)
        spread = jnp.log(2 * self.config.rate * self.config.temperature)
        of_path = gaussian_log_prob(moved, jnp.full_like(moved, spread), path).sum((0, *range(2, path.ndim)))
        of_code = gaussian_log_prob(self._network(x), jnp.full_like(z, 2 * jnp.log(self.config.sigma)), z).sum(-1)
        return z, _mean_square(x - path[-1]), of_code + of_path

    def _start(self) -> Float[Array, "1 ..."]:
        """u_0, where a search begins."""
        return jnp.zeros((1, self.config.latent)) if self.config.implicit == "encoder" else self.image_mean[...][None]

    def _scale(self, image: UInt[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return check_images(image, self.config.image_shape, self.config.levels).astype(jnp.float32) / (self.config.levels - 1)

    def _levels(self, x: Float[Array, "B H W C"]) -> UInt[Array, "B H W C"]:
        top = self.config.levels - 1
        return jnp.clip(jnp.round(x * top), 0, top).astype(smallest_unsigned(self.config.levels))


def _mean_square(x: Float[Array, "B H W C"]) -> Float[Array, " B"]:
    return (x**2).reshape(x.shape[0], -1).mean(-1)
