"""ReceivedNumbers against a plain set of numbers."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.errors import FrameError
from redislink.protocol.chunking import OVERHEAD
from redislink.protocol.delivery import Timing
from redislink.protocol.frame import MAX_ACK_RANGES, AckState
from redislink.protocol.received import MAX_RANGES, ReceivedNumbers

NUMBERS = st.lists(st.integers(1, 60), max_size=80)


def numbers_in(ack: AckState) -> set[int]:
    named = set(range(1, ack.cumulative + 1))
    for first, last in ack.ranges:
        named.update(range(first, last + 1))
    return named


def received(numbers) -> ReceivedNumbers:
    result = ReceivedNumbers()
    for number in numbers:
        result.add(number)
    return result


@given(NUMBERS)
def test_it_is_a_set(numbers):
    ours, plain = ReceivedNumbers(), set()
    for number in numbers:
        assert ours.add(number) is (number not in plain)
        plain.add(number)
        assert {n for n in range(1, 70) if n in ours} == plain
        assert numbers_in(ours.ack_state()) == plain


@given(NUMBERS)
def test_cumulative_is_the_longest_unbroken_run(numbers):
    cumulative = received(numbers).cumulative
    assert set(range(1, cumulative + 1)) <= set(numbers)
    assert cumulative + 1 not in numbers


def test_nothing_came_yet():
    assert ReceivedNumbers().ack_state() == AckState(0)
    assert 1 not in ReceivedNumbers()


def test_a_gap_that_closes_joins_its_neighbours():
    assert received([1, 3, 5]).ack_state() == AckState(1, ((3, 3), (5, 5)))
    assert received([1, 3, 5, 4]).ack_state() == AckState(1, ((3, 5),))
    assert received([1, 3, 5, 4, 2]).ack_state() == AckState(5)
    assert received([2, 5, 6, 1]).ack_state() == AckState(2, ((5, 6),))
    assert received([2, 5, 6, 8, 1]).ack_state() == AckState(2, ((5, 6), (8, 8)))


@given(st.integers(0, 400), st.randoms(use_true_random=False))
def test_of_many_ranges_each_is_reported_in_turn(count, rng: random.Random):
    numbers = [3 * n for n in range(1, count + 1)]
    rng.shuffle(numbers)
    ours = received(numbers)
    reported = set()
    for _ in range(-(-count // (MAX_ACK_RANGES - 1)) or 1):
        ack = ours.ack_state()
        assert len(ack.ranges) == min(count, MAX_ACK_RANGES)
        assert numbers_in(ack) <= set(numbers)
        assert not numbers or max(numbers) in numbers_in(ack)
        reported |= numbers_in(ack)
    assert reported == set(numbers)


@given(st.integers(65, 200), st.randoms(use_true_random=False))
def test_each_range_is_reported_also_while_others_close(count, rng: random.Random):
    """Acks go on being made while numbers come; a number that stays is reported all the same."""
    ours = received([3 * n for n in range(1, count + 1)])
    watched = 3 * rng.randrange(1, count + 1)
    gaps = [n for n in range(1, 3 * count) if n % 3]
    rng.shuffle(gaps)
    for gap in gaps:
        ours.add(gap)
        if watched in numbers_in(ours.ack_state()):
            return
    raise AssertionError(f"{watched} was never reported")


def test_gaps_are_bounded(monkeypatch):
    monkeypatch.setattr("redislink.protocol.received.MAX_RANGES", 100)
    numbers = ReceivedNumbers()
    for number in range(2, 202, 2):
        assert numbers.add(number)
    before = numbers.ack_state()
    with pytest.raises(FrameError, match="more than 100 gaps"):
        numbers.add(1000)
    assert 1000 not in numbers
    assert numbers.ack_state().cumulative == before.cumulative
    assert numbers.add(3)  # closes one
    assert numbers.add(1000)


def test_the_bound_leaves_room_for_a_window_of_empty_messages():
    assert 2 * Timing().window_bytes // OVERHEAD <= MAX_RANGES
