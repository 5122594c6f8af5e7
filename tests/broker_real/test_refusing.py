"""Servers that answer PING and refuse what is written: how it ends, and what is said of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator

import pytest

from redislink import BrokerBusy, BrokerPermissionError, Endpoint, PeerAborted
from redislink.broker import EmbeddedBroker
from redislink.operate import acl
from tests.conftest import connect_as, in_thread, join, make_cluster, quick_settings, run_parties
from tests.support.servers import Admin
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

TIMEOUT = 1.5
# Two parties dial some 10 times each meanwhile; without growing pauses, hundreds of times.
MOST_CONNECTIONS = 80


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as server:
        yield server


@pytest.fixture
def admin(server: EmbeddedBroker) -> Iterator[Admin]:
    admin = Admin(server)
    yield admin
    for _, accept, _ in REFUSALS.values():
        for command in accept:
            admin(*command)
    admin.close()


Commands = tuple[tuple[bytes, ...], ...]
REFUSALS: dict[str, tuple[Commands, Commands, str]] = {
    "full": (
        ((b"CONFIG", b"SET", b"maxmemory", b"100kb"),),
        ((b"CONFIG", b"SET", b"maxmemory", b"0"),),
        r"out of memory .*, [\d.]+ MiB used of 0\.1 MiB: raise its maxmemory",
    ),
    "without replicas": (
        ((b"CONFIG", b"SET", b"min-replicas-to-write", b"1"),),
        ((b"CONFIG", b"SET", b"min-replicas-to-write", b"0"),),
        "it takes no writes without enough replicas",
    ),
    "a replica": (
        ((b"REPLICAOF", b"127.0.0.1", b"1"),),
        ((b"REPLICAOF", b"NO", b"ONE"),),
        "it is a replica now",
    ),
    "with too many clients": (
        (
            (b"CONFIG", b"SET", b"maxclients", b"1"),
            (b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes"),
        ),
        ((b"CONFIG", b"SET", b"maxclients", b"1000"),),
        "it has as many connections as it takes",
    ),
}


def joined(server: EmbeddedBroker) -> list[Endpoint]:
    """Two parties who would count as lost long before the broker is given up."""
    return join(
        make_cluster(server.url, 2), broker_timeout=TIMEOUT, peer_timeout=0.5, close_timeout=0.5
    )


def receiving(endpoint: Endpoint) -> Callable[[], bytes]:
    return lambda: endpoint.recv(1 - endpoint.rank, "t")


@pytest.mark.parametrize("what", REFUSALS)
def test_it_is_given_up_and_no_peer_is_blamed(
    server: EmbeddedBroker, admin: Admin, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    refuse, _, words = REFUSALS[what]
    endpoints = joined(server)
    before = int(admin.info("stats")["total_connections_received"])
    for command in refuse:
        admin(*command)
    for endpoint in endpoints:
        thread, outcome = in_thread(receiving(endpoint))
        thread.join(30)
        (error,) = outcome
        assert type(error) is BrokerBusy, error
        assert f"limit is {TIMEOUT:g} s (REDISLINK_BROKER_TIMEOUT)" in str(error)
        assert re.search(words, str(error)), error
        assert not any(peer in str(error).split(":", 1)[1] for peer in ("alice", "bob"))
    assert int(admin.info("stats")["total_connections_received"]) - before < MOST_CONNECTIONS
    for endpoint in endpoints:
        endpoint.abort("done")
    assert sum("reconnected" in line for line in caplog.messages) <= len(endpoints)


@pytest.mark.parametrize("what", REFUSALS)
def test_when_it_accepts_again_all_goes_on(server: EmbeddedBroker, admin: Admin, what: str) -> None:
    refuse, accept, _ = REFUSALS[what]
    alice, bob = joined(server)
    for command in refuse:
        admin(*command)
    alice.send("bob", "t", b"refused at first")
    wait_until(lambda: alice.parts.core.outage.lasts and bob.parts.core.outage.lasts)
    for command in accept:
        admin(*command)
    assert bob.recv("alice", "t") == b"refused at first"
    wait_until(lambda: not alice.parts.core.outage.lasts and not bob.parts.core.outage.lasts)
    run_parties(alice.close, bob.close)


def test_whoever_may_not_push_to_one_peer_tells_the_others(
    server: EmbeddedBroker, admin: Admin
) -> None:
    """Its outbox is lost, which forbids the push; a new connection still reaches the others."""
    cluster = make_cluster(server.url, 3)
    alice_url = acl.party_url(server.url, "alice", "pw")
    admin(b"ACL", b"SETUSER", b"alice", b"on", b">pw", b"+@all", b"~*")
    limits = {"peer_timeout": 10, "close_timeout": 0.5}
    settings = quick_settings(**limits)
    alice, bob, carol = run_parties(
        lambda: connect_as(cluster, "alice", quick_settings(broker_url=alice_url, **limits)),
        lambda: connect_as(cluster, "bob", settings),
        lambda: connect_as(cluster, "carol", settings),
    )
    inboxes = [f"~rl:{{{cluster.session}:{name}}}:*".encode() for name in ("alice", "bob")]
    admin(b"ACL", b"SETUSER", b"alice", b"resetkeys", *inboxes)
    with pytest.raises(PeerAborted, match=r"BrokerPermissionError at its broker: permission den"):
        bob.recv("alice", "t")
    with pytest.raises(BrokerPermissionError):
        alice.recv("bob", "t")
    bob.abort("as alice's broker forbids it")
    with pytest.raises(PeerAborted, match="bob aborted"):
        carol.recv("alice", "t")
    for endpoint in (alice, carol):
        endpoint.abort("done")
