"""The sealed handshake, sans-IO: over a network that does what it likes, with runs that die."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from redislink.errors import ClusterMismatch, FrameError, SealError, SecurityMismatch
from redislink.identity.keypair import Identity
from redislink.protocol import sealed_handshake
from redislink.protocol.frame import (
    Abort,
    Ack,
    AckState,
    Data,
    Hello,
    decode_untrusted,
    encode,
    encode_header,
)
from redislink.protocol.sealed_handshake import SealedHandshake

NAMES = ("alice", "bob", "carol")
DIGEST = b"d" * 32
KEYS = {name: Identity(bytes([rank + 1]) * 32) for rank, name in enumerate(NAMES)}
PUBLIC = {name: key.public_key for name, key in KEYS.items()}
ATTACKER = Identity(b"m" * 32)


def make(party, seed=0, names=NAMES, **changes):
    rng = random.Random(f"{party} {seed}")
    options = {
        "ranks": {name: NAMES.index(name) for name in names},
        "private_key": KEYS[party].private_key,
        "public_keys": PUBLIC,
        "random_bytes": rng.randbytes,
    }
    peers = [name for name in names if name != party]
    digest = changes.pop("digest", DIGEST)
    session = changes.pop("session", "s")
    return SealedHandshake(session, party, peers, digest, rng.randbytes(8), **(options | changes))


def two(**changes):
    names = NAMES[:2]
    return make("alice", names=names, **changes), make("bob", names=names, **changes)


def give(receiver, sender, message, now=0.0):
    return receiver.receive_untrusted(sender, *message, now)


def talk(alice, bob, message=None, sender="alice"):
    """Let the two answer each other until nobody has an answer."""
    message = message or (alice if sender == "alice" else bob).hello_for(
        "bob" if sender == "alice" else "alice"
    )
    for _ in range(20):
        receiver = bob if sender == "alice" else alice
        message = give(receiver, sender, message)
        if message is None:
            return
        sender = "bob" if sender == "alice" else "alice"
    raise AssertionError("two parties that behave talk for ever")


def settle(*cores):
    for core in cores:
        assert core.missing == []
        core.settle()


def check_joined(alice, bob, a="alice", b="bob"):
    assert alice.epoch(b) == bob.epoch(a)
    for sender, to, receiver, source in ((alice, b, bob, a), (bob, a, alice, b)):
        for frame, body in ((Data(1), b"body"), (Ack(AckState(0)), b"")):
            element = sender.codec(to).encode(b"list", frame, body)
            assert receiver.codec(source).decode_untrusted(b"list", element) == (frame, body)


@pytest.mark.parametrize("first", ["alice", "bob"])
@pytest.mark.parametrize("psks", [None, {"alice": b"k" * 32, "bob": b"k" * 32}])
def test_whoever_speaks_first_both_are_done(first, psks):
    alice, bob = two(psks=psks)
    talk(alice, bob, sender=first)
    settle(alice, bob)
    check_joined(alice, bob)


def test_before_it_is_settled_nothing_can_be_used():
    alice, bob = two()
    talk(alice, bob)
    for use in (alice.codec, alice.epoch):
        with pytest.raises(KeyError):
            use("bob")


def test_a_codec_is_made_once_or_its_nonces_would_come_again():
    alice, bob = two()
    talk(alice, bob)
    settle(alice, bob)
    assert alice.codec("bob") is alice.codec("bob")
    elements = {alice.codec("bob").encode(b"c", Ack(AckState(0)), b"") for _ in range(3)}
    assert len(elements) == 3


def recorded(alice, bob, first="alice"):
    """Every hello of a run that completes, as (sender, message)."""
    hellos, sender = [], first
    message = (alice if first == "alice" else bob).hello_for("bob" if first == "alice" else "alice")
    while message is not None:
        hellos.append((sender, message))
        message = give(bob if sender == "alice" else alice, sender, message)
        sender = "bob" if sender == "alice" else "alice"
    return hellos


def test_the_steps_are_those_of_the_docstring():
    hellos = recorded(*two())
    assert [(sender, frame.step) for sender, (frame, _) in hellos] == [
        ("alice", 0), ("bob", 0), ("alice", 1), ("bob", 2), ("alice", 3),
    ]  # fmt: skip


class TestReplay:
    """A dead run's hellos, replayed to a new run."""

    @pytest.fixture
    def dead(self):
        return recorded(make("alice", "dead", NAMES[:2]), make("bob", "dead", NAMES[:2]))

    def test_all_of_the_initiators_prove_nothing(self, dead):
        _, bob = two()
        for _ in range(3):
            for sender, message in dead:
                if sender == "alice":
                    answer = feed(bob, "alice", message)
                    assert answer is None or answer[0].step == 0
        assert bob.missing == ["alice"]

    def test_all_of_the_responders_prove_nothing(self, dead):
        alice, _ = two()
        for _ in range(3):
            for sender, message in dead:
                if sender == "bob":
                    feed(alice, "bob", message)
        assert alice.missing == ["bob"]

    def test_neither_do_they_to_a_session_that_has_begun(self, dead):
        alice, bob = two()
        talk(alice, bob)
        settle(alice, bob)
        epoch = alice.epoch("bob")
        for sender, message in dead * 3:
            receiver, other = (bob, alice) if sender == "alice" else (alice, bob)
            answer = feed(receiver, sender, message)
            name = "bob" if sender == "alice" else "alice"
            for _ in range(6):
                if answer is None:
                    break
                receiver, other, name = other, receiver, "alice" if name == "bob" else "bob"
                answer = feed(receiver, "alice" if name == "bob" else "bob", answer)
        assert not alice.has_restarted("bob")
        assert not bob.has_restarted("alice")
        assert alice.epoch("bob") == bob.epoch("alice") == epoch

    def test_a_step_1_of_this_responders_life_by_a_dead_initiator_is_no_restart(self):
        """The one step 1 that can be replayed: bob answers, and nobody can confirm."""
        _, bob = two()
        dead_alice = make("alice", "dead", NAMES[:2])
        old = recorded(dead_alice, bob)
        alice = make("alice", "new", NAMES[:2])
        talk(alice, bob)
        settle(alice, bob)
        for sender, message in old * 2:
            if sender == "alice":
                feed(bob, "alice", message)
        assert not bob.has_restarted("alice")
        check_joined(alice, bob)

    def test_a_confirmation_of_a_dead_initiator_that_was_held_back_does_not_win(self):
        """It finished with this very bob; but a newer run has as well."""
        _, bob = two()
        dead_alice = make("alice", "dead", NAMES[:2])
        answer = give(bob, "alice", give(dead_alice, "bob", bob.hello_for("alice")))
        held = give(dead_alice, "bob", answer)
        assert held[0].step == 3
        alice = make("alice", "new", NAMES[:2])
        talk(alice, bob)
        with pytest.raises(SealError):
            give(bob, "alice", held)
        settle(alice, bob)
        with pytest.raises(SealError):
            give(bob, "alice", held)
        assert not bob.has_restarted("alice")
        check_joined(alice, bob)

    def test_if_it_comes_first_the_newer_run_wins_all_the_same(self):
        _, bob = two()
        dead_alice = make("alice", "dead", NAMES[:2])
        held = give(
            dead_alice, "bob", give(bob, "alice", give(dead_alice, "bob", bob.hello_for("alice")))
        )
        alice = make("alice", "new", NAMES[:2])
        newer = give(alice, "bob", give(bob, "alice", give(alice, "bob", bob.hello_for("alice"))))
        give(bob, "alice", held)
        give(bob, "alice", newer)
        settle(alice, bob)
        check_joined(alice, bob)

    def test_an_answer_of_a_dead_responder_that_was_held_back_does_not_win(self):
        alice, _ = two()
        dead_bob = make("bob", "dead", NAMES[:2])
        held = give(dead_bob, "alice", give(alice, "bob", dead_bob.hello_for("alice")))
        assert held[0].step == 2
        bob = make("bob", "new", NAMES[:2])
        talk(alice, bob, sender="bob")
        answer = feed(alice, "bob", held)
        assert answer is None or answer[0].step != 3
        settle(alice, bob)
        feed(alice, "bob", held)
        assert not alice.has_restarted("bob")
        check_joined(alice, bob)


def feed(core, sender, message):
    """As `Rendezvous.receive` does: what is not genuine is ignored."""
    try:
        return give(core, sender, message)
    except FrameError:
        return None


class TestRestart:
    def test_before_the_session_begins_the_new_run_is_met(self):
        alice, bob = two()
        talk(alice, bob)
        again = make("bob", "again", NAMES[:2])
        talk(alice, again, sender="bob")
        settle(alice, again)
        check_joined(alice, again)
        assert not alice.has_restarted("bob")

    def test_of_the_responder_is_proven_to_the_initiator_and_not_confirmed(self):
        alice, bob = two()
        talk(alice, bob)
        settle(alice, bob)
        again = make("bob", "again", NAMES[:2])
        talk(alice, again, sender="bob")
        assert alice.has_restarted("bob")
        assert again.missing == ["alice"], "it must wait for alice's next run, not use this one"
        new_alice = make("alice", "again", NAMES[:2])
        talk(new_alice, again)
        settle(new_alice, again)
        check_joined(new_alice, again)

    def test_of_the_initiator_is_proven_to_the_responder_and_not_taken_as_done(self):
        alice, bob = two()
        talk(alice, bob)
        settle(alice, bob)
        again = make("alice", "again", NAMES[:2])
        talk(again, bob)
        assert bob.has_restarted("alice")
        assert again.missing == ["bob"], "it must wait for bob's next run"
        new_bob = make("bob", "again", NAMES[:2])
        talk(again, new_bob, sender="bob")
        settle(again, new_bob)
        check_joined(again, new_bob)

    def test_a_hint_alone_proves_nothing(self):
        alice, bob = two()
        talk(alice, bob)
        settle(alice, bob)
        for step in range(4):
            forged = Hello(DIGEST, b"newcomer", sealed=True, step=step)
            for body in (b"", b"x" * 16, b"x" * 64):
                feed(alice, "bob", (forged, body))
                feed(bob, "alice", (forged, body))
        assert not alice.has_restarted("bob")
        assert not bob.has_restarted("alice")

    def test_a_responder_that_restarts_between_answer_and_confirmation(self):
        alice, bob = two()
        step_1 = give(alice, "bob", bob.hello_for("alice"))
        step_3 = give(alice, "bob", give(bob, "alice", step_1))
        again = make("bob", "again", NAMES[:2])
        with pytest.raises(SealError):
            give(again, "alice", step_3)
        talk(alice, again, sender="bob")
        settle(alice, again)
        check_joined(alice, again)


class TestLoss:
    def test_a_lost_confirmation_is_given_again_for_whatever_the_responder_says(self):
        alice, bob = two()
        step_1 = give(alice, "bob", bob.hello_for("alice"))
        lost = give(alice, "bob", give(bob, "alice", step_1))
        assert lost[0].step == 3
        settle(alice)
        assert bob.missing == ["alice"]
        talk(alice, bob, sender="bob")
        settle(bob)
        check_joined(alice, bob)

    def test_also_when_the_responders_newest_candidate_is_of_a_dead_run(self):
        alice, bob = two()
        dead_alice = make("alice", "dead", NAMES[:2])
        late = give(dead_alice, "bob", bob.hello_for("alice"))
        give(alice, "bob", give(bob, "alice", give(alice, "bob", bob.hello_for("alice"))))
        settle(alice)
        give(bob, "alice", late)
        assert bob.hello_for("alice")[0].step == 2
        talk(alice, bob, sender="bob")
        settle(bob)
        check_joined(alice, bob)

    def test_the_exchange_survives_a_flood_of_replayed_and_forged_hellos(self):
        alice, bob = two()
        dead = [recorded(make("alice", n, NAMES[:2]), make("bob", n, NAMES[:2])) for n in range(40)]
        step_1 = give(alice, "bob", bob.hello_for("alice"))
        step_2 = give(bob, "alice", step_1)
        for run in dead:
            for sender, message in run:
                feed(bob if sender == "alice" else alice, sender, message)
        talk(alice, bob, step_2, sender="bob")
        talk(alice, bob, sender="bob")
        settle(alice, bob)
        check_joined(alice, bob)
        for core, peer in ((alice, "bob"), (bob, "alice")):
            pair = core._pairs[peer]
            assert len(pair.begun) + len(pair.answered) <= sealed_handshake._MOST_UNDER_WAY


def flips(message):
    frame, body = message
    for place in range(len(body)):
        for bit in range(8):
            broken = bytearray(body)
            broken[place] ^= 1 << bit
            yield frame, bytes(broken)


class TestForgery:
    def test_every_flipped_bit_and_length_of_each_body_completes_nothing(self):
        for step in (1, 2, 3):
            alice, bob = two()
            hellos = recorded(make("alice", 0, NAMES[:2]), make("bob", 0, NAMES[:2]))
            for sender, message in hellos:  # the same seeds: replay this run up to the step
                if message[0].step == step:
                    break
                feed(bob if sender == "alice" else alice, sender, message)
            core, peer = (alice, "bob") if sender == "bob" else (bob, "alice")
            frame, body = message
            broken = [*flips(message), *((frame, body[:end]) for end in range(len(body)))]
            broken += [(frame, body + b"\0"), (frame, body * 2), (frame, b"\0" * 100_000)]
            for attempt in broken:
                answer = feed(core, peer, attempt)
                assert answer is None or answer[0].step in (0, 1)
                assert core.missing == [peer], f"step {step}"
            feed(core, peer, message)
            assert (core.missing == []) == (step > 1)

    def test_reflected_hellos_are_refused(self):
        alice, bob = two()
        for sender, message in recorded(alice, bob):
            core, peer = (alice, "bob") if sender == "alice" else (bob, "alice")
            with pytest.raises(FrameError, match="sent itself"):
                give(core, peer, message)

    @pytest.mark.parametrize(
        "changes",
        [
            {"session": "other"},
            {"public_keys": PUBLIC | {"alice": ATTACKER.public_key}},
            {"psks": {"alice": b"k" * 32}},
            {"private_key": ATTACKER.private_key},
        ],
        ids=["session", "alice's public key", "psk", "bob's private key"],
    )
    def test_what_differs_never_completes_and_both_say_what_to_check(self, changes):
        alice, bob = make("alice", names=NAMES[:2]), make("bob", names=NAMES[:2], **changes)
        for _ in range(6):
            for one, other, name, to in (
                (alice, bob, "alice", "bob"),
                (bob, alice, "bob", "alice"),
            ):
                answer = feed(other, name, one.hello_for(to))
                if answer is not None:
                    feed(one, to, answer)
        assert alice.missing == ["bob"]
        assert bob.missing == ["alice"]
        for text in (alice.trouble("bob"), bob.trouble("alice")):
            assert "fingerprint" in text
            assert "pre-shared" in text

    def test_hellos_of_another_pair_complete_nothing(self):
        alice, bob, carol = (make(name) for name in NAMES)
        for sender, receiver, claimed in (
            (carol, alice, "bob"),
            (alice, carol, "bob"),
            (bob, carol, "alice"),
        ):
            message = sender.hello_for(next(iter(sender._pairs)))
            for _ in range(4):
                feed(receiver, claimed, message)
        assert all(len(core.missing) == 2 for core in (alice, bob, carol))

    def test_a_peer_that_has_the_key_may_still_send_nonsense(self):
        """Payloads that open, and are not what they must be."""
        from redislink.protocol.noise_kk import KkInitiator
        from redislink.protocol.noise_state import NoiseConfig

        bob = make("bob", names=NAMES[:2])
        config = NoiseConfig(
            KEYS["alice"].private_key,
            PUBLIC["bob"],
            sealed_handshake.prologue("s", "alice", "bob", DIGEST),
        )
        header = Hello(DIGEST, b"nonsense", bob._instance, sealed=True, step=1)
        for payload in (b"", b"x" * 8, b"x" * 16, b"x" * 8 + bob._instance + b"y", b"x" * 60_000):
            first = KkInitiator(config, b"e" * 32, payload).first
            with pytest.raises(SealError):
                give(bob, "alice", (header, first))
        assert bob.missing == ["alice"]
        assert not bob._pairs["alice"].answered

    def test_another_kind_of_frame(self):
        alice, _ = two()
        for frame in (Ack(AckState(0)), Data(1), Abort("x")):
            with pytest.raises(FrameError, match=frame.kind.name):
                give(alice, "bob", (frame, b""))


class TestMismatch:
    def test_a_differing_cluster_file_is_an_error_at_both_sides_once_it_lasts(self):
        alice, bob = make("alice", names=NAMES[:2]), make("bob", names=NAMES[:2], digest=b"x" * 32)
        for core, other, peer, me in ((alice, bob, "bob", "alice"), (bob, alice, "alice", "bob")):
            for now in (0.0, 1.0):
                with pytest.raises(FrameError):
                    give(core, peer, other.hello_for(me), now)
            assert "different cluster file" in core.trouble(peer)
            with pytest.raises(ClusterMismatch, match=f"{me}: party '{peer}'"):
                give(core, peer, other.hello_for(me), 2.0)

    def test_security_none_is_an_error_once_it_lasts(self):
        alice, _ = two()
        plain = Hello(DIGEST, b"plain bo")
        for now in (0.0, 1.4):
            with pytest.raises(FrameError):
                give(alice, "bob", (plain, b""), now)
        with pytest.raises(SecurityMismatch, match="security none, this party with sealed"):
            give(alice, "bob", (plain, b""), 1.5)

    def test_a_single_stale_or_forged_one_ends_nothing(self):
        alice, bob = two()
        stale = Hello(b"x" * 32, b"dead bob", sealed=True)
        for now in (0.0, 50.0, 100.0):
            with pytest.raises(FrameError):
                give(alice, "bob", (stale, b""), now)
            give(alice, "bob", bob.hello_for("alice"), now + 1)
        talk(alice, bob, sender="bob")
        settle(alice, bob)

    def test_once_done_none_ends_anything(self):
        alice, bob = two()
        talk(alice, bob)
        for now in (0.0, 5.0):
            for core, peer in ((alice, "bob"), (bob, "alice")):
                give(core, peer, (Hello(b"x" * 32, b"whatever", sealed=False), b""), now)
        assert alice.missing == bob.missing == []


class TestNothingOpens:
    """What looks like differing pre-shared keys, and is not; see also test_unopened_hellos."""

    def test_an_outage_of_the_broker_is_not_taken_for_it(self):
        alice, bob = two()
        heard = give(bob, "alice", alice.hello_for("bob"))  # bob has heard alice
        give(alice, "bob", heard, 0.0)
        give(alice, "bob", heard, 0.1)  # and says so before he has step 1, which is lost
        talk(alice, bob, give(alice, "bob", bob.hello_for("alice"), 60.0))
        settle(alice, bob)
        check_joined(alice, bob)

    def test_some_forged_hellos_far_apart_are_not_taken_for_it(self):
        alice, bob = two()
        for now in range(0, 100, 5):
            forged = Hello(DIGEST, b"whatever", bob._instance, sealed=True, step=1)
            with pytest.raises(SealError):
                give(bob, "alice", (forged, b"x" * 64), float(now))
            assert "do not open" in bob.trouble("alice")
        talk(alice, bob)
        settle(alice, bob)

    def test_neither_are_many_once_something_has_opened(self):
        alice, bob = two()
        answer = give(bob, "alice", give(alice, "bob", bob.hello_for("alice")))
        forged = Hello(DIGEST, b"whatever", bob._instance, sealed=True, step=1)
        for now in range(100):
            with pytest.raises(SealError):
                give(bob, "alice", (forged, b"x" * 64), float(now))
        talk(alice, bob, answer, sender="bob")
        settle(alice, bob)


def test_nothing_that_holds_a_key_shows_it():
    alice, bob = two(psks={"alice": b"k" * 32, "bob": b"k" * 32})
    talk(alice, bob)
    settle(alice, bob)
    done = alice._pairs["bob"].done
    keys = done.secrets.keys
    secrets = [KEYS["alice"].private_key, b"k" * 32, keys.data_out, keys.control_in]
    for holder in (alice, alice._pairs["bob"], done, done.secrets, keys, alice.codec("bob")):
        for text in (repr(holder), str(holder)):
            for secret in secrets:
                assert secret.hex() not in text
                assert repr(secret)[2:-1] not in text


# -- seeded runs -------------------------------------------------------------------------------


class Network:
    """Hello lists on a hostile broker: it holds each list's latest hello, keeps all that it
    ever saw, and for a while delivers what it likes."""

    def __init__(self, rng, names):
        self.rng = rng
        self.names = names
        self.lists = {}
        self.seen = []
        self.hostile = True
        self.mismatches = set()

    def push(self, dst, src, element):
        self.seen.append((dst, src, element))
        if self.hostile and self.rng.random() < 0.25:
            return
        self.lists[dst, src] = element

    def pop(self, dst, src):
        element = self.lists.pop((dst, src), None)
        if not self.hostile:
            return element
        if element is not None and self.rng.random() < 0.2:
            return None
        if self.rng.random() < 0.25:
            return self.forge(dst, src, element)
        return element

    def forge(self, dst, src, element):
        rng = self.rng
        choice = rng.randrange(9)
        if choice == 0 and element is not None:
            self.lists[dst, src] = element  # doubled
            return element
        if choice in (1, 2) and self.seen:  # replayed, with luck of the same pair
            same = [e for d, s, e in self.seen if (d, s) == (dst, src)]
            return rng.choice(same) if same else None
        if choice == 3 and self.seen:  # reflected, or of another pair
            return rng.choice(self.seen)[2]
        if choice == 4 and element:
            return element[: rng.randrange(len(element))]
        if choice == 5 and element:
            broken = bytearray(element)
            broken[rng.randrange(5, len(element))] ^= 1 << rng.randrange(8)
            return self.unless_mismatch(dst, src, bytes(broken))
        if choice == 6:
            hello = Hello(DIGEST, rng.randbytes(8), rng.choice([b"", rng.randbytes(8)]), True,
                          rng.randrange(4))  # fmt: skip
            return encode_header(hello) + rng.randbytes(rng.choice([0, 16, 32, 49, 64, 65]))
        if choice == 7:
            return self.unless_mismatch(
                dst, src, encode(Hello(rng.randbytes(32), rng.randbytes(8), sealed=True))
            )
        if choice == 8:
            self.lists.clear()  # flushed
        return rng.randbytes(rng.randrange(80))

    def unless_mismatch(self, dst, src, element):
        """A header that disagrees, once for each list: twice might rightly be an error."""
        try:
            frame, _ = decode_untrusted(element)
        except FrameError:
            return element
        if isinstance(frame, Hello) and (frame.digest != DIGEST or not frame.sealed):
            if (dst, src) in self.mismatches:
                return None
            self.mismatches.add((dst, src))
        return element


class Party:
    """One party's runs, one after the other; `turn` is what `Rendezvous` does."""

    def __init__(self, name, world):
        self.name = name
        self.world = world
        self.runs = []
        self.start()

    def end(self, reason):
        """Leave as an endpoint does: tell the peers, and be started again after a while."""
        self.world.ended[reason] += 1
        joined = [party for party in self.world.parties.values() if party.is_joined_to(self)]
        self.start(self.world.rng.uniform(0.5, 3))
        for party in joined:
            if party.is_up:
                party.end("aborted")

    @property
    def is_up(self):
        return self.world.now >= self.up_at

    def is_joined_to(self, other):
        return (
            other is not self
            and self.settled_at is not None
            and other.settled_at is not None
            and self.core.epoch(other.name) == other.core.epoch(self.name)
        )

    def start(self, pause=0.0):
        self.up_at = self.world.now + pause
        self.core = make(self.name, f"{self.world.seed} {len(self.runs)}", self.world.names)
        self.runs.append(self.core)
        self.settled_at = None
        self.next_hello = self.up_at

    def push(self, peer, message):
        self.world.network.push(peer, self.name, encode(*message))

    def turn(self):
        world, core = self.world, self.core
        if self.settled_at is None and world.now >= self.next_hello:
            for peer in core.missing:
                self.push(peer, core.hello_for(peer))
            self.next_hello = world.now + 1.0
        for peer in world.names:
            if peer == self.name:
                continue
            element = world.network.pop(self.name, peer)
            if element is None:
                continue
            try:
                frame, body = decode_untrusted(element)
                answer = core.receive_untrusted(peer, frame, bytes(body), world.now)
            except ClusterMismatch as error:
                raise AssertionError("one forged header has ended a handshake") from error
            except FrameError:
                continue
            if answer is not None:
                self.push(peer, answer)
        if self.settled_at is None and not core.missing:
            core.settle()
            self.settled_at = world.now
        world.check_nothing_forged(self)

    def reason_to_end(self):
        """What the endpoint would see: a proven restart, or nobody with the other's keys."""
        if self.settled_at is None:
            return None
        for peer in self.world.names:
            if peer == self.name:
                continue
            if self.core.has_restarted(peer):
                return "restarted"
            joined = self.is_joined_to(self.world.parties[peer])
            if not joined and self.world.now - self.settled_at > 30:
                return "lost"
        return None


class World:
    def __init__(self, seed, size, restarts):
        self.seed = seed
        self.rng = random.Random(seed)
        self.names = NAMES[:size]
        self.now = 0.0
        self.network = Network(self.rng, self.names)
        self.parties = {name: Party(name, self) for name in self.names}
        self.restarts = restarts
        self.ended = defaultdict(int)

    def run(self):
        hostile_until = self.rng.uniform(2, 12)
        restarts = sorted(self.rng.uniform(0, hostile_until) for _ in range(self.restarts))
        while self.now < hostile_until + 400:
            self.now += 0.1
            if self.now > hostile_until:
                self.network.hostile = False
            while restarts and restarts[0] <= self.now:
                restarts.pop(0)
                self.parties[self.rng.choice(self.names)].start()
            for name in self.rng.sample(self.names, len(self.names)):
                if self.parties[name].is_up:
                    self.parties[name].turn()
            for party in self.parties.values():
                reason = party.reason_to_end()
                if reason is not None:
                    party.end(reason)
            if not self.network.hostile and self.is_joined():
                return
        raise AssertionError(f"seed {self.seed}: not joined, {dict(self.ended)}")

    def is_joined(self):
        parties = self.parties.values()
        return all(one.is_joined_to(other) for one in parties for other in parties if one != other)

    def check_nothing_forged(self, party):
        """Whom a party takes as done is a run that has the same exchange."""
        for peer, pair in party.core._pairs.items():
            if pair.done is None:
                continue
            runs = [
                run for run in self.parties[peer].runs if run._instance == pair.done.peer_instance
            ]
            assert len(runs) == 1, f"seed {self.seed}: done with nobody's run"


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("seed", range(40))
def test_runs_that_nobody_leaves_complete_without_a_restart(seed, size):
    world = World(seed, size, restarts=0)
    world.run()
    assert not world.ended, f"seed {seed}"
    cores = {name: party.core for name, party in world.parties.items()}
    for one in world.names:
        for other in world.names:
            if one < other:
                check_joined(cores[one], cores[other], one, other)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("seed", range(40))
def test_runs_that_die_end_in_a_session_of_the_living(seed, size):
    world = World(1000 + seed, size, restarts=4)
    world.run()
    assert sum(world.ended.values()) <= 30, f"seed {seed}: {dict(world.ended)}"
    cores = {name: party.core for name, party in world.parties.items()}
    for one in world.names:
        for other in world.names:
            if one < other:
                check_joined(cores[one], cores[other], one, other)
