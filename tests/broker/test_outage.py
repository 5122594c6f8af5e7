"""`Outage`: what is retried, with which pauses, and when it is given up and said; no real time."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from redislink import BrokerAuthError, BrokerBusy, BrokerError, BrokerUnreachable
from redislink.broker import outage as module
from redislink.broker.outage import Outage, Way
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
        outage.failed(error, Way.POP)
    assert caught.value is error
    assert not outage.lasts


def test_pauses_double_up_to_a_limit_and_begin_anew_afterwards(clock: Clock) -> None:
    outage = Outage("alice", 60)
    pauses = [outage.failed(AWAY, Way.POP) for _ in range(9)]
    assert pauses == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.0, 2.0]
    assert outage.lasts
    outage.ended(Way.POP)
    assert not outage.lasts
    assert outage.failed(AWAY, Way.POP) == 0.02


def test_it_is_given_up_after_the_limit_and_not_before(clock: Clock) -> None:
    outage = Outage("alice", 60)
    outage.failed(AWAY, Way.POP)
    clock.now += 60
    outage.failed(AWAY, Way.POP)
    assert outage.describe() == "broker unreachable for 60 s"
    clock.now += 0.4
    with pytest.raises(BrokerUnreachable, match=r"alice: .* 60 s, the limit is 60 s"):
        outage.failed(AWAY, Way.POP)


def test_an_outage_that_ended_does_not_count(clock: Clock) -> None:
    outage = Outage("alice", 60)
    outage.failed(AWAY, Way.POP)
    outage.ended(Way.POP)
    assert outage.describe() == ""
    clock.now += 100
    outage.failed(AWAY, Way.POP)


def test_it_says_from_time_to_time_that_it_lasts_and_that_it_is_over(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage("alice", 60, PartyLogger("s", "alice"))
    said = []
    for _ in range(20):
        outage.failed(AWAY, Way.POP)
        said.append(len(caplog.records))
        clock.now += 1
    assert said == [0, 0, 0, *[1] * 10, *[2] * 7]
    outage.ended(Way.POP)
    assert caplog.messages[-1] == "alice: broker back after 20 s"
    outage.failed(AWAY, Way.POP)
    outage.ended(Way.POP)
    assert len(caplog.records) == 3, "it was over before it was worth a word"


FULL = BrokerBusy("broker b: out of memory (OOM no): raise its maxmemory")
FULL.refusal, FULL.is_full = "out of memory", True
REPLICA = BrokerUnreachable("broker b: it is a replica now (READONLY): wait")
REPLICA.refusal = "it is a replica now"


def test_each_way_ends_by_itself(clock: Clock) -> None:
    """A full broker refuses pushes and answers pops; that must not look like its end."""
    outage = Outage("alice", 60)
    for _ in range(61):
        outage.failed(FULL, Way.PUSH)
        outage.ended(Way.POP)
        assert outage.lasts
        clock.now += 1
    with pytest.raises(BrokerBusy):
        outage.failed(FULL, Way.PUSH)
    outage.ended(Way.PUSH)
    assert not outage.lasts


def test_pauses_grow_whatever_the_other_way_does(clock: Clock) -> None:
    outage = Outage("alice", 60)
    pauses = []
    for _ in range(9):
        pauses.append(outage.failed(REPLICA, Way.PUSH))
        outage.ended(Way.POP)
    assert pauses[-1] == 2.0


@pytest.mark.parametrize("error", [FULL, REPLICA, AWAY])
def test_the_final_error_says_the_last_cause(clock: Clock, error: BrokerError) -> None:
    outage = Outage("alice", 60)
    outage.failed(BrokerUnreachable("EOF"), Way.PUSH)
    clock.now += 61
    with pytest.raises(BrokerError) as caught:
        outage.failed(error, Way.PUSH)
    assert str(caught.value).endswith(f"(REDISLINK_BROKER_TIMEOUT): {error}")
    assert type(caught.value) is (BrokerUnreachable if error is AWAY else BrokerBusy)
    assert caught.value.refusal == error.refusal


def test_a_login_that_is_refused_for_too_long_is_called_so(clock: Clock) -> None:
    outage = Outage("alice", 60)
    wrong = BrokerAuthError("broker b: user or password not accepted (WRONGPASS): check them")
    wrong.retryable, wrong.refusal = True, "user or password not accepted"
    outage.failed(wrong, Way.PUSH)
    clock.now += 61
    with pytest.raises(BrokerAuthError, match="alice: the broker has refused this party for 61 s"):
        outage.failed(wrong, Way.PUSH)


def test_memory_is_asked_for_once_in_an_outage_that_lasts(clock: Clock) -> None:
    asked = []
    outage = Outage("alice", 60, memory=lambda: asked.append(clock.now) or (3 << 20, 2 << 20))
    outage.failed(FULL, Way.PUSH)
    outage.ended(Way.PUSH)
    assert not asked, "a refusal now and then is what a full broker does"
    for _ in range(60):
        outage.failed(FULL, Way.PUSH)
        clock.now += 1
    assert len(asked) == 1
    assert "(out of memory, 3.0 MiB used of 2.0 MiB)" in outage.describe()
    clock.now += 1
    with pytest.raises(BrokerBusy, match=r"3\.0 MiB used of 2\.0 MiB: raise its maxmem") as caught:
        outage.failed(FULL, Way.PUSH)
    assert (caught.value.used_memory, caught.value.memory_limit) == (3 << 20, 2 << 20)


def test_each_new_refusal_is_logged_once_in_an_outage(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage(
        "alice", 60, PartyLogger("s", "alice", "redislink.progress"), PartyLogger("s", "alice")
    )
    for second in range(40):
        outage.failed(FULL if second < 20 else REPLICA, Way.PUSH)
        clock.now += 1
    warnings = [record.getMessage() for record in caplog.records if record.name == "redislink"]
    assert warnings == [
        f"alice: the broker has refused this party for 3 s: {FULL}",
        f"alice: the broker has refused this party for 23 s: {REPLICA}",
    ]
    assert caplog.messages[1] == "alice: refused by the broker for 13 s (out of memory)"
