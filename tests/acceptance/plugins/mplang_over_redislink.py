"""Replaces, for MPLang's own tests, what joins the threads of one process: by sealed endpoints.

A plug-in of pytest, for an interpreter that has MPLang. Each of ``ThreadCommunicator``'s parties
gets an endpoint of its own, and they meet at the broker of a trial.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mplang.backends.simp_worker import base, mem
from mplang.edsl import serde

from redislink.interop.mplang.comm import RelayCommunicator
from redislink.interop.parties import Parties
from redislink.transport.endpoint import Endpoint

_numbers = itertools.count()
_open: list[Endpoint] = []
MESSAGES = {"sent": 0}


class EndpointCommunicator:
    """As MPLang's ``ThreadCommunicator``, over an endpoint."""

    def __init__(self, rank: int, world_size: int, *, use_serde: bool = False) -> None:
        self.rank = rank
        self.world_size = world_size
        self._relay: RelayCommunicator | None = None

    def set_peers(self, peers: list[Any]) -> None:
        """The first of them joins for all."""
        if self._relay is None:
            names = [f"party-{peer.rank}" for peer in peers]
            parties = Parties()
            cluster = parties.cluster(names, ["mesh", str(os.getpid()), str(next(_numbers))])
            with ThreadPoolExecutor(len(peers)) as pool:
                endpoints = list(
                    pool.map(lambda name: parties.connect(cluster, name, parties.settings), names)
                )
            _open.extend(endpoints)
            for peer, endpoint in zip(peers, endpoints, strict=True):
                peer._relay = RelayCommunicator(
                    endpoint,
                    self.world_size,
                    serde.dumps_binary,
                    serde.loads_binary,
                    base.SendRequest,
                )

    def send(self, *given: Any, **named: Any) -> Any:
        """See `RelayCommunicator`."""
        MESSAGES["sent"] += 1
        return self._relay.send(*given, **named)

    def send_sync(self, *given: Any, **named: Any) -> None:
        """See `RelayCommunicator`."""
        MESSAGES["sent"] += 1
        self._relay.send_sync(*given, **named)

    def recv(self, *given: Any, **named: Any) -> Any:
        """See `RelayCommunicator`."""
        return self._relay.recv(*given, **named)

    def shutdown(self) -> None:
        """The endpoints are closed after the test."""


mem.ThreadCommunicator = EndpointCommunicator


@pytest.fixture(autouse=True)
def _endpoints_are_closed() -> Iterator[None]:
    yield
    with ThreadPoolExecutor(max(1, len(_open))) as pool:
        list(pool.map(lambda endpoint: endpoint.close(), _open))
    _open.clear()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how much went over the relay."""
    terminalreporter.write_line(f"{MESSAGES['sent']} messages over the relay")
