"""Lines that go silent without an end: noticed, given up, and nothing is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from redislink.broker import EmbeddedBroker
from redislink.testing import Proxy
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties

MESSAGES = 30


@pytest.mark.slow
def test_all_lines_of_a_party_go_half_open(valkey: EmbeddedBroker) -> None:
    settings = quick_settings(reply_timeout=0.5, blpop_timeout=0.5, peer_timeout=10)
    with Proxy(valkey.port) as proxy, ThreadPoolExecutor(4) as pool:
        cluster = make_cluster(valkey.url, 2)
        through = settings.model_copy(
            update={"broker_url": type(settings)(broker_url=proxy.url()).broker_url}
        )
        alice, bob = run_parties(
            lambda: connect_as(cluster, "alice", through),
            lambda: connect_as(cluster, "bob", settings),
        )
        alice.send("bob", "before", b"x")
        bob.send("alice", "before", b"x")
        assert (bob.recv("alice", "before"), alice.recv("bob", "before")) == (b"x", b"x")
        stalled = proxy.connections
        assert len(stalled) >= 3, "outbox, inbox, control"
        for connection in stalled:
            connection.stall()
        ways = [(alice, bob), (bob, alice)]
        for src, dst in ways:
            for number in range(MESSAGES):
                src.send(dst.party, f"t{number % 5}", b"%d" % number)
        received = [
            pool.submit(
                lambda src=src, dst=dst: [
                    int(dst.recv(src.party, f"t{n % 5}")) for n in range(MESSAGES)
                ]
            )
            for src, dst in ways
        ]
        assert [future.result(30) for future in received] == [list(range(MESSAGES))] * 2
        assert alice.stats().reconnects == 1
        run_parties(alice.close, bob.close)


@pytest.mark.slow
def test_a_line_that_stalls_while_closing_bounds_the_close(valkey: EmbeddedBroker) -> None:
    """Nobody hears alice any more: she still leaves, and bob is left to his own limit."""
    with Proxy(valkey.port) as proxy:
        settings = quick_settings(close_timeout=1, broker_url=proxy.url())
        cluster = make_cluster(valkey.url, 2)
        alice, bob = run_parties(
            lambda: connect_as(cluster, "alice", settings),
            lambda: connect_as(cluster, "bob", settings),
        )
        for connection in proxy.connections:
            connection.stall()
        with ThreadPoolExecutor(2) as pool:
            closing = [pool.submit(alice.close), pool.submit(bob.close)]
            for future in closing:
                future.result(1 + 5)  # though each reply may take 10 s
