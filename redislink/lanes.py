"""Lanes: BLPOPs for the tags that come next, under way before anybody asks for them.

On a long way to the broker a receive costs a round trip, unless its BLPOP is there before the
message. A lane is one connection on which BLPOPs for the next tags of a family are pipelined;
their replies come in that order. What a lane brings goes to delivery like everything else, so
that a lane may be given up at any time: what it had popped counts as lost, and is probed for.
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
from redislink.protocol.lookahead import LookAhead

_MAX_LANES: Final = 16
_STUCK_SECONDS: Final = 0.2
"""How long a lane may wait for a tag that nobody receives before one that somebody does."""


class Lane:
    """One family's BLPOPs. Whoever holds ``lock`` may read; posted tags are first come first."""

    def __init__(self, family: str, wait: Wait) -> None:
        self.family = family
        self.wait = wait
        self.lock = threading.Lock()
        self.posted: deque[str] = deque()
        self.abandoned = False


class Lanes:
    """The lanes for what one peer sends. Thread-safe."""

    def __init__(
        self, inbox: Inbox, depth: int, blpop_seconds: float, name_of: Callable[[str], bytes]
    ) -> None:
        """Args: tags to foresee (0: none), how long one BLPOP waits, gives a tag's list."""
        self._inbox = inbox
        self._seconds = blpop_seconds
        self._name_of = name_of
        self.depth = depth
        """How many tags are foreseen; 0: none."""
        self._lookahead = LookAhead(depth)
        self._lock = threading.Lock()
        self._lanes: dict[str, Lane] = {}
        self._by_tag: dict[str, Lane] = {}
        self._closed = False

    def lane_of(self, tag: str) -> Lane | None:
        """The lane on which a BLPOP for this tag is under way, if there is one."""
        return self._by_tag.get(tag)

    def read(self, lane: Lane, tag: str) -> tuple[str, Buffer | None] | None:
        """The lane's next reply; call it with the lane's lock held, until it is ``tag``'s.

        Returns:
            The tag that it answers, and the element, or None if none came in time. None
            instead of both if the lane cannot bring ``tag`` any more.

        Raises:
            Interrupted, BrokerError: as `Wait.pop`; the lane is abandoned.
        """
        if lane.abandoned:
            self._end(lane)
            return None
        if tag not in lane.posted:
            return None
        head = lane.posted[0]
        try:
            element = lane.wait.read_posted(
                (self._name_of(head),), self._seconds if head == tag else None, _STUCK_SECONDS
            )
        except TimeoutError:
            self._abandon_mine(lane)
            return None
        except BaseException:
            self._abandon_mine(lane)
            raise
        with self._lock:
            lane.posted.popleft()
            self._by_tag.pop(head, None)
        if element is None and lane.posted:
            self._abandon_mine(lane)  # its next BLPOP is for a tag that nobody waits for
        return head, element

    def foresee(self, tag: str) -> None:
        """A message with this tag was received: post BLPOPs for those that come after it."""
        if not self._lookahead.depth:
            return
        with self._lock:
            foreseen = self._lookahead.observe(tag)
            if foreseen is None or self._closed:
                return
            family, tags = foreseen
            lane = self._lanes.get(family)
            if lane is None:
                lane = self._open_lane(family)
                if lane is None:
                    return
            new = [t for t in tags if t not in self._by_tag]
            if not new or (lane.posted and new[0] != tags[len(tags) - len(new)]):
                return
            try:
                lane.wait.post([self._name_of(t) for t in new], self._seconds)
            except BrokerError:
                self._drop(lane)
                return
            lane.posted.extend(new)
            self._by_tag.update(dict.fromkeys(new, lane))

    def close(self) -> None:
        """Give all lanes up, and open no more."""
        with self._lock:
            self._closed = True
            for lane in list(self._lanes.values()):
                self._drop(lane)

    def _open_lane(self, family: str) -> Lane | None:
        if len(self._lanes) >= _MAX_LANES:
            self._drop(next(iter(self._lanes.values())))
        try:
            lane = self._lanes[family] = Lane(family, self._inbox.acquire())
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
        if self._lanes.get(lane.family) is lane:
            del self._lanes[lane.family]
        for tag in lane.posted:
            self._by_tag.pop(tag, None)
        lane.posted.clear()

    def _end(self, lane: Lane) -> None:
        lane.wait.disconnect()
        self._inbox.discard(lane.wait)
