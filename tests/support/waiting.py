"""Waiting for the thing itself, and never for a time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def wait_until(
    condition: Callable[[], _T],
    seconds: float = 30.0,
    what: str = "what the test waits for",
    passing: tuple[type[Exception], ...] = (),
) -> _T:
    """Return what ``condition`` gives, once that is true.

    Args:
        condition: cheap; looked at every few milliseconds.
        seconds: many times what it takes; what does not come by then fails the test.
        what: names the thing, for that failure.
        passing: exceptions of ``condition`` that mean "not yet".
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        with contextlib.suppress(*passing):
            if result := condition():
                return result
        assert time.monotonic() < deadline, f"{what} did not come in {seconds:g} s"
        pause.wait(0.005)


def undisturbed(measure: Callable[[], float], fits: Callable[[float], bool]) -> float:
    """What ``measure`` gives once it fits: what else the machine does may spoil it, not for ever.

    Args:
        measure: takes some seconds at most.
        fits: whether nothing spoilt it.
    """

    def measured() -> list[float]:
        return [found] if fits(found := measure()) else []

    return wait_until(measured, 60.0, "a measurement that nothing spoilt")[0]
