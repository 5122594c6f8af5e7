"""The examples as modules, and a way to run one as three threads: in the simulator, or each with
an endpoint over a real broker."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from redislink import ClusterSpec, Endpoint, Session, Simulator
from redislink.broker import EmbeddedBroker
from tests.conftest import join, make_cluster, run_parties
from tests.support.tls_terminator import TlsTerminator

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
DATA: Final = EXAMPLES / "data"
CLUSTER: Final = EXAMPLES / "cluster.yaml"

# As `python examples/NAME.py` and `redislink run` have it.
sys.path.insert(0, str(EXAMPLES))


@dataclass(frozen=True)
class Place:
    """Where a test's parties meet."""

    url: str | None
    """None for the simulator."""
    settings: dict[str, Any] = field(default_factory=dict)

    def play(self, main: Callable[[Session], Any]) -> list[Any]:
        """Run ``main`` as alice, bob and carol, in threads; what each returned."""
        spec = yaml.safe_load(CLUSTER.read_text())
        if self.url is None:
            return list(Simulator(ClusterSpec.parse(spec)).run(main).values())
        cluster = make_cluster(self.url, devices=spec["devices"])
        assert list(cluster.party_names) == spec["parties"]

        def run(endpoint: Endpoint) -> Any:
            with Session.from_endpoint(endpoint) as session:
                return main(session)

        endpoints = join(cluster, **self.settings)
        return run_parties(*(lambda endpoint=endpoint: run(endpoint) for endpoint in endpoints))


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The embedded broker with a password, behind TLS."""
    password = secrets.token_urlsafe(16)
    directory = tmp_path_factory.mktemp("tls")
    with (
        EmbeddedBroker(password=password) as broker,
        TlsTerminator(broker.port, directory) as terminator,
    ):
        yield Place(terminator.url(password), {"broker_tls_ca": terminator.ca_file})
        assert terminator.connections > 0


@pytest.fixture(params=["simulator", "valkey", "rediss"])
def place(request: pytest.FixtureRequest) -> Place:
    """Runs a test once in the simulator, and once on each kind of broker."""
    if request.param == "rediss":
        found: Place = request.getfixturevalue("tls")
        return found
    if request.param == "valkey":
        return Place(request.getfixturevalue("valkey").url)
    return Place(None)


@pytest.fixture
def simulated() -> Place:
    """The quickest place: for what does not depend on where the parties are."""
    return Place(None)
