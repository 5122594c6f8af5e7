"""A server that answers each command as a test says, on loopback, with TLS or without."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO, Self

HOST = "127.0.0.1"
Handler = Callable[[list[bytes]], bytes | None]
OK = b"+OK\r\n"


class RespServer:
    """Usage: ``with RespServer(lambda command: b"+OK\\r\\n") as server: …``

    Attributes:
        port: where it listens.
        commands: all that it got, in order.
    """

    def __init__(
        self, handler: Handler, *, host: str = HOST, context: ssl.SSLContext | None = None
    ) -> None:
        """Args: gives the reply to a command, None to close; for TLS its context."""
        self._handler = handler
        self._context = context
        self.commands: list[list[bytes]] = []
        self._server = socket.create_server((host, 0))
        self.port = int(self._server.getsockname()[1])
        self._taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for taken in self._taken:
            with contextlib.suppress(OSError):
                taken.shutdown(socket.SHUT_RDWR)
            taken.close()
        self._thread.join()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = self._server.accept()
                self._taken.append(taken)
                threading.Thread(target=self._serve, args=(taken,), daemon=True).start()

    def _serve(self, taken: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._context is not None:
                taken = self._context.wrap_socket(taken, server_side=True)
                self._taken.append(taken)
            with taken.makefile("rb") as commands:
                while (command := _read(commands)) is not None:
                    self.commands.append(command)
                    reply = self._handler(command)
                    if reply is None:
                        break
                    taken.sendall(reply)
            taken.close()


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
