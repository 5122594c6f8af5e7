"""`Wait`: its four ways to pop begin and end alike; and what it does at a real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from redislink import BrokerPermissionError, BrokerRefused, BrokerUnreachable
from redislink.broker import Broker, EmbeddedBroker, Inbox
from redislink.broker.inbox import Interrupted, Wait
from redislink.testing import Proxy
from tests.conftest import in_thread
from tests.support.line import Line
from tests.support.waiting import wait_until

NAME = b"rl:{s:bob}:alice:0:t"
OTHER = b"rl:{s:bob}:carol:0:t"


class Way(NamedTuple):
    """One of the ways to pop: what comes before it, and itself."""

    begin: Callable[[Wait], Any]
    take: Callable[[Wait], Any]

    def __call__(self, wait: Wait) -> Any:
        self.begin(wait)
        return self.take(wait)


def pop(wait: Wait) -> Any:
    popped = wait.pop((NAME,), 10)
    return popped if popped is None else popped[1]


WAYS: dict[str, Way] = {
    "pop": Way(bool, pop),
    "pop_one": Way(bool, lambda wait: wait.pop_one(NAME, 10)),
    "pop_of_many": Way(bool, lambda wait: wait.pop_of_many(NAME, 10, 1, 10)),
    "read_posted": Way(
        lambda wait: wait.post((NAME,), 10), lambda wait: wait.read_posted(NAME, 10)
    ),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def wait(line: Line) -> Wait:
    """Connected to `line`."""
    wait = Wait(line)  # type: ignore[arg-type]
    wait._open()
    return wait


def popped(element: bytes, name: bytes = NAME) -> bytes:
    return b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(element), element)


@pytest.mark.parametrize(
    ("reply", "element"), [(popped(b"e"), b"e"), (popped(b""), b""), (b"*-1\r\n", None)]
)
def test_an_element_or_none(
    line: Line, wait: Wait, way: Way, reply: bytes, element: bytes | None
) -> None:
    connection = wait._connection
    for _ in range(2):
        line.server.sendall(reply)
        assert way(wait) == element
        assert line.command() == [b"BLPOP", NAME, b"10.000"]
    assert wait._connection is connection


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"-NOPERM no\r\n", BrokerPermissionError),
        (b"-WRONGTYPE no list\r\n", BrokerRefused),
        (popped(b"e", OTHER), BrokerRefused),
        *(
            (nonsense, BrokerRefused)
            for nonsense in (b":5\r\n", b"+OK\r\n", b"$1\r\nx\r\n", b"*0\r\n")
        ),
        (b"HTTP/1.1 400 Bad Request\r\n", BrokerUnreachable),
        (b"", BrokerUnreachable),
    ],
)
def test_any_error_closes_the_connection_and_the_next_pop_opens_one(
    line: Line, wait: Wait, way: Way, reply: bytes, error: type[Exception]
) -> None:
    line.server.sendall(reply)
    if not reply:
        line.server.shutdown(1)
    with pytest.raises(error, match="the test"):
        way(wait)
    assert wait._connection is None
    wait._open()
    line.server.sendall(popped(b"e"))
    assert way(wait) == b"e"


def test_an_interrupt_before_it_ends_it_and_not_the_next(line: Line, wait: Wait, way: Way) -> None:
    way.begin(wait)
    wait.interrupt()
    with pytest.raises(Interrupted):
        way.take(wait)
    assert wait._connection is None
    wait._open()
    line.server.sendall(popped(b"e"))
    assert way(wait) == b"e"


def test_an_interrupt_ends_it_while_it_waits(line: Line, wait: Wait, way: Way) -> None:
    thread, outcome = in_thread(lambda: way(wait))
    assert line.command()[0] == b"BLPOP"
    wait.interrupt()
    thread.join(10)
    assert isinstance(outcome[0], Interrupted)
    assert wait._connection is None
    assert not wait._interrupted


def test_what_is_no_error_of_the_broker_goes_on_as_it_is(
    line: Line, wait: Wait, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.server.sendall(popped(b"e"))
    stopped = KeyboardInterrupt()

    def stop(*_: Any) -> None:
        raise stopped

    for name in ("read", "pop", "read_popped"):
        monkeypatch.setattr(wait._connection, name, stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        way(wait)
    assert caught.value is stopped
    assert wait._connection is None


def test_a_broker_that_dies_ends_a_waiting_receive() -> None:
    with EmbeddedBroker() as server:
        wait = Inbox(Broker(server.url)).acquire()
        outcome = []

        def pop():
            try:
                wait.pop((b"x",), 10)
            except BrokerUnreachable as error:
                outcome.append(error)

        thread = threading.Thread(target=pop)
        thread.start()
        server.stop()
        thread.join(10)
    assert len(outcome) == 1


def test_an_interrupted_pop_ends_at_once_and_its_connection_is_not_reused(
    valkey: EmbeddedBroker,
) -> None:
    wait = Inbox(Broker(valkey.url)).acquire()
    outcome = []

    def pop():
        try:
            wait.pop((b"interrupted",), 10)
        except Interrupted as error:
            outcome.append(error)

    thread = threading.Thread(target=pop)
    thread.start()
    wait.interrupt()
    thread.join(10)
    assert len(outcome) == 1
    Broker(valkey.url).open().execute(b"RPUSH", b"interrupted", b"x", timeout=5)
    assert wait.pop((b"interrupted",), 10) == (b"interrupted", b"x")


@pytest.mark.parametrize("size", [10, 100_000])
def test_many_elements_of_a_list_are_asked_for_ahead(valkey: EmbeddedBroker, size: int) -> None:
    wait, connection = Inbox(Broker(valkey.url)).acquire(), Broker(valkey.url).open()
    name, elements = b"many %d" % size, [bytes([n]) * size for n in range(5)]
    connection.execute(b"RPUSH", name, *elements[:3], timeout=5)
    assert [bytes(wait.pop_of_many(name, 10, 5 - n, 1 << 20)) for n in range(3)] == elements[:3]
    assert wait.pop_of_many(name, 0.01, 2, 1 << 20) is None
    connection.execute(b"RPUSH", name, *elements[3:], b"next", timeout=5)
    assert bytes(wait.pop_of_many(name, 10, 2, 1 << 20)) == elements[3]
    assert connection.execute(b"LLEN", name, timeout=5) == 1, "both were asked for"
    assert bytes(wait.pop_of_many(name, 10, 1, 1 << 20)) == elements[4]
    in_step = wait._connection
    wait.end_many()
    assert wait.pop_one(name, 10) == b"next"
    assert wait._connection is in_step


@pytest.mark.parametrize(("size", "asked"), [(1, 32), (128 << 10, 16), (4 << 20, 2)])
def test_more_is_asked_for_ahead_the_smaller_it_is(
    valkey: EmbeddedBroker, size: int, asked: int
) -> None:
    wait, connection = Inbox(Broker(valkey.url)).acquire(), Broker(valkey.url).open()
    name = b"ahead %d" % size
    assert wait.pop_of_many(name, 0.001, 100, size) is None
    connection.execute(b"RPUSH", name, *[b"x"] * 100, timeout=5)
    assert wait.pop_of_many(name, 10, asked, size) == b"x"
    assert connection.execute(b"LLEN", name, timeout=5) == 100 - asked
    wait.disconnect()


def test_an_interrupt_ends_a_pop_of_many(valkey: EmbeddedBroker) -> None:
    wait = Inbox(Broker(valkey.url)).acquire()
    assert wait.pop_of_many(b"interrupted many", 0.01, 3, 1) is None
    wait.interrupt()
    with pytest.raises(Interrupted):
        wait.pop_of_many(b"interrupted many", 10, 3, 1)
    Broker(valkey.url).open().execute(b"RPUSH", b"other", b"x", timeout=5)
    assert wait.pop_one(b"other", 10) == b"x"


def test_idle_connections_are_opened_anew_and_others_stay(valkey: EmbeddedBroker) -> None:
    inbox = Inbox(Broker(valkey.url))
    used, idle = inbox.acquire(), inbox.acquire()
    for wait in (used, idle):
        wait.connect()
    before = used._connection
    inbox.release(idle)
    inbox.reopen_idle()
    assert (used._connection, idle._connection) == (before, None)
    assert inbox.acquire() is idle
    assert idle.pop_one(NAME, 0.001) is None
    inbox.close()
    for wait in (used, idle):
        inbox.release(wait)


def test_what_waits_to_be_read_has_come(valkey: EmbeddedBroker) -> None:
    """The thread that would read it may wait for a core; nothing is lost for that."""
    wait = Wait(Broker(valkey.url))
    wait.connect()
    assert not wait.has_moved()
    wait.post([NAME], 10)
    Broker(valkey.url).open().execute(b"RPUSH", NAME, b"x", timeout=5)
    wait_until(wait.has_moved)
    assert wait.has_moved()
    assert wait.has_moved()
    assert wait.read_posted(NAME, 10) == b"x"
    wait.has_moved()
    assert not wait.has_moved()
    wait.disconnect()


class Decider:
    """Says of a silent connection that it is dead after so many questions."""

    patience = 0.001

    def __init__(self, questions: int) -> None:
        self.questions = questions

    def is_dead(self, broker: Broker, silent_since: float) -> bool:
        assert silent_since <= time.monotonic()
        assert broker.label
        self.questions -= 1
        return self.questions <= 0


def test_a_reply_may_be_late_until_somebody_says_that_the_line_is_dead() -> None:
    with EmbeddedBroker() as server, Proxy(server.port) as proxy:
        wait = Wait(Broker(proxy.url()))
        wait.connect()
        [line] = proxy.connections
        line.stall()
        decider = Decider(3)
        with pytest.raises(BrokerUnreachable, match="has dropped it"):
            wait.pop([NAME], 0.001, decider)
        assert decider.questions == 0
        assert wait.pop([NAME], 0.001, Decider(1000)) is None, "on a new connection"
        wait.disconnect()
