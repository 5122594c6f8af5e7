import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink import Mask, UsageError

rank_sets = st.sets(st.integers(0, 70))


@given(rank_sets)
def test_behaves_as_the_set_of_its_ranks(ranks):
    mask = Mask.from_ranks(ranks)
    assert list(mask) == sorted(ranks)
    assert len(mask) == len(ranks)
    assert hash(mask) == hash(Mask.from_ranks(sorted(ranks, reverse=True)))
    for relative, rank in enumerate(sorted(ranks)):
        assert rank in mask
        assert mask.global_to_relative_rank(rank) == relative
        assert mask.relative_to_global_rank(relative) == rank


@given(rank_sets, rank_sets)
def test_union_and_intersection(one, other):
    a, b = Mask.from_ranks(one), Mask.from_ranks(other)
    assert set(a.union(b)) == set(a | b) == one | other
    assert set(a.intersection(b)) == set(a & b) == one & other


@given(rank_sets, rank_sets)
def test_equal_masks_are_one_key(one, other):
    a, b = Mask.from_ranks(one), Mask.from_ranks(other)
    assert (a == b) == (one == other)
    assert len({a, b}) == len({frozenset(one), frozenset(other)})


def test_all():
    assert list(Mask.all(3)) == [0, 1, 2]
    assert Mask.all(3) == Mask.from_ranks([2, 0, 1, 2])
    assert Mask.all(0) == Mask() == Mask.from_ranks([])
    assert str(Mask.all(3)) == "Mask(0, 1, 2)"


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Mask.all(2).bits = 1


@pytest.mark.parametrize(
    "combine",
    [
        lambda mask: mask | {1},
        lambda mask: mask & 1,
        lambda mask: mask.union({1}),
        lambda mask: mask.intersection([1]),
    ],
)
def test_only_masks_combine(combine):
    with pytest.raises(TypeError, match="unsupported operand"):
        combine(Mask.all(2))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Mask.from_ranks([-1]),
        lambda: Mask.from_ranks([True]),
        lambda: Mask.from_ranks(["0"]),
        lambda: Mask(-1),
        lambda: Mask(True),
        lambda: Mask.all(-1),
        lambda: Mask.all(2.0),
        lambda: Mask.all(True),
        lambda: Mask.from_ranks([0, 2]).global_to_relative_rank(1),
        lambda: Mask.from_ranks([0, 2]).relative_to_global_rank(2),
        lambda: Mask.from_ranks([0, 2]).relative_to_global_rank(-1),
        lambda: Mask.from_ranks([0, 2]).relative_to_global_rank(True),
        lambda: Mask().relative_to_global_rank(0),
        lambda: Mask.all(2).global_to_relative_rank("0"),
    ],
)
def test_wrong_use(wrong):
    with pytest.raises(UsageError):
        wrong()


def test_other_things_are_not_in_it():
    assert "0" not in Mask.all(2)
    assert -1 not in Mask.all(2)
