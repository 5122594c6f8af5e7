"""SPU links between threads of one process, over a `Communicator`.

libspu's own ``mem`` link cannot be aborted: when one party fails, the others would wait there for
the whole receive timeout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spu import libspu
from spu.libspu import link

from redislink.communicator import Communicator
from redislink.settings import LinkMode
from redislink.spu.link import SpuLink


class MemoryChannel(link.IChannel):  # type: ignore[misc]
    """The channel of one link to one peer. A message arrives at once."""

    def __init__(self, communicator: Communicator, peer: str) -> None:
        """Args:
        communicator: a communicator in a namespace of this link only.
        peer: the name of the other member.
        """
        super().__init__()
        self._communicator = communicator
        self._peer = peer
        self._recv_timeout_ms = 0

    def Send(self, key: str, value: bytes) -> None:
        """Send a message. It arrives at once."""
        self._communicator.send(self._peer, key, value)

    SendAsync = SendAsyncThrottled = Send

    def Recv(self, key: str) -> bytes:
        """Wait for the message with this key, and return it."""
        timeout = self._recv_timeout_ms / 1000 if self._recv_timeout_ms else None
        data: bytes = self._communicator.recv(self._peer, key, timeout)
        return data

    def SetRecvTimeout(self, recv_timeout_ms: int) -> None:
        """Set how many milliseconds `Recv` waits; 0 means the communicator's timeout."""
        self._recv_timeout_ms = recv_timeout_ms

    def GetRecvTimeout(self) -> int:
        """Milliseconds that `Recv` waits."""
        return self._recv_timeout_ms

    def WaitLinkTaskFinish(self) -> None:
        """Return at once: everything sent has arrived."""

    def Abort(self) -> None:
        """End blocked receives."""
        self._communicator.close()

    def SetThrottleWindowSize(self, size: int) -> None:
        """Kept for yacl's interface: memory is not throttled."""

    def SetChunkParallelSendSize(self, size: int) -> None:
        """Kept for yacl's interface: messages are not cut."""

    def TestSend(self, timeout: int) -> None:
        """Tell the peer that this link is being made."""
        self.Send("connect", b"")

    def TestRecv(self) -> None:
        """Wait for the peer's `TestSend`."""
        self.Recv("connect")


def create_memory_link(communicator: Communicator, members: Sequence[str]) -> SpuLink:
    """Make this member's end of a link. Every member must make the same call.

    Args:
        communicator: a communicator in a namespace of this link only, the same at all members.
        members: the names of the members, in rank order, including this party.
    """
    desc = libspu.link.Desc()
    for member in members:
        desc.add_party(member, member)
    rank = list(members).index(communicator.party)
    channels: list[Any] = [
        None if other == rank else MemoryChannel(communicator, member)
        for other, member in enumerate(members)
    ]
    context = libspu.link.create_with_channels(desc, rank, channels)
    return SpuLink(context, LinkMode.MEM, rank, len(members), channels)
