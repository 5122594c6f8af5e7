"""Pushes onto a line that takes nothing: they return, and all goes out in order once it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from redislink import BrokerUnreachable
from redislink.broker import Outbox
from redislink.broker.backlog import URGENT, Backlog, QueuedWrite, lasting
from redislink.errors import EndpointClosed
from tests.support.line import REPLY, Line

LARGE = 1 << 20  # more than a socket pair holds


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line._close_both()


@pytest.fixture
def outbox(line: Line) -> Iterator[Outbox]:
    before = writers()
    outbox = Outbox(line, ttl=60)  # type: ignore[arg-type]
    outbox.reconnect()
    yield outbox
    outbox.close()
    assert writers() <= before


def writers() -> set[threading.Thread]:
    """Threads that write for an outbox; another test's may still be about to end."""
    return {t for t in threading.enumerate() if t.name == "redislink-writer"}


def body(number: int, size: int = LARGE) -> bytes:
    return bytes([number]) * size


def test_pushes_return_while_the_line_takes_nothing(line: Line, outbox: Outbox) -> None:
    for number in range(8):
        outbox.push(b"list", (b"head", body(number)), number)
    assert outbox.is_behind
    for number in range(8):
        assert line.pushed() == (b"list", b"head" + body(number))
    assert outbox.flush()
    assert outbox.collect() == [(number, True) for number in range(8)]
    assert not outbox.is_behind
    outbox.push(b"list", (b"", b"small"))
    assert line.pushed() == (b"list", b"small")


def test_what_comes_while_a_large_element_is_sealed_goes_before_it(
    line: Line, outbox: Outbox
) -> None:
    """Except what is for the same list, and the small ones after that."""

    def seal() -> tuple[bytes, bytes]:
        outbox.push(b"other", (b"", b"first"), "first")
        outbox.push(b"control", (b"", b"ack"), "ack", urgent=True)
        outbox.push(b"bulk", (b"", b"next"), "next")
        outbox.push(b"other", (b"", b"second"), "second")
        return b"", body(1)

    outbox.push(b"bulk", (b"", body(0)), 0)
    outbox.push_later(b"bulk", seal, LARGE, 1)
    came = [line.pushed() for _ in range(6)]
    assert came == [
        (b"bulk", body(0)),
        (b"control", b"ack"),
        (b"other", b"first"),
        (b"bulk", body(1)),
        (b"bulk", b"next"),
        (b"other", b"second"),
    ]
    assert outbox.flush()
    tokens = [token for token, _ in outbox.collect()]
    assert tokens == [0, "ack", "first", 1, "next", "second"]


def test_the_outbox_knows_when_a_small_message_last_had_to_wait(line: Line, outbox: Outbox) -> None:
    outbox.push(b"other", (b"", b"small"))
    outbox.push(b"bulk", (b"", body(0)))
    outbox.push(b"bulk", (b"", body(1)))
    outbox.push(b"control", (b"", b"heartbeat"), urgent=True)
    assert outbox.small_waited_at == float("-inf")
    before = time.monotonic()
    outbox.push(b"other", (b"", b"small"))
    assert before <= outbox.small_waited_at <= time.monotonic()


def test_what_is_urgent_goes_first_and_what_is_small_before_what_is_large(
    line: Line, outbox: Outbox
) -> None:
    for number in range(3):
        outbox.push(b"bulk", (b"", body(number)), number)
    outbox.push(b"other", (b"", b"first"), "first")
    outbox.push(b"other", (b"", b"second"), "second")
    outbox.push(b"control", (b"", b"heartbeat"), "heartbeat", urgent=True)
    outbox.push(b"control", (b"", b"ack"), "ack", urgent=True)
    came = [line.pushed() for _ in range(7)]
    assert came == [
        (b"bulk", body(0)),  # had begun
        (b"control", b"heartbeat"),
        (b"control", b"ack"),
        (b"other", b"first"),
        (b"other", b"second"),
        (b"bulk", body(1)),
        (b"bulk", body(2)),
    ]
    assert outbox.flush()
    tokens = [token for token, _ in outbox.collect()]
    assert tokens == [0, "heartbeat", "ack", "first", "second", 1, 2]


def in_turn(backlog: Backlog) -> Iterator[object]:
    """Tokens, in the order in which they go out."""
    while (waiting := backlog.take()) is not None:
        backlog.begun()
        yield waiting.token


def filled(*pushes: tuple[bytes, int, str]) -> Backlog:
    """Args: list, bytes and token of each push."""
    backlog = Backlog()
    for name, size, token in pushes:
        backlog.add(name, QueuedWrite(lambda: (), 1, token, size))
    return backlog


def test_a_stream_of_messages_goes_out_in_the_order_in_which_they_were_sent() -> None:
    chunks = [(b"%d" % message, LARGE, f"{message}.{n}") for message in range(3) for n in range(3)]
    assert list(in_turn(filled(*chunks))) == [token for *_, token in chunks]


def test_a_message_does_not_wait_for_all_of_a_larger_one() -> None:
    backlog = filled(*[(b"large", 4 * LARGE, f"large.{n}") for n in range(4)])
    taken = [next(in_turn(backlog))]
    for n in range(2):
        backlog.add(b"other", QueuedWrite(lambda: (), 1, f"other.{n}", 2 * LARGE))
    backlog.add(b"large", QueuedWrite(lambda: (), 1, "small, but after the rest of its list", 10))
    assert [*taken, *in_turn(backlog)] == [
        *("large.0", "other.0", "other.1", "large.1", "large.2", "large.3"),
        "small, but after the rest of its list",
    ]


def test_what_the_window_lets_through_later_does_not_overtake() -> None:
    backlog = filled(*[(b"first", 4 * LARGE, f"first.{n}") for n in range(4)])
    backlog.add(b"second", QueuedWrite(lambda: (), 1, "second.0", 4 * LARGE))
    assert list(in_turn(backlog))[-1] == "second.0"


def test_inboxes_take_turns() -> None:
    to_bob, to_carol = b"{s:bob}:a", b"{s:carol}:a"
    pushes = [*[(to_bob, LARGE, f"bob.{n}") for n in range(3)], (to_carol, 9 * LARGE, "carol.0")]
    backlog = filled(*pushes, (to_carol, LARGE, "carol.1"))
    assert list(in_turn(backlog)) == ["bob.0", "carol.0", "bob.1", "carol.1", "bob.2"]


def test_small_ones_of_a_list_that_is_removed() -> None:
    backlog = Backlog()
    for number, name in enumerate([b"a", b"b", b"a", b"b"]):
        backlog.add(name, QueuedWrite(lambda: (), 1, number, 10))
    backlog.add(b"a", QueuedWrite(lambda: (), 1, 4, LARGE))
    backlog.drop(b"a")
    backlog.drop(b"c")
    assert list(in_turn(backlog)) == [1, 3]


def test_memory_that_changes_after_the_push_is_not_what_goes_out(
    line: Line, outbox: Outbox
) -> None:
    scratch = bytearray(LARGE)
    for number in range(4):
        scratch[:] = body(number)
        outbox.push(b"list", (b"", memoryview(scratch)))
    scratch[:] = body(9)
    assert [line.pushed()[1] for _ in range(4)] == [body(number) for number in range(4)]


def test_what_is_pushed_later_is_encoded_in_its_turn(line: Line, outbox: Outbox) -> None:
    threads, encoded = [], threading.Semaphore(0)

    def encode(number: int) -> tuple[bytes, bytes]:
        threads.append(threading.current_thread().name)
        encoded.release()
        return b"head", body(number)

    for number in range(3):
        outbox.push_later(b"list", lambda number=number: encode(number), LARGE, number)
    assert encoded.acquire(timeout=10)  # the first fills the line
    assert not encoded.acquire(blocking=False)
    for number in range(3):
        assert line.pushed() == (b"list", b"head" + body(number))
    assert threads == ["redislink-writer"] * 3
    assert outbox.flush()
    assert outbox.collect() == [(0, True), (1, True), (2, True)]


def test_deleting_a_list_forgets_what_waits_for_it(line: Line, outbox: Outbox) -> None:
    def never() -> tuple[bytes, bytes]:
        raise AssertionError("encoded what was deleted")

    outbox.push(b"bulk", (b"", body(0)), 0)
    outbox.push_later(b"bulk", never, LARGE, "dropped")
    outbox.push(b"other", (b"", b"stays"), "stays")
    outbox.delete(b"bulk")
    assert line.pushed() == (b"bulk", body(0))
    assert line.pushed() == (b"other", b"stays")
    assert line.command() == [b"DEL", b"bulk"]
    line.server.sendall(REPLY)
    assert outbox.flush()
    assert outbox.collect() == [(0, True), ("stays", True)]


def test_replies_are_read_while_writing(line: Line, outbox: Outbox) -> None:
    outbox.push(b"list", (b"", b"first"))
    line.command(), line.command()
    outbox.push(b"list", (b"", body(1)))
    assert outbox.is_behind
    with outbox._moved:
        line.server.sendall(REPLY[:2])
        assert not outbox._moved.wait_for(lambda: len(outbox._replies.unread) < 2, 0.1), (
            "half a reply"
        )
        line.server.sendall(REPLY[2:] + REPLY)
        assert outbox._moved.wait_for(lambda: len(outbox._replies.unread) < 2, 10)
    assert line.pushed() == (b"list", body(1))


def test_a_push_that_is_refused_in_a_backlog(line: Line, outbox: Outbox) -> None:
    for number in range(3):
        outbox.push(b"list", (b"", body(number)), number)
    line.pushed()
    line.pushed(b"-OOM command not allowed\r\n:0\r\n")
    line.pushed()
    assert outbox.flush()
    assert outbox.collect() == [(0, True), (1, False), (2, True)]


def test_a_line_that_takes_nothing_for_too_long_is_broken() -> None:
    line = Line(timeout=0.2)
    outbox = Outbox(line, ttl=60)  # type: ignore[arg-type]
    outbox.reconnect()
    for number in range(3):
        outbox.push(b"list", (b"", body(number)), number)
    assert outbox.is_behind
    assert not outbox.flush()
    assert isinstance(outbox.error, BrokerUnreachable)
    assert "took and answered nothing for 0.2 s" in str(outbox.error)
    assert not outbox.is_behind
    outbox.push(b"list", (b"", b"dropped"), "dropped")
    outbox.reconnect()
    outbox.push(b"list", (b"", b"new"), "new")
    assert line.pushed() == (b"list", b"new"), "nothing of the old connection"
    assert outbox.flush()
    assert outbox.collect() == [("new", True)]
    outbox.close()
    line._close_both()


def test_a_slow_line_is_not_broken_as_long_as_it_takes_something() -> None:
    line = Line(timeout=0.3)
    outbox = Outbox(line, ttl=60)  # type: ignore[arg-type]
    outbox.reconnect()
    outbox.push(b"list", (b"", body(1)), 1)
    pause = threading.Event()
    taken = b""
    for _ in range(8):  # 0.8 s for one element
        taken += line.server.recv(1 << 16)
        pause.wait(0.1)
        outbox.collect()
    assert outbox.error is None
    line._unread = taken
    assert line.pushed() == (b"list", body(1))
    assert outbox.flush()
    outbox.close()
    line._close_both()


def test_a_connection_that_ends_in_the_middle_of_a_backlog(line: Line, outbox: Outbox) -> None:
    for number in range(3):
        outbox.push(b"list", (b"", body(number)), number)
    assert line.pushed() == (b"list", body(0))
    line.server.close()
    assert not outbox.flush()
    assert isinstance(outbox.error, BrokerUnreachable)
    outbox.reconnect()
    outbox.push(b"list", (b"", b"new"))
    assert line.pushed() == (b"list", b"new")


def test_a_flush_waits_for_what_was_pushed_before_it_alone(line: Line, outbox: Outbox) -> None:
    outbox.push(b"bulk", (b"", body(0)), 0)
    outbox.push(b"bulk", (b"", body(1)), 1)
    flushed = threading.Event()
    flushing = threading.Thread(target=lambda: outbox.flush() and flushed.set())
    flushing.start()
    pause = threading.Event()
    while not outbox._moved._waiters:  # type: ignore[attr-defined]
        assert not pause.wait(0.001)
        assert flushing.is_alive()

    def later() -> tuple[bytes, bytes]:
        assert flushed.wait(10)
        return b"", body(2)

    outbox.push_later(b"bulk", later, LARGE, 2)  # does not have to be through
    assert line.pushed() == (b"bulk", body(0))
    assert not flushed.is_set()
    line.pushed()
    flushing.join(10)
    assert flushed.is_set()
    assert line.pushed() == (b"bulk", body(2))


def test_a_flush_has_its_own_limit(line: Line, outbox: Outbox) -> None:
    outbox.push(b"bulk", (b"", body(0)))
    assert not outbox.flush(0.05)
    assert "did not answer everything in 0.05 s" in str(outbox.error)


def test_closing_with_a_backlog_ends_the_writer(line: Line, outbox: Outbox) -> None:
    before = writers()
    outbox.push(b"bulk", (b"", body(0)))
    assert outbox.is_behind
    outbox.close()
    assert writers() <= before
    with pytest.raises(EndpointClosed):
        outbox.push(b"bulk", (b"", b"x"))
    with pytest.raises(EndpointClosed):
        outbox.push_later(b"bulk", lambda: (b"", b"x"), LARGE)


def test_many_threads_push_whole_commands(line: Line, outbox: Outbox) -> None:
    def push(thread: int) -> None:
        for number in range(50):
            size = LARGE // 4 if number % 10 == 0 else 10
            outbox.push(b"%d" % thread, (b"%d " % number, body(thread, size)))

    threads = [threading.Thread(target=push, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)  # the test reads nothing yet
        assert not thread.is_alive()
    came: dict[bytes, list[int]] = {}
    for _ in range(200):
        name, element = line.pushed()
        number, _, rest = element.partition(b" ")
        assert rest == body(int(name), len(rest))
        came.setdefault(name, []).append(int(number))
    assert came == {b"%d" % n: list(range(50)) for n in range(4)}
    assert outbox.flush()


def test_what_lasts_is_not_copied() -> None:
    fixed, changing = b"x" * 10, bytearray(b"y" * 10)
    view = memoryview(fixed)[2:]
    kept = lasting([fixed, view, changing, memoryview(changing), memoryview(changing).toreadonly()])
    assert kept[0] is fixed
    assert kept[1] is view
    changing[:] = b"z" * 10
    assert kept[2:] == [b"y" * 10] * 3


def test_a_backlog_knows_what_has_not_begun() -> None:
    backlog = Backlog()
    for name in (b"a", b"b", URGENT):
        backlog.add(name, QueuedWrite(lambda: (), 1, name, 10))
    assert not backlog.holds_before(0)
    assert backlog.holds_before(1)
    order = []
    while (waiting := backlog.take()) is not None:
        assert backlog.holds_before(3)
        order.append(waiting.token)
        backlog.begun()
    assert order == [URGENT, b"a", b"b"]
    assert not backlog.holds_before(3)
