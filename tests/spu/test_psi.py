"""`Session.psi`: own rows, in one order, by any of the protocols; nothing else leaves memory."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest

from redislink import (
    Communicator,
    EndpointClosed,
    IntersectionFailed,
    LoadFailed,
    PeerAborted,
    Session,
    TableError,
    UsageError,
)
from redislink.broker import EmbeddedBroker
from redislink.communicator import ThreadCommunicator
from redislink.spu import intersection, psi_child
from redislink.spu.psi_relay import LOGGER, THREADS, PsiRelay
from tests.session.conftest import Stage

ALICE = {"id": ["b", "c,d", "a", "é\n"], "x": np.array([1.5, 2.5, 3.5, 4.5]), "z": [1, 2, 3, 4]}
BOB = {"patient": ["zz", "é\n", "c,d", "b", "-"], "y": [[0], [1], [2], [3], [4]]}


@pytest.fixture(autouse=True)
def _own_temporary_directory(
    valkey: EmbeddedBroker,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # After the server has begun in its own.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))


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
        ({"id": [1.5]}, "holds float: keys are text or integers: convert the column"),
        ({}, "the table has no column 'id': it has none at all"),
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


EMPTY = "(after the header) holds an empty key"


@pytest.mark.parametrize(
    ("table", "keys", "words"),
    [
        ({"id": ["a", ""]}, "id", f"alice: psi: column 'id', row 2 {EMPTY}, or a word"),
        ({"id": [" ", "", "a"]}, "id", f"row 1 {EMPTY}, or a word for a missing one"),
        ({"id": ["a", " nan", "NULL"]}, "id", "such as nan (2 rows do)"),
        ({"id": ["a", "b"], "n": ["1", ""]}, ["id", "n"], f"column 'n', row 2 {EMPTY}"),
        ("id,x\na,1\n,2\n", "id", f"own.csv: column 'id', row 2 {EMPTY}"),
        ("id,x\na,1\nb,2\na,3\n", "id", "own.csv: rows 1 and 3 have the same id: keep one"),
    ],
)
def test_rows_without_a_key_match_nobody(
    memory: Stage, tmp_path: Path, table: Any, keys: Any, words: str
) -> None:
    if isinstance(table, str):
        path = tmp_path / "own.csv"
        path.write_text(table)
        table = path

    def program(session: Session) -> Any:
        own = table if session.party == "alice" else {"id": ["", "a"], "n": ["", "1"]}
        return session.psi(own, keys, parties=["alice", "bob"])

    found = memory.errors(program)
    assert isinstance(found["alice"], TableError)
    assert words in str(found["alice"])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["p1", "p2", "31"], []),
        (["P1", "p2 ", " 31"], ["2 begin or end with a space", "some are in upper case and some"]),
        (["mu\u0308ller", "m\u00fcller2"], ["1 are not in Unicode's form NFC"]),
        (["Ab", "aB", "7"], []),
    ],
)
def test_keys_that_another_may_write_differently_are_told(
    memory: Stage, caplog: pytest.LogCaptureFixture, keys: list[str], said: list[str]
) -> None:
    def program(session: Session) -> Any:
        own = keys if session.party == "alice" else ["31"]
        return session.psi({"id": own}, "id", parties=["alice", "bob"])

    memory.play(program)
    told = [r for r in caplog.records if "rows match only if" in r.msg]
    assert len(told) == bool(said)
    for words in said:
        assert words in told[0].getMessage()
    for record in told:
        assert record.party == "alice"  # type: ignore[attr-defined]
        assert not any(key in record.getMessage() for key in keys), "no value is quoted"


@pytest.mark.parametrize("protocol", intersection.PROTOCOLS)
def test_no_row_in_common_is_told(
    memory: Stage, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    def program(session: Session) -> Any:
        own = {"id": [f"{session.party}{number}" for number in range(3)], "x": np.arange(3)}
        return session.psi(own, "id", parties=["alice", "bob"], protocol=protocol)

    found = memory.play(program)
    assert found["alice"]["id"] == []
    assert found["bob"]["x"].shape == (0,)
    told = [(r.party, r.getMessage()) for r in caplog.records if "no row in common" in r.msg]  # type: ignore[attr-defined]
    assert sorted(party for party, _ in told) == ["alice", "bob"]
    assert all("compare how both write their keys" in text for _, text in told)


def test_rows_of_a_frame_that_was_shuffled(memory: Stage) -> None:
    frame = pd.DataFrame({"id": [9, 1, 2, 7], "x": ["nine", "one", "two", "seven"]})
    table = pa.table({"id": ["2", "5", "9", "7"], "y": [2, 5, 9, 7]})

    def program(session: Session) -> Any:
        shuffled = frame.sort_values("x").set_axis([3, 0, 0, 1])  # a label twice
        tables = {"alice": dict(shuffled), "bob": table}
        return session.psi(tables.get(session.party), "id", parties=["alice", "bob"])

    found = memory.play(program)
    assert found["alice"]["id"].tolist() == [2, 7, 9]
    assert found["alice"]["x"].tolist() == ["two", "seven", "nine"]
    assert found["bob"]["y"].tolist() == [2, 7, 9]


@pytest.mark.parametrize("empty", ["alice", "bob", "both"])
def test_a_table_without_rows_has_nothing_in_common(
    memory: Stage, tmp_path: Path, empty: str
) -> None:
    (tmp_path / "header.csv").write_text("id,x\n")

    def program(session: Session) -> Any:
        has_rows = empty not in (session.party, "both")
        table = {"id": ["1", "2"], "x": [1, 2]} if has_rows else tmp_path / "header.csv"
        return session.psi(table, "id", parties=["alice", "bob"])

    found = memory.play(program)
    assert found["alice"] == found["bob"] == {"id": [], "x": []}


@pytest.mark.parametrize(
    ("keys", "columns", "words"),
    [
        ([], None, "psi needs a column to match rows by"),
        (None, None, "psi takes keys= as the name of a column"),
        (5, None, "psi takes keys="),
        (["id", "id"], None, "names without duplicates"),
        ([["id"]], None, "psi takes keys="),
        ("id", 5, "psi takes columns="),
    ],
)
def test_names_that_cannot_be_meant(memory: Stage, keys: Any, columns: Any, words: str) -> None:
    def program(session: Session) -> Any:
        return session.psi({"id": ["a"]}, keys, columns, parties=["alice", "bob"])

    for error in memory.errors(program).values():
        assert isinstance(error, UsageError)
        assert words in str(error)


def test_what_libpsi_gets_and_says_names_nobody(
    memory: Stage,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("REDISLINK_BROKER_URL", "redis://:patient-password@localhost")
    seen: list[bytes] = []
    write_frame = psi_child.write_frame

    def write(sock: Any, kind: Any, number: int = 0, key: bytes = b"", body: Any = b"") -> None:
        if kind is psi_child.PsiFrameKind.START:
            seen.append(bytes(body))
        write_frame(sock, kind, number, key, body)

    def serve(self: PsiRelay, child: Any, pool: Any) -> None:
        seen.append(Path(f"/proc/{child.pid}/environ").read_bytes())
        _serve(self, child, pool)

    _serve = PsiRelay._serve
    monkeypatch.setattr(PsiRelay, "_serve", serve)
    monkeypatch.setattr("redislink.spu.psi_relay.write_frame", write)
    caplog.set_level("DEBUG", LOGGER)

    def program(session: Session) -> Any:
        table = {"id": ["patient-1", f"patient-of-{session.party}"]}
        for _ in range(2):
            assert session.psi(table, "id", parties=["alice", "bob"]) in (
                *({"id": ["patient-1"]}, None),
            )

    memory.play(program)
    assert len(seen) == 8, "digests and environments"
    assert not any(b"patient" in each for each in seen)
    digests = [each for each in seen if len(each) == 2 * psi_child.DIGEST_BYTES]
    shared = {each[: psi_child.DIGEST_BYTES] for each in digests}
    assert len(digests) == 4
    assert len(shared) == 2, "the same at both, another in each call"
    assert capfd.readouterr() == ("", "")
    assert {record.name for record in caplog.records} >= {LOGGER}
    assert "Rr22Psi" in caplog.text
    assert "patient" not in caplog.text


# -- once libpsi runs ------------------------------------------------------------------------


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once bob's libpsi waits for a message."""
    event = threading.Event()
    recv = PsiRelay._recv

    def tell(self: PsiRelay, *arguments: Any) -> None:
        if self._me == "bob":
            event.set()
        recv(self, *arguments)

    monkeypatch.setattr(PsiRelay, "_recv", tell)
    return event


@pytest.mark.parametrize("protocol", intersection.PROTOCOLS)
def test_an_error_of_one_party_ends_the_other_too(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, inside: threading.Event, protocol: str
) -> None:
    intersect = intersection.intersect

    def fail(communicator: Communicator, *arguments: Any) -> list[int]:
        if communicator.party != "alice":
            return intersect(communicator, *arguments)
        assert inside.wait(20)
        raise OSError("no space left on device: patient-1")

    monkeypatch.setattr(intersection, "intersect", fail)

    def program(session: Session) -> Any:
        # Nobody leaves a block by the exception: it is psi that tells the others.
        try:
            return session.psi({"id": ["1"]}, "id", parties=["alice", "bob"], protocol=protocol)
        except OSError as error:
            assert inside.is_set()
            return error
        finally:
            if session.party == "carol":
                session.communicator.recv("alice", "never")

    found = stage.outcomes(program)
    assert isinstance(found["alice"], OSError)
    for party in ("bob", "carol"):
        assert isinstance(found[party], PeerAborted)
        assert "alice aborted the session (OSError in its program)" in str(found[party])
    _nothing_is_left()


def test_an_abort_by_the_own_program(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, inside: threading.Event
) -> None:
    intersect = intersection.intersect

    def wait(communicator: Communicator, *arguments: Any) -> list[int]:
        if communicator.party == "alice":
            communicator.recv("bob", "never")
        return intersect(communicator, *arguments)

    monkeypatch.setattr(intersection, "intersect", wait)

    def program(session: Session) -> Any:
        if session.party == "bob":
            threading.Thread(target=_abort, args=(session, inside)).start()
        return session.psi({"id": ["1"]}, "id", parties=["alice", "bob"])

    found = stage.errors(program)
    assert isinstance(found["bob"], EndpointClosed)
    assert "aborted here: stopped by its operator" in str(found["bob"])
    assert isinstance(found["alice"], PeerAborted)
    _nothing_is_left()


def _abort(session: Session, inside: threading.Event) -> None:
    assert inside.wait(20)
    session.abort("stopped by its operator")


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "ended by SIGKILL"), (signal.SIGABRT, "ended by SIGABRT")],
)
def test_the_death_of_libpsi_is_an_error(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    serve = PsiRelay._serve

    def kill(self: PsiRelay, child: subprocess.Popen[bytes], pool: Any) -> None:
        if self._me == "bob":
            child.send_signal(number)
        serve(self, child, pool)

    monkeypatch.setattr(PsiRelay, "_serve", kill)

    def program(session: Session) -> Any:
        if session.party == "carol":
            session.communicator.recv("alice", "never")
        return session.psi({"id": ["1"]}, "id", parties=["alice", "bob"])

    found = stage.errors(program)
    assert isinstance(found["bob"], IntersectionFailed)
    assert words in str(found["bob"])
    for party in ("alice", "carol"):
        assert isinstance(found[party], PeerAborted)
        assert "bob aborted the session (its private set intersection failed)" in str(found[party])
    _nothing_is_left()


def test_an_error_of_libpsi_is_said(memory: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    # libpsi does not take a table without rows.
    monkeypatch.setattr(intersection, "digests", lambda rows, salt: b"")

    def program(session: Session) -> Any:
        return session.psi({"id": ["1", "2"]}, "id", parties=["alice", "bob"])

    found = memory.outcomes(program)
    failed = [error for error in found.values() if isinstance(error, IntersectionFailed)]
    assert failed
    assert "failed in its own process (RuntimeError: what: [Enforce fail" in str(failed[0])
    _nothing_is_left()


def test_a_process_that_does_not_begin(
    memory: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program_of_child = tmp_path / "child.py"
    program_of_child.write_text("raise SystemExit('out of luck')")
    monkeypatch.setattr(psi_child, "__file__", str(program_of_child))
    found = memory.outcomes(lambda s: s.psi({"id": ["1"]}, "id", parties=["alice", "bob"]))
    failed = [error for error in found.values() if isinstance(error, IntersectionFailed)]
    assert "it ended with code 1; its last line: out of luck" in str(failed[0])


def test_no_place_for_temporary_files(
    memory: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    found = memory.outcomes(lambda s: s.psi({"id": ["1"]}, "id", parties=["alice", "bob"]))
    failed = [error for error in found.values() if isinstance(error, IntersectionFailed)]
    assert failed
    assert f"which could not be started: [Errno 20] Not a directory: '{tmp_path}" in str(failed[0])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_process_forked_meanwhile_does_not_keep_libpsi_alive() -> None:
    alice, _ = ThreadCommunicator.make(("alice", "bob"))
    relay = PsiRelay(alice, "bob")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        relay._line.close()  # as if this process had been killed
        relay._childs_end.settimeout(10)
        assert relay._childs_end.recv(1) == b""  # on which libpsi's process ends
    finally:
        os.close(writing)
        os.close(reading)
        relay._childs_end.close()
        os.waitpid(child, 0)


def _nothing_is_left() -> None:
    """No process, no thread and no directory."""
    children = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [line for line in children if "psi_child" in line]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]
    assert not list(Path(tempfile.gettempdir()).iterdir())
