"""The space of codes of a model: the codes of a data set, ways between two codes, changes of one number of a code, a map in two dimensions.

A model with vectors as codes has two methods,

    encode(x, **given) -> z [B, Z], or (mean, log variance) of q(z | x), [B, Z] each
    picture(z, **given) -> x                       what a code decodes to; of images the most probable or the nearest level of each pixel

(PCA, VAE, Autoencoder, NVAE; the code of an example is then z, or the mean). A GAN has no `encode`, but `noise(key, n) -> z [n, Z]`, so
there are ways between its draws of noise. The ways between two codes a and b, for t from 0 to 1:

    linear:     z_t = (1 - t) a + t b
    spherical:  z_t = r_t (cos(t w) u + sin(t w) v),   r_t = (1 - t) |a| + t |b|,   w = the angle between a and b

with u = a / |a| and v the unit vector orthogonal to u in the plane of a and b. For |a| = |b| the second is the great circle of Shoemake
1985 ("Animating Rotation with Quaternion Curves"), which White 2016 ("Sampling Generative Networks") takes for codes: codes of N(0, I) in
many dimensions have nearly the same length, and the middle of the straight line is shorter than all of them.

Axes: B batch, N examples, Z code, T steps of a way, D dimensions that are changed.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Num, PRNGKeyArray

from jaxgen import sharding
from jaxgen.data.features import given_to
from jaxgen.errors import ConfigError
from jaxgen.models import MODELS

DECODED = 64
"""Codes that are decoded at a time."""


class Codes(NamedTuple):
    """The codes of N examples. mean: the codes, or the means of q(z | x). variance: of q(z | x); None for models without a distribution."""

    mean: Float[np.ndarray, "N Z"]
    variance: Float[np.ndarray, "N Z"] | None

    def deviation(self) -> Float[np.ndarray, " Z"]:
        """The standard deviation of each dimension over the examples; with a variance that of a draw from q(z | x) of a random example."""
        variance = self.mean.var(0) if self.variance is None else self.mean.var(0) + self.variance.mean(0)
        return np.sqrt(variance)

    def importance(self) -> tuple[str, Float[np.ndarray, " Z"]]:
        """("KL in nats", the mean over the examples of KL(q(z_j | x) || N(0, 1))) for each dimension j, where there is a variance; else
        ("variance", the variance of each dimension over the examples)."""
        if self.variance is None:
            return "variance", self.mean.var(0)
        return "KL in nats", 0.5 * (self.mean**2 + self.variance - 1 - np.log(self.variance)).mean(0)


class CodeMap(NamedTuple):
    """N codes as points of the plane, and what its two axes are."""

    points: Float[np.ndarray, "N 2"]
    axes: tuple[str, str]


def check_codes(model: Any) -> None:
    """ConfigError unless the codes of the model are vectors."""
    _check_methods(model, "a model whose codes are vectors", "encode", "picture")


def check_walks(model: Any) -> None:
    """ConfigError unless the model decodes vectors: codes of examples, or noise."""
    if not (hasattr(model, "picture") and (hasattr(model, "encode") or hasattr(model, "noise"))):
        have = f"{models_with('encode', 'picture')}) or noise ({models_with('noise', 'picture')}"
        raise ConfigError("model", f"a model that decodes vectors, codes ({have})", type(model).__name__)


def check_reconstructs(model: Any) -> None:
    """ConfigError unless the model reconstructs."""
    _check_methods(model, "a model that reconstructs", "reconstruct")


def encoded(model: Any, dataset: Any, batch_size: int = 64) -> Codes:
    """The codes of all examples of a data set, in its order, float32. batch_size: how many are encoded at a time.

    ConfigError for a model whose codes are not vectors.
    """
    check_codes(model)
    encode, parts = jax.jit(lambda model, x, given: model.encode(x, **given)), []
    for batch, real in dataset.epoch(min(batch_size, len(dataset)), (0, 1)):
        codes = encode(model, batch[model.config.modelled], given_to(model.config, batch))
        parts.append([sharding.to_host(part)[real > 0] for part in (codes if isinstance(codes, tuple) else (codes,))])
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Codes(columns[0], np.exp(columns[1]) if len(columns) > 1 else None)


def reconstruct(model: Any, dataset: Any, batch_size: int = 64) -> Num[np.ndarray, "N ..."]:
    """What the codes of all examples of a data set decode to, batch_size at a time. ConfigError for a model that reconstructs nothing."""
    check_reconstructs(model)
    run, parts = jax.jit(lambda model, x, given: model.reconstruct(x, **given)), []
    for batch, real in dataset.epoch(min(batch_size, len(dataset)), (0, 1)):
        pictures = run(model, batch[model.config.modelled], given_to(model.config, batch))
        parts.append(sharding.to_host(pictures)[real > 0])
    return np.concatenate(parts)


def linear(first: Float[Any, "B Z"], last: Float[Any, "B Z"], n: int) -> Float[np.ndarray, "B T Z"]:
    """T = n codes from first to last on straight lines (the module's equation), t = 0, 1/(n-1), ..., 1; n is 2 or more."""
    first, last, t = _ends(first, last, n)
    return np.asarray((1 - t) * first + t * last, np.float32)


def spherical(first: Float[Any, "B Z"], last: Float[Any, "B Z"], n: int) -> Float[np.ndarray, "B T Z"]:
    """T = n codes from first to last on arcs (the module's equation), t = 0, 1/(n-1), ..., 1; n is 2 or more.

    Between vectors of one direction, and to or from the zero vector, only the length changes. Between opposite vectors every plane through
    them would do: v is then the coordinate axis in which `first` is smallest, made orthogonal to u. In one dimension there is none, and the
    way goes through zero.
    """
    first, last, t = _ends(first, last, n)
    lengths = [np.linalg.norm(end, axis=-1, keepdims=True) for end in (first, last)]
    u, towards = (end / np.where(length > 0, length, 1) for end, length in zip((first, last), lengths, strict=True))
    u, towards = np.where(lengths[0] > 0, u, towards), np.where(lengths[1] > 0, towards, u)
    cosine = (u * towards).sum(-1, keepdims=True)
    across = towards - cosine * u
    axis = np.eye(u.shape[-1])[np.abs(u).argmin(-1)]
    other = axis - (axis * u).sum(-1, keepdims=True) * u
    sine = np.linalg.norm(across, axis=-1, keepdims=True)
    angle = np.arctan2(sine, cosine)
    v = np.where((sine < 1e-12) & (cosine < 0), other, across)
    size = np.linalg.norm(v, axis=-1, keepdims=True)
    v = v / np.where(size > 0, size, 1)
    length = (1 - t) * lengths[0] + t * lengths[1]
    return np.asarray(length * (np.cos(t * angle) * u + np.sin(t * angle) * v), np.float32)


def interpolate(
    model: Any, first: dict, last: dict, n: int, way: Literal["linear", "spherical"] = "linear", key: PRNGKeyArray | None = None
) -> Num[np.ndarray, "B T ..."]:
    """What decodes from n codes between those of the examples of two batches, one pair a row; the ends are their reconstructions.

    A model without an encoder goes from one draw of noise to another, `noise(key, 2 B)`: the first B and the last B of them.
    What the model is given goes from one example's to the other's too: vectors, and the weights of the classes, on straight lines; all
    else is that of the first. ConfigError for a model that decodes no vectors, and for n below 2.
    """
    check_walks(model)
    way = {"linear": linear, "spherical": spherical}[way]
    if hasattr(model, "encode"):
        codes = [_codes(model, batch) for batch in (first, last)]
    else:
        pairs = len(first[model.config.modelled])
        codes = np.split(sharding.to_host(model.noise(jax.random.key(0) if key is None else key, 2 * pairs)), 2)
    between = way(*codes, n)
    given = {name: _given_between(model, name, *ends, n) for name, ends in _pairs(model, first, last).items()}
    pictures = _pictures(model, between.reshape(-1, between.shape[-1]), given)
    return pictures.reshape(*between.shape[:2], *pictures.shape[1:])


def traverse(
    model: Any, batch: dict, codes: Codes, dimensions: Int[np.ndarray, " D"], steps: Float[np.ndarray, " T"]
) -> Num[np.ndarray, "D T ..."]:
    """What decodes from the code of the batch's one example when dimension j of it is set to mean_j + steps_t deviation_j.

    codes: those of a data set, whose mean and standard deviation these are. All other dimensions stay those of the example, and so does
    what the model is given. ConfigError for a model whose codes are not vectors.
    """
    check_codes(model)
    values = codes.mean.mean(0)[:, None] + codes.deviation()[:, None] * steps[None]
    z = np.tile(_codes(model, batch)[0], (len(dimensions), len(steps), 1))
    for row, dimension in enumerate(dimensions):
        z[row, :, dimension] = values[dimension]
    given = {name: np.repeat(np.asarray(column), z.shape[0] * z.shape[1], axis=0) for name, column in given_to(model.config, batch).items()}
    pictures = _pictures(model, z.reshape(-1, z.shape[-1]), given)
    return pictures.reshape(*z.shape[:2], *pictures.shape[1:])


def code_map(codes: Codes) -> CodeMap:
    """The codes themselves if Z = 2, else their first two principal components; the axes say which, and the share of the variance.

    The sign of a component is that which makes its largest entry positive. ConfigError for codes of one dimension.
    """
    z = codes.mean.astype(np.float64)
    if z.shape[1] < 2:
        raise ConfigError("model", "codes of 2 or more dimensions", f"{z.shape[1]}")
    if z.shape[1] == 2:
        return CodeMap(codes.mean, ("z0", "z1"))
    centred = z - z.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(z))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(values))])
    first, second = values[:2] / (values.sum() or 1)
    axes = (f"first principal component of z ({first:.0%} of the variance)", f"second principal component of z ({second:.0%})")
    return CodeMap((centred @ vectors[:, :2]).astype(np.float32), axes)


def models_with(*methods: str) -> str:
    """The names of the library's models that have all of these methods."""
    return ", ".join(sorted(model.__name__ for model in MODELS.values() if all(hasattr(model, method) for method in methods)))


def _check_methods(model: Any, wanted: str, *methods: str) -> None:
    if not all(hasattr(model, method) for method in methods):
        raise ConfigError("model", f"{wanted} ({models_with(*methods)})", type(model).__name__)


def _codes(model: Any, batch: dict) -> Float[np.ndarray, "B Z"]:
    encode = jax.jit(lambda model, x, given: model.encode(x, **given))
    codes = encode(model, batch[model.config.modelled], given_to(model.config, batch))
    return sharding.to_host(codes[0] if isinstance(codes, tuple) else codes)


def _pictures(model: Any, z: Float[np.ndarray, "B Z"], given: dict) -> Num[np.ndarray, "B ..."]:
    """What decodes from the codes, at most DECODED at a time, in one program: the last part is filled up with its first code."""
    draw, parts, size = jax.jit(lambda model, z, given: model.picture(z, **given)), [], min(len(z), DECODED)
    for start in range(0, len(z), size):
        rows = np.arange(start, start + size)
        rows = np.where(rows < len(z), rows, start)
        part = draw(model, jnp.asarray(z[rows]), {name: column[rows] for name, column in given.items()})
        parts.append(sharding.to_host(part)[: len(z) - start])
    return np.concatenate(parts)


def _ends(first: Any, last: Any, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two codes [B, 1, Z] in float64, and t [1, T, 1]."""
    if n < 2:
        raise ConfigError("n", "2 or more: both ends", n)
    first, last = (np.asarray(end, np.float64)[:, None] for end in (first, last))
    return first, last, np.linspace(0, 1, n)[None, :, None]


def _pairs(model: Any, first: dict, last: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: (what the first examples are given, what the last are)}."""
    ends = [given_to(model.config, batch) for batch in (first, last)]
    return {name: (np.asarray(ends[0][name]), np.asarray(ends[1][name])) for name in ends[0]}


def _given_between(model: Any, name: str, first: np.ndarray, last: np.ndarray, n: int) -> np.ndarray:
    """[B n, ...]: one column that the model is given, between two examples."""
    if name == "label" and (first != last).any():
        first, last = (np.eye(model.config.features[name].classes, dtype=np.float32)[end] for end in (first, last))
    if np.issubdtype(first.dtype, np.floating):
        return linear(first, last, n).reshape(-1, first.shape[1])
    return np.repeat(first, n, axis=0)
