"""`AckRequests`: when a sender that waits for acks asks the peer for them.

A peer delays its acks, as each is one more frame. It does not where the sender waits, in
`Request.wait` or because a throttled link is full; but if every wait asked, and every message were
acked, a window of messages would cost more control frames than messages.

Rules:
- The peer is asked to ack after every quarter of what is under way. So a sender that waits for the
  oldest message of a window never runs dry, and one that waits for its only message is told at
  once.
- A new question goes out only if that quarter has shrunk to half and the last question was
  answered, or after a pause. The pause grows from 5 ms, or two round trips, to 0.2 s, for all
  threads together; while nothing is answered, up to 2 s.
"""

from __future__ import annotations

from typing import Final

from redislink.protocol.conversation import LONG_AGO

_PER_WINDOW: Final = 4
_SHORTEST: Final = 0.005
_LONGEST: Final = 0.2
_LONGEST_UNANSWERED: Final = 2.0
EAGER_SECONDS: Final = 0.5
"""How long a question holds at the peer: longer than the pause between two."""


class AckRequests:
    """The questions to one peer. Not thread-safe."""

    def __init__(self, round_trip: float) -> None:
        """Args:
        round_trip: seconds to the broker and back.
        """
        self._asked_at = LONG_AGO
        self._shortest = max(_SHORTEST, 2 * round_trip)
        self._pause = self._shortest
        self._every = 0
        self._answered = True

    def due(self, under_way: int, now: float) -> int:
        """Return after how many messages to ask for an ack now; 0 asks for nothing.

        Args:
            under_way: how many frames the peer has not acked; at least 1.
            now: monotonic seconds.
        """
        every = max(1, under_way // _PER_WINDOW)
        since = now - self._asked_at
        if since > EAGER_SECONDS and self._answered:
            self._pause = self._shortest  # nobody has waited for a while
        elif not (since >= self._pause or (self._answered and 2 * every <= self._every)):
            return 0
        else:
            longest = _LONGEST if self._answered else _LONGEST_UNANSWERED
            self._pause = max(self._shortest, min(2 * self._pause, longest))
        self._asked_at, self._every, self._answered = now, every, False
        return every

    def answered(self) -> None:
        """Note that an ack came."""
        self._answered = True

    def pause(self, now: float) -> float:
        """Return the seconds until `due` may ask again."""
        return max(_SHORTEST, self._asked_at + self._pause - now)
