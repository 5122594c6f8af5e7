"""A claim survives a broker that cuts its line, whenever it does, and gives up where none is."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from redislink import BrokerUnreachable
from redislink.broker import Broker
from redislink.broker.claim import PartyClaim
from redislink.broker.connect import BrokerConnection
from redislink.broker.outage import Outage
from redislink.logs import PartyLogger

COMMANDS = 4
"""Three measurements of the round trip, and the SET."""
_names = itertools.count()


class CuttingBroker(Broker):
    """Breaks the connection on which the n-th open or command of all is sent."""

    def __init__(self, cut_at: set[int]) -> None:
        super().__init__(f"fakeredis://claim-{next(_names)}")
        self._cut_at = cut_at
        self._count = itertools.count()
        self.cuts = 0

    def open(self) -> BrokerConnection:
        self._cut_perhaps()
        connection = super().open()
        execute = connection.execute

        def cut_or_execute(*command: bytes | int | str, timeout: float) -> Any:
            try:
                self._cut_perhaps()
            except BrokerUnreachable:
                connection.close()
                raise
            return execute(*command, timeout=timeout)

        connection.execute = cut_or_execute  # type: ignore[method-assign]
        return connection

    def _cut_perhaps(self) -> None:
        if next(self._count) in self._cut_at:
            self.cuts += 1
            raise BrokerUnreachable(f"broker {self.label}: cut")


def claim_through(broker: Broker) -> PartyClaim:
    return PartyClaim(broker, b"claim", b"instance", "party 'alice'", PartyLogger("test", "alice"))


@pytest.mark.parametrize("cut_at", range(1 + COMMANDS))
def test_a_line_cut_at_any_step_does_not_end_the_claim(cut_at: int) -> None:
    broker = CuttingBroker({cut_at})
    claim = claim_through(broker)
    claim.acquire(Outage("alice", 10))
    try:
        assert broker.cuts == 1
        assert 0 < claim.round_trip < float("inf")
    finally:
        claim.release()


def test_a_broker_that_is_not_reached_is_an_error_soon() -> None:
    broker = CuttingBroker(set(range(100)))
    started = time.monotonic()
    with pytest.raises(BrokerUnreachable):
        claim_through(broker).acquire(Outage("alice", 600))
    assert 1 < broker.cuts < 10
    assert time.monotonic() - started < 5
