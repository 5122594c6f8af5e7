"""The interface of an endpoint's observer; `redislink.observe` holds the implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

NoteStep = Callable[[str, int, int], None]
"""Takes a step of a session when it has ended: what it was, and when it began and ended, in
monotonic ns. The calling thread is the step's."""


class Observer(Protocol):
    """Observes one endpoint. The endpoint closes it when it leaves the session."""

    def close(self) -> None:
        """Stop observing. Safe to call twice."""
