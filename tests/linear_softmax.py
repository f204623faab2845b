"""A linear classifier, whose robust accuracy has a closed form, and a perceptron in numpy: oracles of attacks.

f(x) = W x + b predicts y on the whole ball of radius eps, if that lies in the box, exactly where for all j != y

    z_y - z_j > eps |w_j - w_y|_q,          1/p + 1/q = 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

DUAL = {1: np.inf, 2: 2, np.inf: 1}
CLASSES, SIDE = 5, 4


def linear(seed: int = 0, n: int = 200, scale: float = 1.0):
    """(logits_fn, weights [K, D], bias [K], images [N, 4, 4, 1] in 0.15..0.85, the classes that it predicts but for a tenth)."""
    generator = np.random.default_rng(seed)
    weights = scale * generator.normal(size=(CLASSES, SIDE * SIDE))
    x = generator.uniform(0.15, 0.85, (n, SIDE, SIDE, 1)).astype(np.float32)
    bias = -weights @ np.full(SIDE * SIDE, 0.5)
    y = logits(weights, bias, x).argmax(1)
    y[:: 10] = (y[::10] + 1) % CLASSES
    w, b = jnp.asarray(weights, jnp.float32), jnp.asarray(bias, jnp.float32)
    return (lambda x: jnp.matmul(x.reshape(x.shape[0], -1), w.T, precision="highest") + b[None]), weights, bias, x, y.astype(np.int32)


def logits(weights, bias, x):
    """In float64."""
    return np.asarray(x, np.float64).reshape(len(x), -1) @ weights.T + bias


def distances(weights, bias, x, y, norm: float) -> np.ndarray:
    """[N], the exact distance to the nearest image of another class; 0 where x is misclassified."""
    z = logits(weights, bias, x)
    gaps = z[np.arange(len(y)), y][:, None] - z
    sizes = np.linalg.norm(weights[None] - weights[y][:, None], DUAL[norm], axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = gaps / sizes
    ratios[np.arange(len(y)), y] = np.inf
    return np.maximum(ratios.min(1), 0)


def nearest(weights, bias, x, y) -> np.ndarray:
    """The nearest image of another class in the Euclidean distance, wherever it is; x where it is misclassified."""
    z = logits(weights, bias, x)
    w = weights[None] - weights[y][:, None]
    gaps, sizes = z[np.arange(len(y)), y][:, None] - z, np.linalg.norm(w, axis=2)
    sizes[np.arange(len(y)), y] = 1e-30
    ratios = np.where(np.arange(CLASSES)[None] == y[:, None], np.inf, gaps / sizes)
    best = ratios.argmin(1)
    along = w[np.arange(len(y)), best] / sizes[np.arange(len(y)), best][:, None]
    return x + (np.maximum(ratios.min(1), 0)[:, None] * along).reshape(x.shape)


def perceptron(seed: int = 1, size: int = 32, scale: float = 1.0):
    """(logits_fn, numpy's function to logits in float64) of a network with one hidden layer of relus, of images [N, 4, 4, 1]."""
    generator = np.random.default_rng(seed)
    first, second = generator.normal(size=(16, size)) / 4, scale * generator.normal(size=(size, CLASSES)) / np.sqrt(size)
    bias = generator.normal(size=size) / 4

    def numbers(x):
        return np.maximum((np.asarray(x, np.float64).reshape(len(x), -1) - 0.5) @ first * 4 + bias, 0) @ second

    a, b, c = (jnp.asarray(each, jnp.float32) for each in (first, second, bias))

    def logits_fn(x):
        hidden = jax.nn.relu(jnp.matmul(x.reshape(x.shape[0], -1) - 0.5, a * 4, precision="highest") + c[None])
        return jnp.matmul(hidden, b, precision="highest")

    return logits_fn, numbers
