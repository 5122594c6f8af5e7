"""`Outage`: what is retried, with which pauses, and when it is given up and said; no real time."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from redislink import BrokerAuthError, BrokerUnreachable
from redislink.broker import outage as module
from redislink.broker.outage import Outage
from redislink.logs import PartyLogger

AWAY = BrokerUnreachable("away")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "random", SimpleNamespace(uniform=lambda low, high: high))
    return clock


def test_what_is_not_retryable_is_raised_at_once(clock: Clock) -> None:
    outage = Outage("alice", 60)
    error = BrokerAuthError("no")
    with pytest.raises(BrokerAuthError) as caught:
        outage.failed(error)
    assert caught.value is error
    assert not outage.lasts


def test_pauses_double_up_to_a_limit_and_begin_anew_afterwards(clock: Clock) -> None:
    outage = Outage("alice", 60)
    pauses = [outage.failed(AWAY) for _ in range(9)]
    assert pauses == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.0, 2.0]
    assert outage.lasts
    outage.ended()
    assert not outage.lasts
    assert outage.failed(AWAY) == 0.02


def test_it_is_given_up_after_the_limit_and_not_before(clock: Clock) -> None:
    outage = Outage("alice", 60)
    outage.failed(AWAY)
    clock.now += 60
    outage.failed(AWAY)
    assert outage.describe() == "broker unreachable for 60 s"
    clock.now += 0.4
    with pytest.raises(BrokerUnreachable, match=r"alice: .* 60 s, the limit is 60 s"):
        outage.failed(AWAY)


def test_an_outage_that_ended_does_not_count(clock: Clock) -> None:
    outage = Outage("alice", 60)
    outage.failed(AWAY)
    outage.ended()
    assert outage.describe() == ""
    clock.now += 100
    outage.failed(AWAY)


def test_it_says_from_time_to_time_that_it_lasts_and_that_it_is_over(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage("alice", 60, PartyLogger("s", "alice"))
    said = []
    for _ in range(20):
        outage.failed(AWAY)
        said.append(len(caplog.records))
        clock.now += 1
    assert said == [0, 0, 0, *[1] * 10, *[2] * 7]
    outage.ended()
    assert caplog.messages[-1] == "alice: broker back after 20 s"
    outage.failed(AWAY)
    outage.ended()
    assert len(caplog.records) == 3, "it was over before it was worth a word"
