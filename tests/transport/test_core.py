"""`Core`: whom it blames, when it fails, and what it does when the broker breaks connections."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redislink import (
    BrokerRefused,
    BrokerTampered,
    BrokerUnreachable,
    Endpoint,
    EndpointClosed,
    PeerProtocolError,
    RedisLinkError,
)
from redislink.broker import Outbox
from redislink.errors import FrameError
from redislink.protocol.delivery import Leftover, Push
from redislink.protocol.element_size import LEAST
from redislink.protocol.frame import Ack, AckState, Probe, Says
from redislink.protocol.seal import IllegalFrameError, StaleError
from redislink.transport import core as core_module
from redislink.transport.core import Core, largest_chunk
from tests.conftest import join, make_cluster, quick_settings, run_parties
from tests.support.waiting import wait_until

Pair = tuple[Endpoint, Endpoint]
_names = iter(range(1000))


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    """``pair(security="none", tamper_limit=3)``: alice and bob, who abort after the test."""
    endpoints: list[Endpoint] = []

    def make(security: str = "sealed", **changes: object) -> Pair:
        url = f"fakeredis://core-{next(_names)}"
        endpoints.extend(join(make_cluster(url, 2, security=security), **changes))
        return endpoints[0], endpoints[1]

    yield make
    run_parties(*(lambda e=e: e.abort("the test is over") for e in endpoints))


def warnings(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if words in r.getMessage()]


# -- blame -----------------------------------------------------------------------------------


def test_elements_that_do_not_open_end_a_sealed_session_at_the_limit(
    pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture
) -> None:
    _, bob = pair(tamper_limit=5)
    core = bob.parts.core
    alice = core.peer("alice")
    for number in range(4):
        core.blame(alice, FrameError(f"junk {number}"))
        core.blame(alice, StaleError("it came before"))  # genuine: nobody's fault
    assert core.failure is None
    core.blame(alice, FrameError("the last"))
    assert isinstance(core.failure, BrokerTampered)
    assert "bob: 5 frames did not open, the last from alice (the last)" in str(core.failure)
    said = warnings(caplog, "ignored an element")
    assert [line.partition("junk ")[2] for line in said] == [
        f"{number} ({number + 1} so far, from all parties)" for number in (0, 1, 3)
    ]


def test_without_seals_anybody_may_have_sent_them(pair: Callable[..., Pair]) -> None:
    _, bob = pair("none", tamper_limit=2)
    core = bob.parts.core
    for _ in range(5):
        core.blame(core.peer("alice"), IllegalFrameError("forbidden"))
        core.blame(core.peer("alice"), FrameError("junk"))
    assert core.failure is None


def test_what_only_the_peer_can_have_sent_is_the_peers_fault(pair: Callable[..., Pair]) -> None:
    _, bob = pair()
    core = bob.parts.core
    core.blame(core.peer("alice"), IllegalFrameError("forbidden"))
    assert isinstance(core.failure, PeerProtocolError)
    assert core.failure.peer == "alice"
    with pytest.raises(PeerProtocolError, match="forbidden"):
        bob.send("alice", "t", b"")


# -- failure ---------------------------------------------------------------------------------


def test_the_first_failure_counts_and_is_logged_once(
    pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture
) -> None:
    _, bob = pair()
    first = RedisLinkError("the first")
    for failure in (first, RedisLinkError("the second")):
        bob.parts.core.fail(failure)
    assert bob.parts.core.failure is first
    assert warnings(caplog, "the session has failed") == ["bob: the session has failed: the first"]
    assert [vars(r)["failure"] for r in caplog.records if "failure" in vars(r)] == ["the first"]
    with pytest.raises(RedisLinkError, match="the first"):
        bob.recv("alice", "t")


def test_what_fails_once_we_leave_is_not_a_failure(
    pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture
) -> None:
    alice, _ = pair()
    alice.abort("done")
    alice.parts.core.fail(RedisLinkError("too late"))
    assert alice.parts.core.failure is None
    assert warnings(caplog, "too late") == []
    with pytest.raises(EndpointClosed):
        alice.recv("bob", "t")


# -- pushing ---------------------------------------------------------------------------------


def test_a_leftover_is_removed_from_the_broker(pair: Callable[..., Pair]) -> None:
    alice, _ = pair()
    core, peer = alice.parts.core, alice.parts.core.peers["bob"]
    alice.send("bob", "t", b"x")
    alice.send("bob", "u", b"x")
    core.push(peer, [Leftover("t")])
    alice.flush()
    with contextlib.closing(core.broker.open()) as connection:
        left = [connection.execute(b"LLEN", peer.out_list(tag), timeout=5) for tag in "tu"]
    assert left == [0, 1]


@pytest.mark.parametrize("why", ["the peer misses it", "the line broke", "a later edition"])
def test_what_is_acked_before_it_is_pushed_again_leaves_no_list(
    pair: Callable[..., Pair], why: str
) -> None:
    """Another thread takes the ack, and removes the list, before this one has pushed."""
    alice, _ = pair()
    core, peer = alice.parts.core, alice.parts.core.peers["bob"]
    seq = alice.parts.sending.post("bob", "t", b"x")
    with core.lock:
        now = time.monotonic()
        if why == "the line broke":
            peer.delivery.reconnected(now)
        elif why == "the peer misses it":
            peer.delivery.receive_control(Probe(("t",), AckState(0), Says.MISSES), now)
        else:
            peer.delivery.receive_control(Ack(AckState(0, (), 1)), now)
            peer.follow()
        late = peer.delivery.pushes()
    with core.talk(peer) as delivery:
        delivery.receive_control(Ack(AckState(seq, (), delivery.edition_out)), now)
    core.push(peer, late)
    alice.flush()
    with contextlib.closing(core.broker.open()) as connection:
        assert connection.execute(b"EXISTS", peer.out_list("t"), timeout=5) == 0


def test_only_a_party_that_leaves_keeps_its_control_frames(pair: Callable[..., Pair]) -> None:
    alice, bob = pair(close_timeout=0.1)
    with alice.announce_silence(1.0):
        alice.send("bob", "t", b"x")
    assert not alice.parts.core.last_words
    alice.close()
    kept = [type(push.frame).__name__ for _, push in alice.parts.core.last_words]
    assert "Fin" in kept
    assert "Data" not in kept
    bob.close()


@pytest.mark.parametrize("is_behind", [False, True])
def test_large_chunks_are_sealed_when_their_turn_comes(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, is_behind: bool
) -> None:
    """At once, unless earlier writes wait."""
    alice, bob = pair(chunk_bytes=core_module.LARGE)
    core = alice.parts.core
    ways: list[str] = []
    monkeypatch.setattr(Outbox, "is_behind", property(lambda _: is_behind and bool(ways)))
    for way in ("push", "push_later"):
        plain = getattr(core.outbox, way)

        def noted(*args: object, _way: str = way, _plain: Callable = plain, **more: object) -> None:
            if core.peers["bob"].control_out != args[0]:
                ways.append(_way)
            _plain(*args, **more)

        monkeypatch.setattr(core.outbox, way, noted)
    body = bytes(3 * core_module.LARGE + 1)
    alice.send("bob", "t", body)
    large = ["push_later", "push"] if is_behind else ["push"]  # it pushes: here nothing waits
    assert ways == ["push", *large, *large, "push"]
    assert bob.recv("alice", "t") == body


# -- mending ---------------------------------------------------------------------------------


def test_a_broken_line_is_mended_and_counted(pair: Callable[..., Pair]) -> None:
    alice, bob = pair()
    core = alice.parts.core
    assert isinstance(core.outbox, Outbox)
    with core.outbox._lock:
        core.outbox._break(BrokerUnreachable("made up by the test"))
    alice.send("bob", "t", b"x")
    assert bob.recv("alice", "t") == b"x"
    wait_until(lambda: alice.stats().reconnects == 1 and not core._mending)
    assert core.outage.describe() == ""


PUSHES = {
    "a control frame": lambda e: e.parts.core.tell_all(lambda d: d.announce_silence(0.0, 0.0)),
    "a short message": lambda e: e.send("bob", "t", b"x"),
    "a long message": lambda e: e.send("bob", "u", bytes(3 << 20)),
    "a flush": lambda e: e.flush(),
}


@pytest.mark.parametrize("what", PUSHES)
def test_whoever_finds_the_line_broken_has_it_mended(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    alice, _ = pair(broker_timeout=10)
    core, mine, asked = alice.parts.core, threading.get_ident(), []
    mend = core.mend_outbox

    def mend_for_me() -> None:  # the control thread asks too
        if threading.get_ident() == mine:
            asked.append(what)
            mend()

    monkeypatch.setattr(core, "mend_outbox", mend_for_me)
    PUSHES[what](alice)
    assert not asked
    assert isinstance(core.outbox, Outbox)
    with core.outbox._lock:
        core.outbox._break(BrokerUnreachable("made up by the test"))
    PUSHES[what](alice)
    assert asked


def test_what_no_retry_mends_ends_the_session(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, _ = pair()
    core = alice.parts.core
    assert isinstance(core.outbox, Outbox)

    def refused() -> None:
        raise BrokerRefused("no such user")

    monkeypatch.setattr(core.outbox, "reconnect", refused)
    with core.outbox._lock:
        core.outbox._break(BrokerUnreachable("made up by the test"))
    core.mend_outbox()
    wait_until(lambda: core.failure is not None and not core._mending)
    assert isinstance(core.failure, BrokerRefused)


def break_at(core: Core, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """As if connections broke while a body of this size was under way."""
    delivery = type(core.peers["bob"].delivery)
    monkeypatch.setattr(delivery, "largest_unanswered", size)
    core._reconnected(BrokerUnreachable("made up by the test"))


def test_a_broker_that_breaks_at_a_size_gets_smaller_ones_and_one_line_is_logged(
    pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = pair()
    core = alice.parts.core
    reconnects = 0
    while core.element_size.limit is None:
        break_at(core, monkeypatch, 1 << 20)
        reconnects += 1
    assert alice.stats().reconnects == reconnects
    limit = core.element_size.limit
    pushes: list[Push] = []
    monkeypatch.setattr(core, "push", lambda peer, those: pushes.extend(those))
    alice.send("bob", "t", bytes(limit + 1))
    monkeypatch.undo()
    assert [push.frame.parts for push in pushes] == [2, 2]  # type: ignore[union-attr]
    core.cut_finer()
    (said,) = warnings(caplog, "closes the connection at elements of")
    assert said.startswith(f"alice: the broker {core.broker.label} closes the connection at")
    assert core.failure is None
    bob.abort("done")


def test_connections_that_go_silent_do_not_blame_the_size(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = pair()[0].parts.core
    monkeypatch.setattr(type(core.peers["bob"].delivery), "largest_unanswered", 1 << 20)
    silent = BrokerUnreachable("made up by the test")
    silent.is_silent = True
    for _ in range(5):
        core._reconnected(silent)
    assert core.element_size.limit is None


def test_a_broker_that_breaks_at_every_size_is_named(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, _ = pair()
    core = alice.parts.core
    core.element_size._patience = 0.0
    while core.failure is None:
        assert core.reconnects < 100
        break_at(core, monkeypatch, LEAST)
    assert isinstance(core.failure, BrokerRefused)
    assert f"at every push of {LEAST} bytes" in str(core.failure)


@pytest.mark.parametrize(
    ("round_trip", "chunk_bytes", "least"),
    [
        (0.00029, 1 << 20, 1 << 20),
        (0.0003, 1 << 20, 64 << 10),
        (0.0003, 1 << 10, 1 << 10),
        (1.0, 1 << 20, 64 << 10),
    ],
)
def test_a_far_line_is_cut_finer(round_trip: float, chunk_bytes: int, least: int) -> None:
    assert core_module._least_chunk_bytes(round_trip, chunk_bytes) == least


@pytest.mark.parametrize(
    ("round_trip", "settings", "most"),
    [
        (0.00029, {}, 4 << 20),
        (0.0003, {}, 1 << 20),
        (0.0001, {"chunk_bytes": 3 << 20}, 3 << 20),
        (0.0001, {"chunk_bytes": 64 << 20}, 4 << 20),
        (1.0, {"chunk_bytes": 64 << 10}, 64 << 10),
        (0.0001, {"window_bytes": 16 << 20}, 2 << 20),
        (0.0001, {"window_bytes": 64 << 10}, 1 << 20),
    ],
)
def test_only_a_near_broker_gets_large_chunks_and_eight_fit_into_the_window(
    round_trip: float, settings: dict[str, Any], most: int
) -> None:
    assert largest_chunk(round_trip, quick_settings(**settings)) == most


def test_behind_a_backlog_a_large_message_is_sealed_when_its_turn_has_come(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what lies in the sealing buffer would be copied."""
    monkeypatch.setattr(core_module, "NEAR", 60.0)
    alice, bob = pair()
    push_later, later = Outbox.push_later, []

    def watch(self: Outbox, name: bytes, *how: Any, **more: Any) -> None:
        later.append(name)
        push_later(self, name, *how, **more)

    monkeypatch.setattr(Outbox, "push_later", watch)
    message = bytes(2 << 20)
    for is_behind in (False, True):
        monkeypatch.setattr(Outbox, "is_behind", is_behind)
        alice.send("bob", "t", message)
        assert bob.recv("alice", "t") == message
        assert bool(later) == is_behind


def test_messages_are_cut_finer_for_a_while_after_a_small_one_had_to_wait(
    pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_module, "NEAR", 60.0)
    alice, _ = pair()
    core, cut = alice.parts.core, []
    for waited_at in (float("-inf"), time.monotonic() + 1e6, time.monotonic() - 5):
        monkeypatch.setattr(core.outbox, "_small_waited_at", waited_at)
        alice.send("bob", "t", bytes(9 << 20))
        cut.append(core.peers["bob"].delivery._sending._unacked.popitem()[1].parts)
    assert cut == [3, 9, 3]
