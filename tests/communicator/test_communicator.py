"""The communicators' conformance suite: unchanged between threads and on every kind of broker."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink import (
    Communicator,
    EndpointClosed,
    EndpointStats,
    PayloadTypeError,
    PeerAborted,
    PeerClosed,
    PeerLost,
    RecvTimeout,
    RedisCommunicator,
    RedisLinkError,
    SendTimeout,
    ThreadCommunicator,
    UsageError,
    ValueDecodeError,
    register_dataclass,
    values,
)
from tests.conftest import EVERY_BROKER, IDENTITIES, in_thread, run_parties, url_of
from tests.support.waiting import wait_until

Make = Callable[..., list[Any]]


@pytest.fixture(params=["thread", *EVERY_BROKER])
def make(request: pytest.FixtureRequest, mesh: Callable[..., Any]) -> Iterator[Make]:
    """``make(size=2)`` gives every party's communicator, closed after the test."""
    made: list[Any] = []

    def make_all(size: int = 2, **changes: Any) -> list[Any]:
        if request.param == "thread":
            names = list(IDENTITIES)[:size]
            made.extend(
                ThreadCommunicator.make(names, recv_timeout=changes.get("recv_timeout", 60))
            )
            return made
        endpoints = mesh(url_of(request.param, request), size, **({"close_timeout": 1} | changes))
        return [RedisCommunicator(endpoint) for endpoint in endpoints]

    yield make_all
    for communicator in made:
        communicator.close()


@pytest.fixture
def pair(make: Make) -> list[Any]:
    return make()


def blocked(communicator: Any, count: int = 1) -> bool:
    """True while so many of its calls wait for a message."""
    if isinstance(communicator, ThreadCommunicator):
        condition = communicator._hub.parties[communicator.rank].changed
        return len(condition._waiters) >= count  # type: ignore[attr-defined]
    waits = communicator.endpoint.parts.core.inbox.waits()
    return sum(wait.purpose is not None for wait in waits) >= count


def waits_for_acks(communicator: Any) -> bool:
    """True while one of its calls waits until a peer has received something."""
    if isinstance(communicator, ThreadCommunicator):
        return blocked(communicator)
    return bool(communicator.endpoint.parts.core.sleepers)


def start_recv(communicator: Any, src: str, tag: str, count: int = 1) -> Any:
    """A thread that is blocked in a receive, and where its outcome will be."""
    started = in_thread(lambda: communicator.recv(src, tag))
    wait_until(lambda: blocked(communicator, count))
    return started


def outcome(started: Any) -> Any:
    thread, result = started
    thread.join(15)
    assert result, "the call has not ended"
    return result[0]


class TestMessages:
    def test_raw_bytes_arrive_as_bytes(self, pair: list[Any]) -> None:
        alice, bob = pair
        for kind in (bytes, bytearray, memoryview):
            alice.send("bob", "t", kind(b"\x93\x01\x02\x03"))
            got = bob.recv("alice", "t")
            assert type(got) is bytes
            assert got == b"\x93\x01\x02\x03"

    def test_values_arrive_as_they_were(self, pair: list[Any]) -> None:
        alice, bob = pair
        value = {"list": [None, True, 1 << 70, 2.5, "ü", b"raw"], 3: (1, ()), "n": np.float16(1)}
        alice.send("bob", "t", value)
        got = bob.recv("alice", "t")
        assert got == value
        assert type(got["n"]) is np.float16

    def test_a_flag_tells_raw_from_value(self, pair: list[Any]) -> None:
        alice, bob = pair
        for value in (values.encode_value([1]), [1], b"", "", None):
            alice.send("bob", "t", value)
        assert [bob.recv("alice", "t") for _ in range(5)] == [b"\x91\x01", [1], b"", "", None]

    def test_arrays(self, pair: list[Any]) -> None:
        alice, bob = pair
        for shape in ((), (0,), (1, 3), (500, 1000)):
            array = np.random.default_rng(7).standard_normal(shape)
            alice.send("bob", "t", [array, np.asarray(array).T])
            got, transposed = bob.recv("alice", "t")
            assert got.shape == shape
            assert np.array_equal(got, array)
            assert np.array_equal(transposed, np.asarray(array).T)
            assert not got.flags.writeable

    def test_what_was_sent_may_be_changed(self, pair: list[Any]) -> None:
        alice, bob = pair
        array = np.zeros(100_000)
        for payload in (array, memoryview(array).cast("B")):
            array[:] = 0
            alice.send("bob", "t", payload)
            array[:] = 1
            assert not np.frombuffer(bob.recv("alice", "t"), np.float64).any()

    def test_no_object_is_shared(self, pair: list[Any]) -> None:
        alice, bob = pair
        value = [[1], "text"]
        alice.send("bob", "t", value)
        got = bob.recv("alice", "t")
        assert got == value
        assert got[0] is not value[0]

    def test_parties_are_named_by_name_or_rank(self, pair: list[Any]) -> None:
        alice, bob = pair
        alice.send(1, "t", 1)
        alice.send("bob", "t", 2)
        assert [bob.recv(0, "t"), bob.recv("alice", "t")] == [1, 2]
        assert (bob.party, bob.rank, bob.world_size) == ("bob", 1, 2)
        assert bob.party_names == ("alice", "bob")

    def test_one_tag_keeps_its_order_and_tags_do_not_wait_for_each_other(
        self, pair: list[Any]
    ) -> None:
        alice, bob = pair
        for i in range(50):
            alice.send("bob", "x", i)
            alice.send("bob", "y", -i)
        assert [bob.recv("alice", "y") for _ in range(50)] == [-i for i in range(50)]
        assert [bob.recv("alice", "x") for _ in range(50)] == list(range(50))

    def test_a_receive_may_come_before_the_send(self, pair: list[Any]) -> None:
        alice, bob = pair
        started = start_recv(bob, "alice", "later")
        alice.send("bob", "other", 0)
        alice.send("bob", "later", "now")
        assert outcome(started) == "now"

    def test_three_parties(self, make: Make) -> None:
        everyone = make(3)

        def work(me: Any) -> dict[str, Any]:
            others = [name for name in me.party_names if name != me.party]
            for name in others:
                me.send(name, "all", (me.party, name))
            return {name: me.recv(name, "all") for name in others}

        for me, got in zip(
            everyone, run_parties(*(lambda c=c: work(c) for c in everyone)), strict=True
        ):
            assert all(value == (name, me.party) for name, value in got.items())

    def test_many_threads(self, pair: list[Any]) -> None:
        alice, bob = pair
        tags = [f"thread {i}" for i in range(8)]

        def ping(tag: str) -> None:
            for i in range(15):
                alice.send("bob", tag, np.full(3, i))
                assert alice.recv("bob", tag).tolist() == [i + 1] * 3

        def pong(tag: str) -> None:
            for _ in range(15):
                bob.send("alice", tag, bob.recv("alice", tag) + 1)

        run_parties(*(lambda f=f, t=t: f(t) for t in tags for f in (ping, pong)))

    def test_threads_that_share_a_tag_take_each_message_once(self, pair: list[Any]) -> None:
        alice, bob = pair
        senders = [
            lambda i=i: [alice.send("bob", "t", i * 20 + j) for j in range(20)] for i in range(4)
        ]
        receivers = [lambda: [bob.recv("alice", "t") for _ in range(20)]] * 4
        got = run_parties(*senders, *receivers)[4:]
        assert sorted(itertools.chain(*got)) == list(range(80))

    def test_any_tag(self, pair: list[Any]) -> None:
        alice, bob = pair
        tags = ("a", "root:P2P-7:0->1", "*", "{x}", "!hello", "~app:t", "/", "ü ", "%21", "a" * 500)
        for tag in tags:
            alice.send("bob", tag, tag)
        for tag in tags:
            assert bob.recv("alice", tag) == tag

    def test_stats_count_messages(self, pair: list[Any]) -> None:
        alice, bob = pair
        alice.send("bob", "t", b"12345")
        alice.sub("x").send("bob", "t", 1)
        assert bob.recv("alice", "t") == b"12345"
        assert isinstance(alice.stats(), EndpointStats)
        assert (alice.stats().messages_sent, alice.stats().bytes_sent) == (2, 6)
        assert (bob.stats().messages_received, bob.stats().bytes_received) == (1, 5)

    def test_a_silence_can_be_announced(self, pair: list[Any]) -> None:
        alice, bob = pair
        announced = contextlib.ExitStack()
        announced.enter_context(alice.announce_silence(500))
        if isinstance(bob, RedisCommunicator):  # threads are not watched
            allowed = lambda: bob.endpoint.parts.core.peers["alice"].delivery._allowed_silence  # noqa: E731
            usual = bob.endpoint.settings.peer_timeout
            wait_until(lambda: usual + 490 < allowed() <= usual + 500)
            announced.close()
            wait_until(lambda: allowed() == usual)
        announced.close()
        alice.send("bob", "t", 1)
        assert bob.recv("alice", "t") == 1


@register_dataclass
@dataclasses.dataclass
class Model:
    weights: Any
    bias: float = 0.0


class TestDataclasses:
    def test_registered_ones_travel(self, pair: list[Any]) -> None:
        alice, bob = pair
        alice.send("bob", "t", Model(np.arange(3), 1.5))
        got = bob.recv("alice", "t")
        assert type(got) is Model
        assert got.weights.tolist() == [0, 1, 2]

    def test_one_that_is_not_registered_here(
        self, pair: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alice, bob = pair
        alice.send("bob", "t", Model(1))
        alice.send("bob", "t", "next")
        monkeypatch.delitem(values._by_name, "Model")
        wait_until(lambda: bob.has_message("alice", "t"))
        for call in (bob.peek_message, bob.recv):
            with pytest.raises(ValueDecodeError, match=r"bob: .*from alice.*tag 't'.*'Model'"):
                call("alice", "t")
        assert bob.recv(0, "t") == "next"


class TestPeek:
    def test_nothing_is_there(self, pair: list[Any]) -> None:
        _, bob = pair
        assert not bob.has_message("alice", "t")
        assert bob.peek_message("alice", "t") is None

    def test_it_stays_until_it_is_received(self, pair: list[Any]) -> None:
        alice, bob = pair
        for value in (None, b"raw", [1]):
            alice.send("bob", "t", value)
        for value in (None, b"raw", [1]):
            wait_until(lambda: bob.has_message("alice", "t"))
            assert bob.peek_message("alice", "t") == value
            assert bob.peek_message(0, "t") == value
            assert bob.recv("alice", "t") == value
        assert not bob.has_message("alice", "t")

    def test_another_tag_is_not_seen(self, pair: list[Any]) -> None:
        alice, bob = pair
        alice.send("bob", "t", 1)
        wait_until(lambda: bob.has_message("alice", "t"))
        assert not bob.has_message("alice", "u")


class TestHandles:
    def test_done_once_the_peer_has_received_it(self, pair: list[Any]) -> None:
        alice, bob = pair
        request = alice.send("bob", "t", 1)
        assert not request.test()
        bob.recv("alice", "t")
        request.wait(10)
        assert request.test()
        request.wait(0)

    def test_waiting_ends_when_the_peer_receives(self, pair: list[Any]) -> None:
        alice, bob = pair
        request = alice.send("bob", "t", 1)
        started = in_thread(request.wait)
        bob.recv("alice", "t")
        assert outcome(started) is None

    def test_waiting_for_a_peer_that_does_not_receive(self, pair: list[Any]) -> None:
        alice, bob = pair
        with pytest.raises(SendTimeout, match=r"bob has not taken .* with tag .*t' in 0\.05 s"):
            alice.send("bob", "t", 1).wait(0.05)
        assert bob.recv("alice", "t") == 1

    def test_a_message_that_was_peeked_at_is_received(self, pair: list[Any]) -> None:
        alice, bob = pair
        request = alice.send("bob", "t", 1)
        wait_until(lambda: bob.has_message("alice", "t"))
        request.wait(10)
        assert bob.recv("alice", "t") == 1

    def test_send_sync(self, pair: list[Any]) -> None:
        alice, bob = pair
        started = in_thread(lambda: alice.send_sync("bob", "t", [1]))
        wait_until(lambda: waits_for_acks(alice))
        assert not started[1]
        assert bob.recv("alice", "t") == [1]
        assert outcome(started) is None

    def test_send_sync_times_out(self, pair: list[Any]) -> None:
        alice, bob = pair
        with pytest.raises(SendTimeout, match="bob"):
            alice.send_sync("bob", "t", 1, timeout=0.05)
        assert bob.recv("alice", "t") == 1

    def test_waiting_ends_when_the_peer_aborts(self, pair: list[Any]) -> None:
        alice, bob = pair
        started = in_thread(alice.send("bob", "t", 1).wait)
        bob.abort("no more")
        assert isinstance(outcome(started), PeerAborted)

    def test_waiting_ends_when_the_peer_closes_without_receiving(self, pair: list[Any]) -> None:
        alice, bob = pair
        alice.send("bob", "taken", 1)
        request = alice.send("bob", "t", 1)
        assert bob.recv("alice", "taken") == 1
        started = in_thread(request.wait)
        bob.close()
        error = outcome(started)
        assert isinstance(error, PeerClosed)
        assert "bob has left the session without taking the message with tag" in str(error)
        assert not request.test()

    def test_waiting_ends_when_this_party_closes(self, make: Make) -> None:
        alice, _ = make(close_timeout=0.1)
        request = alice.send("bob", "t", 1)
        started = in_thread(request.wait)
        alice.close()
        assert isinstance(outcome(started), EndpointClosed)


class TestTimeouts:
    def test_a_receive_ends_in_time_and_says_whom_it_waited_for(self, pair: list[Any]) -> None:
        alice, bob = pair
        started = time.monotonic()
        with pytest.raises(
            RecvTimeout, match=r"bob: waited 0.1 s for tag .*t'.* from alice"
        ) as caught:
            bob.recv("alice", "t", timeout=0.1)
        assert 0.1 <= time.monotonic() - started < 5
        assert isinstance(caught.value, TimeoutError)
        alice.send("bob", "t", "late")
        assert bob.recv("alice", "t") == "late"

    def test_none_takes_the_receive_timeout(self, make: Make) -> None:
        _, bob = make(recv_timeout=0.1)
        with pytest.raises(RecvTimeout, match=r"0\.1 s"):
            bob.recv("alice", "t")

    def test_zero_takes_what_is_there(self, pair: list[Any]) -> None:
        alice, bob = pair
        with pytest.raises(RecvTimeout):
            bob.recv("alice", "t", timeout=0)
        alice.send("bob", "t", 1).test()
        wait_until(lambda: bob.has_message("alice", "t"))
        assert bob.recv("alice", "t", timeout=0) == 1

    def test_forever(self, pair: list[Any]) -> None:
        alice, bob = pair
        alice.send("bob", "t", 1)
        assert bob.recv("alice", "t", timeout=float("inf")) == 1

    def test_wrong_ones(self, pair: list[Any]) -> None:
        alice, bob = pair
        for timeout in (-1, float("nan"), True, "1"):
            with pytest.raises(UsageError, match="a timeout is a number of seconds"):
                bob.recv("alice", "t", timeout)
            with pytest.raises(UsageError, match="a timeout is a number of seconds"):
                alice.send_sync("bob", "t", 1, timeout)
        assert not bob.has_message("alice", "t")


class TestWrongUse:
    def test_parties(self, pair: list[Any]) -> None:
        alice, _ = pair
        for party in ("mallory", "", "alice", 0, 2, -1, True, 1.0, None, ["bob"]):
            for call in (
                lambda p: alice.send(p, "t", 1),
                lambda p: alice.send_sync(p, "t", 1),
                lambda p: alice.recv(p, "t"),
                lambda p: alice.has_message(p, "t"),
                lambda p: alice.peek_message(p, "t"),
            ):
                with pytest.raises(UsageError, match=r"alice: .*use one of bob"):
                    call(party)

    def test_tags(self, pair: list[Any]) -> None:
        alice, _ = pair
        for tag in ("", "a" * 508, "\ud800", b"t", 1, None):
            for call in (
                lambda t: alice.send("bob", t, 1),
                lambda t: alice.recv("bob", t),
                lambda t: alice.has_message("bob", t),
            ):
                with pytest.raises(UsageError, match=r"alice: .*tag"):
                    call(tag)

    def test_values(self, pair: list[Any]) -> None:
        alice, bob = pair
        for value in ({1, 2}, object(), [np.array([None])]):
            with pytest.raises(PayloadTypeError):
                alice.send("bob", "t", value)
        alice.send("bob", "t", "good")
        assert bob.recv("alice", "t") == "good"

    def test_names_of_subs(self, pair: list[Any]) -> None:
        for name in ("", "a/b", "a:b", "a b", "ü", "~", "x" * 300, 1, None):
            with pytest.raises(UsageError, match="namespace"):
                pair[0].sub(name)


class TestAbort:
    def test_every_blocked_peer_learns_why(self, make: Make) -> None:
        alice, bob, carol = make(3)
        started = [
            start_recv(bob, "alice", "t"),
            start_recv(carol, "alice", "t"),
            start_recv(carol, "bob", "u", 2),
        ]
        alice.abort("out of\nmemory")
        for one in started:
            error = outcome(one)
            assert isinstance(error, PeerAborted)
            assert (error.peer, error.reason) == ("alice", "out of memory")

    def test_nothing_goes_on_afterwards(self, pair: list[Any]) -> None:
        alice, bob = pair
        alice.send("bob", "t", 1)
        started = start_recv(bob, "alice", "u")
        alice.abort("broken")
        assert isinstance(outcome(started), PeerAborted)
        for call in (
            lambda: bob.recv("alice", "t"),
            lambda: bob.send("alice", "t", 1),
            lambda: bob.has_message("alice", "t"),
            lambda: bob.peek_message("alice", "t"),
        ):
            with pytest.raises(PeerAborted, match="broken"):
                call()
        for call in (
            lambda: alice.recv("bob", "t"),
            lambda: alice.send("bob", "t", 1),
            lambda: alice.has_message("bob", "t"),
        ):
            with pytest.raises(EndpointClosed):
                call()
        alice.abort("again")
        alice.close()
        bob.close()

    def test_own_blocked_calls_end(self, pair: list[Any]) -> None:
        alice, _ = pair
        started = start_recv(alice, "bob", "t")
        alice.abort("broken")
        assert isinstance(outcome(started), EndpointClosed)

    def test_an_exception_in_the_block_aborts_and_leaks_no_text(self, pair: list[Any]) -> None:
        alice, bob = pair
        started = start_recv(bob, "alice", "t")
        with pytest.raises(ValueError, match="secret"), alice:
            raise ValueError("secret 42")
        assert outcome(started).reason == "ValueError in its program"

    def test_an_error_of_ours_in_the_block_is_told(self, pair: list[Any]) -> None:
        alice, bob = pair
        started = start_recv(bob, "alice", "t")
        with pytest.raises(RecvTimeout), alice:
            alice.recv("bob", "u", timeout=0.01)
        assert "waited 0.01 s" in outcome(started).reason

    @pytest.mark.parametrize("error", [PeerLost("carol", 30.1), KeyError("age")], ids=repr)
    def test_the_peers_learn_whether_it_may_pass(self, pair: list[Any], error: Exception) -> None:
        alice, bob = pair
        started = start_recv(bob, "alice", "t")
        with pytest.raises(type(error)), alice:
            raise error
        assert outcome(started).retryable is isinstance(error, PeerLost)

    def test_of_a_sub_is_of_all(self, pair: list[Any]) -> None:
        alice, bob = pair
        started = start_recv(bob, "alice", "t")
        alice.sub("x").abort("broken")
        assert isinstance(outcome(started), PeerAborted)


class TestClose:
    def test_what_was_sent_before_is_received_and_then_nothing(self, pair: list[Any]) -> None:
        alice, bob = pair
        alice.send("bob", "t", 1)
        closing = in_thread(alice.close)
        assert bob.recv("alice", "t") == 1
        assert outcome(closing) is None
        with pytest.raises(PeerClosed, match="alice has left the session without sending tag"):
            bob.recv("alice", "t")
        with pytest.raises(PeerClosed, match="alice has left the session"):
            bob.send("alice", "t", 1)
        assert not bob.has_message("alice", "t")
        assert bob.peek_message("alice", "t") is None

    def test_a_blocked_peer_learns_it(self, pair: list[Any]) -> None:
        alice, bob = pair
        started = start_recv(bob, "alice", "t")
        with alice:
            pass
        error = outcome(started)
        assert isinstance(error, PeerClosed)
        assert error.peer == "alice"

    def test_the_others_go_on(self, make: Make) -> None:
        alice, bob, carol = make(3)
        alice.close()
        bob.send("carol", "t", 1)
        assert carol.recv("bob", "t") == 1

    def test_nothing_works_afterwards(self, pair: list[Any]) -> None:
        alice, _ = pair
        started = start_recv(alice, "bob", "t")
        alice.close()
        assert isinstance(outcome(started), EndpointClosed)
        alice.close()
        alice.abort("too late")
        for call in (
            lambda: alice.send("bob", "t", 1),
            lambda: alice.recv("bob", "t"),
            lambda: alice.has_message("bob", "t"),
            lambda: alice.peek_message("bob", "t"),
            lambda: alice.sub("x").send("bob", "t", 1),
        ):
            with pytest.raises(EndpointClosed):
                call()


class TestNamespaces:
    def test_the_same_tag_in_two_namespaces(self, pair: list[Any]) -> None:
        alice, bob = pair
        spaces = [(c.sub("x"), c.sub("y"), c.sub("x").sub("y"), c) for c in (alice, bob)]
        assert [c.namespace for c in spaces[0]] == ["app/x", "app/y", "app/x/y", "app"]
        for place, sender in enumerate(spaces[0]):
            sender.send("bob", "t", place)
        assert [c.recv("alice", "t") for c in reversed(spaces[1])] == [3, 2, 1, 0]

    def test_the_same_name_is_the_same_namespace(self, pair: list[Any]) -> None:
        alice, bob = pair
        alice.sub("x").send("bob", "t", 1)
        assert bob.sub("x").recv("alice", "t") == 1

    @given(
        *[st.lists(st.text("ab-.", min_size=1, max_size=3), max_size=3)] * 2,
        *[st.text("a:/~-.", min_size=1, max_size=6)] * 2,
    )
    def test_no_two_meet(self, names: list[str], others: list[str], tag: str, other: str) -> None:
        full = [
            ThreadCommunicator.make(2, namespace="/".join(["n", *space]))[0]._full_tag(text)
            for space, text in ((names, tag), (others, other))
        ]
        assert (full[0] == full[1]) == ((names, tag) == (others, other))
        assert full[0][0] == "~"  # no device's name begins so, and SPU's tags begin with one

    def test_a_sub_is_the_same_party(self, pair: list[Any]) -> None:
        sub = pair[1].sub("x")
        assert isinstance(sub, Communicator)
        assert (sub.party, sub.rank, sub.party_names) == ("bob", 1, ("alice", "bob"))
        assert "bob" in repr(sub)
        assert "app/x" in repr(sub)

    def test_closing_a_sub_ends_its_calls_and_no_others(self, pair: list[Any]) -> None:
        alice, bob = pair
        sub, again = bob.sub("x"), bob.sub("x")
        beneath = sub.sub("y")
        started = [
            start_recv(c, "alice", "t", n) for n, c in enumerate((bob, sub, again, beneath), 1)
        ]
        with sub:
            pass
        for ended in (started[1], started[3]):
            assert isinstance(outcome(ended), EndpointClosed)
        for closed in (sub, beneath, sub.sub("z")):
            with pytest.raises(EndpointClosed, match="app/x is closed"):
                closed.send("alice", "t", 1)
        alice.send("bob", "t", "to bob")
        alice.sub("x").send("bob", "t", "to the other")
        assert outcome(started[0]) == "to bob"
        assert outcome(started[2]) == "to the other"


class TestOverAnEndpoint:
    def test_others_on_the_endpoint_are_not_met(self, mesh: Any, broker_url: str) -> None:
        endpoints = mesh(broker_url, 2, close_timeout=1)
        alice, bob = (RedisCommunicator(e, namespace="n") for e in endpoints)
        for tag in ("t", "n/t", "n:t", "SEMI2K.1/t"):
            endpoints[0].send("bob", tag, b"not ours")
        alice.send("bob", "t", "ours")
        assert bob.recv("alice", "t") == "ours"
        assert not bob.has_message("alice", "t")
        assert endpoints[1].recv("alice", "t") == b"not ours"
        assert bob.endpoint is endpoints[1]

    def test_a_large_value_in_chunks(self, mesh: Any, broker_url: str) -> None:
        endpoints = mesh(broker_url, 2, close_timeout=1, chunk_bytes=10_000)
        alice, bob = map(RedisCommunicator, endpoints)
        alice.send("bob", "t", {"a": np.arange(100_000)})
        assert np.array_equal(bob.recv("alice", "t")["a"], np.arange(100_000))


class TestThreads:
    def test_parties_by_number(self) -> None:
        made = ThreadCommunicator.make(3)
        assert [c.party for c in made] == ["party0", "party1", "party2"]
        made[2].send("party0", "t", 1)
        assert made[0].recv(2, "t") == 1

    @pytest.mark.parametrize("parties", [0, 1, -1, ["a"], ["a", "a"], ["a", "b c"], ["a", 1]])
    def test_wrong_parties(self, parties: Any) -> None:
        with pytest.raises(UsageError):
            ThreadCommunicator.make(parties)

    @pytest.mark.parametrize("namespace", ["", "/", "a//b", "a:b", "~", "x" * 257, None])
    def test_wrong_namespaces(self, namespace: Any) -> None:
        with pytest.raises(UsageError, match="namespace"):
            ThreadCommunicator.make(2, namespace=namespace)

    def test_a_wrong_timeout(self) -> None:
        with pytest.raises(UsageError, match="timeout"):
            ThreadCommunicator.make(2, recv_timeout=-1)

    def test_nothing_is_kept(self) -> None:
        alice, bob = ThreadCommunicator.make(2)
        hub = alice._hub
        for i in range(100):
            request = alice.send("party1", f"t{i}", i)
            assert bob.recv("party0", f"t{i}") == i
            assert request.test()
            assert not request._message.data
        assert not bob.has_message(0, "t")
        assert not hub.parties[1].inbox
        for who in (0, 1):
            both = ThreadCommunicator.make(2)
            both[0].send(1, "t", 1)
            both[who].abort("broken")
            assert not both[0]._hub.parties[1].inbox

    def test_a_message_that_is_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("redislink.communicator.threads.MAX_MESSAGE_BYTES", 10)
        alice, bob = ThreadCommunicator.make(2)
        with pytest.raises(UsageError, match="too large"):
            alice.send(1, "t", bytes(11))
        assert not bob.has_message(0, "t")

    def test_errors_are_in_the_tree(self) -> None:
        assert issubclass(ValueDecodeError, RedisLinkError)
