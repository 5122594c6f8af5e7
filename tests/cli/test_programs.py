"""``redislink programs``: a person adds, looks at and approves programs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from redislink.jobs.machine import AgentJob
from redislink.jobs.status import State, Status
from redislink.jobs.store import ProgramStore
from redislink.jobs.work import WorkDirectory
from tests.cli.conftest import Call
from tests.jobs.examples import a_program, an_offer


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REDISLINK_PROGRAMS_DIR", str(tmp_path / "programs"))
    monkeypatch.chdir(tmp_path)
    Path("lr").mkdir()
    Path("lr/main.py").write_text("print(1)\n")
    return tmp_path / "programs"


def _add(call: Call, *options: str) -> str:
    code, out, err = call("programs", "add", "lr", *options)
    assert code == 0, err
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", out)
    return out.strip()


def test_add_list_show_and_remove(call: Call, programs: Path) -> None:
    code, out, err = call("programs", "list")
    assert (code, out) == (2, "")
    assert "check the path given with --programs" in err
    digest = _add(call)
    code, out, _ = call("programs", "list", "--json")
    (entry,) = json.loads(out)
    assert (entry["digest"], entry["name"]) == (digest, "lr")
    assert entry["approved"] >= entry["added"] > 0
    assert entry["approved_by"] == entry["added_by"] != ""
    code, out, _ = call("programs", "list")
    assert digest[:19] in out
    code, out, _ = call("programs", "show", "lr")
    assert "1 file, 9 B; main.py is run" in out
    assert "print(1)" not in out
    code, out, _ = call("programs", "show", digest[:15], "--source", "--json")
    assert json.loads(out)["files"] == {"main.py": 9}
    code, _, err = call("programs", "remove", "lr", "--yes")
    assert (code, f"removed lr {digest}" in err) == (0, True)
    assert call("programs", "list")[:2] == (0, "")
    assert list(programs.iterdir()) == []


def test_a_new_version_is_looked_at_and_approved(call: Call, programs: Path) -> None:
    first = _add(call, "--name", "train")
    Path("lr/main.py").write_text("print(2) # \x1b[8m\u202e\n")
    second = _add(call, "--name", "train", "--not-approved")
    found = ProgramStore(programs).find(second)
    assert found is not None
    assert found.approved is None
    code, out, err = call("programs", "show", "train")
    assert code == 2
    assert first[:19] in err
    assert second[:19] in err
    code, out, _ = call("programs", "show", second, "--diff", "--source")
    assert f"since {first}, approved " in out
    assert "-print(1)\n+print(2) # <U+001B>[8m<U+202E>\n" in out
    assert "==> main.py" in out
    assert "\x1b" not in out
    code, _, err = call("programs", "approve", second)
    assert (code, "approved 20" in err) == (0, True)
    code, out, _ = call("programs", "show", first, "--diff")
    assert f"since {second}" in out
    _, _, err = call("programs", "add", "lr", "--name", "train")
    assert f"other versions of train may run too: {first[:19]}" in err


def test_the_first_version_is_all_new(call: Call, programs: Path) -> None:
    digest = _add(call, "--not-approved")
    _, out, _ = call("programs", "show", digest, "--diff")
    assert "no other version of lr was approved: all of it is new\n" in out
    assert "+print(1)\n" in out
    assert programs.is_dir()


def test_what_was_changed_is_not_shown_as_what_it_was(call: Call, programs: Path) -> None:
    digest = _add(call)
    file = programs / digest[7:] / "main.py"
    file.chmod(0o600)
    file.write_text("print(3)\n")
    for command in (("show", "lr", "--source"), ("approve", "lr")):
        code, out, err = call("programs", *command)
        assert (code, out) == (2, "")
        assert "was changed after it was added" in err


def test_a_directory_must_be_named(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDISLINK_PROGRAMS_DIR", raising=False)
    code, _, err = call("programs", "list")
    assert (code, "give --programs DIR, or set REDISLINK_PROGRAMS_DIR" in err) == (2, True)


def test_what_came_with_a_job_is_approved_for_good(
    call: Call, programs: Path, tmp_path: Path
) -> None:
    program = a_program({"main.py": b"print(7)\n"})
    sent = an_offer(source=program.packed, program=program.digest, program_name="lr")
    work = WorkDirectory(tmp_path / "work")
    work.path.mkdir(0o700)
    for offer in (sent, an_offer(job="jnosource0000")):
        job = AgentJob(offer, offer.digest(), Status(1, State.WAITING, offer.digest()))
        work.of(offer.job).mkdir(0o700, exist_ok=True)
        work.save(offer.job, job.to_value())
    at = ("--work", str(work.path))
    code, out, err = call("programs", "add", "--job", sent.job, *at)
    assert (code, out) == (0, f"{program.digest}\n"), err
    assert ProgramStore(programs).load(program.digest) == program
    found = ProgramStore(programs).last_approved("lr")
    assert found is not None
    assert found.digest == program.digest
    for words, why in (
        (("--job", sent.job), "there, give --work DIR"),
        (("lr", "--job", sent.job, *at), "so give no PATH"),
        ((), "give PATH, or --job JOB"),
        (("--job", "jnosource0000", *at), "was not attached"),
        (("--job", "j00000000000x", *at), "there is no job"),
    ):
        code, out, err = call("programs", "add", *words)
        assert (code, out) == (2, "")
        assert why in err
