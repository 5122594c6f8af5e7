"""`BrokerConnection`: whichever way a reply is read, it means the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redislink import BrokerPermissionError, BrokerRefused, BrokerUnreachable
from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.connection import BrokerConnection
from tests.support.line import Line

NAME = b"rl:{s:bob}:alice:0:t"
WAYS: dict[str, Callable[[BrokerConnection], Any]] = {
    "read": lambda connection: connection.read(0.05),
    "read_now": lambda connection: connection.readable() and connection.read_now(),
    "pop": lambda connection: connection.pop(NAME, 0.01, 0.05),
    "read_popped": lambda connection: connection.read_popped(NAME, 0.05),
}


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[BrokerConnection], Any]:
    return WAYS[request.param]


def test_an_error_reply_is_raised_and_the_connection_stays(
    line: Line, way: Callable[[BrokerConnection], Any]
) -> None:
    connection = line.open_answering()
    line.server.sendall(b"-NOPERM no\r\n")
    with pytest.raises(BrokerPermissionError, match="the test"):
        way(connection)
    assert connection.usable
    line.server.sendall(b":1\r\n")
    assert way(connection) == 1


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"-READONLY it is a replica\r\n", BrokerUnreachable),
        (b"", BrokerUnreachable),
        (b"HTTP/1.1 400 Bad Request\r\n", (BrokerUnreachable, BrokerRefused)),
    ],
)
def test_any_other_failure_closes_it(
    line: Line, way: Callable[[BrokerConnection], Any], said: bytes, error: type[Exception]
) -> None:
    connection = line.open_answering()
    line.server.sendall(said)
    if not said:
        line.server.close()
    with pytest.raises(error, match="the test"):
        way(connection)
    assert not connection.usable


@pytest.mark.parametrize("name", ["read", "pop", "read_popped"])
def test_a_reply_that_is_late_closes_it(line: Line, name: str) -> None:
    connection = line.open_answering()
    with pytest.raises(BrokerUnreachable, match="timed out"):
        WAYS[name](connection)
    assert not connection.usable


def test_what_is_no_failure_of_it_goes_on_as_it_is(
    line: Line, way: Callable[[BrokerConnection], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = line.open_answering()
    line.server.sendall(b":1\r\n")
    stopped = KeyboardInterrupt()

    def stop(*_: Any) -> None:
        raise stopped

    for name in ("read", "read_now", "pop", "read_popped"):
        monkeypatch.setattr(connection._wire, name, stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        way(connection)
    assert caught.value is stopped
    assert not connection.usable


def test_an_error_reply_leaves_the_connection_in_step(valkey: EmbeddedBroker) -> None:
    connection = Broker(valkey.url).open()
    connection.send([(b"SET", b"string", b"1"), (b"RPUSH", b"string", b"x"), (b"GET", b"string")])
    assert connection.read(5) == b"OK"
    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        connection.read(5)
    assert connection.read(5) == b"1"


def test_a_pipeline_that_is_left_with_replies_to_come_closes_it(line: Line) -> None:
    connection = line.open_answering()
    line.server.sendall(b":1\r\n:2\r\n-NOPERM no\r\n:4\r\n")
    with connection.pipeline([("PING",), ("PING",)]):
        assert [connection.read(1), connection.read(1)] == [1, 2]
    assert connection.usable
    with (
        pytest.raises(BrokerPermissionError),
        connection.pipeline([("PING",), ("PING",)]),
    ):
        connection.read(1)
    assert not connection.usable
