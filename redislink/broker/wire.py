"""RESP2: packs commands, limits replies, and defines `Wire`, the connection that carries both.

There are two wires: `SocketWire` (in `socket_wire`) for servers, and `LibraryWire` for fakeredis,
which has no socket and uses redis-py's own reading and writing.

Rules:
- Replies arrive in the order of the commands. After any fault but an error reply, a wire is out of
  step, and its owner closes it.
- The server is not trusted: each command has a `Bound` on the elements and bytes of its reply.
- A command is packed in as few pieces as possible, and no large body is copied.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import redis

from redislink import native
from redislink.broker.tcp import Traffic

Buffer = bytes | bytearray | memoryview
Reply = Any
"""bytes, memoryview (a large bulk), int, None, `ErrorReply`, or a list of these."""

LARGE: Final = 64 << 10
"""A body of this many bytes or more is neither joined with other pieces nor copied on arrival."""

MAX_BULK: Final = 512 << 20


class Bound(NamedTuple):
    """The most that a reply may contain.

    Attributes:
        elements: elements of all its arrays together.
        bytes: bytes of all its bulk strings together.
    """

    elements: int
    bytes: int


SHORT: Final = Bound(1024, 2 * LARGE)
"""For nearly every command."""
LISTING: Final = Bound(1 << 18, 32 << 20)
"""For replies that list many things: SCAN, CLUSTER SLOTS, SENTINEL MASTERS."""
CONTROL: Final = Bound(2, LARGE)
"""For a popped hello or control frame, and the name of its list."""
ELEMENT: Final = Bound(2, MAX_BULK + (4 << 10))
"""For an element of any list, and perhaps the list's name."""
_IN_PROCESS_WAIT: Final = 0.001
_WHOLE_SOON: Final = 1.0
"""Seconds within which a reply that has begun is complete, in process."""
CRLF: Final = b"\r\n"
_RPUSH: Final = b"*3\r\n$5\r\nRPUSH\r\n"
_BLPOP: Final = b"*3\r\n$5\r\nBLPOP\r\n"
_PEXPIRE: Final = b"\r\n*3\r\n$7\r\nPEXPIRE\r\n"
"""Begins with the CRLF that ends the element before it."""


class WireError(OSError):
    """The connection broke, or the server sent something unexpected."""


class NotRespError(WireError):
    """What the server sent is not RESP."""


class HttpError(NotRespError):
    """What came is an answer of HTTP's."""


class UnaskedError(WireError):
    """What the server sent is RESP, but cannot answer the command."""


class ErrorReply:
    """The server's ``-CODE text``; to the wire, a reply like any other."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


NOT_YET: Final = object()
"""Returned in place of a reply that has not arrived completely."""


class Wire(Protocol):
    """What a `BrokerConnection` needs from a connection."""

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Send these bytes."""
        ...

    def write_some(self, pieces: Sequence[Buffer], *, wait: bool = True) -> Sequence[Buffer]:
        """Send as many of these bytes as the connection takes.

        Args:
            pieces: the bytes.
            wait: True waits for room, for as long as `be_patient` says.

        Returns:
            The rest, to be sent before anything else; valid for as long as ``pieces`` are.
        """
        ...

    def be_patient(self, seconds: float) -> None:
        """Set how long `write_some` may wait. Do not use `write` afterwards."""
        ...

    def limit_unsent(self, *, on: bool) -> None:
        """Set whether the kernel's buffer of unsent bytes stays small.

        A small buffer lets a later, more urgent write overtake bytes that still wait here.
        """
        ...

    def wait_movable(self, seconds: float, *, writes: bool) -> None:
        """Wait until a reply begins to arrive or, if ``writes``, there is room to write."""
        ...

    def read(self, timeout: float, most: Bound = SHORT) -> Reply:
        """Return the next reply. A large bulk is a view that is valid until the next read.

        Args:
            timeout: seconds until the reply must begin; it must be complete soon after.
            most: the bound; a reply that exceeds it is an error.
        """
        ...

    def pop(self, name: bytes, seconds: float, timeout: float) -> Reply:
        """Send BLPOP for one list and read the reply: return the element without the list's name.

        Any other reply is returned as `read` returns it, except that bytes are put into a list.

        Args:
            name: the list's name.
            seconds: how long the server waits for an element.
            timeout: as for `read`.
        """
        ...

    def read_popped(self, name: bytes, timeout: float) -> Reply:
        """Do the second half of `pop`, for a BLPOP that was sent before."""
        ...

    def read_successes(self) -> int:
        """Consume the complete replies that have arrived and are integers or OK, up to another.

        Returns:
            The number of replies consumed.
        """
        ...

    def read_now(self) -> Reply:
        """Return the next reply if it is complete, else `NOT_YET`. Never waits.

        Call it after `readable` returned True. The reply must be a single line; any other kind is
        an error.
        """
        ...

    @property
    def buffered(self) -> bool:
        """Whether bytes that were received wait here. Unlike `readable`, it asks no kernel."""
        ...

    def readable(self) -> bool:
        """Return True if a reply has begun to arrive, or the connection has ended."""
        ...

    def wait_readable(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for `readable`, and return it."""
        ...

    def poll_busily(self, seconds: float) -> bool:
        """Like `wait_readable`, but without sleeping: the thread only yields its processor."""
        ...

    @property
    def traffic(self) -> Traffic | None:
        """What has passed so far; None if nobody counts it.

        Any thread may ask.
        """
        ...

    def interrupt(self) -> None:
        """Make a `read` in another thread end with an error at once."""
        ...

    def close(self) -> None:
        """Close; never raises."""
        ...


def pack(command: Sequence[bytes | int | str]) -> bytes:
    """Return a command as RESP."""
    packed = [b"*%d\r\n" % len(command)]
    for argument in command:
        raw = argument if isinstance(argument, bytes) else str(argument).encode()
        packed.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(packed)


PUSH_REPLIES: Final = 2
"""How many replies the broker owes for a `pack_push`."""
CLEARING_REPLIES: Final = 3
"""How many replies the broker owes for a `pack_clearing_push`."""


@native.leaf
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
    """Pack one BLPOP of all these lists; the server owes one reply."""
    return pack([b"BLPOP", *names, b"%.3f" % seconds])


@native.leaf
def pack_blpops(names: Sequence[bytes], seconds: float) -> bytes:
    """Pack a BLPOP for each of these lists; the server owes a reply for each."""
    tail = _blpop_tail(seconds)
    return b"".join([b"%b%b%b%b" % (_BLPOP, length_line(len(n)), n, tail) for n in names])


@functools.lru_cache(maxsize=16)
def _blpop_tail(seconds: float) -> bytes:
    timeout = b"%.3f" % seconds
    return b"\r\n$%d\r\n%b\r\n" % (len(timeout), timeout)


# The error codes that redis-py strips from replies, by the class that it makes of them.
_CODES: Final = {
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.ReadOnlyError: "READONLY",
}


def error_text(error: redis.ResponseError) -> str:
    """Return the server's error reply as it was before redis-py made it an exception."""
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
        wait: bool = True,  # noqa: ARG002 - there is always room in process
    ) -> Sequence[Buffer]:
        self.write(pieces)
        return ()

    def be_patient(self, seconds: float) -> None:
        """Do nothing: there is always room in process."""

    def limit_unsent(self, *, on: bool) -> None:
        """Do nothing: there is no kernel buffer in process."""

    def wait_movable(self, seconds: float, *, writes: bool) -> None:
        if not writes:  # not `can_read`: it reopens a closed connection
            time.sleep(min(seconds, _IN_PROCESS_WAIT))

    def read(
        self,
        timeout: float,
        most: Bound = SHORT,  # noqa: ARG002 - in process, the server is trusted
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

    def read_successes(self) -> int:
        return 0  # redis-py does not say what it has read

    def read_now(self) -> Reply:
        return self.read(_WHOLE_SOON)

    @property
    def buffered(self) -> bool:
        return True  # redis-py does not say

    def readable(self) -> bool:
        return bool(self._connection.can_read(0))

    def wait_readable(self, seconds: float) -> bool:
        return bool(self._connection.can_read(seconds))

    def poll_busily(self, seconds: float) -> bool:  # noqa: ARG002 - in process, nothing is near
        return self.readable()

    @property
    def traffic(self) -> Traffic | None:
        return None

    def interrupt(self) -> None:
        """Do nothing: it is impossible in process, where waits are cut into short slices."""

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.disconnect()


def element_of(reply: Reply, name: bytes) -> Reply:
    """See `Wire.pop`."""
    if isinstance(reply, list) and len(reply) == 2 and reply[0] == name:
        return reply[1] if isinstance(reply[1], bytes | memoryview) else reply
    return [reply] if isinstance(reply, bytes | memoryview) else reply
