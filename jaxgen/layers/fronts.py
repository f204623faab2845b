"""Fronts: sampling several pixels of an image at once, one in each of several rows, where they do not depend on each other.

If pixel (r, c) depends on columns before c of its row and on columns up to c + (s - 1) i of row r - i, i > 0, it can be drawn at time
t = s r + c: all pixels that it depends on have smaller times. The pixels of one time are a front. An image takes s (H - 1) + W steps
instead of H W.

A front has K = ceil((W + s - 1) / s) places, called lanes; row r is in lane r mod K. So a lane holds one row after the other, with at
least s - 1 steps between two rows. At these steps it is outside the image, and its features are set to 0, the padding of convolutions.

In the sampler a front is a batch of Q = K n pixels of n images, lane k of image b at index k n + b; features are columns, `[D, Q]`.
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
    """The fronts of an image of height x width pixels; at any time a row is s = `skew` columns behind the row above it."""

    height: int
    width: int
    skew: int

    @property
    def lanes(self) -> int:
        """K, the places of a front, some of them outside the image."""
        return -(-(self.width + self.skew - 1) // self.skew)

    @property
    def places(self) -> Int[np.ndarray, "T K 2"]:
        """(r, c) of every lane at each of the T times; some are outside the image."""
        lanes = np.arange(self.lanes)
        times = np.arange(self.skew * (self.height - 1) + self.width)[:, None] - self.skew * lanes
        rounds, columns = np.divmod(times, self.skew * self.lanes)
        return np.stack([lanes + self.lanes * rounds, columns], axis=-1)

    @property
    def inside(self) -> Bool[np.ndarray, "T K"]:
        """True where a lane is inside the image."""
        return ((self.places >= 0) & (self.places < (self.height, self.width))).all(-1)

    def keep_inside(self, x: Float[Array, "*shape Q"], t) -> Float[Array, "*shape Q"]:
        """x of the Q pixels of front t, set to 0 where they are outside the image; for t = -1 all are."""
        inside = jnp.asarray(self.inside, x.dtype)[t] * jnp.asarray(t >= 0, x.dtype)
        return x * jnp.repeat(inside, x.shape[-1] // self.lanes).reshape(*(1,) * (x.ndim - 1), -1)

    def init_history(self, taps: int, shape: tuple[int, ...], n: int, dtype) -> Float[Array, "R *shape Q"]:
        """Zeros for the last R fronts, as many as a kernel with `taps` rows above and `taps` columns to each side reads.

        history[t mod R] is for the features of front t.
        """
        return jnp.zeros((self.skew * taps + taps + 1, *shape, n * self.lanes), dtype)

    def weigh(self, weights: Float[Array, "... E F"], history: Float[Array, "R ... D Q"], t, up: int, taps: range) -> Array:
        """sum_j W_j x[r - up, c + j] over j in `taps`, for every pixel (r, c) of front t: [..., E, Q]; weights = [W_j ..], j ascending."""
        seen = [at(history, (t - self.skew * up + right) % len(history)) for right in taps]
        # Row r - up is `up` lanes before row r. Rolling the product, not the histories, is faster: XLA rolls element by element.
        product = jnp.matmul(weights, jnp.concatenate(seen, axis=-2), precision=EXACT)
        return jnp.roll(product, up * (history.shape[-1] // self.lanes), axis=-1)


def in_fronts(
    model, draw: Draw, condition, image: UInt[Array, "n H W C"], mask: Bool[Array, "n H W"], rows: Int[Array, " m"]
) -> UInt[Array, "m H W C"]:
    """Draw the images with the indices `rows` [m] of the batch of n, one front after the other; arguments as in `sampling.by_rows`.

    The model has `fronts` and a cached form for fronts: `init_fronts(n, condition)`; `step_front(cache, previous, t)`, the parameters of
    the Q pixels of front t from the values `previous` [Q, C] of front t-1; `step_front_channel(cache, pixel, k)` for channels k > 0.
    """
    places, inside = model.fronts.places, model.fronts.inside
    r, c = np.where(inside[..., None], places, 0).transpose(2, 0, 1)  # [T, K]; outside the image (0, 0), and the values are dropped

    def group(rows):
        """Draw the images with these indices: [g, H, W, C]."""
        given, keep = image[rows][:, r, c], mask[rows][:, r, c]  # [g, T, K, C], [g, T, K]
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731  ([K, g, ...] to [Q, ...])

        def finish(cache, parameters, r, c, given, keep):
            noise = jax.vmap(draw.noise)(r, c)[:, rows]
            return draw.pixel(model.step_front_channel, cache, parameters, flat(noise), flat(given), flat(keep))

        inputs = jnp.arange(len(r)), jnp.asarray(r), jnp.asarray(c), given.transpose(1, 2, 0, 3), keep.transpose(1, 2, 0)
        start = model.init_fronts(len(rows), jax.tree.map(lambda x: x[rows], condition)), jnp.zeros_like(flat(inputs[3][0]))
        _, values = jax.lax.scan(place_by_place(model.step_front, finish), start, inputs)
        values = values.reshape(*r.shape, len(rows), -1)[inside]
        return jnp.zeros_like(image[rows]).at[:, r[inside], c[inside]].set(values.swapaxes(0, 1))

    return in_groups(group, model.init_fronts, draw, condition, rows)
