"""What one connection could not take at once, and the order in which it goes out.

Rules:
- A command that was begun is finished before anything else: the order of the bytes is RESP's.
- Elements of one list go out in the order in which they were pushed.
- Lists take turns, one element each, so that a small message waits for one chunk of a large
  one and not for all of it. What is urgent (heartbeats, acks, probes) goes before all lists.

No I/O, no lock: the `Outbox` has both.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from redislink.broker.wire import Buffer

_URGENT: Final = b""


class Waiting:
    """One write that waits for its turn.

    Attributes:
        pack: what to write; may be dear, as it may seal a chunk.
        replies: how many the broker will owe for it.
        token: the pusher's, see `Outbox.push`.
        number: in the order of `Backlog.add`.
    """

    __slots__ = ("number", "pack", "replies", "token")

    def __init__(self, pack: Callable[[], Sequence[Buffer]], replies: int, token: object) -> None:
        self.pack = pack
        self.replies = replies
        self.token = token
        self.number = 0


class Backlog:
    """Writes that wait, of one connection.

    Attributes:
        rest: of the command that was under way when the connection took no more.
    """

    def __init__(self, rest: Sequence[Buffer] = ()) -> None:
        self.rest = rest
        self.next_number = 0
        self._lists: OrderedDict[bytes, deque[Waiting]] = OrderedDict()
        self._taken: Waiting | None = None

    def add(self, name: bytes | None, waiting: Waiting) -> None:
        """Let a write wait.

        Args:
            name: of the list that it is for; None is urgent.
        """
        waiting.number = self.next_number
        self.next_number += 1
        key = _URGENT if name is None else name
        queue = self._lists.get(key)
        if queue is None:
            queue = self._lists[key] = deque()
            if name is None:
                self._lists.move_to_end(key, last=False)
        queue.append(waiting)

    def take(self) -> Waiting | None:
        """The next write, which counts as waiting until `begun`; None if there is none."""
        if not self._lists:
            return None
        key = next(iter(self._lists))
        queue = self._lists[key]
        self._taken = queue.popleft()
        if not queue:
            del self._lists[key]
        elif key != _URGENT:
            self._lists.move_to_end(key)
        return self._taken

    def begun(self) -> None:
        """What was taken is being written now."""
        self._taken = None

    def drop(self, name: bytes) -> None:
        """Forget what waits for a list that is removed."""
        self._lists.pop(name, None)

    def holds_before(self, number: int) -> bool:
        """True while something with a lower number has not been begun."""
        return any(waiting.number < number for waiting in self._first_of_each())

    def _first_of_each(self) -> Iterator[Waiting]:
        if self._taken is not None:
            yield self._taken
        for queue in self._lists.values():
            yield queue[0]


def lasting(pieces: Sequence[Buffer]) -> list[Buffer]:
    """The same bytes, copied where somebody may change them (a codec's scratch memory)."""
    return [piece if _is_fixed(piece) else bytes(piece) for piece in pieces]


def _is_fixed(piece: Buffer) -> bool:
    if type(piece) is memoryview:
        return piece.readonly and type(piece.obj) is bytes
    return type(piece) is bytes
