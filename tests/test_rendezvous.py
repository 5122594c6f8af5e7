"""What both sides of a pair that cannot agree are told, and when."""

import time

import pytest

from redislink import SecurityMismatch, rendezvous
from redislink.identity import write_secret
from redislink.protocol import sealed_handshake
from tests.conftest import connect_as, in_thread, make_cluster, quick_settings


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


def test_the_first_to_see_a_mismatch_stays_until_the_other_has_seen_it():
    assert rendezvous._LINGER > 1.5 * rendezvous._HELLO_INTERVAL
