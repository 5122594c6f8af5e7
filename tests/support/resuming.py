"""A logistic regression of several processes with journals, some of which are killed on the way.

Rules: kills are timed by what the parties report, so that they hit a run that is under way; whoever
is killed is started again by the same command, and nobody else is touched. What was computed twice
is counted from the parties' reports.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from redislink.broker import EmbeddedBroker
from redislink.cli.parties import PartyProcess
from redislink.cluster.trial import trial_devices, write_trial
from tests.support.servers import restart_empty

PROGRAM = Path(__file__).with_name("resuming_party.py")
PARTIES = ("alice", "bob", "carol")
WEIGHT_TOLERANCE = 1e-2
"""As for `tests.support.training.WEIGHT_TOLERANCE`."""
BEFORE_TRAINING = 2
"""Steps that the program reports before it trains: the alignment, and the sharing of data."""
_POLL = 0.01


@dataclass(frozen=True)
class Kill:
    """Parties are killed with SIGKILL at the same moment, and started again.

    Attributes:
        parties: who.
        at: the reported step that some party has done by then; None kills while the parties come
            back from the last kill.
        later: how much later, in steps; in seconds if ``at`` is None.
        broker: whether the broker is killed too, and started empty.
    """

    parties: tuple[str, ...]
    at: int | None
    later: float
    broker: bool = False


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        results: each party's last report; none of a party that failed.
        problems: what kept it from ending well.
        kills: how many processes were killed.
        recoveries: for each kill, seconds from the start of the last killed process until every
            party had computed a step.
        computed: by party, how often it computed each reported step.
        loads: by party, how often it loaded each of its tables and arrays.
        attempts: how many runs of the program there were, of all parties.
        journal_bytes: by party, the size of its journal at the end.
        seconds: of the whole run, processes included.
        events: by party, everything that it reported.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    kills: int = 0
    recoveries: list[float] = field(default_factory=list)
    computed: dict[str, Counter[int]] = field(default_factory=dict)
    loads: dict[str, Counter[str]] = field(default_factory=dict)
    attempts: int = 0
    journal_bytes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def twice(self) -> int:
        """How many steps were computed to their end again, by whoever did so most often."""
        steps = {step for counts in self.computed.values() for step in counts}
        return sum(max(c[step] for c in self.computed.values()) - 1 for step in steps)

    @property
    def loaded_again(self) -> int:
        """How many loads came more than once."""
        return sum(count - 1 for counts in self.loads.values() for count in counts.values())


def train(
    server: EmbeddedBroker,
    directory: Path,
    *,
    steps: int,
    protocol: str = "ABY3",
    parties: Sequence[str] = PARTIES,
    kills: Sequence[Kill] = (),
    journal: bool = True,
    timeout: float = 120.0,
) -> Outcome:
    """Run the parties to their end, and kill them on the way.

    Args:
        server: the broker.
        directory: for keys, reports and journals; empty.
        steps: of training.
        protocol: of the device, whose members are all parties.
        parties: their names.
        kills: in order; the next one comes when all have computed again after the last.
        journal: whether the parties keep journals.
        timeout: seconds for each wait.
    """
    content = {
        "session": f"resuming-{secrets.token_hex(4)}",
        "parties": list(parties),
        "devices": trial_devices(list(parties), protocol),
    }
    keys = {name: directory / f"{name}.key" for name in parties}
    write_trial(content, directory / "cluster.yaml", keys, "of one test")
    environment = {"REDISLINK_BROKER_URL": server.url}
    if journal:
        environment["REDISLINK_JOURNAL_DIR"] = str(directory / "journals")
    started = time.monotonic()
    with _Run(directory, parties, steps, environment, timeout) as run:
        run.start(parties)
        for number, kill in enumerate(kills):
            again = number + 1 < len(kills) and kills[number + 1].at is None
            if not run.strike(kill, server if kill.broker else None, measure=not again):
                break
        outcome = run.ended()
    outcome.seconds = time.monotonic() - started
    outcome.kills = sum(len(kill.parties) for kill in kills)
    for name in parties if journal else ():
        files = (directory / "journals" / f"{content['session']}.{name}").glob("*")
        outcome.journal_bytes[name] = sum(file.stat().st_size for file in files)
    return outcome


class _Run:
    """The processes of one run, and what they have reported."""

    def __init__(
        self,
        directory: Path,
        parties: Sequence[str],
        steps: int,
        environment: dict[str, str],
        timeout: float,
    ) -> None:
        self._directory = directory
        self._parties = tuple(parties)
        self._steps = steps
        self._environment = environment
        self._timeout = timeout
        self._stack = ExitStack()
        self._processes: dict[str, PartyProcess] = {}
        self._events: dict[str, list[dict[str, Any]]] = {name: [] for name in parties}
        self._lives: Counter[str] = Counter()
        self._outcome = Outcome()

    def start(self, parties: Sequence[str]) -> None:
        """Start parties, by the same command each time."""
        for name in parties:
            self._lives[name] += 1
            place = self._directory / f"{name}-{self._lives[name]}"
            place.mkdir()
            environment = {"REDISLINK_IDENTITY_FILE": str(self._directory / f"{name}.key")}
            self._processes[name] = self._stack.enter_context(
                PartyProcess(
                    name,
                    cluster=self._directory / "cluster.yaml",
                    program=PROGRAM,
                    arguments=("--steps", str(self._steps)),
                    options=("--retries", "1000"),
                    directory=place,
                    environment=self._environment | environment,
                )
            )

    def strike(self, kill: Kill, server: EmbeddedBroker | None, *, measure: bool) -> bool:
        """Kill, start again, and wait until all compute; False if the run has failed."""
        if not self._wait(lambda: kill.at is None or self._furthest() >= kill.at):
            return False
        time.sleep(kill.later if kill.at is None else kill.later * self._step_seconds())
        for name in kill.parties:
            os.kill(self._processes[name].pid, signal.SIGKILL)
        for name in kill.parties:
            if not self._wait(lambda name=name: self._processes[name].exit_code() is not None):
                return False
            self._take(name)
        if server is not None:
            restart_empty(server)
        self.start(kill.parties)
        returned = time.monotonic()
        if not measure:
            return True
        if not self._wait(lambda: all(t > returned for t in self._last_computed().values())):
            return False
        took = max(min(self._computed_since(name, returned)) for name in self._parties)
        self._outcome.recoveries.append(took - returned)
        return True

    def ended(self) -> Outcome:
        """Wait for the end."""
        self._wait(lambda: all(p.exit_code() is not None for p in self._processes.values()))
        outcome = self._outcome
        for name, process in self._processes.items():
            self._take(name)
            if process.exit_code() != 0:
                outcome.problems.append(
                    f"{name}: exit code {process.exit_code()}: {process.last_line()}"
                )
            outcome.events[name] = events = self._events[name]
            done = [event for event in events if event["event"] == "progress"]
            outcome.computed[name] = Counter(e["step"] for e in done if not e["answered"])
            outcome.loads[name] = Counter(e["what"] for e in events if e["event"] == "loaded")
            if process.exit_code() == 0:
                outcome.results[name] = events[-1]
        for path in self._directory.glob("*-*/*.log"):
            outcome.attempts += 1 + path.read_text(errors="replace").count(" begins at ")
        return outcome

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Wait for something; False if a party has failed, or it does not come."""
        deadline = time.monotonic() + self._timeout
        while not condition():
            if any((p.exit_code() or 0) > 0 for p in self._processes.values()):
                return False
            if time.monotonic() > deadline:
                self._outcome.problems.append(f"nothing more came in {self._timeout:g} s")
                return False
            time.sleep(_POLL)
            for name in self._parties:
                self._take(name)
        return True

    def _take(self, name: str) -> None:
        if name in self._processes:
            self._events[name] += self._processes[name].events()

    def _furthest(self) -> int:
        return max((e.get("step", 0) for each in self._events.values() for e in each), default=0)

    def _step_seconds(self) -> float:
        """How long a step takes: the shortest of the last few, as some were cut by a kill."""
        took = []
        for name in self._parties:
            computed = sorted(self._computed_since(name, 0.0))[-6:]
            took += [last - first for first, last in pairwise(computed)]
        return min(took, default=0.0)

    def _computed_since(self, name: str, moment: float) -> Iterator[float]:
        for event in self._events[name]:
            if event["event"] == "progress" and not event["answered"] and event["at"] > moment:
                yield event["at"]

    def _last_computed(self) -> dict[str, float]:
        return {name: max(self._computed_since(name, 0.0), default=0.0) for name in self._parties}

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def differences(outcome: Outcome, undisturbed: Outcome) -> list[str]:
    """Why a run does not count as equal to an undisturbed one; nothing if it does."""
    if outcome.problems:
        return outcome.problems
    found = []
    apart = weight_error(outcome, undisturbed)
    if apart > WEIGHT_TOLERANCE:
        found.append(f"weights differ by up to {apart:.4f}")
    if abs(outcome.results["alice"]["right"] - undisturbed.results["alice"]["right"]) > 1:
        found.append("the model tells another number of patients rightly")
    if outcome.twice > outcome.kills:
        found.append(f"{outcome.twice} steps were computed twice, for {outcome.kills} kills")
    if outcome.loaded_again:
        found.append(f"{outcome.loaded_again} loads came again: {outcome.loads}")
    return found


def weight_error(outcome: Outcome, undisturbed: Outcome) -> float:
    """The largest difference of a weight."""
    ours, theirs = (o.results["alice"]["weights"] for o in (outcome, undisturbed))
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def at_random(
    whom: Sequence[tuple[str, ...]], steps: int, seed: int, *, broker: bool = False
) -> list[Kill]:
    """Kills at moments of the training drawn at random, in an order drawn at random.

    Args:
        whom: who is killed at once, for each kill.
        steps: of training; none of the last two is hit.
        seed: of the moments.
        broker: whether the broker is killed too each time.
    """
    chance = random.Random(seed)
    order = chance.sample(list(whom), len(whom))
    moments = sorted(chance.uniform(1, steps - 2) for _ in order)
    return [
        Kill(parties, BEFORE_TRAINING + int(moment), moment % 1, broker)
        for parties, moment in zip(order, moments, strict=True)
    ]
