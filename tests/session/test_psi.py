"""`Session.psi`: own rows, in one order, by any of the protocols; nothing else leaves memory."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redislink import LoadFailed, PeerAborted, Session
from redislink.spu import intersection
from tests.session.conftest import Stage

ALICE = {"id": ["b", "c,d", "a", "é\n"], "x": np.array([1.5, 2.5, 3.5, 4.5]), "z": [1, 2, 3, 4]}
BOB = {"patient": ["zz", "é\n", "c,d", "b", ""], "y": [[0], [1], [2], [3], [4]]}


def _tables(session: Session) -> tuple[Any, Any]:
    return {"alice": (ALICE, "id"), "bob": (lambda: BOB, ["patient"])}.get(
        session.party, (None, "id")
    )


@pytest.mark.parametrize("protocol", intersection.PROTOCOLS)
def test_each_gets_its_own_rows_in_one_order(stage: Stage, protocol: str) -> None:
    def program(session: Session) -> Any:
        table, keys = _tables(session)
        return session.psi(table, keys, parties=["bob", "alice"], protocol=protocol)

    found = stage.play(program)
    assert found["carol"] is None
    assert found["alice"]["id"] == found["bob"]["patient"] == ["b", "c,d", "é\n"]
    assert found["alice"]["x"].tolist() == [1.5, 2.5, 4.5]
    assert found["alice"]["z"] == [1, 2, 4]
    assert found["bob"]["y"] == [[3], [2], [1]]


def test_several_keys_some_columns_and_files(memory: Stage, tmp_path: Path) -> None:
    path = tmp_path / "carol.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["k", "n", "v"], ["b", "2", "x"], ["a", "1", "y"]])

    def program(session: Session) -> Any:
        table: Any = path
        if session.party == "alice":
            table = {"n": np.array([1, 1, 2]), "k": np.array(["a", "b", "b"]), "w": [7, 8, 9]}
        return session.psi(table, ["k", "n"], ["n"], parties=["alice", "carol"])

    found = memory.play(program)
    assert found["alice"]["n"].tolist() == [1, 2]
    assert found["carol"] == {"n": ["1", "2"]}
    assert found["bob"] is None


def test_nobody_in_common_and_no_rows_at_all(memory: Stage) -> None:
    def program(session: Session) -> Any:
        tables = {"alice": {"id": ["a"]}, "bob": {"id": ["b", "c"]}}
        return session.psi(tables.get(session.party), "id", parties=["alice", "bob"])

    found = memory.play(program)
    assert found["alice"] == found["bob"] == {"id": []}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"id": ["a", "b", "a"]}, "rows 1 and 3 have the same id"),
        ({"x": [1]}, "has no column 'id': it has x"),
        ({"id": [1.5]}, "holds float: keys are text or integers"),
        ({"id": ["a"], "x": []}, "columns of the table differ in length"),
        (5, "a table is a dict of columns, a DataFrame"),
    ],
)
def test_a_table_that_is_not_right(memory: Stage, table: Any, words: str) -> None:
    def program(session: Session) -> Any:
        own = table if session.party == "alice" else {"id": ["a"]}
        return session.psi(own, "id", parties=["alice", "bob"])

    found = memory.errors(program)
    assert isinstance(found["alice"], ValueError)
    assert words in str(found["alice"])
    assert isinstance(found["bob"], LoadFailed)
    assert "alice could not load its data for psi(RR22" in str(found["bob"])
    assert isinstance(found["carol"], PeerAborted)
