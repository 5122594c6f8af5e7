"""`Endpoint`: the object through which a party sends and receives in a session.

`connect` (`redislink/joining.py`) exchanges hellos with every peer and returns an `Endpoint`. A
message sent with a tag is received once, under the same tag. Messages with the same tag keep their
order; messages with different tags do not wait for each other.

`core.py` holds the state that all threads share. `sending.py` and `receiving.py` run in the
caller's thread, and `control.py` runs in its own. `closing.py` ends the endpoint.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from redislink.forking import dies_in_child
from redislink.protocol.frame import BytesLike
from redislink.settings import LONGEST_SECONDS, check_seconds
from redislink.transport.closing import Closing
from redislink.transport.control import Control
from redislink.transport.core import Core
from redislink.transport.observer import NoteStep, Observer
from redislink.transport.peer import Party
from redislink.transport.receiving import Receiving, blocked_on
from redislink.transport.request import Request
from redislink.transport.sending import Sending
from redislink.transport.several import AnyClaim
from redislink.transport.stats import EndpointStats, PeerStats
from redislink.with_block import ClosesOrAborts


@dataclass(frozen=True, slots=True, eq=False)
class EndpointParts:
    """The parts of an endpoint, for the redislink layers above it. Not for users."""

    core: Core
    sending: Sending
    receiving: Receiving
    control: Control
    closing: Closing


class Endpoint(ClosesOrAborts):
    """This party's end of a session. `connect` makes it; several threads may use it at once.

    Name a peer by its party name or its rank. Send any bytes-like object; `recv` returns
    ``bytes``. If an exception leaves the ``with`` block, every peer is told.

    Attributes:
        cluster: the contents of the cluster file.
        party: this party's name.
        rank: this party's rank.
        settings: this party's settings.
        resumed_steps: what the status says of that, see `PartyStatus`; the session sets it.
        streams: the same; ``redislink forward`` sets it.
        note_step: is told of each step of the session; an observer that wants to know sets it.
    """

    def __init__(
        self, sending: Sending, receiving: Receiving, claim: AnyClaim, observer: Observer
    ) -> None:
        """Not for users, who call `connect`.

        Args:
            sending, receiving: the two halves, which share one core.
            claim: the claim to the party's name; released when the endpoint closes.
            observer: closed when the endpoint closes.
        """
        core = sending.core
        self.cluster = core.cluster
        self.party = core.party
        self.settings = core.settings
        self.rank = core.cluster.rank(core.party)
        self.resumed_steps = 0
        self.streams = 0
        self.note_step: NoteStep | None = None
        control = Control(core, receiving, claim.round_trip, claim.distrust, claim.say)
        closing = Closing(core, control, claim, observer)
        self.parts = EndpointParts(core, sending, receiving, control, closing)
        dies_in_child(self)
        control.start()

    @property
    def session(self) -> str:
        """The session's name."""
        return self.cluster.session

    @property
    def world_size(self) -> int:
        """The number of parties."""
        return self.cluster.world_size

    def send(self, dst: Party, tag: str, data: BytesLike) -> Request:
        """Send a message. Never waits, neither for the peer nor for the broker.

        To wait until the peer has received it, call ``send(…).wait()``.

        Args:
            dst: party name or rank.
            tag: 1 to 512 bytes of UTF-8; the peer receives under the same tag.
            data: any bytes-like object of at most 4 GiB. You may change it after the call.

        Raises:
            PayloadTypeError: ``data`` is not bytes-like.
            UsageError: there is no such party, or it is this one; or the tag or size is invalid.
            PeerError: the session has failed, or the peer has left it.
            BrokerError: the broker has been away for too long, or refuses us.
            EndpointClosed: after `close`.
        """
        sending = self.parts.sending
        return sending.request(dst, tag, sending.post(dst, tag, data))

    def flush(self) -> None:
        """Wait until the broker has everything sent so far that fits into the send window.

        Raises:
            PeerError, BrokerError, EndpointClosed: as for `send`.
        """
        self.parts.sending.flush()

    def recv(self, src: Party, tag: str, timeout: float | None = None) -> bytes:
        """Wait for the next message from ``src`` with ``tag``, and return it.

        Args:
            src: party name or rank.
            tag: the tag that the sender used.
            timeout: seconds; None means the setting ``recv_timeout``.

        Raises:
            RecvTimeout: the message did not arrive in time.
            PeerAborted, PeerLost, PeerRestarted, PeerClosed: the message will never arrive.
            RecvCancelled: `cancel_recv` cancelled this receive.
            BrokerError: the broker has been away for too long, or refuses us.
            EndpointClosed: `close` was called, before or during the wait.
            UsageError: the timeout is not a number of seconds.
        """
        # Most timeouts are valid floats: these cost no call here.
        if type(timeout) is not float or not 0 <= timeout <= LONGEST_SECONDS:
            timeout = None if timeout is None else check_seconds("timeout", timeout)
        return self.parts.receiving.recv(src, tag, timeout)[0]

    def has_message(self, src: Party, tag: str) -> bool:
        """Whether `recv` for this tag would return at once.

        Args:
            src, tag: as for `recv`.

        Raises: see `recv`, but never a timeout.
        """
        return self.peek_message(src, tag) is not None

    def peek_message(self, src: Party, tag: str) -> bytes | None:
        """Return the message that `recv` would return, but leave it there. None if there is none.

        Args:
            src, tag: as for `recv`.

        Raises: see `recv`, but never a timeout.
        """
        message = self.parts.receiving.peek(src, tag)
        return None if message is None else message[0]

    def cancel_recv(self, src: Party, tag_prefix: str) -> None:
        """Make blocked `recv` calls raise `RecvCancelled`.

        Args:
            src: the party from which they receive, by name or rank.
            tag_prefix: cancel only receives with a tag that starts with this prefix.
        """
        self.parts.receiving.cancel(src, tag_prefix)

    @contextlib.contextmanager
    def announce_silence(self, seconds: float = 600.0) -> Iterator[None]:
        """Keep peers from declaring this party lost while the block runs.

        Use it around calls that hold the GIL and so stop the heartbeat, such as compiling or
        making shares.

        Args:
            seconds: the longest time that the block may take.
        """
        core = self.parts.core
        core.tell_all(lambda delivery: delivery.announce_silence(seconds, time.monotonic()))
        core.outbox.flush()
        try:
            yield
        finally:
            core.tell_all(lambda delivery: delivery.announce_silence(0, time.monotonic()))

    def trouble(self, peer: Party) -> str:
        """Say what delays messages to and from a peer, as far as this party can tell.

        Args:
            peer: party name or rank.

        Returns:
            Text such as ``broker unreachable for 12 s`` or ``bob not heard for 12 s``; "" if
            nothing delays them.
        """
        core = self.parts.core
        return core.trouble(core.peer(peer))

    def epochs(self) -> dict[str, str]:
        """Return for each peer the epoch that this run shares with it: 16 hex digits."""
        core = self.parts.core
        return {name: core.rendezvous.handshake.epoch(name) for name in core.peers}

    def stats(self) -> EndpointStats:
        """Return the counts so far, in total and per peer, and the present state of each peer."""
        core = self.parts.core
        waits: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for name, tag, since in blocked_on(core):
            waits[name].append((tag, since))
        with core.lock:
            now = time.monotonic()
            peers = {
                name: PeerStats.of(peer.delivery, waits[name], now)
                for name, peer in core.peers.items()
            }
            return EndpointStats.of(peers, core.reconnects)

    def abort(self, reason: str, *, retryable: bool = False) -> None:
        """Tell every peer that this party's run has failed, and leave the session.

        If another thread is in `close`, this ends its wait, and that thread finishes the rest.

        Args:
            reason: one line. The peers see it, so it must not contain any data.
            retryable: whether the cause may pass, so that the peers may start again.
        """
        self.parts.closing.abort(reason, retryable=retryable)

    def close(self) -> None:
        """Leave the session: wait until the peers have everything, and tell them.

        Blocked calls end with EndpointClosed. `close` gives up ``close_timeout`` seconds after it
        was called, or after the broker last took something that was queued, whichever is later.
        It logs messages that are not delivered by then; they expire on the broker. Safe to call
        twice.
        """
        self.parts.closing.close()

    def die_in_child(self) -> None:
        """In a forked child: every call raises `UsedAfterFork`, and leaving does nothing."""
        self.parts.core.die_in_child()
        self.parts.closing.die_in_child()

    def __repr__(self) -> str:
        state = "closed" if self.parts.core.closing else "open"
        return f"<Endpoint {self.party} (rank {self.rank}) of session {self.session}, {state}>"
