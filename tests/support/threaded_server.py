"""A TCP server on loopback with a thread for each connection."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from typing import Final, Self

HOST: Final = "127.0.0.1"


class ThreadedServer(ABC):
    """It listens once it is made, and serves within its ``with`` block.

    Attributes:
        port: where it listens.
        taken: the connections so far; those that are still open are shut down in the end.
    """

    def __init__(self, host: str = HOST) -> None:
        self._server = socket.create_server((host, 0))
        self.port = int(self._server.getsockname()[1])
        self.taken: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._listen, daemon=True)]

    @abstractmethod
    def serve(self, line: socket.socket) -> None:
        """Serve a connection, in a thread of its own; it is closed afterwards.

        An OSError ends it quietly: the other side is gone, or the server has ended.
        """

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for line in self.taken:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._server.accept()
                self.taken.append(line)
                self._threads.append(threading.Thread(target=self._run, args=(line,), daemon=True))
                self._threads[-1].start()

    def _run(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            self.serve(line)
