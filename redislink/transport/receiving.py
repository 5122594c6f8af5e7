"""Receives messages: runs BLPOPs in the caller's thread, and hands elements to the deliveries.

Rules:
- A receive first sets the purpose of its wait, then checks that the session is still alive. A
  thread that ends the session first says so, then looks at the waits. So no receive is missed.
- Every popped element goes to its delivery, whichever thread popped it. Receives take their
  messages from there.
- Where every message passes, the lock is taken by hand, at half the cost of ``with``.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final, NoReturn

from redislink.broker.inbox import Interrupted, Wait
from redislink.broker.outage import Way
from redislink.broker.wire import Buffer
from redislink.errors import BrokerError, FrameError, PeerError, RecvCancelled, RecvTimeout
from redislink.protocol import list_names
from redislink.protocol.chunking import NOTHING
from redislink.protocol.frame import Data, Encoding, is_fragment, is_rest
from redislink.transport.core import Core
from redislink.transport.lanes import Lane
from redislink.transport.peer import Party, Peer

Message = tuple[bytes, Encoding]
_LANE_PATIENCE: Final = 0.02
"""Seconds that a receive waits for a lane, or for rests, while another thread reads them."""
_TURN: Final = 0.1
"""Seconds for which a receive looks at its tag's list while the rest of its message is late."""


class Receiving:
    """Receives for one endpoint.

    Attributes:
        core: the endpoint's core.
    """

    def __init__(self, core: Core) -> None:
        """Not for users."""
        self.core = core
        self._blpop_slice = core.blpop_slice
        # Short, because what ends many a receive, like a peer's farewell, comes soon or not at all.
        self._first_slice = min(core.first_ask, core.blpop_slice)

    def recv(self, src: Party, tag: str, timeout: float | None = None) -> Message:
        """Return the next message, as `Endpoint.recv` does, and its encoding.

        Args:
            src, tag, timeout: as for `Endpoint.recv`.
        """
        core = self.core
        peer = core.peer(src)
        limit = core.settings.recv_timeout if timeout is None else timeout
        delivery, lanes, started = peer.delivery, peer.lanes, time.monotonic()
        left = limit
        if lanes.depth and type(tag) is str and (lane := lanes.lane_of(tag)) is not None:
            if len(lane.posted) <= lanes.few:
                lanes.go_on(lane)  # before the wait: after it, the caller would wait for that too
            foreseen = self._recv_foreseen(peer, lane, tag, started, limit)
            if not lane.posted:
                lanes.go_on(lane)
            if foreseen is not None:
                return foreseen
            left = started + limit - time.monotonic()
        name = peer.in_prefix + list_names.encode_tag(tag)  # checks the tag too
        slice_ = self._first_slice
        missing = NOTHING
        reads_rests, progress = True, 0.0
        wait = core.inbox.acquire()
        wait.give_up = started + limit
        wait.purpose = (peer.name, tag, started)
        try:
            if core.closing or core.failure is not None:
                core.check_usable()
            message = None
            if tag in peer.kept:
                with core.talk(peer):
                    message = self._take(peer, tag, wait)
                    if not core.broker.in_process:
                        missing, progress = delivery.missing(tag), started
            while message is None:
                if left < slice_:
                    if left <= 0:
                        self._raise_timeout(peer, tag, limit)
                    slice_ = max(0.001, left)
                element, came = None, False
                try:
                    if missing.apart and reads_rests:
                        came = self._read_rests(peer, tag, min(slice_, self._first_slice), wait)
                    elif missing.chunks and not missing.apart:
                        element = wait.pop_of_many(name, slice_, missing.chunks, missing.size)
                    else:
                        element = wait.pop_one(name, slice_)
                except Interrupted:
                    self._check_interrupted(peer, tag, wait)
                except BrokerError as error:
                    is_away = core.outage.lasts
                    pause = core.give_up_or_pause(error, Way.POP)
                    is_dead = error.is_silent and not is_away
                    self._ask_for(peer, tag, wait, is_dead=is_dead, popped=wait.may_have_popped)
                    with core.changed:
                        core.changed.wait(min(pause, left))
                        core.check_usable()
                else:
                    if core.outage.lasts:
                        core.outage.ended(Way.POP)
                    if element is not None:
                        came = True
                        message = self._receive(peer, tag, name, element, wait)
                if message is None:
                    now = time.monotonic()
                    left = started + limit - now
                    name = peer.in_list(tag)
                    with core.talk(peer):
                        if not came:
                            slice_ = _TURN if missing.apart else self._blpop_slice
                            self.register(wait)
                            wait.has_moved()  # an empty reply does not show that more comes
                        elif not core.broker.in_process:
                            before, missing = missing, delivery.missing(tag)
                            if missing.chunks != before.chunks:
                                progress = now
                        message = self._take(peer, tag, wait)
                        if message is None:
                            core.check_usable()
                            if not came:
                                delivery.check_can_receive(tag, now)
                    # What is lost of a rest comes on the tag's list: look there in turn.
                    if missing.apart and (now - progress >= self._first_slice or wait.cancelled):
                        reads_rests, progress = not reads_rests, now
            if lanes.depth:
                lanes.foresee(tag)
            return message
        finally:
            if missing.chunks:
                wait.end_many()
            wait.purpose = None  # before the check: see `register`
            if wait.registered:
                self._unregister(wait, peer, tag)
            core.inbox.release(wait)

    def peek(self, src: Party, tag: str) -> Message | None:
        """Return what `recv` would return, but leave it there. None if there is none yet.

        Args:
            src, tag: as for `Endpoint.recv`.
        """
        core = self.core
        peer = core.peer(src)
        give_up = time.monotonic() + core.settings.reply_timeout
        while True:
            with core.talk(peer) as delivery:
                core.check_usable()
                message = delivery.peek(tag)
            if message is not None:
                return message
            name = peer.in_list(tag)
            wait = core.inbox.acquire()
            try:
                element = wait.pop_now(name)
                core.outage.ended(Way.POP)
            except BrokerError as error:
                core.stopped.wait(core.give_up_or_pause(error, Way.POP))
                continue
            finally:
                core.inbox.release(wait)
            if element is None:
                with core.talk(peer) as delivery:
                    is_apart = delivery.missing(tag).apart
                if is_apart and self._read_rests(peer, tag, _LANE_PATIENCE, None):
                    continue
                return None
            self._receive(peer, tag, name, element, None)
            with core.talk(peer) as delivery:
                complete = delivery.peek(tag) is not None
            if not complete and time.monotonic() > give_up:
                return None  # the broker may return the same element again and again, for ever

    def cancel(self, src: Party, tag_prefix: str) -> None:
        """Make every blocked `recv` from ``src`` with such a tag raise RecvCancelled.

        Args:
            src, tag_prefix: as for `Endpoint.cancel_recv`.
        """
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
        """Start to probe the peer for the message that this receive waits for. Needs the lock.

        The control thread calls this for receives in other threads, which may end meanwhile.
        """
        self.core.check_locked()
        purpose = wait.purpose
        if purpose is None or wait.registered:
            return
        name, tag, since = purpose
        delivery = self.core.peers[name].delivery
        delivery.wait(tag, since)
        wait.registered = True
        wait.has_moved()
        if wait.purpose is not purpose:  # the receive ended, perhaps without seeing `registered`
            wait.registered = False
            delivery.unwait(tag)

    def read_anew(self, peer: Peer) -> None:
        """Read the next edition of this peer's lists, on other connections.

        The broker may go on to serve the BLPOPs of a connection that is lost. Nobody pushes onto
        the lists that those wait for any more. Call it without the lock.
        """
        with self.core.talk(peer) as delivery:
            now = time.monotonic()
            delivery.read_anew(now)
            delivery.tick(now)
            leaves_lines = peer.follow()
        if leaves_lines:
            self.leave_lines(peer)

    def leave_lines(self, peer: Peer) -> None:
        """Leave every connection on which messages of this peer are waited for.

        Call it without the lock, after `Peer.follow`.
        """
        core = self.core
        with core.lock:
            edition = peer.delivery.edition_in
        core.inbox.reopen_idle()
        for wait in core.inbox.waits():
            purpose = wait.purpose
            if purpose is not None and purpose[0] == peer.name:
                wait.interrupt()
        peer.lanes.move(peer.in_prefix)
        peer.rests.move(peer.rests_in)
        core.log.info(
            "%s: messages of %s are lost on their way from the broker: they come on new lists and "
            "connections from now on (edition %d)",
            core.party,
            peer.name,
            edition,
            extra={"peer": peer.name},
        )

    # -- inner workings ----------------------------------------------------------------------

    def _recv_foreseen(
        self, peer: Peer, lane: Lane, tag: str, started: float, limit: float
    ) -> Message | None:
        """Return the message from the lane that has a BLPOP out for it.

        Returns:
            None if the lane does not bring it; the caller then receives in the plain way.
        """
        core, lanes = self.core, peer.lanes
        message: Message | None = None
        if not lane.lock.acquire(blocking=False) and not lane.lock.acquire(
            timeout=min(_LANE_PATIENCE, max(0.0, limit))
        ):
            return None  # another thread waits for an earlier tag, perhaps for long
        wait = lane.wait
        try:
            wait.give_up = started + limit
            wait.purpose = (peer.name, tag, started)
            if core.closing or core.failure is not None:
                core.check_usable()
            if tag in peer.kept:
                with core.talk(peer):
                    message = self._take(peer, tag, wait)
            came = ""
            while message is None and came != tag:
                # The lane's BLPOP stays where it is: the next receive of this tag reads it.
                if limit < lanes.seconds and not lane.wait.wait_posted(
                    max(0.0, started + limit - time.monotonic())
                ):
                    break
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
                    message = self._take(peer, tag, wait)
        except Interrupted:
            self._check_interrupted(peer, tag, wait)
        except BrokerError as error:
            self._line_broke(peer, tag, wait, error, popped=wait.may_have_popped)
        finally:
            wait.purpose = None  # before the check: see `register`
            if wait.registered:
                self._unregister(wait, peer, tag)
            lane.lock.release()
        return message

    def _read_rests(self, peer: Peer, tag: str, patience: float, wait: Wait | None) -> bool:
        """Take in a chunk from the list of rests, or wait while another thread does.

        Args:
            peer, tag: of the receive, which lacks part of its message.
            patience: seconds to wait.
            wait: belongs to the receive; None if it does not block.

        Returns:
            Whether anything may have come, of this message or of another.
        """
        core, rests = self.core, peer.rests
        if not rests.lock.acquire(blocking=False):
            if wait is None:
                return False
            with core.changed:
                rests.waiting.append(wait)
                try:
                    is_here = peer.delivery.peek(tag) is not None
                    return is_here or core.changed.wait(min(patience, _LANE_PATIENCE))
                finally:
                    rests.waiting.remove(wait)
        try:
            came = rests.read(patience)
            if came is not None:
                self._receive(peer, None, *came, wait)
            return came is not None
        except Interrupted:
            return False  # the caller's own pop finds out why
        except BrokerError as error:
            self._line_broke(peer, tag, wait, error, popped=True)
            return False
        finally:
            rests.lock.release()
            if rests.waiting:
                with core.changed:
                    core.changed.notify_all()

    def _receive(
        self, peer: Peer, tag: str | None, name: bytes, element: Buffer, wait: Wait | None
    ) -> Message | None:
        """Process an element that was popped from a tag's list, or from the list of rests.

        Args:
            peer: the party that pushed onto the list.
            tag: the list's tag; None for the list of rests.
            name: the list's name.
            element: the popped element.
            wait: belongs to the receive that wants this tag's next message; None if none does.

        Returns:
            That message, if it is complete now.
        """
        core = self.core
        delivery, whole, message = peer.delivery, None, None
        try:
            if wait is not None and tag is not None:
                whole = peer.codec.decode_whole_untrusted(name, element)
            if whole is None:
                if tag is not None and is_fragment(element):
                    joined = self._join(peer, tag, name, element)
                    if joined is None:
                        return None
                    element = joined
                if is_rest(element):
                    name = peer.rests_in
                lend = None
                if tag is not None and type(element) is memoryview:  # only a large element is one
                    lend = partial(self._lend, peer, tag)
                frame, body = peer.codec.decode_untrusted(name, element, lend)
        except FrameError as error:
            core.blame(peer, error)
            with core.talk(peer):
                if wait is not None:
                    self.register(wait)
                if tag is not None:
                    delivery.lost(tag, time.monotonic())
            return None
        illegal: FrameError | None = None
        failed: PeerError | None = None
        core.lock.acquire()
        try:
            now = time.monotonic()
            try:
                if whole is not None and tag is not None:
                    message = delivery.receive_whole(tag, whole, now)
                else:
                    its_tag = tag
                    if type(frame) is Data and frame.is_rest:
                        its_tag = delivery.tag_of(frame)
                    take = wait is not None
                    message = delivery.receive_data(tag, frame, body, now, take=take)
                    tag = its_tag
            except FrameError as error:
                illegal = error
            except PeerError as error:
                failed = error
            if core.sleepers:
                core.changed.notify_all()
            if tag is not None and tag in peer.kept:
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

    def _lend(self, peer: Peer, tag: str, frame: Data, size: int) -> memoryview | None:
        with self.core.lock:
            return peer.delivery.lend(tag, frame, size)

    def _join(self, peer: Peer, tag: str, name: bytes, element: Buffer) -> bytes | None:
        """Return the element that a fragment completes; None if more fragments are missing.

        Raises:
            FrameError: the element is not a fragment.
        """
        with self.core.talk(peer) as delivery:
            joined = peer.fragments.add_untrusted(name, element)
            if joined is None:
                delivery.came_in_part(tag, time.monotonic())
            else:  # or it was only too large for the broker: then nothing can be concluded
                delivery.came_again(tag)
            return joined

    def _take(self, peer: Peer, tag: str, mine: Wait) -> Message | None:
        """Take the next message with this tag, if it is here. Needs the lock."""
        message = peer.delivery.take(tag)
        if message is not None and tag in peer.kept:
            self._wake_another(peer, tag, mine)
        return message

    def _wake_another(self, peer: Peer, tag: str, mine: Wait | None) -> None:
        """Make another receive take a message with this tag, if a whole one is left.

        That one then wakes the next. Needs the lock.
        """
        self.core.check_locked()
        if peer.delivery.peek(tag) is None:
            return
        for wait in self.core.inbox.waits():
            purpose = wait.purpose
            if wait is not mine and purpose is not None and purpose[:2] == (peer.name, tag):
                if wait not in peer.rests.waiting:
                    wait.interrupt()
                return

    def _unregister(self, wait: Wait, peer: Peer, tag: str) -> None:
        with self.core.talk(peer) as delivery:
            if wait.registered:
                wait.registered = False
                delivery.unwait(tag)

    def _line_broke(
        self, peer: Peer, tag: str, wait: Wait | None, error: BrokerError, *, popped: bool
    ) -> None:
        """Go on after a lane, or the connection for rests, broke: next, the plain way tries again.

        Args:
            peer, tag, wait, popped: as for `_ask_for`.
            error: why it broke.

        Raises:
            BrokerError: there is no point in trying; the session has failed.
        """
        if not error.retryable:
            self.core.give_up_or_pause(error, Way.POP)
        is_dead = error.is_silent and not self.core.outage.lasts
        self._ask_for(peer, tag, wait, is_dead=is_dead, popped=popped)

    def _ask_for(
        self, peer: Peer, tag: str, wait: Wait | None, *, is_dead: bool, popped: bool
    ) -> None:
        """Have a message sent again at once that a broken connection may have popped and lost.

        Args:
            peer, tag, wait: of the receive.
            is_dead: whether only this connection was silent, and not the broker.
            popped: whether it may have popped something.
        """
        if is_dead:
            self.read_anew(peer)
        with self.core.talk(peer) as delivery:
            if wait is not None:
                self.register(wait)
            if popped:
                delivery.misses(tag, time.monotonic())

    def _check_interrupted(self, peer: Peer, tag: str, wait: Wait) -> None:
        """Raise the reason for an interrupted pop.

        Returns normally if the interrupt was meant for the connection's previous user.
        """
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
    """Return (peer, tag, since) of each receive that is waiting now, in any thread.

    ``since`` is in monotonic seconds.
    """
    # The waits belong to other threads: each may end between two looks at it.
    purposes = (wait.purpose for wait in core.inbox.waits())
    return [purpose for purpose in purposes if purpose is not None]
