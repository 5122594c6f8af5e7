"""When breaking connections are put down to the size of what is pushed, and when not."""

from __future__ import annotations

import pytest

from redislink.protocol.element_size import LEAST, ElementSize

MIB = 1 << 20


@pytest.fixture
def size() -> ElementSize:
    return ElementSize(patience=30.0)


def break_at(size: ElementSize, largest: int, times: int, now: float = 0.0) -> list[bool]:
    return [size.broke(largest, now + n) for n in range(times)]


def test_three_breaks_at_a_size_lower_the_limit(size):
    assert break_at(size, MIB, 3) == [False, False, True]
    assert size.limit == MIB // 4


def test_it_goes_on_to_the_least(size):
    limits = [size.limit for _ in range(20) if size.broke(MIB, 0.0)]
    assert limits == [MIB // 4, MIB // 16, LEAST]


def test_what_is_answered_in_between_begins_the_count_anew(size):
    for _ in range(20):
        assert break_at(size, MIB, 2) == [False, False]
        size.answered(MIB)
    assert size.limit is None


def test_smaller_ones_say_nothing(size):
    break_at(size, MIB, 2)
    size.answered(MIB - 1)
    assert size.broke(MIB, 9.0)


def test_the_least_that_broke_counts(size):
    """Only what was under way each time can be to blame."""
    size.broke(MIB, 0.0)
    size.broke(100, 1.0)
    size.answered(100)
    assert break_at(size, MIB, 2) == [False, False]


def test_breaks_without_anything_under_way_say_nothing(size):
    assert not any(break_at(size, 0, 100))
    assert not size.is_hopeless(1000.0)


def test_a_fragment_answered_clears_its_size(size):
    break_at(size, MIB, 5)
    size.answered(MIB)  # in fragments of the limit
    assert size.suspected == 0
    assert size.limit == MIB // 4


@pytest.mark.parametrize("largest", [MIB, LEAST, 50])
def test_what_nothing_helps_against_is_hopeless_in_time(size, largest):
    now = 0.0
    while now < 30.0:
        assert not size.is_hopeless(now)
        size.broke(largest, now)
        now += 1.0
    size.broke(largest, now)
    assert size.is_hopeless(now)
    size.answered(largest)
    assert not size.is_hopeless(now)


def test_what_gets_lost_whenever_it_is_taken_is_cut(size):
    assert size.lost(MIB)
    assert size.limit == MIB // 4
    assert not size.lost(MIB)  # pushed before, and in fragments from now on
    assert size.lost(size.limit)
    assert not size.lost(LEAST)


def test_what_is_under_way_is_suspected_and_the_breaks_are_counted(size):
    assert (size.limit, size.suspected, size.breaks) == (None, 0, 0)
    for count, (largest, suspected) in enumerate([(MIB, MIB), (5000, 5000), (2 * MIB, 5000)], 1):
        size.broke(largest, 0.0)
        assert (size.suspected, size.breaks) == (suspected, count)
    size.answered(5000)
    assert (size.limit, size.suspected, size.breaks) == (None, 0, 0)


def test_each_size_breaks_three_times_before_the_next(size):
    lowered = [n for n in range(1, 10) if size.broke(MIB, 0.0)]
    assert lowered == [3, 6, 9]
    size = ElementSize(patience=30.0)
    break_at(size, MIB, 4)
    assert size.suspected == MIB // 4, "in fragments of the limit"


def test_patience_begins_with_the_first_break(size):
    break_at(size, LEAST, 3, now=1000.0)
    assert not size.is_hopeless(1029.0)
    assert size.is_hopeless(1030.0)
    size.answered(LEAST)
    break_at(size, LEAST, 3, now=2000.0)
    assert not size.is_hopeless(2029.0)
    assert size.is_hopeless(2030.0)


def test_hopeless_takes_as_many_breaks_as_any_size(size):
    break_at(size, LEAST, 2)
    assert not size.is_hopeless(1000.0)
