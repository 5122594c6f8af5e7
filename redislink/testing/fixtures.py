"""pytest fixtures: parties that are connected for a test, and closed after it.

Turn them on with ``pytest_plugins = ["redislink.testing.fixtures"]`` in ``conftest.py``:

    def test_greeting(relay_pair):
        alice, bob = relay_pair
        alice.send("bob", "greeting", b"hello")
        assert bob.recv("alice", "greeting") == b"hello"

The parties meet in fakeredis, within the process; `relay_broker` can choose another broker.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from redislink.broker import Broker, EmbeddedBroker
from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.identity.keypair import Identity, format_public_key
from redislink.joining import connect
from redislink.session.simulator import Simulator
from redislink.settings import RedisLinkSettings
from redislink.testing.faults import Faults, FaultyBroker
from redislink.transport.endpoint import Endpoint

RelayMesh = Callable[..., list[Endpoint]]
_NAMES: Final = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi")
_SETTINGS: Final = {"connect_timeout": 20.0, "recv_timeout": 20.0, "close_timeout": 5.0}


@pytest.fixture(scope="session")
def relay_embedded_broker() -> Iterator[EmbeddedBroker]:
    """One real Valkey server for the whole run. Sessions keep tests apart."""
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def relay_broker() -> str:
    """The broker of the parties: ``fakeredis``, ``embedded``, or a URL.

    Override it in ``conftest.py`` or in a test module; with ``params=["fakeredis",
    "embedded"]``, every test of `relay_pair` and `relay_mesh` runs on both.
    """
    return "fakeredis"


@pytest.fixture
def relay_mesh(request: pytest.FixtureRequest, relay_broker: str) -> Iterator[RelayMesh]:
    """``relay_mesh(n)`` returns n connected, sealed endpoints, alice, bob, …, in rank order.

    Keyword arguments: ``broker`` replaces that of `relay_broker`; ``faults`` and ``seed`` make it a
    `FaultyBroker`; ``devices`` is as in a cluster file; all others are settings. Endpoints that the
    test closed or aborted are left alone.
    """
    opened: list[Endpoint] = []

    def make(
        size: int,
        *,
        broker: str | Broker | None = None,
        faults: Faults | None = None,
        seed: int = 0,
        devices: dict[str, Any] | None = None,
        **settings: Any,
    ) -> list[Endpoint]:
        if not 2 <= size <= len(_NAMES):
            raise ConfigError(f"relay_mesh: from 2 to {len(_NAMES)} parties, not {size}")
        if not isinstance(broker, Broker):
            url = _url(request, broker or relay_broker)
            broker = Broker(url) if faults is None else FaultyBroker(url, seed=seed, faults=faults)
        identities = {name: Identity.generate() for name in _NAMES[:size]}
        cluster = ClusterSpec.parse(
            {
                "session": f"relay-{secrets.token_hex(6)}",
                "parties": [
                    {"name": name, "public_key": format_public_key(identity.public_key)}
                    for name, identity in identities.items()
                ],
                "devices": devices or {},
            }
        )
        chosen = RedisLinkSettings.load(_env_file=None, **(_SETTINGS | settings))
        with ThreadPoolExecutor(size) as pool:
            joining = [
                pool.submit(connect, cluster, name, chosen, broker=broker, identity=identity)
                for name, identity in identities.items()
            ]
        failed = [future for future in joining if future.exception() is not None]
        endpoints = [future.result() for future in joining if future not in failed]
        opened.extend(endpoints)
        for future in failed:
            future.result()
        return endpoints

    yield make
    if opened:
        with ThreadPoolExecutor(len(opened)) as pool:
            list(pool.map(Endpoint.close, opened))


@pytest.fixture
def relay_pair(relay_mesh: RelayMesh) -> tuple[Endpoint, Endpoint]:
    """Alice and bob, connected."""
    alice, bob = relay_mesh(2)
    return alice, bob


def _url(request: pytest.FixtureRequest, broker: str) -> str:
    if broker == "fakeredis":
        return f"fakeredis://relay-{secrets.token_hex(6)}"
    if broker == "embedded":
        server: EmbeddedBroker = request.getfixturevalue("relay_embedded_broker")
        return server.url
    return broker


@pytest.fixture
def simulated_cluster() -> ClusterSpec | str | Path | int:
    """The cluster of `simulator`: a number of parties, a cluster, or the path of its file.

    Override it in ``conftest.py`` or in a test module.
    """
    return 3


@pytest.fixture
def simulator(simulated_cluster: ClusterSpec | str | Path | int) -> Simulator:
    """A simulator that runs a program as every party, in threads:

    def test_sum(simulator):
        def program(session):
            sp = session.spu("SP0")
            x = sp.private(lambda: 1, owner="alice")
            return sp.reveal(sp.run(lambda x: x + 1)(x), to=["bob"])

        assert simulator.run(program)["bob"] == 2

    Called, it gives one with other options: ``simulator(kill={"bob": [3]}).run(program)`` kills bob
    at the third step, and all start again from their journals.
    """
    return Simulator(simulated_cluster)
