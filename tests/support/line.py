"""A broker for one outbox, without a server: the test reads what comes, and answers."""

from __future__ import annotations

import socket

from redislink.broker.connection import BrokerConnection

REPLY = b":1\r\n"


class Line:
    """A broker for an outbox, of which the test plays the server, and reads when it likes."""

    in_process = False
    may_be_quiet = False
    label = "the test"

    def __init__(self, timeout: float = 10.0) -> None:
        self.timeout = timeout
        self.server = self._client = socket.socket()
        self._unread = b""

    def open_answering(self) -> BrokerConnection:
        self._close_both()
        self.server, self._client = socket.socketpair()
        self.server.settimeout(10)
        self._unread = b""
        return BrokerConnection(self.label, self, in_process=False, timeout=self.timeout)

    def connect(self) -> None:
        """As redis-py's connection, which has done so."""

    def _get_socket(self) -> socket.socket:
        return self._client

    def disconnect(self) -> None:
        if self._client.fileno() >= 0:
            self._client.shutdown(socket.SHUT_RDWR)
            self._client.close()

    def _close_both(self) -> None:
        self.server.close()
        self._client.close()

    def command(self) -> list[bytes]:
        """The next command that comes."""
        count = int(self._line()[1:])
        return [self._exactly(int(self._line()[1:]) + 2)[:-2] for _ in range(count)]

    def pushed(self, reply: bytes = REPLY + REPLY) -> tuple[bytes, bytes]:
        """List and element of the next push, which is answered."""
        verb, name, element = self.command()
        assert verb == b"RPUSH"
        assert self.command()[0] == b"PEXPIRE"
        self.server.sendall(reply)
        return name, element

    def _line(self) -> bytes:
        while b"\r\n" not in self._unread:
            self._unread += self._more()
        line, self._unread = self._unread.split(b"\r\n", 1)
        return line

    def _exactly(self, count: int) -> bytes:
        pieces = [self._unread]
        while (have := sum(map(len, pieces))) < count:
            pieces.append(self._more())
        whole = b"".join(pieces)
        self._unread = whole[count:]
        assert have >= count
        return whole[:count]

    def _more(self) -> bytes:
        more = self.server.recv(1 << 16)
        assert more, "the outbox has closed the connection"
        return more
