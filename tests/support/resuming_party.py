"""The logistic regression of the examples as a program that says what it computes.

Run by ``redislink run --journal`` for each party, see `tests.support.resuming`. Each step is
reported with whether the journal answered it; so is each load of data. Times are those of the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import logistic_regression as lr  # noqa: E402 - found only now

from redislink import Session  # noqa: E402


def main() -> None:
    """Train as one party, and append what happens to the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--data", type=Path, default=lr.DATA)
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    lr.STEPS = options.steps

    def report(event: dict[str, Any]) -> None:
        lr.append_line(options.report, event | {"at": time.monotonic()})

    class Noted(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            report({"event": "loaded", "what": name})
            return super().__getitem__(name)

    def align(session: Session, data: Path) -> dict[str, Any]:
        def table() -> Path:
            report({"event": "loaded", "what": "table"})
            return data / f"{session.party}.csv"

        shared = session.psi(table, "id", parties=lr.FEATURE_OWNERS, protocol="RR22")
        return {} if shared is None else Noted(lr.prepare(lr.as_rows(shared)))

    lr.align = align
    joining = time.monotonic()
    with Session.join() as session:
        steps = session._steps

        def stepped(event: dict[str, Any]) -> None:
            answered = steps.journal is not None and steps.number <= steps.journal.resume
            report(event | {"answered": answered})

        joined = time.monotonic()
        model = lr.main(session, options.data, stepped)
        trained = time.monotonic()
    result: dict[str, Any] = {"event": "result", "joining": joined - joining}
    result |= {"seconds": trained - joined, "closing": time.monotonic() - trained}
    if model is not None:
        result["weights"] = [*map(float, model.weights), model.bias]
        result["right"] = round(model.accuracy * model.held_out)
    report(result)


if __name__ == "__main__":
    main()
