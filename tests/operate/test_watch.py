"""`Watch`: what an operator sees of a session, from honest parties and from a lying broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from redislink import ClusterSpec, RecvCancelled
from redislink.broker import Broker, EmbeddedBroker
from redislink.operate.survey import Survey
from redislink.operate.watch import PairView, PartyView, Reading, Watch, sessions_of, total
from redislink.protocol import list_names
from redislink.protocol.status import PartyStatus, PeerStatus, encode_status
from redislink.transport import claim
from tests.conftest import in_thread, join, make_cluster, run_parties
from tests.support.keyspace import run

INSTANCE = "0123456789abcdef"
STATUS = PartyStatus(INSTANCE, "open", 10.0, 0.001, 0, {"bob": PeerStatus("open")})


def watch_over(cluster: ClusterSpec) -> Watch:
    assert cluster.broker is not None
    return Watch(Survey(Broker(cluster.broker)), cluster.session, cluster.party_names)


def party(reading: Reading, name: str) -> PartyView:
    return next(party for party in reading.parties if party.name == name)


def pair(reading: Reading, src: str, dst: str) -> PairView:
    return next(pair for pair in reading.pairs if (pair.src, pair.dst) == (src, dst))


def read_until(watch: Watch, wanted: Callable[[Reading], bool]) -> Reading:
    give_up = time.monotonic() + 10
    while not wanted(reading := watch.read()):
        assert time.monotonic() < give_up, reading
    return reading


def test_a_session_as_it_runs(valkey: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_RENEW_SECONDS", 0.02)
    cluster = make_cluster(valkey.url, 3)
    alice, bob, carol = endpoints = join(cluster)
    watch = watch_over(cluster)
    waiting, ended = in_thread(lambda: bob.recv("carol", "what bob wants"))
    for number in range(4):
        alice.send("bob", f"unread{number}", bytes(1000))
    alice.flush()

    def all_known(reading: Reading) -> bool:
        joined = all(p.up and p.state == "open" for p in reading.parties)
        sent = pair(reading, "alice", "bob").messages_sent
        return joined and sent == 4 and bool(party(reading, "bob").waits)

    reading = read_until(watch, all_known)
    assert [p.name for p in reading.parties] == list(cluster.party_names)
    assert all(
        p.last_heard_seconds is not None and p.last_heard_seconds < 60 for p in reading.parties
    )
    assert all(p.round_trip_seconds for p in reading.parties)
    (wait,) = party(reading, "bob").waits
    assert (wait.peer, wait.tag) == ("carol", "what bob wants")
    unread = pair(reading, "alice", "bob")
    assert (unread.lists, unread.messages, unread.messages_sent, unread.bytes_sent) == (
        *(4, 4, 4),
        4000,
    )
    assert unread.memory_bytes is not None
    assert unread.memory_bytes > 4000
    assert unread.in_flight_bytes is not None
    assert unread.in_flight_bytes > 4000
    assert pair(reading, "carol", "alice").messages == 0
    assert len(reading.pairs) == 6

    def probed(reading: Reading) -> bool:
        return bool(pair(reading, "carol", "bob").probes)

    assert read_until(watch, probed)
    alice.send("carol", "t", bytes(5000))
    flowing = read_until(watch, lambda r: bool(pair(r, "alice", "carol").bytes_per_second))
    assert pair(flowing, "alice", "carol").messages_per_second
    assert pair(flowing, "carol", "alice").bytes_per_second == 0
    carol.recv("alice", "t")
    read_until(watch, lambda r: pair(r, "alice", "carol").bytes_per_second == 0)

    (view,) = (
        view
        for view in sessions_of(Survey(Broker(valkey.url)).keys())
        if view.name == cluster.session
    )
    assert view.parties == view.up == cluster.party_names
    assert (view.lists, view.messages) == (4, 4)
    assert view.running_seconds is not None
    bob.cancel_recv("carol", "what")
    waiting.join()
    assert isinstance(ended[0], RecvCancelled)
    run_parties(*(lambda e=e: e.abort("over") for e in endpoints))
    last = watch.read()
    assert [(p.up, p.state) for p in last.parties] == [(False, "not seen")] * 3


@pytest.fixture
def alone(valkey: EmbeddedBroker) -> ClusterSpec:
    """A session that nobody runs."""
    return make_cluster(valkey.url, 2)


def say(cluster: ClusterSpec, party: str, status: bytes, instance: str = INSTANCE) -> None:
    assert cluster.broker is not None
    run(cluster.broker, "SET", list_names.claim_key(cluster.session, party), instance, "PX", 60_000)
    run(cluster.broker, "SET", list_names.status_key(cluster.session, party), status, "PX", 60_000)


def test_without_status_the_lists_say_what_they_can(alone: ClusterSpec) -> None:
    url = str(alone.broker)
    name = list_names.data_list(alone.session, "bob", "alice", INSTANCE, "t")
    run(url, "RPUSH", name, "x", "y")
    run(url, "SET", list_names.claim_key(alone.session, "alice"), INSTANCE, "PX", 60_000)
    reading = watch_over(alone).read()
    assert party(reading, "alice") == PartyView("alice", True, "up", None, None, None, None, ())
    assert party(reading, "bob").up is False
    assert pair(reading, "alice", "bob").messages == 2
    assert pair(reading, "alice", "bob").messages_sent is None
    run(url, "DEL", name, list_names.claim_key(alone.session, "alice"))


@pytest.mark.parametrize(
    ("document", "instance"),
    [
        (b"", INSTANCE),
        (b"\xc1 nonsense", INSTANCE),
        (encode_status(STATUS)[:-1], INSTANCE),
        (encode_status(STATUS), "fedcba9876543210"),  # of a run that is over
        (encode_status(STATUS), "\x00"),
    ],
)
def test_a_status_that_is_none_is_not_shown(
    alone: ClusterSpec, document: bytes, instance: str
) -> None:
    say(alone, "alice", document, instance)
    view = party(watch_over(alone).read(), "alice")
    assert (view.up, view.state, view.running_seconds) == (True, "up", None)


def test_what_holds_a_party_up_is_told(alone: ClusterSpec) -> None:
    peers = {"bob": PeerStatus("open", last_heard_seconds=31.0, is_silent=True)}
    status = replace(STATUS, peers=peers, broker_away_seconds=12.0)
    say(alone, "alice", encode_status(status), INSTANCE)
    reading = watch_over(alone).read()
    alice, bob = party(reading, "alice"), party(reading, "bob")
    assert (alice.broker_away_seconds, alice.unheard_by) == (12.0, ())
    assert (bob.broker_away_seconds, bob.unheard_by) == (None, ("alice",))
    assert bob.last_heard_seconds == 31.0


def test_rates_are_of_one_run_and_of_two_documents(alone: ClusterSpec) -> None:
    watch = watch_over(alone)

    def rates(running: float, messages: int, instance: str = INSTANCE) -> object:
        peer = PeerStatus("open", messages_sent=messages, bytes_sent=100 * messages)
        status = replace(STATUS, instance=instance, running_seconds=running, peers={"bob": peer})
        say(alone, "alice", encode_status(status), instance)
        view = pair(watch.read(), "alice", "bob")
        return view.messages_per_second, view.bytes_per_second

    assert rates(10.0, 100) == (None, None)
    assert rates(12.0, 120) == (10, 1000)
    assert rates(12.0, 120) == (10, 1000), "the same document: nothing new is known"
    assert rates(14.0, 120) == (0, 0)
    assert rates(15.0, 20) == (0, 0), "nonsense of the broker's is not negative"
    assert rates(1.0, 5, "f" * 16) == (None, None), "another run"
    assert rates(2.0, 7, "f" * 16) == (2, 200)


def test_strangers_are_shown_and_are_not_endless(alone: ClusterSpec) -> None:
    url = str(alone.broker)
    names = [list_names.data_list(alone.session, "bob", f"x{n}", INSTANCE, "t") for n in range(100)]
    for name in names:
        run(url, "RPUSH", name, "x")
    reading = watch_over(alone).read()
    assert [p.name for p in reading.parties][:3] == ["alice", "bob", "x0"]
    assert len(reading.parties) == 2 + 64
    run(url, "DEL", *names)


def test_sums_are_not_known_where_a_part_is_not() -> None:
    assert total([]) == 0
    assert total([1, 2]) == 3
    assert total([1, None]) is None
