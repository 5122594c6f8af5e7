"""One party in one session: joins the protocol core and the broker.

`connect` (`joining.py`) says hello to every peer and gives an `Endpoint`. What one party sends
with a tag, another receives with that tag, once; different tags do not wait for each other, and
messages with the same tag keep their order.

Threads: `send` writes and `recv` reads in the calling thread. One control thread per endpoint
takes acks, probes, heartbeats and aborts off the control lists and keeps the timers. A thread
that mends the outbox runs only while it is broken.

Locks: ``_lock`` guards the deliveries and everything that is not the broker's. Nobody talks to
the broker while holding it. Nobody reads or changes anything of a delivery without it; what
`_Peer.kept` gives is the one exception, and says why.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Final, cast

from redislink.broker import AnyOutbox, Broker, Inbox
from redislink.broker.inbox import Interrupted, Wait
from redislink.broker.outage import Outage
from redislink.broker.wire import LARGE, Buffer
from redislink.cluster import ClusterSpec
from redislink.errors import (
    BrokerError,
    BrokerRefused,
    BrokerTampered,
    ClusterMismatch,
    EndpointClosed,
    FrameError,
    PayloadTypeError,
    PeerClosed,
    PeerError,
    RecvCancelled,
    RecvTimeout,
    RedisLinkError,
    SealError,
    SendTimeout,
    UsageError,
    UsedAfterFork,
    reason_for_peers,
)
from redislink.forking import Dead, dies_in_child, used_after_fork
from redislink.logs import PartyLogger, is_power_of_two
from redislink.protocol import list_names
from redislink.protocol.delivery import Delivery, Leftover, Push, Timing
from redislink.protocol.element_size import LEAST, ElementSize
from redislink.protocol.fragments import Fragments, split_element
from redislink.protocol.frame import BytesLike, Data, Encoding, Frame, is_fragment
from redislink.protocol.seal import Codec, IllegalFrameError, StaleError
from redislink.protocol.states import State
from redislink.protocol.status import (
    MAX_WAITS,
    PartyStatus,
    PeerStatus,
    Waiting,
)
from redislink.settings import LONGEST_SECONDS, RedisLinkSettings, check_seconds
from redislink.transport.claim import PartyClaim
from redislink.transport.lanes import Lane, Lanes
from redislink.transport.observer import Observer
from redislink.transport.rendezvous import Rendezvous
from redislink.transport.request import Request
from redislink.transport.stats import EndpointStats, PeerStats, counts_of

Party = str | int
"""A party: its name, or its rank."""

_LONGEST_CONTROL_WAIT: Final = 1.0
_SHORTEST_CONTROL_WAIT: Final = 0.02
_UNREAD_CONTROL_WAIT: Final = 0.2
_LANE_PATIENCE: Final = 0.02
"""Seconds that a receive waits for the lane that another thread reads."""
_CONTROL_TTL: Final = 120
_REPORT_INTERVAL: Final = 10.0
_FIRST_PROBE: Final = 0.15
"""Seconds that a receive waits before it asks the peer for the first time: what a loss costs."""
_LEAST_TO_LEAVE: Final = 0.5
"""Seconds that each last thing may take when ``close_timeout`` is over."""
_MOST_LAST_WORDS: Final = 64
# On one machine, or nearly, a chunk takes less time on the line than the work that it makes.
_NEAR: Final = 0.0003
_LEAST_CHUNK: Final = 64 << 10
_MOST_IN_FRAGMENTS: Final = 512 << 20
_HOPELESS: Final = 0.75
"""Of ``broker_timeout``: how long connections may break at the least size of an element."""
_OVER: Final = (State.CLOSED, State.FAILED)
_open_endpoints: Final[weakref.WeakSet[Endpoint]] = weakref.WeakSet()


class _Peer:
    """What the endpoint knows of one other party."""

    def __init__(
        self,
        name: str,
        prefixes: tuple[bytes, bytes],
        delivery: Delivery,
        codec: Codec,
        make_lanes: Callable[[bytes], Lanes],
        most_in_fragments: int,
    ) -> None:
        """Args: prefixes of the names of the lists to and from the peer; bytes of fragments of
        the peer's elements that are kept."""
        self.name = name
        self.codec = codec
        self.out_prefix, self.in_prefix = prefixes
        self.delivery = delivery
        self.kept = delivery.kept
        """Of the delivery; for asking whether a tag is in it, which needs no lock: that is one step
        of the interpreter's. Who asks has set the purpose of its wait before, so that whatever
        comes later interrupts it (`Endpoint._wake_another`)."""
        self.lanes = make_lanes(self.in_prefix)
        self.fragments = Fragments(most_in_fragments)
        self.control_in = self.in_prefix + list_names.CONTROL_TAG.encode()

    def in_list(self, tag: str) -> bytes:
        return self.in_prefix + list_names.encode_tag(tag)

    def out_list(self, tag: str | None) -> bytes:
        encoded = list_names.CONTROL_TAG.encode() if tag is None else list_names.encode_tag(tag)
        return self.out_prefix + encoded


class _EndpointRequest:
    """A `Request` of an endpoint."""

    __slots__ = ("_endpoint", "_peer", "_seq", "_tag")

    def __init__(self, endpoint: Endpoint, peer: _Peer, tag: str, seq: int) -> None:
        self._endpoint = endpoint
        self._peer = peer
        self._tag = tag
        self._seq = seq

    def test(self) -> bool:
        with self._endpoint._lock:
            return self._peer.delivery.is_acked(self._seq)

    def wait(self, timeout: float | None = None) -> None:
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        limit = self._endpoint.settings.recv_timeout if timeout is None else timeout
        if not self._endpoint.wait_until(self._is_decided, limit, ask=(self._peer.name,)):
            trouble = self._endpoint.trouble(self._peer.name)
            raise SendTimeout(
                f"{self._endpoint.party}: {self._peer.name} has not taken the message with tag "
                f"{self._tag!r:.120} in {limit:g} s{trouble and f' ({trouble})'}: check that "
                f"{self._peer.name} runs and receives it"
            )
        if not self.test():
            raise PeerClosed(
                self._peer.name,
                f"{self._peer.name} has left the session without taking the message with tag "
                f"{self._tag!r:.120}: check that both run the same program",
            )

    def _is_decided(self) -> bool:
        return self.test() or self._peer.delivery.state is State.PEER_CLOSED


class Endpoint:
    """This party's end of a session. Made by `connect`; usable from several threads at once.

    Peers are named by party name or by rank. A payload is any bytes-like object; what is
    received is ``bytes``. Leaving its ``with`` block by an exception tells every peer.
    """

    def __init__(
        self,
        cluster: ClusterSpec,
        party: str,
        settings: RedisLinkSettings,
        broker: Broker,
        outbox: AnyOutbox,
        inbox: Inbox,
        claim: PartyClaim,
        rendezvous: Rendezvous,
        outage: Outage,
        observer: Observer,
    ) -> None:
        """Not for users: `connect` is."""
        self.cluster = cluster
        self.party = party
        self.settings = settings
        self.rank = cluster.rank(party)
        self._log = PartyLogger(cluster.session, party)
        self._broker = broker
        self._outbox = outbox
        self._inbox = inbox
        self._claim = claim
        self._rendezvous = rendezvous
        self._outage = outage
        self._blpop_slice = broker.blpop_slice(settings.blpop_timeout)
        self._first_slice = min(_FIRST_PROBE, self._blpop_slice)
        timing = Timing(
            window_bytes=settings.window_bytes,
            peer_memory_bytes=settings.peer_memory_bytes,
            chunk_bytes=settings.chunk_bytes,
            least_chunk_bytes=_least_chunk_bytes(claim.round_trip, settings.chunk_bytes),
            peer_timeout=settings.peer_timeout,
        )
        session, now = cluster.session, time.monotonic()
        handshake = rendezvous.handshake
        # In process a BLPOP costs nothing, and its replies cannot be read ahead.
        depth = 0 if broker.in_process else settings.lookahead
        self._peers = {
            peer: _Peer(
                peer,
                (
                    list_names.inbox_prefix(session, peer, party, handshake.epoch(peer)),
                    list_names.inbox_prefix(session, party, peer, handshake.epoch(peer)),
                ),
                Delivery(peer, timing, now),
                handshake.codec(peer),
                partial(Lanes, inbox, depth, self._blpop_slice, claim.round_trip),
                min(_MOST_IN_FRAGMENTS, settings.peer_memory_bytes),
            )
            for peer in rendezvous.peers
        }
        self._by_name_or_rank: dict[Party, _Peer] = {
            key: peer for name, peer in self._peers.items() for key in (name, cluster.rank(name))
        }
        self._not_opened = 0
        self._element_size = ElementSize(_HOPELESS * settings.broker_timeout)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._failure: RedisLinkError | None = None
        self._link_numbers: dict[str, int] = defaultdict(int)
        self._closing = False
        self._sleepers = 0
        """Threads in `wait_until`, which an ack may end."""
        self._last_words: deque[tuple[_Peer, Push]] = deque(maxlen=_MOST_LAST_WORDS)
        self._stopped = threading.Event()
        self._reconnects = 0
        self._said_cut_finer = False
        self._mending = False
        self._progress = PartyLogger(cluster.session, party, "redislink.progress")
        self._silence_reports: dict[str, float] = {}
        """Peers of which it was said that they are not heard, and when to say it again."""
        self._next_silence_look = 0.0
        dies_in_child(self)
        _open_endpoints.add(self)
        self._control_wait = inbox.acquire()
        self._control_thread = threading.Thread(
            target=self._run_control, name=f"redislink-control-{party}", daemon=True
        )
        self._control_thread.start()
        self._observer = observer

    # -- what users see ----------------------------------------------------------------------

    @property
    def session(self) -> str:
        """Name of the session."""
        return self.cluster.session

    @property
    def world_size(self) -> int:
        """Number of parties."""
        return self.cluster.world_size

    def send(
        self, dst: Party, tag: str, data: BytesLike, *, encoding: Encoding = Encoding.RAW
    ) -> Request:
        """Send a message. Never waits, neither for the peer nor for the broker.

        To wait until the peer has received it, call ``send(…).wait()``.

        Args:
            dst: party name or rank.
            tag: 1 to 512 bytes of UTF-8; the peer receives with the same.
            data: any bytes-like object of at most 4 GiB; it may be changed after the call.
            encoding: a mark for the receiver, that `recv_marked` gives with the message.

        Raises:
            PayloadTypeError: ``data`` is not bytes-like.
            UsageError: no such party, or it is this one; or tag or size are not valid.
            PeerError: the session has failed, or the peer has left it.
            BrokerError: the broker has been away for too long, or refuses us.
            EndpointClosed: after `close`.
        """
        return self.handle(dst, tag, self.post(dst, tag, data, encoding))

    def handle(self, dst: Party, tag: str, number: int) -> Request:
        """The request of a message that `post` has sent."""
        return _EndpointRequest(self, self._peer(dst), tag, number)

    def post(self, dst: Party, tag: str, data: BytesLike, encoding: Encoding = Encoding.RAW) -> int:
        """As `send`, but gives the message's number, of which `handle` makes a handle.

        For channels: most of what they send needs no handle.

        Raises: as `send`.
        """
        peer = self._peer(dst)
        if type(data) is not bytes:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise PayloadTypeError(
                    f"{self.party}: the message for {peer.name} with tag {tag!r:.120} is "
                    f"{type(data).__name__}, not bytes: encode it first"
                )
            data = bytes(data)
        name = peer.out_prefix + list_names.encode_tag(tag)  # checks the tag too
        delivery = peer.delivery
        self._lock.acquire()  # `with` costs twice as much, here where every message passes
        try:
            if self._closing or self._failure is not None:
                self._check_usable()
            chunk = delivery.send_at_once(tag, data, encoding)
            if chunk is None:
                number = delivery.send(tag, data, time.monotonic(), encoding)
                pushes = delivery.pushes()
        finally:
            self._lock.release()
        if chunk is None:
            self._push(peer, pushes)
            return number
        number = chunk.seq
        element = peer.codec.encode_whole(name, number, encoding, chunk.acked, data)
        outbox = self._outbox
        outbox.push(name, element, (delivery, chunk))
        if outbox.error is not None:
            self._mend_outbox()
        return number

    def flush(self) -> None:
        """Wait until the broker has what was sent and the window admits.

        Raises: as `send`.
        """
        deadline = time.monotonic() + self.settings.broker_timeout
        with self._lock:
            self._check_usable()
        while not self._outbox.flush():
            self._mend_outbox()
            with self._changed:
                self._check_usable()
                if time.monotonic() > deadline:
                    raise self._outbox.error or SendTimeout(f"{self.party}: nothing was flushed")
                self._changed.wait(0.05)

    def recv(self, src: Party, tag: str, timeout: float | None = None) -> bytes:
        """The next message from ``src`` with ``tag``; waits for it.

        Args:
            src: party name or rank.
            tag: as the sender gave it.
            timeout: seconds; None takes ``recv_timeout``.

        Raises:
            RecvTimeout: it did not come in time.
            PeerAborted, PeerLost, PeerRestarted, PeerClosed: it will not come.
            RecvCancelled: `cancel_recv` was called for it.
            BrokerError: the broker has been away for too long, or refuses us.
            EndpointClosed: `close` was called, before or while this waited.
            UsageError: the timeout is no number of seconds.
        """
        # Most are floats that are right: these cost no call here.
        if type(timeout) is not float or not 0 <= timeout <= LONGEST_SECONDS:
            timeout = None if timeout is None else check_seconds("timeout", timeout)
        return self.recv_marked(src, tag, timeout)[0]

    def recv_marked(
        self, src: Party, tag: str, timeout: float | None = None
    ) -> tuple[bytes, Encoding]:
        """As `recv`, with the ``encoding`` that the sender gave.

        Raises: as `recv`.
        """
        peer = self._peer(src)
        name = peer.in_prefix + list_names.encode_tag(tag)
        limit = self.settings.recv_timeout if timeout is None else timeout
        delivery, lanes, started = peer.delivery, peer.lanes, time.monotonic()
        if lanes.depth and (lane := lanes.lane_of(tag)) is not None:
            foreseen = self._recv_foreseen(peer, lane, tag, started, limit)
            if foreseen is not None:
                if len(lane.posted) <= lanes.few:
                    lanes.go_on(lane)
                return foreseen
        slice_, probed = self._first_slice, False
        missing, size = 0, 0  # chunks of the message, and bytes of one, once one has come
        wait = self._inbox.acquire()
        wait.give_up = started + limit
        # Before the check: whoever ends the session sets the failure, then looks for waits.
        wait.purpose = (peer.name, tag, started)
        try:
            if self._closing or self._failure is not None:
                self._check_usable()
            message = None
            if tag in peer.kept:
                with self._lock:
                    message = delivery.take(tag)
                    if not self._broker.in_process:
                        missing, size = delivery.missing(tag)
            left = limit
            while message is None:
                if left < slice_:
                    if left <= 0:
                        self._raise_timeout(peer, tag, limit)
                    slice_ = max(0.001, left)
                element = None
                try:
                    if missing:
                        element = wait.pop_of_many(name, slice_, missing, size)
                    else:
                        element = wait.pop_one(name, slice_)
                except Interrupted:
                    self._check_interrupted(peer, tag, wait)
                except BrokerError as error:
                    pause = self._give_up_or_pause(error)
                    self._ask_for(peer, tag, wait)
                    with self._changed:
                        self._changed.wait(min(pause, left))
                        self._check_usable()
                else:
                    if self._outage.lasts:
                        self._outage.ended()
                    if element is not None:
                        message = self._receive(peer, tag, name, element, wait)
                if message is None:
                    now = time.monotonic()
                    left = started + limit - now
                    with self._lock:
                        if element is None:
                            self._register(wait)
                            if not probed and now - started >= _FIRST_PROBE:
                                slice_, probed = self._blpop_slice, True
                                delivery.probe_soon(tag, now)
                                delivery.tick(now)
                        elif not self._broker.in_process:
                            missing, size = delivery.missing(tag)
                        message = delivery.take(tag)
                        if message is None:
                            self._check_usable()
                            if element is None:
                                delivery.check_can_receive(tag, now)
                        pushes = delivery.pushes()
                    self._push(peer, pushes)
            if lanes.depth:
                lanes.foresee(tag)
            return message
        finally:
            if missing:
                wait.end_many()
            wait.purpose = None  # before the check: see `_register`
            if wait.registered:
                self._unregister(wait, delivery, tag)
            self._inbox.release(wait)

    def has_message(self, src: Party, tag: str) -> bool:
        """True if `recv` for this tag would return at once."""
        return self.peek_message(src, tag) is not None

    def peek_message(self, src: Party, tag: str) -> bytes | None:
        """The message that `recv` would return, without taking it; None if there is none yet.

        Raises: as `recv`, but never a timeout.
        """
        message = self.peek_marked(src, tag)
        return None if message is None else message[0]

    def peek_marked(self, src: Party, tag: str) -> tuple[bytes, Encoding] | None:
        """As `peek_message`, with the ``encoding`` that the sender gave.

        Raises: as `peek_message`.
        """
        peer = self._peer(src)
        name = peer.in_list(tag)
        give_up = time.monotonic() + self.settings.reply_timeout
        while True:
            with self._lock:
                self._check_usable()
                message = peer.delivery.peek(tag)
            if message is not None:
                return message
            wait = self._inbox.acquire()
            try:
                element = wait.pop_now(name)
                self._outage.ended()
            except BrokerError as error:
                self._stopped.wait(self._give_up_or_pause(error))
                continue
            finally:
                self._inbox.release(wait)
            if element is None:
                return None
            self._receive(peer, tag, name, element, None)
            with self._lock:
                complete = peer.delivery.peek(tag) is not None
            if not complete and time.monotonic() > give_up:
                return None  # the broker may give the same again, for ever

    def cancel_recv(self, src: Party, tag_prefix: str) -> None:
        """End every blocked `recv` from ``src`` whose tag begins so, with RecvCancelled."""
        peer = self._peer(src)
        with self._lock:
            for wait in self._inbox.waits():
                name, tag, _ = wait.purpose or ("", "", 0.0)
                if name == peer.name and tag.startswith(tag_prefix):
                    wait.cancelled = True
                    wait.interrupt()
            self._changed.notify_all()

    def wait_until(
        self, condition: Callable[[], bool], timeout: float, *, ask: tuple[str, ...] = ()
    ) -> bool:
        """Wait for something that only the peers' acks can bring about.

        Args:
            condition: cheap; evaluated whenever an ack came.
            timeout: seconds.
            ask: peers to ask for prompt acks.

        Returns:
            False if it did not come in time.

        Raises: as `send`.
        """
        deadline = time.monotonic() + timeout
        while True:
            with self._changed:
                if condition():
                    return True
                self._check_usable()
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                asked = []
                for name in ask:
                    self._peers[name].delivery.ask_ack()
                    asked.append((self._peers[name], self._peers[name].delivery.pushes()))
            for peer, pushes in asked:
                self._push(peer, pushes)
            with self._changed:
                self._sleepers += 1
                try:
                    if not condition():
                        self._changed.wait(min(left, _UNREAD_CONTROL_WAIT))
                finally:
                    self._sleepers -= 1

    @contextlib.contextmanager
    def announce_silence(self, seconds: float = 600.0) -> Iterator[None]:
        """Within this block, peers do not take this party's silence for death.

        For calls that hold the GIL, and with it the heartbeat: compiling, making shares.

        Args:
            seconds: the longest that it may take.
        """
        self._announce(seconds)
        try:
            yield
        finally:
            self._announce(0)

    def trouble(self, peer: Party) -> str:
        """What holds messages with a peer up, as far as this party can tell.

        Returns:
            Such as ``broker unreachable for 12 s`` or ``bob not heard for 12 s``; "" if nothing.
        """
        if away := self._outage.describe():
            return away
        delivery = self._peer(peer).delivery
        with self._lock:
            return delivery.describe_silence(time.monotonic())

    def next_link_number(self, device: str) -> int:
        """How many links this endpoint has made for a device, this one included.

        Links to the same device are made in the same order everywhere, so the number keeps
        their equal tags apart.
        """
        with self._lock:
            self._link_numbers[device] += 1
            return self._link_numbers[device]

    def stats(self) -> EndpointStats:
        """Counts so far, over all peers and for each, and how it stands with each now."""
        waits: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for wait in self._inbox.waits():
            if (purpose := wait.purpose) is not None:  # it may have ended meanwhile
                name, tag, since = purpose
                waits[name].append((tag, since))
        with self._lock:
            now = time.monotonic()
            peers = {
                name: PeerStats.of(peer.delivery, waits[name], now)
                for name, peer in self._peers.items()
            }
            return EndpointStats.of(peers, self._reconnects)

    def party_status(self) -> PartyStatus:
        """What this party tells whoever watches the session (`redislink top`)."""
        claim = self._claim
        with self._lock:
            now = time.monotonic()
            peers = {name: _status_of(p.delivery, now) for name, p in self._peers.items()}
            state = "failed" if self._failure else "closing" if self._closing else "open"
            reconnects = self._reconnects
        # Of another thread's waits: each may end between two looks at it.
        purposes = (wait.purpose for wait in self._inbox.waits())
        waits = sorted(purpose[::-1] for purpose in purposes if purpose is not None)
        return PartyStatus(
            claim.instance,
            state,
            now - claim.since,
            claim.last_round_trip,
            reconnects,
            peers,
            tuple(Waiting(p, tag, max(0.0, now - t)) for t, tag, p in waits[:MAX_WAITS]),
            self._outage.seconds,
        )

    def abort(self, reason: str) -> None:
        """Tell every peer that this party's run has failed, and leave.

        While another thread is in `close` this ends what it waits for, and leaves the rest to it.

        Args:
            reason: one line; it is shown to the peers, so it must hold no data.
        """
        with self._lock:
            if self._stopped.is_set():
                return
            is_closing, self._closing = self._closing, True
            self._wake_all()
            work = []
            for peer in self._peers.values():
                peer.delivery.abort(" ".join(reason.split())[:500])
                work.append((peer, peer.delivery.pushes()))
        for peer, pushes in work:
            self._push(peer, pushes)
        if is_closing:
            return
        self._leave(time.monotonic() + self.settings.close_timeout)

    def close(self) -> None:
        """Leave the session: wait until the peers have what was sent, and say so to them.

        Takes at most ``close_timeout`` seconds from when the line to the broker has taken, or
        stopped taking, what waits for it; blocked calls end with EndpointClosed. Safe to call
        twice. What is not delivered by then is logged, and expires on the broker.
        """
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._wake_all()
            work = []
            for peer in self._peers.values():
                peer.delivery.close(time.monotonic())
                work.append((peer, peer.delivery.pushes()))
        for peer, pushes in work:
            self._push(peer, pushes)
        closed_at, outbox = time.monotonic(), self._outbox
        with self._changed:
            while outbox.is_behind and self._failure is None:
                silent_for = time.monotonic() - max(closed_at, outbox.moved_at)
                if silent_for >= self.settings.close_timeout:
                    break
                self._changed.wait(_UNREAD_CONTROL_WAIT)
        deadline = max(closed_at, outbox.moved_at) + self.settings.close_timeout
        with self._changed:
            while (left := deadline - time.monotonic()) > 0:
                if self._failure is not None or not self._unfinished():
                    break
                self._changed.wait(min(left, _UNREAD_CONTROL_WAIT))
            unfinished = self._unfinished() if self._failure is None else []
            left_over = [(peer.name, peer.delivery.unacked_bytes) for peer in unfinished]
        for name, size in left_over:
            self._log.warning(
                "%s: closed without %s having taken everything (%d bytes left)",
                self.party,
                name,
                size,
                extra={"peer": name},
            )
        self._leave(deadline)

    def __enter__(self) -> Endpoint:
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

    def die_in_child(self) -> None:
        """In the child of a fork: every call raises `UsedAfterFork`, leaving does nothing."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._closing = True
        self._stopped = threading.Event()
        self._stopped.set()
        _open_endpoints.discard(self)
        self._failure = used_after_fork(f"{self.party}: the endpoint of session {self.session!r}")
        dead: Any = Dead(self._failure)
        for peer in self._peers.values():
            peer.codec.forget_keys(dead)
            peer.codec = peer.delivery = peer.kept = peer.lanes = dead
        self._outbox = self._inbox = self._claim = self._rendezvous = self._observer = dead
        for traced in ("post", "recv_marked"):
            vars(self).pop(traced, None)

    def __repr__(self) -> str:
        state = "closed" if self._closing else "open"
        return f"<Endpoint {self.party} (rank {self.rank}) of session {self.session}, {state}>"

    # -- shared by the calling threads -------------------------------------------------------

    def _check_usable(self) -> None:
        if isinstance(self._failure, UsedAfterFork):
            raise self._failure.with_traceback(None)
        if self._closing:
            raise EndpointClosed(
                f"{self.party}: the endpoint is closed: open a new one with redislink.connect()"
            )
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def _peer(self, party: Party) -> _Peer:
        if type(party) is str or type(party) is int:  # not bool, which equals 0 or 1
            peer = self._by_name_or_rank.get(party)
            if peer is not None:
                return peer
        own = party == self.party or (type(party) is int and party == self.rank)
        raise UsageError(
            f"{self.party}: {party!r:.80} is {'this party itself' if own else 'not a party'}: "
            f"use one of {', '.join(self._peers)}, or their ranks"
        )

    def _push(self, peer: _Peer, pushes: list[Push | Leftover]) -> None:
        """Write what a delivery wants written; broken outboxes are mended in the background."""
        if not pushes:
            return
        outbox, large_before = self._outbox, False
        try:
            for push in pushes:
                name = peer.out_list(push.tag)
                if isinstance(push, Leftover):
                    outbox.delete(name)
                    continue
                if self._closing and push.tag is None:
                    self._last_words.append((peer, push))
                token, encode = (peer.delivery, push), peer.codec.encode_parts
                size = push.message_bytes or len(push.body)
                if large_before and len(push.body) >= LARGE and self._element_size.limit is None:
                    # Its fellow chunks fill the line: sealed and written when they are through.
                    later = partial(encode, name, push.frame, push.body)
                    outbox.push_later(name, later, size, token, clear=push.clear)
                    continue
                large_before = len(push.body) >= LARGE
                element = encode(name, push.frame, push.body)
                limit, frame = self._element_size.limit, push.frame
                if push.tag is None:
                    outbox.push(name, element, token, ttl=_CONTROL_TTL, urgent=True)
                elif limit is not None and isinstance(frame, Data) and len(push.body) > limit:
                    # Its number was used, so that it must not be sealed anew in smaller frames.
                    *first, last = split_element(element, frame.seq, limit)
                    for at, fragment in enumerate(first):
                        outbox.push(name, fragment, clear=push.clear and not at, size=size)
                    outbox.push(name, last, token, size=size)
                else:
                    outbox.push(name, element, token, clear=push.clear, size=size)
        except EndpointClosed:
            return  # a late ack, while another thread closes
        if self._outbox.error is not None:
            self._mend_outbox()

    def _check_interrupted(self, peer: _Peer, tag: str, wait: Wait) -> None:
        """A pop was interrupted: raises, unless who had the connection before was meant."""
        if wait.cancelled:
            raise RecvCancelled(
                f"{self.party}: the receive of tag {tag!r:.120} from {peer.name} was "
                "cancelled: the link that it belongs to was aborted"
            ) from None
        with self._lock:
            self._check_usable()

    def _ask_for(self, peer: _Peer, tag: str, wait: Wait) -> None:
        """What a broken connection may have popped is lost: probe for it at once."""
        now = time.monotonic()
        with self._lock:
            self._register(wait)
            peer.delivery.probe_soon(tag, now)
            peer.delivery.tick(now)
            pushes = peer.delivery.pushes()
        self._push(peer, pushes)

    def _recv_foreseen(
        self, peer: _Peer, lane: Lane, tag: str, started: float, limit: float
    ) -> tuple[bytes, Encoding] | None:
        """The message from the lane on which its BLPOP is under way; None if it is not there."""
        delivery, lanes, message = peer.delivery, peer.lanes, None
        if not lane.lock.acquire(blocking=False) and not lane.lock.acquire(
            timeout=min(_LANE_PATIENCE, max(0.0, limit))
        ):
            return None  # another thread waits for a tag before this one, which may be long
        wait = lane.wait
        try:
            wait.give_up = started + limit
            wait.purpose = (peer.name, tag, started)
            if self._closing or self._failure is not None:
                self._check_usable()
            if tag in peer.kept:
                with self._lock:
                    message = delivery.take(tag)
            came = ""
            while message is None and came != tag:
                read = lanes.read(lane, tag)
                if read is None:
                    break
                came, name, element = read
                if came == tag:
                    if element is not None:
                        message = self._receive(peer, tag, name, element, wait)
                    break
                if element is not None:
                    self._receive(peer, came, name, element, None)
                with self._lock:
                    self._check_usable()
                    message = delivery.take(tag)
        except Interrupted:
            self._check_interrupted(peer, tag, wait)
        except BrokerError as error:
            if not error.retryable:
                self._give_up_or_pause(error)
            self._ask_for(peer, tag, wait)  # the plain way comes next, and tries the broker again
        finally:
            wait.purpose = None  # before the check: see `_register`
            if wait.registered:
                self._unregister(wait, delivery, tag)
            lane.lock.release()
        return message

    def _receive(
        self, peer: _Peer, tag: str, name: bytes, element: Buffer, wait: Wait | None
    ) -> tuple[bytes, Encoding] | None:
        """Take in what was popped off the list of a tag.

        Args:
            wait: of the receive that wants the next message of this tag; None if none does.

        Returns:
            That message, if it is here now.
        """
        delivery, whole, message = peer.delivery, None, None
        try:
            if wait is not None:
                whole = peer.codec.decode_whole_untrusted(name, element)
            if whole is None:
                if is_fragment(element):
                    joined = self._join(peer, tag, name, element)
                    if joined is None:
                        return None
                    element = joined
                frame, body = peer.codec.decode_untrusted(name, element)
        except FrameError as error:
            self._not_opened_by(peer, error)
            return None
        self._lock.acquire()  # as in `post`
        try:
            now = time.monotonic()
            try:
                if whole is not None:
                    message = delivery.receive_whole(tag, whole, now)
                else:
                    take = wait is not None
                    message = delivery.receive_data(tag, frame, body, now, take=take)
            except FrameError as error:
                self._illegal_of(peer, error)
            except PeerError as error:
                self._fail(error)
            if self._sleepers:
                self._changed.notify_all()
            if tag in peer.kept and delivery.peek(tag) is not None:
                self._wake_another(peer, tag, wait)
            pushes = delivery.pushes() if delivery.unpushed else None
        finally:
            self._lock.release()
        if pushes:
            self._push(peer, pushes)
        return message

    def _join(self, peer: _Peer, tag: str, name: bytes, element: Buffer) -> bytes | None:
        """The element that a fragment completes; None if more are to come.

        Raises:
            FrameError: it is no fragment.
        """
        with self._lock:
            joined = peer.fragments.add_untrusted(name, element)
            if joined is None:
                peer.delivery.came_in_part(tag, time.monotonic())
            return joined

    def _unregister(self, wait: Wait, delivery: Delivery, tag: str) -> None:
        with self._lock:
            if wait.registered:
                wait.registered = False
                delivery.unwait(tag)

    def _register(self, wait: Wait) -> None:
        """From now on the peer is probed for what this receive waits for; called with the lock.

        The control thread calls it for receives of other threads, which may end meanwhile.
        """
        purpose = wait.purpose
        if purpose is None or wait.registered:
            return
        name, tag, since = purpose
        delivery = self._peers[name].delivery
        delivery.wait(tag, since)
        wait.registered = True
        if wait.purpose is not purpose:  # it ended, perhaps without having seen that
            wait.registered = False
            delivery.unwait(tag)

    def _open(self, peer: _Peer, name: bytes, element: Buffer) -> tuple[Frame, bytes] | None:
        """The frame and body of a list element; None if the peer has not sent it so."""
        try:
            return peer.codec.decode_untrusted(name, element)
        except FrameError as error:
            self._not_opened_by(peer, error)
            return None

    def _not_opened_by(self, peer: _Peer, error: FrameError) -> None:
        if isinstance(error, IllegalFrameError):
            self._illegal_of(peer, error)
        elif not isinstance(error, StaleError):
            self._not_a_frame_of(peer, error)

    def _illegal_of(self, peer: _Peer, error: FrameError) -> None:
        """A frame that opened and that the protocol forbids, there or at all."""
        if self.cluster.security != "sealed":  # anybody may have sent it
            self._not_a_frame_of(peer, error)
            return
        with self._lock:
            peer.delivery.broke_rules(str(error))
        self._check_peers()

    def _wake_another(self, peer: _Peer, tag: str, mine: Wait | None) -> None:
        """A message of this tag is here: let another receive that waits for it look."""
        for wait in self._inbox.waits():
            purpose = wait.purpose
            if wait is not mine and purpose is not None and purpose[:2] == (peer.name, tag):
                wait.interrupt()
                return

    def _not_a_frame_of(self, peer: _Peer, error: FrameError) -> None:
        """Count what did not come from the peer; such a frame counts as never received."""
        with self._lock:
            self._not_opened += 1
            count = self._not_opened
        if is_power_of_two(count):  # there may be any number
            self._log.warning(
                "%s: ignored an element from %s: %s (%d so far, of all parties)",
                self.party,
                peer.name,
                error,
                count,
                extra={"peer": peer.name},
            )
        if count >= self.settings.tamper_limit and self.cluster.security == "sealed":
            self._fail(
                BrokerTampered(
                    f"{self.party}: {count} frames did not open, the last from {peer.name} "
                    f"({error}): something between the parties changes messages, or {peer.name} "
                    "itself sends such; check the broker and who has access to it"
                )
            )

    def _raise_timeout(self, peer: _Peer, tag: str, limit: float) -> None:
        waited = f"{self.party}: waited {limit:g} s for tag {tag!r:.120} from {peer.name}"
        if away := self._outage.describe():
            raise RecvTimeout(
                f"{waited}; {away}: check the broker and the line to it, not {peer.name}, or allow "
                "more time (REDISLINK_RECV_TIMEOUT)"
            )
        with self._lock:
            said = peer.delivery.describe_wait(tag, time.monotonic())
        raise RecvTimeout(
            f"{waited}; {said}: "
            f"check that {peer.name} sends it, or allow more time (REDISLINK_RECV_TIMEOUT)"
        )

    def _announce(self, seconds: float) -> None:
        with self._lock:
            work = []
            for peer in self._peers.values():
                peer.delivery.announce_silence(seconds, time.monotonic())
                work.append((peer, peer.delivery.pushes()))
        for peer, pushes in work:
            self._push(peer, pushes)
        if seconds:
            self._outbox.flush()

    def _unfinished(self) -> list[_Peer]:
        """Called with the lock."""
        return [peer for peer in self._peers.values() if peer.delivery.state not in _OVER]

    # -- failure -----------------------------------------------------------------------------

    def _give_up_or_pause(self, error: BrokerError) -> float:
        """Seconds to pause before the next try; raises, for all, when there shall be none."""
        try:
            return self._outage.failed(error)
        except BrokerError as final:
            self._fail(final)
            raise

    def _fail(self, failure: RedisLinkError) -> None:
        """End every call of this endpoint, now and later, with this error."""
        with self._lock:
            if self._failure is None and not self._closing:
                self._failure = failure
                self._log.error("%s: the session has failed: %s", self.party, failure)
            self._wake_all()

    def _wake_all(self) -> None:
        for wait in self._inbox.waits():
            wait.interrupt()
        self._changed.notify_all()

    def _mend_outbox(self) -> None:
        """Start the thread that reconnects the outbox, unless it runs."""
        with self._lock:
            if self._mending or self._stopped.is_set():
                return
            self._mending = True
        threading.Thread(
            target=self._run_mending, name=f"redislink-mend-{self.party}", daemon=True
        ).start()

    def _run_mending(self) -> None:
        try:
            while (error := self._outbox.error) is not None and not self._stopped.is_set():
                try:
                    self._stopped.wait(self._give_up_or_pause(error))
                    self._outbox.reconnect()
                    self._outage.ended()
                except BrokerError as again:
                    if self._failure is not None:
                        return
                    self._log.debug("%s: not reconnected yet: %s", self.party, again)
                    if not again.retryable:
                        self._fail(again)
                        return
                    continue
                self._reconnected()
        except EndpointClosed:
            return
        finally:
            with self._lock:
                self._mending = False

    def _reconnected(self) -> None:
        self._log.info("%s: reconnected to broker %s", self.party, self._broker.label)
        with self._lock:
            self._reconnects += 1
            if self._is_hopeless():
                return
            work = []
            for peer in self._peers.values():
                peer.delivery.reconnected(time.monotonic())
                peer.delivery.tick(time.monotonic())
                work.append((peer, peer.delivery.pushes()))
            self._changed.notify_all()
        for peer, pushes in work:
            self._push(peer, pushes)
        self._rendezvous.reconnected()

    def _is_hopeless(self) -> bool:
        """The connection broke and is back: see whether that is due to what was pushed, and mend
        it. True if nothing does, and the session has failed. Called with the lock."""
        size, now = self._element_size, time.monotonic()
        if size.broke(max(p.delivery.largest_unanswered for p in self._peers.values()), now):
            self._cut_finer()
        elif size.is_hopeless(now):
            self._fail(
                BrokerRefused(
                    f"{self.party}: the broker {self._broker.label} ends the connection whenever "
                    f"{size.suspected} bytes are pushed, and messages are not cut finer than "
                    f"{LEAST}: raise its client-query-buffer-limit, proto-max-bulk-len or "
                    "maxmemory-clients, or see its log"
                )
            )
            return True
        return False

    def _cut_finer(self) -> None:
        """The broker does not take elements so large; called with the lock."""
        size = self._element_size
        for peer in self._peers.values():
            peer.delivery.cut_finer(size.limit or LEAST)
        if not self._said_cut_finer:
            self._said_cut_finer = True
            self._log.warning(
                "%s: the broker %s ends the connection at elements of %d bytes, so that they are "
                "cut smaller from now on: raise its client-query-buffer-limit, proto-max-bulk-len "
                "or maxmemory-clients, or set REDISLINK_CHUNK_BYTES to less",
                self.party,
                self._broker.label,
                size.suspected,
            )

    # -- the control thread ------------------------------------------------------------------

    def _run_control(self) -> None:
        try:
            self._serve_control()
        except RedisLinkError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - logged with its traceback
            # Without this thread nothing is healed any more, so nobody may wait on.
            self._log.exception("%s: the control thread broke", self.party)
            self._fail(
                RedisLinkError(
                    f"{self.party}: internal error, {type(error).__name__} in the control "
                    "thread: please report it, with the log"
                )
            )

    def _serve_control(self) -> None:
        sources: dict[bytes, tuple[_Peer, bool]] = {
            peer.control_in: (peer, True) for peer in self._peers.values()
        }
        sources |= {name: (self._peers[p], False) for name, p in self._rendezvous.lists.items()}
        names = list(sources)
        while not self._stopped.is_set():
            try:
                pause = self._serve_timers()
                names = [*names[1:], names[0]]  # else a busy first list would starve the others
                popped = self._control_wait.pop(names, self._broker.blpop_slice(pause))
                self._outage.ended()
            except (Interrupted, EndpointClosed):
                return
            except BrokerError as error:
                try:
                    self._stopped.wait(self._give_up_or_pause(error))
                except BrokerError:
                    return
                with self._lock:
                    for peer in self._peers.values():
                        peer.delivery.not_listening(time.monotonic())
                continue
            with self._lock:
                now = time.monotonic()
                for peer in self._peers.values():
                    peer.delivery.listened(now)
            self._report_silence(now)
            if popped is not None:
                peer, is_control = sources[popped[0]]
                if is_control:
                    self._collect()  # else a probe would find what the broker has unconfirmed
                    self._take_control(peer, popped[1])
                else:
                    self._take_hello(peer, popped[1])
            self._check_peers()

    def _report_silence(self, now: float) -> None:
        """Say from time to time whom this party does not hear, and when it hears them again."""
        if now < self._next_silence_look:
            return
        self._next_silence_look = now + _LONGEST_CONTROL_WAIT
        with self._lock:
            silent = {n: p.delivery.describe_silence(now) for n, p in self._peers.items()}
        for name, said in silent.items():
            due = self._silence_reports.get(name)
            if said and (due is None or now >= due):
                self._silence_reports[name] = now + _REPORT_INTERVAL
                self._progress.info("%s: %s", self.party, said)
            elif not said and due is not None:
                del self._silence_reports[name]
                self._progress.info("%s: %s is heard again, or has left", self.party, name)

    def _serve_timers(self) -> float:
        """Do what is due; returns how many seconds the control thread may wait."""
        busy = self._collect()
        now = time.monotonic()
        if self._outbox.error is not None:
            self._mend_outbox()
        for wait in self._inbox.waits():
            purpose = wait.purpose
            if purpose is not None and now - purpose[2] > _UNREAD_CONTROL_WAIT:
                with self._lock:
                    self._register(wait)
                if now > wait.give_up + wait.margin:
                    wait.interrupt()  # a reply has begun and drips: its timeout holds all the same
        busy = busy or self._outbox.has_unread
        pause = _UNREAD_CONTROL_WAIT if busy else _LONGEST_CONTROL_WAIT
        for peer in self._peers.values():
            with self._lock:
                due = peer.delivery.next_timeout()
                if due is not None and due <= now:
                    peer.delivery.tick(now)
                    due = peer.delivery.next_timeout()
                pushes = peer.delivery.pushes()
            self._push(peer, pushes)
            if due is not None:
                pause = min(pause, due - now)
        return max(_SHORTEST_CONTROL_WAIT, pause)

    def _collect(self) -> bool:
        """Hand the broker's answers to our pushes to delivery; True if there were any."""
        answered = self._outbox.collect()
        if not answered:
            return False
        now, size = time.monotonic(), self._element_size
        with self._lock:
            for token, taken in cast("list[tuple[tuple[Delivery, Push], bool]]", answered):
                delivery, push = token
                if taken:
                    delivery.confirm(push, now)
                    if size.suspected:
                        size.answered(len(push.body))
                else:
                    delivery.refused(push, now)
        return True

    def _take_control(self, peer: _Peer, element: Buffer) -> None:
        opened = self._open(peer, peer.control_in, element)
        if opened is None:
            return
        with self._lock:
            try:
                peer.delivery.receive_control(opened[0], time.monotonic())
            except FrameError as error:
                self._illegal_of(peer, error)
            if peer.delivery.often_lost:
                if self._element_size.lost(peer.delivery.often_lost):
                    self._cut_finer()
                peer.delivery.often_lost = 0
            pushes = peer.delivery.pushes()
            self._changed.notify_all()
        self._push(peer, pushes)

    def _take_hello(self, peer: _Peer, element: Buffer) -> None:
        handshake = self._rendezvous.handshake
        before = handshake.not_opened
        with contextlib.suppress(ClusterMismatch, EndpointClosed):
            self._rendezvous.receive(peer.name, element)
        if handshake.not_opened > before:
            self._not_a_frame_of(peer, SealError("a hello that does not open"))
        if self._rendezvous.handshake.has_restarted(peer.name):
            with self._lock:
                peer.delivery.restarted()
        if self._outbox.error is not None:
            self._mend_outbox()

    def _check_peers(self) -> None:
        with self._lock:
            for peer in self._peers.values():
                if peer.delivery.failure is not None and self._failure is None:
                    self._fail(peer.delivery.failure)

    def _say_last_words(self, deadline: float) -> None:
        """See to it that the broker has the FINs, acks and ABORTs of the end.

        Nobody is there to send them again, so when the connection broke they are all pushed
        again on the next one.
        """
        while not self._outbox.flush(max(_LEAST_TO_LEAVE, deadline - time.monotonic())):
            error = self._outbox.error
            if isinstance(self._failure, BrokerError) or (error and not error.retryable):
                return
            self._mend_outbox()
            with self._changed:
                while self._outbox.error is not None:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return
                    self._changed.wait(min(left, _UNREAD_CONTROL_WAIT))
            for peer, push in tuple(self._last_words):
                self._push(peer, [push])

    def _leave(self, deadline: float) -> None:
        """Stop the threads, remove what this party leaves on the broker, disconnect."""
        _open_endpoints.discard(self)
        self._say_last_words(deadline)
        left = max(_LEAST_TO_LEAVE, deadline - time.monotonic())
        self._stopped.set()
        self._control_wait.interrupt()
        self._control_thread.join(left)
        self._control_wait.disconnect()
        mine = [*self._rendezvous.lists, *(peer.control_in for peer in self._peers.values())]
        with contextlib.suppress(EndpointClosed):
            self._outbox.delete(*mine)
        self._outbox.flush(left)
        self._outbox.close()
        for peer in self._peers.values():
            peer.lanes.close()
        self._inbox.close()
        self._claim.release(left)
        self._observer.close()


def leave_open_endpoints(error: BaseException | None) -> None:
    """Leave what the program has not, as it ends.

    Args:
        error: what ended it: the peers are told of it. None closes in good order, so that what was
            sent arrives, and says that the program did not.
    """
    leaving = []
    for endpoint in list(_open_endpoints):
        if endpoint._closing:
            continue
        if error is None:
            endpoint._log.warning(
                "%s: the program ended without closing session %r, which is closed now: call "
                "close(), or join in a with block",
                endpoint.party,
                endpoint.session,
            )
            leave = endpoint.close
        else:
            leave = partial(endpoint.abort, reason_for_peers(error))
        leaving.append(threading.Thread(target=leave, daemon=True))
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join()


@atexit.register
def _leave_at_exit() -> None:
    # Where somebody types, it is of an earlier line.
    failed = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    leave_open_endpoints(failed)


def _least_chunk_bytes(round_trip: float, chunk_bytes: int) -> int:
    """For `Timing`; seconds to the broker and back, and what the settings allow."""
    return chunk_bytes if round_trip < _NEAR else min(_LEAST_CHUNK, chunk_bytes)


def _status_of(delivery: Delivery, now: float) -> PeerStatus:
    return PeerStatus(
        delivery.state.value,
        **counts_of(delivery),
        in_flight_bytes=delivery.in_flight_bytes,
        last_heard_seconds=max(0.0, now - delivery.last_heard),
        is_silent=delivery.is_silent,
    )
