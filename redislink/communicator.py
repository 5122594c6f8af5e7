"""`Communicator`: messages between the parties of a session, as values or as raw bytes.

Two kinds that act alike: `RedisCommunicator` over an `Endpoint`, `ThreadCommunicator` between
threads of one process.

Rules:
- A payload that is bytes-like travels raw; anything else as a value (`redislink.values`). A
  flag in the frame tells which, never the tag.
- Every tag here stands in a namespace: ``~<namespace>:<tag>``. A namespace holds no ``:``, so
  no two pairs of namespace and tag meet; SPU's tags begin with a device's name, which no ``~``
  begins.
- What goes between threads is encoded and decoded too: no object is ever shared.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from redislink.endpoint import Endpoint, Party
from redislink.errors import (
    EndpointClosed,
    PeerAborted,
    PeerClosed,
    RecvCancelled,
    RecvTimeout,
    RedisLinkError,
    SendTimeout,
    UsageError,
    ValueDecodeError,
    reason_for_peers,
)
from redislink.forking import dies_in_child, used_after_fork
from redislink.protocol import keys
from redislink.protocol.chunking import MAX_MESSAGE_BYTES
from redislink.protocol.frame import Encoding
from redislink.settings import check_seconds
from redislink.stats import COUNTS, EndpointStats
from redislink.values import decode_value_untrusted, encode_value

DEFAULT_NAMESPACE: Final = "app"
MAX_NAMESPACE_BYTES: Final = 256
_TAG_SIGN: Final = ":"
_CANCEL_INTERVAL: Final = 0.02
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*", re.ASCII)
_Message = tuple[bytes, Encoding]
_T = TypeVar("_T")


class Request(Protocol):
    """A message under way, as MPI's request."""

    def test(self) -> bool:
        """True once the peer has received the message. Never raises, never waits."""
        ...

    def wait(self, timeout: float | None = None) -> None:
        """Return once the peer has received the message.

        Args:
            timeout: seconds; None takes the receive timeout.

        Raises:
            SendTimeout: the peer has not received it in time.
            PeerError: the peer is gone, or its run failed.
            EndpointClosed: this party has closed or aborted.
        """
        ...


class Communicator(ABC):
    """One party's messages with the others. Usable from several threads at once.

    Peers are named by party name or by rank. Different tags do not wait for each other;
    messages with the same tag keep their order. Leaving its ``with`` block by an exception
    tells every peer.

    Attributes:
        session: name of the session; None between threads.
        party: name of this party.
        rank: its rank.
        party_names: of all parties, in rank order.
        namespace: in which its tags stand; only a communicator with the same one at the peer
            gets its messages.
    """

    session: str | None = None
    party: str
    rank: int
    party_names: tuple[str, ...]
    namespace: str

    def __init__(self, namespace: str) -> None:
        """Not for users: the two kinds and `sub` are."""
        self.namespace = _check_namespace(namespace)
        self._parent: Communicator | None = None
        self._sub_closed = False

    @property
    def world_size(self) -> int:
        """Number of parties."""
        return len(self.party_names)

    def send(self, dst: Party, tag: str, value: object) -> Request:
        """Send a message; does not wait for the peer.

        Args:
            dst: party name or rank.
            tag: of valid Unicode; 512 bytes with its namespace.
            value: bytes, bytearray or memoryview go as raw bytes, anything else as a value, see
                `redislink.values.encode_value`; it may be changed after the call.

        Raises:
            PayloadTypeError: the value is of a type that does not travel.
            UsageError: no such party, or it is this one; or tag or size are not valid.
            PeerError: the session has failed, or the peer has left it.
            BrokerError: the broker has been away for too long, or refuses us.
            EndpointClosed: after `close` or `abort`.
        """
        self._check_open()
        full = self._full_tag(tag)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._send(dst, full, bytes(value), Encoding.RAW)
        return self._send(dst, full, encode_value(value), Encoding.VALUE)

    def recv(self, src: Party, tag: str, timeout: float | None = None) -> Any:
        """The next message from ``src`` with ``tag``; waits for it.

        Args:
            src: party name or rank.
            tag: as the sender gave it.
            timeout: seconds; 0 takes only what is there; None takes the receive timeout.

        Returns:
            ``bytes`` if the sender gave raw bytes, else the value. Arrays in it are read-only,
            and keep the whole message alive: copy what is to be changed or kept.

        Raises:
            RecvTimeout: it did not come in time.
            ValueDecodeError: it came and is no value, or holds a dataclass that is not
                registered here. It is taken all the same.
            PeerAborted, PeerLost, PeerRestarted, PeerClosed: it will not come.
            BrokerError: the broker has been away for too long, or refuses us.
            EndpointClosed: `close` or `abort` was called, before or while this waited.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        self._check_open()
        return self._decode(src, tag, self._recv(src, self._full_tag(tag), timeout))

    def send_sync(self, dst: Party, tag: str, value: object, timeout: float | None = None) -> None:
        """Send a message and return once the peer has received it.

        Args:
            dst, tag, value: as for `send`.
            timeout: seconds; None takes the receive timeout.

        Raises:
            SendTimeout: the peer did not receive it in time; it may still do so later.
            others: as `send`.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        self.send(dst, tag, value).wait(timeout)

    def has_message(self, src: Party, tag: str) -> bool:
        """True if `recv` for this tag would return at once.

        Raises: as `recv`, but never a timeout.
        """
        self._check_open()
        return self._peek(src, self._full_tag(tag)) is not None

    def peek_message(self, src: Party, tag: str) -> Any | None:
        """What `recv` would return, without taking it; None if there is none yet.

        A value may be None too: `has_message` tells which it is.

        Raises: as `recv`, but never a timeout.
        """
        self._check_open()
        message = self._peek(src, self._full_tag(tag))
        return None if message is None else self._decode(src, tag, message)

    def sub(self, name: str) -> Self:
        """The same parties, with a tag namespace of its own beneath this one.

        Closing it ends the receives in it and in its own subs, and tells no peer; leaving its
        ``with`` block by an exception aborts the session, as `abort` does.

        Args:
            name: 1 or more characters of ``A-Z a-z 0-9 _ . -``; the same at every party. The
                same name again gives the same namespace.

        Raises:
            UsageError: the name is not valid, or the namespace has more than
                ``MAX_NAMESPACE_BYTES``.
        """
        if not isinstance(name, str) or "/" in name:
            raise UsageError(f"a namespace's name is a str without '/', not {name!r:.80}")
        child = self._make_sub(_check_namespace(f"{self.namespace}/{name}"))
        child._parent = self
        return child

    def close(self) -> None:
        """Leave the session in good order; blocked calls end with EndpointClosed.

        What was sent can still be received. Safe to call twice.
        """
        if self._parent is None:
            self._close()
        else:
            self._sub_closed = True
            self._wake_sub()

    @abstractmethod
    def abort(self, reason: str) -> None:
        """Tell every peer that this party's run has failed, and leave; of a sub too.

        Args:
            reason: one line; it is shown to the peers, so it must hold no data.
        """

    def trouble(self, peer: Party) -> str:  # noqa: ARG002 - threads have none
        """What holds messages with a peer up, such as ``bob not heard for 12 s``; "" if nothing."""
        return ""

    @abstractmethod
    def stats(self) -> EndpointStats:
        """Counts so far, over all peers and namespaces."""

    @abstractmethod
    def announce_silence(self, seconds: float = 600.0) -> AbstractContextManager[None]:
        """Within this block, peers do not take this party's silence for death.

        For calls that hold the GIL, and with it the heartbeat: compiling, making shares.

        Args:
            seconds: the longest that it may take.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort(reason_for_peers(error))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.party} (rank {self.rank}), {self.namespace}>"

    # -- what the two kinds do each in its way; tags with their namespace ----------------------

    @abstractmethod
    def _send(self, dst: Party, tag: str, data: bytes, encoding: Encoding) -> Request: ...

    @abstractmethod
    def _recv(self, src: Party, tag: str, timeout: float | None) -> _Message: ...

    @abstractmethod
    def _peek(self, src: Party, tag: str) -> _Message | None: ...

    @abstractmethod
    def _make_sub(self, namespace: str) -> Self: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _wake_sub(self) -> None:
        """End the blocked calls of this sub and of those beneath it."""

    # -- shared --------------------------------------------------------------------------------

    def _check_open(self) -> None:
        """Raises EndpointClosed if this sub, or one that it stands in, is closed."""
        link: Communicator | None = self
        while link is not None:
            if link._sub_closed:
                raise EndpointClosed(
                    f"{self.party}: the communicator {link.namespace} is closed: make a new one "
                    "with sub()"
                )
            link = link._parent

    def _full_tag(self, tag: str) -> str:
        if not isinstance(tag, str) or not tag:
            raise UsageError(
                f"{self.party}: a tag is a str of 1 or more characters, not {tag!r:.80}"
            )
        full = f"{_prefix(self.namespace)}{_TAG_SIGN}{tag}"
        try:
            keys.encode_tag(full)
        except UsageError as error:
            raise UsageError(
                f"{self.party}: tag {tag!r:.80} in namespace {self.namespace:.80}: {error}"
            ) from None
        return full

    def _decode(self, src: Party, tag: str, message: _Message) -> Any:
        data, encoding = message
        if encoding is Encoding.RAW:
            return data
        try:
            return decode_value_untrusted(data)
        except ValueDecodeError as error:
            name = src if isinstance(src, str) else self.party_names[src]
            raise ValueDecodeError(
                f"{self.party}: the message from {name} with tag {tag!r:.120} is {error}"
            ) from error.__cause__


class RedisCommunicator(Communicator):
    """A communicator over an `Endpoint`, which its `close` and `abort` close and abort."""

    def __init__(self, endpoint: Endpoint, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Args: this party's endpoint; names of ``A-Z a-z 0-9 _ . -``, joined by ``/``.

        Raises:
            UsageError: the namespace is not valid.
        """
        super().__init__(namespace)
        self._endpoint = endpoint
        self._receiving = 0
        self._changed = threading.Condition()
        dies_in_child(self)
        self.session, self.party, self.rank = endpoint.session, endpoint.party, endpoint.rank
        self.party_names = tuple(endpoint.cluster.party_names)

    def die_in_child(self) -> None:
        """In the child of a fork: the threads that receive here are not there; see `Endpoint`."""
        self._receiving = 0
        self._changed = threading.Condition()

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that it uses."""
        return self._endpoint

    def trouble(self, peer: Party) -> str:
        return self._endpoint.trouble(peer)

    def stats(self) -> EndpointStats:
        return self._endpoint.stats()

    def announce_silence(self, seconds: float = 600.0) -> AbstractContextManager[None]:
        return self._endpoint.announce_silence(seconds)

    def abort(self, reason: str) -> None:
        self._endpoint.abort(reason)

    def _close(self) -> None:
        self._endpoint.close()

    def _make_sub(self, namespace: str) -> Self:
        child = type(self)(self._endpoint, namespace)
        child._changed = self._changed
        return child

    def _wake_sub(self) -> None:
        # A receive that has only begun may not be seen by the first cancel.
        while self._receiving:
            for peer in self.party_names:
                if peer != self.party:
                    for end in (_TAG_SIGN, "/"):
                        self._endpoint.cancel_recv(peer, f"{_prefix(self.namespace)}{end}")
            with self._changed:
                if self._receiving:
                    self._changed.wait(_CANCEL_INTERVAL)

    def _send(self, dst: Party, tag: str, data: bytes, encoding: Encoding) -> Request:
        return self._endpoint.send(dst, tag, data, encoding=encoding)

    def _recv(self, src: Party, tag: str, timeout: float | None) -> _Message:
        if timeout == 0:
            self._endpoint.peek_message(src, tag)  # fetches what the broker has
        limit = self._endpoint.settings.recv_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        self._count_receiving(1)
        try:
            while True:
                self._check_open()
                try:
                    return self._endpoint.recv_marked(src, tag, limit)
                except RecvCancelled:
                    # Of this sub, or of another with the same namespace, which is not ours.
                    limit = max(0.0, deadline - time.monotonic())
        finally:
            self._count_receiving(-1)

    def _count_receiving(self, change: int) -> None:
        with self._changed:
            link: Communicator | None = self
            while isinstance(link, RedisCommunicator):
                link._receiving += change
                link = link._parent
            self._changed.notify_all()

    def _peek(self, src: Party, tag: str) -> _Message | None:
        return self._endpoint.peek_marked(src, tag)


class ThreadCommunicator(Communicator):
    """A communicator between threads of one process: `make` makes one for each party.

    What a peer has not taken yet lies in memory, without bound.
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
        """Every party's communicator, in rank order.

        Args:
            parties: their names, or their number; they are then ``party0``, ``party1``, …
            namespace: as for `RedisCommunicator`.
            recv_timeout: seconds that a receive waits where it gives no timeout.

        Raises:
            UsageError: fewer than 2 parties, names that are not valid or not unique, or a
                timeout that is not valid.
        """
        recv_timeout = check_seconds("timeout", recv_timeout)
        if isinstance(parties, int):
            parties = [f"party{rank}" for rank in range(parties)]
        names = tuple(parties)
        if len(names) < 2 or len(set(names)) != len(names):
            raise UsageError("a communicator needs 2 or more parties with different names")
        for name in names:
            try:
                keys.check_name(name, "party")
            except RedisLinkError as error:
                raise UsageError(str(error)) from None
        hub = _Hub(names, recv_timeout)
        return [cls(hub, rank, namespace) for rank in range(len(names))]

    def stats(self) -> EndpointStats:
        with self._hub.lock:
            return self._hub.parties[self.rank].stats()

    def announce_silence(self, seconds: float = 600.0) -> AbstractContextManager[None]:  # noqa: ARG002
        return contextlib.nullcontext()  # threads are not watched

    def abort(self, reason: str) -> None:
        self._hub.abort(self.rank, " ".join(reason.split())[:500])

    def _close(self) -> None:
        self._hub.close(self.rank)

    def _make_sub(self, namespace: str) -> Self:
        return type(self)(self._hub, self.rank, namespace)

    def _wake_sub(self) -> None:
        self._hub.wake(self.rank)

    def _send(self, dst: Party, tag: str, data: bytes, encoding: Encoding) -> Request:
        peer = self._peer(dst)
        return _ThreadRequest(self, peer, tag, self._hub.send(self.rank, peer, tag, data, encoding))

    def _recv(self, src: Party, tag: str, timeout: float | None) -> _Message:
        peer = self._peer(src)
        limit = self._hub.recv_timeout if timeout is None else timeout

        def take() -> _Message | None:
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

    def _peek(self, src: Party, tag: str) -> _Message | None:
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
    """What the hub knows of one party."""

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
    """Where the messages of threads lie. One lock; each party waits on a condition of its own."""

    def __init__(self, names: tuple[str, ...], recv_timeout: float) -> None:
        self.names = names
        self.recv_timeout = recv_timeout
        self.lock = threading.RLock()
        self.parties = [_ThreadParty(threading.Condition(self.lock)) for _ in names]
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork: the other parties' threads are not there."""
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

    def take(self, rank: int, src: int, tag: str) -> _Message | None:
        """The next message of a tag, taken; None if there is none yet. Needs the lock."""
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
        message.data = b""  # the sender may keep its request for long
        return taken

    def peek(self, rank: int, src: int, tag: str) -> _Message | None:
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
        """What ``attempt`` gives, tried again at every change; None after ``timeout`` seconds."""
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

    def abort(self, rank: int, reason: str) -> None:
        with self.lock:
            if self.parties[rank].closed:
                return
            self._leave(rank)
            for party in self.parties:
                party.inbox = {key: q for key, q in party.inbox.items() if key[0] != rank}
                if not party.closed and party.failure is None:
                    party.failure = PeerAborted(self.names[rank], reason)

    def check_there(self, rank: int, said: str) -> None:
        """Raises PeerClosed if a party has left."""
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
            raise party.failure.with_traceback(None)


def _prefix(namespace: str) -> str:
    return f"~{namespace}"


def _check_namespace(namespace: str) -> str:
    if (
        not isinstance(namespace, str)
        or not _NAMESPACE.fullmatch(namespace)
        or len(namespace) > MAX_NAMESPACE_BYTES
    ):
        raise UsageError(
            f"namespace {namespace!r:.80} is not valid: use names of A-Z a-z 0-9 _ . - joined by "
            f"'/', {MAX_NAMESPACE_BYTES} characters at most"
        )
    return namespace
