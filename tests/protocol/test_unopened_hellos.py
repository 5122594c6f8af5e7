"""Hellos that agree in all that can be seen and do not open: pre-shared keys that differ."""

import pytest

from redislink.errors import FrameError, SecurityMismatch
from tests.protocol.test_sealed_handshake import check_joined, make, settle

NAMES = ("alice", "bob")
PSK = b"k" * 32


def say_hello(alice, bob, now, errors, *, tampered=False):
    """Each pushes its hello, and the other answers it, as once a second while one is missing."""
    cores = {"alice": alice, "bob": bob}
    for sender, receiver in (NAMES, NAMES[::-1]):
        message = cores[sender].hello_for(receiver)
        while message is not None:
            frame, body = message
            if tampered and body:
                body = b"xx" + body[2:]
            try:
                message = cores[receiver].receive_untrusted(sender, frame, body, now)
            except SecurityMismatch as error:
                errors.setdefault(receiver, (now, str(error)))
                break
            except FrameError:
                break
            sender, receiver = receiver, sender


@pytest.mark.parametrize(
    ("alices", "bobs"), [(PSK, None), (None, PSK), (PSK, b"o" * 32)], ids=["alice", "bob", "other"]
)
def test_keys_that_differ_are_said_at_both_sides_after_ten_seconds(alices, bobs):
    alice = make("alice", names=NAMES, psks=alices and {"bob": alices})
    bob = make("bob", names=NAMES, psks=bobs and {"alice": bobs})
    errors = {}
    for now in range(14):
        say_hello(alice, bob, float(now), errors)
    for name, peer, has in (("alice", "bob", alices), ("bob", "alice", bobs)):
        since, text = errors[name]
        assert 10 <= since <= 12
        assert text.startswith(f"{name}: {peer}")
        assert f"this party has {'one' if has else 'none'} for {peer}" in text
    assert (alice.missing, bob.missing) == (["bob"], ["alice"])


def test_tampering_that_ends_in_time_ends_nothing():
    alice, bob = make("alice", names=NAMES), make("bob", names=NAMES)
    errors = {}
    for now in range(9):
        say_hello(alice, bob, float(now), errors, tampered=True)
    assert (alice.missing, bob.missing) == (["bob"], ["alice"])
    say_hello(alice, bob, 9.0, errors)
    settle(alice, bob)
    check_joined(alice, bob)
    assert errors == {}


def test_something_that_opens_begins_the_count_anew():
    """A broker that lets step 1 through, and nothing else, is a matter for connect_timeout."""
    alice, bob = make("alice", names=NAMES), make("bob", names=NAMES)
    errors = {}
    say_hello(alice, bob, 0.0, errors, tampered=True)
    alice.receive_untrusted("bob", *bob.hello_for("alice"), 5.0)
    bob.receive_untrusted("alice", *alice.hello_for("bob"), 5.0)
    for now in range(6, 30):
        say_hello(alice, bob, float(now), errors, tampered=True)
    assert errors == {}
    say_hello(alice, bob, 30.0, errors)
    settle(alice, bob)
    check_joined(alice, bob)
