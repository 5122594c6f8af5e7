"""A claim survives a broker that cuts its line, whenever it does, and gives up where none is."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from redislink import BrokerUnreachable, PartyTaken, PeerAborted, UsedAfterFork
from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.connection import BrokerConnection
from redislink.broker.outage import Outage
from redislink.logs import PartyLogger
from redislink.testing.proxy import Proxy
from redislink.transport import claim as claim_module
from redislink.transport.claim import PartyClaim
from tests.conftest import connect_as, make_cluster, quick_settings, run_parties
from tests.support.waiting import wait_until

COMMANDS = 4
"""Three measurements of the round trip, and the SET."""
_names = itertools.count()


class CuttingBroker(Broker):
    """Breaks the connection on which the n-th open or command of all is sent."""

    def __init__(self, cut_at: set[int]) -> None:
        super().__init__(f"fakeredis://claim-{next(_names)}")
        self._cut_at = cut_at
        self._count = itertools.count()
        self.cuts = 0

    def open(self) -> BrokerConnection:
        self._cut_perhaps()
        connection = super().open()
        execute = connection.execute

        def cut_or_execute(*command: bytes | int | str, timeout: float) -> Any:
            try:
                self._cut_perhaps()
            except BrokerUnreachable:
                connection.close()
                raise
            return execute(*command, timeout=timeout)

        connection.execute = cut_or_execute  # type: ignore[method-assign]
        return connection

    def _cut_perhaps(self) -> None:
        if next(self._count) in self._cut_at:
            self.cuts += 1
            raise BrokerUnreachable(f"broker {self.label}: cut")


def claim_through(broker: Broker) -> PartyClaim:
    return PartyClaim(broker, b"claim", b"instance", "party 'alice'", PartyLogger("test", "alice"))


@pytest.mark.parametrize("cut_at", range(1 + COMMANDS))
def test_a_line_cut_at_any_step_does_not_end_the_claim(cut_at: int) -> None:
    broker = CuttingBroker({cut_at})
    claim = claim_through(broker)
    claim.acquire(Outage("alice", 10))
    try:
        assert broker.cuts == 1
        assert 0 < claim.round_trip < 5
    finally:
        claim.release()


def test_a_broker_that_is_not_reached_is_an_error_soon() -> None:
    broker = CuttingBroker(set(range(100)))
    started = time.monotonic()
    with pytest.raises(BrokerUnreachable):
        claim_through(broker).acquire(Outage("alice", 600))
    assert 1 < broker.cuts < 10
    assert time.monotonic() - started < 5


def test_the_claim_of_a_run_that_has_ended_for_sure_need_not_lapse() -> None:
    broker = CuttingBroker(set())
    dead, other = b"of alice", b"a second"
    for holder, taken in ((dead, True), (other, False)):
        value_of(broker, "SET", b"claim", holder.hex(), b"PX", 60_000)
        claim = PartyClaim(broker, b"claim", b"instance", "alice", PartyLogger("t", "alice"), dead)
        connection = broker.open()
        assert claim._set(connection) is taken
        connection.close()
        held = b"instance" if taken else holder
        assert value_of(broker, "GET", b"claim") == held.hex().encode()


STATUS = b"status"


def value_of(broker: Broker, *command: bytes | int | str) -> Any:
    connection = broker.open()
    try:
        return connection.execute(*command, timeout=5)
    finally:
        connection.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim's thread wakes a hundred times as often."""
    monkeypatch.setattr(claim_module, "_RENEW_SECONDS", 0.01)


def test_a_status_is_written_again_and_again_and_goes_with_the_claim(quick: None) -> None:
    broker = CuttingBroker(set())
    claim = claim_through(broker)
    numbers = itertools.count()
    claim.acquire(Outage("alice", 10))
    try:
        claim.publish(STATUS, lambda: b"%d" % next(numbers))
        wait_until(lambda: (value_of(broker, "GET", STATUS) or b"0") >= b"2")
        assert 0 < value_of(broker, "PTTL", STATUS) <= 6000
        assert claim.last_round_trip > 0
        assert value_of(broker, "GET", b"claim") == claim.instance.encode()
    finally:
        claim.release()
    assert value_of(broker, "EXISTS", STATUS, b"claim") == 0


def test_a_snapshot_that_fails_does_not_end_the_claim(quick: None) -> None:
    broker = CuttingBroker(set())
    claim = claim_through(broker)
    claim.acquire(Outage("alice", 10))
    calls = []

    def snapshot() -> bytes:
        calls.append(1)
        raise RuntimeError("of ours")

    try:
        claim.publish(STATUS, snapshot)
        wait_until(lambda: bool(calls))
        value_of(broker, "PEXPIRE", b"claim", 1000)
        wait_until(lambda: value_of(broker, "PTTL", b"claim") > 1000)
        assert len(calls) == 1, "and is not asked again"
        assert value_of(broker, "EXISTS", STATUS) == 0
    finally:
        claim.release()


def test_a_status_of_another_run_is_not_removed(quick: None) -> None:
    broker = CuttingBroker(set())
    claim = claim_through(broker)
    claim.acquire(Outage("alice", 10))
    claim.publish(STATUS, lambda: b"mine")
    wait_until(lambda: value_of(broker, "GET", STATUS) == b"mine")
    claim._stop.set()
    claim._thread.join()  # type: ignore[union-attr]
    for key in (b"claim", STATUS):
        value_of(broker, "SET", key, b"another's")
    claim.release()
    assert value_of(broker, "GET", STATUS) == b"another's"


def test_in_a_child_the_claim_stays_the_parents() -> None:
    broker = CuttingBroker(set())
    claim = claim_through(broker)
    claim.acquire(Outage("alice", 10))
    connection = claim._connection
    assert connection is not None
    claim._stop.set()
    claim._thread.join()  # type: ignore[union-attr]  # no thread outlives a fork
    claim.die_in_child()
    claim.release()
    assert connection.usable
    assert value_of(broker, "GET", b"claim") == claim.instance.encode()
    with pytest.raises(UsedAfterFork, match="party 'alice'"):
        claim.acquire(Outage("alice", 10))
    connection.close()


LEASE = 0.5
HOUR_MS = 3_600_000


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_module, "_LEASE_MS", int(1000 * LEASE))
    monkeypatch.setattr(claim_module, "_RENEW_SECONDS", LEASE / 5)
    monkeypatch.setattr(claim_module, "_POLL_SECONDS", LEASE / 20)


@pytest.mark.parametrize("expiry", [HOUR_MS, None])
def test_a_dead_runs_claim_that_does_not_lapse_is_removed(
    valkey: EmbeddedBroker, short_lease: None, expiry: int | None
) -> None:
    """As after the broker's clock went back; nobody renews it."""
    broker = Broker(valkey.url, timeout=5)
    ttl = () if expiry is None else (b"PX", expiry)
    value_of(broker, b"SET", b"claim", b"0123456789abcdef", *ttl)
    claim = claim_through(broker)
    claim.acquire(Outage("alice", 10))
    try:
        assert value_of(broker, b"GET", b"claim") == claim.instance.encode()
        assert value_of(broker, b"PTTL", b"claim") <= 1000 * LEASE
    finally:
        claim.release()


def test_a_living_runs_claim_is_not_removed_when_the_clock_goes_back(
    valkey: EmbeddedBroker, short_lease: None
) -> None:
    broker = Broker(valkey.url, timeout=5)
    first = claim_through(broker)
    second = PartyClaim(broker, b"claim", b"another", "it", PartyLogger("test", "alice"))
    first.acquire(Outage("alice", 10))
    try:
        value_of(broker, b"PEXPIRE", b"claim", HOUR_MS)
        with pytest.raises(PartyTaken):
            second.acquire(Outage("alice", 10))
        assert value_of(broker, b"GET", b"claim") == first.instance.encode()
    finally:
        first.release()


def test_a_clock_that_goes_back_a_little_looks_like_no_renewal(
    valkey: EmbeddedBroker, short_lease: None
) -> None:
    broker = Broker(valkey.url, timeout=5)
    value_of(broker, b"SET", b"claim", b"0123456789abcdef", b"PX", int(500 * LEASE))
    claim, steps = claim_through(broker), iter([True])
    call = claim._call

    def step_back(connection: BrokerConnection, *command: bytes | int) -> Any:
        reply = call(connection, *command)
        if command[0] == b"PTTL" and 0 < reply < 300 * LEASE and next(steps, False):
            value_of(broker, b"PEXPIRE", b"claim", int(900 * LEASE))
        return reply

    claim._call = step_back  # type: ignore[method-assign]
    claim.acquire(Outage("alice", 10))
    claim.release()


@pytest.mark.slow
def test_peers_are_told_over_the_claims_connection_if_no_other_works(
    valkey: EmbeddedBroker,
) -> None:
    """A firewall lets no new connection through to the broker: what is open stays."""
    cluster = make_cluster(valkey.url, 2)
    with Proxy(valkey.port) as line:
        settings = {
            "alice": quick_settings(broker_url=line.url(), broker_timeout=1.0, peer_timeout=60.0),
            "bob": quick_settings(peer_timeout=60.0, recv_timeout=20.0),
        }
        alice, bob = run_parties(
            *(lambda n=n: connect_as(cluster, n, settings[n]) for n in settings)
        )
        others = line.connections[1:]  # the first is the claim's
        line._max_connections = 0
        for connection in others:
            connection.cut()

        def fail() -> None:
            with pytest.raises(BrokerUnreachable), alice:
                alice.recv("bob", "never")

        def hear() -> None:
            with pytest.raises(PeerAborted, match="BrokerUnreachable"), bob:
                bob.recv("alice", "never")

        run_parties(fail, hear)
        assert line.taken > len(others) + 1
