"""`ElementSize`: how large an element may be on this broker, from where connections break.

A server may end a connection at a large element, each time that it comes, and rarely says why
(client-query-buffer-limit, proto-max-bulk-len, maxmemory-clients). Rules:
- Connections that break several times while elements of some size are under way, and none as large
  is answered in between, break because of that size: less is written at once from then on.
- That is never certain, and costs little if it is wrong: a line that breaks that often gets small
  elements through sooner than large ones.
- What the least size does not help against is an error, after ``patience`` seconds.
"""

from __future__ import annotations

from typing import Final

LEAST: Final = 16 << 10
"""Bytes that an element is not cut finer than."""
_ENOUGH: Final = 3
"""Breaks in a row."""
_FINER: Final = 4


class ElementSize:
    """Not thread-safe."""

    def __init__(self, patience: float) -> None:
        """Args: seconds for which the connection may break over and over at the least size."""
        self.limit: int | None = None
        """Bytes of a body that may be pushed as one element; None as long as nothing shows."""
        self.suspected = 0
        """Bytes of the largest that was under way when the connection broke; 0 if all is well."""
        self.breaks = 0
        """In a row, at whatever size, since something as large was answered."""
        self._patience = patience
        self._at_this_size = 0
        self._since = 0.0

    def broke(self, largest: int, now: float) -> bool:
        """The connection broke, and works again; returns whether `limit` is lower from now on.

        Args:
            largest: bytes of the largest body that was under way and not answered; 0 if none was.
        """
        if not largest:
            return False
        if not self.breaks:
            self._since = now
        size = largest if self.limit is None else min(largest, self.limit)
        self.suspected = min(self.suspected, size) if self._at_this_size else size
        self.breaks += 1
        self._at_this_size += 1
        return self._at_this_size >= _ENOUGH and self._lower()

    def lost(self, size: int) -> bool:
        """Bodies of this size get lost whenever the peer takes them; returns as `broke`."""
        if self.limit is not None and size > self.limit:
            return False  # they go in fragments by now
        self.suspected = size
        return self._lower()

    def answered(self, size: int) -> None:
        """The broker has taken a body of this size."""
        if self.suspected and min(size, self.limit or size) >= self.suspected:
            self.suspected = self.breaks = self._at_this_size = 0

    def is_hopeless(self, now: float) -> bool:
        """True if not even the least gets through, and has not for long."""
        return (
            self._at_this_size >= _ENOUGH
            and self.suspected <= LEAST
            and now - self._since >= self._patience
        )

    def _lower(self) -> bool:
        if self.suspected <= LEAST:
            return False
        self.limit = max(LEAST, self.suspected // _FINER)
        self._at_this_size = 0
        return True
