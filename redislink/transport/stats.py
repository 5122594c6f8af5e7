"""What passed through an endpoint, and how it stands now: `EndpointStats`, `PeerStats`.

Rules: counts only grow; what is a state of this moment says so; nothing here is counted apart
from the deliveries, so that whoever asks pays, and the messages do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from redislink.protocol.delivery import Delivery, DeliveryStats


@dataclass(frozen=True, slots=True)
class PeerStats:
    """What passed between this party and one other so far, and how it stands now.

    Attributes:
        messages_sent, bytes_sent, messages_received, bytes_received, frames_resent,
        duplicates_dropped, probes_sent, frames_refused: counts, as in `EndpointStats`.
        state: of the conversation: open, closing, peer closed, closed or failed.
        unacked_bytes: kept now, as the peer has not said yet that it has them; with 128 bytes
            for each frame.
        in_flight_bytes: of these, what may lie on the broker now.
        last_heard_seconds: seconds since this party last heard of the peer.
        waiting: tags that receives wait for now, and since how many seconds; where several wait
            for the same, the longest.
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
        """Args: the conversation; (tag, since) of each receive that waits; monotonic seconds."""
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
    """What passed through an endpoint so far.

    Attributes:
        messages_sent, bytes_sent, messages_received, bytes_received: of the application;
            bytes are of payloads.
        frames_resent: pushed again because they may have been lost.
        duplicates_dropped: frames that came again.
        probes_sent: questions of a blocked receive to the peer.
        frames_refused: pushes for which the broker had no memory.
        reconnects: times that the connection for sending was opened anew.
        peers: the same counts for each other party, and how it stands with it now. Empty where
            parties are threads that meet in memory.
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
        """The sums over all peers."""
        totals = {name: sum(getattr(peer, name) for peer in peers.values()) for name in COUNTS}
        return cls(**totals, reconnects=reconnects, peers=peers)


COUNTS = tuple(f.name for f in fields(DeliveryStats))
"""Names of what is counted per peer."""


def counts_of(delivery: Delivery) -> dict[str, int]:
    """What one conversation has counted, by name."""
    return {name: getattr(delivery.stats, name) for name in COUNTS}
