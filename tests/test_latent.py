"""The space of codes: ways between codes, traversals, maps, and nearest neighbours, each against an oracle of its own."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import CONFIGS, batch_of, data_of, given_of, model_of
from scipy.spatial import geometric_slerp
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from jaxgen import latent
from jaxgen.data import Dataset
from jaxgen.data.features import Image
from jaxgen.distributions import gaussian_kl
from jaxgen.errors import ConfigError
from jaxgen.latent import neighbours

# Of the table's image models, those whose codes are vectors.
CODES = ["vae", "vae of a vector", "vae of a label", "autoencoder", "implicit_autoencoder", "pca"]


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


# --- Ways between codes -------------------------------------------------------------------------------------------------------------


def test_linear_ways_are_straight():
    a, b = rows(5, 4), rows(5, 4, seed=1)
    way = latent.linear(a, b, 5)
    np.testing.assert_allclose(way, np.stack([a + t * (b - a) for t in (0, 0.25, 0.5, 0.75, 1)], axis=1), atol=1e-6)


def test_spherical_ways_are_those_of_scipy_with_the_length_in_between():
    a, b = rows(6, 4), 3 * rows(6, 4, seed=1)
    way, t = latent.spherical(a, b, 9), np.linspace(0, 1, 9)
    for one, first, last in zip(way, a, b, strict=True):
        lengths = np.linalg.norm(first), np.linalg.norm(last)
        directions = geometric_slerp(first / lengths[0], last / lengths[1], t)
        np.testing.assert_allclose(one, ((1 - t) * lengths[0] + t * lengths[1])[:, None] * directions, atol=1e-5)
    np.testing.assert_allclose(way[:, [0, -1]], np.stack([a, b], axis=1), atol=1e-5)


def test_spherical_ways_where_the_angle_says_nothing():
    a = rows(1, 3)
    zero, t = np.zeros((1, 3)), np.linspace(0, 1, 5)[:, None]
    for scale in (1, 2.5, 1 + 1e-9):  # one direction: only the length changes
        np.testing.assert_allclose(latent.spherical(a, scale * a, 5)[0], (1 + (scale - 1) * t) * a, atol=1e-6)
    np.testing.assert_allclose(latent.spherical(zero, a, 5)[0], t * a, atol=1e-6)
    np.testing.assert_allclose(latent.spherical(a, zero, 5)[0], (1 - t) * a, atol=1e-6)
    assert not latent.spherical(zero, zero, 5).any()
    opposite = latent.spherical(a, -a, 5)[0]
    np.testing.assert_allclose(np.linalg.norm(opposite, axis=1), np.linalg.norm(a), rtol=1e-6)
    np.testing.assert_allclose(opposite[[0, -1]], np.concatenate([a, -a]), atol=1e-6)
    assert abs(float(opposite[2] @ a[0])) < 1e-5  # half way, a right angle
    np.testing.assert_allclose(latent.spherical(np.ones((1, 1)), -np.ones((1, 1)), 3)[0, :, 0], [1, 0, -1], atol=1e-6)


def test_a_way_has_two_ends():
    for way in (latent.linear, latent.spherical):
        with pytest.raises(ConfigError, match="n: wanted 2 or more: both ends, got 1"):
            way(rows(1, 2), rows(1, 2), 1)


# --- Codes of a model ---------------------------------------------------------------------------------------------------------------


encode = jax.jit(lambda model, image, given: model.encode(image, **given))
rebuild = jax.jit(lambda model, image, given: model.reconstruct(image, **given))
picture = jax.jit(lambda model, codes, given: model.picture(codes, **given))


@cache
def pairs(name: str) -> tuple[dict, dict]:
    return tuple(jax.tree.map(np.asarray, batch_of(CONFIGS[name], 3, seed)) for seed in (0, 1))


def codes_of(name: str, batch: dict) -> np.ndarray:
    """The codes of a batch, from the model itself."""
    codes = encode(model_of(name), batch["image"], given_of(CONFIGS[name], batch))
    return np.asarray(codes[0] if isinstance(codes, tuple) else codes)


def reconstructed(name: str, batch: dict) -> np.ndarray:
    return np.asarray(rebuild(model_of(name), batch["image"], given_of(CONFIGS[name], batch)))


@pytest.mark.parametrize("name", CODES)
def test_the_ends_of_a_way_are_the_reconstructions_and_its_middle_is_half_way(name):
    model, (first, last) = model_of(name), pairs(name)
    for way, between in (("linear", latent.linear), ("spherical", latent.spherical)):
        drawn = latent.interpolate(model, first, last, 3, way)
        assert drawn.shape == (3, 3, 4, 4, 1) and drawn.dtype == np.uint8
        for column, batch in ((0, first), (2, last)):
            whole = reconstructed(name, batch)
            assert (drawn[:, column] == whole).mean() > 0.97  # a code that is rounded differently may be on the other side of a level
        middle = between(codes_of(name, first), codes_of(name, last), 3)[:, 1]
        given = {}
        for column in given_of(CONFIGS[name], first):
            one, other = (np.eye(3, dtype=np.float32)[b[column]] if column == "label" else b[column] for b in (first, last))
            given[column] = (one + other) / 2
        assert (drawn[:, 1] == np.asarray(picture(model, np.asarray(middle), given))).mean() > 0.97


@pytest.mark.parametrize("name", ["gan", "conditional_gan"])
def test_without_an_encoder_a_way_goes_from_one_draw_of_noise_to_another(name):
    model, (first, last), key = model_of(name), pairs(name), jax.random.key(5)
    drawn = latent.interpolate(model, first, last, 3, "spherical", key)
    z = np.asarray(model.noise(key, 6))
    between, given = latent.spherical(z[:3], z[3:], 3), {}
    for place in range(3):
        if "label" in model.config.features:
            one, other = (np.eye(3, dtype=np.float32)[batch["label"]] for batch in (first, last))
            given = {"label": one + (other - one) * np.float32(place / 2)}
        assert (drawn[:, place] == np.asarray(picture(model, between[:, place], given))).mean() > 0.97
    assert not np.array_equal(drawn, latent.interpolate(model, first, last, 3, "spherical", jax.random.key(6)))


@pytest.mark.parametrize("name", CODES)
def test_codes_of_a_set_and_reconstructions_are_those_of_the_model(name):
    dataset, model = data_of(CONFIGS[name]), model_of(name)
    codes = latent.encoded(model, dataset, batch_size=9)  # 24 examples: the last batch is filled up
    np.testing.assert_allclose(codes.mean, codes_of(name, dataset.columns), atol=1e-5)
    assert (latent.reconstruct(model, dataset, batch_size=9) == reconstructed(name, dataset.columns)).mean() > 0.99
    said, values = codes.importance()
    if codes.variance is None:
        assert said == "variance"
        np.testing.assert_allclose(values, codes.mean.var(0))
        np.testing.assert_allclose(codes.deviation() ** 2, codes.mean.var(0), rtol=1e-5)
    else:
        mean, log_variance = map(np.asarray, encode(model, dataset.columns["image"], given_of(CONFIGS[name], dataset.columns)))
        assert said == "KL in nats"
        np.testing.assert_allclose(values, np.asarray(jax.jit(gaussian_kl)(mean, log_variance)).mean(0), atol=1e-5)
        np.testing.assert_allclose(codes.deviation() ** 2, mean.var(0) + np.exp(log_variance).mean(0), rtol=1e-4)


@pytest.mark.parametrize("name", CODES)
def test_a_traversal_changes_one_number_of_the_code(name, monkeypatch):
    monkeypatch.setattr(latent.codes, "DECODED", 4)  # 6 codes: the second part is filled up
    model, dataset = model_of(name), data_of(CONFIGS[name])
    batch, codes = dataset.source.read(np.array([5])), latent.encoded(model, dataset)
    steps = np.array([-2.0, 0.0, 1.5])
    drawn = latent.traverse(model, batch, codes, np.array([2, 0]), steps)
    assert drawn.shape == (2, 3, 4, 4, 1)
    for row, dimension in enumerate((2, 0)):
        z = codes_of(name, batch).repeat(3, 0)
        z[:, dimension] = codes.mean[:, dimension].mean() + steps * codes.deviation()[dimension]
        given = {column: np.repeat(values, 3, 0) for column, values in given_of(CONFIGS[name], batch).items()}
        assert (drawn[row] == np.asarray(picture(model, z, given))).mean() > 0.97


def test_a_map_is_the_code_or_its_principal_components():
    z = rows(50, 5).astype(np.float32) * np.array([1, 3, 1, 2, 0.5], np.float32)
    points, axes = latent.code_map(latent.Codes(z, None))
    oracle = PCA(2).fit(z)
    expected = oracle.transform(z)
    for axis in range(2):
        assert abs(np.corrcoef(points[:, axis], expected[:, axis])[0, 1]) > 1 - 1e-6
        assert points[:, axis].std() == pytest.approx(expected[:, axis].std(), rel=1e-5)
        assert f"({oracle.explained_variance_ratio_[axis]:.0%}" in axes[axis]
    assert axes[0].startswith("first principal component of z") and axes[1].startswith("second principal component of z")
    two = latent.code_map(latent.Codes(z[:, :2], None))
    assert two.axes == ("z0", "z1") and (two.points == z[:, :2]).all()
    with pytest.raises(ConfigError, match="model: wanted codes of 2 or more dimensions, got 1"):
        latent.code_map(latent.Codes(z[:, :1], None))


def test_the_codes_of_pca_are_the_coordinates_of_images_plus_a_half():
    model, image = model_of("pca"), batch_of(CONFIGS["pca"], 3)["image"]
    np.testing.assert_array_equal(model.encode(image), model.transform(image.astype(jnp.float32) + 0.5))
    v = model.inverse_transform(model.encode(image))
    np.testing.assert_array_equal(model.reconstruct(image), np.clip(np.floor(np.asarray(v)), 0, 2))
    points = batch_of(CONFIGS["pca of points"], 3)["point"]
    np.testing.assert_array_equal(
        model_of("pca of points").reconstruct(points),
        model_of("pca of points").inverse_transform(model_of("pca of points").transform(points)),
    )


# --- Nearest training examples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4])
def test_nearest_images_are_those_of_scikit_learn(k, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    generator = np.random.default_rng(0)
    train, x = (generator.integers(0, 17, (n, 4, 3, 1), np.uint8) for n in (40, 9))
    x[0] = train[31]
    dataset = Dataset.from_columns({"image": train}, {"image": Image((4, 3, 1), 17)})
    found = latent.nearest(x, dataset, "image", k)
    flat = [part.reshape(len(part), -1) / 16 for part in (train, x)]
    distance, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(flat[0]).kneighbors(flat[1])  # equal ones in any order
    np.testing.assert_allclose(found.distance, distance**2 / 12, atol=1e-12)
    np.testing.assert_allclose(((flat[0][found.index] - flat[1][:, None]) ** 2).mean(-1), found.distance, atol=1e-12)
    assert len(np.unique(found.index[1])) == k
    assert found.distance[0, 0] == 0 and found.index[0, 0] == 31


def test_equally_near_ones_are_in_the_order_of_the_set_and_a_small_set_gives_all():
    image = np.repeat(np.arange(3, dtype=np.uint8), 4).reshape(12, 1, 1, 1)
    dataset = Dataset.from_columns({"image": image}, {"image": Image((1, 1, 1), 3)})
    found = latent.nearest(image[4:5], dataset, "image", 20)
    assert found.index.tolist() == [[4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11]]
    np.testing.assert_allclose(found.distance, [[0] * 4 + [0.25] * 8])
    with pytest.raises(ConfigError, match="k: wanted 1 or more, got 0"):
        latent.nearest(image, dataset, "image", 0)


def test_nearest_points_are_exact_far_from_zero():
    """|a|^2 - 2ab + |b|^2 would lose these differences."""
    train = (1000 + 1e-3 * rows(30, 2)).astype(np.float32)
    x = train[:5] + np.float32(1e-3)
    found = latent.nearest(x, Dataset.from_arrays(point=train), "point", 2)
    distance, index = NearestNeighbors(n_neighbors=2, algorithm="kd_tree").fit(train.astype(np.float64)).kneighbors(x.astype(np.float64))
    np.testing.assert_allclose(found.distance, distance**2, rtol=1e-9, atol=1e-20)
    assert not latent.nearest(train, Dataset.from_arrays(point=train), "point").distance.any()


def test_strings_have_no_squared_distance():
    dataset = data_of(CONFIGS["language_model"])
    with pytest.raises(ConfigError, match="model: wanted a model of images or of points, .*, got a model of strings"):
        latent.nearest(dataset.columns["tokens"], dataset, "tokens")
