"""Real servers for the tests: the embedded Valkey, and Debian's redis-server where it is."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.connection import BrokerConnection
from redislink.broker.wire import LISTING

KINDS = ("valkey", "redis-server")


def debian_redis() -> Path | None:
    """Where redis-server is; None where it is not installed (``.ci/install-redis``)."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


def make_server(kind: str, options: dict[str, str] | None = None) -> EmbeddedBroker:
    """A server of one of `KINDS`, not started, on a port that it keeps over restarts."""
    binary = debian_redis() if kind == "redis-server" else None
    if kind == "redis-server" and binary is None:
        raise FileNotFoundError("redis-server is not installed: run .ci/install-redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    return EmbeddedBroker(port, options=options, binary=binary)


def restart_empty(server: EmbeddedBroker) -> None:
    """Kill the server with SIGKILL, and start it anew on the same port, without its data."""
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    server.start()


class Admin:
    """Commands to a server, over a connection of its own that is renewed after a failure."""

    def __init__(self, server: EmbeddedBroker) -> None:
        self._broker = Broker(server.url, timeout=5)
        self._connection: BrokerConnection | None = None

    def __call__(self, *command: bytes | int) -> Any:
        if self._connection is None or not self._connection.usable:
            self._connection = self._broker.open()
        return self._connection.execute(*command, timeout=5, most=LISTING)

    def info(self, section: str) -> dict[str, str]:
        """``INFO section`` as a mapping."""
        text = bytes(self(b"INFO", section.encode())).decode()
        pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
        return {name: value for name, _, value in pairs}

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
