"""Other revisions' ``redislink``, or other transports, measured beside this one.

What a change costs or gains: ``python -m benchmarks.compare --against REV``. What sealing costs:
``python -m benchmarks.compare --beside redislink-none``. Both may be given more than once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import plan, report
from benchmarks.measure import Bench
from benchmarks.results import Results
from benchmarks.transports import ALL, REDISLINK


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="This revision against others, interleaved.")
    parser.add_argument("--against", action="append", default=[], metavar="GIT_REV")
    parser.add_argument(
        "--beside", action="append", default=[], choices=[t for t in ALL if t != REDISLINK]
    )
    parser.add_argument("--only", choices=("link", "lr"), help="one of the two things measured")
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = Bench(Path(scratch), minutes=30)
        revisions = bench.check_out(options.against)
        sessions = plan.against(revisions, options.runs, bench.prepared, options.beside)
        if options.only is not None:
            sessions = [s for s in sessions if s.group == f"against-{options.only}"]
        records = bench.run(sessions)
    results = Results(records)
    print(report.against_table(results) or "nothing was measured")
    for line in results.failures():
        print(line, file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps(records))


if __name__ == "__main__":
    main()
