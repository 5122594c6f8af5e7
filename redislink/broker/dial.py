"""Dialling: the TCP connections to a broker's servers.

Rules:
- Nothing else in the package dials a broker. What every such connection needs (its options, the
  way out of this network) is seen to here.
- A dialled socket is a real one, in its timeout as in its file descriptor: TLS can be put on it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import redis

from redislink.broker.url import Address

Dial = Callable[[Address, float], socket.socket]
"""Returns a connection to host and port. The seconds are for each wait of the attempt, and stay
the socket's timeout; it raises what `dial` raises."""


def dial(address: Address, seconds: float) -> socket.socket:
    """Return a connection to host and port.

    Args:
        address: the host is resolved here; its addresses are tried in turn.
        seconds: how long to wait for each of them; also the socket's timeout.

    Raises:
        OSError: none of them took the connection, or the host has none.
    """
    dialled = socket.create_connection(address, seconds)
    dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return dialled


class Connection(redis.Connection):
    """redis-py's connection, on a socket that is opened here, with TLS if it has any."""

    def __init__(self, *, open_socket: Callable[[], Any], **options: Any) -> None:
        """Args: returns a new socket, ready for commands; the rest is redis-py's."""
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._open_socket = open_socket

    def _connect(self) -> Any:
        return self._open_socket()
