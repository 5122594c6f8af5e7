"""Mailboxes over real servers: letters that wait, lists that stay short, brokers that are away."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from redislink.broker import Broker, EmbeddedBroker
from redislink.cluster import ClusterSpec
from redislink.errors import BrokerUnreachable
from redislink.identity import Identity, format_public_key
from redislink.jobs import mailbox as mailboxes
from redislink.jobs.machine import Letter
from redislink.jobs.mailbox import Mailbox, agent_sources, driver_sources, open_mailbox
from redislink.protocol.list_names import ANSWERS_TAG, JOBS_TAG, OFFERS_TAG, letter_list
from redislink.settings import RedisLinkSettings
from tests.support.waiting import wait_until

NAMES = ("alice", "bob")
KEYS = {name: Identity.generate() for name in (*NAMES, "dora")}


def a_spec(session: str) -> ClusterSpec:
    keys = {name: format_public_key(key.public_key) for name, key in KEYS.items()}
    return ClusterSpec.parse(
        {
            "session": session,
            "parties": [{"name": name, "public_key": keys[name]} for name in NAMES],
            "drivers": [{"name": "dora", "public_key": keys["dora"]}],
        }
    )


def opened(me: str, *urls: str, session: str = "post") -> Mailbox:
    sources = driver_sources(NAMES) if me == "dora" else agent_sources(me, NAMES, ("dora",))
    return open_mailbox(
        a_spec(session), me, KEYS[me], RedisLinkSettings.load(), sources=sources,
        brokers=[Broker(url, timeout=2.0) for url in urls],
    )  # fmt: skip


def to(dst: str, body: Any, tag: str = OFFERS_TAG) -> Letter:
    return Letter(dst, tag, body, time.time() + 60)


def taken(mailbox: Mailbox, count: int) -> list[Any]:
    found: list[Any] = []
    wait_until(lambda: found.extend(mailbox.take(0.05)) or len(found) >= count, 20)
    return found


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.url


def run(url: str, *command: Any) -> Any:
    connection = Broker(url).open()
    try:
        return connection.execute(*command, timeout=5)
    finally:
        connection.close()


def test_letters_wait_until_their_receiver_is_there(url: str) -> None:
    with opened("dora", url) as dora:
        assert dora.send(to("alice", {"n": 1}), time.time()) is None
        assert dora.send(to("alice", {"n": 2}), time.time()) is None
        name = letter_list("post", "alice", "dora", OFFERS_TAG)
        assert run(url, "LLEN", name) == 2
        assert 50_000 < run(url, "PTTL", name) <= 60_000
        with opened("alice", url) as alice:
            first, second = taken(alice, 2)
            assert (first.src, first.tag, first.body, second.body) == (
                "dora", OFFERS_TAG, {"n": 1}, {"n": 2},
            )  # fmt: skip
            assert alice.send(to("dora", "answer", ANSWERS_TAG), time.time()) is None
            assert alice.send(to("alice", "to myself"), time.time()) is None
            assert taken(dora, 1)[0].body == "answer"
            assert taken(alice, 1)[0].src == "alice"
        dora.close()


def test_a_list_that_nobody_reads_stays_short(url: str) -> None:
    with opened("dora", url, session="short") as dora:
        for number in range(40):
            dora.send(to("alice", number), time.time())
        name = letter_list("short", "alice", "dora", OFFERS_TAG)
        assert run(url, "LLEN", name) <= mailboxes.MOST_LETTERS
        with opened("alice", url, session="short") as alice:
            wait_until(lambda: [each.body for each in alice.take(0.05)][-1:] == [39], 20)


def test_what_does_not_open_is_dropped_and_said_now_and_then(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = letter_list("forged", "alice", "bob", JOBS_TAG)
    with caplog.at_level(logging.WARNING, "redislink"), opened("alice", url, session="forged") as a:
        for _ in range(5):
            run(url, "RPUSH", name, b"x" * 200)
        wait_until(lambda: a.unopened["bob"] == 5, 20)
        with opened("bob", url, session="forged") as bob:
            bob.send(to("alice", "genuine", JOBS_TAG), time.time())
        assert taken(a, 1)[0].body == "genuine"
    assert sum("is dropped" in record.message for record in caplog.records) == 3


def test_one_sender_cannot_keep_others_waiting(url: str) -> None:
    with opened("alice", url, session="turns") as alice:
        (taker,) = alice._takers
        first = list(taker._names)
        with opened("dora", url, session="turns") as dora:
            dora.send(to("alice", 1), time.time())
            taken(alice, 1)
        assert taker._names[-1] == letter_list("turns", "alice", "dora", OFFERS_TAG)
        assert sorted(taker._names) == sorted(first)


def test_a_broker_that_is_away_is_tried_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailboxes, "_FIRST_PAUSE", 0.05)
    server = EmbeddedBroker()
    server.__enter__()
    url, port = server.url, int(server.url.rpartition(":")[2].split("/")[0])
    with opened("alice", url) as alice, opened("dora", url) as dora:
        dora.send(to("alice", "before"), time.time())
        assert taken(alice, 1)[0].body == "before"
        server.__exit__(None, None, None)
        wait_until(lambda: bool(alice.problems), 20)
        assert isinstance(dora.send(to("alice", "lost"), time.time()), BrokerUnreachable)
        with EmbeddedBroker(port=port):
            wait_until(lambda: dora.send(to("alice", "after"), time.time()) is None, 20)
            assert taken(alice, 1)[-1].body == "after"
            wait_until(lambda: not alice.problems, 20)


def test_one_of_two_brokers_is_enough(url: str) -> None:
    with EmbeddedBroker() as second, opened("alice", url, second.url, session="two") as alice:
        with opened("dora", "redis://127.0.0.1:1", second.url, session="two") as dora:
            assert dora.send(to("alice", "one way"), time.time()) is None
            assert taken(alice, 1)[0].body == "one way"
            wait_until(lambda: len(dora.problems) == 1, 20)
            assert not alice.problems
        with opened("dora", url, second.url, session="two") as dora:
            dora.send(to("alice", "twice"), time.time())
            assert [each.body for each in taken(alice, 2)] == ["twice", "twice"]


def test_an_idle_mailbox_costs_one_connection_and_next_to_no_commands(url: str) -> None:
    clock = [0.0]
    with opened("alice", url, session="idle") as alice:
        for pusher in alice._pushers:
            pusher._clock = lambda: clock[0]
        alice.send(to("dora", "x", ANSWERS_TAG), time.time())
        assert alice._pushers[0]._connections
        clock[0] = 31.0
        alice.take(0)
        assert not alice._pushers[0]._connections


def test_wake_ends_a_take(url: str) -> None:
    with opened("alice", url, session="wake") as alice:
        alice.wake()
        assert alice.take(600) == []
        alice.close()
