"""`Outage`: tracks how long the broker has been away, when to retry, and when to give up."""

from __future__ import annotations

import random
import threading
import time
from typing import Final

from redislink.errors import BrokerError, BrokerUnreachable
from redislink.logs import PartyLogger

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 2.0
_WORTH_SAYING: Final = 1.0
_FIRST_REPORT: Final = 3.0
_REPORT_INTERVAL: Final = 10.0


class Outage:
    """One party's record of an outage; all that talk to the broker share it. Thread-safe."""

    def __init__(self, who: str, limit: float, progress: PartyLogger | None = None) -> None:
        """Not for users.

        Args:
            who: the party's name, for messages.
            limit: seconds that an outage may last.
            progress: the logger that reports a lasting outage from time to time; None for none.
        """
        self._who = who
        self._progress = progress
        self._next_report = 0.0
        self._reported = False
        self.limit = limit
        """Seconds that an outage may last."""
        self._lock = threading.Lock()
        self._since: float | None = None
        self.lasts = False
        """True from a failure until the broker answers."""
        self._pause = _FIRST_PAUSE

    def ended(self) -> None:
        """Note that the broker answered."""
        if self.lasts:
            with self._lock:
                self.lasts = False
                since, self._since = self._since, None
                self._pause = _FIRST_PAUSE
                reported, self._reported = self._reported, False
            if reported and since is not None and self._progress is not None:
                away = time.monotonic() - since
                self._progress.info("%s: broker back after %.0f s", self._who, away)

    @property
    def seconds(self) -> float:
        """How long the broker has been away; 0 if it is not away, or for less than a second."""
        since = self._since
        away = 0.0 if since is None else time.monotonic() - since
        return away if away >= _WORTH_SAYING else 0.0

    def describe(self) -> str:
        """Return text such as ``broker unreachable for 12 s``; "" while it is not away."""
        away = self.seconds
        return f"broker unreachable for {away:.0f} s" if away else ""

    def failed(self, error: BrokerError) -> float:
        """Note a failure, and return how many seconds to pause before the next try.

        Raises:
            BrokerError: the error is not retryable, or the outage has exceeded its limit.
        """
        if not error.retryable:
            raise error
        now = time.monotonic()
        with self._lock:
            self.lasts = True
            if self._since is None:
                self._since = now
                self._next_report = now + _FIRST_REPORT
            reports = now >= self._next_report and self._progress is not None
            if reports:
                self._reported, self._next_report = True, now + _REPORT_INTERVAL
            away = now - self._since
            pause = self._pause * random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if away > self.limit:
            raise BrokerUnreachable(
                f"{self._who}: the broker has been away for {away:.0f} s, the limit is "
                f"{self.limit:g} s (REDISLINK_BROKER_TIMEOUT): {error}"
            )
        if reports and self._progress is not None:
            self._progress.info("%s: broker unreachable for %.0f s: %s", self._who, away, error)
        return pause
