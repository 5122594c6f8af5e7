"""``redislink policy``: what would be decided, and by which rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.cli.conftest import Call
from tests.jobs.examples import POLICY

JOB = """\
program: train.py
name: lr-train
arguments: {epochs: 3}
data: {alice: patients}
devices: []
results: [weights]
expires: 2h
"""
NIGHT = ("--at", "2026-09-21T22:00+02:00")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDISLINK_PROGRAMS_DIR", raising=False)
    monkeypatch.setenv("REDISLINK_PARTY", "alice")
    monkeypatch.setenv("REDISLINK_CLUSTER_FILE", "cluster.yaml")
    Path("cluster.yaml").write_text("session: t\nsecurity: none\nparties: [alice, bob]\n")
    Path("train.py").write_text("print(1)\n")
    Path("job.yaml").write_text(JOB)
    Path("policy.yaml").touch(0o600)
    Path("policy.yaml").write_text(POLICY)
    return tmp_path


CHECK = ("policy", "check", "policy.yaml", "job.yaml", "--driver", "coordinator")


def test_a_file_alone_is_checked_and_told(call: Call, files: Path) -> None:
    code, out, err = call("policy", "check", "policy.yaml")
    assert code == 0, err
    assert out.splitlines()[0].startswith(
        "1. nightly training (line 3): accept driver coordinator; program lr-train; data patients"
    )
    assert "2. whatever matches none of them: refuse" in out
    assert f"data set patients: there is no file {files}/data/patients.csv now" in err
    code, out, _ = call("policy", "check", "policy.yaml", "--json")
    assert json.loads(out)["rules"][0]["window"]["from"] == "20:00"
    Path("policy.yaml").write_text(POLICY.replace("driver:", "drivr:", 1))
    code, out, err = call("policy", "check", "policy.yaml")
    assert (code, out) == (2, "")
    assert "policy file policy.yaml, line 4: rules.0.drivr: there is no such field" in err


def test_a_job_is_accepted_by_night(call: Call, files: Path) -> None:
    code, out, err = call(*CHECK, *NIGHT)
    assert code == 0, err
    assert out.splitlines() == [
        "accept (rule 'nightly training', line 3): rule 'nightly training' of its policy: accept",
        "results to the driver: weights",
        "log to the driver: yes",
        "limits: wall 2h, cpu 4h, memory 8GiB, disk 10GiB",
    ]
    assert "counts as approved, as lr-train" in err
    assert "coordinator is neither a party nor a driver of the cluster file" in err
    code, out, _ = call(*CHECK, *NIGHT, "--json")
    told = json.loads(out)
    assert (told["action"], told["limits"]["wall"]) == ("accept", 7200)
    assert files.is_dir()


def test_and_refused_by_day(call: Call, files: Path) -> None:
    code, out, err = call(*CHECK, "--at", "2026-09-21T12:00")
    assert code == 0, err
    assert out.splitlines() == [
        "refuse: no rule of its policy matches this offer",
        "rule 'nightly training' does not match: window: not at this time",
    ]
    assert files.is_dir()


def test_the_programs_that_are_here_count(call: Call, files: Path) -> None:
    code, out, _ = call(*CHECK, *NIGHT, "--programs", "programs")
    assert "is not here, and was not attached" in out
    call("programs", "add", "train.py", "--name", "lr-train", "--programs", "programs")
    code, out, _ = call(*CHECK, *NIGHT, "--programs", "programs")
    assert out.startswith("accept ")
    Path("job.yaml").write_text(JOB + "attach: true\n")
    Path("train.py").write_text("print(2)\n")
    code, out, _ = call(*CHECK, *NIGHT, "--programs", "programs")
    assert out.startswith("ask (rule 'nightly training', line 3): ")
    assert "nobody has approved this program yet" in out
    code, out, _ = call(*CHECK, *NIGHT)
    assert (code, out.startswith("ask ")) == (0, True)
    assert files.is_dir()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("policy", "check", "policy.yaml", "job.yaml"), "give --driver NAME"),
        ((*CHECK, "--at", "tonight"), "--at tonight: is no time"),
        ((*CHECK, "--party", "eve"), "party 'eve' is not in session"),
        (("policy", "check", "none.yaml"), "check the path given with --policy"),
    ],
)
def test_what_it_cannot_say(call: Call, files: Path, words: tuple[str, ...], why: str) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert why in err
    assert files.is_dir()


def test_schemas_for_editors(call: Call) -> None:
    _, out, _ = call("policy", "schema")
    policy = Draft202012Validator(json.loads(out))
    Draft202012Validator.check_schema(policy.schema)
    content = yaml.safe_load(POLICY)
    assert list(policy.iter_errors(content)) == []
    for wrong in ({"drivr": "x"}, {"action": "allow"}, {"driver": {}}, {"limits": {"wall": 3}}):
        changed = content | {"rules": [content["rules"][0] | wrong]}
        assert list(policy.iter_errors(changed)), wrong
    content["rules"][0] |= {"arguments": "*", "driver": ["a", "b"]}
    assert list(policy.iter_errors(content)) == []
    _, out, _ = call("policy", "schema", "--job")
    job = Draft202012Validator(json.loads(out))
    assert list(job.iter_errors(yaml.safe_load(JOB))) == []
    assert list(job.iter_errors({"program": "x.py", "data": "patients"})) == []
    assert list(job.iter_errors({"program": "x.py", "datas": "patients"}))


def test_the_policy_of_the_settings(
    files: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = call("policy", "check")
    assert code == 2
    assert "no policy: give its FILE, or set REDISLINK_POLICY_FILE" in err
    monkeypatch.setenv("REDISLINK_POLICY_FILE", "policy.yaml")
    assert call("policy", "check") == call("policy", "check", "policy.yaml")
