"""Splits messages into chunks, and reassembles them.

Rules:
- The chunks of one message have consecutive frame numbers. So (first number, parts) identifies
  the message, and one lost chunk can be resent alone.
- `Reassembly` hands out the messages of a tag in the order in which they were sent, although their
  chunks may arrive in any order: each message names the one before it on its tag while that may
  still be under way (`Data.previous`).
- Chunks that contradict each other, or that form no legal message, are the fault of the peer or of
  the broker: `FrameError`.
- The chunks of a large message are opened in their place in it, so that it is never there twice.
  The place of a chunk is lent once: whoever opens there may find that the chunk is not genuine, and
  leaves anything there. Then the genuine one is kept apart, and all are joined in the end.
"""

from __future__ import annotations

import heapq
import io
import math
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from redislink.errors import FrameError, UsageError
from redislink.protocol.frame import MAX_PARTS, Data, Encoding
from redislink.protocol.received import ReceivedNumbers

MAX_MESSAGE_BYTES: Final = 4 << 30
OVERHEAD: Final = 128
"""Counted for each chunk on top of its bytes, so that many small chunks fill a limit too."""
_ENOUGH: Final = 64
"""With so many chunks, the time that the last one takes from the broker hardly matters."""
_SHARE: Final = 8
"""There is room for a whole message once this part of it, an eighth, has come: a peer that says how
much will come, and sends little of it, takes little of our memory."""
_TOO_FEW: Final = 8
"""A message of fewer chunks of the least size is not worth cutting: see `choose`."""
MOST_APART: Final = 4 << 20
"""The largest message whose rest travels apart, and the most bytes of such messages under way."""


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


def choose_apart(size: int, cost: int, least: int, most: int) -> int:
    """Return the chunk size for a message whose rest travels apart, in bytes.

    The receiver has asked for the rest before it learns of the message, so cutting costs no round
    trip, only what each frame takes of the line and of both ends' time. Together with what the
    relay adds, which is the time of one chunk, that is least at the square root of size times cost.

    Args:
        size: the message's size in bytes.
        cost: of one more frame, as the bytes that the line would carry in that time.
        least: the smallest chunk that is worth its cost, in bytes; 0: none is.
        most: the largest chunk that is allowed, in bytes.

    Returns:
        0 if the message's rest had better not travel apart.
    """
    if not least or size > MOST_APART:
        return 0
    chunk = min(most, max(least, math.isqrt(size * cost), -(-size // _ENOUGH)))
    return chunk if 2 * chunk <= size else 0


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


class Missing(NamedTuple):
    """What is missing of a message.

    Attributes:
        chunks: how many; 0 if nothing is, or nothing is known of the message yet.
        size: bytes of each; the last one may have fewer.
        apart: whether they are to come on the list of rests, unless they were lost.
    """

    chunks: int
    size: int
    apart: bool


NOTHING: Final = Missing(0, 0, apart=False)


@dataclass(slots=True)
class _Partial:
    """A message that lacks chunks, or that waits for an earlier message of its tag."""

    parts: int
    previous: int
    encoding: Encoding
    apart: bool = False
    chunks: dict[int, bytes] = field(default_factory=dict)
    """The chunks that are not in their place."""
    size: int | None = None
    """Size of each chunk but the last, in bytes; None until one of these has arrived."""
    arrived: int = 0
    total: int = 0
    """Size of the chunks that have arrived, in bytes."""
    room: io.BytesIO | None = None
    """The chunks that are in their place."""
    lent: dict[int, memoryview | None] = field(default_factory=dict)
    """The places that were lent, or are filled."""
    counted: int = 0
    """What `Reassembly.bytes` has of it."""

    def make_room(self, size: int) -> io.BytesIO:
        """Give each chunk its place; ``size`` is that of a whole one.

        `BytesIO` fills a bytes object through a view, and then hands out that very object. The
        memory for it is asked for as zeros, and takes no room before something is written there.
        """
        self.room = room = io.BytesIO(bytes(self.parts * size))
        self.counted += self.parts * size - self.total
        for part in list(self.chunks):
            self.put(part, self.chunks.pop(part))
        return room

    def put(self, part: int, body: bytes | memoryview) -> bool:
        """Copy a chunk to its place; False if it has none, or that was lent."""
        if self.room is None or self.size is None or part in self.lent:
            return False
        start = part * self.size
        with self.room.getbuffer() as view:
            view[start : start + len(body)] = body
        self.lent[part] = None
        return True

    def whole(self) -> bytes:
        """Return the message, which has arrived."""
        room, chunks, size = self.room, self.chunks, self.size
        if self.parts == 1:
            return chunks[0]
        if room is None or size is None:
            return b"".join(chunks[part] for part in range(self.parts))
        if not chunks:  # then whatever was lent is filled and given back
            room.truncate(self.total)
            return room.getvalue()
        ends = [min(self.total, (part + 1) * size) for part in range(self.parts)]
        with room.getbuffer() as view:
            return b"".join(
                chunks[part] if part in chunks else view[part * size : end]
                for part, end in enumerate(ends)
            )

    @classmethod
    def of(cls, frame: Data) -> _Partial:
        return cls(frame.parts, frame.previous, frame.encoding, frame.apart)

    def add(self, frame: Data, body: bytes | memoryview) -> int:
        """Keep a chunk, or take its place back; return what that adds to `Reassembly.bytes`."""
        size, counted = len(body), OVERHEAD
        if type(body) is memoryview and self.lent.get(frame.part) is body:
            body.release()
            self.lent[frame.part] = None
        elif not self.put(frame.part, body):
            self.chunks[frame.part] = bytes(body)
            counted += size
        self.arrived += 1
        self.total += size
        self.counted += counted
        if frame.part < frame.parts - 1:
            self.size = size
        return counted

    def agrees_with(self, frame: Data) -> bool:
        return (self.parts, self.previous, self.encoding, self.apart) == (
            frame.parts,
            frame.previous,
            frame.encoding,
            frame.apart,
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


def _check_chunk(frame: Data, size: int, partial: _Partial | None) -> None:
    """Check that all chunks of a message say the same of it, that all but the last have one size,
    and that the message is within the limit.

    Args:
        frame: of the chunk to check.
        size: its bytes.
        partial: the chunks of its message that have come before; None if none has.

    Raises:
        FrameError: this chunk breaks one of these rules.
    """
    if partial is not None and not partial.agrees_with(frame):
        raise FrameError("two chunks of one message disagree about it")
    if frame.parts == 1:
        return
    last = frame.part == frame.parts - 1
    whole = 0 if last else (frame.parts - 1) * size
    if not size or whole >= MAX_MESSAGE_BYTES:
        raise FrameError(f"a chunk of {size} bytes in a message of {frame.parts} chunks")
    agreed = None if partial is None else partial.size
    if agreed is not None and (size > agreed or (size < agreed and not last)):
        raise FrameError("chunks of one message that differ in size")


class Reassembly:
    """What has arrived from one peer and was not yet taken, by tag. Not thread-safe."""

    def __init__(self, most: int = sys.maxsize) -> None:
        """Args: the bytes up to which there is room for whole messages of which a part has come."""
        self._most = most
        self.tags: dict[str, _Tag] = {}
        """The tags for which a message or a chunk is kept."""
        self.bytes = 0
        """Size of all that is kept, with `OVERHEAD` added for each chunk or whole message; of a
        message for which there is room, the size of that."""
        self._tag_of: dict[int, str] = {}
        """The tag of each message whose rest travels apart, by the number of its first chunk."""
        self._rests: dict[int, _Partial] = {}
        """Rests of messages whose first chunk, which tells the tag, has not come yet."""

    def lend(
        self, tag: str, frame: Data, size: int, received: ReceivedNumbers
    ) -> memoryview | None:
        """Lend the place of a chunk in its message, for its body to be written there.

        Args:
            tag: the tag of the list that it came from.
            frame: the chunk's frame; anybody may have made it up.
            size: of its body, in bytes.
            received: as for `add`.

        Returns:
            The place, for `add`. None if there is none for such a chunk, or it was lent before.
        """
        entry = self.tags.get(tag)
        partial = None if entry is None else entry.partial.get(frame.seq - frame.part)
        if partial is None or partial.size is None or frame.seq in received:
            return None
        is_last = frame.part == frame.parts - 1
        fits = size == partial.size or (is_last and 0 < size < partial.size)
        if not fits or not partial.agrees_with(frame) or frame.part in partial.lent:
            return None
        room = partial.room
        if room is None:
            more = partial.parts * partial.size - partial.total
            if partial.arrived * _SHARE < partial.parts or self.bytes + more > self._most:
                return None
            room = partial.make_room(partial.size)
            self.bytes += more
        start = frame.part * partial.size
        place = partial.lent[frame.part] = room.getbuffer()[start : start + size]
        return place

    def add_rest(
        self, frame: Data, body: bytes | memoryview, received: ReceivedNumbers
    ) -> str | None:
        """Like `add`, for a chunk that travels apart from the first one of its message.

        Returns:
            The message's tag; None if that is not known yet.
        """
        tag = self.tag_of(frame)
        if tag is not None:
            self.add(tag, frame, body, received)
            return tag
        first = frame.seq - frame.part
        partial = self._rests.get(first)
        _check_chunk(frame, len(body), partial)
        received.add(frame.seq)
        if partial is None:
            partial = self._rests[first] = _Partial.of(frame)
        self.bytes += partial.add(frame, body)
        return None

    def tag_of(self, frame: Data) -> str | None:
        """Return the tag of the message to which this chunk of a rest belongs, if it is known."""
        return self._tag_of.get(frame.seq - frame.part)

    def add(
        self, tag: str, frame: Data, body: bytes | memoryview, received: ReceivedNumbers
    ) -> None:
        """Keep a chunk whose number is not yet in ``received``, and add the number there.

        Args:
            tag: the tag of the list that it came from.
            frame: the chunk's frame.
            body: its body, or the place that `lend` returned for it, which this takes back.
            received: the numbers that came from this peer.

        Raises:
            FrameError: the chunk contradicts an earlier one of the same message, or cannot belong
                to any legal message; nothing has changed.
        """
        entry = self.tags.get(tag) or _Tag()
        first = frame.seq - frame.part
        partial = entry.partial.get(first)
        size = len(body)
        _check_chunk(frame, size, partial or self._rests.get(first))
        received.add(frame.seq)
        self.tags[tag] = entry
        # Nearly always: a whole message; none before it is under way, and none waits for it.
        if frame.parts == 1 and not frame.previous and not entry.followers:
            self.bytes += size + OVERHEAD
            entry.ready.append((bytes(body), frame.encoding))
            return
        if partial is None:
            partial = self._rests.pop(first, None) or _Partial.of(frame)
            entry.partial[first] = partial
            if partial.apart:
                self._tag_of[first] = tag
            if entry.is_under_way(frame.previous, received):
                entry.followers.setdefault(frame.previous, []).append(first)
        self.bytes += partial.add(frame, body)
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
        self._tag_of.clear()
        self._rests.clear()
        self.bytes = 0

    def missing(self, tag: str) -> Missing:
        """Return what is missing of the oldest partial message of a tag."""
        entry = self.tags.get(tag)
        if entry is None or not entry.partial:
            return NOTHING
        partial = entry.partial[min(entry.partial)]
        chunks = partial.parts - partial.arrived
        return Missing(chunks, partial.size or partial.total, partial.apart and chunks > 0)

    def _hand_out(self, entry: _Tag, first: int, received: ReceivedNumbers) -> None:
        """Make a message ready if nothing is missing, then those that waited for it, in order."""
        candidates = [first]
        while candidates:
            first = heapq.heappop(candidates)
            partial = entry.partial.get(first)
            if partial is None or partial.arrived < partial.parts:
                continue
            if entry.is_under_way(partial.previous, received):
                continue
            body = partial.whole()
            self.bytes += len(body) + OVERHEAD - partial.counted
            entry.ready.append((body, partial.encoding))
            del entry.partial[first]
            if partial.apart:
                del self._tag_of[first]
            for follower in entry.followers.pop(first, ()):
                heapq.heappush(candidates, follower)
