"""The control thread, with a test in its place: its timers, its errors, what it says of silence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from redislink import BrokerRefused, BrokerUnreachable, Endpoint, RedisLinkError
from redislink.broker.inbox import Interrupted
from redislink.protocol.states import State
from redislink.transport import control as control_module
from redislink.transport.control import Control
from redislink.transport.core import UNREAD_CONTROL_WAIT
from tests.conftest import join, make_cluster, run_parties

_names = iter(range(1000))


class Here:
    """bob, whose control thread has ended: the test calls what it would have called.

    For control threads, time stands still at ``now``.
    """

    def __init__(self, bob: Endpoint) -> None:
        self.bob, self.core, self.now = bob, bob.parts.core, time.monotonic()
        self.core.stopped.set()
        bob.parts.control._wait.interrupt()
        bob.parts.control._thread.join()
        self.core.stopped.clear()
        self.control = Control(
            self.core, bob.parts.receiving, 0.0, lambda: None, lambda words: None
        )

    def serve(self, *replies: Any) -> list[list[bytes]]:
        """Run it until the replies to its pops are used up; return the lists that it asked for."""
        asked: list[list[bytes]] = []
        left = iter(replies)

        def pop(names: list[bytes], seconds: float, late: object) -> Any:
            asked.append(list(names))
            reply = next(left, None)
            if len(asked) > len(replies):
                self.core.stopped.set()
                reply = Interrupted()
            if isinstance(reply, Exception):
                raise reply
            return reply

        self.control._wait = SimpleNamespace(pop=pop)  # type: ignore[assignment]
        self.control._run()
        self.core.stopped.clear()
        return asked


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    alice, bob = join(make_cluster(f"fakeredis://control-{next(_names)}", 2))
    here = Here(bob)
    clock = SimpleNamespace(monotonic=lambda: here.now)
    monkeypatch.setattr(control_module, "time", clock)
    yield here
    run_parties(*(lambda e=e: e.abort("the test is over") for e in (alice, bob)))


def test_its_lists_take_turns(here: Here) -> None:
    first, second, third = here.serve(None, None)
    assert len(set(first)) == len(first) == 2
    assert second == third[::-1] == first[::-1]


def test_a_broker_that_comes_back_ends_the_outage(here: Here) -> None:
    asked = here.serve(BrokerUnreachable("a cut line"), None)
    assert len(asked) == 3
    assert not here.core.outage.lasts
    assert here.core.failure is None


def test_time_without_the_broker_does_not_count_against_the_peer(here: Here) -> None:
    delivery = here.core.peers["alice"].delivery
    before = delivery._silent_for
    here.now += 100
    here.serve(BrokerUnreachable("a cut line"), None)
    assert delivery._silent_for == before
    here.now += 1
    here.serve(None)
    assert delivery._silent_for == before + 1


@pytest.mark.parametrize("error", [BrokerRefused("no such user"), RedisLinkError("of ours")])
def test_an_error_that_ends_it_ends_the_session(here: Here, error: RedisLinkError) -> None:
    here.serve(error)
    assert here.core.failure is error


def test_an_error_that_nobody_foresaw_ends_the_session_and_is_logged(
    here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    here.serve(ZeroDivisionError("a secret"))
    assert "bob: internal error, ZeroDivisionError in the control thread" in str(here.core.failure)
    (record,) = (r for r in caplog.records if r.exc_info)
    assert record.getMessage() == "bob: the control thread broke"


@pytest.mark.parametrize(
    ("age", "overdue", "registered", "interrupted"),
    [
        (UNREAD_CONTROL_WAIT - 0.1, 5.0, False, False),
        (UNREAD_CONTROL_WAIT + 0.1, -1.0, True, False),
        (UNREAD_CONTROL_WAIT + 0.1, 1.0, True, True),
        (None, 5.0, False, False),
    ],
)
def test_receives_that_last_are_registered_and_overdue_ones_ended(
    here: Here, monkeypatch: pytest.MonkeyPatch, age: float | None, overdue: float,
    registered: bool, interrupted: bool,
) -> None:  # fmt: skip
    ends: list[bool] = []
    wait = SimpleNamespace(
        purpose=None if age is None else ("alice", "t", here.now - age),
        margin=2.0,
        give_up=here.now - 2.0 - overdue,
        registered=False,
        interrupt=lambda: ends.append(True),
        has_moved=lambda: False,
    )
    with monkeypatch.context() as patch:
        patch.setattr(here.core.inbox, "waits", lambda: [wait])
        here.control._serve_timers()
    assert wait.registered is registered
    assert bool(ends) is interrupted


def test_it_waits_until_the_next_timer_but_not_for_long(here: Here) -> None:
    delivery = here.core.peers["alice"].delivery
    here.core.outbox.flush()
    here.control._collect()
    assert here.control._serve_timers() == 0.5
    with here.core.lock:
        delivery.wait("t", here.now - 0.1)  # to probe for 0.15 s after that
    assert here.control._serve_timers() == pytest.approx(0.05)
    here.now += 0.04
    assert here.control._serve_timers() == 0.02
    assert delivery.stats.probes_sent == 0
    here.now += 0.02
    assert here.control._serve_timers() == pytest.approx(0.5)  # to the next probe
    assert delivery.stats.probes_sent == 1
    here.core.outbox.flush()
    assert here.control._serve_timers() == 0.2  # more answers may follow the one to the probe
    assert here.control._serve_timers() == pytest.approx(0.5)
    with here.core.lock:
        delivery.unwait("t")


def test_the_brokers_answers_reach_the_delivery(here: Here) -> None:
    request = here.bob.send("alice", "t", b"x")
    here.core.outbox.flush()
    with here.core.lock:
        assert here.core.peers["alice"].delivery.largest_unanswered == 1
    assert here.control._collect() is True
    with here.core.lock:
        assert here.core.peers["alice"].delivery.largest_unanswered == 0
    assert here.control._collect() is False
    assert not request.test()


@pytest.mark.parametrize(
    ("state", "said"), [(State.CLOSED, ["bob: alice has left"]), (State.FAILED, [])]
)
def test_a_silent_peer_that_is_gone_is_not_heard_again(
    here: Here,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    state: State,
    said: list[str],
) -> None:
    delivery = here.core.peers["alice"].delivery
    monkeypatch.setattr(delivery, "describe_silence", lambda now: "alice not heard for 10 s")
    here.control._report_silence(10.0)
    with caplog.at_level(logging.INFO, "redislink.progress"):
        monkeypatch.setattr(delivery, "describe_silence", lambda now: "")
        monkeypatch.setattr(delivery, "state", state)
        here.control._report_silence(12.0)
    assert [r.getMessage() for r in caplog.records if r.name == "redislink.progress"] == said


def test_a_silent_peer_is_logged_now_and_then_until_it_is_heard(
    here: Here, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = here.core.peers["alice"].delivery
    silent: Callable[[float], str] = lambda now: f"alice not heard for {now:.0f} s"  # noqa: E731
    with caplog.at_level(logging.INFO, "redislink.progress"):
        monkeypatch.setattr(delivery, "describe_silence", silent)
        for now in (10.0, 10.5, 11.0, 19.0, 20.0, 21.0, 31.0):
            here.control._report_silence(now)
        monkeypatch.setattr(delivery, "describe_silence", lambda now: "")
        for now in (32.0, 33.0):
            here.control._report_silence(now)
        monkeypatch.setattr(delivery, "describe_silence", silent)
        here.control._report_silence(34.0)
    assert [r.getMessage() for r in caplog.records if r.name == "redislink.progress"] == [
        "bob: alice not heard for 10 s",
        "bob: alice not heard for 20 s",
        "bob: alice not heard for 31 s",
        "bob: alice is heard again",
        "bob: alice not heard for 34 s",
    ]
