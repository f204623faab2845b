"""Every kind of data in its own unit, what is given passed on, and a kind that the library does not know, against closed forms."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import multivariate_normal

from jaxgen import benchmark, evaluation
from jaxgen.checks import check_known
from jaxgen.data import Dataset
from jaxgen.data.features import ClassLabel, Image, Points, Tokens, Vector, given_to
from jaxgen.errors import ConfigError, DataError
from jaxgen.measures import scores
from jaxgen.measures.metrics import METRICS, headline, score
from jaxgen.models import DiagonalBiLSTMConfig, GatedPixelCNNConfig, PixelCNNConfig, RowLSTMConfig
from jaxgen.reports import drawing


def config_of(modelled: str, **features) -> SimpleNamespace:
    """What evaluation and drawing read of a configuration."""
    classes = features["label"].classes if "label" in features and modelled != "label" else 0
    return SimpleNamespace(modelled=modelled, features=features, num_classes=classes)


class Alphabet(nnx.Module):
    """Strings whose characters, the stop token too, have log-probabilities of their own."""

    def __init__(self, tokens: Tokens, log_p):
        self.config, self.log_p = config_of("tokens", tokens=tokens), nnx.Param(jnp.asarray(log_p))

    def log_prob(self, tokens):
        counted = jnp.arange(tokens.shape[1])[None] <= (tokens != 0).sum(-1)[:, None]
        return jnp.where(counted, self.log_p[...][tokens], 0).sum(-1)


def test_strings_are_told_in_bits_per_character():
    generator = np.random.default_rng(0)
    lengths = generator.integers(0, 6, 40)
    tokens = np.where(np.arange(7) < lengths[:, None], generator.integers(1, 4, (40, 7)), 0)
    dataset, log_p = Dataset.from_arrays(tokens=tokens), np.log(np.array([0.3, 0.4, 0.2, 0.1], np.float32))
    result = evaluation.evaluate(Alphabet(dataset.features["tokens"], log_p), dataset, batch_size=7)
    nats = np.array([-sum(log_p[token] for token in row[: n + 1]) for row, n in zip(tokens, lengths, strict=True)], np.float64)
    ratio = nats.sum() / (lengths + 1).sum()
    residual = (nats - ratio * (lengths + 1)).std(ddof=1) / np.sqrt(40) / (lengths + 1).mean()
    assert headline(result) == ("bits_per_character", pytest.approx(ratio / np.log(2), rel=1e-6))
    assert result["standard_error"] == pytest.approx(residual / np.log(2), rel=1e-5)
    assert result["nats"] == pytest.approx(nats.mean(), rel=1e-6) and result["n"] == 40


def test_a_string_that_fills_its_row_has_no_stop_token():
    tokens = Tokens(3, 2)
    np.testing.assert_array_equal(tokens.counts(np.array([[0, 0, 0], [1, 0, 0], [1, 1, 1]])), [1, 2, 3])
    with pytest.raises(DataError, match=r"tokens\[1, 2\]: wanted 0 after the first 0, which ends the string, got 1"):
        Dataset.from_arrays(tokens=np.array([[1, 1, 0], [1, 0, 1]]))


class Slopes(nnx.Module):
    """A classifier with the logits x W."""

    def __init__(self, features, weight):
        self.config, self.weight = config_of("label", **features), nnx.Param(jnp.asarray(weight))

    def predict(self, image):
        return image.reshape(len(image), -1).astype(jnp.float32) @ self.weight[...]


def test_classifiers_are_told_by_accuracy_and_log_loss():
    generator = np.random.default_rng(1)
    images, labels = generator.integers(0, 4, (50, 2, 2, 1)), generator.integers(0, 3, 50)
    dataset, weight = Dataset.from_arrays(images, labels, levels=4), generator.standard_normal((4, 3)).astype(np.float32)
    result = evaluation.evaluate(Slopes(dataset.features, weight), dataset, batch_size=16)
    logits = images.reshape(50, 4) @ weight.astype(np.float64)
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(50), labels]
    right = logits.argmax(1) == labels
    assert headline(result) == ("accuracy", pytest.approx(right.mean()))
    assert result["standard_error"] == pytest.approx(right.std(ddof=1) / np.sqrt(50))
    assert result["log_loss"] == pytest.approx(loss.mean(), rel=1e-5)
    assert result["log_loss_standard_error"] == pytest.approx(loss.std(ddof=1) / np.sqrt(50), rel=1e-4)
    _, line = scores.lines("test", result, "image", None, {}, {})
    assert line == f"  log_loss                  {loss.mean():.4f} +- {loss.std(ddof=1) / np.sqrt(50):.4f}"
    _, line = scores.lines("test", result | {"log_loss_standard_error": np.nan}, "image", None, {}, {})
    assert line == f"  log_loss                  {loss.mean():.4f}"


class Sums(Slopes):
    """A classifier of an image and a vector: their logits add up."""

    def predict(self, image, vector):
        return super().predict(image) + vector


def test_a_classifier_may_be_given_several_columns():
    generator = np.random.default_rng(5)
    columns = {"image": generator.integers(0, 4, (20, 2, 2, 1)), "vector": generator.standard_normal((20, 3)), "label": np.arange(20) % 3}
    dataset = Dataset.from_columns(columns, {"image": Image((2, 2, 1), 4), "vector": Vector(3), "label": ClassLabel(3)})
    result = evaluation.evaluate(Sums(dataset.features, np.zeros((4, 3), np.float32)), dataset)
    assert result["accuracy"] == pytest.approx((columns["vector"].argmax(1) == columns["label"]).mean())


class Normal(nnx.Module):
    """N(mean of the label, I) on points of the plane; the label may be absent."""

    def __init__(self, means, features):
        self.config, self.means = config_of("point", **features), nnx.Param(jnp.asarray(means))

    def log_density(self, point, label=None):
        mean = self.means[...][0][None] if label is None else self.means[...][label]
        return -0.5 * ((point - mean) ** 2).sum(-1) - jnp.log(2 * jnp.pi)


class Sampler(Normal):
    """The same, which can only be sampled."""

    log_density = None

    def sample(self, key, n, label=None):
        return self.means[...][label] + jax.random.normal(key, (n, 2))


def points_with_labels(n: int) -> tuple[Dataset, np.ndarray]:
    """Points around the means of three classes that are far from each other."""
    generator, means = np.random.default_rng(2), np.array([[0, 0], [40, 0], [0, 40]], np.float32)
    labels = generator.integers(0, 3, n)
    columns = {"point": means[labels] + generator.standard_normal((n, 2)), "label": labels}
    return Dataset.from_columns(columns, {"point": Points(2), "label": ClassLabel(3)}), means


def test_points_are_told_in_nats_of_a_density_without_noise():
    dataset, means = points_with_labels(60)
    points, labels = dataset.columns["point"], dataset.labels
    alone = evaluation.evaluate(Normal(means, {"point": Points(2)}), dataset)
    assert headline(alone) == ("nats", pytest.approx(-multivariate_normal(means[0]).logpdf(points).mean(), rel=1e-5))
    given = evaluation.evaluate(Normal(means, {"point": Points(2), "label": ClassLabel(3)}), dataset, batch_size=11)
    wanted = np.mean([-multivariate_normal(means[label]).logpdf(point) for point, label in zip(points, labels, strict=True)])
    assert given["nats"] == pytest.approx(wanted, rel=1e-5)


def test_a_conditional_generator_is_judged_and_drawn_with_the_labels_of_the_set(monkeypatch):
    monkeypatch.delattr(Normal, "log_density")
    monkeypatch.delattr(Sampler, "log_density")
    dataset, means = points_with_labels(400)
    model = Sampler(means, {"point": Points(2), "label": ClassLabel(3)})
    right = evaluation.evaluate(model, dataset, batch_size=64)
    wrong = evaluation.evaluate(Sampler(means[[1, 1, 1]], model.config.features), dataset, batch_size=64)
    assert headline(right)[0] == "frechet_points" and right["n_fake"] == 400
    assert right["frechet_points"] < 0.5 and wrong["frechet_points"] > 100
    drawn = drawing.draw(model, jax.random.key(0), 6)
    assert np.abs(drawn - means[np.arange(6) % 3]).max() < 6, "each class in turn"


class Coloured(nnx.Module):
    """Images that are drawn given another image, a caption and a vector: their sum is in every pixel, beside a bit of noise."""

    def __init__(self, features):
        self.config, self.bias = config_of("image", **features), nnx.Param(jnp.zeros(()))

    def sample(self, key, n, known=None, *, other, caption, vector):
        check_known(known, n, (2, 2, 1), 200)
        sums = jnp.asarray(caption).astype(jnp.float32).sum(-1) + jnp.asarray(vector).sum(-1)
        values = jnp.asarray(other).astype(jnp.float32) + sums[:, None, None, None]
        drawn = (values + jax.random.bernoulli(key, 0.5, values.shape).astype(jnp.float32)).astype(jnp.uint8)
        return drawn if known is None else jnp.where(known[1][None, ..., None], known[0], drawn)

    def loss(self, batch, key):
        return ((batch["image"].astype(jnp.float32) - batch["other"].astype(jnp.float32) - self.bias[...]) ** 2).mean(), {}


def test_a_caption_a_vector_and_another_image_are_given_by_evaluation_drawing_and_bench(monkeypatch, tmp_path):
    generator, n = np.random.default_rng(3), 40
    other, caption = generator.integers(0, 50, (n, 2, 2, 1)), generator.integers(1, 5, (n, 3))
    vector = generator.integers(0, 9, (n, 2)).astype(np.float32)
    wanted = other + (caption.sum(-1) + vector.astype(int).sum(-1))[:, None, None, None]
    features = {"image": Image((2, 2, 1), 200), "other": Image((2, 2, 1), 50), "caption": Tokens(3, 5), "vector": Vector(2)}
    dataset = Dataset.from_columns({"image": wanted, "other": other, "caption": caption, "vector": vector}, features)
    model, key, written = Coloured(features), jax.random.key(0), []
    result = evaluation.evaluate(model, dataset, batch_size=16)
    assert headline(result)[0] == "frechet_pixels" and result["frechet_pixels"] < 1e-3
    given = wanted[np.arange(8) // 4].astype(int)
    assert set((drawing.draw_for(model, dataset, key, 8) - given).ravel()) == {0, 1}
    monkeypatch.setattr(drawing, "write_grid", lambda path, images, model, mask: written.append((images, mask)))
    drawing.complete_images(model, dataset, "top", 8, tmp_path / "x.png", key)
    ((images, mask),) = written
    np.testing.assert_array_equal(images[:, mask], given[:, mask])
    assert set((images - given)[:, ~mask].ravel()) == {0, 1}
    monkeypatch.setattr(benchmark, "PEAK_SIZES", {"cpu": (32,)})
    assert [row["method"] for row in benchmark.measure(model, (2,), 2, 1)] == ["sample", "train", "train"]


def test_small_images_are_those_of_the_set_or_made_from_the_large_ones():
    generator = np.random.default_rng(4)
    image, small = generator.integers(0, 9, (6, 4, 4, 1)), generator.integers(0, 9, (6, 2, 2, 1))
    large, wanted = Image((4, 4, 1), 9), Image((2, 2, 1), 9, of="image")
    config = config_of("image", image=large, small=wanted)
    alone = Dataset.from_columns({"image": image}, {"image": large})
    both = Dataset.from_columns({"image": image, "small": small}, {"image": large, "small": Image((2, 2, 1), 9)})
    means = np.floor(image.reshape(6, 2, 2, 2, 2).mean((2, 4)) + 0.5)[..., None]
    for dataset, result in (alone, means), (both, small):
        dataset.expect(config.features)
        np.testing.assert_array_equal(given_to(config, dict(dataset.columns))["small"], result)
    other = Dataset.from_columns({"image": image, "small": small[:, :1]}, {"image": large, "small": Image((1, 2, 1), 9)})
    with pytest.raises(DataError, match="images of shape"):
        other.expect(config.features)
    with pytest.raises(DataError, match="^batch: wanted a column small, or image to compute it from, got label$"):
        given_to(config, {"label": np.zeros(6, int)})
    with pytest.raises(DataError, match="made from the column image"):
        Dataset.from_arrays(point=np.ones((3, 2))).expect({"small": wanted})


@dataclass(frozen=True)
class Angles:
    """A kind of data of somebody else: directions [N] in radians."""

    unit, noun, ending, discrete, dimensions, said = "nats", "angle", ".txt", False, 1, "angles"

    def check(self, array, origin):
        if array.ndim != 1 or not ((array >= 0) & (array < 2 * np.pi)).all():
            raise DataError(origin, "angles in 0..2 pi", list(array.shape))
        return array.astype(np.float32)

    def expect(self, have, origin):
        """All angles fit."""

    def counts(self, array):
        return np.ones(len(array), int)

    def random(self, n, generator):
        return generator.uniform(0, 2 * np.pi, n).astype(np.float32)

    def show(self, samples):
        return "".join(f"{angle:.3f}\n" for angle in samples).encode()


class Circle(nnx.Module):
    """p(angle) = (1 + c cos(angle)) / (2 pi)."""

    def __init__(self):
        self.config, self.c = config_of("angle", angle=Angles()), nnx.Param(jnp.float32(0.5))

    def log_density(self, angle):
        return jnp.log1p(self.c[...] * jnp.cos(angle)) - jnp.log(2 * jnp.pi)

    def sample(self, key, n):
        return jax.random.uniform(key, (n,), maxval=2 * jnp.pi)


def test_a_kind_that_the_library_does_not_know_goes_through_data_evaluation_and_drawing(tmp_path):
    angles = np.linspace(0, 6, 30)
    dataset, model = Dataset.from_columns({"angle": angles}, {"angle": Angles()}, "circle"), Circle()
    assert dataset.batch(3, 8, seed=0)["angle"].shape == (8,) and dataset.fingerprint(8, 0)["n"] == 30
    result = evaluation.evaluate(model, dataset, batch_size=8)
    assert headline(result) == ("nats", pytest.approx(-np.log((1 + 0.5 * np.cos(angles)) / (2 * np.pi)).mean(), rel=1e-5))
    samples = drawing.draw_for(model, dataset, jax.random.key(0), 5)
    drawing.write_grid(tmp_path / "angles.txt", samples, model)
    assert [float(line) for line in (tmp_path / "angles.txt").read_text().splitlines()] == pytest.approx(samples.tolist(), abs=1e-3)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="^picture: wanted a file that can be written, got .*/file/a.txt .File exists.; the checkpoints"):
        drawing.write_grid(tmp_path / "file" / "a.txt", samples, model)
    with pytest.raises(DataError, match="circle:angle: wanted angles in 0..2 pi"):
        Dataset.from_columns({"angle": angles - 1}, {"angle": Angles()}, "circle")
    with pytest.raises(DataError, match="arrays/train: wanted angles as the model, got no angles"):
        evaluation.evaluate(model, Dataset.from_arrays(point=np.ones((3, 2))))


def test_sixteen_bits_stay_what_they_are():
    images = np.array([0, 255, 256, 60_000]).reshape(4, 1, 1, 1)
    dataset = Dataset.from_arrays(images, levels=2**16)
    assert dataset.images.dtype == np.uint16 and dataset.batch(0, 4, 0)["image"].max() == 60_000
    np.testing.assert_array_equal(dataset.images, images)
    with pytest.raises(DataError, match=r"image\[1, 0, 0, 0\]: wanted a value in 0..255 \(8 bits\), got 256"):
        Dataset.from_arrays(images[1:])
    with pytest.raises(DataError, match=r"^x/train: wanted 256 levels as the model, got 65536"):
        Dataset.from_arrays(images, levels=2**16, name="x").expect({"image": Image((1, 1, 1), 256)})


def test_one_of_the_kinds_is_what_a_set_is_about():
    with pytest.raises(ConfigError, match="^image, point, tokens, series: wanted one of them, got image and point"):
        Dataset.from_arrays(np.zeros((2, 1, 1), int), point=np.ones((2, 2)))
    with pytest.raises(DataError, match="^arrays:label: wanted 3 rows, as point has, got 2"):
        columns = {"point": np.ones((3, 2)), "label": np.zeros(2, int)}
        Dataset.from_columns(columns, {"point": Points(2), "label": ClassLabel(1)})


def test_the_best_checkpoint_has_the_most_accuracy_and_the_fewest_bits():
    assert {metric.better for metric in METRICS.values()} == {"lower", "higher"}
    assert score({"accuracy": 0.9, "log_loss": 0.1}) == -0.9 < score({"accuracy": 0.8, "log_loss": 0.0})
    assert score({"bits_per_dim": 2.0, "nats": 100.0}) == 2.0 and score({"frechet_points": 1.0}) is None
    assert score({"frechet_points": 1.0}, ("frechet_points",)) == 1.0


@pytest.mark.parametrize("config", [GatedPixelCNNConfig, PixelCNNConfig, RowLSTMConfig, DiagonalBiLSTMConfig])
def test_defaults_fit_the_channels_of_a_set(config):
    """128 and 32 features are no multiples of 3 channels."""
    features = {"image": Image((8, 8, 3), 256)}
    assert config.defaults_for(features) == {"width": 129, "head_width": 33}
    assert config.defaults_for({"image": Image((8, 8, 1), 2)}) == {}
    assert config(**config.sizes_from(features), **config.defaults_for(features)).width == 129
