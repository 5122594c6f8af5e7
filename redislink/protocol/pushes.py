"""What a `Delivery` asks to be done on the broker: frames to append, lists to remove.

Rules:
- A push stands for one frame on one list, and gives the very same frame however often it is asked.
- What was handed out does not change, whatever becomes of the chunk that it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass

from redislink.protocol import chunking
from redislink.protocol.frame import Data, Encoding, Frame


class Push:
    """One frame to append to a list.

    Attributes:
        tag: of the data list; None is the control list.
        body: what follows the frame's header.
        clear: remove what the list holds first, as it is all sent again.
        message_bytes: size of the whole message, where the body is a part of one; 0 elsewhere.
    """

    tag: str | None = None
    body: bytes | memoryview = b""
    clear: bool = False
    message_bytes: int = 0

    @property
    def frame(self) -> Frame:
        """The frame; always the same one."""
        raise NotImplementedError


class ControlPush(Push):
    """A frame for the control list."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    @property
    def frame(self) -> Frame:
        return self._frame


@dataclass(frozen=True, slots=True)
class Leftover:
    """A data list to remove: what it may still hold is not wanted, or will be pushed again."""

    tag: str


@dataclass(slots=True, eq=False)
class Account:
    """Bytes that may be on the broker."""

    bytes: int = 0

    def admits(self, size: int, window: int) -> bool:
        """Whether so many bytes more fit; into an empty one anything does."""
        return not self.bytes or self.bytes + size <= window


class Chunk(Push):
    """A DATA frame, from the call that sends it until it is acked.

    Attributes:
        seq, part, parts, previous, encoding, acked: as in `Data`. The frame itself is made
            only for those that ask: most messages go the short way, which needs none.
        account: where it counts while it may be on the broker; None while it is not.
        confirmed_at: when the broker said that it has it.
        queued: it stands in the queue.
        launched: it was pushed before, so that the frame is fixed.
        refused: the broker had no room for it last time.
        times_lost: how often the peer asked for it although the broker had it.
    """

    # Defaults on the class: most chunks never need another value, and every message makes one.
    tag: str
    seq: int
    part: int = 0
    parts: int = 1
    previous: int = 0
    encoding: Encoding = Encoding.RAW
    acked: int = 0
    account: Account | None = None
    confirmed_at: float | None = None
    queued: bool = False
    launched: bool = False
    refused: bool = False
    times_lost: int = 0

    @property
    def frame(self) -> Data:
        return Data(self.seq, self.part, self.parts, self.previous, self.encoding, self.acked)

    @property
    def size(self) -> int:
        """Bytes that it counts in an account."""
        return len(self.body) + chunking.OVERHEAD

    @property
    def message(self) -> int:
        """The number of the last chunk of its message."""
        return self.seq - self.part + self.parts - 1


class Clearing(Push):
    """A chunk for a list that is to be emptied first.

    What is handed out does not change: the chunk itself may be launched again, and then without
    this, while another thread still has it to push.
    """

    clear = True

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.tag, self.body, self.message_bytes = chunk.tag, chunk.body, chunk.message_bytes

    @property
    def frame(self) -> Data:
        return self.chunk.frame
