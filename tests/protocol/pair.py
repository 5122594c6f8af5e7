"""Two deliveries over a broker that takes no time; a test says what it loses, and when."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

from redislink.protocol.delivery import DataPush, Delivery, Leftover, Push, Timing
from redislink.protocol.frame import Ack, AckState, Frame
from redislink.protocol.states import State

SMALL = Timing(window_bytes=1000, chunk_bytes=100)
"""Four full chunks fill a window: each counts 228 bytes."""
CHUNK = SMALL.chunk_bytes
WINDOW = SMALL.window_bytes
FULL = CHUNK + 128
"""What a full chunk counts; four fit into a window."""
BOUND = 2 * WINDOW


class Pair:
    """alice and bob, the lists between them, and a clock that only tests move."""

    def __init__(self, timing: Timing = SMALL) -> None:
        self.now = 0.0
        self.alice = Delivery("bob", timing, 0.0)
        self.bob = Delivery("alice", timing, 0.0)
        self.lists: dict[tuple[Delivery, str], deque[tuple[Frame, bytes, bool]]] = defaultdict(
            deque
        )
        """By receiver and tag, with the edition before it if that is not the first: frame, body,
        and whether it was pushed before."""
        self.log: list[tuple[str, Push | Leftover]] = []
        """All that was pushed, with the name of who did."""
        self.loses: Callable[[Push], bool] = lambda push: False
        """Whether the broker loses a push, although it says that it took it."""
        self.overdue: list[tuple[str, str]] = []
        """The peer and the tag of what was overdue, and missed in vain."""
        self.peak = 0

    def settle(self) -> None:
        """Carry everything that is pushed; control frames are received at once."""
        while self._carry(self.alice, self.bob) | self._carry(self.bob, self.alice):
            pass

    def _carry(self, src: Delivery, dst: Delivery) -> bool:
        pushes = src.pushes()
        for push in pushes:
            self.log.append((dst.peer, push))
            if isinstance(push, Leftover):
                self.lists.pop((dst, _list(tag_of(push) or "", push.edition)), None)
                continue
            src.confirm(push, self.now)
            if not isinstance(push, DataPush):
                if not self.loses(push):
                    dst.receive_control(push.frame, self.now)
                continue
            name = _list(tag_of(push) or "", src.edition_out)
            if push.clear:
                self.lists.pop((dst, name), None)
            if not self.loses(push):
                self.lists[dst, name].append((push.frame, bytes(push.body), push.again))
        held = sum(len(body) + 128 for name in self.lists.values() for _, body, _ in name)
        self.peak = max(self.peak, held)
        return bool(pushes)

    def pop(self, dst: Delivery, tag: str) -> bool:
        """What a BLPOP does that finds something; False if the list is empty."""
        self.settle()
        rests = self.lists.pop((dst, _list(REST, dst.edition_in)), deque())
        while rests:
            frame, body, _ = rests.popleft()
            dst.receive_data(None, frame, body, self.now)
        if dst.peek(tag) is not None:
            return True
        name = _list(tag, dst.edition_in)
        if not self.lists[dst, name]:
            del self.lists[dst, name]
            return False
        frame, body, again = self.lists[dst, name].popleft()
        if again:
            dst.came_again(tag)
        dst.receive_data(tag, frame, body, self.now)
        self.settle()
        return True

    def receive(self, dst: Delivery, tag: str) -> bytes | None:
        """What a receive does that may not wait."""
        while (message := dst.take(tag)) is None:
            if not self.pop(dst, tag):
                return None
        return message[0]

    def wait_for(self, dst: Delivery, tag: str, seconds: float = 30.0) -> bytes:
        """A receive that blocks until the message is there."""
        message = self.receive(dst, tag)
        if message is None:
            dst.wait(tag, self.now)
            end = self.now + seconds
            while (message := self.receive(dst, tag)) is None:
                assert self.now < end, f"{tag} did not come in {seconds} s"
                dst.check_can_receive(tag, self.now)
                self.advance(0.1)
            dst.unwait(tag)
        return message

    def advance(self, seconds: float, *, listening: bool = True) -> None:
        """Let time go by, and do what becomes due in it."""
        end = self.now + seconds
        while True:
            self.settle()
            due = min(
                (d for d in (self.alice.next_timeout(), self.bob.next_timeout()) if d is not None),
                default=end,
            )
            if due >= end:
                break
            self.now = max(self.now, due)
            for delivery in (self.alice, self.bob):
                delivery.tick(self.now)
                self.overdue += [
                    (delivery.peer, tag)
                    for tag in delivery.overdue(self.now)
                    if delivery.missed_in_vain(tag, self.now)
                ]
                assert (delivery.next_timeout() or self.now + 1) > self.now, "it spins"
                if listening:
                    delivery.listened(self.now)
        self.now = end
        self.settle()

    @property
    def states(self) -> tuple[State, State]:
        return self.alice.state, self.bob.state

    def pushed(self, who: str, kind: type[Frame] | type[Leftover]) -> list[Push | Leftover]:
        """What one of them has pushed of a kind, so far."""
        return [
            push
            for name, push in self.log
            if name == who and isinstance(push if isinstance(push, Leftover) else push.frame, kind)
        ]


def _list(tag: str, edition: int) -> str:
    return f"{edition}:{tag}" if edition else tag


def acked(cumulative: int, *ranges: tuple[int, int]) -> Ack:
    return Ack(AckState(cumulative, ranges))


def numbers(pushes) -> list[int]:
    return [push.frame.seq for push in pushes if isinstance(push, DataPush)]


REST = "\0rest"
"""Stands for the tag of the list of rests."""


def tag_of(push: Push | Leftover) -> str | None:
    """The tag of the data list that it is for, or `REST`; None if it is for the control list."""
    if isinstance(push, Leftover):
        return REST if push.tag is None else push.tag
    if isinstance(push, DataPush):
        return REST if push.is_rest and not push.again else push.tag
    return None


def control(pushes, kind):
    return [push.frame for push in pushes if isinstance(push, Push) and type(push.frame) is kind]


def take_pushes(delivery: Delivery, now: float = 0.0) -> list[Push | Leftover]:
    """What it wants pushed; the broker takes all of it."""
    pushes = delivery.pushes()
    for push in pushes:
        if isinstance(push, Push):
            delivery.confirm(push, now)
    return pushes
