"""The logistic regression of the examples as a program whose every message is written down.

Run by ``redislink run`` for each party; see `tests.support.training`. Command line: as the
example's, and ``--steps`` of training. The result line has more: weights, a checksum of the
aligned data (which PSI decides exactly), and the ledger of all messages.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import logistic_regression as lr  # noqa: E402 - found only now

import redislink  # noqa: E402
from tests.support.ledger import Ledger, checksum  # noqa: E402


def main() -> None:
    """Train as one party, and append what came out to the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--data", type=Path, default=lr.DATA)
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    lr.STEPS = options.steps

    def report(event: dict[str, Any]) -> None:
        lr.append_line(options.report, event)

    aligned = lr.align
    result: dict[str, Any] = {"event": "result"}

    def align(*arguments: Any) -> dict[str, Any]:
        own = aligned(*arguments)
        parts = b"".join(name.encode() + own[name].tobytes() for name in sorted(own))
        result["aligned"] = checksum(parts)
        return own

    lr.align = align
    endpoint = redislink.connect()
    ledger = Ledger(endpoint)
    report({"event": "joined"})
    joined = time.monotonic()
    with redislink.Session.from_endpoint(endpoint) as session:
        model = lr.main(session, options.data, report)
        trained = time.monotonic()
    result["seconds"] = trained - joined
    result["close_seconds"] = time.monotonic() - trained
    if model is not None:
        result["weights"] = [*map(float, model.weights), model.bias]
        result["right"] = round(model.accuracy * model.held_out)
    report(result | {"stats": asdict(endpoint.stats()), "ledger": ledger.as_json()})


if __name__ == "__main__":
    main()
