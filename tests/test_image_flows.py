"""NICE and RealNVP: determinants of Jacobians, inverses, densities that integrate to one, batch independence, known densities."""

from math import log

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import with_weights
from flax import nnx
from scipy.special import expit
from scipy.stats import logistic, norm
from test_models import drawn

from jaxgen.errors import ConfigError
from jaxgen.models import NICE, NICEConfig, RealNVPConfig
from jaxgen.models.realnvp import by_channel, checkerboard, squeeze, unsqueeze

KEY = jax.random.key(0)
CONFIGS = {
    "nice": NICEConfig((2, 3, 1), 17, hidden=(7,)),
    "nice, normal": NICEConfig((1, 3, 3), 5, layers=3, hidden=(6, 5), prior="normal"),
    "realnvp": RealNVPConfig((4, 4, 1), 17, scales=3, width=3, blocks=0),
    "realnvp, colour": RealNVPConfig((2, 2, 3), 5, scales=1, width=4, blocks=1),
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def real_images(config, n: int, seed: int = 0):
    """Levels with noise."""
    shape = (n, *config.image_shape)
    return jnp.asarray(np.random.default_rng(seed).random(shape) * config.levels, jnp.float32)


@jax.jit
def with_jacobian(model, v):
    """z, the log-determinant and the Jacobian [B, D, D] of every row: its columns are how z moves if one number of all rows does."""
    (z, log_det), moved = jax.linearize(model.transform, v)
    numbers = jnp.eye(z.shape[1]).reshape(-1, 1, *v.shape[1:])
    columns = jax.vmap(lambda number: moved(jnp.broadcast_to(number, v.shape))[0])(numbers)
    return z, log_det, columns.transpose(1, 2, 0)


log_density = jax.jit(lambda model, v: model.log_density(v))
inverse = jax.jit(lambda model, z: model.inverse(z))


@every_config
def test_the_log_determinant_is_that_of_the_jacobian_the_inverse_gives_the_image_back_and_rows_are_independent(name):
    config = CONFIGS[name]
    model, v = with_weights(config), real_images(config, 16)
    z, log_det, jacobian = (np.asarray(array, np.float64) for array in with_jacobian(model, v))
    log_p, back = np.asarray(log_density(model, v), np.float64), np.asarray(inverse(model, np.float32(z)), np.float64)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=2e-4)
    np.testing.assert_allclose(back, v, atol=1e-5 * config.levels * np.abs(jacobian).max())
    assert (np.abs(jacobian) > 1e-6).any(0).sum() > 2 * z.shape[1], "numbers are mixed"
    changed = jnp.where((np.arange(16) == 3)[:, None, None, None], real_images(config, 16, seed=1), v)
    np.testing.assert_array_equal(np.delete(log_density(model, changed), 3), np.delete(np.float32(log_p), 3))
    prior = {"normal": norm}.get(getattr(config, "prior", "normal"), logistic)
    np.testing.assert_allclose(log_p, prior.logpdf(z).sum(1) + log_det, rtol=1e-5)


def test_the_densities_of_two_pixels_integrate_to_one():
    model, axis = with_weights(NICEConfig((1, 2, 1), 3, hidden=(5,))), (np.arange(600) + 0.5) * 0.1 - 28.5
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 1, 2, 1), jnp.float32)
    density = np.exp(np.asarray(log_density(model, grid), np.float64))
    assert density.sum() * 0.1**2 == pytest.approx(1, abs=2e-3)


def test_the_density_of_two_pixels_of_realnvp_integrates_to_one():
    """Over the logits, since the density has no values beyond the ends of the levels: dv / dlogit = levels w (1 - w) / (1 - 2a)."""
    model, axis = with_weights(RealNVPConfig((1, 2, 1), 3, scales=1, width=4, blocks=1)), (np.arange(240) + 0.5) / 12 - 10
    w = expit(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 1, 2, 1))
    v = jnp.asarray((w - 0.05) * 3 / 0.9, jnp.float32)
    density = np.exp(np.asarray(log_density(model, v), np.float64))
    assert (density * (3 / 0.9 * w * (1 - w)).prod((1, 2, 3))).sum() / 12**2 == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("levels", [5, 256])
def test_at_first_the_densities_are_those_of_independent_pixels(levels):
    """The map is the scale alone: the change of scale is in the density."""
    config = NICEConfig((2, 2, 1), levels, hidden=(4,))
    v = real_images(config, 8)
    x = np.asarray(v, np.float64).reshape(8, 4)
    found = log_density(NICE(config, rngs=nnx.Rngs(0)), v)
    np.testing.assert_allclose(found, (logistic.logpdf(2 * x / levels - 1) + log(2 / levels)).sum(1), rtol=1e-5)
    w = 0.05 + 0.9 * x / levels
    found = log_density(drawn(RealNVPConfig((2, 2, 1), levels, scales=1, width=2, blocks=0)), v)
    expected = norm.logpdf(np.log(w / (1 - w))) + np.log(0.9 / levels) - np.log(w * (1 - w))
    np.testing.assert_allclose(found, expected.sum(1), rtol=1e-5)


@pytest.mark.parametrize("prior", ["logistic", "normal"])
def test_every_number_of_nice_begins_with_the_mean_and_the_deviation_of_its_prior(prior):
    """Of the first batch with the noise, for pixels of very different spread, one of them constant."""
    config, generator = NICEConfig((2, 2, 1), 256, hidden=(4,), prior=prior), np.random.default_rng(0)
    image = np.stack([np.full(2000, 7), *(generator.integers(0, top, 2000) for top in (3, 40, 256))], 1).astype(np.uint8)
    model = NICE(config, rngs=nnx.Rngs(0)).initialise({"image": jnp.asarray(image.reshape(-1, 2, 2, 1))})
    z = model.transform(jnp.asarray(image + generator.random(image.shape), jnp.float32).reshape(-1, 2, 2, 1))[0]
    deviation = {"logistic": logistic, "normal": norm}[prior].std()
    np.testing.assert_allclose(z.mean(0), 0, atol=0.08)
    np.testing.assert_allclose(z.std(0), deviation, rtol=0.05)


@every_config
def test_draws_are_levels_and_follow_the_inverse(name):
    config = CONFIGS[name]
    model = with_weights(config)
    levels = model.sample(KEY, 16)
    v = inverse(model, model.draw_prior(KEY, 16))
    assert levels.dtype == jnp.uint8 and levels.shape == (16, *config.image_shape) and len(np.unique(levels)) > 2
    np.testing.assert_array_equal(levels, np.clip(np.floor(v), 0, config.levels - 1))


def test_couplings_alternate_between_a_mask_and_its_complement():
    """What each coupling of the first scale changes: what its mask leaves, of pixels before the squeeze and of channels after it.

    The logarithm of a scale is at most g of its channel, however large the input.
    """
    scale = with_weights(CONFIGS["realnvp"]).parts[0]
    for couplings, shape, mask in ((scale.before, (4, 4, 1), checkerboard), (scale.after, (2, 2, 4), by_channel)):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((8, *shape)), jnp.float32)
        changed = [(np.asarray(y) != x).any(0) for y in jax.jit(lambda x, c=couplings: [coupling(x)[0] for coupling in c])(x)]
        np.testing.assert_array_equal(changed, [~mask(shape, odd) for odd in (False, True, False)])
        log_scale, largest = couplings[0]._parameters(1e4 * x, mask(shape, False)[None])[0], np.abs(couplings[0].scale[...])
        np.testing.assert_allclose(np.abs(log_scale).max((0, 1, 2)), largest * (~mask(shape, False)).any((0, 1)), rtol=1e-5)


def test_masks_and_squares():
    np.testing.assert_array_equal(checkerboard((2, 3, 1), False)[..., 0], [[True, False, True], [False, True, False]])
    assert (checkerboard((2, 2, 3), True) != checkerboard((2, 2, 3), False)).all() and checkerboard((1, 1, 4), True).sum() == 2
    np.testing.assert_array_equal(by_channel((1, 1, 4), True)[0, 0], [False, False, True, True])
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(jnp.float32)
    np.testing.assert_array_equal(unsqueeze(squeeze(x)), x)
    np.testing.assert_array_equal(squeeze(x)[0, 1, 2].reshape(2, 2, 3), x[0, 2:4, 4:6])


@pytest.mark.parametrize(
    "config, fields, message",
    [
        (NICEConfig, {"layers": 0}, "layers: wanted 1 or more, got 0"),
        (NICEConfig, {"image_shape": (1, 1, 1)}, "image_shape: wanted at least two dimensions, for two parts"),
        (RealNVPConfig, {"image_shape": (6, 8, 1), "scales": 3}, r"scales: wanted sides \(6, 8\) that 4 divides, got 3; choose fewer"),
        (RealNVPConfig, {"width": 0}, "width: wanted 1 or more, got 0"),
    ],
)
def test_errors(config, fields, message):
    with pytest.raises(ConfigError, match=message):
        config(**fields)
    model = with_weights(CONFIGS["nice" if config is NICEConfig else "realnvp"])
    with pytest.raises(ConfigError, match=r"v: wanted shape \[B, ., ., 1\], got \[2, 8, 8, 1\]"):
        model.log_density(jnp.zeros((2, 8, 8, 1)))
