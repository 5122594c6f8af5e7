"""The doctor on the other parties: who runs, and whether all have the same cluster file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from redislink import ClusterSpec, FrameError
from redislink.broker import EmbeddedBroker
from redislink.identity.keypair import fingerprint
from redislink.operate.doctor import Blame, Level
from redislink.operate.doctor.note import COPIES, Note, decode_note_untrusted
from redislink.protocol import list_names
from redislink.protocol.frame import Hello, encode
from tests.conftest import IDENTITIES, connect_as, make_cluster, quick_settings, run_parties
from tests.operate.doctor.conftest import Ask, contents
from tests.support.servers import Admin

Users = Callable[..., dict[str, str]]


def changed(spec: ClusterSpec) -> ClusterSpec:
    """The same session with another cluster file."""
    return spec.model_copy(update={"devices": {}})


def digest(spec: ClusterSpec) -> str:
    return spec.digest().hex()[:12]


def trio() -> ClusterSpec:
    return make_cluster("", 3, broker=None)


@pytest.mark.parametrize("per_party", [True, False])
def test_doctors_compare_their_cluster_files(
    server: EmbeddedBroker, doctor: Ask, users: Users, per_party: bool
) -> None:
    spec = trio()
    other = changed(spec)
    urls = users(spec) if per_party else dict.fromkeys(spec.party_names, server.url)
    now = time.time()
    first = doctor(urls["alice"], "alice", spec)
    words = f"compare the digest {digest(spec)} by telephone"
    first.check("same cluster file", Level.SKIP, "nothing heard from bob, carol → run", words)
    second = doctor(urls["bob"], "bob", spec, clock=lambda: now + 61)
    second.check(
        *("same cluster file", Level.SKIP, f"the same digest {digest(spec)} at alice (its doctor"),
        *(" 6", "s ago) (as they say; not proved); nothing heard from carol"),
    )
    third = doctor(urls["carol"], "carol", other)
    finding = third.check(
        *("same cluster file", Level.FAIL, "alice's doctor says that its cluster file has digest"),
        *(digest(spec), f"ours has digest {digest(other)}", "give every party the same file"),
    )
    assert finding.blame is Blame.PEER
    assert third.report.blame is Blame.PEER
    again = doctor(urls["alice"], "alice", spec)
    again.check("same cluster file", Level.FAIL, "carol's doctor says", digest(other))
    # Corrected, it is well at once: a note replaces those before it.
    doctor(urls["carol"], "carol", spec)
    last = doctor(urls["alice"], "alice", spec)
    last.check("same cluster file", Level.PASS, "at bob (its doctor", "carol (its doctor")


def test_a_note_can_be_read_several_times(one_server: EmbeddedBroker, doctor: Ask) -> None:
    spec = trio()
    doctor(one_server.url, "bob", spec)
    for _ in range(COPIES):
        told = doctor(one_server.url, "alice", spec)
        told.check("same cluster file", Level.SKIP, "at bob (its doctor")
    told = doctor(one_server.url, "alice", spec)
    told.check("same cluster file", Level.SKIP, "nothing heard from bob, carol")


def test_a_peer_with_another_key(one_server: EmbeddedBroker, doctor: Ask, key_files) -> None:
    spec = trio()
    doctor(one_server.url, "bob", spec, identity_file=key_files["dave"])
    told = doctor(one_server.url, "alice", spec)
    shown = fingerprint(IDENTITIES["dave"].public_key)
    told.check("same cluster file", Level.FAIL, f"bob's doctor says that its key is {shown}")


@pytest.mark.parametrize("same", [True, False])
def test_hellos_are_looked_at_and_left(
    server: EmbeddedBroker, doctor: Ask, admin: Admin, same: bool
) -> None:
    spec = trio()
    theirs = spec if same else changed(spec)
    name = list_names.hello_list(spec.session, "alice", "bob")
    hello = encode(Hello(theirs.digest(), bytes(8), sealed=True), b"")
    admin(b"RPUSH", name, hello)
    admin(b"PEXPIRE", name, 60_000)
    told = doctor(server.url, "alice", spec)
    if same:
        told.check("same cluster file", Level.SKIP, "at bob (its hello)")
    else:
        words = "bob said hello within the last minute, with a cluster file that has digest"
        told.check("same cluster file", Level.FAIL, words, digest(theirs))
    assert admin(b"LRANGE", name, 0, -1) == [hello]


def test_what_is_no_note_and_no_hello(server: EmbeddedBroker, doctor: Ask, admin: Admin) -> None:
    spec = trio()
    admin(b"RPUSH", list_names.doctor_list(spec.session, "alice", "bob"), b"\x00junk")
    admin(b"RPUSH", list_names.hello_list(spec.session, "alice", "bob"), b"\x00junk")
    admin(b"SET", list_names.doctor_list(spec.session, "alice", "carol"), b"no list")
    admin(b"SET", list_names.hello_list(spec.session, "alice", "carol"), b"no list")
    told = doctor(server.url, "alice", spec)
    told.check("same cluster file", Level.SKIP, "nothing heard from bob, carol")
    admin(b"SET", list_names.claim_key(spec.session, "bob"), b"no expiry")
    told = doctor(server.url, "alice", spec)
    told.check("who is there", Level.PASS, "running: nobody")


RIGHT = Note("0a" * 32, "sealed", "SHA256:" + "A" * 43, 1.5)


@pytest.mark.parametrize(
    "element",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 2000,
        RIGHT.encode()[:-1],
        RIGHT.encode() + b" " * 1024,
        *(
            json.dumps(json.loads(RIGHT.encode()) | change).encode()
            for change in (
                {"digest": "0A" * 32},
                {"digest": "0a" * 31},
                {"digest": None},
                {"security": "both"},
                {"security": []},
                {"fingerprint": "SHA256:\x1b[1m"},
                {"fingerprint": 1},
                {"at": "now"},
                {"at": 1e300},
                {"at": None},
                {"more": 1},
            )
        ),
        RIGHT.encode().replace(b"1.5", b"NaN"),
        RIGHT.encode().replace(b"1.5", b"Infinity"),
        RIGHT.encode().replace(b"1.5", b"9" * 900),
    ],
)
def test_notes_that_are_none(element: bytes) -> None:
    with pytest.raises(FrameError, match="no note"):
        decode_note_untrusted(element)
    assert decode_note_untrusted(RIGHT.encode()) == RIGHT


def test_who_runs(server: EmbeddedBroker, doctor: Ask, users: Users) -> None:
    spec = trio()
    with_users = users(spec)
    opened = run_parties(
        *(
            lambda name=name: connect_as(spec, name, quick_settings(broker_url=with_users[name]))
            for name in spec.party_names
        )
    )
    try:
        told = doctor(server.url, "alice", spec)
        told.check(
            "who is there", Level.PASS, "running: alice, bob, carol; alice is already running"
        )
        told = doctor(with_users["bob"], "bob", spec)
        told.check("who is there", Level.SKIP, "running: bob; bob is already running")
        told.check(
            *("who is there", Level.SKIP, "not allowed to see alice, carol"),
            "permission missing: PTTL on their claims",
        )
    finally:
        run_parties(*(endpoint.close for endpoint in opened))


def test_a_running_session_is_not_disturbed(
    server: EmbeddedBroker, doctor: Ask, admin: Admin
) -> None:
    admin(b"SET", b"of somebody else", b"x")
    spec = make_cluster(server.url, 3)
    alice, bob, carol = run_parties(
        *(lambda name=name: connect_as(spec, name) for name in spec.party_names)
    )
    try:
        alice.send("bob", "waits", b"before")  # lies in bob's inbox while the doctor is there
        for party in spec.party_names:
            assert doctor(server.url, party, spec).report.blame is None
        assert bob.recv("alice", "waits", 5) == b"before"
        for number, (here, there) in enumerate([(alice, bob), (bob, carol), (carol, alice)]):
            here.send(there.party, f"after {number}", b"after")
            assert there.recv(here.party, f"after {number}", 5) == b"after"
        assert [endpoint.stats().reconnects for endpoint in (alice, bob, carol)] == [0, 0, 0]
    finally:
        run_parties(*(endpoint.close for endpoint in (alice, bob, carol)))
    mine = f"rl:{{{spec.session}:".encode()
    left = {key for key in contents(admin) if key.startswith(mine)}
    assert not any(key.endswith(b":!claim") for key in left)
    assert admin(b"GET", b"of somebody else") == b"x"


def test_keys_of_others_are_as_they_were(server: EmbeddedBroker, doctor: Ask, admin: Admin) -> None:
    spec = trio()
    admin(
        b"RPUSH", list_names.data_list(spec.session, "alice", "bob", "0123456789abcdef", "t"), b"m"
    )
    admin(b"RPUSH", list_names.hello_list(spec.session, "bob", "alice"), b"m")
    admin(b"RPUSH", list_names.control_list(spec.session, "bob", "alice", "0123456789abcdef"), b"m")
    admin(b"SET", list_names.claim_key(spec.session, "alice"), b"m")
    admin(b"SET", b"of somebody else", b"x")
    before = contents(admin)
    doctor(server.url, "alice", spec)
    after = contents(admin)
    assert {key: after[key] for key in before} == before
    new = after.keys() - before.keys()
    assert new == {list_names.doctor_list(spec.session, peer, "alice") for peer in ("bob", "carol")}
