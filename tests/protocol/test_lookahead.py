"""What comes next: known families are foreseen, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.protocol.lookahead import LookAhead


def test_yacl_point_to_point():
    ahead = LookAhead(3)
    assert ahead.observe("root:P2P-7:0->1") is None
    family, tags = ahead.observe("root:P2P-8:0->1")
    assert family == "root:P2P-#:0->1"
    assert tags == ["root:P2P-9:0->1", "root:P2P-10:0->1", "root:P2P-11:0->1"]


def test_collectives_and_sub_links():
    ahead = LookAhead(1)
    ahead.observe("S.1/root-1:3:ALLGATHER")
    assert ahead.observe("S.1/root-1:4:ALLGATHER") == (
        "S.1/root-1:#:ALLGATHER",
        ["S.1/root-1:5:ALLGATHER"],
    )


def test_families_do_not_disturb_each_other():
    ahead = LookAhead(1)
    for n in range(5):
        one, other = ahead.observe(f"a:{n}"), ahead.observe(f"b:{2 * n}")
    assert one == ("a:#", ["a:5"])
    assert other is None


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
    ahead = LookAhead(4)
    assert [ahead.observe(tag) for tag in tags] == [None] * len(tags)


def test_depth_0_foresees_nothing():
    ahead = LookAhead(0)
    assert [ahead.observe(f"t{n}") for n in range(5)] == [None] * 5


@given(st.lists(st.text(max_size=20), max_size=50), st.integers(0, 5))
def test_any_tags(tags, depth):
    ahead = LookAhead(depth)
    for tag in tags:
        foreseen = ahead.observe(tag)
        if foreseen is not None:
            assert len(foreseen[1]) == depth
            assert tag not in foreseen[1]


def test_what_is_remembered_is_bounded():
    ahead = LookAhead(1)
    for n in range(2000):
        ahead.observe("x" * n + "1")
    assert len(ahead._last) <= 256
