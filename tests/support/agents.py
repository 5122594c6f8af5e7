"""Organisations with agents as processes, and a driver in the test, over one real server.

A program in a job only exchanges a message, because what is tested is what happens around it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from redislink.broker import Broker
from redislink.cluster import ClusterSpec
from redislink.identity.keypair import format_public_key
from redislink.jobs.driver import DriverJob
from redislink.jobs.letters import Sealer
from redislink.jobs.mailbox import Mailbox, driver_sources
from redislink.jobs.offer import Offer, new_job_id
from redislink.jobs.program import Program
from redislink.jobs.replication import Note
from redislink.jobs.store import ProgramStore
from redislink.logs import PartyLogger
from tests.conftest import IDENTITIES
from tests.support.forking import ForkedCommand
from tests.support.waiting import wait_until

PARTIES: Final = ("alice", "bob")
DRIVER: Final = "coordinator"
_DRIVERS_KEY: Final = IDENTITIES["carol"]
PATIENCE: Final = 90.0
PROGRAM: Final = """
    import sys, time
    import redislink

    with redislink.Session.join() as session:
        other = "bob" if session.party == "alice" else "alice"
        session.communicator.send(other, "note", session.party)
        assert session.communicator.recv(other, "note") == other
        print("met", other, *sys.argv[1:], flush=True)
        gate = session.data("gate")
        while not (gate / sys.argv[1]).exists():
            time.sleep(0.05)
        session.result("note", {"from": session.party})
        session.result("diary", "not for the driver")
"""
POLICY: Final = """
    rules:
      - name: those that are asked about
        driver: coordinator
        program: exchange
        arguments: {type: array, prefixItems: [{const: asked}], items: false}
        action: ASKED
        data: [gate]
        results: {to_driver: note}
        limits: {wall: 10m}
      - name: those that are slow
        driver: coordinator
        program: exchange
        arguments: {type: array, prefixItems: [{const: slow}], items: false}
        data: [gate]
        action: accept
        limits: {wall: WALL}
      - name: all others
        driver: coordinator
        program: exchange
        arguments: {type: array, prefixItems: [{type: string, maxLength: 20}], items: false}
        data: [gate]
        action: accept
        results: {to_driver: note}
        logs: to_driver
        limits: {wall: 10m, memory: 2GiB}
    data: {gate: gate}
    limits: {jobs: 4}
"""


class Organisation:
    """One party, with the directory of its agent."""

    def __init__(self, name: str, directory: Path, url: str, cluster: Path, **policy: str) -> None:
        self.name = name
        self.directory = directory
        self.work = directory / "work"
        self.policy = directory / "policy.yaml"
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("REDISLINK_")}
        self._environment["REDISLINK_BROKER_URL"] = url
        self._words = [
            *("agent", "--cluster", str(cluster), "--party", name),
            *("--identity", str(directory / "identity.key"), "--policy", str(self.policy)),
            *("--programs", str(directory / "programs"), "--work", str(self.work)),
        ]
        self._log = directory / "agent.log"
        self.process: subprocess.Popen[str] | None = None
        (directory / "gate").mkdir(parents=True)
        IDENTITIES[name].save(directory / "identity.key", "of a test")
        self.write_policy(**policy)

    def write_policy(self, asked: str = "accept", wall: str = "10m") -> None:
        text = textwrap.dedent(POLICY).replace("ASKED", asked).replace("WALL", wall)
        self.policy.write_text(text)

    def has(self, program: Program) -> None:
        store = ProgramStore(self.directory / "programs")
        store.add(program, "exchange", by="a test", now=time.time(), approved=True)

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = ForkedCommand(
                self._words, cwd=self.directory, env=self._environment, stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    def until_it_waits(self) -> None:
        wait_until(lambda: "waits for jobs" in self.log(), PATIENCE)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def log(self) -> str:
        return self._log.read_text()

    def open_gate(self, name: str) -> None:
        (self.directory / "gate" / name).touch()

    def jobs_log(self, job: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.work / job / "log").read_text()
        return ""

    def state(self, job: str) -> str:
        with contextlib.suppress(FileNotFoundError, ValueError):
            state = json.loads((self.work / job / "state.json").read_text())
            return str(state["status"]["state"])
        return ""


class Driver:
    """A driver: offers, and hears what becomes of it."""

    def __init__(self, url: str, spec: ClusterSpec) -> None:
        self._url = url
        self._spec = spec
        self.jobs: dict[str, DriverJob] = {}
        self.parties: list[Organisation] = []
        """Those whose agents are to run while this driver waits."""
        self._mailbox: Mailbox | None = None
        self.appear()

    def appear(self) -> None:
        sealer = Sealer(
            DRIVER,
            session=self._spec.session,
            digest=self._spec.digest(),
            private_key=_DRIVERS_KEY.private_key,
            public_keys=self._spec.keys_for_jobs(),
            random_bytes=secrets.token_bytes,
        )
        self._mailbox = Mailbox(
            [Broker(self._url)],
            sealer,
            session=self._spec.session,
            me=DRIVER,
            sources=driver_sources(PARTIES),
            log=PartyLogger(self._spec.session, DRIVER),
        )

    def vanish(self) -> None:
        assert self._mailbox is not None
        self._mailbox.close()
        self._mailbox = None

    def offer(self, program: Program, *arguments: str, **fields: Any) -> str:
        now = int(time.time())
        usual: dict[str, Any] = {
            "job": new_job_id(),
            "driver": DRIVER,
            "issued": now,
            "expires": now + 600,
            "program": program.digest,
            "program_name": "exchange",
            "parties": PARTIES,
            "arguments": list(arguments),
            "data": dict.fromkeys(PARTIES, ("gate",)),
            "results": ("note", "diary"),
        }
        job = DriverJob(Offer(**(usual | fields)))
        self.jobs[job.offer.job] = job
        self._tell(job)
        return job.offer.job

    def cancel(self, name: str) -> None:
        self.jobs[name].cancel(time.time())
        self._tell(self.jobs[name])

    def _tell(self, job: DriverJob) -> None:
        if self._mailbox is not None:
            for party in PARTIES:
                self._mailbox.send(job.letter(party, time.time()), time.time())

    def hear(self) -> None:
        """Take in what has been told."""
        assert self._mailbox is not None
        for received in self._mailbox.take(0.05):
            note = Note.from_value_untrusted(received.body)
            job = self.jobs[note.job]
            job.heard_untrusted(received.src, note)
            self._mailbox.send(job.letter(received.src, time.time()), time.time())

    def until(self, name: str, condition: Callable[[DriverJob], bool], what: str) -> DriverJob:
        job = self.jobs[name]

        def reached() -> bool:
            self.hear()
            for party in self.parties:
                assert party.process is not None
                assert party.process.poll() is None, party.log()
            return condition(job)

        wait_until(reached, PATIENCE, what)
        return job

    def until_states(self, name: str, **states: str) -> DriverJob:
        """Wait until parties have told that a job is in these states."""

        def reached(job: DriverJob) -> bool:
            return all(
                party in job.statuses and str(job.statuses[party].state) == state
                for party, state in states.items()
            )

        return self.until(name, reached, f"{states}")


class World:
    """A cluster: organisations with agents, and a driver."""

    def __init__(self, directory: Path, url: str, policies: Mapping[str, dict[str, str]]) -> None:
        content = {
            "session": f"agents-{secrets.token_hex(3)}",
            "parties": [
                {"name": name, "public_key": format_public_key(IDENTITIES[name].public_key)}
                for name in PARTIES
            ],
            "drivers": [{"name": DRIVER, "public_key": format_public_key(_DRIVERS_KEY.public_key)}],
        }
        cluster = directory / "cluster.yaml"
        cluster.write_text(yaml.safe_dump(content))
        program = directory / "exchange.py"
        program.write_text(textwrap.dedent(PROGRAM))
        self.spec = ClusterSpec.parse(content)
        self.program = Program.read(program)
        self.parties = {
            name: Organisation(name, directory / name, url, cluster, **policies.get(name, {}))
            for name in PARTIES
        }
        for party in self.parties.values():
            party.has(self.program)
            party.start()
        for party in self.parties.values():  # before, a signal would end it
            party.until_it_waits()
        self.driver = Driver(url, self.spec)
        self.driver.parties.extend(self.parties.values())

    def close(self) -> None:
        self.driver.vanish()
        for party in self.parties.values():
            if party.process is not None and party.process.poll() is None:
                party.process.kill()
                party.process.wait(PATIENCE)


@contextlib.contextmanager
def world(directory: Path, url: str, **policies: dict[str, str]) -> Iterator[World]:
    """A cluster whose processes end with the block."""
    made = World(directory, url, policies)
    try:
        yield made
    finally:
        made.close()
