"""No log handler of a program runs under a lock of ours, and nobody connects under one."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from redislink import BrokerUnreachable, Endpoint, PeerError, RedisLinkError
from redislink.broker import Outbox
from redislink.broker.connection import BrokerConnection
from tests.conftest import in_thread, join, make_cluster, run_parties
from tests.support.locks import Locks
from tests.support.waiting import wait_until


class Listener(logging.Handler):
    """Notes each record that a thread makes while it holds a lock of redislink."""

    def __init__(self, locks: Locks) -> None:
        super().__init__(logging.DEBUG)
        self._locks = locks
        self.heard: list[str] = []
        self.under_lock: list[tuple[str, list[str]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())
        if held := self._locks.held():
            self.under_lock.append((record.getMessage(), held))


@pytest.fixture
def listened(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[list[Endpoint], Listener]]:
    logger = logging.getLogger("redislink")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    listener = Listener(Locks(monkeypatch))
    logger.addHandler(listener)
    endpoints = join(make_cluster(broker_url, 2), close_timeout=0.2)
    yield endpoints, listener
    run_parties(*(lambda e=e: e.abort("the test is over") for e in endpoints))
    logger.removeHandler(listener)
    logger.setLevel(level)


def test_no_record_is_made_under_it(listened: tuple[list[Endpoint], Listener]) -> None:
    (alice, bob), listener = listened
    alice.send("bob", "t", b"x")
    assert bob.recv("alice", "t") == b"x"
    core, peer = bob.parts.core, bob.parts.core.peers["alice"]
    name = peer.in_list("t")
    for junk in (b"junk", b"\1\0\0", b"\x63" * 50):
        bob.parts.receiving._receive(peer, "t", name, junk, None)
        bob.parts.control._take_control(peer, junk)
        bob.parts.control.take_hello(peer, junk)
    core.cut_finer()
    alice.abort("the program of alice has failed")
    with pytest.raises(PeerError):
        bob.recv("alice", "u")
    wait_until(lambda: core.failure is not None)
    assert len(listener.heard) > 3
    assert listener.under_lock == []


def test_nor_while_an_outbox_is_mended(listened: tuple[list[Endpoint], Listener]) -> None:
    (alice, bob), listener = listened
    outbox = alice.parts.core.outbox
    assert isinstance(outbox, Outbox)
    with outbox._lock:
        outbox._break(BrokerUnreachable("made up by the test"))
    alice.send("bob", "t", b"x")
    assert bob.recv("alice", "t") == b"x"
    wait_until(lambda: any("reconnected" in message for message in listener.heard))
    assert listener.under_lock == []


def test_one_under_a_lock_would_be_noticed(listened: tuple[list[Endpoint], Listener]) -> None:
    (alice, _), listener = listened
    core = alice.parts.core
    with core.lock, core.changed, core.rendezvous._lock:
        core.changed.wait(0.001)
        core.log.info("made under three of them")
    core.log.info("made under none")
    (told, held) = listener.under_lock.pop()
    assert told == "made under three of them"
    assert len(held) == 3
    assert listener.under_lock == []


def test_a_failure_is_told_without_it(listened: tuple[list[Endpoint], Listener]) -> None:
    (alice, _), listener = listened
    thread, outcome = in_thread(lambda: alice.recv("bob", "never"))
    wait_until(lambda: alice.parts.core.inbox.waits())
    alice.parts.core.fail(RedisLinkError("alice: made up by the test"))
    thread.join(10)
    assert isinstance(outcome[0], RedisLinkError)
    assert listener.heard
    assert listener.under_lock == []


def test_nobody_connects_with_the_lock_of_the_lanes(
    monkeypatch: pytest.MonkeyPatch, valkey: object
) -> None:
    alice, bob = join(make_cluster(valkey.url, 2))  # type: ignore[attr-defined]
    held: list[bool] = []
    connect = BrokerConnection.__init__

    def noted(self: BrokerConnection, *args: object, **options: object) -> None:
        held.append(any(p.lanes._lock.locked() for p in bob.parts.core.peers.values()))
        connect(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(BrokerConnection, "__init__", noted)
    for number in range(20):
        alice.send("bob", f"t-{number}", b"x")
        assert bob.recv("alice", f"t-{number}") == b"x"
    lanes = bob.parts.core.peers["alice"].lanes
    (lane,) = lanes._lanes.values()
    with lane.lock:  # as a reader that lost the connection, before it gives the lane up
        lane.wait.disconnect()
        lanes.go_on(lane)
    assert lane.abandoned
    assert held
    assert not any(held)
    run_parties(alice.close, bob.close)


def test_helpers_that_need_it_say_so(listened: tuple[list[Endpoint], Listener]) -> None:
    (alice, _), _ = listened
    wait = alice.parts.core.inbox.acquire()
    for helper in (
        alice.parts.core.wake_all,
        alice.parts.closing._unfinished,
        lambda: alice.parts.receiving._wake_another(alice.parts.core.peer("bob"), "t", None),
        alice.parts.sending.request("bob", "t", 1)._is_decided,  # type: ignore[attr-defined]
        lambda: alice.parts.receiving.register(wait),
    ):
        with pytest.raises(AssertionError, match="lock"):
            helper()
    alice.parts.core.inbox.release(wait)
