"""Samples beside real examples in the features of a network: precision and recall against brute force, distances against closed forms, and
`jaxgen quality`."""

import re
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import model_of
from flax import nnx
from sklearn.neighbors import NearestNeighbors

import jaxgen
from jaxgen import data, evaluation
from jaxgen.__main__ import main
from jaxgen.data import Dataset
from jaxgen.data.features import ClassLabel, Image
from jaxgen.errors import ConfigError, DataError
from jaxgen.evaluation import (
    accuracy_trained_on,
    classifier_features,
    classifier_score,
    compare_samples,
    draw_like,
    memorisation,
    share_recognised,
    weights_hash,
)
from jaxgen.measures import neighbours
from jaxgen.measures.frechet import frechet_distance, frechet_floor
from jaxgen.measures.metrics import OF_FEATURES
from jaxgen.measures.neighbours import precision_recall
from jaxgen.models import ClassifierConfig, VAEConfig, build
from jaxgen.runs import figures

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.normal(size=(700, 5))


# --- Precision and recall -----------------------------------------------------------------------------------------------------------------


def brute_force(points, centres, k: int) -> float:
    """The share of the points in a ball of a centre, by scikit-learn's exact neighbours and all differences."""
    nearest = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(centres).kneighbors(centres)[0]  # the first is the centre itself
    distance = np.linalg.norm(points[:, None] - centres[None], axis=-1)
    return float((distance <= nearest[:, k]).any(axis=1).mean())


@pytest.mark.parametrize("k", [1, 3, 7])
def test_precision_and_recall_are_those_of_brute_force(k, monkeypatch):
    real, samples = NOISE[:200], 0.7 * NOISE[200:350] + np.array([0.8, 0, 0, 0, 0])
    wanted = brute_force(samples, real, k), brute_force(real, samples, k)
    assert precision_recall(samples, real, k) == wanted
    assert 0.2 < wanted[1] < wanted[0] < 1, "narrow samples: many look real, and they do not cover the real ones"
    monkeypatch.setattr(neighbours, "BLOCK", 500)  # 2 or 3 rows at a time
    assert precision_recall(samples, real, k) == wanted


def test_equal_sets_have_both_1_and_sets_far_apart_both_0():
    assert precision_recall(NOISE, NOISE) == precision_recall(NOISE[::-1] + 1e6, NOISE + 1e6) == (1, 1)
    assert precision_recall(NOISE, NOISE + 100) == (0, 0)
    assert precision_recall(NOISE, np.concatenate([NOISE, NOISE + 100])) == (1, 0.5), "half of the real ones are not covered"
    assert precision_recall(np.concatenate([NOISE, NOISE + 100]), NOISE) == (0.5, 1), "half of the samples are not real"


def test_copies_have_balls_of_radius_0_which_hold_the_copies():
    """A generator of three images: the balls around them are points, also where rounding in |a|^2 + |b|^2 - 2 ab is not 0."""
    samples = np.repeat(1000 + NOISE[:3], 5, axis=0)
    assert precision_recall(samples, np.concatenate([samples[:10], NOISE]), 3) == (10 / 15, 10 / 710)


def test_ties_are_inside():
    """On a line 0, 1, 2, ... every ball of k = 2 has radius 1, or 2 at the ends: in exact arithmetic."""
    line = np.arange(6.0)[:, None]
    assert precision_recall(np.array([[-2.0], [-2.5], [7.0], [0.5]]), line, 2)[0] == 0.75


def test_sets_that_are_too_small_are_refused():
    with pytest.raises(DataError, match=r"^precision_recall: wanted more than k = 3 vectors in each set, got 3 and 700$"):
        precision_recall(NOISE[:3], NOISE)
    with pytest.raises(ConfigError, match=r"^k: wanted 1 or more, got 0$"):
        precision_recall(NOISE, NOISE, 0)


# --- Any function as features -------------------------------------------------------------------------------------------------------------


def standard(x):
    """Vectors whose mean is exactly 0 and whose covariance exactly I."""
    x = x - x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_of_gaussian_features_the_distance_is_that_of_the_closed_form():
    """Between N(0, I) and N(m, s^2 I) it is |m|^2 + D (1 - s)^2."""
    real, samples = NOISE.copy(), np.array([1.0, -2, 0, 0, 0]) + 1.5 * standard(RANDOM.normal(size=(350, 5)))
    real[:350] = standard(real[:350])
    found = compare_samples(samples, real, lambda x: x)
    assert found["frechet_features"] == pytest.approx(5 + 5 * 0.25, rel=1e-9)
    assert found["frechet_features_floor"] == pytest.approx(frechet_floor(real, 350), rel=1e-9)
    assert found["n"] == found["n_floor"] == 350 and found["precision"] < found["precision_floor"]


def test_new_real_examples_get_the_floor():
    """For them the distance is its bias, (2 D + D (D + 1) / 2) / n."""
    real, samples, more = np.random.default_rng(1).normal(size=(3, 500, 20))
    found = compare_samples(samples, real, lambda x: x, more)
    assert found["frechet_features"] == pytest.approx((2 * 20 + 20 * 21 / 2) / 500, rel=0.1)
    for name in ("frechet_features", "precision", "recall", "density", "coverage"):
        assert found[name] == pytest.approx(found[f"{name}_floor"], rel=0.1)
    assert abs(found["kernel_features"]) < 3 * found["kernel_features_standard_error"]
    assert abs(found["density"] - 1) < 4 * found["density_standard_error"]
    assert 0.3 < found["precision"] < 0.9
    assert found["precision_standard_error"] == pytest.approx(np.sqrt(found["precision"] * (1 - found["precision"]) / 500))


def test_copies_of_the_real_examples_are_perfect_and_the_floor_says_what_new_ones_would_get():
    found = compare_samples(NOISE[:350], NOISE, lambda x: x)
    assert found["frechet_features"] == pytest.approx(0, abs=1e-9) and found["precision"] == found["recall"] == 1
    assert found["frechet_features_floor"] > 0.01 and 0.8 < found["precision_floor"] < 1


def test_as_many_of_each_are_compared():
    twice = compare_samples(NOISE[:50], NOISE[100:140], lambda x: x, more=NOISE[200:230])
    assert (twice["n"], twice["n_floor"]) == (40, 35)
    few = compare_samples(NOISE[:4], NOISE[10:14], lambda x: x, more=NOISE[20:30])
    assert np.isnan([few["density"], few["coverage"], few["density_floor"]]).all() and few["precision"] >= 0
    assert twice == compare_samples(NOISE[:40], NOISE[100:140], lambda x: x, more=NOISE[200:230])
    with pytest.raises(DataError, match="wanted more than k = 3 samples, and twice as many real examples, got 50 and 7"):
        compare_samples(NOISE[:50], NOISE[:7], lambda x: x)
    with pytest.raises(DataError, match="^more: wanted real examples that make two sets of more than k = 3 together with .*, got 0$"):
        compare_samples(NOISE[:50], NOISE[:5], lambda x: x, more=NOISE[:0])
    assert compare_samples(NOISE[:50], NOISE[:10], lambda x: x, more=NOISE[:0])["n_floor"] == 5


def test_the_features_get_whole_batches_and_every_example_once():
    seen = []

    def features(batch):
        seen.append(batch.shape)
        return batch.reshape(len(batch), -1) / 255

    images = RANDOM.integers(0, 256, (22, 2, 3, 1)).astype(np.uint8)
    found = compare_samples(images[:11], images, features, batch_size=4)
    assert set(seen) == {(4, 2, 3, 1)} and len(seen) == 9 and found["frechet_features"] < 1e-9
    assert found == compare_samples(images[:11], images, features, batch_size=64)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda x: x[:, 0], r"^features: wanted a function that returns vectors \[256, D\], got \[256\]$"),
        (lambda x: x[:4], r"^features: wanted a function that returns vectors \[256, D\], got \[4, 5\]$"),
        (lambda x: np.where(x == NOISE[7], np.nan, x), r"^features: wanted finite numbers, got nan for example 7$"),
    ],
)
def test_features_that_are_none_are_refused(features, message):
    with pytest.raises(ConfigError, match=message):
        compare_samples(NOISE, NOISE, features)


PAGE = (Path(__file__).resolve().parent.parent / "docs" / "sample_quality.md").read_text("utf-8")


class Tensor:
    """What the page uses of a tensor of PyTorch, which is not installed here."""

    def __init__(self, array):
        self.array = array

    def permute(self, *axes):
        return Tensor(self.array.transpose(axes))

    def flatten(self, start):
        return Tensor(self.array.reshape(*self.array.shape[:start], -1))

    def numpy(self):
        return self.array


class InceptionV3:
    """In the place of the network: the mean of every channel, [B, 3, 1, 1] as pytorch_fid gives it, of images in 0..1."""

    BLOCK_INDEX_BY_DIM = {2048: 3}

    def __init__(self, blocks):
        assert blocks == [3]

    def eval(self):
        return self

    def __call__(self, x):
        assert x.array.dtype == np.float32 and x.array.shape[1] == 3 and 0.9 < x.array.max() <= 1
        return [Tensor(x.array.mean(axis=(2, 3), keepdims=True))]


def test_the_code_of_the_page_runs(monkeypatch, capsys, tmp_path):
    split, ours, fid = tmp_path / "split.py", tmp_path / "ours.py", tmp_path / "fid.py"
    for file, code in zip((split, ours, fid), re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), strict=True):
        file.write_text(code)
    models = {"runs/x": VAEConfig(latent=2, hidden=(4,)), "runs/classifier": ClassifierConfig(hidden=(4, 6))}
    monkeypatch.setattr(jaxgen, "load", lambda path: build(models[path]), raising=False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(from_numpy=Tensor, no_grad=nullcontext))
    monkeypatch.setitem(sys.modules, "pytorch_fid", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "pytorch_fid.inception", SimpleNamespace(InceptionV3=InceptionV3))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(split))
    parts = [data.load(f"for_{who}.npz", part, levels=17) for who in ("classifier", "model") for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(data.load("digits", "train")) and parts[0].levels == 17
    names = runpy.run_path(str(ours))
    distance, floor = map(float, capsys.readouterr().out.split())
    assert names["result"]["n"] == names["result"]["n_floor"] == 360 and distance > floor > 0
    names |= {name: RANDOM.integers(0, 256, (300, 4, 5, 3)).astype(np.uint8) for name in ("samples", "train_images", "test_images")}
    fid = runpy.run_path(str(fid), names)["fid"]
    channels = [names[name].mean(axis=(1, 2)) / 255 for name in ("samples", "train_images")]
    assert fid == pytest.approx(frechet_distance(*channels), rel=1e-4)


# --- Those of a classifier ----------------------------------------------------------------------------------------------------------------


def test_features_of_a_classifier_are_its_activations_averaged_over_places():
    model = model_of("classifier")
    images = RANDOM.integers(0, 3, (6, 4, 4, 1)).astype(np.uint8)
    last = np.asarray(model.activations(jnp.asarray(images), "hidden2"))
    assert last.ndim == 4
    np.testing.assert_allclose(classifier_features(model)(images), last.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(classifier_features(model, "logits")(images), model.predict(jnp.asarray(images)), rtol=1e-5, atol=1e-6)
    flat = build(ClassifierConfig((4, 4, 1), 3, 3, hidden=(5, 7), architecture="mlp"))
    np.testing.assert_allclose(classifier_features(flat, "hidden1")(images), flat.activations(jnp.asarray(images), "hidden1"), rtol=1e-5)
    with pytest.raises(ConfigError, match="^layer: wanted one of hidden1, hidden2, logits, got hidden3$"):
        classifier_features(model, "hidden3")
    with pytest.raises(ConfigError, match="^features: wanted a classifier with named layers, got VAE$"):
        classifier_features(model_of("vae"))


def test_the_hash_tells_weights_apart():
    model = model_of("classifier")
    graph, state = nnx.split(model)
    same, last = nnx.merge(graph, jax.tree.map(jnp.array, state)), nnx.merge(graph, jax.tree.map(jnp.array, state))
    last.logits.bias[...] = last.logits.bias[...].at[2].add(1e-6)
    assert re.fullmatch("[0-9a-f]{16}", weights_hash(model)) and weights_hash(same) == weights_hash(model) != weights_hash(last)
    one, two = (SimpleNamespace(**{name: np.zeros(2, np.float32)}).__dict__ for name in "ab")
    assert len({weights_hash(one), weights_hash(two), weights_hash({"a": np.zeros((2, 1), np.float32)})}) == 3


class Echo:
    """A class-conditional generator: an image of class y has the value y everywhere, and noise in its first pixel."""

    config = SimpleNamespace(features={"image": Image((2, 2, 1), 9), "label": ClassLabel(4)}, modelled="image")

    def sample(self, key, n, label):
        image = jnp.broadcast_to(label[:, None, None, None].astype(jnp.uint8), (n, 2, 2, 1))
        return image.at[:, 0, 0].set(jax.random.randint(key, (n, 1), 0, 9).astype(jnp.uint8))


class ReadsThePixel:
    """A classifier: the first pixel is the class."""

    def predict(self, image):
        return jax.nn.one_hot(image[:, 0, 0, 0], 4)


for one in (Echo, ReadsThePixel):
    jax.tree_util.register_static(one)


def test_conditional_samples_have_the_labels_of_the_real_examples():
    label = np.array([3, 3, 0, 3, 1, 3, 0], np.int32)
    columns = {"image": np.zeros((7, 2, 2, 1), np.uint8), "label": label}
    dataset = Dataset.from_columns(columns, Echo.config.features)
    real, samples = draw_like(Echo(), dataset, jax.random.key(0), batch_size=3)
    np.testing.assert_array_equal(samples[:, 1, 1, 0], label)
    np.testing.assert_array_equal(real["label"], label)
    assert len(set(samples[:, 0, 0, 0].tolist())) > 3, "every sample has its own noise"
    fewer, again = draw_like(Echo(), dataset, jax.random.key(0), batch_size=2, n=5)
    np.testing.assert_array_equal(again, samples[:5])
    np.testing.assert_array_equal(fewer["label"], label[:5])


def test_the_share_of_recognised_samples_is_counted():
    images = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1], np.uint8).reshape(10, 1, 1, 1)
    label = np.array([0, 1, 2, 3, 0, 1, 2, 0, 0, 0], np.int32)
    share, error = share_recognised(ReadsThePixel(), images, label, batch_size=4)
    assert share == 0.8 and error == pytest.approx(np.sqrt(0.8 * 0.2 / 10))


# --- The command --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Short runs of a class-conditional VAE, a classifier of the same images, and a classifier of others."""
    folder = tmp_path_factory.mktemp("quality")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(figures, "curve", lambda *_: b"")  # pictures are half of the time of such a run
        label = np.arange(100) % 3
        image = (RANDOM.random((100, 4, 4)) < 0.2 + 0.3 * label[:, None, None]).astype(np.uint8)
        np.savez("my.npz", image=image, label=label)
        np.savez("narrow.npz", image=image[:, :, :3], label=label)
        np.savez("two.npz", image=image, label=label % 2)
        short = ["--train.batch_size=32", "--report.samples=0", "--report.rulers=False"]
        for name, model, source in (("vae", "vae", "my"), *((name, "classifier", name) for name in ("my", "narrow", "two"))):
            hidden = "--model.hidden=8" if name == "vae" else "--model.architecture=mlp"
            steps = f"--train.steps={1 if name in ('narrow', 'two') else 60}"  # these are refused, whatever they have learnt
            assert main(["train", model, f"--data.name={source}.npz", f"--workdir={name}", hidden, steps, *short]) == 0
    return folder


def test_jaxgen_quality_prints_what_the_functions_say(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    capsys.readouterr()
    assert main(["quality", "vae", "--features=my", "--n=9", "--k=2", "--seed=4", "--layer=hidden1"]) == 0
    out, err = capsys.readouterr()
    model, classifier, test, train = jaxgen.load("vae"), jaxgen.load("my"), *(data.load("my.npz", split) for split in ("test", "train"))
    columns, samples = draw_like(model, test, jax.random.key(4), n=9)
    more = train.images[np.random.default_rng(0).permutation(len(train))[:9]]
    result = evaluation.compare_samples(samples, columns["image"], classifier_features(classifier, "hidden1"), more, k=2)
    found = [" ".join(line.split()) for line in out.splitlines()]
    assert found[:2] == [
        f"features Classifier my, layer hidden1, weights {weights_hash(classifier)}",
        "compared 9 samples with 9 test images; real against real 9 of each",
    ]
    equal = (train.images[:, None] == columns["image"][None]).all(axis=(2, 3, 4)).any(axis=0).sum()
    assert found[2:4] == [
        f"splits {equal} of the 9 test images are among the {len(train)} that the model was trained on, "
        f"{equal} among the {len(train)} of the classifier",
        f"{len(train)} of the classifier are among those of the model, none would be better",
    ]
    lines = [(line.split()[0], line, under) for line, under in zip(found[4::2], found[5::2], strict=True)]
    assert [name for name, _, _ in lines] == list(OF_FEATURES)
    lines = {name: (line, under) for name, line, under in lines}
    assert lines["frechet_features"] == (
        f"frechet_features {result['frechet_features']:.4f} (lower is better)",
        f"real against real {result['frechet_features_floor']:.4f}",
    )
    assert lines["kernel_features"] == (
        f"kernel_features {result['kernel_features']:.3g} +- {result['kernel_features_standard_error']:.3g} (lower is better)",
        f"real against real {result['kernel_features_floor']:.3g}",
    )
    for name in ("precision", "recall", "density", "coverage"):
        error = result[f"{name}_standard_error"]
        assert lines[name][0] == f"{name} {result[name]:.4f} +- {error:.4f} (higher is better)"
        assert lines[name][1] == f"real against real {result[f'{name}_floor']:.4f}"
    score, error = classifier_score(classifier.predict(jnp.asarray(samples)).__array__())
    assert lines["classifier_score"][0] == f"classifier_score {score:.4f} +- {error:.4f} (higher is better)"
    shares = [share_recognised(classifier, images, columns["label"]) for images in (samples, columns["image"])]
    assert lines["recognised"] == (
        f"recognised {shares[0][0]:.4f} +- {shares[0][1]:.4f} (higher is better)",
        f"of the real images {shares[1][0]:.4f} +- {shares[1][1]:.4f}",
    )
    share = accuracy_trained_on(samples, columns["label"], columns["image"], columns["label"])
    assert lines["trained_on_samples"][0].startswith(f"trained_on_samples {share:.4f} +- ")
    assert lines["trained_on_samples"][1].startswith("trained on real images 0.")
    of_copies = memorisation(samples, columns["image"], train.images)
    assert lines["copies"] == (
        f"copies {of_copies['copies']:.4f} (lower is better)",
        f"of the real images {of_copies['copies_real']:.4f}",
    )
    assert lines["memorisation_ratio"][0].startswith("memorisation_ratio ")
    assert (err, "FID" in out) == ("", False)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("vae", 2, "--features: wanted the run of a classifier of such images, got nothing; jaxgen train classifier makes one"),
        ("vae --features nowhere", 4, "--features: wanted a run directory with checkpoints, got nowhere; .*"),
        ("vae --features vae", 2, "--features: wanted the run of a classifier of images, got VAE"),
        ("vae --features narrow", 2, r"--features: wanted a classifier of images \[4, 4, 1\] of 2 levels, as the model draws, got .*"),
        ("vae --features two", 2, "--features: wanted a classifier of the model's 3 classes, got 2 classes"),
        ("my", 2, "RUN: wanted a model that draws images, points or strings, got Classifier"),
        ("vae --features my --layer hidden9", 2, "--layer: wanted one of hidden1, hidden2, logits, got hidden9"),
        ("vae --features my --k 0", 2, "--k: wanted a positive integer, got 0"),
        ("vae --features my --n 3", 3, "samples, real: wanted more than k = 3 samples, and as many real examples, got 3 and 3"),
    ],
)
def test_a_wrong_quality_is_one_line(runs, capsys, monkeypatch, words, code, message):
    monkeypatch.chdir(runs)
    capsys.readouterr()
    assert main(["quality", *words.split()]) == code
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(f"jaxgen: {message}\n", err), err
