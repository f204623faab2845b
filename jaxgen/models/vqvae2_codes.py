"""The code model of VQ-VAE-2: an auto-encoder whose code is a few grids of integers, each smaller than the one below it (Razavi, van den
Oord, Vinyals 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", section 3.1).

Level l = 1 .. L has the grid h_l x w_l, level 1 the largest one. An encoder E_l and a decoder D_l lie between level l and level l-1; level
0 is the image. Each level's code is chosen when those above it are known, so that it holds what they leave out:

    h_0 = x,   h_l = E_l(h_{l-1})                                                   upwards
    z_l = conv_1x1 relu[h_l, d_{l+1}],  k_l = argmin_k |z_l - e_k|,  q_l = e_{k_l}  downwards from l = L, with a codebook e of each level;
    d_l = D_l([q_l, d_{l+1}])                                                       there is no d_{L+1}
    p(x | k_1 .. k_L) = p(x; d_1), one distribution for every pixel

    loss = -log p(x | k) / (H W C ln 2)  +  commitment * sum_l mean (z_l - sg(q_l))^2,   q_l read as z_l + sg(q_l - z_l)

Encoders, decoders, codebooks, their averages and restarts, and the padding of images are those of vqvae.py. With the K codes of every place
alike and independent, log p(x) >= log p(x | k) - sum_l h_l w_l ln K: `elbo`. vqvae2.py learns p(k).

Axes: B batch, H W C image, h w a grid, K codes, D width of a code, E features. Codes of several levels are tuples that begin with the top,
the smallest grid. Departures from the paper: those of vqvae.py; D_1 reads d_2, where the paper's decoder reads q_2 enlarged.
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
from jaxgen.layers.convolutions import Conv, scale_pixels
from jaxgen.layers.image_networks import likelihood_head, pad_below, whole_blocks
from jaxgen.models.vqvae import Codebook, Decoder, Encoder, check_codes, perplexity


@dataclass(frozen=True)
class VQVAE2CodesConfig(OfImages):
    """Sizes of the code model. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, int, int] = (8, 8, 1)  # height, width and channels of an image
    levels: int = 17  # number of values that a channel of a pixel has: 0 .. levels-1
    halvings: tuple[int, ...] = (1, 1)  # how often the sides are halved up to each level of codes, from the one below; one number a level
    codes: int = 64  # K, number of codes in the codebook of each level
    code_width: int = 16  # D, size of a code
    width: int = 64  # channels of the convolutions
    blocks: int = 2  # residual blocks of every encoder and decoder
    commitment: float = 0.25  # weight of the distance of an encoding from its code
    decay: float = 0.99  # of the averages of the codebooks, per step
    restart: float = 0.1  # a code is dead below this share of the mean use; 0: none restarts
    likelihood: Literal["categorical", "logistic"] = "categorical"  # of a pixel; categorical of 2 levels is Bernoulli
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; distances and parameters of p(x | k) are float32
    num_classes: ClassVar[int] = 0  # the code model has no classes; the prior of its codes may

    def __post_init__(self):
        check_image_config(self, {"code_width": 1, "width": 2, "blocks": 0, "commitment": 0, "restart": 0}, channels=None)
        if not self.halvings or min(self.halvings) < 1:
            raise ConfigError("halvings", "a number of 1 or more for each level of codes", self.halvings)
        check_codes(self)

    @property
    def sides(self) -> tuple[int, int]:
        """(H, W) of the padded images."""
        return whole_blocks(self.image_shape, 2 ** sum(self.halvings))

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of every level's codes, the top first."""
        factors = [2 ** sum(self.halvings[: level + 1]) for level in reversed(range(len(self.halvings)))]
        return tuple((self.sides[0] // factor, self.sides[1] // factor) for factor in factors)


class VQVAE2Codes(nnx.Module):
    """Encoders, codebooks and decoders, one for each level, level 1 first. Methods raise ConfigError for what does not fit."""

    def __init__(self, config: VQVAE2CodesConfig, *, rngs: nnx.Rngs):
        self.config, self.head = config, likelihood_head(config.likelihood, config.levels)
        width, channels, last = config.width, config.image_shape[2], len(config.halvings) - 1
        inputs, outputs = [channels] + [width] * last, [channels * self.head.size] + [width] * last
        above = [width] * last + [0]  # features of d_{l+1}
        sizes = width, config.blocks
        self.encoders = nnx.List([Encoder(a, n, *sizes, width, rngs) for a, n in zip(inputs, config.halvings, strict=True)])
        self.chosen = nnx.List([Conv(width + a, config.code_width, 1, rngs) for a in above])
        self.codebooks = nnx.List([Codebook(config.codes, config.code_width, rngs) for _ in above])
        self.decoders = nnx.List(
            [Decoder(config.code_width + a, n, *sizes, b, rngs) for a, n, b in zip(above, config.halvings, outputs, strict=True)]
        )

    def initialise(self, batch: dict) -> "VQVAE2Codes":
        """The model whose first codes are encodings of the batch, at random places."""
        features = self._features(jnp.asarray(image_of(batch)))
        below = None
        for level in self._downwards:
            z, book = self._encodings(level, features[level], below), self.codebooks[level]
            book.begin(z, jax.random.key(level))
            below = self._decoded(level, book.at(book.nearest(z)), below)
        return self

    def encode(self, image: UInt[Array, "B H W C"]) -> tuple[UInt[Array, "B _h _w"], ...]:
        """The codes of every level, the top first, in the smallest unsigned type for K."""
        features, codes, below = self._features(image), [], None
        for level in self._downwards:
            codes.append(self.codebooks[level].nearest(self._encodings(level, features[level], below)))
            if level:
                below = self._decoded(level, self.codebooks[level].at(codes[-1]), below)
        return tuple(code.astype(smallest_unsigned(self.config.codes)) for code in codes)

    def decode(self, codes: tuple[Integer[Array, "B _h _w"], ...]) -> Float[Array, "B H W C P"]:
        """Parameters of p(x | k), float32, of the codes of every level, the top first."""
        shapes = [tuple(code.shape[1:]) for code in codes]
        if shapes != list(self.config.grids):
            raise ConfigError("codes", f"grids {', '.join(map(str, self.config.grids))}, the top first", shapes)
        d = None
        for level, code in zip(self._downwards, codes, strict=True):
            d = self._decoded(level, self.codebooks[level].at(code.astype(jnp.int32)), d)
        return self._parameters(d)

    def log_likelihood(self, image: UInt[Array, "B H W C"], codes: tuple) -> Float[Array, " B"]:
        """log p(x | k) in nats."""
        return self._log_prob(image, self.decode(codes))

    def elbo(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray) -> Float[Array, " B"]:
        """log p(x | k) - sum_l h_l w_l ln K in nats, at most log p(x) under the uniform prior. Nothing is drawn: `key` is not used."""
        return self.log_likelihood(image, self.encode(image)) - self._uniform

    def reconstruct(self, image: UInt[Array, "B H W C"]) -> UInt[Array, "B H W C"]:
        """For every pixel the most probable level under p(x | k)."""
        return self.head.best(self.decode(self.encode(image))).astype(self.head.dtype)

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict, dict]:
        """The loss above, in bits/dim. Metrics: the bound of `elbo` as bits_per_dim_bound and nats_bound, the sum of the squared distances
        as commitment, and for every level perplexity_l, exp of the entropy of the batch's codes: K if all are used alike."""
        image, config = image_of(batch), self.config
        features, d, commitment, statistics, metrics = self._features(image), None, jnp.float32(0), {}, {}
        for level in self._downwards:
            z, book = self._encodings(level, features[level], d), self.codebooks[level]
            still = jax.lax.stop_gradient(z)
            codes = book.nearest(still)
            q = book.at(codes)
            commitment = commitment + ((z - jax.lax.stop_gradient(q)) ** 2).mean()
            flat = still.reshape(-1, config.code_width)
            found = book.statistics(flat, codes.reshape(-1), jax.random.fold_in(key, level))
            metrics[f"perplexity_{level + 1}"] = perplexity(found)
            statistics[str(level)] = found
            d = self._decoded(level, z + jax.lax.stop_gradient(q - z), d)
        nats, dims = -self._log_prob(image, self._parameters(d)).mean(), prod(config.image_shape)
        bound = {"bits_per_dim_bound": bits_per_dim(nats + self._uniform, dims), "nats_bound": nats + self._uniform}
        return bits_per_dim(nats, dims) + config.commitment * commitment, bound | {"commitment": commitment} | metrics, statistics

    def after_update(self, statistics: dict, key: PRNGKeyArray) -> "VQVAE2Codes":
        """The model with its codebooks advanced by a batch."""
        for level, book in enumerate(self.codebooks):
            book.advance(statistics[str(level)], self.config.decay, self.config.restart)
        return self

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> UInt[Array, "n H W C"]:
        """n images of uniformly drawn codes, every pixel drawn from p(x | k)."""
        check_key(key)
        n, keys = check_count(n), jax.random.split(key, len(self.config.grids) + 1)
        codes = [jax.random.randint(k, (n, *grid), 0, self.config.codes) for k, grid in zip(keys[1:], self.config.grids, strict=True)]
        return self.sample_from(keys[0], tuple(codes))

    def sample_from(self, key: PRNGKeyArray, codes: tuple[Integer[Array, "n _h _w"], ...]) -> UInt[Array, "n H W C"]:
        """An image for each row of codes, every pixel drawn from p(x | k)."""
        parameters = self.decode(codes)
        return self.head.sample(parameters, self.head.noise(key, parameters.shape[:-1])).astype(self.head.dtype)

    @property
    def _downwards(self) -> range:
        """The indices of the levels, the top first; index 0 is level 1."""
        return range(len(self.config.halvings))[::-1]

    @property
    def _uniform(self) -> float:
        """sum_l h_l w_l ln K, -log of the uniform prior in nats."""
        return sum(map(prod, self.config.grids)) * log(self.config.codes)

    def _features(self, image: UInt[Array, "B H W C"]) -> list[Float[Array, "B _h _w E"]]:
        """h_1 .. h_L."""
        image = pad_below(check_images(image, self.config.image_shape, self.config.levels), self.config.sides)
        x, found = scale_pixels(image, self.config.levels, self.config.dtype), []
        for encoder in self.encoders:
            x = encoder(x)
            found.append(x)
        return found

    def _encodings(self, level: int, h: Float[Array, "B h w E"], d) -> Float[Array, "B h w D"]:
        """z_l, float32; d: d_{l+1}, or None at the top."""
        both = h if d is None else jnp.concatenate([h, d.astype(h.dtype)], axis=-1)
        return self.chosen[level](nnx.relu(both)).astype(jnp.float32)

    def _decoded(self, level: int, q: Float[Array, "B h w D"], d) -> Float[Array, "B _H _W F"]:
        """d_l, float32."""
        both = q if d is None else jnp.concatenate([q, d], axis=-1)
        return self.decoders[level](both.astype(self.config.dtype))

    def _parameters(self, d: Float[Array, "B H W F"]) -> Float[Array, "B H W C P"]:
        height, width, channels = self.config.image_shape
        return d.reshape(-1, *self.config.sides, channels, self.head.size)[:, :height, :width]

    def _log_prob(self, image: UInt[Array, "B H W C"], parameters: Float[Array, "B H W C P"]) -> Float[Array, " B"]:
        return row_sums(self.head.log_prob(parameters, check_images(image, self.config.image_shape, self.config.levels)))
