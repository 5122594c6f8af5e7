"""A proxy that answers CONNECT with whatever a test says: what real ones do not do when asked."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from tests.support.threaded_server import HOST, ThreadedServer

Script = Callable[[socket.socket], None]


class ScriptedProxy(ThreadedServer):
    """Usage: ``with ScriptedProxy(lambda line: line.sendall(b"HTTP/1.1 403 No\\r\\n\\r\\n")): …``

    Attributes:
        heads: the requests that it got.
    """

    def __init__(self, script: Script) -> None:
        """Args: what to do on a connection once its request is read; then it is closed."""
        super().__init__()
        self._script = script
        self.heads: list[bytes] = []

    def url(self, credentials: str = "") -> str:
        """The proxy's URL."""
        return f"http://{credentials}{HOST}:{self.port}"

    def serve(self, line: socket.socket) -> None:
        """Read a request, and play the script."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = line.recv(1)
            if not byte:
                return
            head += byte
        self.heads.append(head)
        self._script(line)


def answering(answer: bytes) -> Script:
    """A script that says this, and waits until the other side hangs up."""

    def script(line: socket.socket) -> None:
        line.sendall(answer)
        while line.recv(1 << 16):
            pass

    return script


def tunnel_to(port: int) -> Script:
    """A script that lets through, to this port of 127.0.0.1, whatever was asked for."""

    def script(line: socket.socket) -> None:
        with socket.create_connection((HOST, port)) as server:
            line.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=_copy, args=(server, line), daemon=True)
            back.start()
            _copy(line, server)
            back.join()

    return script


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
