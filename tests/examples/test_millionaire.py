"""The richest is found, and nobody is told more."""

from __future__ import annotations

import millionaire
import pytest

from redislink import Session
from tests.examples.conftest import Place


def _play(place: Place, device: str, **wealths: int) -> list[str]:
    def main(session: Session) -> str:
        return millionaire.main(session, wealths[session.party], device)

    return place.play(main)


def test_the_richest_of_three(place: Place) -> None:
    assert _play(place, "SP0", alice=3, bob=5_000_000_000, carol=4) == ["bob"] * 3


@pytest.mark.parametrize(
    ("wealths", "richest"),
    [
        ((1, 2, 3), "carol"),
        ((7, 7, 7), "alice"),
        ((6, 7, 7), "bob"),
        ((-5, -9, -7), "alice"),
        ((-millionaire.MOST, 0, millionaire.MOST), "carol"),
        ((millionaire.MOST, -millionaire.MOST, millionaire.MOST - 1), "alice"),
        ((2**33, 2**33 + 1, 2**31), "bob"),
    ],
)
def test_ties_signs_and_sizes(
    simulated: Place, wealths: tuple[int, int, int], richest: str
) -> None:
    alice, bob, carol = wealths
    assert _play(simulated, "SP0", alice=alice, bob=bob, carol=carol) == [richest] * 3


def test_two_compare_and_a_third_only_learns_who(simulated: Place) -> None:
    assert _play(simulated, "PSI0", alice=3, bob=4, carol=1000) == ["bob"] * 3


def test_a_wealth_that_does_not_fit_is_refused(simulated: Place) -> None:
    def main(session: Session) -> None:
        for wealth in (millionaire.MOST + 1, -millionaire.MOST - 1):
            with pytest.raises(ValueError, match="does not fit"):
                millionaire.main(session, wealth)

    simulated.play(main)
