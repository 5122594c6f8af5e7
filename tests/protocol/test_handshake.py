"""Hellos between cores joined in memory: no socket, no clock."""

import random

import pytest

from redislink.errors import ClusterMismatch, FrameError
from redislink.protocol.frame import Ack, AckState
from redislink.protocol.handshake import Handshake, derive_epoch

DIGEST = b"d" * 32
NAMES = ("alice", "bob", "carol")


def make(party, instance=None, digest=DIGEST):
    peers = [name for name in NAMES if name != party]
    return Handshake("s", party, peers, digest, instance or party.encode().ljust(8, b"0"))


def test_two_rounds_complete_a_pair_and_agree_on_its_epoch():
    alice, bob = make("alice"), make("bob")
    answer = bob.receive("alice", alice.hello_for("bob"))
    answer = alice.receive("bob", answer)
    assert alice.missing == ["carol"]
    assert bob.receive("alice", answer) is None
    assert bob.missing == ["carol"]
    assert alice.epoch("bob") == bob.epoch("alice")


def test_a_hello_of_a_dead_run_completes_nothing():
    alice, dead_bob = make("alice"), make("bob", b"dead bob")
    stale = dead_bob.hello_for("alice")
    assert alice.receive("bob", stale) is not None
    assert alice.missing == ["bob", "carol"]
    bob = make("bob")
    answer = alice.receive("bob", bob.hello_for("alice"))
    alice.receive("bob", bob.receive("alice", answer))
    assert alice.missing == ["carol"]
    assert alice.epoch("bob") == bob.epoch("alice")


def test_a_replayed_hello_is_not_answered_twice():
    alice, bob = make("alice"), make("bob")
    hello = bob.hello_for("alice")
    assert alice.receive("bob", hello) is not None
    assert alice.receive("bob", hello) is None


@pytest.mark.parametrize("seed", range(200))
def test_every_pair_completes_over_lists_that_lose_and_hold_the_last_hello(seed):
    rng = random.Random(seed)
    cores = {name: make(name) for name in NAMES}
    lists = {}  # as on the broker: the latest hello from one to another
    started = set()
    for _ in range(500):
        name = rng.choice(NAMES)
        core = cores[name]
        started.add(name)
        if rng.random() < 0.3:
            for peer in core.missing:
                lists[peer, name] = core.hello_for(peer)
        for peer in NAMES:
            hello = lists.pop((name, peer), None) if rng.random() < 0.5 else None
            if hello is not None and rng.random() < 0.7:
                answer = core.receive(peer, hello)
                if answer is not None:
                    lists[peer, name] = answer
        if started == set(NAMES) and not any(core.missing for core in cores.values()):
            break
    for _ in range(50):  # the timer of one that is not done goes on, and so do answers
        for name, core in cores.items():
            for peer in core.missing:
                answer = cores[peer].receive(name, core.hello_for(peer))
                core.receive(peer, answer or cores[peer].hello_for(name))
    assert not any(core.missing for core in cores.values()), f"seed {seed}"
    for one in NAMES:
        for other in NAMES:
            if one != other:
                assert cores[one].epoch(other) == cores[other].epoch(one)


def test_another_cluster_file_is_an_error_that_says_so():
    with pytest.raises(ClusterMismatch, match=r"'bob'.*different cluster file.*same file"):
        make("alice").receive("bob", make("bob", digest=b"x" * 32).hello_for("alice"))


def test_another_kind_of_frame_changes_nothing():
    alice = make("alice")
    with pytest.raises(FrameError, match="ACK"):
        alice.receive("bob", Ack(AckState(0)))
    assert alice.missing == ["bob", "carol"]


def test_epochs_differ_by_session_names_and_runs():
    runs = [("a", b"1" * 8), ("b", b"2" * 8)]
    assert derive_epoch("s", runs) == derive_epoch("s", runs[::-1])
    others = [
        derive_epoch("t", runs),
        derive_epoch("s", [("a", b"2" * 8), ("b", b"1" * 8)]),
        derive_epoch("s", [("a", b"1" * 8), ("c", b"2" * 8)]),
    ]
    assert len({derive_epoch("s", runs), *others}) == 4
