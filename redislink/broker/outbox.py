"""The outbox: pushes frames onto lists, and does not wait for the broker to say so.

Rules:
- A push writes RPUSH and PEXPIRE in one go and returns; replies are read off before the next
  push and by `flush`. An error reply therefore surfaces at the next call, and the outbox is
  broken from then on: what came after the failed push may or may not stand in the lists.
- One lock; pushes from several threads go out in some order, each whole.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from redislink.broker.connect import Broker, BrokerConnection
from redislink.errors import BrokerError, EndpointClosed

_MAX_UNREAD_REPLIES = 1000


class Outbox:
    """All that one party sends, on one connection that is opened by the first push."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._connection: BrokerConnection | None = None
        self._unread = 0
        self._error: BrokerError | None = None
        self._closed = False

    def push(self, name: bytes, element: Sequence[bytes | memoryview], ttl: int) -> None:
        """Append one element, given in pieces, to a list that lives ``ttl`` more seconds.

        Raises:
            BrokerError: this push, or an earlier one, failed.
            EndpointClosed: after `close`.
        """
        whole = element[0] if len(element) == 1 else b"".join(element)
        self._write([(b"RPUSH", name, whole), (b"PEXPIRE", name, ttl * 1000)])

    def replace(self, name: bytes, element: bytes, ttl: int) -> None:
        """Make a list hold this element alone."""
        self._write([(b"DEL", name), (b"RPUSH", name, element), (b"PEXPIRE", name, ttl * 1000)])

    def delete(self, *names: bytes) -> None:
        """Remove lists."""
        if names:
            self._write([(b"DEL", *names)])

    def flush(self) -> None:
        """Wait until the broker has taken everything pushed so far.

        Raises:
            BrokerError: a push failed.
        """
        with self._lock:
            self._check()
            if self._connection is not None:
                self._drain(self._connection, keep=0)

    def length(self, name: bytes) -> int:
        """How many elements of a list nobody has taken yet."""
        with self._lock:
            self._check()
            if self._connection is None:
                return 0
            try:
                self._drain(self._connection, keep=0)
                reply = self._connection.execute(b"LLEN", name, timeout=self._broker.timeout)
            except BrokerError as error:
                self._error = error
                raise
            return int(reply)

    def close(self) -> None:
        """Close the connection; later calls raise EndpointClosed."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _write(self, commands: Sequence[Sequence[bytes | memoryview | int]]) -> None:
        with self._lock:
            self._check()
            try:
                if self._connection is None:
                    self._connection = self._broker.open()
                while self._unread and self._connection.readable():
                    self._read_one(self._connection)
                if self._unread >= _MAX_UNREAD_REPLIES:
                    self._drain(self._connection, keep=_MAX_UNREAD_REPLIES // 2)
                self._connection.send(commands)
                self._unread += len(commands)
            except BrokerError as error:
                self._error = error
                raise

    def _check(self) -> None:
        if self._closed:
            raise EndpointClosed("the endpoint is closed: open a new one with redislink.connect()")
        if self._error is not None:
            raise self._error

    def _drain(self, connection: BrokerConnection, keep: int) -> None:
        while self._unread > keep:
            self._read_one(connection)

    def _read_one(self, connection: BrokerConnection) -> None:
        try:
            connection.read(self._broker.timeout)
        except BrokerError as error:
            self._error = error
            raise
        self._unread -= 1
