"""``redislink audit`` and ``redislink run --audit``: what they show, find and compare."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from redislink.audit import compare_records, verify_file
from redislink.audit.chain import head_path
from redislink.broker import EmbeddedBroker
from redislink.identity.signing import SigningKey, format_signing_key
from tests.audit.writing import JOB, KEYS, a_job, a_run, begin, end, reveal, step, write
from tests.cli.conftest import CLUSTER, NAMES, Call, Start, Write, ended, key_file
from tests.conftest import IDENTITIES
from tests.support.waiting import wait_until

SIGNED: dict[str, Any] = CLUSTER | {
    "parties": [party | {"signing_key": KEYS[party["name"]]} for party in CLUSTER["parties"]]
}  # fmt: skip


@pytest.fixture
def records(tmp_path: Path, write_cluster: Write) -> dict[str, Path]:
    """A good record of each party, with a job and a run, and the cluster file."""
    write_cluster(SIGNED)
    return {
        name: write(tmp_path / f"{name}.jsonl", [*a_job(name), *a_run(name)], name, identity)
        for name, identity in IDENTITIES.items()
        if name in NAMES
    }


def test_show_tells_who_computed_what_and_who_learnt_it(
    call: Call, records: dict[str, Path]
) -> None:
    code, out, err = call("audit", "show", records["alice"], "--cluster", "cluster.yaml")
    assert (code, err) == (0, "")
    for shown in (
        f"job {JOB}", "offered by dora", "accept by person alices-admin", "alice in session trial",
        "SP0.reveal(f32[2]; to=alice, bob)", "float32[2] to alice, bob", "0.250", "closed after",
        "bob: sent 3 messages, 3 B", "c1c1c1c1",
    ):  # fmt: skip
        assert shown in out, shown
    code, out, _ = call("audit", "show", records["alice"], "--cluster", "cluster.yaml", "--json")
    told = json.loads(out)
    assert (told["party"], told["good"], told["lines"]) == ("alice", True, 12)
    assert [each["kind"] for each in told["records"]][:2] == ["file", "offer"]


def test_verify_says_that_a_record_is_good_and_whose(call: Call, records: dict[str, Path]) -> None:
    code, out, err = call("audit", "verify", *records.values(), "--cluster", "cluster.yaml")
    assert (code, err) == (0, "")
    digest = verify_file(records["alice"]).digest
    assert f"alice.jsonl: good: of alice, 12 lines, signed with alice's key, digest {digest}" in out
    assert out.count("\n") == 2
    code, out, err = call("audit", "verify", records["alice"])
    assert code == 0
    assert "12 lines, signed, digest" in out
    assert "whether that key is alice's, a cluster file says" in err


def test_verify_names_what_is_wrong_and_fails(call: Call, records: dict[str, Path]) -> None:
    content = records["bob"].read_bytes()
    records["bob"].write_bytes(content.replace(b"SP0.run", b"SP1.run"))
    words = (*records.values(), "--cluster", "cluster.yaml")
    code, out, err = call("audit", "verify", *words)
    assert code == 2
    assert "bob.jsonl: line 9: does not have its writer's signature" in err
    assert "alice.jsonl: good" in out
    assert "bob.jsonl: good" not in out
    code, out, err = call("audit", "verify", *words, "--json")
    assert code == 2
    assert [each["good"] for each in json.loads(out)] == [True, False]
    assert call("audit", "show", records["bob"])[0] == 2


def test_compare_says_so_when_two_tell_the_same_story(call: Call, records: dict[str, Path]) -> None:
    for path in records.values():
        head_path(path).unlink()  # as it is when somebody sends a record
    code, out, err = call("audit", "compare", *records.values(), "--cluster", "cluster.yaml")
    assert (code, err) == (0, "")
    assert "agree: run of trial" in out
    assert "alice and bob tell the same story." in out
    assert "does not tell which values went in" in out
    assert "DIFFER" not in out


def test_compare_says_where_two_differ(call: Call, records: dict[str, Path]) -> None:
    records["bob"].unlink()
    head_path(records["bob"]).unlink()
    lines = a_run("bob")
    lines[3] = reveal(2, ("bob",))
    write(records["bob"], [*a_job("bob"), *lines], "bob", IDENTITIES["bob"])
    words = ("audit", "compare", *records.values(), "--cluster", "cluster.yaml")
    code, out, _ = call(*words)
    assert code == 4
    assert "step 2: alice revealed to alice, bob to bob" in out
    assert "alice and bob do not tell the same story." in out
    code, out, _ = call(*words, "--json")
    told = json.loads(out)
    assert (code, told["same_story"], told["parties"]) == (4, False, ["alice", "bob"])
    assert len(told["differences"]) == 1


def test_the_environment_may_name_the_cluster_file(
    call: Call, records: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDISLINK_CLUSTER_FILE", "cluster.yaml")
    assert call("audit", "verify", records["alice"])[2] == ""


def test_key_prints_the_line_for_the_cluster_file(call: Call, tmp_path: Path) -> None:
    code, out, err = call("audit", "key", "--identity", key_file(tmp_path, "alice"))
    key = format_signing_key(SigningKey(IDENTITIES["alice"]).public_key)
    assert (code, out, err) == (0, f'signing_key: "{key}"\n', "")
    code, _, err = call("audit", "key")
    assert code == 2
    assert "give --identity FILE, or set REDISLINK_IDENTITY_FILE" in err


def test_what_another_party_wrote_does_not_reach_the_terminal(call: Call, tmp_path: Path) -> None:
    evil = "\x1b[2J\u202e\n"
    script = {"name": evil, "sha256": evil}
    lines = [
        begin("bob", session=evil, versions=evil, script=script, cluster=evil, security=evil),
        step(1, evil, chain=evil, digest=evil, parts=[[evil, evil]]),
        step(2, f"SP0.reveal({evil})"),
        reveal(2, (evil,), device=evil, dtypes=[evil]),
        end("bob", "failed", error=evil, by=evil, peers={}),
        ("offer", a_job("bob")[0][1] | {"job": evil, "program_name": evil}),
        ("decision", {"job": evil, "action": "refuse", "by": "policy", "reason": evil}),
    ]  # fmt: skip
    bob = write(tmp_path / "bob", lines, "bob", IDENTITIES["bob"])
    alice = write(tmp_path / "alice", a_run("alice"))
    for words in (
        ("show", bob), ("verify", bob), ("compare", alice, bob), ("compare", bob, alice),
        ("show", bob, "--json"), ("compare", alice, bob, "--json"),
    ):  # fmt: skip
        _, out, err = call("audit", *words)
        for text in (out, err):
            assert "\x1b" not in text
            assert "\u202e" not in text


@pytest.mark.parametrize("command", ["show", "verify", "compare"])
def test_a_file_that_is_none_is_an_error_in_one_line(call: Call, command: str) -> None:
    files = ["missing.jsonl"] * (2 if command == "compare" else 1)
    code, out, err = call("audit", command, *files)
    assert (code, out) == (2, "")
    assert err.startswith("redislink: audit record missing.jsonl: cannot be read (No such file")
    assert err.count("\n") == 1


# -- redislink run ---------------------------------------------------------------------------------

PROGRAM = """
    import sys
    import redislink
    session = redislink.Session.join()
    with session:
        session.communicator.send("alice" if session.party == "bob" else "bob", "hello", 1)
        session.communicator.recv("alice" if session.party == "bob" else "bob", "hello")
        print("met", flush=True)
        if "--wait" in sys.argv:
            session.communicator.recv("alice" if session.party == "bob" else "bob", "never")
"""


def _start(start: Start, cluster: Path, broker: EmbeddedBroker, program: Path, *words: str) -> Any:
    return {
        name: start(
            *("run", "--cluster", cluster, "--party", name, "--audit", "{session}.{party}.jsonl"),
            *(program, *words, f"--secret-of-{name}"),
            broker_url=broker.unix_url,
        )
        for name in NAMES
    }


def _cluster(session: str) -> dict[str, Any]:
    return SIGNED | {"session": session}


@pytest.mark.slow
def test_run_keeps_records_that_agree(
    start: Start, broker: EmbeddedBroker, write_cluster: Write, write_program: Write, tmp_path: Path
) -> None:
    cluster, program = write_cluster(_cluster("audit-1")), write_program(PROGRAM)
    for result in map(ended, _start(start, cluster, broker, program).values()):
        assert result.returncode == 0, result.stderr
    found = [verify_file(tmp_path / f"audit-1.{name}.jsonl", KEYS) for name in NAMES]
    for each in found:
        assert (each.problems, each.remarks) == ([], [])
        assert b"secret-of" not in each.path.read_bytes()
        (run,) = each.runs()
        assert run.begin.script is not None
        assert run.begin.script.name == "program.py"
        assert run.end is not None
        assert run.end.how == "closed"
        assert [traffic.messages_sent > 1 for traffic in run.end.peers.values()] == [True]
    assert compare_records(*found).is_same_story


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_good_record_without_an_end(
    start: Start, broker: EmbeddedBroker, write_cluster: Write, write_program: Write, tmp_path: Path
) -> None:
    cluster, program = write_cluster(_cluster("audit-2")), write_program(PROGRAM)
    processes = _start(start, cluster, broker, program, "--wait")
    paths = {name: tmp_path / f"audit-2.{name}.jsonl" for name in NAMES}

    def has_begun() -> bool:
        return all(path.exists() and b'"begin"' in path.read_bytes() for path in paths.values())

    wait_until(has_begun)
    os.kill(processes["bob"].pid, signal.SIGKILL)
    processes["alice"].send_signal(signal.SIGTERM)
    assert ended(processes["alice"]).returncode == 143
    ended(processes["bob"])
    alice, bob = (verify_file(paths[name], KEYS) for name in NAMES)
    assert alice.problems == bob.problems == []
    assert "has no end" in bob.remarks[0]
    (run,) = alice.runs()
    assert run.end is not None
    assert run.end.how == "aborted"
    assert compare_records(alice, bob).is_same_story


@pytest.mark.slow
def test_a_program_that_does_not_close_its_session_is_noted(
    spawn: Start, broker: EmbeddedBroker, write_cluster: Write, write_program: Write, tmp_path: Path
) -> None:
    cluster = write_cluster(_cluster("audit-3"))
    program = write_program("import redislink\nsession = redislink.Session.join()\n")
    for result in map(ended, _start(spawn, cluster, broker, program).values()):
        assert result.returncode == 0, result.stderr
    for name in NAMES:
        found = verify_file(tmp_path / f"audit-3.{name}.jsonl", KEYS)
        assert found.problems == []
        (run,) = found.runs()
        assert run.end is not None
        assert run.end.how == "left"
