"""Many small arrays side by side in a few."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType

from jaxgen import packing, training
from jaxgen.packing import Packing


def mesh():
    return jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def test_arrays_of_any_shape_come_back_and_large_ones_and_other_types_stay_alone():
    random = np.random.default_rng(0)
    shapes = [(), (3,), (2, 5), (1, 1), (0,), (7, 2, 2)] * 100
    others = [jnp.zeros((8, packing.SMALL // 8)), jnp.arange(3), jnp.zeros(4, jnp.bfloat16), jax.random.key(0)]
    leaves = [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]
    leaves = [*leaves[:50], *others, *leaves[50:]]
    found = Packing.of(leaves, mesh())
    assert {i for group in found.groups for i in group} == {*range(604)} - {*range(50, 54)}
    arrays, outside = jax.jit(found.pack)(leaves), found.packed(leaves, mesh())
    assert len(arrays) == len(outside) == -(-600 // packing.GROUP) + 4
    for again in (jax.jit(found.unpack)(arrays), found.unpacked(outside, mesh()), found.unpacked(arrays, mesh())):
        assert all(isinstance(leaf, jax.Array) for leaf in again)
        assert all(a.dtype == b.dtype and a.shape == b.shape and (a == b).all() for a, b in zip(again, leaves, strict=True))


def test_what_is_unpacked_is_a_copy():
    """The step that follows is given the packed arrays and may write where they are."""
    arrays = (found := Packing.of(leaves := [jnp.full(4, float(i)) for i in range(packing.MANY)], mesh())).packed(leaves, mesh())
    kept = found.unpacked(arrays, mesh())
    jax.block_until_ready(jax.jit(lambda arrays: [array + 1 for array in arrays], donate_argnums=0)(arrays))
    assert all((leaf == i).all() for i, leaf in enumerate(kept))


def test_few_arrays_and_those_of_an_accelerator_stay_as_they_are(monkeypatch):
    few, many = [jnp.zeros(2)] * (packing.MANY - 1), [jnp.zeros(2)] * packing.MANY
    assert not Packing.of(few, mesh()).groups and Packing.of(many, mesh()).groups
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not Packing.of(many, mesh()).groups


class Sums(nnx.Module):
    """A model of 20 small arrays, 80 with their moments and averages."""

    def __init__(self):
        self.parts = nnx.List([nnx.Param(jnp.full(2, i / 9)) for i in range(20)])

    def loss(self, batch, key):
        value = jnp.square(jnp.stack([part[...] for part in self.parts]) - batch["x"]).mean()
        return value, {"distance": value}


def test_a_loop_with_packed_arrays_is_one_of_single_steps(monkeypatch):
    monkeypatch.setattr(packing, "MANY", 80)
    optimizer, batch, key = optax.adam(0.1), {"x": jnp.ones((1, 2))}, jax.random.key(0)
    step = training.make_train_step(optimizer, mesh())
    made = [training.init_state(Sums(), optimizer, mesh()) for _ in range(2)]
    seen, kept = [], []
    found = training.fit(
        made[0], step, iter([batch] * 5), key, 5, on_metrics=lambda at, numbers: seen.append(numbers["distance"]),
        events=((2, lambda at, state: kept.append(jax.tree.map(jnp.copy, state))),),
    )  # fmt: skip
    assert len(training._loop(step, found)[1]) == 3 + 2  # 80 arrays in three, and two counts
    state, wanted = made[1], []
    for _ in range(5):
        state, numbers = step(state, batch, key)
        wanted.append(float(numbers["distance"]))
        if int(state.step) in (2, 4, 5):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), kept.pop(0), state)
    assert jax.tree.structure(found) == jax.tree.structure(state) and not kept
    np.testing.assert_allclose(seen, wanted, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, state)
