"""The runs that are kept, a file each: docs/performance.md and the README's figures come from them.

A file's name is the day, the machine's short name and the revision. It holds no name of a host.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import machine
from benchmarks.processes import ROOT
from benchmarks.results import Bar, Results, Sample, ratio_text

KEPT: Final = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        meta: where, when and with what.
        results: what came out.
    """

    meta: dict[str, Any]
    results: Results

    @property
    def machine(self) -> str:
        """Short name of the machine with its interpreter."""
        return machine.identity(self.meta["machine"])

    @property
    def day(self) -> str:
        """As YYYY-MM-DD."""
        return str(self.meta["machine"]["date"]).split()[0]

    @property
    def revision(self) -> str:
        """Of what was measured."""
        return str(self.meta["machine"]["revision"])

    @property
    def title(self) -> str:
        """Day, machine and revision."""
        return f"{self.day}, machine `{self.machine}`, {self.revision}"

    @property
    def file_name(self) -> str:
        """Where it is kept. With the time, as a revision may be measured in several runs."""
        time = str(self.meta["machine"]["date"]).split()[1].replace(":", "")[:4]
        return f"{self.day}-{time}-{self.machine}-{self.revision}.json"

    @property
    def of_another_revision(self) -> bool:
        """If it was made to be compared with."""
        return bool(self.meta.get("of"))

    def write(self, path: Path) -> None:
        """Keep it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"meta": self.meta, "records": self.results.records}))


def read(path: Path) -> Run:
    """A run that was kept."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Run(content["meta"], Results(content["records"]))


def read_all(directory: Path = KEPT) -> list[Run]:
    """Those that are kept, the newest first; those of other revisions last."""
    runs = [read(path) for path in directory.glob("*.json")]
    runs.sort(key=lambda run: str(run.meta["machine"]["date"]), reverse=True)
    return sorted(runs, key=lambda run: run.of_another_revision)


class Newest(Results):
    """Of each group of sessions, the records of the newest run that has it.

    Attributes:
        sources: that run, by group.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        """Args: runs, the newest first."""
        self.sources: dict[str, Run] = {}
        records = []
        for run in runs:
            if run.of_another_revision:
                continue
            for group in {record["group"] for record in run.results.records} - {*self.sources}:
                self.sources[group] = run
                records += [r for r in run.results.records if r["group"] == group]
        super().__init__(records)


def by_machine(runs: Sequence[Run], bar: Bar) -> list[Sample]:
    """A bar's figure on each machine: that of its newest run which has one."""
    found: dict[str, Sample] = {}
    for run in runs:
        sample = bar.measure(run.results)
        if sample is not None and not run.of_another_revision:
            found.setdefault(run.machine, sample)
    return list(found.values())


def span_text(samples: Sequence[Sample]) -> str:
    """Medians of the machines from least to most, with those of all rounds in brackets."""
    medians = sorted({*ratio_text([sample.median for sample in samples])})
    values = [value for sample in samples for value in sample.values]
    text = " to ".join({medians[0]: None, medians[-1]: None})
    if len(values) == len(samples):
        return text
    least, most = ratio_text([min(values), max(values)])
    return f"{text} ({least} to {most})"
