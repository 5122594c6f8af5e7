"""The naive channel, kept as the baseline: RPUSH and wait, one BLPOP per receive.

What one writes first with redis-py and ``libspu.link.IChannel``. It seals nothing, loses what
the broker loses, and waits for the broker at every send.
"""

from __future__ import annotations

from typing import Final

import redis
from spu.libspu import link

_BLPOP_SECONDS: Final = 5


class NaiveChannel(link.IChannel):
    """The channel to one peer. Method names are libspu's."""

    def __init__(self, broker: redis.Redis, to_peer: str, from_peer: str, timeout: float) -> None:
        """Args: a client, prefixes of the lists out and in, seconds that `Recv` waits."""
        super().__init__()
        self._broker = broker
        self._to_peer = to_peer
        self._from_peer = from_peer
        self._timeout_ms = int(timeout * 1000)

    def Send(self, key: str, value: bytes) -> None:
        self._broker.rpush(self._to_peer + key, value)

    def SendAsync(self, key: str, value: bytes) -> None:
        self.Send(key, value)

    def SendAsyncThrottled(self, key: str, value: bytes) -> None:
        self.Send(key, value)

    def Recv(self, key: str) -> bytes:
        for _ in range(max(1, self._timeout_ms // (1000 * _BLPOP_SECONDS))):
            popped = self._broker.blpop([self._from_peer + key], timeout=_BLPOP_SECONDS)
            if popped is not None:
                return popped[1]
        raise TimeoutError(f"nothing came for {key} in {self._timeout_ms} ms")

    def SetRecvTimeout(self, recv_timeout_ms: int) -> None:
        self._timeout_ms = recv_timeout_ms

    def GetRecvTimeout(self) -> int:
        return self._timeout_ms

    def WaitLinkTaskFinish(self) -> None:
        pass

    def Abort(self) -> None:
        pass

    def SetThrottleWindowSize(self, size: int) -> None:
        pass

    def SetChunkParallelSendSize(self, size: int) -> None:
        pass

    def TestSend(self, timeout: int) -> None:
        self.Send("connect", b"")

    def TestRecv(self) -> None:
        self.Recv("connect")
