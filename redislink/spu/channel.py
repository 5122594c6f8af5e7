"""`RelayChannel`: yacl's channel to one peer, over an `Endpoint`.

The C++ names are overridden (the snake_case ones of ``libspu.link.IChannel`` are only what
callers use); all twelve are pure virtual there. SPU calls with the GIL taken, from more than
one thread. An exception raised here surfaces unchanged from ``Runtime.run``.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Final

from spu.libspu import link

from redislink.errors import PeerClosed, RecvCancelled, SendTimeout, UsageError
from redislink.forking import dies_in_child
from redislink.transport.endpoint import Endpoint
from redislink.transport.request import Request

_CONNECT_TAG: Final = "connect"


class RelayChannel(link.IChannel):  # type: ignore[misc]
    """The channel of one link to one peer.

    Meanings, as in yacl: `SendAsync` returns when the message is queued here, `Send` when the
    relay has it, `Recv` takes it; keys are unique per message.
    """

    def __init__(self, endpoint: Endpoint, peer: str, namespace: str, recv_timeout: float) -> None:
        """Args: whom it leads to, a prefix that keeps links apart, seconds."""
        super().__init__()
        self._endpoint = endpoint
        self._sending, self._receiving = endpoint.parts.sending, endpoint.parts.receiving
        self._peer = peer
        self._namespace = namespace
        self._recv_timeout_ms = int(recv_timeout * 1000)
        self._throttle_window = 0
        self._chunk_parallel_send_size = 0
        self._unconsumed: deque[Request] = deque()
        self._throttle_lock = threading.Lock()
        """Held by the one throttled sender that sends, or waits for the window. The window itself
        and `_unconsumed` are guarded by the core's lock, which is taken after this one."""
        self._last_sent: tuple[str, int] | None = None
        """Tag and number of the last message."""
        self._aborted = False
        dies_in_child(self)

    def die_in_child(self) -> None:
        """In the child of a fork: the endpoint raises; the link may be left."""
        self._throttle_lock = threading.Lock()
        self._last_sent = None
        self._unconsumed.clear()

    def Send(self, key: str, value: bytes) -> None:
        """Send, and return once the broker has it."""
        self.SendAsync(key, value)
        self._endpoint.flush()

    def SendAsync(self, key: str, value: bytes) -> None:
        """Send without waiting for anybody."""
        if self._aborted:
            self._check_not_aborted()
        tag = self._namespace + key
        self._last_sent = tag, self._sending.post(self._peer, tag, value)

    def SendAsyncThrottled(self, key: str, value: bytes) -> None:
        """Send, but first wait while the peer has a full window of such messages to take.

        Raises:
            SendTimeout: the peer took none for the receive timeout.
        """
        self._check_not_aborted()
        with self._throttle_lock:
            if self._throttle_window:
                self._wait_for_window()
            self.SendAsync(key, value)
            with self._sending.core.changed:
                if self._throttle_window and (handle := self._last_handle()) is not None:
                    self._unconsumed.append(handle)

    def Recv(self, key: str) -> bytes:
        """The message with this key; waits for it.

        Raises:
            RecvTimeout: it did not come within the receive timeout.
            RecvCancelled: `Abort` was called.
        """
        if self._aborted:
            self._check_not_aborted()
        timeout = self._recv_timeout_ms / 1000
        return self._receiving.recv(self._peer, self._namespace + key, timeout)[0]

    def SetRecvTimeout(self, recv_timeout_ms: int) -> None:
        """Milliseconds that `Recv` waits; 0 takes the endpoint's ``recv_timeout``."""
        if recv_timeout_ms < 0:
            raise UsageError(f"a receive timeout is 0 or more ms, not {recv_timeout_ms}")
        self._recv_timeout_ms = int(recv_timeout_ms or self._endpoint.settings.recv_timeout * 1000)

    def GetRecvTimeout(self) -> int:
        """Milliseconds that `Recv` waits."""
        return self._recv_timeout_ms

    def WaitLinkTaskFinish(self) -> None:
        """Return once the peer has all that this channel sent.

        Bounded by ``close_timeout``: what is not taken by then is left to the endpoint.
        """
        if not self._aborted and (handle := self._last_handle()) is not None:
            with contextlib.suppress(SendTimeout, PeerClosed):
                handle.wait(self._endpoint.settings.close_timeout)

    def Abort(self) -> None:
        """End local waiters with RecvCancelled; nothing is sent or received afterwards."""
        self._aborted = True
        self._endpoint.cancel_recv(self._peer, self._namespace)

    def SetThrottleWindowSize(self, size: int) -> None:
        """How many messages `SendAsyncThrottled` lets the peer leave untaken; 0: any number.

        A sender that waits goes on at once if there is room now.
        """
        if size < 0:
            raise UsageError(f"a throttle window is 0 or more messages, not {size}")
        with self._sending.core.changed:
            self._throttle_window = size
            if not size:
                self._unconsumed.clear()
            self._sending.core.changed.notify_all()

    def SetChunkParallelSendSize(self, size: int) -> None:
        """Kept for yacl's interface: the relay pipelines chunks by itself."""
        if size < 0:
            raise UsageError(f"a chunk parallel size is 0 or more, not {size}")
        self._chunk_parallel_send_size = size

    def TestSend(self, timeout: int) -> None:
        """Say to the peer that this link is being made; ``timeout`` (ms) is not needed, as
        the relay takes the message whether the peer is there or not."""
        self.Send(_CONNECT_TAG, b"")

    def TestRecv(self) -> None:
        """Wait for the peer's `TestSend`."""
        self.Recv(_CONNECT_TAG)

    def _check_not_aborted(self) -> None:
        if self._aborted:
            raise RecvCancelled(
                f"{self._endpoint.party}: the link to {self._peer} was aborted: make a new one"
            )

    def _last_handle(self) -> Request | None:
        last = self._last_sent
        return None if last is None else self._sending.request(self._peer, *last)

    def _window_has_room(self) -> bool:
        unconsumed = self._unconsumed
        while unconsumed and unconsumed[0].test():
            unconsumed.popleft()
        if len(unconsumed) >= self._throttle_window:  # later ones may have been taken
            self._unconsumed = deque(handle for handle in unconsumed if not handle.test())
        window = self._throttle_window
        return self._aborted or not window or len(self._unconsumed) < window

    def _wait_for_window(self) -> None:
        limit = self._recv_timeout_ms / 1000
        peer = self._sending.core.peer(self._peer)
        if not self._sending.wait_until(self._window_has_room, limit, ask=peer):
            trouble = self._endpoint.trouble(self._peer)
            raise SendTimeout(
                f"{self._endpoint.party}: {self._peer} has left {len(self._unconsumed)} messages "
                f"of this link untaken for {limit:g} s{trouble and f' ({trouble})'}: "
                "check that it still computes"
            )
        self._check_not_aborted()
