"""What the kernel knows of a TCP connection, and when it gives one up.

Rules:
- Nothing here is needed for correctness: where the kernel lacks something, nothing is set or known.
- Any thread may ask; a TLS object is not touched.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

_INFO: Final = getattr(socket, "TCP_INFO", None)
# Of linux/tcp.h: tcpi_bytes_received is a u64 behind 24 u32 and 8 bytes, and three other u64.
_BYTES_RECEIVED: Final = struct.Struct("@128xQ")


def bytes_received(line: socket.socket) -> int | None:
    """Return how many bytes have come so far, read or not; None if the kernel does not say."""
    if _INFO is None:
        return None
    try:
        # Not the method of an SSLSocket, of which only one thread may make use at a time.
        info = socket.socket.getsockopt(line, socket.IPPROTO_TCP, _INFO, _BYTES_RECEIVED.size)
    except OSError:
        return None
    if len(info) < _BYTES_RECEIVED.size:
        return None
    count: int = _BYTES_RECEIVED.unpack(info)[0]
    return count
