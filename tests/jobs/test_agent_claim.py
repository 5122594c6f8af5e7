"""One agent for each party, also among those with other work directories."""

from __future__ import annotations

import pytest

from redislink.broker import Broker, EmbeddedBroker
from redislink.broker.outage import Outage
from redislink.errors import PartyTaken
from redislink.jobs import agent
from redislink.jobs.agent import AgentClaim
from redislink.logs import PartyLogger
from redislink.protocol import list_names
from tests.support.waiting import wait_until

KEY = list_names.agent_key("claims", "alice")
LOG = PartyLogger("claims", "alice")


def claim(broker: Broker, instance: bytes, before: bytes | None = None) -> AgentClaim:
    return AgentClaim(broker, KEY, instance, "the agent of alice", LOG, before)


def outage() -> Outage:
    return Outage("alice", 5.0, LOG, LOG)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_LEASE_MS", 1500)
    monkeypatch.setattr(agent, "_RENEW", 0.1)


@pytest.mark.usefixtures("brisk")
def test_a_second_agent_elsewhere_is_refused_and_the_next_is_not(valkey: EmbeddedBroker) -> None:
    broker = Broker(valkey.url)
    first = claim(broker, b"1" * 8)
    first.acquire(outage())
    try:
        with pytest.raises(PartyTaken, match="the agent of alice already runs in another process"):
            claim(broker, b"2" * 8).acquire(outage())
        assert not first.is_taken
    finally:
        first.release()
    connection = broker.open()
    assert connection.execute(b"EXISTS", KEY, timeout=5) == 0, "what was released need not lapse"
    connection.close()
    third = claim(broker, b"3" * 8)
    third.acquire(outage())
    third.abandon()
    fourth = claim(broker, b"4" * 8, before=b"3" * 8)
    fourth.acquire(outage())  # its work directory says that the third has ended
    fourth.release()


@pytest.mark.usefixtures("brisk")
def test_an_agent_learns_that_another_one_has_its_place(valkey: EmbeddedBroker) -> None:
    """As after a broker that came back empty: the other was first."""
    broker = Broker(valkey.url)
    mine = claim(broker, b"5" * 8)
    mine.acquire(outage())
    connection = broker.open()
    connection.execute(b"SET", KEY, b"another", timeout=5)
    wait_until(lambda: mine.is_taken)
    connection.execute(b"DEL", KEY, timeout=5)
    connection.close()
    mine.release()
