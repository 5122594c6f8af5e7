"""One of three parties fails while the others are blocked: how soon each of them knows.

All three receive from the first party that is not themselves: bob and carol from alice, alice
from bob. Times are of the machine's monotonic clock, which processes share.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redislink.cluster.trial import write_trial
from tests.support.forking import ForkedParty
from tests.support.waiting import wait_until

PROGRAM = Path(__file__).with_name("spread_party.py")
PARTIES = ("alice", "bob", "carol")


@dataclass
class Trio:
    """Three processes; `events` is what each has reported so far."""

    directory: Path
    url: str
    settings: dict[str, str]
    cluster: Path
    processes: dict[str, ForkedParty] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _starts: int = 0

    def start(self, party: str, role: str, seconds: float = 0.0) -> None:
        """Start a party, or start it again."""
        self._starts += 1
        directory = self.directory / f"{self._starts}-{party}"
        directory.mkdir()
        self.events[party] = []
        self.processes[party] = ForkedParty(
            party,
            cluster=self.cluster,
            program=PROGRAM,
            arguments=("--role", role, "--seconds", str(seconds)),
            directory=directory,
            environment={
                "REDISLINK_BROKER_URL": self.url,
                "REDISLINK_IDENTITY_FILE": str(self.directory / f"{party}.key"),
                **{f"REDISLINK_{name}": value for name, value in self.settings.items()},
            },
        )

    def wait_for(self, event: str, *parties: str, timeout: float = 60.0) -> None:
        """Return once each of these parties has reported this, or has ended."""

        def done(party: str) -> bool:
            process = self.processes[party]
            ended = process.exit_code() is not None
            self.events[party] += process.events()
            return ended or any(e["event"] == event for e in self.events[party])

        wait_until(lambda: sum(done(party) for party in parties) == len(parties), timeout)
        for party in parties:
            if self.find(event, party) is None:
                raise AssertionError(f"{party} ended: {self.processes[party].output()[-1000:]}")

    def find(self, event: str, party: str) -> dict[str, Any] | None:
        """The event, if the party has reported it."""
        return next((e for e in self.events[party] if e["event"] == event), None)

    def said(self, party: str) -> str:
        """What the user of a party saw at the end, once it has ended."""
        wait_until(lambda: self.processes[party].exit_code() is not None, 30)
        return self.processes[party].last_line()

    def signal(self, party: str, number: signal.Signals) -> float:
        """Send a signal; returns when that was."""
        os.kill(self.processes[party].pid, number)
        return time.monotonic()


@contextmanager
def trio(
    url: str, directory: Path, roles: dict[str, str], seconds: float = 0.0, **settings: object
) -> Iterator[Trio]:
    """Three parties that are all joined, and blocked or ready to be told; ended afterwards.

    Args:
        url: of the broker.
        directory: for their files.
        roles: of `tests.support.spread_party`; ``wait`` where not named.
        seconds: how long a role holds the GIL.
        settings: of every party.
    """
    cluster = directory / "cluster.yaml"
    content = {"session": f"spread-{secrets.token_hex(4)}", "parties": list(PARTIES)}
    key_files = {name: directory / f"{name}.key" for name in PARTIES}
    write_trial(content, cluster, key_files, "of one test")
    three = Trio(directory, url, {k.upper(): str(v) for k, v in settings.items()}, cluster)
    try:
        for party in PARTIES:
            three.start(party, roles.get(party, "wait"), seconds)
        three.wait_for("blocks", *PARTIES)
        yield three
    finally:
        for process in three.processes.values():
            process.stop()
