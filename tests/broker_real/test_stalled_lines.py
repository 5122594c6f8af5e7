"""One line of a party goes half-open: it is left in moments, not after its timeout."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from redislink.broker import EmbeddedBroker
from redislink.broker.inbox import Wait
from redislink.broker.outbox import Outbox
from redislink.testing import Proxy
from redislink.transport.endpoint import Endpoint
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties

PATIENCE = 12.0
"""Seconds that a receive may take here; every timeout of a line is longer."""
MESSAGES = 60


@pytest.fixture
def parties(valkey: EmbeddedBroker) -> Iterator[tuple[Proxy, Endpoint, Endpoint]]:
    """Alice is behind a proxy, bob is not; no line of theirs ends a wait by itself in a test."""
    settings = quick_settings(reply_timeout=30, blpop_timeout=20)
    with Proxy(valkey.port) as proxy:
        cluster = make_cluster(valkey.url, 2)
        behind = quick_settings(reply_timeout=30, blpop_timeout=20, broker_url=proxy.url())
        alice, bob = run_parties(
            lambda: connect_as(cluster, "alice", behind),
            lambda: connect_as(cluster, "bob", settings),
        )
        yield proxy, alice, bob
        for connection in proxy.connections:
            connection.resume()
        run_parties(alice.close, bob.close)


def exchange(src: Endpoint, dst: Endpoint, first: int) -> None:
    """Messages with numbers in their tags, as SPU's have them: the receiver foresees those."""
    for number in range(first, first + MESSAGES):
        src.send(dst.party, f"m-{number}", b"%d" % number)
        assert dst.recv(src.party, f"m-{number}", PATIENCE) == b"%d" % number


def stall(proxy: Proxy, owner: Wait | Outbox) -> None:
    """Stall the connection of a wait or an outbox."""
    mine = owner._connection._wire._socket.getsockname()  # type: ignore[union-attr]
    [line] = [c for c in proxy.connections if c._writers[0].get_extra_info("peername") == mine]
    line.stall()


@pytest.mark.slow
def test_a_lane_that_stalls_is_left_for_another_edition(
    parties: tuple[Proxy, Endpoint, Endpoint],
) -> None:
    proxy, alice, bob = parties
    exchange(bob, alice, 0)
    peer = alice.parts.core.peers["bob"]
    [lane] = peer.lanes._lanes.values()
    stall(proxy, lane.wait)
    exchange(bob, alice, MESSAGES)
    assert peer.delivery.edition_in == bob.parts.core.peers["alice"].delivery.edition_out == 1
    assert b".1:" in peer.in_prefix
    assert bob.stats().frames_resent <= 2, "the ghost's other BLPOPs swallow nothing"
    exchange(alice, bob, 0)


@pytest.mark.slow
def test_a_plain_receive_that_stalls_is_asked_for_elsewhere(
    parties: tuple[Proxy, Endpoint, Endpoint],
) -> None:
    proxy, alice, bob = parties
    bob.send("alice", "before", b"x")
    assert alice.recv("bob", "before", PATIENCE) == b"x"
    wait = alice.parts.core.inbox._idle[-1]
    stall(proxy, wait)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(alice.recv, "bob", "t", PATIENCE)
        bob.send("alice", "t", b"y")
        assert received.result() == b"y"


@pytest.mark.slow
def test_a_stalled_outbox_loses_to_a_new_connection(
    parties: tuple[Proxy, Endpoint, Endpoint],
) -> None:
    proxy, alice, bob = parties
    alice.send("bob", "before", b"x")
    assert bob.recv("alice", "before", PATIENCE) == b"x"
    stall(proxy, alice.parts.core.outbox)
    for number in range(MESSAGES):
        alice.send("bob", f"t{number % 5}", b"%d" % number)
    for number in range(MESSAGES):
        assert bob.recv("alice", f"t{number % 5}", PATIENCE) == b"%d" % number
    assert alice.stats().reconnects == 1


@pytest.mark.slow
def test_a_stalled_control_connection_loses_to_a_new_one(
    parties: tuple[Proxy, Endpoint, Endpoint],
) -> None:
    """Acks come over it where no message carries them."""
    proxy, alice, bob = parties
    stall(proxy, alice.parts.control._wait)
    request = alice.send("bob", "t", b"x")
    assert bob.recv("alice", "t", PATIENCE) == b"x"
    request.wait(PATIENCE)
