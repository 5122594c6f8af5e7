"""The driver's client, against agents' machines in threads of the test, over a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from redislink.broker import Broker, EmbeddedBroker
from redislink.errors import BrokerError, ConfigError, JobError
from redislink.jobs.client import Client
from redislink.jobs.policy import Action
from redislink.jobs.status import State
from redislink.operate import acl
from tests.support.thread_agents import KEYS, LOG, PARTIES, RESULT, Stage


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.url


@pytest.fixture
def stage(url: str, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(url, tmp_path)
    yield made
    for agent in made.agents.values():
        agent.close()


def test_a_job_from_its_offer_to_its_result(stage: Stage) -> None:
    stage.start(alice=Action.ACCEPT, bob=Action.ACCEPT)
    said = []
    with stage.client() as client:
        job = client.submit(stage.offer()).id
        client.wait(job, 20, on_change=lambda now: said.append(str(now.state)) or (
            stage.let_jobs_end() if now.state is State.RUNNING else None
        ))  # fmt: skip
        done = client.show(job)
        assert done.state is State.FINISHED
        assert "running" in said
        assert done.statuses["alice"].text == "reveal"
        assert done.results == {"alice": ("weights",), "bob": ("weights",)}
        assert client.result(job, "weights") == RESULT
        assert b"".join(client.logs(job, "bob")) == LOG
        with pytest.raises(JobError, match="no agent has told of a result 'secret'"):
            client.result(job, "secret")
        with pytest.raises(JobError, match="alice gives no result 'secret'"):
            client.result(job, "secret", "alice")
        with pytest.raises(ConfigError, match="'carol' does not take part"):
            client.result(job, "weights", "carol")


@pytest.mark.slow
def test_an_agent_that_is_away_finds_the_offer_and_another_client_the_end(stage: Stage) -> None:
    with stage.client() as client:
        job = client.submit(stage.offer()).id
        assert client.show(job).unseen == PARTIES
    stage.start(alice=Action.ACCEPT, bob=Action.REFUSE)
    with stage.client() as client:
        end = client.wait(job, 20)
    assert (end.state, end.whole.by, end.whole.reason) == (State.REFUSED, "bob", "because")
    with stage.client() as client:
        assert [each.id for each in client.list()] == [job]
        with pytest.raises(JobError, match=r"alice's policy|not started at alice"):
            list(client.logs(job, "alice"))


@pytest.mark.slow
def test_two_clients_share_their_files_and_a_lost_driver_asks(stage: Stage) -> None:
    stage.start(alice=Action.ACCEPT, bob=Action.ASK)
    with stage.client() as one, stage.client() as other, stage.client(directory="new") as lost:
        job = one.submit(stage.offer()).id
        while other.show(job).state is not State.WAITING:
            one.refresh()
        assert other.show(job).whole.waits_for == ("bob",)
        assert other.cancel(job)
        assert not one.cancel(job)
        assert one.wait(job, 20).whole.by == "dora"
        found = lost.ask_agents()
        assert {offer.job for party in PARTIES for offer, _ in found[party]} == {job}
        with pytest.raises(ConfigError, match="has none with this id here"):
            lost.show(job)


def test_another_driver_gets_nothing(stage: Stage) -> None:
    stage.start(alice=Action.ACCEPT, bob=Action.ACCEPT)
    with stage.client() as dora, stage.client("eve") as eve:
        offer = stage.offer()
        dora.submit(offer)
        dora.wait(offer.job, 20, on_change=lambda now: stage.let_jobs_end())
        assert all(not jobs for jobs in eve.ask_agents().values())
        with pytest.raises(ConfigError, match="eve cannot submit an offer of dora"):
            eve.submit(offer)
        stolen = stage.offer("eve", job=offer.job)
        eve.submit(stolen)
        with pytest.raises(JobError, match="no such job of eve"):
            eve.result(offer.job, "weights", "alice")
        assert dora.show(offer.job).state is State.FINISHED


@pytest.mark.slow
def test_a_party_submits_to_its_own_agent_too_and_with_no_more_rights_than_it_has(
    real_server, tmp_path: Path
) -> None:
    stage = Stage(real_server.url, tmp_path)
    users = acl.party_users(stage.spec.session, PARTIES, drivers=("dora", "eve"))
    passwords = {user.party: acl.make_password() for user in users}
    acl.apply_users(Broker(real_server.url), users, passwords)
    urls = {u.party: acl.party_url(real_server.url, u.name, passwords[u.party]) for u in users}
    try:
        for party in PARTIES:
            stage.url = urls[party]
            stage.start(**{party: Action.ACCEPT})
        stage.let_jobs_end()
        for driver in ("alice", "dora"):
            stage.url = urls[driver]
            with stage.client(driver) as client:
                job = client.submit(stage.offer(driver)).id
                assert client.wait(job, 20).state is State.FINISHED
                assert client.result(job, "weights", "bob") == RESULT
        stage.url = urls["eve"]
        with stage.client("dora", "of a thief") as client, pytest.raises(BrokerError, match="perm"):
            client.submit(stage.offer())
    finally:
        for agent in stage.agents.values():
            agent.close()


def test_what_does_not_fit_is_said_at_once(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a party nor a driver"):
        Client(stage.spec, "mallory", identity=KEYS["eve"], jobs_dir=tmp_path)
    with pytest.raises(ConfigError, match="the key file is of SHA256"):
        Client(stage.spec, "dora", identity=KEYS["eve"], jobs_dir=tmp_path)
    with stage.client() as client:
        job = client.submit(stage.offer()).id
        with pytest.raises(ConfigError, match="is there already"):
            client.submit(client.show(job).offer)
    file = tmp_path / "jobs" / stage.spec.session / "dora" / f"{job}.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["offer"]["job"] == job
    file.write_text("{")
    with stage.client() as client, pytest.raises(ConfigError, match="holds no job of a driver"):
        client.list()
