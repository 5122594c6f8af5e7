"""The inbox: pops elements off lists with BLPOP, in the calling thread.

Rules:
- A `Wait` is a connection on which one thread at a time waits. If a pop ends without a reply, its
  connection is closed, because a late reply would answer the wrong question.
- Every BLPOP has a finite timeout; its reply may be late by a margin.
- The broker is not trusted: a reply that does not answer the request raises `BrokerRefused`.
- The path of a message takes no lock: ``deque`` and attribute accesses are atomic.
"""

# ruff: noqa: BLE001 - everything caught here is raised again, through `_ended`

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol, cast

from redislink.broker.broker import Broker
from redislink.broker.busy_poll import BusyPoll
from redislink.broker.connection import BrokerConnection
from redislink.broker.wire import CONTROL, ELEMENT, Buffer, pack_blpop, pack_blpops
from redislink.errors import BrokerError, BrokerRefused, BrokerUnreachable, EndpointClosed
from redislink.forking import Dead, dies_in_child, used_after_fork

_LONGEST_MARGIN: Final = 5.0
"""Seconds by which a BLPOP's reply may be late before the connection counts as broken."""
_LATE_STEP: Final = 0.1
"""Seconds between two looks at a reply that is late."""
_LEAST_AHEAD: Final = 2
"""The fewest BLPOPs under way at once for the chunks of one message, whatever their size."""
_MOST_AHEAD: Final = 32
_BYTES_AHEAD: Final = 2 << 20
"""Bytes that the BLPOPs under way may bring: what a fast long-distance line holds."""
_LEAST_BYTES_AHEAD: Final = 64 << 10
LOOK_SECONDS: Final = 0.05
"""Seconds between two looks of a thread that pops for others, at what else it has to do."""


class Late(Protocol):
    """What to do while a pop waits, and what becomes of a reply that is late."""

    @property
    def patience(self) -> float:
        """The seconds that a reply may be late before `is_dead` is asked."""
        ...

    def look(self) -> object:
        """Do something else; called about every `LOOK_SECONDS` until the reply is late."""
        ...

    def is_dead(self, broker: Broker, silent_since: float) -> bool:
        """Return whether a connection is dead; called again and again while it is silent.

        Args:
            broker: its server.
            silent_since: when the reply was due; monotonic seconds.

        Raises:
            BrokerError: do not wait any more.
        """
        ...


class Interrupted(Exception):
    """`Wait.interrupt` ended this pop. Users never see it: the caller looks up the reason."""


class Wait:
    """A connection for popping, used by one thread at a time; `interrupt` may come from any.

    Attributes:
        purpose: (peer, tag, since) of the receive that uses it now; None while it is idle.
            Only the endpoint uses it.
        give_up: when that receive times out; monotonic seconds.
        margin: seconds by which a reply may be late before the connection counts as broken.
        cancelled, registered: for the endpoint's use.
        may_have_popped: whether the connection broke after it was open, so that an element may be
            lost; of the last failure.
    """

    __slots__ = (
        "_broker",
        "_busy_poll",
        "_bytes_ahead",
        "_came",
        "_connection",
        "_interrupted",
        "_posted",
        "cancelled",
        "give_up",
        "margin",
        "may_have_popped",
        "purpose",
        "registered",
    )

    def __init__(self, broker: Broker, busy_poll: BusyPoll | None = None) -> None:
        """Not for users.

        Args:
            broker: the broker to pop from.
            busy_poll: polls before `pop_one` and `read_posted` sleep; None: they sleep at once.
        """
        self._broker = broker
        self._busy_poll = busy_poll
        self.margin = min(_LONGEST_MARGIN, broker.timeout)
        self._connection: BrokerConnection | None = None
        self._interrupted = False
        self._posted = 0
        self._came: int | None = None
        self._bytes_ahead = _BYTES_AHEAD
        self.purpose: tuple[str, str, float] | None = None
        self.give_up = 0.0
        self.cancelled = False
        self.registered = False
        self.may_have_popped = False

    # The four ways to pop begin and end alike; tests/broker/test_inbox.py keeps them equal. They
    # share their end, `_ended`. Each repeats the beginning, which saves every message a call.

    def pop(
        self, names: Sequence[bytes], timeout: float, late: Late | None = None
    ) -> tuple[bytes, Buffer] | None:
        """Pop the first element of the first of these lists that has one.

        Args:
            names: lists in one Cluster slot, with small elements: control frames or hellos.
            timeout: seconds to wait, finite and above 0.
            late: called while nothing comes, and decides what becomes of a reply that is late; None
                allows the margin, and then the connection counts as broken.

        Returns:
            (name, element), or None if no element came in time.

        Raises:
            Interrupted: another thread interrupted this pop; the next one works again.
            BrokerError: the broker failed; an element that it popped is lost.
        """
        connection = self._connection
        try:
            if connection is None:
                connection = self._open()
            # `interrupt` sets the flag before it looks for the connection.
            if self._interrupted:
                raise Interrupted
            connection.write((pack_blpop(names, timeout),))
            if late is not None:
                self._wait_late(connection, timeout, late)
            reply = connection.read(timeout + self.margin, CONTROL)
            if reply is None:
                if self._interrupted:
                    raise Interrupted
                return None
            return popped_untrusted(reply, names, self._broker.label)
        except BaseException as error:
            raise self._ended(error) from None

    def pop_one(self, name: bytes, timeout: float) -> Buffer | None:
        """Like `pop`, from one list: return the element, or None if none came in time."""
        connection = self._connection
        try:
            if connection is None:
                connection = self._open()
            if self._interrupted:
                raise Interrupted
            if self._busy_poll is None:
                element = connection.pop(name, timeout, self.margin)
            else:
                connection.write((pack_blpops((name,), timeout),))
                self._busy_poll.wait(connection)
                element = connection.read_popped(name, timeout + self.margin)
            if type(element) is bytes:  # nearly always
                return element
            if element is None and self._interrupted:
                raise Interrupted
            return _element_untrusted(element, self._broker.label)
        except BaseException as error:
            raise self._ended(error) from None

    def pop_of_many(self, name: bytes, timeout: float, count: int, size: int) -> Buffer | None:
        """Like `pop_one`, from a list that gets ``count`` elements, one after another.

        When this returns, BLPOPs for the next elements are already under way, so the line is not
        idle for a round trip. Call `end_many` at the end.

        Args:
            name, timeout: as for `pop`.
            count: how many elements are still missing.
            size: the approximate size of an element, in bytes.
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
                # Perhaps we asked for too much: some brokers close connections that they owe much.
                self._bytes_ahead = max(_LEAST_BYTES_AHEAD, self._bytes_ahead // 4)
            raise self._ended(error) from None

    def wait_posted(self, patience: float) -> bool:
        """Wait until the reply to the earliest posted BLPOP begins to arrive.

        Args:
            patience: seconds.

        Returns:
            False if nothing came in time; the connection is unchanged. If the connection has
            ended, True: `read_posted` says so.
        """
        connection = self._connection
        return connection is None or connection.wait_readable(patience)

    def read_posted(self, name: bytes, timeout: float) -> Buffer | None:
        """Return the reply to the earliest posted BLPOP that has not been read yet.

        Args:
            name: the BLPOP's list.
            timeout: the BLPOP's timeout, in seconds.

        Returns:
            The element, or None if the BLPOP ended without one.

        Raises:
            Interrupted: another thread interrupted this; the connection is closed.
            BrokerError: the broker failed; the connection is closed.
        """
        connection = self._connection
        if self._interrupted or connection is None:
            raise self._ended(Interrupted())
        if self._busy_poll is not None:
            self._busy_poll.wait(connection)
        try:
            element = connection.read_popped(name, timeout + self.margin)
            if type(element) is bytes:  # nearly always
                return element
            return _element_untrusted(element, self._broker.label)
        except BaseException as error:
            raise self._ended(error) from None

    def end_many(self) -> None:
        """End what `pop_of_many` began: give up its BLPOPs that are still under way."""
        if self._posted:
            self.disconnect()

    def post(self, names: Sequence[bytes], timeout: float) -> None:
        """Send a BLPOP for each of these lists in advance. Call `read_posted` once for each.

        Call `connect` before: this opens no connection, because its caller holds a lock.

        Raises:
            BrokerError: the broker failed; the connection is closed.
        """
        connection = self._connection
        if connection is None:
            raise BrokerUnreachable(f"broker {self._broker.label}: this connection has ended")
        connection.write((pack_blpops(names, timeout),))

    def pop_now(self, name: bytes) -> Buffer | None:
        """Pop the first element of a list if there is one, without waiting.

        Raises:
            BrokerError: the broker failed.
        """
        try:
            connection = self._connection or self._open()
            element = connection.execute(b"LPOP", name, timeout=self._broker.timeout, most=ELEMENT)
            if element is None:
                return None
            return popped_untrusted([name, element], (name,), self._broker.label)[1]
        except BaseException:
            self.disconnect()
            raise

    def interrupt(self) -> None:
        """End the pop that is under way, or else the next one, with `Interrupted`.

        An element that it has just popped is lost.
        """
        self._interrupted = True
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def _wait_late(self, connection: BrokerConnection, timeout: float, late: Late) -> None:
        """Wait until the reply to a BLPOP begins to arrive, or another thread interrupts this.

        Raises:
            BrokerUnreachable: ``late`` says that the connection is dead.
            BrokerError: ``late`` waits no more.
        """
        due = time.monotonic() + timeout
        slice_ = LOOK_SECONDS
        while not connection.wait_readable(slice_) and not self._interrupted:
            if time.monotonic() < due + late.patience:
                late.look()
                continue
            if late.is_dead(self._broker, due):
                raise BrokerUnreachable(
                    f"broker {self._broker.label}: a connection has gone silent, while a new one "
                    "is answered: something on the way has dropped it"
                )
            slice_ = _LATE_STEP

    def has_moved(self) -> bool:
        """Return whether anything came on the connection since the last call, or waits to be read.

        Any thread may call it. Where nobody counts what comes, it is False.
        """
        connection = self._connection
        traffic = None if connection is None else connection.traffic
        came = None if traffic is None else traffic.received
        came, self._came = self._came, came
        return came != self._came or (traffic is not None and traffic.is_unread)

    def connect(self) -> None:
        """Open the connection now instead of at the first pop.

        Raises:
            BrokerError: the broker failed.
        """
        if self._connection is None:
            self._open()

    def _open(self) -> BrokerConnection:
        connection = self._connection = self._broker.open_answering()
        traffic = connection.traffic  # what came before was on another connection
        self._came = None if traffic is None else traffic.received
        return connection

    def _ended(self, error: BaseException) -> BaseException:
        """Close the connection, which may be out of step, and return the error to raise."""
        self.may_have_popped = self._connection is not None
        self.disconnect()
        interrupted, self._interrupted = self._interrupted, False
        return Interrupted() if interrupted else error

    def die_in_child(self) -> None:
        """In a forked child: forget the connection, and open no more."""
        self._connection = None
        self._broker = cast("Broker", Dead(used_after_fork("the inbox")))

    def disconnect(self) -> None:
        """Close the connection; the next pop opens one."""
        connection, self._connection = self._connection, None
        self._posted = 0
        if connection is not None:
            connection.close()


class Inbox:
    """Receives everything for one party, on as many connections as threads wait at once."""

    def __init__(self, broker: Broker) -> None:
        """Not for users.

        Args:
            broker: the broker to pop from.
        """
        self._broker = broker
        self._idle: deque[Wait] = deque()
        self._all: list[Wait] = []
        self._closed = False
        self._busy_seconds = 0.0
        dies_in_child(self)

    def poll_busily(self, seconds: float) -> None:
        """Have the waits that are made from now on poll for so long before they sleep."""
        self._busy_seconds = seconds

    def acquire(self) -> Wait:
        """Return a `Wait` for the calling thread, which must `release` it.

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
            seconds = self._busy_seconds
            wait = Wait(self._broker, BusyPoll(seconds) if seconds else None)
            self._all.append(wait)
            return wait

    def release(self, wait: Wait) -> None:
        """Give back a `Wait` that `acquire` returned."""
        wait.purpose = None
        wait.cancelled = wait.registered = False
        if self._closed:
            wait.disconnect()
        else:
            self._idle.append(wait)

    def reopen_idle(self) -> None:
        """Close the connections that nobody uses now; their next use opens others."""
        for _ in range(len(self._idle)):
            try:
                wait = self._idle.popleft()
            except IndexError:
                return
            wait.disconnect()
            self.release(wait)

    def discard(self, wait: Wait) -> None:
        """Forget a `Wait` that `acquire` returned; its user closes the connection."""
        if wait in self._all:
            self._all.remove(wait)

    def waits(self) -> list[Wait]:
        """Return all waits that are in use, and perhaps some that no longer are."""
        return [wait for wait in self._all if wait.purpose is not None]

    def close(self) -> None:
        """Close every idle connection now, and each other one when it is released."""
        self._closed = True
        while self._idle:
            try:
                self._idle.pop().disconnect()
            except IndexError:
                return

    def die_in_child(self) -> None:
        """In a forked child: forget every connection; `acquire` raises EndpointClosed."""
        self._closed = True
        self._idle.clear()
        for wait in self._all:
            wait.die_in_child()


def _element_untrusted(reply: Any, label: str) -> Buffer | None:
    if reply is None or type(reply) is bytes or type(reply) is memoryview:
        return reply
    raise _nonsense(label)


def popped_untrusted(reply: Any, names: Sequence[bytes], label: str) -> tuple[bytes, Buffer]:
    """Return the name and element in a reply to BLPOP of these lists.

    Raises:
        BrokerRefused: it is no such reply.
    """
    if isinstance(reply, list) and len(reply) == 2:
        name, element = reply
        if isinstance(element, bytes | memoryview) and isinstance(name, bytes) and name in names:
            return name, element
    raise _nonsense(label)


def _nonsense(label: str) -> BrokerRefused:
    return BrokerRefused(
        f"broker {label}: did not answer a pop with an element of a list that was asked for: "
        "check that it is a Redis or Valkey server"
    )
