"""``redislink report``, and the page of ``redislink run --report``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from redislink.broker import EmbeddedBroker
from tests.audit.writing import KEYS
from tests.cli.conftest import CLUSTER, NAMES, Call, Start, Write, _spawned, ended, starting
from tests.report.conftest import Story

SIGNED = CLUSTER | {
    "parties": [party | {"signing_key": KEYS[party["name"]]} for party in CLUSTER["parties"]]
}
PROGRAM = """
    import sys
    from redislink import Session
    with Session.join() as session:
        peer = "bob" if session.party == "alice" else "alice"
        session.communicator.send(peer, "t", b"a payload that no page shows")
        session.communicator.recv(peer, "t")
    sys.exit(7 if session.party == "bob" else 0)
"""


@pytest.fixture
def spawn_where_exits_count(tmp_path: Path) -> Iterator[Start]:
    """Processes that end as Python does, with what was registered for it."""
    with starting(tmp_path, _spawned) as start:
        yield start


def test_one_line_and_a_page(call: Call, tmp_path: Path) -> None:
    paths = Story().write(tmp_path)
    code, out, err = call("report", *paths, "--out", "run.html")
    assert (code, out, err) == (0, "run.html: the run of hospitals, from 6 files\n", "")
    assert "Ended in good order at all parties" in (tmp_path / "run.html").read_text()
    code, out, _ = call("report", tmp_path, "-o", "again.html", "--session", "hospitals")
    assert (code, out) == (0, "again.html: the run of hospitals, from 6 files\n")


def test_a_changed_record_is_said_too_and_a_foreign_key(
    call: Call, write_cluster: Write, tmp_path: Path
) -> None:
    path, *_ = Story().write(tmp_path, stats=False)
    signed = tmp_path / "bob.audit.jsonl"
    write_cluster(
        SIGNED | {"parties": [SIGNED["parties"][0], SIGNED["parties"][0] | {"name": "bob"}]}
    )
    code, _, err = call("report", path, signed, "-o", "x.html", "--cluster", "cluster.yaml")
    assert code == 2
    (line,) = err.splitlines()
    assert "bob.audit.jsonl: it is signed with" in line
    assert "which is not bob's signing_key" in line
    path.write_text(path.read_text().replace('"receivers":["alice"]', '"receivers":["eve"]'))
    code, _, err = call("report", path, "-o", "run.html")
    assert code == 2
    assert "alice.audit.jsonl: line " in err
    assert "alice&#39;s audit record is not to be trusted" in (tmp_path / "run.html").read_text()


def test_what_cannot_be_reported_is_one_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    for words, said in (
        (("none.jsonl",), "cannot read none.jsonl"),
        (("x",), "x: is neither an audit record nor statistics nor a timeline"),
    ):
        code, out, err = call("report", *words, "-o", "run.html")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    assert not (tmp_path / "run.html").exists()


@pytest.mark.slow
def test_run_leaves_a_page_and_what_it_is_made_from(
    spawn_where_exits_count: Start,
    broker: EmbeddedBroker,
    write_cluster: Write,
    write_program: Write,
    tmp_path: Path,
) -> None:
    """However the program ends; and no page about a run of before, if this one never began."""
    start = spawn_where_exits_count
    cluster, program = write_cluster(SIGNED | {"session": "report-1"}), write_program(PROGRAM)

    def words(name: str, page: str) -> tuple[object, ...]:
        return ("run", "--cluster", cluster, "--party", name, "--report", page, program)

    running = {
        name: start(*words(name, f"{name}.html"), broker_url=broker.unix_url) for name in NAMES
    }
    for name, code in zip(NAMES, (0, 7), strict=True):
        result = ended(running[name])
        assert result.returncode == code, result.stderr
        assert f"redislink: {name}: the report is {tmp_path / name}.html\n" in result.stderr
        text = (tmp_path / f"{name}.html").read_text()
        assert f"Ended in good order, as {name} recorded" in text
        assert "no connection broke" in text, "from the statistics"
        assert "whether that key is" not in text, "the cluster file says so"
        assert "payload that" not in text
    kept = {path.name for path in tmp_path.iterdir() if path.name.startswith("bob.")}
    assert kept == {
        *("bob.html", "bob.key", "bob.audit.jsonl", "bob.audit.jsonl.head", "bob.stats.json")
    }
    (tmp_path / "bob.html").unlink()
    result = ended(
        start(*words("bob", "bob.html"), broker_url=broker.unix_url, connect_timeout="0.01")
    )
    assert result.returncode == 4
    assert "bob: no report: the parties have not met" in result.stderr
    assert not (tmp_path / "bob.html").exists()
