"""While the broker is away, or a peer is not heard, that is what is said."""

from __future__ import annotations

import logging

import pytest

from redislink import BrokerBusy, BrokerUnreachable, RecvTimeout, SendTimeout
from redislink.broker import EmbeddedBroker, outage
from redislink.broker.error_map import translate_error_reply
from redislink.broker.outage import Outage, Way
from redislink.communicator import ThreadCommunicator
from redislink.logs import PartyLogger
from redislink.protocol.delivery import Delivery, Timing
from redislink.session.steps import Failure, Steps
from redislink.testing import Proxy
from redislink.transport.party_status import _status_of, status_of
from tests.conftest import connect_as, join, make_cluster, quick_settings, run_parties
from tests.transport.test_endpoint import wait_until


def test_a_receive_in_an_outage_does_not_blame_the_peer(valkey: EmbeddedBroker) -> None:
    cluster = make_cluster(valkey.url, 2)
    with Proxy(valkey.port) as proxy:
        away = quick_settings(broker_url=proxy.url(), close_timeout=0.5)
        alice, bob = run_parties(
            lambda: connect_as(cluster, "alice", away),
            lambda: connect_as(cluster, "bob", quick_settings(close_timeout=0.5)),
        )
        handle = alice.send("bob", "untaken", b"x")
        for connection in proxy.connections:
            connection.cut()
    wait_until(lambda: alice.trouble("bob") != "")
    assert alice.trouble("bob").startswith("broker unreachable for ")
    with pytest.raises(RecvTimeout, match=r"; broker unreachable for \d+ s: check the broker"):
        alice.recv("bob", "t", 0.1)
    with pytest.raises(SendTimeout, match=r"\(broker unreachable for \d+ s\)"):
        handle.wait(0.1)
    assert bob.trouble("alice") == ""
    assert status_of(alice.parts.core, alice.parts.closing._claim).broker_away_seconds >= 1
    assert status_of(bob.parts.core, bob.parts.closing._claim).broker_away_seconds == 0
    run_parties(alice.close, bob.close)


def test_an_outage_is_said_while_it_lasts_and_when_it_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(outage.time, "monotonic", lambda: now)
    watched = Outage("alice", 60.0, PartyLogger("s", "alice", "redislink.progress"))
    with caplog.at_level(logging.INFO, "redislink.progress"):
        for seconds in (0, 1, 2, 5, 6, 16):
            now = 100.0 + seconds
            watched.failed(BrokerUnreachable("no route"), Way.POP)
        assert watched.describe() == "broker unreachable for 16 s"
        watched.ended(Way.POP)
    assert watched.describe() == ""
    assert [record.getMessage() for record in caplog.records] == [
        "alice: broker unreachable for 5 s: no route",
        "alice: broker unreachable for 16 s: no route",
        "alice: broker back after 16 s",
    ]


def test_a_peer_that_is_not_heard_is_named_before_it_counts_as_lost() -> None:
    delivery = Delivery("bob", Timing(peer_timeout=30.0), 0.0)
    said = []
    for second in range(13):
        delivery.listened(float(second))
        said.append(delivery.describe_silence(float(second)))
    assert said[:11] == [""] * 11
    assert said[12] == "bob not heard for 12 s"
    assert _status_of(delivery, 12.0).is_silent
    delivery._heard(13.0)
    assert delivery.describe_silence(13.0) == ""
    assert not _status_of(delivery, 13.0).is_silent


def test_a_step_that_waits_says_what_holds_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    alice, _ = ThreadCommunicator.make(["alice", "bob"])
    monkeypatch.setattr(alice, "trouble", lambda peer: f"{peer} not heard for 12 s")
    steps = Steps(alice, Failure(alice.abort))
    with steps.step("run(f)", ["alice", "bob"]):
        current = steps._current
        assert current is not None
        assert steps._late(current) == ("bob (not heard of in any step; bob not heard for 12 s)",)
    steps.leave()


@pytest.mark.parametrize(
    ("said", "suspected"),
    [
        ("", True),
        ("ERR Protocol error: invalid bulk length", True),
        ("READONLY You can't write against a read only replica.", False),
        ("OOM command not allowed when used memory > 'maxmemory'.", False),
    ],
)
def test_a_broker_that_says_why_it_refuses_does_not_mind_sizes(
    said: str, suspected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = join(make_cluster("fakeredis://sizes", 2))
    core = alice.parts.core
    asked = []
    monkeypatch.setattr(core.element_size, "broke", lambda *_: asked.append(True))
    error = translate_error_reply("b", said) if said else BrokerUnreachable("EOF")
    core._reconnected(error)
    assert bool(asked) is suspected
    run_parties(alice.close, bob.close)


def test_no_silence_counts_while_the_broker_refuses_what_anybody_is_told(
    valkey: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To bob alice says nothing, and he is refused like her: only her pushes to carol tell that."""
    alice, *others = join(make_cluster(valkey.url, 3))
    core = alice.parts.core
    heard = core.peers["bob"].delivery
    noted: list[str] = []
    for name in ("listened", "not_listening"):
        monkeypatch.setattr(heard, name, lambda now, name=name: noted.append(name))
    wait_until(lambda: "listened" in noted)
    monkeypatch.setattr(
        type(core.outbox), "refusal", property(lambda _: BrokerBusy("out of memory"))
    )
    wait_until(lambda: noted[-3:] == ["not_listening"] * 3)
    monkeypatch.undo()
    run_parties(*(end.close for end in (alice, *others)))
