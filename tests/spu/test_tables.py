"""Tables of every kind become plain columns by position; CSV files as spreadsheets write them."""

from __future__ import annotations

import csv
import os
from collections import deque
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from redislink.spu.tables import read_table, select_columns, take_rows

IDS: Final = ["9", "1", "2", "7"]
NUMBERS: Final = [9, 1, 2, 7]
# Shuffled, with a label twice, and none at its place.
FRAME: Final = pd.DataFrame({"id": IDS, "n": NUMBERS}, index=[3, 0, 0, 1])


class _Labelled(list[Any]):
    """Iterates by position; ``[]`` takes labels: what was mixed up."""

    def __getitem__(self, label: Any) -> Any:
        return list.__getitem__(self, {3: 0, 0: 1, 1: 3}[label])


class _PolarsLike:
    """The methods of polars that are used; polars itself is no dependency of the tests."""

    columns: Final = ("id", "n")

    def __init__(self, values: list[Any] | None = None) -> None:
        self._values = values

    def get_column(self, name: str) -> _PolarsLike:
        return _PolarsLike(IDS if name == "id" else NUMBERS)

    def null_count(self) -> int:
        assert self._values is not None
        return self._values.count(None)

    def to_numpy(self) -> np.ndarray[Any, Any]:
        return np.array(self._values)

    def to_list(self) -> list[Any]:
        return list(self._values or ())


KINDS: Final[dict[str, Any]] = {
    "lists": {"id": IDS, "n": NUMBERS},
    "tuples": {"id": tuple(IDS), "n": deque(NUMBERS)},
    "arrays": {"id": np.array(IDS), "n": np.array(NUMBERS)},
    "objects": {"id": np.array(IDS, object), "n": jnp.array(NUMBERS)},
    "labelled": {"id": _Labelled(IDS), "n": _Labelled(NUMBERS)},
    "series": {"id": FRAME["id"], "n": FRAME["n"]},
    "series of one index only": {"id": FRAME["id"], "n": NUMBERS},
    "index": {"id": pd.Index(IDS), "n": FRAME["n"].array},
    "frame": FRAME,
    "categories": FRAME.astype({"id": "category", "n": "Int64"}),
    "arrow frame": FRAME.convert_dtypes(dtype_backend="pyarrow"),
    "frame's lists": FRAME.to_dict("list"),
    "records": FRAME.to_records(index=False),
    "table": pa.Table.from_pandas(FRAME, preserve_index=False),
    "batch": pa.RecordBatch.from_pandas(FRAME, preserve_index=False),
    "arrow arrays": {"id": pa.array(IDS).dictionary_encode(), "n": pa.chunked_array([NUMBERS])},
    "polars": _PolarsLike(),
    "function": lambda: FRAME,
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_counted_by_position(kind: str) -> None:
    table = read_table(KINDS[kind])
    assert list(table) == ["id", "n"]
    assert list(table["id"]) == IDS
    assert [int(n) for n in table["n"]] == NUMBERS
    taken = take_rows(table, [2, 0])
    assert list(taken["id"]) == ["2", "9"]
    assert [int(n) for n in taken["n"]] == [2, 9]
    for name, column in taken.items():
        assert type(column) is type(table[name]), "a list stays a list, an array an array"


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [1], []])
def test_a_frame_that_was_sorted_filtered_or_sampled(order: list[int]) -> None:
    frame = FRAME.iloc[order]
    for source in (frame, dict(frame)):
        table = read_table(source)
        assert list(table["id"]) == [IDS[place] for place in order]
        assert list(table["n"]) == [NUMBERS[place] for place in order]


def test_what_is_missing_does_not_turn_integers_into_floats() -> None:
    large = 2**53 + 1
    values = [large, None]
    for column in (pa.array(values), pd.Series(values, dtype="Int64")):
        plain = read_table({"n": column})["n"]
        assert plain[0] == large
        assert not isinstance(plain[0], float)
        assert plain[1] is None or plain[1] is pd.NA


def test_a_masked_array_keeps_its_mask() -> None:
    taken = take_rows(read_table({"x": np.ma.masked_array([1, 2, 3], [0, 1, 0])}), [1, 2])
    assert taken["x"].tolist() == [None, 3]


@pytest.mark.parametrize(
    "column", ["abc", b"abc", {0: "a"}, {"a"}, iter("a"), 5, None, np.float64(1), np.array(1)]
)
def test_a_column_without_positions_is_refused(column: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'x' is a .*: give a list, an array or a Series"):
        read_table({"x": column})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (FRAME.to_dict(), "column 'id' is a dict"),
        ({"a": [1], "b": [1, 2]}, "differ in length: 'a' has 1, 'b' has 2"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "'a': rename one"),
        (pa.table([[1], [2]], names=["a", "a"]), "'a': rename one"),
        ([1, 2], "a table is a dict of columns.*, not list"),
        (FRAME["id"], "a table is a dict of columns.*, not Series"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_table(source: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_table(source)


def test_columns_are_selected_by_name() -> None:
    table = read_table({"a": [1], 2: [3]})
    assert select_columns(table, None) == table
    assert select_columns(table, [2]) == {2: [3]}
    with pytest.raises(ValueError, match="no column 'c': it has a, 2"):
        select_columns(table, ["c"])


# -- CSV -------------------------------------------------------------------------------------

PLAIN: Final = {"id": ["1", "02"], "name": ["é, ö", ""]}


@pytest.mark.parametrize(
    "data",
    [
        'id,name\n1,"é, ö"\n02,\n'.encode(),
        '\ufeffid,name\r\n1,"é, ö"\r\n02,\r\n'.encode(),
        '\n\nid,name\n\n1,"é, ö"\n\n,\n02,\n,\n,\n\n'.encode(),
        'id,name\r1,"é, ö"\r02,'.encode(),
        '"id","name"\n"1","é, ö"\n"02",""'.encode(),
    ],
)
def test_a_csv_file_as_spreadsheets_write_it(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    assert read_table(path) == read_table(str(path)) == read_table(lambda: path) == PLAIN


def test_a_header_alone_and_values_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,x\n")
    assert read_table(path) == {"id": [], "x": []}
    long = "7" * (csv.field_size_limit() - 1)
    path.write_text(f"id\n{long}\n")
    assert read_table(path) == {"id": [long]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "t.csv: is empty: its first line must name the columns"),
        (b"\n\n", "t.csv: is empty"),
        (b"id,x\n1\n", r"line 2: not as many fields as the header \(1, not 2\)"),
        (b"id,id\n1,2\n", "the header names 'id' twice"),
        (b"id,x,,\n1,2,,\n", "several columns have no name"),
        (b"id;x\n1;2\n", "has semicolons between its fields: save it with commas"),
        (b"id\tx\n1\t2\n", "has tabs between its fields"),
        ("id,x\n1,2\n2,é\n".encode("latin-1"), "t.csv, line 3: is not UTF-8.*iconv -f WINDOWS-125"),
        ("id,x\n1,é\n".encode("utf-16"), "t.csv: is in UTF-16.*iconv -f UTF-16 -t UTF-8 't.csv'"),
        ("id,x\n1,é\n".encode("utf-16-be"), r"t.csv.*iconv -f"),
        ("id,x\n1,2\n".encode("utf-16-le"), "t.csv, line 1: holds zero bytes.*UTF-16LE"),
        (b'id,x\n1,"2\n3,4\n', "line 3: .*quotation mark that is not closed"),
        (b"id,x\n1," + b"9" * 200_000 + b"\n", "line 2: field larger than field limit"),
    ],
)
def test_a_file_that_is_not_right_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        read_table(path)
    assert str(tmp_path) in str(caught.value)


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        read_table(tmp_path / "missing.csv")
    os.mkfifo(tmp_path / "fifo.csv")
    for path, words in ((tmp_path, "is a directory"), (tmp_path / "fifo.csv", "is a FIFO")):
        with pytest.raises(OSError, match=words):
            read_table(path)
