"""Lanes: BLPOPs for the tags that come next, under way before anybody asks for them.

A receive costs a round trip to the broker, unless its BLPOP is there before the message. A lane
is one connection on which BLPOPs for the next tags of a family are pipelined; their replies
come in that order. What a lane brings goes to delivery like everything else, so that a lane may
be given up at any time: what it had popped counts as lost, and is probed for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from redislink.broker import Inbox
from redislink.broker.inbox import Wait
from redislink.broker.wire import Buffer
from redislink.errors import BrokerError, EndpointClosed
from redislink.protocol.lookahead import Family, LookAhead

_MAX_LANES: Final = 16
_LEAST_PATIENCE: Final = 0.002


class Lane:
    """One family's BLPOPs. Whoever holds ``lock`` may read; posted tags are first come first."""

    def __init__(self, family: Family, wait: Wait) -> None:
        self.family = family
        self.next = family.next
        self.wait = wait
        self.lock = threading.Lock()
        self.posted: deque[tuple[str, bytes]] = deque()
        """Tags, and the names of their lists."""
        self.abandoned = False


class Lanes:
    """The lanes for what one peer sends. Thread-safe."""

    def __init__(
        self,
        inbox: Inbox,
        depth: int,
        blpop_seconds: float,
        round_trip: float,
        name_of: Callable[[str], bytes],
    ) -> None:
        """Args: tags to foresee (0: none), seconds that one BLPOP waits, seconds to the broker
        and back, what gives a tag's list."""
        self._inbox = inbox
        self.depth = depth
        """How many tags are foreseen; 0: none."""
        self._few = depth // 2
        self._seconds = blpop_seconds
        # How long a tag that nobody receives may stand before one that somebody does: yacl's
        # operations share a counter, so that the next tag of a family often never comes.
        self._patience = max(_LEAST_PATIENCE, 2 * round_trip)
        self._name_of = name_of
        self._lookahead = LookAhead()
        self._lock = threading.Lock()
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._by_tag: dict[str, Lane] = {}
        self._closed = False

    def lane_of(self, tag: str) -> Lane | None:
        """The lane on which a BLPOP for this tag is under way, if there is one."""
        return self._by_tag.get(tag)

    def read(self, lane: Lane, tag: str) -> tuple[str, bytes, Buffer | None] | None:
        """The lane's next reply; call it with the lane's lock held, until it is ``tag``'s.

        Returns:
            The tag that it answers, its list, and the element, or None if none came in time.
            None instead of all if the lane cannot bring ``tag`` any more.

        Raises:
            Interrupted, BrokerError: as `Wait.pop`; the lane is abandoned.
        """
        if self._by_tag.get(tag) is not lane:
            if lane.abandoned:
                self._end(lane)
            return None
        head, name = lane.posted[0]
        try:
            element = lane.wait.read_posted(
                name, self._seconds if head == tag else None, self._patience
            )
        except TimeoutError:
            self._abandon_mine(lane)
            return None
        except BaseException:
            self._abandon_mine(lane)
            raise
        with self._lock:
            if lane.posted:
                lane.posted.popleft()
            self._by_tag.pop(head, None)
        if element is None and lane.posted:
            self._abandon_mine(lane)  # its next BLPOP is for a tag that nobody waits for
        return head, name, element

    def go_on(self, lane: Lane) -> None:
        """A message was received through this lane: see to it that it foresees enough.

        Several BLPOPs are posted at once, so that they cost one system call.
        """
        if len(lane.posted) <= self._few and not lane.abandoned:
            with self._lock:
                if not lane.abandoned and not self._closed:
                    self._post(lane)

    def foresee(self, tag: str) -> None:
        """A message with this tag was received otherwise: a lane may bring those after it."""
        with self._lock:
            family = self._lookahead.observe(tag)
            if family is None or self._closed:
                return
            lane = self._lanes.get(family.name)
            if lane is None:
                lane = self._open_lane(family)
                if lane is None:
                    return
            elif lane.posted:
                return  # this tag was left out; the lane is read or given up by others
            lane.next = family.next
            self._post(lane)

    def close(self) -> None:
        """Give all lanes up, and open no more."""
        with self._lock:
            self._closed = True
            for lane in list(self._lanes.values()):
                self._drop(lane)

    def _post(self, lane: Lane) -> None:
        count = self.depth - len(lane.posted)
        new = [(tag, self._name_of(tag)) for tag in lane.family.tags(lane.next, count)]
        try:
            lane.wait.post([name for _, name in new], self._seconds)
        except BrokerError:
            self._drop(lane)
            return
        lane.next += count
        lane.posted.extend(new)
        self._by_tag.update(dict.fromkeys((tag for tag, _ in new), lane))

    def _open_lane(self, family: Family) -> Lane | None:
        if len(self._lanes) >= _MAX_LANES:
            self._drop(next(iter(self._lanes.values())))
        try:
            lane = self._lanes[family.name] = Lane(family, self._inbox.acquire())
        except EndpointClosed:
            return None
        return lane

    def _abandon_mine(self, lane: Lane) -> None:
        """Give up a lane whose lock this thread holds."""
        with self._lock:
            self._forget(lane)
        self._end(lane)

    def _drop(self, lane: Lane) -> None:
        """Give up a lane that another thread may be reading; the caller holds our lock."""
        self._forget(lane)
        if lane.lock.acquire(blocking=False):
            self._end(lane)
            lane.lock.release()
        else:
            lane.wait.interrupt()  # its reader ends it

    def _forget(self, lane: Lane) -> None:
        lane.abandoned = True
        if self._lanes.get(lane.family.name) is lane:
            del self._lanes[lane.family.name]
        for tag, _ in lane.posted:
            self._by_tag.pop(tag, None)
        lane.posted.clear()

    def _end(self, lane: Lane) -> None:
        lane.wait.disconnect()
        self._inbox.discard(lane.wait)
