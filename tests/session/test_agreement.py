"""Where journals meet: every small case against what the rule says in plain words."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Mapping, Sequence

import pytest

from redislink.session.agreement import (
    MAIN,
    History,
    Position,
    chains_of,
    first_difference,
    parent_of,
    parents_first,
    reaches,
    resume_points,
)

Steps = Sequence[Collection[str]]
"""For each step, the parties that it touches."""


def _digest(*seed: object) -> bytes:
    return repr(seed).encode().ljust(16, b".")[:16]


def _history(steps: Steps, last: int, needs: Sequence[int] = ()) -> History:
    history = History()
    for number, touches in enumerate(steps[:last], 1):
        history.add(_digest(number), touches, needs[number - 1] if needs else 0)
    return history


def _points(histories: Mapping[str, Mapping[str, History]]) -> dict[str, int]:
    """The resume points of parties with these histories, by party and then by chain."""
    told = {
        party: {chain: Position.of(history) for chain, history in chains.items()}
        for party, chains in histories.items()
    }
    return resume_points(told, [reaches(chains, told) for chains in histories.values()])


def _expected(steps: Steps, lasts: Mapping[str, int]) -> int:
    """The furthest step up to which nobody needs a message that it does not have on disk."""
    known = max(lasts.values())
    return max(
        number
        for number in range(known + 1)
        if all(party not in steps[n] for party in lasts for n in range(lasts[party], number))
    )


def test_two_parties_resume_at_the_furthest_step_that_needs_no_message() -> None:
    touches = [(), ("a",), ("b",), ("a", "b")]
    for steps in itertools.product(touches, repeat=3):
        for ends in itertools.product(range(4), repeat=2):
            lasts = dict(zip("ab", ends, strict=True))
            histories = {p: {MAIN: _history(steps, last)} for p, last in lasts.items()}
            assert _points(histories) == {MAIN: _expected(steps, lasts)}, (steps, lasts)


def test_so_do_more_parties() -> None:
    for seed in range(500):
        chance = random.Random(seed)
        steps = [
            [p for p in "abcd" if chance.random() < chance.choice([0.1, 0.9])] for _ in range(8)
        ]
        lasts = {party: chance.randrange(9) for party in "abcd"}
        histories = {p: {MAIN: _history(steps, last)} for p, last in lasts.items()}
        assert _points(histories) == {MAIN: _expected(steps, lasts)}, seed


def test_who_has_nothing_yet_reaches_what_does_not_touch_it() -> None:
    steps = [(), ("a",), ("a",), ("a", "b")]
    histories = {"a": {MAIN: _history(steps, 4)}, "b": {}}
    assert _points(histories) == {MAIN: 3}


def test_a_spawned_chain_goes_no_further_than_what_it_needs_of_its_parent() -> None:
    main = [("a",), ("a",), ("a", "b"), ("a",)]
    child = [("a",), ("a",), ("a",), ("a",)]
    needs = [1, 1, 3, 3]
    for last, expected in ((4, 4), (3, 4), (2, 2), (0, 2)):
        histories = {
            "a": {MAIN: _history(main, 4), "SP~1": _history(child, 4, needs)},
            "b": {MAIN: _history(main, last)},
        }
        assert _points(histories)["SP~1"] == expected, last
    grandchild = {"SP~1~1": _history(child, 2, [3, 3])}
    histories = {
        "a": {MAIN: _history(main, 4), "SP~1": _history(child, 4, needs), **grandchild},
        "b": {MAIN: _history(main, 2)},
    }
    assert _points(histories) == {MAIN: 2, "SP~1": 2, "SP~1~1": 0}


def test_chains_have_parents_and_come_after_them() -> None:
    assert [parent_of(chain) for chain in ("", "SP~2", "SP~2~11")] == ["", "", "SP~2"]
    assert parents_first(["SP~1~1", "B~1", "", "A~2"]) == ["", "A~2", "B~1", "SP~1~1"]
    assert chains_of({"a": {"SP~1": Position(1, b"")}, "b": {}}) == ["", "SP~1"]


def test_a_party_reaches_as_far_as_no_step_touches_it() -> None:
    history = _history([("a",), ("b",), (), ("a",), ()], 5)
    assert [history.reach("a", n) for n in range(7)] == [0, 3, 3, 3, 5, 5, 6]
    assert [history.reach("b", n) for n in range(6)] == [1, 1, 5, 5, 5, 5]
    assert [history.reach("c", n) for n in (0, 4, 9)] == [5, 5, 9]


@pytest.mark.parametrize("last", range(6))
def test_going_back_forgets_all_that_came_later(last: int) -> None:
    steps, needs = [("a",), ("b",), (), ("a",), ()], [1, 1, 2, 2, 5]
    history, short = _history(steps, 5, needs), _history(steps, last, needs)
    history.cut(last)
    assert (history.last, history.rises, history.needs()) == (last, short.rises, short.needs())
    assert Position.of(history) == Position.of(short)
    for party in "abc":
        assert all(history.reach(party, n) == short.reach(party, n) for n in range(6))
    history.add(_digest("other"), ("b",), 7)
    assert history.reach("b", last) == last
    assert history.digest(last + 1) == _digest("other")
    history.cut(9)
    assert history.last == last + 1


def test_a_step_that_is_another_one_at_a_peer_is_found() -> None:
    mine = {MAIN: _history([(), (), ()], 3)}
    assert first_difference(mine, {"b": {MAIN: Position(2, _digest(2))}}) is None
    assert first_difference(mine, {"b": {MAIN: Position(0, b"")}}) is None
    assert first_difference(mine, {"b": {MAIN: Position(4, b"not known here")}}) is None
    assert first_difference(mine, {"b": {"SP~1": Position(1, b"not known here")}}) is None
    assert first_difference(mine, {"b": {MAIN: Position(2, _digest(3))}}) == ("b", MAIN, 2)
