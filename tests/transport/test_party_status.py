"""What a party says of itself on the broker: true, small, gone when it leaves, and never data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redislink import ClusterSpec, RecvCancelled
from redislink.broker import Broker
from redislink.protocol import list_names
from redislink.protocol.status import PartyStatus, decode_status_untrusted
from tests.conftest import connect_as, in_thread, join, make_cluster, quick_settings, run_parties
from tests.support.renewals import Renewals
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def renewals(monkeypatch: pytest.MonkeyPatch) -> Renewals:
    """The claim's thread wakes a hundred times as often."""
    return Renewals(monkeypatch)


def value_of(cluster: ClusterSpec, *command: bytes | str) -> Any:
    assert cluster.broker is not None
    connection = Broker(cluster.broker).open()
    try:
        return connection.execute(*command, timeout=5)
    finally:
        connection.close()


def status_of(
    cluster: ClusterSpec, party: str, wanted: Callable[[PartyStatus], bool] = lambda _: True
) -> PartyStatus:
    """The first of its documents to be as wanted."""

    def look() -> PartyStatus | None:
        document = value_of(cluster, "GET", list_names.status_key(cluster.session, party))
        status = None if document is None else decode_status_untrusted(document)
        return status if status is not None and wanted(status) else None

    found = wait_until(look)
    assert found is not None
    return found


def test_what_passed_and_what_is_waited_for(broker_url: str) -> None:
    cluster = make_cluster(broker_url, 3)
    alice, bob, carol = endpoints = join(cluster)
    for number in range(3):
        alice.send("bob", f"t{number}", b"secret payload" * 10)
        bob.recv("alice", f"t{number}")
    waiting, ended = in_thread(lambda: carol.recv("bob", "a tag"))

    sender = status_of(cluster, "alice", lambda s: s.peers["bob"].messages_sent == 3)
    assert sender.state == "open"
    assert sender.peers["bob"].bytes_sent == 420
    assert sender.peers["carol"].messages_sent == 0
    assert sender.peers["bob"].state == "open"
    assert sender.waits == ()
    assert 0 < sender.round_trip_seconds < 5
    assert sender.instance.encode() == value_of(
        cluster, "GET", list_names.claim_key(cluster.session, "alice")
    )
    assert status_of(cluster, "alice", lambda s: s.running_seconds > sender.running_seconds)
    assert status_of(cluster, "bob").peers["alice"].bytes_received == 420
    longer = status_of(cluster, "carol", lambda s: bool(s.waits) and s.waits[0].seconds > 0.05)
    assert [(wait.peer, wait.tag) for wait in longer.waits] == [("bob", "a tag")]

    document = value_of(cluster, "GET", list_names.status_key(cluster.session, "alice"))
    assert b"secret" not in document
    assert len(document) < 1000
    carol.cancel_recv("bob", "a tag")
    waiting.join()
    assert isinstance(ended[0], RecvCancelled)
    run_parties(*(endpoint.close for endpoint in endpoints))
    for party in cluster.party_names:
        assert value_of(cluster, "EXISTS", list_names.status_key(cluster.session, party)) == 0


def test_who_is_missing_and_who_has_failed() -> None:
    cluster = make_cluster("fakeredis://status", 2)
    thread, joined = in_thread(lambda: connect_as(cluster, "alice"))
    status = status_of(cluster, "alice")
    assert status.state == "joining"
    assert status.peers["bob"].state == "missing"
    bob = connect_as(cluster, "bob")
    thread.join()
    (alice,) = joined
    bob.abort("it failed")
    failed = status_of(cluster, "alice", lambda s: s.state == "failed")
    assert failed.peers["bob"].state == "failed"
    alice.close()


def test_it_can_be_switched_off(renewals: Renewals) -> None:
    cluster = make_cluster("fakeredis://no-status", 2)
    settings = quick_settings(status=False)
    endpoints = run_parties(
        *(lambda n=n: connect_as(cluster, n, settings) for n in cluster.party_names)
    )
    for party in cluster.party_names:
        renewals.wait_for_next(list_names.claim_key(cluster.session, party))
        assert value_of(cluster, "EXISTS", list_names.status_key(cluster.session, party)) == 0
    run_parties(*(endpoint.close for endpoint in endpoints))
