"""The parameters and the counts of a conversation: `Timing`, `DeliveryStats`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LONG_AGO: Final = float("-inf")
"""A time before all others; means "never so far"."""
_FIRST_ASK: Final = 0.15


@dataclass(frozen=True, slots=True)
class Timing:
    """The times (seconds) and sizes (bytes) that control a conversation.

    Attributes:
        window_bytes: how much may be on the broker at once; see `Sending`.
        chunk_bytes: the most bytes of a message that travel in one frame.
        fine_chunk_bytes: the same while small messages have to wait for large ones, and while the
            broker loses or refuses frames.
        least_chunk_bytes: the smallest chunks that a message is cut into; see `chunking.choose`.
        part_bytes: the smallest chunks of a message whose rest travels apart; 0: none does.
        frame_cost: how many bytes the line would carry in the time that one more frame takes; see
            `chunking.choose_apart`.
        uplink: bytes a second that the line to the broker takes; infinity if it never counts.
        peer_memory_bytes: how much the peer may make us keep, in messages that nothing has taken.
        peer_timeout: a peer that is silent for so long counts as lost.
        ack_delay: an ack goes over the control list so long after the frame it acknowledges, or
            twice as long, unless an ack on a data frame has reached the peer by then.
        round_trip: the time from here to the broker and back.
        ask_interval: the least time between two probes for the same tag; see `Waits`.
        probe_interval: a tag counts as waited for until three times as long after a probe.
        resend_after: a frame that was lost counts as lost again only if the broker has had it for
            so long. Doubles each time that the frame is lost, up to 16 times as long.
        overdue_after: the least time that a message, of which the peer says that the broker has
            taken it, may still take. After that, our connection counts as lost.
        fin_interval: the time between two FINs.
        refused_pause: the pause after the broker refused a push.
    """

    window_bytes: int = 32 << 20
    chunk_bytes: int = 4 << 20
    fine_chunk_bytes: int = 1 << 20
    least_chunk_bytes: int = 4 << 20
    part_bytes: int = 0
    frame_cost: int = 0
    uplink: float = float("inf")
    peer_memory_bytes: int = 8 << 30
    peer_timeout: float = 30.0
    ack_delay: float = 0.1
    round_trip: float = 0.0
    ask_interval: float = 0.5
    probe_interval: float = 1.0
    resend_after: float = 0.5
    overdue_after: float = 0.2
    fin_interval: float = 0.5
    refused_pause: float = 0.1

    @property
    def first_ask(self) -> float:
        """How long a receive waits before the peer is asked: longer than its own pop takes."""
        return max(_FIRST_ASK, 1.5 * self.round_trip)

    @property
    def heartbeat_interval(self) -> float:
        return self.peer_timeout / 6

    @property
    def ack_bytes(self) -> int:
        """After so many received bytes, an ack does not wait for ``ack_delay``."""
        return self.window_bytes // 4


@dataclass(slots=True)
class DeliveryStats:
    """The counts of one conversation. Bytes are bytes of payloads."""

    messages_sent: int = 0
    bytes_sent: int = 0
    messages_received: int = 0
    bytes_received: int = 0
    frames_resent: int = 0
    duplicates_dropped: int = 0
    probes_sent: int = 0
    frames_refused: int = 0
