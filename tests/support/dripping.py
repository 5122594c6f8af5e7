"""Servers that answer without an end, and a proxy that starts to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator

from tests.support.threaded_server import ThreadedServer


class Dripping(ThreadedServer):
    """A server that answers the first command on each connection as told, and then drips.

    It drips whatever it has been given, again and again, until it is closed.
    """

    def __init__(self, begins: bytes, drips: bytes, pause: float = 0.0) -> None:
        super().__init__()
        self._begins, self._drips, self._pause = begins, drips, pause
        self._closed = threading.Event()

    def serve(self, line: socket.socket) -> None:
        """Take a command, and drip."""
        line.recv(65536)
        line.sendall(self._begins)
        while not self._closed.wait(self._pause):
            line.sendall(self._drips)

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        super().__exit__()


class DripProxy:
    """Passes everything on, until `drip`: from then on it answers for the server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._answer: Callable[[], Iterable[bytes]] | None = None
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def drip(self, begins: bytes, drips: bytes, pause: float) -> None:
        """What each connection, old or new, is sent from now on, after the next command."""

        def answer() -> Iterator[bytes]:
            yield begins
            wait = threading.Event()
            while True:
                wait.wait(pause)
                yield drips

        self._answer = answer

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [client, server]
                for work in (self._go, self._come):
                    self._threads.append(threading.Thread(target=work, args=(client, server)))
                    self._threads[-1].start()

    def _go(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                if self._answer is None:
                    server.sendall(data)
                else:
                    server.shutdown(socket.SHUT_RDWR)  # its last words are not passed on: `_come`
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _come(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if self._answer is not None:
                    break
                client.sendall(data)
            if self._answer is not None:
                for data in self._answer():
                    client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> DripProxy:
        return self

    def __exit__(self, *_: object) -> None:
        for end in [self._socket, *self._ends]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join()
