"""The wire, fed with bytes in pieces of every size by a server that answers what it likes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from redislink.broker import socket_wire
from redislink.broker.socket_wire import SocketWire
from redislink.broker.wire import ELEMENT, ErrorReply, WireError, pack_blpop

NAME = b"rl:{s:bob}:alice:0:t"


class Line:
    """A wire and the server's end of its socket."""

    def __init__(self) -> None:
        self.server, client = socket.socketpair()
        self.wire = SocketWire(_Connection(client), timeout=5.0)

    def say(self, data: bytes) -> None:
        self.server.sendall(data)

    def close(self) -> None:
        self.server.close()
        self.wire.close()


class _Connection:
    def __init__(self, client: socket.socket) -> None:
        self._client = client

    def _get_socket(self) -> socket.socket:
        return self._client

    def disconnect(self) -> None:
        self._client.close()


@pytest.fixture(params=[True, False], ids=["the kernel waits", "Python waits"])
def line(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    monkeypatch.setattr(socket_wire, "_KERNEL_WAITS", request.param)
    line = Line()
    yield line
    line.close()


def popped(element: bytes, name: bytes = NAME) -> bytes:
    return b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(element), element)


@pytest.mark.parametrize("size", [0, 1, 1000, 65_000, 65_536, 200_000])
def test_a_pop_gives_the_element_alone(line: Line, size: int) -> None:
    element = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    feeder = threading.Thread(target=line.say, args=(popped(element) + popped(b"next"),))
    feeder.start()
    assert line.wire.pop(NAME, 1.0, 5.0) == element
    assert line.wire.pop(NAME, 1.0, 5.0) == b"next"
    feeder.join()
    assert line.server.recv(1000) == 2 * pack_blpop((NAME,), 1.0)


SIZES = [70_000, 200_000, 65_536, 10, 300_000, 65_535, 70_000, 70_000, 0, 200_000]


@pytest.mark.parametrize("step", [1 << 20, 65_000, 4_000, 130])
def test_elements_of_all_sizes_in_turn(line: Line, step: int) -> None:
    """Where the last one was large, the next is read straight into the memory of that."""
    elements = [bytes([number]) * size for number, size in enumerate(SIZES)]
    whole = b"".join(map(popped, elements))

    def say() -> None:
        for start in range(0, len(whole), step):
            line.say(whole[start : start + step])

    feeder = threading.Thread(target=say)
    feeder.start()
    for element in elements:
        assert line.wire.read_popped(NAME, 5.0) == element
    feeder.join()
    assert not line.wire.buffered


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"*-1\r\n", None),
        (b":5\r\n", 5),
        (popped(b"x" * 70_000, b"another"), [b"another", b"x" * 70_000]),
        (popped(b"x"), b"x"),
    ],
)
def test_another_answer_after_a_large_element(line: Line, said: bytes, expected: Any) -> None:
    feeder = threading.Thread(target=line.say, args=(popped(bytes(70_000)),))
    feeder.start()
    assert line.wire.read_popped(NAME, 5.0) == bytes(70_000)
    feeder.join()
    feeder = threading.Thread(target=line.say, args=(said,))
    feeder.start()
    assert line.wire.read_popped(NAME, 5.0) == expected
    feeder.join()


HEADER = popped(bytes(100_000)).index(bytes(4))


@pytest.mark.parametrize("cut", range(1, HEADER + 2))
def test_a_header_cut_anywhere_is_not_completed_by_that_of_the_last_element(
    line: Line, cut: int
) -> None:
    """Its memory still has the header of a longer element of the same list."""
    feeder = threading.Thread(target=line.say, args=(popped(bytes(170_000)) * 2,))
    feeder.start()
    for _ in range(2):
        assert len(line.wire.read_popped(NAME, 5.0)) == 170_000
    feeder.join()
    whole = popped(b"x" * 100_000)
    line.say(whole[:cut])
    receive = line.wire._receive_into
    fed: list[threading.Thread] = []

    def feed_after_the_first(view: memoryview) -> int:
        count = receive(view)
        if not fed:
            fed.append(threading.Thread(target=line.say, args=(whole[cut:],)))
            fed[0].start()
        return count

    line.wire._receive_into = feed_after_the_first  # type: ignore[method-assign]
    assert line.wire.read_popped(NAME, 5.0) == b"x" * 100_000
    fed[0].join()
    assert not line.wire.buffered


def test_the_end_after_a_large_element(line: Line) -> None:
    feeder = threading.Thread(target=line.say, args=(popped(bytes(70_000)) * 2,))
    feeder.start()
    line.wire.read_popped(NAME, 5.0)
    feeder.join()
    assert len(line.wire.read_popped(NAME, 5.0)) == 70_000
    line.say(popped(bytes(70_000))[:100])
    line.server.shutdown(socket.SHUT_WR)
    with pytest.raises(WireError, match="closed"):
        line.wire.read_popped(NAME, 5.0)


@pytest.mark.parametrize("cut", range(1, len(popped(b"element"))))
def test_a_reply_cut_anywhere(line: Line, cut: int) -> None:
    whole = popped(b"element")
    line.say(whole[:cut])
    later = threading.Timer(0.005, line.say, (whole[cut:],))
    later.start()
    assert line.wire.pop(NAME, 1.0, 5.0) == b"element"
    later.join()


def test_a_reply_cut_within_a_size_that_begins_like_what_has_come(line: Line) -> None:
    """As many bytes as the digits before the cut say: it must not pass for a whole reply."""
    before_size = popped(b"").index(NAME) + len(NAME) + 3
    element = b"x" * (10 * before_size + 5)
    whole = popped(element)
    line.say(whole[: before_size + 3])
    later = threading.Timer(0.02, line.say, (whole[before_size + 3 :],))
    later.start()
    assert line.wire.pop(NAME, 1.0, 5.0) == element
    later.join()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"*-1\r\n", None),
        (b":5\r\n", 5),
        (popped(b"e", b"another"), [b"another", b"e"]),
        (b"+OK\r\n", [b"OK"]),
        (b"$1\r\nx\r\n", [b"x"]),
    ],
)
def test_a_pop_answered_otherwise(line: Line, said: bytes, expected: Any) -> None:
    line.say(said)
    assert line.wire.pop(NAME, 1.0, 5.0) == expected


def test_an_error_reply_to_a_pop(line: Line) -> None:
    line.say(b"-NOPERM no\r\n")
    reply = line.wire.pop(NAME, 1.0, 5.0)
    assert isinstance(reply, ErrorReply)
    assert reply.text == "NOPERM no"


def test_successes_are_taken_up_to_what_is_something_else(line: Line) -> None:
    line.say(b":1\r\n+OK\r\n:0\r\n:12\r\n-OOM full\r\n:1\r\n:")
    assert line.wire.readable()
    assert line.wire.read_successes() == 4
    assert line.wire.read_successes() == 0
    assert isinstance(line.wire.read(5.0), ErrorReply)
    assert line.wire.read_successes() == 1
    assert line.wire.read_successes() == 0  # the last is not whole yet


@pytest.mark.parametrize("size", [-2, (512 << 20) + 1])
def test_a_size_that_cannot_be(line: Line, size: int) -> None:
    line.say(b"*2\r\n$%d\r\n%b\r\n$%d\r\n" % (len(NAME), NAME, size))
    with pytest.raises(WireError):
        line.wire.pop(NAME, 1.0, 5.0)


def test_a_large_size_takes_no_memory_before_it_comes(line: Line) -> None:
    line.say(b"$%d\r\nshort" % (400 << 20))
    line.server.shutdown(socket.SHUT_WR)
    with pytest.raises(WireError, match="closed"):
        line.wire.read(5.0, ELEMENT)
    assert len(line.wire._large) <= 4 << 20


def test_a_broker_that_drips_holds_nobody_up(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr(socket_wire.time, "monotonic", lambda: float(next(clock)))
    line.say(b"$100000\r\n")
    done = threading.Event()

    def drip() -> None:
        while not done.is_set():
            try:
                line.say(b"x")
            except OSError:
                return
            done.wait(0.001)

    dripping = threading.Thread(target=drip)
    dripping.start()
    with pytest.raises(TimeoutError, match="too slowly"):
        line.wire.read(1.0)
    done.set()
    dripping.join()
