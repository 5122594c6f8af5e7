"""RESP2 over a connection that redis-py has opened: commands out, replies in.

redis-py connects, authenticates and speaks TLS; from then on its socket is used here, because
its parsers copy a large bulk several times: a 1 MB round trip took 6.7 ms through hiredis and
1.2 ms through a plain ``recv_into`` loop. fakeredis has no socket and
keeps redis-py's own reading and writing.

Rules:
- Replies come in the order of the commands; a wire on which anything but an error reply went
  wrong is out of step, and its owner closes it.
- The server is not trusted: a reply has a deadline as a whole, not only for each read of it, and
  has no more elements and bytes than a `Bound` allows that fits what was asked.
"""

from __future__ import annotations

import contextlib
import functools
import re
import select
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import redis

Buffer = bytes | bytearray | memoryview
Reply = Any
"""bytes, memoryview (large bulk), int, None, `ErrorReply` or a list of these."""

LARGE: Final = 64 << 10
"""Bytes from which on a body is neither joined to what is sent nor copied on arrival."""

_BUFFER_BYTES: Final = 72 << 10
"""A message of 64 KiB, with all that stands around it, is read at once."""
_MAX_BULK: Final = 512 << 20
_STEP: Final = 16 << 20
_LARGEST_KEPT: Final = 4 << 20
_LEAST_RATE: Final = 16 << 10
"""Bytes per second at which a large bulk must come: a broker that drips holds nobody up."""


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
ELEMENT: Final = Bound(2, _MAX_BULK + (4 << 10))
"""An element of any list, and perhaps the list's name."""
_MAX_PIECES: Final = 512
_TLS_STEP: Final = 64 << 10
"""Bytes per call where TLS does not say how many of them went out."""
_UNSENT: Final = 128 << 10
_TCP_NOTSENT_LOWAT: Final = 25  # of linux/tcp.h; the socket module has no name for it in 3.11
_WOULD_BLOCK: Final = (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_IN_PROCESS_WAIT: Final = 0.001
_WHOLE_SOON: Final = 1.0
"""Seconds in which a reply that has begun is there, in process."""
_MAX_DEPTH: Final = 8
"""No command used here answers with arrays in arrays in arrays."""
_CRLF: Final = b"\r\n"
_RPUSH: Final = b"*3\r\n$5\r\nRPUSH\r\n"
_BLPOP: Final = b"*3\r\n$5\r\nBLPOP\r\n"
_PEXPIRE: Final = b"\r\n*3\r\n$7\r\nPEXPIRE\r\n"
"""Begins with the end of the element before it."""
_INTEGERS: Final = re.compile(rb"(?::[0-9]+\r\n)+").match
_BULK, _INTEGER, _ARRAY, _STATUS, _ERROR = b"$:*+-"
_LINES: Final = b":+-"
"""Kinds of replies that are one line."""


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

    def keep_unsent_low(self, low: bool) -> None:
        """Whether the kernel shall take little more than it can send: what is written later
        than that comes first then.
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


def pack_push(name: bytes, element: tuple[bytes, Buffer], ttl_ms: int, clear: bool) -> list[Buffer]:
    """RPUSH of an element given in two parts, and PEXPIRE; before them DEL if ``clear``.

    Owes two replies, or three. Returns few pieces, so that a large part is not copied.
    """
    head, body = element
    key = _length_line(len(name)) + name + _CRLF
    size = len(head) + len(body)
    ttl = _pack_int(ttl_ms)
    if size < LARGE and not clear:  # nearly always
        return [b"".join((_RPUSH, key, _length_line(size), head, body, _PEXPIRE, key, ttl))]
    cleared = b"*2\r\n$3\r\nDEL\r\n%b" % key if clear else b""
    first = b"%b%b%b$%d\r\n%b" % (cleared, _RPUSH, key, size, head)
    last = b"%b%b%b" % (_PEXPIRE, key, ttl)
    return [b"".join((first, body, last))] if size < LARGE else [first, body, last]


@functools.lru_cache(maxsize=1024)
def _length_line(size: int) -> bytes:
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
    return b"".join([b"%b%b%b%b" % (_BLPOP, _length_line(len(n)), n, tail) for n in names])


class SocketWire:
    """RESP2 on a socket; reads bulks of `LARGE` bytes and more straight into their buffer."""

    def __init__(self, connection: Any, timeout: float) -> None:
        """Args: an open redis-py connection; seconds that a write may block."""
        self._connection = connection  # owns the socket
        self._socket: socket.socket = connection._get_socket()
        self._tls = isinstance(self._socket, ssl.SSLSocket)
        self._timeout = 0.0
        self._write_timeout = self._patience = timeout
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._large = bytearray()
        """Kept for the next large bulk: fresh pages cost more than what is read into them."""
        self._start = self._end = 0
        self._elements_left, self._bytes_left = SHORT
        """Of the reply that is being read."""
        self._give_up = 0.0
        """When that must be whole; 0 until the first wait for more of it."""
        self._popped_for = -1.0
        self._packed_seconds = b""
        """``_popped_for`` as the last argument of a BLPOP, but for its ``$``."""
        if self._tls:
            self._socket.settimeout(timeout)
        else:
            # Kernel timeouts on a blocking socket: one system call per read, not poll and recv.
            self._socket.settimeout(None)
            self._set_kernel_timeout(socket.SO_SNDTIMEO, timeout)

    def write(self, pieces: Sequence[Buffer]) -> None:
        if self._tls:
            self._socket.settimeout(self._write_timeout)
            self._timeout = self._write_timeout
            for piece in _joined(pieces):
                self._socket.sendall(piece)
            return
        if len(pieces) == 1:
            self._socket.sendall(pieces[0])
            return
        left = [memoryview(piece) for piece in pieces if len(piece)]
        while left:
            sent = self._socket.sendmsg(left[:_MAX_PIECES])
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    def write_some(self, pieces: Sequence[Buffer], *, wait: bool = True) -> Sequence[Buffer]:
        if self._tls:
            return self._write_some_tls(pieces, wait)
        flags = 0 if wait else socket.MSG_DONTWAIT  # at 0 the kernel waits for SO_SNDTIMEO
        try:
            if len(pieces) == 1:
                sent = self._socket.send(pieces[0], flags)
                return () if sent == len(pieces[0]) else _after(pieces, sent)
            return _after(pieces, self._socket.sendmsg(pieces[:_MAX_PIECES], (), flags))
        except BlockingIOError:
            return pieces

    def _write_some_tls(self, pieces: Sequence[Buffer], wait: bool) -> Sequence[Buffer]:
        give_up = time.monotonic() + self._patience
        self._set_timeout(self._patience if wait else 0.0)
        left = deque(_joined(pieces))
        while left:
            step = memoryview(left[0])[:_TLS_STEP]
            try:
                # All of it or nothing; then the same bytes again, as part of them is on its way.
                self._socket.send(step)
            except _WOULD_BLOCK:
                return list(left)
            if len(step) == len(left[0]):
                left.popleft()
            else:
                left[0] = memoryview(left[0])[len(step) :]
            if left and wait and time.monotonic() > give_up:
                return list(left)
        return ()

    def be_patient(self, seconds: float) -> None:
        self._patience = seconds
        if not self._tls:
            self._set_kernel_timeout(socket.SO_SNDTIMEO, seconds)

    def keep_unsent_low(self, low: bool) -> None:
        with contextlib.suppress(OSError):  # not TCP
            self._socket.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT if low else 0)

    def wait_movable(self, seconds: float, *, writes: bool) -> None:
        if not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            _poll(self._socket, seconds, select.POLLIN | (select.POLLOUT if writes else 0))

    def read(self, timeout: float, most: Bound = SHORT) -> Reply:
        if timeout != self._timeout:
            self._set_timeout(timeout)
        self._elements_left, self._bytes_left = most
        self._give_up = 0.0
        return self._parse()

    def pop(self, name: bytes, seconds: float, timeout: float) -> Reply:
        key = _key_of_popped(name)
        if seconds != self._popped_for:
            text = b"%.3f" % seconds
            self._packed_seconds = b"%d\r\n%b\r\n" % (len(text), text)
            self._popped_for = seconds
        self._socket.sendall(_BLPOP + key + self._packed_seconds)
        return self._read_popped(name, key, timeout)

    def read_popped(self, name: bytes, timeout: float) -> Reply:
        return self._read_popped(name, _key_of_popped(name), timeout)

    def _read_popped(self, name: bytes, key: bytes, timeout: float) -> Reply:
        if timeout != self._timeout:
            self._set_timeout(timeout)
        if self._start == self._end:
            try:
                came = self._socket.recv(_BUFFER_BYTES)
            except BlockingIOError:
                raise _timed_out() from None
            # Nearly always this is the reply, whole, and nothing else: then no more is needed.
            head = b"*2\r\n" + key
            if came.startswith(head):
                begin = len(head)
                found = came.find(_CRLF, begin)
                element = came[found + 2 : -2]
                if found > 0 and came[begin:found] == b"%d" % len(element):
                    return element
            if not came:
                raise _ended()
            self._start, self._end = 0, len(came)
            self._view[: len(came)] = came
        self._elements_left, self._bytes_left = ELEMENT
        self._give_up = 0.0
        return element_of(self._parse(), name)

    def read_integers(self) -> int:
        whole = _INTEGERS(self._buffer, self._start, self._end)
        if whole is None:
            return 0
        self._start = whole.end()
        return self._buffer.count(b":", whole.start(), whole.end())

    def read_now(self) -> Reply:
        if self._buffer.find(_CRLF, self._start, self._end) < 0:
            self._make_room()
            self._end += self._receive_now(self._view[self._end :])
            if self._buffer.find(_CRLF, self._start, self._end) < 0:
                return NOT_YET
        if self._buffer[self._start] not in _LINES:
            raise UnaskedError("the broker answered a push with something else than a number")
        return self._parse()

    def readable(self) -> bool:
        if self._start == self._end:
            self._start, self._end = 0, self._receive_now(self._view)
        return self._start < self._end

    def _receive_now(self, view: memoryview) -> int:
        """How many bytes were there to be read; 0 if none are yet."""
        try:
            if self._tls:
                self._set_timeout(0.0)
                count = self._socket.recv_into(view)
            else:
                count = self._socket.recv_into(view, 0, socket.MSG_DONTWAIT)
        except _WOULD_BLOCK:
            return 0
        if not count:
            raise _ended()
        return count

    def wait_readable(self, seconds: float) -> bool:
        if self._start < self._end:
            return True
        pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()
        return bool(pending) or _poll(self._socket, seconds)

    def interrupt(self) -> None:
        # Below the TLS layer, as an SSL object must not be used from two threads.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.disconnect()

    def _set_timeout(self, timeout: float) -> None:
        self._timeout = timeout
        if self._tls:
            self._socket.settimeout(timeout)
        else:
            self._set_kernel_timeout(socket.SO_RCVTIMEO, timeout)

    def _set_kernel_timeout(self, which: int, seconds: float) -> None:
        whole = int(seconds)
        timeval = struct.pack("ll", whole, int((seconds - whole) * 1e6) or int(not whole))
        self._socket.setsockopt(socket.SOL_SOCKET, which, timeval)

    def _parse(self, depth: int = 0) -> Reply:
        while (found := self._buffer.find(_CRLF, self._start, self._end)) < 0:
            self._fill()
        kind = self._buffer[self._start]
        rest = self._buffer[self._start + 1 : found]
        self._start = found + 2
        if kind == _BULK:
            return self._read_bulk(_length(rest))
        if kind == _INTEGER:
            return int(rest)
        if kind == _ARRAY:
            count = _length(rest)
            if depth >= _MAX_DEPTH:
                raise NotRespError("the broker sent arrays within arrays without end")
            if count < 0:
                return None
            self._elements_left -= count
            if self._elements_left < 0:
                raise UnaskedError("the broker sent more elements than an answer to this can have")
            return [self._parse(depth + 1) for _ in range(count)]
        if kind == _STATUS:
            return bytes(rest)
        if kind == _ERROR:
            return ErrorReply(rest.decode(errors="replace"))
        raise NotRespError("the broker does not speak RESP2")

    def _read_bulk(self, size: int) -> bytes | memoryview | None:
        if size < 0:
            return None
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise UnaskedError("the broker sent more bytes than an answer to this can have")
        if size < LARGE - 2:
            while self._end - self._start < size + 2:
                self._fill()
            bulk = bytes(self._view[self._start : self._start + size])
            self._start += size + 2
            return bulk
        # Never more at once than what is likely: the size is the broker's word.
        whole = self._large if size + 2 <= len(self._large) else bytearray(min(size + 2, _STEP))
        if len(whole) <= _LARGEST_KEPT:
            self._large = whole
        self._check_pace()
        self._give_up += size / _LEAST_RATE
        have = min(self._end - self._start, size + 2)
        whole[:have] = self._view[self._start : self._start + have]
        self._start += have
        while have < size + 2:
            if have == len(whole):
                whole += bytes(min(size + 2 - have, len(whole)))
            with memoryview(whole) as view:
                have += self._receive_into(view[have : size + 2])
            self._check_pace()
        return memoryview(whole)[:size]

    def _fill(self) -> None:
        """More bytes into the buffer, which holds less than a line or a small bulk."""
        self._check_pace()
        if self._start == self._end:
            self._start, self._end = 0, self._receive_into(self._view)
            return
        self._make_room()
        self._end += self._receive_into(self._view[self._end :])

    def _check_pace(self) -> None:
        """More of a reply has to be waited for: that must not go on for ever."""
        now = time.monotonic()
        if not self._give_up:
            self._give_up = now + self._timeout
        elif now > self._give_up:
            raise TimeoutError("a reply that comes too slowly")

    def _make_room(self) -> None:
        if self._start and self._end > _BUFFER_BYTES // 2:
            held = self._end - self._start
            self._view[:held] = self._buffer[self._start : self._end]
            self._start, self._end = 0, held
        if self._end == _BUFFER_BYTES:
            raise NotRespError("the broker sent a line without an end")

    def _receive_into(self, view: memoryview) -> int:
        try:
            count = self._socket.recv_into(view)
        except BlockingIOError:
            raise _timed_out() from None
        if not count:
            raise _ended()
        return count


def _key_of_popped(name: bytes) -> bytes:
    """A list's name, and the beginning of what follows it both in BLPOP and in its reply."""
    return _length_line(len(name)) + name + b"\r\n$"


def _timed_out() -> TimeoutError:
    """For the BlockingIOError in which a kernel timeout shows."""
    return TimeoutError("timed out")


def _ended() -> WireError:
    return WireError("connection closed by the broker")


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

    def keep_unsent_low(self, low: bool) -> None:
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


def _poll(which: socket.socket, seconds: float, events: int = select.POLLIN) -> bool:
    poll = select.poll()
    poll.register(which, events)
    return bool(poll.poll(seconds * 1000))


def _after(pieces: Sequence[Buffer], sent: int) -> Sequence[Buffer]:
    """What is left of them when so many bytes are gone."""
    for place, piece in enumerate(pieces):
        if sent < len(piece):
            rest = memoryview(piece)[sent:] if sent else piece
            return [rest, *pieces[place + 1 :]]
        sent -= len(piece)
    return ()


def _length(text: bytearray) -> int:
    size = int(text)
    if not -1 <= size <= _MAX_BULK:
        raise NotRespError(f"the broker sent a reply of {size} bytes")
    return size


def _joined(pieces: Sequence[Buffer]) -> Iterable[Buffer]:
    """The same bytes in as few pieces as makes sense: a TLS record each is dear."""
    small = bytearray()
    for piece in pieces:
        if len(piece) < LARGE:
            small += piece
            continue
        if small:
            yield bytes(small)
            small.clear()
        yield piece
    if small:
        yield bytes(small)
