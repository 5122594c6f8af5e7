"""alice and bob on a real server, and a connection to look at what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redislink import Endpoint
from redislink.broker import Broker
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties


@pytest.fixture
def pair_on_valkey(valkey: Any) -> Iterator[Callable[..., tuple[Endpoint, Endpoint]]]:
    """``pair_on_valkey(**settings)`` gives alice and bob, closed after the test."""
    endpoints: list[Endpoint] = []

    def make(**changes: Any) -> tuple[Endpoint, Endpoint]:
        cluster, settings = make_cluster(valkey.url, 2), quick_settings(**changes)
        alice, bob = run_parties(
            *(lambda n=n: connect_as(cluster, n, settings) for n in ("alice", "bob"))
        )
        endpoints.extend((alice, bob))
        return alice, bob

    yield make
    run_parties(*(endpoint.close for endpoint in endpoints))


@pytest.fixture
def admin(valkey: Any) -> Iterator[Callable[..., Any]]:
    """``admin(b"LLEN", name)`` executes a command."""
    connection = Broker(valkey.url).open()
    yield lambda *command: connection.execute(*command, timeout=5)
    connection.close()
