"""An agent's turns in this process: letters and decisions in, records and letters out; no run."""

from __future__ import annotations

import dataclasses
import errno
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redislink.audit import AuditLog, verify_file
from redislink.cli import main
from redislink.cluster import ClusterSpec
from redislink.errors import AuditError
from redislink.identity.keypair import format_public_key
from redislink.jobs import agent as agent_module
from redislink.jobs.agent import Agent, Place
from redislink.jobs.driver import DriverJob
from redislink.jobs.machine import Letter
from redislink.jobs.mailbox import Received
from redislink.jobs.offer import Offer
from redislink.jobs.program import Program
from redislink.jobs.recorder import Recorder
from redislink.jobs.work import Verdict, WorkDirectory
from redislink.protocol.list_names import ANSWERS_TAG, OFFERS_TAG
from redislink.settings import RedisLinkSettings
from tests.conftest import IDENTITIES
from tests.jobs.examples import an_offer

PROGRAM = Program((("main.py", b"print(1)\n"),))
POLICY = """
    rules:
      - {name: ask me, driver: coordinator, action: ask}
"""


class Mail:
    """The letters that an agent sends."""

    def __init__(self) -> None:
        self.sent: list[Letter] = []

    def send(self, letter: Letter, _now: float) -> None:
        self.sent.append(letter)

    def states(self) -> list[str]:
        """What the driver was told of this agent's state, in order."""
        told = [each.body for each in self.sent if each.tag == ANSWERS_TAG]
        return [body["status"]["state"] for body in told if body["status"] is not None]


class Turning:
    """An agent without broker and threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        key = directory / "alice.key"
        if not key.exists():
            IDENTITIES["alice"].save(key, "of a test")
        policy = directory / "policy.yaml"
        policy.write_text(textwrap.dedent(POLICY))
        self.spec = ClusterSpec.parse(
            {
                "session": "turns",
                "parties": [
                    {"name": n, "public_key": format_public_key(IDENTITIES[n].public_key)}
                    for n in ("alice", "bob")
                ],
                "drivers": [
                    {
                        "name": "coordinator",
                        "public_key": format_public_key(IDENTITIES["carol"].public_key),
                    }
                ],
            }
        )
        place = Place(
            self.spec, "alice", key, policy, directory / "programs",
            directory / "work",
        )  # fmt: skip
        self.work = WorkDirectory(directory / "work")
        self.work.path.mkdir(mode=0o700, exist_ok=True)
        self.agent = Agent(
            place, RedisLinkSettings(_env_file=None, broker_url="redis://127.0.0.1:1")
        )
        self.work.record.parent.mkdir(mode=0o700, exist_ok=True)
        self.log = AuditLog.open(self.work.record, "alice", IDENTITIES["alice"])
        self.agent._recorder = Recorder(self.log, "turns")
        self.mail = Mail()

    def turn(self, *letters: Received) -> None:
        self.agent._turn(self.mail, letters)  # type: ignore[arg-type]

    def recorded(self) -> list[tuple[Any, ...]]:
        verified = verify_file(self.work.record)
        assert verified.problems == []
        said = [record.said for record in verified.records]
        return [
            (s.kind, getattr(s, "action", ""), getattr(s, "by", ""), getattr(s, "conflicts", False))
            for s in said
            if s.kind != "file"
        ]


@pytest.fixture
def turning(tmp_path: Path) -> Iterator[Turning]:
    made = Turning(tmp_path)
    yield made
    made.log.close()


def offered(**fields: Any) -> tuple[Offer, Received]:
    now = int(time.time())
    usual = {
        "issued": now, "expires": now + 3600, "program": PROGRAM.digest, "source": PROGRAM.packed,
        "data": {}, "devices": (),
    }  # fmt: skip
    offer = an_offer(**(usual | fields))
    letter = DriverJob(offer).letter("alice", time.time())
    return offer, Received("coordinator", OFFERS_TAG, letter.body)


def verdict(offer: Offer, action: str = "approve", **fields: Any) -> Verdict:
    usual = {"action": action, "program": offer.program, "by": "ann", "at": 1.0}
    return Verdict.model_validate(usual | fields)


def test_what_is_decided_is_recorded_saved_and_told(turning: Turning) -> None:
    offer, letter = offered()
    turning.turn(letter)
    assert turning.mail.states()[-1] == "waiting"
    turning.work.decide(offer.job, verdict(offer))
    turning.turn()
    assert turning.mail.states()[-1] == "accepted"
    assert not turning.work.is_decided(offer.job)
    turning.work.decide(offer.job, verdict(offer, "refuse"))
    turning.turn()
    assert turning.mail.states()[-1] == "accepted", "that comes too late"
    turning.work.decide(offer.job, verdict(offer, "cancel", reason="not \x1b today"))
    turning.turn()
    assert turning.mail.states()[-1] == "cancelled"
    assert turning.recorded() == [
        ("offer", "", "", False),
        ("decision", "ask", "policy", False),
        ("decision", "accept", "person", False),
        ("decision", "cancel", "person", False),
    ]


def test_what_the_driver_and_others_end_is_recorded_too(turning: Turning) -> None:
    offer, letter = offered()
    turning.turn(letter)
    job = DriverJob(offer)
    job.cancel(time.time())
    turning.turn(Received("coordinator", OFFERS_TAG, job.letter("alice", time.time()).body))
    assert turning.recorded()[-1] == ("decision", "cancel", "driver", False)
    assert turning.mail.states()[-1] == "cancelled"


def test_a_second_offer_with_the_same_id_is_recorded_once(turning: Turning) -> None:
    _, letter = offered()
    _, other = offered(arguments={"epochs": 4})
    turning.turn(letter)
    for _ in range(5):
        turning.turn(other)
    assert [each for each in turning.recorded() if each[3]] == [("offer", "", "", True)]


def test_what_the_disk_does_not_take_is_not_told(
    turning: Turning, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    offer, letter = offered()
    with monkeypatch.context() as patch:
        patch.setattr(WorkDirectory, "save", full)
        turning.turn(letter)
        turning.work.decide(offer.job, verdict(offer))
        turning.turn()
        assert turning.mail.sent == []
        assert turning.work.is_decided(offer.job), "the decision is not lost"
        assert turning.agent._seconds() == agent_module._IDLE, "it does not try without end"
    turning.turn()
    assert turning.mail.states()[-1] == "accepted"
    assert not turning.work.is_decided(offer.job)


def test_a_record_that_cannot_be_written_ends_the_agent(turning: Turning) -> None:
    turning.log.close()
    _, letter = offered()
    with pytest.raises(AuditError, match="is closed"):
        turning.turn(letter)
    assert turning.mail.sent == []


def test_after_its_end_an_agent_goes_on_with_what_it_had_saved(
    turning: Turning, tmp_path: Path
) -> None:
    offer, letter = offered()
    turning.turn(letter)
    turning.work.save("j999999999999", {"format": 99})
    turning.log.close()
    again = Turning(tmp_path)
    again.agent._restore()
    again.turn(letter)
    assert again.agent._machine.jobs[offer.job].state == "waiting"
    assert "j999999999999" not in again.agent._machine.jobs
    assert again.work.load("j999999999999") == {"format": 99}, "left alone"
    again.log.close()


def test_a_job_that_the_cluster_has_no_device_for_is_refused(turning: Turning) -> None:
    _, letter = offered(devices=("SP9",))
    turning.turn(letter)
    assert turning.mail.states()[-1] == "refused"
    assert turning.recorded()[-1] == ("decision", "refuse", "policy", False)


def test_an_agent_whose_disk_is_full_of_jobs_accepts_no_more(turning: Turning) -> None:
    limits = dataclasses.replace(turning.agent._policy.limits, disk=1)
    turning.agent._policy = turning.agent._policy.model_copy(update={"limits": limits})
    _, letter = offered()
    turning.turn(letter)
    assert turning.mail.states()[-1] == "refused"


@pytest.mark.parametrize(
    ("first", "approves", "then", "state"),
    [
        ("ask", False, "refuse", "cancelled"),
        ("ask", True, "refuse", "cancelled"),
        ("accept", False, "refuse", "cancelled"),
        ("accept", False, "ask", "cancelled"),
        ("accept", False, "accept", "accepted"),
        ("ask", True, "ask", "accepted"),
        ("ask", False, "ask", "waiting"),
        ("ask", False, "accept", "waiting"),
    ],
)
def test_a_new_policy_counts_for_jobs_that_have_not_started(
    turning: Turning, first: str, approves: bool, then: str, state: str
) -> None:
    def write(action: str) -> None:
        turning.agent._place.policy.write_text(
            f"rules: [{{name: all, driver: coordinator, action: {action}, "
            "program: '*', arguments: '*', data: '*'}]"
        )
        turning.agent._reload()

    turning.agent._store.add(PROGRAM, "one", by="a test", now=0.0, approved=True)
    write(first)
    offer, letter = offered()
    turning.turn(letter)
    if approves:
        turning.work.decide(offer.job, verdict(offer))
        turning.turn()
    write(then)
    turning.turn()
    assert turning.mail.states()[-1] == state
    if state == "cancelled":
        assert ("decision", "cancel", "policy", False) in turning.recorded()
        reason = turning.agent._machine.jobs[offer.job].status.reason
        assert reason == "this party's policy has changed, and does not accept it any more"


def test_a_signal_to_an_agent_that_is_still_starting_is_not_lost(
    turning: Turning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does it end the agent."""

    def serve(_: Agent) -> None:
        signal.raise_signal(signal.SIGHUP)
        assert not turning.agent._is_to_reload
        with turning.agent._signals():
            assert turning.agent._is_to_reload

    monkeypatch.setattr(Agent, "serve", serve)
    monkeypatch.setenv("REDISLINK_BROKER_URL", "redis://127.0.0.1:1")
    place = turning.agent._place
    cluster = turning.directory / "cluster.yaml"
    cluster.write_text(turning.spec.model_dump_json(exclude_unset=True))
    arguments = [
        "agent", "--cluster", str(cluster), "--party", "alice", "--identity", str(place.identity),
        "--policy", str(place.policy), "--programs", str(place.programs), "--work", str(place.work),
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
