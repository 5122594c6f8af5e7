"""`Replies`: tracks which replies the broker owes one outbox, and which writes it has answered.

Rules:
- Replies come in the order of the writes, so it is enough to count them.
- If the broker can be told not to answer (CLIENT REPLY OFF), it answers only *marks*: one push in
  so many, large pushes, and those that `Outbox.collect` and `flush` add. A reply that nobody waits
  for costs the broker a system call, and delays the peer that waits for the push: with all replies
  on, a round trip of 64 B on one machine took an eighth longer.
- An answered mark confirms the quiet pushes before it. A refused mark breaks the connection,
  because it does not tell which of them were taken; the broker then answers everything for a while.

No lock and no writing: `Outbox` has both. It calls everything here with its lock held.
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
"""How many small pushes in a row may go unanswered."""
QUIET_BYTES: Final = 16 << 10
"""The largest small push. The server allocates extra memory for a larger command, so at the brink
of its limit it may refuse that command and yet take the mark after it."""
MARK_REPLIES: Final = 3
"""How many replies a mark gets."""
BE_QUIET: Final = pack((b"CLIENT", b"REPLY", b"OFF"))
_SPEAK: Final = pack((b"CLIENT", b"REPLY", b"ON"))
READ_FROM: Final = 16
"""With so many unanswered writes, look for replies, which costs a system call each time."""
READ_MARKS_FROM: Final = 2
"""Replaces `READ_FROM` while the broker answers only marks."""
_LOUD_SECONDS: Final = 60.0
"""How long a broker answers everything after it has refused something."""
_QUESTIONS: Final = 3
"""The questions of `knows_quiet`. It gets as many answers if OFF is answered, which is wrong."""


class Replies:
    """The replies to one outbox, over all its connections.

    Attributes:
        unread: (replies, token, quiet, size) of each write that still gets replies: how many, for
            which push, the tokens of the quiet pushes that they confirm too, and its bytes.
        quiet: the tokens of pushes that no mark covers yet; None while the broker answers all.
        answers: how many writes have got all their replies so far.
        answered: (token, taken) of each answered push, until the outbox hands it out.
        refusal: the broker's last refusal of a push; None once it has accepted a later one.
        loud_until: when the broker may again be told to answer only marks; monotonic seconds.
        is_interlude: whether the broker answers all only since the last large push: it is to be
            quiet again from the next small one on.
        moved_at: when the broker last answered, or last took a waiting write; monotonic seconds.
            The outbox sets it too.
    """

    def __init__(self) -> None:
        self.unread: deque[tuple[int, object, Sequence[object], int]] = deque()
        self.quiet: list[object] | None = None
        self.answers = 0
        self.answered: list[tuple[object, bool]] = []
        self.refusal: BrokerBusy | None = None
        self.loud_until = 0.0
        self.is_interlude = False
        self.moved_at = 0.0
        self._read_of_first = 0
        """How many replies to the first of ``unread`` were read."""
        self._refusal: BrokerBusy | None = None
        """The refusal among those replies, if there was one."""

    @property
    def next_size(self) -> int:
        """The bytes of the write whose reply comes next; 0 if none is owed."""
        return self.unread[0][3] if self.unread else 0

    def owe(self, replies: int, token: object, size: int) -> None:
        """Note a write of so many bytes and replies, not counting the one that `aloud` adds."""
        if self.quiet is None:
            self.unread.append((replies, token, (), size))
        else:
            self.unread.append((replies + 1, token, self.quiet, size))
            self.quiet = None if self.is_interlude else []

    def speak_up(self, pieces: Sequence[Buffer]) -> Sequence[Buffer]:
        """Return the pieces to write so that the broker answers these, and all that follow.

        For a large push: the next may be large too, and each answer to ``CLIENT REPLY ON`` delays
        the peer that waits for it. Before the next small push, write `BE_QUIET`, and call
        `be_quiet`.
        """
        if self.quiet is None:
            return pieces
        self.is_interlude = True
        return [_SPEAK, *pieces]

    def be_quiet(self) -> list[object]:
        """Note that the broker is told to answer only marks; return the new `quiet`."""
        quiet = self.quiet = []
        self.is_interlude = False
        return quiet

    def aloud(self, pieces: Sequence[Buffer]) -> Sequence[Buffer]:
        """Return the pieces to write so that the broker answers these."""
        return pieces if self.quiet is None else [_SPEAK, *pieces, BE_QUIET]

    def forget_owed(self) -> None:
        """Forget the replies of a broken connection; the answered pushes stay."""
        self.unread.clear()
        self.quiet = None
        self.is_interlude = False
        self._read_of_first = 0
        self._refusal = None

    def refused(self, error: BrokerBusy) -> None:
        """Note that the broker refused a push; it then answers everything for a while."""
        self.refusal = error
        self.is_interlude = False
        self.loud_until = time.monotonic() + _LOUD_SECONDS

    def read(self, connection: BrokerConnection) -> None:
        """Take the replies that have arrived, without waiting for more.

        Raises:
            BrokerBusy: a mark was refused.
            BrokerError: the connection broke, or the broker forbids something.
        """
        while self.unread and connection.readable():
            replies = connection.read_successes()
            if not replies:
                try:
                    if not connection.read_now():
                        return
                except BrokerBusy as error:
                    self._refusal = error
                    self.refused(error)
                replies = 1
            self.moved_at = time.monotonic()
            replies += self._read_of_first
            owed = len(self.unread)
            while self.unread and replies >= self.unread[0][0]:
                needed, token, quiet, _ = self.unread.popleft()
                replies -= needed
                if self._refusal is not None and (quiet or self.quiet is not None):
                    raise self._refusal  # it does not tell what else was refused
                self.answered += [(taken, True) for taken in quiet if taken is not None]
                if token is not None:
                    self.answered.append((token, self._refusal is None))
                # A full broker refuses pushes, and does what a write of fewer replies asks for.
                if self._refusal is None and (token is not None or needed >= MARK_REPLIES):
                    self.refusal = None
                self._refusal = None
            self.answers += owed - len(self.unread)
            self._read_of_first = replies
            if not connection.buffered:
                return  # to look for more costs a system call


def pack_mark(name: bytes, ttl_ms: int) -> bytes:
    """Return a push that leaves nothing behind, and gets `MARK_REPLIES` replies.

    A full broker refuses it like any other push.

    Args:
        name: a list of our own.
        ttl_ms: as for any push, in milliseconds.
    """
    return b"".join([*pack_push(name, (b"", b""), ttl_ms), pack((b"DEL", name))])


def knows_quiet(connection: BrokerConnection, timeout: float) -> bool:
    """Return whether the broker can be told not to answer. Many services forbid CLIENT.

    Raises:
        BrokerUnreachable: the connection broke, perhaps because a proxy never answers again.
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
