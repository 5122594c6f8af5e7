"""What a `Delivery` asks its caller to do on the broker: append frames, remove lists.

Rules:
- A push stands for one frame on one list. It returns the very same frame however often it is asked.
- A push that was handed out does not change, whatever becomes of its chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

from redislink.protocol import chunking
from redislink.protocol.frame import Data, Encoding, Frame


class Push:
    """One frame to append to a list.

    Attributes:
        body: the bytes after the frame's header.
        clear: True empties the list first, because everything on it is sent again.
        message_bytes: the size of the whole message, if the body is only a part of it; else 0.
    """

    body: bytes | memoryview = b""
    clear: bool = False
    message_bytes: int = 0

    @property
    def frame(self) -> Frame:
        """The frame; always the same one."""
        raise NotImplementedError


class ControlPush(Push):
    """A frame for the control list."""

    def __init__(self, frame: Frame, *, clear: bool = False) -> None:
        self._frame = frame
        self.clear = clear

    @property
    def frame(self) -> Frame:
        return self._frame


class DataPush(Push):
    """A DATA frame for a data list.

    Attributes:
        tag: the list's tag.
        again: whether it was pushed before; the peer is to know.
        is_rest: whether its frame `is_rest`. The first push of such a frame goes onto the list of
            rests, later ones onto its tag's. Either way it is sealed for the list of rests.
    """

    tag: str
    again: bool = False
    is_rest: bool = False

    @property
    def frame(self) -> Data:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Leftover:
    """A data list to remove: its elements are no longer wanted, or will be pushed again.

    Attributes:
        tag: the list's tag; None for the list of rests.
        edition: the list's edition.
    """

    tag: str | None
    edition: int = 0


@dataclass(slots=True, eq=False)
class Account:
    """Bytes that may be on the broker."""

    bytes: int = 0

    def admits(self, size: int, window: int) -> bool:
        """Return whether so many more bytes fit. An empty account admits anything."""
        return not self.bytes or self.bytes + size <= window


class Chunk(DataPush):
    """A DATA frame, from the call that sends it until it is acked.

    Attributes:
        seq, part, parts, previous, encoding, acked, apart: as in `Data`. `frame` is made on
            request: most messages take the fast path, which needs no frame.
        account: the account that counts it while it may be on the broker; None while it is not.
        confirmed_at: when the broker confirmed it; None if it has not.
        queued: True while it is in the queue.
        was_queued: True once it was in the queue: frames with higher numbers may precede it.
        launched: True once it was pushed, which fixes its frame.
        refused: True if the broker had no room for it last time.
        times_lost: how often the peer asked for it although the broker had it.
        broke: whether the peer's connection broke since it was last pushed.
        times_broke: how often it was pushed again after that.
    """

    # Defaults on the class: most chunks never need another value, and every message makes one.
    seq: int
    part: int = 0
    parts: int = 1
    previous: int = 0
    encoding: Encoding = Encoding.RAW
    acked: int = 0
    apart: bool = False
    account: Account | None = None
    confirmed_at: float | None = None
    queued: bool = False
    was_queued: bool = False
    launched: bool = False
    refused: bool = False
    times_lost: int = 0
    broke: bool = False
    times_broke: int = 0

    @property
    def frame(self) -> Data:
        return Data(
            *(self.seq, self.part, self.parts, self.previous, self.encoding, self.acked, self.apart)
        )

    @property
    def is_rest(self) -> bool:  # type: ignore[override]
        return self.apart and self.part > 0

    @property
    def size(self) -> int:
        """The bytes that it adds to an account."""
        return len(self.body) + chunking.OVERHEAD

    @property
    def message(self) -> int:
        """The number of the last chunk of its message."""
        return self.seq - self.part + self.parts - 1


class Clearing(DataPush):
    """A chunk to push onto its list after emptying the list.

    A separate object, because a push must not change after it was handed out: the chunk may be
    launched again, without emptying, while another thread has yet to push this.
    """

    clear = True
    again = True

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.tag, self.body, self.message_bytes = chunk.tag, chunk.body, chunk.message_bytes
        self.is_rest = chunk.is_rest

    @property
    def frame(self) -> Data:
        return self.chunk.frame
