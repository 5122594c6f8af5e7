"""``python -m benchmarks``: measure everything, and write the page.

The whole takes some 20 minutes on two cores, ``--quick`` about three. Nothing else should run
on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks import machine, plan, plots, programs, report
from benchmarks.calibrate import verify
from benchmarks.measure import Bench, say
from benchmarks.processes import ROOT
from benchmarks.results import BARS, Results

_MPLANG: Final = ROOT / "build" / "mplang" / "bin" / "python"
_DOCS: Final = ROOT / "docs"
_TRIAL: Final = ROOT / "benchmarks" / "results"
_SCALES: Final = {"full": plan.FULL, "quick": plan.QUICK, "toy": plan.TOY}
_MINUTES: Final = {"full": 44.0, "quick": 4.0, "toy": 1.0}


def main() -> int:
    """Parse the command line and do it; the exit code is 1 if a measurement failed."""
    options = _parse()
    if options.render is not None:
        content = json.loads(options.render.read_text())
        _write(options.out, content["meta"], content["records"])
        return 0
    meta, records = _measure(options)
    target = options.json or options.out / "performance" / "results.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"meta": meta, "bars": _bars(records), "records": records}))
    _write(options.out, meta, records)
    say(f"{options.out / 'performance.md'} and {target}")
    for bar in BARS:
        sample = bar.measure(Results(records))
        figure = "" if sample is None else f"{sample.median:.2f} {bar.unit}, "
        print(f"{bar.title}: {figure}{bar.verdict(sample).replace('*', '')}")
    return 1 if any(record["error"] for record in records) else 0


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
        help=f"only these groups: {', '.join(plan.GROUPS)}",
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where performance.md goes: docs for a full run, benchmarks/results for any other",
    )
    parser.add_argument(
        "--render", type=Path, metavar="FILE", help="measure nothing: write the page from a --json"
    )
    options = parser.parse_args()
    whole = options.scale == "full" and options.only is None
    if options.out is None:
        options.out = _DOCS if whole else _TRIAL
    return options


def _measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    started = time.monotonic()
    scale = _SCALES[options.scale]
    if options.runs is not None:
        scale = replace(scale, runs=options.runs)
    before = machine.load()
    minutes = options.minutes or _MINUTES[options.scale]
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = Bench(Path(scratch), minutes, options.mplang)
        revisions = bench.check_out(options.against)
        expected = programs.write_psi_inputs(bench.prepared / "psi", scale.psi_rows)
        sessions = plan.sessions(scale, bench.prepared, expected)
        if revisions:
            sessions += plan.against(revisions, scale.runs, bench.prepared)
        if options.only is not None:
            sessions = [session for session in sessions if session.group in options.only]
        profiles = {s.profile.name: s.profile for s in sessions if not s.profile.is_loopback}
        networks = []
        for profile in profiles.values():
            networks.append(verify(profile).as_dict())
            say(f"proxy, {profile.name}: {networks[-1]['measured_rtt'] * 1e3:.2f} ms round trip")
        records = bench.run(sessions)
    meta = {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "scale": options.scale,
        "machine": machine.describe(),
        "load": [before, machine.load()],
        "minutes": round((time.monotonic() - started) / 60, 1),
        "rounds": max((record["round"] + 1 for record in records), default=0),
        "mplang": bench.mplang,
        "skipped": bench.skipped,
        "networks": networks,
    }
    return meta, records


def _write(directory: Path, meta: dict[str, Any], records: list[dict[str, Any]]) -> None:
    page = directory / "performance.md"
    results = Results(records)
    report.write(page, results, meta, plots.draw(directory / page.stem, results))


def _bars(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for bar in BARS:
        sample = bar.measure(Results(records))
        found.append(
            {
                "title": bar.title,
                "bar": bar.bar,
                "aim": bar.aim,
                "unit": bar.unit,
                "values": [] if sample is None else list(sample.values),
                "verdict": bar.verdict(sample).replace("*", ""),
            }
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
