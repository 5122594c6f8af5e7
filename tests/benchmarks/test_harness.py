"""The benchmarks run, at toy size, so that they cannot rot. What they measure is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import plan, processes, scale
from benchmarks.measure import check_out
from benchmarks.netproxy import Profile
from benchmarks.processes import ROOT
from benchmarks.runner import Runner, Session
from benchmarks.transports import FLOOR, MEM, NAIVE


@pytest.mark.slow
def test_toy_run_writes_page_and_figures(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    groups = ("turns-link", "turns-one-way", "link", "line", "scale")
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "benchmarks", "--toy", "--runs", "1"),
            *("--only", *groups, "--minutes", "4"),
            *("--out", str(tmp_path), "--json", str(figures)),
        ],
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(figures.read_text())
    measured = {(r["group"], r["variant"]): r for r in content["records"]}
    assert set(measured) == {
        *(("link", t) for t in plan.MAIN),
        ("turns-link", FLOOR),
        ("turns-one-way", FLOOR),
        ("line", "redislink"),
        ("scale", "one: 1 of 2, 64 B"),
    }
    (point,) = scale.points(content["records"])
    assert point.connections == scale.expected_connections(point)
    assert 0 < point.cores < 2
    values = measured["link", "redislink"]["parties"][0]["round_trips"]["values"]
    assert 0 < values["64"]["median"] < 1
    values = measured["turns-one-way", FLOOR]["parties"][0]["one_ways"]["values"]
    assert values[str(1 << 20)]["bytes_per_second"] > 1e6
    assert measured["line", "redislink"]["profile"] == "100 Mbit"
    (network,) = content["meta"]["networks"]
    assert network["measured_rtt"] >= network["rtt"]
    page = (tmp_path / "performance.md").read_text()
    assert "## Bars" in page
    assert "No measurement failed" in page


@pytest.mark.slow
@pytest.mark.parametrize("transport", [MEM, NAIVE])
def test_other_transports_compute_the_right_thing(tmp_path: Path, transport: str) -> None:
    pytest.importorskip("spu")
    from benchmarks import programs

    programs.prepare("lr-semi2k", 2, tmp_path / "lr-semi2k-2")
    network = Profile("test", 0.001, 1e9) if transport == NAIVE else None
    session = Session(
        "test",
        transport,
        transport,
        (
            plan.program_work("lr-semi2k", 2, tmp_path, 0),
            {"name": "bursts", "kind": "bursts", "device": "L", "counts": (1, 10)},
        ),
        timeout=240,
        **({"profile": network} if network else {}),
    )
    record = Runner(tmp_path, ROOT).run(session)
    assert record["error"] is None
    assert record["attempts"] == 1
    for party in record["parties"]:
        assert party["lr-semi2k"]["values"]["first"] > 0
        assert party["lr-semi2k"]["cpu"] > 0
        assert party["lr-semi2k"]["peak"] > 50_000_000


@pytest.mark.slow
def test_a_session_that_fails_says_why_and_ends(tmp_path: Path) -> None:
    work = {"name": "psi", "kind": "psi", "device": "psi", "prepared": "/nowhere", "expected": 1}
    record = Runner(tmp_path, ROOT).run(Session("test", MEM, MEM, (work,), timeout=60))
    assert record["attempts"] == 2
    assert "/nowhere/rank" in record["error"]


def test_every_group_of_the_plan_can_be_asked_for(tmp_path: Path) -> None:
    for amounts in (plan.FULL, plan.QUICK, plan.TOY):
        sessions = [
            *plan.sessions(amounts, tmp_path, 1),
            *plan.against({"rev": tmp_path}, 1, tmp_path),
        ]
        assert {session.group for session in sessions} <= set(plan.GROUPS)
        labels = [session.label for session in sessions]
        assert len(labels) == len(set(labels))
        json.dumps([session.works for session in sessions])


def test_the_code_of_another_revision(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository: the code is not a checkout")
    name = check_out("HEAD", tmp_path)
    assert len(name) >= 10
    assert (tmp_path / "redislink" / "__init__.py").is_file()
    with pytest.raises(SystemExit, match="git rev-parse"):
        check_out("no-such-revision", tmp_path)
