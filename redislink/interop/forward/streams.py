"""`Streams`: many byte streams between two parties, as a protocol without any socket.

Rules:
- Bytes go in packets, which the session delivers once and in order. A packet is a row of frames.
- The side that opens a stream names what it wants to reach, and numbers the stream. The first side
  takes even numbers, the other odd ones; each takes the next, and none twice.
- Each direction of a stream ends by END, after which the other one goes on. Each side's last frame
  of a stream is DONE (it has ended, and its program has taken all) or RESET. Whoever gets a RESET
  answers with its own last frame. After both last frames the stream is forgotten, by both sides.
  So a stream that is over here cannot pile up there, and no frame comes too late.
- A receiver never holds more of a stream than it has given credit for. Credit begins with
  `FIRST_CREDIT` and grows while the program takes all that comes; the sum over all streams stays
  below a bound. So a stream that nobody reads stops, and no other one does.
- Data on its way is bounded for all streams together (`IN_TRANSIT`), by what the other side says
  it has taken in. Streams take turns, so a busy one does not keep out the others.
- What the other side sends is untrusted: `receive_untrusted` raises `FrameError` and nothing else.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from redislink.errors import ConfigError, FrameError, UsageError
from redislink.protocol.list_names import check_name

VERSION: Final = 1
"""Both sides must agree; it is in the first frame of each."""
MOST_STREAMS: Final = 1000
"""That one side may have opened and that are not forgotten. Both sides count alike."""
FIRST_CREDIT: Final = 64 << 10
"""Bytes that may be sent of each stream before any credit comes."""
MOST_CREDIT: Final = 4 << 20
"""Bytes that a receiver holds of one stream, at most."""
EXTRA_CREDIT: Final = 64 << 20
"""Bytes by which the credit of all streams together may exceed the first one of each."""
IN_TRANSIT: Final = 4 << 20
"""Bytes of data sent and not yet taken in by the other side, at most."""
MOST_QUEUED: Final = 256 << 10
"""Bytes of one stream that wait here to be sent, at most."""
ALL_QUEUED: Final = 16 << 20
"""Bytes of all streams that wait here to be sent, at most."""
PACKET: Final = 512 << 10
"""Bytes of data in one packet, at most."""
_TURN: Final = 64 << 10
"""Bytes that one stream gets into a packet before it is the next one's turn, if there is one."""

_SHARE: Final = 4
"""The part of the extra credit left that a stream may double its own by: the less, the fewer."""

_HEADER: Final = struct.Struct(">BQI")
_MOST_FRAMES_BYTES: Final = 1 << 20
"""Bytes of a packet, at most: one of data, and a few frames of each stream."""
_MOST_ALLOWED: Final = 1 << 30
"""Bytes of credit that a side may have been given and not used: more is a mistake."""


class Kind(IntEnum):
    """The kind of a frame: in its header, with the stream and a number of 32 bits."""

    START = 1
    """The first frame of each side. The number is `VERSION`; the stream is 0."""
    OPEN = 2
    """Begins a stream. The number is the length of the name that follows."""
    DATA = 3
    """Bytes of a stream. The number is how many follow."""
    CREDIT = 4
    """So many more bytes of this stream may be sent."""
    END = 5
    """No more bytes of this stream come."""
    DONE = 6
    """The last frame: both directions have ended, and everything was taken."""
    RESET = 7
    """The last frame: the stream is broken off. The number is a `Reason`."""
    TAKEN = 8
    """So many bytes of data, of whatever streams, were taken in. The stream is 0."""


class Reason(IntEnum):
    """Why a stream was broken off."""

    CUT = 0
    """The connection of the program there broke."""
    NOT_ALLOWED = 1
    """There is nothing of this name there that this party may reach."""
    UNREACHABLE = 2
    """What the name leads to there does not accept the connection."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The other side has opened a stream.

    Attributes:
        stream: its number.
        name: what it wants to reach here.
    """

    stream: int
    name: str


@dataclass(frozen=True, slots=True)
class Came:
    """Bytes have come; say `Streams.taken` when the program has taken them.

    Attributes:
        stream: the stream.
        data: the bytes, valid until the next call: it is a view of the packet.
    """

    stream: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Ended:
    """No more bytes come in this stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The other side has broken off this stream; nothing more can be said of it."""

    stream: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class HasRoom:
    """`Streams.room` was 0 when asked, and no longer is."""

    stream: int


Event = Opened | Came | Ended | Broken | HasRoom


@dataclass(slots=True, eq=False)
class _Stream:
    """One stream, as this side sees it."""

    number: int
    is_mine: bool
    credit: int = FIRST_CREDIT
    """Bytes that may still be queued before the other side must give more."""
    queue: deque[memoryview] = field(default_factory=deque)
    queued: int = 0
    is_ready: bool = False
    """It stands in the row of those with something to send."""
    lacks_room: bool = False
    ending: bool = False
    """The program here sends no more; END goes after what is queued."""
    end_sent: bool = False
    last_sent: bool = False
    peer_ended: bool = False
    peer_last: bool = False
    granted: int = FIRST_CREDIT
    """Bytes that the other side may still send."""
    window: int = FIRST_CREDIT
    """Bytes that this side agrees to hold."""
    untaken: int = 0
    """Bytes that have come and that the program has not taken."""
    to_grant: int = 0
    """Bytes that the program has taken, and that are not granted again yet."""


class Streams:
    """One side of the streams between two parties. Not thread-safe.

    After each call, send `next_packet` until there is none.
    """

    def __init__(self, *, is_first: bool) -> None:
        """Args:
        is_first: true for exactly one of the two sides.
        """
        self._streams: dict[int, _Stream] = {}
        self._next_mine = 0 if is_first else 1
        self._next_of_peer = 1 if is_first else 0
        self._mine = 0
        self._of_peer = 0
        self._control: deque[bytes] = deque([_frame(Kind.START, 0, VERSION)])
        self._grants: dict[int, int] = {}
        self._ready: deque[_Stream] = deque()
        self._extra_left = EXTRA_CREDIT
        self._may_send = IN_TRANSIT
        self._in_transit = 0
        self._untold = 0
        self._has_room: list[int] = []
        self._all_queued = 0
        self._crowded_out: dict[int, _Stream] = {}
        """Streams that lack room because of what others have queued."""
        self._started = False

    # -- what the programs here do ------------------------------------------------------------

    @property
    def count(self) -> int:
        """Streams that are not forgotten."""
        return len(self._streams)

    @property
    def is_full(self) -> bool:
        """Whether `open` is not possible now."""
        return self._mine >= MOST_STREAMS

    @property
    def is_busy(self) -> bool:
        """Whether bytes are better collected for a while: many are on their way already."""
        return 4 * self._in_transit > IN_TRANSIT and 2 * self._all_queued < PACKET

    def open(self, name: str) -> int:
        """Open a stream to what has this name there; returns its number.

        Raises:
            ConfigError: the name is not valid.
            UsageError: `is_full`.
        """
        check_name(name, "name")
        if self.is_full:
            raise UsageError(f"{MOST_STREAMS} streams are open")
        number = self._next_mine
        self._next_mine += 2
        self._mine += 1
        self._streams[number] = _Stream(number, is_mine=True)
        encoded = name.encode()
        self._control.append(_frame(Kind.OPEN, number, len(encoded)) + encoded)
        return number

    def room(self, stream: int) -> int:
        """Bytes that `send` takes now. If it is 0, `HasRoom` says when that has changed."""
        it = self._streams.get(stream)
        if it is None or it.ending or it.last_sent or it.peer_last:
            return 0
        room = min(it.credit, MOST_QUEUED - it.queued, ALL_QUEUED - self._all_queued)
        it.lacks_room = room <= 0
        if it.lacks_room and it.queued < MOST_QUEUED and it.credit:
            self._crowded_out[it.number] = it
        return max(0, room)

    def send(self, stream: int, data: bytes) -> None:
        """Queue bytes of a stream: at most as many as `room` says, and at least one."""
        if not 0 < len(data) <= self.room(stream):
            raise UsageError(f"{len(data)} bytes for a stream that does not take so many")
        it = self._streams[stream]
        it.queue.append(memoryview(data))
        it.queued += len(data)
        self._all_queued += len(data)
        it.credit -= len(data)
        self._make_ready(it)

    def end(self, stream: int) -> None:
        """The program here sends no more in this stream. It may go on to receive."""
        it = self._streams.get(stream)
        if it is None or it.ending or it.last_sent or it.peer_last:
            return
        it.ending = True
        self._make_ready(it)

    def reset(self, stream: int, reason: Reason = Reason.CUT) -> None:
        """Break a stream off: nothing more of it is sent or received."""
        it = self._streams.get(stream)
        if it is not None and not it.last_sent:
            self._say_last(it, _frame(Kind.RESET, stream, reason))

    def taken(self, stream: int, count: int) -> None:
        """The program here has taken so many of the bytes that came in this stream."""
        it = self._streams.get(stream)
        if it is None or it.last_sent:
            return
        if not 0 < count <= it.untaken:
            raise UsageError(f"{count} bytes taken of {it.untaken} that came")
        it.untaken -= count
        if it.peer_ended:
            self._be_done(it)
            return
        it.to_grant += count
        if 2 * it.to_grant >= it.window:
            self._grant(it)

    def next_packet(self) -> bytes | None:
        """What to send to the other side now, as one packet; None if there is nothing."""
        parts: list[bytes | memoryview] = [*self._control]
        self._control.clear()
        for stream, count in self._grants.items():
            parts.append(_frame(Kind.CREDIT, stream, count))
        self._grants.clear()
        self._fill(parts)
        # It goes with others at the first occasion; alone, it would be answered by one like it.
        if 4 * self._untold >= IN_TRANSIT or (parts and self._untold >= _TURN):
            parts.append(_frame(Kind.TAKEN, 0, self._untold))
            self._untold = 0
        return b"".join(parts) if parts else None

    # -- what the other side does -------------------------------------------------------------

    def receive_untrusted(self, packet: bytes) -> Iterator[Event]:
        """Take in a packet; what follows from it, in order. Use all of it.

        Raises:
            FrameError: no side that keeps the rules sends this. Nothing more can be received.
        """
        if len(packet) > _MOST_FRAMES_BYTES:
            raise FrameError(f"a packet of streams of {len(packet)} bytes")
        view, at, size = memoryview(packet), 0, len(packet)
        if not size:
            raise FrameError("an empty packet of streams")
        while at < size:
            if size - at < _HEADER.size:
                raise FrameError("a packet of streams that ends within a frame")
            kind, stream, number = _HEADER.unpack_from(packet, at)
            at += _HEADER.size
            body = view[at:at]
            if kind in (Kind.DATA, Kind.OPEN):
                if number > size - at:
                    raise FrameError("a packet of streams that ends within a frame")
                body = view[at : at + number]
                at += number
            event = self._receive(kind, stream, number, body)
            if event is not None:
                yield event
            while self._has_room:
                yield HasRoom(self._has_room.pop())

    def rooms(self) -> list[HasRoom]:
        """Streams that have room since packets were sent."""
        found = [HasRoom(stream) for stream in self._has_room]
        self._has_room.clear()
        return found

    # -- inner workings -----------------------------------------------------------------------

    def _receive(self, kind: int, stream: int, number: int, body: memoryview) -> Event | None:
        if not self._started:
            if kind != Kind.START:
                raise FrameError("streams that do not begin with their version")
            self._started = True
            _check_start(stream, number)
            return None
        if kind == Kind.TAKEN:
            self._receive_taken(stream, number)
            return None
        if kind == Kind.OPEN:
            return self._receive_open(stream, body)
        it = self._streams.get(stream)
        if it is None or it.peer_last:
            raise FrameError("a frame of a stream that is not open")
        if kind == Kind.DATA:
            return self._receive_data(it, body)
        if kind == Kind.CREDIT:
            self._receive_credit(it, number)
            return None
        if kind == Kind.END:
            return self._receive_end(it, number)
        if kind == Kind.DONE:
            self._receive_done(it, number)
            return None
        if kind == Kind.RESET:
            return self._receive_reset(it, number)
        raise FrameError("a frame of streams of an unknown kind")

    def _receive_taken(self, stream: int, number: int) -> None:
        if stream != 0 or not 0 < number <= self._in_transit:
            raise FrameError("more was taken in of streams than was sent")
        self._in_transit -= number
        self._may_send += number

    def _receive_open(self, stream: int, body: memoryview) -> Opened:
        if stream != self._next_of_peer:
            raise FrameError("a stream with a number that is not the next one")
        if self._of_peer >= MOST_STREAMS:
            raise FrameError(f"more than {MOST_STREAMS} open streams")
        try:
            name = check_name(str(body, "ascii"), "name")
        except (UnicodeDecodeError, ConfigError):
            raise FrameError("a stream to a name that is not valid") from None
        self._next_of_peer += 2
        self._of_peer += 1
        self._streams[stream] = _Stream(stream, is_mine=False)
        return Opened(stream, name)

    def _receive_data(self, it: _Stream, body: memoryview) -> Came | None:
        count = len(body)
        if it.peer_ended or not 0 < count <= it.granted:
            raise FrameError("bytes of a stream that has ended, or more than may come")
        self._untold += count
        it.granted -= count
        if it.last_sent:
            return None  # broken off here: the other side did not know yet
        it.untaken += count
        return Came(it.number, body)

    def _receive_credit(self, it: _Stream, number: int) -> None:
        if not 0 < number <= _MOST_ALLOWED - it.credit:
            raise FrameError("a credit that is no number of bytes")
        it.credit += number
        self._look_for_room(it)

    def _receive_end(self, it: _Stream, number: int) -> Ended | None:
        if it.peer_ended or number:
            raise FrameError("a second end of a stream")
        it.peer_ended = True
        self._grants.pop(it.number, None)
        if it.last_sent:
            return None
        self._be_done(it)
        return Ended(it.number)

    def _receive_done(self, it: _Stream, number: int) -> None:
        if number or not (it.last_sent or (it.end_sent and it.peer_ended)):
            raise FrameError("a stream that is done before it has ended")
        it.peer_last = True
        self._forget_if_over(it)

    def _receive_reset(self, it: _Stream, number: int) -> Broken | None:
        try:
            reason = Reason(number)
        except ValueError:
            raise FrameError("a stream broken off for an unknown reason") from None
        it.peer_last = True
        if it.last_sent:
            self._forget_if_over(it)
            return None
        self._say_last(it, _frame(Kind.DONE, it.number, 0))
        return Broken(it.number, reason)

    def _make_ready(self, it: _Stream) -> None:
        if not it.is_ready:
            it.is_ready = True
            self._ready.append(it)

    def _fill(self, parts: list[bytes | memoryview]) -> None:
        """Add data to a packet, a turn of each stream at a time, and the ends of streams."""
        left = PACKET
        blocked: list[_Stream] = []
        while self._ready and left > 0:
            it = self._ready.popleft()
            it.is_ready = False
            if it.last_sent:
                continue
            count = min(it.queued, _TURN if self._ready else left, left, self._may_send)
            if count:
                parts.append(_frame(Kind.DATA, it.number, count))
                self._unqueue(it, count, parts)
                left -= count
                self._may_send -= count
                self._in_transit += count
                self._look_for_room(it)
            if it.queued:
                it.is_ready = True
                (self._ready if self._may_send else blocked).append(it)
            elif it.ending and not it.end_sent:
                parts.append(_frame(Kind.END, it.number, 0))
                it.end_sent = True
                self._be_done(it)
                parts += self._control
                self._control.clear()
        self._ready.extendleft(reversed(blocked))
        if self._crowded_out and 2 * self._all_queued <= ALL_QUEUED:
            waiting, self._crowded_out = self._crowded_out, {}
            for it in waiting.values():
                self._look_for_room(it)

    def _unqueue(self, it: _Stream, count: int, parts: list[bytes | memoryview]) -> None:
        it.queued -= count
        self._all_queued -= count
        while count:
            piece = it.queue.popleft()
            if len(piece) > count:
                it.queue.appendleft(piece[count:])
                piece = piece[:count]
            parts.append(piece)
            count -= len(piece)

    def _look_for_room(self, it: _Stream) -> None:
        if it.lacks_room and self.room(it.number):
            self._has_room.append(it.number)

    def _grant(self, it: _Stream) -> None:
        """Let the other side send what was taken, and more if the program takes all at once."""
        if not it.untaken and it.window <= self._extra_left // _SHARE:
            more = min(it.window, MOST_CREDIT - it.window)
            self._extra_left -= more
            it.window += more
            it.to_grant += more
        it.granted += it.to_grant
        self._grants[it.number] = self._grants.get(it.number, 0) + it.to_grant
        it.to_grant = 0

    def _be_done(self, it: _Stream) -> None:
        if it.end_sent and it.peer_ended and not it.untaken:
            self._say_last(it, _frame(Kind.DONE, it.number, 0))

    def _say_last(self, it: _Stream, frame: bytes) -> None:
        self._control.append(frame)
        self._grants.pop(it.number, None)
        it.last_sent = True
        it.queue.clear()
        self._all_queued -= it.queued
        it.queued = it.untaken = 0
        self._extra_left += it.window - FIRST_CREDIT
        it.window = FIRST_CREDIT
        self._forget_if_over(it)

    def _forget_if_over(self, it: _Stream) -> None:
        if it.last_sent and it.peer_last:
            del self._streams[it.number]
            if it.is_mine:
                self._mine -= 1
            else:
                self._of_peer -= 1


def _check_start(stream: int, number: int) -> None:
    if stream != 0 or number != VERSION:
        raise FrameError(
            f"streams of version {number}, but this redislink speaks version {VERSION}: install "
            "the same version at both parties"
        )


def _frame(kind: Kind, stream: int, number: int) -> bytes:
    return _HEADER.pack(kind, stream, number)
