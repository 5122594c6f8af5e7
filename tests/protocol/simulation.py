"""Seeded runs of two or three parties over a broker that fails, on a fake clock.

One seed is one run, and decides everything: what the parties do, how windows and chunks are
sized, and what the broker breaks and when. A run that is not as it should be raises
`SimulationError`, which names the command that plays it again with a log:

    python -m tests.protocol.simulation --seed 4711 -v

What a run asserts:
- each message that is received arrives once, whole, with its tag, in order per tag;
- the parties end: all of them CLOSED, or (where one aborts, dies or starts anew) with the error
  that says so; nobody is ever taken for dead while it lives;
- each pair has at most two windows under way; a frame that is pushed again is the same frame;
- afterwards the broker holds no data list, but those of which a fault ate the clean-up: a
  removal was dropped or lost with its connection, or a push was doubled or came too late.

What the faults leave alone, as nothing could be promised otherwise: at most three control
frames in a row are lost between two parties, those not counted that the broker refuses for a while
like all others, and says so.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from redislink.errors import (
    BrokerBusy,
    PeerAborted,
    PeerClosed,
    PeerError,
    PeerLost,
    PeerRestarted,
)
from redislink.protocol.delivery import DataPush, Delivery, Leftover, Push, Timing
from redislink.protocol.frame import Data, Frame, Move
from redislink.protocol.moves import Moves
from redislink.protocol.states import State
from tests.protocol.pair import REST, tag_of

_OVER: Final = (State.CLOSED, State.FAILED)
_BLPOP_SECONDS: Final = 5.0
_BLPOP_MARGIN: Final = 5.0
_CONTROL_WAIT: Final = 1.0
_MOST_CONTROL_LOSSES: Final = 3
_ELEMENT_OVERHEAD: Final = 100
_CLOSE_SECONDS: Final = 300.0
_BROKER_TIMEOUT: Final = 60.0
_LONGEST_REFUSAL: Final = 55.0
_LIST_TTL: Final = 3600.0
_LONGEST_RUN: Final = 20_000.0
_WATCH_SECONDS: Final = 0.5
_MOVE_AFTER: Final = 2.0
_LONGEST_PARTED: Final = 60.0
_RESTS_AHEAD: Final = 32
"""How many BLPOPs for rests are out at any time."""
_COUNTED: Final = ("frames_resent", "frames_refused", "duplicates_dropped", "probes_sent")

DataList = tuple[str, int]
"""(tag, edition)."""
ListKey = tuple[str, str, DataList | None]
"""(dst, src, data list); None stands for the control list."""


class SimulationError(AssertionError):
    """A run that did not go as it should; the message says how to see it again."""


@dataclass(slots=True)
class Refusal:
    """A time in which the broker refuses every push.

    Attributes:
        begins, ends: in seconds since the start.
        everything: whether it refuses pops and removals too: a full broker does not, one that
            became a replica does.
    """

    begins: float
    ends: float
    everything: bool


@dataclass(slots=True)
class Faults:
    """What the broker does wrong. Probabilities are per push or per pop."""

    dropped: float = 0.0
    doubled: float = 0.0
    delayed: float = 0.0
    refused: float = 0.0
    pop_lost: float = 0.0
    half_open: float = 0.0
    """Of a connection on which a receive waits, for each BLPOP."""
    changed: float = 0.0
    """A popped element does not open; only the receiver sees that."""
    cuts_per_second: float = 0.0
    flushes: int = 0
    restarts: int = 0
    capacity: int | None = None
    evicts: bool = False
    refusal: Refusal | None = None
    lasts: float = 0.0
    later: float = 0.0
    """Afterwards probabilities are this fraction of what they were."""


@dataclass(slots=True)
class Element:
    frame: Frame
    body: bytes
    again: bool = field(default=False, compare=False)

    @property
    def size(self) -> int:
        return len(self.body) + _ELEMENT_OVERHEAD


@dataclass(slots=True)
class Write:
    """What a party writes to the broker: maybe a DEL, then maybe an RPUSH."""

    key: ListKey
    clear: bool
    element: Element | None


@dataclass(slots=True)
class Step:
    """One line of a party's program."""

    is_send: bool
    peer: str
    tag: str
    body: bytes = b""
    is_received: bool = True


@dataclass(slots=True)
class Thread:
    """Walks through its part of a party's program."""

    party: Party
    steps: deque[Step]
    attempt: int = 0
    waits: bool = False
    is_deaf: bool = False
    """The connection on which it waits is half-open."""


@dataclass(slots=True)
class Party:
    name: str
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    threads: list[Thread] = field(default_factory=list)
    connection: int = 0
    is_connected: bool = True
    last_arrival: float = 0.0
    frozen_until: float = 0.0
    is_gone: bool = False
    is_closing: bool = False
    refused_since: float | None = None
    error: PeerError | BrokerBusy | None = None
    failed_at: float = 0.0
    armed: dict[str, float] = field(default_factory=dict)
    rests: dict[str, deque[Element]] = field(default_factory=lambda: defaultdict(deque))
    """By peer: what has come of its rests, and waits until a receive looks."""
    last_rest: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    control_busy: set[tuple[int, str]] = field(default_factory=set)
    moves: Moves | None = None
    cannot_reach: set[int] = field(default_factory=set)
    away_since: float | None = None


class SimulatedBroker:
    """Lists, BLPOP, and what can go wrong with them."""

    def __init__(self, world: World, index: int) -> None:
        self._world = world
        self.index = index
        self.lists: dict[ListKey, deque[Element]] = {}
        self._expires: dict[ListKey, float] = {}
        self.bytes = 0
        self.peak: dict[tuple[str, str], int] = defaultdict(int)
        self.pair_bytes: dict[tuple[str, str], int] = defaultdict(int)
        self.waiters: dict[ListKey, tuple[Thread, int]] = {}
        self.ghosts: dict[ListKey, int] = defaultdict(int)
        """BLPOPs of connections that went half-open: each swallows one element."""
        self.maybe_uncleaned: set[ListKey] = set()
        """Data lists of which a fault ate the clean-up."""

    def delete(self, key: ListKey) -> None:
        for element in self.lists.pop(key, ()):
            self._count(key, -element.size)

    def append(self, key: ListKey, element: Element) -> None:
        self.lists.setdefault(key, deque()).append(element)
        self._expires[key] = self._world.now + _LIST_TTL
        self._count(key, element.size)

    def pop(self, key: ListKey) -> Element | None:
        elements = self.lists.get(key)
        if not elements:
            return None
        element = elements.popleft()
        if not elements:
            del self.lists[key]
        self._count(key, -element.size)
        return element

    def flush(self) -> None:
        for key in list(self.lists):
            self.delete(key)

    def take(self, write: Write) -> bool:
        """Execute a write; False if there is no room."""
        key, element = write.key, write.element
        if self._world.refuses(self, everything=True):
            if write.clear:
                self.maybe_uncleaned.add(key)
            return element is None
        if write.clear:
            self.delete(key)
        if element is None:
            return True
        if self._world.refuses(self):
            return False
        if self._world.strikes_frame(key, self._world.faults.refused):
            return False
        if not self._has_room(element.size):
            return False
        self.append(key, element)
        self._world.wake(self, key)
        return True

    def _has_room(self, size: int) -> bool:
        capacity = self._world.faults.capacity
        if capacity is None or self.bytes + size <= capacity:
            return True
        # What the broker itself has doubled is junk that only its time to live removes.
        for key in [key for key in self.lists if self._expires[key] <= self._world.now]:
            self.delete(key)
        while self._world.faults.evicts and self.lists and self.bytes + size > capacity:
            self.delete(self._world.rng.choice(list(self.lists)))
        return self.bytes + size <= capacity

    def _count(self, key: ListKey, size: int) -> None:
        self.bytes += size
        dst, src, tag = key
        if tag is not None:
            self.pair_bytes[src, dst] += size
            self.peak[src, dst] = max(self.peak[src, dst], self.pair_bytes[src, dst])


class World:
    """One run."""

    def __init__(self, seed: int, verbose: bool = False) -> None:
        self.seed = seed
        self.now = self.ended_at = 0.0
        self.rng = random.Random(seed)
        self._verbose = verbose
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._event_count = 0
        self._events_at_once = 0
        self._over = False
        self._control_losses: dict[tuple[str, str], int] = defaultdict(int)
        self._first_pushes: dict[tuple[str, str, int], Element] = {}
        self._expected: dict[tuple[str, str, str], deque[bytes]] = defaultdict(deque)
        self.kind = self.rng.choices(
            ["work", "leave", "abort", "die", "restart", "freeze"], [60, 14, 8, 8, 5, 5]
        )[0]
        self._culprit: Party | None = None
        self._misbehaved_at = 0.0
        self._has_unread = False
        self.timing = self._draw_timing()
        self._bound = 2 * max(self.timing.window_bytes, self.timing.chunk_bytes + 128)
        self.parties = self._draw_parties()
        self.faults = self._draw_faults()
        self._chance = random.Random(f"brokers of {seed}")  # other runs stay what they are
        several = self.kind != "freeze" and self._chance.random() < 0.25
        self.brokers = [
            SimulatedBroker(self, index)
            for index in range(self._chance.choice([2, 3]) if several else 1)
        ]
        self.stats: dict[str, int] = defaultdict(int)
        self._log("%s %s", self.timing, self.faults)

    # -- the run ---------------------------------------------------------------------------

    def run(self) -> None:
        """Play it to the end, and check it."""
        self._schedule_faults()
        for party in self.parties.values():
            for thread in party.threads:
                self._at(self.rng.random(), party, self._advance, thread)
            self._listen(party)
            for peer in party.deliveries:
                self._settle(party, peer)
            if party.moves is not None:
                self._watch(party)
        if self._culprit is not None:
            self._at(self.rng.uniform(0.1, 8.0), self._culprit, self._misbehave, self._culprit)
        while self._events and not self._over:
            when, _, action, args = heapq.heappop(self._events)
            self._events_at_once = self._events_at_once + 1 if when <= self.now else 0
            if self._events_at_once > 20_000 or when > _LONGEST_RUN:
                self._check(False, "the run does not end")
            self.now = when
            action(*args)
        self.ended_at = self.now
        self._check_end()

    def _check_end(self) -> None:
        if len(self.brokers) == 1:
            for (src, dst), peak in self.brokers[0].peak.items():
                self._check_peak(src, dst, peak)
        for party in self.parties.values():
            for delivery in party.deliveries.values():
                for name in _COUNTED:
                    self.stats[name] += getattr(delivery.stats, name)
        if self._culprit is not None:
            self._check_errors()
            return
        for party in self.parties.values():
            for peer, delivery in party.deliveries.items():
                self._check_ended(party, peer, delivery)
        for (src, dst, tag), bodies in self._expected.items():
            self._check(not bodies, f"{src} to {dst}: {len(bodies)} of tag {tag} did not come")
        if any(
            d.state is State.FAILED for p in self.parties.values() for d in p.deliveries.values()
        ):
            self.stats["unclean"] += 1
            return
        while self._events:  # what is under way still reaches the broker
            self.now, _, action, args = heapq.heappop(self._events)
            if action == self._arrive:
                action(*args)
        if len(self.brokers) > 1:  # what was left behind is no matter of deliveries
            self.stats["generations"] = max(p.moves.generation for p in self._movers())
            return
        (broker,) = self.brokers
        left = {key for key in broker.lists if key[2] is not None}
        self._check(
            left <= broker.maybe_uncleaned, f"left on the broker: {left - broker.maybe_uncleaned}"
        )
        self.stats["uncleaned_lists"] = len(left)

    def _check_ended(self, party: Party, peer: str, delivery: Delivery) -> None:
        where = f"{party.name} with {peer}"
        state, error = delivery.state, party.error
        if self.kind == "leave" and all(not t.steps for t in party.threads):
            # The peer may have left while our FIN was lost, or its last word.
            self._check(state in _OVER, f"{where} is {state}")
            # What it does not take any more may fill the broker.
            was_full = self.faults.capacity is not None and isinstance(error, BrokerBusy)
            self._check(was_full or isinstance(error, PeerLost | None), f"{where}: {error!r}")
        else:
            self._check(state is State.CLOSED, f"{where} is {state}")
            self._check(error is None, f"{where}: {error!r}")
        for src, dst, tag in self._expected:
            if (src, dst) == (peer, party.name):
                self._check(delivery.peek(tag) is None, f"{where}: twice, tag {tag}")
        if delivery.state is State.CLOSED and not self._has_unread:
            kept = kept_internally(delivery)
            self._check(not kept, f"{where}: still keeps {kept}")

    def _check_peak(self, src: str, dst: str, peak: int) -> None:
        faults = self.faults
        if faults.doubled or faults.delayed or faults.cuts_per_second or faults.restarts:
            return
        if any(key[:2] == (dst, src) for key in self.brokers[0].maybe_uncleaned):
            return
        largest = self.timing.chunk_bytes + _ELEMENT_OVERHEAD
        limit = 2 * max(self.timing.window_bytes, largest)
        if self.parties[src].deliveries[dst].stats.frames_resent:
            limit *= 2  # a copy of what the first copy has got acked meanwhile
        self._check(peak <= limit, f"{src} to {dst}: {peak} bytes on the broker, limit {limit}")

    def _check_errors(self) -> None:
        culprit = self._culprit
        assert culprit is not None
        refused = 0.0
        causes: tuple[type[Exception], ...] = (PeerAborted, PeerLost)
        if self.kind == "restart":
            causes += (PeerRestarted,)
        if self.faults.capacity is not None:  # what a dead party does not take may fill it
            causes += (BrokerBusy,)
            refused = _BROKER_TIMEOUT
        elif self.faults.refusal is not None:
            refused = self.faults.refusal.ends - self.faults.refusal.begins
        for party in self.parties.values():
            if party is culprit:
                continue
            was_done = all(d.state is State.CLOSED for d in party.deliveries.values())
            self._check(
                was_done or isinstance(party.error, causes), f"{party.name}: {party.error!r}"
            )
            took = party.failed_at - self._misbehaved_at
            # The first is lost, which takes peer_timeout; then, if its ABORTs are, the next.
            longest = (len(self.parties) - 1) * 1.2 * self.timing.peer_timeout + 20 + refused
            if len(self.brokers) > 1:
                longest += _LONGEST_PARTED  # time in which nobody could be heard does not count
            self._check(took <= longest, f"{party.name} failed after {took:.1f} s")

    def _describe(self) -> str:
        lines = []
        for party in self.parties.values():
            for thread in party.threads:
                if thread.steps:
                    step = thread.steps[0]
                    lines.append(
                        f"{party.name} {'sends to' if step.is_send else 'waits for'} "
                        f"{step.peer} {step.tag}"
                    )
            lines += [f"{party.name} {peer} {d.state}" for peer, d in party.deliveries.items()]
        return "; ".join(lines)

    # -- what the seed decides -------------------------------------------------------------

    def _draw_timing(self) -> Timing:
        chunk = self.rng.choice([1, 64, 200, 500])
        window = self.rng.choice([chunk + 128, 600, 2000, 20_000])
        chance = random.Random(f"parts of {self.seed}")  # other runs stay what they are
        part = chance.choice([0, chance.randrange(1, chunk + 1)])
        return Timing(window_bytes=window, chunk_bytes=chunk, part_bytes=part)

    def _draw_parties(self) -> dict[str, Party]:
        rng = self.rng
        names = ["alice", "bob", "carol"][: rng.choice([2, 2, 3])]
        parties = {name: Party(name) for name in names}
        thread_count = rng.choice([1, 1, 2, 3])
        for party in parties.values():
            party.deliveries = {n: Delivery(n, self.timing, 0.0) for n in names if n != party.name}
            party.threads = [Thread(party, deque()) for _ in range(thread_count)]
        # Each step has a place in an imagined order in which every receive stands behind its
        # send; each thread walks through its own in that order, so no program can deadlock.
        steps: list[tuple[float, str, Step]] = []
        tag_count = rng.choice([1, 2, 5, 1000])
        longest_lag = rng.choice([1, 10, 100])
        largest = rng.choice([10, 3 * self.timing.chunk_bytes, 5 * self.timing.chunk_bytes])
        message_count = rng.randrange(1, 50)
        by_tag: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
        for _ in range(message_count):
            src, dst = rng.sample(names, 2)
            sent = rng.uniform(0, message_count)
            received = sent + rng.uniform(0, longest_lag)
            by_tag[src, dst, f"tag{rng.randrange(tag_count)}"].append((sent, received))
        for (src, dst, tag), times in by_tag.items():
            for sent in sorted(sent for sent, _ in times):
                body = rng.randbytes(rng.randrange(largest + 1))
                self._expected[src, dst, tag].append(body)
                steps.append((sent, src, Step(True, dst, tag, body)))
            steps += [(received, dst, Step(False, src, tag)) for _, received in times]
        if rng.random() < 0.2:  # messages that nobody ever receives
            self._has_unread = True
            src, dst = rng.sample(names, 2)
            body = rng.randbytes(largest)
            steps += [
                (rng.uniform(0, message_count), src, Step(True, dst, f"unread{n}", body, False))
                for n in range(rng.randrange(1, 5))
            ]
        for _, name, step in sorted(steps, key=lambda step: step[0]):
            threads = parties[name].threads
            threads[sum(step.tag.encode()) % len(threads)].steps.append(step)
        if self.kind in ("abort", "die", "restart"):
            self._culprit = parties[rng.choice(names)]
        return parties

    def _draw_faults(self) -> Faults:
        rng = self.rng

        def maybe(most: float) -> float:
            return rng.uniform(0, most) if rng.random() < 0.5 else 0.0

        faults = Faults(lasts=rng.uniform(0, 60), later=rng.choice([0.0, 0.0, 0.1, 0.3]))
        if rng.random() < 0.05:
            return faults
        worst = rng.choice([0.02, 0.2, 0.4])
        faults.dropped, faults.doubled = maybe(worst), maybe(worst)
        faults.delayed, faults.pop_lost = maybe(worst), maybe(worst)
        faults.half_open, faults.changed = maybe(worst), maybe(worst)
        faults.refused = maybe(worst)
        if self.kind == "freeze":  # an announcement that is lost or taken back does not help
            faults.delayed = faults.doubled = 0.0
            return faults
        faults.cuts_per_second = maybe(rng.choice([0.1, 1.0, 5.0]))
        faults.flushes = rng.choice([0, 0, 1, 5])
        faults.restarts = rng.choice([0, 0, 1, 5])
        if rng.random() < 0.2:
            # Enough for one chunk of each party for each other, twice, and control frames.
            pairs = len(self.parties) * (len(self.parties) - 1)
            chunk = self.timing.chunk_bytes + _ELEMENT_OVERHEAD
            faults.capacity = int(pairs * (2 * chunk + 1000) * rng.uniform(1, 3))
            faults.evicts = rng.random() < 0.5
        if rng.random() < 0.2:
            begins = rng.uniform(0, 60)
            seconds = rng.choice([rng.uniform(0, 3), rng.uniform(3, _LONGEST_REFUSAL)])
            faults.refusal = Refusal(begins, begins + seconds, everything=rng.random() < 0.5)
        return faults

    def _schedule_faults(self) -> None:
        if self.faults.refusal is not None:
            self._at_once(self.faults.refusal.ends, self._wake_all)
        if len(self.brokers) > 1:
            for party in self.parties.values():
                party.moves = Moves(party.deliveries, len(self.brokers), _MOVE_AFTER)
                party.moves.begin(0, 0.0)
            self._schedule_partings()
        for _ in range(self.faults.flushes):
            self._at_once(self.rng.uniform(0, self.faults.lasts), self._flush, False)
        for _ in range(self.faults.restarts):
            self._at_once(self.rng.uniform(0, self.faults.lasts), self._flush, True)
        for party in self.parties.values():
            self._schedule_cut(party)
            if self.kind == "freeze":
                self._at(self.rng.uniform(0, 20), party, self._freeze, party)

    def _schedule_cut(self, party: Party) -> None:
        rate = self._rate(self.faults.cuts_per_second)
        if rate:
            self._at_once(self.now + self.rng.expovariate(rate), self._cut_again, party)

    def refuses(self, broker: SimulatedBroker, *, everything: bool = False) -> bool:
        """Whether a broker refuses pushes now; with ``everything``, whether also all else."""
        refusal = self.faults.refusal
        return (
            refusal is not None
            and broker is self.brokers[0]
            and refusal.begins <= self.now < refusal.ends
            and refusal.everything >= everything
        )

    def _wake_all(self) -> None:
        for broker in self.brokers:
            for key in list(broker.lists):
                self.wake(broker, key)

    def _rate(self, full: float) -> float:
        return full if self.now < self.faults.lasts else full * self.faults.later

    def _strikes(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < self._rate(probability)

    def strikes_frame(self, key: ListKey, probability: float) -> bool:
        """As `_strikes`, but never eats too many control frames in a row."""
        dst, src, tag = key
        if tag is not None:
            return self._strikes(probability)
        most = 0 if self.kind == "freeze" else _MOST_CONTROL_LOSSES
        lost = self._control_losses[src, dst] < most and self._strikes(probability)
        if lost:
            self._control_losses[src, dst] += 1
        return lost

    # -- time ------------------------------------------------------------------------------

    def _at_once(self, when: float, action: Callable[..., None], *args: Any) -> None:
        self._event_count += 1
        heapq.heappush(self._events, (max(when, self.now), self._event_count, action, args))

    def _at(self, when: float, party: Party, action: Callable[..., None], *args: Any) -> None:
        """As `_at_once`, for what a party does itself: later if it is frozen, never if gone."""
        self._at_once(when, self._act, party, action, args)

    def _act(self, party: Party, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        if party.is_gone:
            return
        if self.now < party.frozen_until:
            self._at_once(party.frozen_until, self._act, party, action, args)
        else:
            action(*args)

    def _latency(self) -> float:
        return self.rng.uniform(0.001, 0.02)

    # -- what a party does -----------------------------------------------------------------

    def _advance(self, thread: Thread) -> None:
        """Do the next step of a program, or go on waiting."""
        party = thread.party
        if party.is_closing:
            return
        if not thread.steps:
            if all(not t.steps for t in party.threads):
                self._close(party)
            return
        step = thread.steps[0]
        delivery = party.deliveries[step.peer]
        if step.is_send:
            try:
                delivery.send(step.tag, step.body, self.now)
            except PeerClosed:
                self._check(not step.is_received, f"{step.peer} left before {step.tag} was sent")
            except PeerError as error:
                self._fail(party, error)
                return
            self._log("%s sends %s to %s", party.name, step.tag, step.peer)
            self._settle(party, step.peer)
            self._next_step(thread)
        else:
            self._receive(thread, step, delivery)

    def _next_step(self, thread: Thread) -> None:
        thread.steps.popleft()
        pause = self.rng.expovariate(1 / self.rng.choice([0.001, 0.01, 0.01, 0.5]))
        self._at(self.now + pause, thread.party, self._advance, thread)

    def _receive(self, thread: Thread, step: Step, delivery: Delivery) -> None:
        party = thread.party
        self._read_rests(party, step.peer)
        message = delivery.take(step.tag)
        if message is not None:
            self._received(thread, message[0])
            return
        try:
            delivery.check_can_receive(step.tag, self.now)
        except PeerError as error:
            self._fail(party, error)
            return
        if not thread.waits:
            delivery.wait(step.tag, self.now)
            thread.waits = True
            self._arm(party, step.peer)
        thread.attempt += 1
        thread.is_deaf = False
        key = (party.name, step.peer, (step.tag, delivery.edition_in))
        broker = self.broker_of(party)
        if self._strikes(self.faults.half_open):
            self._go_half_open(broker, key, thread)
            return
        broker.waiters[key] = (thread, thread.attempt)
        ends = self.now + _BLPOP_SECONDS
        self._at(ends, party, self._blpop_ends, broker, key, thread, thread.attempt)
        self._serve(broker, key)

    def _open(
        self, delivery: Delivery, tag: str, element: Element, *, changed: bool = False
    ) -> bytes | memoryview:
        """Open a frame where its message has a place for it, as a codec does."""
        frame, body = element.frame, element.body
        place = delivery.lend(tag, frame, len(body)) if isinstance(frame, Data) else None
        if place is None:
            return body
        self.stats["in_place"] += 1
        place[:] = bytes(len(body)) if changed else body
        return place

    def _go_half_open(self, broker: SimulatedBroker, key: ListKey, thread: Thread) -> None:
        """The broker serves this BLPOP, and perhaps those for the next tags; nobody hears it."""
        self._log("half-open: %s", key)
        dst, src, _ = key
        thread.is_deaf = True
        broker.ghosts[key] += 1
        later = [s.tag for s in thread.steps if not s.is_send and s.peer == src][1:]
        for tag in later[: self.rng.choice([0, 0, 3, 32])]:
            broker.ghosts[dst, src, (tag, thread.party.deliveries[src].edition_in)] += 1
        seconds = _BLPOP_SECONDS + _BLPOP_MARGIN
        self._at(self.now + seconds, thread.party, self._goes_silent, thread, thread.attempt)
        self._serve(broker, key)

    def _goes_silent(self, thread: Thread, attempt: int) -> None:
        """The reply of a BLPOP is so late that its connection counts as lost."""
        if thread.is_deaf and thread.attempt == attempt and thread.steps:
            self._read_anew(thread.party, thread.steps[0].peer)

    def _read_anew(self, party: Party, peer: str) -> None:
        party.deliveries[peer].read_anew(self.now)
        party.deliveries[peer].tick(self.now)
        self._settle(party, peer)
        self._leave_lines(party, peer)

    def _leave_lines(self, party: Party, peer: str) -> None:
        """Leave all connections on which messages of a peer are waited for."""
        self._log("%s leaves its lines for messages of %s", party.name, peer)
        broker = self.broker_of(party)
        for thread in party.threads:
            if thread.waits and thread.steps and thread.steps[0].peer == peer:
                left = {k for k, waiter in broker.waiters.items() if waiter[0] is thread}
                for key in left:
                    del broker.waiters[key]
                    broker.ghosts[key] += self.rng.random() < 0.1
                if left or thread.is_deaf:  # else its reply is under way
                    self._advance(thread)

    def _received(self, thread: Thread, body: bytes) -> None:
        """The first step of a program, a receive, has its message."""
        party, step = thread.party, thread.steps[0]
        if thread.waits:
            party.deliveries[step.peer].unwait(step.tag)
            thread.waits = False
        expected = self._expected[step.peer, party.name, step.tag].popleft()
        self._log("%s has %s from %s", party.name, step.tag, step.peer)
        self._check(body == expected, f"{party.name}: wrong message, tag {step.tag}")
        self._next_step(thread)

    def _blpop_ends(
        self, broker: SimulatedBroker, key: ListKey, thread: Thread, attempt: int
    ) -> None:
        if broker.waiters.get(key) == (thread, attempt):
            del broker.waiters[key]
            self._advance(thread)

    def _serve_rests(self, broker: SimulatedBroker, key: ListKey) -> None:
        """Send the elements of a list of rests down the line of the party that has asked."""
        name, peer, data_list = key
        assert data_list is not None
        party = self.parties[name]
        delivery = party.deliveries[peer]
        while key in broker.lists and not self.refuses(broker, everything=True):
            if self._strikes(self.faults.half_open):
                self._log("half-open: %s", key)
                broker.ghosts[key] += self.rng.choice([1, 3, _RESTS_AHEAD])
            if broker.ghosts.get(key):
                broker.ghosts[key] -= 1
                self._log("swallowed: %s", broker.pop(key))
                continue
            if party.is_gone or broker.index in party.cannot_reach:
                return
            if data_list[1] != delivery.edition_in or broker is not self.broker_of(party):
                return
            element = broker.pop(key)
            assert element is not None
            if self._strikes(self.faults.pop_lost) or self._strikes(self.faults.changed):
                self._log("lost pop: %s", key)
                continue
            arrival = max(party.last_rest[peer], self.now + self._latency())
            party.last_rest[peer] = arrival
            self._at(arrival, party, self._rest_comes, party, peer, element)

    def _rest_comes(self, party: Party, peer: str, element: Element) -> None:
        party.rests[peer].append(element)
        if any(t.waits and t.steps and t.steps[0].peer == peer for t in party.threads):
            self._read_rests(party, peer)

    def _read_rests(self, party: Party, peer: str) -> None:
        """Hand over what has come of a peer's rests, and end the waits for what is whole now."""
        delivery = party.deliveries[peer]
        while party.rests[peer] and not party.is_closing:
            element = party.rests[peer].popleft()
            frame = element.frame
            assert isinstance(frame, Data)
            tag = delivery.tag_of(frame)
            delivery.receive_data(None, frame, element.body, self.now)
            self._settle(party, peer)
            if tag is None or delivery.peek(tag) is None:
                continue
            waiters = self.broker_of(party).waiters
            key = (party.name, peer, (tag, delivery.edition_in))
            if key in waiters:
                thread, _ = waiters.pop(key)
                self._at(self.now, party, self._advance, thread)

    def _serve(self, broker: SimulatedBroker, key: ListKey) -> None:
        """Let a blocked BLPOP have the first element of a data list, if there are both."""
        if key[2] is not None and key[2][0] == REST:
            self._serve_rests(broker, key)
            return
        while broker.ghosts.get(key) and key in broker.lists:
            self._log("swallowed: %s", key)
            broker.ghosts[key] -= 1
            broker.pop(key)
        if key not in broker.waiters or key not in broker.lists:
            return
        if self.refuses(broker, everything=True):
            return
        element = broker.pop(key)
        thread, _ = broker.waiters.pop(key)
        delay = self._latency()
        if thread.party.is_gone:
            return
        if broker.index in thread.party.cannot_reach:
            self._log("popped for a line that is dead: %s", key)
            element = None
            delay += _BLPOP_SECONDS
        elif self._strikes(self.faults.pop_lost):
            self._log("lost pop: %s", key)
            element = None
            delay += self.rng.choice([0.05, 1.0, _BLPOP_SECONDS])
        self._at(self.now + delay, thread.party, self._popped, key, thread, element)

    def _popped(self, key: ListKey, thread: Thread, element: Element | None) -> None:
        _, peer, data_list = key
        assert data_list is not None
        tag, _ = data_list
        party = thread.party
        if party.is_closing:
            return
        delivery = party.deliveries[peer]
        message = None
        if element is not None and self._strikes(self.faults.changed):
            self._log("changed: %s", element.frame)
            self._open(delivery, tag, element, changed=True)
            delivery.lost(tag, self.now)
        elif element is not None:
            frame = element.frame
            if element.again:
                delivery.came_again(tag)
            if isinstance(frame, Data) and frame.parts == 1 and not frame.previous:
                whole = (frame.seq, frame.encoding, frame.acked, element.body)
                message = delivery.receive_whole(tag, whole, self.now)
            else:
                delivery.receive_data(tag, frame, self._open(delivery, tag, element), self.now)
        elif self.rng.random() < 0.5:
            delivery.misses(tag, self.now)  # else nobody knows
        self._settle(party, peer)
        if message is not None:
            self._received(thread, message[0])
        else:
            self._advance(thread)

    def _listen(self, party: Party) -> None:
        """What the control thread does while nothing comes."""
        since = party.refused_since
        if since is not None and self.now - since > _BROKER_TIMEOUT:
            self._fail(party, BrokerBusy("the broker has refused this party for too long"))
        broker = self.broker_of(party)
        for peer, delivery in party.deliveries.items():
            deaf = broker.index in party.cannot_reach or self.refuses(broker, everything=True)
            if deaf or since is not None:
                delivery.not_listening(self.now)
            elif (party.name, peer, None) not in broker.lists:
                delivery.listened(self.now)
                if delivery.failure is not None:
                    self._settle(party, peer)
        self._at(self.now + _CONTROL_WAIT, party, self._listen, party)

    def _take_control(self, party: Party, peer: str, broker: SimulatedBroker) -> None:
        party.control_busy.discard((broker.index, peer))
        key = (party.name, peer, None)
        if broker is not self.broker_of(party) or broker.index in party.cannot_reach:
            return
        if self.refuses(broker, everything=True):
            return
        element = broker.pop(key)
        if element is None:
            return
        if self.strikes_frame(key, self.faults.pop_lost):
            self._log("lost pop: %s", key)
        else:
            self._control_losses[peer, party.name] = 0
            self._log("%s hears from %s: %s", party.name, peer, element.frame)
            delivery = party.deliveries[peer]
            edition = delivery.edition_in
            delivery.receive_control(element.frame, self.now)
            self._settle(party, peer)
            if delivery.edition_in != edition:
                self._leave_lines(party, peer)
        self.wake(broker, key)

    def wake(self, broker: SimulatedBroker, key: ListKey) -> None:
        """Let whoever waits for a list look at it."""
        name, peer, tag = key
        party = self.parties[name]
        if tag is not None:
            self._serve(broker, key)
        elif key in broker.lists and (broker.index, peer) not in party.control_busy:
            party.control_busy.add((broker.index, peer))
            self._at(self.now + self._latency(), party, self._take_control, party, peer, broker)

    def _close(self, party: Party) -> None:
        self._log("%s closes", party.name)
        party.is_closing = True
        for peer, delivery in party.deliveries.items():
            delivery.close(self.now)
            self._settle(party, peer)
        self._at(self.now + _CLOSE_SECONDS, party, self._close_ends, party)

    def _close_ends(self, party: Party) -> None:
        """Closing has taken so long that something must be wrong, unless somebody still works."""
        works = any(t.steps for other in self.parties.values() for t in other.threads)
        self._check(works or self._culprit is not None, f"{party.name} cannot close")

    def _notice_end(self, party: Party) -> None:
        """Where parties leave at once when they are done, nobody answers for them."""
        if self.kind == "leave" and party.is_closing:
            party.is_gone = all(d.state in _OVER for d in party.deliveries.values())
        self._over = all(
            party.is_gone or all(d.state in _OVER for d in party.deliveries.values())
            for party in self.parties.values()
        )

    def _fail(self, party: Party, error: PeerError | BrokerBusy) -> None:
        """A program that met an error tells the other parties, as a ``with`` block does."""
        if party.error is not None or party is self._culprit:
            return
        self._log("%s fails: %s", party.name, error)
        party.error, party.failed_at = error, self.now
        if not party.is_closing or isinstance(error, BrokerBusy):
            self._abort(party, str(error))

    def _abort(self, party: Party, reason: str) -> None:
        party.is_closing = True
        for peer, delivery in party.deliveries.items():
            delivery.abort(reason)
            self._settle(party, peer)

    def _misbehave(self, party: Party) -> None:
        self._log("%s: %s", party.name, self.kind)
        self._misbehaved_at = self.now
        if self.kind == "abort":
            self._abort(party, "out of luck")
            return
        party.is_gone = True
        self._notice_end(party)
        if self.kind == "restart":
            for other in self.parties.values():
                if other is not party:
                    seen = self.now + self.rng.uniform(0.1, 5)
                    self._at(seen, other, self._see_restart, other, party.name)

    def _see_restart(self, party: Party, peer: str) -> None:
        party.deliveries[peer].restarted()
        self._settle(party, peer)

    def _freeze(self, party: Party) -> None:
        """Hold the GIL: for a while, or, having said so first, for longer than peer_timeout."""
        if party.is_closing:
            return
        seconds = self.rng.choice([self.rng.uniform(1, 20), self.rng.uniform(10, 200)])
        self._log("%s freezes for %.1f s", party.name, seconds)
        if seconds > 20:
            for peer, delivery in party.deliveries.items():
                delivery.announce_silence(seconds, self.now)
                self._settle(party, peer)
        party.frozen_until = self.now + seconds
        self._at(party.frozen_until, party, self._thaw, party)

    def _thaw(self, party: Party) -> None:
        for peer, delivery in party.deliveries.items():
            delivery.announce_silence(0, self.now)
            self._settle(party, peer)

    # -- between a party and the broker ----------------------------------------------------

    def _settle(self, party: Party, peer: str) -> None:
        """Do what a delivery wants done now: pushes, and its timer."""
        delivery = party.deliveries[peer]
        self._check(delivery.in_flight_bytes <= self._bound, "more than two windows under way")
        for push in delivery.pushes():
            self._push(party, peer, push)
        if delivery.failure is not None:
            self._fail(party, delivery.failure)
        self._arm(party, peer)
        if delivery.state in _OVER:
            self._notice_end(party)

    def _arm(self, party: Party, peer: str) -> None:
        due = party.deliveries[peer].next_timeout()
        if due is not None and due < party.armed.get(peer, float("inf")):
            party.armed[peer] = due
            self._at(due, party, self._tick, party, peer, due)

    def _tick(self, party: Party, peer: str, due: float) -> None:
        if party.armed.get(peer) != due:
            return
        del party.armed[peer]
        delivery = party.deliveries[peer]
        now_due = delivery.next_timeout()
        if now_due is not None and now_due <= self.now:
            delivery.tick(self.now)
            for tag in delivery.overdue(self.now):
                self._look_at_lines(party, peer, tag)
            after = delivery.next_timeout()
            self._check(after is None or after > self.now, "a tick that is due again at once")
        self._settle(party, peer)

    def _look_at_lines(self, party: Party, peer: str, tag: str) -> None:
        """Something is overdue: the line is dead, or the broker has lost it."""
        waiting = [t for t in party.threads if t.waits and t.steps and t.steps[0].tag == tag]
        if any(thread.is_deaf for thread in waiting) or self.rng.random() < 0.5:
            if party.deliveries[peer].missed_in_vain(tag, self.now):
                self._read_anew(party, peer)
        else:  # something else came on it
            party.deliveries[peer].came_in_part(tag, self.now)

    def _push(self, party: Party, peer: str, push: Push | Leftover) -> None:
        """Send it down the connection of this party, on which things stay in order."""
        tag = tag_of(push)
        key: ListKey = (peer, party.name, None)
        if tag is not None:
            edition = party.deliveries[peer].edition_out
            if isinstance(push, Leftover):
                edition = push.edition
            key = (peer, party.name, (tag, edition))
        write = Write(key, True, None)
        if isinstance(push, Push):
            again = isinstance(push, DataPush) and push.again
            element = Element(push.frame, bytes(push.body), again)
            write = Write(key, push.clear, element)
            if isinstance(push.frame, Data):
                number = (party.name, peer, push.frame.seq)
                if self._first_pushes.setdefault(number, element) != element:
                    self._check(False, f"frame {push.frame.seq} has changed")
        self._log("%s pushes %s", party.name, write)
        if not party.is_connected:
            self._lose(write)
            return
        arrival = max(party.last_arrival, self.now + self._latency())
        party.last_arrival = arrival
        broker = self.broker_of(party)
        if self._strikes(self.faults.delayed):
            arrival += self.rng.expovariate(1 / self.rng.choice([0.05, 1.0, 3.0]))
            broker.maybe_uncleaned.add(key)
        self._at_once(arrival, self._arrive, party, push, write, party.connection, broker)
        if write.element is not None and self._strikes(self.faults.doubled):
            copy = Write(key, False, write.element)
            again = arrival + self.rng.expovariate(1.0)
            broker.maybe_uncleaned.add(key)
            self._at_once(again, self._arrive, party, None, copy, party.connection, broker)

    def _arrive(
        self,
        party: Party,
        push: Push | Leftover | None,
        write: Write,
        connection: int,
        broker: SimulatedBroker,
    ) -> None:
        """A write reaches the broker."""
        if connection != party.connection:
            broker.maybe_uncleaned.add(write.key)
            if self.rng.random() < 0.5:
                self._lose(write)
                return
        was_taken = True
        if self.strikes_frame(write.key, self.faults.dropped):
            self._lose(write)
        else:
            was_taken = broker.take(write)
        if isinstance(push, Push):
            reply = self.now + self._latency()
            self._at(reply, party, self._reply, party, push, write.key[0], was_taken, connection)

    def _lose(self, write: Write) -> None:
        self._log("lost: %s", write)
        if write.clear:
            for broker in self.brokers:
                broker.maybe_uncleaned.add(write.key)

    def _reply(self, party: Party, push: Push, peer: str, was_taken: bool, connection: int) -> None:
        if connection != party.connection:
            return
        if was_taken:
            party.refused_since = None
            party.deliveries[peer].confirm(push, self.now)
        else:
            if party.refused_since is None:
                party.refused_since = self.now
            self._log("refused: %s", push)
            party.deliveries[peer].refused(push, self.now)
        self._settle(party, peer)

    # -- faults ----------------------------------------------------------------------------

    def _cut_again(self, party: Party) -> None:
        self._cut(party)
        self._schedule_cut(party)

    def _cut(self, party: Party) -> None:
        if not party.is_connected:
            return
        self._log("%s: connection cut", party.name)
        party.connection += 1
        party.is_connected = False
        away = self.rng.choice([0.0, 0.1, 0.5, 3.0]) / max(1.0, self.faults.cuts_per_second) ** 2
        self._at(self.now + away, party, self._reconnect, party)

    def _reconnect(self, party: Party) -> None:
        if party.is_connected or self.broker_of(party).index in party.cannot_reach:
            return
        party.away_since = None
        self._log("%s: reconnected", party.name)
        party.is_connected = True
        party.last_arrival = self.now
        for peer, delivery in party.deliveries.items():
            delivery.reconnected(self.now)
            delivery.tick(self.now)
            self._settle(party, peer)

    def _flush(self, restart: bool) -> None:
        self._log("the broker %s", "restarts empty" if restart else "is flushed")
        for broker in self.brokers:
            broker.flush()
        if restart:
            for party in self.parties.values():
                self._cut(party)

    # -- several brokers -------------------------------------------------------------------

    def broker_of(self, party: Party) -> SimulatedBroker:
        """The broker on which the session is, as far as this party knows."""
        return self.brokers[0 if party.moves is None else party.moves.current]

    def _movers(self) -> list[Any]:
        return [party for party in self.parties.values() if party.moves is not None]

    def _schedule_partings(self) -> None:
        """Brokers go away, for all parties or for some: one after the other, or one for good.

        Parties always get a broker in common again before anybody would be taken for dead.
        """
        chance, count = self._chance, len(self.brokers)
        names, when = list(self.parties), 0.0
        for _ in range(chance.randrange(1, 6)):
            when += chance.uniform(0, 10)
            seconds = chance.choice([0.5, 2.0, 3.0, 8.0])
            what = chance.choice(["all parties", "some", "all brokers", "flaps"])
            parties = names if what != "some" else chance.sample(names, 1)
            brokers = range(count) if what == "all brokers" else [chance.randrange(count)]
            for turn in range(4 if what == "flaps" else 1):
                start = when + 2 * turn * seconds
                for name in parties:
                    for broker in brokers:
                        self._at_once(start, self._part, self.parties[name], broker)
                        self._at_once(start + seconds, self._rejoin, self.parties[name], broker)
            when += 8 * seconds if what == "flaps" else seconds
        if chance.random() < 0.5:
            dead = chance.randrange(count)
            for party in self.parties.values():
                self._at_once(when + chance.uniform(0, 5), self._part, party, dead)

    def _part(self, party: Party, broker: int) -> None:
        """A party no longer reaches a broker."""
        self._log("%s no longer reaches broker %d", party.name, broker)
        party.cannot_reach.add(broker)
        if broker == self.broker_of(party).index:
            self._disconnect(party)

    def _rejoin(self, party: Party, broker: int) -> None:
        self._log("%s reaches broker %d again", party.name, broker)
        party.cannot_reach.discard(broker)
        if broker == self.broker_of(party).index:
            self._at(self.now + self._latency(), party, self._reconnect, party)
            for peer in party.deliveries:
                self.wake(self.brokers[broker], (party.name, peer, None))

    def _disconnect(self, party: Party) -> None:
        party.connection += 1
        party.is_connected = False
        if party.away_since is None:
            party.away_since = self.now

    def _watch(self, party: Party) -> None:
        """What a party's watches do: see who is alive, decide, and say what is due."""
        moves = party.moves
        assert moves is not None
        for broker in range(len(self.brokers)):
            if broker in party.cannot_reach:
                moves.lost(broker)
            else:
                moves.answered(broker, self.now)
        since = [at for at in (party.away_since, party.refused_since) if at is not None]
        away = self.now - min(since, default=self.now)
        before = moves.current
        if moves.consider(self.now, away, 0.01):
            self._go(party, before)
        for broker in range(len(self.brokers)):
            if broker not in party.cannot_reach:
                for peer, said in moves.due(broker, self.now):
                    if self._chance.random() > 0.3:
                        arrival = self.now + self._chance.uniform(0.001, 0.5)
                        self._at(arrival, self.parties[peer], self._hear_move, peer, party, said)
        if not all(d.state in _OVER for d in party.deliveries.values()):
            self._at(self.now + _WATCH_SECONDS, party, self._watch, party)

    def _hear_move(self, name: str, sender: Party, said: Move) -> None:
        party = self.parties[name]
        moves = party.moves
        assert moves is not None
        if said.at in party.cannot_reach:
            return
        before = moves.current
        if moves.heard(sender.name, said, self.now):
            self._go(party, before)

    def _go(self, party: Party, before: int) -> None:
        """A party has moved: its connections break, and it goes on where the session is now."""
        moves = party.moves
        assert moves is not None
        self._log(
            "%s moves to broker %d, generation %d", party.name, moves.current, moves.generation
        )
        if moves.current == before:
            return
        party.refused_since = None
        self._disconnect(party)
        waiters = self.brokers[before].waiters
        for key, (thread, _) in list(waiters.items()):
            if thread.party is party:
                del waiters[key]
                self._at(self.now + self._latency(), party, self._advance, thread)
        self._at(self.now + self._latency(), party, self._reconnect, party)
        for peer in party.deliveries:
            self.wake(self.brokers[moves.current], (party.name, peer, None))

    # -- odds and ends ---------------------------------------------------------------------

    def _check(self, holds: bool, what: str) -> None:
        if not holds:
            raise SimulationError(
                f"seed {self.seed} at {self.now:.3f} s: {what} ({self._describe()}); "
                f"to replay: python -m tests.protocol.simulation --seed {self.seed} -v"
            )

    def _log(self, text: str, *args: object) -> None:
        if self._verbose:
            print(f"{self.now:10.4f}  " + text % args)


def kept_internally(delivery: Delivery) -> dict[str, object]:
    """What a delivery keeps of messages; nothing, once all were acked and taken."""
    sending, receiving = delivery._sending, delivery._receiving
    kept = {
        name: getattr(sending, name)
        for name in (
            "_queue",
            "_unacked",
            "_by_tag",
            "_chunks_left",
            "_waited_for",
            "_to_clear",
            "_pushed_twice",
            "_apart_bytes",
            "in_flight_bytes",
        )
    }
    kept |= {"_waits": receiving._waits}
    reassembly = receiving._reassembly
    kept |= {"tags": reassembly.tags, "_tag_of": reassembly._tag_of, "_rests": reassembly._rests}
    kept |= {"ranges": receiving.received._starts}
    return {name: value for name, value in kept.items() if value}


def run_seeds(seeds: range) -> dict[str, int]:
    """Play runs; returns totals over them."""
    totals: dict[str, int] = defaultdict(int)
    for seed in seeds:
        world = World(seed)
        world.run()
        totals[world.kind] += 1
        for name, count in world.stats.items():
            totals[name] += count
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description="Play seeded runs of Delivery.")
    parser.add_argument("--seed", type=int, help="play this one")
    parser.add_argument("-v", "--verbose", action="store_true", help="with a log of it")
    parser.add_argument("--runs", type=int, default=2000, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        world = World(arguments.seed, arguments.verbose)
        world.run()
        print(f"seed {arguments.seed}: {world.kind}, ended at {world.ended_at:.1f} s as it should")
        return
    started = time.monotonic()
    failures = 0
    totals: dict[str, int] = defaultdict(int)
    for seed in range(arguments.first, arguments.first + arguments.runs):
        try:
            for name, count in run_seeds(range(seed, seed + 1)).items():
                totals[name] += count
        except SimulationError as error:
            failures += 1
            print(error)
    seconds = time.monotonic() - started
    print(f"{arguments.runs} runs in {seconds:.0f} s, {failures} not as they should be")
    print(", ".join(f"{name} {count}" for name, count in sorted(totals.items())))
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
