"""``redislink sessions``, ``inspect``, ``purge``: seen, asked, removed; other keys untouched."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from redislink import ClusterSpec, Endpoint
from redislink.broker import Broker, EmbeddedBroker
from redislink.operate import acl
from redislink.protocol import list_names
from redislink.protocol.frame import Data, encode
from tests.cli.conftest import Call
from tests.conftest import join, make_cluster, run_parties
from tests.support.keyspace import add_foreign_keys, content_of, run

EPOCH = "0123456789abcdef"
SECRET = b"a secret in the clear"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(password=secrets.token_urlsafe(16)) as broker:
        yield broker


@pytest.fixture
def url(server: EmbeddedBroker) -> str:
    run(server.url, "FLUSHALL")
    return server.url


def leave(url: str, session: str, *, live: bool = False) -> list[bytes]:
    """What a session of alice and bob leaves when it dies; the names of its keys."""
    data = list_names.data_list(session, "bob", "alice", EPOCH, "tag:1")
    run(url, "RPUSH", data, encode(Data(1), SECRET), encode(Data(2), SECRET))
    names = [data, list_names.hello_list(session, "alice", "bob")]
    run(url, "RPUSH", names[1], b"hello")
    for name in names:
        run(url, "PEXPIRE", name, 600_000)
    if live:
        names.append(list_names.claim_key(session, "bob"))
        run(url, "SET", names[-1], EPOCH, "PX", 600_000)
    return names


def test_sessions(call: Call, url: str) -> None:
    leave(url, "dead")
    leave(url, "alive", live=True)
    add_foreign_keys(url, "dead", "inbox")
    code, out, err = call("sessions", "--broker", url, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [s["name"] for s in found["sessions"]][:2] == ["alive", "dead"]
    alive, dead = found["sessions"][:2]
    assert (alive["up"], dead["up"]) == (["bob"], [])
    assert dead["parties"] == ["alice", "bob"], "not the inbox of the foreign keys"
    assert (dead["lists"], dead["messages"]) == (1, 2)
    assert 590 < dead["expires_seconds"] <= 600
    code, out, err = call("sessions", "--broker", url)
    assert (code, err) == (0, "")
    assert "alice, bob" in out
    assert "nobody" in out


def test_inspect(call: Call, url: str) -> None:
    leave(url, "s", live=True)
    leave(url, "sX")
    code, out, err = call("inspect", "s", "--broker", url, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert {(k["src"], k["dst"], k["tag"], k["depth"]) for k in found["keys"]} == {
        ("alice", "bob", "tag:1", 2),
        ("bob", "alice", "!hello", 1),
        ("bob", "bob", "!claim", None),
    }
    assert "elements" not in found["keys"][0]
    code, out, err = call("inspect", "s", "--broker", url, "--pair", "alice:bob", "--frames")
    assert (code, err) == (0, "")
    assert "alice → bob" in out
    assert "bob → alice" not in out
    assert f"0: DATA, {len(encode(Data(1), SECRET))} B, number 1" in out
    assert "1 keys, 2 messages" in out
    assert SECRET.decode() not in out
    assert run(url, "LLEN", list_names.data_list("s", "bob", "alice", EPOCH, "tag:1")) == 2


@pytest.mark.parametrize("option", [(), ("--json",), ("--frames",)])
def test_inspect_of_what_is_not_there(call: Call, url: str, option: tuple[str, ...]) -> None:
    where = ("--broker", url, *option)
    code, out, err = call("inspect", "s", *where)
    assert (code, out) == (2, "")
    assert "so no party runs it there" in err
    assert "check the broker and its database" in err
    for name in ("s2", "other", "sX"):
        leave(url, name)
    add_foreign_keys(url, "zzz", "inbox")
    _, _, err = call("inspect", "s", *where)
    assert ", s2, sX" in err
    code, out, err = call("inspect", "s2", "--pair", "alice:carol", *where)
    assert (code, out) == (2, "")
    assert "nothing goes from alice to carol: it has alice:bob, bob:alice" in err


def test_what_is_not_ours_is_marked(call: Call, url: str) -> None:
    run(url, "HSET", "rl:{s:bob}:alice:0:t", "f", "x")
    code, out, _ = call("inspect", "s", "--broker", url)
    assert code == 0
    assert "t (not redislink's: a hash)" in out


def test_purge_leaves_every_other_key_as_it_was(call: Call, url: str) -> None:
    add_foreign_keys(url, "s", "inbox")
    leave(url, "other")
    before = content_of(url)
    names = leave(url, "s")
    code, out, err = call("purge", "s", "--yes", "--broker", url)
    assert code == 0, err
    assert "keys that are not redislink's" in err
    assert f"session s: removed {len(names)} keys" in err
    assert content_of(url) == before
    code, out, err = call("purge", "s", "--yes", "--broker", url)
    assert (code, out) == (0, "")
    assert "nothing to remove" in err
    assert content_of(url) == before


def test_it_asks_first(call: Call, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = leave(url, "s")
    for answer, code in (("n", 130), ("", 130), ("y", 0)):
        monkeypatch.setattr("typer.confirm", lambda *_, answer=answer, **__: answer == "y")
        assert run(url, "EXISTS", *names) == len(names)
        found, out, err = call("purge", "s", "--broker", url)
        assert found == code, err
        assert "to remove from redis://" in out
    assert run(url, "EXISTS", *names) == 0


def test_without_anybody_to_ask_nothing_is_removed(url: str, tmp_path: Path) -> None:
    names = leave(url, "s")
    ended = subprocess.run(
        [sys.executable, "-m", "redislink", "purge", "s", "--broker", url],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 130
    assert "Remove all of session s? [y/N]" in ended.stderr
    assert run(url, "EXISTS", *names) == len(names)


def test_a_session_that_runs_is_left_alone(call: Call, url: str) -> None:
    names = leave(url, "s", live=True)
    for words in (["--yes"], []):
        code, out, err = call("purge", "s", *words, "--broker", url)
        assert (code, out) == (4, "")
        assert "session 's' is run by bob: end them first" in err
    assert run(url, "EXISTS", *names) == len(names)
    code, _, err = call("purge", "s", "--yes", "--force", "--broker", url)
    assert code == 0, err
    assert run(url, "EXISTS", *names) == 0


def test_a_party_that_comes_while_the_question_stands(
    call: Call, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = leave(url, "s")

    def join_and_agree(*_: Any, **__: Any) -> bool:
        leave(url, "s", live=True)
        return True

    monkeypatch.setattr("typer.confirm", join_and_agree)
    code, _, err = call("purge", "s", "--broker", url)
    assert code == 4, err
    assert run(url, "EXISTS", *names) == len(names)


def test_every_session_that_nobody_runs(call: Call, url: str) -> None:
    add_foreign_keys(url, "s1", "inbox")
    kept = leave(url, "alive", live=True)
    before = content_of(url)
    leave(url, "s1")
    leave(url, "s2")
    # Of the look-alikes of `add_foreign_keys` some are sessions of their own, by name and type.
    alike = {b"rl:{other:bob}:alice:0:!hello", b"rl:{other:bob}:a:0:t", b"rl:{xs1:bob}:alice:0:t",
             b"rl:{s1X:bob}:alice:0:!hello", b"rl:{s1X:bob}:alice:0123456789abcdef:t"}  # fmt: skip
    code, _, err = call("purge", "--expired", "--yes", "--broker", url)
    assert code == 0, err
    assert {"session s1: removed 2 keys", "session s2: removed 2 keys"} <= {
        line.removeprefix("redislink: ") for line in err.splitlines()
    }
    after = content_of(url)
    assert after == {name: value for name, value in before.items() if name not in alike}
    assert set(kept) <= set(after)


def test_the_operators_user_is_enough_and_others_are_told(call: Call, url: str) -> None:
    names = leave(url, "s")
    operator = acl.operator_user("s", ("alice", "bob"), "watcher")
    acl.apply_users(Broker(url), [operator], {"watcher": "pw"})
    mine = acl.party_url(url, operator.name, "pw")
    party = acl.party_users("s", ("alice", "bob"))[:1]
    acl.apply_users(Broker(url), party, {"alice": "pw"})
    theirs = acl.party_url(url, party[0].name, "pw")
    for words in (["sessions"], ["inspect", "s"], ["purge", "s", "--yes"]):
        code, out, err = call(*words, "--broker", theirs)
        assert (code, out) == (3, "")
        assert "this user may not run SCAN: come as an admin" in err
    code, out, err = call("inspect", "s", "--frames", "--broker", mine)
    assert (code, out) == (3, "")
    assert "may not run LINDEX: leave --frames out" in err
    leave(url, "other")
    code, out, err = call("sessions", "--broker", mine)
    assert code == 0
    assert "other" in out
    assert "may not run" in err
    code, out, err = call("purge", "other", "--yes", "--broker", mine)
    assert (code, out) == (3, "")
    assert "may not run TYPE" in err
    assert call("purge", "s", "--yes", "--broker", mine)[0] == 0
    assert run(url, "EXISTS", *names) == 0


def test_wrong_use(call: Call, url: str) -> None:
    for words, said in (
        (["purge"], "give the name of a SESSION, or --expired"),
        (["purge", "s", "--expired"], "give the name of a SESSION, or --expired"),
        (["purge", "s*", "--yes"], "session name 's*' is not valid"),
        (["inspect", "{s}"], "is not valid"),
        (["inspect", "s", "--pair", "alice"], "write SRC:DST"),
        (["inspect", "s", "--pair", "alice:b*b"], "is not valid"),
        (["inspect"], "SESSION"),
    ):
        code, out, err = call(*words, "--broker", url)
        assert (code, out) == (2, ""), words
        assert said in err
    for words in (["sessions"], ["inspect", "s"], ["purge", "s"]):
        code, out, err = call(*words)
        assert (code, out) == (2, "")
        assert "no broker: set REDISLINK_BROKER_URL" in err


@pytest.mark.slow
def test_purge_after_a_real_session(call: Call, url: str) -> None:
    """Of which an earlier run left something; another goes on in the same database."""
    add_foreign_keys(url, "foreign", "inbox")
    foreign = content_of(url)
    with contextlib.ExitStack() as whatever_happens:
        going_on = join(make_cluster(url, 2))
        for endpoint in going_on:
            whatever_happens.callback(endpoint.close)
        purge_beside(going_on, call, url)
        run_parties(*(endpoint.close for endpoint in going_on))
    call("purge", going_on[0].session, "--yes", "--broker", url)
    assert content_of(url) == foreign


def purge_beside(going_on: list[Endpoint], call: Call, url: str) -> None:
    alice, _ = dead = join(cluster := make_cluster(url, 2))
    alice.send("bob", "unread", bytes(100_000))
    alice.flush()
    code, _, err = call("purge", cluster.session, "--yes", "--broker", url)
    assert code == 4, "it runs"
    run_parties(*(lambda e=e: e.abort("over") for e in dead))
    # Maybe an abort too, that came when its receiver had cleared up already.
    assert set(leave(url, cluster.session)) <= set(left_of(url, cluster))
    code, _, err = call("purge", cluster.session, "--yes", "--broker", url)
    assert code == 0, err
    assert not left_of(url, cluster)
    going_on[0].send("bob", "t", b"x")
    assert going_on[1].recv("alice", "t") == b"x"


def left_of(url: str, cluster: ClusterSpec) -> list[bytes]:
    prefix = list_names.session_prefix(cluster.session)
    return [name for name in content_of(url) if name.startswith(prefix)]


DYING = """
import sys
from redislink.transport import core
from redislink.transport import rendezvous
from redislink.transport import claim
from tests.conftest import join, make_cluster

# So that the test need not wait for an hour; nothing shortens one key's life alone.
core._CONTROL_TTL = rendezvous.HELLO_TTL = 1
claim._LEASE_MS, claim._RENEW_SECONDS = 1000, 0.2
from redislink.broker import outbox
_init = outbox.Outbox.__init__
outbox.Outbox.__init__ = lambda self, broker, ttl, *rest: _init(self, broker, 1, *rest)

cluster = make_cluster(sys.argv[1], 2, session="dying")
alice, bob = join(cluster)
alice.send("bob", "unread", bytes(100_000))
bob.send("alice", "unread", bytes(10))
alice.flush()
bob.flush()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_an_expired_session_leaves_every_other_key_as_it_was(url: str) -> None:
    """Killed, with all it had on the broker; every key of it goes by itself."""
    foreign = add_foreign_keys(url, "dying", "inbox")
    before = content_of(url)
    run(url, "CONFIG", "SET", "notify-keyspace-events", "Eg$x")  # of SET, DEL and expiry
    root = Path(__file__).parents[2]
    with (
        redis.Redis.from_url(url).pubsub(ignore_subscribe_messages=True) as news,
        subprocess.Popen(
            [sys.executable, "-c", DYING, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        ) as party,
    ):
        news.psubscribe("__keyevent@*")
        news.get_message(timeout=10)  # that it is subscribed
        try:
            assert party.stdout is not None
            assert party.stdout.readline() == "ready\n"
            missing = {list_names.status_key("dying", n) for n in ("alice", "bob")}
            give_up = time.monotonic() + 60
            while missing:
                missing.discard(next_key(news))
                assert time.monotonic() < give_up, missing
        finally:
            party.send_signal(signal.SIGKILL)
        left = set(content_of(url)) - set(foreign)
        assert {list_names.claim_key("dying", n) for n in ("alice", "bob")} <= left
        assert {list_names.status_key("dying", n) for n in ("alice", "bob")} <= left
        assert any(not list_names.parse_list_untrusted(name)[-1].startswith("!") for name in left)
        give_up = time.monotonic() + 60
        while content_of(url) != before:
            next_key(news)
            assert time.monotonic() < give_up, "somebody else is at work here"


def next_key(news: redis.client.PubSub) -> bytes:
    """The next one that something happens to."""
    told = news.get_message(timeout=10)
    assert told is not None, "all is as it will stay"
    return bytes(told["data"])
