"""`Endpoint`: one party in one session, as its users see it.

`connect` (`redislink/joining.py`) says hello to every peer and gives an `Endpoint`. What one party
sends with a tag, another receives with that tag, once; different tags do not wait for each other,
and messages with the same tag keep their order.

The parts: `core.py` has what all threads share, `sending.py` and `receiving.py` work in the
caller's thread, `control.py` in a thread of its own, `closing.py` ends it all.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from redislink.errors import reason_for_peers
from redislink.forking import dies_in_child
from redislink.protocol.frame import BytesLike
from redislink.settings import LONGEST_SECONDS, check_seconds
from redislink.transport.claim import PartyClaim
from redislink.transport.closing import Closing
from redislink.transport.control import Control
from redislink.transport.core import Core
from redislink.transport.observer import Observer
from redislink.transport.peer import Party
from redislink.transport.receiving import Receiving, blocked_on
from redislink.transport.request import Request
from redislink.transport.sending import Sending
from redislink.transport.stats import EndpointStats, PeerStats


@dataclass(frozen=True, slots=True, eq=False)
class EndpointParts:
    """What an endpoint is made of, for redislink's own layers above it; not for users."""

    core: Core
    sending: Sending
    receiving: Receiving
    control: Control
    closing: Closing


class Endpoint:
    """This party's end of a session. Made by `connect`; usable from several threads at once.

    Peers are named by party name or by rank. A payload is any bytes-like object; what is
    received is ``bytes``. Leaving its ``with`` block by an exception tells every peer.

    Attributes:
        cluster: what the cluster file says.
        party: name of this party.
        rank: its rank.
        settings: of this party.
    """

    def __init__(
        self, sending: Sending, receiving: Receiving, claim: PartyClaim, observer: Observer
    ) -> None:
        """Not for users: `connect` is.

        Args:
            sending, receiving: on one core.
            claim: of the party's name, given back at the end.
            observer: ended at the end.
        """
        core = sending.core
        self.cluster = core.cluster
        self.party = core.party
        self.settings = core.settings
        self.rank = core.cluster.rank(core.party)
        control = Control(core, receiving)
        closing = Closing(core, control, claim, observer)
        self.parts = EndpointParts(core, sending, receiving, control, closing)
        dies_in_child(self)
        control.start()

    @property
    def session(self) -> str:
        """Name of the session."""
        return self.cluster.session

    @property
    def world_size(self) -> int:
        """Number of parties."""
        return self.cluster.world_size

    def send(self, dst: Party, tag: str, data: BytesLike) -> Request:
        """Send a message. Never waits, neither for the peer nor for the broker.

        To wait until the peer has received it, call ``send(…).wait()``.

        Args:
            dst: party name or rank.
            tag: 1 to 512 bytes of UTF-8; the peer receives with the same.
            data: any bytes-like object of at most 4 GiB; it may be changed after the call.

        Raises:
            PayloadTypeError: ``data`` is not bytes-like.
            UsageError: no such party, or it is this one; or tag or size are not valid.
            PeerError: the session has failed, or the peer has left it.
            BrokerError: the broker has been away for too long, or refuses us.
            EndpointClosed: after `close`.
        """
        sending = self.parts.sending
        return sending.request(dst, tag, sending.post(dst, tag, data))

    def flush(self) -> None:
        """Wait until the broker has what was sent and the window admits.

        Raises:
            PeerError, BrokerError, EndpointClosed: as `send`.
        """
        self.parts.sending.flush()

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
        return self.parts.receiving.recv(src, tag, timeout)[0]

    def has_message(self, src: Party, tag: str) -> bool:
        """Whether `recv` for this tag would return at once.

        Args:
            src, tag: as for `recv`.

        Raises: as `recv`, but never a timeout.
        """
        return self.peek_message(src, tag) is not None

    def peek_message(self, src: Party, tag: str) -> bytes | None:
        """The message that `recv` would return, without taking it; None if there is none yet.

        Args:
            src, tag: as for `recv`.

        Raises: as `recv`, but never a timeout.
        """
        message = self.parts.receiving.peek(src, tag)
        return None if message is None else message[0]

    def cancel_recv(self, src: Party, tag_prefix: str) -> None:
        """End every blocked `recv` from a party with `RecvCancelled`.

        Args:
            src: party name or rank.
            tag_prefix: only receives whose tag begins so.
        """
        self.parts.receiving.cancel(src, tag_prefix)

    @contextlib.contextmanager
    def announce_silence(self, seconds: float = 600.0) -> Iterator[None]:
        """Within this block, peers do not take this party's silence for death.

        For calls that hold the GIL, and with it the heartbeat: compiling, making shares.

        Args:
            seconds: the longest that it may take.
        """
        core = self.parts.core
        core.tell_all(lambda delivery: delivery.announce_silence(seconds, time.monotonic()))
        core.outbox.flush()
        try:
            yield
        finally:
            core.tell_all(lambda delivery: delivery.announce_silence(0, time.monotonic()))

    def trouble(self, peer: Party) -> str:
        """What holds messages with a peer up, as far as this party can tell.

        Args:
            peer: party name or rank.

        Returns:
            Such as ``broker unreachable for 12 s`` or ``bob not heard for 12 s``; "" if nothing.
        """
        core = self.parts.core
        return core.trouble(core.peer(peer))

    def stats(self) -> EndpointStats:
        """Counts so far, over all peers and for each, and how it stands with each now."""
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

    def abort(self, reason: str) -> None:
        """Tell every peer that this party's run has failed, and leave.

        While another thread is in `close` this ends what it waits for, and leaves the rest to it.

        Args:
            reason: one line; it is shown to the peers, so it must hold no data.
        """
        self.parts.closing.abort(reason)

    def close(self) -> None:
        """Leave the session: wait until the peers have what was sent, and say so to them.

        Takes at most ``close_timeout`` seconds from when the line to the broker has taken, or
        stopped taking, what waits for it; blocked calls end with EndpointClosed. Safe to call
        twice. What is not delivered by then is logged, and expires on the broker.
        """
        self.parts.closing.close()

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
        self.parts.core.die_in_child()
        self.parts.closing.die_in_child()

    def __repr__(self) -> str:
        state = "closed" if self.parts.core.closing else "open"
        return f"<Endpoint {self.party} (rank {self.rank}) of session {self.session}, {state}>"
