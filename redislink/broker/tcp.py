"""What the kernel knows of a TCP connection, and when it gives one up.

Rules:
- Nothing here is needed for correctness: where the kernel lacks something, nothing is set or known.
- Any thread may ask; a TLS object is not touched.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import sys
from typing import Final, NamedTuple

_IDLE: Final = 2
"""Seconds without traffic after which the kernel asks the other end whether it is still there."""
_INTERVAL: Final = 1
_PROBES: Final = 3
_MOST_PROBES: Final = 127
_ROUND_TRIPS: Final = 4
_INFO: Final = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
"""Elsewhere the option is missing, or its answer has another layout."""
_NUMBERS: Final = {
    "linux": {"TCP_NOTSENT_LOWAT": 25},
    "darwin": {"TCP_NOTSENT_LOWAT": 0x201, "TCP_RXT_CONNDROPTIME": 0x80},
}
"""Options for which Python may have no name, from the systems' ``tcp.h``."""
_RTT: Final = struct.Struct("=68xI")
# Of linux/tcp.h: segments that are not acknowledged; bytes acknowledged and received; bytes that
# are not sent.
_FIELDS: Final = struct.Struct("=24xI92xQQ8xI")


def option(name: str) -> int | None:
    """The number of an option of TCP; None if this system has none of that name."""
    number: int | None = getattr(socket, name, None)
    return _NUMBERS.get(sys.platform, {}).get(name) if number is None else number


def watch(line: socket.socket, seconds: float) -> None:
    """Have the kernel give a connection up once the other end has not answered for a while.

    Args:
        line: the connection, just opened.
        seconds: how long the other end's kernel may be silent; four round trips if that is longer.
    """
    seconds = max(seconds, _ROUND_TRIPS * _round_trip(line))
    options = {
        "TCP_KEEPIDLE": _IDLE,
        "TCP_KEEPALIVE": _IDLE,  # macOS's name for it
        "TCP_KEEPINTVL": _INTERVAL,
        "TCP_KEEPCNT": min(max(_PROBES, round((seconds - _IDLE) / _INTERVAL)), _MOST_PROBES),
        "TCP_USER_TIMEOUT": round(seconds * 1000),
        "TCP_RXT_CONNDROPTIME": math.ceil(seconds),  # macOS's, in seconds
    }
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        number = option(name)
        if number is not None:
            with contextlib.suppress(OSError):
                line.setsockopt(socket.IPPROTO_TCP, number, value)


def send_unpaced(line: socket.socket) -> None:
    """Have the kernel send at once what is for this machine, where it would send BBR's bursts.

    BBR, the default of many a cloud's images, sends two segments at a time and waits for a timer
    in between. With Reno, a round trip of 256 KiB took 0.9 of the time.

    Args:
        line: the connection, just opened.
    """
    number: int | None = getattr(socket, "TCP_CONGESTION", None)
    if number is None or line.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # a kernel without Reno
        if line.getsockname()[0] == line.getpeername()[0]:
            line.setsockopt(socket.IPPROTO_TCP, number, b"reno")


def _round_trip(line: socket.socket) -> float:
    """Return the seconds that the kernel has measured; 0 if it does not say."""
    if _INFO is None:
        return 0.0
    microseconds: int = _RTT.unpack(line.getsockopt(socket.IPPROTO_TCP, _INFO, _RTT.size))[0]
    return microseconds / 1e6


class Traffic(NamedTuple):
    """What has passed on a connection so far.

    Attributes:
        received: the bytes that have come, read or not.
        acknowledged: the bytes of ours that the other end's kernel has acknowledged.
        is_under_way: whether there are others, which it has not.
        is_unread: whether some of what has come waits to be read.
    """

    received: int
    acknowledged: int
    is_under_way: bool
    is_unread: bool = False


def traffic(line: socket.socket) -> Traffic | None:
    """Return what has passed on a connection; None if the kernel does not say."""
    if _INFO is None:
        return None
    try:
        # Not the method of an SSLSocket, of which only one thread may make use at a time.
        info = socket.socket.getsockopt(line, socket.IPPROTO_TCP, _INFO, _FIELDS.size)
        poll = select.poll()
        poll.register(line, select.POLLIN)
        is_unread = bool(poll.poll(0))
    except (OSError, ValueError):  # closed meanwhile
        return None
    if len(info) < _FIELDS.size:
        return None
    unacknowledged, acknowledged, received, unsent = _FIELDS.unpack(info)
    return Traffic(received, acknowledged, bool(unacknowledged or unsent), is_unread)
