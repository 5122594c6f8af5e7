"""`ElementSize`: infers how large an element this broker accepts, from broken connections.

A server may close the connection each time that it gets a large element, and it rarely says why
(client-query-buffer-limit, proto-max-bulk-len, maxmemory-clients). Rules:
- If connections break several times with elements of some size under way, and no element as large
  is answered in between, that size is to blame: from then on elements are smaller.
- This is never certain, but a wrong guess costs little: a line that breaks so often delivers small
  elements sooner than large ones.
- If even the smallest size does not help for ``patience`` seconds, that is an error.
"""

from __future__ import annotations

from typing import Final

LEAST: Final = 16 << 10
"""The smallest limit, in bytes: elements are cut no finer than this."""
_ENOUGH: Final = 3
"""So many breaks in a row blame the size."""
_FINER: Final = 4


class ElementSize:
    """The limit on the size of elements, and the breaks that led to it. Not thread-safe."""

    def __init__(self, patience: float) -> None:
        """Args:
        patience: seconds for which connections may keep breaking at the smallest size.
        """
        self.limit: int | None = None
        """The largest body, in bytes, to push as one element; None while there is no limit."""
        self.suspected = 0
        """The size that we blame for broken connections, in bytes; 0 if all is well."""
        self.breaks = 0
        """Breaks in a row, at any size, since the broker answered an element as large."""
        self._patience = patience
        self._at_this_size = 0
        self._since = 0.0

    def broke(self, largest: int, now: float) -> bool:
        """Note that the connection broke, and works again.

        Args:
            largest: bytes of the largest body that was under way unanswered; 0 if none was.
            now: monotonic seconds.

        Returns:
            True if `limit` is lower from now on.
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
        """Note that bodies of this size get lost whenever the peer pops them.

        Returns:
            True if `limit` is lower from now on.
        """
        if self.limit is not None and size > self.limit:
            return False  # such bodies already go in fragments
        self.suspected = size
        return self._lower()

    def answered(self, size: int) -> None:
        """Note that the broker has taken a body of this size."""
        if self.suspected and min(size, self.limit or size) >= self.suspected:
            self.suspected = self.breaks = self._at_this_size = 0

    def is_hopeless(self, now: float) -> bool:
        """Return whether even the smallest size has not got through for long."""
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
