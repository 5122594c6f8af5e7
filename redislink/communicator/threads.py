"""`ThreadCommunicator`: between threads of one process, for the simulator and for tests.

Messages between threads are encoded and decoded too, so threads never share an object.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Self, TypeVar

from redislink.communicator.base import (
    DEFAULT_NAMESPACE,
    Communicator,
    Message,
)
from redislink.errors import (
    EndpointClosed,
    PeerAborted,
    PeerClosed,
    PeerRestarted,
    RecvTimeout,
    RedisLinkError,
    SendTimeout,
    UsageError,
)
from redislink.forking import dies_in_child, used_after_fork
from redislink.protocol import list_names
from redislink.protocol.chunking import MAX_MESSAGE_BYTES
from redislink.protocol.frame import Encoding
from redislink.settings import check_seconds
from redislink.transport.peer import Party
from redislink.transport.request import Request
from redislink.transport.stats import COUNTS, EndpointStats

_T = TypeVar("_T")


class ThreadCommunicator(Communicator):
    """A communicator between threads of one process. `make` makes one for each party.

    Messages that a peer has not received yet stay in memory, without limit.
    """

    def __init__(self, hub: _Hub, rank: int, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Not for users: `make` is."""
        super().__init__(namespace)
        self._hub = hub
        self.rank = rank
        self.party_names = hub.names
        self.party = hub.names[rank]

    @classmethod
    def make(
        cls,
        parties: int | Sequence[str],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        recv_timeout: float = 600.0,
    ) -> list[Self]:
        """Make the communicators of all parties, in rank order.

        Args:
            parties: the names of the parties, or their number, which names them ``party0``,
                ``party1``, …
            namespace: as for `RedisCommunicator`.
            recv_timeout: seconds that a receive waits if it passes no timeout.

        Raises:
            UsageError: there are fewer than 2 parties, or names or timeout are not valid.
        """
        recv_timeout = check_seconds("timeout", recv_timeout)
        if isinstance(parties, int):
            parties = [f"party{rank}" for rank in range(parties)]
        names = tuple(parties)
        if len(names) < 2 or len(set(names)) != len(names):
            raise UsageError("a communicator needs 2 or more parties with different names")
        for name in names:
            try:
                list_names.check_name(name, "party")
            except RedisLinkError as error:
                raise UsageError(str(error)) from None
        hub = _Hub(names, recv_timeout)
        return [cls(hub, rank, namespace) for rank in range(len(names))]

    def stats(self) -> EndpointStats:
        with self._hub.lock:
            return self._hub.parties[self.rank].stats()

    def announce_silence(self, seconds: float = 600.0) -> AbstractContextManager[None]:  # noqa: ARG002
        return contextlib.nullcontext()  # threads are not watched

    def abort(self, reason: str, *, retryable: bool = False) -> None:
        self._hub.abort(self.rank, " ".join(reason.split())[:500], retryable=retryable)

    def _close(self) -> None:
        self._hub.close(self.rank)

    def _make_sub(self, namespace: str) -> Self:
        return type(self)(self._hub, self.rank, namespace)

    def _wake_sub(self) -> None:
        self._hub.wake(self.rank)

    def _send(self, dst: Party, tag: str, data: bytes, encoding: Encoding) -> Request:
        peer = self._peer(dst)
        return _ThreadRequest(self, peer, tag, self._hub.send(self.rank, peer, tag, data, encoding))

    def _recv(self, src: Party, tag: str, timeout: float | None) -> Message:
        peer = self._peer(src)
        limit = self._hub.recv_timeout if timeout is None else timeout

        def take() -> Message | None:
            self._check_open()
            return self._hub.take(self.rank, peer, tag)

        message = self._hub.wait(self.rank, take, limit)
        if message is None:
            raise RecvTimeout(
                f"{self.party}: waited {limit:g} s for tag {tag!r:.120} from "
                f"{self.party_names[peer]}: check that {self.party_names[peer]} sends it, or "
                "allow more time"
            )
        return message

    def _peek(self, src: Party, tag: str) -> Message | None:
        return self._hub.peek(self.rank, self._peer(src), tag)

    def _peer(self, party: Party) -> int:
        rank = None
        if type(party) is str and party in self.party_names:
            rank = self.party_names.index(party)
        elif type(party) is int and 0 <= party < self.world_size:  # not bool
            rank = party
        if rank is None or rank == self.rank:
            others = [name for name in self.party_names if name != self.party]
            what = "not a party" if rank is None else "this party itself"
            raise UsageError(
                f"{self.party}: {party!r:.80} is {what}: use one of {', '.join(others)}, or "
                "their ranks"
            )
        return rank


class _ThreadRequest:
    """A `Request` of a ThreadCommunicator."""

    __slots__ = ("_communicator", "_message", "_peer", "_tag")

    def __init__(
        self, communicator: ThreadCommunicator, peer: int, tag: str, message: _Queued
    ) -> None:
        self._communicator = communicator
        self._peer = peer
        self._tag = tag
        self._message = message

    def test(self) -> bool:
        return self._message.received

    def wait(self, timeout: float | None = None) -> None:
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        mine = self._communicator
        hub, name = mine._hub, mine.party_names[self._peer]
        limit = hub.recv_timeout if timeout is None else timeout

        def received() -> bool | None:
            if self._message.received:
                return True
            hub.check_there(
                self._peer,
                f"without taking the message with tag {self._tag!r:.120}: check that both run the "
                "same program",
            )
            return None

        if hub.wait(mine.rank, received, limit) is None:
            raise SendTimeout(
                f"{mine.party}: {name} has not taken the message with tag {self._tag!r:.120} in "
                f"{limit:g} s: check that {name} runs and receives it"
            )


@dataclass(eq=False, slots=True)
class _Queued:
    data: bytes
    encoding: Encoding
    received: bool = False


@dataclass(eq=False)
class _ThreadParty:
    """The state of one party in the hub."""

    changed: threading.Condition
    closed: bool = False
    failure: RedisLinkError | None = None
    inbox: dict[tuple[int, str], deque[_Queued]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def count(self, what: str, size: int) -> None:
        self.counts[f"messages_{what}"] += 1
        self.counts[f"bytes_{what}"] += size

    def stats(self) -> EndpointStats:
        counts = {name: self.counts.get(name, 0) for name in COUNTS}
        return EndpointStats(**counts, reconnects=0, peers={})


class _Hub:
    """Holds the messages between threads. One lock; each party waits on its own condition."""

    def __init__(self, names: tuple[str, ...], recv_timeout: float) -> None:
        self.names = names
        self.recv_timeout = recv_timeout
        self.lock = threading.RLock()
        self.parties = [_ThreadParty(threading.Condition(self.lock)) for _ in names]
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork: the threads of the other parties do not exist."""
        self.lock = threading.RLock()
        for name, party in zip(self.names, self.parties, strict=True):
            party.changed = threading.Condition(self.lock)
            party.closed = False
            party.failure = used_after_fork(f"{name}: the communicator")

    def send(self, src: int, dst: int, tag: str, data: bytes, encoding: Encoding) -> _Queued:
        if len(data) > MAX_MESSAGE_BYTES:
            raise UsageError(
                f"a message of {len(data)} bytes is too large: split it, at most "
                f"{MAX_MESSAGE_BYTES}"
            )
        message = _Queued(data, encoding)
        with self.lock:
            self._check_usable(src)
            self.check_there(dst, "before this was sent: send to it before it closes")
            self.parties[dst].inbox.setdefault((src, tag), deque()).append(message)
            self.parties[src].count("sent", len(data))
            self.parties[dst].changed.notify_all()
        return message

    def take(self, rank: int, src: int, tag: str) -> Message | None:
        """Remove and return the next message of a tag; None if there is none. Needs the lock."""
        me = self.parties[rank]
        queue = me.inbox.get((src, tag))
        if queue is None:
            self.check_there(
                src,
                f"without sending tag {tag!r:.120}: check that both run the same program",
            )
            return None
        message = queue.popleft()
        if not queue:
            del me.inbox[src, tag]
        self._received(src, message)
        me.count("received", len(message.data))
        taken = message.data, message.encoding
        message.data = b""  # the sender may hold its request for a long time
        return taken

    def peek(self, rank: int, src: int, tag: str) -> Message | None:
        with self.lock:
            self._check_usable(rank)
            queue = self.parties[rank].inbox.get((src, tag))
            if queue is None:
                return None
            self._received(src, queue[0])
            return queue[0].data, queue[0].encoding

    def wait(
        self,
        rank: int,
        attempt: Callable[[], _T | None],
        timeout: float,
    ) -> _T | None:
        """Call ``attempt`` at every change until it returns something; None after ``timeout`` s."""
        deadline = time.monotonic() + timeout
        with self.lock:
            while True:
                self._check_usable(rank)
                result = attempt()
                if result is not None:
                    return result
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self.parties[rank].changed.wait(min(left, threading.TIMEOUT_MAX))

    def wake(self, rank: int) -> None:
        with self.lock:
            self.parties[rank].changed.notify_all()

    def close(self, rank: int) -> None:
        with self.lock:
            self._leave(rank)

    def abort(self, rank: int, reason: str, *, retryable: bool) -> None:
        with self.lock:
            if self.parties[rank].closed:
                return
            self._leave(rank)
            for party in self.parties:
                party.inbox = {key: q for key, q in party.inbox.items() if key[0] != rank}
                if not party.closed and party.failure is None:
                    party.failure = PeerAborted(self.names[rank], reason, retryable=retryable)

    def lose(self, rank: int) -> None:
        """A party has been killed, and starts again in another hub."""
        with self.lock:
            if self.parties[rank].closed:
                return
            for party in self.parties:
                if not party.closed and party.failure is None:
                    party.failure = PeerRestarted(self.names[rank])
            self._leave(rank)

    def check_there(self, rank: int, said: str) -> None:
        """Raise PeerClosed if a party has left."""
        if self.parties[rank].closed:
            name = self.names[rank]
            raise PeerClosed(name, f"{name} has left the session {said}")

    def _leave(self, rank: int) -> None:
        self.parties[rank].closed = True
        self.parties[rank].inbox.clear()
        for party in self.parties:
            party.changed.notify_all()

    def _received(self, src: int, message: _Queued) -> None:
        if not message.received:
            message.received = True
            self.parties[src].changed.notify_all()

    def _check_usable(self, rank: int) -> None:
        party = self.parties[rank]
        if party.closed:
            raise EndpointClosed(f"{self.names[rank]}: the communicator is closed: make a new one")
        if party.failure is not None:
            raise party.failure.afresh()
