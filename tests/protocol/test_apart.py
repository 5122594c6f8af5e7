"""Messages whose rest travels apart: what is cut, where it goes, and how it is joined."""

import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.errors import FrameError
from redislink.protocol.chunking import (
    MOST_APART,
    NOTHING,
    OVERHEAD,
    Reassembly,
    choose_apart,
    split,
)
from redislink.protocol.delivery import Delivery, Leftover, Timing
from redislink.protocol.frame import Ack, AckState, Data, Probe, Says
from redislink.protocol.received import ReceivedNumbers
from tests.protocol.pair import REST, Pair, numbers, tag_of, take_pushes

PART = 1000
TIMING = Timing(part_bytes=PART)
MESSAGE = random.Random(1).randbytes(10 * PART)
"""Ten chunks."""


def test_sizes():
    def sizes(cost: int, least: int, most: int = 1 << 20) -> list[int]:
        return [choose_apart(size, cost, least, most) for size in (100, 8000, 65536, 1 << 20)]

    assert sizes(400, 1024) == [0, 1788, 5120, 20480], "20 Mbit/s"
    assert sizes(2500, 1024) == [0, 0, 12800, 51200], "300 Mbit/s"
    assert sizes(0, 4096) == [0, 0, 4096, 16384]
    assert sizes(0, 0) == [0, 0, 0, 0]
    assert sizes(2500, 1024, most=10_000) == [0, 0, 10_000, 10_000]
    assert choose_apart(MOST_APART, 0, 1, 1 << 20) == 65536
    assert choose_apart(MOST_APART + 1, 0, 1, 1 << 20) == 0


@pytest.mark.parametrize("cost", [0, 1, 300, 2500])
@pytest.mark.parametrize("least", [1, 1024])
def test_what_is_sent_whole_is_what_is_not_cut(cost, least):
    """The short way must not take what the long way cuts."""
    timing = Timing(part_bytes=least, frame_cost=cost)
    whole = Delivery("bob", timing, 0.0)._sending._whole_bytes
    for size in range(1, 3 * whole + 10):
        if choose_apart(size, cost, least, timing.chunk_bytes):
            assert size > whole
            break
    assert size - whole < 50, "and hardly anything else"


def frames_of(message: bytes, first: int, previous: int = 0) -> list[tuple[Data, bytes]]:
    bodies = [bytes(body) for body in split(message, PART)]
    apart = len(bodies) > 1
    return [
        (Data(first + part, part, len(bodies), previous, apart=apart), body)
        for part, body in enumerate(bodies)
    ]


@given(
    st.lists(
        st.tuples(st.sampled_from("tu"), st.integers(0, 4500)), min_size=1, max_size=6
    ).flatmap(lambda sent: st.tuples(st.just(sent), st.randoms(use_true_random=False)))
)
def test_chunks_come_in_any_order_and_each_message_is_whole(drawn):
    sent, rng = drawn
    number, firsts, elements = 1, {}, []
    expected = {"t": [], "u": []}
    for tag, size in sent:
        body = rng.randbytes(size)
        expected[tag].append(body)
        frames = frames_of(body, number, firsts.get(tag, 0))
        firsts[tag] = number
        number += len(frames)
        elements += [(tag, frame, chunk) for frame, chunk in frames]
    rng.shuffle(elements)
    reassembly, received = Reassembly(), ReceivedNumbers()
    got = {"t": [], "u": []}
    for tag, frame, chunk in elements:
        if frame.is_rest:
            known = reassembly.tag_of(frame)
            assert reassembly.add_rest(frame, chunk, received) == known
            assert known in (tag, None)
        else:
            reassembly.add(tag, frame, chunk, received)
        for each, messages in got.items():
            while (message := reassembly.take(each)) is not None:
                messages.append(message[0])
    assert got == expected
    assert reassembly.bytes == 0
    assert not any([reassembly.tags, reassembly._rests, reassembly._tag_of])


@pytest.mark.parametrize("first_comes_first", [True, False])
@pytest.mark.parametrize(
    ("wrong", "size"),
    [
        (Data(3, 2, 9, apart=True), PART),
        (Data(3, 2, 10, 0), PART),
        (Data(13, 2, 10, 5, apart=True), PART),
        (Data(3, 2, 10, apart=True), PART + 1),
        (Data(3, 2, 10, apart=True), PART - 1),
        (Data(3, 2, 10, apart=True), 0),
        (Data(10, 9, 10, apart=True), PART + 1),
    ],
)
def test_chunks_that_contradict_each_other(wrong, size, first_comes_first):
    reassembly, received = Reassembly(), ReceivedNumbers()
    offset = wrong.seq - wrong.part - 1
    frames = frames_of(MESSAGE, 1 + offset)
    first, second = frames[0], frames[1]
    if first_comes_first:
        reassembly.add("t", *first, received)
    else:
        reassembly.add_rest(*second, received)
    before = reassembly.bytes, received.cumulative, wrong.seq in received
    add = reassembly.add_rest if wrong.is_rest else partial(reassembly.add, "t")
    with pytest.raises(FrameError):
        add(wrong, bytes(size), received)
    assert (reassembly.bytes, received.cumulative, wrong.seq in received) == before


def test_what_is_kept_of_rests_counts():
    reassembly, received = Reassembly(), ReceivedNumbers()
    frames = frames_of(MESSAGE, 1)
    for frame, body in frames[1:]:
        assert reassembly.add_rest(frame, body, received) is None
    assert reassembly.bytes == 9 * (PART + OVERHEAD)
    assert reassembly.missing("t") == NOTHING
    reassembly.clear()
    assert reassembly.bytes == 0


def test_what_is_missing_is_to_come_apart():
    reassembly, received = Reassembly(), ReceivedNumbers()
    reassembly.add("t", *frames_of(MESSAGE, 1)[0], received)
    reassembly.add("u", Data(20, 0, 2), b"x" * PART, received)
    assert reassembly.missing("t") == (9, PART, True)
    assert [reassembly.missing(tag).apart for tag in "tuv"] == [True, False, False]


def test_only_the_list_of_rests_and_tags_lists_take_rests():
    bob = Delivery("alice", TIMING, 0.0)
    with pytest.raises(FrameError, match="no rest"):
        bob.receive_data(None, Data(1), b"x", 0.0)
    with pytest.raises(FrameError, match="no rest"):
        bob.receive_data(None, Data(1, 0, 2, apart=True), b"x", 0.0)
    bob.receive_data("any", Data(2, 1, 2, apart=True), b"y", 0.0)
    assert bob.receive_data("t", Data(1, 0, 2, apart=True), b"x", 0.0, take=True)[0] == b"xy"
    assert bob.take("any") is None


@pytest.fixture
def alone() -> Delivery:
    return Delivery("bob", TIMING, 0.0)


def lists(pushes) -> list[str | None]:
    return [tag_of(push) for push in pushes]


def test_the_rest_goes_onto_its_list_once_and_then_onto_its_tags(alone):
    alone.send("t", MESSAGE, 0.0)
    pushes = take_pushes(alone)
    assert lists(pushes) == ["t", *[REST] * 9]
    assert all(push.frame.apart for push in pushes)
    alone.reconnected(1.0)
    again = [push for push in alone.pushes() if isinstance(getattr(push, "frame", None), Data)]
    assert [push.again for push in again] == [True] * 10
    assert lists(again) == ["t"] * 10
    assert [push.frame for push in again] == [push.frame for push in pushes]
    assert [push.is_rest for push in again] == [push.is_rest for push in pushes]


def test_messages_that_wait_their_turn_do_not_travel_apart():
    alone = Delivery("bob", Timing(part_bytes=PART, uplink=len(MESSAGE)), 0.0)
    apart = ["t", *[REST] * 9]
    for now in (0.0, 0.0, 0.0):  # each takes the line a second
        alone.send("t", MESSAGE, now)
    assert lists(take_pushes(alone)) == [*apart, *apart, "t"]
    for now in (0.9, 2.1, 4.1):
        alone.send("t", MESSAGE, now)
    assert lists(take_pushes(alone)) == ["t", *apart, *apart]


def test_a_peer_that_acks_late_gets_the_rest_apart_all_the_same(alone):
    for _ in range(20):
        alone.send("t", MESSAGE, 0.0)
    assert lists(take_pushes(alone)).count(REST) == 20 * 9


def test_so_much_travels_apart_at_a_time():
    alone = Delivery("bob", Timing(part_bytes=4096), 0.0)
    for n, size in enumerate([MOST_APART // 2, MOST_APART // 2, 8192]):
        alone.send(f"t{n}", bytes(size), 0.0)
    assert lists(take_pushes(alone)).count("t2") == 1
    assert alone.pushes() == []
    last = alone._sending.last_seq
    alone.receive_control(Ack(AckState(last)), 0.1)
    alone.send("t3", bytes(8192), 0.1)
    assert lists(take_pushes(alone)) == ["t3", REST]


def test_nothing_travels_apart_if_the_broker_takes_no_elements_of_that_size(alone):
    alone.cut_finer(PART - 1)
    alone.send("t", MESSAGE, 0.0)
    assert set(lists(take_pushes(alone))) == {"t"}


def acked(delivery: Delivery, number: int, now: float, edition: int = 0) -> list:
    delivery.receive_control(Ack(AckState(number, (), edition)), now)
    return delivery.pushes()


def test_what_was_pushed_twice_is_removed_once_all_is_acked(alone):
    alone.send("t", MESSAGE, 0.0)
    alone.send("u", MESSAGE, 0.0)
    take_pushes(alone)
    alone.receive_control(Probe(("t",), AckState(0), Says.OVERDUE), 1.0)
    take_pushes(alone)
    assert Leftover(None) not in acked(alone, 10, 1.1), "u is still under way"
    assert Leftover(None) in acked(alone, 20, 1.2)
    alone.send("v", MESSAGE, 2.0)
    take_pushes(alone)
    assert acked(alone, 30, 2.1) == [], "all went as it should"


def test_the_list_of_an_edition_that_is_left_is_removed(alone):
    alone.send("t", MESSAGE, 0.0)
    take_pushes(alone)
    pushes = acked(alone, 0, 1.0, edition=1)
    assert {Leftover("t"), Leftover(None)} <= {p for p in pushes if isinstance(p, Leftover)}
    assert lists(pushes).count(REST) == 1, "only the one that is removed"


def test_a_conversation_that_fails_leaves_no_rests(alone):
    alone.send("t", MESSAGE, 0.0)
    take_pushes(alone)
    alone.abort("enough")
    assert Leftover(None) in alone.pushes()


@pytest.mark.parametrize("lost", range(10))
def test_any_lost_chunk_comes_again(lost):
    pair = Pair(TIMING)
    pair.loses = lambda push: not push.again if numbers([push]) == [lost + 1] else False
    pair.alice.send("t", MESSAGE, 0.0)
    assert pair.wait_for(pair.bob, "t", 5.0) == MESSAGE
    pair.advance(1.0)
    assert pair.alice.all_acked
    assert not any(pair.lists.values())
