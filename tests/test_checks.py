"""What an image is drawn given: labels, vectors, and what lies between two of them. For every model, and end to end for vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from causal_sets import raster_past
from model_table import TABLE
from PIL import Image
from test_models import drawn, with_noise

import jaxgen
from jaxgen import cli, data, evaluation, experiment
from jaxgen.checks import check_label, check_vector, interpolate
from jaxgen.data import DataConfig, features
from jaxgen.errors import ConfigError, DataError
from jaxgen.experiment import Experiment
from jaxgen.models import GatedPixelCNNConfig
from jaxgen.runs.report import ReportConfig
from jaxgen.sampling import METHODS
from jaxgen.training import OptimizerConfig, TrainConfig

SIZES = {"layers": 2, "width": 6, "input_kernel": 3, "head_width": 48}
SMALLER = SIZES | {"layers": 1}
"""With one layer beside the first: enough where the whole past need not be seen."""
VECTORS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
ONE_OF_EACH = ("gated_pixelcnn", "pixelcnn", "pixelcnn_pp", "image_transformer")
"""The others take labels through the same code as one of these."""


def given_vectors(image_shape=(3, 4, 3), levels=4, **fields):
    """A Gated PixelCNN that is given vectors of size 5, strongly."""
    return with_noise(GatedPixelCNNConfig(image_shape=image_shape, levels=levels, vector_size=5, **SIZES | fields), noise=0.3)


def images_of(model, n: int, key: int = 1):
    config = model.config
    return jnp.asarray(np.random.default_rng(key).integers(0, config.levels, (n, *config.image_shape)), jnp.uint8)


# --- Between two conditions ---------------------------------------------------------------------------------------------------------


def test_the_line_between_two_conditions():
    line = np.asarray(interpolate(np.array([0.0, 2.0]), np.array([4.0, -2.0]), 5))
    np.testing.assert_allclose(line, [[0, 2], [1, 1], [2, 0], [3, -1], [4, -2]])
    np.testing.assert_allclose(interpolate(2, 0, 3, num_classes=4), [[0, 0, 1, 0], [0.5, 0, 0.5, 0], [1, 0, 0, 0]])
    mixed = interpolate(np.array([0.5, 0.5]), np.array([0.0, 1.0]), np.int64(3), num_classes=2)  # weights, and a count of numpy's
    np.testing.assert_allclose(mixed, [[0.5, 0.5], [0.25, 0.75], [0, 1]])


@pytest.mark.parametrize("entry", [entry for entry in TABLE if entry.name in ONE_OF_EACH], ids=lambda entry: entry.name)
def test_weights_of_classes_mix_their_embeddings(entry):
    """One class with weight 1 is that class; between two classes every position's parameters lie between, and are neither's."""
    model = drawn(entry.make((3, 4, 1), num_classes=3, **entry.smaller))
    image = jnp.repeat(images_of(model, 1), 5, axis=0)
    logits = jax.jit(lambda model, image, label: model.logits(image, label))
    ends = np.asarray(logits(model, image, np.array([2, 2, 0, 0, 0], np.int32)))
    line = np.asarray(logits(model, image, interpolate(2, 0, 5, num_classes=3)))
    np.testing.assert_allclose(line[[0, 4]], ends[[0, 4]], rtol=1e-4, atol=1e-5)
    assert (line[2] != ends[0]).any() and (line[2] != ends[4]).any()
    jumps = abs(np.diff(line, axis=0)).max(axis=(1, 2, 3, 4) if line.ndim == 5 else (1, 2, 3))
    assert (jumps < abs(ends[0] - ends[4]).max()).all(), "a step on the way is as long as the whole way"


LABELS_IN_THE_SAMPLER = ("gated_pixelcnn", "image_transformer", "pixelsnail")


@pytest.mark.parametrize("entry", [entry for entry in TABLE if entry.name in LABELS_IN_THE_SAMPLER], ids=lambda entry: entry.name)
def test_samples_between_classes_are_the_same_from_every_method(entry):
    model = drawn(entry.make((3, 4, 1), num_classes=3))
    label = interpolate(0, 2, 4, num_classes=3)
    images = [np.asarray(model.sample(jax.random.key(3), 4, label=label, method=method)) for method in METHODS]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


# --- Vectors ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [0, 3], ids=["vector", "vector and label"])
def test_vector_and_label_change_every_output_and_leave_the_order_alone(num_classes):
    model = given_vectors(num_classes=num_classes)
    label = jnp.zeros(6, jnp.int32) if num_classes else None
    image = images_of(model, 6)
    logits = jax.jit(lambda image, label, vector: model.logits(image, label, vector=vector))

    def outputs_of(label, vector):
        return np.asarray(logits(image, label, vector)).reshape(6, -1, 4)

    one, other = (outputs_of(label, np.broadcast_to(vector, (6, 5))) for vector in VECTORS[:2])
    assert (one != other).any((0, 2)).all(), "a position that ignores the vector"
    if num_classes:
        other = outputs_of(label + 1, np.broadcast_to(VECTORS[0], (6, 5)))
        assert (one != other).any((0, 2)).all(), "a position that ignores the label"
    image = images_of(model, 24)
    past, size = raster_past(*model.config.image_shape), image[0].size
    hot = np.eye(size + 1, size, dtype=bool).reshape(size + 1, 1, *image.shape[1:])  # one input changed, and at last none
    changed = jnp.asarray(np.where(hot, 3 - np.asarray(image), image)).reshape(-1, *image.shape[1:])
    label = None if label is None else jnp.zeros(len(changed), jnp.int32)
    outputs = np.asarray(logits(changed, label, np.tile(VECTORS, (4 * size + 4, 1)))).reshape(size + 1, 24, size, 4)
    seen = (outputs[:-1] != outputs[-1]).any((1, 3)).T  # [output, input]
    np.testing.assert_array_equal(seen, past.reshape(size, size))


def test_given_a_vector_probabilities_sum_to_one():
    model = given_vectors((3, 3, 1), levels=2)
    bits = np.arange(512)[:, None] >> np.arange(9) & 1
    images = jnp.asarray(bits.reshape(512, 3, 3, 1), jnp.uint8)
    log_prob = jax.jit(lambda vector: model.log_prob(images, vector=vector))
    for vector in VECTORS[:2]:
        assert np.exp(np.asarray(log_prob(vector), np.float64)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("image_shape", [(3, 4, 1), (4, 3, 3)], ids=str)
def test_given_vectors_all_samplers_draw_the_same_bits(image_shape):
    model = given_vectors(image_shape, num_classes=2, **SMALLER)
    known = images_of(model, 6), np.random.default_rng(2).random((6, *image_shape[:2])) < 0.3
    given = {"label": np.arange(6, dtype=np.int32) % 2, "vector": VECTORS, "known": known}
    images = [np.asarray(model.sample(jax.random.key(5), 6, method=method, **given)) for method in METHODS]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])
    other = model.sample(jax.random.key(5), 6, **{**given, "vector": VECTORS[::-1].copy()})
    assert (np.asarray(other) != images[0]).any()


def test_one_vector_serves_the_batch_and_a_line_of_vectors_has_a_row_each():
    model = given_vectors((3, 4, 1))
    image, log_prob = images_of(model, 5), jax.jit(lambda image, vector: model.log_prob(image, vector=vector))
    one = log_prob(image, VECTORS[0])
    np.testing.assert_array_equal(one, log_prob(image, VECTORS[:1].repeat(5, axis=0)))
    line = log_prob(image, interpolate(VECTORS[0], VECTORS[1], 5))
    assert line[0] == pytest.approx(float(one[0]), rel=1e-5) and (line[1:] != one[1:]).all()


WRONG = {
    "no vector": (lambda: given_vectors().sample(jax.random.key(0), 2), r"^vector: wanted float \[2, 5\], got None"),
    "a vector too many": (lambda: check_vector(VECTORS[:2], 0, 2), "^vector: wanted None"),
    "wrong size": (lambda: check_vector(VECTORS[:2], 4, 2), r"^vector: wanted shape \[2, 4\], got \[2, 5\]"),
    "integers": (lambda: check_vector(np.zeros((2, 5), np.int32), 5, 2), "^vector: wanted floating-point numbers, got int32"),
    "not finite": (lambda: check_vector(VECTORS[:2] * np.float32("nan"), 5, 2), "^vector: wanted finite numbers, got NaN"),
    "weights of other classes": (lambda: check_label(np.ones((2, 3), np.float32), 4, 2), r"^label: wanted shape \[2, 4\], got \[2, 3\]"),
    "a line of one point": (lambda: interpolate(VECTORS[0], VECTORS[1], 1), "^n: wanted an integer above 1, got 1"),
    "ends that differ": (lambda: interpolate(VECTORS[0], VECTORS[1, :2], 3), "^first and last: wanted two vectors"),
    "a class and weights": (lambda: interpolate(0, np.array([0.0, 1.0]), 3, num_classes=2), "^label: wanted integers, or weights"),
    "a class that is not there": (lambda: interpolate(0, 3, 4, num_classes=3), "^label: wanted values in 0..2, got 3"),
    "size of vectors": (lambda: GatedPixelCNNConfig(vector_size=-1), "^vector_size: wanted 0"),
}


@pytest.mark.parametrize("call, message", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_condition_is_one_line(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


# --- From a file to pictures --------------------------------------------------------------------------------------------------------


def squares(n: int) -> dict:
    """Dark or bright 4 x 4 images of 4 levels: the first number of the vector, 0 or 1, says which; the second says nothing."""
    generator = np.random.default_rng(7)
    bright = generator.random(n) < 0.5
    image = (generator.integers(0, 2, (n, 4, 4)) + 2 * bright[:, None, None]).astype(np.uint8)
    return {"image": image, "vector": np.stack([bright, generator.random(n)], axis=1).astype(np.float32)}


def train(images, model: GatedPixelCNNConfig, workdir) -> None:
    """60 steps on an archive of images of 4 levels."""
    run = Experiment(
        model,
        DataConfig(str(images), levels=4),
        OptimizerConfig(learning_rate=2e-2),
        TrainConfig(steps=60, eval_every=60, ema_decay=0.9),
        str(workdir),
        ReportConfig(samples=0, completions=0, rulers=False),
    )
    assert experiment.train(run) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on such images, from an archive."""
    folder = tmp_path_factory.mktemp("vectors")
    np.savez(folder / "squares.npz", **squares(600))
    train(folder / "squares.npz", GatedPixelCNNConfig(image_shape=(4, 4, 1), levels=4, vector_size=2, **SMALLER), folder / "run")
    return folder


def test_a_vector_goes_from_the_archive_to_the_pictures(trained):
    model = jaxgen.load(trained / "run")
    test = data.load(str(trained / "squares.npz"), "test", levels=4)
    image, vector = jnp.asarray(test.images[:]), test.columns["vector"]
    log_prob = jax.jit(lambda model, vector: model.log_prob(image, vector=vector))
    given = np.asarray(log_prob(model, vector))
    assert evaluation.evaluate(model, test)["nats"] == pytest.approx(-given.mean(), rel=1e-5)
    turned = np.asarray(log_prob(model, np.abs(vector - np.float32([1, 0]))))
    assert (given > turned + 5).mean() > 0.95, "the other brightness is far less likely"
    dark, bright = (np.asarray(model.sample(jax.random.key(0), 64, vector=np.float32([b, 0.5]))).mean() for b in (0, 1))
    assert dark < 0.8 and bright > 2.2
    assert cli.command("sample", [str(trained / "run"), "--n=64"]) == 0 and (trained / "run" / "samples.png").exists()
    assert cli.command("complete", [str(trained / "run"), "--n=4"]) == 0


def test_a_set_without_vectors_does_not_fit():
    with pytest.raises(DataError, match="wanted vectors of size 2 as the model, got no vectors"):
        wanted = {"image": features.Image((4, 4, 1), 4), "vector": features.Vector(2)}
        data.Dataset.from_arrays(squares(100)["image"], levels=4).expect(wanted)


def test_vectors_of_an_archive_are_checked(tmp_path):
    good = squares(20)
    source = data.Dataset.from_arrays(good["image"], vector=good["vector"])
    assert source.vector_size == 2 and source.batch(0, 4, 0)["vector"].dtype == np.float32
    assert source.source.sha256() != data.Dataset.from_arrays(good["image"], vector=good["vector"] + 1).source.sha256()
    wrong = {
        r"shape \[20, D\]": good["vector"][:19],
        "a floating-point dtype, got int64": good["vector"].astype(np.int64),
        r"vector\[3, 1\]: wanted a finite number, got inf": np.where(np.arange(40).reshape(20, 2) == 7, np.inf, good["vector"]),
    }
    for message, vector in wrong.items():
        with pytest.raises(DataError, match=message):
            data.Dataset.from_arrays(good["image"], vector=vector)
    np.savez(tmp_path / "train.npz", **good)
    np.savez(tmp_path / "test.npz", image=good["image"])
    with pytest.raises(DataError, match="test.npz:vector: wanted vectors, as in .*train.npz:image, got none"):
        data.load(str(tmp_path), "test")


def test_a_grid_between_two_classes(tmp_path):
    """Every row of the grid goes from one class to the other: its ends are draws of these classes."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    np.savez(tmp_path / "set.npz", image=(3 * label[:, None, None] * np.ones((1, 3, 3))).astype(np.uint8), label=label)
    run = str(tmp_path / "run")
    train(tmp_path / "set.npz", GatedPixelCNNConfig(image_shape=(3, 3, 1), levels=4, num_classes=2, **SMALLER), run)
    assert cli.command("sample", [run, "--n=16", "--label=0", "--to=1", f"--out={tmp_path / 'line.png'}"]) == 0
    picture = np.asarray(Image.open(tmp_path / "line.png")).astype(float)
    columns = np.split(picture[:, 4:, 0], 4, axis=1)
    assert columns[0].mean() < 60 < 180 < columns[3].mean()
    assert cli.command("sample", [run, "--n=4", "--to=1"]) == 2
