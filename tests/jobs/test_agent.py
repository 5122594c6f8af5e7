"""Agents as processes: what they do with jobs, and after their own end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from redislink.audit import compare_records, verify_file
from redislink.broker import EmbeddedBroker
from redislink.cli.errors import ExitCode
from redislink.jobs.usage import marked
from redislink.jobs.work import Verdict, WorkDirectory
from tests.support.agents import PATIENCE, Organisation, World, world
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Alice asks a person about some jobs; at bob's the slow ones may take a second."""
    directory = tmp_path_factory.mktemp("agents")
    with (
        EmbeddedBroker() as broker,
        world(directory, broker.url, alice={"asked": "ask"}, bob={"wall": "1s"}) as made,
    ):
        yield made


def decide(party: Organisation, job: str, action: str, program: str) -> None:
    verdict = Verdict.model_validate(
        {"action": action, "program": program, "by": "a test", "at": 1.0}
    )
    WorkDirectory(party.work).decide(job, verdict)


def processes(party: Organisation, job: str) -> int:
    return len(marked(f"REDISLINK_JOB_DIR={party.work / job}"))


def test_a_job_goes_on_after_its_agent_was_killed_at_any_state(stage: World) -> None:
    """And after its driver has vanished: what it missed, it hears when it is back."""
    alice, bob = stage.parties["alice"], stage.parties["bob"]
    job = stage.driver.offer(stage.program, "asked")
    stage.driver.until_states(job, alice="waiting", bob="accepted")
    alice.stop(signal.SIGKILL)
    stage.driver.vanish()
    alice.start()
    decide(alice, job, "approve", stage.program.digest)
    for party in (alice, bob):
        wait_until(lambda party=party: "met" in party.jobs_log(job), PATIENCE)
    alice.stop(signal.SIGKILL)
    wait_until(lambda: processes(alice, job) == 0, PATIENCE)
    for party in (alice, bob):
        party.open_gate("asked")
    alice.start()
    wait_until(lambda: alice.state(job) == bob.state(job) == "finished", PATIENCE)
    assert "approved" not in alice.jobs_log(job)
    assert alice.jobs_log(job).count("met bob asked") == 2, "it was started twice"
    stage.driver.appear()
    told = stage.driver.until_states(job, alice="finished", bob="finished")
    assert told.statuses["alice"].results == ("note",)
    left = {path.name for path in (alice.work / job).iterdir()}
    assert left >= {"log", "results", "state.json"}
    assert not left & {"journal", "scratch", "program"}
    check_records(stage, job)


def check_records(stage: World, job: str) -> None:
    """Both tell, in records that are good, who decided what, and that the same was run."""
    found = {}
    for name, party in stage.parties.items():
        work = WorkDirectory(party.work)
        for path in (work.record, work.record_of(job)):
            verified = verify_file(path)
            assert verified.problems == [], path
            assert verified.key is not None, "signed"
            found[name, path.name] = verified
    told = [
        r.said for r in found["alice", "agent.jsonl"].records if getattr(r.said, "job", "") == job
    ]
    assert [(said.kind, getattr(said, "by", ""), getattr(said, "attempt", 0)) for said in told] == [
        ("offer", "", 0), ("decision", "policy", 0), ("decision", "person", 0),
        ("start", "", 1), ("start", "", 2),
    ]  # fmt: skip
    for file in ("agent.jsonl", f"{job}.jsonl"):
        same = compare_records(found["alice", file], found["bob", file])
        assert same.differences == [], file
    ends = [run.end and run.end.how for run in found["alice", f"{job}.jsonl"].runs()]
    assert ends == [None, "closed"], "the first run was killed"


def test_a_job_that_one_refuses_starts_nowhere(stage: World) -> None:
    alice, bob = stage.parties["alice"], stage.parties["bob"]
    job = stage.driver.offer(stage.program, "asked")
    stage.driver.until_states(job, alice="waiting", bob="accepted")
    decide(alice, job, "approve", "sha256:" + "0" * 64)
    wait_until(lambda: "decided about another program" in alice.log(), PATIENCE)
    assert alice.state(job) == "waiting", "a person approves the program that was shown"
    decide(alice, job, "refuse", stage.program.digest)
    told = stage.driver.until_states(job, alice="refused", bob="refused")
    for status in told.statuses.values():
        assert (status.by, status.reason) == ("alice", "by a person at alice")
    for party in (alice, bob):
        names = {path.name for path in (party.work / job).glob("[a-z]*")}
        assert names == {"state.json"}, "no process was ever made ready"


def test_two_jobs_run_at_once_and_one_is_cancelled(stage: World) -> None:
    alice, bob = stage.parties["alice"], stage.parties["bob"]
    jobs = [stage.driver.offer(stage.program, name) for name in ("one", "two")]
    for job in jobs:
        stage.driver.until_states(job, alice="running", bob="running")
    stage.driver.cancel(jobs[0])
    told = stage.driver.until_states(jobs[0], alice="cancelled", bob="cancelled")
    assert {status.by for status in told.statuses.values()} == {"coordinator"}
    for party in (alice, bob):
        wait_until(lambda party=party: processes(party, jobs[0]) == 0, PATIENCE)  # type: ignore[misc]
        assert processes(party, jobs[1]) == 1
        party.open_gate("two")
    stage.driver.until_states(jobs[1], alice="finished", bob="finished")


def test_over_its_time_a_job_ends_everywhere_and_says_where_and_why(stage: World) -> None:
    job = stage.driver.offer(stage.program, "slow")
    told = stage.driver.until_states(job, alice="failed", bob="failed")
    for status in told.statuses.values():
        assert status.by == "bob"
        assert "the job ran for more than 1 s, its limit here" in status.reason
    wait_until(lambda: processes(stage.parties["alice"], job) == 0, PATIENCE)


def test_a_policy_is_read_again_and_a_broken_one_is_not_taken(stage: World) -> None:
    alice = stage.parties["alice"]
    assert alice.process is not None
    alice.write_policy(asked="refuse")
    alice.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "policy.yaml again: 3 rules" in alice.log(), PATIENCE)
    alice.policy.write_text("rules: everything")
    alice.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "the policy stays as it was" in alice.log(), PATIENCE)
    job = stage.driver.offer(stage.program, "asked")
    told = stage.driver.until_states(job, alice="refused", bob="refused")
    assert (
        told.statuses["alice"].reason == "rule 'those that are asked about' of its policy: refuse"
    )
    alice.write_policy(asked="ask")
    assert alice.stop() == 0
    alice.start()


def test_a_second_agent_of_a_party_is_refused(stage: World) -> None:
    bob = stage.parties["bob"]
    first = bob.process
    assert first is not None
    bob.start()
    assert bob.process is not None
    try:
        assert bob.process.wait(PATIENCE) == ExitCode.PEER
    finally:
        bob.process = first
    assert f"bob: another agent (process {first.pid}) uses {bob.work}" in bob.log()


def test_an_agent_outlives_an_outage_of_its_broker(tmp_path: Path) -> None:
    with EmbeddedBroker() as server:
        port, url = server.port, server.url
        with world(tmp_path, url, alice={"asked": "ask"}) as made:
            server.stop()
            alice = made.parties["alice"]
            wait_until(lambda: "no letters can be taken" in alice.log(), PATIENCE)
            with EmbeddedBroker(port):
                job = made.driver.offer(made.program, "asked")
                made.driver.until_states(job, alice="waiting", bob="accepted")
                assert "letters are taken again" in alice.log()
