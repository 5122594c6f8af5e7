"""Lanes on a real broker: messages whose BLPOP is under way before they are asked for."""

import random
import time

import pytest

from redislink import Endpoint, EndpointClosed, RecvCancelled, RecvTimeout
from redislink.broker.inbox import Wait
from redislink.transport import lanes as lanes_module
from redislink.transport.lanes import Lane
from tests.conftest import in_thread, result
from tests.support.waiting import wait_until

DEPTH = 8


@pytest.fixture
def pair(pair_on_valkey):
    """alice and bob, whose lanes are of this depth."""
    return lambda **changes: pair_on_valkey(**({"lookahead": DEPTH} | changes))


def exchange(alice: Endpoint, bob: Endpoint, tags) -> None:
    for tag in tags:
        alice.send("bob", tag, tag.encode())
        assert bob.recv("alice", tag) == tag.encode()


def lanes(endpoint: Endpoint, peer: str):
    return endpoint.parts.core.peers[peer].lanes


def receives(endpoint: Endpoint) -> bool:
    return any(wait.purpose for wait in endpoint.parts.core.inbox.waits())


def test_what_follows_is_foreseen(pair):
    alice, bob = pair()
    exchange(alice, bob, ["t1:x", "t2:x"])
    assert [bool(lanes(bob, "alice").lane_of(f"t{n}:x")) for n in (2, 3, 10, 11)] == [
        *(False, True, True, False)
    ]
    exchange(alice, bob, [f"t{n}:x" for n in range(3, 100)])
    assert lanes(bob, "alice").lane_of("t100:x")
    assert bob.stats().messages_received == 99


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_lane_of_any_depth_goes_on(pair, depth):
    alice, bob = pair(lookahead=depth)
    exchange(alice, bob, [f"t{n}" for n in range(1, 40)])
    lane = lanes(bob, "alice").lane_of("t40")
    assert lane.family.next == 3, "it is the first one"


def test_who_got_a_message_does_not_wait_for_the_next_blpops(pair):
    """They are posted where the thread is about to wait anyway."""
    alice, bob = pair()
    exchange(alice, bob, ["t1", "t2"])
    lane = lanes(bob, "alice").lane_of("t3")
    assert len(lane.posted) == DEPTH
    exchange(alice, bob, [f"t{n}" for n in range(3, 3 + DEPTH // 2)])
    assert len(lane.posted) == DEPTH // 2
    exchange(alice, bob, [f"t{3 + DEPTH // 2}"])
    assert len(lane.posted) == DEPTH - 1


def test_messages_that_came_before_they_are_asked_for(pair):
    alice, bob = pair()
    for n in range(500):
        alice.send("bob", f"t{n}", b"%d" % n)
    assert [bob.recv("alice", f"t{n}") for n in range(500)] == [b"%d" % n for n in range(500)]


def test_a_tag_left_out_holds_up_nothing_and_comes_when_it_is_asked_for(pair):
    alice, bob = pair()
    exchange(alice, bob, ["t1", "t2"])
    alice.send("bob", "t3", b"left out")
    exchange(alice, bob, ["t4", "t5", "t6"])
    assert bob.recv("alice", "t3") == b"left out"
    exchange(alice, bob, ["t7", "t8"])


def test_a_tag_that_never_comes_is_given_up_at_once(pair):
    alice, bob = pair()
    exchange(alice, bob, ["t1", "t2", "t4", "t5", "t6"])
    assert alice.stats().frames_resent == bob.stats().probes_sent == 0


def test_a_family_with_gaps_gets_no_lane_each_time(pair, monkeypatch):
    alice, bob = pair()
    opened = []
    of_bob = lanes(bob, "alice")
    monkeypatch.setattr(lanes_module, "Lane", lambda *args: opened.append(args) or Lane(*args))
    gaps = [n for n in range(1, 200) if n % 3]
    exchange(alice, bob, [f"t{n}" for n in gaps])
    assert len(opened) <= 2
    exchange(alice, bob, [f"t{n}" for n in range(1000, 1030)])
    assert len(opened) <= 3
    assert of_bob.lane_of("t1030"), "in a row for long: foreseen again"


def test_lanes_that_wait_in_vain_lose_nothing(pair, admin):
    alice, bob = pair(blpop_timeout=0.05)
    exchange(alice, bob, ["t1", "t2"])
    port = lanes(bob, "alice").lane_of("t3").wait._connection._wire._socket.getsockname()[1]

    def has_nothing_to_do() -> bool:
        clients = bytes(admin(b"CLIENT", b"LIST")).splitlines()
        client = next(line for line in clients if b" addr=127.0.0.1:%d " % port in line)
        return b" flags=N " in client and b" qbuf=0 " in client

    wait_until(has_nothing_to_do)  # all its BLPOPs have ended; their replies are still to be read
    exchange(alice, bob, [f"t{n}" for n in range(3, 40)])
    assert alice.stats().frames_resent == bob.stats().reconnects == 0


def test_two_threads_of_which_the_second_gets_its_message_first(pair):
    alice, bob = pair()
    exchange(alice, bob, ["t1", "t2"])
    first = in_thread(lambda: bob.recv("alice", "t3"))
    wait_until(lambda: receives(bob))
    alice.send("bob", "t4", b"4")
    assert bob.recv("alice", "t4", timeout=3) == b"4"
    alice.send("bob", "t3", b"3")  # as if because of the other
    assert result(first) == b"3"
    exchange(alice, bob, ["t5", "t6", "t7"])


def test_many_threads_in_any_order(pair):
    alice, bob = pair()
    rng = random.Random(7)
    tags = [f"{family}{n}" for family in "abc" for n in range(150)]
    shares = [tags[i::6] for i in range(6)]
    sent = list(tags)
    rng.shuffle(sent)

    def receive(mine):
        return [bob.recv("alice", tag, timeout=15) for tag in mine]

    waiting = [in_thread(lambda mine=mine: receive(mine)) for mine in shares]
    for tag in sent:
        alice.send("bob", tag, tag.encode())
    assert [result(each) for each in waiting] == [[t.encode() for t in mine] for mine in shares]
    assert bob.stats().messages_received == len(tags)


def test_a_lane_whose_connection_is_killed_loses_and_doubles_nothing(pair, admin):
    alice, bob = pair()
    for round_ in range(10):
        tags = [f"{round_}-t{n}" for n in range(30)]
        receiver = in_thread(lambda tags=tags: [bob.recv("alice", tag) for tag in tags])
        for n, tag in enumerate(tags):
            alice.send("bob", tag, tag.encode())
            if n == 15:
                admin(b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")
        assert result(receiver) == [tag.encode() for tag in tags]
    assert bob.stats().messages_received == 300


def test_closing_ends_a_receive_on_a_lane(pair):
    alice, bob = pair()
    exchange(alice, bob, ["t1", "t2"])
    waiting = in_thread(lambda: bob.recv("alice", "t3"))
    wait_until(lambda: receives(bob))
    bob.close()
    assert isinstance(result(waiting), EndpointClosed)


def test_cancelling_ends_a_receive_on_a_lane(pair):
    alice, bob = pair()
    exchange(alice, bob, ["t1", "t2"])
    waiting = in_thread(lambda: bob.recv("alice", "t3"))
    wait_until(lambda: receives(bob))
    bob.cancel_recv("alice", "t")
    assert isinstance(result(waiting), RecvCancelled)
    exchange(alice, bob, ["t3", "t4", "t5"])


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_short_timeout_holds_on_a_lane_and_loses_nothing(pair, timeout):
    alice, bob = pair(blpop_timeout=60)
    exchange(alice, bob, ["t-1", "t-2", "t-3"])
    lane = lanes(bob, "alice").lane_of("t-4")
    assert lane is not None
    began = time.monotonic()
    with pytest.raises(RecvTimeout):
        bob.recv("alice", "t-4", timeout=timeout)
    assert time.monotonic() - began < 30  # and not the 60 of the BLPOP
    exchange(alice, bob, ["t-4", "t-5"])
    assert lanes(bob, "alice").lane_of("t-6") is lane


def test_a_lane_is_not_given_up_for_another(pair):
    alice, bob = pair()
    families = "abcdefghijkl"
    for n in range(1, 40):
        exchange(alice, bob, [f"{family}{n}" for family in families])
    found = [bool(lanes(bob, "alice").lane_of(f"{family}40")) for family in families]
    assert found == [True] * 8 + [False] * 4
    assert alice.stats().frames_resent == 0


def test_what_a_lane_brings_while_it_is_given_up_counts(pair, monkeypatch):
    alice, bob = pair()
    exchange(alice, bob, ["t1", "t2"])
    of_bob = lanes(bob, "alice")
    lane, read_posted = of_bob.lane_of("t3"), Wait.read_posted

    def read_and_lose_the_lane(wait, *arguments):
        element = read_posted(wait, *arguments)
        with of_bob._lock:
            of_bob._drop(lane)  # as another thread may
        return element

    monkeypatch.setattr(Wait, "read_posted", read_and_lose_the_lane)
    exchange(alice, bob, ["t3"])
    assert bob.stats().probes_sent == alice.stats().frames_resent == 0
    assert lane.wait not in bob.parts.core.inbox._all


def test_none_in_process(mesh):
    alice, bob = mesh("fakeredis://lanes", 2)
    exchange(alice, bob, ["t1", "t2", "t3"])
    assert lanes(bob, "alice").lane_of("t4") is None
