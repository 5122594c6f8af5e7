"""What a journal keeps of a step of a device, and gives back."""

from __future__ import annotations

import datetime
from collections import namedtuple
from typing import Any

import numpy as np
import pandas as pd
import pytest

from redislink.errors import JournalError, LoadFailed
from redislink.session.journal import Recorded
from redislink.session.records import Gave, StepRecord
from redislink.spu import recall
from redislink.values import decode_value_untrusted, encode_value

TABLE: dict[Any, Any] = {
    "numbers": np.array([1.5, 2.5]),
    "text": np.array(["a", "längere"]),
    "bytes": np.array([b"a", b"bcd"]),
    "days": np.array(["2024-01-01", "NaT"], "datetime64[ns]"),
    "complex": np.array([1j, 2], np.complex64),
    "big-endian": np.array([1, 2], ">i4"),
    "objects": np.array(["a", None], object),
    "lists": np.array([[1], [2, "x"]], object),
    "rows": np.arange(4).reshape(2, 2)[:, ::-1],
    3: ["a", None],
    ("two", "levels"): [[0], [1.5]],
}


class _Journal:
    def __init__(self, gave: Gave) -> None:
        self.blobs = [b"".join(bytes(piece) for piece in pieces) for pieces in gave.blobs]

    def read(self, blob: int) -> bytes:
        return self.blobs[blob]


def _recorded(gave: Gave) -> Recorded:
    """The record as another process reads it."""
    value = decode_value_untrusted(encode_value(list(gave.value)))
    record = StepRecord("", 3, b"", "psi()", "p.py:1", b"", (), (), 0, 0.0, value)
    return Recorded(_Journal(gave), record, tuple(range(len(gave.blobs))))  # type: ignore[arg-type]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            type(other) is np.ndarray
            and one.dtype == other.dtype
            and one.shape == other.shape
            and all(map(_same, one.ravel().tolist(), other.ravel().tolist()))
            and other.flags.writeable
        )
    return type(one) is type(other) and (one == other or repr(one) == repr(other))


def test_every_kind_of_column_comes_back_as_it_was() -> None:
    recall.check_kept(TABLE)
    again = recall.table_again(_recorded(recall.table_given(TABLE)))
    assert list(again) == list(TABLE)
    for name, column in TABLE.items():
        assert _same(column, again[name]), name


def test_no_rows_and_no_columns_come_back() -> None:
    for table in ({}, {name: column[:0] for name, column in TABLE.items()}):
        recall.check_kept(table)
        again = recall.table_again(_recorded(recall.table_given(table)))
        assert {name: len(column) for name, column in again.items()} == dict.fromkeys(table, 0)


@pytest.mark.parametrize(
    "column",
    [
        [datetime.date(2024, 1, 1)],
        np.array([pd.Timestamp(0)], object),
        np.ma.masked_array([1], [True]),
        np.array([(1, 2.0)], "i4,f8"),
        ["half \ud800"],
        np.array(["half \ud800"], object),
        [1 << 600_000],
    ],
    ids=lambda column: type(column).__name__,
)
def test_a_column_that_cannot_be_kept_is_refused_before_anything_runs(column: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'x' holds .*, which a journal cannot keep"):
        recall.check_kept({"x": column})


class _Odd(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(2, "no file"), FileNotFoundError),
        (KeyError("name"), KeyError),
        (ValueError("wrong"), ValueError),
        (recall.JournalError("ours"), JournalError),
        (ValueError("half \ud800"), ValueError),
        (ValueError(1 << 600_000), ValueError),
        (_Odd("a", "b"), LoadFailed),
        (type("Local", (Exception,), {"__module__": "gone"})("a"), LoadFailed),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_the_error_of_a_load_comes_again(error: Exception, kind: type) -> None:
    again = recall.error_again(_recorded(recall.error_given(error)), "alice")
    assert type(again) is kind
    if kind is not LoadFailed:
        assert str(again) == recall._text_of(error)


def test_what_is_no_exception_is_not_made() -> None:
    made = namedtuple("made", "text")
    globals()["made"] = made
    for name in ("made", "_recorded", "np.ndarray"):
        gave = Gave(["raised", __name__, name, ["text"]])
        assert type(recall.error_again(_recorded(gave), "alice")) is LoadFailed


def test_a_record_that_makes_no_sense_is_damage() -> None:
    for gave in (Gave(["nothing"]), Gave(["handles", None, [[[2], "int32"]], [1, 2]])):
        with pytest.raises(JournalError, match="step 3, psi\\(\\), makes no sense"):
            recall.handles_again(_recorded(gave))
        with pytest.raises(JournalError, match="makes no sense"):
            recall.values_again(_recorded(gave), [])
        with pytest.raises(JournalError, match="makes no sense"):
            recall.table_again(_recorded(gave))
