"""The chain of steps by itself: what travels, what is compared, what is told."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redislink import (
    BrokerUnreachable,
    PeerError,
    PeerLost,
    ProgramDiverged,
    ThreadCommunicator,
    UsageError,
)
from redislink.session import steps as steps_module
from redislink.session.steps import Failure, Silence, Steps
from tests.conftest import in_thread, run_parties
from tests.support.waiting import wait_until

NAMES = ("alice", "bob", "carol")


_made: list[Steps] = []
_TOLD = [b"d", "t", "p", b""]


def _chains(recv_timeout: float = 5.0) -> list[Steps]:
    chains = [
        Steps(communicator, Failure(communicator.abort))
        for communicator in ThreadCommunicator.make(NAMES, recv_timeout=recv_timeout)
    ]
    _made.extend(chains)
    return chains


@pytest.fixture(autouse=True)
def _all_leave() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    while _made:
        _made.pop().leave()
    begun = set(threading.enumerate()) - before
    left = [t.name for t in begun if t.name.startswith("redislink-steps")]
    assert not left


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "_PATIENCE", 0.05)
    monkeypatch.setattr(steps_module, "_TICK", 0.02)
    monkeypatch.setattr(steps_module, "_FIRST_REPORT", 0.1)


def _finish(*chains: Steps) -> None:
    run_parties(*(lambda chain=chain: chain.finish(5) for chain in chains))


def test_a_message_tells_all_steps_since_the_last_one() -> None:
    alice, bob, carol = chains = _chains()
    for number in range(5):
        for chain in chains:
            with chain.step(f"call {number}", NAMES):
                pass
    for body in ("a", "b"):
        for chain in chains:
            with chain.step(f"send {body}", NAMES):
                if chain is alice:
                    chain.send("bob", body)
                elif chain is bob:
                    message = (
                        alice._communicator.party,
                        bob._communicator.peek_message("alice", "step"),
                    )
                    first, entries, *_ = message[1]
                    assert (first, len(entries)) == ((1, 6) if body == "a" else (7, 1))
                    assert bob.recv("alice") == body
    assert alice.digest == bob.digest == carol.digest
    _finish(*chains)


@pytest.mark.parametrize("steps_before", [0, 1, 63, 64, 200])
def test_the_first_step_that_differs_is_named(steps_before: int) -> None:
    alice, bob, _ = _chains()
    for chain in (alice, bob):
        for number in range(steps_before):
            with chain.step(f"same {number}", NAMES):
                pass
        with chain.step("other" if chain is bob else "one", NAMES):
            pass
        for number in range(3):
            with chain.step(f"later {number}", NAMES):
                if number == 2 and chain is alice:
                    chain.send("bob", None)
                elif number == 2:
                    with pytest.raises(ProgramDiverged) as caught:
                        chain.recv("alice")
                    raised = str(caught.value)
    assert raised.startswith(f"programs diverge at step {steps_before + 1}")
    assert re.search(
        r": bob called other \(test_steps.py:\d+, [\d:]{8} UTC\), alice called one "
        r"\(test_steps.py:\d+, [\d:]{8} UTC\): run the same program",
        raised,
    )


def test_a_step_that_differs_long_ago_is_told_as_such() -> None:
    alice, bob, _ = _chains()
    for chain in (alice, bob):
        with chain.step("other" if chain is bob else "one", NAMES):
            pass
        for number in range(100):
            with chain.step(f"later {number}", NAMES):
                if number == 99 and chain is alice:
                    chain.send("bob", None)
                elif number == 99:
                    with pytest.raises(ProgramDiverged, match=r"at step 38 \(or before\)"):
                        chain.recv("alice")


@pytest.mark.parametrize(
    ("alices", "bobs", "told"),
    [
        ([b"f", b"1", b"2"], [b"f", b"1", b"3"], "what differs: argument 2"),
        ([b"f", b"1", b"2"], [b"g", b"1", b"3"], "what differs: the function, argument 2"),
        ([b"f"] * 40, [b"f"] * 39 + [b"g"], "in what it was called with"),
    ],
)
def test_what_differs_is_named_and_not_told(
    alices: list[bytes], bobs: list[bytes], told: str
) -> None:
    alice, bob, _ = _chains()
    labels = ["the function", *(f"argument {number}" for number in range(1, 40))]
    with alice.step("call", NAMES, list(zip(labels, alices, strict=False))):
        alice.send("bob", None)
    message = bob._communicator.peek_message("alice", "step")
    assert not any(part in repr(message).encode() for part in (b"b'f'", b"b'1'"))
    with (
        bob.step("call", NAMES, list(zip(labels, bobs, strict=False))),
        pytest.raises(ProgramDiverged, match=rf"at step 1 \({told}\): bob \(.* called call \("),
    ):
        bob.recv("alice")


def test_texts_that_are_alike_as_far_as_they_are_told_may_differ() -> None:
    alice, bob, _ = _chains()
    with alice.step("x" * 200 + "a", NAMES):
        alice.send("bob", None)
    with (
        bob.step("x" * 200 + "b", NAMES),
        pytest.raises(ProgramDiverged, match="shapes that this text leaves out"),
    ):
        bob.recv("alice")


def test_versions_that_differ_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob, _ = _chains()
    with alice.step("call", NAMES, [("the function", b"1")]):
        alice.send("bob", None)
    monkeypatch.setattr(steps_module, "versions_here", lambda: "jax 0.0.1")
    with (
        bob.step("call", NAMES, [("the function", b"2")]),
        pytest.raises(
            ProgramDiverged, match=r"bob has jax 0\.0\.1, alice has redislink .*, spu \d.*; bob \("
        ),
    ):
        bob.recv("alice")


@pytest.mark.parametrize(
    "message",
    [
        None, 5, [], b"raw", [1, [], "v", None], [0, [_TOLD], "v", None], {"a": 1},
        [1, [[b"d", "t", "p"]], "v", None], [1, [["d", "t", "p", b""]], "v", None],
        [1, [[b"d", "t", 5, b""]], "v", None], [1, [[b"d", "t", "p", b"1" * 129]], "v", None],
        [True, 5, "v", None], ["1", [_TOLD], "v", None], [1, [_TOLD] * 65, "v", None],
        [1, [_TOLD], None, None], [1, [_TOLD], "v"],
    ],
)  # fmt: skip
def test_what_is_no_step_is_refused(message: Any) -> None:
    alice, bob, _ = _chains()
    alice._communicator.send("bob", "step", message)
    with (
        pytest.raises(PeerError, match="alice sent a message in call that makes no sense"),
        bob.step("call", NAMES),
    ):
        bob.recv("alice")


def test_a_status_that_is_none_is_no_divergence(quick: None) -> None:
    alice, bob, _ = _chains(recv_timeout=20)
    alice._communicator.send("bob", "status", "nonsense")

    def wait() -> Any:
        with bob.step("call", NAMES):
            return bob.recv("alice")

    thread, outcome = in_thread(wait)
    wait_until(lambda: not bob._communicator.has_message("alice", "status"))  # bob has looked
    assert not outcome
    with alice.step("call", NAMES):
        alice.send("bob", 7)
    thread.join(10)
    assert outcome == [7]


def test_two_that_wait_for_each_other_hear_of_it(quick: None) -> None:
    alice, bob, carol = _chains(recv_timeout=20)

    def wait(chain: Steps, text: str, peer: str) -> Callable[[], None]:
        def work() -> None:
            with chain.step(text, NAMES):
                chain.recv(peer)

        return work

    threads = [
        in_thread(wait(alice, "from bob", "bob")),
        in_thread(wait(bob, "from alice", "alice")),
        in_thread(wait(carol, "from bob", "bob")),
    ]
    for thread, outcome in threads:
        thread.join(10)
        assert isinstance(outcome[0], ProgramDiverged), outcome
        assert "from bob" in str(outcome[0])
        assert "from alice" in str(outcome[0])


def test_steps_that_last_are_reported(quick: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "redislink.progress")
    alice, bob, carol = chains = _chains()
    told = threading.Event()
    said: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("alice: "):
                said.append(record.getMessage())
            if "waiting for bob" in record.getMessage():
                told.set()

    listen = Listen()
    logging.getLogger("redislink.progress").addHandler(listen)
    try:
        with bob.step("share(bob)", NAMES), carol.step("share(bob)", NAMES):
            pass

        def wait() -> Any:
            with alice.step("share(bob)", NAMES):
                return alice.recv("bob")

        thread, outcome = in_thread(wait)
        assert told.wait(10)
        bob.send("alice", 5)
        thread.join(10)
        assert outcome == [5]
    finally:
        logging.getLogger("redislink.progress").removeHandler(listen)
    assert said[0].startswith("alice: step 1, share(bob): 0 s so far, waiting for bob (")
    _finish(*chains)


def test_one_that_does_not_come_to_the_end_is_not_waited_for() -> None:
    alice, bob, carol = _chains(recv_timeout=600)  # what a finish without its own would take
    run_parties(lambda: alice.finish(0.2), lambda: carol.finish(0.2))
    bob.finish(5)


def test_one_that_comes_to_the_end_late_is_waited_for() -> None:
    alice, bob, carol = _chains()
    others = [in_thread(lambda chain=chain: chain.finish(20)) for chain in (alice, carol)]
    for chain in (alice, carol):
        wait_until(lambda chain=chain: chain._current is not None and chain._current.awaited)
    wait_until(lambda: alice._heard["carol"] == carol._heard["alice"] == 1)
    assert [outcome for _, outcome in others] == [[], []]
    bob.finish(5)
    for thread, outcome in others:
        thread.join(10)
        assert outcome == [None]


def test_a_silence_of_several_threads_ends_with_the_last() -> None:
    said: list[str] = []

    class Told:
        @contextlib.contextmanager
        def announce_silence(self) -> Iterator[None]:
            said.append("silent")
            yield
            said.append("back")

    silence = Silence(Told())  # type: ignore[arg-type]
    with contextlib.ExitStack() as first:
        first.enter_context(silence())
        second = silence()
        second.__enter__()
        first.close()
        assert said == ["silent"]
        second.__exit__(None, None, None)
    assert said == ["silent", "back"]
    with silence():
        assert said == ["silent", "back", "silent"]


def test_in_the_child_of_a_fork_the_end_of_a_silence_is_not_told() -> None:
    said: list[str] = []

    class Told:
        @contextlib.contextmanager
        def announce_silence(self) -> Iterator[None]:
            yield
            said.append("back")

    silence = Silence(Told())  # type: ignore[arg-type]
    announced = silence._announced  # the parent's, which still has its block open
    with silence():
        silence.die_in_child()
    assert said == []
    announced.close()
    assert said == ["back"]


def test_a_chain_is_usable_until_a_call_or_the_session_fails() -> None:
    alice, bob, carol = _chains()
    assert alice.usable
    with alice.step("call", NAMES):
        pass
    assert alice.usable
    with pytest.raises(ValueError, match="mine"), alice.step("call", NAMES):
        raise ValueError("mine")
    assert not alice.usable
    assert bob.usable
    bob._failure.set(PeerError("it failed"))
    assert not bob.usable
    assert carol.usable


def test_a_call_that_is_interrupted_leaves_nothing_to_go_on_with() -> None:
    alice, *_ = _chains()
    with pytest.raises(KeyboardInterrupt), alice.step("call", NAMES):
        raise KeyboardInterrupt
    assert not alice.usable
    with (
        pytest.raises(UsageError, match=r"next was called after .* failed \(KeyboardInterrupt\)"),
        alice.step("next", NAMES),
    ):
        pass


def test_who_is_late_is_who_takes_part_and_was_not_heard_or_who_is_awaited() -> None:
    alice, *_ = _chains()
    with alice.step("first", NAMES):
        pass
    with alice.step("second", ("alice", "bob")):
        current = alice._current
        assert current is not None
        unheard = "not heard of in any step"
        assert alice._late(current) == (f"bob ({unheard})",)
        current.awaited = "carol"
        assert alice._late(current) == (f"bob ({unheard})", f"carol ({unheard})")
        alice._heard["bob"] = 1
        assert alice._late(current) == ("bob (at step 1)", f"carol ({unheard})")
        alice._heard["bob"] = 2
        assert alice._late(current) == (f"carol ({unheard})",)
        current.awaited = "bob"
        assert alice._late(current) == ("bob (at step 2)",)


@pytest.mark.parametrize("end", ["finish", "conclude"])
def test_at_the_end_nobody_gets_more_than_what_is_left_of_the_time(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, *_ = _chains()
    given: list[tuple[str, float]] = []
    monkeypatch.setattr(alice, "recv", lambda peer, timeout: given.append((peer, timeout)))
    getattr(alice, end)(-1.0)
    rounds = 1 if end == "finish" else 2
    assert given == [("bob", 0.0), ("carol", 0.0)] * rounds


def test_the_peers_are_told_what_they_may_know_of_a_failure() -> None:
    told: list[tuple[str, bool]] = []
    for error in (BrokerUnreachable("broker-7.internal is away"), PeerLost("carol", 31.0)):
        Failure(lambda reason, *, retryable: told.append((reason, retryable))).set(error)
    assert told[0] == ("BrokerUnreachable at its broker", True)
    assert told[1] == (str(PeerLost("carol", 31.0)), True)
