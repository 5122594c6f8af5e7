"""An operator's view of real servers: what is there, what is refused, and what is removed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from redislink.broker import Broker, EmbeddedBroker
from redislink.errors import BrokerPermissionError, UsageError
from redislink.operate import acl, survey
from redislink.operate.survey import Element, Survey
from redislink.protocol import list_names
from redislink.protocol.frame import Ack, AckState, Data, encode
from tests.support.keyspace import add_foreign_keys, content_of, run

SESSION = "hospitals"
EPOCH = "0123456789abcdef"
_users = itertools.count()


@pytest.fixture
def url(real_server: EmbeddedBroker) -> Iterator[str]:
    run(real_server.url, "FLUSHALL")
    yield real_server.url
    run(real_server.url, "FLUSHALL")


@pytest.fixture
def watching(url: str) -> Iterator[Survey]:
    found = Survey(Broker(url))
    yield found
    found.close()


def user(url: str, *rules: str) -> str:
    """A URL with a new user of these rules."""
    name = f"user{next(_users)}"
    run(url, "ACL", "SETUSER", name, "on", ">pw", "-@all", "+ping", *rules)
    return acl.party_url(url, name, "pw")


def fill(url: str, session: str = SESSION, lists: int = 1) -> list[bytes]:
    """What a session of alice and bob, in which alice runs, may leave; the names."""
    names = [list_names.data_list(session, "bob", "alice", EPOCH, f"t{n}") for n in range(lists)]
    names += [
        list_names.control_list(session, "alice", "bob", EPOCH),
        list_names.hello_list(session, "alice", "bob"),
    ]
    for name in names:
        run(url, "RPUSH", name, b"x" * 100, b"y")
        run(url, "PEXPIRE", name, 50_000)
    for name in (list_names.claim_key(session, "alice"), list_names.status_key(session, "alice")):
        run(url, "SET", name, b"said", "PX", 50_000)
        names.append(name)
    return names


def test_what_is_there(url: str, watching: Survey) -> None:
    names = fill(url)
    others = fill(url, "other")
    foreign = set(add_foreign_keys(url, SESSION, "inbox"))
    found = {key.name: key for key in watching.keys(SESSION)}
    assert set(found) - foreign == set(names)
    every = watching.keys()
    assert {key.name for key in every} - foreign == {*names, *others}
    assert [key.name for key in found.values() if key.is_ours] == [
        name for name in found if name in names
    ]
    data = found[names[0]]
    assert (data.session, data.src, data.dst, data.tag) == (SESSION, "alice", "bob", "t0")
    assert data.depth == 2
    assert data.memory_bytes is not None
    assert data.memory_bytes > 100
    assert data.expires_seconds is not None
    assert 40 < data.expires_seconds <= 50
    assert data.holds_messages
    claim = found[list_names.claim_key(SESSION, "alice")]
    assert claim.is_claim
    assert (claim.value, claim.depth) == (b"said", None)
    assert not watching.refused


def test_many_keys_take_few_round_trips(url: str, watching: Survey) -> None:
    connection = Broker(url).open()
    connection.send([("RPUSH", list_names.data_list(SESSION, "b", "a", EPOCH, f"t{n}"), "x")
                     for n in range(1500)])  # fmt: skip
    for _ in range(1500):
        connection.read(5)
    connection.close()
    found = watching.keys(SESSION)
    assert len(found) == 1500
    assert {key.depth for key in found} == {1}
    run(url, "CONFIG", "RESETSTAT")
    assert watching.remove(SESSION, found) == 1500
    calls = run(url, "INFO", "commandstats").decode().partition("cmdstat_unlink:calls=")[2]
    assert int(calls.partition(",")[0]) == -(-1500 // survey._BATCH)
    assert run(url, "DBSIZE") == 0


def test_elements_without_their_bodies(url: str, watching: Survey) -> None:
    name = list_names.data_list(SESSION, "bob", "alice", EPOCH, "t")
    elements = [
        encode(Data(7, part=1, parts=3, previous=0), b"secret" * 20_000),
        encode(Ack(AckState(3))),
        b"junk",
    ]
    for element in elements:
        run(url, "RPUSH", name, element)
    (key,) = watching.keys(SESSION)
    sizes = [len(element) for element in elements]
    assert list(watching.elements(key, 10)) == [
        Element("DATA", sizes[0], 7, 1, 3),
        Element("ACK", sizes[1]),
        Element("", sizes[2]),
    ]
    assert len(list(watching.elements(key, 2))) == 2
    assert run(url, "LLEN", name) == 3, "nothing was taken"


def test_only_the_sessions_own_keys_are_removed(url: str, watching: Survey) -> None:
    add_foreign_keys(url, SESSION, "inbox")
    fill(url, "other")
    before = content_of(url)
    names = fill(url)
    every = watching.keys()
    for key in every:
        if key.name not in names:
            with pytest.raises(UsageError):
                watching.remove(SESSION, [key])
    mine = [key for key in every if key.name in names]
    assert watching.remove(SESSION, mine) == len(names)
    assert content_of(url) == before
    assert watching.remove(SESSION, mine) == 0


@pytest.mark.parametrize(
    ("missing", "gap"),
    [
        ("LLEN", "depth"),
        ("MEMORY USAGE", "memory_bytes"),
        ("PTTL", "expires_seconds"),
        ("GET", "value"),
    ],
)
def test_a_command_that_is_refused_leaves_a_gap(url: str, missing: str, gap: str) -> None:
    fill(url)
    allowed = {"SCAN", "TYPE", "LLEN", "PTTL", "MEMORY USAGE", "GET"} - {missing}
    rules = [f"+{command.replace(' ', '|').lower()}" for command in allowed]
    watching = Survey(Broker(user(url, "~*", *rules)))
    found = watching.keys(SESSION)
    watching.close()
    assert watching.refused == {missing}
    assert len(found) == 5
    for key in found:
        assert key.is_ours
        assert getattr(key, gap) is None
    assert {"depth", "memory_bytes", "expires_seconds", "value"} - {gap} == {
        name
        for name in ("depth", "memory_bytes", "expires_seconds", "value")
        if any(getattr(key, name) is not None for key in found)
    }


def test_without_scan_there_is_nothing_to_see(url: str) -> None:
    fill(url)
    watching = Survey(Broker(user(url, "~*", "+get")))
    with pytest.raises(BrokerPermissionError, match=r"may not run SCAN: .* acl --operator"):
        watching.keys(SESSION)
    claims = [list_names.claim_key(SESSION, name) for name in ("alice", "bob")]
    assert watching.values(claims) == [b"said", None]
    watching.close()


def test_without_unlink_del_removes(url: str) -> None:
    fill(url)
    allowed = ("~*", "+scan", "+type", "+llen", "+pttl", "+memory|usage", "+get")
    watching = Survey(Broker(user(url, *allowed, "+del")))
    assert watching.remove(SESSION, watching.keys(SESSION)) == 5
    watching.close()
    fill(url)
    watching = Survey(Broker(user(url, *allowed)))
    with pytest.raises(BrokerPermissionError, match="may not run UNLINK or DEL"):
        watching.remove(SESSION, watching.keys(SESSION))
    with pytest.raises(BrokerPermissionError, match="may not run LINDEX: leave --frames out"):
        list(watching.elements(watching.keys(SESSION)[0], 1))
    watching.close()


def test_the_operators_user_is_enough(url: str) -> None:
    fill(url, "other")
    before = content_of(url)
    fill(url)
    operator = acl.operator_user(SESSION, ("alice", "bob"), "watcher")
    acl.apply_users(Broker(url), [operator], {"watcher": "pw"})
    watching = Survey(Broker(acl.party_url(url, operator.name, "pw")))
    found = watching.keys(SESSION)
    assert not watching.refused
    assert all(key.is_ours for key in found)
    assert watching.remove(SESSION, found) == len(found) == 5
    assert content_of(url) == before
    others = watching.keys()
    assert {key.session for key in others} == {"other"}, "their names, and nothing more"
    assert {(k.kind, k.depth, k.memory_bytes, k.value) for k in others} == {("", None, None, None)}
    assert watching.refused == {"TYPE", "LLEN", "PTTL", "MEMORY USAGE", "GET"}
    with pytest.raises(UsageError):
        watching.remove("other", others)
    watching.close()
