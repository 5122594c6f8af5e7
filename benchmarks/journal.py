"""What a journal costs: ``python -m benchmarks.journal`` writes its part of docs/performance.md.

One training with and without, interleaved; and one large handle, beside the disk alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import machine
from benchmarks.chaos_page import span
from benchmarks.pages import JOURNAL, write_part
from benchmarks.processes import ROOT
from redislink.identity import Identity
from redislink.journal import Binding, JournalStore
from tests.support import resuming
from tests.support.resuming import BEFORE_TRAINING
from tests.support.servers import make_server

PAGE: Final = ROOT / "docs" / "performance.md"
STEPS: Final = 60
LARGE: Final = 100_000_000
_SMALL: Final = 4096
_MANY: Final = 50


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        whole: seconds from the joining of all until the last one has its result.
        steps: seconds from the end of the first training step to that of the last.
        kept: bytes on the disk, of the party that has most.
    """

    whole: float
    steps: float
    kept: int


def train(*, journal: bool, steps: int) -> Run:
    """Train, with processes and a broker of its own."""
    with make_server("valkey") as server, tempfile.TemporaryDirectory(prefix="bench-") as directory:
        outcome = resuming.train(server, Path(directory), steps=steps, journal=journal, timeout=300)
    if outcome.problems:
        raise SystemExit("; ".join(outcome.problems))
    ends: dict[int, float] = {}
    for event in (e for events in outcome.events.values() for e in events):
        if event["event"] == "progress":
            ends[event["step"]] = max(ends.get(event["step"], 0.0), event["at"])
    first, last = BEFORE_TRAINING + 1, BEFORE_TRAINING + steps
    return Run(
        max(result["seconds"] for result in outcome.results.values()),
        ends[last] - ends[first],
        max(outcome.journal_bytes.values(), default=0),
    )


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write_alone(directory: Path, content: bytes) -> float:
    """Seconds to write a file and to have it on the disk."""
    with (directory / "alone").open("wb", buffering=0) as file:

        def write() -> None:
            file.write(content)
            os.fdatasync(file.fileno())

        return timed(write)


def append(directory: Path, content: bytes) -> float:
    """Seconds to append a blob to a journal."""
    binding = Binding("bench", "alice", bytes(32), "", "")
    store = JournalStore.open(directory, binding, Identity.generate(), fresh=True)
    try:
        return timed(lambda: store.append(b"step", [[content]]))
    finally:
        store.close()


def ratio(with_it: Sequence[float], without: Sequence[float]) -> str:
    """Of the runs of each round."""
    return span([a / b for a, b in zip(with_it, without, strict=True)], "{:.2f}")


def measure(rounds: int, steps: int) -> str:
    """The part of the page."""
    before, began = machine.load(), time.monotonic()
    on, off, alone, appended, small = [], [], [], [], []
    content = os.urandom(LARGE)
    for number in range(rounds):
        for journal in (number % 2 == 0, number % 2 == 1):
            (on if journal else off).append(train(journal=journal, steps=steps))
        with tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as scratch:
            alone.append(write_alone(Path(scratch), content))
            appended.append(append(Path(scratch), content))
            each = [write_alone(Path(scratch), content[:_SMALL]) for _ in range(_MANY)]
            small.append(sorted(each)[_MANY // 2])
    told = machine.describe()
    rows = [
        ["", "without", "with a journal", "ratio"],
        ["---"] * 4,
        [
            f"logistic regression, {steps} steps, ABY3, 3 parties: from joining to the result",
            span([run.whole for run in off], "{:.2f} s"),
            span([run.whole for run in on], "{:.2f} s"),
            ratio([run.whole for run in on], [run.whole for run in off]),
        ],
        [
            "one of these steps",
            span([run.steps * 1e3 / (steps - 1) for run in off], "{:.1f} ms"),
            span([run.steps * 1e3 / (steps - 1) for run in on], "{:.1f} ms"),
            ratio([run.steps for run in on], [run.steps for run in off]),
        ],
        [
            "its journal on the disk, at the party that has most",
            "",
            span([run.kept / 1e3 for run in on], "{:.0f} kB"),
            "",
        ],
        [
            f"{LARGE // 10**6} MB: written to a file; appended to a journal as one share",
            span(alone, "{:.2f} s"),
            span(appended, "{:.2f} s"),
            ratio(appended, alone),
        ],
        [
            "4 kB written to a file and synced",
            span([seconds * 1e3 for seconds in small], "{:.2f} ms"),
            "",
            "",
        ],
    ]
    return "\n".join(
        [
            "## What a journal costs",
            "",
            f"Measured apart from the rest by `python -m benchmarks.journal`: {told['date']}, "
            f"revision {told['revision']}, {told['cpu']}, {told['cores']} cores, load average "
            f"{before} at the start and {machine.load()} at the end, {rounds} interleaved rounds, "
            f"{(time.monotonic() - began) / 60:.0f} minutes. Medians, with lowest and highest; a "
            "ratio compares two measurements of the same round. All parties share the machine and "
            "its disk.",
            "",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description="What a journal costs; writes performance.md")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args()
    text = measure(options.rounds, options.steps)
    print(text)
    write_part(options.page, JOURNAL, text)


if __name__ == "__main__":
    main()
