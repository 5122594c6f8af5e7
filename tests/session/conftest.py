"""Programs as every party: in memory, and apart over a real broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pytest

from redislink import ClusterSpec, Session, Simulator
from redislink.session.kills import Plan
from tests.conftest import connect_as, make_cluster, quick_settings

SECONDS: Final = 8.0
"""Within which every party has its error."""
DEVICES: Final = {
    "SP0": {"kind": "SPU", "members": ["alice", "bob", "carol"], "config": {"protocol": "ABY3"}},
    "SP1": {"kind": "SPU", "members": ["alice", "bob"], "config": {"protocol": "SEMI2K"}},
    "SP2": {"kind": "SPU", "members": ["bob", "carol"], "config": {"protocol": "SEMI2K"}},
}
Program = Callable[[Session], Any]


@dataclass(frozen=True)
class Stage:
    """Where a test's parties are: in memory, or each with an endpoint, over Valkey."""

    url: str | None

    def outcomes(self, program: Program) -> dict[str, Any]:
        """What each party's program returned or raised, by party."""
        joins = self._joins()
        found: dict[str, Any] = {}

        def play(party: str) -> None:
            try:
                with joins[party]() as session:
                    found[party] = program(session)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                found[party] = error

        threads = [threading.Thread(target=play, args=(p,), daemon=True) for p in joins]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), f"a party hangs; others: {found}"
        return found

    def play(self, program: Program) -> dict[str, Any]:
        """What each party's program returned; raises what one raised."""
        found = self.outcomes(program)
        for error in found.values():
            if isinstance(error, Exception):
                raise error
        return found

    def errors(self, program: Program) -> dict[str, Exception]:
        """What each party raised: all must, and within `SECONDS`."""
        started: list[float] = []

        def timed(session: Session) -> Any:
            started.append(time.monotonic())
            return program(session)

        found = self.outcomes(timed)
        assert time.monotonic() - started[0] < SECONDS
        for party, error in found.items():
            assert isinstance(error, Exception), f"{party} returned {error!r}"
        return found

    def _joins(self) -> dict[str, Callable[[], Session]]:
        if self.url is None:
            spec = ClusterSpec.parse(
                {"session": "s", "parties": ["alice", "bob", "carol"], "devices": DEVICES}
            )
            kept: dict[str, dict[str, bytes]] = {name: {} for name in spec.party_names}
            context = Simulator(spec)._sessions(Plan({}, spec.party_names), kept)
            return {name: partial(join, 1) for name, join in context.__enter__().items()}
        cluster = make_cluster(self.url, devices=DEVICES)
        settings = quick_settings()
        return {
            name: partial(
                lambda name: Session.from_endpoint(connect_as(cluster, name, settings)), name
            )
            for name in cluster.party_names
        }


@pytest.fixture(params=["memory", "valkey"])
def stage(request: pytest.FixtureRequest) -> Stage:
    """Runs a test once in each place."""
    if request.param == "memory":
        return Stage(None)
    return Stage(request.getfixturevalue("valkey").url)


@pytest.fixture
def memory() -> Stage:
    """For what does not depend on the place."""
    return Stage(None)
