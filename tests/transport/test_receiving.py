"""Receives: whom they blame, whom they wake, when they ask for what does not come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from redislink import Endpoint, PeerProtocolError, RedisLinkError
from redislink.broker import EmbeddedBroker
from redislink.broker.wire import LARGE
from redislink.protocol.chunking import Reassembly
from redislink.protocol.delivery import Delivery
from redislink.protocol.frame import Ack, AckState, Data, Frame
from redislink.protocol.lookahead import Family
from redislink.protocol.seal import SealedCodec
from redislink.transport import core as core_module
from redislink.transport.lanes import Lane, Lanes
from tests.conftest import in_thread, join, make_cluster, run_parties
from tests.support.waiting import wait_until
from tests.transport.test_lanes_in_memory import FakeInbox

Pair = tuple[Endpoint, Endpoint]
_names = iter(range(1000))


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    """``pair(security="none")``: alice and bob, who abort after the test."""
    endpoints: list[Endpoint] = []

    def make(**changes: Any) -> Pair:
        endpoints.extend(join(make_cluster(f"fakeredis://receive-{next(_names)}", 2, **changes)))
        return endpoints[0], endpoints[1]

    yield make
    run_parties(*(lambda e=e: e.abort("the test is over") for e in endpoints))


def push(alice: Endpoint, tag: str | None, frame: Frame) -> None:
    """As alice, who has her keys and a program of her own."""
    peer = alice.parts.core.peers["bob"]
    name = peer.control_out if tag is None else peer.out_list(tag)
    alice.parts.core.outbox.push(name, peer.codec.encode_parts(name, frame, b""))
    alice.parts.core.outbox.flush()


FORBIDDEN = {"whole": Data(1, acked=9), "chunk": Data(1, 0, 2, acked=9)}


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_a_peer_that_acks_what_was_never_sent_is_to_blame(
    pair: Callable[..., Pair], kind: str
) -> None:
    alice, bob = pair()
    push(alice, "t", FORBIDDEN[kind])
    with pytest.raises(PeerProtocolError, match=r"alice sent what the protocol forbids.*never"):
        bob.recv("alice", "t")


def test_and_on_the_control_list_too(pair: Callable[..., Pair]) -> None:
    alice, bob = pair()
    push(alice, None, Ack(AckState(9)))
    with pytest.raises(PeerProtocolError, match=r"alice sent what the protocol forbids.*never"):
        bob.recv("alice", "t")


def test_without_seals_it_may_be_somebody_else(pair: Callable[..., Pair]) -> None:
    alice, bob = pair(security="none")
    push(alice, None, Ack(AckState(9)))
    push(alice, "t", Data(1, acked=9))
    alice.send("bob", "t", b"true")
    assert bob.recv("alice", "t") == b"true"
    assert bob.parts.core.failure is None


@pytest.mark.parametrize("left", [(b"left", 0), None])
def test_who_takes_a_message_wakes_one_that_waits_if_another_is_left(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, left: tuple[bytes, int] | None
) -> None:
    _, bob = pair()
    woken: list[str] = []

    def wait(name: str, purpose: tuple[str, str, float] | None) -> SimpleNamespace:
        return SimpleNamespace(purpose=purpose, interrupt=lambda: woken.append(name))

    core, mine = bob.parts.core, wait("mine", ("alice", "t", 0.0))
    waits = [
        mine,
        wait("idle", None),
        wait("another tag", ("alice", "u", 0.0)),
        wait("another peer", ("carol", "t", 0.0)),
        wait("the first", ("alice", "t", 0.0)),
        wait("the second", ("alice", "t", 0.0)),
    ]
    with monkeypatch.context() as patch, core.lock:
        patch.setattr(core.inbox, "waits", lambda: waits)
        peer = core.peer("alice")
        patch.setattr(peer, "kept", {"t"})
        patch.setattr(peer.delivery, "take", lambda _: (b"taken", 0))
        patch.setattr(peer.delivery, "peek", lambda _: left)
        took = bob.parts.receiving._take(peer, "t", mine)  # type: ignore[arg-type]
    assert took == (b"taken", 0)
    assert woken == (["the first"] if left else [])


def test_an_element_that_does_not_open_is_sent_again(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: its receiver says so, and waits for no timer."""
    alice, bob = pair()
    encode_whole = SealedCodec.encode_whole

    def change(self: SealedCodec, *args: Any) -> tuple[bytes, bytes]:
        header, body = encode_whole(self, *args)
        return header, bytes([body[0] ^ 1]) + bytes(body[1:])

    with monkeypatch.context() as patch:
        patch.setattr(SealedCodec, "encode_whole", change)
        alice.send("bob", "t", b"x")
    said: list[str] = []
    complain = Delivery.lost
    monkeypatch.setattr(
        Delivery, "lost", lambda self, tag, now: said.append(tag) or complain(self, tag, now)
    )
    assert bob.recv("alice", "t") == b"x"
    assert said == ["t"]
    assert alice.stats().frames_resent == 1


@pytest.mark.parametrize("security", ["sealed", "none"])
def test_chunks_are_opened_in_their_place_and_what_does_not_open_leaves_nothing_there(
    valkey: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, security: str
) -> None:
    lent: list[int] = []
    changed: list[int] = []

    def watch(self: Reassembly, tag: str, frame: Data, size: int, received: Any) -> Any:
        place = lend(self, tag, frame, size, received)
        if place is not None:
            lent.append(frame.part)
        return place

    def change(self: SealedCodec, name: bytes, element: Any, lend: Any = None) -> Any:
        if len(element) > LARGE and len(lent) == 3 and not changed:
            element[-30] ^= 1
            changed.append(len(lent))
        return decode(self, name, element, lend)

    lend, decode = Reassembly.lend, SealedCodec.decode_untrusted
    monkeypatch.setattr(core_module, "NEAR", 60.0)
    monkeypatch.setattr(Reassembly, "lend", watch)
    monkeypatch.setattr(SealedCodec, "decode_untrusted", change)
    alice, bob = join(make_cluster(valkey.url, 2, security=security), chunk_bytes=128 << 10)
    message = os.urandom((1 << 20) + 7)
    alice.send("bob", "t", message)
    assert bob.recv("alice", "t") == message
    assert lent == list(range(2, 8)), "the last one is small"
    assert bool(changed) == (alice.stats().frames_resent > 0) == (security == "sealed")
    run_parties(alice.close, bob.close)


def test_an_interrupt_that_was_meant_for_another_ends_nothing(pair: Callable[..., Pair]) -> None:
    alice, bob = pair()
    thread, outcome = in_thread(lambda: bob.recv("alice", "t"))

    def waiting() -> list[Any]:
        return [wait for wait in bob.parts.core.inbox.waits() if wait.purpose]

    (wait,) = wait_until(waiting)
    wait.interrupt()
    alice.send("bob", "t", b"x")
    thread.join(10)
    assert outcome == [b"x"]


def test_a_session_that_is_over_gives_nothing_from_a_lane(pair: Callable[..., Pair]) -> None:
    _, bob = pair()
    wait = bob.parts.core.inbox.acquire()
    lane = Lane(Family("t", 1, ""), b"", wait)
    bob.parts.core.fail(RedisLinkError("of ours"))
    with pytest.raises(RedisLinkError, match="of ours"):
        bob.parts.receiving._recv_foreseen(
            bob.parts.core.peer("alice"), lane, "t1", time.monotonic(), 1.0
        )
    assert not lane.lock.locked()
    assert wait.purpose is None


def test_what_a_lane_brings_for_an_earlier_tag_is_kept(pair: Callable[..., Pair]) -> None:
    alice, bob = pair()
    peer, codec = bob.parts.core.peer("alice"), alice.parts.core.peer("bob").codec
    peer.lanes = lanes = Lanes(FakeInbox(), 4, 5.0, 0.0, peer.in_prefix)  # type: ignore[arg-type]
    for tag in ("t1", "t2"):
        lanes.foresee(tag)
    lane: Any = lanes.lane_of("t4")
    lane.wait.answers = [
        codec.encode(peer.in_list(tag), Data(seq), tag.encode())
        for seq, tag in enumerate(("t3", "t4"), 1)
    ]
    for tag in ("t4", "t3"):
        assert bob.recv("alice", tag, 5.0) == tag.encode()
    assert lane.wait.answers == []
    assert bob.stats().probes_sent == 0
