"""Workers and a driver over endpoints: what runs, what does not, and how each of them ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redislink.errors import ConfigError, JobError, PeerAborted, PeerClosed, PeerError, UsageError
from redislink.interop.mplang import worker as worker_module
from redislink.interop.mplang.driver import Client
from redislink.interop.mplang.messages import REPLIES, REQUESTS, Reply, Request, written
from redislink.interop.mplang.policy import Grant, Policy
from redislink.interop.mplang.worker import LOGGER, StillComputing, Worker, serve_for_ever
from redislink.logs import PartyLogger
from redislink.transport.endpoint import Endpoint
from tests.conftest import in_thread, join, make_cluster
from tests.interop.mplang.stand_in import Engine, communicator, engines, graph, loads
from tests.support.waiting import wait_until

POLICY = """
rules:
  - name: open
    action: accept
    driver: carol
    graph: "*"
    operations: [open.*]
    results: to_driver
    logs: to_driver
  - name: shut
    action: accept
    driver: carol
    graph: "*"
    operations: [shut.*]
    limits: {wall: 1s}
"""
Work = dict[str, Callable[..., Any]]


class Place:
    """Two workers, alice and bob, and the driver, carol, at one broker."""

    def __init__(self, work: Work, policy: str = POLICY) -> None:
        self.endpoints = join(make_cluster("fakeredis://mplang", 3))
        rules = Policy.parse(policy, "policy", Path())
        self.refused: list[tuple[str, str]] = []
        self.engines = [Engine(endpoint, work) for endpoint in self.endpoints[:2]]
        self.workers = [
            Worker(endpoint, "carol", engine, rules, lambda *said: self.refused.append(said))
            for endpoint, engine in zip(self.endpoints[:2], self.engines, strict=True)
        ]
        self.served = [in_thread(worker.serve) for worker in self.workers]
        self.client = Client(self.endpoints[2])

    def run(self, rank: int, *opcodes: str, inputs: Any = (), context: str = "#1") -> Any:
        """The reply of a worker."""
        asked = self.client.run(rank, graph(*opcodes), inputs, job=None, context=context)
        return asked.result(30)

    def outcome(self, rank: int) -> Any:
        """How a worker's `serve` ended."""
        thread, outcome = self.served[rank]
        thread.join(30)
        return outcome[0]

    def leave(self) -> None:
        """All leave, in good order if they can."""
        self.client.close()
        for thread, _ in self.served:
            thread.join(30)
        for endpoint in self.endpoints:
            endpoint.close()


@pytest.fixture
def place() -> Iterator[Callable[..., Place]]:
    """Makes places, and closes them."""
    made: list[Place] = []

    def make(work: Work, **more: Any) -> Place:
        made.append(Place(work, **more))
        return made[-1]

    yield make
    for each in made:
        each.leave()


def _exchange(engine: Engine, request: Any, *_: Any) -> Any:
    """Each worker sends its rank to the other, and gives the other's."""
    comm = engine.communicator
    comm.send(1 - comm.rank, request.context, {"from": comm.rank})
    return comm.recv(1 - comm.rank, request.context)


def _raise(*_: Any) -> Any:
    raise RuntimeError("the value 4711 of a patient")


def test_a_graph_runs_at_each_worker_and_its_values_are_fetched(
    place: Callable[..., Place],
) -> None:
    here = place({"open.exchange": _exchange, "open.add": lambda e, r, x: x["from"] + 10})
    first = [
        here.client.run(rank, graph("open.exchange"), (), job=None, context="#1") for rank in (0, 1)
    ]
    uris = [reply.outputs[0] for reply in here.client.collect(first)]
    added = [here.run(rank, "open.add", inputs=(uris[rank],)).outputs[0] for rank in (0, 1)]
    values = [here.client.fetch(rank, added[rank]).result(30).value for rank in (0, 1)]
    assert [loads(value) for value in values] == [11, 10]
    here.client.close()
    assert [here.outcome(rank) for rank in (0, 1)] == [None, None]
    assert here.workers[0].counts == {"ran": 2, "refused": 0, "failed": 0}


def test_nothing_of_a_refused_graph_runs(place: Callable[..., Place]) -> None:
    here = place({"open.one": lambda *_: 1, "evil.one": lambda *_: 1})
    with pytest.raises(JobError, match=r"worker alice refused request 1: no rule .*evil.one"):
        here.run(0, "open.one", "evil.one")
    assert here.engines[0].ran == []
    assert [text for _, text in here.refused] == ["open.one evil.one"]
    assert here.run(0, "open.one").outputs == ("mem://0",)


def test_a_value_leaves_only_if_its_rule_gives_results(place: Callable[..., Place]) -> None:
    here = place({"open.one": lambda *_: 1, "shut.one": lambda *_: 1})
    shut = here.run(0, "shut.one").outputs[0]
    here.engines[0].values["mem://nobody"] = 4711
    for uri, why in ((shut, "gives no results"), ("mem://nobody", "not a value"), ("fs://x", "")):
        with pytest.raises(JobError, match=f"refused.*{why}"):
            here.client.fetch(0, uri).result(30)
    assert loads(here.client.fetch(0, here.run(0, "open.one").outputs[0]).result(30).value) == 1


def test_what_an_error_says_stays_unless_the_rule_lets_it_out(
    place: Callable[..., Place], caplog: pytest.LogCaptureFixture
) -> None:
    here = place({"open.no": _raise, "shut.no": _raise})
    with pytest.raises(JobError, match="failed at request 1: RuntimeError: the value 4711"):
        here.run(0, "open.no")
    with pytest.raises(JobError, match="failed at request 2: RuntimeError; the worker's log") as no:
        here.run(0, "shut.no")
    assert "4711" not in str(no.value)
    with pytest.raises(JobError, match=r"failed at request 3: ValueDecodeError; the"):
        here.client.run(0, b"no graph", (), job=None, context="").result(30)


def test_a_request_that_takes_too_long_ends_the_session_and_everybody_is_told(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_LOOK_INTERVAL", 0.02)
    monkeypatch.setattr(Policy, "decide", lambda *_: Grant("shut", wall=0.05))
    here = place({"shut.wait": lambda engine, *_: engine.communicator.recv(1, "never")})
    asked = here.client.run(0, graph("shut.wait"), (), job=None, context="")
    with pytest.raises(
        (JobError, PeerAborted), match=r"took longer than .*, the limit of rule .shut."
    ):
        asked.result(30)
    assert isinstance(here.outcome(0), JobError)
    with pytest.raises(PeerError, match="took longer"):
        raise here.outcome(1)
    with pytest.raises((PeerError, JobError)):
        here.client.run(1, graph("open.one"), (), job=None, context="").result(30)


def test_a_driver_that_keeps_asking_under_one_number_does_not_extend_its_time(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "decide", lambda *_: Grant("shut", wall=0.05))
    here = place(
        {
            "shut.wait": lambda engine, *_: engine.communicator.recv(1, "never"),
            "shut.one": lambda *_: 1,
        }
    )
    carol = here.endpoints[2]
    carol.send("alice", REQUESTS, written(Request(1, graph("shut.wait"))))

    def ask_again() -> bool:
        carol.send("alice", REQUESTS, written(Request(1, graph("shut.one"))))
        return False

    with pytest.raises(PeerAborted, match="took longer"):
        wait_until(ask_again)
    assert isinstance(here.outcome(0), JobError)


def test_a_request_that_computes_on_is_said(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_GRACE", 0.05)
    going = threading.Event()
    done = threading.Event()

    def compute(*_: Any) -> None:
        going.set()
        done.wait(30)

    here = place({"open.compute": compute})
    asked = here.client.run(0, graph("open.compute"), (), job=None, context="")
    assert going.wait(30)
    here.client.close()
    assert isinstance(here.outcome(0), StillComputing)
    done.set()
    with pytest.raises(Exception, match=r"."):
        asked.result(30)


@pytest.mark.parametrize("who", ["worker", "driver"])
def test_who_dies_is_named_to_all_others(place: Callable[..., Place], who: str) -> None:
    started = threading.Event()

    def wait(engine: Engine, *_: Any) -> None:
        started.set()
        engine.communicator.recv(1, "never")

    here = place({"open.wait": wait})
    asked = here.client.run(0, graph("open.wait"), (), job=None, context="")
    assert started.wait(30)
    dies = here.endpoints[1 if who == "worker" else 2]
    dies.abort("the power is gone")
    if who == "worker":
        with pytest.raises((PeerAborted, JobError), match="the power is gone"):
            asked.result(30)
        assert here.client.is_closed
    with pytest.raises(PeerAborted, match="the power is gone"):
        raise here.outcome(0)


def test_why_a_worker_ended_is_told_by_those_that_heard_it(place: Callable[..., Place]) -> None:
    """Whoever hears of it from another worker first learns the same."""
    started = threading.Event()

    def wait(engine: Engine, *_: Any) -> None:
        started.set()
        engine.communicator.recv(1, "never")

    here = place({"open.wait": wait})
    asked = here.client.run(0, graph("open.wait"), (), job=None, context="")
    assert started.wait(30)
    core = here.endpoints[1].parts.core
    with core.talk(core.peer("alice")) as delivery:
        delivery.abort("the power is gone")
    with pytest.raises((PeerAborted, JobError), match=r"alice aborted.*the power is gone"):
        asked.result(30)


def test_a_worker_that_does_not_answer_is_named() -> None:
    alice, bob, carol = join(make_cluster("fakeredis://mplang-late", 3))
    client = Client(carol, timeout=0.1)
    asked = client.run(0, graph("open.one"), (), job=None, context="")
    with pytest.raises(JobError, match=r"worker alice has not answered request 1 for 0\.1 s"):
        asked.result(30)
    assert alice.recv("carol", REQUESTS, 30)
    # What comes too late, and what another worker answers in its place, is nobody's.
    later = client.run(1, graph("open.one"), (), job=None, context="")
    alice.send("carol", REPLIES, written(Reply(1)))
    alice.send("carol", REPLIES, written(Reply(2, error="from the wrong one")))
    with pytest.raises(JobError, match="worker bob has not answered request 2"):
        later.result(30)
    client.abort("the test is over")
    for endpoint in (alice, bob):
        endpoint.abort("the test is over")


def test_a_worker_serves_one_driver_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    cluster = make_cluster("fakeredis://mplang-again", 2)
    made: list[Engine] = []
    policy = Policy.everything()
    meetings: list[Endpoint | None] = []
    met = threading.Condition()

    def connect() -> Endpoint:
        with met:
            assert met.wait_for(lambda: bool(meetings), 30)
            endpoint = meetings.pop()
        if endpoint is None:
            raise ConfigError("the test is over")
        return endpoint

    log = PartyLogger(cluster.session, "alice", LOGGER)
    make = engines({"open.one": lambda *_: 1, "open.no": _raise}, made)
    thread, outcome = in_thread(lambda: serve_for_ever(connect, make, "bob", policy, log=log))
    for number, ends in enumerate(("closes", "aborts", "closes")):
        alice, bob = join(cluster)
        with met:
            meetings.append(alice)
            met.notify_all()
        client = Client(bob)
        assert client.run(0, graph("open.one"), (), job=None, context="").result(30).outputs
        if ends == "closes":
            client.close()
        else:
            client.abort("its program failed")
        wait_until(lambda alice=alice: alice.parts.core.stopped.is_set())
        assert len(made) == number + 1
    wait_until(lambda: caplog.text.count("waits for bob") == 4)
    assert caplog.text.count("bob has left; graphs: 1 ran, 0 refused, 0 failed") == 2
    assert "its program failed" in caplog.text
    with met:
        meetings.append(None)
        met.notify_all()
    thread.join(30)
    assert isinstance(outcome[0], ConfigError)


class TestCommunicator:
    """What MPLang's workers send each other."""

    def test_values_and_bytes_arrive_as_they_were_and_in_order(
        self, mesh: Callable[..., list[Endpoint]]
    ) -> None:
        alice, bob, _ = mesh("fakeredis://comm")
        a, b = communicator(alice, 2), communicator(bob, 2)
        assert (a.rank, b.rank, a.world_size) == (0, 1, 2)
        done, to, key = a.send(1, "k:0", {"x": [1, None]})
        assert (done.done(), to, key) == (True, 1, "k:0")
        a.send_sync(1, "k:0", b"\x00raw", is_raw_bytes=True)
        a.isend(1, "k:0", b"bytes")
        a.wait_pending_sends()
        assert [b.recv(0, "k:0") for _ in range(3)] == [{"x": [1, None]}, b"\x00raw", b"bytes"]
        a.shutdown()

    def test_keys_of_any_length_are_told_apart(self, mesh: Callable[..., list[Endpoint]]) -> None:
        alice, bob, _ = mesh("fakeredis://comm-keys")
        a, b = communicator(alice, 2), communicator(bob, 2)
        keys = ["é" * 1000 + end for end in "xyz"]
        for key in keys:
            a.send(1, key, key)
        assert [b.recv(0, key) for key in reversed(keys)] == keys[::-1]

    def test_only_other_workers_are_there(self, mesh: Callable[..., list[Endpoint]]) -> None:
        alice, bob, _ = mesh("fakeredis://comm-ranks")
        a = communicator(alice, 2)
        for rank in (0, 2, -1):
            with pytest.raises(UsageError, match="none of the other workers"):
                a.send(rank, "k", 1)
            with pytest.raises(UsageError, match="none of the other workers"):
                a.recv(rank, "k", timeout=0)
        with pytest.raises(TimeoutError):
            a.recv(1, "k", timeout=0)
        bob.close()
        with pytest.raises(PeerClosed):
            a.recv(1, "k", timeout=30)

    def test_what_cannot_be_read_is_an_error_that_names_the_sender(
        self, mesh: Callable[..., list[Endpoint]]
    ) -> None:
        alice, bob, _ = mesh("fakeredis://comm-bad")
        b = communicator(bob, 2)
        alice.parts.sending.post("bob", "mplang/k", b"{", encoding=1)  # type: ignore[arg-type]
        with pytest.raises(PeerError, match=r"bob: alice sent a value under 'k' .*JSONDecodeError"):
            b.recv(0, "k")
