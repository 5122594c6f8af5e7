"""The control thread: receives acks, probes, heartbeats, aborts and hellos, and runs the timers.

Without this thread nothing recovers from a loss, so if it ends early, so does the session.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, cast

from redislink.broker import Broker
from redislink.broker.inbox import Interrupted
from redislink.broker.outage import Way
from redislink.broker.wire import Buffer
from redislink.errors import (
    BrokerError,
    BrokerUnreachable,
    ClusterMismatch,
    EndpointClosed,
    FrameError,
    RedisLinkError,
    SealError,
)
from redislink.logs import PartyLogger
from redislink.protocol.delivery import Delivery, Push
from redislink.protocol.frame import Frame
from redislink.protocol.states import State
from redislink.transport.core import UNREAD_CONTROL_WAIT, Core
from redislink.transport.lines import Lines
from redislink.transport.peer import Peer
from redislink.transport.receiving import Receiving

_LONGEST_CONTROL_WAIT: Final = 0.5
"""Seconds in which a receive is noticed whose own connection is dead."""
_SHORTEST_CONTROL_WAIT: Final = 0.02
_COMPLAINT_INTERVAL: Final = 1.0
"""Seconds between two notes of an outage while the control connection is silent."""
_HEARD: Final = frozenset({State.OPEN, State.CLOSING, State.PEER_CLOSED})
_REPORT_INTERVAL: Final = 10.0
"""Seconds between two log lines about a silent peer."""


class Control:
    """The control thread of one endpoint. `start` it once, then `stop` it."""

    def __init__(
        self,
        core: Core,
        receiving: Receiving,
        round_trip: float,
        distrust_claim: Callable[[], None],
        say: Callable[[Sequence[tuple[Peer, Frame]]], None],
    ) -> None:
        """Not for users.

        Args:
            core: the endpoint's core.
            receiving: the receives; this thread registers their waits, and ends overdue ones.
            round_trip: seconds to the broker and back.
            distrust_claim: called when the claim's connection may be dead.
            say: tells peers something in another way than through the outbox.
        """
        self._core = core
        self._receiving = receiving
        self._distrust_claim = distrust_claim
        self._say = say
        self._lines = Lines(core, round_trip, self._leave_lines)
        self._progress = PartyLogger(core.cluster.session, core.party, "redislink.progress")
        self._silence_reports: dict[str, float] = {}
        """Silent peers that the log already mentions, and when to mention each again."""
        self._next_silence_look = 0.0
        self._next_complaint = 0.0
        self._wait = core.inbox.acquire()
        self._thread = threading.Thread(
            target=self._run, name=f"redislink-control-{core.party}", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End the thread. Call it once `Core.stopped` is set.

        Args:
            seconds: the longest time to wait for the thread.
        """
        self._wait.interrupt()
        self._thread.join(seconds)
        self._wait.disconnect()

    def _run(self) -> None:
        try:
            self._serve()
            self._core.tell_of_broker(self._say)
        except RedisLinkError as error:
            self._core.fail(error)
        except Exception as error:
            self._core.log.exception("%s: the control thread broke", self._core.party)
            self._core.fail(
                RedisLinkError(
                    f"{self._core.party}: internal error, {type(error).__name__} in the control "
                    "thread: please report it, with the log"
                )
            )

    def _serve(self) -> None:
        core = self._core
        sources: dict[bytes, tuple[Peer, Callable[[Peer, Buffer], None]]] = {
            peer.control_in: (peer, self._take_control) for peer in core.peers.values()
        }
        for name, party in core.rendezvous.lists.items():
            sources[name] = core.peers[party], self.take_hello
        names = list(sources)
        late = None if core.broker.in_process else self  # nothing goes silent there
        while not core.stopped.is_set() and not isinstance(core.failure, BrokerError):
            try:
                pause = self._serve_timers()
                names = [*names[1:], names[0]]  # so that a busy first list starves no other
                popped = self._wait.pop(names, core.broker.blpop_slice(pause), late)
                core.outage.ended(Way.POP)
            except Interrupted:
                if core.stopped.is_set():
                    return
                continue
            except EndpointClosed:
                return
            except BrokerError as error:
                if core.failure is not None:
                    return
                try:
                    core.stopped.wait(core.give_up_or_pause(error, Way.POP))
                except BrokerError:
                    return
                core.tell_all(lambda delivery: delivery.not_listening(time.monotonic()))
                continue
            now = time.monotonic()
            if popped is not None and core.home is not None:
                core.home.refusal = None  # what comes was accepted
            # A broker that refuses what this party tells one peer refuses what another tells it.
            silence_counts = core.refusal is None
            with core.lock:
                for peer in core.peers.values():
                    if silence_counts:
                        peer.delivery.listened(now)
                    else:
                        peer.delivery.not_listening(now)
            self._report_silence(now)
            if popped is not None:
                peer, take = sources[popped[0]]
                take(peer, popped[1])
            core.check_peers()

    def _serve_timers(self) -> float:
        """Do what is due, and return how many seconds the control thread may wait.

        Raises:
            BrokerError: the broker has refused pushes for too long; the session has failed.
        """
        core = self._core
        busy = self._collect()
        core.check_pushes()
        self._lines.check_outbox()
        if core.outbox.error is not None:
            core.mend_outbox()
        busy = busy or core.outbox.has_unread
        pause = UNREAD_CONTROL_WAIT if busy else _LONGEST_CONTROL_WAIT
        return max(_SHORTEST_CONTROL_WAIT, min(pause, self.look()))

    def look(self) -> float:
        """Look after receives that wait, and run the timers.

        Returns:
            The seconds until the next timer is due.
        """
        core, now, pause = self._core, time.monotonic(), _LONGEST_CONTROL_WAIT
        for wait in core.inbox.waits():
            purpose = wait.purpose
            if purpose is None:
                continue
            left = purpose[2] + core.first_ask - now
            if left > 0:
                pause = min(pause, left)
            else:
                with core.lock:
                    self._receiving.register(wait)
                if now > wait.give_up + wait.margin:
                    wait.interrupt()  # the reply drips in too slowly: its timeout still holds
        for peer in core.peers.values():
            overdue: list[str] = []
            with core.talk(peer) as delivery:
                due = delivery.next_timeout()
                if due is not None and due <= now:
                    delivery.tick(now)
                    overdue = delivery.overdue(now)
                    due = delivery.next_timeout()
            if overdue:
                self._check_lines(peer, overdue)
            if due is not None:
                pause = min(pause, due - now)
        return pause

    def _check_lines(self, peer: Peer, tags: list[str]) -> None:
        """Look at the connections that should have brought messages.

        Where nothing at all has come, the peer pushes the message again; if that does not help, or
        another connection has just died, the connection is left.

        Args:
            peer: the party that sent it.
            tags: the tags of messages that are overdue.
        """
        core, now = self._core, time.monotonic()
        moved: dict[str, bool] = {}  # several receives may wait for one tag
        for wait in core.inbox.waits():
            purpose = wait.purpose
            if purpose is not None and purpose[0] == peer.name and purpose[1] in tags:
                moved[purpose[1]] = wait.has_moved() or moved.get(purpose[1], False)
        can_leave = not core.broker.in_process  # there, no connection can go silent
        silent, lost_one_lately = False, self._lines.lost_one_lately
        with core.talk(peer) as delivery:
            for tag, has_moved in moved.items():
                if has_moved:
                    delivery.came_in_part(tag, now)
                elif lost_one_lately or delivery.missed_in_vain(tag, now, can_leave=can_leave):
                    silent = True
        if silent and can_leave:
            self._receiving.read_anew(peer)

    # -- while the control connection is silent: see `redislink.broker.inbox.Late` ---------------

    @property
    def patience(self) -> float:
        """The seconds that a reply may be late before `is_dead` is asked."""
        return self._lines.patience

    def is_dead(self, broker: Broker, silent_since: float) -> bool:
        """As `Lines.is_dead`; meanwhile do what is due, and watch the outbox.

        Where no other connection is answered either, the way is slow or closed: then this one is
        as good as any, and kept.

        Raises:
            BrokerError: the broker has been away for too long; the session has failed.
        """
        core = self._core
        self._serve_timers()
        if self._lines.is_dead(broker, silent_since):
            return True
        now = time.monotonic()
        if now - silent_since > self._wait.margin and now >= self._next_complaint:
            self._next_complaint = now + _COMPLAINT_INTERVAL
            silence = f"it has not answered a BLPOP for {now - silent_since:.0f} s"
            core.give_up_or_pause(
                BrokerUnreachable(
                    f"broker {broker.label}: {silence}: check that it runs, and the line to it"
                ),
                Way.POP,
            )
            core.tell_all(lambda delivery: delivery.not_listening(now))
        return False

    def _leave_lines(self) -> None:
        """One connection is dead: use others instead of those that can be done without.

        What the control connection has just popped is lost, and will be repeated.
        """
        self._core.inbox.reopen_idle()
        self._distrust_claim()
        self._wait.interrupt()

    def _collect(self) -> bool:
        """Pass the broker's answers to our pushes on to the deliveries.

        Returns:
            True if there were any answers.
        """
        core = self._core
        answered = core.outbox.collect()
        if not answered:
            return False
        now, size = time.monotonic(), core.element_size
        with core.lock:
            for token, taken in cast("list[tuple[tuple[Delivery, Push], bool]]", answered):
                delivery, push = token
                if taken:
                    delivery.confirm(push, now)
                    if size.suspected:
                        size.answered(len(push.body))
                else:
                    delivery.refused(push, now)
        return True

    def _take_control(self, peer: Peer, element: Buffer) -> None:
        core = self._core
        self._collect()  # so that no probe finds unconfirmed what the broker has
        try:
            frame, _ = peer.codec.decode_untrusted(peer.control_in, element)
        except FrameError as error:
            core.blame(peer, error)
            return
        illegal: FrameError | None = None
        with core.talk(peer) as delivery:
            try:
                # A full line lets control frames overtake messages.
                in_order = not core.outbox.is_behind
                delivery.receive_control(frame, time.monotonic(), in_order=in_order)
            except FrameError as error:
                illegal = error
            leaves_lines = peer.follow()
            often_lost, delivery.often_lost = delivery.often_lost, 0
            breaks_at_size = bool(often_lost) and core.element_size.lost(often_lost)
            core.changed.notify_all()
        if leaves_lines:
            self._receiving.leave_lines(peer)
        if breaks_at_size:
            core.cut_finer()
        if illegal is not None:
            core.blame_peer(peer, illegal)

    def take_hello(self, peer: Peer, element: Buffer) -> None:
        """Process an element from a peer's hello list."""
        core, rendezvous = self._core, self._core.rendezvous
        before = rendezvous.handshake.not_opened
        with contextlib.suppress(ClusterMismatch, EndpointClosed):
            rendezvous.receive(peer.name, element)
        if rendezvous.handshake.not_opened > before:
            core.blame_broker(peer, SealError("a hello that does not open"))
        if rendezvous.handshake.has_restarted(peer.name):
            with core.talk(peer) as delivery:
                delivery.restarted()
        if core.outbox.error is not None:
            core.mend_outbox()

    def _report_silence(self, now: float) -> None:
        """Log which peers are silent, repeatedly, and when they are heard again."""
        core = self._core
        if now < self._next_silence_look:
            return
        self._next_silence_look = now + _LONGEST_CONTROL_WAIT
        with core.lock:
            silent = {
                n: (p.delivery.describe_silence(now), p.delivery.state)
                for n, p in core.peers.items()
            }
        for name, (said, state) in silent.items():
            due = self._silence_reports.get(name)
            if said and (due is None or now >= due):
                self._silence_reports[name] = now + _REPORT_INTERVAL
                self._progress.info("%s: %s", core.party, said)
            elif not said and due is not None:
                del self._silence_reports[name]
                if state is not State.FAILED:  # the error says what became of it
                    what = "is heard again" if state in _HEARD else "has left"
                    self._progress.info("%s: %s %s", core.party, name, what)
