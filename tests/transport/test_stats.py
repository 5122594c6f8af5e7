"""`Endpoint.stats`: sums, and each peer's part, with what waits at this moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from redislink import Endpoint, RecvCancelled, ThreadCommunicator
from redislink.transport.stats import COUNTS
from tests.conftest import in_thread
from tests.support.waiting import wait_until
from tests.transport.test_endpoint import blocked

URL = "fakeredis://stats"


def test_each_peer_has_its_part_and_the_sums_are_of_these(
    mesh: Callable[..., list[Endpoint]],
) -> None:
    alice, bob, carol = mesh(URL, 3)
    alice.send("bob", "t", b"12345")
    alice.send("carol", "t", b"123")
    carol.recv("alice", "t")
    bob.recv("alice", "t")
    carol.send("alice", "back", b"1")
    alice.recv("carol", "back")
    stats = alice.stats()
    assert list(stats.peers) == ["bob", "carol"]
    assert (stats.peers["bob"].messages_sent, stats.peers["bob"].bytes_sent) == (1, 5)
    assert stats.peers["bob"].messages_received == 0
    assert (stats.peers["carol"].bytes_sent, stats.peers["carol"].bytes_received) == (3, 1)
    for name in COUNTS:
        assert getattr(stats, name) == sum(getattr(p, name) for p in stats.peers.values()), name
    assert json.loads(json.dumps(asdict(stats)))["peers"]["bob"]["state"] == "open"
    assert hash(stats) != hash(bob.stats())


def test_what_waits_now_and_what_is_not_acked(mesh: Callable[..., list[Endpoint]]) -> None:
    alice, bob = mesh(URL, 2)
    thread, ended = in_thread(lambda: bob.recv("alice", "never"))
    wait_until(lambda: blocked(bob, "never"))
    (before,) = bob.stats().peers["alice"].waiting.items()
    (after,) = bob.stats().peers["alice"].waiting.items()
    assert before[0] == after[0] == "never"
    assert 0 < before[1] < after[1] < 20
    bob.cancel_recv("alice", "never")
    thread.join(10)
    assert isinstance(ended[0], RecvCancelled)
    assert bob.stats().peers["alice"].waiting == {}

    handle = alice.send("bob", "t", bytes(1000))
    kept = alice.stats().peers["bob"]
    assert 1000 < kept.in_flight_bytes == kept.unacked_bytes < 1200
    bob.recv("alice", "t")
    handle.wait()
    kept = alice.stats().peers["bob"]
    assert (kept.unacked_bytes, kept.in_flight_bytes) == (0, 0)
    assert 0 <= kept.last_heard_seconds < 10


def test_a_conversation_that_is_over_says_so(mesh: Callable[..., list[Endpoint]]) -> None:
    alice, bob = mesh(URL, 2)
    alice.close()
    wait_until(lambda: bob.stats().peers["alice"].state == "peer closed")
    assert alice.stats().peers["bob"].state in ("closing", "closed")


def test_threads_in_memory_have_sums_only() -> None:
    alice, bob = ThreadCommunicator.make(2)
    alice.send(1, "t", b"12")
    assert bob.recv(0, "t") == b"12"
    assert (alice.stats().bytes_sent, alice.stats().peers) == (2, {})
