"""What sessions at once take of a broker: read from records, fitted, and held against the model.

`fit` makes the constants of `redislink.operate.sizing` from a run's records, and `write` puts them
there: ``python -m benchmarks --fit``.
"""

from __future__ import annotations

import json
import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from benchmarks.brokers import CLUSTER, IO_THREADS, ONE
from benchmarks.processes import ROOT
from benchmarks.runner import Record
from redislink.operate import sizing
from redislink.operate.sizing import Broker, Costs, Flow, Load

GROUP: Final = "scale"
_MODULE: Final = ROOT / "redislink" / "operate" / "sizing.py"
_NODES: Final = 3
_ENDPOINT_CONNECTIONS: Final = 2
"""Of a party without an SPU link, besides those to send: for control lists, for the claim."""


@dataclass(frozen=True)
class Point:
    """One measurement: so many sessions of so many parties at one broker.

    Attributes:
        kind: of broker.
        parties, sessions, size: of a message in bytes; 0 if all were idle.
        rate: messages per second of all.
        way: seconds, median, from a party's send to its receive.
        cores, busiest: of the broker: of all threads, and of the busiest one.
        party_cores: of all parties together.
        connections, memory: at the broker, in bytes.
    """

    kind: str
    parties: int
    sessions: int
    size: int
    rate: float
    way: float
    cores: float
    busiest: float
    party_cores: float
    connections: int
    memory: int

    @classmethod
    def of(cls, record: Record) -> Point:
        """Of a record of the group."""
        kind, sessions, size = re.fullmatch(  # type: ignore[union-attr]
            r"([\w-]+): (\d+) of \d+, (\d+) B", record["variant"]
        ).groups()
        values = [party["sessions"]["values"] for party in record["parties"]]
        found = [session for party in values for session in party["sessions"]]
        broker, parties = values[0]["broker"], record["world_size"]
        return cls(
            kind,
            parties,
            int(sessions),
            int(size),
            sum(session["count"] * parties for session in found) / broker["seconds"],
            statistics.median([session["median"] for session in found] or [0.0]),
            broker["cpu"] / broker["seconds"],
            broker["busiest"] / broker["seconds"],
            sum(party["cpu"] for party in values) / broker["seconds"],
            broker["connections"],
            broker["memory"],
        )

    @property
    def members(self) -> int:
        """Parties of all sessions."""
        return self.parties * self.sessions

    @property
    def broker(self) -> Broker:
        """As the model has it."""
        cluster = self.kind == CLUSTER
        return Broker(_NODES if cluster else 1, self.kind == IO_THREADS, cluster)

    def flow(self, cores: int, costs: Costs) -> Flow:
        """What the model expects, if all share a machine of so many cores."""
        load = Load(self.parties, self.sessions, message_bytes=max(self.size, 1))
        return sizing.flow(load, self.broker, costs, shared_cores=cores)

    def busy(self, costs: Costs) -> float:
        """Cores of the broker (of its busiest thread) that the model expects at this rate."""
        load = Load(self.parties, self.sessions, message_bytes=max(self.size, 1))
        return self.rate * self.broker.message_seconds(load, costs) + self.members * costs.idle

    def expected_memory(self, costs: Costs) -> float:
        """Bytes that the model expects at these connections, with empty lists."""
        return sizing.memory_without_lists(self.broker, self.connections, costs)


def points(records: Iterable[Record]) -> list[Point]:
    """Those of the group that went well."""
    return [Point.of(r) for r in records if r["group"] == GROUP and r["error"] is None]


def fit(found: Sequence[Point], source: str) -> Costs:
    """The constants that fit best, each point's relative error counting alike."""
    one = [point for point in found if point.kind == ONE]
    message, byte, idle = _least_squares(
        [((p.rate, p.rate * p.size, p.members), p.cores) for p in one]
    )
    working = [point for point in one if point.size]
    party_message, party_byte = _least_squares(
        [((p.rate, p.rate * p.size), p.party_cores) for p in working if p.parties == 2]
    )
    base, connection = _least_squares([((1, p.connections), p.memory) for p in one if p.size <= 64])

    clusters = [point for point in found if point.kind == CLUSTER]

    def factor(kind: str, busy: str) -> float:
        ratios = [
            (getattr(p, busy) - p.members * idle - p.rate * p.size * byte) / (p.rate * message)
            for p in found
            if p.kind == kind
        ]
        return max(0.1, statistics.median(ratios)) if ratios else 1.0

    return Costs(
        source,
        message,
        byte,
        idle,
        min(1.0, factor(IO_THREADS, "busiest")),
        factor(CLUSTER, "cores"),
        party_message,
        party_byte,
        min(p.way for p in working),
        base,
        max([base, *((p.memory - p.connections * connection) / _NODES for p in clusters)]),
        connection,
    )


def _least_squares(rows: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Weights, none negative, with the least squares of relative errors."""
    import numpy as np
    from scipy.optimize import nnls

    a = np.array([[value / target for value in values] for values, target in rows])
    scale = np.abs(a).max(axis=0)
    solution, _ = nnls(a / scale, np.ones(len(rows)))
    return [float(weight) for weight in solution / scale]


def write(costs: Costs, module: Path = _MODULE) -> None:
    """Put constants into the module of the model."""
    lines = [f"    {each.name}={_literal(getattr(costs, each.name))}," for each in fields(costs)]
    text = "\n".join(["MEASURED: Final = Costs(", *lines, ")"])
    begin, end = "# -- measured: begin --\n", "\n# -- measured: end --"
    before, _, rest = module.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    module.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")


def _literal(value: Any) -> str:
    if not isinstance(value, str):
        return f"{value:.3g}".replace("e+", "e")
    lines = textwrap.wrap(value, 80, drop_whitespace=False)
    return "\n    ".join(json.dumps(line) for line in lines)


def expected_connections(point: Point) -> float:
    """Of all parties, each with an endpoint and no SPU link."""
    nodes = 1.0
    if point.kind == CLUSTER:  # distinct nodes of so many inboxes, on average
        nodes = _NODES * (1 - (1 - 1 / _NODES) ** point.parties)
    receives = 1 if point.size else 0
    return point.members * (_ENDPOINT_CONNECTIONS + receives + nodes)
