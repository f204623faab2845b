"""`jaxgen attack`: the table is that of the functions, the picture shows what they made; a network as a function of [0, 1] is exact."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import jaxgen
from jaxgen import attacks, data
from jaxgen.__main__ import main
from jaxgen.attacks.inputs import row_keys
from jaxgen.errors import ConfigError
from jaxgen.models import Classifier, ClassifierConfig
from jaxgen.reports import attacked
from jaxgen.runs import figures

TRAIN = ["--train.steps=80", "--train.batch_size=32", "--train.eval_every=80", "--report.samples=0", "--report.rulers=False"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier of three classes of small images, and a PCA of the same."""
    folder = tmp_path_factory.mktemp("attack")
    label = np.arange(240) % 3
    image = (36 * np.random.default_rng(0).integers(0, 3 + 2 * label[:, None, None], (240, 4, 5))).astype(np.uint8)
    np.savez(folder / "my.npz", image=image, label=label)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(figures, "curve", lambda *_: b"")  # pictures are half of the time of such a run
        one = ["--model.architecture=mlp", "--model.hidden=16", "--optimizer.learning_rate=0.01", "--train.ema_decay=0.9"]
        assert main(["train", "classifier", "--data.name=my.npz", "--workdir=run", *one, *TRAIN]) == 0
        assert main(["train", "pca", "--data.name=my.npz", "--workdir=pca", "--model.components=2", "--report.samples=0"]) == 0
    return folder


@pytest.mark.parametrize("levels", [2, 8, 17, 256, 65536])
def test_the_function_on_the_unit_box_is_the_classifier_at_its_levels_bit_for_bit(levels):
    image = np.arange(levels).astype(np.min_scalar_type(levels - 1))
    np.testing.assert_array_equal(attacks.from_unit(attacks.to_unit(image, levels), levels), image)
    np.testing.assert_array_equal(attacks.to_level(attacks.to_unit(image, levels), levels), attacks.to_unit(image, levels))
    halves = jnp.asarray(np.resize(np.linspace(0, 1, 7 * levels + 3, dtype=np.float32), 5000))  # of few levels several times
    np.testing.assert_allclose(attacks.from_unit(halves, levels), halves * (levels - 1), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(jax.vmap(jax.grad(lambda u: attacks.from_unit(u, levels)))(halves), levels - 1)
    model = Classifier(ClassifierConfig((5, 4, 1), levels, 3, (6, 5)), rngs=nnx.Rngs(0))
    batch = jnp.asarray(np.random.default_rng(0).integers(0, levels, (9, 5, 4, 1)).astype(image.dtype))
    for name in model.layers if levels == 17 else ("logits",):
        wanted, found = model.activations(batch, name), attacks.on_unit_box(model, name)(attacks.to_unit(batch, levels))
        np.testing.assert_array_equal(found, wanted)


def numbers(lines):
    """What stands in the rows of a table; a dash is NaN."""
    return [[float(word) for word in re.findall(r"(?:\d|nan)[\d.e-]*", line.replace(" - ", " nan "))] for line in lines]


def test_the_table_and_the_picture_are_those_of_the_functions(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert main(["attack", "run", "--eps", "0.05", "0.15", "--steps=5", "--restarts=2", "--seed=3", "--n=20"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    model, test = jaxgen.load("run"), data.load("my.npz", "test")
    levels = model.config.levels
    x, y = attacks.to_unit(test.images[:20], levels), np.asarray(test.labels)[:20]
    attack, key = partial(attacks.pgd, steps=5, restarts=2), jax.random.key(3)
    table = attacks.robust_accuracy(attacks.on_unit_box(model), x, y, key, [0.05, 0.15], attack, levels=levels)
    words = f"attack      pgd, norm inf, 5 steps, 2 restarts: 20 test images, values in 0..1; rounded: to their {levels} levels"
    assert (err, lines[0]) == ("", words)
    np.testing.assert_allclose(numbers(lines[2:5]), [row[:6] for row in table], rtol=1e-3, atol=6e-5)
    assert table[0].accuracy > table[2].accuracy <= table[1].accuracy and table[1].queries == 12
    assert table[0].accuracy == (np.asarray(model.predict(jnp.asarray(test.images[:20]))).argmax(1) == y).mean()

    rows = np.flatnonzero(table[0].right)[:8]
    found = jax.jit(attack)(attacks.on_unit_box(model), x[rows], y[rows], row_keys(key, 20)[rows], jnp.float32(0.05))
    words = f"eps 0.05: the first {len(rows)} that it is right on, {found.success.sum()} fooled: run/attack.png"
    assert lines[5] == f"original | perturbation | adversarial, {words}"
    picture = np.asarray(Image.open("run/attack.png"))
    np.testing.assert_array_equal(picture, attacked.picture(x[rows], found.x_adv, attacks.on_unit_box(model), ("0", "1", "2")))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("deepfool --steps 20", "deepfool, norm 2, 20 steps"),
        ("boundary --steps 30", "boundary, norm 2, 30 steps"),
        ("nes --budget 505", "nes, norm inf, 505 queries"),
        ("universal --norm 2 --steps 20", "universal, norm 2, 20 steps"),
        ("fast_gradient", "fast_gradient, norm 2"),
    ],
)
def test_every_family_is_its_function(folder, capsys, monkeypatch, words, said):
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert main(["attack", "run", "--eps", "0.3", "0.6", "--n=20", "--attack", *words.split()]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and lines[0].startswith(f"attack      {said}: 20 test images")
    model, train, test = jaxgen.load("run"), data.load("my.npz", "train"), data.load("my.npz", "test")
    f, levels, key = attacks.on_unit_box(model), model.config.levels, jax.random.key(0)
    (x, y), others = ((attacks.to_unit(part.images[:2000], levels), np.asarray(part.labels[:2000])) for part in (test, train))

    def of_others(logits_fn, x, y, key, eps):
        x_adv = jnp.clip(x + attacks.universal(f, *others, jax.random.key(0), eps, 2, steps=20), 0, 1)
        size = jnp.sqrt(jnp.square(x_adv - x).sum((1, 2, 3)))
        return attacks.Result(x_adv, f(x_adv).argmax(1) != y, size, size, jnp.ones(len(x), jnp.int32))

    attack = {
        "deepfool": partial(attacks.deepfool, steps=20),
        "boundary": partial(attacks.boundary, steps=30),
        "nes": partial(attacks.estimated, budget=505),
        "universal": of_others,
        "fast_gradient": attacks.fast_gradient,
    }[words.split()[0]]
    table = attacks.robust_accuracy(f, x[:20], y[:20], key, [0.3, 0.6], attack, levels=levels)
    np.testing.assert_allclose(numbers(lines[2:5]), [row[:6] for row in table], rtol=1e-3, atol=6e-5)
    smallest = words.startswith(("deepfool", "boundary"))
    assert lines[5].startswith(f"original | perturbation | adversarial, {'the smallest found' if smallest else 'eps 0.3'}: the first 8 ")


def test_the_pixels_of_the_picture(monkeypatch):
    """A change is grey where it is 0, and black or white where it is largest."""
    shown = {}

    def image_grid(images, levels, **more):
        shown.update(images=images, levels=levels, **more)
        return images[0]

    monkeypatch.setattr(attacked.figures, "image_grid", image_grid)
    x, x_adv = np.zeros((1, 1, 3, 1), np.float32), np.float32([0.0, 0.5, 0.25]).reshape(1, 1, 3, 1)
    attacked.picture(x, x_adv, lambda x: jnp.stack([x.max((1, 2, 3)), 0.1 + 0 * x.max((1, 2, 3))], axis=1) * 100, ("cat", "dog"))
    assert shown["images"].reshape(3, 3).tolist() == [[0, 0, 0], [128, 255, 191], [0, 128, 64]]
    assert (shown["names"], shown["levels"], shown["columns"]) == (["dog 100%", "max 0.5", "cat 100%"], 256, 6)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("pca", 2, "RUN: wanted a classifier of images, got PCA"),
        ("run --eps 1.5", 2, r"--eps: wanted a number in 0\.\.1, since no two images of the box are farther apart, got 1\.5"),
        ("run --eps -1", 2, r"--eps: wanted a number in 0\.\.1, since no two images of the box are farther apart, got -1\.0"),
        ("run --attack fgsm --norm 2", 2, "--norm: wanted none for fgsm, got 2"),
        ("run --attack fgsm --steps 3", 2, "--steps: wanted none for fgsm, got 3"),
        ("run --attack deepfool --norm 2", 2, "--norm: wanted none for deepfool, got 2"),
        ("run --attack nes --restarts 2", 2, "--restarts: wanted none for nes, got 2"),
        ("run --budget 100", 2, "--budget: wanted none for pgd, got 100"),
        ("run --attack nes --budget 90", 2, "--budget: wanted 102 or more queries, for one step, got 90"),
        ("run --attack deepfool --eps 5", 2, r"--eps: wanted a number in 0\.\.4\.47214, since no two images of the box .*, got 5\.0"),
        ("run --seed -1", 2, r"--seed: wanted an integer in 0\.\.2\*\*32-1, got -1"),
        ("run --steps 0", 2, "--steps: wanted a positive integer, got 0"),
        ("run --attack pgdd", 2, "--attack: .*did you mean pgd.*"),
        ("run --out x.jpg", 2, r"--out: wanted a file that ends with \.png, got x\.jpg"),
    ],
)
def test_a_wrong_attack_is_one_line(folder, capsys, monkeypatch, words, code, message):
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert main(["attack", *words.split()]) == code
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(f"jaxgen: {message}\n", err), err


def test_a_wrong_shape_and_a_model_without_relaxed_are_one_line():
    model = Classifier(ClassifierConfig((5, 4, 1), 17, 3, (6,)), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match=r"pixels: wanted shape \[B, 5, 4, 1\], got \[2, 4, 5, 1\]"):
        model.relaxed(jnp.zeros((2, 4, 5, 1)))
    with pytest.raises(ConfigError, match="model: wanted a classifier of images with a method `relaxed`"):
        attacks.on_unit_box(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
