"""Series as data: files, arrays and windows, splits by time, and what is refused, with file, line and column."""

import numpy as np
import pytest
from statsmodels.datasets import sunspots

from jaxgen import data
from jaxgen.data import Dataset
from jaxgen.data.series import Series, before_and_after, read_csv
from jaxgen.errors import ConfigError, DataError


def written(tmp_path, text: str):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    return tmp_path / "a.csv"


def test_the_sunspots_are_those_of_statsmodels():
    parts = [data.load("sunspots", split).images[:, 0] for split in ("train", "validation", "test")]
    np.testing.assert_array_equal(np.concatenate(parts), sunspots.load_pandas().data["SUNACTIVITY"])
    assert [len(part) for part in parts] == [249, 30, 30]


def test_windows_hold_the_values_before_each_and_reach_back_over_the_split(tmp_path):
    values = np.arange(20.0)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", series=values.astype(np.float32))
    written(tmp_path, "time,value\n" + "".join(f"{t},{v}\n" for t, v in enumerate(values)))
    for name, column in (("a.npy", None), ("a.npz", None), ("a.csv", "value")):
        sets = {split: data.load(str(tmp_path / name), split, column=column, coded=Series(3)) for split in ("train", "validation", "test")}
        for split, (first, end) in {"train": (3, 16), "validation": (16, 18), "test": (18, 20)}.items():
            wanted = np.stack([values[t - 3 : t + 1] for t in range(first, end)])
            np.testing.assert_array_equal(sets[split].images, wanted)
            before, after = before_and_after(sets[split])
            np.testing.assert_array_equal(before, values[:first])
            np.testing.assert_array_equal(after, values[first:end])
        assert sets["train"].images.dtype == (np.float32 if name == "a.npz" else np.float64)
    whole = data.load(str(tmp_path / "a.npy"), "train", validation=0, coded=Series(3))
    np.testing.assert_array_equal(whole.images, [values[t - 3 : t + 1] for t in range(3, 18)])


def test_arrays_in_memory_and_the_rows_of_a_part():
    dataset = Dataset.from_arrays(series=[1, 2, 4, 8], context=2)
    np.testing.assert_array_equal(dataset.images, [[1, 2, 4], [2, 4, 8]])
    assert dataset.features == {"series": Series(2)} and dataset.features["series"].counts(dataset.images).tolist() == [1, 1]
    part = Dataset(dataset.source.select(np.array([1])), "part", "train")  # no part in order: what is before it is in its first row
    assert [values.tolist() for values in before_and_after(part)] == [[2, 4], [8]]
    with pytest.raises(DataError, match=r"arrays: wanted at least 5 values, for the 4 before each, got 4"):
        Dataset.from_arrays(series=[1, 2, 4, 8], context=4)
    with pytest.raises(DataError, match=r"arrays:series\[1\]: wanted a finite number, got nan"):
        Dataset.from_arrays(series=[1, np.nan])
    with pytest.raises(DataError, match=r"arrays:series: wanted real numbers, got dtype <U1"):
        Dataset.from_arrays(series=["1", "2"])
    with pytest.raises(DataError, match=r"arrays:series: wanted shape \[T\]"):
        Dataset.from_arrays(series=np.zeros((3, 1)))
    with pytest.raises(ConfigError, match="label, vector: wanted neither beside a series, got label"):
        Dataset.from_arrays(series=[1.0, 2.0], label=[0, 1])
    with pytest.raises(DataError, match="wanted values of a series with the 3 before each, as the model, got the 2 before each"):
        dataset.expect({"series": Series(3)})
    with pytest.raises(ConfigError, match="context: wanted 0 or more"):
        Dataset.from_arrays(series=[1.0, 2.0], context=-1)


def test_columns_by_name_and_by_number(tmp_path):
    named = written(tmp_path, '\ufeff"a", b\r\n1,2.5\r\n3,-4e1\r\n')  # as a spreadsheet writes it
    assert read_csv(named, "a").tolist() == [1, 3] and read_csv(named, "b").tolist() == [2.5, -40]
    bare = written(tmp_path, "1,2\n3,4\n")
    assert read_csv(bare, "2").tolist() == [2, 4]
    assert read_csv(written(tmp_path, "7\n8")).tolist() == [7, 8]
    with pytest.raises(ConfigError, match=r"data.column: wanted one of the columns of .*a.csv: a, b, got nothing"):
        read_csv(written(tmp_path, "a,b\n1,2\n"))
    with pytest.raises(ConfigError, match=r"wanted one of the columns of .*a.csv: price, time, got prise; did you mean price\?"):
        read_csv(written(tmp_path, "price,time\n1,2\n"), "prise")
    with pytest.raises(ConfigError, match="got a, the name of 2 columns"):
        read_csv(written(tmp_path, "a,a\n1,2\n"), "a")
    for name in ("sunspots", "digits"):
        with pytest.raises(ConfigError, match="data.column: wanted a .csv file, whose column it names, got .*; leave it out"):
            data.load(name, "train", column="a")


REFUSED = {
    "x\n1\ntwo\n": r"a.csv:3, column x: wanted a number, got 'two'",
    "x\n1\n1_000\n": r"a.csv:3, column x: wanted a number, got '1_000'",
    "x\n1\n2;3\n": r"a.csv:3, column x: wanted a number, got '2;3'; cells are separated by commas",
    "x,y\n1,2\n,3\n": r"a.csv:3, column x: wanted a number, got an empty cell",
    "x\n1\nnan\n": r"a.csv:3, column x: wanted a finite number, got nan",
    "x\n1\n\n2\n": r"a.csv:3: wanted 1 cell, got a blank line; remove it",
    "x,y\n1,2\n3\n": r"a.csv:3: wanted 2 cells, as line 1 has, got 1",
    "2020-01-01,1\n2020-01-02,2\n": r"a.csv:1: wanted the names of the columns, none of them a number, or numbers alone, got '2020-01",
    "x\n": r"a.csv: wanted numbers below the names of the columns, got the names alone",
    "": r"a.csv: wanted numbers, one line for each point of time, got an empty file",
    "x\n1\n": r"a.csv: wanted at least 3 values, to split them into train, validation and test, got 1",
    'x\n"1\n': r"a.csv:\d: wanted cells between commas, got unexpected end of data",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text, tmp_path):
    with pytest.raises((DataError, ConfigError), match=REFUSED[text]):
        data.load(str(written(tmp_path, text)), "train", column="x" if text[:1] == "x" else None)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x\n1\n\xff\n")
    with pytest.raises(DataError, match=r"a.csv:3: wanted UTF-8, got byte 0xff"):
        data.load(str(tmp_path / "a.csv"), "train")
    with pytest.raises(DataError, match=r"none.csv: wanted an existing file or folder, got nothing there"):
        data.load("none.csv", "train")
    np.savez(tmp_path / "a.npz", series=np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"a.npz:series: wanted shape \[T\]"):
        data.load(str(tmp_path / "a.npz"), "train")
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }".ljust(117) + b"\n"  # of objects, which would have to be unpickled
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match=r"b.npy: wanted a readable file"):
        data.load(str(tmp_path / "b.npy"), "train")
    for values, context, wanted in ((np.arange(10.0), 8, 11), (np.arange(2.0), 0, 3)):
        np.save(tmp_path / "c.npy", values)
        with pytest.raises(DataError, match=f"c.npy: wanted at least {wanted} values"):
            data.load(str(tmp_path / "c.npy"), "train", coded=Series(context))


def test_windows_of_the_wrong_shape_and_the_picture():
    with pytest.raises(DataError, match=r"s: wanted shape \[N, 3\], got \[2, 2\]"):
        Series(2).check(np.zeros((2, 2)), "s")
    assert Series(2).check(Series(2).random(4, np.random.default_rng(0)), "s").shape == (4, 3)
    for samples in (np.zeros((1, 1)), np.arange(6.0).reshape(2, 3)):
        assert Series().show(samples).startswith(b"\x89PNG")
