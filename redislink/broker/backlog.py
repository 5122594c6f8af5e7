"""What one connection could not take at once, and the order in which it goes out.

Rules:
- A command that was begun is finished before anything else: the order of the bytes is RESP's.
- Elements of one list go out in the order in which they were pushed.
- What is urgent (heartbeats, acks, probes) goes first, then what is small: it waits for one chunk
  of a large message, and not for all of it. What is small is bounded by the windows.
- Inboxes take turns with what is large, one element each. Lists of one inbox do not: that of the
  smaller message goes first, and of equal ones the first. So a stream of messages goes out in the
  order in which they were sent, and one does not wait for all of a larger one. Chunks of the
  second are of no use to a receiver that waits for the first: its line would lie idle.

No I/O, no lock: the `Outbox` has both.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from redislink.broker.wire import LARGE, Buffer
from redislink.protocol import list_names

URGENT: Final = b""
"""In place of a list's name: this write goes before all else."""


class QueuedWrite:
    """One write that waits for its turn.

    Attributes:
        pack: what to write; may be dear, as it may seal a chunk.
        replies: how many the broker will owe for it.
        token: the pusher's, see `Outbox.push`.
        size: bytes, of the whole message.
        number: in the order of `Backlog.add`.
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
    """Writes that wait, of one connection.

    Attributes:
        rest: of the command that was under way when the connection took no more.
    """

    def __init__(self, rest: Sequence[Buffer] = ()) -> None:
        self.rest = rest
        self.next_number = 0
        self._urgent: deque[QueuedWrite] = deque()
        self._small: deque[tuple[bytes, QueuedWrite]] = deque()
        self._large: OrderedDict[bytes, dict[bytes, deque[QueuedWrite]]] = OrderedDict()
        """By inbox, of which the one whose turn it is comes first, and list."""
        self._taken: QueuedWrite | None = None

    def add(self, name: bytes, write: QueuedWrite) -> None:
        """Let a write wait.

        Args:
            name: of the list that it is for, or `URGENT`.
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
        """The next write, which counts as waiting until `begun`; None if there is none."""
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
        write = lists[name].popleft()
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

    def begun(self) -> None:
        """What was taken is being written now."""
        self._taken = None

    def drop(self, name: bytes) -> None:
        """Forget what waits for a list that is removed."""
        self._forget(list_names.inbox_of(name), name)
        self._small = deque(pair for pair in self._small if pair[0] != name)

    def holds_before(self, number: int) -> bool:
        """True while something with a lower number has not been begun."""
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
    """The same bytes, copied where somebody may change them (a codec's scratch memory)."""
    return [piece if _is_fixed(piece) else bytes(piece) for piece in pieces]


def _is_fixed(piece: Buffer) -> bool:
    if type(piece) is memoryview:
        return piece.readonly and type(piece.obj) is bytes
    return type(piece) is bytes
