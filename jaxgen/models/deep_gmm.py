"""Deep mixture of Gaussians (van den Oord & Schrauwen 2014, "Factoring Variations in Natural Images with Deep Gaussian Mixture Models").

    z ~ N(0, I),    v = f_1(f_2(.. f_L(z))),    f_l one of the K_l affine maps of layer l, map i with probability pi_{l,i}

A path phi chooses one map in every layer. Maps are kept as their inverses, f_{l,i}^{-1}(y) = V_{l,i} y + c_{l,i}, and those of a path
compose to A_phi v + a_phi; so p is a mixture of K_1 K_2 .. K_L Gaussians with shared parts:

    p(v) = sum_phi pi_phi |det A_phi| N(A_phi v + a_phi; 0, I),     pi_phi = prod_l pi_{l,phi_l},   det A_phi = prod_l det V_{l,phi_l}

    E, full   q_n,phi = pi_phi N_phi(v_n) / p(v_n)           climbs the mean of log p(v)
    E, hard   q_n,phi = 1 for the best path of v_n, else 0   climbs the mean of max_phi log (pi_phi N_phi(v)), a lower bound (section 3.1)
    M         pi_{l,i} = the share of the paths through map i; then V and c of one layer after the other, the other layers fixed, below

With M_phi = sum_n q_n,phi (v_n, 1)(v_n, 1)^T, S_phi is M_phi seen behind the layers before l, and B_phi y + b_phi are the layers after it.
The last layer has those of a mixture of Gaussians: V_i is the whitening of the moments sum_phi S_phi, c_i = -V_i mean. In any other
layer the rows v_r of (V_i, c_i) are set one after the other, each to its maximum given the others, the larger of the two solutions of

    v_r = Q^{-1} (alpha p - h),   alpha = N_i / v_r p,   p = (column r of V_i^{-1}, 0),   Q = sum_phi L_rr S_phi,   L = B_phi^T B_phi
    h = sum_phi S_phi (sum_{s != r} L_rs v_s + (B_phi^T b_phi)_r e),   e = (0, 1)          (as Gales 1999 for diagonal L)

so that no step can lower what is climbed and there is no learning rate. The paper takes gradient steps instead, and in its hard E step
searches one layer at a time; here all paths are compared. One layer is the mixture of gmm.py, one layer of one map the Gaussian.

On images the density is that of v = x + u with u ~ U[0, 1), and the scores are the means over u, as in gmm.py: 1/12 stands in every
variance. `ridge` is a variance of the same kind. Sampled images are v rounded down and clipped to 0 .. levels-1.

EM runs in float64 on the host. It begins with the last layer as gmm.py does, and with layers before it that are the identity but for small
shifts along differences of examples. Axes: B batch, N examples, D dimensions of an example, E = D + 1,
L layers, K maps of a layer, P paths.
"""

from dataclasses import dataclass
from math import log, pi, prod
from typing import Any, ClassVar, Literal, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, Int, Num, PRNGKeyArray

from jaxgen.checks import check_count, check_key, check_levels
from jaxgen.config import check_types
from jaxgen.data.features import OfImagesOrPoints, modelled
from jaxgen.errors import ConfigError, DataError
from jaxgen.layers.convolutions import dot
from jaxgen.layers.dequantised import NOISE, as_vectors, rows, set_parameters, to_examples, whitening
from jaxgen.models import gmm


class Layer(NamedTuple):
    """The numbers of a layer in float64."""

    weights: Float64[np.ndarray, " K"]  # pi
    maps: Float64[np.ndarray, "K E E"]  # (V c; 0 1): y and a last 1 are mapped to V y + c and a last 1


@dataclass(frozen=True)
class DeepGMMConfig(OfImagesOrPoints):
    """Sizes of a deep mixture of Gaussians, and its EM. Raises ConfigError for sizes out of range."""

    image_shape: tuple[int, ...] = (8, 8, 1)  # (H, W, C) of images, or (d,) of real points
    levels: int = 17  # number of values that a channel of a pixel has, 0 .. levels-1; 0 for points
    maps: tuple[int, ...] = (2, 5)  # K of each layer, from the data to z; EM takes time and memory in proportion to their product
    e_step: Literal["full", "hard"] = "full"  # all paths by their probabilities, or the best alone
    iterations: int = 200  # of EM, at most
    tolerance: float = 1e-4  # EM ends where an iteration gains less than this many nats of an example
    ridge: float = 1e-6  # added to all variances of the data, so that no path shrinks to one example
    num_classes: ClassVar[int] = 0  # no labels

    def __post_init__(self):
        check_types(self)
        check_levels(self.levels, modelled(self))
        check_count(self.iterations, "iterations")
        if not self.maps or min(self.maps) < 1:
            raise ConfigError("maps", "at least one layer of at least one map", self.maps)
        for name in ("tolerance", "ridge"):
            if getattr(self, name) < 0:
                raise ConfigError(name, "0 or more", getattr(self, name))

    @property
    def noise(self) -> float:
        """The variance that is added to every dimension: the ridge, of images also that of u."""
        return self.ridge + (NOISE if modelled(self).discrete else 0.0)


class AffineMaps(nnx.Module):
    """The inverse maps of a layer; before `fit` the identity."""

    def __init__(self, k: int, d: int):
        self.log_weights = nnx.Param(jnp.full(k, -log(k), jnp.float32))
        self.matrix = nnx.Param(jnp.broadcast_to(jnp.eye(d), (k, d, d)).copy())  # V
        self.shift = nnx.Param(jnp.zeros((k, d)))  # c


class DeepGMM(nnx.Module):
    """The mixture over all paths; before `fit` it is N(0, I)."""

    def __init__(self, config: DeepGMMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.layers = nnx.List([AffineMaps(k, prod(config.image_shape)) for k in config.maps])

    @classmethod
    def fit(cls, dataset, config: DeepGMMConfig, key: PRNGKeyArray) -> "DeepGMM":
        """The model at the end of EM from a start that is drawn by `key`. DataError for fewer examples than maps of a layer, or two."""
        if len(dataset) < max(2, *config.maps):
            raise DataError("dataset", f"at least {max(2, *config.maps)} examples", len(dataset))
        return cls.of(config, em(dataset, config, start(dataset, config, key))[0])

    @classmethod
    def of(cls, config: DeepGMMConfig, layers: list[Layer]) -> "DeepGMM":
        """The model with these numbers."""
        model = cls(config, rngs=nnx.Rngs(0))
        for ours, layer in zip(model.layers, layers, strict=True):
            found = {"matrix": layer.maps[:, :-1, :-1], "shift": layer.maps[:, :-1, -1]}
            set_parameters(ours, {"log_weights": np.log(layer.weights), **found})
        return model

    def log_joint(self, v: Float[Array, "B ..."]) -> Float[Array, "B P"]:
        """log of pi_phi N_phi(v) in nats for all paths, the last layer's map the fastest; its softmax is p(phi | v)."""
        y = as_vectors(v, self.config)[None]  # [P, B, D], of the paths so far
        joint = jnp.zeros(1)
        for layer in self.layers:
            matrix, shift = layer.matrix[...], layer.shift[...]
            of_map = layer.log_weights[...] + jnp.linalg.slogdet(matrix)[1]
            joint = (joint[:, None] + of_map[None]).reshape(-1)
            y = jax.vmap(lambda one, c, y=y: dot(y, one.T) + c[None, None], out_axes=1)(matrix, shift).reshape(-1, *y.shape[1:])
        return (joint[:, None] - 0.5 * ((y**2).sum(-1) + y.shape[2] * log(2 * pi))).T

    def log_density(self, v: Float[Array, "B ..."]) -> Float[Array, " B"]:
        """log p(v) in nats."""
        return jax.nn.logsumexp(self.log_joint(v), axis=-1)

    def sample(self, key: PRNGKeyArray, n: SupportsIndex) -> Num[Array, "n ..."]:
        """n points float32 [n, d], or n images [n, H, W, C]: draws of v, for images rounded down and clipped."""
        check_key(key)
        n, (key, key_z) = check_count(n), jax.random.split(key)
        v = jax.random.normal(key_z, (n, prod(self.config.image_shape)))
        for index in reversed(range(len(self.layers))):
            layer = self.layers[index]
            chosen = jax.random.categorical(jax.random.fold_in(key, index), layer.log_weights[...], shape=(n,))
            inverses = jnp.linalg.inv(layer.matrix[...])
            each = jax.vmap(lambda one, c, v=v: dot(v - c[None], one.T))(inverses, layer.shift[...])  # [K, n, D]
            v = each[chosen, jnp.arange(n)]
        return to_examples(v, self.config)


def start(dataset: Any, config: DeepGMMConfig, key: PRNGKeyArray) -> list[Layer]:
    """Where EM begins: see above."""
    one = gmm.GMMConfig(config.image_shape, config.levels, config.maps[-1], ridge=config.ridge)
    mixture, d = gmm.start(dataset, one, key), prod(config.image_shape)
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    examples = np.concatenate(list(rows(dataset, config)))
    layers = []
    for k in config.maps[:-1]:
        pairs = examples[generator.integers(len(examples), size=(2, k))]
        layers.append(Layer(np.full(k, 1 / k), np.stack([_affine(np.eye(d), 0.1 * c) for c in pairs[0] - pairs[1]])))
    whiten = [_whiten(one) for one in mixture.covariances]
    last = np.stack([_affine(one, -one @ mean) for one, mean in zip(whiten, mixture.means, strict=True)])
    return [*layers, Layer(mixture.weights, last)]


def em(dataset: Any, config: DeepGMMConfig, layers: list[Layer]) -> tuple[list[Layer], Float64[np.ndarray, " iterations"]]:
    """The layers after the last M step, and what is climbed, in nats of an example, before each M step.

    Raises DataError where a path shrinks to a subspace.
    """
    found: list[float] = []
    while len(found) < config.iterations:
        moments, score = e_step(dataset, config, layers)
        layers = m_step(layers, moments)
        found.append(score)
        if len(found) > 1 and found[-1] - found[-2] < config.tolerance:
            break
    return layers, np.array(found)


def e_step(dataset: Any, config: DeepGMMConfig, layers: list[Layer]) -> tuple[Float64[np.ndarray, "P E E"], float]:
    """M_phi of every path, with the noise, and the mean over the examples of what is climbed."""
    d, paths = prod(config.image_shape), _paths(layers)
    whole = _composed(layers, paths, d)[:, :-1]  # (A a)
    weights = sum(np.log(layer.weights)[paths[:, place]] for place, layer in enumerate(layers))
    constants = weights + np.linalg.slogdet(whole[..., :-1])[1] - 0.5 * d * log(2 * pi)
    constants -= 0.5 * config.noise * np.square(whole[..., :-1]).sum(axis=(1, 2))  # the mean of |A u|^2 / 2
    moments, score, half = np.zeros((len(paths), d + 1, d + 1)), 0.0, 0.5 if modelled(config).discrete else 0.0
    for x in rows(dataset, config):
        v = np.concatenate([x + half, np.ones((len(x), 1))], axis=1)
        joint = constants - 0.5 * np.stack([np.square(v @ one.T).sum(axis=1) for one in whole], axis=1)
        most = joint.max(axis=1, keepdims=True)
        if config.e_step == "hard":
            q = np.eye(len(paths))[joint.argmax(axis=1)]
            score += most.sum()
        else:
            q = np.exp(joint - most)
            score += (most[:, 0] + np.log(q.sum(axis=1))).sum()
            q /= q.sum(axis=1, keepdims=True)
        for path in range(len(paths)):
            moments[path] += (q[:, path, None] * v).T @ v
    moments[:, range(d), range(d)] += config.noise * moments[:, -1, -1][:, None]
    return moments, score / len(dataset)


def m_step(layers: list[Layer], moments: Float64[np.ndarray, "P E E"]) -> list[Layer]:
    """The layers with new weights and maps; a map that no example takes keeps its own, with a weight of 1e-12."""
    paths, count, layers, d = _paths(layers), moments[:, -1, -1], list(layers), moments.shape[-1] - 1
    for place in reversed(range(len(layers))):
        before = _composed(layers[:place], paths[:, :place], d)
        after = _composed(layers[place + 1 :], paths[:, place + 1 :], d)
        maps = layers[place].maps.copy()
        shares = np.array([count[paths[:, place] == i].sum() for i in range(len(maps))]) / count.sum()
        for i in np.flatnonzero(shares > 1e-12):
            through = paths[:, place] == i
            seen = before[through] @ moments[through] @ before[through].transpose(0, 2, 1)  # S
            maps[i] = _last(seen.sum(axis=0)) if place == len(layers) - 1 else _by_rows(maps[i], seen, after[through])
        weights = np.maximum(shares, 1e-12)
        layers[place] = Layer(weights / weights.sum(), maps)
    return layers


def _last(seen: Float64[np.ndarray, "E E"]) -> Float64[np.ndarray, "E E"]:
    """The map to N(0, I) of a Gaussian with these moments."""
    mean = seen[:-1, -1] / seen[-1, -1]
    whiten = _whiten(seen[:-1, :-1] / seen[-1, -1] - np.outer(mean, mean))
    return _affine(whiten, -whiten @ mean)


def _by_rows(
    one: Float64[np.ndarray, "E E"], seen: Float64[np.ndarray, "P E E"], after: Float64[np.ndarray, "P E E"]
) -> Float64[np.ndarray, "E E"]:
    """The map with each of its rows at its maximum given the others, one after the other."""
    one, count = one.copy(), seen[:, -1, -1].sum()
    v, inverse, b = one[:-1], np.linalg.inv(one[:-1, :-1]), after[:, :-1]
    inner, first = b[..., :-1].transpose(0, 2, 1) @ b[..., :-1], np.einsum("pij,pi->pj", b[..., :-1], b[..., -1])  # B^T B, B^T b
    for r in range(len(v)):
        others = inner[:, r].copy()
        others[:, r] = 0
        p = np.append(inverse[:, r], 0)
        h = np.einsum("pij,pj->i", seen, others @ v) + first[:, r] @ seen[..., -1]
        by_p, by_h = _solve(np.tensordot(inner[:, r, r], seen, 1), np.stack([p, h], axis=1)).T
        linear = p @ by_h
        # alpha (alpha p Q^{-1} p - p Q^{-1} h) = N; of its two solutions the one nearer to 0 has the larger value
        alpha = -2 * count / (linear + np.copysign(np.sqrt(linear**2 + 4 * count * (p @ by_p)), linear))
        change = alpha * by_p - by_h - v[r]
        v[r] += change
        along = change[:-1] @ inverse
        inverse -= np.outer(inverse[:, r], along) / (1 + along[r])
    return one


def _solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a^{-1} b; DataError where a is singular."""
    try:
        return np.linalg.solve(a, b)
    except np.linalg.LinAlgError:
        raise _flat() from None


def _whiten(covariance: Float64[np.ndarray, "D D"]) -> Float64[np.ndarray, "D D"]:
    """`whitening`; DataError where S is singular."""
    try:
        return whitening(covariance)
    except np.linalg.LinAlgError:
        raise _flat() from None


def _flat() -> DataError:
    hint = "choose a larger ridge or fewer maps"
    return DataError("dataset", "paths whose examples vary in all directions", "a singular covariance", hint)


def _affine(matrix: Float64[np.ndarray, "D D"], shift: Float64[np.ndarray, " D"]) -> Float64[np.ndarray, "E E"]:
    """(V c; 0 1)."""
    whole = np.eye(len(matrix) + 1)
    whole[:-1, :-1], whole[:-1, -1] = matrix, shift
    return whole


def _paths(layers: list[Layer]) -> Int[np.ndarray, "P L"]:
    """The number of the map in every layer, for all paths; the last layer's the fastest."""
    return np.indices([len(layer.weights) for layer in layers]).reshape(len(layers), -1).T


def _composed(layers: list[Layer], chosen: Int[np.ndarray, "P l"], d: int) -> Float64[np.ndarray, "P E E"]:
    """The inverse maps of these layers one after the other; of no layers the identity."""
    whole = np.broadcast_to(np.eye(d + 1), (len(chosen), d + 1, d + 1))
    for layer, of_layer in zip(layers, chosen.T, strict=True):
        whole = layer.maps[of_layer] @ whole
    return whole
