"""Messages as chunks, and chunks as messages again.

Rules:
- The chunks of one message have consecutive frame numbers, so that (first number, parts)
  names the message and one lost chunk can be resent alone.
- Messages of one tag are handed out in the order in which they were sent, although their
  chunks may come in any order: each names the message before it on its tag while that may
  still be under way (`Data.previous`).
- Chunks that contradict each other, or of which no legal message can be made, are the peer's
  (or the broker's) fault: `FrameError`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from redislink.errors import FrameError, UsageError
from redislink.protocol.frame import MAX_PARTS, Data, Encoding
from redislink.protocol.received import ReceivedNumbers

MAX_MESSAGE_BYTES: Final = 4 << 30
OVERHEAD: Final = 128
"""What a chunk counts besides its bytes, so that many small ones fill a limit too."""
_ENOUGH: Final = 64
"""Chunks of which the last, on the way from the broker alone, hardly counts any more."""
_TOO_FEW: Final = 8
"""Least chunks of which cutting finer is not worth it: see `choose`."""


def choose(size: int, least: int, most: int) -> int:
    """How large the chunks of a message should be (bytes).

    The receiver's line brings a chunk when all of it has gone over the sender's, so what the
    relay adds to a message's time on the line is the time of one chunk. But the receiver knows
    of the others only when the first has come, and asking the broker for them takes a round
    trip, which costs a short message more than it gains.

    Args:
        size: of the message.
        least: bytes below which a chunk is not worth the work that it makes. A message of less
            than eight times that is not cut unless it has to be.
        most: bytes that a chunk may have.
    """
    if size < _TOO_FEW * least:
        return most
    return min(most, max(least, -(-size // _ENOUGH)))


def most_uncut(least: int, most: int) -> int:
    """The size (bytes) up to which `choose` leaves a message whole."""
    return min(most, _TOO_FEW * least - 1)


def split(body: bytes, chunk_bytes: int) -> Iterator[bytes | memoryview]:
    """The chunks of a message, without copying it; an empty message has one, empty.

    Raises:
        UsageError: the message is larger than 4 GiB, or has too many chunks.
    """
    if len(body) > MAX_MESSAGE_BYTES or count_parts(len(body), chunk_bytes) > MAX_PARTS:
        raise UsageError(
            f"a message of {len(body)} bytes is too large: split it, at most {MAX_MESSAGE_BYTES}"
        )
    if len(body) <= chunk_bytes:
        yield body
        return
    view = memoryview(body)
    for start in range(0, len(view), chunk_bytes):
        yield view[start : start + chunk_bytes]


def count_parts(size: int, chunk_bytes: int) -> int:
    """How many chunks a message of ``size`` bytes has."""
    return max(1, -(-size // chunk_bytes))


@dataclass(slots=True)
class _Partial:
    """A message of which not all chunks have come, or that waits for one before it."""

    parts: int
    previous: int
    encoding: Encoding
    chunks: dict[int, bytes] = field(default_factory=dict)
    size: int | None = None
    """Bytes of each chunk but the last, once one of these has come."""

    def agrees_with(self, frame: Data) -> bool:
        return (self.parts, self.previous, self.encoding) == (
            frame.parts,
            frame.previous,
            frame.encoding,
        )


@dataclass(slots=True)
class _Tag:
    """What came for one tag; messages are named by the number of their first chunk."""

    partial: dict[int, _Partial] = field(default_factory=dict)
    followers: dict[int, list[int]] = field(default_factory=dict)
    """Which partial messages wait for the one before them, by that."""
    ready: deque[tuple[bytes, Encoding]] = field(default_factory=deque)

    def is_under_way(self, message: int, received: ReceivedNumbers) -> bool:
        return message in self.partial or (message > 0 and message not in received)


def _check_size(frame: Data, size: int, partial: _Partial | None) -> None:
    """All chunks but the last are of one size, and no message is over its limit.

    Raises:
        FrameError: of a chunk that is otherwise.
    """
    last = frame.part == frame.parts - 1
    whole = 0 if last else (frame.parts - 1) * size
    if not size or whole >= MAX_MESSAGE_BYTES:
        raise FrameError(f"a chunk of {size} bytes, one of {frame.parts}, of a message")
    agreed = None if partial is None else partial.size
    if agreed is not None and (size > agreed or (size < agreed and not last)):
        raise FrameError("chunks of one message that are not of one size")


class Reassembly:
    """What has come from one peer and was not taken yet, by tag."""

    def __init__(self) -> None:
        self.tags: dict[str, _Tag] = {}
        """Those of which something is kept: whole messages, or chunks."""
        self.bytes = 0
        """Of all that is kept; a chunk, or a whole message, counts `OVERHEAD` besides."""

    def add(self, tag: str, frame: Data, body: bytes, received: ReceivedNumbers) -> None:
        """Take in a chunk whose number is not in ``received`` yet, and note it there.

        Raises:
            FrameError: it contradicts an earlier chunk of the same message, or is of none that
                can be; nothing has changed.
        """
        entry = self.tags.get(tag) or _Tag()
        first = frame.seq - frame.part
        partial = entry.partial.get(first)
        if partial is not None and not partial.agrees_with(frame):
            raise FrameError("two chunks of one message disagree about it")
        if frame.parts > 1:
            _check_size(frame, len(body), partial)
        received.add(frame.seq)
        self.bytes += len(body) + OVERHEAD
        self.tags[tag] = entry
        # Nearly always: a whole message, none before it is under way, none waits for it.
        if frame.parts == 1 and not frame.previous and not entry.followers:
            entry.ready.append((body, frame.encoding))
            return
        if partial is None:
            partial = _Partial(frame.parts, frame.previous, frame.encoding)
            entry.partial[first] = partial
            if entry.is_under_way(frame.previous, received):
                entry.followers.setdefault(frame.previous, []).append(first)
        partial.chunks[frame.part] = body
        if frame.part < frame.parts - 1:
            partial.size = len(body)
        self._hand_out(entry, first, received)

    def take(self, tag: str) -> tuple[bytes, Encoding] | None:
        """The next message of a tag, which is no longer kept then; None if there is none."""
        entry = self.tags.get(tag)
        if entry is None or not entry.ready:
            return None
        message = entry.ready.popleft()
        self.bytes -= len(message[0]) + OVERHEAD
        if not entry.ready and not entry.partial:
            del self.tags[tag]
        return message

    def peek(self, tag: str) -> tuple[bytes, Encoding] | None:
        """As `take`, but the message stays."""
        entry = self.tags.get(tag)
        return entry.ready[0] if entry is not None and entry.ready else None

    def clear(self) -> None:
        """Keep nothing any more."""
        self.tags.clear()
        self.bytes = 0

    def missing(self, tag: str) -> tuple[int, int]:
        """Of the first message of a tag that began to come: (chunks to come, bytes of each).

        Both are 0 if there is none. The last chunk may have fewer bytes.
        """
        entry = self.tags.get(tag)
        if entry is None or not entry.partial:
            return 0, 0
        partial = entry.partial[min(entry.partial)]
        return partial.parts - len(partial.chunks), max(map(len, partial.chunks.values()))

    def _hand_out(self, entry: _Tag, first: int, received: ReceivedNumbers) -> None:
        """Make a message ready if it can be, and then those that waited for it, in order."""
        candidates = [first]
        while candidates:
            first = heapq.heappop(candidates)
            partial = entry.partial.get(first)
            if partial is None or len(partial.chunks) < partial.parts:
                continue
            if entry.is_under_way(partial.previous, received):
                continue
            body = partial.chunks[0]
            if partial.parts > 1:
                body = b"".join(partial.chunks[part] for part in range(partial.parts))
                self.bytes -= (partial.parts - 1) * OVERHEAD
            entry.ready.append((body, partial.encoding))
            del entry.partial[first]
            for follower in entry.followers.pop(first, ()):
                heapq.heappush(candidates, follower)
