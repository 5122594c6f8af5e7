"""Lanes: BLPOPs for the tags that come next, under way before anybody asks for them.

Locks: `Lanes` owns all of its lanes; its lock guards which there are. Whoever reads a lane holds
that lane's lock, and takes the lock of `Lanes` within it, never the other way round: `_drop`, which
has the latter, only tries the former. Two steps of a reader take no lock, as each is atomic: it
looks at the front of ``posted``, and takes it off. Whoever gives the lane up empties it at any
time, and the reader then finds nothing there (IndexError). Nobody connects with a lock of these.

A receive costs a round trip to the broker, unless its BLPOP is there before the message. A lane
is one connection on which BLPOPs for the next tags of a family are pipelined; their replies
come in that order. What a lane brings goes to delivery like everything else, so that a lane may
be given up at any time: what it had popped counts as lost, and is probed for.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from redislink.broker import Inbox
from redislink.broker.inbox import Wait
from redislink.broker.wire import Buffer
from redislink.errors import BrokerError, EndpointClosed
from redislink.protocol.list_names import encode_tag
from redislink.protocol.lookahead import Family, LookAhead

_MAX_LANES: Final = 8
_LEAST_PATIENCE: Final = 0.002
_FIRST_NEEDED: Final = 2
_MOST_NEEDED: Final = 512
_LASTING: Final = 32
"""Messages that a lane must have brought to have been worth its connection."""
_MAX_DISTRUSTED: Final = 256


class Lane:
    """One family's BLPOPs. Whoever holds ``lock`` may read; posted tags are first come first."""

    def __init__(self, family: Family, prefix: bytes, wait: Wait) -> None:
        """Args: what stands before the tags in the names of the lists, the connection."""
        self.family = family
        self.next = family.next
        self._before = prefix + (encode_tag(family.before) if family.before else b"")
        self._after = encode_tag(family.after) if family.after else b""
        self.wait = wait
        self.lock = threading.Lock()
        self.posted: deque[tuple[str, bytes]] = deque()
        """Tags, and the names of their lists."""
        self.abandoned = False

    def following(self, count: int) -> list[tuple[str, bytes]]:
        """The tags to post next, and the names of their lists."""
        numbers = range(self.next, self.next + count)
        names = [b"%b%d%b" % (self._before, number, self._after) for number in numbers]
        return list(zip(self.family.tags(numbers), names, strict=True))


class Lanes:
    """The lanes for what one peer sends. Thread-safe."""

    def __init__(
        self,
        inbox: Inbox,
        depth: int,
        blpop_seconds: float,
        round_trip: float,
        prefix: bytes,
    ) -> None:
        """Args: tags to foresee (0: none), seconds that one BLPOP waits, seconds to the broker
        and back, what stands before the tags in the names of the lists."""
        self._inbox = inbox
        self.depth = depth
        """How many tags are foreseen; 0: none."""
        self.few = depth // 2
        """How many BLPOPs may be left on a lane before `go_on` posts more."""
        self._seconds = blpop_seconds
        # How long a tag that nobody receives may stand before one that somebody does: yacl's
        # operations share a counter, so that the next tag of a family often never comes.
        self._patience = max(_LEAST_PATIENCE, 2 * round_trip)
        self._prefix = prefix
        self._lookahead = LookAhead()
        self._lock = threading.Lock()
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._needed: dict[tuple[str, str], int] = {}
        """How many tags in a row it takes before a family has a lane again; see `_distrust`."""
        self._by_tag: dict[str, Lane] = {}
        self.lane_of = self._by_tag.get
        """The lane on which a BLPOP for this tag is under way, if there is one."""
        self._closed = False

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
        # No lock: each step is atomic, and who gives the lane up empties both at any time.
        try:
            head, name = lane.posted[0]
        except IndexError:
            self._end(lane)
            return None
        try:
            element = lane.wait.read_posted(
                name, self._seconds if head == tag else None, self._patience
            )
        except TimeoutError:
            self._distrust(lane)
            self._abandon_mine(lane)
            return None
        except BaseException:
            self._abandon_mine(lane)
            raise
        try:
            lane.posted.popleft()
        except IndexError:
            self._end(lane)  # given up meanwhile; what it has just brought counts
        self._by_tag.pop(head, None)
        return head, name, element

    def go_on(self, lane: Lane) -> None:
        """A lane is down to a `few` BLPOPs: post more, so many that the system call pays."""
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
            if lane is not None:
                if lane.posted:
                    return  # this tag was left out; the lane is read or given up by others
                self._drop(lane)  # all its BLPOPs have ended: who knows for how long it is idle
            elif family.run < self._needed.get(family.name, 0):
                return
            if not self._has_room():
                return
        try:
            wait = self._inbox.acquire()
        except EndpointClosed:
            return
        try:
            wait.connect()  # it takes round trips: nobody waits for the lock meanwhile
        except BrokerError:
            self._inbox.release(wait)
            return
        with self._lock:
            if self._closed or family.name in self._lanes or not self._has_room():
                self._inbox.release(wait)
                return
            lane = self._lanes[family.name] = Lane(family, self._prefix, wait)
            self._post(lane)

    def close(self) -> None:
        """Give all lanes up, and open no more."""
        with self._lock:
            self._closed = True
            for lane in list(self._lanes.values()):
                self._drop(lane)

    def _post(self, lane: Lane) -> None:
        count = self.depth - len(lane.posted)
        new = lane.following(count)
        try:
            lane.wait.post([name for _, name in new], self._seconds)
        except BrokerError:
            self._drop(lane)
            return
        lane.next += count
        lane.posted.extend(new)
        self._by_tag.update(dict.fromkeys((tag for tag, _ in new), lane))

    def _has_room(self) -> bool:
        """Whether one more lane may be opened; called with the lock.

        One that still has BLPOPs under way is not given up for another: what it pops just then
        would be lost, and probed for.
        """
        if len(self._lanes) < _MAX_LANES:
            return True
        idle = [lane for lane in self._lanes.values() if not lane.posted]
        if idle:
            self._drop(idle[0])
        return bool(idle)

    def _distrust(self, lane: Lane) -> None:
        """A tag of this lane was left out. Lanes that do not last cost more than they bring."""
        name, brought = lane.family.name, lane.next - lane.family.next - len(lane.posted)
        with self._lock:
            needed = self._needed.pop(name, _FIRST_NEEDED)
            if brought < _LASTING:
                self._needed[name] = min(4 * needed, _MOST_NEEDED)
                if len(self._needed) > _MAX_DISTRUSTED:
                    del self._needed[next(iter(self._needed))]

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
        for tag, _ in tuple(lane.posted):  # its reader may be taking from it
            self._by_tag.pop(tag, None)
        lane.posted.clear()

    def _end(self, lane: Lane) -> None:
        lane.wait.disconnect()
        self._inbox.discard(lane.wait)
