"""`Replies`: what the broker owes for the writes of one outbox, and what it has answered.

Rules:
- Replies come in the order of the writes, so it is enough to count them.
- A broker that can be told to answer nothing (CLIENT REPLY OFF) answers *marks* alone: every so
  many pushes, large ones, and what `Outbox.collect` and `flush` add. A reply that nobody waits for
  costs the broker a system call, in the way of the peer that waits for the push itself: a round
  trip of 64 B on one machine took an eighth longer with them.
- An answered mark speaks for the quiet pushes before it. One that is refused breaks the connection,
  as it does not say which of them were taken; the broker then answers everything for a while.

No lock, and no writing: the `Outbox` has both. It calls everything here under its lock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from redislink.broker.connection import BrokerConnection
from redislink.broker.wire import Buffer, pack, pack_push
from redislink.errors import BrokerBusy, BrokerError, BrokerUnreachable

MOST_QUIET: Final = 32
"""Small pushes in a row to which the broker answers nothing."""
QUIET_BYTES: Final = 16 << 10
"""What counts as small. A larger command has memory of its own at the server, so that a server on
the brink of its limit may refuse it, and a mark after it not."""
MARK_REPLIES: Final = 3
"""What a mark owes."""
BE_QUIET: Final = pack((b"CLIENT", b"REPLY", b"OFF"))
_SPEAK: Final = pack((b"CLIENT", b"REPLY", b"ON"))
READ_FROM: Final = 16
"""Writes that owe replies, from which on the replies are looked for: a system call each time."""
READ_MARKS_FROM: Final = 2
"""As `READ_FROM`, while only marks are answered."""
_LOUD_SECONDS: Final = 60.0
"""How long a broker answers everything after it has refused something."""
_QUESTIONS: Final = 3
"""Of `knows_quiet`; it has as many answers where OFF is answered although it should not be."""


class Replies:
    """Of one outbox, over all its connections.

    Attributes:
        unread: (replies, token, quiet) of each write that is owed some: how many, what for, and
            tokens of the quiet pushes that they speak for as well.
        quiet: tokens of pushes that no mark speaks for yet; None while the broker answers all.
        answers: writes whose replies have all been read, ever.
        answered: (token, taken) of each push that was answered, until the outbox hands them out.
        last_refusal: what the broker last said when it did not take a push.
        loud_until: when the broker may be told again to answer marks alone; monotonic seconds.
        moved_at: when the broker last answered or took something that had to wait; monotonic
            seconds. The outbox sets it too.
    """

    def __init__(self) -> None:
        self.unread: deque[tuple[int, object, Sequence[object]]] = deque()
        self.quiet: list[object] | None = None
        self.answers = 0
        self.answered: list[tuple[object, bool]] = []
        self.last_refusal: BrokerBusy | None = None
        self.loud_until = 0.0
        self.moved_at = 0.0
        self._read_of_first = 0
        """Replies to the earliest of ``unread`` that were read."""
        self._refusal: BrokerBusy | None = None
        """Of the earliest of them."""

    def owe(self, replies: int, token: object) -> None:
        """A write is on its way to which the broker answers so much, apart from `aloud`'s."""
        if self.quiet is None:
            self.unread.append((replies, token, ()))
        else:
            self.unread.append((replies + 1, token, self.quiet))
            self.quiet = []

    def aloud(self, pieces: Sequence[Buffer]) -> Sequence[Buffer]:
        """What to write so that the broker answers it."""
        return pieces if self.quiet is None else [_SPEAK, *pieces, BE_QUIET]

    def forget_owed(self) -> None:
        """The connection broke: nothing more comes. What was answered stays."""
        self.unread.clear()
        self.quiet = None
        self._read_of_first = 0
        self._refusal = None

    def read(self, connection: BrokerConnection) -> None:
        """Take the replies that are here, without waiting for the rest of one.

        Raises:
            BrokerBusy: a mark was refused.
            BrokerError: the connection broke, or the broker forbids something.
        """
        while self.unread and connection.readable():
            replies = connection.read_integers()
            if not replies:
                try:
                    if not connection.read_now():
                        return
                except BrokerBusy as error:
                    self._refusal = self.last_refusal = error
                    self.loud_until = time.monotonic() + _LOUD_SECONDS
                replies = 1
            self.moved_at = time.monotonic()
            replies += self._read_of_first
            owed = len(self.unread)
            while self.unread and replies >= self.unread[0][0]:
                needed, token, quiet = self.unread.popleft()
                replies -= needed
                if self._refusal is not None and self.quiet is not None:
                    raise self._refusal  # of what else it refused, it says nothing
                self.answered += [(taken, True) for taken in quiet if taken is not None]
                if token is not None:
                    self.answered.append((token, self._refusal is None))
                self._refusal = None
            self.answers += owed - len(self.unread)
            self._read_of_first = replies


def pack_mark(name: bytes, ttl_ms: int) -> bytes:
    """A push that leaves nothing; owes `MARK_REPLIES`. As any push, a full broker refuses it.

    Args:
        name: a list of our own.
        ttl_ms: as of any push.
    """
    return b"".join([*pack_push(name, (b"", b""), ttl_ms, clear=False), pack((b"DEL", name))])


def knows_quiet(connection: BrokerConnection, timeout: float) -> bool:
    """Whether the broker can be told to answer nothing; many services forbid CLIENT.

    Raises:
        BrokerUnreachable: the connection broke; some proxy may have taken it at its word.
    """
    connection.write((BE_QUIET + _SPEAK + pack((b"PING",)),))
    said: list[object] = []
    while len(said) < _QUESTIONS:
        try:
            reply = connection.read(timeout)
        except BrokerUnreachable:
            raise
        except BrokerError as error:  # it stays in step
            reply = error
        if reply == b"PONG":
            break
        said.append(reply)
    return said == [b"OK"]
