"""When a receive asks for what it waits for, and when it says that something must be lost."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from itertools import count

import pytest

from redislink.protocol.delivery import DataPush, Delivery, Leftover, Push, Timing
from redislink.protocol.frame import AckState, Data, Probe, Says
from tests.protocol.pair import control, tag_of, take_pushes

FAST = Timing(round_trip=0.0002)
_OVERHEAD = 250
"""Bytes of a command and its packet on the line, beside the body."""


class Asker:
    """A party that receives one message after another, and answers of its peer."""

    def __init__(self) -> None:
        self.now = 1.0
        self.delivery = Delivery("bob", FAST, 0.0)
        self._numbers = count(1)

    def ask(self) -> tuple[str, int]:
        """A receive waits until its question goes out: its tag, and its message's number."""
        number = next(self._numbers)
        self.delivery.wait(f"t{number}", self.now)
        waited = self.now
        while not control(take_pushes(self.delivery), Probe):
            self.now = self.delivery.next_timeout()
            self.delivery.tick(self.now)
        self.waited = self.now - waited
        return f"t{number}", number

    def answer(self, tag: str, says: Says, after: float) -> None:
        self.now += after
        self.delivery.receive_control(Probe((tag,), AckState(0), says), self.now)

    def patience(self, tag: str) -> float:
        """For how long nothing comes, until it is overdue, and the peer is told."""
        since = self.now
        while not self.delivery.overdue(self.now):
            self.now = self.delivery.next_timeout()
            self.delivery.tick(self.now)
        assert not self.delivery.missed_in_vain(tag, self.now)
        assert [p.says for p in control(take_pushes(self.delivery), Probe)][-1] is Says.OVERDUE
        return self.now - since

    def come(self, tag: str, number: int, *, again: bool) -> None:
        self.now += 0.001
        if again:
            self.delivery.came_again(tag)
        self.delivery.receive_data(tag, Data(number), b"", self.now, take=True)
        self.delivery.unwait(tag)
        self.delivery.pushes()

    def miss_one(self, *, again: bool) -> float:
        """A message is overdue; the copy that comes then was pushed again, or not."""
        tag, number = self.ask()
        self.answer(tag, Says.SENT, 0.001)
        patience = self.patience(tag)
        self.come(tag, number, again=again)
        return patience


@pytest.fixture
def asker() -> Asker:
    return Asker()


def test_what_was_on_its_way_after_all_gets_twice_as_long_next_time(asker):
    waited = [asker.miss_one(again=False) for _ in range(9)]
    assert waited == pytest.approx([0.02 * 2**n for n in (0, 1, 2, 3, 4, 5, 6, 6, 6)])


def test_what_was_lost_makes_nobody_patient(asker):
    waited = [asker.miss_one(again=True) for _ in range(9)]
    assert waited == pytest.approx([0.02] * 9)


def test_patience_comes_back_slowly(asker):
    for _ in range(4):
        asker.miss_one(again=False)
    waited = []
    for _ in range(6):
        waited.append(asker.miss_one(again=True))
        asker.now += 31.0
    assert waited == pytest.approx([0.32, 0.16, 0.08, 0.04, 0.02, 0.02])


def test_a_line_that_cannot_be_left_is_no_reason_to_fall_silent(asker):
    """In process, no connection goes silent: what is lost a second time is missed again."""
    tag, _ = asker.ask()
    asker.answer(tag, Says.SENT, 0.001)
    missed, in_vain = 0, 0
    while asker.now < 20.0:
        asker.now = asker.delivery.next_timeout()
        asker.delivery.tick(asker.now)
        for _ in asker.delivery.overdue(asker.now):
            in_vain += asker.delivery.missed_in_vain(tag, asker.now)
        for probe in control(take_pushes(asker.delivery), Probe):
            missed += probe.says is Says.OVERDUE
            asker.answer(tag, Says.SENT, 0.001)
    assert missed > 2
    assert missed - in_vain in (0, 1)


def test_the_way_is_measured_although_the_message_is_faster_than_the_answer(asker):
    """On a slow line both are in one queue. The next receive asks when that time is nearly over."""
    tag, number = asker.ask()
    assert asker.waited == pytest.approx(0.15)
    asker.now += 0.5
    asker.come(tag, number, again=False)
    asker.answer(tag, Says.SENT, 0.5)
    asker.ask()
    assert asker.waited == pytest.approx(0.75 * 1.001)


def test_one_late_answer_makes_nobody_slow_for_long(asker):
    """The peer was suspended for a minute."""
    waited = []
    for took in [60.0, *[0.001] * 15]:
        tag, number = asker.ask()
        waited.append(asker.waited)
        asker.answer(tag, Says.NOT_SENT, took)
        asker.come(tag, number, again=False)
    assert max(waited) == 2.5
    assert waited[-4:] == pytest.approx([0.15] * 4)


# -- a slow line ---------------------------------------------------------------------------------


class Network:
    """Alice and bob pass messages to each other in rounds. Alice's line is slow, bob's is not."""

    def __init__(self, rate: float, size: int, *, fair: bool, lag: float = 0.0) -> None:
        """Args:
        rate: bytes per second of alice's line, in each direction.
        size: bytes of a message.
        fair: whether control frames have a queue of their own, with half of the rate; else all
            that goes one way is in one queue.
        lag: seconds that each message takes in addition, on its way from the broker.
        """
        self.now = 0.0
        self.size = size
        self.rounds = {"alice": 0, "bob": 0}
        self.took: dict[str, list[float]] = {"alice": [], "bob": []}
        self.deliveries = {"alice": Delivery("bob", FAST, 0.0), "bob": Delivery("alice", FAST, 0.0)}
        self.loses: Callable[[Push], bool] = lambda push: False
        self._rate = rate / 2 if fair else rate
        self._fair = fair
        self._lag = lag
        self._began_at = dict.fromkeys(self.deliveries, 0.0)
        self._free_at: dict[tuple[bool, bool], float] = defaultdict(float)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._lists: dict[tuple[str, str | None], deque[Push]] = defaultdict(deque)
        self._waiting: set[tuple[str, str | None]] = {("alice", None), ("bob", None)}
        self._coming: dict[str, dict[Push, float]] = {name: {} for name in self.deliveries}
        """For each party, the messages that come, and when their first byte is there."""
        self._armed = dict.fromkeys(self.deliveries, float("inf"))

    def play(self, seconds: float) -> None:
        for name in self.deliveries:
            self._begin(name)
        while self._events[0][0] < seconds:
            self.now, _, event = heapq.heappop(self._events)
            event()
            for name in self.deliveries:
                self._settle(name)

    def _over_line(self, who: str, size: int, event: Callable[[], None], **way: bool) -> float:
        """Let something happen when so many bytes have passed a party's line; when they begin."""
        due = self.now + 0.0001
        if who == "alice":
            queue = (way["up"], self._fair and way["urgent"])
            begins = max(due, self._free_at[queue])
            due = self._free_at[queue] = begins + (size + _OVERHEAD) / self._rate
        else:
            begins = due
        heapq.heappush(self._events, (due, next(self._number), event))
        return begins

    def _settle(self, who: str) -> None:
        delivery = self.deliveries[who]
        due = delivery.next_timeout()
        if due is not None and due <= self.now:
            delivery.tick(self.now)
            for tag in delivery.overdue(self.now):
                if any(begins <= self.now for begins in self._coming[who].values()):
                    delivery.came_in_part(tag, self.now)
                elif delivery.missed_in_vain(tag, self.now):
                    delivery.read_anew(self.now)
                    self._coming[who].clear()  # on the connections that are left
            due = delivery.next_timeout()
        for push in delivery.pushes():
            tag, size = tag_of(push), 0 if isinstance(push, Leftover) else len(push.body)
            arrive = partial(self._arrive, who, delivery.peer, tag, push)
            self._over_line(who, size, arrive, up=True, urgent=tag is None)
        if due is not None and due < self._armed[who]:
            self._armed[who] = due
            heapq.heappush(self._events, (due, next(self._number), lambda: self._disarm(who)))

    def _disarm(self, who: str) -> None:
        self._armed[who] = float("inf")

    def _arrive(self, src: str, dst: str, tag: str | None, push: Push | Leftover) -> None:
        if isinstance(push, Leftover):
            self._lists[dst, tag].clear()
        elif not self.loses(push):
            self._lists[dst, tag].append(push)
            self._serve(dst, tag)
        if isinstance(push, Push):
            self.deliveries[src].confirm(push, self.now)

    def _serve(self, dst: str, tag: str | None) -> None:
        key = dst, tag
        if key in self._waiting and self._lists[key]:
            self._waiting.discard(key)
            push = self._lists[key].popleft()
            again = isinstance(push, DataPush) and push.again
            come = partial(self._come, dst, tag, push, again=again)
            if tag is None:
                self._over_line(dst, 0, come, up=False, urgent=True)
            elif self._lag:
                self._coming[dst][push] = self.now + self._lag
                heapq.heappush(self._events, (self.now + self._lag, next(self._number), come))
            else:
                begins = self._over_line(dst, len(push.body), come, up=False, urgent=False)
                self._coming[dst][push] = begins

    def _come(self, dst: str, tag: str | None, push: Push, *, again: bool) -> None:
        delivery = self.deliveries[dst]
        if tag is None:
            in_order = dst == "bob" or not self._fair
            delivery.receive_control(push.frame, self.now, in_order=in_order)
            self._pop(dst, None)
            return
        if self._coming[dst].pop(push, None) is None:
            self._pop(dst, tag)
            return
        if again:
            delivery.came_again(tag)
        if delivery.receive_data(tag, push.frame, push.body, self.now, take=True) is None:
            self._pop(dst, tag)
            return
        delivery.unwait(tag)
        self.rounds[dst] += 1
        self.took[dst].append(self.now - self._began_at[dst])
        self._begin(dst)

    def _pop(self, who: str, tag: str | None) -> None:
        def asked() -> None:
            self._waiting.add((who, tag))
            self._serve(who, tag)

        self._over_line(who, 0, asked, up=True, urgent=tag is None)

    def _begin(self, who: str) -> None:
        """The next round: send, then wait."""
        delivery, tag = self.deliveries[who], f"t{self.rounds[who]}"
        self._began_at[who] = self.now
        delivery.send(tag, bytes(self.size), self.now)
        self._pop(who, tag)
        delivery.wait(tag, self.now)


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("size", [400, 64 << 10])
def test_on_a_slow_line_nothing_is_pushed_twice(size, fair):
    """20 kbit/s. A message of 400 bytes takes longer than a receive waits on a fast line."""
    network = Network(2500.0, size, fair=fair)
    network.play(30.0 if size == 400 else 300.0)
    resent = [delivery.stats.frames_resent for delivery in network.deliveries.values()]
    asked = sum(delivery.stats.probes_sent for delivery in network.deliveries.values())
    assert min(network.rounds.values()) >= 5
    assert resent == [0, 0]
    if size == 400:
        assert asked < 1.2 * network.rounds["alice"]


def test_messages_that_are_late_again_and_again_are_soon_waited_for():
    """Something on the way holds up messages, but no answers."""
    network = Network(1e9, 400, fair=False, lag=0.4)
    network.play(30.0)
    resent = sum(delivery.stats.frames_resent for delivery in network.deliveries.values())
    assert network.rounds["alice"] > 50
    assert resent < 20


def test_on_a_fast_line_a_silent_loss_costs_little():
    network = Network(1e9, 400, fair=False)
    lost: list[str | None] = []

    def loses(push: Push) -> bool:
        tag = tag_of(push)
        is_lost = tag in ("t20", "t30", "t31") and tag not in lost
        lost.extend([tag] * is_lost)
        return is_lost

    network.loses = loses
    network.play(0.6)
    assert lost == ["t20", "t30", "t31"]
    assert max(network.took["alice"]) < 0.18
    assert sum(took > 0.1 for took in network.took["alice"]) == 3
