"""Sets on disk: reading ahead, tensorflow-datasets with builders of our own (no TensorFlow), and its real mnist where that can be."""

import collections
import importlib.util
import io
import json
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_data import numbered, one_line, rows_of

from jaxgen import data
from jaxgen.data import dataset, images, tfds
from jaxgen.errors import DataError

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None

# ---------------------------------------------------------------------------------------------------------------------------- reading ahead


class SlowList:
    """A TFDS data source of numbered images that counts its reads and fails at a row if told so."""

    def __init__(self, n: int, bad_row: int | None = None):
        self.n, self.bad_row, self.reads = n, bad_row, 0

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, rows: list[int]) -> list[dict]:
        self.reads += 1
        time.sleep(0.002 * (rows[0] % 5))
        if self.bad_row in rows:
            raise OSError(f"row {self.bad_row} is torn")
        return [{"image": np.array([row // 256, row % 256], np.uint8).reshape(2, 1, 1)} for row in rows]


def on_disk(source: SlowList) -> data.Dataset:
    return data.Dataset(tfds.DiskSource(source, source, "slow/train", "1.0.0", (2, 1, 1), 256, 0), "slow", "train")


@pytest.mark.parametrize("make", [numbered, lambda n: on_disk(SlowList(n))], ids=["memory", "disk"])
@pytest.mark.parametrize("start", [0, 5, 1000])
def test_batches_continue_from_any_step(make, start: int) -> None:
    dataset, oracle = make(23), numbered(23)
    stream = dataset.batches(start, 8, 2)
    for step in range(start, start + 12):
        assert rows_of(next(stream)) == rows_of(oracle.batch(step, 8, 2))


def within_ten_seconds(condition) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_batches_read_ahead_and_stop() -> None:
    source = SlowList(40)
    stream = on_disk(source).batches(0, 4, 0)
    next(stream)
    assert within_ten_seconds(lambda: source.reads >= 1 + dataset.READ_AHEAD)  # ahead
    time.sleep(0.1)
    assert source.reads <= 4 + dataset.READ_AHEAD  # but bounded
    del stream
    assert within_ten_seconds(lambda: not [thread for thread in threading.enumerate() if "grain" in thread.name])


def test_an_error_of_the_reader_arrives_at_its_step() -> None:
    oracle = numbered(40)
    order = [rows_of(oracle.batch(step, 4, 0)) for step in range(10)]
    bad_step, bad_row = 6, order[6][1]
    stream = on_disk(SlowList(40, bad_row=bad_row)).batches(0, 4, 0)
    assert [rows_of(next(stream)) for _ in range(bad_step)] == order[:bad_step]
    with pytest.raises(DataError) as caught:
        next(stream)
    one_line(caught.value, f"slow/train rows {bad_row}: wanted readable examples", f"OSError: row {bad_row} is torn")


def test_columns_of_a_set_on_disk_index_like_arrays() -> None:
    column, array = on_disk(SlowList(12)).images, numbered(12).images
    assert column.shape == array.shape
    assert len(column) == 12
    for index in (3, -1, slice(2, 9, 3), [0, 7, 7], np.array([5]), slice(4, 4)):
        np.testing.assert_array_equal(column[index], array[index])
    np.testing.assert_array_equal(np.asarray(column), array)
    with pytest.raises(IndexError):
        column[12]


def test_values_out_of_range_on_disk_name_the_row() -> None:
    narrow = tfds.DiskSource(SlowList(12), None, "slow/train", "1.0.0", (2, 1, 1), 8, 0)
    with pytest.raises(DataError) as caught:
        narrow.read(np.array([2, 9, 3]))
    one_line(caught.value, "slow/train:image[9, 1, 0, 0]", "0..7 (8 levels)", "got 9")


# ------------------------------------------------------------------------------------------------------- tensorflow-datasets, no TensorFlow


def png(array: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()


def own_builders() -> dict:
    """Builders that a user might write: PNG bytes with labels, tensors, and some that cannot be used."""
    import tensorflow_datasets as tfds

    feature = tfds.features

    class Base(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")
        SIZES = {"train": 57, "test": 9}
        SKIP_REGISTERING = True

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=feature.FeaturesDict(self.FEATURES))

        def _split_generators(self, manager):
            return {split: self._generate_examples(n, split) for split, n in self.SIZES.items()}

        def _generate_examples(self, n, split):
            for row in range(n):
                yield row, self.example(split, row)

    class JaxgenPng(Base):
        FEATURES = {"image": feature.Image(shape=(5, 4, 3)), "label": feature.ClassLabel(num_classes=7)}

        def example(self, split, row):
            return {"image": png(picture(split, row)), "label": row % 7}

    class JaxgenBits(Base):
        FEATURES = {"image": feature.Tensor(shape=(5, 4), dtype=np.uint8)}
        SIZES = {"train": 57, "validation": 5, "test": 9}

        def example(self, split, row):
            return {"image": picture(split, row)[..., 0] % 2}

    class JaxgenFloats(JaxgenBits):
        FEATURES = {"image": feature.Tensor(shape=(5, 4), dtype=np.float32)}

        def example(self, split, row):
            return {"image": picture(split, row)[..., 0].astype(np.float32)}

    class JaxgenNoImage(JaxgenBits):
        FEATURES = {"pixels": feature.Tensor(shape=(5, 4), dtype=np.uint8)}

        def example(self, split, row):
            return {"pixels": picture(split, row)[..., 0]}

    class JaxgenNoTest(JaxgenBits):
        SIZES = {"train": 5}

    class JaxgenBroken(JaxgenBits):
        def example(self, split, row):
            raise OSError("the download\nstopped")

    classes = (JaxgenPng, JaxgenBits, JaxgenFloats, JaxgenNoImage, JaxgenNoTest, JaxgenBroken)
    return {tfds.core.naming.camelcase_to_snakecase(cls.__name__): cls for cls in classes}


def picture(split: str, row: int) -> np.ndarray:
    return np.random.default_rng([len(split), row]).integers(0, 256, (5, 4, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    """load(name, split) through tfds.builder, with this file's builders in the place of TFDS's registry."""
    import tensorflow_datasets as tfds

    folder, classes, builder = str(tmp_path_factory.mktemp("tfds")), own_builders(), tfds.builder

    def find(name: str, **arguments):
        return classes[name](**arguments) if name in classes else builder(name, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds, "builder", find)
        yield lambda name, split, **arguments: data.load(name, split, data_dir=folder, **arguments)


def test_own_builder_of_png_bytes(prepared) -> None:
    train, validation, test = (prepared("jaxgen_png", split) for split in images.SPLITS)
    assert [len(part) for part in (train, validation, test)] == [52, 5, 9]
    assert (train.image_shape, train.levels, train.num_classes) == ((5, 4, 3), 256, 7)
    pairs = [pair for part in (train, validation) for pair in zip(np.asarray(part.images), np.asarray(part.labels).tolist(), strict=True)]
    found = sorted((x.tobytes(), y) for x, y in pairs)
    assert found == sorted((picture("train", row).tobytes(), row % 7) for row in range(57))
    assert {x.tobytes() for x in np.asarray(test.images)} == {picture("test", row).tobytes() for row in range(9)}
    np.testing.assert_array_equal(test.labels[2:5], test.source.read(np.arange(2, 5))["label"])


def test_a_fixed_permutation_holds_out_rows_of_train(prepared) -> None:
    """The rows of `images.permutation`, as of arrays; runs of an old rule have the end of train, as TFDS's own slices give it."""
    held = np.sort(images.permutation(57, images.SPLIT_SEED, 0)[:5])
    rows = {"train": np.setdiff1d(np.arange(57), held), "validation": held}
    for rule, want in ((3, rows), (2, {"train": np.arange(52), "validation": np.arange(52, 57)})):
        for split in ("train", "validation"):
            part = prepared("jaxgen_png", split, splits=rule)
            whole = part.source.examples.__getitems__(list(range(57)))
            np.testing.assert_array_equal(np.asarray(part.images), [whole[row]["image"] for row in want[split]])
            assert np.asarray(part.labels).tolist() == [whole[row]["label"] for row in want[split]]
    import tensorflow_datasets

    folder = Path(part.source.examples.dataset_info.data_dir).parents[1]
    end = tensorflow_datasets.builder("jaxgen_png", data_dir=str(folder), file_format="array_record").as_data_source(split="train[52:]")
    np.testing.assert_array_equal(np.asarray(part.images), [example["image"] for example in end])
    assert part.content() == prepared("jaxgen_png", "validation", splits=1).content() and len(part) == len(held) == 5


@pytest.mark.parametrize("name", ["jaxgen_png", "jaxgen_bits"])
def test_without_validation_the_training_split_is_both(prepared, name) -> None:
    parts = [prepared(name, split) for split in ("train", "validation")]
    whole = prepared(name, "train", validation=0)
    for column in whole.columns:
        both = np.concatenate([np.asarray(part.columns[column]) for part in parts])
        np.testing.assert_array_equal(np.asarray(whole.columns[column]), both)
        rows = np.array([len(both) - 1, 0, len(parts[0]), 3, len(parts[0]) - 1])
        np.testing.assert_array_equal(whole.source.read(rows)[column], both[rows])
    assert whole.content()["sha256"] != parts[0].content()["sha256"]


def test_own_builder_of_binary_tensors(prepared) -> None:
    parts = [prepared("jaxgen_bits", split) for split in images.SPLITS]
    assert [len(part) for part in parts] == [57, 5, 9]  # its own validation split is used
    assert {(part.image_shape, part.levels, part.num_classes) for part in parts} == {((5, 4, 1), 2, 0)}
    assert parts[0].labels is None
    want = sorted((picture("validation", row)[..., 0] % 2).tobytes() for row in range(5))
    assert sorted(x.tobytes() for x in np.asarray(parts[1].images)) == want
    assert prepared("jaxgen_bits", "train", levels=256).levels == 256


def test_batches_of_a_set_on_disk_equal_those_of_memory(prepared) -> None:
    disk = prepared("jaxgen_png", "train")
    memory = data.Dataset.from_arrays(np.asarray(disk.images), np.asarray(disk.labels), levels=256)
    stream = disk.batches(3, 16, 9)
    for step in range(3, 12):
        for batch in (disk.batch(step, 16, 9), next(stream)):
            want = memory.batch(step, 16, 9)
            assert batch.keys() == want.keys()
            for key in want:
                np.testing.assert_array_equal(batch[key], want[key])
                assert batch[key].dtype == want[key].dtype
    for (batch, mask), (want, want_mask) in zip(disk.epoch(16), memory.epoch(16), strict=True):
        np.testing.assert_array_equal(batch["image"], want["image"])
        np.testing.assert_array_equal(mask, want_mask)


def test_fingerprint_of_a_set_on_disk(prepared) -> None:
    first, again = (prepared("jaxgen_png", "train").fingerprint(8, 0) for _ in range(2))
    assert first == again == json.loads(json.dumps(first))
    assert (first["version"], first["n"], first["name"]) == ("1.2.0", 52, "jaxgen_png")
    assert first["sha256"] != prepared("jaxgen_png", "validation").fingerprint(1, 0)["sha256"]


@pytest.mark.parametrize(
    ("name", "split", "parts"),
    [
        ("jaxgen_floats", "train", ["jaxgen_floats:image", "uint8 images of one fixed shape", "got float32 [5, 4]"]),
        ("jaxgen_no_image", "train", ["jaxgen_no_image", "a feature named 'image'", "got pixels"]),
        ("jaxgen_no_test", "test", ["jaxgen_no_test", "a test split", "got train"]),
        ("jaxgen_broken", "train", ["jaxgen_broken", "a set that can be prepared", "OSError: the download stopped"]),
        ("minist", "train", ["minist", "a TFDS set or an existing path", "did you mean mnist?"]),
        ("digts", "train", ["digts", "did you mean digits?"]),
        ("mnist:9.9.9", "train", ["mnist:9.9.9", "got AssertionError: Dataset mnist cannot be loaded at version 9.9.9"]),
        ("my_holiday_pictures", "train", ["my_holiday_pictures", "./my_holiday_pictures"]),
    ],
)
def test_sets_that_cannot_be_used(prepared, name: str, split: str, parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        prepared(name, split)
    one_line(caught.value, *parts)


def test_a_value_above_the_named_levels(prepared) -> None:
    dataset = prepared("jaxgen_png", "train", levels=17)
    with pytest.raises(DataError) as caught:
        dataset.batch(0, 8, 0)
    one_line(caught.value, "jaxgen_png/train:image[", "0..16 (17 levels)")


def test_a_deleted_file_of_a_prepared_set(prepared, tmp_path: Path) -> None:
    dataset = prepared("jaxgen_no_test", "train")
    folder = Path(dataset.source.examples.dataset_info.data_dir).parents[1]
    shutil.copytree(folder / "jaxgen_no_test", tmp_path / "jaxgen_no_test")
    for path in (tmp_path / "jaxgen_no_test").rglob("*array_record*"):
        path.unlink()
    with pytest.raises(DataError) as caught:
        data.load("jaxgen_no_test", "train", data_dir=str(tmp_path))
    one_line(caught.value, "jaxgen_no_test")


def test_damaged_records_are_named(prepared, tmp_path: Path) -> None:
    """A flipped byte in the set's file; the error has every row that cannot be read, as the split counts them."""
    folder = Path(prepared("jaxgen_png", "train").source.examples.dataset_info.data_dir).parents[1]
    shutil.copytree(folder / "jaxgen_png", tmp_path / "jaxgen_png")
    dataset = data.load("jaxgen_png", "train", data_dir=str(tmp_path))
    (file,) = (tmp_path / "jaxgen_png").rglob("*train.array_record*")
    content = bytearray(file.read_bytes())
    content[600] ^= 255
    file.write_bytes(content)
    again = data.load("jaxgen_png", "train", data_dir=str(tmp_path), levels=256).source

    def torn(row):
        try:
            again.read(np.array([row]))
        except DataError:
            return True
        return False

    rows = [row for row in range(len(dataset)) if torn(row)]
    assert rows
    with pytest.raises(DataError) as caught:
        again.read(np.arange(len(dataset)))
    one_line(caught.value, f"jaxgen_png/train rows {', '.join(map(str, rows))}: wanted readable examples", "hash mismatch")


@pytest.mark.skipif(HAS_TENSORFLOW, reason="TensorFlow is installed, so nothing is missing")
def test_without_tensorflow_a_set_of_tfds_is_refused_before_its_download(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.load("mnist", "train", data_dir=str(tmp_path))
    one_line(caught.value, "mnist (not yet prepared in", "TensorFlow", 'pip install ".[tfds]" in a clone')
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["huggingface:mnist", "kaggle:some_set/config:1.0.0"])
def test_a_community_set_is_refused_before_its_code_is_fetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError) as caught:
        data.load(name, "train")
    one_line(caught.value, name, "a set that TFDS brings itself", f"of the community '{name.partition(':')[0]}'")


def test_without_tensorflow_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError) as caught:
        data.load("mnist", "train")
    one_line(caught.value, "mnist", "tensorflow-datasets", 'pip install ".[tfds]" in a clone')


# ----------------------------------------------------------------------------------------------------------------- the real mnist, if there


@pytest.mark.skipif(not HAS_TENSORFLOW, reason="TensorFlow is not installed; preparing TFDS's own mnist needs it")
@pytest.mark.filterwarnings("default")  # TensorFlow's own deprecations
def test_the_real_mnist_builder_from_files_fetched_by_hand(real_data, tmp_path: Path) -> None:
    """Prepared by TFDS itself from the four original files, the pixels and labels equal those of the plain archive."""
    folders = {"data_dir": str(tmp_path), "manual_dir": str(real_data("mnist_tfds"))}
    train, validation, test = (data.load("mnist", split, **folders) for split in images.SPLITS)
    assert [len(part) for part in (train, validation, test)] == [54_000, 6_000, 10_000]
    for parts, file in (((train, validation), "train.npz"), ((test,), "test.npz")):
        with np.load(real_data("mnist") / file, allow_pickle=False) as archive:
            want = collections.Counter((x.tobytes(), int(y)) for x, y in zip(archive["image"], archive["label"], strict=True))
        found = [(x.tobytes(), int(y)) for part in parts for x, y in zip(np.asarray(part.images), np.asarray(part.labels), strict=True)]
        assert collections.Counter(found) == want
