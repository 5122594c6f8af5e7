"""`Outage`: how long the broker has been away, when to try again, when to give up."""

from __future__ import annotations

import random
import threading
import time
from typing import Final

from redislink.errors import BrokerError, BrokerUnreachable

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 2.0


class Outage:
    """Shared by everything in a party that talks to the broker. Thread-safe."""

    def __init__(self, who: str, limit: float) -> None:
        """Args: the party's name for messages; seconds that an outage may last."""
        self._who = who
        self.limit = limit
        """Seconds that an outage may last."""
        self._lock = threading.Lock()
        self._since: float | None = None
        self.lasts = False
        """True from a failure on, until the broker answers."""
        self._pause = _FIRST_PAUSE

    def ended(self) -> None:
        """The broker answered."""
        if self.lasts:
            with self._lock:
                self.lasts = False
                self._since = None
                self._pause = _FIRST_PAUSE

    def failed(self, error: BrokerError) -> float:
        """Something failed; returns how many seconds to pause before the next try.

        Raises:
            BrokerError: it will not pass by itself, or has lasted longer than the limit.
        """
        if not error.passes:
            raise error
        now = time.monotonic()
        with self._lock:
            self.lasts = True
            if self._since is None:
                self._since = now
            away = now - self._since
            pause = self._pause * random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if away > self.limit:
            raise BrokerUnreachable(
                f"{self._who}: the broker has been away for {away:.0f} s, the limit is "
                f"{self.limit:g} s (REDISLINK_BROKER_TIMEOUT): {error}"
            )
        return pause
