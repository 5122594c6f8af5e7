"""The inbox: takes elements off lists with BLPOP, in the calling thread.

Rules:
- A BLPOP out on a connection owns it. If the wait ends in any other way than by a reply, the
  connection is closed, as a late reply would answer the wrong question.
- BLPOP timeouts are finite; the read deadline is that plus a margin.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from redislink.broker.connect import Broker, BrokerConnection
from redislink.errors import BrokerError, EndpointClosed, RecvCancelled

_READ_MARGIN: Final = 5.0
"""Seconds by which a BLPOP's reply may be late before the connection counts as broken."""


class Wait:
    """A handle on one blocked receive, with which another thread can end it."""

    __slots__ = ("_connection", "_lock", "cancelled")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: BrokerConnection | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """End the receive with RecvCancelled; what it may just have popped is lost."""
        with self._lock:
            self.cancelled = True
            if self._connection is not None:
                self._connection.interrupt()

    def attach(self, connection: BrokerConnection | None) -> None:
        """Say which connection carries the BLPOP; None when it is over."""
        with self._lock:
            self._connection = connection
            if self.cancelled and connection is not None:
                connection.interrupt()


class Inbox:
    """What one party takes; as many connections as threads that wait at once."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._idle: list[BrokerConnection] = []
        self._busy: set[BrokerConnection] = set()
        self._closed = False

    def pop(
        self, names: Sequence[bytes], timeout: float, wait: Wait | None = None
    ) -> tuple[bytes, bytes] | None:
        """Take the first element of the first of these lists that has one.

        Args:
            names: lists in one Cluster slot.
            timeout: seconds to wait, finite and above 0.
            wait: lets another thread cancel this call.

        Returns:
            (name, element), or None if none came in time.

        Raises:
            BrokerError: the broker failed; what it may have popped is lost.
            EndpointClosed: `close` was called, before or while this waited.
            RecvCancelled: ``wait`` was cancelled.
        """
        connection = self._take_connection()
        wait = wait or Wait()
        try:
            wait.attach(connection)
            reply = connection.execute(
                b"BLPOP", *names, f"{timeout:.3f}", timeout=timeout + _READ_MARGIN
            )
        except BrokerError:
            self._check_not_ended(wait)
            raise
        finally:
            wait.attach(None)
            self._give_back(connection)
        if reply is None:
            self._check_not_ended(wait)
        return None if reply is None else (reply[0], reply[1])

    def pop_now(self, name: bytes) -> bytes | None:
        """Take the first element of a list if there is one, without waiting."""
        connection = self._take_connection()
        try:
            element: bytes | None = connection.execute(b"LPOP", name, timeout=self._broker.timeout)
        finally:
            self._give_back(connection)
        return element

    def close(self) -> None:
        """Close every connection; waiting `pop` calls end with EndpointClosed."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for connection in self._busy:
                connection.interrupt()
        for connection in idle:
            connection.close()

    def _take_connection(self) -> BrokerConnection:
        with self._lock:
            self._check_open()
            connection = self._idle.pop() if self._idle else None
            if connection is not None:
                self._busy.add(connection)
                return connection
        connection = self._broker.open()
        with self._lock:
            if not self._closed:
                self._busy.add(connection)
                return connection
        connection.close()
        raise EndpointClosed("the endpoint was closed while a receive began")

    def _give_back(self, connection: BrokerConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
            if connection.usable and not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _check_not_ended(self, wait: Wait) -> None:
        if wait.cancelled:
            raise RecvCancelled("this receive was cancelled: the link it belongs to was aborted")
        if self._closed:
            raise EndpointClosed("the endpoint was closed while a receive waited")

    def _check_open(self) -> None:
        if self._closed:
            raise EndpointClosed("the endpoint is closed: open a new one with redislink.connect()")
