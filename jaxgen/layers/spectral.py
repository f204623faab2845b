"""Spectral normalisation (Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", algorithm 1).

    layer(x) with W / sigma in the place of its kernel W,   sigma = |W v|,   v = v_0 after one step of the power iteration

    v <- W' W v / |W' W v|,  which converges to the right singular vector of the largest singular value, and |W v| to that value

W is the kernel as a matrix [R, E]: its last axis are the E outputs, all others the R inputs. v_0 is a variable of the layer that no call
changes: all calls of one step use the same kernel. After the update of the parameters the caller stores the v of the step (`advanced`) as
the next v_0. Gradients flow through W, in sigma too, and v is held constant.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxgen.layers.convolutions import dot


class Spectral(nnx.Module):
    """A layer with a `kernel`, such as `nnx.Linear` or `Conv`, that computes with the kernel divided by its largest singular value."""

    def __init__(self, layer: nnx.Module):
        outputs = layer.kernel.shape[-1]
        self.layer, self.vector = layer, nnx.Variable(jnp.full(outputs, outputs**-0.5, jnp.float32))  # a unit vector

    def __call__(self, x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """The layer's output."""
        graph, state = nnx.split(self.layer)
        state["kernel"] = state["kernel"].replace(self.kernel())
        return nnx.merge(graph, state)(x)

    def kernel(self) -> Float[Array, "*shape"]:
        """W / sigma, in the shape of the layer's kernel."""
        kernel = self.layer.kernel[...]
        image = dot(kernel.reshape(-1, kernel.shape[-1]), self.advanced()[:, None])
        return kernel / jnp.sqrt((image**2).sum() + 1e-12)

    def advanced(self) -> Float[Array, " E"]:
        """v, without a gradient; v_0 where W v_0 is 0."""
        kernel, vector = jax.lax.stop_gradient((self.layer.kernel[...], self.vector[...]))
        matrix = kernel.reshape(-1, kernel.shape[-1])
        back = dot(dot(matrix, vector[:, None])[:, 0][None], matrix)[0]
        length = jnp.sqrt((back**2).sum())
        return jnp.where(length > 0, back / jnp.where(length > 0, length, 1), vector)


def spectral_layers(module: nnx.Module) -> list[Spectral]:
    """All layers of a module that are normalised, always in the same order."""
    return [part for _, part in nnx.iter_modules(module) if isinstance(part, Spectral)]
