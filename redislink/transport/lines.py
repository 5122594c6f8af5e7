"""`Lines`: finds connections that have gone half-open, by comparing them with a fresh one.

A connection that owes an answer may be dead, or the way to the broker may be slow or closed. No
timeout tells these apart: 5 s is nothing on one line and for ever on another. So a silent
connection gets a rival. If a question that was asked on a new connection, after the old one fell
silent, has been answered there, and the old one is still silent, then the old one is dead.

What is learnt of one connection, the others know at once: the control connection and the claim's
are replaced with it. The connections of receives are not, as they may bring what was popped on
them; the peers' answers to probes tell whether they live (`Delivery.overdue`).

Only the control thread calls this, and no lock is held.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from redislink.broker import Broker
from redislink.errors import BrokerError, BrokerUnreachable
from redislink.transport.core import Core

_PATIENCE: Final = 0.5
"""The fewest seconds of silence after which a connection gets a rival."""
_ROUND_TRIPS: Final = 3
"""So many round trips, if they take longer: the one of the start, or what a rival found later."""
_MOST_PATIENCE: Final = 15.0
_LATELY: Final = 5.0
_SPACING: Final = 1.0
"""Seconds between the starts of two rivals: one that the way was closed to may take long."""
_MOST_RIVALS: Final = 4


class _Rival:
    """Asks the same server on fresh connections, until one answers."""

    def __init__(self, party: str, broker: Broker) -> None:
        """Args: for the threads' names; the server."""
        self._party = party
        self._broker = broker
        self._lock = threading.Lock()
        self._running = 0
        self._started_at = float("-inf")
        self.asked_at = float("-inf")
        """When the latest question was asked that was answered."""
        self.round_trip = 0.0
        """Seconds that the answer took."""

    def challenge(self) -> None:
        """Start an attempt, unless there are enough."""
        now = time.monotonic()
        with self._lock:
            waits = self.asked_at < self._started_at and now - self._started_at < _SPACING
            if waits or self._running >= _MOST_RIVALS:
                return
            self._running += 1
            self._started_at = now
        name = f"redislink-rival-{self._party}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            with contextlib.suppress(BrokerError):
                with contextlib.closing(self._broker.open_answering()) as connection:
                    asked = time.monotonic()
                    connection.execute(b"PING", timeout=self._broker.timeout)
                    answered = time.monotonic()
                with self._lock:
                    self.round_trip = answered - asked
                    self.asked_at = max(self.asked_at, asked)
        finally:
            with self._lock:
                self._running -= 1


class Lines:
    """Watches one endpoint's connections."""

    def __init__(self, core: Core, round_trip: float, on_dead: Callable[[], None]) -> None:
        """Not for users.

        Args:
            core: the endpoint's core.
            round_trip: seconds to the broker and back.
            on_dead: called when a connection was found dead.
        """
        self._core = core
        self._on_dead = on_dead
        self._round_trip = round_trip
        self._dead_at = float("-inf")
        self._rivals: dict[int, _Rival] = {}
        """By the id of the broker, which each connection's owner keeps."""

    @property
    def patience(self) -> float:
        """Seconds that a reply may be late before `is_dead` need be asked."""
        lately = [rival.round_trip for rival in self._rivals.values()]
        longest = _ROUND_TRIPS * max(self._round_trip, *lately, 0.0)
        return max(_PATIENCE, min(longest, _MOST_PATIENCE))

    @property
    def lost_one_lately(self) -> bool:
        """True if a connection has died a moment ago, so that others probably have, too."""
        return time.monotonic() - self._dead_at < _LATELY

    def check_outbox(self) -> None:
        """Break an outbox's connection if it is dead. Call it several times a second."""
        for broker, since, give_up in self._core.outbox.silent(self.patience):
            if self.is_dead(broker, since):
                silence = time.monotonic() - since
                error = BrokerUnreachable(
                    f"broker {broker.label}: a connection has been silent for {silence:.1f} s, "
                    "while a new one is answered: something on the way has dropped it"
                )
                error.is_silent = True
                give_up(error)

    def is_dead(self, broker: Broker, silent_since: float) -> bool:
        """Return whether a connection is dead that has been silent for `patience`.

        If that is not known, it will be soon.

        Args:
            broker: the connection's server.
            silent_since: since when it owes something, and nothing came.
        """
        rival = self._rivals.get(id(broker))
        if rival is None:
            rival = self._rivals[id(broker)] = _Rival(self._core.party, broker)
        if rival.asked_at > silent_since:
            self._dead_at = time.monotonic()
            self._on_dead()
            return True
        rival.challenge()
        return False
