"""Flow matching (Lipman et al. 2022, "Flow Matching for Generative Modeling"; Liu et al. 2022, "Flow Straight and Fast"), images or points.

    x_t = alpha_t x_0 + sigma_t noise,    noise ~ N(0, I),    t from 0 (data) to 1 (noise)
    dx/dt = f(x, t, label),      from x ~ N(0, I) at t = 1 to data at t = 0
    loss = E |f(x_t, t, label) - (alpha_t' x_0 + sigma_t' noise)|^2,    t ~ U(0, 1), mean over dimensions; `velocity_error`, no likelihood

    path "linear"          alpha = 1 - t,         sigma = t                     straight lines, the rectified flow
    path "trigonometric"   alpha = cos(pi t / 2), sigma = sin(pi t / 2)         alpha^2 + sigma^2 = 1

The f of least loss is E[alpha' x_0 + sigma' noise | x_t], and takes N(0, I) to the data. This holds for any joint distribution of x_0 and
noise with these two marginals. Coupling "independent" draws both alone; "transport" pairs the noise of a batch with its examples so that
the sum of |x_0 - noise|^2 is least (Pooladian et al. 2023; Tong et al. 2023), which makes the paths straighter. It is not for labels: given
one label, the paired noise is not N(0, I), from which samples start.

x_0 is a point, or v in [0, levels] of an image as 2 v / levels - 1, where v is a level and noise u ~ U[0, 1), drawn anew in every step of
training; sampled images are v rounded down. log p(v) is that of the ODE (denoising/ode.py), by `density_steps` steps that are shorter near
the data. Its trace is exact for at most EXACT_TRACE dimensions and with probes = 0, else Hutchinson's estimate. `guidance` is for samples
only; the density is that of the model without it.

Axes: B batch, [B, ..., C] images or points. Departures from the papers: t from data to noise, evenly spread over a batch; uniform noise on
the levels.
"""

from dataclasses import dataclass
from functools import partial
from math import log, prod
from typing import Literal, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num, PRNGKeyArray

from jaxgen.checks import check_count, check_images, check_label, check_levels, image_of
from jaxgen.config import check_types
from jaxgen.data.features import Feature, OfImagesOrPoints, given_to, modelled, smallest_unsigned
from jaxgen.denoising import ode, samplers
from jaxgen.denoising.bound import antithetic_times
from jaxgen.denoising.schedules import Schedule, linear_path, quadratic_times, trigonometric_path, uniform_times
from jaxgen.denoising.transport import nearest_noise
from jaxgen.distributions import along_one_axis, standard_normal
from jaxgen.errors import ConfigError
from jaxgen.layers.denoising_mlp import MLPDenoiserConfig
from jaxgen.layers.denoising_network import DenoisingNetwork, check_network
from jaxgen.layers.dit import DiTConfig
from jaxgen.layers.unet import UNetConfig

PATHS = {"linear": linear_path, "trigonometric": trigonometric_path}
EXACT_TRACE = 16
"""The most dimensions of an example for which the trace in the log-density is always exact."""


@dataclass(frozen=True)
class FlowMatchingConfig(OfImagesOrPoints):
    """Sizes of a flow. Raises ConfigError for sizes out of range and fields that do not go together."""

    image_shape: tuple[int, ...] = (8, 8, 1)  # (H, W, C) of images, or (d,) of real points
    levels: int = 17  # number of values that a channel of a pixel has, 0 .. levels-1; 0 for points
    num_classes: int = 0  # classes of the label that an image is drawn given; 0: no label
    network: Literal["unet", "dit", "mlp"] = "unet"  # points need mlp
    unet: UNetConfig = UNetConfig()
    dit: DiTConfig = DiTConfig()
    mlp: MLPDenoiserConfig = MLPDenoiserConfig()
    path: Literal["linear", "trigonometric"] = "linear"  # from data to noise: a straight line, or an arc that keeps a variance of 1
    coupling: Literal["independent", "transport"] = "independent"  # of the examples of a batch with its noise, in training
    drop_label: float = 0.1  # probability with which the label is hidden in training, which guidance needs
    sampler: samplers.Method = "midpoint"  # how samples are drawn: the methods of denoising/samplers.py
    sample_steps: int = 25  # steps of the sampler
    guidance: float = 0.0  # w, how far samples go beyond the flow given the label, away from that without; 0: no guidance
    density_steps: int = 40  # steps of the log-density, each of four evaluations
    probes: int = 1  # random vectors for the trace of more than EXACT_TRACE dimensions; 0: the exact trace
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters and results are float32

    def __post_init__(self):
        check_types(self)
        check_levels(self.levels, modelled(self))
        check_network(self)
        for name, low in {"num_classes": 0, "sample_steps": 1, "density_steps": 1, "probes": 0}.items():
            if getattr(self, name) < low:
                raise ConfigError(name, f"{low} or more", getattr(self, name))
        if not 0 <= self.drop_label < 1:
            raise ConfigError("drop_label", "a number in 0..1, 1 excluded", self.drop_label)
        if self.coupling == "transport" and self.num_classes:
            hint = "given a label, noise paired by transport is not N(0, I)"
            raise ConfigError("coupling", "independent, for a model of labels", self.coupling, hint)

    @classmethod
    def defaults_for(cls, features: dict[str, Feature]) -> dict[str, object]:
        """The network for points."""
        return {"network": "mlp"} if "point" in features else super().defaults_for(features)


class FlowMatching(nnx.Module):
    """The velocity f. Methods raise ConfigError for what does not fit the config.

    label: int [B] or one int, or weights of the classes, float [B, num_classes]; None for a model without labels.
    """

    def __init__(self, config: FlowMatchingConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.network = DenoisingNetwork(config, 1, rngs)

    @property
    def schedule(self) -> Schedule:
        """alpha(t) and sigma(t)."""
        return PATHS[self.config.path]()

    def velocity(self, x: Float[Array, "B ..."], t, label=None, guidance: float = 0.0) -> Float[Array, "B ..."]:
        """dx/dt at one time for all rows. guidance: w."""
        label = check_label(label, self.config.num_classes, x.shape[0])
        return self.network.guided(x, jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1]), label, guidance)

    def denoise(self, x: Float[Array, "B ..."], t, label=None, guidance: float = 0.0) -> Float[Array, "B ..."]:
        """The estimate of E[x_0 | x_t] that belongs to the velocity."""
        return self.schedule.x0_of_velocity(x, self.velocity(x, t, label, guidance), t)

    def loss(self, batch: dict, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
        """The loss above of a batch {"image": integers [B, H, W, C]}, or {"point": float32 [B, d]}."""
        x, config = image_of(batch, self.config.modelled), self.config
        key_level, key_noise, key_time, key_hidden, key_dropout = jax.random.split(key, 5)
        if self._discrete:
            x = check_images(x, config.image_shape, config.levels)
            x = x.astype(jnp.float32) + along_one_axis(jax.random.uniform, key_level, x.shape)
        x0 = self._scale(x)
        label = check_label(given_to(config, batch).get("label"), config.num_classes, x0.shape[0])
        hidden = None if label is None else jax.random.bernoulli(key_hidden, config.drop_label, x0.shape[:1])
        noise, t = standard_normal(key_noise, x0.shape), antithetic_times(key_time, x0.shape[0])
        if config.coupling == "transport":
            noise = nearest_noise(x0, noise)
        alpha_rate, sigma_rate = (rate.reshape(-1, *[1] * (x0.ndim - 1)) for rate in self.schedule.rates(t))
        output = self.network(self.schedule.corrupt(x0, noise, t), t, label, hidden, key_dropout)
        error = ((output - (alpha_rate * x0 + sigma_rate * noise)) ** 2).mean()
        return error, {"velocity_error": error}

    def log_density(self, v: Float[Array, "B ..."], key: PRNGKeyArray | None = None, label=None) -> Float[Array, " B"]:
        """log p(v) in nats, see `density`; with an estimated trace an unbiased estimate of it, which draws from `key`."""
        return self.density(v, key, label).log_density

    def density(
        self, v: Float[Array, "B ..."], key: PRNGKeyArray | None = None, label=None, steps: int | None = None, probes: int | None = None
    ) -> ode.Density:
        """log p(v) in nats with its standard error, and the noise x_1 at the end of the ODE. v: levels plus noise, or points.

        key: for the random vectors of an estimated trace. steps, probes: None for the config's. ConfigError without the key.
        """
        config = self.config
        if tuple(v.shape[1:]) != tuple(config.image_shape):
            raise ConfigError("v", f"shape [B, {', '.join(map(str, config.image_shape))}]", list(v.shape))
        label, steps = check_label(label, config.num_classes, v.shape[0]), config.density_steps if steps is None else steps
        probes = (config.probes if self.draws_trace else 0) if probes is None else probes and check_count(probes, "probes")
        if probes and key is None:
            raise ConfigError("key", f"a key for the trace, estimated by {probes} random vectors", "None", "probes=0 has the exact trace")
        return self._density(v, key if probes else None, label, check_count(steps, "steps"), probes)

    @partial(jax.jit, static_argnames=("steps", "probes"))  # else its loop is compiled in every call
    def _density(self, v: Float[Array, "B ..."], key: PRNGKeyArray | None, label, steps: int, probes: int) -> ode.Density:
        config, times = self.config, jnp.flip(quadratic_times(steps))
        random = {"key": key, "probes": probes} if probes else {}
        result = ode.log_density(lambda x, t: self.velocity(x, t, label), self._scale(v), times, **random)
        scale = prod(config.image_shape) * log(2 / config.levels) if self._discrete else 0.0
        return result._replace(log_density=result.log_density + scale)

    @property
    def draws_trace(self) -> bool:
        """Whether `log_density` draws random vectors from its key."""
        return self.config.probes > 0 and prod(self.config.image_shape) > EXACT_TRACE

    def density_errors(self, v: Float[Array, "B ..."], key: PRNGKeyArray, **given) -> dict[str, Float[Array, " B"]]:
        """Of log_density in nats: "solver_error", the change from twice the steps; "trace_error", the standard error of the trace."""
        most = max(self.config.probes, 2) if self.draws_trace else 0  # from a single probe no error can be estimated
        coarse = self.density(v, key, **given, probes=most)
        fine = self.density(v, key, **given, probes=most, steps=2 * self.config.density_steps)
        error = coarse.standard_error * (most / max(self.config.probes, 1)) ** 0.5
        return {"solver_error": jnp.abs(coarse.log_density - fine.log_density), "trace_error": error}

    def sample(
        self, key: PRNGKeyArray, n: SupportsIndex, label=None, known=None, sampler: str | None = None, steps: int | None = None,
        guidance: float | None = None,
    ) -> Num[Array, "n ..."]:  # fmt: skip
        """n images [n, H, W, C] of the smallest unsigned type for their levels, or n points float32 [n, d].

        known: images and bool [n, H, W] or [H, W], True where their pixels are kept; other pixels are drawn given them, approximately, with
        each step taken four times (see samplers.py). sampler, steps, guidance: those of denoising/samplers.py; None: the config's, and
        "ancestral" where pixels are known. Euler-Maruyama starts at t = 1 - 1 / (steps + 1), since its noise is infinite at t = 1.
        """
        method = sampler or (self.config.sampler if known is None else "ancestral")
        return _sample(self, key, **samplers.check_asked(self.config, self._discrete, key, n, label, known, method, steps, guidance))

    @property
    def _discrete(self) -> bool:
        return modelled(self.config).discrete

    def _scale(self, v: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """x_0."""
        return v * (2 / self.config.levels) - 1 if self._discrete else v


@partial(jax.jit, static_argnames=("n", "method", "steps", "guidance"))
def _sample(model: FlowMatching, key: PRNGKeyArray, label, image, mask, *, n: int, method: str, steps: int, guidance: float) -> Array:
    config, (key_noise, key_path) = model.config, jax.random.split(key)
    known = samplers.of_known(None if mask is None else model._scale(image.astype(jnp.float32) + 0.5), mask, method)
    times = uniform_times(steps, steps / (steps + 1) if method == "euler_maruyama" else 1.0)
    noise = standard_normal(key_noise, (n, *config.image_shape))
    denoise = partial(model.denoise, label=label, guidance=guidance)
    x = samplers.sample(denoise, model.schedule, noise, times, key_path, method=method, **known)
    if not model._discrete:
        return x
    levels = jnp.clip(jnp.floor((x + 1) * (config.levels / 2)), 0, config.levels - 1).astype(smallest_unsigned(config.levels))
    return levels if mask is None else jnp.where(known["mask"], image, levels)
