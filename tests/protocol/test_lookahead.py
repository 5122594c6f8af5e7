"""What comes next: known families are foreseen, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.protocol.lookahead import Family, LookAhead


def test_yacl_point_to_point():
    ahead = LookAhead()
    assert ahead.observe("root:P2P-7:0->1") is None
    family = ahead.observe("root:P2P-8:0->1")
    assert family == Family("root:P2P-", 9, ":0->1")
    assert family.tags([9, 10]) == ["root:P2P-9:0->1", "root:P2P-10:0->1"]


def test_collectives_and_sub_links():
    ahead = LookAhead()
    ahead.observe("S.1/root-1:3:ALLGATHER")
    assert ahead.observe("S.1/root-1:4:ALLGATHER") == Family("S.1/root-1:", 5, ":ALLGATHER")


def test_families_do_not_disturb_each_other():
    ahead = LookAhead()
    for n in range(5):
        one, other = ahead.observe(f"a:{n}"), ahead.observe(f"b:{2 * n}")
    assert one == Family("a:", 5, "", run=5)
    assert other is None


def test_how_many_came_in_a_row():
    ahead = LookAhead()
    runs = [ahead.observe(tag) for tag in ("t1-1", "t1-2", "t1-3", "t2-3", "t3-3", "t3-5", "t3-6")]
    assert [family and family.run for family in runs] == [None, 2, 3, 2, 3, None, 2]


@pytest.mark.parametrize(
    "tags",
    [
        ["no number", "no number"],
        ["t1", "t1"],
        ["t1", "t3"],
        ["t2", "t1"],
        ["t1-1", "t2-2"],
        ["t01", "t02"],
        ["t" + "9" * 16, "t1" + "0" * 16],
        ["t1" + "0" * 15, "t1" + "0" * 14 + "1"],
    ],
)
def test_what_is_not_foreseen(tags):
    ahead = LookAhead()
    assert [ahead.observe(tag) for tag in tags] == [None] * len(tags)


@given(st.lists(st.text(max_size=20), max_size=50), st.integers(0, 5))
def test_any_tags(tags, count):
    ahead = LookAhead()
    for tag in tags:
        family = ahead.observe(tag)
        if family is not None:
            following = family.tags(range(family.next, family.next + count))
            assert len(set(following)) == count
            assert tag not in following
            assert family.tags([family.next - 1]) == [tag]


def test_what_is_remembered_is_bounded():
    ahead = LookAhead()
    for n in range(2000):
        ahead.observe("x" * n + "1")
    assert len(ahead._last) == 256
    assert ahead.observe("x" * 1999 + "2") is not None
    assert ahead.observe("x" * 1744 + "2") is not None, "the oldest that is still known"
    assert ahead.observe("x" * 1743 + "2") is None


def test_numbers_of_fifteen_digits_are_foreseen():
    ahead = LookAhead()
    ahead.observe("t1" + "0" * 14)
    assert ahead.observe("t1" + "0" * 13 + "1").next == 10**14 + 2


def test_a_family_has_one_name_and_no_other_has_it():
    ahead = LookAhead()
    tags = ["a1-1", "a2-1", "a3-1", "a3-2", "b1-1", "b2-1"]
    names = [family.name for family in map(ahead.observe, tags) if family is not None]
    assert names == [("a", "-1"), ("a", "-1"), ("a3-", ""), ("b", "-1")]
