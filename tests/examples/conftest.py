"""The examples as modules, and a way to run one as three threads over each kind of broker."""

from __future__ import annotations

import atexit
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from redislink import Endpoint
from redislink.broker import EmbeddedBroker
from tests.conftest import join, make_cluster, run_parties
from tests.support.tls_terminator import TlsTerminator

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
DATA: Final = EXAMPLES / "data"
CLUSTER: Final = EXAMPLES / "cluster.yaml"

# As `python examples/NAME.py` and `redislink run` have it.
sys.path.insert(0, str(EXAMPLES))


@atexit.register
def _hush_libpsi() -> None:
    """libpsi logs to standard output as late as the process's end: keep pytest's result last."""
    sys.stdout.flush()
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)


@dataclass(frozen=True)
class Place:
    """Where a test's parties meet."""

    url: str
    settings: dict[str, Any] = field(default_factory=dict)

    def play(self, main: Callable[[Endpoint], Any]) -> list[Any]:
        """Run ``main`` as alice, bob and carol, in threads; what each returned."""
        spec = yaml.safe_load(CLUSTER.read_text())
        cluster = make_cluster(self.url, devices=spec["devices"])
        assert list(cluster.party_names) == spec["parties"]

        def run(endpoint: Endpoint) -> Any:
            with endpoint:
                return main(endpoint)

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


@pytest.fixture(params=["fakeredis", "valkey", "rediss"])
def place(request: pytest.FixtureRequest) -> Place:
    """Runs a test once on each kind of broker."""
    if request.param == "rediss":
        found: Place = request.getfixturevalue("tls")
        return found
    if request.param == "valkey":
        return Place(request.getfixturevalue("valkey").url)
    return Place(f"fakeredis://examples-{secrets.token_hex(4)}")


@pytest.fixture
def in_process() -> Place:
    """The quickest place: for what does not depend on the broker."""
    return Place(f"fakeredis://examples-{secrets.token_hex(4)}")


@pytest.fixture(autouse=True)
def _private_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # libpsi's files, as in the examples' command lines.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
