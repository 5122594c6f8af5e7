"""Who a log record is of, how it looks as JSON, and what it must never hold."""

from __future__ import annotations

import base64
import io
import json
import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest

from redislink import Endpoint, RedisLinkError
from redislink.broker import EmbeddedBroker
from redislink.logs import JsonFormatter, PartyLogger
from tests.conftest import IDENTITIES, connect_as, join, make_cluster, quick_settings, run_parties
from tests.security.hostile_broker import CHANGES, FORGERIES, Attacker
from tests.security.hostile_proxy import HostileProxy

Lines = list[dict[str, Any]]


class Log(logging.StreamHandler[io.StringIO]):
    """Everything that the package logs, as JSON."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.setFormatter(JsonFormatter())

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> Lines:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def log() -> Iterator[Log]:
    logger, handler = logging.getLogger("redislink"), Log()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_record_says_whose_it_is(log: Log) -> None:
    mine = PartyLogger("s", "alice")
    mine.warning("about %s", "bob", extra={"peer": "bob"})
    mine.info("about nobody")
    logging.getLogger("redislink").info("of no party")
    assert [(line["session"], line["party"], line["peer"]) for line in log.lines] == [
        ("s", "alice", "bob"),
        ("s", "alice", None),
        (None, None, None),
    ]
    first = log.lines[0]
    assert (first["level"], first["logger"], first["message"]) == (
        "WARNING", "redislink", "about bob",
    )  # fmt: skip
    assert first["time"].endswith("Z")


def test_one_record_is_one_line_whatever_it_holds(log: Log) -> None:
    try:
        raise ValueError("x\ny")
    except ValueError:
        PartyLogger("s", "a").exception("\n{}\x1b[31m\u2028 \udc80 %s", {"a": object})
    (line,) = log.text.splitlines()
    assert line.isascii()
    assert line.isprintable()
    entry = json.loads(line)
    assert "ValueError: x\ny" in entry["exception"]
    assert set(entry) == {
        "time", "level", "logger", "message", "session", "party", "peer", "exception",
    }  # fmt: skip


def test_every_record_of_a_run_has_session_and_party(log: Log) -> None:
    cluster = make_cluster("fakeredis://logged", 2, security="none")
    alice, bob = join(cluster, close_timeout=0.2)
    alice.send("bob", "left", b"")
    alice.close()
    bob.close()
    for line in log.lines:
        assert line["session"] == cluster.session
        assert line["party"] in ("alice", "bob")
    (left,) = (line for line in log.lines if "closed without" in line["message"])
    assert (left["party"], left["peer"]) == ("alice", "bob")
    assert sum("security none" in line["message"] for line in log.lines) == 2


@pytest.mark.slow
def test_a_hostile_run_logs_no_payload_no_key_and_no_password(log: Log) -> None:
    rng = random.Random(7)
    password = "pass-" + rng.randbytes(12).hex()
    payloads = [rng.randbytes(40).hex().encode() + rng.randbytes(60) for _ in range(20)]
    with (
        EmbeddedBroker(password=password) as broker,
        HostileProxy(broker.port) as proxy,
    ):
        # How many elements a run is made of, and so how many are harmed, is up to the scheduler.
        for _ in range(20):
            hostile_run(proxy, password, payloads, rng)
            harmed = [line for line in log.lines if "ignored an element" in line["message"]]
            if len(harmed) > 5 and {line["party"] for line in harmed} == {"alice", "bob"}:
                break
        else:
            pytest.fail(f"only {len(harmed)} harmed elements in 20 runs")
    assert {line["peer"] for line in log.lines} >= {"alice", "bob"}
    secrets = [password.encode()]
    secrets += [IDENTITIES[name].private_key for name in ("alice", "bob")]
    secrets += [payload[:40] for payload in payloads] + [payload[-60:] for payload in payloads]
    for secret in secrets:
        for form in forms(secret):
            assert form not in log.text


def hostile_run(
    proxy: HostileProxy, password: str, payloads: list[bytes], rng: random.Random
) -> None:
    """Two parties send each other the payloads; most of what passes is changed or forged."""
    url = f"redis://:{password}@127.0.0.1:{proxy.port}/0"
    cluster = make_cluster(proxy.url, 2)
    settings = quick_settings(
        broker_url=url, tamper_limit=30, recv_timeout=2, peer_timeout=3, close_timeout=0.5
    )
    proxy.attacker = None
    alice, bob = run_parties(
        lambda: connect_as(cluster, "alice", settings),
        lambda: connect_as(cluster, "bob", settings),
    )
    proxy.attacker = Attacker(rng, (*CHANGES, *FORGERIES), 0.7)

    def work(me: Endpoint, other: str) -> None:
        try:
            with me:
                for number, payload in enumerate(payloads):
                    me.send(other, f"t{number % 3}", payload)
                for number, payload in enumerate(payloads):
                    assert me.recv(other, f"t{number % 3}") == payload
                me.recv(other, "never", timeout=0.5)
        except RedisLinkError as error:
            PartyLogger(me.session, me.party).error("ended: %s", error)

    run_parties(lambda: work(alice, "bob"), lambda: work(bob, "alice"))


def forms(secret: bytes) -> Iterator[str]:
    """As text, repr, JSON, hex and base64 would show it."""
    for text in (secret.decode("latin-1"), repr(secret)[2:-1], secret.hex()):
        yield text[:16]
        yield json.dumps(text)[1:17]
    yield base64.b64encode(secret).decode()[:16]


def test_the_check_finds_what_is_there(log: Log) -> None:
    secret = bytes(range(100, 180))
    for shown in (secret, secret.hex(), base64.b64encode(secret), secret.decode("latin-1")):
        logging.getLogger("redislink").info("%s", shown)
        assert any(form in log.text.splitlines()[-1] for form in forms(secret))
