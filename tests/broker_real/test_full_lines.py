"""Parties whose line to the broker is full: sending does not wait for it, and all arrives once."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from redislink import Endpoint, RedisLinkSettings
from redislink.broker import EmbeddedBroker
from redislink.testing import ProxiedConnection, Proxy
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties
from tests.support.ledger import Ledger, compare
from tests.support.tls_terminator import TlsTerminator

MB = 1 << 20


@functools.cache
def payload() -> bytes:
    """32 MB."""
    return random.Random(1).randbytes(32 * MB)


@contextmanager
def parties(
    valkey: EmbeddedBroker,
    proxy: Proxy,
    size: int = 2,
    *,
    alice: str | None = None,
    **changes: object,
) -> Iterator[tuple[list[Endpoint], ProxiedConnection]]:
    """Endpoints of which alice alone dials through the proxy, and her connection for sending."""
    settings = quick_settings(**({"peer_timeout": 10} | changes))
    cluster = make_cluster(valkey.url, size)
    url = RedisLinkSettings(_env_file=None, broker_url=alice or proxy.url()).broker_url
    through = settings.model_copy(update={"broker_url": url})
    endpoints = run_parties(
        *(
            lambda name=name: connect_as(cluster, name, through if name == "alice" else settings)
            for name in cluster.party_names
        )
    )
    before = {connection.number: connection.to_server for connection in proxy.connections}
    endpoints[0].send("bob", "mark", bytes(MB))
    endpoints[1].recv("alice", "mark")
    sending = max(proxy.connections, key=lambda c: c.to_server - before.get(c.number, 0))
    yield endpoints, sending
    sending.resume()
    run_parties(*(endpoint.close for endpoint in endpoints))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def send_on_a_stalled_line(
    ends: list[Endpoint], sending: ProxiedConnection, pool: ThreadPoolExecutor
) -> None:
    alice, bob, carol = ends
    sending.stall()
    bulk = alice.send("bob", "bulk", payload())
    for number in range(10):
        alice.send("carol", f"small {number}", b"%d" % number)
        alice.send("bob", "after", b"%d" % number)
    assert alice.parts.core.outbox.is_behind
    assert not bulk.test()
    small = pool.submit(lambda: [carol.recv("alice", f"small {n}") for n in range(10)])
    after = pool.submit(lambda: [bob.recv("alice", "after") for _ in range(10)])
    sending.resume()
    assert bob.recv("alice", "bulk") == payload()
    assert small.result(20) == after.result(20) == [b"%d" % n for n in range(10)]
    bulk.wait(20)
    assert alice.stats().reconnects == 0


@pytest.mark.slow
def test_sending_does_not_wait_for_a_line_that_takes_nothing(
    valkey: EmbeddedBroker, pool: ThreadPoolExecutor
) -> None:
    with Proxy(valkey.port) as proxy, parties(valkey, proxy, 3) as (ends, sending):
        send_on_a_stalled_line(ends, sending, pool)


@pytest.mark.slow
def test_nor_for_one_with_tls(
    valkey: EmbeddedBroker, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with (
        TlsTerminator(valkey.port, tmp_path) as tls,
        Proxy(tls.port) as proxy,
        parties(
            valkey,
            proxy,
            3,
            alice=proxy.url().replace("redis://", "rediss://"),
            broker_tls_ca=tls.ca_file,
        ) as (ends, sending),
    ):
        send_on_a_stalled_line(ends, sending, pool)


@pytest.mark.slow
def test_a_line_that_is_cut_in_the_middle_of_a_backlog(
    valkey: EmbeddedBroker, pool: ThreadPoolExecutor
) -> None:
    with Proxy(valkey.port) as proxy, parties(valkey, proxy) as ((alice, bob), sending):
        books = {end.party: Ledger(end) for end in (alice, bob)}
        receiving = pool.submit(lambda: [bob.recv("alice", f"t{n % 3}") for n in range(9)])
        sending.stall()
        for number in range(9):
            alice.send("bob", f"t{number % 3}", payload()[number * MB : (number + 3) * MB])
        assert alice.parts.core.outbox.is_behind
        sending.cut()
        receiving.result(30)
        assert compare({name: book.as_json() for name, book in books.items()}).clean
        assert alice.stats().reconnects == 1
        assert bob.stats().messages_received == 1 + 9


@pytest.mark.slow
def test_what_is_left_to_write_goes_out_while_closing(valkey: EmbeddedBroker) -> None:
    """At a rate at which it takes longer than closing may, from when all is written."""
    with Proxy(valkey.port) as proxy, parties(valkey, proxy, close_timeout=1) as (ends, _):
        alice, bob = ends
        proxy.rate = 8e6
        alice.send("bob", "bulk", payload()[: 24 * MB])
        assert alice.parts.core.outbox.is_behind
        received, _ = run_parties(lambda: bob.recv("alice", "bulk"), alice.close)
        assert received == payload()[: 24 * MB]


@pytest.mark.slow
def test_heartbeats_are_heard_while_a_line_is_full(valkey: EmbeddedBroker) -> None:
    """Carol waits for alice, whose line to the broker is full with what bob gets for seconds."""
    with (
        Proxy(valkey.port) as proxy,
        parties(valkey, proxy, 3, peer_timeout=2.5, chunk_bytes=MB // 4) as (ends, _),
    ):
        alice, bob, carol = ends
        proxy.rate = 3e6
        alice.send("bob", "bulk", payload()[: 14 * MB])
        assert alice.parts.core.outbox.is_behind

        def then() -> bytes:
            received = bob.recv("alice", "bulk")
            alice.send("carol", "after", b"after")
            return received

        received, after = run_parties(then, lambda: carol.recv("alice", "after"))
        assert received == payload()[: 14 * MB]
        assert after == b"after"
        assert alice.stats().reconnects == 0


@pytest.mark.slow
def test_a_small_message_waits_for_a_chunk_and_not_for_all(valkey: EmbeddedBroker) -> None:
    """To carol, and to bob himself, beside what bob gets for seconds."""
    with Proxy(valkey.port) as proxy, parties(valkey, proxy, 3) as ((alice, bob, carol), _):
        proxy.rate = 6e6
        bulk = alice.send("bob", "bulk", payload()[: 16 * MB])
        taken: list[Callable[[], bytes]] = []
        for number in range(5):
            alice.send("carol", f"small {number}", b"x")
            alice.send("bob", f"small {number}", b"x")
            taken.append(lambda number=number: carol.recv("alice", f"small {number}"))
            taken.append(lambda number=number: bob.recv("alice", f"small {number}"))
        assert [take() for take in taken] == [b"x"] * 10
        assert not bulk.test()
        assert alice.parts.core.outbox.is_behind
        assert bob.recv("alice", "bulk") == payload()[: 16 * MB]
