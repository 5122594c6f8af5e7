"""`SocketWire`: RESP2 on a socket that redis-py has opened.

redis-py opens the connection and does the TLS handshake. After that, this module uses its socket
directly, because redis-py's parsers copy a large bulk several times: a 1 MB round trip took 6.7 ms
through hiredis, and 1.2 ms through a plain ``recv_into`` loop.

Rules:
- A bulk of `wire.LARGE` bytes or more is read straight into a buffer, which the next one reuses.
- The server is not trusted: each reply has a deadline as a whole, not only for each read of it; and
  no memory is allocated for an announced size before its bytes arrive.
- No two threads use a TLS object at once; `interrupt`, which another thread calls, works below TLS.
- `pop` and `read_popped` first check whether one complete reply arrived, and otherwise do what
  `read` does. tests/broker/test_socket_wire.py cuts replies everywhere to show that both agree.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import ssl
import struct
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redislink import native
from redislink.broker import tcp
from redislink.broker.nested_tls import NestedTls
from redislink.broker.wire import (
    CRLF,
    ELEMENT,
    LARGE,
    MAX_BULK,
    NOT_YET,
    SHORT,
    Bound,
    Buffer,
    ErrorReply,
    HttpError,
    NotRespError,
    Reply,
    UnaskedError,
    WireError,
    element_of,
    length_line,
    pack_blpops,
)

_BUFFER_BYTES: Final = 72 << 10
"""Enough to read a message of 64 KiB, with all that surrounds it, at once."""
_STEP: Final = 16 << 20
_LARGEST_KEPT: Final = (4 << 20) + (4 << 10)
_LEAST_RATE: Final = 16 << 10
"""The least rate of a large bulk, in bytes per second, so that a slow broker blocks nobody."""
_MAX_PIECES: Final = 512
_TLS_STEP: Final = 64 << 10
"""Bytes per write with TLS, which does not say how many it has sent."""
_UNSENT: Final = 128 << 10
_NOTSENT_LOWAT: Final = tcp.option("TCP_NOTSENT_LOWAT")
_KERNEL_WAITS: Final = sys.platform == "linux"
"""Whether the kernel does the waiting. macOS ignores ``MSG_DONTWAIT`` when it sends, so elsewhere
Python polls before each call, as it does with TLS."""
_WOULD_BLOCK: Final = (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_MAX_DEPTH: Final = 8
"""Far deeper than the replies to the commands that are used here."""
_SUCCESSES: Final = re.compile(rb"(?:(?::[0-9]+|\+OK)\r\n)+").match
_BULK, _INTEGER, _ARRAY, _STATUS, _ERROR = b"$:*+-"
_AROUND: Final = 1 << 10
"""Room for what surrounds a large element: the list's name, and sizes."""
_SIZE_BYTES: Final = 16
"""The most bytes in which a bulk's size is looked for."""
_LINES: Final = b":+-"
"""Kinds of replies that are a single line."""


class SocketWire:
    """RESP2 on a socket."""

    def __init__(self, connection: Any, timeout: float) -> None:
        """Args:
        connection: an open redis-py connection.
        timeout: seconds that a write may block.
        """
        self._connection = connection  # owns the socket
        opened = connection._get_socket()
        self._socket: socket.socket = opened
        self._below: socket.socket = opened.outer if isinstance(opened, NestedTls) else opened
        self._secured = opened if isinstance(opened, ssl.SSLSocket | NestedTls) else None
        self._polls = self._secured is not None or not _KERNEL_WAITS
        self._timeout = 0.0
        self._write_timeout = self._patience = timeout
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._large = bytearray()
        """Kept for the next large bulk: new pages cost more than reading into them."""
        self._expects_large = False
        """Whether the next element popped is probably a large one, as the last one was."""
        self._start = self._end = 0
        self._elements_left, self._bytes_left = SHORT
        """What the reply that is being read may still contain."""
        self._give_up = 0.0
        """When that reply must be complete; 0 until the first wait for more of it."""
        if self._polls:
            self._socket.settimeout(timeout)
        else:
            # Kernel timeouts on a blocking socket: one system call per read, not poll and recv.
            self._socket.settimeout(None)
            self._set_kernel_timeout(socket.SO_SNDTIMEO, timeout)

    def write(self, pieces: Sequence[Buffer]) -> None:
        if self._polls:
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
        if self._polls:
            return self._write_some_polling(pieces, wait=wait)
        flags = 0 if wait else socket.MSG_DONTWAIT  # with 0, the kernel waits for SO_SNDTIMEO
        try:
            if len(pieces) == 1:
                sent = self._socket.send(pieces[0], flags)
                return () if sent == len(pieces[0]) else _after(pieces, sent)
            return _after(pieces, self._socket.sendmsg(pieces[:_MAX_PIECES], (), flags))
        except BlockingIOError:
            return pieces

    def _write_some_polling(self, pieces: Sequence[Buffer], *, wait: bool) -> Sequence[Buffer]:
        give_up = time.monotonic() + self._patience
        self._set_timeout(self._patience if wait else 0.0)
        left = deque(_joined(pieces))
        while left:
            step = memoryview(left[0])[:_TLS_STEP]
            try:
                # TLS sends all or nothing; after nothing, the same bytes must follow.
                sent = self._socket.send(step)
            except _WOULD_BLOCK:
                return list(left)
            if sent == len(left[0]):
                left.popleft()
            else:
                left[0] = memoryview(left[0])[sent:]
            if left and wait and time.monotonic() > give_up:
                return list(left)
        return ()

    def be_patient(self, seconds: float) -> None:
        self._patience = seconds
        if not self._polls:
            self._set_kernel_timeout(socket.SO_SNDTIMEO, seconds)

    def limit_unsent(self, *, on: bool) -> None:
        if _NOTSENT_LOWAT is not None:
            with contextlib.suppress(OSError):  # not TCP
                self._socket.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _UNSENT if on else 0)

    def wait_movable(self, seconds: float, *, writes: bool) -> None:
        if self._secured is None or not self._secured.pending():
            _poll(self._socket, seconds, select.POLLIN | (select.POLLOUT if writes else 0))

    def read(self, timeout: float, most: Bound = SHORT) -> Reply:
        if timeout != self._timeout:
            self._set_timeout(timeout)
        self._elements_left, self._bytes_left = most
        self._give_up = 0.0
        return self._parse()

    def pop(self, name: bytes, seconds: float, timeout: float) -> Reply:
        self._socket.sendall(pack_blpops((name,), seconds))
        return self.read_popped(name, timeout)

    def read_popped(self, name: bytes, timeout: float) -> Reply:
        if timeout != self._timeout:
            self._set_timeout(timeout)
        if self._start == self._end and self._expects_large:
            large = self._read_large(name)
            if large is not None:
                return large
        elif self._start == self._end:
            try:
                came = self._socket.recv(_BUFFER_BYTES)
            except BlockingIOError:
                raise _timed_out() from None
            # Nearly always, this is the complete reply and nothing else.
            element = only_element(came, name)
            if element is not None:
                return element
            if not came:
                raise _ended()
            self._start, self._end = 0, len(came)
            self._view[: len(came)] = came
        self._elements_left, self._bytes_left = ELEMENT
        self._give_up = 0.0
        return element_of(self._parse(), name)

    def read_successes(self) -> int:
        whole = _SUCCESSES(self._buffer, self._start, self._end)
        if whole is None:
            return 0
        begin, self._start = self._start, whole.end()
        return self._buffer.count(CRLF, begin, self._start)

    def _read_large(self, name: bytes) -> memoryview | None:
        """Read the reply to a BLPOP into the memory for large bulks, where the last one was.

        Returns:
            The element; None if it is not large, or has no room there: then `_parse` goes on.
        """
        whole = memoryview(self._large)
        have = self._receive_into(whole[:_BUFFER_BYTES])
        # Not what is behind it: that is the last element, with the header that it had.
        begin, size = large_element(bytes(whole[: min(have, _AROUND)]), name)
        end = begin + size + 2
        if not size or have > end or end > len(whole):
            self._expects_large = False
            self._start, self._end = 0, have
            self._view[:have] = whole[:have]
            return None
        self._give_up = time.monotonic() + self._timeout + size / _LEAST_RATE
        while have < end:
            have += self._receive_into(whole[have:end])
            self._check_pace()
        return whole[begin : begin + size]

    def read_now(self) -> Reply:
        if self._buffer.find(CRLF, self._start, self._end) < 0:
            self._make_room()
            self._end += self._receive_now(self._view[self._end :])
            if self._buffer.find(CRLF, self._start, self._end) < 0:
                return NOT_YET
        if self._buffer[self._start] not in _LINES:
            raise UnaskedError("the broker's reply to a push is not a number")
        return self._parse()

    @property
    def buffered(self) -> bool:
        return self._start < self._end

    def readable(self) -> bool:
        if self._start == self._end:
            self._start, self._end = 0, self._receive_now(self._view)
        return self._start < self._end

    def _receive_now(self, view: memoryview) -> int:
        """Read what has arrived, and return its size; 0 if nothing has."""
        try:
            if self._polls:
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
        if self._secured is not None and self._secured.pending():
            return True
        return _poll(self._socket, seconds)

    def poll_busily(self, seconds: float) -> bool:
        if self.wait_readable(0):  # what a poll does not see counts, too
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        give_up = time.monotonic() + seconds
        while not poll.poll(0):
            if time.monotonic() > give_up:
                return False
            os.sched_yield()
        return True

    @property
    def traffic(self) -> tcp.Traffic | None:
        return tcp.traffic(self._below)

    def interrupt(self) -> None:
        # Below the TLS layer, because two threads must not use one SSL object.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._below, socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.disconnect()

    def _set_timeout(self, timeout: float) -> None:
        self._timeout = timeout
        if self._polls:
            self._socket.settimeout(timeout)
        else:
            self._set_kernel_timeout(socket.SO_RCVTIMEO, timeout)

    def _set_kernel_timeout(self, which: int, seconds: float) -> None:
        whole = int(seconds)
        timeval = struct.pack("ll", whole, int((seconds - whole) * 1e6) or int(not whole))
        self._socket.setsockopt(socket.SOL_SOCKET, which, timeval)

    def _parse(self, depth: int = 0) -> Reply:
        while (found := self._buffer.find(CRLF, self._start, self._end)) < 0:
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
                raise NotRespError("the broker sent arrays that are nested too deeply")
            if count < 0:
                return None
            self._elements_left -= count
            if self._elements_left < 0:
                raise UnaskedError("the broker sent more elements than a reply to this can have")
            return [self._parse(depth + 1) for _ in range(count)]
        if kind == _STATUS:
            return bytes(rest)
        if kind == _ERROR:
            return ErrorReply(rest.decode(errors="replace"))
        if rest.startswith(b"TTP/"):
            raise HttpError("the broker speaks HTTP")
        raise NotRespError("the broker does not speak RESP2")

    def _read_bulk(self, size: int) -> bytes | memoryview | None:
        if size < 0:
            return None
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise UnaskedError("the broker sent more bytes than a reply to this can have")
        if size < LARGE - 2:
            while self._end - self._start < size + 2:
                self._fill()
            bulk = bytes(self._view[self._start : self._start + size])
            self._start += size + 2
            return bulk
        # Do not trust the broker's word for the size: allocate a likely amount at first.
        room = size + _AROUND
        whole = self._large if room <= len(self._large) else bytearray(min(room, _STEP))
        if len(whole) <= _LARGEST_KEPT:
            self._large = whole
            self._expects_large = True
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
        """Read more into the buffer, which has less than a whole line or small bulk."""
        self._check_pace()
        if self._start == self._end:
            self._start, self._end = 0, self._receive_into(self._view)
            return
        self._make_room()
        self._end += self._receive_into(self._view[self._end :])

    def _check_pace(self) -> None:
        """Limit the time for a reply; call it before each wait for more of it."""
        now = time.monotonic()
        if not self._give_up:
            self._give_up = now + self._timeout
        elif now > self._give_up:
            raise TimeoutError("a reply that arrives too slowly")

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


@native.leaf
def only_element(came: bytes, name: bytes) -> bytes | None:
    """Return the element in the reply to a BLPOP of this list.

    Args:
        came: what the server sent.
        name: the list's name.

    Returns:
        None if ``came`` is not such a reply, all of it, and nothing else.
    """
    head = b"*2\r\n%b%b\r\n$" % (length_line(len(name)), name)
    if not came.startswith(head):
        return None
    begin = len(head)
    end = came.find(CRLF, begin)
    size = len(came) - end - 4
    is_all = end > 0 and size >= 0 and came[begin:end] == b"%d" % size
    return came[end + 2 : -2] if is_all else None


def large_element(came: bytes, name: bytes) -> tuple[int, int]:
    """Find the element in what may be the beginning of a reply to a BLPOP of this list.

    Args:
        came: what the server sent.
        name: the list's name.

    Returns:
        (where the element begins, its size); (0, 0) if ``came`` is anything else, or the element
        is not large.
    """
    head = b"*2\r\n%b%b\r\n$" % (length_line(len(name)), name)
    begin = len(head)
    end = came.find(CRLF, begin, begin + _SIZE_BYTES)
    if not came.startswith(head) or end < 0 or not came[begin:end].isdigit():
        return 0, 0
    size = int(came[begin:end])
    return (end + 2, size) if LARGE <= size <= MAX_BULK else (0, 0)


def _timed_out() -> TimeoutError:
    """Return the error to raise for the BlockingIOError of a kernel timeout."""
    return TimeoutError("timed out")


def _ended() -> WireError:
    return WireError("connection closed by the broker")


def _poll(which: socket.socket, seconds: float, events: int = select.POLLIN) -> bool:
    poll = select.poll()
    poll.register(which, events)
    return bool(poll.poll(seconds * 1000))


def _after(pieces: Sequence[Buffer], sent: int) -> Sequence[Buffer]:
    """Return what is left of the pieces after ``sent`` bytes."""
    for place, piece in enumerate(pieces):
        if sent < len(piece):
            rest = memoryview(piece)[sent:] if sent else piece
            return [rest, *pieces[place + 1 :]]
        sent -= len(piece)
    return ()


def _length(text: bytearray) -> int:
    size = int(text)
    if not -1 <= size <= MAX_BULK:
        raise NotRespError(f"the broker sent a reply of {size} bytes")
    return size


def _joined(pieces: Sequence[Buffer]) -> Iterable[Buffer]:
    """Yield the same bytes in fewer pieces: each piece costs at least one TLS record."""
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
