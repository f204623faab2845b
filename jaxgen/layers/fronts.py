"""Fronts: pixels that do not depend on each other, one in each of several rows, drawn at once.

Where pixel (r, c) depends on row r - i up to column c + (s - 1) i only, it can be drawn at time t = s r + c, since every pixel that it
reads was drawn before. Row r has lane r mod K, with K = ceil((W + s - 1) / s) so that at least s - 1 columns of padding lie between two
rows of a lane: what is kept of them is zero, as the convolutions want it. An image takes s (H - 1) + W steps instead of H W.

In the sampler the Q = K n pixels of a front lie side by side, lane k of image b in place k n + b; features are columns, `[D, Q]`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from jaxgen.layers.convolutions import EXACT, at
from jaxgen.sampling import Draw, in_groups, place_by_place


@dataclass(frozen=True)
class Fronts:
    """The fronts of an image of H x W pixels, every row s = `skew` columns behind the one above it."""

    height: int
    width: int
    skew: int

    @property
    def lanes(self) -> int:
        """K: pixels of a front, those outside the image included."""
        return -(-(self.width + self.skew - 1) // self.skew)

    @property
    def places(self) -> Int[np.ndarray, "T K 2"]:
        """(r, c) of every lane at every time; some lie outside the image, where there is nothing to draw."""
        lanes = np.arange(self.lanes)
        times = np.arange(self.skew * (self.height - 1) + self.width)[:, None] - self.skew * lanes
        rounds, columns = np.divmod(times, self.skew * self.lanes)
        return np.stack([lanes + self.lanes * rounds, columns], axis=-1)

    @property
    def inside(self) -> Bool[np.ndarray, "T K"]:
        """Which places lie in the image."""
        return ((self.places >= 0) & (self.places < (self.height, self.width))).all(-1)

    def keep_inside(self, x: Float[Array, "*shape Q"], t) -> Float[Array, "*shape Q"]:
        """x of the pixels of front t, zero outside the image; front -1 is all outside."""
        inside = jnp.asarray(self.inside, x.dtype)[t] * jnp.asarray(t >= 0, x.dtype)
        return x * jnp.repeat(inside, x.shape[-1] // self.lanes).reshape(*(1,) * (x.ndim - 1), -1)

    def init_history(self, taps: int, shape: tuple[int, ...], n: int, dtype) -> Float[Array, "R *shape Q"]:
        """Room for what a kernel with so many taps to each side reads: history[t mod R] are the features of front t, zero outside."""
        return jnp.zeros((self.skew * taps + taps + 1, *shape, n * self.lanes), dtype)

    def weigh(self, weights: Float[Array, "... E F"], history: Float[Array, "R ... D Q"], t, up: int, taps: range) -> Array:
        """sum_j W_j x[r - up, c + j] over the taps j for every pixel of front t, the weights side by side: [..., E, Q]."""
        seen = [at(history, (t - self.skew * up + right) % len(history)) for right in taps]
        # Rolled after the product: XLA rolls what it reads element by element.
        product = jnp.matmul(weights, jnp.concatenate(seen, axis=-2), precision=EXACT)
        return jnp.roll(product, up * (history.shape[-1] // self.lanes), axis=-1)


def in_fronts(
    model, draw: Draw, condition, image: UInt[Array, "n H W C"], mask: Bool[Array, "n H W"], rows: Int[Array, " m"]
) -> UInt[Array, "m H W C"]:
    """The images `rows` of the n, front by front: the pixels of a front are one batch, lane after lane.

    The model has `fronts` and a cached form `init_fronts(n, condition)`, `step_front(cache, previous, t)` for all Q pixels of front t at
    once, where `previous` [Q, C] holds those of the front before, and `step_front_channel(cache, pixel, k)`.
    """
    places, inside = model.fronts.places, model.fronts.inside
    r, c = np.where(inside[..., None], places, 0).transpose(2, 0, 1)  # [T, K]; what is drawn for pixels outside the image is not used

    def group(rows):
        """The images `rows` of the batch: [g, H, W, C]."""
        given, keep = image[rows][:, r, c], mask[rows][:, r, c]  # [g, T, K, C], [g, T, K]
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731  (lanes and images to one axis)

        def finish(cache, parameters, r, c, given, keep):
            noise = jax.vmap(draw.noise)(r, c)[:, rows]
            return draw.pixel(model.step_front_channel, cache, parameters, flat(noise), flat(given), flat(keep))

        inputs = jnp.arange(len(r)), jnp.asarray(r), jnp.asarray(c), given.transpose(1, 2, 0, 3), keep.transpose(1, 2, 0)
        start = model.init_fronts(len(rows), jax.tree.map(lambda x: x[rows], condition)), jnp.zeros_like(flat(inputs[3][0]))
        _, values = jax.lax.scan(place_by_place(model.step_front, finish), start, inputs)
        values = values.reshape(*r.shape, len(rows), -1)[inside]
        return jnp.zeros_like(image[rows]).at[:, r[inside], c[inside]].set(values.swapaxes(0, 1))

    return in_groups(group, model.init_fronts, draw, condition, rows)
