"""``redislink submit`` and ``redislink jobs`` of a driver, whose agents are threads of the test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from redislink import read_result
from redislink.broker import EmbeddedBroker
from redislink.cli.errors import ExitCode
from redislink.jobs.policy import Action
from tests.cli.conftest import Call
from tests.support.thread_agents import KEYS, LOG, RESULT, Stage
from tests.support.waiting import wait_until

JOB = """
program: sha256:abababababababababababababababababababababababababababababababab
name: lr-train
arguments: {epochs: 3}
results: [weights, secret]
expires: 10m
"""


def one_line(err: str) -> str:
    """What the command said, in one line that begins with the name of it."""
    assert err.startswith("redislink: ")
    assert err.count("\n") == 1
    return err


class Driver:
    """The commands of the driver dora."""

    def __init__(self, call: Call, stage: Stage, directory: Path) -> None:
        self._call = call
        self.stage = stage
        self._job = directory / "job.yaml"
        self._job.write_text(JOB)
        cluster = directory / "cluster.yaml"
        content = stage.spec.model_dump(mode="json", exclude_none=True) | {"broker": stage.url}
        cluster.write_text(yaml.safe_dump(content))
        KEYS["dora"].save(directory / "dora.key", "of a test")
        self._options = (
            *("--cluster", str(cluster), "--driver", "dora", "--jobs-dir", str(directory / "jobs")),
            *("--identity", str(directory / "dora.key")),
        )

    def submit(self, *words: str) -> tuple[int, str, str]:
        return self._call("submit", *self._options, *words, str(self._job))

    def jobs(self, *words: str) -> tuple[int, str, str]:
        return self._call("jobs", *words, *self._options)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.url


@pytest.fixture
def driver(call: Call, url: str, tmp_path: Path) -> Iterator[Driver]:
    stage = Stage(url, tmp_path)
    yield Driver(call, stage, tmp_path)
    for agent in stage.agents.values():
        agent.close()


@pytest.mark.slow
def test_a_job_from_its_offer_to_its_result(driver: Driver, tmp_path: Path) -> None:
    stage = driver.stage
    stage.start(alice=Action.ACCEPT, bob=Action.ACCEPT)
    stage.let_jobs_end()
    code, out, err = driver.submit("--wait")
    assert code == 0, err
    job = out.strip()
    assert f"redislink: job {job}: offered, no answer yet from alice, bob" in err
    assert err.splitlines()[-1] == f"redislink: job {job}: finished"
    code, out, _ = driver.jobs("show", job)
    assert code == 0
    assert out.splitlines()[0] == f"job {job}: finished"
    assert 'arguments: {"epochs": 3}' in out
    assert "results of bob: weights" in out
    code, out, _ = driver.jobs("list", "--json")
    (listed,) = json.loads(out)
    assert (listed["job"], listed["state"]) == (job, "finished")
    assert job in driver.jobs("list")[1]
    assert driver.jobs("result", job)[1].splitlines() == ["alice  weights", "bob  weights"]
    code, _, err = driver.jobs("result", job, "weights", "--out", str(tmp_path / "w.msgpack"))
    assert code == 0, err
    assert read_result(tmp_path / "w.msgpack") == RESULT
    code, _, err = driver.jobs("result", job, "weights", "--out", str(tmp_path / "w.msgpack"))
    assert code == ExitCode.CONFIG
    code, out, _ = driver.jobs("logs", job, "alice")
    assert out == LOG.decode().replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    code, _, err = driver.jobs("result", job, "secret")
    assert code == ExitCode.PEER
    assert "no agent has told of a result 'secret'" in one_line(err)


@pytest.mark.slow
def test_a_job_that_waits_is_cancelled(driver: Driver) -> None:
    driver.stage.start(alice=Action.ACCEPT, bob=Action.ASK)
    code, out, err = driver.submit()
    assert code == 0, err
    job = out.strip()
    assert err.splitlines()[-1] == f"redislink: job {job}: waiting for approval at bob"
    code, _, err = driver.jobs("wait", job, "--timeout", "0")
    assert code == ExitCode.PEER
    assert "has not ended yet: it is waiting for approval at bob" in err
    code, out, err = driver.jobs("cancel", job)
    assert (code, out) == (0, f"job {job}: cancelled by dora: by its driver\n")
    code, out, err = driver.jobs("wait", job, "--json")
    assert code == ExitCode.PEER
    told = json.loads(out)
    assert (told["state"], told["by"]) == ("cancelled", "dora")
    assert {each["state"] for each in told["parties"].values()} == {"cancelled"}


@pytest.mark.slow
def test_agents_that_are_away_find_it_later_and_one_refuses(driver: Driver) -> None:
    code, out, err = driver.submit("--json")
    assert code == 0, err
    job = json.loads(out)["job"]
    assert "not heard yet from alice, bob" in err
    driver.stage.start(alice=Action.ACCEPT, bob=Action.REFUSE)
    code, _, err = driver.jobs("wait", job)
    assert code == ExitCode.PEER
    assert f"job {job} has ended: refused by bob: because" in err
    wait_until(
        lambda: job in driver.stage.agents["alice"].machine.jobs, 20, "the offer has arrived"
    )
    code, out, _ = driver.jobs("list", "--ask-agents")
    assert f"{job}  bob  refused by bob: because" in out


@pytest.mark.slow
def test_without_a_broker_the_job_is_kept_and_said_so(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDISLINK_BROKER_URL", "redis://127.0.0.1:1")
    code, out, err = driver.submit()
    job = out.strip()
    assert code == ExitCode.BROKER
    assert f"redislink: job {job}: is kept here, and perhaps not at the broker yet" in err
    monkeypatch.delenv("REDISLINK_BROKER_URL")
    driver.stage.start(alice=Action.REFUSE, bob=Action.ACCEPT)
    assert driver.jobs("wait", job)[0] == ExitCode.PEER
    assert "refused by alice" in driver.jobs("show", job)[1]


def test_what_is_wrong_is_one_line(driver: Driver, call: Call, tmp_path: Path) -> None:
    for words, said in (
        (("show", "j" + "z" * 12), "dora has none with this id here"),
        (("cancel", "j" + "z" * 12), "dora has none with this id here"),
        (("show", "j" + "z" * 12, "--work", str(tmp_path)), "--work is for an agent's machine"),
        (("show", "j" + "z" * 12, "--source"), "--source and --diff are for an agent's machine"),
        (("cancel", "j" + "z" * 12, "--reason", "x"), "--reason is for an agent's machine"),
    ):
        code, _, err = driver.jobs(*words)
        assert code == ExitCode.CONFIG, words
        assert said in one_line(err)
    code, _, err = call("submit", str(tmp_path / "job.yaml"))
    assert code == ExitCode.CONFIG
    assert "no cluster file" in err
