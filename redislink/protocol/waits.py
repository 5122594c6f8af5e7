"""`Waits`: which tags receives wait for, and when to ask the peer about them.

Rules:
- While a receive waits for a tag, the peer is asked for it, first after ``first_ask``, then every
  ``ask_interval``, or more rarely while nothing is answered; not while something of the tag is on
  its way.
- A peer that answers SENT had pushed the message before its answer. So the message is overdue if it
  does not come in the time that question and answer took: a slow line makes nobody impatient, and
  on a fast one a loss costs little.
- What is overdue is missed first (`Delivery.missed_in_vain`): the peer pushes it again. What is
  overdue after that has a dead line, whose replacement costs more: it gets at least
  ``overdue_after``.
- If it was on its way after all, the peer's messages get twice as long from then on, and half as
  long again for every 30 s since. An element that was pushed again says so (`came_again`).
- How long question and answer take is measured on every answer, also if the message was faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from redislink.protocol.conversation import LONG_AGO, Timing

_LEAST_GRACE: Final = 0.02
"""Seconds that a message may come after the answer that says SENT, however fast that came."""
_MOST_DOUBLINGS: Final = 6
_LONGEST_INTERVAL: Final = 2.5
"""The peer counts a tag as waited for while the last question is not older than 3 s."""
_ASK_AFTER: Final = 0.75
"""The share of the time for question and answer after which a receive asks: a message that is on
its way comes sooner."""
_LOST_AND_LEFT: Final = 2
"""So often a message is overdue that was lost once, and whose connection was dead: no oftener."""
_EASE_SECONDS: Final = 30.0
"""So long after something was missed without need, patience halves again."""


@dataclass(slots=True)
class Wait:
    """One tag that receives wait for.

    Attributes:
        next_ask: when to ask the peer next.
        pause: seconds from the last question to that.
        threads: how many receives wait.
        not_sent_at: when the peer last said that it has not sent it.
        asked_at: when we asked the oldest question that is not answered yet; None if nothing may
            be concluded from an answer, because something has come since.
        overdue_at: by then, what the broker has taken should have come.
        times_overdue: how often it had not, since something last came.
        missed: the peer was told that the message must have been lost.
        doubted: likewise, and nothing that was pushed again has come since.
    """

    next_ask: float
    pause: float = 0.0
    threads: int = 1
    not_sent_at: float = LONG_AGO
    asked_at: float | None = None
    overdue_at: float | None = None
    times_overdue: int = 0
    missed: bool = False
    doubted: bool = False


class Waits:
    """What receives of one peer's messages wait for. Not thread-safe."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self.by_tag: dict[str, Wait] = {}
        self._circle = 2 * timing.round_trip
        """Seconds that a question and its answer took lately."""
        self._open: tuple[str, float] | None = None
        """Tag and time of a question whose message came before its answer."""
        self._lost_at = LONG_AGO
        self._doublings = 0
        """How often patience was doubled, at `_doubled_at`."""
        self._doubled_at = LONG_AGO

    @property
    def _interval(self) -> float:
        """Seconds between two questions for the same tag."""
        return max(self._timing.ask_interval, min(2 * self._circle, _LONGEST_INTERVAL))

    def wait(self, tag: str, since: float) -> None:
        """Note that a receive blocks on this tag."""
        wait = self.by_tag.get(tag)
        if wait is None:
            pause = min(_ASK_AFTER * self._circle, _LONGEST_INTERVAL)
            self.by_tag[tag] = Wait(since + max(self._timing.first_ask, pause))
        else:
            wait.threads += 1

    def unwait(self, tag: str) -> None:
        """Note that the receive no longer blocks."""
        wait = self.by_tag[tag]
        wait.threads -= 1
        if not wait.threads:
            del self.by_tag[tag]

    def came(self, tag: str, now: float, *, whole: bool) -> None:
        """Note that a frame of this tag has come, or that something is on its way."""
        if (wait := self.by_tag.get(tag)) is not None:
            wait.next_ask = now + self._interval
            if wait.asked_at is not None and (
                self._open is None or now - self._open[1] > _LONGEST_INTERVAL
            ):
                self._open = tag, wait.asked_at
            wait.asked_at = wait.overdue_at = None
            if whole:
                if wait.doubted or wait.times_overdue > _LOST_AND_LEFT:
                    self._doublings = min(self._patience(now) + 1, _MOST_DOUBLINGS)
                    self._doubled_at = now
                wait.missed = wait.doubted = False
                wait.not_sent_at = LONG_AGO
            wait.times_overdue = 0

    def came_again(self, tag: str) -> None:
        """Note that what comes next of this tag was pushed again: the peer was right to be asked.

        Call it before `came`.
        """
        if (wait := self.by_tag.get(tag)) is not None:
            wait.doubted = False

    def missed(self, wait: Wait, now: float) -> None:
        """Note that the peer is told now that what is overdue must have been lost."""
        wait.missed = wait.doubted = True
        wait.asked_at = now

    def _patience(self, now: float) -> int:
        """Return how often the time for messages that may be lost is doubled at present."""
        if not self._doublings:
            return 0
        return max(0, self._doublings - int((now - self._doubled_at) / _EASE_SECONDS))

    def ask_all(self, now: float) -> None:
        """Ask for every tag at once, and conclude nothing from what was said before."""
        for wait in self.by_tag.values():
            wait.next_ask = now
            wait.asked_at = wait.overdue_at = None
            wait.missed = False

    def complained(self, tag: str, now: float) -> None:
        """Note that the peer is told now that something of this tag was lost."""
        if (wait := self.by_tag.get(tag)) is not None:
            wait.next_ask = now + max(self._timing.first_ask, 2 * self._circle)
            wait.asked_at = wait.overdue_at = None

    def due(self, now: float) -> list[str]:
        """Return the tags to ask for now."""
        due = []
        for tag, wait in self.by_tag.items():
            if wait.next_ask <= now:
                due.append(tag)
                if wait.asked_at is None:
                    wait.asked_at, wait.pause = now, self._interval
                else:  # nobody may hear us
                    wait.pause = min(2 * wait.pause, _LONGEST_INTERVAL)
                wait.next_ask = now + wait.pause
        return due

    def not_sent(self, tags: Iterable[str], now: float) -> None:
        """Note that the peer says that it has nothing with these tags."""
        for wait, _ in self._answered(tags, now):
            wait.not_sent_at = now
            wait.overdue_at = None

    def is_not_sent(self, tag: str, now: float) -> bool:
        """Return whether the peer said lately that it has nothing with a tag that we wait for."""
        wait = self.by_tag.get(tag)
        return wait is not None and now - wait.not_sent_at <= 2 * self._timing.probe_interval

    def sent(self, tags: Iterable[str], now: float) -> int:
        """Note that the peer says that the broker has had the next message of these tags.

        Returns:
            How many of them we have asked for.
        """
        asked_for = 0
        for wait, took in self._answered(tags, now):
            if took is not None:
                asked_for += 1
                if wait.overdue_at is None:
                    least = self._timing.overdue_after if wait.missed else _LEAST_GRACE
                    # Longer each time: perhaps it cannot come at all.
                    doublings = max(0, wait.times_overdue - wait.missed) + self._patience(now)
                    doublings = min(doublings, _MOST_DOUBLINGS)
                    wait.overdue_at = now + max(least, took) * 2**doublings
        return asked_for

    def _answered(self, tags: Iterable[str], now: float) -> Iterator[tuple[Wait, float | None]]:
        """Yield the waits for these tags, each with the seconds since the question, if one is open.

        It is answered then.
        """
        for tag in tags:
            wait = self.by_tag.get(tag)
            took = None if wait is None or wait.asked_at is None else now - wait.asked_at
            if took is not None:
                self._measure(took)
            elif self._open is not None and self._open[0] == tag:
                self._measure(now - self._open[1])
                self._open = None
            if wait is not None:
                wait.asked_at = None
                yield wait, took

    def _measure(self, took: float) -> None:
        self._circle = max(took, (self._circle + took) / 2)

    def overdue(self, now: float) -> list[str]:
        """Return the tags whose messages should have come. Each is named once for each answer."""
        due = []
        for tag, wait in self.by_tag.items():
            if wait.overdue_at is not None and wait.overdue_at <= now:
                wait.overdue_at = None
                wait.times_overdue += 1
                due.append(tag)
        return due

    def lost_again(self, count: int, now: float) -> bool:
        """Note that the broker has lost so many messages; return whether it did so lately, too.

        One lost pop costs one message. With a second one soon after, perhaps BLPOPs of a lost
        connection swallow what comes.
        """
        again = count > 0 and (count > 1 or now - self._lost_at < 10 * self._timing.probe_interval)
        if count:
            self._lost_at = now
        return again

    def timeouts(self) -> list[float]:
        """Return the times at which questions and messages are due."""
        due = [wait.next_ask for wait in self.by_tag.values()]
        due += [wait.overdue_at for wait in self.by_tag.values() if wait.overdue_at is not None]
        return due
