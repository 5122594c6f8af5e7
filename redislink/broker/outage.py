"""`Outage`: tracks how long the broker has failed a party, when to retry, and when to give up.

Rules:
- A party pushes and pops. Each of the two ways fails from its first failure until the broker has
  accepted a push, or answered a pop. A connection or a PONG proves neither: a server that became
  a replica gives both, and refuses everything else.
- Until then the pauses between tries grow, however many connections they take.
- What the broker refused last is in the progress lines and in the final error. The log says each
  new refusal once in an outage.
"""

from __future__ import annotations

import enum
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from redislink.errors import BrokerAuthError, BrokerBusy, BrokerError, BrokerUnreachable
from redislink.logs import PartyLogger

_FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 2.0
SHORT_PAUSE: Final = 0.5
"""The longest pause where there is another broker: the next try may be there."""
_WORTH_SAYING: Final = 1.0
_FIRST_REPORT: Final = 3.0
_REPORT_INTERVAL: Final = 10.0
Memory = Callable[[], tuple[int, int] | None]
"""Returns the bytes that a full broker uses and may use; None if it does not say."""


class Way(enum.Enum):
    """In which way a party talks to the broker."""

    PUSH = enum.auto()
    POP = enum.auto()


@dataclass(slots=True)
class _Failing:
    since: float
    pause: float = _FIRST_PAUSE


class Outage:
    """One party's record of an outage; all that talk to the broker share it. Thread-safe."""

    def __init__(
        self,
        who: str,
        limit: float,
        progress: PartyLogger | None = None,
        log: PartyLogger | None = None,
        memory: Memory | None = None,
        *,
        longest_pause: float = LONGEST_PAUSE,
        why: Callable[[BrokerError], BrokerError] = lambda error: error,
    ) -> None:
        """Not for users.

        Args:
            who: the party's name, for messages.
            limit: seconds that an outage may last.
            progress: the logger that reports a lasting outage from time to time; None for none.
            log: the logger for refusals that last; None for none.
            memory: asks the broker for its memory, once in an outage, when it is full.
            longest_pause: the most seconds between two tries.
            why: given the last error, returns the one to raise when the limit is over.
        """
        self._who = who
        self._progress = progress
        self._log = log
        self._ask_memory = memory
        self._memory: tuple[int, int] | None = None
        self._asked_memory = False
        self._next_report = 0.0
        self._reported = False
        self._said: set[str] = set()
        self._last: BrokerError | None = None
        self.limit = limit
        """Seconds that an outage may last."""
        self._lock = threading.Lock()
        self._failing: dict[Way, _Failing] = {}
        self.lasts = False
        """True from a failure until the broker does what it failed to do."""
        self._longest_pause = longest_pause
        self._why = why

    def ended(self, way: Way) -> None:
        """Note that the broker accepted a push, or answered a pop."""
        if not self.lasts:
            return
        with self._lock:
            ended = self._failing.pop(way, None)
            if ended is None or self._failing:
                return
            self.lasts = self._asked_memory = False
            self._memory = None
            self._said.clear()
            reported, self._reported = self._reported, False
        if reported and self._progress is not None:
            away = time.monotonic() - ended.since
            self._progress.info("%s: broker back after %.0f s", self._who, away)

    @property
    def elapsed(self) -> float:
        """How long the broker has failed; 0 if it does not."""
        with self._lock:
            since = min((failing.since for failing in self._failing.values()), default=None)
        return 0.0 if since is None else time.monotonic() - since

    @property
    def seconds(self) -> float:
        """How long the broker has failed; 0 if it does not, or for less than a second."""
        away = self.elapsed
        return away if away >= _WORTH_SAYING else 0.0

    def describe(self) -> str:
        """Return text such as ``broker unreachable for 12 s``; "" while nothing is wrong.

        If the broker answers and refuses, the text is such as ``refused by the broker for 12 s
        (out of memory)``.
        """
        away, last = self.seconds, self._last
        if not away:
            return ""
        if last is None or not last.refusal:
            return f"broker unreachable for {away:.0f} s"
        figures = f", {last.figures}" if isinstance(last, BrokerBusy) and last.figures else ""
        return f"refused by the broker for {away:.0f} s ({last.refusal}{figures})"

    def failed(self, error: BrokerError, way: Way) -> float:
        """Note a failure, and return how many seconds to pause before the next try.

        Raises:
            BrokerBusy: the broker has refused this party for longer than the limit.
            BrokerUnreachable: it has been unreachable for longer than the limit.
            BrokerError: the error is not retryable.
        """
        if not error.retryable:
            raise error
        now = time.monotonic()
        with self._lock:
            self.lasts = True
            if not self._failing:
                self._next_report = now + _FIRST_REPORT
            failing = self._failing.setdefault(way, _Failing(now))
            away = now - failing.since
            pause = failing.pause * random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret
            failing.pause = min(2 * failing.pause, self._longest_pause)
        if isinstance(error, BrokerBusy) and error.is_full and away >= _WORTH_SAYING:
            error = self._with_memory(error)
        self._last = error
        if away > self.limit:
            raise self._final(self._why(error), away)
        self._report(error, now, away)
        return pause

    def _with_memory(self, error: BrokerBusy) -> BrokerBusy:
        with self._lock:
            asks, self._asked_memory = not self._asked_memory, True
        if asks and self._ask_memory is not None:
            self._memory = self._ask_memory()
        memory = self._memory
        return error if memory is None else error.with_memory(*memory)

    def _report(self, error: BrokerError, now: float, away: float) -> None:
        with self._lock:
            if now < self._next_report:
                return
            is_new = bool(error.refusal) and error.refusal not in self._said
            self._said.add(error.refusal)
            self._reported, self._next_report = True, now + _REPORT_INTERVAL
        if is_new and self._log is not None:
            self._log.warning(
                "%s: the broker has refused this party for %.0f s: %s", self._who, away, error
            )
        elif self._progress is not None:
            said = "" if error.refusal else f": {error}"
            self._progress.info("%s: %s%s", self._who, self.describe(), said)

    def _final(self, error: BrokerError, away: float) -> BrokerError:
        limit = f"the limit is {self.limit:g} s (REDISLINK_BROKER_TIMEOUT)"
        if not error.refusal:
            return BrokerUnreachable(
                f"{self._who}: the broker has been away for {away:.0f} s, {limit}: {error}"
            )
        text = f"{self._who}: the broker has refused this party for {away:.0f} s, {limit}: {error}"
        if isinstance(error, BrokerBusy | BrokerAuthError):
            return error.restated(text)
        final = BrokerBusy(text)  # such as a replica, which also ends each connection
        final.refusal = error.refusal
        return final
