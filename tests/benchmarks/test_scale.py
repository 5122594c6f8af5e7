"""Sessions at once: how a record is read, and how constants are fitted to such records."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scale
from benchmarks.brokers import CLUSTER, IO_THREADS, ONE
from benchmarks.scale import Point
from redislink.operate import sizing
from redislink.operate.sizing import MEASURED, Costs
from tests.operate.test_sizing import COSTS

TRUE = replace(COSTS, idle=0.0002)


def point(kind: str, parties: int, sessions: int, size: int, rate: float) -> Point:
    """What would be measured if the model were exact."""
    bare = Point(kind, parties, sessions, size, rate, TRUE.way, 0, 0, 0, 10 * sessions, 0)
    busy = bare.busy(TRUE)
    return replace(
        bare,
        cores=busy,
        busiest=busy,
        party_cores=rate * (TRUE.party_message + size * TRUE.party_byte),
        memory=int(bare.expected_memory(TRUE)),
    )


def test_a_fit_finds_the_constants_of_the_model() -> None:
    found = [
        point(ONE, 2, 1, 64, 9000.0),
        point(ONE, 2, 32, 64, 20000.0),
        point(ONE, 16, 4, 64, 15000.0),
        point(ONE, 2, 8, 16384, 12000.0),
        point(ONE, 2, 8, 1 << 18, 2000.0),
        point(ONE, 2, 50, 0, 0.0),
        point(IO_THREADS, 2, 32, 64, 20000.0),
        point(CLUSTER, 2, 32, 64, 15000.0),
    ]
    costs = scale.fit(found, "made up")
    for each in fields(Costs)[1:]:
        expected = getattr(TRUE, each.name)
        assert getattr(costs, each.name) == pytest.approx(expected, rel=0.02), each.name
    assert costs.source == "made up"


def test_a_record_is_read() -> None:
    def party(*counts: int, **more: Any) -> dict[str, Any]:
        done = [{"count": count, "seconds": 2.0, "median": 0.01 * count} for count in counts]
        return {"sessions": {"values": {"sessions": done, "cpu": 1.0, "broker": more}}}

    broker = {"cpu": 3.0, "busiest": 2.0, "seconds": 2.0, "connections": 40, "memory": 5000}
    record = {
        "group": scale.GROUP,
        "variant": f"{CLUSTER}: 4 of 3, 16384 B",
        "world_size": 3,
        "error": None,
        "parties": [party(10, 20, **broker), party()],
    }
    (found,) = scale.points([record, record | {"error": "it failed"}, record | {"group": "link"}])
    assert found == Point(CLUSTER, 3, 4, 16384, 45.0, pytest.approx(0.15), 1.5, 1.0, 1.0, 40, 5000)
    assert found.members == 12


def test_constants_are_written_where_the_model_has_them(tmp_path: Path) -> None:
    module = tmp_path / "sizing.py"
    source = Path(sizing.__file__).read_text()
    module.write_text(source)
    scale.write(replace(TRUE, source="somewhere " * 20), module)
    names: dict[str, Any] = {"__name__": "written"}
    text = module.read_text()
    begin, end = text.index("MEASURED: Final"), text.index("# -- measured: end")
    exec(text[begin:end], names | {"Costs": Costs, "Final": Any}, names)
    assert names["MEASURED"] == replace(TRUE, source="somewhere " * 20)
    scale.write(MEASURED, module)
    assert module.read_text().count("MEASURED: Final") == 1
