"""Waits for the thread that renews a party's claim, which a test has no other sign of."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from redislink.broker.connection import BrokerConnection
from redislink.transport import claim


class Renewals:
    """Counts them while claims are renewed a hundred times as often; for one test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._changed = threading.Condition()
        self._ended: Counter[bytes] = Counter()
        publish = claim.PartyClaim._publish

        def counted(mine: claim.PartyClaim, connection: BrokerConnection) -> None:
            publish(mine, connection)
            with self._changed:
                self._ended[mine._key] += 1
                self._changed.notify_all()

        monkeypatch.setattr(claim.PartyClaim, "_publish", counted)
        monkeypatch.setattr(claim, "_RENEW_SECONDS", 0.01)

    def wait_for_next(self, key: bytes) -> None:
        """Return once the claim with this key has been renewed, and its status been written."""
        with self._changed:
            before = self._ended[key]
            assert self._changed.wait_for(lambda: self._ended[key] > before, 10), key
