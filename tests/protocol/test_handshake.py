"""Hellos without keys, between cores joined in memory: no socket, no clock."""

import random

import pytest

from redislink.errors import ClusterMismatch, FrameError, SecurityMismatch
from redislink.protocol import list_names
from redislink.protocol.frame import Ack, AckState, Hello, decode_untrusted, encode
from redislink.protocol.handshake import (
    INSTANCE_BYTES,
    MismatchGrace,
    PlainHandshake,
    derive_epoch,
)

DIGEST = b"d" * 32
NAMES = ("alice", "bob", "carol")


def make(party, instance=None, digest=DIGEST, names=NAMES):
    peers = [name for name in names if name != party]
    return PlainHandshake("s", party, peers, digest, instance or party.encode().ljust(8, b"0"))


def give(receiver, sender, message, now=0.0):
    return receiver.receive_untrusted(sender, *message, now)


def test_two_rounds_complete_a_pair_and_agree_on_its_epoch():
    alice, bob = make("alice"), make("bob")
    answer = give(bob, "alice", alice.hello_for("bob"))
    answer = give(alice, "bob", answer)
    assert alice.missing == ["carol"]
    assert give(bob, "alice", answer) is None
    assert bob.missing == ["carol"]
    assert alice.epoch("bob") == bob.epoch("alice")


def test_a_peer_that_goes_on_saying_hello_is_answered_although_we_are_done():
    alice, bob = make("alice"), make("bob")
    lost = give(alice, "bob", give(bob, "alice", alice.hello_for("bob")))
    assert lost is not None
    assert alice.missing == bob.missing[1:] == ["carol"]
    for now in (1.0, 2.0):
        answer = give(alice, "bob", bob.hello_for("alice"), now)
        assert answer is not None
    assert give(bob, "alice", answer, 2.0) is not None
    assert bob.missing == ["carol"]
    assert give(alice, "bob", bob.hello_for("alice"), 2.1) is None


def test_a_hello_of_a_dead_run_completes_nothing():
    alice, dead_bob = make("alice"), make("bob", b"dead bob")
    stale = dead_bob.hello_for("alice")
    assert give(alice, "bob", stale) is not None
    assert alice.missing == ["bob", "carol"]
    bob = make("bob")
    answer = give(alice, "bob", bob.hello_for("alice"))
    give(alice, "bob", give(bob, "alice", answer))
    assert alice.missing == ["carol"]
    assert alice.epoch("bob") == bob.epoch("alice")


def test_a_replayed_hello_is_not_answered_twice():
    alice, bob = make("alice"), make("bob")
    answer = give(bob, "alice", alice.hello_for("bob"))
    assert give(alice, "bob", answer) is not None
    assert give(alice, "bob", answer) is None


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
                answer = give(core, peer, hello)
                if answer is not None:
                    lists[peer, name] = answer
        if started == set(NAMES) and not any(core.missing for core in cores.values()):
            break
    for _ in range(50):  # the timer of one that is not done goes on, and so do answers
        for name, core in cores.items():
            for peer in core.missing:
                answer = give(cores[peer], name, core.hello_for(peer))
                give(core, peer, answer or cores[peer].hello_for(name))
    assert not any(core.missing for core in cores.values()), f"seed {seed}"
    for one in NAMES:
        for other in NAMES:
            if one != other:
                assert cores[one].epoch(other) == cores[other].epoch(one)


def complete(one, other):
    """Join two parties' cores until neither misses the other."""
    (a, first), (b, second) = one, other
    message = first.hello_for(b)
    sides = [(second, a), (first, b)]
    while message is not None:
        receiver, sender = sides[0]
        sides.reverse()
        message = give(receiver, sender, message)
    assert b not in first.missing
    assert a not in second.missing


def test_a_peer_that_starts_anew_before_the_session_begins_is_met_again():
    alice, bob = make("alice"), make("bob")
    complete(("alice", alice), ("bob", bob))
    again = make("bob", b"again000")
    assert give(alice, "bob", again.hello_for("alice")) is not None
    assert alice.missing == ["bob", "carol"]
    complete(("alice", alice), ("bob", again))
    assert alice.epoch("bob") == again.epoch("alice") != bob.epoch("alice")
    assert not alice.has_restarted("bob")


def test_a_peer_that_starts_anew_in_the_session_has_restarted():
    alice, bob = make("alice"), make("bob")
    complete(("alice", alice), ("bob", bob))
    alice.settle()
    epoch = alice.epoch("bob")
    assert give(alice, "bob", bob.hello_for("alice")) is None
    assert not alice.has_restarted("bob")
    assert give(alice, "bob", make("bob", b"again000").hello_for("alice")) is None
    assert alice.has_restarted("bob")
    assert alice.epoch("bob") == epoch


def test_another_kind_of_frame_changes_nothing():
    alice = make("alice")
    with pytest.raises(FrameError, match="ACK"):
        alice.receive_untrusted("bob", Ack(AckState(0)), b"", 0.0)
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


def test_an_epoch_stands_in_names_of_lists():
    alice, bob = make("alice"), make("bob")
    complete(("alice", alice), ("bob", bob))
    assert list_names.data_list("s", "bob", "alice", alice.epoch("bob"), "t")
    assert alice.epoch("bob") == "7f999e3bbaea0c49", "of every version the same"
    assert alice.not_opened == 0


def test_an_instance_fits_a_hello():
    hello = Hello(DIGEST, bytes(INSTANCE_BYTES), bytes(INSTANCE_BYTES))
    assert decode_untrusted(encode(hello)) == (hello, b"")


class TestMismatch:
    OURS = Hello(DIGEST, b"instance")
    OTHER_FILE = Hello(b"x" * 32, b"instance")
    SEALED = Hello(DIGEST, b"instance", sealed=True)

    @pytest.fixture
    def grace(self):
        return MismatchGrace("s", "alice", "bob")

    def check(self, grace, theirs, now):
        grace.check(theirs, self.OURS, now)

    @pytest.mark.parametrize(
        ("theirs", "error", "text"),
        [
            (OTHER_FILE, ClusterMismatch, r"alice: party 'bob'.*different cluster file.*same file"),
            (SEALED, SecurityMismatch, r"'bob' runs.*security sealed, this party with none.*same"),
        ],
    )
    def test_one_that_lasts_is_an_error_that_says_so(self, grace, theirs, error, text):
        for now in (0.0, 0.5, 1.4):
            with pytest.raises(FrameError):
                self.check(grace, theirs, now)
        with pytest.raises(error, match=text):
            self.check(grace, theirs, 1.5)

    def test_a_single_one_ends_nothing_however_late_the_next_hello_is(self, grace):
        with pytest.raises(FrameError):
            self.check(grace, self.OTHER_FILE, 0.0)
        self.check(grace, self.OURS, 100.0)
        with pytest.raises(FrameError):
            self.check(grace, self.OTHER_FILE, 101.0)

    def test_damaged_hellos_are_no_mismatch_however_many(self, grace):
        for now in range(100):
            with pytest.raises(FrameError):
                self.check(grace, Hello(now.to_bytes(32, "big"), b"instance"), float(now))

    def test_what_is_wrong_is_known_for_the_timeout_until_it_is_right(self, grace):
        with pytest.raises(FrameError):
            self.check(grace, self.SEALED, 0.0)
        assert "security sealed" in grace.text
        self.check(grace, self.OURS, 0.1)
        assert grace.text == ""

    def test_both_sides_of_a_plain_pair_see_it(self):
        alice, bob = make("alice", names=NAMES[:2]), make("bob", digest=b"x" * 32, names=NAMES[:2])
        for now in (0.0, 1.0):
            for receiver, sender, message in (
                (alice, "bob", bob.hello_for("alice")),
                (bob, "alice", alice.hello_for("bob")),
            ):
                with pytest.raises(FrameError):
                    give(receiver, sender, message, now)
        assert "different cluster file" in alice.trouble("bob")
        with pytest.raises(ClusterMismatch, match="alice"):
            give(alice, "bob", bob.hello_for("alice"), 2.0)
        with pytest.raises(ClusterMismatch, match="bob"):
            give(bob, "alice", alice.hello_for("bob"), 2.0)
