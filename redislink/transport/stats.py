"""An endpoint's counts and present state: `EndpointStats`, `PeerStats`.

Rules: counts only grow. Values that describe this moment say so. All numbers are taken from the
deliveries on request, so they cost the caller of `stats`, and not the messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from redislink.protocol.delivery import Delivery, DeliveryStats


@dataclass(frozen=True, slots=True)
class PeerStats:
    """The counts for one peer so far, and the conversation's state now.

    Attributes:
        messages_sent, bytes_sent, messages_received, bytes_received, frames_resent,
        duplicates_dropped, probes_sent, frames_refused: counts, as in `EndpointStats`.
        state: the conversation's state: open, closing, peer closed, closed or failed.
        unacked_bytes: bytes that this party keeps now because the peer has not acknowledged them,
            plus 128 bytes for each frame.
        in_flight_bytes: the part of ``unacked_bytes`` that may be on the broker now.
        last_heard_seconds: seconds since this party last heard from the peer.
        waiting: each tag that a receive waits for now, with the seconds that it has waited; if
            several wait for the same tag, the longest.
    """

    messages_sent: int
    bytes_sent: int
    messages_received: int
    bytes_received: int
    frames_resent: int
    duplicates_dropped: int
    probes_sent: int
    frames_refused: int
    state: str
    unacked_bytes: int
    in_flight_bytes: int
    last_heard_seconds: float
    waiting: Mapping[str, float] = field(hash=False)

    @classmethod
    def of(cls, delivery: Delivery, waits: Iterable[tuple[str, float]], now: float) -> PeerStats:
        """Return the stats of one conversation.

        Args:
            delivery: the conversation.
            waits: (tag, since) of each receive that waits, in monotonic seconds.
            now: monotonic seconds.
        """
        waiting: dict[str, float] = {}
        for tag, since in waits:
            waiting[tag] = max(waiting.get(tag, 0.0), now - since)
        return cls(
            **counts_of(delivery),
            state=delivery.state.value,
            unacked_bytes=delivery.unacked_bytes,
            in_flight_bytes=delivery.in_flight_bytes,
            last_heard_seconds=max(0.0, now - delivery.last_heard),
            waiting=waiting,
        )


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """An endpoint's counts so far.

    Attributes:
        messages_sent, bytes_sent, messages_received, bytes_received: count the application's
            messages, and the bytes of their payloads.
        frames_resent: frames pushed again because they may have been lost.
        duplicates_dropped: frames that arrived more than once.
        probes_sent: probes for a message that a blocked receive waits for.
        frames_refused: pushes that the broker refused because its memory was full.
        reconnects: how often the connection for sending was reopened.
        peers: the same counts for each peer, and the present state of its conversation. Empty if
            the parties are threads that meet in memory.
    """

    messages_sent: int
    bytes_sent: int
    messages_received: int
    bytes_received: int
    frames_resent: int
    duplicates_dropped: int
    probes_sent: int
    frames_refused: int
    reconnects: int
    peers: Mapping[str, PeerStats] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, peers: Mapping[str, PeerStats], reconnects: int) -> EndpointStats:
        """Return the sums over all peers."""
        totals = {name: sum(getattr(peer, name) for peer in peers.values()) for name in COUNTS}
        return cls(**totals, reconnects=reconnects, peers=peers)


COUNTS = tuple(f.name for f in fields(DeliveryStats))
"""The names of the counts per peer."""


def counts_of(delivery: Delivery) -> dict[str, int]:
    """Return one conversation's counts, by name."""
    return {name: getattr(delivery.stats, name) for name in COUNTS}
