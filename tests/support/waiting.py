"""Waiting for the thing itself, and never for a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def wait_until(condition: Callable[[], _T], seconds: float = 10.0) -> _T:
    """Return what ``condition`` gives, once that is true.

    Args:
        condition: cheap; looked at every few milliseconds.
        seconds: many times what it takes; what does not come by then fails the test.
    """
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (result := condition()):
        assert time.monotonic() < deadline, "what the test waits for did not come"
        pause.wait(0.005)
    return result
