"""Run some or all jobs, print a table, and keep it as JSON in ``build/acceptance``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.acceptance.jobs import ROOT, Job, NotHad, Outcome

MODULES: list[str] = ["spu_links", "spu_suites", "mplang", "forwarding", "secretflow"]
"""Of `tests.acceptance`, each with a list ``JOBS``."""


def find_jobs() -> dict[str, Job]:
    """All jobs by their names, in the order in which they run."""
    modules = [importlib.import_module(f"tests.acceptance.{name}") for name in MODULES]
    return {job.name: job for module in modules for job in module.JOBS}


def show(outcomes: list[Outcome]) -> Table:
    """A row for each program or suite."""
    table = Table("program or suite", "passed", "s", "on its own links", "listening", "note")
    for each in outcomes:
        listening = "" if each.listening is None else str(each.listening)
        table.add_row(
            each.name, f"{each.passed} of {each.total}", f"{each.seconds:.1f}", each.beside,
            listening, each.note,
        )  # fmt: skip
    return table


def main() -> int:
    """0: all ran and passed; 1: something failed; 2: nothing failed, but some could not run."""
    jobs = find_jobs()
    parser = argparse.ArgumentParser(prog="tests.acceptance", description=__doc__)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(jobs)}; none: all")
    parser.add_argument(
        "--sources",
        type=Path,
        default=os.environ.get("ACCEPTANCE_SOURCES"),
        help="directory with checkouts named spu, mplang, …; else they are cloned",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.jobs) - set(jobs):
        parser.error(f"no such job: {', '.join(sorted(unknown))}")
    build = ROOT / "build" / "acceptance"
    build.mkdir(parents=True, exist_ok=True)
    sources = arguments.sources and Path(arguments.sources).resolve()
    console = Console()
    all_passed, all_ran = True, True
    for name in arguments.jobs or jobs:
        job = jobs[name]
        console.rule(f"{name}: {job.about}")
        began = time.monotonic()
        try:
            outcomes = list(job.run(sources, build))
        except NotHad as error:
            all_ran = False
            console.print(f"did NOT run: {error}", markup=False)
            continue
        console.print(show(outcomes))
        all_passed &= bool(outcomes) and all(each.passed == each.total for each in outcomes)
        said = {
            "job": name,
            "seconds": round(time.monotonic() - began, 1),
            "outcomes": [dataclasses.asdict(each) for each in outcomes],
        }
        (build / f"{name}.json").write_text(json.dumps(said, indent=2) + "\n")
    return 1 if not all_passed else 0 if all_ran else 2


if __name__ == "__main__":
    sys.exit(main())
