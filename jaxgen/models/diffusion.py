"""Diffusion models: deep diffusion (Sohl-Dickstein et al. 2015), DDPM (Ho et al. 2020) and VDM (Kingma et al. 2021), on images or points.

    x_t = alpha_t x_0 + sigma_t noise,   noise ~ N(0, I),   alpha_t^2 + sigma_t^2 = 1,   SNR_t = alpha_t^2 / sigma_t^2;   p(x_1) = N(0, I)

from data at t = 0 to noise at t = 1. x_0 is the point, or the image with its levels spread over [-1, 1]. One network f(x_t, t, label)
estimates x_0 from x_t, as its config `predicts`:

    "noise"   x0_hat = (x_t - sigma_t f) / alpha_t        "x0"   x0_hat = f        "v"   x0_hat = alpha_t x_t - sigma_t f

The model is the one whose bound on -log p(x_0) stands in denoising/bound.py: T steps with a fixed `schedule`, or continuous time with the
schedule "learned": -log SNR_t = g(t) = g_0 + (g_1 - g_0) m(t), where m rises from 0 to 1.

    weights     loss, in the mean over t, images and dimensions
    "simple"    |noise - noise_hat|^2 = SNR |x_0 - x0_hat|^2                                   Ho et al. 2020, eq. 14
    "min_snr"   min(SNR, 5) |x_0 - x0_hat|^2                                                   Hang et al. 2023
    "truncated" max(SNR, 1) |x_0 - x0_hat|^2                                                   Salimans and Ho 2022
    "bound"     the bound in bits/dim (points: nats), one term for every image                 the learned schedule has only this one

The variance V of a step of T is that of beta ("large"), of b ("small"), or "learned": log V = r log beta + (1 - r) log b, 2 r - 1 a further
output of f (Nichol and Dhariwal 2021); with other weights than "bound" the loss then has 0.001 times the bound added, whose gradient
reaches r only. The first three losses are no likelihoods: they are reported as `denoising_error`, beside the bound of the same draws.

In continuous time the ends g_0, g_1 and the network are trained by the bound, which does not depend on m; m is trained to make the squares
of its terms small: so the terms of all times become about equally large, and one drawn time says more.

The forms of the papers: 2015, --schedule sohl_dickstein --predicts x0 --variances learned --weights bound; DDPM is the default; improved
DDPM, --schedule cosine --variances learned; VDM, --schedule learned --weights bound.

Axes: B batch, [B, ..., C] images or points, T steps. Departures from the papers: the networks of layers/denoising_network.py; the betas of
2015 are fixed; VDM's m is a sum of sigmoids and not a network; f sees log SNR in its schedule, t in the others.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Literal, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from jaxgen.checks import check_images, check_label, check_levels, image_of
from jaxgen.config import check_types
from jaxgen.data.features import Feature, OfImagesOrPoints, given_to, modelled, smallest_unsigned
from jaxgen.denoising import bound, samplers
from jaxgen.denoising.bound import Steps, Terms, rows_of
from jaxgen.denoising.schedules import (
    Schedule,
    cosine_betas,
    linear_betas,
    of_betas,
    sohl_dickstein_betas,
    uniform_times,
    variance_preserving,
)
from jaxgen.distributions import bits_per_dim, standard_normal
from jaxgen.errors import ConfigError
from jaxgen.layers.convolutions import scale_pixels
from jaxgen.layers.denoising_mlp import MLPDenoiserConfig
from jaxgen.layers.denoising_network import DenoisingNetwork, check_network
from jaxgen.layers.dit import DiTConfig
from jaxgen.layers.learned_schedule import FIRST_ENDS, RisingLogRatio
from jaxgen.layers.logistic_mixture import to_level
from jaxgen.layers.unet import UNetConfig

BETAS = {"linear": linear_betas, "cosine": cosine_betas, "sohl_dickstein": sohl_dickstein_betas}
MIN_SNR = 5.0


@dataclass(frozen=True)
class DiffusionConfig(OfImagesOrPoints):
    """Sizes of a diffusion model. Raises ConfigError for sizes out of range and fields that do not go together."""

    image_shape: tuple[int, ...] = (8, 8, 1)  # (H, W, C) of images, or (d,) of real points
    levels: int = 17  # number of values that a channel of a pixel has, 0 .. levels-1; 0 for points
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    network: Literal["unet", "dit", "mlp"] = "unet"  # points need mlp
    unet: UNetConfig = UNetConfig()  # sizes of the network unet
    dit: DiTConfig = DiTConfig()  # sizes of the network dit
    mlp: MLPDenoiserConfig = MLPDenoiserConfig()  # sizes of the network mlp
    schedule: Literal["linear", "cosine", "sohl_dickstein", "learned"] = "linear"  # "learned" has continuous time, the others T steps
    steps: int = 1000  # T, of a schedule that is not learned
    predicts: Literal["noise", "x0", "v"] = "noise"  # what the network's output stands for
    variances: Literal["small", "large", "learned"] = "large"  # of the T steps back to the data
    weights: Literal["simple", "min_snr", "truncated", "bound"] = "simple"  # of the times in the loss
    drop_label: float = 0.1  # probability with which the label is hidden in training, which guidance needs
    terms: int = 8  # diffusion terms of the bound that are drawn for an image in evaluation; 0: all of the T steps
    sampler: samplers.Method = "ancestral"  # how samples go from noise to data, see denoising/samplers.py
    sample_steps: int = 100  # steps of the sampler
    guidance: float = 0.0  # w, how far samples go beyond the estimate given the label, away from that without; 0: no guidance
    clip: bool = False  # clip the sampler's estimates of images to [-1, 1]
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters, results and bounds are float32

    def __post_init__(self):
        check_types(self)
        check_levels(self.levels, modelled(self))
        check_network(self)
        learned, least = self.schedule == "learned", {"num_classes": 0, "steps": 2, "sample_steps": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(name, f"{low} or more", getattr(self, name))
        if learned and self.weights != "bound":
            raise ConfigError("weights", "bound, for the learned schedule, whose ends nothing else can train", self.weights)
        if not learned <= self.terms <= (self.terms if learned else self.steps - 1):
            raise ConfigError("terms", "1 or more" if learned else f"0..{self.steps - 1}", self.terms)
        if not 0 <= self.drop_label < 1:
            raise ConfigError("drop_label", "a number in 0..1, 1 excluded", self.drop_label)
        if self.clip and len(self.image_shape) == 1:
            raise ConfigError("clip", "False for points, which have no range", self.clip)

    @classmethod
    def defaults_for(cls, features: dict[str, Feature]) -> dict[str, object]:
        """The network for points."""
        return {"network": "mlp"} if "point" in features else super().defaults_for(features)


@lru_cache
def tables(config: DiffusionConfig) -> tuple[Steps, np.ndarray, np.ndarray, np.ndarray]:
    """Of a schedule of T steps, [T+1] each: the kernels; log b and log beta, both with the b of step 2 at i = 1; the loss's weight of
    |target - output|^2, which is that of |x_0 - x0_hat|^2 times the square of the factor between the two."""
    steps = bound.steps_of(BETAS[config.schedule](config.steps))
    with np.errstate(divide="ignore"):
        snr = steps.alpha**2 / steps.sigma**2
        factor = {"noise": 1 / snr, "x0": np.ones_like(snr), "v": 1 / (snr + 1)}[config.predicts]
    snr[0], factor[0] = 1, 1  # not used
    weights = {"simple": snr, "min_snr": np.minimum(snr, MIN_SNR), "truncated": np.maximum(snr, 1), "bound": snr}[config.weights]
    large = np.log(np.concatenate([steps.beta[1:2], steps.beta[1:]]))
    return steps, bound.log_variances(steps, "small"), large, weights * factor


class Diffusion(nnx.Module):
    """The network, and g of the learned schedule. Methods raise ConfigError for what does not fit the config.

    label: int [B] or one int, or weights of the classes, float [B, num_classes]; None for a model without labels.
    """

    term_names = ("prior", "diffusion", "reconstruction")

    def __init__(self, config: DiffusionConfig, *, rngs: nnx.Rngs):
        self.config = config
        learned = config.schedule == "learned"
        self.network = DenoisingNetwork(config, 1 + (config.variances == "learned" and not learned), rngs, learned and self._discrete)
        self.log_ratio = RisingLogRatio(2 / (config.levels - 1) if self._discrete else None) if learned else None

    @property
    def schedule(self) -> Schedule:
        """alpha(t) and sigma(t); in T steps t = i/T."""
        if self.log_ratio is not None:
            return variance_preserving(lambda t: -self.log_ratio(t))
        return of_betas(BETAS[self.config.schedule](self.config.steps))

    def denoise(self, x: Float[Array, "B ..."], t: Float[Array, ""], label=None, guidance: float = 0.0) -> Float[Array, "B ..."]:
        """x0_hat, the estimate of E[x_0 | x_t] at one time for all rows, in [-1, 1] for the levels of an image. guidance: w."""
        return self._denoise(x, jnp.asarray(t, jnp.float32), check_label(label, self.config.num_classes, x.shape[0]), guidance)[0]

    def bound_terms(self, x: Num[Array, "B ..."], key: PRNGKeyArray, label=None) -> Terms:
        """The terms prior, diffusion and reconstruction of the bound on -log p(x), nats [B] each, with `terms` drawn diffusion terms."""
        return self._bound_terms(self._scale(x), key, check_label(label, self.config.num_classes, x.shape[0]))

    @jax.jit  # else its loop is compiled in every call
    def _bound_terms(self, x0: Float[Array, "B ..."], key: PRNGKeyArray, label) -> Terms:
        config, (key_times, key_noise) = self.config, jax.random.split(key)
        if self.log_ratio is not None:
            times = bound.drawn_times(key_times, config.terms, x0.shape[0])
            return self._in_time(x0, times, key_noise, self.log_ratio, label)
        steps, rows = tables(config)[0], x0.shape[0]
        drawn = bound.drawn_steps(key_times, steps.count, config.terms, rows) if config.terms else bound.all_steps(steps.count, rows)
        return bound.bound_of_steps(partial(self._estimate, label=label), steps, drawn, x0, key_noise, self._log_prob(x0))

    def elbo(self, x: Num[Array, "B ..."], key: PRNGKeyArray, label=None) -> Float[Array, " B"]:
        """A lower bound of log p(x) in nats, from one draw of x_t for each of its terms: minus their sum."""
        return -sum(self.bound_terms(x, key, label))

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """The loss above of a batch {"image": integers [B, H, W, C]}, or {"point": float32 [B, d]}.

        Metrics: nats_bound and, of images, bits_per_dim_bound, from one term of the bound for every row; denoising_error, the first three
        losses. In continuous time also the ends of -log SNR, g_0 and g_1.
        """
        x0 = self._scale(image_of(batch, self.config.modelled))
        key_times, key_noise, key_hidden, key_dropout = jax.random.split(key, 4)
        label = check_label(given_to(self.config, batch).get("label"), self.config.num_classes, x0.shape[0])
        hidden = None if label is None else jax.random.bernoulli(key_hidden, self.config.drop_label, x0.shape[:1])
        times = bound.antithetic_times(key_times, x0.shape[0])
        of = self._loss_in_time if self.log_ratio is not None else self._loss_of_steps
        return of(x0, times, key_noise, {"label": label, "hidden": hidden, "key": key_dropout})

    def sample(
        self, key: PRNGKeyArray, n: SupportsIndex, label=None, known=None, sampler: str | None = None, steps: int | None = None,
        guidance: float | None = None,
    ) -> Num[Array, "n ..."]:  # fmt: skip
        """n images [n, H, W, C] of the smallest unsigned type for their levels, or n points float32 [n, d].

        known: images and bool [n, H, W] or [H, W], True where their pixels are kept; other pixels are drawn given them, approximately, with
        each step taken four times (see samplers.py). sampler, steps, guidance: those of denoising/samplers.py; None: the config's, but
        "ancestral" and a quarter of the steps where pixels are known: no more calls of the network, and measured as good as all the steps.
        """
        method = sampler or (self.config.sampler if known is None else "ancestral")
        if known is not None and steps is None and method != "multistep":  # whose steps are not repeated
            steps = -(-self.config.sample_steps // samplers.REPEATS)
        return _sample(self, key, **samplers.check_asked(self.config, self._discrete, key, n, label, known, method, steps, guidance))

    @property
    def _discrete(self) -> bool:
        return modelled(self.config).discrete

    def _scale(self, x: Num[Array, "B ..."]) -> Float[Array, "B ..."]:
        """x_0."""
        if not self._discrete:
            return x
        return scale_pixels(check_images(x, self.config.image_shape, self.config.levels), self.config.levels)

    def _bits(self, nats):
        """bits/dim of images, nats of points."""
        return bits_per_dim(nats, prod(self.config.image_shape)) if self._discrete else nats

    def _metrics(self, nats) -> dict:
        return {"nats_bound": nats} | ({"bits_per_dim_bound": self._bits(nats)} if self._discrete else {})

    def _log_prob(self, x0):
        """log p(x_0 | x_t) of the last step, of (mean, log V)."""
        if not self._discrete:
            return partial(bound.density, x0)
        return partial(bound.discretised_log_prob if self.log_ratio is None else bound.levels_log_prob, x0, self.config.levels)

    def _x0_hat(self, x, output, alpha, sigma):
        if self.config.predicts == "noise":
            return (x - sigma * output) / alpha
        return output if self.config.predicts == "x0" else alpha * x - sigma * output

    def _estimate(self, x: Float[Array, "B ..."], i: Int[Array, " B"], **given) -> tuple[Array, Array]:
        """(x0_hat, log V) of T steps."""
        output, log_variance = self._outputs(x, i, **given)
        steps = tables(self.config)[0]
        return self._x0_hat(x, output, bound.at(steps.alpha, i, x), bound.at(steps.sigma, i, x)), log_variance

    def _outputs(self, x: Float[Array, "B ..."], i: Int[Array, " B"], **given) -> tuple[Array, Array]:
        """(the network's output, log V) at step i of every row."""
        _, small, large, _ = tables(self.config)
        outputs = self.network(x, i.astype(jnp.float32) / self.config.steps, **given)
        if self.config.variances != "learned":
            return outputs, bound.at(small if self.config.variances == "small" else _with_first(large, small), i, x)
        output, share = jnp.split(outputs, 2, axis=-1)
        share = (share + 1) / 2
        return output, share * bound.at(large, i, x) + (1 - share) * bound.at(small, i, x)

    def _denoise(self, x: Float[Array, "B ..."], t: Float[Array, ""], label, guidance: float) -> tuple[Array, Array | None]:
        """(x0_hat, the share r of log beta in log V or None) at one time."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        time = t if self.log_ratio is None else _as_time(self.log_ratio(t))
        outputs = self.network.guided(x, jnp.broadcast_to(time, x.shape[:1]), label, guidance)
        output, *share = jnp.split(outputs, outputs.shape[-1] // x.shape[-1], axis=-1)
        return self._x0_hat(x, output, alpha, sigma), (share[0] + 1) / 2 if share else None

    def _in_time(self, x0, times, key_noise, log_ratio, label, **given) -> Terms:
        """The bound in continuous time."""

        def noise_hat(x, g):
            alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(rows_of(sign * g, x))) for sign in (-1, 1))
            output = self.network(x, _as_time(g), label, **given)
            if self.config.predicts == "noise":
                return output
            return (x - alpha * output) / sigma if self.config.predicts == "x0" else sigma * x + alpha * output

        return bound.bound_in_time(noise_hat, log_ratio, times, x0, key_noise, self._log_prob(x0))

    @jax.jit  # else its loop is compiled in every call
    def _loss_in_time(self, x0, times, key, given: dict) -> tuple[Array, dict]:
        terms = self._in_time(x0, times[None], key, partial(self.log_ratio, fixed=True), **given)
        nats, even = sum(terms).mean(), self.log_ratio.evenness(times, terms.denoising)
        ends = self.log_ratio(jnp.asarray([0.0, 1.0]))
        loss = self._bits(nats) + even - jax.lax.stop_gradient(even)
        return loss, self._metrics(nats) | {"log_ratio_first": ends[0], "log_ratio_last": ends[1]}

    def _loss_of_steps(self, x0, times, key, given: dict) -> tuple[Array, dict]:
        config, (steps, _, _, weights) = self.config, tables(self.config)
        i = 1 + jnp.minimum((times * steps.count).astype(jnp.int32), steps.count - 1)
        noise = standard_normal(key, x0.shape)
        x, alpha, sigma = bound.corrupt(steps, x0, noise, i), bound.at(steps.alpha, i, x0), bound.at(steps.sigma, i, x0)
        output, log_variance = self._outputs(x, i, **given)
        x0_hat = self._x0_hat(x, output, alpha, sigma)
        kept = x0_hat if config.weights == "bound" else jax.lax.stop_gradient(x0_hat)
        rows = bound.step_term(steps, i, x0, kept, log_variance, self._log_prob(x0)) * steps.count
        nats = (rows + bound.prior_kl(x0, steps.alpha[-1], steps.sigma[-1])).mean()
        if config.weights == "bound":
            return self._bits(nats), self._metrics(nats)
        target = {"noise": noise, "x0": x0, "v": alpha * noise - sigma * x0}[config.predicts]
        error = (bound.at(weights, i, x0) * (target - output) ** 2).mean()
        loss = error + 0.001 * self._bits(nats) if config.variances == "learned" else error
        return loss, self._metrics(nats) | {"denoising_error": error}


def _with_first(large: np.ndarray, small: np.ndarray) -> np.ndarray:
    """log beta with log b of step 2 at i = 1."""
    return np.concatenate([small[:2], large[2:]])


def _as_time(g: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """-log SNR as a number of about 0..1, which the network takes in the place of a time."""
    low, high = FIRST_ENDS
    return (g - low) / (high - low)


@partial(jax.jit, static_argnames=("n", "method", "steps", "guidance"))
def _sample(model: Diffusion, key: PRNGKeyArray, label, image, mask, *, n: int, method: str, steps: int, guidance: float) -> Array:
    config, schedule, (key_noise, key_path, key_last) = model.config, model.schedule, jax.random.split(key, 3)
    fixed = config.schedule != "learned" and method == "ancestral"
    options = {"method": method, "variance": config.variances if fixed else "small", "clip": 1.0 if config.clip else None}
    options |= samplers.of_known(None if mask is None else model._scale(image), mask, method)

    def denoise(x, t):
        x0_hat, share = model._denoise(x, t, label, guidance)
        return (x0_hat, share) if options["variance"] == "learned" else x0_hat

    noise = standard_normal(key_noise, (n, *config.image_shape))
    x = samplers.sample(denoise, schedule, noise, uniform_times(steps), key_path, **options)
    if model.log_ratio is not None:  # x is at t = 0, where there is a little noise still
        x = x / schedule.alpha(jnp.float32(0))
        if not model._discrete:
            return x + jnp.exp(0.5 * model.log_ratio(jnp.float32(0))) * standard_normal(key_last, x.shape)
    if not model._discrete:
        return x
    levels = to_level(x, config.levels).astype(smallest_unsigned(config.levels))
    return levels if mask is None else jnp.where(options["mask"], image, levels)
