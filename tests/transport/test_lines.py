"""`Lines`: a silent connection is dead if a new one is answered, and not before."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from redislink.broker import tcp
from redislink.broker.outbox import Outbox, Silence
from redislink.errors import BrokerError, BrokerUnreachable
from redislink.transport.lines import Lines
from tests.support.waiting import wait_until


class Way:
    """The way to a broker, open or closed; every attempt waits until it is open, or fails."""

    label = "test"
    timeout = 5.0

    def __init__(self) -> None:
        self.opens = threading.Event()
        self.dialled = 0
        self.fails = False

    def open_answering(self) -> Any:
        self.dialled += 1
        if self.fails:
            raise BrokerUnreachable("no way")
        assert self.opens.wait(30)
        return SimpleNamespace(execute=lambda *_, **__: b"PONG", close=lambda: None)


class SilentOutbox:
    """An outbox that has been silent for as long as it says."""

    def __init__(self, broker: Way) -> None:
        self.broker = broker
        self.silent_since = time.monotonic()
        self.error: BrokerError | None = None

    def silent(self, patience: float) -> list[Silence]:
        assert patience >= 0.5
        broker: Any = self.broker
        return [] if self.error else [Silence(broker, self.silent_since, self.give_up)]

    def give_up(self, error: BrokerError) -> None:
        self.error = error


@pytest.fixture
def way() -> Iterator[Way]:
    way = Way()
    yield way
    way.opens.set()  # so that no rival stays behind


def lines_of(outbox: SilentOutbox, round_trip: float = 0.0) -> tuple[Lines, list[str]]:
    dead: list[str] = []
    core: Any = SimpleNamespace(party="alice", outbox=outbox)
    return Lines(core, round_trip, lambda: dead.append("dead")), dead


def test_a_silent_outbox_is_given_up_once_its_rival_was_answered(way: Way) -> None:
    outbox = SilentOutbox(way)
    lines, dead = lines_of(outbox)
    for _ in range(5):
        lines.check_outbox()
    assert (way.dialled, outbox.error, dead) == (1, None, []), "one rival at a time, at first"
    way.opens.set()

    def is_given_up() -> bool:
        lines.check_outbox()
        return outbox.error is not None

    wait_until(is_given_up)
    assert dead == ["dead"]
    assert "something on the way has dropped it" in str(outbox.error)
    assert outbox.error is not None
    assert outbox.error.retryable


def test_an_answer_from_before_the_silence_says_nothing(way: Way) -> None:
    outbox = SilentOutbox(way)
    lines, _ = lines_of(outbox)
    way.opens.set()
    lines.is_dead(way, outbox.silent_since)
    wait_until(lambda: lines.is_dead(way, outbox.silent_since))
    assert not lines.is_dead(way, time.monotonic())


def test_where_no_rival_is_answered_either_nothing_is_given_up(way: Way) -> None:
    way.fails = True
    outbox = SilentOutbox(way)
    lines, dead = lines_of(outbox)
    for _ in range(100):
        lines.check_outbox()
    assert way.dialled == 1, "the next is due a second later"
    assert (outbox.error, dead) == (None, [])


def test_a_slow_way_gets_more_patience(way: Way) -> None:
    outbox = SilentOutbox(way)
    assert lines_of(outbox, round_trip=5.0)[0].patience == 15.0
    lines, _ = lines_of(outbox)
    assert lines.patience == 0.5
    rival = lines.is_dead(way, 0.0)
    assert not rival
    lines._rivals[id(way)].round_trip = 2.0
    assert lines.patience == 6.0, "a round trip takes longer now than it did at the start"
    lines._rivals[id(way)].round_trip = 60.0
    assert lines.patience == 15.0, "the way was closed meanwhile"


# -- what an outbox calls silence ------------------------------------------------------------------


class Line:
    """An outbox's connection; the test says what has passed on it."""

    def __init__(self) -> None:
        self.traffic: tcp.Traffic | None = tcp.Traffic(0, 0, False)

    def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(
        "redislink.broker.outbox.time", SimpleNamespace(monotonic=lambda: clock.now)
    )
    return clock


@pytest.fixture
def owed(clock: SimpleNamespace) -> tuple[Outbox, Line]:
    """An outbox to which a broker owes a reply since now."""
    broker: Any = SimpleNamespace(label="test", may_be_quiet=False, in_process=False, timeout=10.0)
    outbox, line = Outbox(broker, 60), Line()
    outbox._connection = line  # type: ignore[assignment]
    outbox._replies.owe(1, None, 100)
    outbox._replies.moved_at = clock.now
    assert outbox.silent(0.5) == []
    return outbox, line


def test_an_outbox_is_silent_while_the_broker_owes_and_nothing_comes(
    owed: tuple[Outbox, Line], clock: SimpleNamespace
) -> None:
    outbox, line = owed
    clock.now += 0.4
    assert outbox.silent(0.5) == []
    clock.now += 0.2
    assert outbox.silent(0.5) != []
    assert outbox.silent(0.5)[0].since == 100.0
    line.traffic = tcp.Traffic(5, 0, False)
    assert outbox.silent(0.5) == [], "part of a reply has come"
    clock.now += 0.6
    assert outbox.silent(0.5) != []
    outbox._replies.unread.clear()
    assert outbox.silent(0.5) == [], "nothing is owed"


def test_what_drains_away_slowly_is_no_silence(
    owed: tuple[Outbox, Line], clock: SimpleNamespace
) -> None:
    """20 kbit/s: two segments are acknowledged every 1.2 s, and replies come minutes later."""
    outbox, line = owed
    for acknowledged in range(0, 2896 * 50, 2896):
        line.traffic = tcp.Traffic(0, acknowledged, True)
        clock.now += 1.2
        assert outbox.silent(0.5) == []
    clock.now += 1.6
    assert outbox.silent(0.5) != [], "now it drains no more"


def test_what_a_proxy_has_buffered_gets_the_time_that_it_turned_out_to_take(
    owed: tuple[Outbox, Line], clock: SimpleNamespace
) -> None:
    """All has been acknowledged, by the proxy, whose own line to the broker is slow."""
    outbox, line = owed

    def waits_for(size: int) -> float:
        """Push so much on a connection until it is given up; return for how long."""
        began = clock.now
        outbox._connection = line  # type: ignore[assignment]
        outbox._replies.owe(1, None, size)
        outbox._replies.moved_at = began
        outbox.silent(0.5)
        while not (found := outbox.silent(0.5)):
            clock.now += 0.01
        found[0].give_up(BrokerUnreachable("silent"))
        assert outbox.error is not None
        return float(clock.now - began)

    outbox._replies.unread.clear()
    assert waits_for(1 << 20) == pytest.approx(0.5, abs=0.02), "a fast line, for all we know"
    waits = [waits_for(1 << 20) for _ in range(6)]
    assert waits == pytest.approx([1, 2, 4, 8, 10, 10], rel=0.1), "at most the reply timeout"
    assert waits_for(64 << 10) < 2.0, "a smaller one takes less"
    assert waits_for(100) == pytest.approx(0.5, abs=0.02), "what is small is as before"
    clock.now += 61
    assert waits_for(1 << 20) == pytest.approx(10.0, abs=0.1)
    for _ in range(20):
        clock.now += 61
        outbox._replies.owe(1, None, 1)
        outbox._connection = line  # type: ignore[assignment]
        outbox.silent(0.5)
        outbox._replies.unread.clear()
    assert waits_for(1 << 20) == pytest.approx(0.5, abs=0.02), "it was long ago"


def test_a_connection_that_nobody_counts_is_judged_by_its_replies(
    owed: tuple[Outbox, Line], clock: SimpleNamespace
) -> None:
    outbox, line = owed
    line.traffic = None
    clock.now += 0.6
    assert outbox.silent(0.5) != []
