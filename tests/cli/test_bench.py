"""``redislink bench``: every party runs it, and each gets figures of every peer."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from redislink.broker import EmbeddedBroker
from redislink.cli.errors import ExitCode
from redislink.errors import UsageError
from redislink.identity.keypair import Identity, format_public_key
from redislink.operate.bench import SIZES, PeerResult, run_bench
from redislink.transport.endpoint import Endpoint
from tests.cli.conftest import Run, Start, Write, check_one_line, ended
from tests.conftest import run_parties

Mesh = Callable[..., list[Endpoint]]


def test_each_party_measures_with_every_peer(mesh: Mesh, valkey: EmbeddedBroker) -> None:
    endpoints = mesh(valkey.url, size=4)
    turns: list[str] = []

    def run(endpoint: Endpoint) -> list[PeerResult]:
        return run_bench(endpoint, 0.05, lambda peer: turns.append(f"{endpoint.party} {peer}"))

    results = run_parties(*(partial(run, endpoint) for endpoint in endpoints))
    for endpoint, found in zip(endpoints, results, strict=True):
        others = [name for name in endpoint.cluster.party_names if name != endpoint.party]
        assert [result.peer for result in found] == others
        for result in found:
            assert tuple(trip.size for trip in result.round_trips) == SIZES
            for trip in result.round_trips:
                assert trip.count >= 1
                assert 0 < trip.median <= trip.p95 < 20
            assert result.sent_per_second > 0
            assert result.received_per_second > 0
    names = endpoints[0].cluster.party_names
    pairs = [(a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
    assert turns == [turn for a, b in pairs for turn in (f"{a} {b}", f"{b} {a}")], "one at a time"


def test_on_fakeredis_and_for_different_times(mesh: Mesh, broker_url: str) -> None:
    endpoints = mesh(broker_url, size=2)
    long, short = run_parties(
        lambda: run_bench(endpoints[0], 0.6), lambda: run_bench(endpoints[1], 0.01)
    )
    assert long[0].round_trips[0].count > short[0].round_trips[0].count


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_no_time_to_measure(mesh: Mesh, valkey: EmbeddedBroker, seconds: float) -> None:
    with pytest.raises(UsageError, match="must be more than 0"):
        run_bench(mesh(valkey.url, size=2)[0], seconds)


@pytest.mark.slow
def test_command(
    start: Start, write_cluster: Write, tmp_path: Path, broker: EmbeddedBroker
) -> None:
    identities = {name: Identity.generate() for name in ("alice", "bob")}
    for name, identity in identities.items():
        identity.save(tmp_path / f"{name}.key", name)
    cluster = write_cluster(
        {
            "session": "bench",
            "parties": [
                {"name": name, "public_key": format_public_key(identity.public_key)}
                for name, identity in identities.items()
            ],
        }
    )
    words = ("bench", "--cluster", cluster, "--seconds", "0.2", "--party")
    alice = start(*words, "alice", "--json", "--identity", "alice.key", broker_url=broker.url)
    bob = start(*words, "bob", broker_url=broker.url, identity_file="bob.key")
    result = ended(alice)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert {name: found[name] for name in ("session", "party", "security", "seconds")} == {
        "session": "bench",
        "party": "alice",
        "security": "sealed",
        "seconds": 0.2,
    }
    (peer,) = found["peers"]
    assert peer["peer"] == "bob"
    assert [trip["size"] for trip in peer["round_trips"]] == list(SIZES)
    assert "alice: measuring with bob" in result.stderr

    result = ended(bob)
    assert result.returncode == 0, result.stderr
    for text in ("alice", "64 B", "1 KB", "64 KB", "1 MB", "median ms", "p95 ms", "MB/s to"):
        assert text in result.stdout
    assert result.stdout.count("alice") == 1


def test_without_a_cluster(redislink: Run) -> None:
    check_one_line(
        redislink("bench"), ExitCode.CONFIG, "no cluster file", "--cluster", "run redislink init"
    )
