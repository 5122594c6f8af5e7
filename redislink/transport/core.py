"""`Core`: the state that all threads of an endpoint share, and the only access to its deliveries.

Rules:
- ``lock`` guards the deliveries, ``failure`` and ``closing``. While it is held, no thread talks to
  the broker, and no log handler of the user's program runs.
- Only `talk` reads or changes a delivery; it releases the lock, then writes the pushes that the
  delivery has produced. The fast paths in `sending` and `receiving` do the same by hand, and say
  so.
- A failure is set once. It ends every call, present and future.
- A thread that finds the outbox broken calls `mend_outbox` and carries on: one thread reconnects.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final

from redislink.broker import AnyOutbox, Broker, Inbox
from redislink.broker.busy_poll import has_spare_processors
from redislink.broker.error_map import PROTOCOL_ERROR
from redislink.broker.outage import Outage, Way
from redislink.broker.outbox import push_afresh
from redislink.broker.wire import LARGE, Buffer
from redislink.cluster import ClusterSpec
from redislink.errors import (
    BrokerBusy,
    BrokerError,
    BrokerRefused,
    BrokerTampered,
    BrokerUnreachable,
    EndpointClosed,
    FrameError,
    RedisLinkError,
    UsageError,
    UsedAfterFork,
    may_pass,
    reason_for_peers,
)
from redislink.forking import Dead, used_after_fork
from redislink.logs import PartyLogger, is_power_of_two
from redislink.protocol import list_names
from redislink.protocol.delivery import DataPush, Delivery, Leftover, Push, Timing
from redislink.protocol.element_size import LEAST, ElementSize
from redislink.protocol.fragments import pushed_again, split_element
from redislink.protocol.frame import Abort, Frame
from redislink.protocol.seal import IllegalFrameError, StaleError
from redislink.settings import RedisLinkSettings
from redislink.transport.claim import PartyClaim
from redislink.transport.lanes import Lanes
from redislink.transport.measuring import NEAR
from redislink.transport.peer import Encode, Party, Peer
from redislink.transport.rendezvous import Rendezvous
from redislink.transport.rests import Rests

UNREAD_CONTROL_WAIT: Final = 0.2
"""Seconds between two checks for news from the broker or another thread."""
_CONTROL_TTL: Final = 120
_MOST_LAST_WORDS: Final = 64
_LEAST_CHUNK: Final = 64 << 10
_LEAST_PART: Final = 1 << 10
_FRAME_BYTES: Final = 400
"""What an element takes of the line besides its body: commands, list names, header, seal, and in
the other direction the BLPOP for the next one."""
_FRAME_SECONDS: Final = 60e-6
"""What an element takes of a party's time, about."""
_USUAL_UPLINK: Final = 12.5e6
"""Bytes a second, 100 Mbit/s: what we take a line for that could not be measured."""
_MOST_FAR: Final = 1 << 20
"""The largest chunk where the broker is not near: what is behind it waits for all of it."""
_MOST_NEAR: Final = 4 << 20
_LEAST_IN_WINDOW: Final = 8
"""So many of the largest chunks fit into the window, so that it does not stand still."""
_FINE_SECONDS: Final = 5.0
"""So long after a small message had to wait behind a large one, chunks are no larger than if the
broker were not near."""
_MOST_IN_FRAGMENTS: Final = 512 << 20
_HOPELESS: Final = 0.75
"""The share of ``broker_timeout`` for which connections may keep breaking at the smallest element
size before we give up."""


class Talk:
    """``with core.talk(peer) as delivery``: see `Core.talk`."""

    __slots__ = ("_core", "_peer")

    def __init__(self, core: Core, peer: Peer) -> None:
        self._core = core
        self._peer = peer

    def __enter__(self) -> Delivery:
        self._core.lock.acquire()
        return self._peer.delivery

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        delivery = self._peer.delivery
        try:
            pushes = delivery.pushes() if delivery.unpushed else None
        finally:  # in the child of a fork there is no delivery any more
            self._core.lock.release()
        if pushes:
            self._core.push(self._peer, pushes)


class Core:
    """The state that the parts of an `Endpoint` share.

    Attributes:
        cluster, party, settings: describe the session and this party.
        log: the party's logger.
        broker, outbox, inbox, outage, rendezvous: handle everything towards the broker.
        peers: the other parties, by name in rank order.
        lock: see the rules above.
        changed: the lock's condition; notified when an ack arrives, a connection is back, or the
            session ends.
        failure: the error that ended the session; None while it runs.
        closing: True once this party is leaving.
        stopped: set when the threads must end.
        sleepers: the number of threads that wait on ``changed`` for acks.
        reconnects: how often the outbox has reconnected.
        first_ask: seconds after which the peer is asked for what a receive waits for.
        last_words: control frames pushed while closing, or after a failure; delivery does not
            resend these.
        element_size: how large an element the broker accepts.
    """

    def __init__(
        self,
        cluster: ClusterSpec,
        party: str,
        settings: RedisLinkSettings,
        broker: Broker,
        outbox: AnyOutbox,
        inbox: Inbox,
        rendezvous: Rendezvous,
        outage: Outage,
        round_trip: float,
        uplink: float,
    ) -> None:
        """Not for users.

        Args:
            cluster, party, settings, broker, outbox, inbox, rendezvous, outage: see the attributes.
            round_trip: seconds to the broker and back.
            uplink: bytes a second to the broker; infinity if that is not known.
        """
        self.cluster = cluster
        self.party = party
        self.settings = settings
        self.log = PartyLogger(cluster.session, party)
        self.broker = broker
        self.outbox: AnyOutbox = outbox
        self.inbox: Inbox = inbox
        self.outage = outage
        self.rendezvous: Rendezvous = rendezvous
        self.blpop_slice = broker.blpop_slice(settings.blpop_timeout)
        self.first_ask = Timing(round_trip=round_trip).first_ask
        is_near = round_trip < NEAR and not broker.in_process
        if is_near and settings.busy_poll and has_spare_processors():
            inbox.poll_busily(settings.busy_poll)
        self.peers = self._make_peers(round_trip, uplink)
        self._by_name_or_rank: dict[Party, Peer] = {
            key: peer for name, peer in self.peers.items() for key in (name, cluster.rank(name))
        }
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.failure: RedisLinkError | None = None
        self.closing = False
        self.stopped = threading.Event()
        self.sleepers = 0
        self.reconnects = 0
        self.last_words: deque[tuple[Peer, Push]] = deque(maxlen=_MOST_LAST_WORDS)
        self.element_size = ElementSize(_HOPELESS * settings.broker_timeout)
        self._not_opened = 0
        self._said_cut_finer = False
        self._mending = False
        self.home: PartyClaim | None = None
        """On a Cluster, the claim. Only that is written to the node of this party's own inbox, so
        it shows whether the node accepts what the peers push."""

    def _make_peers(self, round_trip: float, uplink: float) -> dict[str, Peer]:
        cluster, settings, me = self.cluster, self.settings, self.party
        chunk_bytes = largest_chunk(round_trip, settings)
        timing = Timing(
            window_bytes=settings.window_bytes,
            peer_memory_bytes=settings.peer_memory_bytes,
            chunk_bytes=chunk_bytes,
            fine_chunk_bytes=_MOST_FAR,
            least_chunk_bytes=_least_chunk_bytes(round_trip, chunk_bytes),
            part_bytes=self._part_bytes(round_trip),
            frame_cost=frame_cost(uplink) if settings.part_bytes is None else 0,
            uplink=uplink,
            peer_timeout=settings.peer_timeout,
            round_trip=round_trip,
        )
        handshake, now = self.rendezvous.handshake, time.monotonic()
        # An in-process BLPOP costs nothing, and its replies cannot be read ahead.
        depth = 0 if self.broker.in_process else settings.lookahead
        return {
            name: Peer(
                name,
                (
                    list_names.inbox_prefix(cluster.session, name, me, handshake.epoch(name)),
                    list_names.inbox_prefix(cluster.session, me, name, handshake.epoch(name)),
                ),
                Delivery(name, timing, now),
                handshake.codec(name),
                partial(Lanes, self.inbox, depth, self.blpop_slice, round_trip),
                partial(Rests, self.inbox, self.blpop_slice),
                min(_MOST_IN_FRAGMENTS, settings.peer_memory_bytes),
            )
            for name in self.rendezvous.peers
        }

    def _part_bytes(self, round_trip: float) -> int:
        """Return the smallest chunks of a message whose rest travels apart, for `Timing`."""
        settings = self.settings
        if self.broker.in_process:  # nothing can be asked for in advance
            return 0
        if settings.part_bytes is not None:
            return settings.part_bytes
        return 0 if round_trip < NEAR else min(_LEAST_PART, settings.chunk_bytes)

    # -- the door to the deliveries ----------------------------------------------------------

    def peer(self, party: Party) -> Peer:
        """Return the peer with this name or rank.

        Raises:
            UsageError: there is no such party, or it is this one.
        """
        if type(party) is str or type(party) is int:  # not bool, which equals 0 or 1
            peer = self._by_name_or_rank.get(party)
            if peer is not None:
                return peer
        own = party == self.party or (type(party) is int and party == self.cluster.rank(self.party))
        raise UsageError(
            f"{self.party}: {party!r:.80} is {'this party itself' if own else 'not a party'}: "
            f"use one of {', '.join(self.peers)}, or their ranks"
        )

    def talk(self, peer: Peer) -> Talk:
        """``with core.talk(peer) as delivery``: hold the lock within the block. After the block,
        write the delivery's pushes, without the lock."""
        return Talk(self, peer)

    def tell_all(self, change: Callable[[Delivery], None]) -> None:
        """Apply ``change`` to every peer's delivery under one lock, then write their pushes."""
        with self.lock:
            work = []
            for peer in self.peers.values():
                change(peer.delivery)
                work.append((peer, peer.delivery.pushes()))
        for peer, pushes in work:
            self.push(peer, pushes)

    def push(self, peer: Peer, pushes: list[Push | Leftover]) -> None:
        """Write a delivery's pushes. Call it without the lock."""
        if not pushes:
            return
        outbox, again = self.outbox, []
        try:
            for push in pushes:
                if isinstance(push, Leftover):
                    outbox.delete(peer.left_list(push))
                    continue
                token = (peer.delivery, push)
                if not isinstance(push, DataPush):
                    if self.closing or self.failure is not None:
                        self.last_words.append((peer, push))
                    name = peer.control_out
                    element = peer.codec.encode_parts(name, push.frame, push.body)
                    # A peer that is suspended may come back for its ABORT much later.
                    ttl = None if type(push.frame) is Abort else _CONTROL_TTL
                    outbox.push(name, element, token, clear=push.clear, ttl=ttl, urgent=True)
                    continue
                rests = peer.rests_out if push.is_rest else None  # before the codec: see `follow`
                name, encode = peer.to_list(push.tag)
                sealed_for = rests or name
                if push.again:
                    again.append((push.tag, name))
                size = push.message_bytes or len(push.body)
                limit = self.element_size.limit
                splits = limit is not None and len(push.body) > limit
                if push.again and not splits:
                    encode = partial(_encode_again, push.frame.seq, encode)
                if rests and not (push.again or splits):
                    name = rests
                if outbox.is_behind and len(push.body) >= LARGE and limit is None:
                    # Earlier chunks fill the line: seal and write this one when they are through.
                    later = partial(encode, sealed_for, push.frame, push.body)
                    outbox.push_later(name, later, size, token, clear=push.clear)
                    continue
                element = encode(sealed_for, push.frame, push.body)
                if limit is not None and splits:
                    # Its number is used up: it must not be sealed again in smaller frames.
                    *first, last = split_element(element, push.frame.seq, limit)
                    for at, fragment in enumerate(first):
                        outbox.push(name, fragment, clear=push.clear and not at, size=size)
                    outbox.push(name, last, token, size=size)
                else:
                    outbox.push(name, element, token, clear=push.clear, size=size)
            if again:
                self._remove_acked(peer, again)
        except EndpointClosed:
            return  # a late ack, while another thread closes
        if self.outbox.error is not None:
            self.mend_outbox()

    def _remove_acked(self, peer: Peer, pushed: list[tuple[str, bytes]]) -> None:
        """Remove lists onto which this thread has pushed again what was acked before it could.

        Args:
            peer: the peer.
            pushed: the tags of the lists, and their names.
        """
        with self.lock:
            kept = set(peer.delivery.unacked_tags())
        for tag, name in pushed:
            if tag not in kept:
                self.outbox.delete(name)

    def cuts_fine(self, now: float) -> bool:
        """Return whether large messages are cut finer now, as small ones had to wait for them."""
        return now - self.outbox.small_waited_at < _FINE_SECONDS

    # -- failure -----------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise the error that ended this endpoint, if one did."""
        if isinstance(self.failure, UsedAfterFork):
            raise self.failure.afresh()
        if self.closing:
            raise EndpointClosed(
                f"{self.party}: the endpoint is closed: open a new one with redislink.connect()"
            )
        if self.failure is not None:
            raise self.failure.afresh()

    def fail(self, failure: RedisLinkError) -> None:
        """End every call on this endpoint, present and future, with this error."""
        with self.lock:
            is_first = self.failure is None and not self.closing
            if is_first:
                self.failure = failure
            self.wake_all()
        if is_first:
            text = "%s: the session has failed: %s"
            self.log.error(text, self.party, failure, extra={"failure": str(failure)})

    def wake_all(self) -> None:
        """Wake every blocked call, so that it sees what has changed."""
        self.check_locked()
        for wait in self.inbox.waits():
            wait.interrupt()
        self.changed.notify_all()

    def trouble(self, peer: Peer) -> str:
        """Say what delays messages to and from a peer; see `Endpoint.trouble`."""
        if away := self.outage.describe():
            return away
        with self.talk(peer) as delivery:
            return delivery.describe_silence(time.monotonic())

    def check_locked(self) -> None:
        """Assert that this thread holds the lock; helpers that need it call this."""
        assert self.lock._is_owned(), "the lock of the core is not held"  # type: ignore[attr-defined]  # noqa: S101

    def check_peers(self) -> None:
        """End the session if one of its conversations has failed."""
        with self.lock:
            failures = (peer.delivery.failure for peer in self.peers.values())
            failure = next((error for error in failures if error is not None), None)
        if failure is not None and self.failure is None:
            self.fail(failure)

    def give_up_or_pause(self, error: BrokerError, way: Way) -> float:
        """Return the seconds to pause before the next try.

        Raises:
            BrokerError: there will be no next try; the session has failed.
        """
        try:
            return self.outage.failed(error, way)
        except BrokerError as final:
            self.fail(final)
            raise

    @property
    def home_refusal(self) -> BrokerBusy | None:
        """Why a Cluster's node does not accept pushes into this party's inbox, as far as known."""
        return None if self.home is None else self.home.refusal

    @property
    def refusal(self) -> BrokerBusy | None:
        """Why the broker does not accept pushes, as far as this party knows; None if it does."""
        return self.outbox.refusal or self.home_refusal

    def check_pushes(self) -> None:
        """Note whether the broker accepts pushes. The control thread calls this all the time.

        Raises:
            BrokerError: it has refused them for too long; the session has failed.
        """
        refusal = self.refusal
        if refusal is not None:
            self.give_up_or_pause(refusal, Way.PUSH)
        elif self.outage.lasts and self.outbox.error is None:
            self.outage.ended(Way.PUSH)

    def tell_of_broker(self, say: Callable[[Sequence[tuple[Peer, Frame]]], None]) -> None:
        """Tell the peers if a failure at the broker has ended the session.

        The program may notice the failure much later. And the outbox may be lost while the broker
        still lets us in: it may refuse only what we push to one peer, or only new connections.

        Args:
            say: tells peers something in another way than through the outbox.
        """
        failure = self.failure
        if not isinstance(failure, BrokerError):
            return
        reason, retryable = reason_for_peers(failure), may_pass(failure)
        self.tell_all(lambda delivery: delivery.abort(reason, retryable=retryable))
        if self.outbox.error is None:
            return
        words = tuple(self.last_words)
        say([(peer, push.frame) for peer, push in words if type(push.frame) is Abort])
        if isinstance(failure, BrokerUnreachable):
            return
        by_node: dict[bytes, list[tuple[bytes, tuple[bytes, Buffer]]]] = defaultdict(list)
        for peer, push in words:
            name = peer.control_out
            node = list_names.inbox_of(name) if self.broker.is_cluster else b""
            by_node[node].append((name, peer.codec.encode_parts(name, push.frame, push.body)))
        for elements in by_node.values():
            push_afresh(self.broker.at(elements[0][0]), elements, _CONTROL_TTL)

    # -- blaming the peer or the broker for a frame ------------------------------------------

    def blame(self, peer: Peer, error: FrameError) -> None:
        """Blame an element that does not open, or is illegal, on the peer or the broker.

        Call it without the lock.
        """
        if isinstance(error, IllegalFrameError):
            self.blame_peer(peer, error)
        elif not isinstance(error, StaleError):
            self.blame_broker(peer, error)

    def blame_peer(self, peer: Peer, error: FrameError) -> None:
        """Fail the conversation: the peer sent a frame that the protocol forbids, there or always.

        Such a frame did open, so only the peer can have sent it, unless the session is unsealed.
        """
        if self.cluster.security != "sealed":  # anybody may have sent it
            self.blame_broker(peer, error)
            return
        with self.talk(peer) as delivery:
            delivery.broke_rules(str(error))
        self.check_peers()

    def blame_broker(self, peer: Peer, error: FrameError) -> None:
        """Count an element that did not come from the peer. It is treated as never received."""
        with self.lock:
            self._not_opened += 1
            count = self._not_opened
        if is_power_of_two(count):  # there may be any number
            self.log.warning(
                "%s: ignored an element from %s: %s (%d so far, from all parties)",
                self.party,
                peer.name,
                error,
                count,
                extra={"peer": peer.name},
            )
        if count >= self.settings.tamper_limit and self.cluster.security == "sealed":
            self.fail(
                BrokerTampered(
                    f"{self.party}: {count} frames did not open, the last from {peer.name} "
                    f"({error}): something between the parties changes messages, or {peer.name} "
                    "itself sends such frames; check the broker and who has access to it"
                )
            )

    # -- mending -----------------------------------------------------------------------------

    def mend_outbox(self) -> None:
        """Start the thread that reconnects the outbox, unless it is already running."""
        with self.lock:
            if self._mending or self.stopped.is_set():
                return
            self._mending = True
        threading.Thread(
            target=self._run_mending, name=f"redislink-mend-{self.party}", daemon=True
        ).start()

    def _run_mending(self) -> None:
        try:
            broke = error = self.outbox.error
            while broke is not None and error is not None and not self.stopped.is_set():
                try:
                    self.stopped.wait(self.give_up_or_pause(error, Way.PUSH))
                    self.outbox.reconnect()
                    self.check_pushes()
                except BrokerError as again:
                    if self.failure is not None:
                        return
                    self.log.debug("%s: not reconnected yet: %s", self.party, again)
                    if not again.retryable:
                        self.fail(again)
                        return
                    error = again  # the first one need not be why it lasts
                    continue
                self._reconnected(broke)
                broke = error = self.outbox.error
        except EndpointClosed:
            return
        finally:
            with self.lock:
                self._mending = False

    def _reconnected(self, broke: BrokerError) -> None:
        """Push everything again on the new connection; ``broke``: why the last one broke."""
        self.log.info("%s: reconnected to broker %s", self.party, self.broker.label)
        size, now = self.element_size, time.monotonic()
        with self.lock:
            self.reconnects += 1
            largest = max(peer.delivery.largest_unanswered for peer in self.peers.values())
            # A broker that says why it will not serve us does not mind the size; nor does one that
            # has not even hung up.
            may_be_size = broke.refusal in ("", PROTOCOL_ERROR.called) and not broke.is_silent
            breaks_at_size = may_be_size and size.broke(largest, now)
            is_hopeless = may_be_size and not breaks_at_size and size.is_hopeless(now)
        if breaks_at_size:
            self.cut_finer()
        elif is_hopeless:
            self.fail(
                BrokerRefused(
                    f"{self.party}: the broker {self.broker.label} closes the connection at every "
                    f"push of {size.suspected} bytes, and messages cannot be cut finer than "
                    f"{LEAST}: raise its client-query-buffer-limit, proto-max-bulk-len or "
                    "maxmemory-clients, or read its log"
                )
            )
            return

        def push_again(delivery: Delivery) -> None:
            delivery.reconnected(time.monotonic())
            delivery.tick(time.monotonic())

        self.tell_all(push_again)
        with self.changed:
            self.changed.notify_all()
        self.rendezvous.reconnected()

    def cut_finer(self) -> None:
        """Split messages into smaller elements: the broker does not accept larger ones."""
        size = self.element_size
        with self.lock:
            for peer in self.peers.values():
                peer.delivery.cut_finer(size.limit or LEAST)
            is_first, self._said_cut_finer = not self._said_cut_finer, True
        if is_first:
            self.log.warning(
                "%s: the broker %s closes the connection at elements of %d bytes, so they are cut "
                "smaller from now on: raise its client-query-buffer-limit, proto-max-bulk-len or "
                "maxmemory-clients, or lower REDISLINK_CHUNK_BYTES",
                self.party,
                self.broker.label,
                size.suspected,
            )

    # -- forks -------------------------------------------------------------------------------

    def die_in_child(self) -> None:
        """In a forked child: every call raises `UsedAfterFork`, and leaving does nothing."""
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.closing = True
        self.stopped = threading.Event()
        self.stopped.set()
        self.failure = used_after_fork(
            f"{self.party}: the endpoint of session {self.cluster.session!r}"
        )
        dead: Any = Dead(self.failure)
        for peer in self.peers.values():
            peer.codec.forget_keys(dead)
            peer.codec = peer.delivery = peer.kept = peer.lanes = peer.rests = dead
        self.outbox = self.inbox = self.rendezvous = dead


def _encode_again(
    number: int, encode: Encode, name: bytes, frame: Frame, body: bytes | memoryview
) -> tuple[bytes, bytes]:
    return pushed_again(encode(name, frame, body), number)


def frame_cost(uplink: float) -> int:
    """Return how many bytes the line would carry in the time that one more element takes.

    Args:
        uplink: bytes a second to the broker; infinity if that is not known.
    """
    rate = uplink if uplink < float("inf") else _USUAL_UPLINK
    return int(_FRAME_BYTES + _FRAME_SECONDS * rate)


def largest_chunk(round_trip: float, settings: RedisLinkSettings) -> int:
    """Return the most bytes of a message in one list element.

    Args:
        round_trip: seconds to the broker and back.
        settings: the party's.
    """
    most = _MOST_FAR
    if round_trip < NEAR:
        most = max(most, min(_MOST_NEAR, settings.window_bytes // _LEAST_IN_WINDOW))
    return min(most, settings.chunk_bytes)


def _least_chunk_bytes(round_trip: float, chunk_bytes: int) -> int:
    """Return the smallest chunk size, for `Timing`.

    Args:
        round_trip: seconds to the broker and back.
        chunk_bytes: the largest chunk that the settings allow.
    """
    return chunk_bytes if round_trip < NEAR else min(_LEAST_CHUNK, chunk_bytes)
