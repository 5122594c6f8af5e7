"""`Receiving`: keeps one peer's messages until they are taken; tracks waits, and acks that are due.

Rules:
- Each number is delivered once; duplicates are dropped.
- A frame is acked at most ``ack_delay`` after it came, or twice that, unless we know that the peer
  knows by then. Reading the ack's content (`ack_state`) settles all acks that were due.
- A peer that waits for acks has one after every so many messages (`ack_eagerly`).
- `Waits` says when the peer is probed for the tags that receives wait for.

This module pushes nothing, and raises only errors about a frame. `Delivery` pushes the acks and
probes that are due, and decides what the state allows.
"""

from __future__ import annotations

import sys
from collections.abc import Container
from typing import Final

from redislink.protocol import chunking
from redislink.protocol.ack_requests import EAGER_SECONDS
from redislink.protocol.conversation import DeliveryStats, Timing
from redislink.protocol.frame import AckState, Data, Encoding
from redislink.protocol.received import ReceivedNumbers
from redislink.protocol.waits import Waits

_FRAME_OVERHEAD: Final = chunking.OVERHEAD
_NEVER_TOLD: Final = sys.maxsize


class Receiving:
    """The half of a `Delivery` that receives. Not thread-safe."""

    def __init__(self, timing: Timing, stats: DeliveryStats) -> None:
        # At most 30 attributes: see `Sending`.
        self.received = ReceivedNumbers()
        self.ack_due: float | None = None
        """When an ack is due; None if the peer knows everything."""
        self.ack_eagerly = 0
        """The peer waits for acks: it wants one after so many messages. 0 if it does not wait."""
        self._eager_until = 0.0
        self._came_since_ack = 0
        """Messages since the last ack, counted only while ``ack_eagerly`` is set."""
        self.unreported_bytes = 0
        """Bytes received since the last ack."""
        self.reported = 0
        """We have acked every number up to this one; the peer may not have heard it yet."""
        self.edition = 0
        """We read the data lists of this edition."""
        self._ack_delay = timing.ack_delay
        self._stats = stats
        self._reassembly = chunking.Reassembly(timing.peer_memory_bytes)
        self.kept: Container[str] = self._reassembly.tags
        """The tags for which a message, or a part of one, was received and not yet taken."""
        self.waits = Waits(timing)
        self._waits = self.waits.by_tag
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

    def lend(self, tag: str, frame: Data, size: int) -> memoryview | None:
        """Lend the place of a chunk in its message: see `chunking.Reassembly.lend`."""
        return self._reassembly.lend(tag, frame, size, self.received)

    def add(self, tag: str | None, frame: Data, body: bytes | memoryview, now: float) -> bool:
        """Receive a chunk; return False and drop it if it is a duplicate.

        Args:
            tag: the list's tag. For a chunk of a rest it does not count: the broker may move it.
            frame, body: the chunk.
            now: monotonic seconds.

        Raises:
            FrameError: the chunk cannot be part of a legal message; nothing has changed.
        """
        if frame.seq in self.received:
            self._stats.duplicates_dropped += 1
            return False
        length = len(body)  # if it was lent, it is taken back
        if frame.is_rest or tag is None:
            tag = self._reassembly.add_rest(frame, body, self.received)
        else:
            self._reassembly.add(tag, frame, body, self.received)
        self._count(tag, length, now)
        return True

    def _count(self, tag: str | None, length: int, now: float) -> None:
        self.unreported_bytes += length + _FRAME_OVERHEAD
        if self._waits and tag is not None and tag in self._waits:
            self.waits.came(tag, now, whole=True)

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

    def missing(self, tag: str) -> chunking.Missing:
        """Return what is missing of the message now arriving with this tag."""
        return self._reassembly.missing(tag)

    def tag_of(self, frame: Data) -> str | None:
        """Return the tag of the message to which this chunk of a rest belongs, if it is known."""
        return self._reassembly.tag_of(frame)

    @property
    def kept_bytes(self) -> int:
        """The bytes that were received and not yet taken."""
        return self._reassembly.bytes

    def clear(self) -> None:
        """Forget everything that was received and not taken."""
        self._reassembly.clear()

    # -- acks ------------------------------------------------------------------------------

    def be_eager(self, every: int, now: float) -> None:
        """Note that the peer waits for acks, and wants one after every so many messages."""
        self.ack_eagerly, self._eager_until = every, now + EAGER_SECONDS

    def owes_eager_ack(self, now: float) -> bool:
        """Note that a message came while the peer waits for acks; return whether to ack now."""
        if now > self._eager_until:
            self.ack_eagerly = 0
            return False
        self._came_since_ack += 1
        return self._came_since_ack >= self.ack_eagerly

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
        self.unreported_bytes = self._came_since_ack = 0
        self.reported = self.received.cumulative
        return self.received.ack_state(self.edition)
