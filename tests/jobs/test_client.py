"""The driver's client, against agents' machines in threads of the test, over a real server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from redislink.broker import Broker, EmbeddedBroker
from redislink.cluster import ClusterSpec
from redislink.errors import BrokerError, ConfigError, JobError
from redislink.identity import Identity, format_public_key
from redislink.jobs.client import Client
from redislink.jobs.machine import AgentMachine, Decide, Give, Start, Stop
from redislink.jobs.mailbox import agent_sources, open_mailbox
from redislink.jobs.offer import Offer, new_job_id
from redislink.jobs.policy import Action, Decision
from redislink.jobs.requests import MOST_PART, About, Answer
from redislink.jobs.status import State
from redislink.operate import acl
from redislink.settings import RedisLinkSettings
from redislink.values import encode_value

PARTIES = ("alice", "bob")
KEYS = {name: Identity.generate() for name in (*PARTIES, "dora", "eve")}
LOG = b"line one\n\x1b[31mred\n" * 80_000
RESULT = {"weights": list(range(400_000))}


class ThreadAgent:
    """A machine with a mailbox; its processes end when the test says so."""

    def __init__(self, name: str, spec: ClusterSpec, url: str, verdict: Action) -> None:
        self.verdict = verdict
        self.logs = True
        self.may_end = threading.Event()
        self.machine = AgentMachine(name, parties=PARTIES, drivers=("dora", "eve"))
        sources = agent_sources(name, PARTIES, ("dora", "eve"))
        settings = RedisLinkSettings.load()
        self.mailbox = open_mailbox(
            spec, name, KEYS[name], settings, sources=sources, brokers=[Broker(url)]
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        running: set[str] = set()
        while not self._ended.is_set():
            for each in self.mailbox.take(0.02):
                self.machine.heard(each.src, each.tag, each.body, time.time())
            if self.may_end.is_set():
                for job in running:
                    self.machine.finished(job, time.time(), ("weights", "secret"))
                running.clear()
            self.machine.tick(time.time())
            for job, _ in self.machine.unsaved():
                self.machine.saved(job)
            for action in self.machine.actions():
                now = time.time()
                if isinstance(action, Decide):
                    decision = Decision(
                        self.verdict, "rule", "because", results=("weights",), logs=self.logs
                    )
                    self.machine.decided(action.offer.job, decision, now)
                elif isinstance(action, Start):
                    running.add(action.job)
                    self.machine.progress(action.job, now, step=3, text="reveal")
                elif isinstance(action, Stop):
                    running.discard(action.job)
                    self.machine.stopped(action.job, now)
                elif isinstance(action, Give):
                    ask = action.ask
                    whole = LOG if ask.about is About.LOG else encode_value(RESULT)
                    part = whole[ask.offset : ask.offset + MOST_PART]
                    answer = Answer(ask.nonce, total=len(whole), offset=ask.offset, data=part)
                    self.machine.give(action.driver, answer, now)
            for job, _ in self.machine.unsaved():
                self.machine.saved(job)
            for letter in self.machine.letters(time.time()):
                self.mailbox.send(letter, time.time())

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self.mailbox.close()


class Stage:
    """Two agents, and whatever clients the test makes."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.directory = url, directory
        self.spec = ClusterSpec.parse(
            {
                "session": f"s-{new_job_id()}",
                "parties": [
                    {"name": p, "public_key": format_public_key(KEYS[p].public_key)}
                    for p in PARTIES
                ],
                "drivers": [
                    {"name": d, "public_key": format_public_key(KEYS[d].public_key)}
                    for d in ("dora", "eve")
                ],
            }
        )
        self.agents: dict[str, ThreadAgent] = {}

    def start(self, **verdicts: Action) -> None:
        for name, verdict in verdicts.items():
            self.agents[name] = ThreadAgent(name, self.spec, self.url, verdict)

    def client(self, driver: str = "dora", directory: str = "jobs") -> Client:
        return Client(
            self.spec, driver, identity=KEYS[driver], jobs_dir=self.directory / directory,
            brokers=[Broker(self.url)],
        )  # fmt: skip

    def offer(self, driver: str = "dora", **fields: object) -> Offer:
        now = int(time.time())
        usual: dict[str, object] = {
            "job": new_job_id(), "driver": driver, "issued": now, "expires": now + 600,
            "program": "sha256:" + "ab" * 32, "parties": PARTIES,
            "results": ("weights", "secret"),
        }  # fmt: skip
        return Offer(**(usual | fields))  # type: ignore[arg-type]

    def let_jobs_end(self) -> None:
        for agent in self.agents.values():
            agent.may_end.set()


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
