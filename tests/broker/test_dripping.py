"""Replies that are too long, or never whole: whatever reads one gives it up, in time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import pytest

from redislink.broker import Broker, EmbeddedBroker, Inbox
from redislink.errors import BrokerError, BrokerRefused, BrokerUnreachable, RecvTimeout
from redislink.operate.survey import Survey
from redislink.protocol import list_names
from tests.conftest import connect_as, in_thread, make_cluster, quick_settings, run_parties
from tests.support.dripping import Dripping, DripProxy

ENDLESS = {
    "an array of what it likes": (b"*536870912\r\n", b"$-1\r\n" * 4096),
    "arrays in an array": (b"*1000\r\n", (b"*1000\r\n" + b":1\r\n" * 1000) * 400),
    "strings in an array": (b"*2\r\n", b"$268435456\r\n" + b"x" * 65536),
    "a line": (b"-ERR ", b"x" * 65536),
}
SLOW = {
    "a line": (b"-ERR ", b"x"),
    "a string": (b"$1000\r\n", b"x"),
    "an array": (b"*100\r\n", b":1\r\n"),
}
SECONDS = 0.4
"""Long enough that a machine which is busy does not make a single read late."""


def ask(url: str) -> None:
    with contextlib.closing(Broker(url, timeout=SECONDS).open()) as connection:
        connection.execute(b"LLEN", b"x", timeout=SECONDS)


def pop(url: str) -> None:
    Inbox(Broker(url, timeout=SECONDS)).acquire().pop([b"x"], SECONDS)


def look(url: str) -> None:
    with contextlib.closing(Survey(Broker(url, timeout=SECONDS))) as survey:
        survey.keys()


READERS: dict[str, tuple[str, Callable[[str], None]]] = {
    "a command": ("redis://127.0.0.1:{}", ask),
    "the login": ("redis://user:pw@127.0.0.1:{}", ask),
    "the choice of a database": ("redis://127.0.0.1:{}/3", ask),
    "a pop": ("redis://127.0.0.1:{}", pop),
    "an operator": ("redis://127.0.0.1:{}", look),
    "a sentinel": ("redis+sentinel://127.0.0.1:{}/relay", ask),
    "a Cluster's node": ("redis+cluster://127.0.0.1:{}", ask),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", ENDLESS)
def test_an_endless_reply_is_given_up(reader: str, what: str) -> None:
    url, read = READERS[reader]
    with (
        Dripping(*ENDLESS[what]) as server,
        pytest.raises((BrokerUnreachable, BrokerRefused), match="check that it"),
    ):
        read(url.format(server.port))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", SLOW)
def test_a_reply_that_drips_is_given_up(reader: str, what: str) -> None:
    """Each byte comes long before the timeout of a single read."""
    url, read = READERS[reader]
    with (
        Dripping(*SLOW[what], pause=SECONDS / 40) as server,
        pytest.raises(BrokerUnreachable, match="too slowly"),
    ):
        read(url.format(server.port))


def test_an_operator_takes_in_no_more_keys_than_there_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("redislink.operate.survey._MOST_KEYS", 1000)
    endless = (list_names.hello_list("s", f"p{number}", "q") for number in itertools.count())
    monkeypatch.setattr(Survey, "_scan", lambda *_: endless)
    with (
        contextlib.closing(Survey(Broker("fakeredis://without-an-end"))) as survey,
        pytest.raises(BrokerRefused, match="more than 1000 keys"),
    ):
        survey.keys()


WAYS = {
    "an array without an end": (b"*536870912\r\n", b"$-1\r\n", 0.05),
    "an element of 400 MB, fast enough": (b"", b"x" * 4096, 0.05),
    "a line without an end": (b"+", b"x", 0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_broker_that_drips_holds_no_call_up(valkey: EmbeddedBroker, way: str) -> None:
    """Receive, send, abort: each ends when its own timeout says, and the process with them."""
    begins, drips, pause = WAYS[way]
    limits = {
        "reply_timeout": 0.3,
        "broker_timeout": 1,
        "peer_timeout": 5,
        "close_timeout": 0.5,
        "blpop_timeout": 0.3,
    }
    with DripProxy(valkey.port) as proxy:
        cluster = make_cluster(valkey.url, 2)
        alice, bob = run_parties(
            lambda: connect_as(cluster, "alice", quick_settings(broker_url=proxy.url, **limits)),
            lambda: connect_as(cluster, "bob", quick_settings(**limits)),
        )
        bob.send("alice", "a", b"1")
        assert alice.recv("bob", "a") == b"1"
        if not begins:
            name = alice.parts.core.peers["bob"].in_prefix + list_names.encode_tag("t")
            begins = b"*2\r\n$%d\r\n%b\r\n$400000000\r\n" % (len(name), name)
        receiving, received = in_thread(lambda: alice.recv("bob", "t", timeout=0.5))
        proxy.drip(begins, drips, pause)
        receiving.join(10)
        assert isinstance(received[0], RecvTimeout | BrokerError)
        sending, _ = in_thread(lambda: [alice.send("bob", f"s{n}", bytes(200)) for n in range(99)])
        sending.join(10)
        leaving, left = in_thread(lambda: alice.abort("leaving"))
        leaving.join(10)
        assert left == [None]
        assert not sending.is_alive()
        bob.abort("done")
