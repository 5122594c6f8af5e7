"""Ends an endpoint: in good order, by an abort, or because the program ends."""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Final

from redislink.errors import BrokerError, EndpointClosed, may_pass, reason_for_peers
from redislink.protocol.states import State
from redislink.transport.control import Control
from redislink.transport.core import UNREAD_CONTROL_WAIT, Core
from redislink.transport.observer import Observer
from redislink.transport.peer import Peer
from redislink.transport.several import AnyClaim

_LEAST_TO_LEAVE: Final = 0.5
"""Seconds that each last step may still take once ``close_timeout`` is over."""
_OVER: Final = (State.CLOSED, State.FAILED)
_open: Final[weakref.WeakSet[Closing]] = weakref.WeakSet()


class Closing:
    """Ends one endpoint, once."""

    def __init__(self, core: Core, control: Control, claim: AnyClaim, observer: Observer) -> None:
        """Not for users.

        Args:
            core, control, claim, observer: the parts that end with the endpoint.
        """
        self.core = core
        self._control = control
        self._claim = claim
        self._observer = observer
        self.left_open_is_said = True
        """Whether to log a warning if the program ends without closing it."""
        _open.add(self)

    def abort(self, reason: str, *, retryable: bool = False) -> None:
        """Abort; see `Endpoint.abort`."""
        core = self.core
        with core.lock:
            if core.stopped.is_set():
                return
            is_closing, core.closing = core.closing, True
            core.wake_all()
        line = " ".join(reason.split())[:500]
        core.tell_all(lambda delivery: delivery.abort(line, retryable=retryable))
        if not is_closing:
            self._leave(time.monotonic() + core.settings.close_timeout)

    def close(self) -> None:
        """Close; see `Endpoint.close`."""
        core = self.core
        with core.lock:
            if core.closing:
                return
            core.closing = True
            core.wake_all()
        core.tell_all(lambda delivery: delivery.close(time.monotonic()))
        deadline = self._wait_for_line(time.monotonic())
        with core.changed:
            while (left := deadline - time.monotonic()) > 0:
                if core.failure is not None or not self._unfinished():
                    break
                core.changed.wait(min(left, UNREAD_CONTROL_WAIT))
            unfinished = self._unfinished() if core.failure is None else []
            left_over = [(peer.name, peer.delivery.unacked_bytes) for peer in unfinished]
        for name, size in left_over:
            core.log.warning(
                "%s: closed without %s having taken everything (%d bytes left)",
                core.party,
                name,
                size,
                extra={"peer": name},
            )
        self._leave(deadline)

    def vanish(self) -> None:
        """Leave as a killed process does: nobody is told, and nothing is removed. For tests."""
        core = self.core
        with core.lock:
            if core.stopped.is_set():
                return
            core.closing = True
            core.stopped.set()
            core.wake_all()
        _open.discard(self)
        core.outbox.close()
        self._control.stop(_LEAST_TO_LEAVE)
        for peer in core.peers.values():
            peer.lanes.close()
            peer.rests.close()
        core.inbox.close()
        self._claim.abandon()
        self._observer.close()

    def die_in_child(self) -> None:
        """In a forked child: do not close this endpoint when the program ends."""
        _open.discard(self)

    def _wait_for_line(self, closed_at: float) -> float:
        """Wait until the queued writes are through, or the line stops taking them.

        Returns:
            The deadline for delivering everything, in monotonic seconds.
        """
        core, outbox = self.core, self.core.outbox
        limit = core.settings.close_timeout
        with core.changed:
            while outbox.is_behind and core.failure is None:
                if time.monotonic() - max(closed_at, outbox.moved_at) >= limit:
                    break
                core.changed.wait(UNREAD_CONTROL_WAIT)
        return max(closed_at, outbox.moved_at) + limit

    def _unfinished(self) -> list[Peer]:
        """Return the peers that have not yet confirmed everything. Needs the lock."""
        self.core.check_locked()
        return [peer for peer in self.core.peers.values() if peer.delivery.state not in _OVER]

    def _say_last_words(self, deadline: float) -> None:
        """Make sure that the broker has our final FINs, acks and ABORTs.

        Nobody will be there to send them again. So if the connection breaks, push all of them
        again on the next one.
        """
        core = self.core
        while not core.outbox.flush(max(_LEAST_TO_LEAVE, deadline - time.monotonic())):
            error = core.outbox.error
            if isinstance(core.failure, BrokerError) or (error and not error.retryable):
                return
            core.mend_outbox()
            with core.changed:
                while core.outbox.error is not None:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return
                    core.changed.wait(min(left, UNREAD_CONTROL_WAIT))
            for peer, push in tuple(core.last_words):
                core.push(peer, [push])

    def _leave(self, deadline: float) -> None:
        """Stop the threads, remove this party's control and hello lists, and disconnect."""
        core = self.core
        _open.discard(self)
        self._say_last_words(deadline)
        left = max(_LEAST_TO_LEAVE, deadline - time.monotonic())
        core.stopped.set()
        self._control.stop(left)
        mine = [*core.rendezvous.lists, *(peer.control_in for peer in core.peers.values())]
        with contextlib.suppress(EndpointClosed):
            core.outbox.delete(*mine)
        core.outbox.flush(left)
        core.outbox.close()
        for peer in core.peers.values():
            peer.lanes.close()
            peer.rests.close()
        core.inbox.close()
        self._claim.release(left)
        self._observer.close()


def leave_open_endpoints(error: BaseException | None) -> None:
    """Leave every session that the program did not leave before it ended.

    Args:
        error: the exception that ended the program; the peers are told. None closes in good
            order, so that all sent messages arrive, and logs a warning.
    """
    leaving = []
    for closing in list(_open):
        core = closing.core
        if core.closing:
            continue
        leave: Callable[[], None] = closing.close
        if error is not None:
            leave = partial(closing.abort, reason_for_peers(error), retryable=may_pass(error))
        elif closing.left_open_is_said:
            core.log.warning(
                "%s: the program ended without closing session %r, which is closed now: call "
                "close(), or join in a with block",
                core.party,
                core.cluster.session,
            )
        leaving.append(threading.Thread(target=leave, daemon=True))
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join()


@atexit.register
def _leave_at_exit() -> None:
    # By now `sys.exit` has left no trace, neither its code nor the exception; `redislink run` has
    # both. In an interactive session `last_value` belongs to an earlier line.
    failed = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    leave_open_endpoints(failed)
