"""`PartyClaim`: at most one process runs as a party of a session.

A string key with a time to live holds the instance of the run that claims the party. A
thread renews it; when the process dies it lapses. A second process sees either that the
claim is being renewed (somebody lives: `PartyTaken`), or that it lapses (nobody does).
The broker is not trusted with this: two runs that both got past it are told apart by their
instances in the handshake.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

from redislink.broker.connect import Broker, BrokerConnection
from redislink.errors import BrokerError, PartyTaken

_LEASE_MS: Final = 6000
_RENEW_SECONDS: Final = 1.5
_POLL_SECONDS: Final = 0.25
_logger = logging.getLogger("redislink")


class PartyClaim:
    """One run's claim to be a party; `acquire`, then `release`."""

    def __init__(self, broker: Broker, key: bytes, instance: bytes, who: str) -> None:
        """Args: key of the claim, 8-byte instance of this run, how to call it in messages."""
        self._broker = broker
        self._key = key
        self._instance = instance.hex().encode()
        self._who = who
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: BrokerConnection | None = None

    def acquire(self) -> None:
        """Claim the party, waiting at most one lease (6 s) for a dead run's claim to lapse.

        Raises:
            PartyTaken: another process renews its claim.
            BrokerError: the broker is out of reach or refuses.
        """
        connection = self._connection = self._broker.open()
        least_left: float = float("inf")
        while not self._set(connection):
            left: int = self._call(connection, b"PTTL", self._key)
            if left > least_left + 50:
                connection.close()
                raise PartyTaken(
                    f"{self._who} already runs in another process: end that one, "
                    "or run as another party or session"
                )
            least_left = min(least_left, left) if left >= 0 else least_left
            time.sleep(_POLL_SECONDS)
        self._thread = threading.Thread(target=self._renew, name="redislink-claim", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the claim up, if it is still ours; never raises."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self._broker.timeout)
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if self._call(connection, b"GET", self._key) == self._instance:
                self._call(connection, b"DEL", self._key)
        except BrokerError:
            _logger.debug("%s: claim not released; it lapses by itself", self._who)
        connection.close()

    def _set(self, connection: BrokerConnection) -> bool:
        reply = self._call(connection, b"SET", self._key, self._instance, b"PX", _LEASE_MS, b"NX")
        return reply is not None

    def _renew(self) -> None:
        while not self._stop.wait(_RENEW_SECONDS):
            try:
                connection = self._connection
                if connection is None or not connection.usable:
                    connection = self._connection = self._broker.open()
                if self._call(connection, b"GET", self._key) == self._instance:
                    self._call(connection, b"PEXPIRE", self._key, _LEASE_MS)
                elif not self._set(connection):
                    _logger.error("%s now also runs in another process: end one", self._who)
            except BrokerError as error:
                _logger.debug("claim not renewed: %s", error)

    def _call(self, connection: BrokerConnection, *command: bytes | int) -> Any:
        return connection.execute(*command, timeout=self._broker.timeout)
