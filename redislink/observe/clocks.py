"""Aligns the clocks of parties, using only the times at which messages left and arrived.

No message arrives before it is sent. So each message bounds how far the receiver's clock can be
behind the sender's. With messages both ways, the difference lies in an interval as wide as the
quickest round trip. `align` uses the middle of it, as NTP does, for all parties at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_ROUNDS: Final = 200
_STILL: Final = 1e-3
_HALVINGS: Final = 60

Bounds = Mapping[tuple[int, int], float]


@dataclass(frozen=True, slots=True)
class Alignment:
    """Clocks on the axis of the first party.

    Attributes:
        offsets: the offset to add to each party's times.
        uncertainty: how far each offset may be off, given the others; infinite if messages bound
            it on one side only, or not at all.
        contradiction: the most by which a message still seems to arrive before it is sent; 0
            unless the clocks ran at different speeds.
    """

    offsets: tuple[float, ...]
    uncertainty: tuple[float, ...]
    contradiction: float


def align(guess: Sequence[float], least: Bounds) -> Alignment:
    """Offsets under which no message arrives before it is sent.

    Args:
        guess: each party's offset by its wall clock, used where messages do not decide.
        least: for each (sender, receiver), the least difference between the receiver's offset and
            the sender's, in the unit of ``guess``.
    """
    contradiction = 0.0
    found = _raise_to(guess, least, 0.0)
    if found is None:
        low, high = 0.0, 1.0
        while _raise_to(guess, least, high) is None:
            low, high = high, 2 * high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if _raise_to(guess, least, middle) else (middle, high)
        contradiction = high
        found = _raise_to(guess, least, high) or list(guess)
    for _ in range(_ROUNDS):
        moved = 0.0
        for party in range(1, len(found)):
            low, high = _interval(party, found, least, contradiction)
            if math.isfinite(low) and math.isfinite(high):
                moved = max(moved, abs((low + high) / 2 - found[party]))
                found[party] = (low + high) / 2
        if moved < _STILL:
            break
    intervals = [_interval(party, found, least, contradiction) for party in range(len(found))]
    return Alignment(
        tuple(offset - found[0] for offset in found),
        (0.0, *((high - low) / 2 for low, high in intervals[1:])),
        contradiction,
    )


def _raise_to(guess: Sequence[float], least: Bounds, slack: float) -> list[float] | None:
    """The guess, raised as far as the bounds require; None if the bounds contradict each other."""
    found = list(guess)
    for _ in range(len(found) + 1):
        changed = False
        for (sender, receiver), bound in least.items():
            if found[receiver] < found[sender] + bound - slack:
                found[receiver] = found[sender] + bound - slack
                changed = True
        if not changed:
            return found
    return None


def _interval(
    party: int, offsets: Sequence[float], least: Bounds, slack: float
) -> tuple[float, float]:
    """The interval for this party's offset if the others stay."""
    low, high = -math.inf, math.inf
    for (sender, receiver), bound in least.items():
        if receiver == party:
            low = max(low, offsets[sender] + bound - slack)
        elif sender == party:
            high = min(high, offsets[receiver] - bound + slack)
    return low, high
