"""What an endpoint knows of whatever observes it; `redislink.observe` has what does."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Observes one endpoint, which ends it when it leaves."""

    def close(self) -> None:
        """End; safe to call twice."""
