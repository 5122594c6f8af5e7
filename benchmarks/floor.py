"""The floor: the least that a relay of a broker's lists takes, from Python.

RPUSH to the other's list, BLPOP of the own one, by two raw sockets. As in redislink, pops are asked
for ahead, and replies to pushes are read when they are many. Nothing is framed, sealed, numbered or
kept, so what the broker loses is lost. Unlike a time, the multiple of the floor carries over from
one machine to another.
"""

from __future__ import annotations

import socket
from typing import Final

_AHEAD: Final = 16
_PUSH_REPLIES: Final = 64
"""So many pushes at most before their replies are read."""
_LARGE: Final = 64 << 10
"""From here on, a message is neither joined with its command nor copied."""
_RECEIVE: Final = 64 << 10


class FloorLink:
    """One party's end between two; as much of libspu's link context as the workloads need."""

    def __init__(self, address: tuple[str, int], prefix: str, rank: int) -> None:
        """Args: where the broker is, what the lists' names begin with, this party's rank."""
        self.rank = rank
        into, out = f"{prefix}/{rank}".encode(), f"{prefix}/{1 - rank}".encode()
        self._pushes, self._pops = _connect(address), _connect(address)
        self._head = b"*3\r\n$5\r\nRPUSH\r\n$%d\r\n%b\r\n$" % (len(out), out)
        self._pop = b"*3\r\n$5\r\nBLPOP\r\n$%d\r\n%b\r\n$1\r\n0\r\n" % (len(into), into)
        self._reply = b"*2\r\n$%d\r\n%b\r\n$" % (len(into), into)
        self._unread = 0
        self._asked = 0
        self._buffer = b""

    def send_async(self, peer: int, data: bytes | str) -> None:  # noqa: ARG002 - as libspu's
        """Push a message."""
        if isinstance(data, str):
            data = data.encode()
        if len(data) < _LARGE:
            self._pushes.sendall(b"%b%d\r\n%b\r\n" % (self._head, len(data), data))
        else:
            pieces = (b"%b%d\r\n" % (self._head, len(data)), data, b"\r\n")
            sent = self._pushes.sendmsg(pieces)
            if sent < sum(map(len, pieces)):  # a blocking socket hardly ever stops halfway
                self._pushes.sendall(b"".join(pieces)[sent:])
        self._unread += 1
        if self._unread == _PUSH_REPLIES:
            self._read_push_replies()

    def recv(self, peer: int) -> bytes | bytearray:  # noqa: ARG002 - as libspu's
        """Pop a message."""
        if self._asked < _AHEAD // 2:
            self._pops.sendall(self._pop * (_AHEAD - self._asked))
            self._asked = _AHEAD
        buffer, reply = self._buffer, self._reply
        while (end := buffer.find(b"\r\n", len(reply))) < 0:
            buffer += self._receive()
        if not buffer.startswith(reply):
            raise ConnectionError(f"the broker said {buffer[:100]!r}")
        start, size = end + 2, int(buffer[len(reply) : end])
        stop = start + size
        self._asked -= 1
        if size >= _LARGE:
            return self._receive_large(buffer[start:], size)
        while len(buffer) < stop + 2:
            buffer += self._receive()
        self._buffer = buffer[stop + 2 :]
        return buffer[start:stop]

    def close(self) -> None:
        """Close both connections."""
        self._pushes.close()
        self._pops.close()

    def _receive_large(self, begun: bytes, size: int) -> bytearray:
        data = bytearray(size + 2)
        have = min(len(begun), size + 2)
        data[:have] = begun[:have]
        self._buffer = begun[have:]
        with memoryview(data) as view:
            while have < size + 2:
                got = self._pops.recv_into(view[have:])
                if not got:
                    raise ConnectionError("the broker hung up")
                have += got
        del data[size:]
        return data

    def _receive(self) -> bytes:
        data = self._pops.recv(_RECEIVE)
        if not data:
            raise ConnectionError("the broker hung up")
        return data

    def _read_push_replies(self) -> None:
        while self._unread:
            data = self._pushes.recv(_RECEIVE)
            if not data or b"-" in data:
                raise ConnectionError(f"the broker said {data[:100]!r}")
            self._unread -= data.count(b"\n")


def _connect(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
