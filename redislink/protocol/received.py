"""`ReceivedNumbers`: the frame numbers received so far, as few ranges; the source of every ack."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from redislink.errors import FrameError
from redislink.protocol.frame import MAX_ACK_RANGES, AckState

MAX_RANGES: Final = 1 << 20
"""No window below 64 MiB can leave so many ranges, even with empty messages."""


class ReceivedNumbers:
    """A set of numbers from 1, kept as ascending closed ranges that do not touch."""

    def __init__(self) -> None:
        self.cumulative = 0
        """Every number up to this one was received."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._cursor = 0

    @property
    def has_gaps(self) -> bool:
        """True if some number was received before all lower ones were."""
        return bool(self._starts)

    def __contains__(self, number: int) -> bool:
        if number <= self.cumulative:
            return True
        place = bisect_right(self._starts, number) - 1
        return place >= 0 and number <= self._ends[place]

    def add(self, number: int) -> bool:
        """Add a number, and return False if it was already there.

        Raises:
            FrameError: the number makes more gaps than are possible; nothing has changed.
        """
        if number == self.cumulative + 1:  # nearly always
            self.cumulative = number
            if self._starts and self._starts[0] == number + 1:
                self.cumulative = self._ends[0]
                del self._starts[0], self._ends[0]
            return True
        if number in self:
            return False
        place = bisect_right(self._starts, number)
        joins_before = place > 0 and self._ends[place - 1] == number - 1
        joins_after = place < len(self._starts) and self._starts[place] == number + 1
        if joins_before and joins_after:
            self._ends[place - 1] = self._ends[place]
            del self._starts[place], self._ends[place]
        elif joins_before:
            self._ends[place - 1] = number
        elif joins_after:
            self._starts[place] = number
        elif len(self._starts) >= MAX_RANGES:
            raise FrameError(f"numbers with more than {MAX_RANGES} gaps")
        else:
            self._starts.insert(place, number)
            self._ends.insert(place, number)
        return True

    def ack_state(self, edition: int = 0) -> AckState:
        """Return the content of an ack.

        There may be more ranges than an ack can hold. Any selection is correct, so each call
        returns the next ones in turn, and always the highest, which is the newest.

        Args:
            edition: the edition of the lists that the receiver reads.
        """
        if not self._starts:
            return AckState(self.cumulative, (), edition)
        places: Sequence[int] = range(len(self._starts))
        if len(places) > MAX_ACK_RANGES:
            highest = places[-1]
            in_turn = range(self._cursor, self._cursor + MAX_ACK_RANGES - 1)
            places = [*sorted(place % highest for place in in_turn), highest]
            self._cursor = in_turn.stop % highest
        ranges = tuple((self._starts[place], self._ends[place]) for place in places)
        return AckState(self.cumulative, ranges, edition)
