"""The interface of an endpoint's observer; `redislink.observe` holds the implementations."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Observes one endpoint. The endpoint closes it when it leaves the session."""

    def close(self) -> None:
        """Stop observing. Safe to call twice."""
