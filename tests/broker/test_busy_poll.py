"""Polling before a receive sleeps: when it is done, when it is left off, what it sees."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redislink.broker import EmbeddedBroker
from redislink.broker.busy_poll import BusyPoll, has_spare_processors
from tests.conftest import in_thread, join, make_cluster, quick_settings, run_parties
from tests.support.line import Line

SECONDS = 0.25


class Asked:
    """A connection that counts how often it is polled, and says what it is told to."""

    def __init__(self, answer: Callable[[], bool]) -> None:
        self.answer = answer
        self.polls = 0

    def poll_busily(self, seconds: float) -> bool:
        assert seconds == SECONDS
        self.polls += 1
        return self.answer()


def polls(busy: BusyPoll, asked: Any, waits: int) -> int:
    """How many of so many waits poll."""
    before = asked.polls
    for _ in range(waits):
        busy.wait(asked)
    return int(asked.polls - before)


def test_it_polls_each_time_while_something_comes() -> None:
    assert polls(BusyPoll(SECONDS), Asked(lambda: True), 100) == 100


def test_it_is_left_off_while_nothing_comes_and_tried_again_now_and_then() -> None:
    busy, comes = BusyPoll(SECONDS), False
    asked = Asked(lambda: comes)
    for without in (1, 3, 7, 15, 31, 63, 127, 255, 255, 255):
        assert polls(busy, asked, 1) == 1
        assert polls(busy, asked, without) == 0
    comes = True
    assert polls(busy, asked, 10) == 10
    comes = False
    assert polls(busy, asked, 2) == 1, "after one in vain, one goes without"


def test_one_thread_polls_at_a_time() -> None:
    polling, go_on = threading.Event(), threading.Event()
    busy, other = BusyPoll(SECONDS), BusyPoll(SECONDS)
    thread, _ = in_thread(
        lambda: busy.wait(Asked(lambda: bool(polling.set() or go_on.wait(10))))  # type: ignore[arg-type]
    )
    assert polling.wait(10)
    asked = Asked(lambda: True)
    assert polls(other, asked, 3) == 0
    go_on.set()
    thread.join(10)
    assert polls(other, asked, 3) == 3, "not to have polled is not in vain"


def test_an_error_leaves_the_next_one_free_to_poll() -> None:
    def fail() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BusyPoll(SECONDS).wait(Asked(fail))  # type: ignore[arg-type]
    assert polls(BusyPoll(SECONDS), Asked(lambda: True), 1) == 1


@pytest.mark.parametrize(
    ("files", "processors", "spare"),
    [
        ({}, 1, False),
        ({}, 2, True),
        ({"cpu.max": "max 100000\n"}, 2, True),
        ({"cpu.max": "150000 100000\n"}, 8, False),
        ({"cpu.max": "200000 100000\n"}, 8, True),
        ({"cpu.max": "200000 100000\n"}, 1, False),
        ({"cpu.max": "nonsense\n"}, 2, True),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2, True),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2, False),
    ],
)
def test_what_a_process_may_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    processors: int,
    spare: bool,
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    assert has_spare_processors(tmp_path) is spare


@pytest.fixture
def line() -> Line:
    return Line()


def test_it_sees_what_is_here_what_comes_and_the_end(line: Line) -> None:
    connection = line.open_answering()
    assert not connection.poll_busily(0.001)
    line.server.sendall(b":1\r\n:2\r\n")
    assert connection.poll_busily(60)
    assert connection.read(5) == 1
    assert connection.poll_busily(0), "the second reply was read with the first"
    assert connection.read(5) == 2
    thread, outcome = in_thread(lambda: connection.poll_busily(60))
    line.server.sendall(b":3\r\n")
    thread.join(10)
    assert outcome == [True]
    assert connection.read(5) == 3
    line.server.shutdown(1)
    assert connection.poll_busily(60)
    connection.close()
    assert connection.poll_busily(60), "whoever reads is told"


@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_an_endpoint_near_its_broker_polls_if_it_may(
    valkey: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr("redislink.transport.core.NEAR", 60.0)
    monkeypatch.setattr("redislink.transport.core.has_spare_processors", lambda: True)
    polled: list[bool] = []
    wait = BusyPoll.wait
    monkeypatch.setattr(
        BusyPoll, "wait", lambda self, connection: polled.append(True) or wait(self, connection)
    )
    alice, bob = join(make_cluster(valkey.url, 2), busy_poll=seconds)
    for number in range(10):
        alice.send("bob", f"t{number}", b"to bob")
        assert bob.recv("alice", f"t{number}") == b"to bob"
        bob.send("alice", f"t{number}", b"to alice")
        assert alice.recv("bob", f"t{number}") == b"to alice"
    assert bool(polled) is bool(seconds)
    run_parties(alice.close, bob.close)


@pytest.mark.parametrize("reason", ["far", "one processor"])
def test_others_do_not(
    valkey: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr("redislink.transport.core.NEAR", 0.0 if reason == "far" else 60.0)
    monkeypatch.setattr("redislink.transport.core.has_spare_processors", lambda: reason == "far")
    alice, bob = join(make_cluster(valkey.url, 2))
    assert quick_settings().busy_poll > 0
    assert not alice.parts.core.inbox._busy_seconds
    run_parties(alice.close, bob.close)
