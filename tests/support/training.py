"""A logistic regression of three processes, while something is done to their broker.

Rules: faults are timed by what the parties report, not by the clock, so that they hit a run
that is under way; the run is judged by checksums of every message and by its result.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from redislink.broker import EmbeddedBroker
from redislink.cli.parties import PartyProcess
from redislink.cluster.trial import write_trial
from redislink.errors import BrokerUnreachable
from redislink.testing import Proxy
from redislink.testing.proxy import ProxiedConnection
from tests.support.groups import ClusterGroup, SentinelGroup, slot_of
from tests.support.ledger import Comparison, compare
from tests.support.servers import Admin, make_server, restart_empty

PROGRAM = Path(__file__).with_name("training_party.py")
CLUSTER = Path(__file__).resolve().parents[2] / "examples" / "cluster.yaml"
PARTIES = ("alice", "bob", "carol")
WEIGHT_TOLERANCE = 1e-2
"""ABY3 truncates by chance: two undisturbed runs differ too, by some 1e-4."""
_POLL = 0.01

Counts = Counter[str]


class Progress:
    """What the parties have reported so far; for injectors, which run in threads of their own."""

    def __init__(self) -> None:
        self.steps = dict.fromkeys(PARTIES, 0)
        self.over = threading.Event()
        self._changed = threading.Condition()

    def note(self, party: str, step: int) -> None:
        """A party has done this step; 1 is the alignment."""
        with self._changed:
            self.steps[party] = step
            self._changed.notify_all()

    def end(self) -> None:
        """The run is over."""
        with self._changed:
            self.over.set()
            self._changed.notify_all()

    def wait_for(self, step: int) -> bool:
        """Return once any party has done this step; False if the run ended first."""
        with self._changed:
            self._changed.wait_for(lambda: self.over.is_set() or max(self.steps.values()) >= step)
            return not self.over.is_set()


Injector = Callable[[Progress, Counts], None]
"""Does its harm until the run is over, and counts it."""


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        faults: how many of each kind were injected.
        exit_codes: by party.
        results: each party's last report; empty for one that failed.
        last_lines: what each printed last.
        seconds: of the whole run, processes included.
        comparison: of everything sent with everything received.
    """

    faults: Counts
    exit_codes: dict[str, int | None]
    results: dict[str, dict[str, Any]]
    last_lines: dict[str, str]
    seconds: float
    comparison: Comparison | None = None
    problems: list[str] = field(default_factory=list)

    def total(self, stat: str) -> int:
        """Of one of `EndpointStats`, over all parties."""
        return sum(int(result["stats"][stat]) for result in self.results.values())

    @property
    def training_seconds(self) -> float:
        """From the moment that all had joined until the last was done."""
        return max(float(result["seconds"]) for result in self.results.values())


def train(
    urls: str | dict[str, str],
    directory: Path,
    *,
    steps: int,
    injectors: Sequence[Injector] = (),
    settings: dict[str, str] | None = None,
    session: str | None = None,
    timeout: float = 120.0,
    party_process: type[PartyProcess] = PartyProcess,
) -> Outcome:
    """Run the three parties to their end, with the injectors at work all the while.

    Args:
        urls: of the broker; by party where each has its own way there.
        directory: for reports and output; empty.
        steps: of training.
        injectors: see `Injector`.
        settings: further ``REDISLINK_*``, by name in capitals.
        session: its name; None makes one.
        timeout: seconds; parties that run on are ended, and their exit code is None.
        party_process: how they are started.
    """
    session = session or f"chaos-{secrets.token_hex(4)}"
    cluster = yaml.safe_load(CLUSTER.read_text()) | {"session": session}
    path = directory / "cluster.yaml"
    key_files = {name: directory / f"{name}.key" for name in PARTIES}
    write_trial(cluster, path, key_files, "of one test")
    progress, counts = Progress(), Counter[str]()
    results: dict[str, dict[str, Any]] = {}
    died: list[str] = []

    def inject(injector: Injector) -> None:
        try:
            injector(progress, counts)
        except Exception as error:  # noqa: BLE001 - a run that was not disturbed proves nothing
            died.append(f"an injector of faults died: {error!r}")

    threads = [
        threading.Thread(target=inject, args=(injector,), daemon=True) for injector in injectors
    ]
    started = time.monotonic()
    with ExitStack() as stack:
        parties = [
            stack.enter_context(
                party_process(
                    name,
                    cluster=path,
                    program=PROGRAM,
                    arguments=("--steps", str(steps)),
                    directory=directory,
                    environment={
                        "REDISLINK_BROKER_URL": urls if isinstance(urls, str) else urls[name],
                        "REDISLINK_IDENTITY_FILE": str(key_files[name]),
                        **{f"REDISLINK_{key}": value for key, value in (settings or {}).items()},
                    },
                )
            )
            for name in PARTIES
        ]
        stack.callback(progress.end)
        for thread in threads:
            thread.start()
        pause = threading.Event()
        while time.monotonic() < started + timeout:
            running = [party for party in parties if party.exit_code() is None]
            for party in parties:
                for event in party.events():
                    if event["event"] == "progress":
                        progress.note(party.name, event["step"])
                    elif event["event"] == "result":
                        results[party.name] = event
            failed = [party for party in parties if party.exit_code()]
            if not running or (failed and len(failed) + len(results) == len(parties)):
                break
            pause.wait(_POLL)
        seconds = time.monotonic() - started
        codes = {party.name: party.exit_code() for party in parties}
        lines = {party.name: party.last_line() for party in parties}
    for thread in threads:
        thread.join(30)
    outcome = Outcome(counts, codes, results, lines, seconds)
    outcome.problems = [f"{p}: exit code {c}: {lines[p]}" for p, c in codes.items() if c != 0]
    outcome.problems += died
    if len(results) == len(PARTIES):
        outcome.comparison = compare({name: r["ledger"] for name, r in results.items()})
    return outcome


def differences(outcome: Outcome, undisturbed: Outcome) -> list[str]:
    """Why a run does not count as equal to an undisturbed one; nothing if it does."""
    if outcome.problems:
        return outcome.problems
    found = []
    if outcome.comparison is None or not outcome.comparison.clean:
        found.append(f"messages: {outcome.comparison}")
    found += [
        f"{name}: PSI aligned other rows"
        for name in ("alice", "bob")
        if outcome.results[name]["aligned"] != undisturbed.results[name]["aligned"]
    ]
    apart = weight_error(outcome, undisturbed)
    if apart > WEIGHT_TOLERANCE:
        found.append(f"weights differ by up to {apart:.4f}")
    if abs(outcome.results["alice"]["right"] - undisturbed.results["alice"]["right"]) > 1:
        found.append("the model tells another number of patients rightly")
    return found


def weight_error(outcome: Outcome, undisturbed: Outcome) -> float:
    """The largest difference of a weight."""
    ours, theirs = (o.results["alice"]["weights"] for o in (outcome, undisturbed))
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


# ---- when it is done ----

Moments = Callable[[Progress], Iterator[None]]
"""When an injector does its harm; ends with the run."""


def at_steps(steps: Iterable[int]) -> Moments:
    """As soon as any party has done each of these steps: so often, however fast the run is."""

    def moments(progress: Progress) -> Iterator[None]:
        for step in steps:
            if not progress.wait_for(step):
                return
            yield

    return moments


def every(least: float, most: float | None = None) -> Moments:
    """Again and again from the start on, after so many seconds each time, or at random."""

    def moments(progress: Progress) -> Iterator[None]:
        chance = random.Random(f"{least} {most}")  # else faults of all kinds would come in step
        while not progress.over.wait(chance.uniform(least, most or least)):
            yield

    return moments


# ---- what is done to the broker ----


def restarts(server: EmbeddedBroker, when: Moments) -> Injector:
    """Kill the broker and start it empty."""

    def inject(progress: Progress, counts: Counts) -> None:
        for _ in when(progress):
            restart_empty(server)
            counts["SIGKILL and empty restart"] += 1

    return inject


def kill_clients(server: EmbeddedBroker, when: Moments) -> Injector:
    """Cut all connections of all parties."""

    def inject(progress: Progress, counts: Counts) -> None:
        admin = Admin(server)
        for _ in when(progress):
            try:
                killed = admin(b"CLIENT", b"KILL", b"TYPE", b"normal")
            except BrokerUnreachable:
                continue  # something else kills the broker just now
            counts["connections killed"] += killed
            counts["CLIENT KILL"] += 1
        admin.close()

    return inject


def flushes(server: EmbeddedBroker, when: Moments) -> Injector:
    """FLUSHALL."""

    def inject(progress: Progress, counts: Counts) -> None:
        admin = Admin(server)
        for _ in when(progress):
            try:
                keys = admin(b"DBSIZE")
                admin(b"FLUSHALL")
            except BrokerUnreachable:
                continue  # something else kills the broker, or its connections, just now
            counts["FLUSHALL"] += 1
            counts["keys flushed"] += keys
        admin.close()

    return inject


def broken_lines(
    proxies: dict[str, Proxy], *, cut: Moments, stall: Moments, delay: Moments
) -> list[Injector]:
    """Cut single connections, stall them half-open, slow them down; each is chosen at random."""

    def line(kind: str, when: Moments, harm: Callable[[ProxiedConnection], None]) -> Injector:
        def inject(progress: Progress, counts: Counts) -> None:
            chance = random.Random(kind)
            for _ in when(progress):
                live = [
                    connection
                    for name in PARTIES
                    for connection in proxies[name].connections
                    if not connection.stalled
                ]
                if live:
                    harm(chance.choice(live))
                    counts[f"connections {kind}"] += 1

        return inject

    def slow_down(connection: ProxiedConnection) -> None:
        connection.delay = 0.005

    return [
        line("cut", cut, ProxiedConnection.cut),
        line("stalled half-open", stall, ProxiedConnection.stall),
        line("delayed 5 ms", delay, slow_down),
    ]


def failovers(group: SentinelGroup, when: Moments) -> Injector:
    """Kill the master."""

    def inject(progress: Progress, counts: Counts) -> None:
        for _ in when(progress):
            group.fail_over()
            counts["master killed, replica promoted"] += 1

    return inject


def slot_moves(group: ClusterGroup, session: str, when: Moments) -> Injector:
    """Move the slot of one party's inbox after the other to the next master."""

    def inject(progress: Progress, counts: Counts) -> None:
        for turn, _ in enumerate(when(progress)):
            slot = slot_of(session, PARTIES[turn % len(PARTIES)])
            with group.changing:
                nodes = group.masters
                target = nodes[(nodes.index(group.node_of(slot)) + 1) % len(nodes)]
                counts["lists moved with it"] += group.move_slot(slot, target)
            counts["slot moved"] += 1

    return inject


def node_restarts(group: ClusterGroup, when: Moments) -> Injector:
    """Kill one master after the other and start it empty."""

    def inject(progress: Progress, counts: Counts) -> None:
        for turn, _ in enumerate(when(progress)):
            with group.changing:
                group.restart_empty(group.masters[turn % len(group.masters)])
            counts["node killed and started empty"] += 1

    return inject


def node_lost(group: ClusterGroup, when: Moments) -> Injector:
    """Kill a master for good: its replica takes over."""

    def inject(progress: Progress, counts: Counts) -> None:
        for _ in when(progress):
            group.lose(next(iter(group.replicas)))
            counts["node lost, replica promoted"] += 1

    return inject


class Two:
    """Two independent brokers, and each party's line to each of them."""

    def __init__(self) -> None:
        self.servers = [make_server("valkey") for _ in range(2)]
        self.lines: list[dict[str, Proxy]] = []
        self._stack = ExitStack()

    @property
    def urls(self) -> dict[str, str]:
        """What each party has as its ``REDISLINK_BROKER_URL``."""
        return {name: ", ".join(line[name].url() for line in self.lines) for name in PARTIES}

    def kill(self, index: int) -> None:
        """Kill a broker; it stays dead until it is started again."""
        os.kill(self.servers[index].pid, signal.SIGKILL)
        self.servers[index].stop()

    def go_away(self, index: int, *, silently: bool = False) -> None:
        """Take a broker away from all parties."""
        for line in self.lines[index].values():
            line.go_away(silently=silently)

    def come_back(self, index: int) -> None:
        """Give it back to them."""
        for line in self.lines[index].values():
            line.come_back()

    def __enter__(self) -> Two:
        for server in self.servers:
            self._stack.enter_context(server)
            self.lines.append(self._stack.enter_context(proxied(server)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def killed_for_good(two: Two, when: Moments) -> Injector:
    """Kill the first of two brokers."""

    def inject(progress: Progress, counts: Counts) -> None:
        for _ in when(progress):
            two.kill(0)
            counts["SIGKILL"] += 1

    return inject


def silent_for_good(two: Two, when: Moments) -> Injector:
    """Let the first of two brokers fall silent."""

    def inject(progress: Progress, counts: Counts) -> None:
        for _ in when(progress):
            two.go_away(0, silently=True)
            counts["fallen silent"] += 1

    return inject


@contextmanager
def proxied(server: EmbeddedBroker) -> Iterator[dict[str, Proxy]]:
    """A proxy for each party, by name."""
    with ExitStack() as stack:
        contexts: dict[str, AbstractContextManager[Proxy]] = {
            name: Proxy(server.port) for name in PARTIES
        }
        yield {name: stack.enter_context(context) for name, context in contexts.items()}
