"""Runs one session: a fresh process per party, a fresh broker, and the network between them.

Rules: whatever is started here ends with the session; a session that fails is tried once more
and then reported as failed, so that one bad run does not end all.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import processes, transports
from benchmarks.brokers import ONE, BrokerServers
from benchmarks.calibrate import cpu_seconds
from benchmarks.netproxy import BROKER, Edge, NetworkProcess, Profile
from benchmarks.turns import Ring
from redislink.errors import RedisLinkError

LOOPBACK: Final = Profile("loopback")
_GRACE: Final = 2.0
_POLL: Final = 0.02
_PORTS: Final = range(20000, 32000)  # below those that connections take
_TAIL_LINES: Final = 6

Record = dict[str, Any]
Work = dict[str, Any]


@dataclass(frozen=True)
class Session:
    """One measurement: what is run, by how many, over what.

    Attributes:
        group: sessions of one group are compared with one another, in the same round.
        variant: tells apart those of one group.
        transport: one of `transports.ALL`.
        works: what the parties do, one after the other; each has a ``name`` and a ``kind``.
        world_size: parties.
        profile: the network between them.
        runs: in how many rounds it takes part.
        timeout: seconds until it has failed.
        processes: if not one per party.
        revision: directory with the ``redislink`` of another revision, for its parties.
        broker: one of the kinds of `benchmarks.brokers`.
        in_turns: run at once with the others of its group; one measures while they wait.
    """

    group: str
    variant: str
    transport: str
    works: tuple[Work, ...]
    world_size: int = 2
    profile: Profile = LOOPBACK
    runs: int = 1
    timeout: float = 120.0
    processes: int | None = None
    revision: Path | None = None
    broker: str = ONE
    in_turns: bool = False

    @property
    def label(self) -> str:
        """For progress lines."""
        return f"{self.group} {self.variant}, {self.profile.name}, {self.world_size} parties"


@dataclass
class Runner:
    """Runs sessions.

    Attributes:
        scratch: directory for what passes between processes.
        code: directory with the ``redislink`` and ``benchmarks`` that parties run.
        mplang: an interpreter with ``mplang-nightly``; None if there is none.
    """

    scratch: Path
    code: Path
    mplang: str | None = None
    _used_ports: set[int] = field(default_factory=set)

    def run(self, session: Session) -> Record:
        """Run a session; the record says what came out, or why nothing did."""
        return self._try_twice([session], lambda: [self._attempt(session)])[0]

    def run_in_turns(self, sessions: Sequence[Session]) -> list[Record]:
        """Run sessions at once, so that they take turns; a record for each."""
        if len(sessions) == 1:
            return [self.run(sessions[0])]
        return self._try_twice(sessions, lambda: self._attempt_in_turns(sessions))

    def _try_twice(
        self, sessions: Sequence[Session], attempt: Callable[[], list[Record]]
    ) -> list[Record]:
        for number in (1, 2):
            start = time.monotonic()
            found = attempt()
            took = round(time.monotonic() - start, 2)
            if number == 2 or not any(outcome["error"] for outcome in found):
                break
        return [
            {
                "group": session.group,
                "variant": session.variant,
                "transport": session.transport,
                "profile": session.profile.name,
                "world_size": session.world_size,
                "broker": session.broker,
                "attempts": number,
                "took": took,
            }
            | outcome
            for session, outcome in zip(sessions, found, strict=True)
        ]

    def _attempt(self, session: Session, turns: Sequence[tuple[str, str]] | None = None) -> Record:
        try:
            return self._run_once(session, turns) | {"error": None}
        except SessionFailed as error:
            return {"error": str(error)}

    def _attempt_in_turns(self, sessions: Sequence[Session]) -> list[Record]:
        count = len(sessions)
        ended: list[int] = []

        def attempt(number: int) -> Record:
            outcome = self._attempt(sessions[number], ring.arguments(number))
            ended.append(number)
            ring.pass_on(number, lambda: len(ended) == count)
            return outcome

        with (
            tempfile.TemporaryDirectory(dir=self.scratch, prefix="turns-") as directory,
            contextlib.closing(Ring(Path(directory), [s.world_size for s in sessions])) as ring,
            ThreadPoolExecutor(count) as pool,
        ):
            return list(pool.map(attempt, range(count)))

    def _run_once(self, session: Session, turns: Sequence[tuple[str, str]] | None) -> Record:
        names = [f"p{rank}" for rank in range(session.world_size)]
        devices = [work["device"] for work in session.works if "device" in work]
        with ExitStack() as stack:
            directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(dir=self.scratch, prefix="run-"))
            )
            broker = None
            if session.transport in transports.THROUGH_BROKER:
                try:
                    broker = stack.enter_context(BrokerServers(session.broker))
                except (RedisLinkError, RuntimeError) as error:
                    raise SessionFailed(str(error)) from None
            listening = self._own_ports(session, devices)
            edges = _edges(names, listening, broker.ports[0] if broker else None)
            network = None
            if not session.profile.is_loopback:
                network = stack.enter_context(NetworkProcess(session.profile, edges))
            job = {
                "session": f"bench-{secrets.token_hex(4)}",
                "transport": session.transport,
                "parties": names,
                "devices": devices,
                "works": session.works,
                "keys": [secrets.token_hex(32) for _ in names],
                "broker_pid": broker.pids[0] if broker else None,
                "broker_pids": broker.pids if broker else [],
                "broker_ports": broker.ports if broker else [],
                "broker_urls": [
                    _broker_url(session, broker, network, name) for name in names if broker
                ],
                "ports": [
                    {
                        device: [
                            port if name == other else _entry(network, name, other, port)
                            for other, port in zip(names, ports, strict=True)
                        ]
                        for device, ports in listening.items()
                    }
                    for name in names
                ],
                "directory": str(directory),
                "timeout": session.timeout,
                "turns": turns,
            }
            (directory / "job.json").write_text(json.dumps(job))
            before = _cpu_of(network)
            self._run_parties(session, directory)
            outputs = sorted(directory.glob("out*.json"))
            record: Record = {
                "parties": [json.loads(path.read_text()) for path in outputs],
                "proxy_cpu": round(_cpu_of(network) - before, 3),
            }
            _check_results(session, directory, record)
            return record

    def _own_ports(self, session: Session, devices: list[str]) -> dict[str, list[int]]:
        """Where each party listens, by device and rank, for transports that do."""
        if session.transport == transports.MPLANG:
            devices = ["http"]
        elif session.transport not in transports.LISTENING:
            return {}
        return {device: self._free_ports(session.world_size) for device in devices}

    def _free_ports(self, count: int) -> list[int]:
        ports = []
        while len(ports) < count:
            port = _PORTS.start + secrets.randbelow(len(_PORTS))
            if port in self._used_ports:
                continue
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                self._used_ports.add(port)
                ports.append(port)
        return ports

    def _run_parties(self, session: Session, directory: Path) -> None:
        count = session.processes or session.world_size
        if session.transport == transports.MEM:
            count = 1
        interpreter = sys.executable
        if session.transport == transports.MPLANG:
            if self.mplang is None:
                raise SessionFailed("mplang-nightly is not installed")
            interpreter = self.mplang
        code = [path for path in (session.revision, self.code) if path is not None]
        with ExitStack() as stack:
            started = []
            for index in range(count):
                output = stack.enter_context((directory / f"log{index}").open("wb"))
                process = subprocess.Popen(
                    processes.command(
                        "party", str(directory / "job.json"), str(index), interpreter=interpreter
                    ),
                    cwd=directory,
                    env=processes.environment(*code),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                stack.callback(_end, process)
                started.append(process)
            failed = _wait(started, session.timeout + _GRACE)
        if failed is not None:
            text = (directory / f"log{failed}").read_text(errors="replace")
            tail = " | ".join(text.strip().splitlines()[-_TAIL_LINES:])
            raise SessionFailed(f"process {failed}: {tail[-600:] or 'it said nothing'}")


class SessionFailed(Exception):
    """A session did not come to its end; the message is one line."""


def _edges(
    names: Sequence[str], listening: dict[str, list[int]], broker_port: int | None
) -> list[Edge]:
    edges = [
        Edge(name, other, ("127.0.0.1", port))
        for ports in listening.values()
        for other, port in zip(names, ports, strict=True)
        for name in names
        if name != other
    ]
    if broker_port is not None:
        edges += [Edge(name, BROKER, ("127.0.0.1", broker_port)) for name in names]
    return edges


def _broker_url(
    session: Session, broker: BrokerServers, network: NetworkProcess | None, name: str
) -> str:
    if session.transport == transports.REDISLINK_UNIX:
        return broker.unix_url
    if network is None:
        return broker.url
    return f"redis://127.0.0.1:{_entry(network, name, BROKER, broker.ports[0])}/0"


def _entry(network: NetworkProcess | None, source: str, target: str, port: int) -> int:
    return port if network is None else network.ports[source, target, port]


def _cpu_of(network: NetworkProcess | None) -> float:
    return 0.0 if network is None else cpu_seconds(network.pid)


def _wait(started: list[subprocess.Popen[bytes]], timeout: float) -> int | None:
    """Wait for all; the number of the first that failed, or of one that did not end in time."""
    deadline = time.monotonic() + timeout
    failed = None
    while True:
        codes = [process.poll() for process in started]
        if failed is None and any(codes):
            failed = next(number for number, code in enumerate(codes) if code)
            deadline = min(deadline, time.monotonic() + _GRACE)
        if None not in codes:
            return failed
        if time.monotonic() > deadline:
            return codes.index(None) if failed is None else failed
        time.sleep(_POLL)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _check_results(session: Session, directory: Path, record: Record) -> None:
    """Refuse a result that is not right: a fast wrong answer is no measurement."""
    for work in session.works:
        if work["kind"] == "program":
            from benchmarks import programs

            paths = [
                directory / f"result-{work['name']}-{rank}" for rank in range(session.world_size)
            ]
            if problem := programs.check(work["program"], paths):
                raise SessionFailed(problem)
        elif work["kind"] == "psi":
            found = {party[work["name"]]["values"]["intersection"] for party in record["parties"]}
            if found != {work["expected"]}:
                raise SessionFailed(f"psi: found {found}, expected {work['expected']}")
