"""VQ-VAE: an auto-encoder whose code is a small grid of integers (van den Oord, Vinyals, Kavukcuoglu 2017, "Neural Discrete Representation
Learning").

    z_e = f(x)  [h, w, D],    k_ij = argmin_k |z_e,ij - e_k|,    z_q,ij = e_{k_ij},      p(x | z_q): one distribution for every pixel

    loss = -log p(x | z_e + sg(z_q - z_e)) / (H W C ln 2)  +  commitment * mean (z_e - sg(z_q))^2         eq. 3, in bits/dim

sg stops the gradient: on its way back the gradient of z_q goes to z_e unchanged ("straight-through"). The codebook e gets none; its codes
are averages of the encodings that chose them (appendix A.1), of a batch with n_k encodings of sum s_k:

    N_k <- decay N_k + (1 - decay) n_k,    m_k <- decay m_k + (1 - decay) s_k,    e_k = m_k / N_k

A code whose N_k is below `restart` times the mean of all N is dead: it restarts at a random encoding of the batch, with the mean N. The
first codes are encodings of the first batch. Images whose sides are no multiples of 2^halvings are padded with level 0 below and on the
right for the encoder, and cropped after the decoder.

With a uniform prior over the K codes of each place, log p(x) >= log p(x | z_q) - h w ln K: `elbo`. It is exact only if no other grid of
codes could have made x. A learned prior makes it larger (vqvae2.py); `sample` here draws codes uniformly.

Axes: B batch, H W C image, h w grid of codes, K codes, D width of a code, P parameters of p(x | z_q) for each pixel and channel. Departures
from the paper: the likelihood is of discrete levels, where the paper has a Gaussian; restarts; and the first codes.
"""

from dataclasses import dataclass
from math import log, prod
from typing import ClassVar, Literal, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_image_config, check_images, check_key, image_of
from jaxgen.data.features import OfImages, smallest_unsigned
from jaxgen.distributions import bits_per_dim, row_sums
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import EXACT, Conv, ConvTranspose, draw, scale_pixels
from jaxgen.layers.image_networks import likelihood_head, pad_below, whole_blocks
from jaxgen.statistics import Statistic

LEAST_COUNT = 1e-6
"""N_k of a code that is never chosen, where `restart` is 0; in float32 it would be 0 after some thousand steps."""


@dataclass(frozen=True)
class VQVAEConfig(OfImages):
    """Sizes of a VQ-VAE. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    codes: int = 64  # K, number of codes in the codebook
    code_width: int = 16  # D, size of a code
    halvings: int = 2  # the grid of codes has H / 2^halvings x W / 2^halvings places, rounded up
    width: int = 64  # channels of the convolutions
    blocks: int = 2  # residual blocks of the encoder and of the decoder
    commitment: float = 0.25  # weight of the distance of an encoding from its code
    decay: float = 0.99  # of the averages N and m, per step
    restart: float = 0.1  # a code is dead below this share of the mean use; 0: none restarts
    likelihood: Literal["categorical", "logistic"] = "categorical"  # of a pixel; categorical of 2 levels is Bernoulli
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; distances and parameters of p(x | z) are float32
    num_classes: ClassVar[int] = 0  # a VQ-VAE has no classes

    def __post_init__(self):
        least = {"code_width": 1, "halvings": 1, "width": 2, "blocks": 0, "commitment": 0, "restart": 0}
        check_image_config(self, least, channels=None)
        check_codes(self)

    @property
    def sides(self) -> tuple[int, int]:
        """(H, W) of the padded images."""
        return whole_blocks(self.image_shape, 2**self.halvings)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the codes."""
        return self.sides[0] // 2**self.halvings, self.sides[1] // 2**self.halvings


def check_codes(config) -> None:
    """ConfigError unless the number of codes and the decay of their averages are in range."""
    if not 2 <= config.codes <= 65536:
        raise ConfigError("codes", "2..65536", config.codes)
    if not 0 <= config.decay < 1:
        raise ConfigError("decay", "0 or more and less than 1", config.decay)


class ResidualBlock(nnx.Module):
    """x + conv_1x1(relu(conv_3x3(relu(x)))), half as many channels inside."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.wide = Conv(width, width // 2, 3, rngs)
        self.narrow = Conv(width // 2, width, 1, rngs)

    def __call__(self, x: Float[Array, "B h w E"]) -> Float[Array, "B h w E"]:
        return x + self.narrow(nnx.relu(self.wide(nnx.relu(x))))


class Encoder(nnx.Module):
    """`halvings` 4 x 4 convolutions of stride 2, each with relu, then residual blocks and a 1 x 1 convolution to the width of a code."""

    def __init__(self, features: int, halvings: int, width: int, blocks: int, code_width: int, rngs: nnx.Rngs):
        sizes = [features] + [width] * halvings
        self.down = nnx.List([Conv(a, width, 4, rngs, stride=2) for a in sizes[:-1]])
        self.blocks = nnx.List([ResidualBlock(width, rngs) for _ in range(blocks)])
        self.out = Conv(width, code_width, 1, rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        for layer in self.down:
            x = nnx.relu(layer(x))
        for block in self.blocks:
            x = block(x)
        return self.out(nnx.relu(x) if len(self.blocks) else x)


class Decoder(nnx.Module):
    """A 3 x 3 convolution, residual blocks, `halvings` transposed 4 x 4 convolutions of stride 2, each with relu, a 3 x 3 convolution."""

    def __init__(self, code_width: int, halvings: int, width: int, blocks: int, features: int, rngs: nnx.Rngs):
        self.start = Conv(code_width, width, 3, rngs)
        self.blocks = nnx.List([ResidualBlock(width, rngs) for _ in range(blocks)])
        self.up = nnx.List([ConvTranspose(width, width, 4, 2, rngs) for _ in range(halvings)])
        self.out = Conv(width, features, 3, rngs)

    def __call__(self, z: Float[Array, "B h w D"]) -> Float[Array, "B H W E"]:
        """Float32."""
        x = self.start(z)
        for block in self.blocks:
            x = block(x)
        for layer in self.up:
            x = nnx.relu(layer(nnx.relu(x)))
        return self.out(x.astype(jnp.float32))


class Codebook(nnx.Module):
    """K codes e_k = m_k / N_k of D numbers; `count` is N [K], `total` is m [K, D]."""

    def __init__(self, codes: int, width: int, rngs: nnx.Rngs):
        self.count = nnx.BatchStat(jnp.ones(codes))
        self.total = nnx.BatchStat(draw(jax.random.normal, rngs.params(), (codes, width)))

    def begin(self, z: Float[Array, "*shape D"], key: PRNGKeyArray) -> None:
        """The codes become encodings z at random places."""
        flat, codes = z.reshape(-1, z.shape[-1]), self.count.shape
        self.total[...] = flat[jax.random.randint(key, codes, 0, flat.shape[0])]
        self.count[...] = jnp.ones(codes)

    def codes(self) -> Float[Array, "K D"]:
        """All codes e."""
        return self.total[...] / self.count[...][:, None]

    def nearest(self, z: Float[Array, "*shape D"]) -> Integer[Array, "*shape"]:
        """argmin_k |z - e_k|^2 = argmin_k |e_k|^2 - 2 z e_k, in float32 also where z is bfloat16; the first of equals."""
        codes = self.codes()
        products = jnp.matmul(z.astype(jnp.float32), codes.T, precision=EXACT)
        square = (codes**2).sum(-1).reshape((1,) * (z.ndim - 1) + (-1,))
        return jnp.argmin(square - 2 * products, axis=-1)

    def at(self, k: Integer[Array, "*shape"]) -> Float[Array, "*shape D"]:
        """e_k."""
        return jnp.take(self.codes(), k, axis=0)

    def statistics(self, z: Float[Array, "N D"], k: Integer[Array, " N"], key: PRNGKeyArray) -> dict[str, Statistic]:
        """n_k, s_k and K random encodings, of the encodings z with the codes k."""
        chosen = jax.nn.one_hot(k, self.count.shape[0])
        rows = jax.random.randint(key, (self.count.shape[0],), 0, z.shape[0])
        sums = jnp.matmul(chosen.T, z, precision=EXACT)
        return {"count": Statistic(chosen.sum(0)), "total": Statistic(sums), "candidates": Statistic(z[rows], "first")}

    def advance(self, statistics: dict, decay: float, restart: float) -> None:
        """The averages moved by 1 - decay towards those of the batch; dead codes restart at candidates.

        N and m of a code that is not chosen shrink alike, which leaves e as it is. At LEAST_COUNT they stay: at 0 there is no e.
        """
        count = decay * self.count[...] + (1 - decay) * statistics["count"]
        total = decay * self.total[...] + (1 - decay) * statistics["total"]
        stays = (statistics["count"] == 0) & (count < LEAST_COUNT)
        count, total = jnp.where(stays, self.count[...], count), jnp.where(stays[:, None], self.total[...], total)
        mean = count.mean()
        dead = count < restart * mean
        self.count[...] = jnp.where(dead, mean, count)
        self.total[...] = jnp.where(dead[:, None], mean * statistics["candidates"], total)


def perplexity(statistics: dict[str, Statistic]) -> Float[Array, ""]:
    """exp of the entropy of the codes that a batch's encodings chose: K if all are used alike."""
    count = statistics["count"].value
    share = count / count.sum()
    return jnp.exp(-(share * jnp.log(jnp.maximum(share, 1e-30))).sum())


class VQVAE(nnx.Module):
    """Encoder, codebook and decoder. Methods raise ConfigError for images or codes that do not fit the config."""

    def __init__(self, config: VQVAEConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, likelihood_head(config.likelihood, config.levels)
        channels = config.image_shape[2]
        self.encoder = Encoder(channels, config.halvings, config.width, config.blocks, config.code_width, rngs)
        self.decoder = Decoder(config.code_width, config.halvings, config.width, config.blocks, channels * self.head.size, rngs)
        self.codebook = Codebook(config.codes, config.code_width, rngs)

    def initialise(self, batch: dict) -> "VQVAE":
        """The model whose first codes are encodings of the batch, at random places."""
        self.codebook.begin(self._encodings(jnp.asarray(image_of(batch))), jax.random.key(0))
        return self

    def encode(self, image: UInt[Array, "B H W C"]) -> UInt[Array, "B h w"]:
        """The codes k, in the smallest unsigned type for K."""
        return self.codebook.nearest(self._encodings(image)).astype(smallest_unsigned(self.config.codes))

    def decode(self, codes: Integer[Array, "B h w"]) -> Float[Array, "B H W C P"]:
        """Parameters of p(x | z_q), float32."""
        if codes.ndim != 3 or codes.shape[1:] != self.config.grid:
            raise ConfigError("codes", f"shape [B, {self.config.grid[0]}, {self.config.grid[1]}]", list(codes.shape))
        return self._decode(self.codebook.at(codes.astype(jnp.int32)))

    def elbo(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray) -> Float[Array, " B"]:
        """log p(x | z_q) - h w ln K in nats, at most log p(x) under the uniform prior. Nothing is drawn: `key` is not used."""
        return self._log_likelihood(image, self._decode(self.codebook.at(self.encode(image).astype(jnp.int32)))) - self._uniform

    def reconstruct(self, image: UInt[Array, "B H W C"]) -> UInt[Array, "B H W C"]:
        """For every pixel the most probable level under p(x | z_q)."""
        return self.head.best(self.decode(self.encode(image))).astype(self.head.dtype)

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict, dict]:
        """The loss above, in bits/dim. Metrics: the bound as bits_per_dim_bound and nats_bound, commitment, the mean squared distance, and
        perplexity, exp of the entropy of the batch's codes: K if all are used alike."""
        image, config = image_of(batch), self.config
        z = self._encodings(image)
        codes = self.codebook.nearest(jax.lax.stop_gradient(z))
        chosen = self.codebook.at(codes)
        nats = -self._log_likelihood(image, self._decode(z + jax.lax.stop_gradient(chosen - z))).mean()
        commitment = ((z - jax.lax.stop_gradient(chosen)) ** 2).mean()
        flat = jax.lax.stop_gradient(z).reshape(-1, config.code_width)
        statistics = self.codebook.statistics(flat, codes.reshape(-1), key)
        metrics = {"bits_per_dim_bound": bits_per_dim(nats + self._uniform, prod(config.image_shape)), "nats_bound": nats + self._uniform}
        loss = bits_per_dim(nats, prod(config.image_shape)) + config.commitment * commitment
        return loss, metrics | {"commitment": commitment, "perplexity": perplexity(statistics)}, statistics

    def after_update(self, statistics: dict, key: PRNGKeyArray) -> "VQVAE":
        """The model with its codebook advanced by a batch."""
        self.codebook.advance(statistics, self.config.decay, self.config.restart)
        return self

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> UInt[Array, "n H W C"]:
        """n images of uniformly drawn codes, every pixel drawn from p(x | z_q)."""
        check_key(key)
        key_codes, key_x = jax.random.split(key)
        codes = jax.random.randint(key_codes, (check_count(n), *self.config.grid), 0, self.config.codes)
        return self.sample_from(key_x, codes)

    def sample_from(self, key: PRNGKeyArray, codes: Integer[Array, "n h w"]) -> UInt[Array, "n H W C"]:
        """An image for each grid of codes, every pixel drawn from p(x | z_q)."""
        parameters = self.decode(codes)
        return self.head.sample(parameters, self.head.noise(key, parameters.shape[:-1])).astype(self.head.dtype)

    @property
    def _uniform(self) -> float:
        """h w ln K, -log of the uniform prior in nats."""
        return prod(self.config.grid) * log(self.config.codes)

    def _encodings(self, image: UInt[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """z_e, float32."""
        image = check_images(image, self.config.image_shape, self.config.levels)
        image = pad_below(image, self.config.sides)
        return self.encoder(scale_pixels(image, self.config.levels, self.config.dtype)).astype(jnp.float32)

    def _decode(self, z: Float[Array, "B h w D"]) -> Float[Array, "B H W C P"]:
        height, width, channels = self.config.image_shape
        padded = self.decoder(z.astype(self.config.dtype)).reshape(-1, *self.config.sides, channels, self.head.size)
        return padded[:, :height, :width]

    def _log_likelihood(self, image: UInt[Array, "B H W C"], parameters: Float[Array, "B H W C P"]) -> Float[Array, " B"]:
        return row_sums(self.head.log_prob(parameters, check_images(image, self.config.image_shape, self.config.levels)))
