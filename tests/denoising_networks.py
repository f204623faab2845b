"""Weights and inputs of denoising networks for tests: from a formula, so that only outputs need to be kept.

golden/denoising_networks.json holds what PyTorch 2.14.1 gave (numpy 2.4.6, Python 3.11.7, 2026-11-28) for these weights and inputs in
float64: functions written for that from the equations, of `torch.nn.functional` (conv2d, group_norm, layer_norm, gelu, interpolate,
scaled_dot_product_attention), not from this library's code. The numbers are in the order of the axes B, H, W, O.
"""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

FROM_PYTORCH = json.loads((Path(__file__).resolve().parent / "golden" / "denoising_networks.json").read_text("utf-8"))
"""Outputs of each network of the tests, by its name."""


def weights(net: nnx.Module) -> nnx.Module:
    """The network with every parameter drawn by numpy, with a seed that is the checksum of its path, such as "down.0.1.conv.kernel".

    Kernels have mean 0 and variance 1 / inputs, gains mean 1, biases mean 0; these two have deviation 0.2.
    """

    def one(path, leaf):
        words = [str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", "")))) for part in path]
        name = ".".join(words).removesuffix(".value")
        draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(leaf.shape)
        if name.endswith("kernel"):
            return jnp.asarray(draw / np.sqrt(np.prod(leaf.shape[:-1] if leaf.ndim > 3 else leaf.shape[-2:-1])), jnp.float32)
        return jnp.asarray(name.endswith("gain") + 0.2 * draw, jnp.float32)

    graph, state = nnx.split(net)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(one, state))


def inputs(shape: tuple[int, ...], embedding: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, times and embeddings of a batch, always the same."""
    rng = np.random.default_rng(1)
    parts = rng.standard_normal(shape), rng.uniform(size=shape[0]), rng.standard_normal((shape[0], embedding))
    return tuple(jnp.asarray(part, jnp.float32) for part in parts)


def count(make) -> int:
    """Parameters of the network that `make` would make."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(jax.eval_shape(make), nnx.Param)))
