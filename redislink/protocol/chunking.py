"""Splits messages into chunks, and reassembles them.

Rules:
- The chunks of one message have consecutive frame numbers. So (first number, parts) identifies
  the message, and one lost chunk can be resent alone.
- `Reassembly` hands out the messages of a tag in the order in which they were sent, although their
  chunks may arrive in any order: each message names the one before it on its tag while that may
  still be under way (`Data.previous`).
- Chunks that contradict each other, or that form no legal message, are the fault of the peer or of
  the broker: `FrameError`.
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
"""Counted for each chunk on top of its bytes, so that many small chunks fill a limit too."""
_ENOUGH: Final = 64
"""With so many chunks, the time that the last one takes from the broker hardly matters."""
_TOO_FEW: Final = 8
"""A message of fewer chunks of the least size is not worth cutting: see `choose`."""


def choose(size: int, least: int, most: int) -> int:
    """Return the chunk size for a message, in bytes.

    The receiver gets a chunk only after the sender has pushed all of it, so the relay delays a
    message by the time that one chunk takes. But the receiver learns of the other chunks only when
    the first arrives, and asking the broker for them takes a round trip, which costs a short
    message more than it gains.

    Args:
        size: the message's size in bytes.
        least: the smallest chunk that is worth its cost, in bytes. A message of less than eight
            times this size is cut only if it is larger than ``most``.
        most: the largest chunk that is allowed, in bytes.
    """
    if size < _TOO_FEW * least:
        return most
    return min(most, max(least, -(-size // _ENOUGH)))


def most_uncut(least: int, most: int) -> int:
    """Return the size in bytes up to which `choose` leaves a message whole."""
    return min(most, _TOO_FEW * least - 1)


def split(body: bytes, chunk_bytes: int) -> Iterator[bytes | memoryview]:
    """Yield the chunks of a message without copying it; an empty message has one empty chunk.

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
    """Return how many chunks a message of ``size`` bytes has."""
    return max(1, -(-size // chunk_bytes))


@dataclass(slots=True)
class _Partial:
    """A message that lacks chunks, or that waits for an earlier message of its tag."""

    parts: int
    previous: int
    encoding: Encoding
    chunks: dict[int, bytes] = field(default_factory=dict)
    size: int | None = None
    """Size of each chunk but the last, in bytes; None until one of these has arrived."""

    def agrees_with(self, frame: Data) -> bool:
        return (self.parts, self.previous, self.encoding) == (
            frame.parts,
            frame.previous,
            frame.encoding,
        )


@dataclass(slots=True)
class _Tag:
    """What has arrived for one tag. A message is identified by the number of its first chunk."""

    partial: dict[int, _Partial] = field(default_factory=dict)
    followers: dict[int, list[int]] = field(default_factory=dict)
    """For each message that is under way: the partial messages that wait for it."""
    ready: deque[tuple[bytes, Encoding]] = field(default_factory=deque)

    def is_under_way(self, message: int, received: ReceivedNumbers) -> bool:
        return message in self.partial or (message > 0 and message not in received)


def _check_size(frame: Data, size: int, partial: _Partial | None) -> None:
    """Check that all chunks but the last have one size, and that the message is within the limit.

    Raises:
        FrameError: this chunk breaks one of these rules.
    """
    last = frame.part == frame.parts - 1
    whole = 0 if last else (frame.parts - 1) * size
    if not size or whole >= MAX_MESSAGE_BYTES:
        raise FrameError(f"a chunk of {size} bytes in a message of {frame.parts} chunks")
    agreed = None if partial is None else partial.size
    if agreed is not None and (size > agreed or (size < agreed and not last)):
        raise FrameError("chunks of one message that differ in size")


class Reassembly:
    """What has arrived from one peer and was not yet taken, by tag. Not thread-safe."""

    def __init__(self) -> None:
        self.tags: dict[str, _Tag] = {}
        """The tags for which a message or a chunk is kept."""
        self.bytes = 0
        """Size of all that is kept, with `OVERHEAD` added for each chunk or whole message."""

    def add(self, tag: str, frame: Data, body: bytes, received: ReceivedNumbers) -> None:
        """Keep a chunk whose number is not yet in ``received``, and add the number there.

        Raises:
            FrameError: the chunk contradicts an earlier one of the same message, or cannot belong
                to any legal message; nothing has changed.
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
        # Nearly always: a whole message; none before it is under way, and none waits for it.
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
        """Remove and return the next message of a tag; None if none is ready."""
        entry = self.tags.get(tag)
        if entry is None or not entry.ready:
            return None
        message = entry.ready.popleft()
        self.bytes -= len(message[0]) + OVERHEAD
        if not entry.ready and not entry.partial:
            del self.tags[tag]
        return message

    def peek(self, tag: str) -> tuple[bytes, Encoding] | None:
        """Return what `take` would return, and keep the message."""
        entry = self.tags.get(tag)
        return entry.ready[0] if entry is not None and entry.ready else None

    def clear(self) -> None:
        """Drop everything that is kept."""
        self.tags.clear()
        self.bytes = 0

    def missing(self, tag: str) -> tuple[int, int]:
        """Return, for the oldest partial message of a tag, (missing chunks, bytes of each).

        Both are 0 if there is no partial message. The last chunk may be smaller.
        """
        entry = self.tags.get(tag)
        if entry is None or not entry.partial:
            return 0, 0
        partial = entry.partial[min(entry.partial)]
        return partial.parts - len(partial.chunks), max(map(len, partial.chunks.values()))

    def _hand_out(self, entry: _Tag, first: int, received: ReceivedNumbers) -> None:
        """Make a message ready if nothing is missing, then those that waited for it, in order."""
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
