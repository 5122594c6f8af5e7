"""Elements that travel in fragments, in any order, doubled and lost, from anybody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.errors import FrameError
from redislink.protocol.fragments import Fragments, split_element
from redislink.protocol.frame import (
    Ack,
    AckState,
    Data,
    Fragment,
    Hello,
    Sealed,
    encode,
    encode_header,
    is_fragment,
)

NAME = b"rl:{s:bob}:alice:0:t"


def fragments_of(element: bytes, number: int, most: int) -> list[bytes]:
    return [b"".join(pair) for pair in split_element((element[:34], element[34:]), number, most)]


@given(
    st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4),
    st.integers(1, 60),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_whatever_order_they_come_in(elements, most, copies, rng):
    came = [f for n, e in enumerate(elements, 1) for f in fragments_of(e, n, most)]
    assert all(len(f) <= most + 20 and is_fragment(f) for f in came)
    first = came * copies
    rng.shuffle(first)
    fragments, whole = Fragments(1 << 20), []
    for fragment in first:
        element = fragments.add_untrusted(NAME, fragment)
        whole += [] if element is None else [element]
    assert set(whole) == set(elements)


def test_lists_do_not_mix():
    fragments = Fragments(1 << 20)
    one, two = fragments_of(b"from one list", 1, 8), fragments_of(b"from another ", 1, 8)
    assert fragments.add_untrusted(b"a", one[0]) is None
    assert fragments.add_untrusted(b"b", two[1]) is None
    assert fragments.add_untrusted(b"a", one[1]) == b"from one list"
    assert fragments.add_untrusted(b"b", two[0]) == b"from another "
    assert fragments.bytes == 0


def test_what_was_cut_otherwise_the_second_time():
    fragments = Fragments(1 << 20)
    for fragment in fragments_of(b"x" * 100, 1, 40)[:-1]:
        assert fragments.add_untrusted(NAME, fragment) is None
    *most, last = fragments_of(b"x" * 100, 1, 10)
    for fragment in most:
        assert fragments.add_untrusted(NAME, fragment) is None
    assert fragments.add_untrusted(NAME, last) == b"x" * 100
    assert fragments.bytes == 0


@pytest.mark.parametrize(
    "endless",
    [lambda n: Fragment(n, 0, 2), lambda n: Fragment(1, n, 1 << 20)],
    ids=["beginnings", "one element"],
)
def test_what_is_kept_is_bounded(endless):
    """The oldest goes first, and may come again."""
    fragments = Fragments(10_000)
    for number in range(1, 2000):
        assert fragments.add_untrusted(NAME, encode(endless(number), b"x" * 50)) is None
        assert fragments.bytes <= 10_000
    for fragment in fragments_of(b"x" * 100, 5000, 60):
        element = fragments.add_untrusted(NAME, fragment)
    assert element == b"x" * 100


def test_what_is_none():
    for frame in (Data(1), Ack(AckState(0)), Hello(bytes(32), bytes(8)), Sealed(1)):
        assert not is_fragment(encode(frame))
        with pytest.raises(FrameError, match="where a fragment belongs"):
            Fragments(1000).add_untrusted(NAME, encode(frame))
    for data in (b"", b"\2\0", encode_header(Fragment(1, 0, 2))[:-1]):
        with pytest.raises(FrameError):
            Fragments(1000).add_untrusted(NAME, data)


def test_what_is_kept_is_counted_with_its_overhead_and_once():
    fragments = Fragments(1000)
    for _ in range(2):
        fragments.add_untrusted(NAME, encode(Fragment(1, 0, 3), b"x" * 50))
        assert fragments.bytes == 50 + 128
    fragments.add_untrusted(NAME, encode(Fragment(1, 1, 3), b"y" * 10))
    fragments.add_untrusted(NAME, encode(Fragment(2, 0, 2), b"z"))
    assert fragments.bytes == 50 + 10 + 1 + 3 * 128
    fragments.add_untrusted(NAME, encode(Fragment(2, 0, 4), b"z"))  # cut otherwise
    assert fragments.bytes == 50 + 10 + 1 + 3 * 128
    assert fragments.add_untrusted(NAME, encode(Fragment(1, 2, 3), b"!")) == (
        b"x" * 50 + b"y" * 10 + b"!"
    )
    assert fragments.bytes == 1 + 128


def test_the_oldest_is_forgotten_where_the_limit_is_passed_and_not_at_it():
    fragments = Fragments(3 * (50 + 128))
    for number in (1, 2, 3):
        fragments.add_untrusted(NAME, encode(Fragment(number, 0, 2), b"x" * 50))
    assert fragments.bytes == 3 * (50 + 128)
    fragments.add_untrusted(NAME, encode(Fragment(4, 0, 2), b"x" * 50))
    assert fragments.bytes == 3 * (50 + 128)
    assert fragments.add_untrusted(NAME, encode(Fragment(2, 1, 2), b"y")) == b"x" * 50 + b"y"
    assert fragments.add_untrusted(NAME, encode(Fragment(1, 1, 2), b"y")) is None
