"""Builds the status that a party publishes for operators, which `redislink top` shows."""

from __future__ import annotations

import time

from redislink.protocol.delivery import Delivery
from redislink.protocol.states import State
from redislink.protocol.status import (
    JOINING,
    MAX_WAITS,
    MISSING,
    PartyStatus,
    PeerStatus,
    Waiting,
)
from redislink.transport.core import Core
from redislink.transport.receiving import blocked_on
from redislink.transport.rendezvous import Rendezvous
from redislink.transport.several import AnyClaim
from redislink.transport.stats import counts_of


def status_before_meeting(claim: AnyClaim, rendezvous: Rendezvous) -> PartyStatus:
    """Return this party's status while it waits for the others to join."""
    missing = set(rendezvous.absent)
    return PartyStatus(
        claim.instance,
        JOINING,
        time.monotonic() - claim.since,
        claim.last_round_trip,
        0,
        {p: PeerStatus(MISSING if p in missing else State.OPEN.value) for p in rendezvous.peers},
        broker_number=claim.broker_number,
    )


def status_of(core: Core, claim: AnyClaim, resumed_steps: int = 0, streams: int = 0) -> PartyStatus:
    """Return this party's status once it has joined.

    Args:
        core: what its endpoint shares.
        claim: its claim.
        resumed_steps, streams: see `PartyStatus`.
    """
    with core.lock:
        now = time.monotonic()
        peers = {name: _status_of(peer.delivery, now) for name, peer in core.peers.items()}
        state = "failed" if core.failure else "closing" if core.closing else "open"
        reconnects = core.reconnects
    waits = sorted(purpose[::-1] for purpose in blocked_on(core))
    return PartyStatus(
        claim.instance,
        state,
        now - claim.since,
        claim.last_round_trip,
        reconnects,
        peers,
        tuple(Waiting(p, tag, max(0.0, now - t)) for t, tag, p in waits[:MAX_WAITS]),
        core.outage.seconds,
        claim.broker_number,
        resumed_steps,
        streams,
    )


def _status_of(delivery: Delivery, now: float) -> PeerStatus:
    return PeerStatus(
        delivery.state.value,
        **counts_of(delivery),
        in_flight_bytes=delivery.in_flight_bytes,
        last_heard_seconds=max(0.0, now - delivery.last_heard),
        is_silent=delivery.is_silent,
    )
