"""``redislink jobs --work``: what people at an agent's machine see and decide."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from redislink.cli import decide
from redislink.jobs.machine import AgentJob
from redislink.jobs.offer import Offer
from redislink.jobs.program import Program
from redislink.jobs.status import State, Status
from redislink.jobs.store import ProgramStore
from redislink.jobs.work import Noted, WorkDirectory
from tests.cli.conftest import Call
from tests.jobs.examples import NOW, an_offer

JOB = "j0123456789ab"
WICKED = "\x1b[2J\x1b[31mall is well"


def keep(directory: Path, state: State, **fields: Any) -> Offer:
    """A work directory with one job in it."""
    offer = an_offer(**fields)
    status = Status(
        version=3,
        state=state,
        offer=offer.digest(),
        since=NOW,
        reason="rule 'ask me' of its policy: ask" if state is State.WAITING else "",
    )
    work = WorkDirectory(directory)
    work.path.mkdir(mode=0o700, exist_ok=True)
    work.save(offer.job, AgentJob(offer, offer.digest(), status, received=NOW).to_value())
    return offer


def decided(directory: Path) -> Any:
    return json.loads((directory / "decisions" / f"{JOB}.json").read_text())


def test_a_decision_waits_for_the_next_agent_if_none_runs(call: Call, tmp_path: Path) -> None:
    work = tmp_path / "work"
    offer = keep(work, State.WAITING)
    code, out, _ = call("jobs", "approve", JOB, "--work", work)
    assert code == 0
    assert out == f"{JOB}: approve: noted; no agent runs here now, and the next one takes it\n"
    told = decided(work)
    assert (told["action"], told["program"]) == ("approve", offer.program)
    assert told["by"] == decide.who_decides()
    assert abs(told["at"] - time.time()) < 60
    for path in (work / "decisions", work / "decisions" / f"{JOB}.json"):
        assert path.stat().st_mode & 0o077 == 0
    code, out, _ = call("jobs", "refuse", JOB, "--work", work, "--reason", "not\ntoday")
    assert (code, decided(work)["action"], decided(work)["reason"]) == (0, "refuse", "not today")


def test_an_agent_that_does_not_take_it_is_not_waited_for(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decide, "_PATIENCE", 0.0)
    work = WorkDirectory(tmp_path / "work")
    keep(work.path, State.RUNNING)
    work.take("alice")
    try:
        code, out, _ = call("jobs", "cancel", JOB, "--work", work.path)
    finally:
        work.release()
    assert (code, out) == (0, f"{JOB}: cancel: noted; the agent has not taken it yet\n")


@pytest.mark.parametrize(
    ("state", "words", "why"),
    [
        (State.RUNNING, "approve", "does not wait for a person: running; redislink jobs cancel"),
        (State.ACCEPTED, "refuse", "does not wait for a person: accepted"),
        (State.FINISHED, "cancel", "has ended: finished"),
    ],
)
def test_what_cannot_be_decided_any_more(
    call: Call, tmp_path: Path, state: State, words: str, why: str
) -> None:
    keep(tmp_path / "work", state)
    code, _, err = call("jobs", words, JOB, "--work", tmp_path / "work")
    assert code == 2
    assert f"redislink: {JOB} {why}" in err
    assert not (tmp_path / "work" / "decisions").exists()


def test_directories_that_are_none_of_an_agents(call: Call, tmp_path: Path) -> None:
    code, _, err = call("jobs", "list", "--work", tmp_path / "none")
    assert (code, "No such file or directory: name the --work of the agent" in err) == (2, True)
    keep(tmp_path / "work", State.WAITING)
    for job in ("j000000000000", "../work", "j"):
        code, _, err = call("jobs", "approve", job, "--work", tmp_path / "work")
        assert code == 2
    (tmp_path / "work").chmod(0o750)
    code, _, err = call("jobs", "approve", JOB, "--work", tmp_path / "work")
    assert (code, "others on this machine can use it: run chmod 700" in err) == (2, True)


def test_what_a_driver_wrote_is_shown_as_text(call: Call, tmp_path: Path) -> None:
    work = tmp_path / "work"
    program = Program((("main.py", b"print('\x1b[2J')  # \xc2\x9b31m\n"),))
    keep(
        work,
        State.RUNNING,
        arguments=[WICKED],
        program=program.digest,
        source=program.packed,
    )
    WorkDirectory(work).note(JOB, Noted(f"step 3, {WICKED}", 12.3, 40.0, 1))
    for words in (["list"], ["show", JOB], ["show", JOB, "--source"]):
        code, out, _ = call("jobs", *words, "--work", work)
        assert code == 0
        assert "\x1b" not in out
        assert "\x9b" not in out
    code, out, _ = call("jobs", "list", "--work", work, "--json")
    (told,) = json.loads(out)
    assert (told["job"], told["state"], told["cpu_seconds"]) == (JOB, "running", 40.0)
    ProgramStore(tmp_path / "programs").add(
        Program((("main.py", b"print('before')\n"),)), "lr-train", by="x", now=1.0, approved=True
    )
    code, out, _ = call(
        "jobs", "show", JOB, "--work", work, "--diff", "--programs", tmp_path / "programs"
    )
    assert code == 0
    assert "-print('before')" in out
    assert "\x1b" not in out


def test_only_what_was_decided_whole_counts(tmp_path: Path) -> None:
    work = WorkDirectory(tmp_path)
    (tmp_path / "decisions").mkdir()
    for name, text in {
        "j0123456789ab": "{}",
        "j0123456789ac": '{"action": "approve", "by": "x", "at": 1, "program": 3}',
        "j0123456789ad": "not json",
        "jx": "{}",
    }.items():
        (tmp_path / "decisions" / f"{name}.json").write_text(text)
    assert list(work.decisions()) == [
        ("j0123456789ab", None), ("j0123456789ac", None), ("j0123456789ad", None),
    ]  # fmt: skip
    work.drop_decision("j0123456789ab")
    assert len(list(work.decisions())) == 2


def test_a_state_is_whole_and_a_torn_one_is_none(tmp_path: Path) -> None:
    work = WorkDirectory(tmp_path / "work")
    work.take("alice")
    try:
        assert work.is_used()
        work.save(JOB, {"a": [1]})
        assert work.load(JOB) == {"a": [1]}
        assert list(work.jobs()) == [JOB]
        assert (work.of(JOB) / "state.json").stat().st_mode & 0o777 == 0o600
        (work.of(JOB) / "state.json").write_text('{"a"')
        assert work.load(JOB) is None
        assert [path.name for path in work.of(JOB).iterdir()] == ["state.json"]
    finally:
        work.release()
    assert not work.is_used()


def test_in_an_agents_directory_its_jobs_are_meant(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    keep(work / "alice", State.WAITING)
    monkeypatch.setenv("REDISLINK_WORK_DIR", str(work / "{party}"))
    monkeypatch.setenv("REDISLINK_PARTY", "alice")
    monkeypatch.setattr(decide, "_PATIENCE", 0.0)
    code, out, err = call("jobs", "list")
    assert code == 0
    assert JOB in out
    assert f"at this agent ({work / 'alice'}); of a driver: redislink jobs list --driver" in err
    assert json.loads(call("jobs", "list", "--json")[1])[0]["job"] == JOB
    code, out, _ = call("jobs", "show", JOB)
    assert code == 0
    assert "state: waiting" in out
    assert call("jobs", "cancel", JOB)[0] == 0
    # What is no job of this agent, or is asked for as a driver, is the driver's.
    for words in (["show", "j" + "z" * 12], ["list", "--driver", "dora"], ["list", "--ask-agents"]):
        code, _, err = call("jobs", *words)
        assert code == 2
        assert "no cluster file" in err
