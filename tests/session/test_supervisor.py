"""What a run tells its supervisor: steps, ends, and never so much that it would wait."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redislink import PeerLost, ThreadCommunicator
from redislink.session import steps as steps_module
from redislink.session import supervisor
from redislink.session.steps import Failure, Steps
from redislink.session.supervisor import MOST_BYTES, Asked, Supervisor
from tests.support.children import in_child
from tests.support.waiting import wait_until

_socketpair = socket.socketpair


class Line:
    """The supervisor's end of the line."""

    def __init__(self, ended: Path) -> None:
        self.socket, theirs = supervisor.make_line()
        self.socket.settimeout(5)
        self.run = Supervisor(theirs.detach(), ended)

    def heard(self) -> dict[str, Any]:
        message = self.socket.recv(2 * MOST_BYTES)
        assert len(message) <= MOST_BYTES
        told = json.loads(message)
        assert isinstance(told, dict)
        return told


def _without_packets(family: int, kind: int) -> tuple[socket.socket, socket.socket]:
    """macOS's `socket.socketpair`."""
    if kind == socket.SOCK_SEQPACKET:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")
    return _socketpair(family, kind)


@pytest.fixture(params=["Linux", "macOS"])
def line(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Line]:
    if request.param == "macOS":
        monkeypatch.setattr(socket, "socketpair", _without_packets)
    made = Line(tmp_path / "ended.json")
    monkeypatch.setattr(supervisor, "_PAUSE", 0.0)
    yield made
    made.socket.close()
    made.run._socket.close()


def test_a_step_is_told_when_it_begins_and_for_whom_it_waits(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "_PATIENCE", 0.05)
    monkeypatch.setattr(steps_module, "_TICK", 0.02)
    communicators = ThreadCommunicator.make(("alice", "bob"), recv_timeout=5)
    alice, bob = (Steps(each, Failure(each.abort)) for each in communicators)
    with bob.step("before", ("alice", "bob")):
        pass
    monkeypatch.setattr(supervisor, "here", line.run)
    with alice.step("before", ("alice", "bob")):
        assert line.heard() == {
            "kind": "step", "chain": "", "number": 1, "text": "before", "seconds": 0.0,
            "waits_for": [],
        }  # fmt: skip

    def wait() -> None:
        with alice.step("call(x)", ("alice", "bob")):
            alice.recv("bob")

    thread = threading.Thread(target=wait)
    thread.start()
    told = wait_until(lambda: told if (told := line.heard())["waits_for"] else None)
    assert told is not None
    assert (told["number"], told["text"]) == (2, "call(x)")
    assert told["waits_for"][0].startswith("bob (")
    monkeypatch.setattr(supervisor, "here", None)
    with bob.step("call(x)", ("alice", "bob")):
        bob.send("alice", None)
    thread.join()
    for chain in (alice, bob):
        chain.leave()


def test_a_supervisor_that_does_not_read_holds_nothing_up(line: Line) -> None:
    while line.run.tell_step("", 1, "x" * 1000):
        pass
    line.run.tell_missing(["bob"], 3.0)
    assert line.heard()["text"] == "x" * 1000, "whole messages, and no parts"
    line.socket.close()
    assert not line.run.tell_step("", 2, "nobody reads this")


def test_a_long_message_is_cut(line: Line) -> None:
    line.run.tell_missing(["\N{SNOWMAN}" * 200] * 64, 3.0)
    told = line.heard()
    assert told["kind"] == "joining"
    assert len(told["waits_for"]) == 5


def test_an_end_is_told_and_written(line: Line, tmp_path: Path) -> None:
    line.run.tell_end(4, PeerLost("bob", 31.0))
    told = line.heard()
    assert told["peer"] == "bob"
    assert told["retryable"]
    assert told["told"] == told["why"] == str(PeerLost("bob", 31.0))
    assert json.loads((tmp_path / "ended.json").read_text()) == told
    line.run.tell_end(1, ValueError("a patient's name"))
    assert line.heard() | {"kind": ""} == {
        "kind": "", "code": 1, "why": "ValueError", "told": "ValueError in its program",
        "peer": None, "retryable": False,
    }  # fmt: skip


def test_a_child_of_the_program_says_nothing(line: Line, tmp_path: Path) -> None:
    assert in_child(lambda: line.run.tell_end(0, None) or line.run.tell_step("", 1, "x")) is False
    assert not (tmp_path / "ended.json").exists()


def test_whoever_ends_a_run_says_why(line: Line) -> None:
    assert line.run.asked_to_end() is None
    line.socket.send(b'{"end": "cancelled by\\ncarol", "retryable": false}')
    assert line.run.asked_to_end() == Asked("cancelled by carol", retryable=False)
    for nonsense in (b"x", b"[]", b"{}", b"3"):
        line.socket.send(nonsense)
        assert line.run.asked_to_end() is None
