"""What receives: BLPOPs in the caller's thread, and what they bring handed to the deliveries.

Rules:
- A receive first sets the purpose of its wait, then checks that the session goes on: whoever ends
  the session does the two in the other order, so that no receive is missed.
- What is popped goes to delivery, whoever popped it; a message is taken from there.
- The lock is taken by hand where every message passes, which costs half as much as ``with``.
"""

from __future__ import annotations

import time
from typing import Final, NoReturn

from redislink.broker.inbox import Interrupted, Wait
from redislink.broker.wire import Buffer
from redislink.errors import BrokerError, FrameError, PeerError, RecvCancelled, RecvTimeout
from redislink.protocol import list_names
from redislink.protocol.frame import Encoding, is_fragment
from redislink.transport.core import Core
from redislink.transport.lanes import Lane
from redislink.transport.peer import Party, Peer

Message = tuple[bytes, Encoding]
_LANE_PATIENCE: Final = 0.02
"""Seconds that a receive waits for the lane that another thread reads."""
_FIRST_PROBE: Final = 0.15
"""Seconds that a receive waits before it asks the peer for the first time: what a loss costs."""


class Receiving:
    """Receives for one endpoint.

    Attributes:
        core: of the endpoint.
    """

    def __init__(self, core: Core) -> None:
        """Not for users."""
        self.core = core
        self._blpop_slice = core.blpop_slice
        self._first_slice = min(_FIRST_PROBE, core.blpop_slice)

    def recv(self, src: Party, tag: str, timeout: float | None = None) -> Message:
        """The next message, as `Endpoint.recv`, and how it travelled.

        Args:
            src, tag, timeout: as for `Endpoint.recv`.
        """
        core = self.core
        peer = core.peer(src)
        name = peer.in_prefix + list_names.encode_tag(tag)
        limit = core.settings.recv_timeout if timeout is None else timeout
        delivery, lanes, started = peer.delivery, peer.lanes, time.monotonic()
        if lanes.depth and (lane := lanes.lane_of(tag)) is not None:
            foreseen = self._recv_foreseen(peer, lane, tag, started, limit)
            if foreseen is not None:
                if len(lane.posted) <= lanes.few:
                    lanes.go_on(lane)
                return foreseen
        slice_, probed = self._first_slice, False
        missing, size = 0, 0  # chunks of the message, and bytes of one, once one has come
        wait = core.inbox.acquire()
        wait.give_up = started + limit
        wait.purpose = (peer.name, tag, started)
        try:
            if core.closing or core.failure is not None:
                core.check_usable()
            message = None
            if tag in peer.kept:
                with core.talk(peer):
                    message = delivery.take(tag)
                    if not core.broker.in_process:
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
                    pause = core.give_up_or_pause(error)
                    self._ask_for(peer, tag, wait)
                    with core.changed:
                        core.changed.wait(min(pause, left))
                        core.check_usable()
                else:
                    if core.outage.lasts:
                        core.outage.ended()
                    if element is not None:
                        message = self._receive(peer, tag, name, element, wait)
                if message is None:
                    now = time.monotonic()
                    left = started + limit - now
                    with core.talk(peer):
                        if element is None:
                            self.register(wait)
                            if not probed and now - started >= _FIRST_PROBE:
                                slice_, probed = self._blpop_slice, True
                                delivery.probe_soon(tag, now)
                                delivery.tick(now)
                        elif not core.broker.in_process:
                            missing, size = delivery.missing(tag)
                        message = delivery.take(tag)
                        if message is None:
                            core.check_usable()
                            if element is None:
                                delivery.check_can_receive(tag, now)
            if lanes.depth:
                lanes.foresee(tag)
            return message
        finally:
            if missing:
                wait.end_many()
            wait.purpose = None  # before the check: see `register`
            if wait.registered:
                self._unregister(wait, peer, tag)
            core.inbox.release(wait)

    def peek(self, src: Party, tag: str) -> Message | None:
        """What `recv` would return, without taking it; None if there is none yet.

        Args:
            src, tag: as for `Endpoint.recv`.
        """
        core = self.core
        peer = core.peer(src)
        name = peer.in_list(tag)
        give_up = time.monotonic() + core.settings.reply_timeout
        while True:
            with core.talk(peer) as delivery:
                core.check_usable()
                message = delivery.peek(tag)
            if message is not None:
                return message
            wait = core.inbox.acquire()
            try:
                element = wait.pop_now(name)
                core.outage.ended()
            except BrokerError as error:
                core.stopped.wait(core.give_up_or_pause(error))
                continue
            finally:
                core.inbox.release(wait)
            if element is None:
                return None
            self._receive(peer, tag, name, element, None)
            with core.talk(peer) as delivery:
                complete = delivery.peek(tag) is not None
            if not complete and time.monotonic() > give_up:
                return None  # the broker may give the same again, for ever

    def cancel(self, src: Party, tag_prefix: str) -> None:
        """End every blocked `recv` from ``src`` whose tag begins so, with RecvCancelled."""
        core = self.core
        peer = core.peer(src)
        with core.lock:
            for wait in core.inbox.waits():
                name, tag, _ = wait.purpose or ("", "", 0.0)
                if name == peer.name and tag.startswith(tag_prefix):
                    wait.cancelled = True
                    wait.interrupt()
            core.changed.notify_all()

    def register(self, wait: Wait) -> None:
        """From now on the peer is probed for what this receive waits for; needs the lock.

        The control thread calls it for receives of other threads, which may end meanwhile.
        """
        self.core.check_locked()
        purpose = wait.purpose
        if purpose is None or wait.registered:
            return
        name, tag, since = purpose
        delivery = self.core.peers[name].delivery
        delivery.wait(tag, since)
        wait.registered = True
        if wait.purpose is not purpose:  # it ended, perhaps without having seen that
            wait.registered = False
            delivery.unwait(tag)

    # -- inner workings ----------------------------------------------------------------------

    def _recv_foreseen(
        self, peer: Peer, lane: Lane, tag: str, started: float, limit: float
    ) -> Message | None:
        """The message from the lane on which its BLPOP is under way; None if it is not there."""
        core, lanes = self.core, peer.lanes
        delivery, message = peer.delivery, None
        if not lane.lock.acquire(blocking=False) and not lane.lock.acquire(
            timeout=min(_LANE_PATIENCE, max(0.0, limit))
        ):
            return None  # another thread waits for a tag before this one, which may be long
        wait = lane.wait
        try:
            wait.give_up = started + limit
            wait.purpose = (peer.name, tag, started)
            if core.closing or core.failure is not None:
                core.check_usable()
            if tag in peer.kept:
                with core.talk(peer):
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
                with core.talk(peer):
                    core.check_usable()
                    message = delivery.take(tag)
        except Interrupted:
            self._check_interrupted(peer, tag, wait)
        except BrokerError as error:
            if not error.retryable:
                core.give_up_or_pause(error)
            self._ask_for(peer, tag, wait)  # the plain way comes next, and tries the broker again
        finally:
            wait.purpose = None  # before the check: see `register`
            if wait.registered:
                self._unregister(wait, peer, tag)
            lane.lock.release()
        return message

    def _receive(
        self, peer: Peer, tag: str, name: bytes, element: Buffer, wait: Wait | None
    ) -> Message | None:
        """Take in what was popped off the list of a tag.

        Args:
            peer, tag, name: whose list it is, of which tag, and its name.
            element: what was popped.
            wait: of the receive that wants the next message of this tag; None if none does.

        Returns:
            That message, if it is here now.
        """
        core = self.core
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
            core.blame(peer, error)
            return None
        illegal: FrameError | None = None
        failed: PeerError | None = None
        core.lock.acquire()
        try:
            now = time.monotonic()
            try:
                if whole is not None:
                    message = delivery.receive_whole(tag, whole, now)
                else:
                    take = wait is not None
                    message = delivery.receive_data(tag, frame, body, now, take=take)
            except FrameError as error:
                illegal = error
            except PeerError as error:
                failed = error
            if core.sleepers:
                core.changed.notify_all()
            if tag in peer.kept and delivery.peek(tag) is not None:
                self._wake_another(peer, tag, wait)
            pushes = delivery.pushes() if delivery.unpushed else None
        finally:
            core.lock.release()
        if pushes:
            core.push(peer, pushes)
        if illegal is not None:
            core.blame_peer(peer, illegal)
        if failed is not None:
            core.fail(failed)
        return message

    def _join(self, peer: Peer, tag: str, name: bytes, element: Buffer) -> bytes | None:
        """The element that a fragment completes; None if more are to come.

        Raises:
            FrameError: it is no fragment.
        """
        with self.core.talk(peer) as delivery:
            joined = peer.fragments.add_untrusted(name, element)
            if joined is None:
                delivery.came_in_part(tag, time.monotonic())
            return joined

    def _wake_another(self, peer: Peer, tag: str, mine: Wait | None) -> None:
        """A message of this tag is here: let another receive that waits for it look."""
        for wait in self.core.inbox.waits():
            purpose = wait.purpose
            if wait is not mine and purpose is not None and purpose[:2] == (peer.name, tag):
                wait.interrupt()
                return

    def _unregister(self, wait: Wait, peer: Peer, tag: str) -> None:
        with self.core.talk(peer) as delivery:
            if wait.registered:
                wait.registered = False
                delivery.unwait(tag)

    def _ask_for(self, peer: Peer, tag: str, wait: Wait) -> None:
        """What a broken connection may have popped is lost: probe for it at once."""
        now = time.monotonic()
        with self.core.talk(peer) as delivery:
            self.register(wait)
            delivery.probe_soon(tag, now)
            delivery.tick(now)

    def _check_interrupted(self, peer: Peer, tag: str, wait: Wait) -> None:
        """A pop was interrupted: raises, unless who had the connection before was meant."""
        if wait.cancelled:
            raise RecvCancelled(
                f"{self.core.party}: the receive of tag {tag!r:.120} from {peer.name} was "
                "cancelled: the link that it belongs to was aborted"
            ) from None
        with self.core.lock:
            self.core.check_usable()

    def _raise_timeout(self, peer: Peer, tag: str, limit: float) -> NoReturn:
        core = self.core
        waited = f"{core.party}: waited {limit:g} s for tag {tag!r:.120} from {peer.name}"
        if away := core.outage.describe():
            raise RecvTimeout(
                f"{waited}; {away}: check the broker and the line to it, not {peer.name}, or allow "
                "more time (REDISLINK_RECV_TIMEOUT)"
            )
        with core.talk(peer) as delivery:
            said = delivery.describe_wait(tag, time.monotonic())
        raise RecvTimeout(
            f"{waited}; {said}: "
            f"check that {peer.name} sends it, or allow more time (REDISLINK_RECV_TIMEOUT)"
        )


def blocked_on(core: Core) -> list[tuple[str, str, float]]:
    """What receives of any thread wait for now: peer, tag, and since when (monotonic seconds)."""
    # Of another thread's waits: each may end between two looks at it.
    purposes = (wait.purpose for wait in core.inbox.waits())
    return [purpose for purpose in purposes if purpose is not None]
