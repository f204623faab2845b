"""Latent diffusion: a diffusion model of the codes of an auto-encoder that was trained before (Vahdat et al. 2021, "Score-based Generative
Modeling in Latent Space"; Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models").

The VAE of vae.py is trained first (a stage, see docs/stages.md) and then kept as it is. In the place of its prior N(0, I) comes the model
p(z) of diffusion.py, on the points z of R^Z:

    z ~ p(z),   x ~ p(x | z);       loss = that of diffusion.py for z ~ q(z | x)

    log p(x) >= E_q(z|x)[log p(x | z) - log q(z | x) + log p(z)],       log p(z) >= -(prior + diffusion + reconstruction) of z

so `elbo` is a bound of discrete images, comparable with all others. Its terms are those of z and -log p(x | z), "pixels", and log q(z | x),
"posterior". One step of sampling is a pass through a network of Z numbers and not of H W C.

With num_classes > 0 in the VAE's configuration, the label is given to the VAE: p(z) p(x | z, y).

Axes: B batch, H W C image, Z latent. Departures from the papers: codes are vectors, and p(z) does not depend on the label.
"""

from dataclasses import dataclass, fields
from math import prod
from typing import ClassVar, Literal, NamedTuple, SupportsIndex

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, UInt

from jaxgen.checks import check_count, check_key, image_of
from jaxgen.config import check_types
from jaxgen.data.features import Feature, OfImages, given_to
from jaxgen.denoising import samplers
from jaxgen.distributions import bits_per_dim, gaussian_log_prob, gaussian_sample
from jaxgen.layers.denoising_mlp import MLPDenoiserConfig
from jaxgen.models.diffusion import Diffusion, DiffusionConfig
from jaxgen.models.vae import VAE, VAEConfig


@dataclass(frozen=True)
class LatentDiffusionConfig(OfImages):
    """Sizes of a latent diffusion model; its images are those of the VAE. Raises ConfigError as DiffusionConfig, which has these fields."""

    codes: VAEConfig = VAEConfig()
    mlp: MLPDenoiserConfig = MLPDenoiserConfig()  # sizes of the network
    schedule: Literal["linear", "cosine", "sohl_dickstein", "learned"] = "learned"  # "learned" has continuous time, the others T steps
    steps: int = 1000  # T, of a schedule that is not learned
    predicts: Literal["noise", "x0", "v"] = "v"  # what the network's output stands for
    variances: Literal["small", "large", "learned"] = "large"  # of the T steps back to the data
    weights: Literal["simple", "min_snr", "truncated", "bound"] = "bound"  # of the times in the loss
    terms: int = 8  # diffusion terms of the bound that are drawn for an image in evaluation; 0: all of the T steps
    sampler: samplers.Method = "ancestral"  # how codes go from noise to data, see denoising/samplers.py
    sample_steps: int = 100  # steps of the sampler
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the prior's activations; parameters, results and bounds are float32
    stages: ClassVar[tuple[str, ...]] = ("codes",)

    def __post_init__(self):
        check_types(self)
        _ = self.prior  # its checks

    @property
    def prior(self) -> DiffusionConfig:
        """The configuration of the diffusion model of z."""
        same = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "codes"}
        return DiffusionConfig((self.codes.latent,), 0, network="mlp", **same)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.codes.image_shape

    @property
    def levels(self) -> int:
        """Number of values that a channel of a pixel has."""
        return self.codes.levels

    @property
    def num_classes(self) -> int:
        """Classes of the label that the VAE is given."""
        return self.codes.num_classes

    @property
    def vector_size(self) -> int:
        """Size of the vector that the VAE is given."""
        return self.codes.vector_size

    @classmethod
    def sizes_from(cls, features: dict[str, Feature]) -> dict[str, object]:
        """The fields that a data set decides, all of them of the VAE, by their paths."""
        return {f"codes.{name}": size for name, size in VAEConfig.sizes_from(features).items()}


class LatentTerms(NamedTuple):
    """The terms of the bound in nats [B]; minus their sum is a lower bound of log p(x)."""

    pixels: Array  # -log p(x | z)
    posterior: Array  # log q(z | x)
    prior: Array  # of z, as the next two
    diffusion: Array
    reconstruction: Array


class LatentDiffusion(nnx.Module):
    """The VAE `codes`, and the model `prior` of its codes. Methods take `label=` and `vector=` if and only if the VAE does, and raise
    ConfigError for what does not fit the config."""

    term_names = LatentTerms._fields

    def __init__(self, config: LatentDiffusionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.codes = VAE(config.codes, rngs=rngs)
        self.prior = Diffusion(config.prior, rngs=rngs)

    def bound_terms(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, label=None, vector=None) -> LatentTerms:
        """The terms of the bound for one z of each image."""
        key_z, key_terms = jax.random.split(key)
        z, *terms = self._of_codes(image, key_z, label, vector)
        return LatentTerms(*terms, *self.prior.bound_terms(z, key_terms))

    def elbo(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, label=None, vector=None) -> Float[Array, " B"]:
        """A lower bound of log p(x) in nats, from one z and one draw for each of the terms: minus their sum."""
        return -sum(self.bound_terms(image, key, label, vector))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """The loss of diffusion.py for one z of each image; its gradient in the VAE is 0. Metrics: the bound on log p(x) from the same
        draws as bits_per_dim_bound and nats_bound, that on log p(z) as nats_codes, and those of diffusion.py."""
        key_z, key_loss = jax.random.split(key)
        z, pixels, posterior = self._of_codes(image_of(batch), key_z, **given_to(self.config, batch))
        loss, metrics = self.prior.loss({"point": z}, key_loss)
        codes = metrics.pop("nats_bound")
        nats = (pixels + posterior).mean() + codes
        bits = bits_per_dim(nats, prod(self.config.image_shape))
        return loss, {"bits_per_dim_bound": bits, "nats_bound": nats, "nats_codes": codes} | metrics

    def sample(
        self, key: PRNGKeyArray, n: SupportsIndex, label=None, vector=None, sampler: str | None = None, steps: int | None = None
    ) -> UInt[Array, "n H W C"]:
        """n images: z by a sampler of denoising/samplers.py, every pixel from p(x | z). sampler, steps: None for the config's."""
        check_key(key)
        n, (key_z, key_x) = check_count(n), jax.random.split(key)
        parameters = self.codes.decode(self.prior.sample(key_z, n, sampler=sampler, steps=steps), label, vector)
        head = self.codes.head
        return head.sample(parameters, head.noise(key_x, (n, *self.config.image_shape))).astype(head.dtype)

    def _of_codes(self, image: UInt[Array, "B H W C"], key: PRNGKeyArray, label=None, vector=None) -> tuple[Array, Array, Array]:
        """z ~ q(z | x), -log p(x | z) and log q(z | x), without gradients."""
        codes = jax.lax.stop_gradient(self.codes)
        mean, log_variance = codes.encode(image, label, vector)
        z = gaussian_sample(mean, log_variance, key)
        return z, -codes._log_likelihood(image, z, label, vector), gaussian_log_prob(mean, log_variance, z).sum(-1)
