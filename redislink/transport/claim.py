"""`PartyClaim`: makes sure that at most one process runs as a party of a session.

A string key with a time to live holds the instance of the run that claims the party. A thread
renews the key; when the process dies, the key lapses. A second process sees either that the claim
is being renewed (the first is alive: `PartyTaken`), or that it lapses (the first is dead). It
tells the two apart by the key's remaining time to live, as the broker counts it. A process that
knows for sure that the first is dead, because it has locked that one's journal, need not wait. If
the broker's clock went back, a dead run's claim has more time left than any run asks for; a living
run would have renewed it. The broker is not trusted with this: if it lets two runs through, the
handshake tells them apart by their instances.

The same thread also publishes the party's status (`protocol.status`), on the same connection. Only
operators read it: whatever happens to the status, the claim is renewed.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

from redislink.broker.broker import Broker
from redislink.broker.connection import BrokerConnection
from redislink.broker.outage import Outage, Way
from redislink.broker.outbox import push_each
from redislink.broker.wire import Buffer
from redislink.errors import (
    BrokerBusy,
    BrokerError,
    BrokerPermissionError,
    BrokerRefused,
    BrokerUnreachable,
    PartyTaken,
)
from redislink.forking import Dead, dies_in_child, used_after_fork
from redislink.logs import PartyLogger
from redislink.protocol.frame import Frame
from redislink.protocol.handshake import INSTANCE_BYTES
from redislink.transport.measuring import measure_round_trip, measure_uplink
from redislink.transport.peer import Peer

_LEASE_MS: Final = 6000
_RENEW_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.25
_RENEWALS: Final = 2
"""So many renewals prove a living run: a clock that goes back by a second looks like one."""
_TOLERANCE_MS: Final = 50
_LEASES: Final = 3
"""So many leases are the longest that a claim is waited for."""
_LAST_WORDS_TTL: Final = 120
"""Seconds that peers have time to hear them."""
_NO_EXPIRY: Final = -1
"""PTTL's reply for a key without a time to live."""
_FIRST_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Run:
    """What tells one run of a party from others.

    Attributes:
        instance: 8 random bytes.
        before: the instance of an earlier run that has ended for sure; None if none is known.
    """

    instance: bytes = field(default_factory=lambda: secrets.token_bytes(INSTANCE_BYTES))
    before: bytes | None = None


class PartyClaim:
    """One run's claim to be a party; `acquire`, then `release`."""

    def __init__(
        self,
        broker: Broker,
        key: bytes,
        instance: bytes,
        who: str,
        log: PartyLogger,
        before: bytes | None = None,
    ) -> None:
        """Not for users.

        Args:
            broker: where the claim is made.
            key: the claim's key.
            instance: this run's instance, 8 bytes.
            who: the party, as messages name it.
            log: the party's logger.
            before: the instance of an earlier run that has ended for sure; None if none is known.
        """
        self._log = log
        self.is_taken = False
        """Whether another process has claimed the party since; it may have let go again."""
        self._broker = broker
        self._key = key
        self._instance = instance.hex().encode()
        self._before = None if before is None else before.hex().encode()
        self._who = who
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: BrokerConnection | None = None
        self._status: tuple[bytes, Callable[[], bytes]] | None = None
        self._may_publish = True
        self._last_words: Sequence[tuple[bytes, tuple[bytes, Buffer]]] = ()
        self.instance = instance.hex()
        self.since = time.monotonic()
        """When this run began."""
        self.round_trip = float("inf")
        """Seconds from here to the broker and back, the shortest of a few; after `acquire`."""
        self.uplink = float("inf")
        """Bytes a second from here to the broker; infinity if it is near, or that is not known."""
        self.last_round_trip = float("inf")
        """The round trip that was measured when the claim was last renewed."""
        self.refusal: BrokerBusy | None = None
        """The broker's last refusal to renew the claim or write the status; None if it did."""
        self.broker_number = 0
        """Of several brokers, the present one's place in the list, from 1; 0 if there is one."""
        dies_in_child(self)

    @property
    def _lease_ms(self) -> int:
        """How long the claim stands after this process has died."""
        return _LEASE_MS

    def acquire(self, outage: Outage, *, patient: bool = False) -> None:
        """Claim the party.

        Waits at most one lease for a dead run's claim to lapse; or, if the broker's clock
        went back, for a living run to renew its claim.

        If the first few tries do not reach the broker, that is an error at once. A broker that
        goes away later, or that says it cannot serve now, gets time to come back.

        Args:
            outage: keeps track of how long the broker is away.
            patient: whether the first tries get that time too.

        Raises:
            PartyTaken: another process keeps renewing its claim.
            BrokerError: the broker is out of reach, refuses us, or answers nonsense.
        """
        self._claim(outage, patient=patient)
        self._start(self._renew)

    def _start(self, run: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=run, name="redislink-claim", daemon=True)
        self._thread.start()

    def _claim(self, outage: Outage, *, patient: bool = False) -> None:
        last_left: float = float("inf")
        renewals = 0
        beyond_since: float | None = None
        lease_ms = self._lease_ms
        give_up = time.monotonic() + _LEASES * lease_ms / 1000
        failures = 0
        is_there = patient
        while True:
            try:
                connection = self._connection
                if connection is None or not connection.usable:
                    connection = self._connection = self._broker.open()
                self._measure(connection)
                if self._set(connection):
                    self._measure_uplink(connection)
                    break
                left = self._call(connection, b"PTTL", self._key)
                outage.ended(Way.PUSH)
            except BrokerError as error:
                if self._stop.is_set():
                    raise
                failures += 1
                is_there = is_there or not isinstance(error, BrokerUnreachable)
                if self._connection is None and not is_there and failures >= _FIRST_TRIES:
                    raise
                time.sleep(outage.failed(error, Way.PUSH))
                continue
            if not isinstance(left, int):
                connection.close()
                raise BrokerRefused(f"broker {self._broker.label}: PTTL did not give a number")
            now = time.monotonic()
            if left == _NO_EXPIRY or left > lease_ms + _TOLERANCE_MS:
                # No run asks for so much time, and a living run would have renewed the claim.
                beyond_since = now if beyond_since is None else beyond_since
                if now - beyond_since >= lease_ms / 1000:
                    self._take_over()
                    continue
            else:
                beyond_since = None
                if left > last_left + _TOLERANCE_MS:
                    renewals += 1
                last_left = left if left >= 0 else last_left
            # A claim that neither lapses nor is renewed is not ours: do not wait for ever.
            if renewals >= _RENEWALS or now > give_up:
                connection.close()
                raise PartyTaken(
                    f"{self._who} already runs in another process: end that one, "
                    "or run as another party or session"
                )
            time.sleep(_POLL_SECONDS)
        outage.ended(Way.PUSH)

    def _take_over(self) -> None:
        """Remove a dead run's claim, which would not lapse in time."""
        self._log.warning(
            "%s: removed a dead run's claim, which did not lapse: the broker's clock went back",
            self._who,
        )
        with contextlib.suppress(BrokerError):  # `acquire` tries again
            if self._connection is not None:
                self._call(self._connection, b"DEL", self._key)

    def publish(self, key: bytes, snapshot: Callable[[], bytes]) -> None:
        """From now on, write a status next to the claim about once a second.

        If this party's Redis user may not write the key, publishing stops, with a line in the
        debug log.

        Args:
            key: the status's key; it expires with the claim.
            snapshot: returns the status to write; called in the claim's thread.
        """
        self._status = (key, snapshot)

    def distrust(self) -> None:
        """Renew the claim on another connection: this one may be dead. Any thread may call it."""
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def say(self, last_words: Sequence[tuple[Peer, Frame]]) -> None:
        """Push control frames soon, and before the claim is released. Any thread may call it, once.

        This connection may be the only one that still works.

        Args:
            last_words: peers, and what to tell each.
        """
        self.push_soon(
            [
                (peer.control_out, peer.codec.encode_parts(peer.control_out, frame, b""))
                for peer, frame in last_words
            ]
        )

    def push_soon(self, elements: Sequence[tuple[bytes, tuple[bytes, Buffer]]]) -> None:
        """Push small elements as `say` does: (list's name, element in two parts)."""
        self._last_words = elements

    def _push_last_words(self, connection: BrokerConnection, timeout: float) -> None:
        if self._last_words:
            push_each(connection, self._last_words, _LAST_WORDS_TTL, timeout)
            self._last_words = ()

    def release(self, timeout: float | None = None) -> None:
        """Give up the claim, if it is still ours. Never raises.

        Args:
            timeout: seconds for each of the three waits in here; None means the broker's timeout.
        """
        self._stop.set()
        if self._thread is None and self._connection is None:
            return
        longest = self._broker.timeout if timeout is None else min(timeout, self._broker.timeout)
        if self._thread is not None:
            self._thread.join(longest)
            if self._thread.is_alive():
                return  # the thread still uses the connection
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            self._push_last_words(connection, longest)
            self._take_leave(connection, longest)
            if connection.execute(b"GET", self._key, timeout=longest) == self._instance:
                mine = [self._key] if self._status is None else [self._key, self._status[0]]
                connection.execute(b"DEL", *mine, timeout=longest)
        except BrokerError:
            self._log.debug("%s: claim not released; it lapses by itself", self._who)
        connection.close()

    def abandon(self) -> None:
        """Leave the claim to lapse, as a killed process does. Never raises."""
        self._stop.set()
        self.distrust()
        if self._thread is not None:
            self._thread.join(self._broker.timeout)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _take_leave(self, connection: BrokerConnection, timeout: float) -> None:
        """What else there is to do on this broker before leaving."""

    def die_in_child(self) -> None:
        """In a forked child: the claim stays the parent's, and `release` does nothing."""
        self._stop = threading.Event()
        self._thread = self._connection = self._status = None
        self._broker = cast("Broker", Dead(used_after_fork(self._who)))

    def _measure(self, connection: BrokerConnection) -> None:
        if self.round_trip == float("inf"):
            self.round_trip = measure_round_trip(partial(self._ask, connection))
            self.last_round_trip = self.round_trip

    def _measure_uplink(self, connection: BrokerConnection) -> None:
        with contextlib.suppress(BrokerError):  # it may not take so long a name
            self.uplink = measure_uplink(partial(self._ask, connection), self.round_trip)

    def _ask(self, connection: BrokerConnection, size: int) -> None:
        """Ask for the claim's time to live, or remove a list that nobody has; see `measuring`.

        The list's name is longer than the claim's by so many bytes. It is in this party's inbox,
        where its user may remove lists.
        """
        if size:
            self._call(connection, b"DEL", self._key + b"." * size)
        else:
            self._call(connection, b"PTTL", self._key)

    def _set(self, connection: BrokerConnection) -> bool:
        lease = b"PX", self._lease_ms
        reply = self._call(connection, b"SET", self._key, self._instance, *lease, b"NX")
        if reply is not None:
            return True
        holder = self._call(connection, b"GET", self._key)
        if holder is not None and holder == self._before:
            self._before = None
            self._call(connection, b"DEL", self._key)  # nobody renews it: it need not lapse
            return self._set(connection)
        # An earlier SET may have worked although its reply was lost.
        return bool(holder == self._instance)

    def _renew(self) -> None:
        while not self._pause():
            try:
                self.refusal = self._renew_once()
            except BrokerError as error:
                self._not_reached(error)

    def _pause(self) -> bool:
        """Wait until the claim has to be renewed; True to end."""
        return self._stop.wait(_RENEW_SECONDS)

    def _renew_once(self) -> BrokerBusy | None:
        """Renew the claim and write the status; return why a full broker did not take it."""
        connection = self._connection
        if connection is None or not connection.usable:
            connection = self._connection = self._broker.open()
        self._push_last_words(connection, self._broker.timeout)
        started = time.monotonic()
        holder = self._call(connection, b"GET", self._key)
        self.last_round_trip = time.monotonic() - started
        if holder == self._instance:
            self._call(connection, b"PEXPIRE", self._key, self._lease_ms)
        elif not self._set(connection):
            self.is_taken = True
            self._log.error("%s now also runs in another process: end one", self._who)
            return None
        return self._publish(connection)

    def _not_reached(self, error: BrokerError) -> None:
        if isinstance(error, BrokerBusy):
            self.refusal = error
        self._log.debug("claim not renewed: %s", error)

    def _publish(self, connection: BrokerConnection) -> BrokerBusy | None:
        if self._status is None or not self._may_publish:
            return None
        key, snapshot = self._status
        try:
            self._call(connection, b"SET", key, snapshot(), b"PX", self._lease_ms)
        except BrokerPermissionError as error:
            self._may_publish = False  # an older version of redislink acl made this user
            self._log.debug("%s: publishes no status: %s", self._who, error)
        except BrokerError as error:
            self._log.debug("%s: status not published: %s", self._who, error)
            return error if isinstance(error, BrokerBusy) else None
        except Exception as error:  # noqa: BLE001 - the claim must be renewed all the same
            self._may_publish = False
            self._log.debug("%s: publishes no status: %s", self._who, type(error).__name__)
        return None

    def _call(self, connection: BrokerConnection, *command: bytes | int) -> Any:
        return connection.execute(*command, timeout=self._broker.timeout)
