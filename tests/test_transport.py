"""The assignment of least cost, against scipy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxgen.denoising.transport import assignment, nearest_noise

ASSIGN = jax.jit(assignment)


def costs(kind: str, n: int) -> np.ndarray:
    generator = np.random.default_rng(n)
    if kind == "ties":
        return generator.integers(0, 3, (n, n)).astype(np.float32)
    if kind == "far":
        return 1e4 + generator.standard_normal((n, n), np.float32) * 1e3
    return generator.standard_normal((n, n), np.float32)


@pytest.mark.parametrize("kind", ["normal", "ties", "far"])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_assignment_is_a_permutation_of_scipys_cost(kind, n):
    cost = costs(kind, n)
    columns, (rows, best) = np.asarray(ASSIGN(cost)), linear_sum_assignment(cost.astype(np.float64))
    np.testing.assert_array_equal(np.sort(columns), rows)
    found, least = cost[rows, columns].sum(dtype=np.float64), cost[rows, best].sum(dtype=np.float64)
    np.testing.assert_allclose(found, least, rtol=1e-6, atol=1e-6)
    assert found <= np.trace(cost) * (1 + 1e-6) + 1e-6  # never more than without a new order


def test_nearest_noise_is_the_same_rows_in_an_order_of_less_cost():
    x, noise = jax.random.normal(jax.random.key(0), (2, 30, 2, 2, 1))
    paired = jax.jit(nearest_noise)(x, noise)
    np.testing.assert_array_equal(np.sort(np.asarray(paired)[:, 0, 0, 0]), np.sort(np.asarray(noise)[:, 0, 0, 0]))
    squares = np.asarray(jnp.sum((x[:, None] - noise[None]) ** 2, axis=(2, 3, 4)), np.float64)
    np.testing.assert_allclose(((x - paired) ** 2).sum(), squares[linear_sum_assignment(squares)].sum(), rtol=1e-5)
    assert ((x - paired) ** 2).sum() < 0.8 * ((x - noise) ** 2).sum()
