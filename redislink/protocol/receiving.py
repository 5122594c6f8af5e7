"""`Receiving`: what came from one peer until it is taken, what is waited for, and the acks due.

Rules that every line below obeys:
- A number is delivered once; what comes again is dropped.
- What came is acked at the latest ``ack_delay`` after it came, or twice that, unless the peer is
  known to know it by then. Asking for the ack's content (`ack_state`) settles what was due.
- While a receive waits for a tag, the peer is probed for it; what is on its way is not.

Pushes nothing and raises only what is wrong with a frame. `Delivery` pushes the acks and probes
that are due, and decides what the state allows.
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


@dataclass(slots=True)
class _Wait:
    next_probe: float
    threads: int = 1
    not_sent_at: float = LONG_AGO


class Receiving:
    """The half of a `Delivery` that receives. Not thread-safe."""

    def __init__(self, timing: Timing, stats: DeliveryStats) -> None:
        # At most 30 attributes: see `Sending`.
        self.received = ReceivedNumbers()
        self.ack_due: float | None = None
        """When the peer must be told what came; None if it knows all."""
        self.ack_eagerly = False
        """The peer waits for acks: its next message is acked at once."""
        self.unreported_bytes = 0
        """Bytes that came since the peer was last told what came."""
        self.reported = 0
        """The peer was told that all up to this number came; it need not have heard it."""
        self._timing = timing
        self._ack_delay = timing.ack_delay
        self._stats = stats
        self._reassembly = chunking.Reassembly()
        self.kept: Container[str] = self._reassembly.tags
        """Tags of which a message, or a part of one, was received and not taken."""
        self._waits: dict[str, _Wait] = {}
        self._ack_owed = 0
        """With `ack_due`: it need not be said once the peer knows that all up to this came."""

    # -- a frame ---------------------------------------------------------------------------
    #
    # `add_whole` does for nearly every message what `add` and `take` do for all: there is nothing
    # to put together or to keep. They share `_count`; tests/protocol/test_short_ways.py holds the
    # rest equal.

    def add_whole(self, tag: str, seq: int, length: int, now: float) -> bool:
        """Take in, and hand out, a message of one chunk that follows none that is under way.

        Returns:
            False if it is to go the long way: nothing was done.
        """
        if tag in self.kept or not self.received.add(seq):
            return False
        stats = self._stats
        stats.messages_received += 1
        stats.bytes_received += length
        self._count(tag, length, now)
        return True

    def add(self, tag: str, frame: Data, body: bytes, now: float) -> bool:
        """Take in a chunk; False if it had come before, and is dropped.

        Raises:
            FrameError: no legal message can be made of it; nothing has changed.
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
            wait.next_probe = now + self._timing.probe_interval
            wait.not_sent_at = LONG_AGO

    def take(self, tag: str) -> tuple[bytes, Encoding] | None:
        """The next whole message of a tag, or None."""
        message = self._reassembly.take(tag)
        if message is not None:
            self._stats.messages_received += 1
            self._stats.bytes_received += len(message[0])
        return message

    def peek(self, tag: str) -> tuple[bytes, Encoding] | None:
        """As `take`, but the message stays."""
        return self._reassembly.peek(tag)

    def missing(self, tag: str) -> tuple[int, int]:
        """Of the message that comes with this tag: (chunks to come, bytes of each), about.

        Both are 0 before the first.
        """
        return self._reassembly.missing(tag)

    @property
    def kept_bytes(self) -> int:
        """Bytes of all that came and was not taken."""
        return self._reassembly.bytes

    def clear(self) -> None:
        """Keep nothing any more."""
        self._reassembly.clear()

    # -- what is waited for ----------------------------------------------------------------

    def wait(self, tag: str, now: float) -> None:
        """A receive is blocked on this tag from now on."""
        wait = self._waits.get(tag)
        if wait is None:
            self._waits[tag] = _Wait(now + self._timing.probe_interval)
        else:
            wait.threads += 1

    def unwait(self, tag: str) -> None:
        """The receive is no longer blocked."""
        wait = self._waits[tag]
        wait.threads -= 1
        if not wait.threads:
            del self._waits[tag]

    def came_in_part(self, tag: str, now: float) -> None:
        """Bytes of a frame of this tag have come: what is on its way is not probed for."""
        if (wait := self._waits.get(tag)) is not None:
            wait.next_probe = now + self._timing.probe_interval

    def not_sent(self, tag: str, now: float) -> None:
        """The peer says that it has nothing of this tag."""
        if (wait := self._waits.get(tag)) is not None:
            wait.not_sent_at = now

    def is_not_sent(self, tag: str, now: float) -> bool:
        """Whether the peer has lately said that it has nothing of a tag that is waited for."""
        wait = self._waits.get(tag)
        return wait is not None and now - wait.not_sent_at <= 2 * self._timing.probe_interval

    def probe_soon(self, tag: str, now: float) -> None:
        """What was popped for this tag may have been lost on its way: probe at once."""
        self._waits[tag].next_probe = now

    def probe_all_soon(self, now: float) -> None:
        """As `probe_soon`, for every tag that is waited for."""
        for wait in self._waits.values():
            wait.next_probe = now

    def probes_due(self, now: float) -> list[str]:
        """Tags to probe the peer for now; each is due again after ``probe_interval``."""
        due = [tag for tag, wait in self._waits.items() if wait.next_probe <= now]
        for tag in due:
            self._waits[tag].next_probe = now + self._timing.probe_interval
        self._stats.probes_sent += len(due)
        return due

    def timeouts(self) -> list[float]:
        """When probes and the ack are due."""
        due = [wait.next_probe for wait in self._waits.values()]
        if self.ack_due is not None:
            due.append(self.ack_due)
        return due

    # -- acks ------------------------------------------------------------------------------

    def owe_ack(self, now: float) -> None:
        """Something came: the peer must know, soon."""
        self.ack_due = now + self._ack_delay
        received = self.received
        # What rides on data tells nothing of what came out of its turn.
        self._ack_owed = _NEVER_TOLD if received.has_gaps else received.cumulative

    def ack_by(self, due: float) -> None:
        """Say it by then, whatever the peer knows."""
        self._ack_owed = _NEVER_TOLD
        if self.ack_due is None or due < self.ack_due:
            self.ack_due = due

    def must_ack(self, now: float, told: int) -> bool:
        """Whether an ack has to be pushed now.

        Args:
            told: the peer is known to know that all up to this number came.
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
        return self.received.ack_state()
