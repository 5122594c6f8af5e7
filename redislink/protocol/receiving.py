"""`Receiving`: keeps one peer's messages until they are taken; tracks waits, and acks that are due.

Rules:
- Each number is delivered once; duplicates are dropped.
- A frame is acked at most ``ack_delay`` after it came, or twice that, unless we know that the peer
  knows by then. Reading the ack's content (`ack_state`) settles all acks that were due.
- While a receive waits for a tag, the peer is probed for it, except while a frame is on its way.

This module pushes nothing, and raises only errors about a frame. `Delivery` pushes the acks and
probes that are due, and decides what the state allows.
"""

from __future__ import annotations

import sys
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from redislink.protocol import chunking
from redislink.protocol.conversation import LONG_AGO, DeliveryStats, Timing
from redislink.protocol.frame import AckState, Data, Encoding
from redislink.protocol.received import ReceivedNumbers

_FRAME_OVERHEAD: Final = chunking.OVERHEAD
_NEVER_TOLD: Final = sys.maxsize
_MOST_DOUBLINGS: Final = 6


@dataclass(slots=True)
class _Wait:
    next_probe: float
    threads: int = 1
    not_sent_at: float = LONG_AGO
    asked_at: float | None = None
    """When we asked what the peer has not answered yet."""
    overdue_at: float | None = None
    """By then, what the broker has taken should have come."""
    times_overdue: int = 0
    """How often it had not, since something last came."""

    def came(self, next_probe: float) -> None:
        """Something of this tag has come."""
        self.next_probe = next_probe
        self.asked_at = self.overdue_at = None
        self.times_overdue = 0


class Receiving:
    """The half of a `Delivery` that receives. Not thread-safe."""

    def __init__(self, timing: Timing, stats: DeliveryStats) -> None:
        # At most 30 attributes: see `Sending`.
        self.received = ReceivedNumbers()
        self.ack_due: float | None = None
        """When an ack is due; None if the peer knows everything."""
        self.ack_eagerly = False
        """True if the peer waits for acks: its next message is acked at once."""
        self.unreported_bytes = 0
        """Bytes received since the last ack."""
        self.reported = 0
        """We have acked every number up to this one; the peer may not have heard it yet."""
        self.edition = 0
        """We read the data lists of this edition."""
        self._lost_at = LONG_AGO
        self._timing = timing
        self._ack_delay = timing.ack_delay
        self._stats = stats
        self._reassembly = chunking.Reassembly()
        self.kept: Container[str] = self._reassembly.tags
        """The tags for which a message, or a part of one, was received and not yet taken."""
        self._waits: dict[str, _Wait] = {}
        self._ack_owed = 0
        """The ack at `ack_due` is not needed if the peer knows of every number up to this one."""

    # -- a frame ---------------------------------------------------------------------------
    #
    # `add_whole` does for nearly every message what `add` and `take` do for all messages: it has
    # nothing to join or to keep. They share `_count`; tests/protocol/test_short_ways.py keeps the
    # rest equal.

    def add_whole(self, tag: str, seq: int, length: int, now: float) -> bool:
        """Receive and hand out a message of one chunk that no earlier message holds up.

        Returns:
            False if the message must take the slow path; then nothing was done.
        """
        if tag in self.kept or not self.received.add(seq):
            return False
        stats = self._stats
        stats.messages_received += 1
        stats.bytes_received += length
        self._count(tag, length, now)
        return True

    def add(self, tag: str, frame: Data, body: bytes, now: float) -> bool:
        """Receive a chunk; return False and drop it if it is a duplicate.

        Raises:
            FrameError: the chunk cannot be part of a legal message; nothing has changed.
        """
        if frame.seq in self.received:
            self._stats.duplicates_dropped += 1
            return False
        self._reassembly.add(tag, frame, body, self.received)
        self._count(tag, len(body), now)
        return True

    def _count(self, tag: str, length: int, now: float) -> None:
        self.unreported_bytes += length + _FRAME_OVERHEAD
        if self._waits and (wait := self._waits.get(tag)) is not None:
            wait.came(now + self._timing.probe_interval)
            wait.not_sent_at = LONG_AGO

    def take(self, tag: str) -> tuple[bytes, Encoding] | None:
        """Return and remove the next whole message of a tag; None if there is none."""
        message = self._reassembly.take(tag)
        if message is not None:
            self._stats.messages_received += 1
            self._stats.bytes_received += len(message[0])
        return message

    def peek(self, tag: str) -> tuple[bytes, Encoding] | None:
        """Like `take`, but leave the message there."""
        return self._reassembly.peek(tag)

    def missing(self, tag: str) -> tuple[int, int]:
        """Return (missing chunks, bytes of each) for the message now arriving with this tag.

        Both numbers are estimates, and 0 before the first chunk.
        """
        return self._reassembly.missing(tag)

    @property
    def kept_bytes(self) -> int:
        """The bytes that were received and not yet taken."""
        return self._reassembly.bytes

    def clear(self) -> None:
        """Forget everything that was received and not taken."""
        self._reassembly.clear()

    # -- what is waited for ----------------------------------------------------------------

    def wait(self, tag: str, now: float) -> None:
        """Note that a receive now blocks on this tag."""
        wait = self._waits.get(tag)
        if wait is None:
            self._waits[tag] = _Wait(now + self._timing.probe_interval)
        else:
            wait.threads += 1

    def unwait(self, tag: str) -> None:
        """Note that the receive no longer blocks."""
        wait = self._waits[tag]
        wait.threads -= 1
        if not wait.threads:
            del self._waits[tag]

    def came_in_part(self, tag: str, now: float) -> None:
        """Note that part of a frame of this tag has come: it is on its way, so do not probe yet."""
        if (wait := self._waits.get(tag)) is not None:
            wait.came(now + self._timing.probe_interval)

    def not_sent(self, tag: str, now: float) -> None:
        """Note that the peer says that it has nothing with this tag."""
        if (wait := self._waits.get(tag)) is not None:
            wait.not_sent_at = now
            wait.asked_at = wait.overdue_at = None

    def taken(self, tag: str, now: float) -> None:
        """Note that the peer says that the broker has taken what we wait for.

        The broker had it before it had the peer's answer. So it should be here, unless our BLPOP
        reached the broker late: wait once more for as long as question and answer took. After each
        time that it did not come, this doubles: perhaps it cannot come at all.
        """
        wait = self._waits.get(tag)
        if wait is None or wait.overdue_at is not None or wait.asked_at is None:
            return
        patience = max(self._timing.overdue_after, now - wait.asked_at)
        wait.overdue_at = now + patience * 2 ** min(wait.times_overdue, _MOST_DOUBLINGS)
        wait.asked_at = None

    def lost_again(self, now: float) -> bool:
        """Note that the broker has lost something; return whether it did so lately, too.

        One lost pop costs one message. With a second one soon after, perhaps BLPOPs of a lost
        connection swallow what comes.
        """
        before, self._lost_at = self._lost_at, now
        return now - before < 10 * self._timing.probe_interval

    def overdue(self, now: float) -> list[str]:
        """Return the tags whose messages should have come. Each is named once for each answer."""
        due = []
        for tag, wait in self._waits.items():
            if wait.overdue_at is not None and wait.overdue_at <= now:
                wait.overdue_at = None
                wait.times_overdue += 1
                due.append(tag)
        return due

    def is_not_sent(self, tag: str, now: float) -> bool:
        """Return whether the peer said lately that it has nothing with a tag that we wait for."""
        wait = self._waits.get(tag)
        return wait is not None and now - wait.not_sent_at <= 2 * self._timing.probe_interval

    def probe_soon(self, tag: str, now: float) -> None:
        """Probe at once: an element that was popped for this tag may have been lost on its way."""
        wait = self._waits[tag]
        wait.next_probe, wait.asked_at = now, None

    def probe_all_soon(self, now: float) -> None:
        """Like `probe_soon`, for every tag that a receive waits for."""
        for wait in self._waits.values():
            wait.next_probe, wait.asked_at = now, None

    def probes_due(self, now: float) -> list[str]:
        """Return the tags to probe for now; each is due again after ``probe_interval``."""
        due = [tag for tag, wait in self._waits.items() if wait.next_probe <= now]
        for tag in due:
            wait = self._waits[tag]
            wait.next_probe = now + self._timing.probe_interval
            if wait.asked_at is None:
                wait.asked_at = now
        self._stats.probes_sent += len(due)
        return due

    def timeouts(self) -> list[float]:
        """Return the times at which probes, messages and the ack are due."""
        due = [wait.next_probe for wait in self._waits.values()]
        due += [w.overdue_at for w in self._waits.values() if w.overdue_at is not None]
        if self.ack_due is not None:
            due.append(self.ack_due)
        return due

    # -- acks ------------------------------------------------------------------------------

    def owe_ack(self, now: float) -> None:
        """Note that something came, so the peer must be told soon."""
        self.ack_due = now + self._ack_delay
        received = self.received
        # An ack on a data frame says nothing about frames that came out of order.
        self._ack_owed = _NEVER_TOLD if received.has_gaps else received.cumulative

    def ack_by(self, due: float) -> None:
        """Ack by then, whatever the peer already knows."""
        self._ack_owed = _NEVER_TOLD
        if self.ack_due is None or due < self.ack_due:
            self.ack_due = due

    def must_ack(self, now: float, told: int) -> bool:
        """Return whether an ack must be pushed now.

        Args:
            now: monotonic seconds.
            told: we know that the peer knows that every number up to this one came.
        """
        if self.ack_due is None or self.ack_due > now:
            return False
        if told < self._ack_owed:
            return True
        if told < self.received.cumulative or self.received.has_gaps:
            self.owe_ack(now)  # for what came since
        else:
            self.ack_due = None
        return False

    def ack_state(self) -> AckState:
        """For the control list, where the peer always listens: no other ack is due then."""
        self.ack_due = None
        self.unreported_bytes = 0
        self.reported = self.received.cumulative
        return self.received.ack_state(self.edition)
