"""The terms of a conversation: what steers it, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LONG_AGO: Final = float("-inf")
"""A time before all others: never, so far."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, and bytes, that steer a conversation.

    Attributes:
        ack_delay: an ack goes over the control list so long after what it is for came, or twice
            as long, unless one that rode on data has reached the peer by then.
        chunk_bytes: of a message that travel as one frame, at most.
        least_chunk_bytes: what a message is not cut finer than; see `chunking.choose`.
        peer_memory_bytes: that the peer may have us keep, of messages that came and that nothing
            has taken.
        resend_after: a frame that the broker has had for so long, and that the peer still asks
            for, was lost; doubled (up to 16 times) for a frame each time that it was.
    """

    window_bytes: int = 32 << 20
    chunk_bytes: int = 1 << 20
    least_chunk_bytes: int = 1 << 20
    peer_memory_bytes: int = 8 << 30
    peer_timeout: float = 30.0
    ack_delay: float = 0.1
    probe_interval: float = 1.0
    resend_after: float = 0.5
    fin_interval: float = 0.5
    refused_pause: float = 0.1

    @property
    def heartbeat_interval(self) -> float:
        return self.peer_timeout / 6

    @property
    def ack_bytes(self) -> int:
        """Received bytes after which an ack does not wait for ``ack_delay``."""
        return self.window_bytes // 4


@dataclass(slots=True)
class DeliveryStats:
    """Counts of one conversation; bytes are of payloads."""

    messages_sent: int = 0
    bytes_sent: int = 0
    messages_received: int = 0
    bytes_received: int = 0
    frames_resent: int = 0
    duplicates_dropped: int = 0
    probes_sent: int = 0
    frames_refused: int = 0
