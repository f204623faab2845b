"""From noise to data with any denoiser: one step of each method takes x at time t to x at an earlier time s.

    x0 = denoise(x, t), the estimate of E[x_0 | x_t];      n = (x - alpha_t x0) / sigma_t;      r = 1 - SNR_t / SNR_s

    method            one step                                                                             evaluations   order
    "ancestral"       N(alpha_s x0 + sigma_s sqrt(1 - r) n, v), the mean of q(x_s | x_t, x_0 = x0)              1          -
    "ddim"            alpha_s x0 + sqrt(sigma_s^2 - w) n + sqrt(w) z,   w = eta^2 sigma_s^2 r                    1          1 (eta = 0)
    "euler"           x + (s - t) dx/dt,   dx/dt = alpha' x0 + sigma' n                                         1          1
    "heun"            the mean of the slopes dy/du at t and at the end of the DDIM step                         2          2
    "midpoint"        the slope dy/du half-way in u                                                             2          2
    "multistep"       (sigma_s / sigma_t) x - alpha_s expm1(-h) D,   h = log(SNR_s / SNR_t) / 2                  1          2
    "euler_maruyama"  x + (s - t) (dx/dt + g^2 n / (2 sigma)) + g sqrt(t - s) z,   g^2 = 2 sigma (sigma' - sigma alpha' / alpha)   1

Ancestral (Ho et al. 2020): v is "small", sigma_s^2 r, "large", sigma_t^2 r, or given. With v small it is DDIM (Song et al. 2020) with
eta = 1. Heun and midpoint solve the ODE in y = x / (alpha + sigma) over u = sigma / (alpha + sigma). There y = (1 - u) x_0 + u noise, the
linear path, and dy/du = n - x0 whatever the schedule is; DDIM with eta = 0 is Euler's method in these coordinates. Multistep is
DPM-Solver++ (2M) of Lu et al. 2022: D = x0 + (x0 - x0 of the step before) h / (2 h before). Euler-Maruyama is for the reversed SDE of Song
et al. 2021.

Every method ends with a first-order step where its own is not defined: where sigma_s is 0 (Heun, multistep), and in the first step
(multistep). The stochastic methods add no noise in a step to sigma_s = 0. Nothing is clipped unless `clip` asks for it.

Known values, for any mask, are met in one of two ways; at the end known values are exactly the given ones in both.

-   `known`, `mask` of `sample`: before each step the known part of x becomes alpha_t known + sigma_t z (Song et al. 2021). This is an
    approximation also with an exact denoiser: the unknown part was made from another draw of the known part than the one it now stands
    beside. With `repeats` R > 1 each step is undone by noise and taken again, R times in all (Lugmayr et al. 2022, "RePaint"), which
    brings both parts together: closer with more repeats. A repeated step also repeats its own error, so use v large or small steps.
    For a Gaussian of correlation 0.8, 40 steps: of the 0.96 by which a known value moves the mean of an unknown one, Heun reaches 0.42,
    ancestral with v large 0.60, with R = 4 0.86, with R = 10 0.92.
-   `denoiser_given(denoise, schedule, known, mask)` is an estimate of E[x_0 | x_t, known], for every method. It is exact for Gaussian data.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxgen.checks import check_count, check_key, check_known, check_label
from jaxgen.denoising.exact import Denoiser
from jaxgen.denoising.schedules import Schedule, times_at
from jaxgen.distributions import standard_normal
from jaxgen.errors import ConfigError, did_you_mean

Method = Literal["ancestral", "ddim", "euler", "heun", "midpoint", "multistep", "euler_maruyama"]
METHODS: tuple[str, ...] = get_args(Method)
EVALUATIONS = {method: 2 if method in ("heun", "midpoint") else 1 for method in METHODS}
"""How often one step calls the denoiser."""
REPEATS = 4
"""How often models take each step where pixels are known."""


class Step(NamedTuple):
    """The numbers of one step from t to s; each is a scalar in a step and [steps] for all of them."""

    t: Float[Array, "..."]
    s: Float[Array, "..."]
    alpha: Float[Array, "..."]  # at t
    sigma: Float[Array, "..."]
    alpha_s: Float[Array, "..."]
    sigma_s: Float[Array, "..."]
    r: Float[Array, "..."]  # 1 - SNR_t / SNR_s, in 0..1
    h: Float[Array, "..."]  # half the growth of log SNR; infinite for a step from alpha = 0 or to sigma = 0
    middle: Float[Array, "..."]  # the time half-way in u
    variance: Float[Array, "..."]  # of the noise added by ancestral, unless it is learned, and ddim


def check_asked(config, discrete: bool, key, n, label, known, method: str, steps: int | None, guidance: float | None) -> dict[str, Any]:
    """What a model's `sample` was asked for, checked and in its standard form: label, image and mask (or None), n, method, steps and
    guidance; None for the config's steps and guidance. discrete: whether the model is one of images. Raises ConfigError."""
    check_key(key)
    n, w = check_count(n), config.guidance if guidance is None else guidance
    if method not in METHODS:
        raise ConfigError("sampler", f"one of {', '.join(METHODS)}", method, did_you_mean(method, METHODS))
    if w and not config.num_classes:
        raise ConfigError("guidance", "0 for a model without classes", w)
    if known is not None and not discrete:
        raise ConfigError("known", "None, since points have no pixels", "known values")
    image, mask = (None, None) if known is None else check_known(known, n, config.image_shape, config.levels)
    label = check_label(label, config.num_classes, n)
    steps = check_count(config.sample_steps if steps is None else steps, "steps")
    return {"label": label, "image": image, "mask": mask, "n": n, "method": method, "steps": steps, "guidance": float(w)}


def of_known(x: Float[Array, "n H W C"] | None, mask: Bool[Array, "*n H W"] | None, method: str) -> dict[str, Any]:
    """The arguments of `sample` with which a model of images draws pixels given those that are known: nothing where mask is None, else x
    where the mask is True, REPEATS of each step (multistep cannot), and large variances of ancestral steps."""
    if mask is None:
        return {}
    variance = {"variance": "large"} if method == "ancestral" else {}
    return {"known": x, "mask": jnp.broadcast_to(mask[..., None], x.shape), "repeats": 1 if method == "multistep" else REPEATS} | variance


def sample(
    denoise: Callable[..., Any],
    schedule: Schedule,
    noise: Float[Array, "B ..."],
    times: Float[Array, " N"],
    key: PRNGKeyArray | None = None,
    *,
    method: str = "ddim",
    eta: float = 0.0,
    variance: str | Float[np.ndarray | Array, " M"] = "small",
    clip: float | None = None,
    known: Float[np.ndarray | Array, "..."] | None = None,
    mask: Bool[np.ndarray | Array, "..."] | None = None,
    repeats: int = 1,
    path: bool = False,
) -> Float[Array, "..."]:
    """x at the last of `times` [steps + 1], which fall; see the table of the module.

    denoise(x [B, ...], t scalar) -> E[x_0 | x_t] as [B, ...]. noise: x at times[0], a draw of sigma N(0, I) where alpha is about 0.
    key: step i draws from fold_in(key, i); None for methods that draw nothing, which are all but ancestral, euler_maruyama and eta > 0.
    eta: of ddim. variance: of ancestral; "small", "large", one number for each step [steps], or "learned": `denoise` then returns
    (x0, share) with a share in 0..1 of the shape of x, and log v = share log(large) + (1 - share) log(small) (Nichol & Dhariwal 2021).
    clip: x0 is clipped to [-clip, clip]. known, mask: values, and bool, True where they are known; of the shape of x or of one example.
    repeats: how often each step is taken, with known values only. path: return x at all times, [steps + 1, B, ...].
    Raises ConfigError for an argument that cannot be used.
    """
    _check(noise, times, key, method, eta, variance, clip, known, mask, repeats)
    steps, count = _steps(schedule, times, method, eta, variance), len(times) - 1
    key = jax.random.key(0) if key is None else key  # for methods that draw nothing
    learned = isinstance(variance, str) and variance == "learned"
    if mask is not None:
        known, mask = (jnp.broadcast_to(jnp.asarray(array), noise.shape) for array in (known, mask))

    def estimate(x, t):
        x0, share = denoise(x, t) if learned else (denoise(x, t), None)
        x0 = x0 if clip is None else jnp.clip(x0, -clip, clip)
        return (x0, share) if method == "ancestral" else x0

    def move(carry, row):
        x, before = carry
        i, again, step = row
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        if mask is not None:
            x = jnp.where(mask, step.alpha * known + step.sigma * standard_normal(keys[0], x.shape, x.dtype), x)
        z = jnp.where(step.sigma_s > 0, standard_normal(keys[1], x.shape, x.dtype), 0)
        x, before = _TAKE[method](estimate, schedule, x, step, z, before)
        if repeats > 1:
            noisier = step.alpha / step.alpha_s * x + step.sigma * jnp.sqrt(step.r) * standard_normal(keys[2], x.shape, x.dtype)
            x = jnp.where(again, noisier, x)
        return (x, before), x if path else None

    moves = jnp.arange(count * repeats)
    rows = (moves, moves % repeats < repeats - 1, jax.tree.map(lambda row: jnp.repeat(row, repeats), steps))
    (x, _), xs = jax.lax.scan(move, (noise, (jnp.zeros_like(noise), jnp.asarray(jnp.inf, noise.dtype))), rows)
    x = x if mask is None else jnp.where(mask, known, x)
    return jnp.concatenate([noise[None], xs[repeats - 1 : -1 : repeats], x[None]]) if path else x


def denoiser_given(
    denoise: Denoiser,
    schedule: Schedule,
    known: Float[np.ndarray | Array, "..."],
    mask: Bool[np.ndarray | Array, "..."],
    iterations: int = 30,
) -> Denoiser:
    """The denoiser E[x_0 | x_t, x_0 = known where mask], from the mean and the covariance of x_0 given x_t.

        C = Cov[x_0 | x_t] = (sigma^2 / alpha) d denoise / dx,      x0 + C M' (M C M')^{-1} (known - M x0),      M selects the known values

    C is not formed: products with it are derivatives of `denoise`, and the linear equation is solved by at most `iterations` steps of
    conjugate gradients (Rozet et al. 2024; Boys et al. 2023). Exact for Gaussian data and enough iterations, since x_0 given x_t is then
    Gaussian; otherwise an approximation. Where alpha is 0 all derivatives are 0, and the unknown values are those of `denoise`.
    known, mask: of the shape of x or of one example. One call costs one call of `denoise` and 1 + iterations of its derivative.
    """
    mask = jnp.asarray(mask)

    def given(x, t):
        x0, back = jax.vjp(lambda x: denoise(x, t), x)
        selected, values = jnp.broadcast_to(mask, x.shape), jnp.broadcast_to(known, x.shape)

        def chosen(v):
            return jnp.where(selected, v, 0)

        def covariance(v):  # alpha C v. The derivative of an exact denoiser is symmetric, so its transpose is the derivative
            return schedule.sigma(t) ** 2 * back(v)[0]

        solution = _conjugate_gradients(lambda v: chosen(covariance(v)), chosen(values - x0), iterations)
        return jnp.where(selected, values, x0 + covariance(solution))

    return given


def _conjugate_gradients(product, right, iterations: int):
    """The solution of product(v) = right for every row of [B, ...]; a row stops when its residual is at rounding."""
    axes = tuple(range(1, right.ndim))

    def inner(a, b):
        return (a * b).sum(axes, keepdims=True)

    def iterate(state, _):
        v, residual, direction, size = state
        image = product(direction)
        curvature = inner(direction, image)
        go = (size > 1e-12 * inner(right, right)) & (curvature > 0)
        rate = jnp.where(go, size / jnp.where(go, curvature, 1), 0)
        v, residual = v + rate * direction, residual - rate * image
        new = inner(residual, residual)
        direction = jnp.where(go, residual + new / jnp.where(go, size, 1) * direction, direction)
        return (v, residual, direction, jnp.where(go, new, size)), None

    state, _ = jax.lax.scan(iterate, (jnp.zeros_like(right), right, right, inner(right, right)), length=iterations)
    return state[0]


def _ancestral(denoise, schedule, x, step: Step, z, before):
    x0, share = denoise(x, step.t)
    mean = step.alpha_s * x0 + step.sigma_s * jnp.sqrt(1 - step.r) * _noise(x, x0, step)
    if share is None:
        return mean + jnp.sqrt(step.variance) * z, before
    large, small = (jnp.log(jnp.maximum(sigma**2 * step.r, jnp.finfo(x.dtype).tiny)) for sigma in (step.sigma, step.sigma_s))
    return mean + jnp.exp((share * large + (1 - share) * small) / 2) * z, before


def _ddim(denoise, schedule, x, step: Step, z, before):
    x0 = denoise(x, step.t)
    kept = jnp.sqrt(jnp.maximum(step.sigma_s**2 - step.variance, 0))
    return step.alpha_s * x0 + kept * _noise(x, x0, step) + jnp.sqrt(step.variance) * z, before


def _euler(denoise, schedule, x, step: Step, z, before):
    return x + (step.s - step.t) * schedule.velocity(x, denoise(x, step.t), step.t), before


def _euler_maruyama(denoise, schedule, x, step: Step, z, before):
    x0 = denoise(x, step.t)
    alpha_rate, sigma_rate = schedule.rates(step.t)
    spread = 2 * step.sigma * (sigma_rate - step.sigma * alpha_rate / step.alpha)  # g^2
    drift = schedule.velocity(x, x0, step.t) + spread / (2 * step.sigma) * _noise(x, x0, step)
    return x + (step.s - step.t) * drift + jnp.sqrt(spread * (step.t - step.s)) * z, before


def _heun(denoise, schedule, x, step: Step, z, before):
    x0 = denoise(x, step.t)
    n = _noise(x, x0, step)
    end = step.alpha_s * x0 + step.sigma_s * n  # the DDIM step

    def slope_at(end):
        x0 = denoise(end, step.s)
        return (end - step.alpha_s * x0) / step.sigma_s - x0

    change = jax.lax.cond(step.sigma_s > 0, slope_at, lambda end: n - x0, end) - (n - x0)
    du = _u(step.alpha_s, step.sigma_s) - _u(step.alpha, step.sigma)
    return end + (step.alpha_s + step.sigma_s) * du / 2 * change, before


def _midpoint(denoise, schedule, x, step: Step, z, before):
    x0 = denoise(x, step.t)
    alpha, sigma = schedule.alpha(step.middle), schedule.sigma(step.middle)
    middle = alpha * x0 + sigma * _noise(x, x0, step)
    x0 = denoise(middle, step.middle)
    du = _u(step.alpha_s, step.sigma_s) - _u(step.alpha, step.sigma)
    slope = (middle - alpha * x0) / sigma - x0
    return (step.alpha_s + step.sigma_s) * (x / (step.alpha + step.sigma) + du * slope), before


def _multistep(denoise, schedule, x, step: Step, z, before):
    x0, (x0_before, h_before) = denoise(x, step.t), before
    second_order = jnp.isfinite(step.h) & jnp.isfinite(h_before)
    weight = jnp.where(second_order, step.h / (2 * jnp.where(second_order, h_before, 1)), 0)
    estimate = x0 + weight * (x0 - x0_before)
    return step.sigma_s / step.sigma * x - step.alpha_s * jnp.expm1(-step.h) * estimate, (x0, step.h)


_TAKE = {"ancestral": _ancestral, "ddim": _ddim, "euler": _euler, "heun": _heun, "midpoint": _midpoint, "multistep": _multistep}
_TAKE |= {"euler_maruyama": _euler_maruyama}


def _noise(x, x0, step: Step):
    return (x - step.alpha * x0) / step.sigma


def _u(alpha, sigma):
    return sigma / (alpha + sigma)


def _steps(schedule: Schedule, times: Float[Array, " N"], method: str, eta: float, variance) -> Step:
    alpha, sigma, log_snr = schedule.alpha(times), schedule.sigma(times), schedule.log_snr(times)
    r, h = -jnp.expm1(log_snr[:-1] - log_snr[1:]), (log_snr[1:] - log_snr[:-1]) / 2
    u, middle = _u(alpha, sigma), times[:-1]
    if method == "midpoint":
        middle = times_at(schedule, 2 * jnp.log(2 / (u[:-1] + u[1:]) - 1))
    if method == "ddim":
        variance = eta**2 * sigma[1:] ** 2 * r
    elif isinstance(variance, str):
        variance = (sigma[:-1] if variance == "large" else sigma[1:]) ** 2 * r
    return Step(times[:-1], times[1:], alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], r, h, middle, jnp.asarray(variance, times.dtype))


def _check(noise, times, key, method, eta, variance, clip, known, mask, repeats) -> None:
    if method not in METHODS:
        raise ConfigError("method", f"one of {', '.join(METHODS)}", method, did_you_mean(method, METHODS))
    if len(times) < 2 or not (isinstance(times, jax.core.Tracer) or (np.diff(np.asarray(times)) < 0).all()):
        raise ConfigError("times", "at least two times that fall", f"{len(times)} times", "see jaxgen.denoising.schedules.uniform_times")
    if not 0 <= eta <= 1 or eta and method != "ddim":
        raise ConfigError("eta", "0..1 with method ddim, 0 with the others", eta)
    if isinstance(variance, str) and variance not in ("small", "large", "learned"):
        raise ConfigError("variance", "small, large, learned or a number for each step", variance)
    if not isinstance(variance, str) and np.shape(variance) != (len(times) - 1,):
        raise ConfigError("variance", f"shape [{len(times) - 1}], one number for each step", list(np.shape(variance)))
    if method != "ancestral" and not (isinstance(variance, str) and variance in ("small", "learned")):
        raise ConfigError("variance", "small, with another method than ancestral", variance)
    if clip is not None and not clip > 0:
        raise ConfigError("clip", "a positive number or None", clip)
    if (known is None) != (mask is None):
        raise ConfigError("known and mask", "both or neither", "mask only" if known is None else "known only")
    if mask is not None:
        for argument, array in (("known", known), ("mask", mask)):
            if array.shape not in (noise.shape, noise.shape[1:]):
                raise ConfigError(argument, f"shape {list(noise.shape)} or {list(noise.shape[1:])}", list(array.shape))
        if mask.dtype != bool:
            raise ConfigError("mask", "dtype bool", mask.dtype)
    if check_count(repeats, "repeats") > 1 and (mask is None or method == "multistep"):
        raise ConfigError("repeats", "1 without known values and with method multistep", repeats)
    if key is not None:
        check_key(key)
    elif method in ("ancestral", "euler_maruyama") or eta or mask is not None:
        raise ConfigError("key", f"a key, since {'known values' if mask is not None else method} draws noise", "None")
