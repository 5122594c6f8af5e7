"""``redislink trace merge`` and ``redislink run --trace``."""

from __future__ import annotations

import json
from pathlib import Path

from redislink import Endpoint
from tests.cli.conftest import Call, Run, Write
from tests.observe.test_timeline import record


def swap(me: Endpoint) -> None:
    for other in range(3):
        if other != me.rank:
            me.send(other, "t", b"12345")
    for other in range(3):
        if other != me.rank:
            me.recv(other, "t")


def test_merge(call: Call, tmp_path: Path) -> None:
    record(tmp_path / "traces", swap)
    files = sorted((tmp_path / "traces").iterdir())
    code, out, err = call("trace", "merge", *files, "-o", "run.json")
    assert (code, err) == (0, "")
    first, *parties = out.splitlines()
    assert first == "run.json: 6 messages between 3 parties"
    assert [line.split()[0] for line in parties] == ["alice:", "bob:", "carol:"]
    assert all("4 calls" in line and "±" in line and "cut" not in line for line in parties)
    merged = json.loads((tmp_path / "run.json").read_text())
    assert [party["party"] for party in merged["otherData"]["parties"]] == ["alice", "bob", "carol"]


def test_cut_and_killed_parties_are_named(call: Call, tmp_path: Path) -> None:
    record(tmp_path / "traces", swap, trace_limit=2)
    bob = tmp_path / "traces" / "traced.bob.trace.jsonl"
    bob.write_text(bob.read_text()[:-10])
    files = sorted((tmp_path / "traces").iterdir())
    code, out, _ = call("trace", "merge", *files, "--out", "run.json")
    assert code == 0
    _, alice, bob_line, _ = out.splitlines()
    assert "REDISLINK_TRACE_LIMIT" in alice
    assert "its end is missing" in bob_line


def test_a_party_whose_file_is_missing_is_named(call: Call, tmp_path: Path) -> None:
    record(tmp_path / "traces", swap)
    files = [f for f in sorted((tmp_path / "traces").iterdir()) if "carol" not in f.name]
    code, out, _ = call("trace", "merge", *files, "--out", "run.json")
    assert code == 0
    assert out.splitlines()[0] == "run.json: 2 messages between 2 parties"
    assert out.splitlines()[-1] == "  carol: no file was given, so nothing of it is shown"


def test_what_cannot_be_merged_is_one_line(call: Call, tmp_path: Path) -> None:
    code, out, err = call("trace", "merge", "none.json", "-o", "run.json")
    assert (code, out) == (2, "")
    assert err == "redislink: cannot read none.json (No such file or directory): check the path\n"


def test_run_tells_the_program_where_the_timeline_goes(
    redislink: Run, write_cluster: Write, write_program: Write, tmp_path: Path
) -> None:
    program = write_program("import os; print(os.environ['REDISLINK_TRACE_DIR'])")
    result = redislink(
        "run", "--cluster", write_cluster(), "--party", "alice", "--trace", "here", program
    )
    assert result.stdout == f"{tmp_path / 'here'}\n", result.stderr
