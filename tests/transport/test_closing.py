"""How an endpoint ends: who is woken, who is told, and what the log says."""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections.abc import Callable

import pytest

from redislink import BrokerUnreachable, Endpoint, EndpointClosed, PeerAborted, PeerClosed
from redislink.broker import EmbeddedBroker, Outbox
from redislink.protocol import list_names
from redislink.transport import closing
from redislink.transport.closing import Closing, leave_open_endpoints
from tests.conftest import in_thread, join, make_cluster, run_parties
from tests.support.waiting import wait_until

LEAVE: dict[str, Callable[[Endpoint], None]] = {
    "close": lambda endpoint: endpoint.close(),
    "abort": lambda endpoint: endpoint.abort("the test is over"),
}


@pytest.mark.parametrize("how", LEAVE)
def test_what_waits_here_ends_before_the_peers_are_told(
    valkey: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Telling them may take long, and nothing that waits would see its BLPOP end before."""
    alice, bob = join(make_cluster(valkey.url, 2), blpop_timeout=20)
    thread, outcome = in_thread(lambda: bob.recv("alice", "never"))
    wait_until(lambda: bob.stats().probes_sent)  # its long BLPOP is next
    tell_all, ended = bob.parts.core.tell_all, []

    def told(change: Callable[..., None]) -> None:
        thread.join(10)
        ended.append(not thread.is_alive())
        tell_all(change)

    monkeypatch.setattr(bob.parts.core, "tell_all", told)
    LEAVE[how](bob)
    assert ended[0]
    assert isinstance(outcome[0], EndpointClosed)
    alice.abort("the test is over")


@pytest.mark.parametrize("how", LEAVE)
def test_the_last_words_are_said_again_when_the_line_breaks(broker_url: str, how: str) -> None:
    alice, bob = join(make_cluster(broker_url, 2), close_timeout=20)
    thread, outcome = in_thread(lambda: bob.recv("alice", "never"))
    wait_until(lambda: bob.parts.core.inbox.waits())
    outbox = alice.parts.core.outbox
    assert isinstance(outbox, Outbox)
    with outbox._lock:
        outbox._break(BrokerUnreachable("made up by the test"))
    LEAVE[how](alice)
    thread.join(20)
    assert isinstance(outcome[0], PeerClosed if how == "close" else PeerAborted)
    bob.close()


@pytest.mark.parametrize("how", LEAVE)
def test_leaving_ends_in_time_although_the_broker_is_away(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    alice, bob = join(make_cluster("fakeredis://away", 2), close_timeout=0.1)

    def unreachable() -> None:
        raise BrokerUnreachable("made up by the test")

    outbox = alice.parts.core.outbox
    assert isinstance(outbox, Outbox)
    monkeypatch.setattr(outbox, "reconnect", unreachable)
    with outbox._lock:
        outbox._break(BrokerUnreachable("made up by the test"))
    thread, outcome = in_thread(lambda: LEAVE[how](alice))
    thread.join(30)
    assert outcome == [None]
    bob.abort("the test is over")


def test_each_last_step_gets_some_time_when_none_is_left(
    mesh: Callable[..., list[Endpoint]], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = mesh("fakeredis://late", 2)
    outbox, given = alice.parts.core.outbox, []
    flush = outbox.flush

    def noted(timeout: float | None = None) -> bool:
        given.append(timeout)
        return flush(timeout)

    monkeypatch.setattr(outbox, "flush", noted)
    alice.parts.core.closing = True
    alice.parts.closing._leave(time.monotonic() - 10)
    assert len(given) == 2
    assert min(given) > 0
    bob.abort("the test is over")


@pytest.mark.parametrize("how", LEAVE)
def test_who_has_left_has_no_thread_no_line_and_nothing_on_the_broker(how: str) -> None:
    alice, bob = join(make_cluster("fakeredis://left", 2), close_timeout=0.1)
    core = alice.parts.core
    mine = [*core.rendezvous.lists, core.peers["bob"].control_in]
    mine.append(list_names.claim_key(alice.session, "alice"))
    LEAVE[how](alice)
    assert not alice.parts.control._thread.is_alive()
    assert not alice.parts.closing._claim._thread.is_alive()  # type: ignore[union-attr]
    assert core.inbox.waits() == []
    with pytest.raises(EndpointClosed):
        core.outbox.delete(b"list")
    bob.abort("the test is over")
    with contextlib.closing(core.broker.open()) as connection:
        assert connection.execute(b"EXISTS", *mine, timeout=5) == 0


def test_the_reason_is_one_line_of_a_bounded_length(
    mesh: Callable[..., list[Endpoint]],
) -> None:
    alice, bob = mesh("fakeredis://reason", 2)
    alice.abort("no\n such\tcolumn " + "x" * 1000)
    with pytest.raises(PeerAborted) as caught:
        bob.recv("alice", "t")
    assert "no such column " + "x" * 485 in str(caught.value)
    assert "x" * 486 not in str(caught.value)


def test_leaving_twice_is_leaving_once(mesh: Callable[..., list[Endpoint]]) -> None:
    alice, bob = mesh("fakeredis://twice", 2)
    alice.close()
    alice.abort("too late")
    alice.close()
    with pytest.raises(PeerClosed):
        bob.recv("alice", "t")


@pytest.fixture
def open_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have left open stays open."""
    mine: weakref.WeakSet[Closing] = weakref.WeakSet()
    monkeypatch.setattr(closing, "_open", mine)


@pytest.mark.parametrize("error", [None, ValueError("a secret")])
def test_a_program_that_ends_leaves_its_sessions(
    open_here: None, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    alice, bob = join(make_cluster("fakeredis://ends", 2))
    closing._open.discard(bob.parts.closing)
    alice.send("bob", "t", b"on its way")
    thread, outcome = in_thread(lambda: [bob.recv("alice", tag) for tag in ("t", "never")])
    with caplog.at_level(logging.WARNING, "redislink"):
        leave_open_endpoints(error)
        leave_open_endpoints(error)
    thread.join(10)
    said = [r.getMessage() for r in caplog.records if "ended without closing" in r.getMessage()]
    if error is None:
        assert isinstance(outcome[0], PeerClosed)
        (line,) = said
        assert line.startswith(
            f"alice: the program ended without closing session '{alice.session}'"
        )
    else:
        assert isinstance(outcome[0], PeerAborted)
        assert "ValueError" in str(outcome[0])
        assert "secret" not in str(outcome[0])
        assert said == []
    assert repr(alice).endswith("closed>")
    run_parties(bob.close)
