"""Where a link's own session comes from."""

from __future__ import annotations

import pytest

from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.interop.sessions import cluster_of_link

CLUSTER = ClusterSpec.parse(
    {
        "session": "hospitals",
        "security": "none",
        "broker": "redis://broker.example",
        "parties": ["alice", {"name": "bob", "brpc_address": "b:1"}, "carol"],
        "devices": {"SP0": {"kind": "SPU", "members": ["alice", "bob", "carol"]}},
    }
)


def test_all_parties_derive_the_same_cluster_of_the_links_parties() -> None:
    link = cluster_of_link(CLUSTER, ["carol", "bob"], "root", "0")
    assert link.party_names == ("carol", "bob")
    assert (link.broker, link.security, link.devices) == (CLUSTER.broker, "none", {})
    assert link.digest() == cluster_of_link(CLUSTER, ("carol", "bob"), "root", "0").digest()


def test_links_with_other_names_parties_or_orders_have_other_sessions() -> None:
    sessions = [
        cluster_of_link(CLUSTER, parties, *name).session
        for parties in (["alice", "bob"], ["bob", "alice"], ["alice", "bob", "carol"])
        for name in (["root"], ["root", "1"], ["root1"])
    ]
    assert len(set(sessions)) == len(sessions)
    assert all(session.startswith("hospitals.j") for session in sessions)
    assert {len(session) for session in sessions} == {len("hospitals.j") + 12}


@pytest.mark.parametrize(
    ("parties", "said"),
    [
        (["alice", "dave"], "'dave' is not in session 'hospitals': use one of alice, bob, carol"),
        (["alice"], "at least two parties"),
        (["alice", "alice"], "each once"),
        ([], "not none"),
    ],
)
def test_parties_that_make_no_link(parties: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cluster_of_link(CLUSTER, parties, "root")
