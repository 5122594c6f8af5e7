"""The inbox: takes elements off lists with BLPOP, in the calling thread.

Rules:
- A `Wait` is a connection on which one thread at a time waits. If a pop ends in any other way
  than by a reply, its connection is closed, as a late reply would answer the wrong question.
- BLPOP timeouts are finite; the read deadline is that plus a margin.
- The broker is not trusted: a reply that is no answer to what was asked is a `BrokerRefused`.
- What happens for each message takes no lock: ``deque`` and attribute accesses are atomic.
"""

# ruff: noqa: BLE001 - whatever is caught here is raised again, by way of `_ended`

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from redislink.broker.broker import Broker
from redislink.broker.connection import BrokerConnection
from redislink.broker.wire import CONTROL, ELEMENT, Buffer, pack_blpop, pack_blpops
from redislink.errors import BrokerError, BrokerRefused, EndpointClosed
from redislink.forking import Dead, dies_in_child, used_after_fork

_LONGEST_MARGIN: Final = 5.0
"""Seconds by which a BLPOP's reply may be late before the connection counts as broken."""
_LEAST_AHEAD: Final = 2
"""BLPOPs under way at once for the chunks of one message, of whatever size."""
_MOST_AHEAD: Final = 32
_BYTES_AHEAD: Final = 2 << 20
"""Bytes that these may bring: what a fast line holds over a far distance."""
_LEAST_BYTES_AHEAD: Final = 64 << 10


class Interrupted(Exception):
    """`Wait.interrupt` ended this pop; never a user's error, the caller looks up why."""


class Wait:
    """A connection for popping, used by one thread at a time; `interrupt` may come from any.

    Attributes:
        purpose: (peer, tag, since) of the receive that uses it now; None while it is idle.
            For the endpoint's eyes only.
        give_up: when that receive's timeout is over, monotonic seconds.
        margin: seconds by which a reply may be late before the connection counts as broken.
        cancelled, registered: for the endpoint's use.
    """

    __slots__ = (
        "_broker",
        "_bytes_ahead",
        "_connection",
        "_interrupted",
        "_on_open",
        "_posted",
        "cancelled",
        "give_up",
        "margin",
        "purpose",
        "registered",
    )

    def __init__(self, broker: Broker, on_open: Callable[[], None]) -> None:
        """Args: the broker; what to call whenever a new connection to it works."""
        self._broker = broker
        self._on_open = on_open
        self.margin = min(_LONGEST_MARGIN, broker.timeout)
        self._connection: BrokerConnection | None = None
        self._interrupted = False
        self._posted = 0
        self._bytes_ahead = _BYTES_AHEAD
        self.purpose: tuple[str, str, float] | None = None
        self.give_up = 0.0
        self.cancelled = False
        self.registered = False

    # The four ways to pop begin and end alike; tests/broker/test_inbox.py holds them equal. The end
    # is `_ended`. The beginning stands in each of them, so that a message costs no call more.

    def pop(self, names: Sequence[bytes], timeout: float) -> tuple[bytes, Buffer] | None:
        """Take the first element of the first of these lists that has one.

        Args:
            names: lists in one Cluster slot, of control frames or hellos: of small elements.
            timeout: seconds to wait, finite and above 0.

        Returns:
            (name, element), or None if none came in time.

        Raises:
            Interrupted: by another thread. The next pop is not.
            BrokerError: the broker failed; what it may have popped is lost.
        """
        connection = self._connection
        try:
            if connection is None:
                connection = self._open()
            # Whoever interrupts sets the flag before it looks for the connection.
            if self._interrupted:
                raise Interrupted
            connection.write((pack_blpop(names, timeout),))
            reply = connection.read(timeout + self.margin, CONTROL)
            if reply is None:
                if self._interrupted:
                    raise Interrupted
                return None
            return _popped_untrusted(reply, names, self._broker.label)
        except BaseException as error:
            raise self._ended(error) from None

    def pop_one(self, name: bytes, timeout: float) -> Buffer | None:
        """As `pop`, of one list: the element, or None if none came in time."""
        connection = self._connection
        try:
            if connection is None:
                connection = self._open()
            if self._interrupted:
                raise Interrupted
            element = connection.pop(name, timeout, self.margin)
            if type(element) is bytes:  # nearly always
                return element
            if element is None and self._interrupted:
                raise Interrupted
            return _element_untrusted(element, self._broker.label)
        except BaseException as error:
            raise self._ended(error) from None

    def pop_of_many(self, name: bytes, timeout: float, count: int, size: int) -> Buffer | None:
        """As `pop_one`, of a list onto which ``count`` elements come one after another.

        BLPOPs for the next are under way already when this returns, so that the line does not
        lie idle for a round trip. `end_many` ends that.

        Args:
            size: of an element, about, in bytes.
        """
        connection = self._connection
        try:
            if connection is None:
                connection = self._open()
            if self._interrupted:
                raise Interrupted
            ahead = min(_MOST_AHEAD, max(_LEAST_AHEAD, self._bytes_ahead // max(1, size)), count)
            more = ahead - self._posted
            if more > 0:
                connection.write((pack_blpops((name,) * more, timeout),))
                self._posted += more
            if not connection.wait_readable(timeout):
                return None
            element = connection.read_popped(name, self.margin)
            self._posted -= 1
            if element is None and self._interrupted:
                raise Interrupted
            return _element_untrusted(element, self._broker.label)
        except BaseException as error:
            if isinstance(error, BrokerError) and not self._interrupted:
                # Perhaps it was too much: some brokers end connections to which they owe much.
                self._bytes_ahead = max(_LEAST_BYTES_AHEAD, self._bytes_ahead // 4)
            raise self._ended(error) from None

    def read_posted(
        self, name: bytes, blpop_timeout: float | None, patience: float
    ) -> Buffer | None:
        """The reply to the earliest BLPOP posted and not read yet.

        Args:
            name: the list that it was posted for.
            blpop_timeout: as it was posted with; None waits ``patience`` seconds only.

        Returns:
            The element, or None if the BLPOP ended without one.

        Raises:
            TimeoutError: nothing came within ``patience``; the connection is as before.
            Interrupted: by another thread; the connection is closed.
            BrokerError: the broker failed; the connection is closed.
        """
        connection = self._connection
        if self._interrupted or connection is None:
            raise self._ended(Interrupted())
        if blpop_timeout is None and not connection.wait_readable(patience):
            raise TimeoutError
        try:
            element = connection.read_popped(name, (blpop_timeout or 0.0) + self.margin)
            if type(element) is bytes:  # nearly always
                return element
            return _element_untrusted(element, self._broker.label)
        except BaseException as error:
            raise self._ended(error) from None

    def end_many(self) -> None:
        """No more is to be read of what `pop_of_many` asked for."""
        if self._posted:
            self.disconnect()

    def post(self, names: Sequence[bytes], timeout: float) -> None:
        """Send a BLPOP for each of these lists ahead; each owes one `read_posted`.

        Raises:
            BrokerError: the broker failed; the connection is closed.
        """
        connection = self._connection or self._open()
        connection.write((pack_blpops(names, timeout),))

    def pop_now(self, name: bytes) -> Buffer | None:
        """Take the first element of a list if there is one, without waiting.

        Raises:
            BrokerError: the broker failed.
        """
        try:
            connection = self._connection or self._open()
            element = connection.execute(b"LPOP", name, timeout=self._broker.timeout, most=ELEMENT)
            if element is None:
                return None
            return _popped_untrusted([name, element], (name,), self._broker.label)[1]
        except BaseException:
            self.disconnect()
            raise

    def interrupt(self) -> None:
        """End the pop that is under way, or the next one, with `Interrupted`.

        What it may just have popped is lost.
        """
        self._interrupted = True
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def connect(self) -> None:
        """Open the connection now, instead of at the first pop.

        Raises:
            BrokerError: the broker failed.
        """
        if self._connection is None:
            self._open()

    def _open(self) -> BrokerConnection:
        connection = self._connection = self._broker.open_answering()
        self._on_open()
        return connection

    def _ended(self, error: BaseException) -> BaseException:
        """Close the connection, which may be answering the wrong question; say what to raise."""
        self.disconnect()
        interrupted, self._interrupted = self._interrupted, False
        return Interrupted() if interrupted else error

    def die_in_child(self) -> None:
        """Forget the connection, and open none any more."""
        self._connection = None
        self._broker = cast("Broker", Dead(used_after_fork("the inbox")))

    def disconnect(self) -> None:
        """Close the connection; the next pop opens one."""
        connection, self._connection = self._connection, None
        self._posted = 0
        if connection is not None:
            connection.close()


class Inbox:
    """What one party takes; as many connections as threads that wait at once."""

    def __init__(self, broker: Broker, on_open: Callable[[], None] = lambda: None) -> None:
        """Args: the broker; what to call whenever a new connection to it works."""
        self._broker = broker
        self._on_open = on_open
        self._idle: deque[Wait] = deque()
        self._all: list[Wait] = []
        self._closed = False
        dies_in_child(self)

    def acquire(self) -> Wait:
        """A `Wait` for the calling thread, to be given back with `release`.

        Raises:
            EndpointClosed: after `close`.
        """
        try:
            return self._idle.pop()
        except IndexError:
            if self._closed:
                raise EndpointClosed(
                    "the endpoint is closed: open one with redislink.connect()"
                ) from None
            wait = Wait(self._broker, self._on_open)
            self._all.append(wait)
            return wait

    def release(self, wait: Wait) -> None:
        """Give back what `acquire` gave."""
        wait.purpose = None
        wait.cancelled = wait.registered = False
        if self._closed:
            wait.disconnect()
        else:
            self._idle.append(wait)

    def discard(self, wait: Wait) -> None:
        """Forget what `acquire` gave; its connection is closed by whoever used it."""
        if wait in self._all:
            self._all.remove(wait)

    def waits(self) -> list[Wait]:
        """All that are in use, and perhaps some that are not."""
        return [wait for wait in self._all if wait.purpose is not None]

    def close(self) -> None:
        """Close every idle connection, and each other one when it is given back."""
        self._closed = True
        while self._idle:
            try:
                self._idle.pop().disconnect()
            except IndexError:
                return

    def die_in_child(self) -> None:
        """Forget every connection: `acquire` raises EndpointClosed."""
        self._closed = True
        self._idle.clear()
        for wait in self._all:
            wait.die_in_child()


def _element_untrusted(reply: Any, label: str) -> Buffer | None:
    if reply is None or type(reply) is bytes or type(reply) is memoryview:
        return reply
    raise _nonsense(label)


def _popped_untrusted(reply: Any, names: Sequence[bytes], label: str) -> tuple[bytes, Buffer]:
    if isinstance(reply, list) and len(reply) == 2:
        name, element = reply
        if isinstance(element, bytes | memoryview) and isinstance(name, bytes) and name in names:
            return name, element
    raise _nonsense(label)


def _nonsense(label: str) -> BrokerRefused:
    return BrokerRefused(
        f"broker {label}: answered a pop with something else than an element of one of the lists "
        "asked for: check that it is a Redis or Valkey server"
    )
