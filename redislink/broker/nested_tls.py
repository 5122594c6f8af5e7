"""`NestedTls`: TLS to the broker inside TLS to the proxy, which Python's `ssl.SSLSocket` cannot do.

Rules:
- It behaves as an `ssl.SSLSocket` in all that the package uses of one: what is taken by `send` has
  gone out; after a timeout, the same bytes have to be sent again, as part of them is on its way,
  and more may follow them.
- The outer connection owns the socket and its timeout.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from types import TracebackType
from typing import Any, Final, Self

_STEP: Final = 64 << 10


class NestedTls:
    """A TLS connection inside another one.

    Attributes:
        outer: the connection that carries it.
    """

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, server_hostname: str) -> None:
        """Do the handshake.

        Raises:
            OSError, ValueError: there was none, or the certificate is not trusted.
        """
        self.outer = outer
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_hostname=server_hostname)
        self._unsent = b""
        self._being_sent = 0
        """Bytes of the caller's that have become part of what goes out."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            except BaseException:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert that says why
                raise
            else:
                self._flush()
                return

    def send(self, content: Any) -> int:
        """Send all of it, and return how many bytes that are.

        Raises:
            OSError: not all of it could be sent, as in `ssl.SSLSocket.send`.
        """
        self._flush()
        whole = memoryview(content)
        if fresh := whole[self._being_sent :]:
            self._being_sent += self._tls.write(fresh)
            self._flush()
        self._being_sent = 0
        return len(whole)

    def sendall(self, content: Any) -> None:
        """As a socket's."""
        left = memoryview(content)
        while left:
            left = left[self.send(left[:_STEP]) :]

    def recv(self, size: int) -> bytes:
        """As a socket's."""
        return self._read(size) or b""

    def recv_into(self, buffer: Any) -> int:
        """As a socket's."""
        return self._read(len(buffer), buffer) or 0

    def _read(self, *arguments: Any) -> Any:
        while True:
            try:
                return self._tls.read(*arguments)
            except ssl.SSLWantReadError:
                self._fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return None  # with or without a goodbye, as in `ssl.SSLSocket`

    def pending(self) -> int:
        """Return how many bytes have come and not been read; some of them may be TLS's own."""
        return self._tls.pending() + self._came.pending + self.outer.pending()

    def getpeercert(self, *, binary_form: bool = False) -> Any:
        """As of an `ssl.SSLSocket`."""
        return self._tls.getpeercert(binary_form)

    def version(self) -> str | None:
        """As of an `ssl.SSLSocket`."""
        return self._tls.version()

    def settimeout(self, seconds: float | None) -> None:
        """As a socket's."""
        self.outer.settimeout(seconds)

    def gettimeout(self) -> float | None:
        """As a socket's."""
        return self.outer.gettimeout()

    def setsockopt(self, *option: Any) -> None:
        """As a socket's."""
        self.outer.setsockopt(*option)

    def fileno(self) -> int:
        """As a socket's."""
        return self.outer.fileno()

    def shutdown(self, how: int) -> None:
        """As a socket's, below all TLS."""
        socket.socket.shutdown(self.outer, how)

    def close(self) -> None:
        """As a socket's."""
        self.outer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _flush(self) -> None:
        """Send what goes out; what cannot be sent now goes first the next time."""
        while True:
            if not self._unsent:
                self._unsent = self._goes.read(_STEP)
                if not self._unsent:
                    return
            self._unsent = self._unsent[self.outer.send(self._unsent) :]

    def _fill(self) -> None:
        came = self.outer.recv(_STEP)
        if came:
            self._came.write(came)
        else:
            self._came.write_eof()
