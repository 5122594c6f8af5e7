"""A party is killed with SIGKILL and started again: both go on, and nothing is computed anew.

`make chaos` kills parties of a longer training in several ways; here one party dies once.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from redislink import RedisLinkError, Session
from redislink.cluster.trial import trial_devices, write_trial
from redislink.identity import Identity
from tests.broker_real.conftest import MakeServer
from tests.conftest import quick_settings
from tests.support import adding_party
from tests.support.forking import ForkedParty
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
STEPS = 10
KILLED_AT = 4


def test_a_killed_party_comes_back_and_the_run_goes_on(
    own_server: MakeServer, tmp_path: Path
) -> None:
    server = own_server("valkey")
    names = ["alice", "bob"]
    cluster = tmp_path / "cluster.yaml"
    keys = {name: tmp_path / f"{name}.key" for name in names}
    content = {"session": "s", "parties": names, "devices": trial_devices(names, "SEMI2K")}
    write_trial(content, cluster, keys, "of one test")
    lives: list[ForkedParty] = []
    told: list[dict[str, Any]] = []

    def start_bob() -> None:
        directory = tmp_path / f"bob-{len(lives) + 1}"
        directory.mkdir()
        lives.append(
            ForkedParty(
                "bob",
                cluster=cluster,
                program=Path(adding_party.__file__),
                arguments=("--steps", str(STEPS)),
                options=("--journal", str(tmp_path)),
                directory=directory,
                environment={
                    "REDISLINK_BROKER_URL": server.url,
                    "REDISLINK_IDENTITY_FILE": str(keys["bob"]),
                },
            )
        )

    def report(event: dict[str, Any]) -> None:
        """Alice's; while she is in the step, bob is killed and comes back."""
        told.append(event)
        if event == {"event": "step", "number": KILLED_AT, "answered": False} and len(lives) == 1:
            os.kill(lives[0].pid, signal.SIGKILL)
            wait_until(lambda: lives[0].exit_code() is not None)
            start_bob()

    def alice() -> float:
        with Session.join(
            cluster,
            "alice",
            quick_settings(broker_url=server.url),
            identity=Identity.load(keys["alice"]),
            journal=tmp_path,
        ) as session:
            return adding_party.main(session, STEPS, report)

    start_bob()
    try:
        with pytest.raises(RedisLinkError) as lost:
            alice()
        assert lost.value.retryable
        total = alice()
        wait_until(lambda: lives[1].exit_code() is not None, 30)
        assert lives[1].exit_code() == 0, lives[1].output()
        events = [event for life in lives for event in life.events()]
    finally:
        for life in lives:
            life.stop()

    assert total == pytest.approx(3 + STEPS * 5, abs=0.1)
    assert events[-1] == {"event": "result", "sum": total}
    for mine in (told, events):
        computed = [event["number"] for event in mine if event.get("answered") is False]
        assert len(computed) <= STEPS + 1, "one step more than without the kill"
        # Bob may be killed between the end of a step and his report of it.
        assert len(set(computed)) >= STEPS - (mine is events)
        assert sum(event["event"] == "loaded" for event in mine) == 1
