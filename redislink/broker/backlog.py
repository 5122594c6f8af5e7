"""`Backlog`: the writes that a connection could not take at once, and the order they go out in.

Rules:
- A command that has begun is finished first, as RESP requires.
- Elements of one list go out in the order in which they were pushed.
- Urgent writes (heartbeats, acks, probes) go first, then small ones. So a small message waits for
  at most one chunk of a large one. The send windows bound the small writes.
- Large writes: inboxes take turns, one element each. Within an inbox, the list with the smaller
  message goes first; between equal ones, the older. So a stream of messages goes out in the order
  in which it was sent, and no message waits for all of a larger one. Mixing chunks of two messages
  would not help: a receiver that waits for the first has no use for chunks of the second.

No I/O and no lock: `Outbox` has both.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from redislink.broker.wire import LARGE, Buffer
from redislink.protocol import list_names

URGENT: Final = b""
"""Stands in for a list's name: this write goes before all others."""


class QueuedWrite:
    """One write that waits for its turn.

    Attributes:
        pack: returns the bytes to write; may be expensive, because it may seal a chunk.
        replies: how many replies the broker will owe for it.
        token: the pusher's token, see `Outbox.push`.
        size: bytes of the whole message.
        number: counts up with each `Backlog.add`.
    """

    __slots__ = ("number", "pack", "replies", "size", "token")

    def __init__(
        self, pack: Callable[[], Sequence[Buffer]], replies: int, token: object, size: int
    ) -> None:
        self.pack = pack
        self.replies = replies
        self.token = token
        self.size = size
        self.number = 0


class Backlog:
    """The waiting writes of one connection.

    Attributes:
        rest: the unwritten rest of the command under way when the connection took no more.
    """

    def __init__(self, rest: Sequence[Buffer] = ()) -> None:
        self.rest = rest
        self.next_number = 0
        self._urgent: deque[QueuedWrite] = deque()
        self._small: deque[tuple[bytes, QueuedWrite]] = deque()
        self._large: OrderedDict[bytes, dict[bytes, deque[QueuedWrite]]] = OrderedDict()
        """Large writes by inbox, then by list. The first inbox is the next to have its turn."""
        self._taken: QueuedWrite | None = None
        self._taken_from: bytes | None = None
        """The list of the large write that was taken; None if no large one was."""

    def add(self, name: bytes, write: QueuedWrite) -> None:
        """Queue a write.

        Args:
            name: the name of its list, or `URGENT`.
            write: the write.
        """
        write.number = self.next_number
        self.next_number += 1
        if name == URGENT:
            self._urgent.append(write)
            return
        inbox = list_names.inbox_of(name)
        lists = self._large.get(inbox)
        if write.size < LARGE and (lists is None or name not in lists):
            self._small.append((name, write))
            return
        if lists is None:
            lists = self._large[inbox] = {}
        lists.setdefault(name, deque()).append(write)

    def take(self) -> QueuedWrite | None:
        """Return the next write; None if there is none. It counts as waiting until `begun`."""
        self._taken_from = None
        if self._urgent:
            self._taken = self._urgent.popleft()
        elif self._small:
            self._taken = self._small.popleft()[1]
        elif self._large:
            self._taken = self._take_large()
        else:
            return None
        return self._taken

    def _take_large(self) -> QueuedWrite:
        inbox, lists = next(iter(self._large.items()))
        name = min(lists, key=lambda name: lists[name][0].size)
        write, self._taken_from = lists[name].popleft(), name
        self._large.move_to_end(inbox)
        if not lists[name]:
            self._forget(inbox, name)
        return write

    def _forget(self, inbox: bytes, name: bytes) -> None:
        lists = self._large.get(inbox)
        if lists is not None:
            lists.pop(name, None)
            if not lists:
                del self._large[inbox]

    def overtaking(self) -> Iterator[QueuedWrite]:
        """Take the writes that go before the large one that was taken, and has not begun.

        They came while it was sealed. Those for its own list stay behind it, and so do all small
        ones after them.
        """
        if self._taken_from is not None:
            while self._urgent:
                yield self._urgent.popleft()
            while self._small and self._small[0][0] != self._taken_from:
                yield self._small.popleft()[1]

    def begun(self) -> None:
        """Note that the write that was taken is being written now."""
        self._taken = None

    def drop(self, name: bytes) -> None:
        """Forget the writes for a list that is being removed."""
        self._forget(list_names.inbox_of(name), name)
        self._small = deque(pair for pair in self._small if pair[0] != name)

    def holds_before(self, number: int) -> bool:
        """Return whether a write with a lower number has not begun yet."""
        return any(write.number < number for write in self._first_of_each())

    def _first_of_each(self) -> Iterator[QueuedWrite]:
        if self._taken is not None:
            yield self._taken
        if self._urgent:
            yield self._urgent[0]
        if self._small:
            yield self._small[0][1]
        for lists in self._large.values():
            for queue in lists.values():
                yield queue[0]


def lasting(pieces: Sequence[Buffer]) -> list[Buffer]:
    """Return the same bytes; pieces that may still change (a codec's scratch memory) are copied."""
    return [piece if _is_fixed(piece) else bytes(piece) for piece in pieces]


def _is_fixed(piece: Buffer) -> bool:
    if type(piece) is memoryview:
        return piece.readonly and type(piece.obj) is bytes
    return type(piece) is bytes
