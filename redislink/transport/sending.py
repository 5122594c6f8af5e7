"""Sends messages in the caller's thread, and waits for their acks."""

from __future__ import annotations

import time
from collections.abc import Callable

from redislink.errors import PayloadTypeError, PeerClosed, SendTimeout
from redislink.protocol import list_names
from redislink.protocol.frame import BytesLike, Encoding
from redislink.protocol.states import State
from redislink.settings import check_seconds
from redislink.transport.core import UNREAD_CONTROL_WAIT, Core
from redislink.transport.peer import Party, Peer
from redislink.transport.request import Request


class _SendRequest:
    """The `Request` that an endpoint's `send` returns."""

    __slots__ = ("_peer", "_sending", "_seq", "_tag")

    def __init__(self, sending: Sending, peer: Peer, tag: str, seq: int) -> None:
        self._sending = sending
        self._peer = peer
        self._tag = tag
        self._seq = seq

    def test(self) -> bool:
        with self._sending.core.lock:
            return self._peer.delivery.is_acked(self._seq)

    def wait(self, timeout: float | None = None) -> None:
        core, peer = self._sending.core, self._peer
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        limit = core.settings.recv_timeout if timeout is None else timeout
        if not self._sending.wait_until(self._is_decided, limit, ask=peer):
            trouble = core.trouble(peer)
            raise SendTimeout(
                f"{core.party}: {peer.name} has not taken the message with tag "
                f"{self._tag!r:.120} in {limit:g} s{trouble and f' ({trouble})'}: check that "
                f"{peer.name} runs and receives it"
            )
        if not self.test():
            raise PeerClosed(
                peer.name,
                f"{peer.name} has left the session without taking the message with tag "
                f"{self._tag!r:.120}: check that both run the same program",
            )

    def _is_decided(self) -> bool:
        """Return whether a wait for this message may end. Needs the lock."""
        self._sending.core.check_locked()
        delivery = self._peer.delivery
        return delivery.is_acked(self._seq) or delivery.state is State.PEER_CLOSED


class Sending:
    """Sends for one endpoint.

    Attributes:
        core: the endpoint's core.
    """

    def __init__(self, core: Core) -> None:
        """Not for users."""
        self.core = core

    def post(self, dst: Party, tag: str, data: BytesLike, encoding: Encoding = Encoding.RAW) -> int:
        """Send a message, as `Endpoint.send` does.

        Nearly every message takes the fast path: a single chunk that nothing delays needs neither
        a frame nor a request. The path takes the lock by hand, at half the cost of ``with``.

        Args:
            dst, tag, data: as for `Endpoint.send`.
            encoding: whether ``data`` is raw bytes or an encoded value.

        Returns:
            The message's number, for `request`.
        """
        core = self.core
        peer = core.peer(dst)
        if type(data) is not bytes:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise PayloadTypeError(
                    f"{core.party}: the message for {peer.name} with tag {tag!r:.120} is "
                    f"{type(data).__name__}, not bytes: encode it first"
                )
            data = bytes(data)
        delivery = peer.delivery
        core.lock.acquire()
        try:
            name = peer.out_prefix + list_names.encode_tag(tag)  # checks the tag too
            if core.closing or core.failure is not None:
                core.check_usable()
            chunk = delivery.send_at_once(tag, data, encoding)
            if chunk is None:
                now = time.monotonic()
                number = delivery.send(tag, data, now, encoding, fine=core.cuts_fine(now))
                pushes = delivery.pushes()
        finally:
            core.lock.release()
        if chunk is None:
            core.push(peer, pushes)
            return number
        number = chunk.seq
        # The codec after the name: see `Peer.follow`.
        element = peer.codec.encode_whole(name, number, encoding, chunk.acked, data)
        outbox = core.outbox
        outbox.push(name, element, (delivery, chunk))
        if outbox.error is not None:
            core.mend_outbox()
        return number

    def request(self, dst: Party, tag: str, number: int) -> Request:
        """Return the request for a message that `post` has sent."""
        return _SendRequest(self, self.core.peer(dst), tag, number)

    def flush(self) -> None:
        """Wait until the broker has everything sent so far that fits into the send window."""
        core = self.core
        deadline = time.monotonic() + core.settings.broker_timeout
        with core.lock:
            core.check_usable()
        while not core.outbox.flush():
            core.mend_outbox()
            with core.changed:
                core.check_usable()
                if time.monotonic() > deadline:
                    raise core.outbox.error or SendTimeout(
                        f"{core.party}: the broker has not taken everything in "
                        f"{core.settings.broker_timeout:g} s: check the broker and the line to it"
                    )
                core.changed.wait(0.05)

    def wait_until(self, condition: Callable[[], bool], timeout: float, *, ask: Peer) -> bool:
        """Wait for a condition that only a peer's acks can make true.

        Args:
            condition: must be cheap; evaluated with the lock held whenever an ack arrives.
            timeout: seconds.
            ask: the peer to ask for prompt acks.

        Returns:
            False if the condition did not become true in time.
        """
        core = self.core
        deadline = time.monotonic() + timeout
        while True:
            with core.talk(ask) as delivery:
                if condition():
                    return True
                core.check_usable()
                now = time.monotonic()
                left = deadline - now
                if left <= 0:
                    return False
                pause = delivery.ask_ack(now)
            with core.changed:
                core.sleepers += 1
                try:
                    if not condition():
                        core.changed.wait(min(left, pause, UNREAD_CONTROL_WAIT))
                finally:
                    core.sleepers -= 1
