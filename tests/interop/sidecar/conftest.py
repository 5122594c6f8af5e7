"""Sidecars of two parties in this process, over a broker in memory."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redislink.interop.parties import Parties
from redislink.interop.sidecar.links import Links
from redislink.interop.sidecar.server import SidecarServer
from redislink.settings import RedisLinkSettings

TOKEN = "a token of a test"

MakeServer = Callable[..., SidecarServer]


@pytest.fixture
def said() -> list[str]:
    """The lines that the sidecars have shown."""
    return []


@pytest.fixture
def make_parties(tmp_path: Path) -> Callable[..., Parties]:
    """Makes what says who may take part, for one of alice, bob and carol."""
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(
        f"session: sidecars\nsecurity: none\nbroker: fakeredis://{secrets.token_hex(6)}\n"
        "parties: [alice, bob, carol]\n"
    )

    def make(party: str, **settings: object) -> Parties:
        times = {"connect_timeout": 20.0, "close_timeout": 2.0, "recv_timeout": 20.0}
        return Parties(
            RedisLinkSettings.load(
                _env_file=None, cluster_file=cluster, party=party, **times, **settings
            )
        )

    return make


@pytest.fixture
def make_server(make_parties: Callable[..., Parties], said: list[str]) -> Iterator[MakeServer]:
    """Makes and starts the sidecar of a party."""
    servers = []

    def make(party: str, **settings: object) -> SidecarServer:
        by_ports = bool(settings.pop("by_ports", True))
        links = Links(make_parties(party, **settings), said.append, by_ports=by_ports)
        server = SidecarServer(links, TOKEN)
        server.start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.stop()
        server.links.close()
