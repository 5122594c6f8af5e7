"""The brokers that are measured: one Valkey, one with threads for sockets, a Cluster of three."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from redislink.broker import Broker, EmbeddedBroker
from redislink.errors import BrokerError

ONE: Final = "one"
IO_THREADS: Final = "io-threads"
CLUSTER: Final = "cluster"
_NODES: Final = 3
_SLOTS: Final = 16384
_PATIENCE: Final = 20.0
_OPTIONS: Final = {
    ONE: {},
    IO_THREADS: {"io-threads": "2"},
    CLUSTER: {"cluster-enabled": "yes", "cluster-node-timeout": "15000"},
}
_PORTS: Final = range(12000, 20000)
_BUS: Final = 10000
"""A Cluster's node has a second port, so much above."""


class BrokerServers:
    """One of these kinds, until it is left.

    Attributes:
        kind: which.
        pids, ports: of its servers.
    """

    def __init__(self, kind: str) -> None:
        """Args: one of the above."""
        self.kind = kind
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """For parties."""
        if self.kind == CLUSTER:
            return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis://127.0.0.1:{self.ports[0]}/0"

    @property
    def unix_url(self) -> str:
        """For parties, by the first server's unix socket."""
        return self._servers[0].unix_url

    def __enter__(self) -> Self:
        count = _NODES if self.kind == CLUSTER else 1
        with ExitStack() as stack:
            self._servers = [
                stack.enter_context(
                    EmbeddedBroker(
                        _free_port() if self.kind == CLUSTER else 0,
                        options=_OPTIONS[self.kind],
                    )
                )
                for _ in range(count)
            ]
            self.pids = [server.pid for server in self._servers]
            self.ports = [server.port for server in self._servers]
            if self.kind == CLUSTER:
                self._join()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _join(self) -> None:
        for number, server in enumerate(self._servers):
            first, last = (_SLOTS * place // _NODES for place in (number, number + 1))
            _ask(server, "CLUSTER", "ADDSLOTSRANGE", str(first), str(last - 1))
            _ask(server, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for server in self._servers[1:]:
            _ask(self._servers[0], "CLUSTER", "MEET", "127.0.0.1", str(server.port))
        deadline = time.monotonic() + _PATIENCE
        while not all(_is_whole(server) for server in self._servers):
            if time.monotonic() > deadline:
                raise RuntimeError("the cluster's nodes do not find one another")
            time.sleep(0.05)


def _free_port() -> int:
    """One that is free, and the one that a node of a Cluster needs besides."""
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + _BUS))
            return port


def _is_whole(server: EmbeddedBroker) -> bool:
    info = bytes(_ask(server, "CLUSTER", "INFO"))  # type: ignore[arg-type]
    return b"cluster_state:ok" in info and f"cluster_known_nodes:{_NODES}\r".encode() in info


def _ask(server: EmbeddedBroker, *words: str) -> object:
    connection = Broker(server.url, timeout=_PATIENCE).open()
    try:
        return connection.execute(*(word.encode() for word in words), timeout=_PATIENCE)
    except BrokerError as error:
        raise RuntimeError(f"{words[:2]}: {error}") from None
    finally:
        connection.close()
