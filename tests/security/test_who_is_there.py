"""Parties that disagree, have wrong keys, or start anew: each is told which, and what to do."""

import threading

import pytest

from redislink import (
    ClusterMismatch,
    HandshakeTimeout,
    PeerRestarted,
    SecurityMismatch,
)
from redislink.broker.wire import LISTING
from redislink.identity.keypair import Identity, format_public_key, write_secret
from tests.conftest import connect_as, in_thread, join, make_cluster, quick_settings, run_parties


@pytest.fixture
def broker_url(valkey):
    return valkey.url


def outcomes(*works):
    """What became of each, an endpoint or an exception."""
    sides = [in_thread(work) for work in works]
    for thread, _ in sides:
        thread.join(30)
    return [outcome[0] for _, outcome in sides]


def connecting(cluster, name, **changes):
    return lambda: connect_as(cluster, name, quick_settings(**changes))


def exchange(one, other):
    one.send(other.party, "t", b"there")
    other.send(one.party, "t", b"back")
    assert other.recv(one.party, "t") == b"there"
    assert one.recv(other.party, "t") == b"back"


@pytest.mark.usefixtures("brisk_hellos")
@pytest.mark.slow
@pytest.mark.parametrize("sealed_side", ["alice", "bob"])
def test_sealed_and_none_refuse_each_other_at_both_sides(broker_url, sealed_side):
    sealed = make_cluster(broker_url, 2)
    plain = sealed.model_copy(update={"security": "none"})
    errors = outcomes(
        *(connecting(sealed if n == sealed_side else plain, n) for n in ("alice", "bob"))
    )
    for name, peer, error in zip(("alice", "bob"), ("bob", "alice"), errors, strict=True):
        assert isinstance(error, SecurityMismatch)
        mine, theirs = ("sealed", "none") if name == sealed_side else ("none", "sealed")
        assert f"{name}: party '{peer}' runs" in str(error)
        assert f"security {theirs}, this party with {mine}: give both the same" in str(error)


@pytest.mark.usefixtures("brisk_hellos")
@pytest.mark.slow
def test_another_public_key_in_one_cluster_file_is_a_differing_file(broker_url):
    cluster = make_cluster(broker_url, 2)
    parties = list(cluster.parties)
    stranger = format_public_key(Identity.generate().public_key)
    parties[1] = parties[1].model_copy(update={"public_key": stranger})
    other = cluster.model_copy(update={"parties": tuple(parties)})
    errors = outcomes(connecting(other, "alice"), connecting(cluster, "bob"))
    assert [type(error) for error in errors] == [ClusterMismatch] * 2
    assert "different cluster file" in str(errors[0])


@pytest.mark.usefixtures("brisk_hellos")
@pytest.mark.slow
@pytest.mark.parametrize("both", [True, False])
def test_pre_shared_keys_that_differ_are_named_at_both_sides(broker_url, tmp_path, both):
    directories = {name: tmp_path / name for name in ("alice", "bob")}
    for rank, (directory, peer) in enumerate(
        zip(directories.values(), ("bob", "alice"), strict=True)
    ):
        directory.mkdir()
        if rank == 0 or both:
            write_secret(directory / f"{peer}.psk", bytes([rank]) * 32, "", "psk")
    cluster = make_cluster(broker_url, 2)
    errors = outcomes(
        *(connecting(cluster, n, psk_dir=directories[n], connect_timeout=1) for n in directories)
    )
    for error in errors:
        assert isinstance(error, HandshakeTimeout)
        assert "pre-shared key" in str(error)
        assert "redislink fingerprint" in str(error)


def test_pre_shared_keys_that_agree(broker_url, tmp_path):
    for name in ("alice", "bob"):
        write_secret(tmp_path / f"{name}.psk", b"k" * 32, "", "psk")
    endpoints = join(make_cluster(broker_url, 2), psk_dir=tmp_path)
    exchange(*endpoints)
    run_parties(*(endpoint.close for endpoint in endpoints))


@pytest.mark.usefixtures("brisk_hellos")
@pytest.mark.slow
@pytest.mark.parametrize("restarted", ["alice", "bob"])
def test_a_party_that_starts_anew_while_others_wait_is_simply_met_again(broker_url, restarted):
    cluster = make_cluster(broker_url, 3)
    stays = "bob" if restarted == "alice" else "alice"
    staying, stayed = in_thread(connecting(cluster, stays))
    with pytest.raises(HandshakeTimeout, match="carol"):
        connect_as(cluster, restarted, quick_settings(connect_timeout=1))
    met_again = threading.Event()

    def heard(missing, _):
        if missing == ["carol"]:
            met_again.set()

    again, came_again = in_thread(lambda: connect_as(cluster, restarted, on_progress=heard))
    assert met_again.wait(10)
    carol = connect_as(cluster, "carol")
    staying.join(20)
    again.join(20)
    endpoints = [stayed[0], came_again[0], carol]
    for one in endpoints:
        for other in endpoints:
            if one.rank < other.rank:
                exchange(one, other)
    run_parties(*(endpoint.close for endpoint in endpoints))


@pytest.mark.slow
@pytest.mark.parametrize("restarted", ["alice", "bob"])
def test_a_party_that_starts_anew_in_a_session_is_known_by_proof_and_waits_for_all(
    broker_url, restarted
):
    cluster = make_cluster(broker_url, 2)
    endpoints = {endpoint.party: endpoint for endpoint in join(cluster)}
    stays = endpoints["bob" if restarted == "alice" else "alice"]
    exchange(*endpoints.values())
    endpoints[restarted].parts.closing._leave(0.0)  # as if killed: it tells nobody
    again, outcome = in_thread(connecting(cluster, restarted))
    with pytest.raises(PeerRestarted, match=f"{restarted} has started again.*start all"):
        stays.recv(restarted, "never")
    assert outcome == [], "it must not take the old session's keys"
    stays.abort("its peer has restarted")
    new = connect_as(cluster, stays.party, quick_settings())
    again.join(20)
    exchange(new, outcome[0])
    run_parties(new.close, outcome[0].close)


def test_what_is_sealed_is_so_from_the_first_frame_on(broker_url):
    alice, bob = join(make_cluster(broker_url, 2))
    connection = alice.parts.core.broker.open()
    alice.send("bob", "t", b"a payload that nobody else reads")
    alice.flush()
    for name in connection.execute(
        b"KEYS", b"rl:{%s:*" % alice.session.encode(), timeout=5, most=LISTING
    ):
        if connection.execute(b"TYPE", name, timeout=5) == b"list":
            for element in connection.execute(b"LRANGE", name, 0, -1, timeout=5, most=LISTING):
                assert b"payload" not in element
    connection.close()
    assert bob.recv("alice", "t") == b"a payload that nobody else reads"
    run_parties(alice.close, bob.close)
