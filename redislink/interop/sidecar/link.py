"""One link of a program: what it pushes goes to the peers, what they pushed is popped.

Rules:
- Blackbox messages have no names that we may rely on, so those from one party to another are
  numbered. yacl puts them in order itself, and drops what it gets twice.
- A thread for each peer takes what comes, so that the program hears of a failure whatever it does;
  it holds at most a window of messages, and leaves the others to the broker.
- An answer to a pop may be lost with its connection; then the next pop gets the message again.
- A push waits while the peer has too much to take, and is then refused as "full": memory is bounded
  by the window, whatever the program pushes. Only messages with tags are not, since the order in
  which a program receives them is its own.
- A link that has failed answers pops with nothing, because yacl would ask again at once. The
  program hears of the failure by another way (`Link.tell`).
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from redislink.errors import (
    EndpointClosed,
    PeerClosed,
    RecvTimeout,
    RedisLinkError,
    SendTimeout,
    UsageError,
)
from redislink.interop.objects import TAG
from redislink.settings import LONGEST_SECONDS
from redislink.transport.endpoint import Endpoint
from redislink.transport.request import Request

LONGEST_WAIT: Final = 5.0
"""Seconds that a push waits for room."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the program is told of a link.

    Attributes:
        link: the link's number.
        text: one line.
        failed: whether the link can no longer be used; otherwise a peer has left it in good order.
    """

    link: int
    text: str
    failed: bool


@dataclass(slots=True)
class _Lane:
    """The messages between this party and one peer."""

    pushing: threading.Lock = field(default_factory=threading.Lock)
    pushed: int = 0
    under_way: deque[tuple[Request, int]] = field(default_factory=deque)
    bytes_under_way: int = 0
    arriving: threading.Condition = field(default_factory=threading.Condition)
    arrived: deque[bytes] = field(default_factory=deque)
    bytes_arrived: int = 0
    has_left: bool = False


class Link:
    """One link, over an endpoint of its own.

    Attributes:
        number: the program's word for it.
        party: this party.
        parties: all of them, in rank order.
        used_at: monotonic seconds of the last pop, or 0.
        released: whether the program has dropped the link.
    """

    def __init__(self, number: int, endpoint: Endpoint, tell: Callable[[Told], None]) -> None:
        """Args:
        number: of this link.
        endpoint: closed with the link.
        tell: called once for each peer that leaves, and once if the link fails; from any thread.
        """
        self.number = number
        self.party = endpoint.party
        self.parties = endpoint.cluster.party_names
        self.used_at = 0.0
        self.released = False
        self._endpoint = endpoint
        self._tell = tell
        self._most = 2 * endpoint.settings.window_bytes
        self._lanes = {name: _Lane() for name in endpoint.cluster.party_names if name != self.party}
        self._failure: RedisLinkError | None = None
        self._failing = threading.Lock()
        self._closed = threading.Event()

    def start(self) -> None:
        """Take the blackbox messages that come, until the link is closed."""
        for peer, lane in self._lanes.items():
            threading.Thread(
                target=self._take, args=(peer, lane), name="redislink-take", daemon=True
            ).start()

    def push(self, peer: str, message: bytes) -> bool:
        """Send a blackbox message. Returns False if there is no room: try again later.

        Raises:
            RedisLinkError: the link has failed, or has no such peer.
        """
        lane = self._lane(peer)
        if not self._has_room(lane):
            return False
        with lane.pushing, self._noting(peer):
            request = self._endpoint.send(peer, f"m{lane.pushed}", message)
            lane.pushed += 1
            lane.under_way.append((request, len(message)))
            lane.bytes_under_way += len(message)
        return True

    def pop(self, peer: str, seconds: float) -> bytes:
        """The next blackbox message from a peer; empty if none comes in that time.

        Raises:
            UsageError: the link has no such peer.
        """
        lane = self._lane(peer)
        self.used_at = time.monotonic()
        with lane.arriving:
            if not lane.arriving.wait_for(lambda: lane.arrived, seconds):
                return b""
            message = lane.arrived.popleft()
            lane.bytes_arrived -= len(message)
            lane.arriving.notify_all()  # there is room again
        return message

    def give_back(self, peer: str, message: bytes) -> None:
        """Have the next pop return a message whose answer got lost."""
        self._arrived(self._lane(peer), message, deque.appendleft)

    def send(self, peer: str, tag: str, message: bytes) -> None:
        """Send a message with a tag. It is kept here until the peer receives it.

        Nothing waits for room: the peer may ask for a later message first.

        Raises:
            RedisLinkError: the link has failed, or has no such peer; the tag is not valid.
        """
        self._lane(peer)
        with self._noting(peer):
            self._endpoint.send(peer, TAG + tag, message)

    def recv(self, peer: str, tag: str, seconds: float) -> bytes | None:
        """The next message with a tag; None if none comes in that time.

        Raises:
            RedisLinkError: it will not come, or the link has no such peer.
        """
        self._lane(peer)
        try:
            with self._noting(peer):
                return self._endpoint.recv(peer, TAG + tag, seconds)
        except RecvTimeout:
            return None

    def close(self) -> None:
        """Deliver what was pushed, and leave."""
        self._let_go()
        self._endpoint.close()

    def abort(self, reason: str) -> None:
        """Tell the peers that this party has failed, and leave.

        Args:
            reason: one line, without any data.
        """
        self._let_go()
        self._endpoint.abort(reason, retryable=True)

    def _let_go(self) -> None:
        self._closed.set()
        for lane in self._lanes.values():
            with lane.arriving:
                lane.arriving.notify_all()

    def _take(self, peer: str, lane: _Lane) -> None:
        for number in itertools.count():
            try:
                with self._noting(peer):
                    message = self._endpoint.recv(peer, f"m{number}", LONGEST_SECONDS)
            except RedisLinkError:
                return
            self._arrived(lane, message, deque.append)
            with lane.arriving:
                lane.arriving.wait_for(
                    lambda: lane.bytes_arrived < self._most or self._closed.is_set()
                )

    @staticmethod
    def _arrived(lane: _Lane, message: bytes, put: Callable[[deque[bytes], bytes], None]) -> None:
        with lane.arriving:
            put(lane.arrived, message)
            lane.bytes_arrived += len(message)
            lane.arriving.notify_all()

    def _lane(self, peer: str) -> _Lane:
        lane = self._lanes.get(peer)
        if lane is None:
            others = ", ".join(self._lanes)
            raise UsageError(f"{self.party}: link {self.number} is with {others}, not {peer!r:.80}")
        return lane

    def _has_room(self, lane: _Lane) -> bool:
        give_up = time.monotonic() + LONGEST_WAIT
        while True:
            with lane.pushing:
                pending = lane.under_way
                while pending and pending[0][0].test():
                    lane.bytes_under_way -= pending.popleft()[1]
                if lane.bytes_under_way < self._most or not pending or self._failure is not None:
                    return True
                oldest = pending[0][0]
            try:
                oldest.wait(max(0.0, give_up - time.monotonic()))
            except SendTimeout:
                return False
            except RedisLinkError:  # whoever sends gets it
                return True

    @contextlib.contextmanager
    def _noting(self, peer: str) -> Iterator[None]:
        """Tell the program of an error that is the link's."""
        try:
            yield
        except (RecvTimeout, UsageError):
            raise
        except RedisLinkError as error:
            self._note(peer, error)
            raise

    def _note(self, peer: str, error: RedisLinkError) -> None:
        if self._closed.is_set() or isinstance(error, EndpointClosed):
            return
        failed = not isinstance(error, PeerClosed)
        with self._failing:
            if failed:
                is_news, self._failure = self._failure is None, error
            else:
                is_news, self._lanes[peer].has_left = not self._lanes[peer].has_left, True
        if is_news:
            self._tell(Told(self.number, str(error), failed))
