"""What both sides of a pair that cannot agree are told, and when."""

import threading
import time

import pytest

from redislink import ClusterMismatch, SecurityMismatch, rendezvous
from redislink.broker import Broker
from redislink.identity import write_secret
from redislink.protocol import keys, sealed_handshake
from redislink.protocol.frame import encode_header
from redislink.protocol.handshake import INSTANCE_BYTES, MismatchGrace
from redislink.security import make_handshake
from tests.conftest import IDENTITIES, connect_as, in_thread, make_cluster, quick_settings
from tests.support.waiting import wait_until


@pytest.mark.usefixtures("brisk_hellos")
@pytest.mark.slow
def test_differing_pre_shared_keys_do_not_wait_for_the_timeout(broker_url, tmp_path, monkeypatch):
    monkeypatch.setattr(sealed_handshake, "_UNOPENED_SECONDS", 1.0)
    monkeypatch.setattr(rendezvous, "_LINGER", 2.0)  # a loaded machine is late by more than brisk
    write_secret(tmp_path / "bob.psk", b"k" * 32, "", "it")
    cluster = make_cluster(broker_url, 2)
    started = time.monotonic()
    sides = [
        in_thread(lambda n=n, d=d: connect_as(cluster, n, quick_settings(psk_dir=d)))
        for n, d in (("alice", tmp_path), ("bob", None))
    ]
    for thread, _ in sides:
        thread.join(20)
    assert time.monotonic() - started < 10
    for (_, (error,)), name, has in zip(sides, ("alice", "bob"), ("one", "none"), strict=True):
        assert isinstance(error, SecurityMismatch)
        assert str(error).startswith(f"{name}: ")
        assert f"same pre-shared key for each other, or neither any (this party has {has}" in str(
            error
        )


@pytest.mark.slow
def test_the_first_to_see_a_mismatch_says_hello_until_the_other_has_surely_seen_it(
    broker_url, monkeypatch
):
    """The broker loses what she says, three times after she has noticed that bob's file differs."""
    monkeypatch.setattr(rendezvous, "_HELLO_INTERVAL", 0.02)
    monkeypatch.setattr(rendezvous, "_LINGER", 2.0)
    monkeypatch.setattr(MismatchGrace, "SECONDS", 0.05)
    noticed, receive = threading.Event(), rendezvous.Rendezvous.receive

    def notice(self, *args):
        try:
            return receive(self, *args)
        except ClusterMismatch:
            noticed.set()
            raise

    monkeypatch.setattr(rendezvous.Rendezvous, "receive", notice)
    cluster = make_cluster(broker_url, 2)
    other = make_cluster(broker_url, 3, session=cluster.session)
    thread, outcome = in_thread(lambda: connect_as(cluster, "alice"))
    connection = Broker.from_settings(quick_settings(), broker_url).open()
    bob = make_handshake(other, "bob", quick_settings(), IDENTITIES["bob"], b"i" * INSTANCE_BYTES)
    to_alice = keys.hello_list(cluster.session, "alice", "bob")
    to_bob = keys.hello_list(cluster.session, "bob", "alice")

    def lose() -> bool:
        return connection.execute(b"LPOP", to_bob, timeout=5) is not None

    def say_hello_until_she_notices() -> bool:
        frame, body = bob.hello_for("alice")
        connection.execute(b"RPUSH", to_alice, encode_header(frame) + body, timeout=5)
        lose()
        return noticed.is_set()

    wait_until(say_hello_until_she_notices)
    lose()
    for _ in range(3):
        wait_until(lose)
    assert not outcome
    thread.join(20)
    assert isinstance(outcome[0], ClusterMismatch)
    connection.close()
