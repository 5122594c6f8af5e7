"""Measures how long work on many rows takes, for the tables of ``docs/how-many-rows.md``.

    python docs/measure_rows.py             # all sizes; writes the tables (half an hour or more)
    python docs/measure_rows.py --most 10000 --runs 1 --print

Each figure comes from parties in processes of their own, through an embedded broker on this
machine, as `redislink simulate` starts them. A party tells of itself: seconds from one meeting of
all to the next, processor seconds, the most memory that it had, and the bytes that it sent.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).with_name("how-many-rows.md")
STEPS: Final = 5
"""Steps of gradient descent after a first one, in which the function is compiled."""
TIMEOUT: Final = 1500


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a table."""

    work: str
    what: str
    parties: int
    rows: int
    columns: int = 0


CASES: Final = [
    *(Case("psi", protocol, 2, 10**n) for protocol in ("RR22", "KKRT") for n in (4, 5, 6, 7)),
    *(Case("lr", "ABY3", 3, 10**n, columns) for columns in (10, 100) for n in (3, 4, 5)),
    *(Case("lr", "ABY3", 3, 10**6, columns) for columns in (10, 100)),
    *(Case("lr", "CHEETAH", 2, 10**n, 10) for n in (3, 4)),
]


# ---- as one of the parties ----


def take_part(case: Case) -> None:
    """Do the work as one party, and print what it took as one line of JSON."""
    from redislink import Session

    with Session.join() as session:
        found = (_psi if case.work == "psi" else _train)(session, case)
        told = {"peak": _peak(), "sent": session.stats().bytes_sent - found.pop("before"), **found}
        print(json.dumps(told))


def _psi(session: Any, case: Case) -> dict[str, Any]:
    import numpy as np

    first = 0 if session.rank == 0 else case.rows // 2  # half of the rows are in common
    table = {"id": np.arange(first, first + case.rows).astype("U")}
    clock = _Clock(session)
    session.psi(table, "id", parties=session.party_names, protocol=case.what)
    return clock.stop()


def _train(session: Any, case: Case) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    def step(x_first: Any, x_second: Any, y: Any, weights: Any) -> Any:
        x = jnp.concatenate([x_first, x_second], axis=1)
        error = jax.nn.sigmoid(jnp.matmul(x, weights)) - y
        return weights - jnp.matmul(error, x) / y.shape[0]

    def columns() -> Any:
        seed = np.random.default_rng(session.rank)
        return seed.standard_normal((case.rows, case.columns // 2), np.float32)

    sp = session.spu("SP0")
    owners = session.party_names[:2]
    sharing = _Clock(session)
    x = [sp.private(columns, owner=owner) for owner in owners]
    y = sp.private(lambda: (columns()[:, 0] > 0).astype(np.float32), owner=owners[1])
    shared = sharing.stop()
    weights = sp.run(lambda: jnp.zeros(case.columns))()
    train = sp.run(step)
    weights = train(*x, y, weights)
    clock = _Clock(session)
    for _ in range(STEPS):
        weights = train(*x, y, weights)
    found = {name: value for name, value in clock.stop().items()}
    for name in ("seconds", "processor"):
        found[name] /= STEPS
    return {**found, "sharing": shared["seconds"], "steps": STEPS}


class _Clock:
    """From one meeting of all parties to the next."""

    def __init__(self, session: Any) -> None:
        self._session = session
        _meet(session)
        self._before = session.stats().bytes_sent
        self._processor = _processor()
        self._start = time.monotonic()

    def stop(self) -> dict[str, Any]:
        processor = _processor() - self._processor
        _meet(self._session)
        return {
            "seconds": time.monotonic() - self._start,
            "processor": processor,
            "before": self._before,
        }


def _meet(session: Any) -> None:
    others = [party for party in session.party_names if party != session.party]
    for party in others:
        session.communicator.send(party, "here", None)
    for party in others:
        session.communicator.recv(party, "here")


def _processor() -> float:
    """Processor seconds of this process and of libpsi's, which has ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _peak() -> int:
    """The most bytes that this process, or libpsi's, had in memory."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in whose) * 1024


# ---- around them ----


def measure(case: Case, runs: int) -> dict[str, Any] | None:
    """The medians of some runs; None if one does not end in time."""
    found = []
    for _ in range(runs):
        command = [
            *(sys.executable, "-m", "redislink", "simulate", "--parties", str(case.parties)),
            *("--timeout", str(TIMEOUT), __file__, "--as-party", json.dumps(_fields(case))),
        ]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in re.findall(r"^\w+ +\| +(\{.*\})", ran.stdout, re.M)]
        if ran.returncode or len(lines) != case.parties:
            print(ran.stdout[-2000:], ran.stderr[-2000:], file=sys.stderr)
            return None
        found.append(
            {
                "seconds": max(line["seconds"] for line in lines),
                "processor": sum(line["processor"] for line in lines),
                "peak": max(line["peak"] for line in lines),
                "sent": max(line["sent"] for line in lines) / lines[0].get("steps", 1),
                "sharing": max(line.get("sharing", 0) for line in lines),
            }
        )
    return {name: statistics.median(run[name] for run in found) for name in found[0]}


def _fields(case: Case) -> list[Any]:
    return [case.work, case.what, case.parties, case.rows, case.columns]


def line(case: Case, found: dict[str, Any]) -> str:
    """A line of the table."""
    cells = [case.what, f"{case.rows:,}"]
    if case.work == "lr":
        cells += [str(case.columns), _seconds(found["sharing"])]
    cells += [
        _seconds(found["seconds"]), _seconds(found["processor"]),
        _bytes(found["peak"]), _bytes(found["sent"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 10 else f"{value:,.0f} s"


def _bytes(value: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if value >= unit:
            return (
                f"{value / unit:.2g} {name}" if value < 10 * unit else f"{value / unit:.0f} {name}"
            )
    return f"{value / 1e3:.0f} kB"


HEADS: Final = {
    "psi": "| protocol | rows of each | time | processor time, all | memory of one | sent by one |\n"
    "|---|---|---|---|---|---|",
    "lr": "| protocol | rows | columns | time to share | time of a step | processor time, all | "
    "memory of one | sent by one, per step |\n|---|---|---|---|---|---|---|---|",
}


def main() -> None:
    """Measure, and write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=10**7, help="leave out larger tables")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--print", action="store_true", help="leave the page as it is")
    parser.add_argument("--as-party", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_party:
        take_part(Case(*json.loads(options.as_party)))
        return
    tables: dict[str, list[str]] = {work: [] for work in HEADS}
    loads = [os.getloadavg()[0]]
    for case in CASES:
        if case.rows <= options.most:
            found = measure(case, options.runs if case.rows < 10**6 else 1)
            loads.append(os.getloadavg()[0])
            if found is not None:
                tables[case.work].append(line(case, found))
                print(tables[case.work][-1], flush=True)
    print(f"load {min(loads):.1f} to {max(loads):.1f}")
    if options.print:
        return
    page = PAGE.read_text(encoding="utf-8")
    for work, lines in tables.items():
        page = re.sub(
            rf"(<!-- {work} -->\n).*?\n(<!-- end -->)",
            lambda found, text="\n".join([HEADS[work], *lines]): f"{found[1]}\n{text}\n\n{found[2]}",
            page, flags=re.DOTALL,
        )  # fmt: skip
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
