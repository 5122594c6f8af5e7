"""Lanes: send BLPOPs for the next tags before anybody asks for them.

A receive costs a round trip to the broker, unless its BLPOP gets there before the message. A lane
is one connection that pipelines BLPOPs for the next tags of a family; their replies come in the
order of the BLPOPs. Every element from a lane goes to its delivery like any other. So a lane may
be given up at any time: elements that it had popped count as lost, and are probed for.

Locks: a `Lanes` owns its lanes, and its lock guards the set of them. A thread that reads a lane
holds that lane's lock, and takes the lock of `Lanes` inside it. Never the other way round: `_drop`
runs with the lock of `Lanes`, so it only tries the lane's. A reader takes no lock for two steps,
because each is atomic: it looks at the front of ``posted``, and it removes the front. A thread
that gives the lane up may empty ``posted`` at any time; the reader then gets an IndexError. No
thread connects while it holds one of these locks.
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
"""A lane was worth its connection if it brought at least so many messages."""
_MAX_DISTRUSTED: Final = 256


class Lane:
    """One family's BLPOPs. Read it with ``lock`` held; replies arrive in the order of posting."""

    def __init__(self, family: Family, prefix: bytes, wait: Wait) -> None:
        """Not for users.

        Args:
            family: the tags that this lane foresees.
            prefix: the part of a list's name that precedes the tag.
            wait: the lane's connection.
        """
        self.family = family
        self.next = family.next
        self._before = prefix + (encode_tag(family.before) if family.before else b"")
        self._after = encode_tag(family.after) if family.after else b""
        self.wait = wait
        self.lock = threading.Lock()
        self.posted: deque[tuple[str, bytes]] = deque()
        """(tag, name of its list) of each BLPOP that has no reply yet."""
        self.abandoned = False

    def following(self, count: int) -> tuple[list[str], list[bytes]]:
        """Return the next ``count`` tags to post, and the names of their lists."""
        numbers = range(self.next, self.next + count)
        names = [b"%b%d%b" % (self._before, number, self._after) for number in numbers]
        return self.family.tags(numbers), names


class Lanes:
    """The lanes for one peer's messages. Thread-safe."""

    def __init__(
        self,
        inbox: Inbox,
        depth: int,
        blpop_seconds: float,
        round_trip: float,
        prefix: bytes,
    ) -> None:
        """Not for users.

        Args:
            inbox: gives a connection for each lane.
            depth: how many tags to foresee; 0 foresees none.
            blpop_seconds: how long one BLPOP waits.
            round_trip: seconds to the broker and back.
            prefix: the part of a list's name that precedes the tag.
        """
        self._inbox = inbox
        self.depth = depth
        """How many tags to foresee; 0 foresees none."""
        self.few = depth // 2
        """When a lane has only so many BLPOPs left, `go_on` posts more."""
        self.seconds = blpop_seconds
        """How long one BLPOP waits."""
        # How long to wait for a tag that nobody receives before the one that somebody wants:
        # yacl's operations share a counter, so a family's next tag often never comes.
        self._patience = max(_LEAST_PATIENCE, 2 * round_trip)
        self._prefix = prefix
        self._lookahead = LookAhead()
        self._lock = threading.Lock()
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._needed: dict[tuple[str, str], int] = {}
        """How many tags in a row a family needs before it gets a lane again; see `_distrust`."""
        self._by_tag: dict[str, Lane] = {}
        self.lane_of = self._by_tag.get
        """``lane_of(tag)`` is the lane with a BLPOP out for this tag; None if there is none."""
        self._closed = False

    def read(self, lane: Lane, tag: str) -> tuple[str, bytes, Buffer | None] | None:
        """Return the lane's next reply. Call it with the lane's lock, until the reply is ``tag``'s.

        Returns:
            (tag, list, element) of the BLPOP that was answered; the element is None if none came
            in time. None instead of the tuple if the lane can no longer bring ``tag``.

        Raises:
            Interrupted, BrokerError: as for `Wait.pop`; the lane is abandoned.
        """
        if self._by_tag.get(tag) is not lane:
            if lane.abandoned:
                self._end(lane)
            return None
        # No lock: each step is atomic, and a thread that gives the lane up may empty it any time.
        try:
            head, name = lane.posted[0]
        except IndexError:
            self._end(lane)
            return None
        try:
            if head != tag and not lane.wait.wait_posted(self._patience):
                self._distrust(lane)
                self._abandon_mine(lane)
                return None
            element = lane.wait.read_posted(name, self.seconds)
        except BaseException:
            self._abandon_mine(lane)
            raise
        try:
            lane.posted.popleft()
        except IndexError:
            self._end(lane)  # given up meanwhile; the element that just came still counts
        self._by_tag.pop(head, None)
        return head, name, element

    def go_on(self, lane: Lane) -> None:
        """Post more BLPOPs on a lane that has `few` left, enough to be worth a system call."""
        with self._lock:
            if not lane.abandoned and not self._closed:
                self._post(lane)

    def foresee(self, tag: str) -> None:
        """Note a message that no lane brought, and perhaps open a lane for the tags after it."""
        with self._lock:
            family = self._lookahead.observe(tag)
            if family is None or self._closed:
                return
            lane = self._lanes.get(family.name)
            if lane is not None:
                if lane.posted:
                    return  # this tag was left out; the lane is read or given up by others
                self._drop(lane)  # all its BLPOPs have ended: it may have been idle for long
            elif family.run < self._needed.get(family.name, 0):
                return
            if not self._has_room():
                return
        try:
            wait = self._inbox.acquire()
        except EndpointClosed:
            return
        try:
            wait.connect()  # takes round trips, so without the lock
        except BrokerError:
            self._inbox.release(wait)
            return
        with self._lock:
            if self._closed or family.name in self._lanes or not self._has_room():
                self._inbox.release(wait)
                return
            lane = self._lanes[family.name] = Lane(family, self._prefix, wait)
            self._post(lane)

    def move(self, prefix: bytes) -> None:
        """Give up all lanes; new ones are for other lists.

        Args:
            prefix: the part of a list's name that precedes the tag, from now on.
        """
        with self._lock:
            self._prefix = prefix
            for lane in list(self._lanes.values()):
                self._drop(lane)

    def close(self) -> None:
        """Give up all lanes, and open no more."""
        with self._lock:
            self._closed = True
            for lane in list(self._lanes.values()):
                self._drop(lane)

    def _post(self, lane: Lane) -> None:
        count = self.depth - len(lane.posted)
        tags, names = lane.following(count)
        try:
            lane.wait.post(names, self.seconds)
        except BrokerError:
            self._drop(lane)
            return
        lane.next += count
        lane.posted.extend(zip(tags, names, strict=True))
        self._by_tag.update(dict.fromkeys(tags, lane))

    def _has_room(self) -> bool:
        """Return whether there is room for one more lane. Call it with the lock.

        A lane that still has BLPOPs out is not given up for another: an element that it pops at
        that moment would be lost, and have to be probed for.
        """
        if len(self._lanes) < _MAX_LANES:
            return True
        idle = [lane for lane in self._lanes.values() if not lane.posted]
        if idle:
            self._drop(idle[0])
        return bool(idle)

    def _distrust(self, lane: Lane) -> None:
        """Note that the program skipped a tag of this lane.

        A lane that does not last costs more than it brings, so its family must prove itself for
        longer before it gets the next one.
        """
        name, brought = lane.family.name, lane.next - lane.family.next - len(lane.posted)
        with self._lock:
            needed = self._needed.pop(name, _FIRST_NEEDED)
            if brought < _LASTING:
                self._needed[name] = min(4 * needed, _MOST_NEEDED)
                if len(self._needed) > _MAX_DISTRUSTED:
                    del self._needed[next(iter(self._needed))]

    def _abandon_mine(self, lane: Lane) -> None:
        """Give up a lane; this thread holds the lane's lock."""
        with self._lock:
            self._forget(lane)
        self._end(lane)

    def _drop(self, lane: Lane) -> None:
        """Give up a lane that another thread may be reading. Call it with the lock of `Lanes`."""
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
