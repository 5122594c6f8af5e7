"""Clocks of parties are put on one axis by nothing but when messages left and came."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from redislink.observe.clocks import align


def bounds_of(
    true_offsets: list[float], rng: random.Random, messages: int, drift: float = 0.0
) -> dict[tuple[int, int], float]:
    """As parties with such clocks see messages that take from 10 to 60 on their way."""
    least: dict[tuple[int, int], float] = {}
    for number in range(messages):
        for sender, receiver in itertools.permutations(range(len(true_offsets)), 2):
            sent = number * 1000.0 + rng.uniform(0, 100)
            came = sent + rng.uniform(10, 60)
            began = sent - true_offsets[sender]
            ended = came - true_offsets[receiver] + drift * came * receiver
            pair = sender, receiver
            least[pair] = max(least.get(pair, -math.inf), began - ended)
    return least


@pytest.mark.parametrize("seed", range(20))
def test_clocks_that_differ_by_hours_are_found(seed: int) -> None:
    rng = random.Random(seed)
    true = [0.0, *(rng.uniform(-1e10, 1e10) for _ in range(rng.randrange(1, 5)))]
    least = bounds_of(true, rng, 30)
    found = align([rng.uniform(-1e10, 1e10) for _ in true], least)
    assert found.contradiction == 0
    assert found.offsets[0] == 0
    for offset, truth, uncertainty in zip(found.offsets, true, found.uncertainty, strict=True):
        assert abs(offset - truth) < 30, "half of the quickest round trip, at most"
        assert uncertainty < 60
    for (sender, receiver), bound in least.items():
        assert found.offsets[receiver] - found.offsets[sender] >= bound - 1e-3


def test_two_clocks_meet_in_the_middle() -> None:
    found = align([0.0, 0.0], {(0, 1): 100.0, (1, 0): -140.0})
    assert found.offsets == (0.0, pytest.approx(120.0))
    assert found.uncertainty == (0.0, pytest.approx(20.0))


def test_messages_one_way_only_move_the_wall_clock_as_far_as_they_must() -> None:
    assert align([0.0, 50.0], {(0, 1): 10.0}).offsets == (0.0, 50.0)
    assert align([0.0, 50.0], {(0, 1): 80.0}).offsets == (0.0, 80.0)
    assert align([0.0, 50.0], {(1, 0): 10.0}).offsets == (0.0, -10.0)
    assert align([0.0, 50.0, 70.0], {}).offsets == (0.0, 50.0, 70.0)
    assert align([0.0, 50.0], {}).uncertainty == (0.0, math.inf)


def test_clocks_of_different_speed_contradict_each_other_and_it_is_said() -> None:
    found = align([0.0, 0.0], {(0, 1): 100.0, (1, 0): -80.0})
    assert found.contradiction == pytest.approx(10.0)
    assert found.offsets[1] == pytest.approx(90.0)
    least = bounds_of([0.0, 5.0, -5.0], random.Random(1), 100, drift=-0.01)
    found = align([0.0, 0.0, 0.0], least)
    assert found.contradiction > 0
    for (sender, receiver), bound in least.items():
        gap = found.offsets[receiver] - found.offsets[sender]
        assert gap >= bound - found.contradiction - 1e-3
