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
    assert len(ahead._last) <= 256
