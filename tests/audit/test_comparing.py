"""Two records held against each other: who ran what else, and who revealed to whom else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redislink.audit import compare_records, verify_file
from redislink.errors import AuditError
from tests.audit.writing import (
    JOB,
    KEYS,
    Line,
    a_job,
    a_run,
    begin,
    end,
    reveal,
    step,
    write,
    written,
)
from tests.conftest import IDENTITIES


def _compare(tmp_path: Path, mine: list[Line], theirs: list[Line]) -> Any:
    return compare_records(written(tmp_path, "alice", mine), written(tmp_path, "bob", theirs))


def _with(lines: list[Line], place: int, **changes: Any) -> list[Line]:
    kind, fields = lines[place]
    return [*lines[:place], (kind, fields | changes), *lines[place + 1 :]]


def test_two_that_tell_the_same_story(tmp_path: Path) -> None:
    lines = [[*a_job(name), *a_run(name)] for name in ("alice", "bob")]
    found = _compare(tmp_path, *lines)
    assert (found.is_same_story, found.differences, found.remarks) == (True, [], [])
    job, run = sorted(found.agreed)
    assert JOB in job
    assert "4 steps, 2 reveals" in run


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda lines: _with(lines, 4, text="SP0.run(g)(f32[2])", digest="9" * 32),
            "step 3: alice called SP0.run(f)(f32[2]), bob called SP0.run(g)(f32[2])",
        ),
        (
            lambda lines: _with(
                lines, 4, digest="9" * 32,
                parts=[["the function", "0a0b0c0d"], ["argument 1", "ffffffff"]],
            ),
            "step 3: both called SP0.run(f)(f32[2]); what differs: argument 1",
        ),
        (
            lambda lines: _with(lines, 4, digest="9" * 32),
            "what differs: what it was called with, or a step before",
        ),
        (
            lambda lines: [*lines[:3], reveal(2, ("bob",)), *lines[4:]],
            "step 2: alice revealed to alice, bob to bob",
        ),
        (
            lambda lines: [*lines[:3], reveal(2, shapes=[[2], [3]]), *lines[4:]],
            "alice revealed float32[2] of SP0, bob float32[2] of SP0",
        ),
        (
            lambda lines: [
                *lines[:2],
                step(2, "SP0.reveal(f32[2]; to=bob)", digest="9" * 32),
                reveal(2, ("bob",)),
                *lines[4:],
            ],
            "step 2: alice revealed to alice, bob to bob",
        ),
        (
            lambda lines: [*lines[:5], lines[-1]],
            "alice made 4 steps, bob only 3",
        ),
        (
            lambda lines: [*lines[:-1], step(5), lines[-1]],
            "bob made 5 steps, alice only 4",
        ),
        (
            lambda lines: _with(lines, 0, script={"name": "other.py", "sha256": "e" * 64}),
            "alice ran program.py (SHA-256 ddddddddddd…), bob ran other.py",
        ),
        (lambda lines: _with(lines, 0, cluster="00" * 32), "alice has cluster file c1c1c1c1c1c…"),
        (lambda lines: _with(lines, 0, security="none"), "alice has security sealed, bob none"),
        (
            lambda lines: _with(
                lines, 0, parties=[{"name": "alice", "fingerprint": "x"}, {"name": "bob"}]
            ),
            "the two have other public keys for alice",
        ),
        (
            lambda lines: [*lines[:-1], end("bob", "failed", error="PeerLost", by="alice")],
            "they ended differently: alice's closed, bob's failed (PeerLost by alice)",
        ),
        (
            lambda lines: _with(lines, 0, epochs={"alice": "f" * 16}),
            "alice's record has the run of trial",
        ),
        (
            lambda lines: [*lines, begin("bob", epochs={"alice": "f" * 16}), end("bob")],
            "bob's record has the run of trial",
        ),
    ],
)  # fmt: skip
def test_what_another_party_tells_differently(
    tmp_path: Path, change: Callable[[list[Line]], list[Line]], says: str
) -> None:
    """It has written that with its own key, so its record is good in itself."""
    found = _compare(tmp_path, a_run("alice"), change(a_run("bob")))
    assert not found.is_same_story
    assert any(says in line for line in found.differences), found.differences
    assert not any("is damaged" in line for line in found.differences)


def test_steps_after_the_first_that_differs_are_not_compared(tmp_path: Path) -> None:
    theirs = _with(_with(a_run("bob"), 1, digest="9" * 32), 4, digest="8" * 32)
    (line,) = _compare(tmp_path, a_run("alice"), theirs).differences
    assert "step 1" in line


@pytest.mark.parametrize("how", ["failed", "aborted", None])
def test_a_run_that_failed_may_lack_steps(tmp_path: Path, how: str | None) -> None:
    failed = [end("alice", "failed", error="PeerLost", by="bob")]
    theirs = a_run("bob")[:5] + ([] if how is None else [end("bob", how)])
    found = _compare(tmp_path, [*a_run("alice")[:-1], *failed], theirs)
    assert found.differences == []
    assert any("alice made 4 steps, bob only 3" in line for line in found.remarks)


def test_messages_that_did_not_arrive_are_a_remark(tmp_path: Path) -> None:
    counts = dict.fromkeys(
        ("messages_sent", "bytes_sent", "messages_received", "bytes_received"), 9
    )
    theirs = [*a_run("bob")[:-1], end("bob", peers={"alice": counts})]
    found = _compare(tmp_path, a_run("alice"), theirs)
    assert found.is_same_story
    assert "alice sent bob 3 messages (3 bytes), and bob received 9 (9 bytes)" in found.remarks[0]


def test_other_versions_are_a_remark(tmp_path: Path) -> None:
    theirs = _with(a_run("bob"), 0, versions="redislink 2")
    found = _compare(tmp_path, a_run("alice"), theirs)
    assert found.is_same_story
    assert "alice had redislink 1, bob redislink 2" in found.remarks[0]


def test_a_resumed_run_may_be_answered_at_one_party_only(tmp_path: Path) -> None:
    theirs = _with(_with(a_run("bob"), 0, resumed_after=2), 1, from_journal=True)
    assert _compare(tmp_path, a_run("alice"), theirs).is_same_story


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"program": f"sha256:{'00' * 32}"}, "alice started it with program sha256:ab"),
        ({"arguments": f"sha256:{'00' * 32}"}, "alice started it with arguments sha256:ab"),
        ({"session": "other"}, "alice started it with session trial"),
    ],
)
def test_a_job_that_was_started_as_another(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    found = _compare(tmp_path, a_job("alice"), a_job("bob", **change))
    assert any(says in line for line in found.differences), found.differences


def test_a_job_that_was_offered_otherwise(tmp_path: Path) -> None:
    theirs = _with(a_job("bob"), 0, arguments=f"sha256:{'00' * 32}")
    found = _compare(tmp_path, a_job("alice"), theirs)
    assert f"job {JOB}: alice and bob were offered another arguments" in found.differences


def test_a_job_that_only_one_has(tmp_path: Path) -> None:
    found = _compare(tmp_path, [*a_job("alice"), *a_run("alice")], a_run("bob"))
    assert f"job {JOB}: alice's record has it, and bob's does not" in found.differences
    offer = a_job("alice")[:1]
    found = _compare(tmp_path, [*offer, *a_run("alice")], a_run("bob"))
    assert found.is_same_story, "an offer may not have arrived"
    assert any(JOB in line for line in found.remarks)


def test_a_job_that_started_although_the_other_had_not_accepted(tmp_path: Path) -> None:
    offer, decision, _ = a_job("bob")
    refused = (decision[0], decision[1] | {"action": "refuse"})
    found = _compare(tmp_path, a_job("alice"), [offer, refused])
    assert any("no word that bob accepted it" in line for line in found.differences)


def test_data_sets_of_one_name_may_differ(tmp_path: Path) -> None:
    theirs = a_job("bob", data={"patients": f"sha256:{'00' * 32}"})
    found = _compare(tmp_path, a_job("alice"), theirs)
    assert found.is_same_story
    assert "data set patients is another file at alice than at bob" in found.remarks[0]


def test_a_record_that_is_damaged_is_a_difference(tmp_path: Path) -> None:
    mine, theirs = (written(tmp_path, name, a_run(name)) for name in ("alice", "bob"))
    theirs.path.write_bytes(theirs.path.read_bytes().replace(b"SP0.run", b"SP1.run", 1))
    found = compare_records(mine, verify_file(theirs.path, KEYS))
    assert any(line.startswith("bob's record is damaged") for line in found.differences)


def test_the_key_that_the_other_knows_counts(tmp_path: Path) -> None:
    """Even without a cluster file: alice's own record says which key bob's is."""
    mine = written(tmp_path, "alice", a_run("alice"))
    forged = verify_file(write(tmp_path / "b", a_run("bob"), "bob", IDENTITIES["carol"]))
    assert forged.is_good
    found = compare_records(mine, forged)
    assert any("bob's record is not signed with the" in line for line in found.differences)


def test_records_that_have_nothing_in_common(tmp_path: Path) -> None:
    found = _compare(tmp_path, a_run("alice"), [begin("bob", session="other"), end("bob")])
    assert found.differences == ["the two records have no run and no job in common"]
    assert len(found.remarks) == 2


def test_two_records_of_one_party_are_refused(tmp_path: Path) -> None:
    mine = written(tmp_path, "alice", a_run("alice"))
    with pytest.raises(AuditError, match="both are alice's"):
        compare_records(mine, mine)


def test_runs_in_memory_belong_together_by_their_order(tmp_path: Path) -> None:
    def two(name: str) -> list[Line]:
        first, *rest = a_run(name)
        run = [(first[0], first[1] | {"epochs": {}}), *rest]
        return [*run, *run]

    found = _compare(tmp_path, two("alice"), two("bob"))
    assert found.is_same_story
    assert len(found.agreed) == 2
