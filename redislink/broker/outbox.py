"""The outbox: pushes frames onto lists, and does not wait for the broker to say so.

Rules:
- A write goes out in one piece and returns; its replies are read off after some more writes
  and by `collect`, which says of each push whether the broker had room for it.
- Nothing here is sent twice. When the connection breaks, the outbox drops what is written
  until `reconnect`; what was under way then is for delivery to send again.
- One lock; writes from several threads go out in some order, each whole.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from redislink.broker.connect import Broker, BrokerConnection
from redislink.broker.wire import Buffer, pack, pack_push
from redislink.errors import BrokerBusy, BrokerError, BrokerUnreachable, EndpointClosed

_MAX_UNREAD: Final = 500
_READ_FROM: Final = 16
"""Writes that owe replies, from which on the replies are looked for: a system call each time."""
_IDLE_SECONDS: Final = 0.05


class Outbox:
    """All that one party sends, on one connection."""

    def __init__(self, broker: Broker, ttl: int) -> None:
        """Args: seconds that a list lives after the last push onto it."""
        self._broker = broker
        self._ttl_ms = ttl * 1000
        self._lock = threading.Lock()
        self._connection: BrokerConnection | None = None
        self._unread: deque[tuple[int, object]] = deque()
        self._read_of_first = 0
        """Replies to the earliest of them that were read."""
        self._first_refused = False
        self._unread_since = 0.0
        self._answered: list[tuple[object, bool]] = []
        self._written_at = 0.0
        self._error: BrokerError | None = BrokerUnreachable(
            f"broker {broker.label}: the outbox has not connected yet"
        )
        self._closed = False

    @property
    def error(self) -> BrokerError | None:
        """Why there is no connection; None while there is. `reconnect` makes one."""
        return self._error

    @property
    def has_unread(self) -> bool:
        """True while the broker owes replies."""
        return bool(self._unread)

    def push(
        self,
        name: bytes,
        element: tuple[bytes, Buffer],
        token: object = None,
        *,
        clear: bool = False,
        ttl: int | None = None,
    ) -> None:
        """Append an element to a list; returns at once.

        Args:
            element: in two parts, of which the second is not copied where it is large.
            token: comes out of `collect` when the broker has answered.
            clear: empty the list first.
            ttl: seconds that the list lives, if not as usual.

        Raises:
            EndpointClosed: after `close`.
        """
        ttl_ms = self._ttl_ms if ttl is None else ttl * 1000
        self._write(pack_push(name, element, ttl_ms, clear), 3 if clear else 2, token)

    def delete(self, *names: bytes) -> None:
        """Remove lists; returns at once.

        Raises:
            EndpointClosed: after `close`.
        """
        self._write([pack((b"DEL", *names))], 1, None)

    def collect(self) -> list[tuple[object, bool]]:
        """(token, taken) of each push that the broker has answered since the last call.

        ``taken`` is False where it had no memory for the element.
        """
        with self._lock:
            connection = self._connection
            if connection is not None and not self._closed:
                try:
                    self._read_ready(connection)
                    overdue = time.monotonic() - self._unread_since > self._broker.timeout
                    if self._unread and overdue:
                        # Not read with a timeout: it would hold up every sender as long again.
                        raise BrokerUnreachable(
                            f"broker {self._broker.label}: no reply for {self._broker.timeout:g} s"
                        )
                except BrokerError as error:
                    self._break(error)
            answered, self._answered = self._answered, []
        return answered

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the broker has answered everything; False if the connection broke.

        Args:
            timeout: seconds for all of it, after which the connection counts as broken; None
                allows ``reply_timeout`` for each reply.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            connection = self._connection
            if connection is None:
                return False
            try:
                while self._unread:
                    left = None if deadline is None else max(0.001, deadline - time.monotonic())
                    self._read_one(connection, left)
            except BrokerError as error:
                self._break(error)
                return False
            return True

    def reconnect(self) -> None:
        """Open the connection, or a new one after it broke.

        Raises:
            BrokerError: not now.
        """
        connection = self._broker.open_answering()
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._connection = connection
            self._error = None

    def close(self) -> None:
        """Close the connection; later writes raise EndpointClosed."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _write(self, pieces: Sequence[Buffer], replies: int, token: object) -> None:
        with self._lock:
            connection = self._connection
            if connection is None:
                if self._closed:
                    raise EndpointClosed(
                        "the endpoint is closed: open one with redislink.connect()"
                    )
                return
            try:
                idle_since, self._written_at = self._written_at, time.monotonic()
                if self._written_at - idle_since >= _IDLE_SECONDS:
                    self._check_alive(connection)
                connection.write(pieces)
                if not self._unread:
                    self._unread_since = self._written_at
                self._unread.append((replies, token))
                if len(self._unread) >= _READ_FROM:
                    # After the write, which somebody waits for, and not before it.
                    self._read_ready(connection)
                    while len(self._unread) > _MAX_UNREAD:
                        self._read_one(connection)
            except BrokerError as error:
                self._break(error)

    def _break(self, error: BrokerError) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._unread.clear()
        self._read_of_first = 0
        self._first_refused = False
        self._error = error

    def _check_alive(self, connection: BrokerConnection) -> None:
        """Notice that an idle connection has ended before writing to it, and losing that."""
        self._read_ready(connection)
        if not self._unread and connection.readable():
            connection.read(self._broker.timeout)  # raises: nothing was asked
            raise BrokerUnreachable(f"broker {self._broker.label}: it said something unasked")

    def _read_ready(self, connection: BrokerConnection) -> None:
        while self._unread and connection.readable():
            integers = connection.read_integers()
            if not integers:
                self._read_one(connection)
                continue
            self._unread_since = time.monotonic()
            integers += self._read_of_first
            while self._unread and integers >= self._unread[0][0]:
                replies, token = self._unread.popleft()
                integers -= replies
                if token is not None:
                    self._answered.append((token, not self._first_refused))
                self._first_refused = False
            self._read_of_first = integers

    def _read_one(self, connection: BrokerConnection, timeout: float | None = None) -> None:
        """Read all that the broker still owes to the earliest write."""
        longest = self._broker.timeout if timeout is None else min(timeout, self._broker.timeout)
        replies, token = self._unread[0]
        while self._read_of_first < replies:
            try:
                connection.read(longest)
            except BrokerBusy:
                self._first_refused = True
            self._read_of_first += 1
        self._unread.popleft()
        self._unread_since = time.monotonic()
        if token is not None:
            self._answered.append((token, not self._first_refused))
        self._read_of_first = 0
        self._first_refused = False
