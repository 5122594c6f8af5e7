"""`RelayChannel`: yacl's channel to one peer, over an `Endpoint`.

The class overrides the C++ names, all twelve of which are pure virtual; the snake_case names of
``libspu.link.IChannel`` are for callers only. SPU calls from several threads, with the GIL held. An
exception raised here leaves ``Runtime.run`` unchanged.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Final

from spu.libspu import link

from redislink.errors import PeerClosed, RecvCancelled, SendTimeout, UsageError
from redislink.forking import dies_in_child
from redislink.spu.malloc import LARGE_BYTES, keep_large_blocks
from redislink.transport.endpoint import Endpoint
from redislink.transport.request import Request

_CONNECT_TAG: Final = "connect"


class RelayChannel(link.IChannel):  # type: ignore[misc]
    """The channel of one link to one peer.

    The calls mean what they mean in yacl: `SendAsync` returns when the message is queued here,
    `Send` when the broker has it, and `Recv` takes it. Keys are unique per message.
    """

    def __init__(self, endpoint: Endpoint, peer: str, namespace: str, recv_timeout: float) -> None:
        """Args:
        endpoint: this party's endpoint.
        peer: the name of the other member.
        namespace: a prefix for tags that keeps links apart.
        recv_timeout: seconds that `Recv` waits.
        """
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
        """Send a message and wait until the broker has it."""
        self.SendAsync(key, value)
        self._endpoint.flush()

    def SendAsync(self, key: str, value: bytes) -> None:
        """Send a message. Never waits."""
        if self._aborted:
            self._check_not_aborted()
        tag = self._namespace + key
        self._last_sent = tag, self._sending.post(self._peer, tag, value)
        if len(value) > LARGE_BYTES:
            keep_large_blocks(len(value))

    def SendAsyncThrottled(self, key: str, value: bytes) -> None:
        """Send a message, but first wait while the peer has a full window of them to receive.

        Raises:
            SendTimeout: the peer received none within the receive timeout.
        """
        self._check_not_aborted()
        with self._throttle_lock:
            if self._throttle_window:
                self._wait_for_window()
            self.SendAsync(key, value)
            with self._sending.core.changed:
                if self._throttle_window and (request := self._last_request()) is not None:
                    self._unconsumed.append(request)

    def Recv(self, key: str) -> bytes:
        """Wait for the message with this key, and return it.

        Raises:
            RecvTimeout: no message came within the receive timeout.
            RecvCancelled: `Abort` was called.
        """
        if self._aborted:
            self._check_not_aborted()
        timeout = self._recv_timeout_ms / 1000
        value = self._receiving.recv(self._peer, self._namespace + key, timeout)[0]
        if len(value) > LARGE_BYTES:
            keep_large_blocks(len(value))
        return value

    def SetRecvTimeout(self, recv_timeout_ms: int) -> None:
        """Set how many milliseconds `Recv` waits; 0 means the endpoint's ``recv_timeout``."""
        if recv_timeout_ms < 0:
            raise UsageError(f"a receive timeout is 0 or more ms, not {recv_timeout_ms}")
        self._recv_timeout_ms = int(recv_timeout_ms or self._endpoint.settings.recv_timeout * 1000)

    def GetRecvTimeout(self) -> int:
        """Milliseconds that `Recv` waits."""
        return self._recv_timeout_ms

    def WaitLinkTaskFinish(self) -> None:
        """Wait until the peer has received everything that this channel sent.

        Waits for at most ``close_timeout``, and leaves what is undelivered then to the endpoint.
        """
        if not self._aborted and (request := self._last_request()) is not None:
            with contextlib.suppress(SendTimeout, PeerClosed):
                request.wait(self._endpoint.settings.close_timeout)

    def Abort(self) -> None:
        """End blocked receives with RecvCancelled. Afterwards nothing is sent or received."""
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
        """Tell the peer that this link is being made.

        Args:
            timeout: ignored, because the relay takes the message whether the peer is there or not.
        """
        self.Send(_CONNECT_TAG, b"")

    def TestRecv(self) -> None:
        """Wait for the peer's `TestSend`."""
        self.Recv(_CONNECT_TAG)

    def _check_not_aborted(self) -> None:
        if self._aborted:
            raise RecvCancelled(
                f"{self._endpoint.party}: the link to {self._peer} was aborted: make a new one"
            )

    def _last_request(self) -> Request | None:
        last = self._last_sent
        return None if last is None else self._sending.request(self._peer, *last)

    def _window_has_room(self) -> bool:
        """Return whether one more message may go. Needs the lock of the core."""
        self._sending.core.check_locked()
        unconsumed = self._unconsumed
        while unconsumed and unconsumed[0].test():
            unconsumed.popleft()
        if len(unconsumed) >= self._throttle_window:  # later ones may have been taken
            self._unconsumed = deque(request for request in unconsumed if not request.test())
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
