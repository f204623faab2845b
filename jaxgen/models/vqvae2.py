"""VQ-VAE-2: images from grids of codes, the codes from autoregressive priors (Razavi, van den Oord, Vinyals 2019, "Generating Diverse
High-Fidelity Images with VQ-VAE-2").

The code model of vqvae2_codes.py is trained first (a stage, see docs/stages.md) and then kept as it is: k_1 .. k_L are the codes that its
encoder chooses for an image x, level L the top, the smallest grid. The priors are trained on them:

    p(k | y) = p(k_L | y) prod_{l<L} p(k_l | k_{l+1} .. k_L, y)

    p(k_L | y)            a PixelSNAIL given the class y
    p(k_l | k_>l, y)      a Gated PixelCNN given the class and the map s_l
    s_l = D_l(s_{l+1} + t_{l+1}[k_{l+1}])        the codes above: a table t of vectors for each level, a decoder of vqvae.py to the grid of
                                                 level l; there is no s_L
    loss = -log p(k | y) / (H W C ln 2)

    log p(x | y) >= log p(k | y) + log p(x | k): `elbo`. The marginal p(x | y) is a sum over all codes, of which this is one term.

With one level there is only the PixelSNAIL: a prior for the codes of a VQ-VAE. Codes are names, not magnitudes: the priors read a vector
for each and have a softmax over them (`unordered`).

Axes: B batch, H W C image, h w a grid, K codes. Codes of several levels are tuples that begin with the top. Departures from the paper: the
prior of the top is a PixelSNAIL without further layers, one Gated PixelCNN for each level below; codes are coded from scratch in every
step, so that there is no data set of codes.
"""

from dataclasses import asdict, dataclass, fields
from math import prod
from typing import ClassVar, Literal, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_key, check_label, image_of
from jaxgen.config import check_types
from jaxgen.data.features import Feature, OfImages, given_to
from jaxgen.distributions import bits_per_dim
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import normal
from jaxgen.models.gated_pixelcnn import GatedPixelCNN, GatedPixelCNNConfig
from jaxgen.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from jaxgen.models.vqvae import Decoder
from jaxgen.models.vqvae2_codes import VQVAE2Codes, VQVAE2CodesConfig


@dataclass(frozen=True)
class TopPrior:
    """Sizes of the PixelSNAIL of the top."""

    blocks: int = 2  # blocks of resnets with attention
    width: int = 64  # features of a place
    resnets: int = 2  # 2 x 2 resnets of a block
    key: int = 16  # size of a key of the attention head
    value: int = 32  # size of a value of the attention head


@dataclass(frozen=True)
class LowerPrior:
    """Sizes of the Gated PixelCNN of each level below the top, and of the map that it is given."""

    layers: int = 4  # gated layers after the input layer
    width: int = 64  # features of each of the two stacks
    input_kernel: int = 5  # side of the first convolution, an odd number of places
    head_width: int = 64  # features between the last two 1 x 1 convolutions
    map_size: int = 32  # features of every place of the map of the codes above


@dataclass(frozen=True)
class VQVAE2Config(OfImages):
    """Sizes of a VQ-VAE-2; its images are those of the code model. Raises ConfigError for sizes out of range."""

    codes: VQVAE2CodesConfig = VQVAE2CodesConfig()
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    top: TopPrior = TopPrior()
    lower: LowerPrior = LowerPrior()
    dropout: float = 0.1  # probability with which a feature of the priors is set to 0 in training
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the priors' activations; parameters and likelihoods are float32
    stages: ClassVar[tuple[str, ...]] = ("codes",)

    def __post_init__(self):
        check_types(self)
        if self.lower.map_size < 2:
            raise ConfigError("lower.map_size", "2 or more", self.lower.map_size)
        for make, part in ((self._top, "top"), (self._lower, "lower")):
            try:
                make(self.codes.grids[0])
            except ConfigError as error:
                name = error.argument.rpartition(".")[2]
                name = f"{part}.{name}" if name in {field.name for field in fields(getattr(self, part))} else name
                raise ConfigError(name, error.wanted, error.got, error.hint) from None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.codes.image_shape

    @property
    def levels(self) -> int:
        """Number of values that a channel of a pixel has."""
        return self.codes.levels

    @classmethod
    def sizes_from(cls, features: dict[str, Feature]) -> dict[str, object]:
        """The fields that a data set decides, those of the code model by their paths."""
        sizes = super().sizes_from(features)
        return {name if name == "num_classes" else f"codes.{name}": size for name, size in sizes.items()}

    @property
    def priors(self) -> tuple[PixelSNAILConfig | GatedPixelCNNConfig, ...]:
        """The configurations of the priors of every level, the top first."""
        top, *lower = self.codes.grids
        return self._top(top), *map(self._lower, lower)

    def _common(self, grid: tuple[int, int]) -> dict:
        sizes = {"image_shape": (*grid, 1), "levels": self.codes.codes, "num_classes": self.num_classes}
        return sizes | {"unordered": True, "dropout": self.dropout, "dtype": self.dtype}

    def _top(self, grid: tuple[int, int]) -> PixelSNAILConfig:
        return PixelSNAILConfig(**self._common(grid), **asdict(self.top))

    def _lower(self, grid: tuple[int, int]) -> GatedPixelCNNConfig:
        sizes = {name: size for name, size in asdict(self.lower).items() if name != "map_size"}
        return GatedPixelCNNConfig(**self._common(grid), **sizes)


class VQVAE2(nnx.Module):
    """The code model, and the priors of its codes. Methods take `label=` if and only if the config has classes, and raise ConfigError for
    images, codes or labels that do not fit the config."""

    def __init__(self, config: VQVAE2Config, *, rngs: nnx.Rngs):
        self.config, (top, *lower), size = config, config.priors, config.lower.map_size
        self.codes = VQVAE2Codes(config.codes, rngs=rngs)
        self.top = PixelSNAIL(top, rngs=rngs)
        self.lower = nnx.List([GatedPixelCNN(one, rngs=rngs, map_size=size) for one in lower])
        self.tables = nnx.List([normal(rngs, (config.codes.codes, size), 1) for _ in lower])
        halvings = config.codes.halvings[:0:-1]  # between each level and the one below it, from the top
        self.maps = nnx.List([Decoder(size, n, size, 1, size, rngs) for n in halvings])

    def initialise(self, batch: dict) -> "VQVAE2":
        """The model whose top prior has gains and biases set on the codes of the batch, see PixelSNAIL."""
        top = self.codes.encode(jnp.asarray(image_of(batch)))[0]
        self.top = self.top.initialise({**batch, "image": top[..., None]})
        return self

    def encode(self, image: UInt[Array, "B H W C"]) -> tuple[UInt[Array, "B _h _w"], ...]:
        """The codes of every level, the top first."""
        return self.codes.encode(image)

    def decode(self, codes: tuple[Integer[Array, "B _h _w"], ...]) -> Float[Array, "B H W C P"]:
        """Parameters of p(x | k), float32."""
        return self.codes.decode(codes)

    def reconstruct(self, image: UInt[Array, "B H W C"], label=None) -> UInt[Array, "B H W C"]:
        """For every pixel the most probable level under p(x | k); the codes do not depend on the label."""
        return self.codes.reconstruct(image)

    def log_prob_codes(self, codes: tuple[UInt[Array, "B _h _w"], ...], label=None) -> Float[Array, "B L"]:
        """log p(k_l | k_>l, y) in nats of every level, the top first; exact, and their sum is log p(k | y)."""
        return self._log_prob_codes(codes, label)

    def elbo(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, label=None) -> Float[Array, " B"]:
        """log p(k | y) + log p(x | k) in nats, at most log p(x | y). Nothing is drawn: `key` is not used."""
        codes = self.encode(image)
        return self._log_prob_codes(codes, label).sum(-1) + self.codes.log_likelihood(image, codes)

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """The loss above in bits/dim, with dropout; its gradient in the code model is 0. Metrics: the bound as bits_per_dim_bound and
        nats_bound, and nats_codes_l of every level's codes."""
        image, dims = image_of(batch), prod(self.config.image_shape)
        codes = self.encode(image)
        nats = -self._log_prob_codes(codes, given_to(self.config, batch).get("label"), key).mean(0)
        bound = nats.sum() - self.codes.log_likelihood(image, codes).mean()
        of_levels = {f"nats_codes_{len(codes) - i}": nats[i] for i in range(len(codes))}
        return bits_per_dim(nats.sum(), dims), {"bits_per_dim_bound": bits_per_dim(bound, dims), "nats_bound": bound} | of_levels

    def sample(self, key: PRNGKeyArray, n: SupportsIndex, label=None, temperature: float = 1.0) -> UInt[Array, "n H W C"]:
        """n images: codes of the priors, every pixel drawn from p(x | k). temperature: of the priors, below 1 they are sharper."""
        check_key(key)
        key_codes, key_x = jax.random.split(key)
        return self.codes.sample_from(key_x, self.sample_codes(key_codes, n, label, temperature))

    def sample_codes(
        self, key: PRNGKeyArray, n: SupportsIndex, label=None, temperature: float = 1.0, method: str = "cached"
    ) -> tuple[UInt[Array, "n _h _w"], ...]:
        """n draws from p(k | y), each level by the sampler of its prior; method: "cached", "naive" or "fixed_point", the same draws."""
        check_key(key)
        n = check_count(n)
        label, keys = check_label(label, self.config.num_classes, n), jax.random.split(key, len(self.lower) + 1)
        codes = [self.top.sample(keys[0], n, label, temperature=temperature, method=method)[..., 0]]
        above = None
        for level, prior in enumerate(self.lower):
            above = self._map(level, codes[-1], above)
            drawn = prior.sample(keys[level + 1], n, label, temperature=temperature, method=method, feature_map=above)
            codes.append(drawn[..., 0])
        return tuple(codes)

    def _map(self, level: int, codes: Integer[Array, "B h w"], above) -> Float[Array, "B _h _w E"]:
        """s of the level below the one with these codes, float32; above: s of that one, None at the top."""
        x = self.tables[level][...][codes.astype(jnp.int32)]
        x = x if above is None else x + above
        return self.maps[level](x.astype(self.config.dtype))

    def _log_prob_codes(self, codes: tuple, label, key: PRNGKeyArray | None = None) -> Float[Array, "B L"]:
        """log p of every level's codes, with dropout if there is a key."""
        terms, above = [self._of_prior(self.top, codes[0], key, 0, label=label)], None
        for level, prior in enumerate(self.lower):
            above = self._map(level, codes[level], above)
            terms.append(self._of_prior(prior, codes[level + 1], key, level + 1, label=label, feature_map=above))
        return jnp.stack(terms, axis=-1)

    @staticmethod
    def _of_prior(prior, codes: UInt[Array, "B h w"], key: PRNGKeyArray | None, level: int, **given) -> Float[Array, " B"]:
        image = codes[..., None]
        if key is None:
            return prior.log_prob(image, **given)
        condition = prior.condition(image.shape[0], **given)
        return prior._sum(prior._logits(image, condition, jax.random.fold_in(key, level)), image)
