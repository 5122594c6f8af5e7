"""`PartyClaim`: at most one process runs as a party of a session.

A string key with a time to live holds the instance of the run that claims the party. A
thread renews it; when the process dies it lapses. A second process sees either that the
claim is being renewed (somebody lives: `PartyTaken`), or that it lapses (nobody does).
Both are told from the time that the claim has to live, as the broker counts it. Where its clock
went back, a dead run's claim has longer than any run asks for; a living run would renew it.
The broker is not trusted with this: two runs that both got past it are told apart by their
instances in the handshake.

The same thread, on the same connection, also writes what the party says of itself
(`protocol.status`). That is for operators alone: whatever happens to it, the claim is renewed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final, cast

from redislink.broker.broker import Broker
from redislink.broker.connection import BrokerConnection
from redislink.broker.outage import Outage
from redislink.errors import (
    BrokerError,
    BrokerPermissionError,
    BrokerRefused,
    BrokerUnreachable,
    PartyTaken,
)
from redislink.forking import Dead, dies_in_child, used_after_fork
from redislink.logs import PartyLogger

_LEASE_MS: Final = 6000
_RENEW_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.25
_RENEWALS: Final = 2
"""As many show that somebody renews: a clock that goes back by a second looks like one."""
_TOLERANCE_MS: Final = 50
_LONGEST_WAIT: Final = 3 * _LEASE_MS / 1000
_PINGS: Final = 3
_NO_EXPIRY: Final = -1
"""What PTTL gives for a key that stays."""
_FIRST_TRIES: Final = 3


class PartyClaim:
    """One run's claim to be a party; `acquire`, then `release`."""

    def __init__(
        self, broker: Broker, key: bytes, instance: bytes, who: str, log: PartyLogger
    ) -> None:
        """Args: key of the claim, 8-byte instance of this run, how to call it in messages, log."""
        self._log = log
        self._broker = broker
        self._key = key
        self._instance = instance.hex().encode()
        self._who = who
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: BrokerConnection | None = None
        self._status: tuple[bytes, Callable[[], bytes]] | None = None
        self._may_publish = True
        self.instance = instance.hex()
        self.since = time.monotonic()
        """When this run began."""
        self.round_trip = float("inf")
        """Seconds from here to the broker and back, the shortest of a few; after `acquire`."""
        self.last_round_trip = float("inf")
        """The same, as it was when the claim was last renewed."""
        dies_in_child(self)

    def acquire(self, outage: Outage) -> None:
        """Claim the party, waiting at most one lease (6 s) for a dead run's claim to lapse, or to
        be renewed where the broker's clock went back.

        A broker that is not reached in a few tries is an error at once; one that goes away
        later, or says that it cannot serve just now, has time to come back.

        Raises:
            PartyTaken: another process renews its claim.
            BrokerError: the broker is out of reach or refuses, or answers nonsense.
        """
        last_left: float = float("inf")
        renewals = 0
        beyond_since: float | None = None
        give_up = time.monotonic() + _LONGEST_WAIT
        failures = 0
        is_there = False
        while True:
            try:
                connection = self._connection
                if connection is None or not connection.usable:
                    connection = self._connection = self._broker.open()
                self._measure(connection)
                if self._set(connection):
                    break
                left = self._call(connection, b"PTTL", self._key)
                outage.ended()
            except BrokerError as error:
                failures += 1
                is_there = is_there or not isinstance(error, BrokerUnreachable)
                if self._connection is None and not is_there and failures >= _FIRST_TRIES:
                    raise
                time.sleep(outage.failed(error))
                continue
            if not isinstance(left, int):
                connection.close()
                raise BrokerRefused(f"broker {self._broker.label}: PTTL did not give a number")
            now = time.monotonic()
            if left == _NO_EXPIRY or left > _LEASE_MS + _TOLERANCE_MS:
                # No run asks for so long, and one that lived would have renewed it.
                beyond_since = now if beyond_since is None else beyond_since
                if now - beyond_since >= _LEASE_MS / 1000:
                    self._take_over()
                    continue
            else:
                beyond_since = None
                if left > last_left + _TOLERANCE_MS:
                    renewals += 1
                last_left = left if left >= 0 else last_left
            # A claim that neither lapses nor is renewed is none of ours: do not wait for ever.
            if renewals >= _RENEWALS or now > give_up:
                connection.close()
                raise PartyTaken(
                    f"{self._who} already runs in another process: end that one, "
                    "or run as another party or session"
                )
            time.sleep(_POLL_SECONDS)
        outage.ended()
        self._thread = threading.Thread(target=self._renew, name="redislink-claim", daemon=True)
        self._thread.start()

    def _take_over(self) -> None:
        """Remove a dead run's claim that does not lapse."""
        self._log.warning(
            "%s: the claim of a dead run does not lapse, as the broker's clock went back: removed",
            self._who,
        )
        with contextlib.suppress(BrokerError):  # `acquire` tries again
            if self._connection is not None:
                self._call(self._connection, b"DEL", self._key)

    def publish(self, key: bytes, snapshot: Callable[[], bytes]) -> None:
        """From now on write a status beside the claim, about once a second.

        Ends by itself, with a line in the debug log, where this party's user may not write it.

        Args:
            key: to write to; it expires with the claim.
            snapshot: gives what to write; called in the claim's thread.
        """
        self._status = (key, snapshot)

    def release(self, timeout: float | None = None) -> None:
        """Give the claim up, if it is still ours; never raises.

        Args:
            timeout: seconds for each of the three things that this waits for; None takes the
                broker's.
        """
        self._stop.set()
        if self._thread is None and self._connection is None:
            return
        longest = self._broker.timeout if timeout is None else min(timeout, self._broker.timeout)
        if self._thread is not None:
            self._thread.join(longest)
            if self._thread.is_alive():
                return  # it uses the connection
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if connection.execute(b"GET", self._key, timeout=longest) == self._instance:
                mine = [self._key] if self._status is None else [self._key, self._status[0]]
                connection.execute(b"DEL", *mine, timeout=longest)
        except BrokerError:
            self._log.debug("%s: claim not released; it lapses by itself", self._who)
        connection.close()

    def die_in_child(self) -> None:
        """The claim stays the parent's: `release` does nothing here."""
        self._stop = threading.Event()
        self._thread = self._connection = self._status = None
        self._broker = cast("Broker", Dead(used_after_fork(self._who)))

    def _measure(self, connection: BrokerConnection) -> None:
        if self.round_trip == float("inf"):
            for _ in range(_PINGS):
                started = time.monotonic()
                self._call(connection, b"PTTL", self._key)
                self.round_trip = min(self.round_trip, time.monotonic() - started)
                self.last_round_trip = self.round_trip

    def _set(self, connection: BrokerConnection) -> bool:
        reply = self._call(connection, b"SET", self._key, self._instance, b"PX", _LEASE_MS, b"NX")
        # The reply to an earlier one may have been lost.
        return reply is not None or self._call(connection, b"GET", self._key) == self._instance

    def _renew(self) -> None:
        while not self._stop.wait(_RENEW_SECONDS):
            try:
                connection = self._connection
                if connection is None or not connection.usable:
                    connection = self._connection = self._broker.open()
                started = time.monotonic()
                holder = self._call(connection, b"GET", self._key)
                self.last_round_trip = time.monotonic() - started
                if holder == self._instance:
                    self._call(connection, b"PEXPIRE", self._key, _LEASE_MS)
                elif not self._set(connection):
                    self._log.error("%s now also runs in another process: end one", self._who)
                    continue
                self._publish(connection)
            except BrokerError as error:
                self._log.debug("claim not renewed: %s", error)

    def _publish(self, connection: BrokerConnection) -> None:
        if self._status is None or not self._may_publish:
            return
        key, snapshot = self._status
        try:
            self._call(connection, b"SET", key, snapshot(), b"PX", _LEASE_MS)
        except BrokerPermissionError as error:
            self._may_publish = False  # a user of an older redislink acl
            self._log.debug("%s: publishes no status: %s", self._who, error)
        except BrokerError as error:
            self._log.debug("%s: status not published: %s", self._who, error)
        except Exception as error:  # noqa: BLE001 - see the top: the claim must live on
            self._may_publish = False
            self._log.debug("%s: publishes no status: %s", self._who, type(error).__name__)

    def _call(self, connection: BrokerConnection, *command: bytes | int) -> Any:
        return connection.execute(*command, timeout=self._broker.timeout)
