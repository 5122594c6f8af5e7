"""RESP2: commands as bytes, what a reply may have at most, and the `Wire` that carries both.

There are two wires: `SocketWire` (in `socket_wire`) for servers, and `LibraryWire` for fakeredis,
which has no socket and keeps redis-py's own reading and writing.

Rules:
- Replies come in the order of the commands; a wire on which anything but an error reply went
  wrong is out of step, and its owner closes it.
- The server is not trusted: a reply has no more elements and bytes than a `Bound` allows that fits
  what was asked.
- A command is packed in as few pieces as can be, and no large body is copied.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import redis

Buffer = bytes | bytearray | memoryview
Reply = Any
"""bytes, memoryview (large bulk), int, None, `ErrorReply` or a list of these."""

LARGE: Final = 64 << 10
"""Bytes from which on a body is neither joined to what is sent nor copied on arrival."""

MAX_BULK: Final = 512 << 20


class Bound(NamedTuple):
    """What a reply may have at most.

    Attributes:
        elements: of all its arrays together.
        bytes: of all its bulk strings together.
    """

    elements: int
    bytes: int


SHORT: Final = Bound(1024, 2 * LARGE)
"""Nearly every command's reply."""
LISTING: Final = Bound(1 << 18, 32 << 20)
"""Replies as long as what they list: SCAN, CLUSTER SLOTS, SENTINEL MASTERS."""
CONTROL: Final = Bound(2, LARGE)
"""A popped hello or control frame, and the name of its list."""
ELEMENT: Final = Bound(2, MAX_BULK + (4 << 10))
"""An element of any list, and perhaps the list's name."""
_IN_PROCESS_WAIT: Final = 0.001
_WHOLE_SOON: Final = 1.0
"""Seconds in which a reply that has begun is there, in process."""
CRLF: Final = b"\r\n"
_RPUSH: Final = b"*3\r\n$5\r\nRPUSH\r\n"
BLPOP: Final = b"*3\r\n$5\r\nBLPOP\r\n"
_PEXPIRE: Final = b"\r\n*3\r\n$7\r\nPEXPIRE\r\n"
"""Begins with the end of the element before it."""


class WireError(OSError):
    """The connection broke, or what came is not RESP."""


class NotRespError(WireError):
    """What came is not RESP."""


class UnaskedError(WireError):
    """What came is RESP, and no answer to what was asked."""


class ErrorReply:
    """The server's ``-CODE text``: an answer as good as any other, as far as the wire goes."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


NOT_YET: Final = object()
"""What stands for a reply that has not arrived whole."""


class Wire(Protocol):
    """What a `BrokerConnection` needs of a connection."""

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Send these bytes."""
        ...

    def write_some(self, pieces: Sequence[Buffer], *, wait: bool = True) -> Sequence[Buffer]:
        """Send of these bytes what the connection takes, waiting for room if it may, not for long.

        Returns:
            The rest, to be sent before anything else; as good for as long as ``pieces`` are.
        """
        ...

    def be_patient(self, seconds: float) -> None:
        """How long `write_some` may wait; `write` is not to be used from now on."""
        ...

    def limit_unsent(self, *, on: bool) -> None:
        """While it is on, the kernel takes little more than it can send, so that an urgent write
        does not wait behind what the kernel holds.
        """
        ...

    def wait_movable(self, seconds: float, *, writes: bool) -> None:
        """Until a reply begins to arrive or, if ``writes``, there is room; or so many seconds."""
        ...

    def read(self, timeout: float, most: Bound = SHORT) -> Reply:
        """The next reply, beginning within ``timeout`` seconds, and whole soon after.

        A large bulk is a view that is good until the next read.

        Args:
            most: what it may have; a reply that has more is an error.
        """
        ...

    def pop(self, name: bytes, seconds: float, timeout: float) -> Reply:
        """BLPOP of one list, waiting ``seconds``, and `read`: the element alone, if it is one.

        Any other reply is given as `read` gives it, but in a list where that is bytes.
        """
        ...

    def read_popped(self, name: bytes, timeout: float) -> Reply:
        """The second half of `pop`, for a BLPOP that was sent before."""
        ...

    def read_integers(self) -> int:
        """Take the integer replies that have arrived whole, up to one of another kind.

        Returns:
            How many they were.
        """
        ...

    def read_now(self) -> Reply:
        """The next reply, a line, if all of it is here; else `NOT_YET`. `readable` was True.

        Never waits: a reply of another kind is an error.
        """
        ...

    def readable(self) -> bool:
        """True if a reply has begun to arrive, or the connection has ended."""
        ...

    def wait_readable(self, seconds: float) -> bool:
        """True if a reply has begun to arrive within so many seconds, or the connection ended."""
        ...

    def interrupt(self) -> None:
        """Make a `read` in another thread end with an error, now."""
        ...

    def close(self) -> None:
        """Close; never raises."""
        ...


def pack(command: Sequence[bytes | int | str]) -> bytes:
    """A command as RESP."""
    packed = [b"*%d\r\n" % len(command)]
    for argument in command:
        raw = argument if isinstance(argument, bytes) else str(argument).encode()
        packed.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(packed)


PUSH_REPLIES: Final = 2
"""How many replies the broker owes for a `pack_push`."""
CLEARING_REPLIES: Final = 3
"""How many replies the broker owes for a `pack_clearing_push`."""


def pack_push(name: bytes, element: tuple[bytes, Buffer], ttl_ms: int) -> list[Buffer]:
    """Pack RPUSH of an element, which comes in two parts, and PEXPIRE.

    Returns few pieces, so that a large part is not copied.
    """
    head, body = element
    key = length_line(len(name)) + name + CRLF
    size = len(head) + len(body)
    ttl = _pack_int(ttl_ms)
    if size < LARGE:  # nearly always
        return [b"".join((_RPUSH, key, length_line(size), head, body, _PEXPIRE, key, ttl))]
    first = b"%b%b$%d\r\n%b" % (_RPUSH, key, size, head)
    return [first, body, b"%b%b%b" % (_PEXPIRE, key, ttl)]


def pack_clearing_push(name: bytes, element: tuple[bytes, Buffer], ttl_ms: int) -> list[Buffer]:
    """Pack a DEL of the list before the `pack_push`."""
    first, *rest = pack_push(name, element, ttl_ms)
    return [pack((b"DEL", name)) + first, *rest]


@functools.lru_cache(maxsize=1024)
def length_line(size: int) -> bytes:
    return b"$%d\r\n" % size


@functools.lru_cache(maxsize=16)
def _pack_int(number: int) -> bytes:
    text = b"%d" % number
    return b"$%d\r\n%b\r\n" % (len(text), text)


def pack_blpop(names: Sequence[bytes], seconds: float) -> bytes:
    """One BLPOP of all these lists; owes one reply."""
    return pack([b"BLPOP", *names, b"%.3f" % seconds])


def pack_blpops(names: Sequence[bytes], seconds: float) -> bytes:
    """A BLPOP for each of these lists; each owes one reply."""
    timeout = b"%.3f" % seconds
    tail = b"\r\n$%d\r\n%b\r\n" % (len(timeout), timeout)
    return b"".join([b"%b%b%b%b" % (BLPOP, length_line(len(n)), n, tail) for n in names])


# How redis-py's classes of error replies began on the wire, where they strip that.
_CODES: Final = {
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.ReadOnlyError: "READONLY",
}


def error_text(error: redis.ResponseError) -> str:
    """The server's error reply as it was before redis-py made an exception of it."""
    return f"{_CODES.get(type(error), '')} {error}".strip()


class LibraryWire:
    """redis-py's own reading and writing, for brokers that have no socket (fakeredis)."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def write(self, pieces: Sequence[Buffer]) -> None:
        self._connection.send_packed_command([b"".join(pieces)], check_health=False)

    def write_some(
        self,
        pieces: Sequence[Buffer],
        *,
        wait: bool = True,  # noqa: ARG002 - nothing is full in process
    ) -> Sequence[Buffer]:
        self.write(pieces)
        return ()

    def be_patient(self, seconds: float) -> None:
        """Nothing waits in process."""

    def limit_unsent(self, *, on: bool) -> None:
        """No kernel takes part."""

    def wait_movable(self, seconds: float, *, writes: bool) -> None:
        if not writes:  # not `can_read`, which opens the connection again if it was closed
            time.sleep(min(seconds, _IN_PROCESS_WAIT))

    def read(
        self,
        timeout: float,
        most: Bound = SHORT,  # noqa: ARG002 - nobody strange answers in process
    ) -> Reply:
        try:
            return self._connection.read_response(disable_decoding=True, timeout=timeout)
        except redis.ResponseError as error:
            return ErrorReply(error_text(error))

    def pop(self, name: bytes, seconds: float, timeout: float) -> Reply:
        self.write((pack_blpop((name,), seconds),))
        return self.read_popped(name, timeout)

    def read_popped(self, name: bytes, timeout: float) -> Reply:
        return element_of(self.read(timeout), name)

    def read_integers(self) -> int:
        return 0  # it does not say what it has read

    def read_now(self) -> Reply:
        return self.read(_WHOLE_SOON)

    def readable(self) -> bool:
        return bool(self._connection.can_read(0))

    def wait_readable(self, seconds: float) -> bool:
        return bool(self._connection.can_read(seconds))

    def interrupt(self) -> None:
        """Cannot be done in process; waits are cut into short slices there."""

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.disconnect()


def element_of(reply: Reply, name: bytes) -> Reply:
    """See `Wire.pop`."""
    if isinstance(reply, list) and len(reply) == 2 and reply[0] == name:
        return reply[1] if isinstance(reply[1], bytes | memoryview) else reply
    return [reply] if isinstance(reply, bytes | memoryview) else reply
