"""How far the broker is, and how fast the line to it: measured once, with harmless questions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

NEAR: Final = 0.0003
"""Seconds. On one machine, or close to it, a round trip takes less, and a chunk less time to
transfer than to process."""
_LEAST_PINGS: Final = 3
_MOST_PINGS: Final = 30
_PING_SECONDS: Final = 0.03
"""A near broker is asked many times, for so long at most: a busy machine delays most answers."""
_LONG_QUESTION: Final = 64 << 10
_LONG_QUESTIONS: Final = 3
"""The first is slow, as TCP begins slowly."""
_LONG_SECONDS: Final = 0.1
"""Where the line takes longer for one, two are enough."""

Ask = Callable[[int], object]
"""Asks the broker something of so many bytes, and waits for its answer, which is short."""


def measure_round_trip(ask: Ask) -> float:
    """Return the seconds from here to the broker and back, the shortest of a few.

    Raises:
        BrokerError: as ``ask``.
    """
    shortest = float("inf")
    end = time.monotonic() + _PING_SECONDS
    for number in range(_MOST_PINGS):
        started = time.monotonic()
        if number >= _LEAST_PINGS and started > end:
            break
        ask(0)
        shortest = min(shortest, time.monotonic() - started)
    return shortest


def measure_uplink(ask: Ask, round_trip: float) -> float:
    """Return how many bytes a second the line takes from here to the broker.

    Args:
        ask: see `Ask`.
        round_trip: seconds, from `measure_round_trip`.

    Returns:
        Infinity if the broker is near: then the line is not what counts.

    Raises:
        BrokerError: as ``ask``.
    """
    if round_trip < NEAR:
        return float("inf")
    shortest = float("inf")
    for number in range(_LONG_QUESTIONS):
        started = time.monotonic()
        ask(_LONG_QUESTION)
        took = time.monotonic() - started
        shortest = min(shortest, took)
        if number and took > round_trip + _LONG_SECONDS:
            break
    return _LONG_QUESTION / max(shortest - round_trip, 1e-6)
