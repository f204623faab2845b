"""Data: every batch against a brute-force order, the digits against scikit-learn, every wrong argument against its one-line error."""

import collections
import json

import numpy as np
import pytest
from scipy import stats

from jaxgen import data
from jaxgen.data import dataset as datasets
from jaxgen.data import images
from jaxgen.data.features import ClassLabel, Image
from jaxgen.errors import ConfigError, DataError, JaxgenError


def numbered(n: int, labels: bool = False) -> data.Dataset:
    """n images of shape 2x1x1 whose pixels spell their row number, so that a batch says which rows it holds."""
    rows = np.arange(n)
    pixels = np.stack([rows // 256, rows % 256], axis=1).astype(np.uint8)[:, :, None, None]
    return data.Dataset.from_arrays(pixels, rows % 10 if labels else None, levels=256)


def rows_of(batch: dict) -> list[int]:
    """The row numbers that `numbered` wrote into the pixels."""
    return (batch["image"][:, 0, 0, 0].astype(int) * 256 + batch["image"][:, 1, 0, 0]).tolist()


def pixels(n: int = 20, shape: tuple = (3, 4, 1), top: int = 255, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top + 1, (n, *shape)).astype(np.uint8)


def one_line(error: JaxgenError, *parts: str) -> None:
    """An error of one line that holds every part: file, index, wanted, got."""
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"


# ---------------------------------------------------------------------------------------------------------------------------- order of rows


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (7, 7), (5, 1), (9, 8), (300, 64), (6, 3)])
def test_each_epoch_is_a_permutation_and_nothing_is_dropped(n: int, batch_size: int) -> None:
    dataset, epochs = numbered(n), 5
    steps = -(-n * epochs // batch_size)
    stream = [row for step in range(steps) for row in rows_of(dataset.batch(step, batch_size, 3))]
    order = [stream[n * epoch : n * (epoch + 1)] for epoch in range(epochs)]
    for epoch in order:
        assert sorted(epoch) == list(range(n))
    if n >= 9:  # 1 in 9! for two of them to agree by chance
        assert len({tuple(epoch) for epoch in order}) == epochs
        assert order[0] != list(range(n))
    brute_force = [int(row) for epoch in range(epochs + 1) for row in images.permutation(n, 3, epoch)]
    assert stream == brute_force[: steps * batch_size]


def test_batch_is_a_function_of_seed_and_step_only() -> None:
    dataset = numbered(50)
    first = {step: rows_of(dataset.batch(step, 16, 1)) for step in range(12)}
    datasets._permutation.cache_clear()
    again = {step: rows_of(numbered(50).batch(step, 16, 1)) for step in reversed(range(12))}
    assert first == again
    assert first[0] != rows_of(dataset.batch(0, 16, 2))


def test_seeds_do_not_share_epochs() -> None:
    """seed s, epoch e must not equal seed s + 1, epoch e - 1, which a sum of the two would give."""
    orders = [tuple(images.permutation(30, seed, epoch)) for seed in range(6) for epoch in range(6)]
    assert len(set(orders)) == len(orders)


def test_permutation_is_uniform() -> None:
    """Over 4000 epochs, which of 4! orders comes up is uniform (chi-square)."""
    counts = collections.Counter(tuple(images.permutation(4, 7, epoch)) for epoch in range(4000))
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_the_order_never_changes_between_releases() -> None:
    """A resumed run must find the rows that it left; these numbers were written down when the first release was made."""
    assert images.permutation(10, 0, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]
    assert images.permutation(10, 1, 2).tolist() == [5, 6, 9, 3, 2, 1, 0, 8, 4, 7]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_the_global_batch(count: int) -> None:
    dataset = numbered(22, labels=True)
    for step in range(8):
        whole = dataset.batch(step, 8, 5, process=(0, 1))
        parts = [dataset.batch(step, 8, 5, process=(index, count)) for index in range(count)]
        assert all(len(part["image"]) == 8 // count for part in parts)
        for key in ("image", "label"):
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), whole[key])


def test_labels_stay_with_their_images() -> None:
    batch = numbered(40, labels=True).batch(3, 16, 0)
    assert batch["label"].tolist() == [row % 10 for row in rows_of(batch)]
    assert batch["label"].dtype == np.int32
    assert batch["image"].dtype == np.uint8
    assert "label" not in numbered(40).batch(0, 4, 0)


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda d: d.batch(0, 10, 0, process=(0, 4)), ConfigError, ["batch_size", "a multiple of 4 (processes)", "got 10", "try 8 or 12"]),
        (lambda d: d.batch(0, 2, 0, process=(0, 4)), ConfigError, ["batch_size", "try 4"]),
        (lambda d: d.batch(0, 0, 0), ConfigError, ["batch_size", "1 or more", "got 0"]),
        (lambda d: d.batch(-1, 4, 0), ConfigError, ["step", "got -1"]),
        (lambda d: d.batch(0, 4, -1), ConfigError, ["seed", "got -1"]),
        (lambda d: d.batch(0, 21, 0), DataError, ["arrays/train", "at least one batch of 21 images", "got 20"]),
        (lambda d: d.batches(0, 21, 0), DataError, ["at least one batch of 21 images"]),
        (lambda d: d.fingerprint(21, 0), DataError, ["at least one batch of 21 images"]),
        (lambda d: next(d.epoch(3, process=(0, 2))), ConfigError, ["batch_size", "a multiple of 2"]),
    ],
)
def test_wrong_batch_arguments(call, error: type, parts: list[str]) -> None:
    with pytest.raises(error) as caught:
        call(numbered(20))
    one_line(caught.value, *parts)


@pytest.mark.parametrize(("n", "batch_size", "count"), [(10, 4, 1), (10, 4, 2), (8, 4, 1), (3, 8, 2), (3, 8, 1), (1, 1, 1)])
def test_epoch_holds_every_row_once_in_order(n: int, batch_size: int, count: int) -> None:
    dataset = numbered(n, labels=True)
    seen = []
    for parts in zip(*(dataset.epoch(batch_size, process=(index, count)) for index in range(count)), strict=True):
        for batch, mask in parts:
            assert mask.shape == batch["label"].shape == (batch_size // count,)
            assert mask.dtype == np.float32
            assert set(mask.tolist()) <= {0.0, 1.0}
            seen += [row for row, real in zip(rows_of(batch), mask, strict=True) if real]
    assert seen == list(range(n))


# ----------------------------------------------------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    raw, order = load_digits(), np.random.default_rng(1).permutation(1797)
    for split, rows in (("train", order[:1293]), ("validation", order[1293:1437]), ("test", order[1437:])):
        dataset = data.load("digits", split)
        np.testing.assert_array_equal(dataset.images[..., 0], raw.images[rows])
        np.testing.assert_array_equal(dataset.labels, raw.target[rows])
        assert (len(dataset), dataset.image_shape, dataset.levels, dataset.num_classes) == (len(rows), (8, 8, 1), 17, 10)


def test_the_digits_split_never_changes() -> None:
    """The rulers and every published number belong to this split."""
    content = [data.load("digits", split).fingerprint(1, 0)["sha256"][:12] for split in images.SPLITS]
    assert content == ["a4d7279bdea0", "ec8dede941e3", "fdbaebc834c2"]


def test_config_is_the_default_set_and_checked() -> None:
    assert len(data.DataConfig().load("validation")) == 144
    for change, part in (({"levels": 1}, "data.levels"), ({"levels": 65537}, "got 65537"), ({"name": ""}, "data.name")):
        with pytest.raises(ConfigError) as caught:
            data.DataConfig(**change)
        one_line(caught.value, part)
    with pytest.raises(ConfigError) as caught:
        data.load("digits", "valid")
    one_line(caught.value, "split: wanted one of train, validation, test, got 'valid'")
    with pytest.raises(DataError) as caught:
        data.load("digits", "train", levels=16)
    one_line(caught.value, "digits:image[", "0..15 (16 levels)", "got 16")


def test_a_set_must_fit_its_model() -> None:
    dataset = data.load("digits", "test")
    dataset.expect({"image": Image((8, 8, 1), 17), "label": ClassLabel(10)})
    dataset.expect({"image": Image((8, 8, 1), 17)})
    for features, parts in (
        ({"image": Image((8, 8, 3), 17)}, ["digits/test", "[8, 8, 3]", "got [8, 8, 1]"]),
        ({"image": Image((8, 8, 1), 256)}, ["256 levels", "got 17"]),
        ({"image": Image((8, 8, 1), 17), "label": ClassLabel(12)}, ["12 classes", "got 10"]),
    ):
        with pytest.raises(DataError) as caught:
            dataset.expect(features)
        one_line(caught.value, *parts)


# ------------------------------------------------------------------------------------------------------------------------------ fingerprint


def test_fingerprint_is_json_and_sees_every_change() -> None:
    image, label = pixels(), np.arange(20) % 3

    def mark(image=image, label=label, **change) -> dict:
        arguments = {"batch_size": 4, "seed": 0, "process_count": 1} | change
        return data.Dataset.from_arrays(image, label, levels=256).fingerprint(**arguments)

    base = mark()
    assert json.loads(json.dumps(base)) == base
    assert mark() == base
    one_pixel, one_label = image.copy(), label.copy()
    one_pixel[7, 1, 1, 0] ^= 1
    one_label[3] = 1
    changes = {
        "seed": mark(seed=1), "batch_size": mark(batch_size=8), "process_count": mark(process_count=2),
        "sha256": mark(image=one_pixel), "n": mark(image=image[:19], label=label[:19]),
    }  # fmt: skip
    for field, now in changes.items():
        differ = {name for name in base if base[name] != now[name]}
        assert differ == {field} | ({"sha256"} if field == "n" else set())
    assert mark(label=one_label)["sha256"] != base["sha256"]
    swapped = mark(image=image.reshape(20, 4, 3, 1))
    assert swapped["sha256"] != base["sha256"]


def test_too_few_rows_are_called_what_they_are():
    strings = data.Dataset.from_arrays(tokens=np.ones((3, 5), np.uint8))
    with pytest.raises(DataError, match="at least one batch of 4 strings, got 3"):
        strings.check_batch(4)
