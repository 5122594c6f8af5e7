"""The doctor on what the broker's user may do, on servers of both makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from redislink import ClusterSpec
from redislink.broker import EmbeddedBroker
from redislink.operate.doctor import Level
from redislink.protocol import list_names
from tests.conftest import make_cluster
from tests.operate.doctor.conftest import Ask, Configure, contents
from tests.support.servers import Admin

Users = Callable[..., dict[str, str]]


def trio() -> ClusterSpec:
    return make_cluster("", 3, broker=None)


def test_a_partys_user_has_what_it_needs_and_no_more(
    doctor: Ask, users: Users, admin: Admin
) -> None:
    spec = trio()
    urls = users(spec)
    before = contents(admin)
    for party, url in urls.items():
        told = doctor(url, party, spec)
        worse = {f.name for f in told.report.findings if f.level in (Level.WARN, Level.FAIL)}
        assert worse == {"protocols"}, "of which no user's rights are the reason"
        assert told.not_tried == {}
        told.check("login", Level.PASS, f"as user {spec.session}~{party}")
        told.check("commands", Level.PASS, "PING, RPUSH, PEXPIRE, DEL, BLPOP, LPOP, GET, PTTL, SET")
        told.check("own lists", Level.PASS, f"can push as {party} to ")
        told.check("other parties' lists", Level.PASS, "cannot push as another party, or pop")
        for name, permission in {
            "version": "INFO",
            "eviction": "INFO",
            "memory": "INFO",
            "idle cut-off": "CONFIG GET",
            "clock": "TIME",
        }.items():
            told.check(name, Level.SKIP, f"not allowed to look (permission missing: {permission})")
        told.check("largest element", Level.PASS, "accepted")
        told.check("bandwidth", Level.PASS)
        assert set(told.report.skipped) >= {"version", "eviction", "memory", "clock"}
        assert told.report.counts[Level.SKIP] == len(told.report.skipped)
    left = contents(admin).keys() - before.keys()
    names = spec.party_names
    notes = {list_names.doctor_list(spec.session, a, b) for a in names for b in names if a != b}
    assert left <= notes, "nothing but notes for the peers' doctors"
    assert all(0 < admin(b"PTTL", key) <= 600_000 for key in left)


COMMANDS = {
    "PING": "on no key",
    "RPUSH": "on lists to peers",
    "PEXPIRE": "on lists to peers",
    "BLPOP": "on lists of its own inbox",
    "LPOP": "on lists of its own inbox",
    "SET": "on its own claim",
    "GET": "on its own claim",
    "PTTL": "on its own claim",
}


def test_each_command_that_is_missing_is_named(
    doctor: Ask, users: Users, admin: Admin, server: EmbeddedBroker
) -> None:
    spec = trio()
    url = users(spec)["alice"]
    name = f"{spec.session}~alice".encode()
    claim = list_names.claim_key(spec.session, "alice").decode()
    inbox = list_names.party_prefix(spec.session, "alice").decode()
    out = [
        f"%W~{list_names.sender_prefix(spec.session, p, 'alice').decode()}*"
        for p in ("bob", "carol")
    ]
    root = {"ping": "+ping", "rpush": "+rpush", "pexpire": "+pexpire", "del": "+del"}
    for missing, where in COMMANDS.items():
        less = missing.lower()
        admin(
            *(
                b"ACL",
                b"SETUSER",
                name,
                b"clearselectors",
                b"resetchannels",
                b"resetkeys",
                b"-@all",
            ),
            *(rule.encode() for rule in out),
            *(rule.encode() for command, rule in root.items() if command != less),
            _selector(f"%RW~{inbox}*", {"blpop", "lpop", "del"} - {less}),
            _selector(f"%RW~{claim}", {"set", "get", "pttl", "pexpire", "del"} - {less}),
        )
        finding = doctor(url, "alice", spec).check("commands", Level.FAIL, f"{missing} {where}")
        assert "permission missing for the " in finding.text
        assert f"as an admin, ACL SETUSER {name.decode()} " in finding.remedy
        # What it says to do is what helps, together with what is there.
        rules = finding.remedy.partition(f"{name.decode()} ")[2].partition("; or")[0]
        admin(b"ACL", b"SETUSER", name, *_rules(rules))
        doctor(url, "alice", spec).check("commands", Level.PASS)


def _selector(pattern: str, commands: set[str]) -> bytes:
    return f"({pattern} {' '.join(f'+{c}' for c in sorted(commands))})".encode()


def _rules(text: str) -> list[bytes]:
    """Split at spaces outside brackets, as a shell would split what is in quotes."""
    found, depth, word = [], 0, ""
    for character in text + " ":
        depth += (character == "(") - (character == ")")
        if character == " " and depth == 0:
            found.append(word.encode())
            word = ""
        else:
            word += character
    return found


def test_a_command_that_the_broker_does_not_have(doctor: Ask) -> None:
    with EmbeddedBroker(options={"rename-command": 'LPOP ""'}) as server:
        told = doctor(server.url)
    told.check(
        *("commands", Level.FAIL, "LPOP on lists of its own inbox (this broker does not have it)"),
        "use a broker, or a plan of the service, that has these commands",
    )


def test_the_user_of_another_party(doctor: Ask, users: Users) -> None:
    spec = trio()
    told = doctor(users(spec)["bob"], "alice", spec)
    told.check(
        *("login", Level.FAIL, "as user", "~bob, which is bob's, but this is alice"),
        "set REDISLINK_BROKER_URL, and REDISLINK_BROKER_PASSWORD_FILE if it is used, to alice's",
    )
    assert "ACL SETUSER" not in str(told.report), "that would let bob push as alice"


def test_no_users_per_party(server: EmbeddedBroker, doctor: Ask, admin: Admin) -> None:
    before = contents(admin)
    told = doctor(server.url, spec=(spec := trio()))
    told.check(
        *("other parties' lists", Level.WARN, "user default can push as carol to bob"),
        *("the broker has no users per party", "redislink acl --cluster FILE --apply redis:"),
    )
    assert told.report.blame is None
    new = contents(admin).keys() - before.keys()
    assert new == {list_names.doctor_list(spec.session, peer, "alice") for peer in ("bob", "carol")}
    pair = doctor(server.url, size=2)
    pair.check("other parties' lists", Level.WARN, "push as bob to alice", "pop bob's inbox")


@pytest.mark.parametrize("held", [True, False])
def test_the_claim_is_left_as_it_is(
    server: EmbeddedBroker, doctor: Ask, admin: Admin, held: bool
) -> None:
    spec = trio()
    claim = list_names.claim_key(spec.session, "alice")
    if held:
        admin(b"SET", claim, b"0123456789abcdef", b"PX", 6000)
    told = doctor(server.url, spec=spec)
    told.check("commands", Level.PASS)
    words = ("running: alice", "alice is already running") if held else ("running: nobody",)
    told.check("who is there", Level.PASS, *words)
    assert admin(b"GET", claim) == (b"0123456789abcdef" if held else None)
    assert admin(b"PTTL", claim) <= 6000


def test_elements_that_are_too_large(
    server: EmbeddedBroker, doctor: Ask, configure: Configure, users: Users
) -> None:
    spec = trio()
    url = users(spec)["alice"]
    configure(proto_max_bulk_len=1 << 20)
    told = doctor(server.url, spec=spec, chunk_bytes=1 << 20)
    told.check(
        *("largest element", Level.FAIL, "proto-max-bulk-len is 1.0 MiB (1048576 bytes)"),
        *("chunks of 1048576 bytes", "raise the broker's proto-max-bulk-len"),
        "lower REDISLINK_CHUNK_BYTES",
    )
    # One that may not look tries, and sees its connection end.
    told = doctor(url, "alice", spec, chunk_bytes=1 << 20)
    told.check("largest element", Level.FAIL, "an element of 1.0 MiB", "REDISLINK_CHUNK_BYTES")
    told = doctor(url, "alice", spec, chunk_bytes=64 << 10)
    told.check("largest element", Level.PASS, "0.1 MiB")
    configure(proto_max_bulk_len=512 << 20)
    told = doctor(url, "alice", spec, chunk_bytes=64 << 20)
    told.check("largest element", Level.PASS, "the most that a session pushes at once")
