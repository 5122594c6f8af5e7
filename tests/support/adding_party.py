"""A short loop of steps that says what it computes; as a program for ``redislink run`` too.

See `tests.broker_real.test_killed`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from redislink import Session

Report = Callable[[dict[str, Any]], None]


def add(total: jax.Array, x: jax.Array) -> jax.Array:
    """One step."""
    return total + x * x


def main(session: Session, steps: int, report: Report) -> float:
    """Add the squares of what alice and bob have, again and again; both learn the sum."""

    def load() -> np.ndarray[Any, Any]:
        report({"event": "loaded"})
        return np.array([1.0, 2.0], np.float32)

    sp = session.spu("SP0")
    x, y = (sp.private(load, owner=owner) for owner in ("alice", "bob"))
    total, step = x, sp.run(add)
    for number in range(1, steps + 1):
        answered = session._steps.is_next_answered
        total = step(total, y)
        report({"event": "step", "number": number, "answered": answered})
    return float(sp.reveal(total, to=["alice", "bob"]).sum())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    with Session.join() as joined, options.report.open("a", encoding="utf-8") as file:

        def write(event: dict[str, Any]) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        write({"event": "result", "sum": main(joined, options.steps, write)})
