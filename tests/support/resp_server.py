"""A server that answers each command as a test says, on loopback, with TLS or without."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, BinaryIO

from tests.support.threaded_server import HOST, ThreadedServer

Handler = Callable[[list[bytes]], bytes | None]
OK = b"+OK\r\n"


class RespServer(ThreadedServer):
    """Usage: ``with RespServer(lambda command: b"+OK\\r\\n") as server: …``

    Attributes:
        commands: all that it got, in order.
    """

    def __init__(
        self, handler: Handler, *, host: str = HOST, context: ssl.SSLContext | None = None
    ) -> None:
        """Args: gives the reply to a command, None to close; for TLS its context."""
        super().__init__(host)
        self._handler = handler
        self._context = context
        self.commands: list[list[bytes]] = []

    def serve(self, line: socket.socket) -> None:
        """Answer commands until the other side hangs up, or sends what is none."""
        if self._context is not None:
            line = self._context.wrap_socket(line, server_side=True)
            self.taken.append(line)
        with line, contextlib.suppress(ValueError), line.makefile("rb") as commands:
            while (command := _read(commands)) is not None:
                self.commands.append(command)
                reply = self._handler(command)
                if reply is None:
                    break
                line.sendall(reply)


def _read(commands: BinaryIO) -> list[bytes] | None:
    line = commands.readline()
    if not line.startswith(b"*"):
        return None
    found = []
    for _ in range(int(line[1:])):
        size = int(commands.readline()[1:])
        found.append(commands.read(size + 2)[:-2])
    return found


def encode(value: Any) -> bytes:
    """A value as RESP2: int, bytes, str (both a bulk string), None or a list of these."""
    match value:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % value
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(encode, value))
        case str():
            return encode(value.encode())
        case _:
            return b"$%d\r\n%b\r\n" % (len(value), value)
