"""SPU links for programs that make them from a description, and close them when they like.

Rules:
- A link is over when ``stop_link`` was called, or when neither the program nor SPU's C++ has it any
  more: C++ keeps the channels alive while it uses them. Its endpoint is closed then.
- Python may destroy a channel at any moment, whatever locks are held. So the endpoint of a link
  that nobody has any more is closed by a thread.
- A link that is open when the program ends is closed without a word; with an error, if the program
  failed.
- An error that leaves a channel is logged first: code in C++ may end the process because of it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import queue
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Final

from spu.libspu import link

from redislink.errors import LinkError, RedisLinkError, UsedAfterFork
from redislink.forking import dies_in_child, renew_in_child
from redislink.logs import PartyLogger
from redislink.spu.channel import RelayChannel
from redislink.transport.closing import leave_open_endpoints
from redislink.transport.endpoint import Endpoint

_PATIENCE: Final = 30.0
"""Seconds that a new link waits for the end of one before it that has the same session."""
_open: Final[dict[tuple[str, str], OpenLink]] = {}
"""By session and party."""
_changed: Final = threading.Condition(threading.Lock())
renew_in_child(_changed._lock)  # type: ignore[attr-defined]


class OpenLink:
    """One link of this process, from its channels to its endpoint."""

    def __init__(self, endpoint: Endpoint, what: str) -> None:
        """Args:
        endpoint: this party's, in the link's own session; closed with the link.
        what: the link, for messages.
        """
        self.endpoint = endpoint
        self.what = what
        self.log = PartyLogger(endpoint.session, endpoint.party)
        self._channels: list[weakref.ref[LinkChannel]] = []
        self._gone: list[None] = []
        self._finished: set[str] = set()
        self.ending = False
        """Whether it is being closed, or will be soon."""
        self._said = False
        endpoint.parts.closing.left_open_is_said = False

    def make_channels(self, recv_timeout: float, window: int) -> list[LinkChannel | None]:
        """A channel to each other party, by rank.

        Args:
            recv_timeout: seconds.
            window: messages that a peer may leave untaken before a throttled send waits; 0: any.
        """
        channels: list[LinkChannel | None] = []
        for peer in self.endpoint.cluster.party_names:
            if peer == self.endpoint.party:
                channels.append(None)
                continue
            channel = LinkChannel(self, peer, recv_timeout)
            channel.SetThrottleWindowSize(window)
            self._channels.append(weakref.ref(channel, self._channel_is_gone))
            channels.append(channel)
        return channels

    def finished(self, peer: str) -> None:
        """SPU has stopped the channel to this peer; the last one ends the link."""
        self._finished.add(peer)
        if len(self._finished) == self.endpoint.world_size - 1:
            self.close()

    def close(self) -> None:
        """Wait until the peers have everything, and leave. Safe to call twice."""
        self.ending = True
        try:
            self.endpoint.close()
        finally:
            self.forget()

    @property
    def has_failed(self) -> bool:
        """Whether nothing will come over it any more."""
        return self.endpoint.parts.core.failure is not None

    def abort(self, reason: str, *, retryable: bool = False) -> None:
        """Tell the peers that this party is failing, and leave; as `Endpoint.abort`."""
        self.ending = True
        try:
            self.endpoint.abort(reason, retryable=retryable)
        finally:
            self.forget()

    def say(self, error: RedisLinkError) -> None:
        """Log the first error of this link."""
        if not self._said and not isinstance(error, UsedAfterFork):
            self._said = True
            self.log.error("%s: %s: %s", self.endpoint.party, self.what, error)

    def forget(self) -> None:
        """Let another link have this one's session."""
        with _changed:
            if _open.get(self._key) is self:
                del _open[self._key]
                _changed.notify_all()

    def keep(self) -> None:
        """Note that this link is open."""
        with _changed:
            _open[self._key] = self

    @property
    def _key(self) -> tuple[str, str]:
        return self.endpoint.session, self.endpoint.party

    def _channel_is_gone(self, _: weakref.ref[LinkChannel]) -> None:
        self._gone.append(None)
        if len(self._gone) == len(self._channels):
            self.ending = True
            _closer.close_later(self)


class LinkChannel(RelayChannel):
    """A channel that tells its link what becomes of it."""

    def __init__(self, opened: OpenLink, peer: str, recv_timeout: float) -> None:
        """Args:
        opened: the link.
        peer: the name of the other party.
        recv_timeout: seconds that `Recv` waits.
        """
        super().__init__(opened.endpoint, peer, "", recv_timeout)
        self._opened = opened

    def Recv(self, key: str) -> bytes:
        """As `RelayChannel.Recv`."""
        try:
            return super().Recv(key)
        except RedisLinkError as error:
            self._opened.say(error)
            raise

    def SendAsync(self, key: str, value: bytes) -> None:
        """As `RelayChannel.SendAsync`."""
        try:
            super().SendAsync(key, value)
        except RedisLinkError as error:
            self._opened.say(error)
            raise

    def WaitLinkTaskFinish(self) -> None:
        """As `RelayChannel.WaitLinkTaskFinish`; the last channel closes the endpoint."""
        try:
            super().WaitLinkTaskFinish()
        finally:
            self._opened.finished(self._peer)


class _Closer:
    """Closes links that nobody has any more, in a thread of its own."""

    def __init__(self) -> None:
        self._begin()
        dies_in_child(self)

    def _begin(self) -> None:
        self._queue: queue.SimpleQueue[OpenLink | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.process = os.getpid()

    def die_in_child(self) -> None:
        """In the child of a fork: the parent's links are not ours to close."""
        _open.clear()
        self._begin()

    def start(self) -> None:
        """Make sure that there is a thread, and that this process leaves its links when it ends."""
        with _changed:
            if self._thread is not None:
                return
            self._thread = threading.Thread(
                target=self._run, args=(self._queue,), name="redislink-links", daemon=True
            )
            self._thread.start()
        _leave_with_child()

    def close_later(self, opened: OpenLink) -> None:
        """Close a link soon. Takes no lock: it is called wherever Python destroys something."""
        self._queue.put(opened)

    def end(self) -> None:
        """Wait until all is closed that is to be."""
        thread = self._thread
        if thread is not None and self.process == os.getpid():
            self._queue.put(None)
            thread.join()
            self._thread = None

    @staticmethod
    def _run(links: queue.SimpleQueue[OpenLink | None]) -> None:
        while (opened := links.get()) is not None:
            try:
                opened.close()
            except RedisLinkError as error:
                me, what = opened.endpoint.party, opened.what
                opened.log.warning("%s: %s did not end in good order: %s", me, what, error)
            del opened


_closer: Final = _Closer()
atexit.register(_closer.end)


def open_link(endpoint: Endpoint, desc: Any, what: str, *, recv_timeout: float, window: int) -> Any:
    """Make this party's end of a link, and its ``libspu.link.Context``.

    Args:
        endpoint: in a session of the link's own; it is closed with the link.
        desc: of the context.
        what: the link, for messages, such as ``link 'root'``.
        recv_timeout: seconds that a receive waits.
        window: messages that a peer may leave untaken before a throttled send waits; 0: any.

    Raises:
        LinkError: SPU did not make the context.
        PeerError, BrokerError: a party left, or the broker is away.
    """
    _closer.start()
    opened = OpenLink(endpoint, what)
    opened.keep()
    try:
        channels = opened.make_channels(recv_timeout, window)
        return link.create_with_channels(desc, endpoint.rank, channels)
    except BaseException as error:
        opened.abort(f"{what} was not made", retryable=True)
        if isinstance(error, RuntimeError) and not isinstance(error, RedisLinkError):
            raise LinkError(
                f"{endpoint.party}: {what} was not made ({' '.join(str(error).split())[:200]}): "
                "check that the other parties make it too"
            ) from error
        raise


def make_room(session: str, party: str, what: str, parties: Sequence[str]) -> None:
    """Wait until this process has no link in this session, if the last one is about to end.

    One that has failed is ended, though the program may have it still: it is of no use.

    Args:
        session: of the new link.
        party: whose end of it this is.
        what: the link, for the error.
        parties: of the link.

    Raises:
        LinkError: the program still has that link.
    """

    def is_free() -> bool:
        return (session, party) not in _open

    if is_free():
        return
    gc.collect()  # it may be part of a circle
    opened = _open.get((session, party))
    if opened is not None and opened.has_failed and not opened.ending:
        opened.close()
    with _changed:
        ending = opened is not None and opened.ending
        if not _changed.wait_for(is_free, _PATIENCE if ending else 0):
            raise LinkError(
                f"{party}: {what} of {', '.join(parties)} is open in this process already: stop it "
                "first (stop_link), or give this one another id or other addresses"
            )


def open_links() -> list[OpenLink]:
    """The links of this process."""
    with _changed:
        return list(_open.values())


def _leave_with_child() -> None:
    """Have `leave` called at the end of a child that multiprocessing forked.

    Such a child ends without what `atexit` calls.
    """
    for name in ("multiprocessing", "multiprocess"):
        process = sys.modules.get(f"{name}.process")
        if process is not None and process.parent_process() is not None:
            util = importlib.import_module(f"{name}.util")
            util.Finalize(None, leave, exitpriority=-100)


def leave() -> None:
    """Close every link that is open; if the program is failing, tell the peers so."""
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit) and error.code in (None, 0):
        error = None
    with contextlib.suppress(RedisLinkError):
        leave_open_endpoints(error)
    _closer.end()
